package daemon

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/cluster"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/proxy"
)

// NodeRoutes implements api.Peer.
func (m *member) NodeRoutes(ctx context.Context) ([]api.NodeRoute, error) {
	if m.router == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, proxyTimeout)
	defer cancel()
	status, err := m.router.proxy.Status(ctx)
	if err != nil {
		return nil, volume.Errorf(volume.CodeUnavailable, "%v", err)
	}
	var out []api.NodeRoute
	for _, r := range status.Routes {
		out = append(out, api.NodeRoute{
			Listen: int(r.Listen), Name: r.Name, Sessions: r.Sessions, Parked: r.Parked, Held: r.Held, Problem: r.Problem,
			Server: r.Server, Paused: !r.Paused.IsZero(), Pinned: m.sessions(r.Pinned), Busy: m.sessions(r.Busy),
		})
		if m.linker != nil {
			out[len(out)-1].Linked = m.linker.of(int(r.Listen))
		}
	}
	return out, nil
}

// sessions of clients that came to this node or, at an owner, to any.
func (m *member) sessions(all []proxy.Session) (out []api.RouteSession) {
	v := m.view()
	for _, s := range all {
		node := v.ref(cmp.Or(volume.NodeID(s.Node), m.self))
		out = append(out, api.RouteSession{Node: node, Client: s.Client, Since: s.Since, Why: cmp.Or(s.Busy, string(s.State))})
	}
	return out
}

// withoutRepeats adds sessions that two nodes may tell of: the one that a client came to,
// and the owner.
func withoutRepeats(to, more []api.RouteSession) []api.RouteSession {
	for _, s := range more {
		if !slices.ContainsFunc(to, func(t api.RouteSession) bool { return t.Node.ID == s.Node.ID && t.Client == s.Client }) {
			to = append(to, s)
		}
	}
	return to
}

// Routes implements api.Backend. All nodes are asked at the same time, none for longer than
// its report would be believed.
func (m *member) Routes(ctx context.Context) (api.Routes, error) {
	s := m.cluster.State()
	said := map[volume.NodeID][]api.NodeRoute{}
	if len(s.Routes()) > 0 {
		said = m.askRoutes(ctx, s)
	}
	return m.view().routes(said), nil
}

// askRoutes is what those nodes say that answer.
func (m *member) askRoutes(ctx context.Context, s *state.State) map[volume.NodeID][]api.NodeRoute {
	ctx, cancel := context.WithTimeout(ctx, m.timers.Stale)
	defer cancel()
	said := map[volume.NodeID][]api.NodeRoute{}
	var mu sync.Mutex
	var asked sync.WaitGroup
	for n := range s.Nodes() {
		asked.Go(func() {
			var got []api.NodeRoute
			var err error
			if n.ID == m.self {
				got, err = m.NodeRoutes(ctx)
			} else {
				got, err = m.client(n.ID).NodeRoutes(ctx)
			}
			if err != nil {
				return // it is named
			}
			mu.Lock()
			defer mu.Unlock()
			said[n.ID] = got
		})
	}
	asked.Wait()
	return said
}

// routes joins the state with what the nodes say.
func (v view) routes(said map[volume.NodeID][]api.NodeRoute) (out api.Routes) {
	for _, r := range v.state.NodeRoutes() {
		x := api.Route{Route: r.Route.Route, Volume: r.Volume.Name, State: api.RouteUnknown}
		if r.Container != nil {
			x.Container = r.Container.Name
		}
		if r.Owner != "" {
			x.Owner = v.ref(r.Owner)
		}
		for n := range v.state.Nodes() {
			i := slices.IndexFunc(said[n.ID], func(nr api.NodeRoute) bool { return nr.Listen == r.Listen && nr.Name == r.Key().Name })
			if i < 0 {
				continue
			}
			nr := said[n.ID][i]
			x.Sessions, x.Parked, x.Held = x.Sessions+nr.Sessions, x.Parked+nr.Parked, x.Held+nr.Held
			x.Pinned, x.Busy = withoutRepeats(x.Pinned, nr.Pinned), withoutRepeats(x.Busy, nr.Busy)
			for _, l := range nr.Linked {
				l.Node = v.ref(n.ID)
				x.Linked = append(x.Linked, l)
			}
			if nr.Problem != "" {
				x.Problems = append(x.Problems, n.Name+": "+nr.Problem)
			}
			if n.ID == r.Owner {
				x.Server = nr.Server
				x.State = api.RouteOpen
				if nr.Server == "" || nr.Paused { // paused by nobody: for a move that was given up
					x.State = api.RouteWaiting
				}
			}
		}
		switch {
		case r.Moving:
			x.State = api.RouteMoving
		case r.Paused:
			x.State = api.RoutePaused
		}
		out.Routes = append(out.Routes, x)
	}
	if len(out.Routes) == 0 {
		return out
	}
	for n := range v.state.Nodes() {
		if _, heard := said[n.ID]; !heard {
			out.Unheard = append(out.Unheard, v.ref(n.ID))
		}
	}
	return out
}

