package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// errDiskHangs is why a node stops whose disk does not answer.
var errDiskHangs = errors.New("the disk of the state directory hangs")

// canaryEvery is the time between two tries while this node leads.
const canaryEvery = 2 * time.Second

// canary stops a leader whose disk hangs. Such a leader keeps sending heartbeats, so
// nobody else is elected, but commits nothing. Followers need no canary: the others
// go on without them.
func (c *Cluster) canary(ctx context.Context) {
	limit := c.cfg.Timing.Canary
	result := make(chan error, 1)
	var began time.Time // of the write under way
	ticker := time.NewTicker(min(time.Second, limit/4))
	defer ticker.Stop()
	last := time.Time{}
	for {
		var finished <-chan error
		if !began.IsZero() {
			finished = result
		}
		select {
		case <-ctx.Done():
			// The write, if there is one, ends before Run returns; or it hangs, and
			// then Run does not wait for us.
			if finished != nil {
				<-finished
			}
			return
		case err := <-finished:
			began = time.Time{}
			if err != nil {
				c.log.Error("cannot write to the state directory", "err", err)
			}
		case <-ticker.C:
		}
		if !c.IsLeader() {
			continue
		}
		now := time.Now()
		switch {
		case !began.IsZero() && now.Sub(began) > limit:
			c.fail(fmt.Errorf("%w: a small file was not written in %s", errDiskHangs, limit))
			began = time.Now()
		case c.io.stuck(now) > limit:
			c.fail(fmt.Errorf("%w: an entry of the Raft log was not written in %s", errDiskHangs, limit))
		case began.IsZero() && now.Sub(last) >= canaryEvery:
			began, last = now, now
			go func() { result <- c.disk.Write(fileCanary, []byte(now.UTC().Format(time.RFC3339Nano))) }()
		}
	}
}

// A leader whose disk is slow, but does not hang, commits, and keeps its followers; yet
// what waits for its proofs, as the beats of leases do, waits too long, and every node
// stops its writers. So after slowBarriers in a row that took longer than the others wait
// for each other, it hands leadership over; not again for a while, since the other disks
// may be no better, and each new leader has to wait for everybody anew.
const (
	slowBarriers = 3
	slowAgain    = 2 * time.Minute
	leastSlow    = 1500 * time.Millisecond
)

// sluggish counts slow Barriers. It is not safe for concurrent use.
type sluggish struct {
	late int
	rest time.Time // until then leadership is kept
}

// note a Barrier. It returns true when leadership is to be handed over.
func (s *sluggish) note(now time.Time, took, limit time.Duration) bool {
	if took <= limit {
		s.late = 0
		return false
	}
	if s.late++; s.late < slowBarriers || now.Before(s.rest) {
		return false
	}
	s.late, s.rest = 0, now.Add(slowAgain)
	return true
}

// giveWay hands leadership over because this node's disk is slow.
func (c *Cluster) giveWay() {
	c.log.Warn("the Raft log is written slowly here; handing leadership over", "barriers", slowBarriers, "each", ">"+c.slowBarrier().String())
	ctx, cancel := context.WithTimeout(c.stopCtx, 2*c.cfg.Timing.Election)
	defer cancel()
	if err := c.Abdicate(ctx); err != nil {
		c.log.Warn("no other node can lead, and leases are renewed late", "err", err)
	}
}

func (c *Cluster) slowBarrier() time.Duration { return max(c.cfg.Timing.Heartbeat, leastSlow) }

// ioWatch knows since when a write of the Raft log is under way. Raft writes from
// one goroutine.
type ioWatch struct {
	since atomic.Int64 // Unix nanoseconds; 0 when none is
}

func (w *ioWatch) stuck(now time.Time) time.Duration {
	since := w.since.Load()
	if since == 0 {
		return 0
	}
	return now.Sub(time.Unix(0, since))
}

func (w *ioWatch) wrap(s raft.LogStore) raft.LogStore { return watchedLogs{s, w} }

type watchedLogs struct {
	raft.LogStore
	watch *ioWatch
}

func (l watchedLogs) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

func (l watchedLogs) StoreLogs(entries []*raft.Log) error {
	l.watch.since.Store(time.Now().UnixNano())
	defer l.watch.since.Store(0)
	return l.LogStore.StoreLogs(entries)
}
