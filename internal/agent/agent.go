package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/together"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
	"github.com/flocker-io/flocker/zfs"
)

// Cluster is the replicated state as the agent needs it.
type Cluster interface {
	// State is the newest that this node has applied.
	State() *state.State
	// Changed is closed when there is a newer one.
	Changed() <-chan struct{}
	// Propose commits a command, wherever the leader is, and returns once this node
	// has applied it. An error leaves it open whether it was committed.
	Propose(ctx context.Context, c state.Command) (state.Result, error)
	// CatchUp returns once this node has applied everything that a leader, proven
	// after the call began, had committed.
	CatchUp(ctx context.Context) error
}

// Disk is the part of zfs.System that the agent uses.
type Disk interface {
	Datasets(ctx context.Context, root string) ([]zfs.Dataset, error)
	Dataset(ctx context.Context, name string) (zfs.Dataset, error)
	Properties(ctx context.Context, name string, props []string) (map[string]zfs.Property, error)
	Delegated(ctx context.Context, name string) ([]string, error)
	Bookmarks(ctx context.Context, root string, recursive bool) ([]zfs.Bookmark, error)
	Snapshots(ctx context.Context, root string, recursive bool) ([]zfs.Snapshot, error)
	SnapshotsNamed(ctx context.Context, names []string) ([]zfs.Snapshot, error)
	CreateFilesystem(ctx context.Context, name string, props map[string]string) error
	Clone(ctx context.Context, snapshot, name string, props map[string]string) error
	SetProperties(ctx context.Context, name string, props map[string]string) error
	Inherit(ctx context.Context, name, prop string) error
	Rename(ctx context.Context, from, to string) error
	Destroy(ctx context.Context, name string) error
	DestroySnapshots(ctx context.Context, dataset string, snaps []string) error
	Promote(ctx context.Context, name string) error
	Mount(ctx context.Context, name string, write bool) error
	Unmount(ctx context.Context, name string) error
	Pool(ctx context.Context, name string) (zfs.Pool, error)
}

// Files is what the agent does with mounted datasets besides zfs.
type Files interface {
	// Prepare makes the data directory of a dataset mounted writable at mountpoint
	// and returns its path. Owner and mode are set only when it makes the directory. Of a
	// volume that is all of its dataset it is mountpoint itself, as it is. It fails when mountpoint is not a mounted, writable filesystem of its own.
	Prepare(mountpoint string, spec volume.Spec) (dir string, err error)
	// Unused makes sure that no process, in any mount namespace, has the dataset mounted
	// besides our own mount at mountpoint ("": not even that); the error names who has,
	// and an answer that is not known is one too. A successful unmount of ours does not
	// end a container's own mount.
	Unused(dataset, mountpoint string) error
	// Users are the processes that have something open below what is mounted at mountpoint in
	// our own mount namespace, or are in it, for people. That there are none is a hint; an unmount
	// that succeeds is the proof.
	Users(mountpoint string) ([]string, error)
	// Refers are the places in the configuration of this machine that name a dataset, or anything
	// at or below dir, where it is mounted ("": nowhere), and those of binds that do, for people. Of
	// what leads there by symbolic links it is the same, and where that cannot be known is an error.
	Refers(dataset, dir string, binds []Bind) ([]string, error)
	// Cover makes the directory that a dataset is to be mounted on, such that nobody can write
	// to it while nothing is; with something mounted there it does nothing. With an error it may
	// be mounted all the same.
	Cover(mountpoint string) error
	// Uncover removes such directories in base again, but for those to keep and those that
	// something is mounted on or has been written to.
	Uncover(base string, keep func(name string) bool) error
}

