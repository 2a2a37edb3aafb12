package proxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// echo is a server that says back what it hears, with its name in front of the first line.
func echo(t testing.TB, name string) (addr string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	conns := make(chan net.Conn, 1000)
	work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns <- conn
			work.Go(func() {
				_, _ = io.WriteString(conn, name+"\n")
				_, _ = io.Copy(conn, conn)
				_ = conn.(*net.TCPConn).CloseWrite()
			})
		}
	})
	stop = sync.OnceFunc(func() {
		_ = l.Close()
		for {
			select {
			case conn := <-conns:
				_ = conn.Close()
				continue
			default:
			}
			break
		}
		work.Wait()
	})
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

// visit connects, and returns the name of the server that answers.
func visit(t testing.TB, addr string) (*net.TCPConn, *bufio.Reader, string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	name, err := in.ReadString('\n')
	if err != nil {
		t.Fatalf("no server answers at %s: %v", addr, err)
	}
	return conn.(*net.TCPConn), in, strings.TrimSpace(name)
}

// From every node a client gets to the server, whole, and ends are what they were.
func TestEdgeBytesAndEnds(t *testing.T) {
	c := newCluster(t, 2)
	server, _ := echo(t, "s")
	r := Route{ID: "r", Listen: freePort(t), Mode: TCP}
	c.route(r, 0, 1, server)
	for node := range c.nodes {
		conn, in, name := visit(t, c.addrOf(node, r))
		if name != "s" {
			t.Errorf("node %d: %s answers", node, name)
		}
		sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<17) // more than any buffer
		var got []byte
		var reads sync.WaitGroup
		reads.Go(func() { got, _ = io.ReadAll(in) })
		if _, err := conn.Write(sent); err != nil {
			t.Fatal(err)
		}
		if err := conn.CloseWrite(); err != nil { // half: the answer is still to come
			t.Fatal(err)
		}
		reads.Wait()
		if !bytes.Equal(got, sent) {
			t.Errorf("node %d: %d bytes come back of %d", node, len(got), len(sent))
		}
		eventually(t, "the connection is gone", func() bool { return c.status(0, "r").Open == 0 && c.status(node, "r").Sessions == 0 })
	}
}

// A reset is passed on as one, so that nobody takes a part for the whole.
func TestEdgeResets(t *testing.T) {
	c := newCluster(t, 2)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	r := Route{ID: "r", Listen: freePort(t), Mode: TCP}
	c.route(r, 0, 1, l.Addr().String())
	for node := range c.nodes {
		conn, err := net.Dial("tcp", c.addrOf(node, r))
		if err != nil {
			t.Fatal(err)
		}
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if _, err := server.Write([]byte("half an ans")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 11)); err != nil {
			t.Fatal(err)
		}
		_ = server.(*net.TCPConn).SetLinger(0)
		_ = server.Close()
		_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.ReadAll(conn); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("node %d: the client's connection ends with %v, want a reset", node, err)
		}
		_ = conn.Close()

		// And the other way round.
		conn, err = net.Dial("tcp", c.addrOf(node, r))
		if err != nil {
			t.Fatal(err)
		}
		if server, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		if _, err := server.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		_ = conn.(*net.TCPConn).SetLinger(0)
		_ = conn.Close()
		_ = server.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.ReadAll(server); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("node %d: the server's connection ends with %v, want a reset", node, err)
		}
		_ = server.Close()
	}
}

