package placement

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// fakeCluster is a log of one node and nodes that obey at once. It differs from
// the real one in that Propose never waits and a node's report is never late.
type fakeCluster struct {
	t *testing.T

	mu      sync.Mutex
	state   *state.State
	silent  map[volume.NodeID]bool
	pause   time.Duration // how long the machine stands still at the next SetReplicas
	late    volume.NodeID // whose report is the last to come in after that
	paused  time.Time     // when the machine stood still last, and received nothing
	resumed time.Time     // when the late node's report came in again
	deny    error         // Propose answers this
	denied  int
	changed chan struct{}
}

func newFakeCluster(t *testing.T) *fakeCluster {
	return &fakeCluster{t: t, state: state.New(), silent: map[volume.NodeID]bool{}, changed: make(chan struct{}, 1)}
}

func (f *fakeCluster) State() *state.State {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

func (f *fakeCluster) Reports() map[volume.NodeID]Heard {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[volume.NodeID]Heard{}
	for n := range f.state.Nodes() {
		if f.silent[n.ID] {
			continue
		}
		r := &volume.Report{Node: n.ID, At: time.Now(), Applied: f.state.Index, Pool: volume.PoolInfo{Health: "ONLINE", Size: 100e9, Free: 100e9}}
		for v := range f.state.Volumes() {
			if v.Phase != state.PhasePurged && v.Placement.Role(n.ID) != volume.RoleNone {
				r.Volumes = append(r.Volumes, volume.Status{Volume: v.ID, Exists: true, Newest: volume.Position{GUID: 1}})
			}
		}
		at := time.Now()
		if n.ID == f.late && at.Before(f.resumed) {
			at = f.paused
		}
		out[n.ID] = Heard{Report: r, At: at}
	}
	return out
}

func (f *fakeCluster) Propose(_ context.Context, cmd state.Command) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := cmd.(state.SetReplicas); ok && f.pause > 0 {
		f.paused, f.resumed = time.Now(), time.Now().Add(f.pause+time.Second)
		f.mu.Unlock()
		time.Sleep(f.pause)
		f.mu.Lock()
		f.pause = 0
	}
	if f.deny != nil {
		f.denied++
		return f.deny
	}
	next, res := state.Apply(f.state, f.state.Index+1, state.Envelope{At: time.Now(), Command: cmd})
	f.state = next
	select {
	case f.changed <- struct{}{}:
	default:
	}
	if res.Err != nil {
		return res.Err
	}
	return nil
}

func (f *fakeCluster) must(cmd state.Command) {
	f.t.Helper()
	if err := f.Propose(f.t.Context(), cmd); err != nil {
		f.t.Fatalf("%T: %v", cmd, err)
	}
}

func (f *fakeCluster) addNode(i int) volume.NodeID {
	f.t.Helper()
	id := volume.NodeID(fmt.Sprintf("%032x", i))
	n := state.Node{ID: id, Name: fmt.Sprintf("n%d", i), Zone: volume.DefaultZone, Availability: state.Active}
	if f.State().Cluster() == nil {
		f.must(state.InitCluster{Cluster: state.Cluster{ID: "c"}, Node: n})
		f.must(state.CreateToken{Token: state.Token{ID: "t", Expires: time.Now().Add(24 * time.Hour)}})
		return id
	}
	f.must(state.AddNode{Node: n, Token: "t"})
	return id
}

// start runs a controller until the test ends.
func start(t *testing.T, c *Controller) {
	t.Helper()
	ctx, stop := context.WithCancelCause(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	cause := errors.New("no longer leader")
	t.Cleanup(func() {
		stop(cause)
		if err := <-done; err != cause {
			t.Errorf("Run returned %v, want the cause %v", err, cause)
		}
	})
}

// The life of one volume as the leader sees it: made on a lone node, given replicas
// when nodes join, removed, purged when its time is over, forgotten.
func TestControllerFollowsAVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		n1 := f.addNode(1)
		start(t, &Controller{Cluster: f, Wake: f.changed, Every: 30 * time.Second, Log: slog.New(slog.DiscardHandler)})

		spec := volume.Spec{Replicas: 2}
		place, short, err := Place(NewView(f.State(), f.Reports(), time.Now()), spec, n1)
		if err != nil || short.Local != 2 {
			t.Fatalf("placed on a lone node: %v, missing %v; want both replicas missing", err, short)
		}
		const id = volume.ID("00000000000000aa")
		f.must(state.CreateVolume{ID: id, Name: "data", Spec: spec, Placement: place})
		epoch := f.State().Volume(id).Epoch
		f.must(state.ConfirmCreate{ID: id, Epoch: epoch})
		time.Sleep(time.Minute)
		if got := f.State().Volume(id).Placement.Replicas(); len(got) != 0 {
			t.Fatalf("replicas %v on a lone node", got)
		}

		f.addNode(2)
		f.addNode(3)
		time.Sleep(2 * time.Second)
		if got := f.State().Volume(id).Placement.Replicas(); len(got) != 2 {
			t.Fatalf("replicas %v two seconds after two nodes joined, want both", got)
		}

		f.must(state.BeginDelete{ID: id, Epoch: epoch, Attempt: "x"})
		f.must(state.CommitDelete{ID: id, Epoch: epoch, Attempt: "x"})
		time.Sleep(state.DefaultTrashRetention - time.Minute)
		if got := f.State().Volume(id).Phase; got != state.PhaseTrash {
			t.Fatalf("phase %s a minute before the retention ends, want trash", got)
		}
		f.mu.Lock()
		f.silent[n1] = true
		f.mu.Unlock()
		time.Sleep(2 * time.Minute)
		if got := f.State().Volume(id); got == nil || got.Phase != state.PhasePurged {
			t.Fatalf("volume %+v after the retention with a silent node, want it purged and remembered", got)
		}
		f.mu.Lock()
		f.silent[n1] = false
		f.mu.Unlock()
		time.Sleep(time.Minute)
		if got := f.State().Volume(id); got != nil {
			t.Fatalf("volume %+v after all nodes said that no copy is left, want it forgotten", got)
		}
	})
}

