package replicate

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// TestSqueeze is the rule by which a line is found slow, and found not to be worth it.
func TestSqueeze(t *testing.T) {
	const mib = 1 << 20
	plain := func(rate int64) finding { // bytes a second
		return finding{wall: 2 * time.Second, busy: 2 * time.Second, wire: 2 * rate, raw: 2 * rate}
	}
	packed := func(rate, before int64) finding { // on the wire; of zfs
		return finding{wall: 2 * time.Second, busy: 2 * time.Second, wire: 2 * rate, raw: 2 * before, packed: 2 * before, squeezed: 2 * rate}
	}
	mixed := packed(4*mib, 4*mib)
	mixed.packed, mixed.squeezed = findingBytes/2-1, findingBytes/2-1
	slow, fast := plain(4*mib), plain(100*mib)
	absorbed := finding{wall: 20 * time.Second, wire: 50 * mib, raw: 100 * mib, packed: 100 * mib, squeezed: 50 * mib}
	through := finding{wall: 2 * time.Second, wire: 50 * mib, raw: 100 * mib, packed: 100 * mib, squeezed: 50 * mib}
	for _, c := range []struct {
		name  string
		found []finding
		on    bool
		later bool // whether it would be tried again at once
	}{
		{"nothing known", nil, false, true},
		{"two slow ones are not enough", []finding{slow, slow}, false, true},
		{"three are", []finding{slow, slow, slow}, true, true},
		{"in a row", []finding{slow, slow, fast, slow, slow}, false, true},
		{"just not slow", []finding{plain(slowLink), plain(slowLink), plain(slowLink)}, false, true},
		{"it helps", []finding{slow, slow, slow, packed(4*mib, 8*mib), packed(4*mib, 8*mib), packed(4*mib, 8*mib), packed(4*mib, 8*mib)}, true, true},
		{"a little faster is not fast", []finding{slow, slow, slow, packed(20*mib, 40*mib), packed(20*mib, 40*mib), packed(20*mib, 40*mib)}, true, true},
		{"fast now", []finding{slow, slow, slow, packed(lineFast, 40*mib), packed(lineFast, 40*mib), packed(lineFast, 40*mib)}, false, false},
		{"buffers take it, which is not fast", []finding{slow, slow, slow, absorbed, absorbed, absorbed, absorbed}, true, true},
		{"it goes through at once", []finding{slow, slow, slow, through, through, through}, false, false},
		{"fast, in a row", []finding{slow, slow, slow, packed(lineFast, 40*mib), packed(lineFast, 40*mib), packed(4*mib, 8*mib), packed(lineFast, 40*mib)}, true, true},
		{"what does not shrink", []finding{slow, slow, slow, packed(98*mib/10, 10*mib), packed(98*mib/10, 10*mib), packed(98*mib/10, 10*mib)}, false, false},
		{"what shrinks now and then", []finding{slow, slow, slow, packed(4*mib, 4*mib), packed(4*mib, 4*mib), packed(4*mib, 8*mib), packed(4*mib, 4*mib), packed(4*mib, 4*mib)}, true, true},
		{"what shrinks and comes no sooner: the replica's pool is slow", []finding{slow, slow, slow, packed(2*mib, 4*mib), packed(2*mib, 4*mib), packed(2*mib, 4*mib)}, false, false},
		{"streams of before are under way", []finding{slow, slow, slow, mixed, mixed, mixed, mixed}, true, true},
	} {
		now := time.Unix(1000, 0)
		var s squeeze
		for _, f := range c.found {
			s = s.next(f, now)
		}
		if s.on != c.on {
			t.Errorf("%s: on is %v", c.name, s.on)
		}
		if c.on {
			continue
		}
		again := func(at time.Time) bool {
			s := s
			for range findings {
				s = s.next(slow, at)
			}
			return s.on
		}
		if again(now) != c.later || !again(now.Add(gainPause)) {
			t.Errorf("%s: tried again at once: %v, after a pause: %v", c.name, again(now), again(now.Add(gainPause)))
		}
	}
}

