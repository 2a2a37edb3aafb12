package zfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// The data path. A child never has a reader or writer of ours behind exec's own
// copier, for exec waits for that copier: a receive that fails at once would hang
// until the peer sends something. Instead the child gets the caller's file, or one
// end of a pipe whose other end is served by a goroutine that is joined here.

// Send implements System.
func (h *Host) Send(ctx context.Context, req SendRequest, w io.Writer) error {
	argv, err := sendArgs(req)
	if err != nil {
		return err
	}
	defer h.ahead.next()
	c := command{op: "send", argv: argv}
	if f, closeFile, ok := asFile(w); ok {
		defer closeFile()
		c.stdout, c.stop = f, func() { shutdown(f) }
		_, err := h.run(ctx, c)
		return refineSend(err, req)
	}

	pr, pw, err := streamPipe()
	if err != nil {
		return &Error{Op: "send", Err: err}
	}
	c.stdout, c.stop = pw, func() { pr.Close() }
	var childErr error
	childDone := make(chan struct{})
	go func() {
		defer close(childDone)
		_, childErr = h.run(ctx, c)
		pw.Close() // run's child has its own; ours must not keep pr from ending
	}()
	var readErr, writeErr error
	_, err = Interruptible(ctx, WriteDeadline(w), func() error {
		r, w := transfer(w, pr)
		pr.Close() // after a failed write the child must not go on
		if w != nil {
			return &endError{w}
		}
		return r
	})
	<-childDone
	var end *endError
	if errors.As(err, &end) {
		writeErr = end.error
	} else {
		readErr = err
	}

	// What happened first explains the rest: the end of ctx, a peer that closed, a
	// child that failed.
	switch {
	case ctx.Err() != nil && childErr == nil && err == nil:
		return nil // it was through
	case ctx.Err() != nil:
		return withCause(ctx, childErr, "send", argv)
	case writeErr != nil:
		return &Error{Op: "send", Args: argv, Err: fmt.Errorf("writing the stream: %w", writeErr)}
	case childErr != nil:
		return refineSend(childErr, req)
	case readErr != nil:
		return &Error{Op: "send", Args: argv, Err: readErr}
	}
	return nil
}

// endError marks an error of the caller's end of a transfer.
type endError struct{ error }

func (e *endError) Unwrap() error { return e.error }

func sendArgs(req SendRequest) ([]string, error) {
	argv := []string{"zfs", "send"}
	if req.Token != "" {
		if err := checkToken(req.Token); err != nil {
			return nil, &Error{Op: "send", Kind: ErrBadToken, Err: err}
		}
		return append(argv, "-t", req.Token), nil
	}
	argv = append(argv, "-L", "-e", "-c")
	err := CheckSnapshot(req.Snapshot)
	if req.From != "" {
		argv = append(argv, "-i", req.From)
		if err == nil && CheckSnapshot(req.From) != nil {
			err = CheckBookmark(req.From)
		}
	}
	if err := check("send", err); err != nil {
		return nil, err
	}
	return append(argv, req.Snapshot), nil
}

// refineSend gives texts that mean two things their kind: a base that zfs cannot
// open is ErrNoBase, and for a token any missing thing makes it useless.
func refineSend(err error, req SendRequest) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	switch {
	case req.Token != "" && (e.Kind == ErrNoBase || e.Kind == ErrNotFound):
		e.Kind = ErrBadToken
	case req.From != "" && e.Kind == ErrNotFound && slices.Contains(e.Names, req.From):
		e.Kind = ErrNoBase
	}
	return err
}

