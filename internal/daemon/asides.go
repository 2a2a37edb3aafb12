package daemon

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// asides lists the set-aside copies that are known, oldest first.
func (v view) asides() api.Asides {
	out := api.Asides{Asides: []api.Aside{}}
	keep := v.state.Cluster().Settings.AsideKeep()
	for n := range v.state.Nodes() {
		h, ok := v.heard(n.ID)
		if !ok || h.Age > v.stale {
			if !n.Witness {
				out.Unheard = append(out.Unheard, v.ref(n.ID))
			}
			continue
		}
		for _, a := range h.Asides {
			x := api.Aside{Aside: a, Node: v.ref(n.ID)}
			if vol := v.state.Volume(a.Volume); vol != nil && vol.Phase != state.PhasePurged {
				x.VolumeName = vol.Name
			}
			if !a.At.IsZero() {
				x.Expires = a.At.Add(keep)
			}
			out.Asides = append(out.Asides, x)
		}
	}
	slices.SortFunc(out.Asides, func(a, b api.Aside) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Node.Name, b.Node.Name))
	})
	return out
}

// findAside is the one copy that ref, its name or the start of it, can mean; on one
// node only unless that is "".
func findAside(all api.Asides, ref string, node volume.NodeID) (api.Aside, error) {
	var exact, begun []api.Aside
	for _, a := range all.Asides {
		switch {
		case node != "" && a.Node.ID != node:
		case a.Name == ref:
			exact = append(exact, a)
		case len(ref) >= api.MinPrefix && strings.HasPrefix(a.Name, ref):
			begun = append(begun, a)
		}
	}
	found := exact
	if len(found) == 0 {
		found = begun
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		var may []string
		for _, a := range found {
			may = append(may, fmt.Sprintf("%s on %s", a.Name, a.Node))
		}
		return api.Aside{}, volume.Errorf(volume.CodeConflict, "set-aside copy %q is ambiguous: it may be %s", ref, strings.Join(may, ", ")).
			WithHint("give more of its name, or the node with --node")
	}
	err := volume.Errorf(volume.CodeNotFound, "no set-aside copy %q", ref)
	if len(all.Unheard) > 0 {
		var names []string
		for _, n := range all.Unheard {
			names = append(names, n.String())
		}
		return api.Aside{}, err.WithHint("it may be on %s, which has not reported lately", strings.Join(names, ", "))
	}
	return api.Aside{}, err.WithHint("flockctl aside list shows what there is")
}

// Asides implements api.Backend.
func (m *member) Asides(context.Context) (api.Asides, error) { return m.view().asides(), nil }

// aside finds one by what a user typed.
func (m *member) aside(ref, node string) (api.Aside, error) {
	var on volume.NodeID
	if node != "" {
		var err error
		if on, err = findNode(m.cluster.State(), node); err != nil {
			return api.Aside{}, err
		}
	}
	return findAside(m.view().asides(), ref, on)
}

// RestoreAside implements api.Backend.
func (m *member) RestoreAside(ctx context.Context, ref string, req api.RestoreAsideRequest) (api.Volume, error) {
	if err := volume.ValidateName(req.Name); err != nil {
		return api.Volume{}, err
	}
	req.Request = cmp.Or(req.Request, newRequest())
	var made api.Volume
	err := m.onLeader(ctx, func(ctx context.Context, leader *api.Client) (err error) {
		if leader != nil {
			made, err = leader.RestoreAside(ctx, ref, req)
			return err
		}
		made, err = m.restoreHere(ctx, ref, req)
		return err
	})
	if err != nil {
		return api.Volume{}, err
	}
	return made, m.cluster.CaughtUp(ctx, made.Index)
}

// asideVolume is the volume that a request makes of a set-aside copy.
func asideVolume(request string) volume.ID {
	sum := sha256.Sum256([]byte("restore " + request))
	return volume.ID(hex.EncodeToString(sum[:8]))
}

