package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// expecting is a listener of a server that expects the PROXY protocol, and takes nobody who
// does not speak it.
type expecting struct {
	net.Listener
	t       testing.TB
	version int
	own     atomic.Int64 // connections that were said to be the proxy's own
}

func (l *expecting) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &announcedConn{Conn: conn, l: l, in: bufio.NewReader(conn)}, nil
}

type announcedConn struct {
	net.Conn
	l    *expecting
	once sync.Once
	in   *bufio.Reader
	from net.Addr
	err  error
}

func (c *announcedConn) read() {
	from, to, err := readHeader(c.in, c.l.version)
	switch {
	case err != nil:
		c.err = err
		c.l.t.Errorf("a connection to the server begins with something else: %v", err)
	case from == "":
		c.l.own.Add(1)
	default:
		c.from = stated(from + " at " + to)
	}
}

func (c *announcedConn) Read(p []byte) (int, error) {
	c.once.Do(c.read)
	if c.err != nil {
		return 0, c.err
	}
	return c.in.Read(p)
}

func (c *announcedConn) RemoteAddr() net.Addr {
	c.once.Do(c.read)
	if c.from == nil {
		return c.Conn.RemoteAddr()
	}
	return c.from
}

// stated is what a header says.
type stated string

func (s stated) Network() string { return "tcp" }
func (s stated) String() string  { return string(s) }

// readHeader reads one, and not a byte more; from is empty if the connection is the proxy's own.
func readHeader(in *bufio.Reader, version int) (from, to string, err error) {
	if version == 1 {
		line, err := in.ReadString('\n')
		words := strings.Split(strings.TrimSuffix(line, "\r\n"), " ")
		switch {
		case err != nil:
			return "", "", err
		case len(words) == 2 && words[0] == "PROXY" && words[1] == "UNKNOWN":
			return "", "", nil
		case len(words) != 6 || words[0] != "PROXY" || words[1] != "TCP4":
			return "", "", fmt.Errorf("%q", line)
		}
		return words[2] + ":" + words[4], words[3] + ":" + words[5], nil
	}
	head := make([]byte, 16)
	if _, err := io.ReadFull(in, head); err != nil {
		return "", "", err
	}
	body := make([]byte, binary.BigEndian.Uint16(head[14:]))
	if _, err := io.ReadFull(in, body); err != nil {
		return "", "", err
	}
	switch what := string(head[:14]); {
	case what == "\r\n\r\n\x00\r\nQUIT\n\x20\x00" && len(body) == 0:
		return "", "", nil
	case what != "\r\n\r\n\x00\r\nQUIT\n\x21\x11" || len(body) != 12:
		return "", "", fmt.Errorf("%q", head)
	}
	at := func(ip, port []byte) string {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip)), binary.BigEndian.Uint16(port)).String()
	}
	return at(body[:4], body[8:]), at(body[4:8], body[10:]), nil
}

