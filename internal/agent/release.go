package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
	"github.com/flocker-io/flocker/zfs"
)

// errKept says why a volume is not given up.
type errKept struct {
	reason string
	by     []volume.Holder // as far as they are known
}

func (e *errKept) Error() string { return e.reason }

func inUse(by string) *errKept { return &errKept{reason: "it is in use by " + by} }

// starts says that it is in use by containers that have just been started, or are about to run: in a moment
// it is known who goes along.
func (e *errKept) starts() bool {
	return len(e.by) > 0 && !slices.ContainsFunc(e.by, func(h volume.Holder) bool { return !h.Starting && !h.Follows })
}

// runs is starts, and all of them run by now.
func (e *errKept) runs() bool {
	return e.starts() && !slices.ContainsFunc(e.by, func(h volume.Holder) bool { return h.Starting })
}

// letGo unmounts the volume if nobody uses it, and makes sure that it is unmounted.
// In the phases in which it is called Mount refuses, so it stays unmounted.
// *errKept: it is in use, or may be, or there is nothing to give. hurried: clients may wait, so what
// was mounted at the last look is unmounted without asking once more: if it is not mounted by now
// that does nothing, and if it is gone that says so.
func (a *Agent) letGo(ctx context.Context, id volume.ID, hurried bool) error {
	unlock, err := a.locks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()

	name := a.layout.Dataset(id)
	missing := &errKept{reason: fmt.Sprintf("its dataset is missing on its primary %s, or the pool is not there; a replica still holds the data", a.name())}
	if c, _ := a.seenCopy(id); !hurried || !c.Mounted {
		switch ds, err := a.zfs.Dataset(ctx, name); {
		case errors.Is(err, zfs.ErrNotFound):
			return missing
		case err != nil:
			return err
		case !ds.Mounted:
			return a.verifyUnused(name)
		}
	}
	holders, err := a.use.Refresh(ctx, []volume.ID{id})
	switch {
	case err != nil:
		return inUse(fmt.Sprintf("perhaps a container: the engine on %s cannot be asked (%v)", a.name(), err))
	case len(holders[id]) > 0:
		kept := inUse(describe(holders[id]) + " on " + a.name())
		kept.by = holders[id]
		return kept
	case !a.use.Idle(id):
		return inUse("a container that is starting on " + a.name())
	}
	if err := a.files.Unused(name, a.layout.Mountpoint(id)); err != nil {
		return inUse(fmt.Sprintf("a process on %s (%v)", a.name(), err))
	}
	switch err := a.zfs.Unmount(ctx, name); {
	case errors.Is(err, zfs.ErrNotFound):
		return missing
	case err != nil:
		return inUse(fmt.Sprintf("a process on %s (%v)", a.name(), err))
	}
	return a.verifyUnused(name)
}

// verifyUnused believes an unmount only when no mount namespace shows the dataset.
func (a *Agent) verifyUnused(dataset string) error {
	if err := a.files.Unused(dataset, ""); err != nil {
		return inUse(fmt.Sprintf("a process on %s (%v)", a.name(), err))
	}
	return nil
}

// backPatience is how long a volume is waited for whose containers have just been
// stopped, and backPause the time between two looks, which grows from backSoon: clients may
// wait for what follows.
const (
	backPatience = 15 * time.Second
	backSoon     = 10 * time.Millisecond
	backPause    = 100 * time.Millisecond
)

