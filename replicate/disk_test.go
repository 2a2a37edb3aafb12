package replicate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// keepNone is a policy that is asked for.
func keepNone(context.Context) (volume.SnapshotPolicy, error) { return nil, nil }

// policy gives all nodes that have the volume this policy.
func (w *world) policy(s string) {
	w.Helper()
	p, err := volume.ParseSnapshotPolicy(s)
	w.must(err)
	for _, n := range w.nodes {
		n.mu.Lock()
		table := slices.Clone(n.table)
		n.mu.Unlock()
		for i := range table {
			table[i].Snapshots = p
		}
		n.assign(table...)
	}
}

// scheduled are the names of a copy's scheduled snapshots, in the order taken.
func (n *node) scheduled() (list []string) {
	for _, s := range n.snapshots() {
		if _, _, ok := volume.ParseScheduledName(s.Name); ok {
			list = append(list, s.Name)
		}
	}
	return list
}

// Scheduled snapshots are taken while something is written, kept by policy on both
// sides, and outlive a policy that is taken away until Prune.
func TestScheduled(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b, ctx := w.node("a"), w.node("b"), context.Background()
		a.create()
		w.assign(1, "a", "b")
		w.policy("5m:3,15m:2")
		for i := range 40 {
			a.write("f", fmt.Sprint(i))
			time.Sleep(time.Minute)
		}
		// Bubbles begin at midnight, 2000-01-01.
		want := "auto-15m-20000101T001500Z auto-5m-20000101T002500Z auto-5m-20000101T003000Z auto-15m-20000101T003000Z auto-5m-20000101T003500Z"
		w.waitFor("the newest of each rule on a", func() bool { return strings.Join(a.scheduled(), " ") == want })
		w.waitFor("and on b", func() bool { return strings.Join(b.scheduled(), " ") == want })

		// Idle: nothing is taken, nothing goes; and the last write has its snapshot.
		w.waitFor("the last write in one of each", func() bool {
			list := a.scheduled()
			return len(list) == 5 && list[len(list)-1] == "auto-15m-20000101T004500Z" // and the excess is gone
		})
		w.waitFor("idle", w.inSync("a", "b"))
		before, newest := a.scheduled(), a.snapshots()[len(a.snapshots())-1]
		a.host.ResetCommands()
		time.Sleep(time.Hour)
		if got := a.host.Commands(); got["take"] != 0 || !slices.Equal(a.scheduled(), before) {
			t.Errorf("an idle hour cost %v and left %v of %v", got, a.scheduled(), before)
		}
		if guid, _ := a.newest(); guid != newest.GUID {
			t.Error("an idle hour has another newest snapshot")
		}

		// The policy goes: what it made stays, until somebody says Prune.
		w.policy("15m:1")
		w.waitFor("of a rule that is there the excess", func() bool { return len(a.scheduled()) == 4 && len(b.scheduled()) == 4 })
		plan, err := a.eng().PrunePlan(ctx, testVol, nil)
		if err != nil || len(plan) != 4 || plan[0].Kind != KindScheduled || plan[0].Rule != 5*time.Minute {
			t.Errorf("plan for no policy: %+v, %v", plan, err)
		}
		policy, err := volume.ParseSnapshotPolicy("15m:1")
		w.must(err)
		gone, err := a.eng().Prune(ctx, testVol, func(context.Context) (volume.SnapshotPolicy, error) {
			select {
			case a.eng().pruning <- struct{}{}:
				t.Error("the policy is asked for while others may still destroy what an older one does not keep")
				<-a.eng().pruning
			default:
			}
			return policy, nil
		})
		if err != nil || len(gone) != 3 {
			t.Errorf("pruned %+v, %v", gone, err)
		}
		if gone, err := a.eng().Prune(ctx, testVol, func(context.Context) (volume.SnapshotPolicy, error) { return nil, errors.New("nobody leads") }); err == nil || len(gone) > 0 {
			t.Errorf("pruned %+v, %v by a policy that nobody knows", gone, err)
		}
		w.waitFor("replicas follow", func() bool {
			return slices.Equal(a.scheduled(), b.scheduled()) && slices.Equal(a.scheduled(), []string{"auto-15m-20000101T004500Z"})
		})
		_, err = b.eng().Prune(ctx, testVol, keepNone)
		wantError(t, "prune on a replica", err, volume.CodeConflict, "not the primary")
		w.waitFor("in sync", w.inSync("a", "b"))
	})
}

