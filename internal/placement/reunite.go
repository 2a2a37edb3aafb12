package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// joinAttempt begins the attempts of handoffs that bring the volumes of a container together.
const joinAttempt = "join-"

// Reunion is how far volumes are that a container needs on one node, and that have
// primaries on different ones: it can run nowhere until they are together.
type Reunion struct {
	Volumes    []*state.Volume    // by ID
	Containers []*state.Container // that need one of them, by name
	// Doing says in words what is under way; "" when nothing is, and then Why says what
	// it waits for.
	Doing string
	Why   string
}

// Reunions is what brings the volumes of containers together again that failovers, each
// for its volume alone, gave to different nodes: a copy of each on one node, where one
// lacks, and then the handoffs. Nobody uses what is handed over, so nothing is stopped; a
// volume that somebody uses stays, and the others come to it.
//
// A move that took some of them from where the container is recorded goes on, or is
// undone, by itself; it is not interfered with. Nor are drains, which this never works
// against: what a node that is drained has goes away from it, and nothing comes here.
func Reunions(v *View) ([]state.Command, []Reunion) {
	var cmds []state.Command
	var all []Reunion
	v = v.clone()
	seen := map[*state.Volume]bool{}
	for _, vol := range v.Volumes {
		if seen[vol] || !v.parted(vol) {
			continue
		}
		g := v.kin(vol)
		for _, other := range g.volumes {
			seen[other] = true
		}
		s := v.reunite(g)
		all = append(all, Reunion{Volumes: g.volumes, Containers: g.containers, Doing: s.doing, Why: s.why})
		cmds = append(cmds, s.cmds...)
	}
	return cmds, all
}

// ReunionOf is the one that a container waits for; nil when there is none.
func ReunionOf(all []Reunion, c *state.Container) *Reunion {
	i := slices.IndexFunc(all, func(r Reunion) bool {
		return slices.ContainsFunc(r.Containers, func(o *state.Container) bool { return o.RecordKey() == c.RecordKey() })
	})
	if i < 0 {
		return nil
	}
	return &all[i]
}

// whole says that a container is to run and that all its volumes are there: without one
// of them it cannot, wherever the others are.
func (v *View) whole(c *state.Container) bool {
	return c.Run && !slices.ContainsFunc(c.Volumes, func(cv state.ContainerVolume) bool {
		vol := v.volume(cv.ID)
		return vol == nil || !vol.Live()
	})
}

// parted says that a container needs a volume together with one whose primary is on
// another node.
func (v *View) parted(vol *state.Volume) bool {
	return slices.ContainsFunc(v.containers[vol.ID], func(c *state.Container) bool {
		return len(c.Volumes) > 1 && v.whole(c) && slices.ContainsFunc(c.Volumes, func(cv state.ContainerVolume) bool {
			return v.volume(cv.ID).Placement.Primary != vol.Placement.Primary
		})
	})
}

// kin are all volumes that have to be on one node with this one, wherever they are: those
// of its containers, of the containers that have one of these, and so on.
func (v *View) kin(vol *state.Volume) (g company) {
	g.volumes = []*state.Volume{vol}
	for i := 0; i < len(g.volumes); i++ { // it grows meanwhile
		for _, c := range v.containers[g.volumes[i].ID] {
			if slices.Contains(g.containers, c) || !v.whole(c) {
				continue
			}
			g.containers = append(g.containers, c)
			for _, cv := range c.Volumes {
				if other := v.volume(cv.ID); !slices.Contains(g.volumes, other) {
					g.volumes = append(g.volumes, other)
				}
			}
		}
	}
	slices.SortFunc(g.volumes, func(a, b *state.Volume) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(g.containers, func(a, b *state.Container) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.RecordKey(), b.RecordKey()))
	})
	return g
}

// reunionStep is the next step of a reunion: commands, or why there are none.
type reunionStep struct {
	cmds       []state.Command
	doing, why string
}

