package proxy

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Peers connects the proxies of nodes, so that each knows for certain who the other is.
// Its connections, and those of the listener that Run gets, are of TLS over TCP: they have
// NetConn as those of crypto/tls do.
type Peers interface {
	// Dial connects to the proxy of a node, which has to be that node's.
	Dial(ctx context.Context, node, addr string) (net.Conn, error)
	// Peer is the node at the other end of a connection that was accepted.
	Peer(conn net.Conn) string
}

// Options of a Node.
type Options struct {
	Log   *slog.Logger
	Peers Peers
	// Node is this one. What File has of another is forgotten. Empty: the one of the first Config.
	Node string
	// File is where what the node was told is kept, so that a new process goes on with it
	// before anybody tells it again. Empty: nowhere.
	File string
	// Secrets is the folder that has one for each listen port whose route needs a certificate
	// or a password: with tls.crt and tls.key, auth-user and auth-password, which only root,
	// or who this process is of, may change, and only that one may read. They are looked at
	// with each Config. Empty: such routes are not served.
	Secrets string
	// Host is the address that routes are listened on. Empty: all of them.
	Host string
	// Version of this program, for Status.
	Version string
	// Waiting bounds the clients of all routes that have a request that waits, or are not
	// yet served; 0 means 10,000. Past it nobody is accepted: who comes waits in the kernel.
	Waiting int
	// Listeners are those that an older process has handed on, by the names that HandOver gave them.
	Listeners map[string]net.Listener
}

// Node is the proxy of one node: an edge for each route, and a door for each whose owner
// it is. It implements Controller. Edges of other nodes may believe in an owner that is
// none any more; doors tell them where to go, and what they believe never changes who may
// reach the server: only its owner's door leads there.
type Node struct {
	Options
	crowd crowd

	applying sync.Mutex // one configuration at a time

	mu     sync.Mutex
	ctx    context.Context // that of Run; nil: not running
	work   sync.WaitGroup  // all that Run started
	config Config
	edges  map[string]*serving
	former map[*serving]struct{} // that others have taken the place of, with whom they had served
	ports  map[uint16]*sharedPort
	// formerPorts are those that accept nobody any more, with whom they had accepted: they
	// lead them where the ports of the same number do.
	formerPorts map[*sharedPort]struct{}
	doors       map[string]*door
	broken      map[string]error         // routes that cannot be served at all
	helds       map[string]*atomic.Int64 // by route, of all its edges there were
	listeners   map[string]net.Listener
	inherited   map[string]net.Listener
	retired     bool           // a newer process has taken over
	serving     sync.WaitGroup // of clients

	eldersMu sync.Mutex // after all other locks
	elders   map[*elder]struct{}
}

// serving is an edge at work.
type serving struct {
	*edge
	closed chan struct{} // closed: nobody is accepted any more
	ctx    context.Context
	cancel context.CancelFunc
}

// NewNode makes a node that does nothing before Run.
func NewNode(o Options) *Node {
	o.Log = cmp.Or(o.Log, slog.New(slog.DiscardHandler))
	inherited := make(map[string]net.Listener)
	for name, l := range o.Listeners {
		inherited[name] = l
	}
	n := &Node{
		Options: o,
		edges:   make(map[string]*serving), former: make(map[*serving]struct{}), ports: make(map[uint16]*sharedPort), formerPorts: make(map[*sharedPort]struct{}), doors: make(map[string]*door), broken: make(map[string]error), helds: make(map[string]*atomic.Int64),
		listeners: make(map[string]net.Listener), inherited: inherited,
		elders: make(map[*elder]struct{}),
	}
	n.crowd.bound(o.Waiting)
	return n
}

