package agent

import (
	"context"
	"sync"

	"github.com/flocker-io/flocker/internal/volume"
)

// locks is one lock per volume, taken with a context: by one alone, or by any number who
// share it. Channels, not mutexes, so that a waiter can give up and a test bubble can see it
// wait.
type locks struct {
	mu   sync.Mutex
	held map[volume.ID]*hold
}

// hold is a lock that is taken.
type hold struct {
	over   chan struct{} // closed at the last unlock
	shares int           // 0: by one alone
	wanted bool          // by somebody alone: nobody else joins, or sharers could keep him out for ever
}

func (l *locks) lock(ctx context.Context, id volume.ID) (unlock func(), err error) {
	return l.take(ctx, id, false)
}

// share keeps out who wants the volume alone, and nobody else who shares it.
func (l *locks) share(ctx context.Context, id volume.ID) (unlock func(), err error) {
	return l.take(ctx, id, true)
}

func (l *locks) take(ctx context.Context, id volume.ID, share bool) (unlock func(), err error) {
	for {
		l.mu.Lock()
		if l.held == nil {
			l.held = map[volume.ID]*hold{}
		}
		h := l.held[id]
		if h == nil {
			h = &hold{over: make(chan struct{})}
			l.held[id] = h
			if share {
				h.shares = 1
			}
			l.mu.Unlock()
			return func() { l.free(id, h) }, nil
		}
		if share && h.shares > 0 && !h.wanted {
			h.shares++
			l.mu.Unlock()
			return func() { l.free(id, h) }, nil
		}
		h.wanted = h.wanted || !share
		l.mu.Unlock()
		select {
		case <-h.over:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (l *locks) free(id volume.ID, h *hold) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h.shares--; h.shares > 0 {
		return
	}
	delete(l.held, id)
	close(h.over)
}
