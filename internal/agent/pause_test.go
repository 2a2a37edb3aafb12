package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
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

// Of a volume that is handed to this node the clients wait. A node that has looked at its copy of
// late takes no listing for it, neither before the takeover nor in it, and asks nothing of a dataset
// that it has just made ready: these are all commands of ZFS between the handoff and the mount. What has
// changed since that look, by whatever hand, is found all the same.
func TestArrivalCommands(t *testing.T) {
	const lastLook = "dataset snapshots-named set"
	for name, c := range map[string]struct {
		since  func(ctx context.Context, w *arriving) error // the last look
		takes  string                                       // commands of the takeover
		mounts string                                       // and of the mount
		denied string                                       // why it is not mounted
		small  bool                                         // it has no quota after all
	}{
		"as a rule": {takes: lastLook, mounts: "mount"},
		"what it was handed over with is gone": {
			since: func(ctx context.Context, w *arriving) error {
				return w.host.DestroySnapshots(ctx, w.ds, []string{w.start.SnapshotName()})
			},
			takes:  "dataset snapshots-named dataset snapshots bookmarks",
			denied: "lacks the snapshot it was handed over with",
		},
		"another one has its name": {
			since: func(ctx context.Context, w *arriving) error {
				return errors.Join(w.host.DestroySnapshots(ctx, w.ds, []string{w.start.SnapshotName()}), w.host.Snapshot(ctx, []string{w.ds + "@" + w.start.SnapshotName()}, nil))
			},
			takes:  "dataset snapshots-named dataset snapshots bookmarks",
			denied: "lacks the snapshot it was handed over with",
		},
		"the copy has accepted a newer epoch": {
			since: func(ctx context.Context, w *arriving) error {
				return w.host.SetProperties(ctx, w.ds, map[string]string{propEpoch: volume.Epoch(9).String()})
			},
			takes:  "dataset snapshots-named",
			denied: "newer than the cluster's",
		},
		"what it was handed over with has another name": {
			since: func(ctx context.Context, w *arriving) error {
				return w.host.Rename(ctx, w.ds+"@"+w.start.SnapshotName(), w.ds+"@other")
			},
			takes:  "dataset snapshots-named dataset snapshots bookmarks set",
			mounts: "mount",
		},
		"it cannot be asked for by name": {
			since: func(_ context.Context, w *arriving) error {
				w.host.Fail("snapshots-named", "", 0, zfsfake.ErrInjected)
				return nil
			},
			takes:  "dataset dataset snapshots bookmarks set", // besides what failed
			mounts: "mount",
		},
		"half a stream has come": {
			since: func(ctx context.Context, w *arriving) error {
				if err := w.host.Receive(ctx, zfs.ReceiveRequest{Dataset: w.ds, Resumable: true}, io.LimitReader(bytes.NewReader(w.more), int64(len(w.more)/2))); err == nil {
					return errors.New("it was received whole")
				}
				return nil
			},
			takes:  "dataset dataset snapshots bookmarks abort-receive dataset snapshots bookmarks set",
			mounts: "mount",
		},
		"the last look is old": {
			since:  func(context.Context, *arriving) error { time.Sleep(time.Minute); return nil },
			takes:  "datasets pool datasets dataset snapshots bookmarks set", // of the node first, and of its pool
			mounts: "mount",
		},
		"its quota is refused": { // besides what failed
			since: func(_ context.Context, w *arriving) error {
				w.host.Fail("set", w.ds, 1, &zfs.Error{Op: "set", Kind: zfs.ErrInvalid})
				return nil
			},
			takes:  lastLook,
			mounts: "mount",
			small:  true,
		},
		"its mount comes late": {takes: lastLook, mounts: "dataset mount"},
		"its size has changed": {takes: lastLook, mounts: "dataset set mount"},
		"it was refused once":  {takes: lastLook, mounts: "dataset mount"}, // besides the mount that failed
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				w := newArriving(t)
				if c.since != nil {
					must(t, c.since(ctx, w))
				}
				w.f.apply(t, state.BeginHandoff{ID: vol1, Epoch: 1, To: self, Attempt: "m"})
				w.f.apply(t, state.CommitHandoff{ID: vol1, Epoch: 1, Attempt: "m", Final: w.start})

				took := w.ops(func() {
					var jobs sync.WaitGroup
					w.a.step(ctx, &jobs, byNews)
					jobs.Wait()
				})
				switch name {
				case "its mount comes late":
					time.Sleep(takenFor)
				case "its size has changed":
					spec := w.f.s.Volume(vol1).Spec
					spec.Size *= 2
					w.f.apply(t, state.UpdateSpec{ID: vol1, Spec: spec, Changed: w.f.s.Volume(vol1).Changed})
				case "it was refused once":
					defer w.host.Fail("mount", w.ds, 1, &zfs.Error{Op: "mount", Kind: zfs.ErrBusy})()
				}
				if took != c.takes {
					t.Errorf("its takeover took %q, want %q", took, c.takes)
				}
				var err error
				mounted := w.ops(func() { _, err = w.a.Mount(ctx, vol1, "m") })
				d, derr := w.host.Dataset(ctx, w.ds)
				must(t, derr)
				if c.denied != "" {
					if err == nil || !strings.Contains(err.Error(), c.denied) || d.Mounted || d.User[propEpoch] == volume.Epoch(2).String() {
						t.Errorf("mounted: %v, want %q; the dataset is %+v", err, c.denied, d)
					}
					return
				}
				must(t, err)
				if mounted != c.mounts {
					t.Errorf("its mount took %q, want %q", mounted, c.mounts)
				}
				if told := strings.Join(w.told, " "); told != "arrival takeover mount" {
					t.Errorf("of its parts was told %q", told)
				}
				size := w.f.s.Volume(vol1).Spec.Size
				if c.small {
					size = 0
				}
				if !d.Writable || d.ResumeToken != "" || d.User[propEpoch] != volume.Epoch(2).String() || d.Mountpoint != w.a.layout.Mountpoint(vol1) || d.RefQuota != size {
					t.Errorf("it is %+v", d)
				}
			})
		})
	}
}

