package daemon

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
)

// heldSnapshots is replicate.Config.Held.
func (m *member) heldSnapshots(id volume.ID) (guids []uint64) {
	if v := m.cluster.State().Volume(id); v != nil {
		for _, h := range v.Held {
			guids = append(guids, h.GUID)
		}
	}
	return guids
}

// shownHold is a hold as people see it; nil for none.
func (v view) shownHold(h *state.Hold) *api.Hold {
	if h == nil {
		return nil
	}
	return &api.Hold{Node: v.ref(h.Node), Note: h.Note, At: h.At}
}

// withHolds says of snapshots whether they are held, by this node's own state: their primary
// may run a version that does not tell.
func (m *member) withHolds(id volume.ID, list []api.Snapshot) []api.Snapshot {
	now := m.view()
	if v := now.state.Volume(id); v != nil {
		for i := range list {
			list[i].Hold = now.shownHold(v.Hold(list[i].GUID))
		}
	}
	return list
}

// refuseHeld says who holds a snapshot that somebody wants removed.
func (m *member) refuseHeld(v *state.Volume, h *state.Hold) error {
	text := fmt.Sprintf("snapshot %s of volume %q is held since %s, through %s", h.Name, v.Name, h.At.UTC().Format("2006-01-02 15:04:05"), m.cluster.State().NodeName(h.Node))
	if h.Note != "" {
		text += fmt.Sprintf(", with the note %q", h.Note)
	}
	return volume.Errorf(volume.CodeRefused, "%s", text).WithHint("flockctl snapshot release %s@%s lets go of it", v.Name, h.Name)
}

// HoldSnapshot implements api.Backend. It is the primary that proposes it: when it knows of the
// hold, and what it was destroying is destroyed, a snapshot that is there stays.
func (m *member) HoldSnapshot(ctx context.Context, ref, name string, req api.HoldRequest) error {
	if err := volume.CheckText("the note", req.Note, state.MaxHoldNote); err != nil {
		return err
	}
	v, err := findVolume(m.cluster.State(), ref, live)
	if err != nil {
		return err
	}
	return m.onPrimary(ctx, v, func(ctx context.Context, primary *api.Client) error {
		if primary != nil {
			return primary.HoldSnapshot(ctx, string(v.ID), name, req)
		}
		by := m.self
		if from, forwarded := api.Caller(ctx); forwarded {
			by = from
		}
		s, err := m.ownSnapshot(ctx, v, name)
		if err != nil {
			return err
		}
		if s.Kind == replicate.KindEngine {
			return volume.Errorf(volume.CodeRefused, "snapshot %s is one that replication works with", name).
				WithHint("flockctl snapshot create %s takes one of your own, which can be held", v.Name)
		}
		if err := m.asOperator(ctx, state.HoldSnapshot{ID: v.ID, GUID: s.GUID, Name: name, Node: by, Note: req.Note}); err != nil {
			return err
		}
		if err := m.repl.Pruned(ctx); err != nil {
			return err
		}
		now, err := m.ownSnapshot(ctx, v, name)
		if err != nil || now.GUID != s.GUID {
			if volume.CodeOf(err) == volume.CodeNotFound || err == nil {
				err = volume.Errorf(volume.CodeNotFound, "volume %q: snapshot %s was destroyed before it could be held", v.Name, name)
				if rerr := m.asOperator(ctx, state.ReleaseSnapshot{ID: v.ID, GUID: s.GUID}); rerr != nil {
					m.log.Warn("a snapshot that is gone stays held", "volume", v.Name, "snapshot", name, "err", rerr)
				}
			}
			return err
		}
		return nil
	})
}

// ownSnapshot is a snapshot of this node's copy.
func (m *member) ownSnapshot(ctx context.Context, v *state.Volume, name string) (replicate.Snapshot, error) {
	list, err := m.repl.Snapshots(ctx, v.ID)
	if err != nil {
		return replicate.Snapshot{}, err
	}
	for _, s := range list {
		if s.Name == name {
			return s, nil
		}
	}
	_, err = guidOf(v, nil, name)
	return replicate.Snapshot{}, err
}

// ReleaseSnapshot implements api.Backend. What is held is in the state, so no copy is asked.
func (m *member) ReleaseSnapshot(ctx context.Context, ref, name string) error {
	if err := m.catchUp(ctx); err != nil {
		return err
	}
	v, err := findVolume(m.cluster.State(), ref, live)
	if err != nil {
		return err
	}
	released := false
	for _, h := range v.Held {
		if h.Name != name {
			continue
		}
		if err := m.asOperator(ctx, state.ReleaseSnapshot{ID: v.ID, GUID: h.GUID}); err != nil {
			return err
		}
		released = true
	}
	if !released {
		return volume.Errorf(volume.CodeNotFound, "volume %q: no snapshot %s is held", v.Name, name).
			WithHint("flockctl snapshot list %s shows which are", v.Name)
	}
	return nil
}

// Snapshot implements api.Backend.
func (m *member) Snapshot(ctx context.Context, ref, name string) (out api.SnapshotDetails, err error) {
	v, err := findVolume(m.cluster.State(), ref, live)
	if err != nil {
		return out, err
	}
	list, err := m.Snapshots(ctx, string(v.ID))
	if err != nil {
		return out, err
	}
	i := slices.IndexFunc(list, func(s api.Snapshot) bool { return s.Name == name })
	if i < 0 {
		_, err := guidOf(v, list, name)
		return out, err
	}
	out = api.SnapshotDetails{Snapshot: list[i], Volume: v.Name}
	nodes := append([]volume.NodeID{v.Placement.Primary}, v.Placement.Replicas()...)
	out.Copies = make([]api.SnapshotCopy, len(nodes))
	var all sync.WaitGroup
	for i, n := range nodes {
		all.Go(func() { out.Copies[i] = m.copyOn(ctx, v, n, out.GUID) })
	}
	all.Wait()
	// A copy that was received does not have it, only that which was the primary's then.
	for _, c := range out.Copies {
		if len(out.Prepared) == 0 {
			out.Prepared = c.Prepared
		}
	}
	return out, nil
}

// copyOn asks one node what it has of a snapshot; that it cannot be asked is in the answer.
func (m *member) copyOn(ctx context.Context, v *state.Volume, node volume.NodeID, guid uint64) (c api.SnapshotCopy) {
	var err error
	if why := m.mayRead(node); why != "" {
		c.Error = why
	} else if node == m.self {
		c, err = m.CopySnapshot(ctx, v.ID, guid)
	} else {
		err = m.whileHeard(ctx, node, func(ctx context.Context) (err error) {
			c, err = m.client(node).CopySnapshot(ctx, v.ID, guid)
			return err
		})
	}
	if err != nil {
		c.Error = err.Error()
	}
	c.Node, c.Role = m.view().ref(node), v.Placement.Role(node)
	return c
}

// CopySnapshot implements api.Peer.
func (m *member) CopySnapshot(ctx context.Context, id volume.ID, guid uint64) (c api.SnapshotCopy, err error) {
	if m.repl == nil {
		return c, volume.Errorf(volume.CodeRefused, "this node has no pool")
	}
	list, err := m.repl.Snapshots(ctx, id)
	if err != nil {
		return c, err
	}
	for _, s := range list {
		if s.GUID == guid {
			return api.SnapshotCopy{Here: true, Used: s.Used, Holds: s.Holds, Clones: s.Clones, Prepared: s.Prepared}, nil
		}
	}
	return c, nil
}
