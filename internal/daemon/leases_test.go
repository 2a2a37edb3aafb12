package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/fence"
	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// What a leader commits about leases, case by case. A node is written n1:WORD,..; the
// state begins with three nodes, of which n1 is the primary of a volume.
func TestDecideLeases(t *testing.T) {
	const fit = "n1:heard n2:heard n3:heard"
	const unsafe = "promoting after 15s could make a second writer: a lease of 10s and 5s to fence, with clocks that are a twelfth off, need 18.727272727s"
	const asking = "n1:heard,want n2:heard,want n3:heard,want"
	tests := []struct {
		name   string
		before string // arm, grant NODE.., revoke NODE, complete NODE.., disarm, and settings
		view   string // voters=N election=D leading=D arming=D, and nodes
		want   string
	}{
		{"three voters and all fit", "", "voters=3 " + fit, "arm 1 default"},
		{"by the settings' profile", "lease=lab", "voters=3 " + fit, "arm 1 lab"},
		{"a profile that does not outlast an election", "lease=fast", "voters=3 election=6s " + fit, ""},
		{"two voters", "", "voters=2 " + fit, ""},
		{"voters not known", "", "voters=0 " + fit, ""},
		{"an operator wants manual", "failover=manual", "voters=3 " + fit, ""},
		{"a writer is not heard", "", "voters=3 leading=1h n2:heard n3:heard", ""},
		{"a node without writers is not heard yet", "", "voters=3 leading=10s n1:heard n2:heard", ""},
		{"a node without writers is dead", "", "voters=3 leading=2m n1:heard n2:heard", "arm 1 default"},
		{"a node without writers has no fencer", "", "voters=3 leading=2m n1:heard n2:heard n3:heard,unfit", ""},

		{"who asks gets a lease", "arm", "voters=3 " + asking, "grant n1 1; grant n2 1; grant n3 1"},
		{"who is unfit gets none", "arm", "voters=3 n1:heard,want n2:heard,want,unfit n3:want", "grant n1 1"},
		{"nor who asks in another round", "arm", "voters=3 n1:heard,want,round=7", ""},
		{"the writers were heard", "arm grant n1", "voters=3 n1:heard,beat=1 n2:heard,want", "complete n1=1"},
		{"not under this lease", "arm grant n1", "voters=3 n1:heard,beat=7 n2:heard", ""},
		{"a writer does not come", "arm", "voters=3 arming=61s n2:heard n3:heard", "disarm node n1 is not heard of"},
		{"it gets its time", "arm", "voters=3 arming=59s n2:heard n3:heard", ""},
		{"a silent one in arming", "arm grant n1", "voters=3 n1:lost n2:heard n3:heard", ""},
		{"one that has stopped in arming", "arm grant n1", "voters=3 n1:lost,proven n2:heard n3:heard", "revoke n1 1 proven"},

		{"nothing to do", "arm grant n1 complete n1", "voters=3 n1:heard,beat=1 n2:heard n3:heard", ""},
		{"lost by time", "arm grant n1 complete n1", "voters=3 n1:lost n2:heard n3:heard", "revoke n1 1 by time"},
		{"stopped by its own word", "arm grant n1 complete n1", "voters=3 n1:heard,lost,proven,want n2:heard n3:heard", "revoke n1 1 proven"},
		{"a valid lease is not granted again", "arm grant n1 complete n1", "voters=3 n1:heard,want n2:heard n3:heard", ""},
		{"after that it gets the next", "arm grant n1 complete n1 revoke n1", "voters=3 n1:heard,want n2:heard n3:heard", "grant n1 2"},
		{"a voter went", "arm grant n1 complete n1", "voters=2 " + fit, "disarm with 2 voters nobody could tell a dead node from a cut network"},
		{"voters not known now", "arm grant n1 complete n1", "voters=0 " + fit, ""},
		{"an operator wants manual now", "arm grant n1 complete n1 failover=manual", "voters=3 " + fit, "disarm an operator has set failover=manual"},
		{"another profile", "arm grant n1 complete n1 lease=lab", "voters=3 n1:heard,beat=1 n2:heard n3:heard", "arm 2 lab"},
		{"another profile, and a writer is away", "arm grant n1 complete n1 lease=lab", "voters=3 n1:beat=1 n2:heard n3:heard", ""},
		{"unsafe timers", "arm grant n1 complete n1 promote=15s", "voters=3 " + fit, "disarm the timers of failover's round 1 are not safe: " + unsafe},
		{"and nobody is lost by them", "arm grant n1 complete n1 promote=15s", "voters=3 n1:lost n2:heard n3:heard", "disarm the timers of failover's round 1 are not safe: " + unsafe},
		{"but who says so itself is", "arm grant n1 complete n1 promote=15s", "voters=3 n1:heard,lost,proven n2:heard n3:heard",
			"revoke n1 1 proven; disarm the timers of failover's round 1 are not safe: " + unsafe},
		{"unsafe timers while arming", "arm grant n1 promote=15s", "voters=3 n1:heard,beat=1 n2:heard", "disarm the timers of failover's round 1 are not safe: " + unsafe},
		{"it is armed again by sound ones", "arm grant n1 complete n1 promote=15s disarm", "voters=3 " + fit, "arm 2 default"},
		{"a change of leader takes too long now", "arm grant n1 complete n1", "voters=3 election=9s n1:heard,beat=1 n2:heard n3:heard", ""},
		{"it takes too long, and a node is lost", "arm grant n1 complete n1", "voters=3 election=9s n1:lost n2:heard n3:heard", "revoke n1 1 by time"},
		{"silence alone disarms nothing", "arm grant n1 complete n1", "voters=3 leading=1h", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := readLeaseView(t, leaseState(t, strings.Fields(tt.before)), strings.Fields(tt.view))
			var got []string
			for _, c := range decideLeases(v) {
				got = append(got, leaseWord(v.state, c))
			}
			if got := strings.Join(got, "; "); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// How long a silent node is waited for, by what it said when it got its lease and what
// it has said to this leader since.
func TestPatience(t *testing.T) {
	s := leaseState(t, strings.Fields("arm grant n1 complete n1"))
	promote := s.Failover().Timers.Promote
	const unheard = "never"
	for _, tt := range []struct {
		granted, said volume.Safety
		software      bool // fencing=software-only
		want          time.Duration
	}{
		{volume.SafetySysrq, unheard, false, promote},
		{volume.SafetySysrq, volume.SafetySysrq, false, promote},
		{volume.SafetySysrq, volume.SafetyWatchdog, false, promote},
		{volume.SafetySysrq, volume.SafetySoftware, false, lease.Never},
		{volume.SafetySysrq, "", false, lease.Never},
		{volume.SafetySoftware, unheard, false, lease.Never},
		{volume.SafetySoftware, volume.SafetySysrq, false, lease.Never},
		{volume.SafetySysrq, "", true, promote * 3 / 2},
	} {
		n := *s.Node(nodeID("n1"))
		n.Lease.Safety = tt.granted
		l := &leases{beats: map[volume.NodeID]beat{}}
		if tt.said != unheard {
			l.beats[n.ID] = beat{BeatRequest: api.BeatRequest{Safety: tt.said}}
		}
		now := s
		if tt.software {
			now = leaseState(t, strings.Fields("arm grant n1 complete n1 fencing=software-only"))
		}
		got := patience(now, n.Lease.Safety, l.safety(&n))
		if got == 0 {
			got = promote
		}
		if got != tt.want {
			t.Errorf("granted %q, said %q: it waits %v, want %v", tt.granted, tt.said, got, tt.want)
		}
	}
}

// A node says of itself what its fencer can do only while that answers.
func TestSafetyOfAMuteFencer(t *testing.T) {
	timers := lease.Default
	fires := timers.Fence + 2*fencerEvery
	for _, tt := range []struct {
		known, mute bool
		last        volume.Safety
		silent      time.Duration
		want        volume.Safety
	}{
		{false, false, "", 0, volume.SafetySoftware},
		{true, false, volume.SafetySysrq, time.Second, volume.SafetySysrq},
		{true, true, volume.SafetySysrq, 4 * time.Second, volume.SafetySoftware},
		{true, true, volume.SafetyWatchdog, 4 * time.Second, volume.SafetyWatchdog},
		{true, true, volume.SafetyWatchdog, fires, volume.SafetyWatchdog},
		{true, true, volume.SafetyWatchdog, fires + 1, volume.SafetySoftware},
	} {
		n := newTenure()
		n.timers, n.known, n.mute, n.fencing.Safety = timers, tt.known, tt.mute, tt.last
		if got := n.safety(lease.Moment(tt.silent)); got != tt.want {
			t.Errorf("%+v: %q", tt, got)
		}
	}
	// The leader must have heard of it before it would promote.
	for _, name := range lease.Profiles() {
		if t1, _ := lease.Profile(name); t1.Fence+2*fencerEvery+2*t1.Heartbeat >= t1.Promote {
			t.Errorf("profile %s: the leader promotes before a watchdog that does not run is told of", name)
		}
	}
}

// A machine that was removed from the cluster and has joined again in the same boot is
// another node: what its fencer remembers of the former one is no lease of this one, nor a
// proof that anything under one of this node's leases is stopped.
func TestFencerOfAnotherNode(t *testing.T) {
	for of, ours := range map[volume.NodeID]bool{nodeID("n1"): true, nodeID("n9"): false, "": true} {
		n := newTenure()
		n.self, n.boot, n.clock = nodeID("n1"), "b", func() lease.Moment { return 1 }
		st := fence.Status{Boot: "b", State: fence.PhaseFenced, Saved: lease.Saved{No: 50, Begun: true, Over: true},
			Lease: fence.Lease{Node: of, No: 50, Boot: "b", Round: 3}}
		if err := n.ask(t.Context(), func(context.Context) (fence.Status, error) { return st, nil }); err != nil {
			t.Fatal(err)
		}
		n.recall()
		want := uint64(0)
		if ours {
			want = 50
		}
		if n.stopped != want || n.holder.No() != want {
			t.Errorf("a lease of %q: stopped %d, goes on with %d, want %d", of, n.stopped, n.holder.No(), want)
		}
	}
}

// armable is a fencer that takes whatever it is told.
type armable struct {
	Fencer
}

func (armable) Arm(_ context.Context, l fence.Lease) (fence.Status, error) {
	return fence.Status{Boot: l.Boot, State: fence.PhaseArmed, Lease: l}, nil
}

// While failover is armed a primary goes on writing under its first lease at once. Who is
// the primary of nothing is not waited for, so it may write only once it was heard.
func TestAdoptInArming(t *testing.T) {
	s := leaseState(t, strings.Fields("arm grant n1 grant n2"))
	for name, held := range map[string]bool{"n1": true, "n2": false} {
		n := newTenure()
		n.self, n.boot, n.fencer, n.log = nodeID(name), "b", armable{}, slog.New(slog.DiscardHandler)
		n.clock, n.state, n.fresh = func() lease.Moment { return 1 }, func() *state.State { return s }, func() bool { return true }
		n.moved, n.looked = func() {}, true
		n.adopt(t.Context())
		if n.holder.No() != 1 || n.holder.Held(2) != held {
			t.Errorf("%s: lease %d, held: %v, want %v", name, n.holder.No(), n.holder.Held(2), held)
		}
	}
}

// silent is a fencer that answers from a moment on.
type silent struct {
	Fencer
	from time.Time
	st   fence.Status
}

func (f silent) Status(context.Context) (fence.Status, error) {
	if time.Now().Before(f.from) {
		return fence.Status{}, errors.New("no answer")
	}
	return f.st, nil
}

// What a restarted flockd tells its fencer before it has caught up is what the lease was granted
// with, however its profile is called: another time to stop writers in would outlast what the
// cluster waits for, or reset a machine that is slow.
func TestRecallTimers(t *testing.T) {
	s := leaseState(t, nil)
	for _, timers := range []lease.Timers{lease.Fast, lease.Default, lease.Lab} {
		n := newTenure()
		n.self, n.boot, n.root = nodeID("n1"), "b", "tank"
		n.state = func() *state.State { return s }
		l := fence.Lease{Node: n.self, No: 3, Boot: "b", Round: 1, Until: lease.Moment(time.Hour), TTL: timers.TTL, Fence: timers.Fence}
		n.fencing = fence.Status{Boot: "b", State: fence.PhaseArmed, Lease: l, Saved: lease.Saved{No: 3, TTL: timers.TTL, Until: l.Until, Begun: true}}
		n.recall()
		if got := n.deadline(3, l.Until); got.TTL != timers.TTL || got.Fence != timers.Fence {
			t.Errorf("it tells of %s and %s to stop writers in, the lease has %s and %s", got.TTL, got.Fence, timers.TTL, timers.Fence)
		}
	}
}

// A restarted flockd waits for what its fencer remembers as long as it has not caught up:
// else it would end a lease that runs.
func TestRecallLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := leaseState(t, strings.Fields("arm grant n1 complete n1"))
		began := time.Now()
		n := newTenure()
		n.self, n.boot, n.root, n.log = nodeID("n1"), "b", "tank", slog.New(slog.DiscardHandler)
		n.clock = func() lease.Moment { return lease.Moment(time.Since(began)) + 1 }
		n.fresh = func() bool { return time.Since(began) > 8*time.Second }
		n.state, n.news, n.moved, n.count = func() *state.State { return s }, func() <-chan struct{} { return nil }, func() {}, func(string) {}
		n.leader = func() (volume.NodeID, bool) { return "", false }
		n.send = func(context.Context, api.BeatRequest) (api.BeatReply, error) { return api.BeatReply{}, errNoLeader }
		l := fence.Lease{Node: n.self, No: 1, Boot: "b", Round: 1, Until: lease.Moment(time.Hour)}
		n.fencer = silent{from: began.Add(5 * time.Second), st: fence.Status{Boot: "b", State: fence.PhaseArmed, Lease: l,
			Saved: lease.Saved{No: 1, TTL: time.Hour, Until: l.Until, Begun: true}}}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { n.run(ctx) })
		time.Sleep(10 * time.Second)
		if held, why := n.Held(); !held {
			t.Errorf("the lease that the fencer remembers is not held: %s", why)
		}
		cancel()
		running.Wait()
	})
}

