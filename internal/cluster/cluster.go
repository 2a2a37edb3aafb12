package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/transport"
	"github.com/flocker-io/flocker/internal/volume"
)

// ErrStopped means that Run has ended, or is ending.
var ErrStopped error = volume.Errorf(volume.CodeUnavailable, "this node's control plane has stopped")

var errStarting = volume.Errorf(volume.CodeUnavailable, "this node's control plane is still starting")

// Raft's housekeeping. Few entries are kept after a snapshot, since a follower that
// was away for longer gets the whole state, which is small.
const (
	snapshotAfter    = 2000
	trailingLogs     = 2000
	snapshotInterval = 30 * time.Second
	raftTimeout      = 5 * time.Second  // for one RPC
	stopTimeout      = 10 * time.Second // for everything to stop
)

// Cluster is this node's membership. Open makes one, Run makes it work; everything
// else may be called from any goroutine at any time, and says "starting" or
// "stopped" when that is so.
type Cluster struct {
	cfg    Config
	log    *slog.Logger
	disk   Disk
	record record

	id       *transport.Identity
	listener *transport.Listener
	dialer   *transport.Dialer
	layer    *streamLayer
	book     addressBook
	gossip   Gossip
	reports  *Reports

	current atomic.Pointer[state.State] // what State answers
	changed notifier                    // a newer one is there

	raft    atomic.Pointer[raft.Raft]
	lead    leadership
	barrier barrierBatch
	io      ioWatch

	// initialised is closed once what Init has prepared is committed.
	initialised chan struct{}

	retired atomic.Pointer[error] // see retired.go
	fatal   chan error            // the first reason to stop
	stopCtx context.Context       // ends when the node stops
	stop    context.CancelFunc

	mu      sync.Mutex
	running bool // goroutines may be added to wg
	wg      sync.WaitGroup
}

// Open loads this node's membership and binds its port. The error is ErrNoCluster
// when Init or Join must come first, and one of IsRetired when this node is no member any
// more.
func Open(cfg Config) (*Cluster, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	rec, err := loadRecord(cfg.Disk)
	if err != nil {
		return nil, err
	}
	if why, err := loadRetired(cfg.Disk); err != nil || why != nil {
		return nil, cmp.Or(err, why)
	}
	id, err := loadIdentity(cfg.Disk, rec)
	if err != nil {
		return nil, err
	}
	ln, err := cfg.ListenFunc(context.Background(), "tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("opening the node port: %w", err)
	}
	c := &Cluster{
		cfg: cfg, disk: cfg.Disk, record: rec, id: id,
		log:     cfg.Log.With("node", rec.Node.Short()),
		dialer:  &transport.Dialer{Identity: id, Dial: cfg.DialFunc},
		reports: NewReports(),
		fatal:   make(chan error, 1),

		initialised: make(chan struct{}),
	}
	c.stopCtx, c.stop = context.WithCancel(context.Background())
	c.changed.init()
	c.lead.changed.init()
	c.book.init(rec.Peers)
	c.current.Store(state.New())
	c.loadCache()
	c.gossip = cfg.Gossip
	if c.gossip == nil {
		c.gossip = newGossip(cfg, rec, c.log)
	}
	c.listener = transport.Listen(ln, id, c.admit, c.log)
	c.layer = &streamLayer{
		Listener: c.listener.Protocol(transport.ProtoRaft),
		self:     rec.Node, generation: rec.Generation,
		conns: map[net.Conn]struct{}{},
		dial: func(ctx context.Context, id volume.NodeID) (net.Conn, error) {
			return c.Dial(ctx, id, transport.ProtoRaft)
		},
	}
	return c, nil
}

// ID of this node.
func (c *Cluster) ID() volume.NodeID { return c.record.Node }

// ClusterID of the cluster.
func (c *Cluster) ClusterID() string { return c.record.Cluster }

// State is the newest state this node has applied; never nil. After a restart, and
// until Raft has spoken, it is the one that was last saved: old perhaps, but one
// that the whole cluster had agreed on.
func (c *Cluster) State() *state.State { return c.current.Load() }

