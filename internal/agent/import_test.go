package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

func (i *idle) Users(mountpoint string) (users []string, err error) {
	for _, m := range i.host.Mounts() {
		if m.Path == mountpoint && m.InUse {
			users = append(users, "process 7 (sh)")
		}
	}
	return users, nil
}

func (i *idle) Positions() map[volume.ID]volume.Position { return nil }
func (i *idle) Links(volume.ID) []volume.LinkStatus      { return nil }

func TestMayImport(t *testing.T) {
	for name, why := range map[string]string{
		"tank/pgdata": "", "tank/a/b": "", "tank/flocker2": "", "tank/flocker-mine": "",
		"tank": "a whole pool", "pool/a": "not in tank", "tank/flocker": "flocker's own", "tank/flocker/00000000000000a1": "flocker's own",
		"tank/flocker-trash/x": "flocker's own", "tank/flocker-aside/x": "flocker's own", "tank/flocker-restore": "flocker's own",
		"/tank/a": "not the name", "tank/": "not the name", "tank/a@b": "not the name", "": "not the name", "tank/-rf": "not the name", "tank//a": "not the name",
	} {
		err := Layout{Pool: "tank"}.MayImport(name)
		if (err == nil) != (why == "") || err != nil && !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %v, want %q", name, err, why)
		}
	}
}

// Each reason alone is one.
func TestImportRefusal(t *testing.T) {
	plain := func() Importable {
		return Importable{
			Dataset:   zfs.Dataset{Name: "tank/a", Encryption: "off", Mounted: true, Mountpoint: "/srv/a"},
			Snapshots: []zfs.Snapshot{{Dataset: "tank/a", Name: "monday"}, {Dataset: "tank/a", Name: "auto-hourly"}},
			Props:     map[string]zfs.Property{"sharenfs": {Value: "off"}, "sharesmb": {Value: "off"}, "zoned": {Value: "off"}},
		}
	}
	for _, tt := range []struct {
		why  string // "": it may be
		make func(*Importable)
	}{
		{"", func(*Importable) {}},
		{"", func(f *Importable) { f.Dataset.Mounted, f.Dataset.Mountpoint = false, "none" }},
		{"", func(f *Importable) { f.Bookmarks = []zfs.Bookmark{{Dataset: "tank/a", Name: "mine"}} }},
		{"", func(f *Importable) { f.BootFS = "tank/root" }},
		{"", func(f *Importable) {
			f.Dataset.User = map[string]string{propImport: "{}", "flocker:aside": "", "my:own": "x"}
		}},
		{"", func(f *Importable) { f.Snapshots, f.Props = nil, nil }},
		{"is a block device", func(f *Importable) { f.Dataset.Volume = true }},
		{"is encrypted", func(f *Importable) { f.Dataset.Encryption = "aes-256-gcm" }},
		{"is not encrypted, and the volumes here are", func(f *Importable) { f.Encrypted = true }},
		{"has other datasets in it: tank/a/b, tank/a/c, tank/a/d and 1 more", func(f *Importable) { f.Below = []string{"tank/a/b", "tank/a/c", "tank/a/d", "tank/a/e"} }},
		{"was a volume of flocker", func(f *Importable) { f.Dataset.User = map[string]string{propVolume: string(vol1)} }},
		{"is a clone of tank/o@x", func(f *Importable) { f.Dataset.Origin = "tank/o@x" }},
		{"has a clone, tank/c", func(f *Importable) { f.Snapshots[1].Clones = []string{"tank/c"} }},
		{"called like one of flocker's", func(f *Importable) { f.Snapshots[0].Name = volume.Position{Epoch: 1, Seq: 1}.SnapshotName() }},
		{"called like one of flocker's", func(f *Importable) { f.Snapshots[1].Name = "auto-1d-20261120T000000Z" }},
		{"received in part", func(f *Importable) { f.Dataset.ResumeToken = "1-abc" }},
		{"zoned", func(f *Importable) { f.Props["zoned"] = zfs.Property{Value: "on"} }},
		{"shared with other machines", func(f *Importable) { f.Props["sharenfs"] = zfs.Property{Value: "on"} }},
		{"shared with other machines", func(f *Importable) { f.Props["sharesmb"] = zfs.Property{Value: "name=x"} }},
		{"flocker, as flocker:line, flocker:released says", func(f *Importable) { f.Dataset.User = map[string]string{"flocker:released": "1", propLine: "x"} }},
		{"a snapshot auto-hourly with a hold", func(f *Importable) { f.Snapshots[1].UserRefs = 1 }},
		{"a bookmark #flk-1", func(f *Importable) {
			f.Bookmarks = []zfs.Bookmark{{Dataset: "tank/a", Name: "mine"}, {Dataset: "tank/a", Name: "flk-1"}}
		}},
		{"boots from", func(f *Importable) { f.BootFS = "tank/a" }},
		{"boots from", func(f *Importable) { f.Dataset.Mounted, f.Dataset.Mountpoint = false, "/" }},
		{"delegated: user alice rollback", func(f *Importable) { f.Delegated = []string{"user alice rollback"} }},
		{"/etc/fstab", func(f *Importable) { f.Dataset.Mountpoint = "legacy" }},
		{"mountpoint=legacy", func(f *Importable) { f.Dataset.Mounted, f.Dataset.Mountpoint = false, "legacy" }},
		{"will be used again by its old name or path: /etc/fstab, line 3", func(f *Importable) { f.Refers = []string{"/etc/fstab, line 3"} }},
		{"in use by process 7 (sh)", func(f *Importable) { f.Users = []string{"process 7 (sh)"} }},
	} {
		f := plain()
		tt.make(&f)
		err := f.Refusal()
		if (err == nil) != (tt.why == "") || err != nil && (!strings.Contains(err.Error(), tt.why) || volume.CodeOf(err) != volume.CodeRefused) {
			t.Errorf("got %v, want %q", err, tt.why)
		}
		var e *volume.Error
		if errors.As(err, &e) && e.Hint == "" {
			t.Errorf("%v: it does not say what to do", err)
		}
	}
}

