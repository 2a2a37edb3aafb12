package daemon

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flocker-io/flocker/internal/agent"
	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/cluster"
	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/placement"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/together"
	"github.com/flocker-io/flocker/internal/transport"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
)

// member is everything of this node that belongs to its membership in a cluster. It
// is api.Backend (but for Init, Join and Version) and api.Peer.
type member struct {
	self    volume.NodeID
	version string
	log     *slog.Logger
	now     func() time.Time
	timers  Timers
	layout  agent.Layout
	counted func(result string) // elections, for metrics

	cluster *cluster.Cluster
	reports *cluster.Reports
	hasty   chan struct{}     // a report is wanted before its time
	agent   *agent.Agent      // nil on a witness
	repl    *replicate.Engine // nil on a witness
	use     *use
	zfs     ZFS
	trees   Trees         // nil: copies cannot be read here
	tidied  chan struct{} // closed when nothing of an earlier life is open in trees

	verifier verifier
	browsing slots // who reads files
	sending  slots // who reads whole snapshots, for backups
	readers  readers
	restores restores
	points   together.Asks[api.PointRequest, pointFound]
	arrivals arrivals
	promises *promises // nil on a witness
	follow   *follower // nil on a node without containers
	linker   *linker   // the same
	// snapHooks is nil on a node without containers.
	snapHooks *snapHooks
	router    *router  // nil on a node without a proxy
	swarm     *swarmer // nil on a node without containers

	clock     func() lease.Moment
	tenure    *tenure                // this node's lease
	leases    atomic.Pointer[leases] // everybody's; nil: this node does not lead
	mu        sync.Mutex
	clients   map[volume.NodeID]*api.Client
	shadows   []string             // local volumes of the engine that hide ours
	elections *elections           // nil unless this node leads
	waiting   map[volume.ID]string // see electionWaits
	asides    []replicate.SetAside // not told yet
	tells     []state.Tell         // the same
	asided    chan struct{}        // rings when there is one
}

