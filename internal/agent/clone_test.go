package agent

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
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

const (
	vol3 = volume.ID("0000000000000003")
	vol4 = volume.ID("0000000000000004")
)

// cloning is an agent with a volume's copy and a snapshot of it, of which a clone is to be
// made.
func cloning(t *testing.T) (a *Agent, host *zfsfake.Host, f *fixed, of *state.CloneOf) {
	t.Helper()
	ctx := context.Background()
	a, host, f, _ = quiet(t)
	from := "tank/flocker/" + string(vol1)
	must(t, host.CreateFilesystem(ctx, from, map[string]string{"readonly": "on", "mountpoint": "/v/" + string(vol1)}),
		host.Mount(ctx, from, true), host.WriteFile(from, "f", []byte("before")), host.Snapshot(ctx, []string{from + "@s"}, nil),
		host.WriteFile(from, "f", []byte("after")), host.Unmount(ctx, from))
	f.apply(t, state.CreateVolume{ID: vol1, Name: "pg", Placement: volume.Placement{Primary: other, Local: []volume.NodeID{self}}, After: 4})
	f.apply(t, state.ConfirmCreate{ID: vol1, Epoch: f.s.Volume(vol1).Epoch})
	of = &state.CloneOf{Volume: vol1, Name: "pg", Snapshot: "s", GUID: guidOf(t, host, from, "s")}
	f.apply(t, state.CreateVolume{ID: vol2, Name: "copy", Spec: volume.Spec{Size: 1 << 30, ZFS: map[string]string{"compression": "lz4"}}, Placement: volume.Placement{Primary: self}, Clone: of})
	return a, host, f, of
}

func guidOf(t *testing.T, host *zfsfake.Host, ds, name string) uint64 {
	t.Helper()
	list, err := host.Snapshots(context.Background(), ds, false)
	must(t, err)
	for _, s := range list {
		if s.Name == name {
			return s.GUID
		}
	}
	t.Fatalf("%s has no snapshot %s", ds, name)
	return 0
}

