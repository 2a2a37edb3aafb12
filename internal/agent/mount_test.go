package agent

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// books keep no hints.
type books struct{ Use }

func (books) Mounting(volume.ID, string)    {}
func (books) Mounted(volume.ID, string)     {}
func (books) MountFailed(volume.ID, string) {}

// doors prepare nothing.
type doors struct{ Files }

func (doors) Prepare(at string, _ volume.Spec) (string, error) { return at, nil }

// A mount that takes long may end in another world: its volume was taken from this node,
// which has stopped and holds a lease again by now. Then nothing is handed out, whoever
// has the volume, and nothing stays mounted.
func TestMountTakenMeanwhile(t *testing.T) {
	for name, c := range map[string]struct {
		to    volume.NodeID // who gets the volume meanwhile; "": nobody, it stays here
		wants bool
	}{
		"nothing happens":              {"", true},
		"another node has it":          {other, false},
		"it came back in a next epoch": {self, false},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			a, host, f, _ := quiet(t)
			a.files, a.use = doors{}, books{}
			close(a.fresh)
			f.apply(t, state.CreateVolume{ID: vol1, Name: "pg", Spec: volume.DefaultSpec(),
				Placement: volume.Placement{Primary: self, Local: []volume.NodeID{other}}})
			f.apply(t, state.ConfirmCreate{ID: vol1, Epoch: f.s.Volume(vol1).Epoch})
			must(t, host.CreateFilesystem(ctx, a.layout.Dataset(vol1), nil))
			host.Inject(zfsfake.Rule{Op: "mount", Do: func(context.Context, string, string) error {
				if c.to != "" {
					f.apply(t, state.BeginElection{ID: vol1, Epoch: f.s.Volume(vol1).Epoch, Fenced: true})
					f.apply(t, state.Promote{ID: vol1, Epoch: f.s.Volume(vol1).Epoch, To: c.to})
				}
				return nil
			}})
			dir, err := a.Mount(ctx, vol1, "m")
			if (err == nil) != c.wants || (dir != "") != c.wants {
				t.Errorf("Mount: %q, %v", dir, err)
			}
			if got := len(host.Mounts()) > 0; got != c.wants {
				t.Errorf("mounted: %v, want %v", got, c.wants)
			}
		})
	}
}

// A container that waits gets its volume only between two looks at whether this node may
// write it, and has it taken away when that has ended meanwhile.
func TestMountInto(t *testing.T) {
	errInto := errors.New("the container has ended")
	for name, c := range map[string]struct {
		before, during bool // when the volume is taken from this node
		into           error
		wants          string // what the container has seen
		ok, mounted    bool
	}{
		"nothing happens":         {wants: "given", ok: true, mounted: true},
		"taken before":            {before: true, wants: ""},
		"taken while it is given": {during: true, wants: "given withdrawn"},
		"the container is gone":   {into: errInto, wants: "given", mounted: true}, // the loop unmounts it
	} {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			a, host, f, _ := quiet(t)
			a.files, a.use = doors{}, books{}
			close(a.fresh)
			f.apply(t, state.CreateVolume{ID: vol1, Name: "pg", Spec: volume.DefaultSpec(),
				Placement: volume.Placement{Primary: self, Local: []volume.NodeID{other}}})
			f.apply(t, state.ConfirmCreate{ID: vol1, Epoch: f.s.Volume(vol1).Epoch})
			must(t, host.CreateFilesystem(ctx, a.layout.Dataset(vol1), nil))
			take := func() {
				f.apply(t, state.BeginElection{ID: vol1, Epoch: f.s.Volume(vol1).Epoch, Fenced: true})
				f.apply(t, state.Promote{ID: vol1, Epoch: f.s.Volume(vol1).Epoch, To: other})
			}
			if c.before {
				host.Inject(zfsfake.Rule{Op: "mount", Do: func(context.Context, string, string) error { take(); return nil }})
			}
			var seen []string
			err := a.MountInto(ctx, vol1, "m", func(dir string) (func() error, error) {
				if len(host.Mounts()) == 0 {
					t.Error("the container gets what is not mounted")
				}
				if len(a.locks.held) == 0 {
					t.Error("the container gets a volume that is not locked")
				}
				seen = append(seen, "given")
				if c.during {
					take()
				}
				return func() error {
					if len(host.Mounts()) == 0 {
						t.Error("the volume is unmounted before it is withdrawn")
					}
					seen = append(seen, "withdrawn")
					return nil
				}, c.into
			})
			if got := strings.Join(seen, " "); got != c.wants || (err == nil) != c.ok {
				t.Errorf("the container saw %q, want %q; %v", got, c.wants, err)
			}
			if c.into != nil && !errors.Is(err, c.into) {
				t.Errorf("MountInto: %v; want %v", err, c.into)
			}
			if got := len(host.Mounts()) > 0; got != c.mounted {
				t.Errorf("mounted: %v, want %v", got, c.mounted)
			}
		})
	}
}
