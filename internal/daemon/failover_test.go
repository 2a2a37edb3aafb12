package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/placement"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// voters is an electorate: three nodes, of which n1 is silent, and what each says when
// it is asked.
type voters struct {
	t  *testing.T
	mu sync.Mutex
	st *state.State
	// say is what a node answers for a volume; nil: it never does.
	say     map[volume.NodeID]func(api.PromiseFor) api.PromiseAnswer
	reports map[volume.NodeID]placement.Heard
	calls   map[volume.NodeID]int
	changed chan struct{}
	life    time.Time // of n1, by its beats
	counts  map[string]int
	deaf    bool // answers to what is proposed are lost
}

func (f *voters) count(result string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts[result]++
}

func (f *voters) Life(node volume.NodeID) time.Time {
	if node != "n1" {
		return time.Time{}
	}
	return f.life
}

func (f *voters) State() *state.State {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.st
}

func (f *voters) Reports() map[volume.NodeID]placement.Heard {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.reports)
}

func (f *voters) Propose(_ context.Context, c state.Command) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next, res := state.Apply(f.st, f.st.Index+1, state.Envelope{At: time.Now(), Command: c})
	f.st = next
	ring(f.changed)
	if res.Err != nil {
		return res.Err
	}
	if f.deaf {
		return volume.Errorf(volume.CodeTimeout, "no answer from the leader in time")
	}
	return nil
}

func (f *voters) Promise(ctx context.Context, node volume.NodeID, req api.PromiseRequest) (api.PromiseReply, error) {
	f.mu.Lock()
	say := f.say[node]
	f.calls[node]++
	f.mu.Unlock()
	if say == nil {
		<-ctx.Done()
		return api.PromiseReply{}, volume.Errorf(volume.CodeTimeout, "no answer from flockd in time")
	}
	var rep api.PromiseReply
	for _, v := range req.Volumes {
		rep.Answers = append(rep.Answers, say(v))
	}
	return rep, nil
}

func (f *voters) answers(node volume.NodeID, say func(api.PromiseFor) api.PromiseAnswer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.say[node] = say
}

// holds is the answer of a node whose copy stands there, complete as of that long ago.
func holds(seq uint64, ago time.Duration) func(api.PromiseFor) api.PromiseAnswer {
	asOf := time.Now().Add(-ago)
	return func(v api.PromiseFor) api.PromiseAnswer {
		return api.PromiseAnswer{ID: v.ID, Promise: volume.Promise{Epoch: v.Epoch, Exists: true, AsOf: asOf,
			Newest: volume.Position{Epoch: 1, Seq: seq, GUID: seq}}}
	}
}

func (f *voters) events(kind string) (n int) {
	for e := range f.State().Events(0) {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

func (f *voters) primary() volume.NodeID { return f.State().Volume("v").Placement.Primary }

// elect runs elections of volume pg, whose primary n1 is lost, in a bubble.
func elect(t *testing.T, spec func(*volume.Spec), test func(*voters, *elections)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := testState(t, confirmed)
		v := *s.Volume("v")
		v.Spec.Failover, v.Spec.MaxLoss = volume.FailoverAuto, time.Minute
		if spec != nil {
			spec(&v.Spec)
		}
		f := &voters{t: t, st: s, say: map[volume.NodeID]func(api.PromiseFor) api.PromiseAnswer{},
			calls: map[volume.NodeID]int{}, counts: map[string]int{}, changed: make(chan struct{}, 1)}
		if err := f.Propose(context.Background(), state.UpdateSpec{ID: "v", Spec: v.Spec}); err != nil {
			t.Fatal(err)
		}
		f.reports = map[volume.NodeID]placement.Heard{}
		for _, id := range []volume.NodeID{"n1", "n2", "n3"} {
			at := time.Now().Add(time.Hour)
			if id == "n1" {
				at = time.Now().Add(-20 * time.Second)
			}
			r := &volume.Report{Node: id, At: at, Applied: 1, Pool: volume.PoolInfo{Health: "ONLINE", Size: 1 << 30, Free: 1 << 30}}
			if id == "n1" {
				r.Volumes = []volume.Status{{Volume: "v", Exists: true, Links: []volume.LinkStatus{
					{Replica: "n2", Acked: volume.Position{Epoch: 1, Seq: 7, GUID: 7}, CompleteAsOf: at},
				}}}
			}
			f.reports[id] = placement.Heard{Report: r, At: at}
		}
		e := newElections(f, time.Now, f.count, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() { e.Run(ctx, f.changed) })
		defer running.Wait()
		defer cancel()
		test(f, e)
	})
}

