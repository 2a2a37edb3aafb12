package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// TestTakeOverStruck: a node was promoted and falls at any command of its takeover,
// before or after that has done its work: the command fails, flockd is killed, the
// machine loses power. What the copy holds is there afterwards; it has accepted the old
// epoch or the new one, and the new one only once nothing that another primary sends can
// come in any more; nothing is mounted that nobody asked for. Mounted again it is whole; or,
// if the cluster has gone on without it meanwhile, it is refused and not mounted.
func TestTakeOverStruck(t *testing.T) {
	for _, lost := range []bool{false, true} {
		for _, blow := range []string{failing, killed, powerless} {
			for _, after := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, after its work %v, another node gets it %v", blow, after, lost), func(t *testing.T) {
					var ops []string
					for nth, op := 1, ""; ; nth++ {
						if op = takeOverStruck(t, nth, after, lost, blow); op == "" || t.Failed() {
							break
						}
						ops = append(ops, op)
					}
					// Without these it was struck somewhere else.
					for _, op := range []string{"abort-receive", "snapshots", "set", "mount"} {
						if !slices.Contains(ops, op) {
							t.Errorf("struck at %v, never at %q", ops, op)
						}
					}
				})
			}
		}
	}
}

// What a node is struck by.
const (
	failing   = "the command fails"
	killed    = "flockd is killed"
	powerless = "the machine loses power"
)

// takeOverStruck is one history of TestTakeOverStruck, which says at which command it
// was struck; "": there is no nth one.
func takeOverStruck(t *testing.T, nth int, after, lost bool, blow string) (struck string) {
	t.Helper()
	ctx := t.Context()
	_, host, f, _ := quiet(t)
	layout := Layout{Pool: "tank", MountBase: "/v"}
	name := layout.Dataset(vol1)
	first := volume.Position{Epoch: 1, Seq: 1}

	// The replica holds one snapshot, and half of what the old primary sent after it.
	old := zfsfake.New(zfsfake.Options{Seed: 2, Pool: "tank", TxgTimeout: -1})
	must(t, old.CreateFilesystem(ctx, layout.Root(), nil), old.CreateFilesystem(ctx, name, map[string]string{"mountpoint": "/old"}), old.Mount(ctx, name, true),
		old.WriteFile(name, "f", []byte("kept")), old.Snapshot(ctx, []string{name + "@" + first.SnapshotName()}, nil),
		old.WriteFile(name, "g", bytes.Repeat([]byte("lost"), 1<<16)),
		old.Snapshot(ctx, []string{name + "@" + volume.Position{Epoch: 1, Seq: 2}.SnapshotName()}, nil))
	var full, more bytes.Buffer
	must(t, old.Send(ctx, zfs.SendRequest{Snapshot: name + "@" + first.SnapshotName()}, &full),
		old.Send(ctx, zfs.SendRequest{Snapshot: name + "@" + volume.Position{Epoch: 1, Seq: 2}.SnapshotName(), From: name + "@" + first.SnapshotName()}, &more),
		host.Receive(ctx, zfs.ReceiveRequest{Dataset: name, Properties: map[string]string{
			"readonly": "on", "canmount": "noauto", propVolume: string(vol1), propEpoch: volume.Epoch(1).String()}}, &full))
	half := io.LimitReader(&more, int64(more.Len()/2))
	if err := host.Receive(ctx, zfs.ReceiveRequest{Dataset: name, Resumable: true}, half); err == nil {
		t.Fatal("half a stream was received")
	}
	look := func() zfs.Dataset {
		t.Helper()
		d, err := host.Dataset(ctx, name)
		must(t, err)
		return d
	}
	if look().ResumeToken == "" {
		t.Fatal("nothing is half received")
	}
	snaps, err := host.Snapshots(ctx, name, false)
	must(t, err)
	first.GUID = snaps[0].GUID

	spec := volume.DefaultSpec()
	spec.Size = 64 << 20
	f.apply(t, state.CreateVolume{ID: vol1, Name: "pg", Spec: spec, Placement: volume.Placement{Primary: other, Local: []volume.NodeID{self}}})
	f.apply(t, state.ConfirmCreate{ID: vol1, Epoch: 1})
	f.apply(t, state.BeginElection{ID: vol1, Epoch: 1, Fenced: true})
	won := f.s.Volume(vol1).Epoch
	f.apply(t, state.Promote{ID: vol1, Epoch: won, To: self, Start: first})

	start := func() *Agent {
		repl := replicate.New(replicate.Config{Node: self, Root: layout.Root(), Pool: host})
		a := New(Config{Self: self, Layout: layout, Cluster: f, ZFS: host, Files: doors{}, Use: books{lonely{}}, Repl: repl})
		close(a.fresh)
		return a
	}
	seen, dead := 0, false
	bury := host.Inject(zfsfake.Rule{Do: func(context.Context, string, string) error {
		if dead {
			return errors.New("flockd is gone")
		}
		return nil
	}})
	remove := host.Inject(zfsfake.Rule{After: after, Do: func(_ context.Context, op, _ string) error {
		if seen++; seen != nth {
			return nil
		}
		struck = op
		if blow == powerless {
			host.Crash()
		}
		dead = blow != failing
		return errors.New("struck here")
	}})
	_, err = start().Mount(ctx, vol1, "m")
	remove()
	bury()
	if struck == "" {
		must(t, err)
		return ""
	}
	mounted := len(host.Mounts()) > 0

	bad := func(format string, args ...any) {
		t.Helper()
		t.Errorf("struck at command %d (%s), after its work %v: "+format, append([]any{nth, struck, after}, args...)...)
	}
	whole := func() {
		t.Helper()
		snaps, err := host.Snapshots(ctx, name, false)
		must(t, err)
		if len(snaps) != 1 || snaps[0].GUID != first.GUID {
			bad("the copy holds %v, want only what it was chosen for", snaps)
		}
		if got, err := host.ReadFile(name, "f"); err != nil || string(got) != "kept" {
			bad("the file holds %q, %v", got, err)
		}
	}
	d := look()
	switch epoch := d.User[propEpoch]; {
	case epoch != volume.Epoch(1).String() && epoch != won.String():
		bad("the epoch is %q", epoch)
	case epoch == won.String() && d.ResumeToken != "":
		bad("it has accepted epoch %s, with half of what another primary sent still there", epoch)
	}
	// The properties are set once more without the quota: only what that needs keeps nobody from
	// the volume.
	quota := struck == "set" && !dead
	if (err == nil) != quota {
		bad("mounting said %v", err)
	}
	// What was mounted just before stays so, unless there is no machine any more.
	if want := quota || struck == "mount" && after && blow != powerless; mounted != want {
		bad("mounted: %v, want %v", mounted, want)
	}
	if d.Writable != mounted {
		bad("writable: %v, mounted: %v", d.Writable, mounted)
	}

	if lost {
		for _, n := range host.Mounts() { // what the fencer, or the loop, does before that
			must(t, host.Unmount(ctx, n.Dataset))
		}
		f.apply(t, state.BeginElection{ID: vol1, Epoch: won, Fenced: true})
		f.apply(t, state.Promote{ID: vol1, Epoch: f.s.Volume(vol1).Epoch, To: other, Start: first})
		if _, err := start().Mount(ctx, vol1, "m"); err == nil || len(host.Mounts()) > 0 {
			bad("mounted though another node has it: %v", err)
		}
		whole()
		return struck
	}
	again := start()
	for range 2 { // the second has nothing to do
		if _, err := again.Mount(ctx, vol1, "m"); err != nil {
			bad("mounted again: %v", err)
		}
	}
	d = look()
	if d.User[propEpoch] != won.String() || d.ResumeToken != "" || !d.Mounted || d.Mountpoint != layout.Mountpoint(vol1) || d.RefQuota != spec.Size {
		bad("mounted again it is %+v", d)
	}
	whole()
	must(t, host.WriteFile(name, "h", []byte("new")))
	return struck
}

