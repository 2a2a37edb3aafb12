package scenario

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// faultStep is a step of what goes wrong with machines; ok is false for another step.
//
//	assume                         from here on what docs/SAFETY.md assumes is kept: steps are refused after
//	  which nobody would stop a node's writers
//	isolate NODE                   it is cut off from all others
//	one-way NODE NODE              what the first sends to the second is held back
//	freeze NODE, thaw NODE         flockd stands still: its disks and the others hear nothing of it; its fencer goes on
//	fast NODE                      ends what slow began
//	new-pool NODE                  its pool is destroyed and made again, as soon as nobody uses it
//	pool-away NODE, pool-back NODE  its pool is exported, and imported
//	fills NODE                     its pool has no room any more for what is not there; empties NODE: it has again
//	repair                         all that was broken is right again, and all machines are up
//	append VOLUME                  its container writes one more file, and syncs; nobody has it mounted: refused
//	ask PORT                       a client has one more file written through the route there; no gate is open: refused
//	purged NODE VOLUME             until it has no copy, not in the trash either, of a volume that was synced
//	lasting VOLUME                 nothing that was synced is gone: see lasting
func (w *World) faultStep(words []string) (ok bool, err error) {
	node := func() *Machine { return w.Machine(words[1]) }
	switch words[0] {
	case "assume":
		w.assumes = true
	case "isolate":
		node().isolate(true)
	case "one-way":
		w.net.PartitionOneWay(words[1], words[2])
	case "freeze":
		if w.assumes && node().fencer.isDown() {
			return true, errNobodyFences
		}
		return true, node().freeze()
	case "thaw":
		return true, node().thaw()
	case "fast":
		node().fast()
	case "new-pool":
		w.Await("nobody uses the pool of "+words[1], func() bool {
			err = node().ZFS.RenewPool(Pool)
			return !errors.Is(err, zfs.ErrBusy)
		})
		return true, err
	case "pool-away":
		node().ZFS.ExportPool(Pool)
	case "pool-back":
		return true, node().ZFS.ImportPool(bystander, Pool, "/fake")
	case "fills":
		return true, node().fills()
	case "empties":
		node().ZFS.SetCapacity(Pool, capacity)
	case "repair":
		w.repair()
	case "append":
		return true, w.append(words[1])
	case "ask":
		return true, w.ask(words[1])
	case "purged":
		b, err := w.book(words[2])
		if err != nil {
			return true, err
		}
		w.Await(strings.Join(words, " "), func() bool {
			for _, root := range []string{"/flocker/", "/flocker-trash/"} {
				if _, err := node().ZFS.Dataset(bystander, Pool+root+path.Base(b.dataset)); !errors.Is(err, zfs.ErrNotFound) {
					return false
				}
			}
			return true
		})
	case "lasting":
		return true, w.lasting(words[1])
	default:
		return false, nil
	}
	return true, nil
}

// errNobodyFences: a node whose fencer and flockd are gone at once is beyond what is
// promised without a watchdog, and these machines have none.
var errNobodyFences = errors.New("nobody would stop its writers then")

// bystander is the context of what others than flockd ask of a machine's ZFS: the
// fencer, which is a process of its own, and the checks.
var bystander = context.WithValue(context.Background(), bystanderKey{}, true)

type bystanderKey struct{}

// freeze is SIGSTOP for flockd, as far as a bubble can have it: the clock of its
// goroutines goes on, but no command of ZFS that it began or begins ends, and what it
// and the others send each other is held back.
func (m *Machine) freeze() error {
	if !m.Up() || m.thawed != nil {
		return errors.New("it stands still already, or does not run")
	}
	m.thawed = m.hold()
	return nil
}