// release carries a pending handoff out, or refuses it.
func (a *Agent) release(ctx context.Context, id volume.ID) error {
	v := a.cluster.State().Volume(id)
	if v == nil || v.Phase != state.PhaseMoving || v.Placement.Primary != a.self {
		return nil // over already
	}
	back := v.Pending.Rollback
	ended := func(string, state.MoveTimes) {}
	if back != nil && a.rolledBack != nil {
		ended = func(result string, _ state.MoveTimes) { a.rolledBack(result == "moved") }
	}
	if v.Pending.Follow && a.moving != nil && back == nil {
		told := a.moving(moveOf(v))
		result, took := "", state.MoveTimes{}
		defer func() { told(result, took) }()
		ended = func(r string, t state.MoveTimes) { result, took = r, t }
	}
	refuse := func(reason string) error {
		ended("refused", state.MoveTimes{})
		return a.propose(ctx, state.AbortHandoff{ID: id, Epoch: v.Epoch, Attempt: v.Pending.Attempt, Reason: reason})
	}
	pending := func(s *state.State) bool {
		now := s.Volume(id)
		return now != nil && now.Phase == state.PhaseMoving && now.Pending.Attempt == v.Pending.Attempt
	}
	if back != nil {
		// Before anything is stopped, and until it has gone back.
		_, err := a.repl.Pin(ctx, id, back.GUID)
		if reason := a.cannotGoBack(back, err); reason != "" {
			return refuse(reason)
		}
		if err != nil {
			return err
		}
		defer func() {
			now := a.cluster.State().Volume(id)
			committed := now != nil && now.RolledBack != nil && now.RolledBack.Attempt == v.Pending.Attempt
			if !committed && !pending(a.cluster.State()) {
				a.repl.Unpin(id) // it was given up, perhaps with this primary
			}
		}()
	}
	if v.Pending.Follow && a.prepareStop != nil && back == nil {
		pctx, cancel := a.whileState(ctx, pending)
		err := a.prepareStop(pctx, id)
		cancel()
		switch {
		case ctx.Err() != nil || !pending(a.cluster.State()):
			return ctx.Err()
		case err != nil:
			return refuse(err.Error())
		}
	}
	over := a.hushing()
	defer over()
	var stopped Stopped
	if v.Pending.Follow && a.stopFollowing != nil {
		var err error
		if stopped, err = a.stopFollowing(ctx, id); err != nil {
			return refuse(fmt.Sprintf("what goes along could not be stopped: %v", err))
		}
	}
	times := state.MoveTimes{Park: stopped.Park, Stop: stopped.Stop}
	began := time.Now()
	err := a.letGo(ctx, id, v.Pending.Follow)
	kept := (*errKept)(nil)
	// An engine says that a container has stopped before it gives its volumes back.
	wait := backSoon
	for v.Pending.Follow && errors.As(err, &kept) && time.Since(began) < backPatience && (!stopped.late() || a.partGone(v)) && ctx.Err() == nil && pending(a.cluster.State()) {
		a.rest(ctx, wait)
		wait = min(2*wait, backPause)
		err = a.letGo(ctx, id, true)
	}
	if !v.Pending.Follow && a.recordUsers != nil {
		err = a.awaitStart(ctx, id, err, pending)
	}
	if errors.As(err, &kept) {
		return refuse(kept.reason)
	}
	if err != nil {
		return err
	}

	// Stop waiting for the target when somebody gives the attempt up.
	ctx, cancel := a.whileState(ctx, pending)
	defer cancel()
	times.Unmount, began = time.Since(began), time.Now()
	var upToDate map[volume.NodeID]bool
	if back != nil {
		upToDate = a.upToDate(id)
	}
	final, err := a.finalCopy(ctx, v, stopped)
	if late := (*errLate)(nil); errors.As(err, &late) {
		// Up to here this attempt was not committed: what an earlier try may have proposed was
		// found out about below before this one began, and of a commit and an abort that cross
		// the log takes one. From here on it is not given up, however late it is.
		return refuse(late.Error())
	}
	if errors.Is(err, replicate.ErrNoRoom) && !a.partGone(v) {
		return refuse(fmt.Sprintf("there is no room for its last copy on %s, so it goes on where it was: %v", a.cluster.State().NodeName(v.Pending.To), err))
	}
	if err != nil {
		return fmt.Errorf("final copy of volume %q: %w", v.Name, err)
	}
	if times.Copy = time.Since(began); !stopped.Paused.IsZero() {
		times.Held = max(time.Since(stopped.Paused), 1) // 0 would be no route
	}
	var commit state.Command = state.CommitHandoff{ID: id, Epoch: v.Epoch, Attempt: v.Pending.Attempt, Final: final, Times: times}
	if back != nil {
		kept := a.keptBy(ctx, id, final, upToDate, stopped.CopyBy)
		// Somebody may have destroyed it by hand meanwhile, or have begun to before it was pinned;
		// once the rollback is committed there would be nothing to go back to.
		base, err := a.repl.Pin(ctx, id, back.GUID)
		if reason := a.cannotGoBack(back, err); reason != "" {
			return refuse(reason)
		}
		if err != nil {
			return err
		}
		commit = state.CommitRollback{ID: id, Epoch: v.Epoch, Attempt: v.Pending.Attempt, Final: final, Base: base, Kept: kept}
	}
	res, err := a.cluster.Propose(ctx, commit)
	if err == nil && res.Err != nil {
		// The target has lost its lease meanwhile, say. Repeated, this would take a final
		// copy and be refused again and again; an attempt that is over already stays so.
		return refuse(res.Err.Message)
	}
	if err == nil {
		ended("moved", times)
		return nil
	}
	// Nobody knows whether it was committed. Another try would take one more final snapshot,
	// which the new primary may not have: so it is found out first, however long there is no leader.
	over()
	for wait := backPause; ctx.Err() == nil && a.cluster.CatchUp(ctx) != nil; wait = min(2*wait, time.Second) {
		a.rest(ctx, wait)
	}
	return err
}