func (e *elections) grant(f *voters, w placement.Wish) error {
	defer e.wish("v", &w)()
	return e.granted(context.Background(), f.State().Volume("v"), &w)
}

func (f *voters) lose() {
	f.t.Helper()
	if err := f.Propose(context.Background(), state.BeginElection{ID: "v", Epoch: f.State().Volume("v").Epoch, Reason: "test", Fenced: true}); err != nil {
		f.t.Fatal(err)
	}
}

// All with a copy are asked at once, and the best of those that answer is committed
// without waiting for the dead one.
func TestElection(t *testing.T) {
	elect(t, nil, func(f *voters, e *elections) {
		f.answers("n2", holds(7, 21*time.Second))
		f.answers("n3", holds(8, 20*time.Second))
		f.lose()
		time.Sleep(500 * time.Millisecond)
		if got := f.primary(); got != "n3" {
			t.Errorf("primary is %q, want n3; %v", got, e.waits())
		}
		time.Sleep(time.Minute)
		if n := f.events("volume.failed-over"); n != 1 {
			t.Errorf("%d failovers, want one", n)
		}
		if !maps.Equal(f.counts, map[string]int{"promoted": 1}) {
			t.Errorf("counted %v", f.counts)
		}
		// Complete as of 20 s before all this began, which is when n1 was last heard of, too.
		o := f.State().Volume("v").LastFailover
		if o == nil || o.From != "n1" || o.To != "n3" || o.Start.GUID != 8 || !o.Nothing() || o.Bytes == nil || !o.AsOf.Equal(o.Life) {
			t.Errorf("it keeps %+v", o)
		}
		if len(e.waits()) != 0 {
			t.Errorf("it still waits: %v", e.waits())
		}
	})
}

// A node that is slow to answer is waited for, but not for ever; what it said of itself
// before it was lost counts.
func TestElectionWaitsForTheSlow(t *testing.T) {
	elect(t, nil, func(f *voters, e *elections) {
		f.answers("n2", holds(7, time.Hour))
		slow := holds(9, 20*time.Second)
		f.answers("n3", func(v api.PromiseFor) api.PromiseAnswer { time.Sleep(2 * time.Second); return slow(v) })
		f.lose()
		time.Sleep(time.Second)
		if got := f.primary(); got != "" {
			t.Fatalf("primary is %q before n3 has answered", got)
		}
		if why := e.waits()["v"]; !strings.Contains(why, "n3 has not answered") {
			t.Errorf("it says %q", why)
		}
		time.Sleep(2 * time.Second)
		if got := f.primary(); got != "n3" {
			t.Errorf("primary is %q, want n3; %v", got, e.waits())
		}
	})
	elect(t, nil, func(f *voters, e *elections) {
		f.answers("n2", holds(7, time.Hour))
		f.lose()
		time.Sleep(askTimeout + time.Second)
		if got := f.primary(); got != "n2" {
			t.Errorf("primary is %q, want n2, which n1 had called complete; %v", got, e.waits())
		}
	})
}

// heard makes n1 one that has just reported.
func (f *voters) heard() {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.reports["n1"]
	r := *h.Report
	r.At = time.Now()
	f.reports["n1"] = placement.Heard{Report: &r, At: time.Now().Add(time.Hour)}
}

