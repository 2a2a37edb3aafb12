package replicate

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/flocker-io/flocker/internal/volume"
)

// A rollback makes the volume go on from one of its snapshots, in a new epoch: it is a fork
// that is wanted. What is undone is set aside by the primary before it writes anything in that
// epoch, and by the replicas when it offers them something: to them it is a primary that
// lacks what they have.

// backSpace is what has to be free, or a share of a small pool, so that a volume can go back: a
// clone and some properties. It is little, since people go back because of a disk that fills.
const backSpace = 16 << 20

// Pin makes sure that this node's copy of a volume has the snapshot with this guid, and has
// retention leave it until Unpin or GoBack. What is being destroyed already is seen to be
// gone: that is CodeNotFound. Where the pool has no room to go back it is CodeRefused. After an
// error nothing is pinned. One snapshot of each volume can be pinned, in memory only. It returns
// the newest of the engine's snapshots at or before the pinned one, zero when there is none.
func (e *Engine) Pin(ctx context.Context, id volume.ID, g uint64) (base volume.Position, err error) {
	defer func() {
		if err != nil {
			e.Unpin(id)
		}
	}()
	e.mu.Lock()
	e.pins[id] = guid(g)
	e.mu.Unlock()
	// A pass of the pruner that did not see the pin may be under way.
	if err := acquire(ctx, e.pruning); err != nil {
		return base, err
	}
	release(e.pruning)
	d, err := e.cfg.Pool.Dataset(ctx, e.cfg.Root)
	if err != nil {
		return base, err
	}
	if least := min(backSpace, (d.Available+d.Used)/64); d.Available < least {
		return base, volume.Errorf(volume.CodeRefused, "the pool has %s free, and to set aside what is undone takes some (%s)", volume.RoughSize(d.Available), volume.RoughSize(least)).
			WithHint("free some, on the primary's pool")
	}
	list, err := e.listed(ctx, id)
	if err != nil {
		return base, err
	}
	var c localCopy
	c.setSnapshots(list)
	for _, s := range c.snaps {
		if s.engine() {
			base = s.pos
		}
		if s.guid == guid(g) {
			return base, nil
		}
	}
	return volume.Position{}, volume.Errorf(volume.CodeNotFound, "the copy of volume %s on its primary has no snapshot with guid %d any more", id, g)
}

// Unpin undoes Pin.
func (e *Engine) Unpin(id volume.ID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.pins, id)
}

// GoBack puts this node's copy of a volume, whose primary it is about to be at this epoch, on
// the line that a rollback began: what the copy holds beyond the snapshot, with what was
// written into it since its newest one, is set aside whole, in constant time and space. A copy
// that is on the line is left as it is, whatever was written to it there. It blocks until that
// is done, and may be called again, also after a crash. Nothing may have the copy mounted.
func (e *Engine) GoBack(ctx context.Context, id volume.ID, epoch volume.Epoch, line volume.Line, props map[string]string) error {
	err := e.claimed(ctx, id, func(ctx context.Context) error {
		s, err := e.tidy(ctx, id, tidyAll)
		if err != nil {
			return err
		}
		if !s.exists {
			return noCopy(id)
		}
		name := e.cfg.dataset(id)
		d, err := e.cfg.Pool.Dataset(ctx, name)
		if err != nil {
			return err
		}
		marked, err := line.Marked(id, d.User[propLine])
		if err != nil {
			return fmt.Errorf("the property %s of %s: %w", propLine, name, err)
		}
		how := goBack(s.snaps, d.Written != 0, marked, line)
		switch {
		case how == goneBack:
			return nil
		case how == goLost:
			return volume.Errorf(volume.CodeRefused, "the copy of volume %s on this node lacks the snapshot %s that the volume was rolled back to", id, line.Snapshot).
				WithHint("another node may have it")
		case d.Mounted:
			return volume.Errorf(volume.CodeConflict, "%s is mounted, so it cannot be rolled back", name)
		}
		mark := map[string]string{propLine: line.Mark(id)}
		if how == goMark {
			e.distrust(id)
			return e.cfg.Pool.SetProperties(ctx, name, mark)
		}
		maps.Copy(mark, props)
		// After a crash somebody else may finish it, who does not know what it is for.
		if _, err := e.noteAside(ctx, name, Undone(line)); err != nil {
			return err
		}
		// The fork has the mark from its beginning: once it is the copy, what is written to it
		// is never taken for what was undone.
		return e.perform(ctx, id, step{act: actFork, common: guid(line.GUID), reason: Undone(line)}, epoch, mark)
	})
	if err == nil {
		e.Unpin(id)
	}
	return err
}

