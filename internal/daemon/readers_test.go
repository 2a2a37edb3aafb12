package daemon

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// A copy that somebody reads is promoted away, and destroyed, all the same: who reads is told
// why it ends, and those of other copies read on.
func TestReadersAreEndedForRepairs(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, repair := range map[string]func(z ZFS) error{
		"fork":    func(z ZFS) error { return z.Promote(t.Context(), "tank/v-fork") },
		"destroy": func(z ZFS) error { return z.Destroy(t.Context(), "tank/v") },
		"renamed, then destroyed": func(z ZFS) error {
			return errors.Join(z.Rename(t.Context(), "tank/v", "tank/aside"), z.Destroy(t.Context(), "tank/aside"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			var r readers
			z := expelling{zfsfake.New(zfsfake.Options{Seed: 1, Pool: "tank"}), &r}
			must(z.CreateFilesystem(t.Context(), "tank/v", nil))
			must(z.CreateFilesystem(t.Context(), "tank/other", nil))
			must(z.Snapshot(t.Context(), []string{"tank/v@1", "tank/other@1"}, nil))
			if name == "fork" {
				must(z.Clone(t.Context(), "tank/v@1", "tank/v-fork", nil))
			}
			read := func(dataset string) *held {
				ctx, end, err := r.begin(t.Context(), dataset)
				must(err)
				must(z.MountSnapshot(ctx, dataset+"@1", "/read/"+dataset))
				body := &closing{Reader: strings.NewReader("content"), closers: []func() error{func() error {
					return z.UnmountSnapshot(context.Background(), "/read/"+dataset)
				}}}
				return hold(ctx, body, end)
			}
			reader, other := read("tank/v"), read("tank/other")
			if err := repair(z); err != nil {
				t.Errorf("repairing: %v", err)
			}
			if _, err := io.ReadAll(reader); !errors.Is(err, errRepaired) {
				t.Errorf("who read it got %v", err)
			}
			if got, err := io.ReadAll(other); err != nil || string(got) != "content" {
				t.Errorf("who read another one got %q, %v", got, err)
			}
			must(reader.Close())
			if r.idle() {
				t.Error("the other reader is not known any more")
			}
			must(other.Close())
			if !r.idle() {
				t.Error("there are readers when all have ended")
			}
		})
	}
}

// Nobody begins to read what is just being repaired.
func TestNobodyBeginsWhileRepaired(t *testing.T) {
	var r readers
	admit := r.expel(t.Context(), "tank/v")
	if _, _, err := r.begin(t.Context(), "tank/v"); !errors.Is(err, errRepaired) {
		t.Errorf("got %v", err)
	}
	admit()
	_, end, err := r.begin(t.Context(), "tank/v")
	if err != nil {
		t.Fatal(err)
	}
	end()
}

// ZFS does not promote what is mounted: that is why readers are ended.
func TestFakePromoteIsBusy(t *testing.T) {
	z := zfsfake.New(zfsfake.Options{Seed: 1, Pool: "tank"})
	err := errors.Join(z.CreateFilesystem(t.Context(), "tank/v", nil), z.Snapshot(t.Context(), []string{"tank/v@1"}, nil),
		z.Clone(t.Context(), "tank/v@1", "tank/v-fork", nil), z.MountSnapshot(t.Context(), "tank/v@1", "/read"))
	if err != nil {
		t.Fatal(err)
	}
	if err := z.Promote(t.Context(), "tank/v-fork"); !errors.Is(err, zfs.ErrBusy) {
		t.Errorf("got %v", err)
	}
}
