package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// Of a volume that is handed to this node the clients wait. A node that has looked at its copy of
// late takes no listing for it, neither before the takeover nor in it, and asks nothing of a dataset
// that it has just made ready: these are all commands of ZFS between the handoff and the mount. What has
// changed since that look, by whatever hand, is found all the same.
func TestArrivalCommands(t *testing.T) {
	const lastLook = "dataset snapshots-named set"
	for name, c := range map[string]struct {
		since  func(ctx context.Context, w *arriving) error // the last look
		takes  string                                       // commands of the takeover; "": it is not looked at how
		mounts string                                       // and of the mount
		denied string                                       // why it is not mounted
	}{
		"as a rule": {takes: lastLook, mounts: "mount"},
		"what it was handed over with is gone": {
			since: func(ctx context.Context, w *arriving) error {
				return w.host.DestroySnapshots(ctx, w.ds, []string{w.start.SnapshotName()})
			},
			denied: "lacks the snapshot it was handed over with",
		},
		"another one has its name": {
			since: func(ctx context.Context, w *arriving) error {
				return errors.Join(w.host.DestroySnapshots(ctx, w.ds, []string{w.start.SnapshotName()}), w.host.Snapshot(ctx, []string{w.ds + "@" + w.start.SnapshotName()}, nil))
			},
			denied: "lacks the snapshot it was handed over with",
		},
		"the copy has accepted a newer epoch": {
			since: func(ctx context.Context, w *arriving) error {
				return w.host.SetProperties(ctx, w.ds, map[string]string{propEpoch: volume.Epoch(9).String()})
			},
			denied: "newer than the cluster's",
		},
		"what it was handed over with has another name": {
			since: func(ctx context.Context, w *arriving) error {
				return w.host.Rename(ctx, w.ds+"@"+w.start.SnapshotName(), w.ds+"@other")
			},
			takes:  "dataset snapshots-named dataset datasets snapshots bookmarks set",
			mounts: "mount",
		},
		"it cannot be asked for by name": {
			since: func(_ context.Context, w *arriving) error {
				w.host.Fail("snapshots-named", "", 0, zfsfake.ErrInjected)
				return nil
			},
			takes:  "dataset dataset datasets snapshots bookmarks set", // besides what failed
			mounts: "mount",
		},
		"half a stream has come": {
			since: func(ctx context.Context, w *arriving) error {
				if err := w.host.Receive(ctx, zfs.ReceiveRequest{Dataset: w.ds, Resumable: true}, io.LimitReader(bytes.NewReader(w.more), int64(len(w.more)/2))); err == nil {
					return errors.New("it was received whole")
				}
				return nil
			},
			takes:  "dataset dataset datasets snapshots bookmarks abort-receive dataset datasets snapshots bookmarks set",
			mounts: "mount",
		},
		"the last look is old": {
			since:  func(context.Context, *arriving) error { time.Sleep(time.Minute); return nil },
			mounts: "mount",
		},
		"its mount comes late": {takes: lastLook, mounts: "dataset mount"},
		"its size has changed": {takes: lastLook, mounts: "dataset set mount"},
		"it was refused once":  {takes: lastLook, mounts: "dataset mount"}, // besides the mount that failed
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				w := newArriving(t)
				if c.since != nil {
					must(t, c.since(ctx, w))
				}
				w.f.apply(t, state.BeginHandoff{ID: vol1, Epoch: 1, To: self, Attempt: "m"})
				w.f.apply(t, state.CommitHandoff{ID: vol1, Epoch: 1, Attempt: "m", Final: w.start})

				took := w.ops(func() {
					var jobs sync.WaitGroup
					w.a.step(ctx, &jobs, byNews)
					jobs.Wait()
				})
				switch name {
				case "its mount comes late":
					time.Sleep(takenFor)
				case "its size has changed":
					spec := w.f.s.Volume(vol1).Spec
					spec.Size *= 2
					w.f.apply(t, state.UpdateSpec{ID: vol1, Spec: spec, Changed: w.f.s.Volume(vol1).Changed})
				case "it was refused once":
					defer w.host.Fail("mount", w.ds, 1, &zfs.Error{Op: "mount", Kind: zfs.ErrBusy})()
				}
				var err error
				mounted := w.ops(func() { _, err = w.a.Mount(ctx, vol1, "m") })
				d, derr := w.host.Dataset(ctx, w.ds)
				must(t, derr)
				if c.denied != "" {
					if err == nil || !strings.Contains(err.Error(), c.denied) || d.Mounted || d.User[propEpoch] == volume.Epoch(2).String() {
						t.Errorf("mounted: %v, want %q; the dataset is %+v", err, c.denied, d)
					}
					return
				}
				must(t, err)
				if c.takes != "" && took != c.takes || mounted != c.mounts {
					t.Errorf("its takeover took %q and its mount %q, want %q and %q", took, mounted, c.takes, c.mounts)
				}
				if !d.Writable || d.ResumeToken != "" || d.User[propEpoch] != volume.Epoch(2).String() || d.Mountpoint != w.a.layout.Mountpoint(vol1) || d.RefQuota != w.f.s.Volume(vol1).Spec.Size {
					t.Errorf("it is %+v", d)
				}
			})
		})
	}
}

