package replicate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// setupRollback makes a volume with a snapshot "before" on a and b, in epoch 1, and more that
// was written and snapshotted after it.
func (w *world) setupRollback() {
	w.Helper()
	a := w.node("a")
	a.create()
	a.write("f", "one")
	w.assign(1, "a", "b")
	w.waitFor("in sync", w.inSync("a", "b"))
	w.userSnapshot("before")
	w.waitFor("in sync", w.inSync("a", "b"))
	a.write("f", "two")
	a.write("tail", "undone")
	w.userSnapshot("after")
	w.waitFor("in sync", w.inSync("a", "b"))
	a.write("tail2", "undone, too")
	_, err := a.eng().Flush(context.Background(), testVol, w.node("b").id)
	w.must(err)
}

// before is the line on which the volume of setupRollback goes on from its snapshot.
func (n *node) before(epoch volume.Epoch) volume.Line {
	n.w.Helper()
	for _, root := range []string{n.dataset(), n.pool} {
		list, err := n.disk.Snapshots(context.Background(), root, true)
		if err != nil && !errors.Is(err, zfs.ErrNotFound) {
			n.w.Fatal(err)
		}
		for _, s := range list {
			if s.Name == "before" {
				return volume.Line{Epoch: epoch, GUID: s.GUID, Snapshot: s.Name, Taken: s.Creation}
			}
		}
	}
	n.w.Fatal("there is no snapshot before")
	return volume.Line{}
}

// goBack is what an agent does in the epoch that a rollback began.
func (n *node) goBack(epoch volume.Epoch) error {
	n.w.Helper()
	return n.eng().GoBack(context.Background(), testVol, epoch, n.before(2), nil)
}

// checkRollback: a holds what the snapshot has, and these files besides.
func (w *world) checkRollback(files ...string) {
	w.Helper()
	a := w.node("a")
	if got, err := a.disk.ReadFile(a.dataset(), "f"); string(got) != "one" {
		w.Errorf("f is %q, %v after a rollback", got, err)
	}
	for _, undone := range []string{"tail", "tail2"} {
		if got, err := a.disk.ReadFile(a.dataset(), undone); err == nil {
			w.Errorf("%s is still there: %q", undone, got)
		}
	}
	for _, file := range files {
		if _, err := a.disk.ReadFile(a.dataset(), file); err != nil {
			w.Errorf("what was written since is gone: %v", err)
		}
	}
	if n := a.streams(kindFull); n != 1 {
		w.Errorf("%d full streams, want that of the first copy", n)
	}
}

// A volume goes back, again and again, without losing what is written on the line; its
// replica sets aside what was undone, and says so, and gets what is written from then on.
func TestRollback(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		w.setupRollback()
		a.assign()
		ctx := context.Background()
		w.must(a.host.SetProperties(ctx, a.dataset(), map[string]string{"mountpoint": "/m"}))
		w.must(a.host.Mount(ctx, a.dataset(), true))
		if err := a.goBack(2); volume.CodeOf(err) != volume.CodeConflict {
			t.Errorf("while it is mounted it goes back: %v", err)
		}
		w.must(a.host.Unmount(ctx, a.dataset()))
		w.must(a.goBack(2))
		w.hasAside(a, "tail", "tail2")
		a.write("g", "written on the line, and in no snapshot")
		w.must(a.goBack(2)) // said once more
		w.must(a.goBack(3)) // it was taken from a, and given back
		w.must(a.disk.SetProperties(context.Background(), a.dataset(), map[string]string{propEpoch: volume.Epoch(2).String()}))
		w.hasAside(a, "tail", "tail2")
		line := a.before(2)
		w.assignLine(2, line, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		w.checkRollback("g")
		w.hasAside(b, "tail", "tail2")
		for _, n := range []*node{a, b} {
			list, err := n.disk.Datasets(context.Background(), "tank/flocker-aside")
			w.must(err)
			if x, _ := ParseAside(list[1], "tank/flocker-aside"); x.Reason != Undone(line) {
				t.Errorf("on %s it was set aside because %q", n.name, x.Reason)
			}
		}
		w.must(a.eng().GoBack(context.Background(), testVol, 4, line, nil)) // it has snapshots of the line by now
		a.write("h", "later")
		w.waitFor("in sync", w.inSync("a", "b"))
		w.checkRollback("g", "h")
		w.hasAside(a, "tail", "tail2")
	})
}

