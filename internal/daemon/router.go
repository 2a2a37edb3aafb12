package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/proxy"
)

const (
	// routeGap is the shortest time between two looks at the routes, and routeSoon while a
	// server is on its way here. routeEvery is how often they are looked at, and the proxy
	// told again, without a reason.
	routeGap   = 50 * time.Millisecond
	routeSoon  = 5 * time.Millisecond
	routeEvery = 5 * time.Second
	// proxyTimeout is how long the proxy may take for an answer.
	proxyTimeout = 5 * time.Second
	// quietPatience is how long the clients of a route have to come to a quiet point before
	// a move, where the timers do not say. What they say meanwhile waits, so it has to be well
	// below what a request may wait.
	quietPatience = 4 * time.Second
	// probePatience is how long a server is waited for that does not answer as its mode
	// says. Then it gets its clients all the same: perhaps it is the probe that is wrong.
	probePatience = 30 * time.Second
	// parkingFirst is how long clients may take to come to a quiet point before they are looked at to
	// be named, and parkingAgain the time between two looks.
	parkingFirst = 250 * time.Millisecond
	parkingAgain = time.Second
	// openRetry is between two attempts to tell the cluster that clients go on.
	openRetry = time.Second
)

// router keeps this node's proxy told of the cluster's routes, and pauses those whose
// servers are about to go.
type router struct {
	m      *member
	proxy  proxy.Controller
	probe  func(ctx context.Context, mode proxy.Mode, announce proxy.Announce, server string) error
	port   string
	opened func(attempt string, pause time.Duration, times state.MoveTimes) // told of each volume that moved to this node
	wake   chan struct{}
	probes sync.WaitGroup

	// acting is held from when the state is read until what follows from it is done, and
	// while routes are paused for a move: nothing is resumed by a state of before it.
	acting sync.Mutex
	told   proxy.Config // last; of the loop alone, as is toldAt
	toldAt time.Time
	// hurries: a server here is not yet led to. Of the loop alone, as are seen and stirred:
	// something may have changed since that.
	hurries bool
	seen    lastUsers
	stirred bool

	mu       sync.Mutex
	stopping map[string]int      // routes whose servers are being stopped, and by how many
	ready    map[string]served   // by route: the server that has answered, or may as well have
	news     chan struct{}       // closed at the next server
	probing  map[string]*probing // by route
	problems []string
	answers  bool                       // the proxy does
	version  string                     // of its program
	telling  map[volume.ID]volume.Epoch // of which it is being told that their clients go on
}

func newRouter(m *member, p Parts) *router {
	return &router{
		m: m, proxy: p.Proxy, probe: p.Probe, port: p.ProxyPort, opened: p.Metrics.arrived, wake: make(chan struct{}, 1),
		stopping: map[string]int{}, ready: map[string]served{}, news: make(chan struct{}), probing: map[string]*probing{}, telling: map[volume.ID]volume.Epoch{},
	}
}

// ring has the routes looked at soon.
func (r *router) ring() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run tells the proxy whenever something may have changed, until ctx ends. What it does
// not hear it is told again: whichever of the two was restarted.
func (r *router) run(ctx context.Context) error {
	defer r.probes.Wait()
	every := time.NewTicker(routeEvery)
	defer every.Stop()
	for ctx.Err() == nil {
		changed := r.m.cluster.Changed()
		select {
		case <-r.wake:
			r.stirred = true
		default:
		}
		r.note(r.step(ctx))
		r.stirred = false
		if r.hurries {
			pause(ctx, routeSoon)
		} else {
			r.m.rest(ctx, routeGap, routeSoon)
		}
		select {
		case <-changed:
		case <-r.wake:
			r.stirred = true
		case <-every.C:
			r.stirred = true
		case <-ctx.Done():
		}
	}
	return nil
}

// seenFor is how long a list of containers is good enough for a newer state, unless an engine, or
// anybody here, has said meanwhile that something has changed: clients wait for the state that says that
// their container has come up, and the list that showed where it is was made just before.
const seenFor = time.Second

// lastUsers is such a list; zero: there is none.
type lastUsers struct {
	list []container.Use
	at   time.Time // when it was asked for
}

