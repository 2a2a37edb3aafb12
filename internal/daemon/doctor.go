package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/doctor"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/transport"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// Examiner finds out what only the machine itself tells. It changes nothing.
type Examiner interface {
	// Clock is what the kernel tells the time by.
	Clock() (*doctor.Clock, error)
	// Mount is the one that the volumes' root stands on.
	Mount() (*doctor.Mount, error)
	// Ports are those that a node needs, and who has them; a machine in no cluster needs fewer.
	Ports(ctx context.Context, member bool) ([]doctor.Port, error)
	// Versions of ZFS as they are now, which may be others than when flockd started.
	Versions(ctx context.Context) (zfs.Capabilities, error)
	// Features of a pool, as doctor.Pool has them.
	Features(ctx context.Context, pool string) (map[string]string, error)
}

// examineTimeout is how long each part of a node may take to tell. ZFS may never, when its pool
// hangs; that is what people want to know then.
const examineTimeout = 8 * time.Second

// proveTimeout is how long a leader may take to confirm the state that datasets are held against.
const proveTimeout = 2 * time.Second

// stopGrace is how long the end of flockd waits for what was asked. Leases are not renewed meanwhile,
// and a child in uninterruptible sleep may never end.
const stopGrace = 500 * time.Millisecond

// asking has the parts of a node asked beside one another, none twice at a time. The zero value
// works, and asks until wait.
type asking struct {
	mu     sync.Mutex
	lines  map[string]*line
	open   int           // questions that have not come back
	idle   chan struct{} // closed when open is 0 again; nil when nobody waits
	ending context.Context
}

// line is who asks one thing: the question that is open, and the one after it, which all share that
// came meanwhile. What was seen before somebody asked does not answer him: it may be held against what
// is newer.
type line struct {
	began time.Time
	next  *question
}

// question is one that is asked, or will be. answer and err are set when done is closed.
type question struct {
	ask    func(ctx context.Context) (any, error)
	done   chan struct{}
	answer any
	err    error
}

// until has all questions end with ctx.
func (a *asking) until(ctx context.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ending = ctx
}

// wait until all have answered, or leave them behind after stopGrace.
func (a *asking) wait() {
	a.mu.Lock()
	if a.open == 0 {
		a.mu.Unlock()
		return
	}
	if a.idle == nil {
		a.idle = make(chan struct{})
	}
	idle := a.idle
	a.mu.Unlock()
	late := time.NewTimer(stopGrace)
	defer late.Stop()
	select {
	case <-idle:
	case <-late.C:
	}
}

// begin asks, or shares the next question with others who wait for the open one. It is nil when that
// one should have ended by now.
func (a *asking) begin(key string, ask func(ctx context.Context) (any, error)) *question {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.lines[key]
	if l != nil && time.Since(l.began) > examineTimeout {
		return nil
	}
	if l != nil && l.next != nil {
		return l.next
	}
	q := &question{ask: ask, done: make(chan struct{})}
	if l != nil {
		l.next = q
		return q
	}
	if a.lines == nil {
		a.lines = map[string]*line{}
	}
	l = &line{began: time.Now()}
	a.lines[key] = l
	a.open++
	ending := a.ending
	if ending == nil {
		ending = context.Background()
	}
	go a.run(ending, key, l, q)
	return q
}

// run asks q, and who waits behind it.
func (a *asking) run(ending context.Context, key string, l *line, q *question) {
	for q != nil {
		ctx, cancel := context.WithTimeout(ending, examineTimeout)
		q.answer, q.err = q.ask(ctx)
		cancel()
		close(q.done)
		a.mu.Lock()
		q, l.next = l.next, nil
		l.began = time.Now()
		if q == nil {
			delete(a.lines, key)
			if a.open--; a.open == 0 && a.idle != nil {
				close(a.idle)
				a.idle = nil
			}
		}
		a.mu.Unlock()
	}
}

var errNoAnswerYet = errors.New("it does not answer an earlier question either")

// get waits for the answer until ctx or late ends: then it comes to nobody.
func (q *question) get(ctx, late context.Context) (any, error) {
	if q == nil {
		return nil, errNoAnswerYet
	}
	select {
	case <-q.done: // also when it is late by now
		return q.answer, q.err
	default:
	}
	select {
	case <-q.done:
		return q.answer, q.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-late.Done():
		return nil, fmt.Errorf("no answer within %s", examineTimeout)
	}
}

