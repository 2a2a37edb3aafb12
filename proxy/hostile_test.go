package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// handOver has a newer process take over from m, which does not yet stop to accept other
// nodes: closed is what it accepts them with. The older one serves who is there.
func (m *member) handOver(t *testing.T, file string) (old *Node, accepts net.Listener) {
	t.Helper()
	old, oldStop, oldRaw := m.Node, m.stop, m.raw
	ours, theirs := socketpair(t)
	err := old.HandOver(func(files map[string]*os.File) error {
		m.inherit = make(map[string]net.Listener)
		for name, f := range files {
			l, err := net.FileListener(f)
			if err != nil {
				return err
			}
			m.inherit[name] = l
		}
		f, err := oldRaw.(*net.TCPListener).File()
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		if m.inheritNodes, err = net.FileListener(f); err != nil {
			return err
		}
		m.link = theirs
		m.start(t, file, "")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var retires sync.WaitGroup
	retires.Go(func() {
		_ = old.Retire(ctx, ours) // the test may end before its clients do
		_ = oldRaw.Close()
		oldStop()
	})
	t.Cleanup(func() { cancel(); retires.Wait() })
	return old, oldRaw
}

// again has a member keep what it is told in a file that the test knows.
func (m *member) again(t *testing.T) (file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "proxy.json")
	m.stop()
	m.start(t, file, m.addr)
	return file
}

// While a newer process takes over, the older one may still get connections of other nodes.
// Nobody stays with those.
func TestTakeoverWhileBothAccept(t *testing.T) {
	c := newCluster(t, 2)
	file := c.nodes[0].again(t)
	server, _ := echo(t, "s")
	conf := Config{Members: []string{"n1", "n2"}}
	for i := range 8 { // each has a line and a carrier, which the one or the other process gets
		conf.Routes = append(conf.Routes, Route{ID: fmt.Sprint(i), Listen: freePort(t), Mode: TCP, Owner: "n1", OwnerAddr: c.nodes[0].addr, Epoch: 1, Server: server})
	}
	for _, m := range c.nodes {
		conf.Node = m.name
		if err := m.Apply(t.Context(), conf); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range conf.Routes {
		c.addrOf(1, r)
	}
	visit(t, c.addrOf(0, conf.Routes[0])) // so that the older one stays
	c.nodes[0].handOver(t, file)
	for _, r := range conf.Routes {
		visit(t, c.addrOf(1, r))
	}
}

// Once a node knows that another owns a route, no word of its clients reaches the last
// owner, whether that knows or not, and nobody waits for its answer.
func TestEdgeLeavesTheLastOwner(t *testing.T) {
	c := newCluster(t, 3)
	r := Route{ID: "r", Listen: freePort(t), Mode: TCP}
	before, _ := echo(t, "before")
	after, _ := echo(t, "after")
	c.route(r, 0, 1, before)
	conn, in, _ := visit(t, c.addrOf(1, r))
	c.route(r, 2, 2, after, 2, 1)
	if _, err := in.ReadByte(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("who was with the last owner hears %v, want a reset", err)
	}
	_ = conn.Close()
	if _, _, name := visit(t, c.addrOf(1, r)); name != "after" {
		t.Errorf("%s answers", name)
	}
}

// Who waits costs what he has said, and not a buffer.
func TestWaitingIsCheap(t *testing.T) {
	w := newWorld(t, Limits{Request: time.Minute, Event: time.Minute})
	w.g.Pause()
	const clients = 300
	var all []*testClient
	for range clients {
		all = append(all, w.client())
	}
	heap := func() uint64 {
		var m runtime.MemStats
		for range 3 { // what pools keep is there for two
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	w.until("all to be accepted", func() bool { return len(w.g.Sessions()) == clients })
	before := heap()
	for _, c := range all {
		c.say("PING\r\n")
	}
	w.until("all to wait", func() bool { return w.g.waiting.Load() == clients })
	if each := (int64(heap()) - int64(before)) / clients; each > 8<<10 {
		t.Errorf("a client that waits costs %d bytes", each)
	}
	w.g.Resume(nil)
	for _, c := range all {
		c.hear("+PING")
	}
}

// Clients of a node that had none before wait like all others until those who listen are
// back.
func TestEdgeThatComesLateWaitsForListeners(t *testing.T) {
	c := newCluster(t, 2)
	server, _ := echo(t, "s")
	r := Route{ID: "r", Listen: freePort(t), Mode: TCP}
	c.route(r, 0, 1, "")
	d := c.nodes[0].doors["r"]
	for node := range c.nodes {
		addr := c.addrOf(node, r)
		if err := c.nodes[0].Pause(t.Context(), "r", 0); err != nil {
			t.Fatal(err)
		}
		d.mu.Lock()
		d.await["elsewhere"] = true // it is not back before the time for that is over
		d.mu.Unlock()
		if err := c.nodes[0].Resume(t.Context(), "r", server); err != nil {
			t.Fatal(err)
		}
		visit(t, addr)
		d.mu.Lock()
		if d.phase != phaseOpen {
			t.Errorf("node %d: a client is served in the phase %s", node, d.phase)
		}
		d.mu.Unlock()
	}
}

// An edge that gives up while a door waits for its own table leaves nothing behind.
func TestDoorForgetsWhoGaveUp(t *testing.T) {
	d := newDoor("n1", Route{ID: "r", Owner: "n1", Epoch: 1}, nil, NewNode(Options{}), slog.New(slog.DiscardHandler))
	ours, theirs := socketpair(t)
	served := make(chan error, 1)
	go func() {
		served <- d.serveLine(t.Context(), ours, preface{Kind: kindLine, Route: "r", Epoch: 2, Line: "l"}, "n2")
	}()
	var a answer
	if err := readMessage(theirs, maxPreface, &a); err != nil || !reflect.DeepEqual(a, answer{}) {
		t.Fatalf("it is told %+v, %v", a, err)
	}
	_ = theirs.Close()
	select {
	case err := <-served:
		if err == nil {
			t.Error("no error tells of it")
		}
	case <-time.After(time.Minute):
		t.Fatal("it is still waited for")
	}
}

// A server that does not read keeps nobody whose edge has gone.
func TestDoorLetsGoOfADeafServer(t *testing.T) {
	for _, reset := range []bool{true, false} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		d := newDoor("n1", Route{ID: "r", Owner: "n1", Epoch: 1}, nil, NewNode(Options{}), slog.New(slog.DiscardHandler))
		raw, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		deaf, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = deaf.Close() }()
		_ = raw.(*net.TCPConn).SetWriteBuffer(4 << 10)
		_ = deaf.(*net.TCPConn).SetReadBuffer(4 << 10)
		server := &crossing{TCPConn: raw.(*net.TCPConn), door: d}
		d.open[server] = struct{}{}
		theirs, over := make(chan *stream, 1), make(chan struct{})
		c, _ := carried(t, func(s *stream) {
			theirs <- s
			_ = join(s, server, s.readChunk) // it ends by our doing
			close(over)
		})
		s := begin(t, c, "x")
		other := <-theirs
		var says sync.WaitGroup
		says.Go(func() { _, _ = s.Write(make([]byte, 64<<20)) })
		eventually(t, "the server has taken what it will", func() bool {
			other.mu.Lock()
			defer other.mu.Unlock()
			return other.owed == 0
		})
		if reset {
			_ = s.SetLinger(0)
		}
		_ = s.Close()
		select {
		case <-over:
		case <-time.After(time.Minute):
			t.Fatalf("reset %v: the server's connection stays", reset)
		}
		says.Wait()
	}
}

// Clients of TLS that say nothing keep nobody out.
func TestSilentClientsOfTLSKeepNobodyOut(t *testing.T) {
	server, _ := echo(t, "s")
	g, err := NewGate(TLS, func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", server)
	}, Limits{Sessions: 2, Request: time.Minute}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", front(t, g))
	for range 5 {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
	}
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(conn, "no TLS\n"); err != nil {
		t.Fatal(err)
	}
	if s, err := bufio.NewReader(conn).ReadString('\n'); err != nil || s != "s\n" {
		t.Errorf("beside silent ones: %q, %v", s, err)
	}
}

// Whatever clients call themselves and want, a line can tell of them.
func TestAcksAreBounded(t *testing.T) {
	var busy []Session
	for range 1000 {
		busy = append(busy, Session{Client: "[2001:db8:1234:5678:9abc:def0:1234:5678]:65535", Name: strings.Repeat("\x01", 16<<10), Busy: strings.Repeat("\xff<", 16<<10)})
	}
	m, err := message(ack{Serial: 1 << 60, Busy: toTell(busy)})
	if err != nil || len(m) > maxAck {
		t.Errorf("an ack of %d bytes, %v; the most is %d", len(m), err, maxAck)
	}
	if got := toTell([]Session{{Client: "c", Name: "größe", Busy: "b"}}); len(got) != 1 || got[0] != (Session{Client: "c", Name: "größe", Busy: "b"}) {
		t.Errorf("what is short becomes %+v", got)
	}
	var nodes []string
	for range 1000 {
		nodes = append(nodes, strings.Repeat("0", 32))
	}
	for _, v := range []any{order{Listen: nodes}, preface{Listen: nodes}} {
		if m, err := message(v); err != nil || len(m) > maxPreface {
			t.Errorf("%T for 1000 nodes is of %d bytes, %v; the most is %d", v, len(m), err, maxPreface)
		}
	}
}

// A carrier that ends takes nothing with it of what it was given to say.
func TestCarrierSaysItsLast(t *testing.T) {
	c, raw := carried(t, nil)
	s := begin(t, c, "x")
	_ = raw.(*net.TCPConn).SetReadBuffer(4 << 10)
	if _, err := raw.Write(appendFrame(nil, frameEnd, s.id, nil)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other side has said all", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.ended
	})
	const size = 200 << 10
	if _, err := s.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	c.retire()
	eventually(t, "all is with the kernel", func() bool {
		c.outMu.Lock()
		defer c.outMu.Unlock()
		return c.finish && len(c.pending) == 0 && c.sent == c.added
	})
	got, heard := 0, make([]byte, 32<<10)
	for {
		_, _ = raw.Write(appendFrame(nil, frameCredit, s.id, []byte{0, 0, 0, 1})) // crosses the end
		n, err := raw.Read(heard)
		got += n
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("after %d bytes of %d: %v", got, size, err)
		}
	}
	if got < size {
		t.Errorf("%d bytes are heard of %d", got, size)
	}
}

