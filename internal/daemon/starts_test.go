package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/container/containerfake"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// A container that ends, or is started again, has not come up; one that is slow has.
func TestJudgeStart(t *testing.T) {
	is := func(s container.State, more ...func(*startView)) startView {
		v := startView{Now: container.Captured{State: s}}
		for _, m := range more {
			m(&v)
		}
		return v
	}
	code := func(n int) func(*startView) { return func(v *startView) { v.Now.ExitCode = n } }
	again := func(n int) func(*startView) { return func(v *startView) { v.Now.Restarts = n } }
	ran := func(d time.Duration) func(*startView) { return func(v *startView) { v.Ran = d } }
	failed := func(why string) func(*startView) { return func(v *startView) { v.Now.Error = why } }
	answered := func(v *startView) { v.Answered = true }
	awaited := func(v *startView) { v.Awaited = true }
	seen := func(d time.Duration) func(*startView) { return func(v *startView) { v.Seen = d } }
	policy := func(name string) func(*startView) {
		return func(v *startView) { v.Now.Spec.HostConfig = []byte(`{"RestartPolicy":{"Name":"` + name + `"}}`) }
	}
	before := func(v *startView) { v.Again = true }
	gone := func(v *startView) { v.Gone = true }
	for _, c := range []struct {
		name string
		v    startView
		want startVerdict
		why  string
	}{
		{"just started", is(container.Running), startWaits, ""},
		{"for less than a second", is(container.Running, ran(999*time.Millisecond)), startWaits, ""},
		{"for a second", is(container.Running, ran(time.Second)), startRuns, ""},
		{"somebody has paused it", is(container.Paused, ran(time.Second)), startRuns, ""},
		{"its server answers at once", is(container.Running, answered), startRuns, ""},
		{"clients wait for it alone", is(container.Running, awaited), startWaits, ""},
		{"for a while", is(container.Running, awaited, ran(200*time.Millisecond)), startRuns, ""},
		{"but it has failed before", is(container.Running, awaited, before, ran(200*time.Millisecond)), startWaits, ""},

		{"it waits to be started again", is(container.Restarting, code(3), seen(4*time.Second)), startWaits, ""},
		{"as it has for long", is(container.Restarting, code(3), seen(5*time.Second)), startFails, "code 3, and its engine starts it again"},
		{"even if it ended well", is(container.Restarting, seen(5*time.Second)), startFails, "code 0, and its engine starts it again"},
		{"it was started again, and runs", is(container.Running, again(1), ran(999*time.Millisecond)), startWaits, ""},
		{"for a second", is(container.Running, again(1), ran(time.Second), seen(5*time.Second)), startRuns, ""},
		{"as another one's clients wait", is(container.Running, again(2), awaited, ran(500*time.Millisecond)), startWaits, ""},
		{"it began to run in time", is(container.Running, again(5), ran(500*time.Millisecond), seen(5*time.Second)), startWaits, ""},
		{"or did not", is(container.Running, again(5), ran(500*time.Millisecond), seen(5500*time.Millisecond)), startFails, "started it again 5 times"},
		{"or once", is(container.Running, again(1), seen(5*time.Second)), startFails, "started it again once"},
		{"its engine was silent before", is(container.Running, seen(20*time.Second)), startWaits, ""},
		{"and answers", is(container.Running, again(1), answered, seen(9*time.Second)), startRuns, ""},
		{"it has answered before", is(container.Restarting, code(3), answered, seen(5*time.Second)), startFails, "code 3"},
		{"it has ended", is(container.Exited, code(1)), startFails, "it ended with code 1"},
		{"its engine says why", is(container.Exited, code(128), failed("no such file")), startFails, "it ended with code 128: no such file"},
		{"its engine could not start it", is(container.Exited, failed("no such device")), startFails, "no such device"},
		{"it ended after its last try", is(container.Exited, code(1), again(5)), startFails, "it ended with code 1"},
		{"it had nothing more to do", is(container.Exited), startEnds, ""},
		{"at the second try", is(container.Exited, again(1), policy("on-failure")), startEnds, ""},
		{"but it is to run", is(container.Exited, policy("always")), startFails, "it ended with code 0"},
		{"nobody knows how it ended", is("", gone), startFails, "--rm"},
		{"it was never started", is(container.Created), startFails, "it is created"},
		{"it is dead", is(container.Dead), startFails, "it is dead"},
	} {
		got, why := judgeStart(c.v)
		if got != c.want || !strings.Contains(why, c.why) || (why != "") != (got == startFails) || strings.HasSuffix(why, ":") || strings.HasSuffix(why, ": ") {
			t.Errorf("%s: %s, %q; want %s, %q", c.name, got, why, c.want, c.why)
		}
	}
}

