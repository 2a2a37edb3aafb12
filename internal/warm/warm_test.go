package warm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flocker-io/flocker/internal/mounts"
)

// The test binary is also the container's first process: as an engine would, it makes a
// root and enters it, and becomes the gate.
const (
	envContainer = "WARM_TEST_CONTAINER" // what is to be done, see vessel
	envGate      = "WARM_TEST_GATE"      // the door's directory
)

func TestMain(m *testing.M) {
	if what := os.Getenv(envContainer); what != "" {
		fmt.Fprintln(os.Stderr, contain(strings.Split(what, ":")))
		os.Exit(1)
	}
	if door := os.Getenv(envGate); door != "" {
		os.Unsetenv(envGate)
		fmt.Fprintln(os.Stderr, Gate(os.Args[2:], door))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// contain makes the namespace that this process is in the container's, and execs the gate.
func contain(what []string) error {
	base, source, user := what[0], what[1], what[2]
	root, at := filepath.Join(base, "root"), filepath.Join(base, "volume")
	for _, m := range []struct {
		from, to string
		flags    uintptr
	}{
		{"", "/", unix.MS_PRIVATE | unix.MS_REC},
		{"/", root, unix.MS_BIND}, // not what is mounted below it, so neither the volume
		{"/proc", root + "/proc", unix.MS_BIND},
		{"/dev", root + "/dev", unix.MS_BIND},
		{base, root + base, unix.MS_BIND},
		{source, root + at, unix.MS_BIND},
	} {
		if err := unix.Mount(m.from, m.to, "", m.flags, ""); err != nil {
			return &os.PathError{Op: "mount", Path: m.to, Err: err}
		}
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	uid, err := strconv.Atoi(user)
	if err == nil && uid > 0 {
		err = errors.Join(syscall.Setgroups(nil), syscall.Setgid(uid), syscall.Setuid(uid))
	}
	if err != nil {
		return err
	}
	os.Unsetenv(envContainer)
	os.Setenv(envGate, filepath.Join(base, "d", "door"))
	os.Setenv("PWD", "/")
	if err := unix.CloseRange(3, 1<<20, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return err
	}
	// As an engine would, with a limit that this program raises for itself.
	if err := syscall.Setrlimit(unix.RLIMIT_NOFILE, &syscall.Rlimit{Cur: softLimit, Max: 2 * softLimit}); err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
}

// softLimit is the containers' limit of open files.
const softLimit = 512

// vessel is a container to be, and a volume of this machine.
type vessel struct {
	*testing.T
	door   *Door
	base   string
	volume string // the directory of a file system of its own that is to come into the container
	at     string // where, in the container
	cmd    *exec.Cmd
	stdin  io.Closer
	out    bytes.Buffer
}

// before is done with a vessel before its container is started; nil: nothing.
var before func(v *vessel)

// launch starts a container with something at its volume's path. "": a door's placeholder.
func launch(t *testing.T, source string, uid int, dir string, command ...string) *vessel {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs to be root: it mounts")
	}
	base, err := os.MkdirTemp("", "warm")
	if err != nil {
		t.Fatal(err)
	}
	v := &vessel{T: t, base: base, at: filepath.Join(base, "volume"), volume: filepath.Join(base, "pool", "data")}
	t.Cleanup(func() {
		if err := os.RemoveAll(base); err != nil {
			t.Error(err)
		}
	})
	must(t, os.Chmod(base, 0o755))
	for _, d := range []string{"root", "volume", "pool"} {
		must(t, os.Mkdir(filepath.Join(base, d), 0o755))
	}
	must(t, unix.Mount("volume", filepath.Join(base, "pool"), "tmpfs", 0, ""))
	must(t, unix.Mount("", filepath.Join(base, "pool"), "", unix.MS_SHARED, "")) // as systemd has all
	t.Cleanup(func() {
		if err := unix.Unmount(filepath.Join(base, "pool"), 0); err != nil {
			t.Errorf("the volume is still in use: %v", err)
		}
	})
	must(t, os.MkdirAll(filepath.Join(v.volume, "inner"), 0o755))
	must(t, os.Chown(v.volume, uid, uid))
	v.door, err = OpenDoor(filepath.Join(base, "d"))
	must(t, err)
	t.Cleanup(func() {
		if err := errors.Join(v.door.Close(), Discard(filepath.Join(base, "d"))); err != nil {
			t.Error(err)
		}
	})
	if before != nil {
		before(v)
	}
	switch source {
	case "":
		source = v.door.Placeholder()
	case "volume":
		source = v.volume
	}
	if strings.HasPrefix(dir, "./") {
		dir = filepath.Join(v.at, dir)
	}
	v.cmd = exec.Command("/proc/self/exe", Args(v.at, dir, command)...)
	v.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s:%s:%d", envContainer, base, source, uid), "COLOUR=blue", "VOLUME="+v.at)
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	v.cmd.Stdout, v.cmd.Stderr = &v.out, &v.out
	v.stdin, err = v.cmd.StdinPipe()
	must(t, err)
	must(t, v.cmd.Start())
	t.Cleanup(func() {
		v.cmd.Process.Kill()
		v.cmd.Wait()
	})
	return v
}

// come waits for the gate.
func (v *vessel) come() {
	v.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := v.door.Await(ctx); err != nil {
		v.cmd.Process.Kill()
		v.cmd.Wait()
		v.Fatalf("%v\n%s", err, &v.out)
	}
	if v.door.PID() != v.cmd.Process.Pid {
		v.Fatalf("the gate is process %d, not %d", v.door.PID(), v.cmd.Process.Pid)
	}
}

func (v *vessel) inject() Place {
	v.Helper()
	place, err := v.door.Inject(v.volume, v.at)
	must(v.T, err)
	return place
}

// holders are the processes with the volume mounted but for this one.
func (v *vessel) holders() []mounts.Holder {
	v.Helper()
	home(v.T)
	// Of this process and the container: others may not be looked into.
	proc := v.TempDir()
	for _, name := range []string{"self", strconv.Itoa(os.Getpid()), strconv.Itoa(v.cmd.Process.Pid)} {
		must(v.T, os.Symlink(filepath.Join("/proc", name), filepath.Join(proc, name)))
	}
	h, err := mounts.HeldBy(proc, filepath.Join(v.base, "pool"))
	must(v.T, err)
	return mounts.Foreign(h, filepath.Join(v.base, "pool"))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wait returns how the container ended, and what it said.
func (v *vessel) wait() (code int, said string) {
	v.Helper()
	if err := v.cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		v.Fatal(err)
	}
	return v.cmd.ProcessState.ExitCode(), strings.TrimSpace(v.out.String())
}

// The command has everything of the gate's but what the gate itself had open, and is in the
// volume: by its path, by its working directory, and by what it opens.
func TestGo(t *testing.T) {
	for _, c := range []struct {
		uid  int
		dir  string
		here string // of the volume; "": the directory is outside
	}{
		{0, "./", "here"}, {0, "./inner", "inner/here"}, {0, "./not/there", "not/there/here"}, {0, "/", ""},
		{65534, "./", "here"}, {65534, "./not/there", "not/there/here"}, {65534, "/", ""},
	} {
		t.Run(fmt.Sprint(c.uid, c.dir), func(t *testing.T) {
			v := launch(t, "", c.uid, c.dir, "sh", "-c", `
				echo data >"$VOLUME/file" || exit 9
				[ "$PWD" = / ] || echo data >here || exit 10
				echo "$$ $COLOUR $(id -u) $(ulimit -n)"; /bin/pwd; echo $PWD
				ls /proc/self/fd | tr '\n' ' '; read line; exit 7`)
			v.come()
			volume := v.inject()
			if got := v.holders(); len(got) != 1 || got[0].PID != v.door.PID() || got[0].Mountpoint != v.at {
				t.Errorf("held by %v; want the container alone", got)
			}
			must(t, v.door.Go(context.Background(), volume))
			must(t, v.stdin.Close())
			code, said := v.wait()
			dir := c.dir
			if c.here != "" {
				dir = filepath.Join(v.at, c.dir)
			}
			want := fmt.Sprintf("%d blue %d %d\n%s\n%s\n0 1 2 3", v.door.PID(), c.uid, softLimit, dir, dir)
			if code != 7 || said != want {
				t.Errorf("it ended with %d and said\n%s\nwant 7 and\n%s", code, said, want)
			}
			for _, name := range []string{"file", c.here} {
				if b, err := os.ReadFile(filepath.Join(v.volume, name)); name != "" && (err != nil || string(b) != "data\n") {
					t.Errorf("%s in the volume: %q, %v", name, b, err)
				}
			}
		})
	}
}

// Where its engine has told it the directory that it is in, that is told to the command: the
// gate's own is another one. A shell finds that out by itself, so none is asked.
func TestDirectoryNamed(t *testing.T) {
	v := launch(t, "", 0, "./inner", "/usr/bin/env")
	v.come()
	// It may have ended by the time it is looked at, which is told as an error.
	err := v.door.Go(context.Background(), v.inject())
	if code, said := v.wait(); code != 0 || !strings.Contains("\n"+said+"\n", "\nPWD="+filepath.Join(v.at, "inner")+"\n") {
		t.Errorf("it ended with %d, %v, and said\n%s", code, err, said)
	}
}

// A container that its engine starts again has the volume from the beginning: nobody is
// asked, unless it was never told to go.
func TestStartedAgain(t *testing.T) {
	v := launch(t, "volume", 0, "./", "sh", "-c", "echo data >file; exit 7")
	if code, said := v.wait(); code != 1 || !strings.Contains(said, "never told to go") {
		t.Errorf("never told to go it ended with %d: %s", code, said)
	}
	if _, err := os.Stat(filepath.Join(v.volume, "file")); err == nil {
		t.Error("never told to go it has written to the volume")
	}
	before = func(v *vessel) { must(t, Released(filepath.Join(v.base, "d"))) }
	defer func() { before = nil }()
	v = launch(t, "volume", 0, "./", "sh", "-c", "echo data >file; exit 7")
	must(t, v.door.Close())
	if code, said := v.wait(); code != 7 {
		t.Fatalf("it ended with %d: %s", code, said)
	}
	if b, err := os.ReadFile(filepath.Join(v.volume, "file")); err != nil || string(b) != "data\n" {
		t.Errorf("file in the volume: %q, %v", b, err)
	}
}

// Nothing can be written before the volume is there, whoever tries.
func TestPlaceholder(t *testing.T) {
	v := launch(t, "", 0, "/", "true")
	v.come()
	for _, at := range []string{v.door.Placeholder(), v.door.proc("root" + v.at)} {
		if err := os.WriteFile(filepath.Join(at, "file"), nil, 0o644); !errors.Is(err, unix.EROFS) {
			t.Errorf("writing to %s: %v; want that it is read-only", at, err)
		}
		if err := os.Remove(filepath.Join(at, placeholderMark)); !errors.Is(err, unix.EROFS) {
			t.Errorf("removing from %s: %v; want that it is read-only", at, err)
		}
	}
	// A volume that has such a file is a volume.
	must(t, os.WriteFile(filepath.Join(v.volume, placeholderMark), nil, 0o644))
	if is, err := isPlaceholder(v.volume); is || err != nil {
		t.Errorf("the volume is taken for a placeholder: %v, %v", is, err)
	}
}

// What is not what flockd has said is not used, and nothing is written.
func TestGateVerifies(t *testing.T) {
	for name, wrong := range map[string]func(v *vessel) Place{
		"nothing is there":       func(v *vessel) Place { p, err := placeOf(v.volume); must(v.T, err); return p },
		"something else is":      func(v *vessel) Place { p := v.inject(); p.Inode++; return p },
		"of another file system": func(v *vessel) Place { p := v.inject(); p.Device++; return p },
	} {
		t.Run(name, func(t *testing.T) {
			v := launch(t, "", 0, "./", "sh", "-c", "echo data >file")
			v.come()
			err := v.door.Go(context.Background(), wrong(v))
			if err == nil || !strings.Contains(err.Error(), "is not the volume") {
				t.Errorf("Go: %v; want the gate's reason", err)
			}
			if code, said := v.wait(); code != 1 || !strings.Contains(said, "is not the volume") {
				t.Errorf("it ended with %d: %s", code, said)
			}
			if left, err := os.ReadDir(v.volume); err != nil || len(left) != 1 {
				t.Errorf("in the volume are %v, %v; want what was there", left, err)
			}
		})
	}
}

// A command that cannot be is said to be none.
func TestGoWithoutCommand(t *testing.T) {
	for command, want := range map[string]string{"no-such-program": "not found", "/etc/passwd": "permission denied"} {
		v := launch(t, "", 0, "./", command)
		v.come()
		if err := v.door.Go(context.Background(), v.inject()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Go with the command %s: %v; want %q", command, err, want)
		}
		v.wait()
	}
}

// The gate ends when it is asked to, and when flockd lets go.
func TestGateEnds(t *testing.T) {
	v := launch(t, "", 0, "/", "true")
	v.come()
	must(t, v.cmd.Process.Signal(unix.SIGTERM))
	if code, said := v.wait(); code != 0 {
		t.Errorf("asked to end it ends with %d: %s", code, said)
	}

	v = launch(t, "", 0, "/", "true")
	v.come()
	v.inject() // and died before it said so
	must(t, v.door.Close())
	if code, said := v.wait(); code != 1 || !strings.Contains(said, "let go") {
		t.Errorf("without flockd it ends with %d: %s", code, said)
	}
	if got := v.holders(); len(got) > 0 {
		t.Errorf("the volume is held by %v", got)
	}
}

// A volume comes once, into this container, and can be taken out until its gate goes.
func TestInject(t *testing.T) {
	v := launch(t, "", 0, "./", "sh", "-c", "read line; exit 7")
	if err := v.door.Check(v.at); err == nil {
		t.Error("where nobody is a volume could come")
	}
	v.come()
	must(t, v.door.Check(v.at)) // and nothing is there by that
	if err := v.door.Check("/"); err == nil || !strings.Contains(err.Error(), "is not its placeholder") {
		t.Errorf("Check of another directory: %v", err)
	}
	volume := v.inject()
	if _, err := v.door.Inject(v.volume, v.at); err == nil || !strings.Contains(err.Error(), "is not its placeholder") {
		t.Errorf("a second time: %v", err)
	}
	if err := v.door.Withdraw(Place{volume.Device, volume.Inode + 1}, v.at); err != nil || len(v.holders()) != 1 {
		t.Errorf("what is not there is withdrawn: %v, and held by %v", err, v.holders())
	}
	must(t, v.door.Withdraw(volume, v.at))
	if got := v.holders(); len(got) > 0 {
		t.Errorf("withdrawn, it is held by %v", got)
	}
	for at, want := range map[string]string{"/": "is not its placeholder", v.at + "/none": "no such file"} {
		if _, err := v.door.Inject(v.volume, at); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Inject at %s: %v; want %q", at, err, want)
		}
	}
	if _, err := v.door.Inject(v.base+"/none", v.at); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Inject of what is not there: %v", err)
	}
	if got := v.holders(); len(got) > 0 {
		t.Errorf("after what was refused the volume is held by %v", got)
	}
	// What is mounted in the volume on this machine later stays out of the container.
	volume = v.inject()
	inner := filepath.Join(v.volume, "inner")
	must(t, unix.Mount("inner", inner, "tmpfs", 0, ""))
	there, err := placeOf(v.door.proc("root" + v.at + "/inner"))
	here, herr := placeOf(inner)
	must(t, errors.Join(err, herr, unix.Unmount(inner, 0)))
	if there == here {
		t.Error("what is mounted in the volume on this machine is in the container, too")
	}
	must(t, v.door.Go(context.Background(), volume))
	must(t, v.stdin.Close())
	if code, _ := v.wait(); code != 7 {
		t.Errorf("it ended with %d", code)
	}
	if err := v.door.Go(context.Background(), volume); err == nil {
		t.Error("it goes twice")
	}
}

