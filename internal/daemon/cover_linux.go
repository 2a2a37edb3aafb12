package daemon

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// places are directories below mounts, where what is not mounted could be written: the bare
// directory of a volume whose dataset is all of it is there whether or not that is mounted.
type places struct {
	chmod func(*os.File, os.FileMode) error
	// immutable sets or clears the attribute with which nobody, not even root, makes or removes
	// anything in a directory.
	immutable func(*os.File, bool) error
	remove    func(string) error
}

var realPlaces = places{(*os.File).Chmod, setImmutable, os.Remove}

// Cover implements agent.Files.
func (osFiles) Cover(mountpoint string) error { return realPlaces.cover(mountpoint) }

// Uncover implements agent.Files.
func (osFiles) Uncover(base string, keep func(name string) bool) error {
	return realPlaces.uncover(base, keep)
}

func (p places) cover(mountpoint string) error {
	if err := os.MkdirAll(filepath.Dir(mountpoint), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(mountpoint, 0); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	dir, bare, err := openBare(mountpoint)
	if err != nil || !bare {
		return err
	}
	defer dir.Close()
	hidden, err := dir.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if len(hidden) > 0 {
		err = fmt.Errorf("%s in %s was written while nothing was mounted there, and is hidden by what is mounted; to move it away: unmount that, and chattr -i %[2]s", hidden[0], mountpoint)
	}
	// The mode first: what is immutable has it for good. It keeps others than root out, also
	// where the file system does not know the attribute.
	st, serr := dir.Stat()
	if serr == nil && st.Mode().Perm() != 0 {
		serr = p.chmod(dir, 0)
	}
	return errors.Join(err, serr, p.immutable(dir, true))
}

// uncover removes the directories that cover has made, but for those to keep and those that
// something is mounted on. One with something in it stays, and can be looked into.
func (p places) uncover(base string, keep func(name string) bool) error {
	list, err := os.ReadDir(base)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range list {
		if e.IsDir() && !keep(e.Name()) {
			errs = append(errs, p.uncoverOne(filepath.Join(base, e.Name())))
		}
	}
	return errors.Join(errs...)
}

func (p places) uncoverOne(mountpoint string) error {
	dir, bare, err := openBare(mountpoint)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil || !bare {
		return err
	}
	defer dir.Close()
	if st, err := dir.Stat(); err != nil || st.Mode().Perm() != 0 {
		return err // nobody's that cover made
	}
	// As it is first: not every file system that can have one tells whether it is immutable.
	err = p.remove(mountpoint)
	denied := errors.Is(err, os.ErrPermission)
	if denied {
		if err := p.immutable(dir, false); err != nil {
			return err
		}
		err = p.remove(mountpoint)
	}
	switch {
	case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, os.ErrExist):
		return errors.Join(fmt.Errorf("%s has something in it, which is not of the volume: look at it, and remove it", mountpoint), p.chmod(dir, 0o700))
	case err != nil && denied: // mounted on just now, say
		return errors.Join(err, p.immutable(dir, true))
	}
	return err
}

// openBare opens a directory, and says whether it is that itself and nothing mounted on it. What
// is mounted later is not what was opened.
func openBare(path string) (dir *os.File, bare bool, err error) {
	dir, err = os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, false, err
	}
	var here, parent unix.Stat_t
	if err = unix.Fstat(int(dir.Fd()), &here); err == nil {
		err = unix.Stat(filepath.Dir(path), &parent)
	}
	if err == nil && here.Dev == parent.Dev {
		return dir, true, nil
	}
	return nil, false, errors.Join(err, dir.Close())
}

// immutableFlag is FS_IMMUTABLE_FL.
const immutableFlag = 0x10

// setImmutable sets or clears the attribute of chattr +i.
func setImmutable(f *os.File, on bool) error {
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil && on != (flags&immutableFlag != 0) {
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags^immutableFlag))
	}
	switch {
	case errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("the file system of %s knows no attribute that keeps root from writing there: %w", f.Name(), errors.ErrUnsupported)
	case err != nil:
		return fmt.Errorf("making %s immutable, or not: %w", f.Name(), err)
	}
	return nil
}
