package replicate

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// runCadence is the one loop that takes snapshots.
func (e *Engine) runCadence(ctx context.Context) {
	audit := time.Now().Add(e.cfg.Audit)
	for ctx.Err() == nil {
		began := time.Now()
		if began.After(audit) {
			e.survey(ctx)
			audit = began.Add(e.cfg.Audit)
		}
		err := e.tick(ctx)
		if ctx.Err() != nil {
			return
		}
		e.asked("take snapshots", err)
		e.closeIdle(time.Now())
		wake(e.wakePruner)

		// Woken early, it still leaves a moment for others to wake it too.
		took := time.Since(began)
		timer := time.NewTimer(tickEvery(e.shortest(), took) - took)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-e.wakeCadence:
			sleep(ctx, minTick/10)
		}
		timer.Stop()
	}
}

// shortest interval of the volumes that may be due; 0: there is none.
func (e *Engine) shortest() (least time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, a := range e.table {
		if a.Role == volume.RolePrimary && !a.Frozen && len(a.Replicas) > 0 && (least == 0 || a.interval() < least) {
			least = a.interval()
		}
	}
	return least
}

// tick finds out what was written where, and takes a snapshot of all that is due in
// one command.
func (e *Engine) tick(ctx context.Context) error {
	began := time.Now()
	e.mu.Lock()
	since := e.changes
	e.mu.Unlock()
	var counters map[string]uint64
	if e.cfg.Dirty != nil {
		var err error
		if counters, err = e.cfg.Dirty.Counters(ctx); err != nil {
			counters = nil // a hint that fails is no hint: `written` still tells
		}
		if ctx.Err() == nil {
			e.asked("read the kernel's counters of writes", err)
		}
	}
	e.noteCounters(counters)
	datasets := 0
	if e.mustList(began, counters != nil) {
		asked := time.Now()
		e.mu.Lock()
		e.relist = false // a table that comes while zfs is asked asks for another listing
		e.mu.Unlock()
		list, err := e.cfg.Pool.Datasets(ctx, e.cfg.Root)
		e.mu.Lock()
		e.blind = err != nil // then it is asked again
		if err == nil {
			e.listedAt, e.listTook = asked, time.Since(asked)
		}
		e.mu.Unlock()
		if err != nil {
			return err
		}
		e.noteDatasets(list, since, asked)
		datasets = len(list)
	}
	if err := e.load(ctx, e.unknown()); err != nil && !errors.Is(err, zfs.ErrNotFound) {
		return err
	}
	listed := time.Since(began)
	// Scheduled ones first: the engine's carries them to the replicas at once.
	scheduled := e.takeScheduled(ctx)
	taken, err := e.take(ctx, e.dueNow(time.Now()), false, false)
	e.emit(Ticked{Datasets: datasets, Taken: len(taken), Listed: listed, Took: time.Since(began)})
	return errors.Join(scheduled, err)
}

// mustList says whether zfs is to be asked this time. Where the kernel's counters
// tell what is being written, `written` is asked only every so often: it is the
// truth about what they do not count, and tells that nothing is left to be sent.
func (e *Engine) mustList(now time.Time, hinted bool) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.relist && now.Sub(e.listedAt) >= 2*e.listTook {
		return true // where many volumes are made, half of the time is left for making them
	}
	return !hinted || e.blind || now.Sub(e.listedAt) >= e.listEvery()
}

// listEvery is the time from one listing to the next where the kernel's counters tell of
// writes: never so short that listings take more than a fifth of it. The caller holds mu.
func (e *Engine) listEvery() time.Duration {
	return max(e.cfg.List, min(5*e.listTook, time.Minute))
}

func (e *Engine) noteCounters(counters map[string]uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.copies {
		if n, ok := counters[c.dataset]; ok {
			c.counter = n
		} else {
			c.counter = c.baseline
		}
	}
}

