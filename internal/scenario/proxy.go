package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/container/containerfake"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/proxy"
)

// fakeProxy is a machine's `flockd proxy`: it outlives flockd, and what it was told
// outlives itself, but not the machine. Where it differs from the real one: it has no
// connections but those that a script says are busy, and no edges.
type fakeProxy struct {
	machine *Machine

	mu        sync.Mutex
	down      bool
	version   string // of its program
	config    proxy.Config
	paused    map[string]time.Time
	busy      map[string][]proxy.Session // by route, at this node's gate
	taken     map[uint16]bool            // ports that somebody else listens on
	mute      bool                       // servers here answer no probe
	cuts      int                        // connections that were cut
	longest   map[uint16]time.Duration   // of the pauses of each port that are over
	stopTakes map[string]time.Duration   // by container: it takes so long to end
}

var _ proxy.Controller = (*fakeProxy)(nil)

func newFakeProxy(m *Machine) *fakeProxy {
	p := &fakeProxy{machine: m, longest: map[uint16]time.Duration{}, stopTakes: map[string]time.Duration{}}
	p.reset()
	return p
}

// reset is the machine's loss of power.
func (p *fakeProxy) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forget()
	p.taken = map[uint16]bool{}
}

// forget is a process that ends, with its connections and with what it was told. p.mu is
// held.
func (p *fakeProxy) forget() {
	p.config, p.paused, p.busy = proxy.Config{}, map[string]time.Time{}, map[string][]proxy.Session{}
}

// repair ends what a script has done to it and to its clients.
func (p *fakeProxy) repair() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down, p.version, p.mute, p.busy, p.taken = false, "", false, map[string][]proxy.Session{}, map[uint16]bool{}
}

var errProxyDown = errors.New("the proxy does not answer")

// owned is a route that this node owns; p.mu is held.
func (p *fakeProxy) owned(id string) (*proxy.Route, error) {
	if p.down {
		return nil, errProxyDown
	}
	i := slices.IndexFunc(p.config.Routes, func(r proxy.Route) bool { return r.ID == id && r.Owner == p.config.Node })
	if i < 0 {
		return nil, proxy.ErrNoRoute
	}
	return &p.config.Routes[i], nil
}

func (p *fakeProxy) Apply(_ context.Context, c proxy.Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down {
		return errProxyDown
	}
	p.config = c
	p.config.Routes = slices.Clone(c.Routes)
	for id := range p.paused {
		if _, err := p.owned(id); err != nil {
			delete(p.paused, id)
		}
	}
	return nil
}

func (p *fakeProxy) Pause(_ context.Context, id string, _ time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := p.owned(id)
	if err == nil && p.paused[id].IsZero() {
		p.paused[id] = time.Now()
	}
	return err
}

func (p *fakeProxy) Quiet(ctx context.Context, id string) error {
	for {
		p.mu.Lock()
		_, err := p.owned(id)
		busy := slices.Clone(p.busy[id])
		p.mu.Unlock()
		if err != nil || len(busy) == 0 {
			return err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return &proxy.Busy{Sessions: busy}
		}
	}
}

func (p *fakeProxy) Cut(_ context.Context, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := p.owned(id)
	if err == nil {
		p.cuts += len(p.busy[id])
		delete(p.busy, id)
	}
	return err
}

func (p *fakeProxy) Resume(_ context.Context, id, server string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	r, err := p.owned(id)
	if err == nil {
		if since := p.paused[id]; !since.IsZero() {
			p.longest[r.Listen] = max(p.longest[r.Listen], time.Since(since))
		}
		delete(p.paused, id)
		if server != "" {
			r.Server = server
		}
	}
	return err
}

