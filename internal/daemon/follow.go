package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/cluster"
	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/placement"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

const (
	// followSettle is how long a container must have been stopped or gone before that is
	// taken for its user's wish. An engine that is shut down stops all its containers
	// first, for up to 15 s; what replaces a container removes it for a moment.
	followSettle = 20 * time.Second
	// followGap is the shortest time between two looks at the containers, and followSoon
	// while one is on its way here: its clients wait.
	followGap  = 250 * time.Millisecond
	followSoon = 10 * time.Millisecond
	// followEvery is how often they are looked at without a reason.
	followEvery = 5 * time.Second
	// followInspect is how long the engine may take to describe a container.
	followInspect = 2 * time.Second
	// followAtOnce bounds how many containers are started at a time, and how many are
	// inspected.
	followAtOnce = 4
	// followRetry is the shortest pause after a failed start, and followMost the longest while something
	// happens at the engine, such as the end of a container that had the port: that may have been in the way.
	// Where nothing does, there is little hope, and followIdle is the longest.
	followRetry = 3 * time.Second
	followMost  = time.Minute
	followIdle  = 5 * time.Minute
	// followOwn is for how long after a try what happens at the engine may be the try itself.
	followOwn = 5 * time.Second
	// followHurry is the first pause instead where clients wait for it to come up or to go back.
	followHurry = 500 * time.Millisecond
)

// follower makes containers follow their volumes: it records those that run here and
// starts those that this node has got the volumes of.
type follower struct {
	m      *member
	engine container.Engine
	wake   chan struct{}
	jobs   sync.WaitGroup

	// Of the loop alone.
	since   map[string]time.Time // what is stopped or gone, since when
	retired map[string]bool      // IDs

	keys sync.Mutex // of firstKey

	mu       sync.Mutex
	stirred  time.Time                  // something happened at the engine
	busy     map[string]bool            // records that a job works on
	watched  map[string]bool            // of these: only to see whether their containers stay
	stopping map[string]int             // records that are stopped for a move, and by how many
	halted   map[string]halt            // by record: what was stopped here for a move
	failed   map[string]followAttempt   // records that could not be started
	looping  map[string]loop            // by record: what is left to its engine and keeps ending
	looked   map[string]string          // by record: the ID of the one here that this process has recorded, or looked at since
	prepared map[string]prepared        // by record
	problems map[string]string          // sentences by record
	refused  map[string]string          // records that cannot be written, and why
	images   map[string]bool            // by record: whether the image is here
	foreseen map[string]foreseen        // of records of other nodes
	here     map[string]container.State // by record
	bare     map[string]string          // by record: ports that one here was made without
	hooks    map[string]*hookRun        // by record: what was done before its last stop for a move
	unrouted map[string]string          // records whose labels ask for routes that they cannot have, and why
	ready    map[volume.ID]string       // for which attempt all was done that is done before containers are stopped
	readied  chan struct{}              // closed at the next change of ready
	stops    map[string]*stopRun        // by attempt
	stopTook map[volume.ID]lastStop     // of what goes with a volume, here
	steps    map[volume.ID]movingNow    // what is being done for moves
	mute     deaf                       // to what foresee asks

	ahead    *prestarts // nil: containers are not started ahead
	networks *networks
}

// foreseen is what is known ahead of a container that may have to come here.
type foreseen struct {
	obstacle string   // why it could not be made here; "" when it could
	notes    []string // what would be different about it
}

type followAttempt struct {
	ended time.Time // the last try
	next  time.Time
	pause time.Duration
	tries int    // in a row
	err   error  // of the last one
	told  bool   // people were
	begun string // what was started, by ID, and is not known to stay or to have ended well
}

// prepared is what a person had made, and was started here for a record.
type prepared struct {
	id string
	// begun: Changed of the record as it was then, if it was not stopped again since and nobody knows
	// yet whether it stays: it may have done all it had to do. 0: it did not stay.
	begun uint64
}

// halt is a container that was stopped for a move. How it ended tells nothing of it.
type halt struct {
	id    string
	times int // that one of its record was stopped
}

func newFollower(m *member, engine container.Engine) *follower {
	f := &follower{
		m: m, engine: engine, wake: make(chan struct{}, 1),
		since: map[string]time.Time{}, retired: map[string]bool{}, busy: map[string]bool{}, watched: map[string]bool{}, stopping: map[string]int{}, halted: map[string]halt{},
		failed: map[string]followAttempt{}, looping: map[string]loop{}, looked: map[string]string{}, prepared: map[string]prepared{}, problems: map[string]string{}, refused: map[string]string{}, images: map[string]bool{},
		foreseen: map[string]foreseen{}, here: map[string]container.State{}, unrouted: map[string]string{}, hooks: map[string]*hookRun{},
		ready: map[volume.ID]string{}, readied: make(chan struct{}), stops: map[string]*stopRun{}, stopTook: map[volume.ID]lastStop{},
	}
	f.networks = newNetworks(f)
	return f
}

// ring has the containers looked at soon.
func (f *follower) ring() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// stir is ring for what happens at the engine.
func (f *follower) stir() {
	f.mu.Lock()
	f.stirred = f.m.now()
	f.mu.Unlock()
	f.ring()
}