// arriving is a node with a replica, at which it and its replication have looked a moment ago.
type arriving struct {
	host  *zfsfake.Host
	f     *fixed
	a     *Agent
	ds    string
	start volume.Position // its newest snapshot
	more  []byte          // a stream that adds another one
}

func newArriving(t *testing.T) *arriving {
	t.Helper()
	ctx := t.Context()
	_, host, f, _ := quiet(t)
	layout := Layout{Pool: "tank", MountBase: "/v"}
	w := &arriving{host: host, f: f, ds: layout.Dataset(vol1), start: volume.Position{Epoch: 1, Seq: 1}}
	next := volume.Position{Epoch: 1, Seq: 2}

	old := zfsfake.New(zfsfake.Options{Seed: 2, Pool: "tank", TxgTimeout: -1})
	must(t, old.CreateFilesystem(ctx, layout.Root(), nil), old.CreateFilesystem(ctx, w.ds, map[string]string{"mountpoint": "/old"}), old.Mount(ctx, w.ds, true),
		old.WriteFile(w.ds, "f", []byte("kept")), old.Snapshot(ctx, []string{w.ds + "@" + w.start.SnapshotName()}, nil),
		old.WriteFile(w.ds, "g", bytes.Repeat([]byte("lost"), 1<<16)), old.Snapshot(ctx, []string{w.ds + "@" + next.SnapshotName()}, nil))
	var full, more bytes.Buffer
	must(t, old.Send(ctx, zfs.SendRequest{Snapshot: w.ds + "@" + w.start.SnapshotName()}, &full),
		old.Send(ctx, zfs.SendRequest{Snapshot: w.ds + "@" + next.SnapshotName(), From: w.ds + "@" + w.start.SnapshotName()}, &more),
		host.Receive(ctx, zfs.ReceiveRequest{Dataset: w.ds, Properties: map[string]string{
			"readonly": "on", "canmount": "noauto", propVolume: string(vol1), propEpoch: volume.Epoch(1).String()}}, &full))
	w.more = more.Bytes()
	snaps, err := host.Snapshots(ctx, w.ds, false)
	must(t, err)
	w.start.GUID = snaps[0].GUID

	spec := volume.DefaultSpec()
	spec.Size = 64 << 20
	f.apply(t, state.CreateVolume{ID: vol1, Name: "pg", Spec: spec, Placement: volume.Placement{Primary: other, Local: []volume.NodeID{self}}})
	f.apply(t, state.ConfirmCreate{ID: vol1, Epoch: 1})

	repl := replicate.New(replicate.Config{Node: self, Root: layout.Root(), Pool: host})
	w.a = New(Config{Self: self, Layout: layout, Cluster: f, ZFS: host, Files: doors{}, Use: books{asking{}}, Repl: repl, Log: slog.New(slog.DiscardHandler)})
	close(w.a.fresh)
	look := func() {
		var jobs sync.WaitGroup
		w.a.step(ctx, &jobs, byReason)
		jobs.Wait()
	}
	look()
	rctx, stop := context.WithCancel(ctx)
	ran := make(chan struct{})
	go func() { defer close(ran); _ = repl.Run(rctx) }()
	synctest.Wait()
	stop()
	<-ran
	look()
	return w
}

// ops are the commands that f takes.
func (w *arriving) ops(f func()) string {
	var mu sync.Mutex
	var ops []string
	defer w.host.Inject(zfsfake.Rule{Do: func(_ context.Context, op, _ string) error {
		mu.Lock()
		defer mu.Unlock()
		ops = append(ops, op)
		return nil
	}})()
	f()
	mu.Lock()
	defer mu.Unlock()
	return strings.Join(ops, " ")
}

