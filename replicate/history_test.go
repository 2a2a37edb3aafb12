package replicate

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// past of a copy: its scheduled snapshots and its users', oldest first.
func (n *node) kept() (guids []uint64) {
	for _, s := range n.snapshots() {
		if _, _, engine := volume.ParseSnapshotName(s.Name); !engine {
			guids = append(guids, s.GUID)
		}
	}
	return guids
}

// withPast makes the volume on a with users' and scheduled snapshots, of which some were
// removed and pruned again, and about so many bytes between any two.
func (w *world) withPast(size int, others ...string) {
	a := w.node("a")
	a.create()
	w.assign(1, "a", others...)
	w.policy("5m:3,15m:2")
	for i := range 12 {
		a.write(fmt.Sprint("f", i), blob(rand.New(rand.NewPCG(31, uint64(i))), size))
		if i%3 == 0 {
			w.must(a.eng().TakeSnapshot(context.Background(), []volume.ID{testVol}, fmt.Sprint("user", i)))
		}
		time.Sleep(4 * time.Minute)
	}
	w.settle() // what is read or pruned at this moment is
	w.must(a.eng().RemoveSnapshot(context.Background(), testVol, "user3"))
	a.write("last", "write")
	w.waitFor("a past", func() bool { return len(a.kept()) >= 3+3+2 && len(a.scheduled()) == 5 })
}

// joins makes these all of the primary's replicas.
func (w *world) joins(epoch volume.Epoch, primary string, replicas ...string) {
	w.assign(epoch, primary, replicas...)
	w.policy("5m:3,15m:2")
}

// sameKept says that a replica has all that is kept on its primary, and nothing else.
func (w *world) sameKept(primary, replica string) func() bool {
	return func() bool { return slices.Equal(w.node(primary).kept(), w.node(replica).kept()) }
}

// A replica that begins with nothing gets the primary's whole history: one or several at
// once, also one that had a copy and lost it.
func TestSeedHasHistory(t *testing.T) {
	inBubble(t, "a b c", func(w *world) {
		a, b := w.node("a"), w.node("b")
		w.withPast(1 << 14)
		w.joins(1, "a", "b", "c")
		for _, name := range []string{"b", "c"} {
			w.waitFor("in sync", w.inSync("a", name))
			w.waitFor(name+" has what is kept", w.sameKept("a", name))
		}
		w.must(b.host.Destroy(context.Background(), b.dataset()))
		w.waitFor("seeded again", func() bool { return a.streams(kindFull) == 3 && w.inSync("a", "b")() })
		w.waitFor("b has what is kept", w.sameKept("a", "b"))
	})
}

// A first copy that breaks off anywhere on its way through the history, alone or with one
// of the nodes, goes on where it was: what is there is the beginning of the history, is
// not called a copy, and becomes all of it. Nothing is sent in full twice.
func TestSeedIsCut(t *testing.T) {
	blows := []blow{"", killed, powerless}
	if testing.Short() {
		blows = blows[:1]
	}
	onTheWay := 0
	for _, way := range []string{"sender", "receiver"} {
		for _, b := range blows {
			for _, who := range []string{"a", "b"} {
				if b == "" && who == "b" {
					continue
				}
				for at, cut := 1<<6, true; cut; at *= 2 {
					inBubble(t, "a b", func(w *world) {
						var between bool
						if cut, between = w.cutSeed(way, at, who, b); between {
							onTheWay++
						}
					})
				}
			}
		}
	}
	if onTheWay < 3 {
		t.Errorf("only %d were cut on the way from one snapshot to another", onTheWay)
	}
}

// cutSeed is one case of TestSeedIsCut. between says that some of the history was there.
func (w *world) cutSeed(way string, at int, who string, hit blow) (cut, between bool) {
	a, b := w.node("a"), w.node("b")
	w.withPast(1 << 14)
	w.cutAt(way, at)
	w.joins(1, "a", "b")
	w.waitFor("cut", func() bool { return w.isCut() || w.inSync("a", "b")() })
	if !w.isCut() {
		return false, false
	}
	if hit != "" {
		n := w.node(who)
		n.fall(hit)
		n.stop()
		n.start()
	}
	w.waitFor("at rest", w.atRest("b"))
	part, whole := b.kept(), a.kept()
	between = len(part) > 0 && len(b.snapshots()) == len(part)
	if !slices.Equal(part, whole[:min(len(part), len(whole))]) {
		w.Errorf("cut after %d bytes of the %s, the replica has %v of %v", at, way, part, whole)
	}
	if p := b.eng().Positions()[testVol]; between && !p.IsZero() {
		w.Errorf("a copy that stands on a user's snapshot says that it holds %s", p.SnapshotName())
	}
	full := a.streams(kindFull)
	w.partition("a", "b", false)
	w.waitFor("in sync", w.inSync("a", "b"))
	w.waitFor("b has what is kept", w.sameKept("a", "b"))
	if n := a.streams(kindFull) - full; len(part) > 0 && n > 0 {
		w.Errorf("cut after %d bytes of the %s, with %d of the history there, it was sent in full again", at, way, len(part))
	}
	if n := a.count(setAside) + b.count(setAside); n > 0 {
		w.Errorf("%d copies set aside", n)
	}
	w.tidy()
	return true, between
}

