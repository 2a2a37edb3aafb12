package replicate

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

func TestBucket(t *testing.T) {
	dataDriven(t, "pace.txt", func(in map[string]string) string {
		start := time.Unix(1_000_000, 0)
		now := start
		var b bucket
		var went []string
		for _, step := range words(in["steps"]) {
			at, rest, _ := strings.Cut(step, "/")
			d, err1 := time.ParseDuration(at)
			var n int
			var rate int64
			if _, err := fmt.Sscanf(rest, "%d@%d", &n, &rate); err != nil || err1 != nil {
				t.Fatalf("step %q", step)
			}
			if asked := start.Add(d); asked.After(now) || len(went) == 1 {
				now = asked
			}
			for wait := b.take(now, n, rate); wait > 0; wait = b.take(now, n, rate) {
				now = now.Add(wait)
			}
			went = append(went, now.Sub(start).Round(time.Microsecond).String())
		}
		return strings.Join(went, " ")
	})
}

func TestRate(t *testing.T) {
	dataDriven(t, "rate.txt", func(in map[string]string) string {
		start := time.Unix(1_000_000, 0)
		after := func(s string) time.Time {
			d, err := time.ParseDuration(s)
			if err != nil {
				t.Fatal(err)
			}
			return start.Add(d)
		}
		var m meter
		for _, step := range words(in["steps"]) {
			at, bytes, _ := strings.Cut(step, "/")
			n, err := strconv.Atoi(bytes)
			if err != nil {
				t.Fatal(err)
			}
			m.add(after(at), n)
		}
		return fmt.Sprint(m.rate(after(in["at"]), start))
	})
}

func TestCheckHeader(t *testing.T) {
	dataDriven(t, "header.txt", func(in map[string]string) string {
		number := func(key string) uint64 {
			n, err := strconv.ParseUint(in[key], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		h := zfs.StreamHeader{ToName: in["name"], ToGUID: number("to"), FromGUID: number("from"), Type: zfs.StreamFilesystem}
		_, h.Compound = in["compound"]
		_, h.Raw = in["raw"]
		_, h.Redacted = in["redacted"]
		_, h.Dedup = in["dedup"]
		_, h.Clone = in["clone"]
		_, h.Resuming = in["resuming"]
		if _, zvol := in["zvol"]; zvol {
			h.Type = 3
		}
		_, onOrigin := in["onorigin"]
		if err := checkHeader(h, begin{From: 5, To: 7, Name: "flk"}, onOrigin); err != nil {
			return err.Error()
		}
		return "taken"
	})
}

func TestPlausible(t *testing.T) {
	for _, c := range []struct {
		estimate, guess int64
		want            bool
	}{
		{0, 1 << 30, false}, {-1, 1 << 30, false}, {1 << 30, 1 << 30, true}, {3 << 30, 1 << 30, true},
		{100 << 30, 1 << 30, false}, {1<<63 - 1, 1 << 40, false}, {1 << 20, 0, true}, {1 << 40, 0, false},
	} {
		if got := plausible(c.estimate, c.guess); got != c.want {
			t.Errorf("an estimate of %d where the guess is %d: %v", c.estimate, c.guess, got)
		}
	}
}

// with changes the configuration of a node, which starts again with it.
func (n *node) with(tweak func(*Config)) {
	n.stop()
	n.tweak = tweak
	n.start()
}

// counted counts what is written to a connection.
type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c counted) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return c.Conn.Write(p)
}

