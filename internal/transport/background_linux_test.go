package transport_test

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flocker-io/flocker/internal/transport"
	"github.com/flocker-io/flocker/internal/volume"
)

// Streams are marked as background traffic at both ends, and nothing else is.
func TestBackground(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			t.Logf("no %s on this machine: %v", addr, err)
			continue
		}
		w := newWorld(t, "c1")
		srv, cli := w.identity(time.Now()), w.identity(time.Now())
		l := transport.Listen(ln, srv, func(volume.NodeID) error { return nil }, slog.New(slog.DiscardHandler))
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := l.Run(context.Background()); err != nil {
				t.Error(err)
			}
		})
		for _, c := range []struct {
			protocol transport.Protocol
			marked   bool
			later    bool // by whoever uses it
		}{{transport.ProtoStream, true, false}, {transport.ProtoRaft, false, false}, {transport.ProtoAPI, true, true}} {
			pl := l.Protocol(c.protocol)
			d := transport.Dialer{Identity: cli}
			dialed, err := d.DialNode(t.Context(), srv.Node(), ln.Addr().String(), c.protocol)
			if err != nil {
				t.Fatal(err)
			}
			accepted, err := pl.Accept()
			if err != nil {
				t.Fatal(err)
			}
			for end, conn := range map[string]net.Conn{"dialing": dialed, "accepting": accepted} {
				if c.later {
					if err := conn.(*transport.Conn).Background(); err != nil {
						t.Fatal(err)
					}
				}
				level, option := unix.IPPROTO_IP, unix.IP_TOS
				if ln.Addr().(*net.TCPAddr).IP.To4() == nil {
					level, option = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
				}
				for _, o := range []struct {
					name          string
					level, option int
					want          int
				}{
					{"traffic class", level, option, 1 << 2},
					{"priority", unix.SOL_SOCKET, unix.SO_PRIORITY, 2},
					{"unsent low-water mark", unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, 256 << 10},
				} {
					if got := sockopt(t, conn, o.level, o.option); (got == o.want) != c.marked {
						t.Errorf("%s, %s end over %s: %s is %d, marked would be %d", c.protocol, end, addr, o.name, got, o.want)
					}
				}
				conn.Close()
			}
		}
		l.Close()
		wg.Wait()
	}
}

func sockopt(t *testing.T, conn net.Conn, level, option int) (value int) {
	t.Helper()
	raw, err := conn.(*transport.Conn).NetConn().(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var got error
	if err := raw.Control(func(fd uintptr) { value, got = unix.GetsockoptInt(int(fd), level, option) }); err != nil || got != nil {
		t.Fatal(err, got)
	}
	return value
}
