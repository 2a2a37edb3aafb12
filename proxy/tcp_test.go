package proxy

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestRelayBusy(t *testing.T) {
	const quiet = 60 * time.Millisecond
	for _, c := range []struct {
		facts relayFacts
		want  string
	}{
		{relayFacts{known: true, silent: quiet}, ""},
		{relayFacts{known: true, silent: quiet - 1}, "it was not silent for long enough"},
		{relayFacts{known: true, silent: time.Hour, passing: true}, "something is on its way"},
		{relayFacts{known: true, silent: time.Hour, asked: true}, "the client has spoken last and may wait for an answer"},
		{relayFacts{known: true, silent: time.Hour, ended: true}, "one side has said all that it will, and the other has not"},
		{relayFacts{silent: time.Hour}, "whether something is on its way cannot be told"},
	} {
		if got := c.facts.busy(quiet); got != c.want {
			t.Errorf("%+v: %q, want %q", c.facts, got, c.want)
		}
	}
}

func newTCPWorld(t *testing.T, limits Limits) *world {
	t.Helper()
	w := &world{T: t, server: newFakeRedis(t)}
	w.gate(w.server.dial, limits)
	return w
}

// gate puts a gate that follows nothing before a server.
func (w *world) gate(dial Dialer, limits Limits) {
	w.Helper()
	var err error
	if w.g, err = NewGate(TCP, dial, limits, slog.New(slog.DiscardHandler)); err != nil {
		w.Fatal(err)
	}
	w.port = front(w, w.g)
}

// ended waits for the end of what the server says, in good order or not.
func (c *testClient) ended() error {
	c.w.Helper()
	if err := c.conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		c.w.Fatal(err)
	}
	rest, err := io.ReadAll(c.in)
	if len(rest) > 0 {
		c.w.Errorf("heard %q", rest)
	}
	return err
}

// leaves closes the connection, once the other side has heard that its client goes.
func (c *testClient) leaves() {
	c.w.Helper()
	if err := c.conn.(*net.TCPConn).CloseWrite(); err != nil {
		c.w.Fatal(err)
	}
	const finWait2 = 5 // in the kernel's numbering: the end is acknowledged
	c.w.until("its end to be heard", func() bool { return tcpInfo(c.conn).State == finWait2 })
	_ = c.conn.Close()
}

// What is quiet ends, in good order; what has said nothing goes on elsewhere, and so does
// who comes meanwhile.
func TestTCPQuiet(t *testing.T) {
	w := newTCPWorld(t, Limits{Silence: time.Millisecond})
	idle, fresh := w.client(), w.client()
	idle.say("one\n")
	idle.hear("+one")
	w.until("both to be connected", func() bool { return w.states() == "active active" })
	w.g.Pause()
	w.quiet()
	if err := idle.ended(); err != nil {
		t.Errorf("it does not end in good order: %v", err)
	}
	w.until("the server to be alone", func() bool { return w.server.clients() == 0 })
	late := w.client()
	late.say("two\n")
	fresh.say("three\n")
	w.until("them to wait", func() bool { return w.states() == "waiting waiting" })
	other := newFakeRedis(t)
	w.g.Resume(other.dial)
	late.hear("+two")
	fresh.hear("+three")
	if old := w.server.heard(); old != "one" {
		t.Errorf("the old server heard %s", old)
	}
}

// What is not quiet is named; without a move nothing has happened to it.
func TestTCPBusy(t *testing.T) {
	w := newTCPWorld(t, Limits{Silence: time.Millisecond})
	c := w.client()
	c.say("slow\n")
	w.until("a request to be with the server", func() bool { return w.server.heard() == "slow" })
	w.g.Pause()
	if busy := w.named(); busy != "the client has spoken last and may wait for an answer" {
		t.Errorf("quiet: %q", busy)
	}
	w.g.Resume(nil)
	w.server.let <- struct{}{}
	c.hear("+slow")
	c.say("on\n")
	c.hear("+on")
}

