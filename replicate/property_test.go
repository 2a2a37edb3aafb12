package replicate

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/test/firstseed"
	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

var (
	histories = flag.Int("histories", 20000, "random histories to run")
	seedFlag  = flag.Uint64("seed", 0, "run only the history of this seed")
)

// Random histories of three nodes: writes, users' snapshots, connections cut and
// bytes damaged, partitions, power cuts, restarts of flockd, failing commands, full
// and suspended pools, clocks that jump, scheduled snapshots, replicas wiped or written to by somebody,
// replicas that leave the set and come back, and changes of primary, to a replica
// that lags too, that nodes hear of late, so that for a while two believe to be it.
//
// All the time,
//
//   - what a link calls acknowledged is on that replica;
//   - a replica that is called in sync has every snapshot that is older and that its primary
//     keeps for people: users', and the scheduled ones of which no policy had fewer;
//   - a copy that could be sent an increment by another one still can: neither retention
//     nor a crash nor a change of primary takes the base from them;
//   - once all copies have met, any two have a snapshot in common for ever, or, when a pool was
//     short of space or people removed that one, the one has it and the other a bookmark; unless one is given up on
//     purpose, goes back to what it has in common with a third that is its primary, or has
//     nothing in common with the primary of the other.
//
// In the end, healed and agreed,
//
//   - all copies are alike, and equal guids have equal contents wherever they are;
//   - every write that was ever made is somewhere, and so is every user's snapshot that
//     nobody removed: in the live copies or in one that was set aside;
//   - no copy was sent in full twice, unless it was given up in between or had nothing in
//     common with a primary that never met it.
func TestHistories(t *testing.T) {
	if *seedFlag != 0 {
		tell(t, *seedFlag)
		return
	}
	n := uint64(firstseed.Times(*histories))
	if testing.Short() {
		n = min(n, 300)
	}
	first := firstseed.Get()
	t.Logf("%d histories from seed %d on", n, first)
	var next atomic.Uint64
	for range runtime.GOMAXPROCS(0) {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			for i := next.Add(1); i <= n && !t.Failed(); i = next.Add(1) {
				if tell(t, first+i); t.Failed() {
					next.Store(n)
				}
			}
		})
	}
}

// tell runs a history. When it fails it is told again without the deeds that do
// not matter, as far as that can be found out: connections and retries are not
// quite the same each time.
func tell(t *testing.T, seed uint64) {
	failures, log := history(t, seed, nil)
	if failures == nil {
		return
	}
	// At once, in case that something hangs from here on.
	fmt.Fprintf(os.Stderr, "the history of seed %d fails: %s\n", seed, failures[0])
	skip := map[int]bool{}
	began := time.Now()
	for i := range deeds(seed) {
		if time.Since(began) > 10*time.Second {
			break
		}
		skip[i] = true
		fails := false
		for range 3 {
			if f, l := history(t, seed, skip); f != nil {
				failures, log, fails = f, l, true
				break
			}
		}
		if !fails {
			delete(skip, i)
		}
	}
	t.Errorf("seed %d: %s\nafter, of its %d deeds, these:\n%s\nagain: go test -tags hashicorpmetrics,nosystemd -run TestHistories -count 20 -seed %d ./replicate",
		seed, strings.Join(failures, "\n"), deeds(seed), strings.Join(log, "\n"), seed)
}

// deeds is how many there are in a history, before it is healed.
func deeds(seed uint64) int { return 15 + rand.New(rand.NewPCG(seed, 0)).IntN(30) }

// failures keeps what goes wrong in a history, so that it can be told again before
// the test fails.
type failures struct {
	testing.TB
	list []string
}

type stopHistory struct{}

func (f *failures) Errorf(format string, args ...any) {
	f.list = append(f.list, fmt.Sprintf(format, args...))
}
func (f *failures) Error(args ...any) { f.Errorf("%s", fmt.Sprintln(args...)) }
func (f *failures) Fatalf(format string, args ...any) {
	f.Errorf(format, args...)
	panic(stopHistory{})
}
func (f *failures) Fatal(args ...any)   { f.Fatalf("%s", fmt.Sprintln(args...)) }
func (f *failures) Failed() bool        { return len(f.list) > 0 }
func (f *failures) Logf(string, ...any) {}

