package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flocker-io/flocker/internal/agent"
	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/cluster"
	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/plugin"
	"github.com/flocker-io/flocker/proxy"
	"github.com/flocker-io/flocker/replicate"
	"github.com/flocker-io/flocker/zfs"
)

// ZFS is what a node uses of its pool; *zfs.Host and *zfsfake.Host are it.
type ZFS interface {
	zfs.System
	Pools
}

// Parts are what a Daemon is built from: the real machine's in cmd/flockd, fakes in
// tests. Optional ones say so.
type Parts struct {
	Version string
	BootID  string
	Log     *slog.Logger
	Timers  Timers
	Metrics *Metrics
	Now     func() time.Time // nil: time.Now
	// Boot is the clock of leases; nil: CLOCK_BOOTTIME.
	Boot func() lease.Moment
	// Fencer stops this node's writers when its lease is over; nil: none is installed,
	// and failover stays manual.
	Fencer Fencer
	// StopWriters is what this process does itself when the fencer is gone: it kills the
	// users of everything below a dataset, unmounts it and verifies that. Nil: nothing.
	StopWriters func(ctx context.Context, root string) error

	StateDir string
	MountDir string
	Pool     string // instead of the one that init or join was given; "": that one
	ZFS      ZFS
	Files    agent.Files
	Engine   container.Engine // nil: a node without containers
	Trees    Trees            // reads snapshots to verify copies; nil: they cannot be verified
	Examiner Examiner         // tells of the machine itself, for doctor; nil: nothing is told of it
	// Papers are what the machine has to show of itself and a pool ("": it has none), and Logs
	// what flocker's services have said since so long, for diagnostics. Both may be nil.
	Papers func(pool string) []Paper
	Logs   func(since time.Duration) []Paper
	// Doors are where containers wait that are started ahead of their volumes; nil: none is.
	Doors Doors
	// Dirty counts what is written to a pool; nil: `written` alone tells.
	Dirty func(pool string) replicate.Dirty
	// Observe hears of every event of replication; nil: only the metrics do.
	Observe func(replicate.Event)
	// Proxy is this machine's `flockd proxy`; nil: routes are not served here. ProxyPort is
	// where the proxies of all nodes listen for one another. Probe returns when a server
	// answers as one that is ready does, or ctx ends.
	Proxy     proxy.Controller
	ProxyPort string
	Probe     func(ctx context.Context, mode proxy.Mode, announce proxy.Announce, server string) error

	// Cluster is the configuration of raft, gossip and the network; Dir, Version and
	// Log are filled in.
	Cluster cluster.Config

	// The sockets. Local is where flockctl connects; nil: nobody does. Plugin is the
	// path of Docker's socket; "": Docker is not served.
	Local  func() (net.Listener, error)
	Plugin string
	// Started is called once the node answers on all its sockets. May be nil.
	Started func()
	// Close ends what the parts have running by themselves; Run calls it last. May be nil.
	Close func()
}

func (p Parts) boot() func() lease.Moment {
	if p.Boot == nil {
		return bootClock
	}
	return p.Boot
}

func (p Parts) now() time.Time {
	if p.Now == nil {
		return time.Now()
	}
	return p.Now()
}

// Daemon is one node, in a cluster or not.
type Daemon struct {
	parts Parts
	log   *slog.Logger
	// current is nil while the node is in no cluster.
	current atomic.Pointer[member]
	// retired is why the node is in none any more; nil: it never was.
	retired atomic.Pointer[retired]
	// changing makes init and join exclude each other.
	changing sync.Mutex
	joined   chan *cluster.Cluster // a membership that init or join made

	asking asking // what doctor asks of this node
}

// New makes a Daemon; Run runs it.
func New(p Parts) *Daemon {
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	if p.Metrics == nil {
		p.Metrics = NewMetrics(p.Version)
	}
	p.Cluster.Dir, p.Cluster.Version, p.Cluster.Log = p.StateDir, p.Version, p.Log
	return &Daemon{parts: p, log: p.Log, joined: make(chan *cluster.Cluster, 1)}
}