// Who is cut off knows that it was, for what it has may be half an answer.
func TestTCPCut(t *testing.T) {
	w := newTCPWorld(t, Limits{})
	c := w.client()
	c.say("slow\n")
	w.until("a request to be with the server", func() bool { return w.server.heard() == "slow" })
	w.g.Pause()
	w.g.Cut()
	w.quiet()
	if err := c.ended(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("it ends with %v", err)
	}
	w.server.let <- struct{}{}
}

// Who waits for too long is not served, and does not take that for an empty answer.
func TestTCPWaitsNoLongerThanAllowed(t *testing.T) {
	w := newTCPWorld(t, Limits{Request: 20 * time.Millisecond})
	w.g.Pause()
	c := w.client()
	if err := c.ended(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("it ends with %v", err)
	}
	if n := w.g.held.Load(); n != 1 {
		t.Errorf("%d were held by the pause, want 1", n)
	}
}

func TestTCPGoneClientIsNotServed(t *testing.T) {
	w := newTCPWorld(t, Limits{})
	w.g.Pause()
	c := w.client()
	c.say("INCR k\n")
	w.until("it to wait", func() bool { return w.states() == string(Waiting) })
	c.leaves()
	w.g.Resume(nil)
	w.until("the session to end", func() bool { return len(w.g.Sessions()) == 0 })
	if got := w.server.heard(); got != "" {
		t.Errorf("the server heard %s", got)
	}
}

// Nor is one that goes while its connection is made, if a pause came and went meanwhile.
func TestTCPGoneWhileDialedIsNotServed(t *testing.T) {
	w := newTCPWorld(t, Limits{})
	dialing, let := make(chan struct{}), make(chan struct{})
	first := sync.OnceFunc(func() {
		close(dialing)
		<-let
	})
	slow := func(ctx context.Context) (net.Conn, error) {
		first()
		return w.server.dial(ctx)
	}
	w.g.Pause()
	w.g.Resume(slow)
	c := w.client()
	c.say("INCR k\n")
	<-dialing
	w.g.Pause()
	w.g.Resume(slow)
	c.leaves()
	close(let)
	w.until("the session to end", func() bool { return len(w.g.Sessions()) == 0 })
	if got := w.server.heard(); got != "" {
		t.Errorf("the server heard %s", got)
	}
}

// Connections that are made for one request each are all served, and each request is
// done once, wherever the server goes.
func TestTCPMoves(t *testing.T) {
	w := newTCPWorld(t, Limits{})
	servers := []*fakeRedis{w.server}
	const clients, moves = 6, 6
	var load sync.WaitGroup
	var asked [clients]int
	over := make(chan struct{})
	heard := func() (all []string) {
		for _, s := range servers {
			if words := s.heard(); words != "" {
				all = append(all, strings.Split(words, ", ")...)
			}
		}
		return all
	}
	for n := range clients {
		load.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				word := fmt.Sprintf("%d/%d", n, asked[n])
				if err := askOnce(w.port, word); err != nil {
					t.Errorf("%s: %v", word, err)
					return
				}
				asked[n]++
			}
		})
	}
	for range moves {
		before := len(heard())
		w.g.Pause()
		w.quiet()
		w.until("the server to be alone", func() bool { return servers[len(servers)-1].clients() == 0 })
		servers = append(servers, newFakeRedis(t))
		w.g.Resume(servers[len(servers)-1].dial)
		w.until("some load between two moves", func() bool { return len(heard()) > before+clients })
	}
	close(over)
	load.Wait()
	times := make(map[string]int)
	for _, word := range heard() {
		times[word]++
	}
	all := 0
	for n, asked := range asked {
		for i := range asked {
			if word := fmt.Sprintf("%d/%d", n, i); times[word] != 1 {
				t.Errorf("%s was done %d times", word, times[word])
			}
		}
		all += asked
	}
	if len(times) != all {
		t.Errorf("%d were done, %d answered", len(times), all)
	}
	t.Logf("%d requests over %d moves", all, moves)
}

