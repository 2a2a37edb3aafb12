// Package memnet is a network in memory, for tests that run a whole cluster in one
// process: hosts with addresses, listeners, connections with deadlines, and links
// between hosts that can be cut, healed and slowed per direction.
//
// It waits with sync.Cond and timers only, so it works inside a testing/synctest
// bubble, and it starts no goroutine of its own.
//
// It differs from real TCP in this: a link that is partitioned keeps what was sent
// and delivers it after Heal for as long as both ends are open (TCP would retry for
// minutes, then give up); buffers have a fixed size; there is no slow start; names
// are not resolved, so an address is just a string "host:port".
package memnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// window is how many bytes one direction of a connection holds before Write waits.
const window = 256 << 10

// backlog is how many connections may wait for Accept before dials are refused.
const backlog = 1024

// Network joins hosts. Make one with New. All methods may be called at any time by
// any goroutine.
type Network struct {
	mu sync.Mutex
	// cond wakes everything that waits for a change of the network's shape: dials
	// and Accepts. Connections have their own.
	cond      *sync.Cond
	latency   time.Duration
	listeners map[string]*listener // by address
	blocked   map[link]bool
	conns     map[*conn]struct{}
	nextPort  int
}

// link is one direction between two hosts.
type link struct{ from, to string }

// New is a network without hosts or faults. Inside a synctest bubble it must be
// made there.
func New() *Network {
	n := &Network{
		listeners: map[string]*listener{},
		blocked:   map[link]bool{},
		conns:     map[*conn]struct{}{},
		nextPort:  40000,
	}
	n.cond = sync.NewCond(&n.mu)
	return n
}

// SetLatency is the time that every byte sent from now on takes.
func (n *Network) SetLatency(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.latency = d
}

// Partition holds back everything between two hosts, in both directions, new
// connections included, until Heal.
func (n *Network) Partition(a, b string) {
	n.setBlocked(true, link{a, b}, link{b, a})
}

// PartitionOneWay holds back what from sends to to. No new connection can be made
// between the two then, since a handshake needs both directions.
func (n *Network) PartitionOneWay(from, to string) {
	n.setBlocked(true, link{from, to})
}

// Heal ends a partition in both directions. What was held back arrives now.
func (n *Network) Heal(a, b string) {
	n.setBlocked(false, link{a, b}, link{b, a})
}

// HealOneWay ends the partition of one direction.
func (n *Network) HealOneWay(from, to string) {
	n.setBlocked(false, link{from, to})
}

// HealAll ends every partition.
func (n *Network) HealAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.blocked)
	n.wakeAll()
}

// Reachable says whether something sent now from one host arrives at the other.
func (n *Network) Reachable(from, to string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.blocked[link{from, to}]
}

// Cut resets the open connections between two hosts. New ones can be made.
func (n *Network) Cut(a, b string) {
	n.reset(func(c *conn) bool {
		return c.host == a && c.peer.host == b || c.host == b && c.peer.host == a
	})
}

// Crash resets every connection of a host and closes its listeners, as when its
// process is killed; both ends learn of it at once, whatever is partitioned. (For a
// power cut, which nobody is told of, Partition it from all others.) The host may
// listen again at once.
func (n *Network) Crash(host string) {
	n.mu.Lock()
	var gone []*listener
	for _, l := range n.listeners {
		if l.host == host {
			gone = append(gone, l)
		}
	}
	n.mu.Unlock()
	for _, l := range gone {
		l.Close()
	}
	n.reset(func(c *conn) bool { return c.host == host || c.peer.host == host })
}

func (n *Network) reset(which func(*conn) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		if which(c) {
			for _, p := range []*pipe{c.in, c.peer.in} {
				p.mu.Lock()
				p.reset = true
				p.cond.Broadcast()
				p.mu.Unlock()
			}
		}
	}
}

func (n *Network) setBlocked(on bool, links ...link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range links {
		if on {
			n.blocked[l] = true
		} else {
			delete(n.blocked, l)
		}
	}
	n.wakeAll()
}

