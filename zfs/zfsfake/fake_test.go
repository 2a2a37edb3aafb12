package zfsfake_test

import (
	"fmt"
	"testing"

	"github.com/flocker-io/flocker/zfs/zfsfake"
	"github.com/flocker-io/flocker/zfs/zfstest"
)

func TestConformance(t *testing.T) {
	zfstest.Run(t, func(t *testing.T) zfstest.Env {
		a := zfsfake.New(zfsfake.Options{Pool: "tank", Seed: 1, Capacity: 1 << 30})
		b := zfsfake.New(zfsfake.Options{Pool: "tank", Seed: 2, Capacity: 1 << 30})
		return zfstest.Env{
			A: side(t, a), B: side(t, b),
			NewPool: func(t *testing.T) (string, string, func(), func()) {
				return "extra", "/pools/extra.img", func() { a.ExportPool("extra") }, func() {}
			},
		}
	})
}

// side is a fake as the suite wants it; what it leaves behind must be in order.
func side(t *testing.T, h *zfsfake.Host) zfstest.Side {
	t.Cleanup(func() {
		if err := h.Check(); err != nil {
			t.Errorf("%v\n%s", err, h.Dump())
		} else if t.Failed() {
			t.Log(h.Dump())
		}
	})
	root := fmt.Sprintf("tank/test%p", h)
	if err := h.CreateFilesystem(t.Context(), root, map[string]string{"mountpoint": "none"}); err != nil {
		t.Fatal(err)
	}
	return zfstest.Side{
		ZFS: h, Root: root, Pool: "tank",
		Mountpoint:   func(name string) string { return "/mnt/" + name },
		Write:        h.WriteFile,
		Remove:       h.RemoveFile,
		Read:         h.ReadFile,
		Files:        h.Files,
		CreateVolume: h.CreateVolume,
		Open:         func(snapshot, _ string) (func(), error) { return h.OpenSnapshot(snapshot) },
		Look:         func(snapshot, _, file string) ([]byte, error) { return h.ReadSnapshotFile(snapshot, file) },
		Use: func(name, file string) (func(), error) {
			return func() { h.SetInUse(name, false) }, h.SetInUse(name, true)
		},
	}
}
