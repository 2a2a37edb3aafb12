package cluster

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// member is what the choice of voters looks at.
type member struct {
	ID      volume.NodeID
	Zone    volume.Zone
	Witness bool
	Leader  bool
	Removed bool // by the operator
	Leaving bool // it is drained to be removed: its vote is wanted elsewhere

	InRaft bool // Raft's configuration has it
	Voter  bool

	AliveFor time.Duration // without a break; 0: not alive now
	DeadFor  time.Duration // without a break; 0: not dead now
	Lag      uint64        // entries it has not applied yet
}

// voterRules are the thresholds of nextChange.
type voterRules struct {
	Stable    time.Duration
	DeadAfter time.Duration
	MaxLag    uint64
}

// change is one step of Raft's configuration. The zero change is "nothing to do".
type change struct {
	Op     op
	Node   volume.NodeID
	Reason string
}

type op string

const (
	opAdd      op = "add" // as a non-voter
	opRemove   op = "remove"
	opPromote  op = "promote"
	opDemote   op = "demote"
	opStepDown op = "step-down" // the leader hands over, so that it can be changed
)

// voterTarget is how many voters a cluster of n nodes wants. Two voters would be
// worse than one: the loss of either would stop every change.
func voterTarget(n int) int {
	switch {
	case n >= 5:
		return 5
	case n >= 3:
		return 3
	}
	return 1
}

// nextChange decides the next step of Raft's configuration. It is pure; the leader
// asks it again after each step, so every answer must be good by itself. The rules,
// in order:
//
//   - What the state lists and Raft does not know comes in as a non-voter. What the
//     operator removed leaves, as soon as a living majority remains without it.
//   - An even number of voters is never aimed at. It exists for the moment between
//     two steps, and is left towards the side that needs no new node.
//   - A voter dead for DeadAfter makes way for a replacement that is ready. From five
//     voters it goes first, from three the replacement comes first: automation never
//     leaves fewer than three of them (the quorum would shrink to two machines, of
//     which the loss of one more stops everything). Without a replacement it stays.
//   - New voters come two at a time, from the zone with the fewest voters.
//   - A zone with two voters more than another that has a candidate gives one away,
//     while all voters are well.
//   - A voter that is drained to be removed hands its vote to a node that stays, if one is
//     ready and all voters are well: also the only voter, who could not be removed else.
//     Without such a node it goes on voting.
//   - The leader is never demoted; one that is to go hands leadership over first. Nobody is
//     removed for being dead.
func nextChange(all []member, rules voterRules) change {
	var members, voters, candidates, leaving []member
	for _, m := range all {
		switch {
		case m.Removed && m.InRaft:
			leaving = append(leaving, m)
		case m.Removed:
			continue
		default:
			members = append(members, m)
			if m.InRaft && !m.Voter && m.AliveFor >= rules.Stable && m.Lag <= rules.MaxLag {
				candidates = append(candidates, m)
			}
		}
		if m.Voter {
			voters = append(voters, m)
		}
	}
	perZone := map[volume.Zone]int{}
	var dead []member
	unwell := 0
	for _, v := range voters {
		perZone[v.Zone]++
		if !v.alive() {
			unwell++
		}
		if v.DeadFor >= rules.DeadAfter && v.DeadFor > 0 && !v.Leader {
			dead = append(dead, v)
		}
	}
	// Best candidate first: one that stays, the zone with the fewest voters, then nodes
	// that hold data, then any fixed order.
	slices.SortFunc(candidates, func(a, b member) int {
		return cmp.Or(compareBool(a.Leaving, b.Leaving), cmp.Compare(perZone[a.Zone], perZone[b.Zone]), compareBool(a.Witness, b.Witness), cmp.Compare(a.ID, b.ID))
	})

	// Who is there, and who is not.
	for _, m := range members {
		if !m.InRaft {
			return change{opAdd, m.ID, "it joined the cluster"}
		}
	}
	for _, m := range leaving {
		const reason = "it was removed from the cluster"
		switch {
		case m.Leader && len(voters) > 1:
			return change{opStepDown, m.ID, reason}
		case !m.Leader && majorityWithout(voters, m.ID):
			return change{opRemove, m.ID, reason}
		case !m.Leader && len(candidates) > 0:
			return change{opPromote, candidates[0].ID, fmt.Sprintf("the voter %s is to be removed", m.ID.Short())}
		}
	}

	target := voterTarget(len(members))
	n := len(voters)

	// Too many, or an even number with a dead one among them.
	if len(dead) > 0 && n > 3 && n%2 == 0 {
		return demote(dead, voters, perZone, "it is dead and the number of voters is even")
	}
	if n > target && (n > 3 || n == 2) {
		if leaver := lastLeaver(voters); leaver.Leader {
			return change{opStepDown, leaver.ID, "it is drained and another node votes in its place"}
		}
		return demote(voters, voters, perZone, fmt.Sprintf("%d nodes want %d voters", len(members), target))
	}

	// A dead one to replace.
	if len(dead) > 0 && len(candidates) > 0 && n == target {
		switch {
		case n > 3:
			return demote(dead, voters, perZone, "it is dead and another node is ready")
		case n == 3:
			return change{opPromote, candidates[0].ID, fmt.Sprintf("it replaces the dead voter %s", dead[0].ID.Short())}
		}
	}

	// Too few. From an odd number, start only when the next odd one can be reached.
	if n < target && len(candidates) > 0 && (n%2 == 0 || len(candidates) >= 2) {
		return change{opPromote, candidates[0].ID, fmt.Sprintf("%d nodes want %d voters", len(members), target)}
	}

	// The right number in the wrong places.
	if n == target && len(candidates) > 0 && unwell == 0 && !candidates[0].Leaving {
		best := candidates[0]
		if leaver := lastLeaver(voters); leaver.ID != "" {
			return change{opPromote, best.ID, fmt.Sprintf("it takes the vote over from %s, which is drained", leaver.ID.Short())}
		}
		for _, v := range voters {
			if perZone[v.Zone] >= perZone[best.Zone]+2 {
				return change{opPromote, best.ID, fmt.Sprintf("zone %s has %d voters, zone %s has %d",
					v.Zone, perZone[v.Zone], best.Zone, perZone[best.Zone])}
			}
		}
	}
	return change{}
}

