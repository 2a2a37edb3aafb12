package placement

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// Migration is how far an operator's migration of a volume is.
type Migration struct {
	Volume *state.Volume
	// Doing says in words what is under way; "" when nothing is, and then Why says what
	// it waits for.
	Doing string
	Why   string
	// Step is the same for programs, and Copying is how much of what is being sent for it has been.
	Step    volume.MoveStep
	Copying Copying
	// Containers go along, and With are the other volumes that these need.
	Containers []string
	With       []string
	// Services are those of a Swarm whose tasks go along.
	Services []string
}

// Copying is how many bytes were sent of how many, which is an estimate, and how fast they have gone of
// late, in bytes a second. The zero value: nothing is being sent, or it is not known.
type Copying struct{ Sent, Total, Rate int64 }

// copyingOn is that of a link.
func copyingOn(l volume.LinkStatus) Copying {
	if l.Stream == "" || l.TotalBytes <= 0 {
		return Copying{}
	}
	return Copying{Sent: l.SentBytes, Total: max(l.TotalBytes, l.SentBytes), Rate: l.Rate}
}

// Left is how many bytes are still to be sent.
func (c Copying) Left() int64 { return c.Total - c.Sent }

// and is that of two links side by side.
func (c Copying) and(o Copying) Copying {
	return Copying{Sent: c.Sent + o.Sent, Total: c.Total + o.Total, Rate: c.Rate + o.Rate}
}

// migrationStep is the next step of a migration: commands, or why there are none.
type migrationStep struct {
	cmds []state.Command
	Migration
}

// Migrations is what the migrations that operators have asked for need next. Each takes
// the containers that run on the volume and follow it, and all volumes of these: first
// every one gets a copy on the target, then the containers are stopped and all are handed
// over. What cannot come to its end is given up with the reason, and everything is, or is
// brought back, where it was.
func Migrations(v *View) ([]state.Command, []Migration) {
	var cmds []state.Command
	var all []Migration
	for _, vol := range v.Volumes {
		if vol.Migration == nil {
			continue
		}
		s := v.migrationStep(vol)
		s.Volume = vol
		cmds, all = append(cmds, s.cmds...), append(all, s.Migration)
	}
	return cmds, all
}

