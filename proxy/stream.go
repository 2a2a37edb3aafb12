package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// stream is one session's bytes on a carrier. It is like a connection of TCP: each side
// ends by itself, or all at once, or resets. One goroutine at a time may read, and one
// write.
type stream struct {
	carrier *carrier
	id      uint32

	mu      sync.Mutex
	changed sync.Cond

	in    []chunk // that nobody has read yet
	off   int     // how much of the first one was
	taken int     // read since credit was last given
	owed  int     // bytes that the other side may still say
	ended bool    // it has said all
	hung  bool    // nor does it want any more
	gone  bool    // and has said so

	credit int // bytes that may be said
	finish bool
	closed bool
	linger bool // closing is no reset
	lost   error

	end  uint64 // of its last data, in all that the carrier says
	sent uint64 // the same in the kernel's counting, when known; guarded by mu

	reads, writes deadline

	leave func(reset bool) // nil, or told that the other side wants nothing more
}

type deadline struct {
	timer  *time.Timer
	passed bool
}

func newStream(c *carrier, id uint32) *stream {
	s := &stream{carrier: c, id: id, owed: streamWindow, credit: streamWindow, linger: true}
	s.changed.L = &s.mu
	return s
}

// hear takes a frame of the other side's; kept says that p is the stream's now.
func (s *stream) hear(kind frameKind, p chunk) (kept bool, err error) {
	kept, err = s.heard(kind, p)
	if kind == frameClose || kind == frameReset {
		s.carrier.kick()
		s.left(kind == frameReset)
	}
	return kept, err
}

// left tells who is to know that the other side wants nothing more.
func (s *stream) left(reset bool) {
	s.mu.Lock()
	leave := s.leave
	s.mu.Unlock()
	if leave != nil {
		leave(reset)
	}
}

// onLeave has leave called, perhaps twice, when the other side has closed or reset the
// stream, also where nobody reads it: it may not block. An end by itself is none.
func (s *stream) onLeave(leave func(reset bool)) {
	s.mu.Lock()
	s.leave = leave
	reset, closed := s.lost != nil, s.gone
	s.mu.Unlock()
	if reset || closed {
		leave(reset)
	}
}

func (s *stream) heard(kind frameKind, p chunk) (kept bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.changed.Broadcast()
	switch kind {
	case frameData:
		if s.owed -= p.n; s.owed < 0 {
			return false, fmt.Errorf("%w: more on stream %d than was asked for", errFrame, s.id)
		}
		if s.ended || s.closed || s.lost != nil || p.n == 0 {
			return false, nil
		}
		if n := len(s.in); n > 0 && s.in[n-1].n+p.n <= chunkSize {
			last := &s.in[n-1]
			last.n += copy(last.buf[last.n:], p.bytes())
			return false, nil
		}
		s.in = append(s.in, p)
		return true, nil
	case frameEnd:
		s.ended = true
	case frameClose:
		s.ended, s.hung, s.gone = true, true, true
	case frameReset:
		s.lost = syscall.ECONNRESET
		s.drop()
	case frameCredit:
		if p.n != 4 {
			return false, fmt.Errorf("%w: a credit of %d bytes", errFrame, p.n)
		}
		s.credit += int(binary.BigEndian.Uint32(p.bytes()))
		if s.credit > streamWindow {
			return false, fmt.Errorf("%w: a credit of more than there may be", errFrame)
		}
	default:
		return false, fmt.Errorf("%w: kind %d", errFrame, kind)
	}
	return false, nil
}

// lose is told that the carrier has failed.
func (s *stream) lose() {
	s.mu.Lock()
	if !s.ended || !s.finish && !s.hung {
		s.lost = syscall.ECONNRESET
		s.drop()
	}
	s.hung = true
	lost := s.lost != nil
	s.changed.Broadcast()
	s.mu.Unlock()
	if lost { // one that is whole may still be read
		s.left(true)
	}
}

// drop forgets what nobody will read. s.mu is held.
func (s *stream) drop() {
	for _, c := range s.in {
		c.release()
	}
	s.in, s.off = nil, 0
}

// await waits until there is something to read. s.mu is held.
func (s *stream) await() error {
	for {
		switch {
		case s.closed:
			return net.ErrClosed
		case s.reads.passed:
			return os.ErrDeadlineExceeded
		case s.lost != nil:
			return s.lost
		case len(s.in) > 0:
			return nil
		case s.ended:
			return io.EOF
		}
		s.changed.Wait()
	}
}

// took counts what was read, and says how much the other side may therefore say more, once
// that is worth a frame. s.mu is held.
func (s *stream) took(n int) (credit int) {
	s.taken += n
	if s.taken < streamWindow/2 || s.ended {
		return 0
	}
	credit, s.taken = s.taken, 0
	s.owed += credit
	return credit
}

func (s *stream) give(credit int) {
	if credit > 0 {
		s.carrier.say(frameCredit, s.id, binary.BigEndian.AppendUint32(nil, uint32(credit)))
	}
}

// readChunk is as the function of that name: nothing is copied, and a stream that is silent
// has no buffer.
func (s *stream) readChunk() (chunk, error) {
	s.mu.Lock()
	if err := s.await(); err != nil {
		s.mu.Unlock()
		return chunk{}, err
	}
	c := s.in[0]
	if s.off > 0 {
		c.n = copy(c.buf[:], c.buf[s.off:c.n])
	}
	s.next()
	credit := s.took(c.n)
	s.mu.Unlock()
	s.give(credit)
	return c, nil
}

// next drops the first chunk, which was read. s.mu is held.
func (s *stream) next() {
	s.off = 0
	if s.in = s.in[1:]; len(s.in) == 0 {
		s.in = nil
	}
}

