package daemon

import (
	"errors"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/agent"
	"github.com/flocker-io/flocker/internal/state"
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
// are not stopped again, unless these may wait for so long.
func TestSlowStop(t *testing.T) {
	const s = time.Second
	for _, c := range []struct {
		name                       string
		stop, last, maxPause, hold time.Duration
		refused                    bool
	}{
		{"not known", 0, s, s, 10 * s, false},
		{"as it is with most", s, s / 10, s, 10 * s, false},
		{"killed after ten seconds", 10 * s, s / 10, s, 10 * s, true},
		{"the copy makes it too long", 6500 * time.Millisecond, s, s, 10 * s, true},
		{"on machines that are slower", 10 * s, s, s, time.Minute, false},
		{"they may wait for so long", 10 * s, s / 10, 11 * s, 10 * s, false},
		{"nobody asks", time.Hour, s, 0, 10 * s, false},
	} {
		if err := slowStop(c.stop, c.last, c.maxPause, c.hold); (err != nil) != c.refused {
			t.Errorf("%s: %v, want it refused: %v", c.name, err, c.refused)
		}
	}
}

// TestStopPredicted: the newest stop counts.
func TestStopPredicted(t *testing.T) {
	const s = time.Second
	moved := &state.Moved{Times: state.MoveTimes{Stop: 2 * s}}
	last := &state.EndedMigration{Times: state.MoveTimes{Stop: 3 * s}}
	for _, c := range []struct {
		name string
		v    state.Volume
		here lastStop
		want time.Duration
	}{
		{"never moved", state.Volume{Epoch: 1}, lastStop{}, 0},
		{"moved here", state.Volume{Epoch: 2, Moved: moved, LastMigration: last}, lastStop{}, 2 * s},
		{"failed over since", state.Volume{Epoch: 3, LastMigration: last}, lastStop{}, 3 * s},
		{"stopped here for a move that was given up", state.Volume{Epoch: 2, Moved: moved}, lastStop{2, 9 * s}, 9 * s},
		{"stopped here before it went away and came back", state.Volume{Epoch: 4, Moved: moved}, lastStop{2, 9 * s}, 2 * s},
	} {
		if got := stopPredicted(&c.v, c.here); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	if (lastStop{2, 9 * s}).counts(nil) {
		t.Error("the stop of a volume that is gone is remembered")
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
