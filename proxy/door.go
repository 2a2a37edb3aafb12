package proxy

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"
)

// door is the owner's side of a route: the only way to the server, for the edges of all
// nodes. It tells them what their clients may do, and counts every connection there is to
// the server. That none is left, and none is let through, is known here alone.
type door struct {
	node string // that it is on
	log  *slog.Logger

	mu      sync.Mutex
	route   Route
	owned   bool
	pause   *doorPause // nil: nobody has paused it
	phase   phase      // "": not owned
	serial  uint64     // of the order that stands
	cuts    int
	lines   map[string]*doorLine
	open    map[*crossing]struct{}
	retired bool            // a newer process has taken over
	await   map[string]bool // nodes whose clients listen, and are not back yet
	crossed bool            // somebody was let through since this node has owned the route
	early   *time.Timer     // ends that phase for edges that do not answer
	changed chan struct{}   // closed and made anew when any of this has changed
	dials   chan struct{}   // has those that are being made, as many as there may be
	asks    map[*keyAsk]struct{}
	asked   uint64        // how many of them there were
	asking  chan struct{} // has one for each

	older olderDoors
}

// olderDoors are those of the same route in older processes, which serve who was there.
type olderDoors interface {
	older(route string) (open int)
	cutOlder(route string)
}

var errRetired = errors.New("a newer process of the proxy has taken over")

// doorPause is what is written down of a pause.
type doorPause struct {
	Since time.Time
	Event time.Duration
	quiet bool // it was seen to be: nothing urgent is let through any more
}

// doorLine is the line to one edge. The door's lock guards it.
type doorLine struct {
	node  string
	done  uint64 // the last order that it has done
	hears bool   // some of its clients listen
	busy  []Session
	heard time.Time
}

// crossing is a connection to the server.
type crossing struct {
	*net.TCPConn
	door   *door
	client Session
	at     string // where the client has connected to

	announce Announce
}

// earlyWait is how long sessions that listen may take to come back before the others go on.
const earlyWait = time.Second

func newDoor(node string, r Route, p *doorPause, older olderDoors, log *slog.Logger) *door {
	d := &door{
		node: node, log: log,
		lines:   make(map[string]*doorLine),
		open:    make(map[*crossing]struct{}),
		await:   make(map[string]bool),
		asks:    make(map[*keyAsk]struct{}),
		asking:  make(chan struct{}, mostAsks),
		older:   older,
		changed: make(chan struct{}),
		pause:   p,
	}
	d.set(r)
	return d
}

// place is where the owner is, as far as is known here. d.mu is held.
func (d *door) place() place { return d.route.place() }

// set takes what a configuration says.
func (d *door) set(r Route) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.route.Epoch > r.Epoch {
		return
	}
	if most := r.Limits.withDefaults().Dials; cap(d.dials) != most {
		d.dials = make(chan struct{}, most)
	}
	d.route = r
	d.owned = r.Owner == d.node
	if !d.owned {
		// Another node decides from now on, and here nothing leads to the server any more.
		d.pause, d.route.Server, d.crossed = nil, "", false
		clear(d.await)
		d.resetOpen()
		d.older.cutOlder(r.ID)
	}
	d.step()
}

// resetOpen resets what leads to the server. d.mu is held.
func (d *door) resetOpen() {
	for c := range maps.Clone(d.open) {
		_ = c.SetLinger(0)
		c.closeLocked()
	}
}

func (d *door) reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.resetOpen()
}

// retire has edges look for the door of a newer process. What leads to the server stays.
func (d *door) retire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.retired = true
	d.wake()
}

// step goes on to the phase that is due. d.mu is held.
func (d *door) step() {
	defer d.wake()
	if !d.owned {
		d.enter("")
		return
	}
	may := d.pause == nil && d.route.Server != ""
	switch {
	case !may && d.phase != phasePaused && d.phase != phaseLast:
		d.enter(phasePaused)
	case may && d.phase != phaseEarly && d.phase != phaseOpen:
		d.begins()
	}
	switch {
	case !d.allDone():
	case d.phase == phasePaused:
		d.enter(phaseLast)
	case d.phase == phaseEarly && len(d.await) == 0 && len(d.lines) > 0:
		d.enter(phaseOpen)
	}
}

// begins enters the phase early, for some time. d.mu is held.
func (d *door) begins() {
	d.enter(phaseEarly)
	serial := d.serial
	d.early = time.AfterFunc(earlyWait, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.serial == serial {
			clear(d.await)
			d.enter(phaseOpen)
			d.wake()
		}
	})
}

