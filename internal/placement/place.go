package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/flocker-io/flocker/internal/volume"
)

// Place chooses the nodes of a new volume: prefer as its primary if that node may
// take it and the spec does not name a better one, else the best one; spec.Replicas other nodes of the primary's zone and
// spec.Remote nodes of other zones, spread over as many zones as possible.
//
// Where nodes are lacking the volume is placed on those there are, and the
// Shortfall says what is missing and why; Repair adds the rest when nodes appear.
// With spec.Strict it is refused instead. It is also refused, by a *volume.Error,
// when no node may be its primary.
//
// With among, its primary is one of these nodes and no other.
//
// A local replica is never made up for in another zone: that would send every
// write over a link its user did not ask to use, and to a place where the data may
// not be allowed. The Shortfall then says that remote replicas would be possible.
func Place(v *View, spec volume.Spec, prefer volume.NodeID, among ...volume.NodeID) (volume.Placement, Shortfall, error) {
	claim := spec.Size
	if claim == 0 {
		claim = growthReserve
	}
	c := newChooser(v, spec, claim, mix(v.salt))
	primary := c.primary(spec, prefer, among)
	if primary < 0 {
		return volume.Placement{}, Shortfall{}, c.nowhere(among)
	}
	p := volume.Placement{Primary: v.Nodes[primary].ID}
	c.fill(&p, spec.Replicas, spec.Remote)
	short := c.shortfall(p, spec.Replicas-len(p.Local), spec.Remote-len(p.Remote))
	if spec.Strict && !short.IsZero() {
		err := volume.Errorf(c.refusal(), "the volume must not start degraded (strict): %s", short)
		return volume.Placement{}, short, err.WithHint("add nodes or space, ask for fewer replicas, or leave strict out: replicas are then added when nodes appear")
	}
	return p, short, nil
}

// chooser picks nodes for the copies of one volume.
type chooser struct {
	v     *View
	claim int64     // bytes for one copy
	key   uint64    // breaks ties between equal nodes
	unfit []unfit   // by node: why it may not take a copy
	norms           // over the fit nodes
	score []float64 // by node: as a replica; only of fit nodes
	lean  []int     // by node: see NodeView.lean
}

func newChooser(v *View, spec volume.Spec, claim int64, key uint64) *chooser {
	c := &chooser{v: v, claim: claim, key: key, unfit: make([]unfit, len(v.Nodes)), score: make([]float64, len(v.Nodes)), lean: make([]int, len(v.Nodes))}
	for i := range v.Nodes {
		c.lean[i] = v.Nodes[i].lean(spec)
		c.unfit[i] = v.Nodes[i].unfit(claim)
		if c.unfit[i] == fit {
			c.norms.add(&v.Nodes[i])
		}
	}
	for i := range v.Nodes {
		if c.unfit[i] == fit {
			c.score[i] = v.Nodes[i].score(volume.RoleReplica, claim, key, c.norms)
		}
	}
	return c
}