// New connections come through a move, from every node, also from one whose table is old;
// and idle ones end in good order.
func TestEdgeNewConnectionsAcrossMoves(t *testing.T) {
	c := newCluster(t, 3)
	r := Route{ID: "r", Listen: freePort(t), Mode: TCP, Limits: Limits{Silence: time.Millisecond}}
	server, stop := echo(t, "s1")
	c.route(r, 0, 1, server)
	for i := range c.nodes {
		if _, _, name := visit(t, c.addrOf(i, r)); name != "s1" {
			t.Fatalf("%s answers", name)
		}
	}
	for move := range 6 {
		from, to := move%3, (move+1)%3
		if err := c.nodes[from].Pause(t.Context(), "r", 0); err != nil {
			t.Fatal(err)
		}
		if err := c.nodes[from].Quiet(t.Context(), "r"); err != nil {
			t.Fatal(err)
		}
		stop()
		want := fmt.Sprintf("s%d", move+2)
		var visits sync.WaitGroup
		for i := range c.nodes {
			addr := c.addrOf(i, r)
			visits.Go(func() {
				conn, err := net.Dial("tcp", addr)
				if err != nil {
					t.Error(err)
					return
				}
				defer func() { _ = conn.Close() }()
				_ = conn.SetDeadline(time.Now().Add(time.Minute))
				if name, err := bufio.NewReader(conn).ReadString('\n'); err != nil || strings.TrimSpace(name) != want {
					t.Errorf("move %d, node %d: %q, %v; want %s", move, i, name, err, want)
				}
			})
		}
		eventually(t, "they wait", func() bool {
			held := 0
			for i := range c.nodes {
				held += c.status(i, "r").Held
			}
			return held == 3
		})
		server, stop = echo(t, want)
		epoch := uint64(move + 2)
		c.route(r, to, epoch, "", to)     // it knows, but nothing runs there yet
		c.route(r, to, epoch, "", from)   // the old one sends others there
		c.route(r, to, epoch, server, to) // and now it runs; the third node hears of nothing
		visits.Wait()
	}
}

// webServer counts what it is asked.
func webServer(t testing.TB, applied *atomic.Int64) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, applied.Add(1))
	}))
	t.Cleanup(s.Close)
	return s
}

// Requests that are not repeated by anybody, over connections that stay, are done once each
// while their server moves from node to node 20 times.
func TestEdgeHTTPMoves(t *testing.T) {
	moves := 20
	if testing.Short() {
		moves = 5
	}
	for _, http2 := range []bool{false, true} {
		c := newCluster(t, 3)
		r := Route{ID: "r", Listen: freePort(t), Mode: HTTP}
		var applied, answered atomic.Int64
		server := webServer(t, &applied)
		server.Close()
		start := func() string {
			s := httptest.NewUnstartedServer(server.Config.Handler)
			s.Config.Protocols = new(http.Protocols)
			s.Config.Protocols.SetHTTP1(true)
			s.Config.Protocols.SetUnencryptedHTTP2(true)
			s.Start()
			server.Close()
			server = s
			t.Cleanup(s.Close)
			return s.Listener.Addr().String()
		}
		c.route(r, 0, 1, start())
		ctx, cancel := context.WithCancel(t.Context())
		var load sync.WaitGroup
		for i := range c.nodes {
			url := "http://" + c.addrOf(i, r) + "/"
			for range 4 {
				load.Go(func() {
					transport := &http.Transport{MaxConnsPerHost: 1, Protocols: new(http.Protocols)}
					transport.Protocols.SetHTTP1(!http2)
					transport.Protocols.SetUnencryptedHTTP2(http2)
					client := &http.Client{Transport: transport, Timeout: 30 * time.Second}
					defer client.CloseIdleConnections()
					for ctx.Err() == nil {
						res, err := client.Post(url, "text/plain", strings.NewReader("x"))
						if err != nil {
							t.Errorf("HTTP/2 %v: %v", http2, err)
							return
						}
						_, _ = io.Copy(io.Discard, res.Body)
						_ = res.Body.Close()
						if res.StatusCode != http.StatusOK {
							t.Errorf("HTTP/2 %v: %s", http2, res.Status)
							return
						}
						answered.Add(1)
					}
				})
			}
		}
		for move := range moves {
			before := answered.Load()
			eventually(t, "there is load", func() bool { return answered.Load() > before+20 || t.Failed() })
			from, to := move%3, (move+1)%3
			quiet, cancel := context.WithTimeout(t.Context(), time.Minute)
			if err := c.nodes[from].Pause(quiet, "r", 0); err != nil {
				t.Fatal(err)
			}
			if err := c.nodes[from].Quiet(quiet, "r"); err != nil {
				t.Fatal(err)
			}
			cancel()
			c.route(r, to, uint64(move+2), start(), to)
			c.route(r, to, uint64(move+2), "", from)
		}
		cancel()
		load.Wait()
		if applied.Load() != answered.Load() {
			t.Errorf("HTTP/2 %v: %d requests were answered, and %d done", http2, answered.Load(), applied.Load())
		}
		t.Logf("HTTP/2 %v: %d requests", http2, answered.Load())
	}
}

