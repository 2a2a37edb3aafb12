package api

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// RouteState is what a route does.
type RouteState string

// The states.
const (
	RouteOpen    RouteState = "open"
	RoutePaused  RouteState = "paused"  // by an operator
	RouteMoving  RouteState = "moving"  // its server is on its way to another node
	RouteWaiting RouteState = "waiting" // no server runs that answers; who comes waits
	RouteUnknown RouteState = "unknown" // its owner does not say, or its volume has no primary
)

// Route is a port that all nodes listen on for one volume, and what its clients do.
type Route struct {
	volume.Route
	// Volume is its name. Container is the one whose labels ask for the route; "": the
	// volume's options do.
	Volume    string `json:"volume"`
	Container string `json:"container,omitempty"`
	// Owner is the node with the gate; nobody while the volume has no primary.
	Owner  NodeRef    `json:"owner,omitzero"`
	State  RouteState `json:"state"`
	Server string     `json:"server,omitempty"` // ip:port on the owner
	// Of all nodes that answered: connections of clients, those without a connection to the
	// server, and those with a request that waits.
	Sessions int `json:"sessions"`
	Parked   int `json:"parked"`
	Held     int `json:"held"`
	// Pinned cannot be moved for as long as they live; Busy keep a pause from beginning.
	Pinned []RouteSession `json:"pinned,omitempty"`
	Busy   []RouteSession `json:"busy,omitempty"`
	// Problems are sentences, such as that a node cannot listen.
	Problems []string `json:"problems,omitempty"`
	// Linked are the containers whose label flocker.links names the route.
	Linked []RouteLink `json:"linked,omitempty"`
}

// RouteLink is a container that is to reach a route through its own node.
type RouteLink struct {
	Node      NodeRef `json:"node,omitzero"`
	Container string  `json:"container"`
	Name      string  `json:"name"` // by which it calls its node
	// Problem is why it does not reach the route by that name, as a sentence; "" when it does.
	Problem string `json:"problem,omitempty"`
}

// RouteSession is one client of a route.
type RouteSession struct {
	Node   NodeRef   `json:"node"` // that it came to
	Client string    `json:"client"`
	Since  time.Time `json:"since"`
	Why    string    `json:"why"`
}

// Routes in order of their listen ports.
type Routes struct {
	Routes []Route `json:"routes"`
	// Unheard are nodes whose clients are not counted, since they did not answer.
	Unheard []NodeRef `json:"unheard,omitempty"`
}

// AddRouteRequest adds a route to a volume.
type AddRouteRequest struct {
	// Route in the form volume.RouteForm.
	Route string `json:"route"`
}

// NodeRoute is what the proxy of one node says of a route.
type NodeRoute struct {
	Listen   int            `json:"listen"`
	Name     string         `json:"name,omitempty"` // the first of the route's, if it has any
	Sessions int            `json:"sessions,omitempty"`
	Parked   int            `json:"parked,omitempty"`
	Held     int            `json:"held,omitempty"`
	Pinned   []RouteSession `json:"pinned,omitempty"`
	Busy     []RouteSession `json:"busy,omitempty"`
	// Server, Paused: at the owner.
	Server  string `json:"server,omitempty"`
	Paused  bool   `json:"paused,omitempty"`
	Problem string `json:"problem,omitempty"`
	// Linked are containers of the node.
	Linked []RouteLink `json:"linked,omitempty"`
}

type nodeRoutesReply struct {
	Routes []NodeRoute `json:"routes"`
}

// Routes implements Backend.
func (c *Client) Routes(ctx context.Context) (rs Routes, err error) {
	return rs, c.call(ctx, request{method: "GET", path: "/v1/routes", out: &rs})
}

// AddRoute implements Backend.
func (c *Client) AddRoute(ctx context.Context, ref string, req AddRouteRequest) (r Route, err error) {
	path, err := at("/v1/volumes/", "volume", ref)
	if err != nil {
		return r, err
	}
	return r, c.call(ctx, request{method: "POST", path: path + "/routes", in: req, out: &r, repeatable: true})
}

// RemoveRoute implements Backend.
func (c *Client) RemoveRoute(ctx context.Context, route string) error {
	return c.call(ctx, request{method: "DELETE", path: "/v1/routes/" + url.PathEscape(route), repeatable: true})
}

// PauseRoute implements Backend.
func (c *Client) PauseRoute(ctx context.Context, route string, paused bool) error {
	what := "/resume"
	if paused {
		what = "/pause"
	}
	return c.call(ctx, request{method: "POST", path: "/v1/routes/" + url.PathEscape(route) + what, repeatable: true})
}

// NodeRoutes implements Peer.
func (c *Client) NodeRoutes(ctx context.Context) ([]NodeRoute, error) {
	var rep nodeRoutesReply
	return rep.Routes, c.call(ctx, request{method: "GET", path: "/v1/peer/routes", out: &rep})
}

func proxyRoutes(b Backend) []route {
	of := func(serve func(ctx context.Context, route string) error) func(*http.Request) (any, error) {
		return plain(func(r *http.Request) (any, error) {
			ref, err := volume.ParseRouteRef(r.PathValue("route"))
			if err != nil {
				return nil, volume.Errorf(volume.CodeInvalid, "%v", err)
			}
			return nil, serve(r.Context(), ref.String())
		})
	}
	return []route{
		{"GET", "/v1/routes", anyone, plain(func(r *http.Request) (any, error) {
			rs, err := b.Routes(r.Context())
			rs.Routes = notNil(rs.Routes)
			return rs, err
		})},
		{"POST", "/v1/volumes/{ref}/routes", anyone, strict(func(r *http.Request, req AddRouteRequest) (any, error) {
			return b.AddRoute(r.Context(), r.PathValue("ref"), req)
		})},
		{"DELETE", "/v1/routes/{route}", anyone, of(func(ctx context.Context, route string) error { return b.RemoveRoute(ctx, route) })},
		{"POST", "/v1/routes/{route}/pause", anyone, of(func(ctx context.Context, route string) error { return b.PauseRoute(ctx, route, true) })},
		{"POST", "/v1/routes/{route}/resume", anyone, of(func(ctx context.Context, route string) error { return b.PauseRoute(ctx, route, false) })},
	}
}

func proxyPeerRoutes(p Peer) []route {
	return []route{{"GET", "/v1/peer/routes", peers, plain(func(r *http.Request) (any, error) {
		rs, err := p.NodeRoutes(r.Context())
		return nodeRoutesReply{notNil(rs)}, err
	})}}
}
