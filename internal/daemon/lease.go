package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
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
	// Hold stops all writers below a dataset, whatever leases there are, and keeps them
	// stopped until Lift. It returns when that is verified or ctx ends.
	Hold(ctx context.Context, root, reason string) (fence.Status, error)
	Lift(ctx context.Context) (fence.Status, error)
	Status(ctx context.Context) (fence.Status, error)
	// Forget these victims: they run again, or never will.
	Forget(ctx context.Context, containers []string) error
}

// How the fencer and the lease are looked after.
const (
	guardEvery     = 250 * time.Millisecond // no deadline is noticed later than this
	fencerEvery    = time.Second            // the fencer is asked how it is
	fencerCall     = time.Second
	fencerPatience = 3 * time.Second // the least time after which a silent fencer counts as gone
)

// tenure is this node's side of its lease: it beats, tells the fencer each deadline
// before the node relies on it, and gives the lease up when the fencer or the pool
// does not answer. The fencer's memory outlives this process, so that a restart of
// flockd disturbs no container.
type tenure struct {
	self    volume.NodeID
	boot    string
	clock   func() lease.Moment
	wall    func() time.Time                             // as in reports
	root    string                                       // dataset of the volumes; "": a witness, which needs no lease
	fencer  Fencer                                       // nil: none
	instead func(ctx context.Context, root string) error // stops all writers when the fencer is gone; nil: nobody does
	state   func() *state.State                          // what this node has applied
	news    func() <-chan struct{}                       // closed at the next state
	fresh   func() bool                                  // it has caught up with a leader since it started, and may act
	caught  func() bool                                  // it has caught up, though its pool may not be ready; nil: not before it is fresh
	leader  func() (volume.NodeID, bool)
	send    func(context.Context, api.BeatRequest) (api.BeatReply, error)
	count   func(result string) // of beats, for metrics
	fenced  func(result string) // counts fences
	moved   func()              // the right to write came or went; it must not block
	log     *slog.Logger

	// turn is held by whoever decides what to tell the fencer, until it is told: what
	// was decided by an older state must not reach it after what a newer one asks for.
	turn sync.Mutex

	mu      sync.Mutex
	holder  *lease.Holder
	round   uint64       // in which the lease of holder was granted
	timers  lease.Timers // of the present round; after a restart TTL and Fence of the lease that the fencer remembers, until this node has caught up
	looked  bool         // a state was seen that is no older than this process
	found   uint64       // the number of the lease in it
	why     string       // the lease is over
	hinder  string       // why the last beat under the lease could not renew it; "" when it could
	stopped uint64       // the number of the last lease under which provably nothing is written any more
	ended   uint64       // the number of the last lease that ended with failover being turned off, which stops nobody
	unfit   string       // what the pool does wrong
	hung    lease.Moment // the pool's canary was begun then and has not ended; 0: none is under way

	fencing fence.Status // the fencer's last word
	heard   lease.Moment // when that was
	polled  lease.Moment
	known   bool // there was one since we started
	mute    bool // it has not answered for as long as patience says

	could   bool // what moved was last told
	changed chan struct{}
}

func newTenure() *tenure {
	return &tenure{holder: lease.NewHolder(), timers: lease.Default, wall: time.Now, changed: make(chan struct{})}
}

// Held says whether this node may write now, and if not, why: it is agent.Lease.
func (t *tenure) Held() (ok bool, why string) {
	s := t.state()
	t.mu.Lock()
	defer t.mu.Unlock()
	ok, why = t.held(t.clock(), s)
	// Whoever waits must hear of each change, also of one that only this call has seen.
	if was := t.could; ok != was {
		t.could = ok
		close(t.changed)
		t.changed = make(chan struct{})
		t.moved()
		if was {
			t.log.Warn("this node may not write", "why", why)
		}
	}
	return ok, why
}

func (t *tenure) held(now lease.Moment, s *state.State) (bool, string) {
	f, n := s.Failover(), s.Node(t.self)
	if n == nil {
		return false, "this node is not known to the cluster"
	}
	t.follow(now, s)
	switch {
	case t.fencing.Operator:
		return false, fmt.Sprintf("an operator has stopped all writers of this node: %s", t.fencing.Reason)
	case !s.NeedsLease(t.self):
		return true, ""
	case !n.Lease.Valid(f) && t.problem(now) != "":
		return false, fmt.Sprintf("this node has no lease, and cannot ask for one: %s", t.problem(now))
	case !n.Lease.Valid(f):
		return false, "this node has not been granted a lease yet"
	case n.Lease.No != t.holder.No():
		return false, "the lease of this node has not begun"
	case t.holder.Held(now):
		return true, ""
	case t.holder.Save().Over:
		return false, fmt.Sprintf("the lease of this node is over: %s", t.overBecause())
	}
	return false, "the lease of this node has been granted and no leader has answered a beat of it"
}

