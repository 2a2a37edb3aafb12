package scenario

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/agent"
	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/cluster"
	"github.com/flocker-io/flocker/internal/container/containerfake"
	"github.com/flocker-io/flocker/internal/daemon"
	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/transport/memnet"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/plugin"
	"github.com/flocker-io/flocker/replicate"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// World is a set of machines. Make it inside a bubble; Close it before the bubble
// ends.
type World struct {
	t     testing.TB
	net   *memnet.Network
	nodes map[string]*Machine
	join  string // the token that Init made
	// papers are what machines that start from now on have to show.
	papers func(pool string) []daemon.Paper
	zones  map[string]string // by machine; none: the default zone
	// witnesses are machines that join without a pool.
	witnesses map[string]bool

	fencers bool              // machines have fencers, so that three of them arm failover
	called  map[string]string // what a script calls machines that it cannot know

	rollbacks map[string]string // by volume: the one that was begun last
	// By volume: the migration that was begun last. A node that is asked for it may know the one before only.
	migrations map[string]string
	asked      map[string]int                  // by volume: how many the script has asked for
	rolled     map[string]map[string]committed // rollbacks, by the ID of their volume and their attempt
	assumes    bool                            // see the step of that name
	books      map[string]*book                // what was written, by volume
	swarm      *containerfake.Swarm            // nil: there is none

	mu        sync.Mutex
	primaries map[string]volume.NodeID // "volume epoch" to the primary seen first
	epochs    map[string]volume.Epoch  // "machine volume" to the newest seen there
}

// Machine is one computer: disks and engine outlive its daemon.
type Machine struct {
	Name   string
	ZFS    *zfsfake.Host
	Engine *containerfake.Engine

	world *World
	disk  *cluster.MemDisk
	dir   string
	clock atomic.Int64 // by how many nanoseconds its clock is wrong
	boots int
	// full counts the whole copies that this machine has sent, and onOrigin the first copies of
	// clones that were increments.
	full, onOrigin atomic.Int64

	daemon *daemon.Daemon // nil: powered off
	driver *plugin.Driver
	stop   context.CancelFunc
	done   chan error
	files  *files
	trees  *trees
	doors  *doors
	proxy  *fakeProxy
	hooks  *hooks
	stops  atomic.Int32 // of containers, for moves

	fencer    *fencer
	on        bool           // it has power
	power     time.Time      // since when
	suspended bool           // its pool is
	thawed    func()         // what ends a freeze; nil: there is none
	slowed    []func()       // what ends slow commands
	calls     sync.WaitGroup // of people, under way; as a server does, a flockd that stops ends them first
	calling   context.Context
	hangUp    context.CancelFunc
	dead      atomic.Pointer[func()] // set when the fencer has reset it: what buries it
}

// Pool is the name of every machine's pool, of this size.
const (
	Pool     = "tank"
	capacity = 1 << 40
)

// NewWorld makes machines n1 to nN, powered on and in no cluster.
func NewWorld(t testing.TB, n int) *World {
	w := &World{t: t, net: memnet.New(), nodes: map[string]*Machine{}, zones: map[string]string{}, witnesses: map[string]bool{}, called: map[string]string{}, rollbacks: map[string]string{}, migrations: map[string]string{}, asked: map[string]int{}, rolled: map[string]map[string]committed{},
		books: map[string]*book{}, primaries: map[string]volume.NodeID{}, epochs: map[string]volume.Epoch{}}
	for i := range n {
		name := fmt.Sprintf("n%d", i+1)
		m := &Machine{
			Name: name, world: w, disk: cluster.NewMemDisk(), dir: t.TempDir(),
			ZFS:    zfsfake.New(zfsfake.Options{Seed: uint64(i + 1), Pool: Pool, Capacity: capacity}),
			Engine: containerfake.New(name),
		}
		m.trees = &trees{zfs: m.ZFS}
		m.doors = newDoors(m)
		m.proxy = newFakeProxy(m)
		m.hooks = &hooks{machine: m}
		m.Engine.OnExec(m.hooks.run)
		m.fencer = &fencer{zfs: m.ZFS, engine: m.Engine, clock: m.uptime, reset: m.dies, safety: volume.SafetySysrq}
		w.nodes[name] = m
		m.powerOn()
		m.Start()
	}
	return w
}