// Changed is closed when State answers a newer one. Take the channel first, then
// look at the state, then wait.
func (c *Cluster) Changed() <-chan struct{} { return c.changed.wait() }

// Wait until a state satisfies cond, and return it. The error is the end of ctx, or
// ErrStopped.
func (c *Cluster) Wait(ctx context.Context, cond func(*state.State) bool) (*state.State, error) {
	for {
		changed := c.Changed()
		s := c.State()
		if cond(s) {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return s, context.Cause(ctx)
		case <-c.stopCtx.Done():
			return s, ErrStopped
		}
	}
}

// CaughtUp waits until this node has applied everything up to index. With an index
// that the leader's Barrier gave after a question was asked, the state answers the
// question as the leader would have.
func (c *Cluster) CaughtUp(ctx context.Context, index uint64) error {
	_, err := c.Wait(ctx, func(s *state.State) bool { return s.Index >= index })
	return err
}

// Reports is this node's copy of every node's last report.
func (c *Cluster) Reports() *Reports { return c.reports }

// Health is what is thought of a node now.
func (c *Cluster) Health(id volume.NodeID) Health {
	if id == c.record.Node {
		return Alive
	}
	r, ok := c.reports.Get(id, time.Now())
	return HealthOf(ok, r.Age, c.gossip.Health(id))
}

// Listener of one protocol on the node port. Its connections are *transport.Conn.
// It is closed when Run ends.
func (c *Cluster) Listener(p transport.Protocol) net.Listener { return c.listener.Protocol(p) }

// Addr that the node port is bound to.
func (c *Cluster) Addr() net.Addr { return c.listener.Addr() }

// Dial another member. The connection is with that node and no other, or fails.
func (c *Cluster) Dial(ctx context.Context, id volume.NodeID, p transport.Protocol) (net.Conn, error) {
	switch n := c.State().Node(id); {
	case n == nil:
	case n.Removed:
		return nil, volume.Errorf(volume.CodeNotFound, "node %s%s", n.Name, removedWords)
	case n.Lost:
		return nil, volume.Errorf(volume.CodeUnavailable, "node %s%s, and has not joined again", n.Name, leftBehindWords)
	}
	addr, hinted := c.book.lookUp(c.State(), id)
	if addr == "" {
		return nil, volume.Errorf(volume.CodeUnavailable, "the address of node %s is not known yet", id.Short())
	}
	conn, err := c.dialer.DialNode(ctx, id, addr, p)
	if err == nil {
		return conn, nil
	}
	var refused *transport.RefusedError
	if errors.As(err, &refused) { // a member says so, which has it from the log
		switch {
		case strings.HasSuffix(refused.Reason, removedWords):
			c.fail(ErrRemoved)
		case strings.HasSuffix(refused.Reason, leftBehindWords):
			c.fail(ErrLeftBehind)
		}
	}
	if hinted && ctx.Err() == nil {
		c.book.forget(id)
		if addr := c.book.find(c.State(), id); addr != "" {
			if conn, err := c.dialer.DialNode(ctx, id, addr, p); err == nil {
				return conn, nil
			}
		}
	}
	return nil, err
}

// admit is asked about each node that connects. A node that is not listed is let in:
// its certificate proves that it was admitted, and this node may be the one that is
// behind. A removed node stays listed, and is refused for ever; one without which the
// cluster was recovered, until it has joined again.
func (c *Cluster) admit(id volume.NodeID) error {
	switch n := c.State().Node(id); {
	case n == nil:
	case n.Removed:
		return errors.New("node " + n.Name + removedWords)
	case n.Lost:
		return errors.New("node " + n.Name + leftBehindWords)
	}
	return nil
}

// Close gives the port back when Run was never called. After Run it does nothing.
func (c *Cluster) Close() error {
	c.stop()
	return c.listener.Close()
}

