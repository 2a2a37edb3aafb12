package replicate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// A name that people remove and give again is one snapshot on the primary. A replica
// that still has the old one of that name, because it was not told, or was away, or
// something holds it, gets the new one all the same, and lets go of the old one when
// it can.
func TestNameGivenAgain(t *testing.T) {
	for _, how := range []string{"at once", "away", "held", "by hand"} {
		t.Run(how, func(t *testing.T) {
			inBubble(t, "a b", func(w *world) { nameGivenAgain(w, how) })
		})
	}
}

func nameGivenAgain(w *world, how string) {
	a, b, ctx := w.node("a"), w.node("b"), context.Background()
	ids := []volume.ID{testVol}
	guidOf := func(n *node, name string) uint64 {
		list := n.snapshots()
		if i := slices.IndexFunc(list, func(s zfs.Snapshot) bool { return s.Name == name }); i >= 0 {
			return list[i].GUID
		}
		return 0
	}
	a.create()
	w.assign(1, "a", "b")
	a.write("f", "1")
	w.must(a.eng().TakeSnapshot(ctx, ids, "x"))
	w.waitFor("x", func() bool { return has(b, "x") && w.inSync("a", "b")() })
	old := guidOf(a, "x")
	elsewhere := fmt.Sprintf("x-%x", old)
	switch how {
	case "away":
		w.partition("a", "b", true)
	case "held":
		w.must(b.host.Hold(ctx, "mine", b.dataset()+"@x"))
	}
	if how == "by hand" {
		w.must(a.host.DestroySnapshots(ctx, a.dataset(), []string{"x"}))
		a.eng().Refresh(testVol)
		w.waitFor("the engine to see it", func() bool { return a.eng().SnapshotCounts()[testVol] == len(a.snapshots()) })
	} else {
		w.must(a.eng().RemoveSnapshot(ctx, testVol, "x"))
	}
	a.write("f", "2")
	w.must(a.eng().TakeSnapshot(ctx, ids, "x"))
	a.write("f", "3")
	if how == "away" {
		w.waitFor("both to be in the engine's snapshots", func() bool { _, name := a.newest(); return name != "x" })
		w.partition("a", "b", false)
	}
	w.waitFor("in sync", w.inSync("a", "b"))
	if guidOf(b, "x") != guidOf(a, "x") || guidOf(b, "x") == old {
		w.Errorf("x on the replica is %d, on the primary %d, was %d", guidOf(b, "x"), guidOf(a, "x"), old)
	}
	switch how {
	case "by hand": // nobody said that the replica's is to go
		time.Sleep(10 * time.Minute) // nothing is to happen
		if guidOf(b, elsewhere) != old {
			w.Error("the old one is gone on the replica")
		}
		return
	case "held":
		if guidOf(b, elsewhere) != old {
			w.Error("the old one, which is held, is gone")
		}
		w.must(b.host.Release(ctx, "mine", b.dataset()+"@"+elsewhere))
	}
	w.waitFor("the old one to go", func() bool { return !has(b, elsewhere) })
	if guidOf(b, "x") != guidOf(a, "x") {
		w.Error("the new one went")
	}
}

// On a full pool there is no room for the bookmark that a removal leaves, and people
// remove snapshots to make room. Replicas hear of it all the same. What a replica
// stands on stays until there is room.
func TestRemoveOnFullPool(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b, ctx := w.node("a"), w.node("b"), context.Background()
		ids := []volume.ID{testVol}
		a.create()
		w.assign(1, "a", "b")
		for _, name := range []string{"x", "y"} {
			a.write("f", name)
			w.must(a.eng().TakeSnapshot(ctx, ids, name))
		}
		w.waitFor("everywhere", func() bool { return has(b, "y") && w.inSync("a", "b")() })
		a.host.SetCapacity("tank", 1)
		w.must(a.eng().RemoveSnapshot(ctx, testVol, "x"))
		if has(a, "x") {
			t.Error("x is still there")
		}
		w.waitFor("the replica follows", func() bool { return !has(b, "x") })

		e := a.eng()
		e.mu.Lock()
		y := e.copies[testVol].snaps[slices.IndexFunc(e.copies[testVol].snaps, func(s snap) bool { return s.name == "y" })]
		e.copies[testVol].bases[b.id] = base{guid: y.guid}
		e.mu.Unlock()
		if err := e.RemoveSnapshot(ctx, testVol, "y"); !errors.Is(err, zfs.ErrNoSpace) || !has(a, "y") {
			t.Errorf("what the replica stands on, without a bookmark: %v", err)
		}
		a.host.SetCapacity("tank", 1<<40)
		w.must(e.RemoveSnapshot(ctx, testVol, "y"))
		w.waitFor("the replica follows", func() bool { return !has(b, "y") })
		w.waitFor("in sync", w.inSync("a", "b"))
	})
}

// A copy that went back to what it shares with another primary holds no more all that
// its own had written until then.
func TestAsideTakesCompleteness(t *testing.T) {
	inBubble(t, "a b c", func(w *world) {
		a, b, c := w.node("a"), w.node("b"), w.node("c")
		a.create()
		a.write("f", "1")
		w.assign(1, "a", "b", "c")
		w.waitFor("in sync", func() bool { return w.inSync("a", "b")() && w.inSync("a", "c")() })
		w.partition("a", "c", true)
		a.write("f", "2")
		w.waitFor("b alone", w.inSync("a", "b"))
		before := b.eng().CompleteAsOf(testVol)

		w.partition("a", "b", true)
		c.host.Fail("send", "", 0, errors.New("injected")) // nothing comes from the next primary
		w.assign(2, "c", "b")
		w.waitFor("set aside", func() bool { return b.count(setAside) == 1 })
		if at := b.eng().CompleteAsOf(testVol); !at.Before(before) {
			t.Errorf("complete as of %v, which is what it was before its tail was set aside (%v)", at, before)
		}
	})
}

// Other tools leave a bookmark when they destroy a snapshot, to send from it later. That
// is no word of flocker's: the replicas' copies of it, which may be the last, stay.
func TestForeignBookmark(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b, ctx := w.node("a"), w.node("b"), context.Background()
		a.create()
		w.assign(1, "a", "b")
		a.write("f", "1")
		w.must(a.eng().TakeSnapshot(ctx, []volume.ID{testVol}, "x"))
		w.waitFor("x", func() bool { return has(b, "x") && w.inSync("a", "b")() })
		x := b.snapshots()[slices.IndexFunc(b.snapshots(), func(s zfs.Snapshot) bool { return s.Name == "x" })].GUID
		w.must(a.host.Bookmark(ctx, a.dataset()+"@x", a.dataset()+"#x"))
		w.must(a.host.DestroySnapshots(ctx, a.dataset(), []string{"x"}))
		time.Sleep(20 * time.Minute) // audits pass, and many offers
		if !has(b, "x") {
			t.Error("the only copy of x was destroyed")
		}
		if has, err := a.eng().Holds(ctx, testVol, []uint64{x}); err != nil || has[x] {
			t.Errorf("the primary claims to have it: %v, %v", has, err)
		}
	})
}
