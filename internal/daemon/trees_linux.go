package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flocker-io/flocker/internal/browse"
)

// snapshotMounts is what osTrees needs of ZFS.
type snapshotMounts interface {
	MountSnapshot(ctx context.Context, snapshot, dir string) error
	UnmountSnapshot(ctx context.Context, dir string) error
}

// osTrees is Trees on the real machine: it mounts snapshots below a directory that
// only root can enter. What is mounted is opened and detached at once: it is held by
// descriptors alone then, which end with this process, and no mount namespace that is
// made meanwhile has a copy of it that would outlive the reader.
type osTrees struct {
	zfs snapshotMounts
	dir string

	mu   sync.Mutex
	open map[string]bool // directories in which something is just being mounted, by path
}

// unmountPatience bounds how long it may take to detach a mount.
const unmountPatience = time.Minute

// place makes a directory that nobody tidies away.
func (o *osTrees) place() (string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return "", err
	}
	at, err := os.MkdirTemp(o.dir, "")
	if err != nil {
		return "", err
	}
	if o.open == nil {
		o.open = map[string]bool{}
	}
	o.open[at] = true
	return at, nil
}

// forget leaves what is there to Tidy.
func (o *osTrees) forget(at string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.open, at)
}

// Open implements Trees.
func (o *osTrees) Open(ctx context.Context, snapshot string) (Tree, error) {
	at, err := o.place()
	if err != nil {
		return nil, err
	}
	defer o.forget(at)
	err = o.zfs.MountSnapshot(ctx, snapshot, at)
	var top *os.File
	if err == nil {
		top, err = os.Open(at)
	}
	// A mount that was interrupted may have been done all the same.
	dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unmountPatience)
	defer cancel()
	err = errors.Join(err, o.detach(dctx, at))
	switch {
	case err == nil:
		return &osTree{top}, nil
	case top != nil:
		err = errors.Join(err, top.Close())
	}
	return nil, err
}

// detach takes away what is mounted at a directory, and that.
func (o *osTrees) detach(ctx context.Context, at string) error {
	if err := o.zfs.UnmountSnapshot(ctx, at); err != nil {
		return err
	}
	err := os.Remove(at)
	if errors.Is(err, os.ErrNotExist) {
		return nil // two have tidied at the same time
	}
	return err
}

// Tidy implements Trees.
func (o *osTrees) Tidy(ctx context.Context) error {
	left, err := o.left()
	errs := []error{err}
	for _, at := range left {
		errs = append(errs, o.detach(ctx, at))
	}
	return errors.Join(errs...)
}

// left are the directories that nobody uses.
func (o *osTrees) left() ([]string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	all, err := os.ReadDir(o.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var left []string
	for _, e := range all {
		if at := filepath.Join(o.dir, e.Name()); !o.open[at] {
			left = append(left, at)
		}
	}
	return left, err
}

// osTree is held by its root directory, which is open. Nothing else leads to it.
type osTree struct{ top *os.File }

func (t *osTree) root() string { return fmt.Sprintf("/proc/self/fd/%d", t.top.Fd()) }

// Files implements Tree.
func (t *osTree) Files(whole bool) (browse.Files, error) {
	if whole {
		return browse.In(t.root(), ".")
	}
	return browse.In(t.root(), dataDir)
}

// Close implements Tree.
func (t *osTree) Close() error { return t.top.Close() }

// Walk implements Tree. It reads with the lowest priority. Names of one directory are held at a time for each level, and one
// directory is open, however deep the tree is.
func (t *osTree) Walk(ctx context.Context, f func(Entry) error) error {
	done := make(chan error, 1)
	go func() {
		if err := lowest(); err != nil {
			done <- err
			return
		}
		done <- t.walk(ctx, f)
	}()
	return <-done
}

func (t *osTree) walk(ctx context.Context, f func(Entry) error) error {
	top, err := os.Open(t.root())
	if err != nil {
		return err
	}
	w := &walker{ctx: ctx, f: f, dir: top}
	defer func() { w.dir.Close() }()
	if _, err := w.tell(".", "."); err != nil {
		return err
	}
	return w.all(".")
}

// walker is a walk where it has got to. Everything is reached through the directory
// that it is in: paths from the root may be longer than the kernel takes, and one open
// directory for each level may be more than a process can have.
type walker struct {
	ctx context.Context
	f   func(Entry) error
	dir *os.File
}

// at is a path to a name in the directory, for any system call.
func (w *walker) at(name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", w.dir.Fd(), name) }

func (w *walker) tell(name, path string) (Entry, error) {
	if w.ctx.Err() != nil {
		return Entry{}, context.Cause(w.ctx)
	}
	e, err := entry(w.at(name), path)
	if err == nil {
		err = w.f(e)
	}
	return e, err
}

// all visits what is in the directory, whose path from the root is given.
func (w *walker) all(path string) error {
	names, err := w.dir.Readdirnames(-1)
	if err != nil {
		return &os.PathError{Op: "readdir", Path: path, Err: err}
	}
	slices.Sort(names)
	for _, name := range names {
		below := filepath.Join(path, name)
		e, err := w.tell(name, below)
		if err != nil {
			return err
		}
		if e.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		if err := w.enter(name); err != nil {
			return err
		}
		if err := w.all(below); err != nil {
			return err
		}
		// Nothing moves in a snapshot: the way up is the way down.
		if err := w.enter(".."); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) enter(name string) error {
	dir, err := os.OpenFile(w.at(name), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NOATIME, 0)
	if err != nil {
		return err
	}
	w.dir.Close()
	w.dir = dir
	return nil
}

// entry is the thing at full, which is path from the root.
func entry(full, path string) (Entry, error) {
	var st unix.Stat_t
	if err := unix.Lstat(full, &st); err != nil {
		return Entry{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	e := Entry{Path: path, Mode: st.Mode, UID: st.Uid, GID: st.Gid, MTime: st.Mtim.Nano()}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Size = st.Size
		e.Open = func() (io.ReadCloser, error) {
			return os.OpenFile(full, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NOATIME, 0)
		}
	case unix.S_IFLNK:
		e.Link, err = os.Readlink(full)
	case unix.S_IFBLK, unix.S_IFCHR:
		e.Device = st.Rdev
	}
	if err == nil {
		e.Xattrs, err = xattrs(full)
	}
	return e, err
}

// xattrs are the extended attributes of a path, those of a link itself.
func xattrs(path string) ([]Xattr, error) {
	list, err := grown(func(b []byte) (int, error) { return unix.Llistxattr(path, b) })
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) && len(list) == 0 {
		return nil, nil // devices and links may have none
	}
	if err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: path, Err: err}
	}
	var out []Xattr
	for _, name := range strings.Split(string(bytes.TrimSuffix(list, []byte{0})), "\x00") {
		if name == "" {
			continue
		}
		value, err := grown(func(b []byte) (int, error) { return unix.Lgetxattr(path, name, b) })
		if err != nil {
			return nil, &os.PathError{Op: "getxattr " + name, Path: path, Err: err}
		}
		out = append(out, Xattr{name, string(value)})
	}
	slices.SortFunc(out, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// grown calls read with a buffer that is large enough.
func grown(read func([]byte) (int, error)) ([]byte, error) {
	for size := 1 << 10; ; size *= 4 {
		b := make([]byte, size)
		n, err := read(b)
		if !errors.Is(err, unix.ERANGE) || size > 1<<20 {
			return b[:max(0, n)], err
		}
	}
}