func nodeID(name string) volume.NodeID { return volume.NodeID(fmt.Sprintf("%032s", name[1:])) }

// withPromote is a state as a version may have left it that thought these timers sound.
func withPromote(t *testing.T, s *state.State, promote string) *state.State {
	t.Helper()
	d, err := time.ParseDuration(promote)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := s.Marshal(&b); err != nil {
		t.Fatal(err)
	}
	was := fmt.Sprintf(`"promote":%d`, lease.Default.Promote)
	if strings.Count(b.String(), was) != 1 {
		t.Fatalf("no %s in %s", was, b.String())
	}
	if s, err = state.Unmarshal(strings.NewReader(strings.Replace(b.String(), was, fmt.Sprintf(`"promote":%d`, d), 1))); err != nil {
		t.Fatal(err)
	}
	return s
}

// Timers that are not safe end nobody's lease by time, whatever the nodes can do.
func TestPatienceWithUnsafeTimers(t *testing.T) {
	for words, want := range map[string]time.Duration{
		"arm grant n1 complete n1": 0, "arm grant n1": lease.Never, "arm grant n1 complete n1 promote=15s": lease.Never,
	} {
		if got := patience(leaseState(t, strings.Fields(words)), volume.SafetySysrq, volume.SafetySysrq); got != want {
			t.Errorf("%s: got %s, want %s", words, got, want)
		}
	}
}

