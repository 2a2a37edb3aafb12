package proxy

import (
	"io"
	"net"
	"sync"
	"syscall"
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
	if sc, ok := from.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			return readRaw(raw)
		}
	}
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

// gone says that the other side has closed or reset its connection. What it said before
// may still be there to be read.
func gone(conn net.Conn) bool {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	var over bool
	err = raw.Control(func(fd uintptr) {
		var one [1]byte
		n, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		over = n == 0 && err == nil || err != nil && err != syscall.EAGAIN && err != syscall.EINTR
	})
	return err != nil || over
}
