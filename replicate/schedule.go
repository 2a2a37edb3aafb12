package replicate

import (
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// surplus are the scheduled snapshots that a policy has no room for, oldest first:
// of each of its rules all but the newest Keep, in the order they were taken and
// whatever their names say, since a clock may have jumped. With orphans also those
// of rules that the policy does not have; without, a policy that was changed by
// mistake costs no history.
func surplus(snaps []snap, policy volume.SnapshotPolicy, orphans bool) []snap {
	var out []snap
	newer := make([]int, len(policy))
	for _, s := range slices.Backward(snaps) {
		if s.rule == 0 {
			continue
		}
		i := slices.IndexFunc(policy, func(r volume.SnapshotRule) bool { return r.Every == s.rule })
		if i < 0 && orphans || i >= 0 && newer[i] >= policy[i].Keep {
			out = append(out, s)
		}
		if i >= 0 {
			newer[i]++
		}
	}
	slices.Reverse(out)
	return out
}

// agenda is what decides which scheduled snapshots of a volume are due.
type agenda struct {
	policy volume.SnapshotPolicy
	now    time.Time
	snaps  []snap
	marks  []mark
	// changed says that something was written since the newest snapshot.
	changed bool
	// taken is when this process took the newest of a rule. It is compared with now by
	// the monotonic clock, which does not jump.
	taken map[time.Duration]time.Time
}

// due are the rules of which a snapshot is to be taken now: at most one in each
// slot of time, of that name and no other, and only when something was written since
// the rule's newest. One that was removed by hand does not come back in its slot. A
// clock that jumps to ever new slots still takes no more than two in a period.
func (a agenda) due() []time.Duration {
	var rules []time.Duration
	for _, r := range a.policy {
		if a.dueBy(r.Every) {
			rules = append(rules, r.Every)
		}
	}
	return rules
}

func (a agenda) dueBy(every time.Duration) bool {
	if t, ok := a.taken[every]; ok && a.now.Sub(t) < every/2 {
		return false
	}
	slot, changed, first := volume.Slot(every, a.now), a.changed, true
	for _, s := range slices.Backward(a.snaps) {
		if s.rule == every && s.slot.Equal(slot) {
			return false
		}
		if s.rule == every {
			first = false
		}
		changed = changed || first && s.written > 0
	}
	if !first && !changed {
		return false
	}
	name := tombstone + volume.ScheduledName(every, slot)
	return !slices.ContainsFunc(a.marks, func(m mark) bool { return m.name == name })
}
