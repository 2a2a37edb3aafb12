package replicate

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// Engine replicates the volumes of one node.
//
// Its goroutines: the supervisor and the cadence loop and the pruner, one link for
// every volume and replica, and, in their callers' goroutines, the receivers. They
// share what is known of the local copies, under mu, which is never held while
// anything is waited for.
type Engine struct {
	cfg    Config
	logCtx context.Context

	zstd   zstdPool
	beside sync.WaitGroup // estimates, which no stream waits for

	snapping chan struct{} // one slot: who takes snapshots
	pruning  chan struct{} // one slot: who destroys them
	slots    chan struct{} // of receives
	seeds    chan struct{} // of those that are first copies: they never take all

	wakeLinks   chan struct{}
	wakeCadence chan struct{}
	wakePruner  chan struct{}

	mu       sync.Mutex
	assigns  chan struct{}             // closed when the table changes
	table    map[volume.ID]*Assignment // values are never changed
	assigned bool                      // table was not empty, once
	blind    bool                      // the last listing failed
	relist   bool                      // the table has changed since the last listing, by what may not have been seen yet
	listedAt time.Time                 // when the last listing was asked for
	listTook time.Duration             // how long zfs took to answer it
	surveyed bool                      // copies is what the disk held, once
	copies   map[volume.ID]*localCopy
	leftover map[volume.ID]bool   // a seed or a fork is there
	begun    map[volume.ID]uint64 // at which of changes the last seed or fork was
	links    map[linkKey]*link
	peers    map[volume.NodeID]*peer
	pacers   map[string]*pacer // by Limit.Group
	receives map[volume.ID]*receive
	pins     map[volume.ID]guid         // snapshots that retention leaves, whoever's they are; see Pin
	promised map[volume.ID]volume.Epoch // what the table does not say yet: nothing below is done
	queue    []*claim                   // links that wait for a turn to send, first come first
	turns    map[volume.NodeID]load     // taken
	changes  uint64                     // counts what we do to copies
	listing  uint64                     // counts the listings of all datasets
	failing  map[string]string          // by operation on the pool: the error it failed with
	room     room
	misfits  map[volume.ID]misfit    // streams that there was no room for
	orphans  map[volume.ID]time.Time // since when first copies wait for what they are to hang on
}

// receive is the right to change one volume's copy on a replica. There is at most
// one at a time.
type receive struct {
	epoch  volume.Epoch
	peer   volume.NodeID
	cancel context.CancelCauseFunc
	done   chan struct{}
	stream *incoming // nil unless a stream is coming in
	// onOrigin is a first copy that is received on this node's copy of the original.
	onOrigin bool
}

var errSuperseded = errors.New("the assignment of the volume has changed")

// New returns an engine that does nothing until Run.
func New(cfg Config) *Engine {
	cfg = cfg.withDefaults()
	return &Engine{
		cfg:         cfg,
		logCtx:      context.Background(),
		snapping:    make(chan struct{}, 1),
		pruning:     make(chan struct{}, 1),
		slots:       make(chan struct{}, cfg.Receives),
		seeds:       make(chan struct{}, max(1, cfg.Receives-cfg.Receives/4)),
		wakeLinks:   make(chan struct{}, 1),
		wakeCadence: make(chan struct{}, 1),
		wakePruner:  make(chan struct{}, 1),
		assigns:     make(chan struct{}),
		table:       map[volume.ID]*Assignment{},
		copies:      map[volume.ID]*localCopy{},
		leftover:    map[volume.ID]bool{},
		begun:       map[volume.ID]uint64{},
		links:       map[linkKey]*link{},
		peers:       map[volume.NodeID]*peer{},
		pacers:      map[string]*pacer{},
		receives:    map[volume.ID]*receive{},
		pins:        map[volume.ID]guid{},
		promised:    map[volume.ID]volume.Epoch{},
		turns:       map[volume.NodeID]load{},
		failing:     map[string]string{},
		misfits:     map[volume.ID]misfit{},
		orphans:     map[volume.ID]time.Time{},
	}
}