// Streams to the replicas of one group share a limit, however slow it makes them
// nobody takes them for stalled, a change counts at once, and the status says it all.
func TestLimit(t *testing.T) {
	inBubble(t, "a b c d", func(w *world) {
		a := w.node("a")
		var limit atomic.Int64
		limit.Store(slowLink + 1) // not compressed
		a.with(func(c *Config) {
			c.Limit = func(to volume.NodeID) Limit {
				if to == w.node("d").id {
					return Limit{Group: "lan"}
				}
				return Limit{Group: "wan", Bytes: limit.Load()}
			}
		})
		var sent atomic.Int64
		w.wrap = func(from, to string, conn net.Conn) net.Conn {
			if to == "d" {
				return conn
			}
			return counted{conn, &sent}
		}
		const size = 24 << 20
		a.create()
		a.write("f", blob(rand.New(rand.NewPCG(20, 20)), size))
		began := time.Now()
		w.assign(1, "a", "b", "c", "d")
		w.waitFor("a replica without a limit", w.inSync("a", "d"))
		if took := time.Since(began); took > time.Second {
			t.Errorf("without a limit it took %v", took)
		}
		w.waitFor("in sync", func() bool { return w.inSync("a", "b")() && w.inSync("a", "c")() })
		if took := time.Since(began); took < 2900*time.Millisecond || took > 3200*time.Millisecond {
			t.Errorf("two streams of 24 MiB at 16 MiB/s together took %v", took)
		}

		// So little that a frame takes longer than the watchdogs wait.
		limit.Store(100)
		sent.Store(0)
		failures := func() int {
			return a.count(func(ev Event) bool { s, ok := ev.(StreamEnded); return ok && s.Err != nil })
		}
		failed := failures()
		a.write("g", blob(rand.New(rand.NewPCG(21, 21)), 100<<10))
		w.waitFor("sending", func() bool { return a.link("b").Stream != "" && a.link("c").Stream != "" })
		time.Sleep(time.Hour) // of the bubble: what must not happen meanwhile is the point
		if n := sent.Load(); n > 3600*100+2*minPiece+20000 || n < 3600*100*8/10 && n < 180<<10 {
			t.Errorf("%d bytes in an hour at 100 a second", n)
		}
		if n := failures() - failed; n > 0 {
			t.Errorf("%d slow streams were broken off", n)
		}
		l := a.link("b")
		if l.Limit != 100 || l.Stream != kindIncremental && l.State != volume.LinkInSync {
			t.Errorf("the link says %+v", l)
		}
		throttled := a.count(func(ev Event) bool { _, ok := ev.(Throttled); return ok })
		if throttled < 2*20 || throttled > 2*62 {
			t.Errorf("it was told %d times in an hour that two replicas are throttled", throttled)
		}
		w.waitFor("in sync", func() bool { return w.inSync("a", "b")() && w.inSync("a", "c")() })

		// Lifted while a piece waits for a minute.
		limit.Store(50)
		a.write("h", blob(rand.New(rand.NewPCG(22, 22)), 10<<20))
		w.waitFor("sending", func() bool { return a.link("b").Stream != "" && a.link("c").Stream != "" })
		time.Sleep(10 * time.Second) // so that a piece waits
		limit.Store(0)
		began = time.Now()
		w.waitFor("in sync", func() bool { return w.inSync("a", "b")() && w.inSync("a", "c")() })
		if took := time.Since(began); took > time.Second {
			t.Errorf("after the limit was lifted it took %v", took)
		}
	})
}

// Beside first copies an increment has half of the limit, however many they are.
func TestLimitShared(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a := w.node("a")
		a.with(func(c *Config) {
			c.Limit = func(volume.NodeID) Limit { return Limit{Group: "wan", Bytes: slowLink + 1} }
		})
		ids := w.many(4)
		w.spread(ids[:1], "b")
		w.waitFor("seeded", func() bool { return a.linkOf(ids[0], "b").State == volume.LinkInSync })
		rng := rand.New(rand.NewPCG(29, 29))
		for _, id := range ids[1:] {
			a.fill(id, "f", blob(rng, 16<<20))
		}
		a.fill(ids[0], "f", blob(rng, 4<<20))
		w.spread(ids, "b")
		seeding := func() (n int) {
			for _, id := range ids[1:] {
				if a.linkOf(id, "b").State == volume.LinkSeeding {
					n++
				}
			}
			return n
		}
		w.waitFor("three first copies", func() bool { return seeding() == 3 })
		a.fill(ids[0], "g", blob(rng, 4<<20))
		began := time.Now()
		_, err := a.eng().Flush(context.Background(), ids[0], w.node("b").id)
		w.must(err)
		// Up to 8 MiB of it at 8 MiB/s; with a share like the others', twice as long.
		if took := time.Since(began); took > 1200*time.Millisecond {
			t.Errorf("it took %v", took)
		}
		if n := seeding(); n != 3 {
			t.Errorf("%d first copies were under way, want 3: the test shows nothing", n)
		}
	})
}

