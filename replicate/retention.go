package replicate

import (
	"slices"

	"github.com/flocker-io/flocker/internal/volume"
)

const (
	keepNewest    = 3   // engine snapshots that always stay
	keepAbove     = 8   // at most so many more at or above the floor
	keepBookmarks = 100 // of the engine's, and as many others
	// pruneBatch is how many snapshots must be in excess somewhere before copies are
	// pruned: one command then removes them all, of all copies.
	pruneBatch = 8
)

// kept is what keep goes by.
type kept struct {
	snaps []snap
	marks []mark
	// floor is the lowest position acknowledged by a replica that is there; zero:
	// unknown, then nothing counts as above it.
	floor volume.Position
	// stay are guids that must stay as snapshots: bases of replicas that are there,
	// ends of streams under way, what somebody waits for.
	stay map[guid]bool
	// reachable are guids that somebody may stand on: as snapshot or as bookmark.
	reachable map[guid]bool
	// policy says how many scheduled snapshots of each rule stay.
	policy volume.SnapshotPolicy
	// dropped are guids of snapshots that people removed on the primary, also on one
	// that this node has taken over from.
	dropped map[guid]bool
}

// pruning is what keep wants done, in this order: mark, destroy, unmark.
type pruning struct {
	mark    []snap // leave a bookmark first
	destroy []snap
	unmark  []mark
}

// ripe says that it is worth a command: enough has come together, or something
// people wait for.
func (p pruning) ripe() bool {
	return len(p.destroy) >= pruneBatch || len(p.unmark) >= pruneBatch ||
		slices.ContainsFunc(p.destroy, func(s snap) bool { return !s.engine() })
}

// keep is the retention rule of one copy, on a primary and on a replica alike.
//
// What has a hold or a clone on it stays, and what must (stay). Of the engine's
// snapshots the newest few stay, and at most keepAbove more at or above the floor;
// of the scheduled ones what the policy says; users' stay until their primary says
// that they were removed. The newest snapshot of all stays.
//
// Before one is destroyed that somebody may stand on, a bookmark is left, and so
// that a removal is not forgotten, of each that was removed. The newest
// keepBookmarks bookmarks stay, and all that somebody may stand on.
func keep(k kept) pruning {
	var p pruning
	newest, above := 0, 0
	for _, s := range slices.Backward(k.snaps) {
		if !s.engine() {
			continue
		}
		newest++
		switch {
		case newest <= keepNewest, s.pinned, k.stay[s.guid]:
			continue
		case !k.floor.IsZero() && s.pos.Compare(k.floor) >= 0 && above < keepAbove:
			above++
			continue
		}
		p.destroy = append(p.destroy, s)
	}
	others := surplus(k.snaps, k.policy, false)
	for _, s := range k.snaps {
		if !s.engine() && k.dropped[s.guid] && !slices.Contains(others, s) {
			others = append(others, s)
		}
	}
	for _, s := range others {
		if !s.pinned && !k.stay[s.guid] && s.guid != k.snaps[len(k.snaps)-1].guid {
			p.destroy = append(p.destroy, s)
		}
	}
	slices.SortStableFunc(p.destroy, func(a, b snap) int { return compare(a.txg, b.txg) })

	marked, buried := map[guid]bool{}, map[guid]bool{}
	for _, m := range k.marks {
		marked[m.guid] = marked[m.guid] || m.ours()
		buried[m.guid] = buried[m.guid] || m.tombstone()
	}
	engine, other := 0, 0
	for _, s := range p.destroy {
		if k.reachable[s.guid] && !marked[s.guid] || k.dropped[s.guid] && !buried[s.guid] {
			p.mark = append(p.mark, s)
			if s.engine() {
				engine++
			} else {
				other++
			}
		}
	}
	for _, m := range slices.Backward(k.marks) {
		if !m.ours() {
			continue
		}
		count := &other
		if m.engine() {
			count = &engine
		}
		if *count++; *count > keepBookmarks && !k.reachable[m.guid] && !k.stay[m.guid] {
			p.unmark = append(p.unmark, m)
		}
	}
	slices.Reverse(p.unmark)
	return p
}