// A volume without replicas has its history too, and a frozen one takes nothing.
func TestScheduledAlone(t *testing.T) {
	inBubble(t, "a", func(w *world) {
		a := w.node("a")
		a.create()
		w.assign(1, "a")
		w.policy("1h:2")
		for i := range 5 {
			a.write("f", fmt.Sprint(i))
			time.Sleep(time.Hour)
		}
		if got := a.scheduled(); len(got) != 2 || len(a.snapshots()) != 2 {
			t.Errorf("snapshots %v of %d", got, len(a.snapshots()))
		}
		a.freeze(true)
		before := a.scheduled()
		for i := range 3 {
			a.write("f", fmt.Sprint("frozen", i))
			time.Sleep(time.Hour)
		}
		if got := a.scheduled(); !slices.Equal(got, before) {
			t.Errorf("frozen, it took %v", got)
		}
	})
}

// What people remove goes on the replicas too: on one that was away when it is
// back, and after a failover on one whose new primary was told in time.
func TestRemovalReachesReplicas(t *testing.T) {
	inBubble(t, "a b c", func(w *world) {
		a, b, c, ctx := w.node("a"), w.node("b"), w.node("c"), context.Background()
		ids := []volume.ID{testVol}
		a.create()
		w.assign(1, "a", "b", "c")
		for _, name := range []string{"x", "y", "z"} {
			a.write("f", name)
			w.must(a.eng().TakeSnapshot(ctx, ids, name))
		}
		w.waitFor("everywhere", func() bool { return has(b, "z") && has(c, "z") && w.inSync("a", "b")() && w.inSync("a", "c")() })

		w.partition("a", "c", true)
		w.partition("b", "c", true)
		w.must(a.eng().RemoveSnapshot(ctx, testVol, "x"))
		w.waitFor("gone on b, though nothing is written", func() bool { return !has(b, "x") })
		w.must(b.host.Hold(ctx, "mine", b.dataset()+"@y"))
		w.must(a.eng().RemoveSnapshot(ctx, testVol, "y"))
		time.Sleep(time.Minute)
		if !has(c, "x") || !has(b, "y") || !has(b, "z") {
			t.Error("too much is gone")
		}

		// b was told; now it tells c.
		w.assign(2, "b", "a", "c")
		w.must(b.eng().Settle(ctx, testVol))
		b.write("f", "2")
		w.partition("b", "c", false)
		w.waitFor("c follows", func() bool { return w.inSync("b", "c")() && !has(c, "x") })
		if !has(c, "z") || !has(a, "z") {
			t.Error("what was not removed is gone")
		}
		w.must(b.host.Release(ctx, "mine", b.dataset()+"@y"))
		// Taken again, the name is another snapshot.
		w.must(b.eng().TakeSnapshot(ctx, ids, "x"))
		b.write("f", "3")
		w.waitFor("the new one", func() bool { return has(a, "x") && has(c, "x") && w.inSync("b", "c")() })
		time.Sleep(10 * time.Minute)
		if !has(b, "x") || !has(c, "x") || !has(c, "z") {
			t.Error("a tombstone took what came after it")
		}
	})
}

// Tombstones are bookmarks, not the engine's, of snapshots that are gone: newest
// first, and before all others those that some replica may not know.
func TestTombstones(t *testing.T) {
	dataDriven(t, "tombstones.txt", func(in map[string]string) string {
		c := newCopy()
		c.snaps, c.marks = parseSnaps(t, in["copy"])
		for _, g := range parseGUIDs(t, in["seen"]) {
			c.removed[g] = 1
		}
		list, all := c.tombstones(set(parseGUIDs(t, in["told"])), int(number(t, in["limit"])))
		told := append([]string{"tell"}, names(list, func(g guid) guid { return g })...)
		if !all {
			told = append(told, "and more")
		}
		return strings.Join(told, " ")
	})
}