// Close powers everything off and waits until nothing runs any more.
func (w *World) Close() {
	if w.swarm != nil {
		w.swarm.Close()
	}
	for _, name := range w.Names() {
		w.nodes[name].Engine.Shutdown()
	}
	for _, name := range w.Names() {
		w.nodes[name].Stop()
		w.nodes[name].fencer.powerOff()
	}
	// With nobody at work, nothing may be left behind on the disks.
	for _, name := range w.Names() {
		if err := w.nodes[name].ZFS.Check(); err != nil {
			w.t.Errorf("disk of %s: %v", name, err)
		}
	}
}

// Names of the machines, in order.
func (w *World) Names() []string { return slices.Sorted(maps.Keys(w.nodes)) }

// Machine by name.
func (w *World) Machine(name string) *Machine {
	w.t.Helper()
	m := w.nodes[name]
	if m == nil {
		w.t.Fatalf("there is no machine %q", name)
	}
	return m
}

// powerOn begins another boot of the machine.
func (m *Machine) powerOn() {
	m.boots++
	m.on = true
	m.power = time.Now()
	m.fencer.powerOn(m.bootID())
}

func (m *Machine) bootID() string { return fmt.Sprintf("%s-%d", m.Name, m.boots) }

// uptime is the machine's CLOCK_BOOTTIME.
func (m *Machine) uptime() lease.Moment { return lease.Moment(time.Since(m.power)) }