// acquire takes a slot; release gives it back.
func acquire(ctx context.Context, slot chan struct{}) error {
	select {
	case slot <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func release(slot chan struct{}) { <-slot }

// wake tells a loop that there is something to do; many wakes become one.
func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Run works until ctx ends and joins everything it started. It is called once.
func (e *Engine) Run(ctx context.Context) error {
	e.begin(ctx)
	var all sync.WaitGroup
	all.Go(func() { e.runCadence(ctx) })
	all.Go(func() { e.runPruner(ctx) })
	for ctx.Err() == nil {
		for _, l := range e.unstarted(ctx) {
			all.Go(func() { l.run() })
		}
		select {
		case <-ctx.Done():
		case <-e.wakeLinks:
		}
	}
	all.Wait()
	e.beside.Wait()
	e.closePeers()
	return context.Cause(ctx)
}

// begin reads the disk until it can be read, and finishes what a crash left half
// done. Before that nothing is sent, received or pruned.
func (e *Engine) begin(ctx context.Context) {
	for delay := 250 * time.Millisecond; ctx.Err() == nil; delay = min(2*delay, maxTick) {
		if err := e.survey(ctx); err == nil {
			return
		}
		sleep(ctx, jitter(delay))
	}
}

// unstarted gives the links whose goroutine is to begin now.
func (e *Engine) unstarted(ctx context.Context) []*link {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []*link
	for _, l := range e.links {
		if !l.started {
			l.started = true
			l.ctx, l.cancel = context.WithCancelCause(ctx)
			list = append(list, l)
		}
	}
	return list
}

// Assign replaces the whole table of what this node should do. It does not block
// and may be called with the same table any number of times.
func (e *Engine) Assign(all []Assignment) {
	e.mu.Lock()
	defer e.mu.Unlock()
	table := make(map[volume.ID]*Assignment, len(all))
	changed := len(all) != len(e.table)
	for _, a := range all {
		if epoch, ok := e.promised[a.Volume]; ok && a.Epoch < epoch {
			a = a.without(epoch)
		} else {
			delete(e.promised, a.Volume)
		}
		old := e.table[a.Volume]
		if old != nil && sameAssignment(old, &a) {
			table[a.Volume] = old
			continue
		}
		e.relist = e.relist || e.unseen(old, a)
		a.Replicas, a.Properties, a.Snapshots, a.Stay = slices.Clone(a.Replicas), maps.Clone(a.Properties), slices.Clone(a.Snapshots), slices.Clone(a.Stay)
		if a.Role == volume.RolePrimary && (old == nil || old.Role != a.Role || old.Epoch != a.Epoch) {
			e.copies[a.Volume].becomePrimary(time.Now())
		}
		table[a.Volume], changed = &a, true
	}
	if !changed {
		return
	}
	for id := range e.table {
		e.relist = e.relist || table[id] == nil
	}
	maps.DeleteFunc(e.misfits, func(id volume.ID, _ misfit) bool { return table[id] == nil })
	maps.DeleteFunc(e.orphans, func(id volume.ID, _ time.Time) bool { return table[id] == nil })
	e.table, e.assigned = table, e.assigned || len(table) > 0
	e.reassigned()
}

// sameAssignment compares without reflection: with each change of the cluster's state all of a node's are compared.
func sameAssignment(a, b *Assignment) bool {
	return a.Volume == b.Volume && a.Epoch == b.Epoch && a.Role == b.Role && a.Primary == b.Primary && slices.Equal(a.Replicas, b.Replicas) &&
		a.Interval == b.Interval && maps.Equal(a.Properties, b.Properties) && slices.Equal(a.Snapshots, b.Snapshots) &&
		a.Frozen == b.Frozen && a.Line == b.Line && slices.Equal(a.Stay, b.Stay) && a.Origin == b.Origin
}

// reassigned makes what goes on fit the table. The caller holds mu.
func (e *Engine) reassigned() {
	e.assignLinks()

	// What is being received for another epoch, or from another primary, ends here.
	for id, r := range e.receives {
		a := e.table[id]
		if r.peer == "" {
			continue // this node's own work on what is left; no assignment makes it wrong
		}
		if r.onOrigin && (a == nil || !a.Origin.Here) {
			// The original goes from here, and cannot while something half received hangs on it.
			r.cancel(errSuperseded)
		}
		if a == nil || a.Role != volume.RoleReplica || a.Epoch != r.epoch || a.Primary != r.peer {
			r.cancel(errSuperseded)
		}
	}
	wake(e.wakeLinks)
	wake(e.wakeCadence)
	close(e.assigns)
	e.assigns = make(chan struct{})
}

// Reassigned is closed when something else is assigned than now: who was refused for what
// is assigned now may try again then.
func (e *Engine) Reassigned() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.assigns
}

// assignLinks makes the links that the table asks for and ends the others. The
// caller holds mu.
func (e *Engine) assignLinks() {
	wanted := map[linkKey]bool{}
	for id, a := range e.table {
		if a.Role != volume.RolePrimary {
			continue
		}
		for _, replica := range a.Replicas {
			if replica != e.cfg.Node {
				wanted[linkKey{id, replica, a.Epoch}] = true
			}
		}
	}
	before := map[linkKey]<-chan struct{}{} // of the same pair, epoch 0
	for key, l := range e.links {
		if wanted[key] {
			l.retryAt = time.Time{}
			wake(l.wake)
			continue
		}
		delete(e.links, key)
		before[linkKey{key.volume, key.replica, 0}] = l.done
		if l.started {
			l.cancel(errSuperseded)
		} else {
			close(l.done)
		}
	}
	for key := range wanted {
		if e.links[key] == nil {
			e.links[key] = newLink(e, key, before[linkKey{key.volume, key.replica, 0}])
			e.copies[key.volume].meet(time.Now())
		}
	}
}

// wakeVolume wakes the links of a volume. The caller holds mu.
func (e *Engine) wakeVolume(id volume.ID) {
	a := e.table[id]
	if a == nil {
		return
	}
	for _, replica := range a.Replicas {
		if l := e.links[linkKey{id, replica, a.Epoch}]; l != nil {
			wake(l.wake)
		}
	}
}

// Positions are the newest complete engine snapshots of every copy on this node,
// from memory; zero for a copy without one, or which is being set aside. It is nil until the disk has been read.
func (e *Engine) Positions() map[volume.ID]volume.Position {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.surveyed {
		return nil
	}
	positions := make(map[volume.ID]volume.Position, len(e.copies))
	for id, c := range e.copies {
		positions[id] = volume.Position{}
		if !c.parting() {
			positions[id] = c.newest().pos
		}
	}
	return positions
}

// CompleteAsOf is the primary's time up to which this node's copy, as a replica,
// surely holds all that was written; zero when it does not know.
func (e *Engine) CompleteAsOf(id volume.ID) time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.copies[id]; c != nil {
		return c.completeAsOf
	}
	return time.Time{}
}