func (p *fakeProxy) Status(context.Context) (proxy.Status, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down {
		return proxy.Status{}, errProxyDown
	}
	out := proxy.Status{Node: p.config.Node, Hosts: true, Version: p.version}
	for _, r := range p.config.Routes {
		st := proxy.RouteStatus{ID: r.ID, Listen: r.Listen, Name: r.Name(), Mode: r.Mode, Epoch: r.Epoch, Owner: r.Owner}
		if r.Owner == p.config.Node {
			st.Pinned = slices.DeleteFunc(slices.Clone(p.busy[r.ID]), func(s proxy.Session) bool { return !s.Pinned })
			st.Server, st.Paused, st.Busy, st.Sessions = r.Server, p.paused[r.ID], p.busy[r.ID], len(p.busy[r.ID])
		}
		if p.taken[r.Listen] {
			st.Problem = fmt.Sprintf("nobody is served on port %d of this node: it is taken", r.Listen)
		}
		out.Routes = append(out.Routes, st)
	}
	return out, nil
}

// probe is daemon.Parts.Probe.
func (p *fakeProxy) probe(ctx context.Context, _ proxy.Mode, _ proxy.Announce, server string) error {
	for {
		p.mu.Lock()
		mute := p.mute
		p.mu.Unlock()
		if !mute && p.machine.serves(server) != "" {
			return nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// serves is the container that runs at an address of this machine; "" for none.
func (m *Machine) serves(server string) string {
	host, _, err := net.SplitHostPort(server)
	if err != nil {
		return ""
	}
	all, err := m.Engine.Users(bystander)
	if err != nil {
		return ""
	}
	for _, u := range all {
		if u.State == container.Running && u.Ports.Address == host {
			return u.Name
		}
	}
	return ""
}

// gates are the routes whose gate on this machine lets what clients say through to a
// server that runs.
func (m *Machine) gates() map[string]string {
	m.proxy.mu.Lock()
	defer m.proxy.mu.Unlock()
	return m.proxy.open()
}

// open is that, with mu held.
func (p *fakeProxy) open() map[string]string {
	open := map[string]string{}
	for _, r := range p.config.Routes {
		if r.Owner == p.config.Node && r.Server != "" && p.paused[r.ID].IsZero() && p.machine.on {
			if c := p.machine.serves(r.Server); c != "" {
				open[r.ID] = c
			}
		}
	}
	return open
}

// request is one that comes to a gate while it is open, and keeps it busy until it is answered: what
// it has done then counts. One whose gate is not open, that fails or is cut off is not answered.
func (p *fakeProxy) request(id string, do func() error) error {
	const client = "10.0.0.7:1"
	p.mu.Lock()
	if p.open()[id] == "" {
		p.mu.Unlock()
		return errors.New("the gate is not open")
	}
	p.busy[id] = append(p.busy[id], proxy.Session{Client: client, Since: time.Now(), State: proxy.Active, Busy: "a request is outstanding"})
	p.mu.Unlock()
	err := do()
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.busy[id], func(s proxy.Session) bool { return s.Client == client })
	if i < 0 {
		return errors.Join(err, errors.New("it was cut off"))
	}
	if p.busy[id] = slices.Delete(p.busy[id], i, i+1); len(p.busy[id]) == 0 {
		delete(p.busy, id)
	}
	return err
}

// oneGate: what clients say reaches one server at most, whatever fails.
func (w *World) oneGate() {
	seen := map[string]string{}
	for _, name := range w.Names() {
		for id := range w.nodes[name].gates() {
			if other := seen[id]; other != "" {
				w.t.Errorf("route %s leads to servers on %s and on %s", id, other, name)
			}
			seen[id] = name
		}
	}
}

// movingEngine sees to it that no container is stopped for a move while its clients are
// not parked.
type movingEngine struct {
	*containerfake.Engine
	machine *Machine
}

func (e movingEngine) StopContainer(ctx context.Context, ref string) error {
	m := e.machine
	m.stops.Add(1)
	if st, err := e.Inspect(ctx, ref); err == nil {
		for id, name := range m.gates() {
			if name == st.Spec.Name {
				m.world.t.Errorf("container %s on %s is stopped while its route %s is open", name, m.Name, id)
			}
		}
		m.proxy.mu.Lock()
		for id, busy := range m.proxy.busy {
			if r, err := m.proxy.owned(id); err == nil && m.serves(r.Server) == st.Spec.Name && len(busy) > 0 {
				m.world.t.Errorf("container %s on %s is stopped under %v", st.Spec.Name, m.Name, busy)
			}
		}
		m.proxy.mu.Unlock()
		m.hooks.stopping(st.Spec.Name)
		m.proxy.mu.Lock()
		takes := m.proxy.stopTakes[st.Spec.Name]
		m.proxy.mu.Unlock()
		time.Sleep(takes)
	}
	return e.Engine.StopContainer(ctx, ref)
}

// proxyStep is a step about routes; ok is false for another step.
//
//	route NODE PORT WORD           until the gate on that node, by its own proxy: leads to container WORD,
//	  is paused, or is nowhere: not on this node, or without a server
//	busy NODE PORT CLIENT          a client has a transaction open at the gate there, which is open; done NODE PORT: they end
//	pinned NODE PORT CLIENT        a client has a session there that cannot be moved; done ends it, too
//	flowing                        until every route leads to the server that its owner has, unless an operator has paused it
//	paused NODE PORT MOST [LEAST]  the longest pause of the gate there that is over lasted so long
//	stop-takes NODE CONTAINER TIME  it takes so long to end when it is stopped for a move
//	cuts NODE N                    so many connections were cut there
//	stops NODE N                   a container was stopped for a move so many times there
//	proxy NODE version V           its program is of that version; flockd's is "scenario"
//	proxy NODE down|up             it does not answer, and does again with what it was told; lost: without
//	mute NODE, unmute NODE         servers there run and do not answer; they do again
//	taken NODE PORT                somebody else listens there
//	run-routed NODE CONTAINER VOLUME LABELS.. [publish=HOST:PORT]  run-following with labels flocker.proxy.KEY=VALUE
//	run-linked NODE CONTAINER [publish=HOST:PORT] [links=LABEL] [host=NAME:ADDRESS]  a container without volumes
//	hosts NODE CONTAINER [NAME:ADDRESS..]  it was made with exactly these
//	noted NODE VOLUME TO TEXT      until a dry run of the migration says so
//	linked NODE PORT [CONTAINER@NODE..]  until the route has exactly these linked to it, without a problem
//	published NODE CONTAINER [HOST:PORT]  its engine publishes exactly this
//	add-route NODE VOLUME ROUTE    flockctl route add; remove-route, pause-route, resume-route NODE PORT
func (w *World) proxyStep(words []string) (ok bool, err error) {
	if words[0] == "flowing" {
		w.flowing()
		return true, nil
	}
	var m *Machine
	if len(words) > 1 {
		m = w.nodes[words[1]]
	}
	if m == nil {
		return false, nil
	}
	if !m.Up() && slices.Contains([]string{"add-route", "remove-route", "pause-route", "resume-route"}, words[0]) {
		return true, errors.New("flockd does not run there")
	}
	at := func() string { return m.routeAt(words[2]) }
	switch words[0] {
	case "route":
		w.Await(strings.Join(words, " "), func() bool { return m.gate(at()) == words[3] })
	case "busy", "pinned":
		id := at()
		if m.gates()[id] == "" {
			return true, errors.New("the gate is not open")
		}
		m.proxy.mu.Lock()
		defer m.proxy.mu.Unlock()
		m.proxy.busy[id] = append(m.proxy.busy[id], proxy.Session{Client: words[3], Since: time.Now(), State: proxy.Active, Busy: "a transaction is open", Pinned: words[0] == "pinned"})
	case "done":
		id := at()
		m.proxy.mu.Lock()
		defer m.proxy.mu.Unlock()
		delete(m.proxy.busy, id)
	case "paused":
		port, err := strconv.ParseUint(words[2], 10, 16)
		if err != nil {
			return true, err
		}
		most, err := time.ParseDuration(words[3])
		if err != nil {
			return true, err
		}
		least, _ := time.ParseDuration(append(words, "1ns")[4])
		m.proxy.mu.Lock()
		defer m.proxy.mu.Unlock()
		if got := m.proxy.longest[uint16(port)]; got < least || got > most {
			return true, fmt.Errorf("it was paused for %s", got)
		}
	case "stop-takes":
		takes, err := time.ParseDuration(words[3])
		m.proxy.mu.Lock()
		defer m.proxy.mu.Unlock()
		m.proxy.stopTakes[words[2]] = takes
		return true, err
	case "cuts":
		m.proxy.mu.Lock()
		defer m.proxy.mu.Unlock()
		return true, count("connections cut", m.proxy.cuts, words[2])
	case "stops":
		return true, count("stops for moves", int(m.stops.Load()), words[2])
	case "proxy":
		m.proxy.mu.Lock()
		defer m.proxy.mu.Unlock()
		if words[2] == "version" {
			m.proxy.version = words[3]
			return true, nil
		}
		m.proxy.down = words[2] == "down"
		if words[2] == "lost" {
			m.proxy.forget()
		}
	case "mute", "unmute":
		m.proxy.mu.Lock()
		defer m.proxy.mu.Unlock()
		m.proxy.mute = words[0] == "mute"
	case "taken":
		port, err := strconv.ParseUint(words[2], 10, 16)
		m.proxy.mu.Lock()
		defer m.proxy.mu.Unlock()
		m.proxy.taken[uint16(port)] = true
		return true, err
	case "run-routed":
		opts := containerfake.RunOptions{
			Labels: map[string]string{container.LabelEnable: "true"}, Env: []string{secret}, Image: words[2] + ":1", Restart: "always",
		}
		for _, word := range words[4:] {
			k, v, _ := strings.Cut(word, "=")
			if k == "publish" {
				var p container.PublishedPort
				if _, err := fmt.Sscanf(v, "%d:%d", &p.Host, &p.Port); err != nil {
					return true, err
				}
				opts.Publish = append(opts.Publish, p)
				continue
			}
			if k == "links" {
				opts.Labels[container.LabelLinks] = v
				continue
			}
			opts.Labels["flocker.proxy."+k] = v
		}
		return true, m.Engine.Run(words[2], opts, words[3])
	case "run-linked":
		opts := containerfake.RunOptions{Labels: map[string]string{}}
		for _, word := range words[3:] {
			switch k, v, _ := strings.Cut(word, "="); k {
			case "publish":
				var p container.PublishedPort
				if _, err := fmt.Sscanf(v, "%d:%d", &p.Host, &p.Port); err != nil {
					return true, err
				}
				opts.Publish = append(opts.Publish, p)
			case "links":
				opts.Labels[container.LabelLinks] = v
			case "host":
				opts.Hosts = append(opts.Hosts, v)
			default:
				return true, fmt.Errorf("no such option: %s", word)
			}
		}
		return true, m.Engine.Run(words[2], opts)
	case "hosts":
		c, err := m.Engine.Inspect(w.ctx(), words[2])
		var host struct{ ExtraHosts []string }
		if err == nil {
			err = json.Unmarshal(c.Spec.HostConfig, &host)
		}
		if err == nil && !slices.Equal(host.ExtraHosts, words[3:]) {
			err = fmt.Errorf("it has %q", host.ExtraHosts)
		}
		return true, err
	case "noted":
		text := strings.Join(words[4:], " ")
		w.Await(strings.Join(words, " "), func() bool {
			got, err := m.API().MigrateVolume(w.ctx(), words[2], api.MigrateRequest{To: words[3], DryRun: true})
			return err == nil && strings.Contains(strings.Join(got.Notes, "\n"), text)
		})
	case "linked":
		w.Await(strings.Join(words, " "), func() bool {
			all, err := m.API().Routes(w.ctx())
			var got []string
			for _, r := range all.Routes {
				if fmt.Sprint(r.Listen) != words[2] {
					continue
				}
				for _, l := range r.Linked {
					if l.Problem == "" {
						got = append(got, l.Container+"@"+l.Node.Name)
					}
				}
			}
			return err == nil && slices.Equal(got, words[3:])
		})
	case "published":
		c, err := m.Engine.Inspect(w.ctx(), words[2])
		var got []string
		for _, p := range c.Ports.Published {
			got = append(got, fmt.Sprintf("%d:%d", p.Host, p.Port))
		}
		slices.Sort(got)
		if err == nil && !slices.Equal(got, words[3:]) {
			err = fmt.Errorf("it publishes %q", got)
		}
		return true, err
	case "add-route":
		_, err := m.API().AddRoute(w.ctx(), words[2], api.AddRouteRequest{Route: words[3]})
		return true, err
	case "remove-route", "pause-route", "resume-route":
		if words[0] == "remove-route" {
			return true, m.API().RemoveRoute(w.ctx(), words[2])
		}
		return true, m.API().PauseRoute(w.ctx(), words[2], words[0] == "pause-route")
	default:
		return false, nil
	}
	return true, nil
}

// flowing: nothing waits for ever. Every route in the state leads to a server at its owner,
// unless an operator has paused it, or no container is known to use its volume that is to run.
func (w *World) flowing() {
	stuck := ""
	defer func() {
		if stuck != "" {
			w.t.Log(stuck)
		}
	}()
	w.Await("every route leads to its server", func() bool {
		stuck = ""
		for _, s := range w.states() {
			for _, r := range s.NodeRoutes() {
				on := s.NodeName(r.Owner)
				m := w.nodes[on]
				if m == nil {
					stuck = fmt.Sprintf("the route on port %d has no owner", r.Listen)
					continue
				}
				used := m.uses(r.Volume.Name) || slices.ContainsFunc(s.ContainersOf(r.Volume.ID), func(c *state.Container) bool { return c.Run })
				got := m.gate(m.routeAt(fmt.Sprint(r.Listen)))
				if open := got != "paused" && got != "nowhere"; r.Paused && got != "paused" || !r.Paused && used && !open {
					stuck = fmt.Sprintf("the route on port %d is %s on %s; moving: %v; paused by an operator: %v; there: %s", r.Listen, got, on, r.Moving, r.Paused, m.describe())
				}
			}
		}
		return stuck == ""
	})
}

// uses says that a container with the volume runs on this machine.
func (m *Machine) uses(volume string) bool {
	users, err := m.Engine.Users(bystander)
	return err == nil && slices.ContainsFunc(users, func(u container.Use) bool {
		return u.State == container.Running && slices.ContainsFunc(u.Volumes, func(v container.Mount) bool { return v.Volume == volume })
	})
}

// describe is what runs on the machine, and what its proxy says.
func (m *Machine) describe() string {
	users, err := m.Engine.Users(bystander)
	text := fmt.Sprint(err)
	for _, u := range users {
		text += fmt.Sprintf(" %s is %s at %s;", u.Name, u.State, u.Ports.Address)
	}
	st, err := m.proxy.Status(bystander)
	return fmt.Sprintf("%s %+v %v", text, st.Routes, err)
}

// routeAt is the ID of the route on a port, by this machine's proxy; "" for none.
func (m *Machine) routeAt(port string) string {
	for _, r := range m.proxy.routes() {
		if strconv.Itoa(int(r.Listen)) == port {
			return r.ID
		}
	}
	return ""
}

func (p *fakeProxy) routes() []proxy.Route {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.config.Routes)
}

// gate is how a route's gate on this machine is: the container that it leads to, or
// "paused", or "nowhere".
func (m *Machine) gate(id string) string {
	if c := m.gates()[id]; c != "" {
		return c
	}
	m.proxy.mu.Lock()
	defer m.proxy.mu.Unlock()
	if !m.proxy.paused[id].IsZero() {
		return "paused"
	}
	return "nowhere"
}
