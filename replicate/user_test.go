package replicate

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// wantError checks the code of a refusal and what it says.
func wantError(t *testing.T, what string, err error, code volume.Code, text string) {
	t.Helper()
	if err == nil || volume.CodeOf(err) != code || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v (code %q), want %q with %q", what, err, volume.CodeOf(err), code, text)
	}
}

func TestTakeAndRemove(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b, ctx := w.node("a"), w.node("b"), context.Background()
		ids := []volume.ID{testVol}
		a.create()
		a.write("f", "0")
		wantError(t, "not assigned", a.eng().TakeSnapshot(ctx, ids, "x"), volume.CodeConflict, "not the primary")
		w.assign(1, "a", "b")
		w.waitFor("seeded", w.inSync("a", "b"))
		wantError(t, "on a replica", b.eng().TakeSnapshot(ctx, ids, "x"), volume.CodeConflict, "not the primary")
		wantError(t, "engine's name", a.eng().TakeSnapshot(ctx, ids, "flk-1"), volume.CodeInvalid, "flocker's own")

		a.write("f", "1")
		w.must(a.eng().TakeSnapshot(ctx, ids, "x"))
		a.write("f", "2")
		w.must(a.eng().TakeSnapshot(ctx, ids, "y"))
		wantError(t, "twice", a.eng().TakeSnapshot(ctx, ids, "x"), volume.CodeConflict, "x of volume 00000000000000aa exists already")
		w.must(a.host.Snapshot(ctx, []string{a.dataset() + "@by-hand"}, nil))
		wantError(t, "taken by hand", a.eng().TakeSnapshot(ctx, ids, "by-hand"), volume.CodeConflict, "by-hand of volume 00000000000000aa exists already")
		w.waitFor("replicated", func() bool { return has(b, "x") && has(b, "y") && w.inSync("a", "b")() })

		list, err := a.eng().Snapshots(ctx, testVol)
		w.must(err)
		i := slices.IndexFunc(list, func(s Snapshot) bool { return s.Name == "x" })
		if i < 0 || list[i].Kind != KindUser || list[i].Written == 0 || list[len(list)-1].Kind != KindEngine {
			t.Errorf("snapshots: %+v", list)
		}
		if n := a.eng().SnapshotCounts()[testVol]; n == 0 || n > len(list) {
			t.Errorf("count %d of %d", n, len(list))
		}
		x := list[i].GUID
		has, err := b.eng().Holds(ctx, testVol, []uint64{x, 12345})
		if err != nil || !has[x] || has[12345] {
			t.Errorf("replica holds %v, %v", has, err)
		}

		w.must(a.host.Hold(ctx, "keep", a.dataset()+"@x"))
		wantError(t, "held", a.eng().RemoveSnapshot(ctx, testVol, "x"), volume.CodeRefused, "is held")
		w.must(a.host.Release(ctx, "keep", a.dataset()+"@x"))
		w.must(a.host.Clone(ctx, a.dataset()+"@y", "tank/k", nil))
		wantError(t, "cloned", a.eng().RemoveSnapshot(ctx, testVol, "y"), volume.CodeRefused, "has clones: remove them first: tank/k")
		wantError(t, "the engine's", a.eng().RemoveSnapshot(ctx, testVol, list[len(list)-1].Name), volume.CodeRefused, "replication works with")
		wantError(t, "missing", a.eng().RemoveSnapshot(ctx, testVol, "z"), volume.CodeNotFound, "no snapshot z")
		wantError(t, "on the replica", b.eng().RemoveSnapshot(ctx, testVol, "x"), volume.CodeConflict, "not the primary")
		w.must(a.eng().RemoveSnapshot(ctx, testVol, "x"))
		wantError(t, "again", a.eng().RemoveSnapshot(ctx, testVol, "x"), volume.CodeNotFound, "no snapshot x")
		has, err = a.eng().Holds(ctx, testVol, []uint64{x})
		if err != nil || !has[x] {
			t.Errorf("the tombstone: %v, %v", has, err)
		}
		// The name is free again; so is that of its bookmark.
		w.must(a.eng().TakeSnapshot(ctx, ids, "x"))
		w.must(a.eng().RemoveSnapshot(ctx, testVol, "x"))
		a.write("f", "3")
		w.waitFor("in sync", w.inSync("a", "b"))
	})
}

