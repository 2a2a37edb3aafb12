package daemon

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/replicate"
	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// The agent gets the newest listing that did not fail, with the time it began.
func TestListings(t *testing.T) {
	host := zfsfake.New(zfsfake.Options{Seed: 1, Pool: "tank"})
	l := newListings(host, "tank/flocker")
	list := func(root string, want int) (before time.Time) {
		t.Helper()
		before = time.Now()
		got, err := l.Datasets(t.Context(), root)
		if want < 0 && err == nil || want >= 0 && (err != nil || len(got) != want) {
			t.Fatalf("%s: %v, %v", root, got, err)
		}
		return before
	}
	if got, began := l.newest(); got != nil || !began.IsZero() {
		t.Errorf("before any: %v, %v", got, began)
	}
	list("tank", 1)
	list("tank/flocker", -1)
	if got, began := l.newest(); got != nil || !began.IsZero() {
		t.Errorf("of others, or failed: %v, %v", got, began)
	}
	if err := host.CreateFilesystem(t.Context(), "tank/flocker", nil); err != nil {
		t.Fatal(err)
	}
	before := list("tank/flocker", 1)
	got, began := l.newest()
	if len(got) != 1 || began.Before(before) || began.After(time.Now()) {
		t.Errorf("listed: %v, %v", got, began)
	}
	host.Fail("datasets", "tank/flocker", 1, zfsfake.ErrInjected)
	list("tank/flocker", -1)
	if again, at := l.newest(); len(again) != 1 || !at.Equal(began) {
		t.Errorf("after one that failed: %v, %v", again, at)
	}
}

// slowPool takes a second for a listing, which shows how many have begun.
type slowPool struct {
	replicate.Pool
	begun, now, most atomic.Int64
}

func (p *slowPool) Datasets(ctx context.Context, _ string) ([]zfs.Dataset, error) {
	n := p.begun.Add(1)
	p.most.Store(max(p.most.Load(), p.now.Add(1)))
	defer p.now.Add(-1)
	select {
	case <-time.After(time.Second):
		return []zfs.Dataset{{Name: fmt.Sprint(n)}}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// However many ask, there is one at a time, and each gets one that began after it had asked; those who share one
// that somebody gives up get another.
func TestListingsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := &slowPool{}
		l := newListings(pool, "tank/flocker")
		var asked sync.WaitGroup
		ask := func(ctx context.Context, want string) {
			asked.Go(func() {
				list, err := l.Datasets(ctx, "tank/flocker")
				got := append(list, zfs.Dataset{Name: fmt.Sprint(err)})[0].Name
				again := want == "6" && got == "7" // who asks anew first need not wait for the others
				if got != want && !again {
					t.Errorf("got %s, want listing %s", got, want)
				}
			})
			synctest.Wait()
		}
		ask(t.Context(), "1")
		impatient, cancel := context.WithCancel(t.Context())
		ask(impatient, "context canceled")
		for range 20 {
			ask(t.Context(), "2")
		}
		cancel()
		synctest.Wait()
		time.Sleep(1100 * time.Millisecond)
		impatient, cancel = context.WithCancel(t.Context())
		ask(t.Context(), "3")
		asked.Wait()
		ask(t.Context(), "4")
		ask(impatient, "context canceled")
		for range 20 {
			ask(t.Context(), "6")
		}
		time.Sleep(1500 * time.Millisecond)
		cancel()
		asked.Wait()
		if pool.begun.Load() > 7 || pool.most.Load() != 1 {
			t.Errorf("%d listings, %d at a time", pool.begun.Load(), pool.most.Load())
		}
		if list, _ := l.newest(); list[0].Name != fmt.Sprint(pool.begun.Load()) {
			t.Errorf("the newest of %d is %s", pool.begun.Load(), list[0].Name)
		}
	})
}