func (d *door) allDone() bool {
	for _, l := range d.lines {
		if l.done != d.serial {
			return false
		}
	}
	return true
}

func (d *door) enter(p phase) {
	if d.phase == p {
		return
	}
	if d.early != nil {
		d.early.Stop()
		d.early = nil
	}
	d.phase = p
	d.serial++
}

// wake tells everybody who waits to look again. d.mu is held.
func (d *door) wake() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// join begins a line. An edge that comes again has lost the one it had.
//
// One that comes from the door that the owner had before says whose clients listen: they are
// waited for, if nobody has gone on yet.
func (d *door) join(name, node string, listen []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines[name] = &doorLine{node: node, heard: time.Now()}
	if !d.crossed && d.owned {
		for _, n := range listen {
			d.await[n] = true
		}
		if len(listen) > 0 && d.phase == phaseOpen {
			d.begins()
		}
	}
	d.wake()
}

func (d *door) leave(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.lines, name)
	d.step() // the others may have waited for it alone
}

// done notes what an edge says of an order.
func (d *door) done(name string, a ack) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.lines[name]
	if l == nil {
		return
	}
	l.heard = time.Now()
	for _, k := range a.Keys {
		for ask := range d.asks {
			if bytes.Equal(ask.key, k.Client) {
				ask.answered(k.Server)
			}
		}
	}
	if a.Serial != d.serial {
		return
	}
	l.busy = a.Busy
	if a.Done && l.done != a.Serial {
		l.done, l.busy = a.Serial, nil
		switch d.phase {
		case phasePaused:
			l.hears = a.Listen
		case phaseEarly:
			delete(d.await, l.node)
		}
		d.step()
	}
}

// order is the one that stands, and what is closed when there is another.
func (d *door) order() (order, <-chan struct{}, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.retired {
		return order{}, nil, errRetired
	}
	o := order{Serial: d.serial, Phase: d.phase, Cuts: d.cuts, asked: d.asked}
	for a := range d.asks {
		o.Keys = append(o.Keys, a.key)
	}
	if !d.owned {
		moved := d.place()
		o.Moved = &moved
	}
	if d.phase == phaseEarly {
		for n := range d.await {
			o.Listen = append(o.Listen, n)
		}
	}
	if d.pause != nil {
		if d.phase == phaseLast {
			for _, l := range d.lines {
				if l.hears {
					o.Listen = append(o.Listen, l.node)
				}
			}
		}
		o.Event = max(time.Until(d.pause.Since.Add(d.pause.Event)), time.Nanosecond)
	}
	return o, d.changed, nil
}

// keyAsk asks the edges of all nodes for what the server knows the key of a client by: only the
// edge that has the session knows, which a newer one may have taken the place of. It stands
// in the orders like a phase, so that an edge hears of it that makes its line anew. The
// door's lock guards it.
type keyAsk struct {
	key    []byte
	server []byte
	over   chan struct{} // closed when somebody knows
}

const (
	keyWait  = time.Second // for an edge that knows
	mostAsks = 16
)

func (a *keyAsk) answered(server []byte) {
	if len(server) > 0 && a.server == nil {
		a.server = server
		close(a.over)
	}
}

// keyOf is the server's key for that of a client; nil if no edge knows it.
func (d *door) keyOf(ctx context.Context, client []byte) []byte {
	if len(client) > pgMaxKey { // nobody was told it, and orders have to remain short
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, keyWait)
	defer cancel()
	select {
	case d.asking <- struct{}{}:
		defer func() { <-d.asking }()
	case <-ctx.Done():
		return nil
	}
	a := &keyAsk{key: client, over: make(chan struct{})}
	d.mu.Lock()
	d.asks[a] = struct{}{}
	d.asked++
	d.wake()
	d.mu.Unlock()
	select {
	case <-a.over:
	case <-ctx.Done():
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.asks, a)
	return a.server
}

// movedError says that a route has another owner.
type movedError struct{ to place }

func (m *movedError) Error() string {
	return fmt.Sprintf("node %s owns it since epoch %d", m.to.Owner, m.to.Epoch)
}

