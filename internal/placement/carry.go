package placement

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// Wanted is a move that an operator has agreed to, as it stood in a plan.
type Wanted struct {
	Volume   volume.ID
	Role     volume.Role
	From, To volume.NodeID
	Leaves   bool
}

// Progress is how far a move is.
type Progress string

// What a move can be. Done and failed are its end.
const (
	MoveWaits  Progress = "waiting"
	MoveRuns   Progress = "running"
	MoveDone   Progress = "done"
	MoveFailed Progress = "failed"
)

// Carried is one look at a move.
type Carried struct {
	State Progress
	Text  string // what is under way, what it waits for, or why it failed
	// Command is the next step; nil when there is none at the moment.
	Command state.Command

	begins bool
	// stuck says that it waits for something that may never come, rather than for a copy or a
	// handoff that is under way.
	stuck bool
}

// Carry is the next step of each move of a plan. It keeps nothing: how far a move is shows
// in the state and in what nodes report, so that anybody may call it again, and whoever
// stops calling it leaves nothing half done: a migration comes to its end by itself, and of
// a volume with a copy too many Repair takes one away.
//
// A node has a part in one move at a time, as where a copy leaves, where it comes from or
// where it goes to; moves begin in their order. Attempt is the name of the migrations that
// this begins, maxPause what their clients may wait for, see state.BeginHandoff.
func Carry(v *View, moves []Wanted, attempt string, maxPause time.Duration) []Carried {
	_, migrations := Migrations(v)
	out := make([]Carried, len(moves))
	busy := map[volume.NodeID]volume.ID{}
	use := func(w Wanted) {
		for _, id := range []volume.NodeID{w.From, w.To, v.volume(w.Volume).Placement.Primary} {
			busy[id] = w.Volume
		}
	}
	for i, w := range moves {
		vol := v.volume(w.Volume)
		switch {
		case vol == nil || !vol.Live():
			out[i] = failedMove("the volume is not there any more")
		case w.Role == volume.RolePrimary:
			out[i] = v.carryPrimary(vol, w, attempt, migrations)
		default:
			out[i] = v.carryReplica(vol, w)
		}
		if out[i].State == MoveRuns && !out[i].begins {
			use(w)
		}
	}
	for i, w := range moves {
		c := &out[i]
		if !c.begins {
			continue
		}
		vol := v.volume(w.Volume)
		for _, id := range []volume.NodeID{w.From, w.To, vol.Placement.Primary} {
			if other, ok := busy[id]; ok && c.begins {
				*c = Carried{State: MoveWaits, Text: fmt.Sprintf("comes after volume %s: node %s has a part in one move at a time", v.volume(other).Name, v.name(id))}
			}
		}
		if !c.begins {
			continue
		}
		use(w)
		if m, ok := c.Command.(state.StartMigration); ok {
			m.MaxPause = maxPause
			c.Command = m
		}
	}
	return out
}

func failedMove(format string, args ...any) Carried {
	return Carried{State: MoveFailed, Text: fmt.Sprintf(format, args...)}
}

func stuckMove(format string, args ...any) Carried {
	c := runningMove(nil, format, args...)
	c.stuck = true
	return c
}

func runningMove(cmd state.Command, format string, args ...any) Carried {
	return Carried{State: MoveRuns, Command: cmd, Text: fmt.Sprintf(format, args...)}
}

// carryPrimary migrates a volume, and then takes away the copy that it leaves.
func (v *View) carryPrimary(vol *state.Volume, w Wanted, attempt string, migrations []Migration) Carried {
	at := vol.Placement.Primary
	if m := vol.Migration; m != nil {
		if m.To != w.To || m.Attempt != attempt {
			return failedMove("it is being migrated to %s already", v.name(m.To))
		}
		i := slices.IndexFunc(migrations, func(x Migration) bool { return x.Volume == vol })
		c := runningMove(nil, "%s", cmp.Or(migrations[i].Doing, migrations[i].Why))
		c.stuck = migrations[i].Doing == ""
		return c
	}
	switch last := vol.LastMigration; {
	case last != nil && last.Attempt == attempt && last.Reason != "":
		return failedMove("%s", last.Reason)
	case at == w.To && (!w.Leaves || vol.Placement.Role(w.From) == volume.RoleNone):
		return Carried{State: MoveDone}
	case at == w.To:
		return v.leave(vol, w)
	case at != w.From:
		return failedMove("its primary is on %s by now", v.name(at))
	case vol.Phase != state.PhaseActive:
		return Carried{State: MoveWaits, Text: fmt.Sprintf("it is %s", vol.Phase)}
	}
	if why := v.unheard(at, w.To); why != "" {
		return Carried{State: MoveWaits, Text: why}
	}
	p := v.planMigration(vol, v.Node(at), w.To)
	if p.impossible != "" {
		return failedMove("%s", p.impossible)
	}
	c := runningMove(state.StartMigration{ID: vol.ID, To: w.To, Attempt: attempt}, "goes to %s", v.name(w.To))
	c.begins = true
	return c
}

