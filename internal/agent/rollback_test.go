package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// free are doors of volumes that nobody else has mounted.
type free struct{ doors }

func (free) Unused(string, string) error { return nil }

// TestRollbackStruck: the cluster has agreed to a rollback, and the primary falls at any
// command of its mount, before or after that has done its work. It is never mounted with what
// was undone, all of that is aside in the end, and what is written on the line stays.
func TestRollbackStruck(t *testing.T) {
	for _, blow := range []string{failing, killed, powerless} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, after its work %v", blow, after), func(t *testing.T) {
				var ops []string
				for nth, op := 1, ""; ; nth++ {
					if op = rollbackStruck(t, nth, after, blow); op == "" || t.Failed() {
						break
					}
					ops = append(ops, op)
				}
				// Without these it was struck somewhere else.
				for _, op := range []string{"clone", "promote", "rename", "set", "mount"} {
					if !slices.Contains(ops, op) {
						t.Errorf("struck at %v, never at %q", ops, op)
					}
				}
			})
		}
	}
}

// rollbackStruck is one history of TestRollbackStruck, which says at which command it was
// struck; "": there is no nth one.
func rollbackStruck(t *testing.T, nth int, after bool, blow string) (struck string) {
	t.Helper()
	ctx := t.Context()
	_, host, f, _ := quiet(t)
	layout := Layout{Pool: "tank", MountBase: "/v"}
	name := layout.Dataset(vol1)
	before, final := rolledBack(t, host, f, layout)

	start := func() *Agent {
		repl := replicate.New(replicate.Config{Node: self, Root: layout.Root(), Pool: host})
		a := New(Config{Self: self, Layout: layout, Cluster: f, ZFS: host, Files: free{}, Use: books{lonely{}}, Repl: repl})
		close(a.fresh)
		return a
	}
	bad := func(format string, args ...any) {
		t.Helper()
		t.Errorf("struck at command %d (%s), after its work %v: "+format, append([]any{nth, struck, after}, args...)...)
	}
	read := func(ds, file string) string {
		got, err := host.ReadFile(ds, file)
		if err != nil {
			return "none"
		}
		return string(got)
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
	_, err := start().Mount(ctx, vol1, "m")
	remove()
	bury()
	if struck == "" {
		must(t, err)
	}
	if len(host.Mounts()) > 0 && (read(name, "f") != "one" || read(name, "tail") != "none") {
		bad("it is mounted with what was undone")
	}

	again := start()
	must(t, again.do(ctx, Action{Do: StepPromote, Volume: vol1}))
	for range 2 { // the second has nothing to do
		if _, err := again.Mount(ctx, vol1, "m"); err != nil {
			bad("mounted again: %v", err)
		}
	}
	must(t, host.WriteFile(name, "h", []byte("new")))
	// It was taken from this node before there is a snapshot of that, and given back.
	v := f.s.Volume(vol1)
	must(t, host.Unmount(ctx, name))
	f.apply(t, state.BeginElection{ID: vol1, Epoch: v.Epoch, Fenced: true})
	f.apply(t, state.Promote{ID: vol1, Epoch: v.Epoch.Next(), To: self, Start: v.Line().Start()})
	if _, err := start().Mount(ctx, vol1, "m"); err != nil {
		bad("mounted as the primary once more: %v", err)
	}
	if read(name, "f") != "one" || read(name, "tail") != "none" || read(name, "h") != "new" {
		bad("the volume holds f %q, tail %q, and of what was written since %q", read(name, "f"), read(name, "tail"), read(name, "h"))
	}
	snaps, err := host.Snapshots(ctx, name, false)
	must(t, err)
	if len(snaps) == 0 || snaps[len(snaps)-1].GUID != before {
		bad("its snapshots are %v", snaps)
	}
	asides, err := host.Datasets(ctx, layout.Aside())
	must(t, err)
	if len(asides) != 2 {
		bad("%d copies are aside, want one", len(asides)-1)
		return struck
	}
	ds := asides[1].Name
	if snaps, err = host.Snapshots(ctx, ds, false); err != nil || len(snaps) == 0 || snaps[len(snaps)-1].GUID != final || read(ds, "f") != "two" || read(ds, "tail") != "undone" {
		bad("set aside is f %q, tail %q, with snapshots %v, %v", read(ds, "f"), read(ds, "tail"), snaps, err)
	}
	if x, ok := replicate.ParseAside(asides[1], layout.Aside()); !ok || x.Reason != replicate.Undone(v.Line()) {
		bad("it says that it was set aside because %q", x.Reason)
	}
	return struck
}

// A primary that went back goes on though the snapshot is removed before there is another one,
// as it may be where there is no replica.
func TestRollbackWithoutSnapshot(t *testing.T) {
	ctx := t.Context()
	_, host, f, _ := quiet(t)
	layout := Layout{Pool: "tank", MountBase: "/v"}
	name := layout.Dataset(vol1)
	rolledBack(t, host, f, layout)
	mount := func() {
		t.Helper()
		a := New(Config{Self: self, Layout: layout, Cluster: f, ZFS: host, Files: free{}, Use: books{lonely{}},
			Repl: replicate.New(replicate.Config{Node: self, Root: layout.Root(), Pool: host})})
		close(a.fresh)
		_, err := a.Mount(ctx, vol1, "m")
		must(t, err)
	}
	mount()
	asides, err := host.Datasets(ctx, layout.Aside())
	must(t, err, host.WriteFile(name, "h", []byte("new")), host.Destroy(ctx, asides[1].Name),
		host.DestroySnapshots(ctx, name, []string{"before"}), host.Unmount(ctx, name))
	v := f.s.Volume(vol1)
	start := v.Line().Start()
	start.Taken = start.Taken.In(time.FixedZone("", 19800)) // as one is that was read again
	f.apply(t, state.BeginElection{ID: vol1, Epoch: v.Epoch, Fenced: true})
	f.apply(t, state.Promote{ID: vol1, Epoch: v.Epoch.Next(), To: self, Start: start})
	mount()
	if got, err := host.ReadFile(name, "h"); err != nil || string(got) != "new" {
		t.Errorf("what was written since is %q, %v", got, err)
	}
}

// A primary that finds the snapshot destroyed when it is to go back, and all that was to be undone,
// has the rollback called off, and goes on with what it has. One that lacks something does not.
func TestRollbackCalledOff(t *testing.T) {
	for _, lost := range []bool{false, true} {
		ctx := t.Context()
		_, host, f, _ := quiet(t)
		layout := Layout{Pool: "tank", MountBase: "/v"}
		name := layout.Dataset(vol1)
		rolledBack(t, host, f, layout)
		mount := func() error {
			a := New(Config{Self: self, Layout: layout, Cluster: f, ZFS: host, Files: free{}, Use: books{lonely{}},
				Repl: replicate.New(replicate.Config{Node: self, Root: layout.Root(), Pool: host})})
			close(a.fresh)
			_, err := a.Mount(ctx, vol1, "m")
			return err
		}
		must(t, host.DestroySnapshots(ctx, name, []string{"before"}))
		if lost {
			must(t, host.DestroySnapshots(ctx, name, []string{volume.Position{Epoch: 1, Seq: 2}.SnapshotName()}))
		}
		if err := mount(); err == nil || len(host.Mounts()) > 0 {
			t.Fatalf("it is mounted: %v", err)
		}
		off := state.CallOffRollback{ID: vol1, Epoch: 2, Attempt: "a"}
		if lost {
			if len(f.proposed) != 0 {
				t.Errorf("without its last snapshot it proposed %+v", f.proposed)
			}
			continue
		}
		if len(f.proposed) != 1 || f.proposed[0] != off {
			t.Fatalf("proposed %+v", f.proposed)
		}
		f.apply(t, off)
		must(t, mount())
		if got, err := host.ReadFile(name, "tail"); err != nil || string(got) != "undone" {
			t.Errorf("what was to be undone is %q, %v", got, err)
		}
		if asides, err := host.Datasets(ctx, layout.Aside()); err != nil || len(asides) != 1 {
			t.Errorf("set aside: %v, %v", asides, err)
		}
	}
}

// rolledBack is a volume with a snapshot "before", and more after it, whose rollback was just
// committed. It returns the guids of that snapshot and of the newest one that is undone.
func rolledBack(t *testing.T, host *zfsfake.Host, f *fixed, layout Layout) (before, final uint64) {
	t.Helper()
	ctx, name := t.Context(), layout.Dataset(vol1)
	first, last := volume.Position{Epoch: 1, Seq: 1}, volume.Position{Epoch: 1, Seq: 2}
	must(t, host.CreateFilesystem(ctx, name, map[string]string{
		"readonly": "on", "canmount": "noauto", "mountpoint": layout.Mountpoint(vol1), propVolume: string(vol1), propEpoch: volume.Epoch(1).String()}),
		host.Mount(ctx, name, true), host.WriteFile(name, "f", []byte("one")), host.Snapshot(ctx, []string{name + "@" + first.SnapshotName()}, nil),
		host.Snapshot(ctx, []string{name + "@before"}, nil),
		host.WriteFile(name, "f", []byte("two")), host.WriteFile(name, "tail", []byte("undone")), host.Snapshot(ctx, []string{name + "@" + last.SnapshotName()}, nil),
		host.Unmount(ctx, name))
	snaps, err := host.Snapshots(ctx, name, false)
	must(t, err)
	before, final = snaps[1].GUID, snaps[2].GUID
	last.GUID, last.Taken = final, snaps[2].Creation
	f.apply(t, state.CreateVolume{ID: vol1, Name: "pg", Spec: volume.DefaultSpec(), Placement: volume.Placement{Primary: self, Local: []volume.NodeID{other}}})
	f.apply(t, state.ConfirmCreate{ID: vol1, Epoch: 1})
	f.apply(t, state.BeginRollback{ID: vol1, Epoch: 1, Attempt: "a", To: state.RollbackTo{Snapshot: "before", GUID: before}})
	f.apply(t, state.CommitRollback{ID: vol1, Epoch: 1, Attempt: "a", Final: last})
	return before, final
}

// pinned is a replication engine that takes snapshots for a rollback.
type pinned struct {
	held
	there bool // the snapshot to go back to is
	goes  bool // it is destroyed while the volume is being freed
	full  bool // the pool has no room to go back
	links func(asked int) []volume.LinkStatus
	asked int
	log   []string
}

func (p *pinned) Links(volume.ID) []volume.LinkStatus {
	if p.asked++; p.links == nil {
		return nil
	}
	return p.links(p.asked)
}

func (p *pinned) Pin(context.Context, volume.ID, uint64) (volume.Position, error) {
	if !p.there || p.goes && len(p.log) > 1 {
		return volume.Position{}, volume.Errorf(volume.CodeNotFound, "no such snapshot")
	}
	if p.full {
		return volume.Position{}, volume.Errorf(volume.CodeRefused, "the pool has nothing free")
	}
	p.log = append(p.log, "pin")
	return volume.Position{Epoch: 1, Seq: 1, GUID: 1}, nil
}
func (p *pinned) Unpin(volume.ID) { p.log = append(p.log, "unpin") }

func (p *pinned) Flush(_ context.Context, _ volume.ID, to volume.NodeID) (volume.Position, error) {
	p.log = append(p.log, "snapshot"+string(to))
	return volume.Position{Epoch: 1, Seq: 2, GUID: 2}, nil
}

// A volume goes back once it is free, and only after a snapshot of what is undone; without
// the snapshot to go back to, nothing is stopped.
func TestReleaseForRollback(t *testing.T) {
	for name, c := range map[string]struct {
		there bool
		goes  bool
		full  bool
		taken bool // from this node, while it stops the containers
		looks int
		log   string
		want  string // the reason of the refusal; "": it goes
	}{
		"free":          {there: true, log: "pin stop snapshot pin"},
		"free soon":     {there: true, looks: 2, log: "pin stop snapshot pin"},
		"destroyed":     {there: true, goes: true, log: "pin stop snapshot", want: "snapshot before is not on its primary"},
		"elected":       {there: true, taken: true, log: "pin stop snapshot pin unpin"},
		"held on to":    {there: true, looks: 1 << 20, log: "pin stop", want: "a mount namespace shows it"},
		"no room":       {there: true, full: true, log: "", want: "on its primary me the pool has nothing free"},
		"without it":    {log: "", want: "snapshot before is not on its primary"},
		"not even free": {looks: 1 << 20, log: "", want: "snapshot before is not on its primary"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				_, host, f, _ := quiet(t)
				layout := Layout{Pool: "tank", MountBase: "/v"}
				must(t, host.CreateFilesystem(ctx, layout.Dataset(vol1), nil))
				f.apply(t, state.CreateVolume{ID: vol1, Name: "pg", Spec: volume.DefaultSpec(), Placement: volume.Placement{Primary: self, Local: []volume.NodeID{other}}})
				f.apply(t, state.ConfirmCreate{ID: vol1, Epoch: 1})
				f.apply(t, state.BeginRollback{ID: vol1, Epoch: 1, Attempt: "a", To: state.RollbackTo{Snapshot: "before", GUID: 1}})
				p := &pinned{held: held{looks: c.looks}, there: c.there, goes: c.goes, full: c.full}
				a := New(Config{
					Self: self, Layout: layout, Cluster: f, ZFS: host, Files: p, Use: lonely{}, Repl: p, Log: slog.New(slog.DiscardHandler),
					PrepareStop: func(context.Context, volume.ID) error { return errors.New("nothing is copied for a rollback") },
					StopFollowing: func(context.Context, volume.ID) (Stopped, error) {
						p.log = append(p.log, "stop")
						if c.taken {
							f.apply(t, state.BeginElection{ID: vol1, Epoch: 1, Fenced: true})
						}
						return Stopped{}, nil
					},
				})
				must(t, a.release(ctx, vol1))
				if got := strings.Join(p.log, " "); got != c.log {
					t.Errorf("it did %q, want %q", got, c.log)
				}
				if len(f.proposed) != 1 {
					t.Fatalf("proposed %+v, want one command", f.proposed)
				}
				switch got := f.proposed[0].(type) {
				case state.CommitRollback:
					if c.want != "" || got.Final.GUID != 2 || got.Base.GUID != 1 || got.Attempt != "a" {
						t.Errorf("it went by %+v, want a refusal: %q", got, c.want)
					}
				case state.AbortHandoff:
					if c.want == "" || !strings.Contains(got.Reason, c.want) {
						t.Errorf("refused: %s, want %q", got.Reason, c.want)
					}
				default:
					t.Errorf("proposed %+v", got)
				}
			})
		})
	}
}

