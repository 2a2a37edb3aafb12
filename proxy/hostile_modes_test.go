package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// prey is what hostile clients of a mode come to, and what they have to say.
type prey struct {
	name  string
	mode  Mode
	start func(t *testing.T) (addr string) // of a server of which each connection costs little, whatever it is told
	letIn func(conn net.Conn) (net.Conn, error)
	// A client that has been let in says this, hears that, and again.
	say, heard string
	// What a connection begins with, if it is said piece by piece; something is heard then.
	first  string
	huge   map[string]string // beginnings of what goes on for as long as anybody listens
	greedy string            // what is answered with very much, after a client has been let in
	http2  bool              // clients are net/http's
	// Where the protocol is not followed, who has been answered may be taken for idle.
	unfollowed bool
}

const (
	hugeSize = 16 << 20 // that is said of what is huge
	bigSize  = 32 << 20 // of an answer to who is greedy
)

func asItIs(conn net.Conn) (net.Conn, error) { return conn, nil }

// sink serves connections one by one until they or the test end.
func sink(t *testing.T, wrap func(net.Conn) net.Conn, serve func(in *bufio.Reader, out net.Conn) error) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
				defer stop()
				defer func() { _ = conn.Close() }()
				out := wrap(conn)
				_ = serve(bufio.NewReader(out), out) // clients end as they like
			})
		}
	})
	t.Cleanup(func() { cancel(); _ = l.Close(); all.Wait() })
	return l.Addr().String()
}

func echoes(in *bufio.Reader, out net.Conn) error {
	_, err := io.Copy(struct{ io.Writer }{out}, struct{ io.Reader }{in})
	return err
}

// muchTo writes much, and keeps nothing of it.
func muchTo(out io.Writer, block []byte) error {
	for range bigSize / len(block) {
		if _, err := out.Write(block); err != nil {
			return err
		}
	}
	return nil
}