// A bookmark is called after its snapshot, unless people gave the name twice, and says
// whether they removed it. Somebody else's is not one of these.
func TestMarkName(t *testing.T) {
	c := newCopy()
	c.marks = []mark{{name: "flk-removed-x", guid: 1, txg: 1}, {name: "flk-base-y", guid: 2, txg: 2}, {name: "z", guid: 3, txg: 3}}
	for _, s := range []struct {
		snap    snap
		removed bool
		want    string
	}{
		{snap{name: "y", guid: 9}, true, "flk-removed-y"},
		{snap{name: "x", guid: 255}, true, "flk-removed-x-ff"},
		{snap{name: "x", guid: 1}, true, ""},
		{snap{name: "renamed", guid: 1}, false, ""},
		{snap{name: "y", guid: 2}, false, ""},
		{snap{name: "y", guid: 2}, true, "flk-removed-y"},
		{snap{name: "z", guid: 3}, false, "flk-base-z"},
		{snap{name: "flk-e", guid: 4, pos: volume.Position{Epoch: 1, Seq: 1, GUID: 4}}, true, "flk-e"},
	} {
		if got := c.markName(s.snap, s.removed); got != s.want {
			t.Errorf("bookmark of %s, guid %d: %q, want %q", s.snap.name, s.snap.guid, got, s.want)
		}
	}
}

// Several volumes' snapshots are of one moment, and of all or none.
func TestTakeTogether(t *testing.T) {
	inBubble(t, "a", func(w *world) {
		a, ctx := w.node("a"), context.Background()
		other := volume.ID("00000000000000bb")
		a.create()
		w.must(a.host.CreateFilesystem(ctx, a.root()+"/"+string(other), nil))
		one := Assignment{Volume: testVol, Epoch: 1, Role: volume.RolePrimary, Primary: a.id}
		two := one
		two.Volume = other
		a.assign(one, two)
		ids := []volume.ID{testVol, other}
		w.must(a.eng().TakeSnapshot(ctx, ids, "x"))
		list, err := a.host.Snapshots(ctx, a.root(), true)
		w.must(err)
		if len(list) != 2 || list[0].CreateTXG != list[1].CreateTXG {
			t.Errorf("snapshots: %+v", list)
		}
		w.must(a.host.Snapshot(ctx, []string{a.root() + "/" + string(other) + "@y"}, nil))
		wantError(t, "one has it", a.eng().TakeSnapshot(ctx, ids, "y"), volume.CodeConflict, "y of volume "+string(other)+" exists already")
		if has(a, "y") {
			t.Error("taken of one alone")
		}
		a.host.ResetCommands()
		w.must(a.eng().TakeSnapshot(ctx, ids, "marked", Prepared{"db", ids}, Prepared{"cache", ids[1:]}))
		if got := a.host.Commands()["snapshot"]; got != 1 {
			t.Errorf("two volumes took %d commands", got)
		}
		for _, id := range ids {
			list, err := a.eng().Snapshots(ctx, id)
			w.must(err)
			for _, s := range list {
				want := ""
				if s.Name == "marked" {
					want = "db cache"
					if id == ids[0] {
						want = "db" // what got ready for another volume alone
					}
				}
				if got := strings.Join(s.Prepared, " "); got != want {
					t.Errorf("snapshot %s of %s is prepared by %q, want %q", s.Name, id, got, want)
				}
			}
		}
		// Not told, and yet done.
		remove := a.host.FailAfter("snapshot", "@z", 1, zfsfake.ErrInjected)
		w.must(a.eng().TakeSnapshot(ctx, ids, "z"))
		remove()
		remove = a.host.Fail("snapshot", "@q", 1, zfs.ErrNoSpace)
		if err := a.eng().TakeSnapshot(ctx, ids, "q"); !errors.Is(err, zfs.ErrNoSpace) {
			t.Errorf("without room: %v", err)
		}
		remove()
		w.must(a.eng().TakeSnapshot(ctx, ids, "q"))
	})
}

