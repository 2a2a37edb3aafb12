package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
)

// patience is how long the disk may be silent, besides the time between two looks,
// before what was seen last is no longer told as if it still were so.
const patience = 30 * time.Second

// Report is what this node tells the leader: from memory, so it never blocks.
func (a *Agent) Report() volume.Report {
	s := a.cluster.State()
	positions := a.repl.Positions()

	a.mu.Lock()
	defer a.mu.Unlock()
	r := volume.Report{
		Node: a.self, BootID: a.bootID, Version: a.version, Applied: s.Index, At: time.Now(),
		Pool: a.pool, Asides: slices.Clone(a.asides), Problems: slices.Clone(a.trouble),
	}
	if a.seen.IsZero() {
		// Not seen is not missing.
		r.Problems = append(r.Problems, "the disk has not been read since flockd started")
		return r
	}
	silent := time.Since(a.seen)
	for v := range s.Volumes() {
		role := v.Placement.Role(a.self)
		c, exists := a.actual.Copies[v.ID]
		if t, ok := a.actual.Trash[v.ID]; ok && !exists {
			c, exists = t, true
		}
		if v.Phase == state.PhasePurged && len(a.actual.Parts[v.ID]) > 0 {
			exists = true // what is left of it has to go before it is forgotten
		}
		if v.Phase == state.PhasePurged && isDataset(v.Adopt) && role == volume.RolePrimary && !a.returned[v.ID] {
			exists = true // the look may be older than the rename: who gives it back says when that is over
		}
		if role == volume.RoleNone && !exists {
			continue
		}
		st := volume.Status{
			Volume: v.ID, Epoch: c.Epoch, Role: role, Exists: exists, Mounted: c.Mounted,
			Used: c.Used, Data: c.Data, Shares: c.Shares, Newest: positions[v.ID], Problem: problem(v, a.actual, a.self),
		}
		if silent > a.silence {
			st.Problem = fmt.Sprintf("the disk has not answered for %s", silent.Round(time.Second))
		}
		if c.Mounted {
			st.Holders = a.holders[v.ID]
		}
		if role == volume.RolePrimary {
			st.Links = a.repl.Links(v.ID)
		}
		if f, ok := a.failed[v.ID]; ok && st.Problem == "" {
			st.Problem = fmt.Sprintf("%s: %s", f.action.Do, f.reason)
		}
		r.Volumes = append(r.Volumes, st)
	}
	for _, ds := range a.actual.Strange {
		r.Problems = append(r.Problems, fmt.Sprintf("dataset %s is no volume of this cluster", ds))
	}
	for id := range a.actual.Copies {
		if s.Volume(id) == nil {
			r.Problems = append(r.Problems, fmt.Sprintf("dataset %s belongs to a volume that this cluster does not know", a.layout.Dataset(id)))
		}
	}
	slices.Sort(r.Problems)
	return r
}

func (a *Agent) poolInfo(ctx context.Context) (volume.PoolInfo, error) {
	p, err := a.zfs.Pool(ctx, a.layout.Pool)
	if err != nil {
		return volume.PoolInfo{Name: a.layout.Pool, Health: "unknown"}, fmt.Errorf("pool %s cannot be asked: %w", a.layout.Pool, err)
	}
	return volume.PoolInfo{Name: p.Name, GUID: p.GUID, Size: p.Size, Free: p.Free, Health: p.Health}, nil
}

// assignments is what replication has to do here: every live volume this node has a
// part in, except a primary whose dataset does not exist or was not taken over yet (it
// may lack what was handed over, and must not spread), a copy that is still to come back
// from the trash (a replica that showed no copy would be sent a whole new one), and one
// whose intent log was not replayed yet (a snapshot would lack what is in it, and a
// stream would overwrite it).
func assignments(s *state.State, got Actual, self volume.NodeID) []replicate.Assignment {
	var out []replicate.Assignment
	// Snapshots that are just being cloned, wherever, and those on which a clone's first copy is
	// received, or will be, here.
	cloned := map[volume.ID][]uint64{}
	for v := range s.Volumes() {
		_, here := got.Copies[v.ID]
		lacks := v.Live() && !here && !got.Seeding[v.ID] && v.Placement.Role(self) == volume.RoleReplica
		if v.Clone != nil && (v.Phase == state.PhaseCreating || lacks) {
			cloned[v.Clone.Volume] = append(cloned[v.Clone.Volume], v.Clone.GUID)
		}
	}
	for v := range s.Volumes() {
		role := v.Placement.Role(self)
		if !v.Live() || v.Phase == state.PhaseCreating || role == volume.RoleNone {
			continue
		}
		c, exists := got.Copies[v.ID]
		if _, trashed := got.Trash[v.ID]; trashed && !exists {
			continue
		}
		if c.Logged {
			continue
		}
		if role == volume.RolePrimary && (!exists || c.Epoch != v.Epoch) {
			continue
		}
		as := replicate.Assignment{
			Volume: v.ID, Epoch: v.Epoch, Role: role, Primary: v.Placement.Primary,
			Interval: v.Spec.Interval, Properties: v.Spec.ZFS, Snapshots: v.Spec.Snapshots,
			Frozen: v.Phase != state.PhaseActive, Line: v.Line(), Stay: cloned[v.ID],
		}
		if role == volume.RolePrimary {
			as.Replicas = v.Placement.Replicas()
		}
		if v.Clone != nil {
			as.Origin = replicate.Origin{Volume: v.Clone.Volume, GUID: v.Clone.GUID, Here: keeps(s.Volume(v.Clone.Volume), got, self)}
		}
		out = append(out, as)
	}
	return out
}

// keeps says that a node is to have a copy of a volume, and has it where copies are, or may have
// it there: not one that is to come back from the trash.
func keeps(v *state.Volume, got Actual, self volume.NodeID) bool {
	if v == nil || !v.Live() || v.Placement.Role(self) == volume.RoleNone {
		return false
	}
	_, exists := got.Copies[v.ID]
	_, trashed := got.Trash[v.ID]
	return exists || !trashed
}