// A clone is made of the snapshot that was meant, or not at all, and nothing that is there
// is touched.
func TestClone(t *testing.T) {
	ctx := context.Background()
	from, to := "tank/flocker/"+string(vol1), "tank/flocker/"+string(vol2)
	create := Action{StepCreate, vol2}
	refused := func(t *testing.T, f *fixed, host *zfsfake.Host, why string) {
		t.Helper()
		if len(f.proposed) != 1 || exists(t, host, to) {
			t.Fatalf("proposed: %+v", f.proposed)
		}
		if c, ok := f.proposed[0].(state.AbortCreate); !ok || !strings.Contains(c.Reason, why) {
			t.Errorf("proposed: %+v, want that it is given up: %s", f.proposed[0], why)
		}
	}
	t.Run("and confirmed, again after a crash", func(t *testing.T) {
		a, host, f, _ := cloning(t)
		for range 2 {
			must(t, a.do(ctx, create))
		}
		d, err := host.Dataset(ctx, to)
		if err != nil || d.Origin != from+"@s" || d.Mounted || d.User[propVolume] != string(vol2) || d.User[propEpoch] != f.s.Volume(vol2).Epoch.String() ||
			d.Mountpoint != "/v/"+string(vol2) || d.RefQuota != 1<<30 {
			t.Errorf("cloned: %+v, %v", d, err)
		}
		if got, err := host.ReadFile(to, "f"); string(got) != "before" || err != nil {
			t.Errorf("it has %q, %v", got, err)
		}
		if len(f.proposed) != 2 || f.proposed[0] != (state.ConfirmCreate{ID: vol2, Epoch: f.s.Volume(vol2).Epoch}) {
			t.Errorf("proposed: %+v", f.proposed)
		}
		got, err := a.observe(ctx, true)
		must(t, err)
		if acts := Diff(f.s, got, self, func(volume.ID) bool { return false }); !slices.Equal(acts, []Action{create}) {
			t.Errorf("after a crash it would be %v, and only making it looks what it is", acts)
		}
	})
	t.Run("by few commands, since people wait", func(t *testing.T) {
		for _, pointed := range []bool{false, true} {
			a, host, f, of := cloning(t)
			want := map[string]int{"snapshots-named": 2, "clone": 1}
			if pointed { // it was just asked for the snapshot
				a.Pointed(of.Volume, of.Snapshot, of.GUID, time.Now())
				want["snapshots-named"]--
			}
			host.ResetCommands()
			must(t, a.do(ctx, create))
			if got := host.Commands(); !maps.Equal(got, want) || len(f.proposed) != 1 {
				t.Errorf("it took %v, want %v; proposed: %+v", got, want, f.proposed)
			}
			// What is known by that is what a look shows.
			d, err := host.Dataset(ctx, to)
			must(t, err)
			seen, known := copyOf(d), a.made[vol2].copy
			seen.Used, known.Used = 0, 0
			if known.Shares == nil || *known.Shares != (volume.Shared{With: vol1, GUID: of.GUID, Bytes: seen.Data}) {
				t.Errorf("it is known to share %+v", known.Shares)
			}
			if known.Shares = nil; known != seen {
				t.Errorf("known is %+v, and there is %+v", known, seen)
			}
		}
	})
	t.Run("of a snapshot that was there a moment ago", func(t *testing.T) {
		for _, c := range []struct {
			what   string
			change func(a *Agent, host *zfsfake.Host) error
			origin string // "": it is given up
		}{
			{"and has another name", func(_ *Agent, host *zfsfake.Host) error { return host.Rename(ctx, from+"@s", from+"@t") }, from + "@t"},
			{"and is set aside", func(_ *Agent, host *zfsfake.Host) error {
				return host.Rename(ctx, from, "tank/flocker-aside/"+string(vol1)+"-0000000000000005-1")
			}, "tank/flocker-aside/" + string(vol1) + "-0000000000000005-1@s"},
			{"and is gone", func(_ *Agent, host *zfsfake.Host) error { return host.DestroySnapshots(ctx, from, []string{"s"}) }, ""},
			{"and its name another's", func(_ *Agent, host *zfsfake.Host) error {
				return errors.Join(host.DestroySnapshots(ctx, from, []string{"s"}), host.Snapshot(ctx, []string{from + "@s"}, nil))
			}, ""},
			{"long ago, and its name another's", func(a *Agent, host *zfsfake.Host) error {
				for p := range a.pointed {
					a.pointed[p] = time.Now().Add(-pointedFor - time.Second)
				}
				return errors.Join(host.Rename(ctx, from+"@s", from+"@t"), host.Snapshot(ctx, []string{from + "@s"}, nil))
			}, from + "@t"},
		} {
			a, host, f, of := cloning(t)
			a.Pointed(of.Volume, of.Snapshot, of.GUID, time.Now())
			must(t, c.change(a, host), a.do(ctx, create))
			if len(f.proposed) != 1 {
				t.Fatalf("%s: proposed: %+v", c.what, f.proposed)
			}
			_, confirmed := f.proposed[0].(state.ConfirmCreate)
			d, err := host.Dataset(ctx, to)
			if confirmed != (c.origin != "") || confirmed && (err != nil || d.Origin != c.origin) {
				t.Errorf("%s: proposed %+v, cloned %+v, %v", c.what, f.proposed, d, err)
			}
			if !confirmed {
				f.apply(t, f.proposed[0])
				got, err := a.observe(ctx, true)
				must(t, err)
				if acts := Diff(f.s, got, self, func(volume.ID) bool { return false }); err == nil && len(got.Copies) > 0 && d.Name != "" && !slices.Equal(acts, []Action{{StepDestroy, vol2}}) {
					t.Errorf("%s: of what was made by mistake follows %v", c.what, acts)
				}
				if a.wasThere(of) {
					t.Errorf("%s: it is believed still", c.what)
				}
			}
		}
	})
	t.Run("beside others of the same, which are looked at together", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, host, f, of := cloning(t)
			f.apply(t, state.CreateVolume{ID: vol3, Name: "copy3", Placement: volume.Placement{Primary: self}, Clone: of})
			f.apply(t, state.CreateVolume{ID: vol4, Name: "copy4", Placement: volume.Placement{Primary: self}, Clone: of})
			a.Pointed(of.Volume, of.Snapshot, of.GUID, time.Now())
			host.Slow("", "", time.Second)
			host.ResetCommands()
			began := time.Now()
			var jobs sync.WaitGroup
			for _, act := range newHere(f.s, self) {
				jobs.Go(func() { must(t, a.do(ctx, act)) })
			}
			jobs.Wait()
			if took, got := time.Since(began), host.Commands(); took > 3*time.Second || got["clone"] != 3 || got["snapshots-named"] > 2 {
				t.Errorf("three took %v and %v", took, got)
			}
			for _, id := range []volume.ID{vol2, vol3, vol4} {
				if !exists(t, host, "tank/flocker/"+string(id)) {
					t.Errorf("%s was not made", id)
				}
			}
			if len(f.proposed) != 3 {
				t.Errorf("proposed: %+v", f.proposed)
			}
		})
	})
	t.Run("of a copy in the trash", func(t *testing.T) {
		a, host, f, _ := cloning(t)
		must(t, host.Rename(ctx, from, "tank/flocker-trash/"+string(vol1)), a.do(ctx, create))
		if !exists(t, host, to) || len(f.proposed) != 1 {
			t.Errorf("proposed: %+v", f.proposed)
		}
	})
	t.Run("of a snapshot that has another name by now", func(t *testing.T) {
		a, host, _, _ := cloning(t)
		must(t, host.Rename(ctx, from+"@s", from+"@t"), host.Snapshot(ctx, []string{from + "@s"}, nil), a.do(ctx, create))
		if d, err := host.Dataset(ctx, to); err != nil || d.Origin != from+"@t" {
			t.Errorf("cloned: %+v, %v", d, err)
		}
	})
	t.Run("of a snapshot that is gone", func(t *testing.T) {
		a, host, f, _ := cloning(t)
		must(t, host.DestroySnapshots(ctx, from, []string{"s"}), host.Snapshot(ctx, []string{from + "@s"}, nil), a.do(ctx, create))
		refused(t, f, host, `snapshot s of volume "pg" is not on me any more`)
	})
	t.Run("of a copy that is gone", func(t *testing.T) {
		a, host, f, _ := cloning(t)
		must(t, host.Destroy(ctx, from), a.do(ctx, create))
		refused(t, f, host, "is not on me any more")
	})
	t.Run("of a snapshot that is exchanged while it is cloned", func(t *testing.T) {
		a, host, f, _ := cloning(t)
		host.Inject(zfsfake.Rule{Op: "clone", Do: func(context.Context, string, string) error {
			return errors.Join(host.DestroySnapshots(ctx, from, []string{"s"}), host.Snapshot(ctx, []string{from + "@s"}, nil))
		}})
		must(t, a.do(ctx, create))
		if c, ok := f.proposed[0].(state.AbortCreate); !ok || len(f.proposed) != 1 {
			t.Fatalf("proposed: %+v", f.proposed)
		} else {
			f.apply(t, c)
		}
		got, err := a.observe(ctx, true)
		must(t, err)
		if acts := Diff(f.s, got, self, func(volume.ID) bool { return false }); !slices.Equal(acts, []Action{{StepDestroy, vol2}}) {
			t.Errorf("actions: %v", acts)
		}
	})
	// What was made by mistake is destroyed before the volume is forgotten, so the report tells of it, though the
	// last look was before.
	t.Run("of another snapshot by mistake", func(t *testing.T) {
		for _, c := range []struct {
			what  string
			fails string // command, once, after the wrong clone was made
			after bool
			tries int
		}{
			{"found out at once", "", false, 1},
			{"found out after a crash", "clone", true, 2},
			{"found out when it can be looked at", "snapshots-named", false, 2},
		} {
			a, host, f, of := cloning(t)
			a.Pointed(of.Volume, of.Snapshot, of.GUID, time.Now())
			see(t, a)
			must(t, host.DestroySnapshots(ctx, from, []string{"s"}), host.Snapshot(ctx, []string{from + "@s"}, nil))
			if c.fails != "" {
				host.Inject(zfsfake.Rule{Op: c.fails, Times: 1, After: c.after, Do: func(context.Context, string, string) error { return zfsfake.ErrInjected }})
			}
			for n := range c.tries {
				if err := a.do(ctx, create); (err == nil) != (n == c.tries-1) {
					t.Errorf("%s: try %d: %v", c.what, n, err)
				}
				if c.after {
					clear(a.pointed)
				}
			}
			if len(f.proposed) != 1 {
				t.Fatalf("%s: proposed: %+v", c.what, f.proposed)
			}
			if p, ok := f.proposed[0].(state.AbortCreate); !ok || !strings.Contains(p.Reason, "became another one") {
				t.Fatalf("%s: proposed: %+v", c.what, f.proposed)
			}
			f.apply(t, f.proposed[0])
			if !slices.ContainsFunc(a.Report().Volumes, func(s volume.Status) bool { return s.Volume == vol2 && s.Exists }) {
				t.Errorf("%s: it is given up, and reported as %+v", c.what, a.Report().Volumes)
			}
		}
	})
	t.Run("where something else is", func(t *testing.T) {
		a, host, f, _ := cloning(t)
		must(t, host.CreateFilesystem(ctx, to, nil))
		if err := a.do(ctx, create); err == nil || !strings.Contains(err.Error(), "rename it by hand") || len(f.proposed) != 0 || !exists(t, host, to) {
			t.Errorf("got %v, proposed %+v", err, f.proposed)
		}
	})
	t.Run("where the clone of another snapshot is", func(t *testing.T) {
		a, host, f, _ := cloning(t)
		must(t, host.Snapshot(ctx, []string{from + "@later"}, nil), host.Clone(ctx, from+"@later", to, nil))
		if err := a.do(ctx, create); err == nil || len(f.proposed) != 0 {
			t.Errorf("got %v, proposed %+v", err, f.proposed)
		}
	})
	t.Run("where somebody uses one with this volume's marks", func(t *testing.T) {
		for _, c := range []struct {
			epoch   string
			mounted bool
		}{{"", true}, {volume.NewEpoch(9, 9).String(), false}} {
			a, host, f, _ := cloning(t)
			props := map[string]string{"mountpoint": "/x", "canmount": "noauto", propVolume: string(vol2), propEpoch: cmp.Or(c.epoch, f.s.Volume(vol2).Epoch.String())}
			must(t, host.Snapshot(ctx, []string{from + "@later"}, nil), host.Clone(ctx, from+"@later", to, props))
			if c.mounted {
				must(t, host.Mount(ctx, to, true))
			}
			if err := a.do(ctx, create); err == nil || !strings.Contains(err.Error(), "rename it by hand") || len(f.proposed) != 0 {
				t.Errorf("%+v: got %v, proposed %+v", c, err, f.proposed)
			}
		}
	})
	// ZFS makes a clone in one transaction and sets its properties in another. Only one that has them is confirmed.
	t.Run("without properties, since the power went", func(t *testing.T) {
		for fails := range 3 { // which command that sets some, once; 0: none
			a, host, f, _ := cloning(t)
			must(t, host.Clone(ctx, from+"@s", to, nil), host.SetProperties(ctx, to, map[string]string{"canmount": "on"}))
			see(t, a)
			if fails > 0 {
				host.Fail("set", "", fails, &zfs.Error{Op: "set", Kind: zfs.ErrBusy})
				if err := a.do(ctx, create); err == nil || len(f.proposed) != 0 {
					t.Errorf("number %d fails: %v, proposed: %+v", fails, err, f.proposed)
				}
			}
			must(t, a.do(ctx, create))
			d, err := host.Dataset(ctx, to)
			if err != nil || d.Mounted || !d.ReadOnly || d.CanMount != "noauto" || d.User[propVolume] != string(vol2) || d.User[propEpoch] != f.s.Volume(vol2).Epoch.String() ||
				d.Mountpoint != "/v/"+string(vol2) || d.RefQuota != 1<<30 {
				t.Errorf("number %d fails: it is %+v, %v", fails, d, err)
			}
			if known := a.made[vol2].copy; known != copyOf(d) {
				t.Errorf("number %d fails: known is %+v, and there is %+v", fails, known, copyOf(d))
			}
			if len(f.proposed) != 1 || f.proposed[0] != (state.ConfirmCreate{ID: vol2, Epoch: f.s.Volume(vol2).Epoch}) {
				t.Errorf("number %d fails: proposed: %+v", fails, f.proposed)
			}
		}
	})
	t.Run("where somebody uses one without marks", func(t *testing.T) {
		a, host, f, _ := cloning(t)
		must(t, host.Clone(ctx, from+"@s", to, map[string]string{"mountpoint": "/x"}), host.Mount(ctx, to, true))
		if err := a.do(ctx, create); err == nil || !strings.Contains(err.Error(), "unmount it") || len(f.proposed) != 0 {
			t.Errorf("got %v, proposed %+v", err, f.proposed)
		}
	})
	t.Run("and its original gone after a crash", func(t *testing.T) {
		a, host, f, of := cloning(t)
		must(t, host.Clone(ctx, from+"@s", to, nil), a.destroy(ctx, from), a.do(ctx, create))
		if d, err := host.Dataset(ctx, to); err != nil || d.Origin != "" || len(f.proposed) != 1 || f.proposed[0] != (state.ConfirmCreate{ID: vol2, Epoch: f.s.Volume(vol2).Epoch}) {
			t.Errorf("it is %+v, %v; proposed %+v", d, err, f.proposed)
		}
		if list, err := host.Snapshots(ctx, to, false); err != nil || len(list) != 1 || list[0].GUID != of.GUID {
			t.Errorf("its snapshots are %+v, %v, want %d", list, err, of.GUID)
		}
	})
	t.Run("of a copy that somebody holds on to", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, host, f, _ := cloning(t)
			unlock, err := a.locks.lock(ctx, vol1)
			must(t, err)
			done := make(chan error)
			go func() { done <- a.do(ctx, create) }()
			synctest.Wait()
			if exists(t, host, to) || len(f.proposed) != 0 {
				t.Errorf("proposed: %v", f.proposed)
			}
			unlock()
			must(t, <-done)
			if !exists(t, host, to) {
				t.Error("it was not made then")
			}
		})
	})
	t.Run("of a snapshot that was set aside", func(t *testing.T) {
		a, host, _, _ := cloning(t)
		aside := "tank/flocker-aside/" + string(vol1) + "-0000000000000005-1"
		must(t, host.Rename(ctx, from, aside), host.CreateFilesystem(ctx, from, nil), a.do(ctx, create))
		if d, err := host.Dataset(ctx, to); err != nil || d.Origin != aside+"@s" {
			t.Errorf("cloned: %+v, %v", d, err)
		}
	})
	// Nobody may conclude from half of a copy that the snapshot is not there.
	for _, half := range []string{"the copy", "the fork", "both"} {
		t.Run("while its original is set aside and the snapshot is not in "+half, func(t *testing.T) {
			a, host, f, _ := cloning(t)
			fork := from + "-fork"
			must(t, host.Clone(ctx, from+"@s", fork, nil), host.Promote(ctx, fork)) // which has s now
			if half != "the copy" {
				must(t, host.Rename(ctx, from, "tank/flocker-aside/"+string(vol1)+"-0000000000000005-1"))
			}
			if half == "both" {
				f.s.Volume(vol2).Clone.GUID++
			}
			if err := a.do(ctx, create); err == nil || len(f.proposed) != 0 || exists(t, host, to) {
				t.Errorf("got %v, proposed %+v", err, f.proposed)
			}
		})
	}
	t.Run("while its original is set aside and put back", func(t *testing.T) {
		a, host, f, _ := cloning(t)
		fork := from + "-fork"
		must(t, host.Clone(ctx, from+"@s", fork, nil), host.Promote(ctx, fork))
		host.Inject(zfsfake.Rule{Op: "snapshots", Match: from, Times: 1, After: true, Do: func(context.Context, string, string) error {
			return errors.Join(host.Rename(ctx, from, "tank/flocker-aside/"+string(vol1)+"-0000000000000005-1"), host.Rename(ctx, fork, from))
		}})
		if err := a.do(ctx, create); err == nil {
			t.Fatalf("it was seen half way, and proposed: %+v", f.proposed)
		}
		must(t, a.do(ctx, create))
		if d, err := host.Dataset(ctx, to); err != nil || d.Origin != from+"@s" {
			t.Errorf("cloned: %+v, %v", d, err)
		}
	})
	t.Run("while its original is set aside from one look to the next", func(t *testing.T) {
		a, host, _, _ := cloning(t)
		fork := from + "-fork"
		host.Inject(zfsfake.Rule{Op: "snapshots", Match: from, Times: 1, Do: func(context.Context, string, string) error {
			return errors.Join(host.Clone(ctx, from+"@s", fork, nil), host.Promote(ctx, fork))
		}})
		host.Inject(zfsfake.Rule{Op: "snapshots", Match: from, Times: 1, After: true, Do: func(context.Context, string, string) error {
			return errors.Join(host.Rename(ctx, from, "tank/flocker-aside/"+string(vol1)+"-0000000000000005-1"), host.Rename(ctx, fork, from))
		}})
		must(t, a.do(ctx, create))
		if d, err := host.Dataset(ctx, to); err != nil || d.Origin != from+"@s" {
			t.Errorf("cloned: %+v, %v", d, err)
		}
	})
	t.Run("that ZFS does not make", func(t *testing.T) {
		a, host, f, _ := cloning(t)
		host.Fail("clone", "", 1, &zfs.Error{Op: "clone", Kind: zfs.ErrNoSpace})
		must(t, a.do(ctx, create))
		refused(t, f, host, "")
	})
	t.Run("that ZFS does not make now", func(t *testing.T) {
		a, host, f, _ := cloning(t)
		host.Fail("clone", "", 1, &zfs.Error{Op: "clone", Kind: zfs.ErrBusy})
		if err := a.do(ctx, create); err == nil || len(f.proposed) != 0 {
			t.Errorf("got %v, proposed %+v", err, f.proposed)
		}
		must(t, a.do(ctx, create))
		if !exists(t, host, to) {
			t.Error("it was not made then")
		}
	})
	t.Run("that was given up meanwhile", func(t *testing.T) {
		a, host, f, _ := cloning(t)
		was := f.s.Volume(vol2)
		f.apply(t, state.AbortCreate{ID: vol2, Epoch: was.Epoch, Reason: "late"})
		must(t, a.clone(ctx, was, nil))
		if exists(t, host, to) || len(f.proposed) != 0 {
			t.Errorf("proposed: %+v", f.proposed)
		}
	})
}

