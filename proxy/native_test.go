package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
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
	args []string
	port int
	cmd  *exec.Cmd
	// ended is closed when its process is.
	ended chan struct{}
}

// startRedis starts a server on a port that is free. Until the server has it somebody else may
// take it, as for a connection of his own; then it is another one.
func startRedis(t testing.TB, dir string, args ...string) *redisServer {
	t.Helper()
	for range 10 {
		if r := tryRedis(t, dir, args); r != nil {
			return r
		}
	}
	t.Fatalf("no server stays: see %s", filepath.Join(dir, "log"))
	return nil
}

// tryRedis returns nil when the server has ended by itself.
func tryRedis(t testing.TB, dir string, args []string) *redisServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	r := &redisServer{t: t, dir: dir, args: args, port: port, ended: make(chan struct{})}
	all := []string{"--port", fmt.Sprint(port), "--dir", dir, "--appendonly", "yes", "--save", "", "--logfile", filepath.Join(dir, "log")}
	r.cmd = exec.Command("redis-server", append(all, args...)...)
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	go func() {
		defer close(r.ended)
		_ = r.cmd.Wait()
		cancel()
	}()
	t.Cleanup(func() { _ = r.cmd.Process.Kill(); <-r.ended })
	if err := Probe(ctx, Redis, r.dial); err != nil {
		select {
		case <-r.ended:
			return nil
		default:
			t.Fatal(err)
		}
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
	<-r.ended
}

