// Package proxy measures flockd proxy beside HAProxy and nginx, all on loopback of this
// machine, in one run and by turns. Each test is one job and prints a row of
// docs/BENCHMARKS.md; scripts/bench proxy puts them there.
package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/transport"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/proxy"
)

const (
	route   = "r"
	longest = 30 * time.Second // waits for anything; only failures take that long
)

// contender is a way to a server.
type contender struct {
	name string
	addr string
	pids []int // of its processes; none: there is nothing between
}

// stand is a server with all ways to it. The first one is direct.
type stand struct {
	contenders []contender
	owner      *proxy.Client // the proxy of the route's owner
}

// start makes the ways to a server. How many clients each of them may have at once is not
// what is measured: all are allowed enough.
func start(t *testing.T, server string) stand {
	t.Helper()
	if os.Getenv("FLOCKER_BENCH") != "proxy" {
		t.Skip("measures for minutes: run scripts/bench proxy")
	}
	s := stand{contenders: []contender{{name: "direct", addr: server}}}
	s.flockd(t, server)
	s.haproxy(t, server)
	s.nginx(t, server)
	for _, c := range s.contenders {
		eventually(t, c.name+" answers", func() bool {
			conn, err := net.Dial("tcp", c.addr)
			if err == nil {
				_ = conn.Close()
			}
			return err == nil
		})
	}
	return s
}

// flockd starts the proxies of two nodes, one of which owns the route. Both are on this
// machine, so that the other listens for the route's clients on another port.
func (s *stand) flockd(t *testing.T, server string) {
	t.Helper()
	ca, err := transport.NewAuthority("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dirs := []string{t.TempDir(), t.TempDir()}
	var members []string
	for _, dir := range dirs {
		members = append(members, identity(t, ca, dir))
	}
	owner := "127.0.0.1:" + freePort(t)
	for i, dir := range dirs {
		listen := owner
		if i == 1 {
			listen = "127.0.0.1:" + freePort(t)
		}
		pid := run(t, exec.Command(os.Getenv("FLOCKD"), "--state-dir", dir, "--run-dir", dir, "--proxy-listen", listen, "proxy"))
		port, err := strconv.ParseUint(freePort(t), 10, 16)
		if err != nil {
			t.Fatal(err)
		}
		r := proxy.Route{ID: route, Listen: uint16(port), Mode: proxy.TCP, Owner: members[0], OwnerAddr: owner, Epoch: 1,
			Limits: proxy.Limits{Request: time.Hour, Event: time.Hour, Sessions: 10_000}}
		if i == 0 {
			r.Server = server
		}
		client := proxy.Dial(filepath.Join(dir, "proxy.sock"))
		t.Cleanup(client.Close)
		eventually(t, "flockd proxy takes a configuration", func() bool {
			return client.Apply(t.Context(), proxy.Config{Node: members[i], Members: members, Routes: []proxy.Route{r}}) == nil
		})
		c := contender{name: "owner", addr: fmt.Sprintf("127.0.0.1:%d", port), pids: []int{pid}}
		if i == 0 {
			s.owner = client
		} else {
			c.name, c.pids = "other", append(c.pids, s.contenders[1].pids...)
		}
		s.contenders = append(s.contenders, c)
	}
}

// identity of a node, in the files that flockd keeps it in.
func identity(t *testing.T, ca *transport.Authority, dir string) (node string) {
	t.Helper()
	id := volume.NewNodeID()
	key, err := transport.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := transport.NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(csr, "c1", id, time.Now(), 0)
	if err != nil {
		t.Fatal(err)
	}
	record, err := json.Marshal(map[string]any{"node": id, "cluster": "c1", "name": "n1"})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"node.key": key, "node.crt": cert, "ca.crt": ca.CertPEM(), "node.json": record} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return string(id)
}

func (s *stand) haproxy(t *testing.T, server string) {
	t.Helper()
	port := freePort(t)
	conf := write(t, "haproxy.cfg", fmt.Sprintf(`global
  maxconn 6000
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  option splice-auto
listen l
  bind 127.0.0.1:%s maxconn 6000
  server s %s
`, port, server))
	pid := run(t, exec.Command("haproxy", "-db", "-f", conf))
	s.contenders = append(s.contenders, contender{"haproxy", "127.0.0.1:" + port, []int{pid}})
}

func (s *stand) nginx(t *testing.T, server string) {
	t.Helper()
	port := freePort(t)
	pid := startNginx(t, fmt.Sprintf("stream { server { listen 127.0.0.1:%s backlog=4096; proxy_pass %s; proxy_timeout 1h; } }", port, server))
	eventually(t, "nginx has its workers", func() bool { return len(children(pid)) == 2 })
	s.contenders = append(s.contenders, contender{"nginx", "127.0.0.1:" + port, append(children(pid), pid)})
}

func startNginx(t *testing.T, what string) (pid int) {
	t.Helper()
	dir := t.TempDir()
	conf := write(t, "nginx.conf", fmt.Sprintf(`daemon off; worker_processes 2; worker_rlimit_nofile 20000; error_log stderr crit; pid %s/pid;
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
events { worker_connections 15000; }
%s
`, dir, what))
	return run(t, exec.Command("nginx", "-p", dir, "-e", "stderr", "-c", conf))
}

