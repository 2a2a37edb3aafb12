package api

import (
	"context"
	"net/http"
	"net/url"
)

// Container is one that follows its volumes, as it is recorded and as the nodes see it.
// Nothing of its environment is in here.
type Container struct {
	Name    string   `json:"name"`
	Volumes []string `json:"volumes"` // names
	// Node has it, or had it when it was lost.
	Node  NodeRef `json:"node"`
	Image string  `json:"image"`
	// Run is its user's wish: false for one that was stopped, which stays stopped.
	Run bool `json:"run"`
	// State on Node: in the engine's words, "starting", "missing", or "unknown" while the
	// node is not heard.
	State string `json:"state"`
	// Obstacles are what cannot follow; when Blocked, the container is not made elsewhere.
	Obstacles []string `json:"obstacles,omitempty"`
	Blocked   bool     `json:"blocked,omitempty"`
	// Notes are what would be different about it on another node.
	Notes []string `json:"notes,omitempty"`
	// LacksImage are nodes with a copy of its volumes that could not start it at once.
	LacksImage []NodeRef `json:"lacks_image,omitempty"`
	// Problems are what went wrong with it on a node.
	Problems []string `json:"problems,omitempty"`
}

type containersReply struct {
	Containers []Container `json:"containers"`
}

// Containers implements Backend.
func (c *Client) Containers(ctx context.Context) ([]Container, error) {
	var rep containersReply
	return rep.Containers, c.call(ctx, request{method: "GET", path: "/v1/containers", out: &rep})
}

// ForgetContainer implements Backend.
func (c *Client) ForgetContainer(ctx context.Context, name, node string) error {
	path, err := at("/v1/containers/", "container", name)
	if err != nil {
		return err
	}
	query := url.Values{}
	if node != "" {
		query.Set("node", node)
	}
	return c.call(ctx, request{method: "DELETE", path: path, query: query})
}

func containerRoutes(b Backend) []route {
	return []route{
		{"GET", "/v1/containers", anyone, plain(func(r *http.Request) (any, error) {
			cs, err := b.Containers(r.Context())
			return containersReply{notNil(cs)}, err
		})},
		{"DELETE", "/v1/containers/{name}", anyone, func(r *http.Request) (any, error) {
			q, err := query(r, "node")
			if err != nil {
				return nil, err
			}
			if err := noBody(r); err != nil {
				return nil, err
			}
			return nil, b.ForgetContainer(r.Context(), r.PathValue("name"), q["node"])
		}},
	}
}