// part is one thing to be asked. tell adds what it has found out, for each who asked.
type part struct {
	check string
	ask   func(ctx context.Context) (tell func(*doctor.Facts), err error)
}

// gather asks all parts. What has not told in time is noted as not known, and ends by itself.
func (a *asking) gather(ctx context.Context, f *doctor.Facts, parts []part) {
	// What heeds the time has said so by then.
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), examineTimeout+time.Second)
	defer cancel()
	asked := make([]*question, len(parts))
	for i, p := range parts {
		asked[i] = a.begin(p.check, func(ctx context.Context) (any, error) { return p.ask(ctx) })
	}
	for i, p := range parts {
		answer, err := asked[i].get(ctx, late)
		if err != nil {
			f.Unknown = append(f.Unknown, doctor.Unknown{Check: p.check, Why: err.Error()})
		}
		if tell, ok := answer.(func(*doctor.Facts)); ok && tell != nil {
			tell(f)
		}
	}
	slices.SortFunc(f.Unknown, func(a, b doctor.Unknown) int { return strings.Compare(a.Check+a.Why, b.Check+b.Why) })
}

// facts are what this machine finds out, m nil when it is in no cluster.
func (d *Daemon) facts(ctx context.Context, m *member) doctor.Facts {
	f := doctor.Facts{Version: d.parts.Version, Began: d.parts.now()}
	var parts []part
	x := d.parts.Examiner
	if x != nil && (m == nil || m.agent != nil) {
		parts = append(parts, part{"zfs", func(ctx context.Context) (func(*doctor.Facts), error) {
			v, err := x.Versions(ctx)
			if err != nil && !errors.Is(err, zfs.ErrNoZFS) {
				return nil, err
			}
			return func(f *doctor.Facts) { f.ZFS = &doctor.ZFS{Userland: v.Userland, Module: v.Kernel} }, nil
		}})
	}
	if d.parts.Engine != nil {
		parts = append(parts, part{"engine", func(ctx context.Context) (func(*doctor.Facts), error) { return askEngine(ctx, d.parts.Engine, m), nil }})
	}
	if m != nil {
		f.Node = m.self
		parts = append(parts, m.parts(x)...)
	}
	if x != nil {
		parts = append(parts, machine(x, m != nil)...)
	}
	d.asking.gather(ctx, &f, parts)
	if m != nil {
		f.Applied = m.cluster.State().Index
	}
	f.Ended = d.parts.now()
	return f
}

// askEngine asks the container engine. That it does not answer is what is found then.
func askEngine(ctx context.Context, e container.Engine, m *member) func(*doctor.Facts) {
	info, err := e.Info(ctx)
	var local []string
	if err == nil {
		local, err = e.LocalVolumes(ctx)
	}
	if err != nil {
		return func(f *doctor.Facts) { f.Engine = &doctor.Engine{Error: err.Error()} }
	}
	found := &doctor.Engine{Version: info.Version, LiveRestore: info.LiveRestore, Drivers: info.Drivers}
	if m != nil {
		found.Shadows = container.Shadows(local, func(name string) bool { return m.cluster.State().VolumeByName(name) != nil })
	}
	return func(f *doctor.Facts) { f.Engine = found }
}

// machine has the parts of one that are the same in a cluster and in none. They read files, but one may
// hang, and who has a port takes long to find among very many processes.
func machine(x Examiner, member bool) []part {
	return []part{
		{"clocksource", func(context.Context) (func(*doctor.Facts), error) {
			c, err := x.Clock()
			return func(f *doctor.Facts) { f.Clock = c }, err
		}},
		{"mount", func(context.Context) (func(*doctor.Facts), error) {
			on, err := x.Mount()
			return func(f *doctor.Facts) { f.Mount = on }, err
		}},
		{"ports", func(ctx context.Context) (func(*doctor.Facts), error) {
			all, err := x.Ports(ctx, member)
			return func(f *doctor.Facts) { f.Ports = all }, err
		}},
	}
}

