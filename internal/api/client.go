package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// Client calls another flockd. It is a Backend and, over mutual TLS, a Peer. Its
// methods may be called at the same time. Errors are what the other side returned,
// or, if it could not be asked, CodeUnavailable, or CodeTimeout when ctx ran out.
type Client struct {
	http *http.Client
	tr   *http.Transport
}

var (
	_ Backend = (*Client)(nil)
	_ Peer    = (*Client)(nil)
)

// NewClient makes a client whose connections come from dial.
func NewClient(dial func(ctx context.Context) (net.Conn, error)) *Client {
	tr := &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxIdleConnsPerHost: 4,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true,
	}
	return &Client{http: &http.Client{Transport: tr}, tr: tr}
}

// NewUnixClient makes a client of the flockd that listens on a unix socket.
func NewUnixClient(path string) *Client {
	return NewClient(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", path)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
			return nil, volume.Errorf(volume.CodeUnavailable, "flockd is not running on this node (nothing listens on %s)", path).
				WithHint("systemctl start flockd")
		case errors.Is(err, fs.ErrPermission):
			return nil, volume.Errorf(volume.CodeDenied, "no permission to use %s", path).
				WithHint("run this as root or as a member of the group %s", SocketGroup)
		}
		return c, err
	})
}

// Close closes idle connections; running calls go on.
func (c *Client) Close() { c.tr.CloseIdleConnections() }

// Version implements Backend.
func (c *Client) Version(ctx context.Context) (v VersionInfo, err error) {
	return v, c.call(ctx, request{method: "GET", path: "/v1/version", out: &v})
}

// Status implements Backend.
func (c *Client) Status(ctx context.Context) (s ClusterStatus, err error) {
	return s, c.call(ctx, request{method: "GET", path: "/v1/status", out: &s})
}

// Init implements Backend.
func (c *Client) Init(ctx context.Context, req InitRequest) (rep InitReply, err error) {
	return rep, c.call(ctx, request{method: "POST", path: "/v1/init", in: req, out: &rep})
}

// Join implements Backend.
func (c *Client) Join(ctx context.Context, req JoinRequest) (rep JoinReply, err error) {
	return rep, c.call(ctx, request{method: "POST", path: "/v1/join", in: req, out: &rep})
}

// Nodes implements Backend.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	var rep nodesReply
	err := c.call(ctx, request{method: "GET", path: "/v1/nodes", out: &rep})
	return rep.Nodes, err
}

// Node implements Backend.
func (c *Client) Node(ctx context.Context, ref string) (n Node, err error) {
	path, err := at("/v1/nodes/", "node", ref)
	if err != nil {
		return n, err
	}
	return n, c.call(ctx, request{method: "GET", path: path, out: &n})
}

// LabelNode implements Backend.
func (c *Client) LabelNode(ctx context.Context, ref string, req LabelRequest) (n Node, err error) {
	path, err := at("/v1/nodes/", "node", ref)
	if err != nil {
		return n, err
	}
	return n, c.call(ctx, request{method: "PATCH", path: path, in: req, out: &n, repeatable: true})
}

// Volumes implements Backend.
func (c *Client) Volumes(ctx context.Context, q VolumesQuery) ([]Volume, error) {
	var rep volumesReply
	query := url.Values{}
	if q.Trash {
		query.Set("trash", "true")
	}
	err := c.call(ctx, request{method: "GET", path: "/v1/volumes", query: query, out: &rep})
	return rep.Volumes, err
}

// Volume implements Backend.
func (c *Client) Volume(ctx context.Context, ref string) (v Volume, err error) {
	path, err := at("/v1/volumes/", "volume", ref)
	if err != nil {
		return v, err
	}
	return v, c.call(ctx, request{method: "GET", path: path, out: &v})
}