// Run serves until ctx ends or a part fails, and returns when everything has
// stopped. A node that is a member works as one from the start; another waits for
// Init or Join, and one that was taken out of its cluster for Join.
func (d *Daemon) Run(ctx context.Context) error {
	if d.parts.Close != nil {
		defer d.parts.Close()
	}
	c, err := cluster.Open(d.parts.Cluster)
	switch {
	case errors.Is(err, cluster.ErrNoCluster):
	case cluster.IsRetired(err):
		d.retired.Store(&retired{why: err})
	case err != nil:
		return err
	default:
		d.joined <- c
	}

	defer d.asking.wait()
	g := newGroup(ctx)
	d.asking.until(g.ctx)
	member := make(chan struct{}) // closed when a membership has been loaded
	g.run("member", func(ctx context.Context) error { return d.runMember(ctx, sync.OnceFunc(func() { close(member) })) })
	if err == nil {
		// Docker must not be told "no such volume" about volumes that are there.
		select {
		case <-member:
		case <-g.ctx.Done():
		}
	}

	answering := make(chan struct{}) // closed once Docker's socket is there
	if d.parts.Local != nil {
		l, err := d.parts.Local()
		if err != nil {
			g.cancel(err)
			return g.wait()
		}
		g.run("control socket", func(ctx context.Context) error {
			return api.ServeLocal(ctx, l, api.NewHandler(backend{d}, nil, d.log), d.log)
		})
	}
	if d.parts.Plugin != "" {
		p := &plugin.Plugin{
			Backend: driver{d}, Log: d.log, Socket: d.parts.Plugin, Observe: d.parts.Metrics.plugin,
			Listening: sync.OnceFunc(func() { close(answering) }),
		}
		g.run("docker plugin", p.Run)
	} else {
		close(answering)
	}
	select {
	case <-answering:
		if d.parts.Started != nil {
			d.parts.Started()
		}
	case <-g.ctx.Done():
	}
	return g.wait()
}

// runMember waits for a membership and runs it. One that ends because the node was taken
// out of its cluster may be followed by another.
func (d *Daemon) runMember(ctx context.Context, loaded func()) error {
	for {
		if r := d.retired.Load(); r != nil {
			d.stopWriters(ctx, r)
		}
		select {
		case c := <-d.joined:
			d.retired.Store(nil)
			err := d.runMembership(ctx, c, loaded)
			if ctx.Err() != nil || !cluster.IsRetired(err) {
				return err
			}
			d.retired.Store(&retired{why: err})
			loaded()
		case <-ctx.Done():
			return nil
		}
	}
}

// runMembership runs one until it ends.
func (d *Daemon) runMembership(ctx context.Context, c *cluster.Cluster, loaded func()) error {
	setup, err := readSetup(d.parts.StateDir)
	if err != nil {
		return err
	}
	if d.parts.Pool != "" {
		setup = localSetup{Pool: d.parts.Pool}
	}
	if setup.Pool != "" {
		if err := openPool(ctx, d.parts.ZFS, setup); err != nil {
			// The node goes on as a member, so that its trouble can be seen from everywhere;
			// the agent tries again.
			d.log.Error("the pool cannot be opened", "pool", setup.Pool, "err", err)
		}
	}
	m := newMember(d.parts, c, setup)
	defer m.closeClients()
	g := newGroup(ctx)
	g.run("member", func(ctx context.Context) error { return m.run(ctx, api.NewHandler(backend{d}, m, d.log)) })
	// A cluster that was just made or joined is known once Raft has spoken; after a
	// restart the state on disk is there at once.
	if _, err := c.Wait(g.ctx, func(s *state.State) bool { return s.Cluster() != nil && s.Node(m.self) != nil }); err == nil {
		d.current.Store(m)
		defer d.current.Store(nil)
		loaded()
	}
	err = g.wait()
	return cmp.Or(c.Retired(), err)
}