// A volume that is given up while clients wait is unmounted, and that is all that ZFS is asked besides
// its last copy; where the last look has not shown it mounted, ZFS is asked first.
func TestReleaseCommands(t *testing.T) {
	for name, c := range map[string]struct {
		seen, mounted, gone bool
		follow              bool
		want                string
		refused             string
	}{
		"as a rule":                           {seen: true, mounted: true, follow: true, want: "unmount"},
		"it was unmounted since":              {seen: true, follow: true, want: "unmount"},
		"it is gone":                          {seen: true, gone: true, follow: true, want: "unmount", refused: "its dataset is missing on its primary"},
		"it was mounted since":                {mounted: true, follow: true, want: "dataset unmount"},
		"it is not mounted":                   {follow: true, want: "dataset"},
		"nothing was stopped for it":          {seen: true, mounted: true, want: "dataset unmount"},
		"nothing was stopped, and it is gone": {seen: true, gone: true, want: "dataset", refused: "its dataset is missing on its primary"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				_, host, f, _ := quiet(t)
				layout := Layout{Pool: "tank", MountBase: "/v"}
				ds := layout.Dataset(vol1)
				must(t, host.CreateFilesystem(ctx, ds, map[string]string{"mountpoint": "/old"}))
				f.apply(t, state.CreateVolume{ID: vol1, Name: "pg", Spec: volume.DefaultSpec(), Placement: volume.Placement{Primary: self, Local: []volume.NodeID{other}}})
				f.apply(t, state.ConfirmCreate{ID: vol1, Epoch: 1})
				f.apply(t, state.BeginHandoff{ID: vol1, Epoch: 1, To: other, Attempt: "m", Follow: c.follow})
				h := &held{}
				a := New(Config{
					Self: self, Layout: layout, Cluster: f, ZFS: host, Files: h, Use: asking{}, Repl: h, Log: slog.New(slog.DiscardHandler),
					StopFollowing: func(context.Context, volume.ID) (Stopped, error) { return Stopped{Paused: time.Now()}, nil },
				})
				if c.seen {
					must(t, host.Mount(ctx, ds, true))
				}
				must(t, a.firstLook(ctx))
				switch is := c.seen; {
				case c.gone:
					must(t, host.Unmount(ctx, ds), host.Destroy(ctx, ds))
				case c.mounted && !is:
					must(t, host.Mount(ctx, ds, true))
				case !c.mounted && is:
					must(t, host.Unmount(ctx, ds))
				}
				w := &arriving{host: host}
				got := strings.Fields(w.ops(func() { must(t, a.release(ctx, vol1)) }))
				if c.gone { // which may pass, and is waited for a while
					got = slices.Compact(got)
				}
				if strings.Join(got, " ") != c.want {
					t.Errorf("it took %q, want %q", got, c.want)
				}
				reason := ""
				if abort, ok := f.proposed[len(f.proposed)-1].(state.AbortHandoff); ok {
					reason = abort.Reason
				}
				if (reason != "") != (c.refused != "") || !strings.Contains(reason, c.refused) {
					t.Errorf("refused: %q, want %q", reason, c.refused)
				}
				if slices.ContainsFunc(host.Mounts(), func(m zfsfake.Mount) bool { return m.Dataset == ds }) {
					t.Error("it is still mounted")
				}
			})
		})
	}
}

// asking is a node on which nobody uses anything, and whose engine says so.
type asking struct{ lonely }

func (asking) Found(volume.ID) {}
func (asking) Refresh(context.Context, []volume.ID) (map[volume.ID][]volume.Holder, error) {
	return nil, nil
}

// While clients wait for a volume to be given up the loop does not look again at once for every
// container that ends; a new state is obeyed meanwhile, and it looks in the end.
func TestHush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		w := newArriving(t)
		looks := func(why cause) (listed bool, wait time.Duration) {
			got := w.ops(func() {
				var jobs sync.WaitGroup
				wait, _ = w.a.step(ctx, &jobs, why)
				jobs.Wait()
			})
			return strings.Contains(got, "datasets"), wait
		}
		over := w.a.hushing()
		if listed, wait := looks(byReason); listed || wait != hushFor {
			t.Errorf("it looks for a container that has ended (%v), or again only after %s", listed, wait)
		}
		w.f.apply(t, state.BeginHandoff{ID: vol1, Epoch: 1, To: self, Attempt: "m"})
		w.f.apply(t, state.CommitHandoff{ID: vol1, Epoch: 1, Attempt: "m", Final: w.start})
		looks(byNews)
		if d, err := w.host.Dataset(ctx, w.ds); err != nil || d.User[propEpoch] != volume.Epoch(2).String() {
			t.Errorf("what came meanwhile was not taken over: %+v, %v", d, err)
		}
		time.Sleep(hushFor)
		if listed, _ := looks(byReason); !listed {
			t.Errorf("it has not looked for %s", hushFor)
		}
		over()
		if listed, _ := looks(byReason); !listed {
			t.Error("it does not look once nobody waits")
		}
	})
}
