package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/placement"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

const (
	// askTimeout bounds one call for promises, and promiseTime what the asked node takes
	// for all of them: what is not done by then is answered as an error, not by silence.
	askTimeout  = 10 * time.Second
	promiseTime = 8 * time.Second
	// askAgain is the time between two calls of a node that has not promised, and
	// askSilent of one that is not heard of either. A promise that was given stays true;
	// it is asked for anew after askFresh because a disk may be lost meanwhile.
	askAgain  = time.Second
	askSilent = 5 * time.Second
	askFresh  = 30 * time.Second
	// askMost volumes are asked about in one call. It answers for all of them together, so
	// that the last must be read long before promiseTime is over.
	askMost = 50
	// forbearance is how many times as long as others an old primary is waited for that lives,
	// may write and has merely not said yet what it has. Only it has what was acknowledged last. A
	// promise on a node that is overloaded takes several calls, which that gives it; and a minute
	// without the volume, with the usual timers, is still less than starting it by hand would take.
	forbearance = 3
	// promisesAtOnce bounds how many copies a node reads at the same time.
	promisesAtOnce = 4
	// electionGap is the shortest time between two looks.
	electionGap = 100 * time.Millisecond
	// electionsIdle is the longest, when nothing is being elected.
	electionsIdle = 10 * time.Second
)

// electorate is what elections need of the node that leads.
type electorate interface {
	placement.Cluster
	// Promise asks one node. It blocks until that has answered, or ctx ends.
	Promise(ctx context.Context, node volume.NodeID, req api.PromiseRequest) (api.PromiseReply, error)
	// Life is when, by its own time, a node last said that its last lease runs; zero: not
	// known. It never blocks.
	Life(node volume.NodeID) time.Time
}

// elections gets every volume that has lost its primary another one: it collects the
// promises of the nodes with a copy, has placement.Failover choose, and commits that. It
// runs on the leader and keeps nothing that a new leader would miss but the wishes of
// operators, who ask again.
type elections struct {
	leader electorate
	now    func() time.Time
	log    *slog.Logger

	count func(result string) // of elections, for metrics; see electionResults

	bell chan struct{} // an answer or a wish has come in

	mu     sync.Mutex
	open   map[volume.ID]*election
	barred map[volume.NodeID]time.Time   // since when it was seen that these may not write; look's own
	wishes map[volume.ID]*placement.Wish // of operators who wait
	asking map[volume.NodeID]bool
	passed chan struct{} // closed after the next look
}

// election is one volume's.
type election struct {
	epoch   volume.Epoch
	was     volume.NodeID // the primary before
	began   time.Time     // this node first saw it
	asked   time.Time     // when the last of the nodes that live was; zero: not all have been
	called  map[volume.NodeID]bool
	answers map[volume.NodeID]answered
	life    time.Time // see placement.Contest
	links   []volume.LinkStatus
	verdict placement.Verdict
	weighed *placement.Wish // with which the verdict was found
	told    bool            // an event says that it waits for an operator
	delayed bool            // an event says that it waits for long
}

type answered struct {
	placement.Answer
	at time.Time
}

func newElections(leader electorate, now func() time.Time, count func(result string), log *slog.Logger) *elections {
	return &elections{
		leader: leader, now: now, count: count, log: log, bell: make(chan struct{}, 1),
		open: map[volume.ID]*election{}, barred: map[volume.NodeID]time.Time{}, wishes: map[volume.ID]*placement.Wish{}, asking: map[volume.NodeID]bool{}, passed: make(chan struct{}),
	}
}