// What a copy shares with another one here is told by the snapshot on which it stands, also after a promotion, and
// zfs is asked for that once.
func TestShares(t *testing.T) {
	ctx := context.Background()
	from, to := "tank/flocker/"+string(vol1), "tank/flocker/"+string(vol2)
	a, host, f, of := cloning(t)
	shares := func() map[volume.ID]*volume.Shared {
		t.Helper()
		got, err := a.observe(ctx, true)
		must(t, err)
		out := map[volume.ID]*volume.Shared{}
		for id, c := range got.Copies {
			out[id] = c.Shares
		}
		return out
	}
	if got := shares(); got[vol1] != nil || host.Commands()["snapshots-named"] > 0 {
		t.Errorf("an original without clones shares %+v", got[vol1])
	}
	must(t, a.do(ctx, Action{StepCreate, vol2}))
	f.apply(t, state.ConfirmCreate{ID: vol2, Epoch: f.s.Volume(vol2).Epoch})
	list, err := host.Snapshots(ctx, from, false)
	must(t, err)
	want := volume.Shared{With: vol1, GUID: of.GUID, Bytes: list[0].Referenced}
	for i := range 2 {
		host.ResetCommands()
		if got := shares(); got[vol1] != nil || got[vol2] == nil || *got[vol2] != want || host.Commands()["snapshots-named"] != 1-i {
			t.Errorf("look %d: the original shares %+v, its clone %+v, want %+v; commands %v", i, got[vol1], got[vol2], want, host.Commands())
		}
	}
	must(t, host.Promote(ctx, to))
	want.With = vol2
	if got := shares(); got[vol2] != nil || got[vol1] == nil || *got[vol1] != want {
		t.Errorf("once the clone was promoted: the original shares %+v, want %+v, and its clone %+v", got[vol1], want, got[vol2])
	}
	// What stands on a copy that was set aside shares it with no volume.
	must(t, host.Rename(ctx, to, "tank/flocker-aside/"+string(vol2)+"-0000000000000001-1"))
	want.With = ""
	if got := shares(); got[vol1] == nil || *got[vol1] != want {
		t.Errorf("on a set-aside copy: the original shares %+v, want %+v", got[vol1], want)
	}
	host.Fail("snapshots-named", "", 1, errors.New("the pool is suspended"))
	must(t, host.Rename(ctx, "tank/flocker-aside/"+string(vol2)+"-0000000000000001-1", to))
	if _, err := a.observe(ctx, true); err == nil {
		t.Error("what cannot be asked counts as nothing shared")
	}
}