// Links of a volume whose primary this node is, in the order of its replicas.
func (e *Engine) Links(id volume.ID) []volume.LinkStatus {
	list := e.linksOf(id)
	for i := range list {
		list[i].Limit = e.limit(list[i].Replica).Bytes
	}
	return list
}

func (e *Engine) linksOf(id volume.ID) (list []volume.LinkStatus) {
	e.mu.Lock()
	defer e.mu.Unlock()
	a := e.table[id]
	if a == nil || a.Role != volume.RolePrimary {
		return nil
	}
	for _, replica := range a.Replicas {
		if l := e.links[linkKey{id, replica, a.Epoch}]; l != nil {
			list = append(list, l.status(time.Now()))
		}
	}
	return list
}

// Refresh reads one volume's copy from disk again soon and wakes its links: for a
// caller that has just taken or destroyed a user's snapshot. A reading that has begun
// by then is not it.
func (e *Engine) Refresh(id volume.ID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.copies[id]; c != nil {
		e.touch(c)
		c.known = false
	}
	wake(e.wakeCadence)
}

// claim takes the right to change a copy. ok is false when somebody has it.
func (e *Engine) claim(ctx context.Context, id volume.ID, epoch volume.Epoch, peer volume.NodeID) (rctx context.Context, release func(), ok bool) {
	if e.receives[id] != nil {
		return nil, nil, false
	}
	r := &receive{epoch: epoch, peer: peer, done: make(chan struct{})}
	rctx, r.cancel = context.WithCancelCause(ctx)
	e.receives[id] = r
	return rctx, func() {
		r.cancel(nil)
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.receives, id)
		if e.leftover[id] {
			e.changes++
			e.begun[id] = e.changes // a listing under way may be from before it was made
		}
		close(r.done)
	}, true
}

// Settle returns when nothing is being received for the volume and nothing half
// received or half set aside is left of it: before a promotion, after Assign has
// said that this node receives no more.
func (e *Engine) Settle(ctx context.Context, id volume.ID) error {
	return e.settled(ctx, id, nil)
}

// Settled is Settle, and then f, until the end of which nothing is received for the
// volume, whatever is assigned meanwhile: what f finds on disk stays as it is, and
// this node cannot become the primary by what it gets. f may change or destroy the
// copy, but not through the engine.
func (e *Engine) Settled(ctx context.Context, id volume.ID, f func(context.Context) error) error {
	return e.settled(ctx, id, func(ctx context.Context) error {
		// What is remembered must not speak for a copy that may be gone.
		defer e.distrust(id)
		return f(ctx)
	})
}