// newMember builds the node from its parts; run runs it.
func newMember(p Parts, c *cluster.Cluster, setup localSetup) *member {
	m := &member{
		self: c.ID(), version: p.Version, log: p.Log.With("node", c.ID().Short()), now: p.now, timers: p.Timers,
		counted: p.Metrics.failover,
		cluster: c, reports: c.Reports(), clients: map[volume.NodeID]*api.Client{}, asided: make(chan struct{}, 1), hasty: make(chan struct{}, 1), clock: p.boot(),
	}
	m.tenure = newTenure()
	if p.Proxy != nil {
		m.router = newRouter(m, p)
	}
	if p.Engine != nil {
		m.swarm = newSwarmer(m, p.Engine)
	}
	if setup.Pool == "" {
		return m
	}
	m.layout = agent.Layout{Pool: setup.Pool, MountBase: p.MountDir}
	m.zfs = expelling{p.ZFS, &m.readers}
	m.trees, m.tidied = p.Trees, make(chan struct{})
	m.use = &use{engine: p.Engine, now: p.now,
		id: func(name string) (volume.ID, bool) {
			v := c.State().VolumeByName(name)
			if v == nil {
				return "", false
			}
			return v.ID, true
		},
	}
	if p.Engine != nil {
		m.use.watch = container.NewWatcher(p.Engine, m.log)
		m.follow = newFollower(m, p.Engine)
		m.follow.ahead = newPrestarts(m.follow, p.Doors)
		m.linker = &linker{m: m, engine: p.Engine}
		m.snapHooks = newSnapHooks(p.Engine, cluster.DirDisk(p.StateDir), m.use.id, m.log)
	}
	var dirty replicate.Dirty
	if p.Dirty != nil {
		dirty = p.Dirty(setup.Pool)
	}
	seen := newListings(m.zfs, m.layout.Root())
	m.repl = replicate.New(replicate.Config{
		Node: m.self, ClusterID: c.ClusterID(), Root: m.layout.Root(), Pool: seen, Dirty: dirty,
		Dial: func(ctx context.Context, to volume.NodeID) (net.Conn, error) {
			return c.Dial(ctx, to, transport.ProtoStream)
		},
		Limit: m.limit, Held: m.heldSnapshots, Clock: m.asideClock, Wall: m.now, Replace: m.replaceAfter,
		Log: m.log, Observe: func(e replicate.Event) {
			p.Metrics.replication(e, func(id volume.NodeID) string { return c.State().NodeName(id) })
			if aside, ok := e.(replicate.SetAside); ok {
				m.agent.LookAside()
				m.noteAside(aside)
			}
			if p.Observe != nil {
				p.Observe(e)
			}
		},
	})
	var prepareStop func(context.Context, volume.ID) error
	var stopFollowing func(context.Context, volume.ID) (agent.Stopped, error)
	var recordUsers func(context.Context, volume.ID) error
	if m.follow != nil {
		prepareStop, stopFollowing, recordUsers = m.follow.prepare, m.follow.stopFor, m.follow.recordNow
	}
	var bound func(context.Context) ([]agent.Bind, error)
	if engine := p.Engine; engine != nil {
		bound = func(ctx context.Context) ([]agent.Bind, error) {
			list, err := engine.Bound(ctx)
			return bindsOf(list), err
		}
	}
	m.agent = agent.New(agent.Config{
		Bound:       bound,
		PrepareStop: prepareStop, StopFollowing: stopFollowing, RecordUsers: recordUsers, Moving: p.Metrics.moving, RolledBack: p.Metrics.rolledBack,
		Arriving: func(id volume.ID, epoch volume.Epoch, part string) { m.arrivals.note(id, epoch, part, "", time.Now()) },
		Self:     m.self, Version: p.Version, BootID: p.BootID, Layout: m.layout,
		Cluster: agentCluster{m}, ZFS: m.zfs, Files: p.Files, Use: m.use, Repl: m.repl, Log: m.log, Poll: p.Timers.Poll,
		Listed: seen.newest, Peers: peers{m}, Clock: m.cautiousClock, Lease: m.tenure,
	})
	m.promises = newPromises(m.agent.Promise)
	t := m.tenure
	t.self, t.boot, t.clock, t.root, t.log = m.self, p.BootID, m.clock, m.layout.Root(), m.log
	t.instead, t.wall = p.StopWriters, p.now
	t.fencer, t.state, t.news, t.leader, t.send = p.Fencer, c.State, c.Changed, c.Leader, m.send
	t.caught = m.agent.CaughtUp
	t.fresh, t.moved, t.count, t.fenced = m.ready, m.agent.Wake, p.Metrics.beat, p.Metrics.fence
	return m
}

// replaceAfter is replicate.Config.Replace.
func (m *member) replaceAfter() time.Duration {
	if c := m.cluster.State().Cluster(); c != nil {
		return c.Settings.ReplaceAfter()
	}
	return state.DefaultReplicaReplaceAfter
}

// limit is replicate.Config.Limit: what the settings say of the two zones.
func (m *member) limit(to volume.NodeID) replicate.Limit {
	s := m.cluster.State()
	here, there := s.Node(m.self), s.Node(to)
	if here == nil || there == nil {
		return replicate.Limit{}
	}
	from, zone := cmp.Or(here.Zone, volume.DefaultZone), cmp.Or(there.Zone, volume.DefaultZone)
	return replicate.Limit{Group: string(zone), Bytes: s.Cluster().Settings.Limit(from, zone)}
}

