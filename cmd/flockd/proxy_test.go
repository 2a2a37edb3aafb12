package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/cluster"
	"github.com/flocker-io/flocker/internal/transport"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/proxy"
)

// beFlockd has the test binary be flockd, as a process of its own.
const beFlockd = "FLOCKD_TEST_IS_FLOCKD"

func TestMain(m *testing.M) {
	if os.Getenv(beFlockd) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// identity of a node of a cluster, in the files that flockd keeps it in.
func identity(t *testing.T, ca *transport.Authority, dir string) *transport.Identity {
	t.Helper()
	node := volume.NewNodeID()
	key, err := transport.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := transport.NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(csr, "c1", node, time.Now(), 0)
	if err != nil {
		t.Fatal(err)
	}
	record, err := json.Marshal(map[string]any{"node": node, "cluster": "c1", "name": "n1"})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"node.key": key, "node.crt": cert, "ca.crt": ca.CertPEM(), "node.json": record} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	id, err := transport.NewIdentity(cert, key, ca.CertPEM())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// echo says back what it hears.
func echo(t *testing.T) string {
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
				_, _ = io.Copy(conn, conn)
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); work.Wait() })
	return l.Addr().String()
}

// freePort is one that nobody has.
func freePort(t *testing.T) uint16 {
	t.Helper()
	// None of those that the kernel gives to connections: one of them might have it by the time it is listened on.
	for range 1000 {
		port := 10240 + rand.IntN(32768-10240)
		if l, err := net.Listen("tcp", fmt.Sprintf(":%d", port)); err == nil {
			_ = l.Close()
			return uint16(port)
		}
	}
	t.Fatal("no port is free")
	return 0
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain waited until %s", what)
		}
	}
}

// client says lines and hears them back.
type client struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func connect(t *testing.T, addr string) *client {
	t.Helper()
	var conn net.Conn
	eventually(t, addr+" is listened on", func() bool {
		var err error
		conn, err = net.Dial("tcp", addr)
		return err == nil
	})
	t.Cleanup(func() { _ = conn.Close() })
	return &client{t, conn, bufio.NewReader(conn)}
}

func (c *client) say(line string) {
	c.t.Helper()
	_ = c.conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := fmt.Fprintln(c.conn, line); err != nil {
		c.t.Fatal(err)
	}
	if got, err := c.in.ReadString('\n'); err != nil || got != line+"\n" {
		c.t.Fatalf("%q comes back as %q, %v", line, got, err)
	}
}

