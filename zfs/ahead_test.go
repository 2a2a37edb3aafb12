package zfs_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/flocker-io/flocker/zfs"
)

// programs is a zfs whose commands say what became of them: a line when one has started,
// one when it has got its input, be it nothing. Then it answers, or dies when it is told to.
// A stream is a line; one that is cut short is refused, as zfs does it.
const programs = `#!/bin/sh
[ "$1" = send ] && exit
echo "start $$ $4$5" >>"$ZFS_TEST_DIR/log"
last= cut=
while IFS= read -r line || { [ -n "$line" ] && cut=yes; }; do last=$line; done
echo "ran $$ $last" >>"$ZFS_TEST_DIR/log"
[ -e "$ZFS_TEST_DIR/die" ] && kill -9 $$
[ "$1$cut" = receiveyes ] && exit 1
echo '{"return":{"tank/a@1":{"guid":5,"createtxg":50}}}'
`

// aheadOf is a Host that starts such commands ahead.
type aheadOf struct {
	*testing.T
	*zfs.Host
	dir string

	mu       sync.Mutex
	observed []string
}

func newAheadOf(t *testing.T) *aheadOf {
	t.Helper()
	a := &aheadOf{T: t, dir: t.TempDir()}
	a.Host = zfs.New(zfs.Options{Ahead: true, Observe: func(op string, argv []string, _ time.Duration, err error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.observed = append(a.observed, fmt.Sprint(op, " ", len(argv), " ", err == nil))
	}})
	a.WaitFor(time.Hour) // however slow this machine is
	if err := os.WriteFile(filepath.Join(a.dir, "zfs"), []byte(programs), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", a.dir)
	t.Setenv("ZFS_TEST_DIR", a.dir)
	t.Cleanup(a.Close)
	return a
}

// log are the words of the lines that begin with what.
func (a *aheadOf) log(what string) (lines [][]string) {
	a.Helper()
	all, err := os.ReadFile(filepath.Join(a.dir, "log"))
	if err != nil {
		a.Fatal(err)
	}
	for line := range strings.Lines(string(all)) {
		if words := strings.Fields(line); words[0] == what {
			lines = append(lines, words[1:])
		}
	}
	return lines
}

// until waits for a condition.
func (a *aheadOf) until(what string, cond func() bool) {
	a.Helper()
	for limit := time.Now().Add(time.Minute); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			a.Fatalf("waited too long for %s", what)
		}
	}
}

// take takes a snapshot and sends it: only then is another command started.
func (a *aheadOf) take() error {
	a.Helper()
	_, _, err := a.Take(a.Context(), []string{"tank/a@1"})
	if err := a.Send(a.Context(), zfs.SendRequest{Snapshot: "tank/a@1"}, io.Discard); err != nil {
		a.Error(err)
	}
	return err
}

// waits runs programs until a command waits for another, and returns its number.
func (a *aheadOf) waits() (pid int) {
	a.Helper()
	for range 2 {
		if err := a.take(); err != nil {
			a.Fatal(err)
		}
	}
	a.until("a command that waits", func() bool { return a.Waiting() == 1 && len(a.log("start")) == 3 })
	pid, err := strconv.Atoi(a.log("start")[2][0])
	if err != nil {
		a.Fatal(err)
	}
	return pid
}

// receive has a dataset receive a stream of one line.
func (a *aheadOf) receive(dataset, line string, props map[string]string) error {
	return a.Receive(a.Context(), zfs.ReceiveRequest{Dataset: dataset, Resumable: true, Properties: props}, strings.NewReader(line+"\n"))
}

// last is the number of the command that ran last, and what with.
func (a *aheadOf) last() (pid int, input string) {
	a.Helper()
	ran := a.log("ran")
	pid, err := strconv.Atoi(ran[len(ran)-1][0])
	if err != nil {
		a.Fatal(err)
	}
	return pid, strings.Join(ran[len(ran)-1][1:], " ")
}

func gone(pid int) bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }

func TestAhead(t *testing.T) {
	t.Run("used", func(t *testing.T) {
		a := newAheadOf(t)
		pid := a.waits()
		if err := a.take(); err != nil {
			t.Fatal(err)
		}
		ran := a.log("ran")
		if last := ran[len(ran)-1]; last[0] != strconv.Itoa(pid) || last[1]+" "+last[2] != `return f({"tank/a@1",})` {
			t.Errorf("ran %q, want it in the command %d, which was ready", last, pid)
		}
		// Another kind of program finds none of its own, and one is started ahead for each.
		a.until("another", func() bool { return a.Waiting() == 1 })
		for range 2 {
			if _, err := a.SnapshotsNamed(t.Context(), []string{"tank/a@1"}); err != nil {
				t.Fatal(err)
			}
		}
		a.until("one of either kind", func() bool { return a.Waiting() == 2 && len(a.log("start")) == 7 })
		a.Close()
		for _, started := range a.log("start") {
			if pid, _ := strconv.Atoi(started[0]); !gone(pid) {
				t.Errorf("command %d is left", pid)
			}
		}
		if err := a.take(); err != nil || a.Waiting() != 0 || len(a.log("ran")) != 6 {
			t.Errorf("after the end: %v, %d wait, ran %q", err, a.Waiting(), a.log("ran"))
		}
		if got := strings.Join(a.observed, ", "); got != "take 5 true, send 6 true, take 5 true, send 6 true, take 5 true, send 6 true, "+
			"snapshots-named 6 true, snapshots-named 6 true, take 5 true, send 6 true" {
			t.Errorf("observed %s", got)
		}
	})
	t.Run("dead before", func(t *testing.T) {
		a := newAheadOf(t)
		pid := a.waits()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		a.until("its end", func() bool { return gone(pid) })
		if err := a.take(); err != nil || len(a.log("ran")) != 3 {
			t.Errorf("got %v, ran %q", err, a.log("ran"))
		}
		if begun, err := a.HandToDead([]string{"zfs", "program", "-j", "tank", "-"}); begun || err != nil {
			t.Errorf("begun %v, %v; the program is still to be run", begun, err)
		}
	})
	t.Run("dead with its program", func(t *testing.T) {
		a := newAheadOf(t)
		a.waits()
		if err := os.WriteFile(filepath.Join(a.dir, "die"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		var e *zfs.Error
		if err := a.take(); !errors.As(err, &e) || e.Op != "take" || len(a.log("ran")) != 3 {
			t.Errorf("got %v, ran %q; want an error, and that nothing else runs it", err, a.log("ran"))
		}
	})
	t.Run("not in the way", func(t *testing.T) {
		a := newAheadOf(t)
		for range 3 {
			if _, _, err := a.Take(t.Context(), []string{"tank/a@1"}); err != nil || a.Kept() != 0 {
				t.Fatalf("%v; %d commands are started while the snapshot is to be sent", err, a.Kept())
			}
		}
		if err := a.Send(t.Context(), zfs.SendRequest{Snapshot: "tank/a@1"}, io.Discard); err != nil || a.Kept() != 1 {
			t.Errorf("%v; then %d are started, want one for a program", err, a.Kept())
		}
		for range 2 {
			if err := a.receive("tank/b", "x", nil); err != nil {
				t.Fatal(err)
			}
		}
		if a.Kept() != 2 {
			t.Errorf("then %d are started, want one for a stream too", a.Kept())
		}
	})
	t.Run("idle", func(t *testing.T) {
		// One whose time is over before it could say that it has started tells nothing.
		for idle := 10 * time.Millisecond; ; idle *= 2 {
			if idle > time.Minute {
				t.Fatal("none was started ahead")
			}
			a := newAheadOf(t)
			a.WaitFor(idle)
			for range 2 {
				if err := a.take(); err != nil {
					t.Fatal(err)
				}
			}
			a.until("the command that waited to be given up", func() bool { return a.Kept() == 0 })
			a.Close()
			if ran := a.log("ran"); len(ran) != 2 {
				t.Errorf("ran %q: it has run without a program", ran)
			}
			if started := a.log("start"); len(started) == 3 {
				if pid, _ := strconv.Atoi(started[2][0]); !gone(pid) {
					t.Errorf("command %d is left", pid)
				}
				return
			}
		}
	})
}

func TestAheadReceive(t *testing.T) {
	// waits receives twice, and returns the number of the command that waits then.
	waits := func(a *aheadOf) int {
		t.Helper()
		for range 2 {
			if err := a.receive("tank/a", "before", nil); err != nil {
				t.Fatal(err)
			}
		}
		a.until("a command that waits", func() bool { return a.Waiting() == 1 && len(a.log("start")) == 3 })
		pid, err := strconv.Atoi(a.log("start")[2][0])
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	t.Run("used", func(t *testing.T) {
		a := newAheadOf(t)
		pid := waits(a)
		// Not by another dataset, nor with other arguments.
		if err := a.receive("tank/b", "other", nil); err != nil {
			t.Fatal(err)
		}
		if err := a.receive("tank/a", "seed", map[string]string{"readonly": "on"}); err != nil {
			t.Fatal(err)
		}
		if err := a.Receive(t.Context(), zfs.ReceiveRequest{Dataset: "tank/a"}, strings.NewReader("plain\n")); err != nil {
			t.Fatal(err)
		}
		if ran := a.log("ran"); len(ran) != 5 || a.Waiting() != 1 || gone(pid) {
			t.Fatalf("ran %q, %d wait", ran, a.Waiting())
		}
		if err := a.receive("tank/a", "this", nil); err != nil {
			t.Fatal(err)
		}
		if got, input := a.last(); got != pid || input != "this" {
			t.Errorf("command %d got %q, want %d, which was ready", got, input, pid)
		}
		a.until("the next", func() bool { return a.Waiting() == 1 })
		a.Close()
		for _, started := range a.log("start") {
			if pid, _ := strconv.Atoi(started[0]); !gone(pid) {
				t.Errorf("command %d is left", pid)
			}
		}
		if ran := a.log("ran"); len(ran) != 6 {
			t.Errorf("ran %q: what waited has seen the end of its input", ran)
		}
		if got := strings.Join(a.observed, ", "); got != strings.TrimSuffix(strings.Repeat("receive 5 true, ", 3), ", ")+
			", receive 7 true, receive 4 true, receive 5 true" {
			t.Errorf("observed %s", got)
		}
	})
	t.Run("dead before", func(t *testing.T) {
		a := newAheadOf(t)
		pid := waits(a)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		a.until("its end", func() bool { return gone(pid) })
		if err := a.receive("tank/a", "this", nil); err != nil {
			t.Fatal(err)
		}
		if got, input := a.last(); got == pid || input != "this" {
			t.Errorf("command %d got %q, %d was dead", got, input, pid)
		}
	})
	t.Run("dead with its stream", func(t *testing.T) {
		a := newAheadOf(t)
		waits(a)
		if err := os.WriteFile(filepath.Join(a.dir, "die"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		var e *zfs.Error
		if err := a.receive("tank/a", "this", nil); !errors.As(err, &e) || e.Op != "receive" || len(a.log("ran")) != 3 {
			t.Errorf("got %v, ran %q; want an error, and that nothing else gets the stream", err, a.log("ran"))
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		a := newAheadOf(t)
		pid := waits(a)
		ctx, cancel := context.WithCancelCause(t.Context())
		r, w := net.Pipe()
		defer w.Close()
		done := make(chan error, 1)
		go func() {
			done <- a.Receive(ctx, zfs.ReceiveRequest{Dataset: "tank/a", Resumable: true}, r)
		}()
		if _, err := w.Write([]byte("half")); err != nil {
			t.Fatal(err)
		}
		cancel(errEnough)
		if err := <-done; !errors.Is(err, errEnough) || !gone(pid) || a.Waiting() != 0 {
			t.Errorf("got %v, command gone: %v, %d wait", err, gone(pid), a.Waiting())
		}
	})
	t.Run("bounded", func(t *testing.T) {
		a := newAheadOf(t)
		for range 2 {
			for i := range 12 {
				if err := a.receive(fmt.Sprint("tank/", i), "x", nil); err != nil {
					t.Fatal(err)
				}
			}
		}
		a.until("eight of them", func() bool { return a.Waiting() == 8 })
		// Programs do not wait behind streams.
		for range 2 {
			if err := a.take(); err != nil {
				t.Fatal(err)
			}
		}
		a.until("one for programs too", func() bool { return a.Waiting() == 9 })
		if started := a.log("start"); len(started) > 2*12+2+9 {
			t.Errorf("%d commands were started", len(started))
		}
	})
}

// Names cannot say anything in Lua.
func TestSource(t *testing.T) {
	got := zfs.Source("function(names) return names end", "tank/a@1", `"}),os.exit({"`, "\\\n\x00\xc3", "-")
	want := "local f = function(names) return names end\nreturn f({" +
		`"tank/a@1","\034\125\041\044os.exit\040\123\034","\092\010\000\195","-",})`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
