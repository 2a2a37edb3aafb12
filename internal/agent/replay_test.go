package agent

import (
	"context"
	"slices"
	"testing"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// After a start, a copy that was once mounted on this node is mounted once, read-only,
// before replication gets it; one that never was is left alone, and so is one in use.
func TestReplay(t *testing.T) {
	ctx := context.Background()
	once, never, used := vol1, vol2, volume.ID("00000000000000a3")
	a, host, f, _ := quiet(t)
	watch := &mounting{Disk: host}
	a.zfs = watch
	for _, id := range []volume.ID{once, never, used} {
		f.apply(t, state.CreateVolume{ID: id, Name: "v" + string(id), Placement: volume.Placement{Primary: other, Local: []volume.NodeID{self}}})
		f.apply(t, state.ConfirmCreate{ID: id, Epoch: 1})
		props := map[string]string{"readonly": "on", "canmount": "noauto"}
		if id != never {
			props["mountpoint"] = a.layout.Mountpoint(id)
		}
		must(t, host.CreateFilesystem(ctx, a.layout.Dataset(id), props))
	}
	must(t, host.Mount(ctx, a.layout.Dataset(used), false))
	look := func() Actual {
		got, err := a.observe(ctx, true)
		must(t, err)
		return got
	}
	assigned := func(got Actual, want ...volume.ID) {
		t.Helper()
		var ids []volume.ID
		for _, as := range assignments(f.s, got, self) {
			ids = append(ids, as.Volume)
		}
		if slices.Sort(ids); !slices.Equal(ids, want) {
			t.Errorf("assigned: %v, want %v", ids, want)
		}
	}

	first := look()
	a.suspectLogs(first)
	assigned(first, never, used)
	assigned(look(), never, used)
	if step := diffVolume(f.s.Volume(once), look(), self, func(volume.ID) bool { return false }); step != StepReplay {
		t.Fatalf("the step is %q, want it replayed", step)
	}

	host.SuspendPool("tank", true)
	if err := a.do(ctx, Action{StepReplay, once}); err == nil {
		t.Error("a pool that hangs has replayed a log")
	}
	host.SuspendPool("tank", false)
	assigned(look(), never, used)

	watch.mounts = nil
	must(t, a.do(ctx, Action{StepReplay, once}))
	if len(watch.mounts) != 1 || watch.mounts[0] != a.layout.Dataset(once) {
		t.Errorf("mounted: %v, want only the copy once", watch.mounts)
	}
	got := look()
	assigned(got, once, never, used)
	if got.Copies[once].Mounted {
		t.Error("it is still mounted")
	}
}

// mounting notes what is mounted read-only.
type mounting struct {
	Disk
	mounts []string
}

func (m *mounting) Mount(ctx context.Context, name string, write bool) error {
	if !write {
		m.mounts = append(m.mounts, name)
	}
	return m.Disk.Mount(ctx, name, write)
}
