package replicate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// maxUnmarks bookmarks are destroyed in one pass: zfs takes one a command.
const maxUnmarks = 8

// maxDoomed snapshots are destroyed in one pass, so that the commands of a pass are no
// more than a few whatever the number of volumes. The next pass takes the rest.
const maxDoomed = 4 * zfs.PruneBatch

// maxAged of these may be aged, because few of them go in one command: what is taken each second
// must not pile up while a long history goes.
const maxAged = 2 * zfs.PruneAged

// agedAfter is how old the engine's snapshots are when they count as aged. Those in a
// steady state go within seconds; a minute is for a node that is behind.
const agedAfter = time.Minute

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

// needed are the guids that some replica stands on, or may stand on: it heard so,
// or it was sent them and has not said, or it has not said anything yet. The next
// primary must be able to send from them too. The caller holds mu.
func (e *Engine) needed(a *Assignment, c *localCopy) []guid {
	all := map[guid]bool{}
	for _, g := range c.footings() {
		all[g] = true
	}
	for _, replica := range a.Replicas {
		if l := e.links[linkKey{a.Volume, replica, a.Epoch}]; l != nil && l.to != 0 {
			all[l.to] = true
		}
	}
	for _, s := range c.snaps {
		all[s.guid] = all[s.guid] || s.engine() && c.found[s.guid]
	}
	for _, m := range c.marks {
		all[m.guid] = all[m.guid] || m.engine() && c.found[m.guid]
	}
	maps.DeleteFunc(all, func(_ guid, needed bool) bool { return !needed })
	list := slices.Sorted(maps.Keys(all))
	return list[:min(len(list), maxBases)]
}

// moorings are what all copies keep as snapshots, whatever the floor is: the anchors, and
// what those replicas stand on that are away and may come back, or were sent and have not
// acknowledged: they may have it, and be heard of never again. A bookmark of that would
// do to send them an increment; but one of them may be all that is left of its zone, and
// then it is the others that go back to what they have in common with it. The caller
// holds mu.
func (e *Engine) moorings(a *Assignment, c *localCopy, now time.Time) []guid {
	list := c.anchors()
	add := func(g guid) {
		if g != 0 && !slices.Contains(list, g) {
			list = append(list, g)
		}
	}
	for _, replica := range a.Replicas {
		l := e.links[linkKey{a.Volume, replica, a.Epoch}]
		if l == nil || l.gone(now) {
			continue
		}
		if l.to != l.top {
			add(l.to)
		}
		if b, ok := c.bases[replica]; ok && l.away(now) {
			add(b.guid)
			add(b.anchor)
		}
	}
	for _, s := range c.snaps {
		if s.engine() && c.found[s.guid] && e.awaited(c, now) {
			add(s.guid)
		}
	}
	return list[:min(len(list), maxBases)]
}

// awaited says that a replica which has not spoken since this node became primary may
// still come back into service. The caller holds mu.
func (e *Engine) awaited(c *localCopy, now time.Time) bool {
	return !e.room.spent() && now.Sub(c.since) < e.cfg.Replace()
}

