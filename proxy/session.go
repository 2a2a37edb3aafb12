package proxy

import (
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

// session is one client's.
type session struct {
	gate   *Gate
	client net.Conn
	since  time.Time
	pumps  sync.WaitGroup // one for each connection to the server that it ever had

	mu      sync.Mutex
	framer  framer
	pause   *pause        // nil: not paused
	backend net.Conn      // nil: parked
	waits   bool          // the client has said something that may not be passed on yet
	answers chan struct{} // has something when the server has spoken, or all is over, while the client waits
	writing bool          // what the server said is on its way to the client
	closed  bool
}

func newSession(g *Gate, client net.Conn) *session {
	return &session{gate: g, client: client, since: time.Now(), framer: g.speaks.framer(), answers: make(chan struct{}, 1)}
}

// run serves the client to its end.
func (s *session) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, s.close)
	err := s.requests(ctx)
	if errors.Is(err, io.EOF) {
		err = nil
		s.hearOut()
	}
	stop()
	s.close()
	s.pumps.Wait()
	return err
}

// close ends the session from whatever goroutine; its own notice by their next read or
// write.
func (s *session) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.wakeWaiting()
	_ = s.client.Close()
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

// requests passes on what the client says.
func (s *session) requests(ctx context.Context) error {
	for {
		c, err := readChunk(s.client)
		if err != nil {
			return err
		}
		err = s.forward(ctx, c.bytes())
		c.release()
		if err != nil {
			return err
		}
	}
}

func (s *session) forward(ctx context.Context, p []byte) error {
	for len(p) > 0 {
		n, to := s.admit(p)
		if n == 0 {
			if err := s.connect(ctx); err != nil {
				return err
			}
			continue
		}
		if _, err := to.Write(p[:n]); err != nil {
			return fmt.Errorf("passing a request to the server: %w", err)
		}
		p = p[n:]
	}
	return nil
}

// admit says how much of what the client said may be passed on now, and to whom. What
// thereby begins is counted under the lock that a pause takes: no request slips
// through between the two.
func (s *session) admit(p []byte) (n int, to net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.backend == nil {
		return 0, nil
	}
	for n < len(p) {
		if s.framer.pinned() != "" {
			return len(p), s.backend
		}
		if s.pause != nil && s.framer.between() && !s.framer.open() {
			break
		}
		took, err := s.framer.request(p[n:])
		n += took
		if err != nil {
			s.gate.log.Debug("a client's words are not understood any more", "client", s.client.RemoteAddr(), "err", err)
		}
	}
	return n, s.backend
}

// connect waits until the gate is not paused, and until there is a server. When that
// takes longer than a request may wait, the client is told so in its protocol's words.
func (s *session) connect(ctx context.Context) error {
	limit, cancel := context.WithTimeout(ctx, s.gate.limits.Request)
	defer cancel()
	s.setWaits(true)
	defer s.setWaits(false)
	for held := false; ; held = true {
		err := s.tryConnect(limit, held)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errPaused):
			continue
		case limit.Err() != nil, errors.Is(err, context.DeadlineExceeded):
			if s.answered(ctx) {
				s.refuse("flocker: the server behind this port did not come back in time; try again")
			}
		}
		return err
	}
}

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

var errPaused = errors.New("paused")

func (s *session) tryConnect(ctx context.Context, held bool) error {
	s.mu.Lock()
	pause, has, closed := s.pause, s.backend != nil, s.closed
	open := has && s.framer.open()
	s.mu.Unlock()
	if closed {
		return net.ErrClosed
	}
	if pause != nil && !open {
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
	if has {
		return nil
	}
	conn, err := s.gate.server(ctx)
	if err != nil {
		return err
	}
	// Whoever does not wait for an answer any more shall not have it done: it may be done
	// a second time elsewhere. Without a pause, it has only said all that it will.
	if held && gone(s.client) {
		err = errors.New("the client has gone while its request waited")
	} else {
		err = s.attach(ctx, conn)
	}
	if err != nil {
		_ = conn.Close()
	}
	return err
}

// attach makes conn the session's connection to the server.
func (s *session) attach(ctx context.Context, conn net.Conn) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err := s.framer.replay(conn)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return net.ErrClosed
	case s.pause != nil: // since we looked
		return errPaused
	}
	s.backend = conn
	s.pumps.Go(func() { s.replies(conn) })
	return nil
}

// replies passes on what the server says, until that connection ends.
func (s *session) replies(from net.Conn) {
	defer s.gate.wake()
	for {
		c, err := readChunk(from)
		if err != nil {
			s.serverGone(from)
			return
		}
		s.mu.Lock()
		s.writing = true
		if s.framer.pinned() == "" {
			if err := s.framer.reply(c.bytes()); err != nil {
				s.gate.log.Debug("a server's words are not understood any more", "client", s.client.RemoteAddr(), "err", err)
			}
		}
		s.mu.Unlock()
		_, err = s.client.Write(c.bytes())
		c.release()
		s.mu.Lock()
		s.writing = false
		s.park()
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
	if s.waits {
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
	if s.pause == nil || s.backend == nil || s.writing || s.framer.busy() != "" {
		return
	}
	_ = s.backend.Close()
	s.backend = nil
	s.gate.wake()
}

func (s *session) setPause(p *pause) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pause = p
	s.park()
}

func (s *session) setWaits(waits bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waits = waits
}

// refuse tells the client that its request was not done. A reply can be followed by
// nothing else here: what else the client sends is read, for a second, because it would
// reset the connection otherwise and the refusal with it, and dropped.
func (s *session) refuse(why string) {
	s.mu.Lock()
	text := s.framer.refusal(why)
	s.mu.Unlock()
	_ = s.client.SetDeadline(time.Now().Add(time.Second))
	_, err := s.client.Write(text)
	if half, ok := s.client.(interface{ CloseWrite() error }); ok && err == nil {
		if err = half.CloseWrite(); err == nil {
			_, err = io.Copy(io.Discard, s.client)
		}
	}
	if err != nil {
		s.gate.log.Debug("a client could not be told in full that its request was refused", "client", s.client.RemoteAddr(), "err", err)
	}
}

func (s *session) info() Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	info := Session{Client: s.client.RemoteAddr().String(), Since: s.since, State: Parked, Pinned: s.framer.pinned() != ""}
	switch {
	case s.backend != nil:
		info.State, info.Busy = Active, s.framer.busy()
		if info.Busy == "" && s.writing {
			info.Busy = "the client does not read what it asked for"
		}
	case s.waits:
		info.State = Waiting
	}
	return info
}
