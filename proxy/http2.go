package proxy

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// serveHTTP serves a client whose first words say which version of HTTP it speaks.
func (s *session) serveHTTP(ctx context.Context) error {
	switch c := s.conn.(type) {
	case *lane:
		c.session = s
		return s.requests(ctx)
	case *http2Lane:
		<-ctx.Done()
		return nil
	}
	var first []byte
	for len(first) == 0 || len(first) < len(http2Preface) && strings.HasPrefix(http2Preface, string(first)) {
		c, err := readChunk(s.client)
		if err != nil {
			return err
		}
		first = append(first, c.bytes()...)
		c.release()
	}
	if bytes.HasPrefix(first, []byte(http2Preface)) {
		return s.serveHTTP2(ctx, first)
	}
	if err := s.forward(ctx, first); err != nil {
		return err
	}
	return s.requests(ctx)
}

// http2Preface is what a client says first that knows that its server speaks HTTP/2.
const http2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// streams is a session of HTTP/2. Both ends of such a connection remember the headers
// that were sent on it, to send them shorter the next time, and count what their windows
// have left: its bytes mean nothing to a server that was not there from the beginning.
// So the gate speaks HTTP/2 itself, with both, and passes request by request. The client's
// connection stays; the one to the server is closed when no stream is open on it.
//
// It stands in the place of the session's framer. The session's lock guards it.
type streams struct {
	session *session
	dialing chan struct{} // one at a time
	server  *http2Server  // nil: none yet
	running []*passed
	waiting int // requests that may not be passed on yet
}

// http2Server is a connection to the server.
type http2Server struct {
	conn    net.Conn
	http    *http.ClientConn
	streams int
	limit   int  // the most requests that it was seen to allow at once
	retired bool // it takes no more of them
}

// passed is a request that is with the server.
type passed struct {
	*http.Request
	server *http2Server
	cut    context.CancelCauseFunc // ends what is said of it
	off    bool                    // it was cut: nothing of it is with the server, whether its client hears of that or not
}

// errCut is why a request ends that was in the way of a pause.
var errCut = errors.New("cut off")

// serveHTTP2 serves a client that has said first.
func (s *session) serveHTTP2(ctx context.Context, first []byte) error {
	m := newStreams(s)
	return serveStreams(ctx, s.client, first, m, s.gate.log)
}

