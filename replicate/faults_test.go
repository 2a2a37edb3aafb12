package replicate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

func has(n *node, name string) bool {
	for _, s := range n.snapshots() {
		if s.Name == name {
			return true
		}
	}
	return false
}

// hasAside checks that exactly one set-aside copy is there, with these files.
func (w *world) hasAside(n *node, files ...string) {
	w.Helper()
	list, err := n.disk.Datasets(context.Background(), n.pool+"/flocker-aside")
	w.must(err)
	if len(list) != 2 {
		w.Fatalf("datasets set aside: %d, want one", len(list)-1)
	}
	if x, ok := ParseAside(list[1], n.pool+"/flocker-aside"); !ok || x.Epoch == 0 {
		w.Errorf("%s says nothing of the epoch in which it went its own way", list[1].Name)
	}
	for _, file := range files {
		if _, err := n.disk.ReadFile(list[1].Name, file); err != nil {
			w.Errorf("%s lacks %s: %v", list[1].Name, file, err)
		}
	}
}

// A copy with nothing in common is renamed as a whole, and a full stream follows.
func TestNothingInCommon(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		a.create()
		a.write("f", "ours")
		b.create()
		b.write("f", "theirs")
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		w.hasAside(b, "f")
	})
}

// A replica that somebody wrote to: found out by zfs, set aside with what was
// written, never rolled back.
func TestModifiedReplica(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.pair("one")
		b.write("vandal", "was here")
		a.write("f", "two")
		w.waitFor("in sync", w.inSync("a", "b"))
		w.hasAside(b, "vandal")
		if n := a.streams(kindFull); n != 1 {
			t.Errorf("%d full streams, want the seed alone", n)
		}
	})
}

// A replica out of space says so, keeps what it has, and goes on from there.
func TestNoSpace(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.pair("one")
		told := func() int {
			return a.count(func(ev Event) bool { c, ok := ev.(LinkChanged); return ok && c.Err != nil })
		}
		before := told() // that b was starting
		b.host.SetCapacity("tank", 4<<20)
		// Until b has listed its pool again zfs's own refusal comes first, and is told besides.
		w.waitFor("b to know how small its pool is", func() bool {
			e := b.eng()
			e.mu.Lock()
			defer e.mu.Unlock()
			return e.room.size > 0 && e.room.size <= 4<<20
		})
		a.write("big", blob(rand.New(rand.NewPCG(4, 4)), 8<<20))
		w.waitFor("refused", func() bool {
			l := a.link("b")
			return l.State == volume.LinkRefused && strings.Contains(l.Error, "space")
		})
		time.Sleep(time.Minute)
		b.host.SetCapacity("tank", 1<<30)
		w.waitFor("in sync", w.inSync("a", "b"))
		if n := b.count(setAside); n > 0 {
			t.Errorf("%d copies set aside", n)
		}
		if n := told() - before; n > 3 { // it did not fit; no more is sent; one more try
			t.Errorf("it was told %d times", n)
		}
	})
}

// A pool that cannot be asked never leads to a full stream or a set-aside.
func TestCannotAsk(t *testing.T) {
	for _, op := range []string{"datasets", "dataset", "snapshots", "bookmarks", "receive", "set", "rename"} {
		for _, who := range []string{"a", "b"} {
			inBubble(t, "a b", func(w *world) {
				a, n := w.node("a"), w.node(who)
				a.create()
				a.write("f", "one")
				w.assign(1, "a", "b")
				w.waitFor("in sync", w.inSync("a", "b"))
				heal := n.host.Inject(zfsfake.Rule{Op: op, Do: func(ctx context.Context, op, names string) error {
					if ctx.Value(byEngine{}) == nil {
						return nil
					}
					return errors.New("injected")
				}})
				for i := range 5 {
					a.write("f", fmt.Sprint(i))
					time.Sleep(2 * time.Second)
				}
				n.stop()
				n.start()
				time.Sleep(20 * time.Second)
				heal()
				a.write("f", "healed")
				w.waitFor("in sync", w.inSync("a", "b"))
				if full := a.streams(kindFull); full != 1 {
					t.Errorf("%s of %s failed: %d full streams", op, who, full)
				}
				if n := w.node("b").count(setAside); n > 0 {
					t.Errorf("%s of %s failed: %d set aside", op, who, n)
				}
			})
		}
	}
}

