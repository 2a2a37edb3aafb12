package fence

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flocker-io/flocker/internal/lease"
)

// Options of a fencer process.
type Options struct {
	Log    *slog.Logger // must never block: see WithLog
	RunDir string       // of the socket and the state, on a file system in memory
	Reset  Policy
	// Watchdog is the device to use; "" is the first that is free.
	Watchdog string
	Version  string // of this program
	Ready    func() // called when the socket answers
}

// Socket of the fencer in a run directory.
func Socket(runDir string) string { return filepath.Join(runDir, "fence.sock") }

// Run is the fencer process: it serves its socket until ctx ends. What is armed then
// stays so: the next process goes on with it.
func Run(ctx context.Context, o Options) error {
	if err := os.MkdirAll(o.RunDir, 0o755); err != nil {
		return fmt.Errorf("making the run directory: %w", err)
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	kernel, err := newLinux()
	if err != nil {
		return err
	}
	file := filepath.Join(o.RunDir, fileName)
	known, err := load(file, boot)
	if err != nil {
		o.Log.Error("what an earlier fencer has left cannot be read", "err", err)
	}
	resets, err := newMachine(o.Log, o.Reset, o.Watchdog, known.Armed)
	if err != nil {
		return err
	}
	if _, err := bootClock(); err != nil {
		return err
	}
	weak := privilege()
	if weak != nil {
		o.Log.Warn("a busy machine may keep the fencer from its work", "err", weak)
	}
	f := newFencer(o.Log, file, boot, readClocks, kernel, resets)
	f.version = o.Version
	if weak != nil {
		f.weak = fmt.Sprintf("a busy machine may keep the fencer from its work: %s", strings.ReplaceAll(weak.Error(), "\n", "; "))
	}
	l, err := Listen(Socket(o.RunDir))
	if err != nil {
		return err
	}
	safety, missing := resets.safety()
	o.Log.Info("the fencer is ready", "safety", safety, "missing", missing, "boot", boot)
	if o.Ready != nil {
		o.Ready()
	}
	return f.run(ctx, l, onlyRoot)
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("reading the boot ID: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func bootClock() (lease.Moment, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("reading the boot clock: %w", err)
	}
	return lease.Moment(ts.Nano()), nil
}

// MayRestart waits until the fencer may be restarted without a writer being left unguarded, or ctx ends;
// then it says why not. It is for who restarts it, and says nothing of a moment later.
func (c *Client) MayRestart(ctx context.Context) error { return c.mayRestart(ctx, bootClock) }

// InUse says who uses volumes on this machine, in words; "" if nobody does. It looks at all mount
// namespaces, at ZFS itself and at open files, for what was detached while in use is in no mount table.
func InUse() (string, error) {
	k, err := newLinux()
	if err != nil {
		return "", err
	}
	s, err := k.look("", true)
	if err != nil || s.nothing() {
		return "", err
	}
	return s.problem(), nil
}

// readClocks is a clock. That the boot clock can be read was tried before.
func readClocks() (boot, wall lease.Moment) {
	boot, err := bootClock()
	if err != nil {
		panic(err)
	}
	return boot, lease.Moment(time.Now().Round(0).UnixNano())
}

// onlyRoot lets only processes of the fencer's own user talk to it, which is root.
func onlyRoot(conn net.Conn) error {
	sc, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("not a unix socket")
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) { peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	if int(peer.Uid) != os.Geteuid() {
		return fmt.Errorf("process %d of user %d may not talk to the fencer", peer.Pid, peer.Uid)
	}
	return nil
}
