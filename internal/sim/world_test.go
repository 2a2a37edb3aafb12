package sim

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// world is one history: machines, what connects them, and the log they agree on.
type world struct {
	rng    *rand.Rand
	broken rules
	slow   bool          // mounts may take as long as a lease or longer
	now    time.Duration // true time
	events queue
	seq    int
	nodes  []*node
	cut    [][]bool // [from][to]
	terms  int

	// states are the log: the state after each entry, the first is where the history begins.
	states []*state.State
	open   [volumes][]*stretch
	// promised is the newest epoch in which a node was asked for its position before one was
	// promoted, acked what it has acknowledged last.
	promised [volumes][]volume.Epoch
	acked    [volumes][]volume.Position

	attempts int
	tally    tally
	bad      string
	verbose  bool
	lines    []string
}

// stretch of time in which a node can write a volume.
type stretch struct {
	node, vol int
	epoch     volume.Epoch
	stopping  bool
}

const (
	volumes = 2
	length  = 120 * time.Second
	// tick is the rhythm of everything that looks again and again.
	tick = 500 * time.Millisecond
)

// timers are the tightest that Apply takes.
func timers(t lease.Timers) lease.Timers {
	t.Promote = t.LeastPromote()
	return t
}

func newWorld(seed uint64, r rules) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, 11)), broken: r, slow: seed%8 == 0 || r.outlast}
	n := 3
	if w.rng.IntN(3) == 0 {
		n = 5
	}
	w.states = []*state.State{w.beginning(n)}
	for range n {
		w.nodes = append(w.nodes, &node{w: w, i: len(w.nodes), boot: 1, rate: w.clockRate(), raft: raft{ledBy: -1},
			offset: time.Duration(w.rng.Int64N(int64(time.Hour))), fresh: true, holder: lease.NewHolder()})
		w.cut = append(w.cut, make([]bool, n))
	}
	for v := range volumes {
		w.promised[v], w.acked[v] = make([]volume.Epoch, n), make([]volume.Position, n)
	}
	for _, n := range w.nodes {
		n.start()
	}
	for range 2 + w.rng.IntN(8) {
		w.after(4*time.Second+w.upTo(length*2/3), w.fault)
	}
	for range w.rng.IntN(3) {
		w.after(10*time.Second+w.upTo(length*3/4), w.move)
	}
	if w.rng.IntN(3) == 0 {
		w.after(20*time.Second+w.upTo(length/2), w.rearm)
	}
	return w
}

// beginning is a cluster of n nodes with two volumes of three copies each: armed, with
// the first leases granted, or still manual.
func (w *world) beginning(n int) *state.State {
	s, index := state.New(), uint64(0)
	do := func(c state.Command) {
		index++
		var res state.Result
		if s, res = state.Apply(s, index, state.Envelope{Command: c}); res.Err != nil {
			panic(res.Err)
		}
	}
	do(state.InitCluster{Node: state.Node{ID: nodeID(0), Name: "n0", Zone: volume.DefaultZone}})
	do(state.CreateToken{Token: state.Token{ID: "t", Expires: time.Unix(1<<40, 0)}})
	for i := 1; i < n; i++ {
		do(state.AddNode{Token: "t", Node: state.Node{ID: nodeID(i), Name: fmt.Sprint("n", i), Zone: volume.DefaultZone}})
	}
	for v := range volumes {
		p := w.rng.IntN(n)
		do(state.CreateVolume{ID: volumeID(v), Name: fmt.Sprint("v", v),
			Spec:      volume.Spec{Failover: volume.FailoverAuto},
			Placement: volume.Placement{Primary: nodeID(p), Local: []volume.NodeID{nodeID((p + 1) % n), nodeID((p + 2) % n)}}})
		do(state.ConfirmCreate{ID: volumeID(v), Epoch: s.Volume(volumeID(v)).Epoch})
	}
	if w.rng.IntN(5) > 0 {
		do(state.ArmFailover{Round: 1, Timers: timers(lease.Default)})
		for i := range n {
			do(state.GrantLease{Node: nodeID(i), No: 1, Round: 1, Boot: "1", Safety: volume.SafetySysrq})
		}
	}
	return s
}

func nodeID(i int) volume.NodeID { return ids[i] }
func volumeID(v int) volume.ID   { return vols[v] }

var (
	ids  = [...]volume.NodeID{"n0", "n1", "n2", "n3", "n4"}
	vols = [volumes]volume.ID{"v0", "v1"}
)

// nodeOf is the number of a node; -1 for none.
func nodeOf(id volume.NodeID) int {
	for i, x := range ids {
		if x == id {
			return i
		}
	}
	return -1
}

// clockRate is often at one of the two ends of what is allowed.
func (w *world) clockRate() float64 {
	switch w.rng.IntN(4) {
	case 0:
		return 11.0 / 12
	case 1:
		return 13.0 / 12
	case 2:
		return 1
	}
	return 11.0/12 + w.rng.Float64()/6
}

func (w *world) upTo(d time.Duration) time.Duration { return time.Duration(w.rng.Int64N(int64(d) + 1)) }