// Use keeps the books on who uses the volumes of this node.
type Use interface {
	// Found notes a volume that was mounted when flockd started.
	Found(id volume.ID)
	// Mounting is followed by Mounted or MountFailed; all three, and Unmounted, keep
	// hints that come from Docker.
	Mounting(id volume.ID, mountID string)
	Mounted(id volume.ID, mountID string)
	MountFailed(id volume.ID, mountID string)
	Unmounted(id volume.ID, mountID string)
	// Idle says that no hint is kept for the volume.
	Idle(id volume.ID) bool
	// Refresh asks the engine and answers who uses, or may use, each of the mounted
	// volumes. On an error the engine could not be asked, and every volume that is
	// mounted has a holder that says so.
	Refresh(ctx context.Context, mounted []volume.ID) (map[volume.ID][]volume.Holder, error)
}

// Replicator is the replication engine as the agent uses it.
type Replicator interface {
	Assign(all []replicate.Assignment)
	Flush(ctx context.Context, id volume.ID, to volume.NodeID) (volume.Position, error)
	Links(id volume.ID) []volume.LinkStatus
	Positions() map[volume.ID]volume.Position
	SettledCopy(ctx context.Context, id volume.ID, want volume.Position) (d zfs.Dataset, guids map[uint64]bool, err error)
	Settled(ctx context.Context, id volume.ID, f func(context.Context) error) error
	SetAside(ctx context.Context, id volume.ID, reason string) error
	Promise(ctx context.Context, id volume.ID, epoch volume.Epoch, line volume.Line) (volume.Promise, error)
	Pin(ctx context.Context, id volume.ID, guid uint64) (base volume.Position, err error)
	Unpin(id volume.ID)
	GoBack(ctx context.Context, id volume.ID, epoch volume.Epoch, line volume.Line, props map[string]string) error
	Refresh(id volume.ID)
	Cloned(id volume.ID, epoch volume.Epoch, of zfs.Snapshot)
}

// Peers is what the agent asks of other nodes.
type Peers interface {
	// Holds says which of these guids a node has of a volume, as snapshot or bookmark.
	// An error means that it is not known, or that the node has no copy at all.
	Holds(ctx context.Context, node volume.NodeID, id volume.ID, guids []uint64) (map[uint64]bool, error)
}

// Lease is the node's right to write anything at all.
type Lease interface {
	// Held says whether it may now, and if not, why. It never blocks for long.
	Held() (ok bool, why string)
}

// Config of an Agent.
type Config struct {
	Self    volume.NodeID
	Version string
	BootID  string
	Layout  Layout
	Cluster Cluster
	ZFS     Disk
	Files   Files
	Use     Use
	Repl    Replicator
	Log     *slog.Logger
	// Peers answer for other nodes; nil: nobody can be asked, and no copy that is
	// needed no more is dropped.
	Peers Peers
	// Clock is a time that one machine's wrong clock cannot push ahead, for what is
	// destroyed by age; zero when there is none. Nil: nothing is.
	Clock func() time.Time
	// PrepareStop does what can be done ahead of StopFollowing, while the containers run. Its
	// ctx ends when the move is given up. An error says why nothing should be stopped. Nil:
	// nothing can.
	PrepareStop func(context.Context, volume.ID) error
	// StopFollowing stops the containers that go along with a volume, before it is given
	// up; nil: none can be stopped.
	StopFollowing func(context.Context, volume.ID) (Stopped, error)
	// RecordUsers records the containers that use a volume here at this moment and are to follow it; an
	// error says why one cannot be. Nil: none follow.
	RecordUsers func(context.Context, volume.ID) error
	// Moving is told of each try to carry out a volume's part of a move with containers away
	// from this node, by what all volumes that go along have in common. What it returns is told how
	// that ended: moved, refused, or "" where it is not known, or tried again. Nil: nobody is.
	Moving func(move string) (ended func(result string, times state.MoveTimes))
	// Arriving is told when a part of what the clients of a volume that came here wait for is over:
	// PartTakeover, or PartMount; and when it begins, PartArrival. Nil: nobody is.
	Arriving func(id volume.ID, epoch volume.Epoch, part string)
	// RolledBack is told how each rollback here ended: committed, or refused; nil: nobody is.
	RolledBack func(committed bool)
	// Bound is what containers of this machine, in any state, and volumes of its engine have of it. Nil:
	// there is no engine.
	Bound func(ctx context.Context) ([]Bind, error)
	// Lease is this node's right to write; nil: it always may.
	Lease Lease
	// Poll is how often the disk is looked at without a reason; 0: 5 s.
	Poll time.Duration
	// Listed is the newest listing of the datasets below Layout.Root that somebody else
	// on this node has made, and when it began; zero when there is none. A look without a
	// reason is content with one that began after the last look. Its datasets are not
	// changed. Nil: nobody lists.
	Listed func() (list []zfs.Dataset, began time.Time)
}

