package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

func TestExpired(t *testing.T) {
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	asides := []volume.Aside{
		{Name: "old", At: now.Add(-31 * 24 * time.Hour)},
		{Name: "young", At: now.Add(-29 * 24 * time.Hour)},
		{Name: "timeless"},
		{Name: "future", At: now.Add(time.Hour)},
	}
	var got []string
	for _, x := range expired(asides, now, 30*24*time.Hour) {
		got = append(got, x.Name)
	}
	if !slices.Equal(got, []string{"old"}) {
		t.Errorf("expired: %v, want only old", got)
	}
	if x := expired(asides, time.Time{}, time.Hour); x != nil {
		t.Errorf("without a clock to trust, expired: %v", x)
	}
}

// fixed is a cluster whose state does not change by itself.
type fixed struct {
	s *state.State

	mu       sync.Mutex // jobs of the agent propose at once
	proposed []state.Command
}

func (f *fixed) State() *state.State           { return f.s }
func (f *fixed) Changed() <-chan struct{}      { return nil }
func (f *fixed) CatchUp(context.Context) error { return nil }
func (f *fixed) Propose(_ context.Context, c state.Command) (state.Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.proposed = append(f.proposed, c)
	return state.Result{}, nil
}

func (f *fixed) apply(t *testing.T, c state.Command) {
	t.Helper()
	next, res := state.Apply(f.s, f.s.Index+1, state.Envelope{Command: c})
	if res.Err != nil {
		t.Fatal(res.Err)
	}
	f.s = next
}

// What is set aside while a list is made, or while an old one is being destroyed, is in
// the next list.
func TestLookAside(t *testing.T) {
	ctx := context.Background()
	a, host, _, _ := quiet(t)
	name := "tank/flocker-aside/" + string(vol1) + "-0000000000000005-"
	look := func(want int) {
		t.Helper()
		var jobs sync.WaitGroup
		must(t, a.lookAside(ctx, &jobs))
		jobs.Wait()
		if n := len(a.asides); n != want {
			t.Errorf("%d asides, want %d", n, want)
		}
	}
	remove := host.Inject(zfsfake.Rule{Op: "datasets", After: true, Do: func(context.Context, string, string) error {
		a.LookAside()
		return nil
	}})
	look(0)
	remove()
	must(t, host.CreateFilesystem(ctx, name+"1", nil))
	look(1)
	a.expiring = true
	must(t, host.CreateFilesystem(ctx, name+"2", nil))
	a.LookAside()
	look(2)
}

// holders is Files that find nobody, Use without hints, and a replication engine
// that only sets copies aside.
type idle struct {
	Files
	Use
	Replicator
	host  *zfsfake.Host
	aside []string
	holds map[uint64]bool
	deaf  error

	covered map[string]bool
	refers  []string // what Refers finds

	settled bool   // nothing is received now
	asked   func() // what happens while the primary is asked
	// settle ends what is received for a volume; nil: nothing is.
	settle func(ctx context.Context, id volume.ID) error
}