// While the owner is not reached clients wait, no more than allowed are accepted, and all
// of them are served when it is back.
func TestEdgeOwnerUnreachable(t *testing.T) {
	c := newCluster(t, 2)
	server, _ := echo(t, "s")
	r := Route{ID: "r", Listen: freePort(t), Mode: TCP, Limits: Limits{Sessions: 3, Request: 20 * time.Second}}
	c.cuts.set("n1", true)
	c.route(r, 0, 1, server)
	addr := c.addrOf(1, r)
	const clients = 8
	var visits sync.WaitGroup
	for range clients {
		visits.Go(func() {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = conn.Close() }()
			_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
			if name, err := bufio.NewReader(conn).ReadString('\n'); err != nil || name != "s\n" {
				t.Errorf("%q, %v", name, err)
			}
		})
	}
	eventually(t, "as many wait as may", func() bool { return c.status(1, "r").Held == 3 })
	eventually(t, "the reason is told", func() bool { return strings.Contains(c.status(1, "r").Problem, "no way to n1") })
	if s := c.status(1, "r"); s.Sessions > 3 {
		t.Errorf("%d are accepted, though 3 may wait", s.Sessions)
	}
	c.cuts.set("n1", false)
	visits.Wait()
}

// Whoever waits for longer than allowed is told so, and the others still wait.
func TestEdgeHoldIsBounded(t *testing.T) {
	c := newCluster(t, 2)
	r := Route{ID: "r", Listen: freePort(t), Mode: HTTP, Limits: Limits{Request: 300 * time.Millisecond}}
	c.route(r, 0, 1, "") // nothing runs
	for i := range c.nodes {
		res, err := http.Get("http://" + c.addrOf(i, r) + "/")
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" {
			t.Errorf("node %d: %s, Retry-After %q", i, res.Status, res.Header.Get("Retry-After"))
		}
	}
}

// Clients that keep a route busy are named with the node they came to; what they wait for
// is lost to them only when they are cut off.
func TestEdgeBusyIsNamedAndCut(t *testing.T) {
	c := newCluster(t, 2)
	release, arrived := make(chan struct{}), make(chan struct{}, 1)
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(s.CloseClientConnections)
	r := Route{ID: "r", Listen: freePort(t), Mode: HTTP}
	c.route(r, 0, 1, s.Listener.Addr().String())
	ask := func() chan error {
		out := make(chan error, 1)
		go func() {
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			res, err := client.Post("http://"+c.addrOf(1, r)+"/", "text/plain", strings.NewReader("x"))
			if err == nil {
				_ = res.Body.Close()
			}
			out <- err
		}()
		<-arrived // before that a pause would have it wait
		return out
	}
	asked := ask()
	if err := c.nodes[0].Pause(t.Context(), "r", 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "who is busy is named", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		var busy *Busy
		return errors.As(c.nodes[0].Quiet(ctx, "r"), &busy) && len(busy.Sessions) == 1 && busy.Sessions[0].Node == "n2" && strings.Contains(busy.Sessions[0].Busy, "no answer yet")
	})
	// It is taken back, and nothing has happened.
	if err := c.nodes[0].Resume(t.Context(), "r", ""); err != nil {
		t.Fatal(err)
	}
	close(release)
	if err := <-asked; err != nil {
		t.Errorf("a request that a pause was given up for: %v", err)
	}
	release = make(chan struct{})
	eventually(t, "the connection is gone", func() bool { return c.status(0, "r").Open == 0 })
	asked = ask()
	if err := c.nodes[0].Pause(t.Context(), "r", 0); err != nil {
		t.Fatal(err)
	}
	if err := c.nodes[0].Cut(t.Context(), "r"); err != nil {
		t.Fatal(err)
	}
	if err := c.nodes[0].Quiet(t.Context(), "r"); err != nil {
		t.Errorf("after it was cut off: %v", err)
	}
	if err := <-asked; err == nil {
		t.Error("who was cut off has an answer")
	}
}

