package zfstest

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/zfs"
)

func testSnapshots(w *world, _ Env) {
	z := w.a.ZFS
	fs := w.a.mounted("a")
	w.a.must(z.SetProperties(w.ctx, fs, map[string]string{"flocker:prepared": "v"}))
	// Names against the order of time, as two in one second.
	for _, n := range []string{"z", "m", "a"} {
		w.a.write(fs, "f", data(1, 50000))
		w.a.must(z.Snapshot(w.ctx, []string{fs + "@" + n}, map[string]string{"flocker:prepared": "of " + n}))
	}
	list := w.a.snapshots(fs)
	if got := w.a.names(fs); got != "z m a" {
		w.Errorf("order: %s", got)
	}
	guids := map[uint64]bool{}
	for i, s := range list {
		guids[s.GUID] = true
		if s.Dataset != fs || s.FullName() != fs+"@"+s.Name || s.UserRefs != 0 || len(s.Clones) != 0 {
			w.Errorf("snapshot: %+v", s)
		}
		if i > 0 && s.CreateTXG <= list[i-1].CreateTXG {
			w.Errorf("createtxg of %s: %d, before it %d", s.Name, s.CreateTXG, list[i-1].CreateTXG)
		}
		if s.Written < 50000 || s.Referenced < 50000 {
			w.Errorf("figures of %s: %+v", s.Name, s)
		}
		if time.Since(s.Creation).Abs() > time.Hour {
			w.Errorf("creation of %s: %s", s.Name, s.Creation)
		}
		// Its own, not what the filesystem has.
		if len(s.User) != 1 || s.User["flocker:prepared"] != "of "+s.Name {
			w.Errorf("user properties of %s: %v", s.Name, s.User)
		}
	}
	if len(guids) != 3 {
		w.Errorf("guids: %v", guids)
	}
	if d := w.a.dataset(fs); d.Written != 0 {
		w.Errorf("written right after a snapshot: %d", d.Written)
	}
	// An idle one differs by nothing.
	if s := w.a.snap(fs, "idle"); s.Written != 0 {
		w.Errorf("written of an idle snapshot: %d", s.Written)
	}
	w.a.must(z.SetProperties(w.ctx, fs+"@z", map[string]string{"flocker:prepared": "later"}))
	if s := w.a.snapshot(fs, "z"); s.User["flocker:prepared"] != "later" {
		w.Errorf("property set on a snapshot: %v", s.User)
	}
	w.a.must(z.SetProperties(w.ctx, fs+"@z", map[string]string{"flocker:volume": "v"}))
	if s := w.a.snapshot(fs, "z"); len(s.User) != 1 {
		w.Errorf("properties of a snapshot that were not asked for are told: %v", s.User)
	}

	w.wantKind("same name", z.Snapshot(w.ctx, []string{fs + "@z"}, nil), zfs.ErrExists)
	w.wantKind("of nothing", z.Snapshot(w.ctx, []string{w.a.name("nope") + "@z"}, nil), zfs.ErrNotFound)
	w.wantKind("native property", z.Snapshot(w.ctx, []string{fs + "@q"}, map[string]string{"readonly": "on"}), zfs.ErrInvalid)
	w.a.must(z.Snapshot(w.ctx, nil, nil))
}

func testSnapshotsAtOnce(w *world, _ Env) {
	z := w.a.ZFS
	a, b, c := w.a.create("a"), w.a.create("b"), w.a.create("b/c")
	all := []string{a + "@1", b + "@1", c + "@1"}
	w.a.must(z.Snapshot(w.ctx, all, map[string]string{"flocker:prepared": "x"}))
	list, err := z.Snapshots(w.ctx, w.a.Root, true)
	w.a.must(err)
	if len(list) != 3 {
		w.Fatalf("%d snapshots, want 3", len(list))
	}
	for _, s := range list {
		if s.CreateTXG != list[0].CreateTXG || s.User["flocker:prepared"] != "x" || !slices.Contains(all, s.FullName()) {
			w.Errorf("one of several: %+v", s)
		}
	}
	if list, err := z.Snapshots(w.ctx, b, false); err != nil || len(list) != 1 {
		w.Errorf("not recursive: %v, %v", list, err)
	}

	// One bad name, and none is taken; the error says which.
	nope := w.a.name("nope") + "@2"
	w.wantBlame(z.Snapshot(w.ctx, []string{a + "@2", nope, b + "@2"}, nil), zfs.ErrNotFound, nope)
	w.wantBlame(z.Snapshot(w.ctx, []string{a + "@2", b + "@1", c + "@2"}, nil), zfs.ErrExists, b+"@1")
	w.wantKind("two of one", z.Snapshot(w.ctx, []string{a + "@2", a + "@3"}, nil), zfs.ErrInvalid)
	if got := w.a.names(a) + w.a.names(b) + w.a.names(c); got != "111" {
		w.Errorf("after refusals: %s", got)
	}
}

