package daemon

import (
	"testing"
	"time"
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
