package placement

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// The policy (setting rebalance) does what an operator with a plan would do, and is slower to
// begin than to go on: nodes that are nearly even are left alone until they are clearly not.
const (
	evenSpace     = 0.25 // the gap at which it begins; it ends below spaceGap
	evenPrimaries = 6    // and below primaryGap

	// evenSettle is how long nothing else may have gone on before it begins, and evenBetween
	// before it goes on: the reports have to show what the last moves have brought.
	evenSettle  = 10 * time.Minute
	evenBetween = time.Minute
	// evenPause is for how long it moves nothing after a move that came to nothing, or after a
	// copy was set aside anywhere: somebody may want to look at that first.
	evenPause = time.Hour
	// evenRest is for how long a volume stays where its copies were taken last, by whomever.
	// What it did is not undone within that time, and what others did is not, either.
	evenRest = 6 * time.Hour
	// evenPatience is for how long one of its moves may wait for what nobody is about to do: less
	// than Repair lets a copy be that makes no progress.
	evenPatience = 5 * time.Minute
	// evenMaxPause is what clients may wait for, as with a migration whose user says nothing.
	evenMaxPause = time.Second
	// evenBlind is a time between two looks after which it begins to look anew.
	evenBlind = time.Minute
)

// evenAttempt begins the attempts of migrations that the policy asks for.
const evenAttempt = "rebalance-"

// evening is what a leader remembers of the policy. A new one begins anew: it waits as for
// the first move, and what is in the state (the last migration and handoff of a volume) still
// keeps volumes where they are.
type evening struct {
	looked time.Time // when it looked last; zero: never, or it was off
	calm   time.Time // since when nothing else has gone on; zero: something does
	after  time.Time // nothing begins before
	// space and load are under way: they go on below the gap at which they begin. going says
	// that the last plan had moves.
	space, load, going bool

	copies map[volume.ID]settled
	round  []evenMove
	name   string // attempt of the round
}

// settled is where the copies of a volume are, and since when; zero: for longer than this
// leader has looked.
type settled struct {
	placement volume.Placement
	since     time.Time
}

// evenMove is a move of the round that is under way.
type evenMove struct {
	Wanted
	why   string
	told  bool
	stuck time.Time // since when; zero: it is not
}

// even is the next step of the policy: of the moves of a plan those that have no node in
// common, one round of them at a time, each carried out as an operator's would be. Others is
// what else is decided at this look: nothing shows it yet, and nothing begins beside it.
func even(v *View, m evening, others []state.Command) (cmds []state.Command, next evening) {
	if v.Settings.Rebalance != state.RebalanceOn {
		return nil, evening{}
	}
	next = m
	if m.looked.IsZero() || v.Now.Sub(m.looked).Abs() > evenBlind {
		next.calm = time.Time{}
	}
	next.looked, next.copies = v.Now, v.settle(m.copies)
	if len(m.round) > 0 {
		next.calm = time.Time{} // what it does itself is no calm, either
		return v.carryRound(&next, false), next
	}
	if v.unrest() != "" || slices.ContainsFunc(others, moving) {
		next.calm = time.Time{}
		return nil, next
	}
	if next.calm.IsZero() {
		next.calm = v.Now
	}
	patience := evenSettle
	if next.going {
		patience = evenBetween
	}
	if v.Now.Sub(next.calm) < patience || v.Now.Before(next.after) {
		return nil, next
	}
	b := newBalance(v, func(vol *state.Volume) bool { return v.rests(vol, next.copies[vol.ID].since) })
	next.space, next.load = next.space || b.spread() > evenSpace, next.load || b.lead() >= evenPrimaries
	plan := b.make(next.space, next.load)
	of := func(a aim) bool { return slices.ContainsFunc(plan.Moves, func(m Move) bool { return m.aim == a }) }
	next.space, next.load, next.going = next.space && of(aimSpace), next.load && of(aimLoad), len(plan.Moves) > 0
	next.after = v.Now.Add(evenBetween) // a plan looks at everything, which is not for every look
	for _, x := range v.round(plan.Moves) {
		next.round = append(next.round, evenMove{why: x.Why, Wanted: Wanted{Volume: x.Volume.ID, Role: x.Role, From: x.From, To: x.To, Leaves: x.Leaves}})
	}
	next.name = fmt.Sprintf("%s%d", evenAttempt, v.Now.UnixNano())
	return v.carryRound(&next, true), next
}