// get is the list, by ask where it is not good enough. stirred: somebody has said that something has
// changed.
func (l *lastUsers) get(now time.Time, stirred bool, ask func() ([]container.Use, error)) ([]container.Use, error) {
	if !stirred && !l.at.IsZero() && now.Sub(l.at) < seenFor {
		return l.list, nil
	}
	list, err := ask()
	*l = lastUsers{}
	if err == nil {
		*l = lastUsers{list, now}
	}
	return list, err
}

// step looks once and tells the proxy what has changed. It returns what is wrong, in
// sentences.
func (r *router) step(life context.Context) (problems []string) {
	s := r.m.cluster.State()
	if s.Cluster() == nil || s.Node(r.m.self) == nil {
		return nil
	}
	here, known := r.look(life, s)
	r.acting.Lock()
	defer r.acting.Unlock()
	ctx, cancel := context.WithTimeout(life, proxyTimeout)
	defer cancel()
	s = r.m.cluster.State()
	if known {
		r.forgetGone(here)
	}
	status, err := r.proxy.Status(ctx)
	r.mu.Lock()
	r.answers, r.version = err == nil, status.Version
	r.mu.Unlock()
	if err != nil {
		r.told = proxy.Config{}
		if len(s.Routes()) == 0 {
			return nil // nothing is missed
		}
		return []string{fmt.Sprintf("routes are not served as they should be on this node: %v", err)}
	}
	r.hurries = awaits(s, r.m.self)
	plan := planRoutes(routeView{
		Self: r.m.self, State: s, Port: r.port, Settings: s.Cluster().Settings, Here: here, Known: known, Proxy: status, NoHosts: !status.Hosts, Stopping: r.isStopping(), Ready: r.isReady,
	})
	for _, id := range slices.Sorted(maps.Keys(plan.Problems)) {
		problems = append(problems, plan.Problems[id])
	}
	for _, st := range status.Routes {
		if st.Problem != "" {
			key := volume.RouteKey{Listen: int(st.Listen), Name: st.Name}
			problems = append(problems, fmt.Sprintf("the route on %s: %s", key.At(), st.Problem))
		}
	}
	for _, id := range plan.Pause {
		switch err := r.proxy.Pause(ctx, id, 0); {
		case errors.Is(err, proxy.ErrNoRoute): // it is told of it below
			r.ring()
		case err != nil:
			return append(problems, fmt.Sprintf("route %s could not be paused: %v", id, err))
		default:
			r.ring()
		}
	}
	if now := r.m.now(); !reflect.DeepEqual(plan.Config, r.told) || now.Sub(r.toldAt) >= routeEvery {
		if err := r.proxy.Apply(ctx, plan.Config); err != nil {
			r.told = proxy.Config{}
			return append(problems, fmt.Sprintf("routes are not served as they should be on this node: %v", err))
		}
		r.told, r.toldAt = plan.Config, now
	}
	for _, to := range plan.Resume {
		if err := r.proxy.Resume(ctx, to.ID, to.Server); err != nil && !errors.Is(err, proxy.ErrNoRoute) {
			plan.Open = nil
			problems = append(problems, fmt.Sprintf("route %s could not be resumed: %v", to.ID, err))
		}
	}
	r.hurries = r.hurries || len(plan.Probe) > 0
	for _, to := range plan.Probe {
		r.begin(life, to)
	}
	for _, id := range plan.Open {
		r.tell(life, s.Volume(id))
	}
	return problems
}

// tell has the cluster know, in the background, that the clients of a volume that moved here
// go on from now.
func (r *router) tell(ctx context.Context, v *state.Volume) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.telling[v.ID] == v.Epoch {
		return
	}
	r.telling[v.ID] = v.Epoch
	opened := time.Now()
	took := r.m.arrivals.opened(v.ID, v.Epoch, opened)
	r.probes.Go(func() {
		for ctx.Err() == nil {
			// An answer, whatever it is, ends it: it is told, or the volume has moved on.
			_, err := r.m.propose(ctx, state.OpenRoutes{ID: v.ID, Epoch: v.Epoch, Ago: time.Since(opened), Arrival: took})
			if err == nil || volume.CodeOf(err) == volume.CodeDenied {
				r.count(v)
				break
			}
			pause(ctx, openRetry)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.telling[v.ID] == v.Epoch {
			delete(r.telling, v.ID)
		}
	})
}

