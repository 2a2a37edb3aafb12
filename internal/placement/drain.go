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

// drainWidth is how many volumes leave a drained node at a time.
const drainWidth = 2

// drainRetry is how long a primary that has refused a handoff is left in peace, and
// drainAgain how long one whose containers were stopped for it, in vain.
const (
	drainRetry = 30 * time.Second
	drainAgain = 10 * time.Minute
)

// drainAttempt begins the attempts of handoffs that a drain asks for.
const drainAttempt = "drain-"

// OfDrain says that an attempt is one of a drain: nobody has said that it may be in vain.
func OfDrain(attempt string) bool { return strings.HasPrefix(attempt, drainAttempt) }

// Left is a copy that a drained node still has to give away.
type Left struct {
	Node   volume.NodeID
	Volume *state.Volume
	Role   volume.Role
	// Doing says in words what is under way; "" when nothing is, and then Why says what
	// stands in its way.
	Doing string
	Why   string
}

// Drain is what the nodes that are drained still have, by node and volume, and the next
// steps to get it away, at most one for a volume, two volumes of a node at a time. A
// primary is handed to its best complete replica, never by force, with the containers
// that follow it and with all volumes of these; a replica goes when as many others are
// complete as the spec asks for, so one is added first.
//
// A node that keeps its replicas gives only its primaries away.
func Drain(v *View) ([]state.Command, []Left) {
	var cmds []state.Command
	var left []Left
	v = v.clone()
	for i := range v.Nodes {
		n := &v.Nodes[i]
		if n.Availability != state.Drain {
			continue
		}
		var open []drainStep
		under := map[volume.ID]bool{} // turns that are taken
		for _, vol := range v.Volumes {
			role := vol.Placement.Role(n.ID)
			if role == volume.RoleNone || !vol.Live() || n.KeepReplicas && role == volume.RoleReplica && vol.Phase != state.PhaseElecting {
				continue
			}
			s := v.drainStep(vol, n, role)
			s.left = Left{Node: n.ID, Volume: vol, Role: role, Doing: s.doing, Why: s.why}
			s.turn = cmp.Or(s.turn, vol.ID)
			if s.doing != "" && s.cmd == nil {
				under[s.turn] = true
			}
			open = append(open, s)
		}
		for _, s := range open {
			switch {
			case s.cmd == nil:
			case s.adds && v.busy(s.left.Volume, s.placement):
				s.left.Doing, s.left.Why = "", "waits until other first copies are complete"
			case s.begins && len(under) >= drainWidth && !under[s.turn]:
				s.left.Doing, s.left.Why = "", "waits for its turn"
			default:
				if s.begins {
					under[s.turn] = true
				}
				if s.adds {
					v.promise(s.left.Volume, s.placement)
				}
				cmds = append(cmds, s.cmd)
			}
			left = append(left, s.left)
		}
	}
	return cmds, left
}

// drainStep is the next step for one copy: a command, or why there is none.
type drainStep struct {
	cmd    state.Command
	begins bool // it is the first of a volume's way, and takes one of the node's turns
	// turn is shared by volumes that go together; "": the volume's own.
	turn volume.ID
	// adds says that it makes a new copy, of which placement has the nodes.
	adds      bool
	placement volume.Placement

	doing, why string
	left       Left
	// step is what doing says, for programs, and copying what is being sent meanwhile; of a
	// handoff only.
	step    volume.MoveStep
	copying Copying
}

func (v *View) drainStep(vol *state.Volume, n *NodeView, role volume.Role) drainStep {
	switch {
	case vol.Phase == state.PhaseMoving && vol.Pending != nil:
		return v.movingStep(vol)
	case vol.Phase != state.PhaseActive:
		return drainStep{why: fmt.Sprintf("it is %s", vol.Phase)}
	case role == volume.RolePrimary && v.migrates(vol):
		return drainStep{why: "it is being migrated"}
	case role == volume.RolePrimary:
		return v.drainPrimary(vol, n)
	}
	return v.drainReplica(vol, n)
}

// movingStep says how far a handoff is.
func (v *View) movingStep(vol *state.Volume) drainStep {
	s := drainStep{turn: v.company(vol, vol.Placement.Primary).volumes[0].ID, doing: "moving to " + v.name(vol.Pending.To)}
	if back := vol.Pending.Rollback; back != nil {
		s.doing = "going back to its snapshot " + back.Snapshot
	}
	s.step.Phase = volume.MoveBegins
	n := v.Node(vol.Placement.Primary)
	if !vol.Pending.Follow || n == nil || !n.Alive || n.applied < vol.Changed {
		return s // what it last said is of before
	}
	var holders []volume.Holder
	if c := n.Copy(vol.ID); c != nil {
		s.step, holders = c.Moving, c.Holders
	}
	s.copying = copyingOn(v.link(vol, vol.Pending.To))
	switch { // of a version that does not tell it shows in who uses the volume
	case s.step.Phase == "" && len(holders) > 0:
		s.step.Phase = volume.MoveStopping
	case s.step.Phase == "":
		s.step.Phase = volume.MoveFinalCopy
	}
	if s.step.Phase == volume.MoveBegins {
		return s
	}
	s.doing += ": " + stepText(s.step, holders, s.copying.Left())
	return s
}

