package apitest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

// Verify makes VerifyVolume find that copies on one node differ and that those on
// another cannot be read; zero: none.
func (f *Fake) Verify(differs, unread api.NodeRef) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.differs, f.unread = differs.ID, unread.ID
}

// SyncVolume implements api.Backend. A replica whose link has an error never gets
// there.
func (f *Fake) SyncVolume(ctx context.Context, ref string, req api.SyncRequest) (api.SyncReply, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "SyncVolume", ref, req); err != nil {
		return api.SyncReply{}, err
	}
	i, err := f.findVolume(ref, false)
	if err != nil {
		return api.SyncReply{}, err
	}
	v := f.volumes[i]
	out := api.SyncReply{Volume: v.Name, Snapshot: "flk-0000000000000003-000000007201", Replicas: []api.NodeRef{}}
	for _, r := range v.Replicas {
		if r.Error != "" {
			return api.SyncReply{}, volume.Errorf(volume.CodeTimeout, "volume %q: not every replica has got all within %s: %s (%s): %s",
				v.Name, req.Patience, r.Node, r.State, r.Error)
		}
		out.Replicas = append(out.Replicas, r.Node)
	}
	if want := v.Spec.Replicas + v.Spec.Remote; want > len(out.Replicas) {
		out.Missing = fmt.Sprintf("%d of %d replicas", want-len(out.Replicas), want)
	}
	return out, nil
}

// VerifyVolume implements api.Backend.
func (f *Fake) VerifyVolume(ctx context.Context, ref string, req api.VerifyRequest) (api.VerifyReply, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "VerifyVolume", ref, req); err != nil {
		return api.VerifyReply{}, err
	}
	i, err := f.findVolume(ref, false)
	if err != nil {
		return api.VerifyReply{}, err
	}
	v := f.volumes[i]
	sum := api.Sum{SHA256: strings.Repeat("ab", 32), Files: 1234, Bytes: v.Data, Took: 2 * time.Second}
	out := api.VerifyReply{Volume: v.Name, Snapshot: "flk-0000000000000003-000000007201", Taken: Now,
		Copies: []api.CopySum{{Node: v.Primary, Role: volume.RolePrimary, Sum: sum}}}
	for _, r := range v.Replicas {
		c := api.CopySum{Node: r.Node, Role: volume.RoleReplica, Sum: sum}
		switch r.Node.ID {
		case f.differs:
			c.SHA256, c.Differs, out.Differ = strings.Repeat("cd", 32), true, true
		case f.unread:
			c.Sum, c.Error, out.Unread = api.Sum{}, "it is connecting: no route to host", true
		}
		out.Copies = append(out.Copies, c)
	}
	return out, nil
}

// Snapshots implements api.Backend.
func (f *Fake) Snapshots(ctx context.Context, ref string) ([]api.Snapshot, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Snapshots", ref); err != nil {
		return nil, err
	}
	i, err := f.findVolume(ref, false)
	if err != nil {
		return nil, err
	}
	return append([]api.Snapshot{}, f.snapshots[f.volumes[i].ID]...), nil
}

// TakeSnapshot implements api.Backend.
func (f *Fake) TakeSnapshot(ctx context.Context, req api.SnapshotRequest) (out api.SnapshotReply, err error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "TakeSnapshot", req); err != nil {
		return out, err
	}
	if err := volume.ValidateSnapshotName(req.Name); err != nil {
		return out, err
	}
	var ids []volume.ID
	for _, ref := range req.Volumes {
		i, err := f.findVolume(ref, false)
		if err != nil {
			return out, err
		}
		v := f.volumes[i]
		if slices.ContainsFunc(f.snapshots[v.ID], func(s api.Snapshot) bool { return s.Name == req.Name }) {
			return out, volume.Errorf(volume.CodeConflict, "volume %q has a snapshot %s already", v.Name, req.Name)
		}
		if v.Name == "pgdata" && !req.NoHooks { // its container gets ready, and does not go on as it should
			out.Prepared = []string{"pg"}
			out.Warnings = []string{"container pg: its flocker.post-snapshot ended with code 1: no"}
		}
		ids = append(ids, v.ID)
	}
	for _, id := range ids {
		f.made++
		f.snapshots[id] = append(f.snapshots[id], api.Snapshot{Name: req.Name, GUID: uint64(f.made), Taken: Now, Kind: "user", Referenced: 2 << 30, Prepared: out.Prepared})
	}
	return out, nil
}

// RemoveSnapshot implements api.Backend.
func (f *Fake) RemoveSnapshot(ctx context.Context, ref, name string) error {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "RemoveSnapshot", ref, name); err != nil {
		return err
	}
	i, err := f.findVolume(ref, false)
	if err != nil {
		return err
	}
	v := f.volumes[i]
	list := f.snapshots[v.ID]
	at := slices.IndexFunc(list, func(s api.Snapshot) bool { return s.Name == name })
	switch {
	case at < 0:
		return volume.Errorf(volume.CodeNotFound, "volume %q has no snapshot %s", v.Name, name).WithHint("`flockctl snapshot list %s` shows what there is", v.Name)
	case list[at].Kind == "engine":
		return volume.Errorf(volume.CodeRefused, "snapshot %s is one that replication works with", name)
	case list[at].Hold != nil:
		return volume.Errorf(volume.CodeRefused, "snapshot %s of volume %q is held since 2026-03-04 12:00:00, through %s", name, v.Name, list[at].Hold.Node)
	}
	f.snapshots[v.ID] = slices.Delete(slices.Clone(list), at, at+1)
	return nil
}