// past is a history as it happens, and what the world ought to be like by it.
type past struct {
	*world
	seed uint64
	rng  *rand.Rand // of the deed being done

	epoch   volume.Epoch
	version int                   // of the assignments
	now     map[string]Assignment // what each node ought to believe; none when it is out
	told    map[string]int        // version that it has heard of
	heard   map[string]Assignment // what it believes
	out     map[string]bool       // not in the replica set
	full    map[string]bool       // pools that are
	removed bool                  // people removed a snapshot, on which somebody may have stood
	policy  volume.SnapshotPolicy
	fewest  map[time.Duration]int // of each rule, what a policy kept at least
	ready   map[string]bool       // as primary: settled, may be written to

	named   int               // files and users' snapshots so far: no name is used twice
	writes  []string          // files that must be somewhere
	snaps   map[uint64]string // users' snapshots that must be somewhere
	mayHave map[string]int    // full copies that a node may have been sent
	asides  map[string]int    // copies set aside on a node, when last looked at
	met     map[string]bool   // what was true of bases, and must stay so
	kin     map[string]bool   // pairs of copies that had something in common, and must have for ever
	firm    map[string]bool   // those of them that had a snapshot in common, and no pool was short of space since
	dials   map[string]uint64
	log     []string
}

var abc = []string{"a", "b", "c"}

// randomData is what files are cut from; making it is slow.
var randomData = blob(rand.New(rand.NewPCG(3, 3)), 1<<19)

// history runs the history of a seed, without some of its deeds.
func history(t *testing.T, seed uint64, skip map[int]bool) (failed, log []string) {
	synctest.Test(t, func(t *testing.T) {
		tb := &failures{TB: t}
		p := &past{
			world: newWorld(tb, abc...), seed: seed,
			now: map[string]Assignment{}, told: map[string]int{}, heard: map[string]Assignment{}, out: map[string]bool{}, full: map[string]bool{}, ready: map[string]bool{},
			snaps: map[uint64]string{}, mayHave: map[string]int{"a": 1, "b": 1, "c": 1}, asides: map[string]int{}, met: map[string]bool{}, kin: map[string]bool{}, firm: map[string]bool{}, fewest: map[time.Duration]int{}, dials: map[string]uint64{},
		}
		defer func() {
			p.stopAll()
			if r := recover(); r != nil && r != (stopHistory{}) {
				panic(r)
			}
			failed, log = tb.list, p.log
		}()
		p.run(skip)
	})
	return failed, log
}

func (p *past) run(skip map[int]bool) {
	p.rng = rand.New(rand.NewPCG(p.seed, 1))
	p.wrap = p.unreliable
	for _, n := range p.nodes {
		// Nobody is given up for good: whoever comes back finds what it stood on.
		n.with(func(c *Config) { c.Replace = func() time.Duration { return 24 * time.Hour } })
	}
	p.node("a").create()
	for _, name := range abc {
		n := p.node(name)
		n.mu.Lock()
		n.seen = func(ev Event) { p.happened(name, ev) }
		n.mu.Unlock()
	}
	p.ready["a"] = true
	p.appoint("a", 1)
	for _, name := range abc {
		p.tell(name)
	}
	for i := range deeds(p.seed) {
		if skip[i] {
			continue
		}
		p.rng = rand.New(rand.NewPCG(p.seed, uint64(i)+2))
		p.act()
		synctest.Wait()
		p.ackedIsThere()
		p.basesAreThere()
		p.historyIsThere()
	}
	p.heal()
	primary := p.chosen()
	for _, other := range abc {
		if other != primary {
			p.waitFor(other+" in sync with "+primary, p.inSync(primary, other))
		}
	}
	p.basesAreThere()
	p.historyIsThere()
	p.nothingLost()
	p.sentOnce()
	p.tidy()
	p.stopAll()
	p.check()
}

func (p *past) note(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log = append(p.log, time.Now().Format("04:05.000 ")+fmt.Sprintf(format, args...))
}

