package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"
)

// sharedPort is a port that several routes have, for clients that ask for different names.
// It accepts them all, and has each served by the gate of the route that its name says: with
// TLS once for the connection, with HTTP for each request. What a gate does stays its own.
type sharedPort struct {
	node   *Node
	port   uint16
	mode   Mode
	log    *slog.Logger
	closed chan struct{} // closed: nobody is accepted any more
	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex // before those of gates
	table   hostTable
	routes  []hosted      // of the table
	wait    time.Duration // that a client may take to say whom it wants
	unbound error         // why it cannot listen
}

// startShared has a port served. n.mu is held.
func (n *Node) startShared(port uint16, mode Mode) *sharedPort {
	p := &sharedPort{node: n, port: port, mode: mode, log: n.Log.With("port", port), closed: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancel(n.ctx)
	n.serving.Add(1)
	n.work.Go(func() {
		defer n.serving.Done()
		defer p.cancel()
		n.listenOn(p.ctx, port, p.closed, p.setUnbound, p.serve)
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.formerPorts, p)
		p.set(nil, 0) // nobody is left who could come to their routes
	})
	return p
}

// set takes the routes that there are now, and how long a client may take to say whom it
// wants.
func (p *sharedPort) set(routes []hosted, wait time.Duration) {
	p.mu.Lock()
	before := p.routes
	p.routes, p.table, p.wait = routes, newHostTable(routes), wait
	p.mu.Unlock()
	for _, r := range before {
		if r.serving != nil {
			r.gate.wake()
		}
	}
}

// setHere takes the routes of this process that have the port's number. Where they have
// another mode by now, its clients cannot be brought to them.
func (p *sharedPort) setHere(routes []hosted, limits Limits) {
	routes = slices.Clone(routes)
	for i := range routes {
		if routes[i].route.Mode != p.mode {
			routes[i].serving = nil
		}
	}
	p.set(routes, limits.withDefaults().Request)
}

// setNames takes the names that routes have in a newer process, for those of them that this
// one has served all along.
func (p *sharedPort) setNames(all map[string]named) {
	p.mu.Lock()
	here := make(map[string]*serving)
	for _, r := range p.routes {
		if r.serving != nil {
			here[r.route.ID] = r.serving
		}
	}
	wait := p.wait
	p.mu.Unlock()
	var routes []hosted
	for id, r := range all {
		if r.Listen == p.port {
			routes = append(routes, hosted{here[id], r.Hosts})
		}
	}
	p.set(routes, wait)
}

func (p *sharedPort) holds(e *serving) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.routes, func(r hosted) bool { return r.serving == e })
}

func (p *sharedPort) setUnbound(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil && p.unbound == nil {
		p.log.Warn("several routes are not served on this node", "err", err)
	}
	p.unbound = err
}

func (p *sharedPort) whyUnbound() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unbound
}

func (p *sharedPort) patience() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.wait
}

// serve accepts clients. One for whose route too many wait already is refused and not left
// waiting to be accepted: so would those for the others be.
func (p *sharedPort) serve(ctx context.Context, l net.Listener) error {
	return acceptAll(ctx, l, p.log, p.node.crowd.room, func(conn net.Conn) func() {
		return func() {
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer stop()
			defer func() { _ = conn.Close() }()
			serve := p.serveHTTP
			if p.mode == TLS {
				serve = p.serveTLS
			}
			if err := serve(ctx, conn); err != nil && ctx.Err() == nil {
				p.log.Debug("a client's connection has ended", "client", conn.RemoteAddr(), "err", err)
			}
		}
	})
}

var (
	errNobody = errors.New("no route on this port is for the name that is wanted")
	errNewer  = errors.New("the route for the name that is wanted is served to those who connect anew")
	errFull   = errors.New("too many clients of this server wait already")
)

// pick is the route for a name, whose gate begin then has to begin with the client, with a
// lock under which the route stays.
func (p *sharedPort) pick(name string, begin func(e *serving) (serve func())) (serve func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e, ok := p.table.pick(name)
	switch {
	case !ok:
		return nil, errNobody
	case e == nil:
		return nil, errNewer
	case e.gate.full():
		return nil, errFull
	}
	return begin(e), nil
}

// leads says that those who ask for a name belong to a route.
func (p *sharedPort) leads(name string, e *serving) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	to, _ := p.table.pick(name)
	return to == e
}

// unrecognized is TLS's word, an alert, for a name that nobody has.
//
// Source: RFC 8446, section 6; RFC 6066, section 3.
var unrecognized = []byte{21, 3, 3, 0, 2, 2, 112}

// serveTLS serves a client by the name that it says first. What is not understood is for the
// route without names.
func (p *sharedPort) serveTLS(_ context.Context, conn net.Conn) error {
	h, err := readHello(conn, p.patience())
	if err != nil {
		return err
	}
	name := ""
	if h.odd == nil && h.name != "" {
		if name, err = hostName(h.name); err != nil {
			h.odd, name = err, ""
		}
	}
	serve, err := p.pick(name, func(e *serving) func() { return e.gate.enter(e.ctx, h) })
	switch {
	case errors.Is(err, errNobody) && h.odd == nil:
		return errors.Join(err, lastWords(conn, unrecognized))
	case err != nil:
		return errors.Join(err, h.odd)
	}
	serve()
	return nil
}
