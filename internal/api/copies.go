package api

import (
	"context"
	"net/http"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// SyncRequest bounds SyncVolume.
type SyncRequest struct {
	// Patience is how long to wait for replicas; 0: as long as the caller waits. What
	// lacks then is told by name.
	Patience time.Duration `json:"patience,omitempty"`
}

// SyncReply says what every replica holds now.
type SyncReply struct {
	Volume string `json:"volume"`
	// Snapshot was taken after the call began, and all of Replicas have it.
	Snapshot string    `json:"snapshot,omitempty"`
	Replicas []NodeRef `json:"replicas"`
	// Missing are replicas that the volume asks for and that no node holds, in words.
	Missing string `json:"missing,omitempty"`
}

// VerifyRequest bounds VerifyVolume.
type VerifyRequest struct {
	// Patience is how long to wait until the replicas have the snapshot; 0: a minute.
	// Reading it takes as long as it takes.
	Patience time.Duration `json:"patience,omitempty"`
}

// VerifyReply compares the copies of one snapshot, the primary's first.
type VerifyReply struct {
	Volume   string    `json:"volume"`
	Snapshot string    `json:"snapshot"`
	Taken    time.Time `json:"taken"`
	Copies   []CopySum `json:"copies"`
	// Differ says that a copy differs from the primary's; Unread, that one could not be
	// read, so that nothing is known of it.
	Differ bool `json:"differ"`
	Unread bool `json:"unread"`
}

// CopySum is what one node read.
type CopySum struct {
	Node NodeRef     `json:"node"`
	Role volume.Role `json:"role"`
	Sum
	Differs bool   `json:"differs,omitempty"` // from the primary's
	Error   string `json:"error,omitempty"`   // why it could not be read
}

// Sum is a checksum over a whole tree of files: over paths, types, modes, owners,
// times of change, extended attributes and contents.
type Sum struct {
	SHA256 string        `json:"sha256,omitempty"`
	Files  int64         `json:"files"` // of any type
	Bytes  int64         `json:"bytes"` // of content
	Took   time.Duration `json:"took"`
}

// Same says that two sums are of equal trees.
func (s Sum) Same(t Sum) bool {
	return s.SHA256 != "" && s.SHA256 == t.SHA256 && s.Files == t.Files && s.Bytes == t.Bytes
}

// SumRequest names one snapshot of one node's copy.
type SumRequest struct {
	Volume volume.ID `json:"volume"`
	GUID   uint64    `json:"guid,string"`
}

// SyncVolume implements Backend.
func (c *Client) SyncVolume(ctx context.Context, ref string, req SyncRequest) (rep SyncReply, err error) {
	path, err := at("/v1/volumes/", "volume", ref)
	if err != nil {
		return rep, err
	}
	return rep, c.call(ctx, request{method: "POST", path: path + "/sync", in: req, out: &rep, repeatable: true})
}

// VerifyVolume implements Backend.
func (c *Client) VerifyVolume(ctx context.Context, ref string, req VerifyRequest) (rep VerifyReply, err error) {
	path, err := at("/v1/volumes/", "volume", ref)
	if err != nil {
		return rep, err
	}
	return rep, c.call(ctx, request{method: "POST", path: path + "/verify", in: req, out: &rep})
}

// Sum implements Peer.
func (c *Client) Sum(ctx context.Context, req SumRequest) (s Sum, err error) {
	return s, c.call(ctx, request{method: "POST", path: "/v1/peer/sum", in: req, out: &s})
}

// Holds implements Peer.
func (c *Client) Holds(ctx context.Context, id volume.ID, guids []uint64) (map[uint64]bool, error) {
	var rep holdsReply
	err := c.call(ctx, request{method: "POST", path: "/v1/peer/holds", in: holdsRequest{id, guids}, out: &rep, repeatable: true})
	return rep.Has, err
}

type (
	holdsRequest struct {
		Volume volume.ID `json:"volume"`
		GUIDs  []uint64  `json:"guids"`
	}
	holdsReply struct {
		Has map[uint64]bool `json:"has"`
	}
)

func copiesRoutes(b Backend) []route {
	return []route{
		{"POST", "/v1/volumes/{ref}/sync", anyone, strict(func(r *http.Request, req SyncRequest) (any, error) {
			rep, err := b.SyncVolume(r.Context(), r.PathValue("ref"), req)
			rep.Replicas = notNil(rep.Replicas)
			return rep, err
		})},
		{"POST", "/v1/volumes/{ref}/verify", anyone, strict(func(r *http.Request, req VerifyRequest) (any, error) {
			rep, err := b.VerifyVolume(r.Context(), r.PathValue("ref"), req)
			rep.Copies = notNil(rep.Copies)
			return rep, err
		})},
	}
}

func copiesPeerRoutes(p Peer) []route {
	return []route{
		{"POST", "/v1/peer/sum", peers, lenient(func(r *http.Request, req SumRequest) (any, error) {
			if _, err := volume.ParseID(string(req.Volume)); err != nil {
				return nil, volume.Errorf(volume.CodeInvalid, "%v", err)
			}
			return p.Sum(r.Context(), req)
		})},
		{"POST", "/v1/peer/holds", peers, lenient(func(r *http.Request, req holdsRequest) (any, error) {
			if _, err := volume.ParseID(string(req.Volume)); err != nil {
				return nil, volume.Errorf(volume.CodeInvalid, "%v", err)
			}
			has, err := p.Holds(r.Context(), req.Volume, req.GUIDs)
			return holdsReply{has}, err
		})},
	}
}