func TestImportOptions(t *testing.T) {
	f := Importable{Dataset: zfs.Dataset{Name: "tank/a", Mounted: true, Mountpoint: "/srv/a", RefQuota: 1 << 30}, Props: map[string]zfs.Property{
		"recordsize": {Value: "16384", Own: true}, "compression": {Value: "zstd-3", Own: true}, "atime": {Value: "on"},
		"sync": {Value: "disabled", Own: true}, "quota": {Value: "4096", Own: true}, "refquota": {Value: "1073741824", Own: true}, "reservation": {Value: "0", Own: true},
	}}
	want := map[string]string{"zfs.recordsize": "16K", "zfs.compression": "zstd", "size": "1073741824"}
	if got := f.Options(); !maps.Equal(got, want) {
		t.Errorf("options %v, want %v", got, want)
	}
	steps := []string{"unmount it from /srv/a", "rename it to tank/flocker/ID", "clear quota=4096",
		"leave sync=disabled as it is, on this node alone: volumes cannot have it, and the replicas will not",
		"set readonly=on canmount=noauto sharenfs=off sharesmb=off mountpoint=/v/ID, as of every volume; its primary mounts it writable"}
	if got := f.Steps(Layout{Pool: "tank", MountBase: "/v"}); !slices.Equal(got, steps) {
		t.Errorf("steps %q", got)
	}
	// Own stays, and so does what is the same above.
	f.Props["acltype"], f.Props["setuid"], f.Props["copies"] = zfs.Property{Value: "posix"}, zfs.Property{Value: "off"}, zfs.Property{Value: "1"}
	f.Above = map[string]zfs.Property{"recordsize": {Value: "131072"}, "atime": {Value: "off"}, "acltype": {Value: "off"}, "setuid": {Value: "on"}, "copies": {Value: "1"}}
	steps = slices.Insert(steps, 4, "inherit from tank/flocker what it inherits now from where it is, where no option says otherwise: acltype=posix becomes off, atime=on becomes off, setuid=off becomes on")
	if got := f.Steps(Layout{Pool: "tank", MountBase: "/v"}); !slices.Equal(got, steps) {
		t.Errorf("steps %q", got)
	}
	f.Dataset.RefQuota, f.Props["refquota"] = 4096, zfs.Property{Value: "4096", Own: true}
	steps[2] = "clear refquota=4096, quota=4096"
	if got := f.Steps(Layout{Pool: "tank", MountBase: "/v"}); !slices.Equal(got, steps) {
		t.Errorf("steps %q", got)
	}
	f.Dataset.Mounted, f.Props = false, nil
	if got := f.Options(); len(got) != 0 {
		t.Errorf("options %v: a volume cannot be that small", got)
	}
	if got := f.Steps(Layout{Pool: "tank", MountBase: "/v"}); len(got) != 2 {
		t.Errorf("steps %q", got)
	}
}

