// Package together has a question that several ask at the same time answered once for all of them. It
// never gives an answer that was begun before the question: an older one may not be true any more. The agent and
// the daemon use it where an answer is a program that has to be started.
package together

import (
	"context"
	"sync"
)

// Asks are the questions of one kind, told apart by their keys. The zero value is ready for use.
type Asks[K comparable, V any] struct {
	mu   sync.Mutex
	open map[K]*ask[V]
}

// ask is a question that somebody waits for.
type ask[V any] struct {
	slot    chan struct{} // who asks
	waiting int           // with him
	came    uint64        // how many have come
	known   uint64        // so many had when the last answer was begun
	answer  V
}

// Ask answers with what question returns, or with what it has returned to somebody else who began to ask
// after this call. Of each key one asks at a time. An error is only for who got it; the others ask
// themselves.
func (a *Asks[K, V]) Ask(ctx context.Context, key K, question func(context.Context) (V, error)) (v V, err error) {
	a.mu.Lock()
	if a.open == nil {
		a.open = map[K]*ask[V]{}
	}
	q := a.open[key]
	if q == nil {
		q = &ask[V]{slot: make(chan struct{}, 1)}
		a.open[key] = q
	}
	q.came++
	q.waiting++
	mine := q.came
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if q.waiting--; q.waiting == 0 {
			delete(a.open, key)
		}
	}()

	select {
	case q.slot <- struct{}{}:
		defer func() { <-q.slot }()
	case <-ctx.Done():
		return v, context.Cause(ctx)
	}
	a.mu.Lock()
	if q.known >= mine {
		defer a.mu.Unlock()
		return q.answer, nil
	}
	asked := q.came
	a.mu.Unlock()
	if v, err = question(ctx); err != nil {
		return v, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	q.known, q.answer = asked, v
	return v, nil
}
