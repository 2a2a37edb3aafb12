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

// StartTries is how often a container may fail to start where its volumes were moved
// before they go back, and startLimit how long it may take. A migration whose container neither
// runs nor can go back is over after startGiveUp.
const (
	StartTries  = 2
	startLimit  = 2 * time.Minute
	startGiveUp = 5 * startLimit
)

// backAttempt begins the attempts of handoffs that undo one.
const backAttempt = "back-"

// company is what leaves a node together: the containers that run there and follow,
// and all their volumes. Most often that is one volume, and one container or none. Tasks of
// Swarm services are stopped and started by Swarm.
type company struct {
	volumes    []*state.Volume // by ID
	containers []*state.Container
	services   []string
}

// stops says that something is stopped for the move of a company.
func (g company) stops() bool { return len(g.containers)+len(g.services) > 0 }

// recorded is which of its containers a user of a volume is; below 0: none.
func (g company) recorded(h volume.Holder) int {
	return slices.IndexFunc(g.containers, func(c *state.Container) bool {
		return h.Container != "" && strings.HasPrefix(c.ID, h.Container)
	})
}

// company of a volume on a node.
func (v *View) company(vol *state.Volume, node volume.NodeID) (g company) {
	g.volumes = []*state.Volume{vol}
	for i := 0; i < len(g.volumes); i++ { // it grows meanwhile
		for _, c := range v.containers[g.volumes[i].ID] {
			if !c.Run || c.Node != node || slices.Contains(g.containers, c) {
				continue
			}
			g.containers = append(g.containers, c)
			for _, cv := range c.Volumes {
				if other := v.volume(cv.ID); other != nil && !slices.Contains(g.volumes, other) {
					g.volumes = append(g.volumes, other)
				}
			}
		}
	}
	g.services = v.servicesOf(g.volumes, node)
	for _, other := range g.volumes {
		if other.Placement.Primary == node { // a task of it may be about to start
			g.services = append(g.services, v.boundTo(other)...)
		}
	}
	slices.Sort(g.services)
	g.services = slices.Compact(g.services)
	slices.SortFunc(g.volumes, func(a, b *state.Volume) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(g.containers, func(a, b *state.Container) int { return cmp.Compare(a.Name, b.Name) })
	return g
}

// here are the volumes that are still on a node, and away where the others are, or are
// going, without repetition.
func (g company) here(node volume.NodeID) (here []*state.Volume, away []volume.NodeID) {
	for _, vol := range g.volumes {
		to := vol.Placement.Primary
		if vol.Phase == state.PhaseMoving && vol.Pending != nil && vol.Pending.To != "" {
			to = vol.Pending.To
		}
		switch {
		case to == node:
			here = append(here, vol)
		case !slices.Contains(away, to):
			away = append(away, to)
		}
	}
	return here, away
}

// attempt is the one name of all the handoffs of a company: so it is known, when one is
// refused, which others were begun with it.
func (g company) attempt() string {
	var changed uint64
	for _, vol := range g.volumes {
		switch {
		case vol.Pending != nil && strings.HasPrefix(vol.Pending.Attempt, drainAttempt):
			return vol.Pending.Attempt
		case vol.Moved != nil && strings.HasPrefix(vol.Moved.Attempt, drainAttempt) && slices.ContainsFunc(g.containers, func(c *state.Container) bool { return c.Node == vol.Moved.From }):
			return vol.Moved.Attempt
		}
		changed = max(changed, vol.Changed)
	}
	return fmt.Sprintf("%s%d", drainAttempt, changed)
}

// stays says why a volume of a company cannot leave a node now; "" when it can.
func (v *View) stays(vol *state.Volume, n *NodeView, g company) string {
	if vol.Phase != state.PhaseActive {
		return fmt.Sprintf("it is %s", vol.Phase)
	}
	if v.noSource(vol) != "" {
		return fmt.Sprintf("node %s is not heard of, so nobody knows whether it is in use", n.Name)
	}
	c := n.Copy(vol.ID)
	if c.Problem != "" {
		return "its copy there has a problem: " + c.Problem
	}
	running := map[*state.Container]bool{}
	var others []volume.Holder
	for _, h := range c.Holders {
		i := g.recorded(h)
		if i < 0 && h.Service != "" {
			if why := v.unbound(h, vol, n); why != "" {
				return why
			}
			continue
		}
		if i < 0 && (h.Follows || h.Starting) {
			continue // see unrecorded
		}
		if i < 0 {
			others = append(others, h)
			continue
		}
		running[g.containers[i]] = true
	}
	if users := names(others); users != "" {
		return fmt.Sprintf("in use by %s on %s, which does not follow its volumes: stop it there and start it on another node", users, n.Name)
	}
	if who := v.unrecorded(vol, n, g); who != "" {
		return who
	}
	_, away := g.here(n.ID)
	for _, c := range g.containers {
		switch {
		case c.Blocked:
			return fmt.Sprintf("in use by container %s on %s, which cannot follow: %s", c.Name, n.Name, strings.Join(c.Obstacles, "; "))
		case c.Uses(vol.ID) && !running[c] && len(away) == 0:
			return fmt.Sprintf("container %s on %s does not run, and in a moment it is known whether its user has stopped it", c.Name, n.Name)
		}
	}
	if r := vol.LastRefusal; r != nil && strings.HasPrefix(r.Attempt, drainAttempt) {
		switch since := v.Now.Sub(r.At).Abs(); {
		case r.Follow && since < drainAgain:
			return fmt.Sprintf("%s; it is here again, and `flockctl node drain %s` tries it once more", r.Reason, n.Name)
		case !r.Follow && since < drainRetry:
			return r.Reason
		}
	}
	return ""
}

// heir is the node that a company is best handed to: complete copies of all that is
// still here, on a node that may write and is not drained itself; in the zone that the
// volumes are to be in before others, then in the primary's, one that has not failed before before one that has, one that has all that
// its containers need before one that waits for it, preferred before not, in sync before behind. Where some have gone ahead, it is where they are. "" when there is none.
func (v *View) heir(g company, n *NodeView) volume.NodeID {
	here, away := g.here(n.ID)
	var all []volume.NodeID
	for _, id := range here[0].Placement.Replicas() {
		m := v.Node(id)
		fits := m != nil && m.Availability == state.Active && m.Lease && m.poolKnown() && (len(away) == 0 || slices.Contains(away, id))
		if fits && !slices.ContainsFunc(here, func(vol *state.Volume) bool { return !v.complete(vol, id) }) {
			all = append(all, id)
		}
	}
	if len(all) == 0 {
		return ""
	}
	failed := func(id volume.NodeID) int {
		return yes(slices.ContainsFunc(here, func(vol *state.Volume) bool {
			r := vol.LastRefusal
			return r != nil && r.Follow && r.To == id
		}))
	}
	return slices.MinFunc(all, func(a, b volume.NodeID) int {
		return cmp.Or(
			cmp.Compare(v.straysFrom(here, a), v.straysFrom(here, b)),
			cmp.Compare(yes(v.zoneOf(a) != n.Zone), yes(v.zoneOf(b) != n.Zone)),
			cmp.Compare(failed(a), failed(b)),
			cmp.Compare(yes(v.notReady(g, n, a) != ""), yes(v.notReady(g, n, b) != "")),
			cmp.Compare(v.leanOf(here, b), v.leanOf(here, a)),
			cmp.Compare(yes(v.behind(here, a) != nil), yes(v.behind(here, b) != nil)),
			cmp.Compare(v.Node(a).Primaries, v.Node(b).Primaries), cmp.Compare(a, b))
	})
}

// behind is a volume of which a node's copy lags; nil when there is none.
func (v *View) behind(volumes []*state.Volume, id volume.NodeID) *state.Volume {
	i := slices.IndexFunc(volumes, func(vol *state.Volume) bool { return v.link(vol, id).State == volume.LinkLagging })
	if i < 0 {
		return nil
	}
	return volumes[i]
}

// route is the port of a route whose clients a company has; 0: it has none.
func (g company) route() int {
	for _, c := range g.containers {
		if len(c.Routes) > 0 {
			return c.Routes[0].Listen
		}
	}
	for _, vol := range g.volumes {
		if len(vol.Spec.Ports) > 0 {
			return vol.Spec.Ports[0].Listen
		}
	}
	return 0
}

// notReady says why containers had better not be stopped yet to be started on a node;
// "" when all that they need is there.
func (v *View) notReady(g company, n *NodeView, to volume.NodeID) string {
	m := v.Node(to)
	if why := v.lacks(g, m); why != "" {
		return why
	}
	for _, c := range g.containers {
		if f := m.followed(c); f == nil || f.LacksImage {
			return fmt.Sprintf("container %s waits until its image is on %s", c.Name, m.Name)
		}
	}
	if len(g.services) > 0 && !m.swarm.Known {
		return fmt.Sprintf("node %s has not said yet whether it belongs to the Swarm of service %s", m.Name, g.services[0])
	}
	if port := g.route(); port != 0 && !m.proxy {
		return fmt.Sprintf("the proxy of %s does not answer, and the clients of the route on port %d would not get through (systemctl status flockd-proxy there)", m.Name, port)
	}
	here, _ := g.here(n.ID)
	if vol := v.behind(here, to); vol != nil && g.stops() {
		if why := v.choked(here, m); why != "" {
			return why
		}
		return fmt.Sprintf("%s runs until %s has caught up with volume %s", g.first(), m.Name, vol.Name)
	}
	return ""
}

// leastFree is the share of a pool below which what does not catch up there is held to have
// no room: ZFS keeps about a thirtieth to itself.
const leastFree = 0.05

// choked names a volume whose copy on a node does not catch up because the pool there is
// full; "" when none is known to.
func (v *View) choked(volumes []*state.Volume, m *NodeView) string {
	if !m.poolKnown() || m.Pool.Size <= 0 || float64(m.Pool.Free) >= leastFree*float64(m.Pool.Size) {
		return ""
	}
	for _, vol := range volumes {
		if l := v.link(vol, m.ID).State; l == volume.LinkLagging || l == volume.LinkRefused {
			return fmt.Sprintf("the pool of %s is full (%.0f %%), and the copy of volume %s there does not catch up: make room on it, or take another node", m.Name,
				100*float64(m.Pool.Size-m.Pool.Free)/float64(m.Pool.Size), vol.Name)
		}
	}
	return ""
}

// first is one of those that are stopped for the move of a company.
func (g company) first() string {
	if len(g.containers) > 0 {
		return "container " + g.containers[0].Name
	}
	return "service " + g.services[0]
}

// names of the containers of a company.
func (g company) names() (out []string) {
	for _, c := range g.containers {
		out = append(out, c.Name)
	}
	return out
}

// followed is what a node says of a container; nil when it says nothing.
func (n *NodeView) followed(c *state.Container) *volume.Followed {
	key := c.RecordKey()
	i := slices.IndexFunc(n.containers, func(f volume.Followed) bool { return f.Record == key })
	if i < 0 {
		return nil
	}
	return &n.containers[i]
}

// gather gives one volume of a company a copy where the others can have one, too, or
// waits for it.
func (v *View) gather(vol *state.Volume, g company, n *NodeView) drainStep {
	here, away := g.here(n.ID)
	has := func(id volume.NodeID) (n int) {
		for _, other := range here {
			n += yes(other.Placement.Role(id) == volume.RoleReplica)
		}
		return n
	}
	var to *NodeView
	for i := range v.Nodes {
		m := &v.Nodes[i]
		there := vol.Placement.Role(m.ID) == volume.RoleReplica
		fits := m.Availability == state.Active && m.Alive && (there || m.unfit(v.claim(vol)) == fit)
		if m.ID == n.ID || !fits || len(away) > 0 && !slices.Contains(away, m.ID) {
			continue
		}
		if to == nil || cmp.Or(cmp.Compare(v.straysFrom(here, to.ID), v.straysFrom(here, m.ID)), cmp.Compare(has(m.ID), has(to.ID)),
			cmp.Compare(v.leanOf(here, m.ID), v.leanOf(here, to.ID))) > 0 {
			to = m
		}
	}
	var who []string
	for _, c := range g.containers {
		who = append(who, c.Name)
	}
	switch {
	case to == nil:
		return drainStep{why: fmt.Sprintf("no node has room for all volumes of container %s", strings.Join(who, ", "))}
	case v.complete(vol, to.ID):
		return drainStep{why: fmt.Sprintf("its containers (%s) need their other volumes on %s, too", strings.Join(who, ", "), to.Name)}
	case vol.Placement.Role(to.ID) == volume.RoleReplica:
		return drainStep{doing: "first copy to " + to.Name + progress(v.link(vol, to.ID))}
	}
	want := cloned(vol.Placement)
	if to.Zone == n.Zone {
		want.Local = append(want.Local, to.ID)
	} else {
		want.Remote = append(want.Remote, to.ID)
	}
	return drainStep{cmd: setReplicas(vol, want), begins: true, adds: true, placement: want, doing: "first copy to " + to.Name}
}

// starting are the containers that came along with the last handoff of a volume and do
// not run yet, as far as is recorded.
func (v *View) starting(vol *state.Volume) (out []*state.Container) {
	if vol.Moved == nil || vol.Moved.From == vol.Placement.Primary || strings.HasPrefix(vol.Moved.Attempt, joinAttempt) {
		return nil // or it was brought to the other volumes: they could not run where it was
	}
	for _, c := range v.containers[vol.ID] {
		if c.Run && c.Node == vol.Moved.From {
			out = append(out, c)
		}
	}
	return out
}

// MayGoBack says that a volume's last handoff might be undone by goBack, as far as the state alone
// tells: its containers are not needed where they are if they do not come up there.
func MayGoBack(s *state.State, vol *state.Volume) bool {
	return vol.Moved != nil && vol.Moved.From != vol.Placement.Primary && !strings.HasPrefix(vol.Moved.Attempt, joinAttempt) && s.HasLease(vol.Moved.From)
}

// goBack undoes a handoff whose containers do not start: they run again where they ran
// before. It needs that node with all that was written; without it they are tried again
// where they are; and so they are where another volume of theirs was promoted elsewhere since,
// or was brought to this one, unless the container cannot run here: then the reunion brings the
// others back after it.
// Nil when there is nothing to undo.
func (v *View) goBack(vol *state.Volume) state.Command {
	starting := v.starting(vol)
	if len(starting) == 0 || vol.Phase != state.PhaseActive {
		return nil
	}
	if v.refusedLately(vol, backAttempt) {
		return nil
	}
	home, now := v.Node(vol.Moved.From), v.Node(vol.Placement.Primary)
	if now == nil || !now.Alive || home == nil || !home.Lease || !v.complete(vol, home.ID) {
		return nil
	}
	why := ""
	for _, c := range starting {
		for _, cv := range c.Volumes {
			other := v.volume(cv.ID)
			if other != nil && other.Placement.Primary != home.ID && (other.Moved == nil || other.Moved.From != home.ID) {
				return nil
			}
			if joining(other, now.ID) || joined(other, now.ID) && !barred(c, now) {
				return nil // it would be left behind, and this one be brought to it again
			}
			if other != nil && other.Placement.Primary == home.ID && other.LastRefusal != nil && other.LastRefusal.Attempt == vol.Moved.Attempt {
				why = fmt.Sprintf("volume %s of container %s stays on %s: %s", other.Name, c.Name, home.Name, other.LastRefusal.Reason)
			}
		}
		if f := now.followed(c); f != nil && f.Failed >= StartTries {
			why = fmt.Sprintf("container %s could not be started on %s: %s", c.Name, now.Name, f.Error)
		}
		if why == "" && v.Now.Sub(vol.Moved.At).Abs() >= startLimit {
			why = fmt.Sprintf("container %s did not start on %s within %s", c.Name, now.Name, startLimit)
		}
	}
	if why == "" {
		return nil
	}
	return state.BeginHandoff{ID: vol.ID, Epoch: vol.Epoch, To: home.ID, Attempt: fmt.Sprintf("%s%d", backAttempt, vol.Changed), Follow: true, Back: why}
}

// joining says that a reunion is about to bring a volume to a node.
func joining(vol *state.Volume, to volume.NodeID) bool {
	return vol != nil && vol.Phase == state.PhaseMoving && vol.Pending != nil && vol.Pending.To == to && strings.HasPrefix(vol.Pending.Attempt, joinAttempt)
}

// joined says that a reunion has brought a volume to the node where it is.
func joined(vol *state.Volume, at volume.NodeID) bool {
	return vol != nil && vol.Placement.Primary == at && vol.Moved != nil && strings.HasPrefix(vol.Moved.Attempt, joinAttempt)
}

// barred says that a container which is recorded elsewhere cannot run on a node, as far as
// is known.
func barred(c *state.Container, n *NodeView) bool {
	f := n.followed(c)
	return c.Node != n.ID && (c.Blocked || f != nil && f.Problem != "")
}

// volume by ID; nil when there is none.
func (v *View) volume(id volume.ID) *state.Volume {
	i, found := slices.BinarySearchFunc(v.Volumes, id, func(vol *state.Volume, id volume.ID) int { return cmp.Compare(vol.ID, id) })
	if !found {
		return nil
	}
	return v.Volumes[i]
}

// indexContainers lists containers by the volumes that they mount.
func indexContainers(all []*state.Container) map[volume.ID][]*state.Container {
	out := map[volume.ID][]*state.Container{}
	for _, c := range all {
		for _, cv := range c.Volumes {
			out[cv.ID] = append(out[cv.ID], c)
		}
	}
	return out
}
