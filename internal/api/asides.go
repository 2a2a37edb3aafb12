package api

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// Asides are the set-aside copies of all nodes that are heard.
type Asides struct {
	Asides []Aside `json:"asides"`
	// Unheard are nodes that may have some and have not reported lately.
	Unheard []NodeRef `json:"unheard,omitempty"`
}

// Aside is one set-aside copy.
type Aside struct {
	volume.Aside
	Node NodeRef `json:"node"`
	// VolumeName is that of the volume it was a copy of; "" when that is gone.
	VolumeName string `json:"volume_name,omitempty"`
	// Expires is when it is destroyed; zero when never.
	Expires time.Time `json:"expires,omitzero"`
}

// RestoreAsideRequest makes a volume of a set-aside copy.
type RestoreAsideRequest struct {
	// Node is a ref of the node that has it, when several have one of that name.
	Node string `json:"node,omitempty"`
	Name string `json:"name"` // of the volume
	// Options over those of the volume that it was a copy of, or over the defaults.
	Options map[string]string `json:"options,omitempty"`
	Request string            `json:"request,omitempty"` // makes a repeat harmless; the client fills it in
}

// Asides implements Backend.
func (c *Client) Asides(ctx context.Context) (a Asides, err error) {
	return a, c.call(ctx, request{method: "GET", path: "/v1/asides", out: &a})
}

// RestoreAside implements Backend.
func (c *Client) RestoreAside(ctx context.Context, ref string, req RestoreAsideRequest) (v Volume, err error) {
	path, err := at("/v1/asides/", "set-aside copy", ref)
	if err != nil {
		return v, err
	}
	fill(&req.Request)
	return v, c.call(ctx, request{method: "POST", path: path + "/restore", in: req, out: &v, repeatable: true})
}

// RemoveAside implements Backend.
func (c *Client) RemoveAside(ctx context.Context, ref, node string) error {
	path, err := at("/v1/asides/", "set-aside copy", ref)
	if err != nil {
		return err
	}
	query := url.Values{}
	if node != "" {
		query.Set("node", node)
	}
	return c.call(ctx, request{method: "DELETE", path: path, query: query})
}

func asideRoutes(b Backend) []route {
	return []route{
		{"GET", "/v1/asides", anyone, plain(func(r *http.Request) (any, error) {
			a, err := b.Asides(r.Context())
			a.Asides = notNil(a.Asides)
			return a, err
		})},
		{"POST", "/v1/asides/{name}/restore", anyone, strict(func(r *http.Request, req RestoreAsideRequest) (any, error) {
			return b.RestoreAside(r.Context(), r.PathValue("name"), req)
		})},
		{"DELETE", "/v1/asides/{name}", anyone, func(r *http.Request) (any, error) {
			q, err := query(r, "node")
			if err != nil {
				return nil, err
			}
			if err := noBody(r); err != nil {
				return nil, err
			}
			return nil, b.RemoveAside(r.Context(), r.PathValue("name"), q["node"])
		}},
	}
}