func (v *View) migrationStep(vol *state.Volume) migrationStep {
	m := vol.Migration
	doing := func(phase volume.MovePhase, format string, args ...any) migrationStep {
		return migrationStep{Migration: Migration{Doing: fmt.Sprintf(format, args...), Step: volume.MoveStep{Phase: phase}}}
	}
	end := func(reason string) migrationStep {
		return migrationStep{cmds: []state.Command{state.EndMigration{ID: vol.ID, Attempt: m.Attempt, Reason: reason}}, Migration: Migration{Doing: "ends", Step: volume.MoveStep{Phase: volume.MoveEnding}}}
	}
	attempt := state.MigrateAttempt + m.Attempt
	switch {
	case vol.Phase == state.PhaseMoving && vol.Pending != nil:
		s := v.movingStep(vol)
		return migrationStep{Migration: Migration{Doing: s.doing, Step: s.step, Copying: s.copying}}
	case vol.Phase != state.PhaseActive:
		return migrationStep{Migration: Migration{Why: fmt.Sprintf("it is %s", vol.Phase), Step: volume.MoveStep{Phase: volume.MoveWaiting}}}
	case vol.LastRefusal != nil && vol.LastRefusal.Attempt == attempt && !v.joinedBy(vol):
		return end(vol.LastRefusal.Reason)
	case vol.LastRefusal != nil && vol.LastRefusal.Attempt == backAttempt+m.Attempt:
		return end(fmt.Sprintf("its service does not run on %s, and it could not be brought back: %s", v.name(m.To), vol.LastRefusal.Reason))
	case vol.Placement.Primary != m.To && vol.Moved != nil && vol.Moved.Attempt == backAttempt+m.Attempt:
		return end(fmt.Sprintf("Swarm did not start its service on %s within %s; it is back on %s", v.name(m.To), startLimit, v.name(vol.Placement.Primary)))
	case vol.Placement.Primary == m.To:
		if starting := v.starting(vol); len(starting) > 0 {
			// While a migration goes on nothing else is done for its volume.
			if v.Now.Sub(vol.Moved.At).Abs() >= startGiveUp && v.goBack(vol) == nil {
				return end(v.stranded(vol, starting[0]))
			}
			return doing(volume.MoveStarting, "on %s, where container %s is starting", v.name(m.To), starting[0].Name)
		}
		if v.opening(vol) {
			return doing(volume.MoveOpening, "on %s, where the clients of its routes are about to go on", v.name(m.To))
		}
		if s, ok := v.serviceStep(vol); ok {
			return s
		}
		return end("")
	}
	n := v.Node(vol.Placement.Primary)
	if n == nil {
		return migrationStep{Migration: Migration{Why: "its primary is no node of the cluster", Step: volume.MoveStep{Phase: volume.MoveWaiting}}}
	}
	p := v.planMigration(vol, n, m.To)
	if p.impossible != "" {
		return end(p.impossible)
	}
	for _, other := range p.here {
		if r := other.LastRefusal; r != nil && r.Attempt == attempt && !v.joinedBy(other) {
			return end(fmt.Sprintf("volume %s stays: %s", other.Name, r.Reason))
		}
	}
	if why := v.choked(p.here, v.Node(m.To)); why != "" && v.Now.Sub(m.Began).Abs() >= roomLimit {
		return end(fmt.Sprintf("%s (after %s)", why, roomLimit))
	}
	if p.Doing == "" && Unrecorded(v, vol, false) != nil && v.Now.Sub(m.Began).Abs() >= roomLimit {
		return end(p.Why) // perhaps it cannot be recorded at all
	}
	s := migrationStep{Migration: p.Migration}
	switch {
	case p.Doing != "" || p.Why != "":
		s.cmds = p.adds
	default:
		for _, other := range p.here {
			s.cmds = append(s.cmds, state.BeginHandoff{ID: other.ID, Epoch: other.Epoch, To: m.To, Attempt: attempt, Follow: len(p.Containers)+len(p.Services) > 0, MaxPause: m.MaxPause,
				Services: v.servicesOf([]*state.Volume{other}, n.ID)})
		}
		s.Doing, s.Step.Phase = "moving to "+v.name(m.To), volume.MoveBegins
	}
	return s
}

// joinedBy says that a handoff of a volume alone was refused, and that by now there is who goes along: a
// container that was just starting. With it the handoff is another one, and it is refused only once.
func (v *View) joinedBy(vol *state.Volume) bool {
	return !vol.LastRefusal.Follow && v.company(vol, vol.Placement.Primary).stops()
}

// stranded says that a container does not come up where its volume was migrated, and that the
// volume cannot be brought back, either.
func (v *View) stranded(vol *state.Volume, c *state.Container) string {
	why := fmt.Sprintf("container %s does not run on %s after %s", c.Name, v.name(vol.Placement.Primary), startGiveUp)
	if n := v.Node(vol.Placement.Primary); n != nil { // or it was removed meanwhile
		if f := n.followed(c); f != nil && f.Error != "" {
			why += " (" + f.Error + ")"
		}
	}
	return why + fmt.Sprintf(", and it could not be brought back to %s; it is tried further", v.name(vol.Moved.From))
}

// roomLimit is how long a migration waits for somebody to make room where its volume is to
// go. It is counted from its beginning, so what fills up later ends it at once: it is the
// space that people look at while they wait.
const roomLimit = 10 * time.Minute

// openLimit is how long the end of a migration waits for the routes: they open without it,
// but how long the clients waited belongs to what is told of it.
const openLimit = 15 * time.Second

// opening: the routes of a volume that was handed over do not lead to its containers yet.
func (v *View) opening(vol *state.Volume) bool {
	m := vol.Moved
	return m != nil && m.Times.Held > 0 && m.Opened.IsZero() && v.Now.Sub(m.At).Abs() < openLimit
}

// migrationPlan is what a migration would do next from where the volume is.
type migrationPlan struct {
	Migration
	impossible string          // why it cannot be
	adds       []state.Command // copies that lack on the target
	here       []*state.Volume // what is still to be handed over
}

