package daemon

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/container"
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

		{"it waits to be started again", is(container.Restarting, code(3), ran(2*time.Second)), startFails, "code 3, and its engine starts it again"},
		{"even if it ended well", is(container.Restarting), startFails, "code 0, and its engine starts it again"},
		{"it was started again, and runs", is(container.Running, again(1), ran(2*time.Second)), startFails, "started it again once"},
		{"as another one's clients wait", is(container.Running, again(2), awaited, ran(time.Second)), startFails, "started it again 2 times"},
		{"and answers", is(container.Running, again(1), answered), startRuns, ""},
		{"it has answered before", is(container.Restarting, code(3), answered), startFails, "code 3"},
		{"it has ended", is(container.Exited, code(1)), startFails, "it ended with code 1"},
		{"its engine says why", is(container.Exited, code(128), failed("no such file")), startFails, "it ended with code 128: no such file"},
		{"its engine could not start it", is(container.Exited, failed("no such device")), startFails, "no such device"},
		{"it ended after its last try", is(container.Exited, code(1), again(5)), startFails, "it ended with code 1"},
		{"it had nothing more to do", is(container.Exited), startEnds, ""},
		{"at the second try", is(container.Exited, again(1)), startEnds, ""},
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

// In simulated time: a verdict comes as early as it can be had, and silence is none.
func TestAwaitStart(t *testing.T) {
	const ms = time.Millisecond
	up := container.Captured{State: container.Running, Ports: container.Ports{Address: "172.17.0.2"}}
	for _, c := range []struct {
		name             string
		silent           [2]time.Duration // the engine says nothing from when to when
		ends             time.Duration    // its command does, each time
		answers, sibling time.Duration    // the server of its route, and another one's
		again            bool
		want             startVerdict
		after            time.Duration // at the latest
		looks            int           // most
	}{
		{"no route", [2]time.Duration{}, 0, 0, 0, false, startRuns, 1000 * ms, 9},
		{"its server answers", [2]time.Duration{}, 0, 40 * ms, 0, false, startRuns, 40 * ms, 1},
		{"it answers late", [2]time.Duration{}, 0, 5000 * ms, 0, false, startRuns, 1000 * ms, 9},
		{"another one's answers", [2]time.Duration{}, 0, 0, 40 * ms, false, startRuns, 200 * ms, 5},
		{"another one's answers, late", [2]time.Duration{}, 0, 0, 600 * ms, false, startRuns, 600 * ms, 7},
		{"another one's answers, and it has failed before", [2]time.Duration{}, 0, 0, 40 * ms, true, startRuns, 1000 * ms, 9},
		{"it ends at once", [2]time.Duration{}, 1, 0, 0, false, startFails, 200 * ms, 3},
		{"it ends after a while", [2]time.Duration{}, 700 * ms, 0, 0, false, startFails, 1000 * ms, 9},
		{"it ends before another one's answers", [2]time.Duration{}, 100 * ms, 0, 150 * ms, false, startFails, 200 * ms, 5},
		{"its engine is silent at first", [2]time.Duration{0, 3000 * ms}, 0, 0, 0, false, startRuns, 4250 * ms, 40},
		{"its engine is silent, and its server answers", [2]time.Duration{10 * ms, time.Hour}, 0, 40 * ms, 0, false, startRuns, 40 * ms, 1},
		{"its engine is silent between", [2]time.Duration{100 * ms, 3000 * ms}, 0, 0, 0, false, startRuns, 3250 * ms, 40},
		{"its engine is silent for long", [2]time.Duration{0, time.Hour}, 0, 0, 0, false, startWaits, 30250 * ms, 200},
	} {
		synctest.Test(t, func(t *testing.T) {
			began, looks := time.Now(), 0
			since := func(at time.Duration) bool { return at > 0 && time.Since(began) >= at }
			news := make(chan struct{})
			for _, at := range []time.Duration{c.answers, c.sibling} {
				if at > 0 {
					defer time.AfterFunc(at, func() { close(news); news = make(chan struct{}) }).Stop()
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
					}
					return now, nil
				},
				serves: func(address string) (own, others bool, changed <-chan struct{}) {
					return since(c.answers) && address == up.Ports.Address, since(c.sibling), news
				},
			}
			_, got, why := w.await(t.Context())
			if took := time.Since(began); got != c.want || took > c.after || looks > c.looks {
				t.Errorf("%s: %s, %q after %s and %d looks; want %s after %s and %d", c.name, got, why, took, looks, c.want, c.after, c.looks)
			}
		})
	}

	// Who is stopped while it waits takes nothing back.
	ctx, stop := context.WithCancel(t.Context())
	stop()
	w := startWatch{
		inspect: func(context.Context) (container.Captured, error) { return container.Captured{}, container.ErrNotFound },
		serves:  func(string) (own, others bool, changed <-chan struct{}) { return false, false, nil },
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
		ready := map[string]served{routeID(c.route.Route): c.server}
		own, others := answeredOf(ready, []state.NodeRoute{c.route}, "n1", c.address, map[volume.ID]bool{c.volume: true})
		if own != c.own || others != c.others {
			t.Errorf("%s: %t, %t; want %t, %t", c.name, own, others, c.own, c.others)
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
