package zfs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/flocker-io/flocker/zfs"
)

// misbehave is a child that does what a real one does on a bad day.
func misbehave(mode string) int {
	switch mode {
	case "stubborn": // in the kernel, deaf to SIGTERM
		signal.Ignore(syscall.SIGTERM)
		fmt.Fprintln(os.Stderr, "still here")
		time.Sleep(time.Hour) // until it is killed
	case "sleep":
		time.Sleep(time.Hour) // until it is killed
	case "flood": // a stream without end
		buf := make([]byte, 64<<10)
		for {
			if _, err := os.Stdout.Write(buf); err != nil {
				fmt.Fprintln(os.Stderr, "warning: cannot send: Broken pipe")
				return 1
			}
		}
	case "refuse": // before it has read anything
		fmt.Fprintln(os.Stderr, "cannot receive new filesystem stream: destination 'tank/a' exists\nmust specify -F to overwrite it")
		return 1
	case "enough": // one word of the stream, then success
		io.ReadFull(os.Stdin, make([]byte, 4))
	case "swallow":
		if n, _ := io.Copy(io.Discard, os.Stdin); n == 0 {
			fmt.Fprintln(os.Stderr, "cannot receive: failed to read from stream")
			return 1
		}
	case "cut", "cut-missing": // ends before all that it prints could be read
		rest := exec.Command(os.Args[0])
		rest.Env, rest.Stdout = append(os.Environ(), "ZFS_TEST_MODE=drip"), os.Stdout
		if err := rest.Start(); err != nil {
			panic(err)
		}
		if mode == "cut-missing" {
			fmt.Fprintln(os.Stderr, "cannot open 'tank/a@1': dataset does not exist")
			return 1
		}
	case "drip": // nothing that a parser minds, until nobody reads it any more
		for {
			if _, err := os.Stdout.WriteString("\n"); err != nil {
				return 1
			}
			time.Sleep(20 * time.Millisecond)
		}
	case "chatty":
		fmt.Fprint(os.Stderr, strings.Repeat("warning: this and that\n", 100_000))
		return 1
	}
	return 0
}

// misbehaving is a Host whose children do so.
func misbehaving(t *testing.T, mode string) *zfs.Host {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(self, filepath.Join(dir, "zfs")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	t.Setenv("ZFS_TEST_MODE", mode)
	return zfs.New(zfs.Options{})
}

// within fails when f takes longer, and says what f returned.
func within(t *testing.T, limit time.Duration, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(limit):
		t.Fatalf("not back after %s", limit)
		return nil
	}
}

var (
	errEnough = errors.New("the test has had enough")
	full      = zfs.SendRequest{Snapshot: "tank/a@1"}
	onto      = zfs.ReceiveRequest{Dataset: "tank/a"}
)

// forever is an end that blocks and that nobody can interrupt.
type forever struct{}

func (forever) Read([]byte) (int, error)  { select {} }
func (forever) Write([]byte) (int, error) { select {} }

func TestChildIsKilled(t *testing.T) {
	for _, mode := range []string{"sleep", "stubborn"} {
		t.Run(mode, func(t *testing.T) {
			h := misbehaving(t, mode)
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(200*time.Millisecond, func() { cancel(errEnough) })
			err := within(t, time.Minute, func() error { return h.Promote(ctx, "tank/a") })
			var e *zfs.Error
			if !errors.Is(err, errEnough) || !errors.As(err, &e) || e.Op != "promote" {
				t.Errorf("got %v, want the cause of the context", err)
			}
		})
	}
}