// An original that is gone for good leaves its clones what they stand on, and nothing of
// its history besides; a clone has no more of it than what it was made of.
func TestDestroyOriginal(t *testing.T) {
	ctx := context.Background()
	from, to, third := "tank/flocker/"+string(vol1), "tank/flocker/"+string(vol2), "tank/flocker-trash/"+string(vol3)
	begin := func(t *testing.T) (*Agent, *zfsfake.Host, *fixed) {
		a, host, f, of := cloning(t)
		must(t, a.do(ctx, Action{StepCreate, vol2}))
		f.apply(t, state.ConfirmCreate{ID: vol2, Epoch: f.s.Volume(vol2).Epoch})
		must(t, host.Snapshot(ctx, []string{from + "@between"}, nil), host.Snapshot(ctx, []string{from + "@later"}, nil), host.Clone(ctx, from+"@later", third, nil), host.Snapshot(ctx, []string{from + "@last"}, nil))
		later := *of
		later.Snapshot, later.GUID = "later", guidOf(t, host, from, "later")
		f.apply(t, state.CreateVolume{ID: vol3, Name: "third", Placement: volume.Placement{Primary: self}, Clone: &later})
		return a, host, f
	}
	names := func(t *testing.T, host *zfsfake.Host, ds string) (out []string) {
		list, err := host.Snapshots(ctx, ds, false)
		must(t, err)
		for _, s := range list {
			out = append(out, s.Name)
		}
		return out
	}
	engines := func(guid uint64) string { return fmt.Sprintf("flk-0000000000000000-%012d", guid%1e12) }
	t.Run("and its history", func(t *testing.T) {
		a, host, _ := begin(t)
		s, later := engines(guidOf(t, host, from, "s")), engines(guidOf(t, host, from, "later"))
		must(t, host.Snapshot(ctx, []string{to + "@own"}, nil), a.destroy(ctx, from))
		if got := names(t, host, to); exists(t, host, from) || !slices.Equal(got, []string{s, "own"}) {
			t.Errorf("the clone has %v", got)
		}
		if got := names(t, host, third); !slices.Equal(got, []string{later}) {
			t.Errorf("the one in the trash has %v", got)
		}
		if got, err := host.ReadFile(third, "f"); string(got) != "after" || err != nil {
			t.Errorf("the one in the trash holds %q, %v", got, err)
		}
	})
	t.Run("whose clone has a snapshot of the name of the one that it stands on", func(t *testing.T) {
		a, host, _ := begin(t)
		s := engines(guidOf(t, host, from, "s"))
		must(t, host.Snapshot(ctx, []string{to + "@s"}, nil), a.destroy(ctx, from))
		if got := names(t, host, to); exists(t, host, from) || !slices.Equal(got, []string{s, "s"}) {
			t.Errorf("the clone has %v", got)
		}
	})
	t.Run("whose newer clone is found first", func(t *testing.T) {
		a, host, _ := begin(t)
		s, later := engines(guidOf(t, host, from, "s")), engines(guidOf(t, host, from, "later"))
		first := "tank/flocker/" + string(vol3)
		must(t, host.Rename(ctx, third, first), a.destroy(ctx, from))
		if got, newer := names(t, host, to), names(t, host, first); !slices.Equal(got, []string{s}) || !slices.Equal(newer, []string{later}) {
			t.Errorf("the clones have %v and %v", got, newer)
		}
	})
	t.Run("of one of replication's snapshots", func(t *testing.T) {
		a, host, _ := begin(t)
		flk := "flk-0000000000000004-000000000007"
		s := engines(guidOf(t, host, from, "s"))
		must(t, host.Rename(ctx, from+"@s", from+"@"+flk), a.destroy(ctx, from))
		if got := names(t, host, to); !slices.Equal(got, []string{s}) {
			t.Errorf("the clone has %v", got)
		}
	})
	// A volume that was made of a set-aside copy keeps what that went through, and a clone gets
	// none of it, whichever of them is found first.
	for _, id := range []volume.ID{"0000000000000001", "00000000000000ff"} {
		t.Run("with a volume that was restored, "+string(id), func(t *testing.T) {
			a, host, f := begin(t)
			back := "tank/flocker/" + string(id)
			f.apply(t, state.CreateVolume{ID: id, Name: "back", Placement: volume.Placement{Primary: self}})
			later := engines(guidOf(t, host, from, "later"))
			must(t, host.Clone(ctx, from+"@between", back, nil), a.destroy(ctx, from))
			if got := names(t, host, back); !slices.Equal(got, []string{"s", "between"}) {
				t.Errorf("what was restored has the history %v", got)
			}
			if got := names(t, host, to); len(got) != 0 {
				t.Errorf("the clone of something older has %v", got)
			}
			if got := names(t, host, third); !slices.Equal(got, []string{later}) {
				t.Errorf("the clone of something newer has %v", got)
			}
			must(t, a.destroy(ctx, back))
			if got, err := host.ReadFile(to, "f"); string(got) != "before" || err != nil {
				t.Errorf("the clone holds %q, %v", got, err)
			}
			for _, ds := range []string{to, third} {
				for _, name := range names(t, host, ds) {
					if _, _, engine := volume.ParseSnapshotName(name); !engine {
						t.Errorf("%s has %s in the end", ds, name)
					}
				}
			}
		})
	}
	t.Run("whose clone is just being set aside", func(t *testing.T) {
		a, host, _ := begin(t)
		s := engines(guidOf(t, host, from, "s"))
		must(t, host.Rename(ctx, to, to+"-fork"), a.destroy(ctx, from))
		if got := names(t, host, to+"-fork"); !slices.Equal(got, []string{s}) {
			t.Errorf("it has %v", got)
		}
	})
	t.Run("with a copy that was set aside", func(t *testing.T) {
		a, host, _ := begin(t)
		aside := "tank/flocker-aside/" + string(vol1) + "-0000000000000005-1"
		must(t, host.Clone(ctx, from+"@last", aside, nil), a.destroy(ctx, from))
		if got := names(t, host, aside); !slices.Equal(got, []string{"s", "between", "later", "last"}) {
			t.Errorf("what was set aside has lost its history: %v", got)
		}
		if got, err := host.ReadFile(to, "f"); string(got) != "before" || err != nil {
			t.Errorf("the clone holds %q, %v", got, err)
		}
	})
	// What was set aside of a clone has that one's history, and no more of the original's than it.
	t.Run("with a copy of a clone that was set aside", func(t *testing.T) {
		a, host, _ := begin(t)
		later := engines(guidOf(t, host, from, "later"))
		aside := "tank/flocker-aside/" + string(vol2) + "-0000000000000005-1"
		must(t, host.Clone(ctx, from+"@later", aside, nil), host.Snapshot(ctx, []string{aside + "@own"}, nil), a.destroy(ctx, from))
		if got := names(t, host, aside); !slices.Equal(got, []string{later, "own"}) {
			t.Errorf("what was set aside has %v", got)
		}
	})
	// What was restored of a clone's set-aside copy goes on with that clone's history, and not with the original's; nor do
	// its own set-aside copies, and what is restored of these.
	for _, c := range []struct {
		name string
		on   string // whose snapshot it stands on
		id   volume.ID
		of   []volume.ID
		copy string // "": the volume itself
		want []string
	}{
		{"restored of a clone's copy, on the original", from, vol4, []volume.ID{vol2}, "", []string{"BETWEEN", "own"}},
		{"restored of a clone's copy, on the clone", to, vol4, []volume.ID{vol2}, "", []string{"k1", "k2", "own"}},
		{"set aside of what was restored, on the original", from, vol4, []volume.ID{vol2}, "flocker-aside", []string{"BETWEEN", "own"}},
		{"set aside of what was restored, on the clone", to, vol4, []volume.ID{vol2}, "flocker-aside", []string{"k1", "k2", "own"}},
		{"in the trash, on the original", from, vol4, []volume.ID{vol2}, "flocker-trash", []string{"BETWEEN", "own"}},
		{"restored of that, on the clone", to, vol4, []volume.ID{vol3, vol2}, "", []string{"k1", "k2", "own"}},
		{"restored of that, on the original", from, vol4, []volume.ID{vol3, vol2}, "", []string{"BETWEEN", "own"}},
		{"of which nobody knows whose it was", from, vol4, nil, "", []string{"s", "between", "own"}},
	} {
		t.Run("with what was "+c.name, func(t *testing.T) {
			a, host, f := begin(t)
			must(t, host.Snapshot(ctx, []string{to + "@k1"}, nil), host.Snapshot(ctx, []string{to + "@k2"}, nil))
			between := engines(guidOf(t, host, from, "between"))
			ds, at := "tank/flocker/"+string(c.id), c.on+"@k2"
			if c.on == from {
				at = from + "@between"
			}
			f.apply(t, state.CreateVolume{ID: c.id, Name: "back", Placement: volume.Placement{Primary: self}, Adopt: string(vol2) + "-0000000000000005-1", Descends: c.of})
			f.apply(t, state.ConfirmCreate{ID: c.id, Epoch: f.s.Volume(c.id).Epoch})
			switch c.copy {
			case "flocker-aside":
				ds = "tank/flocker-aside/" + string(c.id) + "-0000000000000006-1"
			case "flocker-trash":
				ds = "tank/flocker-trash/" + string(c.id)
			}
			must(t, host.Clone(ctx, at, ds, nil), host.Snapshot(ctx, []string{ds + "@own"}, nil), a.destroy(ctx, c.on))
			for i, name := range c.want {
				if name == "BETWEEN" {
					c.want[i] = between
				}
			}
			if got := names(t, host, ds); exists(t, host, c.on) || !slices.Equal(got, c.want) {
				t.Errorf("it has the history %v, want %v", got, c.want)
			}
		})
	}
	for _, ds := range []string{to, to + "-seed-0000000000000001", "tank/flocker-trash/" + string(vol2), "tank/flocker-aside/" + string(vol2) + "-0000000000000005-1"} {
		t.Run("that is a clone, with a copy of it that was set aside, "+ds, func(t *testing.T) {
			a, host, _ := begin(t)
			aside := "tank/flocker-aside/" + string(vol2) + "-0000000000000005-2"
			must(t, host.Snapshot(ctx, []string{to + "@k1"}, nil), host.Snapshot(ctx, []string{to + "@k2"}, nil))
			if ds != to {
				must(t, host.Rename(ctx, to, ds))
			}
			must(t, host.Clone(ctx, ds+"@k2", aside, nil), a.destroy(ctx, ds))
			if got := names(t, host, aside); exists(t, host, ds) || !slices.Equal(got, []string{"k1", "k2"}) {
				t.Errorf("what was set aside has lost its history: %v", got)
			}
		})
	}
	t.Run("held by somebody", func(t *testing.T) {
		a, host, _ := begin(t)
		must(t, host.Hold(ctx, "mine", from+"@last"))
		if err := a.destroy(ctx, from); err == nil || !exists(t, host, from) {
			t.Errorf("it is gone: %v", err)
		}
		if d, err := host.Dataset(ctx, to); err != nil || d.Origin != from+"@s" {
			t.Errorf("nothing was to be changed, and the clone is %+v, %v", d, err)
		}
	})
}