// arriving is a node with a replica, at which it and its replication have looked a moment ago.
type arriving struct {
	host  *zfsfake.Host
	f     *fixed
	a     *Agent
	ds    string
	start volume.Position // its newest snapshot
	more  []byte          // a stream that adds another one
	told  []string        // parts of its arrival; to be read when nothing is under way
}

func newArriving(t *testing.T) *arriving {
	t.Helper()
	ctx := t.Context()
	_, host, f, _ := quiet(t)
	layout := Layout{Pool: "tank", MountBase: "/v"}
	w := &arriving{host: host, f: f, ds: layout.Dataset(vol1), start: volume.Position{Epoch: 1, Seq: 1}}
	next := volume.Position{Epoch: 1, Seq: 2}

	old := zfsfake.New(zfsfake.Options{Seed: 2, Pool: "tank", TxgTimeout: -1})
	must(t, old.CreateFilesystem(ctx, layout.Root(), nil), old.CreateFilesystem(ctx, w.ds, map[string]string{"mountpoint": "/old"}), old.Mount(ctx, w.ds, true),
		old.WriteFile(w.ds, "f", []byte("kept")), old.Snapshot(ctx, []string{w.ds + "@" + w.start.SnapshotName()}, nil),
		old.WriteFile(w.ds, "g", bytes.Repeat([]byte("lost"), 1<<16)), old.Snapshot(ctx, []string{w.ds + "@" + next.SnapshotName()}, nil))
	var full, more bytes.Buffer
	must(t, old.Send(ctx, zfs.SendRequest{Snapshot: w.ds + "@" + w.start.SnapshotName()}, &full),
		old.Send(ctx, zfs.SendRequest{Snapshot: w.ds + "@" + next.SnapshotName(), From: w.ds + "@" + w.start.SnapshotName()}, &more),
		host.Receive(ctx, zfs.ReceiveRequest{Dataset: w.ds, Properties: map[string]string{
			"readonly": "on", "canmount": "noauto", propVolume: string(vol1), propEpoch: volume.Epoch(1).String()}}, &full))
	w.more = more.Bytes()
	snaps, err := host.Snapshots(ctx, w.ds, false)
	must(t, err)
	w.start.GUID = snaps[0].GUID

	spec := volume.DefaultSpec()
	spec.Size = 64 << 20
	f.apply(t, state.CreateVolume{ID: vol1, Name: "pg", Spec: spec, Placement: volume.Placement{Primary: other, Local: []volume.NodeID{self}}})
	f.apply(t, state.ConfirmCreate{ID: vol1, Epoch: 1})

	repl := replicate.New(replicate.Config{Node: self, Root: layout.Root(), Pool: host})
	w.a = New(Config{Self: self, Layout: layout, Cluster: f, ZFS: host, Files: doors{}, Use: books{asking{}}, Repl: repl, Log: slog.New(slog.DiscardHandler),
		Arriving: func(_ volume.ID, _ volume.Epoch, part string) { w.told = append(w.told, part) }})
	close(w.a.fresh)
	look := func() {
		var jobs sync.WaitGroup
		w.a.step(ctx, &jobs, byReason)
		jobs.Wait()
	}
	look()
	rctx, stop := context.WithCancel(ctx)
	ran := make(chan struct{})
	go func() { defer close(ran); _ = repl.Run(rctx) }()
	synctest.Wait()
	stop()
	<-ran
	look()
	return w
}