// news wakes those who wait for the next change, as the router does.
type news struct {
	mu     sync.Mutex
	change chan struct{}
}

func (n *news) next() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.change == nil {
		n.change = make(chan struct{})
	}
	return n.change
}

func (n *news) ring() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.change != nil {
		close(n.change)
		n.change = nil
	}
}

// In simulated time: a verdict comes as early as it can be had, and silence is none.
func TestAwaitStart(t *testing.T) {
	const ms = time.Millisecond
	up := container.Captured{State: container.Running, Ports: container.Ports{Address: "172.17.0.2"}}
	for _, c := range []struct {
		name             string
		silent           [2]time.Duration // the engine says nothing from when to when
		ends             time.Duration    // its command does, each time
		times            int              // that often; 0: always
		answers, sibling time.Duration    // the server of its route, and another one's
		again            bool
		want             startVerdict
		after            time.Duration // at the latest, and not half of it before
		looks            int           // most
	}{
		{"no route", [2]time.Duration{}, 0, 0, 0, 0, false, startRuns, 1000 * ms, 9},
		{"its server answers", [2]time.Duration{}, 0, 0, 40 * ms, 0, false, startRuns, 40 * ms, 1},
		{"it answers late", [2]time.Duration{}, 0, 0, 5000 * ms, 0, false, startRuns, 1000 * ms, 9},
		{"another one's answers", [2]time.Duration{}, 0, 0, 0, 40 * ms, false, startRuns, 200 * ms, 5},
		{"another one's answers, late", [2]time.Duration{}, 0, 0, 0, 600 * ms, false, startRuns, 600 * ms, 7},
		{"another one's answers, and it has failed before", [2]time.Duration{}, 0, 0, 0, 40 * ms, true, startRuns, 1000 * ms, 9},
		{"it ends at once, always", [2]time.Duration{}, 1, 0, 0, 0, false, startFails, 5050 * ms, 60},
		{"it ends after a while, always", [2]time.Duration{}, 700 * ms, 0, 0, 0, false, startFails, 5550 * ms, 60},
		{"it ends once", [2]time.Duration{}, 100 * ms, 1, 0, 0, false, startRuns, 1250 * ms, 12},
		{"it ends three times", [2]time.Duration{}, 300 * ms, 3, 0, 0, false, startRuns, 2300 * ms, 20},
		{"it ends once, and another one's answers", [2]time.Duration{}, 10 * ms, 1, 0, 150 * ms, false, startRuns, 1200 * ms, 12},
		{"it ends twice, and its server answers", [2]time.Duration{}, 10 * ms, 2, 300 * ms, 0, false, startRuns, 300 * ms, 5},
		{"its engine is silent at first", [2]time.Duration{0, 3000 * ms}, 0, 0, 0, 0, false, startRuns, 4000 * ms, 40},
		{"its engine is silent, and its server answers", [2]time.Duration{10 * ms, time.Hour}, 0, 0, 40 * ms, 0, false, startRuns, 40 * ms, 1},
		{"its engine is silent between", [2]time.Duration{100 * ms, 3000 * ms}, 0, 0, 0, 0, false, startRuns, 3000 * ms, 40},
		{"its engine is silent for long", [2]time.Duration{0, time.Hour}, 0, 0, 0, 0, false, startWaits, 30000 * ms, 200},
	} {
		synctest.Test(t, func(t *testing.T) {
			began, looks := time.Now(), 0
			since := func(at time.Duration) bool { return at > 0 && time.Since(began) >= at }
			var news news
			for _, at := range []time.Duration{c.answers, c.sibling} {
				if at > 0 {
					defer time.AfterFunc(at, news.ring).Stop()
				}
			}
			w := startWatch{
				again: c.again,
				inspect: func(context.Context) (container.Captured, error) {
					looks++
					now := up
					if d := time.Since(began); d >= c.silent[0] && d < c.silent[1] {
						return container.Captured{}, errors.New("it does not answer")
					} else if c.ends > 0 {
						now.Restarts = int(d / (c.ends + 100*ms))
						if c.times > 0 {
							now.Restarts = min(now.Restarts, c.times)
						}
						if over := d - time.Duration(now.Restarts)*(c.ends+100*ms); over >= c.ends && now.Restarts != c.times {
							now.State = container.Restarting
						}
					}
					return now, nil
				},
				serves: func(at container.Ports) (own, others bool, changed <-chan struct{}) {
					return since(c.answers) && at.Address == up.Ports.Address, since(c.sibling), news.next()
				},
			}
			_, got, why := w.await(t.Context())
			if took := time.Since(began); got != c.want || took > c.after || took < c.after-100*ms || looks > c.looks {
				t.Errorf("%s: %s, %q after %s and %d looks; want %s after %s and %d", c.name, got, why, took, looks, c.want, c.after, c.looks)
			}
		})
	}

	// At news of other containers its engine is not asked.
	synctest.Test(t, func(t *testing.T) {
		looks := 0
		var news news
		w := startWatch{
			inspect: func(context.Context) (container.Captured, error) { looks++; return up, nil },
			serves:  func(container.Ports) (own, others bool, changed <-chan struct{}) { return false, false, news.next() },
		}
		ended := make(chan startVerdict)
		go func() {
			_, got, _ := w.await(t.Context())
			ended <- got
		}()
		for range 100 {
			time.Sleep(5 * ms)
			news.ring()
			synctest.Wait()
		}
		if got := <-ended; got != startRuns || looks > 9 {
			t.Errorf("%s after %d looks", got, looks)
		}
	})

	// Who is stopped while it waits takes nothing back.
	ctx, stop := context.WithCancel(t.Context())
	stop()
	w := startWatch{
		inspect: func(context.Context) (container.Captured, error) { return container.Captured{}, container.ErrNotFound },
		serves:  func(container.Ports) (own, others bool, changed <-chan struct{}) { return false, false, nil },
	}
	if _, got, why := w.await(ctx); got != startWaits {
		t.Errorf("stopped: %s, %q", got, why)
	}
}

