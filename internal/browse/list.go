package browse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"syscall"
	"time"
	"unicode/utf8"
)

// Type is what an entry is.
type Type string

const (
	File      Type = "file"
	Directory Type = "directory"
	Link      Type = "link" // a symbolic one
	Pipe      Type = "pipe"
	Socket    Type = "socket"
	Device    Type = "device"
)

// TypeOf a mode.
func TypeOf(m fs.FileMode) Type {
	switch {
	case m.IsRegular():
		return File
	case m.IsDir():
		return Directory
	case m&fs.ModeSymlink != 0:
		return Link
	case m&fs.ModeNamedPipe != 0:
		return Pipe
	case m&fs.ModeSocket != 0:
		return Socket
	}
	return Device
}

func (t Type) article() string {
	if t == Link {
		return "a symbolic link"
	}
	return "a " + string(t)
}

// Entry is one line of a list.
type Entry struct {
	Name string `json:"name"`
	// Raw is the name's bytes where they are no UTF-8, which JSON cannot carry.
	Raw      []byte    `json:"raw,omitempty"`
	Type     Type      `json:"type"`
	Mode     string    `json:"mode"` // octal, with the bits for setuid, setgid and sticky
	Size     int64     `json:"size"` // of a file
	UID      uint32    `json:"uid"`
	GID      uint32    `json:"gid"`
	Modified time.Time `json:"modified"`
	Target   string    `json:"target,omitempty"` // of a link
}

// FileName is the name as it is on the disk.
func (e Entry) FileName() string {
	if len(e.Raw) > 0 {
		return string(e.Raw)
	}
	return e.Name
}

// batch is how many names of a directory are held at a time.
const batch = 512

// List tells of what is in a directory, in the order in which it comes, or of the one thing
// that is not a directory. It ends with out's error or with ctx.
func List(ctx context.Context, f Files, name string, out func(Entry) error) error {
	fi, err := f.Lstat(name)
	if err != nil {
		return explain(f, name, err)
	}
	if !fi.IsDir() {
		return tell(f, name, path.Base(name), fi, out)
	}
	return each(ctx, f, name, func(d fs.DirEntry) error {
		fi, err := d.Info()
		if err != nil {
			return fmt.Errorf("%s: %w", shown(path.Join(name, d.Name())), err)
		}
		return tell(f, path.Join(name, d.Name()), d.Name(), fi, out)
	})
}

// each calls do for what is in a directory.
func each(ctx context.Context, f Files, name string, do func(fs.DirEntry) error) error {
	dir, err := f.Open(name)
	if err != nil {
		return fmt.Errorf("%s: %w", shown(name), err)
	}
	defer dir.Close()
	d, ok := dir.(fs.ReadDirFile)
	if !ok {
		return fmt.Errorf("%s cannot be listed", shown(name))
	}
	for {
		some, err := d.ReadDir(batch)
		for _, e := range some {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := do(e); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", shown(name), err)
		}
	}
}

func tell(f Files, at, name string, fi fs.FileInfo, out func(Entry) error) error {
	e := Entry{Name: name, Type: TypeOf(fi.Mode()), Mode: octal(fi.Mode()), Modified: sayable(fi.ModTime().UTC())}
	e.UID, e.GID = owner(fi)
	if !utf8.ValidString(name) {
		e.Raw = []byte(name)
	}
	switch e.Type {
	case File:
		e.Size = fi.Size()
	case Link:
		var err error
		if e.Target, err = f.Readlink(at); err != nil {
			return fmt.Errorf("%s: %w", shown(at), err)
		}
	}
	return out(e)
}

// sayable is a time, or the nearest that JSON has.
func sayable(t time.Time) time.Time {
	first, last := time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	switch {
	case t.Before(first):
		return first
	case t.After(last):
		return last
	}
	return t
}

func octal(m fs.FileMode) string {
	n := uint32(m.Perm())
	for bit, at := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&bit != 0 {
			n |= at
		}
	}
	return fmt.Sprintf("%04o", n)
}

func owner(fi fs.FileInfo) (uid, gid uint32) {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Uid, st.Gid
	}
	return 0, 0
}

// Open opens the content of one file. A link is followed as long as it stays in the tree.
func Open(f Files, name string) (io.ReadCloser, int64, error) {
	fi, err := f.Stat(name)
	if err != nil {
		return nil, 0, explain(f, name, err)
	}
	if t := TypeOf(fi.Mode()); t != File {
		return nil, 0, notAFile(name, t)
	}
	file, err := f.Open(name)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", shown(name), err)
	}
	return file, fi.Size(), nil
}
