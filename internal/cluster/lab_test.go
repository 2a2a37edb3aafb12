package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/transport/memnet"
	"github.com/flocker-io/flocker/internal/volume"
)

// lab is a cluster in one synctest bubble: nodes on an in-memory network with disks
// that outlive them.
type lab struct {
	t   *testing.T
	net *memnet.Network
	log *slog.Logger
	// certLife is that of all certificates; 0: the usual one.
	certLife time.Duration
	nodes    []*labNode // appended by the test's goroutine

	mu sync.Mutex // guards nodes for report

	stopReports context.CancelFunc
	wg          sync.WaitGroup
}

type labNode struct {
	lab    *lab
	name   string
	host   string
	zone   volume.Zone
	disk   *MemDisk
	timing Timing

	mu     sync.Mutex
	c      *Cluster // nil while it is down
	cancel context.CancelFunc
	done   chan error
}

func newLab(t *testing.T) *lab {
	l := &lab{t: t, net: memnet.New(), log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	l.net.SetLatency(200 * time.Microsecond)
	ctx, cancel := context.WithCancel(context.Background())
	l.stopReports = cancel
	l.wg.Go(func() { l.report(ctx) })
	return l
}

// close stops every node. It is what each test ends with, inside the bubble.
func (l *lab) close() {
	l.t.Helper()
	l.stopReports()
	l.net.HealAll()
	for _, n := range l.nodes {
		if n.cluster() != nil {
			n.stop()
		}
	}
	l.wg.Wait()
}

// report does the daemon's part: each node's report reaches the leader it knows,
// when the network lets it.
func (l *lab) report(ctx context.Context) {
	for sleep(ctx, time.Second) {
		l.mu.Lock()
		nodes := slices.Clone(l.nodes)
		l.mu.Unlock()
		for _, n := range nodes {
			c, host := n.where()
			if c == nil {
				continue
			}
			leader, ok := c.Leader()
			if !ok {
				continue
			}
			for _, to := range nodes {
				lc, there := to.where()
				if lc != nil && lc.ID() == leader && l.net.Reachable(host, there) && l.net.Reachable(there, host) {
					lc.Reports().Put(volume.Report{Node: c.ID(), Applied: c.State().Index}, time.Now())
				}
			}
		}
	}
}

// node is a new machine, not in any cluster.
func (l *lab) node(zone volume.Zone) *labNode {
	i := len(l.nodes) + 1
	n := &labNode{
		lab: l, name: fmt.Sprintf("n%d", i), host: fmt.Sprintf("10.0.0.%d", i), zone: zone, disk: NewMemDisk(),
		timing: Timing{Stable: 5 * time.Second, DeadAfter: 20 * time.Second, Commit: 200 * time.Millisecond},
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nodes = append(l.nodes, n)
	return n
}

func (n *labNode) addr() string { return n.host + ":4523" }

func (n *labNode) config() Config {
	h := n.lab.net.Host(n.host)
	return Config{
		Disk: n.disk, Listen: ":4523", Advertise: n.addr(), ListenFunc: h.Listen, DialFunc: h.Dial,
		Gossip: NoGossip{}, Timing: n.timing, certLife: n.lab.certLife, Log: n.lab.log.With("name", n.name),
	}
}

func (n *labNode) cluster() *Cluster {
	c, _ := n.where()
	return c
}

func (n *labNode) where() (*Cluster, string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.c, n.host
}

// move gives a node that is down another address.
func (n *labNode) move(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.host = host
}

// run starts c, which Open, Init or Join made.
func (n *labNode) run(c *Cluster, err error) *Cluster {
	n.lab.t.Helper()
	if err != nil {
		n.lab.t.Fatalf("%s: %v", n.name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.mu.Lock()
	defer n.mu.Unlock()
	n.c, n.cancel, n.done = c, cancel, make(chan error, 1)
	done := n.done
	n.lab.wg.Go(func() { done <- c.Run(ctx) })
	return c
}

func (n *labNode) init() *Cluster {
	n.lab.t.Helper()
	return n.run(Init(n.lab.t.Context(), n.config(), InitRequest{Name: n.name, Zone: n.zone}))
}

func (n *labNode) join(peer *labNode, token string) *Cluster {
	n.lab.t.Helper()
	return n.run(Join(n.lab.t.Context(), n.config(), JoinRequest{
		Token: token, Peers: []string{peer.addr()}, Name: n.name, Zone: n.zone,
	}))
}

func (n *labNode) start() *Cluster {
	n.lab.t.Helper()
	return n.run(Open(n.config()))
}

// stop ends the node and returns what Run said.
func (n *labNode) stop() error {
	n.lab.t.Helper()
	n.mu.Lock()
	cancel, done := n.cancel, n.done
	n.c = nil
	n.mu.Unlock()
	cancel()
	return <-done
}

// kill is stop without a chance to say goodbye.
func (n *labNode) kill() {
	for _, other := range n.lab.nodes {
		if other != n {
			n.lab.net.Partition(n.host, other.host)
		}
	}
	n.stop()
	n.lab.net.Crash(n.host)
	for _, other := range n.lab.nodes {
		n.lab.net.Heal(n.host, other.host)
	}
}

// isolate cuts a node off from all others.
func (n *labNode) isolate() {
	for _, other := range n.lab.nodes {
		if other != n {
			n.lab.net.Partition(n.host, other.host)
		}
	}
}

// up are the nodes that run.
func (l *lab) up() []*labNode {
	var out []*labNode
	for _, n := range l.nodes {
		if n.cluster() != nil {
			out = append(out, n)
		}
	}
	return out
}

// eventually waits in bubble time until ok, which what describes.
func (l *lab) eventually(what string, ok func() bool) {
	l.t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			l.t.Fatalf("after 3 minutes still not: %s", what)
		}
	}
}

// leader waits until one node leads and proves it.
func (l *lab) leader() *labNode {
	l.t.Helper()
	var found *labNode
	l.eventually("a leader", func() bool {
		for _, n := range l.up() {
			c := n.cluster()
			if !c.IsLeader() {
				continue
			}
			ctx, cancel := context.WithTimeout(l.t.Context(), 2*time.Second)
			_, err := c.Barrier(ctx)
			cancel()
			if err == nil {
				found = n
				return true
			}
		}
		return false
	})
	return found
}

// token makes a join token on the leader.
func (l *lab) token(ttl time.Duration, uses int) string {
	l.t.Helper()
	c := l.leader().cluster()
	tok, text, err := c.NewToken(time.Now(), ttl, uses)
	if err != nil {
		l.t.Fatal(err)
	}
	l.propose(state.CreateToken{Token: tok})
	return text
}

// propose on the leader, again when it loses its place.
func (l *lab) propose(cmd state.Command) {
	l.t.Helper()
	request := string(volume.NewNodeID())
	l.eventually("a command is agreed on", func() bool {
		ctx, cancel := context.WithTimeout(l.t.Context(), 5*time.Second)
		defer cancel()
		res, err := l.leader().cluster().Propose(ctx, state.Envelope{Request: request, Command: cmd})
		if err == nil && res.Err != nil {
			l.t.Fatalf("%T: %v", cmd, res.Err)
		}
		return err == nil
	})
}

// form makes a cluster of n nodes, the zones taken in turn.
func (l *lab) form(n int, zones ...volume.Zone) {
	l.t.Helper()
	if len(zones) == 0 {
		zones = []volume.Zone{volume.DefaultZone}
	}
	first := l.node(zones[0])
	first.init()
	token := l.token(0, 0)
	for i := 1; i < n; i++ {
		l.node(zones[i%len(zones)]).join(first, token)
	}
	l.settle(voterTarget(n))
}

// settle waits until every running node knows all members and Raft has so many
// voters.
func (l *lab) settle(voters int) {
	l.t.Helper()
	l.eventually(fmt.Sprintf("%d voters, and all up to date", voters), func() bool {
		lead := l.leader().cluster()
		if len(votersOf(lead.raft.Load())) != voters {
			return false
		}
		return l.agree()
	})
}

// agree says that all running nodes have applied the same.
func (l *lab) agree() bool {
	index := l.leader().cluster().State().Index
	for _, n := range l.up() {
		if n.cluster().State().Index != index {
			return false
		}
	}
	return true
}

// names of the members, as a node sees them.
func names(s *state.State) map[string]bool {
	out := map[string]bool{}
	for n := range s.Nodes() {
		out[n.Name] = true
	}
	return out
}