// What is removed and pruned while a first copy is under way is not needed to go on: not
// what the replica stands on, not what it has half of, not what comes next.
func TestHistoryChangesUnderSeed(t *testing.T) {
	for at := 1 << 12; at <= 1<<17; at *= 2 {
		inBubble(t, "a b", func(w *world) {
			a, b, ctx := w.node("a"), w.node("b"), context.Background()
			w.withPast(1 << 14)
			w.cutAt("sender", at)
			w.joins(1, "a", "b")
			w.waitFor("cut", w.isCut)
			w.waitFor("at rest", w.atRest("b"))
			for _, name := range []string{"user0", "user6", "user9"} {
				w.must(a.eng().RemoveSnapshot(ctx, testVol, name))
			}
			w.must(a.eng().TakeSnapshot(ctx, []volume.ID{testVol}, "meanwhile"))
			for i := range 12 { // and the schedule goes on
				a.write("g", fmt.Sprint(i))
				time.Sleep(5 * time.Minute)
			}
			full := a.streams(kindFull)
			there := len(b.snapshots()) > 0
			w.partition("a", "b", false)
			w.waitFor("in sync", w.inSync("a", "b"))
			w.waitFor("b has what is kept", w.sameKept("a", "b"))
			if n := a.streams(kindFull) - full; there && n > 0 || a.count(setAside)+b.count(setAside) > 0 {
				t.Errorf("cut after %d bytes: %d full streams more", at, n)
			}
		})
	}
}

// A primary that is lost while a new replica is on its way through the history: the next
// one goes on with it from there.
func TestSeedUnderAnotherPrimary(t *testing.T) {
	for at := 1 << 12; at <= 1<<17; at *= 2 {
		inBubble(t, "a b c", func(w *world) {
			a, b, c := w.node("a"), w.node("b"), w.node("c")
			w.withPast(1<<14, "b")
			w.waitFor("in sync", w.inSync("a", "b"))
			w.mu.Lock()
			w.wrap = func(from, to string, conn net.Conn) net.Conn {
				if left := at; from == "a" && to == "c" {
					return &cutter{Conn: conn, writes: &left, then: func() { w.partition("a", "c", true) }}
				}
				return conn
			}
			w.mu.Unlock()
			w.joins(1, "a", "b", "c")
			w.waitFor("cut", func() bool {
				w.mu.Lock()
				defer w.mu.Unlock()
				return w.cut["a c"]
			})
			w.waitFor("at rest", w.atRest("c"))
			a.stop()
			there := len(c.snapshots()) > 0
			w.joins(2, "b", "c")
			w.must(b.eng().Settle(context.Background(), testVol))
			b.write("f", "2")
			w.waitFor("in sync", w.inSync("b", "c"))
			w.waitFor("c has what is kept", w.sameKept("b", "c"))
			if n := b.streams(kindFull); there && n > 0 || c.count(setAside) > 0 {
				t.Errorf("cut after %d bytes: %d full streams more", at, n)
			}
		})
	}
}

// Whoever looks at a first copy that has a history sees one thing: seeding, until a whole
// copy is there, and never less of a total that hardly changes.
func TestSeedIsOneThing(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a := w.node("a")
		var limit atomic.Int64
		a.with(func(c *Config) {
			c.Limit = func(volume.NodeID) Limit { return Limit{Group: "wan", Bytes: limit.Load()} }
		})
		const size = 1 << 19
		w.withPast(size)
		limit.Store(1 << 16)
		began := time.Now()
		w.joins(1, "a", "b")
		w.waitFor("begun", func() bool { return a.link("b").SentBytes > size/4 })
		first, last, hops := a.link("b"), volume.LinkStatus{}, map[string]bool{}
		for !w.inSync("a", "b")() && len(hops) < 100 {
			if time.Sleep(500 * time.Millisecond); time.Since(began) > time.Hour {
				t.Fatal("it does not end")
			}
			l := a.link("b")
			if l.Stream == "" {
				continue
			}
			hops[l.Base] = true
			if l.State != volume.LinkSeeding || !l.Acked.IsZero() || !l.Began.Equal(first.Began) {
				t.Fatalf("on its way: %+v", l)
			}
			if l.SentBytes < last.SentBytes || l.TotalBytes < l.SentBytes || l.TotalBytes < 12*size || l.TotalBytes > 13*size {
				t.Fatalf("from %d of %d to %d of %d", last.SentBytes, last.TotalBytes, l.SentBytes, l.TotalBytes)
			}
			last = l
		}
		if len(hops) < 6 || last.SentBytes < 11*size {
			t.Errorf("seen %d streams, and %d bytes of %d", len(hops), last.SentBytes, last.TotalBytes)
		}

		// The next stream is one by itself.
		a.write("g", blob(rand.New(rand.NewPCG(32, 32)), size))
		w.waitFor("an increment", func() bool { return a.link("b").SentBytes > 0 })
		if l := a.link("b"); l.State == volume.LinkSeeding || l.SentBytes > size || l.TotalBytes > 2*size || l.Began.Equal(first.Began) {
			t.Errorf("after it: %+v", l)
		}
	})
}

// A snapshot that somebody takes with zfs(8), and that is found when replicas have a newer
// one, cannot be added to them. That is said, once. A new copy has it.
func TestFoundTooLate(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.pair("1")
		w.must(a.eng().TakeSnapshot(context.Background(), []volume.ID{testVol}, "mine"))
		w.must(a.host.Snapshot(context.Background(), []string{a.dataset() + "@byhand"}, nil))
		for i := range 11 * 60 { // two audits
			a.write("f", fmt.Sprint(i))
			time.Sleep(time.Second)
		}
		var said []string
		a.count(func(ev Event) bool {
			if p, ok := ev.(SnapshotPassed); ok && p.Late {
				said = append(said, p.Name)
			}
			return false
		})
		if want := []string{"byhand"}; has(b, "byhand") || !has(b, "mine") || !slices.Equal(said, want) {
			t.Errorf("the replica has %v, said was %q, want %q", b.snapshots(), said, want)
		}
		w.must(b.host.Rename(context.Background(), b.dataset(), "tank/old"))
		w.waitFor("seeded again", func() bool { return has(b, "byhand") && w.inSync("a", "b")() })
	})
}