// A real process of the proxy is replaced by another while clients are connected: they go on,
// new ones come, flockd is served by the new one, and the old one goes when they have gone.
func TestProxyProcessIsReplaced(t *testing.T) {
	dir := t.TempDir()
	ca, err := transport.NewAuthority("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	id := identity(t, ca, dir)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	nodes := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	cmd := exec.Command(self, "--state-dir", dir, "--run-dir", dir, "--proxy-listen", nodes, "proxy", "--drain", "5s")
	cmd.Env = append(os.Environ(), beFlockd+"=yes")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	first := make(chan error, 1)
	go func() { first <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })

	flockd := proxy.Dial(filepath.Join(dir, "proxy.sock"))
	defer flockd.Close()
	r := proxy.Route{ID: "r", Listen: freePort(t), Mode: proxy.TCP, Owner: string(id.Node()), OwnerAddr: nodes, Epoch: 1, Server: echo(t)}
	eventually(t, "the proxy takes a configuration", func() bool {
		return flockd.Apply(t.Context(), proxy.Config{Node: string(id.Node()), Routes: []proxy.Route{r}}) == nil
	})
	addr := "127.0.0.1:" + strconv.Itoa(int(r.Listen))
	old := connect(t, addr)
	old.say("one")

	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	second := 0
	eventually(t, "another process serves flockd", func() bool {
		s, err := flockd.Status(t.Context())
		second = s.Process
		return err == nil && second != 0 && second != cmd.Process.Pid
	})
	// It is a child of ours, as the first is: whoever started that hears of its end.
	var ended syscall.WaitStatus
	end := func(by syscall.Signal) {
		if err := syscall.Kill(second, by); err != nil {
			t.Error(err)
		}
		if _, err := syscall.Wait4(second, &ended, 0, nil); err != nil {
			t.Errorf("waiting for the second process: %v", err)
		}
		second = 0
	}
	t.Cleanup(func() {
		if second != 0 {
			end(syscall.SIGKILL)
		}
	})
	old.say("two")
	young := connect(t, addr)
	young.say("three")

	// The pause of the new process waits for the client of the old one.
	if err := flockd.Pause(t.Context(), "r", time.Minute); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := flockd.Quiet(ctx, "r"); err != nil {
		t.Errorf("quiet: %v", err)
	}
	select {
	case err := <-first:
		if err != nil {
			t.Errorf("the first process ends with %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the first process stays, though nobody is left")
	}
	if err := flockd.Resume(t.Context(), "r", ""); err != nil {
		t.Fatal(err)
	}
	connect(t, addr).say("four")
	if end(syscall.SIGTERM); !ended.Exited() || ended.ExitStatus() != 0 {
		t.Errorf("the second process ends with %#x", uint32(ended))
	}
}

// What is secret of a route is read by the process, from the folder that it is told: with
// each configuration, and by a newer process, which nobody has told anything yet.
func TestProxyProcessReadsSecrets(t *testing.T) {
	dir, secrets := t.TempDir(), t.TempDir()
	ca, err := transport.NewAuthority("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	id := identity(t, ca, dir)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	nodes := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	cmd := exec.Command(self, "--state-dir", dir, "--run-dir", dir, "--proxy-listen", nodes, "--route-dir", secrets, "proxy", "--drain", "1s")
	cmd.Env = append(os.Environ(), beFlockd+"=yes")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pids := []int{cmd.Process.Pid}
	t.Cleanup(func() {
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			_, _ = syscall.Wait4(pid, nil, 0, nil)
		}
	})

	r := proxy.Route{ID: "r", Listen: freePort(t), Mode: proxy.Postgres, Postgres: &proxy.RoutePostgres{TLS: true}, Owner: string(id.Node()), OwnerAddr: nodes, Epoch: 1}
	folder := filepath.Join(secrets, fmt.Sprint(r.Listen))
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	// renew replaces the certificate by another one, which it returns.
	renew := func() *x509.Certificate {
		t.Helper()
		own := t.TempDir()
		identity(t, ca, own)
		text, err := os.ReadFile(filepath.Join(own, "node.crt"))
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(text)
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		for from, to := range map[string]string{"node.crt": "tls.crt", "node.key": "tls.key"} {
			if err := os.Rename(filepath.Join(own, from), filepath.Join(folder, to)); err != nil {
				t.Fatal(err)
			}
		}
		return cert
	}
	flockd := proxy.Dial(filepath.Join(dir, "proxy.sock"))
	defer flockd.Close()
	tell := func() {
		t.Helper()
		eventually(t, "the proxy takes a configuration", func() bool {
			return flockd.Apply(t.Context(), proxy.Config{Node: string(id.Node()), Routes: []proxy.Route{r}}) == nil
		})
	}
	shown := func() *x509.Certificate {
		t.Helper()
		c := connect(t, "127.0.0.1:"+strconv.Itoa(int(r.Listen)))
		defer func() { _ = c.conn.Close() }()
		_ = c.conn.SetDeadline(time.Now().Add(30 * time.Second))
		wants := []byte{0, 0, 0, 8, 4, 210, 22, 47} // TLS
		if _, err := c.conn.Write(wants); err != nil {
			t.Fatal(err)
		}
		if yes, err := c.in.ReadByte(); err != nil || yes != 'S' {
			t.Fatalf("whoever wants TLS is answered %q, %v", yes, err)
		}
		secure := tls.Client(c.conn, &tls.Config{InsecureSkipVerify: true})
		if err := secure.Handshake(); err != nil {
			t.Fatal(err)
		}
		return secure.ConnectionState().PeerCertificates[0]
	}

	tell()
	if s, err := flockd.Status(t.Context()); err != nil || len(s.Routes) != 1 || !strings.Contains(s.Routes[0].Problem, filepath.Join(folder, "tls.crt")) {
		t.Errorf("without a certificate it says %+v, %v", s, err)
	}
	cert := renew()
	tell()
	if !shown().Equal(cert) {
		t.Error("it does not show the certificate in its folder")
	}
	cert = renew()
	tell()
	if !shown().Equal(cert) {
		t.Error("it does not show the certificate that is there since")
	}
	cert = renew()
	if err := syscall.Kill(pids[0], syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another process serves flockd", func() bool {
		s, err := flockd.Status(t.Context())
		if err != nil || s.Process == 0 || s.Process == pids[0] {
			return false
		}
		pids = append(pids, s.Process)
		return true
	})
	eventually(t, "a newer process shows the certificate in its folder", func() bool { return shown().Equal(cert) })
}

