package replicate

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

func (n *node) promise(epoch volume.Epoch) volume.Promise {
	n.w.Helper()
	p, err := n.eng().Promise(context.Background(), testVol, epoch, volume.Line{})
	n.w.must(err)
	return p
}

// A promise ends what is being received, throws what there is of it away, and nothing
// of the old epoch comes in afterwards, though nobody has assigned the new one yet.
func TestPromiseEndsReceives(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		a.create()
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		guid, _ := b.newest()
		receiving := make(chan struct{})
		b.host.Inject(zfsfake.Rule{Op: "receive", Times: 1, Do: func(ctx context.Context, _, _ string) error {
			close(receiving)
			<-ctx.Done()
			return context.Cause(ctx)
		}})
		a.write("f", "late")
		hear(t, "the receive to begin", receiving)
		p := b.promise(2)
		if !p.Exists || p.Newest.GUID != guid || p.Epoch != 2 {
			t.Errorf("the promise is %+v, want guid %d", p, guid)
		}
		if w.partial("b") {
			t.Error("half a stream of the old epoch is still there")
		}
		b.assign(b.table...) // of epoch 1, again
		a.write("f", "later")
		time.Sleep(time.Minute) // nothing may happen in
		if now, _ := b.newest(); now != guid {
			t.Errorf("the copy got from %d to %d after the promise", guid, now)
		}
		if again := b.promise(2); again != p {
			t.Errorf("promised again: %+v, before %+v", again, p)
		}
		if _, err := b.eng().Promise(context.Background(), testVol, 1, volume.Line{}); volume.CodeOf(err) != volume.CodeConflict {
			t.Errorf("an older epoch: %v, want a conflict", err)
		}
		w.assign(2, "b", "a")
		w.waitFor("the old primary follows", w.inSync("b", "a"))
		if _, err := b.eng().Promise(context.Background(), testVol, 2, volume.Line{}); volume.CodeOf(err) != volume.CodeConflict {
			t.Errorf("an epoch with a primary: %v, want a conflict", err)
		}
	})
}

// A primary that has promised takes and sends no snapshot any more.
func TestPromiseOfPrimary(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a := w.node("a")
		a.create()
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		p := a.promise(2)
		a.write("f", "unfenced")
		time.Sleep(time.Minute) // nothing may happen in
		if guid, _ := a.newest(); guid != p.Newest.GUID {
			t.Errorf("promised to stand at %d, has %d", p.Newest.GUID, guid)
		}
		if _, err := a.eng().Flush(context.Background(), testVol, w.node("b").id); err == nil {
			t.Error("it still flushes")
		}
	})
}

// What a copy is complete for is told by the primary's own times: those of its offers,
// and after a restart the one of the newest snapshot on the disk, never later.
func TestPromisedAsOf(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.pair("1")
		taken := a.link("b").Acked.Taken
		time.Sleep(5 * time.Minute) // an idle volume gets old
		idle := b.promise(2)
		if age := time.Since(idle.AsOf); age > 100*time.Second || age < 10*time.Second {
			t.Errorf("an idle copy is promised to be complete as of %s ago", age)
		}
		b.stop()
		b.start()
		restarted := b.promise(2)
		if restarted.AsOf.After(taken) || restarted.AsOf.Before(taken.Add(-15*time.Second)) {
			t.Errorf("after a restart it is complete as of %s; its snapshot was taken at %s", restarted.AsOf, taken)
		}
		if restarted.Newest.GUID != idle.Newest.GUID {
			t.Errorf("it stands at %+v, before at %+v", restarted.Newest, idle.Newest)
		}
	})
}

// The times of another primary count by its own clock only.
func TestAsOfOfAnotherPrimary(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		a.create()
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		b.eng().mu.Lock()
		b.eng().copies[testVol].completeAsOf = time.Now().Add(time.Hour) // a's clock was ahead
		b.eng().mu.Unlock()
		w.assign(2, "a", "b")
		a.write("f", "1")
		w.waitFor("in sync", w.inSync("a", "b"))
		if p := b.promise(3); p.AsOf.After(time.Now()) {
			t.Errorf("complete as of %s from now", time.Until(p.AsOf))
		}
	})
}

// A primary's clock that was wrong and is set back: what is told from then on is by the
// clock of then, by which it will be told how long the primary lived. With the times of
// before, a replica that lacks an hour would look complete.
func TestAsOfOfClockSetBack(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		var ahead atomic.Int64
		wall := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		ahead.Store(int64(time.Hour))
		a.with(func(c *Config) { c.Wall = wall })
		a.create()
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		if age := wall().Sub(b.eng().CompleteAsOf(testVol)); age > time.Minute {
			t.Fatalf("with the clock ahead it is complete as of %s ago", age)
		}

		ahead.Store(0)
		time.Sleep(2 * time.Minute) // the replica is asked again
		if asOf := b.eng().CompleteAsOf(testVol); asOf.After(wall()) {
			t.Errorf("with the clock set back it is complete as of %s from now", asOf.Sub(wall()))
		}
		w.partition("a", "b", true)
		ahead.Store(int64(-time.Hour))
		a.write("f", "1")
		time.Sleep(10 * time.Minute) // nothing gets through
		if lag := wall().Sub(a.link("b").CompleteAsOf); lag < 10*time.Minute || lag > 12*time.Minute {
			t.Errorf("after ten minutes without its replica the primary calls that complete as of %s ago", lag)
		}
		w.partition("a", "b", false)
		w.waitFor("in sync", w.inSync("a", "b"))
		if p := b.promise(2); p.AsOf.After(wall()) {
			t.Errorf("with the clock set back once more it is complete as of %s from now", p.AsOf.Sub(wall()))
		}
	})
}

// Neither a copy halfway aside nor one that cannot be read is a position, and a node
// without one says so.
func TestPromiseIsNoGuess(t *testing.T) {
	inBubble(t, "a b c", func(w *world) {
		a, b := w.node("a"), w.node("b")
		a.create()
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		if p := w.node("c").promise(2); p.Exists || !p.Newest.IsZero() {
			t.Errorf("a node without a copy promises %+v", p)
		}
		b.write("f", "changed by hand")
		heal := b.host.Fail("rename", "", 0, zfsfake.ErrInjected)
		a.write("f", "1")
		w.waitFor("half aside", func() bool {
			_, err := b.host.Dataset(context.Background(), b.dataset()+"-fork")
			return err == nil
		})
		if p, err := b.eng().Promise(context.Background(), testVol, 2, volume.Line{}); err == nil {
			t.Errorf("half set aside it promises %+v", p)
		}
		heal()
		if p := b.promise(2); !p.Exists || p.Newest.IsZero() {
			t.Errorf("with the set-aside finished it promises %+v", p)
		}
	})
}

// The first snapshot of an epoch is taken though nothing was written: only a stream
// shows a replica that its head is not that of its newest snapshot, and an old primary
// that has written after that would look in sync for ever.
func TestOldPrimarysTailOfIdleVolume(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		a.create()
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		a.promise(2)
		b.promise(2)
		a.write("f", "nobody got this")
		w.assign(2, "b", "a")
		w.waitFor("the old primary follows", w.inSync("b", "a"))
		w.waitFor("alike", w.alike("b", "a"))
		w.hasAside(a, "f")
	})
}
