package proxy

import (
	"bufio"
	"context"
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

// webs is a server of HTTP whose data move: it counts what was asked of it, and where.
type webs struct {
	*testing.T
	g    *Gate
	addr string // of the gate

	mu    sync.Mutex
	done  map[string]int // how often each request has been done
	calls atomic.Int64
	now   *httptest.Server
	let   chan struct{} // lets a request for /slow go on
}

func newWebs(t *testing.T, limits Limits) *webs {
	t.Helper()
	w := &webs{T: t, done: make(map[string]int), let: make(chan struct{})}
	w.now = w.start()
	var err error
	if w.g, err = NewGate(HTTP, w.dial(), limits, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	w.addr = fmt.Sprintf("127.0.0.1:%d", front(t, w.g))
	return w
}

// start starts a server with the data that there are.
func (w *webs) start() *httptest.Server {
	s := httptest.NewUnstartedServer(w)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	w.Cleanup(s.Close)
	return s
}

// serve has another server take the place of the one that there is, which is of HTTP/2 alone.
func (w *webs) serve(h http.Handler, set func(*http.Server)) {
	w.now.Close()
	w.now = httptest.NewUnstartedServer(h)
	w.now.Config.Protocols = onlyHTTP2()
	set(w.now.Config)
	w.now.Start()
	w.Cleanup(w.now.Close)
	w.g.Resume(w.dial())
}

func (w *webs) dial() Dialer {
	addr := w.now.Listener.Addr().String()
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}
}

// ServeHTTP does what a request asks for: it counts it, and answers with all that came.
func (w *webs) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/slow":
		w.calls.Add(1)
		<-w.let
	case "/watch":
		w.calls.Add(1)
		_, _ = io.WriteString(out, "first\n")
		_ = http.NewResponseController(out).Flush()
		<-w.let
		_, _ = io.WriteString(out, "last\n")
		return
	case "/chat":
		conn, in, err := http.NewResponseController(out).Hijack()
		if err != nil {
			w.Error(err)
			return
		}
		defer func() { _ = conn.Close() }()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_, _ = io.Copy(conn, in)
		return
	case "/refused": // as servers of gRPC refuse: all is said with the headers
		out.Header()["Content-Length"] = nil
		out.Header().Set("Content-Type", "application/grpc")
		out.Header().Set("Grpc-Status", "5")
		return
	case "/reset":
		panic(http.ErrAbortHandler)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client's part will tell
	}
	w.mu.Lock()
	w.done[r.URL.RequestURI()]++
	w.mu.Unlock()
	out.Header().Set("Trailer", "Grpc-Status")
	fmt.Fprintf(out, "%s %s %s", r.Method, r.URL.RequestURI(), body)
	out.Header().Set("Grpc-Status", "0")
}

// move has the server go on elsewhere.
func (w *webs) move() {
	w.Helper()
	w.g.Pause()
	w.quiet()
	w.now.Close() // it waits for what the server is doing, which is nothing
	w.now = w.start()
	w.g.Resume(w.dial())
}

func (w *webs) quiet() {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 30*time.Second)
	defer cancel()
	if err := w.g.Quiet(ctx); err != nil {
		w.Fatal(err)
	}
}

func (w *webs) until(what string, ok func() bool) {
	w.Helper()
	(&world{T: w.T, g: w.g}).until(what, ok)
}

// busy pauses, and returns what the gate says that it is not quiet for.
func (w *webs) busy() string {
	w.Helper()
	w.g.Pause()
	return (&world{T: w.T, g: w.g}).named()
}

