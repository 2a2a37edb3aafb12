package warm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	socketName   = "gate"
	releasedName = "released" // in the same directory: see Released
)

// Door is the node's side of one gate. While it is open the gate waits; closed before the
// gate was told to go, it makes the gate end. It is used by one goroutine at a time.
type Door struct {
	dir      string
	listener *net.UnixListener
	conn     *net.UnixConn // of the gate; nil before it has come
	pid      int           // of the gate
}

// OpenDoor makes what one waiting container needs, in a directory of its own that is made.
// Nobody but root may get into what that is in: the gate's socket is open to all users.
func OpenDoor(dir string) (_ *Door, err error) {
	d := &Door{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	for _, sub := range []string{d.Placeholder(), d.Socket()} {
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return nil, err
		}
	}
	if err := makePlaceholder(d.Placeholder()); err != nil {
		return nil, err
	}
	path := filepath.Join(d.Socket(), socketName)
	if d.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}); err != nil {
		return nil, err
	}
	return d, os.Chmod(path, 0o666) // containers have users of their own
}

// Placeholder is the directory that the container gets where its volume will be.
func (d *Door) Placeholder() string { return filepath.Join(d.dir, "placeholder") }

// Socket is the directory that the container gets at DoorAt.
func (d *Door) Socket() string { return filepath.Join(d.dir, "door") }

// PID of the gate, once it has come.
func (d *Door) PID() int { return d.pid }

// Await waits until the gate has come.
func (d *Door) Await(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { d.listener.SetDeadline(time.Unix(1, 0)) })()
	conn, err := d.listener.AcceptUnix()
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("waiting for the gate of a container: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	var peer *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(cerr, err); err != nil {
		return errors.Join(err, conn.Close())
	}
	d.conn, d.pid = conn, int(peer.Pid)
	return nil
}

// waits says whether the gate is there still: then its number is its own.
func (d *Door) waits() error {
	if d.conn == nil {
		return errors.New("the gate of the container has not come yet")
	}
	raw, err := d.conn.SyscallConn()
	if err != nil {
		return err
	}
	// Not with a deadline: one that is over is told before what has happened.
	var rerr error
	if err := raw.Control(func(fd uintptr) {
		_, _, rerr = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	}); err != nil {
		return err
	}
	if errors.Is(rerr, unix.EAGAIN) {
		return nil // it says nothing, and is there
	}
	return errors.New("the gate of the container has ended")
}

// Go has the gate become its container's command, which is to find the volume at its path.
// Nil: it has. With an error the container is of no use, whatever it does.
func (d *Door) Go(ctx context.Context, volume Place) error {
	if err := d.waits(); err != nil {
		return err
	}
	gate, err := placeOf(d.proc("exe"))
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { d.conn.SetDeadline(time.Unix(1, 0)) })()
	if err := json.NewEncoder(d.conn).Encode(leave{volume}); err != nil {
		return fmt.Errorf("telling the gate of the container to go: %w", err)
	}
	// Its end of the connection ends when it becomes another program.
	said, err := io.ReadAll(io.LimitReader(d.conn, 4<<10))
	switch {
	case told(said) != "":
		return fmt.Errorf("the container's command was not started: %s", told(said))
	case err != nil:
		return fmt.Errorf("waiting until the container's command is started: %w", err)
	}
	now, err := placeOf(d.proc("exe"))
	if err != nil || now == gate {
		return errors.New("the gate of the container has ended, or its command did as soon as it was started")
	}
	return nil
}

// proc is a file of the gate's process.
func (d *Door) proc(name string) string { return filepath.Join("/proc", strconv.Itoa(d.pid), name) }

// Close ends the waiting, and what this node has of it but for the directory, which the
// container may have mounted. It may be called again.
func (d *Door) Close() error {
	var errs []error
	if d.conn != nil {
		errs = append(errs, d.conn.Close())
		d.conn = nil
	}
	if d.listener != nil {
		errs = append(errs, d.listener.Close())
		d.listener = nil
	}
	return errors.Join(append(errs, unmountPlaceholders(d.Placeholder()))...)
}

// Released notes that the gate of a door has gone, so that it needs nobody any more when the
// container is started again. It is on the disk when it returns.
func Released(dir string) error {
	at := filepath.Join(dir, "door")
	f, err := os.OpenFile(filepath.Join(at, releasedName), os.O_WRONLY|os.O_CREATE, 0o444)
	if err != nil {
		return err
	}
	d, err := os.Open(at)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	return errors.Join(f.Sync(), f.Close(), d.Sync(), d.Close())
}

// Discard removes the directory of a door that nobody needs any more, of this process or of
// an earlier one.
func Discard(dir string) error {
	if err := unmountPlaceholders(filepath.Join(dir, "placeholder")); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}
