package zfs

import (
	"testing"
	"time"
)

// A program has more to do only where that is quick, and never so much that writers wait.
func TestNextBatch(t *testing.T) {
	for name, c := range map[string]struct {
		most, n int
		took    time.Duration
		want    int
	}{
		"quick and full":         {100, 100, 100 * time.Millisecond, 200},
		"quick, but half empty":  {200, 110, 100 * time.Millisecond, 200},
		"as long as it should":   {200, 200, 500 * time.Millisecond, 200},
		"slow":                   {800, 800, time.Second, 400},
		"slow with a few":        {800, 300, time.Second, 150},
		"slow with hardly any":   {800, 3, time.Minute, 100},
		"slow with the least":    {100, 100, time.Minute, 100},
		"quick with nearly most": {800, 800, 100 * time.Millisecond, 1000},
		"quick with the most":    {1000, 1000, 100 * time.Millisecond, 1000},
	} {
		if got := nextBatch(c.most, c.n, c.took); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