// restoreHere is RestoreAside on the leader. The volume's ID follows from the request,
// so that a repeat, also by the next leader, knows its own volume from somebody else's
// of the same name.
func (m *member) restoreHere(ctx context.Context, ref string, req api.RestoreAsideRequest) (api.Volume, error) {
	// Only who leads may say what there is and what not.
	if _, err := m.Barrier(ctx); err != nil {
		return api.Volume{}, err
	}
	id, without := asideVolume(req.Request), []string(nil)
	if v := m.cluster.State().VolumeByName(req.Name); v != nil && v.ID != id {
		return api.Volume{}, volume.Errorf(volume.CodeConflict, "there is a volume %q already", req.Name).WithHint("give another name")
	}
	if m.cluster.State().Volume(id) == nil {
		a, err := m.aside(ref, req.Node)
		if err != nil {
			return api.Volume{}, err
		}
		spec, err := m.restoredSpec(a, req.Options)
		if err != nil {
			return api.Volume{}, err
		}
		spec, without = withoutTaken(m.cluster.State(), spec, req.Options)
		// The copy is where it is: that node becomes the primary, whether new volumes would
		// be placed there or not. Replicas that cannot be placed now are added by Repair.
		here := spec // but for where it would rather be
		here.Prefer, here.Zone = append([]string{m.cluster.State().NodeName(a.Node.ID)}, spec.Prefer...), ""
		p, _, err := m.place(ctx, here, a.Node.ID)
		if err != nil && spec.Strict {
			return api.Volume{}, err
		}
		if err != nil || p.Primary != a.Node.ID {
			p = volume.Placement{Primary: a.Node.ID}
		}
		var descends []volume.ID
		if was := m.cluster.State().Volume(a.Volume); was != nil {
			descends = was.Descent()
		}
		_, err = m.commit(ctx, req.Request, state.CreateVolume{ID: id, Name: req.Name, Spec: spec, Placement: p, Adopt: a.Name, After: a.Epoch, Descends: descends})
		if err != nil {
			return api.Volume{}, err
		}
	}
	made, err := m.awaitCreated(ctx, id, req.Name)
	if err != nil {
		return api.Volume{}, err
	}
	if len(without) > 0 {
		m.tell(state.Tell{Volume: id, Kind: state.VolumePorts, Message: fmt.Sprintf("volume %s is made of a set-aside copy without ports that its volume listens on: %s", req.Name, strings.Join(without, "; "))})
		made.Without = without
	}
	return made, nil
}

// withoutTaken is the spec of a volume that is to be made of a copy, without those ports of
// the volume it was a copy of that somebody has, and why: mostly that volume itself. Ports that
// somebody asks for are left in, and refused when they are taken.
func withoutTaken(s *state.State, spec volume.Spec, given map[string]string) (volume.Spec, []string) {
	if _, chosen := given["ports"]; chosen {
		return spec, nil
	}
	var taken []string
	spec.Ports, taken = s.FreePorts(spec.Ports)
	return spec, taken
}

// restoredSpec is the spec of the volume that a copy came from, with some options
// changed.
func (m *member) restoredSpec(a api.Aside, opts map[string]string) (volume.Spec, error) {
	var was volume.Spec
	all := map[string]string{}
	if v := m.cluster.State().Volume(a.Volume); v != nil {
		was, all = v.Spec, v.Spec.Options()
	}
	all, err := copyOptions(all, a.Whole, opts)
	if err != nil {
		return volume.Spec{}, err
	}
	spec, err := volume.ParseOptions(all)
	if err != nil {
		return volume.Spec{}, err
	}
	return spec, m.knowsPlaces(was, spec)
}

// RemoveAside implements api.Backend.
func (m *member) RemoveAside(ctx context.Context, ref, node string) error {
	if _, forwarded := api.Caller(ctx); forwarded {
		// Another node has found out which one is meant; only whose it is is checked.
		if volume.NodeID(node) != m.self || m.agent == nil {
			return volume.Errorf(volume.CodeConflict, "this node has no set-aside copy %q", ref)
		}
		return m.agent.RemoveAside(ctx, ref)
	}
	a, err := m.aside(ref, node)
	if err != nil {
		return err
	}
	if a.Node.ID == m.self {
		err = m.agent.RemoveAside(ctx, a.Name)
	} else {
		err = m.client(a.Node.ID).RemoveAside(ctx, a.Name, string(a.Node.ID))
	}
	if err != nil {
		return err
	}
	// It is gone; that a list shows it until the node's next report would be odd.
	soon, cancel := context.WithTimeout(ctx, 2*m.timers.Report)
	defer cancel()
	if err := m.pollReports(soon, func() bool {
		_, err := findAside(m.view().asides(), a.Name, a.Node.ID)
		return err != nil
	}, "the report of %s", a.Node); err != nil {
		m.log.Debug("a removed set-aside copy is still reported", "aside", a.Name, "err", err)
	}
	return nil
}

// copyOptions are those of a volume that is made of a copy, by those of its volume as far as they are
// known, and what is given. Where its files are in it nobody can choose: a backup says it of its own
// copy, and flockctl sees to it that nobody else does.
func copyOptions(was map[string]string, whole bool, given map[string]string) (map[string]string, error) {
	key, value := volume.WholeOption()
	all, known := maps.Clone(was), whole || len(was) > 0
	if all == nil {
		all = map[string]string{}
	}
	if whole {
		all[key] = value
	}
	is := all[key]
	maps.Copy(all, given)
	if known && all[key] != is {
		return nil, volume.Errorf(volume.CodeInvalid, "a volume has its files where its copy has them: %s cannot be chosen", key).WithHint("leave that option out")
	}
	return all, nil
}
