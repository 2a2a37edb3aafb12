package fence

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// instead does the stopper's work in a process that is not the fencer, for once. It
// returns nil when a look has found nothing, and what stands in the way when ctx ends.
func (f *Fencer) instead(ctx context.Context, root string) error {
	f.mu.Lock()
	r := f.r
	if r.Lease.Root == "" {
		r.Lease.Root = root
	}
	r.stop(r.Lease.No, "the fencer does not run")
	if err := f.become(r); err != nil {
		f.log.Error("the fencer's state is not written", "err", err)
	}
	c := campaign{no: f.no}
	f.mu.Unlock()
	for ctx.Err() == nil {
		pause := f.round(ctx, r, &c)
		if !c.going {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return fmt.Errorf("stopping all writers without the fencer: %w", errors.Join(errors.New(f.problem), ctx.Err()))
}
