package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// framer follows the messages of one session. The session's lock guards it.
type framer interface {
	// request takes bytes of one message of the client's, at most to its end.
	request(p []byte) (n int, err error)
	// between says that the client's last message has ended and no other has begun.
	between() bool
	// reply takes all of what the server sent.
	reply(p []byte) error
	// busy says what is outstanding, half sent or open; "" means that the server may be
	// exchanged here.
	busy() string
	// open says that what comes next belongs to something that has begun, and has to be
	// let through, or that would never end.
	open() bool
	// pinned says why the session can never be moved; "" if it can. What a pinned session
	// says is not followed any more.
	pinned() string
	// replay makes a new connection stand in for the one that the session had.
	replay(backend io.ReadWriter) error
	// refusal is the protocol's way of saying that a request was not done.
	refusal(why string) []byte
}

// stateful is a framer of a protocol whose messages do not show all that a session is
// made of. The session's lock guards it, but for greet, like replay, and ended.
type stateful interface {
	framer
	// greet settles with the client what comes before its session: first is what it said
	// that is for the server. Without that the session connects at once.
	greet(ctx context.Context, s *session) (first []byte, err error)
	// attached says that a new connection has taken the place of the old one.
	attached()
	// question is what the server has to be asked before the session may be parked; nil
	// when it has been answered.
	question() []byte
	// pass is what of the last reply is for the client, as the answer to a question is
	// not. It stands where the reply stood.
	pass() []byte
	// forget lets the question be asked again.
	forget()
	// listens says that the server has answered that it speaks to the session unasked,
	// because of what others do: such a session is parked last, and is back first.
	listens() bool
	// ended says that there will be nothing more.
	ended()
}

// session is one client's.
type session struct {
	gate   *Gate
	ctx    context.Context // ends with the session
	cancel context.CancelFunc
	conn   net.Conn // the client's
	client net.Conn // speaks through conn
	since  time.Time
	dials  sync.Mutex     // one connection to the server at a time is being made
	dialed int            // how many pauses there had been when that began; guarded by dials
	inTime func() bool    // of that connection: from then on its time does not end it. It may be called again; guarded by dials
	pumps  sync.WaitGroup // one for each connection to the server that it ever had, or each stream

	mu      sync.Mutex
	framer  framer
	pause   *pause        // nil: not paused
	pauses  int           // there have been
	early   bool          // this pause is ending, and it may connect before it has
	last    bool          // nobody else has anything outstanding: it need not linger
	backend net.Conn      // nil: parked
	out     *writer       // to backend; nil: nothing was said to it yet. It goes with it
	waits   bool          // the client has said something that may not be passed on yet
	answers chan struct{} // has something when the server has spoken, or all is over, while the client waits
	writing bool          // what the server said is on its way to the client
	leaving bool          // its client wants another route: see leave
	queues  bool          // the client has said something behind what it waits for
	left    bool          // what the server may still say is for nobody
	closed  bool

	waiter    waiter  // the framer, if it is one; nil: it is not
	ending    *ending // of what the client waits for; nil: none
	unblocked int     // the pause in which that was tried last
}

func newSession(ctx context.Context, g *Gate, client net.Conn) *session {
	s := &session{gate: g, conn: client, client: client, since: time.Now(), framer: g.speaks.framer(), answers: make(chan struct{}, 1)}
	s.waiter, _ = s.framer.(waiter)
	s.ctx, s.cancel = context.WithCancel(ctx)
	return s
}

// run serves the client to its end.
func (s *session) run() error {
	stop := context.AfterFunc(s.ctx, s.close)
	err := s.greet(s.ctx)
	if err == nil {
		serve := s.gate.speaks.serve
		if serve == nil {
			serve = (*session).requests
		}
		err = serve(s, s.ctx)
	}
	switch {
	case errors.Is(err, io.EOF):
		err = nil
		s.hearOut()
	case errors.Is(err, errElsewhere):
		err = s.leave(s.ctx)
	}
	stop()
	s.close()
	s.pumps.Wait()
	if f, ok := s.framer.(stateful); ok {
		f.ended()
	}
	return err
}

