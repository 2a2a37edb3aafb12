package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/agent"
	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/placement"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/proxy"
)

// joinPatience is how long a move of a volume waits until those of the volumes that go along
// have begun, too. The leader begins them one after the other.
const joinPatience = 15 * time.Second

// company is what leaves a node together: containers that run there and follow, and the
// volumes of them that are there.
type company struct {
	volumes    map[volume.ID]bool
	containers []*state.Container
}

// goingWith is the company of a volume on a node: the containers that use it, all volumes
// that these use, all containers that use one of them, and so on.
func goingWith(s *state.State, node volume.NodeID, id volume.ID) company {
	g := company{volumes: map[volume.ID]bool{id: true}}
	// A rollback concerns the containers of its volume alone: they run on here, with what
	// others of them share.
	alone := rollsBack(s.Volume(id))
	for todo := []volume.ID{id}; len(todo) > 0; todo = todo[1:] {
		for _, c := range s.ContainersOf(todo[0]) {
			if c.Node != node || !c.Run || slices.ContainsFunc(g.containers, func(o *state.Container) bool { return o.RecordKey() == c.RecordKey() }) {
				continue
			}
			g.containers = append(g.containers, c)
			for _, cv := range c.Volumes {
				if v := s.Volume(cv.ID); v != nil && v.Placement.Primary == node && !g.volumes[cv.ID] {
					g.volumes[cv.ID] = true
					if !alone {
						todo = append(todo, cv.ID)
					}
				}
			}
		}
	}
	return g
}

// rollsBack says that a volume is being rolled back.
func rollsBack(v *state.Volume) bool {
	return v != nil && v.Pending != nil && v.Pending.Rollback != nil
}

// missing says which volume of a company is not ready to go, by what has been done for the
// attempt to move each; "" when all are. The error is why it will not be.
func (g company) missing(s *state.State, self volume.NodeID, own *state.Pending, ready map[volume.ID]string) (name string, begun bool, err error) {
	for _, id := range slices.Sorted(maps.Keys(g.volumes)) {
		v := s.Volume(id)
		switch {
		case v == nil || v.Placement.Primary != self: // it has gone ahead
		case v.Phase != state.PhaseMoving && v.LastRefusal != nil && v.LastRefusal.Follow && v.LastRefusal.Attempt == own.Attempt:
			return v.Name, true, fmt.Errorf("volume %s stays: %s", v.Name, v.LastRefusal.Reason)
		case v.Phase != state.PhaseMoving || v.Pending.To != own.To:
			return v.Name, false, nil
		case v.Pending.Follow && ready[id] != v.Pending.Attempt && name == "":
			name = v.Name
		}
	}
	return name, true, nil
}

// awaitReady notes that all is done for a volume that can be done before its containers are
// stopped, and waits until it is for all that go along: else these containers would be
// stopped, and their clients wait, while it is being done, or in vain.
func (f *follower) awaitReady(ctx context.Context, id volume.ID, own *state.Pending) error {
	f.mu.Lock()
	f.ready[id] = own.Attempt
	close(f.readied)
	f.readied = make(chan struct{})
	f.mu.Unlock()
	patience := time.NewTimer(joinPatience)
	defer patience.Stop()
	for {
		s, changed := f.m.cluster.State(), f.m.cluster.Changed()
		f.mu.Lock()
		name, begun, err := goingWith(s, f.m.self, id).missing(s, f.m.self, own, f.ready)
		readied := f.readied
		f.mu.Unlock()
		if name == "" || err != nil {
			return err
		}
		f.tellStep(id, own.Attempt, volume.MoveStep{Phase: volume.MoveJoin, For: name})
		late := patience.C
		if begun {
			late = nil // it takes its time, and has an end
		}
		select {
		case <-readied:
		case <-changed:
		case <-late:
			return fmt.Errorf("its containers need volume %s, too, which does not go along", name)
		case <-ctx.Done():
			return nil // the caller sees
		}
	}
}