// settle is where all copies are now, with the time of each change that this leader saw.
func (v *View) settle(was map[volume.ID]settled) map[volume.ID]settled {
	out := make(map[volume.ID]settled, len(v.Volumes))
	for _, vol := range v.Volumes {
		s, known := was[vol.ID]
		if known && !same(s.placement, vol.Placement) {
			s.since = v.Now
		}
		s.placement = vol.Placement
		out[vol.ID] = s
	}
	return out
}

// rests says that copies of a volume, or of one that goes where it goes, were moved not long
// ago, or were to be.
func (v *View) rests(vol *state.Volume, since time.Time) bool {
	lately := func(at time.Time) bool { return !at.IsZero() && v.Now.Sub(at).Abs() < evenRest }
	return lately(since) || vol.Moved != nil && lately(vol.Moved.At) || vol.LastMigration != nil && lately(vol.LastMigration.At) ||
		vol.LastRefusal != nil && lately(vol.LastRefusal.At) ||
		// A handoff without containers, and a failover, which forgets the handoff before it, leave
		// only where the epoch begins: when its last snapshot was taken, and what was lost.
		lately(vol.Start.Taken) || vol.LastFailover != nil && lately(vol.LastFailover.At)
}

// round are the first moves that have no node in common.
func (v *View) round(moves []Move) (out []Move) {
	busy := map[volume.NodeID]bool{}
	for _, m := range moves {
		nodes := []volume.NodeID{m.From, m.To, m.Volume.Placement.Primary}
		if slices.ContainsFunc(nodes, func(id volume.NodeID) bool { return busy[id] }) {
			continue
		}
		for _, id := range nodes {
			busy[id] = true
		}
		out = append(out, m)
	}
	return out
}

// carryRound takes the moves of the round a step further, and drops those that are over. What
// could not begin at the first look is not tried again.
func (v *View) carryRound(e *evening, begins bool) (cmds []state.Command) {
	var wanted []Wanted
	for _, x := range e.round {
		wanted = append(wanted, x.Wanted)
	}
	var rest []evenMove
	for i, c := range Carry(v, wanted, e.name, evenMaxPause) {
		x := e.round[i]
		vol := v.volume(x.Volume)
		tell := func(text string) {
			if vol != nil && vol.Live() {
				cmds = append(cmds, state.Tell{Volume: vol.ID, Kind: state.VolumeEvened, Node: x.To, Message: text})
			}
		}
		what := ""
		if vol != nil {
			what = fmt.Sprintf("the %s of volume %s", map[bool]string{true: "primary", false: "replica"}[x.Role == volume.RolePrimary], vol.Name)
		}
		inVain := func(why string) {
			e.after, e.going = v.Now.Add(evenPause), false
			s := e.copies[x.Volume]
			s.since = v.Now
			e.copies[x.Volume] = s
			tell(fmt.Sprintf("%s was not moved from %s to %s: %s; nothing is moved by itself for %s", what, v.name(x.From), v.name(x.To), why, evenPause))
		}
		if !x.told && (c.State == MoveDone || c.State == MoveRuns && !c.begins) {
			x.told = true
			tell(fmt.Sprintf("%s goes from %s to %s by itself, as the setting rebalance has it: %s", what, v.name(x.From), v.name(x.To), x.why))
		}
		switch {
		case c.State == MoveDone:
			continue
		case c.begins && begins:
			cmds = append(cmds, c.Command)
			rest = append(rest, x)
			continue
		case begins:
			continue
		case c.begins:
			inVain(map[bool]string{true: "it was undone by something else", false: "it could not begin"}[x.told])
			continue
		case c.State == MoveFailed:
			inVain(c.Text)
			continue
		case c.Command != nil:
			cmds = append(cmds, c.Command)
		}
		switch {
		case c.State == MoveRuns && !c.stuck:
			x.stuck = time.Time{}
		case x.stuck.IsZero():
			x.stuck = v.Now
		case v.Now.Sub(x.stuck) >= evenPatience:
			inVain(c.Text)
			if m := vol.Migration; m != nil && m.Attempt == e.name {
				cmds = append(cmds, state.EndMigration{ID: vol.ID, Attempt: m.Attempt, Reason: c.Text})
			}
			continue
		}
		rest = append(rest, x)
	}
	e.round = rest
	return cmds
}

