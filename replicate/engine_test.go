package replicate

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// A first copy is made, then increments follow as data changes, to two replicas.
func TestFirstReplication(t *testing.T) {
	inBubble(t, "a b c", func(w *world) {
		a := w.node("a")
		a.create()
		a.write("f", "one")
		w.assign(1, "a", "b", "c")
		w.waitFor("b in sync", w.inSync("a", "b"))
		w.waitFor("c in sync", w.inSync("a", "c"))
		if n := a.streams(kindFull); n != 2 {
			t.Errorf("%d full streams, want 2", n)
		}
		for _, data := range []string{"two", "three", "four"} {
			a.write("f", data)
			w.waitFor("b has "+data, w.inSync("a", "b"))
			w.waitFor("c has "+data, w.inSync("a", "c"))
		}
		if n := a.streams(kindFull); n != 2 {
			t.Errorf("%d full streams after increments, want 2", n)
		}
		l := a.link("b")
		if got := w.node("b").eng().Positions()[testVol]; got.GUID != l.Acked.GUID || !got.Taken.Equal(l.Acked.Taken) {
			t.Errorf("b holds %+v, the link acked %+v", got, l.Acked)
		}
		d, err := w.node("b").host.Dataset(context.Background(), a.dataset())
		w.must(err)
		shared, err := w.node("b").host.Properties(context.Background(), a.dataset(), []string{"sharenfs", "sharesmb"})
		w.must(err)
		for name, p := range shared {
			if want := (zfs.Property{Value: "off", Own: true}); p != want {
				t.Errorf("replica's %s: %+v, want %+v", name, p, want)
			}
		}
		if !d.ReadOnly || d.CanMount != "noauto" || d.User[propEpoch] != volume.Epoch(1).String() || d.User[propVolume] != string(testVol) || d.Mounted {
			t.Errorf("replica's dataset: %+v", d)
		}
	})
}

// An idle volume costs nothing but the shared query, is proven complete again and
// again, and never takes a snapshot.
func TestIdle(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		a.create()
		w.assign(1, "a", "b")
		w.waitFor("b in sync", w.inSync("a", "b"))
		time.Sleep(15 * time.Second)
		_, name := a.newest()
		a.host.ResetCommands()
		b.host.ResetCommands()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if cmds := a.host.Commands(); len(cmds) != 1 || cmds["datasets"] < 29 || cmds["datasets"] > 31 {
			t.Errorf("commands of an idle primary in 30 s: %v", cmds)
		}
		if cmds := b.host.Commands(); len(cmds) > 1 || cmds["dataset"] > 1 || cmds["datasets"] > 2 {
			t.Errorf("commands of an idle replica in 30 s: %v", cmds)
		}
		if _, now := a.newest(); now != name {
			t.Errorf("idle volume got a snapshot: %s, then %s", name, now)
		}
		l := a.link("b")
		if age := time.Since(l.CompleteAsOf); l.State != volume.LinkInSync || age > 12*time.Second || age < 10*time.Second {
			t.Errorf("idle link is %s, complete as of %v ago", l.State, age)
		}
		time.Sleep(2 * time.Minute)
		if age := time.Since(b.eng().CompleteAsOf(testVol)); age > 100*time.Second {
			t.Errorf("replica believes to be complete as of %v ago", age)
		}
	})
}

// User snapshots on the way are replicated too, oldest first.
func TestUserSnapshots(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		w.settle() // the engine's first look is over
		a.create()
		a.write("f", "0")
		w.must(a.host.Snapshot(context.Background(), []string{a.dataset() + "@before"}, nil))
		a.eng().Refresh(testVol)
		a.write("f", "1")
		w.assign(1, "a", "b")
		w.waitFor("seeded", w.inSync("a", "b"))
		w.partition("a", "b", true)
		a.write("f", "2")
		w.must(a.host.Snapshot(context.Background(), []string{a.dataset() + "@x"}, nil))
		a.write("f", "3")
		w.must(a.host.Snapshot(context.Background(), []string{a.dataset() + "@y"}, nil))
		a.eng().Refresh(testVol)
		time.Sleep(5 * time.Second)
		w.partition("a", "b", false)
		w.waitFor("caught up", w.inSync("a", "b"))
		have := map[string]bool{}
		for _, s := range b.snapshots() {
			have[s.Name] = true
		}
		for _, name := range []string{"before", "x", "y"} {
			if !have[name] {
				t.Errorf("replica lacks @%s: %v", name, have)
			}
		}
	})
}