// run runs everything of the membership until ctx ends or a part fails, and joins
// it all.
func (m *member) run(ctx context.Context, h http.Handler) error {
	g := newGroup(ctx)
	g.run("cluster", m.cluster.Run)
	g.run("reports", m.reportLoop)
	g.run("leader", func(ctx context.Context) error { return m.cluster.Lead(ctx, m.lead) })
	g.run("api", func(ctx context.Context) error {
		return api.ServePeers(ctx, m.cluster.Listener(transport.ProtoAPI), peerOf, h, m.log)
	})
	if m.trees != nil {
		g.run("verify", m.tidyTrees)
	}
	if m.router != nil {
		g.run("routes", m.whenFresh(m.router.run))
	}
	if m.swarm != nil {
		g.run("swarm", m.swarm.run)
	}
	if m.agent != nil {
		g.run("replication", m.whenFresh(m.repl.Run))
		g.run("streams", m.whenFresh(m.serveStreams))
		g.run("agent", m.agent.Run)
		g.run("restores", m.sweepRestoresLater)
		g.run("promises", func(ctx context.Context) error { return m.promises.run(ctx, m.unled, m.cluster.Changed) })
		g.run("set-aside copies", m.tellAsides)
		g.run("lease", m.tenure.run)
		g.run("canary of the pool", func(ctx context.Context) error {
			return m.tenure.canary(ctx, m.poolHealth, m.writeCanary)
		})
	}
	if m.agent != nil && m.use.watch != nil {
		g.run("engine", m.use.watch.Run)
		g.run("engine events", m.passEvents)
		g.run("containers", m.whenFresh(m.follow.run))
		g.run("links", m.linker.run)
		g.run("snapshot hooks", m.snapHooks.run)
		g.run("images", m.whenFresh(m.follow.fetchImages))
		g.run("image streams", m.whenFresh(m.follow.serveImages))
	}
	return g.wait()
}

// ready says that the node has caught up with the cluster and looked at its disk.
func (m *member) ready() bool {
	if m.agent == nil {
		return !m.leaderless()
	}
	select {
	case <-m.agent.Fresh():
		return true
	default:
		return false
	}
}

