package replicate

import (
	"context"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// What a replica acknowledges without a look at the disk: only what zfs has surely made
// just now, by all that is known of the copy.
func TestTakes(t *testing.T) {
	for what, c := range map[string]struct {
		change func(c *localCopy, b *begin)
		want   bool
	}{
		"the next":                  {func(*localCopy, *begin) {}, true},
		"onto an older one":         {func(c *localCopy, b *begin) { b.From = 1 }, false},
		"onto nothing":              {func(c *localCopy, b *begin) { c.snaps = nil }, false},
		"one that is here":          {func(c *localCopy, b *begin) { b.To = 1 }, false},
		"a name that is here":       {func(c *localCopy, b *begin) { b.Name = "one" }, false},
		"one that is being removed": {func(c *localCopy, b *begin) { c.condemned[3] = true }, false},
	} {
		copied := newCopy()
		copied.add(zfs.Snapshot{Name: "one", GUID: 1, CreateTXG: 10})
		copied.add(zfs.Snapshot{Name: "two", GUID: 2, CreateTXG: 20})
		b := begin{From: 2, To: 3, Name: "three"}
		c.change(copied, &b)
		if got := copied.takes(b); got != c.want {
			t.Errorf("%s: %t", what, got)
		}
	}
}

// withReceive makes a node's engine receive by this.
func (n *node) withReceive(receive func(ctx context.Context, req zfs.ReceiveRequest, r io.Reader) error) {
	n.with(func(c *Config) {
		c.Pool = &twisted{Host: n.host, receive: receive}
		c.Audit = 24 * time.Hour // what is found is found by other looks
	})
}

// A zfs receive that says it has done its work and has not is believed until the copy is
// next asked: then the replica looks, says what it holds, and gets an increment once more,
// from a base that the primary still has. Nothing of the copy has been destroyed meanwhile.
func TestReceiveThatLies(t *testing.T) {
	for _, writes := range []int{1, keepNewest + pruneBatch + 2} {
		inBubble(t, "a b", func(w *world) {
			a, b := w.node("a"), w.node("b")
			var lie, missing atomic.Bool
			b.withReceive(func(ctx context.Context, req zfs.ReceiveRequest, r io.Reader) error {
				if lie.CompareAndSwap(true, false) {
					missing.Store(true)
					_, err := io.Copy(io.Discard, r)
					return err
				}
				err := b.host.Receive(ctx, req, r)
				if err == nil {
					missing.Store(false)
				}
				return err
			})
			b.host.Inject(zfsfake.Rule{Op: "prune", Do: func(context.Context, string, string) error {
				if missing.Load() {
					t.Error("the replica prunes for the sake of what is not there")
				}
				return nil
			}})
			a.create()
			w.assign(1, "a", "b")
			w.waitFor("in sync", w.inSync("a", "b"))
			for i := range keepNewest + pruneBatch - 1 { // one more, and b prunes
				a.write("f", strings.Repeat("x", i))
				w.waitFor("in sync", w.inSync("a", "b"))
			}
			lie.Store(true)
			a.write("f", "never came")
			w.waitFor("the lie", func() bool { return !lie.Load() })
			for range writes - 1 {
				was, _ := a.newest()
				a.write("f", "goes on")
				w.waitFor("a snapshot of it", func() bool { g, _ := a.newest(); return g != was })
			}
			w.waitFor("in sync", w.inSync("a", "b"))
			if full := a.streams(kindFull); full != 1 {
				t.Errorf("%d full streams, want the seed alone", full)
			}
			if n := b.count(setAside); n > 0 {
				t.Errorf("%d set aside", n)
			}
		})
	}
}

// The primary goes on while the replica that was lied to is cut off, and keeps what came
// before: all that this one really stands on.
func TestReceiveThatLiesAndGoes(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		var lie, lied atomic.Bool
		b.withReceive(func(ctx context.Context, req zfs.ReceiveRequest, r io.Reader) error {
			if !lie.CompareAndSwap(true, false) {
				return b.host.Receive(ctx, req, r)
			}
			_, err := io.Copy(io.Discard, r)
			lied.Store(true)
			return err
		})
		a.create()
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		for i := range 2 * (keepNewest + pruneBatch) { // what is older has gone on both sides
			a.write("f", strings.Repeat("x", i))
			w.waitFor("in sync", w.inSync("a", "b"))
		}
		lie.Store(true)
		a.write("f", "never came")
		w.waitFor("the acknowledgement", func() bool {
			g, _ := a.newest()
			return lied.Load() && a.link("b").Acked.GUID == g
		})
		w.partition("a", "b", true)
		for range 3 * (keepNewest + pruneBatch) {
			_, err := a.eng().Flush(context.Background(), testVol, "")
			w.must(err)
			time.Sleep(time.Second) // of the bubble: both sides prune meanwhile
		}
		w.partition("a", "b", false)
		w.waitFor("in sync", w.inSync("a", "b"))
		if full := a.streams(kindFull); full != 1 {
			t.Errorf("%d full streams, want the seed alone", full)
		}
		if n := b.count(setAside); n > 0 {
			t.Errorf("%d set aside", n)
		}
	})
}