// stopRun is the stop of a company's containers, once for all its volumes.
type stopRun struct {
	over chan struct{} // closed when the rest is known
	out  agent.Stopped
	err  error
}

// stopFor is agent.Config.StopFollowing: it stops the containers that go along with a volume,
// as soon as the clients of their routes have been parked. When that cannot be, nothing is
// stopped, and the error says who is in the way: to all volumes of the company, since with
// one that stays all do.
func (f *follower) stopFor(ctx context.Context, id volume.ID) (agent.Stopped, error) {
	v := f.m.cluster.State().Volume(id)
	if v == nil || v.Pending == nil {
		return agent.Stopped{}, errGivenUp
	}
	f.mu.Lock()
	was := f.stops[v.Pending.Attempt]
	if was.runs() || was != nil && was.err != nil {
		f.mu.Unlock()
		select {
		case <-was.over:
			return was.out, was.err
		case <-ctx.Done():
			return agent.Stopped{}, ctx.Err()
		}
	}
	run := &stopRun{over: make(chan struct{})}
	f.stops[v.Pending.Attempt] = run
	f.mu.Unlock()
	defer close(run.over)
	if rollsBack(v) && was == nil {
		if run.err = f.recordNow(ctx, id); run.err != nil {
			return run.out, run.err
		}
	}
	going := goingWith(f.m.cluster.State(), f.m.self, id).containers
	run.out, run.err = f.stopAll(ctx, id, v.Pending.Attempt, going)
	if took := run.took(was, len(going)); took > 0 {
		f.mu.Lock()
		f.stopTook[id] = lastStop{v.Epoch, took, idsOf(going), f.m.now()}
		f.mu.Unlock()
	}
	if was != nil && run.err == nil {
		run.out = was.out // once more, as after a last copy that failed: since then clients wait
	}
	return run.out, run.err
}

// recordNow records the containers that are to follow a volume and use it at this moment. One that has
// just been started, or was made anew, may not be recorded yet, and would be taken for somebody who stays:
// then all others are stopped in vain. The error is why one cannot be stopped and started again, before
// anything is stopped. It is for rollbacks, and for the move of a volume that nobody used when it was begun, which
// is refused then and begun anew: where containers move, what goes along is looked at before, by where it is to run.
func (f *follower) recordNow(ctx context.Context, id volume.ID) error {
	lctx, cancel := context.WithTimeout(ctx, engineTimeout)
	users, err := f.engine.Users(lctx)
	cancel()
	if err != nil {
		return fmt.Errorf("who uses it is not known: %w", err)
	}
	s := f.m.cluster.State()
	for _, u := range users {
		volumes := volumesOf(s, u)
		r := s.RecordOf(u.Name, volumes)
		if !lacksRecord(u, volumes, id, r, f.m.self) {
			continue
		}
		ictx, cancel := context.WithTimeout(ctx, engineTimeout) // nothing is stopped yet: the look is in more of a hurry
		c, err := f.engine.Inspect(ictx, u.Container)
		cancel()
		if errors.Is(err, container.ErrNotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("container %s is to follow it and cannot be described: %w", u.Name, err)
		}
		h := hereContainer{ID: u.Container, Name: u.Name, Volumes: volumes}
		if f.describe(s, &h, u.Labels, c); !h.Live {
			continue
		}
		if err := f.put(ctx, s, followStep{followPut, recordKeyOf(&h), &h, r}, c); err != nil {
			return fmt.Errorf("container %s is to follow it and cannot be recorded: %w", u.Name, err)
		}
		if now := f.m.cluster.State().RecordOf(u.Name, volumes); now != nil && now.Blocked {
			return fmt.Errorf("container %s cannot follow: %s", u.Name, strings.Join(now.Obstacles, "; "))
		}
	}
	return nil
}

// lacksRecord says that a container uses a volume here, is to follow it, and is not recorded as it runs
// here; one that ran elsewhere is not, before it was seen to stay.
func lacksRecord(u container.Use, volumes []volume.ID, id volume.ID, r *state.Container, self volume.NodeID) bool {
	switch {
	case !u.State.Live() || !follows(u) || !slices.Contains(volumes, id):
		return false
	case r == nil:
		return true
	}
	return r.Node == self && (r.ID != u.Container || !r.Run)
}

