package transport

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// handshakeTimeout bounds connecting and shaking hands where the caller's context
// does not.
const handshakeTimeout = 10 * time.Second

// DialFunc makes the connection below TLS. net.Dialer.DialContext is one.
type DialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// Dialer connects to other members as one Identity.
type Dialer struct {
	Identity *Identity
	Dial     DialFunc // nil: TCP
}

// DialNode connects to the node id, expected at addr. The error is a
// *WrongNodeError when another node answers there.
func (d *Dialer) DialNode(ctx context.Context, id volume.NodeID, addr string, p Protocol) (*Conn, error) {
	var peer subject
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{string(p)},
		// VerifyConnection does all of it, with the roots in use at that moment.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			s, err := d.Identity.verify(cs.PeerCertificates)
			if err != nil {
				return err
			}
			if s.node != id {
				return &WrongNodeError{Addr: addr, Want: id, Got: s.node}
			}
			peer = s
			return nil
		},
	}
	if !p.anonymous() {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &d.Identity.current.Load().cert, nil
		}
	}
	conn, err := handshake(ctx, d.Dial, addr, p, cfg)
	if err != nil {
		return nil, fmt.Errorf("connecting to node %s at %s: %w", id.Short(), addr, err)
	}
	return &Conn{Conn: conn, peer: peer.node, protocol: p}, nil
}

// Server is what a machine without a certificate has learnt about the member it
// talks to.
type Server struct {
	Cluster string
	Node    volume.NodeID
	RootPEM []byte
}

// DialJoin connects to whatever member is at addr, as a machine without a
// certificate. The member shows the root of its cluster in the handshake; it is
// trusted if its digest is root, and the connection fails with ErrWrongRoot
// otherwise, before anything was said.
func DialJoin(ctx context.Context, dial DialFunc, addr string, root RootDigest) (*Conn, Server, error) {
	var srv Server
	cfg := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{string(ProtoJoin)},
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			for _, c := range cs.PeerCertificates {
				if sha256.Sum256(c.Raw) != root {
					continue
				}
				pool := x509.NewCertPool()
				pool.AddCert(c)
				s, err := subjectOf(cs.PeerCertificates[0])
				if err != nil {
					return err
				}
				if err := verifyLeaf(cs.PeerCertificates[0], s, pool, "this machine"); err != nil {
					return err
				}
				srv = Server{Cluster: s.cluster, Node: s.node, RootPEM: encodePEM(pemCertificate, c.Raw)}
				return nil
			}
			return ErrWrongRoot
		},
	}
	conn, err := handshake(ctx, dial, addr, ProtoJoin, cfg)
	if err != nil {
		return nil, Server{}, fmt.Errorf("connecting to %s: %w", addr, err)
	}
	return &Conn{Conn: conn, peer: srv.Node, protocol: ProtoJoin}, srv, nil
}

// handshake connects, makes it TLS and waits for the welcome.
func handshake(ctx context.Context, dial DialFunc, addr string, p Protocol, cfg *tls.Config) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	raw, err := dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if p.bulk() {
		// A kernel that refuses costs courtesy, not replication; the end that accepts
		// says so in its log.
		background(raw)
	}
	conn := tls.Client(raw, cfg)
	// The end of ctx unblocks the handshake. If it comes in the last moment, the
	// deadline it set would stay on a good connection: then the dial has failed.
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	err = conn.Handshake()
	if err == nil {
		err = readWelcome(conn)
	}
	if !stop() && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}