// startPatience is how long a volume that is to move alone is kept by a container that is just starting before
// that is refused. It is as long as the engine may take to describe one (engineTimeout).
const startPatience = 10 * time.Second

// awaitStart is what becomes of a volume that is kept, which nobody used when its move was begun: where it
// is by containers that have just been started, these are recorded before it is refused, so that whoever
// reads of the refusal knows already who goes along. Nothing is stopped here.
func (a *Agent) awaitStart(ctx context.Context, id volume.ID, err error, pending func(*state.State) bool) error {
	kept, began := (*errKept)(nil), time.Now()
	wait := backPause
	for errors.As(err, &kept) && kept.starts() && !kept.runs() && time.Since(began) < startPatience && ctx.Err() == nil && pending(a.cluster.State()) {
		a.rest(ctx, wait)
		wait = min(2*wait, time.Second)
		err = a.letGo(ctx, id, false)
	}
	if !errors.As(err, &kept) || !kept.runs() {
		return err
	}
	if failed := a.recordUsers(ctx, id); failed != nil {
		return &errKept{reason: fmt.Sprintf("%s: %v", kept.reason, failed)}
	}
	return err
}

// cannotGoBack is why a rollback is refused whose snapshot could not be pinned; "": it is not,
// or has to be tried again.
func (a *Agent) cannotGoBack(back *state.RollbackTo, err error) string {
	switch volume.CodeOf(err) {
	case volume.CodeNotFound:
		return fmt.Sprintf("snapshot %s is not on its primary %s any more", back.Snapshot, a.name())
	case volume.CodeRefused:
		return fmt.Sprintf("on its primary %s %v", a.name(), err)
	}
	return ""
}

const (
	// keptPatience is how long a rollback waits for replicas to have all that it undoes: with only
	// the primary's copy of that its loss would be the loss of something that people may still want.
	keptPatience = 5 * time.Second
	// keptBehind is how much a replica may lack when the volume is free so that it is waited for.
	keptBehind = 10 * time.Second
)

// upToDate are the replicas of a volume that have what was written to it, or will in a moment.
func (a *Agent) upToDate(id volume.ID) map[volume.NodeID]bool {
	out := map[volume.NodeID]bool{}
	for _, l := range a.repl.Links(id) {
		if l.Error == "" && (l.State == volume.LinkInSync || l.State == volume.LinkSending && time.Since(l.CompleteAsOf) < keptBehind) {
			out[l.Replica] = true
		}
	}
	return out
}

// keptBy are the replicas that have the last snapshot of a volume, when those that were up to
// date had a while to get it, until a limit if that is not zero.
func (a *Agent) keptBy(ctx context.Context, id volume.ID, last volume.Position, upToDate map[volume.NodeID]bool, limit time.Time) []volume.NodeID {
	until := time.Now().Add(keptPatience)
	if !limit.IsZero() && limit.Before(until) {
		until = limit
	}
	for wait := backSoon; ; wait = min(2*wait, backPause) {
		var kept []volume.NodeID
		lacking := false
		for _, l := range a.repl.Links(id) {
			if l.Acked.Same(last) {
				kept = append(kept, l.Replica)
			} else {
				lacking = lacking || upToDate[l.Replica]
			}
		}
		if !lacking || ctx.Err() != nil || !time.Now().Before(until) {
			return kept
		}
		a.rest(ctx, wait)
	}
}