// webSink answers each request when it has heard all of it.
func webSink(t *testing.T) string {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Date"], w.Header()["Content-Type"] = nil, nil
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		if r.URL.Path == "/big" {
			_ = muchTo(w, make([]byte, 16<<10)) // until nobody reads
			return
		}
		_, _ = io.WriteString(w, "done\n")
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// lineSink speaks as much of Redis as is asked here: it answers each line but those that
// tell of lengths.
func lineSink(in *bufio.Reader, out net.Conn) error {
	for begins := true; ; {
		line, err := in.ReadSlice('\n')
		whole := err == nil
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
		first := begins
		begins = whole
		switch word := string(line); {
		case !whole || !first || strings.HasPrefix(word, "*") || strings.HasPrefix(word, "$"):
		case word == "BIG\r\n":
			if _, err := fmt.Fprintf(out, "$%d\r\n", bigSize); err != nil {
				return err
			}
			if err := muchTo(out, make([]byte, 16<<10)); err != nil {
				return err
			}
			if _, err := io.WriteString(out, "\r\n"); err != nil {
				return err
			}
		default:
			if _, err := io.WriteString(out, "+OK\r\n"); err != nil {
				return err
			}
		}
	}
}

// postgresSink lets everybody in, answers each query and what the gate asks, and keeps nothing of what is long.
func postgresSink(answer []byte, in *bufio.Reader, out net.Conn) error {
	message := func(kinds int) (kind byte, body []byte, err error) {
		head := make([]byte, kinds+4)
		if _, err := io.ReadFull(in, head); err != nil {
			return 0, nil, err
		}
		length := int64(head[kinds])<<24 | int64(head[kinds+1])<<16 | int64(head[kinds+2])<<8 | int64(head[kinds+3]) - 4
		if length < 0 {
			return 0, nil, errPostgres
		}
		body = make([]byte, min(length, 1<<10))
		if _, err := io.ReadFull(in, body); err != nil {
			return 0, nil, err
		}
		_, err = io.CopyN(io.Discard, in, length-int64(len(body)))
		return head[0], body, err
	}
	say := func(m pgMessages) error {
		_, err := out.Write(m)
		return err
	}
	if _, _, err := message(0); err != nil {
		return err
	}
	if err := say(pgMessages(nil).add('R', int32(0)).add('S', "server_version", "15").add('K', int32(1), int32(2)).add('Z', byte('I'))); err != nil {
		return err
	}
	asked := false
	for {
		kind, body, err := message(1)
		if err != nil {
			return err
		}
		switch kind {
		case 'P':
			name, _, _ := pgString(body)
			asked = name == pgAskName
		case 'Q':
			if strings.HasPrefix(string(body), "big") {
				if err := muchTo(out, pgMessages(nil).add('D', strings.Repeat("x", 16<<10))); err != nil {
					return err
				}
			}
			err = say(pgMessages(nil).add('C', "DONE").add('Z', byte('I')))
		case 'S':
			m := pgMessages(nil)
			if asked {
				m, asked = append(m, answer...), false
			}
			err = say(m.add('Z', byte('I')))
		case 'X':
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// preyOf lists all modes, with what is hostile in each.
func preyOf(t *testing.T) []prey {
	pgStart := string(pgMessages(nil).add(0, int32(pgVersion3), "user", "someone", byte(0)))
	pgAnswer := pgBytesOf(t, "ParseComplete BindComplete Row:login,someone,none,")
	cert := certificate(t, "server")
	raw := func(conn net.Conn) net.Conn { return conn }
	const http2Start = http2Preface + "\x00\x00\x06\x04\x00\x00\x00\x00\x00" + "\x00\x04\x7f\xff\xff\xff" + // SETTINGS: a window
		"\x00\x00\x04\x08\x00\x00\x00\x00\x00" + "\x7f\xff\x00\x00" // WINDOW_UPDATE
	get := func(path string) string { // GET http://a/path, of stream 1
		fields := "\x82\x86\x01\x01a\x04" + string(byte(len(path))) + path
		return "\x00\x00" + string(byte(len(fields))) + "\x01\x05\x00\x00\x00\x01" + fields
	}
	return []prey{{
		name: "tcp", mode: TCP, unfollowed: true, letIn: asItIs,
		start: func(t *testing.T) string { return sink(t, raw, echoes) },
		say:   "some words\n", heard: "some words\n",
		huge:   map[string]string{"words": "words"},
		greedy: strings.Repeat("words", 10_000),
	}, {
		name: "tls", mode: TLS, unfollowed: true,
		start: func(t *testing.T) string {
			config := &tls.Config{Certificates: []tls.Certificate{cert}}
			return sink(t, func(conn net.Conn) net.Conn { return tls.Server(conn, config) }, echoes)
		},
		letIn: func(conn net.Conn) (net.Conn, error) {
			c := tls.Client(conn, &tls.Config{ServerName: "server", InsecureSkipVerify: true})
			return c, c.Handshake()
		},
		say: "some words\n", heard: "some words\n",
		first: string(hello(t, "server")),
		huge: map[string]string{
			"a record":               "\x16\x03\x01\xff\xff",
			"a hello":                "\x16\x03\x01\x40\x00\x01\xff\xff\xff",
			"a hello of tiny pieces": strings.Repeat("\x16\x03\x01\x00\x01\x01", 1<<14),
		},
		greedy: strings.Repeat("words", 10_000),
	}, {
		name: "http", mode: HTTP, start: webSink, letIn: asItIs,
		say: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody", heard: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ndone\n",
		huge: map[string]string{
			"a target":        "GET /",
			"a field":         "GET / HTTP/1.1\r\nHost: a\r\nX: ",
			"a body":          "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775807\r\n\r\n",
			"a chunk":         "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n7fffffffffffffff\r\n",
			"a chunk's words": "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;",
			"a trailer":       "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
		},
		greedy: "GET /big HTTP/1.1\r\nHost: a\r\n\r\n",
	}, {
		name: "h2c", mode: HTTP, start: webSink, letIn: asItIs, http2: true,
		first: http2Start + get("/"),
		huge: map[string]string{
			"a frame":  http2Start + "\xff\xff\xff\x00\x00\x00\x00\x00\x01",
			"headers":  http2Start + "\x00\x40\x00\x01\x00\x00\x00\x00\x01",
			"the same": http2Start + strings.Repeat("\x00\x00\x08\x06\x00\x00\x00\x00\x00pingpong", 1<<14), // PING
			"settings": http2Start + strings.Repeat("\x00\x00\x00\x04\x00\x00\x00\x00\x00", 1<<14),
		},
		greedy: http2Start + get("/big"),
	}, {
		name: "redis", mode: Redis, letIn: asItIs,
		start: func(t *testing.T) string { return sink(t, raw, lineSink) },
		say:   "PING\r\n", heard: "+OK\r\n",
		huge: map[string]string{
			"a word":        "*1\r\n$9223372036854775807\r\n",
			"a line":        "PING ",
			"a count":       "*2147483647\r\n" + strings.Repeat("$1\r\na\r\n", 1<<14),
			"what is told":  "*2\r\n$4\r\nAUTH\r\n$536870912\r\n",
			"so many lines": strings.Repeat("SELECT 1\r\n", 1<<14),
		},
		greedy: "BIG\r\n",
	}, {
		name: "postgres", mode: Postgres,
		start: func(t *testing.T) string {
			return sink(t, raw, func(in *bufio.Reader, out net.Conn) error { return postgresSink(pgAnswer, in, out) })
		},
		letIn: func(conn net.Conn) (net.Conn, error) {
			_, err := pgLogin(conn, []byte(pgStart), nil)
			return conn, err
		},
		say:   string(pgMessages(nil).add('Q', "words")),
		heard: string(pgMessages(nil).add('C', "DONE").add('Z', byte('I'))),
		first: pgStart,
		huge: map[string]string{
			"a start":    "\x7f\xff\xff\xff\x00\x03\x00\x00",
			"a query":    pgStart + "Q\x3f\xff\xff\xff",
			"a name":     pgStart + "P\x3f\xff\xff\xff",
			"what is no": pgStart + "Q\xff\xff\xff\xff",
			"statements": pgStart + strings.Repeat(string(pgMessages(nil).parse("", "SET a.b = 1")), 1<<12),
		},
		greedy: string(pgMessages(nil).add('Q', "big")),
	}}
}

// A client that does as it likes hurts itself: others are served, what is kept for it is
// bounded, a pause becomes quiet or names it, and can cut it.
func TestHostileClients(t *testing.T) {
	for _, p := range preyOf(t) {
		t.Run(p.name, func(t *testing.T) { testHostile(t, p) })
	}
}

// hostiles are connections of clients that mean no good.
type hostiles struct {
	*testing.T
	addr  string
	mu    sync.Mutex
	names map[string]string // what each does, by its address
	conns []net.Conn
	says  sync.WaitGroup
	said  atomic.Int64
}

func (h *hostiles) dial(does string) net.Conn {
	h.Helper()
	conn, err := net.Dial("tcp", h.addr)
	if err != nil {
		h.Fatal(err)
	}
	_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.names[conn.LocalAddr().String()] = does
	h.conns = append(h.conns, conn)
	return conn
}

func (h *hostiles) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, conn := range h.conns {
		_ = conn.Close()
	}
	h.says.Wait()
}

// attack has clients say something, and nothing more when nobody listens.
func (h *hostiles) attack(clients int, does string, say func(conn net.Conn) error) {
	h.Helper()
	for range clients {
		conn := h.dial(does)
		h.says.Go(func() { _ = say(counted{conn, &h.said}) })
	}
}

// counted counts what is said.
type counted struct {
	net.Conn
	said *atomic.Int64
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.said.Add(int64(n))
	return n, err
}

// civil is a client that is to be served: each call is an exchange on the same connection,
// where that has not been ended.
func (p prey) civil(t *testing.T, addr string) (ask func() error) {
	t.Helper()
	if p.http2 {
		tr := &http.Transport{Protocols: onlyHTTP2()}
		t.Cleanup(tr.CloseIdleConnections)
		client := &http.Client{Transport: tr, Timeout: time.Minute}
		return func() error {
			res, err := client.Post("http://"+addr, "text/plain", strings.NewReader("body"))
			if err != nil {
				return err
			}
			defer func() { _ = res.Body.Close() }()
			if got, err := io.ReadAll(res.Body); err != nil || string(got) != "done\n" {
				return fmt.Errorf("it hears %q, %w", got, err)
			}
			return nil
		}
	}
	var conn net.Conn
	return func() error {
		if conn == nil {
			raw, err := net.Dial("tcp", addr)
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = raw.Close() })
			_ = raw.SetDeadline(time.Now().Add(2 * time.Minute))
			if conn, err = p.letIn(raw); err != nil {
				return err
			}
		}
		return p.exchange(conn)
	}
}

func (p prey) exchange(conn net.Conn) error {
	if _, err := io.WriteString(conn, p.say); err != nil {
		return err
	}
	got := make([]byte, len(p.heard))
	if n, err := io.ReadFull(conn, got); err != nil || string(got) != p.heard {
		return fmt.Errorf("it hears %q instead of %q: %w", got[:n], p.heard, err)
	}
	return nil
}

// cost is what this process keeps in memory.
func cost() int64 {
	var m runtime.MemStats
	for range 3 { // what pools keep is there for two
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

func testHostile(t *testing.T, p prey) {
	server := p.start(t)
	g, err := NewGate(p.mode, func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", server)
	}, patient, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", front(t, g))
	ask := p.civil(t, addr)
	others := func(what string, ask func() error) {
		t.Helper()
		if err := ask(); err != nil {
			t.Fatalf("%s, another client is not served: %v", what, err)
		}
	}
	others("before all", ask)
	before := cost()

	h := &hostiles{T: t, addr: addr, names: make(map[string]string)}
	defer h.close()
	silent, few := 200, 3
	if testing.Short() {
		silent, few = 50, 1
	}
	h.attack(silent, "says nothing", func(net.Conn) error { return nil })
	garbage := make([]byte, 256<<10)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range garbage {
		garbage[i] = byte(random.Uint32())
	}
	h.attack(few, "says garbage", func(conn net.Conn) error {
		_, err := conn.Write(garbage)
		return err
	})
	half := func(say string) func(conn net.Conn) error {
		return func(conn net.Conn) error {
			_, err := io.WriteString(conn, say[:len(say)/2])
			return err
		}
	}
	halfLetIn := func(conn net.Conn) error {
		conn, err := p.letIn(conn)
		if err != nil {
			return err
		}
		return half(p.say)(conn)
	}
	if p.first != "" {
		h.attack(few, "says half of a beginning", half(p.first))
		h.attack(few, "says half of a beginning, and is half closed", func(conn net.Conn) error {
			return errors.Join(half(p.first)(conn), conn.(counted).Conn.(*net.TCPConn).CloseWrite())
		})
	}
	if p.say != "" {
		h.attack(few, "says half a message", halfLetIn)
		h.attack(few, "says half a message, and is half closed", func(conn net.Conn) error {
			return errors.Join(halfLetIn(conn), conn.(counted).Conn.(*net.TCPConn).CloseWrite())
		})
	}
	filler := []byte(strings.Repeat("a", 64<<10))
	for what, begins := range p.huge {
		h.attack(few, "says what is huge: "+what, func(conn net.Conn) error {
			if _, err := io.WriteString(conn, begins); err != nil {
				return err
			}
			for range hugeSize / len(filler) {
				if _, err := conn.Write(filler); err != nil {
					return err
				}
			}
			return nil
		})
	}
	h.attack(few, deaf, func(conn net.Conn) error {
		conn, err := p.letIn(conn)
		times := 1000
		if p.http2 {
			times = 1 // a stream has one request
		}
		for range times {
			if err == nil {
				_, err = io.WriteString(conn, p.greedy)
			}
		}
		return err
	})

	// One byte at a time; between two of them another is served.
	for what, slow := range map[string]string{"a beginning": p.first, "a message": p.say} {
		if slow == "" {
			continue
		}
		conn := h.dial("says " + what + " byte by byte")
		_ = conn.SetDeadline(time.Now().Add(5 * time.Minute))
		if what == "a message" {
			if conn, err = p.letIn(conn); err != nil {
				t.Fatal(err)
			}
		}
		for i := range len(slow) {
			if _, err := conn.Write([]byte{slow[i]}); err != nil {
				t.Fatal(err)
			}
			others("between two bytes", ask)
		}
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			t.Errorf("who says %s byte by byte has no answer: %v", what, err)
		}
	}
	// Until nobody gets any further.
	for had := int64(-1); had != h.said.Load(); {
		had = h.said.Load()
		for range 20 {
			others("beside hostile ones", ask)
		}
		others("beside hostile ones", p.civil(t, addr))
	}
	// Who says nothing has the stacks of some goroutines, here and in this test's server. Of
	// the others each has two chunks on their way, and what is followed of it; net/http
	// keeps up to a MiB of headers and windows. They have said much more.
	most := int64(silent*(64<<10) + (len(h.conns)-silent)<<20)
	var costs int64
	eventually(t, fmt.Sprintf("no more than %d MiB are kept, which is the most for so many", most>>20), func() bool {
		costs = cost() - before // and perhaps what is garbage since
		return costs <= most
	})
	if h.said.Load() <= most && !p.http2 { // where most of it ends the connection at once
		t.Errorf("they have said only %d MiB, which would be no more than is kept if it were all", h.said.Load()>>20)
	}
	t.Logf("%d hostile clients said %d MiB, and cost %d KiB", len(h.conns), h.said.Load()>>20, costs>>10)

	g.Pause()
	var busy *Busy
	named := func() (others []string, deafs int) {
		for _, s := range busy.Sessions {
			switch does := h.names[s.Client]; {
			case does == "":
				others = append(others, s.Client+" "+s.Busy)
			case does == deaf:
				deafs++
			}
		}
		return others, deafs
	}
	eventually(t, "the pause is quiet, or names none but hostile clients", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		busy = new(Busy)
		if err := g.Quiet(ctx); err != nil && !errors.As(err, &busy) {
			t.Fatal(err)
		}
		others, _ := named()
		return len(others) == 0
	})
	if _, deafs := named(); deafs != few && !p.unfollowed {
		t.Errorf("%d of those who do not read are named, not %d", deafs, few)
	}
	why := make(map[string]string)
	for _, s := range busy.Sessions {
		if s.Busy == "" {
			t.Errorf("who %s is named without a reason", h.names[s.Client])
		}
		why[h.names[s.Client]] = s.Busy
	}
	for does, because := range why {
		t.Logf("who %s is named: %s", does, because)
	}
	waits := make(chan error, 1)
	go func() { waits <- p.civil(t, addr)() }()
	g.Cut()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := g.Quiet(ctx); err != nil {
		t.Fatalf("after they were cut off: %v", err)
	}
	g.Resume(nil)
	if err := <-waits; err != nil {
		t.Errorf("who came during the pause is not served: %v", err)
	}
	if !p.unfollowed { // it was quiet, and ended
		others("after the pause", ask)
	}
	h.close()
	eventually(t, "all of them are forgotten", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, s := range g.Sessions() {
			if h.names[s.Client] != "" {
				return false
			}
		}
		return true
	})
}

const deaf = "never reads what it asks for"
