package daemon

import (
	"context"
	"sync"
	"time"

	"github.com/flocker-io/flocker/replicate"
	"github.com/flocker-io/flocker/zfs"
)

// listings are those that replication makes of the volumes' datasets, kept for the
// agent: one listing costs ZFS something for every dataset, and both would make one
// every few seconds. Whoever asks for one while one is under way gets the next, with all
// others who have asked by then: each is of a time after it was asked for, and there is one at a time.
type listings struct {
	replicate.Pool
	root string
	turn chan struct{} // of the one that zfs makes

	mu    sync.Mutex
	list  []zfs.Dataset
	began time.Time
	next  *listing // that has not begun; nil: nobody waits for one
}

// listing is one that several share.
type listing struct {
	over  chan struct{} // closed when the rest is known
	list  []zfs.Dataset
	err   error
	ended bool // who was to make it has given up
}

func newListings(pool replicate.Pool, root string) *listings {
	return &listings{Pool: pool, root: root, turn: make(chan struct{}, 1)}
}

// Datasets implements replicate.Pool.
func (l *listings) Datasets(ctx context.Context, root string) ([]zfs.Dataset, error) {
	if root != l.root {
		return l.Pool.Datasets(ctx, root)
	}
	for {
		l.mu.Lock()
		all := l.next
		if all == nil {
			all = &listing{over: make(chan struct{})}
			l.next = all
			l.mu.Unlock()
			l.make(ctx, all)
			return all.list, all.err
		}
		l.mu.Unlock()
		select {
		case <-all.over:
			if !all.ended {
				return all.list, all.err
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// make has zfs make a listing when the one before is over.
func (l *listings) make(ctx context.Context, all *listing) {
	defer close(all.over)
	waits := true
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
		waits = false
	case <-ctx.Done():
	}
	began := time.Now()
	l.mu.Lock()
	l.next = nil
	l.mu.Unlock()
	if waits {
		all.err, all.ended = context.Cause(ctx), true
		return
	}
	all.list, all.err = l.Pool.Datasets(ctx, l.root)
	all.ended = all.err != nil && ctx.Err() != nil
	if all.err == nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.list, l.began = all.list, began
	}
}

// newest implements agent.Config.Listed.
func (l *listings) newest() ([]zfs.Dataset, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.list, l.began
}
