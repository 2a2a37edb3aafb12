package proxy

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// connected is a connection of TCP with both its ends, as an edge listens for it.
func connected(t *testing.T) (ours, theirs *net.TCPConn) {
	t.Helper()
	l, err := listenTCP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = accepted.Close() })
	return accepted.(*net.TCPConn), conn.(*net.TCPConn)
}

// More than the kernel takes at once arrives whole and in order, and then the end.
func TestReaderAndWriter(t *testing.T) {
	ours, theirs := connected(t)
	said := bytes.Repeat([]byte("0123456789abcdef"), 1<<19)
	written := make(chan error, 1)
	go func() {
		written <- errors.Join(newWriter(ours).write(said), ours.CloseWrite())
	}()
	var heard []byte
	in := newReader(theirs)
	for {
		c, err := in.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		heard = append(heard, c.bytes()...)
		c.release()
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(heard, said) {
		t.Errorf("heard %d bytes, not the %d that were said", len(heard), len(said))
	}
}

// Who waits for the other side is woken by a deadline and by closing, and told of a reset.
func TestReaderAndWriterEnd(t *testing.T) {
	much := make([]byte, 64<<20) // that no kernel takes
	t.Run("deadline", func(t *testing.T) {
		ours, _ := connected(t)
		soon := time.Now().Add(10 * time.Millisecond)
		if err := ours.SetDeadline(soon); err != nil {
			t.Fatal(err)
		}
		if _, err := newReader(ours).next(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("reading: got %v, want that its time is over", err)
		}
		if err := newWriter(ours).write(much); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("writing: got %v, want that its time is over", err)
		}
	})
	t.Run("closed", func(t *testing.T) {
		ours, _ := connected(t)
		ended := make(chan error, 2)
		go func() { _, err := newReader(ours).next(); ended <- err }()
		go func() { ended <- newWriter(ours).write(much) }()
		_ = ours.Close()
		for range 2 {
			if err := <-ended; !errors.Is(err, net.ErrClosed) {
				t.Errorf("got %v, want that it is closed", err)
			}
		}
	})
	t.Run("reset", func(t *testing.T) {
		ours, theirs := connected(t)
		_ = theirs.SetLinger(0)
		_ = theirs.Close()
		if _, err := newReader(ours).next(); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("reading: got %v, want that it was reset", err)
		}
		if err := newWriter(ours).write(much); !errors.Is(err, unix.EPIPE) {
			t.Errorf("writing: got %v, want that nobody is there", err)
		}
	})
}

// A server is reached as with any other Dialer, and so is told what went wrong: where nobody
// listens, and where one has a full queue, until the time for it is over.
func TestServerDialer(t *testing.T) {
	listen := func(t *testing.T, addr string) net.Listener {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Skipf("this machine has no %s: %v", addr, err)
		}
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(addr, func(t *testing.T) {
			l := listen(t, addr)
			conn, err := serverDialer.DialContext(t.Context(), "tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			accepted, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = accepted.Close() }()
			if conn.RemoteAddr().String() != l.Addr().String() || conn.LocalAddr().String() != accepted.RemoteAddr().String() {
				t.Errorf("it believes to be from %s to %s, and is from %s to %s", conn.LocalAddr(), conn.RemoteAddr(), accepted.RemoteAddr(), l.Addr())
			}
			if _, err := conn.Write([]byte("x")); err != nil {
				t.Error(err)
			}
			if n, err := accepted.Read(make([]byte, 2)); n != 1 {
				t.Errorf("%d bytes come through: %v", n, err)
			}
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		l := listen(t, "127.0.0.1:0")
		addr := l.Addr().String()
		_ = l.Close()
		if conn, err := serverDialer.DialContext(t.Context(), "tcp", addr); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("got %v, %v", conn, err)
		}
	})
	t.Run("full", func(t *testing.T) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Close(fd) }()
		if err := cmp.Or(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
			t.Fatal(err)
		}
		at, err := unix.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(at.(*unix.SockaddrInet4).Port)).String()
		for range 10 { // the kernel may let one or two more through than it was asked to
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			conn, err := serverDialer.DialContext(ctx, "tcp", addr)
			cancel()
			if err != nil {
				if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("a queue that is full is %v", err)
				}
				return
			}
			defer func() { _ = conn.Close() }()
		}
		t.Error("the queue has no end")
	})
}

// A client that is accepted is asked now and then whether it is still there.
func TestAcceptedKeepAlive(t *testing.T) {
	ours, _ := connected(t)
	for _, o := range []struct {
		name               string
		level, opt, wanted int
	}{
		{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
		{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
		{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9},
	} {
		var got int
		var failed error
		err := rawConn(ours).Control(func(fd uintptr) { got, failed = unix.GetsockoptInt(int(fd), o.level, o.opt) })
		if err := errors.Join(err, failed); err != nil {
			t.Fatal(err)
		}
		if got != o.wanted {
			t.Errorf("%s of an accepted connection: got %d, want %d", o.name, got, o.wanted)
		}
	}
}

// Who has said all that it will may yet listen; who has reset the connection does not.
func TestReset(t *testing.T) {
	conn, client := connected(t)
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has said all", func() bool { return gone(conn) })
	if reset(conn) {
		t.Error("half a connection is taken for none")
	}
	if err := client.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	_ = client.Close()
	eventually(t, "it was reset", func() bool { return reset(conn) })
}