// One byte damaged on the way is noticed and never becomes data: by the CRC of a
// frame, or by TLS, under which the data of a stream has none.
func TestDamage(t *testing.T) {
	for _, over := range []*tls.Config{nil, selfSigned(t)} {
		for _, way := range []string{"sender", "receiver"} {
			for size := 1; size <= 1<<20; size = size*3 + 1 {
				inBubble(t, "a b", func(w *world) {
					rng := rand.New(rand.NewPCG(2, uint64(size)))
					left := size
					w.tls, w.below = over, over != nil
					w.wrap = cutOnce(way, &left, true)
					a := w.node("a")
					a.create()
					a.write("f", blob(rng, 300<<10))
					w.assign(1, "a", "b")
					w.waitFor("seeded", w.inSync("a", "b"))
					a.write("g", blob(rng, 300<<10))
					w.waitFor("in sync", w.inSync("a", "b"))
				})
			}
		}
	}
}

// What goes over a slow link is compressed, fast ones are left alone; status counts
// what zfs sent in both cases.
func TestCompressed(t *testing.T) {
	for _, limit := range []int64{0, slowLink, slowLink + 1} {
		inBubble(t, "a b", func(w *world) {
			a := w.node("a")
			a.with(func(c *Config) { c.Limit = func(volume.NodeID) Limit { return Limit{Group: "wan", Bytes: limit} } })
			var sent atomic.Int64
			w.wrap = func(from, to string, conn net.Conn) net.Conn { return counted{conn, &sent} }
			const size = 4 << 20
			a.create()
			a.write("f", strings.Repeat("all the same ", size/13+1)[:size])
			w.assign(1, "a", "b")
			w.waitFor("in sync", w.inSync("a", "b"))
			packed := sent.Load() < size/10
			if want := limit > 0 && limit <= slowLink; packed != want {
				t.Errorf("limit %d: %d bytes on the wire", limit, sent.Load())
			}
			if n := a.link("b").Streamed; n < size || n > size+size/10 {
				t.Errorf("limit %d: %d bytes counted", limit, n)
			}
			for i := range 3 {
				a.write("f", fmt.Sprint(i))
				w.waitFor("in sync", w.inSync("a", "b"))
			}
		})
	}
}

// twisted is a pool whose streams are not what they should be.
type twisted struct {
	*zfsfake.Host
	send     func(ctx context.Context, req zfs.SendRequest, w io.Writer) error
	receive  func(ctx context.Context, req zfs.ReceiveRequest, r io.Reader) error
	estimate func(ctx context.Context, req zfs.SendRequest) (int64, error)
}

func (p *twisted) Send(ctx context.Context, req zfs.SendRequest, w io.Writer) error {
	if p.send != nil {
		return p.send(ctx, req, w)
	}
	return p.Host.Send(ctx, req, w)
}

func (p *twisted) Receive(ctx context.Context, req zfs.ReceiveRequest, r io.Reader) error {
	if p.receive != nil {
		return p.receive(ctx, req, r)
	}
	return p.Host.Receive(ctx, req, r)
}

func (p *twisted) EstimateSend(ctx context.Context, req zfs.SendRequest) (int64, error) {
	if p.estimate != nil {
		return p.estimate(ctx, req)
	}
	return p.Host.EstimateSend(ctx, req)
}

// tasted counts what is read.
type tasted struct {
	io.Reader
	n *atomic.Int64
}

