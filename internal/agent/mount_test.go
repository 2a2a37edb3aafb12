package agent

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

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
func (doors) Uncover(string, func(string) bool) error          { return nil }

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

// prepared is idle, whose volumes are given out as they are.
type prepared struct{ *idle }

func (prepared) Prepare(at string, _ volume.Spec) (string, error) { return at, nil }

// What is given out of a volume that is all of its dataset is there also while that is not mounted:
// nobody can write to it then, from before the first mount until the copy leaves the node.
func TestWholeIsCovered(t *testing.T) {
	ctx := context.Background()
	at, ds := "/v/"+string(vol1), "tank/flocker/"+string(vol1)
	begin := func(t *testing.T) (*Agent, *zfsfake.Host, *fixed, *idle) {
		a, host, f, i := importing(t)
		host.Inject(zfsfake.Rule{Op: "mount", Do: func(_ context.Context, _, name string) error {
			if name == ds && !i.covered[at] {
				t.Errorf("%s is mounted where everybody could write before", name)
			}
			return nil
		}})
		a.files, a.use = prepared{i}, books{asking{}}
		must(t, a.do(ctx, Action{StepCreate, vol1}))
		return a, host, f, i
	}
	t.Run("mounted, and destroyed", func(t *testing.T) {
		a, _, f, i := begin(t)
		f.apply(t, state.ConfirmCreate{ID: vol1, Epoch: f.s.Volume(vol1).Epoch})
		close(a.fresh)
		clear(i.covered)
		dir, err := a.Mount(ctx, vol1, "m")
		if dir != at || err != nil || !i.covered[at] {
			t.Errorf("given out is %q, %v, and covered are %v", dir, err, i.covered)
		}
		must(t, a.do(ctx, Action{StepUnmount, vol1}), a.firstLook(ctx))
		if !i.covered[at] {
			t.Error("it is not covered any more once it is unmounted")
		}
		e := f.s.Volume(vol1).Epoch
		f.apply(t, state.BeginDelete{ID: vol1, Epoch: e, Attempt: "a"})
		f.apply(t, state.CommitDelete{ID: vol1, Epoch: e, Attempt: "a"})
		must(t, a.do(ctx, Action{StepToTrash, vol1}), a.firstLook(ctx))
		if !i.covered[at] {
			t.Error("it is not covered any more in the trash, from which it may come back")
		}
		f.apply(t, state.PurgeVolume{ID: vol1, Changed: f.s.Volume(vol1).Changed})
		must(t, a.do(ctx, Action{StepDestroy, vol1}))
		if len(i.covered) != 0 {
			t.Errorf("left are %v", i.covered)
		}
	})
	t.Run("given back", func(t *testing.T) {
		a, _, f, i := begin(t)
		f.apply(t, state.AbortCreate{ID: vol1, Epoch: f.s.Volume(vol1).Epoch, Reason: "given up"})
		must(t, a.do(ctx, Action{StepGiveBack, vol1}))
		if len(i.covered) != 0 {
			t.Errorf("left are %v", i.covered)
		}
	})
	t.Run("dropped", func(t *testing.T) {
		a, host, f, i := quiet(t)
		f.apply(t, state.CreateVolume{ID: vol1, Name: "pg", Spec: volume.Spec{}.MakeWhole(), Placement: volume.Placement{Primary: other}})
		f.apply(t, state.ConfirmCreate{ID: vol1, Epoch: f.s.Volume(vol1).Epoch})
		a.files, a.use = prepared{i}, books{asking{}}
		must(t, host.CreateFilesystem(ctx, ds, map[string]string{"readonly": "on"}), host.Snapshot(ctx, []string{ds + "@flk-0000000000000001-000000000001"}, nil))
		i.covered[at], i.covered["/v/"+string(vol2)] = true, true
		must(t, a.do(ctx, Action{StepDrop, vol1}))
		if len(i.covered) != 1 {
			t.Errorf("left are %v", i.covered)
		}
		// What a crash has left goes at the next start, also that of a volume which is somewhere else.
		i.covered[at], i.covered["/v/mine"] = true, true
		must(t, a.firstLook(ctx))
		if len(i.covered) != 1 || !i.covered["/v/mine"] {
			t.Errorf("left are %v", i.covered)
		}
		// What is to be here, or is here, stays covered, whatever is known of it.
		f.apply(t, state.CreateVolume{ID: vol2, Name: "my", Spec: volume.Spec{}.MakeWhole(), Placement: volume.Placement{Primary: other, Local: []volume.NodeID{self}}})
		at2 := "/v/" + string(vol2)
		look := func(what string, covered bool) {
			t.Helper()
			i.covered[at2], a.trashAt = true, time.Time{}
			must(t, a.firstLook(ctx))
			if i.covered[at2] != covered {
				t.Errorf("%s: covered: %v", what, i.covered)
			}
		}
		look("a replica is to come", true)
		f.s = state.New()
		look("nothing", false)
		must(t, host.CreateFilesystem(ctx, "tank/flocker/"+string(vol2), nil))
		look("a copy", true)
		must(t, host.Rename(ctx, "tank/flocker/"+string(vol2), "tank/flocker-trash/"+string(vol2)))
		look("a copy in the trash", true)
	})
	t.Run("mounted where it was, just before it may not be", func(t *testing.T) {
		a, host, _, i := importing(t)
		sets := 0
		host.Inject(zfsfake.Rule{Op: "set", Do: func(_ context.Context, _, name string) error {
			if name != ds {
				return nil
			}
			// The second one moves it, with what is mounted.
			if sets++; sets == 2 && !i.covered[at] {
				t.Error("it is moved to where everybody could write before")
			}
			return nil
		}})
		must(t, a.do(ctx, Action{StepCreate, vol1}))
		if sets < 2 {
			t.Errorf("it was changed %d times", sets)
		}
	})
}
