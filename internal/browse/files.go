package browse

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/flocker-io/flocker/internal/volume"
)

// MaxPath is the longest path that may be asked for. The kernel takes less at a time, but
// paths are followed one name after the other here.
const MaxPath = 32 << 10

// Files is a tree that does not change while it is read. A name is relative to its top, which
// is ".", and no name leads out of it, by no symbolic link either. Several may read at a time.
type Files interface {
	// Stat is of what a link leads to, Lstat of the link.
	Stat(name string) (fs.FileInfo, error)
	Lstat(name string) (fs.FileInfo, error)
	Readlink(name string) (string, error)
	// Open opens a regular file, or a directory, which is an fs.ReadDirFile then. What else
	// it does is not defined.
	Open(name string) (fs.File, error)
	Close() error
}

// In is what is below one directory of another, which both have to be directories and no
// links.
func In(top, below string) (Files, error) {
	outer, err := os.OpenRoot(top)
	if err != nil {
		return nil, err
	}
	defer outer.Close()
	fi, err := outer.Lstat(below)
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		return nil, fmt.Errorf("%s is no directory", below)
	}
	inner, err := outer.OpenRoot(below)
	if err != nil {
		return nil, err
	}
	return rooted{inner}, nil
}

type rooted struct{ *os.Root }

func (r rooted) Open(name string) (fs.File, error) { return r.Root.Open(name) }

// Of is the files of a file system in memory, for tests.
func Of(fsys fs.ReadLinkFS) Files { return inMemory{fsys} }

type inMemory struct{ fs.ReadLinkFS }

func (m inMemory) Stat(name string) (fs.FileInfo, error) { return fs.Stat(m.ReadLinkFS, name) }
func (m inMemory) Readlink(name string) (string, error)  { return m.ReadLink(name) }
func (m inMemory) Close() error                          { return nil }

// Clean is the name in a tree that a person means with a path: / is the top of the volume, as
// is nothing at all, and .. ends there.
func Clean(p string) (string, error) {
	switch {
	case len(p) > MaxPath:
		return "", volume.Errorf(volume.CodeInvalid, "a path of %d bytes: at most %d are possible", len(p), MaxPath)
	case strings.ContainsRune(p, 0):
		return "", volume.Errorf(volume.CodeInvalid, "path %q has a zero byte in it, which no file has", p)
	}
	return cmp.Or(path.Clean("/" + p)[1:], "."), nil
}

// shown is a name as people give it.
func shown(name string) string {
	if name == "." {
		return "/"
	}
	return fmt.Sprintf("%q", "/"+name)
}

// explain says why something cannot be had at a name, by the first part of it that is in the
// way.
func explain(f Files, name string, err error) error {
	parts := strings.Split(name, "/")
	for i := range parts {
		at := path.Join(parts[:i+1]...)
		fi, lerr := f.Lstat(at)
		switch {
		case errors.Is(lerr, fs.ErrNotExist):
			return NotThere(name)
		case lerr != nil:
			return fmt.Errorf("%s: %w", shown(at), lerr)
		case fi.Mode()&fs.ModeSymlink != 0:
			_, serr := f.Stat(at)
			if serr == nil {
				continue
			}
			return badLink(f, at, serr)
		case !fi.IsDir() && i < len(parts)-1:
			return volume.Errorf(volume.CodeNotFound, "%s is %s and no directory", shown(at), TypeOf(fi.Mode()).article())
		}
	}
	return fmt.Errorf("%s: %w", shown(name), err)
}

func badLink(f Files, at string, err error) error {
	target, lerr := f.Readlink(at)
	if lerr != nil {
		return fmt.Errorf("%s: %w", shown(at), lerr)
	}
	if errors.Is(err, fs.ErrNotExist) && !path.IsAbs(target) {
		return volume.Errorf(volume.CodeNotFound, "%s is a symbolic link to %q, where nothing is in this snapshot", shown(at), target)
	}
	return volume.Errorf(volume.CodeRefused, "%s is a symbolic link to %q, which is not followed: it leads out of the volume, or nowhere", shown(at), target).
		WithHint("if that is a path as the container sees it, give it from the top of the volume")
}

// Has says with an error that there is nothing at a name; a link is something.
func Has(f Files, name string) error {
	if _, err := f.Lstat(name); err != nil {
		return explain(f, name, err)
	}
	return nil
}

// NotThere is the error of a path that a snapshot does not have.
func NotThere(name string) error {
	return volume.Errorf(volume.CodeNotFound, "the snapshot has no %s", shown(name)).
		WithHint("`flockctl browse list` shows what a directory has")
}