// Parts of an arrival: see Config.Arriving.
const (
	PartArrival  = "arrival"
	PartTakeover = "takeover"
	PartMount    = "mount"
)

// arrives tells Config.Arriving.
func (a *Agent) arrives(v *state.Volume, part string) {
	if a.arriving != nil {
		a.arriving(v.ID, v.Epoch, part)
	}
}

// Stopped says how containers were stopped for a move.
type Stopped struct {
	Paused time.Time     // since when their clients wait; zero: no route leads to them
	Park   time.Duration // until the clients were at a quiet point
	Stop   time.Duration // of the containers
	// CopyBy is when the last copy has to be on the target: later the containers could not
	// run again before their clients are refused. Zero: as long as the move is pending.
	CopyBy time.Time
}

// Agent is one node's loop. Make it with New, run it with Run.
type Agent struct {
	self          volume.NodeID
	version       string
	bootID        string
	layout        Layout
	cluster       Cluster
	zfs           Disk
	files         Files
	use           Use
	repl          Replicator
	peers         Peers
	prepareStop   func(context.Context, volume.ID) error
	stopFollowing func(context.Context, volume.ID) (Stopped, error)
	recordUsers   func(context.Context, volume.ID) error
	moving        func(string) func(string, state.MoveTimes)
	arriving      func(volume.ID, volume.Epoch, string)
	rolledBack    func(committed bool)
	bound         func(ctx context.Context) ([]Bind, error)
	clock         func() time.Time
	lease         Lease
	log           *slog.Logger
	poll          time.Duration
	listed        func() ([]zfs.Dataset, time.Time)

	locks  locks
	caught atomic.Bool   // see CaughtUp
	fresh  chan struct{} // closed once the node has caught up and read its disk
	wake   chan struct{} // look at the disk
	stir   chan struct{} // likewise, for what the container engine does
	news   chan struct{} // decide again; the disk need not have changed

	mu      sync.Mutex
	actual  Actual
	seen    time.Time     // when actual was; zero: the disk was never read
	silence time.Duration // how much later the disk counts as silent
	holders map[volume.ID][]volume.Holder
	pool    volume.PoolInfo
	asked   time.Time // when pool was read
	trouble []string  // problems of the node itself
	running map[volume.ID]bool
	failed  map[volume.ID]failure
	logged  map[volume.ID]bool // copies whose intent log was not replayed since flockd started
	made    map[volume.ID]made // datasets made since the listing began that was last looked at
	// returned are volumes that were given up, and whose dataset has since been seen to be again
	// what it was: see returnDataset. flockd does that anew when it has started.
	returned map[volume.ID]bool
	taken    map[volume.ID]taken
	pointed  map[pointed]time.Time // when it was seen
	origins  together.Asks[string, []zfs.Snapshot]
	acting   int       // what is under way and may change what a look has shown, but for made
	actedAt  time.Time // when the last of it began or ended
	hushed   int       // volumes that are given up while clients wait
	putOff   bool      // a look was, for that

	// The loop's alone.
	shared   map[string]volume.Shared // by origin: what copies share that are clones
	trashAt  time.Time                // when the trash was listed
	list     []zfs.Dataset            // the listing that was last looked at
	lookedAt time.Time                // when it began
	listedAt time.Time                // when it was there
	lookTook time.Duration            // how long the last listing took that this loop made
	stepped  time.Time                // when the last look was, whatever it read
	excused  bool                     // the next listing is put off, see due
	decided  uint64                   // index of the state that was last acted on

	asides    []volume.Aside
	asidesAt  time.Time // when they were listed
	asideNews uint64    // how often there was a reason to list them
	expiring  bool      // a job removes what was kept for long enough
}