// carryReplica adds the copy on the new node, and takes the old one away when the new one
// is complete.
func (v *View) carryReplica(vol *state.Volume, w Wanted) Carried {
	p, to := vol.Placement, v.Node(w.To)
	switch {
	case to == nil:
		return failedMove("node %s is not in the cluster any more", v.name(w.To))
	case p.Role(w.From) == volume.RoleNone && p.Role(w.To) == volume.RoleReplica:
		return Carried{State: MoveDone}
	case p.Role(w.From) != volume.RoleReplica || p.Role(w.To) == volume.RolePrimary:
		return failedMove("its copies were moved by somebody else meanwhile")
	case vol.Phase != state.PhaseActive:
		return Carried{State: MoveWaits, Text: fmt.Sprintf("it is %s", vol.Phase)}
	}
	why := v.unheard(p.Primary, w.To)
	if p.Role(w.To) == volume.RoleReplica {
		l := v.link(vol, w.To)
		switch {
		case why == "" && v.complete(vol, w.To):
			return v.leave(vol, w)
		case why == "" && !to.Alive:
			return failedMove("node %s, which gets the copy, is not heard of", to.Name)
		case l.State == volume.LinkRefused:
			// As by a node that has yet to hear that it gets one.
			return stuckMove("the copy on %s is refused: %s", to.Name, l.Error)
		case why == "" && (l.State == volume.LinkSeeding || l.State == volume.LinkSending):
			return runningMove(nil, "first copy to %s", to.Name+progress(l))
		}
		return stuckMove("%s", cmp.Or(why, "first copy to "+to.Name+progress(l)))
	}
	if why != "" {
		return Carried{State: MoveWaits, Text: why}
	}
	claim := v.claim(vol)
	switch unfit := to.unfit(claim); {
	case v.leaves(vol):
		return failedMove("it is being migrated, or leaves a node that is drained")
	case unfit != fit:
		return failedMove("node %s %s", to.Name, unfit.explain(to, claim, v.Now))
	case len(p.Replicas()) > vol.Spec.Replicas+vol.Spec.Remote:
		return Carried{State: MoveWaits, Text: "it has a copy to spare, which goes first"}
	}
	want := cloned(p)
	if to.Zone == v.zoneOf(p.Primary) {
		want.Local = append(want.Local, to.ID)
	} else {
		want.Remote = append(want.Remote, to.ID)
	}
	c := runningMove(setReplicas(vol, want), "first copy to %s", to.Name)
	c.begins = true
	return c
}

// unheard says that a leader which leads since a moment ago has yet to hear of a node, or
// that a volume's primary is not heard of: only time tells what becomes of a move.
func (v *View) unheard(primary, to volume.NodeID) string {
	switch n, m := v.Node(primary), v.Node(to); {
	case m != nil && m.Reported.IsZero():
		return fmt.Sprintf("node %s has not reported yet", m.Name)
	case n != nil && !n.Alive:
		return fmt.Sprintf("its primary %s is not heard of", n.Name)
	}
	return ""
}

// leave takes the copy on the node that a move leaves away when as many others are complete, on
// nodes that keep them, as the volume asks for; and only while the node where it went has it and
// keeps it: a volume may ask for no other copy.
func (v *View) leave(vol *state.Volume, w Wanted) Carried {
	id := w.From
	if vol.Phase != state.PhaseActive {
		return stuckMove("it is %s", vol.Phase)
	}
	if why := v.noSource(vol); why != "" {
		return stuckMove("%s", why)
	}
	primary := v.Node(vol.Placement.Primary)
	if c := primary.Copy(vol.ID); c.Problem != "" || primary.applied < vol.Changed {
		return stuckMove("%s", cmp.Or(c.Problem, fmt.Sprintf("its primary %s has not looked at it yet", primary.Name)))
	}
	switch to := v.Node(w.To); {
	case to.Availability != state.Active:
		return stuckMove("the copy on %s stays while %s is being drained", v.name(id), to.Name)
	case !to.Lease && w.Role == volume.RolePrimary:
		return stuckMove("the copy on %s stays while %s has no lease", v.name(id), to.Name)
	case !seeded(to.Copy(vol.ID)):
		return stuckMove("the copy on %s stays until %s reports that it has a whole one", v.name(id), to.Name)
	}
	rest := cloned(vol.Placement)
	it := func(other volume.NodeID) bool { return other == id }
	rest.Local, rest.Remote = slices.DeleteFunc(rest.Local, it), slices.DeleteFunc(rest.Remote, it)
	whole := 0
	for _, other := range rest.Replicas() {
		n := v.Node(other)
		whole += yes(v.complete(vol, other) && !n.leaving())
	}
	if whole < vol.Spec.Replicas+vol.Spec.Remote || len(v.starting(vol)) > 0 {
		return stuckMove("the copy on %s goes when %d others are complete", v.name(id), vol.Spec.Replicas+vol.Spec.Remote)
	}
	return runningMove(setReplicas(vol, rest), "the copy on %s is being taken away", v.name(id))
}
