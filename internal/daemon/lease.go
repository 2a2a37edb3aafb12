package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/fence"
	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// Fencer is the process that stops this node's writers when its lease is over, with
// or without us; *fence.Client is one. Each call is one short request: an error means
// that the fencer cannot be asked. Safe for use by many goroutines.
type Fencer interface {
	// Arm tells until when writers may run. A lower number, or an earlier end of the same
	// one, changes nothing, and a lease under which it has begun to fence stays over.
	Arm(ctx context.Context, l fence.Lease) (fence.Status, error)
	// Fence stops all writers now. It returns when that is verified or ctx ends.
	Fence(ctx context.Context, no uint64, reason string) (fence.Status, error)
	// Disarm: failover is manual, nobody is stopped any more.
	Disarm(ctx context.Context) (fence.Status, error)
	Status(ctx context.Context) (fence.Status, error)
	// Forget these victims: they run again, or never will.
	Forget(ctx context.Context, containers []string) error
}

// How the fencer and the lease are looked after.
const (
	guardEvery     = 250 * time.Millisecond // no deadline is noticed later than this
	fencerEvery    = time.Second            // the fencer is asked how it is
	fencerCall     = time.Second
	fencerPatience = 3 * time.Second // without an answer from the fencer the lease is given up
)

// tenure is this node's side of its lease: it beats, tells the fencer each deadline
// before the node relies on it, and gives the lease up when the fencer or the pool
// does not answer. The fencer's memory outlives this process, so that a restart of
// flockd disturbs no container.
//
// A round of failover begins for a node with its first beat that asks for a lease
// (asked). Up to there it writes without one, and nobody takes it for dead. That beat
// goes out only after the fencer knows a deadline for the lease that is asked for
// (trial): the answer may be lost, and others may count on the node from then on.
type tenure struct {
	self    volume.NodeID
	boot    string
	clock   func() lease.Moment
	root    string                                       // dataset of the volumes; "": a witness, which needs no lease
	fencer  Fencer                                       // nil: none
	instead func(ctx context.Context, root string) error // stops all writers when the fencer is gone; nil: nobody does
	state   func() *state.State                          // what this node has applied
	fresh   func() bool                                  // it has caught up with a leader since it started
	news    func() <-chan struct{}                       // closed at the next state
	leader  func() (volume.NodeID, bool)
	send    func(context.Context, api.BeatRequest) (api.BeatReply, error)
	count   func(result string) // of beats, for metrics
	moved   func()              // the right to write came or went
	log     *slog.Logger

	mu      sync.Mutex
	round   uint64 // 0: failover is manual
	timers  lease.Timers
	holder  *lease.Holder // of the round
	asked   bool          // in this round
	trial   fence.Lease   // what the fencer was told before the first beat that asked; No 0: nothing
	why     string        // the lease is over
	stopped uint64        // the number of the last lease under which provably nothing is written any more
	unfit   string        // the pool does not do its part
	hung    lease.Moment  // the pool's canary was begun then and has not ended; 0: none is under way

	fencing fence.Status // the fencer's last word
	heard   lease.Moment // when that was
	polled  lease.Moment
	known   bool // there was one since we started
	mute    bool // it has not answered for fencerPatience

	could   bool // what moved was last told
	changed chan struct{}
}

func newTenure() *tenure {
	return &tenure{changed: make(chan struct{}), count: func(string) {}, moved: func() {}}
}

// needed says that this node can have writers.
func (t *tenure) needed() bool { return t.root != "" }

// Held says whether this node may write now, and if not, why, and what helps: it is
// agent.Lease.
func (t *tenure) Held() (ok bool, why string) {
	s := t.state()
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.held(t.clock(), s)
}

func (t *tenure) held(now lease.Moment, s *state.State) (bool, string) {
	f, n := s.Failover(), s.Node(t.self)
	if !f.Enforced() || n == nil {
		return true, ""
	}
	t.follow(now, s)
	switch {
	case t.holder == nil:
		return false, "this node has not heard from a leader since it started"
	case !n.Lease.Valid(f) && t.problem(now) != "":
		return false, fmt.Sprintf("this node has no lease, and cannot ask for one: %s", t.problem(now))
	case !n.Lease.Valid(f):
		return false, "this node has not been granted a lease yet"
	case n.Lease.No != t.holder.No():
		return false, "this node's lease is being renewed"
	case t.holder.Held(now):
		return true, ""
	case t.holder.Save().Over:
		return false, fmt.Sprintf("this node's lease is over: %s", t.overBecause())
	}
	return false, "this node's lease has been granted and has not begun"
}

