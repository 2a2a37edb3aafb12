package transport_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/transport"
	"github.com/flocker-io/flocker/internal/transport/memnet"
	"github.com/flocker-io/flocker/internal/volume"
)

// world is a CA and a network.
type world struct {
	t   *testing.T
	net *memnet.Network
	ca  *transport.Authority
	id  string
}

func newWorld(t *testing.T, clusterID string) *world {
	t.Helper()
	ca, err := transport.NewAuthority(clusterID, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &world{t: t, net: memnet.New(), ca: ca, id: clusterID}
}

// identity of a new node; issued is when it got its certificate.
func (w *world) identity(issued time.Time) *transport.Identity {
	w.t.Helper()
	key, err := transport.NewKey()
	if err != nil {
		w.t.Fatal(err)
	}
	id, err := transport.NewIdentity(w.cert(key, volume.NewNodeID(), issued), key, w.ca.CertPEM())
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *world) cert(key []byte, node volume.NodeID, issued time.Time) []byte {
	w.t.Helper()
	csr, err := transport.NewRequest(key)
	if err != nil {
		w.t.Fatal(err)
	}
	cert, err := w.ca.Issue(csr, w.id, node, issued, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	return cert
}

// listen runs a Listener of id on host "srv" until the test's function returns.
func (w *world) listen(id *transport.Identity, allow func(volume.NodeID) error) (*transport.Listener, func()) {
	w.t.Helper()
	ln, err := w.net.Host("srv").Listen(w.t.Context(), "tcp", ":4523")
	if err != nil {
		w.t.Fatal(err)
	}
	if allow == nil {
		allow = func(volume.NodeID) error { return nil }
	}
	l := transport.Listen(ln, id, allow, slog.New(slog.NewTextHandler(w.t.Output(), nil)))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Run(ctx); err != nil {
			w.t.Error(err)
		}
	})
	return l, func() { cancel(); wg.Wait() }
}

// greet accepts connections and says hello to each peer by its ID.
func greet(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		peer, _ := transport.PeerOf(c)
		fmt.Fprintf(c, "hello %s", peer)
		c.Close()
	}
}

func (w *world) dial(as *transport.Identity, to volume.NodeID, p transport.Protocol) (string, error) {
	d := transport.Dialer{Identity: as, Dial: w.net.Host("cli").Dial}
	c, err := d.DialNode(w.t.Context(), to, "srv:4523", p)
	if err != nil {
		return "", err
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	return string(b), err
}

func TestProtocolsAndPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "c1")
		srv, cli := w.identity(time.Now()), w.identity(time.Now())
		l, stop := w.listen(srv, nil)
		var wg sync.WaitGroup
		for _, p := range []transport.Protocol{transport.ProtoRaft, transport.ProtoAPI} {
			wg.Go(func() { greet(l.Protocol(p)) })
		}
		synctest.Wait()

		for _, p := range []transport.Protocol{transport.ProtoRaft, transport.ProtoAPI} {
			got, err := w.dial(cli, srv.Node(), p)
			if want := "hello " + string(cli.Node()); err != nil || got != want {
				t.Errorf("%s: got %q, %v; want %q", p, got, err, want)
			}
		}
		if _, err := w.dial(cli, srv.Node(), transport.ProtoStream); err == nil {
			t.Error("a protocol that nobody serves was accepted")
		}
		// So it is with a later version of one that is served.
		if _, err := w.dial(cli, srv.Node(), "flk-raft/2"); err == nil {
			t.Error("a version of a protocol that this node does not know was accepted")
		}
		stop()
		wg.Wait()
	})
}