// oneIn is true once in n times.
func (w *world) oneIn(n int) bool { return w.rng.IntN(n) == 0 }

func (w *world) note(format string, args ...any) {
	if w.verbose {
		w.lines = append(w.lines, fmt.Sprintf("%10.3f ", w.now.Seconds())+fmt.Sprintf(format, args...))
	}
}

func (w *world) fail(format string, args ...any) {
	if w.bad == "" {
		w.bad = fmt.Sprintf("at %v: ", w.now) + fmt.Sprintf(format, args...)
		w.note("%s", w.bad)
	}
}

// ---- time and messages

// queue is a heap of what is to happen, the earliest first.
type queue []event

type event struct {
	at  time.Duration
	seq int
	do  func()
}

func (a event) before(b event) bool { return a.at < b.at || a.at == b.at && a.seq < b.seq }

func (q *queue) push(e event) {
	h := append(*q, e)
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 2
		if !h[i].before(h[up]) {
			break
		}
		h[i], h[up], i = h[up], h[i], up
	}
	*q = h
}

func (q *queue) pop() event {
	h := *q
	first, last := h[0], len(h)-1
	h[0], h[last] = h[last], event{}
	h = h[:last]
	for i := 0; ; {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < len(h); c++ {
			if h[c].before(h[least]) {
				least = c
			}
		}
		if least == i {
			break
		}
		h[i], h[least], i = h[least], h[i], least
	}
	*q = h
	return first
}

func (w *world) after(d time.Duration, do func()) {
	w.seq++
	w.events.push(event{w.now + max(d, 0), w.seq, do})
}

func (w *world) run() string {
	for len(w.events) > 0 && w.bad == "" {
		e := w.events.pop()
		if w.now = e.at; w.now > length {
			break
		}
		e.do()
	}
	return w.bad
}

// send delivers a message: perhaps late, perhaps twice, perhaps never.
func (w *world) send(from, to int, do func()) {
	if from != to && (w.cut[from][to] || w.oneIn(50)) {
		return
	}
	times := 1
	if w.oneIn(50) {
		times = 2
	}
	boot := w.nodes[to].boot
	for range times {
		d := time.Millisecond + w.upTo(20*time.Millisecond)
		switch w.rng.IntN(300) {
		case 0: // it lay somewhere for long
			d += w.upTo(40 * time.Second)
		case 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20:
			d += w.upTo(6 * time.Second)
		}
		w.after(d, func() {
			n := w.nodes[to]
			switch {
			case n.down || n.boot != boot && !w.oneIn(10) || from != to && w.cut[from][to]:
			case n.frozen:
				n.waking = append(n.waking, do)
			default:
				do()
			}
		})
	}
}

// ---- faults

func (w *world) fault() {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	if w.oneIn(2) {
		for _, o := range w.nodes {
			if o.leads {
				n = o
			}
		}
	}
	if w.oneIn(4) {
		if p := nodeOf(w.newest().Volume(volumeID(0)).Placement.Primary); p >= 0 {
			n = w.nodes[p]
		}
	}
	long := w.upTo(40 * time.Second)
	switch w.rng.IntN(8) {
	case 0: // everything to and from it
		w.partition(n.i, true, true, long)
	case 1:
		out := w.oneIn(2)
		w.partition(n.i, out, !out, long)
	case 2:
		n.freeze(long)
	case 3: // stopped and cut off in one, as when a machine swaps itself to death
		n.freeze(long)
		w.partition(n.i, true, true, w.upTo(40*time.Second))
	case 4:
		n.crash(3*time.Second + w.upTo(30*time.Second))
	case 5: // a leader whose disk hangs never learns that it leads no more
		n.hang(long)
		if w.oneIn(2) {
			w.isolate(n.i, w.rng.IntN(len(w.nodes)), w.upTo(40*time.Second))
			return
		}
		w.after(long+w.upTo(5*time.Second), func() { // and then it may lead again
			if o := w.leader(); o != nil && o != n {
				w.partition(o.i, true, true, w.upTo(15*time.Second))
			}
		})
	case 6:
		n.restart()
	case 7:
		if n.sick(); w.oneIn(2) {
			n.hang(long)
		}
	}
}

// aim at a node that something was just decided about, in the middle of what follows, and
// then perhaps at the leader.
func (w *world) aim(id volume.NodeID, within time.Duration) {
	n := w.nodes[nodeOf(id)]
	if !w.oneIn(6) {
		return
	}
	w.after(w.upTo(within), func() {
		l, long := w.leader(), w.upTo(60*time.Second)
		switch w.rng.IntN(5) {
		case 0:
			n.hang(long)
		case 1:
			n.freeze(long)
		case 2:
			w.partition(n.i, true, true, long)
		case 3:
			n.crash(3*time.Second + w.upTo(5*time.Second))
		case 4: // it does not learn who leads next; and then it is the first again
			n.hang(20*time.Second + long)
			if l == nil || l == n {
				return
			}
			away := 20*time.Second + w.upTo(5*time.Second)
			w.partition(l.i, true, true, away)
			w.after(away, func() {
				if o := w.leader(); o != nil && o != l {
					w.partition(o.i, true, true, w.upTo(10*time.Second))
				}
			})
			return
		}
		if l != nil && l != n && w.oneIn(2) {
			w.after(w.upTo(40*time.Second), func() { w.partition(l.i, true, true, w.upTo(20*time.Second)) })
		}
	})
}