// Nothing is done to a process that has taken the gate's number, or to one that is not in a
// container.
func TestInjectGone(t *testing.T) {
	v := launch(t, "", 0, "/", "true")
	if _, err := v.door.Inject(v.volume, v.at); err == nil {
		t.Error("a volume goes where nobody is")
	}
	v.come()
	must(t, v.cmd.Process.Kill())
	v.wait()
	other := exec.Command("sleep", "60")
	other.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	must(t, other.Start())
	defer func() {
		other.Process.Kill()
		other.Wait()
	}()
	v.door.pid = other.Process.Pid
	if _, err := v.door.Inject(v.volume, v.at); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("Inject: %v; want that the gate has ended", err)
	}
	if err := v.door.Go(context.Background(), Place{}); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("Go: %v; want that the gate has ended", err)
	}
	v.door.pid = os.Getpid()
	if _, err := v.door.Inject(v.volume, v.at); err == nil || !strings.Contains(err.Error(), "no mount namespace of its own") {
		t.Errorf("Inject into this machine: %v", err)
	}
}

// However often volumes are put into containers, from whatever thread: this process stays
// where it is, and no descriptor is left.
func TestInjectLeavesNothing(t *testing.T) {
	v := launch(t, "", 0, "/", "true")
	v.come()
	look := func() string {
		ns, err := os.Readlink("/proc/self/ns/mnt")
		must(t, err)
		root, err := placeOf("/proc/self/root")
		must(t, err)
		fds, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return fmt.Sprint(ns, root, len(fds))
	}
	must(t, v.door.Withdraw(v.inject(), v.at)) // what is made once is there
	before := look()
	for range 20 {
		done := make(chan error)
		for range runtime.NumCPU() {
			go func() {
				done <- onThread(func() error {
					if unix.Gettid() == unix.Getpid() {
						return errors.New("it is the first thread")
					}
					return nil
				})
			}()
		}
		for range runtime.NumCPU() {
			must(t, <-done)
		}
		must(t, v.door.Withdraw(v.inject(), v.at))
	}
	if after := look(); after != before {
		t.Errorf("this process is at %s, and was at %s", after, before)
	}
	home(t)
}

// home waits until no thread of this process is in another namespace: one ends a little
// later than what it was asked to do.
func home(t *testing.T) {
	t.Helper()
	ours, err := os.Readlink("/proc/self/ns/mnt")
	must(t, err)
	elsewhere := func() (out []string) {
		threads, err := os.ReadDir("/proc/self/task")
		must(t, err)
		for _, th := range threads {
			ns, err := os.Readlink(filepath.Join("/proc/self/task", th.Name(), "ns/mnt"))
			if err == nil && ns != ours {
				out = append(out, th.Name()+" "+ns)
			}
		}
		return out
	}
	for began := time.Now(); len(elsewhere()) > 0; runtime.Gosched() {
		if time.Since(began) > 30*time.Second {
			t.Fatalf("threads stay in other namespaces: %v", elsewhere())
		}
	}
}

// What a flockd that died has left is removed, with its mount.
func TestDiscard(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs to be root: it mounts")
	}
	dir := filepath.Join(t.TempDir(), "d")
	d, err := OpenDoor(dir)
	must(t, err)
	must(t, d.listener.Close())
	d.listener = nil
	must(t, Discard(dir))
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is there: %v", err)
	}
	must(t, Discard(dir))
	must(t, d.Close())
}
