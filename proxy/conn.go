package proxy

import (
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// chunk is what was read at once, in a buffer that goes back to the others when it has
// been passed on.
type chunk struct {
	buf *[chunkSize]byte
	n   int
}

const chunkSize = 64 << 10

var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

func (c chunk) bytes() []byte { return c.buf[:c.n] }
func (c chunk) release()      { chunks.Put(c.buf) }

// readChunk reads what there is, and waits for it. A connection that says nothing has
// no buffer: it is taken when there is something to read.
func readChunk(from net.Conn) (chunk, error) {
	if raw := rawConn(from); raw != nil {
		return readRaw(raw)
	}
	if s, ok := from.(*stream); ok {
		return s.readChunk()
	}
	return readBuffered(from)
}

func readBuffered(from io.Reader) (chunk, error) {
	c := chunk{buf: chunks.Get().(*[chunkSize]byte)}
	n, err := from.Read(c.buf[:])
	if n == 0 && err != nil {
		c.release()
		return chunk{}, err
	}
	c.n = n
	return c, nil
}

func readRaw(raw syscall.RawConn) (c chunk, err error) {
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		c = chunk{buf: chunks.Get().(*[chunkSize]byte)}
		for {
			c.n, failed = syscall.Read(int(fd), c.buf[:])
			if failed != syscall.EINTR {
				break
			}
		}
		if failed == syscall.EAGAIN {
			c.release()
			return false
		}
		return true
	})
	switch {
	case err != nil: // closed, or past its deadline; nothing was read
		return chunk{}, err
	case failed != nil:
		c.release()
		return chunk{}, failed
	case c.n == 0:
		c.release()
		return chunk{}, io.EOF
	}
	return c, nil
}

// gone says that the other side has closed or reset its connection, even if what it said
// before is still there to be read.
func gone(conn net.Conn) bool {
	info, ok := tcpInfo(conn)
	return ok && info.State != tcpEstablished
}

const tcpEstablished = 1 // in the kernel's numbering

// tcpInfo is what the kernel knows of a connection; ok is false if it cannot be asked.
func tcpInfo(conn net.Conn) (info unix.TCPInfo, ok bool) {
	raw := rawConn(below(conn))
	if raw == nil {
		return info, false
	}
	err := raw.Control(func(fd uintptr) {
		if got, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			info, ok = *got, true
		}
	})
	return info, ok && err == nil
}

// below is the connection that TLS is spoken on, or conn itself. What the kernel knows of
// it is not about bytes that were said, but whether there are any.
func below(conn net.Conn) net.Conn {
	if c, ok := conn.(interface{ NetConn() net.Conn }); ok {
		return c.NetConn()
	}
	return conn
}

// rawConn returns nil for a connection that is not the kernel's.
func rawConn(conn net.Conn) syscall.RawConn {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// writeNow writes something short to a server that has taken all that it was told, with a
// lock held: it does not wait for long.
func writeNow(conn net.Conn, p []byte) error {
	if s, ok := conn.(*stream); ok {
		return s.writeNow(p)
	}
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, err := conn.Write(p)
	_ = conn.SetWriteDeadline(time.Time{})
	return err
}
