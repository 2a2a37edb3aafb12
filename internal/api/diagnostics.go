package api

import (
	"context"
	"net/http"
	"time"
)

// Diagnostics are files of one node for whoever is to find out what is wrong. There is no secret
// in them: no key, no join token, no description of a container.
type Diagnostics struct {
	Node  NodeRef          `json:"node,omitzero"` // zero in no cluster
	At    time.Time        `json:"at"`
	Files []DiagnosticFile `json:"files"`
}

// DiagnosticFile is one of them.
type DiagnosticFile struct {
	Name string `json:"name"`
	Text string `json:"text,omitempty"`
	// Cut is how many bytes are missing, of a log at its beginning, of another one at its end.
	Cut int64 `json:"cut,omitempty"`
	// Error is why it, or a part of it, could not be had.
	Error string `json:"error,omitempty"`
}

// MaxLogs is the longest time back from now whose logs may be asked for.
const MaxLogs = 30 * 24 * time.Hour

// DiagnosticsQuery says of which node, "" being the one that is asked, and how far back its logs
// are wanted; 0: DefaultLogs.
type DiagnosticsQuery struct {
	Node  string
	Since time.Duration
}

// DefaultLogs is how far back logs go when nobody says.
const DefaultLogs = 6 * time.Hour

// Diagnostics implements Backend.
func (c *Client) Diagnostics(ctx context.Context, q DiagnosticsQuery) (d Diagnostics, err error) {
	query := ofNode(q.Node)
	if q.Since > 0 {
		query.Set("since", q.Since.String())
	}
	return d, c.call(ctx, request{method: "GET", path: "/v1/diagnostics", query: query, out: &d})
}

func diagnosticsRoutes(b Backend) []route {
	return []route{{"GET", "/v1/diagnostics", anyone, func(r *http.Request) (any, error) {
		q, err := query(r, "node", "since")
		if err != nil {
			return nil, err
		}
		since, err := q.duration("since", MaxLogs)
		if err != nil {
			return nil, err
		}
		if err := noBody(r); err != nil {
			return nil, err
		}
		d, err := b.Diagnostics(r.Context(), DiagnosticsQuery{Node: q["node"], Since: since})
		d.Files = notNil(d.Files)
		return d, err
	}}}
}