// Before a rollback is committed the replicas that are up to date get what it undoes, if that
// does not take long; who has it is told.
func TestKeptBy(t *testing.T) {
	last := volume.Position{Epoch: 1, Seq: 2, GUID: 2}
	had := volume.Position{Epoch: 1, Seq: 1, GUID: 1}
	link := func(node volume.NodeID, state volume.LinkState, acked volume.Position, behind time.Duration, err string) volume.LinkStatus {
		return volume.LinkStatus{Replica: node, State: state, Acked: acked, CompleteAsOf: time.Now().Add(-behind), Error: err}
	}
	for name, c := range map[string]struct {
		links func(asked int) []volume.LinkStatus
		limit time.Duration
		want  []volume.NodeID
		took  time.Duration // at least, and not twice that
	}{
		"no replicas": {links: func(int) []volume.LinkStatus { return nil }},
		"in sync, and soon there": {links: func(asked int) []volume.LinkStatus {
			if asked < 5 {
				return []volume.LinkStatus{link("b", volume.LinkInSync, had, 0, "")}
			}
			return []volume.LinkStatus{link("b", volume.LinkInSync, last, 0, "")}
		}, want: []volume.NodeID{"b"}, took: backSoon},
		"one of two": {links: func(int) []volume.LinkStatus {
			return []volume.LinkStatus{link("b", volume.LinkSending, last, 0, ""), link("c", volume.LinkConnecting, had, time.Hour, "away")}
		}, want: []volume.NodeID{"b"}},
		"never there": {links: func(int) []volume.LinkStatus {
			return []volume.LinkStatus{link("b", volume.LinkSending, had, time.Second, "")}
		}, took: keptPatience},
		"never there, and clients wait": {links: func(int) []volume.LinkStatus {
			return []volume.LinkStatus{link("b", volume.LinkInSync, had, 0, "")}
		}, limit: time.Second, took: time.Second},
		"far behind": {links: func(int) []volume.LinkStatus {
			return []volume.LinkStatus{link("b", volume.LinkSending, had, time.Hour, "")}
		}},
		"failing": {links: func(int) []volume.LinkStatus {
			return []volume.LinkStatus{link("b", volume.LinkInSync, had, 0, "cut")}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := New(Config{Self: self, Repl: &pinned{links: c.links}})
				began, limit := time.Now(), time.Time{}
				if c.limit > 0 {
					limit = began.Add(c.limit)
				}
				got := a.keptBy(t.Context(), vol1, last, a.upToDate(vol1), limit)
				if took := time.Since(began); !slices.Equal(got, c.want) || took < c.took || took > 2*c.took+backPause*5 && c.took > 0 || c.took == 0 && took > 0 {
					t.Errorf("after %s: %v, want %v after %s", took, got, c.want, c.took)
				}
			})
		})
	}
}
