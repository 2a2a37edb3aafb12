package daemon

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
)

// Snapshots implements api.Backend.
func (m *member) Snapshots(ctx context.Context, ref string) (out []api.Snapshot, err error) {
	v, err := findVolume(m.cluster.State(), ref, live)
	if err != nil {
		return nil, err
	}
	err = m.onPrimary(ctx, v, func(ctx context.Context, primary *api.Client) (err error) {
		if primary != nil {
			out, err = primary.Snapshots(ctx, string(v.ID))
			return err
		}
		list, err := m.repl.Snapshots(ctx, v.ID)
		out = forPeople(list)
		return err
	})
	return m.withHolds(v.ID, out), err
}

func forPeople(list []replicate.Snapshot) []api.Snapshot {
	out := []api.Snapshot{}
	for _, s := range list {
		out = append(out, api.Snapshot{
			Name: s.Name, GUID: s.GUID, Taken: s.Taken, Kind: s.Kind, Rule: s.Rule,
			Used: s.Used, Referenced: s.Referenced, Written: s.Written, Held: s.Held, Prepared: s.Prepared,
		})
	}
	return out
}

// TakeSnapshot implements api.Backend.
func (m *member) TakeSnapshot(ctx context.Context, req api.SnapshotRequest) (out api.SnapshotReply, err error) {
	if err := volume.ValidateSnapshotName(req.Name); err != nil {
		return out, err
	}
	vs, err := m.together(req.Volumes)
	if err != nil {
		return out, err
	}
	err = m.onPrimary(ctx, vs[0], func(ctx context.Context, primary *api.Client) (err error) {
		var ids []volume.ID
		var refs []string
		for _, v := range vs {
			ids, refs = append(ids, v.ID), append(refs, string(v.ID))
		}
		if primary != nil {
			who := m.hookless(vs[0].Placement.Primary)
			ask := api.SnapshotRequest{Volumes: refs, Name: req.Name, NoHooks: req.NoHooks}
			out, err = primary.TakeSnapshot(ctx, ask)
			if ask.NoHooks && volume.CodeOf(err) == volume.CodeInvalid && strings.Contains(err.Error(), "no_hooks") {
				// One of an older version does not know the word, and has no hooks.
				ask.NoHooks = false
				out, err = primary.TakeSnapshot(ctx, ask)
			}
			if err == nil && !req.NoHooks {
				out.Warnings = append(out.Warnings, notAsked(who, out)...)
			}
			return err
		}
		out, err = m.takeHere(ctx, ids, req)
		for _, v := range vs {
			err = named(err, v)
		}
		return err
	})
	return out, err
}

// hookless is the name of a node whose version knows nothing of what containers do around
// snapshots; "" of one that does.
func (m *member) hookless(node volume.NodeID) string {
	return unaware(m.cluster.State(), m.reports.All(m.now()), m.self, func(r volume.Report) bool {
		return r.Node != node || knowsSnapshotHooks(r)
	})
}

// notAsked says that no container got ready because the node that took a snapshot is said to
// be hookless. It may not be so: an older leader passes on only what it knows of a report.
func notAsked(hookless string, taken api.SnapshotReply) []string {
	if hookless == "" || len(taken.Prepared) > 0 || len(taken.Warnings) > 0 {
		return nil
	}
	return []string{fmt.Sprintf("no container got ready for it: %s is said to run a version of flocker that knows nothing of flocker.pre-snapshot", hookless)}
}

// takeHere is TakeSnapshot on the primary.
func (m *member) takeHere(ctx context.Context, ids []volume.ID, req api.SnapshotRequest) (out api.SnapshotReply, err error) {
	take := func(ctx context.Context, ready []replicate.Prepared) error {
		return m.tenure.throughout(func() error { return m.repl.TakeSnapshot(ctx, ids, req.Name, ready...) })
	}
	if m.snapHooks == nil || req.NoHooks {
		return out, take(ctx, nil)
	}
	// Nobody gets ready for what cannot be.
	if _, err := m.tenure.right(); err != nil {
		return out, err
	}
	if err := m.repl.MayTake(ctx, ids, req.Name); err != nil {
		return out, err
	}
	out.Prepared, out.Warnings, err = m.snapHooks.around(ctx, ids, take)
	return out, err
}

// together finds volumes that one node can take a snapshot of at one moment: those
// that have the same primary.
func (m *member) together(refs []string) ([]*state.Volume, error) {
	s := m.cluster.State()
	var vs []*state.Volume
	at := map[string][]string{}
	for _, ref := range refs {
		v, err := findVolume(s, ref, live)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(vs, func(o *state.Volume) bool { return o.ID == v.ID }) {
			continue
		}
		vs = append(vs, v)
		name := s.NodeName(v.Placement.Primary)
		at[name] = append(at[name], v.Name)
	}
	switch {
	case len(vs) == 0:
		return nil, volume.Errorf(volume.CodeInvalid, "no volume is given to take a snapshot of")
	case len(at) > 1:
		return nil, apart(at)
	}
	return vs, nil
}