// count has the metrics show how long the clients of a volume waited, once it is known.
func (r *router) count(v *state.Volume) {
	now := r.m.cluster.State().Volume(v.ID)
	if now != nil && now.Epoch == v.Epoch && now.Moved != nil && now.Moved.Paused() > 0 {
		r.opened(now.Moved.Attempt, now.Moved.Paused(), now.Moved.Times)
	}
}

// look lists the containers that may be servers. Only who owns routes asks the engine.
func (r *router) look(ctx context.Context, s *state.State) (out []servingContainer, known bool) {
	owns := slices.ContainsFunc(s.Routes(), func(rt state.Route) bool { return rt.Volume.Placement.Primary == r.m.self })
	if !owns || r.m.use == nil || r.m.use.engine == nil {
		return nil, true
	}
	users, err := r.seen.get(time.Now(), r.stirred, func() ([]container.Use, error) {
		ctx, cancel := context.WithTimeout(ctx, engineTimeout)
		defer cancel()
		return r.m.use.engine.Users(ctx)
	})
	if err != nil {
		return nil, false
	}
	for _, u := range users {
		if u.State != container.Running {
			continue
		}
		h := hereContainer{Name: u.Name, Volumes: volumesOf(s, u)}
		if len(h.Volumes) > 0 {
			out = append(out, servingContainer{Name: u.Name, Record: recordKeyOf(&h), Volumes: h.Volumes, Ports: u.Ports})
		}
	}
	return out, true
}

// probing is one server being asked whether it is ready.
type probing struct {
	to     routeServer
	cancel context.CancelFunc
}

// begin probes a server in the background, until ctx ends or another is to be asked for that route. The loop
// goes on when it has answered.
func (r *router) begin(ctx context.Context, to routeServer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.probing[to.ID]; p != nil && p.to == to {
		return
	}
	r.giveUp(to.ID)
	pctx, cancel := context.WithTimeout(ctx, probePatience)
	p := &probing{to, cancel}
	r.probing[to.ID] = p
	r.probes.Go(func() {
		defer cancel()
		err := r.probe(pctx, to.Mode, to.Announce, to.Server)
		r.mu.Lock()
		counts := r.probing[to.ID] == p // or it may be of a server that was stopped, at the same address
		if counts {
			delete(r.probing, to.ID)
			r.ready[to.ID] = served{to.Server, err == nil}
			close(r.news)
			r.news = make(chan struct{})
		}
		r.mu.Unlock()
		if err != nil && counts && ctx.Err() == nil {
			r.m.log.Warn("a server does not answer as its route's mode says, and gets its clients all the same", "route", to.ID, "server", to.Server, "err", err)
		}
		r.ring()
	})
}

// giveUp asks a route's server no more. r.mu is held.
func (r *router) giveUp(route string) {
	if p := r.probing[route]; p != nil {
		p.cancel()
		delete(r.probing, route)
	}
}

// forgetGone drops what was found out about servers that do not run any more: whoever comes
// after them has to answer for itself.
func (r *router) forgetGone(here []servingContainer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	gone := func(server served) bool {
		host := server.host()
		return host == "" || !slices.ContainsFunc(here, func(c servingContainer) bool { return c.Ports.Address == host })
	}
	maps.DeleteFunc(r.ready, func(_ string, server served) bool { return gone(server) })
	for route, p := range r.probing {
		if gone(served{server: p.to.Server}) {
			r.giveUp(route)
		}
	}
}

func (r *router) isReady(id, server string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ready[id].server == server
}

// served is a server of a route.
type served struct {
	server   string // as ip:port
	answered bool   // its probe; else it was waited for in vain
}

// host is its address, "" for none.
func (s served) host() string {
	host, _, err := net.SplitHostPort(s.server)
	if err != nil {
		return ""
	}
	return host
}

// in says that it is in a container that is reached so. With its node's network it has the
// address of others, too, and only the port that it names tells.
func (s served) in(at container.Ports) bool {
	host, text, err := net.SplitHostPort(s.server)
	if err != nil || host == "" || host != at.Address {
		return false
	}
	port, err := strconv.Atoi(text)
	return err == nil && (!net.ParseIP(host).IsLoopback() || slices.Contains(at.Exposed, port))
}

