package replicate

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// otherVol is a second volume on a, with the same names of snapshots.
const otherVol = volume.ID("00000000000000bb")

// badStream is what a sender sends in place of a good stream, without knowing it: a
// broken disk, broken memory, a mistake.
type badStream struct {
	name string
	// make gives it, of the good one and of others: full streams, or increments where
	// the good one is.
	make func(good, other, older []byte) []byte
	// kind of the good stream that it stands for; "" for both.
	kind string
	// good says that there is nothing to reject.
	good bool
}

func damagedAt(part func(size int) int) func(good, other, older []byte) []byte {
	return func(good, _, _ []byte) []byte {
		bad := slices.Clone(good)
		bad[part(len(bad))] ^= 0x10
		return bad
	}
}

var badStreams = []badStream{
	{name: "damaged at its very beginning", make: damagedAt(func(int) int { return 0 })},
	{name: "damaged in its first record", make: damagedAt(func(size int) int { return 40 })},
	{name: "damaged in the middle", make: damagedAt(func(size int) int { return size / 2 })},
	{name: "damaged near its end", make: damagedAt(func(size int) int { return size - 10 })},
	{name: "empty", make: func(good, _, _ []byte) []byte { return nil }},
	{name: "truncated in the middle", make: func(good, _, _ []byte) []byte { return good[:len(good)/2] }},
	{name: "truncated by one byte", make: func(good, _, _ []byte) []byte { return good[:len(good)-1] }},
	{name: "of another volume", make: func(_, other, _ []byte) []byte { return other }},
	{name: "an older one of the same volume", kind: kindIncremental, make: func(_, _, older []byte) []byte { return older }},
	{name: "twice", good: true, make: func(good, _, _ []byte) []byte { return slices.Concat(good, good) }},
	{name: "with something after it", good: true, make: func(good, other, _ []byte) []byte { return slices.Concat(good, other) }},
}

// sendBad sends these streams, one after the other, where one of this kind is due;
// then a good one.
func sendBad(w *world, kind, data string, bad ...badStream) {
	a, b := w.node("a"), w.node("b")
	ctx := context.Background()
	a.create()
	other := a.root() + "/" + string(otherVol)
	w.must(a.disk.CreateFilesystem(ctx, other, copyProperties(otherVol, 1, nil)))
	for seq := range uint64(2) {
		w.must(a.writeTo(other, "other", strings.Repeat("other", 10000+int(seq))))
		w.must(a.disk.Snapshot(ctx, []string{other + "@" + volume.Position{Epoch: 1, Seq: seq + 1}.SnapshotName()}, nil))
	}
	stream := func(req zfs.SendRequest) []byte {
		var buf bytes.Buffer
		w.must(a.disk.Send(ctx, req, &buf))
		return buf.Bytes()
	}
	name := func(seq uint64) string { return volume.Position{Epoch: 1, Seq: seq}.SnapshotName() }

	var older []byte
	if kind == kindIncremental {
		a.write("f", "one")
		w.assign(1, "a", "b")
		w.waitFor("seeded", w.inSync("a", "b"))
		a.write("f", "two")
		w.waitFor("in sync", w.inSync("a", "b"))
		older = stream(zfs.SendRequest{Snapshot: a.dataset() + "@" + name(2), From: a.dataset() + "@" + name(1)})
	}

	before := b.state()
	a.mu.Lock()
	todo := bad
	a.send = func(ctx context.Context, req zfs.SendRequest, out io.Writer) error {
		a.mu.Lock()
		if len(todo) == 0 {
			a.mu.Unlock()
			return a.disk.Send(ctx, req, out)
		}
		bad := todo[0]
		todo = todo[1:]
		a.mu.Unlock()
		var buf bytes.Buffer
		if err := a.disk.Send(ctx, req, &buf); err != nil {
			return err
		}
		from := ""
		if kind == kindIncremental {
			from = other + "@" + name(1)
		}
		_, err := out.Write(bad.make(buf.Bytes(), stream(zfs.SendRequest{Snapshot: other + "@" + name(2), From: from}), older))
		return err
	}
	failed := 0
	a.seen = func(ev Event) { // before the link tries again
		if e, ok := ev.(StreamEnded); ok && e.Err != nil {
			a.mu.Lock()
			failed++
			a.mu.Unlock()
			w.partition("a", "b", true)
		}
	}
	a.mu.Unlock()
	failures := func() int { a.mu.Lock(); defer a.mu.Unlock(); return failed }
	a.write("g", data)
	if kind == kindFull {
		w.assign(1, "a", "b")
	}
	for i, bad := range bad {
		if bad.good {
			w.waitFor("taken: "+bad.name, w.inSync("a", "b"))
			break
		}
		w.waitFor("rejected: "+bad.name, func() bool { return failures() > i })
		w.waitFor("at rest", w.atRest("b"))
		if after := b.state(); after != before {
			w.Fatalf("%s: the replica was\n%sand is\n%s", bad.name, before, after)
		}
		w.partition("a", "b", false)
		a.tryNow()
	}
	w.waitFor("in sync", w.inSync("a", "b"))
	if bad[len(bad)-1].good && failures() >= len(bad) {
		w.Errorf("rejected: %s", bad[len(bad)-1].name)
	}
	w.tidy()
	if n := b.count(setAside); n > 0 {
		w.Errorf("%d copies set aside", n)
	}
}