// took is how long the stop of so many containers took, for the next move; 0 where it tells
// nothing: it failed half-way, or the run before it had stopped them already.
func (r *stopRun) took(was *stopRun, containers int) time.Duration {
	if r.err != nil || was != nil || containers == 0 {
		return 0
	}
	return r.out.Stop
}

func (r *stopRun) runs() bool {
	if r == nil {
		return false
	}
	select {
	case <-r.over:
		return false
	default:
		return true
	}
}

var errGivenUp = errors.New("the move was given up meanwhile")

func (f *follower) stopAll(ctx context.Context, id volume.ID, attempt string, going []*state.Container) (out agent.Stopped, err error) {
	defer func() {
		if err != nil {
			f.undoHooks(ctx, going)
		}
	}()
	f.letGo(ctx, going) // before clients wait
	if f.m.router != nil {
		began := time.Now()
		f.tellStops(going, id, attempt, volume.MoveStep{Phase: volume.MoveParking})
		paused, done, err := f.m.router.quiesce(ctx, id, func(who string) {
			f.tellStops(going, id, attempt, volume.MoveStep{Phase: volume.MoveParking, Clients: who})
		})
		if err != nil {
			return out, err
		}
		defer done()
		out.Paused, out.Park = paused, time.Since(began)
	}
	v := f.m.cluster.State().Volume(id)
	if v == nil || v.Pending == nil || v.Pending.Attempt != attempt {
		return out, errGivenUp
	}
	limit, tasks := v.Pending.MaxPause, len(v.Pending.Services) > 0
	began := time.Now()
	f.tellStops(going, id, attempt, volume.MoveStep{Phase: volume.MoveStopping})
	for _, c := range going {
		if err := f.stop(ctx, c); err != nil {
			return out, fmt.Errorf("container %s: %w", c.Name, err)
		}
	}
	if v.Pending.Back != "" {
		if err := f.stopMade(ctx, v); err != nil {
			return out, err
		}
	}
	if err := f.stopTasks(ctx, id, attempt); err != nil {
		return out, err
	}
	out.Stop = time.Since(began)
	f.tellStops(going, id, attempt, volume.MoveStep{Phase: volume.MoveFinalCopy})
	if limit := pauseLimit(limit, f.m.hold()); limit > 0 && !out.Paused.IsZero() {
		from := out.Paused
		if tasks {
			from = time.Now() // Swarm takes its time to end tasks, and to start them again
		}
		out.CopyBy = from.Add(limit)
	}
	return out, nil
}

// stopMade stops what was made here of the containers that go back with a volume, did not come up, and
// could not be removed: it is recorded nowhere, and would keep the volume here.
func (f *follower) stopMade(ctx context.Context, v *state.Volume) error {
	s := f.m.cluster.State()
	starting := s.Starting(v)
	if len(starting) == 0 {
		return nil
	}
	lctx, cancel := context.WithTimeout(ctx, engineTimeout)
	users, err := f.engine.Users(lctx)
	cancel()
	if err != nil {
		return fmt.Errorf("what was made here of its containers is not known: %w", err)
	}
	f.mu.Lock()
	prepared := maps.Clone(f.prepared)
	f.mu.Unlock()
	for _, u := range users {
		i := slices.IndexFunc(starting, func(c *state.Container) bool {
			return c.Name == u.Name && (madeFor(c, f.m.self, u) || prepared[c.RecordKey()].id == u.Container)
		})
		if i < 0 || !u.State.Live() {
			continue
		}
		made := *starting[i]
		made.ID = u.Container
		if err := f.stop(ctx, &made); err != nil {
			return fmt.Errorf("container %s: %w", u.Name, err)
		}
	}
	return nil
}

