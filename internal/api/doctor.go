package api

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/flocker-io/flocker/internal/doctor"
)

// Doctor is what was found out about all nodes.
type Doctor struct {
	Node     NodeRef          `json:"node,omitzero"` // that has asked the others; zero in no cluster
	At       time.Time        `json:"at"`
	Findings []doctor.Finding `json:"findings"`
}

// Doctor implements Backend.
func (c *Client) Doctor(ctx context.Context) (d Doctor, err error) {
	return d, c.call(ctx, request{method: "GET", path: "/v1/doctor", out: &d})
}

// Facts implements Backend.
func (c *Client) Facts(ctx context.Context, node string) (f doctor.Facts, err error) {
	return f, c.call(ctx, request{method: "GET", path: "/v1/facts", query: ofNode(node), out: &f})
}

// ofNode asks for one node; "" is the one that is asked.
func ofNode(ref string) url.Values {
	if ref == "" {
		return url.Values{}
	}
	return url.Values{"node": {ref}}
}

func doctorRoutes(b Backend) []route {
	return []route{
		{"GET", "/v1/doctor", anyone, plain(func(r *http.Request) (any, error) {
			d, err := b.Doctor(r.Context())
			d.Findings = notNil(d.Findings)
			return d, err
		})},
		{"GET", "/v1/facts", anyone, func(r *http.Request) (any, error) {
			q, err := query(r, "node")
			if err != nil {
				return nil, err
			}
			if err := noBody(r); err != nil {
				return nil, err
			}
			return b.Facts(r.Context(), q["node"])
		}},
	}
}
