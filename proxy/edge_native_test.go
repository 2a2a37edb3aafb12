package proxy

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// A real server moves from node to node while clients that nobody here wrote load it
// through every node. What they count is what it holds in the end.
func TestClusterRedisMovesUnderBenchmark(t *testing.T) {
	if _, err := exec.LookPath("redis-benchmark"); err != nil {
		t.Skip("there is no redis-benchmark here")
	}
	const nodes = 3
	moves, total := 20, 60_000
	if testing.Short() {
		moves, total = 4, 8_000
	}
	c := newCluster(t, nodes)
	server := startRedis(t, t.TempDir())
	addr := func() string { return fmt.Sprintf("127.0.0.1:%d", server.port) }
	r := Route{ID: "r", Listen: freePort(t), Mode: Redis}
	owner, epoch := 0, uint64(1)
	c.route(r, owner, epoch, addr())

	type result struct {
		out string
		err error
	}
	results := make(chan result, nodes)
	for i := range nodes {
		host, port, _ := strings.Cut(c.addrOf(i, r), ":")
		bench := exec.Command("redis-benchmark", "-h", host, "-p", port, "-n", fmt.Sprint(total), "-c", "20", "-r", "1", "-q", "INCR", "counter")
		var out bytes.Buffer
		bench.Stdout, bench.Stderr = &out, &out
		if err := bench.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = bench.Process.Kill() })
		go func() {
			err := bench.Wait()
			results <- result{strings.ReplaceAll(out.String(), "\r", "\n"), err}
		}()
	}
	ended := 0
	var ends []result
	for i := 0; i < moves && ended < nodes; i++ {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
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
		select {
		case r := <-results:
			ends, ended = append(ends, r), ended+1
		case <-time.After(100 * time.Millisecond): // of load between two moves
		}
	}
	for ; ended < nodes; ended++ {
		ends = append(ends, <-results)
	}
	for _, r := range ends {
		if r.err != nil || strings.Contains(r.out, "rror") {
			t.Errorf("redis-benchmark: %v\n%s", r.err, r.out)
		}
		t.Logf("%s", r.out[max(0, len(r.out)-80):])
	}
	got, err := exec.Command("redis-cli", "-p", fmt.Sprint(server.port), "get", "counter").CombinedOutput()
	if err != nil || strings.TrimSpace(string(got)) != fmt.Sprint(nodes*total) {
		t.Errorf("the counter is %s, %v; redis-benchmark counted to %d", got, err, nodes*total)
	}
}
