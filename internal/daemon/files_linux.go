package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/flocker-io/flocker/internal/mounts"
	"github.com/flocker-io/flocker/internal/volume"
)

// dataDir is the directory inside a dataset that containers get.
const dataDir = "data"

// osFiles is agent.Files on the real machine.
type osFiles struct{}

// Prepare implements agent.Files.
func (osFiles) Prepare(mountpoint string, spec volume.Spec) (string, error) {
	if err := mountedWritable(mountpoint); err != nil {
		return "", err
	}
	return makeData(mountpoint, spec)
}

// Users implements agent.Files. Processes that end meanwhile are no error.
func (osFiles) Users(mountpoint string) ([]string, error) { return usersBelow("/proc", mountpoint) }

func usersBelow(procfs, mountpoint string) (users []string, err error) {
	all, err := os.ReadDir(procfs)
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join(procfs, e.Name())
		uses, err := usesBelow(dir, mountpoint)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			return nil, err
		}
		if uses {
			users = append(users, fmt.Sprintf("process %d (%s)", pid, mounts.Command(dir)))
		}
	}
	return users, nil
}

// usesBelow says that a process is in a directory, or has something of it open or mapped.
func usesBelow(proc, top string) (bool, error) {
	below := func(name string) bool { return name == top || strings.HasPrefix(name, top+"/") }
	var last error
	for _, name := range []string{"cwd", "root", "exe"} {
		at, err := os.Readlink(filepath.Join(proc, name))
		if err == nil && below(at) {
			return true, nil
		}
		if err != nil {
			last = err
		}
	}
	fds, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		last = err
	}
	for _, fd := range fds {
		if at, err := os.Readlink(filepath.Join(proc, "fd", fd.Name())); err == nil && below(at) {
			return true, nil
		}
	}
	maps, err := os.ReadFile(filepath.Join(proc, "maps"))
	if err != nil {
		last = err
	}
	for line := range strings.Lines(string(maps)) {
		if i := strings.IndexByte(line, '/'); i >= 0 && below(strings.TrimSuffix(strings.TrimSuffix(line[i:], "\n"), " (deleted)")) {
			return true, nil
		}
	}
	return false, last
}

// makeData makes the data directory at the root of a dataset, unless it is there. It
// gets its name last, when owner and mode are as asked, so that a crash never leaves one
// that its users cannot use. What is not a directory is refused: a symbolic link, which
// may have come from another node, would hand out a directory of this machine.
func makeData(root string, spec volume.Spec) (string, error) {
	if spec.Whole() {
		return root, nil // and nothing in it is touched
	}
	dir, unready := filepath.Join(root, dataDir), filepath.Join(root, dataDir+".new")
	st, err := os.Lstat(dir)
	switch {
	case err == nil && st.IsDir():
		return dir, nil
	case err == nil:
		return "", fmt.Errorf("%s is not a directory", dir)
	case !errors.Is(err, os.ErrNotExist):
		return "", err
	}
	if err := os.Remove(unready); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	// Until the mode is set nobody but root can look in.
	if err := os.Mkdir(unready, 0o700); err != nil {
		return "", err
	}
	if err := os.Chown(unready, spec.UID, spec.GID); err != nil {
		return "", err
	}
	if err := os.Chmod(unready, fileMode(spec.Mode)); err != nil {
		return "", err
	}
	return dir, os.Rename(unready, dir)
}

// fileMode translates the low twelve bits of a Unix mode.
func fileMode(mode uint32) os.FileMode {
	m := os.FileMode(mode & 0o777)
	if mode&unix.S_ISVTX != 0 {
		m |= os.ModeSticky
	}
	if mode&unix.S_ISUID != 0 {
		m |= os.ModeSetuid
	}
	if mode&unix.S_ISGID != 0 {
		m |= os.ModeSetgid
	}
	return m
}

// mountedWritable makes sure that a path is the root of a mounted filesystem of its
// own that can be written: the bare directory below an unmounted dataset would take
// the data and hide it.
func mountedWritable(mountpoint string) error {
	var here, parent unix.Stat_t
	if err := unix.Stat(mountpoint, &here); err != nil {
		return fmt.Errorf("looking at %s: %w", mountpoint, err)
	}
	if err := unix.Stat(filepath.Dir(mountpoint), &parent); err != nil {
		return fmt.Errorf("looking at %s: %w", filepath.Dir(mountpoint), err)
	}
	if here.Dev == parent.Dev {
		return fmt.Errorf("nothing is mounted at %s", mountpoint)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(mountpoint, &fs); err != nil {
		return fmt.Errorf("looking at %s: %w", mountpoint, err)
	}
	if fs.Flags&unix.ST_RDONLY != 0 {
		return fmt.Errorf("%s is mounted read-only, by something else than flockd: unmount it", mountpoint)
	}
	return nil
}

// Unused implements agent.Files.
func (osFiles) Unused(dataset, mountpoint string) error {
	holders, err := mounts.HeldBy("/proc", dataset)
	if err != nil {
		return fmt.Errorf("looking for mounts of %s: %w", dataset, err)
	}
	if mountpoint != "" {
		holders = mounts.Foreign(holders, mountpoint)
	}
	if len(holders) > 0 {
		return fmt.Errorf("still mounted by %s", holders[0])
	}
	return nil
}
