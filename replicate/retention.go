package replicate

import (
	"slices"

	"github.com/flocker-io/flocker/internal/volume"
)

const (
	keepNewest    = 3   // engine snapshots that always stay
	keepAbove     = 8   // at most so many more at or above the floor
	keepBookmarks = 100 // of the engine's
	// pruneBatch is how many snapshots must be in excess before a dataset is pruned:
	// one command then removes them all.
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
}

// pruning is what keep wants done, in this order: mark, destroy, unmark.
type pruning struct {
	mark    []snap // leave a bookmark first
	destroy []snap
	unmark  []mark
}

// keep is the retention rule of one copy, on a primary and on a replica alike.
//
// A user's snapshot always stays, and so does one with a hold or a clone. Of the
// engine's, the newest few stay, those that must (stay), and at most keepAbove
// more at or above the floor. Before one is destroyed that somebody may stand on,
// and before the newest of those destroyed, a bookmark is left. The newest
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

	marked := map[guid]bool{}
	for _, m := range k.marks {
		marked[m.guid] = true
	}
	for i, s := range p.destroy {
		if (i == 0 || k.reachable[s.guid]) && !marked[s.guid] {
			p.mark = append(p.mark, s)
		}
	}
	slices.Reverse(p.mark)
	slices.Reverse(p.destroy)

	count := len(p.mark)
	for _, m := range slices.Backward(k.marks) {
		if _, _, ours := volume.ParseSnapshotName(m.name); !ours {
			continue
		}
		count++
		if count > keepBookmarks && !k.reachable[m.guid] && !k.stay[m.guid] {
			p.unmark = append(p.unmark, m)
		}
	}
	slices.Reverse(p.unmark)
	return p
}
