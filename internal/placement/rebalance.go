package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// What is closer together than this stays as it is, and no move makes the emptier one of
// its two nodes the fuller one: so no plan undoes an earlier one, and plans come to rest.
const (
	spaceGap   = 0.15 // by how much more of its pool a node has used and promised than another one
	primaryGap = 3    // how many primaries a node has more than another one
	// mostMoves of one plan, so that people can read it. The next has the rest.
	mostMoves = 50
)

// Move takes one copy of a volume from a node to another one.
type Move struct {
	Volume *state.Volume
	Role   volume.Role // of the copy on From
	From   volume.NodeID
	To     volume.NodeID
	// Leaves says that From has no copy afterwards. Else To has one already, and the two
	// change their roles.
	Leaves bool
	Bytes  int64 // to be copied, snapshots included; 0: To has them
	Why    string
	// Containers go along with a primary, and With are the other volumes that these need.
	Containers []string
	With       []string

	aim aim
}

// aim is what a move is for.
type aim uint8

const (
	aimWish aim = iota
	aimSpace
	aimLoad
)

// Share is what a node has before and after a plan.
type Share struct {
	Node                      volume.NodeID
	Size                      int64 // of its pool, in bytes
	Bytes, BytesAfter         int64 // used and promised
	Primaries, PrimariesAfter int
}

// full is the used and promised part of the pool, after the plan.
func (s *Share) full() float64 { return float64(s.BytesAfter) / float64(s.Size) }

// Plan is what would even a cluster out.
type Plan struct {
	Moves  []Move
	Shares []Share // of the nodes that were looked at
	// Notes say which nodes were left out, and what would be moved and cannot be.
	Notes []string
}

// Rebalance plans moves that bring volumes where they would rather be, then even out the
// space of nodes, then the number of their primaries. It only plans: nothing is moved
// unless somebody asks for it.
//
// It moves no more than one copy of a volume, of a volume that lacks none and that nothing
// else is being done to; space by replicas first, since nobody waits for these. A move never
// makes a zone that its volume spreads over more crowded, nor leads to a node that the
// volume would rather not be on than the one where it is.
func Rebalance(v *View) Plan {
	return newBalance(v, func(*state.Volume) bool { return false }).make(true, true)
}

// newBalance has all nodes and volumes that may take part, and no moves yet. Those that rest
// do not.
func newBalance(v *View, rests func(*state.Volume) bool) *balance {
	b := &balance{v: v, by: map[volume.NodeID]int{}, taken: map[volume.ID]bool{}, added: map[volume.NodeID]int64{}}
	for i := range v.Nodes {
		n := &v.Nodes[i]
		switch why := n.unfit(0); {
		case why == witness:
		case why == fit || why == full:
			used := max(n.Pool.Size-n.Pool.Free, 0) + max(n.Promised-n.Held, 0)
			b.by[n.ID] = len(b.plan.Shares)
			b.plan.Shares = append(b.plan.Shares, Share{Node: n.ID, Size: n.Pool.Size, Bytes: used, BytesAfter: used, Primaries: n.Primaries, PrimariesAfter: n.Primaries})
		default:
			b.note("node %s is left out: it %s", n.Name, why.explain(n, 0, v.Now))
		}
	}
	left := []string{}
	for _, vol := range v.Volumes {
		switch {
		case rests(vol):
		case v.calm(vol):
			b.volumes = append(b.volumes, vol)
		case vol.Live():
			left = append(left, vol.Name)
		}
	}
	if n := len(left) - namedReasons; n > 0 {
		left = append(left[:namedReasons], fmt.Sprintf("%d more", n))
	}
	if len(left) > 0 {
		b.note("left out, since copies of them are not complete or something is being done to them: %s", strings.Join(left, ", "))
	}
	return b
}

// make is the plan: moves for wishes, and those for space and for load where they are wanted.
func (b *balance) make(space, load bool) Plan {
	b.wishes()
	if space {
		b.space()
	}
	if load {
		b.primaries()
	}
	if len(b.plan.Moves) == mostMoves {
		b.note("a plan has at most %d moves; what is left is for the next one", mostMoves)
	}
	return b.plan
}

