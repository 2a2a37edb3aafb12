package browse

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"io/fs"
	"path"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// MaxDepth is how many directories may lie in each other in a stream: each of them is open
// while what is in it is read.
const MaxDepth = 200

func notAFile(name string, t Type) error {
	err := volume.Errorf(volume.CodeInvalid, "%s is %s and no file", shown(name), t.article())
	if t == Directory {
		return err.WithHint("flockctl browse list shows what is in it, browse get copies it")
	}
	return err
}

func tooDeep(name string) error {
	return volume.Errorf(volume.CodeRefused, "%s lies in more than %d directories", shown(name), MaxDepth).
		WithHint("ask for what is deeper by its own path")
}

// Tar writes what is at a name, with all that is below it, as a tar stream: owners, modes,
// times and links, no extended attributes. The first entry is the thing itself by its own name,
// "." for the top. What is a link stays one. Hard links come as files of their own; sockets,
// which tar does not know, not at all.
func Tar(ctx context.Context, f Files, name string, w io.Writer) error {
	fi, err := f.Lstat(name)
	if err != nil {
		return explain(f, name, err)
	}
	if TypeOf(fi.Mode()) == Socket {
		return notAFile(name, Socket)
	}
	t := packer{ctx: ctx, f: f, w: tar.NewWriter(w), buf: make([]byte, 256<<10)}
	if err := t.add(name, path.Base(name), fi, 0); err != nil {
		return err
	}
	return t.w.Close()
}

type packer struct {
	ctx context.Context
	f   Files
	w   *tar.Writer
	buf []byte
}

func (t *packer) add(name, as string, fi fs.FileInfo, depth int) error {
	if t.ctx.Err() != nil {
		return context.Cause(t.ctx)
	}
	link := ""
	switch TypeOf(fi.Mode()) {
	case Socket:
		return nil
	case Link:
		var err error
		if link, err = t.f.Readlink(name); err != nil {
			return fmt.Errorf("%s: %w", shown(name), err)
		}
	case Directory:
		if depth >= MaxDepth {
			return tooDeep(name)
		}
	}
	h, err := tar.FileInfoHeader(fi, link)
	if err != nil {
		return fmt.Errorf("%s: %w", shown(name), err)
	}
	// Names of users are this machine's and not the container's; only numbers count.
	h.Name, h.Format, h.Uname, h.Gname = as, tar.FormatPAX, "", ""
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	if fi.IsDir() {
		h.Name += "/"
	}
	if err := t.w.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", shown(name), err)
	}
	switch {
	case fi.IsDir():
		return each(t.ctx, t.f, name, func(d fs.DirEntry) error {
			fi, err := d.Info()
			if err != nil {
				return fmt.Errorf("%s: %w", shown(path.Join(name, d.Name())), err)
			}
			return t.add(path.Join(name, d.Name()), as+"/"+d.Name(), fi, depth+1)
		})
	case h.Typeflag == tar.TypeReg:
		return t.content(name, fi.Size())
	}
	return nil
}

func (t *packer) content(name string, size int64) error {
	file, err := t.f.Open(name)
	if err != nil {
		return fmt.Errorf("%s: %w", shown(name), err)
	}
	defer file.Close()
	n, err := io.CopyBuffer(onlyWriter{t.w}, io.LimitReader(file, size), t.buf)
	if err == nil && n != size {
		err = fmt.Errorf("it gave %d bytes and says it has %d", n, size)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", shown(name), err)
	}
	return nil
}

// onlyWriter has the buffer used, and no other way of copying.
type onlyWriter struct{ io.Writer }
