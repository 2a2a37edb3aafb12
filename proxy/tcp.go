package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// relay is the session of a client whose protocol is not followed. What it has with the
// server cannot be had with another one: during a pause it ends, by itself, or when it is
// quiet, or cut. Only while neither side has said a word it can be parked. A client that
// comes during a pause waits.
type relay struct {
	gate   *Gate
	ctx    context.Context // of whoever serves it
	client net.Conn
	since  time.Time
	first  []byte // what it has said before the session began

	mu      sync.Mutex
	pause   *pause   // nil: not paused
	pauses  int      // there have been
	server  net.Conn // nil: not connected
	name    string   // of the server that the client wants, in TLS
	waits   bool     // for the server
	closed  bool
	spoken  bool          // something was passed on
	asked   bool          // the client has spoken after the server
	last    time.Duration // since it began, when something was passed on
	passing [2]bool       // something is being, by direction
	ended   [2]bool       // everything has been
}

type direction int

const (
	toServer direction = iota
	toClient
)

// line is what is passed on in one direction, as long as server is the connection to it.
type line struct {
	dir              direction
	to, from, server net.Conn
}

func newRelay(ctx context.Context, g *Gate, client net.Conn) *relay {
	r := &relay{gate: g, ctx: ctx, client: client, since: time.Now()}
	hears := g.speaks.hello
	if h, ok := client.(*greeted); ok {
		r.client, r.first, r.name = h.Conn, h.first, h.name
		hears = false
	}
	// From the beginning, so that no more are accepted than may wait; but who has yet to say
	// whom it wants waits for nobody, and keeps nobody out.
	r.setWaits(!hears)
	return r
}

// run serves the client to its end.
func (r *relay) run() error {
	stop := context.AfterFunc(r.ctx, r.close)
	defer stop()
	defer r.finish()
	defer r.setWaits(false)
	first := r.first
	r.first = nil
	if r.gate.speaks.hello && first == nil {
		var err error
		if first, err = r.hello(); err != nil {
			return err
		}
	}
	for {
		server, err := r.connect()
		if err != nil {
			r.close() // an end in good order would say that the server had nothing to say
			return err
		}
		var up sync.WaitGroup
		up.Go(func() { first = r.pass(line{toServer, server, r.client, server}, first) })
		r.pass(line{toClient, r.client, server, server}, nil)
		up.Wait()
		if !r.parked(server) {
			return nil
		}
		if err := r.client.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
	}
}

// connect waits until the gate is not paused, and until there is a server.
func (r *relay) connect() (net.Conn, error) {
	ctx, cancel := context.WithTimeout(r.ctx, r.gate.bounds().Request)
	defer cancel()
	r.setWaits(true)
	defer r.setWaits(false)
	h := &hold{gate: r.gate}
	for held := false; ; {
		r.mu.Lock()
		pause, pauses := r.pause, r.pauses
		r.mu.Unlock()
		if pause != nil {
			h.count()
			held = true
			if err := pause.wait(ctx); err != nil {
				return nil, err
			}
			continue
		}
		conn, err := r.gate.server(ctx, h)
		if err != nil {
			return nil, err
		}
		// Whoever has given up may have asked again elsewhere.
		if held && gone(r.client) {
			_ = conn.Close()
			return nil, errors.New("the client has gone while it waited")
		}
		if r.attach(conn, pauses) {
			return conn, nil
		}
		// A pause came while it was dialled, and its end may be long after.
		held = true
		_ = conn.Close()
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
}

// attach makes conn the connection to the server, if there has been no other pause since
// pauses were counted and conn was made: after one the server is another.
func (r *relay) attach(conn net.Conn, pauses int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.pauses != pauses {
		return false
	}
	r.server, r.last = conn, time.Since(r.since)
	return true
}

// pass passes on what one side says, to its end, which it passes on as well: the other
// side may go on. It returns what could not be, because the session was parked.
func (r *relay) pass(l line, first []byte) (left []byte) {
	left, err := r.copy(l, first)
	if errors.Is(err, io.EOF) {
		err = r.end(l)
	}
	if err != nil && !errors.Is(err, errParked) {
		r.close()
	}
	return left
}

var errParked = errors.New("parked")

func (r *relay) copy(l line, first []byte) (left []byte, err error) {
	out := newWriter(l.to)
	if len(first) > 0 {
		if err := r.write(l, out, first); err != nil {
			return first, err
		}
	}
	in := newReader(l.from)
	for {
		c, err := in.next()
		if err != nil {
			if r.parked(l.server) {
				err = errParked
			}
			return nil, err
		}
		err = r.write(l, out, c.bytes())
		if errors.Is(err, errParked) {
			left = bytes.Clone(c.bytes())
		}
		full := c.n == chunkSize
		c.release()
		if full && err == nil {
			err = r.bulk(l)
		}
		if err != nil {
			return left, err
		}
	}
}

func (r *relay) write(l line, out *writer, p []byte) error {
	if err := r.begin(l); err != nil {
		return err
	}
	defer r.done(l)
	return out.write(p)
}

// bulk passes on what has piled up in the kernel without copying it, which io.CopyN does
// between connections of TCP. It waits for nothing more to come, so that a connection
// that has become silent holds no pipe.
func (r *relay) bulk(l line) error {
	if rawConn(l.from) == nil || rawConn(l.to) == nil {
		return nil // what one of them says is not in the kernel
	}
	from := l.from
	if c, ok := from.(*crossing); ok {
		from = c.TCPConn // which is the type that is spliced
	}
	for {
		n, ok := unread(l.from)
		if !ok || n < chunkSize {
			return nil
		}
		if err := r.begin(l); err != nil {
			return err
		}
		_, err := io.CopyN(l.to, from, int64(n))
		r.done(l)
		if err != nil {
			return err
		}
	}
}

// begin counts what is about to be passed on, under the lock under which a session is
// parked or found quiet: not one byte reaches the server after that. An answer counts
// before it is with the client, which may ask the next thing before we hear that it is.
func (r *relay) begin(l line) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return net.ErrClosed
	case r.server != l.server:
		return errParked
	}
	r.spoken = true
	r.asked = l.dir == toServer
	r.passing[l.dir] = true
	return nil
}

