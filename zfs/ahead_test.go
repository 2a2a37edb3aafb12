package zfs_test

import (
	"errors"
	"fmt"
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

// programs is a zfs whose channel programs say what became of them: a line when it has
// started, one when it has got a program. Then it answers, or dies when it is told to.
const programs = `#!/bin/sh
echo "start $$ $4$5" >>"$ZFS_TEST_DIR/log"
last=
while IFS= read -r line || [ -n "$line" ]; do last=$line; done
echo "ran $$ $last" >>"$ZFS_TEST_DIR/log"
[ -e "$ZFS_TEST_DIR/die" ] && kill -9 $$
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
	for limit := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			a.Fatalf("waited too long for %s", what)
		}
	}
}

func (a *aheadOf) take() error {
	_, _, err := a.Take(a.Context(), []string{"tank/a@1"})
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
		if got := strings.Join(a.observed, ", "); got != "take 5 true, take 5 true, take 5 true, snapshots-named 6 true, snapshots-named 6 true, take 5 true" {
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
	t.Run("idle", func(t *testing.T) {
		a := newAheadOf(t)
		a.WaitFor(10 * time.Millisecond)
		for range 2 {
			if err := a.take(); err != nil {
				t.Fatal(err)
			}
		}
		a.until("the command that waited to be gone", func() bool {
			started := a.log("start")
			if len(started) < 3 || a.Waiting() > 0 {
				return false
			}
			pid, _ := strconv.Atoi(started[2][0])
			return gone(pid)
		})
		if ran := a.log("ran"); len(ran) != 2 {
			t.Errorf("ran %q: it has run without a program", ran)
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