// A snapshot that is taken by hand while its volume is read is found at once all the same,
// when that is said: nobody waits for the next audit.
func TestRefreshedWhileRead(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.pair("one")
		w.settle()
		a.host.Inject(zfsfake.Rule{Op: "snapshots", After: true, Times: 1, Do: func(ctx context.Context, _, _ string) error {
			a.write("f", "two")
			err := a.host.Snapshot(ctx, []string{a.dataset() + "@late"}, nil)
			a.eng().Refresh(testVol)
			return err
		}})
		a.eng().Refresh(testVol)
		w.patience = time.Minute
		w.waitFor("what was taken meanwhile on b", func() bool { return has(b, "late") })
	})
}

// A replica that stands on a user's snapshot has not acknowledged the engine's
// snapshot that was skipped on the way there (found by TestHistories).
func TestSkippedIsNotAcked(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		a.create()
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		w.partition("a", "b", true)
		a.write("f", "1")
		time.Sleep(2 * time.Second) // an engine's snapshot, skipped
		a.write("f", "2")
		w.must(a.host.Snapshot(context.Background(), []string{a.dataset() + "@user"}, nil))
		a.eng().Refresh(testVol)
		time.Sleep(2 * time.Second)
		b.host.Inject(zfsfake.Rule{Op: "receive", Nth: 2, Times: 5, Do: func(ctx context.Context, _, _ string) error {
			return zfsfake.ErrInjected
		}})
		w.partition("a", "b", false)
		w.waitFor("the user's snapshot is there", func() bool { return has(b, "user") })
		for range 100 {
			acked := a.link("b").Acked
			found := false
			for _, s := range b.snapshots() {
				found = found || s.GUID == acked.GUID
			}
			if !found {
				t.Fatalf("%s is called acknowledged, but is not on the replica", acked.SnapshotName())
			}
			time.Sleep(50 * time.Millisecond)
			synctest.Wait()
		}
		w.waitFor("in sync", w.inSync("a", "b"))
	})
}

// A replica whose copy vanished is not called in sync for longer than it takes to
// ask, and gets another.
func TestVanishedReplica(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.pair("1")
		w.must(b.host.Destroy(context.Background(), b.dataset()))
		w.waitFor("seeded again", func() bool { return a.streams(kindFull) == 2 && w.inSync("a", "b")() })
	})
}

// A replica that was away catches up with one increment, and meanwhile neither
// snapshots nor bookmarks pile up.
func TestAwayForLong(t *testing.T) {
	inBubble(t, "a b c", func(w *world) {
		a := w.node("a")
		a.create()
		w.assign(1, "a", "b", "c")
		w.waitFor("b in sync", w.inSync("a", "b"))
		w.waitFor("c in sync", w.inSync("a", "c"))
		w.partition("a", "c", true)
		for i := range 400 {
			a.write("f", string(rune('a'+i%26))+time.Now().String())
			time.Sleep(time.Second)
		}
		if n := len(a.snapshots()); n > 3+pruneBatch+4 {
			t.Errorf("%d snapshots piled up on the primary", n)
		}
		if n := len(w.node("b").snapshots()); n > 3+pruneBatch+4 {
			t.Errorf("%d snapshots piled up on the other replica", n)
		}
		marks, err := a.host.Bookmarks(context.Background(), a.dataset(), false)
		w.must(err)
		if len(marks) > keepBookmarks+pruneBatch+2 {
			t.Errorf("%d bookmarks piled up", len(marks))
		}
		if l := a.link("c"); l.State != volume.LinkConnecting || l.Shown() != volume.LinkLagging || l.Error == "" || l.Failing.IsZero() {
			t.Errorf("link to the lost replica: %+v", l)
		}
		// Once for each reason it fails for (a broken stream, silence, a dial in vain), not
		// for each of the many attempts.
		if n := a.count(func(ev Event) bool { c, ok := ev.(LinkChanged); return ok && c.Replica == w.node("c").id }); n > 4 {
			t.Errorf("the loss was told %d times", n)
		}
		before, full := a.streams(""), a.streams(kindFull)
		w.partition("a", "c", false)
		w.waitFor("c caught up", w.inSync("a", "c"))
		if n := a.streams("") - before; n > 2 {
			t.Errorf("catching up took %d streams", n)
		}
		if a.streams(kindFull) != full {
			t.Error("catching up took a full stream")
		}
	})
}

