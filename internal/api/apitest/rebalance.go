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
		primaries[v.Primary.ID]--
		primaries[to.ID]++
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