// What is wrong with the timers in force is said while they are, and never of others.
func TestUnfitTimers(t *testing.T) {
	for _, tt := range []struct {
		words    string
		election time.Duration
		want     string
	}{
		{"arm grant n1 complete n1", 2 * time.Second, ""},
		{"arm grant n1 complete n1", 9 * time.Second, "the lease profile default does not fit the control plane's timers"},
		{"arm grant n1 complete n1 promote=15s", 2 * time.Second, "the timers of failover's round 1 are not safe"},
		{"arm grant n1 complete n1 promote=15s disarm", 9 * time.Second, ""},
	} {
		got := unfitTimers(leaseState(t, strings.Fields(tt.words)).Failover(), tt.election)
		if tt.want == "" && got != "" || !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.words, got, tt.want)
		}
	}
}

// leaseState applies words to a cluster of three.
func leaseState(t *testing.T, words []string) *state.State {
	t.Helper()
	s := state.New()
	apply := func(c state.Command) {
		t.Helper()
		var res state.Result
		if s, res = state.Apply(s, s.Index+1, state.Envelope{At: time.Unix(1, 0), Command: c}); res.Err != nil {
			t.Fatalf("%+v: %v", c, res.Err)
		}
	}
	apply(state.InitCluster{Cluster: state.Cluster{ID: "c"}, Node: state.Node{ID: nodeID("n1"), Name: "n1"}})
	apply(state.CreateToken{Token: state.Token{ID: "t", Expires: time.Unix(1<<32, 0)}})
	for _, n := range []string{"n2", "n3"} {
		apply(state.AddNode{Node: state.Node{ID: nodeID(n), Name: n, KeyHash: []byte(n)}, Token: "t"})
	}
	apply(state.CreateVolume{ID: "000000000000000a", Name: "pg", Spec: volume.DefaultSpec(), Placement: volume.Placement{Primary: nodeID("n1")}})
	apply(state.ConfirmCreate{ID: "000000000000000a", Epoch: volume.NewEpoch(0, 1)})
	for i := 0; i < len(words); i++ {
		f, set := s.Failover(), s.Cluster().Settings
		switch word := words[i]; {
		case word == "arm":
			apply(state.ArmFailover{Round: f.Round + 1, Timers: lease.Default, Profile: "default"})
		case word == "arm-lab":
			apply(state.ArmFailover{Round: f.Round + 1, Timers: lease.Lab, Profile: "lab"})
		case word == "disarm":
			apply(state.DisarmFailover{Round: f.Round, Reason: "an operator wants it so"})
		case word == "grant":
			i++
			n := s.Node(nodeID(words[i]))
			apply(state.GrantLease{Node: n.ID, No: n.Lease.No + 1, Boot: "b", Round: f.Round, Safety: volume.SafetySysrq})
		case word == "revoke":
			i++
			n := s.Node(nodeID(words[i]))
			apply(state.RevokeLease{Node: n.ID, No: n.Lease.No, Proven: true, Reign: s.Reign()})
		case word == "complete":
			i++
			n := s.Node(nodeID(words[i]))
			apply(state.CompleteArming{Round: f.Round, Heard: map[volume.NodeID]uint64{n.ID: n.Lease.No}})
		default:
			key, value, _ := strings.Cut(word, "=")
			if key == "promote" {
				s = withPromote(t, s, value)
				continue
			}
			if err := findChoice(key).put(&set, value); err != nil {
				t.Fatal(err)
			}
			apply(state.SetSettings{Settings: set})
		}
	}
	return s
}

