package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// service is what several servers, one after the other, do for one name: they answer with it
// and what they were asked, and count that.
type service struct {
	flood atomic.Int64 // bytes of answers that have no end
	name  string
	mu    sync.Mutex
	did   map[string]int
	now   *httptest.Server
}

func newService(t testing.TB, name string, withTLS bool) *service {
	t.Helper()
	s := &service{name: name, did: make(map[string]int)}
	s.start(t, withTLS)
	return s
}

func (s *service) start(t testing.TB, withTLS bool) {
	t.Helper()
	s.now = httptest.NewUnstartedServer(s)
	s.now.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.now.Config.Protocols = new(http.Protocols)
	s.now.Config.Protocols.SetHTTP1(true)
	s.now.Config.Protocols.SetUnencryptedHTTP2(!withTLS)
	if withTLS {
		s.now.StartTLS()
	} else {
		s.now.Start()
	}
	t.Cleanup(s.now.Close)
}

func (s *service) addr() string { return s.now.Listener.Addr().String() }

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if r.URL.Path == "/turn" {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		defer func() { _ = conn.Close() }()
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_ = rw.Flush()
		_, _ = io.Copy(conn, rw)
		return
	}
	if r.URL.Path == "/flood" { // more than anybody reads
		for err == nil {
			var n int
			n, err = w.Write(make([]byte, 4<<10))
			s.flood.Add(int64(n))
		}
		return
	}
	s.mu.Lock()
	s.did[r.URL.Path+string(body)]++
	s.mu.Unlock()
	_, _ = fmt.Fprintf(w, "%s %s %s%s\n", s.name, r.Host, r.URL.Path, body)
}

func (s *service) times(what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.did[what]
}

// placed is a route with where it leads.
type placed struct {
	Route
	owner  int
	epoch  uint64
	server string
}

// place tells all nodes who owns which routes.
func (c *cluster) place(all ...placed) {
	c.t.Helper()
	for i, m := range c.nodes {
		conf := Config{Node: m.name}
		for _, other := range c.nodes {
			conf.Members = append(conf.Members, other.name)
		}
		for _, p := range all {
			r := p.Route
			r.Owner, r.OwnerAddr, r.Epoch = c.nodes[p.owner].name, c.nodes[p.owner].addr, p.epoch
			if i == p.owner {
				r.Server = p.server
			}
			conf.Routes = append(conf.Routes, r)
		}
		if err := m.Apply(c.t.Context(), conf); err != nil {
			c.t.Fatal(err)
		}
	}
}

// keeps is a client with one connection, which it keeps.
type keeps struct {
	testing.TB
	conn net.Conn
	in   *bufio.Reader
}

func connectTo(t testing.TB, addr string) *keeps {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return &keeps{t, conn, bufio.NewReader(conn)}
}

// say says something, in which " | " stands for the end of a line.
func (k *keeps) say(text string) {
	k.Helper()
	if _, err := io.WriteString(k.conn, strings.ReplaceAll(text, " | ", "\r\n")); err != nil {
		k.Errorf("saying %q: %v", text, err)
	}
}

// hear is the next answer: its status and what it says.
func (k *keeps) hear() string {
	k.Helper()
	res, err := http.ReadResponse(k.in, nil)
	if err != nil {
		return "no answer: " + err.Error()
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return "half an answer: " + err.Error()
	}
	return strings.TrimSpace(fmt.Sprintf("%d %s", res.StatusCode, body))
}

func (k *keeps) expect(want string) {
	k.Helper()
	if got := k.hear(); !strings.HasPrefix(got, want) {
		k.Errorf("got %q, want %q", got, want)
	}
}

// over says that the connection has ended, in good order.
func (k *keeps) over() {
	k.Helper()
	if rest, err := io.ReadAll(k.in); err != nil || len(rest) > 0 {
		k.Errorf("at the end there is %q, %v", rest, err)
	}
}

// web is a cluster with services on one port: a and b by name, wild for *.example.org.
type web struct {
	*cluster
	a, b, wild *service
	routes     []placed
}

func newWeb(t testing.TB, nodes int, limits Limits) *web {
	w := &web{cluster: newCluster(t, nodes), a: newService(t, "A", false), b: newService(t, "B", false), wild: newService(t, "W", false)}
	port := freePort(t)
	for i, s := range []*service{w.a, w.b, w.wild} {
		hosts := [][]string{{"a.example.org", "a2.example.org"}, {"b.example.org"}, {"*.example.org"}}[i]
		w.routes = append(w.routes, placed{Route{ID: strings.ToLower(s.name), Listen: port, Mode: HTTP, Hosts: hosts, Limits: limits}, 0, 1, s.addr()})
	}
	w.place(w.routes...)
	return w
}

// pause pauses a route of the first node, until all edges know of it.
func (w *web) pause(route string) {
	w.t.Helper()
	limit, done := context.WithTimeout(w.t.Context(), time.Minute)
	defer done()
	if err := w.nodes[0].Pause(limit, route, 0); err != nil {
		w.t.Fatal(err)
	}
	if err := w.nodes[0].Quiet(limit, route); err != nil {
		w.t.Fatal(err)
	}
}