// An old primary that lives and may write, and has merely not answered, is waited for longer
// than others. An event says until when, once; and who accepts the loss is not kept waiting.
func TestElectionWaitsForItsOldPrimary(t *testing.T) {
	promote := timersOf(testState(t, confirmed)).Promote
	for _, slow := range []func(api.PromiseFor) api.PromiseAnswer{
		nil, // no call is answered
		func(v api.PromiseFor) api.PromiseAnswer {
			return api.PromiseAnswer{ID: v.ID, Error: "it is still reading its copy", Reading: true}
		},
	} {
		elect(t, nil, func(f *voters, e *elections) {
			f.heard()
			f.answers("n1", slow)
			f.answers("n2", holds(7, 0))
			f.answers("n3", holds(7, 0))
			f.lose()
			time.Sleep(forbearance*promote - time.Second)
			if got := f.primary(); got != "" {
				t.Fatalf("primary is %q before n1 was waited for", got)
			}
			if why := e.waits()["v"]; !strings.Contains(why, "until "+time.Now().Add(time.Second).UTC().Format("2006-01-02T15:04:0")) || !strings.Contains(why, "flockctl failover pg --accept-loss") {
				t.Errorf("it says %q", why)
			}
			if n := f.events(state.VolumeWaits); n != 1 {
				t.Errorf("%d events that it is waited for, want one", n)
			}
			time.Sleep(2 * time.Second)
			if got := f.primary(); got == "" || got == "n1" {
				t.Errorf("primary is %q when n1 was waited for; %v", got, e.waits())
			}
		})
		elect(t, nil, func(f *voters, e *elections) {
			f.heard()
			f.answers("n1", slow)
			f.answers("n2", holds(7, 0))
			f.answers("n3", holds(7, 0))
			f.lose()
			time.Sleep(promote)
			if err := e.grant(f, placement.Wish{AcceptLoss: true}); err != nil || f.primary() == "" {
				t.Errorf("an operator who accepts the loss: %v, primary %q", err, f.primary())
			}
		})
	}
	elect(t, nil, func(f *voters, e *elections) {
		f.heard()
		f.answers("n1", func(v api.PromiseFor) api.PromiseAnswer {
			return api.PromiseAnswer{ID: v.ID, Error: "its pool hangs"}
		})
		f.answers("n2", holds(7, 0))
		f.answers("n3", holds(7, 0))
		f.lose()
		time.Sleep(promote + time.Second)
		if got := f.primary(); got == "" {
			t.Errorf("n1, which cannot, is waited for: %v", e.waits())
		}
	})
}

// Volumes of one container that are promoted in one look go to one node.
func TestElectionOfCompany(t *testing.T) {
	elect(t, nil, func(f *voters, e *elections) {
		f.answers("n2", holds(7, 20*time.Second))
		f.answers("n3", holds(7, 20*time.Second))
		for i, prefer := range []string{"n2", "n3"} {
			id := volume.ID(fmt.Sprintf("%016x", i))
			spec := f.State().Volume("v").Spec
			spec.Prefer = []string{f.State().NodeName(volume.NodeID(prefer))}
			for _, c := range []state.Command{
				state.CreateVolume{ID: id, Name: "v" + string(id), Spec: spec, Placement: f.State().Volume("v").Placement},
				state.ConfirmCreate{ID: id, Epoch: 1},
			} {
				if err := f.Propose(context.Background(), c); err != nil {
					t.Fatal(err)
				}
			}
		}
		both := []state.ContainerVolume{{ID: "0000000000000000", Epoch: 1}, {ID: "0000000000000001", Epoch: 1}}
		if err := f.Propose(context.Background(), state.PutContainer{Container: state.Container{Name: "web", ID: "aa", Node: "n1", Volumes: both, Run: true}}); err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		for _, cv := range both { // at once, so that one look has both
			var res state.Result
			f.st, res = state.Apply(f.st, f.st.Index+1, state.Envelope{At: time.Now(), Command: state.BeginElection{ID: cv.ID, Epoch: 1, Fenced: true, Reason: "test"}})
			if res.Err != nil {
				t.Error(res.Err)
			}
		}
		ring(f.changed)
		f.mu.Unlock()
		time.Sleep(time.Second)
		a, b := f.State().Volume(both[0].ID).Placement.Primary, f.State().Volume(both[1].ID).Placement.Primary
		if a != "n2" || b != a {
			t.Errorf("the primaries are %q and %q, want n2 for both", a, b)
		}
	})
}

// An election is counted once, by what was committed, whether its answer came or not.
func TestElectionIsCountedByItsCommit(t *testing.T) {
	for _, best := range []volume.NodeID{"n1", "n3"} {
		elect(t, nil, func(f *voters, e *elections) {
			for _, id := range []volume.NodeID{"n1", "n2", "n3"} {
				say := holds(7, time.Minute)
				if id == best {
					say = holds(8, 0)
				}
				f.answers(id, func(v api.PromiseFor) api.PromiseAnswer {
					if id != "n1" { // for which, as it was lost, nobody waits
						time.Sleep(time.Second)
					}
					return say(v)
				})
			}
			f.lose()
			f.mu.Lock()
			f.deaf = true
			f.mu.Unlock()
			time.Sleep(time.Minute)
			want := map[string]int{"promoted": 1}
			if best == "n1" {
				want = map[string]int{"kept": 1}
			}
			if got := f.primary(); got != best || !maps.Equal(f.counts, want) {
				t.Errorf("primary is %q, counted %v; want %q, %v", got, f.counts, best, want)
			}
		})
	}
}