// tryNow makes a node's links try again without waiting for it.
func (n *node) tryNow() {
	e := n.eng()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.peers {
		p.retryAt, p.backoff = time.Time{}, 0
	}
	for _, l := range e.links {
		l.retryAt, l.backoff = time.Time{}, 0
		wake(l.wake)
	}
}

// state is what a node holds of volumes that is complete: every copy with its epoch,
// snapshots, their contents, bookmarks, and every copy that was set aside. A part of
// a stream is not: it can be resumed, or is thrown away.
func (n *node) state() string {
	n.w.Helper()
	ctx := context.Background()
	datasets, err := n.disk.Datasets(ctx, n.pool)
	n.w.must(err)
	snaps, err := n.disk.Snapshots(ctx, n.pool, true)
	n.w.must(err)
	marks, err := n.disk.Bookmarks(ctx, n.pool, true)
	n.w.must(err)
	lines := map[string]string{}
	for _, d := range datasets {
		k, _, _ := n.eng().cfg.parse(d.Name)
		aside := strings.HasPrefix(d.Name, n.eng().cfg.asideRoot()+"/")
		if k == kindCopy || k == kindFork || aside || k == kindSeed && d.ResumeToken == "" {
			lines[d.Name] = fmt.Sprintf("origin %q written %d %v", d.Origin, d.Written, d.User)
		}
	}
	for _, s := range snaps {
		sum, err := n.disk.Checksum(s.FullName())
		n.w.must(err)
		lines[s.FullName()] = fmt.Sprintf("guid %d holds %d content %s", s.GUID, s.UserRefs, sum)
	}
	for _, b := range marks {
		lines[b.FullName()] = fmt.Sprintf("guid %d", b.GUID)
	}
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(lines)) {
		fmt.Fprintln(&text, name, lines[name])
	}
	return text.String()
}

// spoil runs all cases for both kinds of stream.
func spoil(t *testing.T, on stage, data string) {
	for _, s := range badStreams {
		for _, kind := range []string{kindFull, kindIncremental} {
			if s.kind == "" || s.kind == kind {
				on(t, kind+" stream: "+s.name, func(w *world) { sendBad(w, kind, data, s) })
			}
		}
	}
}

// A stream that is not what it should be changes nothing at the receiver, and the
// next good one is taken.
func TestBadStreams(t *testing.T) {
	spoil(t, onFakes, blob(rand.New(rand.NewPCG(12, 1)), 100<<10))
}

// liar is a sender that does not keep to the rules: it offers and begins what it
// should not, and sends its stream whatever it is answered.
type liar struct {
	name  string
	from  string // the node it really is
	offer func(*offer)
	begin func(*begin)
	half  bool // only half of the stream comes
}

var liars = []liar{
	{name: "of another cluster", from: "a", offer: func(o *offer) { o.Cluster = "x" }},
	{name: "of a lower epoch", from: "a", offer: func(o *offer) { o.Epoch = 4 }},
	{name: "of an epoch nobody has heard of", from: "a", offer: func(o *offer) { o.Epoch = 6 }},
	{name: "that is not the primary", from: "c", offer: func(o *offer) { o.Primary = volume.NodeID(strings.Repeat("3", 32)) }},
	{name: "in the primary's name", from: "c"},
	{name: "of a volume that is not assigned here", from: "a", offer: func(o *offer) { o.Volume = otherVol }},
	{name: "from another base than was asked for", from: "a", begin: func(b *begin) { b.From++ }},
	{name: "in full, where an increment was asked for", from: "a", begin: func(b *begin) { b.From = 0 }},
	{name: "of fewer bytes than it says", from: "a", half: true},
}

