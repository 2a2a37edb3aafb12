package browse

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// Extracted is what Extract has made.
type Extracted struct {
	Files int64 `json:"files"` // of any type
	Bytes int64 `json:"bytes"` // of content
	// Left are the first pipes and devices, which are not made, and Lefts how many there are.
	Left  []string `json:"left,omitempty"`
	Lefts int64    `json:"lefts,omitempty"`
	// Plain is how many files have lost their bits for setuid and setgid.
	Plain int64 `json:"plain,omitempty"`
}

// Keep is what Extract keeps that a container has chosen, and that may be a danger here.
type Keep struct {
	Owners bool // takes root
	// Setuid keeps the bits for setuid and setgid of files, with their owners. In a volume no
	// user of this machine gets at such a file; where it is put they may run it.
	Setuid bool
}

const (
	// headroom is what Extract leaves free where it writes, or a twentieth of a small file
	// system: other programs of the machine write there, too, flockd with what it has promised.
	headroom = 1 << 30
	// spaceStep is how much is written between two looks at what is free.
	spaceStep = 16 << 20
	// thingSize is what a file takes besides its content.
	thingSize = 4 << 10
)

// maxLeft is how many of what is left out are named.
const maxLeft = 10

// Extract makes what a stream of Tar has as one name in a directory, where nothing of that name
// may be. It is made beside and gets its name when all of it is there: what was cut short leaves
// nothing. It is cut short before it takes all the space that there is.
func Extract(dir *os.Root, name string, keep Keep, r io.Reader) (out Extracted, err error) {
	d, err := dir.Open(".")
	if err != nil {
		return out, err
	}
	defer d.Close()
	return extract(dir, name, keep, r, func() (free, size int64, err error) { return space(d) })
}

// extract is Extract by what is said to be free.
func extract(dir *os.Root, name string, keep Keep, r io.Reader, space func() (free, size int64, err error)) (out Extracted, err error) {
	if !filepath.IsLocal(name) || name == "." || filepath.Base(name) != name {
		return out, volume.Errorf(volume.CodeInvalid, "%q is not a name", name)
	}
	if err := vacant(dir, name); err != nil {
		return out, err
	}
	beside := ".flockctl-" + strings.ToLower(rand.Text()[:12])
	if err := dir.Mkdir(beside, 0o700); err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, dir.RemoveAll(beside)) }()
	in, err := dir.OpenRoot(beside)
	if err != nil {
		return out, err
	}
	defer in.Close()
	x := unpacker{root: in, keep: keep, out: &out, space: space}
	if err := x.all(r); err != nil {
		return out, err
	}
	if err := vacant(dir, name); err != nil {
		return out, err
	}
	return out, dir.Rename(beside+"/"+top, name)
}

// vacant refuses to put something in the place of what is there.
func vacant(dir *os.Root, name string) error {
	_, err := dir.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	return volume.Errorf(volume.CodeConflict, "%s is there already, and nothing is overwritten", filepath.Join(dir.Name(), name)).
		WithHint("give another destination, or move it away")
}

// top is what the stream's first entry is called while it is made.
const top = "top"

type unpacker struct {
	root *os.Root
	keep Keep
	out  *Extracted
	base string // the stream's name for its first entry
	open []made // directories that the stream is in, from the top

	space func() (free, size int64, err error)
	left  int64 // may be written before space is asked
}

// spend is called before so many bytes are written. It refuses when too little would stay free.
func (x *unpacker) spend(n int64) error {
	if x.left -= n; x.left > 0 {
		return nil
	}
	free, size, err := x.space()
	if err != nil {
		return fmt.Errorf("asking how much is free: %w", err)
	}
	if least := min(headroom, size/20); free-n < least {
		return volume.Errorf(volume.CodeRefused, "only %s are free there, and at least %s stay so for other programs", volume.RoughSize(free), volume.RoughSize(least)).
			WithHint("give a destination with more space, or take a part of it")
	}
	x.left = spaceStep
	return nil
}

// made is a directory that gets its mode and times when nothing more is made in it.
type made struct {
	at string
	h  *tar.Header
}

