package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// maxHead is more than heads of requests have; browsers send a few kilobytes.
const maxHead = 32 << 10

var errSlowHead = errors.New("the head of a request did not come to its end in time")

// errElsewhere says that what a client says next is for another route, or for none.
var errElsewhere = errors.New("the next request is for another route")

// serveHTTP serves a client, each of whose requests is for the route that its name says. A
// session is of one route: it ends with its last answer, and another one begins, where a
// request is for another.
func (p *sharedPort) serveHTTP(ctx context.Context, conn net.Conn) error {
	r := newRequests(conn, p.patience())
	first, err := r.preface()
	switch {
	case err != nil:
		return err
	case first != nil:
		return p.serveHTTP2(ctx, conn, first)
	}
	for {
		name, err := r.next()
		if r.bad != nil {
			status := "400"
			if errors.Is(err, errSlowHead) {
				status = "408"
			}
			return errors.Join(err, lastWords(conn, httpRefusal(status+" flocker: "+err.Error())))
		}
		if err != nil {
			return err
		}
		l := &lane{Conn: conn, requests: r}
		serve, err := p.pick(name, func(e *serving) func() {
			l.ours = func(name string) bool { return p.leads(name, e) }
			return e.gate.enter(e.ctx, l)
		})
		switch {
		case errors.Is(err, errNobody):
			return errors.Join(err, lastWords(conn, httpRefusal("421 flocker: "+err.Error())))
		case errors.Is(err, errNewer):
			return err // clients ask again on another connection if one ends before it has begun to answer
		case err != nil:
			return errors.Join(err, lastWords(conn, httpRefusal("503 flocker: "+err.Error()+"; try again", "Retry-After: 1")))
		}
		serve()
		if !l.kept {
			return nil
		}
	}
}

// requests reads what a client of a shared port says, and keeps the head of a request until
// it is known whom that is for. It is used by one goroutine at a time: the session's, or,
// between two of them, the port's.
type requests struct {
	conn net.Conn
	from *reader // of conn
	in   httpScanner
	wait time.Duration // that a head may take

	buf  []byte // was read and not passed on
	may  int    // so much of it is the session's
	seen int    // and so much was scanned
	head bool   // the head of a request for name ends at seen
	name string
	bad  error // why what begins at may is no request

	timed  bool // the connection has a time by which a head has to end
	ended  bool // which it has, since
	turns  bool // the last request may make something else of the connection
	tunnel bool // and it has: nothing is a request any more
}

func newRequests(conn net.Conn, wait time.Duration) *requests {
	return &requests{conn: conn, from: newReader(conn), in: httpScanner{names: true}, wait: wait}
}

// preface returns all that was read if the client begins as one of HTTP/2 does.
func (r *requests) preface() (first []byte, err error) {
	for len(r.buf) < len(http2Preface) && strings.HasPrefix(http2Preface, string(r.buf)) {
		if err := r.read(); err != nil {
			return nil, err
		}
	}
	if bytes.HasPrefix(r.buf, []byte(http2Preface)) {
		return r.buf, r.conn.SetReadDeadline(time.Time{})
	}
	return nil, nil
}

// next waits for the next request, and returns whom it is for.
func (r *requests) next() (name string, err error) {
	for {
		r.scan(nil)
		switch {
		case r.bad != nil:
			return "", r.bad
		case r.head:
			return r.name, nil
		}
		if err := r.read(); err != nil {
			return "", err
		}
	}
}

// read adds to buf what the client says next. A head may not take for ever once it has begun.
func (r *requests) read() error {
	c, err := r.receive()
	if err != nil {
		return err
	}
	r.buf = append(r.buf, c.bytes()...)
	c.release()
	return nil
}

func (r *requests) receive() (chunk, error) {
	began := len(r.buf) > r.may
	if began != r.timed || r.ended {
		var until time.Time
		if began {
			until = time.Now().Add(r.wait)
		}
		if err := r.conn.SetReadDeadline(until); err != nil {
			return chunk{}, err
		}
		r.timed, r.ended = began, false
	}
	c, err := r.from.next()
	if errors.Is(err, os.ErrDeadlineExceeded) && r.timed {
		r.bad = errSlowHead
		err = r.bad
	}
	return c, err
}

