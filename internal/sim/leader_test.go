package sim

import (
	"strconv"
	"time"

	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/placement"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// raft is a node's part in electing leaders and agreeing on the log, as Raft promises
// it, and what a leader does with that.
type raft struct {
	term   int
	leads  bool
	ledBy  int // the leader it heard last; -1: none
	heard  lease.Moment
	quorum lease.Moment // as leader: when it last reached a majority
	round  *round       // of asking the others, under way
	next   *round       // begins when that has ended

	reign  uint64
	keeper *lease.Keeper // nil until the lead is taken
	armed  uint64        // the round of failover that keeper is for
	votes  [volumes]*ballot
	// reports are when it heard of each node, revoked when it last tried to end its lease.
	reports, revoked map[volume.NodeID]lease.Moment
}

// round asks all voters whether they know of no later term. Who shares one must have
// come before it began.
type round struct {
	began lease.Moment
	yes   []bool
	then  []func()
}

// ballot collects what replicas hold.
type ballot struct {
	epoch   volume.Epoch
	began   lease.Moment
	answers map[volume.NodeID]placement.Answer
	chosen  lease.Moment // when a promotion was proposed last
}

// ---- Raft

// reaches says that both ways work now and the other end is awake.
func (n *node) reaches(o *node) bool {
	return !o.hung && (n == o || !o.down && !o.frozen && !n.w.cut[n.i][o.i] && !n.w.cut[o.i][n.i])
}

// hearsOf a term: who led an earlier one leads no more.
func (n *node) hearsOf(term int) {
	if n.term < term {
		n.term = term
		n.depose()
	}
}

func (n *node) depose() {
	n.leads, n.keeper, n.round, n.next, n.votes = false, nil, nil, nil, [volumes]*ballot{}
}

// prove runs then once a majority has confirmed this leader after now, if ever.
func (n *node) prove(then func()) {
	if n.next == nil {
		n.next = &round{}
	}
	n.next.then = append(n.next.then, then)
	if n.round == nil {
		n.ask()
	}
}

// ask begins the next round, or repeats the one that got no answer.
func (n *node) ask() {
	if n.round == nil {
		n.round, n.next = n.next, nil
		n.round.yes = make([]bool, len(n.w.nodes))
		n.round.yes[n.i] = true
	}
	r, term := n.round, n.term
	r.began = n.clock()
	for _, o := range n.w.nodes {
		if o == n || r.yes[o.i] {
			continue
		}
		n.w.send(n.i, o.i, func() {
			if o.hung || o.term > term {
				return
			}
			o.hearsOf(term)
			n.w.send(o.i, n.i, func() {
				r.yes[o.i] = true
				if n.round == r && n.leads && n.term == term && !n.hung && 2*count(r.yes) > len(r.yes) {
					n.proven(r)
				}
			})
		})
	}
}

func count(yes []bool) (c int) {
	for _, y := range yes {
		if y {
			c++
		}
	}
	return c
}

func (n *node) proven(r *round) {
	n.round = nil
	// The majority's answers and what follows from them are one moment here: a later
	// leader would have made one of those that answered refuse.
	for _, o := range n.w.nodes {
		if o.leads && o.term > n.term {
			return
		}
	}
	for _, then := range r.then {
		then()
	}
	if n.next != nil && n.round == nil {
		n.ask()
	}
}

// propose commits a command if this node leads, and may take long to begin with it: so
// long that it may lead again by then.
func (n *node) propose(c state.Command) {
	if n.w.oneIn(20) || n.hung && n.w.oneIn(2) {
		if !n.hung && n.w.oneIn(3) {
			n.w.partition(n.i, true, true, n.w.upTo(15*time.Second))
		}
		n.flockd(n.w.upTo(40*time.Second), func() { n.proposeNow(c) })
		return
	}
	n.proposeNow(c)
}

func (n *node) proposeNow(c state.Command) {
	if !n.leads {
		return
	}
	n.prove(func() {
		if n.at == len(n.w.states)-1 {
			n.w.commit(c)
			n.at++
		}
	})
}

func (n *node) raftLook() {
	now := n.clock()
	switch {
	case n.hung: // flockd goes on as if it led, and nothing gets committed
		if n.leads && n.keeper != nil {
			n.keepLeases(now)
			n.keepVolumes(now)
		}
	case n.leads:
		n.lead(now)
	case now.Sub(n.heard) > 1500*time.Millisecond+n.w.upTo(1500*time.Millisecond):
		n.campaign(now)
	}
}

func (n *node) campaign(now lease.Moment) {
	votes, w := 0, n.w
	for _, o := range w.nodes {
		if n.reaches(o) && o.clock().Sub(o.heard) > 1500*time.Millisecond && o.at <= n.at {
			votes++
		}
	}
	if 2*votes <= len(w.nodes) {
		return
	}
	w.terms++
	for _, o := range w.nodes {
		if n.reaches(o) {
			o.hearsOf(w.terms)
			o.heard = o.clock()
		}
	}
	n.term, n.leads, n.keeper, n.quorum = w.terms, true, nil, now
	w.note("node %d leads in term %d", n.i, n.term)
	w.tally.Leaders++
	// A majority has all that is committed, or it would not have voted so: the leader
	// comes to have it, too, and takes the lead. Only then it may act.
	n.prove(func() {
		n.at = len(w.states) - 1
		w.commit(state.TakeLead{Leader: n.id()})
		n.at++
		n.reign = n.state().Reign()
		n.keep(n.clock())
	})
}

// keep begins to keep the leases of a round.
func (n *node) keep(now lease.Moment) {
	f := n.state().Failover()
	n.armed = f.Round
	n.reports, n.revoked = map[volume.NodeID]lease.Moment{}, map[volume.NodeID]lease.Moment{}
	t := f.Timers
	// With no more of a wait than the inequality asks for, what breaks it shows soonest.
	t.Promote -= time.Second - time.Millisecond
	if n.w.broken.shortWait {
		t.Promote = t.TTL
	}
	n.keeper = lease.NewKeeper(t, now)
	if n.w.broken.hasty { // what was heard before is taken for long ago
		n.keeper = lease.NewKeeper(t, now.Add(-t.Promote+2*time.Second))
		for at := now.Add(-t.Promote + 2*time.Second); at < now; at += lease.Moment(time.Second) {
			n.know(at)
		}
	}
}

func (n *node) lead(now lease.Moment) {
	// Heartbeats carry the term and what is committed.
	w, term, index, reached := n.w, n.term, n.at, 0
	for _, o := range w.nodes {
		if n.reaches(o) && o.term <= term {
			reached++
		}
		if o == n {
			continue
		}
		w.send(n.i, o.i, func() {
			if o.term > term || o.hung {
				return
			}
			o.hearsOf(term)
			o.heard, o.ledBy = o.clock(), n.i
			if o.at < index {
				o.at = index
				o.follow()
			}
		})
	}
	n.ledBy = n.i
	if 2*reached > len(w.nodes) {
		n.quorum, n.heard = now, now
	} else if now.Sub(n.quorum) > time.Second {
		w.note("node %d leads no more", n.i)
		n.depose()
		n.heard = now
		return
	}
	if n.round != nil && now.Sub(n.round.began) > time.Second {
		n.ask()
	}
	if n.keeper != nil {
		n.keepLeases(now)
		n.keepVolumes(now)
	}
}

// ---- leases

// know brings the keeper up to the state.
func (n *node) know(now lease.Moment) {
	s := n.state()
	f := s.Failover()
	wait := time.Duration(0)
	if f.Mode != state.FailoverAutomatic {
		wait = lease.Never
	}
	for x := range s.Nodes() {
		n.keeper.Know(now, x.ID, x.Lease.No, x.Lease.Revoked && !n.w.broken.forgetful, wait)
	}
}

// hear is the leader reading a beat.
func (n *node) hear(from *node, b lease.Beat, round uint64, reply func(answered bool, index int)) {
	arrived := n.clock()
	if !n.leads || n.keeper == nil {
		return
	}
	s := n.state()
	f, held := s.Failover(), s.Node(from.id()).Lease
	stopped := b.Stopped
	if n.w.broken.guessStop && held.No > 0 && b.Boot != held.Boot {
		stopped = held.No
	}
	n.know(arrived)
	n.reports[from.id()] = arrived
	if stopped > 0 {
		n.keeper.Stopped(from.id(), stopped)
	}
	if b.Want && round == f.Round && f.Enforced() && !held.Valid(f) {
		n.grant(from, held, b.Boot)
	}
	answer := func() {
		if n.keeper == nil {
			return
		}
		n.know(n.clock())
		ok := n.keeper.Answer(n.clock(), arrived, from.id(), b.No)
		index := n.at
		n.w.send(n.i, from.i, func() { reply(ok, index) })
	}
	if n.w.broken.noProof {
		answer()
		return
	}
	n.prove(answer)
}

func (n *node) grant(to *node, held state.Lease, boot string) {
	f := n.state().Failover()
	n.propose(state.GrantLease{Node: to.id(), No: held.No + 1, Boot: boot, Round: f.Round, Safety: volume.SafetySysrq})
}

func (n *node) keepLeases(now lease.Moment) {
	s := n.state()
	f := s.Failover()
	if n.armed != f.Round {
		n.keep(now)
	}
	n.know(now)
	if !f.Enforced() {
		return
	}
	heard := n.keeper.Heard()
	if n.w.broken.grantAgrees {
		for x := range s.Nodes() {
			heard[x.ID] = x.Lease.No
		}
	}
	if f.Mode == state.FailoverArming && len(s.NotHeard(heard)) == 0 {
		n.propose(state.CompleteArming{Round: f.Round, Heard: heard})
	}
	for _, id := range n.keeper.Lost(now) {
		no := s.Node(id).Lease.No
		if s.Node(id).Lease.Valid(f) && now.Sub(n.revoked[id]) > 2*time.Second && n.keeper.Revoke(now, id, no) {
			n.revoked[id] = now
			n.propose(state.RevokeLease{Node: id, No: no, Reason: "lost", Reign: n.reign, Proven: f.Mode == state.FailoverArming})
		}
	}
	if n.w.broken.noRevoke {
		// It takes the volumes as soon as a few beats are missing.
		for x := range s.Nodes() {
			if left, ok := n.keeper.Remaining(now, x.ID); ok && left < f.Timers.Promote-f.Timers.TTL/2 {
				n.propose(state.RevokeLease{Node: x.ID, No: x.Lease.No, Reason: "late", Reign: n.reign})
			}
		}
	}
}

// ---- volumes

func (n *node) keepVolumes(now lease.Moment) {
	s := n.state()
	for i := range volumes {
		v := s.Volume(volumeID(i))
		switch {
		case v.Phase == state.PhaseMoving && n.w.oneIn(20):
			n.propose(state.AbortHandoff{ID: v.ID, Epoch: v.Epoch, Attempt: v.Pending.Attempt, Reason: "slow"})
		case v.Phase == state.PhaseElecting:
			n.elect(now, i, v)
		case s.Barred(v.Placement.Primary) && n.w.oneIn(4):
			n.propose(state.BeginElection{ID: v.ID, Epoch: v.Epoch, Reason: "barred"})
		case n.w.broken.barredInArming && s.Failover().Enforced() && !s.Node(v.Placement.Primary).Lease.Valid(s.Failover()):
			n.propose(state.BeginElection{ID: v.ID, Epoch: v.Epoch, Fenced: true, Reason: "barred"})
		default:
			n.votes[i] = nil
		}
	}
}

// elect asks the replicas for their promises, and promotes whom placement chooses.
func (n *node) elect(now lease.Moment, i int, v *state.Volume) {
	b, s := n.votes[i], n.state()
	if b == nil || b.epoch != v.Epoch {
		b = &ballot{epoch: v.Epoch, began: now, answers: map[volume.NodeID]placement.Answer{}}
		n.votes[i] = b
	}
	timers := s.Failover().Timers
	c := placement.Contest{Volume: v, Home: volume.DefaultZone, Answers: b.answers,
		Asked: now.Sub(b.began), Grace: 2 * timers.Call, Patience: timers.Promote}
	if len(b.answers) > 0 && now.Sub(b.chosen) > 2*time.Second {
		reports := map[volume.NodeID]placement.Heard{}
		for id, at := range n.reports {
			reports[id] = placement.Heard{Report: &healthy, At: time.Unix(0, int64(at))}
		}
		verdict := placement.Failover(placement.NewView(s, reports, time.Unix(0, int64(now))), c)
		if p := verdict.Promote; p != nil {
			// A promotion that gets lost is tried again.
			b.chosen = now
			// The note says whose answers were weighed: of those that may not be the primary
			// only while there is patience.
			asked := 0
			for id := range b.answers {
				if s.HasLease(id) || c.Asked < c.Patience {
					asked |= 1 << nodeOf(id)
				}
			}
			p.Note = strconv.Itoa(asked)
			n.propose(*p)
			return
		}
	}
	for _, id := range v.Placement.Replicas() {
		o := n.w.nodes[nodeOf(id)]
		n.w.send(n.i, o.i, func() {
			if p, ok := o.promise(i, v.Epoch); ok {
				n.w.send(o.i, n.i, func() { b.answers[id] = placement.Answer{Promise: p} })
			}
		})
	}
}

// healthy is what every node reports.
var healthy = volume.Report{Pool: volume.PoolInfo{Name: "tank", Health: "ONLINE", Size: 1 << 40, Free: 1 << 40}}
