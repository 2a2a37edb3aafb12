package state

import (
	"fmt"
	"slices"
	"strings"

	"github.com/flocker-io/flocker/internal/volume"
)

// RemoveNode takes a node out of the cluster for ever: its identity is refused from
// then on. One that is there leaves drained, with nothing on it. One that is dead
// cannot be asked: its copies are no longer counted on, and the volumes it was the
// primary of get another one.
type RemoveNode struct {
	ID   volume.NodeID `json:"id"`
	Dead bool          `json:"dead,omitempty"`
	// Fenced, of a dead one, is an operator's word that it is off and stays off. It is
	// needed where the node might write: where it holds a lease, as one does that is not
	// failed over by time, or where it is a primary and is not barred (State.Barred).
	Fenced bool `json:"fenced,omitempty"`
	// Lose are volumes that are given up because no other node has a whole copy. One
	// of which no other node is to have a copy at all, and that is not named here, makes
	// the removal fail.
	Lose []volume.ID `json:"lose,omitempty"`
}

func (RemoveNode) kind() string { return "remove-node" }

func (t *txn) setAvailability(n *Node, c UpdateNode) *Result {
	if c.Availability == nil {
		return nil
	}
	to, keep := *c.Availability, c.KeepReplicas
	switch {
	case to != Active && to != Drain:
		r := failed(volume.CodeInvalid, "node %s: availability %q: want %s or %s", n.Name, to, Active, Drain)
		return &r
	case to == Active && keep:
		r := failed(volume.CodeInvalid, "node %s: only a drained node keeps its replicas", n.Name)
		return &r
	case to == n.Availability && keep == n.KeepReplicas:
		t.forgive(n.ID)
		return nil
	}
	t.forgive(n.ID)
	n.Availability, n.KeepReplicas = to, keep
	kind, text := "node.active", "is in use again"
	if to == Drain {
		kind, text = "node.draining", "is being drained"
	}
	if keep {
		text += " of its primaries; its replicas stay"
	}
	t.event(Event{Kind: kind, Node: n.ID, Name: n.Name, Message: fmt.Sprintf("node %s %s", n.Name, text)})
	return nil
}

// forgive what kept volumes on a node from being moved with their containers: an operator
// wants it to be tried again at once.
func (t *txn) forgive(node volume.NodeID) {
	for v := range t.s.Volumes() {
		if v.Placement.Primary == node && v.Phase == PhaseActive && v.LastRefusal != nil && v.LastRefusal.Follow {
			again := *v
			again.LastRefusal = nil
			t.putVolume(again)
		}
	}
}

func (t *txn) removeNode(c RemoveNode) Result {
	old := t.s.Node(c.ID)
	switch {
	case old == nil:
		return failed(volume.CodeNotFound, "no node %s", c.ID)
	case old.Removed:
		return Result{}
	case !old.Lost && t.memberCount() == 1:
		return failed(volume.CodeRefused, "node %s is the only one of the cluster", old.Name)
	case !c.Dead && (old.Availability != Drain || old.KeepReplicas):
		return failed(volume.CodeRefused, "node %s is not drained", old.Name)
	}
	var on []Volume
	for v := range t.s.Volumes() {
		if v.Phase == PhasePurged {
			continue // nobody waits for what a removed node had of it
		}
		if v.Placement.Role(old.ID) != volume.RoleNone || v.Pending != nil && v.Pending.To == old.ID {
			on = append(on, *v)
		}
	}
	if bad := t.mayLeave(c, old, on); bad != nil {
		return *bad
	}
	why := fmt.Sprintf("node %s was removed from the cluster", old.Name)
	for _, v := range on {
		t.dropNode(v, old.ID, why, slices.Contains(c.Lose, v.ID))
	}
	t.leaveContainers(old.ID)
	n := *old
	n.Removed = true
	t.putNode(n)
	t.event(Event{Kind: "node.removed", Node: n.ID, Name: n.Name, Message: why})
	return Result{}
}

