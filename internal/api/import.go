package api

import (
	"context"
	"net/http"

	"github.com/flocker-io/flocker/internal/volume"
)

// ImportRequest makes a volume of a dataset that is in a node's pool and none of flocker's.
type ImportRequest struct {
	Dataset string `json:"dataset"`        // like tank/pgdata
	Name    string `json:"name"`           // of the volume
	Node    string `json:"node,omitempty"` // a ref of the node that has it; the asked one unless given
	// Options over what the dataset has, or over the defaults.
	Options map[string]string `json:"options,omitempty"`
	// DryRun only says what would be done, or why it cannot be.
	DryRun  bool   `json:"dry_run,omitempty"`
	Request string `json:"request,omitempty"` // makes a repeat harmless; the client fills it in
}

// Import is what a dataset becomes, or would.
type Import struct {
	Importable
	Node    NodeRef           `json:"node"`
	Options map[string]string `json:"options"` // all that the volume has
	Volume  *Volume           `json:"volume,omitempty"`
}

// Importable is what a node says of a dataset that may become a volume.
type Importable struct {
	Dataset   string   `json:"dataset"`
	Data      int64    `json:"data"` // bytes a user sees in it
	Used      int64    `json:"used"` // with its snapshots
	Snapshots []string `json:"snapshots"`
	Steps     []string `json:"steps"` // what is done to it, for people
	// Has are options that the volume gets because the dataset has these properties.
	Has map[string]string `json:"has"`
}

// Import implements Backend.
func (c *Client) Import(ctx context.Context, req ImportRequest) (i Import, err error) {
	fill(&req.Request)
	return i, c.call(ctx, request{method: "POST", path: "/v1/imports", in: req, out: &i, repeatable: true})
}

// Importable implements Peer.
func (c *Client) Importable(ctx context.Context, dataset string) (i Importable, err error) {
	return i, c.call(ctx, request{method: "POST", path: "/v1/peer/importable", in: importableRequest{dataset}, out: &i, repeatable: true})
}

type importableRequest struct {
	Dataset string `json:"dataset"`
}

func importRoutes(b Backend) []route {
	return []route{{"POST", "/v1/imports", anyone, strict(func(r *http.Request, req ImportRequest) (any, error) {
		if req.Dataset == "" {
			return nil, volume.Errorf(volume.CodeInvalid, "which dataset is to become a volume is not said: dataset is missing")
		}
		i, err := b.Import(r.Context(), req)
		i.Importable = i.Importable.filled()
		if i.Options == nil {
			i.Options = map[string]string{}
		}
		return i, err
	})}}
}

func (i Importable) filled() Importable {
	i.Snapshots, i.Steps = notNil(i.Snapshots), notNil(i.Steps)
	if i.Has == nil {
		i.Has = map[string]string{}
	}
	return i
}

func importableRoute(p Peer) route {
	return route{"POST", "/v1/peer/importable", peers, lenient(func(r *http.Request, req importableRequest) (any, error) {
		i, err := p.Importable(r.Context(), req.Dataset)
		return i.filled(), err
	})}
}