// balance is a Plan in the making.
type balance struct {
	v       *View
	volumes []*state.Volume // that may be moved
	taken   map[volume.ID]bool
	by      map[volume.NodeID]int // index of a node's Share
	added   map[volume.NodeID]int64
	plan    Plan
}

func (b *balance) note(format string, args ...any) {
	b.plan.Notes = append(b.plan.Notes, fmt.Sprintf(format, args...))
}

// share of a node; nil when it is left out.
func (b *balance) share(id volume.NodeID) *Share {
	if i, ok := b.by[id]; ok {
		return &b.plan.Shares[i]
	}
	return nil
}

// calm says that a volume has all that its copies need and that nothing is being done to
// it.
func (v *View) calm(vol *state.Volume) bool {
	if vol.Phase != state.PhaseActive || v.noSource(vol) != "" || v.leaves(vol) || v.parted(vol) || len(v.starting(vol)) > 0 {
		return false
	}
	replicas := vol.Placement.Replicas()
	return v.Node(vol.Placement.Primary).Copy(vol.ID).Problem == "" && len(replicas) == vol.Spec.Replicas+vol.Spec.Remote &&
		!slices.ContainsFunc(replicas, func(id volume.NodeID) bool { return !v.complete(vol, id) })
}

// wishes plans for volumes that would rather be somewhere else: their primaries, or one
// of their replicas.
func (b *balance) wishes() {
	for _, vol := range b.volumes {
		if len(b.plan.Moves) == mostMoves {
			return
		}
		if s := vol.Spec; b.taken[vol.ID] || s.Zone == "" && len(s.Prefer)+len(s.Avoid) == 0 {
			continue
		}
		if !b.wishPrimary(vol) {
			b.wishReplica(vol)
		}
	}
}

// asked is how a spec thinks of the node where a copy is: a pool that has lost its
// redundancy is no reason to go.
func (n *NodeView) asked(spec volume.Spec) int {
	if slices.Contains(spec.Avoid, n.Name) {
		return shunned
	}
	return n.preferred(spec)
}

func (b *balance) wishPrimary(vol *state.Volume) bool {
	v, from := b.v, b.v.Node(vol.Placement.Primary)
	g := v.company(vol, from.ID)
	asked := 0
	for _, other := range g.volumes {
		asked += from.asked(other.Spec)
	}
	strays := v.straysFrom(g.volumes, from.ID)
	var all []*NodeView
	for i := range v.Nodes {
		m := &v.Nodes[i]
		if m.ID == from.ID || !b.takes(g.volumes, m) {
			continue
		}
		home := cmp.Compare(strays, v.straysFrom(g.volumes, m.ID))
		if home > 0 || home == 0 && v.leanOf(g.volumes, m.ID) > asked && b.reaches(g.volumes, from, m) {
			all = append(all, m)
		}
	}
	slices.SortStableFunc(all, func(a, b2 *NodeView) int {
		return cmp.Or(cmp.Compare(v.straysFrom(g.volumes, a.ID), v.straysFrom(g.volumes, b2.ID)),
			cmp.Compare(v.leanOf(g.volumes, b2.ID), v.leanOf(g.volumes, a.ID)),
			cmp.Compare(b.copied(g.volumes, a.ID), b.copied(g.volumes, b2.ID)),
			cmp.Compare(b.share(a.ID).full(), b.share(b2.ID).full()))
	})
	blocked := ""
	for _, m := range all {
		why := fmt.Sprintf("%s is preferred to %s", m.Name, from.Name)
		switch {
		case v.straysFrom(g.volumes, m.ID) < strays:
			why = fmt.Sprintf("%s is outside of zone %s", from.Name, vol.Spec.Zone)
			if vol.Spec.Zone == "" {
				why = fmt.Sprintf("%s is outside of the zone of what goes along", from.Name)
			}
		case asked < 0:
			why = fmt.Sprintf("%s is to be avoided", from.Name)
		}
		obstacle := b.hand(vol, from, m, why, aimWish)
		if obstacle == "" {
			return true
		}
		blocked = cmp.Or(blocked, fmt.Sprintf("volume %s would go from %s to %s (%s), but %s", vol.Name, from.Name, m.Name, why, obstacle))
	}
	if blocked != "" {
		b.note("%s", blocked)
	}
	return false
}

