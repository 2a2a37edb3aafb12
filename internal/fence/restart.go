package fence

import (
	"context"
	"fmt"
	"time"

	"github.com/flocker-io/flocker/internal/lease"
)

// Away is how long a fencer may be silent between its processes: the first is killed, the second is
// up in a fraction of a second. flockd, which gives the lease up and stops the writers itself when the
// fencer has been silent for too long, bears it just after it has heard of it.
const Away = 2 * time.Second

// Fresh is the time after a beat of a lease of ttl in which the fencer, and then flockd, may be
// restarted: flockd has heard of the fencer since the beat went out, and what is left of the lease
// is nearly all of it.
func Fresh(ttl time.Duration) time.Duration { return ttl / 10 }

// mayRestart is an error that says why the fencer, or flockd, must not be restarted at this moment: nobody
// would stop the writers in time, or they would be stopped for nothing. What the fencer has been told, and what
// it has done, its next process knows. That one may never come up; then flockd stops the writers, if it runs.
func (s Status) mayRestart(now lease.Moment) error {
	switch s.State {
	case PhaseIdle, PhaseFenced:
		return nil // there are no writers that it is to stop
	case PhaseArmed:
		left, ttl := s.Lease.Until.Sub(now), s.Lease.TTL
		need := max(2*Away, ttl-Fresh(ttl))
		if left < need {
			return fmt.Errorf("lease %d ends in %s, and was not renewed just now: that would leave %s at least",
				s.Lease.No, left.Round(10*time.Millisecond), need)
		}
		return nil
	default:
		return fmt.Errorf("writers are being stopped (%s)", s.State)
	}
}

// mayRestart waits until the fencer may be restarted, or ctx ends; then it says why not.
func (c *Client) mayRestart(ctx context.Context, now func() (lease.Moment, error)) error {
	for {
		s, err := c.Status(ctx)
		if err != nil {
			return err
		}
		is, err := now()
		if err != nil {
			return err
		}
		if err = s.mayRestart(is); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(poll):
		}
	}
}
