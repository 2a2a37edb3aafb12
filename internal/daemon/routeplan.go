package daemon

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/proxy"
)

// routeView is all that is decided from what this node's proxy is told.
type routeView struct {
	Self  volume.NodeID
	State *state.State
	// Port is where the proxies listen for one another.
	Port string
	// Settings have the bounds of what waits.
	Settings state.Settings
	// Here are the containers with volumes that this node's engine runs. Known is false
	// when it does not answer: then servers stay where they are.
	Here  []servingContainer
	Known bool
	// Proxy is what the proxy says; Stopping are routes whose server is just being stopped,
	// and Ready says that a server has answered a probe.
	Proxy    proxy.Status
	NoHosts  bool // it is of a version that knows no routes with names
	Stopping map[string]bool
	Ready    func(id, server string) bool
}

// servingContainer is a container that runs here and may be the server of routes.
type servingContainer struct {
	Name    string
	Record  string // key that its record has or would have
	Volumes []volume.ID
	Ports   container.Ports
}

// routePlan is what the proxy is to be told, and what to do before and after that.
type routePlan struct {
	Pause  []string // before
	Config proxy.Config
	Resume []routeServer // after
	Probe  []routeServer // servers that nobody has seen to answer yet
	// Open are volumes that have moved here and whose routes lead to their servers after that.
	Open []volume.ID
	// Problems are sentences by route.
	Problems map[string]string

	speaks map[string]routeServer // by server: a route of this node's whose mode knows its protocol
}

// routeServer is where a route is to lead.
type routeServer struct {
	ID       string
	Mode     proxy.Mode
	Announce proxy.Announce
	Server   string
}

// routeID names a route in the cluster. Another mode is another route: what a gate has
// followed in one protocol means nothing in another. Of several on one port it is the first
// name that tells.
func routeID(r state.Route) string {
	id := fmt.Sprintf("%s-%d-%s", r.Volume.ID, r.Listen, r.Mode)
	if name := r.Key().Name; name != "" {
		id += "-" + name
	}
	return id
}

func announceOf(version int) proxy.Announce {
	if version == 0 {
		return proxy.AnnounceNone
	}
	return proxy.Announce(fmt.Sprintf("v%d", version))
}

// planRoutes decides it. Where a route leads is known to every node from the state; where
// its server is, to its owner alone, from the engine.
//
//	owner, by the state        the server            the gate
//	settled                    runs and has answered leads to it; is resumed if it was paused for a move
//	settled                    does not run          leads nowhere: who comes waits
//	containers are stopped     any                   as it is: paused, and nobody resumes it
//	containers are starting    any                   leads nowhere: nothing may reach a server that may yet go back
//	paused by an operator      any                   paused
func planRoutes(v routeView) routePlan {
	p := routePlan{Config: proxy.Config{Node: string(v.Self), Waiting: v.Settings.HoldNode}, Problems: map[string]string{}, speaks: map[string]routeServer{}}
	addrs := map[volume.NodeID]string{}
	for n := range v.State.Nodes() {
		if host, _, err := net.SplitHostPort(n.Addr); err == nil {
			addrs[n.ID] = net.JoinHostPort(host, v.Port)
		}
		if n.ID != v.Self && !n.Lost {
			p.Config.Members = append(p.Config.Members, string(n.ID))
		}
	}
	for _, r := range v.State.NodeRoutes() {
		out := proxy.Route{
			ID: routeID(r.Route), Volume: r.Volume.Name, Listen: uint16(r.Listen), Port: uint16(r.Port), Mode: proxy.Mode(r.Mode),
			Hosts: r.Hosts(), Announce: announceOf(r.ProxyProtocol), Owner: string(r.Owner), OwnerAddr: addrs[r.Owner], Epoch: uint64(r.Epoch), Limits: limitsOf(v.Settings),
		}
		if r.TLS || r.PassTLS || r.Auth {
			out.Postgres = &proxy.RoutePostgres{TLS: r.TLS, PassTLS: r.PassTLS, Auth: r.Auth}
		}
		if len(out.Hosts) > 0 && v.NoHosts {
			p.Problems[out.ID] = v.nameless(r)
			continue
		}
		if r.Owner == v.Self {
			v.own(&p, &out, r)
		}
		p.Config.Routes = append(p.Config.Routes, out)
	}
	p.askAlike()
	v.opened(&p)
	return p
}

