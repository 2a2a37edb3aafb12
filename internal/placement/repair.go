package placement

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// seedsPerNode bounds the first copies that one node receives, and those that it
// sends, before Repair asks for more of either. A volume finished early is
// protected early, so a few at a time beats all at once.
const seedsPerNode = 4

// Repair proposes replicas for volumes that have fewer than they were asked to
// have, the least protected first. It also sorts the replicas anew into local and
// remote ones where zones or the primary have changed since. A volume whose
// primary is not known to hold it is left alone: there is nothing to copy from.
//
// It never moves a primary and never takes a replica away, not even one too many.
func Repair(v *View) []state.Command {
	type gap struct {
		vol     *state.Volume
		want    volume.Placement // what it has, sorted anew
		present int              // replicas it has
	}
	var cmds []state.Command
	var gaps []gap
	for _, vol := range v.Volumes {
		if vol.Phase != state.PhaseActive {
			continue
		}
		want := v.resort(vol.Placement)
		switch {
		case v.missing(vol, want) != (Shortfall{}):
			gaps = append(gaps, gap{vol, want, len(want.Local) + len(want.Remote)})
		case !same(want, vol.Placement):
			cmds = append(cmds, setReplicas(vol, want))
		}
	}
	slices.SortStableFunc(gaps, func(a, b gap) int { return cmp.Compare(a.present, b.present) })

	plan := v.clone()
	for _, g := range gaps {
		if p := plan.repairOne(g.vol, g.want); !same(p, g.vol.Placement) {
			cmds = append(cmds, setReplicas(g.vol, p))
		}
	}
	return cmds
}

// repairOne adds what one volume lacks to want as far as nodes and limits allow,
// and counts it in v.
func (v *View) repairOne(vol *state.Volume, want volume.Placement) volume.Placement {
	primary := v.Node(want.Primary)
	if v.noSource(vol) != "" || primary.Feeding >= seedsPerNode {
		return want
	}
	claim := v.claim(vol)
	c := newChooser(v, claim, keyOf(vol.ID))
	for i := range v.Nodes {
		if v.Nodes[i].Seeding >= seedsPerNode {
			c.unfit[i] = busy
		}
	}
	missing := v.missing(vol, want)
	had := want.Nodes()
	want.Local, want.Remote = slices.Clone(want.Local), slices.Clone(want.Remote)
	c.fill(&want, len(want.Local)+missing.Local, len(want.Remote)+missing.Remote)
	for _, id := range want.Nodes() {
		if slices.Contains(had, id) {
			continue
		}
		n := v.Node(id)
		n.Promised += claim
		n.Replicas++
		n.Seeding++
		primary.Feeding++
	}
	return want
}

// resort puts every replica into the list that its zone says. One whose node is
// no member any more keeps its place.
func (v *View) resort(p volume.Placement) volume.Placement {
	zone := v.zoneOf(p.Primary)
	if v.inZone(p.Local, zone, true) && v.inZone(p.Remote, zone, false) {
		return p // as nearly all are
	}
	out := volume.Placement{Primary: p.Primary}
	put := func(id volume.NodeID, local bool) {
		if n := v.Node(id); n != nil {
			local = n.Zone == zone
		}
		if local {
			out.Local = append(out.Local, id)
		} else {
			out.Remote = append(out.Remote, id)
		}
	}
	for _, id := range p.Local {
		put(id, true)
	}
	for _, id := range p.Remote {
		put(id, false)
	}
	return out
}

// inZone says that every node of ids is in the zone, or that none is.
func (v *View) inZone(ids []volume.NodeID, zone volume.Zone, in bool) bool {
	for _, id := range ids {
		if n := v.Node(id); n != nil && (n.Zone == zone) != in {
			return false
		}
	}
	return true
}

// missing counts the replicas that p lacks for the volume's spec. A replica too
// many of the other kind counts as one that is there: after a move to another zone
// the copies are all present, only in the wrong places, and adding more would
// never be undone.
func (v *View) missing(vol *state.Volume, p volume.Placement) Shortfall {
	local := vol.Spec.Replicas - len(p.Local)
	remote := vol.Spec.Remote - len(p.Remote)
	spare := max(-local, 0) + max(-remote, 0)
	s := Shortfall{Local: max(local, 0), Remote: max(remote, 0)}
	take := min(s.Local, spare)
	s.Local -= take
	s.Remote -= min(s.Remote, spare-take)
	return s
}

// Shortfall says which of its replicas a volume lacks, and why Repair has not added
// them; the zero value when it lacks none. A replica that is still being seeded
// is not lacking.
func (v *View) Shortfall(vol *state.Volume) Shortfall {
	p := v.resort(vol.Placement)
	s := v.missing(vol, p)
	if s.IsZero() {
		return s
	}
	c := newChooser(v, v.claim(vol), keyOf(vol.ID))
	s = c.shortfall(p, s.Local, s.Remote)
	if why := v.noSource(vol); why != "" {
		s.WhyLocal, s.WhyRemote = why, why
	}
	return s
}

// noSource is why no replica of a volume can be seeded now; "" when one can.
func (v *View) noSource(vol *state.Volume) string {
	n := v.Node(vol.Placement.Primary)
	switch {
	case n == nil || !n.Alive:
		return "there is nothing to copy from: its primary is not heard of"
	case vol.Phase != state.PhaseActive:
		return fmt.Sprintf("they are added when the volume, now %s, is active", vol.Phase)
	}
	if c := n.Copy(vol.ID); c == nil || !c.Exists {
		return "there is nothing to copy from: its primary " + n.Name + " reports no copy"
	}
	return ""
}

func setReplicas(vol *state.Volume, p volume.Placement) state.Command {
	return state.SetReplicas{ID: vol.ID, Epoch: vol.Epoch, Local: p.Local, Remote: p.Remote, Changed: vol.Changed}
}

func same(p, q volume.Placement) bool {
	return p.Primary == q.Primary && slices.Equal(p.Local, q.Local) && slices.Equal(p.Remote, q.Remote)
}
