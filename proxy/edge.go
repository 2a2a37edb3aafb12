package proxy

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// edge is a node's side of a route: it serves the clients that come to this node. Its gate
// follows what they say, and dials through the door of the route's owner, whose orders it
// takes over a line. An edge that has no line connects nobody: nobody could tell it of a
// pause.
type edge struct {
	node  *Node
	route Route   // but for where the owner is
	keeps secrets // by which it serves; guarded by Node.mu
	gate  *Gate
	log   *slog.Logger
	// shared is the port that it has with others, which brings its clients; nil: it listens.
	shared *sharedPort

	mu      sync.Mutex
	to      place           // of the owner, as far as is known
	reign   context.Context // of that owner; what leads to it ends with it
	depose  context.CancelFunc
	line    wire          // nil: none
	listen  []string      // nodes whose clients listen, as the last door said before the move
	wanted  bool          // there is something to say to the owner
	unbound error         // why it cannot listen
	lost    error         // why there is no line
	stale   error         // why it goes on with the secrets that it has
	changed chan struct{} // closed and made anew when any of this has changed
}

// wire is what connects an edge with a door, on another node or on this one.
type wire interface {
	// next blocks until there is another order than the last, or one every few seconds.
	next(ctx context.Context) (order, error)
	tell(a ack) error
	// server makes a connection to the server, when there may be one.
	server(ctx context.Context, p preface) (net.Conn, error)
	// key asks all edges what the server knows the key of a client by; nil if none does.
	key(ctx context.Context, p preface) ([]byte, error)
	close()
}

const (
	// lineIdle is how long an edge without clients keeps its line.
	lineIdle = time.Minute
	// bindAgain is the time between two attempts to listen on a port that is taken, and
	// lineAgain that between two to reach an owner.
	bindAgain = 500 * time.Millisecond
	lineAgain = 50 * time.Millisecond
)

func newEdge(n *Node, r Route, s secrets, log *slog.Logger) (*edge, error) {
	e := &edge{node: n, route: r, log: log.With("route", r.ID, "volume", r.Volume), changed: make(chan struct{})}
	options, err := r.Postgres.options(s)
	if err != nil {
		return nil, err
	}
	if e.gate, err = r.gate(options, e.dial, e.log); err != nil {
		return nil, err
	}
	e.keeps = s
	e.gate.try = 0 // the door makes the attempts
	e.gate.keyOf = e.keyOf
	e.gate.crowd, e.gate.held = &n.crowd, n.held(r.ID)
	e.to = r.place()
	e.reign, e.depose = context.WithCancel(context.Background())
	return e, nil
}

// sameDoors says that sessions of one route may be served as those of another: they differ
// in nothing but who owns them, where the server is, and how long and how many may wait.
func sameDoors(a, b Route) bool {
	same := (a.Postgres == nil) == (b.Postgres == nil) && (a.Postgres == nil || *a.Postgres == *b.Postgres)
	return same && a.ID == b.ID && a.Listen == b.Listen && a.Mode == b.Mode && a.Limits.Dials == b.Limits.Dials
}

// wake tells everybody who waits to look again. e.mu is held.
func (e *edge) wake() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// learn takes note of where the owner is. A configuration that says so for the same epoch
// knows the address better.
//
// Who still has a connection to the last owner when another is there has lost it, whatever
// the last one believes: a move would have parked it. Nobody may hear of that otherwise,
// where that node has lost its power.
func (e *edge) learn(p place, config bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p.newer(e.to) || config && p.Epoch == e.to.Epoch && p != e.to {
		if p.Owner != e.to.Owner {
			e.depose()
			e.reign, e.depose = context.WithCancel(context.Background())
		}
		e.to = p
		e.wake()
	}
}