func (w *web) client(node int) *keeps { return connectTo(w.t, w.addrOf(node, w.routes[0].Route)) }

// One connection asks for names of several routes, in every form, and each request is done by
// the server of its own.
func TestSharedHTTP(t *testing.T) {
	w := newWeb(t, 2, Limits{})
	for node := range w.nodes {
		k := w.client(node)
		for range 3 {
			k.say("GET /1 HTTP/1.1 | Host: a.example.org |  | ")
			k.expect("200 A a.example.org /1")
			k.say("POST /2 HTTP/1.1 | Host: B.example.org.:8080 | Content-Length: 5 |  | GET /")
			k.expect("200 B B.example.org.:8080 /2GET /")
			k.say("POST /3 HTTP/1.1 | Host: a2.example.org | Transfer-Encoding: chunked |  | 3 | GET | 0 | X: y |  | ")
			k.expect("200 A a2.example.org /3GET")
			k.say("GET http://a.example.org/4 HTTP/1.1 | Host: b.example.org |  | ")
			k.expect("200 A a.example.org /4")
			k.say("GET /5 HTTP/1.1 | Host: c.example.org |  | ")
			k.expect("200 W c.example.org /5")
		}
		// Byte by byte, and all at once: requests wait for the answers that are due before.
		const all = "POST /6 HTTP/1.1 | Host: a.example.org | Content-Length: 3 |  | abcGET /7 HTTP/1.1 | Host: b.example.org |  | " +
			"GET /8 HTTP/1.1 | Host: b.example.org |  | GET /9 HTTP/1.1 | Host: a.example.org |  | GET /10 HTTP/1.1 | Host: x.example.org |  | "
		want := []string{"A a.example.org /6abc", "B b.example.org /7", "B b.example.org /8", "A a.example.org /9", "W x.example.org /10"}
		k.say(all)
		for _, s := range want {
			k.expect("200 " + s)
		}
		for _, c := range []byte(strings.ReplaceAll(all, " | ", "\r\n")) {
			k.say(string(c))
		}
		for _, s := range want {
			k.expect("200 " + s)
		}
		// More than buffers hold, and the end of what the client says.
		big := strings.Repeat("x", 300_000)
		k.say(fmt.Sprintf("POST /11 HTTP/1.1 | Host: b.example.org | Content-Length: %d |  | %sGET /12 HTTP/1.1 | Host: a.example.org |  | ", len(big), big))
		if err := k.conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		k.expect("200 B b.example.org /11xxx")
		k.expect("200 A a.example.org /12")
		k.over()
	}
	for _, id := range []string{"a", "b", "w"} {
		for node := range w.nodes {
			eventually(t, "no session is left", func() bool {
				s := w.status(node, id)
				return s.Sessions == 0 && s.Open == 0
			})
		}
	}
}

// Who wants a name that nobody has, or does not say clearly whom he wants, is told so, after
// the answers that are due, and reaches no server.
func TestSharedHTTPRefuses(t *testing.T) {
	w := newWeb(t, 1, Limits{})
	const first, next = "POST /ok HTTP/1.1 | Host: a.example.org | Content-Length: 1 |  | x", "GET /no HTTP/1.1 | Host: a.example.org |  | "
	for bad, want := range map[string]string{
		"GET /no HTTP/1.1 | Host: other.org |  | ":                                                       "421",
		"GET /no HTTP/1.1 | Host: 10.0.0.1 |  | ":                                                        "421",
		"GET /no HTTP/1.1 | Host: x.a.example.org |  | ":                                                 "421",
		"GET /no HTTP/1.0 |  | ":                                                                         "421",
		"GET /no HTTP/1.1 |  | ":                                                                         "400",
		"GET /no HTTP/1.1 | Host: a.example.org | Host: b.example.org |  | ":                             "400",
		"GET http://me@a.example.org/no HTTP/1.1 | Host: a.example.org |  | ":                            "400",
		"POST /no HTTP/1.1 | Host: a.example.org | Content-Length: 1 | Transfer-Encoding: chunked |  | ": "400",
		"POST /no HTTP/1.1 | Host: a.example.org | Content-Length: 1 | Content-Length: 2 |  | ":          "400",
		"GET /no HTTP/1.1\nHost: a.example.org |  | ":                                                    "400",
		"GET /no HTTP/2.0 | Host: a.example.org |  | ":                                                   "400",
		"GET /" + strings.Repeat("x", 40_000) + " HTTP/1.1 | Host: a.example.org |  | ":                  "400",
	} {
		what := bad[:min(len(bad), 70)]
		k := w.client(0)
		k.say(bad + next)
		if got := k.hear(); !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %q, want %s", what, got, want)
		}
		k.over()
		k = w.client(0)
		k.say(first + bad + next)
		if got := k.hear(); got != "200 A a.example.org /okx" {
			t.Errorf("before %s: got %q", what, got)
		}
		if got := k.hear(); !strings.HasPrefix(got, want) {
			t.Errorf("%s, as the second: got %q, want %s", what, got, want)
		}
		k.over()
	}
	// Of what is half with a server already nobody can be told anything.
	k := w.client(0)
	k.say("POST /no HTTP/1.1 | Host: a.example.org | Transfer-Encoding: chunked |  | 2 | xx | zz | " + next)
	if rest, err := io.ReadAll(k.in); bytes.Contains(rest, []byte("200")) {
		t.Errorf("after a body that is not understood: %q, %v", rest, err)
	}
	for _, s := range []*service{w.a, w.b, w.wild} {
		if n := s.times("/no"); n > 0 {
			t.Errorf("%s has done %d requests of those that are refused", s.name, n)
		}
	}
	// A route without names is for all others.
	rest := newService(t, "R", false)
	w.place(append(slices.Clone(w.routes), placed{Route{ID: "r", Listen: w.routes[0].Listen, Mode: HTTP}, 0, 1, rest.addr()})...)
	k = w.client(0)
	k.say("GET /1 HTTP/1.1 | Host: other.org |  | GET /2 HTTP/1.1 | Host: a.example.org |  | GET /3 HTTP/1.0 |  | ")
	k.expect("200 R other.org /1")
	k.expect("200 A a.example.org /2")
	k.expect("200 R  /3")
	k.over()
}

