package replicate

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"
)

// What a stream costs between zfs send and zfs receive, over TLS on the loopback: by
// flocker, and by a pipe as one would write it by hand, in pieces of the same size. The
// ratio of the two is the figure; the goal is 0.95 (docs/BENCHMARKS.md has both with zfs).
func BenchmarkDataPath(b *testing.B) {
	const piece, size = 256 << 10, 64 << 20
	data := make([]byte, piece)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	run := func(b *testing.B, send func(net.Conn, int) error, receive func(net.Conn) error) {
		ours, theirs := loopback(b)
		b.SetBytes(size)
		for b.Loop() {
			done := make(chan error, 1)
			go func() { done <- receive(theirs) }()
			if err := send(ours, size/piece); err != nil {
				b.Fatal(err)
			}
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("flocker", func(b *testing.B) {
		e := New(Config{})
		l := &link{e: e}
		var out, in *wire
		buf := make([]byte, piece)
		run(b, func(conn net.Conn, pieces int) error {
			if out == nil {
				out = newWire(conn, time.Minute)
			}
			o := l.outgoing(b.Context(), out, true, func(int) {}, func() {})
			for range pieces {
				if _, err := o.Write(data); err != nil {
					return err
				}
			}
			return out.writeMessage(frameEnd, end{OK: true, Bytes: int64(pieces * piece)})
		}, func(conn net.Conn) error {
			if in == nil {
				in = newWire(conn, time.Minute)
			}
			return exhaust(&incoming{dataReader: dataReader{w: in}}, buf)
		})
	})
	b.Run("by-hand", func(b *testing.B) {
		var r *bufio.Reader
		w, buf := make([]byte, 4+piece), make([]byte, piece)
		run(b, func(conn net.Conn, pieces int) error {
			for i := range pieces + 1 {
				n := 0
				if i < pieces {
					n = copy(w[4:], data)
				}
				binary.BigEndian.PutUint32(w, uint32(n))
				if _, err := conn.Write(w[:4+n]); err != nil {
					return err
				}
			}
			return nil
		}, func(conn net.Conn) error {
			if r == nil {
				r = bufio.NewReaderSize(conn, 64<<10)
			}
			for {
				if _, err := io.ReadFull(r, buf[:4]); err != nil {
					return err
				}
				n := binary.BigEndian.Uint32(buf)
				if n == 0 {
					return nil
				}
				if _, err := io.ReadFull(r, buf[:n]); err != nil {
					return err
				}
			}
		})
	})
}

// exhaust reads to the end, as package zfs does.
func exhaust(r io.Reader, buf []byte) error {
	for {
		_, err := r.Read(buf)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// loopback is a TLS connection of this machine with itself.
func loopback(tb testing.TB) (ours, theirs net.Conn) {
	tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer listener.Close()
	config := selfSigned(tb)
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			tb.Error(err)
			close(accepted)
			return
		}
		accepted <- conn
	}()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	ours, theirs = tls.Client(conn, config), tls.Server(<-accepted, config)
	tb.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs
}
