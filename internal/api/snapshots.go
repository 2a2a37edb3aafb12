package api

import (
	"context"
	"net/http"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// Snapshot is one of a volume's snapshots, as its primary has it.
type Snapshot struct {
	Name  string    `json:"name"`
	GUID  uint64    `json:"guid,string"`
	Taken time.Time `json:"taken"`
	// Kind is engine, scheduled or user: by whom it is taken and destroyed.
	Kind string `json:"kind"`
	// Rule is the period of a scheduled one's rule.
	Rule time.Duration `json:"rule,omitempty"`
	// Used is what destroying it alone would free, Referenced what it shows, Written
	// what was written since the one before.
	Used       int64 `json:"used"`
	Referenced int64 `json:"referenced"`
	Written    int64 `json:"written"`
	// Held says that a hold of ZFS or a clone is on it, so that it cannot be destroyed.
	Held bool `json:"held,omitempty"`
	// Hold is why nobody may destroy it; nil: it is not held.
	Hold *Hold `json:"hold,omitempty"`
	// Prepared are the containers that got ready for it, by their flocker.pre-snapshot. Only
	// the copy that it was taken of knows them.
	Prepared []string `json:"prepared,omitempty"`
}

// Hold keeps a snapshot on all nodes.
type Hold struct {
	Node NodeRef   `json:"node"` // through which somebody asked for it
	Note string    `json:"note,omitempty"`
	At   time.Time `json:"at"`
}

// HoldRequest holds a snapshot.
type HoldRequest struct {
	Note string `json:"note,omitempty"`
}

// SnapshotDetails are what there is to know of one snapshot.
type SnapshotDetails struct {
	Snapshot
	Volume string `json:"volume"`
	// Copies are the nodes with a copy of the volume, the primary first.
	Copies []SnapshotCopy `json:"copies"`
}

// SnapshotCopy is a snapshot on one node.
type SnapshotCopy struct {
	Node NodeRef     `json:"node"`
	Role volume.Role `json:"role"`
	Here bool        `json:"here"`
	// Used is what destroying it there would free.
	Used   int64    `json:"used,omitempty"`
	Holds  int      `json:"holds,omitempty"` // of ZFS
	Clones []string `json:"clones,omitempty"`
	// Prepared is as in Snapshot; a copy that was received does not know it.
	Prepared []string `json:"prepared,omitempty"`
	Error    string   `json:"error,omitempty"` // why it is not known
}

// SnapshotRequest takes a snapshot of that name of each of these volumes, at one
// moment.
type SnapshotRequest struct {
	Volumes []string `json:"volumes"`
	Name    string   `json:"name"`
	// NoHooks has no container get ready for it.
	NoHooks bool `json:"no_hooks,omitempty"`
}

// SnapshotReply is how it was taken.
type SnapshotReply struct {
	// Prepared are the containers that got ready for it.
	Prepared []string `json:"prepared,omitempty"`
	// Warnings say which containers have not done what they do after it. It is tried again.
	Warnings []string `json:"warnings,omitempty"`
}

// PruneRequest carries a volume's snapshot policy out.
type PruneRequest struct {
	DryRun bool `json:"dry_run,omitempty"`
	// Policy is tried instead of the volume's own; with DryRun only.
	Policy string `json:"policy,omitempty"`
}

type snapshotsReply struct {
	Snapshots []Snapshot `json:"snapshots"`
}

// Snapshots implements Backend.
func (c *Client) Snapshots(ctx context.Context, ref string) ([]Snapshot, error) {
	path, err := at("/v1/volumes/", "volume", ref)
	if err != nil {
		return nil, err
	}
	var rep snapshotsReply
	err = c.call(ctx, request{method: "GET", path: path + "/snapshots", out: &rep})
	return rep.Snapshots, err
}

// TakeSnapshot implements Backend.
func (c *Client) TakeSnapshot(ctx context.Context, req SnapshotRequest) (out SnapshotReply, err error) {
	err = c.call(ctx, request{method: "POST", path: "/v1/snapshots", in: req, out: &out})
	return out, err
}

// RemoveSnapshot implements Backend.
func (c *Client) RemoveSnapshot(ctx context.Context, ref, name string) error {
	path, err := at("/v1/volumes/", "volume", ref)
	if err != nil {
		return err
	}
	if path, err = at(path+"/snapshots/", "snapshot", name); err != nil {
		return err
	}
	return c.call(ctx, request{method: "DELETE", path: path})
}

func snapshotPath(ref, name string) (string, error) {
	path, err := at("/v1/volumes/", "volume", ref)
	if err != nil {
		return "", err
	}
	return at(path+"/snapshots/", "snapshot", name)
}

// Snapshot implements Backend.
func (c *Client) Snapshot(ctx context.Context, ref, name string) (d SnapshotDetails, err error) {
	path, err := snapshotPath(ref, name)
	if err != nil {
		return d, err
	}
	return d, c.call(ctx, request{method: "GET", path: path, out: &d})
}

// HoldSnapshot implements Backend.
func (c *Client) HoldSnapshot(ctx context.Context, ref, name string, req HoldRequest) error {
	path, err := snapshotPath(ref, name)
	if err != nil {
		return err
	}
	return c.call(ctx, request{method: "POST", path: path + "/hold", in: req, repeatable: true})
}

// ReleaseSnapshot implements Backend.
func (c *Client) ReleaseSnapshot(ctx context.Context, ref, name string) error {
	path, err := snapshotPath(ref, name)
	if err != nil {
		return err
	}
	return c.call(ctx, request{method: "POST", path: path + "/release", repeatable: true})
}

// CopySnapshot implements Peer.
func (c *Client) CopySnapshot(ctx context.Context, id volume.ID, guid uint64) (s SnapshotCopy, err error) {
	return s, c.call(ctx, request{method: "POST", path: "/v1/peer/snapshot", in: SumRequest{id, guid}, out: &s, repeatable: true})
}

// PruneSnapshots implements Backend.
func (c *Client) PruneSnapshots(ctx context.Context, ref string, req PruneRequest) ([]Snapshot, error) {
	path, err := at("/v1/volumes/", "volume", ref)
	if err != nil {
		return nil, err
	}
	var rep snapshotsReply
	err = c.call(ctx, request{method: "POST", path: path + "/prune", in: req, out: &rep, repeatable: true})
	return rep.Snapshots, err
}

func snapshotRoutes(b Backend) []route {
	return []route{
		{"GET", "/v1/volumes/{ref}/snapshots", anyone, plain(func(r *http.Request) (any, error) {
			list, err := b.Snapshots(r.Context(), r.PathValue("ref"))
			return snapshotsReply{notNil(list)}, err
		})},
		{"POST", "/v1/snapshots", anyone, strict(func(r *http.Request, req SnapshotRequest) (any, error) {
			return b.TakeSnapshot(r.Context(), req)
		})},
		{"DELETE", "/v1/volumes/{ref}/snapshots/{name}", anyone, plain(func(r *http.Request) (any, error) {
			return nil, b.RemoveSnapshot(r.Context(), r.PathValue("ref"), r.PathValue("name"))
		})},
		{"GET", "/v1/volumes/{ref}/snapshots/{name}", anyone, plain(func(r *http.Request) (any, error) {
			d, err := b.Snapshot(r.Context(), r.PathValue("ref"), r.PathValue("name"))
			d.Copies = notNil(d.Copies)
			return d, err
		})},
		{"POST", "/v1/volumes/{ref}/snapshots/{name}/hold", anyone, strict(func(r *http.Request, req HoldRequest) (any, error) {
			return nil, b.HoldSnapshot(r.Context(), r.PathValue("ref"), r.PathValue("name"), req)
		})},
		{"POST", "/v1/volumes/{ref}/snapshots/{name}/release", anyone, plain(func(r *http.Request) (any, error) {
			return nil, b.ReleaseSnapshot(r.Context(), r.PathValue("ref"), r.PathValue("name"))
		})},
		{"POST", "/v1/volumes/{ref}/prune", anyone, strict(func(r *http.Request, req PruneRequest) (any, error) {
			list, err := b.PruneSnapshots(r.Context(), r.PathValue("ref"), req)
			return snapshotsReply{notNil(list)}, err
		})},
	}
}

func snapshotPeerRoutes(p Peer) []route {
	return []route{
		{"POST", "/v1/peer/snapshot", peers, lenient(func(r *http.Request, req SumRequest) (any, error) {
			if _, err := volume.ParseID(string(req.Volume)); err != nil {
				return nil, volume.Errorf(volume.CodeInvalid, "%v", err)
			}
			return p.CopySnapshot(r.Context(), req.Volume, req.GUID)
		})},
	}
}