// One snapshot that cannot go does not keep the others, of its copy or another, and
// is not tried again and again.
func TestPruneAroundHeld(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b, ctx := w.node("a"), w.node("b"), context.Background()
		a.create()
		w.assign(1, "a", "b")
		w.waitFor("seeded", w.inSync("a", "b"))
		// After the engine has listed them: it learns of the hold by trying.
		_, name := a.newest()
		w.must(a.host.Hold(ctx, "mine", a.dataset()+"@"+name))
		w.must(b.host.Clone(ctx, b.dataset()+"@"+name, "tank/clone", nil))
		for i := range 60 {
			a.write("f", fmt.Sprint(i))
			time.Sleep(time.Second)
		}
		w.waitFor("in sync", w.inSync("a", "b"))
		for _, n := range []*node{a, b} {
			if k := len(n.snapshots()); k > keepNewest+keepAbove+pruneBatch || !has(n, name) {
				t.Errorf("%s has %d snapshots, the pinned one: %v", n.name, k, has(n, name))
			}
			if n.count(func(ev Event) bool { _, ok := ev.(PoolFailed); return ok }) > 0 {
				t.Errorf("%s complained", n.name)
			}
		}
		// A pass for every eight snapshots, and none for the pinned one.
		if got := a.host.Commands()["prune"]; got > 60/pruneBatch+2 {
			t.Errorf("%d commands to prune 60 snapshots", got)
		}
		w.must(a.host.Release(ctx, "mine", a.dataset()+"@"+name))
		a.write("f", "once more")
		w.waitFor("gone after the next audit", func() bool {
			a.write("f", time.Now().String())
			return !has(a, name)
		})
	})
}

// A first copy of a volume that is not assigned here any more goes: its part is
// thrown away, a complete one set aside. Nothing is concluded from an empty table
// before there was another.
func TestOrphanedSeeds(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b, ctx := w.node("a"), w.node("b"), context.Background()
		a.create()
		a.write("f", strings.Repeat("data", 100<<10))
		w.cutAt("sender", 200<<10)
		w.assign(1, "a", "b")
		w.waitFor("partial", func() bool { return w.isCut() && w.partial("b") })
		b.stop()
		// And a complete one, of another volume.
		other := volume.ID("00000000000000bb")
		seed := b.eng().cfg.seed(other, 7)
		w.must(b.host.CreateFilesystem(ctx, seed, nil))
		w.must(b.host.CreateFilesystem(ctx, b.eng().cfg.dataset(other), nil))
		w.must(b.host.Snapshot(ctx, []string{seed + "@" + volume.Position{Epoch: 7, Seq: 1}.SnapshotName()}, nil))
		w.partition("a", "b", true)
		b.assign()
		b.start()
		time.Sleep(2 * b.eng().cfg.Audit)
		if !w.partial("b") {
			t.Fatal("thrown away before the agent has said anything")
		}
		b.assign(Assignment{Volume: "00000000000000cc", Epoch: 1, Role: volume.RoleReplica, Primary: a.id})
		w.waitFor("thrown away", func() bool { return !w.partial("b") })
		list, err := b.host.Datasets(ctx, "tank")
		w.must(err)
		var names []string
		for _, d := range list {
			names = append(names, d.Name)
		}
		text := strings.Join(names, " ")
		if strings.Contains(text, "-seed-") || !strings.Contains(text, "flocker-aside/"+string(other)+"-0000000000000007-1") {
			t.Errorf("left: %s", text)
		}
	})
}

// A failure that is remembered for a volume's leftovers goes with them.
func TestFailingIsForgotten(t *testing.T) {
	inBubble(t, "a", func(w *world) {
		a, ctx := w.node("a"), context.Background()
		a.stop()
		seed := a.eng().cfg.seed(testVol, 1)
		w.must(a.host.CreateFilesystem(ctx, seed, nil))
		remove := a.host.Fail("abort-receive", "", 0, zfsfake.ErrInjected)
		a.start()
		failing := func() int {
			a.eng().mu.Lock()
			defer a.eng().mu.Unlock()
			return len(a.eng().failing)
		}
		w.waitFor("noticed", func() bool { return failing() == 1 })
		remove()
		w.must(a.host.Destroy(ctx, seed))
		w.waitFor("forgotten", func() bool { return failing() == 0 })
	})
}

