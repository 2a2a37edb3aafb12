package replicate

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// foundFor is how long what was found at the start is kept as snapshots for
// replicas that have not spoken yet; after that bookmarks must do.
const foundFor = 10 * time.Minute

// prunePause is the least time between two looks for what can be pruned.
const prunePause = 500 * time.Millisecond

func sortedBases(m map[volume.NodeID]base) []volume.NodeID { return slices.Sorted(maps.Keys(m)) }

// floor is the lowest position that a present replica has acknowledged; zero when
// none has. The caller holds mu.
func (e *Engine) floor(a *Assignment, c *localCopy, now time.Time) volume.Position {
	var floor volume.Position
	for _, replica := range a.Replicas {
		l := e.links[linkKey{a.Volume, replica, a.Epoch}]
		if l == nil || l.away(now) || l.acked.IsZero() {
			continue
		}
		if floor.IsZero() || l.acked.Compare(floor) < 0 {
			floor = l.acked
		}
	}
	return floor
}

// kept gathers what the retention of a copy goes by. The caller holds mu.
func (e *Engine) kept(id volume.ID, c *localCopy, now time.Time) kept {
	k := kept{snaps: c.snaps, marks: c.marks, stay: map[guid]bool{}, reachable: map[guid]bool{}}
	a := e.table[id]
	if a == nil || a.Role != volume.RolePrimary {
		k.floor = c.floor
		for _, g := range c.keep {
			k.reachable[g] = true
			if s, ok := c.find(g); ok && !c.floor.IsZero() && s.pos.Compare(c.floor) >= 0 {
				k.stay[g] = true
			}
		}
		return k
	}

	k.floor = e.floor(a, c, now)
	spoken := len(a.Replicas) > 0
	for _, replica := range a.Replicas {
		l := e.links[linkKey{id, replica, a.Epoch}]
		if l == nil {
			spoken = false
			continue
		}
		spoken = spoken && l.spoken
		for _, g := range []guid{l.from, l.to} {
			k.stay[g], k.reachable[g] = true, true
		}
		if b, ok := c.bases[replica]; ok && !l.away(now) {
			k.stay[b.guid] = true
		}
	}
	for _, b := range c.bases {
		k.reachable[b.guid] = true
	}
	for g := range c.stops {
		k.stay[g] = true
	}

	// As long as a replica has not said where it stands, it may stand on anything
	// that was here when this node became primary.
	if spoken {
		c.found = map[guid]bool{}
	}
	for g := range c.found {
		k.reachable[g] = true
		if now.Sub(c.since) < foundFor {
			k.stay[g] = true
		}
	}
	return k
}

// runPruner prunes primaries, one after the other; replicas prune as they receive.
func (e *Engine) runPruner(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.wakePruner:
		}
		e.mu.Lock()
		var ids []volume.ID
		for _, id := range sortedIDs(e.table) {
			if e.table[id].Role == volume.RolePrimary {
				ids = append(ids, id)
			}
		}
		e.mu.Unlock()
		for _, id := range ids {
			if ctx.Err() == nil {
				e.pruneCopy(ctx, id)
			}
		}
		sleep(ctx, prunePause) // every acknowledgement wakes it
	}
}

// pruneCopy does what keep says, once enough has come together: bookmarks first,
// then one destroy, then old bookmarks. What fails is left for later.
func (e *Engine) pruneCopy(ctx context.Context, id volume.ID) {
	e.mu.Lock()
	c := e.copies[id]
	if c == nil || !c.known || time.Now().Before(c.pruneAt) {
		e.mu.Unlock()
		return
	}
	p := keep(e.kept(id, c, time.Now()))
	if len(p.destroy) < pruneBatch && len(p.unmark) < pruneBatch {
		e.mu.Unlock()
		return
	}
	var names []string
	for _, s := range p.destroy {
		c.condemned[s.guid] = true
		names = append(names, s.name)
	}
	c.snaps = slices.DeleteFunc(slices.Clone(c.snaps), func(s snap) bool { return c.condemned[s.guid] })
	e.touch(c)
	e.mu.Unlock()

	err := e.carryOut(ctx, e.cfg.dataset(id), p, names)

	e.mu.Lock()
	clear(c.condemned)
	e.touch(c)
	if err != nil {
		c.known = false
		c.pruneAt = time.Now().Add(lastRetry)
	} else {
		c.notePruned(p)
	}
	e.mu.Unlock()
	if err == nil {
		e.emit(Pruned{Volume: id, Snapshots: len(p.destroy), Bookmarks: len(p.unmark)})
	}
	if ctx.Err() == nil {
		e.asked("prune", err)
	}
}

func (e *Engine) carryOut(ctx context.Context, name string, p pruning, snaps []string) error {
	for _, s := range p.mark {
		err := e.cfg.Pool.Bookmark(ctx, name+"@"+s.name, name+"#"+s.name)
		if err != nil && !errors.Is(err, zfs.ErrExists) {
			return err
		}
	}
	if len(snaps) > 0 {
		if err := e.cfg.Pool.DestroySnapshots(ctx, name, snaps); err != nil {
			return err
		}
	}
	for _, m := range p.unmark {
		if err := e.cfg.Pool.DestroyBookmark(ctx, name+"#"+m.name); err != nil {
			return err
		}
	}
	return nil
}

// notePruned brings the bookmarks up to date.
func (c *localCopy) notePruned(p pruning) {
	gone := map[string]bool{}
	for _, m := range p.unmark {
		gone[m.name] = true
	}
	marks := slices.DeleteFunc(slices.Clone(c.marks), func(m mark) bool { return gone[m.name] })
	for _, s := range p.mark {
		marks = append(marks, mark{name: s.name, guid: s.guid, txg: s.txg})
	}
	slices.SortStableFunc(marks, func(a, b mark) int { return compare(a.txg, b.txg) })
	c.marks = marks
}
