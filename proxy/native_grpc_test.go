package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// needsGRPC returns how programs are run for which Debian's packages are.
func needsGRPC(t testing.TB) (python []string) {
	t.Helper()
	python = []string{"/usr/bin/python3", "-B"}
	needs(t, python[0])
	if err := exec.Command(python[0], "-c", "import grpc").Run(); err != nil {
		lacks(t, "python3-grpcio")
	}
	return python
}

func newNativeGRPC(t *testing.T, python []string) *native {
	t.Helper()
	return newNative(t, HTTP, func(dir string) *exec.Cmd {
		return exec.Command(python[0], append(python[1:], "testdata/native/grpc_server.py", filepath.Join(dir, "done"))...)
	})
}

// Callers at two nodes, several of which share a connection, never make a call twice: what has
// been answered, also by a refusal, was done once, and nothing else was.
func TestNativeGRPC(t *testing.T) {
	python := needsGRPC(t)
	n := newNativeGRPC(t, python)
	var mu sync.Mutex
	var answers []string
	n.moveUnder(300, func(url string, over <-chan struct{}) (int, error) {
		server, name, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
		client := exec.Command(python[0], append(python[1:], "testdata/native/grpc_load.py", server, name)...)
		in, err := client.StdinPipe()
		if err != nil {
			return 0, err
		}
		var out, said bytes.Buffer
		client.Stdout, client.Stderr = &out, &said
		client.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := client.Start(); err != nil {
			return 0, err
		}
		ended := make(chan error, 1)
		go func() { ended <- client.Wait() }()
		select {
		case <-over:
			_ = in.Close()
			err = <-ended
		case err = <-ended:
		}
		if err != nil {
			err = fmt.Errorf("the clients of %s: %w\n%s", name, err, &said)
		}
		mine := strings.Fields(out.String())
		mu.Lock()
		defer mu.Unlock()
		answers = append(answers, mine...)
		return len(mine), err
	})
	eachOnce(t, n.done(), answers)
}

// A server of gRPC says nothing in HTTP/1.1, and is ready all the same.
func TestNativeGRPCProbe(t *testing.T) {
	n := newNativeGRPC(t, needsGRPC(t))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err := Probe(ctx, HTTP, func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", n.at)
	})
	if err != nil {
		t.Error(err)
	}
}

// grpcCalls is a client with one connection, which makes the calls that it is told to.
type grpcCalls struct {
	*testing.T
	in io.Writer

	mu   sync.Mutex
	said []string
}

func newGRPCCalls(t *testing.T, python []string, server string) *grpcCalls {
	t.Helper()
	client := exec.Command(python[0], append(python[1:], "testdata/native/grpc_calls.py", server)...)
	c := &grpcCalls{T: t}
	in, out := talksWith(t, client)
	c.in = in
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			c.mu.Lock()
			c.said = append(c.said, lines.Text())
			c.mu.Unlock()
		}
	}()
	t.Cleanup(func() { _ = client.Process.Kill(); <-heard; _ = client.Wait() })
	return c
}

// call begins one, with a deadline.
func (c *grpcCalls) call(kind, number string, deadline time.Duration) {
	c.Helper()
	if _, err := fmt.Fprintln(c.in, kind, number, deadline.Seconds()); err != nil {
		c.Fatal(err)
	}
}

// heard counts the messages that have come of a call, which are numbers from 1 without a gap.
func (c *grpcCalls) heard(number string) (n int) {
	c.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, line := range c.said {
		if message, ok := strings.CutPrefix(line, number+" heard "); ok {
			if n++; message != fmt.Sprint(n) {
				c.Fatalf("%s hears message %s in the place of %d", number, message, n)
			}
		}
	}
	return n
}

// status is how a call has ended; "" if it has not.
func (c *grpcCalls) status(number string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, line := range c.said {
		if status, ok := strings.CutPrefix(line, number+" "); ok && !strings.HasPrefix(status, "heard ") {
			return status
		}
	}
	return ""
}

// ends waits for the end of a call, and wants it to have ended with status.
func (c *grpcCalls) ends(number, status string) {
	c.Helper()
	eventually(c, "call "+number+" ends", func() bool { return c.status(number) != "" })
	if got := c.status(number); !strings.HasPrefix(got, status) {
		c.Errorf("call %s has ended with %q, want %s", number, got, status)
	}
}

// held is how many requests had to wait at a node, ever.
func (n *native) held(node int) int64 {
	n.Helper()
	return n.c.status(node, "r").HeldEver
}