// What is set aside says when and why, also after a crash between any two steps,
// and the snapshot that it hangs on disturbs nothing.
func TestAsideIsNoted(t *testing.T) {
	for nth := range 4 {
		inBubble(t, "a b", func(w *world) {
			a, b, ctx := w.node("a"), w.node("b"), context.Background()
			a.create()
			w.assign(1, "a", "b")
			w.waitFor("in sync", w.inSync("a", "b"))
			w.partition("a", "b", true)
			a.write("tail", "of a")
			before := len(a.snapshots())
			w.waitFor("a tail", func() bool { return len(a.snapshots()) > before })
			a.assign()
			w.assign(2, "b", "a")
			b.write("g", "two")
			if nth > 0 {
				a.host.Fail("rename", "", nth, zfsfake.ErrInjected)
			}
			w.partition("a", "b", false)
			w.waitFor("in sync", w.inSync("b", "a"))

			root := a.eng().cfg.asideRoot()
			list, err := a.host.Datasets(ctx, root)
			w.must(err)
			if len(list) != 2 {
				t.Fatalf("set aside: %+v", list)
			}
			aside, ok := ParseAside(list[1], root)
			if !ok || aside.Name != string(testVol)+"-0000000000000001-1" || aside.Volume != testVol || aside.Epoch != 1 ||
				aside.At.IsZero() || time.Since(aside.At).Abs() > time.Minute || aside.Reason != "it has snapshots that the primary lacks" || aside.Data == 0 {
				t.Errorf("with rename %d failing: %+v, %v", nth, aside, ok)
			}
			live, err := a.host.Dataset(ctx, a.dataset())
			w.must(err)
			if live.User[propAside] != "" {
				t.Errorf("the live copy is marked: %v", live.User)
			}

			// The common snapshot is pinned by the copy set aside.
			for i := range 40 {
				b.write("f", fmt.Sprint(i))
				time.Sleep(time.Second)
			}
			w.waitFor("in sync", w.inSync("b", "a"))
			if k := len(a.snapshots()); k > keepNewest+keepAbove+pruneBatch {
				t.Errorf("%d snapshots piled up", k)
			}
			if a.count(func(ev Event) bool { _, ok := ev.(PoolFailed); return ok }) > 0 && nth == 0 {
				t.Error("it complained")
			}
		})
	}
}

func TestParseAside(t *testing.T) {
	at := time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC)
	for _, c := range []struct{ name, note, want string }{
		{"00000000000000aa-0000000000000007-2", asideNote(at, "diverged: it\nhas\tmore"), "00000000000000aa 7 2026-11-21T03:00:00Z diverged: it has more"},
		{"00000000000000aa-0000000000000007-2", "", "00000000000000aa 7 0001-01-01T00:00:00Z "},
		{"00000000000000aa-0000000000000007-2", "somebody's note", "00000000000000aa 7 0001-01-01T00:00:00Z somebody's note"},
		{"00000000000000aa-0000000000000007-2/below", "", "no"},
		{"00000000000000aa-0000000000000007-0", "", "no"},
		{"00000000000000aa-7-2", "", "no"},
		{"mine", "", "no"},
	} {
		aside, ok := ParseAside(zfs.Dataset{Name: "tank/flocker-aside/" + c.name, User: map[string]string{propAside: c.note}}, "tank/flocker-aside")
		got := "no"
		if ok {
			got = fmt.Sprintf("%s %d %s %s", aside.Volume, aside.Epoch, aside.At.Format(time.RFC3339), aside.Reason)
		}
		if got != c.want {
			t.Errorf("%s, %q: %s, want %s", c.name, c.note, got, c.want)
		}
	}
	// Only "." says that a copy is all of its dataset.
	for value, want := range map[string]bool{"": false, ".": true, "sub": false} {
		d := zfs.Dataset{Name: "tank/flocker-aside/c8e77fab035a6f39-0000000000000002-1", User: map[string]string{volume.Subdir: value}}
		if aside, ok := ParseAside(d, "tank/flocker-aside"); !ok || aside.Whole != want {
			t.Errorf("%s=%q is %+v, %v, want whole %v", volume.Subdir, value, aside, ok, want)
		}
	}
	if _, ok := ParseAside(zfs.Dataset{Name: "tank/flocker-aside"}, "tank/flocker-aside"); ok {
		t.Error("the root itself is read as a copy")
	}
}

