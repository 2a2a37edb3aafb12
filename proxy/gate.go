package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Limits bound what a gate keeps waiting while it is paused. Zero fields mean the
// defaults.
type Limits struct {
	Request  time.Duration // that one request waits (10 s)
	Event    time.Duration // that a pause may last (20 s)
	Sessions int           // with a request that waits, or not yet served; past it nobody new is accepted, nor a request of HTTP/2 (1,000)
	Dials    int           // at a time, after a pause: more overflow the server's queue (16)
	Silence  time.Duration // after which a session whose protocol is not followed may be quiet (50 ms)
}

func (l Limits) withDefaults() Limits {
	l.Request = cmp.Or(l.Request, 10*time.Second)
	l.Event = cmp.Or(l.Event, 20*time.Second)
	l.Sessions = cmp.Or(l.Sessions, 1000)
	l.Dials = cmp.Or(l.Dials, 16)
	l.Silence = cmp.Or(l.Silence, 50*time.Millisecond)
	return l
}

// Dialer makes connections to the server behind a gate.
type Dialer func(ctx context.Context) (net.Conn, error)

// Gate is the only way to a server's port. It follows what its clients say, message by
// message, and can be paused: from then on nothing new reaches the server, sessions
// that have nothing outstanding let go of it, and when it is resumed, perhaps
// towards another server with the same data, they go on as if nothing had been.
//
// A session is in one of these states:
//
//	parked ──speaks──▶ connecting ──▶ active ──pause, and nothing outstanding──▶ parked
//	   └──speaks during a pause──▶ waiting ──resume──▶ connecting
type Gate struct {
	speaks   *protocol
	limits   atomic.Pointer[Limits] // with defaults; sessions live on when they change
	log      *slog.Logger
	dials    chan struct{}
	unblocks chan struct{} // connections by which waits are ended: as many at a time
	returns  chan struct{} // of dials, those for sessions that wait for what their server says: half, the others are for requests
	try      time.Duration // of one attempt to connect to the server; 0: as long as it takes
	// late is how long connecting takes to a server that is there. Whoever waits longer is held:
	// an edge does not learn why the owner's door lets nobody through.
	late  time.Duration
	crowd *crowd // nil: of this gate alone

	// keyOf asks gates of the same route elsewhere for the server's key for that of a client;
	// "" if none knows it. nil: there are none.
	keyOf func(ctx context.Context, client string) string

	held *atomic.Int64 // requests and new connections that a pause kept waiting, ever

	waiting atomic.Int64 // clients, by their own word: see room

	loaded atomic.Bool // the server has what it answers from, as it has told somebody since the last pause

	mu       sync.Mutex
	dial     Dialer
	pause    *pause // nil: not paused
	sessions map[served]struct{}

	// A lock of its own: sessions wake the gate under theirs, which comes after mu.
	wakeMu  sync.Mutex
	changed chan struct{} // closed when a session has parked or ended; nil: nobody waits for that
}

// served is a client's session: one that is followed, or a relay. The gate may be locked
// when all but run are called.
type served interface {
	run() error // serves the client to its end
	info() Session
	setPause(p *pause) // nil: it is over
	settle()           // lets go of the server if that can only be seen by looking
	comeBack(done func()) bool
	parkLast()
	cut() // ends what is outstanding, and all if it is not known what that is
	close()
}

// pause is one event during which nothing new reaches the server.
type pause struct {
	over  chan struct{} // closed when it ends
	until time.Time
	// It ends when those that listen are back: what others cause them to be told would
	// be lost otherwise.
	ending bool
	back   int    // how many of them are not yet
	ready  func() // called when they are, if the pause is to end by release; nil: it ends
}

// Mode says how much of what clients send a gate understands.
type Mode string

// The modes.
const (
	HTTP     Mode = "http"     // HTTP/1.1, HTTP/2 with prior knowledge
	Postgres Mode = "postgres" // PostgreSQL, without options: see NewPostgresGate
	Redis    Mode = "redis"    // Redis, Valkey
	TCP      Mode = "tcp"      // any protocol, none of which is followed
	TLS      Mode = "tls"      // the same, but for the name of the server that a client wants
)

