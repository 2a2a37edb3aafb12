package state

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/flocker-io/flocker/internal/volume"
)

// Ports that flocker has on every node unless it is told otherwise: the one for nodes,
// gossip, metrics, and the one for proxies. No route can have them, nor those that the nodes are known by.
const (
	firstOwnPort = 4523
	lastOwnPort  = 4526
)

// Route is a front door of a volume, whose listen port, or whose names there, nobody else
// has. The server behind it is Container, if the labels of one ask for the route; else the volume itself asks, and
// the server is the container that uses it.
type Route struct {
	volume.Route
	Volume    *Volume
	Container *Container
}

// Routes in order of their listen ports, and there of their names. Removed volumes have none.
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
	slices.SortFunc(out, func(a, b Route) int { return volume.CompareRoutes(a.Route, b.Route) })
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
	// Moving: the containers of the volume are being stopped to go to another node, or are
	// not known yet to run where they went. Nothing may reach the server.
	Moving bool
	// Paused: an operator wants nothing to reach it.
	Paused bool
}

// PauseRoute is an operator's wish that nothing pass a route, or that it go on.
type PauseRoute struct {
	Listen int    `json:"listen"`
	Name   string `json:"name,omitempty"` // the first of the route's, if it has any
	Pause  bool   `json:"pause"`
}

func (PauseRoute) kind() string { return "pause-route" }

