package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/agent"
	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/fence"
)

// retired is a node that was taken out of its cluster: why, and what is still wrong. It
// serves nobody's volumes any more, and says so to whoever asks.
type retired struct {
	why error

	mu      sync.Mutex
	problem string
}

// status is what such a node says of itself.
func (r *retired) status(version string) api.ClusterStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := api.ClusterStatus{Version: version, Retired: r.why.Error()}
	if r.problem != "" {
		s.Problems = []string{r.problem}
	}
	return s
}

func (r *retired) note(problem string) (news bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	news = problem != r.problem
	r.problem = problem
	return news
}

// stopAgain is the time between two attempts to stop writers.
const stopAgain = 5 * time.Second

// stopWriters ends what still uses this node's volumes: another node may be the primary of
// each by now, and what is written here reaches nobody any more. It returns once that is
// verified, or when the node joins again or ctx ends.
func (d *Daemon) stopWriters(ctx context.Context, r *retired) {
	setup, err := readSetup(d.parts.StateDir)
	if d.parts.Pool != "" {
		setup.Pool = d.parts.Pool
	}
	if err == nil && setup.Pool == "" {
		return // it kept no data
	}
	root := agent.Layout{Pool: setup.Pool}.Root()
	d.log.Error("this node is no member of its cluster any more; whatever uses its volumes is stopped", "err", r.why)
	for ctx.Err() == nil && len(d.joined) == 0 {
		if err == nil {
			err = d.stopOnce(ctx, root)
		}
		if err == nil {
			r.note("")
			return
		}
		if r.note(fmt.Sprintf("what uses this node's volumes could not be stopped: %v", err)) {
			d.log.Error("writers cannot be stopped; it is tried again", "err", err)
		}
		pause(ctx, stopAgain)
		err = nil
	}
}

// retiredHold tells our own stop from an operator's.
const retiredHold = "this node is no member of its cluster any more"

// stopOnce asks the fencer, or does it here where there is none.
func (d *Daemon) stopOnce(ctx context.Context, root string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := errors.New("this node has no fencer")
	if f := d.parts.Fencer; f != nil {
		var s fence.Status
		s, err = f.Status(ctx)
		switch {
		case err != nil:
		case s.Operator && s.Reason != retiredHold && s.State == fence.PhaseFenced:
			return nil // an operator keeps them stopped
		case s.Operator && s.Reason != retiredHold:
			return errors.New("the writers that an operator wants stopped still run")
		default:
			// Also where an attempt of before has not come to its end.
			_, err = f.Hold(ctx, root, retiredHold)
		}
		if err == nil {
			// Nothing can be mounted any more, so nothing has to be held back.
			_, err = f.Lift(ctx)
			return err
		}
	}
	if d.parts.StopWriters != nil {
		return d.parts.StopWriters(ctx, root)
	}
	return err
}
