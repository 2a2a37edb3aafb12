package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

const (
	// seedsPerNode bounds the first copies that one node receives, and those that it
	// sends, before Repair asks for more of either. A volume finished early is
	// protected early, so a few at a time beats all at once.
	seedsPerNode = 4
	// surplusGrace is how long a volume must have had a copy too many, without a break
	// and without another change, before one goes. Whoever wants the volume elsewhere
	// first puts a copy there and then asks for the move: that one must not go between.
	surplusGrace = 2 * time.Minute
)

// Memory is what a leader remembers from one look to the next, because a single look
// cannot show how long something has been so. A new leader begins with the zero value.
// Values are never changed in place.
type Memory struct {
	unheard map[volume.NodeID]time.Time // members never heard of: since when we listen
	idle    map[volume.ID]idea          // changes that nothing hurries
	// extra is the replica that was seeded last although its volume had enough: somebody
	// has waited for it there and will come for it, maybe much later.
	extra map[volume.ID]volume.NodeID
	even  evening
}

// idea is a change that has been good for a volume since then. Another one, or another
// change of the volume, begins anew: this is what keeps replicas from going to and fro.
type idea struct {
	changed uint64
	drop    bool
	since   time.Time
}

// listen is v with the silence of nodes that were never heard of counted from the
// leader's first look, and the memory of that.
func (v *View) listen(m Memory) (*View, Memory) {
	v = v.clone()
	next := Memory{unheard: map[volume.NodeID]time.Time{}, idle: map[volume.ID]idea{}, extra: map[volume.ID]volume.NodeID{}}
	for i := range v.Nodes {
		n := &v.Nodes[i]
		if !n.Reported.IsZero() {
			continue
		}
		since, ok := m.unheard[n.ID]
		if !ok {
			since = v.Now
		}
		next.unheard[n.ID], n.silent = since, since
	}
	return v, next
}

// Repair is what should change about replicas: at most one change of a volume. What
// protects data comes first, the least protected volume first: replicas that are
// missing or lost get another node. The rest waits until it has been right for a
// while: a volume with all its copies complete gets one more where a copy is of the
// wrong kind, or shares a zone while another would do; and one copy too many goes when
// those that stay are as many as the spec asks for, complete and alive.
//
// It never moves a primary. A volume whose primary is not known to hold it is left
// alone: there is nothing to copy from, and nobody who knows what replicas hold.
func Repair(v *View, m Memory) ([]state.Command, Memory) {
	type gap struct {
		vol     *state.Volume
		want    volume.Placement // what it has, sorted anew
		missing Shortfall
		present int // replicas it has
	}
	v, next := v.listen(m)
	var cmds []state.Command
	var gaps []gap
	whole := make([]*state.Volume, 0, len(v.Volumes))
	for _, vol := range v.Volumes {
		if vol.Phase != state.PhaseActive || v.Node(vol.Placement.Primary) == nil {
			continue
		}
		want := v.resort(vol.Placement)
		if s, present := v.missing(vol, want); s != (Shortfall{}) {
			gaps = append(gaps, gap{vol, want, s, present})
		} else if !same(want, vol.Placement) {
			cmds = append(cmds, setReplicas(vol, want))
		} else if !v.leaves(vol) {
			whole = append(whole, vol)
		}
	}
	slices.SortStableFunc(gaps, func(a, b gap) int { return cmp.Compare(a.present, b.present) })

	for _, g := range gaps {
		if p := v.add(g.vol, g.want, g.missing); !same(p, g.vol.Placement) {
			cmds = append(cmds, setReplicas(g.vol, p))
		}
	}
	// One look adds first and drops later, so that a full batch never delays a copy.
	var drops []state.Command
	v.extra = next.extra
	for _, vol := range whole {
		if id := v.extraOf(vol, m.extra[vol.ID]); id != "" {
			next.extra[vol.ID] = id
		}
		p, drop, patience := v.improve(vol)
		if patience == 0 {
			continue
		}
		i := idea{changed: vol.Changed, drop: drop, since: v.Now}
		if was, ok := m.idle[vol.ID]; ok && was.changed == i.changed && was.drop == i.drop {
			i.since = was.since
		}
		next.idle[vol.ID] = i
		switch {
		case v.Now.Sub(i.since) < patience:
		case drop:
			drops = append(drops, setReplicas(vol, p))
		case v.busy(vol, p):
		default:
			v.promise(vol, p)
			cmds = append(cmds, setReplicas(vol, p))
		}
	}
	return append(cmds, drops...), next
}

