package replicate

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// A stream to a replica needs a turn; an offer does not. A link that knows that its
// replica lacks something takes its turn before it offers. One that only asks (is all
// still there? does it answer again?) offers without, and takes a turn on the spot
// when the answer asks for a stream and one is free; if none is, it declines the
// stream and queues for it with what it has learnt. So neither an idle replica's
// verification nor a dead one's dialing is ever in the way of a stream.

// longStream is what makes a stream a long one: more bytes than this, or a first copy.
const longStream = 64 << 20

// claim is one link's wish for a turn, and then the turn.
type claim struct {
	link    *link
	granted chan struct{} // closed when it has its turn
	long    bool          // when granted
}

// wish is what the order of turns goes by.
type wish struct {
	to       volume.NodeID
	awaited  bool          // a Flush or Sync waits for it
	long     bool          // a first copy, or much to catch up with
	behind   time.Duration // since the time up to which the replica has everything
	interval time.Duration // of the volume
}

// load is how many turns a replica has, of both kinds.
type load struct{ short, long int }

func (l load) all() int { return l.short + l.long }

// pickTurn says which of those waiting goes next; -1: none can.
//
// What somebody waits for goes first, then whose lag is worst for its interval. The
// first short and the first long stream to each replica may always go; beyond them,
// all replicas share `sends` turns, and one replica has at most perReplica in all and
// one fewer of long ones. There is one turn more for what somebody waits for. So a replica that is slow, or dead without anybody knowing,
// keeps its own volumes waiting and nobody else's; and a first copy that takes hours
// never keeps an increment waiting.
func pickTurn(waiting []wish, taken map[volume.NodeID]load, sends, perReplica int) int {
	total := 0
	for _, l := range taken {
		total += l.all()
	}
	best := -1
	for i, w := range waiting {
		now := taken[w.to]
		first, most := now.short == 0, perReplica
		switch {
		case w.awaited:
			first, most = true, perReplica+1
		case w.long:
			first = now.long == 0
		}
		switch {
		case now.all() >= most:
		case !first && total >= sends:
		case w.long && now.long >= max(1, perReplica-1):
		case best < 0 || before(w, waiting[best]):
			best = i
		}
	}
	return best
}

// before says that a goes before b; neither when they are equal, then whoever came
// first does.
func before(a, b wish) bool {
	if a.awaited != b.awaited {
		return a.awaited
	}
	// Compared as products, so that no precision is lost and nothing is divided by 0.
	return cmp.Compare(float64(a.behind)*float64(b.interval), float64(b.behind)*float64(a.interval)) > 0
}

// wish of a link, now. The caller holds mu.
func (l *link) wish(now time.Time) wish {
	e := l.e
	w := wish{to: l.key.replica, awaited: len(l.waiters) > 0, behind: l.behind(now), interval: volume.DefaultInterval}
	if a := e.table[l.key.volume]; a != nil {
		w.interval = a.interval()
	}
	c := e.copies[l.key.volume]
	if c == nil {
		return w
	}
	w.long = !w.awaited && (l.top == 0 || c.lagBytes(l.top) > longStream)
	// A volume that was idle until just now is not behind for as long as nobody asked.
	if c.idleAsOf.After(l.complete) && !l.lacked(c, c.idleAsOf) {
		w.behind = now.Sub(c.idleAsOf)
	}
	return w
}

// lacked says whether the replica lacked something then. The caller holds mu.
func (l *link) lacked(c *localCopy, then time.Time) bool {
	_, txg := c.place(guid(l.acked.GUID))
	return txg == 0 || slices.ContainsFunc(c.snaps, func(s snap) bool {
		return s.engine() && s.txg > txg && !s.pos.Taken.After(then)
	})
}

// behind is how long ago the replica had everything. The caller holds mu.
func (l *link) behind(now time.Time) time.Duration {
	since := l.complete
	if since.IsZero() {
		since = l.born
	}
	return now.Sub(since)
}

// grantTurns gives turns to whoever can have one. It is called when a turn has come
// back, somebody has queued, or a volume has become more urgent. The caller holds mu.
func (e *Engine) grantTurns() {
	now := time.Now()
	for len(e.queue) > 0 {
		wishes := make([]wish, len(e.queue))
		for i, c := range e.queue {
			wishes[i] = c.link.wish(now)
		}
		i := pickTurn(wishes, e.turns, e.cfg.Sends, e.cfg.SendsPerReplica)
		if i < 0 {
			return
		}
		c := e.queue[i]
		e.queue = slices.Delete(e.queue, i, i+1)
		c.long = wishes[i].long
		e.countTurn(c, 1)
		close(c.granted)
	}
}

func (e *Engine) countTurn(c *claim, n int) {
	l := e.turns[c.link.key.replica]
	if c.long {
		l.long += n
	} else {
		l.short += n
	}
	if e.turns[c.link.key.replica] = l; l.all() == 0 {
		delete(e.turns, c.link.key.replica)
	}
}

// turn waits for a turn, or with now takes one only if it is free: then release is
// nil when none is. The caller calls release once.
func (l *link) turn(ctx context.Context, now bool) (release func(), err error) {
	e := l.e
	c := &claim{link: l, granted: make(chan struct{})}
	e.mu.Lock()
	e.queue = append(e.queue, c)
	e.grantTurns()
	e.mu.Unlock()
	if !now {
		select {
		case <-c.granted:
		case <-ctx.Done():
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if i := slices.Index(e.queue, c); i >= 0 {
		e.queue = slices.Delete(e.queue, i, i+1)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, nil
	}
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.countTurn(c, -1)
		e.grantTurns()
	}, nil
}
