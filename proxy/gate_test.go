package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// world is a gate with clients, and a server that speaks as much of Redis as a test
// says.
type world struct {
	*testing.T
	g      *Gate
	port   int
	server *fakeRedis
}

// fakeRedis answers each line it is sent; the answer to "slow" comes when it is let go.
type fakeRedis struct {
	t    testing.TB
	l    net.Listener
	let  chan struct{}
	mu   sync.Mutex
	got  []string
	open map[net.Conn]bool
}

func newFakeRedis(t testing.TB) *fakeRedis {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeRedis{t: t, l: l, let: make(chan struct{}), open: make(map[net.Conn]bool)}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { f.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		f.mu.Lock()
		for conn := range f.open {
			_ = conn.Close()
		}
		f.mu.Unlock()
		all.Wait()
	})
	return f
}

func (f *fakeRedis) serve(conn net.Conn) {
	f.mu.Lock()
	f.open[conn] = true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		_ = conn.Close()
		delete(f.open, conn)
	}()
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		word := lines.Text()
		if strings.HasPrefix(word, "*") || strings.HasPrefix(word, "$") {
			continue
		}
		f.mu.Lock()
		f.got = append(f.got, word)
		f.mu.Unlock()
		if word == "slow" {
			<-f.let
		}
		if _, err := fmt.Fprintf(conn, "+%s\r\n", word); err != nil {
			return
		}
	}
}

func (f *fakeRedis) heard() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.got, ", ")
}

func (f *fakeRedis) clients() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.open)
}

func (f *fakeRedis) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", f.l.Addr().String())
}

func newWorld(t *testing.T, limits Limits) *world {
	t.Helper()
	w := &world{T: t, server: newFakeRedis(t)}
	var err error
	if w.g, err = NewGate(Redis, w.server.dial, limits, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	w.port = front(t, w.g)
	return w
}

// until waits for a condition.
func (w *world) until(what string, ok func() bool) {
	w.Helper()
	limit := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-limit:
			w.Fatalf("waited in vain for %s; sessions: %+v", what, w.g.Sessions())
		case <-time.After(time.Millisecond):
		}
	}
}

func (w *world) quiet() {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 30*time.Second)
	defer cancel()
	if err := w.g.Quiet(ctx); err != nil {
		w.Fatal(err)
	}
}

// named waits until a pause has one session alone in its way, and says what that is busy with.
func (w *world) named() string {
	w.Helper()
	var b *Busy
	w.until("one session alone to be named", func() bool {
		ctx, cancel := context.WithTimeout(w.Context(), time.Millisecond)
		defer cancel()
		return errors.As(w.g.Quiet(ctx), &b) && len(b.Sessions) == 1
	})
	return b.Sessions[0].Busy
}

func (w *world) states() string {
	var out []string
	for _, s := range w.g.Sessions() {
		out = append(out, string(s.State))
	}
	return strings.Join(out, " ")
}

// client is a connection that a test speaks lines on.
type testClient struct {
	w    *world
	conn net.Conn
	in   *bufio.Reader
}

func (w *world) client() *testClient {
	w.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", w.port))
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = conn.Close() })
	return &testClient{w, conn, bufio.NewReader(conn)}
}

func (c *testClient) say(words string) {
	c.w.Helper()
	if _, err := io.WriteString(c.conn, words); err != nil {
		c.w.Fatal(err)
	}
}

func (c *testClient) hear(want string) {
	c.w.Helper()
	if err := c.conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		c.w.Fatal(err)
	}
	line, err := c.in.ReadString('\n')
	if got := strings.TrimSpace(line); got != want || err != nil {
		c.w.Fatalf("heard %q, %v; want %q", got, err, want)
	}
}