// What was acknowledged is destroyed on the replica before anybody has read it there: the
// primary hears of it as soon as it asks, though nothing is written.
func TestArrivedAndGone(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.pair("one")
		b.with(func(c *Config) { c.Audit = 24 * time.Hour })
		a.write("f", "two")
		w.waitFor("in sync", w.inSync("a", "b"))
		_, name := a.newest()
		w.must(b.disk.DestroySnapshots(context.Background(), b.dataset(), []string{name}))
		w.waitFor("the link to know", func() bool { return a.link("b").State != volume.LinkInSync || has(b, name) })
		w.waitFor("in sync", w.inSync("a", "b"))
		if full := a.streams(kindFull); full != 1 {
			t.Errorf("%d full streams, want the seed alone", full)
		}
	})
}

// An idle replica is asked again and again, and reads what came last once.
func TestReadBackOnce(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.pair("one")
		a.write("f", "two")
		w.waitFor("in sync", w.inSync("a", "b"))
		b.host.ResetCommands()
		time.Sleep(10 * time.Minute) // of the bubble: how often it is asked in that time
		if got := b.host.Commands(); got["snapshots-named"] != 1 {
			t.Errorf("idle, it cost the replica %v", got)
		}
	})
}

// A name that was given to another snapshot here is not taken for the one that came.
func TestReadBackOfAnother(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.pair("one")
		a.write("f", "two")
		w.waitFor("in sync", w.inSync("a", "b"))
		ctx := context.Background()
		g, name := b.newest()
		full := b.dataset() + "@" + name
		w.must(b.disk.Rename(ctx, full, b.dataset()+"@elsewhere"))
		w.must(b.disk.Snapshot(ctx, []string{full}, nil))
		w.must(b.eng().readBack(ctx, []volume.ID{testVol}))
		b.eng().mu.Lock()
		known := b.eng().copies[testVol].known
		b.eng().mu.Unlock()
		if known {
			t.Errorf("snapshot %d is read as %s, which is another", g, name)
		}
	})
}

// What came is read back while more comes: the copy stays in the order in which its
// snapshots came, and so in step with its primary.
func TestArrivedWhileReadBack(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.pair("one")
		var slow atomic.Bool
		b.host.Inject(zfsfake.Rule{Op: "snapshots-named", After: true, Times: 1, Do: func(ctx context.Context, _, _ string) error {
			slow.Store(true)
			sleep(ctx, 4*time.Second)
			return nil
		}})
		for i := range 4 * (keepNewest + pruneBatch) {
			was, _ := a.newest()
			a.write("f", strings.Repeat("x", i))
			// More than one comes while the first are read.
			w.waitFor("a snapshot of it", func() bool { g, _ := a.newest(); return g != was })
			e := b.eng()
			e.mu.Lock()
			inOrder := slices.IsSortedFunc(e.copies[testVol].snaps, func(x, y snap) int { return compare(x.pos.Seq, y.pos.Seq) })
			e.mu.Unlock()
			if !inOrder {
				t.Fatalf("after write %d the copy is out of order", i)
			}
		}
		w.waitFor("in sync", w.inSync("a", "b"))
		if !slow.Load() {
			t.Error("nothing was read back")
		}
		if full := a.streams(kindFull); full != 1 {
			t.Errorf("%d full streams, want the seed alone", full)
		}
		if n := b.count(setAside); n > 0 {
			t.Errorf("%d set aside", n)
		}
	})
}