// A first copy that is being received on the volume's copy is ended, and not promoted: with what
// it stands on its own nothing could be made of it any more.
func TestDestroyUnderFirstCopy(t *testing.T) {
	ctx := context.Background()
	from, seed := "tank/flocker/"+string(vol1), "tank/flocker/"+string(vol2)+"-seed-0000000000000005"
	begin := func(t *testing.T, cut bool) (*Agent, *zfsfake.Host, *idle) {
		a, host, _, i := quiet(t)
		must(t, host.CreateFilesystem(ctx, from, map[string]string{"mountpoint": "/v"}), host.Snapshot(ctx, []string{from + "@s"}, nil),
			host.Clone(ctx, from+"@s", "tank/x", map[string]string{"mountpoint": "/x"}), host.Mount(ctx, "tank/x", true),
			host.WriteFile("tank/x", "own", make([]byte, 100<<10)), host.Unmount(ctx, "tank/x"), host.Snapshot(ctx, []string{"tank/x@1"}, nil))
		var stream bytes.Buffer
		must(t, host.Send(ctx, zfs.SendRequest{Snapshot: "tank/x@1", From: from + "@s"}, &stream), host.Destroy(ctx, "tank/x"))
		if cut {
			stream.Truncate(stream.Len() / 2)
		}
		err := host.Receive(ctx, zfs.ReceiveRequest{Dataset: seed, Origin: from + "@s", Resumable: true}, &stream)
		if d, derr := host.Dataset(ctx, seed); (err != nil) != cut || derr != nil || (d.ResumeToken != "") != cut || d.Origin != from+"@s" {
			t.Fatalf("received: %v; %+v, %v", err, d, derr)
		}
		return a, host, i
	}
	t.Run("that is half there", func(t *testing.T) {
		a, host, i := begin(t, true)
		i.settle = func(_ context.Context, id volume.ID) error {
			if id != vol2 {
				t.Errorf("volume %s has to settle", id)
			}
			return host.AbortReceive(ctx, seed)
		}
		must(t, a.destroy(ctx, from))
		if exists(t, host, from) || exists(t, host, seed) {
			t.Error("it is still there")
		}
	})
	t.Run("that is whole", func(t *testing.T) {
		a, host, i := begin(t, false)
		i.settle = func(context.Context, volume.ID) error { return host.Rename(ctx, seed, "tank/flocker/"+string(vol2)) }
		must(t, a.destroy(ctx, from))
		list, err := host.Snapshots(ctx, "tank/flocker/"+string(vol2), false)
		if exists(t, host, from) || err != nil || len(list) != 2 || list[1].Name != "1" {
			t.Errorf("left of the clone: %+v, %v", list, err)
		}
	})
	t.Run("that goes on for long", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, host, i := begin(t, true)
			i.settle = func(ctx context.Context, _ volume.ID) error { <-ctx.Done(); return context.Cause(ctx) }
			began := time.Now()
			if err := a.destroy(ctx, from); err == nil || !strings.Contains(err.Error(), "still being received") || !exists(t, host, seed) {
				t.Errorf("destroyed: %v", err)
			}
			if took := time.Since(began); took > time.Minute {
				t.Errorf("locks were held for %v", took)
			}
		})
	})
	for _, cut := range []bool{true, false} {
		t.Run(fmt.Sprintf("that the engine of this node ends, half there %t", cut), func(t *testing.T) {
			a, host, _ := begin(t, cut)
			a.repl = replicate.New(replicate.Config{Node: self, Root: a.layout.Root(), Pool: host})
			must(t, a.destroy(ctx, from))
			if exists(t, host, from) || exists(t, host, seed) {
				t.Error("it is still there")
			}
			var left []string
			if copied := "tank/flocker/" + string(vol2); exists(t, host, copied) {
				list, err := host.Snapshots(ctx, copied, false)
				must(t, err)
				for _, x := range list {
					left = append(left, x.Name)
				}
			}
			want := []string{"s", "1"}
			if cut {
				want = nil
			}
			if !slices.Equal(left, want) {
				t.Errorf("left of the clone: %v, want %v", left, want)
			}
		})
	}
	t.Run("that does not go away", func(t *testing.T) {
		a, host, i := begin(t, true)
		asked := 0
		i.settle = func(context.Context, volume.ID) error { asked++; return nil }
		if err := a.destroy(ctx, from); err == nil || !strings.Contains(err.Error(), "by hand") || asked != 1 {
			t.Errorf("destroyed: %v; replication was asked %d times", err, asked)
		}
		if d, err := host.Dataset(ctx, seed); err != nil || d.Origin != from+"@s" || !exists(t, host, from) {
			t.Errorf("nothing was to be changed, and there is %+v, %v", d, err)
		}
	})
	t.Run("is seen as what it is", func(t *testing.T) {
		a, host, _ := begin(t, true)
		must(t, host.CreateFilesystem(ctx, "tank/flocker/"+string(vol3)+"-seed-0000000000000001", nil))
		must(t, host.CreateFilesystem(ctx, from+"-fork", nil))
		got, err := a.observe(ctx, true)
		if err != nil || len(got.Parts) != 3 || len(got.Seeding) != 1 || !got.Seeding[vol3] {
			t.Errorf("seen: %+v, %v", got, err)
		}
	})
	t.Run("that cannot be ended", func(t *testing.T) {
		a, host, i := begin(t, true)
		i.settle = func(context.Context, volume.ID) error { return errors.New("not now") }
		if err := a.destroy(ctx, from); err == nil || !strings.Contains(err.Error(), "not now") {
			t.Errorf("destroyed: %v", err)
		}
		if d, err := host.Dataset(ctx, seed); err != nil || d.Origin != from+"@s" || !exists(t, host, from) {
			t.Errorf("nothing was to be changed, and there is %+v, %v", d, err)
		}
	})
}