func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(365 * 24 * time.Hour) // so that something can be older
		w := newWorld(t, "c1")
		srv := w.identity(time.Now())
		removed := w.identity(time.Now())
		l, stop := w.listen(srv, func(id volume.NodeID) error {
			if id == removed.Node() {
				return errors.New("node n7 was removed from the cluster")
			}
			return nil
		})
		var wg sync.WaitGroup
		wg.Go(func() { greet(l.Protocol(transport.ProtoAPI)) })
		synctest.Wait()

		foreign := newWorld(t, "c2")
		foreign.net = w.net
		// A CA of one's own that claims to be of this cluster.
		forger := newWorld(t, "c1")
		forger.net = w.net
		var wrong *transport.WrongNodeError
		var clock *transport.ClockError
		var refused *transport.RefusedError
		for _, tt := range []struct {
			name string
			as   *transport.Identity
			to   volume.NodeID
			want string
			as2  any
		}{
			{"another node answers", w.identity(time.Now()), volume.NewNodeID(), "answers at srv:4523, where node", &wrong},
			{"removed node", removed, srv.Node(), "refused this node: node n7 was removed", &refused},
			{"foreign cluster", foreign.identity(time.Now()), srv.Node(), " of cluster c1, node ", nil},
			{"foreign root", forger.identity(time.Now()), srv.Node(), "not signed by this cluster's root", nil},
			{"expired", w.identity(time.Now().Add(-transport.NodeLife - time.Hour)), srv.Node(), "expired at", &refused},
			{"not yet valid", w.identity(time.Now().Add(5 * time.Hour)), srv.Node(), "one of the two clocks is wrong by at least 4h0m0s", &refused},
		} {
			_, err := w.dial(tt.as, tt.to, transport.ProtoAPI)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: error %v; want one with %q", tt.name, err, tt.want)
			}
			if tt.as2 != nil && !errors.As(err, tt.as2) {
				t.Errorf("%s: error %v is no %T", tt.name, err, tt.as2)
			}
		}

		// The client notices the server's dates by itself.
		time.Sleep(transport.NodeLife + time.Hour)
		_, err := w.dial(w.identity(time.Now()), srv.Node(), transport.ProtoAPI)
		if !errors.As(err, &clock) {
			t.Errorf("expired server: error %v; want a ClockError", err)
		}
		stop()
		wg.Wait()
	})
}

func TestServerRefusesWhatClientDoesNotCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// The client trusts both roots in this test, so that the refusal is the
		// server's.
		w, foreign := newWorld(t, "c1"), newWorld(t, "c2")
		srv := w.identity(time.Now())
		l, stop := w.listen(srv, nil)
		var wg sync.WaitGroup
		wg.Go(func() { greet(l.Protocol(transport.ProtoAPI)) })
		synctest.Wait()
		conn, err := transport.DialAs(t.Context(), w.net.Host("cli").Dial, "srv:4523", transport.ProtoAPI, foreign.identity(time.Now()))
		if err == nil || !strings.Contains(err.Error(), " of cluster c2, node ") {
			t.Errorf("DialAs = %v, %v; want the server's refusal", conn, err)
		}
		stop()
		wg.Wait()
	})
}

func TestReplaceWhileListening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "c1")
		key, err := transport.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		node := volume.NewNodeID()
		srv, err := transport.NewIdentity(w.cert(key, node, time.Now()), key, w.ca.CertPEM())
		if err != nil {
			t.Fatal(err)
		}
		l, stop := w.listen(srv, nil)
		var wg sync.WaitGroup
		wg.Go(func() { greet(l.Protocol(transport.ProtoAPI)) })
		time.Sleep(transport.NodeLife + time.Hour)
		cli := w.identity(time.Now())
		if _, err := w.dial(cli, node, transport.ProtoAPI); err == nil {
			t.Fatal("an expired server was trusted")
		}
		if err := srv.Replace(w.cert(key, volume.NewNodeID(), time.Now())); err == nil {
			t.Error("Replace took the certificate of another node")
		}
		if err := srv.Replace(w.cert(key, node, time.Now())); err != nil {
			t.Fatal(err)
		}
		if _, err := w.dial(cli, node, transport.ProtoAPI); err != nil {
			t.Errorf("after Replace: %v", err)
		}
		stop()
		wg.Wait()
	})
}

func TestDialJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "c1")
		srv := w.identity(time.Now())
		l, stop := w.listen(srv, nil)
		var wg sync.WaitGroup
		wg.Go(func() { greet(l.Protocol(transport.ProtoJoin)) })
		synctest.Wait()
		digest, err := transport.DigestRoot(w.ca.CertPEM())
		if err != nil {
			t.Fatal(err)
		}
		dial := w.net.Host("cli").Dial
		c, got, err := transport.DialJoin(t.Context(), dial, "srv:4523", digest)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(c)
		c.Close()
		if err != nil || string(b) != "hello " {
			t.Errorf("the server sees peer %q, %v; want none", b, err)
		}
		if got.Cluster != "c1" || got.Node != srv.Node() || string(got.RootPEM) != string(w.ca.CertPEM()) {
			t.Errorf("DialJoin learnt %+v", got)
		}
		other, err := transport.DigestRoot(newWorld(t, "c1").ca.CertPEM())
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := transport.DialJoin(t.Context(), dial, "srv:4523", other); !errors.Is(err, transport.ErrWrongRoot) {
			t.Errorf("DialJoin with another digest = %v; want ErrWrongRoot", err)
		}
		stop()
		wg.Wait()
	})
}

