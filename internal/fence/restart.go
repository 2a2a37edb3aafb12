package fence

import (
	"context"
	"fmt"
	"time"

	"github.com/flocker-io/flocker/internal/lease"
)

// away is how long a fencer may take to be there again after a restart: its process ends when the
// step that it is at has ended, or has been waited for, and the next one is up in a fraction of a
// second. It fits into what is left of the shortest lease just after a beat.
const away = 4 * time.Second

// mayRestart is an error that says why the fencer must not be restarted at this moment: nobody would
// stop the writers in time. What it has been told, and what it has done, its next process knows. That one may
// never come up; then flockd stops the writers, if it runs.
func (s Status) mayRestart(now lease.Moment) error {
	switch s.State {
	case PhaseIdle, PhaseFenced:
		return nil // there are no writers that it is to stop
	case PhaseArmed:
		if left := s.Lease.Until.Sub(now); left < away {
			return fmt.Errorf("lease %d ends in %s, and the fencer has to be there then", s.Lease.No, left.Round(10*time.Millisecond))
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
