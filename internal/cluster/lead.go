package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/flocker-io/flocker/internal/volume"
)

// ErrLeadershipLost is the cause of the end of the context that Lead gives.
var ErrLeadershipLost = errors.New("this node is no longer the leader")

// leadership is what Raft's notifications say. Each time that this node becomes
// leader is a reign of its own.
type leadership struct {
	mu      sync.Mutex
	reign   uint64
	leader  bool
	changed notifier
}

// watch takes Raft's notifications. Raft blocks on them, so nothing here waits.
func (l *leadership) watch(ctx context.Context, notify <-chan bool) {
	defer l.set(false)
	for {
		select {
		case leader := <-notify:
			l.set(leader)
		case <-ctx.Done():
			return
		}
	}
}

func (l *leadership) set(leader bool) {
	l.mu.Lock()
	if leader {
		l.reign++
	}
	l.leader = leader
	l.mu.Unlock()
	l.changed.notify()
}

// now is the present reign; ok is false when this node does not lead.
func (l *leadership) now() (reign uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reign, l.leader
}

// next waits for a reign other than last.
func (l *leadership) next(ctx context.Context, last uint64) (uint64, error) {
	for {
		changed := l.changed.wait()
		if reign, ok := l.now(); ok && reign != last {
			return reign, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// over waits for the end of a reign.
func (l *leadership) over(ctx context.Context, reign uint64) {
	for {
		changed := l.changed.wait()
		if now, ok := l.now(); !ok || now != reign {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// Leader of the cluster as this node knows it; ok is false when it knows none.
func (c *Cluster) Leader() (id volume.NodeID, ok bool) {
	r := c.raft.Load()
	if r == nil {
		return "", false
	}
	_, leader := r.LeaderWithID()
	return volume.NodeID(leader), leader != ""
}

// IsLeader says whether this node leads. It may have been deposed without knowing;
// only Barrier proves.
func (c *Cluster) IsLeader() bool {
	_, ok := c.lead.now()
	return ok
}

// Lead runs f each time that this node is leader, after a Barrier, so that f sees
// all that earlier leaders have done. The context of f ends, with the cause
// ErrLeadershipLost, when this node is deposed; f is always joined before it is run
// again. When f returns nil it is not run again before the next reign. When it
// returns an error while leading, that is logged, leadership is handed to another
// node, and f is tried again after a while should this one still lead. Lead returns
// when ctx ends or the node stops.
func (c *Cluster) Lead(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(c.stopCtx, func() { cancel(ErrStopped) })()

	var done uint64 // the reign in which f has said that it is done
	for {
		reign, err := c.lead.next(ctx, done)
		if err != nil {
			return err
		}
		if _, err := c.Barrier(ctx); err != nil {
			if !sleep(ctx, c.cfg.Timing.Heartbeat/4) {
				return context.Cause(ctx)
			}
			continue
		}
		err = c.reignOnce(ctx, reign, f)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if now, ok := c.lead.now(); !ok || now != reign {
			continue // the end of leadership explains whatever f returned
		}
		if err == nil {
			done = reign
			continue
		}
		c.log.Error("work of the leader failed; handing leadership over", "err", err)
		if err := c.Abdicate(ctx); err != nil {
			c.log.Info("no other node can lead", "err", err)
		}
		if !sleep(ctx, c.cfg.Timing.Retry) {
			return context.Cause(ctx)
		}
	}
}

// reignOnce runs f under a context that ends with the reign.
func (c *Cluster) reignOnce(ctx context.Context, reign uint64, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		c.lead.over(ctx, reign)
		cancel(ErrLeadershipLost)
	})
	err := f(ctx)
	cancel(nil)
	wg.Wait()
	return err
}

// Abdicate hands leadership to another voter.
func (c *Cluster) Abdicate(ctx context.Context) error {
	r := c.raft.Load()
	if r == nil {
		return errStarting
	}
	if len(votersOf(r)) < 2 {
		return volume.Errorf(volume.CodeRefused, "there is no other voter to hand leadership to")
	}
	if err := c.await(ctx, r.LeadershipTransfer()); err != nil {
		return fmt.Errorf("handing leadership over: %w", c.raftError(r, err))
	}
	return nil
}

// votersOf are the voters of Raft's latest configuration.
func votersOf(r *raft.Raft) []volume.NodeID {
	f := r.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	var out []volume.NodeID
	for _, s := range f.Configuration().Servers {
		if s.Suffrage == raft.Voter {
			out = append(out, volume.NodeID(s.ID))
		}
	}
	return out
}