// kept gathers what the retention of a copy goes by. The caller holds mu.
func (e *Engine) kept(id volume.ID, c *localCopy, now time.Time) kept {
	k := kept{snaps: c.snaps, marks: c.marks, dropped: c.dropped, stay: map[guid]bool{}, reachable: map[guid]bool{}}
	for _, some := range []map[guid]time.Time{c.balked, c.lent} {
		for g, until := range some {
			if now.Before(until) {
				k.stay[g] = true
			} else {
				delete(some, g)
			}
		}
	}
	if g := e.pins[id]; g != 0 {
		k.stay[g] = true
	}
	if e.cfg.Held != nil {
		for _, g := range e.cfg.Held(id) {
			k.stay[guid(g)] = true
		}
	}
	a := e.table[id]
	if a != nil {
		k.policy = a.Snapshots
		for _, g := range a.Stay {
			k.stay[guid(g)] = true
		}
	}
	if a == nil || a.Role != volume.RolePrimary {
		k.floor = c.floor
		for _, g := range c.keep {
			k.reachable[g] = true
			if s, ok := c.find(g); ok && !c.floor.IsZero() && s.pos.Compare(c.floor) >= 0 {
				k.stay[g] = true
			}
		}
		for _, g := range c.moored {
			k.stay[g], k.reachable[g] = true, true
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
		// The rest of a broken stream may be wanted; of a replica that is gone only where
		// much of it has arrived, or old snapshots would stay for as long as it is.
		for _, g := range []guid{l.from, l.to} {
			k.reachable[g] = true
			k.stay[g] = k.stay[g] || !l.gone(now) || l.saved+l.sent > longStream
		}
		if b, ok := c.bases[replica]; ok && !l.away(now) {
			k.stay[b.guid], k.stay[b.before] = true, true
		}
	}
	e.weigh(a, c, now) // with nobody there any more there is no offer that would
	for _, g := range c.footings() {
		k.reachable[g] = true
	}
	for _, g := range e.moorings(a, c, now) {
		k.stay[g], k.reachable[g] = true, true
	}
	for g := range c.removed {
		k.reachable[g] = true
	}
	for g := range c.stops {
		k.stay[g] = true
	}

	// As long as a replica has not said where it stands, it may stand on anything
	// that was here when this node became primary. And until there is an anchor, what two
	// replicas have in common may be anything of it, though neither stands there.
	if spoken && (len(a.Replicas) < 2 || c.anchor != 0) {
		c.found = map[guid]bool{}
	}
	for g := range c.found {
		k.reachable[g] = true
		if e.awaited(c, now) {
			k.stay[g] = true
		}
	}
	return k
}

// runPruner prunes the copies of this node whenever there may be something to do.
func (e *Engine) runPruner(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.wakePruner:
		}
		err := e.prune(ctx)
		if ctx.Err() != nil {
			return
		}
		e.asked("prune", err)
		sleep(ctx, prunePause) // every acknowledgement wakes it
	}
}

// doomed is a snapshot to be destroyed, and the bookmark to leave of it.
type doomed struct {
	volume volume.ID
	snap   snap
	mark   string // "": none
}

// unmarked is a bookmark to be destroyed.
type unmarked struct {
	volume volume.ID
	mark   mark
}

// prune is one pass over all copies: as soon as one of them is ripe, what all of
// them have in excess goes, up to maxDoomed. A copy that is being received into is
// pruned too: what goes is never its newest, which alone a stream needs.
func (e *Engine) prune(ctx context.Context) error {
	if err := acquire(ctx, e.pruning); err != nil {
		return err
	}
	defer release(e.pruning)
	// Nothing of a copy goes before what came since has been seen on its disk.
	e.mu.Lock()
	now := time.Now()
	planned, rest := portionOf(e.plans(now), maxDoomed, maxAged, func(id volume.ID, s snap) bool { return e.aged(id, s, now) })
	e.mu.Unlock()
	if err := e.readBack(ctx, sortedIDs(planned)); err != nil {
		return err
	}
	list, marks := e.excess(planned, time.Now())
	failed, err := e.destroy(ctx, list)
	if err != nil {
		return err
	}
	if rest {
		wake(e.wakePruner)
	}
	for _, d := range list {
		// One that is held, cloned or in use stays for a while, without a word.
		if why := failed[e.cfg.dataset(d.volume)+"@"+d.snap.name]; why != nil && !stays(why) {
			err = why
		}
	}
	for _, u := range marks {
		if gone := e.unmark(ctx, u); gone != nil {
			err = gone
		}
	}
	return err
}

// portionOf is what of the plans one pass carries out, and whether there is a rest: at most so
// many snapshots, of them at most so many aged ones. The copies that have most in excess come
// first, so none is left out for ever; of one that has more than all that fits, the oldest go.
func portionOf(plans map[volume.ID]pruning, most, mostAged int, aged func(volume.ID, snap) bool) (portion map[volume.ID]pruning, rest bool) {
	ids := sortedIDs(plans)
	slices.SortStableFunc(ids, func(a, b volume.ID) int { return len(plans[b].destroy) - len(plans[a].destroy) })
	portion = map[volume.ID]pruning{}
	for _, id := range ids {
		p := plans[id]
		var fits []snap
		for _, s := range p.destroy {
			if old := aged(id, s); most > 0 && (!old || mostAged > 0) {
				if most--; old {
					mostAged--
				}
				fits = append(fits, s)
			}
		}
		left := len(p.destroy) - len(fits)
		rest = rest || left > 0
		if len(fits) == 0 && left > 0 {
			continue
		}
		p.destroy = fits
		portion[id] = p
	}
	return portion, rest
}