// A connection that has become something else belongs to its route for good.
func TestSharedHTTPUpgrade(t *testing.T) {
	w := newWeb(t, 1, Limits{})
	const turn, other = "GET /turn HTTP/1.1 | Host: a.example.org | Connection: Upgrade | Upgrade: echo |  | ", "GET / HTTP/1.1\r\nHost: b.example.org\r\n\r\n"
	for _, early := range []bool{false, true} {
		k := w.client(0)
		k.say("GET /1 HTTP/1.1 | Host: b.example.org |  | ")
		k.expect("200 B")
		if early { // before its change of protocol is answered
			k.say(turn + other)
		} else {
			k.say(turn)
		}
		res, err := http.ReadResponse(k.in, nil)
		if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("got %v, %v", res, err)
		}
		if !early {
			k.say(other)
		}
		got := make([]byte, len(other))
		if _, err := io.ReadFull(k.in, got); err != nil || string(got) != other {
			t.Errorf("the server of the first says back %q, %v", got, err)
		}
		if s := w.status(0, "a"); len(s.Pinned) != 1 {
			t.Errorf("pinned: %+v", s.Pinned)
		}
		_ = k.conn.Close()
		eventually(t, "it is gone", func() bool { return w.status(0, "a").Sessions == 0 })
	}
	if n := w.b.times("/"); n > 0 {
		t.Errorf("another route's server has done %d requests", n)
	}
	// A server that stays with HTTP is followed on.
	k := w.client(0)
	k.say(strings.Replace(turn, "/turn", "/stay", 1))
	k.expect("200 A a.example.org /stay")
	k.say("GET /1 HTTP/1.1 | Host: b.example.org |  | ")
	k.expect("200 B")
}

// What a server says that nobody asked for does not reach a client as the answer of another.
func TestSharedHTTPUnasked(t *testing.T) {
	w := newWeb(t, 1, Limits{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	w.routes[0].server = l.Addr().String()
	w.place(w.routes...)
	k := w.client(0)
	k.say("GET /1 HTTP/1.1 | Host: a.example.org |  | ")
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	if _, err := http.ReadRequest(bufio.NewReader(server)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(server, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"); err != nil {
		t.Fatal(err)
	}
	k.expect("200 ok")
	k.say("GET /2 HTTP/1.1 | Host: b.example.org |  | ")
	rest, err := io.ReadAll(k.in)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) || bytes.Contains(rest, []byte("B b.example.org")) {
		t.Errorf("after words that nobody asked for: %q, %v", rest, err)
	}
	if n := w.b.times("/2"); n > 0 {
		t.Errorf("the other server has done it %d times", n)
	}
}

// Past the number that may wait for one route its clients are refused at once, and nobody
// else is kept out.
func TestSharedHTTPFull(t *testing.T) {
	w := newWeb(t, 1, Limits{Sessions: 2})
	w.pause("a")
	var held []*keeps
	for i := range 2 {
		k := w.client(0)
		k.say("GET /held HTTP/1.1 | Host: a.example.org |  | ")
		held = append(held, k)
		eventually(t, "it waits", func() bool { return w.status(0, "a").Held == i+1 })
	}
	k := w.client(0)
	k.say("GET /1 HTTP/1.1 | Host: b.example.org |  | GET /2 HTTP/1.1 | Host: a.example.org |  | ")
	k.expect("200 B")
	k.expect("503")
	k.over()
	if err := w.nodes[0].Resume(t.Context(), "a", ""); err != nil {
		t.Fatal(err)
	}
	for _, k := range held {
		k.expect("200 A")
	}
}

// A head that does not come to its end is not waited for; nor is one that is silent thrown out.
func TestSharedHTTPSlowHead(t *testing.T) {
	w := newWeb(t, 1, Limits{Request: time.Second}) // which is also the time to connect
	silent, kept := w.client(0), w.client(0)
	kept.say("GET /1 HTTP/1.1 | Host: a.example.org |  | ")
	kept.expect("200 A")
	slow, half := w.client(0), w.client(0)
	slow.say("GET / HTTP/1.1 | Host:")
	half.say("GET /1 HTTP/1.1 | Host: b.example.org |  | PO")
	half.expect("200 B")
	for _, k := range []*keeps{slow, half} {
		k.expect("408")
		k.over()
	}
	for _, k := range []*keeps{silent, kept} {
		k.say("GET /1 HTTP/1.1 | Host: b.example.org |  | ")
		k.expect("200 B")
	}
}

// holding is a server that answers when it is told to.
func holding(t testing.TB) (addr string, accept func() *keeps) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String(), func() *keeps {
		t.Helper()
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return &keeps{t, conn, bufio.NewReader(conn)}
	}
}

// A head that does not come to its end takes no answers away that are due before it is told.
func TestSharedHTTPSlowHeadWaitsForAnswers(t *testing.T) {
	w := newWeb(t, 1, Limits{Request: 2 * time.Second}) // which is also the time to connect
	addr, accept := holding(t)
	w.routes[0].server = addr
	w.place(w.routes...)
	k := w.client(0)
	k.say("GET /1 HTTP/1.1 | Host: a.example.org |  | GET /2")
	server := accept()
	if _, err := http.ReadRequest(server.in); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the head's time is over", func() bool {
		g := w.nodes[0].edgeOf("a").gate
		g.mu.Lock()
		defer g.mu.Unlock()
		for s := range g.sessions {
			s := s.(*session)
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.leaving
		}
		t.Fatal("its session has ended")
		return false
	})
	server.say("HTTP/1.1 200 OK | Content-Length: 2 |  | ok")
	k.expect("200 ok")
	k.expect("408")
	k.over()
}