// primary is the index of the node for the writable copy; -1 when none is fit. Where a
// node of the volume's zone is fit it is one of these. The wish of the caller, where a
// container waits, goes before all else, unless the volume would rather be on another
// node. Then a node in whose zone more of the replicas find room goes before one that is
// preferred, that before the caller's, and that before one with a better score.
func (c *chooser) primary(spec volume.Spec, prefer volume.NodeID, among []volume.NodeID) int {
	can := func(i int) bool {
		return c.unfit[i] == fit && (len(among) == 0 || slices.Contains(among, c.v.Nodes[i].ID))
	}
	home := slices.ContainsFunc(c.v.zones[spec.Zone], can)
	may := func(i int) bool { return can(i) && (!home || !c.v.Nodes[i].strays(spec)) }
	caller, ok := c.v.index[prefer]
	if !ok || !may(caller) {
		caller = -1
	}
	if caller >= 0 {
		other := false
		for i := range c.unfit {
			other = other || may(i) && c.lean[i] > c.lean[caller]
		}
		if !other {
			return caller
		}
	}
	all, in := 0, make(map[volume.Zone]int, len(c.v.zones))
	for i, reason := range c.unfit {
		if reason == fit {
			all++
			in[c.v.Nodes[i].Zone]++
		}
	}
	best, bestReach, bestScore := -1, 0, 0.0
	for i := range c.unfit {
		if !may(i) {
			continue
		}
		here := in[c.v.Nodes[i].Zone]
		reach := min(spec.Replicas, here-1) + min(spec.Remote, all-here)
		score := c.v.Nodes[i].score(volume.RolePrimary, c.claim, c.key, c.norms)
		if best < 0 || cmp.Or(cmp.Compare(reach, bestReach), cmp.Compare(c.lean[i], c.lean[best]),
			cmp.Compare(yes(i == caller), yes(best == caller)), cmp.Compare(score, bestScore)) > 0 {
			best, bestReach, bestScore = i, reach, score
		}
	}
	return best
}

// fill adds replicas to p until it has so many local and remote ones, or no node
// is left.
func (c *chooser) fill(p *volume.Placement, local, remote int) {
	v, zone := c.v, c.v.zoneOf(p.Primary)
	taken := p.Nodes()
	best := func(among []int) int {
		best := -1
		for _, i := range among {
			if c.unfit[i] == fit && (best < 0 || c.rather(i, best)) && !slices.Contains(taken, v.Nodes[i].ID) {
				best = i
			}
		}
		return best
	}
	for len(p.Local) < local {
		i := best(v.zones[zone])
		if i < 0 {
			break
		}
		p.Local = append(p.Local, v.Nodes[i].ID)
		taken = append(taken, v.Nodes[i].ID)
	}

	// Remote ones: the best node of the zones that have the fewest so far.
	perZone := v.perZone(*p)
	for len(p.Remote) < remote {
		next := -1
		for z, among := range v.zones {
			if z == zone {
				continue
			}
			if i := best(among); i >= 0 && (next < 0 || c.before(i, next, perZone)) {
				next = i
			}
		}
		if next < 0 {
			break
		}
		p.Remote = append(p.Remote, v.Nodes[next].ID)
		taken = append(taken, v.Nodes[next].ID)
		perZone[v.Nodes[next].Zone]++
	}
}

// rather says that node i is a better place for a replica than node j, in the same zone
// or where zones do not matter.
func (c *chooser) rather(i, j int) bool {
	return cmp.Or(cmp.Compare(c.lean[i], c.lean[j]), cmp.Compare(c.score[i], c.score[j])) > 0
}

// before says that node i is a better next remote replica than node j of another
// zone. It is a total order, so that the order of a map never matters.
func (c *chooser) before(i, j int, perZone map[volume.Zone]int) bool {
	a, b := perZone[c.v.Nodes[i].Zone], perZone[c.v.Nodes[j].Zone]
	switch {
	case a != b:
		return a < b
	case c.lean[i] != c.lean[j] || c.score[i] != c.score[j]:
		return c.rather(i, j)
	}
	return i < j
}

// nowhere is the refusal when no node, of these if any are given, may be the primary.
func (c *chooser) nowhere(among []volume.NodeID) *volume.Error {
	var all []int
	for i := range c.v.Nodes {
		if len(among) == 0 || slices.Contains(among, c.v.Nodes[i].ID) {
			all = append(all, i)
		}
	}
	msg := "no node can hold the volume"
	if reasons := c.reasons(all, nil); reasons != "" {
		msg += ": " + reasons
	}
	err := volume.Errorf(c.refusal(), "%s", msg)
	if err.Code == volume.CodeUnavailable {
		return err.WithHint("try again when the nodes have reported; flockctl node list shows them")
	}
	return err.WithHint("add a node with a pool, or free space; flockctl node list shows what each has")
}