// greet does what comes before a session.
func (s *session) greet(ctx context.Context) error {
	f, ok := s.framer.(stateful)
	if !ok {
		return nil
	}
	first, err := f.greet(ctx, s)
	if err != nil {
		return err
	}
	if first == nil {
		return s.connect(ctx)
	}
	return s.forward(ctx, first)
}

// speakThrough has all that is said to the client go through conn, such as TLS.
func (s *session) speakThrough(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client = conn
}

// close ends the session from whatever goroutine; its own notice by their next read or
// write.
func (s *session) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeLocked()
}

// cut ends what the session has with the server. Where that is known request by request, the
// client stays.
func (s *session) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m, ok := s.framer.(*streams); ok {
		m.cut()
		return
	}
	s.closeLocked()
}

func (s *session) closeLocked() {
	s.closed = true
	s.wakeWaiting()
	s.cancel()
	_ = s.conn.Close()
	if s.backend != nil {
		_ = s.backend.Close()
	}
}

// hearOut lets the server know that the client has said all that it will, and passes
// on what the server still has to say.
func (s *session) hearOut() {
	s.mu.Lock()
	half, ok := s.backend.(interface{ CloseWrite() error })
	s.mu.Unlock()
	if ok && half.CloseWrite() == nil {
		s.pumps.Wait()
	}
}