// However many snapshots a volume has, they are listed by one command.
func TestListingIsOneCommand(t *testing.T) {
	inBubble(t, "a", func(w *world) {
		a, ctx := w.node("a"), context.Background()
		a.create()
		w.assign(1, "a")
		w.must(a.eng().TakeSnapshot(ctx, []volume.ID{testVol}, "first"))
		for i := range 999 {
			w.must(a.host.Snapshot(ctx, []string{fmt.Sprintf("%s@n%d", a.dataset(), i)}, nil))
		}
		// What the assignment set going has had its commands before these are counted.
		w.settle()
		a.host.ResetCommands()
		list, err := a.eng().Snapshots(ctx, testVol)
		w.must(err)
		commands := 0
		for _, n := range a.host.Commands() {
			commands += n
		}
		if len(list) < 1000 || commands != 1 {
			t.Errorf("%d snapshots took %v", len(list), a.host.Commands())
		}
	})
}

// What zfs would refuse for its length is cut at a name.
func TestPreparedProperty(t *testing.T) {
	if got, left := preparedProperty(nil); got != nil || left != 0 {
		t.Errorf("of nobody: %v, and %d more", got, left)
	}
	long := strings.Repeat("x", 3000)
	got, left := preparedProperty([]Prepared{{"db", []volume.ID{"a", "b"}}, {long, nil}, {long, nil}, {"x", nil}})
	if got[propPrepared] != "db:a:b,"+long || left != 2 {
		t.Errorf("it has %d bytes, and %d are left out", len(got[propPrepared]), left)
	}
}

// A pool that hangs takes what it was asked for when nobody waits any more, and nobody is ready
// for it any more. So that one says nothing of anybody.
func TestLateIsNotPrepared(t *testing.T) {
	inBubble(t, "a", func(w *world) {
		a, ids := w.node("a"), []volume.ID{testVol}
		a.create()
		w.assign(1, "a")
		take := func(name string, after bool) error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			defer a.host.Inject(zfsfake.Rule{Op: "snapshot", Match: "@" + name, After: after, Do: func(ctx context.Context, _, _ string) error {
				time.Sleep(time.Minute) // whatever ctx does
				return context.Cause(ctx)
			}})()
			return a.eng().TakeSnapshot(ctx, ids, name, Prepared{"db", ids})
		}
		prepared := func(name string) string {
			t.Helper()
			list, err := a.eng().Snapshots(context.Background(), testVol)
			w.must(err)
			i := slices.IndexFunc(list, func(s Snapshot) bool { return s.Name == name })
			if i < 0 {
				return "it is not there"
			}
			return strings.Join(list[i].Prepared, " ")
		}
		if err := take("late", true); err == nil {
			t.Error("it was taken in time")
		}
		if got := prepared("late"); got != "" {
			t.Errorf("what came late is prepared: %q", got)
		}
		if err := take("never", false); err == nil || prepared("never") != "it is not there" {
			t.Errorf("%v: %s", err, prepared("never"))
		}

		// What is there already is somebody else's.
		w.must(a.eng().TakeSnapshot(context.Background(), ids, "mine", Prepared{"db", ids}))
		w.must(a.host.Snapshot(context.Background(), []string{a.dataset() + "@other"}, map[string]string{propPrepared: "db:" + string(testVol)}))
		if err := take("mine", false); err == nil {
			t.Error("it was taken twice")
		}
		defer a.host.Inject(zfsfake.Rule{Op: "snapshot", Match: "@other", Do: func(ctx context.Context, _, _ string) error {
			time.Sleep(time.Minute) // of the bubble, as above
			return zfs.ErrExists
		}})()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := a.eng().TakeSnapshot(ctx, ids, "other", Prepared{"db", ids}); err == nil {
			t.Error("it was taken twice")
		}
		for _, name := range []string{"mine", "other"} {
			if got := prepared(name); got != "db" {
				t.Errorf("%s was prepared by db, and now by %q", name, got)
			}
		}
	})
}

// What does not fit into one command is not taken at one moment.
func TestTooManyTogether(t *testing.T) {
	inBubble(t, "a", func(w *world) {
		var ids []volume.ID
		for i := range maxTogether + 1 {
			ids = append(ids, volume.ID(fmt.Sprintf("%016x", i)))
		}
		wantError(t, "too many", w.node("a").eng().MayTake(context.Background(), ids, "x"), volume.CodeInvalid, "too many for one moment")
		wantError(t, "one less", w.node("a").eng().MayTake(context.Background(), ids[1:], "x"), volume.CodeConflict, "not the primary")
	})
}