// Under writes a replica that is cut off is lagging from when that shows until it has caught
// up, whatever its link does meanwhile, with the reason and since when; and its lag grows. One
// that never had a copy is not called lagging.
func TestLaggingThroughout(t *testing.T) {
	inBubble(t, "a b c", func(w *world) {
		a := w.node("a")
		a.create()
		w.partition("a", "c", true)
		w.assign(1, "a", "b", "c")
		w.waitFor("b in sync", w.inSync("a", "b"))
		w.partition("a", "b", true)
		cut := time.Now()
		lagging := false
		for i := range 3000 {
			if i%10 == 0 {
				a.write("f", time.Now().String())
			}
			time.Sleep(100 * time.Millisecond)
			if l := a.link("c"); l.Shown() != volume.LinkConnecting || l.Lags {
				t.Fatalf("a replica without a copy is %s: %+v", l.Shown(), l)
			}
			l, now := a.link("b"), time.Now()
			if l.Shown() != volume.LinkLagging {
				if lagging || now.Sub(cut) > 3*time.Second {
					t.Fatalf("%s after the cut it is %s: %+v", now.Sub(cut), l.Shown(), l)
				}
				continue
			}
			lagging = true
			if lag := now.Sub(l.CompleteAsOf); lag < now.Sub(cut)-2*time.Second || l.Error == "" || l.Failing.Sub(cut).Abs() > 3*time.Second {
				t.Fatalf("%s after the cut its lag is %s, failing since %s: %+v", now.Sub(cut), lag, l.Failing.Sub(cut), l)
			}
		}
		before := a.streams("")
		w.partition("a", "b", false)
		w.waitFor("b caught up", func() bool {
			l := a.link("b")
			if s := l.Shown(); s == volume.LinkConnecting {
				t.Errorf("coming back it is %s", s)
			}
			return l.State == volume.LinkInSync
		})
		if n := a.streams("") - before; n > 2 {
			t.Errorf("catching up took %d streams", n)
		}
		if l := a.link("b"); l.Lags || !l.Failing.IsZero() {
			t.Errorf("caught up it is %+v", l)
		}
	})
}

// Common ground lasts in both directions: a replica that was away for a while may be all
// that is left, and the others go back to what it has without a copy being sent in full,
// also when the primary's process began anew meanwhile.
func TestPromotedLaggardServesAll(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart %v", restart), func(t *testing.T) {
			inBubble(t, "a b c", func(w *world) {
				a, b, c := w.node("a"), w.node("b"), w.node("c")
				a.create()
				w.assign(1, "a", "b", "c")
				w.waitFor("b in sync", w.inSync("a", "b"))
				w.waitFor("c in sync", w.inSync("a", "c"))
				w.partition("a", "c", true)
				w.partition("b", "c", true)
				for i := range 240 {
					a.write("f", time.Now().String())
					time.Sleep(time.Second)
					if restart && i == 60 {
						a.stop()
						a.start()
						w.assign(1, "a", "b", "c")
					}
				}
				w.waitFor("b in sync", w.inSync("a", "b"))
				if n := max(len(a.snapshots()), len(b.snapshots())); n > keepNewest+keepAbove+pruneBatch+10 {
					t.Errorf("%d snapshots piled up", n)
				}
				w.assign(2, "c", "a", "b")
				w.must(c.eng().Settle(context.Background(), testVol))
				c.write("f", "on")
				w.partition("a", "c", false)
				w.partition("b", "c", false)
				w.waitFor("a goes back", w.inSync("c", "a"))
				w.waitFor("b goes back", w.inSync("c", "b"))
				if n := c.streams(kindFull); n > 0 {
					t.Errorf("%d full streams", n)
				}
			})
		})
	}
}