// ops are the commands that f takes.
func (w *arriving) ops(f func()) string {
	var mu sync.Mutex
	var ops []string
	defer w.host.Inject(zfsfake.Rule{Do: func(_ context.Context, op, _ string) error {
		mu.Lock()
		defer mu.Unlock()
		ops = append(ops, op)
		return nil
	}})()
	f()
	mu.Lock()
	defer mu.Unlock()
	return strings.Join(ops, " ")
}

// A volume that is given up while clients wait is unmounted, and that is all that ZFS is asked besides
// its last copy; where the last look has not shown it mounted, ZFS is asked first.
func TestReleaseCommands(t *testing.T) {
	for name, c := range map[string]struct {
		seen, mounted, gone bool
		follow              bool
		want                string
		refused             string // why it stays, and stays mounted
		use                 asking
		held                int // how often it is seen to be mounted elsewhere
	}{
		"as a rule":                           {seen: true, mounted: true, follow: true, want: "unmount"},
		"it was unmounted since":              {seen: true, follow: true, want: "unmount"},
		"it is gone":                          {seen: true, gone: true, follow: true, want: "unmount", refused: "its dataset is missing on its primary"},
		"it was mounted since":                {mounted: true, follow: true, want: "dataset unmount"},
		"it is not mounted":                   {follow: true, want: "dataset"},
		"nothing was stopped for it":          {seen: true, mounted: true, want: "dataset unmount"},
		"a container uses it":                 {seen: true, mounted: true, follow: true, use: asking{by: "web"}, refused: "it is in use by container web"},
		"a container is starting":             {seen: true, mounted: true, follow: true, use: asking{starts: true}, refused: "a container that is starting"},
		"the engine does not answer":          {seen: true, mounted: true, follow: true, use: asking{deaf: true}, refused: "cannot be asked"},
		"another namespace has it":            {seen: true, mounted: true, follow: true, held: 1 << 20, refused: "a mount namespace shows it"},
		"and has it for a moment only":        {seen: true, mounted: true, follow: true, held: 3, want: "unmount"},
		"nothing was stopped, and it is gone": {seen: true, gone: true, want: "dataset", refused: "its dataset is missing on its primary"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				_, host, f, _ := quiet(t)
				layout := Layout{Pool: "tank", MountBase: "/v"}
				ds := layout.Dataset(vol1)
				must(t, host.CreateFilesystem(ctx, ds, map[string]string{"mountpoint": "/old"}))
				f.apply(t, state.CreateVolume{ID: vol1, Name: "pg", Spec: volume.DefaultSpec(), Placement: volume.Placement{Primary: self, Local: []volume.NodeID{other}}})
				f.apply(t, state.ConfirmCreate{ID: vol1, Epoch: 1})
				f.apply(t, state.BeginHandoff{ID: vol1, Epoch: 1, To: other, Attempt: "m", Follow: c.follow})
				h := &held{looks: c.held}
				a := New(Config{
					Self: self, Layout: layout, Cluster: f, ZFS: host, Files: h, Use: c.use, Repl: h, Log: slog.New(slog.DiscardHandler),
					StopFollowing: func(context.Context, volume.ID) (Stopped, error) { return Stopped{Paused: time.Now()}, nil },
				})
				if c.seen {
					must(t, host.Mount(ctx, ds, true))
				}
				must(t, a.firstLook(ctx))
				switch is := c.seen; {
				case c.gone:
					must(t, host.Unmount(ctx, ds), host.Destroy(ctx, ds))
				case c.mounted && !is:
					must(t, host.Mount(ctx, ds, true))
				case !c.mounted && is:
					must(t, host.Unmount(ctx, ds))
				}
				w := &arriving{host: host}
				got := strings.Fields(w.ops(func() { must(t, a.release(ctx, vol1)) }))
				if c.gone { // which may pass, and is waited for a while
					got = slices.Compact(got)
				}
				if strings.Join(got, " ") != c.want {
					t.Errorf("it took %q, want %q", got, c.want)
				}
				reason := ""
				if abort, ok := f.proposed[len(f.proposed)-1].(state.AbortHandoff); ok {
					reason = abort.Reason
				}
				if (reason != "") != (c.refused != "") || !strings.Contains(reason, c.refused) {
					t.Errorf("refused: %q, want %q", reason, c.refused)
				}
				if got := slices.ContainsFunc(host.Mounts(), func(m zfsfake.Mount) bool { return m.Dataset == ds }); got != (c.refused != "" && !c.gone) {
					t.Errorf("mounted: %v", got)
				}
			})
		})
	}
}

