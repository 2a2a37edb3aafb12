package zfsfake_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// node is a fake with one mounted volume, "tank/v".
func node(t *testing.T, o zfsfake.Options) *zfsfake.Host {
	t.Helper()
	o.Pool = "tank"
	h := zfsfake.New(o)
	props := map[string]string{"mountpoint": "/v", "canmount": "noauto", "readonly": "on"}
	must(t, h.CreateFilesystem(t.Context(), "tank/v", props))
	must(t, h.Mount(t.Context(), "tank/v", true))
	return h
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: got %v, want %v", what, err, kind)
	}
}

func TestCrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		h := node(t, zfsfake.Options{Seed: 1})
		write := func(file string) { must(t, h.WriteFile("tank/v", file, []byte(file))) }
		write("snapshotted")
		must(t, h.Snapshot(ctx, []string{"tank/v@1"}, nil))
		write("old")
		time.Sleep(6 * time.Second)
		write("fsynced")
		must(t, h.Sync("tank/v"))
		write("lost")
		must(t, h.RemoveFile("tank/v", "old"))
		h.Crash()

		files, err := h.Files("tank/v")
		must(t, err)
		if got := strings.Join(files, " "); got != "fsynced old snapshotted" {
			t.Errorf("after the crash: %s", got)
		}
		if len(h.Mounts()) != 0 {
			t.Errorf("mounts: %v", h.Mounts())
		}
		want(t, "write after the crash", h.WriteFile("tank/v", "f", nil), syscall.EROFS)
		must(t, h.Mount(ctx, "tank/v", true))
		write("again")
		must(t, h.Check())
	})
}

// What was fsynced survives a crash in the intent log: it is not seen before the next
// mount, and a stream that comes first throws it away.
func TestIntentLog(t *testing.T) {
	ctx := t.Context()
	h := node(t, zfsfake.Options{Seed: 1, TxgTimeout: time.Hour})
	must(t, h.WriteFile("tank/v", "f", []byte("one")))
	must(t, h.Snapshot(ctx, []string{"tank/v@1"}, nil))
	has := func(text string, written bool) {
		t.Helper()
		b, err := h.ReadFile("tank/v", "f")
		must(t, err)
		d, err := h.Dataset(ctx, "tank/v")
		must(t, err)
		if string(b) != text || d.Written > 0 != written {
			t.Errorf("it holds %s, written %d; want %s, written %t", b, d.Written, text, written)
		}
	}
	must(t, errors.Join(h.WriteFile("tank/v", "f", []byte("two")), h.Fsync("tank/v")))
	must(t, h.WriteFile("tank/v", "f", []byte("not fsynced")))
	has("not fsynced", false)
	h.Crash()
	has("one", false)
	must(t, errors.Join(h.Check(), h.Snapshot(ctx, []string{"tank/v@2"}, nil)))
	must(t, errors.Join(h.Mount(ctx, "tank/v", false), h.Unmount(ctx, "tank/v")))
	has("two", true)
	must(t, h.Check())
}

// What is under way at a crash ends, changes nothing, and leaves what real ZFS
// leaves: a resumable receive its state, any other nothing.
func TestCrashDuringStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		a, b := node(t, zfsfake.Options{Seed: 1}), zfsfake.New(zfsfake.Options{Seed: 2, Pool: "tank"})
		must(t, a.WriteFile("tank/v", "f", make([]byte, 1<<20)))
		must(t, a.Snapshot(ctx, []string{"tank/v@1"}, nil))
		for _, resumable := range []bool{false, true} {
			near, far := net.Pipe()
			sent, received := make(chan error, 1), make(chan error, 1)
			go func() { sent <- a.Send(ctx, zfs.SendRequest{Snapshot: "tank/v@1"}, near) }()
			r, w := io.Pipe()
			go func() {
				received <- b.Receive(ctx, zfs.ReceiveRequest{Dataset: "tank/v", Resumable: resumable}, r)
			}()
			io.CopyN(w, far, 500_000)
			synctest.Wait()
			want(t, "destroy what is sent", a.DestroySnapshots(ctx, "tank/v", []string{"1"}), zfs.ErrBusy)
			b.Crash()
			a.Crash()
			want(t, "send", <-sent, zfsfake.ErrCrashed)
			r.Close() // the connection of a dead machine
			want(t, "receive", <-received, zfsfake.ErrCrashed)
			must(t, a.Check())
			must(t, b.Check())
			d, err := b.Dataset(ctx, "tank/v")
			if !resumable {
				want(t, "dataset", err, zfs.ErrNotFound)
				continue
			}
			must(t, err)
			var rest bytes.Buffer
			must(t, a.Send(ctx, zfs.SendRequest{Token: d.ResumeToken}, &rest))
			if rest.Len() > 600_000 {
				t.Errorf("%d bytes are left of a million", rest.Len())
			}
			must(t, b.Receive(ctx, zfs.ReceiveRequest{Dataset: "tank/v"}, &rest))
		}
	})
}

func TestRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		h := node(t, zfsfake.Options{Seed: 1})
		snap := func(n int) error { return h.Snapshot(ctx, []string{fmt.Sprintf("tank/v@%d", n)}, nil) }

		h.Fail("snapshot", "tank/v", 2, zfs.ErrNoSpace)
		must(t, snap(1))
		want(t, "the second", snap(2), zfs.ErrNoSpace)
		must(t, snap(3))

		remove := h.FailAfter("snapshot", "@4", 0, zfsfake.ErrInjected)
		want(t, "done, but not told", snap(4), zfsfake.ErrInjected)
		want(t, "it is there", snap(4), zfs.ErrExists)
		remove()
		must(t, snap(5))
		list, err := h.Snapshots(ctx, "tank/v", false)
		must(t, err)
		if len(list) != 4 {
			t.Errorf("%d snapshots, want 4", len(list))
		}

		h.Slow("promote", "", time.Minute)
		began := time.Now()
		want(t, "slow", h.Promote(ctx, "tank/v"), zfs.ErrInvalid)
		if time.Since(began) != time.Minute {
			t.Errorf("took %s", time.Since(began))
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		want(t, "slow, with a deadline", h.Promote(short, "tank/v"), context.DeadlineExceeded)

		// The power goes between two steps of a caller.
		h.Inject(zfsfake.Rule{Op: "bookmark", After: true, Times: 1, Do: func(context.Context, string, string) error {
			h.Crash()
			return zfsfake.ErrCrashed
		}})
		want(t, "crash", h.Bookmark(ctx, "tank/v@1", "tank/v#m"), zfsfake.ErrCrashed)
		marks, err := h.Bookmarks(ctx, "tank/v", false)
		must(t, err)
		if len(marks) != 1 {
			t.Errorf("bookmarks: %v", marks)
		}

		if c := h.Commands(); c["snapshot"] != 6 || c["promote"] != 2 {
			t.Errorf("commands: %v", c)
		}
		h.ResetCommands()
		if c := h.Commands(); len(c) != 0 {
			t.Errorf("commands: %v", c)
		}
	})
}

// Written lags as on real ZFS: a tick that trusts it alone misses young writes.
func TestWrittenLags(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		h := node(t, zfsfake.Options{Seed: 1})
		must(t, h.Snapshot(ctx, []string{"tank/v@1"}, nil))
		must(t, h.WriteFile("tank/v", "f", make([]byte, 100_000)))
		written := func() int64 {
			d, err := h.Dataset(ctx, "tank/v")
			must(t, err)
			return d.Written
		}
		if n := written(); n != 0 {
			t.Errorf("written at once: %d", n)
		}
		time.Sleep(6 * time.Second)
		if n := written(); n < 100_000 {
			t.Errorf("written after the transaction group: %d", n)
		}
	})
}

func TestFullAndSuspended(t *testing.T) {
	ctx := t.Context()
	h := node(t, zfsfake.Options{Seed: 1, Capacity: 1 << 20})
	want(t, "write", h.WriteFile("tank/v", "f", make([]byte, 2<<20)), syscall.ENOSPC)
	must(t, h.WriteFile("tank/v", "f", make([]byte, 700_000)))
	must(t, h.Snapshot(ctx, []string{"tank/v@1"}, nil))
	want(t, "overwrite what a snapshot holds", h.WriteFile("tank/v", "f", make([]byte, 700_000)), syscall.ENOSPC)
	want(t, "create", func() error {
		h.SetCapacity("tank", 800_000)
		return h.CreateFilesystem(ctx, "tank/w", nil)
	}(), zfs.ErrNoSpace)
	must(t, h.DestroySnapshots(ctx, "tank/v", []string{"1"}))
	h.SetCapacity("tank", 8<<20)

	h.SuspendPool("tank", true)
	want(t, "write", h.WriteFile("tank/v", "g", nil), syscall.EIO)
	want(t, "snapshot", h.Snapshot(ctx, []string{"tank/v@2"}, nil), zfs.ErrSuspended)
	want(t, "unmount", h.Unmount(ctx, "tank/v"), zfs.ErrSuspended)
	p, err := h.Pool(ctx, "tank")
	must(t, err)
	if p.Health != "SUSPENDED" {
		t.Errorf("health %s", p.Health)
	}
	if _, err := h.Datasets(ctx, "tank"); err != nil {
		t.Error(err)
	}
	h.SuspendPool("tank", false)
	must(t, h.Unmount(ctx, "tank/v"))
	must(t, h.Check())
}

