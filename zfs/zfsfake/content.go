package zfsfake

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"slices"
)

// Content is kept like ZFS keeps it: what is shared is never changed. A blob is
// the data of one file and never changes. A tree maps paths to blobs; views of it
// (a head, a snapshot, a receive under way) count as refs, and a tree with more
// than one, or one a bookmark remembers, is cloned before it is changed.
//
// Space is counted as it comes and goes: a blob is paid for while any living tree
// holds it.

const (
	blockSize   = 4 << 10
	fileOver    = 512      // metadata of one file
	datasetOver = 96 << 10 // of one dataset
	changeOver  = 8 << 10  // of any change at all
)

type blob struct {
	data []byte
	refs int // trees
}

func (b *blob) size() int64 {
	return int64(len(b.data)+blockSize-1)/blockSize*blockSize + fileOver
}

type tree struct {
	pool   *pool
	files  map[string]*blob
	size   int64
	refs   int  // views
	frozen bool // a bookmark remembers it
}

func newTree(p *pool) *tree {
	return &tree{pool: p, files: map[string]*blob{}, refs: 1}
}

// view is one more holder of the same tree.
func (t *tree) view() *tree {
	t.refs++
	return t
}

// drop gives one view up, and the space of what nobody holds any more.
func (t *tree) drop() {
	t.refs--
	if t.refs > 0 {
		return
	}
	for _, b := range t.files {
		t.pool.unref(b)
	}
}

// mutable is t if the caller alone holds it, else a copy in exchange for the
// caller's view.
func (t *tree) mutable() *tree {
	if t.refs == 1 && !t.frozen {
		return t
	}
	c := &tree{pool: t.pool, files: maps.Clone(t.files), size: t.size, refs: 1}
	for _, b := range c.files {
		b.refs++
	}
	t.drop()
	return c
}

func (t *tree) set(path string, data []byte) {
	t.remove(path)
	b := &blob{data: data}
	t.pool.ref(b)
	t.files[path] = b
	t.size += b.size()
}

func (t *tree) remove(path string) bool {
	old, ok := t.files[path]
	if !ok {
		return false
	}
	delete(t.files, path)
	t.size -= old.size()
	t.pool.unref(old)
	return true
}

func (p *pool) ref(b *blob) {
	if b.refs++; b.refs == 1 {
		p.alloc += b.size()
	}
}

func (p *pool) unref(b *blob) {
	if b.refs--; b.refs == 0 {
		p.alloc -= b.size()
	}
}

// newSince is the space of what t has and base (nil: nothing) has not.
func (t *tree) newSince(base *tree) int64 {
	if base == nil {
		return t.size
	}
	if t == base {
		return 0
	}
	var n int64
	for path, b := range t.files {
		if base.files[path] != b {
			n += b.size()
		}
	}
	return n
}

// unique is the space that would come back if this view went.
func (t *tree) unique() int64 {
	if t.refs > 1 {
		return 0
	}
	var n int64
	for _, b := range t.files {
		if b.refs == 1 {
			n += b.size()
		}
	}
	return n
}

func (t *tree) paths() []string {
	return slices.Sorted(maps.Keys(t.files))
}

// checksum covers paths and contents.
func (t *tree) checksum() string {
	h := sha256.New()
	for _, path := range t.paths() {
		data := t.files[path].data
		binary.Write(h, binary.BigEndian, [2]uint64{uint64(len(path)), uint64(len(data))})
		h.Write([]byte(path))
		h.Write(data)
	}
	return hex.EncodeToString(h.Sum(nil))[:32]
}