// What is given up while it is held is never done, and what is not is done once. What is with
// the server when it is given up is nothing that a pause waits for.
func TestNativeGRPCDeadline(t *testing.T) {
	python := needsGRPC(t)
	n := newNativeGRPC(t, python)
	c := newGRPCCalls(t, python, n.c.addrOf(1, n.r))
	c.call("Add", "before", time.Minute)
	c.ends("before", "OK")
	c.call("Wait", "begun", 2*time.Second)
	eventually(t, "a call has begun", func() bool { return slices.Contains(n.done(), "begun") })
	if err := n.pause(time.Minute); err != nil { // until that is given up
		t.Fatal(err)
	}
	c.ends("begun", "DEADLINE_EXCEEDED")
	c.call("Add", "patient", time.Minute)
	for i := range 5 {
		c.call("Add", fmt.Sprintf("hasty%d", i), 300*time.Millisecond)
	}
	for i := range 5 {
		c.ends(fmt.Sprintf("hasty%d", i), "DEADLINE_EXCEEDED")
	}
	if done := n.done(); !slices.Equal(done, []string{"before", "begun"}) {
		t.Errorf("in the pause the server has done %v", done)
	}
	n.carry()
	c.ends("patient", "OK")
	c.call("Add", "after", time.Minute)
	c.ends("after", "OK")
	if done := n.done(); !slices.Equal(done, []string{"before", "begun", "patient", "after"}) {
		t.Errorf("the server has done %v", done)
	}
}

// What waits for too long is refused in the words of gRPC, was not done, and harms no other call
// on the same connection.
func TestNativeGRPCRefused(t *testing.T) {
	python := needsGRPC(t)
	n := newNativeGRPC(t, python)
	n.r.Limits.Request = 500 * time.Millisecond
	n.epoch += 2 // the same owner
	n.c.route(n.r, n.owner(), n.epoch, n.at)
	c := newGRPCCalls(t, python, n.c.addrOf(1, n.r))
	c.call("Add", "before", time.Minute)
	c.ends("before", "OK")
	if err := n.pause(time.Minute); err != nil {
		t.Fatal(err)
	}
	c.call("Add", "late", time.Minute)
	c.ends("late", "UNAVAILABLE flocker: the server behind this port did not come back in time; try again")
	if err := n.c.nodes[n.owner()].Resume(t.Context(), "r", ""); err != nil {
		t.Fatal(err)
	}
	c.call("Add", "after", time.Minute)
	c.ends("after", "OK")
	if done := n.done(); !slices.Equal(done, []string{"before", "after"}) {
		t.Errorf("the server has done %v", done)
	}
}

// A call that lasts is named by its method: a pause is given up without harm to it, or cuts it,
// and it alone.
func TestNativeGRPCStream(t *testing.T) {
	python := needsGRPC(t)
	n := newNativeGRPC(t, python)
	c := newGRPCCalls(t, python, n.c.addrOf(1, n.r))
	stream, sent := "", 0
	var done []string
	begin := func(kind string) {
		t.Helper()
		sent++
		number := fmt.Sprintf("%s%d", kind, sent)
		c.call(kind, number, 10*time.Minute)
		done = append(done, number)
		if kind == "Watch" {
			stream = number
			eventually(t, "messages come", func() bool { return c.heard(stream) > 5 })
		}
	}
	begin("Watch")
	for i := range movesHere() {
		eventually(t, "the pause names the call that lasts", func() bool {
			var b *Busy
			err := n.pause(20 * time.Millisecond)
			return errors.As(err, &b) && len(b.Sessions) == 1 && !b.Sessions[0].Pinned && b.Sessions[0].Busy == "1 requests have no answer yet, the oldest that for /test.Numbers/Watch"
		})
		held := n.held(1)
		begin("Add") // on the same connection
		unary := done[len(done)-1]
		eventually(t, "a call waits", func() bool { return n.held(1) > held })
		had := c.heard(stream)
		eventually(t, "messages come during the pause", func() bool { return c.heard(stream) > had+5 })
		node := n.c.nodes[n.owner()]
		if i%2 == 0 {
			if err := node.Resume(t.Context(), "r", ""); err != nil {
				t.Fatal(err)
			}
			c.ends(unary, "OK")
			had := c.heard(stream)
			eventually(t, "messages come after it", func() bool { return c.heard(stream) > had+5 })
			continue
		}
		if err := node.Cut(t.Context(), "r"); err != nil {
			t.Fatal(err)
		}
		if err := n.pause(time.Minute); err != nil {
			t.Fatal(err)
		}
		c.ends(stream, "UNAVAILABLE")
		n.carry()
		c.ends(unary, "OK")
		begin("Watch")
	}
	if got := n.done(); !slices.Equal(got, done) {
		t.Errorf("the server has done\n%v, want\n%v", got, done)
	}
}
