package transport

import (
	"crypto/tls"
	"net"

	"github.com/flocker-io/flocker/internal/volume"
)

// Conn is a connection whose handshake is done. It is not a *tls.Conn, so that
// net/http takes it as it is.
type Conn struct {
	*tls.Conn
	peer     volume.NodeID
	protocol Protocol
	onClose  func(*Conn)
}

// Peer is the node at the other end, by its certificate. It is "" for a client of
// ProtoJoin, who need not have one.
func (c *Conn) Peer() volume.NodeID { return c.peer }

// Protocol that the dialer asked for.
func (c *Conn) Protocol() Protocol { return c.protocol }

// Background has what this end sends yield to all other traffic from now on, as on a connection
// of a protocol for bulk.
func (c *Conn) Background() error { return background(c.Conn.NetConn()) }

// Close the connection.
func (c *Conn) Close() error {
	if c.onClose != nil {
		c.onClose(c)
	}
	return c.Conn.Close()
}

// PeerOf is the node at the other end of a connection that came from a Listener or
// a Dialer of this package; ok is false for every other connection.
func PeerOf(c net.Conn) (id volume.NodeID, ok bool) {
	t, ok := c.(*Conn)
	if !ok || t.peer == "" {
		return "", false
	}
	return t.peer, true
}