// stepText says in words what a primary does for a handoff; left is what is still to be sent
// of the stream that is under way.
func stepText(s volume.MoveStep, holders []volume.Holder, left int64) string {
	toGo := ""
	if left > 0 {
		toGo = ", " + volume.RoughSize(left) + " left"
	}
	switch s.Phase {
	case volume.MovePreStop:
		return strings.TrimSuffix(fmt.Sprintf("running the pre-stop hook %s", s.Hook), " ") + " in container " + s.Container
	case volume.MovePreCopy:
		return fmt.Sprintf("pre-copy round %d of at most %d", s.Round, s.Rounds) + toGo
	case volume.MoveJoin:
		return fmt.Sprintf("waiting for volume %s, which goes along, to be as far", s.For)
	case volume.MoveParking:
		text := "waiting for the clients of its routes to be at a quiet point"
		if s.Clients != "" {
			text += ": " + s.Clients
		}
		return text
	case volume.MoveStopping:
		return "stopping " + cmp.Or(names(holders), "its containers")
	case volume.MoveFinalCopy:
		return "final copy" + toGo
	}
	return string(s.Phase)
}

// drainPrimary hands a volume to its best replica, together with the containers that
// follow it and with all that these need. One that others use stays: taking it from them
// is not ours to do.
func (v *View) drainPrimary(vol *state.Volume, n *NodeView) drainStep {
	g := v.company(vol, n.ID)
	here, _ := g.here(n.ID)
	for _, other := range here {
		why := v.stays(other, n, g)
		if why != "" && other != vol {
			why = fmt.Sprintf("its containers use volume %s, too: %s", other.Name, why)
		}
		if why != "" {
			return drainStep{why: why}
		}
	}
	to := v.heir(g, n)
	if to == "" || v.straysFrom(here, to) > 0 {
		if s, ok := v.homeward(vol, g, n); ok {
			return s
		}
	}
	switch {
	case to == "" && len(g.volumes) == 1:
		return v.drainAdd(vol, n, 1, "a copy")
	case to == "":
		return v.gather(vol, g, n)
	}
	if why := v.notReady(g, n, to); why != "" {
		return drainStep{why: why}
	}
	doing := "moving to " + v.name(to)
	for i, c := range g.containers {
		doing += []string{" with container ", ", "}[min(i, 1)] + c.Name
	}
	for i, s := range g.services {
		doing += []string{" with service ", ", "}[min(i, 1)] + s
	}
	return drainStep{
		cmd:    state.BeginHandoff{ID: vol.ID, Epoch: vol.Epoch, To: to, Attempt: g.attempt(), Follow: g.stops()},
		begins: true, turn: g.volumes[0].ID, doing: doing,
	}
}

// names of those who use a volume; "" of nobody.
func names(holders []volume.Holder) string {
	var out []string
	for _, h := range holders {
		who := "container " + cmp.Or(h.Name, h.Container, "that is starting")
		if h.Starting {
			who = fmt.Sprintf("a container that is starting (%s)", h.Name)
		}
		out = append(out, who)
	}
	return strings.Join(out, ", ")
}

// drainReplica takes a replica away once the volume does not miss it.
func (v *View) drainReplica(vol *state.Volume, n *NodeView) drainStep {
	p := vol.Placement
	if starting := v.starting(vol); len(starting) > 0 && vol.Moved.From == n.ID {
		// It may have to come back.
		doing := fmt.Sprintf("on %s, where container %s is starting", v.name(p.Primary), starting[0].Name)
		if m := v.Node(p.Primary); m != nil {
			if f := m.followed(starting[0]); f != nil && f.Problem != "" {
				doing += " (" + f.Problem + ")"
			}
		}
		return drainStep{turn: v.company(vol, n.ID).volumes[0].ID, doing: doing}
	}
	rest := cloned(p)
	it := func(id volume.NodeID) bool { return id == n.ID }
	rest.Local, rest.Remote = slices.DeleteFunc(rest.Local, it), slices.DeleteFunc(rest.Remote, it)
	primary := v.Node(p.Primary)
	if why := v.noSource(vol); why != "" {
		return drainStep{why: why}
	}
	if c := primary.Copy(vol.ID); c.Problem != "" || primary.applied < vol.Changed {
		return drainStep{why: cmp.Or(c.Problem, fmt.Sprintf("its primary %s has not looked at it yet", primary.Name))}
	}
	var local, remote int // complete ones that stay
	for _, id := range rest.Replicas() {
		if m := v.Node(id); m == nil || m.leaving() || !v.complete(vol, id) {
			continue
		}
		if v.zoneOf(id) == primary.Zone {
			local++
		} else {
			remote++
		}
	}
	// One of the other kind stands in for it where no node could have one of its own.
	enough := local+remote >= vol.Spec.Replicas+vol.Spec.Remote
	short := Shortfall{Local: max(0, vol.Spec.Replicas-local)}
	if n.Zone != primary.Zone {
		short = Shortfall{Remote: max(0, vol.Spec.Remote-remote)}
	}
	if enough && (short.IsZero() || !v.roomFor(vol, short)) {
		return drainStep{cmd: setReplicas(vol, rest), doing: "its copy is being taken away"}
	}
	return v.drainAdd(vol, n, 0, "its replacement")
}

