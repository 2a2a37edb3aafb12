package replicate

import (
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
)

// cutAt makes the next connection between a and b die after so many bytes that the
// sender, or the receiver, has put on it; the network between them is then cut, so
// that the test can look before it goes on. Further numbers are for the connections
// after that.
func (w *world) cutAt(way string, at ...int) {
	a, b := w.node("a"), w.node("b")
	w.mu.Lock()
	w.wrap = func(from, to string, conn net.Conn) net.Conn {
		if len(at) == 0 || from != a.name {
			return conn
		}
		left := at[0]
		c := &cutter{Conn: conn, then: func() {
			at = at[1:]
			w.partition("a", "b", true)
		}}
		if way == "sender" {
			c.writes = &left
		} else {
			c.reads = &left
		}
		return c
	}
	w.mu.Unlock()
	a.hangUpTo(b) // what is open already would not be cut
}

// cutting is one case: a stream of this kind ends after so many bytes of one side;
// with a blow, so does one of the nodes.
type cutting struct {
	kind, way string
	at        int
	who       string
	blow      blow
}

func (c cutting) String() string {
	s := fmt.Sprintf("%s stream cut after %d bytes of the %s", c.kind, c.at, c.way)
	if c.who != "" {
		s += fmt.Sprintf(", when %s on %s", c.blow, c.who)
	}
	return s
}

// run does the case. happened is false when the side did not say so much.
func (c cutting) run(w *world, data string) (happened bool) {
	a, b := w.node("a"), w.node("b")
	a.create()
	a.write("f", data[:min(len(data), 100<<10)])
	switch c.kind {
	case kindFull:
		w.cutAt(c.way, c.at)
		a.write("g", data)
		w.assign(1, "a", "b")
	case kindIncremental:
		w.assign(1, "a", "b")
		w.waitFor("seeded", w.inSync("a", "b"))
		w.cutAt(c.way, c.at)
		a.writeWhole("g", data)
	case kindResume:
		w.assign(1, "a", "b")
		w.waitFor("seeded", w.inSync("a", "b"))
		w.cutAt("sender", len(data)/4)
		a.writeWhole("g", data)
		w.waitFor("cut once", w.isCut)
		w.waitFor("at rest", w.atRest("b"))
		if !w.partial("b") {
			w.Error("nothing was kept of a quarter of the stream")
		}
		w.cutAt(c.way, c.at)
		w.partition("a", "b", false)
	}
	before := b.guids()
	w.waitFor("cut", func() bool { return w.isCut() || w.inSync("a", "b")() })
	if !w.isCut() {
		return false
	}
	if c.who != "" {
		n := w.node(c.who)
		n.fall(c.blow)
		n.stop()
		n.start()
	}
	w.waitFor("at rest", w.atRest("b"))

	// Unchanged, or whole: what is there is what was there, or with it what was sent.
	after, partial := b.guids(), w.partial("b")
	if !slices.Equal(after[:min(len(after), len(before))], before) {
		w.Errorf("the copy had %v, now %v", before, after)
	}
	for _, g := range after {
		if !slices.Contains(a.guids(), g) {
			w.Errorf("the copy has %d, which the primary lacks", g)
		}
	}
	w.check()

	streams, resumed := a.streams(""), a.streams(kindResume)
	w.partition("a", "b", false)
	w.waitFor("in sync", w.inSync("a", "b"))
	switch {
	case len(after) > len(before):
		if n := a.streams("") - streams; n > 0 {
			w.Errorf("%d more streams were sent although all had arrived", n)
		}
	case partial && a.streams(kindResume) == resumed:
		w.Error("what was kept of the stream was not resumed")
	}
	if n := b.count(setAside) + a.count(setAside); n > 0 {
		w.Errorf("%d copies set aside", n)
	}
	w.tidy()
	return true
}

// writeWhole writes what then travels in one stream: a snapshot in the middle would divide it.
func (n *node) writeWhole(file, data string) {
	n.w.Helper()
	n.freeze(true)
	n.write(file, data)
	n.freeze(false)
}

// isCut says whether there is no network between a and b.
func (w *world) isCut() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cut["a b"]
}

// guids of a copy's snapshots, oldest first.
func (n *node) guids() (list []uint64) {
	for _, s := range n.snapshots() {
		list = append(list, s.GUID)
	}
	return list
}

