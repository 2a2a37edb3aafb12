package proxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// tlsPeers are Peers as the real ones are, but for the checks of certificates: a node is
// what its certificate says.
type tlsPeers struct {
	cert tls.Certificate
	cut  *cuts
}

// cuts says which nodes cannot be reached.
type cuts struct {
	mu   sync.Mutex
	away map[string]bool
	live map[string]map[net.Conn]bool // connections to them
}

func (c *cuts) set(node string, away bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.away[node] = away
	if away {
		for conn := range c.live[node] {
			_ = conn.(*net.TCPConn).SetLinger(0)
			_ = conn.Close()
		}
	}
}

func (p *tlsPeers) config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{p.cert}, ClientAuth: tls.RequireAnyClientCert,
		InsecureSkipVerify: true, SessionTicketsDisabled: true}
}

func (p *tlsPeers) Dial(ctx context.Context, node, addr string) (net.Conn, error) {
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	p.cut.mu.Lock()
	away := p.cut.away[node]
	if p.cut.live[node] == nil {
		p.cut.live[node] = make(map[net.Conn]bool)
	}
	p.cut.live[node][raw] = true
	p.cut.mu.Unlock()
	if away {
		_ = raw.Close()
		return nil, fmt.Errorf("no way to %s", node)
	}
	conn := tls.Client(raw, p.config())
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	if got := conn.ConnectionState().PeerCertificates[0].Subject.CommonName; got != node {
		_ = conn.Close()
		return nil, fmt.Errorf("node %s answers instead of %s", got, node)
	}
	return conn, nil
}

func (p *tlsPeers) Peer(conn net.Conn) string {
	if conn.(*tls.Conn).Handshake() != nil {
		return ""
	}
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName
}

func certificate(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// cluster is several nodes' proxies in one process, each on an address of its own.
type cluster struct {
	t     testing.TB
	cuts  *cuts
	nodes []*member
}

type member struct {
	*Node
	name, host, addr string
	peers            *tlsPeers
	stop             func()
	raw              net.Listener
	secrets          string       // Options.Secrets
	inheritNodes     net.Listener // handed on by an older process, as the next ones
	inherit          map[string]net.Listener
	link             net.Conn                        // to an older process
	handed           func(files map[string]*os.File) // nil, or is called when a newer process has taken what it was handed
}

func newCluster(t testing.TB, n int) *cluster {
	c := &cluster{t: t, cuts: &cuts{away: make(map[string]bool), live: make(map[string]map[net.Conn]bool)}}
	for i := range n {
		m := &member{name: fmt.Sprintf("n%d", i+1), host: fmt.Sprintf("127.0.0.%d", i+2)}
		m.peers = &tlsPeers{certificate(t, m.name), c.cuts}
		m.secrets = t.TempDir()
		c.nodes = append(c.nodes, m)
		m.start(t, filepath.Join(t.TempDir(), "proxy.json"), m.host+":0")
	}
	return c
}

// start runs a node, also again with what it wrote down before.
func (m *member) start(t testing.TB, file, addr string) {
	t.Helper()
	raw := m.inheritNodes
	if raw == nil {
		var err error
		if raw, err = net.Listen("tcp", addr); err != nil {
			t.Fatal(err)
		}
	}
	m.raw = raw
	m.addr = raw.Addr().String()
	l := tls.NewListener(raw, m.peers.config())
	m.Node = NewNode(Options{Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})), Node: m.name, Peers: m.peers, File: file, Secrets: m.secrets, Host: m.host, Listeners: m.inherit})
	if m.link != nil {
		m.Succeed(m.link)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	node := m.Node
	go func() { done <- node.Run(ctx, l) }()
	m.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("node %s: %v", m.name, err)
		}
	})
	stop := m.stop
	t.Cleanup(stop)
	eventually(t, "node "+m.name+" runs", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.ctx != nil
	})
}

// route tells nodes, or all of them, who owns a route.
func (c *cluster) route(r Route, owner int, epoch uint64, server string, nodes ...int) {
	c.t.Helper()
	r.Owner, r.OwnerAddr, r.Epoch = c.nodes[owner].name, c.nodes[owner].addr, epoch
	if len(nodes) == 0 {
		for i := range c.nodes {
			nodes = append(nodes, i)
		}
	}
	for _, i := range nodes {
		r := r
		if i == owner {
			r.Server = server
		}
		conf := Config{Node: c.nodes[i].name, Routes: []Route{r}}
		for _, m := range c.nodes {
			conf.Members = append(conf.Members, m.name)
		}
		if err := c.nodes[i].Apply(c.t.Context(), conf); err != nil {
			c.t.Fatal(err)
		}
	}
}

// addrOf is where clients come to a route on a node, once it listens there.
func (c *cluster) addrOf(node int, r Route) string {
	c.t.Helper()
	m := c.nodes[node]
	eventually(c.t, fmt.Sprintf("node %s listens on port %d", m.name, r.Listen), func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.listeners[fmt.Sprint(r.Listen)] != nil
	})
	return net.JoinHostPort(m.host, fmt.Sprint(r.Listen))
}

func (c *cluster) status(node int, route string) RouteStatus {
	c.t.Helper()
	s, err := c.nodes[node].Status(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	r, ok := s.Route(route)
	if !ok {
		c.t.Fatalf("node %s knows no route %s", c.nodes[node].name, route)
	}
	return r
}

// freePort is one that is free on all of these addresses.
func freePort(t testing.TB) uint16 {
	t.Helper()
	// None of those that the kernel gives to connections: one of them might have it by the time it is listened on.
	for range 1000 {
		port := 10240 + mathrand.IntN(32768-10240)
		if l, err := net.Listen("tcp", fmt.Sprintf(":%d", port)); err == nil {
			_ = l.Close()
			return uint16(port)
		}
	}
	t.Fatal("no port is free")
	return 0
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("in vain waited until %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}
