package browse

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"unicode/utf8"
)

// Kind of change.
type Kind string

const (
	Added    Kind = "added"
	Removed  Kind = "removed"
	Modified Kind = "modified"
	Renamed  Kind = "renamed"
)

// Change is one thing that is not the same in two trees.
type Change struct {
	Kind Kind   `json:"change"`
	Type Type   `json:"type"`
	Path string `json:"path"`          // from the top of the volume; of what was renamed the new one
	Was  string `json:"was,omitempty"` // of what was renamed
	// Raw and RawWas are the bytes of the paths where they are no UTF-8.
	Raw    []byte `json:"raw,omitempty"`
	RawWas []byte `json:"raw_was,omitempty"`
}

// Paths are the new and the old one as they are on the disk.
func (c Change) Paths() (now, was string) {
	now, was = c.Path, c.Was
	if len(c.Raw) > 0 {
		now = string(c.Raw)
	}
	if len(c.RawWas) > 0 {
		was = string(c.RawWas)
	}
	return now, was
}

// maxHeld is how many things that came and went are held to find out which were renamed.
// When there are more, all of them are told as what they look like.
const maxHeld = 100000

// maxHeldBytes bounds what they take, for paths are as long as a container makes them;
// heldBytes is what one takes besides its path.
const (
	maxHeldBytes = 64 << 20
	heldBytes    = 128
)

// Diff tells what is not the same in two snapshots of one volume at and below a path, in no
// order. `zfs diff` does not do it: it takes the volume to be mounted where it looks, which
// copies are not, and it could not be asked on a replica.
//
// A thing is the same as long as it has its inode and nothing of it was changed since, by the
// filesystem's own time. Of a directory only owner and mode count: what came and went in it is
// told by itself. What is at another path, with its inode, type, size, owner and times, was
// renamed; what is in a directory that was renamed goes with it.
func Diff(ctx context.Context, before, after Files, name string, out func(Change) error) error {
	old, err := maybe(before, name)
	if err != nil {
		return err
	}
	now, err := maybe(after, name)
	if err != nil {
		return err
	}
	if old == nil && now == nil {
		return explain(after, name, fs.ErrNotExist)
	}
	d := &differ{ctx: ctx, before: before, after: after, out: out, most: maxHeld, room: maxHeldBytes}
	if err := d.pair(name, old, now); err != nil {
		return err
	}
	return d.settle()
}

// maybe is what is at a name; nil: nothing.
func maybe(f Files, name string) (fs.FileInfo, error) {
	fi, err := f.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, explain(f, name, err)
	}
	return fi, nil
}

type differ struct {
	ctx           context.Context
	before, after Files
	out           func(Change) error
	depth         int
	most          int // of what came and went is held; 0: nothing more
	room          int // of bytes
	came, went    []found
}

// found is something that is only in one of the trees.
type found struct {
	path string
	fi   key
	typ  Type
}

// key is what a rename leaves as it is.
type key struct {
	inode    uint64
	typ      Type
	size     int64
	modified int64
	uid, gid uint32
	mode     fs.FileMode
}

func keyOf(fi fs.FileInfo) key {
	k := key{typ: TypeOf(fi.Mode()), mode: fi.Mode()}
	k.inode, _ = identity(fi)
	k.uid, k.gid = owner(fi)
	if k.typ != Directory { // what was done in one does not make it another
		k.size, k.modified = fi.Size(), fi.ModTime().UnixNano()
	}
	return k
}

// same says that nothing has become of a thing.
func (d *differ) same(old, now fs.FileInfo) bool {
	a, b := keyOf(old), keyOf(now)
	if a.typ == Directory {
		return a.uid == b.uid && a.gid == b.gid && a.mode == b.mode
	}
	_, then := identity(old)
	_, since := identity(now)
	return a == b && then == since
}

