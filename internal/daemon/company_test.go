package daemon

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/agent"
	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/proxy"
)

// TestPauseLimit: the clients of a move wait for its last copy until shortly before they are
// refused, for longer only by their operator's wish, and without an end if he does not ask.
func TestPauseLimit(t *testing.T) {
	const s = time.Second
	for _, c := range []struct {
		name                string
		maxPause, hold, out time.Duration
	}{
		{"nothing was said", time.Second, 10 * s, 7 * s},
		{"machines that are slower", time.Second, time.Minute, 42 * s},
		{"shorter than it may be", time.Millisecond, 10 * s, 7 * s},
		{"longer than that", 20 * s, 10 * s, 22500 * time.Millisecond},
		{"as long as it takes", 0, 10 * s, 0},
	} {
		if got := pauseLimit(c.maxPause, c.hold); got != c.out {
			t.Errorf("%s: %s, want %s", c.name, got, c.out)
		}
	}
}

// TestSlowStop: containers that took too long to stop the last time for their clients to wait
// are not stopped again, unless these may wait for so long; nor are those that would be stopped
// for a move which its leader gives up before its end. The words say which it is, and only what
// helps.
func TestSlowStop(t *testing.T) {
	const s = time.Second
	most := timeLeft(0, quietPatience)
	for _, c := range []struct {
		name                             string
		stop, last, maxPause, hold, left time.Duration
		want                             string // "": it goes on
	}{
		{"not known", 0, s, s, 10 * s, most, ""},
		{"as it is with most", s, s / 10, s, 10 * s, most, ""},
		{"killed after ten seconds", 10 * s, s / 10, s, 10 * s, most, "settings set hold=TIME; --max-pause 11s"},
		{"the copy makes it too long", 6500 * time.Millisecond, s, s, 10 * s, most, "settings set hold=TIME; --max-pause 9s"},
		{"longer than any hold allows", 70 * s, s, s, 10 * s, most, "stop timeout; --max-pause 1m12s"},
		{"on machines that are slower", 10 * s, s, s, time.Minute, most, ""},
		{"they may wait for so long", 10 * s, s / 10, 11 * s, 10 * s, most, ""},
		{"nobody asks", time.Hour, s, 0, 10 * s, 0, ""},
		{"with the largest hold", 60 * s, 2 * s, s, state.MaxHold, most, ""},
		{"clients would wait, the leader does not", 150 * s, s, 150 * s, 10 * s, most, "given up after 2m0s"},
		{"as long as there is", 100 * s, 6 * s, 110 * s, 10 * s, most, ""},
		{"a moment longer", 100 * s, 6*s + 1, 110 * s, 10 * s, most, "within 1m46s"},
		{"copies ahead have taken it up", 50 * s, s, 60 * s, 10 * s, timeLeft(60*s, 4*s), "within 46s"},
		{"a long last copy", 0, 50 * s, 60 * s, 10 * s, timeLeft(60*s, 4*s), "about 50s, which has to be over within 46s"},
		{"and no time is left", s, s, s, 10 * s, timeLeft(200*s, 4*s), "within 0s"},
	} {
		err := slowStop(c.stop, c.last, c.maxPause, c.hold, c.left)
		if (err != nil) != (c.want != "") || err != nil && !(strings.Contains(err.Error(), c.want) && strings.Contains(err.Error(), "--force")) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// A drain asks for no limit, and is held to the time that a move has: else the containers of a volume
// that cannot be handed over in that would be stopped in vain every ten minutes.
func TestNeverOver(t *testing.T) {
	const s = time.Second
	for _, c := range []struct {
		stop, last, left time.Duration
		want             string
	}{
		{0, 0, 0, ""},
		{60 * s, 40 * s, 100 * s, ""},
		{60 * s, 40*s + 1, 100 * s, "took 1m0s to stop the last time, and the last copy takes about 40s, which has to be over within 1m40s"},
		{0, 101 * s, 100 * s, "the last copy takes about 1m41s"},
	} {
		err := neverOver(c.stop, c.last, c.left)
		if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("stop %s, copy %s of %s: %v, want %q", c.stop, c.last, c.left, err, c.want)
		}
	}
}

// Who forces a move, or has no routes, has said, or does not mind, that it may be in vain; a drain has not.
// What stands still need not be stopped, and what has gone in part has to follow.
func TestInVain(t *testing.T) {
	const s = time.Second
	drain := prospect{attempt: "drain-7", volume: "db", to: "n2", runs: true, last: 101 * s, hold: 10 * s, left: 100 * s}
	asked := drain
	asked.attempt, asked.routes, asked.maxPause = "migrate-7", true, s
	for _, c := range []struct {
		name string
		of   prospect
		with func(*prospect)
		want string // "": it goes on
	}{
		{"a drain", drain, nil, "flockctl migrate db n2 --force"},
		{"a drain, with routes", drain, func(p *prospect) { p.routes = true }, "stop them by hand"},
		{"a drain, of what stops slowly", drain, func(p *prospect) { p.last, p.stop = s, 100*s }, "took 1m40s to stop the last time"},
		{"a drain that has the time", drain, func(p *prospect) { p.last = 99 * s }, ""},
		{"a drain, of what stands still", drain, func(p *prospect) { p.runs = false }, ""},
		{"a drain, of what has gone in part", drain, func(p *prospect) { p.partGone = true }, ""},
		{"a migration", asked, nil, "--force does not ask"},
		{"a migration, of what stands still", asked, func(p *prospect) { p.runs = false }, ""},
		{"a migration, of what has gone in part", asked, func(p *prospect) { p.partGone = true }, ""},
		{"a migration without routes", asked, func(p *prospect) { p.routes = false }, ""},
		{"a migration that is forced", asked, func(p *prospect) { p.maxPause = 0 }, ""},
	} {
		if c.with != nil {
			c.with(&c.of)
		}
		err := c.of.inVain()
		if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// A limit that an older node does not know is said not to be kept; who asks for none hears nothing.
func TestUnlimited(t *testing.T) {
	for _, c := range []struct {
		limit time.Duration
		who   string
		want  bool
	}{{time.Second, "n2", true}, {time.Second, "", false}, {0, "n2", false}} {
		got := unlimited(c.limit, c.who)
		if (len(got) > 0) != c.want || c.want && !(strings.Contains(got[0], "more than 1s") && strings.Contains(got[0], "node n2")) {
			t.Errorf("%s, %q: %q", c.limit, c.who, got)
		}
	}
}

func TestLimitsOf(t *testing.T) {
	for _, c := range []struct {
		s    state.Settings
		want proxy.Limits
	}{
		{},
		{state.Settings{Hold: 30 * time.Second}, proxy.Limits{Request: 30 * time.Second, Event: time.Minute}},
		{state.Settings{HoldService: 50}, proxy.Limits{Sessions: 50}},
		{state.Settings{HoldNode: 50}, proxy.Limits{}}, // no route's alone
	} {
		if got := limitsOf(c.s); got != c.want {
			t.Errorf("with %+v: got %+v, want %+v", c.s, got, c.want)
		}
	}
}

// TestMaxHold: what the setting lets clients wait for, the leader does, too.
func TestMaxHold(t *testing.T) {
	if wait, left := pauseLimit(time.Second, state.MaxHold), timeLeft(aheadPatience, quietPatience); wait > left {
		t.Errorf("with the largest hold the stop and the last copy may take %s, and the leader gives the move up after %s", wait, left)
	}
}

// TestStopPredicted: the newest stop counts, of the same containers, and for a drain, which nobody
// can force, for a while only.
func TestStopPredicted(t *testing.T) {
	const s = time.Second
	now := time.Unix(1e9, 0)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	moved := &state.Moved{Times: state.MoveTimes{Stop: 2 * s}, At: ago(time.Minute)}
	last := &state.EndedMigration{Times: state.MoveTimes{Stop: 3 * s}, At: ago(time.Minute)}
	long := &state.Moved{Times: state.MoveTimes{Stop: 2 * s}, At: ago(drainAsks + 1)}
	longLast := &state.EndedMigration{Times: state.MoveTimes{Stop: 3 * s}, At: ago(drainAsks + 1)}
	here := func(epoch volume.Epoch, at time.Duration, of ...string) lastStop {
		return lastStop{epoch, 9 * s, of, ago(at)}
	}
	for _, c := range []struct {
		name        string
		v           state.Volume
		here        lastStop
		move, drain time.Duration
	}{
		{"never moved", state.Volume{Epoch: 1}, lastStop{}, 0, 0},
		{"moved here", state.Volume{Epoch: 2, Moved: moved, LastMigration: last}, lastStop{}, 2 * s, 2 * s},
		{"moved here long ago", state.Volume{Epoch: 2, Moved: long, LastMigration: last}, lastStop{}, 2 * s, 0},
		{"failed over since", state.Volume{Epoch: 3, LastMigration: last}, lastStop{}, 3 * s, 3 * s},
		{"failed over since, long ago", state.Volume{Epoch: 3, LastMigration: longLast}, lastStop{}, 3 * s, 0},
		{"stopped here for a move that was given up", state.Volume{Epoch: 2, Moved: moved}, here(2, s, "a", "b"), 9 * s, 9 * s},
		{"stopped here long ago", state.Volume{Epoch: 2, Moved: moved}, here(2, drainAsks+1, "a", "b"), 9 * s, 0},
		{"stopped here before one was made anew", state.Volume{Epoch: 2, Moved: moved}, here(2, s, "a", "c"), 0, 0},
		{"stopped here before there was another one", state.Volume{Epoch: 2, Moved: moved}, here(2, s, "a"), 0, 0},
		{"stopped here before it went away and came back", state.Volume{Epoch: 4, Moved: moved}, here(2, s, "a", "b"), 2 * s, 2 * s},
	} {
		for attempt, want := range map[string]time.Duration{"migrate-7": c.move, "drain-7": c.drain} {
			if got := stopPredicted(&c.v, c.here, []string{"a", "b"}, stopsSince(attempt, now)); got != want {
				t.Errorf("%s, %s: %s, want %s", c.name, attempt, got, want)
			}
		}
	}
	if here(2, 0).counts(nil) {
		t.Error("the stop of a volume that is gone is remembered")
	}
	if got := idsOf([]*state.Container{{ID: "b"}, {ID: "a"}}); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("IDs in no order: %q", got)
	}
}

func TestStopTook(t *testing.T) {
	ended := func(took time.Duration, err error) *stopRun {
		return &stopRun{out: agent.Stopped{Stop: took}, err: err}
	}
	for _, c := range []struct {
		name       string
		run, was   *stopRun
		containers int
		want       time.Duration
	}{
		{"the first", ended(9*time.Second, nil), nil, 1, 9 * time.Second},
		{"once more, of those that are stopped", ended(time.Millisecond, nil), ended(9*time.Second, nil), 1, 0},
		{"one that failed", ended(time.Second, errors.New("no answer")), nil, 1, 0},
		{"of no containers", ended(time.Second, nil), nil, 0, 0},
	} {
		if got := c.run.took(c.was, c.containers); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// That a part of what goes along has gone is known of the attempt, of the node that it left and of
// where it went.
func TestPartGone(t *testing.T) {
	const plain = volume.ID("000000000000000d")
	begin := func(t *testing.T, attempt string) (*state.State, func(state.Command)) {
		s, apply := cloneState(t)
		for id, attempt := range map[volume.ID]string{clonePG: "drain-1", plain: attempt} {
			apply(state.BeginHandoff{ID: id, Epoch: s.Volume(id).Epoch, Attempt: attempt, To: cloneN2, Follow: true})
		}
		return s, apply
	}
	for _, attempt := range []string{"drain-1", "drain-2"} {
		s, apply := begin(t, attempt)
		if s.PartGone(s.Volume(clonePG), cloneN1) {
			t.Error("nothing has gone yet")
		}
		apply(state.CommitHandoff{ID: plain, Epoch: s.Volume(plain).Epoch, Attempt: attempt, Final: volume.Position{Epoch: s.Volume(plain).Epoch, Seq: 1, GUID: 3}})
		if got := s.PartGone(s.Volume(clonePG), cloneN1); got != (attempt == "drain-1") {
			t.Errorf("one of %s has gone: %v", attempt, got)
		}
		if s.PartGone(s.Volume(clonePG), cloneN2) {
			t.Error("it has not gone from there")
		}
	}
}

// Of the containers that use a volume here those are recorded, before others are stopped for it, that follow it and
// are not known as they run.
func TestLacksRecord(t *testing.T) {
	label := map[string]string{container.LabelEnable: "true"}
	web := func(change func(*container.Use)) container.Use {
		u := container.Use{Container: "1", Name: "web", State: container.Running, Labels: label}
		if change != nil {
			change(&u)
		}
		return u
	}
	known := &state.Container{Name: "web", ID: "1", Node: "n1", Run: true}
	for _, tt := range []struct {
		name string
		use  container.Use
		of   volume.ID
		r    *state.Container
		want bool
	}{
		{"just started", web(nil), "v", nil, true},
		{"known", web(nil), "v", known, false},
		{"made anew", web(func(u *container.Use) { u.Container = "2" }), "v", known, true},
		{"stopped, and started again", web(nil), "v", &state.Container{Name: "web", ID: "1", Node: "n1"}, true},
		{"on its way here", web(nil), "v", &state.Container{Name: "web", ID: "0", Node: "n2", Run: true}, false},
		{"does not run", web(func(u *container.Use) { u.State = container.Exited }), "v", nil, false},
		{"no label", web(func(u *container.Use) { u.Labels = nil }), "v", nil, false},
		{"being made", web(func(u *container.Use) { u.Name = "web.flocker-new" }), "v", nil, false},
		{"another volume's", web(nil), "w", nil, false},
	} {
		if got := lacksRecord(tt.use, []volume.ID{"v"}, tt.of, tt.r, "n1"); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
