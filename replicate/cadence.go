package replicate

import (
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

const (
	minTick = volume.MinInterval
	maxTick = 15 * time.Second
	// maxUnacked snapshots may be on their way to the fastest replica. Without this
	// a slow link only piles them up.
	maxUnacked = 2
)

// pulse is what decides whether one volume is due.
type pulse struct {
	frozen   bool
	replicas int
	interval time.Duration
	since    time.Duration // since the newest was taken; negative: not in this process
	unacked  int           // engine snapshots that the fastest replica lacks
	none     bool          // there is no engine snapshot of this epoch yet
	userTop  bool          // the newest snapshot is not the engine's: a user's, or a scheduled one
	written  int64
	moved    bool // the hint says that something was written
}

// due says whether a volume gets a snapshot in this tick.
func due(p pulse) bool {
	switch {
	case p.frozen, p.replicas == 0:
		return false
	case p.none:
		return true
	case p.unacked >= maxUnacked:
		return false
	case p.userTop:
		return true // only with the engine's next one it goes to the replicas, and nobody waits an hour for that
	case p.since >= 0 && p.since < p.interval-p.interval/10:
		return false // a tenth early is better than a whole tick late
	}
	return p.written > 0 || p.moved
}

// tickEvery is the time from one tick to the next: as often as the busiest volume
// asks (0: none does), but not so often that ticks take more than half of the time. One
// that took longer than any should was stopped together with flockd.
func tickEvery(shortest, took time.Duration) time.Duration {
	every := maxTick
	if shortest > 0 {
		every = min(every, shortest)
	}
	return max(every, minTick, took+min(took, time.Minute))
}
