package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/fence"
	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// TestTenure runs testdata/tenure.txt: a node's side of its lease, step by step. UPDATE
// writes what the code answers; the diff is the review. Each paragraph begins with a new machine. After each step, and each second, the node beats and
// looks after its fencer; then it says how it is: whether it may write, under which lease and until when
// (from now), the lease under which it has to stop its writers, and what its fencer does. While flockd does not know
// whether it may write, also what its beats say is stopped.
//
//	node n2         it is this one, which is the primary of nothing; else n1, which is
//	agreed WORD..   so much more the cluster has agreed on, see leaseState
//	sleep D         time goes by
//	silent, heard   from now on the leader answers no beat, or answers again
//	restart N       flockd begins anew with the first N words that were agreed on, as from
//	                its disk; it knows that there may be more
//	boot            the machine restarts; flockd has none of them, and its fencer remembers nothing
//	no-pool         it has all of them, and cannot act yet: its pool is not ready
//	caught-up       it has all of them
//	fencer down|up  the process; what it knows is in a file
//	pool ok|WORD..  what the pool does wrong from now on
//	instead ok|no   whether flockd itself can stop writers; at first there is no such thing
func TestTenure(t *testing.T) {
	const file = "testdata/tenure.txt"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	update := os.Getenv("UPDATE") != ""
	var out []string
	w := &tenureWorld{t: t}
	for line := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n") {
		if line == "" {
			w = &tenureWorld{t: t}
		}
		step, want, _ := strings.Cut(line, " => ")
		if line == "" || strings.HasPrefix(line, "#") {
			out = append(out, line)
			continue
		}
		got := w.step(strings.Fields(step))
		if got != want && !update {
			t.Errorf("%s\ngot:  %s\nwant: %s", step, got, want)
		}
		out = append(out, strings.TrimSpace(step)+" => "+got)
	}
	if update {
		if err := os.WriteFile(file, []byte(strings.Join(out, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// tenureWorld is one machine.
type tenureWorld struct {
	t      *testing.T
	now    lease.Moment
	agreed []string
	seen   int // words of agreed that the node has
	state  *state.State
	of     int // that many words
	fresh  bool
	caught bool
	boot   string // "": b
	told   uint64 // the lease that the last beat said is stopped
	silent bool
	fencer tenureFencer
	fences map[string]int
	node   *tenure
}

func (w *tenureWorld) start() {
	if w.fences == nil {
		w.now, w.fences, w.fresh = lease.Moment(time.Hour), map[string]int{}, true
	}
	n := newTenure()
	n.self, n.boot, n.root, n.log = nodeID("n1"), cmp.Or(w.boot, "b"), "tank/flocker", slog.New(slog.DiscardHandler)
	n.clock = func() lease.Moment { return w.now }
	n.fencer, n.wall = &w.fencer, time.Now
	n.state = func() *state.State {
		if w.state == nil || w.of != w.seen {
			w.state, w.of = leaseState(w.t, w.agreed[:w.seen]), w.seen
		}
		return w.state
	}
	n.news = func() <-chan struct{} { return nil }
	n.fresh, n.caught = func() bool { return w.fresh }, func() bool { return w.caught }
	n.leader = func() (volume.NodeID, bool) { return nodeID("n2"), true }
	n.send = func(_ context.Context, r api.BeatRequest) (api.BeatReply, error) {
		w.told = r.Beat.Stopped
		if w.silent {
			return api.BeatReply{}, errors.New("nobody answers")
		}
		return api.BeatReply{Answered: r.Beat.No != 0 && !r.Beat.Want && r.Problem == ""}, nil
	}
	n.count, n.moved = func(string) {}, func() {}
	n.fenced = func(result string) { w.fences[result]++ }
	if w.node != nil {
		n.self, n.instead = w.node.self, w.node.instead
	}
	w.node = n
	if n.ask(context.Background(), w.fencer.Status) == nil {
		n.recall()
	}
	n.Held() // it sees a state before anything is granted
}

func (w *tenureWorld) step(words []string) string {
	w.t.Helper()
	if w.node == nil {
		w.start()
	}
	switch words[0] {
	case "node":
		w.node.self = nodeID(words[1])
	case "agreed":
		w.agreed = append(w.agreed, words[1:]...)
		w.seen = len(w.agreed)
	case "sleep":
		d, err := time.ParseDuration(words[1])
		if err != nil {
			w.t.Fatal(err)
		}
		for end := w.now.Add(d); w.now < end; w.live() {
			w.now = min(end, w.now.Add(time.Second))
		}
	case "silent", "heard":
		w.silent = words[0] == "silent"
	case "restart":
		if _, err := fmt.Sscan(words[1], &w.seen); err != nil {
			w.t.Fatal(err)
		}
		w.fresh, w.caught = false, false
		w.start()
	case "boot":
		w.seen, w.fresh, w.caught, w.boot = 0, false, false, "b2"
		w.fencer.is = fence.Status{Boot: w.boot, State: fence.PhaseIdle, Safety: volume.SafetySoftware}
		w.start()
	case "caught-up":
		w.seen, w.fresh = len(w.agreed), true
	case "no-pool": // it has caught up, and its pool is not prepared
		w.seen, w.caught = len(w.agreed), true
	case "fencer":
		w.fencer.down = words[1] == "down"
	case "pool":
		w.node.unfit = ""
		if what := strings.Join(words[1:], " "); what != "ok" {
			w.node.unfit = what
		}
	case "instead":
		can := words[1] == "ok"
		w.node.instead = func(context.Context, string) error {
			if !can {
				return errors.New("the pool hangs")
			}
			return nil
		}
	default:
		w.t.Fatalf("no such step: %q", words)
	}
	w.live()
	return w.describe()
}

// live is what a node does all the time.
func (w *tenureWorld) live() {
	w.node.once(context.Background())
	w.node.guard(context.Background())
}

func (w *tenureWorld) describe() string {
	n := w.node
	held, why := n.Held()
	out := "may not write: " + why
	switch {
	case !w.fresh:
		out = "does not know whether it may write"
	case held:
		out = "may write"
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if no := n.holder.No(); no != 0 {
		out += fmt.Sprintf("; lease %d", no)
		if until, ok := n.holder.Deadline(); ok {
			out += fmt.Sprintf(" until %s", until.Sub(w.now))
		}
	}
	if no, over := n.overdue(w.now, n.state()); over {
		out += fmt.Sprintf("; stops %d", no)
	}
	out += "; fencer " + string(w.fencer.is.State)
	if w.fencer.down {
		out += " down"
	}
	for _, result := range fenceResults {
		if c := w.fences[result]; c > 0 {
			out += fmt.Sprintf(", %s %d", result, c)
		}
	}
	if !w.fresh && w.told != 0 {
		out += fmt.Sprintf("; tells that %d is stopped", w.told)
	}
	return out
}

// A fencer of another version is told, if it says its own and answers.
func TestOutdatedFencer(t *testing.T) {
	for _, c := range []struct {
		fencer string
		mute   bool
		told   bool
	}{{"1.1", false, false}, {"1.0", false, true}, {"1.0", true, false}, {"", false, false}} {
		n := newTenure()
		n.fencing.Version, n.mute = c.fencer, c.mute
		if got := n.outdated("1.1"); (got != "") != c.told || c.told && !strings.Contains(got, "the fencer is of version 1.0, and flockd of 1.1") {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

// A snapshot counts where this node had the right to write from before it until after.
func TestThroughout(t *testing.T) {
	const leased = "agreed arm grant n1; agreed complete n1"
	for _, c := range []struct {
		name, before, during string
		want                 string // of the refusal
		taken                bool
	}{
		{"under a lease", leased, "sleep 2s", "", true},
		{"without one", "", "sleep 2s", "", true},
		{"failover is armed meanwhile", "", "agreed arm grant n1; agreed complete n1", "", true},
		{"failover is turned off meanwhile", leased, "agreed disarm", "", true},
		{"it was over before", leased + "; silent; sleep 11s", "", "no snapshot was taken: the lease of this node is over", false},
		{"it runs out", leased + "; silent", "sleep 11s", "nobody knows whether", true},
		{"there is another one after it", leased, "silent; sleep 11s; heard; agreed revoke n1 grant n1; sleep 2s", "nobody knows whether", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &tenureWorld{t: t}
			w.start()
			do := func(steps string) {
				for step := range strings.SplitSeq(steps, "; ") {
					if step != "" {
						w.step(strings.Fields(step))
					}
				}
			}
			do(c.before)
			taken := false
			err := w.node.throughout(func() error { taken = true; do(c.during); return nil })
			if taken != c.taken || c.want == "" && err != nil || c.want != "" && (volume.CodeOf(err) != volume.CodeUnavailable || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, taken: %v; want %q", err, taken, c.want)
			}
			if held, why := w.node.Held(); c.name == "there is another one after it" && !held {
				t.Errorf("it has no other: %s", why)
			}
			full := errors.New("the pool is full")
			if err := w.node.throughout(func() error { return full }); c.want == "" && !errors.Is(err, full) {
				t.Errorf("what was not taken: %v", err)
			}
		})
	}
}

// tenureFencer keeps what it is told, and has stopped all writers when it is told to.
type tenureFencer struct {
	is   fence.Status
	down bool
}

func (f *tenureFencer) do(change func()) (fence.Status, error) {
	if f.down {
		return fence.Status{}, errors.New("nobody at its socket")
	}
	if f.is.State == "" {
		f.is.State, f.is.Boot, f.is.Safety = fence.PhaseIdle, "b", volume.SafetySysrq
	}
	change()
	f.is.Saved = lease.Saved{No: f.is.Lease.No, TTL: f.is.Lease.TTL, Until: f.is.Lease.Until, Begun: f.is.Lease.No != 0, Over: f.is.State == fence.PhaseFenced}
	return f.is, nil
}

func (f *tenureFencer) Arm(_ context.Context, l fence.Lease) (fence.Status, error) {
	return f.do(func() {
		if l.No > f.is.Lease.No || l.No == f.is.Lease.No && f.is.State == fence.PhaseArmed && l.Until > f.is.Lease.Until {
			f.is.Lease, f.is.State = l, fence.PhaseArmed
		}
	})
}

func (f *tenureFencer) Fence(_ context.Context, no uint64, _ string) (fence.Status, error) {
	return f.do(func() {
		if no >= f.is.Lease.No {
			f.is.State = fence.PhaseFenced
		}
	})
}

func (f *tenureFencer) Disarm(context.Context) (fence.Status, error) {
	return f.do(func() { f.is.State, f.is.Lease = fence.PhaseIdle, fence.Lease{} })
}

func (f *tenureFencer) Hold(ctx context.Context, _, why string) (fence.Status, error) {
	return f.Fence(ctx, f.is.Lease.No, why)
}

func (f *tenureFencer) Lift(context.Context) (fence.Status, error)   { return f.do(func() {}) }
func (f *tenureFencer) Status(context.Context) (fence.Status, error) { return f.do(func() {}) }
func (f *tenureFencer) Forget(context.Context, []string) error       { return nil }