// Processes take over from one another, and pauses come, under clients of a real Redis that
// never try twice: the counter is what they were answered.
func TestProxyProcessesUnderLoad(t *testing.T) {
	redis, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("needs Debian's redis-server")
	}
	dir := t.TempDir()
	ca, err := transport.NewAuthority("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	id := identity(t, ca, dir)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	start := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), beFlockd+"=yes")
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	port := fmt.Sprint(freePort(t))
	server := start(redis, "--port", port, "--save", "", "--dir", dir)
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	nodes := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	pids := []int{start(self, "--state-dir", dir, "--run-dir", dir, "--proxy-listen", nodes, "proxy").Process.Pid}
	t.Cleanup(func() {
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			_, _ = syscall.Wait4(pid, nil, 0, nil)
		}
	})

	flockd := proxy.Dial(filepath.Join(dir, "proxy.sock"))
	defer flockd.Close()
	r := proxy.Route{ID: "r", Listen: freePort(t), Mode: proxy.Redis, Owner: string(id.Node()), OwnerAddr: nodes, Epoch: 1, Server: "127.0.0.1:" + port}
	eventually(t, "the proxy takes a configuration", func() bool {
		return flockd.Apply(t.Context(), proxy.Config{Node: string(id.Node()), Routes: []proxy.Route{r}}) == nil
	})
	addr := "127.0.0.1:" + strconv.Itoa(int(r.Listen))
	var answered atomic.Int64
	over := make(chan struct{})
	var clients sync.WaitGroup
	t.Cleanup(sync.OnceFunc(clients.Wait))
	for range 8 {
		c := connect(t, addr)
		clients.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				if _, err := io.WriteString(c.conn, "INCR n\r\n"); err != nil {
					t.Error(err)
					return
				}
				if s, err := c.in.ReadString('\n'); err != nil || !strings.HasPrefix(s, ":") {
					t.Errorf("the answer is %q, %v", s, err)
					return
				}
				answered.Add(1)
			}
		})
	}
	more := func() {
		t.Helper()
		from := answered.Load()
		eventually(t, "there are more answers", func() bool { return t.Failed() || answered.Load() > from+100 })
	}
	more()
	for range 3 {
		if err := syscall.Kill(pids[len(pids)-1], syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, "another process serves flockd", func() bool {
			s, err := flockd.Status(t.Context())
			if err != nil || s.Process == 0 || s.Process == pids[len(pids)-1] {
				return false
			}
			pids = append(pids, s.Process)
			return true
		})
		more()
		eventually(t, "it is paused", func() bool { return flockd.Pause(t.Context(), "r", time.Minute) == nil })
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		err := flockd.Quiet(ctx, "r")
		cancel()
		if err != nil {
			t.Errorf("quiet: %v", err)
		}
		if err := flockd.Resume(t.Context(), "r", ""); err != nil {
			t.Fatal(err)
		}
		more()
	}
	close(over)
	clients.Wait()
	last := connect(t, addr)
	if _, err := io.WriteString(last.conn, "GET n\r\n"); err != nil {
		t.Fatal(err)
	}
	_, err = last.in.ReadString('\n')
	got, err2 := last.in.ReadString('\n')
	if err := errors.Join(err, err2); err != nil || strings.TrimSpace(got) != fmt.Sprint(answered.Load()) {
		t.Errorf("the counter is %q, %v; %d were answered", got, err, answered.Load())
	}
}

