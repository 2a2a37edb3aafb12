package zfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	// termGrace is how long a child may take to end after SIGTERM before SIGKILL.
	termGrace = 2 * time.Second
	// stderrCap bounds what is kept of a child's complaints.
	stderrCap = 64 << 10
	// pipeSize is asked of the kernel for our own stream pipes; it is set while they
	// are empty, since resizing one that holds data has deadlocked (openzfs #13232).
	pipeSize = 1 << 20
	// streamBuffer is the size of one read and write of a stream.
	streamBuffer = 256 << 10
)

// command is one zfs or zpool process to run. Stdin and stdout are handed to the
// child as they are; with stdout nil the output is collected.
type command struct {
	op     string
	argv   []string
	stdin  *os.File
	input  string // in place of stdin: what the child reads there
	stdout *os.File

	// stop makes a child that is blocked on one of our ends come loose; it is called
	// before any signal, because a `zfs send` blocked on a full pipe ignores SIGKILL
	// until the reader closes (openzfs #12500).
	stop func()
}

// run runs c to its end and returns what it printed. The child is always reaped:
// when ctx ends, our ends are closed, then its process group gets SIGTERM, then
// SIGKILL. A child that sleeps uninterruptibly in the kernel (a suspended pool)
// keeps run waiting, since it may still change the disk.
func (h *Host) run(ctx context.Context, c command) (out []byte, err error) {
	defer h.observed(c, time.Now(), &err)
	if ctx.Err() != nil {
		return nil, &Error{Op: c.op, Args: c.argv, Err: context.Cause(ctx)}
	}
	child, err := start(c)
	if err != nil {
		return nil, err
	}
	return child.end(ctx)
}

// observed tells Options.Observe how a command went that began then.
func (h *Host) observed(c command, began time.Time, err *error) {
	if h.options.Observe != nil {
		h.options.Observe(c.op, c.argv, time.Since(began), *err)
	}
}

// child is a command that runs.
type child struct {
	command
	cmd    *exec.Cmd
	stdout collected
	stderr capped
	err    error         // how it ended
	ended  chan struct{} // closed when it has, and is reaped
}

func start(c command) (*child, error) {
	ch := &child{command: c, stderr: capped{max: stderrCap}, ended: make(chan struct{})}
	ch.cmd = exec.Command(c.argv[0], c.argv[1:]...)
	ch.cmd.Env = append(os.Environ(), "LC_ALL=C", "LANGUAGE=C", "TZ=UTC")
	ch.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	ch.cmd.Stderr = &ch.stderr
	ch.cmd.Stdout = &ch.stdout
	if c.stdout != nil {
		ch.cmd.Stdout = c.stdout
	}
	switch {
	case c.stdin != nil:
		ch.cmd.Stdin = c.stdin
	case c.input != "":
		ch.cmd.Stdin = strings.NewReader(c.input)
	}
	// A grandchild that inherited stderr must not keep Wait. But what is collected
	// counts only as a whole: an end that is missing reads like things that are gone.
	ch.cmd.WaitDelay = termGrace
	if err := ch.cmd.Start(); err != nil {
		e := &Error{Op: c.op, Args: c.argv, Err: err}
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
			e.Kind = ErrNoZFS
		}
		return nil, e
	}
	// What began ahead of others is no worse for it, so that this may fail.
	if nice, err := commandNice(); err == nil {
		_ = ch.prioritize(nice)
	}
	go func() {
		defer close(ch.ended)
		ch.err = ch.cmd.Wait()
	}()
	return ch, nil
}

// commandNice is the niceness of commands: ours, but never before other programs. A daemon that runs before all others,
// or it would lose its leases on a machine without rest, must not have its own listings of a large pool keep it from that.
func commandNice() (int, error) {
	own, err := syscall.Getpriority(syscall.PRIO_PROCESS, 0)
	return max(0, 20-own), err // the kernel tells 20 less it
}

func (ch *child) prioritize(nice int) error {
	return syscall.Setpriority(syscall.PRIO_PROCESS, ch.cmd.Process.Pid, nice)
}