func TestPause(t *testing.T) {
	w := newWorld(t, Limits{})
	idle, busy := w.client(), w.client()
	idle.say("PING\r\n")
	idle.hear("+PING")
	busy.say("slow\r\n")
	w.until("a request to be with the server", func() bool { return w.server.heard() == "PING, slow" })

	// What is idle lets go at once; what waits for its answer is named.
	w.g.Pause()
	if busy := w.named(); busy != "1 commands have no reply yet" {
		t.Errorf("quiet: %q", busy)
	}
	idle.say("SET k v\r\n")
	w.until("a request to wait", func() bool { return strings.Contains(w.states(), string(Waiting)) })
	w.server.let <- struct{}{}
	busy.hear("+slow")
	w.quiet()
	w.until("the server to be alone", func() bool { return w.server.clients() == 0 })

	// Elsewhere it goes on, and the old server has heard nothing of it.
	other := newFakeRedis(t)
	w.g.Resume(other.dial)
	idle.hear("+SET k v")
	busy.say("GET k\r\n")
	busy.hear("+GET k")
	if got := w.server.heard(); got != "PING, slow" {
		t.Errorf("the old server heard %s", got)
	}
	if got := other.heard(); got != "SET k v, GET k" {
		t.Errorf("the new server heard %s", got)
	}
	if n := w.g.held.Load(); n != 1 {
		t.Errorf("%d were held by the pause, want 1", n)
	}
}

// A transaction that began is let through to its end during a pause.
func TestPauseWithinTransaction(t *testing.T) {
	w := newWorld(t, Limits{})
	c := w.client()
	c.say("MULTI\r\n")
	c.hear("+MULTI")
	w.g.Pause()
	c.say("INCR k\r\nEXEC\r\nPING\r\n")
	c.hear("+INCR k")
	c.hear("+EXEC")
	w.quiet()
	w.until("what came after it to wait", func() bool { return w.states() == string(Waiting) })
	w.g.Resume(nil)
	c.hear("+PING")
	if n := w.g.held.Load(); n != 1 {
		t.Errorf("%d were held by the pause, want 1", n)
	}
}

func TestWaitsNoLongerThanAllowed(t *testing.T) {
	w := newWorld(t, Limits{Request: 20 * time.Millisecond})
	c := w.client()
	w.g.Pause()
	c.say("SET k v\r\n")
	c.hear("-TRYAGAIN flocker: the server behind this port did not come back in time; try again")
	if _, err := c.in.ReadByte(); err == nil {
		t.Error("the connection goes on, though what follows has no place")
	}
	w.g.Resume(nil)
	w.until("the session to end", func() bool { return len(w.g.Sessions()) == 0 })
	if got := w.server.heard(); got != "" {
		t.Errorf("the server heard %s", got)
	}
}

// What a client asked that has gone since is not done: it may have asked elsewhere.
func TestGoneClientIsNotServed(t *testing.T) {
	w := newWorld(t, Limits{})
	c := w.client()
	w.g.Pause()
	c.say("INCR k\r\n")
	w.until("the request to wait", func() bool { return w.states() == string(Waiting) })
	c.leaves()
	w.g.Resume(nil)
	w.until("the session to end", func() bool { return len(w.g.Sessions()) == 0 })
	if got := w.server.heard(); got != "" {
		t.Errorf("the server heard %s", got)
	}
}

// A server that does not accept yet is tried until it does.
func TestServerComesLate(t *testing.T) {
	w := newWorld(t, Limits{})
	c := w.client()
	w.g.Pause()
	c.say("PING\r\n")
	tries := 0
	w.g.Resume(func(ctx context.Context) (net.Conn, error) {
		if tries++; tries < 5 {
			return nil, errors.New("connection refused")
		}
		return w.server.dial(ctx)
	})
	c.hear("+PING")
}

// A connection that was begun before a pause leads to where the server was.
func TestConnectionFromBeforePauseIsNotUsed(t *testing.T) {
	w := newWorld(t, Limits{})
	dialing, let := make(chan struct{}), make(chan struct{})
	w.g.Resume(func(context.Context) (net.Conn, error) {
		close(dialing)
		<-let
		return w.server.dial(t.Context())
	})
	c := w.client()
	c.say("PING\r\n")
	<-dialing
	w.g.Pause()
	w.quiet()
	other := newFakeRedis(t)
	w.g.Resume(other.dial)
	close(let)
	c.hear("+PING")
	if got := w.server.heard(); got != "" {
		t.Errorf("the old server heard %s", got)
	}
}

// Past the number of those who may wait, nobody new is accepted; nobody is refused.
func TestAcceptsNoMoreThanAllowed(t *testing.T) {
	w := newWorld(t, Limits{Sessions: 3})
	w.g.Pause()
	var clients []*testClient
	for range 8 {
		c := w.client()
		c.say("PING\r\n")
		clients = append(clients, c)
	}
	w.until("three to wait", func() bool { return w.states() == "waiting waiting waiting" || len(w.g.Sessions()) >= 3 })
	w.g.Resume(nil)
	for _, c := range clients {
		c.hear("+PING")
	}
}