func testSnapshotsNamed(w *world, _ Env) {
	z := w.a.ZFS
	a, b, c := w.a.mounted("a"), w.a.create("b"), w.a.create("c")
	for _, n := range []string{"z", "m", "x"} {
		w.a.write(a, "f", data(1, 50000))
		w.a.must(z.Snapshot(w.ctx, []string{a + "@" + n, b + "@" + n}, map[string]string{"flocker:prepared": "of " + n}))
	}
	w.a.snap(c, "other")
	w.a.must(z.Hold(w.ctx, "keep", a+"@z"))

	w.a.must(z.Clone(w.ctx, a+"@m", w.a.name("clone"), nil))

	// The same figures as the whole listing has, of those alone, but for user properties.
	want := map[string]zfs.Snapshot{}
	all, err := z.Snapshots(w.ctx, w.a.Root, true)
	w.a.must(err)
	for _, s := range all {
		if strings.HasPrefix(s.FullName(), a+"@") && s.User["flocker:prepared"] != "of "+s.Name {
			w.Errorf("user properties of %s: %v", s.FullName(), s.User)
		}
		s.User = nil
		want[s.FullName()] = s
	}
	named := func(names ...string) (got []string) {
		w.Helper()
		list, err := z.SnapshotsNamed(w.ctx, names)
		w.a.must(err)
		for _, s := range list {
			got = append(got, s.FullName())
			if !reflect.DeepEqual(s, want[s.FullName()]) {
				w.Errorf("by name %+v, in the listing %+v", s, want[s.FullName()])
			}
		}
		return got
	}
	if got := named(b+"@m", a+"@x", a+"@m", a+"@z"); !slices.Equal(got, []string{a + "@z", a + "@m", a + "@x", b + "@m"}) {
		w.Errorf("listed: %q", got)
	}
	if got := named(); len(got) != 0 {
		w.Errorf("of none: %q", got)
	}

	// What is missing does not hide what is there.
	nope := w.a.name("nope")
	if got := named(a+"@nope", nope+"@z", a+"@z", "nosuchpool/x@z"); !slices.Equal(got, []string{a + "@z"}) {
		w.Errorf("with some missing: %q", got)
	}
	if got := named(a+"@nope", nope+"@z"); len(got) != 0 {
		w.Errorf("all missing: %q", got)
	}
	_, err = z.SnapshotsNamed(w.ctx, []string{a + "@z", a + "@r,s"})
	w.wantKind("bad name", err, zfs.ErrInvalid)
	_, err = z.SnapshotsNamed(w.ctx, []string{a})
	w.wantKind("not a snapshot", err, zfs.ErrInvalid)
	w.a.must(z.Release(w.ctx, "keep", a+"@z"))
}