func (t *tenure) overBecause() string {
	switch {
	case t.why != "":
		return t.why
	case t.hinder != "":
		return "it could not be renewed: " + t.hinder
	}
	return fmt.Sprintf("no leader has answered for %s", t.holder.Save().TTL)
}

// follow takes over what the state says against this node's lease. What it gives is
// taken by adopt. The caller has the lock.
func (t *tenure) follow(now lease.Moment, s *state.State) {
	f, n := s.Failover(), s.Node(t.self)
	// A state from before a restart may be older than what this node has done since: the
	// fencer's memory is better.
	if n == nil || !t.upToDate() {
		return
	}
	l := n.Lease
	if !t.looked {
		t.looked, t.found = true, l.No
	}
	if f.Enforced() {
		t.timers = f.Timers
	} else { // said by a state that is known to be new: an old one may lack that failover was armed since
		t.ended = t.holder.No()
	}
	switch {
	case !s.NeedsLease(t.self) || l.Round != f.Round:
	case l.Revoked:
		t.end(now, l.No, "it was revoked")
	case l.Boot != t.boot:
		t.end(now, l.No, "this machine has restarted")
	case l.No > t.holder.No() && l.No == t.found:
		t.end(now, l.No, "flockd has restarted, and the fencer does not remember the lease")
	}
}

// upToDate says that the state is one of after our start: what it says against a lease counts. What is
// given by it waits until this node is fresh, and until then it writes nothing. A node that waits for its
// pool must be able to say so: its volumes may be what it waits for.
func (t *tenure) upToDate() bool { return t.caught != nil && t.caught() || t.fresh() }

// granted is a lease that the state gives this node, and that it has not taken.
func (t *tenure) granted(s *state.State) (l state.Lease, ok bool) {
	f, n := s.Failover(), s.Node(t.self)
	if n == nil || !t.fresh() || !f.Enforced() || !n.Lease.Valid(f) || n.Lease.Boot != t.boot {
		return state.Lease{}, false
	}
	return n.Lease, n.Lease.No > t.holder.No() && n.Lease.No != t.found
}

// end says that the lease of this number is over.
func (t *tenure) end(now lease.Moment, no uint64, why string) {
	if h := t.holder; no < h.No() || no == h.No() && h.Save().Over {
		return
	}
	t.why, t.round = why, t.state().Failover().Round
	t.holder.Revoke(now, no)
}

// bound says that this node writes under a lease only. In arming it is when it has
// taken its first one of the round: up to then no beat of it says so to anybody.
func (t *tenure) bound(s *state.State) bool {
	f := s.Failover()
	return !t.fresh() || s.NeedsLease(t.self) && (f.Mode == state.FailoverAutomatic || t.round == f.Round)
}

// giveUp ends the lease, because this node cannot do its part. The caller has the lock.
func (t *tenure) giveUp(now lease.Moment, why string) {
	if no := t.holder.No(); no != 0 && t.bound(t.state()) && !t.holder.Save().Over {
		t.log.Error("this node gives its lease up", "lease", no, "why", why)
		t.end(now, no, why)
	}
}

// overdue is the lease under which nothing may be written any more; ok is false when
// there is none. The caller has the lock.
func (t *tenure) overdue(now lease.Moment, s *state.State) (no uint64, ok bool) {
	t.holder.Held(now) // expires
	no = t.holder.No()
	return no, t.bound(s) && no != 0 && no != t.ended && t.holder.Save().Over
}

// problem is why this node can hold no lease now; "" when it can.
func (t *tenure) problem(now lease.Moment) string {
	switch {
	case t.fencer == nil:
		return "its fencer is not installed"
	case t.mute || !t.known:
		return "its fencer does not run; start it with `systemctl start flockd-fence`"
	case t.fencing.Boot != t.boot:
		return "its fencer belongs to another boot of the machine"
	case t.fencing.Operator:
		return "an operator has stopped its writers: " + t.fencing.Reason
	case t.unfit != "":
		return t.unfit
	case t.hung != 0 && now.Sub(t.hung) > t.timers.Fence:
		return fmt.Sprintf("its pool has not written anything for %s", round(now.Sub(t.hung)))
	}
	return ""
}

