package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

const (
	// maxHandshakes bounds the connections that have not yet proven who they are.
	// Past it, Accept waits and the kernel's queue holds the others.
	maxHandshakes = 256
	// acceptTimeout is how long a finished connection waits for its protocol's
	// Accept.
	acceptTimeout = 10 * time.Second
)

// Listener serves one port and hands each connection to the listener of its
// protocol once both sides have proven who they are.
type Listener struct {
	ln    net.Listener
	id    *Identity
	allow func(volume.NodeID) error
	log   *slog.Logger

	mu        sync.Mutex
	protocols map[Protocol]*protocolListener
	conns     map[*Conn]struct{}    // handed out and not yet closed
	pending   map[net.Conn]struct{} // shaking hands
	closed    bool
	done      chan struct{}
}

// Listen on ln as id. Each node that connects is put to allow; its error is what the
// log says about the refusal. Nothing is accepted before Run.
func Listen(ln net.Listener, id *Identity, allow func(volume.NodeID) error, log *slog.Logger) *Listener {
	return &Listener{
		ln: ln, id: id, allow: allow, log: log,
		protocols: map[Protocol]*protocolListener{},
		conns:     map[*Conn]struct{}{},
		pending:   map[net.Conn]struct{}{},
		done:      make(chan struct{}),
	}
}

// Addr of the port.
func (l *Listener) Addr() net.Addr { return l.ln.Addr() }

// Protocol is the listener of one protocol; its connections are *Conn. A protocol
// that nobody asked a listener for is refused in the handshake, and so is one whose
// listener was closed. Calls for the same protocol share one listener until that is
// closed.
func (l *Listener) Protocol(p Protocol) net.Listener {
	l.mu.Lock()
	defer l.mu.Unlock()
	pl := l.protocols[p]
	if pl == nil {
		pl = &protocolListener{parent: l, protocol: p, queue: make(chan *Conn), done: make(chan struct{})}
		if l.closed {
			pl.once.Do(func() { close(pl.done) })
			return pl
		}
		l.protocols[p] = pl
	}
	return pl
}

// CloseNode closes the open connections from a node: it was removed.
func (l *Listener) CloseNode(id volume.NodeID) {
	l.mu.Lock()
	var gone []*Conn
	for c := range l.conns {
		if c.peer == id {
			gone = append(gone, c)
		}
	}
	l.mu.Unlock()
	for _, c := range gone {
		c.Close()
	}
}

// Close stops accepting and closes the protocols' listeners. Connections that were
// handed out stay open: they belong to whom they were handed. Run then returns.
func (l *Listener) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	close(l.done)
	protocols := l.protocols
	l.protocols = map[Protocol]*protocolListener{}
	for raw := range l.pending {
		raw.Close()
	}
	l.mu.Unlock()
	for _, pl := range protocols {
		pl.once.Do(func() { close(pl.done) })
	}
	return l.ln.Close()
}

// Run accepts until ctx ends or the port fails, and returns when every handshake
// has ended. The error is nil after Close or the end of ctx.
func (l *Listener) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer l.Close()
	slots := make(chan struct{}, maxHandshakes)
	for {
		select {
		case slots <- struct{}{}:
		case <-l.done:
			return nil
		}
		raw, err := l.ln.Accept()
		if err != nil {
			if l.isClosed() {
				return nil
			}
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() {
				// Out of file descriptors, most likely; peers come again.
				l.log.Error("cannot accept a connection", "err", err)
				<-slots
				select {
				case <-time.After(100 * time.Millisecond):
				case <-l.done:
				}
				continue
			}
			return fmt.Errorf("accepting connections on %s: %w", l.ln.Addr(), err)
		}
		wg.Go(func() {
			c, err := l.handshake(raw)
			<-slots
			if err != nil {
				raw.Close()
				if !l.isClosed() {
					l.log.Warn("refused a connection", "from", raw.RemoteAddr(), "err", err)
				}
				return
			}
			l.deliver(c)
		})
	}
}