// A newer process that does not come up changes nothing.
func TestProxyProcessIsNotReplaced(t *testing.T) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours := os.NewFile(uintptr(fds[0]), fileLink)
	link, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = link.Close() }()
	_ = ours.Close()
	args := os.Args
	os.Args = []string{"false"}
	defer func() { os.Args = args }()
	if err := startNewer(map[string]*os.File{fileLink: os.NewFile(uintptr(fds[1]), fileLink)}, link); err == nil || !strings.Contains(err.Error(), "does not come up") {
		t.Errorf("got %v, want that it does not come up", err)
	}
}

// A node that has left its cluster, or has become a node of another, is not served as what
// it was; a renewed certificate is no reason to end.
func TestProxyKeepsIdentity(t *testing.T) {
	ca, err := transport.NewAuthority("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		then  func(t *testing.T, dir string)
		stays bool
	}{
		{"nothing", func(*testing.T, string) {}, true},
		{"it cannot be read", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "node.crt")); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"no member", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "node.json")); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"another node", func(t *testing.T, dir string) { identity(t, ca, dir) }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			id := identity(t, ca, dir)
			tt.then(t, dir)
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				err := keepIdentity(ctx, cluster.DirDisk(dir), id, slog.New(slog.DiscardHandler))
				if stayed := err == nil && ctx.Err() != nil; stayed != tt.stays {
					t.Errorf("it ends with %v, after a minute: %v", err, ctx.Err() != nil)
				}
			})
		})
	}
}

// Proxies of two nodes reach each other by the nodes' certificates, and those of a node that
// is no member are refused.
func TestProxyPeers(t *testing.T) {
	ca, err := transport.NewAuthority("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	server := echo(t)
	r := proxy.Route{ID: "r", Listen: freePort(t), Mode: proxy.TCP, Epoch: 1, Limits: proxy.Limits{Request: time.Second}}
	var ids []*transport.Identity
	var nodes []*proxy.Node
	for i := range 3 {
		id := identity(t, ca, t.TempDir())
		host := fmt.Sprintf("127.0.0.%d", i+2)
		raw, err := net.Listen("tcp", host+":0")
		if err != nil {
			t.Fatal(err)
		}
		n := proxy.NewNode(proxy.Options{Peers: &proxyPeers{transport.Dialer{Identity: id}}, Host: host})
		l := transport.Listen(raw, id, func(n volume.NodeID) error { return nodes[i].Admit(string(n)) }, slog.New(slog.DiscardHandler))
		ids, nodes = append(ids, id), append(nodes, n)
		ctx, cancel := context.WithCancel(context.Background())
		var work sync.WaitGroup
		own := l.Protocol(transport.ProtoProxy)
		work.Go(func() { _ = l.Run(ctx) })
		work.Go(func() {
			if err := n.Run(ctx, own); err != nil {
				t.Error(err)
			}
		})
		t.Cleanup(func() { cancel(); work.Wait() })
		if i == 0 {
			r.Owner, r.OwnerAddr = string(id.Node()), raw.Addr().String()
		}
	}
	for i, n := range nodes {
		r := r
		if i == 0 {
			r.Server = server
		}
		conf := proxy.Config{Node: string(ids[i].Node()), Members: []string{string(ids[0].Node()), string(ids[1].Node())}, Routes: []proxy.Route{r}}
		eventually(t, "the node runs", func() bool { return n.Apply(t.Context(), conf) == nil })
	}
	connect(t, fmt.Sprintf("127.0.0.3:%d", r.Listen)).say("by another node")
	stranger := connect(t, fmt.Sprintf("127.0.0.4:%d", r.Listen))
	_ = stranger.conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := stranger.in.ReadByte(); err == nil {
		t.Error("a node that is no member gets to the server")
	}
}