func testTake(w *world, _ Env) {
	z := w.a.ZFS
	a, b, c := w.a.mounted("a"), w.a.create("b"), w.a.create("b/c")
	w.a.must(z.SetProperties(w.ctx, a, map[string]string{"flocker:volume": "v"}))
	w.a.write(a, "f", data(1, 50000))
	w.a.snap(b, "0")
	nope := w.a.name("nope") + "@1"
	for round := range 3 {
		// What is taken is told as the listing after it tells it, whatever else could not be.
		w.a.write(a, "f", data(uint64(round)+2, 50000))
		name := fmt.Sprint("@", round)
		taken, failed, err := z.Take(w.ctx, []string{a + name, nope, b + name, c + name})
		w.a.must(err)
		want, err := z.SnapshotsNamed(w.ctx, []string{a + name, b + name, c + name})
		w.a.must(err)
		left := map[string]bool{a + name: true, b + name: round > 0, c + name: true}
		for _, s := range taken {
			if !left[s.FullName()] || s.CreateTXG != taken[0].CreateTXG {
				w.Errorf("taken: %+v", s)
			}
			delete(left, s.FullName())
			if i := slices.IndexFunc(want, func(z zfs.Snapshot) bool { return z.FullName() == s.FullName() }); i < 0 || !reflect.DeepEqual(s, want[i]) {
				w.Errorf("taken %+v, listed %+v", s, want)
			}
		}
		delete(left, b+name)
		if len(left) > 0 {
			w.Errorf("not taken: %v", left)
		}
		w.wantKind("of nothing", failed[nope], zfs.ErrNotFound)
		if round == 0 {
			w.wantKind("same name", failed[b+name], zfs.ErrExists)
			delete(failed, b+name)
		}
		if len(failed) != 1 {
			w.Errorf("failed: %v", failed)
		}
	}
	if got := w.a.names(a) + " | " + w.a.names(b); got != "0 1 2 | 0 1 2" {
		w.Errorf("order: %s", got)
	}

	// Many at once wait for one another.
	var errs [4]error
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() {
			_, failed, err := z.Take(w.ctx, []string{a + fmt.Sprint("@many", i)})
			errs[i] = errors.Join(err, failed[a+fmt.Sprint("@many", i)])
		})
	}
	all.Wait()
	w.a.must(errors.Join(errs[:]...))
	txgs := map[uint64]bool{}
	for _, s := range w.a.snapshots(a) {
		txgs[s.CreateTXG] = true
	}
	if len(txgs) != 7 {
		w.Errorf("transaction groups of 7 snapshots: %v", txgs)
	}

	taken, failed, err := z.Take(w.ctx, nil)
	if err != nil || len(taken)+len(failed) > 0 {
		w.Errorf("of none: %v, %v, %v", taken, failed, err)
	}
	_, _, err = z.Take(w.ctx, []string{a + "@x", a + "@y"})
	w.wantKind("two of one", err, zfs.ErrInvalid)
	_, _, err = z.Take(w.ctx, []string{a + "@x,y"})
	w.wantKind("bad name", err, zfs.ErrInvalid)
	_, _, err = z.Take(w.ctx, []string{"nosuchpool/a@1"})
	w.wantKind("missing pool", err, zfs.ErrNotFound)
}

func (w *world) wantBlame(err, kind error, name string) {
	w.Helper()
	w.wantKind("one bad name", err, kind)
	var e *zfs.Error
	if errors.As(err, &e) && !slices.Equal(e.Names, []string{name}) {
		w.Errorf("blamed %q, want %q", e.Names, name)
	}
}

func testBookmarks(w *world, _ Env) {
	z := w.a.ZFS
	fs := w.a.mounted("a")
	w.a.write(fs, "f", []byte("1"))
	one := w.a.snap(fs, "1")
	w.a.write(fs, "f", []byte("2"))
	two := w.a.snap(fs, "2")
	w.a.must(z.Bookmark(w.ctx, fs+"@2", fs+"#a"))
	w.a.must(z.Bookmark(w.ctx, fs+"@1", fs+"#b"))
	w.a.must(z.Bookmark(w.ctx, fs+"@1", fs+"#b"))
	w.wantKind("other snapshot, same bookmark", z.Bookmark(w.ctx, fs+"@2", fs+"#b"), zfs.ErrExists)
	w.wantKind("bookmark of nothing", z.Bookmark(w.ctx, fs+"@nope", fs+"#c"), zfs.ErrNotFound)
	w.a.must(z.DestroySnapshots(w.ctx, fs, []string{"1"}))

	list, err := z.Bookmarks(w.ctx, fs, false)
	w.a.must(err)
	if len(list) != 2 || list[0].FullName() != fs+"#b" || list[1].Name != "a" {
		w.Fatalf("bookmarks: %+v", list)
	}
	if list[0].GUID != one.GUID || list[0].CreateTXG != one.CreateTXG || !list[0].Creation.Equal(one.Creation) || list[1].GUID != two.GUID {
		w.Errorf("bookmarks %+v of %+v and %+v", list, one, two)
	}
	w.a.create("a/c")
	w.a.snap(fs+"/c", "1")
	w.a.must(z.Bookmark(w.ctx, fs+"/c@1", fs+"/c#x"))
	if list, err := z.Bookmarks(w.ctx, fs, true); err != nil || len(list) != 3 {
		w.Errorf("recursive: %+v, %v", list, err)
	}
	if list, err := z.Bookmarks(w.ctx, fs, false); err != nil || len(list) != 2 {
		w.Errorf("not recursive: %+v, %v", list, err)
	}
	w.a.must(z.DestroyBookmark(w.ctx, fs+"#b"))
	w.a.must(z.DestroyBookmark(w.ctx, fs+"#b"))
	w.a.must(z.DestroyBookmark(w.ctx, w.a.name("nope")+"#b"))
	if list, err := z.Bookmarks(w.ctx, fs, false); err != nil || len(list) != 1 {
		w.Errorf("after destroy: %+v, %v", list, err)
	}
}