// Run is the node's part in the cluster. It returns when ctx ends (nil), when this
// node is no member any more (IsRetired), or when it must not go on: the log has an entry of a
// newer version (state.ErrUnknownCommand), the disk hangs, the port fails. It is
// called once.
func (c *Cluster) Run(ctx context.Context) error {
	stores, err := c.disk.OpenRaft(raftLogger(c.log))
	if err != nil {
		c.Close()
		return err
	}
	// The network outlives ctx, so that leadership can be handed over at the end.
	netCtx, closeNet := context.WithCancel(context.WithoutCancel(ctx))
	defer closeNet()
	c.layer.ctx = netCtx
	trans := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		ServerAddressProvider: addrByID{},
		Logger:                raftLogger(c.log),
		Stream:                c.layer,
		MaxPool:               2,
		MaxRPCsInFlight:       1, // with pipelining, replication to a node whose disk stalled may never resume
		Timeout:               raftTimeout,
	})
	notify := make(chan bool, 16)
	r, err := c.startRaft(stores, trans, notify)
	if err != nil {
		trans.Close()
		stores.Close()
		c.Close()
		return fmt.Errorf("starting raft: %w", err)
	}
	c.raft.Store(r)
	c.mu.Lock()
	c.running = true
	c.mu.Unlock()

	// What Raft needs. It blocks on notify, so that is taken until it has stopped.
	watchCtx, stopWatch := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWatch()
	var carriers sync.WaitGroup
	carriers.Go(func() { c.lead.watch(watchCtx, notify) })
	carriers.Go(func() {
		if err := c.listener.Run(netCtx); err != nil {
			c.fail(err)
		}
	})

	// What needs Raft.
	taskCtx, stopTasks := context.WithCancel(ctx)
	defer stopTasks()
	var tasks sync.WaitGroup
	for _, task := range []func(context.Context){
		c.finishInit, c.reconcile, c.announce, c.renew, c.keepCache, c.watchRemoval, c.askWhenCutOff, c.serve, c.canary,
		func(ctx context.Context) { c.gossip.Run(ctx, c) },
	} {
		tasks.Go(func() { task(taskCtx) })
	}

	var why error
	select {
	case <-ctx.Done():
		c.handOver(r)
	case why = <-c.fatal:
		c.log.Error("the control plane stops", "err", why)
	}
	if left := c.Retired(); left != nil {
		why = left
		if err := retire(c.disk, why); err != nil {
			c.log.Error("cannot write down that this node is no member any more; after a restart the others say it again", "err", err)
		}
	}

	// Stop in the order of dependence, but wait for a hung disk no longer than
	// stopTimeout: it can block Raft, and whoever writes, for ever, and the process is
	// about to exit.
	c.stop()
	stopTasks()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		trans.Close() // first, or Raft would wait for peers that do not answer
		closeNet()
		tasks.Wait()
		// Raft answers what is under way, at the latest when it steps down for want of
		// peers; once it is shutting down it may forget to.
		c.mu.Lock()
		c.running = false
		c.mu.Unlock()
		c.wg.Wait()
		r.Shutdown().Error()
		trans.CloseStreams()
		stopWatch()
		carriers.Wait()
		stores.Close()
	}()
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-stopped:
		return why
	case <-timer.C:
		return cmp.Or(why, errors.New("the control plane did not stop in time; its disk may hang"))
	}
}

