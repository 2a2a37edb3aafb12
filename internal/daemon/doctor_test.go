package daemon

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/api/apitest"
	"github.com/flocker-io/flocker/internal/doctor"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// How a node answers: with facts, as one of a version before doctor, or not.
func TestAskOfNodes(t *testing.T) {
	fake := apitest.Cluster()
	l := apitest.NewListener()
	log := slog.New(slog.DiscardHandler)
	ctx, stop := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	serving.Go(func() { api.ServeLocal(ctx, l, api.NewHandler(fake, nil, log), log) })
	defer serving.Wait()
	defer stop()
	client := api.NewClient(l.Dial)
	defer client.Close()
	m := &member{self: "me", clients: map[volume.NodeID]*api.Client{apitest.Beta.ID: client}}
	clock := apitest.Now.Add(-time.Hour) // of the asker: the fake's is an hour ahead, and stands still
	d := &Daemon{parts: Parts{Now: func() time.Time { clock = clock.Add(time.Second); return clock }}}

	n := doctor.Node{ID: apitest.Beta.ID}
	if d.ask(ctx, m, &n); n.Facts == nil || n.Facts.Node != apitest.Beta.ID || n.Error != "" || n.Old {
		t.Errorf("one that answers: %+v", n)
	}
	if n.Ahead != time.Hour-1500*time.Millisecond || n.Unsure != 500*time.Millisecond {
		t.Errorf("its clock is %s ahead, give or take %s", n.Ahead, n.Unsure)
	}
	fake.Fail("Facts", volume.Errorf(volume.CodeNotFound, "no /v1/facts in this API"))
	n = doctor.Node{ID: apitest.Beta.ID}
	if d.ask(ctx, m, &n); n.Facts != nil || n.Error != "" || !n.Old {
		t.Errorf("an older one: %+v", n)
	}
	fake.Fail("Facts", volume.Errorf(volume.CodeUnavailable, "it burns"))
	n = doctor.Node{ID: apitest.Beta.ID}
	if d.ask(ctx, m, &n); n.Facts != nil || !strings.Contains(n.Error, "it burns") || n.Old {
		t.Errorf("one that does not: %+v", n)
	}
}

// What changed while the nodes were asked is held against nobody.
func TestKnown(t *testing.T) {
	s, index := state.New(), uint64(0)
	apply := func(c state.Command) {
		t.Helper()
		index++
		next, res := state.Apply(s, index, state.Envelope{At: apitest.Now, Command: c})
		if res.Err != nil {
			t.Fatal(res.Err)
		}
		s = next
	}
	a, b := volume.NewNodeID(), volume.NewNodeID()
	apply(state.InitCluster{Cluster: state.Cluster{ID: "c1"}, Node: state.Node{ID: a, Name: "a"}})
	apply(state.CreateToken{Token: state.Token{ID: "t", Expires: apitest.Now.Add(time.Hour)}})
	apply(state.AddNode{Node: state.Node{ID: b, Name: "b"}, Token: "t"})
	create := func(id volume.ID, name string) {
		t.Helper()
		apply(state.CreateVolume{ID: id, Name: name, Placement: volume.Placement{Primary: a, Local: []volume.NodeID{b}}})
	}
	const still, moves, made, came volume.ID = "0000000000000001", "0000000000000002", "0000000000000003", "0000000000000004"
	create(still, "still")
	create(moves, "moves")
	create(made, "made") // is yet to be confirmed
	for _, id := range []volume.ID{still, moves} {
		apply(state.ConfirmCreate{ID: id, Epoch: s.Volume(id).Epoch})
	}
	before := s
	apply(state.SetReplicas{ID: moves, Epoch: s.Volume(moves).Epoch})
	create(came, "came")
	got := known(before, s)
	for id, moving := range map[volume.ID]bool{still: false, moves: true, made: true, came: true} {
		if v, ok := got.Volumes[id]; !ok || v.Moving != moving || v.Primary != a || !v.Live {
			t.Errorf("%s: %+v, want moving %v", s.Volume(id).Name, v, moving)
		}
	}
	if v := got.Volumes[still]; !slices.Equal(v.Copies, []volume.NodeID{a, b}) {
		t.Errorf("got %+v of %+v", v, got)
	}
}