// wakeAll lets every waiter look again. The lock is held.
func (n *Network) wakeAll() {
	n.cond.Broadcast()
	for c := range n.conns {
		c.in.mu.Lock()
		c.in.blocked = n.blocked[link{c.peer.host, c.host}]
		c.in.cond.Broadcast()
		c.in.mu.Unlock()
	}
}

// Host is one machine's view of the network.
type Host struct {
	net  *Network
	name string
}

// Host with an address such as "10.0.0.1". It exists from the moment it is named.
func (n *Network) Host(name string) *Host { return &Host{net: n, name: name} }

// Name of the host.
func (h *Host) Name() string { return h.name }

// Listen on "host:port" or ":port". Port 0 picks a free one.
func (h *Host) Listen(_ context.Context, _, addr string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if host == "" || host == "0.0.0.0" || host == "::" {
		host = h.name
	}
	if host != h.name {
		return nil, &net.OpError{Op: "listen", Net: "mem", Addr: Addr(addr), Err: syscall.EADDRNOTAVAIL}
	}
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if port == "0" {
		n.nextPort++
		port = strconv.Itoa(n.nextPort)
	}
	full := net.JoinHostPort(host, port)
	if n.listeners[full] != nil {
		return nil, &net.OpError{Op: "listen", Net: "mem", Addr: Addr(full), Err: syscall.EADDRINUSE}
	}
	l := &listener{net: n, host: host, addr: Addr(full)}
	n.listeners[full] = l
	return l, nil
}

// Dial a listener of this network. It waits while a partition is in the way, until
// ctx ends.
func (h *Host) Dial(ctx context.Context, _, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	n := h.net
	stop := context.AfterFunc(ctx, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.cond.Broadcast()
	})
	defer stop()

	n.mu.Lock()
	defer n.mu.Unlock()
	opErr := func(err error) error {
		return &net.OpError{Op: "dial", Net: "mem", Addr: Addr(addr), Err: err}
	}
	for n.blocked[link{h.name, host}] || n.blocked[link{host, h.name}] {
		if ctx.Err() != nil {
			return nil, opErr(timeoutError(ctx))
		}
		n.cond.Wait()
	}
	if ctx.Err() != nil {
		return nil, opErr(timeoutError(ctx))
	}
	l := n.listeners[addr]
	if l == nil || len(l.queue) >= backlog {
		return nil, opErr(syscall.ECONNREFUSED)
	}
	n.nextPort++
	local := Addr(net.JoinHostPort(h.name, strconv.Itoa(n.nextPort)))
	here := &conn{net: n, host: h.name, local: local, remote: Addr(addr), in: newPipe()}
	there := &conn{net: n, host: host, local: Addr(addr), remote: local, in: newPipe()}
	here.peer, there.peer = there, here
	n.conns[here], n.conns[there] = struct{}{}, struct{}{}
	l.queue = append(l.queue, there)
	n.cond.Broadcast()
	return here, nil
}

func timeoutError(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return os.ErrDeadlineExceeded
	}
	return ctx.Err()
}

// Addr is an address on the network.
type Addr string

// Network is "mem".
func (Addr) Network() string  { return "mem" }
func (a Addr) String() string { return string(a) }

type listener struct {
	net    *Network
	host   string
	addr   Addr
	queue  []*conn
	closed bool
}

func (l *listener) Accept() (net.Conn, error) {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	for len(l.queue) == 0 && !l.closed {
		l.net.cond.Wait()
	}
	if l.closed {
		return nil, &net.OpError{Op: "accept", Net: "mem", Addr: l.addr, Err: net.ErrClosed}
	}
	c := l.queue[0]
	l.queue = l.queue[1:]
	return c, nil
}

func (l *listener) Close() error {
	l.net.mu.Lock()
	if l.closed {
		l.net.mu.Unlock()
		return nil
	}
	l.closed = true
	queue := l.queue
	l.queue = nil
	delete(l.net.listeners, string(l.addr))
	l.net.cond.Broadcast()
	l.net.mu.Unlock()
	for _, c := range queue {
		c.Close()
	}
	return nil
}

