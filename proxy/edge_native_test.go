package proxy

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"
)

// tour has a server go from node to node of a cluster with a route.
type tour struct {
	c     *cluster
	r     Route
	owner int
	epoch uint64
	moved int
	addr  func() string // of the server as it is now
}

func newTour(t testing.TB, nodes int, mode Mode, addr func() string) *tour {
	t.Helper()
	w := &tour{c: newCluster(t, nodes), r: Route{ID: "r", Listen: freePort(t), Mode: mode, Limits: patient}, epoch: 1, addr: addr}
	w.c.route(w.r, w.owner, w.epoch, addr())
	return w
}

// at is where clients come to it on a node.
func (w *tour) at(node int) (host, port string) {
	w.c.t.Helper()
	host, port, err := net.SplitHostPort(w.c.addrOf(node, w.r))
	if err != nil {
		w.c.t.Fatal(err)
	}
	return host, port
}

// move has it go on to the next node while its clients wait.
func (w *tour) move(restart func()) (quiet, paused time.Duration) {
	w.c.t.Helper()
	ctx, cancel := context.WithTimeout(w.c.t.Context(), time.Minute)
	defer cancel()
	begin := time.Now()
	if err := w.c.nodes[w.owner].Pause(ctx, w.r.ID, 0); err != nil {
		w.c.t.Fatal(err)
	}
	if err := w.c.nodes[w.owner].Quiet(ctx, w.r.ID); err != nil {
		w.c.t.Fatal(err)
	}
	quiet = time.Since(begin)
	restart()
	nodes := len(w.c.nodes)
	w.owner, w.epoch = (w.owner+1)%nodes, w.epoch+1
	// The new owner hears of it first and the old one last, or the other way round, and
	// where there are more than two, one node not at all.
	w.c.route(w.r, w.owner, w.epoch, w.addr(), w.owner)
	if w.moved%2 == 0 {
		w.c.route(w.r, w.owner, w.epoch, w.addr(), (w.owner+nodes-1)%nodes)
	} else {
		w.c.route(w.r, w.owner, w.epoch, w.addr())
	}
	w.moved++
	paused = time.Since(begin)
	w.c.t.Logf("move %d to n%d: quiet after %s, paused for %s", w.moved, w.owner+1, quiet, paused)
	return quiet, paused
}

// A real server moves from node to node while clients that nobody here wrote load it
// through every node. What they count is what it holds in the end.
func TestNativeRedisNodes(t *testing.T) {
	needs(t, "redis-server", "redis-benchmark")
	const nodes = 3
	server := startRedis(t, t.TempDir())
	w := newTour(t, nodes, Redis, func() string { return fmt.Sprintf("127.0.0.1:%d", server.port) })

	var addrs []string
	for i := range nodes {
		host, port := w.at(i)
		addrs = append(addrs, net.JoinHostPort(host, port))
	}
	bench := benchRedis(t, addrs...)
	for i := range movesHere() {
		bench.someLoad(i)
		w.move(func() {
			server.stop()
			server = server.move()
		})
	}
	bench.countedAs(server)
}
