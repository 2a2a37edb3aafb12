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

	"github.com/flocker-io/flocker/zfs"
)

// TestSqueeze is the rule by which a line is found slow, and found not to be worth it.
func TestSqueeze(t *testing.T) {
	const mib = 1 << 20
	plain := func(rate int64) finding { // bytes a second
		return finding{busy: 2 * time.Second, wire: 2 * rate, raw: 2 * rate}
	}
	packed := func(rate, before int64) finding { // on the wire; of zfs
		return finding{busy: 2 * time.Second, wire: 2 * rate, raw: 2 * before, packed: 2 * before, squeezed: 2 * rate}
	}
	mixed := packed(4*mib, 4*mib)
	mixed.packed, mixed.squeezed = findingBytes/2-1, findingBytes/2-1
	slow, fast := plain(4*mib), plain(100*mib)
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
		{"fast now", []finding{slow, slow, slow, packed(lineFast, 40*mib), packed(lineFast, 40*mib), packed(lineFast, 40*mib)}, false, true},
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
	if want := (finding{busy: 4 * time.Second, wire: 300, raw: 500, packed: 300, squeezed: 100}); l.now != want {
		t.Errorf("found %+v, want %+v", l.now, want)
	}
	l.enter(at(30))
	l.leave(at(90), 100, false, errors.New("cut"))
	if l.now != (finding{}) {
		t.Errorf("after a broken connection: %+v", l.now)
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
