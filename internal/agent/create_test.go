package agent

import (
	"context"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// A volume is confirmed when its dataset has its properties: ZFS makes it in one transaction and sets
// them in another, and the power may go in between.
func TestCreateAfterAPowerCut(t *testing.T) {
	ctx := context.Background()
	ds := "tank/flocker/" + string(vol1)
	begin := func(t *testing.T) (*Agent, *zfsfake.Host, *fixed) {
		a, host, f, _ := quiet(t)
		f.apply(t, state.CreateVolume{ID: vol1, Name: "pg", Spec: volume.Spec{Size: 1 << 30, ZFS: map[string]string{"compression": "lz4"}}, Placement: volume.Placement{Primary: self}})
		return a, host, f
	}
	for fails := range 3 { // which command that sets some, once; 0: none
		a, host, f := begin(t)
		must(t, host.CreateFilesystem(ctx, ds, map[string]string{"canmount": "on"}))
		if fails > 0 {
			host.Fail("set", "", fails, &zfs.Error{Op: "set", Kind: zfs.ErrBusy})
			if err := a.do(ctx, Action{StepCreate, vol1}); err == nil || len(f.proposed) != 0 {
				t.Errorf("number %d fails: %v, proposed: %+v", fails, err, f.proposed)
			}
		}
		must(t, a.do(ctx, Action{StepCreate, vol1}))
		d, err := host.Dataset(ctx, ds)
		epoch := f.s.Volume(vol1).Epoch
		if err != nil || d.Mounted || !d.ReadOnly || d.CanMount != "noauto" || d.User[propVolume] != string(vol1) || d.User[propEpoch] != epoch.String() ||
			d.Mountpoint != "/v/"+string(vol1) || d.RefQuota != 1<<30 {
			t.Errorf("number %d fails: it is %+v, %v", fails, d, err)
		}
		if known := a.made[vol1].copy; known != copyOf(d) {
			t.Errorf("number %d fails: known is %+v, and there is %+v", fails, known, copyOf(d))
		}
		if len(f.proposed) != 1 || f.proposed[0] != (state.ConfirmCreate{ID: vol1, Epoch: epoch}) {
			t.Errorf("number %d fails: proposed: %+v", fails, f.proposed)
		}
	}

	a, host, f := begin(t)
	must(t, host.CreateFilesystem(ctx, ds, map[string]string{"mountpoint": "/x"}), host.Mount(ctx, ds, true))
	if err := a.do(ctx, Action{StepCreate, vol1}); err == nil || !strings.Contains(err.Error(), "unmount it") || len(f.proposed) != 0 {
		t.Errorf("one that somebody uses: %v, proposed %+v", err, f.proposed)
	}
}