// processorTime is what this process has had, whatever else the machine does.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	must(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestTenThousand(t *testing.T) {
	ctx := t.Context()
	h := zfsfake.New(zfsfake.Options{Seed: 1, Pool: "tank"})
	must(t, h.CreateFilesystem(ctx, "tank/flocker", nil))
	var names []string
	for i := range 10_000 {
		name := fmt.Sprintf("tank/flocker/%016x", i)
		must(t, h.CreateFilesystem(ctx, name, map[string]string{"flocker:volume": "x"}))
		names = append(names, name+"@1")
	}
	must(t, h.Snapshot(ctx, names, nil))
	before := processorTime(t)
	list, err := h.Datasets(ctx, "tank/flocker")
	must(t, err)
	snaps, err := h.Snapshots(ctx, "tank/flocker", true)
	must(t, err)
	if len(list) != 10_001 || len(snaps) != 10_000 {
		t.Errorf("%d datasets, %d snapshots", len(list), len(snaps))
	}
	if took := processorTime(t) - before; took > 5*time.Second {
		t.Errorf("both listings took %s of a processor", took)
	}
	if c := h.Commands(); c["snapshot"] != 1 || c["datasets"] != 1 || c["snapshots"] != 1 {
		t.Errorf("commands: %v", c)
	}
}

// TestRandom runs random histories on two hosts, with cut and damaged streams and
// crashes, and asks after each step for what must always hold: the fake is in order
// inside, and a snapshot has the same content wherever its GUID is.
func TestRandom(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 2))
			hosts := []*zfsfake.Host{
				zfsfake.New(zfsfake.Options{Seed: seed*2 + 1, Pool: "tank", TxgTimeout: time.Millisecond}),
				zfsfake.New(zfsfake.Options{Seed: seed*2 + 2, Pool: "tank", TxgTimeout: -1}),
			}
			content := map[uint64]string{}
			for range 150 {
				step(t, r, hosts)
				for i, h := range hosts {
					if err := h.Check(); err != nil {
						t.Fatalf("host %d: %v\n%s", i, err, h.Dump())
					}
					snaps, err := h.Snapshots(t.Context(), "tank", true)
					must(t, err)
					for _, s := range snaps {
						sum, err := h.Checksum(s.FullName())
						must(t, err)
						if was, known := content[s.GUID]; known && was != sum {
							t.Fatalf("host %d: content of %s (%d) is not what it was", i, s.FullName(), s.GUID)
						}
						content[s.GUID] = sum
					}
				}
			}
		})
	}
}

// step does one random thing; that it is refused is fine.
func step(t *testing.T, r *rand.Rand, hosts []*zfsfake.Host) {
	ctx := t.Context()
	i := r.IntN(2)
	h, peer := hosts[i], hosts[1-i]
	ds := fmt.Sprintf("tank/%c", 'a'+r.IntN(3))
	other := fmt.Sprintf("tank/%c", 'a'+r.IntN(4))
	snaps, _ := h.Snapshots(ctx, ds, false)
	snap := func() string {
		if len(snaps) == 0 {
			return ds + "@none"
		}
		return snaps[r.IntN(len(snaps))].FullName()
	}
	short := func() string { _, s, _ := strings.Cut(snap(), "@"); return s }
	switch r.IntN(20) {
	case 0:
		h.CreateFilesystem(ctx, ds, map[string]string{"mountpoint": "/" + ds, "readonly": "on", "canmount": "noauto"})
	case 1, 2, 3:
		h.Mount(ctx, ds, true)
		h.WriteFile(ds, fmt.Sprint("f", r.IntN(4)), make([]byte, r.IntN(40_000)))
	case 4:
		h.RemoveFile(ds, fmt.Sprint("f", r.IntN(4)))
	case 5, 6, 7:
		h.Snapshot(ctx, []string{fmt.Sprintf("%s@%d", ds, r.Uint32())}, nil)
	case 8:
		h.DestroySnapshots(ctx, ds, []string{short(), short()})
	case 9:
		h.Prune(ctx, []zfs.PruneRequest{{Snapshot: snap(), Bookmark: "m" + short()}})
	case 10:
		h.Clone(ctx, snap(), other, nil)
	case 11:
		h.Promote(ctx, ds)
	case 12:
		h.Unmount(ctx, ds)
		h.Rename(ctx, ds, other)
	case 13:
		if r.IntN(4) == 0 {
			h.Destroy(ctx, ds)
		}
	case 14:
		h.Unmount(ctx, ds)
		h.AbortReceive(ctx, ds)
	case 15:
		h.Crash()
	default:
		h.Unmount(ctx, ds)
		req := zfs.SendRequest{Snapshot: snap()}
		if r.IntN(3) > 0 {
			req.From = snap()
		}
		if d, err := peer.Dataset(ctx, ds); err == nil && d.ResumeToken != "" {
			req = zfs.SendRequest{Token: d.ResumeToken}
		}
		var buf bytes.Buffer
		if h.Send(ctx, req, &buf) != nil {
			return
		}
		stream := buf.Bytes()
		switch r.IntN(4) {
		case 0:
			stream = stream[:r.IntN(len(stream))]
		case 1:
			stream[r.IntN(len(stream))] ^= 1 << r.IntN(8)
		}
		peer.Receive(ctx, zfs.ReceiveRequest{Dataset: ds, Resumable: r.IntN(2) == 0}, bytes.NewReader(stream))
	}
}