// importing is an agent with a dataset of somebody's, mounted and with a snapshot, of which a
// volume is to be made.
func importing(t *testing.T) (a *Agent, host *zfsfake.Host, f *fixed, i *idle) {
	t.Helper()
	ctx := context.Background()
	a, host, f, i = quiet(t)
	must(t, host.CreateFilesystem(ctx, "tank/pgdata", map[string]string{"mountpoint": "/srv/pgdata", "recordsize": "16384", "quota": "1073741824"}),
		host.Mount(ctx, "tank/pgdata", false), host.WriteFile("tank/pgdata", "f", []byte("before")), host.Snapshot(ctx, []string{"tank/pgdata@monday"}, nil),
		host.WriteFile("tank/pgdata", "f", []byte("now")), host.Sync("tank/pgdata"))
	spec := volume.Spec{ZFS: map[string]string{"compression": "lz4", "recordsize": "16K"}}.MakeWhole()
	f.apply(t, state.CreateVolume{ID: vol1, Name: "pg", Spec: spec, Placement: volume.Placement{Primary: self}, Adopt: "tank/pgdata"})
	return a, host, f, i
}

// like is what matters of a dataset, to compare.
func like(t *testing.T, host *zfsfake.Host, name string) string {
	t.Helper()
	ctx := context.Background()
	d, err := host.Dataset(ctx, name)
	must(t, err)
	props, err := host.Properties(ctx, name, importProps())
	must(t, err)
	for _, p := range append(slices.Clone(sized), "canmount") { // which cannot be inherited
		if v := props[p]; v.Value == "0" || v.Value == "on" {
			props[p] = zfs.Property{Value: v.Value}
		}
	}
	data, err := host.ReadFile(name, "f")
	must(t, err)
	old, err := host.ReadFile(name+"@monday", "f")
	must(t, err)
	text, err := json.Marshal([]any{d.GUID, d.Mounted, d.Writable, d.User, props, string(data), string(old)})
	must(t, err)
	return string(text)
}

func whole(t *testing.T, host *zfsfake.Host, f *fixed) {
	t.Helper()
	to := "tank/flocker/" + string(vol1)
	d, err := host.Dataset(context.Background(), to)
	must(t, err)
	if d.Mounted || !d.ReadOnly || d.CanMount != "noauto" || d.Mountpoint != "/v/"+string(vol1) || d.User[propVolume] != string(vol1) ||
		d.User[propEpoch] != f.s.Volume(vol1).Epoch.String() || d.User[volume.Subdir] != "." {
		t.Errorf("the volume: %+v", d)
	}
	props, err := host.Properties(context.Background(), to, []string{"quota", "compression", "recordsize"})
	must(t, err)
	if props["quota"].Value != "0" || props["compression"].Value != "lz4" || props["recordsize"].Value != "16384" {
		t.Errorf("its properties: %+v", props)
	}
	for name, want := range map[string]string{to: "now", to + "@monday": "before"} {
		if got, err := host.ReadFile(name, "f"); string(got) != want || err != nil {
			t.Errorf("%s has %q, %v", name, got, err)
		}
	}
}

// Cut off before or after any command, flockd or the whole machine, it comes to the same end: a
// volume, or, given up then, the dataset that it was.
func TestImportCutShort(t *testing.T) {
	ctx := context.Background()
	create := Action{StepCreate, vol1}
	tried := 0
	for _, op := range []string{"datasets", "dataset", "snapshots", "properties", "set", "inherit", "unmount", "mount", "rename", "bookmarks", "delegated", "pool"} {
		for nth := 1; ; nth++ {
			cut := false
			for _, how := range []string{"fails", "fails afterwards", "is killed", "is killed afterwards", "loses power", "loses power afterwards"} {
				for _, given := range []bool{false, true} {
					what := fmt.Sprintf("%s %d %s, given up: %v", op, nth, how, given)
					a, host, f, i := importing(t)
					was := like(t, host, "tank/pgdata")
					hit := false
					remove := cutAt(host, op, nth, how, &hit)
					first := a.do(ctx, create)
					remove()
					if !hit {
						continue
					}
					cut = true
					tried++
					boot := strings.HasPrefix(how, "loses")
					if boot {
						mountAll(t, host)
					}
					// Where the dataset cannot be renamed it would only be unmounted again and again.
					refused := op == "rename" && (how == "fails" || how == "loses power")
					if ended(f) != refused {
						t.Errorf("%s: %v, and it has ended already: %+v", what, first, f.proposed)
						continue
					}
					a = restarted(t, a, host, f, i)
					if given || refused {
						f.apply(t, state.AbortCreate{ID: vol1, Epoch: f.s.Volume(vol1).Epoch, Reason: "given up"})
						step(t, a, f)
						see(t, a)
						if exists(t, host, "tank/flocker/"+string(vol1)) {
							t.Errorf("%s: there still is a volume", what)
							continue
						}
						if kept(t, a) {
							t.Errorf("%s: it is what it was, and may not be forgotten", what)
						}
						if got := like(t, host, "tank/pgdata"); got != was {
							t.Errorf("%s: it was\n%s, and is\n%s", what, was, got)
						}
						continue
					}
					step(t, a, f)
					if c, ok := last(f).(state.ConfirmCreate); !ok || c.ID != vol1 {
						t.Errorf("%s: proposed %+v", what, f.proposed)
						continue
					}
					whole(t, host, f)
				}
			}
			if !cut {
				break
			}
		}
	}
	if tried < 60 {
		t.Errorf("only %d cuts were tried", tried)
	}
}

