package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/flocker-io/flocker/internal/container"
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
	dir := filepath.Join(mountpoint, dataDir)
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrExist) {
		return dir, nil
	}
	if err != nil {
		return "", err
	}
	// The mode comes last: until then nobody but root can look in, and a crash in
	// between leaves a directory that is tighter than asked, never wider.
	if err := os.Chown(dir, spec.UID, spec.GID); err != nil {
		return "", err
	}
	if err := os.Chmod(dir, fileMode(spec.Mode)); err != nil {
		return "", err
	}
	return dir, nil
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
	holders, err := container.HeldBy("/proc", dataset)
	if err != nil {
		return fmt.Errorf("looking for mounts of %s: %w", dataset, err)
	}
	if mountpoint != "" {
		holders = container.Foreign(holders, mountpoint)
	}
	if len(holders) > 0 {
		return fmt.Errorf("still mounted by %s", holders[0])
	}
	return nil
}