// lastLeaver is a voter that is drained to be removed; the leader only when it is the last
// such one. The zero member is none.
func lastLeaver(voters []member) (out member) {
	for _, v := range voters {
		if v.Leaving && (out.ID == "" || out.Leader) {
			out = v
		}
	}
	return out
}

// alive says that the leader, or a report, vouches for the node.
func (m member) alive() bool { return m.Leader || m.AliveFor > 0 }

// majorityWithout says whether the living voters are a majority of what remains
// without one of them. A change that leaves none could not even be agreed on.
func majorityWithout(voters []member, id volume.NodeID) bool {
	living, total := 0, 0
	for _, v := range voters {
		if v.ID == id {
			continue
		}
		total++
		if v.alive() {
			living++
		}
	}
	return 2*living > total
}

// demote picks the one to go: dead before alive, then one that is leaving anyway, then
// from the fullest zone, and within it a witness last (it was put where it is to vote). Nobody goes whose going
// would cost the majority.
func demote(from, voters []member, perZone map[volume.Zone]int, reason string) change {
	from = slices.DeleteFunc(slices.Clone(from), func(m member) bool {
		return m.Leader || !majorityWithout(voters, m.ID)
	})
	if len(from) == 0 {
		return change{}
	}
	slices.SortFunc(from, func(a, b member) int {
		return cmp.Or(compareBool(a.alive(), b.alive()), compareBool(b.Leaving, a.Leaving), cmp.Compare(perZone[b.Zone], perZone[a.Zone]),
			compareBool(a.Witness, b.Witness), cmp.Compare(b.ID, a.ID))
	})
	return change{opDemote, from[0].ID, reason}
}

// compareBool puts false first.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
