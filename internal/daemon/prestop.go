package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
)

const (
	// hookPatience is how long what is done in a container before its stop may take.
	hookPatience = 10 * time.Second
	// roundPatience is how long a copy ahead of the pause may take, and after aheadPatience
	// no other one is begun: all of a move has to be done within placement.PendingLimit. What
	// they do not bring the final copy does.
	roundPatience = 30 * time.Second
	aheadPatience = 30 * time.Second
)

// hookRun is what was done in a container before it is stopped for a move. All its volumes
// move at once, and it is done once for all.
type hookRun struct {
	attempt string // of the move
	over    chan struct{}
	rounds  int      // see preStop; known when it is over
	undo    []string // nil: nothing
}

// prepare is agent.Config.PrepareStop: what can be done ahead of a pause is. The containers
// of a volume that is to move write down what they would write at their end; then copies
// bring that to the target, while clients are served. How long the last of them took is how
// long the one in the pause will take, which may be too long. It returns when that is done
// for all volumes that go along, too.
func (f *follower) prepare(ctx context.Context, id volume.ID) (err error) {
	s := f.m.cluster.State()
	v := s.Volume(id)
	if v == nil || v.Pending == nil {
		return nil
	}
	f.tellStep(id, v.Pending.Attempt, volume.MoveStep{Phase: volume.MoveBegins})
	if err := f.awaitStarts(ctx, v); err != nil {
		return err
	}
	with := goingWith(f.m.cluster.State(), f.m.self, id)
	defer func() {
		if ctx.Err() != nil || err != nil {
			f.undoHooks(ctx, with.containers)
		}
	}()
	if err := f.copyAhead(ctx, v, with.containers); err != nil {
		return err
	}
	// Once all are ready, whoever is first stops the containers of all.
	if err := f.awaitFresh(ctx, v); err != nil {
		return err
	}
	return f.awaitReady(ctx, id, v.Pending)
}

// beginPatience is how long a move waits for a container to run that has mounted what is to go.
const beginPatience = 10 * time.Second

// awaitStarts waits for containers that have mounted a volume of a company when its move began, and do not run
// yet: nobody knows of them where others run on it, and those would be stopped in vain. From now on nothing is mounted.
// What follows is recorded, to go along. The error says that nothing should be stopped.
func (f *follower) awaitStarts(ctx context.Context, v *state.Volume) error {
	for began, waited := time.Now(), false; ; waited = true {
		g := goingWith(f.m.cluster.State(), f.m.self, v.ID)
		if len(g.containers) == 0 || f.stopBegan(v.Pending.Attempt) || ctx.Err() != nil {
			return nil // nothing is stopped, or it is too late; the caller sees the third
		}
		if rollsBack(v) {
			g.volumes = map[volume.ID]bool{v.ID: true} // what others share stays, with whoever starts on it
		}
		names, err := f.m.use.starting(ctx, g.volumes)
		switch {
		case err != nil:
			return fmt.Errorf("who else is about to use it is not known: %w", err)
		case len(names) == 0 && !waited:
			return nil
		case len(names) == 0:
			return f.takeAlong(ctx, g)
		case time.Since(began) > beginPatience:
			return fmt.Errorf("it is not known yet whether container %s, which is about to run, goes along; nothing was stopped, try again", strings.Join(names, " or "))
		}
		pause(ctx, followGap)
	}
}

// takeAlong records who runs on what is to go and follows it; the error names who does not follow.
func (f *follower) takeAlong(ctx context.Context, g company) error {
	for id := range g.volumes {
		if err := f.recordNow(ctx, id); err != nil {
			return err
		}
	}
	holders, err := f.m.use.Refresh(ctx, slices.Collect(maps.Keys(g.volumes)))
	if err != nil {
		return fmt.Errorf("who else uses it is not known: %w", err)
	}
	for id := range g.volumes {
		for _, h := range holders[id] {
			if h.Container != "" && !h.Follows && h.Service == "" {
				return fmt.Errorf("it is in use by container %s, which was started when the move had begun and does not follow it; nothing was stopped", h.Name)
			}
		}
	}
	return nil
}

// freshPatience is how long a move waits for what a container needs on its target that was not known when
// the move began.
const freshPatience = 30 * time.Second