// What a replica that is gone for good stands on does not stay as a snapshot: of that no
// node need go back.
func TestGoneReplica(t *testing.T) {
	inBubble(t, "a b c", func(w *world) {
		for _, n := range w.nodes {
			n.tweak = func(c *Config) { c.Replace = func() time.Duration { return time.Minute } }
			n.stop()
			n.start()
		}
		a, b := w.node("a"), w.node("b")
		a.create()
		w.assign(1, "a", "b", "c")
		w.waitFor("b in sync", w.inSync("a", "b"))
		w.waitFor("c in sync", w.inSync("a", "c"))
		base, name := w.node("c").newest()
		w.partition("a", "c", true)
		for range 180 {
			a.write("f", time.Now().String())
			time.Sleep(time.Second)
		}
		for _, n := range []*node{a, b} {
			marks, err := n.host.Bookmarks(context.Background(), n.dataset(), false)
			w.must(err)
			if slices.Contains(n.guids(), base) || !slices.ContainsFunc(marks, func(m zfs.Bookmark) bool { return m.GUID == base }) {
				t.Errorf("%s is still a snapshot of %s, or not even a bookmark", name, n.name)
			}
		}
	})
}

// A promoted replica can serve one that was away for long, and the old primary, with
// increments: the bases of others were kept for it.
func TestPromotedServesLaggard(t *testing.T) {
	inBubble(t, "a b c", func(w *world) {
		a, b, c := w.node("a"), w.node("b"), w.node("c")
		a.create()
		w.assign(1, "a", "b", "c")
		w.waitFor("b in sync", w.inSync("a", "b"))
		w.waitFor("c in sync", w.inSync("a", "c"))
		w.partition("a", "c", true)
		w.partition("b", "c", true)
		for range 100 {
			a.write("f", time.Now().String())
			time.Sleep(time.Second)
		}
		w.waitFor("b in sync", w.inSync("a", "b"))
		w.assign(2, "b", "a", "c")
		w.must(b.eng().Settle(context.Background(), testVol))
		for range 100 {
			b.write("f", time.Now().String())
			time.Sleep(time.Second)
		}
		w.partition("b", "c", false)
		w.waitFor("c caught up", w.inSync("b", "c"))
		w.waitFor("a follows", w.inSync("b", "a"))
		if n := b.streams(kindFull); n > 0 {
			t.Errorf("%d full streams", n)
		}
		for _, n := range []*node{a, c} {
			if k := n.count(setAside); k > 0 {
				t.Errorf("%d copies of %s set aside", k, n.name)
			}
		}
	})
}

// Every replica alone away: at most two snapshots wait.
func TestSelfClocked(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a := w.node("a")
		a.create()
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		before := len(a.snapshots())
		w.partition("a", "b", true)
		for i := range 30 {
			a.write("f", time.Now().String()+string(rune('a'+i)))
			time.Sleep(time.Second)
		}
		if n := len(a.snapshots()) - before; n > maxUnacked {
			t.Errorf("%d snapshots taken while nobody acknowledged", n)
		}
		w.partition("a", "b", false)
		w.waitFor("caught up", w.inSync("a", "b"))
	})
}

// A replica that answers and gets nothing whole is not one that acknowledges: at most two wait,
// however often it has answered.
func TestSelfClockedByAcknowledgements(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		a.create()
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		before := len(a.snapshots())
		broken := 0
		b.host.Inject(zfsfake.Rule{Op: "receive", Times: 1000, Do: func(context.Context, string, string) error {
			broken++
			return errors.New("the stream breaks")
		}})
		for i := range 60 {
			a.write("f", fmt.Sprint(i))
			time.Sleep(time.Second)
		}
		if n := len(a.snapshots()) - before; n > maxUnacked {
			t.Errorf("%d snapshots taken while none was acknowledged", n)
		}
		if broken < 3 {
			t.Errorf("only %d streams broke", broken)
		}
	})
}

// What a user takes goes to the replicas at once, also of a volume that is replicated once an hour.
func TestSnapshotOfLongInterval(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		a.create()
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		hourly := w.roleOf(a, 1, volume.Line{}, "a", "b")
		hourly[0].Interval = time.Hour
		a.assign(hourly...)
		a.write("f", "1")
		time.Sleep(5 * time.Minute)
		w.userSnapshot("kept")
		began := time.Now()
		w.waitFor("it is on b", func() bool { return has(b, "kept") })
		if took := time.Since(began); took > time.Minute {
			t.Errorf("it was there after %s", took)
		}
	})
}

