package daemon

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

// promiseLimit is how long one promise may take, from its turn on, before it begins anew: what hangs so long
// is not slow.
const promiseLimit = 2 * time.Minute

// promises are what this node is promising. On a node that is slow one takes longer than
// a call for it may last: it is made without the call, and the next one gets what came of
// it, or each would begin anew and none would ever end. A promise stays true, so for
// askFresh from the first call that got it, it is what every call gets: a node that owes many is asked again about each
// after a while. What failed is told once.
type promises struct {
	read  func(context.Context, volume.ID, volume.Epoch) (volume.Promise, error)
	slots chan struct{} // bounds how many copies are read at the same time

	mu      sync.Mutex
	life    context.Context // what goes on ends with it; nil before run, and after
	under   sync.WaitGroup
	entries map[volume.ID]*promising
}

type promising struct {
	epoch  volume.Epoch
	cancel context.CancelFunc
	over   chan struct{} // closed when the rest is known
	out    volume.Promise
	err    error
	told   time.Time // when it was first told; zero: not yet. promises.mu guards it
}

// old says that it was told so long ago that the disk is to be read again.
func (e *promising) old() bool {
	select {
	case <-e.over:
		return !e.told.IsZero() && time.Since(e.told) >= askFresh
	default:
		return false
	}
}

func newPromises(read func(context.Context, volume.ID, volume.Epoch) (volume.Promise, error)) *promises {
	return &promises{read: read, slots: make(chan struct{}, promisesAtOnce), entries: map[volume.ID]*promising{}}
}

// run has promises made until ctx ends, and joins them. One that nobody needs any more, as
// electing says whenever changed has rung, is ended: it would be in the way of what comes
// then.
func (p *promises) run(ctx context.Context, electing func(volume.ID, volume.Epoch) bool, changed func() <-chan struct{}) error {
	p.mu.Lock()
	p.life = ctx
	p.mu.Unlock()
	for ctx.Err() == nil {
		news := changed()
		p.keep(electing)
		select {
		case <-news:
		case <-ctx.Done():
		}
	}
	p.mu.Lock()
	p.life = nil
	p.mu.Unlock()
	p.under.Wait()
	return nil
}

func (p *promises) keep(electing func(volume.ID, volume.Epoch) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, e := range p.entries {
		if !electing(id, e.epoch) {
			e.cancel()
			delete(p.entries, id)
		}
	}
}

// get is the promise of an epoch of a volume, which is being made from now on if it is not
// yet. When ctx ends before, it goes on, and the answer says so.
func (p *promises) get(ctx context.Context, v api.PromiseFor) (a api.PromiseAnswer) {
	a.ID = v.ID
	e := p.begin(v)
	if e == nil {
		a.Error, a.Reading = "this node is starting or stopping", true
		return a
	}
	select {
	case <-e.over:
	case <-ctx.Done():
		a.Error, a.Reading = "it is still reading its copy", true
		return a
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case e.err == nil:
		a.Promise = e.out
		if e.told.IsZero() {
			e.told = time.Now()
		}
	default:
		a.Error = e.err.Error()
		if p.entries[v.ID] == e {
			delete(p.entries, v.ID)
		}
	}
	return a
}

// begin finds the promise that is being made, or that was made a moment ago, or begins
// one. Nil when the node stops.
func (p *promises) begin(v api.PromiseFor) *promising {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.entries[v.ID]; e != nil && e.epoch == v.Epoch && !e.old() {
		return e
	} else if e != nil {
		e.cancel() // of another epoch, or over
	}
	if p.life == nil {
		return nil
	}
	ctx, cancel := context.WithCancel(p.life)
	e := &promising{epoch: v.Epoch, cancel: cancel, over: make(chan struct{})}
	p.entries[v.ID] = e
	p.under.Go(func() {
		defer close(e.over)
		defer cancel()
		select {
		case p.slots <- struct{}{}:
			defer func() { <-p.slots }()
			limited, end := context.WithTimeoutCause(ctx, promiseLimit, fmt.Errorf("its copy could not be read within %s", promiseLimit))
			defer end()
			e.out, e.err = p.read(limited, v.ID, v.Epoch)
		case <-ctx.Done():
			e.err = context.Cause(ctx)
		}
	})
	return e
}
