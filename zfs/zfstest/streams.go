package zfstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/zfs"
)

// history is a volume on A with three snapshots, "1", "2" and "3", between which
// files came, changed and went.
func (w *world) history(short string, size int) string {
	w.Helper()
	fs := w.a.mounted(short)
	w.a.write(fs, "same", data(1, size))
	w.a.write(fs, "changes", data(2, size))
	w.a.write(fs, "goes", data(3, 100))
	w.a.snap(fs, "1")
	w.a.write(fs, "changes", data(4, size))
	w.a.write(fs, "empty", nil)
	w.a.must(w.a.Remove(fs, "goes"))
	w.a.snap(fs, "2")
	w.a.write(fs, "comes", data(5, size/2))
	w.a.snap(fs, "3")
	return fs
}

func testReplicate(w *world, _ Env) {
	a, b := w.history("v", 100_000), w.b.name("v")
	// Full, with properties of the new dataset.
	props := w.b.volumeProps(b)
	props["flocker:volume"] = "v"
	req := zfs.ReceiveRequest{Dataset: b, Properties: props, Resumable: true}
	w.b.must(w.b.ZFS.Receive(w.ctx, req, onlyReader{bytes.NewReader(w.a.stream(a, "", "1"))}))
	d := w.b.dataset(b)
	if d.Mounted || !d.ReadOnly || d.CanMount != "noauto" || d.User["flocker:volume"] != "v" || d.ResumeToken != "" || d.Written != 0 {
		w.Errorf("received: %+v", d)
	}
	if x, y := w.a.snapshot(a, "1"), w.b.snapshot(b, "1"); x.GUID != y.GUID || !x.Creation.Equal(y.Creation) || y.User != nil {
		w.Errorf("sent %+v, received %+v", x, y)
	}
	// An increment; one from a bookmark whose snapshot is gone.
	w.b.must(w.b.receive(b, w.a.stream(a, "@1", "2"), true))
	w.a.must(w.a.ZFS.Bookmark(w.ctx, a+"@2", a+"#m2"))
	w.a.must(w.a.ZFS.DestroySnapshots(w.ctx, a, []string{"1", "2"}))
	w.b.must(w.b.receive(b, w.a.stream(a, "#m2", "3"), false))
	if got := w.b.names(b); got != "1 2 3" {
		w.Errorf("snapshots: %s", got)
	}
	w.sameContent(w.b.content(b), w.a.content(a))
	// Nothing changed, still a snapshot.
	w.a.snap(a, "4")
	w.b.must(w.b.receive(b, w.a.stream(a, "@3", "4"), true))
	if x, y := w.a.snapshot(a, "4"), w.b.snapshot(b, "4"); x.GUID != y.GUID || y.Written != 0 {
		w.Errorf("idle: sent %+v, received %+v", x, y)
	}
	// Over more than one snapshot at once, and back the other way.
	w.b.must(w.b.ZFS.Mount(w.ctx, b, true))
	w.b.write(b, "back", data(6, 1000))
	w.b.snap(b, "5")
	w.b.write(b, "back2", data(7, 1000))
	w.b.snap(b, "6")
	w.a.must(w.a.ZFS.Unmount(w.ctx, a))
	w.a.must(w.a.receive(a, w.b.stream(b, "@4", "6"), true))
	w.sameContent(w.a.content(a), w.b.content(b))
	if got := w.a.names(a); got != "3 4 6" {
		w.Errorf("snapshots after the way back: %s", got)
	}

	// The guess of the size is of the right order.
	n, err := w.a.ZFS.EstimateSend(w.ctx, zfs.SendRequest{Snapshot: a + "@3"})
	w.a.must(err)
	if size := int64(len(w.a.stream(a, "", "3"))); n < size/4 || n > size*4 {
		w.Errorf("estimated %d for a stream of %d", n, size)
	}

	// Files of the operating system go to the child as they are.
	f, err := os.CreateTemp(w.TempDir(), "")
	w.a.must(err)
	defer f.Close()
	w.a.must(w.a.ZFS.Send(w.ctx, zfs.SendRequest{Snapshot: a + "@6", From: a + "@4"}, f))
	_, err = f.Seek(0, io.SeekStart)
	w.a.must(err)
	w.b.must(w.b.ZFS.Destroy(w.ctx, b))
	w.b.must(w.b.receive(b, w.a.stream(a, "", "4"), false))
	w.b.must(w.b.ZFS.Receive(w.ctx, zfs.ReceiveRequest{Dataset: b}, f))
	w.sameContent(w.b.content(b), w.a.content(a))
}

// What a stream says of itself in its first record, for every kind of stream there is.
// What people have called a snapshot goes through every command as any other name.
func testOddNames(w *world, _ Env) {
	a, b := w.history("v", 400_000), w.b.name("v")
	const odd, dash = "before  the upgrade: is busy ", "-x"
	w.a.snap(a, odd)
	w.a.write(a, "more", []byte("more"))
	w.a.snap(a, dash)
	w.b.must(w.b.receive(b, w.a.stream(a, "", "3"), true))
	stream := w.a.stream(a, "@3", odd)
	if h, err := zfs.ParseStreamHeader(stream); err != nil || h.Snapshot() != odd {
		w.Errorf("header: %+v, %v", h, err)
	}
	w.b.must(w.b.receive(b, stream, true))
	failed, err := w.a.ZFS.Prune(w.ctx, []zfs.PruneRequest{{Snapshot: a + "@" + odd, Bookmark: "flk-removed-" + odd}})
	if err != nil || len(failed) > 0 {
		w.Errorf("prune: %v, %v", failed, err)
	}
	w.b.must(w.b.receive(b, w.a.stream(a, "#flk-removed-"+odd, dash), true))
	w.sameContent(w.b.content(b), w.a.content(a))
	list, err := w.b.ZFS.SnapshotsNamed(w.ctx, []string{b + "@" + odd, b + "@" + dash, b + "@no such"})
	if err != nil || len(list) != 2 || list[0].Name != odd || list[1].Name != dash {
		w.Errorf("listed: %+v, %v", list, err)
	}
	w.b.must(w.b.ZFS.DestroySnapshots(w.ctx, b, []string{"no such", odd, dash}))
	if got := w.b.names(b); got != "3" {
		w.Errorf("left: %s", got)
	}
	// A token says the name, too.
	full := w.a.stream(a, "", dash)
	c := w.b.name("c")
	w.wantKind("cut", w.b.receive(c, full[:len(full)/2], true), zfs.ErrInterrupted)
	if t, err := w.a.ZFS.DecodeToken(w.ctx, w.b.dataset(c).ResumeToken); err != nil || t.ToName != a+"@"+dash {
		w.Errorf("token: %+v, %v", t, err)
	}
	w.wantKind("send what is not there", w.a.ZFS.Send(w.ctx, zfs.SendRequest{Snapshot: a + "@is busy"}, io.Discard), zfs.ErrNotFound)
}