// eased has what could not be started tried again now: what this node has seen end may have been in the way. A
// record is named, or "" is all.
func (f *follower) eased(record string) {
	f.mu.Lock()
	now := f.m.now()
	for key, a := range f.failed {
		if (record == "" || key == record) && a.next.After(now) {
			a.next = now
			f.failed[key] = a
		}
	}
	f.mu.Unlock()
	f.ring()
}

// run looks at the containers whenever something may have changed, until ctx ends.
func (f *follower) run(ctx context.Context) error {
	defer f.ahead.close()
	defer f.jobs.Wait()
	for ctx.Err() == nil {
		changed := f.m.cluster.Changed()
		f.step(ctx)
		f.m.rest(ctx, followGap, followSoon)
		due := time.NewTimer(f.due())
		select {
		case <-changed:
		case <-f.wake:
		case <-due.C:
		case <-ctx.Done():
		}
		due.Stop()
	}
	return nil
}

// due is when the containers are looked at next without a reason, or because one is to be
// tried again.
func (f *follower) due() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	soonest := followEvery
	for _, a := range f.failed {
		if left := a.again(f.stirred).Sub(f.m.now()); left > 0 {
			soonest = min(soonest, left)
		}
	}
	return soonest
}

// rest is between two looks: as long as gap, but no longer than soon while a container is
// on its way here.
func (m *member) rest(ctx context.Context, gap, soon time.Duration) {
	timer := time.NewTimer(gap)
	defer timer.Stop()
	for {
		changed := m.cluster.Changed()
		if awaits(m.cluster.State(), m.self) {
			pause(ctx, soon)
			return
		}
		select {
		case <-timer.C:
			return
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// awaits says that containers are on their way to a node.
func awaits(s *state.State, node volume.NodeID) bool {
	for v := range s.Volumes() {
		if v.Phase == state.PhaseMoving && v.Pending.Follow && v.Pending.To == node || v.Placement.Primary == node && len(s.Starting(v)) > 0 {
			return true
		}
	}
	return false
}

// step looks once and does what is to be done. Starts go on in the background.
func (f *follower) step(ctx context.Context) {
	s := f.m.cluster.State()
	if s.Cluster() == nil {
		return
	}
	f.networks.step(ctx)
	f.ahead.step(ctx, s)
	if s.Cluster().DataKey != "" {
		if err := f.shareKey(ctx); err != nil {
			f.note("data key", fmt.Sprintf("containers cannot follow to or from this node: %v", err))
		} else if f.noted("data key") {
			f.note("data key", "")
			f.eased("")
		}
	}
	lctx, cancel := context.WithTimeout(ctx, engineTimeout)
	users, err := f.engine.Users(lctx)
	cancel()
	if err != nil {
		f.since = map[string]time.Time{} // nothing is seen to stay as it is while nobody answers
		return
	}
	found := f.look(ctx, s, users)
	v := followView{Self: f.m.self, State: s, MayWrite: f.m.mayWrite(), Hidden: map[string]bool{}, Settled: f.settled}
	f.mu.Lock()
	for key := range f.here {
		v.Hidden[key] = true
	}
	f.mu.Unlock()
	specs := map[string]container.Captured{}
	for _, l := range found {
		v.Here = append(v.Here, l.here)
		specs[l.here.ID] = l.captured
		delete(v.Hidden, recordKeyOf(&l.here))
	}
	f.age(v)
	steps := planFollow(v)
	f.forgetDone(f.m.cluster.State, steps, v.Hidden)
	f.forgetMoves()
	for _, st := range steps {
		if ctx.Err() != nil {
			return
		}
		f.do(ctx, s, st, specs)
	}
}

type localFound struct {
	here     hereContainer
	captured container.Captured
}

// look describes the containers that follow. One of which a volume is not known, or
// that cannot be inspected, is left out: it is looked at again.
func (f *follower) look(ctx context.Context, s *state.State, users []container.Use) (out []localFound) {
	key, keyErr := f.m.cluster.DataKey()
	seen, bare := map[string]container.State{}, map[string]string{}
	// An engine does not answer about a container while it starts or stops it, which may
	// take minutes: nobody else has to wait for that.
	var asked sync.WaitGroup
	var mu sync.Mutex // of out
	slots := make(chan struct{}, followAtOnce)
	f.mu.Lock()
	busy, prepared := maps.Clone(f.busy), maps.Clone(f.prepared)
	for key := range f.stopping {
		busy[key] = true // it may still run, and it is not its user who stops it
	}
	f.mu.Unlock()
	names := map[string]bool{}
	for _, u := range users {
		names[u.Name] = true
	}
	for _, u := range users {
		if !follows(u) {
			continue
		}
		volumes := volumesOf(s, u)
		if len(volumes) == 0 {
			continue
		}
		h := hereContainer{ID: u.Container, Name: u.Name, Volumes: volumes, Live: u.State.Live()}
		seen[recordKeyOf(&h)] = u.State
		if left := container.LeftOut(u.Labels); len(left) > 0 {
			bare[recordKeyOf(&h)] = strings.Join(left, ", ")
		}
		r := s.RecordOf(h.Name, volumes)
		if v := (followView{Self: f.m.self, State: s, MayWrite: true}); !v.mine(volumes) && r == nil {
			continue
		}
		if r != nil {
			h.Made = madeFor(r, f.m.self, u)
			h.Unproven = h.Made || r.Node != f.m.self && prepared[r.RecordKey()].id == h.ID
		}
		if busy[recordKeyOf(&h)] {
			continue
		}
		slots <- struct{}{}
		asked.Go(func() {
			defer func() { <-slots }()
			c, err := f.inspect(ctx, u.Container)
			if err != nil {
				f.m.log.Debug("a container cannot be described now", "container", u.Name, "err", err)
				return
			}
			if keyErr == nil {
				plain, err := c.Spec.Encode()
				if err != nil {
					f.m.log.Warn("a container cannot be described", "container", u.Name, "err", err)
					return
				}
				h.Hash = key.Hash(plain)
			}
			f.describe(s, &h, u.Labels, c)
			if r != nil && r.Node == f.m.self && r.ID == c.ID {
				f.resume(s, r, c, names[container.Replaced(u.Name)])
			}
			h.GivenUp = f.recheck(recordKeyOf(&h), c)
			mu.Lock()
			defer mu.Unlock()
			out = append(out, localFound{h, c})
		})
	}
	asked.Wait()
	slices.SortFunc(out, func(a, b localFound) int { return strings.Compare(a.here.ID, b.here.ID) })
	f.mu.Lock()
	f.here, f.bare = seen, bare
	maps.DeleteFunc(f.unrouted, func(key, _ string) bool { _, here := seen[key]; return !here })
	maps.DeleteFunc(f.looping, func(key string, _ loop) bool { _, here := seen[key]; return !here })
	f.mu.Unlock()
	return out
}

// follows says that a container is to go where its volumes go, and is none that flocker is just making
// or taking away.
func follows(u container.Use) bool {
	return container.Followed(u.Labels) && !strings.Contains(u.Name, ".flocker-")
}

// madeFor says that a container here was made for the one of a record, which is elsewhere, and was not
// seen to come up. One that was recorded here has left when its user went back to that one by hand.
func madeFor(r *state.Container, self volume.NodeID, u container.Use) bool {
	return r.Node != self && r.Left[self] != u.Container && u.Labels[container.LabelMade] == r.ID
}

// resume goes on with what another flockd has left to its engine here, at the first look at it.
func (f *follower) resume(s *state.State, r *state.Container, c container.Captured, old bool) {
	key := r.RecordKey()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.looked[key] == c.ID {
		return
	}
	f.looked[key] = c.ID
	if l, ok := resumed(c, old, f.m.now()); ok && r.Run {
		l.what = fmt.Sprintf("container %s does not come up on %s", r.Name, s.NodeName(f.m.self))
		f.looping[key] = l
	}
}

// recheck looks whether what was left to its engine has come up since, or was given up by it. What it
// replaced is removed once it has come up.
func (f *follower) recheck(key string, c container.Captured) (gaveUp bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l, ok := f.looping[key]
	if !ok {
		return false
	}
	l, over := l.next(c, f.m.now())
	if f.looping[key] = l; !over {
		return l.gaveUp
	}
	delete(f.looping, key)
	if !c.State.Live() || f.busy[key] {
		return false
	}
	f.busy[key] = true
	f.jobs.Go(func() {
		if err := f.engine.CleanUp(context.Background(), c.Spec.Name); err != nil {
			f.m.log.Warn("a container has come up, but something is left of the one it replaced", "container", c.Spec.Name, "err", err)
		}
		f.mu.Lock()
		delete(f.busy, key)
		f.mu.Unlock()
		f.ring()
	})
	return false
}

// describe adds what follows from what the engine says of a container.
func (f *follower) describe(s *state.State, h *hereContainer, labels map[string]string, c container.Captured) {
	h.Live, h.Failed = c.State.Live(), c.Error != ""
	h.Routes = f.routes(s, h, labels)
	if f.m.unaware(knowsRoutes) == "" {
		for _, p := range c.Ports.Published {
			h.Published = append(h.Published, state.Published{Host: p.Host, Port: p.Port})
		}
	}
}

// routes are those that a container's labels ask for and that nobody else has. What it
// cannot have is a problem of its own, and does not keep it from following.
func (f *follower) routes(s *state.State, h *hereContainer, labels map[string]string) []volume.Route {
	wanted, err := volume.LabelledRoutes(labels)
	candidate := state.Container{Name: h.Name, Node: f.m.self}
	for _, id := range h.Volumes {
		candidate.Volumes = append(candidate.Volumes, state.ContainerVolume{ID: id})
	}
	free, taken := s.FreeRoutes(&candidate, wanted)
	problem := strings.Join(taken, "; ")
	if err != nil {
		problem = err.Error()
	} else if who := f.m.unaware(knowsRoutes); who != "" && len(wanted) > 0 {
		free, problem = nil, fmt.Sprintf("node %s runs a version of flocker that knows no routes", who)
	} else if hosts := func(r volume.Route) bool { return r.Host != "" }; slices.ContainsFunc(wanted, hosts) {
		if who := f.m.unaware(knowsHosts); who != "" {
			free, problem = slices.DeleteFunc(free, hosts), fmt.Sprintf("node %s runs a version of flocker that knows no routes with names", who)
		}
	}
	if problem != "" {
		problem = fmt.Sprintf("container %s has no routes as its labels ask for: %s", h.Name, problem)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if key := recordKeyOf(h); problem == "" {
		delete(f.unrouted, key)
	} else {
		f.unrouted[key] = problem
	}
	return free
}

func (f *follower) inspect(ctx context.Context, id string) (container.Captured, error) {
	ctx, cancel := context.WithTimeout(ctx, followInspect)
	defer cancel()
	return f.engine.Inspect(ctx, id)
}

// age notes since when containers are stopped and records without one.
func (f *follower) age(v followView) {
	if !v.MayWrite {
		// What stopped now was fenced, perhaps; it has its time when this node may write again.
		f.since = map[string]time.Time{}
		return
	}
	now, seen := f.m.now(), map[string]time.Time{}
	mark := func(what string) {
		if at, ok := f.since[what]; ok {
			seen[what] = at
		} else {
			seen[what] = now
		}
	}
	here := map[string]bool{}
	for i := range v.Here {
		c := &v.Here[i]
		here[recordKeyOf(c)] = true
		if !c.Live {
			mark(c.ID)
		}
	}
	f.mu.Lock()
	for key := range f.here {
		here[key] = true // seen, though it could not be described
	}
	f.mu.Unlock()
	for r := range v.State.Containers() {
		if key := r.RecordKey(); r.Node == v.Self && !here[key] && v.mine(ids(r.Volumes)) {
			mark(key)
		}
	}
	f.since = seen
}

// settled is followView.Settled.
func (f *follower) settled(what string) bool {
	at, ok := f.since[what]
	return ok && f.m.now().Sub(at) >= followSettle
}

// do performs one step, or begins it.
func (f *follower) do(ctx context.Context, s *state.State, st followStep, specs map[string]container.Captured) {
	switch st.Do {
	case followPut, followStop:
		_ = f.put(ctx, s, st, specs[st.Here.ID]) // noted, and the next look tries again
	case followDrop:
		f.drop(ctx, st)
	case followRetire:
		if f.retired[st.Here.ID] {
			return
		}
		rctx, cancel := context.WithTimeout(ctx, engineTimeout)
		defer cancel()
		if err := f.engine.Retire(rctx, st.Here.ID); err != nil {
			f.m.log.Warn("a container that runs elsewhere may be started here by its engine; mounting its volume will be refused", "container", st.Here.Name, "err", err)
			return
		}
		f.retired[st.Here.ID] = true
		f.m.log.Info("a container that runs elsewhere is not started here any more", "container", st.Here.Name, "node", s.NodeName(st.Known.Node))
	case followDiscard:
		dctx, cancel := context.WithTimeout(ctx, engineTimeout)
		defer cancel()
		if err := f.engine.Discard(dctx, st.Here.Name, st.Here.ID); err != nil {
			f.m.log.Warn("a container that was made here, and never seen to come up, cannot be removed", "container", st.Here.Name, "err", err)
			return
		}
		f.m.log.Info("a container that was made here, and never seen to come up, was removed: its volumes are elsewhere", "container", st.Here.Name)
	case followBlock:
		f.note(st.Record, fmt.Sprintf("container %s of node %s cannot run here: %s", st.Known.Name, s.NodeName(st.Known.Node), strings.Join(st.Known.Obstacles, "; ")))
	case followStart, followMake:
		f.begin(ctx, st)
	}
}

// put records a container. Why it is not recorded is noted where its user can do something about that.
func (f *follower) put(ctx context.Context, s *state.State, st followStep, c container.Captured) error {
	key, err := f.key(ctx)
	if err != nil {
		f.note(st.Record, fmt.Sprintf("container %s does not follow its volumes yet: %v", st.Here.Name, err))
		return err
	}
	plain, err := c.Spec.Encode()
	if err == nil {
		var sealed []byte
		if sealed, err = key.Seal(f.m.cluster.ClusterID(), plain); err == nil {
			err = f.propose(ctx, s, st, c, key, sealed, plain)
		}
	}
	switch {
	case err == nil:
		f.note(st.Record, "")
		f.mu.Lock()
		f.looked[st.Record] = c.ID
		f.mu.Unlock()
	case volume.CodeOf(err) == volume.CodeConflict || ctx.Err() != nil: // the state has moved on; the next look decides anew
	default:
		f.note(st.Record, fmt.Sprintf("container %s does not follow its volumes: %v", st.Here.Name, err))
	}
	return err
}

func (f *follower) propose(ctx context.Context, s *state.State, st followStep, c container.Captured, key cluster.DataKey, sealed, plain []byte) error {
	rec := state.Container{
		Name: st.Here.Name, Node: f.m.self, ID: c.ID, Run: st.Do == followPut,
		Image: state.ContainerImage{ID: c.Spec.Image.ID, Ref: c.Spec.Image.Ref, Layers: c.Spec.Image.Layers},
		Key:   key.ID(), Sealed: sealed, Hash: key.Hash(plain), Routes: st.Here.Routes, Published: st.Here.Published,
	}
	for _, id := range st.Here.Volumes {
		v := s.Volume(id)
		if v == nil {
			return nil
		}
		rec.Volumes = append(rec.Volumes, state.ContainerVolume{ID: id, Epoch: v.Epoch})
	}
	obstacles := container.Preflight(c.Spec, volumeDriver, container.Target{})
	rec.Blocked = container.Blocked(obstacles)
	for _, o := range obstacles {
		rec.Obstacles = append(rec.Obstacles, o.Message)
	}
	if size := len(sealed); size > state.MaxContainer {
		return volume.Errorf(volume.CodeInvalid, "its description takes %d KiB and at most %d are kept; give it a file instead of a long environment", size>>10, state.MaxContainer>>10)
	}
	res, err := f.m.propose(ctx, state.PutContainer{Container: rec})
	if err != nil {
		return err
	}
	if res.Err != nil {
		return res.Err
	}
	return nil
}

// volumeDriver is what Docker calls our driver.
const volumeDriver = "flocker"

func (f *follower) drop(ctx context.Context, st followStep) {
	res, err := f.m.propose(ctx, state.DropContainer{Record: st.Record, Node: f.m.self, Changed: st.Known.Changed})
	if err == nil && res.Err != nil {
		err = res.Err
	}
	switch {
	case err == nil:
		f.note(st.Record, "")
		f.m.log.Info("a container was removed and does not follow its volumes any more", "container", st.Known.Name)
	case volume.CodeOf(err) == volume.CodeConflict || ctx.Err() != nil: // the state has moved on; the next look decides anew
	default:
		f.note(st.Record, fmt.Sprintf("container %s was removed, and its record stays: %v", st.Known.Name, err))
	}
}

// begin starts or makes a container in the background, if its time has come.
func (f *follower) begin(ctx context.Context, st followStep) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.busy[st.Record] || f.stopping[st.Record] > 0 || len(f.busy)-len(f.watched) >= followAtOnce || f.m.now().Before(f.failed[st.Record].again(f.stirred)) {
		return
	}
	if r := f.m.cluster.State().Container(st.Record); r == nil || r.Changed != st.Known.Changed {
		return // as by the try that has just ended; the next look decides anew
	}
	f.busy[st.Record] = true
	f.jobs.Go(func() {
		err := f.bring(ctx, st)
		loops := errors.Is(err, errLoops)
		undecided := !loops && errors.Is(err, container.ErrUndecided)
		failed := err != nil && !loops && !undecided && ctx.Err() == nil
		back := goesBack(f.m.cluster.State(), st.Known)
		told := failed && f.tellFailed(st.Known, err, back)
		f.mu.Lock()
		delete(f.busy, st.Record)
		if err == nil || loops {
			delete(f.failed, st.Record)
		} else {
			f.failed[st.Record] = f.failed[st.Record].after(err, undecided, back, told, f.m.now())
		}
		f.mu.Unlock()
		switch {
		case err == nil:
			f.note(st.Record, "")
			f.m.log.Info("a container follows its volumes to this node", "container", st.Known.Name)
		case loops:
			f.note(st.Record, "")
		case undecided:
			f.m.log.Warn("a container was started, and it is not known yet whether it stays up, or not recorded", "container", st.Known.Name, "err", err)
		case failed:
			f.note(st.Record, fmt.Sprintf("container %s cannot be started here and will be tried again: %v", st.Known.Name, err))
			f.m.reportSoon() // its clients may wait for it to go back
		}
		f.ring()
	})
}

// after is what is known once a try did not end well. back: its volumes can go back where it ran,
// and its clients wait for that.
func (a followAttempt) after(err error, undecided, back, told bool, now time.Time) followAttempt {
	tries := a.tries + 1
	var again startedAgain
	if back && errors.As(err, &again) {
		tries++
	}
	least := followRetry
	if back && tries < placement.StartTries {
		least = followHurry
	}
	a.ended = now
	if undecided { // which is no failure
		a.next = now.Add(least)
		return a
	}
	a.pause = min(max(2*a.pause, least), followIdle)
	a.next = now.Add(a.pause)
	a.tries, a.err, a.told, a.begun = tries, err, a.told || told, ""
	return a
}

// again is when the next try is due. stirred is when something happened at the engine last.
func (a followAttempt) again(stirred time.Time) time.Time {
	if most := a.ended.Add(followMost); a.next.After(most) && stirred.After(a.ended.Add(followOwn)) {
		return most
	}
	return a.next
}

// bring has the container of a record running here, and seen to stay. It may be repeated.
func (f *follower) bring(ctx context.Context, st followStep) error {
	halts := f.halts(st.Record)
	if st.Do == followStart {
		return f.startHere(ctx, st, halts)
	}
	spec, left, _, err := f.specOf(ctx, st.Known)
	if err != nil {
		return err
	}
	s := f.m.cluster.State()
	if f.ahead.bring(ctx, st.Known, spec, halts) {
		if len(left) > 0 {
			f.tellUnpublished(s, st.Known, left)
		}
		return nil
	}
	id, err := f.engine.Recreate(ctx, spec, f.known(st.Known), func(ctx context.Context, id string) error {
		return f.stays(ctx, st.Known, id, halts)
	})
	if id != "" && err != nil && !errors.Is(err, container.ErrUndecided) {
		f.m.log.Warn("a container was made again, but something is left of the one it replaced", "container", spec.Name, "err", err)
		err = nil
	}
	f.tried(st.Known, err, halts)
	if err == nil && len(left) > 0 {
		f.tellUnpublished(s, st.Known, left)
	}
	return err
}

// tried notes what became of a container that a person had prepared for a record, by the error of the
// try. halts is how often one of it had been stopped for a move before.
func (f *follower) tried(r *state.Container, err error, halts int) {
	key := r.RecordKey()
	f.mu.Lock()
	defer f.mu.Unlock()
	var stopped *container.StoppedError
	var begun *container.BegunError
	switch {
	case errors.As(err, &stopped):
		f.prepared[key] = prepared{id: stopped.ID}
	case errors.As(err, &begun) && f.halted[key].times == halts:
		f.prepared[key] = prepared{begun.ID, r.Changed}
	case errors.As(err, &begun):
		f.prepared[key] = prepared{id: begun.ID}
	case err == nil:
		delete(f.prepared, key)
	}
}

// startHere starts the container of a record that is here. It is its user's, and stays in any case.
func (f *follower) startHere(ctx context.Context, st followStep, halts int) error {
	f.mu.Lock()
	begun := f.failed[st.Record].begun
	f.mu.Unlock()
	if begun == st.Here.ID {
		// It was started, and that was not recorded: if it has done all it had to do since, it must not
		// do that twice.
		if err := f.stays(ctx, st.Known, begun, halts); err == nil || errors.Is(err, container.ErrUndecided) {
			return err
		}
	}
	if err := f.engine.StartAgain(ctx, st.Here.ID); err != nil {
		return err
	}
	err := f.stays(ctx, st.Known, st.Here.ID, halts)
	if errors.Is(err, container.ErrUndecided) && f.halts(st.Record) == halts {
		f.mu.Lock()
		a := f.failed[st.Record]
		a.begun = st.Here.ID
		f.failed[st.Record] = a
		f.mu.Unlock()
	}
	return err
}

// specOf is the container of a record as it is made here, without the published ports that
// are left out for reasons.
func (f *follower) specOf(ctx context.Context, r *state.Container) (spec container.Spec, left []string, target container.Target, err error) {
	if spec, err = f.open(r); err != nil {
		return spec, nil, target, err
	}
	if target, err = f.engine.Target(ctx); err != nil {
		return spec, nil, target, err
	}
	if obstacles := container.Preflight(spec, volumeDriver, target); container.Blocked(obstacles) {
		return spec, nil, target, fmt.Errorf("%s", obstacles[0].Message)
	}
	if spec, left, err = unpublished(f.m.cluster.State(), r, spec, target); err == nil {
		spec, err = spec.Linked()
	}
	return spec, left, target, err
}

// unpublished is the spec of a record without those published ports that it is made without
// on an engine, and why: what that would publish past a gate or in the place of an edge, and
// what another container has there.
func unpublished(s *state.State, r *state.Container, spec container.Spec, target container.Target) (container.Spec, []string, error) {
	bypass := s.Bypass(r)
	return spec.Unpublished(func(b container.Binding) string {
		if why := bypass(b.Host, b.Port); why != "" && b.Protocol == "tcp" {
			return why
		}
		return target.Taken(spec.Name, b)
	})
}

// tellUnpublished has people know that a container runs here without ports that it published.
func (f *follower) tellUnpublished(s *state.State, r *state.Container, left []string) {
	id := r.Volumes[0].ID
	text := fmt.Sprintf("container %s is on %s without ports that it published: %s", r.Name, s.NodeName(f.m.self), strings.Join(left, "; "))
	if v := s.Volume(id); v != nil {
		text = fmt.Sprintf("volume %s: %s", v.Name, text)
	}
	f.m.log.Warn("a container runs here without ports that it published", "container", r.Name, "why", left)
	f.m.tell(state.Tell{Volume: id, Kind: state.VolumePorts, Message: text})
}

// known is what is known of the containers here in whose place the one of a record may come.
func (f *follower) known(r *state.Container) container.Known {
	f.mu.Lock()
	p, halted := f.prepared[r.RecordKey()], f.halted[r.RecordKey()].id
	f.mu.Unlock()
	known := container.Known{Prepared: p.id}
	if p.begun > 0 && p.begun == r.Changed { // else it has run elsewhere since
		known.Begun = p.id
	}
	if halted != p.id { // that one is begun again since, or is not asked about in any case
		known.Halted = halted
	}
	if id := r.Left[f.m.self]; id != "" {
		known.Replaces = []string{id}
	}
	return known
}

// foresee keeps for reports what would stand in the way here of the containers that may have
// to come, so that none is stopped for a move that cannot end well. What the engine does not
// say now stays as it was known.
func (f *follower) foresee(ctx context.Context, s *state.State) {
	found := map[string]foreseen{}
	var target container.Target
	for r := range s.Containers() {
		if !mayGetImage(s, r, f.m.self) {
			continue
		}
		key := r.RecordKey()
		f.mu.Lock()
		now, busy := f.foreseen[key], f.busy[key]
		f.mu.Unlock()
		if !target.Known && ctx.Err() == nil {
			var err error
			if target, err = f.target(ctx); err != nil {
				f.mute.note(ctx, f.m.log, err)
				return
			}
			f.mute.note(ctx, f.m.log, nil)
		}
		if spec, err := f.open(r); err == nil && !busy {
			now = foreseen{obstacle: f.obstacle(ctx, spec, target, f.known(r), now.obstacle), notes: f.differences(s, r, spec, target)}
		}
		found[key] = now
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.foreseen = found
}

// differences of a container that is made again here, besides what its record says.
func (f *follower) differences(s *state.State, r *state.Container, spec container.Spec, target container.Target) (notes []string) {
	_, left, err := unpublished(s, r, spec, target)
	if err != nil {
		return []string{err.Error()} // it cannot be made, either
	}
	for _, why := range left {
		notes = append(notes, fmt.Sprintf("it will not publish every port on %s: %s", s.NodeName(f.m.self), why))
	}
	if asked, why := spec.Prestarts(volumeDriver); asked && why != "" {
		notes = append(notes, fmt.Sprintf("it will not be started ahead on %s: %s", s.NodeName(f.m.self), why))
	}
	links, err := spec.Links()
	if err != nil {
		return notes // its record says so
	}
	for _, l := range links {
		if len(linkedTo(s, l)) == 0 {
			notes = append(notes, unrouted("it", l))
		}
	}
	return notes
}

func (f *follower) target(ctx context.Context) (container.Target, error) {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	return f.engine.Target(ctx)
}

// obstacle is the first thing in the way of a container here, "" for none, or known where
// the engine does not say.
func (f *follower) obstacle(ctx context.Context, spec container.Spec, target container.Target, there container.Known, known string) string {
	if obstacles := container.Preflight(spec, volumeDriver, target); container.Blocked(obstacles) {
		return obstacles[0].Message
	}
	id := target.Containers[spec.Name]
	if id == "" {
		return ""
	}
	at, err := f.inspect(ctx, id)
	switch {
	case errors.Is(err, container.ErrNotFound):
		return ""
	case err != nil:
		return known
	}
	if err := container.NameTaken(at, spec, there); err != nil {
		return err.Error()
	}
	return ""
}

// open is the spec of a record, as it is made of it.
func (f *follower) open(r *state.Container) (container.Spec, error) {
	key, err := f.m.cluster.DataKey()
	if err != nil {
		return container.Spec{}, err
	}
	plain, err := key.Open(f.m.cluster.ClusterID(), r.Sealed)
	if err != nil {
		return container.Spec{}, err
	}
	spec, err := container.DecodeSpec(plain)
	if err != nil {
		return container.Spec{}, err
	}
	return spec.MadeFor(r.ID)
}

// stop the container of a record. The move may be given up while the engine is at it:
// until it has ended nobody takes it for one that runs, or for one that its user stopped.
func (f *follower) stop(ctx context.Context, c *state.Container) error {
	key := c.RecordKey()
	f.mu.Lock()
	f.stopping[key]++
	f.halted[key] = halt{c.ID, f.halted[key].times + 1}
	if p := f.prepared[key]; p.id != "" && p.id == c.ID {
		f.prepared[key] = prepared{id: p.id}
	}
	if a, ok := f.failed[key]; ok && a.begun == c.ID {
		a.begun = ""
		f.failed[key] = a
	}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		if f.stopping[key]--; f.stopping[key] == 0 {
			delete(f.stopping, key)
		}
		f.mu.Unlock()
		f.ring()
	}()
	if err := f.engine.StopContainer(ctx, c.ID); !errors.Is(err, container.ErrNotFound) {
		return err
	}
	return nil
}

// halts is how often containers of a record were stopped here for a move.
func (f *follower) halts(record string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.halted[record].times
}

// key is the data key; the first node that needs one makes it.
func (f *follower) key(ctx context.Context) (cluster.DataKey, error) {
	if err := f.firstKey(ctx); err != nil {
		return cluster.DataKey{}, err
	}
	if err := f.shareKey(ctx); err != nil {
		return cluster.DataKey{}, err
	}
	return f.m.cluster.DataKey()
}

// firstKey makes the data key where there is none. One at a time: of two keys the disk might get the one
// that the others were not told of.
func (f *follower) firstKey(ctx context.Context) error {
	f.keys.Lock()
	defer f.keys.Unlock()
	if f.m.cluster.State().Cluster().DataKey != "" {
		return nil
	}
	return f.makeKey(ctx, "")
}

// makeKey proposes a key of this node. Another node's may be taken instead.
func (f *follower) makeKey(ctx context.Context, was string) error {
	id, err := f.m.cluster.MakeDataKey()
	if err != nil {
		return err
	}
	res, err := f.m.propose(ctx, state.SetDataKey{ID: id, Was: was})
	if err == nil && res.Err != nil && res.Err.Code != volume.CodeConflict {
		return res.Err
	}
	return err
}

// shareKey sees to it that this node has the key that the state names. Only when every
// node that could have it has said that it does not is another one made: what was
// sealed with the lost one is recorded again where it runs.
func (f *follower) shareKey(ctx context.Context) error {
	_, err := f.m.cluster.DataKey()
	if !errors.Is(err, cluster.ErrNoDataKey) {
		return err
	}
	s := f.m.cluster.State()
	var silent []string
	for n := range s.Nodes() {
		if n.ID == f.m.self || !cluster.MayHaveData(n) {
			continue
		}
		kctx, cancel := context.WithTimeout(ctx, f.m.timers.Stale)
		found, err := f.m.cluster.FetchDataKey(kctx, n.ID)
		cancel()
		if found {
			return nil
		}
		if err != nil {
			silent = append(silent, n.Name)
		}
	}
	if len(silent) > 0 {
		return fmt.Errorf("%w, and %s cannot be asked for it", cluster.ErrNoDataKey, strings.Join(silent, ", "))
	}
	if err := f.makeKey(ctx, s.Cluster().DataKey); err != nil {
		return err
	}
	_, err = f.m.cluster.DataKey()
	return err
}

// engineIDs are what an engine calls things that it makes anew at each try, as in why a port is taken: that is
// no other problem.
var engineIDs = regexp.MustCompile(`\b[0-9a-f]{12,64}\b`)

// note keeps a sentence for the operator about a record; "" when all is well.
func (f *follower) note(record, problem string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case problem == "":
		delete(f.problems, record)
	case f.problems[record] != problem:
		told := engineIDs.ReplaceAllString(f.problems[record], "") == engineIDs.ReplaceAllString(problem, "")
		f.problems[record] = problem
		if told {
			return
		}
		f.m.log.Warn("a container does not follow its volumes as it should", "problem", problem)
	}
}

// noted says that a sentence is kept about a record.
func (f *follower) noted(record string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.problems[record] != ""
}

// forgetDone drops the sentences about what is not tried any more. Of what is hidden nobody
// knows that: a try may have failed since it was looked for. now is asked under the lock: what is noted of
// a record is in it.
func (f *follower) forgetDone(now func() *state.State, steps []followStep, hidden map[string]bool) {
	tried := map[string]bool{"data key": true}
	maps.Copy(tried, hidden)
	for _, st := range steps {
		tried[st.Record] = true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s := now()
	maps.DeleteFunc(f.looping, func(key string, _ loop) bool { r := s.Container(key); return r == nil || r.Node != f.m.self })
	maps.DeleteFunc(f.problems, func(key, _ string) bool { return !tried[key] && !f.busy[key] })
	maps.DeleteFunc(f.failed, func(key string, _ followAttempt) bool { return !tried[key] && !f.busy[key] })
	maps.DeleteFunc(f.prepared, func(key string, _ prepared) bool { r := s.Container(key); return r == nil || r.Node == f.m.self })
	maps.DeleteFunc(f.halted, func(key string, _ halt) bool { return s.Container(key) == nil && f.stopping[key] == 0 })
	maps.DeleteFunc(f.looked, func(key, _ string) bool { return s.Container(key) == nil && !f.busy[key] })
	maps.DeleteFunc(f.hooks, func(key string, _ *hookRun) bool { return s.Container(key) == nil })
	maps.DeleteFunc(f.images, func(key string, _ bool) bool { return s.Container(key) == nil })
}

// report adds what this node knows of containers to its report.
func (f *follower) report(rep *volume.Report) {
	s := f.m.cluster.State()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reportSteps(s, rep)
	for _, key := range slices.Sorted(maps.Keys(f.problems)) {
		rep.Problems = append(rep.Problems, f.problems[key])
	}
	for _, key := range slices.Sorted(maps.Keys(f.looping)) {
		if l := f.looping[key]; l.why != "" {
			rep.Problems = append(rep.Problems, l.String())
		}
	}
	for _, key := range slices.Sorted(maps.Keys(f.unrouted)) {
		rep.Problems = append(rep.Problems, f.unrouted[key])
	}
	for r := range s.Containers() {
		key := r.RecordKey()
		st, known := f.here[key]
		has, asked := f.images[key]
		if r.Node != f.m.self && !asked && f.problems[key] == "" {
			continue
		}
		c := volume.Followed{Record: key, Problem: f.problems[key], LacksImage: asked && !has}
		if l, ok := f.looping[key]; ok && l.why != "" && c.Problem == "" {
			c.Problem = l.String()
		}
		if r.Node != f.m.self && c.Problem == "" {
			c.Problem = f.foreseen[key].obstacle
		}
		if r.Node != f.m.self {
			c.Notes = f.foreseen[key].notes
		} else if left := f.bare[key]; left != "" {
			c.Notes = []string{fmt.Sprintf("it runs without ports that it published: %s", left)}
		}
		if known {
			c.State = string(st)
		}
		if a := f.failed[key]; a.tries > 0 {
			c.Failed, c.Error = a.tries, a.err.Error()
		}
		if f.busy[key] {
			c.State = "starting"
		}
		rep.Followed = append(rep.Followed, c)
	}
}

// mayWrite says that this node may write what it is the primary of.
func (m *member) mayWrite() bool {
	select {
	case <-m.agent.Fresh():
		held, _ := m.tenure.Held()
		return held
	default:
		return false
	}
}