// Run serves, and what other nodes' proxies ask for through l, until ctx ends. What it was
// told before by whichever process it goes on with. When it returns every connection has
// been closed.
func (n *Node) Run(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer n.work.Wait()
	defer cancel()
	n.applying.Lock() // whoever tells something from now on tells it after what is restored
	n.mu.Lock()
	n.ctx = ctx
	n.mu.Unlock()
	err := n.restore()
	n.applying.Unlock()
	if err != nil {
		return err
	}
	n.eldersMu.Lock()
	for e := range n.elders {
		n.work.Go(func() { n.attend(ctx, e) })
	}
	n.eldersMu.Unlock()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed) && n.isRetired():
			<-ctx.Done()
			return nil
		case err != nil:
			return fmt.Errorf("accepting other nodes: %w", err)
		}
		n.work.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer stop()
			defer func() { _ = conn.Close() }()
			if err := n.serve(ctx, conn); err != nil && ctx.Err() == nil {
				n.Log.Debug("a connection of another node has ended", "from", conn.RemoteAddr(), "err", err)
			}
		})
	}
}

func (n *Node) isRetired() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.retired
}

// Admit says whether a node may connect to this one.
func (n *Node) Admit(node string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if node == "" || node != n.config.Node && !slices.Contains(n.config.Members, node) {
		return fmt.Errorf("node %s is not a member of the cluster, as far as the proxy was told", node)
	}
	return nil
}

// prefaceWait is how long a node may take to say what it wants.
const prefaceWait = 5 * time.Second

// serve does what another node's proxy connected for.
func (n *Node) serve(ctx context.Context, conn net.Conn) error {
	from := n.Peers.Peer(conn)
	if err := n.Admit(from); err != nil {
		return err
	}
	p, err := hearPreface(conn)
	if err != nil {
		return fmt.Errorf("reading what node %s wants: %w", from, err)
	}
	switch p.Kind {
	case kindLine:
		d := n.routeDoor(p.Route)
		if d == nil {
			return writeMessage(conn, n.noRoute())
		}
		return d.serveLine(ctx, conn, p, from)
	case kindCarrier:
		if n.isRetired() {
			return errRetired
		}
		if err := writeMessage(conn, answer{Go: true}); err != nil {
			return err
		}
		var streams sync.WaitGroup
		defer streams.Wait()
		return newCarrier(conn, func(s *stream) {
			streams.Go(func() {
				defer func() { _ = s.Close() }()
				if err := n.serveStream(ctx, s, from); err != nil && ctx.Err() == nil {
					n.Log.Debug("a connection for a client of another node has ended", "from", from, "err", err)
				}
			})
		}).run(ctx)
	}
	return writeMessage(conn, answer{No: "this version of the proxy does not know what is wanted"})
}

// serveStream connects a client of another node's edge.
func (n *Node) serveStream(ctx context.Context, s *stream, from string) error {
	if err := n.Admit(from); err != nil { // it may have been removed since
		return err
	}
	p, err := hearPreface(s)
	if err != nil {
		return err
	}
	d := n.routeDoor(p.Route)
	switch {
	case p.Kind == kindKey && d != nil:
		return writeMessage(s, answer{Go: true, Key: d.keyOf(ctx, p.Key)})
	case p.Kind != kindServer:
		return fmt.Errorf("%w: a stream for %q", errMessage, p.Kind)
	case d == nil:
		return writeMessage(s, n.noRoute())
	}
	return d.serveServer(ctx, s, p, from)
}

func hearPreface(conn net.Conn) (p preface, err error) {
	if err := conn.SetReadDeadline(time.Now().Add(prefaceWait)); err != nil {
		return p, err
	}
	if err := readMessage(conn, maxPreface, &p); err != nil {
		return p, err
	}
	return p, conn.SetReadDeadline(time.Time{})
}

// routeDoor is that of a route, whoever owns it; nil: there is none.
func (n *Node) routeDoor(route string) *door {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.doors[route]
}

func (n *Node) noRoute() answer { return answer{No: "there is no such route on node " + n.name()} }

func (n *Node) name() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.config.Node
}