// The same over TLS, whose connections do not survive an expired write and may
// wait while they are closed: a seed, increments, an idle hour, a stalled stream.
func TestOverTLS(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		w.tls = selfSigned(t)
		a := w.node("a")
		a.create()
		a.write("f", blob(rand.New(rand.NewPCG(8, 8)), 2<<20))
		w.assign(1, "a", "b")
		w.waitFor("seeded", w.inSync("a", "b"))
		for i := range 5 {
			a.write("f", string(rune('a'+i)))
			time.Sleep(2 * time.Second)
		}
		w.waitFor("in sync", w.inSync("a", "b"))
		time.Sleep(time.Hour)
		a.write("f", "after an hour")
		w.waitFor("in sync", w.inSync("a", "b"))
		w.node("b").host.Inject(zfsfake.Rule{Op: "receive", After: true, Times: 1, Do: func(ctx context.Context, _, _ string) error {
			sleep(ctx, 5*time.Minute)
			return context.Cause(ctx)
		}})
		w.node("b").host.Inject(zfsfake.Rule{Op: "receive", Nth: 2, Times: 1, Do: func(ctx context.Context, _, _ string) error {
			sleep(ctx, 4*time.Minute)
			return context.Cause(ctx)
		}})
		failed := a.count(func(ev Event) bool { s, ok := ev.(StreamEnded); return ok && s.Err != nil })
		for _, what := range []string{"slow to end", "slow to begin"} {
			a.write("f", what)
			w.waitFor(what, w.inSync("a", "b"))
		}
		if n := a.count(func(ev Event) bool { s, ok := ev.(StreamEnded); return ok && s.Err != nil }) - failed; n > 0 {
			t.Errorf("%d slow streams were broken off", n)
		}
	})
}

// A sender that lost power in mid-stream, whose connection nobody reset, does not
// have to wait for the receiver to notice.
func TestHalfOpen(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		var stuck atomic.Bool
		left := 1 << 20
		w.wrap = func(from, to string, conn net.Conn) net.Conn {
			if stuck.Load() {
				return conn
			}
			return &neverClosed{blackHole{Conn: conn, left: &left, stuck: &stuck}}
		}
		a := w.node("a")
		a.create()
		a.write("f", blob(rand.New(rand.NewPCG(9, 9)), 2<<20))
		w.assign(1, "a", "b")
		w.waitFor("stuck", stuck.Load)
		a.stop()
		a.start()
		began := time.Now()
		w.waitFor("seeded", w.inSync("a", "b"))
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// neverClosed is a connection whose end is not seen at the other end.
type neverClosed struct{ blackHole }

func (n *neverClosed) Close() error {
	n.SetDeadline(time.Unix(1, 0))
	return nil
}

// A partial stream is resumed, not begun again.
func TestResume(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		left := 1 << 20
		w.wrap = cutOnce("sender", &left, false)
		a := w.node("a")
		a.create()
		a.write("f", blob(rand.New(rand.NewPCG(3, 3)), 3<<20))
		w.assign(1, "a", "b")
		w.waitFor("seeded", w.inSync("a", "b"))
		if n := a.streams(kindResume); n != 1 {
			t.Errorf("%d resumed streams, want 1", n)
		}
	})
}

// partial says that an interrupted stream waits on the node to be resumed.
func (n *node) partial() bool {
	n.w.Helper()
	list, err := n.host.Datasets(context.Background(), testRoot)
	n.w.must(err)
	return slices.ContainsFunc(list, func(d zfs.Dataset) bool { return d.ResumeToken != "" })
}