// extraOf is the replica beyond what the spec asks for that was being seeded last; was
// is what it was at the last look, "" when there is none.
func (v *View) extraOf(vol *state.Volume, was volume.NodeID) volume.NodeID {
	p := vol.Placement
	if len(p.Local)+len(p.Remote) <= vol.Spec.Replicas+vol.Spec.Remote {
		return ""
	}
	for _, id := range p.Replicas() {
		if v.alive(id) && v.link(vol, id).State == volume.LinkSeeding {
			return id
		}
	}
	if p.Role(was) != volume.RoleReplica {
		return ""
	}
	return was
}

// busy says that a node has its fill of first copies that p would add to.
func (v *View) busy(vol *state.Volume, p volume.Placement) bool {
	for id := range nodesOf(p) {
		if vol.Placement.Role(id) == volume.RoleNone && v.Node(id).Seeding >= seedsPerNode {
			return true
		}
	}
	return v.Node(p.Primary).Feeding >= seedsPerNode
}

// add gives want what is missing, as far as nodes and limits allow, and counts it in
// v.
func (v *View) add(vol *state.Volume, want volume.Placement, missing Shortfall) volume.Placement {
	if v.noSource(vol) != "" || v.Node(want.Primary).Feeding >= seedsPerNode {
		return want
	}
	c := newChooser(v, vol.Spec, v.claim(vol), keyOf(vol.ID))
	for i := range v.Nodes {
		if v.Nodes[i].Seeding >= seedsPerNode {
			c.unfit[i] = busy
		}
	}
	want = cloned(want)
	c.fill(&want, len(want.Local)+missing.Local, len(want.Remote)+missing.Remote)
	v.promise(vol, want)
	return want
}

// promise counts the replicas of p that the volume does not have yet.
func (v *View) promise(vol *state.Volume, p volume.Placement) {
	claim := v.claim(vol)
	for id := range nodesOf(p) {
		if vol.Placement.Role(id) != volume.RoleNone {
			continue
		}
		n := v.Node(id)
		n.Promised += claim
		n.Replicas++
		n.Seeding++
		v.Node(p.Primary).Feeding++
	}
}

// improve is the placement that would be better for a volume that lacks no copy, and
// how long that has to have been so before it is done; 0 when all is well. Drop says
// that it takes a replica away, else it adds one.
func (v *View) improve(vol *state.Volume) (better volume.Placement, drop bool, patience time.Duration) {
	p, spec := vol.Placement, vol.Spec
	if len(p.Local) == spec.Replicas && len(p.Remote) == spec.Remote && !v.crowded(p) {
		return p, false, 0 // as nearly all are
	}
	if v.noSource(vol) != "" {
		return p, false, 0
	}
	if id, patience := v.spare(vol); id != "" {
		it := func(n volume.NodeID) bool { return n == id }
		better = cloned(p)
		better.Local, better.Remote = slices.DeleteFunc(better.Local, it), slices.DeleteFunc(better.Remote, it)
		return better, true, patience
	}
	// One more only when all it has are there and none of them is one too many.
	alive := 0
	for _, id := range p.Replicas() {
		switch {
		case v.lost(id):
		case !v.complete(vol, id):
			return p, false, 0
		default:
			alive++
		}
	}
	if alive != spec.Replicas+spec.Remote {
		return p, false, 0
	}
	c := newChooser(v, vol.Spec, v.claim(vol), keyOf(vol.ID))
	better = cloned(p)
	switch local, remote := v.present(p); {
	case local < spec.Replicas:
		c.fill(&better, len(p.Local)+1, len(p.Remote))
	case remote < spec.Remote:
		c.fill(&better, len(p.Local), len(p.Remote)+1)
	case v.crowded(p):
		better = v.spread(c, p)
	}
	if same(better, p) {
		return p, false, 0
	}
	// Nothing is lacking: as patient as with a replica that is lost.
	return better, false, v.Settings.ReplaceAfter()
}