// call connects to the door at to, and returns when that says Go.
func (n *Node) call(ctx context.Context, to place, p preface) (net.Conn, error) {
	conn, err := n.Peers.Dial(ctx, to.Owner, to.Addr)
	if err != nil {
		return nil, err
	}
	err = within(ctx, conn, func(conn net.Conn) error {
		if err := writeMessage(conn, p); err != nil {
			return err
		}
		return granted(conn)
	})
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// within does something with a connection, which it closes when that fails or ctx ends before.
func within(ctx context.Context, conn net.Conn, do func(net.Conn) error) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err := do(conn)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
	}
	return err
}

// granted waits until what was asked for may begin.
func granted(conn net.Conn) error {
	for {
		var a answer
		if err := readMessage(conn, maxPreface, &a); err != nil {
			return err
		}
		switch {
		case a.Go:
			return nil
		case a.Moved != nil:
			return &movedError{*a.Moved}
		case a.Retired:
			return errRetired
		case a.No != "":
			return errors.New(a.No)
		}
	}
}

// line makes a line to the door at to, whose carriers end with the owner's reign.
func (n *Node) line(ctx, reign context.Context, to place, p preface) (wire, error) {
	n.mu.Lock()
	d, name, local := n.doors[p.Route], n.config.Node, !n.retired
	n.mu.Unlock()
	if local && to.Owner == name && d != nil {
		d.join(p.Line, name, p.Listen)
		return &localLine{door: d, node: name, name: p.Line}, nil
	}
	dial, cancel := context.WithTimeout(ctx, lineSilence)
	defer cancel()
	conn, err := n.call(dial, to, p)
	if err != nil {
		return nil, err
	}
	l := &remoteLine{conn: conn, carriers: carriers{work: &n.work, make: func(use func(*carrier)) error { return n.carry(reign, to, use) }}}
	l.carriers.more() // whoever wants a line wants to go on
	return l, nil
}

// carry connects a carrier to the door at to, has use know of it, and keeps it until it has
// ended, or that owner's reign.
func (n *Node) carry(reign context.Context, to place, use func(*carrier)) error {
	n.mu.Lock()
	ctx, cancel := context.WithCancel(n.ctx)
	n.mu.Unlock()
	defer cancel()
	defer context.AfterFunc(reign, cancel)()
	dial, dialed := context.WithTimeout(ctx, lineSilence)
	conn, err := n.call(dial, to, preface{Kind: kindCarrier})
	dialed()
	if err != nil {
		return err
	}
	c := newCarrier(conn, nil)
	use(c)
	if err := c.run(ctx); err != nil && ctx.Err() == nil {
		n.Log.Debug("a connection to another node's door has ended", "node", to.Owner, "err", err)
	}
	return nil
}

// listen returns the listener of a port, which an older process or edge may have had. One
// who is closed before gets none: it is the next one's.
func (n *Node) listen(port uint16, closed <-chan struct{}) (net.Listener, error) {
	name := fmt.Sprint(port)
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-closed:
		return nil, net.ErrClosed
	default:
	}
	l := n.inherited[name]
	delete(n.inherited, name)
	if l == nil {
		var err error
		if l, err = listenTCP(net.JoinHostPort(n.Host, name)); err != nil {
			return nil, err
		}
	}
	n.listeners[name] = l
	return l, nil
}

func (n *Node) unlisten(port uint16, l net.Listener) {
	n.mu.Lock()
	defer n.mu.Unlock()
	_ = l.Close()
	if name := fmt.Sprint(port); n.listeners[name] == l {
		delete(n.listeners, name)
	}
}

// listenOn listens on a port and has clients served until ctx ends, or until closed; it tries
// again when that fails. What it fails by is told to unbound, and that it does not.
func (n *Node) listenOn(ctx context.Context, port uint16, closed <-chan struct{}, unbound func(error), serve func(context.Context, net.Listener) error) {
	for {
		l, err := n.listen(port, closed)
		if !errors.Is(err, net.ErrClosed) {
			unbound(err)
		}
		if err == nil {
			over := make(chan struct{})
			var closes sync.WaitGroup
			closes.Go(func() {
				select {
				case <-closed:
				case <-over:
				}
				n.unlisten(port, l)
			})
			err = serve(ctx, l)
			close(over)
			closes.Wait()
		}
		select {
		case <-closed:
			return
		case <-ctx.Done():
			return
		case <-time.After(bindAgain):
			n.Log.Debug("a port is listened on again", "port", port, "err", err)
		}
	}
}