// reaches says that volumes can have as many replicas of each kind with their primary on m
// as with it on from: what is only preferred must not cost a copy.
func (b *balance) reaches(volumes []*state.Volume, from, m *NodeView) bool {
	in := map[volume.Zone]int{}
	for _, s := range b.plan.Shares {
		in[b.v.zoneOf(s.Node)]++
	}
	reach := func(vol *state.Volume, n *NodeView) int {
		here := max(in[n.Zone], 1)
		return min(vol.Spec.Replicas, here-1) + min(vol.Spec.Remote, len(b.plan.Shares)-here)
	}
	return !slices.ContainsFunc(volumes, func(vol *state.Volume) bool { return reach(vol, m) < reach(vol, from) })
}

func (b *balance) wishReplica(vol *state.Volume) {
	var best Move
	gain := 0
	for _, id := range vol.Placement.Replicas() {
		from := b.v.Node(id)
		for i := range b.v.Nodes {
			m := &b.v.Nodes[i]
			if more := m.lean(vol.Spec) - from.asked(vol.Spec); more > gain && b.mayHave(vol, id, m) {
				why := fmt.Sprintf("%s is preferred to %s", m.Name, from.Name)
				if from.asked(vol.Spec) < 0 {
					why = fmt.Sprintf("%s is to be avoided", from.Name)
				}
				best, gain = Move{Volume: vol, Role: volume.RoleReplica, From: id, To: m.ID, Leaves: true, Why: why}, more
			}
		}
	}
	if gain > 0 {
		b.add(best)
	}
}

// mayHave says that a node can have the copy that another one has, for the sake of order.
func (b *balance) mayHave(vol *state.Volume, from volume.NodeID, m *NodeView) bool {
	p := vol.Placement
	if p.Role(m.ID) != volume.RoleNone || !b.room(m, b.v.claim(vol)) {
		return false
	}
	home, old := b.v.zoneOf(p.Primary), b.v.zoneOf(from)
	if m.Zone == old || from == p.Primary {
		return m.Zone == old
	}
	perZone := b.v.perZone(p)
	return m.Zone != home && old != home && perZone[m.Zone] < perZone[old]
}

// room says that a node can take so many bytes more and stays some way below full, also
// before anything that the plan takes off it has gone.
func (b *balance) room(m *NodeView, claim int64) bool {
	s := b.share(m.ID)
	return s != nil && m.Pool.Health != poolDegraded && float64(s.Bytes+b.added[m.ID]+claim) < roomyUsage*float64(s.Size)
}

// takes says that a node could be the primary of volumes that go together: of each it has
// a complete copy, or room for one.
func (b *balance) takes(volumes []*state.Volume, m *NodeView) bool {
	var claim int64
	for _, vol := range volumes {
		switch {
		case vol.Placement.Role(m.ID) == volume.RoleNone:
			claim += b.v.claim(vol)
		case !b.v.complete(vol, m.ID):
			return false
		}
	}
	return m.Lease && b.share(m.ID) != nil && (claim == 0 || b.room(m, claim))
}

// copied is how many bytes volumes would be sent to a node.
func (b *balance) copied(volumes []*state.Volume, to volume.NodeID) (sum int64) {
	for _, vol := range volumes {
		if vol.Placement.Role(to) == volume.RoleNone {
			sum += b.v.used(vol)
		}
	}
	return sum
}