// refusal is CodeUnavailable when a node that is only unheard, or cannot read its
// pool at the moment, could change the answer, so that trying again makes sense.
func (c *chooser) refusal() volume.Code {
	if slices.ContainsFunc(c.unfit, func(u unfit) bool { return u == unheard || u == silent || u == blind || u == sick }) {
		return volume.CodeUnavailable
	}
	return volume.CodeRefused
}

// Shortfall is what a placement lacks. The zero value is "nothing".
type Shortfall struct {
	Local  int // missing replicas in the primary's zone
	Remote int // missing replicas in other zones
	// WhyLocal and WhyRemote say in words why no node could be found.
	WhyLocal  string
	WhyRemote string
}

// IsZero says that nothing is missing.
func (s Shortfall) IsZero() bool { return s.Local == 0 && s.Remote == 0 }

// String is a sentence without its full stop; "" when nothing is missing.
func (s Shortfall) String() string {
	var parts []string
	add := func(n int, kind, why string) {
		if n == 0 {
			return
		}
		noun := "replica is"
		if n > 1 {
			noun = "replicas are"
		}
		part := fmt.Sprintf("%d %s %s missing", n, kind, noun)
		if why != "" {
			part += " (" + why + ")"
		}
		parts = append(parts, part)
	}
	add(s.Local, "local", s.WhyLocal)
	add(s.Remote, "remote", s.WhyRemote)
	return strings.Join(parts, ", ")
}

// shortfall explains why so many local and remote replicas are missing from p.
func (c *chooser) shortfall(p volume.Placement, local, remote int) Shortfall {
	s := Shortfall{Local: max(local, 0), Remote: max(remote, 0)}
	if s.IsZero() {
		return s
	}
	zone := c.v.zoneOf(p.Primary)
	var here, elsewhere []int
	var roomHere, roomElsewhere []string // names of nodes that could still take a copy
	for i := range c.v.Nodes {
		n := &c.v.Nodes[i]
		room := c.unfit[i] == fit && p.Role(n.ID) == volume.RoleNone
		switch {
		case n.Zone == zone:
			here = append(here, i)
			if room {
				roomHere = append(roomHere, n.Name)
			}
		default:
			elsewhere = append(elsewhere, i)
			if room {
				roomElsewhere = append(roomElsewhere, n.Name)
			}
		}
	}
	if s.Local > 0 {
		s.WhyLocal = cmp.Or(soon(roomHere), c.reasons(here, p.Nodes()), fmt.Sprintf("zone %s has no other node", zone))
		if len(roomHere) == 0 && len(roomElsewhere) > 0 {
			s.WhyLocal += fmt.Sprintf("; other zones have room: ask for remote=%d", len(p.Remote)+min(s.Local, len(roomElsewhere)))
		}
	}
	if s.Remote > 0 {
		s.WhyRemote = cmp.Or(soon(roomElsewhere), c.reasons(elsewhere, p.Nodes()), fmt.Sprintf("there is no other node outside zone %s", zone))
	}
	return s
}

// soon is the reason when nothing but time is lacking: Repair has not come to it.
func soon(room []string) string {
	switch len(room) {
	case 0:
		return ""
	case 1:
		return room[0] + " has room and is next"
	}
	return fmt.Sprintf("%s and %d more have room and are next", room[0], len(room)-1)
}

// reasons lists why the nodes given may not take a copy, leaving out those that
// have one. It names the first few only.
func (c *chooser) reasons(nodes []int, taken []volume.NodeID) string {
	var out []string
	more := 0
	for _, i := range nodes {
		n := &c.v.Nodes[i]
		switch {
		case c.unfit[i] == fit || slices.Contains(taken, n.ID):
		case len(out) == namedReasons:
			more++
		default:
			out = append(out, n.Name+" "+c.unfit[i].explain(n, c.claim, c.v.Now))
		}
	}
	if more > 0 {
		out = append(out, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(out, ", ")
}

const namedReasons = 4