// asking is a node on which nobody uses anything, and whose engine says so: but for these.
type asking struct {
	lonely
	by     string // the container that uses everything
	starts bool   // one that is starting may
	deaf   bool   // the engine does not answer
}

func (asking) Found(volume.ID)             {}
func (asking) Unmounted(volume.ID, string) {}
func (a asking) Idle(volume.ID) bool       { return !a.starts }
func (a asking) Refresh(_ context.Context, mounted []volume.ID) (map[volume.ID][]volume.Holder, error) {
	if a.deaf {
		return nil, errors.New("no answer")
	}
	by := map[volume.ID][]volume.Holder{}
	for _, id := range mounted {
		if a.by != "" {
			by[id] = []volume.Holder{{Name: a.by}}
		}
	}
	return by, nil
}

const third = volume.NodeID("third")

// giving is a node that runs, is the primary of vol1 and has a copy of vol2.
type giving struct {
	t    *testing.T
	a    *Agent
	host *zfsfake.Host
	last volume.Position // of vol2

	mu      sync.Mutex
	f       *fixed
	changed chan struct{}
	lost    bool // no answer of a leader comes any more
	listed  int
}

func (g *giving) State() *state.State {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.f.s
}

func (g *giving) Changed() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.changed
}

func (g *giving) Propose(context.Context, state.Command) (state.Result, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lost = true
	return state.Result{}, errors.New("no answer")
}

func (g *giving) CatchUp(ctx context.Context) error {
	g.mu.Lock()
	lost := g.lost
	g.mu.Unlock()
	if lost {
		<-ctx.Done()
	}
	return ctx.Err()
}

func (g *giving) apply(all ...state.Command) {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range all {
		g.f.apply(g.t, c)
	}
	close(g.changed)
	g.changed = make(chan struct{})
}

// looks is how often all datasets are listed until f has returned and nothing is under way.
func (g *giving) looks(f func()) int {
	g.t.Helper()
	synctest.Wait()
	g.mu.Lock()
	g.listed = 0
	g.mu.Unlock()
	f()
	synctest.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.listed
}

func (g *giving) want(what string, got, want int) {
	g.t.Helper()
	if got != want {
		g.t.Errorf("%s: it looks %d times, want %d", what, got, want)
	}
}

// Replication: what is settled is what there is.
type settled struct {
	held
	g *giving
}

func (r *settled) SettledCopy(ctx context.Context, id volume.ID, want volume.Position) (zfs.Dataset, map[uint64]bool, error) {
	d, err := r.g.host.Dataset(ctx, r.g.a.layout.Dataset(id))
	return d, map[uint64]bool{want.GUID: true}, err
}
func (r *settled) Assign([]replicate.Assignment)            {}
func (r *settled) Links(volume.ID) []volume.LinkStatus      { return nil }
func (r *settled) Positions() map[volume.ID]volume.Position { return nil }