// CanMigrate says what would go along with a volume to a node, and what it would wait
// for first. The error is why it cannot be.
func CanMigrate(v *View, vol *state.Volume, to volume.NodeID) (Migration, error) {
	n := v.Node(vol.Placement.Primary)
	if n == nil || vol.Phase != state.PhaseActive {
		return Migration{}, volume.Errorf(volume.CodeConflict, "volume %q is %s; its migration has to wait", vol.Name, vol.Phase)
	}
	p := v.planMigration(vol, n, to)
	if p.impossible != "" {
		return Migration{}, volume.Errorf(volume.CodeRefused, "volume %q cannot be migrated to %s: %s", vol.Name, v.name(to), p.impossible)
	}
	p.Volume = vol
	return p.Migration, nil
}

// PredictPause is how long clients would wait for a migration besides the stop and the start
// of the containers: for the slowest of the last copies. 0: not known.
func PredictPause(v *View, vol *state.Volume, to volume.NodeID) (wait time.Duration) {
	here, _ := v.company(vol, vol.Placement.Primary).here(vol.Placement.Primary)
	for _, other := range here {
		took := v.link(other, to).LastIncrement
		if took == 0 {
			return 0
		}
		wait = max(wait, took)
	}
	return wait
}

// MigrationTarget is the node that a volume, and what runs on it, is best migrated to
// when its user names none: one that has complete copies of all; "" when there is none.
func MigrationTarget(v *View, vol *state.Volume) volume.NodeID {
	n := v.Node(vol.Placement.Primary)
	if n == nil || vol.Phase != state.PhaseActive {
		return ""
	}
	return v.heir(v.company(vol, n.ID), n)
}

func (v *View) planMigration(vol *state.Volume, n *NodeView, to volume.NodeID) (p migrationPlan) {
	g := v.company(vol, n.ID)
	here, away := g.here(n.ID)
	p.here = here
	p.Containers, p.Services = g.names(), g.services
	for _, other := range g.volumes {
		if other != vol {
			p.With = append(p.With, other.Name)
		}
	}
	m := v.Node(to)
	switch {
	case m == nil:
		p.impossible = "it is no node of the cluster"
	case m.Availability != state.Active:
		p.impossible = fmt.Sprintf("node %s is being drained", m.Name)
	case !m.Alive:
		p.impossible = fmt.Sprintf("node %s is not heard of", m.Name)
	case !m.Lease:
		p.impossible = fmt.Sprintf("node %s may not write: it has no lease", m.Name)
	}
	for _, other := range p.here {
		if users := v.others(other, n, g); users != "" && p.impossible == "" {
			p.impossible = users
		}
	}
	if p.impossible != "" {
		return p
	}
	if why := v.lacks(g, m); why != "" {
		p.impossible = why
		return p
	}
	for _, other := range p.here {
		switch l := v.link(other, to); {
		case other.Placement.Role(to) != volume.RoleReplica:
			switch why := m.unfit(v.claim(other)); why {
			case fit:
			case witness, sick, full:
				p.impossible = fmt.Sprintf("node %s, which has no copy of volume %s, %s", m.Name, other.Name, why.explain(m, v.claim(other), v.Now))
				return p
			default: // it passes
				p.Why = fmt.Sprintf("node %s %s", m.Name, why.explain(m, v.claim(other), v.Now))
				continue
			}
			want := cloned(other.Placement)
			if m.Zone == n.Zone {
				want.Local = append(want.Local, to)
			} else {
				want.Remote = append(want.Remote, to)
			}
			p.adds = append(p.adds, setReplicas(other, want))
			p.Doing, p.Step.Phase = "first copy to "+m.Name, volume.MoveFirstCopy
		case v.complete(other, to):
		case l.State == volume.LinkRefused:
			p.Why = fmt.Sprintf("the copy of volume %s on %s is refused: %s", other.Name, m.Name, l.Error)
		default:
			p.Doing, p.Step.Phase = "first copy to "+m.Name+progress(l), volume.MoveFirstCopy
			p.Copying = p.Copying.and(copyingOn(l))
		}
	}
	if p.Doing != "" {
		p.Why = ""
		return p
	}
	if i := slices.IndexFunc(away, func(id volume.NodeID) bool { return id != to }); i >= 0 && p.Why == "" {
		p.Why = "its containers need another volume, too, which is on " + v.name(away[i])
	}
	for _, other := range p.here {
		if why := v.stays(other, n, g); why != "" && p.Why == "" {
			p.Why = why
			if other != vol {
				p.Why = fmt.Sprintf("its containers use volume %s, too: %s", other.Name, why)
			}
		}
	}
	if p.Why == "" {
		p.Why = v.notReady(g, n, to)
	}
	if p.Why != "" {
		p.Step.Phase = volume.MoveWaiting
	}
	return p
}