// AddRoute implements api.Backend.
func (m *member) AddRoute(ctx context.Context, ref string, req api.AddRouteRequest) (api.Route, error) {
	r, err := volume.ParseRoute(req.Route)
	if err != nil {
		return api.Route{}, volume.Errorf(volume.CodeInvalid, "route %q: %v", req.Route, err).WithHint("a route is written %s, as in 80:8080/http", volume.RouteForm)
	}
	err = m.changeRoutes(ctx, ref, func(v *state.Volume) ([]volume.Route, error) {
		if slices.Contains(v.Spec.Ports, r) {
			return v.Spec.Ports, nil
		}
		if i := slices.IndexFunc(v.Spec.Ports, func(old volume.Route) bool { return old.Clash(r) != "" }); i >= 0 {
			var all []volume.Route
			for _, other := range m.cluster.State().Routes() {
				all = append(all, other.Route)
			}
			return nil, volume.Errorf(volume.CodeConflict, "volume %q has the route %s already", v.Name, v.Spec.Ports[i]).
				WithHint("remove it first: flockctl route remove %s", v.Spec.Ports[i].Ref(all))
		}
		ports := append(slices.Clone(v.Spec.Ports), r)
		slices.SortFunc(ports, volume.CompareRoutes)
		return ports, nil
	}, func(leader *api.Client, ref string) error {
		_, err := leader.AddRoute(ctx, ref, req)
		return err
	})
	if err != nil {
		return api.Route{}, err
	}
	for _, x := range m.view().routes(nil).Routes {
		if x.Route == r {
			return x, nil
		}
	}
	return api.Route{Route: r, State: api.RouteUnknown}, nil // it was removed since, or nobody has the volume yet
}

// RemoveRoute implements api.Backend.
func (m *member) RemoveRoute(ctx context.Context, ref string) error {
	if _, forwarded := api.Caller(ctx); !forwarded {
		if err := m.catchUp(ctx); err != nil {
			return err
		}
	}
	r, err := m.route(ref)
	switch {
	case err != nil:
		return err
	case r.Container != nil:
		return volume.Errorf(volume.CodeRefused, "the labels of container %q ask for the route on %s", r.Container.Name, r.Key().At()).
			WithHint("make the container again without %sNAME.listen=%d", volume.LabelRoute, r.Listen)
	}
	return m.changeRoutes(ctx, string(r.Volume.ID), func(v *state.Volume) ([]volume.Route, error) {
		return slices.DeleteFunc(slices.Clone(v.Spec.Ports), func(have volume.Route) bool { return have.Key() == r.Key() }), nil
	}, func(leader *api.Client, _ string) error { return leader.RemoveRoute(ctx, ref) })
}

// route is the one that ref means.
func (m *member) route(ref string) (state.Route, error) {
	asked, err := volume.ParseRouteRef(ref)
	if err != nil {
		return state.Route{}, volume.Errorf(volume.CodeInvalid, "%v", err)
	}
	all := m.cluster.State().Routes()
	var plain []volume.Route
	for _, r := range all {
		plain = append(plain, r.Route)
	}
	i, err := asked.Find(plain)
	if err != nil {
		return state.Route{}, err
	}
	return all[i], nil
}