// newGiving runs it until the test's end.
func newGiving(t *testing.T, stop func(context.Context) error) *giving {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	_, host, f, _ := quiet(t)
	g := &giving{t: t, host: host, f: f, changed: make(chan struct{}), last: volume.Position{Epoch: 1, Seq: 1, GUID: 7}}
	layout := Layout{Pool: "tank", MountBase: "/v"}
	f.apply(t, state.CreateToken{Token: state.Token{ID: "t3", Expires: time.Now().Add(time.Hour)}})
	f.apply(t, state.AddNode{Node: state.Node{ID: third, Name: "third"}, Token: "t3"})
	for id, primary := range map[volume.ID]volume.NodeID{vol1: self, vol2: other} {
		local := []volume.NodeID{other, third}
		if primary == other {
			local = []volume.NodeID{self, third}
		}
		must(t, host.CreateFilesystem(ctx, layout.Dataset(id), map[string]string{"mountpoint": layout.Mountpoint(id), propEpoch: volume.Epoch(1).String()}))
		f.apply(t, state.CreateVolume{ID: id, Name: "v" + string(id), Spec: volume.Spec{}, Placement: volume.Placement{Primary: primary, Local: local}})
		f.apply(t, state.ConfirmCreate{ID: id, Epoch: 1})
	}
	host.Inject(zfsfake.Rule{Op: "datasets", Do: func(_ context.Context, _, name string) error {
		g.mu.Lock()
		defer g.mu.Unlock()
		if name == layout.Root() {
			g.listed++
		}
		return nil
	}})
	repl := &settled{g: g}
	g.a = New(Config{
		Self: self, Layout: layout, Cluster: g, ZFS: host, Files: repl, Use: asking{}, Repl: repl, Log: slog.New(slog.DiscardHandler),
		StopFollowing: func(ctx context.Context, _ volume.ID) (Stopped, error) { return Stopped{}, stop(ctx) },
	})
	ran := make(chan struct{})
	go func() { defer close(ran); _ = g.a.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ran })
	time.Sleep(time.Second)
	g.looks(g.a.Wake) // after what it does when it starts
	return g
}

// takes says that vol2 was handed to this node, and taken over.
func (g *giving) takes() {
	g.t.Helper()
	d, err := g.host.Dataset(g.t.Context(), g.a.layout.Dataset(vol2))
	if err != nil || d.User[propEpoch] != volume.Epoch(2).String() {
		g.t.Errorf("it was not taken over: %+v, %v", d, err)
	}
}

// While containers are stopped for a volume that is given up the loop does not look again at once for
// each that ends. A new state is obeyed meanwhile, what this node has done itself is looked at, and what
// was put off is, too, as soon as nobody waits for this node any more.
func TestHush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan struct{})
		g := newGiving(t, func(ctx context.Context) error {
			select {
			case <-ended:
			case <-ctx.Done():
			}
			return ctx.Err()
		})
		g.want("an event of the engine", g.looks(g.a.Stir), 1)
		g.apply(state.BeginHandoff{ID: vol1, Epoch: 1, To: other, Attempt: "m", Follow: true})
		g.want("a container has ended", g.looks(g.a.Stir), 0)
		g.want("Docker has unmounted something", g.looks(func() { g.a.Unmount(vol2, "m") }), 0)
		g.want("and has for a while", g.looks(func() { time.Sleep(hushFor - 1) }), 0)
		g.want("for long enough", g.looks(func() { time.Sleep(time.Nanosecond) }), 1)
		g.want("this node has done something", g.looks(g.a.Wake), 1)
		g.looks(func() {
			g.apply(state.BeginHandoff{ID: vol2, Epoch: 1, To: self, Attempt: "n"}, state.CommitHandoff{ID: vol2, Epoch: 1, Attempt: "n", Final: g.last})
		})
		g.takes()
		g.want("another one has ended", g.looks(g.a.Stir), 0)
		g.want("its volume has gone, or nobody knows", g.looks(func() { close(ended) }), 1)
		g.want("an event of the engine then", g.looks(g.a.Stir), 1)
	})
}

