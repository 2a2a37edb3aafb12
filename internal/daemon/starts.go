package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/placement"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

const (
	// startStays is how long a container has to run without being started again before it
	// counts as started, unless the server of a route in it has answered a probe.
	startStays = time.Second
	// startHurried is how long instead where clients of another container wait for it alone:
	// most that cannot run say so at once.
	startHurried = 200 * time.Millisecond
	// startPatience is for how long one that its engine starts again may begin runs of which one
	// has to last that long: the first may set something up, or miss another container that is not
	// up yet.
	startPatience = 5 * time.Second
	// startLook is the time between two looks, and startSilence how long an engine may say
	// nothing about it. It has said that the container was started, so that counts then.
	startLook    = 250 * time.Millisecond
	startSilence = 30 * time.Second
	// startWords is how many lines a container's last words have.
	startWords = 4
)

// startView is what is known of a container that its engine has started.
type startView struct {
	Now  container.Captured
	Gone bool          // there is none any more
	Ran  time.Duration // for how long it has been seen to run, since its engine started it last
	Seen time.Duration // since its engine first said how it is
	// Answered: the server of a route in it has answered its probe. Awaited: one of another
	// container has, and its clients wait until this one counts as started, too.
	Answered, Awaited bool
	Again             bool // it has failed to come up before
}

type startVerdict string

// The verdicts.
const (
	startWaits startVerdict = "wait"  // nobody can say yet
	startRuns  startVerdict = "runs"  //
	startEnds  startVerdict = "ended" // with success: that was all it had to do
	startFails startVerdict = "fails" //
)