// safety is how surely writers are stopped that run now, if nobody hears of this node
// any more. The word of a fencer that does not answer is worth nothing, but that of a
// watchdog for as long as it may still fire: if we are here after that, it does not run.
// The caller has the lock.
func (t *tenure) safety(now lease.Moment) volume.Safety {
	switch {
	case !t.known:
		return volume.SafetySoftware
	case !t.mute:
		return t.fencing.Safety
	case t.fencing.Safety == volume.SafetyWatchdog && now.Sub(t.heard) <= t.timers.Fence+2*fencerEvery:
		return volume.SafetyWatchdog
	}
	return volume.SafetySoftware
}

// run looks after the lease until ctx ends.
func (t *tenure) run(ctx context.Context) error {
	// What the fencer remembers comes first, if it answers at all: without it a lease of
	// before a restart is over. Nobody else knows of it before we have caught up.
	for began := t.clock(); ctx.Err() == nil && t.fencer != nil; {
		if t.ask(ctx, t.fencer.Status) == nil {
			t.recall()
			break
		}
		if t.upToDate() && t.clock().Sub(began) > fencerPatience {
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

// ours says that the fencer speaks of a lease of this node in this boot: the machine may
// have been another node before, with numbers of its own.
func (t *tenure) ours(l fence.Lease) bool { return l.Boot == t.boot && l.Of(t.self) }

// recall goes on with the lease that the fencer remembers.
func (t *tenure) recall() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if st := t.fencing; st.Saved.No != 0 && t.ours(st.Lease) && st.Boot == t.boot {
		t.holder.Restore(st.Saved)
		t.round = st.Lease.Round
		// Until this node has caught up its state may lack them, or have older ones.
		if st.Lease.TTL != 0 {
			t.timers.TTL, t.timers.Fence = st.Lease.TTL, st.Lease.Fence
		}
	}
}

// guard sees to it that what is over is fenced, and that the fencer lives.
func (t *tenure) guard(ctx context.Context) {
	t.turn.Lock()
	defer t.turn.Unlock()
	s := t.state()
	t.mu.Lock()
	now := t.clock()
	t.follow(now, s)
	no, over := t.overdue(now, s)
	done := over && t.stopped >= no
	why, limit := t.overBecause(), t.timers.Fence
	lost := !t.known || now.Sub(t.heard) > t.patience()
	if lost && !t.mute {
		t.mute = true
		if t.known {
			t.log.Error("the fencer does not answer")
		}
		t.giveUp(now, "the fencer of this node does not run")
	}
	poll := now.Sub(t.polled) >= fencerEvery
	free := t.fresh() && !s.NeedsLease(t.self) && (t.fencing.State == fence.PhaseArmed && t.ours(t.fencing.Lease) || t.fencing.State == fence.PhaseFenced)
	t.mu.Unlock()

	switch {
	case over && !done && lost && t.instead != nil:
		ictx, cancel := context.WithTimeout(ctx, limit)
		err := t.instead(ictx, t.root)
		cancel()
		if err != nil {
			t.fenced("failed")
			t.log.Error("the fencer does not run, and writers cannot be stopped without it", "err", err)
			break
		}
		t.fenced("instead")
		t.mu.Lock()
		t.stopped = max(t.stopped, no)
		t.mu.Unlock()
	case t.fencer == nil || ctx.Err() != nil:
	case over && !done:
		t.fence(ctx, no, why)
	case free:
		t.try(ctx, t.fencer.Disarm, "disarmed")
	case poll:
		t.try(ctx, t.fencer.Status, "asked")
	}
	t.Held()
}

// patience is how long the fencer may be silent before the lease is given up. Meanwhile
// the lease is not renewed either, since the fencer does not confirm; so it may grow
// with the lease, where the profile expects a slow machine.
func (t *tenure) patience() time.Duration { return max(fencerPatience, t.timers.TTL/3) }

// fence has everything stopped. The fencer may not know this lease, as after a boot.
// It goes on while we look after other things.
func (t *tenure) fence(ctx context.Context, no uint64, why string) {
	t.mu.Lock()
	known := t.fencing.State != fence.PhaseIdle && t.ours(t.fencing.Lease) && t.fencing.Lease.No >= no
	l := t.deadline(no, t.clock())
	t.mu.Unlock()
	if !known {
		t.try(ctx, func(ctx context.Context) (fence.Status, error) { return t.fencer.Arm(ctx, l) }, "armed")
	}
	t.try(ctx, func(ctx context.Context) (fence.Status, error) {
		st, err := t.fencer.Fence(ctx, no, why)
		if st.State == fence.PhaseFencing {
			err = nil // not yet
		}
		return st, err
	}, "told to fence")
}

// deadline is what the fencer is told of a lease. The caller has the lock.
func (t *tenure) deadline(no uint64, until lease.Moment) fence.Lease {
	ttl := t.timers.TTL
	if no == t.holder.No() && t.holder.Save().TTL != 0 {
		ttl = t.holder.Save().TTL
	}
	return fence.Lease{Node: t.self, No: no, Boot: t.boot, Round: t.state().Failover().Round, Until: until, Fence: t.timers.Fence, TTL: ttl, Root: t.root}
}

// try is ask, where the next look repeats what did not work.
func (t *tenure) try(ctx context.Context, f func(context.Context) (fence.Status, error), what string) {
	if err := t.ask(ctx, f); err != nil && ctx.Err() == nil {
		t.log.Debug("the fencer could not be "+what, "err", err)
	}
}

// ask the fencer something and note its word, which it gives also when it refuses.
func (t *tenure) ask(ctx context.Context, f func(context.Context) (fence.Status, error)) error {
	ctx, cancel := context.WithTimeout(ctx, fencerCall)
	defer cancel()
	began := t.clock()
	st, err := f(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.polled = began
	if st.Boot == "" {
		return cmp.Or(err, errors.New("the fencer says nothing of itself"))
	}
	if t.mute && t.known {
		t.log.Info("the fencer answers again")
	}
	if t.known && st.State != t.fencing.State { // its first word is of before we began
		switch st.State {
		case fence.PhaseFenced:
			t.fenced("stopped")
		case fence.PhaseFailed:
			t.fenced("failed")
		}
	}
	t.fencing, t.heard, t.known, t.mute = st, t.clock(), true, false
	if st.State == fence.PhaseFenced && t.ours(st.Lease) {
		t.stopped = max(t.stopped, st.Lease.No)
	}
	return err
}

// report is how the lease is, for people.
func (t *tenure) report() volume.LeaseReport {
	if t.root == "" {
		return volume.LeaseReport{}
	}
	held, why := t.Held()
	s := t.state()
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.clock()
	out := volume.LeaseReport{No: t.holder.No(), Held: held, Why: why, Problem: t.problem(now)}
	if t.known && !t.mute {
		out.Safety, out.Fencer = t.fencing.Safety, t.fencing.Problem
	}
	if until, begun := t.holder.Deadline(); held && begun && s.NeedsLease(t.self) {
		out.Left = max(0, until.Sub(now))
	}
	return out
}

// throughout calls take, which takes a snapshot, where this node may write now. When that right
// has ended meanwhile, nobody knows whether that is one of the volume: who is cut off may not
// have heard that another has become its primary. One lease after another is not one right: in
// between another may have written.
func (t *tenure) throughout(take func() error) error {
	no, err := t.right()
	if err != nil {
		return err
	}
	if err := take(); err != nil {
		return err
	}
	now, err := t.right()
	if err == nil && (now == no || now == 0 || no == 0) {
		return nil
	}
	return volume.Errorf(volume.CodeUnavailable, "nobody knows whether the snapshot that was taken is one of the volume: the right of this node to write it was over meanwhile").
		WithHint("if another node takes the volume over, it is in what is set aside; else `flockctl snapshot list` shows it")
}

// right is the number of the lease under which this node may write now, 0 if it needs none, or why
// it may not.
func (t *tenure) right() (no uint64, err error) {
	if ok, why := t.Held(); !ok {
		return 0, volume.Errorf(volume.CodeUnavailable, "no snapshot was taken: %s", why).WithHint("see `flockctl status`")
	}
	s := t.state()
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.NeedsLease(t.self) {
		no = t.holder.No()
	}
	return no, nil
}

// Changed is closed when the right to write comes or goes.
func (t *tenure) Changed() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.changed
}

// outdated says that the fencer is not of this version: an upgrade was left half-way.
func (t *tenure) outdated(version string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if is := t.fencing.Version; is != "" && !t.mute && is != version {
		return fmt.Sprintf("the fencer is of version %s, and flockd of %s; `dpkg-reconfigure flocker` finishes an upgrade that was left half-way", is, version)
	}
	return ""
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
	safety  volume.Safety
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
	o.stopped, o.safety = t.stopped, t.safety(t.clock())
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
	t.adopt(ctx)
	s := t.state()
	timers := timersOf(s)
	t.mu.Lock()
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
		t.extend(ctx, sent, req.Beat)
		t.Held()
	case req.Beat.Want:
		result = "asked"
	case !s.NeedsLease(t.self):
		result = "idle"
	}
	t.count(result)
	return timers.Heartbeat
}

// compose a beat that is sent after now. The caller has the lock.
func (t *tenure) compose(now lease.Moment, s *state.State) api.BeatRequest {
	t.follow(now, s)
	f, n := s.Failover(), s.Node(t.self)
	req := api.BeatRequest{
		Node: t.self, Round: f.Round, Beat: t.holder.Beat(now), Safety: t.safety(now), Problem: t.problem(now), At: t.wall(),
	}
	req.Beat.Boot = t.boot
	t.noteHinder(req.Problem, f)
	if n == nil || !f.Enforced() {
		req.Beat.Want = false
		return req
	}
	no, over := t.overdue(now, s)
	if over && t.stopped == no && n.Lease.No == no {
		req.Beat.Stopped = no
	}
	// It asks when its fencer could be armed and nothing is written under a lease before.
	// What it writes without any it may go on with until it has one.
	switch {
	case !t.fresh() || req.Problem != "":
		req.Beat.Want = false
	case n.Lease.Round != f.Round:
		req.Beat.Want = true
	case over && req.Beat.Stopped == 0:
		req.Beat.Want, req.Problem = false, "its writers are being stopped"
	}
	return req
}

// noteHinder keeps what a lease is going to run out of, until there is another: it may have
// passed by when somebody asks. It is logged when it begins. The caller has the lock.
func (t *tenure) noteHinder(problem string, f state.Failover) {
	if t.holder.Save().Over {
		return
	}
	if problem != "" && t.hinder == "" && f.Mode == state.FailoverAutomatic && t.holder.No() != 0 {
		t.log.Warn("this node cannot renew its lease; if that lasts, its writers are stopped", "lease", t.holder.No(), "why", problem)
	}
	t.hinder = problem
}

// adopt takes a lease that was granted, once the fencer knows of it: a beat of it is the
// leader's proof that this node obeys it.
func (t *tenure) adopt(ctx context.Context) {
	if t.fencer == nil {
		return
	}
	t.turn.Lock()
	defer t.turn.Unlock()
	s := t.state()
	f := s.Failover()
	t.mu.Lock()
	now := t.clock()
	t.follow(now, s)
	l, ok := t.granted(s)
	d := t.deadline(l.No, now.Add(f.Timers.TTL))
	t.mu.Unlock()
	if !ok {
		return
	}
	if err := t.arm(ctx, d); err != nil {
		t.log.Warn("the fencer does not take over a lease; it will be tried again", "lease", l.No, "err", err)
		return
	}
	t.mu.Lock()
	// In arming a primary has written without a lease up to its first one, and until the
	// leader has heard it under that nobody is failed over by time. Who has nothing to write
	// is not waited for: it writes once a beat was answered, like everybody later.
	if f.Mode == state.FailoverArming && t.round != f.Round && slices.Contains(s.NotHeard(nil), t.self) {
		t.holder.Take(now, l.No, f.Timers)
	} else {
		t.holder.Grant(l.No, f.Timers)
	}
	t.round, t.why = f.Round, ""
	t.mu.Unlock()
	t.Held()
}

// leaseProfile that the next round would have.
func leaseProfile(s *state.State) string {
	if c := s.Cluster(); c != nil {
		return c.Settings.Lease
	}
	return ""
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
	if got := t.fencing; got.State != fence.PhaseArmed || !t.ours(got.Lease) || got.Lease.No != l.No || got.Lease.Until < l.Until {
		return errActed
	}
	return nil
}

// extend the lease by an answer to the beat sent at that moment: the fencer knows the
// new deadline before the node does.
func (t *tenure) extend(ctx context.Context, sent lease.Moment, b lease.Beat) {
	t.turn.Lock()
	defer t.turn.Unlock()
	s := t.state()
	t.mu.Lock()
	_, over := t.overdue(t.clock(), s)
	gone := over || b.No == 0 || b.No != t.holder.No() || !s.NeedsLease(t.self)
	d := t.deadline(b.No, sent.Add(t.holder.Save().TTL))
	t.mu.Unlock()
	if gone || t.fencer == nil {
		return
	}
	err := t.arm(ctx, d)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case errors.Is(err, errActed):
		t.giveUp(t.clock(), "the fencer has stopped the writers")
	case err == nil:
		t.holder.Answer(t.clock(), b.No, b.Nonce)
	}
	// Else the lease runs as long as it did.
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
		on, limit := t.state().NeedsLease(t.self), 2*t.timers.Fence
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