// cutAt has flockd, or its machine, come to grief at a command, before it is done or afterwards.
func cutAt(host *zfsfake.Host, op string, nth int, how string, hit *bool) (remove func()) {
	dead := false
	one := host.Inject(zfsfake.Rule{Op: op, Nth: nth, Times: 1, After: strings.HasSuffix(how, "afterwards"), Do: func(context.Context, string, string) error {
		*hit, dead = true, strings.HasPrefix(how, "is killed")
		if strings.HasPrefix(how, "loses") {
			host.Crash()
		}
		return zfsfake.ErrInjected
	}})
	var all []func() // who is killed does nothing any more
	for _, op := range []string{"datasets", "dataset", "snapshots", "properties", "set", "inherit", "unmount", "mount", "rename", "bookmarks", "delegated", "pool"} {
		all = append(all, host.Inject(zfsfake.Rule{Op: op, Do: func(context.Context, string, string) error {
			if dead {
				return zfsfake.ErrInjected
			}
			return nil
		}}))
	}
	return func() {
		one()
		for _, remove := range all {
			remove()
		}
	}
}

// kept says that this node's report keeps its volume from being forgotten.
func kept(t *testing.T, a *Agent) bool {
	t.Helper()
	for _, s := range a.Report().Volumes {
		if s.Volume == vol1 {
			return s.Exists
		}
	}
	t.Fatal("it does not report the volume")
	return false
}

// see is a look of the loop.
func see(t *testing.T, a *Agent) {
	t.Helper()
	got, err := a.observe(context.Background(), true)
	must(t, err)
	a.look(context.Background(), got, nil, nil)
}

// What gives a volume up that is a dataset already: it is not forgotten before the dataset is what
// it was, though the last look is older than the rename. Cut off anywhere, flockd gives it back.
func TestImportGiveBackCutShort(t *testing.T) {
	ctx := context.Background()
	tried := 0
	for _, op := range []string{"dataset", "set", "inherit", "mount", "rename"} {
		for nth := 1; ; nth++ {
			cut := false
			for _, how := range []string{"fails", "fails afterwards", "is killed", "is killed afterwards", "loses power", "loses power afterwards"} {
				what := fmt.Sprintf("%s %d %s", op, nth, how)
				a, host, f, i := importing(t)
				was := like(t, host, "tank/pgdata")
				see(t, a)
				must(t, a.do(ctx, Action{StepCreate, vol1}))
				f.apply(t, state.AbortCreate{ID: vol1, Epoch: f.s.Volume(vol1).Epoch, Reason: "given up"})
				hit := false
				remove := cutAt(host, op, nth, how, &hit)
				err := a.do(ctx, Action{StepGiveBack, vol1})
				remove()
				if !hit {
					continue
				}
				if cut, tried = true, tried+1; err == nil || !kept(t, a) {
					t.Errorf("%s: %v, and it may be forgotten: %v", what, err, !kept(t, a))
				}
				if strings.HasPrefix(how, "loses") {
					mountAll(t, host)
				}
				a = restarted(t, a, host, f, i)
				see(t, a)
				if !kept(t, a) {
					t.Errorf("%s: it may be forgotten by the next flockd", what)
				}
				step(t, a, f)
				see(t, a)
				if kept(t, a) {
					t.Errorf("%s: it is what it was, and may not be forgotten", what)
				}
				if got := like(t, host, "tank/pgdata"); got != was {
					t.Errorf("%s: it was\n%s, and is\n%s", what, was, got)
				}
			}
			if !cut {
				break
			}
		}
	}
	if tried < 60 {
		t.Errorf("only %d cuts were tried", tried)
	}
}