// What cannot be resumed, whatever the reason, is begun again: a partial stream that
// either zfs refuses does not stop a link for ever.
func TestUnusableResume(t *testing.T) {
	io := &zfs.Error{Op: "send", Stderr: "warning: cannot send 'tank/a@1': Input/output error"}
	for name, c := range map[string]struct {
		on, op string
		err    error
	}{
		"the sender's zfs has no use for it":   {"a", "send", &zfs.Error{Op: "send", Kind: zfs.ErrBadToken}},
		"the sender's zfs breaks off":          {"a", "send", io},
		"the sender's zfs does not explain it": {"a", "decode-token", &zfs.Error{Op: "decode-token", Stderr: "something new"}},
		"the receiver's zfs has no use for it": {"b", "receive", &zfs.Error{Op: "receive", Kind: zfs.ErrBadToken}},
		"the receiver's zfs breaks off":        {"b", "receive", &zfs.Error{Op: "receive", Stderr: "internal error"}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, "a b", func(w *world) {
				left := 1 << 20
				w.wrap = cutOnce("sender", &left, false)
				a, b := w.node("a"), w.node("b")
				a.create()
				a.write("f", blob(rand.New(rand.NewPCG(3, 3)), 3<<20))
				// As long as something waits to be resumed.
				w.node(c.on).host.Inject(zfsfake.Rule{Op: c.op, Do: func(context.Context, string, string) error {
					if b.partial() {
						return c.err
					}
					return nil
				}})
				w.assign(1, "a", "b")
				w.waitFor("seeded", w.inSync("a", "b"))
				if n := a.streams(kindFull); n != 1 {
					t.Errorf("%d full streams got through, want 1", n)
				}
			})
		})
	}
}

// A line that breaks again and again, and a pool in trouble, cost nothing of what has
// arrived.
func TestResumeIsPatient(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		left := 1 << 20
		w.wrap = cutOnce("sender", &left, false)
		a, b := w.node("a"), w.node("b")
		a.create()
		a.write("f", blob(rand.New(rand.NewPCG(3, 3)), 3<<20))
		failed := 0 // only the link asks
		for _, op := range []string{"decode-token", "send"} {
			a.host.Inject(zfsfake.Rule{Op: op, Do: func(context.Context, string, string) error {
				if !b.partial() {
					return nil
				}
				if failed++; failed <= 10 {
					return []error{
						&zfs.Error{Op: op, Stderr: "cannot send: pool I/O is currently suspended", Kind: zfs.ErrSuspended},
						&zfs.Error{Op: op, Err: errors.New("fork/exec /sbin/zfs: resource temporarily unavailable")},
						&zfs.Error{Op: op, Err: errors.New("signal: killed")},
					}[failed%3]
				}
				return nil
			}})
		}
		w.assign(1, "a", "b")
		w.waitFor("seeded", w.inSync("a", "b"))
		if n := a.streams(kindResume); n != 1 || failed <= 10 {
			t.Errorf("%d resumed streams after %d failures, want 1", n, failed)
		}
	})
}

// While somebody decides about a copy and destroys it, nothing comes into it, even if
// it is assigned again meanwhile; and nobody goes on believing that it is there.
func TestSettled(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		a.create()
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		b.assign()
		ctx := context.Background()
		top, _ := b.newest()
		w.must(b.eng().Settled(ctx, testVol, func(ctx context.Context) error {
			w.assign(1, "a", "b")
			a.write("f", "more")
			time.Sleep(20 * time.Second)
			if now, name := b.newest(); now != top {
				t.Errorf("%s came into it", name)
			}
			return b.host.Destroy(ctx, b.dataset())
		}))
		e := b.eng()
		e.mu.Lock()
		if c := e.copies[testVol]; c != nil && c.known {
			t.Errorf("what was destroyed is still believed to be there: %v", c.snaps)
		}
		e.mu.Unlock()
		w.waitFor("seeded again", func() bool { return a.streams(kindFull) == 2 && w.inSync("a", "b")() })
	})
}

// Who waits for another assignment hears of the next one, and of none that changes nothing.
func TestReassigned(t *testing.T) {
	e := New(Config{Root: "tank/flocker", Pool: zfsfake.New(zfsfake.Options{Seed: 1, Pool: "tank"})})
	heard := func(ch <-chan struct{}) bool {
		select {
		case <-ch:
			return true
		default:
			return false
		}
	}
	one := []Assignment{{Volume: testVol, Epoch: 1, Role: volume.RolePrimary}}
	for i, c := range []struct {
		all  []Assignment
		want bool
	}{{nil, false}, {one, true}, {one, false}, {nil, true}} {
		ch := e.Reassigned()
		if e.Assign(c.all); heard(ch) != c.want {
			t.Errorf("assignment %d: heard %v, want %v", i, !c.want, c.want)
		}
	}
}