// goingBack is what has to be done to a copy so that it is on a line.
type goingBack string

const (
	goneBack goingBack = "nothing" // it is on it
	goMark   goingBack = "mark"    // it holds the snapshot and nothing beyond
	goFork   goingBack = "fork"    // what it holds beyond is to be set aside
	goLost   goingBack = "lost"    // it does not have the snapshot
)

// goBack decides it, from the copy's snapshots in their order, whether it was changed since
// the newest of them, and whether it is marked to be on the line.
func goBack(snaps []snap, written, marked bool, line volume.Line) goingBack {
	if marked || onLine(snaps, line) {
		return goneBack
	}
	for i, s := range snaps {
		switch {
		case s.guid != guid(line.GUID):
		case i == len(snaps)-1 && !written:
			return goMark
		default:
			return goFork
		}
	}
	return goLost
}

// onLine says that the engine has taken a snapshot of a copy on a line: only its primaries
// take any in such epochs. One that has none yet may still be on it.
func onLine(snaps []snap, line volume.Line) bool {
	for _, s := range snaps {
		if s.engine() && s.pos.Epoch >= line.Epoch {
			return true
		}
	}
	return false
}

// Undone is the reason of what is set aside for a rollback.
func Undone(line volume.Line) string {
	return "the volume was rolled back to its snapshot " + line.Snapshot + ", and this is what was undone"
}

// reasonFor is why a copy is set aside that is not on the line. Only what ends in the epoch that
// was rolled back is surely what was undone: in an earlier one it may also be the tail of a
// primary that was lost before, which nobody wanted to undo.
func reasonFor(reason string, snaps []snap, line volume.Line) string {
	c := localCopy{snaps: snaps}
	if newest := c.newest(); newest.guid != 0 && newest.pos.Epoch.Next() == line.Epoch {
		return Undone(line)
	}
	return reason + "; since it was written to, the volume was rolled back to its snapshot " + line.Snapshot
}

// joins says that a replica's copy is on its primary's line, of which nothing else would tell: it
// has the snapshot that the volume went back to, it stands on one that the primary has, and nothing
// was written to it since. People's snapshots have no epoch, so one that has only those of the line,
// because it is catching up, could not be told from what was undone once the primary is lost.
func (s standing) joins(id volume.ID, o offer, line volume.Line) bool {
	// Of one that is mounted nobody knows what is written to it in this moment.
	if !s.exists || s.mounted || s.written || s.modified || len(s.snaps) == 0 || o.Epoch < line.Epoch || onLine(s.snaps, line) {
		return false
	}
	// What cannot be read was not made here, and is not overwritten.
	if marked, err := line.Marked(id, s.line); marked || err != nil {
		return false
	}
	have := s.snaps[len(s.snaps)-1].guid
	return holdsUpTo(s.snaps, have, line) && (have == guid(o.Newest.GUID) || slices.Contains(o.Bases, have))
}

// holdsUpTo says that a copy which ends at one of its snapshots has the one that the volume went
// back to.
func holdsUpTo(snaps []snap, end guid, line volume.Line) bool {
	if line.IsZero() {
		return false
	}
	for _, s := range snaps {
		if s.guid == guid(line.GUID) {
			return true
		}
		if s.guid == end {
			break
		}
	}
	return false
}

// mark writes down that a copy is on a line. The caller has claimed the volume.
func (e *Engine) mark(ctx context.Context, id volume.ID, line volume.Line) error {
	if err := e.cfg.Pool.SetProperties(ctx, e.cfg.dataset(id), map[string]string{propLine: line.Mark(id)}); err != nil {
		return fmt.Errorf("marking the copy of volume %s: %w", id, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.copies[id]; c != nil {
		e.touch(c)
		c.line = line.Mark(id)
	}
	return nil
}

// ofLine are the properties of what a copy becomes once what it has beyond one of its snapshots
// is set aside for the primary's sake: if that is on the line, from the beginning.
func ofLine(id volume.ID, props map[string]string, st step, s standing, o offer, line volume.Line) map[string]string {
	if st.act != actFork || st.common == 0 || o.Epoch < line.Epoch || !holdsUpTo(s.snaps, st.common, line) {
		return props
	}
	out := map[string]string{propLine: line.Mark(id)}
	maps.Copy(out, props)
	return out
}

// lineOf is where a volume was last rolled back, by its assignment. The caller holds mu.
func (e *Engine) lineOf(id volume.ID) volume.Line {
	if a := e.table[id]; a != nil {
		return a.Line
	}
	return volume.Line{}
}