// The clients of a volume that moves wait for each command of its takeover, and each takes
// tens of milliseconds. Which of them there are is written down here; what the disk has just been
// asked is not asked again, and what is set is set at once.
func TestTakeOverCommands(t *testing.T) {
	const took = "dataset dataset datasets snapshots bookmarks set mount"
	for name, c := range map[string]struct {
		size   int64 // of the volume
		wants  string
		quota  int64
		lacks  bool // the copy has another snapshot than the volume was handed over with
		denied bool
	}{
		"as a rule":                     {size: 64 << 20, wants: took, quota: 64 << 20},
		"its data is more than it may":  {size: 1 << 10, wants: strings.Replace(took, " set ", " set set ", 1)},
		"it lacks what it was to bring": {size: 64 << 20, wants: strings.TrimSuffix(took, " set mount"), lacks: true, denied: true},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			_, host, f, _ := quiet(t)
			layout := Layout{Pool: "tank", MountBase: "/v"}
			ds := layout.Dataset(vol1)
			start := volume.Position{Epoch: 1, Seq: 1}
			must(t, host.CreateFilesystem(ctx, ds, map[string]string{"mountpoint": "/old", propEpoch: volume.Epoch(1).String()}), host.Mount(ctx, ds, true),
				host.WriteFile(ds, "f", bytes.Repeat([]byte("kept"), 1<<10)), host.Unmount(ctx, ds), host.Snapshot(ctx, []string{ds + "@" + start.SnapshotName()}, nil),
				host.SetProperties(ctx, ds, map[string]string{"readonly": "on", "canmount": "noauto"}))
			snaps, err := host.Snapshots(ctx, ds, false)
			must(t, err)
			start.GUID = snaps[0].GUID
			if c.lacks {
				start.GUID++
			}
			spec := volume.DefaultSpec()
			spec.Size = c.size
			f.apply(t, state.CreateVolume{ID: vol1, Name: "pg", Spec: spec, Placement: volume.Placement{Primary: other, Local: []volume.NodeID{self}}})
			f.apply(t, state.ConfirmCreate{ID: vol1, Epoch: 1})
			f.apply(t, state.BeginElection{ID: vol1, Epoch: 1, Fenced: true})
			won := f.s.Volume(vol1).Epoch
			f.apply(t, state.Promote{ID: vol1, Epoch: won, To: self, Start: start})

			a := New(Config{Self: self, Layout: layout, Cluster: f, ZFS: host, Files: doors{}, Use: books{lonely{}},
				Repl: replicate.New(replicate.Config{Node: self, Root: layout.Root(), Pool: host})})
			close(a.fresh)
			var ops []string
			remove := host.Inject(zfsfake.Rule{Do: func(_ context.Context, op, _ string) error {
				ops = append(ops, op)
				return nil
			}})
			_, err = a.Mount(ctx, vol1, "m")
			remove()
			if got := strings.Join(ops, " "); got != c.wants || (err != nil) != c.denied {
				t.Errorf("it took %s (%v), want %s", got, err, c.wants)
			}
			d, err := host.Dataset(ctx, ds)
			must(t, err)
			if c.denied {
				if d.Mounted || d.User[propEpoch] == won.String() {
					t.Errorf("it was taken over all the same: %+v", d)
				}
				return
			}
			if !d.Writable || d.User[propEpoch] != won.String() || d.Mountpoint != layout.Mountpoint(vol1) || d.RefQuota != c.quota {
				t.Errorf("it is %+v", d)
			}
		})
	}
}
