package daemon

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/agent"
	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// The parts of an arrival follow one another, whatever was seen of them and in which order, and
// together they are all of it; what is told once is forgotten.
func TestArrivals(t *testing.T) {
	const id, ms = volume.ID("v"), time.Millisecond
	type seen struct {
		at    time.Duration
		epoch volume.Epoch
		part  string // of a container: its name after a blank
	}
	for name, c := range map[string]struct {
		seen []seen
		want state.ArrivalTimes
	}{
		"all of it": {
			[]seen{{0, 2, agent.PartArrival}, {10 * ms, 2, agent.PartTakeover}, {30 * ms, 2, agent.PartMount}, {60 * ms, 2, partRun}, {70 * ms, 2, partReady}},
			state.ArrivalTimes{Takeover: 10 * ms, Mount: 20 * ms, Run: 30 * ms, Ready: 10 * ms, Open: 30 * ms},
		},
		"the last container counts, and the first mount": {
			[]seen{{0, 2, agent.PartArrival}, {10 * ms, 2, agent.PartTakeover}, {20 * ms, 2, agent.PartMount}, {40 * ms, 2, partRun}, {50 * ms, 2, partReady},
				{60 * ms, 2, agent.PartMount}, {70 * ms, 2, partRun}, {80 * ms, 2, partReady}},
			state.ArrivalTimes{Takeover: 10 * ms, Mount: 10 * ms, Run: 50 * ms, Ready: 10 * ms, Open: 20 * ms},
		},
		"one is started, and another one that has been started answers": {
			[]seen{{0, 2, agent.PartArrival}, {30 * ms, 2, partRun + " a"}, {60 * ms, 2, partRun + " b"}, {80 * ms, 2, partReady + " a"}},
			state.ArrivalTimes{Run: 30 * ms, Ready: 50 * ms, Open: 20 * ms},
		},
		"one is started after another one has answered": {
			[]seen{{0, 2, agent.PartArrival}, {30 * ms, 2, partRun + " a"}, {50 * ms, 2, partReady + " a"}, {60 * ms, 2, partRun + " b"}},
			state.ArrivalTimes{Run: 30 * ms, Ready: 20 * ms, Open: 50 * ms},
		},
		"and answers, too": {
			[]seen{{0, 2, agent.PartArrival}, {30 * ms, 2, partRun + " a"}, {50 * ms, 2, partReady + " a"}, {60 * ms, 2, partRun + " b"}, {90 * ms, 2, partReady + " b"}},
			state.ArrivalTimes{Run: 60 * ms, Ready: 30 * ms, Open: 10 * ms},
		},
		"one answers whose start was not seen": {
			[]seen{{0, 2, agent.PartArrival}, {30 * ms, 2, partRun + " a"}, {50 * ms, 2, partReady + " b"}},
			state.ArrivalTimes{Ready: 50 * ms, Open: 50 * ms},
		},
		"not all was seen": {
			[]seen{{0, 2, agent.PartArrival}, {60 * ms, 2, partRun}},
			state.ArrivalTimes{Run: 60 * ms, Open: 40 * ms},
		},
		"it was started before it was mounted": {
			[]seen{{0, 2, agent.PartArrival}, {30 * ms, 2, partRun}, {50 * ms, 2, agent.PartMount}},
			state.ArrivalTimes{Mount: 50 * ms, Open: 50 * ms},
		},
		"it has come back since":       {[]seen{{0, 1, agent.PartArrival}, {10 * ms, 1, agent.PartTakeover}, {20 * ms, 2, agent.PartArrival}}, state.ArrivalTimes{Open: 80 * ms}},
		"it came before flockd began":  {[]seen{{10 * ms, 2, partRun}, {20 * ms, 2, partReady}}, state.ArrivalTimes{}},
		"what is seen is of before it": {[]seen{{0, 1, agent.PartArrival}, {10 * ms, 1, partRun}}, state.ArrivalTimes{}},
		"nothing":                      {nil, state.ArrivalTimes{}},
	} {
		var a arrivals
		zero := time.Now()
		for _, s := range c.seen {
			part, of, _ := strings.Cut(s.part, " ")
			a.note(id, s.epoch, part, of, zero.Add(s.at))
		}
		if got := a.opened(id, 2, zero.Add(100*ms)); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
		if got := a.opened(id, 2, zero.Add(200*ms)); got != (state.ArrivalTimes{}) {
			t.Errorf("%s: told twice: %+v", name, got)
		}
	}

	// Of volumes without routes nobody ever asks.
	var a arrivals
	a.note("old", 1, agent.PartArrival, "", time.Unix(0, 0))
	a.note("new", 1, agent.PartArrival, "", time.Unix(0, 0).Add(arrivalFor+1))
	if len(a.of) != 1 || a.of["new"] == nil {
		t.Errorf("%d arrivals are remembered for ever", len(a.of))
	}
}

// A list of containers is good enough for newer states for a moment, from when it was asked for; one
// that could not be had, and one that an engine has said something since, never is.
func TestLastUsers(t *testing.T) {
	asked, fails := 0, false
	var l lastUsers
	zero := time.Now()
	stirred := false
	get := func(after time.Duration) (string, error) {
		list, err := l.get(zero.Add(after), stirred, func() ([]container.Use, error) {
			asked++
			if fails {
				return nil, errors.New("no answer")
			}
			return []container.Use{{Name: fmt.Sprint(asked)}}, nil
		})
		if err != nil {
			return "", err
		}
		return list[0].Name, nil
	}
	want := func(what string, after time.Duration, name string) {
		t.Helper()
		if got, err := get(after); err != nil || got != name {
			t.Errorf("%s: list %s, %v; want %s", what, got, err, name)
		}
	}
	want("the first", 0, "1")
	want("a moment later", seenFor-1, "1")
	want("too old", seenFor, "2")
	stirred = true
	want("something has changed", seenFor+1, "3")
	stirred = false
	want("and that was seen", seenFor+2, "3")
	fails = true
	if _, err := get(3 * seenFor); err == nil {
		t.Error("a list was had of an engine that does not answer")
	}
	fails = false
	want("it answers again", 3*seenFor, "5")
}