// Only an answer counts, of the container itself, or of one whose clients wait here.
func TestAnsweredOf(t *testing.T) {
	route := state.NodeRoute{Route: state.Route{Volume: &state.Volume{ID: "v"}, Route: volume.Route{Listen: 80, Port: 80, Mode: volume.RouteHTTP}}, Owner: "n1", Moving: true}
	elsewhere, open := route, route
	elsewhere.Owner, open.Moving = "n2", false
	for _, c := range []struct {
		name        string
		server      served
		route       state.NodeRoute
		address     string
		volume      volume.ID
		own, others bool
	}{
		{"it answers", served{"10.0.0.1:80", true}, route, "10.0.0.1", "v", true, true},
		{"it was waited for in vain", served{"10.0.0.1:80", false}, route, "10.0.0.1", "v", false, false},
		{"another one answers", served{"10.0.0.2:80", true}, route, "10.0.0.1", "v", false, true},
		{"another one was waited for in vain", served{"10.0.0.2:80", false}, route, "10.0.0.1", "v", false, false},
		{"another one of another volume", served{"10.0.0.2:80", true}, route, "10.0.0.1", "w", false, false},
		{"its clients go on already", served{"10.0.0.2:80", true}, open, "10.0.0.1", "v", false, false},
		{"its clients wait elsewhere", served{"10.0.0.2:80", true}, elsewhere, "10.0.0.1", "v", false, false},
		{"it has no address", served{":80", true}, open, "", "v", false, false},
	} {
		rec := &state.Container{Name: "db", Volumes: []state.ContainerVolume{{ID: c.volume}}}
		ready := map[string]served{routeID(c.route.Route): c.server}
		own, others := answeredOf(ready, []state.NodeRoute{c.route}, "n1", rec, container.Ports{Address: c.address}, map[volume.ID]bool{c.volume: true})
		if own != c.own || others != c.others {
			t.Errorf("%s: %t, %t; want %t, %t", c.name, own, others, c.own, c.others)
		}
	}
}

