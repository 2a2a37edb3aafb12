package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/flocker-io/flocker/internal/transport"
	"github.com/flocker-io/flocker/internal/volume"
)

// Members, and machines that want to be, ask each other a few small questions: one
// JSON request and one JSON reply per connection. On flk-node/1 both are members; on
// flk-join/1 the asker may be anybody.

const (
	rpcTimeout     = 15 * time.Second
	rpcMaxBytes    = 1 << 20
	rpcMaxSessions = 64 // more wait in Accept
)

type rpcRequest struct {
	Op   string          `json:"op"`
	Body json.RawMessage `json:"body"`
}

type rpcReply struct {
	Err *volume.Error `json:"err,omitempty"`
	// Leader is set with Err when the question is for the leader and is known.
	Leader *peer           `json:"leader,omitempty"`
	Body   json.RawMessage `json:"body,omitempty"`
}

// rpcHandler answers one operation. An error that is not a *volume.Error is logged
// and its text is sent all the same: the parts of it that come from this machine are
// paths and addresses.
type rpcHandler func(ctx context.Context, from volume.NodeID, body json.RawMessage) (any, error)

// serve both protocols until ctx ends.
func (c *Cluster) serve(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.serveProtocol(ctx, transport.ProtoJoin, map[string]rpcHandler{
			"join": c.handleJoin, "renew": c.handleRenew,
		})
	}()
	c.serveProtocol(ctx, transport.ProtoNode, map[string]rpcHandler{
		"update": c.handleUpdate, "seal": c.handleSeal, "data-key": c.handleDataKey,
	})
	<-done
}

func (c *Cluster) serveProtocol(ctx context.Context, p transport.Protocol, handlers map[string]rpcHandler) {
	ln := c.listener.Protocol(p)
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	slots := make(chan struct{}, rpcMaxSessions)
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			conn.Close()
			return
		}
		ok := c.goRun(func() {
			defer func() { <-slots }()
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			ctx, cancel := context.WithTimeout(ctx, rpcTimeout)
			defer cancel()
			c.answer(ctx, conn, handlers)
		})
		if !ok {
			conn.Close()
			return
		}
	}
}

func (c *Cluster) answer(ctx context.Context, conn net.Conn, handlers map[string]rpcHandler) {
	conn.SetDeadline(time.Now().Add(rpcTimeout))
	var req rpcRequest
	if err := json.NewDecoder(io.LimitReader(conn, rpcMaxBytes)).Decode(&req); err != nil {
		c.log.Debug("bad request", "from", conn.RemoteAddr(), "err", err)
		return
	}
	from, _ := transport.PeerOf(conn)
	var reply rpcReply
	h := handlers[req.Op]
	if h == nil {
		reply.Err = volume.Errorf(volume.CodeInvalid, "this version does not know the request %q", req.Op)
	} else {
		body, err := h(ctx, from, req.Body)
		if err == nil {
			reply.Body, err = json.Marshal(body)
		}
		if err != nil {
			reply = c.rpcError(req.Op, err)
		}
	}
	if err := json.NewEncoder(conn).Encode(reply); err != nil {
		c.log.Debug("cannot answer", "op", req.Op, "to", conn.RemoteAddr(), "err", err)
	}
}

func (c *Cluster) rpcError(op string, err error) rpcReply {
	var reply rpcReply
	var notLeader *NotLeaderError
	if errors.As(err, &notLeader) {
		if addr := c.book.find(c.State(), notLeader.Leader); addr != "" {
			reply.Leader = &peer{Node: notLeader.Leader, Addr: addr}
		}
	}
	if !errors.As(err, &reply.Err) {
		c.log.Error("cannot answer a request", "op", op, "err", err)
		reply.Err = &volume.Error{Code: volume.CodeUnavailable, Message: err.Error()}
	}
	return reply
}

// redirect is the error of a request that another member, the leader, must answer.
type redirect struct {
	to  peer
	why *volume.Error
}

func (e *redirect) Error() string { return e.why.Error() }
func (e *redirect) Unwrap() error { return e.why }

// call asks one question on a fresh connection and closes it. The error is what the
// other side answered, a *redirect, or says that there was no answer.
func call(ctx context.Context, conn net.Conn, op string, req, reply any) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	deadline := time.Now().Add(rpcTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	conn.SetDeadline(deadline)
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(conn).Encode(rpcRequest{Op: op, Body: body}); err != nil {
		return fmt.Errorf("asking %s: %w", conn.RemoteAddr(), err)
	}
	var r rpcReply
	if err := json.NewDecoder(io.LimitReader(conn, rpcMaxBytes)).Decode(&r); err != nil {
		return fmt.Errorf("waiting for the answer of %s: %w", conn.RemoteAddr(), err)
	}
	switch {
	case r.Err != nil && r.Leader != nil:
		return &redirect{to: *r.Leader, why: r.Err}
	case r.Err != nil:
		return r.Err
	}
	return json.Unmarshal(r.Body, reply)
}

// ask a member on flk-node/1.
func (c *Cluster) ask(ctx context.Context, id volume.NodeID, op string, req, reply any) error {
	conn, err := c.Dial(ctx, id, transport.ProtoNode)
	if err != nil {
		return err
	}
	return call(ctx, conn, op, req, reply)
}

// empty is the body of requests and replies that say nothing.
type empty struct{}