// webServer answers small requests and keeps connections.
func webServer(t *testing.T) string {
	t.Helper()
	if os.Getenv("FLOCKER_BENCH") != "proxy" {
		return ""
	}
	addr := "127.0.0.1:" + freePort(t)
	startNginx(t, fmt.Sprintf(`http { access_log off; keepalive_requests 100000000; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
server { listen %s backlog=4096; location / { return 200 "hello\n"; } } }`, addr))
	return addr
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// run starts a process that ends with the test.
func run(t *testing.T, cmd *exec.Cmd) (pid int) {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		kill := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		kill.Stop()
		if t.Failed() {
			t.Logf("%s: %s", cmd.Path, out.String()[max(0, out.Len()-2000):])
		}
	})
	return cmd.Process.Pid
}

func children(pid int) (out []int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	for _, f := range strings.Fields(string(text)) {
		if n, err := strconv.Atoi(f); err == nil {
			out = append(out, n)
		}
	}
	return out
}

// spent is the processor time of a contender until now, in ticks of a hundredth of a second.
func (c contender) spent(t *testing.T) time.Duration {
	t.Helper()
	var ticks int
	for _, pid := range c.pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		fields := strings.Fields(rest)
		for _, i := range []int{11, 12} { // utime, stime
			n, err := strconv.Atoi(fields[i])
			if err != nil {
				t.Fatal(err)
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// resident is the memory of a contender, in bytes.
func (c contender) resident(t *testing.T) (n int) {
	t.Helper()
	for _, pid := range c.pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			t.Fatal(err)
		}
		pages, err := strconv.Atoi(strings.Fields(string(text))[1])
		if err != nil {
			t.Fatal(err)
		}
		n += pages * os.Getpagesize()
	}
	return n
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(longest); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain waited until %s", what)
		}
	}
}

// setting is a number from the environment.
func setting(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// serve has do serve each connection, until the test ends.
func serve(t *testing.T, do func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer func() { _ = conn.Close() }()
				do(conn)
			})
		}
	})
	t.Cleanup(work.Wait)
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