// fresh is a name that was not used before.
func (p *past) fresh(prefix string) string {
	p.named++
	return fmt.Sprintf("%s%d", prefix, p.named)
}

// happened notes what one must know of to understand the rest.
func (p *past) happened(name string, ev Event) {
	switch ev := ev.(type) {
	case SetAside:
		p.note("    %s: %s", name, ev)
		if !ev.Common {
			p.setAsideWhole(name, ev)
		}
	case StreamEnded:
		if ev.Kind == kindFull && ev.Err == nil {
			p.note("    %s: full copy for %s", name, p.byID(ev.Replica).name)
		}
	case Pruned:
		p.note("    %s: %s", name, ev)
	}
}

// setAsideWhole: a copy is only given up as a whole when it has nothing in common with
// its primary, and never had since one of the two was given up on purpose or a pool was
// too full to keep more of it than a bookmark. Then it is sent in full once more.
func (p *past) setAsideWhole(name string, ev SetAside) {
	primary := p.byID(p.believes(name).Primary)
	if primary == nil || strings.Contains(ev.Reason, "seed") {
		return
	}
	_, known := p.holds(primary)
	list, err := p.node(name).host.Snapshots(context.Background(), ev.Dataset, false)
	p.must(err)
	for _, s := range list {
		if known[s.GUID] {
			p.Errorf("%s set its copy aside as a whole, though %s has %s in common with it", name, primary.name, s.Name)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mayHave[name]++; p.firm[pair(name, primary.name)] {
		p.Errorf("%s set its copy aside as a whole, though %s once had something in common with it", name, primary.name)
	}
}

func pair(x, y string) string { return min(x, y) + max(x, y) }

func (p *past) believes(name string) Assignment {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.heard[name]
}

// forget: this node's copy is given up on purpose, so that it may be sent in full once more,
// and nothing is expected of bases until all copies have met again.
func (p *past) forget(name string) {
	p.moved(name)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mayHave[name]++
	clear(p.kin)
	clear(p.firm)
}

// moved: this node's copy stands elsewhere now.
func (p *past) moved(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.met, func(what string, _ bool) bool { return slices.Contains(strings.FieldsFunc(what, notWord), name) })
}

func notWord(r rune) bool { return r == ' ' || r == ',' }

// unreliable cuts or damages some connections.
func (p *past) unreliable(from, to string, conn net.Conn) net.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dials[from+to]++
	rng := rand.New(rand.NewPCG(p.seed+uint64(from[0])<<8+uint64(to[0]), p.dials[from+to]))
	if rng.IntN(4) > 0 {
		return conn
	}
	left := 1 << rng.IntN(20)
	left += rng.IntN(left)
	c := &cutter{Conn: conn, flip: rng.IntN(3) == 0}
	if rng.IntN(2) == 0 {
		c.reads = &left
	} else {
		c.writes = &left
	}
	return c
}

func (p *past) pick() string { return abc[p.rng.IntN(3)] }

// chosen is the node that is to be primary by now.
func (p *past) chosen() string {
	for name, a := range p.now {
		if a.Role == volume.RolePrimary {
			return name
		}
	}
	return ""
}

// appoint makes the next assignments; nodes hear of them by tell.
func (p *past) appoint(primary string, epochs volume.Epoch) {
	p.epoch += epochs
	p.version++
	p.note("epoch %d: primary %s, out %v", p.epoch, primary, slices.Sorted(maps.Keys(p.out)))
	for _, name := range abc {
		a := Assignment{Volume: testVol, Epoch: p.epoch, Role: volume.RoleReplica, Primary: p.node(primary).id, Interval: time.Second, Snapshots: p.policy}
		if name == primary {
			a.Role = volume.RolePrimary
			for _, other := range abc {
				if other != primary && !p.out[other] {
					a.Replicas = append(a.Replicas, p.node(other).id)
				}
			}
		}
		p.now[name] = a
		if p.out[name] {
			delete(p.now, name)
		}
	}
}