// tellStops is tellStep for all volumes whose containers are stopped together.
func (f *follower) tellStops(going []*state.Container, id volume.ID, attempt string, step volume.MoveStep) {
	f.tellStep(id, attempt, step)
	for _, c := range going {
		for _, cv := range c.Volumes {
			if cv.ID != id {
				f.tellStep(cv.ID, attempt, step)
			}
		}
	}
}

// hold is how long the proxy lets a request wait.
func (m *member) hold() time.Duration {
	s := m.cluster.State()
	if s.Cluster() == nil { // not read yet: no volume moves
		return state.DefaultHold
	}
	return s.Cluster().Settings.HoldFor()
}

// limitsOf leaves what nobody has set to the proxy, which has the same defaults: one of before
// the setting begins its doors anew when it is told of other limits.
func limitsOf(s state.Settings) proxy.Limits {
	return proxy.Limits{Request: s.Hold, Event: 2 * s.Hold, Sessions: s.HoldService}
}

// quietFor is how long the clients of a route have to come to a quiet point: the shorter part of
// what their requests may wait.
func (m *member) quietFor() time.Duration {
	return min(cmp.Or(m.timers.Quiet, quietPatience), m.hold()/2)
}

// pauseLimit is how long after their pause the clients of a move have its last copy waited
// for, where at most maxPause is wanted and requests wait for hold; 0: as long as it takes.
// Three tenths are left to the containers to run again, and to answer. Who wants more than
// that to be waited for gets it, and a quarter of the hold for the stop.
func pauseLimit(maxPause, hold time.Duration) time.Duration {
	if maxPause == 0 {
		return 0
	}
	return max(hold*7/10, maxPause+hold/4)
}

// lastStop is how long the stop of what goes with a volume took on this node, in that epoch
// of it: of these containers, by their IDs, and when.
type lastStop struct {
	epoch volume.Epoch
	took  time.Duration
	of    []string
	at    time.Time
}

// counts says that it tells something of the next stop: a volume that went away since has one
// that is newer, and one that was removed has none.
func (l lastStop) counts(v *state.Volume) bool { return v != nil && l.took > 0 && l.epoch == v.Epoch }

// idsOf are the IDs of containers, in order.
func idsOf(all []*state.Container) []string {
	var ids []string
	for _, c := range all {
		ids = append(ids, c.ID)
	}
	slices.Sort(ids)
	return ids
}

// stopPredicted is how long the stop of what goes with a volume is going to take, these containers:
// as long as the last time, unless that is from before since. 0: not known, as of containers that
// were made anew after a stop here.
func stopPredicted(v *state.Volume, here lastStop, going []string, since time.Time) time.Duration {
	took, at := time.Duration(0), time.Time{}
	switch {
	case here.counts(v): // for a move that was given up: none is newer
		if !slices.Equal(here.of, going) {
			return 0
		}
		took, at = here.took, here.at
	case v.Moved != nil:
		took, at = v.Moved.Times.Stop, v.Moved.At
	case v.LastMigration != nil:
		took, at = v.LastMigration.Times.Stop, v.LastMigration.At
	}
	if at.Before(since) {
		return 0
	}
	return took
}

// drainAsks is for how long the last stop keeps a drain from another one. Nobody can force a drain, and
// what is not stopped is not measured, nor moved: without an end one slow stop would keep a
// container on its node for good, however quickly it ends by now.
const drainAsks = time.Hour

// stopsSince is since when a stop counts for an attempt.
func stopsSince(attempt string, now time.Time) time.Time {
	if placement.OfDrain(attempt) {
		return now.Add(-drainAsks)
	}
	return time.Time{}
}

// moveMargin is what a move takes of its time besides the copies and the stop, when nothing is
// the matter: until all that goes along has begun, for the unmount and for the commits.
const moveMargin = 10 * time.Second

// timeLeft is how long the stop and the last copy of a move may take that has taken so long up
// to now, and whose clients have so long to come to a quiet point: then its leader gives it up.
func timeLeft(used, quiet time.Duration) time.Duration {
	return max(placement.PendingLimit-moveMargin-quiet-used, 0)
}