// leave ends the session, but not its client's connection, which goes on to another route
// when this one's server has answered all. What that server may say afterwards, unasked, would
// be taken for what another says: it is dropped. Nobody reads what the client says meanwhile,
// so that it is looked at whether it is there.
func (s *session) leave(ctx context.Context) error {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for {
		s.mu.Lock()
		s.leaving = true
		idle := s.backend == nil || !s.writing && s.framer.busy() == ""
		switch pin := s.framer.pinned(); {
		case s.closed:
			s.mu.Unlock()
			return net.ErrClosed
		case pin != "":
			s.mu.Unlock()
			return fmt.Errorf("a client asks for another route, but where the last answer ends is not known: %s", pin)
		case !s.framer.between():
			s.mu.Unlock()
			return errors.New("the body of a request is not understood")
		case idle:
			s.left = true
			if s.backend != nil {
				_ = s.backend.Close()
				s.backend, s.out = nil, nil
			}
			s.conn.(*lane).kept = true
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		select {
		case <-s.answers:
		case <-look.C:
			if reset(s.conn) {
				return errors.New("the client has gone without its answers")
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// requests passes on what the client says.
func (s *session) requests(ctx context.Context) error {
	in := newReader(s.client)
	for {
		c, err := in.next()
		if err != nil {
			return err
		}
		n, err := s.send(c.bytes())
		// What has to wait is kept as it is, and not in a buffer for more: many may wait.
		left := bytes.Clone(c.bytes()[n:])
		c.release()
		if err == nil {
			err = s.forward(ctx, left)
		}
		if err != nil {
			return err
		}
	}
}

// forward passes p on, and waits until it may.
func (s *session) forward(ctx context.Context, p []byte) error {
	h := &hold{gate: s.gate}
	for {
		n, err := s.send(p)
		if p = p[n:]; err != nil || len(p) == 0 {
			return err
		}
		if err := s.afterWait(ctx); err != nil {
			return err
		}
		if err := s.await(ctx, h, s.attach); err != nil {
			return err
		}
	}
}

// send passes on as much of p as may be without waiting for the end of a pause, or for a
// connection.
func (s *session) send(p []byte) (sent int, err error) {
	for sent < len(p) {
		first, n, out := s.admit(p[sent:])
		if n == 0 {
			break
		}
		if len(first) > 0 {
			if err := out.write(first); err != nil {
				return sent, fmt.Errorf("asking the server how it knows a session: %w", err)
			}
		}
		if err := out.write(p[sent : sent+n]); err != nil {
			return sent, fmt.Errorf("passing a request to the server: %w", err)
		}
		sent += n
	}
	return sent, nil
}

// admit says how much of what the client said may be passed on now, and to whom. What
// thereby begins is counted under the lock that a pause takes: no request slips
// through between the two. What is to be said first is none of the client's.
func (s *session) admit(p []byte) (first []byte, n int, to *writer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.backend == nil {
		return nil, 0, nil
	}
	if s.out == nil {
		s.out = newWriter(s.backend)
	}
	for n < len(p) {
		if s.framer.pinned() != "" {
			return first, len(p), s.out
		}
		between := s.framer.between()
		if between && s.pause != nil && !s.framer.open() {
			break
		}
		if between && s.waiter != nil {
			if s.waiter.behind() {
				break
			}
			if s.waiter.wants(p[n:]) {
				if n > 0 {
					break
				}
				first = s.waiter.ask()
			}
		}
		took, err := s.framer.request(p[n:])
		n += took
		if err != nil {
			s.gate.log.Debug("a client's words are not understood any more", "client", s.conn.RemoteAddr(), "err", err)
		}
	}
	return first, n, s.out
}

// connect waits until the gate is not paused, and until there is a server. When that
// takes longer than a request may wait, the client is told so in its protocol's words.
func (s *session) connect(ctx context.Context) error {
	return s.await(ctx, &hold{gate: s.gate}, s.attach)
}

// await has use speak with a server, as connect does, for what h counts. use may be called
// again.
func (s *session) await(ctx context.Context, h *hold, use func(net.Conn) error) error {
	limit, cancel := context.WithTimeout(ctx, s.gate.bounds().Request)
	defer cancel()
	s.setWaits(true)
	defer s.setWaits(false)
	err := s.reach(limit, false, h, use)
	if err != nil && (limit.Err() != nil || errors.Is(err, context.DeadlineExceeded)) && s.answered(ctx) {
		s.refuse(tooLate)
		err = fmt.Errorf("%w: %w", errTold, err)
	}
	return err
}

const tooLate = "flocker: the server behind this port did not come back in time; try again"

// answered waits until the client has all answers that are still due, before which a
// refusal would be taken for one of them. It says whether it has.
func (s *session) answered(ctx context.Context) bool {
	for {
		s.mu.Lock()
		idle := s.backend == nil || !s.writing && s.framer.busy() == ""
		closed := s.closed
		s.mu.Unlock()
		if idle || closed {
			return !closed
		}
		select {
		case <-s.answers:
		case <-ctx.Done():
			return false
		}
	}
}

// comeBack connects a session that is to be back before a pause has ended, and calls
// done when there is nothing more to wait for. It says whether it will. The gate is
// locked.
func (s *session) comeBack(done func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.framer.(stateful)
	if !ok || s.closed || s.backend != nil || !f.listens() {
		return false
	}
	s.early = true
	s.pumps.Go(func() {
		defer done()
		ctx, cancel := context.WithTimeout(s.ctx, s.gate.bounds().Request)
		defer cancel()
		if err := s.reach(ctx, true, nil, s.attach); err != nil {
			s.gate.log.Warn("a session that listens could not be connected again", "client", s.conn.RemoteAddr(), "err", err)
			s.close()
		}
	})
	return true
}

// reach has use speak with a server, once there may be one; early, before a pause has
// ended, which h does not count.
func (s *session) reach(ctx context.Context, early bool, h *hold, use func(net.Conn) error) error {
	for held := false; ; held = true {
		err := s.tryReach(ctx, early, held, h, use)
		if errors.Is(err, errPaused) || errors.Is(err, errNotReady) {
			h.count()
		}
		switch {
		case errors.Is(err, errPaused):
		case errors.Is(err, errNotReady) && rest(ctx, notReadyRest) == nil:
		default:
			return err
		}
	}
}

var (
	errTold     = errors.New("the client was told that its time is over")
	errPaused   = errors.New("paused")
	errNotReady = errors.New("the server is not ready") // and nothing was asked of it that may not be asked again
)

const notReadyRest = 5 * time.Millisecond // until it is asked again

func (s *session) tryReach(ctx context.Context, early, held bool, h *hold, use func(net.Conn) error) error {
	s.mu.Lock()
	pause, closed := s.pause, s.closed
	open := s.backend != nil && s.framer.open()
	s.mu.Unlock()
	if closed {
		return net.ErrClosed
	}
	if pause != nil && !open && !early {
		h.count()
		end, cancel := context.WithDeadline(ctx, pause.until)
		defer cancel()
		select {
		case <-pause.over:
		case <-s.answers: // perhaps to what opened a transaction
		case <-end.Done():
			return fmt.Errorf("waiting for the end of a pause: %w", end.Err())
		}
		return errPaused
	}
	s.dials.Lock()
	defer s.dials.Unlock()
	s.mu.Lock()
	has := s.backend != nil
	over := early && !s.early // there is another pause since
	s.dialed = s.pauses
	s.mu.Unlock()
	if has || over {
		return nil
	}
	conn, err := s.gate.server(ctx, h)
	if err != nil {
		return err
	}
	// Whoever does not wait for an answer any more shall not have it done: it may be done
	// a second time elsewhere. Without a pause, it has only said all that it will.
	if held && gone(s.conn) {
		_ = conn.Close()
		return errors.New("the client has gone while its request waited")
	}
	s.inTime = sync.OnceValue(context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }))
	err = use(conn)
	if !s.inTime() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
	}
	return err
}

// attach makes conn the session's connection to the server.
func (s *session) attach(conn net.Conn) error {
	err := s.framer.replay(conn)
	s.mu.Lock()
	defer s.mu.Unlock()
	if f, ok := s.framer.(stateful); ok && err == nil {
		f.attached()
	}
	// Where there has been a pause since, conn leads to where the server was.
	stale := s.pauses != s.dialed || s.pause != nil && !s.early
	switch pinned := s.framer.pinned() != ""; {
	case s.closed:
		return net.ErrClosed
	case stale && !pinned: // whatever that server said
		return errPaused
	case err != nil:
		return err
	case stale && s.pause == nil:
		return errors.New("the server was exchanged while it was logging the client in")
	}
	if s.waiter != nil {
		if s.waiter.attached(s.gate.loaded.Load()) && !stale {
			s.gate.loaded.Store(true)
		}
		if s.waiter.pending() && gone(s.conn) {
			return errors.New("the client has gone while what it waits for was ended")
		}
	}
	if !s.inTime() { // nothing may be said on it, which its end would lose the answer to
		return errors.New("there was no time left when it was connected")
	}
	s.backend, s.out = conn, nil
	s.pumps.Go(func() { s.replies(conn) })
	s.goOn()
	return nil
}

// replies passes on what the server says, until that connection ends.
func (s *session) replies(from net.Conn) {
	defer s.gate.wake()
	in, out := newReader(from), newWriter(s.client)
	for {
		c, err := in.next()
		if err != nil {
			s.serverGone(from)
			return
		}
		s.mu.Lock()
		if s.left {
			s.mu.Unlock()
			c.release()
			return
		}
		s.writing = true
		pass := c.bytes()
		if s.framer.pinned() == "" || s.waiter != nil && s.waiter.owed() {
			if err := s.framer.reply(pass); err != nil {
				s.gate.log.Debug("a server's words are not understood any more", "client", s.conn.RemoteAddr(), "err", err)
			}
			if f, ok := s.framer.(stateful); ok {
				pass = f.pass()
			}
			if s.waiter != nil {
				s.clear()
				pass = s.waiter.pass()
			}
		}
		s.mu.Unlock()
		if len(pass) > 0 {
			err = out.write(pass)
		}
		c.release()
		s.mu.Lock()
		s.writing = false
		s.goOn()
		s.park()
		s.doubt()
		s.wakeWaiting()
		s.mu.Unlock()
		if err != nil {
			s.close()
			return
		}
	}
}

// wakeWaiting has a client that waits look again. s.mu is held.
func (s *session) wakeWaiting() {
	if s.waits || s.leaving || s.queues {
		select {
		case s.answers <- struct{}{}:
		default:
		}
	}
}

// serverGone ends a session whose server has hung up, unless it is us who did.
func (s *session) serverGone(from net.Conn) {
	s.mu.Lock()
	parked := s.backend != from
	s.mu.Unlock()
	if !parked {
		s.close()
	}
}

// park lets go of the server, if there is a pause and nothing is outstanding. s.mu is
// held.
func (s *session) park() {
	if s.pause == nil || s.early || s.closed || s.backend == nil || s.writing || s.ending != nil {
		return
	}
	if s.framer.busy() != "" {
		s.unblock()
		return
	}
	if f, ok := s.framer.(stateful); ok {
		if q := f.question(); q != nil {
			s.ask(q)
			return
		}
		if s.lingers() {
			s.gate.wake() // it may be the last
			return
		}
	}
	_ = s.backend.Close()
	s.backend, s.out = nil, nil
	if s.waiter != nil && s.waiter.pending() {
		s.pumps.Go(s.comeAgain)
	}
	s.gate.wake()
}

// doubt lets go of a server that may not have loaded its data yet, which it has been silent about until the client
// logged in: the connection that is made for what the client says next asks. s.mu is held.
func (s *session) doubt() {
	if s.waiter == nil || !s.waiter.doubts() || s.gate.loaded.Load() || s.closed || s.backend == nil || s.framer.busy() != "" {
		return
	}
	_ = s.backend.Close()
	s.backend, s.out = nil, nil
}

// ask puts a question to the server whose answer the framer takes. It is written under
// the lock, s.mu, so that nothing of the client's comes between what the framer counted
// and the server hears. A server that has answered everything has room for it.
func (s *session) ask(question []byte) {
	if err := writeNow(s.backend, question); err != nil {
		s.gate.log.Debug("a server could not be asked what a session holds", "client", s.conn.RemoteAddr(), "err", err)
		s.closeLocked()
	}
}

// lingers says that the session could be parked, if it were the last. s.mu is held.
func (s *session) lingers() bool {
	f, ok := s.framer.(stateful)
	return ok && s.pause != nil && s.backend != nil && !s.last && !s.writing && f.busy() == "" && f.listens()
}

// parkLast parks a session that lingers. All that others did before has been heard by
// the server, and what it therefore has to say comes before it answers a question.
func (s *session) parkLast() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f, ok := s.framer.(stateful); ok && s.lingers() {
		s.last = true
		f.forget()
		s.park()
	}
}

// settle implements served: what it waits for parks it.
func (s *session) settle() {}

func (s *session) setPause(p *pause) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pause, s.early, s.last = p, false, false
	if p != nil {
		s.pauses++
	}
	s.park()
	s.goOn()
}