// cloned shares no list with p.
func cloned(p volume.Placement) volume.Placement {
	p.Local, p.Remote = slices.Clone(p.Local), slices.Clone(p.Remote)
	return p
}

// spread is p with one remote replica more, in a zone that has at least two fewer than
// another: moved there, it leaves neither worse off than the other was.
func (v *View) spread(c *chooser, p volume.Placement) volume.Placement {
	q := cloned(p)
	if c.fill(&q, len(p.Local), len(p.Remote)+1); len(q.Remote) == len(p.Remote) {
		return p
	}
	perZone := v.perZone(p)
	added := v.Node(q.Remote[len(q.Remote)-1])
	if perZone[added.Zone]+2 > fullest(perZone) || added.usage(c.claim) >= roomyUsage {
		return p
	}
	return q
}

func fullest(perZone map[volume.Zone]int) int {
	most := 0
	for _, n := range perZone {
		most = max(most, n)
	}
	return most
}

// roomyUsage is the fill level up to which a node takes a copy that is moved to it for
// the sake of order only: some way below what one that is needed may fill.
const roomyUsage = maxUsage - 0.05

// perZone counts the remote replicas that are not lost.
func (v *View) perZone(p volume.Placement) map[volume.Zone]int {
	out := make(map[volume.Zone]int, len(p.Remote))
	for _, id := range p.Remote {
		if !v.lost(id) {
			out[v.zoneOf(id)]++
		}
	}
	return out
}

// crowded says that remote replicas share a zone although there is another one that
// has at least two fewer.
func (v *View) crowded(p volume.Placement) bool {
	if len(p.Remote) < 2 || len(v.zones) < 3 {
		return false
	}
	perZone := v.perZone(p)
	most, home := fullest(perZone), v.zoneOf(p.Primary)
	for z := range v.zones {
		if z != home && perZone[z]+2 <= most {
			return true
		}
	}
	return false
}