// People give their own snapshots names that flocker would not: none of them stops the
// volume's replication.
func TestNamesByHand(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b, ctx := w.node("a"), w.node("b"), context.Background()
		a.create()
		w.assign(1, "a", "b")
		w.waitFor("seeded", w.inSync("a", "b"))
		long := strings.Repeat("x", volume.MaxSnapshotName+1)
		for _, name := range []string{"before the upgrade", "-n", long, "mine"} {
			a.write("f", name)
			w.must(a.host.Snapshot(ctx, []string{a.dataset() + "@" + name}, nil))
			a.eng().Refresh(testVol)
		}
		a.write("f", "last")
		w.waitFor("in sync", func() bool { return has(b, "mine") && w.inSync("a", "b")() })
		if !has(b, "before the upgrade") || !has(b, "-n") || has(b, long) {
			t.Errorf("the replica has %v", b.snapshots())
		}
		if n := a.count(func(ev Event) bool { _, ok := ev.(SnapshotPassed); return ok }); n != 1 {
			t.Errorf("said %d times that the long name does not go", n)
		}
		w.must(a.eng().RemoveSnapshot(ctx, testVol, "before the upgrade"))
		w.waitFor("removed", func() bool { return !has(b, "before the upgrade") })
	})
}

// A copy that zfs does not find and yet lists is not one that is not there.
func TestDoubtfulCopy(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		a.create()
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		b.host.Fail("dataset", string(testVol), 0, zfs.ErrNotFound)
		if s, err := b.eng().look(context.Background(), testVol, true); err == nil {
			t.Errorf("looked at: %+v", s)
		}
	})
}

// Not to know is not to have none, and what the disk says counts.
func TestHolds(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b, ctx := w.node("a"), w.node("b"), context.Background()
		a.create()
		w.assign(1, "a", "b")
		synctest.Wait()
		w.must(a.eng().TakeSnapshot(ctx, []volume.ID{testVol}, "x"))
		a.write("f", "1")
		w.waitFor("x", func() bool { return has(b, "x") && w.inSync("a", "b")() })
		x := a.snapshots()[slices.IndexFunc(a.snapshots(), func(s zfs.Snapshot) bool { return s.Name == "x" })].GUID
		asked := func() (bool, error) {
			has, err := a.eng().Holds(ctx, testVol, []uint64{x})
			return has[x], err
		}
		if has, err := asked(); err != nil || !has {
			t.Errorf("x is here: %v, %v", has, err)
		}
		for _, op := range []string{"snapshots", "bookmarks"} {
			remove := a.host.Fail(op, "", 0, zfs.ErrSuspended)
			if _, err := asked(); !errors.Is(err, zfs.ErrSuspended) {
				t.Errorf("without %s: %v", op, err)
			}
			remove()
		}
		// Nobody has told the engine, and it has not looked yet.
		w.must(a.host.DestroySnapshots(ctx, a.dataset(), []string{"x"}))
		if has, err := asked(); err != nil || has {
			t.Errorf("x was destroyed by hand: %v, %v", has, err)
		}
		if _, err := a.eng().Holds(ctx, "00000000000000ee", []uint64{x}); volume.CodeOf(err) != volume.CodeNotFound {
			t.Errorf("of a volume that has no copy here: %v", err)
		}
	})
}

// Asked what they hold, the replicas of idle volumes answer from the listing that
// their node makes anyway.
func TestIdleReplicaCostsNothing(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.pair("1")
		for range 2 {
			time.Sleep(time.Minute)
			b.host.ResetCommands()
			before := b.eng().CompleteAsOf(testVol)
			time.Sleep(4 * time.Minute)
			got := b.host.Commands()
			for op := range got {
				if op != "datasets" && op != "snapshots" && op != "bookmarks" {
					t.Errorf("idle, the replica ran %v", got)
				}
			}
			if b.eng().CompleteAsOf(testVol).Sub(before) < 3*time.Minute {
				t.Error("it was not asked, or did not answer")
			}
		}
		// A copy that vanished is missed all the same.
		w.must(b.host.Destroy(context.Background(), b.dataset()))
		w.waitFor("found missing, and made anew", func() bool { return a.streams(kindFull) == 2 && w.inSync("a", "b")() })
	})
}

// A primary that comes back as a replica prunes nothing until it is in step: what it
// shares with its successor may be older than its own newest snapshots.
func TestReturningPrimaryKeepsBase(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		a.create()
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		_, common := b.newest()
		// Cut off for less than it takes to be called away, a goes on.
		w.partition("a", "b", true)
		for i := range pruneBatch + keepNewest {
			a.write("f", fmt.Sprint(i))
			_, err := a.eng().Flush(context.Background(), testVol, "")
			w.must(err)
		}
		w.assign(2, "b", "a")
		time.Sleep(2 * time.Minute)
		if !has(a, common) {
			t.Fatal("what both have is gone")
		}
		w.must(b.eng().Settle(context.Background(), testVol))
		b.write("g", "1")
		w.partition("a", "b", false)
		w.waitFor("in step", w.inSync("b", "a"))
		if b.streams(kindFull) > 0 {
			t.Error("a full stream was needed")
		}
	})
}