// Read implements net.Conn.
func (s *stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	if err := s.await(); err != nil {
		s.mu.Unlock()
		return 0, err
	}
	c := s.in[0]
	n := copy(p, c.bytes()[s.off:])
	if s.off += n; s.off == c.n {
		s.next()
		c.release()
	}
	credit := s.took(n)
	s.mu.Unlock()
	s.give(credit)
	return n, nil
}

// mayWrite says why nothing may be said. s.mu is held.
func (s *stream) mayWrite() error {
	switch {
	case s.closed || s.finish:
		return net.ErrClosed
	case s.writes.passed:
		return os.ErrDeadlineExceeded
	case s.lost != nil:
		return s.lost
	case s.hung:
		return syscall.EPIPE
	}
	return nil
}

// borrow takes credit for as much of n bytes as there is, and waits for some.
func (s *stream) borrow(n int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if err := s.mayWrite(); err != nil {
			return 0, err
		}
		if s.credit > 0 {
			n = min(n, s.credit, chunkSize)
			s.credit -= n
			return n, nil
		}
		s.changed.Wait()
	}
}

// Write implements net.Conn.
func (s *stream) Write(p []byte) (written int, err error) {
	for len(p) > 0 {
		n, err := s.borrow(len(p))
		if err != nil {
			return written, err
		}
		end, err := s.carrier.data(s.id, p[:n], func() error {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.mayWrite()
		})
		if err != nil {
			return written, err
		}
		s.mu.Lock()
		s.end, s.sent = end, 0
		s.mu.Unlock()
		written += n
		p = p[n:]
	}
	return written, nil
}

// writeNow is Write that waits for nobody: neither for credit, without which it fails, nor
// for others who have said much on the carrier.
func (s *stream) writeNow(p []byte) error {
	s.mu.Lock()
	err := s.mayWrite()
	if err == nil && len(p) > s.credit {
		err = errNoCredit
	}
	if err != nil {
		s.mu.Unlock()
		return err
	}
	s.credit -= len(p)
	s.mu.Unlock()
	for q := range slices.Chunk(p, chunkSize) {
		end := s.carrier.say(frameData, s.id, q)
		s.mu.Lock()
		s.end, s.sent = end, 0
		s.mu.Unlock()
	}
	return nil
}

var errNoCredit = errors.New("the other node has not taken what was said before")

// underway says that something was heard that nobody has read, or was said that has not
// reached the other node yet; ok is false if that cannot be told.
func (s *stream) underway() (is, ok bool) {
	s.mu.Lock()
	end, sent, unread := s.end, s.sent, len(s.in) > 0
	s.mu.Unlock()
	if unread {
		return true, true
	}
	done, ok := s.carrier.delivered(end, &sent)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.end == end {
		s.sent = sent
	}
	return !done, ok
}

// CloseWrite lets the other side know that all was said.
func (s *stream) CloseWrite() error {
	s.mu.Lock()
	err := s.mayWrite()
	s.finish = s.finish || err == nil
	s.changed.Broadcast()
	s.mu.Unlock()
	if err == nil {
		s.carrier.say(frameEnd, s.id, nil)
	}
	return err
}

// Close implements net.Conn.
func (s *stream) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	both := s.ended && s.finish
	lost, reset := s.lost != nil, !s.linger
	s.drop()
	for _, d := range []*deadline{&s.reads, &s.writes} {
		if d.timer != nil {
			d.timer.Stop()
		}
	}
	s.changed.Broadcast()
	s.mu.Unlock()
	s.carrier.kick()
	switch {
	case lost:
	case reset:
		s.carrier.say(frameReset, s.id, nil)
	case !both:
		s.carrier.say(frameClose, s.id, nil)
	}
	s.carrier.forget(s)
	return nil
}

// SetLinger is as that of net.TCPConn: with 0 closing is a reset.
func (s *stream) SetLinger(seconds int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.linger = seconds != 0
	return nil
}

// awaitHangup waits, after the end of what the other side says, until it wants no more,
// either, or we have said all.
func (s *stream) awaitHangup() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.hung && !s.finish && !s.closed && s.lost == nil {
		s.changed.Wait()
	}
}

// SetDeadline implements net.Conn.
func (s *stream) SetDeadline(t time.Time) error {
	s.set(&s.reads, t)
	s.set(&s.writes, t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (s *stream) SetReadDeadline(t time.Time) error {
	s.set(&s.reads, t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (s *stream) SetWriteDeadline(t time.Time) error {
	s.set(&s.writes, t)
	return nil
}

func (s *stream) set(d *deadline, t time.Time) {
	s.mu.Lock()
	if d.timer != nil {
		d.timer.Stop()
	}
	d.timer, d.passed = nil, false
	wait := time.Until(t)
	if !t.IsZero() && wait > 0 && !s.closed {
		var timer *time.Timer
		timer = time.AfterFunc(wait, func() {
			s.mu.Lock()
			d.passed = d.passed || d.timer == timer // it was not set anew
			s.changed.Broadcast()
			s.mu.Unlock()
			s.carrier.kick()
		})
		d.timer = timer
	}
	d.passed = !t.IsZero() && wait <= 0
	s.changed.Broadcast()
	s.mu.Unlock()
	s.carrier.kick()
}

// LocalAddr implements net.Conn.
func (s *stream) LocalAddr() net.Addr { return s.carrier.conn.LocalAddr() }

// RemoteAddr implements net.Conn.
func (s *stream) RemoteAddr() net.Addr { return s.carrier.conn.RemoteAddr() }