// awaitFresh waits until the target of a move has what the containers need that go along and were recorded
// since it began: whoever began it has looked at the others only. The error says that nothing should be stopped.
func (f *follower) awaitFresh(ctx context.Context, v *state.Volume) error {
	if f.stopBegan(v.Pending.Attempt) {
		return nil // it is too late, as for copies ahead
	}
	patience, cancel := context.WithTimeout(ctx, freshPatience)
	defer cancel()
	for {
		changed, heard := f.m.cluster.Changed(), f.m.reports.Changed()
		s := f.m.cluster.State()
		there, _ := f.m.reports.Get(v.Pending.To, f.m.now())
		who, problem := freshLacks(goingWith(s, f.m.self, v.ID).containers, v.Changed, there.Report.Followed)
		switch {
		case who == "" || s.PartGone(v, f.m.self):
			return nil
		case problem != "":
			return fmt.Errorf("container %s, which was started when the move had begun, cannot run on %s: %s", who, s.NodeName(v.Pending.To), problem)
		}
		select {
		case <-changed:
		case <-heard:
		case <-patience.Done():
			return fmt.Errorf("container %s was started when the move had begun, and its image is not on %s yet; nothing was stopped, try again", who, s.NodeName(v.Pending.To))
		}
	}
}

// freshLacks is a container recorded since that index of the state that could not be started at once where
// it is to go, by what that node has told of containers; problem: nor later.
func freshLacks(going []*state.Container, since uint64, there []volume.Followed) (who, problem string) {
	for _, c := range going {
		if c.Changed <= since {
			continue
		}
		i := slices.IndexFunc(there, func(o volume.Followed) bool { return o.Record == c.RecordKey() })
		if i < 0 || there[i].LacksImage || there[i].Problem != "" {
			who = c.Name
		}
		if i >= 0 && there[i].Problem != "" {
			return who, there[i].Problem
		}
	}
	return who, ""
}

// copyAhead does it for one volume.
func (f *follower) copyAhead(ctx context.Context, v *state.Volume, going []*state.Container) error {
	if f.stopBegan(v.Pending.Attempt) {
		return nil // it is too late: its last copy is tried once more
	}
	arrived, rounds := time.Now(), 0
	if len(going) == 0 && v.Pending.Follow {
		rounds = 1 // it is Swarm that stops what runs on it
	}
	f.letGo(ctx, going)
	for _, c := range going {
		rounds = max(rounds, f.preStop(ctx, v, c))
	}
	var ahead copyAhead
	limit := v.Pending.MaxPause
	most := rounds
	if limit > 0 {
		most = max(rounds, mostRounds)
	}
	began := time.Now()
	for ahead.more(rounds, limit) && time.Since(began) < aheadPatience && ctx.Err() == nil {
		rctx, cancel := context.WithTimeout(ctx, min(max(roundPatience, limit), 2*roundPatience))
		round := time.Now()
		f.tellStep(v.ID, v.Pending.Attempt, volume.MoveStep{Phase: volume.MovePreCopy, Round: len(ahead.took) + 1, Rounds: most})
		_, err := f.m.repl.Flush(rctx, v.ID, v.Pending.To)
		ahead.late = rctx.Err() != nil
		cancel()
		switch {
		case errors.Is(err, replicate.ErrNoRoom) && !f.m.cluster.State().PartGone(v, f.m.self):
			return fmt.Errorf("there is no room on %s for what it lacks: %w", f.m.cluster.State().NodeName(v.Pending.To), err)
		case err == nil || ahead.late:
			ahead.took = append(ahead.took, time.Since(round))
		case limit > 0:
			return fmt.Errorf("nobody knows how long its clients would wait: the copy ahead of it was not made: %w (--force does not ask)", err)
		default:
			f.m.log.Debug("a copy ahead of a move was not made", "volume", v.Name, "err", err)
			return nil
		}
	}
	if err := ahead.refusal(limit); err != nil {
		return err
	}
	if len(going) == 0 {
		return nil
	}
	s := f.m.cluster.State()
	f.mu.Lock()
	here := f.stopTook[v.ID]
	f.mu.Unlock()
	return prospect{
		attempt: v.Pending.Attempt, volume: v.Name, to: s.NodeName(v.Pending.To),
		runs: rounds > 0, partGone: s.PartGone(v, f.m.self),
		routes: f.m.router != nil && len(stopsWith(s, f.m.self, v.ID)) > 0,
		stop:   stopPredicted(v, here, idsOf(going), stopsSince(v.Pending.Attempt, f.m.now())), last: ahead.predicted(),
		maxPause: limit, hold: f.m.hold(), left: timeLeft(time.Since(arrived), f.m.quietFor()),
	}.inVain()
}

// letGo waits until containers that are to be stopped do not stand still for a snapshot.
func (f *follower) letGo(ctx context.Context, going []*state.Container) {
	if f.m.snapHooks == nil || len(going) == 0 {
		return
	}
	var ids []string
	for _, c := range going {
		ids = append(ids, c.ID)
	}
	f.m.snapHooks.letGo(ctx, ids)
}

// copyAhead is what copies ahead of a pause have shown.
type copyAhead struct {
	took []time.Duration
	late bool // the last of them was not waited for any longer
}

// mostRounds bounds the copies ahead of a pause.
const mostRounds = 8