func (l *listener) Addr() net.Addr { return l.addr }

// conn is one end of a connection. It reads from in and writes to its peer's in.
type conn struct {
	net           *Network
	host          string
	local, remote Addr
	in            *pipe
	peer          *conn
}

// pipe is one direction: what was written and not yet read.
type pipe struct {
	mu      sync.Mutex
	cond    *sync.Cond
	chunks  []chunk
	size    int
	blocked bool // a partition holds back what is not yet read
	eof     bool // the writer has closed
	gone    bool // the reader has closed
	reset   bool
	rdl     deadline
	wdl     deadline
	wakeup  *time.Timer // for the latency of the first chunk
}

type chunk struct {
	at   time.Time // when it arrives
	data []byte
}

func newPipe() *pipe {
	p := &pipe{}
	p.cond = sync.NewCond(&p.mu)
	return p
}

// deadline wakes a pipe's waiters when its time has come.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) set(t time.Time, p *pipe) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = t
	if wait := time.Until(t); !t.IsZero() && wait > 0 {
		d.timer = time.AfterFunc(wait, p.wake)
	}
	p.cond.Broadcast()
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (p *pipe) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cond.Broadcast()
}

func (c *conn) Read(b []byte) (int, error) {
	p := c.in
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.gone:
			return 0, c.opError("read", net.ErrClosed)
		case p.reset:
			return 0, c.opError("read", syscall.ECONNRESET)
		case p.rdl.passed():
			return 0, c.opError("read", os.ErrDeadlineExceeded)
		case len(b) == 0:
			return 0, nil
		case p.blocked:
		case len(p.chunks) == 0 && p.eof:
			return 0, io.EOF
		case len(p.chunks) > 0:
			first := &p.chunks[0]
			if wait := time.Until(first.at); wait > 0 {
				if p.wakeup != nil {
					p.wakeup.Stop()
				}
				p.wakeup = time.AfterFunc(wait, p.wake)
				break
			}
			k := copy(b, first.data)
			first.data = first.data[k:]
			if len(first.data) == 0 {
				p.chunks = p.chunks[1:]
			}
			p.size -= k
			p.cond.Broadcast()
			return k, nil
		}
		p.cond.Wait()
	}
}

func (c *conn) Write(b []byte) (int, error) {
	c.net.mu.Lock()
	latency := c.net.latency
	c.net.mu.Unlock()

	p := c.peer.in
	p.mu.Lock()
	defer p.mu.Unlock()
	written := 0
	for {
		switch {
		case p.eof:
			return written, c.opError("write", net.ErrClosed)
		case p.reset:
			return written, c.opError("write", syscall.ECONNRESET)
		case p.wdl.passed():
			return written, c.opError("write", os.ErrDeadlineExceeded)
		case p.gone && !p.blocked:
			return written, c.opError("write", syscall.EPIPE)
		case len(b) == 0:
			return written, nil
		case p.size < window:
			k := min(len(b), window-p.size)
			p.chunks = append(p.chunks, chunk{at: time.Now().Add(latency), data: append([]byte(nil), b[:k]...)})
			p.size += k
			written += k
			b = b[k:]
			p.cond.Broadcast()
			continue
		}
		p.cond.Wait()
	}
}

// CloseWrite tells the peer that nothing more comes.
func (c *conn) CloseWrite() error {
	p := c.peer.in
	p.mu.Lock()
	defer p.mu.Unlock()
	p.eof = true
	p.wdl.set(time.Time{}, p)
	return nil
}

func (c *conn) Close() error {
	c.net.mu.Lock()
	delete(c.net.conns, c)
	c.net.mu.Unlock()
	c.CloseWrite()
	p := c.in
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = true
	p.chunks, p.size = nil, 0
	p.rdl.set(time.Time{}, p)
	if p.wakeup != nil {
		p.wakeup.Stop()
	}
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	c.in.rdl.set(t, c.in)
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	p := c.peer.in
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wdl.set(t, p)
	return nil
}

func (c *conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "mem", Source: c.local, Addr: c.remote, Err: err}
}
