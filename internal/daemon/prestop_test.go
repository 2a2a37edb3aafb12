package daemon

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestCopyAhead: copies that took so many milliseconds, when two are wanted and at most one
// second is allowed (or anything: 0), and whether there is to be another one.
func TestCopyAhead(t *testing.T) {
	for _, c := range []struct {
		took  string
		limit time.Duration
		more  bool
	}{
		{"", time.Second, true},
		{"50", time.Second, true},
		{"50 40", time.Second, false},
		{"5000 50", time.Second, false},
		{"5000 3000", time.Second, true},
		{"5000 3000 1500", time.Second, true},
		{"5000 3000 1500 900", time.Second, false},
		{"5000 4500", time.Second, false},
		{"5000 3000 2900", time.Second, false},
		{"5000 3000", 0, false},
		{"90000 60000 40000 20000 10000 5000 3000 2000", time.Second, false},
	} {
		var a copyAhead
		for _, word := range strings.Fields(c.took) {
			var ms int
			if _, err := fmt.Sscan(word, &ms); err != nil {
				t.Fatal(err)
			}
			a.took = append(a.took, time.Duration(ms)*time.Millisecond)
		}
		if got := a.more(2, c.limit); got != c.more {
			t.Errorf("after %q, at most %s: another one %v, want %v", c.took, c.limit, got, c.more)
		}
	}
}