func (c tasted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

func (c tasted) SetReadDeadline(t time.Time) error { return zfs.ReadDeadline(c.Reader)(t) }

// A stream whose head is not what was announced never reaches zfs, for a seed and for
// an increment: nothing changes on the replica, the link says why, and a true stream
// is taken afterwards.
func TestUnfitStream(t *testing.T) {
	for _, seed := range []bool{true, false} {
		for what, c := range map[string]struct {
			change func(h *zfs.StreamHeader)
			says   string
		}{
			"compound":         {func(h *zfs.StreamHeader) { h.Compound = true }, "several streams"},
			"raw":              {func(h *zfs.StreamHeader) { h.Raw = true }, "raw"},
			"of a clone":       {func(h *zfs.StreamHeader) { h.Clone = true }, "clone"},
			"another snapshot": {func(h *zfs.StreamHeader) { h.ToGUID++ }, "ends at snapshot"},
			"another base":     {func(h *zfs.StreamHeader) { h.FromGUID ^= 4 }, "begins at snapshot"},
			"another name":     {func(h *zfs.StreamHeader) { h.ToName += "x" }, "makes a snapshot"},
			"no stream":        {func(h *zfs.StreamHeader) { *h = zfs.StreamHeader{} }, "name in the zfs stream"},
		} {
			inBubble(t, "a b", func(w *world) {
				a, b := w.node("a"), w.node("b")
				pool := &twisted{Host: a.host}
				a.with(func(c *Config) { c.Pool = pool })
				var twist atomic.Bool
				pool.send = func(ctx context.Context, req zfs.SendRequest, w io.Writer) error {
					if !twist.Load() {
						return a.host.Send(ctx, req, w)
					}
					var stream bytes.Buffer
					if err := a.host.Send(ctx, req, &stream); err != nil {
						return err
					}
					h, err := zfs.ParseStreamHeader(stream.Bytes())
					if err != nil {
						return err
					}
					c.change(&h)
					copy(stream.Bytes(), zfsfake.BeginRecord(h))
					_, err = w.Write(stream.Bytes())
					return err
				}
				var seen atomic.Int64
				b.with(func(c *Config) {
					c.Pool = &twisted{Host: b.host, receive: func(ctx context.Context, req zfs.ReceiveRequest, r io.Reader) error {
						return b.host.Receive(ctx, req, tasted{r, &seen})
					}}
				})
				a.create()
				a.write("f", blob(rand.New(rand.NewPCG(23, 23)), 1<<20))
				twist.Store(seed)
				w.assign(1, "a", "b")
				if !seed {
					w.waitFor("in sync", w.inSync("a", "b"))
					twist.Store(true)
					a.write("f", blob(rand.New(rand.NewPCG(24, 24)), 1<<20))
				}
				before := b.host.Dump()
				seen.Store(0)
				w.waitFor("refused", func() bool { return a.link("b").State == volume.LinkRefused })
				if l := a.link("b"); !strings.Contains(l.Error, c.says) {
					t.Errorf("%s: the link says %q, want %q", what, l.Error, c.says)
				}
				if n := seen.Load(); n > 0 {
					t.Errorf("%s: zfs has seen %d bytes of it", what, n)
				}
				if after := b.host.Dump(); seed && after != before {
					t.Errorf("%s: the replica has changed:\n%s\nwas\n%s", what, after, before)
				}
				twist.Store(false)
				w.waitFor("in sync", w.inSync("a", "b"))
				if n := b.count(setAside); n > 0 {
					t.Errorf("%s: %d set aside", what, n)
				}
			})
		}
	}
}

// A method of compression that a receiver does not know is refused in words.
func TestUnknownCompression(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		a.create()
		w.assign(1, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		a.assign()
		time.Sleep(time.Second) // so that b has no link that takes part
		conn, err := a.dial(b.id)
		w.must(err)
		defer conn.Close()
		wire := newWire(conn, time.Minute)
		pos := volume.Position{Epoch: 1, Seq: 99, GUID: 99}
		have, _ := b.newest()
		w.must(wire.writeMessage(frameOffer, offer{Cluster: "test", Volume: testVol, Epoch: 1, Primary: a.id, Newest: pos, Bases: []guid{99, guid(have)}}))
		var ans answer
		w.must(wire.expect(frameAnswer, &ans))
		w.must(wire.writeMessage(frameBegin, begin{From: ans.Have, To: 99, Name: "x", Compress: "lzma"}))
		var reply ack
		w.must(wire.expect(frameAck, &reply))
		if reply.Code != codeRefused || !strings.Contains(reply.Error, `"lzma", which this node does not know`) {
			t.Errorf("the replica says %+v", reply)
		}
	})
}

