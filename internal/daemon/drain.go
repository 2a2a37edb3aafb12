package daemon

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/cluster"
	"github.com/flocker-io/flocker/internal/placement"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// DrainNode implements api.Backend.
func (m *member) DrainNode(ctx context.Context, ref string, req api.DrainRequest) (api.Drain, error) {
	id, err := findNode(m.cluster.State(), ref)
	if err != nil {
		return api.Drain{}, err
	}
	drain := state.Drain
	if err := m.asOperator(ctx, state.UpdateNode{ID: id, Availability: &drain, KeepReplicas: req.KeepReplicas}); err != nil {
		return api.Drain{}, err
	}
	return m.Drain(ctx, string(id))
}

// UndrainNode implements api.Backend.
func (m *member) UndrainNode(ctx context.Context, ref string) (api.Node, error) {
	id, err := findNode(m.cluster.State(), ref)
	if err != nil {
		return api.Node{}, err
	}
	active := state.Active
	if err := m.asOperator(ctx, state.UpdateNode{ID: id, Availability: &active}); err != nil {
		return api.Node{}, err
	}
	return m.Node(ctx, string(id))
}

// Drain implements api.Backend. What is left is what the leader's next look would say:
// every node has the state and the reports.
func (m *member) Drain(_ context.Context, ref string) (api.Drain, error) {
	s := m.cluster.State()
	id, err := findNode(s, ref)
	if err != nil {
		return api.Drain{}, err
	}
	n := s.Node(id)
	out := api.Drain{
		Node: m.view().ref(id), Availability: string(n.Availability), KeepReplicas: n.KeepReplicas, Left: m.left(s, id),
	}
	out.Done = n.Availability == state.Drain && len(out.Left) == 0
	return out, nil
}