// One volume that cannot be snapshotted does not stop the others.
func TestOneBadVolume(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		var forA, forB []Assignment
		for i := range 8 {
			id := volume.ID(fmt.Sprintf("%016x", i+1))
			w.must(a.host.CreateFilesystem(context.Background(), testRoot+"/"+string(id), nil))
			forA = append(forA, Assignment{Volume: id, Epoch: 1, Role: volume.RolePrimary, Primary: a.id, Replicas: []volume.NodeID{b.id}})
			forB = append(forB, Assignment{Volume: id, Epoch: 1, Role: volume.RoleReplica, Primary: a.id})
		}
		bad := forA[3].Volume
		a.host.Fail("take", string(bad), 0, errors.New("injected"))
		a.assign(forA...)
		b.assign(forB...)
		time.Sleep(10 * time.Second)
		for id, p := range b.eng().Positions() {
			if p.IsZero() {
				t.Errorf("volume %s has no position", id)
			}
		}
		if n := len(b.eng().Positions()); n != 7 {
			t.Errorf("%d volumes replicated, want 7", n)
		}
	})
}

// What a receiver turns away before it looks at its disk, and that it goes on with
// the same connection afterwards.
func TestAdmission(t *testing.T) {
	inBubble(t, "a b c", func(w *world) {
		a, b, c := w.node("a"), w.node("b"), w.node("c")
		a.create()
		a.write("f", "one")
		w.assign(5, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		pos := a.eng().Positions()[testVol]
		good := offer{Cluster: "test", Volume: testVol, Epoch: 5, Primary: a.id, Newest: pos, Bases: []guid{guid(pos.GUID)}}

		ask := func(from *node, change func(*offer)) answer {
			t.Helper()
			conn, err := from.dial(b.id)
			w.must(err)
			defer conn.Close()
			wire := newWire(conn, time.Minute)
			var first answer
			for range 2 {
				o := good
				change(&o)
				w.must(wire.writeMessage(frameOffer, o))
				w.must(wire.expect(frameAnswer, &first))
			}
			return first
		}
		for _, c := range []struct {
			what   string
			from   *node
			change func(*offer)
			want   verdict
		}{
			{"good", a, func(o *offer) {}, saysAlready},
			{"stale epoch", a, func(o *offer) { o.Epoch = 4 }, saysStale},
			{"unheard epoch", a, func(o *offer) { o.Epoch = 6 }, saysBusy},
			{"other cluster", a, func(o *offer) { o.Cluster = "x" }, saysRefused},
			{"wrong sender", c, func(o *offer) { o.Primary = c.id }, saysRefused},
			{"impostor", c, func(o *offer) {}, saysRefused},
			{"unknown volume", a, func(o *offer) { o.Volume = "00000000000000bb" }, saysRefused},
		} {
			got := ask(c.from, c.change)
			if got.Verdict != c.want {
				t.Errorf("%s: got %s (%s), want %s", c.what, got.Verdict, got.Reason, c.want)
			}
			if got.Verdict == saysStale && got.Epoch != 5 {
				t.Errorf("stale epoch: told %d is current, want 5", got.Epoch)
			}
		}

		// The epoch on disk counts too, when the assignment is older; for a copy that is
		// up to date, as the next listing of the pool shows it.
		w.must(b.host.SetProperties(context.Background(), b.dataset(), map[string]string{propEpoch: volume.Epoch(9).String()}))
		time.Sleep(2 * maxTick)
		if got := ask(a, func(*offer) {}); got.Verdict != saysStale || got.Epoch != 9 {
			t.Errorf("epoch 9 on disk: %+v", got)
		}
		w.must(b.host.SetProperties(context.Background(), b.dataset(), map[string]string{propEpoch: "nonsense"}))
		time.Sleep(2 * maxTick)
		if got := ask(a, func(*offer) {}); got.Verdict != saysRefused {
			t.Errorf("unreadable epoch on disk: %+v", got)
		}
		w.must(b.host.SetProperties(context.Background(), b.dataset(), map[string]string{propEpoch: volume.Epoch(5).String(), "mountpoint": "/m"}))
		w.must(b.host.Mount(context.Background(), b.dataset(), false))
		time.Sleep(2 * maxTick)
		if got := ask(a, func(*offer) {}); got.Verdict != saysRefused {
			t.Errorf("mounted: %+v", got)
		}
		w.must(b.host.Unmount(context.Background(), b.dataset()))
	})
}

// A stream under way ends when its epoch does, and what it left half done is thrown
// away before anything of the higher epoch arrives.
func TestEpochEndsStream(t *testing.T) {
	inBubble(t, "a b c", func(w *world) {
		a, b, c := w.node("a"), w.node("b"), w.node("c")
		a.create()
		w.assign(1, "a", "b", "c")
		w.waitFor("in sync", w.inSync("a", "b"))
		w.waitFor("in sync", w.inSync("a", "c"))
		unslow := slowNet(w, "a", "b", 100*time.Millisecond)
		a.write("big", blob(rand.New(rand.NewPCG(5, 5)), 8<<20))
		w.waitFor("sending", func() bool { l := a.link("b"); return l.State == volume.LinkSending && l.SentBytes > 1<<20 })
		b.assign(Assignment{Volume: testVol, Epoch: 2, Role: volume.RoleReplica})
		w.must(b.eng().Settle(context.Background(), testVol))
		d, err := b.host.Dataset(context.Background(), b.dataset())
		w.must(err)
		if d.ResumeToken != "" {
			t.Error("Settle left a partial stream")
		}
		before, _ := b.newest()
		time.Sleep(10 * time.Second)
		if after, _ := b.newest(); after != before {
			t.Error("a stream of the old epoch got through")
		}
		if l := a.link("b"); l.State != volume.LinkRefused {
			t.Errorf("old primary's link: %+v", l)
		}
		unslow()
		w.assign(2, "c", "a", "b")
		c.write("new", "by c")
		w.waitFor("b follows c", w.inSync("c", "b"))
		w.waitFor("a follows c", w.inSync("c", "a"))
	})
}

// Who hands a volume over does not wait for room, other than who merely wants it copied.
func TestFlushWithoutRoom(t *testing.T) {
	for _, known := range []bool{true, false} { // that it has none, before it is tried
		inBubble(t, "a b", func(w *world) {
			a, b := w.pair("one")
			b.host.SetCapacity("tank", 4<<20)
			if known {
				w.waitFor("b to know how small its pool is", func() bool {
					e := b.eng()
					e.mu.Lock()
					defer e.mu.Unlock()
					return e.room.size > 0 && e.room.size <= 4<<20
				})
			}
			a.write("big", blob(rand.New(rand.NewPCG(4, 4)), 8<<20))
			for range 2 {
				began := time.Now()
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				if _, err := a.eng().Flush(ctx, testVol, b.id); !errors.Is(err, ErrNoRoom) || time.Since(began) > 5*time.Second {
					t.Errorf("a last copy that does not fit: %v after %v", err, time.Since(began))
				}
				cancel()
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if _, err := a.eng().SyncTo(ctx, testVol, []volume.NodeID{b.id}); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrNoRoom) {
				t.Errorf("a copy that does not fit: %v", err)
			}
			b.host.SetCapacity("tank", 1<<30)
			time.Sleep(2 * time.Second) // b asks no more often
			_, err := a.eng().Flush(context.Background(), testVol, b.id)
			w.must(err)
		})
	}
}

// Flush returns with exactly the snapshot it took acknowledged, frozen or not, and
// ends when the link or the context does.
func TestFlush(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		ctx := context.Background()
		a.create()
		w.assign(1, "a", "b")
		for i := range 5 {
			a.write("f", fmt.Sprint(i))
			pos, err := a.eng().Flush(ctx, testVol, b.id)
			w.must(err)
			if g, _ := b.newest(); g != pos.GUID {
				t.Errorf("flushed %d, replica stands on %d", pos.GUID, g)
			}
			if !w.alike("a", "b")() {
				t.Error("flushed, but not alike")
			}
		}
		a.freeze(true)
		a.write("f", "frozen")
		before := len(a.snapshots())
		time.Sleep(5 * time.Second)
		if n := len(a.snapshots()); n != before {
			t.Errorf("frozen, yet %d snapshots were taken", n-before)
		}
		pos, err := a.eng().Flush(ctx, testVol, "")
		w.must(err)
		if g, _ := a.newest(); g != pos.GUID {
			t.Error("Flush to nobody returned another position")
		}
		wantError(t, "Sync of a frozen volume", a.eng().Sync(ctx, testVol), volume.CodeConflict, "being moved or removed")
		a.freeze(false)
		w.must(a.eng().Sync(ctx, testVol))

		if _, err := a.eng().Flush(ctx, "00000000000000bb", ""); volume.CodeOf(err) != volume.CodeConflict {
			t.Errorf("Flush of a foreign volume: %v", err)
		}
		if _, err := a.eng().Flush(ctx, testVol, a.id); volume.CodeOf(err) != volume.CodeInvalid {
			t.Errorf("Flush to no replica: %v", err)
		}
		w.partition("a", "b", true)
		short, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if _, err := a.eng().Flush(short, testVol, b.id); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Flush to a lost replica: %v", err)
		}
		failed := make(chan error)
		go func() { failed <- a.eng().Sync(ctx, testVol) }()
		synctest.Wait()
		w.assign(2, "b", "a")
		if err := hear(t, "the sync to end", failed); volume.CodeOf(err) != volume.CodeConflict {
			t.Errorf("Sync when the epoch ended: %v", err)
		}
	})
}