// A node that breaks compressed streams off before it has taken one gets them as they are;
// one that has taken them is trusted to take them, unless it says no in words.
func TestSqueezeEnded(t *testing.T) {
	now, cut := time.Unix(1000, 0), errors.New("cut")
	s := squeeze{on: true}
	if got := s.ended(false, cut, now); got.on || !got.until.After(now) {
		t.Errorf("broken off: %+v", got)
	}
	s = s.ended(false, nil, now)
	if got := s.ended(false, cut, now); !got.on {
		t.Errorf("broken off, with one taken before: %+v", got)
	}
	if got := s.ended(true, cut, now); got.on || !got.until.After(now) {
		t.Errorf("refused, with one taken before: %+v", got)
	}
	for range breaks - 1 {
		s = s.ended(false, cut, now)
	}
	if got := s.ended(false, cut, now); got.on || got.proven || !got.until.After(now) {
		t.Errorf("broken off again and again: %+v", got)
	}
	if s = s.ended(false, nil, now).ended(false, cut, now); !s.on {
		t.Errorf("broken off now and then: %+v", s)
	}
}

// Each time it is turned on soon after a pause the next one is twice as long.
func TestSqueezePauses(t *testing.T) {
	now := time.Unix(1000, 0)
	slow := finding{wall: 4 * time.Second, busy: 4 * time.Second, wire: 4 << 20, raw: 4 << 20}
	var s squeeze
	for i, want := range []time.Duration{1, 2, 4, 8, 8, 1, 2} {
		if i == 5 {
			now = now.Add(calm + time.Second)
		}
		for range findings {
			s = s.next(slow, now)
		}
		if !s.on {
			t.Fatalf("%d: not on after the pause", i)
		}
		for range findings { // nothing is gained
			f := slow
			f.packed, f.squeezed = f.raw, f.wire
			s = s.next(f, now)
		}
		if got := s.until.Sub(now); s.on || got != want*gainPause {
			t.Errorf("%d: a pause of %s, want %d times the first", i, got, want)
		}
		now = s.until
	}
}

// wan is a line with a buffer in front of it, in simulated time.
type wan struct {
	line
	now    time.Time
	rate   func(now time.Time) float64 // bytes a second
	filled float64                     // of the buffer, which takes 4 MiB
}

func (w *wan) pass(d time.Duration) {
	w.filled = max(0, w.filled-w.rate(w.now)*d.Seconds())
	w.now = w.now.Add(d)
}

// send sends an increment, which shrinks to a part where it is compressed.
func (w *wan) send(n int, shrunk float64, cpu float64) (turns int) {
	const frame = 1 << 20
	compressed := w.compresses()
	for ; n > 0; n -= frame {
		wire := frame
		if compressed {
			w.passed(frame)
			w.pass(time.Duration(frame / cpu * float64(time.Second)))
			wire = int(frame * shrunk)
		}
		w.enter(w.now)
		w.filled += float64(wire)
		if over := w.filled - 4<<20; over > 0 {
			w.pass(time.Duration(over / w.rate(w.now) * float64(time.Second)))
		}
		if w.leave(w.now, wire, compressed, nil) {
			turns++
		}
	}
	return turns
}