func testStreamHeaders(w *world, _ Env) {
	a, b := w.history("v", 400_000), w.b.name("v")
	w.a.must(w.a.ZFS.Bookmark(w.ctx, a+"@1", a+"#m1"))
	clone := w.a.name("k")
	w.a.must(w.a.ZFS.Clone(w.ctx, a+"@2", clone, w.a.volumeProps(clone)))
	w.a.snap(clone, "c1")
	w.b.must(w.b.receive(b, w.a.stream(a, "", "1"), false))
	incr := w.a.stream(a, "@1", "2")
	w.wantKind("cut", w.b.receive(b, incr[:len(incr)*3/4], true), zfs.ErrInterrupted)

	one, two, three := w.a.snapshot(a, "1"), w.a.snapshot(a, "2"), w.a.snapshot(a, "3")
	says := func(to zfs.Snapshot, from uint64) zfs.StreamHeader {
		return zfs.StreamHeader{ToName: to.FullName(), ToGUID: to.GUID, FromGUID: from, Created: to.Creation.UTC(), Type: zfs.StreamFilesystem}
	}
	resuming, cloned := says(two, one.GUID), says(w.a.snapshot(clone, "c1"), two.GUID)
	resuming.Resuming, cloned.Clone = true, true
	for _, c := range []struct {
		what string
		req  zfs.SendRequest
		want zfs.StreamHeader
	}{
		{"full", zfs.SendRequest{Snapshot: three.FullName()}, says(three, 0)},
		{"increment", zfs.SendRequest{Snapshot: three.FullName(), From: one.FullName()}, says(three, one.GUID)},
		{"from a bookmark", zfs.SendRequest{Snapshot: two.FullName(), From: a + "#m1"}, says(two, one.GUID)},
		{"from another dataset", zfs.SendRequest{Snapshot: clone + "@c1", From: two.FullName()}, cloned},
		{"resumed", zfs.SendRequest{Token: w.b.dataset(b).ResumeToken}, resuming},
	} {
		got, err := zfs.ParseStreamHeader(w.a.send(c.req))
		if err != nil || got != c.want {
			w.Errorf("%s: says %+v, %v\nwant %+v", c.what, got, err, c.want)
		}
	}
}

// What renames, destroys and sets properties where it is received says so in its first
// record: a package of streams, be it of a single one.
func testCompoundStreams(w *world, _ Env) {
	if w.a.Send == nil {
		return // the fake makes none
	}
	a := w.history("v", 10_000)
	for _, args := range [][]string{
		{"-p", a + "@1"}, {"-p", "-i", a + "@1", a + "@2"}, {"-R", a + "@2"}, {"-R", "-I", a + "@1", a + "@3"}, {"-I", a + "@1", a + "@3"},
	} {
		stream, err := w.a.Send(args...)
		w.a.must(err)
		if h, err := zfs.ParseStreamHeader(stream); err != nil || !h.Compound {
			w.Errorf("zfs send %q: says %+v, %v", args, h, err)
		}
	}
}

// Received without an error means: the snapshot that the head of the stream says is in
// this dataset, with that name and guid, and the newest. Replication acknowledges by that.
func testArrives(w *world, _ Env) {
	a, b := w.history("v", 400_000), w.b.name("v")
	w.a.snap(a, "4") // nothing has changed
	w.a.must(w.a.ZFS.Bookmark(w.ctx, a+"@2", a+"#m2"))
	arrives := func(what string, stream []byte) {
		w.Helper()
		h, err := zfs.ParseStreamHeader(stream)
		w.a.must(err)
		w.b.must(w.b.receive(b, stream, true))
		list, err := w.b.ZFS.SnapshotsNamed(w.ctx, []string{b + "@" + h.Snapshot()})
		w.b.must(err)
		if len(list) != 1 || list[0].GUID != h.ToGUID || !list[0].Creation.Equal(h.Created) {
			w.Errorf("%s: the stream said %+v, and there is %+v", what, h, list)
		}
		if all := w.b.snapshots(b); all[len(all)-1].GUID != h.ToGUID {
			w.Errorf("%s: it is not the newest of %s", what, w.b.names(b))
		}
		if d := w.b.dataset(b); d.ResumeToken != "" || d.Written != 0 {
			w.Errorf("%s: %+v", what, d)
		}
	}
	arrives("full", w.a.stream(a, "", "1"))
	incr := w.a.stream(a, "@1", "2")
	w.wantKind("cut", w.b.receive(b, incr[:len(incr)*3/4], true), zfs.ErrInterrupted)
	arrives("resumed", w.a.send(zfs.SendRequest{Token: w.b.dataset(b).ResumeToken}))
	arrives("from a bookmark", w.a.stream(a, "#m2", "3"))
	arrives("empty", w.a.stream(a, "@3", "4"))
	w.sameContent(w.b.content(b), w.a.content(a))

	// What is here already is taken without an error, and nothing comes of it: so whoever
	// counts on the newest must know that it was not here.
	before := w.b.names(b)
	w.b.must(w.b.receive(b, incr, true))
	if got := w.b.names(b); got != before {
		w.Errorf("snapshots %s, and before %s", got, before)
	}
	// A dataset of another name that could take it is left alone.
	c := w.b.name("c")
	w.b.must(w.b.ZFS.Rename(w.ctx, b, c))
	w.a.snap(a, "5")
	w.wantKind("the dataset is gone", w.b.receive(b, w.a.stream(a, "@4", "5"), true), zfs.ErrNotFound)
	if got := w.b.names(c); got != before {
		w.Errorf("snapshots %s of another name, and before %s", got, before)
	}
}

