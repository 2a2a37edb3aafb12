package proxy

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// A real server moves from node to node while clients that nobody here wrote load it
// through every node. What they count is what it holds in the end.
func TestNativeRedisNodes(t *testing.T) {
	needs(t, "redis-server", "redis-benchmark")
	const nodes = 3
	c := newCluster(t, nodes)
	server := startRedis(t, t.TempDir())
	addr := func() string { return fmt.Sprintf("127.0.0.1:%d", server.port) }
	r := Route{ID: "r", Listen: freePort(t), Mode: Redis, Limits: patient}
	owner, epoch := 0, uint64(1)
	c.route(r, owner, epoch, addr())

	var addrs []string
	for i := range nodes {
		addrs = append(addrs, c.addrOf(i, r))
	}
	bench := benchRedis(t, addrs...)
	for i := range movesHere() {
		bench.someLoad(i)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		begin := time.Now()
		if err := c.nodes[owner].Pause(ctx, "r", 0); err != nil {
			t.Fatal(err)
		}
		if err := c.nodes[owner].Quiet(ctx, "r"); err != nil {
			t.Fatal(err)
		}
		cancel()
		quiet := time.Since(begin)
		server.stop()
		server = server.move()
		owner, epoch = (owner+1)%nodes, epoch+1
		// The new owner hears of it first and the old one last, or the other way round, and
		// one node not at all.
		c.route(r, owner, epoch, addr(), owner)
		if i%2 == 0 {
			c.route(r, owner, epoch, addr(), (owner+nodes-1)%nodes)
		} else {
			c.route(r, owner, epoch, addr())
		}
		t.Logf("move %d to n%d: quiet after %s, paused for %s", i+1, owner+1, quiet, time.Since(begin))
	}
	bench.countedAs(server)
}