func testHolds(w *world, _ Env) {
	z := w.a.ZFS
	fs := w.a.create("a")
	w.a.snap(fs, "1")
	w.a.must(z.Hold(w.ctx, "one", fs+"@1"))
	w.a.must(z.Hold(w.ctx, "one", fs+"@1"))
	w.a.must(z.Hold(w.ctx, "two", fs+"@1"))
	if s := w.a.snapshot(fs, "1"); s.UserRefs != 2 {
		w.Errorf("userrefs %d, want 2", s.UserRefs)
	}
	w.wantKind("destroy what is held", z.DestroySnapshots(w.ctx, fs, []string{"1"}), zfs.ErrBusy)
	w.a.must(z.Rename(w.ctx, fs+"@1", fs+"@one"))
	w.a.must(z.Release(w.ctx, "one", fs+"@one"))
	w.a.must(z.Release(w.ctx, "one", fs+"@one"))
	w.wantKind("destroy what is still held", z.DestroySnapshots(w.ctx, fs, []string{"one"}), zfs.ErrBusy)
	w.a.must(z.Release(w.ctx, "two", fs+"@one"))
	w.a.must(z.DestroySnapshots(w.ctx, fs, []string{"one"}))
	w.a.must(z.Release(w.ctx, "two", fs+"@one"))
	w.a.must(z.Release(w.ctx, "two", w.a.name("nope")+"@one"))
	w.wantKind("hold nothing", z.Hold(w.ctx, "one", fs+"@one"), zfs.ErrNotFound)
}

func testDestroySnapshots(w *world, _ Env) {
	z := w.a.ZFS
	fs := w.a.create("a")
	for _, n := range []string{"1", "2", "3", "4", "5"} {
		w.a.snap(fs, n)
	}
	w.a.must(z.DestroySnapshots(w.ctx, fs, []string{"1", "nope", "3"}))
	if got := w.a.names(fs); got != "2 4 5" {
		w.Errorf("left: %s", got)
	}
	w.a.must(z.DestroySnapshots(w.ctx, fs, []string{"1", "nope"}))
	w.a.must(z.DestroySnapshots(w.ctx, fs, nil))
	w.wantKind("of nothing", z.DestroySnapshots(w.ctx, w.a.name("nope"), []string{"1"}), zfs.ErrNotFound)
	// With one that must stay, it stays, and the others may.
	w.a.must(z.Hold(w.ctx, "keep", fs+"@4"))
	w.wantKind("one held", z.DestroySnapshots(w.ctx, fs, []string{"2", "4", "5"}), zfs.ErrBusy)
	w.a.snapshot(fs, "4")
	w.Logf("with one of three held, left: %s", w.a.names(fs))
	w.a.must(z.Release(w.ctx, "keep", fs+"@4"))
	w.a.must(z.Clone(w.ctx, fs+"@4", w.a.name("k"), nil))
	w.wantKind("one cloned", z.DestroySnapshots(w.ctx, fs, []string{"2", "4", "5"}), zfs.ErrHasClones)
	w.a.snapshot(fs, "4")
	w.Logf("with one of three cloned, left: %s", w.a.names(fs))
}