// What is left to its engine has come up when it was not started again for a while.
func TestLoop(t *testing.T) {
	began := time.Now()
	l := loop{restarts: 2, since: began}
	for _, c := range []struct {
		state    container.State
		restarts int
		after    time.Duration
		over     bool
	}{
		{container.Running, 2, 19 * time.Second, false},
		{container.Running, 3, 20 * time.Second, false},
		{container.Running, 3, 39 * time.Second, false},
		{container.Restarting, 3, 39 * time.Second, false},
		{container.Running, 3, 41 * time.Second, false},
		{container.Running, 3, 59 * time.Second, true},
	} {
		var over bool
		if l, over = l.next(container.Captured{State: c.state, Restarts: c.restarts}, began.Add(c.after)); over != c.over {
			t.Errorf("%s, %d after %s: %t", c.state, c.restarts, c.after, over)
		}
	}
	// One that its user has stopped is over. What its engine gives up is not, and is told of.
	spec := func(policy string) container.Spec {
		return container.Spec{HostConfig: []byte(`{"RestartPolicy":` + policy + `}`)}
	}
	for _, c := range []struct {
		name   string
		c      container.Captured
		gaveUp bool
	}{
		{"stopped while it waited to be started again", container.Captured{ExitCode: 3, Restarts: 3, Spec: spec(`{"Name":"always"}`)}, false},
		{"stopped while it had tries left", container.Captured{ExitCode: 3, Restarts: 3, Spec: spec(`{"Name":"on-failure","MaximumRetryCount":10}`)}, false},
		{"stopped, with tries without an end", container.Captured{ExitCode: 3, Restarts: 3, Spec: spec(`{"Name":"on-failure"}`)}, false},
		{"it ended well at last", container.Captured{Restarts: 10, Spec: spec(`{"Name":"on-failure","MaximumRetryCount":10}`)}, false},
		{"after its last try", container.Captured{ExitCode: 3, Restarts: 10, Spec: spec(`{"Name":"on-failure","MaximumRetryCount":10}`)}, true},
		{"a mount was refused", container.Captured{ExitCode: 3, Restarts: 3, Error: "error while mounting volume", Spec: spec(`{"Name":"always"}`)}, true},
	} {
		c.c.State, c.c.Started = container.Exited, true
		out, over := l.next(c.c, began.Add(time.Hour))
		if over == c.gaveUp || out.gaveUp != c.gaveUp || strings.Contains(out.String(), "has given up") != c.gaveUp {
			t.Errorf("%s: over %t, %s", c.name, over, out)
		}
		if c.c.State = container.Running; c.c.GivenUp() {
			t.Errorf("%s: one that runs", c.name)
		}
	}
}