func (t *tenure) overBecause() string {
	if t.why != "" {
		return t.why
	}
	return fmt.Sprintf("no leader has answered for %s", t.timers.TTL)
}

// follow takes over what the state says of this node's lease. The caller has the lock.
func (t *tenure) follow(now lease.Moment, s *state.State) {
	f, n := s.Failover(), s.Node(t.self)
	switch {
	case n == nil:
		return
	case !t.fresh() && (!t.known || t.fencing.Lease.Round != f.Round):
		// A state from before a restart may be older than what this node has done since. It
		// is good enough to go on with what the fencer remembers, and for nothing else.
		return
	case !f.Enforced():
		if t.round != 0 {
			t.round, t.holder, t.asked, t.trial, t.why = 0, nil, false, fence.Lease{}, ""
		}
		return
	case f.Round != t.round:
		t.round, t.timers, t.holder, t.asked, t.trial, t.why = f.Round, f.Timers, lease.NewHolder(f.Timers), false, fence.Lease{}, ""
		t.recall(now)
	}
	l := n.Lease
	switch {
	case l.Round != f.Round:
		return // none of this round
	case l.Revoked:
		t.end(now, l.No, "it was revoked")
	case l.Boot != t.boot:
		t.end(now, l.No, "this machine has restarted")
	case !t.asked:
		t.end(now, l.No, "flockd has restarted, and the fencer does not know the lease")
	case l.No == t.trial.No && t.holder.No() == 0:
		// Granted as it was asked for; the fencer knows a deadline for it.
		t.holder.Restore(lease.Saved{No: l.No, Until: t.trial.Until, Begun: true})
	default:
		if l.No > t.holder.No() {
			t.why = ""
		}
		t.holder.Grant(l.No)
	}
}

// recall goes on with the lease that the fencer remembers.
func (t *tenure) recall(now lease.Moment) {
	l := t.fencing.Lease
	if !t.known || l.No == 0 || l.Round != t.round || l.Boot != t.boot {
		return
	}
	t.asked = true
	over := t.fencing.State != fence.PhaseArmed || now >= l.Until
	t.holder.Restore(lease.Saved{No: l.No, Until: l.Until, Begun: true, Over: over})
}

// end says that the lease of this number is over.
func (t *tenure) end(now lease.Moment, no uint64, why string) {
	if t.holder.No() <= no && !(t.holder.No() == no && t.holder.Save().Over) {
		t.why = why
	}
	t.holder.Revoke(now, no)
}

// GiveUp ends the lease, because this node cannot do its part.
func (t *tenure) GiveUp(why string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.giveUp(t.clock(), why)
}

func (t *tenure) giveUp(now lease.Moment, why string) {
	if t.holder == nil {
		return
	}
	no := t.holder.No()
	if no == 0 {
		no = t.trial.No
	}
	if no == 0 || t.holder.Save().Over {
		return
	}
	t.end(now, no, why)
	t.log.Error("this node gives its lease up", "lease", no, "why", why)
}

// overdue is the lease under which nothing may be written any more; ok is false when
// there is none. The caller has the lock.
func (t *tenure) overdue(now lease.Moment) (no uint64, ok bool) {
	if t.holder == nil {
		return 0, false
	}
	t.holder.Held(now) // expires
	if t.holder.No() == 0 && t.trial.No != 0 && now >= t.trial.Until {
		t.end(now, t.trial.No, "it was asked for, and no answer came")
	}
	return t.holder.No(), t.holder.No() != 0 && t.holder.Save().Over
}

// problem is why this node can hold no lease now; "" when it can.
func (t *tenure) problem(now lease.Moment) string {
	switch {
	case !t.needed():
		return "it is a witness"
	case t.fencer == nil:
		return "its fencer is not installed"
	case t.mute || !t.known:
		return "its fencer does not run; start it with `systemctl start flockd-fence`"
	case t.fencing.Boot != t.boot:
		return "its fencer belongs to another boot of the machine"
	case t.unfit != "":
		return t.unfit
	case t.hung != 0 && now.Sub(t.hung) > t.patience():
		return fmt.Sprintf("its pool has not written anything for %s", round(now.Sub(t.hung)))
	}
	return ""
}