// protocol is what a mode is made of.
type protocol struct {
	framer func() framer
	probe  func(server io.ReadWriter) error            // asks it whether it is ready
	serve  func(s *session, ctx context.Context) error // nil: by its requests
	relay  bool                                        // it is not followed, and has no framer
	hello  bool                                        // but it begins as TLS does
	renew  func(PostgresOptions)                       // for those that come from now on; nil: it has no options
	key    func(client string) string                  // by which the server knows a session; "": none of this gate; nil: it has no keys
}

// protocol returns nil for a mode that is not known.
func (m Mode) protocol() *protocol {
	switch m {
	case HTTP:
		return &protocol{framer: func() framer { return newHTTPFramer() }, probe: probeHTTP, serve: (*session).serveHTTP}
	case Redis:
		return &protocol{framer: func() framer { return newRedisFramer() }, probe: probeRedis}
	case Postgres:
		return postgresProtocol(PostgresOptions{})
	case TCP, TLS:
		return &protocol{probe: probeNothing, relay: true, hello: m == TLS}
	}
	return nil
}

// NewGate makes a gate to a server, not paused.
func NewGate(mode Mode, dial Dialer, limits Limits, log *slog.Logger) (*Gate, error) {
	speaks := mode.protocol()
	if speaks == nil {
		return nil, fmt.Errorf("mode %q is not known; there are: http, postgres, redis, tcp, tls", mode)
	}
	return newGate(speaks, dial, limits, log), nil
}

func newGate(speaks *protocol, dial Dialer, limits Limits, log *slog.Logger) *Gate {
	limits = limits.withDefaults()
	g := &Gate{
		speaks: speaks, log: log, dial: dial,
		try:      100 * time.Millisecond, // rather a new attempt than a lost SYN's second
		late:     100 * time.Millisecond,
		dials:    make(chan struct{}, limits.Dials),
		unblocks: make(chan struct{}, limits.Dials),
		returns:  make(chan struct{}, max(1, limits.Dials/2)),
		sessions: make(map[served]struct{}), held: new(atomic.Int64),
	}
	g.limits.Store(&limits)
	return g
}

// bounds are what limits the gate now.
func (g *Gate) bounds() *Limits { return g.limits.Load() }

// setBounds has other limits count, but for Dials: for what begins to wait, and for pauses that
// begin. What waits already waits as it was told.
func (g *Gate) setBounds(l Limits) {
	l = l.withDefaults()
	if old := g.limits.Swap(&l); *old != l {
		g.wake() // it may have room now
	}
}

// Handle serves one client until it or the server is done, or ctx ends, and closes its
// connection. It may be called for many at once.
func (g *Gate) Handle(ctx context.Context, client net.Conn) { g.enter(ctx, client)() }

// enter begins the session of a client, which what it returns serves.
func (g *Gate) enter(ctx context.Context, client net.Conn) (serve func()) {
	ctx = visitedBy(ctx, client)
	if g.speaks.relay {
		return g.begins(newRelay(ctx, g, client), client)
	}
	return g.begins(newSession(ctx, g, client), client)
}

// begins has a session count from now on; what it returns serves it.
func (g *Gate) begins(s served, client net.Conn) (serve func()) {
	g.mu.Lock()
	g.sessions[s] = struct{}{}
	s.setPause(g.pause)
	g.mu.Unlock()
	return func() {
		defer func() {
			g.mu.Lock()
			delete(g.sessions, s)
			g.mu.Unlock()
			g.wake()
		}()
		if err := s.run(); err != nil && !errors.Is(err, net.ErrClosed) {
			g.log.Debug("a session has ended", "client", client.RemoteAddr(), "err", err)
		}
	}
}

func (g *Gate) wake() {
	g.wakeMu.Lock()
	defer g.wakeMu.Unlock()
	if g.changed != nil {
		close(g.changed)
		g.changed = nil
	}
}

// change is closed when there is something to look at again. Who takes it before looking
// misses nothing.
func (g *Gate) change() <-chan struct{} {
	g.wakeMu.Lock()
	defer g.wakeMu.Unlock()
	if g.changed == nil {
		g.changed = make(chan struct{})
	}
	return g.changed
}