// apart refuses volumes that have several primaries, with what brings them together: to where
// most of them are.
func apart(at map[string][]string) error {
	var where, moves []string
	names := sortedKeys(at)
	most := slices.MaxFunc(names, func(a, b string) int { return cmp.Compare(len(at[a]), len(at[b])) })
	for _, name := range names {
		where = append(where, fmt.Sprintf("%s on %s", strings.Join(at[name], ", "), name))
		for _, v := range at[name] {
			if name != most {
				moves = append(moves, fmt.Sprintf("flockctl migrate %s %s", v, most))
			}
		}
	}
	return volume.Errorf(volume.CodeRefused, "one moment for all is only possible on one node, but these volumes have several primaries: %s",
		strings.Join(where, "; ")).WithHint("bring them together with `%s`, or take a snapshot of each for itself", strings.Join(moves, "; "))
}

// RemoveSnapshot implements api.Backend.
func (m *member) RemoveSnapshot(ctx context.Context, ref, name string) error {
	v, err := findVolume(m.cluster.State(), ref, live)
	if err != nil {
		return err
	}
	return m.onPrimary(ctx, v, func(ctx context.Context, primary *api.Client) error {
		if primary != nil {
			return primary.RemoveSnapshot(ctx, string(v.ID), name)
		}
		now := m.cluster.State()
		if len(v.Held) > 0 || len(now.Clones(v.ID)) > 0 {
			if s, err := m.ownSnapshot(ctx, v, name); err == nil {
				if h := v.Hold(s.GUID); h != nil {
					return m.refuseHeld(v, h)
				}
				if names := clonedElsewhere(now, v, s.GUID); len(names) > 0 {
					return volume.Errorf(volume.CodeRefused, "snapshot %s of volume %q has clones, on nodes with a copy of it, where it could not go", name, v.Name).
						WithHint("remove them first: %s", strings.Join(names, ", "))
				}
			}
		}
		return m.inWords(m.repl.RemoveSnapshot(ctx, v.ID, name))
	})
}

// PruneSnapshots implements api.Backend.
func (m *member) PruneSnapshots(ctx context.Context, ref string, req api.PruneRequest) (out []api.Snapshot, err error) {
	v, err := findVolume(m.cluster.State(), ref, live)
	if err != nil {
		return nil, err
	}
	var policy volume.SnapshotPolicy
	if req.Policy != "" {
		if !req.DryRun {
			return nil, volume.Errorf(volume.CodeInvalid, "another policy than the volume's own can only be tried with a dry run").
				WithHint("flockctl volume set %s snapshots=%s makes it the volume's", v.Name, req.Policy)
		}
		if policy, err = volume.ParseSnapshotPolicy(req.Policy); err != nil {
			return nil, volume.Errorf(volume.CodeInvalid, "policy %q: %v", req.Policy, err).
				WithHint("it is rules of a period and a number to keep, like 1h:24,1d:7, or none")
		}
	}
	err = m.onPrimary(ctx, v, func(ctx context.Context, primary *api.Client) (err error) {
		if primary != nil {
			out, err = primary.PruneSnapshots(ctx, string(v.ID), req)
			return err
		}
		agreed := func(ctx context.Context) (volume.SnapshotPolicy, error) { return m.policyOf(ctx, v) }
		if req.DryRun && req.Policy == "" {
			if policy, err = agreed(ctx); err != nil {
				return err
			}
		}
		var list []replicate.Snapshot
		if req.DryRun {
			list, err = m.repl.PrunePlan(ctx, v.ID, policy)
		} else {
			list, err = m.repl.Prune(ctx, v.ID, agreed)
		}
		out = forPeople(list)
		return err
	})
	return out, err
}

// policyOf is a volume's policy as it is agreed on at this moment: it may have been changed a moment ago
// through another node, and what is destroyed by the one before is not what its user has seen in a dry run.
func (m *member) policyOf(ctx context.Context, v *state.Volume) (volume.SnapshotPolicy, error) {
	// A question of this node, also where it was asked itself.
	if err := m.catchUp(api.AsLocal(ctx)); err != nil {
		return nil, fmt.Errorf("which snapshots its policy keeps is not known now, flockctl snapshot remove goes without that: %w", err)
	}
	now := m.cluster.State().Volume(v.ID)
	if now == nil || !now.Live() {
		return nil, volume.Errorf(volume.CodeNotFound, "no volume %s", v.Name)
	}
	return now.Spec.Snapshots, nil
}