func (i *idle) Unused(string, string) error { return nil }
func (i *idle) Refers(dataset, dir string, binds []Bind) ([]string, error) {
	if dataset != "tank/pgdata" || dir != "/srv/pgdata" {
		return nil, fmt.Errorf("asked for %s at %s", dataset, dir)
	}
	found := slices.Clone(i.refers)
	for _, b := range binds {
		found = append(found, b.By)
	}
	return found, nil
}
func (i *idle) Cover(mountpoint string) error {
	i.covered[mountpoint] = true
	return nil
}
func (i *idle) Uncover(base string, keep func(string) bool) error {
	maps.DeleteFunc(i.covered, func(at string, _ bool) bool { return path.Dir(at) == base && !keep(path.Base(at)) })
	return nil
}
func (i *idle) Idle(volume.ID) bool { return true }
func (i *idle) SettledCopy(context.Context, volume.ID, volume.Position) (d zfs.Dataset, guids map[uint64]bool, err error) {
	return d, nil, nil
}
func (i *idle) Settled(ctx context.Context, id volume.ID, f func(context.Context) error) error {
	if i.settle != nil {
		if err := i.settle(ctx, id); err != nil {
			return err
		}
	}
	i.settled = true
	defer func() { i.settled = false }()
	return f(ctx)
}
func (i *idle) Refresh(volume.ID)                            {}
func (i *idle) Cloned(volume.ID, volume.Epoch, zfs.Snapshot) {}
func (i *idle) SetAside(_ context.Context, id volume.ID, reason string) error {
	i.aside = append(i.aside, reason)
	return i.host.Rename(context.Background(), "tank/flocker/"+string(id), "tank/flocker-aside/"+string(id)+"-0000000000000001-1")
}
func (i *idle) Holds(_ context.Context, _ volume.NodeID, _ volume.ID, guids []uint64) (map[uint64]bool, error) {
	if i.asked != nil {
		i.asked()
	}
	has := map[uint64]bool{}
	for _, g := range guids {
		has[g] = i.holds == nil || i.holds[g]
	}
	return has, i.deaf
}

const (
	vol1 = volume.ID("00000000000000a1")
	vol2 = volume.ID("00000000000000a2")
)

func quiet(t *testing.T) (*Agent, *zfsfake.Host, *fixed, *idle) {
	t.Helper()
	host := zfsfake.New(zfsfake.Options{Seed: 1, Pool: "tank", TxgTimeout: -1})
	f := &fixed{s: state.New()}
	f.apply(t, state.InitCluster{Cluster: state.Cluster{ID: "c"}, Node: state.Node{ID: self, Name: "me"}})
	f.apply(t, state.CreateToken{Token: state.Token{ID: "t", Expires: time.Now().Add(time.Hour)}})
	f.apply(t, state.AddNode{Node: state.Node{ID: other, Name: "other"}, Token: "t"})
	i := &idle{host: host, covered: map[string]bool{}}
	a := New(Config{
		Self: self, Layout: Layout{Pool: "tank", MountBase: "/v"}, Cluster: f, ZFS: host, Files: i, Use: i.use(), Repl: i, Peers: i,
		Log: slog.New(slog.DiscardHandler),
	})
	if err := a.prepare(context.Background()); err != nil {
		t.Fatal(err)
	}
	return a, host, f, i
}

func (i *idle) use() Use { return lonely{} }

// lonely is a node on which nobody uses anything.
type lonely struct{ Use }

func (lonely) Idle(volume.ID) bool { return true }

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func exists(t *testing.T, host *zfsfake.Host, name string) bool {
	t.Helper()
	_, err := host.Dataset(context.Background(), name)
	if err != nil && !errors.Is(err, zfs.ErrNotFound) {
		t.Fatal(err)
	}
	return err == nil
}