// A connection that swallows what is sent is given up, by both sides, and the
// next one does it.
func TestStall(t *testing.T) {
	for size := 1; size < 1<<20; size *= 8 {
		inBubble(t, "a b", func(w *world) {
			var stuck atomic.Bool
			left := size
			w.wrap = func(from, to string, conn net.Conn) net.Conn {
				if stuck.Load() {
					return conn
				}
				return &blackHole{Conn: conn, left: &left, stuck: &stuck}
			}
			a := w.node("a")
			a.create()
			a.write("f", blob(rand.New(rand.NewPCG(6, 6)), 1<<20))
			w.assign(1, "a", "b")
			began := time.Now()
			w.waitFor("in sync", w.inSync("a", "b"))
			if took := time.Since(began); took > 7*time.Minute {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// blackHole swallows what is written after so many bytes, as a dead peer does
// whose connection is not reset.
type blackHole struct {
	net.Conn
	left  *int
	stuck *atomic.Bool
}

func (h *blackHole) Write(p []byte) (int, error) {
	if *h.left -= len(p); *h.left < 0 {
		h.stuck.Store(true)
		return len(p), nil
	}
	return h.Conn.Write(p)
}

// slowNet makes every write from one node to another take d.
func slowNet(w *world, from, to string, d time.Duration) (undo func()) {
	slow := true
	old := w.wrap
	w.node(from).hangUpTo(w.node(to))
	w.wrap = func(f, t string, conn net.Conn) net.Conn {
		if slow && f == from && t == to {
			return newSlowConn(conn, d)
		}
		return conn
	}
	return func() { slow, w.wrap = false, old }
}

// slowConn takes d for every write. Closed, it lets go of who writes, as a network
// connection does.
type slowConn struct {
	net.Conn
	d      time.Duration
	closed chan struct{}
	once   sync.Once
}

func newSlowConn(conn net.Conn, d time.Duration) *slowConn {
	return &slowConn{Conn: conn, d: d, closed: make(chan struct{})}
}

func (s *slowConn) Write(p []byte) (int, error) {
	timer := time.NewTimer(s.d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return s.Conn.Write(p)
	case <-s.closed:
		return 0, net.ErrClosed
	}
}

func (s *slowConn) Close() error {
	s.once.Do(func() { close(s.closed) })
	return s.Conn.Close()
}

// A send that fails on its own leaves the connection usable; a receiver that fails
// is believed; a stream that comes twice is swallowed.
func TestSendFails(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a := w.node("a")
		a.create()
		a.write("f", blob(rand.New(rand.NewPCG(7, 7)), 1<<20))
		a.host.Fail("send", "", 1, io.ErrClosedPipe)
		a.host.FailAfter("send", "", 2, io.ErrClosedPipe)
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		if a.link("b").Acked.IsZero() {
			t.Error("nothing acknowledged")
		}
	})
}

// A lost acknowledgement costs an offer, not a stream.
func TestLostAck(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		a.create()
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		b.host.Inject(zfsfake.Rule{Op: "receive", Nth: 1, Times: 1, After: true, Do: func(context.Context, string, string) error {
			b.hangUp()
			return nil
		}})
		before := a.streams("")
		a.write("f", "two")
		w.waitFor("in sync", w.inSync("a", "b"))
		if n := a.streams("") - before; n != 0 {
			t.Errorf("%d streams were acknowledged, want none: ALREADY tells", n)
		}
	})
}

// A user's snapshot that was removed here comes back with a primary that still has it,
// and is seen then (found by TestHistories: it was sent again and again).
func TestRemovedComesBack(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b, ctx := w.node("a"), w.node("b"), context.Background()
		a.create()
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		unfail := b.host.Fail("receive", "", 2, zfsfake.ErrInjected)
		b.host.Fail("receive", "", 3, zfsfake.ErrInjected)
		a.write("f", "1")
		w.must(a.eng().TakeSnapshot(ctx, []volume.ID{testVol}, "user"))
		a.write("f", "2")
		w.waitFor("b stands on the user's snapshot", func() bool { return has(b, "user") })
		w.must(a.eng().RemoveSnapshot(ctx, testVol, "user"))
		a.assign()
		unfail()
		w.assign(2, "b", "a")
		w.must(b.eng().Settle(ctx, testVol))
		b.write("f", "3")
		w.waitFor("in sync", w.inSync("b", "a"))
		if n := b.streams(kindFull); n > 0 {
			t.Errorf("%d full streams", n)
		}
	})
}