// hearer is a server that hears everybody to the end, and says nothing but its name.
type hearer struct {
	addr  string
	stop  func()
	wrong atomic.Int64 // clients of which something was missing, or came twice

	mu    sync.Mutex
	conns []net.Conn
	heard []*atomic.Int64 // of each, in order
}

// sequence is what the clients of a hearer say: every eight bytes are how many came before them.
func sequence(b []byte, from uint64) {
	for i := 0; i < len(b); i += 8 {
		binary.BigEndian.PutUint64(b[i:], from+uint64(i))
	}
}

func newHearer(t testing.TB, name string) *hearer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &hearer{addr: l.Addr().String()}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			heard := &atomic.Int64{}
			s.mu.Lock()
			s.conns, s.heard = append(s.conns, conn), append(s.heard, heard)
			s.mu.Unlock()
			work.Go(func() {
				_, _ = io.WriteString(conn, name+"\n")
				s.hear(conn, heard)
			})
		}
	})
	s.stop = sync.OnceFunc(func() {
		_ = l.Close()
		s.mu.Lock()
		for _, conn := range s.conns {
			_ = conn.Close()
		}
		s.mu.Unlock()
		work.Wait()
	})
	t.Cleanup(s.stop)
	return s
}

// counts says how much was heard of each client.
func (s *hearer) counts() (all []int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.heard {
		all = append(all, n.Load())
	}
	return all
}

func (s *hearer) hear(conn net.Conn, heard *atomic.Int64) {
	in, got, want := bufio.NewReader(conn), make([]byte, 8), make([]byte, 8)
	for n := uint64(0); ; n += 8 {
		if _, err := io.ReadFull(in, got); err != nil {
			return
		}
		if sequence(want, n); !bytes.Equal(got, want) {
			s.wrong.Add(1)
			return
		}
		heard.Add(8)
	}
}

// Clients in mode tcp that never stop sending, and come to both nodes: a pause names each with
// the node that it came to. Given up, it has cost them nothing; if they are cut off, they know
// that they were, no server has heard more of them than they said, and whoever comes then
// is served where the server is by now.
func TestEdgeEndlessSenders(t *testing.T) {
	c := newCluster(t, 2)
	r := Route{ID: "r", Listen: freePort(t), Mode: TCP, Limits: Limits{Silence: time.Millisecond}}
	first := newHearer(t, "s1")
	c.route(r, 0, 1, first.addr)
	var said atomic.Int64
	ends := make(chan error, len(c.nodes))
	send := func(addr, server string) {
		conn, _, name := visit(t, addr)
		if name != server {
			t.Fatalf("%s answers, want %s", name, server)
		}
		if err := conn.SetDeadline(time.Time{}); err != nil { // it goes on for as long as the machine takes
			t.Fatal(err)
		}
		go func() {
			block := make([]byte, 4096)
			for from := uint64(0); ; from += uint64(len(block)) {
				sequence(block, from)
				said.Add(int64(len(block))) // before: some of it may come through in any case
				if _, err := conn.Write(block); err != nil {
					ends <- err
					return
				}
			}
		}()
	}
	onward := func(s *hearer) {
		t.Helper()
		from := s.counts()
		if len(from) != len(c.nodes) {
			t.Fatalf("%d clients are heard, want %d", len(from), len(c.nodes))
		}
		eventually(t, "more of each is heard", func() bool {
			for i, n := range s.counts() {
				if n < from[i]+1<<20 {
					return false
				}
			}
			return true
		})
	}
	for i := range c.nodes {
		send(c.addrOf(i, r), "s1")
	}
	onward(first)
	if err := c.nodes[0].Pause(t.Context(), "r", 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both are named", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		err := c.nodes[0].Quiet(ctx, "r")
		var busy *Busy
		if !errors.As(err, &busy) {
			t.Fatalf("who never stops is quiet: %v", err)
		}
		on := make(map[string]bool)
		for _, s := range busy.Sessions {
			on[s.Node] = s.Busy != ""
		}
		return len(busy.Sessions) == 2 && on["n1"] && on["n2"]
	})
	if err := c.nodes[0].Resume(t.Context(), "r", ""); err != nil {
		t.Fatal(err)
	}
	onward(first)

	if err := c.nodes[0].Pause(t.Context(), "r", 0); err != nil {
		t.Fatal(err)
	}
	if err := c.nodes[0].Cut(t.Context(), "r"); err != nil {
		t.Fatal(err)
	}
	if err := c.nodes[0].Quiet(t.Context(), "r"); err != nil {
		t.Errorf("after they were cut off: %v", err)
	}
	for range c.nodes {
		if err := <-ends; !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("who was cut off ends with %v", err)
		}
	}
	first.stop()
	var heard int64
	for _, n := range first.counts() {
		heard += n
	}
	if first.wrong.Load() > 0 || heard > said.Load() {
		t.Errorf("%d bytes were heard of %d, of %d clients not what they said", heard, said.Load(), first.wrong.Load())
	}

	second := newHearer(t, "s2")
	c.route(r, 1, 2, second.addr, 1)
	c.route(r, 1, 2, "", 0)
	for i := range c.nodes {
		send(c.addrOf(i, r), "s2")
	}
	onward(second)
	second.stop()
	for range c.nodes {
		<-ends
	}
	if second.wrong.Load() > 0 {
		t.Error("the second server has not heard what was said")
	}
}

