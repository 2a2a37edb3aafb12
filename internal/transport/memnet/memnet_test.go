package memnet_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/transport/memnet"
)

// pair is a connection between the hosts a and b.
func pair(t testing.TB, n *memnet.Network) (here, there net.Conn) {
	t.Helper()
	ln, err := n.Host("b").Listen(t.Context(), "tcp", "b:1")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	here, err = n.Host("a").Dial(t.Context(), "tcp", "b:1")
	if err != nil {
		t.Fatal(err)
	}
	there, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return here, there
}

func TestStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		here, there := pair(t, n)
		sent := bytes.Repeat([]byte("0123456789"), 1<<16) // more than the window
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := here.Write(sent); err != nil {
				t.Error(err)
			}
			here.Close()
		})
		got, err := io.ReadAll(there)
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("ReadAll = %d bytes, %v; want the %d sent", len(got), err, len(sent))
		}
		wg.Wait()
		if _, err := there.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("Write to a closed peer = %v; want EPIPE", err)
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		here, there := pair(t, n)
		start := time.Now()
		here.SetReadDeadline(start.Add(time.Minute))
		_, err := here.Read(make([]byte, 1))
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Minute {
			t.Errorf("Read = %v after %s; want a timeout after a minute", err, time.Since(start))
		}
		var nerr net.Error
		if !errors.As(err, &nerr) || !nerr.Timeout() {
			t.Errorf("Read = %v; want an error with Timeout()", err)
		}
		here.SetWriteDeadline(time.Now().Add(time.Minute))
		if _, err := here.Write(make([]byte, 1<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write that nobody reads = %v; want a timeout", err)
		}
		// A deadline in the future revives the connection.
		here.SetDeadline(time.Time{})
		if _, err := there.Write([]byte("y")); err != nil {
			t.Fatal(err)
		}
		if _, err := here.Read(make([]byte, 1)); err != nil {
			t.Errorf("Read after the deadline was lifted = %v", err)
		}
	})
}

func TestPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		here, there := pair(t, n)

		// One way: what b says does not arrive, what a says does.
		n.PartitionOneWay("b", "a")
		there.Write([]byte("late"))
		here.Write([]byte("now"))
		buf := make([]byte, 10)
		if k, err := there.Read(buf); err != nil || string(buf[:k]) != "now" {
			t.Errorf("Read against the partition = %q, %v", buf[:k], err)
		}
		here.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := here.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read behind the partition = %v; want a timeout", err)
		}
		here.SetReadDeadline(time.Time{})

		// No connection can be made in either direction, and a dial waits.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := n.Host("a").Dial(ctx, "tcp", "b:1"); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Dial across the partition = %v; want a timeout", err)
		}
		time.AfterFunc(time.Hour, func() { n.Heal("a", "b") })
		if k, err := here.Read(buf); err != nil || string(buf[:k]) != "late" {
			t.Errorf("Read after Heal = %q, %v; want what was held back", buf[:k], err)
		}
		if _, err := n.Host("a").Dial(t.Context(), "tcp", "b:1"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("Dial without a listener = %v; want it refused", err)
		}
	})
}

func TestCutAndCrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		here, there := pair(t, n)
		n.Cut("a", "b")
		for _, c := range []net.Conn{here, there} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("Read after Cut = %v; want a reset", err)
			}
		}
		ln, err := n.Host("b").Listen(t.Context(), "tcp", ":1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.Host("b").Listen(t.Context(), "tcp", ":1"); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("second Listen = %v; want address in use", err)
		}
		here, err = n.Host("a").Dial(t.Context(), "tcp", "b:1")
		if err != nil {
			t.Fatal(err)
		}
		n.Crash("b")
		if _, err := here.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("Write to a crashed host = %v; want a reset", err)
		}
		if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept after Crash = %v; want closed", err)
		}
	})
}

func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		here, there := pair(t, n)
		n.SetLatency(30 * time.Millisecond)
		start := time.Now()
		here.Write([]byte("x"))
		if _, err := there.Read(make([]byte, 1)); err != nil || time.Since(start) != 30*time.Millisecond {
			t.Errorf("Read = %v after %s; want 30ms", err, time.Since(start))
		}
	})
}