// A client that connects and says nothing is cut off, and holds nobody up.
func TestSilentClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "c1")
		srv := w.identity(time.Now())
		l, stop := w.listen(srv, nil)
		var wg sync.WaitGroup
		wg.Go(func() { greet(l.Protocol(transport.ProtoAPI)) })
		synctest.Wait() // it is served
		silent, err := w.net.Host("x").Dial(t.Context(), "tcp", "srv:4523")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.dial(w.identity(time.Now()), srv.Node(), transport.ProtoAPI); err != nil {
			t.Errorf("beside a silent client: %v", err)
		}
		start := time.Now()
		io.ReadAll(silent)
		if took := time.Since(start); took > 11*time.Second {
			t.Errorf("a silent client was cut off after %s", took)
		}
		stop()
		wg.Wait()
	})
}

func TestCloseNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "c1")
		srv, a, b := w.identity(time.Now()), w.identity(time.Now()), w.identity(time.Now())
		l, stop := w.listen(srv, nil)
		ln := l.Protocol(transport.ProtoStream)
		open := func(as *transport.Identity) (cli, acc net.Conn) {
			d := transport.Dialer{Identity: as, Dial: w.net.Host("cli").Dial}
			cli, err := d.DialNode(t.Context(), srv.Node(), "srv:4523", transport.ProtoStream)
			if err != nil {
				t.Fatal(err)
			}
			acc, err = ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			return cli, acc
		}
		a1, a2 := open(a)
		b1, b2 := open(b)
		l.CloseNode(a.Node())
		if _, err := a1.Read(make([]byte, 1)); err == nil {
			t.Error("the removed node's connection is still open")
		}
		if _, err := b2.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		if _, err := b1.Read(make([]byte, 1)); err != nil {
			t.Errorf("another node's connection was closed: %v", err)
		}
		for _, c := range []net.Conn{a1, a2, b1, b2} {
			c.Close()
		}
		stop()
	})
}

// Over real TCP, with deadlines that the kernel keeps.
func TestTCP(t *testing.T) {
	w := newWorld(t, "c1")
	srv, cli := w.identity(time.Now()), w.identity(time.Now())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := transport.Listen(ln, srv, func(volume.NodeID) error { return nil }, slog.New(slog.DiscardHandler))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Run(context.Background()); err != nil {
			t.Error(err)
		}
	})
	api := l.Protocol(transport.ProtoAPI)
	wg.Go(func() { greet(api) })
	d := transport.Dialer{Identity: cli}
	c, err := d.DialNode(t.Context(), srv.Node(), ln.Addr().String(), transport.ProtoAPI)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if want := "hello " + string(cli.Node()); err != nil || string(b) != want {
		t.Errorf("got %q, %v; want %q", b, err, want)
	}
	c.Close()
	l.Close()
	wg.Wait()
}

// A signing request is taken for its key alone, and only when its sender has it.
func TestIssueIgnoresNames(t *testing.T) {
	w := newWorld(t, "c1")
	key, err := transport.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := transport.NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	h1, err1 := transport.RequestKeyHash(csr)
	h2, err2 := transport.KeyHash(key)
	if err1 != nil || err2 != nil || string(h1) != string(h2) {
		t.Errorf("key hashes differ: %x %v, %x %v", h1, err1, h2, err2)
	}
	node := volume.NewNodeID()
	cert, err := transport.ParseCertificate(w.cert(key, node, time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	if got := cert.URIs[0].String(); got != "flocker://c1/node/"+string(node) {
		t.Errorf("URI SAN = %s", got)
	}
	if len(cert.DNSNames) != 1 || cert.DNSNames[0] != string(node) || cert.IsCA {
		t.Errorf("certificate says DNS %v, CA %v", cert.DNSNames, cert.IsCA)
	}
	// A flipped bit in the request breaks its signature.
	bad := []byte(strings.Replace(string(csr), "M", "N", 1))
	if _, err := w.ca.Issue(bad, "c1", node, time.Now(), 0); err == nil {
		t.Error("a damaged request was signed")
	}
}