// roomFor says that a node could take a copy of a kind that lacks.
func (v *View) roomFor(vol *state.Volume, s Shortfall) bool {
	c, p := newChooser(v, vol.Spec, v.claim(vol), keyOf(vol.ID)), cloned(vol.Placement)
	c.fill(&p, len(p.Local)+min(1, s.Local), len(p.Remote)+min(1, s.Remote))
	return !same(p, vol.Placement)
}

// drainAdd gives the volume one copy more, or waits for the one that it has been given:
// what it lacks once the nodes that leave are gone, and extra.
func (v *View) drainAdd(vol *state.Volume, n *NodeView, extra int, what string) drainStep {
	stays := volume.Placement{Primary: vol.Placement.Primary}
	for _, id := range vol.Placement.Replicas() {
		m := v.Node(id)
		switch {
		case m == nil || m.leaving() || v.lost(id):
		case v.zoneOf(id) == v.zoneOf(stays.Primary):
			stays.Local = append(stays.Local, id)
		default:
			stays.Remote = append(stays.Remote, id)
		}
	}
	missing, present := v.missing(vol, stays)
	if l, r := vol.Spec.Replicas-len(stays.Local), vol.Spec.Remote-len(stays.Remote); missing.IsZero() && extra == 0 {
		// Enough, but of the wrong kinds, and there is room for the right one.
		missing = Shortfall{Local: min(1, max(0, l)), Remote: min(1, max(0, r))}
	}
	// A primary that leaves needs one replica to hand over to, and that is enough.
	if extra > 0 && present == 0 && missing.IsZero() {
		missing.Local = extra
	} else if extra > 0 && present > 0 {
		missing = Shortfall{}
	}
	if missing.IsZero() {
		for _, id := range stays.Replicas() {
			if v.complete(vol, id) {
				continue
			}
			switch l := v.link(vol, id); {
			case !v.alive(id):
				return drainStep{why: fmt.Sprintf("%s is on %s, which is not heard of", what, v.name(id))}
			case l.State == volume.LinkRefused:
				return drainStep{why: fmt.Sprintf("%s on %s is refused: %s", what, v.name(id), l.Error)}
			default:
				return drainStep{doing: "first copy to " + v.name(id) + progress(l)}
			}
		}
		return drainStep{why: "no replica that could take over may write"}
	}
	c := newChooser(v, vol.Spec, v.claim(vol), keyOf(vol.ID))
	want := cloned(vol.Placement)
	local, remote := len(want.Local)+missing.Local, len(want.Remote)+missing.Remote
	c.fill(&want, local, remote)
	if same(want, vol.Placement) && extra > 0 && missing.Remote == 0 {
		c.fill(&want, len(want.Local), len(want.Remote)+extra) // any place is better than staying
	}
	if same(want, vol.Placement) {
		s := c.shortfall(vol.Placement, missing.Local, missing.Remote)
		return drainStep{why: cmp.Or(s.WhyLocal, s.WhyRemote)}
	}
	var to []string
	for _, id := range want.Replicas() {
		if vol.Placement.Role(id) == volume.RoleNone {
			to = append(to, v.name(id))
		}
	}
	return drainStep{cmd: setReplicas(vol, want), begins: true, adds: true, placement: want, doing: "first copy to " + strings.Join(to, ", ")}
}

func progress(l volume.LinkStatus) string {
	if l.TotalBytes <= 0 || l.State != volume.LinkSeeding {
		return ""
	}
	return fmt.Sprintf(", %d %%", min(99, 100*l.SentBytes/l.TotalBytes))
}

// leaving says that a node gives all its copies away.
func (n *NodeView) leaving() bool { return n.Availability == state.Drain && !n.KeepReplicas }

// leaves says that a copy of the volume is on its way off a drained node, or to where its
// user wants it. What it has to spare meanwhile is not for Repair to say.
func (v *View) leaves(vol *state.Volume) bool {
	if v.migrates(vol) {
		return true
	}
	for id := range nodesOf(vol.Placement) {
		if n := v.Node(id); n != nil && (n.leaving() || n.Availability == state.Drain && id == vol.Placement.Primary) {
			return true
		}
	}
	return false
}
