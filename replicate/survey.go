package replicate

import (
	"context"
	"errors"
	"maps"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// survey reads everything from disk, in three commands, and finishes what was left
// half done. When the pool cannot be asked, what is known stays as it is.
func (e *Engine) survey(ctx context.Context) error {
	e.mu.Lock()
	since := e.changes
	e.mu.Unlock()
	asked := time.Now()
	datasets, err := e.cfg.Pool.Datasets(ctx, e.cfg.Root)
	var snaps []zfs.Snapshot
	var marks []zfs.Bookmark
	if err == nil {
		snaps, err = e.cfg.Pool.Snapshots(ctx, e.cfg.Root, true)
	}
	if err == nil {
		marks, err = e.cfg.Pool.Bookmarks(ctx, e.cfg.Root, true)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	e.asked("read the pool", err)
	if err != nil {
		return err
	}

	e.noteDatasets(datasets, since, asked)
	bySnap, byMark := groupSnapshots(snaps), groupBookmarks(marks)
	var passed []SnapshotPassed
	e.mu.Lock()
	for id, c := range e.copies {
		if c.changed > since || e.receives[id] != nil {
			continue
		}
		name, before := e.cfg.dataset(id), c.snaps
		c.setSnapshots(bySnap[name])
		if c.known {
			passed = append(passed, e.overtaken(id, c, before)...)
		}
		c.setBookmarks(byMark[name])
		c.known = true
		c.remember(asked)
	}
	left := sortedIDs(e.leftover)
	e.mu.Unlock()
	for _, ev := range passed {
		e.emit(ev)
	}
	for _, id := range left {
		e.tidyLeftover(ctx, id)
	}
	e.mu.Lock()
	e.surveyed = true
	e.mu.Unlock()
	return nil
}

// overtaken are the snapshots of a primary's copy that this node did not know of before
// this listing, and that came too late for a replica: it stands on a newer one, and ZFS
// adds nothing below that. The caller holds mu.
func (e *Engine) overtaken(id volume.ID, c *localCopy, before []snap) (list []SnapshotPassed) {
	a := e.table[id]
	if a == nil || a.Role != volume.RolePrimary {
		return nil
	}
	met := make(map[guid]bool, len(before))
	for _, s := range before {
		met[s.guid] = true
	}
	for _, s := range c.snaps {
		if s.engine() || met[s.guid] {
			continue
		}
		for _, replica := range a.Replicas {
			l := e.links[linkKey{id, replica, a.Epoch}]
			if l == nil {
				continue
			}
			if _, txg := c.place(l.top); txg > s.txg {
				list = append(list, SnapshotPassed{Volume: id, Replica: replica, Name: s.name, Late: true})
			}
		}
	}
	return list
}

// noteDatasets takes over a listing of the datasets that was asked for at `asked`,
// when e.changes was since. Copies that we changed meanwhile, or are receiving
// into, are left as they are.
func (e *Engine) noteDatasets(list []zfs.Dataset, since uint64, asked time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.listing++
	leftover := map[volume.ID]bool{}
	e.room = room{at: asked}
	for _, d := range list {
		if d.Volume {
			continue // nothing of ours, whatever it is called
		}
		k, id, _ := e.cfg.parse(d.Name)
		if d.Name == e.cfg.Root {
			e.room.free = d.Available
			e.room.size += d.Available
		} else {
			e.room.size += d.Used
		}
		switch k {
		case kindSeed, kindFork:
			leftover[id] = true
		case kindCopy:
			c := e.copyOf(id)
			c.seen = e.listing
			if c.changed <= since && e.receives[id] == nil {
				c.setDataset(d)
				c.listed = asked
				c.noteIdle(asked, e.cfg.Settle, e.cfg.Dirty != nil)
			}
		}
	}
	for id, c := range e.copies {
		if c.seen != e.listing && c.changed <= since && e.receives[id] == nil {
			delete(e.copies, id)
		}
	}
	for id := range e.leftover {
		if e.receives[id] != nil || e.begun[id] > since {
			leftover[id] = true // it may have come after the listing
		}
	}
	e.leftover = leftover
	maps.DeleteFunc(e.begun, func(_ volume.ID, at uint64) bool { return at <= since })
	for op := range e.failing {
		if id, ok := strings.CutPrefix(op, finishing); ok && !leftover[volume.ID(id)] {
			delete(e.failing, op) // there is nothing to finish any more
		}
	}
}

// recent is how old a look at a copy may be to decide by it: two ticks at their
// slowest, or two listings where those take longer. Otherwise each idle replica would cost
// looks of its own just where listings take long already, and they would never be quick again.
// The caller holds mu.
func (e *Engine) recent() time.Duration {
	return max(2*maxTick, 2*(e.listEvery()+e.listTook))
}

// remembered is how a copy stands by the last look at it, by itself or in a listing
// of all. ok is false unless that is recent and nothing was done to the copy since
// but to receive into it what was then found there. It spares idle volumes a command
// whenever their replicas are asked what they hold, and busy ones one a stream. What
// it may have missed, zfs refuses.
func (e *Engine) remembered(id volume.ID, now time.Time) (s standing, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.copies[id]
	if c == nil || !c.known || e.blind || e.leftover[id] || c.listed.IsZero() || now.Sub(c.listed) > e.recent() {
		return standing{}, false
	}
	return standing{exists: true, mounted: c.mounted, token: c.token, epoch: c.epoch, badEpoch: c.badEpoch,
		snaps: c.snaps, modified: c.modified, line: c.line, written: c.written != 0}, true
}

// doubt forgets the last look at a copy, which is about to be received into, and
// returns what believes it again, when all that was sent is there.
func (e *Engine) doubt(id volume.ID) (trust func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.copies[id]
	if c == nil {
		return func() {}
	}
	listed := c.listed
	c.listed = time.Time{}
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.copies[id] == c {
			c.listed, c.token = listed, ""
		}
	}
}

// noteIdle moves idleAsOf on when nothing was written since the newest snapshot.
// `written` is trusted for what was written a settling time before it was asked.
func (c *localCopy) noteIdle(asked time.Time, settle time.Duration, hinted bool) {
	top := c.top()
	if !top.engine() || c.written != 0 || hinted && c.counter != c.baseline {
		return
	}
	if t := asked.Add(-settle); t.After(top.pos.Taken) && t.After(c.idleAsOf) {
		c.idleAsOf = t
	}
}

// load lists the snapshots of these copies again, and their bookmarks when they
// were not known. For more than two of them everything is listed at once, so that
// the number of commands does not grow with that of volumes.
func (e *Engine) load(ctx context.Context, ids []volume.ID) error {
	if len(ids) == 0 {
		return nil
	}
	e.mu.Lock()
	since, unknown := e.changes, false
	for _, id := range ids {
		if c := e.copies[id]; c != nil && !c.known {
			unknown = true
		}
	}
	e.mu.Unlock()

	var snaps []zfs.Snapshot
	var marks []zfs.Bookmark
	var err error
	list := func(root string, recursive bool) error {
		s, err := e.cfg.Pool.Snapshots(ctx, root, recursive)
		if err != nil {
			return err
		}
		snaps = append(snaps, s...)
		if unknown {
			m, err := e.cfg.Pool.Bookmarks(ctx, root, recursive)
			if err != nil {
				return err
			}
			marks = append(marks, m...)
		}
		return nil
	}
	if len(ids) > 2 {
		err = list(e.cfg.Root, true)
	} else {
		for _, id := range ids {
			if err == nil {
				err = list(e.cfg.dataset(id), false)
			}
		}
	}

	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil {
		for _, id := range ids {
			if c := e.copies[id]; c != nil {
				c.known = false
			}
		}
		return err
	}
	bySnap, byMark := groupSnapshots(snaps), groupBookmarks(marks)
	for _, id := range ids {
		c := e.copies[id]
		if c == nil {
			continue
		}
		if c.changed > since {
			c.known = false // somebody else was at it; the next load tells
			continue
		}
		name := e.cfg.dataset(id)
		c.setSnapshots(bySnap[name])
		if unknown {
			c.setBookmarks(byMark[name])
			c.known = true
			c.remember(time.Now())
			e.wakeVolume(id)
		}
	}
	return nil
}

func groupSnapshots(list []zfs.Snapshot) map[string][]zfs.Snapshot {
	by := map[string][]zfs.Snapshot{}
	for _, s := range list {
		by[s.Dataset] = append(by[s.Dataset], s)
	}
	return by
}

func groupBookmarks(list []zfs.Bookmark) map[string][]zfs.Bookmark {
	by := map[string][]zfs.Bookmark{}
	for _, b := range list {
		by[b.Dataset] = append(by[b.Dataset], b)
	}
	return by
}

// finishing names the operation on what was left of one volume.
const finishing = "finish what was left of "

// tidyLeftover finishes what a crash left of one volume, or throws away what a
// first copy left of one that is not assigned here any more, unless it is being
// received right now.
func (e *Engine) tidyLeftover(ctx context.Context, id volume.ID) {
	e.mu.Lock()
	how := tidyCrash
	if e.assigned && e.table[id] == nil {
		how = tidyOrphan
	}
	rctx, release, ok := e.claim(ctx, id, 0, "")
	e.mu.Unlock()
	if !ok {
		return
	}
	defer release()
	_, err := e.tidy(rctx, id, how)
	if ctx.Err() == nil {
		e.asked(finishing+string(id), err)
	}
}

// tidying is how far tidy goes.
type tidying string

const (
	tidyCrash  tidying = "crash"  // go on where a crash interrupted; a partial stream stays
	tidyOrphan tidying = "orphan" // the volume is not assigned here: no first copy is wanted
	tidyAll    tidying = "all"    // nothing is received any more: partial streams go
)

// tidy finishes a set-aside that was cut short, and gives a complete seed its
// place, and returns how the copy stands then. The caller has claimed the volume.
func (e *Engine) tidy(ctx context.Context, id volume.ID, how tidying) (standing, error) {
	for range maxSteps {
		s, err := e.look(ctx, id, true)
		if err != nil {
			return s, err
		}
		st, more := tidyStep(s, how)
		if !more {
			return s, nil
		}
		if err := e.perform(ctx, id, st, 0, nil); err != nil {
			return s, err
		}
	}
	return standing{}, errors.New("the leftovers of a volume do not go away")
}

// tidyStep is the next thing to do about leftovers; more is false when there are
// none.
func tidyStep(s standing, how tidying) (st step, more bool) {
	if s.fork {
		return step{act: actFork, reason: interrupted}, true
	}
	for _, seed := range s.seeds {
		complete := seed.token == "" && len(seed.snaps) > 0
		switch {
		case how == tidyOrphan:
			return clearSeed(seed), true
		case complete && !s.exists:
			return step{act: actAdoptSeed, epoch: seed.epoch}, true
		case how == tidyAll || s.exists || !complete && seed.token == "":
			return clearSeed(seed), true
		}
	}
	if how == tidyAll && s.token != "" {
		return step{act: actAbort, reason: "nothing is received any more"}, true
	}
	return step{}, false
}
