package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

// reader is a disk whose copies take a time to read.
type reader struct {
	mu    sync.Mutex
	takes time.Duration
	err   error
	reads int
	now   int // under way
	most  int
	ended error // why the last read was cut short
}

func (r *reader) read(ctx context.Context, _ volume.ID, epoch volume.Epoch) (volume.Promise, error) {
	r.mu.Lock()
	r.reads++
	r.now++
	r.most = max(r.most, r.now)
	takes, err := r.takes, r.err
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.now--
		r.mu.Unlock()
	}()
	select {
	case <-time.After(takes):
		return volume.Promise{Epoch: epoch, Exists: true}, err
	case <-ctx.Done():
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ended = context.Cause(ctx)
		return volume.Promise{}, r.ended
	}
}

// disk is what there is to see of a reader.
type disk struct {
	reads, now, most int
	ended            error
}

func (r *reader) seen() disk {
	r.mu.Lock()
	defer r.mu.Unlock()
	return disk{r.reads, r.now, r.most, r.ended}
}

// fail has all that is read from now on fail so.
func (r *reader) fail(err error) {
	r.mu.Lock()
	r.err = err
	r.mu.Unlock()
}

// promisingNode runs promises of one node in a bubble. Which epoch is being elected is that of
// the pointer.
func promisingNode(t *testing.T, takes time.Duration, test func(r *reader, p *promises, epoch *volume.Epoch, changed chan struct{})) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &reader{takes: takes}
		p := newPromises(r.read)
		ctx, cancel := context.WithCancel(context.Background())
		epoch, changed := volume.Epoch(2), make(chan struct{}, 1)
		var running sync.WaitGroup
		running.Go(func() {
			p.run(ctx, func(_ volume.ID, e volume.Epoch) bool { return e == epoch }, func() <-chan struct{} { return changed })
		})
		synctest.Wait()
		test(r, p, &epoch, changed)
		cancel()
		running.Wait()
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.now != 0 {
			t.Errorf("%d copies are still being read", r.now)
		}
	})
}

func call(p *promises, id volume.ID, epoch volume.Epoch) api.PromiseAnswer {
	ctx, cancel := context.WithTimeout(context.Background(), promiseTime)
	defer cancel()
	return p.get(ctx, api.PromiseFor{ID: id, Epoch: epoch})
}

// What takes longer than a call is read once, however often it is asked for, and again only
// when it is old.
func TestPromiseOutlivesItsCall(t *testing.T) {
	promisingNode(t, 5*promiseTime/2, func(r *reader, p *promises, _ *volume.Epoch, _ chan struct{}) {
		for i := range 3 {
			if a := call(p, "v", 2); a.Reading != (i < 2) || a.Reading == a.Promise.Exists || a.Reading != (a.Error != "") {
				t.Errorf("call %d: %+v", i+1, a)
			}
		}
		time.Sleep(askFresh - time.Second)
		if a := call(p, "v", 2); !a.Promise.Exists || r.seen().reads != 1 {
			t.Errorf("a moment later: %+v, read %d times", a, r.seen().reads)
		}
		time.Sleep(time.Second)
		if a := call(p, "v", 2); !a.Reading || r.seen().reads != 2 {
			t.Errorf("when it is old: %+v, read %d times", a, r.seen().reads)
		}
	})
}

// After the loss of a node many are asked for. The last of them has its whole time when its turn comes, and is kept until
// somebody gets it.
func TestPromisesInTurn(t *testing.T) {
	const each, many = promiseLimit * 3 / 4, 4 * promisesAtOnce
	promisingNode(t, each, func(r *reader, p *promises, _ *volume.Epoch, _ chan struct{}) {
		var asked sync.WaitGroup
		for i := range many {
			asked.Go(func() { call(p, volume.ID(fmt.Sprint(i)), 2) })
		}
		asked.Wait()
		time.Sleep(each*many/promisesAtOnce + 2*askFresh)
		for i := range many {
			if a := call(p, volume.ID(fmt.Sprint(i)), 2); !a.Promise.Exists {
				t.Errorf("%d: %+v", i, a)
			}
		}
		if got := r.seen(); got.reads != many || got.most != promisesAtOnce {
			t.Errorf("%d reads for %d, %d at a time", got.reads, many, got.most)
		}
	})
}