// atRest says that a node receives nothing, and that nobody means to send any more.
func (w *world) atRest(name string) func() bool {
	return func() bool {
		for _, n := range w.nodes { // who sent hears of the end, too
			if n.eng().turnsTaken() > 0 {
				return false
			}
		}
		e := w.node(name).eng()
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.surveyed && len(e.receives) == 0 && w.node(name).serving.Load() == 0
	}
}

// turnsTaken are the links that may send, or wait for it.
func (e *Engine) turnsTaken() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.turns) + len(e.queue)
}

// cuts runs cases of all kinds of stream with these numbers of bytes, the last of
// which is the greatest.
func cuts(t *testing.T, on stage, numbers []int, blows []blow) (runs int) {
	data := blob(rand.New(rand.NewPCG(1, 1)), 400<<10+2*numbers[len(numbers)-1])
	var all []cutting
	for _, kind := range []string{kindFull, kindIncremental, kindResume} {
		for _, way := range []string{"sender", "receiver"} {
			all = append(all, cutting{kind: kind, way: way})
			for _, b := range blows {
				all = append(all, cutting{kind: kind, way: way, who: "a", blow: b}, cutting{kind: kind, way: way, who: "b", blow: b})
			}
		}
	}
	for _, c := range all {
		for _, at := range numbers {
			c.at = at
			happened := false
			on(t, c.String(), func(w *world) { happened = c.run(w, data[:400<<10+2*at]) })
			runs++
			if c.way == "sender" && !happened {
				t.Fatalf("%s: it came to its end before that", c)
			}
			if !happened {
				break
			}
		}
	}
	return runs
}

// cutRounds cuts streams of all kinds, of this size, either way, alone and with flockd killed
// on either node, at one power of two after the other, in a random order, while there is
// time. rounds is for how many powers that was done, of all there are.
func cutRounds(t *testing.T, on stage, size int, time func() bool) (rounds, all int) {
	data := blob(rand.New(rand.NewPCG(1, 1)), size)
	var powers []int
	for at := 1; at < size; at *= 2 {
		powers = append(powers, at)
	}
	rand.Shuffle(len(powers), func(i, j int) { powers[i], powers[j] = powers[j], powers[i] })
	for _, at := range powers {
		if !time() || t.Failed() {
			break
		}
		rounds++
		for _, kind := range []string{kindFull, kindIncremental, kindResume} {
			for _, who := range []string{"", "a", "b"} {
				for _, way := range []string{"sender", "receiver"} {
					if way == "receiver" && at > mostSaid {
						continue
					}
					c := cutting{kind: kind, way: way, at: at, who: who, blow: killed}
					on(t, c.String(), func(w *world) {
						// Of a resumed stream, a part has gone before.
						if happened := c.run(w, data); !happened && way == "sender" && kind != kindResume {
							w.Error("it came to its end before that")
						}
					})
				}
			}
		}
	}
	return rounds, len(powers)
}

// mostSaid is more than a receiver says while one stream comes.
const mostSaid = 1 << 10

// The rounds of the real pools, on fakes.
func TestCutRounds(t *testing.T) {
	left := 4
	rounds, all := cutRounds(t, onFakes, 1<<20, func() bool { left--; return left >= 0 })
	if rounds != 4 || all != 20 {
		t.Errorf("%d rounds of %d", rounds, all)
	}
}

// A stream that is cut after any power of two bytes, either way, alone or together
// with one of the nodes, leaves the copy as it was, or whole, and the next exchange
// goes on from there.
func TestCuts(t *testing.T) {
	var powers []int
	for at := 1; at <= 1<<22; at *= 2 {
		powers = append(powers, at)
	}
	blows := []blow{killed, powerless}
	if testing.Short() {
		blows = nil
	}
	t.Logf("%d streams cut", cuts(t, onFakes, powers, blows))
}

// What the receiver says is short: it is cut after every single byte.
func TestCutAnswers(t *testing.T) {
	step := 1
	if testing.Short() {
		step = 13
	}
	for _, kind := range []string{kindFull, kindIncremental, kindResume} {
		for at, happened := 0, true; happened; at += step {
			c := cutting{kind: kind, way: "receiver", at: at}
			onFakes(t, c.String(), func(w *world) { happened = c.run(w, string(make([]byte, 200<<10))) })
		}
	}
}