func (n *Node) edgeOf(route string) *serving {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.edges[route]
}

// Who waits for an answer before a request for another route, and is reset, holds nothing of
// the server.
func TestSharedHTTPResetClient(t *testing.T) {
	w := newWeb(t, 1, Limits{})
	addr, accept := holding(t)
	w.routes[0].server = addr
	w.place(w.routes...)
	k := w.client(0)
	k.say("GET /1 HTTP/1.1 | Host: a.example.org |  | GET /2 HTTP/1.1 | Host: b.example.org |  | ")
	server := accept()
	if _, err := http.ReadRequest(server.in); err != nil {
		t.Fatal(err)
	}
	if err := k.conn.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	_ = k.conn.Close()
	eventually(t, "no session is left", func() bool {
		s := w.status(0, "a")
		return s.Sessions == 0 && s.Open == 0
	})
	if n := w.b.times("/2"); n > 0 {
		t.Errorf("what came behind was done %d times", n)
	}
}

// While one of the services on a port moves from node to node, the requests for the other go
// on, on the same connections, and each one is done once by the server that it is for.
func TestSharedHTTPMoves(t *testing.T) {
	moves := 10
	if testing.Short() {
		moves = 4
	}
	w := newWeb(t, 2, Limits{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var clients sync.WaitGroup
	var others atomic.Int64 // requests for b alone that were answered
	asked := make([][]string, 12)
	for i := range asked {
		k := w.client(i % 2)
		clients.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				id := fmt.Sprintf("%d-%d", i, n)
				host, want := "b.example.org", "200 B b.example.org /"+id
				if i >= 4 && n%2 == 0 { // eight ask for both in turn
					host, want = "a.example.org", "200 A a.example.org /"+id
				}
				asked[i] = append(asked[i], want)
				k.say(fmt.Sprintf("POST / HTTP/1.1 | Host: %s | Content-Length: %d |  | %s", host, len(id), id))
				if got := k.hear(); got != want {
					t.Errorf("got %q, want %q", got, want)
					return
				}
				if i < 4 {
					others.Add(1)
				}
			}
		})
	}
	more := func(what string) { // b goes on
		t.Helper()
		now := others.Load()
		eventually(t, what, func() bool { return others.Load() > now+20 })
	}
	a := &w.routes[0]
	for range moves {
		more("there is load")
		limit, done := context.WithTimeout(t.Context(), time.Minute)
		if err := w.nodes[a.owner].Pause(limit, "a", 0); err != nil {
			t.Fatal(err)
		}
		if err := w.nodes[a.owner].Quiet(limit, "a"); err != nil {
			t.Fatal(err)
		}
		done()
		if s := w.status(a.owner, "a"); s.Open != 0 {
			t.Errorf("%d connections to a server that is to move", s.Open)
		}
		eventually(t, "its clients wait", func() bool { return w.status(0, "a").Held+w.status(1, "a").Held == 8 })
		more("the other's requests go on in the pause")
		w.a.now.Close()
		w.a.start(t, false)
		a.owner, a.epoch, a.server = 1-a.owner, a.epoch+1, w.a.addr()
		w.place(w.routes...)
	}
	more("there is load at the end")
	cancel()
	clients.Wait()
	total := 0
	for _, wants := range asked {
		for _, want := range wants {
			total++
			s, other := w.a, w.b
			if strings.Contains(want, " B ") {
				s, other = w.b, w.a
			}
			id := want[strings.LastIndex(want, "/"):]
			if s.times(id) != 1 || other.times(id) != 0 {
				t.Errorf("%s was done %d times by its server, and %d times by the other", id, s.times(id), other.times(id))
			}
		}
	}
	t.Logf("%d requests, %d moves", total, moves)
}

