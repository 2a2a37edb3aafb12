package lease

import (
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// maxGap is how long a leader may be stopped before it has to suppose that beats are
// waiting which it has not read. It grows with the profile, where slow machines are
// expected.
func (t Timers) maxGap() time.Duration { return max(time.Second, t.Heartbeat/2) }

// Never is the wait for a node that must not be taken for dead by time alone.
const Never time.Duration = -1

// Keeper is the leader's side of all leases, for one term of leadership and one round
// of arming: it says which beats may be answered, and whose lease is surely over. Its caller gives it
// every moment, in order, from the clock of one boot, and several each second
// (Tick). It is not safe for concurrent use.
type Keeper struct {
	timers Timers
	last   Moment
	nodes  map[volume.NodeID]*account
}

// account of one node.
type account struct {
	no       uint64 // of its lease
	from     Moment // the wait began
	wait     time.Duration
	revoking bool // no beat of this number is answered any more: it is, or may be, revoked
	stopped  bool // proof that nothing is written under this number
	heard    bool // some beat of this number was answered
}

// NewKeeper begins a term of leadership that was proven (by a Barrier) before now:
// everybody's wait begins here, since the leader before may have answered up to that
// proof.
func NewKeeper(t Timers, now Moment) *Keeper {
	return &Keeper{timers: t, last: now, nodes: map[volume.NodeID]*account{}}
}

// Know tells of a node, the number of its lease in the replicated state, whether that
// one is revoked, and how long to wait for it: 0 for Timers.Promote, more for one that
// cannot reset itself, Never for one that must not be taken for dead by time alone, as
// all of them while failover is arming. It may be called again and again; a new number
// begins a new wait.
//
// A node that has not applied the revocation yet, and whose lease never began, would
// still take an answer for it: so a leader must learn of revocations from here.
func (k *Keeper) Know(now Moment, node volume.NodeID, no uint64, revoked bool, wait time.Duration) {
	k.Tick(now)
	a := k.nodes[node]
	if a == nil || a.no != no {
		a = &account{no: no, from: now}
		k.nodes[node] = a
	}
	a.revoking = a.revoking || revoked
	if wait != Never {
		wait = max(wait, k.timers.Promote)
	}
	a.wait = wait
}

// Forget drops a node that is no member any more.
func (k *Keeper) Forget(node volume.NodeID) { delete(k.nodes, node) }

// Tick notes the time. After a gap the leader was stopped: every wait begins anew.
func (k *Keeper) Tick(now Moment) {
	if now.Sub(k.last) > k.timers.maxGap() {
		for _, a := range k.nodes {
			a.from = now
		}
	}
	k.last = now
}

// Answer says whether a beat may be answered that arrived at the moment given, after
// leadership has been proven by something that began after that moment, and Know was
// told the state as of that proof. From then on the node may write for as long as its
// lease runs.
func (k *Keeper) Answer(now, arrived Moment, node volume.NodeID, no uint64) bool {
	k.Tick(now)
	a := k.nodes[node]
	if a == nil || a.no != no || no == 0 || a.revoking || a.stopped {
		return false
	}
	// The beat was sent before it arrived, so the lease ends before this wait does.
	a.from, a.heard = max(a.from, arrived), true
	return true
}

// Heard are the nodes that were answered, with the numbers of their leases: these obey
// them. Arming is complete when all that could be writing are among them.
func (k *Keeper) Heard() map[volume.NodeID]uint64 {
	heard := map[volume.NodeID]uint64{}
	for id, a := range k.nodes {
		if a.heard {
			heard[id] = a.no
		}
	}
	return heard
}

// Stopped notes proof that a node writes nothing any more under the lease of this
// number: its beat says so (Beat.Stopped), or it left. From then on no beat of that
// number is answered: a new one must be granted first.
func (k *Keeper) Stopped(node volume.NodeID, no uint64) {
	if a := k.nodes[node]; a != nil && a.no == no {
		a.stopped = true
	}
}

// Lost are the nodes whose lease is over, in order of their IDs: nothing can be
// written under it any more, once its revocation is committed.
func (k *Keeper) Lost(now Moment) []volume.NodeID {
	k.Tick(now)
	var lost []volume.NodeID
	for id, a := range k.nodes {
		if a.stopped || a.wait != Never && now.Sub(a.from) >= a.wait {
			lost = append(lost, id)
		}
	}
	slices.Sort(lost)
	return lost
}

// Revoke says that the leader is about to commit the end of this lease: from now on
// no beat of it is answered, whatever becomes of the commit. ok is false when the
// lease is not over, or is another one by now: then nothing may be committed.
func (k *Keeper) Revoke(now Moment, node volume.NodeID, no uint64) (ok bool) {
	if a := k.nodes[node]; a == nil || a.no != no || !slices.Contains(k.Lost(now), node) {
		return false
	}
	k.nodes[node].revoking = true
	return true
}

// Remaining is how long the wait for a node still lasts, for people; ok is false
// when it never ends by time, or the node is not known.
func (k *Keeper) Remaining(now Moment, node volume.NodeID) (left time.Duration, ok bool) {
	a := k.nodes[node]
	if a == nil || a.wait == Never {
		return 0, false
	}
	return max(0, a.wait-now.Sub(a.from)), true
}