func (p *past) tell(name string) {
	if p.told[name] == p.version {
		return
	}
	p.note("%s hears of it", name)
	a, in := p.now[name]
	p.mu.Lock()
	before := p.heard[name]
	p.told[name], p.heard[name] = p.version, a
	p.mu.Unlock()
	if !in {
		p.ready[name] = false
		p.node(name).assign()
		return
	}
	if before.Epoch != a.Epoch {
		p.ready[name] = false
	}
	p.node(name).assign(a)
	p.settle(name)
}

// settle is what an agent does before it lets anybody write.
func (p *past) settle(name string) {
	n := p.node(name)
	a := p.heard[name]
	if a.Role != volume.RolePrimary || p.ready[name] || p.down(name) {
		return
	}
	ctx, cancel := context.WithTimeout(n.ctx, 5*time.Second)
	defer cancel()
	err := n.eng().Settle(ctx, testVol)
	if err == nil {
		err = n.host.SetProperties(ctx, n.dataset(), map[string]string{propEpoch: a.Epoch.String()})
	}
	p.ready[name] = err == nil
	if err != nil {
		p.note("%s is not settled: %v", name, err)
	}
}

// act does one deed. Which one and all about it comes from the deed's own rng.
func (p *past) act() {
	name := p.pick()
	n := p.node(name)
	switch p.rng.IntN(30) {
	case 0, 1, 2, 3, 4:
		p.write()
	case 5:
		for range 10 + p.rng.IntN(10) { // enough for retention to do something
			p.write()
			time.Sleep(time.Second)
		}
	case 6, 7:
		p.userSnapshot(name)
	case 26:
		p.removeSnapshot(name)
	case 27:
		p.changePolicy()
	case 8, 9:
		if other := p.pick(); other != name {
			cut := p.rng.IntN(2) == 0
			p.note("network between %s and %s cut: %v", name, other, cut)
			p.partition(name, other, cut)
		}
	case 10, 11:
		if blow := []blow{powerless, killed}[p.rng.IntN(2)]; !p.down(name) {
			p.note("%s on %s", blow, name)
			n.fall(blow)
			n.stop()
		}
	case 12, 13:
		p.raise(name)
	case 14:
		p.fail(name)
	case 15, 16:
		p.promote()
	case 17, 18:
		p.tell(name)
	case 19:
		p.note("pool of %s is full", name)
		n.host.SetCapacity("tank", 1)
		p.full[name] = true
		p.loosen()
	case 20:
		p.note("pool of %s is suspended", name)
		n.host.SuspendPool("tank", true)
	case 21:
		p.mend(name)
	case 22:
		p.jump(name)
	case 23:
		p.wipe(name)
	case 24:
		p.member(name)
	case 25:
		p.vandal(name)
	default:
		time.Sleep(time.Duration(1+p.rng.IntN(4000)) * time.Millisecond)
		switch p.rng.IntN(12) {
		case 0:
			time.Sleep(40 * time.Second) // who is not there is away
		case 1:
			time.Sleep(5 * time.Minute) // scheduled snapshots are due
		}
	}
	if p.rng.IntN(2) == 0 {
		time.Sleep(time.Duration(1+p.rng.IntN(1500)) * time.Millisecond)
	}
}

// write changes the copy of every node that believes to be primary.
func (p *past) write() {
	for _, name := range abc {
		if p.settle(name); !p.ready[name] || p.down(name) {
			continue
		}
		file := p.fresh("w")
		size := 1 << p.rng.IntN(15)
		if p.rng.IntN(10) == 0 {
			size <<= 4
		}
		at := p.rng.IntN(len(randomData) - size)
		if err := p.node(name).tryWrite(file, randomData[at:at+size]); err == nil {
			p.writes = append(p.writes, file)
			p.note("%s writes %s, %d bytes", name, file, size)
		}
	}
}

func (p *past) userSnapshot(name string) {
	n := p.node(name)
	if !p.ready[name] || p.down(name) {
		return
	}
	snap := p.fresh("user")
	ctx, cancel := context.WithTimeout(n.ctx, 5*time.Second)
	defer cancel()
	if p.rng.IntN(3) == 0 { // by hand
		if n.host.Snapshot(ctx, []string{n.dataset() + "@" + snap}, nil) != nil {
			return
		}
		n.eng().Refresh(testVol)
	} else if n.eng().TakeSnapshot(ctx, []volume.ID{testVol}, snap) != nil {
		return
	}
	for _, s := range n.snapshots() {
		if s.Name == snap {
			p.note("%s takes @%s", name, snap)
			p.snaps[s.GUID] = snap
		}
	}
}