// client makes one that speaks HTTP/1.1, or HTTP/2 with prior knowledge, with
// connections of its own.
func (w *webs) client(http2 bool) *http.Client {
	t := &http.Transport{Protocols: new(http.Protocols)}
	t.Protocols.SetHTTP1(!http2)
	t.Protocols.SetUnencryptedHTTP2(http2)
	w.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

// ask makes a request that is not made again by anybody, and checks all of its answer.
func (w *webs) ask(c *http.Client, method, uri, body string) error {
	// Its length is not told in advance, so that it comes in chunks.
	r, err := http.NewRequestWithContext(w.Context(), method, "http://"+w.addr+uri, io.MultiReader(strings.NewReader(body)))
	if err != nil {
		return err
	}
	res, err := c.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	got, err := io.ReadAll(res.Body)
	if want := fmt.Sprintf("%s %s %s", method, uri, body); err == nil && string(got) != want {
		err = fmt.Errorf("%s: %q, want %q", res.Status, got, want)
	}
	if status := res.Trailer.Get("Grpc-Status"); err == nil && status != "0" {
		err = fmt.Errorf("the trailer is %q", status)
	}
	return err
}

// Under load, with the server going to and fro, each request is done once and answered
// once: the count on the one side is that on the other.
func testHTTPMoves(t *testing.T, http2 bool) {
	w := newWebs(t, Limits{})
	const clients, moves = 6, 8
	var load sync.WaitGroup
	var asked [clients]int
	over := make(chan struct{})
	shared := w.client(http2)
	for n := range clients {
		c := shared // HTTP/2 has the requests of all on one connection
		if !http2 {
			c = w.client(false)
		}
		load.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				uri := fmt.Sprintf("/%d/%d?a=%%2f", n, asked[n])
				if err := w.ask(c, "POST", uri, strings.Repeat("x", asked[n]*97%5000)); err != nil {
					t.Errorf("%s: %v", uri, err)
					return
				}
				asked[n]++
			}
		})
	}
	total := func() (n int) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.done)
	}
	for range moves {
		before := total()
		w.move()
		w.until("some load between two moves", func() bool { return total() > before+2*clients })
	}
	close(over)
	load.Wait()
	all := 0
	for n, asked := range asked {
		for i := range asked {
			if times := w.done[fmt.Sprintf("/%d/%d?a=%%2f", n, i)]; times != 1 {
				t.Errorf("request %d of client %d was done %d times", i, n, times)
			}
		}
		all += asked
	}
	if len(w.done) != all {
		t.Errorf("%d requests were done, %d answered", len(w.done), all)
	}
	t.Logf("%d requests over %d moves", all, moves)
}

func TestHTTPMoves(t *testing.T)  { testHTTPMoves(t, false) }
func TestHTTP2Moves(t *testing.T) { testHTTPMoves(t, true) }

// A stream that lasts is named; what comes meanwhile on the same connection waits, and is
// refused in the end without harm to the others.
func TestHTTP2Streams(t *testing.T) {
	w := newWebs(t, Limits{Request: time.Minute, Event: 20 * time.Millisecond})
	c := w.client(true)
	res, err := c.Get("http://" + w.addr + "/watch")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	in := bufio.NewReader(res.Body)
	if line, err := in.ReadString('\n'); line != "first\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if busy := w.busy(); busy != "1 requests have no answer yet, the oldest that for /watch" {
		t.Errorf("busy: %q", busy)
	}
	for kind, want := range map[string]string{"text/plain": "503", "application/grpc": "14"} {
		res, err := c.Post("http://"+w.addr+"/1", kind, strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if got := res.Header.Get("Grpc-Status"); got != want && fmt.Sprint(res.StatusCode) != want {
			t.Errorf("%s: %s, %v", kind, res.Status, res.Header)
		}
	}
	w.let <- struct{}{}
	if rest, err := io.ReadAll(in); string(rest) != "last\n" {
		t.Errorf("%q, %v", rest, err)
	}
	w.quiet()
	if len(w.done) > 0 {
		t.Errorf("the server has done %v", w.done)
	}
	w.g.Resume(nil)
	if err := w.ask(c, "PUT", "//2?x=%2F;y", ""); err != nil {
		t.Error(err)
	}
}

// server waits for the gate's connection to the server to be as it should.
func (w *webs) server(what string, ok func(*http.ClientConn) bool) {
	w.Helper()
	w.until(what, func() bool {
		w.g.mu.Lock()
		defer w.g.mu.Unlock()
		for served := range w.g.sessions {
			s := served.(*session)
			s.mu.Lock()
			defer s.mu.Unlock()
			return ok(s.framer.(*streams).server.http)
		}
		return false
	})
}