// pass has the next one that listens on a port take over the queue of who does now: those
// who wait to be accepted would be reset with it. n.mu is held.
func (n *Node) pass(port uint16) error {
	name := fmt.Sprint(port)
	l, ok := n.listeners[name].(*net.TCPListener)
	if !ok || n.inherited[name] != nil {
		return nil // nobody does, or who was to take it has not come to it yet
	}
	f, err := HandOn(l)
	if err == nil {
		n.inherited[name], err = net.FileListener(f)
		_ = f.Close()
	}
	if err != nil {
		return fmt.Errorf("handing the listener of port %s on: %w", name, err)
	}
	return nil
}

// Apply implements Controller.
func (n *Node) Apply(_ context.Context, c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	n.applying.Lock()
	defer n.applying.Unlock()
	if err := n.apply(c, nil); err != nil {
		return err
	}
	n.tellElders(eldersHear(c))
	n.closeNeedless(c)
	return n.save()
}

// apply takes a configuration, of which these routes are paused from the beginning.
func (n *Node) apply(c Config, paused map[string]*doorPause) error {
	type found struct {
		secrets
		err error
	}
	shared, unfit := sharedPorts(c.Routes)
	keeps := make(map[string]found)
	for _, r := range c.Routes {
		s, err := readSecrets(n.Secrets, r)
		keeps[r.ID] = found{s, err}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.retired:
		return errRetired
	case n.ctx == nil || n.ctx.Err() != nil:
		return errors.New("the proxy is not running")
	case cmp.Or(n.Node, n.config.Node, c.Node) != c.Node:
		return fmt.Errorf("the proxy is that of node %s, and was told to be that of node %s", cmp.Or(n.Node, n.config.Node), c.Node)
	}
	if err := n.share(c, shared); err != nil {
		return err
	}
	n.config = c
	n.crowd.bound(cmp.Or(c.Waiting, n.Waiting))
	there := make(map[string]place)
	on := make(map[uint16][]hosted) // by port
	for _, r := range c.Routes {
		there[r.ID] = r.place()
		if d := n.doors[r.ID]; d != nil {
			d.set(r)
		} else {
			n.doors[r.ID] = newDoor(c.Node, r, paused[r.ID], n, n.Log.With("route", r.ID, "volume", r.Volume))
		}
		old, port := n.edges[r.ID], n.ports[r.Listen]
		if old != nil && sameDoors(old.route, r) && old.shared == port && unfit[r.ID] == nil {
			old.gate.setBounds(r.Limits)
			old.learn(r.place(), true)
			old.renew(keeps[r.ID].secrets, keeps[r.ID].err)
			on[r.Listen] = append(on[r.Listen], hosted{old, r.Hosts})
			continue
		}
		delete(n.broken, r.ID)
		var e *edge
		err := cmp.Or(keeps[r.ID].err, unfit[r.ID])
		if err == nil {
			e, err = newEdge(n, r, keeps[r.ID].secrets, n.Log)
		}
		if old != nil {
			if err == nil && old.route.Listen == r.Listen && old.shared == nil {
				err = n.pass(r.Listen)
			}
			close(old.closed) // those it serves stay with it to their end
			n.former[old] = struct{}{}
			delete(n.edges, r.ID)
		}
		if err != nil {
			n.broken[r.ID] = err
			continue
		}
		e.shared = port
		n.edges[r.ID] = n.start(e)
		on[r.Listen] = append(on[r.Listen], hosted{n.edges[r.ID], r.Hosts})
	}
	for p := range n.allPorts() {
		i := slices.IndexFunc(c.Routes, func(r Route) bool { return r.Listen == p.port })
		if i < 0 {
			p.cancel() // what was shared is no route's any more
			continue
		}
		p.setHere(on[p.port], c.Routes[i].Limits)
	}
	n.inform(there)
	for id, e := range n.edges {
		if _, ok := there[id]; !ok {
			close(e.closed)
			e.cancel()
			delete(n.edges, id)
		}
	}
	for id, d := range n.doors {
		if _, ok := there[id]; !ok {
			d.close()
			delete(n.doors, id)
		}
	}
	for id := range n.broken {
		if _, ok := there[id]; !ok {
			delete(n.broken, id)
		}
	}
	return nil
}