// parts of a member.
func (m *member) parts(x Examiner) []part {
	all := []part{
		{"certificate", func(context.Context) (func(*doctor.Facts), error) {
			from, to := m.cluster.Validity()
			return func(f *doctor.Facts) { f.Certificate = &doctor.Certificate{From: from, To: to} }, nil
		}},
		{"timers", func(context.Context) (func(*doctor.Facts), error) {
			raft := m.cluster.ElectionTime()
			t := &doctor.Timers{Report: m.timers.Report, Raft: raft, Unfit: unfitTimers(m.cluster.State().Failover(), raft)}
			return func(f *doctor.Facts) { f.Timers = t }, nil
		}},
		{"reach", func(ctx context.Context) (func(*doctor.Facts), error) {
			peers := m.tryPeers(ctx)
			return func(f *doctor.Facts) { f.Peers = peers }, nil
		}},
	}
	if m.agent == nil {
		return all
	}
	return append(all,
		part{"fencing", func(context.Context) (func(*doctor.Facts), error) {
			l := m.tenure.report()
			return func(f *doctor.Facts) { f.Fencing = &doctor.Fencing{Safety: l.Safety, Problem: l.Fencer} }, nil
		}},
		part{"pool", func(ctx context.Context) (func(*doctor.Facts), error) {
			p, err := m.zfs.Pool(ctx, m.layout.Pool)
			if err != nil {
				return nil, fmt.Errorf("pool %s cannot be asked: %w", m.layout.Pool, err)
			}
			found := &doctor.Pool{Name: p.Name, Health: p.Health, ReadOnly: p.ReadOnly, Size: p.Size, Free: p.Free}
			if x != nil {
				found.Features, err = x.Features(ctx, m.layout.Pool)
			}
			return func(f *doctor.Facts) { f.Pool = found }, err
		}},
		part{"datasets", func(ctx context.Context) (func(*doctor.Facts), error) {
			list, err := m.zfs.Datasets(ctx, m.layout.Root())
			if err != nil {
				return nil, err
			}
			found := m.datasets(list)
			return func(f *doctor.Facts) { f.Datasets = found }, nil
		}},
	)
}

// tryPeers connects to all other members as Raft does, and hangs up. Raft takes one that says
// nothing for a peer that has gone again.
func (m *member) tryPeers(ctx context.Context) []doctor.Peer {
	var found []doctor.Peer
	for n := range m.cluster.State().Nodes() {
		if n.ID != m.self {
			found = append(found, doctor.Peer{Node: n.ID, Addr: n.Addr})
		}
	}
	var all sync.WaitGroup
	for i := range found {
		p := &found[i]
		if h, ok := m.cluster.GossipHealth(p.Node); ok {
			p.Gossip = string(h)
		}
		all.Go(func() {
			conn, err := m.cluster.Dial(ctx, p.Node, transport.ProtoRaft)
			if err != nil {
				p.Raft = err.Error()
				return
			}
			if err := conn.Close(); err != nil {
				m.log.Debug("a connection of doctor was not closed in order", "to", p.Addr, "err", err)
			}
		})
	}
	all.Wait()
	return found
}

// datasets are those below the volumes' root, and who uses what is mounted of them.
func (m *member) datasets(list []zfs.Dataset) []doctor.Dataset {
	out := []doctor.Dataset{} // not nil, which is for what was not listed
	users := map[volume.ID]*int{}
	for _, st := range m.agent.Report().Volumes {
		if n := len(st.Holders); st.Mounted && !slices.ContainsFunc(st.Holders, func(h volume.Holder) bool { return h.Unknown }) {
			users[st.Volume] = &n
		}
	}
	root := m.layout.Root()
	for _, d := range list {
		name, below := strings.CutPrefix(d.Name, root+"/")
		if !below {
			continue // the root itself
		}
		x := doctor.Dataset{Name: d.Name, Used: d.Used, Mounted: d.Mounted, Partial: d.ResumeToken != ""}
		// What belongs to a copy has its name and a dash before its own, or is below it.
		first, _, _ := strings.Cut(strings.ReplaceAll(name, "/", "-"), "-")
		if id, err := volume.ParseID(first); err == nil && !d.Volume {
			x.Volume = id
			if name == first {
				x.Users = users[id]
			}
		}
		out = append(out, x)
	}
	return out
}