// used is what the fullest copy of a volume takes, or of one that shares what it has with another what one
// would that shares nothing.
func (v *View) used(vol *state.Volume) (used int64) {
	for id := range nodesOf(vol.Placement) {
		if n := v.Node(id); n != nil {
			if c := n.Copy(vol.ID); c != nil {
				if used = max(used, c.Used); vol.Clone != nil || c.Shares != nil {
					used = max(used, c.Data)
				}
			}
		}
	}
	return used
}

// hand plans that a primary goes to a node with all that goes along, or says why it cannot.
func (b *balance) hand(vol *state.Volume, from, to *NodeView, why string, aim aim) (obstacle string) {
	g := b.v.company(vol, from.ID)
	for _, other := range g.volumes {
		switch {
		case b.taken[other.ID]:
			return fmt.Sprintf("volume %s of the same containers is in this plan already", other.Name)
		case !slices.Contains(b.volumes, other) || other.Placement.Primary != from.ID:
			return fmt.Sprintf("volume %s of the same containers cannot be moved now", other.Name)
		}
	}
	p := b.v.planMigration(vol, from, to.ID)
	if p.impossible != "" || p.Doing == "" && p.Why != "" {
		return cmp.Or(p.impossible, p.Why)
	}
	b.add(Move{Volume: vol, Role: volume.RolePrimary, From: from.ID, To: to.ID, Leaves: vol.Placement.Role(to.ID) == volume.RoleNone,
		Why: why, Containers: p.Containers, With: p.With, aim: aim})
	return ""
}

// add puts a move into the plan and counts it.
func (b *balance) add(m Move) {
	volumes := []*state.Volume{m.Volume}
	if m.Role == volume.RolePrimary {
		volumes = b.v.company(m.Volume, m.From).volumes
	}
	m.Bytes = b.copied(volumes, m.To)
	from, to := b.share(m.From), b.share(m.To)
	for _, vol := range volumes {
		b.taken[vol.ID] = true
		if vol.Placement.Role(m.To) == volume.RoleNone {
			to.BytesAfter += b.v.claim(vol)
			b.added[m.To] += b.v.claim(vol)
			if from != nil && m.Leaves {
				from.BytesAfter = max(from.BytesAfter-freed(vol, b.v.Node(m.From), b.v.claim(vol)), 0)
			}
		}
		if m.Role == volume.RolePrimary {
			to.PrimariesAfter++
			if from != nil {
				from.PrimariesAfter--
			}
		}
	}
	b.plan.Moves = append(b.plan.Moves, m)
}

// space evens out what is used and promised: from the fullest node that has something to
// give, the largest copy that does not make another node the fuller one.
func (b *balance) space() {
	given := map[volume.NodeID]bool{} // those that have nothing more to give
	for len(b.plan.Moves) < mostMoves {
		var from, least *Share
		for i := range b.plan.Shares {
			s := &b.plan.Shares[i]
			if !given[s.Node] && (from == nil || s.full() > from.full()) {
				from = s
			}
			if least == nil || s.full() < least.full() {
				least = s
			}
		}
		if from == nil || from.full()-least.full() <= spaceGap {
			return
		}
		if !b.relieve(from) {
			if given[from.Node] = true; len(given) == 1 {
				b.note("%s stays %.0f %% full and %s %.0f %%: of what is on %s nothing more can go to an emptier node without making that the fuller one, or against what its volume asks for",
					b.v.name(from.Node), 100*from.full(), b.v.name(least.Node), 100*least.full(), b.v.name(from.Node))
			}
		}
	}
}