func newStreams(s *session) *streams {
	m := &streams{session: s, dialing: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.framer = m
	return m
}

// What a client says is kept within these bounds until it is passed on, and so is what its
// server says. No stream can use up what another has: those that are held would keep what had
// begun before them from its end, and thereby the pause from ever being quiet; answers that are
// not read would keep others from being heard. So there is room for all on a connection.
const (
	mostStreams = 250 // at a time
	streamRoom  = 128 << 10
)

func http2Bounds() *http.HTTP2Config {
	return &http.HTTP2Config{MaxConcurrentStreams: mostStreams, MaxReceiveBufferPerStream: streamRoom, MaxReceiveBufferPerConnection: mostStreams * streamRoom}
}

// serveStreams serves a client that has said first, until it is gone, as handler says.
func serveStreams(ctx context.Context, conn net.Conn, first []byte, handler http.Handler, log *slog.Logger) error {
	client := &preread{Conn: conn, left: first, closed: make(chan struct{})}
	server := &http.Server{
		Handler:        handler,
		MaxHeaderBytes: maxHead,
		Protocols:      onlyHTTP2(),
		HTTP2:          http2Bounds(),
		BaseContext:    func(net.Listener) context.Context { return ctx },
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	if err := server.Serve(&oneClient{conn: client}); !errors.Is(err, errOneClient) {
		return fmt.Errorf("serving HTTP/2: %w", err)
	}
	<-client.closed
	return nil
}

func onlyHTTP2() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

// ServeHTTP passes a request on when it may be, and its answer back.
func (m *streams) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s := m.session
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
	s.pumps.Add(1) // before it was closed, hence before anybody waits
	s.mu.Unlock()
	defer s.pumps.Done()
	ctx, cut := context.WithCancelCause(s.ctx)
	defer cut(nil)
	// Who does not read is not waited for when the session is cut: where it is one of several
	// of its client's, the connection stays. So it does when the request is, for which there
	// may be last words.
	over, control := make(chan struct{}), http.NewResponseController(w)
	stop := context.AfterFunc(ctx, func() {
		defer close(over)
		past := time.Unix(1, 0)
		limit := past
		if errors.Is(context.Cause(ctx), errCut) {
			limit = time.Now().Add(time.Second)
		}
		if err := errors.Join(control.SetWriteDeadline(limit), control.SetReadDeadline(past)); err != nil {
			s.gate.log.Debug("a request goes on after its session", "client", s.client.RemoteAddr(), "err", err)
		}
	})
	defer func() {
		if !stop() {
			<-over // it uses what is not to be used after this
		}
	}()

	p := &passed{Request: r, cut: cut}
	if err := m.begin(p); err != nil {
		if r.Context().Err() != nil || errors.Is(err, net.ErrClosed) {
			panic(http.ErrAbortHandler) // nobody is there to be told
		}
		s.gate.log.Debug("a request was refused", "client", s.client.RemoteAddr(), "err", err)
		why := tooLate
		if errors.Is(err, errFull) || errors.Is(err, errNodeFull) {
			why = "flocker: " + err.Error() + "; try again"
		}
		refuseHTTP2(w, r, why)
		return
	}
	defer m.end(p)
	m.pass(ctx, w, p)
}

// pass passes a request on to its server, and its answer back.
func (m *streams) pass(ctx context.Context, w http.ResponseWriter, p *passed) {
	s := m.session
	var lost error // the server, before all was said
	begun := false // the answer
	if isGRPC(p.Request) {
		defer func() {
			switch why := recover(); {
			case why == nil:
			case why != http.ErrAbortHandler || lost == nil || p.Context().Err() != nil:
				panic(why)
			default:
				loseGRPC(w, begun, cmp.Or(context.Cause(ctx), lost), ctx.Err() != nil || m.leaves(p.server))
			}
		}()
	}
	proxy := httputil.ReverseProxy{
		Transport:     p.server.http,
		FlushInterval: -1,
		BufferPool:    chunkPool{},
		Rewrite: func(r *httputil.ProxyRequest) {
			sameRequest(r)
			if r.Out.Body != nil {
				r.Out.Body = &openBody{r.Out.Body, r.In.Body}
			}
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) {
			lost = err
			s.gate.log.Debug("a request had no answer", "client", s.client.RemoteAddr(), "err", err)
			panic(http.ErrAbortHandler) // which resets its stream
		},
		ErrorLog: slog.NewLogLogger(s.gate.log.Handler(), slog.LevelDebug),
	}
	proxy.ModifyResponse = func(res *http.Response) error {
		begun = true
		bodyless := res.StatusCode == http.StatusNoContent || res.StatusCode == http.StatusNotModified
		if bodyless {
			res.Body = &noBody{res.Body} // a length is that of another answer
		}
		res.Body = &lossy{res.Body, &lost}
		// What the server did not say, it shall not be made to have said.
		w.Header()["Date"], w.Header()["Content-Type"], w.Header()["Content-Length"] = nil, nil, nil
		// Nor shall what it said in one with the headers come behind them: gRPC looks for a
		// status where the end is.
		if bodyless || res.ContentLength == 0 {
			proxy.FlushInterval = 0
		}
		return nil
	}
	proxy.ServeHTTP(w, p.Request)
}

// openBody is what a client says with a request, which may not be all yet. Close, as when the
// server is lost, wakes who waits for more of it. ReverseProxy would keep that from the client's
// side, since with HTTP/1.1 it waits for the rest.
type openBody struct {
	io.ReadCloser
	client io.Closer
}

func (b *openBody) Close() error { return errors.Join(b.ReadCloser.Close(), b.client.Close()) }

// noBody is that of an answer which has none, whatever its head says.
type noBody struct{ io.Closer }

func (noBody) Read([]byte) (int, error) { return 0, io.EOF }

// sameRequest undoes what a proxy does to requests otherwise.
func sameRequest(p *httputil.ProxyRequest) {
	p.Out.URL = &url.URL{Scheme: "http", Host: cmp.Or(p.In.Host, "localhost"), Path: p.In.URL.Path, RawPath: p.In.URL.RawPath, RawQuery: p.In.URL.RawQuery}
	if target := p.In.RequestURI; !strings.HasPrefix(target, "//") && p.In.Method != http.MethodConnect {
		p.Out.URL.Opaque, p.Out.URL.RawQuery = target, "" // byte by byte
	}
	p.Out.Host = p.In.Host
	p.Out.Header = p.In.Header.Clone()
	p.Out.Trailer = p.In.Trailer // filled when the body has been read
}

// refuseHTTP2 says that a request was not done, to gRPC in its own words.
func refuseHTTP2(w http.ResponseWriter, r *http.Request, why string) {
	if isGRPC(r) {
		refuseGRPC(w, grpcUnavailable, why)
		return
	}
	w.Header().Set("Retry-After", "1")
	http.Error(w, why, http.StatusServiceUnavailable)
}

// begin counts a request in, once the gate is not paused and there is a server. One that would
// have to wait for that is refused where no more may: a connection has many.
func (m *streams) begin(p *passed) error {
	ctx, cancel := context.WithTimeout(p.Context(), m.session.gate.bounds().Request)
	defer cancel()
	h := &hold{gate: m.session.gate}
	for waits := false; ; {
		// A client that has given up may have asked again elsewhere.
		if err := ctx.Err(); err != nil {
			return err
		}
		pause, err := m.admit(p)
		if p.server != nil || err != nil {
			return err
		}
		if !waits {
			if err := m.session.gate.whyFull(); err != nil {
				return err
			}
			waits = true
			m.waits(1)
			defer m.waits(-1)
		}
		if pause != nil {
			h.count()
			err = pause.wait(ctx)
		} else {
			err = m.connect(ctx, h)
		}
		if err != nil {
			return err
		}
	}
}

func (m *streams) waits(n int) {
	m.session.mu.Lock()
	defer m.session.mu.Unlock()
	m.waiting += n
	m.session.gate.waits(int64(n))
	m.session.waits = m.waiting > 0
}

// wait waits for the end of a pause, no longer than it may last.
func (p *pause) wait(ctx context.Context) error {
	ctx, cancel := context.WithDeadline(ctx, p.until)
	defer cancel()
	select {
	case <-p.over:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the end of a pause: %w", ctx.Err())
	}
}

// admit counts a request in, and gives it its server, if it may be passed on now, under the
// lock that a pause takes. Otherwise it returns the pause, or nothing if there is no server.
func (m *streams) admit(p *passed) (*pause, error) {
	s := m.session
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, net.ErrClosed
	case s.pause != nil:
		return s.pause, nil
	case !m.connected():
		return nil, nil
	}
	p.server = m.server
	p.server.streams++
	m.running = append(m.running, p)
	return nil, nil
}

