package cluster

import (
	"testing"
	"time"
)

// A leader hands over after three slow Barriers in a row, and then not for a while.
func TestSluggish(t *testing.T) {
	const limit = time.Second
	var s sluggish
	now := time.Unix(0, 0)
	for i, step := range []struct {
		after, took time.Duration
		want        bool
	}{
		{0, 2 * time.Second, false},
		{0, 2 * time.Second, false},
		{0, limit, false}, // not in a row
		{0, 2 * time.Second, false},
		{0, 2 * time.Second, false},
		{0, 2 * time.Second, true},
		{0, 2 * time.Second, false}, // it leads again, or nobody else can
		{0, 2 * time.Second, false},
		{time.Second, 2 * time.Second, false},
		{slowAgain, 2 * time.Second, true},
	} {
		now = now.Add(step.after)
		if got := s.note(now, step.took, limit); got != step.want {
			t.Errorf("step %d: %v, want %v", i, got, step.want)
		}
	}
}
