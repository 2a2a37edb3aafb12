package placement

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// shunned is how a spec thinks of a node to avoid.
const shunned = -1

// lean is how a spec thinks of a node: the higher the rather it has a copy there. It
// decides between nodes that are equal but for their score, and keeps no copy from being
// made, nor a volume from failing over. A pool without redundancy is a last resort for
// everybody, whatever is preferred.
func (n *NodeView) lean(spec volume.Spec) int {
	switch {
	case len(spec.Prefer)+len(spec.Avoid) == 0:
		return 0
	case n.Pool.Health == poolDegraded || slices.Contains(spec.Avoid, n.Name):
		return shunned
	}
	return n.preferred(spec)
}

// preferred is higher the earlier a spec names the node; 0: it does not.
func (n *NodeView) preferred(spec volume.Spec) int {
	if i := slices.Index(spec.Prefer, n.Name); i >= 0 {
		return len(spec.Prefer) - i
	}
	return 0
}

// strays says that a node is outside of the zone that a spec wants its primary in.
func (n *NodeView) strays(spec volume.Spec) bool { return spec.Zone != "" && n.Zone != spec.Zone }

// leanOf sums up what volumes that go together think of a node, and straysFrom counts
// those whose zone it is outside of.
func (v *View) leanOf(volumes []*state.Volume, id volume.NodeID) (sum int) {
	if n := v.Node(id); n != nil {
		for _, vol := range volumes {
			sum += n.lean(vol.Spec)
		}
	}
	return sum
}

func (v *View) straysFrom(volumes []*state.Volume, id volume.NodeID) (count int) {
	if n := v.Node(id); n != nil {
		for _, vol := range volumes {
			count += yes(n.strays(vol.Spec))
		}
	}
	return count
}

// KnowsPlaces refuses nodes and zones that a spec names and the one before it did not,
// and that are not there, or can hold nothing.
func KnowsPlaces(v *View, was, spec volume.Spec) error {
	var names []string
	for i := range v.Nodes {
		if !v.Nodes[i].Witness {
			names = append(names, v.Nodes[i].Name)
		}
	}
	slices.Sort(names)
	for _, list := range []struct {
		option   string
		was, now []string
	}{{"prefer", was.Prefer, spec.Prefer}, {"avoid", was.Avoid, spec.Avoid}} {
		for _, name := range list.now {
			if slices.Contains(names, name) || slices.Contains(list.was, name) {
				continue
			}
			why := "there is no node of that name"
			if slices.ContainsFunc(v.Nodes, func(n NodeView) bool { return n.Name == name }) {
				why = "it is a witness and keeps no data"
			}
			return volume.Errorf(volume.CodeInvalid, "volume option %s: node %q: %s", list.option, name, why).
				WithHint("nodes that hold volumes are %s", strings.Join(names, ", "))
		}
	}
	if spec.Zone == "" || spec.Zone == was.Zone || slices.ContainsFunc(v.zones[spec.Zone], func(i int) bool { return !v.Nodes[i].Witness }) {
		return nil
	}
	var zones []string
	for _, z := range slices.Sorted(maps.Keys(v.zones)) {
		zones = append(zones, string(z))
	}
	return volume.Errorf(volume.CodeInvalid, "volume option zone: no node that could hold the volume is in zone %q", spec.Zone).
		WithHint("zones are %s; flockctl node label NODE --zone %s puts a node there", strings.Join(zones, ", "), spec.Zone)
}