// A server that takes few requests at a time is asked no more at a time, on one connection.
func TestHTTP2ServerIsFull(t *testing.T) {
	w := newWebs(t, Limits{})
	var connections atomic.Int64
	w.serve(w, func(s *http.Server) {
		s.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 2}
		s.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				connections.Add(1)
			}
		}
	})
	c := w.client(true)
	if err := w.ask(c, "GET", "/first", ""); err != nil { // so that what the server allows is known
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			if err := w.ask(c, "GET", "/slow", ""); err != nil {
				t.Error(err)
			}
		})
	}
	for n := range int64(6) {
		w.until("the next two to be with the server", func() bool { return w.calls.Load() >= min(n+2, 6) })
		if calls := w.calls.Load(); calls > n+2 {
			t.Errorf("%d are with the server, which has done %d", calls, n)
		}
		w.let <- struct{}{}
	}
	all.Wait()
	if n := connections.Load(); n != 1 {
		t.Errorf("there were %d connections", n)
	}
}

// What is held says part of its body, and no more: what was asked for before comes to its end,
// though it shares the connection with that.
func TestHTTP2HeldBodies(t *testing.T) {
	w := newWebs(t, Limits{Request: time.Minute, Event: time.Minute})
	c := w.client(true)
	if err := w.ask(c, "GET", "/first", ""); err != nil {
		t.Fatal(err)
	}
	body, more := io.Pipe()
	answers := make(chan error)
	upload := func(uri string, body io.Reader) {
		res, err := c.Post("http://"+w.addr+uri, "text/plain", body)
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
		}
		answers <- err
	}
	go upload("/begun", body)
	if _, err := more.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	w.g.Pause()
	const held = 8
	for i := range held {
		go upload(fmt.Sprintf("/held/%d", i), strings.NewReader(strings.Repeat("x", 2<<20)))
	}
	w.until("they are held", func() bool { return w.g.held.Load() == held })
	go func() {
		_, err := more.Write(make([]byte, 4<<20))
		_ = more.CloseWithError(err)
	}()
	w.quiet()
	if err := <-answers; err != nil {
		t.Error(err)
	}
	w.g.Resume(nil)
	for range held {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	if len(w.done) != held+2 {
		t.Errorf("the server has done %d requests", len(w.done))
	}
}

// What a client does not read its server cannot say: neither the gate nor the network has room
// for more than a part of it.
func TestHTTP2Unread(t *testing.T) {
	w := newWebs(t, Limits{})
	const answers, takes = 8, 64 << 10
	said := make(chan int, answers)
	w.serve(http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) {
		// By then nothing goes on any more.
		if err := http.NewResponseController(out).SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
			t.Error(err)
		}
		total := 0
		for {
			n, err := out.Write(make([]byte, 16<<10))
			if total += n; err != nil {
				said <- total
				return
			}
		}
	}), func(*http.Server) {})
	c := w.client(true)
	c.Transport.(*http.Transport).HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: takes}
	for range answers {
		res, err := c.Get("http://" + w.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
	}
	for range answers {
		if n := <-said; n > takes+2*streamRoom {
			t.Errorf("%d KiB were said of an answer that nobody reads", n>>10)
		}
	}
}