// On no line does it go to and fro, and it is on where it should be.
func TestSqueezeOnLines(t *testing.T) {
	const mib = 1 << 20
	start := time.Unix(100_000, 0)
	always := func(rate float64) func(time.Time) float64 { return func(time.Time) float64 { return rate } }
	for _, c := range []struct {
		name   string
		rate   func(time.Time) float64
		second int     // bytes of zfs come each second
		shrunk float64 // what compressing makes of one
		cpu    float64 // bytes of zfs that the compressor takes in a second
		turns  int     // at most, in four hours
		on     bool    // in the end
	}{
		{"a WAN, and compressed buffers take most of it", always(10 * mib), 12 * mib, 0.5, 300 * mib, 1, true},
		{"what shrinks very much", always(10 * mib), 12 * mib, 0.02, 300 * mib, 1, true},
		{"a weak processor", always(10 * mib), 12 * mib, 0.3, 25 * mib, 1, true},
		{"a fast line", always(100 * mib), 12 * mib, 0.5, 300 * mib, 0, false},
		{"a line that becomes fast, and has much to do", func(now time.Time) float64 {
			if now.Sub(start) < time.Hour {
				return 10 * mib
			}
			return 200 * mib
		}, 100 * mib, 0.5, 300 * mib, 2, false},
		{"a line that goes to and fro", func(now time.Time) float64 {
			if now.Sub(start)/(2*time.Minute)%2 == 0 {
				return 10 * mib
			}
			return 200 * mib
		}, 100 * mib, 0.5, 300 * mib, 14, false},
		{"what does not shrink", always(10 * mib), 12 * mib, 1, 300 * mib, 12, false},
	} {
		w := &wan{now: start, rate: c.rate}
		turns := 0
		for w.now.Sub(start) < 4*time.Hour {
			began := w.now
			turns += w.send(c.second, c.shrunk, c.cpu)
			if rest := time.Second - w.now.Sub(began); rest > 0 {
				w.pass(rest)
			}
		}
		if turns > c.turns || w.compresses() != c.on {
			t.Errorf("%s: %d turns, and in the end it is %v, want %v after %d at most", c.name, turns, w.compresses(), c.on, c.turns)
		}
	}
}

// A finding is complete after bytes and time of a busy line, or after what would be fast.
func TestFindingComplete(t *testing.T) {
	for _, c := range []struct {
		f    finding
		want bool
	}{
		{finding{busy: findingTime, wire: findingBytes}, true},
		{finding{busy: findingTime, wire: findingBytes - 1}, false},
		{finding{busy: findingTime - 1, wire: findingBytes}, false},
		{finding{busy: time.Millisecond, wire: 2*lineFast - 1}, false},
		{finding{busy: time.Millisecond, wire: 2 * lineFast}, true},
	} {
		if got := c.f.complete(); got != c.want {
			t.Errorf("%+v: %v", c.f, got)
		}
	}
}

// A line is busy while any of its streams is, and not longer.
func TestLineBusy(t *testing.T) {
	var l line
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	l.enter(at(10))
	l.enter(at(11))
	l.leave(at(12), 100, false, nil)
	l.leave(at(13), 100, true, nil)
	l.passed(300)
	l.enter(at(20))
	l.leave(at(21), 100, false, nil)
	if want := (finding{busy: 4 * time.Second, wire: 300, raw: 500, packed: 300, squeezed: 100, wall: 11 * time.Second}); l.now != want {
		t.Errorf("found %+v, want %+v", l.now, want)
	}
	l.enter(at(30))
	l.leave(at(90), 100, false, errors.New("cut"))
	if l.now != (finding{}) {
		t.Errorf("after a broken connection: %+v", l.now)
	}
	// One that still writes when another finding begins is part of that from then on.
	l.enter(at(100))
	l.enter(at(100))
	l.leave(at(110), 2*lineFast, false, nil)
	l.leave(at(113), 100, false, nil)
	if want := (finding{wall: 3 * time.Second, busy: 3 * time.Second, wire: 100, raw: 100}); l.now != want {
		t.Errorf("beside the end of a finding: %+v, want %+v", l.now, want)
	}
}

// slowed is a connection on a line of so many bytes a second.
type slowed struct {
	net.Conn
	rate int64
}

func (s slowed) Write(p []byte) (int, error) {
	time.Sleep(time.Duration(len(p)) * time.Second / time.Duration(s.rate)) // that is what such a line does
	return s.Conn.Write(p)
}