// removeSnapshot removes a user's snapshot through the primary. Whether it is gone
// after an error is not known.
func (p *past) removeSnapshot(name string) {
	n := p.node(name)
	if !p.ready[name] || p.down(name) {
		return
	}
	var list []zfs.Snapshot
	for _, s := range n.snapshots() {
		if p.snaps[s.GUID] != "" {
			list = append(list, s)
		}
	}
	if len(list) == 0 {
		return
	}
	s := list[p.rng.IntN(len(list))]
	ctx, cancel := context.WithTimeout(n.ctx, 5*time.Second)
	defer cancel()
	err := n.eng().RemoveSnapshot(ctx, testVol, s.Name)
	p.note("@%s is removed on %s: %v", s.Name, name, err)
	p.removed = true
	p.loosen()
	delete(p.snaps, s.GUID)
}

// fail lets the next commands of one kind on a node fail, before or after they have
// done their work.
func (p *past) fail(name string) {
	ops := []string{"receive", "send", "take", "snapshot", "snapshots", "dataset", "datasets", "rename", "clone", "promote", "set",
		"prune", "destroy-bookmark", "snapshots-named", "bookmarks", "decode-token", "abort-receive", "create"}
	op := ops[p.rng.IntN(len(ops))]
	after := p.rng.IntN(2) == 0
	left := 1 + p.rng.IntN(3)
	p.note("next %d of %s on %s fail, after they are done: %v", left, op, name, after)
	p.node(name).host.Inject(zfsfake.Rule{Op: op, After: after, Do: func(ctx context.Context, _, _ string) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if ctx.Value(byEngine{}) == nil || left == 0 {
			return nil
		}
		left--
		return zfsfake.ErrInjected
	}})
}

func (p *past) raise(name string) {
	if p.down(name) {
		p.note("%s starts", name)
		p.node(name).start()
	}
}

// mend gives a node's pool room, and lets it go on.
func (p *past) mend(name string) {
	p.note("pool of %s is mended", name)
	p.node(name).host.SetCapacity("tank", 1<<40)
	delete(p.full, name)
	p.node(name).host.SuspendPool("tank", false)
}

// jump sets a node's clock forward or back. Time within a process is monotonic, so
// what it sees is that snapshots are older or newer than they should be.
func (p *past) jump(name string) {
	by := time.Duration(p.rng.IntN(2*86400)-86400) * time.Second
	p.note("clock of %s jumps by %v", name, by)
	n := p.node(name)
	n.mu.Lock()
	n.skew -= by
	n.mu.Unlock()
}

// wipe gives a node that is not primary a new, empty pool. What was only there is
// gone with it.
func (p *past) wipe(name string) {
	n := p.node(name)
	if p.chosen() == name || p.believes(name).Role == volume.RolePrimary {
		return
	}
	p.note("%s gets a new pool", name)
	n.fall(killed)
	n.stop()
	p.version++ // only to make hosts differ
	p.told[name] = min(p.told[name], p.version-1)
	n.host = zfsfake.New(zfsfake.Options{Seed: uint64(1000 + p.version), Pool: "tank", TxgTimeout: -1})
	n.disk = n.host
	p.must(n.host.CreateFilesystem(context.Background(), testRoot, map[string]string{"mountpoint": "none", "canmount": "off"}))
	files, snaps := p.found()
	p.writes = slices.DeleteFunc(p.writes, func(f string) bool { return !files[f] })
	maps.DeleteFunc(p.snaps, func(g uint64, _ string) bool { return !snaps[g] })
	p.asides[name] = 0
	delete(p.full, name)
	p.forget(name)
	n.start()
}

// member takes a replica out of the set, or puts it back.
func (p *past) member(name string) {
	if p.chosen() == name {
		return
	}
	if p.out[name] {
		delete(p.out, name)
	} else {
		p.out[name] = true
		p.forget(name)
	}
	primary := p.chosen()
	p.appoint(primary, 0)
	p.tell(primary)
}