// changeRoutes gives a volume other routes, on the leader, and returns once this node knows.
func (m *member) changeRoutes(ctx context.Context, ref string, change func(*state.Volume) ([]volume.Route, error), forward func(leader *api.Client, ref string) error) error {
	ref, err := m.resolveNow(ctx, ref, live)
	if err != nil {
		return err
	}
	err = m.onLeader(ctx, func(ctx context.Context, leader *api.Client) error {
		if leader != nil {
			return forward(leader, ref)
		}
		err := m.retryChanged(ctx, func() (state.Command, func() bool, error) {
			v := m.cluster.State().Volume(volume.ID(ref))
			if v == nil || !v.Live() {
				return nil, nil, volume.Errorf(volume.CodeNotFound, "no volume %s", ref)
			}
			next := v.Spec
			var err error
			if next.Ports, err = change(v); err != nil {
				return nil, nil, err
			}
			if len(next.Ports) == 0 {
				next.Ports = nil
			}
			stale := func() bool {
				now := m.cluster.State().Volume(v.ID)
				return now != nil && now.Changed != v.Changed
			}
			return state.UpdateSpec{ID: v.ID, Spec: next, Changed: v.Changed}, stale, nil
		})
		if err == nil {
			m.spread(ctx)
		}
		return err
	})
	if err != nil {
		return err
	}
	if _, forwarded := api.Caller(ctx); forwarded {
		return nil
	}
	return m.catchUp(ctx)
}

// PauseRoute implements api.Backend.
func (m *member) PauseRoute(ctx context.Context, ref string, paused bool) error {
	if err := m.catchUp(ctx); err != nil {
		return err
	}
	r, err := m.route(ref)
	if err != nil {
		return err
	}
	return m.asOperator(ctx, state.PauseRoute{Listen: r.Listen, Name: r.Key().Name, Pause: paused})
}

// migrationNotes are what the clients of a volume would notice if it were moved now, and
// what is left behind, where they may wait for as long as limit; 0: as long as it takes.
func (m *member) migrationNotes(ctx context.Context, v *state.Volume, to volume.NodeID, containers []string, limit time.Duration) (notes []string) {
	s := m.cluster.State()
	there, _ := m.view().heard(to) // a node without a copy has not looked yet
	for c := range s.Containers() {
		if c.Node != v.Placement.Primary || !slices.Contains(containers, c.Name) {
			continue
		}
		var foreseen []string // by the node itself, which decides so when it comes to that
		for _, f := range there.Followed {
			if f.Record == c.RecordKey() {
				foreseen = append(foreseen, f.Notes...)
			}
		}
		for _, text := range slices.Concat(s.Bypasses(c), c.Obstacles) {
			if !slices.ContainsFunc(foreseen, func(note string) bool { return strings.HasSuffix(note, text) }) {
				notes = append(notes, fmt.Sprintf("container %s: %s", c.Name, text))
			}
		}
		for _, text := range foreseen {
			notes = append(notes, fmt.Sprintf("container %s: %s", c.Name, text))
		}
	}
	stops := map[volume.RouteKey]bool{}
	for _, r := range stopsWith(s, v.Placement.Primary, v.ID) {
		stops[r.Key()] = true
	}
	if len(stops) == 0 {
		return notes
	}
	if err := slowStop(stopPredicted(v, lastStop{}, nil, time.Time{}), 0, limit, m.hold(), timeLeft(0, m.quietFor())); err != nil && len(containers) > 0 {
		notes = append(notes, err.Error())
	}
	for _, r := range m.view().routes(m.askRoutes(ctx, s)).Routes {
		if !stops[r.Key()] {
			continue
		}
		for _, p := range r.Pinned {
			what := "the migration is given up if it is still there"
			if r.Cut {
				what = "it is cut"
			}
			notes = append(notes, fmt.Sprintf("the connection of %s to %s cannot be moved (%s): %s", p.Client, r.Key().At(), p.Why, what))
		}
		for _, p := range r.Problems {
			notes = append(notes, fmt.Sprintf("the route on %s: %s", r.Key().At(), p))
		}
	}
	return notes
}

// pinned names the clients that would keep a volume from being migrated: those of its routes
// that cannot be parked for as long as they are connected, and are not cut; "" for none. One
// that is in the middle of something is none of them, nor is one whose protocol is not
// followed: that it is busy now does not say that it stays so.
func (m *member) pinned(ctx context.Context, v *state.Volume) string {
	s := m.cluster.State()
	stops := map[volume.RouteKey]state.NodeRoute{}
	for _, r := range stopsWith(s, v.Placement.Primary, v.ID) {
		if mode := proxy.Mode(r.Mode); !r.Cut && mode != proxy.TCP && mode != proxy.TLS {
			stops[r.Key()] = r
		}
	}
	if len(stops) == 0 {
		return ""
	}
	for _, x := range m.view().routes(m.askRoutes(ctx, s)).Routes {
		r, ok := stops[x.Key()]
		if !ok || len(x.Pinned) == 0 {
			continue
		}
		var sessions []proxy.Session
		for _, p := range x.Pinned {
			sessions = append(sessions, proxy.Session{Client: p.Client, Since: p.Since, Busy: p.Why})
		}
		return blockers(r, sessions)
	}
	return ""
}