// An edge that is cut off from the owner in the middle of a pause loses what it had there,
// and that does not keep the server from being quiet.
func TestEdgeIsLostDuringAPause(t *testing.T) {
	c := newCluster(t, 2)
	server, _ := echo(t, "s")
	r := Route{ID: "r", Listen: freePort(t), Mode: TCP}
	c.route(r, 0, 1, server)
	conn, _, _ := visit(t, c.addrOf(1, r))
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := c.nodes[0].Pause(t.Context(), "r", 0); err != nil {
		t.Fatal(err)
	}
	c.cuts.set("n1", true)
	if err := c.nodes[0].Quiet(t.Context(), "r"); err != nil {
		t.Error(err)
	}
}

// A port that is taken is the matter of one route alone, said clearly and tried again.
func TestEdgePortTaken(t *testing.T) {
	c := newCluster(t, 1)
	server, _ := echo(t, "s")
	l, err := net.Listen("tcp", c.nodes[0].host+":0")
	if err != nil {
		t.Fatal(err)
	}
	taken := Route{ID: "taken", Listen: uint16(l.Addr().(*net.TCPAddr).Port), Mode: TCP, Owner: "n1", Epoch: 1, Server: server}
	free := Route{ID: "free", Listen: freePort(t), Mode: TCP, Owner: "n1", Epoch: 1, Server: server}
	if err := c.nodes[0].Apply(t.Context(), Config{Node: "n1", Routes: []Route{taken, free}}); err != nil {
		t.Fatal(err)
	}
	visit(t, c.addrOf(0, free))
	eventually(t, "it is told", func() bool { return strings.Contains(c.status(0, "taken").Problem, "address already in use") })
	if p := c.status(0, "free").Problem; p != "" {
		t.Errorf("the other route has a problem, too: %s", p)
	}
	_ = l.Close()
	visit(t, c.addrOf(0, taken))
	if p := c.status(0, "taken").Problem; p != "" {
		t.Errorf("the problem is over, but told: %s", p)
	}
}