// While a volume is to come to a node, or to leave it, that does not look without a reason, for a while:
// it would not hear what it is told meanwhile. What it is told then it does by the last look.
func TestDue(t *testing.T) {
	begin := state.BeginHandoff{ID: vol2, Epoch: 1, To: self, Attempt: "n"}
	for name, c := range map[string]struct {
		first state.Command
		then  func(*giving) state.Command // hands it to this node; nil: it does not come
		due   bool
	}{
		"it is to come": {begin, func(g *giving) state.Command {
			return state.CommitHandoff{ID: vol2, Epoch: 1, Attempt: "n", Final: g.last}
		}, true},
		"its primary is lost":       {state.BeginElection{ID: vol2, Epoch: 1, Fenced: true}, nil, false},
		"one is to leave":           {state.BeginHandoff{ID: vol1, Epoch: 1, To: other, Attempt: "m", Follow: true}, nil, true},
		"it is to go to another":    {state.BeginHandoff{ID: vol2, Epoch: 1, To: third, Attempt: "n"}, nil, false},
		"its primary was lost here": {state.BeginElection{ID: vol1, Epoch: 1, Fenced: true}, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGiving(t, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
				g.looks(func() { g.apply(c.first) })
				if n := g.looks(func() { time.Sleep(dueFor - 1) }); (n == 0) != c.due {
					t.Fatalf("it looks %d times meanwhile, want none: %v", n, c.due)
				}
				if c.then == nil {
					return
				}
				began := time.Now()
				defer g.host.Slow("datasets", "", time.Second)()
				g.apply(c.then(g))
				synctest.Wait()
				g.takes()
				if took := time.Since(began); took > 0 {
					t.Errorf("it took %s", took)
				}
			})
		})
	}
}

// What is put off for a step that is due puts off no news: the loop has woken up for something else at the
// moment at which they came, and hears nothing more of them.
func TestNewsAreNotPutOff(t *testing.T) {
	for name, wake := range map[string]func(*Agent){
		"its time has come": func(a *Agent) { time.Sleep(a.poll) },
		"the engine stirs":  (*Agent).Stir,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGiving(t, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
				g.apply(state.BeginHandoff{ID: vol1, Epoch: 1, To: other, Attempt: "m", Follow: true},
					state.BeginHandoff{ID: vol2, Epoch: 1, To: self, Attempt: "n"})
				g.want("it waits for clients, and for what is to come", g.looks(func() { wake(g.a) }), 0)
				g.mu.Lock()
				g.f.apply(t, state.CommitHandoff{ID: vol2, Epoch: 1, Attempt: "n", Final: g.last})
				g.mu.Unlock()
				wake(g.a)
				synctest.Wait()
				g.takes()
			})
		})
	}
}

// It looks in the end, and a step that did not work is tried again when it would be at any time.
func TestDueEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGiving(t, nil)
		g.apply(state.BeginHandoff{ID: vol2, Epoch: 1, To: self, Attempt: "n"})
		g.want("for long enough", g.looks(func() { time.Sleep(dueFor) }), 1)

		var mu sync.Mutex
		tries := 0
		g.host.Inject(zfsfake.Rule{Op: "set", Do: func(context.Context, string, string) error {
			mu.Lock()
			defer mu.Unlock()
			tries++
			return errors.New("it does not work")
		}})
		spec := g.State().Volume(vol1).Spec
		spec.Size = 64 << 20
		g.apply(state.UpdateSpec{ID: vol1, Spec: spec, Changed: g.State().Volume(vol1).Changed})
		time.Sleep(16 * time.Second) // after pauses of 0.5, 1, 2, 4 and 8 s
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if tries != 6 {
			t.Errorf("a step that does not work was tried %d times, want 6", tries)
		}
	})
}

// After a look that took long the loop rests for as long, but does what it is told meanwhile, if the look is
// good enough for that; and it has rested when it had nothing to do.
func TestRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slow = 2 * time.Second
		g := newGiving(t, nil)
		defer g.host.Slow("datasets", "", slow)()
		time.Sleep(time.Second)
		g.want("for a reason", g.looks(func() { g.a.Wake(); time.Sleep(slow) }), 1)
		g.want("for another one it rests", g.looks(g.a.Wake), 0)
		g.apply(state.BeginHandoff{ID: vol2, Epoch: 1, To: self, Attempt: "n"})
		g.want("it is to come", g.looks(func() { time.Sleep(slow / 2) }), 0)
		g.apply(state.CommitHandoff{ID: vol2, Epoch: 1, Attempt: "n", Final: g.last})
		g.want("it comes", g.looks(func() {}), 0)
		g.takes()
		spec := g.State().Volume(vol1).Spec
		spec.Interval = time.Minute
		news := state.UpdateSpec{ID: vol1, Spec: spec, Changed: g.State().Volume(vol1).Changed}
		g.want("news that need a look, since this node has done something", g.looks(func() { g.apply(news) }), 0)
		g.want("then it has rested", g.looks(func() { time.Sleep(slow / 2) }), 1)
		time.Sleep(9 * slow / 2) // what it did is looked at, too, and there is nothing for more than that
		g.want("for a reason that comes late", g.looks(g.a.Wake), 1)
	})
}
