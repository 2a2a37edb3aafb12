package api

import (
	"context"
	"net/http"

	"github.com/flocker-io/flocker/internal/volume"
)

// DrainRequest has a node's volumes moved away.
type DrainRequest struct {
	// KeepReplicas moves only its primaries, as for a restart.
	KeepReplicas bool `json:"keep_replicas,omitempty"`
}

// Drain is how far a drained node is.
type Drain struct {
	Node         NodeRef `json:"node"`
	Availability string  `json:"availability"` // active or drain
	KeepReplicas bool    `json:"keep_replicas,omitempty"`
	// Done says that nothing is left to move.
	Done bool       `json:"done"`
	Left []LeftCopy `json:"left"`
}

// LeftCopy is a copy that a drained node still has to give away.
type LeftCopy struct {
	Volume volume.ID   `json:"volume"`
	Name   string      `json:"name"`
	Role   volume.Role `json:"role"`
	// Doing says in words what is under way. When nothing is, Why says what stands in
	// its way.
	Doing string `json:"doing,omitempty"`
	Why   string `json:"why,omitempty"`
}

// RemoveNodeRequest takes a node out of the cluster for ever.
type RemoveNodeRequest struct {
	// Dead removes a node that is not heard of, without asking it.
	Dead bool `json:"dead,omitempty"`
	// ConfirmFenced is the node's name or ID, typed by an operator who has made sure
	// that it is off and stays off.
	ConfirmFenced string `json:"confirm_fenced,omitempty"`
	// LoseData gives up the volumes of which only this node has a whole copy.
	LoseData bool `json:"lose_data,omitempty"`
}

// RemoveNodeReply says what came of it.
type RemoveNodeReply struct {
	Node NodeRef `json:"node"`
	// Electing are volumes that need another primary now; Lost, those that were given up.
	Electing []string `json:"electing"`
	Lost     []string `json:"lost"`
}

// DrainNode implements Backend.
func (c *Client) DrainNode(ctx context.Context, ref string, req DrainRequest) (d Drain, err error) {
	path, err := at("/v1/nodes/", "node", ref)
	if err != nil {
		return d, err
	}
	return d, c.call(ctx, request{method: "POST", path: path + "/drain", in: req, out: &d, repeatable: true})
}

// Drain implements Backend.
func (c *Client) Drain(ctx context.Context, ref string) (d Drain, err error) {
	path, err := at("/v1/nodes/", "node", ref)
	if err != nil {
		return d, err
	}
	return d, c.call(ctx, request{method: "GET", path: path + "/drain", out: &d})
}

// UndrainNode implements Backend.
func (c *Client) UndrainNode(ctx context.Context, ref string) (n Node, err error) {
	path, err := at("/v1/nodes/", "node", ref)
	if err != nil {
		return n, err
	}
	return n, c.call(ctx, request{method: "POST", path: path + "/undrain", in: struct{}{}, out: &n, repeatable: true})
}

// RemoveNode implements Backend.
func (c *Client) RemoveNode(ctx context.Context, ref string, req RemoveNodeRequest) (rep RemoveNodeReply, err error) {
	path, err := at("/v1/nodes/", "node", ref)
	if err != nil {
		return rep, err
	}
	return rep, c.call(ctx, request{method: "POST", path: path + "/remove", in: req, out: &rep})
}

func drainRoutes(b Backend) []route {
	return []route{
		{"GET", "/v1/nodes/{ref}/drain", anyone, plain(func(r *http.Request) (any, error) {
			d, err := b.Drain(r.Context(), r.PathValue("ref"))
			d.Left = notNil(d.Left)
			return d, err
		})},
		{"POST", "/v1/nodes/{ref}/drain", anyone, strict(func(r *http.Request, req DrainRequest) (any, error) {
			d, err := b.DrainNode(r.Context(), r.PathValue("ref"), req)
			d.Left = notNil(d.Left)
			return d, err
		})},
		{"POST", "/v1/nodes/{ref}/undrain", anyone, strict(func(r *http.Request, _ struct{}) (any, error) {
			return b.UndrainNode(r.Context(), r.PathValue("ref"))
		})},
		{"POST", "/v1/nodes/{ref}/remove", anyone, strict(func(r *http.Request, req RemoveNodeRequest) (any, error) {
			rep, err := b.RemoveNode(r.Context(), r.PathValue("ref"), req)
			rep.Electing, rep.Lost = notNil(rep.Electing), notNil(rep.Lost)
			return rep, err
		})},
	}
}