func (v *View) reunite(g company) reunionStep {
	waits := func(format string, args ...any) reunionStep {
		return reunionStep{why: fmt.Sprintf(format, args...)}
	}
	for _, vol := range g.volumes {
		if why := v.unsettled(vol, g); why != "" {
			return waits("volume %s: %s", vol.Name, why)
		}
	}
	// Where somebody uses one, and where an operator wants one, all of them go.
	var fixed []volume.NodeID
	var who []string
	fix := func(id volume.NodeID, why string) {
		if !slices.Contains(fixed, id) {
			fixed, who = append(fixed, id), append(who, why)
		}
	}
	for _, vol := range g.volumes {
		if n := v.Node(vol.Placement.Primary); len(n.Copy(vol.ID).Holders) > 0 {
			fix(n.ID, fmt.Sprintf("volume %s is in use by %s on %s", vol.Name, names(n.Copy(vol.ID).Holders), n.Name))
		}
	}
	if len(fixed) == 0 {
		for _, vol := range g.volumes {
			if vol.Migration != nil {
				fix(vol.Migration.To, fmt.Sprintf("volume %s is being migrated to %s", vol.Name, v.name(vol.Migration.To)))
			}
		}
	}
	if len(fixed) > 1 {
		return waits("%s", strings.Join(who, ", and "))
	}
	var best *seat
	var reasons []string
	for i := range v.Nodes {
		n := &v.Nodes[i]
		if len(fixed) == 1 && fixed[0] != n.ID {
			continue
		}
		s := v.seat(g, n)
		switch {
		case s.unfit != "":
			reasons = append(reasons, n.Name+" "+s.unfit)
		case best == nil || s.compare(best) < 0:
			best = s
		}
	}
	if best == nil {
		text := strings.Join(reasons, ", ")
		if len(who) > 0 {
			text = who[0] + "; " + text
		}
		return waits("no node can have all of them now: %s", text)
	}
	return v.gatherAt(g, best)
}

// unsettled says why a volume is not to be touched now; "" when it may be.
func (v *View) unsettled(vol *state.Volume, g company) string {
	n := v.Node(vol.Placement.Primary)
	switch {
	case vol.Phase != state.PhaseActive:
		return fmt.Sprintf("it is %s", vol.Phase)
	case v.noSource(vol) != "":
		return fmt.Sprintf("its primary %s, as far as is known, does not have it", v.name(vol.Placement.Primary))
	case n.applied < vol.Changed:
		return fmt.Sprintf("its primary %s has not looked at it yet", n.Name)
	case slices.ContainsFunc(n.Copy(vol.ID).Holders, func(h volume.Holder) bool { return h.Unknown }):
		return fmt.Sprintf("whether somebody uses it is not known, for the container engine of %s does not answer", n.Name)
	case n.Copy(vol.ID).Problem != "":
		return "its copy on " + n.Name + " has a problem: " + n.Copy(vol.ID).Problem
	case v.refusedLately(vol, joinAttempt), v.refusedLately(vol, backAttempt):
		return vol.LastRefusal.Reason
	}
	if len(v.starting(vol)) == 0 {
		return ""
	}
	// It was taken from where the container is recorded, and another one is there still: that
	// comes after it, or this one goes back. Where neither has come about for long, neither can.
	home := v.Node(vol.Moved.From)
	behind := slices.ContainsFunc(g.volumes, func(other *state.Volume) bool { return other.Placement.Primary == vol.Moved.From })
	if behind && home != nil && home.Lease && (v.Now.Sub(vol.Moved.At).Abs() < startLimit || v.goBack(vol) != nil) {
		return fmt.Sprintf("its move from %s is not over", home.Name)
	}
	return ""
}

// refusedLately says that a handoff of a kind was refused a moment ago.
func (v *View) refusedLately(vol *state.Volume, kind string) bool {
	r := vol.LastRefusal
	return r != nil && strings.HasPrefix(r.Attempt, kind) && v.Now.Sub(r.At).Abs() < drainRetry
}

// seat is a node as one that all volumes of a company could be on.
type seat struct {
	n     *NodeView
	unfit string // why it is out of the question, after its name; "": it is not

	lacks   []*state.Volume // that have no copy there yet
	seeds   []*state.Volume // whose copy there is not complete
	bytes   int64           // to be copied
	refused int             // of the seeds that are refused, as by a node that has yet to hear of them
	barred  bool            // a container could not run there
	strays  int             // that want their primary in another zone
	raw     bool            // an image is not there yet
	chosen  int             // that an operator has migrated there
	has     int             // that have their primary there
	lean    int
}

func (v *View) seat(g company, n *NodeView) *seat {
	s := &seat{n: n, strays: v.straysFrom(g.volumes, n.ID), lean: v.leanOf(g.volumes, n.ID)}
	claim := int64(0)
	for _, vol := range g.volumes {
		last := vol.LastMigration
		switch {
		case vol.Placement.Primary == n.ID:
			s.has++
			s.chosen += yes(last != nil && last.Reason == "" && last.To == n.ID)
		case vol.Placement.Role(n.ID) == volume.RoleNone:
			s.lacks = append(s.lacks, vol)
			s.bytes += v.used(vol)
			claim += v.claim(vol)
		case v.complete(vol, n.ID):
		default:
			s.seeds = append(s.seeds, vol)
			s.refused += yes(v.link(vol, n.ID).State == volume.LinkRefused)
		}
	}
	switch why := n.unfit(0); {
	case why != fit && why != full: // what it has it keeps, however full it is
		s.unfit = why.explain(n, 0, v.Now)
	case !n.Lease:
		s.unfit = "may not write: it has no lease"
	case len(s.lacks) > 0 && n.unfit(claim) != fit:
		s.unfit = n.unfit(claim).explain(n, claim, v.Now)
	}
	for _, c := range g.containers {
		f := n.followed(c)
		s.barred = s.barred || barred(c, n)
		s.raw = s.raw || c.Node != n.ID && (f == nil || f.LacksImage)
	}
	return s
}