// changePolicy has snapshots taken by the clock, kept in other numbers, or no more.
func (p *past) changePolicy() {
	p.policy = nil
	for range p.rng.IntN(3) {
		every := time.Duration(1+len(p.policy)) * 5 * time.Minute
		p.policy = append(p.policy, volume.SnapshotRule{Every: every, Keep: 1 + p.rng.IntN(3)})
	}
	for _, r := range p.policy {
		if k, known := p.fewest[r.Every]; !known || r.Keep < k {
			p.fewest[r.Every] = r.Keep
		}
	}
	p.note("snapshots are scheduled: %v", p.policy)
	primary := p.chosen()
	p.appoint(primary, 0)
	p.tell(primary)
}

// vandal writes to a copy that is only a replica.
func (p *past) vandal(name string) {
	n := p.node(name)
	if p.believes(name).Role != volume.RoleReplica {
		return
	}
	file := p.fresh("v")
	if n.tryWrite(file, "was here") == nil {
		p.note("somebody writes %s to the replica of %s", file, name)
		p.writes = append(p.writes, file)
	}
}

// promote makes a replica that holds something the primary, as a failover would.
// Some nodes hear of it at once.
func (p *past) promote() {
	var fit []string
	for _, name := range abc {
		if !p.out[name] && !p.down(name) && !p.node(name).eng().Positions()[testVol].IsZero() {
			fit = append(fit, name)
		}
	}
	if len(fit) == 0 {
		return
	}
	to := fit[p.rng.IntN(len(fit))]
	p.appoint(to, 1)
	p.tell(to)
	for _, name := range abc {
		if p.rng.IntN(2) == 0 {
			p.tell(name)
		}
	}
}

// ackedIsThere: what a link says is acknowledged is on that replica's disk, as a
// snapshot or, when that was pruned, with a newer one. In the midst of a set-aside
// it may be in the fork.
func (p *past) ackedIsThere() {
	for _, name := range abc {
		if p.down(name) {
			continue
		}
		for _, l := range p.node(name).eng().Links(testVol) {
			r := p.byID(l.Replica)
			if l.Acked.IsZero() || p.down(r.name) || p.heard[r.name].Epoch != p.heard[name].Epoch {
				continue
			}
			found := false
			list, err := r.host.Snapshots(context.Background(), testRoot, true)
			p.must(err)
			for _, s := range list {
				epoch, seq, ok := volume.ParseSnapshotName(s.Name)
				newer := ok && (volume.Position{Epoch: epoch, Seq: seq}).Compare(l.Acked) > 0
				found = found || s.GUID == l.Acked.GUID || newer
			}
			if !found && !p.wiped(name, r.name) {
				p.Fatalf("%s believes that %s acknowledged %s, which is not there", name, r.name, l.Acked.SnapshotName())
			}
		}
	}
}

// historyIsThere: a replica that its primary calls in sync has not only the newest, but of
// what is older all that is kept for people, unless a policy that it heard of drops it. What
// that counted may have gone with a copy that was set aside.
func (p *past) historyIsThere() {
	for _, name := range abc {
		if p.down(name) {
			continue
		}
		for _, l := range p.node(name).eng().Links(testVol) {
			r := p.byID(l.Replica)
			if l.State != volume.LinkInSync || p.down(r.name) || p.heard[r.name].Epoch != p.heard[name].Epoch || p.wiped(name, r.name) {
				continue
			}
			snaps, _ := p.holds(r)
			of, reached := map[time.Duration]int{}, false
			for _, s := range slices.Backward(p.node(name).snapshots()) {
				reached = reached || s.GUID == l.Acked.GUID
				every, _, scheduled := volume.ParseScheduledName(s.Name)
				if scheduled {
					of[every]++
				}
				kept := p.snaps[s.GUID] != "" || scheduled && of[every] <= p.fewest[every] && p.asides[r.name] == 0
				if reached && kept && !snaps[s.GUID] {
					p.Fatalf("%s calls %s in sync, which lacks @%s", name, r.name, s.Name)
				}
			}
		}
	}
}