// routedTo says that the server of a route may be in the container of a record.
func routedTo(rt state.Route, rec *state.Container) bool {
	if rt.Container != nil {
		return rt.Container.RecordKey() == rec.RecordKey()
	}
	return slices.Contains(ids(rec.Volumes), rt.Volume.ID)
}

// serves says whether the server of a route of a record has answered a probe in a container that
// is reached so, and whether one has of a route of these volumes whose clients are made to wait.
// changed is closed when that may be otherwise.
func (r *router) serves(rec *state.Container, at container.Ports, volumes map[volume.ID]bool) (own, others bool, changed <-chan struct{}) {
	if r == nil {
		return false, false, nil
	}
	routes := r.m.cluster.State().NodeRoutes()
	r.mu.Lock()
	defer r.mu.Unlock()
	own, others = answeredOf(r.ready, routes, r.m.self, rec, at, volumes)
	return own, others, r.news
}

// answeredOf decides serves from the servers by route. One that was waited for in vain gets its
// clients, but has not answered.
func answeredOf(ready map[string]served, routes []state.NodeRoute, self volume.NodeID, rec *state.Container, at container.Ports, volumes map[volume.ID]bool) (own, others bool) {
	for _, rt := range routes {
		server := ready[routeID(rt.Route)]
		if rt.Owner != self || !server.answered {
			continue
		}
		own = own || routedTo(rt.Route, rec) && server.in(at)
		others = others || rt.Moving && volumes[rt.Volume.ID]
	}
	return own, others
}

func (r *router) isStopping() map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]bool{}
	for id := range r.stopping {
		out[id] = true
	}
	return out
}

// quiesce pauses the routes whose servers stop when the containers of a volume do, and
// returns once these have not one connection through this proxy, and since when they are
// paused; zero when there are none. While the caller stops them, until it calls done,
// nothing resumes the routes. An error names who is busy, and everything goes on. Until then
// waits is told now and then whom it waits for.
func (r *router) quiesce(ctx context.Context, id volume.ID, waits func(who string)) (paused time.Time, done func(), err error) {
	r.acting.Lock()
	routes := stopsWith(r.m.cluster.State(), r.m.self, id) // not before: the loop may have opened another one
	r.mu.Lock()
	for _, rt := range routes {
		// Who comes back is another process, even at the same address.
		delete(r.ready, routeID(rt.Route))
		r.giveUp(routeID(rt.Route))
		r.stopping[routeID(rt.Route)]++
	}
	r.mu.Unlock()
	pctx, cancel := context.WithTimeout(ctx, proxyTimeout)
	if len(routes) > 0 {
		paused = r.pausedSince(pctx, routes)
	}
	for _, rt := range routes {
		if err = r.proxy.Pause(pctx, routeID(rt.Route), 0); err != nil && !errors.Is(err, proxy.ErrNoRoute) {
			err = fmt.Errorf("the route on %s cannot be paused: %w", rt.Key().At(), err)
			break
		}
		err = nil
	}
	cancel()
	r.acting.Unlock()
	done = func() {
		r.mu.Lock()
		for _, rt := range routes {
			id := routeID(rt.Route)
			if r.stopping[id]--; r.stopping[id] == 0 {
				delete(r.stopping, id)
			}
		}
		r.mu.Unlock()
		r.ring()
	}
	if err == nil && len(routes) > 0 {
		wctx, stop := context.WithCancel(ctx)
		var watch sync.WaitGroup
		watch.Go(func() { r.watchQuiet(wctx, routes, waits) })
		err = r.quiet(ctx, routes)
		stop()
		watch.Wait()
	}
	if err != nil {
		r.goOn(ctx, routes)
		done()
		return paused, nil, err
	}
	return paused, done, nil
}

// pausedSince is since when the clients of these routes wait if they are paused now: flockd
// may have been started again since it paused them.
func (r *router) pausedSince(ctx context.Context, routes []state.NodeRoute) time.Time {
	since := time.Now()
	status, err := r.proxy.Status(ctx)
	if err != nil {
		return since // nor can they be paused
	}
	for _, rt := range routes {
		now, _ := status.Route(routeID(rt.Route))
		if p := now.Paused; !rt.Paused && !p.IsZero() && now.Owner == string(rt.Owner) && now.Epoch == uint64(rt.Epoch) && p.Before(since) {
			since = p
		}
	}
	return since
}