// scan finds out how much of buf the session of l may have: up to the first request that is
// not for it. Without one nothing is.
func (r *requests) scan(l *lane) {
	for r.bad == nil {
		switch {
		case r.tunnel:
			r.may, r.seen = len(r.buf), len(r.buf)
			return
		case r.head && (l == nil || !l.ours(r.name)):
			return
		case r.head:
			r.head, r.may, r.ended = false, r.seen, true
			continue
		case r.seen == len(r.buf):
			return
		case r.turns && r.in.between() && r.may > 0:
			return // the session has to hear of it first
		case r.turns && r.in.between() && l != nil:
			r.turns, r.tunnel = false, l.turned()
			continue
		}
		n, part, err := r.in.scan(r.buf[r.seen:])
		r.seen += n
		switch {
		case err != nil:
			r.bad = err
		case part == httpHeadEnd:
			r.headEnd()
		case !r.in.inHead():
			r.may = r.seen
		}
		if r.seen-r.may > maxHead {
			r.bad = fmt.Errorf("%w: a head of more than %d bytes", errHTTP, maxHead)
		}
	}
}

// headEnd acts on the end of a head.
func (r *requests) headEnd() {
	h := &r.in.head
	if r.name, r.bad = h.authority(); r.bad != nil {
		return
	}
	r.head = true
	r.turns = h.method == "CONNECT" || h.protocol != ""
	switch {
	case h.chunked:
		r.in.chunks()
	case h.length > 0:
		r.in.bytes(h.length)
	}
}

// lane is a client's connection as a session of one route has it: what it reads ends where
// a request is for another.
type lane struct {
	net.Conn
	requests *requests
	ours     func(name string) bool // those who ask for it are of this route
	session  *session
	kept     bool // the connection outlives the session, whose lock guards this
}

// turned says that what follows a request that may have made something else of the
// connection is no request. While it has no answer nobody knows; then the session follows
// nothing any more.
func (l *lane) turned() bool {
	s := l.session
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.framer.(*httpFramer)
	return !ok || f.pin != "" || f.switching()
}

// readChunk is as the function of that name; the error is errElsewhere when what comes next
// is not for the session.
func (l *lane) readChunk() (chunk, error) {
	r := l.requests
	for {
		r.scan(l)
		switch {
		case r.may > 0:
			return r.take(), nil
		case r.head || r.bad != nil:
			return chunk{}, errElsewhere
		}
		c, err := r.receive()
		switch {
		case r.bad != nil:
			continue // to the answers that are due before it is said
		case err != nil:
			return chunk{}, err
		}
		if len(r.buf) > 0 {
			r.buf = append(r.buf, c.bytes()...)
			c.release()
			continue
		}
		// Mostly all of it is the session's, and nothing has to be copied.
		r.buf = c.bytes()
		r.scan(l)
		n := r.may
		r.buf = bytes.Clone(r.buf[n:])
		r.seen, r.may = r.seen-n, 0
		if n > 0 {
			c.n = n
			return c, nil
		}
		c.release()
	}
}

// take takes what the session may have, as much as a chunk has room for.
func (r *requests) take() chunk {
	c := chunk{buf: chunks.Get().(*[chunkSize]byte)}
	c.n = copy(c.buf[:], r.buf[:r.may])
	r.buf = r.buf[c.n:]
	r.may, r.seen = r.may-c.n, r.seen-c.n
	if len(r.buf) == 0 {
		r.buf = nil
	}
	return c
}

// Read implements net.Conn: what comes after the session's last words is read to be dropped.
func (l *lane) Read(p []byte) (int, error) { return l.Conn.Read(p) }

// CloseWrite lets the client know that all was said.
func (l *lane) CloseWrite() error {
	half, ok := l.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.New("a connection that cannot be closed by halves")
	}
	return half.CloseWrite()
}

// NetConn is the connection below, for what only the kernel knows of it.
func (l *lane) NetConn() net.Conn { return l.Conn }

// Close implements net.Conn.
func (l *lane) Close() error {
	if l.kept {
		return nil
	}
	return l.Conn.Close()
}