func testPrune(w *world, _ Env) {
	z := w.a.ZFS
	a, b, c := w.a.mounted("a"), w.a.create("b"), w.a.create("c")
	w.a.write(a, "f", []byte("1"))
	w.a.must(z.Snapshot(w.ctx, []string{a + "@1", b + "@1", c + "@1"}, nil))
	w.a.must(z.Snapshot(w.ctx, []string{a + "@2", b + "@2"}, nil))
	one := w.a.snapshot(a, "1")
	w.a.must(z.Hold(w.ctx, "keep", b+"@1"))
	w.a.must(z.Clone(w.ctx, c+"@1", w.a.name("k"), nil))
	w.a.must(z.Bookmark(w.ctx, a+"@2", a+"#two"))
	w.a.must(z.Bookmark(w.ctx, b+"@1", b+"#two"))

	failed, err := z.Prune(w.ctx, []zfs.PruneRequest{
		{Snapshot: b + "@1"},
		{Snapshot: c + "@1"},
		{Snapshot: a + "@1", Bookmark: "one"},
		{Snapshot: a + "@2", Bookmark: "two"}, // its bookmark is there
		{Snapshot: b + "@2", Bookmark: "two"}, // and here it is another's
		{Snapshot: a + "@gone", Bookmark: "x"},
		{Snapshot: w.a.name("nope") + "@1", Bookmark: "x"},
	})
	w.a.must(err)
	if len(failed) != 3 {
		w.Errorf("failed: %v", failed)
	}
	w.wantKind("prune what is held", failed[b+"@1"], zfs.ErrBusy)
	w.wantKind("prune what is cloned", failed[c+"@1"], zfs.ErrHasClones)
	w.wantKind("prune where the bookmark is another's", failed[b+"@2"], zfs.ErrExists)
	if got := w.a.names(a) + " | " + w.a.names(b) + " | " + w.a.names(c); got != " | 1 2 | 1" {
		w.Errorf("left: %s", got)
	}
	marks, err := z.Bookmarks(w.ctx, a, false)
	w.a.must(err)
	if len(marks) != 2 || marks[0].Name != "one" || marks[0].GUID != one.GUID {
		w.Errorf("bookmarks: %+v", marks)
	}
	w.a.must(z.Release(w.ctx, "keep", b+"@1"))
	// A bad name does not stop the rest.
	failed, err = z.Prune(w.ctx, []zfs.PruneRequest{{Snapshot: a + "@x,y"}, {Snapshot: b + "@1"}})
	w.a.must(err)
	w.wantKind("bad name", failed[a+"@x,y"], zfs.ErrInvalid)
	if got := w.a.names(b); len(failed) != 1 || got != "2" {
		w.Errorf("beside a bad name: failed %v, left %s", failed, got)
	}
	_, err = z.Prune(w.ctx, []zfs.PruneRequest{{Snapshot: "nosuchpool/a@1"}})
	w.wantKind("missing pool", err, zfs.ErrNotFound)
}

// testPruneMany destroys more than fits into one program. Each snapshot stands for itself
// there, too: in the middle of one program one is held, one is cloned, one is gone
// already and one finds its bookmark taken, and in the last program one is held.
func testPruneMany(w *world, _ Env) {
	const datasets, each = 8, 31 // more than a program begins with
	z := w.a.ZFS
	var fs []string
	var reqs []zfs.PruneRequest
	for i := range datasets {
		fs = append(fs, w.a.create(fmt.Sprintf("many%d", i)))
	}
	for n := range each {
		var names []string
		for _, f := range fs {
			names = append(names, fmt.Sprintf("%s@%s%04d", f, strings.Repeat("n", 60), n))
			reqs = append(reqs, zfs.PruneRequest{Snapshot: names[len(names)-1], Bookmark: fmt.Sprintf("flk-base-%s%04d", strings.Repeat("n", 60), n)})
		}
		taken, failed, err := z.Take(w.ctx, names)
		if w.a.must(err); len(taken) != datasets {
			w.Fatalf("took %d of %d: %v", len(taken), datasets, failed)
		}
	}
	const half = 50
	held, cloned, gone, foreign, last := reqs[half].Snapshot, reqs[half+1].Snapshot, reqs[half+2].Snapshot, reqs[half+3].Snapshot, reqs[len(reqs)-1].Snapshot
	w.a.must(z.Hold(w.ctx, "keep", held))
	w.a.must(z.Hold(w.ctx, "keep", last))
	w.a.must(z.Clone(w.ctx, cloned, w.a.name("many-clone"), nil))
	dataset, short, _ := strings.Cut(gone, "@")
	w.a.must(z.DestroySnapshots(w.ctx, dataset, []string{short}))
	dataset, _, _ = strings.Cut(foreign, "@")
	w.a.must(z.Bookmark(w.ctx, dataset+reqs[datasets-1].Snapshot[strings.IndexByte(reqs[datasets-1].Snapshot, '@'):], dataset+"#"+reqs[half+3].Bookmark))

	began := time.Now()
	failed, err := z.Prune(w.ctx, reqs)
	w.a.must(err)
	w.Logf("%d snapshots of %d datasets, each with a bookmark, took %s", len(reqs), datasets, time.Since(began))
	w.wantKind("held", failed[held], zfs.ErrBusy)
	w.wantKind("held, in the last program", failed[last], zfs.ErrBusy)
	w.wantKind("cloned", failed[cloned], zfs.ErrHasClones)
	w.wantKind("where the bookmark is another's", failed[foreign], zfs.ErrExists)
	if len(failed) != 4 {
		w.Errorf("%d failed: %v", len(failed), failed)
	}
	w.a.must(z.Release(w.ctx, "keep", held))
	w.a.must(z.Release(w.ctx, "keep", last))
	left, marks := 0, 0
	for _, f := range fs {
		snaps, err := z.Snapshots(w.ctx, f, false)
		w.a.must(err)
		list, err := z.Bookmarks(w.ctx, f, false)
		w.a.must(err)
		left, marks = left+len(snaps), marks+len(list)
	}
	// All but the one that was gone have a bookmark: those that cannot go got it first, and
	// the one whose name was taken has the other's.
	if left != 4 || marks != len(reqs)-1 {
		w.Errorf("%d snapshots and %d bookmarks are left, want 4 and %d", left, marks, len(reqs)-1)
	}
}