// A replica that is promoted after a rollback, and that never heard of it from the primary,
// promises to stand where the line begins, and goes back itself.
func TestRollbackOfPromoted(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		w.setupRollback()
		a.assign()
		w.partition("a", "b", true)
		line := b.before(2)
		p, err := b.eng().Promise(context.Background(), testVol, 3, line)
		w.must(err)
		if p.Newest != line.Start() || !p.AsOf.Equal(line.Taken) {
			t.Errorf("a copy of what was undone promises to stand at %+v as of %s, want %+v", p.Newest, p.AsOf, line.Start())
		}
		lost := line
		lost.GUID = 1
		p, err = b.eng().Promise(context.Background(), testVol, 3, lost)
		w.must(err)
		if p.Newest.Epoch != 1 {
			t.Errorf("a copy without the snapshot promises to stand at %+v", p.Newest)
		}
		if err := b.eng().GoBack(context.Background(), testVol, 3, lost, nil); volume.CodeOf(err) != volume.CodeRefused {
			t.Errorf("without the snapshot it goes back: %v", err)
		}
		b.assign()
		w.must(b.eng().GoBack(context.Background(), testVol, 3, line, nil))
		w.hasAside(b, "tail", "tail2")
		b.write("g", "on the line")
		w.partition("a", "b", false)
		w.assignLine(3, line, "b", "a")
		w.waitFor("the old primary follows", w.inSync("b", "a"))
		w.hasAside(a, "tail", "tail2")
		p, err = a.eng().Promise(context.Background(), testVol, 4, line)
		w.must(err)
		if p.Newest.Epoch != 3 {
			t.Errorf("a copy on the line promises to stand at %+v", p.Newest)
		}
	})
}

// A copy that went back stands where the line begins, though that snapshot is removed before
// there is any on the line, as it may be where there is no replica; and it is left as it is.
func TestRollbackWithoutSnapshot(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a := w.node("a")
		w.setupRollback()
		a.assign()
		w.must(a.goBack(2))
		line := a.before(2)
		asides, err := a.disk.Datasets(context.Background(), "tank/flocker-aside")
		w.must(err)
		w.must(a.host.Destroy(context.Background(), asides[1].Name))
		w.must(a.host.DestroySnapshots(context.Background(), a.dataset(), []string{"before"}))
		a.write("g", "on the line")
		p, err := a.eng().Promise(context.Background(), testVol, 3, line)
		if err != nil || p.Newest != line.Start() {
			t.Errorf("a copy that is marked promises to stand at %+v, %v", p.Newest, err)
		}
		w.must(a.eng().GoBack(context.Background(), testVol, 3, line, nil))
		w.checkRollback("g")
		w.assignLine(3, line, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
	})
}

// What a replica stands on that stopped before the snapshot goes along, though only a bookmark is
// left of it: it gets an increment, and sets nothing aside.
func TestRollbackKeepsBookmarks(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.pair("one")
		ctx := context.Background()
		_, base := b.newest()
		w.partition("a", "b", true)
		a.write("f", "two")
		_, err := a.eng().SyncTo(ctx, testVol, nil)
		w.must(err)
		w.must(a.eng().TakeSnapshot(ctx, []volume.ID{testVol}, "before"))
		a.write("tail", "undone")
		_, err = a.eng().SyncTo(ctx, testVol, nil)
		w.must(err)
		w.must(a.host.Bookmark(ctx, a.dataset()+"@"+base, a.dataset()+"#"+base))
		w.must(a.host.DestroySnapshots(ctx, a.dataset(), []string{base}))
		a.assign()
		w.must(a.goBack(2))
		w.hasAside(a, "tail")
		w.partition("a", "b", false)
		w.assignLine(2, a.before(2), "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		if got, err := b.disk.ReadFile(b.dataset(), "f"); string(got) != "two" {
			t.Errorf("f is %q, %v on the replica", got, err)
		}
		if n := a.streams(kindFull); n != 1 {
			t.Errorf("%d full streams, want that of the first copy", n)
		}
		if n := b.count(setAside); n != 0 {
			t.Errorf("the replica has set aside %d copies", n)
		}
	})
}