// A volume that is given up while its dataset is being renamed, or when it is but cannot be like a
// volume's, is not forgotten, whatever the last look has shown.
func TestImportNotForgotten(t *testing.T) {
	ctx := context.Background()
	for name, spoil := range map[string]func(*testing.T, *zfsfake.Host, *fixed){
		"refused after the rename": func(_ *testing.T, host *zfsfake.Host, _ *fixed) {
			host.Fail("set", "tank/flocker/"+string(vol1), 2, zfs.ErrNoSpace)
		},
		"given up at the rename": func(t *testing.T, host *zfsfake.Host, f *fixed) {
			host.Inject(zfsfake.Rule{Op: "rename", Times: 1, Do: func(context.Context, string, string) error {
				f.apply(t, state.AbortCreate{ID: vol1, Epoch: f.s.Volume(vol1).Epoch, Reason: "given up"})
				return nil
			}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, host, f, _ := importing(t)
			was := like(t, host, "tank/pgdata")
			see(t, a)
			spoil(t, host, f)
			must(t, a.do(ctx, Action{StepCreate, vol1}))
			if c, ok := last(f).(state.AbortCreate); ok {
				f.apply(t, c)
			}
			if f.s.Volume(vol1).Phase != state.PhasePurged || !exists(t, host, "tank/flocker/"+string(vol1)) {
				t.Fatalf("proposed %+v", f.proposed)
			}
			if !kept(t, a) {
				t.Error("it may be forgotten")
			}
			step(t, a, f)
			if kept(t, a) {
				see(t, a)
			}
			if kept(t, a) {
				t.Error("it may not be forgotten")
			}
			if got := like(t, host, "tank/pgdata"); got != was {
				t.Errorf("it was\n%s, and is\n%s", was, got)
			}
		})
	}
}

// Where the pool is gone nothing is found, and nothing is known.
func TestImportGiveBackWithoutPool(t *testing.T) {
	a, host, f, _ := importing(t)
	see(t, a)
	f.apply(t, state.AbortCreate{ID: vol1, Epoch: f.s.Volume(vol1).Epoch, Reason: "given up"})
	remove := host.Fail("dataset", "", 0, zfs.ErrNotFound)
	err := a.do(context.Background(), Action{StepGiveBack, vol1})
	remove()
	if err == nil || !kept(t, a) {
		t.Errorf("%v, and it may be forgotten: %v", err, !kept(t, a))
	}
}

// mountAll is what a boot does.
func mountAll(t *testing.T, host *zfsfake.Host) {
	t.Helper()
	list, err := host.Datasets(context.Background(), "tank")
	must(t, err)
	for _, d := range list {
		if d.CanMount == "on" && strings.HasPrefix(d.Mountpoint, "/") && !d.Mounted {
			must(t, host.Mount(context.Background(), d.Name, false))
		}
	}
}

func ended(f *fixed) bool {
	switch last(f).(type) {
	case state.AbortCreate:
		return true
	}
	return false
}

func last(f *fixed) state.Command {
	if len(f.proposed) == 0 {
		return nil
	}
	return f.proposed[len(f.proposed)-1]
}

// restarted is the next flockd.
func restarted(t *testing.T, a *Agent, host *zfsfake.Host, f *fixed, i *idle) *Agent {
	t.Helper()
	next := New(Config{Self: self, Layout: a.layout, Cluster: f, ZFS: host, Files: i, Use: i.use(), Repl: i, Peers: i, Log: a.log})
	must(t, next.prepare(context.Background()))
	got, err := next.observe(context.Background(), true)
	must(t, err)
	next.suspectLogs(got)
	return next
}

// step does what is to be done until nothing is, as the loop would.
func step(t *testing.T, a *Agent, f *fixed) {
	t.Helper()
	for range 5 {
		got, err := a.observe(context.Background(), true)
		must(t, err)
		acts := Diff(f.s, got, self, func(volume.ID) bool { return false })
		if len(acts) == 0 {
			return
		}
		for _, act := range acts {
			must(t, a.do(context.Background(), act))
		}
		if _, done := last(f).(state.ConfirmCreate); done && f.s.Volume(vol1).Phase == state.PhaseCreating {
			return
		}
	}
	t.Fatal("it comes to no end")
}

// What may not be is found out before anything is changed, also when it came to be since the
// volume was asked for.
func TestImportRefusedLate(t *testing.T) {
	ctx := context.Background()
	for name, tt := range map[string]struct {
		spoil func(host *zfsfake.Host, i *idle) error
		why   string
	}{
		"in use":        {func(host *zfsfake.Host, _ *idle) error { return host.SetInUse("tank/pgdata", true) }, "in use by process 7 (sh)"},
		"in it another": {func(host *zfsfake.Host, _ *idle) error { return host.CreateFilesystem(ctx, "tank/pgdata/x", nil) }, "has other datasets in it: tank/pgdata/x"},
		"a clone of it": {func(host *zfsfake.Host, _ *idle) error {
			return host.Clone(ctx, "tank/pgdata@monday", "tank/test", nil)
		}, "has a clone, tank/test"},
		"held": {func(host *zfsfake.Host, _ *idle) error { return host.Hold(ctx, "zrepl", "tank/pgdata@monday") }, "monday with a hold"},
		"bookmarked": {func(host *zfsfake.Host, _ *idle) error {
			return host.Bookmark(ctx, "tank/pgdata@monday", "tank/pgdata#flk-x")
		}, "a bookmark #flk-x"},
		"delegated": {func(host *zfsfake.Host, _ *idle) error { return host.Allow("tank/pgdata", "user alice rollback") }, "user alice rollback"},
		"booted": {func(host *zfsfake.Host, _ *idle) error {
			host.SetBootFS("tank", "tank/pgdata")
			return nil
		}, "boots from"},
		"in the configuration": {func(_ *zfsfake.Host, i *idle) error {
			i.refers = []string{"/etc/exports, line 1"}
			return nil
		}, "/etc/exports, line 1"},
		"used at the last moment": {func(host *zfsfake.Host, _ *idle) error {
			host.Inject(zfsfake.Rule{Op: "unmount", Times: 1, Do: func(context.Context, string, string) error { return host.SetInUse("tank/pgdata", true) }})
			return nil
		}, "in use by process 7 (sh)"},
		"renamed": {func(host *zfsfake.Host, _ *idle) error {
			return errors.Join(host.Unmount(ctx, "tank/pgdata"), host.Rename(ctx, "tank/pgdata", "tank/other"))
		}, "there is no dataset tank/pgdata on me"},
	} {
		t.Run(name, func(t *testing.T) {
			a, host, f, i := importing(t)
			must(t, tt.spoil(host, i))
			was := ""
			if name != "renamed" {
				was = like(t, host, "tank/pgdata")
			}
			must(t, a.do(ctx, Action{StepCreate, vol1}))
			c, ok := last(f).(state.AbortCreate)
			if !ok || !strings.Contains(c.Reason, tt.why) || exists(t, host, "tank/flocker/"+string(vol1)) {
				t.Fatalf("proposed %+v", f.proposed)
			}
			f.apply(t, c)
			step(t, a, f)
			if name != "renamed" {
				if got := like(t, host, "tank/pgdata"); got != was {
					t.Errorf("it was\n%s, and is\n%s", was, got)
				}
				if d, err := host.Dataset(ctx, "tank/pgdata"); err != nil || !d.Mounted || !d.Writable || d.Mountpoint != "/srv/pgdata" {
					t.Errorf("it is %+v, %v", d, err)
				}
			}
		})
	}
}

// What its user had synced when the machine lost power is in the volume, though nobody has mounted
// the dataset since.
func TestImportReplaysLog(t *testing.T) {
	ctx := context.Background()
	a, _, f, i := quiet(t)
	host := zfsfake.New(zfsfake.Options{Seed: 2, Pool: "tank"})
	i.host = host
	a = restarted(t, a, host, f, i)
	must(t, host.CreateFilesystem(ctx, "tank/pgdata", map[string]string{"mountpoint": "/srv/pgdata"}), host.Mount(ctx, "tank/pgdata", false), host.Sync("tank/pgdata"),
		host.WriteFile("tank/pgdata", "f", []byte("synced")), host.Fsync("tank/pgdata"))
	host.Crash()
	f.apply(t, state.CreateVolume{ID: vol1, Name: "pg", Spec: volume.Spec{}.MakeWhole(), Placement: volume.Placement{Primary: self}, Adopt: "tank/pgdata"})
	must(t, a.do(ctx, Action{StepCreate, vol1}))
	if got, err := host.ReadFile("tank/flocker/"+string(vol1), "f"); string(got) != "synced" || err != nil {
		t.Errorf("it has %q, %v", got, err)
	}
}

// Where a machine has mounted what was given up, it is given back from there: the place of volumes is
// another one, and what is mounted elsewhere is somebody's.
func TestImportGivenBackWhereMounted(t *testing.T) {
	_, _, f, _ := importing(t)
	f.apply(t, state.AbortCreate{ID: vol1, Epoch: f.s.Volume(vol1).Epoch, Reason: "given up"})
	got := Actual{Copies: map[volume.ID]Copy{vol1: {Mounted: true, Mount: "/srv/pgdata"}}}
	if acts := Diff(f.s, got, self, func(volume.ID) bool { return false }); !slices.Equal(acts, []Action{{StepGiveBack, vol1}}) {
		t.Errorf("it does %v", acts)
	}
}

// Who had it mounted has it mounted again, when it was not renamed and when it is given back, also
// by a flockd that did not unmount it.
func TestImportMountsAgain(t *testing.T) {
	ctx := context.Background()
	there := func(t *testing.T, host *zfsfake.Host, want bool) {
		t.Helper()
		d, err := host.Dataset(ctx, "tank/pgdata")
		if err != nil || d.Mounted != want || d.Writable != want || d.Mountpoint != "/srv/pgdata" {
			t.Errorf("it is %+v, %v; want mounted: %v", d, err, want)
		}
	}
	a, host, _, _ := importing(t)
	host.FailAfter("unmount", "tank/pgdata", 1, zfsfake.ErrInjected)
	if err := a.do(ctx, Action{StepCreate, vol1}); !errors.Is(err, zfsfake.ErrInjected) {
		t.Error(err)
	}
	there(t, host, true)

	// One that cannot be renamed is not tried again, unless flockd itself is to end.
	a, host, f, _ := importing(t)
	host.Fail("rename", "tank/pgdata", 1, zfs.ErrBusy)
	must(t, a.do(ctx, Action{StepCreate, vol1}))
	if c, ok := last(f).(state.AbortCreate); !ok || !strings.Contains(c.Reason, "tank/pgdata cannot be renamed") {
		t.Errorf("proposed %+v", f.proposed)
	}
	there(t, host, true)
	a, host, f, _ = importing(t)
	ending, end := context.WithCancel(ctx)
	host.Inject(zfsfake.Rule{Op: "rename", Times: 1, Do: func(context.Context, string, string) error {
		end()
		return zfs.ErrBusy
	}})
	if err := a.do(ending, Action{StepCreate, vol1}); err == nil || len(f.proposed) > 0 {
		t.Errorf("%v, and proposed %+v", err, f.proposed)
	}
	there(t, host, true)

	a, host, f, i := importing(t)
	hit := false
	remove := cutAt(host, "rename", 1, "is killed", &hit)
	if err := a.do(ctx, Action{StepCreate, vol1}); !errors.Is(err, zfsfake.ErrInjected) || !hit {
		t.Error(err)
	}
	remove()
	there(t, host, false)
	a = restarted(t, a, host, f, i)
	must(t, a.do(ctx, Action{StepCreate, vol1}))
	f.apply(t, state.AbortCreate{ID: vol1, Epoch: f.s.Volume(vol1).Epoch, Reason: "given up"})
	step(t, a, f)
	there(t, host, true)
}

// Containers are asked for where it is mounted, and one that cannot be asked for is no answer.
func TestImportBound(t *testing.T) {
	ctx := context.Background()
	a, host, _, _ := importing(t)
	var answer error
	a.bound = func(context.Context) ([]Bind, error) {
		return []Bind{{Path: "/srv/pgdata", By: "container db"}}, answer
	}
	f, err := a.LookImport(ctx, "tank/pgdata")
	if err != nil || !slices.Equal(f.Refers, []string{"container db"}) {
		t.Errorf("%q, %v", f.Refers, err)
	}
	answer = errors.New("no engine")
	if _, err := a.LookImport(ctx, "tank/pgdata"); err == nil || volume.CodeOf(err) == volume.CodeRefused {
		t.Errorf("nobody answers: %v", err)
	}
	answer = nil
	a.files = nowhere{}
	must(t, host.Unmount(ctx, "tank/pgdata"), host.SetProperties(ctx, "tank/pgdata", map[string]string{"mountpoint": "none"}))
	if f, err := a.LookImport(ctx, "tank/pgdata"); err != nil || len(f.Refers) != 0 {
		t.Errorf("mounted nowhere: %q, %v", f.Refers, err)
	}
}

// nowhere are Files that know of no path.
type nowhere struct{ Files }

func (nowhere) Unused(string, string) error { return nil }
func (nowhere) Refers(_, dir string, binds []Bind) ([]string, error) {
	if dir != "" || len(binds) > 0 {
		return nil, fmt.Errorf("asked for %s, and %v", dir, binds)
	}
	return nil, nil
}

// A dataset that somebody makes in it just before it is renamed, or later, is not taken away with it;
// and the place of volumes is not touched for one that was there before.
func TestImportFullMeanwhile(t *testing.T) {
	ctx := context.Background()
	for _, when := range []struct {
		op, in  string
		covered bool
	}{{"rename", "tank/pgdata", false}, {"mount", "tank/flocker/" + string(vol1), true}} {
		a, host, f, i := importing(t)
		was := like(t, host, "tank/pgdata")
		host.Inject(zfsfake.Rule{Op: when.op, Times: 1, Do: func(context.Context, string, string) error {
			return host.CreateFilesystem(ctx, when.in+"/x", map[string]string{"canmount": "noauto"})
		}})
		must(t, a.do(ctx, Action{StepCreate, vol1}))
		c, ok := last(f).(state.AbortCreate)
		if !ok || !strings.Contains(c.Reason, "another dataset in tank/pgdata, tank/pgdata/x") {
			t.Fatalf("at the %s: proposed %+v", when.op, f.proposed)
		}
		if (len(i.covered) > 0) != when.covered {
			t.Errorf("at the %s: covered are %v", when.op, i.covered)
		}
		f.apply(t, c)
		step(t, a, f)
		if got := like(t, host, "tank/pgdata"); got != was || !exists(t, host, "tank/pgdata/x") || len(i.covered) > 0 {
			t.Errorf("at the %s: it was\n%s, and is\n%s; covered are %v", when.op, was, got, i.covered)
		}
	}
}

// What another volume noted on a dataset is that one's: one that was given up leaves its mount and
// its note.
func TestImportNotesApart(t *testing.T) {
	ctx := context.Background()
	a, host, f, i := importing(t)
	hit := false
	remove := cutAt(host, "rename", 1, "is killed", &hit)
	if err := a.do(ctx, Action{StepCreate, vol1}); err == nil || !hit {
		t.Error(err)
	}
	remove()
	note := func() string {
		d, err := host.Dataset(ctx, "tank/pgdata")
		must(t, err)
		return fmt.Sprint(d.User[propImport], d.Mounted)
	}
	a, was := restarted(t, a, host, f, i), note()
	// Another volume was given up before it came to the dataset.
	other := *f.s.Volume(vol1)
	other.ID, other.Phase = vol2, state.PhasePurged
	must(t, a.returnDataset(ctx, &other))
	if now := note(); now != was || !strings.Contains(now, string(vol1)) {
		t.Errorf("it says %s, and did %s", now, was)
	}
	f.apply(t, state.AbortCreate{ID: vol1, Epoch: f.s.Volume(vol1).Epoch, Reason: "given up"})
	step(t, a, f)
	if now := note(); now != "true" {
		t.Errorf("it says %s", now)
	}
}

// That a volume's dataset is what it was counts no more once it is made of it again.
func TestImportReturnedBefore(t *testing.T) {
	a, host, f, _ := importing(t)
	see(t, a)
	a.returned[vol1] = true // by the same request, before the volume was forgotten
	host.Fail("set", "tank/flocker/"+string(vol1), 2, zfs.ErrNoSpace)
	must(t, a.do(context.Background(), Action{StepCreate, vol1}))
	f.apply(t, state.AbortCreate{ID: vol1, Epoch: f.s.Volume(vol1).Epoch, Reason: "given up"})
	if !exists(t, host, "tank/flocker/"+string(vol1)) || !kept(t, a) {
		t.Error("it may be forgotten, with its dataset where volumes are")
	}
}

// What a volume that is given up was has a place of its own when its name is another's by now.
func TestImportReturnsElsewhere(t *testing.T) {
	ctx := context.Background()
	a, host, f, _ := importing(t)
	must(t, a.do(ctx, Action{StepCreate, vol1}), host.CreateFilesystem(ctx, "tank/pgdata", nil))
	f.apply(t, state.AbortCreate{ID: vol1, Epoch: f.s.Volume(vol1).Epoch, Reason: "given up"})
	step(t, a, f)
	if got, err := host.ReadFile("tank/pgdata-"+string(vol1), "f"); string(got) != "now" || err != nil {
		t.Errorf("it has %q, %v", got, err)
	}
}

// What is undone is undone to the letter.
func TestImportUndo(t *testing.T) {
	n := importNote{Was: map[string]string{"canmount": "", "readonly": "", "mountpoint": "/a", "quota": "5", "refquota": "", "reservation": "0", "atime": "off"}}
	set, inherit := n.undo()
	if want := map[string]string{"canmount": "on", "mountpoint": "/a", "quota": "5", "refquota": "none", "reservation": "none", "atime": "off"}; !maps.Equal(set, want) || !slices.Equal(inherit, []string{"readonly"}) {
		t.Errorf("set %v, inherit %v", set, inherit)
	}
}