// A head that is longer than any is not kept.
func TestHTTP2LongHead(t *testing.T) {
	w := newWebs(t, Limits{})
	c := w.client(true)
	ask := func(length int) (refused bool) {
		r, err := http.NewRequest(http.MethodGet, "http://"+w.addr+"/1", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Much", strings.Repeat("x", length))
		res, err := c.Do(r)
		if err != nil {
			return true // by this client, which was told the bound
		}
		_ = res.Body.Close()
		return res.StatusCode == http.StatusRequestHeaderFieldsTooLarge
	}
	if ask(maxHead / 2) {
		t.Error("a head is refused")
	}
	w.g.Pause() // or the server would refuse it
	if !ask(2 * maxHead) {
		t.Error("a long head is not refused")
	}
}

// Past the number that may wait requests are refused at once, on connections that were there
// before; those that wait go on.
func TestHTTP2Full(t *testing.T) {
	w := newWebs(t, Limits{Sessions: 2, Request: time.Minute, Event: time.Minute})
	var clients []*http.Client
	for i := range 3 {
		c := w.client(true)
		if err := w.ask(c, "GET", fmt.Sprintf("/first/%d", i), ""); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	w.g.Pause()
	w.quiet()
	answers := make(chan error)
	for i := range int64(2) {
		go func() { answers <- w.ask(clients[i], "POST", fmt.Sprintf("/held/%d", i), "x") }()
		w.until("it waits", func() bool { return w.g.held.Load() == i+1 })
	}
	for _, c := range clients {
		for kind, want := range map[string]string{"text/plain": "503", "application/grpc": "14"} {
			res, err := c.Post("http://"+w.addr+"/more", kind, strings.NewReader("x"))
			if err != nil {
				t.Fatal(err)
			}
			why, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if got := res.Header.Get("Grpc-Status"); err != nil || got != want && fmt.Sprint(res.StatusCode) != want || !strings.Contains(string(why)+res.Header.Get("Grpc-Message"), "too many") {
				t.Fatalf("%s: %s, %v, %q, %v", kind, res.Status, res.Header, why, err)
			}
		}
	}
	if n := w.g.waiting.Load(); n != 2 {
		t.Errorf("%d wait", n)
	}
	w.g.Resume(nil)
	for range 2 {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	if n := w.done["/held/0"] + w.done["/held/1"]; n != 2 || len(w.done) != 5 {
		t.Errorf("the server has done %v", w.done)
	}
}

// Nor may more wait than a node lets.
func TestGateWhyFull(t *testing.T) {
	g, err := NewGate(HTTP, nil, Limits{Sessions: 2}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := g.whyFull(); err != nil {
		t.Error(err)
	}
	g.crowd = new(crowd)
	g.crowd.bound(3)
	g.crowd.waiting.Add(3)
	if err := g.whyFull(); !errors.Is(err, errNodeFull) {
		t.Error(err)
	}
	g.waits(2)
	if err := g.whyFull(); !errors.Is(err, errFull) {
		t.Error(err)
	}
}

// An answer that has no body by its kind may say how long that of another would be.
func TestHTTP2Bodyless(t *testing.T) {
	w := newWebs(t, Limits{})
	status := http.StatusNotModified
	w.serve(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/1" {
			out.Header().Set("Content-Length", "5")
			out.WriteHeader(status)
		}
	}), func(*http.Server) {})
	c := w.client(true)
	for _, status = range []int{http.StatusNotModified, http.StatusNoContent} {
		res, err := c.Get("http://" + w.addr + "/1")
		if err != nil {
			t.Fatal(status, err)
		}
		_ = res.Body.Close()
		if got := res.Header.Get("Content-Length"); res.StatusCode != status || status == http.StatusNotModified && got != "5" {
			t.Errorf("%d: %s, %v", status, res.Status, res.Header)
		}
	}
}

// What a server ends in good order is heard out, while what comes is for the next one.
func TestHTTP2ServerLeaves(t *testing.T) {
	w := newWebs(t, Limits{})
	c := w.client(true)
	res, err := c.Get("http://" + w.addr + "/watch")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	old := w.now
	w.now = w.start()
	w.g.Resume(w.dial())
	var leaves sync.WaitGroup
	leaves.Go(func() {
		if err := old.Config.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	})
	w.server("the server to say that it leaves", func(s *http.ClientConn) bool { return s.Available() == 0 })
	if err := w.ask(c, "GET", "/1", ""); err != nil {
		t.Error(err)
	}
	w.let <- struct{}{}
	if got, err := io.ReadAll(res.Body); string(got) != "first\nlast\n" {
		t.Errorf("%q, %v", got, err)
	}
	leaves.Wait() // the connection has ended
	w.g.Pause()
	w.quiet()
}

// A request that its client has taken back while it waited is not done.
func TestHTTP2GivenUp(t *testing.T) {
	w := newWebs(t, Limits{})
	w.g.Pause()
	ctx, giveUp := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, "GET", "http://"+w.addr+"/1", nil)
	if err != nil {
		t.Fatal(err)
	}
	c := w.client(true)
	var asked sync.WaitGroup
	asked.Go(func() {
		if res, err := c.Do(r); err == nil {
			t.Errorf("it was answered: %s", res.Status)
		}
	})
	waits := func() bool { s := w.g.Sessions(); return len(s) == 1 && s[0].State == Waiting }
	w.until("the request to wait", waits)
	giveUp()
	asked.Wait()
	w.until("it to be taken back", func() bool { return !waits() })
	w.g.Resume(nil)
	if err := w.ask(c, "GET", "/2", ""); err != nil {
		t.Error(err)
	}
	if w.done["/1"] > 0 {
		t.Error("it was done")
	}
	if n := w.g.held.Load(); n != 1 {
		t.Errorf("%d were held by the pause, want 1", n)
	}
}

