package state

import (
	"fmt"
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// RollbackTo is a snapshot of a volume.
type RollbackTo struct {
	Snapshot string `json:"snapshot"` // its name, for people
	GUID     uint64 `json:"guid,string"`
}

// RolledBack is a rollback that was committed. Epoch is the first one that goes on from the
// snapshot; what was written between that and Final is undone, and set aside wherever a copy
// has it.
type RolledBack struct {
	RollbackTo
	Attempt string          `json:"attempt"`
	Epoch   volume.Epoch    `json:"epoch"`
	Final   volume.Position `json:"final"` // the newest of what was undone
	// Base is the newest of the engine's snapshots at or before it on the primary; zero: none,
	// or not known. What ends there or before has nothing that was undone.
	Base volume.Position `json:"base,omitzero"`
	// Node is the primary that had Final, and Kept are the replicas that had it, too, when the
	// rollback was committed.
	Node volume.NodeID   `json:"node,omitempty"`
	Kept []volume.NodeID `json:"kept,omitempty"`
	// Passed: a primary has been promoted since. Until then Start of the volume may be the
	// start of the line, and what comes after it in the same epoch is no other history.
	Passed bool      `json:"passed,omitempty"`
	Began  time.Time `json:"began"`
	At     time.Time `json:"at"`
}

// Commands of rollbacks.
type (
	// BeginRollback asks the primary to stop what writes the volume, so that it can go back
	// to a snapshot. Until CommitRollback nothing is undone, and AbortHandoff, or another
	// primary, forgets it.
	BeginRollback struct {
		ID      volume.ID    `json:"id"`
		Epoch   volume.Epoch `json:"epoch"`
		Attempt string       `json:"attempt"`
		To      RollbackTo   `json:"to"`
	}
	// CommitRollback begins the epoch that goes on from the snapshot. Only the primary
	// proposes it, after it has unmounted the volume, has found the snapshot on its disk, and
	// has taken Final, so that all that is undone is in a snapshot.
	CommitRollback struct {
		ID      volume.ID       `json:"id"`
		Epoch   volume.Epoch    `json:"epoch"`
		Attempt string          `json:"attempt"`
		Final   volume.Position `json:"final"`
		Base    volume.Position `json:"base,omitzero"`
		Kept    []volume.NodeID `json:"kept,omitempty"`
	}
	// CallOffRollback undoes a rollback whose snapshot was destroyed between its commit and the first
	// that the primary does about it. Only that proposes it: it finds the snapshot gone, and what was
	// to be undone whole, and has written nothing in the epoch that was begun.
	CallOffRollback struct {
		ID      volume.ID    `json:"id"`
		Epoch   volume.Epoch `json:"epoch"`
		Attempt string       `json:"attempt"`
	}
)

func (BeginRollback) kind() string  { return "begin-rollback" }
func (CommitRollback) kind() string { return "commit-rollback" }

func (CallOffRollback) kind() string { return "call-off-rollback" }

// Line is where the volume's history goes on since its last rollback. A copy whose newest
// snapshot of the engine is of an epoch below holds what was undone: nobody may write it
// before that is set aside, nor take it for newer than one on the line.
func (v *Volume) Line() volume.Line {
	r := v.RolledBack
	if r == nil {
		return volume.Line{}
	}
	return volume.Line{Epoch: r.Epoch, GUID: r.GUID, Snapshot: r.Snapshot, Taken: r.Final.Taken, Base: r.Base}
}

func (t *txn) beginRollback(c BeginRollback) Result {
	// Whoever repeats it has not heard how it ended.
	if v := t.s.Volume(c.ID); v != nil && c.Attempt != "" {
		switch r, f := v.RolledBack, v.LastRefusal; {
		case r != nil && r.Attempt == c.Attempt:
			return Result{Volume: v.ID}
		case f != nil && f.Attempt == c.Attempt:
			return failed(volume.CodeConflict, "volume %q was not rolled back: %s", v.Name, f.Reason)
		}
	}
	v, bad := t.at1(c.ID, c.Epoch)
	if bad != nil {
		return *bad
	}
	if p := v.Pending; v.Phase == PhaseMoving && p.Rollback != nil && p.Rollback.GUID == c.To.GUID {
		return Result{Volume: v.ID} // somebody else asked for the same
	}
	if r := begin(v, "rollback"); r != nil {
		return *r
	}
	switch m := v.Migration; {
	case c.To.GUID == 0 || c.To.Snapshot == "" || c.Attempt == "":
		return failed(volume.CodeInvalid, "volume %q: a rollback needs a snapshot and a name", v.Name)
	case m != nil:
		return failed(volume.CodeConflict, "volume %q is being migrated to %s; its rollback has to wait", v.Name, t.s.NodeName(m.To))
	case len(t.s.Starting(&v)) > 0:
		return failed(volume.CodeConflict, "volume %q has just been moved, and its containers are still starting; its rollback has to wait", v.Name)
	case !t.s.HasLease(v.Placement.Primary):
		return failed(volume.CodeConflict, "volume %q: its primary %s may not write: it has no lease", v.Name, t.s.NodeName(v.Placement.Primary))
	}
	v.Phase = PhaseMoving
	v.Pending = &Pending{Attempt: c.Attempt, Follow: true, Began: t.at, Rollback: &c.To}
	t.putVolume(v)
	t.event(Event{Kind: "volume.rolling-back", Volume: v.ID, Name: v.Name, Node: v.Placement.Primary,
		Message: fmt.Sprintf("volume %s is to go back to its snapshot %s", v.Name, c.To.Snapshot)})
	return Result{Volume: v.ID}
}

func (t *txn) commitRollback(c CommitRollback) Result {
	v, bad := t.attempt(c.ID, c.Epoch, c.Attempt, PhaseMoving)
	if bad != nil {
		return *bad
	}
	p := *v.Pending
	switch {
	case p.Rollback == nil:
		return failed(volume.CodeConflict, "volume %q is being moved, not rolled back", v.Name)
	case c.Final.IsZero() || c.Final.Epoch != v.Epoch || c.Final.GUID == p.Rollback.GUID:
		return failed(volume.CodeInvalid, "volume %q: what is undone has to be in a snapshot of its own first", v.Name)
	case !t.s.HasLease(v.Placement.Primary):
		return failed(volume.CodeConflict, "node %s may not write: it has no lease any more", t.s.NodeName(v.Placement.Primary))
	}
	v.Epoch = v.Epoch.Next()
	// What is written into logs and snapshots of the state is read again on nodes of other zones.
	c.Final.Taken = c.Final.Taken.UTC()
	c.Base.Taken = time.Time{} // by which nothing goes
	v.RolledBackBefore = v.RolledBack
	v.RolledBack = &RolledBack{RollbackTo: *p.Rollback, Attempt: p.Attempt, Epoch: v.Epoch, Final: c.Final, Base: c.Base,
		Node: v.Placement.Primary, Kept: slices.Clone(c.Kept), Began: p.Began, At: t.at}
	v.Start = v.Line().Start()
	// Its containers were recorded in the epoch before: so they are started again.
	v.Phase, v.Pending, v.LastRefusal, v.Moved = PhaseActive, nil, nil, nil
	t.putVolume(v)
	t.event(Event{Kind: "volume.rolled-back", Volume: v.ID, Name: v.Name, Node: v.Placement.Primary,
		Message: fmt.Sprintf("volume %s goes on from its snapshot %s; what was written after that is set aside on %s", v.Name, p.Rollback.Snapshot, t.s.NodeName(v.Placement.Primary))})
	return Result{Volume: v.ID}
}

// MayCallOff says that nobody but the primary that committed it can have done anything about the
// last rollback of a volume.
func (v *Volume) MayCallOff() bool {
	r := v.RolledBack
	return r != nil && !r.Passed && v.Phase == PhaseActive && v.Epoch == r.Epoch && r.Node != "" && v.Placement.Primary == r.Node
}

func (t *txn) callOffRollback(c CallOffRollback) Result {
	v, bad := t.at1(c.ID, c.Epoch)
	if bad != nil {
		return *bad
	}
	if !v.MayCallOff() || v.RolledBack.Attempt != c.Attempt {
		return failed(volume.CodeConflict, "volume %q: that rollback cannot be called off any more", v.Name)
	}
	r := v.RolledBack
	reason := fmt.Sprintf("its snapshot %s was destroyed on %s before it had gone back", r.Snapshot, t.s.NodeName(r.Node))
	v.Start, v.RolledBack, v.RolledBackBefore = r.Final, v.RolledBackBefore, nil
	v.LastRefusal = &Refusal{Attempt: r.Attempt, Reason: reason, At: t.at, Follow: true}
	t.putVolume(v)
	t.event(Event{Kind: "volume.rollback-refused", Volume: v.ID, Name: v.Name, Node: r.Node,
		Message: fmt.Sprintf("volume %s stays as it is: %s", v.Name, reason)})
	return Result{Volume: v.ID}
}