// isolate cuts two nodes off from all others, and leaves them each other.
func (w *world) isolate(a, b int, d time.Duration) {
	w.note("nodes %d and %d isolated for %v", a, b, d)
	set := func(v bool) {
		for j := range w.nodes {
			if j != a && j != b {
				w.cut[a][j], w.cut[j][a], w.cut[b][j], w.cut[j][b] = v, v, v, v
			}
		}
	}
	set(true)
	w.after(d, func() { set(false) })
}

func (w *world) partition(i int, out, in bool, d time.Duration) {
	w.note("node %d cut off for %v, out %v in %v", i, d, out, in)
	set := func(v bool) {
		for j := range w.nodes {
			if j != i && out {
				w.cut[i][j] = v
			}
			if j != i && in {
				w.cut[j][i] = v
			}
		}
	}
	set(true)
	w.after(d, func() { set(false); w.note("node %d whole again", i) })
}

// ---- what operators do

// leader is a node that can commit, or believes so; nil: none.
func (w *world) leader() *node {
	for _, n := range w.nodes {
		if n.leads && n.keeper != nil && !n.down && !n.frozen && !n.hung {
			return n
		}
	}
	return nil
}

func (w *world) move() {
	v := w.newest().Volume(volumeID(w.rng.IntN(volumes)))
	if l := w.leader(); l != nil && v.Phase == state.PhaseActive {
		w.attempts++
		to := v.Placement.Local[w.rng.IntN(len(v.Placement.Local))]
		l.propose(state.BeginHandoff{ID: v.ID, Epoch: v.Epoch, To: to, Attempt: strconv.Itoa(w.attempts)})
	}
}

// rearm changes the timers, at once or by way of manual, or arms for the first time.
func (w *world) rearm() {
	l := w.leader()
	if l == nil {
		w.after(tick, w.rearm)
		return
	}
	f := w.newest().Failover()
	if f.Mode != state.FailoverManual && w.oneIn(2) {
		l.propose(state.DisarmFailover{Round: f.Round, Reason: "an operator"})
		w.after(w.upTo(15*time.Second), w.rearm)
		return
	}
	t := lease.Default
	if w.oneIn(2) {
		t = lease.Fast
	}
	l.propose(state.ArmFailover{Round: f.Round + 1, Timers: timers(t)})
}

// ---- the log

// newest is the state that all agree on, whether or not any node has applied it.
func (w *world) newest() *state.State { return w.states[len(w.states)-1] }

// commit appends a command.
func (w *world) commit(c state.Command) {
	before := w.newest()
	if r, ok := c.(state.RevokeLease); ok && w.broken.anyReign {
		r.Reign = before.Reign()
		c = r
	}
	after, res := state.Apply(before, before.Index+1, state.Envelope{Command: c})
	w.states = append(w.states, after)
	if res.Err != nil {
		w.note("refused %T: %v", c, res.Err)
		return
	}
	w.note("entry %d: %+v", after.Index, c)
	switch c := c.(type) {
	case state.Promote:
		w.tally.Promotions++
		w.promotedAfter(before, c)
		w.aim(c.To, 3*time.Second)
	case state.GrantLease:
		w.aim(c.Node, 3*time.Second)
	case state.RevokeLease: // it is over, so it is too late to reach for it
		w.aim(c.Node, 0)
	case state.CommitHandoff:
		w.tally.Moves++
	case state.CompleteArming:
		w.tally.Armings++
	}
	for v := range volumes {
		if a, b := before.Volume(volumeID(v)), after.Volume(volumeID(v)); a.Epoch > b.Epoch {
			w.fail("volume %d goes back from epoch %d to %d", v, a.Epoch, b.Epoch)
		}
	}
	if err := after.Holds(); err != nil {
		w.fail("after %+v: %v", c, err)
	}
}

// promotedAfter checks what a promotion gives up, of what those had who were asked.
func (w *world) promotedAfter(before *state.State, c state.Promote) {
	v := vol(c.ID)
	start := before.Volume(c.ID).Start
	asked, err := strconv.Atoi(c.Note)
	if err != nil {
		panic(err)
	}
	for r := range w.nodes {
		if asked&(1<<r) == 0 {
			continue
		}
		w.promised[v][r] = c.Epoch
		if p := w.acked[v][r]; !strayed(start, p) && p.Compare(c.Start) > 0 {
			w.fail("volume %d begins epoch %d at %d/%d, though node %d had acknowledged %d/%d and was asked",
				v, c.Epoch, c.Start.Epoch, c.Start.Seq, r, p.Epoch, p.Seq)
		}
	}
}

// strayed says that a copy is one of an earlier primary that went its own way.
func strayed(start, p volume.Position) bool {
	return !start.IsZero() && p.Epoch <= start.Epoch && p.Compare(start) > 0
}

func vol(id volume.ID) int {
	if id == vols[0] {
		return 0
	}
	return 1
}