// member is the membership, or a refusal that says how to get one.
func (d *Daemon) member() (*member, error) {
	if m := d.current.Load(); m != nil {
		return m, nil
	}
	if r := d.retired.Load(); r != nil {
		return nil, r.why
	}
	return nil, cluster.ErrNoCluster
}

// Plugin is what Docker may ask of this node, for tests without a socket.
func (d *Daemon) Plugin() plugin.Backend { return driver{d} }

// API is what people may ask of this node.
func (d *Daemon) API() api.Backend { return backend{d} }

// setUp is what Init and Join have in common: enter writes the membership to disk
// once the pool is there.
func (d *Daemon) setUp(ctx context.Context, req api.NodeSetup, witness bool, enter func(name string) (*cluster.Cluster, error)) (*member, bool, error) {
	if _, ok := api.Caller(ctx); ok {
		return nil, false, volume.Errorf(volume.CodeDenied, "a node is set up from its own machine only")
	}
	if !d.changing.TryLock() {
		return nil, false, volume.Errorf(volume.CodeConflict, "this node is just being set up")
	}
	defer d.changing.Unlock()
	if m := d.current.Load(); m != nil {
		if req.IfNew {
			return m, true, nil
		}
		return nil, false, volume.Errorf(volume.CodeConflict, "this node is in cluster %s already", m.cluster.ClusterID()).
			WithHint("to leave it, remove the node from the cluster and its state directory %s; what root cannot remove below it was made so by flockd, and `chattr -i` on it undoes that", d.parts.StateDir)
	}
	name := req.Name
	if name == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, false, fmt.Errorf("asking for the host name: %w", err)
		}
		name, _, _ = strings.Cut(host, ".")
	}
	if d.retired.Load() != nil && !witness && req.Pool == "" && req.PoolFileSize == 0 {
		was, err := readSetup(d.parts.StateDir)
		if err != nil {
			return nil, false, err
		}
		req.Pool = was.Pool // it comes back with what it has
	}
	setup, err := preparePool(ctx, d.parts.ZFS, d.parts.StateDir, req, witness)
	if err != nil {
		return nil, false, err
	}
	if err := writeSetup(d.parts.StateDir, setup); err != nil {
		return nil, false, err
	}
	c, err := enter(name)
	if err != nil {
		return nil, false, err
	}
	// From here on the node is a member, whatever happens to the caller.
	d.joined <- c
	for {
		if m := d.current.Load(); m != nil && m.ready() {
			return m, false, nil
		}
		if ctx.Err() != nil {
			return nil, false, waited(ctx.Err(), "this node is a member now, but has not caught up with the cluster yet")
		}
		pause(ctx, 10*time.Millisecond)
	}
}

// Init implements api.Backend.
func (d *Daemon) Init(ctx context.Context, req api.InitRequest) (api.InitReply, error) {
	m, existed, err := d.setUp(ctx, req.NodeSetup, false, func(name string) (*cluster.Cluster, error) {
		addr, gossip, err := advertised(req.Advertise, d.parts.Cluster.Listen, d.parts.Cluster.GossipListen)
		if err != nil {
			return nil, err
		}
		return cluster.Init(ctx, d.parts.Cluster, cluster.InitRequest{
			Name: name, Zone: volume.Zone(req.Zone), Advertise: addr, GossipAdvertise: gossip,
			Settings: state.Settings{Lease: d.parts.Timers.Lease, Hold: d.parts.Timers.Held},
		})
	})
	if err != nil {
		return api.InitReply{}, err
	}
	out := api.InitReply{ClusterID: m.cluster.ClusterID(), Node: m.view().ref(m.self), Existed: existed}
	if existed {
		return out, nil
	}
	tok, err := m.CreateToken(ctx, api.TokenRequest{Note: "made by init"})
	if err != nil {
		return out, fmt.Errorf("the cluster is made, a first join token is not; make one with `flockctl token create`: %w", err)
	}
	out.Token, out.TokenExpires, out.JoinCommand = tok.Text, tok.Expires, tok.JoinCommand
	return out, nil
}