// compare is below 0 for the better seat: one where the containers can run; then as little
// as possible is copied, since they wait for that, and what is being copied already comes to
// its end; then what the volumes want; and then as few as possible change their node.
func (s *seat) compare(t *seat) int {
	return cmp.Or(
		cmp.Compare(yes(s.barred), yes(t.barred)),
		cmp.Compare(s.bytes, t.bytes), cmp.Compare(len(s.lacks), len(t.lacks)),
		cmp.Compare(s.refused, t.refused), cmp.Compare(len(s.seeds), len(t.seeds)),
		cmp.Compare(s.strays, t.strays),
		cmp.Compare(t.chosen, s.chosen),
		cmp.Compare(yes(s.raw), yes(t.raw)),
		cmp.Compare(t.has, s.has),
		cmp.Compare(t.lean, s.lean),
		cmp.Compare(s.n.Primaries, t.n.Primaries), cmp.Compare(s.n.ID, t.n.ID))
}

// gatherAt is the next step on the way of all volumes of a company to one node: what lacks
// there is copied, and when all is there everything is handed over at once.
func (v *View) gatherAt(g company, s *seat) (out reunionStep) {
	add := func(cmd state.Command, vol *state.Volume, what string) {
		var who []string
		for _, c := range g.containers {
			who = append(who, c.Name)
		}
		text := fmt.Sprintf("volume %s, whose primary is on %s, %s %s: the volumes of container %s came apart, and it can run where all of them are",
			vol.Name, v.name(vol.Placement.Primary), what, s.n.Name, strings.Join(who, ", "))
		out.cmds = append(out.cmds, cmd)
		if r := vol.LastRefusal; r == nil || !strings.HasPrefix(r.Attempt, joinAttempt) { // or it was told before
			out.cmds = append(out.cmds, state.Tell{Volume: vol.ID, Kind: state.VolumeJoins, Node: s.n.ID, Message: text})
		}
	}
	for _, vol := range s.lacks {
		want := cloned(vol.Placement)
		if s.n.Zone == v.zoneOf(want.Primary) {
			want.Local = append(want.Local, s.n.ID)
		} else {
			want.Remote = append(want.Remote, s.n.ID)
		}
		if v.busy(vol, want) {
			out.why = fmt.Sprintf("volume %s gets a copy on %s when other first copies are complete", vol.Name, s.n.Name)
			continue
		}
		add(setReplicas(vol, want), vol, "gets a copy on")
		v.promise(vol, want)
		out.doing = fmt.Sprintf("first copy of volume %s to %s", vol.Name, s.n.Name)
	}
	for _, vol := range s.seeds {
		switch l := v.link(vol, s.n.ID); {
		case l.State == volume.LinkRefused:
			out.why = fmt.Sprintf("the copy of volume %s on %s is refused: %s", vol.Name, s.n.Name, l.Error)
		default:
			out.doing = fmt.Sprintf("first copy of volume %s to %s%s", vol.Name, s.n.Name, progress(l))
		}
	}
	if len(s.lacks)+len(s.seeds) > 0 {
		return out
	}
	for _, vol := range g.volumes {
		from := vol.Placement.Primary
		if from == s.n.ID {
			continue
		}
		if m := vol.Migration; m != nil { // that brings it, or is over first
			if m.To != s.n.ID {
				out.why = fmt.Sprintf("volume %s is being migrated to %s, and the others cannot leave %s", vol.Name, v.name(m.To), s.n.Name)
			}
			continue
		}
		// A handoff without its containers would have them stay where they are recorded.
		recorded := slices.ContainsFunc(g.containers, func(c *state.Container) bool { return c.Node == from && c.Uses(vol.ID) })
		add(state.BeginHandoff{ID: vol.ID, Epoch: vol.Epoch, To: s.n.ID, Attempt: fmt.Sprintf("%s%d", joinAttempt, vol.Changed), Follow: recorded}, vol, "goes to")
	}
	if out.why == "" || len(out.cmds) > 0 {
		out.doing = fmt.Sprintf("they come together on %s", s.n.Name)
	}
	return out
}