// spare is the replica that the volume can do without, and for how long that has to
// have been so; "" when there is none. The primary must be heard of. Without it there are at least as many complete
// and live replicas as the spec asks for, and its own kind lacks none. A replica that
// is being seeded is not spare: somebody may wait for it. Nor is a complete one of a volume
// that a container needs together with another one: they may meet there; nor is the one that
// a container goes back to which does not come up.
//
// The lost go first, then those that make no progress, those that share a zone,
// those that are behind, and then the one whose node the volume would rather not be on, or
// else would be the worst choice, but the one that was seeded last after all others.
func (v *View) spare(vol *state.Volume) (volume.NodeID, time.Duration) {
	p, primary := vol.Placement, v.Node(vol.Placement.Primary)
	if len(p.Local)+len(p.Remote) <= vol.Spec.Replicas+vol.Spec.Remote {
		return "", 0
	}
	// The primary's copy may be all that stays: it is whole, by a look since the last change, as
	// of who is the primary, and nobody takes it for lost.
	if c := primary.Copy(vol.ID); c.Problem != "" || !seeded(c) || !primary.Lease || primary.applied < vol.Changed {
		return "", 0
	}
	home := volume.NodeID("") // where containers ran that have yet to come up where they went
	if len(v.starting(vol)) > 0 {
		home = vol.Moved.From
	}
	type candidate struct {
		id       volume.NodeID
		class    int // the highest goes first
		crowd    int
		behind   bool
		lean     int
		score    float64
		patience time.Duration
	}
	c := newChooser(v, vol.Spec, 0, keyOf(vol.ID))
	perZone := v.perZone(p)
	var local, remote int // complete ones
	for id := range nodesOf(p) {
		if id != p.Primary && v.complete(vol, id) {
			if slices.Contains(p.Local, id) {
				local++
			} else {
				remote++
			}
		}
	}
	var all []candidate
	for _, id := range p.Replicas() {
		x := candidate{id: id, patience: surplusGrace, score: -1}
		l, r, isLocal := local, remote, slices.Contains(p.Local, id)
		link := v.link(vol, id)
		switch {
		case v.lost(id):
			x.class = 2
		case !v.complete(vol, id):
			if !v.alive(id) || link.State == volume.LinkSeeding {
				continue
			}
			x.class, x.patience = 1, max(surplusGrace, v.Settings.ReplaceAfter())
		case isLocal:
			l--
		default:
			r--
		}
		enough := l+r >= vol.Spec.Replicas+vol.Spec.Remote
		if x.class == 0 && (v.parted(vol) || id == home) || !enough || isLocal && l < vol.Spec.Replicas || !isLocal && r < vol.Spec.Remote {
			continue
		}
		if !isLocal {
			x.crowd = max(0, perZone[v.zoneOf(id)]-1)
		}
		x.behind = link.State == volume.LinkLagging
		if i, ok := v.index[id]; ok && c.unfit[i] == fit {
			x.score = c.score[i]
		}
		if n := v.Node(id); n != nil {
			x.lean = n.lean(vol.Spec)
		}
		all = append(all, x)
	}
	if len(all) == 0 {
		return "", 0
	}
	first := slices.MinFunc(all, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.class, a.class), cmp.Compare(b.crowd, a.crowd),
			cmp.Compare(yes(b.behind), yes(a.behind)), cmp.Compare(yes(a.id == v.extra[vol.ID]), yes(b.id == v.extra[vol.ID])),
			cmp.Compare(a.lean, b.lean), cmp.Compare(a.score, b.score), cmp.Compare(a.id, b.id))
	})
	return first.id, first.patience
}

func yes(b bool) int {
	if b {
		return 1
	}
	return 0
}

// lost says that a node has not been heard of for so long that its replicas are
// counted out, or is no member any more.
func (v *View) lost(id volume.NodeID) bool {
	n := v.Node(id)
	return n == nil || v.silence(n) >= v.Settings.ReplaceAfter()
}

// silence is how long nothing was heard of a node; 0 when it is alive, or when nobody
// knows how long this leader has listened for it.
func (v *View) silence(n *NodeView) time.Duration {
	since := cmp.Or(n.Reported, n.silent)
	if n.Alive || since.IsZero() {
		return 0
	}
	return v.Now.Sub(since)
}

func (v *View) alive(id volume.NodeID) bool {
	n := v.Node(id)
	return n != nil && n.Alive
}

// link is what the primary of a volume says about one replica; the zero value when it
// says nothing or is not heard of.
func (v *View) link(vol *state.Volume, replica volume.NodeID) volume.LinkStatus {
	if n := v.Node(vol.Placement.Primary); n != nil {
		if c := n.Copy(vol.ID); c != nil {
			for _, l := range c.Links {
				if l.Replica == replica {
					return l
				}
			}
		}
	}
	return volume.LinkStatus{}
}

// complete says that a replica lives and has a whole copy: the primary, heard of just
// now, has its acknowledgement and reaches it, and the replica itself says so, too.
func (v *View) complete(vol *state.Volume, replica volume.NodeID) bool {
	n := v.Node(replica)
	if n == nil || !n.Alive || !seeded(n.Copy(vol.ID)) {
		return false
	}
	l := v.link(vol, replica)
	switch l.State {
	case volume.LinkInSync, volume.LinkSending, volume.LinkLagging:
		return !l.Acked.IsZero()
	}
	return false
}

