package proxy

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
)

// sharedHTTP2 is a client of HTTP/2 at a shared port. Each of its requests is for the route
// that its name says; it has a session with each route that it has asked for something.
type sharedHTTP2 struct {
	port *sharedPort
	conn net.Conn
	work sync.WaitGroup // the sessions'

	mu    sync.Mutex // before the port's
	lanes map[*serving]*http2Lane
	over  bool // the client is gone
}

// http2Lane is the client's connection as the session with one route has it, which does not
// end with that.
type http2Lane struct {
	net.Conn
	streams *streams
	closed  atomic.Bool // the session has ended
}

// serveHTTP2 serves a client that has said first.
func (p *sharedPort) serveHTTP2(ctx context.Context, conn net.Conn, first []byte) error {
	c := &sharedHTTP2{port: p, conn: conn, lanes: make(map[*serving]*http2Lane)}
	err := serveStreams(ctx, conn, first, c, p.log)
	c.mu.Lock()
	c.over = true
	for _, l := range c.lanes {
		l.streams.session.close()
	}
	c.mu.Unlock()
	c.work.Wait()
	return err
}

// ServeHTTP has a request served by its route.
func (c *sharedHTTP2) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, err := streamAuthority(r)
	if err != nil {
		http.Error(w, "flocker: "+err.Error(), http.StatusBadRequest)
		return
	}
	l, err := c.lane(name)
	switch {
	case errors.Is(err, errNobody):
		http.Error(w, "flocker: "+err.Error(), http.StatusMisdirectedRequest)
	case errors.Is(err, errNewer):
		w.Header().Set("Connection", "close") // net/http says GOAWAY: those that are answered go on
		refuseHTTP2(w, r, "flocker: "+err.Error()+"; try again")
	case err != nil:
		refuseHTTP2(w, r, "flocker: "+err.Error()+"; try again")
	default:
		l.streams.ServeHTTP(w, r)
	}
}

// lane is that of the route for a name. One whose session has ended has another.
func (c *sharedHTTP2) lane(name string) (l *http2Lane, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return nil, net.ErrClosed
	}
	serve, err := c.port.pick(name, func(e *serving) func() {
		if l = c.lanes[e]; l != nil && !l.closed.Load() {
			return nil
		}
		l = &http2Lane{Conn: c.conn}
		s := newSession(visitedBy(e.ctx, l), e.gate, l)
		l.streams = newStreams(s)
		c.lanes[e] = l
		return e.gate.begins(s, l)
	})
	if serve != nil {
		c.work.Go(serve)
	}
	return l, err
}

// NetConn is the connection below, for what only the kernel knows of it.
func (l *http2Lane) NetConn() net.Conn { return l.Conn }

// Close implements net.Conn: it is the session's end, and not the client's.
func (l *http2Lane) Close() error {
	l.closed.Store(true)
	return nil
}