// renew has those that come from now on served by other secrets, if there are. Those that
// are of no use are told of, and the edge goes on with what it has: one of two files may
// just have been replaced.
func (e *edge) renew(s secrets, err error) {
	if err == nil && s != e.keeps {
		var options PostgresOptions
		if options, err = e.route.Postgres.options(s); err == nil {
			e.gate.speaks.renew(options)
			e.keeps = s
			e.log.Info("a route has other certificates or passwords now")
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil && e.stale == nil {
		e.log.Warn("a route goes on with the certificates and passwords that it has", "err", err)
	}
	e.stale = err
}

// serve accepts clients until ctx ends, or until closed, and serves them to their end: also
// those of a port that is not shared any more, or was not yet.
func (e *serving) serve(ctx context.Context) {
	if e.shared == nil {
		e.node.listenOn(ctx, e.route.Listen, e.closed, e.setUnbound, e.gate.Serve)
	} else {
		select {
		case <-e.closed:
		case <-ctx.Done():
		}
	}
	for {
		changed := e.gate.change()
		// In this order: who does not find it any more cannot begin a session with it.
		if !e.node.leadsTo(e) && len(e.gate.Sessions()) == 0 {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (e *edge) setUnbound(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil && e.unbound == nil {
		e.log.Warn("a route is not served on this node", "port", e.route.Listen, "err", err)
	}
	e.unbound = err
}

// watch keeps a line to the owner, while there is need of one, until ctx ends.
func (e *edge) watch(ctx context.Context) {
	for ctx.Err() == nil {
		e.mu.Lock()
		to, reign, wanted, changed := e.to, e.reign, e.wanted, e.changed
		e.mu.Unlock()
		if !wanted || to.Owner == "" {
			// Nobody tells the gate of the end of a pause any more: who comes next asks anew.
			e.gate.release()
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		err := e.follow(ctx, reign, to)
		var moved *movedError
		if errors.As(err, &moved) {
			e.learn(moved.to, false)
		}
		e.mu.Lock()
		e.lost = err
		same := e.to == to
		changed = e.changed
		e.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			e.log.Debug("a line to the owner of a route has ended", "owner", to.Owner, "err", err)
		}
		if same && err != nil {
			select {
			case <-changed:
			case <-ctx.Done():
			case <-time.After(lineAgain):
			}
		}
	}
}

// follow has a line to the owner at to, and does what it is told there, until the line
// breaks, the owner is believed to be elsewhere, or nobody needs it any more.
func (e *edge) follow(ctx, reign context.Context, to place) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	name := rand.Text()
	e.mu.Lock()
	p := preface{Kind: kindLine, Route: e.route.ID, Epoch: to.Epoch, Line: name, Listen: e.listen}
	e.mu.Unlock()
	l, err := e.node.line(ctx, reign, to, p)
	if err != nil {
		return err
	}
	defer l.close()
	defer e.setLine(nil)
	var watches sync.WaitGroup
	defer watches.Wait()
	defer cancel()
	watches.Go(func() { e.needless(ctx, to); cancel() })

	var last order
	var does task // what the last order wants
	defer does.end()
	for {
		o, err := l.next(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case o.Moved != nil:
			return &movedError{*o.Moved}
		}
		if last.Serial != 0 && o.Cuts > last.Cuts {
			e.gate.Cut()
		}
		if len(o.Keys) > 0 {
			if err := l.tell(ack{Keys: e.keys(o.Keys)}); err != nil {
				return err
			}
		}
		if o.Serial == last.Serial {
			if err := l.tell(ack{}); err != nil { // we are still there
				return err
			}
			continue
		}
		does.end()
		first := last.Serial == 0
		last = o
		e.gate.loaded.Store(false) // it may lead to another server, and no pause have said so
		if o.Phase == phaseLast || o.Phase == phaseOpen {
			e.mu.Lock()
			e.listen = o.Listen
			e.mu.Unlock()
		}
		if first && o.Phase == phaseEarly && len(o.Listen) > 0 {
			e.gate.pauseIdle() // others are to be back before any of ours go on
		}
		e.obey(ctx, &does, l, o)
		if first {
			e.setLine(&namedLine{l, p})
		}
	}
}

// task is something in the background that can be ended, and replaced by another.
type task struct {
	cancel context.CancelFunc
	work   sync.WaitGroup
}

func (t *task) begin(ctx context.Context, do func(ctx context.Context)) {
	ctx, t.cancel = context.WithCancel(ctx)
	t.work.Go(func() { do(ctx) })
}

func (t *task) end() {
	if t.cancel != nil {
		t.cancel()
	}
	t.work.Wait()
}

// namedLine is a line with what every connection by it begins with.
type namedLine struct {
	wire
	preface
}

func (e *edge) setLine(l *namedLine) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.line = nil
	if l != nil {
		e.line = l
		e.lost = nil
	}
	e.wake()
}

// needless blocks until a line to the owner at to is of no use any more.
func (e *edge) needless(ctx context.Context, to place) {
	since := time.Now()
	look := time.NewTicker(lineIdle / 4)
	defer look.Stop()
	for {
		e.mu.Lock()
		moved, changed := e.to != to, e.changed
		if len(e.gate.Sessions()) > 0 {
			since = time.Now()
		}
		idle := time.Since(since) > lineIdle
		if idle && !moved {
			e.wanted = false
		}
		e.mu.Unlock()
		if moved || idle {
			return
		}
		select {
		case <-changed:
		case <-look.C:
		case <-ctx.Done():
			return
		}
	}
}

// obey does what an order wants, as far as it takes time in the background.
func (e *edge) obey(ctx context.Context, does *task, l wire, o order) {
	done := func() { _ = l.tell(ack{Serial: o.Serial, Done: true}) } // a line that broke is found when the next order is waited for
	switch o.Phase {
	case phasePaused, phaseLast:
		e.gate.pauseFor(cmp.Or(o.Event, e.gate.bounds().Event))
		does.begin(ctx, func(ctx context.Context) { e.park(ctx, l, o) })
	case phaseEarly:
		// Whoever does not come back in time is not waited for: the door goes on.
		e.gate.resume(nil, done)
	case phaseOpen:
		e.gate.release()
		done()
	}
}

// park has the gate become quiet, and tells who keeps it from that.
func (e *edge) park(ctx context.Context, l wire, o order) {
	const look = 100 * time.Millisecond
	for ctx.Err() == nil {
		try, cancel := context.WithTimeout(ctx, look)
		err := e.gate.quiet(try, o.Phase == phaseLast)
		cancel()
		var busy *Busy
		if errors.As(err, &busy) {
			err = l.tell(ack{Serial: o.Serial, Busy: toTell(busy.Sessions)})
		} else if err == nil {
			_ = l.tell(ack{Serial: o.Serial, Done: true, Listen: e.gate.lingering()})
			return
		}
		if err != nil {
			return
		}
	}
}

// toTell is what a line tells of sessions that are busy: of not too many, and not all of
// what clients say that they are or want, which may be anything.
func toTell(busy []Session) []Session {
	busy = slices.Clone(busy[:min(len(busy), mostBusy)])
	short := func(s string) string {
		const most = 200
		return strings.ToValidUTF8(s[:min(len(s), most)], "")
	}
	for i := range busy {
		busy[i].Name, busy[i].Busy = short(busy[i].Name), short(busy[i].Busy)
	}
	return busy
}

// dial connects to the server, through the owner's door. It is the gate's Dialer, and goes
// on trying until ctx ends.
func (e *edge) dial(ctx context.Context) (net.Conn, error) {
	for {
		e.mu.Lock()
		if !e.wanted {
			e.wanted = true
			e.wake()
		}
		l, changed, lost, to := e.line, e.changed, e.lost, e.to
		e.mu.Unlock()
		if l == nil {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return nil, fmt.Errorf("node %s, which owns the route, is not reached: %w", cmp.Or(to.Owner, "(unknown)"), cmp.Or(lost, ctx.Err()))
			}
		}
		who := clientOf(ctx)
		conn, err := l.server(ctx, preface{Client: who.client, At: who.at, Urgent: isUrgent(ctx)})
		if err == nil {
			return conn, nil
		}
		var moved *movedError
		if errors.As(err, &moved) {
			e.learn(moved.to, false)
		}
		if rest(ctx, lineAgain/5) != nil {
			return nil, fmt.Errorf("connecting to the server through node %s: %w", to.Owner, err)
		}
	}
}

// keys answers what the door asks for.
func (e *edge) keys(asked [][]byte) (out []keyPair) {
	for _, k := range asked {
		pair := keyPair{Client: k}
		if known := e.gate.speaks.key; known != nil {
			pair.Server = []byte(known(string(k)))
		}
		out = append(out, pair)
	}
	return out
}

// keyOf asks the edges of all nodes for the server's key for that of a client, which none of
// this edge's has; "" if none of theirs has it.
func (e *edge) keyOf(ctx context.Context, client string) string {
	ctx, cancel := context.WithTimeout(ctx, 2*keyWait)
	defer cancel()
	for {
		e.mu.Lock()
		if !e.wanted {
			e.wanted = true
			e.wake()
		}
		l, changed := e.line, e.changed
		e.mu.Unlock()
		if l == nil {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return ""
			}
		}
		key, err := l.key(ctx, preface{Key: []byte(client)})
		if err == nil || rest(ctx, lineAgain) != nil {
			return string(key)
		}
	}
}

// key implements wire.
func (l *namedLine) key(ctx context.Context, p preface) ([]byte, error) {
	p.Kind, p.Route, p.Epoch, p.Line = kindKey, l.Route, l.Epoch, l.Line
	return l.wire.key(ctx, p)
}

// server implements wire.
func (l *namedLine) server(ctx context.Context, p preface) (net.Conn, error) {
	p.Kind, p.Route, p.Epoch, p.Line = kindServer, l.Route, l.Epoch, l.Line
	return l.wire.server(ctx, p)
}

// count adds the edge's clients.
func (e *edge) count(s *RouteStatus) {
	for _, c := range e.gate.Sessions() {
		s.Sessions++
		switch {
		case c.State == Parked:
			s.Parked++
		case c.State == Waiting:
			s.Held++
		}
		if c.Pinned {
			s.Pinned = append(s.Pinned, c)
		}
	}
}

// status is what the edge knows of its route.
func (e *edge) status(s *RouteStatus) {
	var unbound error
	if e.shared != nil {
		unbound = e.shared.whyUnbound()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s.Owner, s.Epoch = e.to.Owner, e.to.Epoch
	switch unbound = cmp.Or(e.unbound, unbound); {
	case unbound != nil:
		s.Problem = fmt.Sprintf("nobody is served on port %d of this node: %v", e.route.Listen, unbound)
	case e.wanted && e.line == nil && e.lost != nil && !errors.As(e.lost, new(*movedError)):
		// What a move has changed is told in a moment, to whomever it is not yet.
		s.Problem = fmt.Sprintf("node %s, which owns the route, is not reached: %v", e.to.Owner, e.lost)
	case e.stale != nil:
		s.Problem = fmt.Sprintf("new clients are served by the certificates and passwords of before: %v", e.stale)
	}
}

// localLine is a line to the door of this node.
type localLine struct {
	door *door
	node string
	name string
	last uint64 // order
	asks uint64 // that it had
}

func (l *localLine) next(ctx context.Context) (order, error) {
	for {
		o, changed, err := l.door.order()
		if err != nil {
			return order{}, err
		}
		if o.Serial != l.last || o.asked != l.asks || o.Moved != nil {
			l.last, l.asks = o.Serial, o.asked
			return o, nil
		}
		pulse := time.NewTimer(linePulse)
		select {
		case <-changed:
			pulse.Stop()
		case <-pulse.C:
			return o, nil
		case <-ctx.Done():
			pulse.Stop()
			return order{}, ctx.Err()
		}
	}
}

func (l *localLine) tell(a ack) error {
	l.door.done(l.name, a)
	return nil
}

func (l *localLine) server(ctx context.Context, p preface) (net.Conn, error) {
	c, err := l.door.cross(ctx, p, l.node, func() error { return nil })
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (l *localLine) key(ctx context.Context, p preface) ([]byte, error) {
	return l.door.keyOf(ctx, p.Key), nil
}

func (l *localLine) close() { l.door.leave(l.name) }

// remoteLine is a line to the door of another node.
type remoteLine struct {
	conn     net.Conn
	carriers carriers

	mu sync.Mutex // of writing
}

func (l *remoteLine) next(ctx context.Context) (order, error) {
	if err := heardLately(l.conn); err != nil {
		return order{}, err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.conn.Close() })
	defer stop()
	var o order
	err := readMessage(l.conn, maxPreface, &o)
	return o, err
}

func (l *remoteLine) tell(a ack) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.conn.SetWriteDeadline(time.Now().Add(lineSilence)); err != nil {
		return err
	}
	return writeMessage(l.conn, a)
}

func (l *remoteLine) server(ctx context.Context, p preface) (net.Conn, error) {
	first, err := message(p)
	if err != nil {
		return nil, err
	}
	s, err := l.carriers.begin(ctx, first)
	if err != nil {
		return nil, err
	}
	if err := within(ctx, s, granted); err != nil {
		if errors.Is(err, errRetired) {
			// The line is with the process that has taken over, this carrier with the last one.
			s.carrier.retire()
		}
		return nil, err
	}
	return s, nil
}

func (l *remoteLine) key(ctx context.Context, p preface) ([]byte, error) {
	first, err := message(p)
	if err != nil {
		return nil, err
	}
	s, err := l.carriers.begin(ctx, first)
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Close() }()
	var a answer
	err = within(ctx, s, func(conn net.Conn) error { return readMessage(conn, maxPreface, &a) })
	return a.Key, err
}