// What a volume is to go back to is not pruned from under it, and what is gone is known to be.
func TestPin(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a := w.node("a")
		a.create()
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		old := a.snapshots()[0]
		base, err := a.eng().Pin(context.Background(), testVol, old.GUID)
		w.must(err)
		if base.GUID != old.GUID {
			t.Errorf("the engine's newest at or before its first one is %+v", base)
		}
		pass := func() {
			for range keepNewest + keepAbove + 3*pruneBatch {
				a.write("f", time.Now().String())
				w.waitFor("in sync", w.inSync("a", "b"))
			}
		}
		pass()
		if a.snapshots()[0].GUID != old.GUID {
			t.Error("a pinned snapshot was pruned")
		}
		if a.count(pruned) == 0 {
			t.Fatal("nothing was pruned")
		}
		a.eng().Unpin(testVol)
		mend := a.host.Inject(zfsfake.Rule{Do: func(context.Context, string, string) error { return zfsfake.ErrInjected }})
		if _, err := a.eng().Pin(context.Background(), testVol, old.GUID); err == nil {
			t.Error("what cannot be listed is pinned")
		}
		mend()
		pass()
		if a.snapshots()[0].GUID == old.GUID {
			t.Error("a snapshot that is pinned no more stays")
		}
		if _, err := a.eng().Pin(context.Background(), testVol, old.GUID); volume.CodeOf(err) != volume.CodeNotFound {
			t.Errorf("a snapshot that is gone is pinned: %v", err)
		}
	})
}

// On a pool that has no room for what going back takes it is not begun.
func TestPinWithoutRoom(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		w.setupRollback()
		a, ctx := w.node("a"), context.Background()
		g := a.before(2).GUID
		scarce := &scarcePool{}
		scarce.left.Store(backSpace - 1)
		a.with(func(c *Config) { scarce.Pool, c.Pool = c.Pool, scarce })
		_, err := a.eng().Pin(ctx, testVol, g)
		wantError(t, "with little room", err, volume.CodeRefused, "to set aside what is undone takes some")
		e := a.eng()
		e.mu.Lock()
		if e.pins[testVol] != 0 {
			t.Error("it is pinned all the same")
		}
		e.mu.Unlock()
		scarce.left.Add(1)
		if _, err = a.eng().Pin(ctx, testVol, g); err != nil {
			t.Errorf("with enough room: %v", err)
		}
	})
}

// scarcePool is a large pool that says how much it has left.
type scarcePool struct {
	Pool
	left atomic.Int64
}

func (p *scarcePool) Dataset(ctx context.Context, name string) (zfs.Dataset, error) {
	d, err := p.Pool.Dataset(ctx, name)
	d.Used, d.Available = 1<<40, p.left.Load()
	return d, err
}

// A replica that ends before what the volume was rolled back to has nothing that was undone. It
// says so, unless there is something in it of which nobody knows when it came.
func TestPromiseBefore(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.pair("one")
		ctx := context.Background()
		had := b.eng().Positions()[testVol]
		w.partition("a", "b", true)
		a.write("f", "two")
		later, err := a.eng().SyncTo(ctx, testVol, nil)
		w.must(err)
		w.must(a.eng().TakeSnapshot(ctx, []volume.ID{testVol}, "before"))
		a.write("f", "three")
		_, err = a.eng().SyncTo(ctx, testVol, nil)
		w.must(err)
		line := a.before(2)
		line.Base, err = a.eng().Pin(ctx, testVol, line.GUID)
		w.must(err)
		if !line.Base.Same(later) {
			t.Errorf("the engine's newest before it is %+v, want %+v", line.Base, later)
		}
		promise := func(base volume.Position) bool {
			t.Helper()
			line := line
			line.Base = base
			p, err := b.eng().Promise(ctx, testVol, 3, line)
			w.must(err)
			if !p.Newest.Same(had) {
				t.Errorf("it stands at %+v, want %+v", p.Newest, had)
			}
			return p.Before
		}
		other := had
		other.GUID++
		for _, tt := range []struct {
			name string
			base volume.Position
			want bool
		}{
			{"the engine's newest before it", line.Base, true},
			{"that very one", had, true},
			{"another one in its place", other, false},
			{"an older one", volume.Position{Epoch: had.Epoch, Seq: had.Seq - 1, GUID: 1}, false},
			{"one of another epoch", volume.Position{Epoch: had.Epoch + 1, Seq: had.Seq + 9, GUID: 1}, false},
			{"none that is known", volume.Position{}, false},
		} {
			if got := promise(tt.base); got != tt.want {
				t.Errorf("where the base is %s: before it %v, want %v", tt.name, got, tt.want)
			}
		}
		b.write("f", "by hand")
		if promise(line.Base) {
			t.Error("a copy that was changed says that it has nothing that was undone")
		}
		w.must(b.host.Snapshot(ctx, []string{b.dataset() + "@mine"}, nil))
		if promise(line.Base) {
			t.Error("a copy with a snapshot of people on top says that it has nothing that was undone")
		}
	})
}