// moving says that a command changes where copies of a volume are, or undoes such a change. The
// trash is emptied where nothing else is the matter.
func moving(cmd state.Command) bool {
	switch cmd.(type) {
	case state.SetReplicas, state.BeginHandoff, state.AbortHandoff, state.StartMigration, state.EndMigration:
		return true
	}
	return false
}

// unrest says what keeps the policy from moving anything now; "" when the cluster is calm.
func (v *View) unrest() string {
	for i := range v.Nodes {
		switch n := &v.Nodes[i]; {
		case !n.Alive:
			return fmt.Sprintf("node %s is not heard of", n.Name)
		case n.Availability != state.Active:
			return fmt.Sprintf("node %s is being drained", n.Name)
		case n.Witness:
		case !n.Lease:
			return fmt.Sprintf("node %s has no lease", n.Name)
		case n.Pool.Health != poolOnline:
			return fmt.Sprintf("the pool of node %s is %s", n.Name, n.Pool.Health)
		case !n.asided.IsZero() && v.Now.Sub(n.asided).Abs() < evenPause:
			return fmt.Sprintf("a copy was set aside on %s less than %s ago", n.Name, evenPause)
		}
	}
	for _, vol := range v.Volumes {
		last := vol.LastMigration
		switch {
		case !vol.Live() || vol.Phase == state.PhaseCreating || vol.Phase == state.PhaseDeleting:
			continue // they come and go where nothing else is the matter
		case vol.Phase != state.PhaseActive:
			return fmt.Sprintf("volume %s is %s", vol.Name, vol.Phase)
		case vol.Migration != nil:
			return fmt.Sprintf("volume %s is being migrated", vol.Name)
		case len(v.starting(vol)) > 0:
			return fmt.Sprintf("container %s of volume %s is starting", v.starting(vol)[0].Name, vol.Name)
		case last != nil && last.Reason != "" && strings.HasPrefix(last.Attempt, evenAttempt) && v.Now.Sub(last.At).Abs() < evenPause:
			return fmt.Sprintf("volume %s was not moved to %s less than %s ago: %s", vol.Name, v.name(last.To), evenPause, last.Reason)
		}
		if why := v.noSource(vol); why != "" {
			return fmt.Sprintf("volume %s cannot be copied: %s", vol.Name, why)
		}
		for _, id := range vol.Placement.Replicas() {
			// One that refuses does so until somebody helps; its volume takes no part, the others may.
			if !v.complete(vol, id) && v.link(vol, id).State != volume.LinkRefused {
				return fmt.Sprintf("the copy of volume %s on %s is not complete", vol.Name, v.name(id))
			}
		}
	}
	return ""
}

// spread is how much fuller the fullest node is than the emptiest.
func (b *balance) spread() float64 {
	least, most := 1.0, 0.0
	for i := range b.plan.Shares {
		full := b.plan.Shares[i].full()
		least, most = min(least, full), max(most, full)
	}
	return most - least
}

// lead is by how many primaries a node is ahead of one of its zone.
func (b *balance) lead() (most int) {
	for _, x := range b.plan.Shares {
		for _, y := range b.plan.Shares {
			if b.v.zoneOf(x.Node) == b.v.zoneOf(y.Node) {
				most = max(most, x.PrimariesAfter-y.PrimariesAfter)
			}
		}
	}
	return most
}

// Policy is what the setting rebalance makes of a cluster as it is now.
type Policy struct {
	On bool
	// Moves are those that it would begin with, in words that name the volume; Waits says
	// what it waits for before it begins.
	Moves []Move
	Waits string
}

// LookAtPolicy is what the policy does, or would do were it on. Only the leader knows for how
// long the cluster has been calm; the rest is known to every node.
func LookAtPolicy(v *View) Policy {
	p := Policy{On: v.Settings.Rebalance == state.RebalanceOn, Waits: v.unrest()}
	b := newBalance(v, func(vol *state.Volume) bool { return v.rests(vol, time.Time{}) })
	p.Moves = v.round(b.make(b.spread() > evenSpace, b.lead() >= evenPrimaries).Moves)
	if p.Waits == "" && len(p.Moves) > 0 {
		p.Waits = fmt.Sprintf("the cluster must have been calm for %s", evenSettle)
	}
	return p
}