// zfs receive that fails while nothing comes for it to read: the reason reaches the
// primary at once, though the real one's copier is stuck in a read at that moment.
func TestReasonArrives(t *testing.T) {
	for _, overTLS := range []bool{false, true} {
		inBubble(t, "a b", func(w *world) {
			if overTLS {
				w.tls = selfSigned(t)
			}
			a, b := w.node("a"), w.node("b")
			pool := &twisted{Host: a.host}
			pool.send = func(ctx context.Context, req zfs.SendRequest, w io.Writer) error {
				var stream bytes.Buffer
				if err := a.host.Send(ctx, req, &stream); err != nil {
					return err
				}
				if _, err := w.Write(stream.Bytes()[:stream.Len()/2]); err != nil {
					return err
				}
				<-ctx.Done() // zfs send thinks
				return context.Cause(ctx)
			}
			a.with(func(c *Config) { c.Pool = pool })
			full := &twisted{Host: b.host}
			full.receive = func(ctx context.Context, req zfs.ReceiveRequest, r io.Reader) error {
				ctx, fail := context.WithCancelCause(ctx)
				time.AfterFunc(time.Second, func() { fail(zfs.ErrNoSpace) })
				_, err := zfs.Interruptible(ctx, zfs.ReadDeadline(r), func() error {
					_, err := io.Copy(io.Discard, r)
					return err
				})
				if err == nil {
					return errors.New("it was not interrupted")
				}
				return &zfs.Error{Op: "receive", Kind: zfs.ErrNoSpace, Stderr: "out of space"}
			}
			b.with(func(c *Config) { c.Pool = full })
			a.create()
			a.write("f", blob(rand.New(rand.NewPCG(25, 25)), 1<<20))
			began := time.Now()
			w.assign(1, "a", "b")
			w.waitFor("refused", func() bool { return a.link("b").State == volume.LinkRefused })
			if l := a.link("b"); !strings.Contains(l.Error, "out of space") {
				t.Errorf("the link says %q", l.Error)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// A link shows the stream under way: what, from where, since when, how much of how
// much, how fast; and an estimate that hangs, fails or is absurd harms nobody.
func TestProgress(t *testing.T) {
	for what, estimate := range map[string]func(ctx context.Context, req zfs.SendRequest) (int64, error){
		"good": nil,
		"hangs": func(ctx context.Context, _ zfs.SendRequest) (int64, error) {
			<-ctx.Done()
			return 0, context.Cause(ctx)
		},
		"fails":  func(context.Context, zfs.SendRequest) (int64, error) { return 0, errors.New("no idea") },
		"absurd": func(context.Context, zfs.SendRequest) (int64, error) { return 1 << 62, nil },
	} {
		inBubble(t, "a b", func(w *world) {
			a := w.node("a")
			var limit atomic.Int64
			limit.Store(1 << 19)
			a.with(func(c *Config) {
				c.Pool = &twisted{Host: a.host, estimate: estimate}
				c.Limit = func(volume.NodeID) Limit { return Limit{Group: "wan", Bytes: limit.Load()} }
			})
			const size = 8 << 20
			a.create()
			a.write("f", blob(rand.New(rand.NewPCG(26, 26)), size))
			began := time.Now()
			w.assign(1, "a", "b")
			w.waitFor("half of it", func() bool { return a.link("b").SentBytes > size/2 })
			l := a.link("b")
			if l.Stream != kindFull || l.Base != "" || time.Since(l.Began) < 7*time.Second || l.Began.Before(began) {
				t.Errorf("%s: %+v", what, l)
			}
			if l.TotalBytes < size || l.TotalBytes > size+size/10 {
				t.Errorf("%s: %d bytes in all, want about %d", what, l.TotalBytes, size)
			}
			if l.Rate < 7<<16 || l.Rate > 9<<16 {
				t.Errorf("%s: a rate of %d, want about %d", what, l.Rate, 1<<19)
			}
			w.waitFor("in sync", w.inSync("a", "b"))
			if took := time.Since(began); took > 18*time.Second {
				t.Errorf("%s: it took %v", what, took)
			}
			base := a.link("b").Acked.SnapshotName()
			a.write("g", blob(rand.New(rand.NewPCG(27, 27)), size))
			w.waitFor("an increment", func() bool { return a.link("b").SentBytes > size/4 })
			if l := a.link("b"); l.Stream != kindIncremental || l.Base != "@"+base || l.Streamed < size+size/4 {
				t.Errorf("%s: %+v, want base @%s", what, l, base)
			}
			limit.Store(1) // it stands still
			time.Sleep(10 * time.Second)
			if l := a.link("b"); l.Rate != 0 || l.Stream == "" {
				t.Errorf("%s: standing still: %+v", what, l)
			}
		})
	}
}

// ending is one way for a stream to end before its time.
type ending struct {
	name string
	end  func(w *world, limit *atomic.Int64) // while the stream runs
	by   time.Duration                       // when zfs must be through at both ends
}

var endings = []ending{
	{"the link ends", func(w *world, _ *atomic.Int64) { w.node("a").assign() }, time.Second},
	{"the replica is no more one", func(w *world, _ *atomic.Int64) { w.node("b").assign() }, time.Second},
	{"the sender stops", func(w *world, _ *atomic.Int64) { w.node("a").stop() }, time.Second},
	{"the receiver stops", func(w *world, _ *atomic.Int64) { w.node("b").stop() }, time.Second},
	{"the connection is lost", func(w *world, _ *atomic.Int64) { w.partition("a", "b", true) }, time.Second},
	{"the pool of the replica is full", func(w *world, limit *atomic.Int64) {
		w.node("b").host.SetCapacity("tank", 1<<20)
		limit.Store(0)
	}, time.Second},
	{"the limit is next to nothing and the link ends", func(w *world, limit *atomic.Int64) {
		limit.Store(1)
		time.Sleep(time.Minute) // a piece waits
		w.node("a").assign()
	}, time.Minute + time.Second},
	{"the peer falls silent", func(w *world, _ *atomic.Int64) { w.node("b").deaf.Store(true) }, 7 * time.Minute},
}

// However a stream ends, zfs send and zfs receive end too, compressed or not, and so
// does an estimate that hangs: nobody is left at work.
func TestStreamsEnd(t *testing.T) {
	for _, rate := range []int64{slowLink / 8, slowLink + 1} {
		for _, c := range endings {
			inBubble(t, "a b", func(w *world) {
				a, b := w.node("a"), w.node("b")
				var limit, atWork atomic.Int64
				limit.Store(rate)
				for _, n := range []*node{a, b} {
					host := n.host
					pool := &twisted{Host: host}
					pool.send = func(ctx context.Context, req zfs.SendRequest, w io.Writer) error {
						atWork.Add(1)
						defer atWork.Add(-1)
						return host.Send(ctx, req, w)
					}
					pool.receive = func(ctx context.Context, req zfs.ReceiveRequest, r io.Reader) error {
						atWork.Add(1)
						defer atWork.Add(-1)
						return host.Receive(ctx, req, r)
					}
					pool.estimate = func(ctx context.Context, req zfs.SendRequest) (int64, error) {
						atWork.Add(1)
						defer atWork.Add(-1)
						<-ctx.Done()
						return 0, context.Cause(ctx)
					}
					n.with(func(cfg *Config) {
						cfg.Pool = pool
						cfg.Limit = func(volume.NodeID) Limit { return Limit{Group: "wan", Bytes: limit.Load()} }
					})
				}
				w.wrap = func(_, _ string, conn net.Conn) net.Conn { return &deafEnd{conn, &b.deaf} }
				a.create()
				a.write("f", blob(rand.New(rand.NewPCG(28, 28)), 16<<20))
				w.assign(1, "a", "b")
				w.waitFor("a stream", func() bool { return a.link("b").SentBytes > 1<<20 })
				if n := atWork.Load(); n != 3 {
					t.Errorf("%s: %d at work during the stream, want 3", c.name, n)
				}
				began := time.Now()
				c.end(w, &limit)
				w.waitFor("the end: "+c.name, func() bool { return atWork.Load() == 0 || time.Since(began) > c.by })
				if n := atWork.Load(); n > 0 {
					t.Errorf("%s: %d still at work after %v", c.name, n, time.Since(began))
				}
			})
		}
	}
}

// deafEnd is a connection on which nothing arrives any more, and nobody says so.
type deafEnd struct {
	net.Conn
	deaf *atomic.Bool
}

func (d *deafEnd) Write(p []byte) (int, error) {
	if d.deaf.Load() {
		return len(p), nil
	}
	return d.Conn.Write(p)
}

func (d *deafEnd) Read(p []byte) (int, error) {
	for {
		n, err := d.Conn.Read(p)
		if err != nil || !d.deaf.Load() {
			return n, err
		}
	}
}

// What goes to a node beside streams keeps the same limit, and none where there is none.
func TestPaced(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		var limit atomic.Int64
		a.with(func(c *Config) {
			c.Limit = func(volume.NodeID) Limit { return Limit{Group: "far", Bytes: limit.Load()} }
		})
		const size = 4 << 20
		read := func(ctx context.Context) (int64, time.Duration, error) {
			began := time.Now()
			n, err := io.Copy(io.Discard, a.eng().Paced(ctx, b.id, bytes.NewReader(make([]byte, size))))
			return n, time.Since(began), err
		}
		if n, took, err := read(context.Background()); n != size || took != 0 || err != nil {
			t.Errorf("without a limit: %d bytes in %s, %v", n, took, err)
		}
		limit.Store(1 << 20)
		if n, took, err := read(context.Background()); n != size || took < 3*time.Second || took > 5*time.Second || err != nil {
			t.Errorf("at a quarter of it a second: %d bytes in %s, %v", n, took, err)
		}
		soon, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if n, took, err := read(soon); n > size/2 || took > 2*time.Second || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ended after a second: %d bytes in %s, %v", n, took, err)
		}
	})
}