// connected says that there is a connection that takes requests. One that does not any
// more, because the server is about to end it, ends with its last stream. The session's
// lock is held.
func (m *streams) connected() bool {
	s := m.session
	if m.server == nil || s.backend == nil { // parked
		m.server = nil
		return false
	}
	if !m.server.leaves() {
		return true
	}
	m.server.retired = true
	m.release(m.server)
	m.server, s.backend = nil, nil
	return false
}

// leaves says that the server has ended the connection, or is about to. The session's lock is
// held.
func (c *http2Server) leaves() bool {
	free, used := c.http.Available(), c.http.InFlight()
	if free > 0 {
		c.limit = free + used
		return false
	}
	full := c.http.Err() == nil && used > 0 && used >= c.limit
	return !full
}

func (m *streams) leaves(server *http2Server) bool {
	m.session.mu.Lock()
	defer m.session.mu.Unlock()
	return server.leaves()
}

// release closes a connection that nothing needs any more.
func (m *streams) release(server *http2Server) {
	if server.retired && server.streams == 0 {
		_ = server.conn.Close()
	}
}

// connect makes a connection to the server, unless another request has meanwhile. That
// others wait for the one that makes it is a hold for them, too.
func (m *streams) connect(ctx context.Context, h *hold) error {
	s := m.session
	late := time.AfterFunc(s.gate.late, h.count)
	defer late.Stop()
	select {
	case m.dialing <- struct{}{}:
		defer func() { <-m.dialing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	pauses, needless := s.pauses, s.closed || s.pause != nil || m.connected()
	s.mu.Unlock()
	if needless {
		return nil
	}
	conn, err := s.gate.server(ctx, h)
	if err != nil {
		return err
	}
	transport := &http.Transport{
		Protocols:          onlyHTTP2(),
		DisableCompression: true,
		HTTP2:              http2Bounds(),
		DialContext:        func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}
	client, err := transport.NewClientConn(ctx, "http", "localhost:80")
	if err != nil {
		_ = conn.Close()
		return fmt.Errorf("speaking HTTP/2 with the server: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.pauses != pauses { // after a pause the server is another
		_ = conn.Close()
		return nil
	}
	m.server = &http2Server{conn: conn, http: client}
	s.backend = conn
	return nil
}

// end counts a request out.
func (m *streams) end(p *passed) {
	s := m.session
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(m.running, p)
	m.running = slices.Delete(m.running, i, i+1)
	p.server.streams--
	m.release(p.server)
	if s.closed {
		_ = p.server.conn.Close()
	}
	s.park()
	s.gate.wake() // also where it was the last with a server that takes no more
}

// cut ends what is with the server. What waits to be, on the same connection of the client's, is
// in nobody's way. The session's lock is held.
func (m *streams) cut() {
	for _, p := range m.running {
		p.cut(errCut) // before its server is lost
		p.off = true
		p.server.retired = true
		_ = p.server.conn.Close()
	}
	if s := m.session; s.backend != nil {
		_ = s.backend.Close()
		m.server, s.backend = nil, nil
	}
	m.session.gate.wake()
}

// busy implements framer. What was cut is in nobody's way, though it may not have ended: a client
// whose connection takes nothing hears of no end.
func (m *streams) busy() string {
	left := slices.DeleteFunc(slices.Clone(m.running), func(p *passed) bool { return p.off })
	if len(left) == 0 {
		return ""
	}
	return fmt.Sprintf("%d requests have no answer yet, the oldest that for %.80s", len(left), left[0].URL.Path)
}

// The rest of framer is about bytes, of which none is passed on.
func (m *streams) request(p []byte) (int, error) { return len(p), nil }
func (m *streams) reply([]byte) error            { return nil }
func (m *streams) between() bool                 { return true }
func (m *streams) open() bool                    { return false }
func (m *streams) pinned() string                { return "" }
func (m *streams) replay(io.ReadWriter) error    { return nil }
func (m *streams) refusal(string) []byte         { return nil }

// oneClient is a listener that has one client.
type oneClient struct {
	conn net.Conn
	had  bool
}

var errOneClient = errors.New("there are no other clients")

func (l *oneClient) Accept() (net.Conn, error) {
	if l.had {
		return nil, errOneClient
	}
	l.had = true
	return l.conn, nil
}

func (l *oneClient) Close() error   { return nil }
func (l *oneClient) Addr() net.Addr { return l.conn.LocalAddr() }

// preread is a connection of which something has been read already.
type preread struct {
	net.Conn
	left   []byte
	once   sync.Once
	closed chan struct{}
}

func (c *preread) Read(p []byte) (int, error) {
	if len(c.left) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.left)
	c.left = c.left[n:]
	return n, nil
}

func (c *preread) Close() error {
	defer c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// chunkPool lends the buffers of chunks to whoever copies by itself.
type chunkPool struct{}

func (chunkPool) Get() []byte  { return chunks.Get().(*[chunkSize]byte)[:] }
func (chunkPool) Put(b []byte) { chunks.Put((*[chunkSize]byte)(b[:chunkSize])) }
