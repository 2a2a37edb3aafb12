package api

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// RollbackRequest has a volume go on from one of its snapshots.
type RollbackRequest struct {
	Snapshot string `json:"snapshot"`
	// DryRun only says what would be undone.
	DryRun bool `json:"dry_run,omitempty"`
	// Newer: snapshots that people or a schedule have taken since are to leave the volume with
	// what is undone. Without it their being there is a reason to refuse.
	Newer bool `json:"newer,omitempty"`
	// Request makes a repeat the same rollback, also when that is over. The node that is asked
	// fills it in when it is empty, so that what it repeats itself is done once.
	Request string `json:"request,omitempty"`
}

// RollbackState is where a rollback is.
type RollbackState string

// The states.
const (
	RollbackPlanned RollbackState = "planned" // a dry run
	RollbackRunning RollbackState = "running"
	RollbackDone    RollbackState = "done"
	RollbackFailed  RollbackState = "failed" // nothing was undone, and Reason says why
)

// Rollback is how far one is.
type Rollback struct {
	ID       string        `json:"id,omitempty"` // "" of a dry run
	Volume   volume.ID     `json:"volume"`
	Name     string        `json:"name"`
	Node     NodeRef       `json:"node"` // the primary
	Snapshot string        `json:"snapshot"`
	State    RollbackState `json:"state"`
	// Doing says in words what is under way.
	Doing string `json:"doing,omitempty"`
	// Taken, of a dry run and of the first answer, is when the snapshot was taken, WrittenBytes
	// about how much was written since, and Newer are the snapshots of people and of schedules
	// that have come after it.
	Taken        time.Time `json:"taken,omitzero"`
	WrittenBytes int64     `json:"written_bytes,omitempty"`
	Newer        []string  `json:"newer,omitempty"`
	// Containers are stopped for it, and started again.
	Containers []string `json:"containers"`
	// Undone is the set-aside copy that holds what was undone, on Node.
	Undone string `json:"undone,omitempty"`
	// Reason is why it failed.
	Reason string    `json:"reason,omitempty"`
	Began  time.Time `json:"began,omitzero"`
	Ended  time.Time `json:"ended,omitzero"`
	// Index of the state that this is from.
	Index uint64 `json:"index,omitempty"`
}

// RollBack implements Backend.
func (c *Client) RollBack(ctx context.Context, ref string, req RollbackRequest) (b Rollback, err error) {
	path, err := at("/v1/volumes/", "volume", ref)
	if err != nil {
		return b, err
	}
	return b, c.call(ctx, request{method: "POST", path: path + "/rollback", in: req, out: &b})
}

// Rollback implements Backend.
func (c *Client) Rollback(ctx context.Context, ref, id string) (b Rollback, err error) {
	path, err := at("/v1/volumes/", "volume", ref)
	if err != nil {
		return b, err
	}
	return b, c.call(ctx, request{method: "GET", path: path + "/rollback", query: url.Values{"id": {id}}, out: &b})
}

func rollbackRoutes(b Backend) []route {
	reply := func(x Rollback, err error) (any, error) {
		x.Containers = notNil(x.Containers)
		return x, err
	}
	return []route{
		{"POST", "/v1/volumes/{ref}/rollback", anyone, strict(func(r *http.Request, req RollbackRequest) (any, error) {
			return reply(b.RollBack(r.Context(), r.PathValue("ref"), req))
		})},
		{"GET", "/v1/volumes/{ref}/rollback", anyone, func(r *http.Request) (any, error) {
			q, err := query(r, "id")
			if err == nil {
				err = noBody(r)
			}
			if err != nil {
				return nil, err
			}
			return reply(b.Rollback(r.Context(), r.PathValue("ref"), q["id"]))
		}},
	}
}