func (s *session) setWaits(waits bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waits = waits
	s.gate.waits(one(waits))
}

// one is what a client adds to those that wait when it begins to, or no longer does.
func one(waits bool) int64 {
	if waits {
		return 1
	}
	return -1
}

// refuse tells the client that its request was not done. A reply can be followed by
// nothing else here.
func (s *session) refuse(why string) {
	s.mu.Lock()
	text := s.framer.refusal(why)
	s.mu.Unlock()
	if err := lastWords(s.client, text); err != nil {
		s.gate.log.Debug("a client could not be told in full that its request was refused", "client", s.conn.RemoteAddr(), "err", err)
	}
}

func (s *session) info() Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	info := Session{Client: s.conn.RemoteAddr().String(), Since: s.since, State: Parked, Pinned: s.framer.pinned() != ""}
	m, ok := s.framer.(*streams) // which may have several servers: that which takes requests, and such as end
	switch {
	case s.backend != nil || ok && m.busy() != "":
		info.State, info.Busy = Active, s.framer.busy()
		if info.Busy == "" && s.writing {
			info.Busy = "the client does not read what it asked for"
		}
		if s.lingers() {
			info.Busy = lingering
		}
	case s.waits || s.waiter != nil && s.waiter.pending():
		info.State = Waiting
	}
	return info
}