// end waits for the child, or stops it when ctx ends, and returns what it printed.
func (ch *child) end(ctx context.Context) ([]byte, error) {
	select {
	case <-ch.ended:
	case <-ctx.Done():
		ch.abort()
	}
	err, cut := ch.err, ch.command.stdout == nil && !ch.stdout.whole
	if errors.Is(err, exec.ErrWaitDelay) {
		if cut {
			return nil, &Error{Op: ch.op, Args: ch.argv, Err: errCut}
		}
		err = nil
	}
	if err == nil {
		return ch.stdout.Bytes(), nil
	}
	if cut {
		// %v: nobody may go by its exit code and take what was printed for the rest.
		err = fmt.Errorf("%w (%v)", errCut, err)
	}
	e := newError(ch.op, ch.argv, string(ch.stderr.kept), err)
	if ctx.Err() != nil {
		e.Err = context.Cause(ctx)
	}
	return ch.stdout.Bytes(), e
}

// abort stops the child and returns when it is reaped.
func (ch *child) abort() {
	if ch.stop != nil {
		ch.stop()
	}
	signal(ch.cmd, syscall.SIGTERM)
	timer := time.NewTimer(termGrace)
	defer timer.Stop()
	select {
	case <-ch.ended:
		return
	case <-timer.C:
	}
	signal(ch.cmd, syscall.SIGKILL)
	<-ch.ended
}

// signal reaches the whole process group, unless the leader is reaped already and
// its number may belong to somebody else.
func signal(cmd *exec.Cmd, sig syscall.Signal) {
	if cmd.Process.Signal(sig) == nil {
		syscall.Kill(-cmd.Process.Pid, sig)
	}
}

// newError gives what zfs printed its kind.
func newError(op string, argv []string, stderr string, err error) *Error {
	stderr, _, _ = strings.Cut(strings.TrimSpace(stderr), "\nusage:\n") // pages of it
	return &Error{Op: op, Args: argv, Stderr: stderr, Kind: kindOf(withoutNames(stderr, argv)), Names: quotedNames(stderr), Err: err}
}

// errCut says that a command ended and not all that it printed could be read.
var errCut = errors.New("its output could not be read to the end; try again")

// collected is what a child prints, and whether that was read to its end. exec tells the
// latter only of a child that ended well.
type collected struct {
	bytes.Buffer
	whole bool
}

// ReadFrom is what exec's copier calls, once.
func (b *collected) ReadFrom(r io.Reader) (int64, error) {
	n, err := b.Buffer.ReadFrom(r)
	b.whole = err == nil
	return n, err
}

// capped keeps the first max bytes and swallows the rest. It must have Write alone:
// with a ReadFrom, exec would go round it.
type capped struct {
	kept []byte
	max  int
}

func (b *capped) Write(p []byte) (int, error) {
	b.kept = append(b.kept, p[:min(b.max-len(b.kept), len(p))]...)
	return len(p), nil
}

// asFile is the file a child can be given in place of end: end itself, or a copy
// of the descriptor below it, which close closes.
func asFile(end any) (f *os.File, closeFile func(), ok bool) {
	switch e := end.(type) {
	case *os.File:
		return e, func() {}, e != nil
	case interface{ File() (*os.File, error) }:
		if f, err := e.File(); err == nil {
			return f, func() { f.Close() }, true
		}
	}
	return nil, nil, false
}

// shutdown ends the traffic on f when it is a socket, so that a child which reads
// or writes it comes loose. On pipes and files it does nothing.
func shutdown(f *os.File) {
	if raw, err := f.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { syscall.Shutdown(int(fd), syscall.SHUT_RDWR) })
	}
}

// streamPipe is a pipe between a child and our copier.
func streamPipe() (r, w *os.File, err error) {
	r, w, err = os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("pipe for a stream: %w", err)
	}
	const setPipeSize = 1031 // F_SETPIPE_SZ; a refusal leaves the default of 64 KiB
	if raw, err := w.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { syscall.Syscall(syscall.SYS_FCNTL, fd, setPipeSize, pipeSize) })
	}
	return r, w, nil
}

// transfer copies without the shortcuts of io.Copy, which would hide the size of
// the pieces and which side failed.
func transfer(dst io.Writer, src io.Reader) (readErr, writeErr error) {
	buf := make([]byte, streamBuffer)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return nil, err
			}
		}
		if err == io.EOF {
			return nil, nil
		}
		if err != nil {
			return err, nil
		}
	}
}