// run lies to b, which stands at epoch 5 and lacks an increment.
func (l liar) run(w *world) {
	a, b := w.node("a"), w.node("b")
	ctx := context.Background()
	a.create()
	a.write("f", "one")
	w.assign(5, "a", "b")
	w.waitFor("in sync", w.inSync("a", "b"))
	have := a.newestSnapshot()
	a.assign()
	a.hangUpTo(b)
	a.write("f", strings.Repeat("two", 30<<10))
	w.must(a.disk.Snapshot(ctx, []string{a.dataset() + "@" + volume.Position{Epoch: 5, Seq: 1000}.SnapshotName()}, nil))
	a.eng().Refresh(testVol)
	next := a.newestSnapshot()
	var stream bytes.Buffer
	w.must(a.disk.Send(ctx, zfs.SendRequest{Snapshot: next.FullName(), From: have.FullName()}, &stream))
	before := b.state()

	conn, err := w.node(l.from).dial(b.id)
	w.must(err)
	defer conn.Close()
	out := newWire(conn, time.Minute)
	o := offer{Cluster: "test", Volume: testVol, Epoch: 5, Primary: a.id,
		Newest: volume.Position{Epoch: 5, Seq: 1000, GUID: next.GUID, Taken: next.Creation}, Bases: []guid{guid(next.GUID), guid(have.GUID)}}
	if l.offer != nil {
		l.offer(&o)
	}
	w.must(out.writeMessage(frameOffer, o))
	var ans answer
	w.must(out.expect(frameAnswer, &ans))
	if refused := ans.Verdict != saysIncremental; refused != (l.begin == nil && !l.half) {
		w.Errorf("answered %+v", ans)
	}

	// From here on the other end may hang up at any time.
	begin := begin{From: guid(have.GUID), To: guid(next.GUID), Name: next.Name, At: next.Creation}
	end := end{OK: true, Bytes: int64(stream.Len())}
	if l.begin != nil {
		l.begin(&begin)
	}
	if l.half {
		stream.Truncate(stream.Len() / 2)
	}
	if out.writeMessage(frameBegin, begin) == nil && out.write(frameData, stream.Bytes()) == nil && out.writeMessage(frameEnd, end) == nil {
		var k ack
		if out.expect(frameAck, &k) == nil && k.Code == "" {
			w.Errorf("acknowledged: %+v", k)
		}
	}
	conn.Close()
	w.waitFor("at rest", w.atRest("b"))
	if after := b.state(); after != before {
		w.Errorf("the replica was\n%sand is\n%s", before, after)
	}
	w.assign(5, "a", "b")
	w.waitFor("in sync", w.inSync("a", "b"))
	w.tidy()
}

func (n *node) newestSnapshot() zfs.Snapshot {
	list := n.snapshots()
	return list[len(list)-1]
}

// A stream that was not agreed on changes nothing at the receiver, and the next one
// that was is taken.
func TestLiars(t *testing.T) {
	for _, l := range liars {
		t.Run(l.name, func(t *testing.T) { inBubble(t, "a b c", l.run) })
	}
}

// What was recorded of a good exchange does nothing when it is played again.
func TestReplayed(t *testing.T) {
	for _, kind := range []string{kindFull, kindIncremental} {
		inBubble(t, "a b", func(w *world) {
			a, b := w.node("a"), w.node("b")
			a.create()
			a.write("f", "one")
			if kind == kindIncremental {
				w.assign(1, "a", "b")
				w.waitFor("in sync", w.inSync("a", "b"))
				a.hangUpTo(b)
			}
			var said bytes.Buffer
			w.mu.Lock()
			w.wrap = func(_, _ string, conn net.Conn) net.Conn { return &recorder{conn, &said} }
			w.mu.Unlock()
			a.write("f", strings.Repeat("two", 30<<10))
			w.assign(1, "a", "b")
			w.waitFor("in sync", w.inSync("a", "b"))
			a.stop()
			before := b.host.Dump()
			w.mu.Lock()
			w.wrap = nil
			w.mu.Unlock()
			for range 2 {
				conn, err := a.dial(b.id)
				w.must(err)
				go io.Copy(io.Discard, conn)
				conn.Write(said.Bytes()) // until the other end hangs up
				conn.Close()
				w.waitFor("at rest", w.atRest("b"))
			}
			if after := b.host.Dump(); after != before {
				t.Errorf("%s: the replica was\n%sand is\n%s", kind, before, after)
			}
		})
	}
}

// recorder keeps what is written.
type recorder struct {
	net.Conn
	said *bytes.Buffer
}

func (r *recorder) Write(p []byte) (int, error) {
	r.said.Write(p)
	return r.Conn.Write(p)
}