// A configuration that changes other routes, or who owns this one, touches no session; one
// that removes it ends them.
func TestEdgeApplyTouchesNothingElse(t *testing.T) {
	c := newCluster(t, 1)
	server, _ := echo(t, "s")
	one := Route{ID: "one", Listen: freePort(t), Mode: TCP, Owner: "n1", Epoch: 1, Server: server}
	two := Route{ID: "two", Listen: freePort(t), Mode: TCP, Owner: "n1", Epoch: 1, Server: server}
	apply := func(routes ...Route) {
		t.Helper()
		if err := c.nodes[0].Apply(t.Context(), Config{Node: "n1", Routes: routes}); err != nil {
			t.Fatal(err)
		}
	}
	apply(one, two)
	a, ain, _ := visit(t, c.addrOf(0, one))
	_, bin, _ := visit(t, c.addrOf(0, two))
	one.Volume = "renamed"
	apply(one)
	if _, err := bin.ReadByte(); err == nil {
		t.Error("a route is gone, and its session goes on")
	}
	if _, err := a.Write([]byte("still\n")); err != nil {
		t.Fatal(err)
	}
	if s, err := ain.ReadString('\n'); err != nil || s != "still\n" {
		t.Errorf("%q, %v", s, err)
	}
	if err := c.nodes[0].Apply(t.Context(), Config{Node: "n2"}); err == nil {
		t.Error("the proxy of one node becomes that of another")
	}
}

// Other limits count at once, and cost nobody its connection: there is room for more that wait,
// and who comes from then on waits as long as they say.
func TestEdgeTakesNewLimits(t *testing.T) {
	c := newCluster(t, 1)
	server, _ := echo(t, "s")
	r := Route{ID: "r", Listen: freePort(t), Mode: TCP, Limits: Limits{Sessions: 1, Request: time.Hour, Event: time.Hour}}
	c.route(r, 0, 1, server)
	addr := c.addrOf(0, r)
	if err := c.nodes[0].Pause(t.Context(), "r", time.Hour); err != nil {
		t.Fatal(err)
	}
	wait := func() net.Conn {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	first, second := wait(), wait()
	eventually(t, "one waits", func() bool { return c.status(0, "r").Held == 1 })

	r.Limits = Limits{Sessions: 3, Request: 50 * time.Millisecond, Event: time.Hour}
	c.route(r, 0, 2, server)
	_ = second.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := second.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("one that came in with the new limits hears %v, want its end", err)
	}
	if err := c.nodes[0].Resume(t.Context(), "r", server); err != nil {
		t.Fatal(err)
	}
	_ = first.SetReadDeadline(time.Now().Add(time.Minute))
	if name, err := bufio.NewReader(first).ReadString('\n'); err != nil || name != "s\n" {
		t.Errorf("one that waited by the limits before hears %q, %v", name, err)
	}

	served, in, _ := visit(t, addr)
	r.Limits.Request = time.Second
	c.route(r, 0, 3, server)
	if _, err := served.Write([]byte("still\n")); err != nil {
		t.Fatal(err)
	}
	if s, err := in.ReadString('\n'); err != nil || s != "still\n" {
		t.Errorf("one that was served all along hears %q, %v", s, err)
	}
}

// How many may wait for all routes of a node together is told, too, counts at once, and is the
// process's own again where nobody says it.
func TestNodeTakesNewBound(t *testing.T) {
	c := newCluster(t, 1)
	server, _ := echo(t, "s")
	r := Route{ID: "r", Listen: freePort(t), Mode: TCP, Limits: Limits{Request: time.Hour, Event: time.Hour},
		Owner: c.nodes[0].name, OwnerAddr: c.nodes[0].addr, Server: server, Epoch: 1}
	apply := func(waiting int) {
		t.Helper()
		if err := c.nodes[0].Apply(t.Context(), Config{Node: c.nodes[0].name, Routes: []Route{r}, Waiting: waiting}); err != nil {
			t.Fatal(err)
		}
	}
	hasRoom := func() bool {
		c.nodes[0].mu.Lock()
		defer c.nodes[0].mu.Unlock()
		_, all := c.nodes[0].edges["r"].gate.hasRoom()
		return all
	}
	apply(1)
	if err := c.nodes[0].Pause(t.Context(), "r", time.Hour); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		conn, err := net.Dial("tcp", c.addrOf(0, r))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	eventually(t, "the first waits", func() bool { return c.status(0, "r").Held == 1 })
	if hasRoom() {
		t.Error("there is room for more than may wait")
	}
	apply(2)
	eventually(t, "one more waits", func() bool { return c.status(0, "r").Held == 2 })
	if hasRoom() {
		t.Error("there is room for more than may wait by now")
	}
	apply(0)
	eventually(t, "all wait", func() bool { return c.status(0, "r").Held == 3 })
	if !hasRoom() {
		t.Error("there is no room, though nobody says how many may wait")
	}
}