// The server may end its connection when it likes: the client's goes on.
func TestHTTP2ServerHangsUp(t *testing.T) {
	w := newWebs(t, Limits{})
	c := w.client(true)
	for i := range 3 {
		if err := w.ask(c, "GET", fmt.Sprintf("/%d", i), ""); err != nil {
			t.Fatal(err)
		}
		w.now.CloseClientConnections()
		w.server("the gate to have heard of it", func(s *http.ClientConn) bool { return s.Err() != nil })
	}
	if s := w.g.Sessions(); len(s) != 1 {
		t.Errorf("sessions: %+v", s)
	}
}

// What waits in a pause is refused in the end, in full and in time.
func TestHTTPRefusal(t *testing.T) {
	w := newWebs(t, Limits{Request: 20 * time.Millisecond})
	w.g.Pause()
	// More than fits into the buffers, so that a reset would meet it on its way.
	r, err := http.NewRequest("POST", "http://"+w.addr+"/", strings.NewReader(strings.Repeat("x", 256<<10)))
	if err != nil {
		t.Fatal(err)
	}
	res, err := w.client(false).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != 503 || res.Header.Get("Retry-After") == "" || !res.Close {
		t.Errorf("%s, %v", res.Status, res.Header)
	}
	if len(w.done) > 0 {
		t.Errorf("the server has done %v", w.done)
	}
}

// raw is a connection on which a test speaks by itself.
func (w *webs) raw() (net.Conn, *bufio.Reader) {
	w.Helper()
	conn, err := net.Dial("tcp", w.addr)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		w.Fatal(err)
	}
	return conn, bufio.NewReader(conn)
}

// A websocket cannot be moved: it is named, goes on during a pause, and can be cut.
func TestHTTPUpgradePins(t *testing.T) {
	w := newWebs(t, Limits{})
	conn, in := w.raw()
	_, _ = io.WriteString(conn, "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	if res, err := http.ReadResponse(in, nil); err != nil || res.StatusCode != 101 {
		t.Fatal(res, err)
	}
	if busy := w.busy(); busy != "the connection has become one for echo" {
		t.Errorf("busy: %q", busy)
	}
	if s := w.g.Sessions(); !s[0].Pinned {
		t.Errorf("sessions: %+v", s)
	}
	_, _ = io.WriteString(conn, "hello\n")
	if line, err := in.ReadString('\n'); line != "hello\n" {
		t.Errorf("the echo is %q, %v", line, err)
	}
	w.g.Cut()
	w.quiet()
	w.g.Resume(nil)
	if _, err := in.ReadByte(); err == nil {
		t.Error("the connection goes on")
	}
}

// What the gate does not understand gets the answer that the server gives it.
func TestHTTPAmbiguousIsTheServersMatter(t *testing.T) {
	w := newWebs(t, Limits{})
	conn, in := w.raw()
	_, _ = io.WriteString(conn, "GET /old HTTP/1.1\nHost: a\n\n")
	res, err := http.ReadResponse(in, nil)
	if err != nil || res.StatusCode != 200 || w.done["/old"] != 1 {
		t.Fatal(res, err, w.done)
	}
	if busy := w.busy(); !strings.Contains(busy, "a line that does not end with CR LF") {
		t.Errorf("busy: %q", busy)
	}
}

// A connection that its server ends is not parked: the client waits for the end.
func TestHTTPConnectionClose(t *testing.T) {
	w := newWebs(t, Limits{})
	for range 3 {
		conn, in := w.raw()
		_, _ = io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n")
		w.g.Pause()
		w.quiet()
		w.g.Resume(nil)
		if _, err := io.ReadAll(in); err != nil {
			t.Errorf("it does not end: %v", err)
		}
	}
	if got := w.done["/"]; got != 3 {
		t.Errorf("the server has done %d", got)
	}
}

func TestProbeHTTP(t *testing.T) {
	w := newWebs(t, Limits{})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := Probe(ctx, HTTP, w.dial()); err != nil {
		t.Error(err)
	}
	starting := httptest.NewUnstartedServer(http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) { out.WriteHeader(503) }))
	starting.Config.DisableGeneralOptionsHandler = true
	starting.Start()
	defer starting.Close()
	w.now = starting
	brief, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := Probe(brief, HTTP, w.dial()); err == nil {
		t.Error("a server that answers 503 is called ready")
	}
}
