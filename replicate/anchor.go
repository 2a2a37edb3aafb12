package replicate

import (
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// anchorEvery is how many snapshots the engine may take before all replicas must
// have one of them in common again.
const anchorEvery = 16

// anchoring decides which snapshot all replicas have in common. Each is sent from
// where it stands straight to the newest, so two that are slow, or cut off by turns,
// may each have what the other skipped, and after a failover nothing that the one
// could be sent from by the other. So there is always an anchor, which both sides
// keep; when it gets old, the newest snapshot becomes the goal, at which every link
// stops, and then the anchor. Where all replicas keep up none has to stop anywhere.
type anchoring struct {
	snaps        []snap
	anchor, goal guid
	replicas     []foothold // of those that are there and have a copy
}

// foothold is where one replica stands.
type foothold struct {
	acked   guid
	txg     uint64 // of acked; 0: not known here
	reached bool   // it had exactly the goal
}

// next is the anchor and the goal from now on; 0: none.
func (a anchoring) next() (anchor, goal guid) {
	if len(a.replicas) < 2 {
		return 0, 0
	}
	newest, old, to := snap{}, snap{}, snap{}
	for _, s := range a.snaps {
		if s.engine() {
			newest = s
		}
		if s.guid == a.anchor {
			old = s
		}
		if s.guid == a.goal {
			to = s
		}
	}
	first := a.replicas[0].acked
	alike, all, missed := true, true, false
	for _, r := range a.replicas {
		alike = alike && r.acked == first
		all = all && r.reached
		missed = missed || !r.reached && r.txg > to.txg
	}
	if i := slices.IndexFunc(a.snaps, func(s snap) bool { return s.guid == first }); alike && i >= 0 {
		return first, 0
	}
	switch {
	case to.guid != 0 && all:
		return to.guid, 0
	case to.guid != 0 && !missed:
		return old.guid, to.guid
	case old.guid == 0, old.pos.Epoch != newest.pos.Epoch, newest.pos.Seq-old.pos.Seq >= anchorEvery:
		return old.guid, newest.guid
	}
	return old.guid, 0
}

// weigh moves the anchor of a primary's copy on. The caller holds mu.
func (e *Engine) weigh(a *Assignment, c *localCopy, now time.Time) {
	an := anchoring{snaps: c.snaps, anchor: c.anchor, goal: c.goal}
	for _, replica := range a.Replicas {
		l := e.links[linkKey{a.Volume, replica, a.Epoch}]
		if l == nil || l.acked.IsZero() || l.away(now) {
			continue
		}
		f := foothold{acked: guid(l.acked.GUID)}
		_, f.txg = c.place(f.acked)
		f.reached = c.goal != 0 && (l.reached == c.goal || f.acked == c.goal)
		an.replicas = append(an.replicas, f)
	}
	c.anchor, c.goal = an.next()
}

// halts are the snapshots at which a link stops besides users': also the one that the volume was
// rolled back to, because only a copy that has it can say whether it is on that line.
func (c *localCopy) halts(line volume.Line) map[guid]int {
	if c.goal == 0 && line.IsZero() {
		return c.stops
	}
	halts := map[guid]int{c.goal: 1, guid(line.GUID): 1}
	delete(halts, 0)
	for g, n := range c.stops {
		halts[g] = n
	}
	return halts
}

// anchors are what the replicas that are there are told to keep in common.
func (c *localCopy) anchors() (list []guid) {
	for _, g := range []guid{c.anchor, c.goal} {
		if g != 0 {
			list = append(list, g)
		}
	}
	return list
}

// footings are the guids that some replica may have to be sent from: where each
// stands, where it stood before, and the anchor that it had when it was last heard of.
func (c *localCopy) footings() (list []guid) {
	for _, id := range sortedBases(c.bases) {
		for _, g := range []guid{c.bases[id].guid, c.bases[id].before, c.bases[id].anchor} {
			if g != 0 && !slices.Contains(list, g) {
				list = append(list, g)
			}
		}
	}
	return list
}