// Of what a node owes more answers to than one call has room for, what was never asked comes first, then what has waited
// longest, and last what it has promised.
func TestAskedFirst(t *testing.T) {
	begin := time.Now()
	at := func(s int) time.Time { return begin.Add(time.Duration(s) * time.Second) }
	all := []toAsk{
		{api.PromiseFor{ID: "promised"}, true, at(1)}, {api.PromiseFor{ID: "late"}, false, at(3)}, {api.PromiseFor{ID: "never"}, false, time.Time{}},
		{api.PromiseFor{ID: "promised before"}, true, at(0)}, {api.PromiseFor{ID: "later"}, false, at(4)}, {api.PromiseFor{ID: "nor this"}, false, time.Time{}},
	}
	slices.SortStableFunc(all, toAsk.compare)
	var got []string
	for _, q := range all {
		got = append(got, string(q.ID))
	}
	if want := "never, nor this, late, later, promised before, promised"; strings.Join(got, ", ") != want {
		t.Errorf("asked in the order %v, want %s", got, want)
	}
}

// A failure is told once, and tried again; what hangs is given up.
func TestPromiseThatFails(t *testing.T) {
	promisingNode(t, time.Second, func(r *reader, p *promises, _ *volume.Epoch, _ chan struct{}) {
		r.fail(errors.New("its pool is ill"))
		if a := call(p, "v", 2); a.Error != "its pool is ill" || a.Reading {
			t.Errorf("got %+v", a)
		}
		r.fail(nil)
		if a := call(p, "v", 2); a.Error != "" || !a.Promise.Exists {
			t.Errorf("asked again: %+v", a)
		}
	})
	promisingNode(t, time.Hour, func(r *reader, p *promises, _ *volume.Epoch, _ chan struct{}) {
		call(p, "v", 2)
		time.Sleep(promiseLimit)
		if a := call(p, "v", 2); a.Reading || a.Error == "" {
			t.Errorf("what hangs: %+v", a)
		}
	})
}

// It is over with its election: another epoch is read anew, and what nobody needs any more is
// in nobody's way.
func TestPromiseEndsWithItsElection(t *testing.T) {
	promisingNode(t, time.Hour, func(r *reader, p *promises, epoch *volume.Epoch, changed chan struct{}) {
		call(p, "v", 2)
		*epoch = 3
		changed <- struct{}{}
		synctest.Wait()
		if is := r.seen(); is.now != 0 || is.ended != context.Canceled {
			t.Errorf("%d are being read, the last ended with %v", is.now, is.ended)
		}
		call(p, "v", 3)
		if is := r.seen(); is.now != 1 {
			t.Errorf("%d are being read, want that of the new epoch", is.now)
		}
		a := call(p, "v", 4)
		synctest.Wait() // the one before ends
		if is := r.seen(); !a.Reading || is.now != 1 || is.reads != 3 {
			t.Errorf("another epoch: %+v, %d of %d are being read", a, is.now, is.reads)
		}
	})
}

// Of many copies only a few are read at the same time, whichever calls ask for them.
func TestPromisesOfMany(t *testing.T) {
	promisingNode(t, 3*time.Second, func(r *reader, p *promises, _ *volume.Epoch, _ chan struct{}) {
		var all sync.WaitGroup
		var mu sync.Mutex
		got := map[bool]int{}
		for _, id := range []volume.ID{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"} {
			all.Go(func() {
				a := call(p, id, 2)
				mu.Lock()
				defer mu.Unlock()
				got[a.Reading]++
			})
		}
		all.Wait()
		if most := r.seen().most; most != promisesAtOnce || got[true] != 2 {
			t.Errorf("%d at a time, want %d; %v were late, want two", most, promisesAtOnce, got)
		}
	})
}
