package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// socketpair is a link as two processes have it.
func socketpair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "link")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	return conns[0], conns[1]
}

// takeOver has a newer process take the place of the node's, which tells when it is not needed
// any more.
func (m *member) takeOver(t *testing.T, file string, retired chan<- error) {
	t.Helper()
	old, oldStop, oldRaw := m.Node, m.stop, m.raw
	ours, theirs := socketpair(t)
	err := old.HandOver(func(files map[string]*os.File) error {
		listeners := make(map[string]net.Listener)
		for name, f := range files {
			l, err := net.FileListener(f)
			if err != nil {
				return err
			}
			listeners[name] = l
		}
		if m.handed != nil {
			m.handed(files)
		}
		f, err := HandOn(oldRaw.(*net.TCPListener))
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		if m.inheritNodes, err = net.FileListener(f); err != nil {
			return err
		}
		m.inherit, m.link = listeners, theirs
		m.start(t, file, "")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	_ = oldRaw.Close()
	go func() {
		err := old.Retire(t.Context(), ours)
		oldStop()
		retired <- err
	}()
}

// A newer process takes over, twice, and nobody notices: who is connected goes on, who comes
// is served, and a pause counts those whom the older ones still serve.
func TestTakeover(t *testing.T) {
	c := newCluster(t, 2)
	m := c.nodes[0]
	file := filepath.Join(t.TempDir(), "proxy.json")
	m.stop()
	m.start(t, file, m.addr)
	r := Route{ID: "r", Listen: freePort(t), Mode: TCP, Limits: Limits{Silence: time.Millisecond}}
	server, _ := echo(t, "s")
	c.route(r, 0, 1, server)

	say := func(conn net.Conn, in interface{ ReadString(byte) (string, error) }) {
		t.Helper()
		if _, err := conn.Write([]byte("on\n")); err != nil {
			t.Fatal(err)
		}
		if s, err := in.ReadString('\n'); err != nil || s != "on\n" {
			t.Fatalf("a session that goes on: %q, %v", s, err)
		}
	}
	here, hereIn, _ := visit(t, c.addrOf(0, r))
	there, thereIn, _ := visit(t, c.addrOf(1, r))

	retired := make(chan error, 2)
	for range 2 {
		old := m.Node
		m.takeOver(t, file, retired)
		if err := old.Pause(t.Context(), "r", 0); err == nil {
			t.Error("an older process still takes orders")
		}
		say(here, hereIn)
		say(there, thereIn)
		visit(t, c.addrOf(0, r))
	}
	eventually(t, "all four connections to the server are counted", func() bool { return c.status(0, "r").Open == 4 })

	// The one who is busy with the oldest process is named, and is not in the way any more
	// when it has ended.
	if _, err := here.Write([]byte("no line")); err != nil {
		t.Fatal(err)
	}
	if _, err := hereIn.Peek(7); err != nil {
		t.Fatal(err)
	}
	if err := m.Pause(t.Context(), "r", 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := m.Quiet(ctx, "r"); err != nil {
		t.Errorf("quiet, with older processes: %v", err)
	}
	for range 2 {
		select {
		case err := <-retired:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Fatal("an older process stays, though nobody is left")
		}
	}
	if err := m.Resume(t.Context(), "r", ""); err != nil {
		t.Fatal(err)
	}
	visit(t, c.addrOf(0, r))
}

// What is handed on stays as it is while another process takes it, which asks for its number:
// one that blocked would have who accepts wait in the kernel, also for those who come after.
func TestHandOn(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	local, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []net.Listener{tcp, local} {
		f, err := HandOn(l.(syscall.Conn))
		if err != nil {
			t.Fatal(err)
		}
		flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
		if err != nil {
			t.Fatal(err)
		}
		if flags&unix.O_NONBLOCK == 0 {
			t.Errorf("%s blocks from now on", l.Addr().Network())
		}
		if own, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || own&unix.FD_CLOEXEC == 0 {
			t.Errorf("%s is handed on to every process that is started: flags %x, %v", l.Addr().Network(), own, err)
		}
		if err := errors.Join(f.Close(), l.Close()); err != nil {
			t.Error(err)
		}
	}
}

// Clients and nodes that come just while a newer process is started, after it was handed what
// they come by, are served, and the older process lets go.
func TestTakeoverMeanwhile(t *testing.T) {
	c := newCluster(t, 2)
	m := c.nodes[0]
	file := filepath.Join(t.TempDir(), "proxy.json")
	m.stop()
	m.start(t, file, m.addr)
	r := Route{ID: "r", Listen: freePort(t), Mode: TCP, Limits: Limits{Silence: time.Millisecond}}
	server, _ := echo(t, "s")
	c.route(r, 0, 1, server)
	here, there := c.addrOf(0, r), c.addrOf(1, r)
	old := m.Node
	m.handed = func(files map[string]*os.File) {
		for _, f := range files {
			f.Fd() // as os/exec does
		}
		visit(t, here) // whoever has accepted it accepts the next one now
		visit(t, there)
	}
	retired := make(chan error, 1)
	m.takeOver(t, file, retired)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = old.isRetired() // it answers
		for range 5 {
			visit(t, here)
			visit(t, there)
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("the older process keeps a lock, or its clients")
	}
}

// attend has a node listen to its older processes, and tell them what there is to tell.
func attend(t *testing.T, n *Node) {
	ctx, cancel := context.WithCancel(context.Background())
	n.eldersMu.Lock()
	defer n.eldersMu.Unlock()
	for e := range n.elders {
		n.work.Go(func() { n.attend(ctx, e) })
	}
	t.Cleanup(func() { cancel(); n.work.Wait() })
}

// An older process that does not read for a long time keeps nobody waiting, and hears in the
// end who owns what by then, and whom to cut.
func TestElderReadsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNode(Options{})
		theirs, ours := net.Pipe()
		n.Succeed(ours)
		attend(t, n)
		begin := time.Now()
		for i := range 100 {
			n.tellElders(elderHears{Owners: map[string]place{"r": {Owner: "n1", Epoch: uint64(i)}}})
			n.cutOlder(fmt.Sprintf("route %d", i%3))
		}
		if took := time.Since(begin); took > 0 {
			t.Errorf("it took %s to tell", took)
		}
		begun := make([]byte, 3)
		if _, err := io.ReadFull(theirs, begun); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		in := json.NewDecoder(io.MultiReader(bytes.NewReader(begun), theirs))
		cuts := make(map[string]bool)
		messages := 0
		for last := uint64(0); last != 99 || len(cuts) != 3; messages++ {
			var h elderHears
			if err := in.Decode(&h); err != nil {
				t.Fatalf("after the owners of epoch %d and cuts of %v it hears %v", last, cuts, err)
			}
			if h.Cut != "" {
				cuts[h.Cut] = true
			}
			last = max(last, h.Owners["r"].Epoch)
		}
		if messages > 10 {
			t.Errorf("%d messages have waited for it", messages)
		}
	})
}