// SettledCopy is Settle, and says how the copy stands then, as it was read from the disk for it:
// its dataset, zero where there is none, and which snapshots it has, by guid. Where it has the one that is asked for, and
// what is known of the copy is recent, others may be missing from the answer: clients wait for
// it, and so it is two commands, and not all that Settle reads.
func (e *Engine) SettledCopy(ctx context.Context, id volume.ID, want volume.Position) (d zfs.Dataset, guids map[uint64]bool, err error) {
	err = e.claimed(ctx, id, func(ctx context.Context) error {
		var ok bool
		if d, guids, ok = e.standsSettled(ctx, id, want); ok {
			return nil
		}
		s, err := e.tidy(ctx, id, tidyAll)
		if err != nil {
			return err
		}
		d, guids = s.dataset, map[uint64]bool{}
		for _, sn := range s.snaps {
			guids[uint64(sn.guid)] = true
		}
		return nil
	})
	return d, guids, err
}

// standsSettled is SettledCopy of a copy of which a recent look has shown that nothing is left of
// anything beside it, and to which nothing was done since but that whole streams came: then
// it says that the dataset and the snapshots that these streams brought, or that are wanted, are
// as they are known. ok is false where any of that is not so, or
// cannot be asked: then all is read. The caller has claimed the volume.
func (e *Engine) standsSettled(ctx context.Context, id volume.ID, want volume.Position) (d zfs.Dataset, guids map[uint64]bool, ok bool) {
	s, ok := e.remembered(id, time.Now())
	if !ok || s.token != "" || s.badEpoch != "" {
		return d, nil, false
	}
	at := slices.IndexFunc(s.snaps, func(sn snap) bool { return sn.guid == guid(want.GUID) })
	if at < 0 {
		return d, nil, false
	}
	asked := time.Now()
	d, err := e.cfg.Pool.Dataset(ctx, e.cfg.dataset(id))
	if err != nil || d.ResumeToken != "" {
		return d, nil, false
	}
	list, err := e.cfg.Pool.SnapshotsNamed(ctx, e.namesToRead(id, s.snaps[at].name))
	if err != nil {
		return d, nil, false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.copies[id]
	if c == nil || !c.known {
		return d, nil, false
	}
	e.touch(c)
	c.setDataset(d)
	c.listed = asked
	guids = map[uint64]bool{}
	found := make(map[string]zfs.Snapshot, len(list))
	for _, z := range list {
		found[z.Name], guids[z.GUID] = z, true
	}
	for _, sn := range c.unread() {
		z, here := found[sn.name]
		if !here || guid(z.GUID) != sn.guid {
			c.known = false
			return d, nil, false
		}
		c.confirm(z)
	}
	return d, guids, guids[want.GUID]
}

// namesToRead are the snapshots of a copy that nobody has read yet, and one more, in full.
func (e *Engine) namesToRead(id volume.ID, also string) (names []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.copies[id]
	if c == nil {
		return []string{e.cfg.dataset(id) + "@" + also}
	}
	names = []string{c.dataset + "@" + also}
	for _, sn := range c.unread() {
		if sn.name != also {
			names = append(names, c.dataset+"@"+sn.name)
		}
	}
	return names
}

func (e *Engine) settled(ctx context.Context, id volume.ID, f func(context.Context) error) error {
	return e.claimed(ctx, id, func(ctx context.Context) error {
		if _, err := e.tidy(ctx, id, tidyAll); err != nil || f == nil {
			return err
		}
		return f(ctx)
	})
}

// claimed waits until nobody changes the copy of a volume, and has f be the only one.
func (e *Engine) claimed(ctx context.Context, id volume.ID, f func(context.Context) error) error {
	for {
		e.mu.Lock()
		r := e.receives[id]
		if r == nil {
			rctx, release, _ := e.claim(ctx, id, 0, "")
			e.mu.Unlock()
			defer release()
			return f(rctx)
		}
		e.mu.Unlock()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-r.done:
		}
	}
}

// copyOf returns what is known of a copy, and begins to know it. The caller holds mu.
func (e *Engine) copyOf(id volume.ID) *localCopy {
	c := e.copies[id]
	if c == nil {
		c = newCopy()
		c.dataset = e.cfg.dataset(id)
		e.copies[id] = c
	}
	return c
}

// touch marks a copy as changed by us, so that a listing which began before is not
// believed. The caller holds mu.
func (e *Engine) touch(c *localCopy) {
	e.changes++
	c.changed = e.changes
}

// asked notes how an operation on the pool went and tells when that changes.
func (e *Engine) asked(op string, err error) {
	e.mu.Lock()
	_, failed := e.failing[op]
	if err != nil {
		e.failing[op] = err.Error()
	} else {
		delete(e.failing, op)
	}
	e.mu.Unlock()
	switch {
	case err != nil && !failed:
		e.emit(PoolFailed{Op: op, Err: err})
	case err == nil && failed:
		e.emit(PoolRecovered{Op: op})
	}
}

// sleep waits, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