// others names who uses a volume on a node and would not go along.
func (v *View) others(vol *state.Volume, n *NodeView, g company) string {
	for _, c := range g.containers {
		if c.Blocked {
			return fmt.Sprintf("container %s cannot follow: %s", c.Name, strings.Join(c.Obstacles, "; "))
		}
	}
	c := n.Copy(vol.ID)
	if c == nil {
		return ""
	}
	var others []volume.Holder
	for _, h := range c.Holders {
		if h.Service != "" {
			if why := v.unbound(h, vol, n); why != "" {
				return why
			}
			continue
		}
		if g.recorded(h) < 0 && !h.Follows && !h.Starting {
			others = append(others, h)
		}
	}
	if users := names(others); users != "" {
		return fmt.Sprintf("volume %s is in use by %s on %s, which does not follow its volumes (label flocker.enable=true)", vol.Name, users, n.Name)
	}
	return ""
}

// Unrecorded says which containers use a volume where it is and are to follow it, and are not recorded as
// they run there, as just after their start, or are about to run there, and may be to; nil when there are none. Without alone also those that use
// what goes along with it.
func Unrecorded(v *View, vol *state.Volume, alone bool) error {
	n := v.Node(vol.Placement.Primary)
	if n == nil || vol.Phase != state.PhaseActive {
		return nil
	}
	g := v.company(vol, n.ID)
	here := []*state.Volume{vol}
	if !alone {
		here, _ = g.here(n.ID)
	}
	for _, other := range here {
		if why := v.unrecorded(other, n, g); why != "" {
			return volume.Errorf(volume.CodeConflict, "volume %q has to wait: %s", vol.Name, why).
				WithHint("flockctl status says what is in its way if it stays so")
		}
	}
	return nil
}

// unrecorded names who uses a volume on a node and would go along if it were recorded, or may be about to;
// "" when there is none.
func (v *View) unrecorded(vol *state.Volume, n *NodeView, g company) string {
	c := n.Copy(vol.ID)
	if c == nil {
		return ""
	}
	var fresh, starting []volume.Holder
	for _, h := range c.Holders {
		switch {
		case h.Service != "" || g.recorded(h) >= 0:
		case h.Starting:
			starting = append(starting, h)
		case h.Follows:
			fresh = append(fresh, h)
		}
	}
	switch {
	case len(fresh) > 0:
		return fmt.Sprintf("volume %s is in use by %s on %s, which is to follow it and is not recorded yet", vol.Name, names(fresh), n.Name)
	case len(starting) > 0:
		return fmt.Sprintf("volume %s is in use by %s on %s, of which it is known in a moment whether it follows it", vol.Name, names(starting), n.Name)
	}
	return ""
}

// lacks says why containers could not run on a node, as far as it has said; "" when
// nothing is in their way.
func (v *View) lacks(g company, m *NodeView) string {
	for _, c := range g.containers {
		if f := m.followed(c); f != nil && f.Problem != "" {
			return fmt.Sprintf("container %s cannot run on %s: %s", c.Name, m.Name, f.Problem)
		}
	}
	if len(g.services) > 0 && m.swarm.Known && !v.swarm.ready[m.swarm.Node] {
		return fmt.Sprintf("Swarm gives no tasks to %s, and service %s could not run there (docker node ls)", m.Name, g.services[0])
	}
	return ""
}

// migrates says that a volume, or one that goes where it goes, is being migrated.
func (v *View) migrates(vol *state.Volume) bool {
	return slices.ContainsFunc(v.company(vol, vol.Placement.Primary).volumes, func(other *state.Volume) bool { return other.Migration != nil })
}