// A server is told whose connection each is: its clients', wherever they come to and
// wherever it runs. A connection is never another client's as well.
func TestServerKnowsItsClients(t *testing.T) {
	for _, c := range []struct {
		name    string
		mode    Mode
		version int
		http2   bool
	}{
		{"tcp", TCP, 1, false},
		{"http/1.1", HTTP, 1, false},
		{"http/1.1 by version 2", HTTP, 2, false},
		{"http/2", HTTP, 2, true},
		{"tls", TLS, 2, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			start := func() (l *expecting, addr string, stop func()) {
				s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.WriteString(w, r.RemoteAddr)
				}))
				s.Config.Protocols = new(http.Protocols)
				s.Config.Protocols.SetHTTP1(true)
				s.Config.Protocols.SetUnencryptedHTTP2(true)
				s.Config.ErrorLog = log.New(io.Discard, "", 0)
				addr = s.Listener.Addr().String()
				l = &expecting{Listener: s.Listener, t: t, version: c.version}
				s.Listener = l
				if c.mode == TLS {
					s.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
					s.StartTLS()
				} else {
					s.Start()
				}
				t.Cleanup(s.Close)
				return l, addr, s.Close
			}
			announce := Announce(fmt.Sprintf("v%d", c.version))
			l, addr, stop := start()
			if err := ProbeAt(t.Context(), c.mode, announce, addr); err != nil {
				t.Fatal(err)
			}
			if c.mode == HTTP && l.own.Load() == 0 {
				t.Error("what asks whether the server is ready does not say that it is no client's")
			}
			cluster := newCluster(t, 2)
			r := Route{ID: "r", Listen: freePort(t), Mode: c.mode, Announce: announce}
			cluster.route(r, 0, 1, addr)

			type client struct {
				http.Client
				at string
			}
			var clients []*client
			for i := range 6 {
				dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(i+1))}}
				tr := &http.Transport{DialContext: dialer.DialContext, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Protocols: new(http.Protocols)}
				tr.Protocols.SetHTTP1(!c.http2)
				tr.Protocols.SetUnencryptedHTTP2(c.http2)
				t.Cleanup(tr.CloseIdleConnections)
				clients = append(clients, &client{http.Client{Transport: tr, Timeout: 30 * time.Second}, cluster.addrOf(i%2, r)})
			}
			ask := func() {
				t.Helper()
				for range 3 {
					for _, k := range clients {
						own := ""
						ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { own = i.Conn.LocalAddr().String() }})
						scheme := "http://"
						if c.mode == TLS {
							scheme = "https://"
						}
						req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+k.at, nil)
						if err != nil {
							t.Fatal(err)
						}
						res, err := k.Do(req)
						if err != nil {
							t.Fatal(err)
						}
						got, err := io.ReadAll(res.Body)
						_ = res.Body.Close()
						if want := own + " at " + k.at; err != nil || string(got) != want {
							t.Errorf("the server sees %s, %v; want %s", got, err, want)
						}
					}
				}
			}
			ask()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := cluster.nodes[0].Pause(ctx, "r", 0); err != nil {
				t.Fatal(err)
			}
			if err := cluster.nodes[0].Quiet(ctx, "r"); err != nil {
				t.Fatal(err)
			}
			stop()
			_, addr, _ = start()
			cluster.route(r, 1, 2, addr)
			ask()
		})
	}
}

// A server that nobody here wrote reads what it is told.
func TestNativeNginxKnowsItsClients(t *testing.T) {
	needs(t, "nginx")
	for _, announce := range []Announce{AnnounceV1, AnnounceV2} {
		t.Run(string(announce), func(t *testing.T) {
			dir := t.TempDir()
			addr := fmt.Sprintf("127.0.0.1:%d", freePort(t))
			conf := filepath.Join(dir, "nginx.conf")
			text := fmt.Sprintf(`daemon off; worker_processes 1; pid %[1]s/pid; error_log %[1]s/log; events {}
http { access_log off; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
server { listen %[2]s proxy_protocol; location / { return 200 "$proxy_protocol_addr:$proxy_protocol_port at $proxy_protocol_server_addr:$proxy_protocol_server_port"; } } }
`, dir, addr)
			if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			server := exec.Command("nginx", "-p", dir, "-c", conf, "-e", filepath.Join(dir, "log"))
			if err := server.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = server.Process.Signal(os.Interrupt); _ = server.Wait() })
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := ProbeAt(ctx, HTTP, announce, addr); err != nil {
				t.Fatal(err)
			}
			c := newCluster(t, 2)
			r := Route{ID: "r", Listen: freePort(t), Mode: HTTP, Announce: announce}
			c.route(r, 0, 1, addr)
			for node := range c.nodes {
				own := ""
				at := c.addrOf(node, r)
				req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { own = i.Conn.LocalAddr().String() }}),
					http.MethodGet, "http://"+at, nil)
				if err != nil {
					t.Fatal(err)
				}
				tr := new(http.Transport)
				defer tr.CloseIdleConnections()
				res, err := tr.RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(res.Body)
				_ = res.Body.Close()
				if want := own + " at " + at; err != nil || string(got) != want {
					t.Errorf("nginx sees %s, %v; want %s", got, err, want)
				}
			}
		})
	}
}