// whenFresh puts a part off until the pool is prepared and the node has caught up with
// the cluster: before that there is nothing for it to do.
func (m *member) whenFresh(f func(context.Context) error) func(context.Context) error {
	if m.agent == nil {
		return f
	}
	return func(ctx context.Context) error {
		select {
		case <-m.agent.Fresh():
			return f(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

// peerOf tells the API server which node a connection comes from.
func peerOf(c net.Conn) (volume.NodeID, error) {
	id, ok := transport.PeerOf(c)
	if !ok {
		return "", errors.New("the connection says of no node")
	}
	return id, nil
}

// passEvents wakes the agent when containers may have changed, looks for local
// volumes of the engine that hide ours, and starts containers again that could not
// start because of us.
func (m *member) passEvents(ctx context.Context) error {
	fresh := m.agent.Fresh()
	again := restarts{m: m, next: map[string]attempt{}}
	retry := time.NewTicker(restartPause)
	defer retry.Stop()
	for wake := m.agent.Wake; ; {
		lease := m.tenure.Changed()
		if wake != nil {
			wake() // it lists all datasets, which is no small thing to do every few seconds
		}
		m.follow.ring()
		if m.router != nil {
			m.router.ring()
		}
		m.lookForShadows(ctx)
		again.try(ctx)
		wake = m.agent.Wake
		select {
		case <-lease:
		case <-m.use.watch.C():
			wake = m.agent.Stir
			m.follow.stir()
		case <-retry.C:
			wake = nil
		case <-fresh:
			fresh = nil
		case <-ctx.Done():
			return nil
		}
	}
}

func (m *member) lookForShadows(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	local, err := m.use.engine.LocalVolumes(ctx)
	if err != nil {
		return // the agent's report says that the engine does not answer
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shadows = container.Shadows(local, func(name string) bool { return m.cluster.State().VolumeByName(name) != nil })
}

// lead is what only the leader does.
func (m *member) lead(ctx context.Context) error {
	m.log.Info("this node leads the cluster")
	defer m.log.Info("this node leads the cluster no more")
	running, stop := context.WithCancel(ctx)
	wake, elect := make(chan struct{}, 1), make(chan struct{}, 1)
	e := newElections(leaderView{m}, m.now, m.counted, m.log)
	m.setElections(e)
	defer m.setElections(nil)
	var beside sync.WaitGroup
	beside.Go(func() { m.ring(running, wake, elect) })
	beside.Go(func() { e.Run(running, elect) })
	defer beside.Wait()
	defer stop()
	c := &placement.Controller{Cluster: leaderView{m}, Wake: wake, Log: m.log, Now: m.now, Settle: m.timers.Stale}
	g := newGroup(running)
	g.run("placement", c.Run)
	g.run("leases", m.keepLeases)
	err := g.wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// ring turns new states and reports into coalesced signals until ctx ends.
func (m *member) ring(ctx context.Context, bells ...chan<- struct{}) {
	for {
		state, reports := m.cluster.Changed(), m.reports.Changed()
		for _, bell := range bells {
			ring(bell)
		}
		select {
		case <-ctx.Done():
			return
		case <-state:
		case <-reports:
		}
	}
}

// serveStreams hands incoming streams to the replication engine.
func (m *member) serveStreams(ctx context.Context) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	l := m.cluster.Listener(transport.ProtoStream)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accepting streams: %w", err)
		}
		peer, ok := transport.PeerOf(conn)
		if !ok {
			conn.Close()
			continue
		}
		conns.Go(func() {
			defer conn.Close()
			if err := m.repl.ServeConn(ctx, conn, peer); err != nil && ctx.Err() == nil {
				m.log.Info("a stream ended", "from", m.cluster.State().NodeName(peer), "err", err)
			}
		})
	}
}

// reportLoop tells the leader how this node is, and learns how the others are.
func (m *member) reportLoop(ctx context.Context) error {
	var failed string
	var fresh <-chan struct{} // the first complete report must not wait for its turn
	if m.agent != nil {
		fresh = m.agent.Fresh()
	}
	for ctx.Err() == nil {
		began := m.now()
		rctx, cancel := context.WithTimeout(ctx, m.timers.Stale/2)
		err := m.report(rctx)
		cancel()
		switch {
		case err == nil && failed != "":
			m.log.Info("reports reach the leader again")
			failed = ""
		case err != nil && ctx.Err() == nil && err.Error() != failed:
			m.log.Warn("this node's report did not reach the leader", "err", err)
			failed = err.Error()
		}
		next := time.NewTimer(max(m.timers.Report-m.now().Sub(began), m.timers.Report/4))
		select {
		case <-next.C:
		case <-fresh:
			fresh = nil
		case <-m.hasty: // but not much more often than others
			pause(ctx, m.timers.Report/4-m.now().Sub(began))
		case <-ctx.Done():
		}
		next.Stop()
	}
	return nil
}

func (m *member) report(ctx context.Context) error {
	rep := volume.Report{Node: m.self, Version: m.version, Applied: m.cluster.State().Index, At: m.now()}
	if m.agent != nil {
		rep = m.agent.Report()
		rep.At, rep.Lease = m.now(), m.tenure.report()
		counts := m.repl.SnapshotCounts()
		for i := range rep.Volumes {
			rep.Volumes[i].Snapshots = counts[rep.Volumes[i].Volume]
		}
		m.mu.Lock()
		for _, name := range m.shadows {
			rep.Problems = append(rep.Problems, fmt.Sprintf("the engine has a local volume %q that hides the flocker volume", name))
		}
		m.mu.Unlock()
		if p := m.tenure.outdated(m.version); p != "" {
			rep.Problems = append(rep.Problems, p)
		}
		rep.Problems = append(rep.Problems, m.verifier.problems(m.cluster.State(), m.self)...)
		rep.Reading = m.verifier.told()
		rep.Browse = m.trees != nil
		rep.Streams = rep.Browse
		if m.follow != nil {
			m.follow.report(&rep)
			m.linker.report(&rep)
			rep.Problems = append(rep.Problems, m.snapHooks.problems()...)
		}
	}
	rep.Routes, rep.Hosts, rep.Rebalance, rep.Prestart, rep.Loss, rep.Starts, rep.Hold, rep.HoldMost, rep.Clones, rep.Rollback = true, true, true, true, true, true, true, true, true, true
	rep.HoldSnapshots, rep.SnapshotHooks, rep.Arrivals, rep.Import, rep.Descends = true, true, true, true, true
	if m.router != nil {
		m.router.report(&rep)
	}
	if m.swarm != nil {
		m.swarm.report(&rep)
	}
	leader, ok := m.cluster.Leader()
	if !ok {
		m.reports.Put(rep, m.now()) // so that this node at least knows itself
		return errNoLeader
	}
	if leader == m.self {
		m.reports.Put(rep, m.now())
		return nil
	}
	reply, err := m.client(leader).Report(ctx, rep, m.reports.Revisions())
	if err != nil {
		m.reports.Put(rep, m.now())
		return fmt.Errorf("reporting to %s: %w", m.cluster.State().NodeName(leader), err)
	}
	var got []cluster.Received
	for _, r := range reply.Reports {
		age := time.Duration(reply.Ages[r.Report.Node] * float64(time.Second))
		got = append(got, cluster.Received{Report: r.Report, Rev: r.Rev, Age: age})
	}
	m.reports.Merge(got, m.now())
	m.hearElections(reply.Elections)
	return nil
}

// Report implements api.Peer, on the leader.
func (m *member) Report(ctx context.Context, r volume.Report, have map[volume.NodeID]uint64) (api.ReportReply, error) {
	from, ok := api.Caller(ctx)
	if !ok || from != r.Node {
		return api.ReportReply{}, volume.Errorf(volume.CodeDenied, "a node reports for itself only")
	}
	if leader, ok := m.cluster.Leader(); !ok || leader != m.self {
		return api.ReportReply{}, errNotLeader
	}
	m.reports.Put(r, m.now())
	reply := api.ReportReply{Leader: m.self, Commit: m.cluster.State().Index, Ages: map[volume.NodeID]float64{},
		Elections: m.electionWaits()}
	for _, got := range m.reports.Since(have, m.now()) {
		reply.Reports = append(reply.Reports, api.PeerReport{Rev: got.Rev, Report: got.Report})
		reply.Ages[got.Report.Node] = got.Age.Seconds()
	}
	return reply, nil
}

// view is what this node knows now.
func (m *member) view() view {
	now, s := m.now(), m.cluster.State()
	reunions := sync.OnceValue(func() []placement.Reunion {
		_, all := placement.Reunions(placement.NewView(s, m.heardByPlacement(), now))
		return all
	})
	return view{state: s, stale: m.timers.Stale, waits: m.electionWaits(), reunions: reunions, heard: func(id volume.NodeID) (heard, bool) {
		r, ok := m.reports.Get(id, now)
		return heard{Report: r.Report, Age: r.Age}, ok
	}}
}

// errNotLeader asks the caller to look for the leader again.
var errNotLeader = volume.Errorf(volume.CodeUnavailable, "this node does not lead the cluster")

var errNoLeader = volume.Errorf(volume.CodeNoQuorum, "the cluster has no leader").
	WithHint("more than half of the voters must be up and reach each other; see `flockctl status`")

// onLeader calls f until a leader has answered: with nil when this node leads, else
// with a client of the node that does. It looks for the leader again while there is
// none, or none that answers. A call that came from another node is not
// passed on a second time. What f asks for must be safe to repeat.
func (m *member) onLeader(ctx context.Context, f func(ctx context.Context, leader *api.Client) error) error {
	_, forwarded := api.Caller(ctx)
	deadline := m.now().Add(3 * m.timers.Stale)
	for {
		err := error(errNoLeader)
		if leader, ok := m.cluster.Leader(); ok {
			switch {
			case leader == m.self:
				err = m.whileLeading(ctx, leader, func(ctx context.Context) error { return f(ctx, nil) })
			case forwarded:
				return errNotLeader
			default:
				err = m.whileLeading(ctx, leader, func(ctx context.Context) error { return f(ctx, m.client(leader)) })
			}
		}
		again := isNotLeader(err) || errors.Is(err, api.ErrNoAnswer)
		if err == nil || !again || forwarded || ctx.Err() != nil || m.now().After(deadline) {
			return err
		}
		pause(ctx, 250*time.Millisecond)
	}
}

// whileLeading ends f when another node leads: one that was cut off may never answer,
// and the network takes a quarter of an hour to say so.
func (m *member) whileLeading(ctx context.Context, leader volume.NodeID, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		for ctx.Err() == nil {
			pause(ctx, time.Second)
			if now, ok := m.cluster.Leader(); ok && now != leader {
				cancel(errNotLeader)
			}
		}
	})
	err := f(ctx)
	deposed := errors.Is(context.Cause(ctx), errNotLeader)
	cancel(nil)
	watch.Wait()
	if err != nil && deposed {
		return errNotLeader
	}
	return err
}

// isNotLeader says that a call reached a node which does not lead (any more), or
// none: the leader is to be looked for again.
func isNotLeader(err error) bool {
	var not *cluster.NotLeaderError
	if errors.As(err, &not) {
		return true
	}
	var e *volume.Error
	return errors.As(err, &e) && (e.Message == errNotLeader.Message || e.Code == volume.CodeNoQuorum)
}

// commit proposes on this node, which leads.
func (m *member) commit(ctx context.Context, request string, c state.Command) (state.Result, error) {
	c, err := m.understood(c)
	if err != nil {
		return state.Result{}, err
	}
	res, err := m.cluster.Propose(ctx, state.Envelope{Request: request, At: m.now(), Command: c})
	if err != nil {
		return state.Result{}, err
	}
	if res.Err != nil {
		return res, res.Err
	}
	return res, nil
}

// asOperator commits a command that a person asked for, wherever the leader is, and
// waits until this node has applied it.
func (m *member) asOperator(ctx context.Context, c state.Command) error {
	res, err := m.propose(ctx, c)
	if err != nil {
		return err
	}
	if res.Err != nil {
		return res.Err
	}
	return nil
}

// propose commits a command wherever the leader is. It returns once this node has
// applied it.
func (m *member) propose(ctx context.Context, c state.Command) (state.Result, error) {
	c, err := m.understood(c)
	if err != nil {
		return state.Result{}, err
	}
	env := state.Envelope{Request: newRequest(), At: m.now(), Command: c}
	var res state.Result
	var index uint64
	err = m.onLeader(ctx, func(ctx context.Context, leader *api.Client) (err error) {
		if leader == nil {
			res, index, err = m.proposeHere(ctx, env)
			return err
		}
		b, err := state.Encode(env)
		if err != nil {
			return err
		}
		reply, err := leader.Propose(ctx, b)
		if err != nil {
			return err
		}
		index = reply.Index
		return json.Unmarshal(reply.Result, &res)
	})
	if err != nil {
		return res, err
	}
	return res, m.cluster.CaughtUp(ctx, index)
}

// Propose implements api.Peer, on the leader. A node proposes what is its own to
// say; what concerns a volume's primary comes from that primary alone.
func (m *member) Propose(ctx context.Context, envelope []byte) (api.ProposeReply, error) {
	env, err := state.Decode(envelope)
	if err != nil {
		return api.ProposeReply{}, volume.Errorf(volume.CodeInvalid, "%v", err)
	}
	from, ok := api.Caller(ctx)
	if !ok {
		return api.ProposeReply{}, volume.Errorf(volume.CodeDenied, "only nodes propose")
	}
	if err := m.mayPropose(from, env.Command); err != nil {
		return api.ProposeReply{}, err
	}
	res, index, err := m.proposeHere(ctx, env)
	if err != nil {
		if isNotLeader(err) {
			return api.ProposeReply{}, errNotLeader
		}
		return api.ProposeReply{}, err
	}
	b, err := json.Marshal(res)
	return api.ProposeReply{Index: index, Result: b}, err
}

// hearPatience bounds how long an answer is kept back until others hear of a commit.
const hearPatience = 500 * time.Millisecond

// proposeHere is propose on the leader, and gives the index of the state after it.
func (m *member) proposeHere(ctx context.Context, env state.Envelope) (res state.Result, index uint64, err error) {
	env.At = m.stamp(env.Command)
	if res, err = m.cluster.Propose(ctx, env); err != nil {
		return res, 0, err
	}
	index = m.cluster.State().Index
	switch env.Command.(type) {
	case state.CommitHandoff, state.CommitRollback, state.PutContainer:
		// Clients wait for these. A follower hears that something is committed with the next
		// message of the leader, which may be 100 ms later; a barrier is one at once.
		bctx, cancel := context.WithTimeout(ctx, hearPatience)
		defer cancel()
		if _, err := m.cluster.Barrier(bctx); err != nil {
			m.log.Debug("others hear of a commit a little later", "err", err)
		}
	}
	return res, index, nil
}

// stamp is the time that a command gets, on the leader: its own. The clock of whoever
// proposes might be days behind, and so might the leader's: a volume that is removed
// would leave the trash at once, for good. So the time of a removal is not before the
// middle one of those that the nodes report.
func (m *member) stamp(c state.Command) time.Time {
	now := m.now()
	if _, removal := c.(state.CommitDelete); !removal {
		return now
	}
	at, _ := m.lateClock()
	return at
}

// lateClock is the later of this node's clock and the middle one of those that so many
// nodes, this one among them, report.
func (m *member) lateClock() (at time.Time, nodes int) {
	now := m.now()
	var clocks []time.Time
	for _, r := range m.reports.All(now) {
		if r.Age <= m.timers.Stale && !r.Report.At.IsZero() {
			clocks = append(clocks, r.Report.At.Add(r.Age))
		}
	}
	slices.SortFunc(clocks, time.Time.Compare)
	if n := len(clocks); n > 0 && clocks[n/2].After(now) {
		return clocks[n/2], n
	}
	return now, len(clocks)
}

// asideClock is replicate.Config.Clock. A machine often sets copies aside just after it
// has come back, with a clock that is not set yet: by that one alone they would be old
// as soon as it is.
func (m *member) asideClock() time.Time {
	at, heard := m.lateClock()
	members := 0
	for range m.cluster.State().Nodes() {
		members++
	}
	if heard < min(2, members) {
		return time.Time{}
	}
	return at
}

func (m *member) mayPropose(from volume.NodeID, c state.Command) error {
	var id volume.ID
	switch c := c.(type) {
	case state.ConfirmCreate:
		id = c.ID
	case state.AbortCreate:
		id = c.ID
	case state.CommitHandoff:
		id = c.ID
	case state.CommitRollback:
		id = c.ID
	case state.CallOffRollback:
		id = c.ID
	case state.OpenRoutes:
		id = c.ID
	case state.CommitDelete:
		id = c.ID
	case state.Tell:
		switch c.Kind {
		case state.VolumeAside, state.VolumeHook, state.VolumePorts, state.VolumePrestart, state.VolumeStarts:
			if c.Node == from {
				return nil // of a copy, or a container, of its own; the volume may be another node's by then
			}
		}
		id = c.Volume
	case state.UpdateNode:
		if c.ID != from && (c.Name != nil || c.Addr != nil || c.GossipAddr != nil) {
			return volume.Errorf(volume.CodeDenied, "a node says only of itself what it is called and where it is")
		}
		return nil // zone and labels are an operator's wish
	case state.PutContainer:
		if c.Container.Node != from {
			return volume.Errorf(volume.CodeDenied, "a node records its own containers only")
		}
		return nil
	case state.SetDataKey:
		if !cluster.MayHaveData(m.cluster.State().Node(from)) {
			return volume.Errorf(volume.CodeDenied, "the data key is for nodes with a pool")
		}
		return nil
	case state.AbortHandoff, state.AbortDelete, state.DropContainer, state.PauseRoute, state.HoldSnapshot, state.ReleaseSnapshot, state.CreateToken, state.RevokeToken:
		return nil // any member may: an operator's wish, or the end of an attempt
	default:
		return volume.Errorf(volume.CodeDenied, "a node may not propose that")
	}
	v := m.cluster.State().Volume(id)
	if v != nil && v.Placement.Primary != from {
		return volume.Errorf(volume.CodeDenied, "only the primary of a volume may say so")
	}
	return nil
}

// Barrier implements api.Peer, on the leader.
func (m *member) Barrier(ctx context.Context) (uint64, error) {
	index, err := m.cluster.Barrier(ctx)
	if isNotLeader(err) {
		return 0, errNotLeader
	}
	return index, err
}

// catchUp returns once this node has applied everything that a leader, proven after
// the call began, had committed.
func (m *member) catchUp(ctx context.Context) error {
	var index uint64
	err := m.onLeader(ctx, func(ctx context.Context, leader *api.Client) (err error) {
		if leader == nil {
			index, err = m.cluster.Barrier(ctx)
			return err
		}
		index, err = leader.Barrier(ctx)
		return err
	})
	if err != nil {
		return err
	}
	return m.cluster.CaughtUp(ctx, index)
}

// client of another node's API. Clients are kept, so that connections are reused.
func (m *member) client(id volume.NodeID) *api.Client {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.clients[id]
	if c == nil {
		c = api.NewClient(func(ctx context.Context) (net.Conn, error) {
			return m.cluster.Dial(ctx, id, transport.ProtoAPI)
		})
		m.clients[id] = c
	}
	return c
}

func (m *member) closeClients() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.clients {
		c.Close()
	}
}