func (l *remoteLine) close() {
	_ = l.conn.Close()
	l.carriers.retire()
}

// carriers are those of one line. They end with it, but not before the sessions on them.
type carriers struct {
	work *sync.WaitGroup
	// make connects one, has use know of it, and returns when it has ended, or if it could
	// not be made.
	make func(use func(*carrier)) error

	mu      sync.Mutex
	all     []*carrier
	making  *making // nil: none
	retired bool
}

type making struct {
	over chan struct{}
	err  error // when that is closed
}

const (
	// carrierStreams are as many as one carries before there is another, up to
	// mostCarriers: what one stream loses on its way delays those with it, and what is on
	// one carrier is enciphered on one processor.
	carrierStreams = 32
	mostCarriers   = 4
)

// begin begins a stream, and waits for a carrier if there is none.
func (c *carriers) begin(ctx context.Context, first []byte) (*stream, error) {
	for {
		best, made, err := c.best()
		if err != nil {
			return nil, err
		}
		if best != nil {
			if s, err := best.begin(first); err == nil {
				return s, nil
			}
			continue // it has ended since
		}
		select {
		case <-made.over:
			if made.err != nil {
				return nil, made.err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// best is the carrier with the fewest streams; nil: there will be one when made is over.
func (c *carriers) best() (best *carrier, made *making, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.retired {
		return nil, nil, errRetiredCarrier
	}
	least := 0
	c.all = slices.DeleteFunc(c.all, func(k *carrier) bool {
		n, ok := k.load()
		if ok && (best == nil || n < least) {
			best, least = k, n
		}
		return !ok
	})
	if best == nil || least >= carrierStreams && len(c.all) < mostCarriers {
		c.moreLocked()
	}
	return best, c.making, nil
}

// more has one made ahead.
func (c *carriers) more() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.moreLocked()
}

func (c *carriers) moreLocked() {
	if c.making != nil {
		return
	}
	m := &making{over: make(chan struct{})}
	c.making = m
	c.work.Go(func() {
		made := false
		err := c.make(func(k *carrier) {
			made = true
			c.made(m, k, nil)
		})
		if !made {
			c.made(m, nil, err)
		}
	})
}

func (c *carriers) made(m *making, k *carrier, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k != nil {
		c.all = append(c.all, k)
		if c.retired {
			k.retire()
		}
	}
	m.err, c.making = err, nil
	close(m.over)
}

// retire has them end with the last of their streams.
func (c *carriers) retire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retired = true
	for _, k := range c.all {
		k.retire()
	}
}
