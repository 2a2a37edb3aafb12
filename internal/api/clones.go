package api

import (
	"context"
	"net/http"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// CloneOf says what a volume is a clone of.
type CloneOf struct {
	Volume   volume.ID `json:"volume"` // it may be gone
	Name     string    `json:"name"`   // that it has, or had when it was cloned
	Snapshot string    `json:"snapshot"`
	GUID     uint64    `json:"guid,string"`
}

// Clone is a volume that was made of another.
type Clone struct {
	ID       volume.ID `json:"id"`
	Name     string    `json:"name"`
	Snapshot string    `json:"snapshot"`
	Primary  NodeRef   `json:"primary"`
	Trash    bool      `json:"trash,omitempty"` // it was removed, and can be brought back
}

// PointRequest asks a node for one snapshot of its copy of a volume.
type PointRequest struct {
	Volume volume.ID `json:"volume"`
	// Name of the snapshot; "": the node, which is the primary, takes one.
	Name string `json:"name,omitempty"`
	// For is a replica which the primary sees to it that it has it, too; "": none.
	For volume.NodeID `json:"for,omitempty"`
}

// Point is a snapshot.
type Point struct {
	Name  string    `json:"name"`
	GUID  uint64    `json:"guid,string"`
	Taken time.Time `json:"taken"`
	// Referenced is how much is in it; 0: not known.
	Referenced int64 `json:"referenced,omitempty"`
}

// Point implements Peer.
func (c *Client) Point(ctx context.Context, req PointRequest) (p Point, err error) {
	return p, c.call(ctx, request{method: "POST", path: "/v1/peer/point", in: req, out: &p, repeatable: true})
}

func cloneRoute(p Peer) route {
	return route{"POST", "/v1/peer/point", peers, lenient(func(r *http.Request, req PointRequest) (any, error) {
		if _, err := volume.ParseID(string(req.Volume)); err != nil {
			return nil, volume.Errorf(volume.CodeInvalid, "%v", err)
		}
		if req.For != "" {
			if _, err := volume.ParseNodeID(string(req.For)); err != nil {
				return nil, volume.Errorf(volume.CodeInvalid, "%v", err)
			}
		}
		return p.Point(r.Context(), req)
	})}
}
