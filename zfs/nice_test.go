package zfs

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// What is started by one that runs before all others does not, and what is started by one that lets others go first does as well.
func TestCommandNice(t *testing.T) {
	runtime.LockOSThread() // whose niceness it is; it ends with the test
	for _, c := range []struct{ own, want int }{{0, 0}, {-5, 0}, {3, 3}} {
		if err := syscall.Setpriority(syscall.PRIO_PROCESS, 0, c.own); errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) {
			t.Skip("only root may run before others")
		} else if err != nil {
			t.Fatal(err)
		}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		ch, err := start(command{op: "nice", argv: []string{"sh", "-c", "read go; nice"}, stdin: r})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteString("go\n"); err != nil {
			t.Fatal(err)
		}
		out, err := ch.end(t.Context())
		if got := strings.TrimSpace(string(out)); err != nil || got != strconv.Itoa(c.want) {
			t.Errorf("at niceness %d a command runs at %s, %v; want %d", c.own, got, err, c.want)
		}
		r.Close()
		w.Close()
	}
}
