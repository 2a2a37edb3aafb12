package replicate

import (
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// lagGrace is how much a replica may be behind, besides its interval, before it
// is called lagging.
const lagGrace = 5 * time.Second

// signs are what the state of a link is told from.
type signs struct {
	streaming string // "full", "clone", "incremental", "resume"; "" when nothing is under way
	seeding   bool   // the replica has no complete copy yet
	spoken    bool   // the replica has answered since the link began
	refused   bool   // its last answer was a refusal
	failed    bool   // the last exchange failed
	newest    guid   // of the primary; 0: none yet
	acked     guid
	behind    time.Duration // since the time up to which the replica has everything
	allowed   time.Duration // interval, settling and grace
}

// linkState tells a link's state. In sync is only what the replica has proven. A
// stream under way does not hide how far the replica is behind: it may be going to
// a machine that has no power any more.
func linkState(s signs) volume.LinkState {
	switch {
	case s.streaming != "" && s.seeding:
		return volume.LinkSeeding
	case s.streaming != "" && s.behind > s.allowed:
		return volume.LinkLagging
	case s.streaming != "":
		return volume.LinkSending
	case s.refused:
		return volume.LinkRefused
	case s.failed, !s.spoken:
		return volume.LinkConnecting
	case s.behind > s.allowed:
		return volume.LinkLagging
	case s.newest != 0 && s.acked == s.newest:
		return volume.LinkInSync
	}
	return volume.LinkSending // about to
}

// lags says that a replica which has acknowledged a whole copy is behind, also while
// linkState says that it is not reached: one that fails has not got what was snapshotted
// since, and nobody knows when it will.
func lags(s signs) bool {
	return s.acked != 0 && (s.behind > s.allowed || s.failed && s.acked != s.newest)
}