// aged says that what is to be read to destroy a snapshot may be on disk alone: of the engine's
// when it was not taken lately, and of all that stay for people. A replica goes by the clock
// of its primary, which is what snapshots were taken by. The caller holds mu.
func (e *Engine) aged(id volume.ID, s snap, now time.Time) bool {
	a, c := e.table[id], e.copies[id]
	if c == nil || !s.engine() {
		return true
	}
	if a == nil || a.Role != volume.RolePrimary {
		now = c.newest().pos.Taken
		if c.completeAsOf.After(now) {
			now = c.completeAsOf
		}
	}
	return now.Sub(s.pos.Taken) > agedAfter
}

// excess is what copies have too much, once one of them is ripe, by plans of a moment ago:
// what has come since has not been read, so nothing older goes for it. What is to
// be destroyed is condemned.
func (e *Engine) excess(planned map[volume.ID]pruning, now time.Time) (list []doomed, marks []unmarked) {
	e.mu.Lock()
	defer e.mu.Unlock()
	plans := e.plans(now)
	for _, id := range sortedIDs(plans) {
		before, ok := planned[id]
		if !ok {
			continue
		}
		p := plans[id]
		p.destroy = slices.DeleteFunc(p.destroy, func(s snap) bool {
			return !slices.ContainsFunc(before.destroy, func(b snap) bool { return b.guid == s.guid })
		})
		list = append(list, e.condemn(id, e.copies[id], p.destroy, p.mark, false)...)
		for _, m := range p.unmark {
			if len(marks) < maxUnmarks {
				marks = append(marks, unmarked{id, m})
			}
		}
	}
	return list, marks
}

// plans are what is to be pruned of each copy; nil unless one of them is ripe. The caller
// holds mu.
func (e *Engine) plans(now time.Time) map[volume.ID]pruning {
	ripe := false
	for id, c := range e.copies {
		ripe = ripe || e.pruned(id, c, now) && c.excessive(e.table[id].Snapshots)
	}
	if !ripe {
		return nil
	}
	ripe = false
	plans := map[volume.ID]pruning{}
	for id, c := range e.copies {
		if !e.pruned(id, c, now) {
			continue
		}
		if p := keep(e.kept(id, c, now)); len(p.destroy)+len(p.unmark) > 0 {
			plans[id], ripe = p, ripe || p.ripe()
		}
	}
	if !ripe {
		return nil
	}
	return plans
}

// pruned says that retention may touch this copy now. A replica's must be in step
// with its primary first: what a returning primary has in common with its successor
// may be older than its own newest. The caller holds mu.
func (e *Engine) pruned(id volume.ID, c *localCopy, now time.Time) bool {
	a := e.table[id]
	return a != nil && c.known && !now.Before(c.pruneAt) && (a.Role == volume.RolePrimary || c.inStep == a.Epoch)
}

// excessive is false when a glance tells that there is nothing worth a command.
func (c *localCopy) excessive(policy volume.SnapshotPolicy) bool {
	engine := 0
	for _, s := range c.snaps {
		switch {
		case s.engine():
			engine++
		case c.dropped[s.guid]:
			return true
		}
	}
	if engine >= keepNewest+pruneBatch || len(c.marks) >= keepBookmarks+pruneBatch {
		return true
	}
	for _, r := range policy {
		n := 0
		for _, s := range c.snaps {
			if s.rule == r.Every {
				n++
			}
		}
		if n > r.Keep {
			return true
		}
	}
	return false
}

// condemn takes snapshots out of what is known of a copy: from now on nothing is
// sent from them. Those in mark leave a bookmark, a tombstone when they are removed.
// The caller holds mu and has e.pruning.
func (e *Engine) condemn(id volume.ID, c *localCopy, destroy, mark []snap, removed bool) []doomed {
	c.condemned = map[guid]bool{}
	leave := map[guid]bool{}
	for _, s := range mark {
		leave[s.guid] = true
	}
	var list []doomed
	for _, s := range destroy {
		d := doomed{volume: id, snap: s}
		if leave[s.guid] {
			d.mark = c.markName(s, removed || c.dropped[s.guid])
		}
		c.condemned[s.guid] = true
		list = append(list, d)
	}
	rest, carried := make([]snap, 0, len(c.snaps)), int64(0)
	for _, s := range c.snaps {
		if c.condemned[s.guid] {
			carried += s.written // the next one has it now
			continue
		}
		s.written, carried = s.written+carried, 0
		rest = append(rest, s)
	}
	c.snaps, c.written = rest, c.written+carried
	e.touch(c)
	return list
}