// left are the copies that a drained node still has.
func (m *member) left(s *state.State, id volume.NodeID) []api.LeftCopy {
	_, all := placement.Drain(placement.NewView(s, m.heardByPlacement(), m.now()))
	out := []api.LeftCopy{}
	for _, l := range all {
		if l.Node == id {
			out = append(out, api.LeftCopy{Volume: l.Volume.ID, Name: l.Volume.Name, Role: l.Role, Doing: l.Doing, Why: l.Why})
		}
	}
	slices.SortFunc(out, func(a, b api.LeftCopy) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// RemoveNode implements api.Backend.
func (m *member) RemoveNode(ctx context.Context, ref string, req api.RemoveNodeRequest) (api.RemoveNodeReply, error) {
	id, err := findNode(m.cluster.State(), ref)
	if err != nil {
		return api.RemoveNodeReply{}, err
	}
	out := api.RemoveNodeReply{Node: m.view().ref(id)}
	err = m.onLeader(ctx, func(ctx context.Context, leader *api.Client) (err error) {
		if leader != nil {
			out, err = leader.RemoveNode(ctx, string(id), req)
			return err
		}
		return m.removeHere(ctx, id, req, &out)
	})
	return out, err
}

// removeHere is RemoveNode on the leader.
func (m *member) removeHere(ctx context.Context, id volume.NodeID, req api.RemoveNodeRequest, out *api.RemoveNodeReply) error {
	// The newest state, so that nothing that was just placed there is forgotten.
	if _, err := m.Barrier(ctx); err != nil {
		return err
	}
	s := m.cluster.State()
	n := s.Node(id)
	switch {
	case n == nil:
		return volume.Errorf(volume.CodeNotFound, "no node %s", id)
	case n.Removed:
		return nil // done, but the answer was lost
	case req.ConfirmFenced != "" && req.ConfirmFenced != n.Name && req.ConfirmFenced != string(n.ID):
		return volume.Errorf(volume.CodeInvalid, "%q is confirmed to be off, but %s is to be removed", req.ConfirmFenced, n.Name)
	}
	if req.Dead {
		if m.cluster.Health(id) == cluster.Alive {
			return volume.Errorf(volume.CodeRefused, "node %s is not dead: it was heard of just now", n.Name).
				WithHint("drain it with `flockctl node drain %s`, then remove it without --dead", n.Name)
		}
	} else if err := m.mayLeave(s, n); err != nil {
		return err
	}
	if id == m.self {
		// A leader cannot see its own removal through.
		if err := m.cluster.Abdicate(ctx); err != nil {
			return volume.Errorf(volume.CodeUnavailable, "node %s leads the cluster and no other node can: %v", n.Name, err).
				WithHint("another node takes over once it is up and has caught up; try again in a minute")
		}
		return errNotLeader
	}
	cmd := state.RemoveNode{ID: id, Dead: req.Dead, Fenced: req.ConfirmFenced != ""}
	var names []string
	for _, v := range onlyCopies(m.view(), id) {
		cmd.Lose = append(cmd.Lose, v.ID)
		names = append(names, v.Name)
	}
	slices.Sort(names)
	if len(names) > 0 && !req.LoseData {
		return volume.Errorf(volume.CodeRefused, "node %s has the only whole copy of %s", n.Name, strings.Join(names, ", ")).
			WithHint("bring the node back and drain it, or give them up for good with --lose-data")
	}
	if _, err := m.commit(ctx, "", cmd); err != nil {
		return err
	}
	out.Lost = names
	for v := range m.cluster.State().Volumes() {
		if v.Phase == state.PhaseElecting && v.Election != nil && v.Election.Was == id {
			out.Electing = append(out.Electing, v.Name)
		}
	}
	slices.Sort(out.Electing)
	m.spread(ctx)
	return nil
}

// mayLeave refuses to remove a node that is still needed.
func (m *member) mayLeave(s *state.State, n *state.Node) error {
	if n.Availability != state.Drain || n.KeepReplicas {
		return volume.Errorf(volume.CodeRefused, "node %s is not drained", n.Name).
			WithHint("move its volumes away first with `flockctl node drain %s`; a node that is lost is removed with --dead", n.Name)
	}
	if v := givesBack(s, n.ID); v != nil {
		return volume.Errorf(volume.CodeRefused, "node %s has not given %s back yet, of which volume %q was to be made", n.Name, v.Adopt, v.Name).
			WithHint("its log says what keeps it; try again in a moment")
	}
	left := m.left(s, n.ID)
	if len(left) == 0 {
		return nil
	}
	var words []string
	for _, l := range left[:min(3, len(left))] {
		why := l.Why
		if l.Doing != "" {
			why = l.Doing
		}
		words = append(words, fmt.Sprintf("%s (%s)", l.Name, why))
	}
	if len(left) > 3 {
		words = append(words, fmt.Sprintf("and %d more", len(left)-3))
	}
	return volume.Errorf(volume.CodeRefused, "node %s still has copies: %s", n.Name, strings.Join(words, ", ")).
		WithHint("`flockctl node drain %s` shows how far it is", n.Name)
}

// givesBack is a volume that was to be made of somebody's dataset, was given up, and is not that
// dataset again yet, as far as is known: once its node is removed, that changes nothing any more.
func givesBack(s *state.State, id volume.NodeID) *state.Volume {
	for v := range s.Volumes() {
		if v.Phase == state.PhasePurged && v.Placement.Primary == id && strings.Contains(v.Adopt, "/") {
			return v
		}
	}
	return nil
}

// onlyCopies are the volumes of which nobody but the node has a whole copy, as far as
// everybody who should have one says so. A node that cannot be asked may have one.
func onlyCopies(v view, id volume.NodeID) []*state.Volume {
	var out []*state.Volume
	for vol := range v.state.Volumes() {
		if vol.Phase == state.PhasePurged || vol.Phase == state.PhaseCreating || vol.Placement.Role(id) == volume.RoleNone {
			continue
		}
		elsewhere := slices.ContainsFunc(vol.Placement.Nodes(), func(other volume.NodeID) bool {
			if n := v.state.Node(other); other == id || n == nil || n.Removed {
				return false
			}
			st, h, known := v.status(other, vol.ID)
			// What is in the trash is not reported in full.
			return !vol.Live() || !known || h.Applied < vol.Changed || st.Problem != "" ||
				st.Exists && (other == vol.Placement.Primary || !st.Newest.IsZero())
		})
		if !elsewhere {
			out = append(out, vol)
		}
	}
	return out
}