// patience with the pool: what cannot be written within the time for fencing could
// not be unmounted within it either.
func (t *tenure) patience() time.Duration {
	if t.round == 0 {
		return lease.Default.Fence
	}
	return t.timers.Fence
}

// run looks after the lease until ctx ends.
func (t *tenure) run(ctx context.Context) error {
	if !t.needed() {
		<-ctx.Done()
		return nil
	}
	// What the fencer remembers comes first, if it answers at all: without it a lease of
	// before a restart is over.
	for began := t.clock(); ctx.Err() == nil && t.fencer != nil; {
		if t.ask(ctx, t.fencer.Status) == nil || t.clock().Sub(began) > fencerPatience {
			break
		}
		pause(ctx, guardEvery)
	}
	var beats sync.WaitGroup
	beats.Go(func() { t.beat(ctx) })
	defer beats.Wait()
	tick := time.NewTicker(guardEvery)
	defer tick.Stop()
	for {
		news := t.news()
		t.guard(ctx)
		select {
		case <-news:
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// guard sees to it that what is over is fenced, and that the fencer lives.
func (t *tenure) guard(ctx context.Context) {
	s := t.state()
	t.mu.Lock()
	now := t.clock()
	t.follow(now, s)
	no, over := t.overdue(now)
	root, why, patience := t.root, t.overBecause(), t.patience()
	fencing, poll := t.fencing, now.Sub(t.polled) >= fencerEvery
	done := over && t.stopped >= no
	lost := t.known && now.Sub(t.heard) > fencerPatience || !t.known
	if lost && !t.mute {
		t.mute = true
		if t.fencer != nil {
			t.log.Error("the fencer does not answer")
		}
		t.giveUp(now, "the fencer of this node does not run")
	}
	manual := t.round == 0 && t.fresh() && t.known
	t.mu.Unlock()

	switch {
	case over && !done && lost && t.instead != nil:
		ictx, cancel := context.WithTimeout(ctx, patience)
		err := t.instead(ictx, root)
		cancel()
		if err != nil {
			t.log.Error("the fencer does not run, and writers cannot be stopped without it", "err", err)
			break
		}
		t.mu.Lock()
		t.stopped = max(t.stopped, no)
		t.mu.Unlock()
		t.notify()
	case t.fencer == nil:
	case over && !done:
		t.fence(ctx, no, root, why)
	case manual && fencing.State != fence.PhaseIdle && poll:
		t.ask(ctx, t.fencer.Disarm)
	case poll:
		t.ask(ctx, t.fencer.Status)
	}
	t.tell(s)
}

// fence has everything stopped. The fencer may not know this lease, as after a boot.
func (t *tenure) fence(ctx context.Context, no uint64, root, why string) {
	t.mu.Lock()
	known := t.fencing.Lease.Boot == t.boot && t.fencing.Lease.No >= no
	timers, boot, now := t.timers, t.boot, t.clock()
	l := fence.Lease{No: no, Boot: boot, Round: t.round, Until: now, Fence: timers.Fence, Root: root}
	t.mu.Unlock()
	if !known && t.ask(ctx, func(ctx context.Context) (fence.Status, error) { return t.fencer.Arm(ctx, l) }) != nil {
		return
	}
	if t.ask(ctx, func(ctx context.Context) (fence.Status, error) { return t.fencer.Fence(ctx, no, why) }) == nil {
		t.notify()
	}
}

// ask the fencer something and note its word.
func (t *tenure) ask(ctx context.Context, f func(context.Context) (fence.Status, error)) error {
	ctx, cancel := context.WithTimeout(ctx, fencerCall)
	defer cancel()
	began := t.clock()
	st, err := f(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.polled = began
	if err != nil {
		return fmt.Errorf("asking the fencer: %w", err)
	}
	if t.mute {
		t.log.Info("the fencer answers")
	}
	t.fencing, t.heard, t.known, t.mute = st, t.clock(), true, false
	if st.State == fence.PhaseFenced && st.Lease.Boot == t.boot {
		t.stopped = max(t.stopped, st.Lease.No)
	}
	return nil
}

// tell those who wait that the right to write came or went.
func (t *tenure) tell(s *state.State) {
	t.mu.Lock()
	now, why := t.held(t.clock(), s)
	was := t.could
	t.could = now
	t.mu.Unlock()
	if now == was {
		return
	}
	if !now {
		t.log.Warn("this node may not write", "why", why)
	}
	t.notify()
	t.moved()
}

func (t *tenure) notify() {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.changed)
	t.changed = make(chan struct{})
}

// Changed is closed when the right to write comes or goes.
func (t *tenure) Changed() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.changed
}

// victims are the containers that the fencer has killed and nobody has started since.
func (t *tenure) victims() (ids []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, v := range t.fencing.Fenced {
		ids = append(ids, v.Container)
	}
	return ids
}

// forget victims. The fencer is told again as long as it lists them.
func (t *tenure) forget(ctx context.Context, containers []string) {
	if len(containers) == 0 || t.fencer == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, fencerCall)
	defer cancel()
	if err := t.fencer.Forget(ctx, containers); err != nil {
		t.log.Warn("the fencer could not be told which containers run again", "err", err)
	}
}

// await the right to write. The error says why it does not come.
func (t *tenure) await(ctx context.Context) error {
	for {
		changed := t.Changed()
		ok, why := t.Held()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return volume.Errorf(volume.CodeUnavailable, "%s", why).WithHint("see `flockctl status`")
		}
	}
}