func (l *Listener) isClosed() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// handshake proves who both ends are.
func (l *Listener) handshake(raw net.Conn) (*Conn, error) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, net.ErrClosed
	}
	l.pending[raw] = struct{}{}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.pending, raw)
	}()

	conn := tls.Server(raw, &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: l.config})
	// Deadlines, not a context: they cost no goroutine, and Close ends them too.
	raw.SetDeadline(time.Now().Add(handshakeTimeout))
	if err := conn.Handshake(); err != nil {
		return nil, err
	}
	cs := conn.ConnectionState()
	c := &Conn{Conn: conn, protocol: Protocol(cs.NegotiatedProtocol), onClose: l.forget}
	if !c.protocol.anonymous() {
		peer, err := l.admit(cs.PeerCertificates)
		if err != nil {
			refuse(conn, err)
			return nil, err
		}
		c.peer = peer
	}
	if c.protocol.bulk() {
		if err := background(raw); err != nil {
			l.log.Warn("a stream is not marked as background traffic", "from", raw.RemoteAddr(), "err", err)
		}
	}
	if err := welcome(conn); err != nil {
		return nil, err
	}
	raw.SetDeadline(time.Time{})
	return c, nil
}

// admit says which node shows these certificates, if it may come in.
func (l *Listener) admit(certs []*x509.Certificate) (volume.NodeID, error) {
	s, err := l.id.verify(certs)
	if err != nil {
		return "", err
	}
	return s.node, l.allow(s.node)
}

// config is how to shake hands with one client. A client's certificate is judged
// after the handshake (which proves that the client has its key), so that the
// client can be told in words why it is refused.
func (l *Listener) config(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if len(hello.SupportedProtos) != 1 {
		return nil, errors.New("the client speaks no protocol of flocker")
	}
	p := Protocol(hello.SupportedProtos[0])
	l.mu.Lock()
	served := l.protocols[p] != nil
	l.mu.Unlock()
	if !served {
		return nil, fmt.Errorf("protocol %q is not served here now", p)
	}
	cred := l.id.current.Load()
	cfg := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{string(p)},
		Certificates:           []tls.Certificate{cred.cert},
		ClientAuth:             tls.RequireAnyClientCert,
		SessionTicketsDisabled: true, // every connection proves its certificate anew
	}
	if p.anonymous() {
		// The root rides along, so that a joiner can compare it with its token.
		withRoot := cred.cert
		withRoot.Certificate = [][]byte{cred.cert.Certificate[0], cred.root.Raw}
		cfg.Certificates = []tls.Certificate{withRoot}
		cfg.ClientAuth = tls.NoClientCert
	}
	return cfg, nil
}

// deliver hands a connection to its protocol, or closes it when nobody takes it.
func (l *Listener) deliver(c *Conn) {
	l.mu.Lock()
	pl := l.protocols[c.protocol]
	if pl != nil && !l.closed {
		l.conns[c] = struct{}{}
	}
	l.mu.Unlock()
	if pl == nil {
		c.Close()
		return
	}
	timer := time.NewTimer(acceptTimeout)
	defer timer.Stop()
	select {
	case pl.queue <- c:
	case <-pl.done:
		c.Close()
	case <-timer.C:
		l.log.Warn("closed a connection that nobody accepted", "protocol", c.protocol, "peer", c.peer.Short())
		c.Close()
	}
}

func (l *Listener) forget(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
}

// protocolListener is the net.Listener of one protocol.
type protocolListener struct {
	parent   *Listener
	protocol Protocol
	queue    chan *Conn
	done     chan struct{}
	once     sync.Once
}

func (p *protocolListener) Accept() (net.Conn, error) {
	select {
	case c := <-p.queue:
		return c, nil
	case <-p.done:
		return nil, &net.OpError{Op: "accept", Net: string(p.protocol), Addr: p.Addr(), Err: net.ErrClosed}
	}
}

func (p *protocolListener) Close() error {
	p.parent.mu.Lock()
	if p.parent.protocols[p.protocol] == p {
		delete(p.parent.protocols, p.protocol)
	}
	p.parent.mu.Unlock()
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *protocolListener) Addr() net.Addr { return p.parent.Addr() }