// A route whose mode or limits of dialling change keeps its port: who waits to be accepted there is
// served, by what it is now, and who was served stays.
func TestEdgeChangesKeepThePort(t *testing.T) {
	c := newCluster(t, 1)
	server, _ := echo(t, "s")
	r := Route{ID: "r", Listen: freePort(t), Mode: TCP, Limits: Limits{Sessions: 1, Request: 30 * time.Second}}
	c.route(r, 0, 1, server)
	addr := c.addrOf(0, r)
	if err := hearName(addr); err != nil { // there is a line by now
		t.Fatal(err)
	}
	c.route(r, 0, 2, "") // no server: the next one waits, and nobody is accepted any more
	if err := c.nodes[0].Pause(t.Context(), "r", time.Minute); err != nil {
		t.Fatal(err)
	}
	// Until then it is the door that keeps a client waiting, and the edge counts nobody.
	gate := c.nodes[0].edges["r"].gate
	eventually(t, "the edge has heard of the pause", func() bool {
		gate.mu.Lock()
		defer gate.mu.Unlock()
		return gate.pause != nil
	})
	const clients = 20
	var visits sync.WaitGroup
	var heard atomic.Int64
	for range clients {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		visits.Go(func() {
			if name, err := bufio.NewReader(conn).ReadString('\n'); err != nil || name != "s\n" {
				t.Errorf("one that waited hears %q, %v", name, err)
				return
			}
			heard.Add(1)
		})
	}
	eventually(t, "one waits", func() bool { return c.status(0, "r").Held == 1 })
	for i, most := range []int{2, 3, 100} {
		r.Limits.Sessions, r.Limits.Dials = most, most
		c.route(r, 0, uint64(i+3), "")
	}
	if n := heard.Load(); n != 0 || t.Failed() {
		t.Fatalf("%d are served by nobody", n)
	}
	if err := c.nodes[0].Resume(t.Context(), "r", server); err != nil {
		t.Fatal(err)
	}
	visits.Wait()
	if n := c.status(0, "r").HeldEver; n < 1 {
		t.Errorf("%d were held, though all waited; other edges have taken the first one's place since", n)
	}
	old, oldIn, _ := visit(t, addr)
	r.Mode = TLS
	c.route(r, 0, 6, server)
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatalf("after its mode has changed: %v", err)
	}
	_ = conn.Close()
	if s := c.status(0, "r"); s.Mode != TLS || s.Problem != "" {
		t.Errorf("after its mode has changed: %+v", s)
	}
	if _, err := old.Write([]byte("still\n")); err != nil {
		t.Fatal(err)
	}
	if s, err := oldIn.ReadString('\n'); err != nil || s != "still\n" {
		t.Errorf("one that was served: %q, %v", s, err)
	}
}

// A process that comes after another goes on with what that was told, a pause included.
func TestNodeGoesOn(t *testing.T) {
	c := newCluster(t, 1)
	server, _ := echo(t, "s")
	m := c.nodes[0]
	file := filepath.Join(t.TempDir(), "proxy.json")
	m.stop()
	m.start(t, file, m.addr)
	r := Route{ID: "r", Listen: freePort(t), Mode: TCP}
	c.route(r, 0, 3, "")
	if err := m.Resume(t.Context(), "r", server); err != nil {
		t.Fatal(err)
	}
	visit(t, c.addrOf(0, r))
	if err := m.Pause(t.Context(), "r", time.Hour); err != nil {
		t.Fatal(err)
	}
	before := c.status(0, "r").Paused
	m.stop()
	m.start(t, file, m.addr)
	eventually(t, "the route is back", func() bool { s, _ := m.Status(t.Context()); return len(s.Routes) == 1 })
	if s := c.status(0, "r"); !s.Paused.Equal(before) || s.Server != server || s.Epoch != 3 {
		t.Errorf("it goes on with %+v", s)
	}
	if err := m.Resume(t.Context(), "r", ""); err != nil {
		t.Fatal(err)
	}
	visit(t, c.addrOf(0, r))

	// One of a node that has become another, as of another cluster, does not.
	m.stop()
	m.name = "other"
	m.start(t, file, m.addr)
	eventually(t, "it serves what it is told", func() bool { return m.Apply(t.Context(), Config{Node: "other"}) == nil })
	if s, err := m.Status(t.Context()); err != nil || s.Node != "other" || len(s.Routes) > 0 {
		t.Errorf("it goes on with %+v, %v", s, err)
	}
}

