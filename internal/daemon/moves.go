package daemon

import (
	"slices"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/state"
)

// moveCounts has a move counted once, however many volumes go along in it. Each of them is
// carried out by itself, and tried again by itself where its end is not known; what they have in
// common is the attempt.
type moveCounts struct {
	mu      sync.Mutex
	going   map[string]*goingMove // by attempt
	counted []string              // attempts with what was counted of them, the newest last
}

type goingMove struct {
	tries  int // of its volumes, that have begun and not ended
	result string
	times  state.MoveTimes
}

// countedMoves is how many are remembered: those that are still under way when as many others
// have ended would be counted twice.
const countedMoves = 1000

// begin notes a try to carry out a volume's part of a move. What it returns is called when that
// has ended: moved or refused, or "" if it is not known, with the times of one that was made. It
// says what is to be counted then of the move: once nothing of it is under way, and each result
// once. One of which a part stays behind is both.
func (c *moveCounts) begin(attempt string) (ended func(result string, t state.MoveTimes) (count string, times state.MoveTimes)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.going == nil {
		c.going = map[string]*goingMove{}
	}
	g := c.going[attempt]
	if g == nil {
		g = &goingMove{}
		c.going[attempt] = g
	}
	g.tries++
	return func(result string, t state.MoveTimes) (string, state.MoveTimes) {
		c.mu.Lock()
		defer c.mu.Unlock()
		switch {
		case result == "moved":
			g.result, g.times = result, longest(g.times, t)
		case result != "" && g.result == "":
			g.result = result
		}
		if g.tries--; g.tries > 0 {
			return "", state.MoveTimes{}
		}
		delete(c.going, attempt)
		if g.result == "" || !c.first(attempt+" "+g.result) {
			return "", state.MoveTimes{}
		}
		return g.result, g.times
	}
}

// once says that something is told of a move for the first time.
func (c *moveCounts) once(attempt, what string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.first(attempt + " " + what)
}

// first notes what is counted. The caller has the lock.
func (c *moveCounts) first(what string) bool {
	if slices.Contains(c.counted, what) {
		return false
	}
	c.counted = append(c.counted, what)
	c.counted = c.counted[max(0, len(c.counted)-countedMoves):]
	return true
}

// longest is how long each part took that was done for each volume by itself, side by side.
func longest(a, b state.MoveTimes) state.MoveTimes {
	return state.MoveTimes{Park: max(a.Park, b.Park), Stop: max(a.Stop, b.Stop), Unmount: max(a.Unmount, b.Unmount), Copy: max(a.Copy, b.Copy), Held: max(a.Held, b.Held)}
}

// moving is agent.Config.Moving.
func (m *Metrics) moving(attempt string) (ended func(result string, t state.MoveTimes)) {
	over := m.counts.begin(attempt)
	return func(result string, t state.MoveTimes) {
		if count, times := over(result, t); count != "" {
			m.moved(count, times)
		}
	}
}

// arrived counts a move to this node whose clients go on.
func (m *Metrics) arrived(attempt string, pause time.Duration, t state.MoveTimes) {
	if m.counts.once(attempt, "opened") {
		m.opened(pause, t)
	}
}