// A node that becomes primary while its copy is only half set aside offers nothing
// before that is finished: what it would offer has nothing in common with anybody
// (found by TestHistories).
func TestPrimaryHalfAside(t *testing.T) {
	inBubble(t, "a b c", func(w *world) {
		a, b, c := w.node("a"), w.node("b"), w.node("c")
		a.create()
		w.assign(1, "a", "b", "c")
		w.waitFor("in sync", w.inSync("a", "b"))
		w.waitFor("in sync", w.inSync("a", "c"))
		a.assign()
		w.assign(2, "b", "c")
		b.write("f", "2")
		w.waitFor("in sync", w.inSync("b", "c"))
		a.write("tail", "1")
		w.must(a.host.Snapshot(context.Background(), []string{a.dataset() + "@" + volume.Position{Epoch: 1, Seq: 9}.SnapshotName()}, nil))
		a.eng().Refresh(testVol)

		mend := a.host.Fail("rename", "", 0, zfsfake.ErrInjected)
		promoted := make(chan bool, 1)
		a.host.Inject(zfsfake.Rule{Op: "promote", After: true, Times: 1, Do: func(context.Context, string, string) error {
			promoted <- true
			return nil
		}})
		w.assign(2, "b", "a", "c")
		hear(t, "the fork to be promoted", promoted)
		w.assign(3, "a", "b", "c")
		time.Sleep(time.Minute)
		if !a.eng().Positions()[testVol].IsZero() {
			t.Error("a copy that is half set aside has a position")
		}
		mend()
		w.must(a.eng().Settle(context.Background(), testVol))
		a.write("f", "3")
		w.waitFor("in sync", w.inSync("a", "b"))
		w.waitFor("in sync", w.inSync("a", "c"))
		if n := a.streams(kindFull); n != 2 {
			t.Errorf("%d full streams, want the two seeds alone", n)
		}
		for _, n := range []*node{b, c} {
			w.hasAside(n, "f")
		}
	})
}

