package replicate

import (
	"context"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/flocker-io/flocker/zfs"
)

// sends watches what a node's engine has zfs send.
type sends struct {
	mu     sync.Mutex
	began  []time.Time
	from   []string
	bytes  []int
	active int
}

type tally struct {
	io.Writer
	bytes *int
}

func (c tally) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	*c.bytes += n
	return n, err
}

func (c tally) SetWriteDeadline(t time.Time) error {
	return c.Writer.(interface{ SetWriteDeadline(time.Time) error }).SetWriteDeadline(t)
}

func watchSends(n *node) *sends {
	s := &sends{}
	n.send = func(ctx context.Context, req zfs.SendRequest, w io.Writer) error {
		sent := new(int)
		s.mu.Lock()
		s.began, s.from, s.active = append(s.began, time.Now()), append(s.from, req.From), s.active+1
		s.mu.Unlock()
		err := n.disk.Send(ctx, req, tally{w, sent})
		s.mu.Lock()
		defer s.mu.Unlock()
		s.bytes, s.active = append(s.bytes, *sent), s.active-1
		return err
	}
	return s
}

func (s *sends) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.began)
}

// zfs makes the stream that a replica will ask for while it is asked.
func TestSendBeginsWithOffer(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.pair("one")
		const slow = 20 * time.Second
		defer slowNet(w, "a", "b", slow)()
		// The first offer over the new connection: what it costs to find the old one dead.
		a.write("f", "two")
		w.waitFor("in sync", w.inSync("a", "b"))
		s := watchSends(a)
		a.write("f", "three")
		before, _ := a.newest()
		w.waitFor("a snapshot", func() bool { g, _ := a.newest(); return g != before })
		taken := time.Now()
		w.waitFor("in sync", w.inSync("a", "b"))
		if s.count() != 1 || s.began[0].Sub(taken) >= slow || s.active != 0 || s.bytes[0] == 0 {
			t.Errorf("%d sends, the first %s after its snapshot, %d still run; an offer alone takes %s", s.count(), s.began[0].Sub(taken), s.active, slow)
		}
		if n := b.count(setAside); n > 0 {
			t.Errorf("%d copies set aside", n)
		}
	})
}

// A replica that asks for another stream gets that one, and nothing of what was begun.
func TestSendBegunForNothing(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.pair("one")
		_, first := a.newest()
		a.write("f", "two")
		w.waitFor("in sync", w.inSync("a", "b"))
		_, second := a.newest()
		s := watchSends(a)

		// Its newest snapshot is destroyed behind the engine's back; it notices when it
		// looks again.
		b.stop()
		w.must(b.disk.DestroySnapshots(context.Background(), b.dataset(), []string{second}))
		b.start()
		w.waitFor("b to have read its disk", func() bool { return b.eng().Positions() != nil })
		a.write("f", "three")
		w.waitFor("in sync", w.inSync("a", "b"))
		i := slices.Index(s.from, a.dataset()+"@"+second)
		j := slices.Index(s.from, a.dataset()+"@"+first)
		if i < 0 || j < i || s.bytes[i] != 0 || s.active != 0 {
			t.Errorf("sent from %q, %v bytes, %d still run; want nothing from %s, and then a stream from %s", s.from, s.bytes, s.active, second, first)
		}

		// One that will have nothing at all costs no more than the first offer.
		b.assign()
		before := s.count()
		a.write("f", "four")
		time.Sleep(5 * time.Minute) // of the bubble: that nothing happens has no condition
		if n := s.count() - before; n > 1 || s.active != 0 {
			t.Errorf("%d sends to a replica that refuses all, %d still run", n, s.active)
		}
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
	})
}

// Somebody writes onto a replica: the stream fails there, what was written is set aside,
// and the replica asks for the same stream once more. One that was begun is let out once.
func TestSendBegunOnce(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.pair("one")
		a.write("f", "two")
		w.waitFor("in sync", w.inSync("a", "b"))
		s := watchSends(a)
		w.must(b.tryWrite("sneaked", "in"))
		b.host.Slow("receive", "", time.Second) // it fails when all of the stream is out
		a.write("f", "three")
		w.waitFor("set aside", func() bool { return b.count(setAside) == 1 })
		w.waitFor("in sync", w.inSync("a", "b"))
		if n := len(s.from); n < 2 || s.from[0] != s.from[1] || s.active != 0 {
			t.Errorf("sent from %q, %d still run; want the same stream twice", s.from, s.active)
		}
	})
}
