package backup

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/flocker-io/flocker/internal/volume"
)

// Store keeps objects by name. Names are parts with slashes between them. An object is there
// whole or not at all, also after a crash. One store may be used by many at the same time.
type Store interface {
	// Put makes an object, in place of one of that name.
	Put(ctx context.Context, name string, content []byte) error
	// PutNew makes one, and is fs.ErrExist when there is one.
	PutNew(ctx context.Context, name string, content []byte) error
	// Get reads all of an object, of which more than limit bytes are an error. None of that
	// name is fs.ErrNotExist.
	Get(ctx context.Context, name string, limit int64) ([]byte, error)
	// List calls f with the name and size of each object whose name begins with prefix,
	// which is "" or ends in a slash.
	List(ctx context.Context, prefix string, f func(name string, size int64) error) error
	// Remove takes one away; none of that name is no error.
	Remove(ctx context.Context, name string) error
}

// Open is the store that dest names: a directory, by its path or as file:///path, or
// s3://bucket/prefix. For what is to be written a directory is made, if that in which it
// stands is there.
func Open(ctx context.Context, dest string, write bool) (Store, error) {
	if !strings.Contains(dest, "://") {
		return openDir(dest, write)
	}
	u, err := url.Parse(dest)
	if err != nil {
		return nil, volume.Errorf(volume.CodeInvalid, "%.100q is no place for backups", dest)
	}
	switch {
	case u.Scheme == "file" && u.Host == "" && path.IsAbs(u.Path):
		return openDir(u.Path, write)
	case u.Scheme == "s3":
		return openS3(ctx, u)
	}
	return nil, volume.Errorf(volume.CodeInvalid, "%.100q is no place for backups", u.Redacted()).WithHint("give a directory, file:///PATH or s3://BUCKET/PREFIX")
}

// dir is a store in a directory.
type dir struct{ root *os.Root }

func openDir(at string, write bool) (Store, error) {
	if at == "" {
		return nil, volume.Errorf(volume.CodeInvalid, "no place for backups is given").WithHint("give a directory, file:///PATH or s3://BUCKET/PREFIX")
	}
	if write {
		err := os.Mkdir(at, 0o700)
		if err == nil {
			err = syncDir(filepath.Dir(filepath.Clean(at))) // its own name is to outlast a power cut, too
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, volume.Errorf(volume.CodeInvalid, "no backups can be kept in %.100q: %v", at, why(err))
		}
	}
	r, err := os.OpenRoot(at)
	if err != nil {
		return nil, volume.Errorf(volume.CodeInvalid, "there are no backups in %.100q: %v", at, why(err))
	}
	return &dir{r}, nil
}

func syncDir(at string) error {
	f, err := os.Open(at)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// why is an error without the path that it is about.
func why(err error) error {
	var e *fs.PathError
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}

// part is what an object is called until it is whole: two that make one of the same name never
// write to one file. After a crash it stays until what is beside it is swept.
func part(name string) string {
	return path.Join(path.Dir(name), "."+path.Base(name)+"."+rand.Text()[:10]+partSuffix)
}

const partSuffix = ".part"

// tidy removes what is left of objects that never were whole, next to a backup that is
// finished or removed: nobody is to write there any more.
func (d *dir) tidy(prefix string) error {
	list, err := fs.ReadDir(d.root.FS(), path.Clean(prefix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range list {
		if strings.HasPrefix(e.Name(), ".") && strings.HasSuffix(e.Name(), partSuffix) && e.Type().IsRegular() {
			errs = append(errs, gone(d.root.Remove(prefix+e.Name())))
		}
	}
	return errors.Join(errs...)
}

func (d *dir) put(name string, content []byte, commit func(from, to string) error) (err error) {
	if err := d.root.MkdirAll(path.Dir(name), 0o700); err != nil {
		return err
	}
	from := part(name)
	f, err := d.root.OpenFile(from, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = commit(from, name)
	}
	if err != nil {
		return errors.Join(err, gone(d.root.Remove(from)))
	}
	// The names of what it stands in are to be there, too.
	for at := path.Dir(name); ; at = path.Dir(at) {
		if err := d.sync(at); err != nil {
			return err
		}
		if at == "." {
			return nil
		}
	}
}

func (d *dir) sync(at string) error {
	f, err := d.root.Open(at)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (d *dir) Put(_ context.Context, name string, content []byte) error {
	return d.put(name, content, d.root.Rename)
}

func (d *dir) PutNew(_ context.Context, name string, content []byte) error {
	return d.put(name, content, func(from, to string) error {
		err := d.root.Link(from, to)
		if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fs.ErrPermission) {
			// A file system without links: it is asked first, which is better than not at all.
			if _, err := d.root.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
				return errors.Join(fs.ErrExist, err)
			}
			return d.root.Rename(from, to)
		}
		if err != nil {
			return err
		}
		return d.root.Remove(from)
	})
}

func (d *dir) Get(_ context.Context, name string, limit int64) ([]byte, error) {
	f, err := d.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readLimited(f, limit)
}

// readLimited reads all that there is, if it is no more than that.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		return nil, errTooLong
	}
	return b, err
}

var errTooLong = errors.New("it is longer than it should be")

func (d *dir) List(ctx context.Context, prefix string, f func(name string, size int64) error) error {
	top := path.Clean(prefix)
	err := fs.WalkDir(d.root.FS(), top, func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil && errors.Is(err, fs.ErrNotExist):
			return nil // nothing has such a name, or it is being removed
		case err != nil:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case name != top && strings.HasPrefix(path.Base(name), "."):
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		case !e.Type().IsRegular():
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return gone(err)
		}
		return f(filepath.ToSlash(name), info.Size())
	})
	return err
}

func (d *dir) Remove(_ context.Context, name string) error {
	if err := gone(d.root.Remove(name)); err != nil {
		return err
	}
	if err := gone(d.sync(path.Dir(name))); err != nil {
		return err
	}
	// What is empty now goes, too; what is not stays.
	for at := path.Dir(name); at != "."; at = path.Dir(at) {
		if d.root.Remove(at) != nil {
			break
		}
	}
	return nil
}