// resort puts every replica into the list that its zone says. One whose node is no
// member any more is left out: nobody can ask it for anything.
func (v *View) resort(p volume.Placement) volume.Placement {
	zone := v.zoneOf(p.Primary)
	if v.inZone(p.Local, zone, true) && v.inZone(p.Remote, zone, false) {
		return p // as nearly all are
	}
	out := volume.Placement{Primary: p.Primary}
	for _, id := range p.Replicas() {
		switch n := v.Node(id); {
		case n == nil:
		case n.Zone == zone:
			out.Local = append(out.Local, id)
		default:
			out.Remote = append(out.Remote, id)
		}
	}
	return out
}

// inZone says that every node of ids is a member and in the zone, or that each is a
// member and none is.
func (v *View) inZone(ids []volume.NodeID, zone volume.Zone, in bool) bool {
	for _, id := range ids {
		if n := v.Node(id); n == nil || (n.Zone == zone) != in {
			return false
		}
	}
	return true
}

// present counts the replicas of p that are not lost.
func (v *View) present(p volume.Placement) (local, remote int) {
	for _, id := range p.Local {
		if !v.lost(id) {
			local++
		}
	}
	for _, id := range p.Remote {
		if !v.lost(id) {
			remote++
		}
	}
	return local, remote
}

// missing counts the replicas that p lacks for the volume's spec, and those that it
// has. A replica too many of the other kind counts as one that is there: after a move
// to another zone the copies are all present, only in the wrong places, and improve
// puts that right one by one.
func (v *View) missing(vol *state.Volume, p volume.Placement) (s Shortfall, present int) {
	haveLocal, haveRemote := v.present(p)
	local := vol.Spec.Replicas - haveLocal
	remote := vol.Spec.Remote - haveRemote
	spare := max(-local, 0) + max(-remote, 0)
	s = Shortfall{Local: max(local, 0), Remote: max(remote, 0)}
	take := min(s.Local, spare)
	s.Local -= take
	s.Remote -= min(s.Remote, spare-take)
	return s, haveLocal + haveRemote
}

// Shortfall says which of its replicas a volume lacks, and why Repair has not added
// them; the zero value when it lacks none. A replica that is still being seeded
// is not lacking, nor is one that has been silent for a short time: Silent tells of
// those.
func (v *View) Shortfall(vol *state.Volume) Shortfall {
	p := v.resort(vol.Placement)
	s, _ := v.missing(vol, p)
	if s.IsZero() {
		return s
	}
	c := newChooser(v, vol.Spec, v.claim(vol), keyOf(vol.ID))
	s = c.shortfall(p, s.Local, s.Remote)
	if why := v.noSource(vol); why != "" {
		s.WhyLocal, s.WhyRemote = why, why
	}
	return s
}

// Silent says what becomes of a volume's replicas that are not heard of; "" when all
// are.
func (v *View) Silent(vol *state.Volume) string {
	var out []string
	for _, id := range vol.Placement.Replicas() {
		if n := v.Node(id); n != nil && v.silence(n) > 0 {
			out = append(out, Silence(n.Name, v.silence(n), v.Settings.ReplaceAfter()))
		}
	}
	return strings.Join(out, "; ")
}

// Silence says in words what becomes of a replica whose node has not been heard of for
// so long, with the cluster's patience with it.
func Silence(node string, unheard, patience time.Duration) string {
	unit := time.Second
	for _, u := range []time.Duration{time.Minute, time.Hour} {
		if unheard >= u {
			unit = u
		}
	}
	lost := fmt.Sprintf("replica %s is lost (unheard for %s)", node, volume.FormatPeriod(max(unit, unheard.Truncate(unit))))
	if unheard < patience {
		return lost + "; it is replaced after " + volume.FormatPeriod(patience)
	}
	return lost + " and counts as missing"
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