// Whoever would not become quiet can be cut off.
func TestCut(t *testing.T) {
	w := newWorld(t, Limits{})
	idle, pinned := w.client(), w.client()
	idle.say("PING\r\n")
	idle.hear("+PING")
	pinned.say("SUBSCRIBE news\r\n")
	pinned.hear("+SUBSCRIBE news")
	w.g.Pause()
	if s := w.g.Sessions(); len(s) != 2 || !s[0].Pinned && !s[1].Pinned {
		t.Errorf("sessions: %+v", s)
	}
	w.g.Cut()
	w.quiet()
	w.g.Resume(nil)
	if _, err := pinned.in.ReadByte(); err == nil {
		t.Error("the pinned session goes on")
	}
	idle.say("PING\r\n")
	idle.hear("+PING")
}

// A refusal comes after the answers that are still due: before them it would be taken
// for one of them.
func TestRefusedInOrder(t *testing.T) {
	w := newWorld(t, Limits{Event: time.Millisecond})
	c := w.client()
	c.say("slow\r\n")
	w.until("a request to be with the server", func() bool { return w.server.heard() == "slow" })
	w.g.Pause()
	c.say("SET k v\r\n")
	w.until("the pause to have been too long for the next", func() bool {
		w.g.mu.Lock()
		defer w.g.mu.Unlock()
		for served := range w.g.sessions {
			s := served.(*session)
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.waits && time.Now().After(s.pause.until)
		}
		return false
	})
	w.server.let <- struct{}{}
	c.hear("+slow")
	c.hear("-TRYAGAIN flocker: the server behind this port did not come back in time; try again")
	if got := w.server.heard(); got != "slow" {
		t.Errorf("the server heard %s", got)
	}
}

// Whoever says all that it will and listens is served.
func TestHalfClosedClientIsServed(t *testing.T) {
	w := newWorld(t, Limits{})
	c := w.client()
	c.say("PING\r\nGET k\r\n")
	if err := c.conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	c.hear("+PING")
	c.hear("+GET k")
}

// A session that is cut off does not go on waiting for a pause to end.
func TestCutWhileWaiting(t *testing.T) {
	w := newWorld(t, Limits{Request: time.Hour, Event: time.Hour})
	c := w.client()
	c.say("slow\r\n")
	w.until("a request to be with the server", func() bool { return w.server.heard() == "slow" })
	w.g.Pause()
	c.say("PING\r\n")
	w.until("the next to wait", func() bool {
		w.g.mu.Lock()
		defer w.g.mu.Unlock()
		for served := range w.g.sessions {
			s := served.(*session)
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.waits
		}
		return false
	})
	w.g.Cut()
	w.until("the session to end", func() bool { return len(w.g.Sessions()) == 0 })
	w.server.let <- struct{}{}
}

// What becomes of a connection that was made before a pause does not matter after it.
func TestSetupWithTheServerFromBeforeAPause(t *testing.T) {
	w := newWorld(t, Limits{})
	c := w.client()
	c.say("SELECT 1\r\n")
	c.hear("+SELECT 1")
	w.g.Pause()
	w.quiet()
	server := func() (Dialer, net.Conn) {
		ours, theirs := net.Pipe()
		_ = ours.SetDeadline(time.Now().Add(30 * time.Second))
		t.Cleanup(func() { _ = ours.Close(); _ = theirs.Close() })
		return func(context.Context) (net.Conn, error) { return theirs, nil }, ours
	}
	old, atOld := server()
	now, atNow := server()
	w.g.Resume(old)
	c.say("GET k\r\n")
	expect := func(conn net.Conn, want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(conn, got); string(got) != want {
			t.Fatalf("the server hears %q, %v", got, err)
		}
	}
	expect(atOld, "*2\r\n$6\r\nSELECT\r\n$1\r\n1\r\n")
	w.g.Pause()
	w.quiet()
	w.g.Resume(now)
	_ = atOld.Close()
	expect(atNow, "*2\r\n$6\r\nSELECT\r\n$1\r\n1\r\n")
	_, _ = io.WriteString(atNow, "+OK\r\n")
	expect(atNow, "GET k\r\n")
	_, _ = io.WriteString(atNow, "+v\r\n")
	c.hear("+v")
}

