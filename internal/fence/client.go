package fence

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// patience is how long one request may take: the fencer answers at once, or not at all.
const patience = time.Second

// poll is the time between two looks at whether fencing is done.
const poll = 50 * time.Millisecond

// Client is flockd's line to the fencer of its machine. Its methods may be called
// concurrently; they connect by themselves, also again after the fencer was restarted.
// Except for Fence and Hold they return within about a second. An error means that the
// request was refused, or that the fencer was not reached; then it may or may not have
// been done, and what it was told before still holds.
type Client struct {
	dial func(context.Context) (net.Conn, error)

	mu   sync.Mutex
	conn net.Conn // nil: connect first
	in   *bufio.Scanner
}

// Dial makes the client of a fencer's socket. It does not connect yet.
func Dial(socket string) *Client {
	return &Client{dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
}

// Arm lets the writers of this node run until l.Until and has them stopped then. A
// lower number or an earlier deadline than is known changes nothing, and a lease that is
// over is not revived: see State and Saved in the answer. It is refused while writers of
// an earlier lease are still being stopped, and while an operator's stop holds.
func (c *Client) Arm(ctx context.Context, l Lease) (Status, error) {
	return c.ask(ctx, request{Do: doArm, Lease: &l})
}

// Fence stops all writers of lease no, and of earlier ones, now. It returns when they
// are verified to be gone, or with an error when ctx ends; fencing goes on all the same.
func (c *Client) Fence(ctx context.Context, no uint64, reason string) (Status, error) {
	return c.untilStopped(ctx, request{Do: doFence, No: no, Reason: reason})
}

// Disarm makes failover manual: from now on nothing is stopped any more. It is refused
// while writers are being stopped, and does not take an operator's stop back.
func (c *Client) Disarm(ctx context.Context) (Status, error) {
	return c.ask(ctx, request{Do: doDisarm})
}

// Status of the fencer.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return c.ask(ctx, request{Do: doStatus})
}

// Forget says that these containers, by their full IDs, run again or never will.
func (c *Client) Forget(ctx context.Context, containers []string) error {
	_, err := c.ask(ctx, request{Do: doForget, Containers: containers})
	return err
}

// Hold is Fence as an operator's wish: writers stay stopped, whatever leases are
// granted, until Lift or a reboot. Root is the dataset above the volumes, for a fencer
// that was never armed; "" means the dataset "flocker" of every pool.
func (c *Client) Hold(ctx context.Context, root, reason string) (Status, error) {
	return c.untilStopped(ctx, request{Do: doHold, Root: root, Reason: reason})
}

// Lift takes Hold back.
func (c *Client) Lift(ctx context.Context) (Status, error) {
	return c.ask(ctx, request{Do: doLift})
}

// Close ends the connection; the client may be used on.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop()
}

func (c *Client) untilStopped(ctx context.Context, r request) (Status, error) {
	s, err := c.ask(ctx, r)
	for err == nil && (s.State == PhaseFencing || s.State == PhaseFailed) {
		select {
		case <-ctx.Done():
			return s, fmt.Errorf("writers are not all stopped yet: %s: %w", s.Problem, ctx.Err())
		case <-time.After(poll):
		}
		s, err = c.ask(ctx, request{Do: doStatus})
	}
	return s, err
}

// ask sends one request and reads its answer. On a connection that was there before it
// tries once more: the fencer may have been restarted meanwhile.
func (c *Client) ask(ctx context.Context, r request) (Status, error) {
	line, err := json.Marshal(r)
	if err != nil {
		return Status{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.conn != nil
	answer, err := c.exchange(ctx, append(line, '\n'))
	if err != nil && old && ctx.Err() == nil {
		answer, err = c.exchange(ctx, append(line, '\n'))
	}
	if err != nil {
		return Status{}, fmt.Errorf("the fencer does not answer (is flockd-fence running?): %w", err)
	}
	if answer.Error != "" {
		return answer.Status, errors.New(answer.Error)
	}
	return answer.Status, nil
}

// exchange leaves no connection behind on which an answer may still come.
func (c *Client) exchange(ctx context.Context, line []byte) (a response, err error) {
	defer func() {
		if err != nil {
			c.drop()
		}
	}()
	if c.conn == nil {
		if c.conn, err = c.dial(ctx); err != nil {
			c.conn = nil
			return a, err
		}
		c.in = bufio.NewScanner(c.conn)
		c.in.Buffer(nil, maxLine)
	}
	conn := c.conn
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := conn.Write(line); err != nil {
		return a, cause(ctx, err)
	}
	if !c.in.Scan() {
		err := c.in.Err()
		if err == nil {
			err = errors.New("it closed the connection")
		}
		return a, cause(ctx, err)
	}
	return a, json.Unmarshal(c.in.Bytes(), &a)
}

// cause prefers the reason for which a connection was cut to its symptom.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (c *Client) drop() {
	if c.conn != nil {
		c.conn.Close()
		c.conn, c.in = nil, nil
	}
}
