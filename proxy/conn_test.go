package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
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