// Wherever a volume has a copy, a snapshot of it that is just being cloned stays, and on a node
// that is to get a copy of the clone until that is there.
func TestAssignmentsOfCloned(t *testing.T) {
	_, _, f, of := cloning(t)
	got := Actual{Copies: map[volume.ID]Copy{vol1: {Epoch: f.s.Volume(vol1).Epoch}}}
	stays := func(node volume.NodeID) []uint64 {
		t.Helper()
		list := assignments(f.s, got, node)
		if len(list) != 1 || list[0].Volume != vol1 {
			t.Fatalf("assigned: %+v", list)
		}
		return list[0].Stay
	}
	for _, node := range []volume.NodeID{self, other} {
		if stay := stays(node); !slices.Equal(stay, []uint64{of.GUID}) {
			t.Errorf("on %s: %v stay, want %d", node, stay, of.GUID)
		}
	}
	f.apply(t, state.ConfirmCreate{ID: vol2, Epoch: f.s.Volume(vol2).Epoch})
	if list := assignments(f.s, got, other); len(list) != 1 || len(list[0].Stay) != 0 {
		t.Errorf("when it is made: %+v", list)
	}

	// What is assigned of a clone says what it is one of.
	v := *f.s.Volume(vol2)
	got.Copies[vol2] = Copy{Epoch: v.Epoch}
	origin := replicate.Origin{Volume: vol1, GUID: of.GUID, Here: true}
	if list := assignments(f.s, got, self); len(list) != 2 || list[0].Origin != (replicate.Origin{}) || list[1].Origin != origin {
		t.Errorf("assigned: %+v", list)
	}
	delete(got.Copies, vol2)
	f.apply(t, state.SetReplicas{ID: vol2, Epoch: v.Epoch, Local: []volume.NodeID{other}})
	if list := assignments(f.s, got, other); len(list) != 2 || !slices.Equal(list[0].Stay, []uint64{of.GUID}) || list[1].Origin != origin {
		t.Errorf("where its first copy comes to: %+v", list)
	}
	got.Seeding = map[volume.ID]bool{vol2: true}
	if list := assignments(f.s, got, other); len(list) != 2 || len(list[0].Stay) != 0 {
		t.Errorf("where all of it comes: %+v", list)
	}
	got.Seeding = nil
	got.Copies[vol2] = Copy{Epoch: v.Epoch}
	if list := assignments(f.s, got, other); len(list) != 2 || len(list[0].Stay) != 0 {
		t.Errorf("where that is: %+v", list)
	}

	// The original is here as long as the state has a copy of it here, also while nothing may be
	// done with that for a moment; not in the trash, nor where no copy is to be.
	here := func(what string, node volume.NodeID, want bool) {
		t.Helper()
		for _, as := range assignments(f.s, got, node) {
			if as.Volume == vol2 && as.Origin.Here != want {
				t.Errorf("%s: here is %t", what, as.Origin.Here)
			}
		}
	}
	was := got.Copies[vol1]
	got.Copies[vol1] = Copy{Epoch: was.Epoch, Logged: true}
	if list := assignments(f.s, got, other); len(list) != 1 {
		t.Errorf("while its intent log is not replayed: %+v", list)
	}
	here("while its intent log is not replayed", other, true)
	got.Copies[vol1] = Copy{Epoch: was.Epoch - 1}
	here("while it is taken over", other, true)
	got.Copies[vol1] = was
	f.apply(t, state.SetReplicas{ID: vol1, Epoch: f.s.Volume(vol1).Epoch})
	here("where its primary is", other, true)
	here("where no copy of it is to be", self, false)
	got.Trash = map[volume.ID]Copy{vol1: was}
	delete(got.Copies, vol1)
	here("from the trash", other, false)
}
