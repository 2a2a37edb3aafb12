package lease

import (
	"container/heap"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

var (
	histories = flag.Int("histories", 50_000, "random fault histories to simulate")
	seedFlag  = flag.Uint64("seed", 0, "simulate only the history of this seed, and print it")
)

// A discrete-event simulation of the protocol: nodes with clocks of their own that
// run wrong, an election and a log as Raft promises them, a network that loses, delays
// and cuts one way or both, processes that stop for a while, machines that lose
// power. Holder and Keeper are the real ones.
//
// Every stretch of time in which a node could write a volume is recorded, and no two
// nodes' stretches for one volume may overlap.
func TestOneWriter(t *testing.T) {
	if *seedFlag != 0 {
		s := newSim(*seedFlag, rules{})
		s.verbose = true
		bad := s.run()
		t.Log(strings.Join(s.lines, "\n"))
		if bad != "" {
			t.Fatal(bad)
		}
		return
	}
	n := *histories
	if testing.Short() {
		n = min(n, 2000)
	}
	first := uint64(time.Now().UnixNano())
	t.Logf("seeds from %d", first)
	var sum tally
	var mu sync.Mutex
	var all sync.WaitGroup
	workers := uint64(runtime.GOMAXPROCS(0))
	for w := range workers {
		all.Go(func() {
			for i := w; i < uint64(n) && !t.Failed(); i += workers {
				s := newSim(first+i, rules{})
				if bad := s.run(); bad != "" {
					t.Errorf("%s\nagain with -run TestOneWriter -seed %d", bad, first+i)
				}
				mu.Lock()
				sum.add(s.tally)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	t.Logf("%d histories: %+v", n, sum)
	// A simulation in which nothing happens proves nothing.
	if sum.Promotions == 0 || sum.Expiries == 0 || sum.Leaders < n || sum.Writes < n {
		t.Errorf("too little has happened: %+v", sum)
	}
}

// TestBrokenRules breaks one rule at a time. The checker must find a second writer:
// otherwise it could not be trusted about the unbroken ones.
func TestBrokenRules(t *testing.T) {
	for name, r := range map[string]rules{
		"a lease that ran out is revived":                         {revive: true, first: 9100},
		"the lease runs from the answer":                          {fromAnswer: true},
		"the leader waits for the lease only":                     {shortWait: true},
		"a new leader does not wait":                              {hasty: true},
		"beats are answered without proof":                        {noProof: true},
		"a leader answers for a lease that another has revoked":   {forgetful: true, first: 28600},
		"a machine mounts at boot what it was primary of":         {bootMount: true},
		"the fencer does not verify that writers are gone":        {unverified: true},
		"volumes are promoted without the commit of a revocation": {noRevoke: true},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			// The seeds are fixed: that each is found is a property of the checker.
			for seed := r.first; seed < r.first+60_000; seed++ {
				if bad := newSim(seed, r).run(); bad != "" {
					t.Logf("found in history %d: %s", seed, bad)
					return
				}
			}
			t.Errorf("not found in 60000 histories from %d: %s", r.first, name)
		})
	}
}

// rules that a test breaks.
type rules struct {
	revive, fromAnswer, shortWait, hasty, noProof, forgetful, bootMount, unverified, noRevoke bool
	first                                                                                     uint64 // seed to begin the search at, where it is rarely found
}

type tally struct{ Leaders, Promotions, Expiries, Writes, Crashes int }

func (t *tally) add(o tally) {
	t.Leaders += o.Leaders
	t.Promotions += o.Promotions
	t.Expiries += o.Expiries
	t.Writes += o.Writes
	t.Crashes += o.Crashes
}

// entry of the log. What an entry cannot do when it is applied, it does not do.
type entry struct {
	kind  string // grant, revoke, promote
	node  int
	no    uint64
	boot  int
	vol   int
	epoch int
}

// agreed is the state that entries make.
type agreed struct {
	index   int
	no      []uint64 // of each node's lease
	revoked []bool
	boot    []int // of the machine, when the lease was granted
	epoch   []int // of each volume
	primary []int // -1: being elected
}

func (a *agreed) clone() agreed {
	return agreed{a.index, slices.Clone(a.no), slices.Clone(a.revoked), slices.Clone(a.boot), slices.Clone(a.epoch), slices.Clone(a.primary)}
}

func (a *agreed) apply(e entry) {
	a.index++
	switch e.kind {
	case "grant":
		if e.no == a.no[e.node]+1 {
			a.no[e.node], a.revoked[e.node], a.boot[e.node] = e.no, false, e.boot
		}
	case "revoke":
		if e.no != a.no[e.node] || a.revoked[e.node] {
			return
		}
		a.revoked[e.node] = true
		for v, p := range a.primary {
			if p == e.node {
				a.epoch[v]++
				a.primary[v] = -1
			}
		}
	case "promote":
		if e.epoch == a.epoch[e.vol] && a.primary[e.vol] == -1 {
			a.primary[e.vol] = e.node
		}
	}
}

type simNode struct {
	rate   float64
	offset time.Duration
	down   bool
	boot   int
	hung   bool // its log does not answer: Raft stands still, the rest goes on
	frozen bool
	waking []func() // what came while it was frozen

	term   int
	leads  bool
	ledBy  int // the leader it heard last; -1: none
	heard  Moment
	quorum Moment // as leader: when it last reached a majority
	state  agreed
	keeper *Keeper
	busy   map[string]bool // proposals under way

	holder  *Holder
	fenceAt Moment    // the fencer's deadline; 0: none
	writes  []*writes // one for each volume; nil: not mounted
}

// writes is a stretch of time in which a node could write a volume.
type writes struct {
	node, vol, epoch int
	from, to         time.Duration // to < 0: still
}

type sim struct {
	rng     *rand.Rand
	rules   rules
	timers  Timers
	now     time.Duration
	events  events
	seq     int
	nodes   []*simNode
	cut     [][]bool // [from][to]
	log     []entry
	terms   int
	all     []*writes
	tally   tally
	verbose bool
	lines   []string
}

const (
	simVolumes = 2
	simLength  = 150 * time.Second
)

func newSim(seed uint64, r rules) *sim {
	s := &sim{rng: rand.New(rand.NewPCG(seed, 7)), rules: r, timers: Default}
	// With no more than the inequality asks for, what breaks it shows soonest.
	s.timers.Promote = s.timers.LeastPromote() - slack + time.Millisecond
	n := 3
	if s.rng.IntN(3) == 0 {
		n = 5
	}
	st := agreed{no: make([]uint64, n), revoked: make([]bool, n), boot: make([]int, n), epoch: make([]int, simVolumes), primary: make([]int, simVolumes)}
	for v := range st.primary {
		st.epoch[v], st.primary[v] = 1, s.rng.IntN(n)
	}
	for range n {
		node := &simNode{rate: s.clockRate(), offset: time.Duration(s.rng.Int64N(int64(time.Hour))), ledBy: -1, state: st.clone(), busy: map[string]bool{},
			holder: NewHolder(), writes: make([]*writes, simVolumes)}
		s.nodes = append(s.nodes, node)
		s.cut = append(s.cut, make([]bool, n))
	}
	for i := range s.nodes {
		s.startNode(i)
	}
	for range 2 + s.rng.IntN(8) {
		s.after(5*time.Second+s.upTo(simLength*2/3), s.fault)
	}
	return s
}

// clockRate is often at one of the two ends of what is allowed.
func (s *sim) clockRate() float64 {
	switch s.rng.IntN(4) {
	case 0:
		return 11.0 / 12
	case 1:
		return 13.0 / 12
	case 2:
		return 1
	}
	return 11.0/12 + s.rng.Float64()/6
}

func (s *sim) upTo(d time.Duration) time.Duration { return time.Duration(s.rng.Int64N(int64(d) + 1)) }

// clock of one node.
func (s *sim) clock(i int) Moment {
	n := s.nodes[i]
	return Moment(n.offset + time.Duration(float64(s.now)*n.rate))
}

func (s *sim) note(format string, args ...any) {
	if s.verbose {
		s.lines = append(s.lines, fmt.Sprintf("%10.3f ", s.now.Seconds())+fmt.Sprintf(format, args...))
	}
}

// ---- time

type event struct {
	at  time.Duration
	seq int
	do  func()
}
type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

func (s *sim) after(d time.Duration, do func()) {
	s.seq++
	heap.Push(&s.events, event{s.now + max(d, 0), s.seq, do})
}

// local runs do after d of a node's own clock, if the machine has not lost power
// meanwhile; a frozen process does it when it wakes.
func (s *sim) local(i int, d time.Duration, do func()) {
	boot := s.nodes[i].boot
	s.after(time.Duration(float64(d)/s.nodes[i].rate), func() {
		n := s.nodes[i]
		switch {
		case n.down || n.boot != boot:
		case n.frozen:
			n.waking = append(n.waking, func() {
				if n.boot == boot {
					do()
				}
			})
		default:
			do()
		}
	})
}

// send delivers a message, perhaps late, perhaps never.
func (s *sim) send(from, to int, do func()) {
	if from != to && (s.cut[from][to] || s.rng.IntN(50) == 0) {
		return
	}
	d := time.Millisecond + s.upTo(20*time.Millisecond)
	if s.rng.IntN(20) == 0 {
		d += s.upTo(6 * time.Second)
	}
	boot := s.nodes[to].boot
	s.after(d, func() {
		n := s.nodes[to]
		switch {
		case n.down || n.boot != boot || from != to && s.cut[from][to]:
		case n.frozen:
			n.waking = append(n.waking, do)
		default:
			do()
		}
	})
}

func (s *sim) run() string {
	for len(s.events) > 0 && s.now < simLength {
		e := heap.Pop(&s.events).(event)
		s.now = e.at
		e.do()
	}
	return s.check()
}

// check compares all stretches.
func (s *sim) check() string {
	s.tally.Writes += len(s.all)
	for i, a := range s.all {
		for _, b := range s.all[i+1:] {
			if a.vol != b.vol || a.node == b.node {
				continue
			}
			from, to := max(a.from, b.from), min(s.end(a), s.end(b))
			if from < to {
				return fmt.Sprintf("two writers of volume %d for %v at %v: node %d in epoch %d and node %d in epoch %d",
					a.vol, to-from, from, a.node, a.epoch, b.node, b.epoch)
			}
		}
	}
	return ""
}

func (s *sim) end(w *writes) time.Duration {
	if w.to < 0 {
		return s.now
	}
	return w.to
}

// ---- faults

func (s *sim) fault() {
	i := s.rng.IntN(len(s.nodes))
	if s.rng.IntN(2) == 0 {
		for j, n := range s.nodes {
			if n.leads {
				i = j
			}
		}
	}
	if s.rng.IntN(4) == 0 {
		i = max(0, s.nodes[i].state.primary[0])
	}
	long := s.upTo(40 * time.Second)
	switch s.rng.IntN(6) {
	case 0: // everything to and from it
		s.partition(i, true, true, long)
	case 1:
		out := s.rng.IntN(2) == 0
		s.partition(i, out, !out, long)
	case 2:
		s.freeze(i, long)
	case 3: // stopped and cut off in one, as when a machine swaps itself to death
		s.freeze(i, long)
		s.partition(i, true, true, s.upTo(40*time.Second))
	case 4:
		s.crash(i, 3*time.Second+s.upTo(30*time.Second))
	case 5: // a leader whose disk hangs never learns that it leads no more
		s.hang(i, long)
		s.isolate(i, s.rng.IntN(len(s.nodes)), s.upTo(40*time.Second))
	}
}

func (s *sim) hang(i int, d time.Duration) {
	s.note("node %d hangs for %v", i, d)
	s.nodes[i].hung = true
	s.after(d, func() { s.nodes[i].hung = false })
}

// isolate cuts two nodes off from all others, and leaves them each other.
func (s *sim) isolate(a, b int, d time.Duration) {
	s.note("nodes %d and %d isolated for %v", a, b, d)
	set := func(v bool) {
		for j := range s.nodes {
			for _, i := range []int{a, b} {
				if j != a && j != b {
					s.cut[i][j], s.cut[j][i] = v, v
				}
			}
		}
	}
	set(true)
	s.after(d, func() { set(false) })
}

func (s *sim) partition(i int, out, in bool, d time.Duration) {
	s.note("node %d cut off for %v, out %v in %v", i, d, out, in)
	set := func(v bool) {
		for j := range s.nodes {
			if j != i && out {
				s.cut[i][j] = v
			}
			if j != i && in {
				s.cut[j][i] = v
			}
		}
	}
	set(true)
	s.after(d, func() { set(false); s.note("node %d whole again", i) })
}

// freeze stops the daemon of a node. Its fencer is another process, and its writers
// are others again.
func (s *sim) freeze(i int, d time.Duration) {
	n := s.nodes[i]
	if n.down || n.frozen {
		return
	}
	s.note("node %d frozen for %v", i, d)
	n.frozen = true
	boot := n.boot
	s.after(d, func() {
		if n.boot != boot {
			return
		}
		s.note("node %d thawed", i)
		n.frozen = false
		waking := n.waking
		n.waking = nil
		s.rng.Shuffle(len(waking), func(a, b int) { waking[a], waking[b] = waking[b], waking[a] })
		for _, do := range waking {
			if !n.down && n.boot == boot {
				do()
			}
		}
	})
}

func (s *sim) crash(i int, off time.Duration) {
	n := s.nodes[i]
	if n.down {
		return
	}
	s.note("node %d loses power for %v", i, off)
	s.tally.Crashes++
	for v := range n.writes {
		s.stopWriting(i, v)
	}
	n.down, n.hung, n.frozen, n.waking, n.leads, n.keeper = true, false, false, nil, false, nil
	n.boot++
	s.after(off, func() {
		n.down, n.ledBy, n.fenceAt = false, -1, 0
		n.busy = map[string]bool{}
		n.holder = NewHolder()
		s.note("node %d boots", i)
		if s.rules.bootMount {
			for v, p := range n.state.primary {
				if p == i {
					s.startWriting(i, v)
				}
			}
		}
		s.startNode(i)
	})
}

// ---- one node

func (s *sim) startNode(i int) {
	n := s.nodes[i]
	n.heard = s.clock(i)
	s.local(i, s.upTo(s.timers.Heartbeat), func() { s.beat(i) })
	s.local(i, s.upTo(200*time.Millisecond), func() { s.tick(i) })
}

// beat is the node's heartbeat to the leader it knows.
func (s *sim) beat(i int) {
	n := s.nodes[i]
	s.local(i, s.timers.Heartbeat, func() { s.beat(i) })
	if n.ledBy < 0 {
		return
	}
	b, boot, to := n.holder.Beat(s.clock(i)), n.boot, n.ledBy
	s.send(i, to, func() { s.hear(to, i, b, boot) })
}

// hear is the leader reading a beat.
func (s *sim) hear(l, from int, b Beat, boot int) {
	n := s.nodes[l]
	if !n.leads || n.keeper == nil {
		return
	}
	arrived := s.clock(l)
	if n.state.no[from] != 0 && n.state.boot[from] != boot && n.state.boot[from] < boot {
		// It has booted since: nothing is written under its lease any more.
		n.keeper.Stopped(simID(from), n.state.no[from])
	}
	// What a node has that has booted, or whose lease is over, is renewed by a new number.
	if b.Want && (b.No == n.state.no[from] || b.No == 0) && s.rng.IntN(3) > 0 {
		s.propose(l, entry{kind: "grant", node: from, no: n.state.no[from] + 1, boot: boot})
		return
	}
	answer := func() {
		if n.leads && n.keeper != nil && n.keeper.Answer(s.clock(l), arrived, simID(from), b.No) {
			s.send(l, from, func() { s.answered(from, b, boot) })
		}
	}
	if s.rules.noProof {
		answer()
		return
	}
	s.majority(l, func(ok bool) {
		if ok {
			answer()
		}
	})
}

func (s *sim) answered(i int, b Beat, boot int) {
	n := s.nodes[i]
	if n.boot != boot {
		return
	}
	now := s.clock(i)
	sent := now
	for _, x := range n.holder.sent {
		if x.nonce == b.Nonce && !s.rules.fromAnswer {
			sent = x.at
		}
	}
	was := n.holder.over
	n.holder.Answer(now, b.No, b.Nonce)
	if s.rules.fromAnswer && n.holder.no == b.No && !n.holder.over {
		n.holder.begun, n.holder.until = true, sent.Add(s.timers.TTL)
	}
	if s.rules.revive && was && n.holder.no == b.No && sent.Add(s.timers.TTL) > now {
		n.holder.over, n.holder.begun, n.holder.until = false, true, sent.Add(s.timers.TTL)
	}
	s.feed(i)
	s.act(i)
}

// feed tells the fencer the deadline, before anything is written under it.
func (s *sim) feed(i int) {
	n := s.nodes[i]
	at, ok := n.holder.Deadline()
	if !ok || at == n.fenceAt {
		return
	}
	n.fenceAt = at
	boot := n.boot
	wait := time.Duration(float64(at.Sub(s.clock(i))) / n.rate)
	s.after(wait, func() {
		if n.boot != boot || n.fenceAt != at {
			return
		}
		s.tally.Expiries++
		s.note("node %d is fenced", i)
		for v, w := range n.writes {
			if w == nil {
				continue
			}
			if s.rules.unverified {
				n.writes[v] = nil // it says so, but a process went on, and nobody stopped it
				s.after(s.upTo(60*time.Second), func() { s.stop(w) })
				continue
			}
			// Within the budget by this machine's clock, which may be slow.
			took := s.timers.Fence
			if s.rng.IntN(2) == 0 {
				took = s.upTo(took)
			}
			n.writes[v] = nil
			s.after(time.Duration(float64(took)/n.rate), func() { s.stop(w) })
		}
	})
}

// act makes what is written follow state and lease.
func (s *sim) act(i int) {
	n := s.nodes[i]
	held := n.holder.Held(s.clock(i)) && n.holder.no == n.state.no[i] && !n.state.revoked[i]
	for v := range n.writes {
		mine := n.state.primary[v] == i
		switch {
		case n.writes[v] == nil && mine && held:
			s.startWriting(i, v)
		case n.writes[v] != nil && (!mine || n.writes[v].epoch != n.state.epoch[v]):
			s.stopWriting(i, v)
		}
	}
}

func (s *sim) startWriting(i, v int) {
	n := s.nodes[i]
	// A fencer that is still at work holds the mount back.
	for _, w := range s.all {
		if w.node == i && w.vol == v && w.to < 0 {
			return
		}
	}
	s.note("node %d writes %d in epoch %d", i, v, n.state.epoch[v])
	w := &writes{i, v, n.state.epoch[v], s.now, -1}
	n.writes[v] = w
	s.all = append(s.all, w)
}

func (s *sim) stopWriting(i, v int) {
	if w := s.nodes[i].writes[v]; w != nil {
		s.stop(w)
		s.nodes[i].writes[v] = nil
	}
	for _, w := range s.all { // a crash stops also what the fencer was busy with
		if w.node == i && w.vol == v {
			s.stop(w)
		}
	}
}

func (s *sim) stop(w *writes) {
	if w.to < 0 {
		s.note("node %d writes %d no more", w.node, w.vol)
		w.to = s.now
	}
}

// tick is the node's small loop: elections, leading, following.
func (s *sim) tick(i int) {
	n := s.nodes[i]
	s.local(i, 250*time.Millisecond, func() { s.tick(i) })
	now := s.clock(i)
	if n.hung {
		s.follow(i)
		return
	}
	if n.leads {
		s.lead(i, now)
	} else if now.Sub(n.heard) > 1500*time.Millisecond+s.upTo(1500*time.Millisecond) {
		s.campaign(i)
	}
	s.follow(i)
}

func (s *sim) follow(i int) {
	n := s.nodes[i]
	now := s.clock(i)
	if n.state.no[i] > 0 {
		n.holder.Grant(n.state.no[i], s.timers)
		if n.state.revoked[i] {
			n.holder.Revoke(now, n.state.no[i])
		}
	}
	n.holder.Held(now)
	s.act(i)
}

// ---- Raft, as it promises to be

// reaches says that both ways work now and the other end is awake.
func (s *sim) reaches(i, j int) bool {
	n := s.nodes[j]
	return !n.hung && (i == j || !n.down && !n.frozen && !s.cut[i][j] && !s.cut[j][i])
}

// majority asks all voters whether they know of no later term, and answers once.
// Each voter answers at its own moment after the question.
func (s *sim) majority(i int, then func(ok bool)) {
	term, yes, boot := s.nodes[i].term, 0, s.nodes[i].boot
	done := false
	for j := range s.nodes {
		j := j
		s.send(i, j, func() {
			if s.nodes[j].hung || s.nodes[j].term > term {
				return
			}
			s.follows(j, term)
			s.send(j, i, func() {
				yes++
				if !done && yes > len(s.nodes)/2 && s.nodes[i].boot == boot {
					done = true
					then(s.nodes[i].term == term)
				}
			})
		})
	}
}

// follows says that a node has heard of a term; who led an earlier one leads no more.
func (s *sim) follows(j, term int) {
	if o := s.nodes[j]; o.term < term {
		o.term, o.leads, o.keeper = term, false, nil
	}
}

func (s *sim) campaign(i int) {
	n := s.nodes[i]
	votes := 0
	for j, o := range s.nodes {
		if s.reaches(i, j) && s.clock(j).Sub(o.heard) > 1500*time.Millisecond && o.state.index <= n.state.index {
			votes++
		}
	}
	if votes <= len(s.nodes)/2 {
		return
	}
	s.terms++
	for j, o := range s.nodes {
		if s.reaches(i, j) {
			s.follows(j, s.terms)
			o.heard = s.clock(j)
		}
	}
	n.term, n.leads, n.keeper, n.quorum = s.terms, true, nil, s.clock(i)
	n.busy = map[string]bool{}
	s.note("node %d leads in term %d", i, n.term)
	s.tally.Leaders++
	// A Barrier, then it may act.
	s.majority(i, func(ok bool) {
		if !ok || !n.leads {
			return
		}
		s.apply(i)
		n.keeper = NewKeeper(s.waits(), s.clock(i))
	})
}

// waits are the leader's timers.
func (s *sim) waits() Timers {
	t := s.timers
	if s.rules.shortWait {
		t.Promote = t.TTL
	}
	return t
}

func (s *sim) apply(i int) {
	n := s.nodes[i]
	for n.state.index < len(s.log) {
		n.state.apply(s.log[n.state.index])
	}
}

func (s *sim) lead(i int, now Moment) {
	n := s.nodes[i]
	// Heartbeats carry the term and what is committed.
	term, index, reached := n.term, n.state.index, 0
	for j := range s.nodes {
		if s.reaches(i, j) && s.nodes[j].term <= term {
			reached++
		}
		s.send(i, j, func() {
			o := s.nodes[j]
			if o.term > term || o.hung {
				return
			}
			s.follows(j, term)
			o.heard, o.ledBy = s.clock(j), i
			for o.state.index < min(index, len(s.log)) {
				o.state.apply(s.log[o.state.index])
			}
			s.follow(j)
		})
	}
	if reached > len(s.nodes)/2 {
		n.quorum = now
	} else if now.Sub(n.quorum) > time.Second {
		s.note("node %d leads no more", i)
		n.leads, n.keeper = false, nil
		n.heard = now
		return
	}
	if n.keeper == nil {
		return
	}
	for j := range s.nodes {
		known := n.keeper.nodes[simID(j)] != nil
		n.keeper.Know(now, simID(j), n.state.no[j], n.state.revoked[j] && !s.rules.forgetful, 0)
		if s.rules.hasty && !known {
			n.keeper.nodes[simID(j)].from = now.Add(-s.timers.Promote + 2*time.Second)
		}
	}
	for _, id := range n.keeper.Lost(now) {
		j := simIndex(id)
		owns := slices.Contains(n.state.primary, j)
		if !owns || n.state.revoked[j] {
			continue
		}
		if n.keeper.Revoke(now, id, n.state.no[j]) {
			s.propose(i, entry{kind: "revoke", node: j, no: n.state.no[j]})
		}
	}
	for v, p := range n.state.primary {
		epoch := n.state.epoch[v]
		if p != -1 {
			continue
		}
		to := s.rng.IntN(len(s.nodes))
		s.propose(i, entry{kind: "promote", vol: v, epoch: epoch, node: to})
	}
	if s.rules.noRevoke {
		// It bumps the epoch as if the node's lease were over as soon as it misses a beat.
		for j := range s.nodes {
			if a := n.keeper.nodes[simID(j)]; a != nil && now.Sub(a.from) > s.timers.TTL/2 && slices.Contains(n.state.primary, j) {
				s.propose(i, entry{kind: "revoke", node: j, no: n.state.no[j]})
			}
		}
	}
}

// propose commits an entry if a majority still follows.
func (s *sim) propose(i int, e entry) {
	n := s.nodes[i]
	key := fmt.Sprint(e)
	if n.busy[key] {
		return
	}
	n.busy[key] = true
	term := n.term
	s.majority(i, func(ok bool) {
		delete(n.busy, key)
		// The majority's answer and the append are one moment here: a later term would
		// have made one of those that answered refuse.
		for _, o := range s.nodes {
			if o.leads && o.term > term {
				return
			}
		}
		if !ok || !n.leads || n.term != term || n.state.index != len(s.log) {
			return
		}
		s.log = append(s.log, e)
		s.apply(i)
		s.note("node %d commits %+v", i, e)
		if e.kind == "promote" {
			s.tally.Promotions++
		}
	})
	// A proposal whose answers were lost may be made again.
	s.local(i, 3*time.Second, func() { delete(n.busy, key) })
}

func simID(i int) volume.NodeID { return volume.NodeID(fmt.Sprintf("%032x", i)) }

func simIndex(id volume.NodeID) int {
	var i int
	fmt.Sscanf(string(id), "%x", &i)
	return i
}