// PruneSnapshots implements api.Backend: it takes all scheduled ones but the newest.
func (f *Fake) PruneSnapshots(ctx context.Context, ref string, req api.PruneRequest) ([]api.Snapshot, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "PruneSnapshots", ref, req); err != nil {
		return nil, err
	}
	i, err := f.findVolume(ref, false)
	if err != nil {
		return nil, err
	}
	var kept, gone []api.Snapshot
	seen := false
	for _, s := range slices.Backward(f.snapshots[f.volumes[i].ID]) {
		if s.Kind != "scheduled" || !seen {
			kept = append(kept, s)
		} else {
			gone = append(gone, s)
		}
		seen = seen || s.Kind == "scheduled"
	}
	slices.Reverse(kept)
	slices.Reverse(gone)
	if !req.DryRun {
		f.snapshots[f.volumes[i].ID] = kept
	}
	return append([]api.Snapshot{}, gone...), nil
}

// Sum implements api.Peer.
func (f *Fake) Sum(ctx context.Context, req api.SumRequest) (api.Sum, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Sum", req); err != nil {
		return api.Sum{}, err
	}
	return api.Sum{SHA256: fmt.Sprintf("%064x", req.GUID), Files: 3, Bytes: 1 << 40, Took: time.Minute}, nil
}

// Point implements api.Peer: it has every snapshot, and takes any.
func (f *Fake) Point(ctx context.Context, req api.PointRequest) (api.Point, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Point", req); err != nil {
		return api.Point{}, err
	}
	return api.Point{Name: cmp.Or(req.Name, "flk-0000000000000001-000000000099"), GUID: 7, Taken: Now, Referenced: 24576}, nil
}

// Holds implements api.Peer: it has every other one.
func (f *Fake) Holds(ctx context.Context, id volume.ID, guids []uint64) (map[uint64]bool, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Holds", id, guids); err != nil {
		return nil, err
	}
	out := map[uint64]bool{}
	for i, g := range guids {
		out[g] = i%2 == 0
	}
	return out, nil
}

// Beat implements api.Peer: it answers what could be answered.
func (f *Fake) Beat(ctx context.Context, req api.BeatRequest) (api.BeatReply, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Beat", req); err != nil {
		return api.BeatReply{}, err
	}
	return api.BeatReply{Answered: req.Beat.No != 0 && !req.Beat.Want && req.Problem == ""}, nil
}

// snapshot finds one of a live volume's. The caller holds f.mu.
func (f *Fake) snapshot(ref, name string) (v api.Volume, s *api.Snapshot, err error) {
	i, err := f.findVolume(ref, false)
	if err != nil {
		return v, nil, err
	}
	v = f.volumes[i]
	list := slices.Clone(f.snapshots[v.ID])
	f.snapshots[v.ID] = list
	for i := range list {
		if list[i].Name == name {
			return v, &list[i], nil
		}
	}
	return v, nil, volume.Errorf(volume.CodeNotFound, "volume %q has no snapshot %s", v.Name, name).WithHint("`flockctl snapshot list %s` shows what there is", v.Name)
}

// Snapshot implements api.Backend: replicas have what is older than a second, and gamma does
// not answer.
func (f *Fake) Snapshot(ctx context.Context, ref, name string) (out api.SnapshotDetails, err error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Snapshot", ref, name); err != nil {
		return out, err
	}
	v, s, err := f.snapshot(ref, name)
	if err != nil {
		return out, err
	}
	out = api.SnapshotDetails{Snapshot: *s, Volume: v.Name, Copies: []api.SnapshotCopy{{Node: v.Primary, Role: volume.RolePrimary, Here: true, Used: s.Used}}}
	for _, r := range v.Replicas {
		c := api.SnapshotCopy{Node: r.Node, Role: volume.RoleReplica, Here: Now.Sub(s.Taken) > time.Second, Used: s.Used}
		if r.Node == Gamma {
			c = api.SnapshotCopy{Node: r.Node, Role: volume.RoleReplica, Error: "it has not been heard of for 7s"}
		}
		out.Copies = append(out.Copies, c)
	}
	return out, nil
}

// HoldSnapshot implements api.Backend.
func (f *Fake) HoldSnapshot(ctx context.Context, ref, name string, req api.HoldRequest) error {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "HoldSnapshot", ref, name, req); err != nil {
		return err
	}
	if err := volume.CheckText("the note", req.Note, 200); err != nil {
		return err
	}
	_, s, err := f.snapshot(ref, name)
	switch {
	case err != nil:
		return err
	case s.Kind == "engine":
		return volume.Errorf(volume.CodeRefused, "snapshot %s is one that replication works with", name)
	}
	s.Hold = &api.Hold{Node: Alpha, Note: req.Note, At: Now}
	return nil
}

// ReleaseSnapshot implements api.Backend.
func (f *Fake) ReleaseSnapshot(ctx context.Context, ref, name string) error {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "ReleaseSnapshot", ref, name); err != nil {
		return err
	}
	v, s, err := f.snapshot(ref, name)
	if err != nil || s.Hold == nil {
		return volume.Errorf(volume.CodeNotFound, "volume %q: no snapshot %s is held", v.Name, name)
	}
	s.Hold = nil
	return nil
}

// CopySnapshot implements api.Peer.
func (f *Fake) CopySnapshot(ctx context.Context, id volume.ID, guid uint64) (api.SnapshotCopy, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "CopySnapshot", id, guid); err != nil {
		return api.SnapshotCopy{}, err
	}
	return api.SnapshotCopy{Here: guid%2 == 0, Used: 1 << 40, Holds: 2, Clones: []string{"tank/x"}}, nil
}