// markName is what the bookmark of a snapshot is called: after it, unless people gave
// the name twice; "" when there is one already.
func (c *localCopy) markName(s snap, removed bool) string {
	name := s.name
	switch {
	case s.engine():
	case removed:
		name = tombstone + s.name
	default:
		name = footprint + s.name
	}
	taken := false
	for _, m := range c.marks {
		if m.guid == s.guid && m.ours() && (m.tombstone() || !removed) {
			return ""
		}
		taken = taken || m.name == name
	}
	if taken {
		name = fmt.Sprintf("%s-%x", name, uint64(s.guid))
	}
	return name
}

// destroy destroys what was condemned, as many in one command as the pool is quick with, and takes
// over what came of it. Failed are those that stay, by full name; with err nothing
// is certain. The caller has e.pruning.
func (e *Engine) destroy(ctx context.Context, list []doomed) (failed map[string]error, err error) {
	if len(list) == 0 {
		return nil, nil
	}
	began := time.Now()
	reqs := make([]zfs.PruneRequest, len(list))
	e.mu.Lock()
	for i, d := range list {
		reqs[i] = zfs.PruneRequest{Snapshot: e.cfg.dataset(d.volume) + "@" + d.snap.name, Bookmark: d.mark, Aged: e.aged(d.volume, d.snap, began)}
	}
	e.mu.Unlock()
	failed, err = e.cfg.Pool.Prune(ctx, reqs)
	done := Pruned{}
	copies := map[volume.ID]bool{}
	e.mu.Lock()
	for i, d := range list {
		c := e.copies[d.volume]
		if c == nil {
			continue
		}
		e.touch(c)
		switch why := failed[reqs[i].Snapshot]; {
		case err != nil:
			delete(c.condemned, d.snap.guid)
			c.known = false
			c.pruneAt = time.Now().Add(lastRetry)
		case why != nil:
			delete(c.condemned, d.snap.guid)
			c.restore(d.snap)
			if stays(why) {
				c.balked[d.snap.guid] = time.Now().Add(e.cfg.Audit)
			} else {
				c.pruneAt = time.Now().Add(lastRetry)
			}
		default:
			done.Snapshots++
			copies[d.volume] = true
			c.bury(d)
		}
	}
	e.mu.Unlock()
	if done.Copies, done.Took = len(copies), time.Since(began); done.Copies > 0 {
		e.emit(done)
	}
	return failed, err
}

// stays says that a snapshot cannot be destroyed as long as something else is so.
func stays(why error) bool {
	return errors.Is(why, zfs.ErrBusy) || errors.Is(why, zfs.ErrInvalid) || errors.Is(why, zfs.ErrHasClones)
}

// restore takes back a snapshot that could not be destroyed.
func (c *localCopy) restore(s snap) {
	c.snaps = append(slices.Clone(c.snaps), s)
	slices.SortStableFunc(c.snaps, func(a, b snap) int { return compare(a.txg, b.txg) })
}

// bury notes that a snapshot is gone, and its bookmark there.
func (c *localCopy) bury(d doomed) {
	if d.mark == "" {
		return
	}
	c.marks = append(slices.Clone(c.marks), mark{name: d.mark, guid: d.snap.guid, txg: d.snap.txg})
	slices.SortStableFunc(c.marks, func(a, b mark) int { return compare(a.txg, b.txg) })
	if strings.HasPrefix(d.mark, tombstone) {
		c.burials++
	}
}

// unmark destroys one bookmark.
func (e *Engine) unmark(ctx context.Context, u unmarked) error {
	err := e.cfg.Pool.DestroyBookmark(ctx, e.cfg.dataset(u.volume)+"#"+u.mark.name)
	e.mu.Lock()
	c := e.copies[u.volume]
	if c != nil {
		e.touch(c)
		c.marks = slices.DeleteFunc(slices.Clone(c.marks), func(m mark) bool { return m.name == u.mark.name })
		if err != nil {
			c.known = false
			c.pruneAt = time.Now().Add(lastRetry)
		}
	}
	e.mu.Unlock()
	if err == nil && c != nil {
		e.emit(Pruned{Copies: 1, Bookmarks: 1})
	}
	return err
}
