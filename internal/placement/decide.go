package placement

import (
	"fmt"
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// PendingLimit is how long a create, a move or a removal may wait for its primary
// before the leader gives it up, so that nothing hangs for ever. It is longer than
// any caller waits (Docker gives up after 100 s or so).
const PendingLimit = 2 * time.Minute

// Decide is everything the leader wants to change at this moment, most urgent first:
// operations given up or undone, volumes that containers need brought together, records
// of purged volumes dropped, migrations taken a step further, replicas added and taken
// away, drained nodes emptied, expired trash purged, nodes evened out where the settings say
// so. Each command carries its own
// preconditions, so a plan from an old View does no harm; it is refused. The Memory is
// what the leader's last look gave, and what its next one wants.
func Decide(v *View, m Memory) ([]state.Command, Memory) {
	var cmds []state.Command
	for _, vol := range v.Volumes {
		if cmd := v.giveUp(vol); cmd != nil {
			cmds = append(cmds, cmd)
		} else if cmd := v.goBack(vol); cmd != nil {
			cmds = append(cmds, cmd)
		}
	}
	reunions, _ := Reunions(v)
	cmds = append(cmds, reunions...)
	for _, vol := range v.Volumes {
		if vol.Phase == state.PhasePurged && v.gone(vol) {
			cmds = append(cmds, state.ForgetVolume{ID: vol.ID})
		}
	}
	migrations, _ := Migrations(v)
	cmds = append(cmds, migrations...)
	repairs, next := Repair(v, m)
	drains, _ := Drain(v)
	for _, cmd := range slices.Concat(repairs, drains) {
		id := subject(cmd)
		if !slices.ContainsFunc(cmds, func(c state.Command) bool { return subject(c) == id }) {
			cmds = append(cmds, cmd)
		}
	}
	clock := v.cautiousClock()
	for _, vol := range v.Volumes {
		if vol.Phase == state.PhaseTrash && vol.Deleted.Add(v.Settings.TrashKeep()).Before(clock) {
			cmds = append(cmds, state.PurgeVolume{ID: vol.ID, Changed: vol.Changed})
		}
	}
	others := len(cmds)
	evens, even := even(v, m.even, cmds)
	next.even = even
	for _, cmd := range evens {
		id := subject(cmd)
		if id == "" || !slices.ContainsFunc(cmds[:others], func(c state.Command) bool { return subject(c) == id }) {
			cmds = append(cmds, cmd)
		}
	}
	return cmds, next
}

// giveUp is the command that ends an operation that has waited too long; nil when
// there is none.
func (v *View) giveUp(vol *state.Volume) state.Command {
	if vol.Phase == state.PhaseMoving && vol.Pending != nil && vol.Pending.To != "" {
		// Its containers are stopped meanwhile: what cannot come to its end does not wait.
		if why := v.cannotTake(vol.Pending.To); why != "" {
			return state.AbortHandoff{ID: vol.ID, Epoch: vol.Epoch, Attempt: vol.Pending.Attempt, Reason: why}
		}
	}
	began := vol.Created
	if vol.Pending != nil {
		began = vol.Pending.Began
	}
	// A time in the future was stamped by another clock: that leader's, who is no
	// longer leading. By how much it is off bounds how long we wait.
	if v.Now.Sub(began).Abs() < PendingLimit {
		return nil
	}
	primary := vol.Placement.Primary
	name, reason := primary.Short(), "did not answer"
	if n := v.Node(primary); n != nil {
		name = n.Name
		if !n.Alive {
			reason = "cannot be reached"
		} else if c := n.Copy(vol.ID); c != nil && c.Problem != "" {
			reason = "did not come to an end with it: " + c.Problem
		}
	}
	why := "given up after " + PendingLimit.String() + ": the primary " + name + " " + reason
	switch {
	case vol.Phase == state.PhaseCreating:
		return state.AbortCreate{ID: vol.ID, Epoch: vol.Epoch, Reason: why}
	case vol.Pending == nil:
		return nil
	case vol.Phase == state.PhaseMoving:
		return state.AbortHandoff{ID: vol.ID, Epoch: vol.Epoch, Attempt: vol.Pending.Attempt, Reason: why}
	case vol.Phase == state.PhaseDeleting:
		return state.AbortDelete{ID: vol.ID, Epoch: vol.Epoch, Attempt: vol.Pending.Attempt, Reason: why}
	}
	return nil
}

// cannotTake says why a volume cannot be handed to a node; "" when it can.
func (v *View) cannotTake(id volume.NodeID) string {
	switch n := v.Node(id); {
	case n == nil || !n.Alive:
		return fmt.Sprintf("given up: node %s, which it was to go to, is not heard of", v.name(id))
	case !n.Lease:
		return fmt.Sprintf("given up: node %s, which it was to go to, has no lease", n.Name)
	}
	return ""
}

// gone says that no copy of a purged volume is left: every member of its placement
// has applied the purge, has looked at its pool since, and reports none; nor does
// any other node that is heard. Silence and an unreadable pool prove nothing. A
// node that was removed from the cluster can no longer be asked.
func (v *View) gone(vol *state.Volume) bool {
	for id := range nodesOf(vol.Placement) {
		n := v.Node(id)
		if n != nil && (!n.poolKnown() || n.applied < vol.Changed) {
			return false
		}
	}
	return !slices.ContainsFunc(v.Nodes, func(n NodeView) bool {
		c := n.Copy(vol.ID)
		return c != nil && c.Exists
	})
}

// cautiousClock is CautiousClock of the nodes that are alive.
func (v *View) cautiousClock() time.Time {
	var clocks []time.Time
	for i := range v.Nodes {
		if n := &v.Nodes[i]; n.Alive && !n.clock.IsZero() {
			clocks = append(clocks, n.clock)
		}
	}
	return CautiousClock(v.Now, clocks)
}

// subject is the volume that one of our commands is about.
func subject(cmd state.Command) volume.ID {
	switch c := cmd.(type) {
	case state.AbortCreate:
		return c.ID
	case state.AbortHandoff:
		return c.ID
	case state.AbortDelete:
		return c.ID
	case state.SetReplicas:
		return c.ID
	case state.BeginHandoff:
		return c.ID
	case state.StartMigration:
		return c.ID
	case state.EndMigration:
		return c.ID
	case state.PurgeVolume:
		return c.ID
	case state.ForgetVolume:
		return c.ID
	}
	return ""
}