// A set-aside that fails in the middle goes on where it was: by then the copy has nothing
// of what it shares any more, and must not be taken for one that never had (found by
// TestHistories).
func TestForkThatFails(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.pair("1")
		b.write("mine", "1")
		b.host.Inject(zfsfake.Rule{Op: "promote", After: true, Times: 1, Do: func(context.Context, string, string) error {
			return zfsfake.ErrInjected
		}})
		a.write("f", "2")
		w.waitFor("in sync", w.inSync("a", "b"))
		w.hasAside(b, "mine")
		if n := b.count(func(ev Event) bool { s, ok := ev.(SetAside); return ok && !s.Common }); n > 0 {
			t.Error("a copy that shares its history is said to have nothing in common with its primary")
		}
	})
}

// A replica whose first copy came through, and whose word of that did not, may be what is
// left of its zone. What it stands on stays on the others as a snapshot, so that they can
// go back to it (found by TestHistories).
func TestFirstCopyWithoutItsAnswer(t *testing.T) {
	inBubble(t, "a b c", func(w *world) {
		a, b, c := w.node("a"), w.node("b"), w.node("c")
		a.create()
		a.write("f", "1")
		c.host.Inject(zfsfake.Rule{Op: "rename", After: true, Times: 1, Do: func(context.Context, string, string) error {
			w.partition("a", "c", true)
			return nil
		}})
		w.assign(1, "a", "b", "c")
		w.waitFor("c has its copy", func() bool { guid, _ := c.newest(); return guid != 0 })
		for i := range 60 {
			a.write("f", fmt.Sprint(i))
			time.Sleep(time.Second)
		}
		w.waitFor("in sync", w.inSync("a", "b"))
		if n := len(b.snapshots()); n > keepNewest+keepAbove+pruneBatch+1 {
			t.Errorf("%d snapshots piled up", n)
		}
		a.stop()
		w.assign(2, "c", "b")
		w.waitFor("in sync", w.inSync("c", "b"))
		if n := c.streams(kindFull); n > 0 {
			t.Errorf("%d full streams", n)
		}
		w.hasAside(b, "f")
	})
}