// What an answer of another epoch says, or none, is no position.
func TestElectionBelievesNoOtherEpoch(t *testing.T) {
	elect(t, nil, func(f *voters, e *elections) {
		old := holds(9, 0)
		f.answers("n2", func(v api.PromiseFor) api.PromiseAnswer { v.Epoch--; return old(v) })
		f.answers("n3", func(v api.PromiseFor) api.PromiseAnswer {
			return api.PromiseAnswer{ID: v.ID, Error: "its pool hangs"}
		})
		f.lose()
		time.Sleep(time.Minute)
		if got := f.primary(); got != "" {
			t.Errorf("primary is %q", got)
		}
		if why := e.waits()["v"]; !strings.Contains(why, "its pool hangs") {
			t.Errorf("it says %q", why)
		}
		if n := f.events(state.VolumeHeld); n != 1 || !maps.Equal(f.counts, map[string]int{"held": 1}) {
			t.Errorf("%d events that nobody can be promoted, counted as %v, want one", n, f.counts)
		}
	})
}

// Too much would be lost: nobody is promoted until an operator accepts that.
func TestElectionHeldByMaxLoss(t *testing.T) {
	elect(t, nil, func(f *voters, e *elections) {
		f.answers("n2", holds(5, time.Hour))
		f.answers("n3", holds(6, time.Hour))
		f.lose()
		time.Sleep(time.Minute)
		if got := f.primary(); got != "" {
			t.Fatalf("primary is %q though an hour may be lost", got)
		}
		err := e.grant(f, placement.Wish{})
		if volume.CodeOf(err) != volume.CodeRefused || !strings.Contains(err.Error(), "--accept-loss") {
			t.Errorf("a wish that accepts no loss: %v", err)
		}
		if err := e.grant(f, placement.Wish{AcceptLoss: true}); err != nil {
			t.Error(err)
		}
		if got := f.primary(); got != "n3" {
			t.Errorf("primary is %q, want n3", got)
		}
	})
}

// What the old primary may have written after its last report counts, too, where a beat
// proves that it lived on: with the report alone 55 s are lost, and 70 s are too many.
func TestElectionCountsBeats(t *testing.T) {
	for _, tt := range []struct {
		life time.Duration // before now; 0: no beat is known
		want volume.NodeID
	}{{0, "n3"}, {30 * time.Second, "n3"}, {5 * time.Second, ""}} {
		elect(t, nil, func(f *voters, e *elections) {
			if tt.life != 0 {
				f.life = time.Now().Add(-tt.life)
			}
			f.answers("n3", holds(6, 75*time.Second))
			f.lose()
			time.Sleep(time.Minute)
			if got := f.primary(); got != tt.want {
				t.Errorf("its last beat was %s ago: primary is %q, want %q; %v", tt.life, got, tt.want, e.waits())
			}
		})
	}
}

// A wish that could not be granted is forgotten: nothing happens behind the back of
// somebody who was told no.
func TestRefusedWishIsOver(t *testing.T) {
	elect(t, func(s *volume.Spec) { s.Failover = volume.FailoverManual }, func(f *voters, e *elections) {
		f.lose()
		time.Sleep(time.Minute)
		err := e.grant(f, placement.Wish{})
		if err == nil || f.primary() != "" {
			t.Fatalf("without any answer: %v, primary %q", err, f.primary())
		}
		f.answers("n2", holds(7, 20*time.Second))
		time.Sleep(time.Minute)
		if got := f.primary(); got != "" {
			t.Errorf("primary is %q, a minute after the wish was refused", got)
		}
		if err := e.grant(f, placement.Wish{}); err != nil || f.primary() != "n2" {
			t.Errorf("asked again: %v, primary %q", err, f.primary())
		}
	})
}