// What another flockd has left to its engine is told of again, and it is no wish of its user when that
// gives up. One that seems to run is not told of, but looked after until it has for a while.
func TestResumed(t *testing.T) {
	now := time.Now()
	const tries = `{"RestartPolicy":{"Name":"on-failure","MaximumRetryCount":6}}`
	for _, tc := range []struct {
		name      string
		c         container.Captured
		strange   bool // flocker has not made it
		old       bool
		want      bool
		why       string // of Problems; "": none
		gaveUp    bool
		laterWhy  string // when its engine has started it again since
		laterOver bool   // when it has not for long
	}{
		{name: "it waits to be started again", c: container.Captured{State: container.Restarting, ExitCode: 3, Restarts: 2}, want: true, why: "it ended with code 3, and its engine starts it again", laterWhy: "code 3"},
		{name: "for the first time", c: container.Captured{State: container.Restarting, ExitCode: 3}, want: true, why: "code 3", laterWhy: "code 3"},
		{name: "it runs just now", c: container.Captured{State: container.Running, Restarts: 2}, want: true, laterWhy: "its engine has started it again", laterOver: true},
		{name: "it runs, and what it replaced is there", c: container.Captured{State: container.Running}, old: true, want: true, laterWhy: "its engine has started it again", laterOver: true},
		{name: "it runs", c: container.Captured{State: container.Running}},
		{name: "its engine has given up", c: container.Captured{State: container.Exited, ExitCode: 3, Restarts: 6}, want: true, why: "it ended with code 3", gaveUp: true},
		{name: "it could not be started again", c: container.Captured{State: container.Exited, ExitCode: 3, Restarts: 1, Error: "no such device"}, want: true, why: "no such device", gaveUp: true},
		{name: "it went down with its machine", c: container.Captured{State: container.Exited, ExitCode: 255, Error: "its engine crashed"}},
		{name: "and had not come up", c: container.Captured{State: container.Exited, ExitCode: 255, Error: "its engine crashed"}, old: true, want: true, why: "its engine crashed", gaveUp: true},
		{name: "its user has stopped it", c: container.Captured{State: container.Exited, ExitCode: 137, Restarts: 2}},
		{name: "and what it replaced is there", c: container.Captured{State: container.Exited, ExitCode: 137, Restarts: 2}, old: true},
		{name: "it is none of ours", c: container.Captured{State: container.Restarting, ExitCode: 3, Restarts: 2}, strange: true},
	} {
		tc.c.ID, tc.c.Started, tc.c.Spec.HostConfig, tc.c.Labels = "b", true, []byte(tries), map[string]string{container.LabelMade: "a"}
		if tc.strange {
			tc.c.Labels = nil
		}
		l, ok := resumed(tc.c, tc.old, now)
		if ok != tc.want || ok && (!strings.Contains(l.why, tc.why) || (l.why == "") != (tc.why == "") || l.gaveUp != tc.gaveUp) {
			t.Errorf("%s: %t, %+v", tc.name, ok, l)
		}
		if !ok || l.gaveUp {
			continue
		}
		again := tc.c
		again.Restarts++
		if later, over := l.next(again, now.Add(time.Minute)); over || !strings.Contains(later.why, tc.laterWhy) {
			t.Errorf("%s, and it is started again: %t, %+v", tc.name, over, later)
		}
		if later, over := l.next(tc.c, now.Add(time.Minute)); tc.laterOver && (!over || later.why != "") {
			t.Errorf("%s, and it goes on: %t, %+v", tc.name, over, later)
		}
	}

	// It is asked at the first look alone: what comes later is its engine's affair.
	r := &state.Container{Name: "web", Node: "n2", ID: "b", Run: true, Volumes: []state.ContainerVolume{{ID: "v"}}}
	loops := container.Captured{ID: "b", State: container.Restarting, ExitCode: 3, Started: true, Labels: map[string]string{container.LabelMade: "a"}}
	runs := loops
	runs.State = container.Running
	for _, tc := range []struct {
		name  string
		looks []container.Captured
		run   bool
		want  int
	}{
		{"it loops", []container.Captured{loops}, true, 1},
		{"it loops later", []container.Captured{runs, loops}, true, 0},
		{"it is not to run", []container.Captured{loops}, false, 0},
	} {
		f := newFollower(&member{self: "n2", now: func() time.Time { return now }}, nil)
		one := *r
		one.Run = tc.run
		for _, c := range tc.looks {
			f.resume(state.New(), &one, c, false)
		}
		if len(f.looping) != tc.want {
			t.Errorf("%s: %v", tc.name, f.looping)
		}
	}
}

