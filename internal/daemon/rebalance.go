package daemon

import (
	"cmp"
	"context"
	"slices"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/placement"
)

// Rebalance implements api.Backend. Every node has the state and the reports.
func (m *member) Rebalance(context.Context) (api.Rebalance, error) {
	v := m.view()
	plan := placement.Rebalance(placement.NewView(v.state, m.heardByPlacement(), m.now()))
	out := api.Rebalance{Notes: plan.Notes}
	for _, x := range plan.Moves {
		out.Moves = append(out.Moves, api.RebalanceMove{
			Volume: x.Volume.ID, Name: x.Volume.Name, Role: x.Role, From: v.ref(x.From), To: v.ref(x.To), Keeps: !x.Leaves,
			Bytes: x.Bytes, Why: x.Why, Containers: x.Containers, With: x.With,
		})
		out.Bytes += x.Bytes
	}
	for _, s := range plan.Shares {
		out.Nodes = append(out.Nodes, api.RebalanceNode{
			Node: v.ref(s.Node), Size: s.Size, Bytes: s.Bytes, BytesAfter: s.BytesAfter, Primaries: s.Primaries, PrimariesAfter: s.PrimariesAfter,
		})
	}
	slices.SortFunc(out.Nodes, func(a, b api.RebalanceNode) int { return cmp.Compare(a.Node.Name, b.Node.Name) })
	return out, nil
}