func testSendErrors(w *world, _ Env) {
	fs := w.history("v", 10_000)
	other := w.history("o", 10_000)
	w.a.must(w.a.ZFS.Bookmark(w.ctx, fs+"@3", fs+"#3"))
	for _, c := range []struct {
		what string
		req  zfs.SendRequest
		kind error
	}{
		{"missing snapshot", zfs.SendRequest{Snapshot: fs + "@nope"}, zfs.ErrNotFound},
		{"missing dataset", zfs.SendRequest{Snapshot: w.a.name("nope") + "@1"}, zfs.ErrNotFound},
		{"missing base", zfs.SendRequest{Snapshot: fs + "@2", From: fs + "@nope"}, zfs.ErrNoBase},
		{"missing bookmark", zfs.SendRequest{Snapshot: fs + "@2", From: fs + "#nope"}, zfs.ErrNoBase},
		{"base after target", zfs.SendRequest{Snapshot: fs + "@2", From: fs + "@3"}, zfs.ErrNoBase},
		{"bookmark after target", zfs.SendRequest{Snapshot: fs + "@2", From: fs + "#3"}, zfs.ErrNoBase},
		{"base is the target", zfs.SendRequest{Snapshot: fs + "@2", From: fs + "@2"}, zfs.ErrNoBase},
		{"base of another volume", zfs.SendRequest{Snapshot: fs + "@2", From: other + "@1"}, zfs.ErrNoBase},
		{"missing snapshot of a missing base", zfs.SendRequest{Snapshot: fs + "@nope", From: fs + "@1"}, zfs.ErrNotFound},
		{"garbled token", zfs.SendRequest{Token: "1-abc-def-0123"}, zfs.ErrBadToken},
		{"no token at all", zfs.SendRequest{Token: "--help"}, zfs.ErrBadToken},
	} {
		var buf bytes.Buffer
		w.wantKind(c.what, w.a.ZFS.Send(w.ctx, c.req, &buf), c.kind)
		if c.req.Token == "" && !strings.Contains(c.what, "bookmark") {
			_, err := w.a.ZFS.EstimateSend(w.ctx, c.req)
			w.wantKind("estimate: "+c.what, err, c.kind)
		}
	}
	// A peer that goes away.
	gone := errors.New("peer is gone")
	err := w.a.ZFS.Send(w.ctx, zfs.SendRequest{Snapshot: fs + "@3"}, writerFunc(func([]byte) (int, error) { return 0, gone }))
	if !errors.Is(err, gone) {
		w.Errorf("failing writer: %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func testReceiveErrors(w *world, _ Env) {
	a := w.history("v", 10_000)
	other := w.history("o", 10_000)
	b := w.b.name("v")
	full, incr := w.a.stream(a, "", "1"), w.a.stream(a, "@1", "2")
	w.wantKind("increment onto nothing", w.b.receive(b, incr, true), zfs.ErrNotFound)
	w.wantKind("no stream", w.b.receive(b, nil, true), zfs.ErrBadStream)
	w.wantKind("a word", w.b.receive(b, []byte("hello"), true), zfs.ErrBadStream)
	w.wantKind("noise", w.b.receive(b, data(9, 100_000), true), zfs.ErrBadStream)
	w.wantKind("no parent", w.b.receive(w.b.name("x/y"), full, true), zfs.ErrNotFound)
	if w.b.exists(b) || w.b.exists(w.b.name("x")) {
		w.Fatal("refused streams left a dataset")
	}
	w.b.must(w.b.receive(b, full, true))
	w.wantKind("full onto it", w.b.receive(b, full, true), zfs.ErrExists)
	w.wantKind("other full onto it", w.b.receive(b, w.a.stream(other, "", "2"), true), zfs.ErrExists)
	w.wantKind("increment of another volume", w.b.receive(b, w.a.stream(other, "@1", "2"), true), zfs.ErrNoBase)
	w.wantKind("increment after a missing one", w.b.receive(b, w.a.stream(a, "@2", "3"), true), zfs.ErrNoBase)
	w.wantKind("noise onto it", w.b.receive(b, data(9, 100_000), true), zfs.ErrBadStream)
	w.wantKind("nothing onto it", w.b.receive(b, nil, true), zfs.ErrBadStream)
	if got := w.b.names(b); got != "1" {
		w.Errorf("snapshots after refusals: %s", got)
	}
	if d := w.b.dataset(b); d.ResumeToken != "" {
		w.Errorf("refusals left a token: %+v", d)
	}
	// A stream that ends with an error of the connection says so.
	lost := errors.New("connection lost")
	err := w.b.ZFS.Receive(w.ctx, zfs.ReceiveRequest{Dataset: b}, io.MultiReader(bytes.NewReader(incr[:len(incr)/2]), readerFunc(func([]byte) (int, error) { return 0, lost })))
	w.wantKind("lost connection", err, zfs.ErrBadStream)
	if !errors.Is(err, lost) {
		w.Errorf("lost connection: %v does not say why", err)
	}
	// What follows a stream is read and forgotten.
	long := onlyReader{bytes.NewReader(append(slices.Clone(incr), data(1, 1<<20)...))}
	w.b.must(w.b.ZFS.Receive(w.ctx, zfs.ReceiveRequest{Dataset: b}, long))
	if n, _ := io.Copy(io.Discard, long); n != 0 {
		w.Errorf("%d bytes after the stream are left", n)
	}
	w.a.must(w.a.ZFS.Unmount(w.ctx, a))
	w.b.must(w.b.receive(b, w.a.stream(a, "@2", "3"), true))
	w.sameContent(w.b.content(b), w.a.content(a))
}

// Streams for one dataset, one soon after the other and each looked at, as replication
// does it: a command may wait for the next stream then (Options.Ahead). It is in nobody's
// way, and knows the dataset by nothing but its name.
func testReceiveAgain(w *world, _ Env) {
	a, b, c := w.history("v", 10_000), w.b.name("v"), w.b.name("c")
	last := 3
	increment := func() []byte {
		last++
		w.a.write(a, "more", data(uint64(last), 5000))
		w.a.snap(a, fmt.Sprint(last))
		return w.a.stream(a, fmt.Sprint("@", last-1), fmt.Sprint(last))
	}
	receive := func(stream []byte) error {
		err := w.b.receive(b, stream, true)
		_, listErr := w.b.ZFS.SnapshotsNamed(w.ctx, []string{fmt.Sprint(b, "@", last)})
		w.b.must(listErr)
		return err
	}
	w.b.must(receive(w.a.stream(a, "", "3")))
	w.b.must(receive(increment()))
	w.b.must(receive(increment()))

	// It was given another name, and then its old one again.
	w.b.must(w.b.ZFS.Rename(w.ctx, b, c))
	stream := increment()
	w.wantKind("an increment onto a name that is gone", receive(stream), zfs.ErrNotFound)
	if got := w.b.names(c); got != "3 4 5" || w.b.exists(b) {
		w.Errorf("%s has the snapshots %s", c, got)
	}
	w.b.must(w.b.ZFS.Rename(w.ctx, c, b))
	w.b.must(receive(stream))
	// It was mounted meanwhile, and not any more.
	w.sameContent(w.b.content(b), w.a.content(a))
	w.b.must(receive(increment()))
	w.sameContent(w.b.content(b), w.a.content(a))
	// Another has its name, and then nothing.
	w.b.must(w.b.ZFS.Rename(w.ctx, b, c))
	w.b.must(receive(w.a.stream(a, "", "5")))
	if got := w.b.names(c) + ", " + w.b.names(b); got != "3 4 5 6 7, 5" {
		w.Errorf("snapshots: %s", got)
	}
	w.b.must(receive(w.a.stream(a, "@5", "7")))
	w.b.must(w.b.ZFS.Destroy(w.ctx, b))
	w.wantKind("an increment onto nothing", receive(increment()), zfs.ErrNotFound)
	w.b.must(w.b.ZFS.Rename(w.ctx, c, b))
	w.b.must(receive(w.a.stream(a, "@7", "8")))
	w.sameContent(w.b.content(b), w.a.content(a))
}

func testReceiveTwice(w *world, _ Env) {
	a, b := w.history("v", 10_000), w.b.name("v")
	w.b.must(w.b.receive(b, w.a.stream(a, "", "1"), true))
	two, three := w.a.stream(a, "@1", "2"), w.a.stream(a, "@2", "3")
	w.b.must(w.b.receive(b, two, true))
	w.b.must(w.b.receive(b, two, true))
	w.b.must(w.b.receive(b, three, true))
	w.b.must(w.b.receive(b, two, false))
	w.b.must(w.b.receive(b, three, false))
	w.b.must(w.b.receive(b, w.a.stream(a, "@1", "3"), false))
	if got := w.b.names(b); got != "1 2 3" {
		w.Errorf("snapshots: %s", got)
	}
	w.sameContent(w.b.content(b), w.a.content(a))
	// The name is taken by another snapshot.
	other := w.b.name("o")
	w.b.must(w.b.receive(other, w.a.stream(a, "", "1"), true))
	w.b.snap(other, "2")
	w.wantKind("name taken", w.b.receive(other, two, true), zfs.ErrExists)
}

func testReceiveOntoSnapshots(w *world, _ Env) {
	a, b := w.history("v", 10_000), w.b.name("v")
	w.b.must(w.b.receive(b, w.a.stream(a, "", "1"), true))
	w.b.snap(b, "mine") // nothing changed under it
	w.b.must(w.b.receive(b, w.a.stream(a, "@1", "2"), true))
	if got := w.b.names(b); got != "1 mine 2" {
		w.Errorf("snapshots: %s", got)
	}
	// And again, with the base renamed: GUIDs count, names do not.
	w.b.must(w.b.ZFS.Rename(w.ctx, b+"@2", b+"@zwei"))
	w.b.must(w.b.receive(b, w.a.stream(a, "@2", "3"), true))
	w.sameContent(w.b.content(b), w.a.content(a))
}

func testDiverged(w *world, _ Env) {
	a, b := w.history("v", 10_000), w.b.name("v")
	w.b.must(w.b.receive(b, w.a.stream(a, "", "1"), true))
	w.b.must(w.b.ZFS.SetProperties(w.ctx, b, w.b.volumeProps(b)))
	w.b.must(w.b.ZFS.Mount(w.ctx, b, true))
	w.b.write(b, "stray", []byte("x"))
	w.b.must(w.b.ZFS.Unmount(w.ctx, b))
	two := w.a.stream(a, "@1", "2")
	w.wantKind("changed head", w.b.receive(b, two, true), zfs.ErrDiverged)
	w.b.snap(b, "mine")
	w.wantKind("changed snapshot", w.b.receive(b, two, true), zfs.ErrDiverged)
	if got := w.b.names(b); got != "1 mine" {
		w.Errorf("snapshots: %s", got)
	}
	if got := w.b.content(b); got["stray"] != "x" {
		w.Error("the refused stream took what was diverged")
	}
	// The fork: the clone of the common snapshot becomes the volume.
	tmp, aside := w.b.name("v-new"), w.b.name("v-aside")
	w.b.must(w.b.ZFS.Clone(w.ctx, b+"@1", tmp, nil))
	w.b.must(w.b.ZFS.Promote(w.ctx, tmp))
	w.b.must(w.b.ZFS.Rename(w.ctx, b, aside))
	w.b.must(w.b.ZFS.Rename(w.ctx, tmp, b))
	w.b.must(w.b.receive(b, two, true))
	w.b.must(w.b.receive(b, w.a.stream(a, "@2", "3"), true))
	w.sameContent(w.b.content(b), w.a.content(a))
	if got := w.b.content(aside); got["stray"] != "x" {
		w.Error("what was set aside is not there")
	}
}

func testCloneStream(w *world, _ Env) {
	a, b := w.history("v", 10_000), w.b.name("v")
	w.b.must(w.b.receive(b, w.a.stream(a, "", "1"), true))
	w.b.must(w.b.receive(b, w.a.stream(a, "@1", "2"), true))
	clone := w.a.name("k")
	w.a.must(w.a.ZFS.Clone(w.ctx, a+"@2", clone, w.a.volumeProps(clone)))
	w.a.must(w.a.ZFS.Mount(w.ctx, clone, true))
	w.a.write(clone, "own", data(8, 1000))
	w.a.snap(clone, "c1")
	stream := w.a.send(zfs.SendRequest{Snapshot: clone + "@c1", From: a + "@2"})
	// It makes the clone there, by the GUID of its origin.
	w.b.must(w.b.receive(w.b.name("k"), stream, true))
	if d := w.b.dataset(w.b.name("k")); d.Origin != b+"@2" {
		w.Errorf("received clone: %+v", d)
	}
	w.sameContent(w.b.content(w.b.name("k")), w.a.content(clone))
	w.wantKind("onto it again", w.b.receive(w.b.name("k"), stream, true), zfs.ErrExists)
	w.b.must(w.b.ZFS.Destroy(w.ctx, w.b.name("k")))
	w.b.must(w.b.ZFS.DestroySnapshots(w.ctx, b, []string{"2"}))
	w.wantKind("without its origin", w.b.receive(w.b.name("k"), stream, true), zfs.ErrNoBase)
}

// A clone's stream is received on a snapshot that is named, which must be the very one. Cut it
// goes on, whatever the original is called by then; until it is through or thrown away it holds the
// original up, and afterwards nothing is left of it.
func testReceiveOnOrigin(w *world, _ Env) {
	z := w.b.ZFS
	a, b := w.history("v", 400_000), w.b.name("v")
	w.b.must(w.b.receive(b, w.a.stream(a, "", "1"), true))
	w.b.must(w.b.receive(b, w.a.stream(a, "@1", "2"), true))
	clone, k := w.a.name("k"), w.b.name("k")
	w.a.must(w.a.ZFS.Clone(w.ctx, a+"@2", clone, w.a.volumeProps(clone)))
	w.a.must(w.a.ZFS.Mount(w.ctx, clone, true))
	w.a.write(clone, "own", data(8, 3<<20))
	w.a.snap(clone, "c1")
	w.a.write(clone, "more", data(9, 10_000))
	w.a.snap(clone, "c2")
	base, first := w.a.snapshot(a, "2"), w.a.snapshot(clone, "c1")
	stream := w.a.send(zfs.SendRequest{Snapshot: first.FullName(), From: base.FullName()})

	props := w.b.volumeProps(k)
	props["flocker:volume"] = "k"
	on := func(origin string, props map[string]string, stream []byte) error {
		req := zfs.ReceiveRequest{Dataset: k, Origin: origin, Properties: props, Resumable: true}
		return z.Receive(w.ctx, req, onlyReader{bytes.NewReader(stream)})
	}
	w.wantKind("on another snapshot", on(b+"@1", props, stream), zfs.ErrNoBase)
	w.wantKind("on one that is not there", on(b+"@nope", props, stream), zfs.ErrNoBase, zfs.ErrNotFound)
	w.wantKind("on one of nothing", on(w.b.name("nope")+"@2", props, stream), zfs.ErrNoBase, zfs.ErrNotFound)
	if w.b.exists(k) {
		w.Fatal("what was refused has left a dataset")
	}

	// An original of the same snapshot elsewhere is not the one that is meant.
	other := w.b.name("other")
	w.b.must(w.b.receive(other, w.a.stream(a, "", "2"), true))
	cut := func() zfs.Dataset {
		w.Helper()
		w.wantKind("cut", on(b+"@2", props, stream[:len(stream)*3/4]), zfs.ErrInterrupted)
		return w.b.dataset(k)
	}
	d := cut()
	if d.ResumeToken == "" || d.Origin != b+"@2" || d.Mounted || w.b.names(k) != "" {
		w.Errorf("cut: %+v", d)
	}
	if t, err := w.a.ZFS.DecodeToken(w.ctx, d.ResumeToken); err != nil || t.ToName != first.FullName() || t.ToGUID != first.GUID || t.FromGUID != base.GUID {
		w.Errorf("token: %+v, %v", t, err)
	}
	w.wantKind("again onto it", on(b+"@2", props, stream), zfs.ErrExists, zfs.ErrBusy)
	w.wantKind("destroy what it hangs on", z.DestroySnapshots(w.ctx, b, []string{"2"}), zfs.ErrHasClones, zfs.ErrBusy)
	w.wantKind("destroy the original", z.Destroy(w.ctx, b), zfs.ErrHasClones)
	if got := w.b.names(b); got != "1 2" {
		w.Errorf("of the original are left: %s", got)
	}
	moved := w.b.name("moved")
	w.b.must(z.Rename(w.ctx, b, moved))
	if d := w.b.dataset(k); d.Origin != moved+"@2" || d.ResumeToken == "" {
		w.Errorf("with its original renamed: %+v", d)
	}
	rest := w.a.send(zfs.SendRequest{Token: d.ResumeToken})
	if h, err := zfs.ParseStreamHeader(rest); err != nil || !h.Resuming || !h.Clone || h.FromGUID != base.GUID || h.ToGUID != first.GUID {
		w.Errorf("the rest says %+v, %v", h, err)
	}
	w.b.must(on(moved+"@2", nil, rest))
	if d := w.b.dataset(k); d.ResumeToken != "" || d.Origin != moved+"@2" || d.User["flocker:volume"] != "k" || !d.ReadOnly || d.Written != 0 {
		w.Errorf("received: %+v", d)
	}
	if got := w.b.snapshot(k, "c1"); got.GUID != first.GUID {
		w.Errorf("received %+v, sent %+v", got, first)
	}
	w.b.must(w.b.receive(k, w.a.stream(clone, "@c1", "c2"), true))
	w.sameContent(w.b.content(k), w.a.content(clone))

	// Thrown away, whole or in part.
	w.b.must(z.Destroy(w.ctx, k))
	w.b.must(z.Rename(w.ctx, moved, b))
	cut()
	w.b.must(z.AbortReceive(w.ctx, k))
	if w.b.exists(k) {
		w.Error("aborted, and it is there")
	}

	// What it hangs on is given to a clone of the original, which takes the original's place, when
	// it was cut and while it comes. While it comes, too, it holds up the original, for the same reason.
	fork := func() {
		w.Helper()
		fork, aside := w.b.name("fork"), w.b.name("aside")
		w.b.must(z.Clone(w.ctx, b+"@2", fork, w.b.volumeProps(fork)))
		w.b.must(z.Promote(w.ctx, fork))
		if d := w.b.dataset(k); d.Origin != fork+"@2" {
			w.Errorf("under what was promoted: %+v", d)
		}
		w.b.must(z.Rename(w.ctx, b, aside))
		w.b.must(z.Rename(w.ctx, fork, b))
		w.b.must(z.Destroy(w.ctx, aside))
	}
	whole := func() {
		w.Helper()
		if d := w.b.dataset(k); d.ResumeToken != "" || d.Origin != b+"@2" || w.b.snapshot(k, "c1").GUID != first.GUID {
			w.Errorf("received: %+v", d)
		}
		w.b.must(w.b.receive(k, w.a.stream(clone, "@c1", "c2"), true))
		w.sameContent(w.b.content(k), w.a.content(clone))
		w.b.must(z.Destroy(w.ctx, k))
	}
	d = cut()
	fork()
	w.b.must(on(b+"@2", nil, w.a.send(zfs.SendRequest{Token: d.ResumeToken})))
	whole()

	r, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := z.Receive(w.ctx, zfs.ReceiveRequest{Dataset: k, Origin: b + "@2", Properties: props, Resumable: true}, onlyReader{r})
		r.CloseWithError(err)
		done <- err
	}()
	pw.Write(stream[:2<<20])
	w.soon("it is being received", func() bool { return w.b.exists(k) })
	w.wantKind("destroy the original meanwhile", z.Destroy(w.ctx, b), zfs.ErrHasClones)
	w.wantKind("destroy what it hangs on meanwhile", z.DestroySnapshots(w.ctx, b, []string{"2"}), zfs.ErrHasClones, zfs.ErrBusy)
	if got := w.b.names(b); got != "1 2" {
		w.Errorf("of the original are left: %s", got)
	}
	fork()
	pw.Write(stream[2<<20:])
	pw.Close()
	w.b.must(<-done)
	whole()

	w.b.must(on(b+"@2", props, stream))
	w.b.must(z.Destroy(w.ctx, k))
	w.b.must(z.DestroySnapshots(w.ctx, b, []string{"2"}))
	if got := w.b.names(b); got != "1" {
		w.Errorf("of the original are left: %s", got)
	}
}

// A quota never stands in the way of replication; a full pool does.
func testReceiveNoRoom(w *world, env Env) {
	a, b := w.history("v", 1<<20), w.b.name("v")
	w.b.must(w.b.receive(b, w.a.stream(a, "", "1"), true))
	w.b.must(w.b.ZFS.SetProperties(w.ctx, b, map[string]string{"refquota": fmt.Sprint(5 << 19)}))
	w.b.must(w.b.receive(b, w.a.stream(a, "@1", "3"), false))
	w.sameContent(w.b.content(b), w.a.content(a))

	if env.NewPool == nil {
		return
	}
	name, path, _, destroy := env.NewPool(w.T)
	defer destroy()
	w.a.must(w.a.ZFS.CreateFilePool(w.ctx, name, path, 64<<20))
	big := w.a.mounted("big")
	w.a.write(big, "f", data(1, 80<<20))
	w.a.snap(big, "1")
	for _, resumable := range []bool{false, true} {
		r, pw := io.Pipe()
		sent := make(chan error, 1)
		go func() {
			err := w.a.ZFS.Send(w.ctx, zfs.SendRequest{Snapshot: big + "@1"}, pw)
			pw.CloseWithError(err)
			sent <- err
		}()
		err := w.a.ZFS.Receive(w.ctx, zfs.ReceiveRequest{Dataset: name + "/v", Resumable: resumable}, r)
		r.Close()
		w.Logf("the sender: %s", ok(<-sent))
		w.wantKind(fmt.Sprintf("full pool, resumable %t", resumable), err, zfs.ErrNoSpace)
		if !resumable && w.a.exists(name+"/v") {
			w.Error("a refused stream left a dataset")
		}
	}
}

func testDamaged(w *world, _ Env) {
	a, b := w.history("v", 40_000), w.b.name("v")
	full, incr := w.a.stream(a, "", "1"), w.a.stream(a, "@1", "2")
	flip := func(stream []byte, at int) []byte {
		out := slices.Clone(stream)
		out[at] ^= 0x40
		return out
	}
	// In the middle of what is long, where bytes of files are.
	for _, part := range []int{3, 5, 8} {
		err := w.b.receive(b, flip(full, len(full)*part/10), false)
		w.wantKind(fmt.Sprintf("full, byte at %d/10", part), err, zfs.ErrBadStream)
		if w.b.exists(b) {
			w.Fatal("a damaged full stream left a dataset")
		}
	}
	w.b.must(w.b.receive(b, full, false))
	for _, part := range []int{3, 5, 8} {
		err := w.b.receive(b, flip(incr, len(incr)*part/10), false)
		w.wantKind(fmt.Sprintf("increment, byte at %d/10", part), err, zfs.ErrBadStream)
	}
	if d := w.b.dataset(b); d.ResumeToken != "" || d.Written != 0 || w.b.names(b) != "1" {
		w.Errorf("damaged streams left something: %+v %s", d, w.b.names(b))
	}
	// Resumable: what came before the damage stays, and the rest can be had.
	err := w.b.receive(b, flip(incr, len(incr)*8/10), true)
	w.wantKind("increment, resumable", err, zfs.ErrInterrupted)
	token := w.b.dataset(b).ResumeToken
	if token == "" {
		w.Fatal("no token")
	}
	w.b.must(w.b.receive(b, w.a.send(zfs.SendRequest{Token: token}), true))
	w.b.must(w.b.receive(b, w.a.stream(a, "@2", "3"), true))
	w.sameContent(w.b.content(b), w.a.content(a))
}

func testTruncated(w *world, _ Env) {
	a, b := w.history("v", 100_000), w.b.name("v")
	full, incr := w.a.stream(a, "", "1"), w.a.stream(a, "@1", "2")
	for n := 1; n < len(full); n *= 4 {
		w.wantKind(fmt.Sprintf("full cut at %d", n), w.b.receive(b, full[:n], false), zfs.ErrBadStream)
	}
	w.wantKind("full without its last byte", w.b.receive(b, full[:len(full)-1], false), zfs.ErrBadStream)
	if w.b.exists(b) {
		w.Fatal("a cut full stream left a dataset")
	}
	w.b.must(w.b.receive(b, full, false))
	for n := 1; n < len(incr); n *= 4 {
		w.wantKind(fmt.Sprintf("increment cut at %d", n), w.b.receive(b, incr[:n], false), zfs.ErrBadStream)
	}
	w.wantKind("increment without its last byte", w.b.receive(b, incr[:len(incr)-1], false), zfs.ErrBadStream)
	if d := w.b.dataset(b); d.ResumeToken != "" || w.b.names(b) != "1" {
		w.Errorf("cut streams left something: %+v %s", d, w.b.names(b))
	}
	w.b.must(w.b.receive(b, incr, false))
	w.b.must(w.b.receive(b, w.a.stream(a, "@2", "3"), false))
	w.sameContent(w.b.content(b), w.a.content(a))
}

func testResumeFull(w *world, _ Env) {
	a, b := w.history("v", 400_000), w.b.name("v")
	full := w.a.stream(a, "", "3")
	resumed := 0
	for n := 1; n < len(full); n *= 2 {
		if !w.cutAndResume(a, b, full, n, zfs.SendRequest{Snapshot: a + "@3"}) {
			continue
		}
		resumed++
		w.sameContent(w.b.content(b), w.a.content(a))
		w.b.must(w.b.ZFS.Destroy(w.ctx, b))
	}
	if resumed < 2 {
		w.Errorf("only %d of the cuts could be resumed", resumed)
	}
}

// cutAndResume receives the first n bytes, then the rest by token; it says whether
// there was one. Either outcome of a cut is right, a mixture is not.
func (w *world) cutAndResume(a, b string, stream []byte, n int, req zfs.SendRequest) bool {
	w.Helper()
	existed := w.b.exists(b)
	err := w.b.receive(b, stream[:n], true)
	if errors.Is(err, zfs.ErrBadStream) {
		if exists := w.b.exists(b); exists != existed || exists && w.b.dataset(b).ResumeToken != "" {
			w.Fatalf("cut at %d: not resumable, but something is left", n)
		}
		return false
	}
	w.wantKind(fmt.Sprintf("cut at %d", n), err, zfs.ErrInterrupted)
	token := w.b.dataset(b).ResumeToken
	t, err := w.a.ZFS.DecodeToken(w.ctx, token)
	if err != nil {
		w.Fatalf("cut at %d: token %q: %v", n, token, err)
	}
	from := uint64(0)
	if req.From != "" {
		_, name, _ := strings.Cut(req.From, "@")
		from = w.a.snapshot(a, name).GUID
	}
	_, name, _ := strings.Cut(req.Snapshot, "@")
	if t.ToName != req.Snapshot || t.ToGUID != w.a.snapshot(a, name).GUID || t.FromGUID != from || t.Bytes > int64(n) {
		w.Errorf("cut at %d: token stands for %+v", n, t)
	}
	rest := w.a.send(zfs.SendRequest{Token: token})
	w.b.must(w.b.receive(b, rest, true))
	if d := w.b.dataset(b); d.ResumeToken != "" {
		w.Errorf("cut at %d: a token is left", n)
	}
	if x, y := w.a.snapshot(a, name), w.b.snapshot(b, name); x.GUID != y.GUID {
		w.Errorf("cut at %d: guid %d, want %d", n, y.GUID, x.GUID)
	}
	return true
}

func testResumeIncrement(w *world, _ Env) {
	a, b := w.history("v", 400_000), w.b.name("v")
	w.b.must(w.b.receive(b, w.a.stream(a, "", "1"), false))
	incr := w.a.stream(a, "@1", "2")
	resumed := 0
	for n := 1; n < len(incr); n *= 8 {
		if !w.cutAndResume(a, b, incr, n, zfs.SendRequest{Snapshot: a + "@2", From: a + "@1"}) {
			continue
		}
		resumed++
		w.b.must(w.b.ZFS.Destroy(w.ctx, b))
		w.b.must(w.b.receive(b, w.a.stream(a, "", "1"), false))
	}
	if resumed < 1 {
		w.Errorf("only %d of the cuts could be resumed", resumed)
	}
	// Cut again and again, each time a little further, the base only a bookmark by now,
	// and the target of the stream under another name.
	w.a.must(w.a.ZFS.Bookmark(w.ctx, a+"@1", a+"#m1"))
	err := w.b.receive(b, incr[:len(incr)/4], true)
	w.a.must(w.a.ZFS.DestroySnapshots(w.ctx, a, []string{"1"}))
	for round := 0; err != nil; round++ {
		w.wantKind("cut again", err, zfs.ErrInterrupted)
		if round > 20 {
			w.Fatal("it never ends")
		}
		rest := w.a.send(zfs.SendRequest{Token: w.b.dataset(b).ResumeToken})
		w.Logf("round %d: %d bytes to go", round, len(rest))
		// A real receive throws away what it has not written in a batch, up to a megabyte:
		// cuts at the same place might never come further.
		err = w.b.receive(b, rest[:min(len(rest), (round+1)*150_000)], true)
	}
	w.b.must(w.b.receive(b, w.a.stream(a, "@2", "3"), true))
	w.sameContent(w.b.content(b), w.a.content(a))
}

func testPartialState(w *world, _ Env) {
	z := w.b.ZFS
	a, b := w.history("v", 400_000), w.b.name("v")
	full, incr := w.a.stream(a, "", "1"), w.a.stream(a, "@1", "2")
	cut := func(stream []byte) string {
		w.Helper()
		w.wantKind("cut", w.b.receive(b, stream[:len(stream)/2], true), zfs.ErrInterrupted)
		return w.b.dataset(b).ResumeToken
	}
	// Of a full stream: the dataset is there, without snapshots, and nothing works on it.
	cut(full)
	if got := w.b.names(b); got != "" {
		w.Errorf("snapshots: %s", got)
	}
	w.wantKind("full onto it", w.b.receive(b, full, true), zfs.ErrExists, zfs.ErrBusy)
	w.wantKind("snapshot of it", z.Snapshot(w.ctx, []string{b + "@x"}, nil), zfs.ErrBusy)
	w.b.must(z.AbortReceive(w.ctx, b))
	if w.b.exists(b) {
		w.Error("aborted full receive left a dataset")
	}
	w.b.must(z.AbortReceive(w.ctx, b))
	token := cut(full)
	w.b.must(z.Destroy(w.ctx, b))
	err := w.b.receive(b, w.a.send(zfs.SendRequest{Token: token}), true)
	w.Logf("resumed full stream onto nothing: %v", err)
	w.wantKind("resumed full stream onto nothing", err, zfs.ErrBadToken, zfs.ErrNotFound)
	w.b.must(w.b.receive(b, full, true))
	w.b.must(z.AbortReceive(w.ctx, b))

	// Of an increment: the head is as it was, the base is pinned, others are refused.
	token = cut(incr)
	w.wantKind("another increment", w.b.receive(b, incr, true), zfs.ErrBusy)
	w.wantKind("destroy the base", z.DestroySnapshots(w.ctx, b, []string{"1"}), zfs.ErrBusy, zfs.ErrHasClones)
	if s := w.b.snapshot(b, "1"); len(s.Clones) > 1 {
		w.Errorf("base: %+v", s)
	}
	list, err := z.Datasets(w.ctx, w.b.Root)
	w.b.must(err)
	if got := names(list); got != w.b.Root+" "+b {
		w.Errorf("datasets with partial state: %s", got)
	}
	moved := w.b.name("moved")
	w.b.must(z.Rename(w.ctx, b, moved))
	if got := w.b.dataset(moved).ResumeToken; got == "" {
		w.Error("the token is lost by a rename")
	}
	w.b.must(z.Rename(w.ctx, moved, b))
	// The wrong stream to resume with.
	w.b.must(z.AbortReceive(w.ctx, b))
	if d := w.b.dataset(b); d.ResumeToken != "" {
		w.Error("aborted, but a token is left")
	}
	err = w.b.receive(b, w.a.send(zfs.SendRequest{Token: token}), true)
	if err == nil {
		w.Error("a resumed stream was received without partial state")
	}
	w.Logf("resumed stream without partial state: %v", err)
	w.wantKind("resumed stream without partial state", err, zfs.ErrBadToken)
	cut(incr)
	w.b.must(z.Destroy(w.ctx, b))
	w.b.must(w.b.receive(b, full, true))
	cut(incr)
	w.b.must(w.b.receive(b, w.a.send(zfs.SendRequest{Token: w.b.dataset(b).ResumeToken}), true))
}

func testTokens(w *world, _ Env) {
	z := w.a.ZFS
	a, b := w.history("v", 400_000), w.b.name("v")
	w.b.must(w.b.receive(b, w.a.stream(a, "", "1"), true))
	incr := w.a.stream(a, "@1", "2")
	w.wantKind("cut", w.b.receive(b, incr[:len(incr)/2], true), zfs.ErrInterrupted)
	token := w.b.dataset(b).ResumeToken
	for _, bad := range []string{"", "x", "-t", "1-2-3", token[:len(token)/2], "2" + token[1:], strings.Replace(token, "-", "-f", 1)} {
		_, err := z.DecodeToken(w.ctx, bad)
		w.wantKind("token "+bad, err, zfs.ErrBadToken)
	}
	// Renamed here: found by GUID.
	w.a.must(z.Rename(w.ctx, a+"@2", a+"@zwei"))
	_, err := z.DecodeToken(w.ctx, token)
	w.Logf("decode with the target renamed: %s", ok(err))
	w.a.must(z.Rename(w.ctx, a+"@zwei", a+"@2"))
	// The base gone, and its bookmark too.
	w.a.must(z.DestroySnapshots(w.ctx, a, []string{"1"}))
	_, err = z.DecodeToken(w.ctx, token)
	w.wantKind("base gone: decode", err, zfs.ErrBadToken)
	w.wantKind("base gone: send", z.Send(w.ctx, zfs.SendRequest{Token: token}, new(bytes.Buffer)), zfs.ErrBadToken)
	w.a.must(z.DestroySnapshots(w.ctx, a, []string{"2"}))
	_, err = z.DecodeToken(w.ctx, token)
	w.wantKind("target gone: decode", err, zfs.ErrBadToken)
	w.wantKind("target gone: send", z.Send(w.ctx, zfs.SendRequest{Token: token}, new(bytes.Buffer)), zfs.ErrBadToken)
	w.b.must(w.b.ZFS.AbortReceive(w.ctx, b))
}

func testStalled(w *world, _ Env) {
	a, b := w.history("v", 3<<20), w.b.name("v")
	full := w.a.stream(a, "", "1")
	why := errors.New("the test has had enough")

	// A peer that takes nothing: ctx frees Send.
	ctx, cancel := context.WithCancelCause(w.ctx)
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	done := make(chan error, 1)
	go func() { done <- w.a.ZFS.Send(ctx, zfs.SendRequest{Snapshot: a + "@1"}, near) }()
	io.ReadFull(far, make([]byte, 1000))
	cancel(why)
	w.endsWith("stalled send", done, why)

	// A peer that sends half and no more: ctx frees Receive.
	ctx, cancel = context.WithCancelCause(w.ctx)
	near, far = net.Pipe()
	defer near.Close()
	defer far.Close()
	go func() { done <- w.b.ZFS.Receive(ctx, zfs.ReceiveRequest{Dataset: b, Resumable: true}, near) }()
	go far.Write(full[:len(full)/2])
	w.soon("the half is received", func() bool { return w.b.exists(b) })
	cancel(why)
	w.endsWith("stalled receive", done, why)
	if w.b.exists(b) {
		w.b.must(w.b.ZFS.Destroy(w.ctx, b))
	}

	// A receive that fails at once does not wait for the peer.
	w.b.must(w.b.receive(b, full, true))
	near, far = net.Pipe()
	defer near.Close()
	defer far.Close()
	go func() { done <- w.b.ZFS.Receive(w.ctx, zfs.ReceiveRequest{Dataset: b}, near) }()
	go far.Write(full[:1<<20])
	select {
	case err := <-done:
		w.wantKind("refused stream", err, zfs.ErrExists)
	case <-time.After(20 * time.Second):
		w.Fatal("a refused receive waits for its peer")
	}
	go far.Write([]byte("z"))
	near.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := near.Read(make([]byte, 1)); err != nil {
		w.Errorf("the connection cannot be read after it: %v", err)
	}

	// A context that has ended runs nothing.
	ctx, cancel = context.WithCancelCause(w.ctx)
	cancel(why)
	if err := w.a.ZFS.Snapshot(ctx, []string{a + "@late"}, nil); !errors.Is(err, why) {
		w.Errorf("snapshot with an ended context: %v", err)
	}
	if err := w.a.ZFS.Rename(ctx, a+"@1", a+"@late"); !errors.Is(err, why) {
		w.Errorf("rename with an ended context: %v", err)
	}
}

func (w *world) endsWith(what string, done <-chan error, why error) {
	w.Helper()
	select {
	case err := <-done:
		if !errors.Is(err, why) {
			w.Errorf("%s: %v, want the cause of its context", what, err)
		}
	case <-time.After(20 * time.Second):
		w.Fatalf("%s does not end", what)
	}
}

func testConcurrent(w *world, _ Env) {
	a, b := w.history("v", 3<<20), w.b.name("v")
	w.b.must(w.b.receive(b, w.a.stream(a, "", "1"), true))
	incr := w.a.stream(a, "@1", "2")

	// One receive under way: a second is refused, its base and dataset stay.
	r, pw := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- w.b.ZFS.Receive(w.ctx, zfs.ReceiveRequest{Dataset: b, Resumable: true}, r) }()
	pw.Write(incr[:2<<20])
	w.soon("the first receive has begun", func() bool {
		return errors.Is(w.b.receive(b, incr, true), zfs.ErrBusy)
	})
	w.wantKind("destroy the base", w.b.ZFS.DestroySnapshots(w.ctx, b, []string{"1"}), zfs.ErrBusy, zfs.ErrHasClones)
	w.wantKind("destroy the dataset", w.b.ZFS.Destroy(w.ctx, b), zfs.ErrBusy)
	w.wantKind("abort it", w.b.ZFS.AbortReceive(w.ctx, b), zfs.ErrBusy)
	pw.Write(incr[2<<20:])
	pw.Close()
	w.b.must(<-done)

	// One send under way: what it reads stays.
	r, pw = io.Pipe()
	go func() {
		err := w.a.ZFS.Send(w.ctx, zfs.SendRequest{Snapshot: a + "@2"}, pw)
		pw.CloseWithError(err)
		done <- err
	}()
	io.ReadFull(r, make([]byte, 1000))
	w.wantKind("destroy what is sent", w.a.ZFS.DestroySnapshots(w.ctx, a, []string{"2"}), zfs.ErrBusy)
	w.a.snap(a, "meanwhile")
	io.Copy(io.Discard, r)
	w.a.must(<-done)
	w.a.must(w.a.ZFS.DestroySnapshots(w.ctx, a, []string{"2"}))
}