// occasion for a beat: another one does not wait for the next heartbeat.
type occasion struct {
	leader  volume.NodeID
	round   uint64
	lease   uint64
	revoked bool
	stopped uint64
}

func (t *tenure) occasion() (o occasion) {
	s := t.state()
	o.leader, _ = t.leader()
	o.round = s.Failover().Round
	if n := s.Node(t.self); n != nil {
		o.lease, o.revoked = n.Lease.No, n.Lease.Revoked
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	o.stopped = t.stopped
	return o
}

// beat until ctx ends: each heartbeat, and at each new occasion.
func (t *tenure) beat(ctx context.Context) {
	tick := time.NewTicker(guardEvery)
	defer tick.Stop()
	var next lease.Moment
	var last occasion
	for {
		news := t.news()
		if o, now := t.occasion(), t.clock(); now >= next || o != last {
			last, next = o, now.Add(t.once(ctx))
		}
		select {
		case <-news:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// once sends one beat and takes its answer. It returns how long after its beginning the
// next is due.
func (t *tenure) once(ctx context.Context) time.Duration {
	s := t.state()
	if t.mustTry(s) && !t.try(ctx, s) {
		return fencerEvery
	}
	t.mu.Lock()
	timers, h, manual := t.timers, t.holder, t.round == 0
	if manual {
		timers, _ = lease.Profile(leaseProfile(s))
	}
	sent := t.clock()
	req := t.compose(sent, s)
	t.mu.Unlock()
	bctx, cancel := context.WithTimeout(ctx, timers.Call)
	reply, err := t.send(bctx, req)
	cancel()
	result := "refused"
	switch {
	case err != nil:
		result = "lost"
	case reply.Answered:
		result = "answered"
		if t.extend(ctx, h, sent, req.Beat) {
			t.tell(t.state())
		}
	case req.Beat.Want:
		result = "asked"
	case manual:
		result = "idle"
	}
	t.count(result)
	return timers.Heartbeat
}

// leaseProfile that the next round would have.
func leaseProfile(s *state.State) string {
	if c := s.Cluster(); c != nil {
		return c.Settings.Lease
	}
	return ""
}

// compose a beat that is sent after now. The caller has the lock.
func (t *tenure) compose(now lease.Moment, s *state.State) api.BeatRequest {
	t.follow(now, s)
	req := api.BeatRequest{
		Node: t.self, Boot: t.boot, Round: s.Failover().Round, Safety: t.fencing.Safety,
		Stopped: t.stopped, Problem: t.problem(now),
	}
	if t.holder == nil {
		return req
	}
	no, over := t.overdue(now)
	req.Beat = t.holder.Beat(now)
	// It asks when its fencer knows the round's timers, and nothing is written under the
	// lease before.
	switch {
	case req.Problem != "":
		req.Beat.Want = false
	case over && t.stopped < no:
		req.Beat.Want, req.Problem = false, "its writers are being stopped"
	case no == 0 && !t.asked, !t.fresh():
		req.Beat.Want = false
	}
	if req.Beat.Want {
		t.asked = true
	}
	return req
}

// mustTry says that the next beat would be the first of the round that asks.
func (t *tenure) mustTry(s *state.State) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.clock()
	t.follow(now, s)
	return t.holder != nil && !t.asked && t.holder.No() == 0 && t.problem(now) == "" && t.fresh()
}

// try tells the fencer the deadline by which an answer must have come.
func (t *tenure) try(ctx context.Context, s *state.State) bool {
	n := s.Node(t.self)
	t.mu.Lock()
	l := fence.Lease{
		No: n.Lease.No + 1, Boot: t.boot, Round: t.round,
		Until: t.clock().Add(t.timers.TTL), Fence: t.timers.Fence, Root: t.root,
	}
	t.mu.Unlock()
	if err := t.arm(ctx, l); err != nil {
		t.log.Warn("no lease can be asked for", "err", err)
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.round != l.Round {
		return false
	}
	t.asked, t.trial = true, l
	return true
}

// errActed means that the fencer has begun to fence under this lease, or knows a later one.
var errActed = errors.New("the fencer has stopped the writers of this lease")

// arm the fencer with a deadline; nil means that it knows it.
func (t *tenure) arm(ctx context.Context, l fence.Lease) error {
	if err := t.ask(ctx, func(ctx context.Context) (fence.Status, error) { return t.fencer.Arm(ctx, l) }); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if got := t.fencing; got.State != fence.PhaseArmed || got.Lease.No != l.No || got.Lease.Until < l.Until {
		return errActed
	}
	return nil
}

// extend the lease by an answer to the beat sent at that moment: the fencer knows the
// new deadline before the node does.
func (t *tenure) extend(ctx context.Context, h *lease.Holder, sent lease.Moment, b lease.Beat) bool {
	t.mu.Lock()
	_, over := t.overdue(t.clock())
	if h == nil || h != t.holder || over || b.No == 0 || b.No != h.No() {
		t.mu.Unlock()
		return false
	}
	l := fence.Lease{No: b.No, Boot: t.boot, Round: t.round, Until: sent.Add(t.timers.TTL), Fence: t.timers.Fence, Root: t.root}
	t.mu.Unlock()
	err := t.arm(ctx, l)
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.clock()
	switch {
	case h != t.holder:
		return false
	case errors.Is(err, errActed):
		t.giveUp(now, "the fencer has stopped the writers")
		return true
	case err != nil:
		return false // the lease runs as long as it did
	}
	h.Answer(now, b.No, b.Nonce)
	return true
}

// canaryEvery is how often the pool is tried.
const canaryEvery = 5 * time.Second

// canary tries the pool: a tiny write, which ends when the disks have it. A pool that
// is suspended ends the lease at once. While a write hangs, or when it fails, nothing is
// renewed, and the lease runs out if that lasts. It has a goroutine of its own: what
// hangs in the kernel must not stop the beats.
func (t *tenure) canary(ctx context.Context, health func(context.Context) (string, error), write func(context.Context) error) error {
	for ctx.Err() == nil {
		t.mu.Lock()
		on, limit := t.round != 0, 2*t.patience()
		if t.hung = 0; on {
			t.hung = t.clock()
		}
		t.mu.Unlock()
		unfit := ""
		if on {
			cctx, cancel := context.WithTimeout(ctx, limit)
			unfit = tryPool(cctx, health, write)
			cancel()
		}
		if ctx.Err() != nil {
			return nil
		}
		t.mu.Lock()
		t.unfit, t.hung = unfit, 0
		if unfit == poolSuspended {
			t.giveUp(t.clock(), unfit)
		}
		t.mu.Unlock()
		again := canaryEvery
		if unfit != "" {
			again = time.Second
		}
		pause(ctx, again)
	}
	return nil
}

const poolSuspended = "its pool is suspended"

// tryPool says what is wrong with the pool; "" when it writes. A full one does.
func tryPool(ctx context.Context, health func(context.Context) (string, error), write func(context.Context) error) string {
	word, err := health(ctx)
	if err == nil && word != "SUSPENDED" {
		err = write(ctx)
	}
	switch {
	case word == "SUSPENDED" || errors.Is(err, zfs.ErrSuspended):
		return poolSuspended
	case err != nil && !errors.Is(err, zfs.ErrNoSpace):
		return fmt.Sprintf("its pool does not write: %v", err)
	}
	return ""
}

// send a beat to the leader, or take it here.
func (m *member) send(ctx context.Context, req api.BeatRequest) (api.BeatReply, error) {
	leader, ok := m.cluster.Leader()
	switch {
	case !ok:
		return api.BeatReply{}, errNoLeader
	case leader == m.self:
		return m.Beat(api.AsPeer(ctx, m.self), req)
	}
	return m.client(leader).Beat(ctx, req)
}