// rounds measures all contenders by turns, and returns for each the median of what it had,
// and of the ratios to what HAProxy had in the same round.
func rounds(t *testing.T, s stand, measure func(c contender) float64) (medians, ratios map[string]float64) {
	t.Helper()
	had, to := make(map[string][]float64), make(map[string][]float64)
	for range setting(t, "BENCH_ROUNDS", 3) {
		this := make(map[string]float64)
		for _, c := range s.contenders {
			this[c.name] = measure(c)
			had[c.name] = append(had[c.name], this[c.name])
		}
		for name, v := range this {
			to[name] = append(to[name], v/this["haproxy"])
		}
	}
	medians, ratios = make(map[string]float64), make(map[string]float64)
	for name := range had {
		medians[name], ratios[name] = median(had[name]), median(to[name])
	}
	return medians, ratios
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// row prints what scripts/bench puts into the table.
func row(job, form string, medians, ratios map[string]float64) {
	out := "| " + job + " |"
	for _, name := range []string{"owner", "other", "haproxy", "nginx", "direct"} {
		v, ok := medians[name]
		switch {
		case !ok:
			out += " |"
		case name == "haproxy" || ratios == nil:
			out += fmt.Sprintf(" "+form+" |", v)
		default:
			out += fmt.Sprintf(" "+form+" (%.2f) |", v, ratios[name])
		}
	}
	fmt.Println("ROW " + out)
}

// One stream, from the server to the client.
func TestBulk(t *testing.T) {
	size := setting(t, "BENCH_SIZE", 2048) << 20
	block := make([]byte, 256<<10)
	s := start(t, serve(t, func(conn net.Conn) {
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			return
		}
		for left := size; left > 0; left -= len(block) {
			if _, err := conn.Write(block); err != nil {
				return
			}
		}
	}))
	times := make(map[string][]float64)
	medians, ratios := rounds(t, s, func(c contender) float64 {
		conn, err := net.Dial("tcp", c.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		begin, before := time.Now(), c.spent(t)
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		got, buf := 0, make([]byte, 256<<10)
		for {
			n, err := conn.Read(buf)
			got += n
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if got != size {
			t.Fatalf("%s: %d bytes of %d", c.name, got, size)
		}
		times[c.name] = append(times[c.name], float64((c.spent(t)-before).Milliseconds())/(float64(size)/1e9))
		return float64(size) / 1e9 / time.Since(begin).Seconds()
	})
	row("bulk, one stream, `tcp`", "%.2f GB/s", medians, ratios)
	rowOf("its processor time per GB", "%.0f ms", times)
}

// rowOf prints the medians of what was noted in each round.
func rowOf(job, form string, noted map[string][]float64) {
	medians, ratios := make(map[string]float64), make(map[string]float64)
	for name, v := range noted {
		if name == "direct" {
			continue
		}
		medians[name] = median(v)
		var to []float64
		for i := range v {
			to = append(to, v[i]/noted["haproxy"][i])
		}
		ratios[name] = median(to)
	}
	row(job, form, medians, ratios)
}

var (
	wrkRequests = regexp.MustCompile(`(\d+) requests in`)
	wrkRate     = regexp.MustCompile(`Requests/sec:\s+([\d.]+)`)
	abRate      = regexp.MustCompile(`Requests per second:\s+([\d.]+)`)
	abFailed    = regexp.MustCompile(`Failed requests:\s+(\d+)`)
)

// Small requests over 64 connections that stay.
func TestRequests(t *testing.T) {
	s := start(t, webServer(t))
	perRequest := make(map[string][]float64)
	medians, ratios := rounds(t, s, func(c contender) float64 {
		before := c.spent(t)
		out := output(t, "wrk", "-t1", "-c64", fmt.Sprintf("-d%ds", setting(t, "BENCH_SECONDS", 4)), "http://"+c.addr+"/")
		if strings.Contains(out, "Socket errors") {
			t.Fatalf("%s: %s", c.name, out)
		}
		n := number(t, wrkRequests, out)
		perRequest[c.name] = append(perRequest[c.name], float64((c.spent(t)-before).Microseconds())/n)
		return number(t, wrkRate, out)
	})
	row("requests a second, keep-alive, 64 connections (`wrk`), `tcp`", "%.0f", medians, ratios)
	rowOf("processor time of each", "%.1f µs", perRequest)
}

// A connection for each request.
func TestConnections(t *testing.T) {
	s := start(t, webServer(t))
	n := setting(t, "BENCH_CONNECTIONS", 6000)
	each := make(map[string][]float64)
	medians, ratios := rounds(t, s, func(c contender) float64 {
		before := c.spent(t)
		out := output(t, "ab", "-q", "-n", strconv.Itoa(n), "-c", "32", "http://"+c.addr+"/")
		if number(t, abFailed, out) != 0 {
			t.Fatalf("%s: %s", c.name, out)
		}
		each[c.name] = append(each[c.name], float64((c.spent(t)-before).Microseconds())/float64(n))
		return number(t, abRate, out)
	})
	row("new connections a second, 32 at a time (`ab`), `tcp`", "%.0f", medians, ratios)
	rowOf("processor time of each", "%.0f µs", each)
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*longest)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

func number(t *testing.T, of *regexp.Regexp, text string) float64 {
	t.Helper()
	m := of.FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no %s in %s", of, text)
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// What a connection costs that has said something and is silent, in memory of the process.
// What the kernel keeps for its sockets comes on top, for all of them alike. Each contender
// is started anew: one that has grown before has room.
func TestIdle(t *testing.T) {
	n := setting(t, "BENCH_IDLE", 2000)
	medians := make(map[string]float64)
	for _, name := range []string{"owner", "other", "haproxy", "nginx"} {
		t.Run(name, func(t *testing.T) {
			s := start(t, serve(t, func(conn net.Conn) { _, _ = io.Copy(conn, conn) }))
			c := s.contenders[slices.IndexFunc(s.contenders, func(c contender) bool { return c.name == name })]
			before := c.resident(t)
			for range n {
				say(t, c.addr)
			}
			medians[name] = float64(c.resident(t)-before) / float64(n) / 1024
		})
	}
	if len(medians) > 0 {
		row(fmt.Sprintf("memory of an idle connection, of %d", n), "%.1f KiB", medians, nil)
	}
}

// say has a server repeat a word.
func say(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(longest))
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// The release of held clients: until each of them has been answered. Nobody else can hold
// them, so the row has no ratio.
func TestRelease(t *testing.T) {
	n := setting(t, "BENCH_HELD", 2000)
	s := start(t, webServer(t))
	medians := make(map[string]float64)
	for _, c := range s.contenders[1:3] {
		var times []float64
		for range setting(t, "BENCH_ROUNDS", 3) {
			times = append(times, release(t, s, c, n))
		}
		medians[c.name] = median(times)
	}
	row(fmt.Sprintf("release of %d held connections", n), "%.0f ms", medians, nil)
}

func release(t *testing.T, s stand, c contender, n int) (ms float64) {
	t.Helper()
	output(t, "ab", "-q", "-n", "1", "http://"+c.addr+"/") // the node knows the owner
	if err := s.owner.Pause(t.Context(), route, time.Hour); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), longest)
	defer cancel()
	if err := s.owner.Quiet(ctx, route); err != nil {
		t.Fatal(err)
	}
	conns := make([]net.Conn, n)
	for i := range conns {
		conn, err := net.Dial("tcp", c.addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(longest))
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: bench\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		conns[i] = conn
	}
	begin := time.Now()
	if err := s.owner.Resume(t.Context(), route, ""); err != nil {
		t.Fatal(err)
	}
	for _, conn := range conns {
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	ms = float64(time.Since(begin).Microseconds()) / 1000
	for _, conn := range conns {
		_ = conn.Close()
	}
	return ms
}
