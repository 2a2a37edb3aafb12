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
	// Machine adds the clock, the ports and the mount of the volumes' root, and notes which of
	// them it could not find out. It does not block.
	Machine(f *doctor.Facts)
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

// asking has the parts of a node asked beside one another, none twice at a time.
type asking struct {
	mu   sync.Mutex
	busy map[string]bool
	all  sync.WaitGroup
}

// wait until all have answered.
func (a *asking) wait() { a.all.Wait() }

// part is one thing to be asked. tell adds what it has found out; it is called by nobody else at
// that time.
type part struct {
	check string
	ask   func(ctx context.Context) (tell func(*doctor.Facts), err error)
}

// gather asks all parts. What has not told in time is noted as not known, and ends by itself.
func (a *asking) gather(ctx context.Context, f *doctor.Facts, parts []part) {
	type answer struct {
		i    int
		tell func(*doctor.Facts)
		err  error
	}
	answers := make(chan answer, len(parts))
	// It may outlast the caller; then nobody is told.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), examineTimeout)
	var open sync.WaitGroup
	silent := map[int]string{}
	for i, p := range parts {
		if !a.begin(p.check) {
			f.Unknown = append(f.Unknown, doctor.Unknown{Check: p.check, Why: "it does not answer an earlier question either"})
			continue
		}
		silent[i] = p.check
		open.Add(1)
		a.all.Go(func() {
			defer open.Done()
			defer a.end(p.check)
			tell, err := p.ask(ctx)
			answers <- answer{i, tell, err}
		})
	}
	a.all.Go(func() { open.Wait(); cancel() })
	late := time.NewTimer(examineTimeout + time.Second) // what heeds the time has said so by then
	defer late.Stop()
	for len(silent) > 0 {
		select {
		case got := <-answers:
			delete(silent, got.i)
			if got.err != nil {
				f.Unknown = append(f.Unknown, doctor.Unknown{Check: parts[got.i].check, Why: got.err.Error()})
			}
			if got.tell != nil {
				got.tell(f)
			}
			continue
		case <-late.C:
		}
		for _, check := range silent {
			f.Unknown = append(f.Unknown, doctor.Unknown{Check: check, Why: fmt.Sprintf("no answer within %s", examineTimeout)})
		}
		break
	}
	slices.SortFunc(f.Unknown, func(a, b doctor.Unknown) int { return strings.Compare(a.Check+a.Why, b.Check+b.Why) })
}

func (a *asking) begin(check string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.busy[check] {
		return false
	}
	if a.busy == nil {
		a.busy = map[string]bool{}
	}
	a.busy[check] = true
	return true
}

func (a *asking) end(check string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.busy, check)
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
		x.Machine(&f)
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