// Join implements api.Backend.
func (d *Daemon) Join(ctx context.Context, req api.JoinRequest) (api.JoinReply, error) {
	m, existed, err := d.setUp(ctx, req.NodeSetup, req.Witness, func(name string) (*cluster.Cluster, error) {
		addr, gossip := "", "" // the address from which this machine reaches the member
		if req.Advertise != "" {
			var err error
			if addr, gossip, err = advertised(req.Advertise, d.parts.Cluster.Listen, d.parts.Cluster.GossipListen); err != nil {
				return nil, err
			}
		} else if _, port, err := net.SplitHostPort(d.parts.Cluster.Listen); err == nil {
			addr = ":" + port
			if _, gport, err := net.SplitHostPort(d.parts.Cluster.GossipListen); err == nil {
				gossip = ":" + gport
			}
		}
		return cluster.Join(ctx, d.parts.Cluster, cluster.JoinRequest{
			Token: req.Token, Peers: req.Peers, Name: name, Zone: volume.Zone(req.Zone),
			Advertise: addr, GossipAdvertise: gossip, Witness: req.Witness, LeaseNo: d.lastLease(ctx),
		})
	})
	if err != nil {
		return api.JoinReply{}, err
	}
	return api.JoinReply{ClusterID: m.cluster.ClusterID(), Node: m.view().ref(m.self), Existed: existed}, nil
}

// lastLease is the number of the last lease that the fencer knows of; 0 when it knows none.
// One that cannot be asked keeps this node from any lease, and says so then.
func (d *Daemon) lastLease(ctx context.Context) uint64 {
	if d.parts.Fencer == nil {
		return 0
	}
	s, err := d.parts.Fencer.Status(ctx)
	if err != nil {
		d.log.Warn("the fencer cannot be asked for the last lease of this machine", "err", err)
	}
	return s.Lease.No
}

// advertised are the addresses at which others reach this node: host is what the
// operator gave, with or without a port; without it, the machine's own.
func advertised(host, listen, gossipListen string) (addr, gossip string, err error) {
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", "", fmt.Errorf("listen address %q: %w", listen, err)
	}
	gossipPort := ""
	if gossipListen != "" {
		if _, gossipPort, err = net.SplitHostPort(gossipListen); err != nil {
			return "", "", fmt.Errorf("gossip address %q: %w", gossipListen, err)
		}
	}
	if h, p, serr := net.SplitHostPort(host); serr == nil {
		host, port = h, p
	}
	if host == "" {
		if h, _, serr := net.SplitHostPort(listen); serr == nil && h != "" && !net.ParseIP(h).IsUnspecified() {
			host = h
		} else if host, err = ownAddress(); err != nil {
			return "", "", err
		}
	}
	addr = net.JoinHostPort(host, port)
	if gossipPort != "" {
		gossip = net.JoinHostPort(host, gossipPort)
	}
	return addr, gossip, nil
}

// ownAddress is the machine's only global unicast address; with several the operator
// has to choose.
func ownAddress() (string, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return "", fmt.Errorf("asking for this machine's interfaces: %w", err)
	}
	var found []string
	for _, i := range interfaces {
		addrs, err := i.Addrs()
		if err != nil {
			return "", fmt.Errorf("asking for this machine's addresses: %w", err)
		}
		found = append(found, reachableAt(i.Name, addrs)...)
	}
	if len(found) != 1 {
		return "", volume.Errorf(volume.CodeInvalid, "this machine has %d addresses (%s)", len(found), strings.Join(found, ", ")).
			WithHint("say with --advertise at which one the other nodes reach it")
	}
	return found[0], nil
}

// engineBridge are the interfaces of Docker's networks on its machine. Every machine with an
// engine has one, at an address that all of them have and no other machine reaches.
var engineBridge = regexp.MustCompile(`^(docker0|docker_gwbridge|br-[0-9a-f]{12})$`)