// Without any limit a line that is found slow gets its streams compressed, unless that gains
// nothing; a fast one does not.
func TestSlowLine(t *testing.T) {
	const size = 16 << 20
	text := strings.Repeat("all the same ", size/13+1)[:size]
	noise := blob(rand.New(rand.NewPCG(40, 40)), size)
	for _, c := range []struct {
		name   string
		rate   int64
		data   string
		on     bool // after the first stream
		packed bool // the second
		stays  bool // on after it
	}{
		{"slow", 2 << 20, text, true, true, true},
		{"slow, and nothing to gain", 2 << 20, noise, true, false, false},
		{"fast", 100 << 20, text, false, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, "a b", func(w *world) {
				a := w.node("a")
				var sent atomic.Int64
				w.wrap = func(from, to string, conn net.Conn) net.Conn { return counted{slowed{conn, c.rate}, &sent} }
				compresses := func() bool { return a.eng().lineTo(w.node("b").id).compresses() }
				a.create()
				a.write("f", c.data)
				w.assign(1, "a", "b")
				w.waitFor("in sync", w.inSync("a", "b"))
				if on := compresses(); on != c.on || sent.Load() < size {
					t.Errorf("after the first stream of %d bytes it is %v", sent.Load(), on)
				}
				sent.Store(0)
				a.write("g", c.data)
				w.waitFor("in sync", w.inSync("a", "b"))
				if on, n := compresses(), sent.Load(); on != c.stays || (n < size/10) != c.packed {
					t.Errorf("after the second, %d bytes on the wire, it is %v", n, on)
				}
				if n := a.streams(""); n < 2 {
					t.Errorf("%d streams", n)
				}
			})
		})
	}
}

// A compressed stream that a node breaks off is the last one to it for a while, and goes as it
// is; once it has taken one, they go on. Whoever looks is told of each turn.
func TestSqueezeBrokenOff(t *testing.T) {
	for _, proven := range []bool{false, true} {
		inBubble(t, "a b", func(w *world) {
			a, b := w.node("a"), w.node("b")
			var broken atomic.Bool
			b.with(func(c *Config) {
				c.Pool = &twisted{Host: b.host, receive: func(ctx context.Context, req zfs.ReceiveRequest, r io.Reader) error {
					if broken.CompareAndSwap(true, false) {
						return errors.New("it cannot read that")
					}
					return b.host.Receive(ctx, req, r)
				}}
			})
			way := a.eng().lineTo(b.id)
			way.mu.Lock()
			way.squeeze.on = true
			way.mu.Unlock()
			a.create()
			broken.Store(!proven)
			w.assign(1, "a", "b")
			w.waitFor("in sync", w.inSync("a", "b"))
			broken.Store(true)
			a.write("f", "more")
			w.waitFor("in sync", func() bool { return !broken.Load() && w.inSync("a", "b")() })
			told := a.count(func(ev Event) bool { l, ok := ev.(LineChanged); return ok && !l.Compresses })
			if on := way.compresses(); on != proven || (told == 1) == proven {
				t.Errorf("had one taken before: %v; compressed from then on: %v, told %d times", proven, on, told)
			}
		})
	}
}

// Under a limit it is the limit that is slow, and the line is not measured; and a stream that is
// given up here says nothing of the node.
func TestSqueezeNotAsked(t *testing.T) {
	text := strings.Repeat("all the same ", 1<<20)
	inBubble(t, "a b", func(w *world) {
		a := w.node("a")
		a.with(func(c *Config) { c.Limit = func(volume.NodeID) Limit { return Limit{Group: "wan", Bytes: slowLink} } })
		a.create()
		a.write("f", text)
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		way := a.eng().lineTo(w.node("b").id)
		way.mu.Lock()
		defer way.mu.Unlock()
		if way.now != (finding{}) || way.squeeze != (squeeze{}) {
			t.Errorf("measured under a limit: %+v, %+v", way.now, way.squeeze)
		}
	})
	inBubble(t, "a b", func(w *world) {
		a := w.node("a")
		var sent atomic.Int64
		w.wrap = func(from, to string, conn net.Conn) net.Conn { return counted{slowed{conn, 64 << 10}, &sent} }
		way := a.eng().lineTo(w.node("b").id)
		way.mu.Lock()
		way.squeeze.on = true
		way.mu.Unlock()
		a.create()
		a.write("f", blob(rand.New(rand.NewPCG(40, 40)), 4<<20))
		w.assign(1, "a", "b")
		w.waitFor("a stream under way", func() bool { return sent.Load() > 256<<10 })
		a.assign()
		w.waitFor("its end", func() bool {
			return a.count(func(ev Event) bool { s, ok := ev.(StreamEnded); return ok && s.Err != nil }) > 0
		})
		if !way.compresses() {
			t.Error("given up here, and the node is not trusted with another")
		}
	})
}
