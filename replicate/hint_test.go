package replicate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// hinted is a Dirty that counts what a test tells it.
type hinted struct {
	mu sync.Mutex
	n  map[string]uint64

	err error
}

func (c *hinted) wrote(dataset string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n[dataset]++
}

func (c *hinted) Counters(context.Context) (map[string]uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.n), c.err
}

// While the kernel's counters cannot be read every tick asks zfs instead; it is told once
// that they cannot, and once that they can again.
func TestHintFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBusy(t, 1)
		dirty := &hinted{n: map[string]uint64{}}
		b.engine.cfg.Dirty = dirty
		var told []string
		b.engine.cfg.Observe = func(ev Event) {
			switch ev := ev.(type) {
			case PoolFailed:
				told = append(told, ev.Err.Error())
			case PoolRecovered:
				told = append(told, "works again")
			}
		}
		for i, c := range []struct {
			err    error
			listed bool // at any rate
		}{{nil, false}, {errors.New("cut off"), true}, {errors.New("cut off"), true}, {nil, false}, {nil, false}} {
			dirty.err = c.err
			time.Sleep(time.Second)
			b.host.ResetCommands()
			if err := b.engine.tick(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := b.host.Commands()["datasets"]; c.listed && n != 1 {
				t.Errorf("tick %d asked zfs %d times, want once", i, n)
			}
		}
		if want := []string{"cut off", "works again"}; !slices.Equal(told, want) {
			t.Errorf("told %q, want %q", told, want)
		}
	})
}

// Where the kernel counts writes, an idle volume costs no command but the listing
// every few seconds; a counted write is in a snapshot within a tick, and one that is
// not counted as soon as zfs shows it.
func TestHint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBusy(t, 3)
		dirty := &hinted{n: map[string]uint64{}}
		b.engine.cfg.Dirty = dirty
		ctx := context.Background()
		tick := func() map[string]int {
			t.Helper()
			time.Sleep(time.Second)
			b.host.ResetCommands()
			if err := b.engine.tick(ctx); err != nil {
				t.Fatal(err)
			}
			return b.host.Commands()
		}
		write := func(i int, counts bool) {
			t.Helper()
			ds := b.engine.cfg.dataset(b.ids[i])
			if err := b.host.WriteFile(ds, "f", fmt.Append(nil, time.Now())); err != nil {
				t.Fatal(err)
			}
			if counts {
				dirty.wrote(ds)
			}
		}
		acked := func() { // nothing is in the way of the next snapshot
			b.engine.mu.Lock()
			defer b.engine.mu.Unlock()
			for _, c := range b.engine.copies {
				c.unproven = 0
			}
		}
		tick() // the first snapshots
		acked()
		listings := 0
		for range 60 {
			got := tick()
			listings += got["datasets"]
			if len(got) > got["datasets"] {
				t.Fatalf("an idle tick costs %v", got)
			}
		}
		if listings < 10 || listings > 13 {
			t.Errorf("%d listings in a minute of idleness", listings)
		}

		before := b.engine.SnapshotCounts()
		write(1, true)
		got := tick()
		after := b.engine.SnapshotCounts()
		if after[b.ids[1]] != before[b.ids[1]]+1 || after[b.ids[0]] != before[b.ids[0]] || got["take"] != 1 {
			t.Errorf("after a counted write: %v snapshots, commands %v", after, got)
		}
		acked()

		write(2, false)
		for range 5 {
			tick()
		}
		if after = b.engine.SnapshotCounts(); after[b.ids[2]] != before[b.ids[2]]+1 {
			t.Errorf("after a write that nobody counted: %v snapshots", after)
		}
	})
}
