package placement

import (
	"slices"
	"time"
)

// CautiousClock is the earlier of a node's own clock and the middle one of those that
// the nodes report; zero when none does. What is destroyed by age cannot be brought
// back, and one machine that woke up in another year must not decide it.
func CautiousClock(own time.Time, reported []time.Time) time.Time {
	if len(reported) == 0 {
		return time.Time{}
	}
	clocks := slices.SortedFunc(slices.Values(reported), time.Time.Compare)
	if middle := clocks[(len(clocks)-1)/2]; middle.Before(own) {
		return middle
	}
	return own
}