// poolPoll is how often the pool's space and health are read.
const poolPoll = 15 * time.Second

// failure remembers why an action did not work and when to try again.
type failure struct {
	action Action
	reason string
	pause  time.Duration
	again  time.Time
}

// New makes an Agent that does nothing until Run.
func New(c Config) *Agent {
	if c.Poll == 0 {
		c.Poll = 5 * time.Second
	}
	return &Agent{
		self: c.Self, version: c.Version, bootID: c.BootID, layout: c.Layout, cluster: c.Cluster,
		zfs: c.ZFS, files: c.Files, use: c.Use, repl: c.Repl, peers: c.Peers, prepareStop: c.PrepareStop, stopFollowing: c.StopFollowing, recordUsers: c.RecordUsers, moving: c.Moving, arriving: c.Arriving, rolledBack: c.RolledBack,
		bound: c.Bound, clock: c.Clock, lease: c.Lease, log: c.Log, poll: c.Poll, listed: c.Listed,
		fresh: make(chan struct{}), wake: make(chan struct{}, 1), stir: make(chan struct{}, 1), news: make(chan struct{}, 1),
		running: map[volume.ID]bool{}, failed: map[volume.ID]failure{}, logged: map[volume.ID]bool{}, made: map[volume.ID]made{}, taken: map[volume.ID]taken{}, pointed: map[pointed]time.Time{}, returned: map[volume.ID]bool{},
	}
}

// Wake makes the loop look again soon. Never blocks; wakes coalesce.
func (a *Agent) Wake() { ring(a.wake) }

// Stir is Wake for what the container engine does, which is much while clients wait for containers to
// be stopped: then it takes some seconds.
func (a *Agent) Stir() { ring(a.stir) }