// understood is a command as every node that is heard of can take it: one of a version
// before routes stops at whatever it does not know, as it has to.
func (m *member) understood(c state.Command) (state.Command, error) { return understood(c, m.unaware) }

func understood(c state.Command, unaware func(of func(volume.Report) bool) string) (state.Command, error) {
	if hasHosts(c) {
		if who := unaware(knowsHosts); who != "" {
			return nil, volume.Errorf(volume.CodeRefused, "node %s runs a version of flocker that knows no routes with names", who).WithHint("upgrade flocker there first")
		}
	}
	if hasRebalance(c) {
		if who := unaware(knowsRebalance); who != "" {
			return nil, volume.Errorf(volume.CodeRefused, "node %s runs a version of flocker that does not know the setting rebalance", who).WithHint("upgrade flocker there first")
		}
	}
	if hasHold(c) {
		if who := unaware(knowsHold); who != "" {
			return nil, volume.Errorf(volume.CodeRefused, "node %s runs a version of flocker that does not know the setting hold", who).WithHint("upgrade flocker there first")
		}
	}
	if hasHoldMost(c) {
		if who := unaware(knowsHoldMost); who != "" {
			return nil, volume.Errorf(volume.CodeRefused, "node %s runs a version of flocker that does not know the settings hold-service and hold-node", who).WithHint("upgrade flocker there first")
		}
	}
	if v, ok := c.(state.CreateVolume); ok && v.Clone != nil {
		if who := unaware(knowsClones); who != "" {
			return nil, volume.Errorf(volume.CodeRefused, "node %s runs a version of flocker that knows no clones", who).WithHint("upgrade flocker there first")
		}
	}
	if v, ok := c.(state.CreateVolume); ok && (v.Spec.Whole() || strings.Contains(v.Adopt, "/")) {
		if who := unaware(knowsImport); who != "" {
			return nil, volume.Errorf(volume.CodeRefused, "node %s runs a version of flocker that does not know volumes which were imported", who).WithHint("upgrade flocker there first")
		}
	}
	if hasRollback(c) {
		if who := unaware(knowsRollback); who != "" {
			return nil, volume.Errorf(volume.CodeRefused, "node %s runs a version of flocker that does not know rollbacks", who).WithHint("upgrade flocker there first")
		}
	}
	if _, ok := c.(state.HoldSnapshot); ok {
		if who := unaware(knowsHeld); who != "" {
			return nil, volume.Errorf(volume.CodeRefused, "node %s runs a version of flocker that would not keep a snapshot that is held", who).WithHint("upgrade flocker there first")
		}
	}
	if p, ok := c.(state.Promote); ok && p.Missing != nil && unaware(knowsLoss) != "" {
		p.Missing = nil // the failover must not wait for an upgrade, and its event says it in words
		c = p
	}
	if o, ok := c.(state.OpenRoutes); ok && o.Arrival != (state.ArrivalTimes{}) && unaware(knowsArrivals) != "" {
		o.Arrival = state.ArrivalTimes{} // all nodes say the same of it
		c = o
	}
	if v, ok := c.(state.CreateVolume); ok && v.Descends != nil && unaware(knowsDescends) != "" {
		v.Descends = nil // it keeps more than is its own when the original of a clone goes, and nothing less
		c = v
	}
	if t, ok := c.(state.Tell); ok {
		who := ""
		switch {
		case isNews(c):
			who = unaware(knowsRebalance)
		case t.Kind == state.VolumeStarts:
			who = unaware(knowsStarts)
		}
		if who != "" {
			return nil, volume.Errorf(volume.CodeRefused, "node %s runs a version of flocker that does not know the event %s", who, t.Kind).WithHint("upgrade flocker there first")
		}
	}
	who := unaware(knowsRoutes)
	if who == "" {
		return c, nil
	}
	c, ok := forOlder(c)
	if !ok {
		return nil, volume.Errorf(volume.CodeRefused, "node %s runs a version of flocker that knows no routes and no preferences (ports, prefer, avoid, zone)", who).WithHint("upgrade flocker there first")
	}
	return c, nil
}