// pair compares what has one name in both trees, of which one may be nothing.
func (d *differ) pair(name string, old, now fs.FileInfo) error {
	switch {
	case d.ctx.Err() != nil:
		return context.Cause(d.ctx)
	case old == nil:
		return d.only(name, now, d.after, true)
	case now == nil:
		return d.only(name, old, d.before, false)
	case TypeOf(old.Mode()) != TypeOf(now.Mode()):
		if err := d.only(name, old, d.before, false); err != nil {
			return err
		}
		return d.only(name, now, d.after, true)
	}
	if !d.same(old, now) {
		if err := d.tell(Modified, TypeOf(now.Mode()), name, ""); err != nil {
			return err
		}
	}
	if !now.IsDir() {
		return nil
	}
	leave, err := d.enter(name)
	if err != nil {
		return err
	}
	defer leave()
	err = each(d.ctx, d.before, name, func(e fs.DirEntry) error {
		below := path.Join(name, e.Name())
		old, err := e.Info()
		if err != nil {
			return fmt.Errorf("%s: %w", shown(below), err)
		}
		now, err := maybe(d.after, below)
		if err != nil {
			return err
		}
		return d.pair(below, old, now)
	})
	if err != nil {
		return err
	}
	return each(d.ctx, d.after, name, func(e fs.DirEntry) error {
		below := path.Join(name, e.Name())
		if old, err := maybe(d.before, below); err != nil || old != nil {
			return err
		}
		now, err := e.Info()
		if err != nil {
			return fmt.Errorf("%s: %w", shown(below), err)
		}
		return d.only(below, now, d.after, true)
	})
}

func (d *differ) enter(name string) (leave func(), err error) {
	if d.depth >= MaxDepth {
		return nil, tooDeep(name)
	}
	d.depth++
	return func() { d.depth-- }, nil
}

// only tells of something that is in one tree, with all that is below it.
func (d *differ) only(name string, fi fs.FileInfo, f Files, came bool) error {
	if d.ctx.Err() != nil {
		return context.Cause(d.ctx)
	}
	if err := d.hold(found{name, keyOf(fi), TypeOf(fi.Mode())}, came); err != nil {
		return err
	}
	if !fi.IsDir() {
		return nil
	}
	leave, err := d.enter(name)
	if err != nil {
		return err
	}
	defer leave()
	return each(d.ctx, f, name, func(e fs.DirEntry) error {
		below := path.Join(name, e.Name())
		fi, err := e.Info()
		if err != nil {
			return fmt.Errorf("%s: %w", shown(below), err)
		}
		return d.only(below, fi, f, came)
	})
}

func (d *differ) hold(x found, came bool) error {
	if came {
		d.came = append(d.came, x)
	} else {
		d.went = append(d.went, x)
	}
	d.room -= heldBytes + len(x.path)
	if len(d.came)+len(d.went) <= d.most && d.room >= 0 {
		return nil
	}
	d.most = 0
	return d.settle()
}

// settle tells of all that is held.
func (d *differ) settle() error {
	was := map[string]string{} // of what was renamed, by its new path
	gone := map[string]bool{}  // old paths of what was renamed
	if d.most > 0 {
		was, gone = renames(d.came, d.went)
	}
	for _, x := range d.went {
		if gone[x.path] {
			continue
		}
		if err := d.tell(Removed, x.typ, x.path, ""); err != nil {
			return err
		}
	}
	for _, x := range d.came {
		old, renamed := was[x.path]
		kind := Added
		if renamed {
			kind = Renamed
			if was[path.Dir(x.path)] == path.Dir(old) && path.Base(old) == path.Base(x.path) {
				continue // with its directory
			}
		}
		if err := d.tell(kind, x.typ, x.path, old); err != nil {
			return err
		}
	}
	d.came, d.went = nil, nil
	return nil
}

// renames pairs what came with what went. Of several that look the same, as the names of one
// file that has several, each is the same as one other.
func renames(came, went []found) (was map[string]string, gone map[string]bool) {
	was, gone = map[string]string{}, map[string]bool{}
	by := map[key][]string{}
	for _, x := range went {
		if x.fi.inode != 0 {
			by[x.fi] = append(by[x.fi], x.path)
		}
	}
	for k := range by {
		slices.Sort(by[k])
	}
	slices.SortFunc(came, func(a, b found) int { return cmp.Compare(a.path, b.path) })
	for _, x := range came {
		if old := by[x.fi]; len(old) > 0 {
			was[x.path], gone[old[0]] = old[0], true
			by[x.fi] = old[1:]
		}
	}
	return was, gone
}

func (d *differ) tell(k Kind, t Type, name, was string) error {
	c := Change{Kind: k, Type: t, Path: fromTop(name), Was: was}
	if was != "" {
		c.Was = fromTop(was)
	}
	if !utf8.ValidString(c.Path) {
		c.Raw = []byte(c.Path)
	}
	if !utf8.ValidString(c.Was) {
		c.RawWas = []byte(c.Was)
	}
	return d.out(c)
}

// fromTop is a name as a path from the top of the volume.
func fromTop(name string) string {
	if name == "." {
		return "/"
	}
	return "/" + name
}
