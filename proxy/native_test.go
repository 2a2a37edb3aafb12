package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
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

func TestNativeRedis(t *testing.T) {
	needs(t, "redis-server", "redis-benchmark")
	server := startRedis(t, t.TempDir())
	g, err := NewGate(Redis, server.dial, Limits{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	port := front(t, g)
	bench := benchRedis(t, fmt.Sprintf("127.0.0.1:%d", port))
	for i := range movesHere() {
		bench.someLoad()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
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
	}
	bench.countedAs(server)
}

// redisBench raises a counter at several addresses until it is told to end.
type redisBench struct {
	t       testing.TB
	counted atomic.Int64
	end     func()
	clients sync.WaitGroup
}

func benchRedis(t testing.TB, addrs ...string) *redisBench {
	t.Helper()
	over, end := context.WithCancel(t.Context())
	b := &redisBench{t: t, end: end}
	t.Cleanup(func() { end(); b.clients.Wait() })
	for _, addr := range addrs {
		host, port, _ := strings.Cut(addr, ":")
		b.clients.Go(func() {
			_, err := again(over.Done(), func(int) (int, error) {
				const each = 5000
				out, err := output("redis-benchmark", "-h", host, "-p", port, "-n", fmt.Sprint(each), "-c", "20", "-r", "1", "-q", "INCR", "counter")
				if err == nil && strings.Contains(out, "rror") {
					err = fmt.Errorf("redis-benchmark tells of errors:\n%s", out)
				}
				b.counted.Add(each)
				return each, err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	return b
}

// someLoad waits until each of them may have counted up once more.
func (b *redisBench) someLoad() {
	b.t.Helper()
	before := b.counted.Load()
	eventually(b.t, "there is some load between two moves", func() bool { return b.counted.Load() > before || b.t.Failed() })
}

// countedAs ends the load, and compares what it has counted to with what the server has.
func (b *redisBench) countedAs(server *redisServer) {
	b.t.Helper()
	b.end()
	b.clients.Wait()
	got, err := output("redis-cli", "-p", fmt.Sprint(server.port), "get", "counter")
	if err != nil || strings.TrimSpace(got) != fmt.Sprint(b.counted.Load()) {
		b.t.Errorf("the counter is %s, %v; redis-benchmark counted to %d", got, err, b.counted.Load())
	}
	b.t.Logf("redis-benchmark counted to %d, and so did the server, over %d moves", b.counted.Load(), movesHere())
}
