package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// heardConn is a connection on which another node has said all that it will.
type heardConn struct {
	in  *bytes.Reader
	out bytes.Buffer
}

func (c *heardConn) Read(p []byte) (int, error)       { return c.in.Read(p) }
func (c *heardConn) Write(p []byte) (int, error)      { return c.out.Write(p) }
func (c *heardConn) Close() error                     { return nil }
func (c *heardConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *heardConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *heardConn) SetDeadline(time.Time) error      { return nil }
func (c *heardConn) SetReadDeadline(time.Time) error  { return nil }
func (c *heardConn) SetWriteDeadline(time.Time) error { return nil }

// onlyPeer is Peers of which one node connects.
type onlyPeer struct{ node string }

func (p onlyPeer) Peer(net.Conn) string { return p.node }
func (p onlyPeer) Dial(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("there is nobody")
}

// Whatever another node says, alone or on a carrier, it gets to no server without a line by
// which it was told that it may, nor does it stop what is served.
func FuzzPreface(f *testing.F) {
	messages := func(vs ...any) []byte {
		var out bytes.Buffer
		for _, v := range vs {
			if err := writeMessage(&out, v); err != nil {
				f.Fatal(err)
			}
		}
		return out.Bytes()
	}
	carried := func(frames ...[]byte) []byte {
		return append(messages(preface{Kind: kindCarrier}), bytes.Join(frames, nil)...)
	}
	server := messages(preface{Kind: kindServer, Route: "r", Epoch: 1, Line: "l", Urgent: true})
	f.Add(messages(preface{Kind: kindLine, Route: "r", Epoch: 1, Line: "l"}, ack{Serial: 1, Done: true}))
	f.Add(server)
	f.Add(messages(preface{Kind: kindServer, Route: "r", Epoch: 9, Line: "l"}))
	f.Add(carried(appendFrame(nil, frameData, 1, server)))
	f.Add(carried(appendFrame(nil, frameData, 1, server[:3]), appendFrame(nil, frameData, 1, server[3:]), appendFrame(nil, frameEnd, 1, nil)))
	f.Add(carried(appendFrame(nil, frameData, 7, server), appendFrame(nil, frameReset, 7, nil), appendFrame(nil, frameClose, 3, nil), appendFrame(nil, frameClose, 9, nil)))
	f.Add(carried(appendFrame(nil, frameCredit, 1, []byte{0, 0, 0, 1})))
	f.Add(carried(appendFrame(nil, 9, 1, nil)))
	f.Add(carried([]byte{1, 0xff, 0xff, 0xff, 0, 0, 0, 1}))
	f.Add(messages(preface{Kind: "what", Route: "r"}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Fuzz(func(t *testing.T, said []byte) {
		n := NewNode(Options{Peers: onlyPeer{"n2"}})
		n.config = Config{Node: "n1", Members: []string{"n2"}}
		d := newDoor("n1", Route{ID: "r", Owner: "n1", Epoch: 1, Server: "127.0.0.1:1"}, nil, n, n.Log)
		n.doors["r"] = d
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		conn := &heardConn{in: bytes.NewReader(said)}
		_ = n.serve(ctx, conn)
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(d.open) != 0 || len(d.lines) != 0 || d.crossed {
			t.Errorf("it leaves %d connections and %d lines; crossed: %t", len(d.open), len(d.lines), d.crossed)
		}
		if bytes.Contains(conn.out.Bytes()[min(conn.out.Len(), 16):], []byte(`"Go":true`)) {
			t.Errorf("after %q it may go on: %q", said, conn.out.Bytes())
		}
	})
}

func TestMessages(t *testing.T) {
	for _, c := range []struct {
		what string
		in   string
		want error
	}{
		{"too long", "\xff\xff\xff\xff", errMessage},
		{"no JSON", "\x00\x00\x00\x01{", errMessage},
		{"cut off", "\x00\x00\x00\x09{", io.ErrUnexpectedEOF},
		{"nothing", "", io.EOF},
		{"whole", "\x00\x00\x00\x0c{\"Kind\":\"a\"}", nil},
	} {
		var p preface
		in := strings.NewReader(c.in + "rest")
		if c.in == "" || c.want == io.ErrUnexpectedEOF {
			in = strings.NewReader(c.in)
		}
		err := readMessage(in, maxPreface, &p)
		if !errors.Is(err, c.want) && err != c.want {
			t.Errorf("%s: %v, want %v", c.what, err, c.want)
		}
		if c.want == nil && (p.Kind != "a" || in.Len() != 4) {
			t.Errorf("%s: %+v, and %d bytes are left", c.what, p, in.Len())
		}
	}
}

// A refused node is one that the configuration does not name.
func TestAdmit(t *testing.T) {
	n := NewNode(Options{Peers: onlyPeer{"n3"}})
	n.config = Config{Node: "n1", Members: []string{"n2"}}
	for node, ok := range map[string]bool{"n1": true, "n2": true, "n3": false, "": false} {
		if err := n.Admit(node); (err == nil) != ok {
			t.Errorf("%s: %v", node, err)
		}
	}
	conn := &heardConn{in: bytes.NewReader(nil)}
	if err := n.serve(t.Context(), conn); err == nil || conn.out.Len() > 0 {
		t.Errorf("a stranger hears %q, %v", conn.out.Bytes(), err)
	}
}