func askOnce(port int, word string) error {
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(conn, word); err != nil {
		return err
	}
	got, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && got != "+"+word+"\r\n" {
		err = fmt.Errorf("heard %q", got)
	}
	return err
}

// handler has handle serve each client behind a gate of its own.
func (w *world) handler(silence time.Duration, handle func(conn *net.TCPConn)) {
	w.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer func() { _ = conn.Close() }()
				_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
				handle(conn.(*net.TCPConn))
			})
		}
	})
	w.Cleanup(func() { _ = l.Close(); all.Wait() })
	w.gate(dialTo(l.Addr()), Limits{Silence: silence})
}

func dialTo(addr net.Addr) Dialer {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr.String())
	}
}

// Each side may end what it says and go on hearing the other.
func TestTCPHalfClose(t *testing.T) {
	w := &world{T: t}
	got := make(chan string, 1)
	w.handler(time.Millisecond, func(conn *net.TCPConn) {
		_, _ = io.WriteString(conn, "welcome\n") // it speaks first
		in := bufio.NewReader(conn)
		switch line, _ := in.ReadString('\n'); line {
		case "all\n": // the client ends first
			rest, _ := io.ReadAll(in)
			_, _ = fmt.Fprintf(conn, "%d bytes\n", len(rest))
		default: // the server does
			_ = conn.CloseWrite()
			rest, _ := io.ReadAll(in)
			got <- string(rest)
		}
	})
	c := w.client()
	c.hear("welcome")
	c.say("all\n12345")
	if err := c.conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	c.hear("5 bytes")
	if err := c.ended(); err != nil {
		t.Error(err)
	}
	w.until("the first session to end", func() bool { return len(w.g.Sessions()) == 0 })
	c = w.client()
	c.hear("welcome")
	c.say("end\n")
	if err := c.ended(); err != nil {
		t.Error(err)
	}
	if busy := w.g.Sessions(); len(busy) != 1 || busy[0].Busy == "" {
		t.Errorf("a session that is closed by half would be ended: %+v", busy)
	}
	c.say("more")
	_ = c.conn.Close()
	if rest := <-got; rest != "more" {
		t.Errorf("the server heard %q", rest)
	}
}

// A reset is passed on as one.
func TestTCPReset(t *testing.T) {
	w := &world{T: t}
	w.handler(time.Millisecond, func(conn *net.TCPConn) {
		_, _ = conn.Read(make([]byte, 1))
		_ = conn.SetLinger(0)
	})
	c := w.client()
	c.say("x")
	if err := c.ended(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("it ends with %v", err)
	}
}

// Much at once, both ways at a time and through a pause, is what was sent.
func TestTCPBulk(t *testing.T) {
	w := &world{T: t}
	w.handler(time.Minute, func(conn *net.TCPConn) { _, _ = io.Copy(conn, conn) }) // a busy machine may be silent for long
	const size = 24 << 20
	c := w.client()
	if err := c.conn.SetDeadline(time.Now().Add(60 * time.Second)); err != nil {
		t.Fatal(err)
	}
	sent, got := sha256.New(), sha256.New()
	var all sync.WaitGroup
	all.Go(func() {
		random := rand.NewChaCha8([32]byte{1})
		if _, err := io.CopyN(io.MultiWriter(c.conn, sent), random, size); err != nil {
			t.Error(err)
		}
		_ = c.conn.(*net.TCPConn).CloseWrite()
	})
	if _, err := io.CopyN(got, c.conn, size/3); err != nil {
		t.Fatal(err)
	}
	w.g.Pause() // it is on its way, so that nothing happens to it
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := w.g.Quiet(ctx); err == nil {
		t.Error("it is quiet")
	}
	w.g.Resume(nil)
	n, err := io.Copy(got, c.conn)
	all.Wait()
	if n != size-size/3 || err != nil || string(got.Sum(nil)) != string(sent.Sum(nil)) {
		t.Errorf("%d bytes and %v came back", n+size/3, err)
	}
}