// hold stops all that flockd asks of ZFS and of the network until it is let go.
func (m *Machine) hold() (release func()) {
	released := make(chan struct{})
	wait := func(ctx context.Context, _, _ string) error {
		if ctx.Value(bystanderKey{}) != nil {
			return nil
		}
		select {
		case <-released:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	before := m.ZFS.Inject(zfsfake.Rule{Do: wait})
	after := m.ZFS.Inject(zfsfake.Rule{Do: wait, After: true})
	heal := m.separate()
	return func() {
		before()
		after()
		close(released)
		heal()
	}
}

// dies is a reset by the fencer, at any moment: nothing of the machine does anything
// any more. The next check has it off, as a script would.
func (m *Machine) dies() {
	bury := m.hold()
	m.world.net.Crash(m.Name)
	m.Engine.Crash(false)
	m.ZFS.Crash()
	m.dead.Store(&bury)
}

// thaw is SIGCONT.
func (m *Machine) thaw() error {
	if m.thawed == nil {
		return errors.New("it does not stand still")
	}
	m.thawed()
	m.thawed = nil
	return nil
}

// separate cuts what is not cut yet of the links to all others, and returns what heals
// just that.
func (m *Machine) separate() (heal func()) {
	net := m.world.net
	var cut [][2]string
	for other := range m.world.nodes {
		for _, link := range [][2]string{{m.Name, other}, {other, m.Name}} {
			if other != m.Name && net.Reachable(link[0], link[1]) {
				net.PartitionOneWay(link[0], link[1])
				cut = append(cut, link)
			}
		}
	}
	return func() {
		for _, link := range cut {
			net.HealOneWay(link[0], link[1])
		}
	}
}

// slow makes flockd's commands of ZFS take long until fast.
func (m *Machine) slow(op, match string, d time.Duration) {
	m.slowed = append(m.slowed, m.ZFS.Inject(zfsfake.Rule{Op: op, Match: match, Do: func(ctx context.Context, _, _ string) error {
		if ctx.Value(bystanderKey{}) != nil {
			return nil
		}
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
			return nil
		}
	}}))
}

func (m *Machine) fast() {
	for _, over := range m.slowed {
		over()
	}
	m.slowed = nil
}

// fills has somebody take all the room that the pool has.
func (m *Machine) fills() error {
	p, err := m.ZFS.Pool(bystander, Pool)
	if err == nil {
		m.ZFS.SetCapacity(Pool, p.Alloc)
	}
	return err
}

// repair makes everything right again.
func (w *World) repair() {
	for _, name := range w.Names() {
		m := w.nodes[name]
		if m.thawed != nil {
			m.thawed()
			m.thawed = nil
		}
		m.fast()
		m.suspended = false
		m.ZFS.SuspendPool(Pool, false)
		m.ZFS.SetCapacity(Pool, capacity)
		m.fencer.setDown(false)
		m.proxy.repair()
	}
	w.net.HealAll()
	for _, name := range w.Names() {
		switch m := w.nodes[name]; {
		case !m.on:
			m.Boot()
		case !m.Up():
			m.Start()
		}
	}
}

// book is what was written to a volume, and what of it was said to be safe.
type book struct {
	dataset string
	files   []*entry
	snaps   map[string]uint64 // users' snapshots that are on all copies, by name
	taken   map[string]uint64 // those that may not be there yet
	cuts    map[string]int    // how many files there were at a snapshot, by its name
	backs   map[string]span   // files that a rollback undoes, by its attempt
}

// span is the files from one up to another, without that.
type span struct{ from, to int }

// entry is one file, which is written once and stays. It is safe once all copies have
// it.
type entry struct {
	name, machine string
	at            time.Time // when it was said to be written
	safe          bool
}

func (w *World) book(name string) (*book, error) {
	b := w.books[name]
	if b == nil {
		ds, err := w.dataset(name)
		if err != nil {
			return nil, err
		}
		b = &book{dataset: ds, snaps: map[string]uint64{}, taken: map[string]uint64{}, cuts: map[string]int{}, backs: map[string]span{}}
		w.books[name] = b
	}
	return b, nil
}

// append writes where the volume is mounted: containers do not know who is the primary.
func (w *World) append(name string) error {
	b, err := w.book(name)
	if err != nil {
		return err
	}
	for _, on := range w.Names() {
		m := w.nodes[on]
		if !slices.ContainsFunc(m.ZFS.Mounts(), func(x zfsfake.Mount) bool { return x.Dataset == b.dataset && x.Writable }) {
			continue
		}
		file := fmt.Sprintf("f%04d", len(b.files))
		err := m.ZFS.WriteFile(b.dataset, file, []byte(file))
		if err == nil {
			err = m.ZFS.Sync(b.dataset)
		}
		if err == nil {
			b.files = append(b.files, &entry{name: file, machine: on, at: time.Now()})
		}
		return err
	}
	return errors.New("nobody has it mounted")
}

// ask has a client's request write one more file, wherever a gate of the route is open: which is
// on one machine at most.
func (w *World) ask(port string) error {
	name := ""
	for _, s := range w.states() {
		for _, r := range s.NodeRoutes() {
			if fmt.Sprint(r.Listen) == port {
				name = r.Volume.Name
			}
		}
	}
	if name == "" {
		return errors.New("no route listens there")
	}
	b, err := w.book(name)
	if err != nil {
		return err
	}
	var by, not []string
	file := fmt.Sprintf("f%04d", len(b.files))
	for _, on := range w.Names() {
		m := w.nodes[on]
		err := m.proxy.request(m.routeAt(port), func() error {
			if err := m.ZFS.WriteFile(b.dataset, file, []byte(file)); err != nil {
				return err
			}
			return m.ZFS.Sync(b.dataset)
		})
		if err != nil {
			not = append(not, fmt.Sprintf("%s: %v", on, err))
			continue
		}
		by = append(by, on)
		b.files = append(b.files, &entry{name: file, machine: on, at: time.Now()})
	}
	switch len(by) {
	case 0:
		return errors.New(strings.Join(not, "; "))
	case 1:
		return nil
	}
	w.t.Errorf("a request through port %s was answered by %v", port, by)
	return nil
}

// noteSnapshot remembers the guid that a user's snapshot has.
func (w *World) noteSnapshot(name, snapshot string) error {
	b, err := w.book(name)
	if err != nil {
		return err
	}
	for _, m := range w.nodes {
		if guid, ok := m.guid(b.dataset + "@" + snapshot); ok {
			b.taken[snapshot] = guid
		}
	}
	return nil
}

// beginSync returns what to call when a sync of the volume has succeeded that begins
// now. What a failover has cut off before is not in it.
func (w *World) beginSync(name string) (done func()) {
	b, err := w.book(name)
	if err != nil {
		return func() {}
	}
	before := len(b.files)
	return func() {
		primary := w.nodes[w.newest(name).Primary.Name]
		if primary == nil {
			return
		}
		for _, f := range b.files[:before] {
			if _, err := primary.ZFS.ReadFile(b.dataset, f.name); err == nil {
				f.safe = true
			}
		}
		for snap, guid := range b.taken {
			if got, _ := primary.guid(b.dataset + "@" + snap); got == guid {
				b.snaps[snap] = guid
			}
		}
	}
}

// committed is a rollback to a snapshot, and how many files its volume had when that was seen.
type committed struct {
	snapshot string
	files    int
}

// noteCommitted remembers a rollback that the state tells of.
func (w *World) noteCommitted(id volume.ID, r *state.RolledBack) {
	if w.rolled[string(id)] == nil {
		w.rolled[string(id)] = map[string]committed{}
	}
	if _, seen := w.rolled[string(id)][r.Attempt]; seen {
		return
	}
	c := committed{snapshot: r.Snapshot}
	for _, b := range w.books {
		if b.dataset == datasetOf(id) {
			c.files = len(b.files)
		}
	}
	w.rolled[string(id)][r.Attempt] = c
}

// noteRollback remembers what a rollback that has begun undoes. Of a snapshot that was not
// seen to be taken, nobody knows when it was.
func (w *World) noteRollback(name, snapshot, attempt string) error {
	b, err := w.book(name)
	if err != nil {
		return err
	}
	if _, seen := b.taken[snapshot]; seen && b.backs[attempt] == (span{}) {
		b.backs[attempt] = span{b.cuts[snapshot], len(b.files)}
	}
	return nil
}

// undone says what of a volume's files its rollbacks have undone, by their place, and what they
// may have: of one that nobody knows the beginning of.
func (w *World) undone(b *book) (surely, perhaps map[int]bool) {
	surely, perhaps = map[int]bool{}, map[int]bool{}
	for attempt, c := range w.rolled[path.Base(b.dataset)] {
		at, known := b.backs[attempt]
		for i := range b.files {
			switch {
			case known && i >= at.from && i < at.to:
				surely[i] = true
			case i >= b.cuts[c.snapshot] && i < c.files:
				perhaps[i] = true // written before the containers were stopped, or not
			}
		}
	}
	return surely, perhaps
}

// lasting checks a healthy volume: what all copies had is in it, with the snapshots and
// their guids; what was written since its last failover, through moves and all else; and every
// file that was ever synced is in it or set aside. What was undone is not in it, and set aside.
func (w *World) lasting(name string) error {
	b, err := w.book(name)
	if err != nil {
		return err
	}
	now := w.newest(name)
	primary := w.Machine(now.Primary.Name)
	var missing []string
	surely, perhaps := w.undone(b)
	for i, f := range b.files {
		data, err := primary.ZFS.ReadFile(b.dataset, f.name)
		switch {
		case surely[i] && err == nil:
			missing = append(missing, fmt.Sprintf("%s, which was undone, is on %s", f.name, primary.Name))
		case err != nil && (surely[i] || perhaps[i]):
			if !slices.ContainsFunc(w.Names(), func(n string) bool { return w.machineHas(w.Machine(n), f.name) }) {
				missing = append(missing, fmt.Sprintf("%s, which was undone, is set aside nowhere", f.name))
			}
		case err == nil && string(data) == f.name:
		case f.safe:
			missing = append(missing, fmt.Sprintf("%s, which all copies had, is not on %s (%v)", f.name, primary.Name, err))
		case now.LastFailover == nil || f.at.After(now.LastFailover.At):
			missing = append(missing, fmt.Sprintf("%s, written on %s at %s and lost by no failover since, is not on %s (%v)", f.name, f.machine, f.at.Format("15:04:05.000"), primary.Name, err))
		case !w.machineHas(w.Machine(f.machine), f.name):
			missing = append(missing, fmt.Sprintf("%s, written on %s, is neither on %s nor set aside", f.name, f.machine, primary.Name))
		}
	}
	for snap, guid := range b.snaps {
		if len(w.rolled[path.Base(b.dataset)]) > 0 {
			break // it may be in what was undone
		}
		if got, _ := primary.guid(b.dataset + "@" + snap); got != guid {
			missing = append(missing, fmt.Sprintf("snapshot %s has guid %d on %s, want %d", snap, got, primary.Name, guid))
		}
	}
	if len(missing) > 0 {
		return errors.New(strings.Join(missing, "\n"))
	}
	return nil
}

// machineHas looks for a file in what a machine has set aside.
func (w *World) machineHas(m *Machine, file string) bool {
	list, err := m.ZFS.Datasets(bystander, Pool+"/flocker-aside")
	if err != nil {
		return false
	}
	for _, d := range list {
		if _, err := m.ZFS.ReadFile(d.Name, file); err == nil {
			return true
		}
	}
	return false
}