// forOlder is a command without what that version does not know; ok is false when it makes
// no sense without that. What a container asks for is left out before.
func forOlder(c state.Command) (out state.Command, ok bool) {
	switch c := c.(type) {
	case state.CreateVolume:
		return c, olderSpec(c.Spec)
	case state.UpdateSpec:
		return c, olderSpec(c.Spec)
	case state.PauseRoute, state.OpenRoutes:
		return c, false
	case state.Tell:
		return c, c.Kind != state.VolumeHook && c.Kind != state.VolumePorts && c.Kind != state.VolumePrestart
	case state.StartMigration:
		c.MaxPause = 0
		return c, true
	case state.BeginHandoff:
		c.MaxPause = 0
		return c, true
	case state.CommitHandoff:
		c.Times = state.MoveTimes{}
		return c, true
	}
	return c, true
}

func olderSpec(s volume.Spec) bool {
	return len(s.Ports) == 0 && len(s.Prefer) == 0 && len(s.Avoid) == 0 && s.Zone == ""
}

// hasHosts says that a command tells of a route with names.
func hasHosts(c state.Command) bool {
	hosts := func(r volume.Route) bool { return r.Host != "" }
	switch c := c.(type) {
	case state.CreateVolume:
		return slices.ContainsFunc(c.Spec.Ports, hosts)
	case state.UpdateSpec:
		return slices.ContainsFunc(c.Spec.Ports, hosts)
	case state.PauseRoute:
		return c.Name != ""
	}
	return false
}

// hasRebalance says that a command is one of the setting rebalance, or of what comes of it.
func hasRebalance(c state.Command) bool {
	switch c := c.(type) {
	case state.SetSettings:
		return c.Settings.Rebalance != "" || c.Was != nil && c.Was.Rebalance != ""
	case state.Tell:
		return c.Kind == state.VolumeEvened
	}
	return false
}

// hasHold says that a command is one of the setting hold.
func hasHold(c state.Command) bool {
	s, ok := c.(state.SetSettings)
	return ok && (s.Settings.Hold != 0 || s.Was != nil && s.Was.Hold != 0)
}

// hasHoldMost says that a command is one of the settings hold-service and hold-node.
func hasHoldMost(c state.Command) bool {
	set := func(s state.Settings) bool { return s.HoldService != 0 || s.HoldNode != 0 }
	s, ok := c.(state.SetSettings)
	return ok && (set(s.Settings) || s.Was != nil && set(*s.Was))
}

// hasRollback says that a command begins a rollback. One that has begun is not kept from its
// end: whoever does not know it has stopped at its beginning.
func hasRollback(c state.Command) bool {
	_, ok := c.(state.BeginRollback)
	return ok
}

// isNews says that a command tells of a kind that versions without the setting rebalance do
// not know.
func isNews(c state.Command) bool {
	t, ok := c.(state.Tell)
	return ok && (t.Kind == state.VolumeJoins || t.Kind == state.VolumeWaits)
}

func knowsRoutes(r volume.Report) bool    { return r.Routes }
func knowsHosts(r volume.Report) bool     { return r.Hosts }
func knowsRebalance(r volume.Report) bool { return r.Rebalance }
func knowsLoss(r volume.Report) bool      { return r.Loss }
func knowsStarts(r volume.Report) bool    { return r.Starts }
func knowsHold(r volume.Report) bool      { return r.Hold }
func knowsHoldMost(r volume.Report) bool  { return r.HoldMost }
func knowsClones(r volume.Report) bool    { return r.Clones }
func knowsRollback(r volume.Report) bool  { return r.Rollback }
func knowsHeld(r volume.Report) bool      { return r.HoldSnapshots }
func knowsArrivals(r volume.Report) bool  { return r.Arrivals }
func knowsDescends(r volume.Report) bool  { return r.Descends }
func knowsImport(r volume.Report) bool    { return r.Import }

// knowsSnapshotHooks is of versions that have containers get ready for snapshots.
func knowsSnapshotHooks(r volume.Report) bool { return r.SnapshotHooks }

// knowsPrestart is of versions that know what is told of containers started ahead.
func knowsPrestart(r volume.Report) bool { return r.Prestart }

func (m *member) unaware(of func(volume.Report) bool) string {
	return unaware(m.cluster.State(), m.reports.All(m.now()), m.self, of)
}

// unaware is another node whose own word is that it does not know of something; "" when there
// is none. One that was not heard of is not waited for: if it is such a one it stops when it is
// back, as one that missed an upgrade does.
func unaware(s *state.State, said []cluster.Received, self volume.NodeID, of func(volume.Report) bool) string {
	for _, r := range said {
		if n := s.Node(r.Report.Node); n != nil && n.ID != self && !r.Report.At.IsZero() && !of(r.Report) {
			return n.Name
		}
	}
	return ""
}