// more says whether to make one more copy: as many as wanted, and more as long as the next
// one would take too long, and each takes a fifth less than the one before.
func (c copyAhead) more(wanted int, limit time.Duration) bool {
	n := len(c.took)
	switch {
	case n < wanted:
		return true
	case n == 0 || limit == 0 || n >= mostRounds || c.predicted() <= limit:
		return false
	}
	return n < 2 || c.took[n-1] < c.took[n-2]*4/5
}

// predicted is how long a pause takes besides the stop and the start of containers: until
// what is written meanwhile is copied.
func (c copyAhead) predicted() time.Duration {
	if len(c.took) == 0 {
		return 0
	}
	return c.took[len(c.took)-1]
}

// refusal is why a pause would be longer than allowed; nil when it would not.
func (c copyAhead) refusal(limit time.Duration) error {
	about := "about"
	switch wait := c.predicted(); {
	case limit == 0 || wait <= limit && !c.late:
		return nil
	case c.late:
		about = "more than"
	}
	return fmt.Errorf("its clients would wait for %s %s, besides the stop and the start of its containers, and at most %s is wanted (--max-pause; --force does not ask)",
		about, c.predicted().Round(10*time.Millisecond), limit)
}

// preStop does what the container's label or image asks for, or waits until that is done
// for another of its volumes. It says how many copies ahead are wanted: two after something
// was done, of which the first brings what was written down, and takes its time; none of a
// container that does not run, as when flockd was started again since it stopped it.
func (f *follower) preStop(ctx context.Context, v *state.Volume, c *state.Container) (rounds int) {
	key := c.RecordKey()
	f.mu.Lock()
	run := f.hooks[key]
	mine := run == nil || run.attempt != v.Pending.Attempt
	if mine {
		run = &hookRun{attempt: v.Pending.Attempt, over: make(chan struct{})}
		f.hooks[key] = run
	}
	f.mu.Unlock()
	if !mine {
		f.tellStep(v.ID, v.Pending.Attempt, volume.MoveStep{Phase: volume.MovePreStop, Container: c.Name})
		select {
		case <-run.over:
			return run.rounds
		case <-ctx.Done():
			return 0
		}
	}
	defer func() {
		run.rounds = rounds
		close(run.over)
	}()
	there, err := f.inspect(ctx, c.ID)
	if err != nil {
		return 1 // its stop will tell
	}
	hook := container.PreStopOf(there.Labels, there.Spec.Image.Ref)
	switch {
	case there.State != container.Running:
		return 0
	case hook.Command == nil:
		return 1
	}
	hctx, cancel := context.WithTimeout(ctx, hookPatience)
	defer cancel()
	began := time.Now()
	f.tellStep(v.ID, v.Pending.Attempt, volume.MoveStep{Phase: volume.MovePreStop, Container: c.Name, Hook: hook.Name})
	said, err := f.engine.Exec(hctx, c.ID, hook.Command)
	switch {
	case err == nil:
		f.m.log.Info("a container was made ready for its stop", "container", c.Name, "hook", hook.Name, "took", time.Since(began).Round(time.Millisecond))
		if said != "" {
			f.mu.Lock()
			run.undo = hook.Undo
			f.mu.Unlock()
		}
	case ctx.Err() == nil:
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("it did not end within %s", hookPatience)
		}
		f.tellHook(v, c, hook, err)
	}
	return 2
}

// tellHook has people know that a hook has failed. The container is stopped without it: it
// only takes longer.
func (f *follower) tellHook(v *state.Volume, c *state.Container, hook container.PreStop, err error) {
	text := fmt.Sprintf("volume %s: container %s is stopped without what is done before (%s): %s", v.Name, c.Name, hook.Name, head(err.Error(), maxHookError))
	f.m.log.Warn("a container is stopped without what is done before", "container", c.Name, "hook", hook.Name, "err", err)
	f.m.tell(state.Tell{Volume: v.ID, Kind: state.VolumeHook, Message: text})
}

// head is the beginning of a text, at most n bytes of it.
func head(text string, n int) string {
	if len(text) <= n {
		return text
	}
	return strings.ToValidUTF8(text[:n], "") + "…"
}

// maxHookError is how much of what a hook said goes into the events.
const maxHookError = 300

// undoHooks is for containers that are not stopped after all.
func (f *follower) undoHooks(ctx context.Context, all []*state.Container) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), hookPatience)
	defer cancel()
	for _, c := range all {
		f.mu.Lock()
		run := f.hooks[c.RecordKey()]
		var undo []string
		if run != nil {
			undo, run.undo = run.undo, nil
		}
		f.mu.Unlock()
		if undo == nil {
			continue
		}
		if _, err := f.engine.Exec(ctx, c.ID, undo); err != nil {
			f.m.log.Warn("what was done in a container before its stop could not be undone", "container", c.Name, "err", err)
		}
	}
}
