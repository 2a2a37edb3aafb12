package daemon

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// leases is the leader's side: it answers beats, grants leases, takes back those that
// are surely over, and arms and disarms failover. It lives as long as one reign; all
// that it knows it has heard in it.
type leases struct {
	m *member

	mu     sync.Mutex
	reign  uint64 // that TakeLead began
	began  lease.Moment
	keeper *lease.Keeper // nil while failover is manual
	round  uint64        // of keeper
	since  lease.Moment  // the round was first seen
	beats  map[volume.NodeID]beat
	wake   chan struct{}
	unfit  string // what was last logged of the timers; step's own
}

// beat is a node's last.
type beat struct {
	api.BeatRequest
	at lease.Moment
	// life is when, by its own time, it last beat under a lease that ran, and lived that
	// lease's number.
	life  time.Time
	lived uint64
}

// leasesEvery is how often the leader looks, at most: lease.Keeper must be told the
// time more often than once a second.
const leasesEvery = 500 * time.Millisecond

// keepLeases runs the leader's side until ctx ends.
func (m *member) keepLeases(ctx context.Context) error {
	if _, err := m.cluster.Wait(ctx, func(s *state.State) bool { return s.Cluster() != nil && s.Node(m.self) != nil }); err != nil {
		return nil // the reign is over
	}
	first, err := m.commit(ctx, newRequest(), state.TakeLead{Leader: m.self})
	if err != nil {
		return fmt.Errorf("taking the lead: %w", err)
	}
	l := &leases{m: m, reign: first.Reign, began: m.clock(), beats: map[volume.NodeID]beat{}, wake: make(chan struct{}, 1)}
	m.leases.Store(l)
	defer m.leases.CompareAndSwap(l, nil)
	tick := time.NewTicker(leasesEvery)
	defer tick.Stop()
	for {
		news := m.cluster.Changed()
		if err := l.step(ctx); err != nil && ctx.Err() == nil {
			m.log.Warn("the leases cannot be looked after; it will be tried again", "err", err)
		}
		select {
		case <-news:
		case <-l.wake:
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// step does what is to be done now.
func (l *leases) step(ctx context.Context) error {
	v := l.look()
	if unfit := unfitTimers(v.state.Failover(), v.election); unfit != l.unfit {
		if l.unfit = unfit; unfit != "" {
			l.m.log.Error("failover does not do as it is agreed", "why", unfit)
		}
	}
	for _, c := range decideLeases(v) {
		if r, ok := c.(state.RevokeLease); ok {
			l.mu.Lock()
			sure := l.keeper != nil && l.keeper.Revoke(l.m.clock(), r.Node, r.No)
			l.mu.Unlock()
			if !sure {
				continue
			}
		}
		ctx, cancel := context.WithTimeout(ctx, commitTimeout)
		_, err := l.m.commit(ctx, newRequest(), c)
		cancel()
		if err != nil && volume.CodeOf(err) != volume.CodeConflict {
			return err
		}
	}
	return nil
}

// commitTimeout bounds one commit: while it is waited for, nobody else gets a lease.
const commitTimeout = 5 * time.Second

// know brings the keeper up to the state. The caller has the lock.
func (l *leases) know(now lease.Moment, s *state.State) {
	f := s.Failover()
	switch {
	case !f.Enforced():
		l.keeper, l.round, l.since = nil, 0, 0
		return
	case l.keeper == nil || l.round != f.Round:
		l.keeper, l.round, l.since = lease.NewKeeper(f.Timers, now), f.Round, now
	}
	for n := range s.AllNodes() {
		if n.Removed || n.Witness {
			l.keeper.Forget(n.ID)
			continue
		}
		l.keeper.Know(now, n.ID, n.Lease.No, !n.Lease.Valid(f), patience(s, n.Lease.Safety, l.safety(n)))
		if no := l.beats[n.ID].Beat.Stopped; no != 0 && n.Lease.Valid(f) {
			l.keeper.Stopped(n.ID, no)
		}
	}
}

// safety is how surely a node stops its writers, by its last word in this reign or, if
// it has not been heard in it, by what it said when it got its lease.
func (l *leases) safety(n *state.Node) volume.Safety {
	if b, ok := l.beats[n.ID]; ok {
		return b.Safety
	}
	return n.Lease.Safety
}

// patience is how long to wait for a silent node, as lease.Keeper has it: by the worse
// of what it said of itself when it got its lease and what it says now.
func patience(s *state.State, granted, now volume.Safety) time.Duration {
	f, set := s.Failover(), s.Cluster().Settings
	switch {
	case f.Mode != state.FailoverAutomatic || f.Timers.Safe() != nil:
		return lease.Never
	case granted.Hard() && now.Hard():
		return 0
	case set.SoftwareFencing:
		return f.Timers.Promote * 3 / 2
	}
	return lease.Never
}

// note what a beat says.
func (l *leases) note(now lease.Moment, req api.BeatRequest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.beats[req.Node] = l.beats[req.Node].then(req, now)
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// then is the beat after b.
func (b beat) then(req api.BeatRequest, now lease.Moment) beat {
	next := beat{BeatRequest: req, at: now, life: b.life, lived: b.lived}
	if req.Beat.No != 0 && !req.Beat.Want && req.Problem == "" {
		next.life, next.lived = req.At, req.Beat.No
	}
	return next
}

// life is when a node last said that its lease of this number runs, by its own time; zero
// when this leader has not heard that.
func (l *leases) life(node volume.NodeID, no uint64) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b := l.beats[node]; b.lived == no {
		return b.life
	}
	return time.Time{}
}

// answer says whether a beat may be answered that arrived at that moment, after a proof
// of leadership that began later.
func (l *leases) answer(now, arrived lease.Moment, req api.BeatRequest) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.m.cluster.State()
	l.know(now, s)
	f, n := s.Failover(), s.Node(req.Node)
	if l.keeper == nil || n == nil || n.Removed || !n.Lease.Valid(f) || req.Round != f.Round || req.Beat.Boot != n.Lease.Boot {
		return false
	}
	return l.keeper.Answer(now, arrived, req.Node, req.Beat.No)
}

// remaining is how long a silent node is still waited for, in seconds; nil when it is
// not taken for lost by time.
func (l *leases) remaining(id volume.NodeID) *float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.keeper == nil {
		return nil
	}
	left, ok := l.keeper.Remaining(l.m.clock(), id)
	if !ok {
		return nil
	}
	s := round(left).Seconds()
	return &s
}

// Beat implements api.Peer, on the leader.
func (m *member) Beat(ctx context.Context, req api.BeatRequest) (api.BeatReply, error) {
	arrived := m.clock()
	if from, ok := api.Caller(ctx); !ok || from != req.Node {
		return api.BeatReply{}, volume.Errorf(volume.CodeDenied, "a node sends its own beats only")
	}
	l := m.leases.Load()
	if l == nil {
		return api.BeatReply{}, errNotLeader
	}
	l.note(arrived, req)
	if req.Beat.No == 0 || req.Beat.Want || req.Problem != "" {
		return api.BeatReply{}, nil // nothing to renew
	}
	if _, err := m.cluster.Barrier(ctx); err != nil {
		if isNotLeader(err) {
			err = errNotLeader
		}
		return api.BeatReply{}, err
	}
	// The reign may be another one by now; its own keeper decides.
	if l = m.leases.Load(); l == nil {
		return api.BeatReply{}, errNotLeader
	}
	return api.BeatReply{Answered: l.answer(m.clock(), arrived, req)}, nil
}

// leaseView is what decideLeases looks at.
type leaseView struct {
	state    *state.State
	reign    uint64
	heard    map[volume.NodeID]uint64 // leases of which beats were answered
	voters   int                      // in Raft's configuration; 0: not known
	election time.Duration            // how long a change of leader may take
	leading  time.Duration            // this leader has listened for so long
	arming   time.Duration            // the round has been arming for so long, as far as it knows
	nodes    map[volume.NodeID]lessee
}

// lessee is what a leader has heard of one node.
type lessee struct {
	heard  bool   // lately
	unfit  string // why it can hold no lease
	want   bool   // it asks for one
	round  uint64
	boot   string
	safety volume.Safety
	lost   string // why its lease is surely over; "" when it is not
	proven bool   // the node itself says so
}

// look is the present view.
func (l *leases) look() leaseView {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, s := l.m.clock(), l.m.cluster.State()
	l.know(now, s)
	v := leaseView{state: s, reign: l.reign, voters: l.m.voters(), election: l.m.cluster.ElectionTime(), nodes: map[volume.NodeID]lessee{}}
	v.leading = now.Sub(l.began)
	if s.Failover().Mode == state.FailoverArming {
		v.arming = now.Sub(l.since)
	}
	timers := timersOf(s)
	for id, b := range l.beats {
		v.nodes[id] = lessee{
			heard: now.Sub(b.at) <= 3*timers.Heartbeat, unfit: b.Problem,
			want: b.Beat.Want, round: b.Round, boot: b.Beat.Boot, safety: b.Safety,
		}
	}
	if l.keeper == nil {
		return v
	}
	v.heard = l.keeper.Heard()
	for _, id := range l.keeper.Lost(now) {
		n := v.nodes[id]
		if l.beats[id].Beat.Stopped == s.Node(id).Lease.No {
			n.lost, n.proven = "it has stopped all its writers", true
		} else {
			n.lost = fmt.Sprintf("it was not heard of for %s, and must have stopped its writers by now", s.Failover().Timers.Promote)
		}
		v.nodes[id] = n
	}
	return v
}

// timersOf the present round, or those that the next would have.
func timersOf(s *state.State) lease.Timers {
	if f := s.Failover(); f.Enforced() {
		return f.Timers
	}
	t, _ := lease.Profile(leaseProfile(s))
	return t
}

// agreeWithin is how long a round may wait for a node that is not fit to agree. Until all
// have agreed nobody is failed over, but those who have stop their writers with their
// leases.
const agreeWithin = time.Minute

// decideLeases is what a leader commits now, in order. It is pure.
func decideLeases(v leaseView) (do []state.Command) {
	if v.state.Cluster() == nil {
		return nil // it is just being made
	}
	f := v.state.Failover()
	for n := range v.state.Nodes() {
		if x := v.nodes[n.ID]; f.Enforced() && n.Lease.Valid(f) && x.lost != "" && (x.proven || f.Mode == state.FailoverAutomatic && f.Timers.Safe() == nil) {
			do = append(do, state.RevokeLease{Node: n.ID, No: n.Lease.No, Reason: x.lost, Proven: x.proven, Reign: v.reign})
		}
	}
	why := v.manual()
	switch {
	case f.Mode == state.FailoverManual && why == "":
		return append(do, v.arm())
	case f.Mode == state.FailoverManual:
		return do
	case v.forced() != "":
		return append(do, state.DisarmFailover{Round: f.Round, Reason: v.forced()})
	case f.Mode == state.FailoverArming && len(v.state.NotHeard(v.heard)) == 0:
		return append(do, state.CompleteArming{Round: f.Round, Heard: v.heard})
	case f.Mode == state.FailoverArming && v.arming > agreeWithin && why != "":
		return append(do, state.DisarmFailover{Round: f.Round, Reason: why})
	case f.Mode == state.FailoverAutomatic && f.Profile != v.profile() && why == "" && len(v.state.NotHeard(v.heard)) == 0:
		return append(do, v.arm())
	}
	for n := range v.state.Nodes() {
		x := v.nodes[n.ID]
		if n.Witness || !x.heard || x.unfit != "" || !x.want || x.round != f.Round || n.Lease.Valid(f) {
			continue
		}
		do = append(do, state.GrantLease{Node: n.ID, No: n.Lease.No + 1, Boot: x.boot, Round: f.Round, Safety: x.safety})
	}
	return do
}

func (v leaseView) profile() string {
	if p := leaseProfile(v.state); p != "" {
		return p
	}
	return lease.Profiles()[0]
}

func (v leaseView) arm() state.Command {
	t, _ := lease.Profile(v.profile())
	return state.ArmFailover{Round: v.state.Failover().Round + 1, Timers: t, Profile: v.profile()}
}

// forced is why failover must be manual whatever the nodes are like; "" when not.
func (v leaseView) forced() string {
	switch {
	case v.state.Cluster().Settings.Failover == state.FailoverManual:
		return "an operator has set failover=manual"
	case v.state.Failover().Enforced() && v.state.Failover().Timers.Safe() != nil:
		return unfitTimers(v.state.Failover(), v.election)
	case v.voters > 0 && v.voters < 3:
		return fmt.Sprintf("with %s nobody could tell a dead node from a cut network", count(v.voters, "voter"))
	}
	return ""
}

// unfitTimers is what is wrong with the timers that the nodes have agreed on; "" when they
// are sound. They were when they were agreed on; but a later version may know better, and
// the control plane's own timers are each flockd's, read when it starts. So it is asked again
// and again, not only at an arming.
//
// Unsafe ones end that by time alone anybody is taken for lost, and then failover itself
// (forced), which stops nobody: it is armed again by sound ones. With those that only make
// healthy nodes lose their leases failover goes on: to end it would leave the volumes of a
// lost node waiting now, for a fault that comes with the next change of leader, if it does.
func unfitTimers(f state.Failover, election time.Duration) string {
	if !f.Enforced() {
		return ""
	}
	if err := f.Timers.Safe(); err != nil {
		return fmt.Sprintf("the timers of failover's round %d are not safe: %v", f.Round, err)
	}
	if err := f.Timers.Check(election); err != nil {
		return fmt.Sprintf("the lease profile %s does not fit the control plane's timers, so that healthy nodes may stop their writers: %v", cmp.Or(f.Profile, lease.Profiles()[0]), err)
	}
	return ""
}

// manual is why failover cannot be automatic now, in words; "" when it can.
func (v leaseView) manual() string {
	if why := v.forced(); why != "" || v.voters == 0 {
		return cmp.Or(why, "the voters are not known yet")
	}
	t, _ := lease.Profile(v.profile())
	if err := t.Check(v.election); err != nil {
		return fmt.Sprintf("the lease profile %s does not fit the control plane's timers: %v", v.profile(), err)
	}
	var unfit []string
	members, writers := 0, v.writers()
	for n := range v.state.Nodes() {
		members++
		x := v.nodes[n.ID]
		switch {
		case n.Witness || !x.heard && !writers[n.ID] && v.leading > agreeWithin:
		case !x.heard:
			unfit = append(unfit, fmt.Sprintf("node %s is not heard of", n.Name))
		case x.unfit != "":
			unfit = append(unfit, fmt.Sprintf("node %s: %s", n.Name, x.unfit))
		}
	}
	if members < 3 {
		return fmt.Sprintf("with %s nobody could tell a dead node from a cut network", count(members, "node"))
	}
	slices.Sort(unfit)
	return strings.Join(unfit, "; ")
}

// writers are the nodes that could be writing: the primaries of anything. Others that are
// dead do not stand in the way.
func (v leaseView) writers() map[volume.NodeID]bool {
	out := map[volume.NodeID]bool{}
	for _, id := range v.state.NotHeard(nil) {
		out[id] = true
	}
	return out
}

// voters in Raft's configuration, as this node knows it.
func (m *member) voters() (n int) {
	for _, votes := range m.cluster.Servers() {
		if votes {
			n++
		}
	}
	return n
}

func count(n int, what string) string {
	if n == 1 {
		return "one " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