// cross makes a connection to the server for an edge, as soon as it may have one. Hold is
// called once if it has to wait. The error is a movedError if the owner is another.
func (d *door) cross(ctx context.Context, p preface, from string, hold func() error) (*crossing, error) {
	held := false
	for {
		c, server, changed, err := d.admit(p, from)
		if err != nil {
			return nil, err
		}
		if c != nil {
			if err := d.reach(ctx, c, server); err == nil {
				return c, nil
			}
			c.forget()
			// Refused, perhaps: nothing was sent on it.
			if rest(ctx, 5*time.Millisecond) != nil {
				return nil, ctx.Err()
			}
			continue
		}
		if !held {
			held = true
			if err := hold(); err != nil {
				return nil, err
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// admit counts a connection to the server if there may be one now, under the lock that a
// pause takes. Otherwise it returns what is closed when that may have changed.
func (d *door) admit(p preface, from string) (c *crossing, server string, changed <-chan struct{}, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	changed = d.changed
	switch {
	case d.retired:
		return nil, "", nil, errRetired
	case d.route.Epoch < p.Epoch: // it will hear of it
		return nil, "", changed, nil
	case !d.owned:
		return nil, "", nil, &movedError{d.place()}
	}
	l := d.lines[p.Line]
	if l == nil || l.node != from {
		return nil, "", nil, errors.New("this edge has no line by which it could be told of a pause")
	}
	// An edge that has not heard that it is open believes that it has to wait.
	may := d.phase == phaseEarly || d.phase == phaseOpen && l.done == d.serial
	urgent := p.Urgent && d.route.Server != "" && (d.pause == nil || !d.pause.quiet)
	if !may && !urgent {
		return nil, "", changed, nil
	}
	c = &crossing{door: d, client: Session{Node: from, Client: p.Client, Since: time.Now(), State: Active}, at: p.At, announce: d.route.Announce}
	d.open[c] = struct{}{}
	d.crossed = d.crossed || d.phase == phaseOpen
	return c, d.route.Server, nil, nil
}

// reach connects c to the server, and says whose connection it is if the server expects
// that.
func (d *door) reach(ctx context.Context, c *crossing, server string) error {
	d.mu.Lock()
	dials := d.dials
	d.mu.Unlock()
	select {
	case dials <- struct{}{}:
		defer func() { <-dials }()
	case <-ctx.Done():
		return ctx.Err()
	}
	// Rather a new attempt than a lost SYN's second.
	ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	conn, err := serverDialer.DialContext(ctx, "tcp", server)
	if err != nil {
		return err
	}
	tcp := conn.(*net.TCPConn)
	if err := c.announce.write(tcp, c.client.Client, c.at); err != nil {
		_ = tcp.Close()
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.open[c]; !ok { // cut meanwhile
		_ = tcp.Close()
		return net.ErrClosed
	}
	c.TCPConn = tcp
	return nil
}

// Close implements net.Conn.
func (c *crossing) Close() error {
	c.door.mu.Lock()
	defer c.door.mu.Unlock()
	c.closeLocked()
	return nil
}

// closeLocked closes it and counts it out, in this order: when nobody is counted the server
// has not one connection any more. The door is locked.
func (c *crossing) closeLocked() {
	if c.TCPConn != nil {
		_ = c.TCPConn.Close()
	}
	if _, ok := c.door.open[c]; ok {
		delete(c.door.open, c)
		if c.door.pause != nil { // only who waits for quiet counts them
			c.door.wake()
		}
	}
}

// SetLinger is as that of net.TCPConn; one that was never made has nothing to reset.
func (c *crossing) SetLinger(seconds int) error {
	if c.TCPConn == nil {
		return nil
	}
	return c.TCPConn.SetLinger(seconds)
}

// forget counts out one that was not made.
func (c *crossing) forget() { _ = c.Close() }

// begin pauses; see Controller.
func (d *door) begin(event time.Duration) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.owned {
		return ErrNoRoute
	}
	if d.pause == nil {
		d.pause = &doorPause{Since: time.Now(), Event: cmp.Or(event, d.route.Limits.withDefaults().Event)}
		d.step()
	}
	return nil
}

// resume ends a pause, towards server if it is not empty.
func (d *door) resume(server string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.owned {
		return ErrNoRoute
	}
	d.route.Server = cmp.Or(server, d.route.Server)
	d.pause = nil
	d.step()
	return nil
}

// quiet waits until there is not one connection to the server; see Controller.
func (d *door) quiet(ctx context.Context) error {
	for {
		d.mu.Lock()
		owned, paused, retired, changed := d.owned, d.pause != nil, d.retired, d.changed
		busy := d.busy()
		if owned && paused && len(busy) == 0 {
			d.pause.quiet = true
		}
		d.mu.Unlock()
		switch {
		case retired:
			return errRetired
		case !owned:
			return ErrNoRoute
		case !paused:
			return errors.New("the route is not paused")
		case len(busy) == 0:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			d.mu.Lock()
			defer d.mu.Unlock()
			if busy := d.busy(); len(busy) > 0 { // edges may have said more since
				return &Busy{Sessions: busy}
			}
			return ctx.Err()
		}
	}
}

// busy names what is still connected to the server: by the word of the edges, who know why,
// and where an edge has not named its clients by what is known here. d.mu is held.
func (d *door) busy() (out []Session) {
	named := make(map[string]bool)
	for _, l := range d.lines {
		for _, s := range l.busy {
			s.Node = l.node
			named[s.Node+s.Client] = true
			out = append(out, s)
		}
	}
	if len(d.open) == 0 {
		out = nil // they have let go since
	}
	for c := range d.open {
		if s := c.client; !named[s.Node+s.Client] {
			s.Busy = "its node has not said why"
			if !d.reachable(s.Node) {
				s.Busy = "its node does not answer"
			}
			out = append(out, s)
		}
	}
	if n := d.older.older(d.route.ID); n > 0 {
		out = append(out, Session{Node: d.node, State: Active, Client: fmt.Sprintf("%d clients", n), Busy: "an older process of the proxy still serves them"})
	}
	slices.SortFunc(out, func(a, b Session) int { return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Client, b.Client)) })
	return out
}

func (d *door) reachable(node string) bool {
	for _, l := range d.lines {
		if l.node == node && time.Since(l.heard) < 2*linePulse {
			return true
		}
	}
	return false
}

// cutWait is what edges have to cut off their clients, who they know.
const cutWait = time.Second

// cut has the edges cut off those that are busy, and does so itself where an edge does not.
func (d *door) cut() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case !d.owned:
		return ErrNoRoute
	case d.pause == nil:
		return errors.New("the route is not paused")
	}
	d.cuts++
	d.serial++ // a new order, for the same phase
	d.older.cutOlder(d.route.ID)
	for c := range d.open {
		if !d.reachable(c.client.Node) {
			_ = c.SetLinger(0)
			c.closeLocked()
		}
	}
	d.wake()
	pause := d.pause
	time.AfterFunc(cutWait, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.pause == pause {
			d.resetOpen()
		}
	})
	return nil
}