// Pause keeps from now on everything new from the server. It does not wait: Quiet
// does. To pause a paused gate changes nothing.
func (g *Gate) Pause() { g.pauseFor(g.bounds().Event) }

// pauseFor pauses, and what still waits after event is refused.
func (g *Gate) pauseFor(event time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.pause != nil && !g.pause.ending {
		return
	}
	old := g.pause
	g.pause = &pause{over: make(chan struct{}), until: time.Now().Add(event)}
	for s := range g.sessions {
		s.setPause(g.pause)
	}
	g.loaded.Store(false) // which from now on no session can say of the server before
	if old != nil {
		close(old.over)
	}
}

// pauseIdle is Pause where no session has a connection to the server.
func (g *Gate) pauseIdle() {
	if !slices.ContainsFunc(g.Sessions(), func(s Session) bool { return s.State == Active }) {
		g.Pause()
	}
}

// Resume lets everything go on, towards dial, or where it went before if dial is nil.
func (g *Gate) Resume(dial Dialer) { g.resume(dial, nil) }

// resume begins to let everything go on. If ready is not nil only those that listen may,
// until release: ready is called once, without a lock, when they are back.
func (g *Gate) resume(dial Dialer, ready func()) {
	if !g.begin(dial, ready) && ready != nil {
		ready()
	}
}

// begin does what resume says; it returns whether ready will be called.
func (g *Gate) begin(dial Dialer, ready func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if dial != nil {
		g.dial = dial
		g.loaded.Store(false)
	}
	if g.pause == nil || g.pause.ending {
		return false
	}
	p := g.pause
	p.ending, p.ready = true, ready
	for s := range g.sessions {
		if s.comeBack(func() { g.isBack(p) }) {
			p.back++
		}
	}
	if p.back == 0 && ready == nil {
		g.end()
	}
	return p.back > 0
}

// isBack counts a session that p waits for; the last one ends it, or says that all are.
func (g *Gate) isBack(p *pause) {
	g.mu.Lock()
	p.back--
	last := p.back == 0
	if last && p.ready == nil && g.pause == p {
		g.end()
	}
	g.mu.Unlock()
	if last && p.ready != nil {
		p.ready()
	}
}

// release ends a pause, whoever is not back yet.
func (g *Gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.pause != nil {
		g.end()
	}
}

// end ends the pause. g.mu is held.
func (g *Gate) end() {
	for s := range g.sessions {
		s.setPause(nil)
	}
	close(g.pause.over)
	g.pause = nil
	g.wake()
}

// Quiet waits until no session has anything outstanding with the server, which has
// then not one connection through this gate. When ctx ends first, the error is a Busy.
// Sessions whose protocol is not followed end when they are quiet.
func (g *Gate) Quiet(ctx context.Context) error { return g.quiet(ctx, true) }

// quiet is Quiet, which is content with less if there are others whom sessions of this
// gate may listen to: unless last, those that listen may stay.
func (g *Gate) quiet(ctx context.Context, last bool) error {
	var look <-chan time.Time
	if g.speaks.relay { // nobody tells that a connection is silent
		ticker := time.NewTicker(5 * time.Millisecond)
		defer ticker.Stop()
		look = ticker.C
	}
	for {
		changed := g.change()
		g.mu.Lock()
		busy := g.busy(last)
		g.mu.Unlock()
		if len(busy) == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-look:
		case <-ctx.Done():
			return &Busy{Sessions: busy}
		}
	}
}

// busy lists the sessions that are not parked. g.mu is held.
//
// Those that listen are parked when nobody else is busy: until then others may cause
// them to be told something. They are not to blame. Unless last, there are others
// elsewhere, and they are left out.
func (g *Gate) busy(last bool) (out []Session) {
	var linger []Session
	for s := range g.sessions {
		s.settle()
		info := s.info()
		switch {
		case info.State != Active:
		case info.Busy == lingering:
			linger = append(linger, info)
		default:
			out = append(out, info)
		}
	}
	if last && len(out) == 0 && len(linger) > 0 {
		for s := range g.sessions {
			s.parkLast()
		}
		out = linger
	}
	slices.SortFunc(out, func(a, b Session) int { return cmp.Compare(a.Client, b.Client) })
	return out
}