// A copy that is needed no more is destroyed only when the primary has all of it.
func TestDrop(t *testing.T) {
	ctx := context.Background()
	ds := "tank/flocker/" + string(vol1)
	for name, c := range map[string]struct {
		prepare func(*testing.T, *zfsfake.Host, *idle)
		gone    bool
		aside   bool
		fails   bool
	}{
		"the primary has all": {func(*testing.T, *zfsfake.Host, *idle) {}, true, false, false},
		"the primary has only the newest": {func(t *testing.T, h *zfsfake.Host, i *idle) {
			must(t, h.Snapshot(ctx, []string{ds + "@flk-0000000000000001-000000000002"}, nil))
			snaps, err := h.Snapshots(ctx, ds, false)
			must(t, err)
			i.holds = map[uint64]bool{snaps[1].GUID: true}
		}, true, false, false},
		"the primary lacks the newest": {func(_ *testing.T, _ *zfsfake.Host, i *idle) {
			i.holds = map[uint64]bool{}
		}, true, true, false},
		"the primary lacks a user's snapshot": {func(t *testing.T, h *zfsfake.Host, i *idle) {
			i.holds = map[uint64]bool{}
			must(t, h.Snapshot(ctx, []string{ds + "@mine"}, nil))
		}, true, true, false},
		"the primary cannot be asked": {func(_ *testing.T, _ *zfsfake.Host, i *idle) { i.deaf = errors.New("no answer") }, false, false, true},
		"somebody wrote to it": {func(t *testing.T, h *zfsfake.Host, _ *idle) {
			must(t, h.SetProperties(ctx, ds, map[string]string{"mountpoint": "/v/x"}), h.Mount(ctx, ds, true), h.WriteFile(ds, "f", []byte("mine")),
				h.Sync(ds), h.Unmount(ctx, ds))
		}, true, true, false},
		"somebody made a dataset in it": {func(t *testing.T, h *zfsfake.Host, _ *idle) {
			must(t, h.CreateFilesystem(ctx, ds+"/mine", nil))
		}, true, true, false},
		"somebody made a block device in it": {func(t *testing.T, h *zfsfake.Host, _ *idle) {
			must(t, h.CreateVolume(ds+"/mine"))
		}, true, true, false},
		"it has no snapshot": {func(t *testing.T, h *zfsfake.Host, _ *idle) {
			must(t, h.DestroySnapshots(ctx, ds, []string{"flk-0000000000000001-000000000001"}))
		}, true, true, false},
		"another copy was cloned from it": {func(t *testing.T, h *zfsfake.Host, _ *idle) {
			must(t, h.Clone(ctx, ds+"@flk-0000000000000001-000000000001", "tank/flocker-aside/"+string(vol1)+"-0000000000000001-7", nil))
		}, true, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			a, host, f, i := quiet(t)
			f.apply(t, state.CreateVolume{ID: vol1, Name: "v", Placement: volume.Placement{Primary: other}})
			f.apply(t, state.ConfirmCreate{ID: vol1, Epoch: f.s.Volume(vol1).Epoch})
			must(t, host.CreateFilesystem(ctx, ds, map[string]string{"readonly": "on"}), host.Snapshot(ctx, []string{ds + "@flk-0000000000000001-000000000001"}, nil))
			c.prepare(t, host, i)
			err := a.do(ctx, Action{StepDrop, vol1})
			if (err != nil) != c.fails {
				t.Errorf("error %v, want one: %v", err, c.fails)
			}
			if exists(t, host, ds) == c.gone {
				t.Errorf("the copy is gone: %v, want %v", !c.gone, c.gone)
			}
			if (len(i.aside) > 0) != c.aside {
				t.Errorf("set aside: %v", i.aside)
			}
		})
	}
}

func TestOnlyHere(t *testing.T) {
	for _, c := range []struct{ copy, has, want string }{
		{"", "", ""},
		{"5.1 5.2", "5.2", ""},                      // what came before the newest is its history
		{"5.1 5.2", "5.1", "5.2"},                   // a tail: the primary was rolled back, or took over without it
		{"3.8 4.1", "", "4.1"},                      // nothing in common at all
		{"mine 5.3", "5.3", "mine"},                 // a user's snapshot that it lacks
		{"mine 5.3", "5.3 mine", ""},                // or has, or has the bookmark of
		{"auto-1h-20261121T030000Z 5.3", "5.3", ""}, // the schedule's own business
		{"5.3 lost-1", "5.3", "lost-1"},
	} {
		has := map[uint64]bool{}
		var snaps []zfs.Snapshot
		want := ""
		for i, w := range strings.Fields(c.copy) {
			name := w
			if e, n, ok := strings.Cut(w, "."); ok {
				epoch, _ := strconv.Atoi(e)
				seq, _ := strconv.Atoi(n)
				name = volume.Position{Epoch: volume.Epoch(epoch), Seq: uint64(seq)}.SnapshotName()
			}
			snaps = append(snaps, zfs.Snapshot{Name: name, GUID: uint64(i + 1)})
			has[uint64(i+1)] = slices.Contains(strings.Fields(c.has), w)
			if w == c.want {
				want = name
			}
		}
		if got := onlyHere(snaps, has); got != want {
			t.Errorf("copy %q, primary has %q: only here is %q, want %q", c.copy, c.has, got, want)
		}
	}
}