// A leader whose machine stood still has heard nobody, which says nothing of them.
func TestControllerThatStoodStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		n1, n2 := f.addNode(1), f.addNode(2)
		n3 := f.addNode(3)
		start(t, &Controller{Cluster: f, Wake: f.changed, Log: slog.New(slog.DiscardHandler)})
		spec := volume.Spec{Replicas: 1}
		place := volume.Placement{Primary: n1, Local: []volume.NodeID{n2}}
		const id = volume.ID("00000000000000aa")
		f.must(state.CreateVolume{ID: id, Name: "data", Spec: spec, Placement: place})
		f.must(state.ConfirmCreate{ID: id, Epoch: f.State().Volume(id).Epoch})
		time.Sleep(time.Minute)

		// Another one that the controller has to do something about.
		f.mu.Lock()
		f.pause, f.late = 20*time.Minute, n2
		f.mu.Unlock()
		const other = volume.ID("00000000000000bb")
		f.must(state.CreateVolume{ID: other, Name: "other", Spec: spec, Placement: volume.Placement{Primary: n1}})
		f.must(state.ConfirmCreate{ID: other, Epoch: f.State().Volume(other).Epoch})
		time.Sleep(2 * time.Hour)
		if f.paused.IsZero() {
			t.Fatal("the leader's machine never stood still")
		}
		if got := f.State().Volume(id).Placement.Replicas(); len(got) != 1 || got[0] != n2 {
			t.Errorf("replicas %v after the leader's machine stood still, want the one on %s as before", got, n2)
		}

		f.mu.Lock()
		f.silent[n2] = true
		f.mu.Unlock()
		time.Sleep(2 * time.Hour)
		if got := f.State().Volume(id).Placement.Replicas(); !slices.Contains(got, n3) {
			t.Errorf("replicas %v after two hours of silence, want one on %s", got, n3)
		}
	})
}

func TestControllerGivesUpWhatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		n1 := f.addNode(1)
		start(t, &Controller{Cluster: f, Wake: f.changed, Log: slog.New(slog.DiscardHandler)})
		const id = volume.ID("00000000000000aa")
		f.must(state.CreateVolume{ID: id, Name: "data", Placement: volume.Placement{Primary: n1}})
		f.must(state.ConfirmCreate{ID: id, Epoch: f.State().Volume(id).Epoch})
		f.must(state.BeginDelete{ID: id, Epoch: f.State().Volume(id).Epoch, Attempt: "x"})

		time.Sleep(PendingLimit - time.Second)
		if got := f.State().Volume(id).Phase; got != state.PhaseDeleting {
			t.Fatalf("phase %s before the limit, want deleting", got)
		}
		time.Sleep(10 * time.Second)
		v := f.State().Volume(id)
		if v.Phase != state.PhaseActive || v.LastRefusal == nil || !strings.Contains(v.LastRefusal.Reason, "n1") {
			t.Fatalf("volume %+v after the limit, want it active again and n1 named", v)
		}
	})
}

// A refusal that repeats is logged once, and never in a hot loop.
func TestControllerComplainsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		n1 := f.addNode(1)
		f.addNode(2)
		const id = volume.ID("00000000000000aa")
		f.must(state.CreateVolume{ID: id, Name: "data", Spec: volume.Spec{Replicas: 1}, Placement: volume.Placement{Primary: n1}})
		f.must(state.ConfirmCreate{ID: id, Epoch: f.State().Volume(id).Epoch})
		f.deny = volume.Errorf(volume.CodeNoQuorum, "no quorum")

		var log bytes.Buffer
		start(t, &Controller{Cluster: f, Log: slog.New(slog.NewTextHandler(&log, nil))})
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := strings.Count(log.String(), "no quorum"); n != 1 {
			t.Errorf("the refusal was logged %d times, want once:\n%s", n, log.String())
		}
		if f.denied < 100 || f.denied > 130 {
			t.Errorf("%d proposals in ten minutes of refusals, want one every 5 s", f.denied)
		}
	})
}
