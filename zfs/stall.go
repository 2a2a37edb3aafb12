package zfs

import (
	"context"
	"io"
	"time"
)

// stallGrace is how long a cancelled transfer waits for a peer's Read or Write
// that cannot be interrupted before it lets the goroutine go.
const stallGrace = time.Second

// Interruptible runs f, which reads from or writes to a peer, and comes back soon
// after ctx has ended even when f is blocked there: it calls deadline with a time
// in the past (see ReadDeadline and WriteDeadline), waits for f, and clears the
// deadline.
//
// A peer without deadlines (nil) cannot be interrupted. Then Interruptible waits a
// second more and returns with joined false, and f's goroutine lives until its
// Read or Write returns: whoever owns the peer closes it. The host and its fake
// both use this around every stream.
func Interruptible(ctx context.Context, deadline func(time.Time) error, f func() error) (joined bool, err error) {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return true, err
	case <-ctx.Done():
	}

	if deadline != nil {
		deadline(time.Unix(1, 0))
		defer deadline(time.Time{})
	}
	timer := time.NewTimer(stallGrace)
	defer timer.Stop()
	select {
	case err := <-done:
		return true, err
	case <-timer.C:
		return false, context.Cause(ctx)
	}
}

// ReadDeadline is r's SetReadDeadline, or nil: network connections have one, and
// what wraps them should pass it on.
func ReadDeadline(r io.Reader) func(time.Time) error {
	if d, ok := r.(interface{ SetReadDeadline(time.Time) error }); ok {
		return d.SetReadDeadline
	}
	return nil
}

// WriteDeadline is w's SetWriteDeadline, or nil. A TLS connection is of no use for
// writing once it was needed.
func WriteDeadline(w io.Writer) func(time.Time) error {
	if d, ok := w.(interface{ SetWriteDeadline(time.Time) error }); ok {
		return d.SetWriteDeadline
	}
	return nil
}