// client2 is a client of HTTP/2, and how many connections it has made.
func (w *web) client2(node int) (tr *http.Transport, ask func(host, body string) string, dials *atomic.Int64) {
	tr, dials = &http.Transport{Protocols: onlyHTTP2(), MaxConnsPerHost: 1}, new(atomic.Int64)
	w.t.Cleanup(tr.CloseIdleConnections)
	tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		dials.Add(1)
		return new(net.Dialer).DialContext(ctx, "tcp", w.addrOf(node, w.routes[0].Route))
	}
	ask = func(host, body string) string {
		req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, "http://shared/", strings.NewReader(body))
		if err != nil {
			return err.Error()
		}
		req.Host = host
		res, err := tr.RoundTrip(req)
		if err != nil {
			return err.Error()
		}
		defer func() { _ = res.Body.Close() }()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			return err.Error()
		}
		return strings.TrimSpace(fmt.Sprintf("%d %s", res.StatusCode, text))
	}
	return tr, ask, dials
}

// The same with HTTP/2: streams of one connection are for different routes.
func TestSharedHTTP2(t *testing.T) {
	w := newWeb(t, 2, Limits{})
	for node := range w.nodes {
		tr, ask, _ := w.client2(node)
		for _, q := range []struct{ host, want string }{
			{"a.example.org", "200 A a.example.org /x"}, {"B.example.org:80", "200 B B.example.org:80 /x"}, {"c.example.org", "200 W c.example.org /x"},
			{"other.org", "421 flocker"}, {"a2.example.org.", "200 A a2.example.org. /x"},
		} {
			if got := ask(q.host, "x"); !strings.HasPrefix(got, q.want) {
				t.Errorf("node %d, %s: got %q, want %q", node, q.host, got, q.want)
			}
		}
		// A request for what is paused waits; others on the connection do not.
		w.pause("a")
		held := make(chan string, 1)
		id := fmt.Sprintf("held-%d", node)
		go func() { held <- ask("a.example.org", id) }()
		eventually(t, "it waits", func() bool { return w.status(node, "a").Held == 1 })
		if got := ask("b.example.org", "y"); got != "200 B b.example.org /y" {
			t.Errorf("beside one that waits: %q", got)
		}
		if n := w.a.times("/" + id); n != 0 {
			t.Errorf("it was done %d times in the pause", n)
		}
		if err := w.nodes[0].Resume(t.Context(), "a", ""); err != nil {
			t.Fatal(err)
		}
		if got := <-held; got != "200 A a.example.org /"+id {
			t.Errorf("after the pause: %q", got)
		}
		if n := w.a.times("/" + id); n != 1 {
			t.Errorf("it was done %d times", n)
		}
		if s := w.status(node, "a"); s.Sessions != 1 {
			t.Errorf("%d sessions of one connection", s.Sessions)
		}
		tr.CloseIdleConnections()
		eventually(t, "no session is left", func() bool {
			return w.status(node, "a").Sessions+w.status(node, "b").Sessions+w.status(node, "w").Sessions == 0
		})
	}
}