// A part that never answers keeps nobody waiting, is not asked twice, and is waited for at the
// end.
func TestGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a asking
		hang := make(chan struct{})
		var asked atomic.Int32
		parts := []part{
			{"good", func(context.Context) (func(*doctor.Facts), error) {
				return func(f *doctor.Facts) { f.Applied = 7 }, nil
			}},
			{"bad", func(context.Context) (func(*doctor.Facts), error) { return nil, errors.New("no such pool") }},
			{"half", func(context.Context) (func(*doctor.Facts), error) {
				return func(f *doctor.Facts) { f.Version = "told" }, errors.New("no features")
			}},
			{"hung", func(context.Context) (func(*doctor.Facts), error) {
				asked.Add(1)
				<-hang
				return func(f *doctor.Facts) { f.Applied = 0 }, nil
			}},
		}
		ask := func() (f doctor.Facts, took time.Duration) {
			began := time.Now()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			a.gather(ctx, &f, parts)
			return f, time.Since(began)
		}
		unknown := func(f doctor.Facts) string {
			var all []string
			for _, u := range f.Unknown {
				all = append(all, u.Check+": "+u.Why)
			}
			return strings.Join(all, "; ")
		}
		f, took := ask()
		if got, want := unknown(f), "bad: no such pool; half: no features; hung: no answer within 8s"; got != want || f.Applied != 7 || f.Version != "told" {
			t.Errorf("got %q, %+v; want %q", got, f, want)
		}
		if took != examineTimeout+time.Second {
			t.Errorf("it took %s", took)
		}
		f, took = ask()
		if got := unknown(f); !strings.Contains(got, "hung: it does not answer an earlier question either") || took != 0 || asked.Load() != 1 {
			t.Errorf("again: %q after %s, asked %d times", got, took, asked.Load())
		}
		close(hang)
		a.wait()
		if f, _ = ask(); strings.Contains(unknown(f), "hung") || asked.Load() != 2 {
			t.Errorf("when it answers again: %q", unknown(f))
		}
		a.wait()
	})
}

// Who asks while another does gets an answer of its own time, with all others that wait, and nobody is
// told that it does not answer.
func TestGatherAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a asking
		var asked atomic.Uint64
		parts := []part{{"slow", func(context.Context) (func(*doctor.Facts), error) {
			n := asked.Add(1)
			time.Sleep(3 * time.Second)
			return func(f *doctor.Facts) { f.Applied = n }, nil
		}}}
		var all sync.WaitGroup
		var got [3]doctor.Facts
		var took [3]time.Duration
		for i := range got {
			all.Go(func() {
				began := time.Now()
				a.gather(t.Context(), &got[i], parts)
				took[i] = time.Since(began)
			})
			synctest.Wait()
			time.Sleep(time.Second)
		}
		all.Wait()
		for i, want := range []uint64{1, 2, 2} {
			if got[i].Applied != want || len(got[i].Unknown) > 0 || took[i] > examineTimeout {
				t.Errorf("asker %d got the answer to question %d, %v after %s", i+1, got[i].Applied, got[i].Unknown, took[i])
			}
		}
		if asked.Load() != 2 {
			t.Errorf("asked %d times for three", asked.Load())
		}
		a.wait()
	})
}

// hanging is an Examiner of a machine whose ZFS never answers, and one whose files never do.
type hanging struct {
	until chan struct{}
	heeds *atomic.Int32 // how often what heeds its context has ended
}

func (h hanging) Clock() (*doctor.Clock, error) { <-h.until; return nil, nil }
func (h hanging) Mount() (*doctor.Mount, error) { return &doctor.Mount{Shared: true}, nil }
func (h hanging) Ports(ctx context.Context, _ bool) ([]doctor.Port, error) {
	<-ctx.Done()
	h.heeds.Add(1)
	return nil, context.Cause(ctx)
}
func (h hanging) Versions(context.Context) (zfs.Capabilities, error) {
	<-h.until
	return zfs.Capabilities{}, nil
}
func (h hanging) Features(context.Context, string) (map[string]string, error) { return nil, nil }

// The end of flockd does not wait for what hangs, since leases are not renewed meanwhile; neither does
// who asked.
func TestStopWithoutAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hanging{make(chan struct{}), new(atomic.Int32)}
		defer close(h.until)
		d := New(Parts{StateDir: t.TempDir(), Examiner: h})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- d.Run(ctx) }()
		synctest.Wait()
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			d.facts(t.Context(), nil) // by somebody who does not go away
		}()
		synctest.Wait()
		began := time.Now()
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("flockd ended after %s", took)
		}
		if h.heeds.Load() != 1 {
			t.Error("what heeds the end of flockd was not told of it")
		}
		<-asked
		if took := time.Since(began); took > examineTimeout+time.Second {
			t.Errorf("the asker waited %s", took)
		}

		gone, leave := context.WithCancel(t.Context())
		leave()
		began = time.Now()
		other := New(Parts{StateDir: t.TempDir(), Examiner: h})
		other.asking.until(gone) // so that only the files hang
		other.facts(gone, nil)
		if took := time.Since(began); took != 0 {
			t.Errorf("one who has gone waited %s", took)
		}
	})
}

// The end waits for what ends soon.
func TestStopJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a asking
		ctx, stop := context.WithCancel(t.Context())
		a.until(ctx)
		var ended atomic.Bool
		go a.gather(t.Context(), &doctor.Facts{}, []part{{"soon", func(ctx context.Context) (func(*doctor.Facts), error) {
			<-ctx.Done()
			time.Sleep(100 * time.Millisecond)
			ended.Store(true)
			return nil, nil
		}}})
		synctest.Wait()
		stop()
		a.wait()
		if !ended.Load() {
			t.Error("left behind though it would have ended")
		}
	})
}
