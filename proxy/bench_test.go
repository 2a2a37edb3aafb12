package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A connection that says one word, through the owner's edge and through another node's. The
// processor time is that of client, both nodes and server, which are all in this process.
func BenchmarkEdgeConnect(b *testing.B) {
	eachNode(b, func(b *testing.B, c *cluster, r Route, addr string) {
		b.SetParallelism(8)
		spent := processorTime(b)
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				if err := hearName(addr); err != nil {
					b.Error(err)
					return
				}
			}
		})
		b.ReportMetric(float64((processorTime(b)-spent).Microseconds())/float64(b.N), "cpu-µs/op")
	})
}

// The release of a thousand clients that wait for the end of a pause.
func BenchmarkEdgeRelease(b *testing.B) {
	const clients = 1000
	eachNode(b, func(b *testing.B, c *cluster, r Route, addr string) {
		if err := hearName(addr); err != nil { // there is a line by now
			b.Fatal(err)
		}
		node := 0
		if addr == c.addrOf(1, r) {
			node = 1
		}
		var released, spent time.Duration
		for b.Loop() {
			if err := c.nodes[0].Pause(b.Context(), "r", time.Hour); err != nil {
				b.Fatal(err)
			}
			if err := c.nodes[0].Quiet(b.Context(), "r"); err != nil {
				b.Fatal(err)
			}
			var wait sync.WaitGroup
			failed := make(chan error, clients)
			for range clients {
				wait.Go(func() { failed <- hearName(addr) })
			}
			eventually(b, "all wait", func() bool { return c.status(node, "r").Held == clients })
			begin, before := time.Now(), processorTime(b)
			if err := c.nodes[0].Resume(b.Context(), "r", ""); err != nil {
				b.Fatal(err)
			}
			wait.Wait()
			released += time.Since(begin)
			spent += processorTime(b) - before
			for range clients {
				if err := <-failed; err != nil {
					b.Fatal(err)
				}
			}
		}
		b.ReportMetric(float64(released.Milliseconds())/float64(b.N), "ms/release")
		b.ReportMetric(float64(spent.Microseconds())/float64(b.N)/clients, "cpu-µs/client")
	})
}

// A quarter of a gigabyte from the server to a client.
func BenchmarkEdgeBulk(b *testing.B) {
	const size = 1 << 28
	eachNode(b, func(b *testing.B, c *cluster, r Route, addr string) {
		b.SetBytes(size)
		spent := processorTime(b)
		for b.Loop() {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := conn.Write([]byte("much\n")); err != nil {
				b.Fatal(err)
			}
			n, err := io.Copy(io.Discard, io.LimitReader(conn, size))
			if err != nil || n != size {
				b.Fatalf("%d bytes, %v", n, err)
			}
			_ = conn.Close()
		}
		b.ReportMetric(float64((processorTime(b)-spent).Milliseconds())/float64(b.N), "cpu-ms/op")
	})
}

// eachNode has a route of two nodes measured, by its owner's address and by the other's.
func eachNode(b *testing.B, measure func(b *testing.B, c *cluster, r Route, addr string)) {
	for i, who := range []string{"owner", "other"} {
		b.Run(who, func(b *testing.B) {
			c := newCluster(b, 2)
			server := greeter(b)
			r := Route{ID: "r", Listen: freePort(b), Mode: TCP, Limits: Limits{Request: time.Hour, Sessions: 5000}}
			c.route(r, 0, 1, server)
			measure(b, c, r, c.addrOf(i, r))
		})
	}
}

// greeter is a server that says one word to everybody, and to those that answer as much as
// they hear.
func greeter(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer func() { _ = conn.Close() }()
				_, _ = io.WriteString(conn, "s\n")
				block := make([]byte, 256<<10)
				_, err := conn.Read(block)
				for err == nil {
					_, err = conn.Write(block)
				}
			})
		}
	})
	t.Cleanup(work.Wait)
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

// hearName connects and waits for the server's first word.
func hearName(addr string) error {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	name, err := bufio.NewReaderSize(conn, 16).ReadString('\n')
	if err != nil || name != "s\n" {
		return fmt.Errorf("the server says %q, %w", name, err)
	}
	return nil
}

func processorTime(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