// Who is cut off and does not read holds nothing up: the request ends, and the connection goes
// on, also for the others of the same session.
func TestSharedHTTP2CutUnread(t *testing.T) {
	w := newWeb(t, 2, Limits{})
	for node := range w.nodes {
		tr, ask, dials := w.client2(node)
		const takes = 64 << 10
		tr.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: takes}
		w.a.flood.Store(0)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://shared/flood", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "a.example.org"
		res, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "more is said than the client takes, and the gate keeps it", func() bool { return w.a.flood.Load() >= takes+streamRoom-16<<10 })
		if err := w.nodes[0].Pause(t.Context(), "a", 0); err != nil {
			t.Fatal(err)
		}
		w.nodes[node].mu.Lock()
		g := w.nodes[node].edges["a"].gate
		w.nodes[node].mu.Unlock()
		asks := func(what string, ok func(s *session, m *streams) bool) {
			eventually(t, what, func() bool {
				g.mu.Lock()
				defer g.mu.Unlock()
				for served := range g.sessions {
					s := served.(*session)
					s.mu.Lock()
					defer s.mu.Unlock()
					return ok(s, s.framer.(*streams))
				}
				return false
			})
		}
		asks("the node knows of the pause", func(s *session, _ *streams) bool { return s.pause != nil })
		held := make(chan string, 1)
		id := fmt.Sprintf("held-%d", node)
		go func() { held <- ask("a.example.org", id) }()
		asks("another request waits", func(_ *session, m *streams) bool { return m.waiting == 1 })
		if err := w.nodes[0].Cut(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		asks("only what waits is left", func(_ *session, m *streams) bool { return len(m.running) == 0 && m.waiting == 1 })
		if err := w.nodes[0].Quiet(t.Context(), "a"); err != nil {
			t.Error(err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err == nil {
			t.Error("it is told that this was all")
		}
		_ = res.Body.Close()
		if got := ask("b.example.org", "y"); got != "200 B b.example.org /y" || dials.Load() != 1 {
			t.Errorf("after the cut: %q, with %d connections", got, dials.Load())
		}
		if err := w.nodes[0].Resume(t.Context(), "a", ""); err != nil {
			t.Fatal(err)
		}
		if got := ask("a.example.org", "z"); got != "200 A a.example.org /z" {
			t.Errorf("after the cut: %q", got)
		}
		if got := <-held; got != "200 A a.example.org /"+id || w.a.times("/"+id) != 1 {
			t.Errorf("what waited beside it: %q, done %d times", got, w.a.times("/"+id))
		}
		tr.CloseIdleConnections()
	}
}

// askTLS asks the server of a name, and returns what it answers, or what is wrong.
func askTLS(ctx context.Context, t testing.TB, addr, name string) string {
	d := tls.Dialer{Config: &tls.Config{ServerName: name, InsecureSkipVerify: true}}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = conn.Close() }()
	k := &keeps{t, conn, bufio.NewReader(conn)}
	k.say("GET /x HTTP/1.1 | Host: x | Connection: close |  | ")
	return k.hear()
}