// Run looks whenever wake says that the state or a report has changed, until ctx ends,
// and joins what it started.
func (e *elections) Run(ctx context.Context, wake <-chan struct{}) error {
	var calls sync.WaitGroup
	defer calls.Wait()
	for {
		next := e.look(ctx, &calls)
		pause(ctx, electionGap)
		timer := time.NewTimer(max(next-electionGap, 0))
		select {
		case <-ctx.Done():
		case <-wake:
		case <-e.bell:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// look does what can be done now, and returns how long nothing will change by itself.
func (e *elections) look(ctx context.Context, calls *sync.WaitGroup) time.Duration {
	st := e.leader.State()
	e.watchBarred(st)
	var electing []*state.Volume
	for v := range st.Volumes() {
		switch {
		case v.Phase == state.PhaseElecting:
			electing = append(electing, v)
		case v.Electable() && e.lost(st, v.Placement.Primary):
			e.begin(ctx, st, v)
		}
	}
	if len(electing) == 0 && len(e.open) == 0 {
		return electionsIdle
	}
	reports := e.leader.Reports()
	e.follow(st, electing, reports)
	view := placement.NewView(st, reports, e.now())
	e.askAll(ctx, calls, st, electing, view)
	return e.decide(ctx, st, electing, view)
}

// watchBarred notes since when nodes may not write.
func (e *elections) watchBarred(st *state.State) {
	for n := range st.Nodes() {
		if _, ok := e.barred[n.ID]; !st.Barred(n.ID) {
			delete(e.barred, n.ID)
		} else if !ok {
			e.barred[n.ID] = e.now()
		}
	}
}

// lost says that a node is no primary any more: it is stopped, or it had as long to get a
// lease as one has that lost it.
func (e *elections) lost(st *state.State, node volume.NodeID) bool {
	since, ok := e.barred[node]
	return st.Stopped(node) || ok && st.Barred(node) && e.now().Sub(since) >= timersOf(st).Promote
}

// begin opens the election of a volume whose primary surely does not write.
func (e *elections) begin(ctx context.Context, st *state.State, v *state.Volume) {
	reason := "its node may not write any more"
	if n := st.Node(v.Placement.Primary); n == nil || n.Removed {
		reason = "its node was removed from the cluster"
	}
	if err := e.leader.Propose(ctx, state.BeginElection{ID: v.ID, Epoch: v.Epoch, Reason: reason}); err != nil && ctx.Err() == nil {
		e.log.Warn("no election could be begun", "volume", v.Name, "err", err)
	}
}

// follow opens and closes books, so that there is one for each volume that is electing.
func (e *elections) follow(st *state.State, electing []*state.Volume, reports map[volume.NodeID]placement.Heard) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, el := range e.open {
		v := st.Volume(id)
		if v != nil && v.Phase == state.PhaseElecting && v.Epoch == el.epoch {
			continue
		}
		delete(e.open, id)
		// Counted by what is committed: the answer to the command that did it may be lost.
		if v != nil {
			el.counted(v, e.count)
		}
	}
	for _, v := range electing {
		el := e.open[v.ID]
		if el == nil {
			el = &election{epoch: v.Epoch, was: v.Election.Was, began: e.now(), called: map[volume.NodeID]bool{}, answers: map[volume.NodeID]answered{}}
			e.open[v.ID] = el
		}
		// What the old primary said last while it was one. Later reports tell of another
		// role, and of a life that nobody could write in.
		if h := reports[v.Election.Was]; h.Report != nil && h.Report.Applied < v.Changed {
			el.life, el.links = later(el.life, h.Report.At), linksIn(h.Report, v.ID)
		}
		// A beat is often newer than the report: the node may have written until then, so the
		// bound of what is lost grows with it. It does not beat so after its lease.
		el.life = later(el.life, e.leader.Life(v.Election.Was))
	}
}

// counted has an election counted, by its volume as it is after it.
func (el *election) counted(v *state.Volume, count func(result string)) {
	primary := v.Placement.Primary
	if v.Election != nil { // lost again already
		primary = v.Election.Was
	}
	switch primary {
	case "": // it was recovered without its quorum, or is removed
	case el.was:
		count("kept")
	default:
		count("promoted")
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func linksIn(r *volume.Report, id volume.ID) []volume.LinkStatus {
	i, ok := slices.BinarySearchFunc(r.Volumes, id, func(s volume.Status, id volume.ID) int { return cmp.Compare(s.Volume, id) })
	if !ok {
		return nil
	}
	return r.Volumes[i].Links
}

// askAll begins the calls that are due, at most one to each node. The clock of a volume runs from when all nodes
// that live have been asked about it, or it would decide for those whose turn comes first.
func (e *elections) askAll(ctx context.Context, calls *sync.WaitGroup, st *state.State, electing []*state.Volume, view *placement.View) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now, patience := e.now(), timersOf(st).Promote
	due := map[volume.NodeID][]toAsk{}
	for _, v := range electing {
		el := e.open[v.ID]
		for _, node := range v.Placement.Replicas() {
			if n := view.Node(node); n != nil && !n.Witness && !e.asking[node] && (!el.called[node] || el.due(now, n)) {
				due[node] = append(due[node], el.toAsk(v, node))
			}
		}
	}
	want := map[volume.NodeID][]api.PromiseFor{}
	for node, all := range due {
		slices.SortStableFunc(all, toAsk.compare)
		for _, q := range all[:min(len(all), askMost)] {
			e.open[q.ID].called[node] = true
			want[node] = append(want[node], q.PromiseFor)
		}
	}
	for _, v := range electing {
		el := e.open[v.ID]
		waits := slices.ContainsFunc(v.Placement.Replicas(), func(node volume.NodeID) bool {
			n := view.Node(node)
			return n != nil && n.Alive && !n.Witness && !el.called[node]
		})
		if el.asked.IsZero() && (!waits || now.Sub(el.began) >= patience) {
			el.asked = now
		}
	}
	for node, volumes := range want {
		e.asking[node] = true
		calls.Go(func() { e.ask(ctx, node, api.PromiseRequest{Index: st.Index, Volumes: volumes}) })
	}
}

// toAsk is what a node is to be asked about a volume.
type toAsk struct {
	api.PromiseFor
	promised bool      // it is asked for the sake of freshness
	at       time.Time // when it answered last; zero: it has not been asked
}

func (el *election) toAsk(v *state.Volume, node volume.NodeID) toAsk {
	a := el.answers[node]
	return toAsk{api.PromiseFor{ID: v.ID, Epoch: v.Epoch}, a.Err == "" && !a.at.IsZero(), a.at}
}

// compare says which of two comes first where a node has many to answer: what it was never asked about, then
// what it owes an answer, whatever waits longest. Else those that a slow node takes long for would keep it from the others.
func (q toAsk) compare(r toAsk) int {
	if q.promised != r.promised {
		if q.promised {
			return 1
		}
		return -1
	}
	return q.at.Compare(r.at)
}

// due says that a node which was asked already is to be asked again; one that has not
// answered yet is not, since every call ends with an answer.
func (el *election) due(now time.Time, n *placement.NodeView) bool {
	a, ok := el.answers[n.ID]
	again := askFresh
	switch {
	case !ok:
		return false
	case a.Err != "" && n.Alive:
		again = askAgain
	case a.Err != "":
		again = askSilent
	}
	return now.Sub(a.at) >= again
}

// ask calls one node and notes what it said.
func (e *elections) ask(ctx context.Context, node volume.NodeID, req api.PromiseRequest) {
	cctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	rep, err := e.leader.Promise(cctx, node, req)
	got := map[volume.ID]placement.Answer{}
	for _, a := range rep.Answers {
		got[a.ID] = placement.Answer{Promise: a.Promise, Err: a.Error, Silent: a.Reading}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.asking, node)
	defer ring(e.bell)
	if ctx.Err() != nil {
		return
	}
	at := e.now()
	for _, v := range req.Volumes {
		el := e.open[v.ID]
		if el == nil || el.epoch != v.Epoch {
			continue
		}
		a, ok := got[v.ID]
		switch {
		case err != nil:
			a = placement.Answer{Err: err.Error(), Silent: unanswered(err)}
		case !ok, a.Err == "" && a.Promise.Epoch != v.Epoch:
			a = placement.Answer{Err: "its answer says nothing of it"}
		}
		el.answers[node] = answered{a, at}
	}
}

// unanswered says that a call failed because the node is slow, and not because of what it
// said: it did not answer in time, or has yet to catch up.
func unanswered(err error) bool {
	code := volume.CodeOf(err)
	return errors.Is(err, context.DeadlineExceeded) || code == volume.CodeTimeout || code == volume.CodeUnavailable
}

// ring a bell that many may ring before somebody hears it.
func ring(bell chan<- struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

// decide chooses for every volume and commits what was chosen.
func (e *elections) decide(ctx context.Context, st *state.State, electing []*state.Volume, view *placement.View) time.Duration {
	now, next := e.now(), askAgain
	timers := timersOf(st)
	var do []ending
	promoted := map[volume.ID]volume.NodeID{}
	e.mu.Lock()
	for _, v := range electing {
		el := e.open[v.ID]
		c := placement.Contest{
			Volume: v, Home: homeOf(st, v.Election.Was), Answers: map[volume.NodeID]placement.Answer{},
			Asked: el.waited(now), Grace: 2 * timers.Call, Patience: timers.Promote, Forbearance: forbearance * timers.Promote,
			Life: el.life, Links: el.links, Wish: e.wishes[v.ID], Promoted: promoted,
		}
		for node, a := range el.answers {
			c.Answers[node] = a.Answer
		}
		was := el.verdict
		el.verdict, el.weighed = placement.Failover(view, c), c.Wish
		switch {
		case el.verdict.Promote != nil:
			do = append(do, ending{cmd: *el.verdict.Promote})
			promoted[v.ID] = el.verdict.Promote.To
			continue
		case el.verdict.Again > 0:
			next = min(next, el.verdict.Again)
			if el.verdict.Long && !el.delayed {
				el.delayed = true
				do = append(do, ending{cmd: state.Tell{Volume: v.ID, Kind: state.VolumeWaits, Message: fmt.Sprintf("volume %s has no primary: %s", v.Name, el.verdict.Why)}})
			}
		case !el.told && c.Asked >= c.Grace:
			el.told = true
			do = append(do, ending{held: true, cmd: state.Tell{Volume: v.ID, Kind: state.VolumeHeld, Message: fmt.Sprintf("volume %s has no primary: %s", v.Name, el.verdict.Why)}})
		}
		if el.verdict.Why != was.Why {
			e.log.Info("a volume is without a primary", "volume", v.Name, "why", el.verdict.Why)
		}
	}
	e.mu.Unlock()

	e.commit(ctx, do)
	e.mu.Lock()
	close(e.passed)
	e.passed = make(chan struct{})
	e.mu.Unlock()
	return next
}

// ending is a command that an election comes to.
type ending struct {
	cmd  state.Command
	held bool // it tells that an operator is waited for
}

// waited is placement.Contest.Asked.
func (el *election) waited(now time.Time) time.Duration {
	if el.asked.IsZero() {
		return 0
	}
	return now.Sub(el.asked)
}

// commit proposes commands side by side: a node may have been the primary of a
// thousand volumes. What is refused is decided anew at the next look.
func (e *elections) commit(ctx context.Context, do []ending) {
	slots := make(chan struct{}, 16)
	var all sync.WaitGroup
	defer all.Wait()
	for _, x := range do {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			err := e.leader.Propose(ctx, x.cmd)
			switch {
			case err == nil && x.held:
				e.count("held")
			case err == nil:
			case ctx.Err() == nil:
				e.log.Warn("a volume could not be given another primary", "command", fmt.Sprintf("%T", x.cmd), "err", err)
			}
		})
	}
}

func homeOf(st *state.State, node volume.NodeID) volume.Zone {
	if n := st.Node(node); n != nil {
		return cmp.Or(n.Zone, volume.DefaultZone)
	}
	return volume.DefaultZone
}

// waits says of every volume without a primary what is waited for.
func (e *elections) waits() map[volume.ID]string {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make(map[volume.ID]string, len(e.open))
	for id, el := range e.open {
		out[id] = el.verdict.Why
	}
	return out
}

// wish has what an operator wants heard until the returned function is called. One who
// takes a volume from its primary wishes before that, or it would be decided already.
func (e *elections) wish(id volume.ID, w *placement.Wish) (over func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.wishes[id] = w
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.wishes[id] == w {
			delete(e.wishes, id)
		}
	}
}

// granted returns nil when the volume has a primary. It blocks as long as the wish may
// still bring that about by itself; then, or when ctx ends, the error says what is in its
// way.
func (e *elections) granted(ctx context.Context, v *state.Volume, w *placement.Wish) error {
	patience, cancel := context.WithTimeout(ctx, askTimeout+askAgain)
	defer cancel()
	for began := e.now(); ; {
		e.mu.Lock()
		passed, el := e.passed, e.open[v.ID]
		why, final := "its election has not begun", false
		if el != nil && el.epoch == v.Epoch {
			why = cmp.Or(el.verdict.Why, why)
			// Calls of nodes that are down take their time, and change nothing.
			answered := len(e.asking) == 0 || e.now().Sub(began) > 2*lease.Default.Call
			final = el.weighed == w && el.verdict.Promote == nil && el.verdict.Again == 0 && answered
		}
		e.mu.Unlock()
		if now := e.leader.State().Volume(v.ID); now == nil || now.Phase != state.PhaseElecting || now.Epoch != v.Epoch {
			return nil
		}
		if final {
			return volume.Errorf(volume.CodeRefused, "volume %q: %s", v.Name, why)
		}
		ring(e.bell)
		select {
		case <-passed:
		case <-patience.Done():
			return volume.Errorf(volume.CodeTimeout, "volume %q: %s", v.Name, why).WithHint("try again in a moment")
		}
	}
}

// Promise implements api.Peer: this node promises what its own state says, not what it
// is asked.
func (m *member) Promise(ctx context.Context, req api.PromiseRequest) (api.PromiseReply, error) {
	if m.agent == nil {
		return api.PromiseReply{}, volume.Errorf(volume.CodeRefused, "node %s keeps no data", m.cluster.State().NodeName(m.self))
	}
	ctx, cancel := context.WithTimeout(ctx, promiseTime)
	defer cancel()
	select {
	case <-m.agent.Fresh():
	case <-ctx.Done():
		return api.PromiseReply{}, volume.Errorf(volume.CodeUnavailable, "node %s has not caught up with the cluster since it started", m.cluster.State().NodeName(m.self))
	}
	if err := m.cluster.CaughtUp(ctx, req.Index); err != nil {
		return api.PromiseReply{}, volume.Errorf(volume.CodeUnavailable, "node %s has not heard of the election yet: %v", m.cluster.State().NodeName(m.self), err)
	}
	rep := api.PromiseReply{Answers: make([]api.PromiseAnswer, len(req.Volumes))}
	var all sync.WaitGroup
	for i, v := range req.Volumes {
		if !m.unled(v.ID, v.Epoch) {
			rep.Answers[i] = api.PromiseAnswer{ID: v.ID, Error: "that election is over"}
			continue
		}
		all.Go(func() { rep.Answers[i] = m.promises.get(ctx, v) })
	}
	all.Wait()
	return rep, nil
}

// unled says that a volume is without a primary in an epoch.
func (m *member) unled(id volume.ID, epoch volume.Epoch) bool {
	now := m.cluster.State().Volume(id)
	return now != nil && now.Phase == state.PhaseElecting && now.Epoch == epoch
}

// Promise implements electorate.
func (l leaderView) Promise(ctx context.Context, node volume.NodeID, req api.PromiseRequest) (api.PromiseReply, error) {
	if node == l.m.self {
		return l.m.Promise(ctx, req)
	}
	return l.m.client(node).Promise(ctx, req)
}

// Life implements electorate.
func (l leaderView) Life(node volume.NodeID) time.Time {
	keeper, n := l.m.leases.Load(), l.m.cluster.State().Node(node)
	if keeper == nil || n == nil {
		return time.Time{}
	}
	return keeper.life(node, n.Lease.No)
}

// FailoverVolume implements api.Backend.
func (m *member) FailoverVolume(ctx context.Context, ref string, req api.FailoverRequest) (api.Volume, error) {
	ref, err := m.resolveNow(ctx, ref, live)
	if err != nil {
		return api.Volume{}, err
	}
	var out api.Volume
	err = m.onLeader(ctx, func(ctx context.Context, leader *api.Client) (err error) {
		if leader != nil {
			out, err = leader.FailoverVolume(ctx, ref, req)
			return err
		}
		out, err = m.failoverHere(ctx, volume.ID(ref), req)
		return err
	})
	if err != nil {
		return api.Volume{}, err
	}
	return out, m.cluster.CaughtUp(ctx, out.Index)
}

// failoverHere is FailoverVolume on the leader.
func (m *member) failoverHere(ctx context.Context, id volume.ID, req api.FailoverRequest) (api.Volume, error) {
	wish := placement.Wish{AcceptLoss: req.AcceptLoss}
	if req.To != "" {
		to, err := findNode(m.cluster.State(), req.To)
		if err != nil {
			return api.Volume{}, err
		}
		wish.To = to
	}
	v := m.cluster.State().Volume(id)
	if v == nil || !v.Live() {
		return api.Volume{}, volume.Errorf(volume.CodeNotFound, "no volume %s", id)
	}
	e := m.currentElections()
	if e == nil {
		return api.Volume{}, errNotLeader
	}
	defer e.wish(id, &wish)()
	v, err := m.electing(ctx, v, req.ConfirmFenced)
	if err != nil {
		return api.Volume{}, err
	}
	if err := e.granted(ctx, v, &wish); err != nil {
		return api.Volume{}, err
	}
	m.spread(ctx)
	now := m.view()
	if v = now.state.Volume(id); v == nil {
		return api.Volume{}, volume.Errorf(volume.CodeNotFound, "no volume %s", id)
	}
	return now.volume(v), nil
}

// electing is the volume without its primary. One that still has it loses it on the
// word of an operator who names it, if nothing is heard of that node.
func (m *member) electing(ctx context.Context, v *state.Volume, fenced string) (*state.Volume, error) {
	s := m.cluster.State()
	primary := v.Placement.Primary
	if v.Phase == state.PhaseElecting {
		primary = v.Election.Was
	}
	name := s.NodeName(primary)
	if fenced != "" && fenced != name && volume.NodeID(fenced) != primary {
		return nil, volume.Errorf(volume.CodeInvalid, "volume %q: its primary is %s, not %s", v.Name, name, fenced).
			WithHint("make sure that %s is off, then name it", name)
	}
	switch h, ok := m.view().heard(primary); {
	case v.Phase == state.PhaseElecting:
		return v, nil
	case !v.Electable():
		return nil, volume.Errorf(volume.CodeConflict, "volume %q is %s", v.Name, v.Phase).WithHint("try again in a moment")
	case ok && h.Age <= m.timers.Stale && fenced != "":
		return nil, volume.Errorf(volume.CodeRefused, "volume %q: its primary %s is alive: it was heard of %s ago", v.Name, name, round(h.Age)).
			WithHint("if %s has been off since, try again in %s, when its last word no longer counts", name, round(m.timers.Stale-h.Age+time.Second))
	case ok && h.Age <= m.timers.Stale:
		return nil, volume.Errorf(volume.CodeRefused, "volume %q: its primary %s is alive: it was heard of %s ago", v.Name, name, round(h.Age)).
			WithHint("a volume that nobody uses moves to the node that mounts it: stop its container on %s and start it where it shall run", name)
	case fenced == "" && s.Failover().Mode == state.FailoverAutomatic:
		return nil, volume.Errorf(volume.CodeRefused, "volume %q: its primary %s is not heard of, but it may write until its lease has run out; then the volume fails over by itself", v.Name, name).
			WithHint("if that takes longer than %s, make sure that %s is off and stays off, then: flockctl failover %s --confirm-fenced %s", s.Failover().Timers.Promote, name, v.Name, name)
	case fenced == "":
		return nil, volume.Errorf(volume.CodeRefused, "volume %q: its primary %s is not heard of, but nothing proves that it does not write", v.Name, name).
			WithHint("make sure that %s is off and stays off, then: flockctl failover %s --confirm-fenced %s", name, v.Name, name)
	}
	if _, err := m.commit(ctx, "", state.BeginElection{ID: v.ID, Epoch: v.Epoch, Fenced: true,
		Reason: fmt.Sprintf("an operator has said that node %s is off", name)}); err != nil {
		return nil, err
	}
	now := m.cluster.State().Volume(v.ID)
	if now == nil || now.Phase != state.PhaseElecting {
		return nil, volume.Errorf(volume.CodeConflict, "volume %q: something else came first", v.Name).WithHint("try again")
	}
	return now, nil
}

// noPrimary refuses what only a primary could do.
func (m *member) noPrimary(v *state.Volume) error {
	return volume.Errorf(volume.CodeUnavailable, "volume %q has no primary: %s", v.Name, m.view().volume(v).Reason).
		WithHint("try again when it has one; see `flockctl failover --help`")
}

// currentElections are those that this node runs as the leader; nil when it does not.
func (m *member) currentElections() *elections {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.elections
}

func (m *member) setElections(e *elections) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.elections, m.waiting = e, nil
}

// electionWaits says of volumes without a primary what is waited for, as the leader
// knows it or as it has told this node.
func (m *member) electionWaits() map[volume.ID]string {
	if e := m.currentElections(); e != nil {
		return e.waits()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.waiting)
}

// hearElections notes what the leader told.
func (m *member) hearElections(waiting map[volume.ID]string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waiting = waiting
}
