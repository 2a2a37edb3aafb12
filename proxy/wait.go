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

// waiter is a framer of a protocol in which a client may wait at its server for what others do, which a
// pause keeps them from. The session's lock guards it.
//
//	waits ──unblock──▶ being asked ──null, and it was forced──▶ pending ──attached, resend──▶ waits
//	  ◀──not forced: the answer is the client's──┘
type waiter interface {
	framer
	// pass is what of the last reply is for the client. It stands where the reply stood.
	pass() []byte
	// wants says that the server has to be asked something before it hears the message that p
	// begins with; ask is that, and its answer is not the client's.
	wants(p []byte) bool
	ask() []byte
	// owed says that this answer is still to come, also if the session has been pinned since.
	owed() bool
	// behind says that what the client says next has to wait for an answer.
	behind() bool
	// loggingIn says that this is the answer to the client's login: what the client has said behind that is to be done,
	// also if it has closed its side since.
	loggingIn() bool
	// waits says that the server has not answered yet.
	waits() bool
	// unblock begins to end the wait; nil if there is none, or none that can be begun again.
	unblock() ender
	// unclear says that an answer is there of which it is only known by decide whose it is.
	unclear() bool
	// decide says whether the server has ended the wait because it was asked to, perhaps has, or
	// why not.
	decide(forced, perhaps bool, err error)
	// pending says that a wait has been ended, and is to be begun again by resend, where the session
	// is by then.
	pending() bool
	resend(now time.Time) []byte
	// forced is what the server has said to the wait that is pending, and when the time of that ends; zero: never.
	// forget has it pending no more: its client has heard that.
	forced() (null []byte, ends time.Time)
	forget()
	// attached says that a new connection has taken the place of the old one, and whether it is known of its
	// server that it has loaded what it answers from. It returns whether that is known now.
	attached(loaded bool) bool
	// doubts says, once, that the client has logged in where this is not known: another connection is to ask.
	doubts() bool
}

// ender ends one session's wait, by another connection to its server. Nothing guards it.
type ender interface {
	begin(conn io.ReadWriter) error
	// end asks for it; that it was not forced may also mean that the server has not yet come to
	// what the client said. With an error, it may be open whether it was: perhaps.
	end(conn io.ReadWriter) (forced, perhaps bool, err error)
}

// ending is under way.
type ending struct {
	cancel context.CancelFunc
	over   chan struct{} // closed when it has been decided
}