// NodeRoutes are all routes with where they lead, in order of their listen ports.
func (s *State) NodeRoutes() (out []NodeRoute) {
	moving := s.moving()
	for _, r := range s.Routes() {
		v := r.Volume
		if v.Phase == PhaseCreating {
			continue // nothing can be behind it
		}
		out = append(out, NodeRoute{Route: r, Owner: v.Placement.Primary, Epoch: v.Epoch, Moving: moving[v.ID], Paused: slices.Contains(v.Paused, r.Key())})
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

// RouteOf is the route that is known by a key.
func (s *State) RouteOf(key volume.RouteKey) (Route, bool) {
	all := s.Routes()
	i := slices.IndexFunc(all, func(r Route) bool { return r.Key() == key })
	if i < 0 {
		return Route{}, false
	}
	return all[i], true
}

// Bypasses says in words which ports of a container its engine publishes past the gates of
// its routes, or in the place of an edge. Made again elsewhere, it is without these.
func (s *State) Bypasses(c *Container) (out []string) {
	bypass := s.Bypass(c)
	for _, p := range c.Published {
		if why := bypass(p.Host, p.Port); why != "" {
			out = append(out, why)
		}
	}
	return out
}

// Bypass is a function that says why a published port of a container bypasses a route; ""
// when it does not.
func (s *State) Bypass(c *Container) func(host, port int) string {
	listens, ports := map[int]Route{}, map[int]Route{}
	for _, r := range s.Routes() {
		listens[r.Listen] = r
		if r.Container == nil && c.Uses(r.Volume.ID) || r.Container != nil && r.Container.RecordKey() == c.RecordKey() {
			ports[r.Port] = r
		}
	}
	return func(host, port int) string {
		if r, ok := ports[port]; ok {
			return fmt.Sprintf("its port %d is published by the engine, past the route on port %d: clients that come that way are not spared a move", port, r.Listen)
		}
		if r, ok := listens[host]; ok {
			return fmt.Sprintf("the engine publishes its port %d on %d, where the route of volume %q listens", port, host, r.Volume.Name)
		}
		return ""
	}
}

func (t *txn) pauseRoute(c PauseRoute) Result {
	key := volume.RouteKey{Listen: c.Listen, Name: c.Name}
	r, ok := t.s.RouteOf(key)
	switch {
	case !ok:
		return failed(volume.CodeNotFound, "no route listens on %s", key.At())
	case slices.Contains(r.Volume.Paused, key) == c.Pause:
		return Result{Volume: r.Volume.ID}
	}
	next := *r.Volume
	kind, doing := "route.resumed", "goes on"
	if c.Pause {
		kind, doing = "route.paused", "is paused"
		next.Paused = append(slices.Clone(next.Paused), key)
		slices.SortFunc(next.Paused, volume.RouteKey.Compare)
	} else {
		next.Paused = slices.DeleteFunc(slices.Clone(next.Paused), func(k volume.RouteKey) bool { return k == key })
	}
	t.putVolume(next)
	t.event(Event{Kind: kind, Volume: next.ID, Name: next.Name, Message: fmt.Sprintf("the route of volume %s on %s %s", next.Name, key.At(), doing)})
	return Result{Volume: next.ID}
}

// prunePaused forgets pauses of routes that a volume has no more: one that is asked for
// anew begins unpaused.
func (t *txn) prunePaused(id volume.ID) {
	v := t.s.Volume(id)
	if v == nil || len(v.Paused) == 0 {
		return
	}
	next := *v
	next.Paused = slices.DeleteFunc(slices.Clone(v.Paused), func(key volume.RouteKey) bool {
		r, ok := t.s.RouteOf(key)
		return !ok || r.Volume.ID != id
	})
	if len(next.Paused) < len(v.Paused) {
		if len(next.Paused) == 0 {
			next.Paused = nil
		}
		t.putVolume(next)
	}
}

// FreeRoutes are those of the wanted routes that the container of a record can have, and
// why it cannot have the others. What another record of its name on its node has is free:
// that container is gone.
func (s *State) FreeRoutes(c *Container, wanted []volume.Route) (free []volume.Route, taken []string) {
	taker := s.takers(func(r Route) bool {
		return r.Container != nil && (r.Container.RecordKey() == c.RecordKey() || r.Container.Node == c.Node && r.Container.Name == c.Name)
	})
	return split(wanted, taker)
}

// FreePorts are those of the wanted routes that a volume which is to be made can have, and
// why it cannot have the others.
func (s *State) FreePorts(wanted []volume.Route) (free []volume.Route, taken []string) {
	if len(wanted) == 0 {
		return nil, nil
	}
	return split(wanted, s.takers(func(Route) bool { return false }))
}

func split(wanted []volume.Route, taker func(volume.Route) (what, who string)) (free []volume.Route, taken []string) {
	for _, r := range wanted {
		if what, who := taker(r); who != "" {
			taken = append(taken, fmt.Sprintf("%s is that of %s", what, who))
		} else {
			free = append(free, r)
		}
	}
	return free, taken
}

// takers is a function that says in words who has what a route wants, and what that is; ""
// when nobody has it. Routes that but names do not count.
func (s *State) takers(but func(Route) bool) func(volume.Route) (what, who string) {
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
	there := map[int][]Route{}
	for _, r := range s.Routes() {
		if !but(r) {
			there[r.Listen] = append(there[r.Listen], r)
		}
	}
	return func(wanted volume.Route) (what, who string) {
		if who := has[wanted.Listen]; who != "" {
			return volume.RouteKey{Listen: wanted.Listen}.At(), who
		}
		for _, r := range there[wanted.Listen] {
			what := wanted.Clash(r.Route)
			switch {
			case what == "":
			case r.Container != nil:
				return what, fmt.Sprintf("container %q with volume %q", r.Container.Name, r.Volume.Name)
			default:
				return what, fmt.Sprintf("volume %q", r.Volume.Name)
			}
		}
		return "", ""
	}
}

// mayListen refuses routes that are wrong in themselves, or whose listen ports somebody
// has; what is a name for whom they are for.
func (t *txn) mayListen(what string, routes []volume.Route, but func(Route) bool) *Result {
	if len(routes) == 0 {
		return nil
	}
	taker := t.s.takers(but)
	for i, r := range routes {
		if err := r.Check(); err != nil {
			bad := failed(volume.CodeInvalid, "%s: route %s: %v", what, r, err)
			return &bad
		}
		wanted, who := taker(r)
		for _, other := range routes[:i] {
			if clash := r.Clash(other); clash != "" {
				wanted, who = clash, "another route of it"
			}
		}
		if who != "" {
			bad := failed(volume.CodeConflict, "%s: %s is that of %s", what, wanted, who)
			bad.Err.Hint = "every port that the nodes listen on leads to one volume, or in the modes http and tls to one for each name: choose another one (`flockctl route list` shows all)"
			return &bad
		}
	}
	return nil
}

// giveUpTaken takes routes from a volume that comes back from the trash, and from its
// containers, if their ports have been given to others meanwhile. It returns that in
// words, "" if it was not so.
func (t *txn) giveUpTaken(v *Volume) string {
	var lost []string
	keep := func(routes []volume.Route, taker func(volume.Route) (what, who string)) (kept []volume.Route) {
		for _, r := range routes {
			if what, who := taker(r); who != "" {
				lost = append(lost, fmt.Sprintf("%s, which is that of %s by now", what, who))
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
