package proxy

import (
	"context"
	"errors"
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
	// attached says that a new connection has taken the place of the old one.
	attached()
}

// ender ends one session's wait, by another connection to its server. Nothing guards it.
type ender interface {
	begin(conn io.ReadWriter) error
	// end asks for it; that it was not forced may also mean that the server has not yet come to
	// what the client said. An error may leave that open, but for that of a server that refuses.
	end(conn io.ReadWriter) (forced bool, err error)
}

// ending is under way.
type ending struct {
	cancel context.CancelFunc
	over   chan struct{} // closed when it has been decided
}

// unblock has the server asked to end what the client waits for, once in a pause. s.mu is
// held.
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
	p := s.pause
	s.pumps.Go(func() {
		var over sync.WaitGroup
		over.Go(func() {
			select {
			case <-p.over:
				cancel()
			case <-ctx.Done():
			}
		})
		forced, perhaps, err := s.end(ctx, e)
		cancel()
		over.Wait()
		s.ended(forced, perhaps, err)
	})
}

// end asks the server until it has ended the wait, or the client has its answer: what it was asked may
// reach it before the client's command.
func (s *session) end(ctx context.Context, e ender) (forced, perhaps bool, err error) {
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
	for {
		forced, err = e.end(conn)
		if forced || err != nil {
			return forced, err != nil && !errors.As(err, new(*redisRefusal)), err
		}
		s.mu.Lock()
		waits := s.waiter.waits()
		s.mu.Unlock()
		if !waits {
			return false, false, nil
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

// goOn has a client whose wait was ended wait again: where it is, or if it was parked, where it
// comes to. s.mu is held.
func (s *session) goOn() {
	switch {
	case s.waiter == nil || s.closed || s.pause != nil || !s.waiter.pending():
	case s.backend != nil:
		if err := writeNow(s.backend, s.waiter.resend(time.Now())); err != nil {
			s.gate.log.Debug("a server could not be told again what a client waits for", "client", s.conn.RemoteAddr(), "err", err)
			s.closeLocked()
		}
	default:
		s.pumps.Go(s.comeAgain)
	}
}

// comeAgain connects a session whose client waits for an answer, and says nothing.
func (s *session) comeAgain() {
	ctx, cancel := context.WithTimeout(s.ctx, s.gate.bounds().Request)
	defer cancel()
	h := &hold{gate: s.gate}
	h.count()
	err := s.reach(ctx, false, h, s.attach)
	if err == nil {
		return
	}
	s.gate.log.Debug("a client that waits could not be connected again", "client", s.conn.RemoteAddr(), "err", err)
	if s.ctx.Err() == nil && ctx.Err() != nil {
		s.refuse(tooLate)
	}
	s.close()
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
			left = gone(s.conn)
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
