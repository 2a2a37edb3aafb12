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

func rebalanceRoutes(b Backend) []route {
	return []route{{"GET", "/v1/rebalance", anyone, plain(func(r *http.Request) (any, error) {
		plan, err := b.Rebalance(r.Context())
		plan.Moves, plan.Nodes = notNil(plan.Moves), notNil(plan.Nodes)
		return plan, err
	})}}
}