func (r *relay) done(l line) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.passing[l.dir] = false
	r.last = time.Since(r.since) // the cheapest clock there is
}

// end tells one side that the other has said all that it will.
func (r *relay) end(l line) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed && r.server != l.server {
		return errParked
	}
	r.spoken = true
	r.ended[l.dir] = true
	if r.ended[toServer] && r.ended[toClient] && rawConn(l.to) != nil {
		return nil // both are closed now, which says it of a socket; of a stream it would say that nobody listens any more
	}
	half, ok := l.to.(interface{ CloseWrite() error })
	if !ok {
		return errors.New("a connection that cannot be closed by halves")
	}
	return half.CloseWrite()
}

// relayFacts are what says whether a session is quiet.
type relayFacts struct {
	known   bool // the kernel could be asked
	ended   bool // one side has ended, the other has not
	passing bool // something is on its way, here or in the kernel
	asked   bool // the client has spoken after the server
	silent  time.Duration
}

// busy says why a session is not quiet, which it is after silence; "" if it is. It can be
// wrong: a server that answers in parts, or before it has been asked all, may look done.
func (f relayFacts) busy(silence time.Duration) string {
	switch {
	case !f.known:
		return "whether something is on its way cannot be told"
	case f.passing:
		return "something is on its way"
	case f.asked:
		return "the client has spoken last and may wait for an answer"
	case f.ended:
		return "one side has said all that it will, and the other has not"
	case f.silent < silence:
		return "it was not silent for long enough"
	}
	return ""
}

// facts are those of now. r.mu is held, and r is connected.
func (r *relay) facts() relayFacts {
	f := relayFacts{
		known: true, asked: r.asked, silent: time.Since(r.since) - r.last,
		ended:   r.ended[toServer] != r.ended[toClient],
		passing: r.passing[toServer] || r.passing[toClient],
	}
	for _, conn := range []net.Conn{r.client, r.server} {
		if s, ok := conn.(*stream); ok {
			is, known := s.underway()
			f.known, f.passing = f.known && known, f.passing || is
			continue
		}
		n, ok := unread(conn)
		info := tcpInfo(conn)
		f.known = f.known && ok && info != nil
		f.passing = f.passing || n > 0 || info != nil && (info.Unacked > 0 || info.Notsent_bytes > 0)
	}
	return f
}

// settle implements served: it ends a session that is quiet during a pause. Its client
// finds what it would find with a server that ends idle connections.
func (r *relay) settle() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pause != nil && r.server != nil && !r.closed && r.facts().busy(r.gate.bounds().Silence) == "" {
		r.closeBoth()
	}
}

// setPause implements served. Where neither side has said a word, another connection to
// the server is as good.
func (r *relay) setPause(p *pause) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pause = p
	if p == nil {
		return
	}
	r.pauses++
	if r.server != nil && !r.spoken && !r.closed {
		_ = r.server.Close()
		r.server = nil
		_ = r.client.SetReadDeadline(time.Unix(1, 0)) // it waits for the client's first word
	}
}

// parked says that server is not the session's any more, though the session goes on.
func (r *relay) parked(server net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.closed && r.server != server
}

// comeBack and parkLast implement served: it is not known who listens to whom.
func (r *relay) comeBack(func()) bool { return false }
func (r *relay) parkLast()            {}

func (r *relay) setWaits(waits bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waits != waits {
		r.waits = waits
		r.gate.waits(one(waits))
	}
}

// cut implements served: nobody knows what is outstanding.
func (r *relay) cut() { r.close() }

// close implements served. It ends the session in no order, and both sides shall know
// that: what one of them has of the other's words may not be all.
func (r *relay) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	for _, conn := range []net.Conn{r.client, r.server} {
		if conn, ok := conn.(interface{ SetLinger(int) error }); ok {
			_ = conn.SetLinger(0)
		}
	}
	r.closeBoth()
}

// finish ends what has come to its end.
func (r *relay) finish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closeBoth()
}

// closeBoth closes what there is. r.mu is held.
func (r *relay) closeBoth() {
	r.closed = true
	_ = r.client.Close()
	if r.server != nil {
		_ = r.server.Close()
	}
}

// info implements served.
func (r *relay) info() Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	info := Session{Client: r.client.RemoteAddr().String(), Since: r.since, State: Parked, Name: r.name}
	switch {
	case r.closed:
	case r.server != nil:
		info.State, info.Busy, info.Pinned = Active, r.facts().busy(r.gate.bounds().Silence), true
	case r.waits:
		info.State = Waiting
	}
	return info
}

// unread is how much a connection has received that was not read; ok is false if the
// kernel cannot be asked.
func unread(conn net.Conn) (n int, ok bool) {
	raw := rawConn(below(conn))
	if raw == nil {
		return 0, false
	}
	var failed error
	err := raw.Control(func(fd uintptr) { n, failed = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
	return n, err == nil && failed == nil
}

// probeNothing is content with a server that accepts connections: nothing more can be
// asked of one whose protocol is not known.
func probeNothing(io.ReadWriter) error { return nil }
