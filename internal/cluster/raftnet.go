package cluster

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/flocker-io/flocker/internal/transport"
	"github.com/flocker-io/flocker/internal/volume"
)

// streamLayer carries Raft's RPCs over the node port. To Raft a node's address is its
// ID: the address book is asked at each dial, so a node may change its address
// without any change of Raft's configuration, and the dial verifies that the node
// which answers is the one meant.
//
// Each connection begins with the generation of the cluster that the dialer belongs to,
// and ends when it is another one: after a recovery from one survivor the nodes that are
// left behind still have the log of before, with a majority among themselves perhaps.
// What they say must reach nobody who has gone on, also not one that has just begun with
// an empty log and knows no member yet.
type streamLayer struct {
	net.Listener
	self       volume.NodeID
	generation uint32
	dial       func(ctx context.Context, id volume.NodeID) (net.Conn, error)
	ctx        context.Context // ends dials when the node stops

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

func (s *streamLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	c, err := s.dial(ctx, volume.NodeID(addr))
	if err != nil {
		return nil, err
	}
	c.SetWriteDeadline(time.Now().Add(timeout))
	if _, err := c.Write(binary.BigEndian.AppendUint32(nil, s.generation)); err != nil {
		c.Close()
		return nil, err
	}
	c.SetWriteDeadline(time.Time{})
	return s.track(c, false)
}

func (s *streamLayer) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return s.track(c, true)
}

// Addr is what Raft takes for this node's address.
func (s *streamLayer) Addr() net.Addr { return nodeAddr(s.self) }

// Close the listener and all connections: Raft's transport waits in Reads of
// connections that it never closes by itself.
func (s *streamLayer) Close() error {
	s.mu.Lock()
	s.closed = true
	conns := s.conns
	s.conns = nil
	s.mu.Unlock()
	for c := range conns {
		c.Close()
	}
	return s.Listener.Close()
}

// closeNode closes the connections with a node that was removed.
func (s *streamLayer) closeNode(id volume.NodeID) {
	s.mu.Lock()
	var gone []net.Conn
	for c := range s.conns {
		if peer, ok := transport.PeerOf(c.(*raftConn).Conn); ok && peer == id {
			gone = append(gone, c)
		}
	}
	s.mu.Unlock()
	for _, c := range gone {
		c.Close()
	}
}

func (s *streamLayer) track(c net.Conn, accepted bool) (net.Conn, error) {
	rc := &raftConn{Conn: c, layer: s, unread: accepted}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
		return nil, net.ErrClosed
	}
	s.conns[rc] = struct{}{}
	return rc, nil
}

type raftConn struct {
	net.Conn
	layer *streamLayer
	// unread: the generation of the peer has not been read yet. Only Read uses it, which
	// Raft calls from one goroutine, so that nobody waits for one peer in Accept.
	unread bool
}

func (c *raftConn) Read(b []byte) (int, error) {
	if c.unread {
		var g [4]byte
		if _, err := io.ReadFull(c.Conn, g[:]); err != nil {
			return 0, err
		}
		if got := binary.BigEndian.Uint32(g[:]); got != c.layer.generation {
			return 0, fmt.Errorf("the peer is of generation %d of the cluster, this node of %d", got, c.layer.generation)
		}
		c.unread = false
	}
	return c.Conn.Read(b)
}

func (c *raftConn) Close() error {
	c.layer.mu.Lock()
	delete(c.layer.conns, c)
	c.layer.mu.Unlock()
	return c.Conn.Close()
}

// nodeAddr is a node ID as an address.
type nodeAddr volume.NodeID

func (nodeAddr) Network() string  { return "flocker" }
func (a nodeAddr) String() string { return string(a) }

// addrByID is Raft's address provider: see streamLayer.
type addrByID struct{}

func (addrByID) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	return raft.ServerAddress(id), nil
}