// relieve plans one move off a node that is too full; false when there is none.
func (b *balance) relieve(from *Share) bool {
	type choice struct {
		vol   *state.Volume
		to    *NodeView
		claim int64 // where it goes
		freed int64 // here
	}
	n := b.v.Node(from.Node)
	var replicas, primaries []choice
	for _, vol := range b.volumes {
		role := vol.Placement.Role(n.ID)
		if role == volume.RoleNone || b.taken[vol.ID] {
			continue
		}
		c := choice{vol: vol, claim: b.v.claim(vol)}
		if c.freed = freed(vol, n, c.claim); c.freed < c.claim/2 {
			continue // a clone and its original beside each other: one would take elsewhere what does not go free here
		}
		for i := range b.v.Nodes {
			m := &b.v.Nodes[i]
			s := b.share(m.ID)
			if s == nil || from.full()-s.full() <= spaceGap || !b.mayHave(vol, n.ID, m) || m.lean(vol.Spec) < n.lean(vol.Spec) {
				continue
			}
			after := float64(s.BytesAfter+c.claim) / float64(s.Size)
			if after <= float64(from.BytesAfter-c.freed)/float64(from.Size) && (c.to == nil || s.full() < b.share(c.to.ID).full()) {
				c.to = m
			}
		}
		switch {
		case c.to == nil:
		case role == volume.RoleReplica:
			replicas = append(replicas, c)
		case len(b.v.company(vol, n.ID).volumes) == 1:
			primaries = append(primaries, c)
		}
	}
	larger := func(x, y choice) int { return cmp.Compare(y.freed, x.freed) } // stable: by ID
	slices.SortStableFunc(replicas, larger)
	slices.SortStableFunc(primaries, larger)
	why := func(to *NodeView) string {
		return fmt.Sprintf("%s is %.0f %% full with what is promised there, %s %.0f %%", n.Name, 100*from.full(), to.Name, 100*b.share(to.ID).full())
	}
	if len(replicas) > 0 {
		c := replicas[0]
		b.add(Move{Volume: c.vol, Role: volume.RoleReplica, From: n.ID, To: c.to.ID, Leaves: true, Why: why(c.to), aim: aimSpace})
		return true
	}
	return slices.ContainsFunc(primaries, func(c choice) bool { return b.hand(c.vol, n, c.to, why(c.to), aimSpace) == "" })
}

// primaries evens out how many volumes are written on each node: by handing them to nodes
// of the same zone that have complete copies, those first that take no container along.
func (b *balance) primaries() {
	for len(b.plan.Moves) < mostMoves && b.handOne() {
	}
}

func (b *balance) handOne() bool {
	shares := slices.Clone(b.plan.Shares)
	slices.SortStableFunc(shares, func(x, y Share) int { return cmp.Compare(y.PrimariesAfter, x.PrimariesAfter) })
	for _, from := range shares {
		n := b.v.Node(from.Node)
		for _, to := range slices.Backward(shares) {
			m := b.v.Node(to.Node)
			if from.PrimariesAfter-to.PrimariesAfter < primaryGap {
				break
			}
			if m.Zone != n.Zone {
				continue
			}
			var all []*state.Volume
			for _, vol := range b.volumes {
				if vol.Placement.Primary == n.ID && !b.taken[vol.ID] && b.eases(vol, n, m, from.PrimariesAfter-to.PrimariesAfter) {
					all = append(all, vol)
				}
			}
			slices.SortStableFunc(all, func(x, y *state.Volume) int {
				return cmp.Compare(len(b.v.containers[x.ID]), len(b.v.containers[y.ID]))
			})
			why := fmt.Sprintf("%s has %d primaries, %s %d", n.Name, from.PrimariesAfter, m.Name, to.PrimariesAfter)
			if slices.ContainsFunc(all, func(vol *state.Volume) bool { return b.hand(vol, n, m, why, aimLoad) == "" }) {
				return true
			}
		}
	}
	return false
}

// eases says that handing a volume, with what goes along, from a node to one with so many
// primaries fewer evens them out, and that nothing that it asks for is worse then.
func (b *balance) eases(vol *state.Volume, n, m *NodeView, gap int) bool {
	g := b.v.company(vol, n.ID)
	if gap < 2*len(g.volumes) || !m.Lease || m.Pool.Health == poolDegraded && n.Pool.Health != poolDegraded {
		return false
	}
	return !slices.ContainsFunc(g.volumes, func(other *state.Volume) bool {
		return !b.v.complete(other, m.ID) || m.lean(other.Spec) < n.lean(other.Spec)
	})
}
