package proxy

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What clients that nobody here wrote say of a server that moves back and forth under
// their load is compared with what the server then holds: they retry silently, so that
// the absence of errors proves nothing.

// redisServer is a real server in a folder of its own.
type redisServer struct {
	t    testing.TB
	dir  string
	port int
	cmd  *exec.Cmd
}

func startRedis(t testing.TB, dir string) *redisServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	r := &redisServer{t: t, dir: dir, port: port}
	r.cmd = exec.Command("redis-server", "--port", fmt.Sprint(port), "--dir", dir, "--appendonly", "yes", "--save", "", "--logfile", filepath.Join(dir, "log"))
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.cmd.Process.Kill(); _ = r.cmd.Wait() })
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := Probe(ctx, Redis, r.dial); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *redisServer) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", r.port))
}

// stop ends the server as Docker does, and hands its data on.
func (r *redisServer) stop() {
	r.t.Helper()
	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		r.t.Fatal(err)
	}
	_ = r.cmd.Wait()
}

func (r *redisServer) move() *redisServer {
	r.t.Helper()
	to := r.t.TempDir()
	if err := os.CopyFS(to, os.DirFS(r.dir)); err != nil {
		r.t.Fatal(err)
	}
	return startRedis(r.t, to)
}

// front serves a gate on a port of this machine.
func front(t testing.TB, g *Gate) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(ctx, l) }()
	t.Cleanup(func() { cancel(); <-done })
	return l.Addr().(*net.TCPAddr).Port
}

func TestRedisMovesUnderBenchmark(t *testing.T) {
	if _, err := exec.LookPath("redis-benchmark"); err != nil {
		t.Skip("there is no redis-benchmark here")
	}
	moves, total := 6, 200_000
	if testing.Short() {
		moves, total = 3, 20_000
	}
	server := startRedis(t, t.TempDir())
	g, err := NewGate(Redis, server.dial, Limits{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	port := front(t, g)
	bench := exec.Command("redis-benchmark", "-p", fmt.Sprint(port), "-n", fmt.Sprint(total), "-c", "50", "-r", "1", "-q", "INCR", "counter")
	var out bytes.Buffer
	bench.Stdout, bench.Stderr = &out, &out
	if err := bench.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- bench.Wait() }()
	var failed error
	over := false
	for i := 0; i < moves && !over; i++ {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		begin := time.Now()
		g.Pause()
		if err := g.Quiet(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		quiet := time.Since(begin)
		server.stop()
		server = server.move()
		g.Resume(server.dial)
		t.Logf("move %d: quiet after %s, paused for %s", i+1, quiet, time.Since(begin))
		select {
		case failed = <-ended:
			over = true
		case <-time.After(200 * time.Millisecond): // of load between two moves
		}
	}
	if !over {
		failed = <-ended
	}
	text := strings.ReplaceAll(out.String(), "\r", "\n")
	if failed != nil || strings.Contains(text, "rror") {
		t.Errorf("redis-benchmark: %v\n%s", failed, text)
	}
	got, err := exec.Command("redis-cli", "-p", fmt.Sprint(server.port), "get", "counter").CombinedOutput()
	if err != nil || strings.TrimSpace(string(got)) != fmt.Sprint(total) {
		t.Errorf("the counter is %s, %v; redis-benchmark counted to %d", got, err, total)
	}
	t.Logf("%s", text[max(0, len(text)-80):])
}