// What the cluster holds is destroyed by nobody, as long as it does; to be sure of it one waits
// for what is being destroyed.
func TestHeldByTheCluster(t *testing.T) {
	inBubble(t, "a", func(w *world) {
		a, ctx := w.node("a"), context.Background()
		a.create()
		w.assign(1, "a")
		a.write("f", "1")
		w.must(a.eng().TakeSnapshot(ctx, []volume.ID{testVol}, "x"))
		list, err := a.eng().Snapshots(ctx, testVol)
		w.must(err)
		hold := func(guids ...uint64) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.held = guids
		}
		hold(1, list[slices.IndexFunc(list, func(s Snapshot) bool { return s.Name == "x" })].GUID)
		wantError(t, "held", a.eng().RemoveSnapshot(ctx, testVol, "x"), volume.CodeRefused, "x of volume 00000000000000aa is held: flockctl snapshot release")
		hold(1)
		w.must(a.eng().RemoveSnapshot(ctx, testVol, "x"))

		w.must(a.eng().Pruned(ctx))
		w.must(acquire(ctx, a.eng().pruning)) // something is being destroyed
		soon, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := a.eng().Pruned(soon); err == nil {
			t.Error("it is not waited for what is being destroyed")
		}
		release(a.eng().pruning)
	})
}

// A volume that freezes while a snapshot waits for others' gets none: not by cadence,
// and not for people, or for a Sync, who are told. Only who hands it over has one taken.
func TestFrozenWhileWaiting(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, ctx := w.node("a"), context.Background()
		a.create()
		w.assign(1, "a", "b")
		w.waitFor("seeded", w.inSync("a", "b"))
		for _, who := range []string{"cadence", "people", "sync"} {
			e := a.eng()
			w.must(acquire(ctx, e.snapping)) // others' snapshots take their time
			asked := make(chan error, 1)
			switch who {
			case "people":
				go func() { asked <- e.TakeSnapshot(ctx, []volume.ID{testVol}, "x") }()
			case "sync":
				go func() {
					_, err := e.SyncTo(ctx, testVol, nil)
					asked <- err
				}()
			default:
				a.write("f", "written before the handoff")
			}
			time.Sleep(5 * time.Second) // of the bubble: whoever wants one now waits for it
			before := a.snapshots()
			a.assignFrozen(true)
			release(e.snapping)
			switch who {
			case "people":
				wantError(t, "frozen meanwhile", <-asked, volume.CodeUnavailable, "being moved or removed")
			case "sync":
				wantError(t, "frozen meanwhile", <-asked, volume.CodeConflict, "being moved or removed")
			}
			time.Sleep(5 * time.Second)
			if after := a.snapshots(); len(after) != len(before) {
				t.Errorf("%s: there were %d snapshots, now %d", who, len(before), len(after))
			}
			if _, err := e.Flush(ctx, testVol, ""); err != nil {
				t.Errorf("%s: the last one before it is handed over: %v", who, err)
			}
			a.freeze(false)
			w.waitFor("in sync", w.inSync("a", "b"))
		}
	})
}

func TestFrozenTakesNone(t *testing.T) {
	inBubble(t, "a", func(w *world) {
		a := w.node("a")
		a.create()
		as := Assignment{Volume: testVol, Epoch: 1, Role: volume.RolePrimary, Primary: a.id, Frozen: true}
		a.assign(as)
		err := a.eng().TakeSnapshot(context.Background(), []volume.ID{testVol}, "x")
		wantError(t, "frozen", err, volume.CodeUnavailable, "being moved or removed")
		as.Frozen = false
		a.assign(as)
		w.must(a.eng().TakeSnapshot(context.Background(), []volume.ID{testVol}, "x"))
		as.Frozen = true
		a.assign(as)
		wantError(t, "remove, frozen", a.eng().RemoveSnapshot(context.Background(), testVol, "x"), volume.CodeUnavailable, "being moved or removed")
		_, err = a.eng().Prune(context.Background(), testVol, keepNone)
		wantError(t, "prune, frozen", err, volume.CodeUnavailable, "being moved or removed")
		a.assign()
		wantError(t, "gone", a.eng().TakeSnapshot(context.Background(), []volume.ID{"00000000000000bb"}, "x"), volume.CodeConflict, "not the primary")
	})
}

