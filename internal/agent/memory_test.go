package agent

import (
	"context"
	"fmt"
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

// Which states the last look is enough for, by one volume: its phase and this node's
// part in it, what that look showed, and the actions that are named by it.
func TestSuffices(t *testing.T) {
	for _, line := range strings.Split(strings.TrimSpace(`
		creating primary | none         | idle | yes: it is made, and zfs refuses to make it twice
		creating primary | copy         | idle | yes: it was seen, or made by this node
		creating replica | none         | idle | yes
		active primary   | copy         | idle | yes
		active primary   | none         | idle | no: a first copy may have come in, and this node be the primary by it
		active primary   | copy epoch=1 | idle | no: it is to be taken over
		active primary   | copy epoch=1 start=7   | idle | yes: that reads by itself what is there
		active primary   | copy quota=1 start=7   | idle | no: it has been taken over
		active primary   | logged epoch=1 start=7 | idle | no: it is to be replayed
		active primary   | mounted      | idle | no: it is to be unmounted
		active primary   | mounted      | used | yes
		active replica   | copy quota=0 | idle | yes
		active replica   | none         | idle | yes: replication knows by itself
		active replica   | trash        | idle | no: it is to come back
		active none      | none         | idle | yes
		active none      | copy         | idle | no: it is to be dropped
		active primary   | logged       | idle | no
		electing replica | copy         | idle | yes
		electing primary | mounted      | idle | no
		electing primary | none         | idle | no
		moving primary   | copy         | idle | no
		deleting primary | copy         | idle | no
		trash primary    | copy         | idle | no
		trash primary    | trash        | idle | yes: it is where it belongs
		trash replica    | none         | idle | no: what came in meanwhile has to go, too
		purged replica   | none         | idle | no
		purged replica   | trash        | idle | no`), "\n") {
		cols := strings.Split(line, "|")
		v, got := diffCase(t, cols)
		s := stateOf(t, v)
		inUse := strings.TrimSpace(cols[2]) == "used"
		actions := Diff(s, got, self, func(volume.ID) bool { return inUse })
		want := strings.HasPrefix(strings.TrimSpace(cols[3]), "yes")
		if suffices(s, got, self, actions) != want {
			t.Errorf("%s: %v, by actions %v", strings.TrimSpace(line), !want, actions)
		}
		// What nobody has looked for in the trash may be there.
		got.NoTrash = true
		if got.Trash = nil; trashMatters(s, got, self) && suffices(s, got, self, Diff(s, got, self, func(volume.ID) bool { return inUse })) {
			t.Errorf("%s: it suffices though the trash was not looked at", strings.TrimSpace(line))
		}
	}
}

// stateOf is a state with one volume.
func stateOf(t *testing.T, v *state.Volume) *state.State {
	t.Helper()
	s := state.New()
	f := &fixed{s: s}
	f.apply(t, state.InitCluster{Node: state.Node{ID: self, Name: "me"}})
	f.apply(t, state.CreateToken{Token: state.Token{ID: "t"}})
	f.apply(t, state.AddNode{Node: state.Node{ID: other, Name: "other"}, Token: "t"})
	f.apply(t, state.CreateVolume{ID: v.ID, Name: "v", Placement: v.Placement, Spec: v.Spec})
	*f.s.Volume(v.ID) = *v // nobody else has this state
	return f.s
}

// unused is Use of a node on which nothing is used.
type unused struct{ Use }

func (unused) Refresh(context.Context, []volume.ID) (map[volume.ID][]volume.Holder, error) {
	return nil, nil
}
func (unused) Idle(volume.ID) bool { return true }

// assigning is a replication engine that remembers what it was told to do.
type assigning struct {
	*idle
	assigned []volume.ID
}

func (r *assigning) Positions() map[volume.ID]volume.Position { return nil }
func (r *assigning) Links(volume.ID) []volume.LinkStatus      { return nil }
func (r *assigning) Assign(all []replicate.Assignment) {
	r.assigned = nil
	for _, as := range all {
		r.assigned = append(r.assigned, as.Volume)
	}
}

// A volume costs two commands to make, and a state that asks for nothing none, however
// many there are. In all of it no dataset that is there counts as missing.
func TestMakingListsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const volumes = 20
		ctx := t.Context()
		a, host, f, i := quiet(t)
		repl := &assigning{idle: i}
		a.use, a.repl = unused{}, repl
		var jobs sync.WaitGroup
		defer jobs.Wait()
		step := func(why cause) {
			t.Helper()
			a.step(ctx, &jobs, why)
			jobs.Wait()
			time.Sleep(time.Millisecond)
		}
		step(byReason)
		host.ResetCommands()
		id := func(n int) volume.ID { return volume.ID(fmt.Sprintf("%016x", n+1)) }
		for n := range volumes {
			f.apply(t, state.CreateVolume{ID: id(n), Name: string(id(n)), Placement: volume.Placement{Primary: self, Local: []volume.NodeID{other}}})
			step(byNews)
			confirm := state.ConfirmCreate{ID: id(n), Epoch: 1}
			if last := f.proposed[len(f.proposed)-1]; last != confirm {
				t.Fatalf("proposed %v, want %v", last, confirm)
			}
			f.apply(t, confirm)
			for _, st := range a.Report().Volumes {
				if !st.Exists || st.Problem != "" {
					t.Fatalf("volume %s: %+v", st.Volume, st)
				}
			}
			step(byNews)
			if len(repl.assigned) != n+1 {
				t.Fatalf("assigned: %v, want %d volumes", repl.assigned, n+1)
			}
		}
		if got := host.Commands(); got["create"] != volumes || got["dataset"] != volumes || len(got) != 2 {
			t.Errorf("commands to make %d volumes: %v", volumes, got)
		}

		// What somebody has said of the pool does not have a volume exported, nor anything of it is left when that is unmounted.
		must(t, host.SetProperties(ctx, "tank/flocker", map[string]string{"sharenfs": "on", "sharesmb": "on"}))
		shared, err := host.Properties(ctx, a.layout.Dataset(id(0)), []string{"sharenfs", "sharesmb"})
		must(t, err)
		for name, p := range shared {
			if p.Value != "off" {
				t.Errorf("%s of a volume: %+v", name, p)
			}
		}

		// A listing that began before one was made does not show it.
		remove := host.Inject(zfsfake.Rule{Op: "datasets", After: true, Times: 1, Do: func(ctx context.Context, _, _ string) error {
			f.apply(t, state.CreateVolume{ID: id(volumes), Name: "late", Placement: volume.Placement{Primary: self}})
			return a.create(ctx, id(volumes))
		}})
		step(byReason)
		remove()
		f.apply(t, state.ConfirmCreate{ID: id(volumes), Epoch: 1})
		host.ResetCommands()
		step(byNews)
		if got := host.Commands(); len(repl.assigned) != volumes+1 || len(got) != 0 {
			t.Errorf("%d volumes assigned, want %d; commands %v", len(repl.assigned), volumes+1, got)
		}

		looks := func(what string, why cause, want int) {
			t.Helper()
			a.asidesAt = time.Now() // what is set aside is listed by other rules
			host.ResetCommands()
			step(why)
			if got := host.Commands()["datasets"]; got != want {
				t.Errorf("%s: %d listings, want %d", what, got, want)
			}
		}
		looks("nothing new", byNews, 0)
		done := a.changing(id(0))
		looks("news while somebody mounts", byNews, 1)
		done()
		time.Sleep(time.Millisecond)
		looks("news after that", byNews, 1)
		looks("and then", byNews, 0)
		looks("a reason", byReason, 1)
		time.Sleep(a.poll)
		looks("news when it is time to look", byNews, 1)
		var began time.Time
		a.listed = func() ([]zfs.Dataset, time.Time) { return a.list, began }
		began = time.Now()
		time.Sleep(a.poll)
		looks("news when it is time, and others have listed", byNews, 0)
		looks("a reason, and others have listed", byReason, 1)
		began = time.Now()
		time.Sleep(a.poll)
		a.changing(id(0))()
		time.Sleep(time.Millisecond)
		looks("news after this node has done something, and others have listed before", byNews, 1)
		time.Sleep(a.poll)
		began = time.Now().Add(-time.Second)
		f.apply(t, state.CreateVolume{ID: id(30), Name: "new", Placement: volume.Placement{Primary: self}})
		looks("a new volume, and others have listed", byNews, 0)
		f.apply(t, state.ConfirmCreate{ID: id(30), Epoch: 1})
		a.listed = nil
		looks("which is there", byNews, 0)

		// What takes a dataset away ends what is remembered of it.
		f.apply(t, state.BeginDelete{ID: id(0), Epoch: 1, Attempt: "a"})
		f.apply(t, state.CommitDelete{ID: id(0), Epoch: 1, Attempt: "a"})
		looks("a volume in the trash", byNews, 2) // and the trash
		looks("the same", byReason, 2)
		if exists(t, host, a.layout.Dataset(id(0))) || !exists(t, host, a.layout.TrashDataset(id(0))) {
			t.Error("the volume is not in the trash")
		}
		if slices.Contains(repl.assigned, id(0)) {
			t.Errorf("assigned: %v, with what is in the trash", repl.assigned)
		}
	})
}