// Those who stay with what a route was before it changed go where it goes, and end with it.
func TestFormerEdgesLearn(t *testing.T) {
	for _, process := range []bool{false, true} { // it is another process's, or only another edge
		c := newCluster(t, 2)
		file := c.nodes[1].again(t)
		before, after := newFakeRedis(t), newFakeRedis(t)
		r := Route{ID: "r", Listen: freePort(t), Mode: Redis}
		c.route(r, 0, 1, before.l.Addr().String())
		conn, err := net.Dial("tcp", c.addrOf(1, r))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		in := bufio.NewReader(conn)
		say := func(word string) {
			t.Helper()
			if _, err := io.WriteString(conn, word+"\r\n"); err != nil {
				t.Fatal(err)
			}
			if s, err := in.ReadString('\n'); err != nil || s != "+"+word+"\r\n" {
				t.Fatalf("process %v: %q, %v", process, s, err)
			}
		}
		say("one")
		if process {
			c.nodes[1].handOver(t, file)
		} else {
			r.Limits.Sessions = 7
			c.route(r, 0, 1, before.l.Addr().String(), 1)
		}
		say("two")
		if err := c.nodes[0].Pause(t.Context(), "r", 0); err != nil {
			t.Fatal(err)
		}
		if err := c.nodes[0].Quiet(t.Context(), "r"); err != nil {
			t.Fatal(err)
		}
		c.cuts.set("n1", true)
		c.route(r, 1, 2, after.l.Addr().String(), 1)
		if s := c.status(1, "r"); !process && s.Sessions != 1 {
			t.Errorf("it tells of %d sessions", s.Sessions)
		}
		say("three")
		if got := after.heard(); got != "three" {
			t.Errorf("process %v: the new server hears %s", process, got)
		}
		if err := c.nodes[1].Apply(t.Context(), Config{Node: "n2", Members: []string{"n1", "n2"}}); err != nil {
			t.Fatal(err)
		}
		if _, err := in.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("process %v: its route is gone, and it hears %v", process, err)
		}
	}
}

