package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// group runs the parts of a node together: when one fails, all are stopped, and wait
// returns what was first to fail.
type group struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	parts  sync.WaitGroup
}

// errStopped ends a group without a failure.
var errStopped = errors.New("stopped")

func newGroup(ctx context.Context) *group {
	ctx, cancel := context.WithCancelCause(ctx)
	return &group{ctx: ctx, cancel: cancel}
}

// run starts a part. A part that returns before it was told to has failed.
func (g *group) run(name string, f func(context.Context) error) {
	g.parts.Go(func() {
		err := f(g.ctx)
		switch {
		case g.ctx.Err() != nil:
		case err == nil:
			g.cancel(fmt.Errorf("%s ended by itself", name))
		default:
			g.cancel(fmt.Errorf("%s: %w", name, err))
		}
	})
}

// wait blocks until every part has returned. It is nil when the parent context
// ended the group.
func (g *group) wait() error {
	<-g.ctx.Done()
	g.parts.Wait()
	cause := context.Cause(g.ctx)
	g.cancel(errStopped)
	if errors.Is(cause, context.Canceled) || errors.Is(cause, errStopped) {
		return nil
	}
	return cause
}
