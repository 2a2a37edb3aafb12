package replicate

import (
	"context"
	"fmt"
	"maps"

	"github.com/flocker-io/flocker/internal/volume"
)

// A rollback makes the volume go on from one of its snapshots, in a new epoch: it is a fork
// that is wanted. What is undone is set aside by the primary before it writes anything in that
// epoch, and by the replicas when it offers them something: to them it is a primary that
// lacks what they have.

// Pin makes sure that this node's copy of a volume has the snapshot with this guid, and has
// retention leave it until Unpin or GoBack. What is being destroyed already is seen to be
// gone: that is CodeNotFound. One snapshot of each volume can be pinned, in memory only.
func (e *Engine) Pin(ctx context.Context, id volume.ID, g uint64) error {
	e.mu.Lock()
	e.pins[id] = guid(g)
	e.mu.Unlock()
	// A pass of the pruner that did not see the pin may be under way.
	if err := acquire(ctx, e.pruning); err != nil {
		return err
	}
	release(e.pruning)
	list, err := e.listed(ctx, id)
	if err != nil {
		return err
	}
	for _, z := range list {
		if z.GUID == g {
			return nil
		}
	}
	e.Unpin(id)
	return volume.Errorf(volume.CodeNotFound, "the copy of volume %s on its primary has no snapshot with guid %d any more", id, g)
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
		own := volume.Epoch(0)
		if text := d.User[propLine]; text != "" {
			if own, err = volume.ParseEpoch(text); err != nil {
				return fmt.Errorf("the property %s of %s: %w", propLine, name, err)
			}
		}
		how := goBack(s.snaps, d.Written != 0, own, line)
		switch {
		case how == goneBack:
			return nil
		case how == goLost:
			return volume.Errorf(volume.CodeRefused, "the copy of volume %s on this node lacks the snapshot %s that the volume was rolled back to", id, line.Snapshot).
				WithHint("another node may have it")
		case d.Mounted:
			return volume.Errorf(volume.CodeConflict, "%s is mounted, so it cannot be rolled back", name)
		}
		marked := map[string]string{propLine: line.Epoch.String()}
		if how == goMark {
			e.distrust(id)
			return e.cfg.Pool.SetProperties(ctx, name, marked)
		}
		maps.Copy(marked, props)
		// After a crash somebody else may finish it, who does not know what it is for.
		if _, err := e.noteAside(ctx, name, Undone(line)); err != nil {
			return err
		}
		// The fork has the mark from its beginning: once it is the copy, what is written to it
		// is never taken for what was undone.
		return e.perform(ctx, id, step{act: actFork, common: guid(line.GUID), reason: Undone(line)}, epoch, marked)
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
// the newest of them, and the line that it was marked with.
func goBack(snaps []snap, written bool, own volume.Epoch, line volume.Line) goingBack {
	if own >= line.Epoch || onLine(snaps, line) {
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