// Two replicas that the last change of primary left on different snapshots share only what
// is older than both. That stays until the new primary has an anchor for them (found by
// TestHistories).
func TestCommonOfReplicasBeforeTheAnchor(t *testing.T) {
	inBubble(t, "a b c", func(w *world) {
		a, b, c := w.node("a"), w.node("b"), w.node("c")
		a.create()
		w.assign(1, "a", "b", "c")
		w.waitFor("in sync", w.inSync("a", "b"))
		w.waitFor("in sync", w.inSync("a", "c"))
		w.partition("b", "a", true)
		w.partition("b", "c", true)
		w.assign(2, "c", "a", "b")
		w.waitFor("in sync", w.inSync("c", "a"))
		a.host.Fail("receive", "", 0, zfsfake.ErrInjected)
		w.assign(3, "c", "a", "b")
		w.waitFor("a has spoken", func() bool { return !c.link("a").Acked.IsZero() })
		a.stop()
		w.partition("b", "c", false)
		for i := range 60 {
			c.write("f", fmt.Sprint(i))
			time.Sleep(time.Second)
		}
		w.waitFor("in sync", w.inSync("c", "b"))
		shared := false
		for _, s := range a.snapshots() {
			shared = shared || slices.Contains(b.guids(), s.GUID)
		}
		if !shared {
			t.Error("a and b have nothing in common any more")
		}
		if n := len(b.snapshots()); n > keepNewest+keepAbove+pruneBatch+2 {
			t.Errorf("%d snapshots piled up", n)
		}
	})
}

// What this node does about its own leftovers is not ended by another assignment: a
// promotion waits for it.
func TestSettleWhileAssigned(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		_, b := w.pair("one")
		b.host.Slow("dataset", "", time.Second)
		done := make(chan error)
		go func() { done <- b.eng().Settle(context.Background(), testVol) }()
		synctest.Wait()
		w.assign(2, "b", "a")
		if err := hear(t, "the settling to end", done); err != nil {
			t.Errorf("settling while the node becomes primary: %v", err)
		}
	})
}