// moveOf is what the volumes have in common that go along in a pending move: its attempt, or that
// of the move that it undoes, each volume by a handoff of its own.
func moveOf(v *state.Volume) string {
	if v.Pending.Back != "" && v.Moved != nil {
		return "back from " + v.Moved.Attempt
	}
	return v.Pending.Attempt
}

// late says that the last copy of a move is not worth waiting for any more.
func (s Stopped) late() bool { return !s.CopyBy.IsZero() && !time.Now().Before(s.CopyBy) }

// partGone says that another volume of the same attempt has gone from here already: what uses
// both can go on there only, and sooner than it could be brought back, however late it is.
func (a *Agent) partGone(v *state.Volume) bool {
	return a.cluster.State().PartGone(v, a.self)
}

// errLate says why a move is given up whose clients have waited for too long.
type errLate struct {
	node    string
	waited  time.Duration
	stopped Stopped
	err     error // of the last try to copy; nil: there was none
}

func (e *errLate) Error() string {
	short := func(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }
	text := fmt.Sprintf("its clients had waited for %s (%s until they were quiet, %s for the stop) and its last copy was not on %s yet, so they go on where they were (--force does not ask)",
		short(e.waited), short(e.stopped.Park), short(e.stopped.Stop), e.node)
	if last := lastSaid(e.err); last != nil {
		text += ": " + last.Error()
	}
	return text
}

// lastSaid is what the last try has to say besides that it was not over in time; nil: nothing.
func lastSaid(err error) error {
	var both interface{ Unwrap() []error }
	if errors.As(err, &both) {
		all := both.Unwrap()
		err = all[len(all)-1]
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// finalCopy brings the target what the containers have written until they were stopped.
// Where their clients are refused when it takes too long, it ends with *errLate in time for
// the containers to run again here, and until then it is tried again and again. That is not so
// where another volume of theirs has gone: then this one follows as if nobody had a limit.
func (a *Agent) finalCopy(ctx context.Context, v *state.Volume, stopped Stopped) (volume.Position, error) {
	if stopped.CopyBy.IsZero() {
		return a.repl.Flush(ctx, v.ID, v.Pending.To)
	}
	cctx, cancel := context.WithDeadline(ctx, stopped.CopyBy)
	defer cancel()
	late := &errLate{node: a.cluster.State().NodeName(v.Pending.To), stopped: stopped}
	for wait := backSoon; !stopped.late(); wait = min(2*wait, time.Second) {
		final, err := a.repl.Flush(cctx, v.ID, v.Pending.To)
		if err == nil || ctx.Err() != nil {
			return final, err
		}
		if errors.Is(err, replicate.ErrNoRoom) && !a.partGone(v) {
			return final, err // its clients would wait in vain
		}
		late.err = err
		a.rest(cctx, wait)
	}
	if a.partGone(v) {
		return a.repl.Flush(ctx, v.ID, v.Pending.To)
	}
	late.waited = time.Since(stopped.Paused)
	return volume.Position{}, late
}

// agree carries a pending removal out, or refuses it.
func (a *Agent) agree(ctx context.Context, id volume.ID) error {
	v := a.cluster.State().Volume(id)
	if v == nil || v.Phase != state.PhaseDeleting || v.Placement.Primary != a.self {
		return nil
	}
	err := a.letGo(ctx, id, false)
	if kept := (*errKept)(nil); errors.As(err, &kept) {
		return a.propose(ctx, state.AbortDelete{ID: id, Epoch: v.Epoch, Attempt: v.Pending.Attempt, Reason: kept.reason})
	}
	if err != nil {
		return err
	}
	return a.propose(ctx, state.CommitDelete{ID: id, Epoch: v.Epoch, Attempt: v.Pending.Attempt})
}

func describe(holders []volume.Holder) string {
	var out []string
	for _, h := range holders {
		switch {
		case h.Name != "":
			out = append(out, "container "+h.Name)
		case h.Container != "":
			out = append(out, "container "+h.Container)
		default:
			out = append(out, "a container that is starting")
		}
	}
	return strings.Join(out, ", ")
}