// unknown are the copies whose snapshots must be listed. Those being received into
// are their receiver's business.
func (e *Engine) unknown() []volume.ID {
	e.mu.Lock()
	defer e.mu.Unlock()
	var ids []volume.ID
	for id, c := range e.copies {
		if !c.known && e.receives[id] == nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// dueNow are the volumes that get a snapshot in this tick.
func (e *Engine) dueNow(now time.Time) []volume.ID {
	e.mu.Lock()
	defer e.mu.Unlock()
	var ids []volume.ID
	for id, a := range e.table {
		c := e.copies[id]
		if !e.snaps(a, c) {
			continue
		}
		newest := c.newest()
		p := pulse{
			frozen: a.Frozen, replicas: len(a.Replicas), interval: a.interval(),
			since: -1, unacked: e.unacked(a, c),
			none: newest.guid == 0 || newest.pos.Epoch < a.Epoch, userTop: !c.top().engine(),
			written: c.written, moved: c.counter != c.baseline,
		}
		if !c.lastTaken.IsZero() {
			p.since = now.Sub(c.lastTaken)
		}
		if due(p) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// unacked counts the engine snapshots that the fastest replica lacks. As long as
// none has acknowledged any, those that this process took count. What a replica
// answers is no acknowledgement: one whose streams break answers each time. The
// caller holds mu.
func (e *Engine) unacked(a *Assignment, c *localCopy) int {
	fewest, acked := c.unproven, false
	for _, replica := range a.Replicas {
		l := e.links[linkKey{a.Volume, replica, a.Epoch}]
		if l == nil || l.acked.IsZero() {
			continue
		}
		n := 0
		for _, s := range c.snaps {
			if s.engine() && s.pos.Compare(l.acked) > 0 {
				n++
			}
		}
		if !acked || n < fewest {
			fewest, acked = n, true
		}
	}
	return fewest
}

// takeScheduled takes the scheduled snapshots that are due: of each rule those of
// all volumes in one command.
func (e *Engine) takeScheduled(ctx context.Context) error {
	if len(e.dueScheduled(time.Now())) == 0 {
		return nil
	}
	if err := acquire(ctx, e.snapping); err != nil {
		return err
	}
	defer release(e.snapping)
	began := time.Now()
	var errs []error
	due := e.dueScheduled(began) // a volume may have been frozen meanwhile
	for _, every := range slices.Sorted(maps.Keys(due)) {
		names := map[volume.ID]string{}
		for _, id := range due[every] {
			names[id] = volume.ScheduledName(every, began)
		}
		_, err := e.shoot(ctx, KindScheduled, names, e.takeNames, func(id volume.ID, c *localCopy, s snap) {
			c.scheduled[every] = began
		})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// dueScheduled are the volumes that get a snapshot of a rule now, by its period.
func (e *Engine) dueScheduled(now time.Time) map[time.Duration][]volume.ID {
	e.mu.Lock()
	defer e.mu.Unlock()
	var due map[time.Duration][]volume.ID
	for id, a := range e.table {
		c := e.copies[id]
		if len(a.Snapshots) == 0 || a.Frozen || !e.snaps(a, c) {
			continue
		}
		for _, every := range (agenda{
			policy: a.Snapshots, now: now, snaps: c.snaps, marks: c.marks, taken: c.scheduled,
			changed: c.written > 0 || c.counter != c.baseline,
		}).due() {
			if due == nil {
				due = map[time.Duration][]volume.ID{}
			}
			due[every] = append(due[every], id)
		}
	}
	return due
}

// snaps says that this node may take snapshots of a copy by itself. The caller holds mu.
func (e *Engine) snaps(a *Assignment, c *localCopy) bool {
	return a.Role == volume.RolePrimary && c != nil && c.known && c.epoch <= a.Epoch && c.badEpoch == "" && !c.parting()
}

// take takes a snapshot of each volume, in one command.
// With stop each is one that links must stop at, until unstop: somebody asked for it.
// None but a final one is taken of a volume that froze while this waited for others'
// snapshots: a handoff counts on that. What came after its last snapshot the next primary
// would not have, and this copy would have gone its own way.
func (e *Engine) take(ctx context.Context, ids []volume.ID, stop, final bool) (map[volume.ID]snap, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	if err := acquire(ctx, e.snapping); err != nil {
		return nil, err
	}
	defer release(e.snapping)

	began := time.Now()
	names := map[volume.ID]string{}
	e.mu.Lock()
	for _, id := range ids {
		a, c := e.table[id], e.copies[id]
		if a == nil || a.Role != volume.RolePrimary || c == nil || !c.known || a.Frozen && !final || !stop && !e.snaps(a, c) {
			continue
		}
		names[id] = c.next(a.Epoch).SnapshotName()
		c.takenAt[names[id]] = began
	}
	e.mu.Unlock()
	return e.shoot(ctx, KindEngine, names, e.takeNames, func(id volume.ID, c *localCopy, s snap) {
		c.lastTaken = began
		c.unproven++
		if stop {
			c.stops[s.guid]++
		}
	})
}

// shoot takes the snapshots of these names by calling snapshot with their full names,
// which returns those that zfs says are there now. The others are listed: what is there
// is taken, whatever the command said. note is called for each, under mu. The caller has
// e.snapping.
func (e *Engine) shoot(ctx context.Context, kind string, names map[volume.ID]string, snapshot func(context.Context, []string) ([]zfs.Snapshot, error),
	note func(volume.ID, *localCopy, snap)) (map[volume.ID]snap, error) {
	if len(names) == 0 {
		return nil, nil
	}
	began := time.Now()
	full := make([]string, 0, len(names))
	of := map[string]volume.ID{}
	e.mu.Lock()
	for _, id := range sortedIDs(names) {
		full = append(full, e.cfg.dataset(id)+"@"+names[id])
		of[e.cfg.dataset(id)] = id
		if c := e.copies[id]; c != nil {
			c.baseline = c.counter
			e.touch(c)
		}
	}
	e.mu.Unlock()

	list, failed := snapshot(ctx, full)
	if ctx.Err() != nil {
		failed = context.Cause(ctx)
	}
	took := time.Since(began)
	told := make(map[string]bool, len(list))
	for _, z := range list {
		told[z.FullName()] = true
	}
	full = slices.DeleteFunc(full, func(name string) bool { return told[name] })
	var err error
	if len(full) > 0 {
		var found []zfs.Snapshot
		found, err = e.cfg.Pool.SnapshotsNamed(ctx, full)
		list = append(list, found...)
	}
	listed := time.Since(began) - took

	taken := make(map[volume.ID]snap, len(list))
	e.mu.Lock()
	for _, name := range full {
		dataset, _, _ := strings.Cut(name, "@")
		if c := e.copies[of[dataset]]; c != nil && err != nil {
			c.known = false
		}
	}
	for _, z := range list {
		id := of[z.Dataset]
		c := e.copies[id]
		if c == nil {
			continue
		}
		e.touch(c)
		taken[id] = c.add(z)
		c.written = 0
		note(id, c, taken[id])
		e.wakeVolume(id)
	}
	e.mu.Unlock()
	if len(taken) > 0 {
		e.emit(SnapshotsTaken{Kind: kind, Volumes: sortedIDs(taken), Took: took, Listed: listed})
	}
	if err == nil {
		err = failed
	}
	return taken, err
}

// takeNames takes them all in one command. One that cannot be taken does not stop the
// others: zfs says so of each, and where it fails as a whole without saying why, they are
// tried once more in halves.
func (e *Engine) takeNames(ctx context.Context, names []string) ([]zfs.Snapshot, error) {
	if len(names) == 0 {
		return nil, nil
	}
	taken, failed, err := e.cfg.Pool.Take(ctx, names)
	if err == nil || ctx.Err() != nil || len(names) == 1 || errors.Is(err, zfs.ErrSuspended) || errors.Is(err, zfs.ErrNoSpace) {
		errs := []error{err}
		for _, name := range slices.Sorted(maps.Keys(failed)) {
			errs = append(errs, failed[name])
		}
		return taken, errors.Join(errs...)
	}
	first, err1 := e.takeNames(ctx, names[:len(names)/2])
	second, err2 := e.takeNames(ctx, names[len(names)/2:])
	return slices.Concat(taken, first, second), errors.Join(err1, err2)
}

// Flush takes a snapshot of a volume now, whether it is frozen or not, and returns
// when the replica `to` has acknowledged exactly it; with to "" as soon as it is
// taken. It waits as long as ctx.
func (e *Engine) Flush(ctx context.Context, id volume.ID, to volume.NodeID) (volume.Position, error) {
	var links []volume.NodeID
	if to != "" {
		links = []volume.NodeID{to}
	}
	return e.flush(ctx, id, links, true)
}

// Sync takes a snapshot of a volume now and returns when all its replicas have it. Of a
// frozen one it takes none, which is a conflict.
func (e *Engine) Sync(ctx context.Context, id volume.ID) error {
	e.mu.Lock()
	var links []volume.NodeID
	if a := e.table[id]; a != nil {
		links = a.Replicas
	}
	e.mu.Unlock()
	_, err := e.flush(ctx, id, links, false)
	return err
}

// lentFor is how long a snapshot that somebody has asked for stays at least once he has been told.
const lentFor = 30 * time.Second

// SyncTo takes a snapshot of a volume now and returns which, when these replicas have
// it. When they do not, until ctx ends, the snapshot is returned all the same. Of a frozen
// volume it takes none, which is a conflict. For lentFor the snapshot stays here, so that the
// caller can do what it was taken for.
func (e *Engine) SyncTo(ctx context.Context, id volume.ID, to []volume.NodeID) (volume.Position, error) {
	return e.flush(ctx, id, to, false)
}

func (e *Engine) flush(ctx context.Context, id volume.ID, to []volume.NodeID, final bool) (volume.Position, error) {
	s, waiting, err := e.takeNow(ctx, id, to, final)
	if err != nil {
		return volume.Position{}, err
	}
	defer e.unstop(id, s.guid)
	if !final {
		defer e.lend(id, s.guid) // before links need not stop at it any more
	}
	for _, l := range waiting {
		if err := l.await(ctx, s, final); err != nil {
			return s.pos, err
		}
	}
	return s.pos, nil
}

// takeNow takes a snapshot that links stop at. While the pool fails it is tried
// again until ctx ends.
func (e *Engine) takeNow(ctx context.Context, id volume.ID, to []volume.NodeID, final bool) (snap, []*link, error) {
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		waiting, known, err := e.linksTo(id, to, final)
		if err != nil {
			return snap{}, nil, err
		}
		if !known {
			err = e.see(ctx, id)
		}
		if err == nil {
			var taken map[volume.ID]snap
			taken, err = e.take(ctx, []volume.ID{id}, true, final)
			if s, ok := taken[id]; ok {
				return s, waiting, nil
			}
		}
		if errors.Is(err, zfs.ErrNotFound) {
			return snap{}, nil, volume.Errorf(volume.CodeNotFound, "volume %s has no dataset on this node", id)
		}
		if sleep(ctx, delay); ctx.Err() != nil {
			if err == nil {
				err = context.Cause(ctx)
			}
			return snap{}, nil, err
		}
	}
}

// linksTo finds the links to these replicas, and whether the copy is known, if a snapshot
// may be taken now.
func (e *Engine) linksTo(id volume.ID, to []volume.NodeID, final bool) (links []*link, known bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	a := e.table[id]
	if a == nil || a.Role != volume.RolePrimary {
		return nil, false, volume.Errorf(volume.CodeConflict, "this node is not the primary of volume %s", id)
	}
	if a.Frozen && !final {
		return nil, false, volume.Errorf(volume.CodeConflict, "volume %s is being moved or removed", id).WithHint("try again when that is over")
	}
	for _, replica := range to {
		l := e.links[linkKey{id, replica, a.Epoch}]
		if l == nil {
			return nil, false, volume.Errorf(volume.CodeInvalid, "node %s is not a replica of volume %s", replica.Short(), id)
		}
		links = append(links, l)
	}
	c := e.copies[id]
	return links, c != nil && c.known, nil
}

// see learns of one primary's dataset without waiting for a tick.
func (e *Engine) see(ctx context.Context, id volume.ID) error {
	d, err := e.cfg.Pool.Dataset(ctx, e.cfg.dataset(id))
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.copyOf(id).setDataset(d)
	e.mu.Unlock()
	return e.load(ctx, []volume.ID{id})
}

// lend keeps a snapshot from retention for a while.
func (e *Engine) lend(id volume.ID, g guid) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.copies[id]; c != nil {
		c.lent[g] = time.Now().Add(lentFor)
	}
}

func (e *Engine) unstop(id volume.ID, g guid) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.copies[id]; c != nil {
		if c.stops[g]--; c.stops[g] <= 0 {
			delete(c.stops, g)
		}
	}
}