// Start runs flockd.
func (m *Machine) Start() {
	host := m.world.net.Host(m.Name)
	before := m.files
	m.files = &files{zfs: m.ZFS, mounted: m.world.checkWriters, covered: map[string]bool{}}
	if before != nil {
		m.files.covered = before.covered
	}
	var fencer daemon.Fencer
	if m.world.fencers {
		fencer = m.fencer
	}
	m.trees.restarted()
	started := make(chan struct{})
	d := daemon.New(daemon.Parts{
		Version: "scenario", BootID: m.bootID(), Boot: m.uptime, Fencer: fencer, StopWriters: m.fencer.instead, Timers: daemon.Profile("default"),
		Log:      slog.New(slog.NewTextHandler(writer{m.world.t, m.Name}, &slog.HandlerOptions{Level: slog.LevelWarn})),
		StateDir: m.dir, MountDir: "/volumes", ZFS: m.ZFS, Files: m.files, Engine: movingEngine{m.Engine, m}, Trees: m.trees, Doors: m.doors,
		Proxy: m.proxy, ProxyPort: "4526", Probe: m.proxy.probe, Papers: m.world.papers,
		Now:     func() time.Time { return time.Now().Add(time.Duration(m.clock.Load())) },
		Started: func() { close(started) },
		Observe: func(e replicate.Event) {
			if s, ok := e.(replicate.StreamEnded); ok && s.Err == nil {
				switch s.Kind {
				case "full":
					m.full.Add(1)
				case "clone":
					m.onOrigin.Add(1)
				}
			}
		},
		Cluster: cluster.Config{
			Disk: m.disk, Listen: m.Name + ":4523", ListenFunc: host.Listen, DialFunc: host.Dial, Gossip: cluster.NoGossip{},
			Timing: cluster.Timing{Stable: 5 * time.Second},
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	m.daemon, m.stop, m.done = d, cancel, make(chan error, 1)
	m.calling, m.hangUp = context.WithCancel(ctx)
	m.driver = plugin.NewDriver(ctx, d.Plugin(), slog.New(slog.DiscardHandler), nil)
	go func() { m.done <- d.Run(ctx) }()
	select {
	case <-started:
	case err := <-m.done:
		m.world.t.Fatalf("flockd on %s does not start: %v", m.Name, err)
	}
	m.Engine.SetDriver(m.driver)
}

// Stop ends flockd in an orderly way; containers go on.
func (m *Machine) Stop() {
	if err := m.end(); err != nil && !errors.Is(err, context.Canceled) {
		m.world.t.Errorf("flockd on %s: %v", m.Name, err)
	}
}

func (m *Machine) end() error {
	if m.daemon == nil {
		return nil
	}
	m.Engine.SetDriver(nil)
	m.hangUp()
	m.calls.Wait()
	m.stop()
	err := <-m.done
	m.driver.Wait()
	m.doors.end()
	m.daemon = nil
	return err
}

// Cut is a power loss: what was not durable is gone, and nobody says goodbye.
func (m *Machine) Cut() {
	m.on = false
	m.world.net.Crash(m.Name)
	heal := m.separate()
	m.Engine.Crash(false)
	m.ZFS.Crash()
	m.proxy.reset()
	m.fencer.powerOff()
	if m.thawed != nil {
		m.thawed()
		m.thawed = nil
	}
	if bury := m.dead.Swap(nil); bury != nil {
		(*bury)()
	}
	m.end() // whatever it says of a network that vanished
	heal()
}

// isolate cuts or heals the links to all other machines.
func (m *Machine) isolate(on bool) {
	for other := range m.world.nodes {
		if other == m.Name {
			continue
		}
		if on {
			m.world.net.Partition(m.Name, other)
		} else {
			m.world.net.Heal(m.Name, other)
		}
	}
}

// Boot powers a machine on: flockd first, then the engine.
func (m *Machine) Boot() {
	m.powerOn()
	m.Start()
	m.Engine.Boot()
}

// Up says that the machine has power.
func (m *Machine) Up() bool { return m.daemon != nil }

// API of the machine's flockd.
func (m *Machine) API() api.Backend { return m.daemon.API() }

// Cluster makes a cluster of all machines.
func (w *World) Cluster() {
	w.t.Helper()
	for i, name := range w.Names() {
		if i == 0 {
			w.Init(name)
		} else {
			w.Join(name)
		}
	}
	// The voters that this many nodes should have.
	want := map[int]int{1: 1, 2: 1, 3: 3, 4: 3}[len(w.nodes)]
	if want == 0 {
		want = 5
	}
	w.Await(fmt.Sprintf("%d voters", want), func() bool {
		st, err := w.Machine("n1").API().Status(w.ctx())
		return err == nil && len(st.Voters) == want
	})
}

// Init makes a cluster on one machine.
func (w *World) Init(name string) {
	w.t.Helper()
	rep, err := w.Machine(name).API().Init(api.AsLocal(w.ctx()), api.InitRequest{NodeSetup: w.setup(name)})
	if err != nil {
		w.t.Fatalf("init on %s: %v", name, err)
	}
	w.join = rep.Token
}

func (w *World) setup(name string) api.NodeSetup {
	s := api.NodeSetup{Name: name, Zone: w.zones[name], Pool: Pool, Advertise: name}
	if w.witnesses[name] {
		s.Pool = ""
	}
	return s
}

// Join adds a machine to the cluster that Init made.
func (w *World) Join(name string) {
	w.t.Helper()
	_, err := w.Machine(name).API().Join(api.AsLocal(w.ctx()), api.JoinRequest{
		NodeSetup: w.setup(name), Token: w.join, Peers: []string{"n1:4523"}, Witness: w.witnesses[name]})
	if err != nil {
		w.t.Fatalf("join of %s: %v", name, err)
	}
}

// ctx bounds one step; generous, since the bubble's time costs nothing.
func (w *World) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	w.t.Cleanup(cancel)
	return ctx
}

// Await lets time pass until cond holds, checking the invariants on the way.
func (w *World) Await(what string, cond func() bool) {
	w.t.Helper()
	for range 3000 {
		w.Check()
		if cond() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	w.t.Fatalf("waited five minutes for: %s\n%s", what, w.Describe())
}

// Leader is the machine that leads, as the majority sees it; nil when there is none.
func (w *World) Leader() *Machine {
	for _, name := range w.Names() {
		m := w.nodes[name]
		if !m.Up() {
			continue
		}
		st, err := m.API().Status(w.ctx())
		if err == nil && st.Leader.ID == st.Node.ID && st.Initialized {
			return m
		}
	}
	return nil
}

// cloneStreams counts the first copies of clones that were sent so far as increments.
func (w *World) cloneStreams() (n int) {
	for _, m := range w.nodes {
		n += int(m.onOrigin.Load())
	}
	return n
}

// fullStreams counts the whole copies that were sent so far.
func (w *World) fullStreams() (n int) {
	for _, m := range w.nodes {
		n += int(m.full.Load())
	}
	return n
}

// states are what each machine that is up and a member has applied.
func (w *World) states() map[string]*state.State {
	out := map[string]*state.State{}
	for name, m := range w.nodes {
		if m.Up() {
			if s := m.daemon.State(); s != nil {
				out[name] = s
			}
		}
	}
	return out
}

// Check fails the test when a standing invariant does not hold.
func (w *World) Check() {
	w.t.Helper()
	for _, name := range w.Names() {
		if m := w.nodes[name]; m.dead.Load() != nil {
			m.Cut()
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()

	w.checkWriters()
	for name, s := range w.states() {
		if err := s.Holds(); err != nil {
			w.t.Fatalf("state of %s: %v", name, err)
		}
		for v := range s.Volumes() {
			// Never two primaries in one epoch; epochs only rise. An epoch may begin with an
			// election, and no primary.
			key := fmt.Sprintf("%s %s", v.ID, v.Epoch)
			if p := v.Placement.Primary; p != "" {
				if was, ok := w.primaries[key]; ok && was != p {
					w.t.Fatalf("volume %s has primaries %s and %s in epoch %s", v.Name, was, p, v.Epoch)
				}
				w.primaries[key] = p
			}
			key = name + " " + string(v.ID)
			if v.Epoch < w.epochs[key] {
				w.t.Fatalf("volume %s went back from epoch %s to %s on %s", v.Name, w.epochs[key], v.Epoch, name)
			}
			w.epochs[key] = v.Epoch
			if r := v.RolledBack; r != nil {
				w.noteCommitted(v.ID, r)
			}
		}
	}
	w.oneGate()
	w.checkAcked()
}

// checkWriters makes sure that at most one copy of a volume is writable. It is asked
// at each mount too, which is the only moment at which a second one can come to be.
func (w *World) checkWriters() {
	writable := map[string][]string{}
	for name, m := range w.nodes {
		for _, mount := range m.ZFS.Mounts() {
			if id := path.Base(mount.Dataset); mount.Writable && !m.undone(id) {
				writable[id] = append(writable[id], name)
			}
		}
	}
	for id, on := range writable {
		if len(on) > 1 {
			w.t.Errorf("volume %s is writable on %v at once\n%s", id, on, w.Describe())
		}
	}
}

// undone: a mount that flockd had begun when it was frozen comes about when it goes on. If
// its lease is over by then it undoes it before any container gets it, so that nobody
// writes.
func (m *Machine) undone(id string) bool {
	d := m.daemon
	if d == nil {
		return false
	}
	if held, _ := d.Lease(); held {
		return false
	}
	s := d.State()
	if s == nil || s.Volume(volume.ID(id)) == nil {
		return false
	}
	return !m.uses(s.Volume(volume.ID(id)).Name)
}

// checkAcked makes sure that every acknowledged position is on that replica, with
// the same GUID.
func (w *World) checkAcked() {
	w.t.Helper()
	for name, m := range w.nodes {
		if !m.Up() {
			continue
		}
		for id, links := range m.daemon.Links() {
			for _, l := range links {
				replica := w.byID(l.Replica)
				if l.Acked.IsZero() || replica == nil {
					continue
				}
				snap := fmt.Sprintf("%s/flocker/%s@%s", Pool, id, l.Acked.SnapshotName())
				if guid, ok := replica.guid(snap); ok && guid != l.Acked.GUID {
					w.t.Fatalf("%s says that %s acknowledged %s with guid %d; there it has %d", name, replica.Name, snap, l.Acked.GUID, guid)
				}
			}
		}
	}
}

func (w *World) byID(id volume.NodeID) *Machine {
	for _, m := range w.nodes {
		if m.Up() && m.daemon.ID() == id {
			return m
		}
	}
	return nil
}

func (m *Machine) guid(snapshot string) (uint64, bool) {
	ds, name, _ := strings.Cut(snapshot, "@")
	snaps, err := m.ZFS.Snapshots(bystander, ds, false)
	if err != nil {
		return 0, false
	}
	for _, s := range snaps {
		if s.Name == name {
			return s.GUID, true
		}
	}
	return 0, false
}

// Describe is everything worth knowing when a test fails.
func (w *World) Describe() string {
	var b strings.Builder
	var events []api.Event // as a node has them that has applied most
	for _, name := range w.Names() {
		m := w.nodes[name]
		fmt.Fprintf(&b, "--- %s up=%v\n", name, m.Up())
		if m.Up() {
			if st, err := m.API().Status(context.Background()); err == nil {
				fmt.Fprintf(&b, "leader %s, index %d, problems %q\n", st.Leader, st.Applied, st.Problems)
			}
			if list, err := m.API().Events(context.Background(), api.EventsQuery{}); err == nil && len(list) > len(events) {
				events = list
			}
			if s := m.daemon.State(); s != nil {
				fmt.Fprintf(&b, "failover %+v\n", s.Failover())
				for n := range s.Nodes() {
					fmt.Fprintf(&b, "lease of %s: %+v\n", n.Name, n.Lease)
				}
				for v := range s.Volumes() {
					fmt.Fprintf(&b, "%s %s %s epoch=%d primary=%s pending=%+v refusal=%+v\n", v.ID, v.Name, v.Phase, uint64(v.Epoch),
						s.NodeName(v.Placement.Primary), v.Pending, v.LastRefusal)
				}
			}
		}
		for _, mount := range m.ZFS.Mounts() {
			fmt.Fprintf(&b, "mounted %s writable=%v\n", mount.Dataset, mount.Writable)
		}
	}
	for _, e := range events {
		fmt.Fprintf(&b, "%s %s %s %s\n", e.At.Format(time.TimeOnly), e.Kind, e.Name, e.Message)
	}
	return b.String()
}

// files is agent.Files on the fake: a mounted dataset is its own data directory.
type files struct {
	zfs     *zfsfake.Host
	mounted func() // called after each mount

	mu      sync.Mutex
	covered map[string]bool // directories that nobody can write to
}

// saysWhole makes sure that a copy says of itself whether the volume is all of its dataset, as who
// gives its files out believes: on a real disk they would be somewhere else.
func saysWhole(z *zfsfake.Host, dataset string, whole bool) error {
	d, err := z.Dataset(bystander, dataset)
	if err == nil && (d.User[volume.Subdir] == ".") != whole {
		err = fmt.Errorf("%s is taken for all of its dataset: %v, and it says %q", dataset, whole, d.User[volume.Subdir])
	}
	return err
}

func (f *files) Refers(_, dir string, binds []agent.Bind) (found []string, _ error) {
	for _, b := range binds {
		if b.Path == dir || strings.HasPrefix(b.Path, dir+"/") {
			found = append(found, b.By)
		}
	}
	return found, nil
}

func (f *files) Cover(mountpoint string) error {
	for _, m := range f.zfs.Mounts() {
		if m.Path == mountpoint {
			return nil
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.covered[mountpoint] = true
	return nil
}

func (f *files) Uncover(base string, keep func(string) bool) error {
	used := f.zfs.Mounts()
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.covered, func(at string, _ bool) bool {
		return path.Dir(at) == base && !keep(path.Base(at)) && !slices.ContainsFunc(used, func(m zfsfake.Mount) bool { return m.Path == at })
	})
	return nil
}

func (f *files) Prepare(mountpoint string, spec volume.Spec) (string, error) {
	f.mounted()
	for _, m := range f.zfs.Mounts() {
		if m.Path == mountpoint {
			if err := saysWhole(f.zfs, m.Dataset, spec.Whole()); err != nil {
				return "", err
			}
		}
		if m.Path == mountpoint && m.Writable && spec.Whole() {
			f.mu.Lock()
			defer f.mu.Unlock()
			if !f.covered[mountpoint] {
				return "", fmt.Errorf("%s could be written while nothing is mounted there", mountpoint)
			}
			return mountpoint, nil
		}
		if m.Path == mountpoint && m.Writable {
			return path.Join(mountpoint, "data"), nil
		}
	}
	return "", fmt.Errorf("nothing writable is mounted at %s", mountpoint)
}

func (f *files) Unused(dataset, mountpoint string) error {
	for _, m := range f.zfs.Mounts() {
		if m.Dataset == dataset && m.Path != mountpoint {
			return fmt.Errorf("%s is still mounted", dataset)
		}
	}
	return nil
}

func (f *files) Users(mountpoint string) (users []string, err error) {
	for _, m := range f.zfs.Mounts() {
		if m.Path == mountpoint && m.InUse {
			users = append(users, "process 4711 (postgres)")
		}
	}
	return users, nil
}

// writer sends a daemon's warnings to the test's log.
type writer struct {
	t    testing.TB
	name string
}

func (w writer) Write(b []byte) (int, error) {
	w.t.Logf("%s %s %s", time.Now().Format("15:04:05.000"), w.name, strings.TrimSpace(string(b)))
	return len(b), nil
}