// A newer process that reads late hears whole messages, and does not take those for gone whom
// the older one still serves.
func TestElderIsReadLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNode(Options{})
		d := newDoor("n1", Route{ID: "r", Owner: "n1", Epoch: 1, Server: "127.0.0.1:1"}, nil, n, n.Log)
		n.doors["r"] = d
		c := &crossing{door: d}
		d.open[c] = struct{}{}
		theirs, ours := net.Pipe()
		retired := make(chan error, 1)
		go func() { retired <- n.Retire(t.Context(), ours) }()
		begun := make([]byte, 3)
		if _, err := io.ReadFull(theirs, begun); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		go c.forget()
		in := json.NewDecoder(io.MultiReader(bytes.NewReader(begun), theirs))
		for want := range 2 {
			var says elderSays
			if err := in.Decode(&says); err != nil || says.Open["r"] != 1-want {
				t.Fatalf("it says %v, %v; it has %d", says, err, 1-want)
			}
		}
		if err := <-retired; err != nil {
			t.Error(err)
		}
	})
}

// What an older process does not understand may have been a cut: it keeps no connection of which
// nobody can tell it to end it. A newer process that has gone says nothing of that.
func TestElderDoesNotUnderstand(t *testing.T) {
	for say, want := range map[string]int{"": 1, `{"Cut":`: 1, `{"Cut":3}`: 0, "}": 0} {
		synctest.Test(t, func(t *testing.T) {
			n := NewNode(Options{})
			d := newDoor("n1", Route{ID: "r", Owner: "n1", Epoch: 1, Server: "127.0.0.1:1"}, nil, n, n.Log)
			n.doors["r"] = d
			d.open[&crossing{door: d}] = struct{}{}
			theirs, ours := net.Pipe()
			ctx, cancel := context.WithCancel(t.Context())
			retired := make(chan error, 1)
			go func() { retired <- n.Retire(ctx, ours) }()
			go func() { _, _ = io.Copy(io.Discard, theirs) }()
			if _, err := theirs.Write([]byte(say)); err != nil {
				t.Fatal(err)
			}
			_ = theirs.Close()
			synctest.Wait()
			d.mu.Lock()
			left := len(d.open)
			d.mu.Unlock()
			if left != want {
				t.Errorf("after %q it has %d connections, want %d", say, left, want)
			}
			cancel()
			<-retired
		})
	}
}

// A newer process that does not come up changes nothing.
func TestTakeoverFails(t *testing.T) {
	c := newCluster(t, 1)
	server, _ := echo(t, "s")
	r := Route{ID: "r", Listen: freePort(t), Mode: TCP}
	c.route(r, 0, 1, server)
	c.addrOf(0, r)
	sorry := errors.New("it did not start")
	if err := c.nodes[0].HandOver(func(files map[string]*os.File) error {
		if len(files) != 1 {
			t.Errorf("%d listeners are handed on", len(files))
		}
		return sorry
	}); !errors.Is(err, sorry) {
		t.Errorf("it says %v", err)
	}
	visit(t, c.addrOf(0, r))
	if err := c.nodes[0].Pause(t.Context(), "r", 0); err != nil {
		t.Error(err)
	}
}

// What an older process serves is waited for, and can be cut off, before it has said how
// much that is.
func TestElderIsNamed(t *testing.T) {
	n := NewNode(Options{})
	ours, theirs := socketpair(t)
	defer func() { _ = theirs.Close() }()
	n.Succeed(ours)
	attend(t, n)
	d := newDoor("n1", Route{ID: "r", Owner: "n1", Epoch: 1, Server: "127.0.0.1:1"}, &doorPause{Since: time.Now()}, n, n.Log)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	var busy *Busy
	if err := d.quiet(ctx); !errors.As(err, &busy) || !strings.Contains(busy.Error(), "older process") {
		t.Errorf("quiet: %v", err)
	}
	if err := d.cut(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 100)
	k, err := theirs.Read(got)
	if err != nil || !strings.Contains(string(got[:k]), `"Cut":"r"`) {
		t.Errorf("the older process hears %q, %v", got[:k], err)
	}
}