// closeNeedless closes what was handed on for ports that have no route any more: who came
// there would wait for nobody.
func (n *Node) closeNeedless(c Config) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, l := range n.inherited {
		if !slices.ContainsFunc(c.Routes, func(r Route) bool { return fmt.Sprint(r.Listen) == name }) {
			_ = l.Close()
			delete(n.inherited, name)
		}
	}
}

// inform has those who are still served by former edges go where their routes lead now, or
// ends them with their route. n.mu is held.
func (n *Node) inform(owners map[string]place) {
	for e := range n.former {
		if p, ok := owners[e.route.ID]; ok {
			e.learn(p, true)
		} else {
			e.cancel()
		}
	}
}

// held counts what the edges of a route have kept waiting, which goes on when one takes
// another's place. n.mu is held.
func (n *Node) held(route string) *atomic.Int64 {
	if n.helds[route] == nil {
		n.helds[route] = new(atomic.Int64)
	}
	return n.helds[route]
}

// share has ports served that routes share from now on, and those no more that none do. n.mu
// is held.
func (n *Node) share(c Config, shared map[uint16]Mode) error {
	for port, p := range n.ports {
		if shared[port] == p.mode {
			continue
		}
		if slices.ContainsFunc(c.Routes, func(r Route) bool { return r.Listen == port }) {
			if err := n.pass(port); err != nil {
				return err
			}
		}
		n.leavePort(p)
	}
	for port, mode := range shared {
		if n.ports[port] != nil {
			continue
		}
		for _, e := range n.edges { // of a route that may be gone
			if e.route.Listen == port && e.shared == nil {
				if err := n.pass(port); err != nil {
					return err
				}
			}
		}
		n.ports[port] = n.startShared(port, mode)
	}
	return nil
}

// leavePort has a shared port accept nobody any more. Those it has accepted stay with it to
// their end. n.mu is held.
func (n *Node) leavePort(p *sharedPort) {
	close(p.closed)
	delete(n.ports, p.port)
	n.formerPorts[p] = struct{}{}
}

// allPorts are the shared ports that have clients, or may. n.mu is held.
func (n *Node) allPorts() iter.Seq[*sharedPort] {
	return func(yield func(*sharedPort) bool) {
		for _, p := range n.ports {
			if !yield(p) {
				return
			}
		}
		for p := range n.formerPorts {
			if !yield(p) {
				return
			}
		}
	}
}

// leadsTo says that a shared port may bring clients to an edge.
func (n *Node) leadsTo(e *serving) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for p := range n.allPorts() {
		if p.holds(e) {
			return true
		}
	}
	return false
}

// start has an edge work. n.mu is held.
func (n *Node) start(e *edge) *serving {
	s := &serving{edge: e, closed: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(n.ctx)
	ctx := s.ctx
	n.serving.Add(1)
	n.work.Go(func() {
		defer n.serving.Done()
		defer s.cancel()
		s.serve(ctx)
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.former, s)
	})
	n.work.Go(func() { e.watch(ctx) })
	return s
}

// door of a route that this node owns.
func (n *Node) door(route string) (*door, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d := n.doors[route]; d != nil {
		return d, nil
	}
	return nil, ErrNoRoute
}

// Pause implements Controller.
func (n *Node) Pause(_ context.Context, route string, event time.Duration) error {
	return n.decide(route, func(d *door) error { return d.begin(event) })
}