// Locality says which of its preferences a volume has not got, and why; "" when it has
// all.
func (v *View) Locality(vol *state.Volume) string {
	spec, p := vol.Spec, v.Node(vol.Placement.Primary)
	if p == nil || !vol.Live() || len(spec.Prefer)+len(spec.Avoid) == 0 && spec.Zone == "" {
		return ""
	}
	c := newChooser(v, spec, v.claim(vol), keyOf(vol.ID))
	// why a node does not have what it should; "" for no reason but that nobody moved it.
	why := func(i int) string {
		n := &v.Nodes[i]
		switch there := vol.Placement.Role(n.ID) != volume.RoleNone; {
		case there && n.Availability != state.Active:
			return n.Name + " " + draining.explain(n, c.claim, v.Now)
		case there && !n.Alive:
			return n.Name + " is not heard of"
		case n.Pool.Health == poolDegraded:
			return n.Name + " " + sick.explain(n, c.claim, v.Now)
		case !there && c.unfit[i] != fit:
			return n.Name + " " + c.unfit[i].explain(n, c.claim, v.Now)
		}
		return ""
	}
	var out []string
	if p.strays(spec) {
		text := fmt.Sprintf("its primary is on %s, not in zone %s", p.Name, spec.Zone)
		free, reasons := "", []string{}
		for _, i := range v.zones[spec.Zone] {
			reason := why(i)
			if reason == "" {
				free = cmp.Or(free, v.Nodes[i].Name)
			}
			reasons = append(reasons, reason)
		}
		switch {
		case len(reasons) == 0:
			text += ", where there is no node"
		case free != "":
			text += fmt.Sprintf(": flockctl migrate %s %s", vol.Name, free)
		default:
			text += ": " + strings.Join(reasons[:min(len(reasons), namedReasons)], ", ")
		}
		out = append(out, text)
	}
	best := -1
	for i := range v.Nodes {
		if n := &v.Nodes[i]; !n.strays(spec) && n.preferred(spec) > 0 && (best < 0 || n.preferred(spec) > v.Nodes[best].preferred(spec)) {
			best = i
		}
	}
	if best >= 0 && v.Nodes[best].preferred(spec) > p.preferred(spec) {
		text := fmt.Sprintf("its primary is on %s, not on %s", p.Name, v.Nodes[best].Name)
		if reason := why(best); reason != "" {
			text += ": " + reason
		} else {
			text += fmt.Sprintf(": flockctl migrate %s %s", vol.Name, v.Nodes[best].Name)
		}
		out = append(out, text)
	}
	for id := range nodesOf(vol.Placement) {
		if n := v.Node(id); n != nil && slices.Contains(spec.Avoid, n.Name) {
			out = append(out, fmt.Sprintf("it has a copy on %s, which it avoids", n.Name))
		}
	}
	return strings.Join(out, "; ")
}

// homeward gives a volume that is to leave a node, but not its zone, a copy on another
// node there, or waits for it. False when no node of the zone can have one, or when it
// goes together with others.
func (v *View) homeward(vol *state.Volume, g company, n *NodeView) (drainStep, bool) {
	if vol.Spec.Zone == "" || len(g.volumes) > 1 {
		return drainStep{}, false
	}
	c := newChooser(v, vol.Spec, v.claim(vol), keyOf(vol.ID))
	best := -1
	for _, i := range v.zones[vol.Spec.Zone] {
		m := &v.Nodes[i]
		switch {
		case m.ID == n.ID || m.Availability != state.Active || !m.Lease || !m.poolKnown():
		case vol.Placement.Role(m.ID) == volume.RoleReplica:
			l := v.link(vol, m.ID)
			if l.State == "" || l.State == volume.LinkSeeding || l.State == volume.LinkConnecting && l.Error == "" {
				return drainStep{doing: "first copy to " + m.Name + progress(l)}, true
			}
		case c.unfit[i] == fit && (best < 0 || c.rather(i, best)):
			best = i
		}
	}
	if best < 0 {
		return drainStep{}, false
	}
	m := &v.Nodes[best]
	want := cloned(vol.Placement)
	if m.Zone == n.Zone {
		want.Local = append(want.Local, m.ID)
	} else {
		want.Remote = append(want.Remote, m.ID)
	}
	return drainStep{cmd: setReplicas(vol, want), begins: true, adds: true, placement: want, doing: "first copy to " + m.Name}, true
}