// CreateVolume implements Backend.
func (c *Client) CreateVolume(ctx context.Context, req CreateVolumeRequest) (v Volume, err error) {
	fill(&req.Request)
	return v, c.call(ctx, request{method: "POST", path: "/v1/volumes", in: req, out: &v, repeatable: true})
}

// UpdateVolume implements Backend.
func (c *Client) UpdateVolume(ctx context.Context, ref string, req UpdateVolumeRequest) (rep UpdateVolumeReply, err error) {
	path, err := at("/v1/volumes/", "volume", ref)
	if err != nil {
		return rep, err
	}
	return rep, c.call(ctx, request{method: "PATCH", path: path, in: req, out: &rep, repeatable: true})
}

// RemoveVolume implements Backend.
func (c *Client) RemoveVolume(ctx context.Context, ref string, req RemoveVolumeRequest) error {
	path, err := at("/v1/volumes/", "volume", ref)
	if err != nil {
		return err
	}
	fill(&req.Request)
	query := url.Values{"request": {req.Request}}
	return c.call(ctx, request{method: "DELETE", path: path, query: query, repeatable: true})
}

// UndeleteVolume implements Backend.
func (c *Client) UndeleteVolume(ctx context.Context, ref string, req UndeleteRequest) (v Volume, err error) {
	path, err := at("/v1/volumes/", "volume", ref)
	if err != nil {
		return v, err
	}
	fill(&req.Request)
	return v, c.call(ctx, request{method: "POST", path: path + "/undelete", in: req, out: &v, repeatable: true})
}

// PurgeVolume implements Backend.
func (c *Client) PurgeVolume(ctx context.Context, ref string) error {
	path, err := at("/v1/volumes/", "volume", ref)
	if err != nil {
		return err
	}
	return c.call(ctx, request{method: "POST", path: path + "/purge"})
}

// CreateToken implements Backend.
func (c *Client) CreateToken(ctx context.Context, req TokenRequest) (t Token, err error) {
	return t, c.call(ctx, request{method: "POST", path: "/v1/tokens", in: req, out: &t})
}

// Tokens implements Backend.
func (c *Client) Tokens(ctx context.Context) ([]Token, error) {
	var rep tokensReply
	err := c.call(ctx, request{method: "GET", path: "/v1/tokens", out: &rep})
	return rep.Tokens, err
}

// RevokeToken implements Backend.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	path, err := at("/v1/tokens/", "token", id)
	if err != nil {
		return err
	}
	return c.call(ctx, request{method: "DELETE", path: path})
}

// Events implements Backend.
func (c *Client) Events(ctx context.Context, q EventsQuery) ([]Event, error) {
	var rep eventsReply
	query := url.Values{}
	if q.After > 0 {
		query.Set("after", strconv.FormatUint(q.After, 10))
	}
	if q.Wait > 0 {
		query.Set("wait", q.Wait.String())
	}
	err := c.call(ctx, request{method: "GET", path: "/v1/events", query: query, out: &rep})
	return rep.Events, err
}

// Report implements Peer.
func (c *Client) Report(ctx context.Context, r volume.Report, have map[volume.NodeID]uint64) (rep ReportReply, err error) {
	in := reportRequest{Report: r, Have: have}
	return rep, c.call(ctx, request{method: "POST", path: "/v1/peer/report", in: in, out: &rep, repeatable: true})
}

// Propose implements Peer.
func (c *Client) Propose(ctx context.Context, envelope []byte) (rep ProposeReply, err error) {
	in := proposeRequest{Envelope: envelope}
	return rep, c.call(ctx, request{method: "POST", path: "/v1/peer/propose", in: in, out: &rep})
}

// Barrier implements Peer.
func (c *Client) Barrier(ctx context.Context) (uint64, error) {
	var rep barrierReply
	err := c.call(ctx, request{method: "POST", path: "/v1/peer/barrier", out: &rep, repeatable: true})
	return rep.Index, err
}

