package warm

import (
	"encoding/json"
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
	"syscall"

	"golang.org/x/sys/unix"
)

// Where a container has the gate, and what its command is called with.
const (
	ProgramAt = "/.flocker/flockd" // this program
	DoorAt    = "/.flocker/door"   // the directory of its Door
	Command   = "gate"             // of the program: Gate is called with what follows it
)

// Place is one directory, whatever mounts lead to it.
type Place struct {
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
}

// placeOf looks at what a path leads to now.
func placeOf(path string) (Place, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Place{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return Place{uint64(st.Dev), st.Ino}, nil
}

// leave is what the gate is told: that it may go, and what it has to find at its volume's path.
type leave struct {
	Volume Place `json:"volume"`
}

// Args are the arguments of Gate: the container's volume is at the path volume, and its
// command runs in the directory dir.
func Args(volume, dir string, command []string) []string {
	return append([]string{Command, volume, dir, "--"}, command...)
}

// Gate waits in a container until its volume is there, and becomes its command, with the
// same number, user and environment. It returns only with an error. It ends by itself when
// it is asked to, as a container is that is stopped: nothing of it is worth more.
func Gate(args []string, door string) error {
	if len(args) < 4 || args[2] != "--" {
		return errors.New("gate: wants VOLUME DIRECTORY -- COMMAND [ARGUMENT]...; flockd has it started, nobody else does")
	}
	volume, dir, command := args[0], args[1], args[3:]
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, unix.SIGTERM, unix.SIGINT, unix.SIGQUIT)
	go func() {
		<-asked
		os.Exit(0)
	}()
	waiting, err := isPlaceholder(volume)
	if err != nil {
		return fmt.Errorf("gate: %w", err)
	}
	if !waiting {
		// The container was started again, by its engine and with its volume. One that was
		// never let go may be started late, and another one have taken its place.
		if _, err := os.Stat(filepath.Join(door, releasedName)); err != nil {
			return fmt.Errorf("gate: it has its volume and was never told to go: %w", err)
		}
		return fmt.Errorf("gate: %w", become(dir, command))
	}
	conn, err := net.Dial("unix", filepath.Join(door, socketName))
	if err != nil {
		return fmt.Errorf("gate: flockd does not answer: %w", err)
	}
	defer conn.Close()
	err = func() error {
		var l leave
		if err := json.NewDecoder(conn).Decode(&l); err != nil {
			return fmt.Errorf("flockd has let go: %w", err)
		}
		// By its path anew, as the command will: what was open or entered before would lead
		// below what was put there.
		switch there, err := placeOf(volume); {
		case err != nil:
			return err
		case there != l.Volume:
			return fmt.Errorf("%s is not the volume", volume)
		}
		return become(dir, command)
	}()
	if _, werr := io.WriteString(conn, err.Error()); werr != nil {
		err = errors.Join(err, werr)
	}
	return fmt.Errorf("gate: %w", err)
}

// become enters the directory and is the command from then on. It returns only with an
// error. All descriptors that this program has opened end with it.
func become(dir string, command []string) error {
	// An engine makes a working directory that is missing.
	err := os.Chdir(dir)
	if errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(dir, 0o755); err == nil {
			err = os.Chdir(dir)
		}
	}
	if err != nil {
		return err
	}
	env := os.Environ()
	// The engine may have named the directory that the gate was started in.
	if i := slices.Index(env, "PWD=/"); i >= 0 {
		env[i] = "PWD=" + dir
	}
	program, err := exec.LookPath(command[0])
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return err
	}
	// Of syscall, which gives the command the limits back that this program came with.
	if err := syscall.Exec(program, command, env); err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	return nil
}

// ---- the placeholder

// placeholderSource is what mount tables call one, and placeholderMark is a file in it.
const (
	placeholderSource = "flocker-placeholder"
	placeholderMark   = ".flocker-placeholder"
)

// makePlaceholder mounts a directory that is empty but for its mark, and that nobody can
// write to, however it is mounted elsewhere: the file system itself is read-only.
func makePlaceholder(dir string) error {
	if err := unix.Mount(placeholderSource, dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0555,size=4k,nr_inodes=2"); err != nil {
		return &os.PathError{Op: "mount", Path: dir, Err: err}
	}
	err := os.WriteFile(filepath.Join(dir, placeholderMark), nil, 0o444)
	if err == nil {
		err = unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	}
	if err != nil {
		return errors.Join(fmt.Errorf("making a placeholder at %s: %w", dir, err), unix.Unmount(dir, 0))
	}
	return nil
}

// isPlaceholder says that a path leads to one. A volume is none, whatever files it has:
// what is mounted for writing is not.
func isPlaceholder(path string) (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return false, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	if fs.Type != unix.TMPFS_MAGIC || fs.Flags&unix.ST_RDONLY == 0 {
		return false, nil
	}
	_, err := os.Lstat(filepath.Join(path, placeholderMark))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// unmountPlaceholders ends those at a directory of this machine; in containers they stay.
func unmountPlaceholders(dir string) error {
	for {
		if is, err := isPlaceholder(dir); err != nil || !is {
			if errors.Is(err, os.ErrNotExist) {
				err = nil
			}
			return err
		}
		if err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); err != nil {
			return &os.PathError{Op: "unmount", Path: dir, Err: err}
		}
	}
}

// told is what the gate has said of its end, "" for nothing.
func told(b []byte) string { return strings.TrimSpace(string(b)) }