// askAlike has a server asked for routes of modes that know no protocol as for a route of one that
// does. All that the former could ask is whether it accepts connections, and one that does may yet
// refuse what is said on them: Redis, while it loads.
func (p *routePlan) askAlike() {
	for i, to := range p.Probe {
		if as, ok := p.speaks[to.Server]; ok && !knows(to.Mode) {
			p.Probe[i].Mode, p.Probe[i].Announce = as.Mode, as.Announce
		}
	}
}

// knows says that a mode follows a protocol.
func knows(m proxy.Mode) bool { return m != proxy.TCP && m != proxy.TLS }

// nameless says what becomes of a route with names where the proxy knows none: a route of the
// port that has none serves everybody.
func (v routeView) nameless(r state.NodeRoute) string {
	who := "nobody is served on " + r.Key().At() + " of this node"
	for _, other := range v.State.NodeRoutes() {
		if other.Listen == r.Listen && other.Host == "" {
			who = fmt.Sprintf("on this node the clients of %s are served by volume %q, whose route on the port has no names", r.Key().At(), other.Volume.Name)
		}
	}
	return who + ": its proxy is of a version that knows no names; have the new one take over: systemctl reload flockd-proxy"
}

// opened finds the volumes whose clients go on once the plan is carried out: those of their
// own routes, and of the other volumes of their containers.
func (v routeView) opened(p *routePlan) {
	leads := func(r state.NodeRoute) bool {
		id := routeID(r.Route)
		now, _ := v.Proxy.Route(id)
		shut := now.Owner == string(r.Owner) && now.Epoch == uint64(r.Epoch) && !now.Paused.IsZero()
		resumed := slices.ContainsFunc(p.Resume, func(to routeServer) bool { return to.ID == id })
		return r.Paused || slices.ContainsFunc(p.Config.Routes, func(out proxy.Route) bool {
			return out.ID == id && out.Server != "" && (!shut || resumed)
		})
	}
	for vol := range v.State.Volumes() {
		m := vol.Moved
		if m == nil || m.Times.Held == 0 || !m.Opened.IsZero() || vol.Placement.Primary != v.Self || len(v.State.Starting(vol)) > 0 {
			continue
		}
		if !slices.ContainsFunc(stopsWith(v.State, v.Self, vol.ID), func(r state.NodeRoute) bool { return r.Moving || !leads(r) }) {
			p.Open = append(p.Open, vol.ID)
		}
	}
}

// own decides about the gate of a route that this node owns.
func (v routeView) own(p *routePlan, out *proxy.Route, r state.NodeRoute) {
	now, _ := v.Proxy.Route(out.ID)
	if now.Owner != out.Owner || now.Epoch != out.Epoch {
		now = proxy.RouteStatus{} // of a time before
	}
	paused := !now.Paused.IsZero()
	if r.Paused && !paused {
		p.Pause = append(p.Pause, out.ID)
	}
	server, problem := v.server(r)
	if _, ok := p.speaks[server]; !ok && server != "" && knows(out.Mode) {
		p.speaks[server] = routeServer{out.ID, out.Mode, out.Announce, server}
	}
	// It has to answer before anything reaches it: one that is new here, and one that was
	// stopped for a move which was given up. While it is on its way here that is only found
	// out.
	unproven := server != "" && (server != now.Server || paused && !r.Paused && !r.Moving) && !v.Stopping[out.ID] && !v.Ready(out.ID, server)
	if unproven && v.Known {
		p.Probe = append(p.Probe, routeServer{out.ID, out.Mode, out.Announce, server})
	}
	if r.Moving || v.Stopping[out.ID] || !v.Known || unproven && server == now.Server {
		out.Server = now.Server
		return
	}
	if problem != "" {
		p.Problems[out.ID] = problem
	}
	switch {
	case server == "" || unproven:
	case r.Paused && !paused && now.Server == "":
		// A gate that is to be paused leads nowhere before it is.
	default:
		out.Server = server
		if paused && !r.Paused {
			p.Resume = append(p.Resume, routeServer{out.ID, out.Mode, out.Announce, server})
		}
	}
}