// Resume implements Controller.
func (n *Node) Resume(_ context.Context, route, server string) error {
	if server != "" {
		if _, _, err := net.SplitHostPort(server); err != nil {
			return fmt.Errorf("the server's address: %w", err)
		}
	}
	return n.decide(route, func(d *door) error { return d.resume(server) })
}

// decide does something to a door that a newer process has to know of.
func (n *Node) decide(route string, do func(d *door) error) error {
	n.applying.Lock()
	defer n.applying.Unlock()
	if n.isRetired() {
		return errRetired
	}
	d, err := n.door(route)
	if err == nil {
		err = do(d)
	}
	if err != nil {
		return err
	}
	return n.save()
}

// Quiet implements Controller.
func (n *Node) Quiet(ctx context.Context, route string) error {
	d, err := n.door(route)
	if err != nil {
		return err
	}
	return d.quiet(ctx)
}

// Cut implements Controller.
func (n *Node) Cut(_ context.Context, route string) error {
	d, err := n.door(route)
	if err != nil {
		return err
	}
	return d.cut()
}

// Status implements Controller.
func (n *Node) Status(context.Context) (Status, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := Status{Node: n.config.Node, Process: os.Getpid(), Hosts: true, Version: n.Version}
	for _, r := range n.config.Routes {
		s := RouteStatus{ID: r.ID, Listen: r.Listen, Name: r.Name(), Mode: r.Mode, Owner: r.Owner, Epoch: r.Epoch, HeldEver: n.held(r.ID).Load()}
		for e := range n.former {
			if e.route.ID == r.ID {
				e.count(&s)
			}
		}
		if e := n.edges[r.ID]; e != nil {
			e.count(&s)
			e.status(&s)
		} else if err := n.broken[r.ID]; err != nil {
			s.Problem = fmt.Sprintf("nobody is served on port %d of this node: %v", r.Listen, err)
		}
		if d := n.doors[r.ID]; d != nil {
			d.status(&s)
		}
		out.Routes = append(out.Routes, s)
	}
	return out, nil
}

// kept is what a new process goes on with.
type kept struct {
	Config Config
	Paused map[string]*doorPause `json:",omitempty"`
}

// save writes down what the node was told, servers and pauses as they are by now.
func (n *Node) save() error {
	if n.File == "" {
		return nil
	}
	n.mu.Lock()
	k := kept{Config: n.config, Paused: make(map[string]*doorPause)}
	k.Config.Routes = slices.Clone(k.Config.Routes)
	for i := range k.Config.Routes {
		r := &k.Config.Routes[i]
		if d := n.doors[r.ID]; d != nil {
			var p *doorPause
			if r.Server, p = d.saved(); p != nil {
				k.Paused[r.ID] = p
			}
		}
	}
	n.mu.Unlock()
	text, err := json.Marshal(k)
	if err != nil {
		return err
	}
	tmp := n.File + ".new"
	if err := os.MkdirAll(filepath.Dir(n.File), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(tmp, text, 0o600); err != nil {
		return fmt.Errorf("writing down what the proxy was told: %w", err)
	}
	return os.Rename(tmp, n.File)
}

// restore goes on with what was written down. A file that cannot be read is as none: who
// drives the proxy tells it all again.
func (n *Node) restore() error {
	if n.File == "" {
		return nil
	}
	text, err := os.ReadFile(n.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var k kept
	if err == nil {
		err = json.Unmarshal(text, &k)
	}
	if err == nil {
		err = k.Config.Validate()
	}
	if err == nil && cmp.Or(n.Node, k.Config.Node) != k.Config.Node {
		err = fmt.Errorf("it is that of node %s", k.Config.Node)
	}
	if err != nil {
		n.Log.Warn("what the proxy was told before is lost, until flockd tells it again", "file", n.File, "err", err)
		return nil
	}
	return n.apply(k.Config, k.Paused)
}
