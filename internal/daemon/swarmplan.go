package daemon

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// swarmView is all that the labels of a Swarm's nodes are decided from.
type swarmView struct {
	State *state.State
	Swarm container.SwarmView // as a manager sees it
	// Where are the nodes of the cluster in the Swarm: their IDs there, "" for one that has
	// said that it belongs to none. Of a node that is not in it nothing is known.
	Where map[volume.NodeID]string
	// Copies are what the nodes last said of their copies, and Held for how long labels, by
	// volume, have been held back for tasks that are ending.
	Copies map[volume.NodeID][]volume.Status
	Held   map[string]time.Duration
}

// swarmLabels are the changes to one node of the Swarm.
type swarmLabels struct {
	Node        string
	Add, Remove []string
}

// planSwarm says which labels are to change, so that each volume that a service is bound to
// has its label where its primary is and nowhere else: what takes labels away first. It
// also says, in sentences, why services cannot run, and of which volumes a label is held back.
//
// While a volume moves, or has no primary, its label goes nowhere: for a move it is taken off
// when the service's tasks are to stop (member.Unlabel), and comes back with the phase, be that
// on the node that the volume went to or on the one where it stayed. So a service is never
// told to start where its volume is about to leave.
//
// Nor is it given to a node where tasks have the volume that are bound to it: without the
// label Swarm is stopping them, and would not wait for their end before it starts others.
//
// A label for a volume that nobody has made yet is on some node that could have it: the first
// task makes the volume there, as any container does.
func planSwarm(v swarmView) (changes []swarmLabels, problems, held []string) {
	add, remove := map[string][]string{}, map[string][]string{}
	bound := map[string]string{} // names of volumes, and the first service of each
	for _, s := range v.Swarm.Services {
		for _, name := range s.Volumes {
			if bound[name] == "" {
				bound[name] = s.Name
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(bound)) {
		label := volume.SwarmPrefix + name
		has := v.labelled(label)
		node, all, problem := v.place(name, has)
		if problem != "" {
			problems = append(problems, fmt.Sprintf("Swarm cannot be told where to run service %s: %s", bound[name], problem))
		}
		for _, id := range has {
			switch {
			case !v.ours(id):
				problems = append(problems, fmt.Sprintf("label %s is on node %s of the Swarm, which no node of this cluster has said to be; it is left there, and service %s may run there (docker node inspect %s)", label, id, bound[name], id))
			case id != node && all:
				remove[id] = append(remove[id], label)
			}
		}
		switch {
		case node == "" || slices.Contains(has, node):
		case v.ending(name):
			held = append(held, name)
		default:
			add[node] = append(add[node], label)
		}
	}
	for _, n := range v.Swarm.Nodes {
		for _, label := range slices.Sorted(maps.Keys(n.Labels)) {
			name, ours := strings.CutPrefix(label, volume.SwarmPrefix)
			if ours && n.Labels[label] == "true" && bound[name] == "" && v.ours(n.ID) {
				remove[n.ID] = append(remove[n.ID], label) // no service asks for it any more
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(remove)) {
		changes = append(changes, swarmLabels{Node: id, Remove: remove[id]})
	}
	for _, id := range slices.Sorted(maps.Keys(add)) {
		changes = append(changes, swarmLabels{Node: id, Add: add[id]})
	}
	return changes, problems, held
}

// ending says that bound tasks have a volume on its primary, which has no label of it. That
// ends with their grace periods; tasks that last longer are not being stopped, as when the
// service was bound a moment ago and starts its next task first.
func (v swarmView) ending(name string) bool {
	vol := v.State.VolumeByName(name)
	if vol == nil {
		return false
	}
	copies := v.Copies[vol.Placement.Primary]
	i := slices.IndexFunc(copies, func(s volume.Status) bool { return s.Volume == vol.ID })
	if i < 0 {
		return false
	}
	return slices.ContainsFunc(v.Swarm.Services, func(s volume.SwarmService) bool {
		runs := slices.ContainsFunc(copies[i].Holders, func(h volume.Holder) bool { return h.Service == s.Name })
		return runs && s.BoundTo(name) && v.Held[name] < s.Grace+swarmStop
	})
}

// ours says that a node of the Swarm is known to be one of the cluster. Labels of others are
// left alone: they may be those of another cluster in the same Swarm.
func (v swarmView) ours(id string) bool {
	return slices.Contains(slices.Collect(maps.Values(v.Where)), id)
}

// labelled are the nodes of the Swarm with a label.
func (v swarmView) labelled(label string) (ids []string) {
	for _, n := range v.Swarm.Nodes {
		if strings.EqualFold(n.Labels[label], "true") {
			ids = append(ids, n.ID)
		}
	}
	return ids
}

// place is the node that the label of a volume belongs on, "" for none, and whether it is to
// be taken off all others. The problem is why the service cannot run there.
func (v swarmView) place(name string, has []string) (node string, all bool, problem string) {
	vol := v.State.VolumeByName(name)
	if vol == nil || !vol.Live() {
		if slices.ContainsFunc(has, func(id string) bool { return !v.ours(id) }) {
			return "", false, "" // it may be another cluster's volume
		}
		node = v.anywhere(has)
		if node == "" {
			return "", false, fmt.Sprintf("volume %q is not there yet, and no node could make it", name)
		}
		return node, true, ""
	}
	if vol.Phase != state.PhaseActive && vol.Phase != state.PhaseCreating {
		return "", false, "" // in a moment it is decided
	}
	primary := v.State.NodeName(vol.Placement.Primary)
	node, said := v.Where[vol.Placement.Primary]
	switch {
	case !said:
		return "", false, fmt.Sprintf("node %s, the primary of volume %s, has not said yet which node of the Swarm it is", primary, name)
	case !slices.ContainsFunc(v.Swarm.Nodes, func(n container.SwarmNode) bool { return n.ID == node }):
		return "", true, fmt.Sprintf("the primary of volume %s is %s, whose engine does not belong to this Swarm", name, primary)
	}
	return node, true, ""
}

// anywhere is a node that could make a volume: one that has the label already before others,
// then the one with the fewest labels of ours.
func (v swarmView) anywhere(has []string) string {
	type candidate struct {
		id     string
		labels int
	}
	var all []candidate
	for n := range v.State.Nodes() {
		at := v.Where[n.ID]
		i := slices.IndexFunc(v.Swarm.Nodes, func(s container.SwarmNode) bool { return s.ID == at && s.Ready })
		if at == "" || i < 0 || n.Removed || n.Lost || n.Witness || n.Availability == state.Drain {
			continue
		}
		if slices.Contains(has, at) {
			return at
		}
		c := candidate{id: at}
		for label := range v.Swarm.Nodes[i].Labels {
			if strings.HasPrefix(label, volume.SwarmPrefix) {
				c.labels++
			}
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return ""
	}
	return slices.MinFunc(all, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.labels, b.labels), strings.Compare(a.id, b.id))
	}).id
}