// Acquire implements Peer.
func (c *Client) Acquire(ctx context.Context, id volume.ID, node volume.NodeID) error {
	in := acquireRequest{Volume: id, Node: node}
	return c.call(ctx, request{method: "POST", path: "/v1/peer/acquire", in: in, repeatable: true})
}

// Unlabel implements Peer.
func (c *Client) Unlabel(ctx context.Context, id volume.ID, attempt string) error {
	in := unlabelRequest{Volume: id, Attempt: attempt}
	return c.call(ctx, request{method: "POST", path: "/v1/peer/unlabel", in: in, repeatable: true})
}

// fill gives a change the ID that makes its repeat harmless.
func fill(id *string) {
	if *id == "" {
		*id = newRequestID()
	}
}

// at is the path of one thing. A ref that would lead to another path is refused
// here: an empty one names the whole list, a dot is cleaned away by the server.
func at(base, what, ref string) (string, error) {
	switch ref {
	case "":
		return "", volume.Errorf(volume.CodeInvalid, "no %s given", what).WithHint("give its name or id")
	case ".", "..":
		return "", noSuch(what, ref)
	}
	return base + url.PathEscape(ref), nil
}

// request is one call.
type request struct {
	method, path string
	query        url.Values
	in, out      any       // JSON; nil for none
	body         io.Reader // what is sent, instead of in
	repeatable   bool      // may be sent again on a fresh connection when a kept one turns out dead
}

// maxReply bounds what a broken server can make us hold.
const maxReply = 256 << 20

func (c *Client) call(ctx context.Context, rq request) error {
	resp, err := c.send(ctx, rq)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	reply, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return transportError(ctx, err)
	}
	if rq.out == nil || resp.StatusCode == http.StatusNoContent { // an older version has nothing to say
		return nil
	}
	if err := json.Unmarshal(reply, rq.out); err != nil {
		return fmt.Errorf("reading flockd's answer: %w", err)
	}
	return nil
}

// send returns the reply to a call that was not refused.
func (c *Client) send(ctx context.Context, rq request) (*http.Response, error) {
	body := rq.body
	if rq.in != nil {
		b, err := json.Marshal(rq.in)
		if err != nil {
			return nil, fmt.Errorf("encoding a request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	u := "http://flockd" + rq.path
	if len(rq.query) > 0 {
		u += "?" + rq.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, rq.method, u, body)
	if err != nil {
		return nil, volume.Errorf(volume.CodeInvalid, "making a request: %v", err)
	}
	id := RequestID(ctx)
	if id == "" {
		id = newRequestID()
	}
	req.Header.Set(requestIDHeader, id)
	if rq.in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if rq.repeatable {
		req.Header.Set("Idempotency-Key", id) // http.Transport heeds it; we do not
	}

	resp, err := c.http.Do(req)
	if err != nil {
		return nil, transportError(ctx, err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	reply, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return nil, transportError(ctx, err)
	}
	return nil, readError(resp.StatusCode, reply)
}

// transportError says why no answer came.
func transportError(ctx context.Context, err error) error {
	var e *volume.Error
	var ue *url.Error
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return volume.Errorf(volume.CodeTimeout, "no answer from flockd in time").
			WithHint("what was asked may still happen; look before asking again")
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &e):
		return e
	case errors.As(err, &ue):
		err = ue.Err // without the made-up URL
	}
	return &noAnswer{volume.Errorf(volume.CodeUnavailable, "no answer from flockd: %v", err)}
}

// ErrNoAnswer is in the chain of an error that does not come from the other flockd:
// it could not be reached, or the connection broke before its answer. What was asked
// may have happened.
var ErrNoAnswer = errors.New("no answer from flockd")

// noAnswer is a refusal for people and an ErrNoAnswer for programs.
type noAnswer struct{ e *volume.Error }

func (n *noAnswer) Error() string   { return n.e.Error() }
func (n *noAnswer) Unwrap() []error { return []error{n.e, ErrNoAnswer} }
