package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// NotLeaderError says whom to ask instead.
type NotLeaderError struct {
	Leader volume.NodeID
	Name   string
}

func (e *NotLeaderError) Error() string {
	return fmt.Sprintf("this node is not the leader; %s is", e.Name)
}

// Unwrap gives it the code "unavailable".
func (e *NotLeaderError) Unwrap() error {
	return &volume.Error{Code: volume.CodeUnavailable, Message: e.Error()}
}

// ErrIndeterminate is in the chain of an error that leaves open whether a command
// took or will take effect. Proposing the same Envelope with the same Request again
// is safe and tells.
var ErrIndeterminate = errors.New("the outcome is not known")

// enqueueTimeout is how long a command may wait for Raft to take it up.
const enqueueTimeout = 5 * time.Second

// Propose a command on the leader and wait until this node has applied it. The
// Result says whether the state machine accepted it. The error is a *NotLeaderError
// on another node, has CodeNoQuorum when there is no leader, and has ErrIndeterminate
// in its chain when the command may still take effect; after any other error it never
// will.
func (c *Cluster) Propose(ctx context.Context, e state.Envelope) (state.Result, error) {
	if c.raft.Load() == nil {
		return state.Result{}, errStarting
	}
	// The very first command makes the cluster; others wait for it.
	select {
	case <-c.initialised:
	case <-c.stopCtx.Done():
		return state.Result{}, ErrStopped
	case <-ctx.Done():
		return state.Result{}, context.Cause(ctx)
	}
	return c.propose(ctx, e)
}

func (c *Cluster) propose(ctx context.Context, e state.Envelope) (state.Result, error) {
	r := c.raft.Load()
	if r == nil {
		return state.Result{}, errStarting
	}
	if e.At.IsZero() {
		e.At = time.Now()
	}
	b, err := state.Encode(e)
	if err != nil {
		return state.Result{}, err
	}
	f := r.Apply(b, enqueueTimeout)
	if err := c.await(ctx, f); err != nil {
		return state.Result{}, c.raftError(r, err)
	}
	switch res := f.Response().(type) {
	case state.Result:
		return res, nil
	case error:
		return state.Result{}, res
	}
	return state.Result{}, errors.New("raft gave no answer")
}

// await waits for a future of Raft or the end of ctx, whichever comes first.
func (c *Cluster) await(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	if !c.goRun(func() { done <- f.Error() }) {
		return raft.ErrRaftShutdown
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrIndeterminate, context.Cause(ctx))
	}
}

// raftError says in our words what an error of Raft means.
func (c *Cluster) raftError(r *raft.Raft, err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		// Never proposed.
		leader, ok := c.Leader()
		if !ok || leader == c.record.Node {
			return c.noLeader()
		}
		return &NotLeaderError{Leader: leader, Name: c.State().NodeName(leader)}
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return volume.Errorf(volume.CodeUnavailable, "the leader is too busy to take up the change").WithHint("try again")
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrAbortedByRestore):
		return fmt.Errorf("%w: %w", &volume.Error{
			Code: volume.CodeTimeout, Message: "leadership was lost while the change was being agreed on; it may still happen",
		}, ErrIndeterminate)
	case errors.Is(err, raft.ErrRaftShutdown):
		return fmt.Errorf("%w: %w", ErrStopped, ErrIndeterminate)
	case errors.Is(err, ErrIndeterminate):
		return fmt.Errorf("%w: %w", &volume.Error{
			Code: volume.CodeTimeout, Message: "the change was not agreed on in time; it may still happen",
		}, err)
	}
	return err
}

func (c *Cluster) noLeader() error {
	return volume.Errorf(volume.CodeNoQuorum, "the cluster has no leader now, so nothing can be changed").
		WithHint("wait a few seconds; if it lasts, too few of the voting nodes are up or can reach one another (see `flockctl status`)")
}

// barrierBatch lets concurrent callers share one Barrier. A caller may only share
// one that starts after the call: an earlier one proves nothing about now.
type barrierBatch struct {
	mu      sync.Mutex
	running bool
	next    *barrierRound
	slow    sluggish // of whoever runs them
}

type barrierRound struct {
	done  chan struct{}
	index uint64
	err   error
}

// Barrier proves that this node is the leader at some moment after the call: an
// entry of its term was committed by a majority. The index is that of the newest
// state that can have been known to anybody when the call was made.
func (c *Cluster) Barrier(ctx context.Context) (index uint64, err error) {
	round, err := c.nextBarrier()
	if err != nil {
		return 0, err
	}
	select {
	case <-round.done:
		return round.index, round.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// Nudge makes the other nodes hear at once of what this node, the leader, has committed by now. They hear
// of it with its next message, which is sent after a while, or with the next entry: a barrier is one.
// It waits for nothing and promises nothing.
func (c *Cluster) Nudge() {
	if _, err := c.nextBarrier(); err != nil {
		c.log.Debug("others hear of a commit a little later", "err", err)
	}
}

// nextBarrier joins the first that begins after the call.
func (c *Cluster) nextBarrier() (*barrierRound, error) {
	r := c.raft.Load()
	if r == nil {
		return nil, errStarting
	}
	b := &c.barrier
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == nil {
		b.next = &barrierRound{done: make(chan struct{})}
	}
	round := b.next
	if !b.running {
		if !c.goRun(func() { c.runBarriers(r) }) {
			b.next = nil
			return nil, ErrStopped
		}
		b.running = true
	}
	return round, nil
}

// runBarriers until nobody waits for one.
func (c *Cluster) runBarriers(r *raft.Raft) {
	b := &c.barrier
	for {
		b.mu.Lock()
		round := b.next
		b.next = nil
		if round == nil {
			b.running = false
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		began := time.Now()
		if err := r.Barrier(enqueueTimeout).Error(); err != nil {
			round.err = c.raftError(r, err)
		} else {
			round.index = c.State().Index
		}
		close(round.done)
		if now := time.Now(); b.slow.note(now, now.Sub(began), c.slowBarrier()) {
			c.goRun(c.giveWay)
		}
	}
}