// lingering says that sessions are there which listen to others, and are to be parked last.
func (g *Gate) lingering() bool {
	return slices.ContainsFunc(g.Sessions(), func(s Session) bool { return s.Busy == lingering })
}

// Cut ends every session that is not parked, nor about to be, or of one of HTTP/2 what is with
// the server. What they wait for is lost to them; it is for a pause that would not become quiet otherwise, where its user prefers
// that.
func (g *Gate) Cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for s := range g.sessions {
		if info := s.info(); info.State == Active && info.Busy != lingering {
			s.cut()
		}
	}
}

// Sessions lists all of them.
func (g *Gate) Sessions() (out []Session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for s := range g.sessions {
		out = append(out, s.info())
	}
	slices.SortFunc(out, func(a, b Session) int { return cmp.Compare(a.Client, b.Client) })
	return out
}

// State of a session.
type State string

// The states.
const (
	Parked  State = "parked"  // has no connection to the server and needs none
	Waiting State = "waiting" // has something to say to the server, and may not yet
	Active  State = "active"
)

const lingering = "it listens to the others, and is parked after them"

// Session is what is known of a client.
type Session struct {
	Node   string `json:",omitempty"` // that the client came to; "" in a gate, which knows of none
	Client string
	Name   string // of the server that it wants, in TLS; "" if it does not say
	Since  time.Time
	State  State
	Busy   string // what keeps it from being parked; "" if nothing does
	Pinned bool   // it cannot be parked for as long as it lives
}

// Busy says which sessions a gate would not become quiet for.
type Busy struct{ Sessions []Session }

func (b *Busy) Error() string {
	var names []string
	for i, s := range b.Sessions {
		if i == 3 {
			names = append(names, fmt.Sprintf("and %d more", len(b.Sessions)-i))
			break
		}
		names = append(names, fmt.Sprintf("%s (%s)", s.Client, s.Busy))
	}
	return "these clients are still busy: " + strings.Join(names, ", ")
}

// hold counts one request, or one new connection, among those that were held, however often
// and for whatever it has to wait. A nil one counts nothing.
type hold struct {
	gate *Gate
	once sync.Once
}

func (h *hold) count() {
	if h != nil {
		h.once.Do(func() { h.gate.held.Add(1) })
	}
}

// server connects to the server, with no more than Limits.Dials trying at once: a
// refused connection is tried again until ctx ends, since nothing was sent on it. h counts
// for whom it is, if there is no server.
func (g *Gate) server(ctx context.Context, h *hold) (net.Conn, error) {
	late := time.AfterFunc(g.late, h.count)
	defer late.Stop()
	select {
	case g.dials <- struct{}{}:
		defer func() { <-g.dials }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	for {
		g.mu.Lock()
		dial := g.dial
		g.mu.Unlock()
		try, cancel := ctx, context.CancelFunc(func() {})
		if g.try > 0 {
			try, cancel = context.WithTimeout(ctx, g.try)
		}
		conn, err := dial(try)
		cancel()
		if err == nil {
			return conn, nil
		}
		if ctx.Err() == nil {
			h.count()
		}
		again := time.NewTimer(5 * time.Millisecond)
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return nil, fmt.Errorf("connecting to the server: %w", err)
		}
	}
}

// Serve accepts clients and serves them until ctx ends, or accepts no more when l is
// closed; it returns when the last of them is gone. While more than Limits.Sessions of them
// wait, it accepts nobody: those who come then wait in the kernel's queue.
func (g *Gate) Serve(ctx context.Context, l net.Listener) error {
	return acceptAll(ctx, l, g.log, g.room, func(conn net.Conn) func() { return g.enter(ctx, conn) })
}