// unblock has the server asked to end what the client waits for, once in a pause, and again where it
// refuses for reasons that pass. s.mu is held.
func (s *session) unblock() {
	w := s.waiter
	if w == nil || s.ending != nil || s.unblocked == s.pauses || s.pause == nil {
		return
	}
	e := w.unblock()
	if e == nil {
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	s.ending, s.unblocked = &ending{cancel, make(chan struct{})}, s.pauses
	p, backend := s.pause, s.backend
	s.pumps.Go(func() {
		var over sync.WaitGroup
		over.Go(func() {
			select {
			case <-p.over:
				cancel()
			case <-ctx.Done():
			}
		})
		forced, perhaps, err := s.end(ctx, e, p, backend)
		cancel()
		over.Wait()
		s.ended(forced, perhaps, err)
		if err != nil && !perhaps && !lasting(err) {
			s.unblockAgain(p)
		}
	})
}

// lasting says that a server which refuses to end a wait would refuse it again.
func lasting(err error) bool {
	var refused *redisRefusal
	return errors.As(err, &refused) && refused.lasting()
}

// unblockAgain has the server asked once more in the pause p, after a while.
func (s *session) unblockAgain(p *pause) {
	again := time.NewTimer(100 * time.Millisecond)
	defer again.Stop()
	select {
	case <-again.C:
	case <-p.over:
		return
	case <-s.ctx.Done():
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pause == p {
		s.unblocked = 0
		s.park()
	}
}

// end asks the server until it has ended the wait, or the client has its answer: what it was asked may
// reach it before the client's command. It is the server at the other end of backend, in the pause p.
func (s *session) end(ctx context.Context, e ender, p *pause, backend net.Conn) (forced, perhaps bool, err error) {
	select {
	case s.gate.unblocks <- struct{}{}:
		defer func() { <-s.gate.unblocks }()
	case <-ctx.Done():
		return false, false, ctx.Err()
	}
	s.gate.mu.Lock()
	dial := s.gate.dial
	s.gate.mu.Unlock()
	conn, err := dial(urgently(ctx))
	if err != nil {
		return false, false, err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := e.begin(conn); err != nil {
		return false, false, err
	}
	for begin := time.Now(); ; {
		// Past the pause, or where the session has lost its connection, conn may lead to another server, which
		// knows somebody else by the same number.
		s.mu.Lock()
		here := !s.closed && s.pause == p && s.backend == backend
		s.mu.Unlock()
		if !here {
			return false, false, errors.New("the server may be another by now")
		}
		forced, perhaps, err = e.end(conn)
		if forced || err != nil {
			return forced, perhaps, err
		}
		s.mu.Lock()
		waits := s.waiter.waits()
		s.mu.Unlock()
		if !waits {
			return false, false, nil
		}
		if time.Since(begin) > time.Second { // others want to ask, too
			return false, false, &redisRefusal{"it does not find the client waiting"}
		}
		if err := rest(ctx, 5*time.Millisecond); err != nil {
			return false, false, err
		}
	}
}

// ended lets everything go on that waited for the end of an ending.
func (s *session) ended(forced, perhaps bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && s.ctx.Err() == nil {
		s.gate.log.Debug("what a client waits for could not be ended", "client", s.conn.RemoteAddr(), "err", err)
	}
	s.waiter.decide(forced, perhaps, err)
	close(s.ending.over)
	s.ending = nil
	s.wakeWaiting()
	s.park()
}

// clear waits until it is known whose a server's answer is. s.mu is held, but not meanwhile.
func (s *session) clear() {
	switch w := s.waiter; {
	case s.ending == nil:
	case w.unclear():
		over := s.ending.over
		s.mu.Unlock()
		<-over // which ends with the pause, or the session, at the latest
		s.mu.Lock()
	case !w.waits():
		s.ending.cancel()
	}
}

// goOn has a client whose wait was ended, and that is not parked, wait again where it is. s.mu is held.
func (s *session) goOn() {
	if s.waiter == nil || s.closed || s.pause != nil || s.backend == nil || !s.waiter.pending() {
		return
	}
	if err := writeNow(s.backend, s.waiter.resend(time.Now())); err != nil {
		s.gate.log.Debug("a server could not be told again what a client waits for", "client", s.conn.RemoteAddr(), "err", err)
		s.closeLocked()
	}
}

// comeAgain serves a parked session whose client waits for an answer until it has a connection again. If the time
// that the client has asked for is over first it hears the null that its wait was ended with: nothing was given
// away. Otherwise, if it takes too long, it is told so as to a request. Nobody else connects the session meanwhile, or speaks to
// its client: what that says comes behind what it waits for.
func (s *session) comeAgain() {
	h := &hold{gate: s.gate}
	h.count()
	s.mu.Lock()
	null, ends := s.waiter.forced()
	s.mu.Unlock()
	ctx, cancel := s.ctx, context.CancelFunc(func() {})
	if !ends.IsZero() {
		ctx, cancel = context.WithDeadline(s.ctx, ends)
	}
	defer cancel()
	err := s.reachAgain(ctx, h)
	switch {
	case err == nil:
		return
	case s.ctx.Err() != nil:
	case ctx.Err() != nil:
		if err = s.tell(null); err == nil {
			return
		}
	case errors.Is(err, context.DeadlineExceeded):
		s.refuse(tooLate)
	}
	s.gate.log.Debug("a client that waits could not be connected again", "client", s.conn.RemoteAddr(), "err", err)
	s.close()
}

// reachAgain connects the session when there is no pause, for which it has the time of a request after each. A pause
// has an end of its own.
func (s *session) reachAgain(ctx context.Context, h *hold) error {
	for {
		if err := s.outlast(ctx); err != nil {
			return err
		}
		limit, cancel := context.WithTimeout(ctx, s.gate.bounds().Request)
		err := s.tryAgain(limit, h)
		late := limit.Err()
		cancel()
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errPaused):
		case late != nil && s.paused() != nil: // which began after the one before
		case late != nil:
			return fmt.Errorf("%w: %w", late, err)
		default:
			return err
		}
	}
}

// tryAgain connects the session. Of the connections that are made at a time some are left for requests.
func (s *session) tryAgain(ctx context.Context, h *hold) error {
	select {
	case s.gate.returns <- struct{}{}:
		defer func() { <-s.gate.returns }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		err := s.tryReach(ctx, false, true, h, s.attach)
		if !errors.Is(err, errNotReady) || rest(ctx, notReadyRest) != nil {
			return err
		}
	}
}

func (s *session) paused() *pause {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pause
}

// outlast blocks while there is a pause. One that lasts longer than anything may wait is an error.
func (s *session) outlast(ctx context.Context) error {
	for p := s.paused(); p != nil; p = s.paused() {
		limit, cancel := context.WithDeadline(ctx, p.until)
		select {
		case <-p.over:
		case <-limit.Done():
			defer cancel()
			return fmt.Errorf("waiting for the end of a pause: %w", limit.Err())
		}
		cancel()
	}
	return nil
}

// tell says to the client what ends what it waits for.
func (s *session) tell(null []byte) error {
	s.mu.Lock()
	s.writing = true
	s.mu.Unlock()
	err := newWriter(s.client).write(null)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writing = false
	s.waiter.forget()
	s.wakeWaiting()
	return err
}

func (s *session) loggingIn() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiter.loggingIn()
}

// afterWait blocks until what the client says next may be said. One that goes away meanwhile has said
// nothing after what it waited for: its server forgets it with that.
func (s *session) afterWait(ctx context.Context) error {
	if s.waiter == nil {
		return nil
	}
	const look = 100 * time.Millisecond
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.waiter.behind() && !s.closed {
		s.queues = true
		s.mu.Unlock()
		again := time.NewTimer(look)
		left := false
		select {
		case <-s.answers:
		case <-again.C:
			left = reset(s.conn) || gone(s.conn) && !s.loggingIn()
		case <-ctx.Done():
		}
		again.Stop()
		s.mu.Lock()
		s.queues = false
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case left && s.waiter.behind():
			return io.EOF
		}
	}
	if s.closed {
		return net.ErrClosed
	}
	return nil
}