// pollReports waits until what the leader hears says so.
func (m *member) pollReports(ctx context.Context, cond func() bool, format string, args ...any) error {
	for {
		changed := m.reports.Changed()
		if cond() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return waited(ctx.Err(), format, args...)
		}
	}
}

func (m *member) leaderless() bool {
	_, ok := m.cluster.Leader()
	return !ok
}

// cautiousClock is agent.Config.Clock: no node destroys by age what only its own clock
// says is old.
func (m *member) cautiousClock() time.Time {
	now := m.now()
	var clocks []time.Time
	for _, r := range m.reports.All(now) {
		if r.Age <= m.timers.Stale && !r.Report.At.IsZero() {
			clocks = append(clocks, r.Report.At)
		}
	}
	return placement.CautiousClock(now, clocks)
}

// heardByPlacement is what the leader heard of every node.
func (m *member) heardByPlacement() map[volume.NodeID]placement.Heard {
	now := m.now()
	out := map[volume.NodeID]placement.Heard{}
	for _, r := range m.reports.All(now) {
		out[r.Report.Node] = placement.Heard{Report: &r.Report, At: now.Add(-r.Age), For: m.timers.Stale}
	}
	return out
}

// leaderView is placement.Cluster.
type leaderView struct{ m *member }

func (l leaderView) State() *state.State                        { return l.m.cluster.State() }
func (l leaderView) Reports() map[volume.NodeID]placement.Heard { return l.m.heardByPlacement() }
func (l leaderView) Propose(ctx context.Context, c state.Command) error {
	_, err := l.m.commit(ctx, newRequest(), c)
	return err
}

// agentCluster is agent.Cluster.
type agentCluster struct{ m *member }

func (a agentCluster) State() *state.State      { return a.m.cluster.State() }
func (a agentCluster) Changed() <-chan struct{} { return a.m.cluster.Changed() }
func (a agentCluster) Propose(ctx context.Context, c state.Command) (state.Result, error) {
	return a.m.propose(ctx, c)
}
func (a agentCluster) CatchUp(ctx context.Context) error { return a.m.catchUp(ctx) }

// peers is agent.Peers.
type peers struct{ m *member }

func (p peers) Holds(ctx context.Context, node volume.NodeID, id volume.ID, guids []uint64) (map[uint64]bool, error) {
	// Who asks has stopped all else about the volume, and a dead connection is noticed late.
	ctx, cancel := context.WithTimeout(ctx, p.m.timers.Stale)
	defer cancel()
	if node == p.m.self {
		return p.m.Holds(ctx, id, guids)
	}
	return p.m.client(node).Holds(ctx, id, guids)
}

// newRequest is a fresh request ID.
func newRequest() string { return strings.ToLower(rand.Text()[:16]) }