// startRaft also bootstraps the log of a cluster that Init has just made.
func (c *Cluster) startRaft(stores *Stores, trans raft.Transport, notify chan<- bool) (*raft.Raft, error) {
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(c.record.Node)
	conf.HeartbeatTimeout = c.cfg.Timing.Heartbeat
	conf.ElectionTimeout = c.cfg.Timing.Election
	conf.LeaderLeaseTimeout = c.cfg.Timing.LeaderLease
	conf.CommitTimeout = c.cfg.Timing.Commit
	conf.SnapshotThreshold = snapshotAfter
	conf.SnapshotInterval = snapshotInterval
	conf.TrailingLogs = trailingLogs
	conf.NotifyCh = notify
	conf.NoLegacyTelemetry = true
	conf.Logger = raftLogger(c.log)

	logs := c.io.wrap(stores.Logs)
	_, err := c.disk.Read(fileInit)
	if err == nil {
		existing, err := raft.HasExistingState(stores.Logs, stores.Stable, stores.Snapshots)
		if err != nil {
			return nil, err
		}
		if !existing {
			self := raft.Server{Suffrage: raft.Voter, ID: conf.LocalID, Address: trans.LocalAddr()}
			err := raft.BootstrapCluster(conf, stores.Logs, stores.Stable, stores.Snapshots, trans,
				raft.Configuration{Servers: []raft.Server{self}})
			if err != nil {
				return nil, err
			}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f := &fsm{state: state.New(), publish: c.publish, fatal: c.fail}
	return raft.NewRaft(conf, f, logs, stores.Stable, stores.Snapshots, trans)
}

// publish makes a state the current one, unless it is older: Raft applies its log
// again after a restart, from further back than the saved state.
func (c *Cluster) publish(s *state.State) {
	if s.Index <= c.State().Index {
		return
	}
	c.current.Store(s)
	c.changed.notify()
}

// Retired is why this node is no member any more, once it has learned that; nil before.
// What needs the cluster fails then, for reasons that say less.
func (c *Cluster) Retired() error {
	if why := c.retired.Load(); why != nil {
		return *why
	}
	// Raft may have stopped on being removed before watchRemoval has looked at the state.
	if n := c.State().Node(c.record.Node); n != nil && n.Removed {
		return ErrRemoved
	}
	return nil
}

// fail stops Run with the first reason given.
func (c *Cluster) fail(err error) {
	if IsRetired(err) {
		c.retired.CompareAndSwap(nil, &err)
	}
	select {
	case c.fatal <- err:
	default:
	}
}

// handOver gives leadership away before a planned stop, which saves the others an
// election.
func (c *Cluster) handOver(r *raft.Raft) {
	if r.State() != raft.Leader || len(votersOf(r)) < 2 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*c.cfg.Timing.Election)
	defer cancel()
	if err := c.await(ctx, r.LeadershipTransfer()); err != nil {
		c.log.Info("could not hand over leadership before stopping", "err", err)
	}
}

// watchRemoval closes the connections of nodes that are removed, and stops this node
// when it is one of them.
func (c *Cluster) watchRemoval(ctx context.Context) {
	members := map[volume.NodeID]bool{c.record.Node: true}
	for {
		changed := c.Changed()
		s := c.State()
		for id := range members {
			if n := s.Node(id); n != nil && n.Removed {
				delete(members, id)
				c.listener.CloseNode(id)
				c.layer.closeNode(id)
				c.reports.Forget(id)
				if id == c.record.Node {
					c.fail(ErrRemoved)
				}
			}
		}
		for n := range s.Nodes() {
			members[n.ID] = true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// askWhenCutOff connects to the other members while no leader is heard. A node that was
// removed is called by nobody any more, and the refusal is how it learns why.
func (c *Cluster) askWhenCutOff(ctx context.Context) {
	for sleep(ctx, c.cfg.Timing.Retry) {
		if _, ok := c.Leader(); ok {
			continue
		}
		for n := range c.State().Nodes() {
			if n.ID == c.record.Node {
				continue
			}
			conn, err := c.Dial(ctx, n.ID, transport.ProtoNode)
			if err != nil {
				c.log.Debug("no leader is heard, and a member cannot be reached", "member", n.Name, "err", err)
				continue
			}
			conn.Close()
		}
	}
}

// goRun starts a goroutine that Run joins, unless the node has stopped.
func (c *Cluster) goRun(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.running {
		return false
	}
	c.wg.Go(f)
	return true
}

// notifier wakes everybody who waits for the next change.
type notifier struct {
	mu sync.Mutex
	ch chan struct{}
}

func (n *notifier) init() { n.ch = make(chan struct{}) }

func (n *notifier) wait() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ch
}

func (n *notifier) notify() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.ch)
	n.ch = make(chan struct{})
}

// sleep until d has passed or ctx ends; false in the second case.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