// judgeStart says whether a container has come up, and why not. Slow is not failing: one
// that runs and does not answer for minutes has come up. Nor does it have to be healthy.
func judgeStart(v startView) (startVerdict, string) {
	switch n := v.Now.Restarts; {
	case v.Gone:
		return startFails, "its engine has removed it as soon as it ended (--rm), so nobody can say how"
	case v.Now.State == container.Restarting && v.Seen < startPatience:
		return startWaits, ""
	case v.Now.State == container.Restarting:
		return startFails, fmt.Sprintf("it ended with code %d, and its engine starts it again", v.Now.ExitCode)
	case v.Answered && v.Now.State.Live():
		return startRuns, ""
	case v.Now.State.Live() && (v.Ran >= startStays || v.Awaited && !v.Again && n == 0 && v.Ran >= startHurried):
		return startRuns, ""
	case v.Now.State.Live() && n > 0 && v.Seen-v.Ran >= startPatience: // its code is forgotten by then
		return startFails, fmt.Sprintf("it ended as soon as it was started, and its engine has started it again %s", times(n))
	case v.Now.State.Live():
		return startWaits, ""
	case v.Now.State == container.Exited && v.Now.ExitCode == 0 && v.Now.Error == "" && !v.Now.Spec.StartsAgain():
		return startEnds, ""
	case v.Now.State == container.Exited:
		return startFails, strings.TrimSuffix(fmt.Sprintf("it ended with code %d: %s", v.Now.ExitCode, v.Now.Error), ": ")
	}
	return startFails, fmt.Sprintf("it is %s", v.Now.State)
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// stays waits until it is known whether the container of a record, which was started, stays,
// and records it when it does: its clients wait for that, and not for what is left to do after
// it. The error is why it does not; container.ErrUndecided: that cannot be found out, or not be
// recorded yet, and it is to be asked again. One that its engine starts again and again is recorded and
// told of, unless its volumes can go back where it ran: nothing would be gained by removing it. That is
// errLoops, which is undecided for whoever made it. halts is how often it had been stopped for a move
// before it was started: one that was since may end as if it had done all it had to do, and must run
// where it goes.
func (f *follower) stays(ctx context.Context, r *state.Container, id string, halts int) error {
	f.noteContainer(r, partRun)
	f.watch(r.RecordKey(), true)
	defer f.watch(r.RecordKey(), false)
	held := heldBy(f.m.cluster.State(), r)
	w := startWatch{
		inspect: func(ctx context.Context) (container.Captured, error) { return f.inspect(ctx, id) },
		serves: func(at container.Ports) (own, others bool, changed <-chan struct{}) {
			return f.m.router.serves(r, at, held)
		},
	}
	f.mu.Lock()
	w.again = f.failed[r.RecordKey()].tries > 0
	f.mu.Unlock()
	c, verdict, why := w.await(ctx)
	if f.halts(r.RecordKey()) != halts {
		return fmt.Errorf("container %s is stopped for a move: %w", r.Name, container.ErrUndecided)
	}
	switch verdict {
	case startFails:
		err := f.lastWords(ctx, id, why)
		if c.ID == "" || !c.State.Live() {
			return err
		}
		if goesBack(f.m.cluster.State(), r) {
			if c.Restarts >= placement.StartTries {
				err = startedAgain{err}
			}
			return err
		}
		if !f.started(ctx, r, c) {
			break
		}
		f.loops(r, c, err)
		return fmt.Errorf("container %s: %w: %w", r.Name, errLoops, container.ErrUndecided)
	case startRuns, startEnds:
		f.noteContainer(r, partReady)
		if f.started(ctx, r, c) {
			return nil
		}
	case startWaits:
	}
	return fmt.Errorf("container %s: %w", r.Name, container.ErrUndecided)
}

// startedAgain is why a container does not come up that its engine alone has started again as often
// as flocker would: its clients wait, and one try more would tell nothing.
type startedAgain struct{ error }

func (e startedAgain) Unwrap() error { return e.error }

// errLoops: a container does not come up, and is left to its engine. What it replaced stays: that
// may be the one that would run.
var errLoops = errors.New("it does not come up yet")

// loop is a container that does not come up and is left to its engine, which starts it again.
type loop struct {
	what     string // it, and where it is
	why      string // "": it may have come up since it was left to it
	restarts int
	since    time.Time // for that long it was not started again
	gaveUp   bool      // its engine does not start it any more
}

func (l loop) String() string {
	if l.gaveUp {
		return fmt.Sprintf("%s, and its engine has given up: %s", l.what, l.why)
	}
	return fmt.Sprintf("%s, where its engine goes on trying: %s", l.what, l.why)
}

// loops has people know of a container that is left to its engine. At home its user knows it.
func (f *follower) loops(r *state.Container, c container.Captured, why error) {
	s := f.m.cluster.State()
	l := loop{
		what: fmt.Sprintf("container %s does not come up on %s", r.Name, s.NodeName(f.m.self)),
		why:  head(why.Error(), 2*maxHookError), restarts: c.Restarts, since: f.m.now(),
	}
	f.mu.Lock()
	f.looping[r.RecordKey()] = l
	f.mu.Unlock()
	f.m.log.Warn("a container does not come up, and is left to its engine", "container", r.Name, "err", why)
	if v := s.Volume(r.Volumes[0].ID); v != nil && r.Node != f.m.self && f.m.unaware(knowsStarts) == "" {
		f.m.tell(state.Tell{Volume: v.ID, Kind: state.VolumeStarts, Message: fmt.Sprintf("volume %s: %s", v.Name, l)})
	}
}

// next is what is known of a loop once the container was seen again; over: it came up, or its
// user has stopped it. What its engine has given up was stopped by nobody.
func (l loop) next(c container.Captured, now time.Time) (out loop, over bool) {
	l.gaveUp = c.GivenUp()
	if l.why == "" && (l.gaveUp || c.State == container.Restarting || c.State.Live() && c.Restarts != l.restarts) {
		_, why := judgeStart(startView{Now: c, Seen: startPatience})
		l.why = head(why, 2*maxHookError)
	}
	switch {
	case l.gaveUp:
		l.since = now
	case !c.State.Live():
		return l, true
	case c.State == container.Restarting || c.Restarts != l.restarts:
		l.restarts, l.since = c.Restarts, now
	}
	return l, now.Sub(l.since) >= followSettle
}

// resumed is the loop that a container may be in which was made here and is recorded here, as far as can
// be seen of it: it is another flockd that has left it to its engine. old: the one that it replaced is
// still there, which goes once it has come up. One that its engine has not started again has ended for
// other reasons, such as with its machine.
func resumed(c container.Captured, old bool, now time.Time) (l loop, ok bool) {
	l, over := loop{restarts: c.Restarts, since: now}.next(c, now)
	return l, !over && c.Labels[container.LabelMade] != "" && (old || c.Restarts > 0 || c.State == container.Restarting)
}

// startWatch is what one container that was started is judged by.
type startWatch struct {
	inspect func(ctx context.Context) (container.Captured, error)
	serves  func(at container.Ports) (own, others bool, changed <-chan struct{}) // router.serves
	again   bool
}

// await looks until there is a verdict. It is still startWaits when ctx ends, or the engine
// says nothing for long.
func (w startWatch) await(ctx context.Context) (container.Captured, startVerdict, string) {
	v := startView{Again: w.again}
	var first, ran time.Time // when it was seen at all, and in this run
	for heard := time.Now(); time.Since(heard) < startSilence; {
		known, _, _ := w.serves(v.Now.Ports)
		if !known || v.Now.State == container.Restarting { // who answers runs: that need not be asked for once more
			now, err := w.inspect(ctx)
			if known = err == nil || errors.Is(err, container.ErrNotFound); known {
				heard = time.Now()
				if now.State == container.Restarting || now.Restarts != v.Now.Restarts {
					ran = time.Time{}
				}
				v.Now, v.Gone = now, err != nil
			}
			if known && first.IsZero() {
				first = heard
			}
			if known && v.Now.State.Live() && v.Now.State != container.Restarting && ran.IsZero() {
				ran = heard
			}
			if v.Ran, v.Seen = 0, heard.Sub(first); !ran.IsZero() {
				v.Ran = heard.Sub(ran)
			}
		}
		var changed <-chan struct{}
		v.Answered, v.Awaited, changed = w.serves(v.Now.Ports)
		if ctx.Err() != nil {
			break
		}
		if known {
			if verdict, why := judgeStart(v); verdict != startWaits {
				return v.Now, verdict, why
			}
		}
		wait := startLook
		for _, limit := range []time.Duration{startHurried, startStays} {
			if left := limit - v.Ran; left > 0 {
				wait = min(wait, left)
			}
		}
		w.rest(ctx, v, wait, changed)
	}
	return v.Now, startWaits, ""
}

// rest is between two looks: until there is news of this container's clients. Those of others
// come in as well, and an engine is not asked about all of its containers at each.
func (w startWatch) rest(ctx context.Context, v startView, most time.Duration, changed <-chan struct{}) {
	timer := time.NewTimer(most)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return
		case <-changed:
			var own, others bool
			if own, others, changed = w.serves(v.Now.Ports); own != v.Answered || others != v.Awaited {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// watch notes that a job only watches a container now: others may be started meanwhile. Its
// server is probed from the start on.
func (f *follower) watch(record string, begins bool) {
	f.mu.Lock()
	if begins {
		f.watched[record] = true
	} else {
		delete(f.watched, record)
	}
	f.mu.Unlock()
	if begins {
		f.ring()
		if f.m.router != nil {
			f.m.router.ring()
		}
	}
}

// heldBy are the volumes whose clients wait until the container of a record runs.
func heldBy(s *state.State, r *state.Container) map[volume.ID]bool {
	held := map[volume.ID]bool{}
	for _, own := range r.Volumes {
		for _, c := range s.ContainersOf(own.ID) {
			for _, cv := range c.Volumes {
				held[cv.ID] = true
			}
		}
	}
	return held
}

// started records a container that was seen to stay, or to have done what it had to. Until that is
// recorded nobody else knows: it would be made, and do it, once more.
func (f *follower) started(ctx context.Context, r *state.Container, c container.Captured) (recorded bool) {
	s := f.m.cluster.State()
	key, err := f.m.cluster.DataKey()
	if err != nil {
		return false // the next look says so
	}
	h := hereContainer{ID: c.ID, Name: r.Name, Volumes: ids(r.Volumes)}
	plain, err := c.Spec.Encode()
	if err != nil {
		f.note(r.RecordKey(), fmt.Sprintf("container %s cannot be described: %v", r.Name, err))
		return false
	}
	h.Hash = key.Hash(plain)
	f.describe(s, &h, c.Labels, c)
	do := followPut
	if !h.Live {
		do = followStop
	}
	return f.put(ctx, s, followStep{do, r.RecordKey(), &h, r}, c) == nil
}

// tellFailed has people know, once, of a container that does not come up. One that goes back where
// it ran says so itself; if it has not, though it has failed often enough, it does not go back.
func (f *follower) tellFailed(r *state.Container, why error, back bool) (told bool) {
	s := f.m.cluster.State()
	f.mu.Lock()
	due := f.failed[r.RecordKey()].due(back)
	f.mu.Unlock()
	v := s.Volume(r.Volumes[0].ID)
	if !due || v == nil || f.m.unaware(knowsStarts) != "" {
		return false
	}
	if v.Placement.Primary != f.m.self || v.Pending != nil && v.Pending.Back != "" {
		return false // it goes back, or has
	}
	text := fmt.Sprintf("volume %s: container %s does not come up on %s and is tried again: %s", v.Name, r.Name, s.NodeName(f.m.self), head(why.Error(), 2*maxHookError))
	f.m.tell(state.Tell{Volume: v.ID, Kind: state.VolumeStarts, Message: text})
	return true
}

// due says that people are told of one failure more.
func (a followAttempt) due(back bool) bool {
	return !a.told && (!back || a.tries >= placement.StartTries)
}

// goesBack says that a container came with a move that would be undone.
func goesBack(s *state.State, r *state.Container) bool {
	return slices.ContainsFunc(r.Volumes, func(cv state.ContainerVolume) bool {
		v := s.Volume(cv.ID)
		return v != nil && placement.MayGoBack(s, v) && slices.ContainsFunc(s.Starting(v), func(c *state.Container) bool { return c.RecordKey() == r.RecordKey() })
	})
}

// lastWords is why a container does not stay, with the last that it said.
func (f *follower) lastWords(ctx context.Context, id, why string) error {
	ctx, cancel := context.WithTimeout(ctx, followInspect)
	defer cancel()
	said, err := f.engine.Said(ctx, id, startWords)
	if err != nil {
		f.m.log.Debug("a container's log cannot be read", "container", id, "err", err)
	}
	if said = oneLine(said, maxHookError); said != "" {
		why += "; the last it said: " + said
	}
	return errors.New(why)
}

// oneLine is the end of what a program said, without what terminals alone understand.
func oneLine(said string, most int) string {
	var lines []string
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f {
				return ' '
			}
			return r
		}, strings.ToValidUTF8(line, "?")))
		if line != "" {
			lines = append(lines, line)
		}
	}
	text := strings.Join(lines, " / ")
	if cut := len(text) - most; cut > 0 {
		text = "..." + strings.ToValidUTF8(text[cut:], "")
	}
	return text
}
