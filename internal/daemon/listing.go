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
// every few seconds.
type listings struct {
	replicate.Pool
	root string

	mu    sync.Mutex
	list  []zfs.Dataset
	began time.Time
}

// Datasets implements replicate.Pool.
func (l *listings) Datasets(ctx context.Context, root string) ([]zfs.Dataset, error) {
	began := time.Now()
	list, err := l.Pool.Datasets(ctx, root)
	if err == nil && root == l.root {
		l.mu.Lock()
		defer l.mu.Unlock()
		if began.After(l.began) {
			l.list, l.began = list, began
		}
	}
	return list, err
}

// newest implements agent.Config.Listed.
func (l *listings) newest() ([]zfs.Dataset, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.list, l.began
}
