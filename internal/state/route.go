package state

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/flocker-io/flocker/internal/volume"
)

// Ports that flocker has on every node unless it is told otherwise: the one for nodes,
// gossip, metrics. No route can have them, nor those that the nodes are known by.
const (
	firstOwnPort = 4523
	lastOwnPort  = 4525
)

// Route is a front door of a volume, whose listen port nobody else has. The server behind
// it is Container, if the labels of one ask for the route; else the volume itself asks, and
// the server is the container that uses it.
type Route struct {
	volume.Route
	Volume    *Volume
	Container *Container
}

// Routes in order of their listen ports. Removed volumes have none.
func (s *State) Routes() (out []Route) {
	for v := range s.Volumes() {
		if !v.Live() {
			continue
		}
		for _, r := range v.Spec.Ports {
			out = append(out, Route{r, v, nil})
		}
	}
	for c := range s.Containers() {
		if v := c.routed(s); v != nil {
			for _, r := range c.Routes {
				out = append(out, Route{r, v, c})
			}
		}
	}
	slices.SortFunc(out, func(a, b Route) int { return cmp.Compare(a.Listen, b.Listen) })
	return out
}

// routed is the volume that the routes of a container belong to: the first of those that
// it mounts, which all go together. Nil when it was removed.
func (c *Container) routed(s *State) *Volume {
	if v := s.Volume(c.Volumes[0].ID); len(c.Routes) > 0 && v != nil && v.Live() {
		return v
	}
	return nil
}

// NodeRoute is a route as the nodes have to serve it.
type NodeRoute struct {
	Route
	// Owner is the node with the gate, at this epoch; "" while the volume has no primary.
	Owner volume.NodeID
	Epoch volume.Epoch
	// Pause: the containers of the volume are being stopped to go to another node, or are
	// not known yet to run where they went. Nothing may reach the server.
	Pause bool
}

// NodeRoutes are all routes with where they lead, in order of their listen ports.
func (s *State) NodeRoutes() (out []NodeRoute) {
	moving := s.moving()
	for _, r := range s.Routes() {
		v := r.Volume
		if v.Phase == PhaseCreating {
			continue // nothing can be behind it
		}
		out = append(out, NodeRoute{Route: r, Owner: v.Placement.Primary, Epoch: v.Epoch, Pause: moving[v.ID]})
	}
	return out
}

// moving are the volumes whose containers are on their way: with one volume of a container
// all of them are.
func (s *State) moving() map[volume.ID]bool {
	out := map[volume.ID]bool{}
	for v := range s.Volumes() {
		if v.Phase == PhaseMoving && v.Pending.Follow || len(s.Starting(v)) > 0 {
			out[v.ID] = true
		}
	}
	if len(out) == 0 {
		return nil
	}
	with := maps.Clone(out)
	for c := range s.Containers() {
		if c.Run && slices.ContainsFunc(c.Volumes, func(cv ContainerVolume) bool { return out[cv.ID] }) {
			for _, cv := range c.Volumes {
				with[cv.ID] = true
			}
		}
	}
	return with
}

// FreeRoutes are those of the wanted routes that the container of a record can have, and
// why it cannot have the others. What another record of its name on its node has is free:
// that container is gone.
func (s *State) FreeRoutes(c *Container, wanted []volume.Route) (free []volume.Route, taken []string) {
	taker := s.takers(func(r Route) bool {
		return r.Container != nil && (r.Container.RecordKey() == c.RecordKey() || r.Container.Node == c.Node && r.Container.Name == c.Name)
	})
	for _, r := range wanted {
		if who := taker(r.Listen); who != "" {
			taken = append(taken, fmt.Sprintf("port %d is that of %s", r.Listen, who))
		} else {
			free = append(free, r)
		}
	}
	return free, taken
}

// takers is a function that says in words who has a listen port; "" when nobody has it.
// Routes that but names do not count.
func (s *State) takers(but func(Route) bool) func(port int) string {
	has := map[int]string{}
	for port := firstOwnPort; port <= lastOwnPort; port++ {
		has[port] = "flocker itself"
	}
	for n := range s.Nodes() {
		for _, addr := range []string{n.Addr, n.GossipAddr} {
			if _, text, err := net.SplitHostPort(addr); err == nil {
				if port, err := strconv.Atoi(text); err == nil {
					has[port] = "flocker itself on node " + n.Name
				}
			}
		}
	}
	for _, r := range s.Routes() {
		switch {
		case but(r):
		case r.Container != nil:
			has[r.Listen] = fmt.Sprintf("container %q with volume %q", r.Container.Name, r.Volume.Name)
		default:
			has[r.Listen] = fmt.Sprintf("volume %q", r.Volume.Name)
		}
	}
	return func(port int) string { return has[port] }
}

// mayListen refuses routes that are wrong in themselves, or whose listen ports somebody
// has; what is a name for whom they are for.
func (t *txn) mayListen(what string, routes []volume.Route, but func(Route) bool) *Result {
	if len(routes) == 0 {
		return nil
	}
	taker := t.s.takers(but)
	seen := map[int]bool{}
	for _, r := range routes {
		if err := r.Check(); err != nil {
			bad := failed(volume.CodeInvalid, "%s: route %s: %v", what, r, err)
			return &bad
		}
		who := taker(r.Listen)
		if seen[r.Listen] {
			who = "another route of it"
		}
		if who != "" {
			bad := failed(volume.CodeConflict, "%s: port %d is that of %s", what, r.Listen, who)
			bad.Err.Hint = "every port that the nodes listen on leads to one volume: choose another one (`flockctl route list` shows all)"
			return &bad
		}
		seen[r.Listen] = true
	}
	return nil
}

// giveUpTaken takes routes from a volume that comes back from the trash, and from its
// containers, if their ports have been given to others meanwhile. It returns that in
// words, "" if it was not so.
func (t *txn) giveUpTaken(v *Volume) string {
	var lost []string
	keep := func(routes []volume.Route, taker func(int) string) (kept []volume.Route) {
		for _, r := range routes {
			if who := taker(r.Listen); who != "" {
				lost = append(lost, fmt.Sprintf("port %d, which is that of %s by now", r.Listen, who))
			} else {
				kept = append(kept, r)
			}
		}
		return kept
	}
	// The volume is in the trash still: nothing of it counts.
	taker := t.s.takers(func(Route) bool { return false })
	v.Spec.Ports = keep(v.Spec.Ports, taker)
	for _, c := range t.s.ContainersOf(v.ID) {
		if c.Volumes[0].ID != v.ID {
			continue
		}
		if kept := keep(c.Routes, taker); len(kept) < len(c.Routes) {
			less := *c
			less.Routes = kept
			t.storeContainer(less)
		}
	}
	if len(lost) == 0 {
		return ""
	}
	return ", without " + strings.Join(lost, " and ")
}