// A parked session has let go of the connection that it had, and of all that belongs to it.
func TestParkedSessionKeepsNoConnection(t *testing.T) {
	w := newWorld(t, Limits{})
	c := w.client()
	for range 2 {
		c.say("PING\r\n")
		c.hear("+PING")
		w.g.Pause()
		w.quiet()
		w.g.mu.Lock()
		for served := range w.g.sessions {
			s := served.(*session)
			s.mu.Lock()
			if s.backend != nil || s.out != nil {
				t.Errorf("parked, it has %v and %v", s.backend, s.out)
			}
			s.mu.Unlock()
		}
		w.g.mu.Unlock()
		w.g.Resume(nil)
	}
}

// Whoever has to wait is counted once, in each mode: for the end of a pause, for a server that
// refuses, for one that lets nobody through, or for all of these. Who need not is not.
func TestHeldIsCounted(t *testing.T) {
	asks := map[string]func(conn net.Conn){
		"http":  func(conn net.Conn) { _, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n") },
		"redis": func(conn net.Conn) { _, _ = io.WriteString(conn, "PING\r\n") },
		"postgres": func(conn net.Conn) {
			_, _ = conn.Write(pgMessages(nil).add(0, int32(pgVersion3), "user", "u", byte(0)))
		},
		"tcp": func(net.Conn) {},
		"tls": func(conn net.Conn) {
			_ = tls.Client(conn, &tls.Config{ServerName: "x", InsecureSkipVerify: true}).Handshake()
		},
		"http2": func(conn net.Conn) {
			tr := &http.Transport{Protocols: onlyHTTP2(), DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}
			if res, err := tr.RoundTrip(httptest.NewRequest("GET", "http://x/", nil)); err == nil {
				_ = res.Body.Close()
			}
		},
	}
	for name, ask := range asks {
		for _, by := range []string{"nothing", "pause", "refusal", "door", "refusal, then pause", "pause, then refusal"} {
			t.Run(name+"/"+by, func(t *testing.T) {
				t.Parallel()
				var refuses, blocks atomic.Bool
				var dialed atomic.Int64
				dial := func(ctx context.Context) (net.Conn, error) {
					dialed.Add(1)
					if blocks.Load() {
						<-ctx.Done()
						return nil, ctx.Err()
					}
					if refuses.Load() {
						return nil, errors.New("refused")
					}
					ours, theirs := net.Pipe()
					go func() { _, _ = io.Copy(io.Discard, theirs) }()
					t.Cleanup(func() { _ = theirs.Close() })
					return ours, nil
				}
				mode := Mode(name)
				if name == "http2" {
					mode = HTTP
				}
				g, err := NewGate(mode, dial, Limits{Request: time.Hour, Event: time.Hour}, slog.New(slog.DiscardHandler))
				if err != nil {
					t.Fatal(err)
				}
				g.try, g.late = 0, time.Hour // as that of an edge
				if by == "door" {
					g.late = time.Millisecond
				}
				refuses.Store(strings.Contains(by, "refusal"))
				blocks.Store(by == "door")
				if strings.HasPrefix(by, "pause") {
					g.Pause()
				}
				conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", front(t, g)))
				if err != nil {
					t.Fatal(err)
				}
				var asking sync.WaitGroup
				t.Cleanup(func() { _ = conn.Close(); asking.Wait() })
				asking.Go(func() { ask(conn) })
				want := int64(1)
				switch by {
				case "nothing":
					want = 0
					eventually(t, "it is with the server", func() bool { return dialed.Load() == 1 && g.waiting.Load() == 0 })
				default:
					eventually(t, "it is held", func() bool { return g.held.Load() > 0 })
				}
				switch by {
				case "refusal, then pause":
					g.Pause()
					refuses.Store(false)
					eventually(t, "it is back", func() bool { return dialed.Load() > 1 })
					g.Resume(nil)
				case "pause, then refusal":
					g.Resume(nil)
					eventually(t, "it is refused", func() bool { return dialed.Load() > 2 })
				}
				if n := g.held.Load(); n != want {
					t.Errorf("%d are held, want %d", n, want)
				}
			})
		}
	}
}