// A stream costs a replica one process, which receives it. What came is read back by one
// more before anything is pruned, of all copies at once.
func TestCommandsPerStream(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		a.create()
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		b.host.ResetCommands()
		before := a.streams("")
		for i := range 60 {
			a.write("f", fmt.Sprint(i))
			time.Sleep(time.Second)
		}
		w.waitFor("in sync", w.inSync("a", "b"))
		n, got := a.streams("")-before, b.host.Commands()
		if n < 50 || got["receive"] != n || got["snapshots-named"] > n/pruneBatch+1 || got["snapshots"] > 2 || got["dataset"] > n/20 || got["prune"] < 3 || got["prune"] > n/pruneBatch+1 {
			t.Errorf("%d streams cost %v", n, got)
		}
	})
}

// A step that somebody waits for takes three commands, as by hand: the snapshot, the send,
// the receive. What is read and pruned besides is so for eight steps at once.
func TestCommandsPerStep(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.pair("one")
		a.host.ResetCommands()
		b.host.ResetCommands()
		const steps = 6 * pruneBatch
		for i := range steps {
			a.write("f", fmt.Sprint(i))
			w.must(a.eng().Sync(context.Background(), testVol))
		}
		primary, replica := a.host.Commands(), b.host.Commands()
		maps.DeleteFunc(primary, func(op string, _ int) bool { // the test's own, to write
			return slices.Contains([]string{"write", "mount", "unmount", "set", "inherit"}, op)
		})
		if primary["take"] != steps || primary["send"] != steps || replica["receive"] != steps {
			t.Errorf("%d steps cost %v and %v", steps, primary, replica)
		}
		rest := 0
		for _, commands := range []map[string]int{primary, replica} {
			for _, n := range commands {
				rest += n
			}
		}
		if rest -= 3 * steps; rest > 3*steps/pruneBatch+2 {
			t.Errorf("%d steps cost %d commands besides: %v and %v", steps, rest, primary, replica)
		}
		if !w.alike("a", "b")() {
			t.Error("what was said to be there is not")
		}
	})
}

// A full pool takes no note of when a copy was set aside. Without one the copy stays aside
// for ever, which is safe; with one of before, from a set-aside that was given up, it would
// be destroyed at once, so it is not set aside until the note can be written.
func TestAsideWithoutSpaceForItsNote(t *testing.T) {
	for _, before := range []string{"", asideNote(time.Now().Add(-1000*time.Hour), "of long ago")} {
		inBubble(t, "a b", func(w *world) {
			ctx := context.Background()
			a, b := w.pair("1")
			b.write("mine", "1")
			if before != "" {
				w.must(b.host.SetProperties(ctx, b.dataset(), map[string]string{propAside: before}))
			}
			aside := func() (all []volume.Aside) {
				root := b.eng().cfg.asideRoot()
				list, err := b.host.Datasets(ctx, root)
				if !errors.Is(err, zfs.ErrNotFound) {
					w.must(err)
				}
				for _, d := range list {
					if x, ok := ParseAside(d, root); ok {
						all = append(all, x)
					}
				}
				return all
			}
			space := b.host.Fail("set", "", 0, zfs.ErrNoSpace)
			a.write("f", "2")
			if before == "" {
				w.waitFor("in sync", w.inSync("a", "b"))
				if all := aside(); len(all) != 1 || !all[0].At.IsZero() {
					t.Errorf("without space for a note: %+v", all)
				}
				return
			}
			time.Sleep(time.Minute) // nothing may be set aside in
			if all := aside(); len(all) > 0 {
				t.Errorf("set aside with the note of before: %+v", all)
			}
			space()
			w.waitFor("in sync", w.inSync("a", "b"))
			if all := aside(); len(all) != 1 || time.Since(all[0].At).Abs() > time.Hour {
				t.Errorf("with space for a note: %+v", all)
			}
		})
	}
}