// More removals than an offer can name are told all, also to a replica that was away;
// and once all replicas know them they are forgotten, with the bookmarks that are too
// many: but not as long as one has not been told.
func TestManyRemoved(t *testing.T) {
	inBubble(t, "a b c", func(w *world) {
		a, b, c, ctx := w.node("a"), w.node("b"), w.node("c"), context.Background()
		a.create()
		w.assign(1, "a", "b", "c")
		w.waitFor("seeded", w.inSync("a", "b"))
		w.waitFor("seeded", w.inSync("a", "c"))
		names := make([]string, maxDropped+50)
		for i := range names {
			names[i] = fmt.Sprintf("%s@u%05d", a.dataset(), i)
			w.must(a.host.Snapshot(ctx, names[i:i+1], nil))
		}
		a.write("f", "1")
		a.eng().Refresh(testVol)
		w.must(a.eng().Sync(ctx, testVol))
		users := func(n *node) (count int) {
			for _, s := range n.snapshots() {
				if strings.HasPrefix(s.Name, "u0") {
					count++
				}
			}
			return count
		}
		if users(b) != len(names) || users(c) != len(names) {
			t.Fatalf("b has %d and c %d of %d snapshots", users(b), users(c), len(names))
		}

		w.partition("a", "c", true)
		e := a.eng()
		var list []zfs.Snapshot
		for _, s := range a.snapshots() {
			if strings.HasPrefix(s.Name, "u0") {
				list = append(list, s)
			}
		}
		w.must(acquire(ctx, e.pruning))
		failed, err := e.remove(ctx, testVol, list)
		release(e.pruning)
		if err != nil || len(failed) > 0 {
			t.Fatalf("%d stay: %v", len(failed), err)
		}
		w.waitFor("gone on b", func() bool { return users(b) == 0 })
		time.Sleep(time.Hour) // nothing may happen in it, so there is no condition to wait for
		left := func() (removed, marks int) {
			bookmarks, err := a.disk.Bookmarks(ctx, a.dataset(), false)
			w.must(err)
			e.mu.Lock()
			defer e.mu.Unlock()
			return len(e.copies[testVol].removed), len(bookmarks)
		}
		if removed, marks := left(); removed != len(names) || marks < len(names) {
			t.Errorf("c has heard of nothing, and %d removals and %d bookmarks are left", removed, marks)
		}
		w.partition("a", "c", false)
		w.waitFor("gone on c", func() bool { return users(c) == 0 })
		w.waitFor("forgotten", func() bool { n, _ := left(); return n == 0 })
		w.waitFor("only so many bookmarks are left", func() bool { _, n := left(); return n <= keepBookmarks+pruneBatch })
	})
}

// What somebody asked for stays until he can have done what it is for, and what a volume is just
// being made of stays for as long as that takes: on the primary and on its replicas.
func TestSnapshotsForClones(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.pair("one")
		busy := func(d time.Duration) {
			t.Helper()
			for until := time.Now().Add(d); time.Now().Before(until); time.Sleep(time.Second) {
				a.write("f", time.Now().String())
			}
			w.waitFor("in sync", w.inSync("a", "b"))
		}
		has := func(n *node, g uint64) bool {
			return slices.ContainsFunc(n.snapshots(), func(s zfs.Snapshot) bool { return s.GUID == g })
		}
		stay := func(guids ...uint64) {
			for _, n := range []*node{a, b} {
				n.mu.Lock()
				table := slices.Clone(n.table)
				n.mu.Unlock()
				for i := range table {
					table[i].Stay = guids
				}
				n.assign(table...)
			}
		}
		point, err := a.eng().SyncTo(context.Background(), testVol, []volume.NodeID{b.id})
		w.must(err)
		if busy(lentFor - 5*time.Second); !has(a, point.GUID) {
			t.Error("what was asked for is gone before anybody could do something with it")
		}
		if busy(time.Minute); has(a, point.GUID) {
			t.Error("what was asked for stays for ever")
		}
		kept, err := a.eng().SyncTo(context.Background(), testVol, []volume.NodeID{b.id})
		w.must(err)
		stay(kept.GUID)
		if busy(2 * time.Minute); !has(a, kept.GUID) || !has(b, kept.GUID) {
			t.Error("what a volume is being made of is gone")
		}
		stay()
		if busy(time.Minute); has(a, kept.GUID) || has(b, kept.GUID) {
			t.Error("what a volume was made of stays for ever")
		}
	})
}

// Of a copy that is half set aside nobody is told what it has: the rest is in the other part.
func TestSnapshotsOfHalves(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		w.setupRollback()
		a, ctx := w.node("a"), context.Background()
		a.assign()
		var asked []error
		for _, op := range []string{"clone", "promote", "rename"} {
			defer a.host.Inject(zfsfake.Rule{Op: op, Times: 1, After: true, Do: func(context.Context, string, string) error {
				_, err := a.eng().Snapshots(ctx, testVol)
				asked = append(asked, err)
				return nil
			}})()
		}
		w.must(a.goBack(2))
		if len(asked) != 3 {
			t.Fatalf("asked %d times", len(asked))
		}
		for _, err := range asked {
			wantError(t, "half way", err, volume.CodeUnavailable, "being set aside")
		}
		list, err := a.eng().Snapshots(ctx, testVol)
		if err != nil || !slices.ContainsFunc(list, func(s Snapshot) bool { return s.Name == "before" }) {
			t.Errorf("afterwards: %v, %v", list, err)
		}
	})
}