// slowStop is why containers that take so long to stop are not stopped for a move, after
// which the last copy takes about so long; nil where that is within the limit of its pause, and
// within the time that the move has left: else clients would wait, and the containers be
// stopped, for a move that is given up.
func slowStop(stop, last, maxPause, hold, left time.Duration) error {
	limit, wait := pauseLimit(maxPause, hold), stop+last
	short := func(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }
	switch {
	case limit == 0:
		return nil
	case wait > left:
		return fmt.Errorf("%w (let the containers end at SIGTERM, or stop them before; --force does not ask)", neverOver(stop, last, left))
	case stop == 0 || wait <= limit:
		return nil
	}
	longer := ""
	if wait <= pauseLimit(maxPause, state.MaxHold) {
		longer = "where clients may wait for longer, flockctl settings set hold=TIME; "
	}
	return fmt.Errorf("its containers took %s to stop the last time, so with the last copy its clients would wait for about %s before they could be told to go on, and what they ask for is refused after %s (let the containers end at SIGTERM, or give them a shorter stop timeout; %s--max-pause %s, or --force, moves it all the same)",
		short(stop), short(wait), hold, longer, wait.Round(time.Second)+time.Second)
}

// prospect is what is known of the move of a volume before anything is stopped for it.
type prospect struct {
	attempt, volume, to string
	runs                bool // something that is to be stopped
	partGone            bool // another volume of what goes along: that can go on there only, and waits for this one
	routes              bool // clients of some wait for it

	stop, last     time.Duration // as predicted: the stop, and the last copy
	maxPause, hold time.Duration
	left           time.Duration // of the time that a move has
}

// inVain is why containers are not stopped for it: slowStop where clients of routes wait for them, and
// neverOver of a drain, routes or not.
func (p prospect) inVain() error {
	switch {
	case !p.runs || p.partGone:
		return nil
	case p.maxPause == 0 && placement.OfDrain(p.attempt):
		if err := neverOver(p.stop, p.last, p.left); err != nil {
			return fmt.Errorf("%w (stop them by hand, or flockctl migrate %s %s --force, which does not ask)", err, p.volume, p.to)
		}
		return nil
	case !p.routes:
		return nil
	}
	return slowStop(p.stop, p.last, p.maxPause, p.hold, p.left)
}

// neverOver is why containers are not stopped whose move would not be over in the time that it has
// left; nil where it will be. A drain is held to it, too, which asks for nothing else: it would stop
// them again and again, and its node would never be empty of them.
func neverOver(stop, last, left time.Duration) error {
	if stop+last <= left {
		return nil
	}
	short := func(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }
	what := ""
	if stop > 0 {
		what = fmt.Sprintf("its containers took %s to stop the last time, and ", short(stop))
	}
	return fmt.Errorf("%sthe last copy takes about %s, which has to be over within %s: a move is given up after %s, and they would be stopped in vain",
		what, short(last), short(left), placement.PendingLimit)
}

// stopBegan says that clients may wait already for this attempt.
func (f *follower) stopBegan(attempt string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stops[attempt] != nil
}

// forgetMoves drops what is known of moves that are over, and of stops that say nothing of the
// next one any more.
func (f *follower) forgetMoves() {
	f.mu.Lock()
	defer f.mu.Unlock()
	under := map[string]bool{} // now: who has put something here has seen its move in a state
	for v := range f.m.cluster.State().Volumes() {
		if v.Phase == state.PhaseMoving {
			under[v.Pending.Attempt] = true
		}
	}
	maps.DeleteFunc(f.stopTook, func(id volume.ID, last lastStop) bool { return !last.counts(f.m.cluster.State().Volume(id)) })
	maps.DeleteFunc(f.ready, func(_ volume.ID, attempt string) bool { return !under[attempt] })
	maps.DeleteFunc(f.stops, func(attempt string, run *stopRun) bool { return !under[attempt] && !run.runs() })
}