// memberCount leaves out those that were lost to a recovery.
func (t *txn) memberCount() (n int) {
	for m := range t.s.Nodes() {
		if !m.Lost {
			n++
		}
	}
	return n
}

// mayLeave refuses a removal that would let a second writer in, or lose the only copy
// of something that nobody has given up.
func (t *txn) mayLeave(c RemoveNode, n *Node, on []Volume) *Result {
	var holds, writes, only []string
	for _, v := range on {
		if v.Live() {
			holds = append(holds, v.Name)
			if v.Placement.Primary == n.ID {
				writes = append(writes, v.Name)
			}
		}
		if v.Phase != PhaseCreating && v.Placement.Role(n.ID) != volume.RoleNone && !t.elsewhere(v, n.ID) && !slices.Contains(c.Lose, v.ID) {
			only = append(only, v.Name)
		}
	}
	f := t.s.Failover()
	var r Result
	switch {
	case !c.Dead && len(holds) > 0:
		r = failed(volume.CodeRefused, "node %s still has copies of %s", n.Name, few(holds))
	case len(only) > 0:
		r = failed(volume.CodeRefused, "node %s has the only copy of %s", n.Name, few(only))
	case c.Dead && f.Enforced() && n.Lease.Valid(f) && !c.Fenced:
		r = failed(volume.CodeConflict, "node %s holds a lease, so it counts as alive", n.Name)
	case c.Dead && len(writes) > 0 && !t.s.Barred(n.ID) && !c.Fenced:
		r = failed(volume.CodeRefused, "nothing proves that node %s does not write %s", n.Name, few(writes))
	default:
		return nil
	}
	return &r
}

// elsewhere says that a member other than node is to have a copy.
func (t *txn) elsewhere(v Volume, node volume.NodeID) bool {
	return slices.ContainsFunc(v.Placement.Nodes(), func(id volume.NodeID) bool {
		n := t.s.Node(id)
		return id != node && n != nil && !n.Removed
	})
}

// dropNode takes a node out of a volume's placement, with what follows from that.
func (t *txn) dropNode(v Volume, node volume.NodeID, why string, lose bool) {
	if lose || v.Phase == PhaseCreating && v.Placement.Primary == node {
		t.giveUp(v, node, why)
		return
	}
	if v.Pending != nil && v.Pending.To == node {
		if v.Pending.Follow {
			t.unseen(v.ID, v.Placement.Primary)
		}
		v.LastRefusal = v.refusal(why, t.at)
		v.Phase, v.Pending = PhaseActive, nil
	}
	if v.Migration != nil && v.Migration.To == node {
		t.overMigration(&v, why)
	}
	if v.Placement.Primary == node {
		if !v.Electable() {
			return // in the trash: what is taken out begins with an election
		}
		t.elect(v, why)
		v = *t.s.Volume(v.ID)
	}
	gone := func(n volume.NodeID) bool { return n == node }
	v.Placement.Local = slices.DeleteFunc(slices.Clone(v.Placement.Local), gone)
	v.Placement.Remote = slices.DeleteFunc(slices.Clone(v.Placement.Remote), gone)
	t.putVolume(v)
}

// giveUp ends a volume of which no copy is left that anybody could use. Its placement
// stays: what nodes began to receive of it goes.
func (t *txn) giveUp(v Volume, node volume.NodeID, why string) {
	if v.Live() {
		t.s.names, _, _ = t.s.names.Delete([]byte(v.Name))
	}
	v.Phase, v.Pending, v.Election, v.Deleted = PhasePurged, nil, nil, t.at
	t.putVolume(v)
	t.event(Event{Kind: "volume.lost", Volume: v.ID, Name: v.Name, Node: node,
		Message: fmt.Sprintf("volume %s is given up: %s", v.Name, why)})
}

// few names the first few of a list.
func few(names []string) string {
	const most = 5
	if n := len(names); n > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), n-most)
	}
	return strings.Join(names, ", ")
}