// Receive implements System.
func (h *Host) Receive(ctx context.Context, req ReceiveRequest, r io.Reader) error {
	var bad error
	if req.Origin != "" {
		bad = CheckSnapshot(req.Origin)
	}
	if err := check("receive", CheckDataset(req.Dataset), bad, checkProps(req.Properties)); err != nil {
		return err
	}
	argv := []string{"zfs", "receive", "-u"}
	if req.Resumable {
		argv = append(argv, "-s")
	}
	if req.Origin != "" {
		argv = append(argv, "-o", "origin="+req.Origin)
	}
	argv = append(slices.Concat(argv, options(req.Properties)), req.Dataset)
	defer h.ahead.next()
	c := command{op: "receive", argv: argv}
	if f, closeFile, ok := asFile(r); ok {
		defer closeFile()
		c.stdin, c.stop = f, func() { shutdown(f) }
		_, err := h.run(ctx, c)
		return err
	}

	began := time.Now()
	ch, pw, err := h.receiver(ctx, c)
	if err != nil {
		return err
	}
	// The copier stops when the child fails (failed ends) or ctx does.
	failed, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var childErr error
	childDone := make(chan struct{})
	go func() {
		defer close(childDone)
		defer h.observed(c, began, &childErr)
		if _, childErr = ch.end(ctx); childErr != nil {
			fail(childErr)
		}
	}()
	_, err = Interruptible(failed, ReadDeadline(r), func() error {
		defer pw.Close()
		return feed(failed, pw, r, childDone)
	})
	// The copier has closed its end, or it is stuck in r.Read and the child has
	// failed; either way the child ends.
	<-childDone

	switch {
	case childErr == nil:
		// Applied and durable, whatever became of r after it. What makes a dataset is not
		// done to it again.
		if len(req.Properties) == 0 && req.Origin == "" {
			h.ahead.ended(argv, true)
		}
		return nil
	case ctx.Err() != nil:
		return withCause(ctx, childErr, "receive", argv)
	}
	var end *endError
	var e *Error
	if errors.As(err, &end) && errors.As(childErr, &e) {
		e.Err = fmt.Errorf("reading the stream: %w", end.error)
	}
	return childErr
}

// receiver is a command that receives what is written to pw: one that has waited for it,
// or a new one.
func (h *Host) receiver(ctx context.Context, c command) (ch *child, pw *os.File, err error) {
	began := time.Now()
	defer func() {
		if err != nil {
			h.observed(c, began, &err)
		}
	}()
	if ctx.Err() != nil {
		return nil, nil, &Error{Op: c.op, Args: c.argv, Err: context.Cause(ctx)}
	}
	if s := h.ahead.claim(c.argv); s != nil && h.ready(s) {
		s.child.op, s.child.stop = c.op, func() { s.stdin.Close() }
		return s.child, s.stdin, nil
	}
	pr, pw, err := streamPipe()
	if err != nil {
		return nil, nil, &Error{Op: c.op, Err: err}
	}
	c.stdin, c.stop = pr, func() { pw.Close() }
	ch, err = start(c)
	pr.Close() // the child has its own; ours must not keep pw from failing
	if err != nil {
		pw.Close()
		return nil, nil, err
	}
	return ch, pw, nil
}

// feed copies r into the child. Once the child has ended well it reads r to its
// end, so that the caller's framing is at a known place.
func feed(ctx context.Context, pw *os.File, r io.Reader, childDone <-chan struct{}) error {
	buf := make([]byte, streamBuffer)
	var dst io.Writer = pw
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				pw.Close()
				<-childDone
				if ctx.Err() != nil {
					return nil
				}
				dst = io.Discard
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return &endError{err}
		}
	}
}

// withCause is err with the end of ctx as its cause.
func withCause(ctx context.Context, err error, op string, argv []string) error {
	var e *Error
	if errors.As(err, &e) {
		e.Err = context.Cause(ctx)
		return e
	}
	return &Error{Op: op, Args: argv, Err: context.Cause(ctx)}
}

// DecodeToken implements System.
func (h *Host) DecodeToken(ctx context.Context, token string) (ResumeToken, error) {
	if err := checkToken(token); err != nil {
		return ResumeToken{}, &Error{Op: "decode-token", Kind: ErrBadToken, Err: err}
	}
	argv := []string{"zfs", "send", "-n", "-v", "-t", token}
	out, err := h.run(ctx, command{op: "decode-token", argv: argv})
	if err != nil {
		// Only what zfs says plainly of the token counts: a partial copy is thrown away
		// because of it. A command that could not start, or was killed, says nothing.
		var e *Error
		if errors.As(err, &e) && (e.Kind == ErrNoBase || e.Kind == ErrNotFound) {
			e.Kind = ErrBadToken
		}
		return ResumeToken{}, err
	}
	t, err := parseToken(out)
	if err != nil {
		return ResumeToken{}, &Error{Op: "decode-token", Args: argv, Kind: ErrBadToken, Err: err}
	}
	return t, nil
}

// EstimateSend implements System.
func (h *Host) EstimateSend(ctx context.Context, req SendRequest) (int64, error) {
	argv, err := sendArgs(req)
	if err != nil {
		return 0, err
	}
	argv = slices.Insert(argv, 2, "-n", "-v", "-P")
	out, err := h.run(ctx, command{op: "estimate-send", argv: argv})
	if err != nil {
		return 0, refineSend(err, req)
	}
	n, err := parseEstimate(out)
	if err != nil {
		return 0, &Error{Op: "estimate-send", Args: argv, Err: err}
	}
	return n, nil
}
