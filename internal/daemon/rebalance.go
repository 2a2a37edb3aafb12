package daemon

import (
	"cmp"
	"context"
	"slices"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/placement"
	"github.com/flocker-io/flocker/internal/volume"
)

// Rebalance implements api.Backend. Every node has the state and the reports.
func (m *member) Rebalance(context.Context) (api.Rebalance, error) {
	v := m.view()
	now := placement.NewView(v.state, m.heardByPlacement(), m.now())
	plan, policy := placement.Rebalance(now), placement.LookAtPolicy(now)
	out := api.Rebalance{Notes: plan.Notes, Policy: api.RebalancePolicy{On: policy.On, Waits: policy.Waits}}
	move := func(x placement.Move) api.RebalanceMove {
		return api.RebalanceMove{
			Volume: x.Volume.ID, Name: x.Volume.Name, Role: x.Role, From: v.ref(x.From), To: v.ref(x.To), Keeps: !x.Leaves,
			Bytes: x.Bytes, Why: x.Why, Containers: x.Containers, With: x.With,
		}
	}
	for _, x := range plan.Moves {
		out.Moves = append(out.Moves, move(x))
		out.Bytes += x.Bytes
	}
	for _, x := range policy.Moves {
		out.Policy.Moves = append(out.Policy.Moves, move(x))
	}
	for _, s := range plan.Shares {
		out.Nodes = append(out.Nodes, api.RebalanceNode{
			Node: v.ref(s.Node), Size: s.Size, Bytes: s.Bytes, BytesAfter: s.BytesAfter, Primaries: s.Primaries, PrimariesAfter: s.PrimariesAfter,
		})
	}
	slices.SortFunc(out.Nodes, func(a, b api.RebalanceNode) int { return cmp.Compare(a.Node.Name, b.Node.Name) })
	return out, nil
}

// CarryRebalance implements api.Backend.
func (m *member) CarryRebalance(ctx context.Context, req api.RebalanceRequest) (out api.RebalanceReply, err error) {
	if req.Request == "" || len(req.Moves) == 0 {
		return out, volume.Errorf(volume.CodeInvalid, "a rebalance needs moves, and a name that stays the same until they are over").
			WithHint("GET /v1/rebalance plans moves")
	}
	err = m.onLeader(ctx, func(ctx context.Context, leader *api.Client) (err error) {
		if leader != nil {
			out, err = leader.CarryRebalance(ctx, req)
			return err
		}
		out, err = m.carryHere(ctx, req)
		return err
	})
	return out, err
}

// carryHere is CarryRebalance on the leader.
func (m *member) carryHere(ctx context.Context, req api.RebalanceRequest) (api.RebalanceReply, error) {
	// One that was deposed without having heard of it would say what was.
	if _, err := m.Barrier(ctx); err != nil {
		return api.RebalanceReply{}, err
	}
	var moves []placement.Wanted
	for _, x := range req.Moves {
		moves = append(moves, placement.Wanted{Volume: x.Volume, Role: x.Role, From: x.From.ID, To: x.To.ID, Leaves: !x.Keeps})
	}
	out := api.RebalanceReply{Moves: slices.Clone(req.Moves)}
	steps := placement.Carry(placement.NewView(m.cluster.State(), m.heardByPlacement(), m.now()), moves, req.Request, api.DefaultMaxPause)
	for i, step := range steps {
		x := &out.Moves[i]
		x.State, x.Doing = string(step.State), step.Text
		if step.Command == nil {
			continue
		}
		_, err := m.commit(ctx, "", step.Command)
		switch code := volume.CodeOf(err); {
		case err == nil:
		case code == volume.CodeConflict: // something else came first: the next call looks again
			x.State, x.Doing = api.MoveWaiting, err.Error()
		case code == volume.CodeRefused || code == volume.CodeNotFound || code == volume.CodeInvalid:
			x.State, x.Doing = api.MoveFailed, err.Error()
		default:
			return api.RebalanceReply{}, err
		}
	}
	return out, nil
}