func (x *unpacker) all(r io.Reader) error {
	t := tar.NewReader(r)
	first := true
	for {
		h, err := t.Next()
		switch {
		case err == io.EOF && first:
			return errors.New("the stream is empty")
		case err == io.EOF:
			return x.leave(len(x.open))
		case err != nil:
			return err
		}
		at, err := x.place(h, first)
		if err == nil {
			first = false
			err = x.make(at, h, t)
		}
		if err != nil {
			return fmt.Errorf("%q: %w", h.Name, err)
		}
	}
}

// place is where an entry is made: right in the directory that came before it, so that
// nothing is ever reached through what the stream itself has made a link.
func (x *unpacker) place(h *tar.Header, first bool) (string, error) {
	name := path.Clean(h.Name)
	if first {
		if !filepath.IsLocal(name) || strings.Contains(name, "/") {
			return "", errors.New("a stream begins with one name")
		}
		x.base = name
		return top, nil
	}
	if x.base != "." {
		var ok bool
		if name, ok = strings.CutPrefix(name, x.base+"/"); !ok {
			return "", errors.New("it is not below what the stream began with")
		}
	}
	at := path.Join(top, name)
	if !filepath.IsLocal(name) || name == "." {
		return "", errors.New("it leads out of the destination")
	}
	for len(x.open) > 0 && x.open[len(x.open)-1].at != path.Dir(at) {
		if err := x.leave(1); err != nil {
			return "", err
		}
	}
	if len(x.open) == 0 {
		return "", errors.New("it comes without its directory")
	}
	return at, nil
}

// leave ends the n innermost directories.
func (x *unpacker) leave(n int) error {
	for range n {
		d := x.open[len(x.open)-1]
		x.open = x.open[:len(x.open)-1]
		if err := x.dress(d.at, d.h); err != nil {
			return err
		}
	}
	return nil
}

func (x *unpacker) make(at string, h *tar.Header, content io.Reader) error {
	if err := x.spend(thingSize); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := x.root.Mkdir(at, 0o700); err != nil {
			return err
		}
		x.open = append(x.open, made{at, h})
	case tar.TypeReg:
		if err := x.file(at, h, content); err != nil {
			return err
		}
	case tar.TypeSymlink:
		if err := x.root.Symlink(h.Linkname, at); err != nil {
			return err
		}
		if x.keep.Owners {
			if err := x.root.Lchown(at, h.Uid, h.Gid); err != nil {
				return err
			}
		}
	default:
		if at == top {
			return volume.Errorf(volume.CodeInvalid, "it is neither a file nor a directory nor a link")
		}
		if x.out.Lefts++; x.out.Lefts <= maxLeft {
			x.out.Left = append(x.out.Left, h.Name)
		}
		return nil
	}
	x.out.Files++
	return nil
}

func (x *unpacker) file(at string, h *tar.Header, content io.Reader) error {
	f, err := x.root.OpenFile(at, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	// A size that the filesystem does not have is refused before a byte is written.
	err = f.Truncate(h.Size)
	var n int64
	if err == nil {
		n, err = io.CopyBuffer(&sparse{f: f, spend: x.spend}, content, make([]byte, 64<<10))
	}
	x.out.Bytes += n
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return x.dress(at, h)
}

// sparse leaves out zeros of a file that has its size already: a container makes a terabyte
// of them for nothing, as a hole.
type sparse struct {
	f     *os.File
	at    int64
	spend func(int64) error
}

func (s *sparse) Write(p []byte) (int, error) {
	n := len(p)
	if len(bytes.TrimLeft(p, "\x00")) > 0 {
		err := s.spend(int64(n))
		if err != nil {
			return 0, err
		}
		if n, err = s.f.WriteAt(p, s.at); err != nil {
			return n, err
		}
	}
	s.at += int64(n)
	return n, nil
}

// dress gives what is made its owner, mode and times, in this order: a change of the owner
// takes bits of the mode away.
func (x *unpacker) dress(at string, h *tar.Header) error {
	mode := h.FileInfo().Mode()
	if x.keep.Owners {
		if err := x.root.Lchown(at, h.Uid, h.Gid); err != nil {
			return err
		}
	}
	if bits := mode & (fs.ModeSetuid | fs.ModeSetgid); bits != 0 && !(x.keep.Owners && (x.keep.Setuid || mode.IsDir())) {
		mode &^= bits
		if !mode.IsDir() {
			x.out.Plain++
		}
	}
	if err := x.root.Chmod(at, mode&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)); err != nil {
		return err
	}
	return x.root.Chtimes(at, time.Time{}, h.ModTime)
}