func (r *redisServer) move() *redisServer {
	r.t.Helper()
	to := r.t.TempDir()
	if err := os.CopyFS(to, os.DirFS(r.dir)); err != nil {
		r.t.Fatal(err)
	}
	return startRedis(r.t, to, r.args...)
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
		bench.someLoad(i)
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

// A server that wants a password answers while it loads as if it were ready, until somebody has logged in. Nobody
// hears of that: neither who had before it moved, nor who logs in meanwhile, whatever comes with that.
func TestNativeRedisPassword(t *testing.T) {
	needs(t, "redis-server")
	const keys = 1000
	server := startRedis(t, t.TempDir(), "--appendonly", "no", "--requirepass", "secret",
		"--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024") // which takes two seconds
	g, err := NewGate(Redis, server.dial, Limits{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, g: g, port: front(t, g)}
	type answered struct {
		conn net.Conn
		in   *bufio.Reader
	}
	dial := func() answered {
		conn, in := dialRedis(t, w.port)
		return answered{conn, in}
	}
	say := func(a answered, lines string, want ...string) {
		t.Helper()
		if _, err := a.conn.Write([]byte(lines)); lines != "" && err != nil {
			t.Fatal(err)
		}
		for _, want := range want {
			if got := redisSays(t, a.in); got != want {
				t.Fatalf("%q is answered %q, want %q", lines, got, want)
			}
		}
	}
	before, waits := dial(), dial()
	say(before, "GET k0\r\n", "-NOAUTH Authentication required.")
	say(before, "AUTH wrong\r\n", "-WRONGPASS invalid username-password pair or user is disabled.")
	say(before, "AUTH secret\r\nSELECT 1\r\n", "+OK", "+OK")
	for i := range keys {
		say(before, fmt.Sprintf("SET k%d %d\r\n", i, i), "+OK")
	}
	say(waits, "AUTH secret\r\nSELECT 1\r\nBLPOP q 0\r\n", "+OK", "+OK")
	w.until("it to wait", func() bool {
		return slices.ContainsFunc(g.Sessions(), func(s Session) bool { return s.Busy == "a blocking command waits" })
	})
	say(before, "SAVE\r\n", "+OK")
	g.Pause()
	w.quiet()
	meanwhile := dial()
	say(meanwhile, "AUTH default secret\r\nSELECT 1\r\nGET k7\r\n")
	server.stop()
	server = server.move()
	direct, in := dialRedis(t, server.port)
	say(answered{direct, in}, "AUTH secret\r\nGET k7\r\n", "+OK", "-LOADING Redis is loading the dataset in memory")
	g.Resume(server.dial)
	after := dial()
	say(after, "AUTH secret\r\nSELECT 1\r\nMULTI\r\nINCR k9\r\nEXEC\r\n", "+OK", "+OK", "+OK", "+QUEUED", ":10")
	say(meanwhile, "", "+OK", "+OK", "7")
	say(before, "GET k8\r\n", "8")
	say(before, "RPUSH q 1\r\n", ":1")
	say(waits, "", "q 1")

	// One that says all at once, and that it will say no more, gets all its answers.
	half := dial()
	say(half, "AUTH secret\r\nSELECT 1\r\nGET k7\r\n")
	if err := half.conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	say(half, "", "+OK", "+OK", "7")

	// Once that is known, who logs in does so once.
	connections := func() (n int) {
		t.Helper()
		if _, err := direct.Write([]byte("INFO stats\r\n")); err != nil {
			t.Fatal(err)
		}
		_, text, _ := strings.Cut(redisSays(t, in), "total_connections_received:")
		if _, err := fmt.Sscan(text, &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	n := connections()
	say(dial(), "AUTH default secret\r\nPING\r\n", "+OK", "+PONG")
	say(dial(), "AUTH secret\r\nPING\r\n", "+OK", "+PONG")
	if more := connections() - n; more != 2 {
		t.Errorf("two who log in make %d connections", more)
	}
}

// What a session selected in a transaction holds after a move if the transaction was done, and
// not if it was dropped, given up, or refused just that.
func TestNativeRedisTransactions(t *testing.T) {
	needs(t, "redis-server")
	server := startRedis(t, t.TempDir())
	g, err := NewGate(Redis, server.dial, Limits{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, g: g, port: front(t, g)}
	for _, c := range []struct{ what, say, db string }{
		{"dropped", "SELECT 2|MULTI|SELECT 5|DISCARD", "2"},
		{"given up", "SELECT 2|SET k 1|WATCH k|SET k 2|MULTI|SELECT 5|EXEC", "2"},
		{"refused", "SELECT 2|MULTI|SELECT 5|NOSUCH|EXEC", "2"},
		{"refused in part", "SELECT 2|MULTI|SELECT 3|SELECT 99|EXEC", "3"},
		{"done", "MULTI|SELECT 5|EXEC", "5"},
		{"dropped by an EXEC that is refused", "SELECT 2|MULTI|SELECT 5|EXEC now", "2"},
		{"dropped after a DISCARD that is refused", "SELECT 2|MULTI|SELECT 5|DISCARD now|EXEC", "2"},
		{"dropped after one that is not allowed", "ACL SETUSER a on nopass ~* +@all -discard|AUTH a x|SELECT 2|MULTI|SELECT 5|DISCARD|EXEC", "2"},
		{"dropped by an EXEC that is not allowed", "ACL SETUSER b on nopass ~* +@all -exec|AUTH b x|SELECT 2|MULTI|SELECT 5|EXEC", "2"},
	} {
		conn, in := dialRedis(t, w.port)
		say := func(command string) string {
			t.Helper()
			if _, err := fmt.Fprintf(conn, "%s\r\n", command); err != nil {
				t.Fatalf("%s: %v", c.what, err)
			}
			return redisSays(t, in)
		}
		for _, command := range strings.Split(c.say, "|") {
			say(command)
		}
		g.Pause()
		w.quiet()
		g.Resume(nil)
		if got := say("CLIENT INFO"); !strings.Contains(got, " db="+c.db+" ") {
			t.Errorf("%s: after a move its session is %q, want database %s", c.what, got, c.db)
		}
	}
}

// A DISCARD that is refused ends nothing: its client is in the way of a pause until it is really
// over, and what it asks meanwhile is queued where the rest is.
func TestNativeRedisRefusedDiscard(t *testing.T) {
	needs(t, "redis-server")
	server := startRedis(t, t.TempDir())
	g, err := NewGate(Redis, server.dial, Limits{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, g: g, port: front(t, g)}
	conn, in := dialRedis(t, w.port)
	say := func(command, want string) {
		t.Helper()
		if _, err := fmt.Fprintf(conn, "%s\r\n", command); err != nil {
			t.Fatal(err)
		}
		if got := redisSays(t, in); !strings.HasPrefix(got, want) {
			t.Errorf("%s: the server says %q, want %q", command, got, want)
		}
	}
	say("MULTI", "+OK")
	say("DISCARD now", "-ERR wrong number")
	g.Pause()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	busy := (*Busy)(nil)
	if err := g.Quiet(ctx); !errors.As(err, &busy) || busy.Sessions[0].Busy != "a transaction is open" {
		t.Errorf("it is quiet within a transaction: %v", err)
	}
	say("SET k v", "+QUEUED")
	say("EXEC", "-EXECABORT")
	w.quiet()
	g.Resume(nil)
	say("GET k", "$-1")
}

func dialRedis(t testing.TB, port int) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return conn, bufio.NewReader(conn)
}

// redisSays is one reply, without its type if that is a string.
func redisSays(t testing.TB, in *bufio.Reader) string {
	t.Helper()
	line, err := in.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	line = strings.TrimSpace(line)
	n, _ := strconv.Atoi(line[1:])
	switch {
	case n >= 0 && line[0] == '$':
		body := make([]byte, n+2)
		if _, err := io.ReadFull(in, body); err != nil {
			t.Fatal(err)
		}
		return string(body[:n])
	case line[0] == '*':
		var all []string
		for range n {
			all = append(all, redisSays(t, in))
		}
		return strings.Join(all, " ")
	}
	return line
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
				each := max(5000, increments(b.t)/movesHere()/10)
				out, err := output("redis-benchmark", "-h", host, "-p", port, "-n", fmt.Sprint(each), "-c", "20", "-r", "1", "-q", "INCR", "counter")
				if err == nil && strings.Contains(out, "rror") {
					err = fmt.Errorf("redis-benchmark tells of errors:\n%s", out)
				}
				b.counted.Add(int64(each))
				return each, err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	return b
}

// increments is how often they count up together at least; FLOCKER_INCRS says it.
func increments(t testing.TB) int {
	text := os.Getenv("FLOCKER_INCRS")
	if text == "" {
		return 0
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		t.Fatalf("FLOCKER_INCRS is %q, which is no number of INCRs", text)
	}
	return n
}

// someLoad waits until each of them may have counted up once more, and all have done their
// part of what they are to do before so many moves.
func (b *redisBench) someLoad(moves int) {
	b.t.Helper()
	part := int64(increments(b.t)) * int64(moves+1) / int64(movesHere()+1)
	for more := true; more; more = b.counted.Load() < part && !b.t.Failed() {
		before := b.counted.Load()
		eventually(b.t, "there is some load between two moves", func() bool { return b.counted.Load() > before || b.t.Failed() })
	}
}

// countedAs ends the load, and compares what it has counted to with what the server has.
func (b *redisBench) countedAs(server *redisServer) {
	b.t.Helper()
	b.someLoad(movesHere())
	b.end()
	b.clients.Wait()
	got, err := output("redis-cli", "-p", fmt.Sprint(server.port), "get", "counter")
	if err != nil || strings.TrimSpace(got) != fmt.Sprint(b.counted.Load()) {
		b.t.Errorf("the counter is %s, %v; redis-benchmark counted to %d", got, err, b.counted.Load())
	}
	b.t.Logf("redis-benchmark counted to %d, and so did the server, over %d moves", b.counted.Load(), movesHere())
}