// testFullPrograms hands programs as many names as they ever get, and nearly as long as names may be:
// they have to fit what the kernel allows a program of memory, steps and text. Most are of nothing: a
// thousand that are there would cost an emulated pool minutes to make and to destroy.
func testFullPrograms(w *world, _ Env) {
	const datasets, each, longest = 10, 30, 250
	z := w.a.ZFS
	short := func(dataset string, n int) string {
		return fmt.Sprintf("%s%04d", strings.Repeat("n", longest-len(dataset)-len("@0000")), n)
	}
	var fs, gone []string
	for i := range datasets {
		fs = append(fs, w.a.create(fmt.Sprintf("full%02d", i)))
	}
	for i := range zfs.PruneBatch {
		name := w.a.name(fmt.Sprintf("gone%d", i))
		gone = append(gone, name+"@"+short(name, 0))
	}
	began := time.Now()
	since := func(format string, args ...any) {
		w.Logf(format+" took %s", append(args, time.Since(began))...)
		began = time.Now()
	}

	var all []string
	for n := range each {
		var names []string
		for _, f := range fs {
			names = append(names, f+"@"+short(f, n))
		}
		all = append(all, names...)
		if n == 0 {
			names = slices.Concat(gone[datasets:], names)
		}
		taken, failed, err := z.Take(w.ctx, names)
		if w.a.must(err); len(taken) != datasets || len(failed) != len(names)-datasets {
			w.Fatalf("of %d names %d were taken, and %d are said to have failed", len(names), len(taken), len(failed))
		}
		if n == 0 {
			w.wantKind("of nothing", failed[names[0]], zfs.ErrNotFound)
			since("taking %d snapshots, of %d names,", datasets, len(names))
		}
	}
	since("taking %d more", len(all)-datasets)

	names := slices.Concat(gone[len(all):], all)
	list, err := z.SnapshotsNamed(w.ctx, names)
	if w.a.must(err); len(list) != len(all) {
		w.Errorf("of %d names %d snapshots are told, want %d", len(names), len(list), len(all))
	}
	since("telling of %d snapshots, of %d names,", len(all), len(names))

	var reqs []zfs.PruneRequest
	for _, name := range names {
		_, mark, _ := strings.Cut(name, "@")
		reqs = append(reqs, zfs.PruneRequest{Snapshot: name, Bookmark: mark})
	}
	if w.a.Full != nil {
		w.a.Full()
	}
	failed, err := z.Prune(w.ctx, reqs)
	if w.a.must(err); len(failed) > 0 {
		w.Errorf("%d failed: %v", len(failed), failed)
	}
	since("destroying %d snapshots, of %d names, with a bookmark of each", len(all), len(reqs))
	left, err := z.Snapshots(w.ctx, w.a.Root, true)
	w.a.must(err)
	marks, err := z.Bookmarks(w.ctx, w.a.Root, true)
	w.a.must(err)
	if len(left) != 0 || len(marks) != len(all) {
		w.Errorf("%d snapshots and %d bookmarks are left, want none and %d", len(left), len(marks), len(all))
	}
}