// A purge ends where a set-aside copy hangs on the one that goes, and leaves it whole.
func TestDestroyPromotesClones(t *testing.T) {
	ctx := context.Background()
	a, host, _, _ := quiet(t)
	ds, aside := "tank/flocker/"+string(vol1), "tank/flocker-aside/"+string(vol1)+"-0000000000000001-"
	must(t, host.CreateFilesystem(ctx, ds, map[string]string{"mountpoint": "/v/x"}), host.Mount(ctx, ds, true), host.WriteFile(ds, "f", []byte("before")),
		host.Snapshot(ctx, []string{ds + "@one"}, nil), host.Clone(ctx, ds+"@one", aside+"1", nil), host.Clone(ctx, ds+"@one", aside+"2", nil), host.Unmount(ctx, ds))
	must(t, a.destroy(ctx, ds))
	if exists(t, host, ds) || !exists(t, host, aside+"1") || !exists(t, host, aside+"2") {
		t.Error("the wrong ones are gone")
	}
	must(t, a.RemoveAside(ctx, string(vol1)+"-0000000000000001-1"), a.RemoveAside(ctx, string(vol1)+"-0000000000000001-2"))
	err := a.RemoveAside(ctx, string(vol1)+"-0000000000000001-2")
	if volume.CodeOf(err) != volume.CodeNotFound {
		t.Errorf("removing what is not there: %v", err)
	}
	if err := a.RemoveAside(ctx, "../flocker"); volume.CodeOf(err) != volume.CodeInvalid {
		t.Errorf("removing what is no set-aside copy: %v", err)
	}
}

// What hangs on the copy that goes may have snapshots of the same names: a volume made
// of a set-aside copy has a schedule of its own.
func TestDestroyPromotesNamesakes(t *testing.T) {
	ctx := context.Background()
	a, host, _, _ := quiet(t)
	ds, back := "tank/flocker/"+string(vol1), "tank/flocker/"+string(vol2)
	must(t, host.CreateFilesystem(ctx, ds, nil), host.Snapshot(ctx, []string{ds + "@daily"}, nil), host.Snapshot(ctx, []string{ds + "@one"}, nil),
		host.Clone(ctx, ds+"@one", back, nil), host.Snapshot(ctx, []string{back + "@daily"}, nil))
	must(t, a.destroy(ctx, ds))
	if exists(t, host, ds) || !exists(t, host, back) {
		t.Error("the wrong one is gone")
	}
	list, err := host.Snapshots(ctx, back, false)
	must(t, err)
	if len(list) != 2 || list[0].Name != "one" || list[1].Name != "daily" {
		t.Errorf("the volume that stays has the snapshots %+v", list)
	}
}