// What is short, and written under a lock, waits for nobody: others may have said so much
// that a carrier cannot take more for a while.
func TestCarrierTakesWhatIsShort(t *testing.T) {
	c, raw := carried(t, nil) // whose other side reads nothing
	defer func() { _ = raw.Close() }()
	_ = c.conn.(*net.TCPConn).SetWriteBuffer(4 << 10)
	_ = raw.(*net.TCPConn).SetReadBuffer(4 << 10)
	asks := begin(t, c, "x")
	var says sync.WaitGroup
	defer says.Wait()
	for range 20 {
		s := begin(t, c, "x")
		defer func() { _ = s.Close() }()
		says.Go(func() { _, _ = s.Write(make([]byte, streamWindow)) }) // until it is closed
	}
	eventually(t, "the carrier is full", func() bool {
		c.outMu.Lock()
		defer c.outMu.Unlock()
		return len(c.pending)+chunkSize > mostPending && c.added-c.sent > uint64(len(c.pending))
	})
	if err := writeNow(asks, []byte("short")); err != nil {
		t.Error(err)
	}
	// But not beyond what the other side has asked for.
	for asks.credit >= chunkSize {
		if err := writeNow(asks, make([]byte, chunkSize)); err != nil {
			t.Fatal(err)
		}
	}
	if err := writeNow(asks, make([]byte, chunkSize)); err == nil {
		t.Error("it says more than it may")
	}
}

// A port that was handed on for a route that is gone is closed: who came there would wait
// for nobody.
func TestHandedOnForNothing(t *testing.T) {
	c := newCluster(t, 1)
	m := c.nodes[0]
	l, err := net.Listen("tcp", m.host+":0")
	if err != nil {
		t.Fatal(err)
	}
	m.stop()
	port := l.Addr().(*net.TCPAddr).Port
	m.inherit = map[string]net.Listener{fmt.Sprint(port): l}
	m.start(t, filepath.Join(t.TempDir(), "proxy.json"), m.addr)
	if err := m.Apply(t.Context(), Config{Node: m.name}); err != nil {
		t.Fatal(err)
	}
	if conn, err := net.Dial("tcp", l.Addr().String()); err == nil {
		_ = conn.Close()
		t.Error("who comes to a port without a route is let in")
	}
}