// What was written before an earlier failover, and lost by that, is not told as undone.
func TestReasonFor(t *testing.T) {
	line := volume.Line{Epoch: 4, GUID: 7, Snapshot: "before"}
	of := func(name string) snap { return newSnap(zfs.Snapshot{Name: name, GUID: 9}) }
	engine := func(epoch volume.Epoch) snap { return of(volume.Position{Epoch: epoch, Seq: 1}.SnapshotName()) }
	for _, tt := range []struct {
		name  string
		snaps []snap
		want  string
	}{
		{"of the epoch that was rolled back", []snap{engine(2), engine(3)}, Undone(line)},
		{"and of people after that", []snap{engine(3), of("mine")}, Undone(line)},
		{"of an epoch before", []snap{engine(2), of("mine")}, "it has snapshots that the primary lacks; since it was written to, the volume was rolled back to its snapshot before"},
		{"of people only", []snap{of("mine")}, "it has snapshots that the primary lacks; since it was written to, the volume was rolled back to its snapshot before"},
	} {
		if got := reasonFor("it has snapshots that the primary lacks", tt.snaps, line); got != tt.want {
			t.Errorf("%s: %q", tt.name, got)
		}
	}
}

// What is done to a copy so that it is on a line, by its snapshots: engine's as epoch, others'
// as name; the snapshot that the volume went back to is "x".
func TestGoBack(t *testing.T) {
	line := volume.Line{Epoch: 3, GUID: 77}
	for _, tt := range []struct {
		name    string
		snaps   []string
		written bool
		marked  bool
		want    goingBack
	}{
		{"all of the old line", []string{"1", "x", "2", "2"}, false, false, goFork},
		{"a user's alone", []string{"1", "x", "y"}, false, false, goFork},
		{"written to after it", []string{"1", "x"}, true, false, goFork},
		{"exactly there", []string{"1", "x"}, false, false, goMark},
		{"without it", []string{"1", "2"}, false, false, goLost},
		{"nothing at all", nil, false, false, goLost},
		{"on the line, by its mark", []string{"1", "x"}, true, true, goneBack},
		{"on the line, with a user's", []string{"1", "x", "y"}, true, true, goneBack},
		{"on the line, by a snapshot", []string{"1", "x", "3"}, true, false, goneBack},
		{"on the line, and moved since", []string{"1", "x", "4"}, false, false, goneBack},
		{"on the line, of which it is pruned", []string{"4"}, true, false, goneBack},
	} {
		var snaps []snap
		for i, word := range tt.snaps {
			s := snap{name: word, guid: guid(i + 1)}
			switch word {
			case "x":
				s.guid = 77
			case "y":
			default:
				s.pos = volume.Position{Epoch: volume.Epoch(word[0] - '0'), Seq: uint64(i + 1), GUID: uint64(s.guid)}
			}
			snaps = append(snaps, s)
		}
		if got := goBack(snaps, tt.written, tt.marked, line); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// A replica catches up on the line, has only what people took there, and is then all that is left:
// it goes on with that, also after a restart, and says until when it has all. So it is where the
// snapshot that the volume went back to is one of people, and where it is one of the engine's; for a
// replica that has to set aside what was undone, and for one that was away since before the snapshot.
func TestRollbackCaughtUp(t *testing.T) {
	for _, behind := range []bool{false, true} {
		for _, people := range []bool{true, false} {
			t.Run(fmt.Sprintf("behind %v, a snapshot of people %v", behind, people), func(t *testing.T) {
				inBubble(t, "a b", func(w *world) { w.rollbackCaughtUp(behind, people) })
			})
		}
	}
}

func (w *world) rollbackCaughtUp(behind, people bool) {
	ctx := context.Background()
	a, b := w.node("a"), w.node("b")
	if behind {
		a.create()
		a.write("f", "none")
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		w.partition("a", "b", true)
		for _, file := range []string{"f", "tail", "tail2"} {
			a.write(file, "one")
			_, err := a.eng().Flush(ctx, testVol, "")
			w.must(err)
			if file == "f" {
				w.userSnapshot("before")
			}
		}
	} else {
		w.setupRollback()
	}
	a.assign()
	line := a.before(2)
	if !people {
		list := a.snapshots()
		i := slices.IndexFunc(list, func(s zfs.Snapshot) bool { return s.GUID == line.GUID }) - 1
		w.must(a.host.DestroySnapshots(ctx, a.dataset(), []string{"before"}))
		line.GUID, line.Snapshot, line.Taken = list[i].GUID, list[i].Name, list[i].Creation
	}
	w.partition("a", "b", true)
	w.must(a.eng().GoBack(ctx, testVol, 2, line, nil))
	w.assignLine(2, line, "a", "b")
	a.write("g", "written on the line")
	time.Sleep(time.Minute) // in a bubble; nothing is waited for, the copy only is to be older
	w.userSnapshot("x1")
	a.write("h", "written later")
	w.userSnapshot("x2")
	a.write("i", "written last")
	_, err := a.eng().Flush(ctx, testVol, "")
	w.must(err)
	b.host.Inject(zfsfake.Rule{Op: "receive", Do: func(context.Context, string, string) error {
		if has(b, "x2") {
			return zfsfake.ErrInjected
		}
		return nil
	}})
	w.partition("a", "b", false)
	w.waitFor("b is about to be in step", func() bool { return has(b, "x2") })
	w.partition("a", "b", true)
	b.stop()
	b.start()
	b.assign()
	p, err := b.eng().Promise(ctx, testVol, 3, line)
	w.must(err)
	if p.Newest != line.Start() || p.AsOf.Before(line.Taken.Add(40*time.Second)) {
		w.Errorf("it promises to stand at %+v as of %s, a line that began at %s", p.Newest, p.AsOf, line.Taken)
	}
	w.must(b.eng().GoBack(ctx, testVol, 3, line, nil))
	for _, file := range []string{"g", "h"} {
		if _, err := b.disk.ReadFile(b.dataset(), file); err != nil {
			w.Errorf("%s was undone: %v", file, err)
		}
	}
	if !behind {
		w.hasAside(b, "tail", "tail2")
	}
}

// What is known to be on the line of snapshot x: 1 is below it, 2 to 4 are above.
func TestJoins(t *testing.T) {
	const x = 77
	line := volume.Line{Epoch: 3, GUID: x}
	for _, tt := range []struct {
		name  string
		snaps []guid
		bases []guid
		twist func(*standing, *offer)
		want  bool
	}{
		{"catching up", []guid{1, x, 2}, []guid{1, x, 2, 3}, nil, true},
		{"all of it", []guid{1, x, 2}, []guid{1, x, 2}, nil, true},
		{"where it begins", []guid{1, x}, []guid{1, x, 2}, nil, true},
		{"where it begins, and written to", []guid{1, x}, []guid{1, x, 2}, func(s *standing, _ *offer) { s.written = true }, false},
		{"where it begins, and modified", []guid{1, x}, []guid{1, x, 2}, func(s *standing, _ *offer) { s.modified = true }, false},
		{"where it begins, and mounted", []guid{1, x}, []guid{1, x, 2}, func(s *standing, _ *offer) { s.mounted = true }, false},
		{"below it", []guid{1}, []guid{1, x, 2}, nil, false},
		{"with what was undone", []guid{1, x, 4}, []guid{1, x, 2}, nil, false},
		{"without it, perhaps of another past", []guid{1, 2}, []guid{1, 2, 3}, nil, false},
		{"offered before it began", []guid{1, x, 4}, []guid{1, x, 4}, func(_ *standing, o *offer) { o.Epoch = 2 }, false},
		{"marked", []guid{1, x, 2}, []guid{1, x, 2, 3}, func(s *standing, _ *offer) { s.line = line.Mark(testVol) }, false},
		{"marked when it was another volume", []guid{1, x, 2}, []guid{1, x, 2, 3}, func(s *standing, _ *offer) { s.line = line.Mark("0") }, true},
		{"not there", nil, []guid{1, x}, nil, false},
	} {
		s := standing{exists: true}
		for _, g := range tt.snaps {
			s.snaps = append(s.snaps, snap{guid: g})
		}
		o := offer{Epoch: 3, Bases: tt.bases}
		if tt.twist != nil {
			tt.twist(&s, &o)
		}
		if got := s.joins(testVol, o, line); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
		if s.joins(testVol, o, volume.Line{}) {
			t.Errorf("%s: it joins a line that there is not", tt.name)
		}
	}
	s := standing{snaps: []snap{{guid: 1}, {guid: x}, {guid: 2}, {guid: 4}}}
	for _, tt := range []struct {
		st   step
		want bool
	}{
		{step{act: actFork, common: 2}, true},
		{step{act: actFork, common: x}, true},
		{step{act: actFork, common: 1}, false},
		{step{act: actFork}, false}, // of nobody knows when
		{step{act: actShelve, common: 2}, false},
	} {
		props := ofLine(testVol, map[string]string{"a": "b"}, tt.st, s, offer{Epoch: 3}, line)
		if got := props[propLine] == line.Mark(testVol); got != tt.want || props["a"] != "b" {
			t.Errorf("after %+v the copy has %v", tt.st, props)
		}
	}
}
