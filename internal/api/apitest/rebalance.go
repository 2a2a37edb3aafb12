package apitest

import (
	"context"
	"slices"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

// Rebalance implements api.Backend. Every volume that nobody uses and that has a replica is
// to change its primary, and one that is used is named.
func (f *Fake) Rebalance(ctx context.Context) (api.Rebalance, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Rebalance"); err != nil {
		return api.Rebalance{}, err
	}
	out := api.Rebalance{Moves: []api.RebalanceMove{}, Nodes: []api.RebalanceNode{}}
	primaries := map[volume.NodeID]int{}
	for _, v := range f.volumes {
		if !v.Deleted.IsZero() || len(v.Replicas) == 0 {
			continue
		}
		if len(v.Holders) > 0 {
			out.Notes = append(out.Notes, "volume "+v.Name+" is in use and stays")
			continue
		}
		to := v.Replicas[0].Node
		out.Moves = append(out.Moves, api.RebalanceMove{
			Volume: v.ID, Name: v.Name, Role: volume.RolePrimary, From: v.Primary, To: to, Keeps: true, Why: v.Primary.Name + " has more primaries",
		})
		out.Policy.Moves, out.Policy.Waits = out.Moves[:1], "the cluster must have been calm for 10m"
		primaries[v.Primary.ID]--
		primaries[to.ID]++
	}
	if out.Policy.On = len(out.Moves) == 0; out.Policy.On {
		out.Policy.Waits = "node gamma is not heard of"
	}
	for _, n := range f.nodes {
		i := slices.IndexFunc(out.Moves, func(m api.RebalanceMove) bool { return m.From.ID == n.ID || m.To.ID == n.ID })
		if i >= 0 {
			out.Nodes = append(out.Nodes, api.RebalanceNode{
				Node: n.NodeRef, Size: n.Pool.Size, Bytes: n.Pool.Size - n.Pool.Free, BytesAfter: n.Pool.Size - n.Pool.Free,
				Primaries: n.Primaries, PrimariesAfter: n.Primaries + primaries[n.ID],
			})
		}
	}
	return out, nil
}

// CarryRebalance implements api.Backend. What is waited for is under way in the first
// answer and done in the second; the next move begins when one is done.
func (f *Fake) CarryRebalance(ctx context.Context, req api.RebalanceRequest) (api.RebalanceReply, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "CarryRebalance", req.Moves); err != nil {
		return api.RebalanceReply{}, err
	}
	out := api.RebalanceReply{Moves: slices.Clone(req.Moves)}
	under := false
	for i := range out.Moves {
		m := &out.Moves[i]
		j := slices.IndexFunc(f.volumes, func(v api.Volume) bool { return v.ID == m.Volume })
		switch {
		case j < 0:
			m.State, m.Doing = api.MoveFailed, "the volume is not there any more"
		case f.volumes[j].Primary.ID == m.To.ID:
			m.State, m.Doing = api.MoveDone, ""
		case under:
			m.State, m.Doing = api.MoveWaiting, "comes after another volume"
		case m.State == api.MoveRunning:
			f.volumes[j].Primary, under = m.To, true
		default:
			m.State, m.Doing, under = api.MoveRunning, "goes to "+m.To.Name, true
		}
	}
	return out, nil
}