// acceptAll accepts clients, each after room, and serves them as enter says, until ctx ends
// or l is closed. It returns when the last of them is gone.
func acceptAll(ctx context.Context, l net.Listener, log *slog.Logger, room func(context.Context) error, enter func(net.Conn) (serve func())) error {
	var clients sync.WaitGroup
	defer clients.Wait()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		if err := room(ctx); err != nil {
			return nil
		}
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accepting clients: %w", err)
		case err != nil: // such as too many open files: those that are served end some time
			log.Warn("a client could not be accepted", "err", err)
			if err := rest(ctx, 50*time.Millisecond); err != nil {
				return nil
			}
			continue
		}
		clients.Go(enter(conn))
	}
}

// crowd counts those who wait in several gates that share a bound.
type crowd struct {
	waiting, most atomic.Int64
}

// bound has so many wait at most, from now on; 0: 10,000. Who waits already goes on.
func (c *crowd) bound(most int) { c.most.Store(int64(cmp.Or(most, 10_000))) }

// room waits until others may wait, too.
func (c *crowd) room(ctx context.Context) error {
	for c.waiting.Load() >= c.most.Load() {
		if err := rest(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// full says that no more clients may wait than do.
func (g *Gate) full() bool { return g.waiting.Load() >= int64(g.bounds().Sessions) }

var errNodeFull = errors.New("too many clients wait at this node already")

// whyFull is why nobody else may begin to wait; nil if somebody may.
func (g *Gate) whyFull() error {
	switch own, all := g.hasRoom(); {
	case !own:
		return errFull
	case !all:
		return errNodeFull
	}
	return nil
}

// waits counts clients that begin to wait, or no longer do.
func (g *Gate) waits(n int64) {
	g.waiting.Add(n)
	if g.crowd != nil {
		g.crowd.waiting.Add(n)
	}
	if n < 0 {
		g.wake()
	}
}

// room waits until no more clients than allowed wait: for the end of a pause, or for a
// server that cannot be reached.
func (g *Gate) room(ctx context.Context) error {
	for {
		if own, all := g.hasRoom(); own && all { // usually: nothing to wait for is made
			return nil
		}
		changed := g.change()
		own, all := g.hasRoom()
		if own && all {
			return nil
		}
		var again <-chan time.Time
		if !all { // other gates do not wake this one
			again = time.After(20 * time.Millisecond)
		}
		select {
		case <-changed:
		case <-again:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// hasRoom says whether there is room for one more in this gate, and in all that share a
// bound with it.
func (g *Gate) hasRoom() (own, all bool) {
	own = !g.full()
	return own, g.crowd == nil || g.crowd.waiting.Load() < g.crowd.most.Load()
}

type clientKey struct{}
type urgentKey struct{}

// visitor has the addresses of a client, and of where it has connected to.
type visitor struct{ client, at string }

// visitedBy is a context that has the addresses of a client.
func visitedBy(ctx context.Context, client net.Conn) context.Context {
	return context.WithValue(ctx, clientKey{}, visitor{client: client.RemoteAddr().String(), at: client.LocalAddr().String()})
}

// clientOf says which client a connection to the server is made for, in the context that a
// Dialer gets; zero if it is for none.
func clientOf(ctx context.Context) visitor {
	v, _ := ctx.Value(clientKey{}).(visitor)
	return v
}

// urgently is the context of what is let through during a pause, which may wait for it.
func urgently(ctx context.Context) context.Context {
	return context.WithValue(ctx, urgentKey{}, true)
}

func isUrgent(ctx context.Context) bool { return ctx.Value(urgentKey{}) != nil }

func rest(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Probe waits until the server behind dial answers as one that is ready does, asking it
// every few milliseconds: that it accepts connections does not say so. It blocks until
// then or until ctx ends.
func Probe(ctx context.Context, mode Mode, dial Dialer) error {
	if mode.protocol() == nil {
		return fmt.Errorf("mode %q is not known", mode)
	}
	for {
		err := probeOnce(ctx, mode, dial)
		if err == nil {
			return nil
		}
		if rest(ctx, 5*time.Millisecond) != nil {
			return fmt.Errorf("the server did not become ready: %w", err)
		}
	}
}

func probeOnce(ctx context.Context, mode Mode, dial Dialer) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	return mode.protocol().probe(conn)
}
