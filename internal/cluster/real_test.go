package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// Three nodes on real sockets, with real files: init, join, gossip, and a restart in
// another order.
func TestRealNodes(t *testing.T) {
	if testing.Short() {
		t.Skip("takes several seconds")
	}
	type node struct {
		cfg    Config
		name   string
		c      *Cluster
		cancel context.CancelFunc
		done   chan error
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	var nodes []*node
	for i := range 3 {
		addr, gossip := freeAddr(t), freeAddr(t)
		n := &node{name: fmt.Sprintf("n%d", i+1), cfg: Config{
			Dir: filepath.Join(t.TempDir(), "state"), Listen: addr, Advertise: addr, GossipListen: gossip, GossipAdvertise: gossip,
			Timing: Timing{Stable: time.Second, DeadAfter: 5 * time.Second}, Version: "test",
		}}
		n.cfg.Log = log.With("name", n.name)
		nodes = append(nodes, n)
	}
	run := func(n *node, c *Cluster, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", n.name, err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		n.c, n.cancel, n.done = c, cancel, make(chan error, 1)
		go func(done chan<- error) { done <- c.Run(ctx) }(n.done)
	}
	stop := func(n *node) {
		t.Helper()
		n.cancel()
		if err := <-n.done; err != nil {
			t.Errorf("%s: Run = %v", n.name, err)
		}
	}
	eventually := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("after a minute still not: %s", what)
			}
			// What the daemon does: tell the leader.
			for _, n := range nodes {
				for _, to := range nodes {
					if n.c == nil || to.c == nil {
						continue
					}
					if leader, ok := n.c.Leader(); ok && leader == to.c.ID() {
						to.c.Reports().Put(volume.Report{Node: n.c.ID(), Applied: n.c.State().Index}, time.Now())
					}
				}
			}
		}
	}
	settled := func() bool {
		for _, n := range nodes {
			if n.c.State().Index != nodes[0].c.State().Index || n.c.State().Cluster() == nil {
				return false
			}
			leader, ok := n.c.Leader()
			if !ok || len(votersOf(n.c.raft.Load())) != 3 {
				return false
			}
			for _, other := range nodes {
				if other != n && n.c.gossip.Health(other.c.ID()) != Alive {
					return false
				}
			}
			_ = leader
		}
		return true
	}

	c, err := Init(t.Context(), nodes[0].cfg, InitRequest{Name: "n1", Zone: "z1"})
	run(nodes[0], c, err)
	tok, text, err := c.NewToken(time.Now(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	eventually("a first command", func() bool {
		res, err := c.Propose(t.Context(), state.Envelope{Command: state.CreateToken{Token: tok}})
		return err == nil && res.Err == nil
	})
	for _, n := range nodes[1:] {
		c, err := Join(t.Context(), n.cfg, JoinRequest{Token: text, Peers: []string{nodes[0].cfg.Listen}, Name: n.name})
		run(n, c, err)
	}
	eventually("three voters who hear each other", settled)

	// Nobody else may read the keys.
	for name, want := range map[string]os.FileMode{"": 0o700, fileKey: 0o600, fileSeal: 0o600, fileNode: 0o600} {
		info, err := os.Stat(filepath.Join(nodes[1].cfg.Dir, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%q: %v, %v; want mode %o", name, info.Mode(), err, want)
		}
	}
	// A second process on the same directory is refused.
	second := nodes[1].cfg
	second.Listen = freeAddr(t)
	c2, err := Open(second)
	if err != nil {
		t.Fatal(err)
	}
	if err := c2.Run(t.Context()); err == nil {
		t.Error("two processes run on one directory")
	}

	// One dies: gossip tells the others.
	stop(nodes[2])
	dead := nodes[2].c.ID()
	eventually("gossip misses a node", func() bool { return nodes[0].c.gossip.Health(dead) == Dead })

	stop(nodes[0])
	stop(nodes[1])
	for _, i := range []int{2, 1, 0} {
		c, err := Open(nodes[i].cfg)
		run(nodes[i], c, err)
		if c.State().Node(dead) == nil {
			t.Errorf("%s has forgotten the state", nodes[i].name)
		}
	}
	eventually("all are back", settled)
	for _, n := range nodes {
		stop(n)
	}

	// Two are lost: the third goes on alone, with another log, and takes one of them back.
	alone, back := nodes[0], nodes[1]
	nodes = nodes[:2]
	if _, err := Recover(alone.cfg, time.Now(), yes); err != nil {
		t.Fatalf("recovering: %v", err)
	}
	c, err = Open(alone.cfg)
	run(alone, c, err)
	if g := c.State().Cluster(); g != nil && g.Generation != 1 {
		t.Errorf("it begins with a state of generation %d", g.Generation)
	}
	was := back.c.ID()
	back.c = nil
	eventually("it leads", func() bool { return alone.c.IsLeader() && alone.c.State().Cluster() != nil })
	old, err := Open(back.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Run(t.Context()); err != ErrLeftBehind {
		t.Errorf("a node that was left behind ends with %v", err)
	}
	tok, text, err = alone.c.NewToken(time.Now(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if res, err := alone.c.Propose(t.Context(), state.Envelope{Command: state.CreateToken{Token: tok}}); err != nil || res.Err != nil {
		t.Fatalf("a token: %v, %v", err, res.Err)
	}
	c, err = Join(t.Context(), back.cfg, JoinRequest{Token: text, Peers: []string{alone.cfg.Listen}, Name: back.name})
	run(back, c, err)
	if c.ID() != was {
		t.Errorf("it came back as %s, was %s", c.ID(), was)
	}
	eventually("it has caught up", func() bool {
		cl := back.c.State().Cluster()
		return cl != nil && cl.Generation == 1 && back.c.State().Index == alone.c.State().Index
	})
	for _, n := range nodes {
		stop(n)
	}
}

// freeAddr is a port that nobody used a moment ago, for TCP and UDP.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 100 {
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := tcp.Addr().String()
		udp, err := net.ListenPacket("udp", addr)
		tcp.Close()
		if err == nil {
			udp.Close()
			return addr
		}
	}
	t.Fatal("no free port")
	return ""
}