// What a process is told while it still reads what the one before was told comes after that.
func TestNodeToldAtItsBeginning(t *testing.T) {
	c := newCluster(t, 1)
	m := c.nodes[0]
	file := filepath.Join(t.TempDir(), "proxy.json")
	if err := syscall.Mkfifo(file, 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	m.stop()
	m.start(t, file, m.addr) // it reads until that is closed
	now := Config{Node: m.name, Routes: []Route{{ID: "now", Listen: freePort(t), Mode: TCP, Owner: m.name, OwnerAddr: m.addr, Epoch: 2}}}
	told := make(chan error, 1)
	go func() { told <- m.Apply(t.Context(), now) }()
	select {
	case err := <-told:
		told <- err
		t.Error("it was told before it had read")
	case <-time.After(50 * time.Millisecond): // in which it could have been
	}
	_, err = fmt.Fprintf(before, `{"Config": {"Node": %q, "Routes": [{"ID": "before", "Listen": %d, "Mode": "tcp", "Owner": %q, "OwnerAddr": %q, "Epoch": 1}]}}`,
		m.name, freePort(t), m.name, m.addr)
	if err := errors.Join(err, before.Close()); err != nil {
		t.Fatal(err)
	}
	if err := <-told; err != nil {
		t.Fatal(err)
	}
	if s, err := m.Status(t.Context()); err != nil || len(s.Routes) != 1 || s.Routes[0].ID != "now" {
		t.Errorf("it goes by %+v, %v", s.Routes, err)
	}
}

// A server is told whose connection it is, if it expects that, through whichever node the
// client comes.
func TestEdgeAnnounces(t *testing.T) {
	c := newCluster(t, 2)
	server, _ := echo(t, "s")
	for i, a := range []Announce{AnnounceV1, AnnounceV2} {
		r := Route{ID: fmt.Sprint(a), Listen: freePort(t), Mode: TCP, Announce: a}
		c.route(r, 0, uint64(i+1), server)
		for node := range c.nodes {
			conn, in, _ := visit(t, c.addrOf(node, r))
			from := conn.LocalAddr().(*net.TCPAddr)
			to := conn.RemoteAddr().(*net.TCPAddr)
			want := a.header(from.AddrPort(), to.AddrPort())
			got := make([]byte, len(want))
			if _, err := io.ReadFull(in, got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, node %d: %q, %v; want %q", a, node, got, err, want)
			}
		}
	}
}

// A node whose clients have heard from the last owner that it is the new one, before its
// own flockd has said so, has no problem: they wait, and go on once it is told.
func TestEdgeIsAheadOfItsDoor(t *testing.T) {
	c := newCluster(t, 2)
	r := Route{ID: "r", Listen: freePort(t), Mode: Redis}
	c.route(r, 0, 1, "")
	conn, err := net.Dial("tcp", c.addrOf(1, r))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "PING\r\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the client waits for the server", func() bool { return c.status(0, "r").Nodes == 1 })
	c.route(r, 1, 2, "", 0)
	eventually(t, "its node has heard of the move", func() bool { return c.status(1, "r").Epoch == 2 })
	e := c.nodes[1].edges["r"]
	eventually(t, "its own door knows nothing of it", func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.lost != nil && e.line == nil
	})
	if s := c.status(1, "r"); s.Problem != "" || s.Held != 1 {
		t.Errorf("it says %+v", s)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	c.route(r, 1, 2, l.Addr().String())
	eventually(t, "the server hears the client", func() bool {
		server, err := l.Accept() // it may be connected to more than once
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = server.Close() }()
		s, err := bufio.NewReader(server).ReadString('\n')
		return err == nil && s == "PING\r\n"
	})
}