func TestSendEnds(t *testing.T) {
	stopped := func(t *testing.T) context.Context {
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(300*time.Millisecond, func() { cancel(errEnough) })
		return ctx
	}
	t.Run("peer that fails", func(t *testing.T) {
		h := misbehaving(t, "flood")
		lost := errors.New("connection lost")
		n := 0
		err := within(t, time.Minute, func() error {
			return h.Send(t.Context(), full, writer(func(p []byte) (int, error) {
				if n += len(p); n > 1<<20 {
					return 0, lost
				}
				return len(p), nil
			}))
		})
		if !errors.Is(err, lost) {
			t.Errorf("got %v, want %v", err, lost)
		}
	})
	t.Run("stalled connection", func(t *testing.T) {
		h := misbehaving(t, "flood")
		near, far := net.Pipe()
		defer near.Close()
		defer far.Close()
		err := within(t, time.Minute, func() error { return h.Send(stopped(t), full, near) })
		if !errors.Is(err, errEnough) {
			t.Errorf("got %v", err)
		}
		// What wrote there was interrupted, not left behind: its word would come first.
		go near.Write([]byte("no"))
		word := make([]byte, 2)
		if _, err := io.ReadFull(far, word); err != nil || string(word) != "no" {
			t.Errorf("afterwards: %q, %v", word, err)
		}
	})
	t.Run("stalled for good", func(t *testing.T) {
		h := misbehaving(t, "flood")
		err := within(t, time.Minute, func() error { return h.Send(stopped(t), full, forever{}) })
		if !errors.Is(err, errEnough) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("stalled socket of the child", func(t *testing.T) {
		h := misbehaving(t, "flood")
		near, far := tcp(t)
		defer near.Close()
		defer far.Close()
		err := within(t, time.Minute, func() error { return h.Send(stopped(t), full, near) })
		if !errors.Is(err, errEnough) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("child that hangs", func(t *testing.T) {
		h := misbehaving(t, "sleep")
		err := within(t, time.Minute, func() error { return h.Send(stopped(t), full, new(bytes.Buffer)) })
		if !errors.Is(err, errEnough) {
			t.Errorf("got %v", err)
		}
	})
}

type writer func([]byte) (int, error)

func (f writer) Write(p []byte) (int, error) { return f(p) }

func TestReceiveEnds(t *testing.T) {
	t.Run("refused with a silent peer", func(t *testing.T) {
		h := misbehaving(t, "refuse")
		near, far := net.Pipe()
		defer near.Close()
		defer far.Close()
		err := within(t, time.Minute, func() error { return h.Receive(t.Context(), onto, near) })
		if !errors.Is(err, zfs.ErrExists) {
			t.Errorf("got %v", err)
		}
		// The connection is good for an answer, and nobody is left who reads it.
		go near.Write([]byte("no"))
		if _, err := io.ReadFull(far, make([]byte, 2)); err != nil {
			t.Errorf("afterwards: %v", err)
		}
		go far.Write([]byte("ok"))
		if _, err := io.ReadFull(near, make([]byte, 2)); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
	t.Run("refused with a peer silent for good", func(t *testing.T) {
		h := misbehaving(t, "refuse")
		err := within(t, time.Minute, func() error { return h.Receive(t.Context(), onto, forever{}) })
		if !errors.Is(err, zfs.ErrExists) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("refused with a peer that floods", func(t *testing.T) {
		h := misbehaving(t, "refuse")
		err := within(t, time.Minute, func() error { return h.Receive(t.Context(), onto, zeros{}) })
		if !errors.Is(err, zfs.ErrExists) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		h := misbehaving(t, "swallow")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(300*time.Millisecond, func() { cancel(errEnough) })
		near, far := net.Pipe()
		defer near.Close()
		defer far.Close()
		err := within(t, time.Minute, func() error { return h.Receive(ctx, onto, near) })
		if !errors.Is(err, errEnough) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("socket of the child", func(t *testing.T) {
		h := misbehaving(t, "swallow")
		near, far := tcp(t)
		defer near.Close()
		go func() { far.Write([]byte("stream")); far.Close() }()
		if err := within(t, time.Minute, func() error { return h.Receive(t.Context(), onto, near) }); err != nil {
			t.Error(err)
		}
	})
	// What follows the stream is taken from the reader, all of it.
	t.Run("more than the stream", func(t *testing.T) {
		h := misbehaving(t, "enough")
		r := bytes.NewReader(make([]byte, 8<<20))
		if err := within(t, time.Minute, func() error { return h.Receive(t.Context(), onto, struct{ io.Reader }{r}) }); err != nil || r.Len() != 0 {
			t.Errorf("got %v, %d bytes left", err, r.Len())
		}
	})
	t.Run("lost connection", func(t *testing.T) {
		h := misbehaving(t, "swallow")
		lost := errors.New("connection lost")
		err := within(t, time.Minute, func() error { return h.Receive(t.Context(), onto, failing{lost}) })
		if !errors.Is(err, lost) || !errors.Is(err, zfs.ErrBadStream) {
			t.Errorf("got %v", err)
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

type failing struct{ error }

func (f failing) Read([]byte) (int, error) { return 0, f.error }

// tcp is a connection to itself.
func tcp(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return near, far
}

// A listing whose end was not read is not a shorter list.
func TestOutputThatIsCut(t *testing.T) {
	h := misbehaving(t, "cut")
	if list, err := h.Snapshots(t.Context(), "tank/a", false); err == nil {
		t.Errorf("the snapshots are said to be %v", list)
	}
	t.Setenv("ZFS_TEST_MODE", "cut-missing")
	if list, err := h.SnapshotsNamed(t.Context(), []string{"tank/a@1", "tank/a@2"}); err == nil {
		t.Errorf("the snapshots are said to be %v", list)
	}
}

func TestStderrIsCapped(t *testing.T) {
	h := misbehaving(t, "chatty")
	err := h.Promote(t.Context(), "tank/a")
	var e *zfs.Error
	if !errors.As(err, &e) || len(e.Stderr) > 64<<10 || len(e.Stderr) < 1000 {
		t.Errorf("kept %d bytes", len(e.Stderr))
	}
}

func TestNoZFS(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	h := zfs.New(zfs.Options{})
	_, err := h.Capabilities(t.Context())
	for what, err := range map[string]error{
		"version": err,
		"promote": h.Promote(t.Context(), "tank/a"),
		"rename":  h.Rename(t.Context(), "tank/a", "tank/b"),
		"send":    h.Send(t.Context(), full, io.Discard),
		"receive": h.Receive(t.Context(), onto, strings.NewReader("x")),
	} {
		if !errors.Is(err, zfs.ErrNoZFS) {
			t.Errorf("%s: got %v, want ErrNoZFS", what, err)
		}
	}
}

func TestObserve(t *testing.T) {
	install(t, nil)
	var n atomic.Int32
	h := zfs.New(zfs.Options{Observe: func(op string, argv []string, took time.Duration, err error) {
		n.Add(1)
		if op == "" || len(argv) < 2 || argv[0] != "zfs" || err != nil {
			t.Errorf("observed %s %q %s %v", op, argv, took, err)
		}
	}})
	h.Promote(t.Context(), "tank/a")
	h.Rename(t.Context(), "tank/a", "tank/b")
	h.Send(t.Context(), full, io.Discard)
	h.Snapshot(t.Context(), []string{"tank/a@1", "tank/b@1"}, nil)
	if n.Load() != 4 {
		t.Errorf("observed %d commands, want 4", n.Load())
	}
}

// zfs destroys the snapshots of a filesystem in use before it finds it in use.
func TestDestroyInUse(t *testing.T) {
	busy := reply{1, "cannot unmount '/mnt/a': pool or dataset is busy\n"}
	calls := install(t, slices.Repeat([]reply{busy}, 100))
	err := zfs.New(zfs.Options{}).Destroy(t.Context(), "tank/a")
	if !errors.Is(err, zfs.ErrBusy) {
		t.Errorf("got %v", err)
	}
	for _, argv := range calls() {
		if argv[1] != "unmount" {
			t.Errorf("ran %q", argv)
		}
	}
}

// Ten thousand volumes in one tick: few commands, none too long.
func TestManyNames(t *testing.T) {
	calls := install(t, nil)
	h := zfs.New(zfs.Options{})
	var names []string
	for i := range 10_000 {
		names = append(names, fmt.Sprintf("tank/flocker/%016x@flk-%016x-%012d", i, 1, i))
	}
	if err := h.Snapshot(t.Context(), names, nil); err != nil {
		t.Fatal(err)
	}
	if n := len(calls()); n > 2 {
		t.Errorf("%d commands", n)
	}
}