// The old primary comes back and keeps the volume, whatever failover the volume has.
func TestOldPrimaryKeepsTheVolume(t *testing.T) {
	elect(t, func(s *volume.Spec) { s.Failover = volume.FailoverNever }, func(f *voters, e *elections) {
		f.answers("n2", holds(7, 20*time.Second))
		f.answers("n3", holds(7, 20*time.Second))
		f.lose()
		time.Sleep(time.Minute)
		if got := f.primary(); got != "" {
			t.Fatalf("primary is %q", got)
		}
		f.answers("n1", holds(7, time.Hour))
		time.Sleep(20 * time.Second)
		if got := f.primary(); got != "n1" {
			t.Errorf("primary is %q, want n1; %v", got, e.waits())
		}
		if n := f.events("volume.kept"); n != 1 {
			t.Errorf("%d events that it was kept, want one", n)
		}
	})
}

// loseMore makes and loses so many volumes like pg.
func (f *voters) loseMore(n int) {
	f.t.Helper()
	for i := range n {
		id := volume.ID(fmt.Sprintf("%016x", i))
		for _, c := range []state.Command{
			state.CreateVolume{ID: id, Name: "v" + string(id), Spec: f.State().Volume("v").Spec, Placement: f.State().Volume("v").Placement},
			state.ConfirmCreate{ID: id, Epoch: 1},
			state.BeginElection{ID: id, Epoch: 1, Fenced: true, Reason: "test"},
		} {
			if err := f.Propose(context.Background(), c); err != nil {
				f.t.Fatal(err)
			}
		}
	}
}

// Many volumes are lost at once. The node that has most answers late, and about a part of
// them at a time; no volume goes to the quick one, whichever comes last.
func TestElectionOfManyWaitsForTheSlow(t *testing.T) {
	elect(t, nil, func(f *voters, e *elections) {
		f.answers("n2", holds(7, 20*time.Second))
		slow := holds(9, 20*time.Second)
		var call sync.Mutex
		last := time.Time{}
		f.answers("n3", func(v api.PromiseFor) api.PromiseAnswer {
			call.Lock()
			defer call.Unlock()
			if time.Since(last) > 50*time.Millisecond { // the first of a call
				time.Sleep(4 * time.Second)
			}
			last = time.Now()
			return slow(v)
		})
		f.loseMore(3*askMost - 1)
		f.lose()
		time.Sleep(20 * time.Second)
		got := map[volume.NodeID]int{}
		for v := range f.State().Volumes() {
			got[v.Placement.Primary]++
		}
		if want := 3 * askMost; got["n3"] != want {
			t.Errorf("primaries: %v, want %d on n3, which has more", got, want)
		}
	})
}

// A dead node is asked now and then, and a thousand volumes cost few calls.
func TestElectionCalls(t *testing.T) {
	elect(t, func(s *volume.Spec) { s.Failover = volume.FailoverManual }, func(f *voters, _ *elections) {
		f.loseMore(1000)
		f.answers("n2", holds(7, 20*time.Second))
		f.answers("n3", holds(7, 20*time.Second))
		time.Sleep(25 * time.Second)
		f.mu.Lock()
		defer f.mu.Unlock()
		if n := f.calls["n2"]; n < 1000/askMost || n > 2*1000/askMost+2 {
			t.Errorf("n2 was asked %d times about a thousand volumes", n)
		}
		if n := f.calls["n1"]; n > 10 {
			t.Errorf("n1, which does not answer, was asked %d times", n)
		}
	})
}

// A volume without a primary says why, whoever is asked.
func TestViewOfElection(t *testing.T) {
	s := testState(t, confirmed, state.BeginElection{ID: "v", Epoch: 1, Reason: "its machine is off", Fenced: true})
	v := view{state: s, stale: 10 * time.Second, waits: map[volume.ID]string{"v": "waiting: n3 has not answered"},
		heard: func(volume.NodeID) (heard, bool) { return heard{}, false }}
	got := v.volume(s.Volume("v"))
	want := "getting another primary than n1 (its machine is off): waiting: n3 has not answered"
	if got.Health != api.HealthUnavailable || got.Reason != want || got.Phase != "electing" || len(got.Replicas) != 3 {
		t.Errorf("got %s (%s), phase %s, %d replicas; want %s", got.Health, got.Reason, got.Phase, len(got.Replicas), want)
	}
}