// wiped: the primary has not heard yet that the replica has nothing any more.
func (p *past) wiped(primary, replica string) bool {
	snaps, _ := p.holds(p.node(replica))
	return len(snaps) == 0
}

// holds is what a node has of the volume, as snapshots, and with bookmarks too. In
// the midst of a set-aside that is also the fork.
func (p *past) holds(n *node) (snaps, known map[uint64]bool) {
	snaps, known = map[uint64]bool{}, map[uint64]bool{}
	ctx := context.Background()
	list, err := n.host.Snapshots(ctx, testRoot, true)
	p.must(err)
	for _, s := range list {
		snaps[s.GUID], known[s.GUID] = true, true
	}
	marks, err := n.host.Bookmarks(ctx, testRoot, true)
	p.must(err)
	for _, m := range marks {
		known[m.GUID] = true
	}
	return snaps, known
}

// basesAreThere: a copy that could be brought up to date from another one, by an
// increment from where it stands, still can: also by a replica, which may be the next
// primary. And as long as one is the primary and sends to the other, they have at
// least something in common to go back to.
func (p *past) basesAreThere() {
	p.loosen()
	snaps, known, top := map[string]map[uint64]bool{}, map[string]map[uint64]bool{}, map[string]uint64{}
	for _, name := range abc {
		snaps[name], known[name] = p.holds(p.node(name))
		top[name], _ = p.node(name).newest()
		list, err := p.node(name).host.Datasets(context.Background(), "tank/flocker-aside")
		if err != nil && !errors.Is(err, zfs.ErrNotFound) {
			p.Fatal(err)
		}
		if len(list) > p.asides[name] {
			p.moved(name)
			p.parted(name)
		}
		p.asides[name] = len(list)
	}
	met := true // all of them
	for _, x := range abc {
		for _, y := range abc {
			met = met && !p.out[x] && top[x] != 0 && (x == y || common(snaps[x], snaps[y]))
		}
	}
	expect := func(what string, found bool) {
		p.mu.Lock()
		met := p.met[what]
		p.met[what] = met || found
		p.mu.Unlock()
		if met && !found {
			p.Fatalf("no more true: %s", what)
		}
	}
	for _, x := range abc {
		for _, y := range abc {
			if x == y || p.out[x] || p.out[y] || top[y] == 0 {
				continue
			}
			if p.stranger(x, y, snaps[y], known) {
				p.part(x, y)
			} else if x < y && top[x] != 0 && !p.stranger(y, x, snaps[x], known) {
				p.akin(p.kin, met, x, y, "a snapshot on one of them", common(snaps[x], known[y]) || common(snaps[y], known[x]))
				p.akin(p.firm, met, x, y, "a snapshot on both", common(snaps[x], snaps[y]))
			}
			what := fmt.Sprintf("%s can send to %s, which stands on %d", x, y, top[y])
			if p.foreign(x, y, known, top[y]) {
				delete(p.met, what)
			} else {
				expect(what, known[x][top[y]])
			}
			a, b := p.believes(x), p.believes(y)
			if a.Role == volume.RolePrimary && b.Epoch == a.Epoch && b.Primary == a.Primary {
				expect(fmt.Sprintf("%s, primary of epoch %d, has something in common with %s", x, a.Epoch, y), common(snaps[y], known[x]))
			}
		}
	}
}

// parted: what this copy had in common with others than its primary may have gone aside.
func (p *past) parted(name string) {
	primary := p.byID(p.believes(name).Primary)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, other := range abc {
		if other != name && (primary == nil || other != primary.name) {
			p.partLocked(name, other)
		}
	}
}

// stranger: x keeps what its primary names, and that has nothing in common with y, so that
// it can name nothing that y stands on.
func (p *past) stranger(x, y string, of map[uint64]bool, known map[string]map[uint64]bool) bool {
	z := p.byID(p.believes(x).Primary)
	return z != nil && z.name != x && z.name != y && !common(of, known[z.name])
}

// part: of these two nothing is expected any more.
func (p *past) part(x, y string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.partLocked(x, y)
}