// A failure is told of once, one that is to go back only when it does not; its clients wait for
// that, and not for more tries. What nobody knows is no failure, and takes its time.
func TestFollowAttempt(t *testing.T) {
	now := time.Now()
	ends := errors.New("it ended with code 3")
	type try struct {
		err             error
		undecided, back bool
		tries           int // afterwards
		pause           time.Duration
		due             bool // told of
	}
	for name, tries := range map[string][]try{
		"failover":               {{ends, false, false, 1, followRetry, true}, {ends, false, false, 2, 2 * followRetry, false}, {ends, false, false, 3, 4 * followRetry, false}},
		"move":                   {{ends, false, true, 1, followHurry, false}, {ends, false, true, 2, followRetry, false}, {ends, false, true, 3, 2 * followRetry, true}, {ends, false, true, 4, 4 * followRetry, false}},
		"move, and home is lost": {{ends, false, true, 1, followHurry, false}, {ends, false, false, 2, followRetry, true}},
		"its engine has tried":   {{errors.Join(startedAgain{ends}, errors.New("removing it")), false, true, 2, followRetry, false}, {ends, false, true, 3, 2 * followRetry, true}},
		"no move":                {{startedAgain{ends}, false, false, 1, followRetry, true}},
		"not known":              {{container.ErrUndecided, true, false, 0, followRetry, true}, {ends, false, false, 1, followRetry, true}},
		"not known, in a move":   {{container.ErrUndecided, true, true, 0, followHurry, false}},
	} {
		var a followAttempt
		for i, c := range tries {
			due := a.due(c.back)
			a = a.after(c.err, c.undecided, c.back, due && !c.undecided, now)
			if got := a.next.Sub(now); a.tries != c.tries || got != c.pause || due != c.due {
				t.Errorf("%s, %d: %d tries, next after %s, told %t; want %+v", name, i, a.tries, got, due, c)
			}
		}
	}
}

// What fails again and again is tried each minute while something happens at its engine, which may have been
// in the way, and more and more seldom where nothing does, or only the try itself.
func TestFollowAttemptsRest(t *testing.T) {
	now := time.Now()
	var a followAttempt
	var pauses []time.Duration
	for range 10 {
		a = a.after(errors.New("its port is taken"), false, false, true, now)
		pauses = append(pauses, a.again(time.Time{}).Sub(now).Round(time.Second))
	}
	if got, want := fmt.Sprint(pauses), "[3s 6s 12s 24s 48s 1m36s 3m12s 5m0s 5m0s 5m0s]"; got != want {
		t.Errorf("the pauses are %s, want %s", got, want)
	}
	for stirred, want := range map[time.Duration]time.Duration{-time.Minute: followIdle, followOwn: followIdle, followOwn + 1: followMost, 5 * time.Minute: followMost} {
		if got := a.again(now.Add(stirred)).Sub(now); got != want {
			t.Errorf("stirred after %s: the next try is after %s, want %s", stirred, got, want)
		}
	}
	if b := (followAttempt{}).after(errors.New("its port is taken"), false, false, true, now); b.again(now.Add(time.Minute)) != b.next {
		t.Error("a short pause became longer")
	}
}

// What this node itself has seen end is not waited for: the image of one has come, or the key to the records of all.
func TestEased(t *testing.T) {
	now := time.Now()
	later := now.Add(followIdle)
	for name, c := range map[string]struct {
		ends func(*follower)
		want string // what is tried now
	}{
		"an image has come":         {func(f *follower) { f.noteImage("web", false); f.noteImage("web", true) }, "web"},
		"it was there":              {func(f *follower) { f.noteImage("web", true); f.noteImage("web", true) }, ""},
		"it goes":                   {func(f *follower) { f.noteImage("web", true); f.noteImage("web", false) }, ""},
		"one of somebody else came": {func(f *follower) { f.noteImage("db", false); f.noteImage("db", true) }, ""},
		"the key has come":          {func(f *follower) { f.eased("") }, "side web"},
	} {
		f := newFollower(&member{now: func() time.Time { return now }}, nil)
		f.failed["web"], f.failed["side"] = followAttempt{next: later, tries: 9}, followAttempt{next: later, tries: 9}
		c.ends(f)
		var due []string
		for _, key := range slices.Sorted(maps.Keys(f.failed)) {
			if !f.failed[key].again(time.Time{}).After(now) {
				due = append(due, key)
			}
		}
		if got := strings.Join(due, " "); got != c.want || (len(f.wake) == 1) != (c.want != "") && name != "one of somebody else came" {
			t.Errorf("%s: tried now are %q, want %q", name, got, c.want)
		}
	}
}

