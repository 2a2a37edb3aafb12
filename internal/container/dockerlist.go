package container

import (
	"context"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// listings has those who want the list of all containers share it. Several parts of flockd look at the
// containers whenever one starts or ends, and clients may wait just then; each list costs the engine
// something for every container. Nobody gets one that began before he asked, and nobody waits for long
// for one that has not begun: an engine that does not answer one of them may answer the next.
type listings struct {
	once sync.Once
	turn chan struct{} // has room for the one who lists

	mu   sync.Mutex
	next *listing // not begun; nil: there is none
}

// listing is one of them. list and err are known when over is closed.
type listing struct {
	over chan struct{}
	list []container.Summary
	err  error
}

// turnPatience is how long somebody waits for his turn, or another's list, before he lists beside them: so
// that most of the time that he has for it is left to his own.
const turnPatience = 2 * time.Second

// get gives a list that began after the call, by list or by somebody else's. Nobody may change it.
func (l *listings) get(ctx context.Context, list func(context.Context) ([]container.Summary, error)) ([]container.Summary, error) {
	l.once.Do(func() { l.turn = make(chan struct{}, 1) })
	l.mu.Lock()
	if l.next == nil {
		l.next = &listing{over: make(chan struct{})}
	}
	mine := l.next
	l.mu.Unlock()
	patience := time.NewTimer(turnPatience)
	defer patience.Stop()
	select {
	case <-mine.over:
		return mine.list, mine.err
	case <-patience.C:
		return list(ctx)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case l.turn <- struct{}{}:
	}
	defer func() { <-l.turn }()
	select {
	case <-mine.over: // while this one waited for its turn
		return mine.list, mine.err
	default:
	}
	l.mu.Lock()
	if l.next == mine {
		l.next = nil // who comes now has to have a later one
	}
	l.mu.Unlock()
	all, err := list(ctx)
	if err != nil && ctx.Err() != nil {
		return nil, err // of this caller alone: another one who waits for it lists in its place
	}
	mine.list, mine.err = all, err
	close(mine.over)
	return all, err
}

// all lists all containers.
func (d *Docker) all(ctx context.Context, c *client.Client) ([]container.Summary, error) {
	return d.lists.get(ctx, func(ctx context.Context) ([]container.Summary, error) {
		got, err := c.ContainerList(ctx, client.ContainerListOptions{All: true})
		return got.Items, err
	})
}