// server of a route that this node owns, as ip:port; "" when it does not run. The problem
// is a sentence about one that runs and cannot be it.
func (v routeView) server(r state.NodeRoute) (server, problem string) {
	var all []servingContainer
	for _, c := range v.Here {
		if r.Container != nil && c.Record == r.Container.RecordKey() || r.Container == nil && slices.Contains(c.Volumes, r.Volume.ID) {
			all = append(all, c)
		}
	}
	if len(all) > 1 {
		exposing := slices.DeleteFunc(slices.Clone(all), func(c servingContainer) bool { return !slices.Contains(c.Ports.Exposed, r.Port) })
		if len(exposing) != 1 {
			var names []string
			for _, c := range all {
				names = append(names, c.Name)
			}
			return "", fmt.Sprintf("the route on %s leads nowhere: containers %s use volume %s, and their images do not say which one has port %d; give the container the labels %sNAME.listen and .port instead",
				r.Key().At(), strings.Join(names, " and "), r.Volume.Name, r.Port, volume.LabelRoute)
		}
		all = exposing
	}
	switch {
	case len(all) == 0:
		return "", ""
	case all[0].Ports.Address == "":
		return "", fmt.Sprintf("the route on %s leads nowhere: container %s has no address of its own on this node", r.Key().At(), all[0].Name)
	}
	return net.JoinHostPort(all[0].Ports.Address, strconv.Itoa(r.Port)), ""
}

// stopsWith are the routes of this node whose server may stop when the containers of a
// volume are stopped: those of all volumes that go along. Outermost first would need to be
// known; they are paused together.
func stopsWith(s *state.State, self volume.NodeID, id volume.ID) (out []state.NodeRoute) {
	with := goingWith(s, self, id).volumes
	for _, r := range s.NodeRoutes() {
		if r.Owner == self && with[r.Volume.ID] {
			out = append(out, r)
		}
	}
	return out
}

// blockers says who keeps a route from being quiet, the first few by name.
func blockers(r state.NodeRoute, sessions []proxy.Session) string {
	who := firstOf(sessions, func(s proxy.Session) string {
		return fmt.Sprintf("%s (%s)", s.Client, cmp.Or(s.Busy, string(s.State)))
	})
	return fmt.Sprintf("the route on %s has connections that cannot be moved now: %s", r.Key().At(), who)
}

// waitsFor says whom a pause waits for, while it does.
func waitsFor(sessions []proxy.Session, now time.Time) string {
	return head(firstOf(sessions, func(s proxy.Session) string {
		return fmt.Sprintf("%s (%s, connected for %s)", s.Client, cmp.Or(s.Busy, string(s.State)), max(now.Sub(s.Since), 0).Round(time.Second))
	}), maxWaitsFor)
}

// maxWaitsFor is how much of that goes into a report.
const maxWaitsFor = 500

// firstOf names the sessions that have been there for longest, and how many more there are.
func firstOf(sessions []proxy.Session, name func(proxy.Session) string) string {
	const most = 3
	var who []string
	sessions = slices.Clone(sessions)
	slices.SortStableFunc(sessions, func(a, b proxy.Session) int { return a.Since.Compare(b.Since) })
	for _, s := range sessions[:min(most, len(sessions))] {
		who = append(who, name(s))
	}
	if more := len(sessions) - most; more > 0 {
		who = append(who, fmt.Sprintf("%d more", more))
	}
	return strings.Join(who, ", ")
}