func ring(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

// Fresh is closed when the node has caught up with a leader since it started, so that
// it may act on its state.
func (a *Agent) Fresh() <-chan struct{} { return a.fresh }

// CaughtUp says that the state of this node is one of after its start. Its pool need not be prepared, so
// unlike Fresh it allows nothing: it tells what this node has not, or has no more.
func (a *Agent) CaughtUp() bool { return a.caught.Load() }

func (a *Agent) isFresh() bool {
	select {
	case <-a.fresh:
		return true
	default:
		return false
	}
}

// Run works until ctx ends and joins what it started.
func (a *Agent) Run(ctx context.Context) error {
	var jobs sync.WaitGroup
	defer jobs.Wait()

	if err := a.retry(ctx, "preparing the pool", a.prepareFirst); err != nil {
		return err
	}
	if err := a.retry(ctx, "catching up with the cluster", a.catchUp); err != nil {
		return err
	}
	if err := a.retry(ctx, "reading the disk", a.firstLook); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return nil
	}
	close(a.fresh)
	a.log.Info("caught up with the cluster", "index", a.cluster.State().Index)
	jobs.Go(func() { a.makeNew(ctx, &jobs) })

	for why := byReason; ; {
		changed, before := a.cluster.Changed(), a.lookedAt
		wait, then := a.step(ctx, &jobs, why)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-changed:
			why = byNews
		case <-a.news:
			why = byNews
		case <-a.wake:
			why = byReason
		case <-a.stir:
			why = byEngine
		case <-timer.C:
			why = then
		}
		timer.Stop()
		if a.lookTook > slowLook && a.lookedAt != before {
			// With very many volumes a look at each change would be all that ZFS does.
			a.restAfterLook(ctx, &jobs)
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// makeNew begins what is to be made here as soon as the state says so, until ctx ends. The loop may be
// looking just then, which takes seconds where there are many datasets or the machine is busy, and
// people wait for what is made. It needs no look: zfs refuses what is there, and then that is
// read by itself. What does not work is tried again by the loop.
func (a *Agent) makeNew(ctx context.Context, jobs *sync.WaitGroup) {
	for ctx.Err() == nil {
		changed := a.cluster.Changed()
		for _, act := range newHere(a.cluster.State(), a.self) {
			a.mu.Lock()
			if _, failed := a.failed[act.Volume]; !failed && !a.running[act.Volume] {
				a.start(ctx, jobs, act)
			}
			a.mu.Unlock()
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// start begins an action, of which none is under way for its volume. The caller holds mu.
func (a *Agent) start(ctx context.Context, jobs *sync.WaitGroup, act Action) {
	a.running[act.Volume] = true
	a.begins(act)
	jobs.Go(func() { a.perform(ctx, act) })
}

// cause is why the loop takes a step, and so how it may look.
type cause int

const (
	byReason cause = iota // something has changed: read the disk
	byEngine              // likewise, but the engine alone says so, and that may wait
	byNews                // there is another state, or a dataset was made: what was seen last may do
	byTime                // it is time to look: what others have listed will do
	atRest                // there may be another state, and a look has to wait
)

const (
	slowLook = 250 * time.Millisecond // a listing that takes longer is followed by a rest as long
	longRest = 5 * time.Second        // at most: one that took minutes was stopped together with flockd
)

// restAfterLook returns when the last listing is over for as long as it took. What it is told
// meanwhile it does if the last look is good enough for that.
func (a *Agent) restAfterLook(ctx context.Context, jobs *sync.WaitGroup) {
	timer := time.NewTimer(min(a.lookTook, longRest) - time.Since(a.listedAt))
	defer timer.Stop()
	for {
		changed := a.cluster.Changed()
		a.step(ctx, jobs, atRest)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case <-changed:
		case <-a.news:
		}
	}
}

func (a *Agent) rest(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// step looks once, or where that is as good remembers, and starts what there is to do. It
// returns how long nothing will change by itself, and why to look then.
func (a *Agent) step(ctx context.Context, jobs *sync.WaitGroup, why cause) (wait time.Duration, then cause) {
	s := a.cluster.State()
	if s.Index != a.decided && (why == byTime || why == byEngine) {
		// Who waits hears of one thing when there are two: what can be put off must not put off the news.
		if why == byEngine {
			a.Stir()
		}
		why = byNews
	}
	if why == byEngine {
		if later := a.looksLater(time.Now()); later > 0 {
			return later, byEngine
		}
	}
	if due(s, a.self) {
		a.excused = true
		if later := a.routineLater(time.Now()); why == byTime && later > 0 {
			return later, byTime
		}
	}
	var got Actual
	var holders map[volume.ID][]volume.Holder
	inUse := func(id volume.ID) bool { return len(holders[id]) > 0 || !a.use.Idle(id) }
	remembers, fresh := false, why != byTime || a.busy()
	if why == byNews || why == atRest {
		var known bool
		if got, holders, remembers, known = a.remembered(time.Now()); remembers || known {
			enough := suffices(s, got, a.self, Diff(s, got, a.self, inUse))
			// News that ask nothing of the disk are no reason to list it: where the last look is old it is
			// time for one, as without them.
			remembers, fresh = remembers && enough, !enough
		}
	}
	if why == atRest && !remembers {
		return 0, byReason
	}
	wait, then = a.poll, byTime
	if remembers {
		wait -= time.Since(a.stepped) // however many news there are
	} else {
		a.stepped = time.Now()
		var err error
		if got, err = a.observe(ctx, fresh); err != nil {
			if err = a.renew(ctx, err); err == nil {
				return 0, byReason
			}
			// "Cannot ask" is not "nothing there": do nothing.
			a.setTrouble(fmt.Sprintf("the disk cannot be read: %v", err))
			return time.Second, byReason
		}
		var engine error
		holders, engine = a.use.Refresh(ctx, got.mounted())
		a.look(ctx, got, holders, engine)
		if err := a.lookAside(ctx, jobs); err != nil && ctx.Err() == nil {
			if err = a.renew(ctx, err); err != nil {
				a.addTrouble(err.Error())
			}
		}
	}
	a.repl.Assign(assignments(s, got, a.self))

	now := time.Now()
	actions := Diff(s, got, a.self, inUse)
	a.decided = s.Index
	a.forgive(actions)
	for _, act := range actions {
		a.mu.Lock()
		f, failed := a.failed[act.Volume]
		switch {
		case a.running[act.Volume]:
		case failed && f.action == act && now.Before(f.again):
			if again := f.again.Sub(now); again < wait {
				wait, then = again, byReason
			}
		default:
			a.start(ctx, jobs, act)
		}
		a.mu.Unlock()
	}
	return wait, then
}

// busy says that an action is under way of which a look may tell more than is known.
func (a *Agent) busy() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.acting > 0
}

// forgive forgets failures of steps that are not wanted any more: a status that still
// told of them would never be well again.
func (a *Agent) forgive(wanted []Action) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.failed) == 0 {
		return
	}
	still := make(map[Action]bool, len(wanted))
	for _, act := range wanted {
		still[act] = true
	}
	maps.DeleteFunc(a.failed, func(_ volume.ID, f failure) bool { return !still[f.action] })
}

// perform takes one action and remembers how it went.
func (a *Agent) perform(ctx context.Context, act Action) {
	err := a.do(ctx, act)
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.running, act.Volume)
	a.ended(act)
	if err == nil || ctx.Err() != nil {
		delete(a.failed, act.Volume)
		if act.tells() {
			a.tell()
		} else {
			a.Wake()
		}
		return
	}
	f := a.failed[act.Volume]
	if f.action != act || f.reason != err.Error() {
		a.log.Warn("a step did not work and will be tried again", "step", act.Do, "volume", act.Volume, "err", err)
	}
	if f.action != act {
		f = failure{action: act}
	}
	f.reason = err.Error()
	f.pause = min(max(2*f.pause, 500*time.Millisecond), 30*time.Second)
	f.again = time.Now().Add(f.pause)
	a.failed[act.Volume] = f
	a.Wake()
}

func (a *Agent) do(ctx context.Context, act Action) error {
	switch act.Do {
	case StepCreate:
		return a.create(ctx, act.Volume)
	case StepConfirm:
		v := a.cluster.State().Volume(act.Volume)
		if v == nil {
			return nil
		}
		return a.propose(ctx, state.ConfirmCreate{ID: v.ID, Epoch: v.Epoch})
	case StepRelease:
		return a.release(ctx, act.Volume)
	case StepAgree:
		return a.agree(ctx, act.Volume)
	}
	// The rest changes the disk only, under the lock and by the state of that moment.
	unlock, err := a.locks.lock(ctx, act.Volume)
	if err != nil {
		return err
	}
	defer unlock()
	v := a.cluster.State().Volume(act.Volume)
	if v == nil {
		return nil
	}
	ds, trash := a.layout.Dataset(v.ID), a.layout.TrashDataset(v.ID)
	switch act.Do {
	case StepPromote:
		if v.Placement.Role(a.self) != volume.RolePrimary {
			return nil
		}
		if c, ok := a.seenCopy(v.ID); ok && mustSettle(v, c) {
			return a.takeOver(ctx, v, c) // by what is there: it is read for that
		}
		d, err := a.zfs.Dataset(ctx, ds)
		if errors.Is(err, zfs.ErrNotFound) && !v.Line().IsZero() {
			// A rollback was cut short between two renames: it is finished first.
			if _, _, err = a.repl.SettledCopy(ctx, v.ID, v.Start); err == nil {
				d, err = a.zfs.Dataset(ctx, ds)
			}
		}
		if err != nil {
			return err
		}
		return a.takeOver(ctx, v, copyOf(d))
	case StepReplay:
		return a.replay(ctx, v.ID)
	case StepDemote:
		if v.Placement.Role(a.self) == volume.RolePrimary {
			return nil
		}
		return a.zfs.SetProperties(ctx, ds, map[string]string{"refquota": "none"})
	case StepUnmount:
		// A Mount may have come since the look at the disk.
		if v.Placement.Role(a.self) == volume.RolePrimary && v.Live() && !a.use.Idle(v.ID) {
			return nil
		}
		if err := a.files.Unused(ds, a.layout.Mountpoint(v.ID)); err != nil {
			return err
		}
		return a.zfs.Unmount(ctx, ds)
	case StepToTrash:
		if v.Phase != state.PhaseTrash {
			return nil
		}
		return a.zfs.Rename(ctx, ds, trash)
	case StepFromTrash:
		if !v.Live() {
			return nil
		}
		return a.zfs.Rename(ctx, trash, ds)
	case StepDestroy:
		if v.Phase != state.PhasePurged || removed(a.cluster.State(), a.self) {
			return nil
		}
		a.mu.Lock()
		gone := append([]string{ds, trash}, a.actual.Parts[v.ID]...)
		a.mu.Unlock()
		var errs []error
		for _, name := range gone {
			errs = append(errs, a.destroy(ctx, name))
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
		a.uncoverOf(v)
		return nil
	case StepGiveBack:
		return a.giveBack(ctx, v)
	case StepDrop:
		return a.drop(ctx, v)
	}
	return fmt.Errorf("no such step: %s", act.Do)
}

// create makes the dataset of a new volume. An error that will not go away by
// itself ends the creation.
func (a *Agent) create(ctx context.Context, id volume.ID) error {
	v := a.cluster.State().Volume(id)
	if v == nil || v.Phase != state.PhaseCreating || v.Placement.Primary != a.self {
		return nil
	}
	props := map[string]string{
		"canmount": "noauto", "readonly": "on", "sharenfs": "off", "sharesmb": "off",
		"mountpoint": a.layout.Mountpoint(id), "refquota": quota(v.Spec.Size),
		propVolume: string(id), propEpoch: v.Epoch.String(),
	}
	maps.Copy(props, v.Spec.ZFS)
	if v.Adopt != "" {
		unlock, err := a.locks.lock(ctx, id)
		if err != nil {
			return err
		}
		defer unlock()
		defer a.changing(id)()
		return a.adopt(ctx, v, props)
	}
	if v.Clone != nil {
		return a.clone(ctx, v, props)
	}
	err := a.zfs.CreateFilesystem(ctx, a.layout.Dataset(id), props)
	switch {
	case permanent(err):
		return a.propose(ctx, state.AbortCreate{ID: id, Epoch: v.Epoch, Reason: err.Error()})
	case err != nil && !errors.Is(err, zfs.ErrExists):
		return err
	}
	d, err := a.zfs.Dataset(ctx, a.layout.Dataset(id))
	if err != nil {
		return err
	}
	if unmarked(d) {
		if d, err = a.finish(ctx, d, props); err != nil {
			return err
		}
	}
	a.noteMade(id, copyOf(d))
	return a.propose(ctx, state.ConfirmCreate{ID: id, Epoch: v.Epoch})
}

// unmarked says that a dataset which has a volume's name has nothing that flocker sets.
func unmarked(d zfs.Dataset) bool { return d.User[propVolume] == "" && d.User[propEpoch] == "" }

// finish gives an unmarked dataset its properties: ZFS makes one in one transaction and sets them in another, and the
// machine may have lost its power in between. What marks it as ours comes with the last of them. Should
// somebody have made it by hand, that stays.
func (a *Agent) finish(ctx context.Context, d zfs.Dataset, props map[string]string) (zfs.Dataset, error) {
	if d.Mounted {
		return d, fmt.Errorf("%s is there already, but flocker has not finished it, and it is mounted: unmount it, or rename it by hand", d.Name)
	}
	fail := func(err error) (zfs.Dataset, error) {
		return d, fmt.Errorf("finishing %s, which is there without its properties: %w", d.Name, err)
	}
	// By themselves first: to set a mountpoint mounts what may be mounted.
	first := map[string]string{"canmount": props["canmount"], "readonly": props["readonly"]}
	if err := a.zfs.SetProperties(ctx, d.Name, first); err != nil {
		return fail(err)
	}
	if err := a.zfs.SetProperties(ctx, d.Name, props); err != nil {
		return fail(err)
	}
	got, err := a.zfs.Dataset(ctx, d.Name)
	if err != nil {
		return fail(err)
	}
	return got, nil
}

// permanent says that trying again makes no sense.
func permanent(err error) bool {
	return errors.Is(err, zfs.ErrNoSpace) || errors.Is(err, zfs.ErrInvalid) || errors.Is(err, zfs.ErrUnsupported)
}

// propose commits a command; a refusal that is only "somebody was faster" is fine.
func (a *Agent) propose(ctx context.Context, c state.Command) error {
	res, err := a.cluster.Propose(ctx, c)
	if err != nil {
		return err
	}
	if res.Err != nil && res.Err.Code != volume.CodeConflict && res.Err.Code != volume.CodeNotFound {
		return res.Err
	}
	return nil
}

// whileState gives a context that ends when cond is no longer true of the state.
func (a *Agent) whileState(ctx context.Context, cond func(*state.State) bool) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			changed := a.cluster.Changed()
			if !cond(a.cluster.State()) {
				cancel(errors.New("it was given up meanwhile"))
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, func() { cancel(context.Canceled); <-done }
}

// retry calls f until it works or ctx ends, and logs each new reason once.
func (a *Agent) retry(ctx context.Context, what string, f func(context.Context) error) error {
	last, pause := "", 250*time.Millisecond
	for {
		err := f(ctx)
		if err == nil {
			a.setTrouble()
			return nil
		}
		if ctx.Err() != nil {
			return nil
		}
		if err.Error() != last {
			last = err.Error()
			a.log.Warn(what+" does not work yet", "err", err)
			a.setTrouble(fmt.Sprintf("%s: %v", what, err))
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		pause = min(2*pause, 5*time.Second)
	}
}

// catchUp makes CaughtUp true.
func (a *Agent) catchUp(ctx context.Context) error {
	err := a.cluster.CatchUp(ctx)
	if err == nil {
		a.caught.Store(true)
	}
	return err
}

// firstLook makes the first report after a start complete.
func (a *Agent) firstLook(ctx context.Context) error {
	got, err := a.observe(ctx, true)
	if err != nil {
		if rerr := a.renew(ctx, err); rerr != nil {
			return rerr
		}
		return err // it is read at the next try
	}
	a.suspectLogs(got)
	a.uncover(func(id volume.ID) bool {
		v := a.cluster.State().Volume(id)
		_, here := got.Copies[id]
		_, trashed := got.Trash[id]
		// One that comes here later is covered before it is mounted.
		return here || trashed || v != nil && v.Phase != state.PhasePurged && v.Placement.Role(a.self) != volume.RoleNone
	})
	for _, id := range got.mounted() {
		a.use.Found(id)
	}
	holders, engine := a.use.Refresh(ctx, got.mounted())
	a.look(ctx, got, holders, engine)
	return nil
}

// look keeps what was seen for reports.
func (a *Agent) look(ctx context.Context, got Actual, holders map[volume.ID][]volume.Holder, engine error) {
	var trouble []string
	if engine != nil {
		trouble = append(trouble, fmt.Sprintf("the container engine cannot be asked: %v", engine))
	}
	info, asked := a.pool, a.asked // which the loop alone changes
	if now := time.Now(); now.Sub(asked) >= poolPoll {
		var err error
		if info, err = a.poolInfo(ctx); err != nil {
			trouble = append(trouble, err.Error())
		}
		asked = now
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pool, a.asked = info, asked // with what is in it: a pool that is known, and empty, has lost everything
	a.addMade(got)
	a.actual, a.seen, a.silence = got, a.listedAt, 3*a.listEvery()+patience
	a.putOff = false
	a.holders, a.trouble = holders, trouble
}

func (a *Agent) addTrouble(problem string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.trouble = append(a.trouble, problem)
}

func (a *Agent) setTrouble(problems ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.trouble = problems
}

func (a *Agent) name() string { return a.cluster.State().NodeName(a.self) }