// What is wrong is logged when it changes. An ID that its engine has made for the try alone is no change.
func TestProblemsAreLoggedOnce(t *testing.T) {
	var log strings.Builder
	f := newFollower(&member{log: slog.New(slog.NewTextHandler(&log, nil)), now: time.Now}, nil)
	taken := "driver failed programming external connectivity on endpoint web (%s): Bind for 0.0.0.0:80 failed: port is already allocated"
	for _, tt := range []struct {
		problem string
		lines   int // so far
	}{
		{fmt.Sprintf(taken, strings.Repeat("0a1b", 16)), 1},
		{fmt.Sprintf(taken, strings.Repeat("c3d4", 16)), 1},
		{"no such image", 2},
		{"", 2},
		{"no such image", 3},
	} {
		f.note("web", tt.problem)
		if got := strings.Count(log.String(), "level=WARN"); got != tt.lines || f.problems["web"] != tt.problem {
			t.Errorf("%q: %d lines, want %d; what is shown is %q", tt.problem, got, tt.lines, f.problems["web"])
		}
	}
}

// A move is undone while its old node can have the volume again, and no reunion is: what does not
// come up then is left to its engine instead of being removed at each try.
func TestGoesBack(t *testing.T) {
	rec := &state.Container{Name: "web", Node: "n1", ID: "a", Run: true, Volumes: []state.ContainerVolume{{ID: "v", Epoch: 1}}}
	for _, c := range []struct {
		name           string
		from           volume.NodeID // "": it was not moved
		attempt        string
		revoked, stops bool
		want           bool
	}{
		{"a move", "n1", "migrate-1", false, false, true},
		{"a move, and its old node has lost its lease", "n1", "migrate-1", true, false, false},
		{"a reunion", "n1", "join-1", false, false, false},
		{"a failover", "", "", false, false, false},
		{"a move from elsewhere", "n3", "migrate-1", false, false, false},
		{"it is not to run", "n1", "migrate-1", false, true, false},
	} {
		v := &state.Volume{ID: "v", Name: "v", Epoch: 2, Phase: state.PhaseActive, Placement: volume.Placement{Primary: "n2"}}
		if c.from != "" {
			v.Moved = &state.Moved{From: c.from, Attempt: c.attempt}
		}
		r := *rec
		r.Run = !c.stops
		nodes := []*state.Node{{ID: "n1", Name: "n1"}, {ID: "n2", Name: "n2"}, {ID: "n3", Name: "n3"}}
		for _, n := range nodes {
			n.Lease = state.Lease{No: 1, Round: 1, Revoked: c.revoked && n.ID == "n1"}
		}
		b, err := json.Marshal(map[string]any{
			"format": 1, "cluster": &state.Cluster{ID: "c", Failover: state.Failover{Mode: state.FailoverAutomatic, Round: 1}},
			"nodes": nodes, "volumes": []*state.Volume{v}, "containers": []*state.Container{&r},
		})
		if err != nil {
			t.Fatal(err)
		}
		s, err := state.Unmarshal(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if got := goesBack(s, &r); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}

// What is stopped for a move is noted, so that how it ends is not taken for how it came up.
func TestHalted(t *testing.T) {
	f := newFollower(&member{self: "n2"}, containerfake.New("n2"))
	r := &state.Container{Name: "web", Node: "n1", ID: "a", Changed: 4, Volumes: []state.ContainerVolume{{ID: "v"}}}
	key := r.RecordKey()
	f.failed[key] = followAttempt{begun: "b"}
	for i, id := range []string{"c", "b"} {
		made := *r
		made.ID = id
		if err := f.stop(t.Context(), &made); err != nil {
			t.Fatal(err)
		}
		if got := f.known(r).Halted; got != id || f.halts(key) != i+1 {
			t.Errorf("stopped %s: %q, %d times", id, got, f.halts(key))
		}
		if got := f.failed[key].begun; (got == "") != (id == "b") {
			t.Errorf("stopped %s: %q is to be asked how it ended", id, got)
		}
	}
	f.forgetDone(state.New, nil, nil)
	if len(f.halted) > 0 {
		t.Errorf("%v is kept of a record that is gone", f.halted)
	}
}

// What a person had prepared is asked how it ended, as long as nobody has stopped it for a move and it
// has not run elsewhere since.
func TestTried(t *testing.T) {
	f := newFollower(&member{self: "n2"}, containerfake.New("n2"))
	r := &state.Container{Name: "web", Node: "n1", ID: "a", Changed: 4, Volumes: []state.ContainerVolume{{ID: "v"}}}
	later, own := *r, *r
	later.Changed, own.ID = 5, "p"
	halts := func() int { return f.halts(r.RecordKey()) }
	is := func(what string, r *state.Container, want container.Known) {
		t.Helper()
		if got := f.known(r); got.Prepared != want.Prepared || got.Begun != want.Begun || got.Halted != want.Halted {
			t.Errorf("%s: %+v, want %+v", what, got, want)
		}
	}
	begun := fmt.Errorf("starting: %w", &container.BegunError{ID: "p", Err: container.ErrUndecided})
	f.tried(r, begun, halts())
	is("begun", r, container.Known{Prepared: "p", Begun: "p"})
	f.tried(r, errors.New("no engine"), halts())
	is("a try that did not come to it", r, container.Known{Prepared: "p", Begun: "p"})
	is("it was recorded elsewhere since", &later, container.Known{Prepared: "p"})
	before := halts()
	if err := f.stop(t.Context(), &own); err != nil {
		t.Fatal(err)
	}
	is("stopped for a move", r, container.Known{Prepared: "p"})
	f.tried(r, begun, before)
	is("stopped for a move while it was watched", r, container.Known{Prepared: "p"})
	f.tried(r, begun, halts())
	is("begun again", r, container.Known{Prepared: "p", Begun: "p"})
	f.tried(r, fmt.Errorf("starting: %w", &container.StoppedError{ID: "p", Err: errors.New("it ended")}), halts())
	is("it did not stay", r, container.Known{Prepared: "p"})
	own.ID = "b"
	if err := f.stop(t.Context(), &own); err != nil {
		t.Fatal(err)
	}
	is("one of ours is stopped for a move", r, container.Known{Prepared: "p", Halted: "b"})
	f.tried(r, nil, halts())
	is("it came up", r, container.Known{Halted: "b"})
}

// The address of a node's network is that of many containers.
func TestServedIn(t *testing.T) {
	for _, c := range []struct {
		server, address string
		exposed         []int
		want            bool
	}{
		{"172.17.0.2:5432", "172.17.0.2", nil, true},
		{"172.17.0.3:5432", "172.17.0.2", nil, false},
		{"", "", nil, false},
		{"127.0.0.1:5432", "127.0.0.1", nil, false},
		{"127.0.0.1:5432", "127.0.0.1", []int{80}, false},
		{"127.0.0.1:5432", "127.0.0.1", []int{80, 5432}, true},
	} {
		if got := (served{server: c.server}).in(container.Ports{Address: c.address, Exposed: c.exposed}); got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
	}
	rec := &state.Container{Name: "db", Volumes: []state.ContainerVolume{{ID: "v"}}}
	for _, c := range []struct {
		route state.Route
		want  bool
	}{
		{state.Route{Volume: &state.Volume{ID: "v"}}, true},
		{state.Route{Volume: &state.Volume{ID: "w"}}, false},
		{state.Route{Volume: &state.Volume{ID: "v"}, Container: rec}, true},
		{state.Route{Volume: &state.Volume{ID: "v"}, Container: &state.Container{Name: "tool", Volumes: rec.Volumes}}, false},
	} {
		if got := routedTo(c.route, rec); got != c.want {
			t.Errorf("%+v: %t", c.route, got)
		}
	}
}

// What a program said is one line of a few words, in an event and in the state.
func TestOneLine(t *testing.T) {
	for _, c := range []struct {
		said string
		most int
		want string
	}{
		{"", 10, ""},
		{"\n \r\n", 10, ""},
		{"one\r\n\n  two\n", 80, "one / two"},
		{"\x1b[31mred\x1b[0m\x00", 80, "[31mred [0m"},
		{"0123456789", 10, "0123456789"},
		{"0123456789", 4, "...6789"},
		{"0123\xff", 80, "0123?"},
		{"aä", 1, "..."},
	} {
		if got := oneLine(c.said, c.most); got != c.want {
			t.Errorf("%q: %q, want %q", c.said, got, c.want)
		}
	}
}