// A volume is made of a set-aside copy, or the copy stays where it was.
func TestAdopt(t *testing.T) {
	ctx := context.Background()
	name := string(vol1) + "-0000000000000005-1"
	from, to := "tank/flocker-aside/"+name, "tank/flocker/"+string(vol2)
	begin := func(t *testing.T) (*Agent, *zfsfake.Host, *fixed) {
		a, host, f, _ := quiet(t)
		must(t, host.CreateFilesystem(ctx, from, map[string]string{"readonly": "on", propAside: "2026-01-01T00:00:00Z it went its own way"}), host.Snapshot(ctx, []string{from + "@flk-0000000000000005-000000000009"}, nil))
		f.apply(t, state.CreateVolume{ID: vol2, Name: "back", Placement: volume.Placement{Primary: self}, Adopt: name, After: 5})
		return a, host, f
	}
	t.Run("and confirmed", func(t *testing.T) {
		a, host, f := begin(t)
		if e := f.s.Volume(vol2).Epoch; e <= 5 {
			t.Errorf("it begins at epoch %s, and its copy has seen 5", e)
		}
		if err := a.RemoveAside(ctx, name); volume.CodeOf(err) != volume.CodeConflict {
			t.Errorf("removing what is being adopted: %v", err)
		}
		for range 2 { // again after a crash
			must(t, a.do(ctx, Action{StepCreate, vol2}))
		}
		d, err := host.Dataset(ctx, to)
		if err != nil || exists(t, host, from) || d.User[propVolume] != string(vol2) || d.Mountpoint != "/v/"+string(vol2) {
			t.Errorf("adopted: %+v, %v", d, err)
		}
		if note := d.User[propAside]; note != "" {
			t.Errorf("the volume carries the note of a set-aside copy: %s", note)
		}
		f.apply(t, state.ConfirmCreate{ID: vol2, Epoch: f.s.Volume(vol2).Epoch})
		if f.s.Volume(vol2).Adopt != "" {
			t.Error("a volume in use would be given back")
		}
	})
	t.Run("and given up", func(t *testing.T) {
		a, host, f := begin(t)
		must(t, a.do(ctx, Action{StepCreate, vol2}))
		f.apply(t, state.AbortCreate{ID: vol2, Epoch: f.s.Volume(vol2).Epoch, Reason: "late"})
		got, err := a.observe(ctx, true)
		must(t, err)
		acts := Diff(f.s, got, self, func(volume.ID) bool { return false })
		if !slices.Equal(acts, []Action{{StepGiveBack, vol2}}) {
			t.Fatalf("actions: %v", acts)
		}
		must(t, a.do(ctx, acts[0]))
		if exists(t, host, to) || !exists(t, host, from) {
			t.Error("it was not given back")
		}
	})
	t.Run("and given up, its name taken", func(t *testing.T) {
		a, host, f := begin(t)
		must(t, a.do(ctx, Action{StepCreate, vol2}), host.CreateFilesystem(ctx, from, nil))
		f.apply(t, state.AbortCreate{ID: vol2, Epoch: f.s.Volume(vol2).Epoch, Reason: "late"})
		must(t, a.do(ctx, Action{StepGiveBack, vol2}))
		if next := from[:len(from)-1] + "2"; exists(t, host, to) || !exists(t, host, next) {
			t.Error("it was not given back")
		}
	})
	t.Run("while it is destroyed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, host, f := begin(t)
			// Whoever destroys it looked before there was anybody who wants it.
			unlock, err := a.locks.lock(ctx, vol1)
			must(t, err)
			done := make(chan error)
			go func() { done <- a.do(ctx, Action{StepCreate, vol2}) }()
			synctest.Wait()
			must(t, host.Destroy(ctx, from))
			unlock()
			must(t, <-done)
			if len(f.proposed) != 1 || exists(t, host, to) {
				t.Errorf("proposed: %v", f.proposed)
			}
		})
	})
	t.Run("and given up meanwhile", func(t *testing.T) {
		a, host, f := begin(t)
		was := f.s.Volume(vol2)
		f.apply(t, state.AbortCreate{ID: vol2, Epoch: was.Epoch, Reason: "late"})
		must(t, a.adopt(ctx, was, nil))
		if exists(t, host, to) || !exists(t, host, from) {
			t.Error("a volume that was given up took it")
		}
	})
	t.Run("and not there", func(t *testing.T) {
		a, host, f := begin(t)
		must(t, host.Rename(ctx, from, from+"x"), a.do(ctx, Action{StepCreate, vol2}))
		if len(f.proposed) != 1 || exists(t, host, to) {
			t.Fatalf("proposed: %v", f.proposed)
		}
		if _, ok := f.proposed[0].(state.AbortCreate); !ok {
			t.Errorf("proposed: %+v", f.proposed[0])
		}
	})
}