// reachableAt are the addresses of an interface at which other nodes may reach the machine.
func reachableAt(name string, addrs []net.Addr) (found []string) {
	if engineBridge.MatchString(name) {
		return nil
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && n.IP.To4() != nil {
			found = append(found, n.IP.String())
		}
	}
	return found
}

// Version implements api.Backend.
func (d *Daemon) Version(ctx context.Context) (api.VersionInfo, error) {
	out := api.VersionInfo{Version: d.parts.Version, GoVersion: runtime.Version(), API: api.APIVersion}
	// What cannot be asked is left out.
	if caps, err := d.parts.ZFS.Capabilities(ctx); err == nil {
		out.ZFS, out.Kernel = caps.Userland, caps.Kernel
	}
	if d.parts.Engine != nil {
		ectx, cancel := context.WithTimeout(ctx, engineTimeout)
		defer cancel()
		if v, err := d.parts.Engine.Version(ectx); err == nil {
			out.Docker = v.Engine
		}
	}
	return out, nil
}

// Health says whether this node answers: nil, or why not.
func (d *Daemon) Health(ready bool) error {
	if !ready {
		return nil
	}
	m, err := d.member()
	switch {
	case err != nil:
		return err
	case m.leaderless():
		return errNoLeader
	case m.agent != nil:
		select {
		case <-m.agent.Fresh():
		default:
			return errors.New("the agent has not caught up with the cluster")
		}
	}
	return nil
}

// HTTP serves /metrics, /healthz and /readyz.
func (d *Daemon) HTTP() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", d.parts.Metrics.Handler(d))
	for path, ready := range map[string]bool{"GET /healthz": false, "GET /readyz": true} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			if err := d.Health(ready); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			fmt.Fprintln(w, "ok")
		})
	}
	return mux
}

// State is what this node has applied; nil while it is in no cluster. For tests.
func (d *Daemon) State() *state.State {
	if m := d.current.Load(); m != nil {
		return m.cluster.State()
	}
	return nil
}

// MoveWithContainers makes a node the primary of a volume whose containers go along, if
// this node leads. For tests.
func (d *Daemon) MoveWithContainers(ctx context.Context, id volume.ID, to volume.NodeID) error {
	m, err := d.member()
	if err != nil {
		return err
	}
	return m.moveTo(ctx, id, to, true)
}

// CatchUp returns once this node has applied all that was committed before the call. For
// tests.
func (d *Daemon) CatchUp(ctx context.Context) error {
	m, err := d.member()
	if err != nil {
		return err
	}
	return m.catchUp(ctx)
}

// Servers are the nodes in Raft's configuration, true for voters. For tests.
func (d *Daemon) Servers() map[volume.NodeID]bool {
	if m := d.current.Load(); m != nil {
		return m.cluster.Servers()
	}
	return nil
}

// ID of this node; "" while it is in no cluster. For tests.
func (d *Daemon) ID() volume.NodeID {
	if m := d.current.Load(); m != nil {
		return m.self
	}
	return ""
}

// Lease says whether this node may write now, and the number of its lease. For tests.
func (d *Daemon) Lease() (held bool, no uint64) {
	m := d.current.Load()
	if m == nil {
		return false, 0
	}
	held, _ = m.tenure.Held()
	if n := m.cluster.State().Node(m.self); n != nil {
		no = n.Lease.No
	}
	return held, no
}

// Links of the volumes this node is the primary of. For tests.
func (d *Daemon) Links() map[volume.ID][]volume.LinkStatus {
	out := map[volume.ID][]volume.LinkStatus{}
	m := d.current.Load()
	if m == nil || m.repl == nil {
		return out
	}
	for v := range m.cluster.State().Volumes() {
		if v.Placement.Primary == m.self {
			out[v.ID] = m.repl.Links(v.ID)
		}
	}
	return out
}
