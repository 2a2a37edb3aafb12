package replicate

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

const (
	firstRetry  = 500 * time.Millisecond
	lastRetry   = 15 * time.Second
	busyRetry   = 200 * time.Millisecond
	dialTimeout = 10 * time.Second
	idleTimeout = time.Minute // of a connection that no link uses
	maxAsking   = 4           // links that ask one replica at once, without a turn
)

// peer is one node as a target of links: its connections, and when to try again
// when it cannot be reached, so that a thousand links to a dead node dial it as
// seldom as one.
type peer struct {
	node   volume.NodeID
	asking chan struct{} // exchanges without a turn at once

	// Guarded by Engine.mu.
	idle    []idleWire
	retryAt time.Time // not dialed before
	backoff time.Duration
	err     error // of the last dial

	throttled     time.Duration // that streams waited for the limit and nobody was told
	toldThrottled time.Time

	line line // has a lock of its own
}

type idleWire struct {
	w     *wire
	since time.Time
}

// peerOf returns the peer. The caller holds mu.
func (e *Engine) peerOf(node volume.NodeID) *peer {
	p := e.peers[node]
	if p == nil {
		p = &peer{node: node, asking: make(chan struct{}, maxAsking)}
		e.peers[node] = p
	}
	return p
}

func (e *Engine) lineTo(node volume.NodeID) *line {
	e.mu.Lock()
	defer e.mu.Unlock()
	return &e.peerOf(node).line
}

// unreachableError says that a node cannot be reached, and when it is tried again.
type unreachableError struct {
	node    volume.NodeID
	retryAt time.Time
	err     error
}

func (u *unreachableError) Error() string {
	return fmt.Sprintf("node %s cannot be reached: %v", u.node.Short(), u.err)
}

func (u *unreachableError) Unwrap() error { return u.err }

// connect gives a connection to the peer: one that was used before, unless fresh
// is asked for, or a new one.
func (e *Engine) connect(ctx context.Context, p *peer, fresh bool) (w *wire, reused bool, err error) {
	e.mu.Lock()
	var stale []idleWire
	if fresh {
		stale, p.idle = p.idle, nil
	}
	if n := len(p.idle); n > 0 {
		w = p.idle[n-1].w
		p.idle = p.idle[:n-1]
	}
	wait, cause := p.retryAt, p.err
	e.mu.Unlock()
	for _, i := range stale {
		i.w.close()
	}
	if w != nil {
		return w, true, nil
	}
	if time.Now().Before(wait) {
		return nil, false, &unreachableError{p.node, wait, cause}
	}

	dialCtx, cancel := context.WithTimeout(ctx, dialTimeout)
	conn, err := e.cfg.Dial(dialCtx, p.node)
	cancel()
	if ctx.Err() != nil {
		if err == nil {
			conn.Close()
		}
		return nil, false, context.Cause(ctx)
	}
	if err != nil {
		e.mu.Lock()
		defer e.mu.Unlock()
		p.backoff = min(max(2*p.backoff, firstRetry), lastRetry)
		p.retryAt, p.err = time.Now().Add(jitter(p.backoff)), err
		return nil, false, &unreachableError{p.node, p.retryAt, err}
	}
	e.peerSeen(p.node)
	return newWire(conn, e.cfg.Stall), false, nil
}

// peerSeen says that a node is alive: links to it that wait for their next try
// try now.
func (e *Engine) peerSeen(node volume.NodeID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.peerOf(node)
	down := p.err != nil
	p.backoff, p.retryAt, p.err = 0, time.Time{}, nil
	if !down {
		return
	}
	for key, l := range e.links {
		if key.replica == node && l.failed {
			l.retryAt = time.Time{}
			wake(l.wake)
		}
	}
}

// park keeps a connection for the next exchange.
func (e *Engine) park(p *peer, w *wire) {
	e.mu.Lock()
	p.idle = append(p.idle, idleWire{w, time.Now()})
	e.mu.Unlock()
}

// closeIdle closes connections that nobody has used for long. It is called now and
// then, and tells too what nobody was told.
func (e *Engine) closeIdle(now time.Time) {
	var old []idleWire
	e.mu.Lock()
	for _, p := range e.peers {
		var rest []idleWire
		for _, i := range p.idle {
			if now.Sub(i.since) > idleTimeout {
				old = append(old, i)
			} else {
				rest = append(rest, i)
			}
		}
		p.idle = rest
	}
	e.mu.Unlock()
	for _, i := range old {
		i.w.close()
	}
	e.tellThrottling(now)
}

func (e *Engine) closePeers() { e.closeIdle(time.Now().Add(2 * idleTimeout)) }

// jitter spreads d by a quarter either way.
func jitter(d time.Duration) time.Duration {
	return d*3/4 + time.Duration(rand.Int64N(int64(d)/2+1))
}
