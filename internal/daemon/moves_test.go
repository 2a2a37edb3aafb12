package daemon

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/state"
)

// A move is counted once, with the longest of its parts, whatever becomes of the tries of its
// volumes.
func TestMoveCounts(t *testing.T) {
	took := func(copied int) state.MoveTimes {
		return state.MoveTimes{Park: 1, Stop: 2, Unmount: time.Duration(9 - copied), Copy: time.Duration(copied), Held: 7}
	}
	type event struct {
		volume, attempt string
		result          string // "begin", or how a try has ended
		copied          int
	}
	for name, c := range map[string]struct {
		events []event
		want   []string
	}{
		"one volume": {[]event{{"a", "x", "begin", 0}, {"a", "x", "moved", 3}}, []string{"moved 3 6"}},
		"two volumes": {[]event{{"a", "x", "begin", 0}, {"b", "x", "begin", 0}, {"a", "x", "moved", 3}, {"b", "x", "moved", 8}},
			[]string{"moved 8 6"}},
		"two moves":                {[]event{{"a", "x", "begin", 0}, {"b", "y", "begin", 0}, {"a", "x", "moved", 3}, {"b", "y", "refused", 0}}, []string{"moved 3 6", "refused 0 0"}},
		"two volumes stay":         {[]event{{"a", "x", "begin", 0}, {"b", "x", "begin", 0}, {"a", "x", "refused", 0}, {"b", "x", "refused", 0}}, []string{"refused 0 0"}},
		"one after the other":      {[]event{{"a", "x", "begin", 0}, {"a", "x", "refused", 0}, {"b", "x", "begin", 0}, {"b", "x", "refused", 0}}, []string{"refused 0 0"}},
		"one is tried again":       {[]event{{"a", "x", "begin", 0}, {"b", "x", "begin", 0}, {"b", "x", "", 0}, {"a", "x", "moved", 3}, {"b", "x", "begin", 0}, {"b", "x", "moved", 8}}, []string{"moved 3 6"}},
		"nothing of it is known":   {[]event{{"a", "x", "begin", 0}, {"a", "x", "", 0}}, nil},
		"a part stays behind":      {[]event{{"a", "x", "begin", 0}, {"b", "x", "begin", 0}, {"a", "x", "refused", 0}, {"b", "x", "moved", 4}}, []string{"moved 4 5"}},
		"a part stays, much later": {[]event{{"a", "x", "begin", 0}, {"a", "x", "moved", 4}, {"b", "x", "begin", 0}, {"b", "x", "refused", 0}}, []string{"moved 4 5", "refused 0 0"}},
	} {
		var counts moveCounts
		open := map[string]func(string, state.MoveTimes) (string, state.MoveTimes){}
		var got []string
		for _, e := range c.events {
			if e.result == "begin" {
				open[e.volume] = counts.begin(e.attempt)
				continue
			}
			var times state.MoveTimes
			if e.result == "moved" {
				times = took(e.copied)
			}
			if count, times := open[e.volume](e.result, times); count != "" {
				got = append(got, fmt.Sprintf("%s %d %d", count, times.Copy, times.Unmount))
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: counted %q, want %q", name, got, c.want)
		}
		if len(counts.going) > 0 {
			t.Errorf("%s: %d moves are taken for under way", name, len(counts.going))
		}
	}
	// The clients of all volumes of a move go on once; and of so many moves not all are remembered.
	m := NewMetrics("test")
	for _, attempt := range []string{"x", "x", "y"} {
		m.arrived(attempt, time.Second, state.MoveTimes{})
	}
	m.moving("x")("moved", state.MoveTimes{})
	got := gathered(t, m)
	if got["flocker_move_pause_seconds"] != "2" || got["flocker_moves_total moved"] != "1" || got["flocker_moves_total refused"] != "0" {
		t.Errorf("two moves came, one went: %v", got)
	}
	for i := range 2 * countedMoves {
		m.counts.once(fmt.Sprint(i), "opened")
	}
	if n := len(m.counts.counted); n != countedMoves {
		t.Errorf("%d moves are remembered", n)
	}
}