// Only a beat of a lease that runs proves that something may be written.
func TestBeatsProveLife(t *testing.T) {
	at := func(s int64) time.Time { return time.Unix(s, 0) }
	var b beat
	for i, tt := range []struct {
		beat    lease.Beat
		problem string
		lived   uint64
		life    int64
	}{
		{beat: lease.Beat{Want: true}},
		{beat: lease.Beat{No: 3}, lived: 3, life: 1},
		{beat: lease.Beat{No: 3}, problem: "its fencer does not run", lived: 3, life: 1},
		{beat: lease.Beat{No: 3, Want: true}, lived: 3, life: 1},
		{beat: lease.Beat{No: 4}, lived: 4, life: 4},
	} {
		b = b.then(api.BeatRequest{Beat: tt.beat, Problem: tt.problem, At: at(int64(i))}, 0)
		if b.lived != tt.lived || tt.lived != 0 && !b.life.Equal(at(tt.life)) || b.Beat != tt.beat {
			t.Errorf("after beat %d it lived %d at %s, want %d at %s", i, b.lived, b.life, tt.lived, at(tt.life))
		}
	}
}

func readLeaseView(t *testing.T, s *state.State, words []string) leaseView {
	t.Helper()
	v := leaseView{state: s, nodes: map[volume.NodeID]lessee{}, heard: map[volume.NodeID]uint64{}}
	duration := func(text string) time.Duration {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for _, word := range words {
		if name, list, ok := strings.Cut(word, ":"); ok {
			n := lessee{round: s.Failover().Round, boot: "b", safety: volume.SafetySysrq}
			for _, x := range strings.Split(list, ",") {
				key, value, _ := strings.Cut(x, "=")
				switch key {
				case "heard":
					n.heard = true
				case "want":
					n.want = true
				case "unfit":
					n.unfit = "its fencer does not run"
				case "lost":
					n.lost = "silence"
				case "proven":
					n.proven = true
				case "round":
					fmt.Sscan(value, &n.round)
				case "beat":
					var no uint64
					fmt.Sscan(value, &no)
					v.heard[nodeID(name)] = no
				default:
					t.Fatalf("what is %q?", x)
				}
			}
			v.nodes[nodeID(name)] = n
			continue
		}
		switch key, value, _ := strings.Cut(word, "="); key {
		case "voters":
			fmt.Sscan(value, &v.voters)
		case "election":
			v.election = duration(value)
		case "leading":
			v.leading = duration(value)
		case "arming":
			v.arming = duration(value)
		default:
			t.Fatalf("what is %q?", word)
		}
	}
	return v
}

// leaseWord is a command in a few words.
func leaseWord(s *state.State, c state.Command) string {
	switch c := c.(type) {
	case state.ArmFailover:
		return fmt.Sprintf("arm %d %s", c.Round, c.Profile)
	case state.DisarmFailover:
		return "disarm " + c.Reason
	case state.CompleteArming:
		var words []string
		for id, no := range c.Heard {
			words = append(words, fmt.Sprintf("%s=%d", s.NodeName(id), no))
		}
		return "complete " + strings.Join(words, " ")
	case state.GrantLease:
		return fmt.Sprintf("grant %s %d", s.NodeName(c.Node), c.No)
	case state.RevokeLease:
		how := "by time"
		if c.Proven {
			how = "proven"
		}
		return fmt.Sprintf("revoke %s %d %s", s.NodeName(c.Node), c.No, how)
	}
	b, err := json.Marshal(c)
	return fmt.Sprintf("%s %v", b, err)
}

// A fencer that is restarted when it may be is back before this node gives its lease up for that.
func TestPatienceOutlastsRestart(t *testing.T) {
	for _, name := range lease.Profiles() {
		timers, _ := lease.Profile(name)
		tn := &tenure{timers: timers}
		if left := tn.patience() - fence.Fresh(timers.TTL); left < fence.Away {
			t.Errorf("profile %s: a restart may take %s, and after %s the fencer counts as gone", name, fence.Away, left)
		}
	}
}