// With TLS it is the name of the connection that tells routes apart. One of them pauses and
// moves; the other goes on.
func TestSharedTLS(t *testing.T) {
	c := newCluster(t, 2)
	a, b := newService(t, "A", true), newService(t, "B", true)
	port := freePort(t)
	routes := []placed{
		{Route{ID: "a", Listen: port, Mode: TLS, Hosts: []string{"a.example.org"}}, 0, 1, a.addr()},
		{Route{ID: "b", Listen: port, Mode: TLS, Hosts: []string{"*.example.org"}}, 0, 1, b.addr()},
	}
	c.place(routes...)
	addrs := []string{c.addrOf(0, routes[0].Route), c.addrOf(1, routes[0].Route)}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ask := func(node int, name string) string { return askTLS(ctx, t, addrs[node], name) }
	for node := range c.nodes {
		for name, want := range map[string]string{
			"a.example.org": "200 A", "A.EXAMPLE.org": "200 A", "b.example.org": "200 B", "other.org": "unrecognized name", "": "unrecognized name", "x.a.example.org": "unrecognized name",
		} {
			if got := ask(node, name); !strings.Contains(got, want) {
				t.Errorf("node %d, %q: got %q, want %q", node, name, got, want)
			}
		}
		plain := connectTo(t, c.addrOf(node, routes[0].Route))
		plain.say("GET / HTTP/1.1 | Host: a.example.org |  | ")
		if rest, err := io.ReadAll(plain.in); len(rest) > 0 {
			t.Errorf("what is not TLS is told %q, %v", rest, err)
		}
	}

	if err := c.nodes[0].Pause(t.Context(), "a", 0); err != nil {
		t.Fatal(err)
	}
	limit, done := context.WithTimeout(t.Context(), time.Minute)
	if err := c.nodes[0].Quiet(limit, "a"); err != nil {
		t.Fatal(err)
	}
	done()
	held := make(chan string, 2)
	for node := range c.nodes {
		go func() { held <- ask(node, "a.example.org") }()
	}
	eventually(t, "who comes waits", func() bool { return c.status(0, "a").Held+c.status(1, "a").Held == 2 })
	for node := range c.nodes {
		if got := ask(node, "b.example.org"); !strings.HasPrefix(got, "200 B") {
			t.Errorf("meanwhile: %q", got)
		}
	}
	before := a.times("/x")
	a.now.Close()
	a.start(t, true)
	routes[0].owner, routes[0].epoch, routes[0].server = 1, 2, a.addr()
	c.place(routes...)
	for range c.nodes {
		if got := <-held; !strings.HasPrefix(got, "200 A") {
			t.Errorf("after the move: %q", got)
		}
	}
	if n := a.times("/x") - before; n != 2 {
		t.Errorf("two requests were done %d times", n)
	}

	// A route without names is for all others, also for what is not understood.
	rest := newService(t, "R", true)
	c.place(append(slices.Clone(routes), placed{Route{ID: "r", Listen: port, Mode: TLS}, 0, 1, rest.addr()})...)
	for name, want := range map[string]string{"a.example.org": "200 A", "other.org": "200 R", "": "200 R"} {
		if got := ask(1, name); !strings.HasPrefix(got, want) {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
	plain := connectTo(t, c.addrOf(0, routes[0].Route))
	plain.say("GET / HTTP/1.0 |  | ")
	plain.expect("400")
}

// A port comes to be shared, and is not any more, while clients are connected and come: nobody
// is refused or cut off.
func TestSharedChanges(t *testing.T) {
	w := newWeb(t, 1, Limits{})
	rest := newService(t, "R", false)
	alone := placed{Route{ID: "r", Listen: freePort(t), Mode: HTTP}, 0, 1, rest.addr()}
	for i := range w.routes { // to a port that was never shared
		w.routes[i].Listen = alone.Listen
	}
	w.place(alone)
	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	var came atomic.Int64
	addr := w.addrOf(0, alone.Route)
	clients.Go(func() { // new ones all the time
		for ctx.Err() == nil {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			k := &keeps{t, conn, bufio.NewReader(conn)}
			k.say("GET /new HTTP/1.1 | Host: other.org |  | ")
			k.expect("200 R")
			_ = conn.Close()
			came.Add(1)
		}
	})
	before := w.client(0)
	before.say("GET /1 HTTP/1.1 | Host: other.org |  | ")
	before.expect("200 R")
	var between []*keeps
	for range 3 {
		w.place(append(slices.Clone(w.routes), alone)...)
		now := came.Load()
		eventually(t, "clients come", func() bool { return came.Load() > now+5 })
		k := w.client(0)
		k.say("GET /1 HTTP/1.1 | Host: a.example.org |  | GET /2 HTTP/1.1 | Host: other.org |  | ")
		k.expect("200 A")
		k.expect("200 R")
		between = append(between, k)

		// Names go from one route to another: who is connected goes there.
		swapped := slices.Clone(w.routes)
		swapped[0].Hosts, swapped[1].Hosts = swapped[1].Hosts, swapped[0].Hosts
		w.place(append(swapped, alone)...)
		k.say("GET /3 HTTP/1.1 | Host: a.example.org |  | ")
		k.expect("200 B")

		w.place(alone)
		now = came.Load()
		eventually(t, "clients come", func() bool { return came.Load() > now+5 })
		before.say("GET /4 HTTP/1.1 | Host: other.org |  | ")
		before.expect("200 R")
	}
	for _, k := range between { // they were last served by a route that is no more
		k.over()
	}
	cancel()
	clients.Wait()
	w.nodes[0].mu.Lock()
	defer w.nodes[0].mu.Unlock()
	if len(w.nodes[0].ports) > 0 {
		t.Errorf("%d shared ports are left", len(w.nodes[0].ports))
	}
}

// Who came to a port while it was shared finds the names that there are now, on the same
// connection, also when it has ceased to be shared since, and is again.
func TestSharedFormer(t *testing.T) {
	w := newWeb(t, 1, Limits{})
	rest, d := newService(t, "R", false), newService(t, "D", false)
	port := w.routes[0].Listen
	r := placed{Route{ID: "r", Listen: port, Mode: HTTP}, 0, 1, rest.addr()}
	fresh := placed{Route{ID: "d", Listen: port, Mode: HTTP, Hosts: []string{"d.example.org"}}, 0, 1, d.addr()}
	a, b := w.routes[0], w.routes[1]
	w.place(a, b, r)
	k := w.client(0)
	_, ask, dials := w.client2(0)
	expect := func(when, host, want string) {
		t.Helper()
		k.say("GET /1 HTTP/1.1 | Host: " + host + " |  | ")
		if got := k.hear(); !strings.HasPrefix(got, want) {
			t.Errorf("%s, %s: got %q, want %q", when, host, got, want)
		}
		if got := ask(host, "1"); !strings.HasPrefix(got, want) {
			t.Errorf("%s, %s, with HTTP/2: got %q, want %q", when, host, got, want)
		}
	}
	expect("at first", "a.example.org", "200 A")
	expect("at first", "other.org", "200 R")
	w.place(r)
	expect("shared no more", "a.example.org", "200 R")
	swapped, other := a, b
	swapped.Hosts, other.Hosts = b.Hosts, a.Hosts
	w.place(swapped, other, r)
	expect("shared again", "a.example.org", "200 B")
	expect("shared again", "b.example.org", "200 A")
	expect("shared again", "other.org", "200 R")
	w.place(a, fresh, r)
	expect("with a route that is new", "d.example.org", "200 D")
	expect("with a route that is new", "b.example.org", "200 R")
	r.Listen = freePort(t)
	w.place(a, fresh, r)
	expect("with what is new alone", "d.example.org", "200 D")
	k.say("GET /1 HTTP/1.1 | Host: b.example.org |  | ")
	k.expect("421")
	k.over()
	if got := ask("b.example.org", "1"); !strings.HasPrefix(got, "421") {
		t.Errorf("a name that was taken away, with HTTP/2: %q", got)
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("%d connections of HTTP/2 were made", n)
	}
	eventually(t, "a port that has no clients any more is let go of", func() bool {
		w.nodes[0].mu.Lock()
		defer w.nodes[0].mu.Unlock()
		return len(w.nodes[0].formerPorts) == 1 // HTTP/2's
	})
}

// Who is still served by an older process finds the names that the newer one was told. Where
// it would be brought to a route that the older one does not have, it comes to the newer one.
func TestSharedTakeoverNames(t *testing.T) {
	w := newWeb(t, 1, Limits{})
	d := newService(t, "D", false)
	fresh := placed{Route{ID: "d", Listen: w.routes[0].Listen, Mode: HTTP, Hosts: []string{"d.example.org"}}, 0, 1, d.addr()}
	file := w.nodes[0].again(t)
	w.place(w.routes...)
	k, went := w.client(0), w.client(0)
	_, ask, dials := w.client2(0)
	for _, client := range []*keeps{k, went} {
		client.say("GET /1 HTTP/1.1 | Host: a2.example.org |  | ")
		client.expect("200 A")
	}
	if got := ask("a2.example.org", "1"); !strings.HasPrefix(got, "200 A") {
		t.Errorf("with HTTP/2: %q", got)
	}
	w.nodes[0].handOver(t, file)
	a, b := w.routes[0], w.routes[1]
	a.Hosts, b.Hosts = []string{"b.example.org"}, []string{"a.example.org"}
	w.place(a, b, fresh)
	eventually(t, "the older process has heard of it", func() bool {
		k.say("GET /2 HTTP/1.1 | Host: a.example.org |  | ")
		return strings.HasPrefix(k.hear(), "200 B")
	})
	k.say("GET /3 HTTP/1.1 | Host: b.example.org |  | ")
	k.expect("200 A")
	k.say("GET /4 HTTP/1.1 | Host: a2.example.org |  | ")
	k.expect("421")
	k.over()
	went.say("GET /5 HTTP/1.1 | Host: a.example.org |  | GET /6 HTTP/1.1 | Host: d.example.org |  | ")
	went.expect("200 B")
	went.over()
	if got := ask("a.example.org", "7"); !strings.HasPrefix(got, "200 B") {
		t.Errorf("with HTTP/2: %q", got)
	}
	if got := ask("a2.example.org", "7"); !strings.HasPrefix(got, "421") {
		t.Errorf("a name that was taken away, with HTTP/2: %q", got)
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("%d connections of HTTP/2 were made", n)
	}
	if got := ask("d.example.org", "7"); !strings.HasPrefix(got, "503") {
		t.Errorf("a route that the older process does not have, with HTTP/2: %q", got)
	}
	eventually(t, "it comes to the newer process", func() bool { return strings.HasPrefix(ask("d.example.org", "8"), "200 D") })
}

// A newer process takes over a shared port: who is connected goes on from route to route with
// the older one, which ends when they do.
func TestSharedTakeover(t *testing.T) {
	w := newWeb(t, 1, Limits{})
	file := w.nodes[0].again(t)
	w.place(w.routes...)
	k := w.client(0)
	k.say("GET /1 HTTP/1.1 | Host: a.example.org |  | ")
	k.expect("200 A")
	old, _ := w.nodes[0].handOver(t, file)
	came := w.client(0) // to either of the two
	for _, client := range []*keeps{k, came} {
		for range 2 {
			client.say("GET /2 HTTP/1.1 | Host: b.example.org |  | GET /3 HTTP/1.1 | Host: a.example.org |  | ")
			client.expect("200 B")
			client.expect("200 A")
		}
	}
	eventually(t, "both processes' connections are counted", func() bool { return w.status(0, "a").Open == 2 })
	if err := w.nodes[0].Pause(t.Context(), "a", 0); err != nil {
		t.Fatal(err)
	}
	limit, done := context.WithTimeout(t.Context(), time.Minute)
	defer done()
	if err := w.nodes[0].Quiet(limit, "a"); err != nil {
		t.Error(err)
	}
	k.say("GET /4 HTTP/1.1 | Host: b.example.org |  | GET /5 HTTP/1.1 | Host: a.example.org |  | ")
	k.expect("200 B")
	if err := w.nodes[0].Resume(t.Context(), "a", ""); err != nil {
		t.Fatal(err)
	}
	k.expect("200 A")
	_ = k.conn.Close()
	_ = came.conn.Close()
	served := make(chan struct{})
	go func() { old.serving.Wait(); close(served) }()
	select {
	case <-served:
	case <-time.After(time.Minute):
		t.Error("the older process stays, though nobody is left")
	}
}

// Routes of one port that do not go together: the first one is served, the other says why not.
func TestSharedUnfit(t *testing.T) {
	w := newWeb(t, 1, Limits{})
	twice := placed{Route{ID: "twice", Listen: w.routes[0].Listen, Mode: HTTP, Hosts: []string{"b.example.org"}}, 0, 1, w.a.addr()}
	w.place(append(slices.Clone(w.routes), twice)...)
	if s := w.status(0, "twice"); !strings.Contains(s.Problem, `route b has it for "b.example.org"`) {
		t.Errorf("it says %q", s.Problem)
	}
	k := w.client(0)
	k.say("GET /1 HTTP/1.1 | Host: b.example.org |  | ")
	k.expect("200 B")
	if err := w.nodes[0].Apply(t.Context(), Config{Node: "n1", Routes: []Route{{ID: "x", Listen: 1, Mode: Redis, Hosts: []string{"x"}}}}); err == nil {
		t.Error("a route of mode redis has names")
	}
}
