package agent

import (
	"context"
	"sync"

	"github.com/flocker-io/flocker/internal/volume"
)

// locks is one lock per volume, taken with a context. Channels, not mutexes, so
// that a waiter can give up and a test bubble can see it wait.
type locks struct {
	mu   sync.Mutex
	held map[volume.ID]chan struct{} // closed at unlock
}

func (l *locks) lock(ctx context.Context, id volume.ID) (unlock func(), err error) {
	for {
		l.mu.Lock()
		if l.held == nil {
			l.held = map[volume.ID]chan struct{}{}
		}
		busy, taken := l.held[id]
		if !taken {
			mine := make(chan struct{})
			l.held[id] = mine
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.held, id)
				l.mu.Unlock()
				close(mine)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