// FuzzReceive: no stream panics, and what is not whole changes nothing.
func FuzzReceive(f *testing.F) {
	ctx := context.Background()
	h := zfsfake.New(zfsfake.Options{Seed: 1, Pool: "tank"})
	h.CreateFilesystem(ctx, "tank/v", map[string]string{"mountpoint": "/v"})
	h.Mount(ctx, "tank/v", true)
	h.WriteFile("tank/v", "f", []byte("hello"))
	h.Snapshot(ctx, []string{"tank/v@1"}, nil)
	var buf bytes.Buffer
	h.Send(ctx, zfs.SendRequest{Snapshot: "tank/v@1"}, &buf)
	f.Add(buf.Bytes())
	f.Fuzz(func(t *testing.T, stream []byte) {
		h := zfsfake.New(zfsfake.Options{Seed: 2, Pool: "tank", Capacity: 1 << 24})
		h.Receive(ctx, zfs.ReceiveRequest{Dataset: "tank/v", Resumable: true}, bytes.NewReader(stream))
		if err := h.Check(); err != nil {
			t.Error(err)
		}
		if sum, err := h.Checksum("tank/v@1"); err == nil && !bytes.Equal(stream[:buf.Len()], buf.Bytes()) {
			t.Errorf("took a stream that was not sent: %s", sum)
		}
	})
}

// FuzzToken: no text panics.
func FuzzToken(f *testing.F) {
	f.Add("1-00000000-2-7b7d")
	h := zfsfake.New(zfsfake.Options{Seed: 1, Pool: "tank"})
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := h.DecodeToken(context.Background(), text); !errors.Is(err, zfs.ErrBadToken) {
			t.Errorf("got %v", err)
		}
	})
}

// A half received clone that is promoted is of no use any more, and does not go away by being
// aborted: the kernel goes on with none that has snapshots.
func TestPromotedPartial(t *testing.T) {
	ctx := t.Context()
	h := node(t, zfsfake.Options{Seed: 1})
	must(t, h.Snapshot(ctx, []string{"tank/v@1"}, nil))
	must(t, h.Clone(ctx, "tank/v@1", "tank/x", map[string]string{"mountpoint": "/x"}))
	must(t, h.Mount(ctx, "tank/x", true))
	must(t, h.WriteFile("tank/x", "own", make([]byte, 100<<10)))
	must(t, h.Snapshot(ctx, []string{"tank/x@c"}, nil))
	var stream bytes.Buffer
	must(t, h.Send(ctx, zfs.SendRequest{Snapshot: "tank/x@c", From: "tank/v@1"}, &stream))
	req := zfs.ReceiveRequest{Dataset: "tank/k", Origin: "tank/v@1", Resumable: true}
	want(t, "cut", h.Receive(ctx, req, bytes.NewReader(stream.Bytes()[:stream.Len()/2])), zfs.ErrInterrupted)
	d, err := h.Dataset(ctx, "tank/k")
	must(t, err)
	must(t, h.Promote(ctx, "tank/k"))
	var rest bytes.Buffer
	must(t, h.Send(ctx, zfs.SendRequest{Token: d.ResumeToken}, &rest))
	want(t, "gone on with", h.Receive(ctx, req, &rest), zfs.ErrInvalid)
	want(t, "aborted", h.AbortReceive(ctx, "tank/k"), zfs.ErrBusy)
	must(t, h.Check())
}
