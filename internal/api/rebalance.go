package api

import (
	"context"
	"net/http"

	"github.com/flocker-io/flocker/internal/volume"
)

// Rebalance is what would even out the nodes of a cluster.
type Rebalance struct {
	Moves []RebalanceMove `json:"moves"`
	// Bytes to be copied between nodes for all of them.
	Bytes int64           `json:"bytes"`
	Nodes []RebalanceNode `json:"nodes"`
	// Notes say which nodes are left out, and what cannot be moved.
	Notes []string `json:"notes,omitempty"`
	// Policy is what the setting rebalance makes of the cluster by itself.
	Policy RebalancePolicy `json:"policy,omitzero"`
}

// RebalancePolicy is what would be moved without being asked for.
type RebalancePolicy struct {
	// On says that it is. What it would do is told of one that is off, too.
	On bool `json:"on"`
	// Moves are those that it would begin with, and Waits says what for.
	Moves []RebalanceMove `json:"moves,omitempty"`
	Waits string          `json:"waits,omitempty"`
}

// RebalanceMove takes a copy of a volume from one node to another.
type RebalanceMove struct {
	Volume volume.ID   `json:"volume"`
	Name   string      `json:"name"`
	Role   volume.Role `json:"role"` // of the copy
	From   NodeRef     `json:"from"`
	To     NodeRef     `json:"to"`
	// Keeps says that From stays a replica, since To is one already: they change roles.
	Keeps bool   `json:"keeps,omitempty"`
	Bytes int64  `json:"bytes"` // to be copied
	Why   string `json:"why"`
	// Containers go along with a primary, and With are the other volumes that these need.
	Containers []string `json:"containers,omitempty"`
	With       []string `json:"with,omitempty"`
	// State is, of a move that is carried out, waiting, running, done or failed; Doing says
	// what is under way, what it waits for, or why it failed.
	State string `json:"state,omitempty"`
	Doing string `json:"doing,omitempty"`
}

// The states of a move that is carried out.
const (
	MoveWaiting = "waiting"
	MoveRunning = "running"
	MoveDone    = "done"
	MoveFailed  = "failed"
)

// Over says that a move is at its end.
func (m RebalanceMove) Over() bool { return m.State == MoveDone || m.State == MoveFailed }

// RebalanceRequest takes moves of a plan one step further. Of each the volume, the role,
// the nodes and Keeps count.
type RebalanceRequest struct {
	// Request is the same in all calls for one plan: the migrations that these begin have
	// it for a name. The client fills it in.
	Request string          `json:"request"`
	Moves   []RebalanceMove `json:"moves"`
}

// RebalanceReply has the moves of the request, in their order, as they stand.
type RebalanceReply struct {
	Moves []RebalanceMove `json:"moves"`
}

// RebalanceNode is a node before and after: what is used and promised of its pool, in
// bytes, and how many volumes it is the primary of.
type RebalanceNode struct {
	Node           NodeRef `json:"node"`
	Size           int64   `json:"size"`
	Bytes          int64   `json:"bytes"`
	BytesAfter     int64   `json:"bytes_after"`
	Primaries      int     `json:"primaries"`
	PrimariesAfter int     `json:"primaries_after"`
}

// Rebalance implements Backend.
func (c *Client) Rebalance(ctx context.Context) (r Rebalance, err error) {
	return r, c.call(ctx, request{method: "GET", path: "/v1/rebalance", out: &r})
}

// CarryRebalance implements Backend.
func (c *Client) CarryRebalance(ctx context.Context, req RebalanceRequest) (r RebalanceReply, err error) {
	return r, c.call(ctx, request{method: "POST", path: "/v1/rebalance", in: req, out: &r, repeatable: true})
}

func rebalanceRoutes(b Backend) []route {
	return []route{{"POST", "/v1/rebalance", anyone, strict(func(r *http.Request, req RebalanceRequest) (any, error) {
		rep, err := b.CarryRebalance(r.Context(), req)
		rep.Moves = notNil(rep.Moves)
		return rep, err
	})}, {"GET", "/v1/rebalance", anyone, plain(func(r *http.Request) (any, error) {
		plan, err := b.Rebalance(r.Context())
		plan.Moves, plan.Nodes = notNil(plan.Moves), notNil(plan.Nodes)
		return plan, err
	})}}
}
