package replicate

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// hinted is a Dirty that counts what a test tells it.
type hinted struct {
	mu sync.Mutex
	n  map[string]uint64
}

func (c *hinted) wrote(dataset string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n[dataset]++
}

func (c *hinted) Counters(context.Context) (map[string]uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.n), nil
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
