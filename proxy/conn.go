package proxy

import (
	"cmp"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
	"unsafe"

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
func readChunk(from net.Conn) (chunk, error) { return newReader(from).next() }

// reader reads chunk by chunk, as readChunk does, and makes nothing anew for each. One
// goroutine at a time may use it.
type reader struct {
	from net.Conn
	raw  syscall.RawConn // nil: it is not the kernel's
	try  func(fd uintptr) bool
	c    chunk // that was read
	err  error
}

func newReader(from net.Conn) *reader {
	r := &reader{from: from, raw: rawConn(from)}
	r.try = r.tryOnce
	return r
}

func (r *reader) next() (chunk, error) {
	if r.raw != nil {
		err := r.raw.Read(r.try)
		c := r.c
		r.c = chunk{}
		if err == nil {
			err = r.err
		}
		return c, err
	}
	if s, ok := r.from.(interface{ readChunk() (chunk, error) }); ok {
		return s.readChunk()
	}
	return readBuffered(r.from)
}

// tryOnce reads what there is; it returns false if there is nothing.
func (r *reader) tryOnce(fd uintptr) bool {
	c := chunk{buf: chunks.Get().(*[chunkSize]byte)}
	c.n, r.err = receive(fd, c.buf[:])
	if c.n > 0 {
		r.c = c
		return true
	}
	c.release()
	if r.err == nil {
		r.err = io.EOF
	}
	return r.err != unix.EAGAIN
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

// writer writes to a connection, and makes nothing anew for each time. One goroutine at a
// time may use it.
type writer struct {
	to  net.Conn
	raw syscall.RawConn // nil: it is not the kernel's
	try func(fd uintptr) bool
	p   []byte // that is still to be written
	err error
}

func newWriter(to net.Conn) *writer {
	w := &writer{to: to, raw: rawConn(to)}
	w.try = w.tryOnce
	return w
}

// write writes all of p, or fails.
func (w *writer) write(p []byte) error {
	if w.raw == nil {
		_, err := w.to.Write(p)
		return err
	}
	w.p = p
	err := w.raw.Write(w.try)
	w.p = nil
	if err != nil {
		return err
	}
	return w.err
}

// tryOnce writes as much as there is room for; it returns false if something is left.
func (w *writer) tryOnce(fd uintptr) bool {
	for w.err = nil; len(w.p) > 0; {
		var n int
		if n, w.err = send(fd, w.p); w.err != nil {
			return w.err != unix.EAGAIN
		}
		w.p = w.p[n:]
	}
	return true
}

// receive and send do not wait, so Go's scheduler is not told of them: it would take a
// processor that is in a call for longer than some 20 µs for one that waits, and have
// another thread go on in its place, which where processors are scarce comes on top.
func receive(fd uintptr, p []byte) (int, error) {
	return socketCall(unix.SYS_RECVFROM, fd, p, unix.MSG_DONTWAIT)
}

func send(fd uintptr, p []byte) (int, error) {
	return socketCall(unix.SYS_SENDTO, fd, p, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
}

func socketCall(call, fd uintptr, p []byte, flags uintptr) (int, error) {
	for {
		n, _, err := unix.RawSyscall6(call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), flags, 0, 0)
		switch err {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, err
		}
	}
}

// serverDialer connects to servers, most of which are on this machine.
var serverDialer = net.Dialer{Control: hasten}

// hasten connects a socket that the net package is about to connect. Within a machine the
// connection is there by the time the call returns, which still says that it is under way,
// and who asks once more is told so. The net package asks once, and would wait for the poller,
// with timers and a context for that. It finds all that goes wrong here as well.
func hasten(network, addr string, raw syscall.RawConn) error {
	to, err := netip.ParseAddrPort(addr)
	if err != nil || network != "tcp4" {
		return nil
	}
	sa := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to.Addr().As4()}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:], to.Port())
	return raw.Control(func(fd uintptr) {
		// The socket does not block, so the scheduler hears of this as little as of receive and send.
		_, _, _ = unix.RawSyscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet4)
	})
}

// listenTCP listens with sockets that find out when their other side is no more. Those of
// clients have that from the listener's, and are not told each by four system calls.
func listenTCP(addr string) (net.Listener, error) {
	set := func(fd uintptr) (failed error) {
		for _, o := range []struct{ level, name, value int }{
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepAlive},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepAlive},
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAlives},
		} {
			failed = cmp.Or(failed, unix.SetsockoptInt(int(fd), o.level, o.name, o.value))
		}
		return failed
	}
	c := net.ListenConfig{KeepAlive: -1, Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		return cmp.Or(raw.Control(func(fd uintptr) { failed = set(fd) }), failed)
	}}
	// Kernels before 6.10 refuse these options to a socket of MPTCP, or forget them.
	c.SetMultipathTCP(false)
	return c.Listen(context.Background(), "tcp", addr)
}

// A client that does not answer is asked after keepAlive seconds, and given up after
// keepAlives times: as the net package has it.
const (
	keepAlive  = 15
	keepAlives = 9
)

// gone says that the other side has closed or reset its connection, even if what it said
// before is still there to be read.
func gone(conn net.Conn) bool {
	info := tcpInfo(conn)
	return info != nil && info.State != tcpEstablished
}

// reset says that a connection is no more. The other side has then reset it, or closed it
// and been told something since: one that has only said all that it will may yet listen.
func reset(conn net.Conn) bool {
	info := tcpInfo(conn)
	return info != nil && info.State == tcpClose
}

const ( // in the kernel's numbering
	tcpEstablished = 1
	tcpClose       = 7
)

// tcpInfo is what the kernel knows of a connection; nil if it cannot be asked.
func tcpInfo(conn net.Conn) (info *unix.TCPInfo) {
	raw := rawConn(below(conn))
	if raw == nil {
		return nil
	}
	err := raw.Control(func(fd uintptr) {
		if got, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			info = got
		}
	})
	if err != nil {
		return nil
	}
	return info
}

// lastWords says something to a client that is to be its last. What else it sends is read,
// for a second, because it would reset the connection otherwise, and those words with it.
func lastWords(client net.Conn, text []byte) error {
	_ = client.SetDeadline(time.Now().Add(time.Second))
	_, err := client.Write(text)
	if half, ok := client.(interface{ CloseWrite() error }); ok && err == nil {
		if err = half.CloseWrite(); err == nil {
			_, err = io.Copy(io.Discard, client)
		}
	}
	return err
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