// status adds what the door knows to what the edge knows.
func (d *door) status(s *RouteStatus) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.owned {
		return
	}
	s.Server, s.Open = d.route.Server, len(d.open)+d.older.older(d.route.ID)
	nodes := make(map[string]bool)
	for _, l := range d.lines {
		nodes[l.node] = true
	}
	s.Nodes = len(nodes)
	if d.pause != nil {
		s.Paused = d.pause.Since
		s.Busy = d.busy()
	}
}

// saved is what outlasts a restart of the process.
func (d *door) saved() (server string, p *doorPause) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pause != nil {
		copied := *d.pause
		p = &copied
	}
	return d.route.Server, p
}

// close ends all that leads through the door.
func (d *door) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.owned = false
	d.resetOpen()
	d.older.cutOlder(d.route.ID)
	d.step()
}

// serveLine tells the edge at the other end what its clients may do, until the line breaks
// or the owner is another.
func (d *door) serveLine(ctx context.Context, conn net.Conn, p preface, from string) error {
	if err := d.settle(ctx, conn, p); err != nil {
		return err
	}
	d.join(p.Line, from, p.Listen)
	defer d.leave(p.Line)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var hears sync.WaitGroup
	defer hears.Wait()
	defer cancel(nil)
	hears.Go(func() {
		for {
			if err := heardLately(conn); err != nil {
				cancel(err)
				return
			}
			var a ack
			if err := readMessage(conn, maxAck, &a); err != nil {
				cancel(err)
				return
			}
			d.done(p.Line, a)
		}
	})
	pulse := time.NewTicker(linePulse)
	defer pulse.Stop()
	var last order
	for {
		o, changed, err := d.order()
		if err != nil {
			return err
		}
		if o.Serial != last.Serial || o.asked != last.asked || o.Moved != nil || last.Serial == 0 {
			last = o
			if err := writeMessage(conn, o); err != nil || o.Moved != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-pulse.C:
			last.Serial = 0
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// heardLately has reading fail when the other side of a line is silent for too long.
func heardLately(conn net.Conn) error { return conn.SetReadDeadline(time.Now().Add(lineSilence)) }

// settle answers the preface of a line. It says HOLD again and again, which fails when
// nobody is there any more.
func (d *door) settle(ctx context.Context, conn net.Conn, p preface) error {
	again := time.NewTicker(linePulse)
	defer again.Stop()
	for {
		d.mu.Lock()
		changed, epoch, owned, retired, to := d.changed, d.route.Epoch, d.owned, d.retired, d.place()
		d.mu.Unlock()
		switch {
		case retired:
			return errRetired
		case epoch < p.Epoch:
			// Its answer comes when our own table is as new.
		case !owned:
			return writeMessage(conn, answer{Moved: &to})
		default:
			return writeMessage(conn, answer{Go: true})
		}
		if err := conn.SetWriteDeadline(time.Now().Add(lineSilence)); err != nil {
			return err
		}
		if err := writeMessage(conn, answer{}); err != nil {
			return err
		}
		if err := conn.SetWriteDeadline(time.Time{}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-again.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// serveServer connects the edge at the other end with the server, and passes on what both
// say.
func (d *door) serveServer(ctx context.Context, conn *stream, p preface, from string) error {
	over := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Before it is told to go on an edge says nothing: it can only hang up.
	first := make(chan error, 1)
	var c chunk
	go func() {
		var err error
		c, err = readChunk(conn)
		if err != nil {
			cancel()
		}
		first <- err
	}()
	server, err := d.cross(ctx, p, from, func() error { return writeMessage(conn, answer{}) })
	var moved *movedError
	switch {
	case err == nil:
		err = writeMessage(conn, answer{Go: true})
	case errors.As(err, &moved):
		err = writeMessage(conn, answer{Moved: &moved.to})
	case ctx.Err() == nil:
		err = writeMessage(conn, answer{No: err.Error(), Retired: errors.Is(err, errRetired)})
	}
	if server == nil || err != nil {
		_ = conn.Close()
		if server != nil {
			_ = server.Close()
		}
		if <-first == nil {
			c.release()
		}
		return err
	}
	stop := context.AfterFunc(over, func() { _ = conn.Close(); _ = server.Close() })
	defer stop()
	return join(conn, server, func() (chunk, error) {
		err := <-first
		return c, err
	})
}

// leaveWait is what a server has to take the last words of who has closed its connection.
const leaveWait = 5 * time.Second

// join passes on what an edge and the server say to each other, until both have ended or
// one is reset, which the other then is as well. First is what the edge says first.
func join(edge *stream, server *crossing, first func() (chunk, error)) error {
	var up error
	var uplink sync.WaitGroup
	// A server that does not read what the edge said does not notice that it has gone.
	edge.onLeave(func(reset bool) {
		if reset {
			_ = server.TCPConn.SetLinger(0)
			_ = server.SetDeadline(time.Unix(1, 0))
			return
		}
		_ = server.SetWriteDeadline(time.Now().Add(leaveWait))
	})
	fail := func() {
		_ = server.SetLinger(0)
		_ = server.Close()
		_ = edge.SetLinger(0)
		_ = edge.Close()
	}
	uplink.Go(func() {
		out := newWriter(server)
		c, err := first()
		for err == nil {
			err = out.write(c.bytes())
			c.release()
			if err == nil {
				c, err = readChunk(edge)
			}
		}
		if !errors.Is(err, io.EOF) {
			up = err
			fail()
			return
		}
		_ = server.CloseWrite() // it may have gone, which the other direction finds
		// An edge that has said all may still listen; one that has hung up does not.
		edge.awaitHangup()
		_ = server.Close()
	})
	var down error
	in := newReader(server)
	for {
		var c chunk
		if c, down = in.next(); down != nil {
			break
		}
		_, down = edge.Write(c.bytes())
		c.release()
		if down != nil {
			break
		}
	}
	if errors.Is(down, io.EOF) {
		if down = edge.CloseWrite(); down == nil {
			uplink.Wait()
		}
	}
	if down != nil {
		fail()
	}
	_ = edge.Close()
	_ = server.Close()
	uplink.Wait()
	if errors.Is(down, net.ErrClosed) {
		down = nil
	}
	return errors.Join(up, down)
}