func (p *past) partLocked(x, y string) {
	delete(p.kin, pair(x, y))
	delete(p.firm, pair(x, y))
}

// akin: two copies that had something in common when all had (met) have for ever.
func (p *past) akin(kind map[string]bool, met bool, x, y, what string, now bool) {
	p.mu.Lock()
	had := kind[pair(x, y)]
	kind[pair(x, y)] = had || met
	p.mu.Unlock()
	if had && !now {
		p.Fatalf("%s and %s have nothing in common any more (%s)", x, y, what)
	}
}

// loosen: while a pool is short of space, and where people removed what somebody stood on,
// bookmarks must do.
func (p *past) loosen() {
	short := false
	for _, n := range p.nodes {
		e := n.eng()
		e.mu.Lock()
		short = short || e.room.spent()
		e.mu.Unlock()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if short || p.removed || len(p.full) > 0 {
		clear(p.firm)
	}
}

// foreign: x keeps what its primary names, which names where y stands only when it
// knows that itself.
func (p *past) foreign(x, y string, known map[string]map[uint64]bool, top uint64) bool {
	for _, z := range abc {
		if z != x && z != y && p.believes(x).Primary == p.node(z).id && !known[z][top] {
			return true
		}
	}
	return false
}

func common(a, b map[uint64]bool) bool {
	for g := range a {
		if b[g] {
			return true
		}
	}
	return false
}

func (p *past) heal() {
	p.note("healed")
	p.mu.Lock()
	p.wrap = nil
	p.mu.Unlock()
	for _, a := range abc {
		p.mend(a)
		p.raise(a)
		for _, b := range abc {
			if a != b {
				p.partition(a, b, false)
			}
		}
	}
	if len(p.out) > 0 {
		clear(p.out)
		p.appoint(p.chosen(), 0)
	}
	for _, name := range abc {
		p.tell(name)
	}
	p.waitFor("primary settled", func() bool {
		p.settle(p.chosen())
		return p.ready[p.chosen()]
	})
	p.waitFor("last write", func() bool { return p.node(p.chosen()).tryWrite("last", "write") == nil })
}

// found is every file and every snapshot in all datasets of all nodes.
func (p *past) found() (files map[string]bool, snaps map[uint64]bool) {
	files, snaps = map[string]bool{}, map[uint64]bool{}
	ctx := context.Background()
	for _, n := range p.nodes {
		datasets, err := n.host.Datasets(ctx, "tank")
		p.must(err)
		for _, d := range datasets {
			list, err := n.host.Files(d.Name)
			if errors.Is(err, zfs.ErrNotFound) {
				continue
			}
			p.must(err)
			for _, f := range list {
				files[f] = true
			}
		}
		list, err := n.host.Snapshots(ctx, "tank", true)
		p.must(err)
		for _, s := range list {
			snaps[s.GUID] = true
		}
	}
	return files, snaps
}

// nothingLost looks for every write and every user's snapshot in all datasets of all
// nodes; and what users have of the live volume they have on all its replicas.
func (p *past) nothingLost() {
	files, snaps := p.found()
	for _, f := range p.writes {
		if !files[f] {
			p.Errorf("%s is lost", f)
		}
	}
	for g, name := range p.snaps {
		if !snaps[g] {
			p.Errorf("@%s is lost", name)
		}
	}
	for _, s := range p.node(p.chosen()).snapshots() {
		if p.snaps[s.GUID] == "" {
			continue
		}
		for _, name := range abc {
			if !slices.Contains(p.node(name).guids(), s.GUID) {
				p.Errorf("@%s of the primary is not on %s", s.Name, name)
			}
		}
	}
}

// sentOnce: a full copy is sent to one that has none, not to one that lost what it had in
// common with its primary.
func (p *past) sentOnce() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range abc {
		sent := 0
		for _, n := range p.nodes {
			sent += n.count(func(ev Event) bool {
				s, ok := ev.(StreamEnded)
				return ok && s.Kind == kindFull && s.Err == nil && s.Replica == p.node(name).id
			})
		}
		if sent > p.mayHave[name] {
			p.Errorf("%s was sent %d full copies, needed %d", name, sent, p.mayHave[name])
		}
	}
}