// watchQuiet tells whom the pause of these routes waits for, until ctx ends. Most are quiet before
// it looks for the first time.
func (r *router) watchQuiet(ctx context.Context, routes []state.NodeRoute, waits func(who string)) {
	for rest := parkingFirst; ; rest = parkingAgain {
		pause(ctx, rest)
		if ctx.Err() != nil {
			return
		}
		sctx, cancel := context.WithTimeout(ctx, proxyTimeout)
		status, err := r.proxy.Status(sctx)
		cancel()
		if err != nil {
			continue // whoever waits for it says so
		}
		var busy []proxy.Session
		for _, rt := range routes {
			now, _ := status.Route(routeID(rt.Route))
			busy = append(busy, now.Busy...)
		}
		if ctx.Err() == nil {
			waits(waitsFor(busy, time.Now()))
		}
	}
}

// quiet waits for all of these routes. Those that say so are cut when their time is over.
func (r *router) quiet(ctx context.Context, routes []state.NodeRoute) error {
	qctx, cancel := context.WithTimeout(ctx, r.m.quietFor())
	defer cancel()
	errs := make([]error, len(routes))
	var asked sync.WaitGroup
	for i, rt := range routes {
		asked.Go(func() {
			id := routeID(rt.Route)
			err := r.proxy.Quiet(qctx, id)
			busy := (*proxy.Busy)(nil)
			if errors.As(err, &busy) && rt.Cut && ctx.Err() == nil {
				r.m.log.Warn("connections of a route are cut: they did not come to an end", "port", rt.Key().String(), "connections", len(busy.Sessions))
				cctx, cancel := context.WithTimeout(ctx, proxyTimeout)
				defer cancel()
				if err = r.proxy.Cut(cctx, id); err == nil {
					err = r.proxy.Quiet(cctx, id)
				}
			}
			switch {
			case errors.Is(err, proxy.ErrNoRoute):
			case errors.As(err, &busy):
				errs[i] = errors.New(blockers(rt, busy.Sessions))
			case err != nil:
				errs[i] = fmt.Errorf("nobody knows whether the route on %s is quiet: %w", rt.Key().At(), err)
			}
		})
	}
	asked.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// goOn resumes routes whose servers are not stopped after all. What fails is done by the
// loop, as soon as the state says that nothing moves.
func (r *router) goOn(ctx context.Context, routes []state.NodeRoute) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), proxyTimeout)
	defer cancel()
	r.acting.Lock()
	defer r.acting.Unlock()
	for _, rt := range routes {
		if rt.Paused {
			continue
		}
		if err := r.proxy.Resume(ctx, routeID(rt.Route), ""); err != nil && !errors.Is(err, proxy.ErrNoRoute) {
			r.m.log.Warn("a route cannot be resumed yet", "port", rt.Key().String(), "err", err)
		}
	}
}

// note keeps what is wrong for the node's report.
func (r *router) note(problems []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(problems, r.problems) {
		for _, p := range problems {
			r.m.log.Warn("a route is not served as it should be", "problem", p)
		}
	}
	r.problems = problems
}

func (r *router) report(rep *volume.Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rep.Problems, rep.Proxy = append(rep.Problems, r.problems...), r.answers
	if p := outdatedProxy(r.version, r.m.version); p != "" {
		rep.Problems = append(rep.Problems, p)
	}
}

// outdatedProxy says that the proxy is not of our version: an upgrade was left half-way.
func outdatedProxy(is, ours string) string {
	if is == "" || is == ours {
		return ""
	}
	return fmt.Sprintf("the proxy is of version %s, and flockd of %s; `systemctl reload flockd-proxy` has one of this version take over", is, ours)
}

// volumesOf are the volumes of ours that a container mounts, in order.
func volumesOf(s *state.State, u container.Use) (out []volume.ID) {
	for _, mount := range u.Volumes {
		if v := s.VolumeByName(mount.Volume); v != nil {
			out = append(out, v.ID)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