// factsOf has one node look at itself.
func (d *Daemon) factsOf(ctx context.Context, ref string) (doctor.Facts, error) {
	m, err := d.member()
	if ref == "" {
		return d.facts(ctx, m), nil
	}
	if err != nil {
		return doctor.Facts{}, err
	}
	id, err := m.passOn(ctx, ref)
	switch {
	case err != nil:
		return doctor.Facts{}, err
	case id == m.self:
		return d.facts(ctx, m), nil
	}
	return m.client(id).Facts(ctx, string(id))
}

// passOn is the node that a call is for. One that came from another node is passed on no
// further.
func (m *member) passOn(ctx context.Context, ref string) (volume.NodeID, error) {
	id, err := findNode(m.cluster.State(), ref)
	if _, forwarded := api.Caller(ctx); err == nil && forwarded && id != m.self {
		err = volume.Errorf(volume.CodeConflict, "this is not node %q", ref)
	}
	return id, err
}

// doctor has all nodes look, and judges.
func (d *Daemon) doctor(ctx context.Context) (api.Doctor, error) {
	m, err := d.member()
	if err != nil {
		f := d.facts(ctx, nil)
		why := doctor.Cluster{None: err.Error()}
		return api.Doctor{At: d.parts.now(), Findings: doctor.Examine(why, []doctor.Node{{Name: "this node", Facts: &f}}, d.parts.now())}, nil
	}
	before := m.cluster.State()
	var nodes []doctor.Node
	for n := range before.Nodes() {
		nodes = append(nodes, doctor.Node{ID: n.ID, Name: n.Name, Witness: n.Witness})
	}
	actx, cancel := context.WithTimeout(ctx, 2*examineTimeout)
	defer cancel()
	var all sync.WaitGroup
	for i := range nodes {
		all.Go(func() { d.ask(actx, m, &nodes[i]) })
	}
	all.Wait()
	if ctx.Err() != nil {
		return api.Doctor{}, context.Cause(ctx)
	}
	pctx, stop := context.WithTimeout(ctx, proveTimeout)
	defer stop()
	proof := m.catchUp(pctx)
	if proof != nil {
		m.log.Debug("doctor's state is not known to be the newest", "err", proof)
	}
	out := api.Doctor{Node: m.view().ref(m.self), At: d.parts.now()}
	c := known(before, m.cluster.State())
	c.Quorum, c.Proven = !m.leaderless(), proof == nil
	out.Findings = doctor.Examine(c, nodes, out.At)
	return out, nil
}

// ask one node for its facts.
func (d *Daemon) ask(ctx context.Context, m *member, n *doctor.Node) {
	if n.ID == m.self {
		f := d.facts(ctx, m)
		n.Facts = &f
		return
	}
	sent := d.parts.now()
	f, err := m.client(n.ID).Facts(ctx, string(n.ID))
	back := d.parts.now()
	switch {
	case err == nil:
		n.Facts = &f
		n.Ahead, n.Unsure = doctor.Ahead(sent, f.Began, f.Ended, back)
	case volume.CodeOf(err) == volume.CodeNotFound:
		n.Old = true // it has no such path
	default:
		n.Error = err.Error()
	}
}

// known is what the state says, from before the nodes were asked and after: what changed meanwhile
// cannot be held against what one of them saw.
func known(before, after *state.State) doctor.Cluster {
	c := doctor.Cluster{Applied: after.Index, Failover: string(after.Failover().Mode), Volumes: map[volume.ID]doctor.Volume{}}
	for _, s := range []*state.State{before, after} {
		for v := range s.Volumes() {
			x := doctor.Volume{Name: v.Name, Live: v.Live(), Primary: v.Placement.Primary, Copies: append([]volume.NodeID{v.Placement.Primary}, v.Placement.Replicas()...)}
			x.Moving = v.Live() && v.Phase != state.PhaseActive
			was, had := c.Volumes[v.ID]
			if s == after && (!had || was.Moving || was.Live != x.Live || !slices.Equal(was.Copies, x.Copies)) {
				x.Moving = true
			}
			c.Volumes[v.ID] = x
		}
	}
	return c
}
