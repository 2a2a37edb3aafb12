package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/browse"
)

// Trees opens snapshots for reading. Its methods may be called at the same time.
type Trees interface {
	// Open gives the files of a snapshot (full name), which stays as it is until the
	// tree is closed. zfs.ErrNotFound: there is no such snapshot (any more).
	Open(ctx context.Context, snapshot string) (Tree, error)
	// Tidy ends what an earlier life of this node has left open, and what could not be closed
	// in this one. What is open is left alone.
	Tidy(ctx context.Context) error
}

// Tree is the files of one snapshot.
type Tree interface {
	// Walk calls f for each thing in the tree, its root included, in an order that
	// follows from the names alone. It ends with f's error or with ctx. There may be several
	// at the same time.
	Walk(ctx context.Context, f func(Entry) error) error
	// Files are what is below the data directory, as containers see it, or, of a volume that is
	// all of its dataset, everything. fs.ErrNotExist: there is no such directory. They are
	// closed before the tree is.
	Files(whole bool) (browse.Files, error)
	// Close may take as long as the disk does, also after the caller has gone away.
	Close() error
}

// Entry is one thing in a tree. What ZFS does not carry from node to node (inode
// numbers, times of access, sizes of directories) is not in it.
type Entry struct {
	Path     string // from the root, which is "."
	Mode     uint32 // type and permissions, as in stat
	UID, GID uint32
	Size     int64  // of a file
	Device   uint64 // of a device
	MTime    int64  // nanoseconds
	Link     string // where a symbolic link leads
	Xattrs   []Xattr
	// Open gives the content of a file, while f has the entry; nil for anything else.
	Open func() (io.ReadCloser, error)
}

// Xattr is one extended attribute; an Entry has them in order of their names.
type Xattr struct{ Name, Value string }

// sumTree reads a whole tree, and tells read of the bytes of content as they come. It holds
// one buffer, whatever the sizes of files.
func sumTree(ctx context.Context, t Tree, read func(n int)) (api.Sum, error) {
	began := time.Now()
	s := summer{h: sha256.New(), buf: make([]byte, 256<<10), read: read}
	if err := t.Walk(ctx, func(e Entry) error { return s.add(ctx, e) }); err != nil {
		return api.Sum{}, err
	}
	return api.Sum{SHA256: hex.EncodeToString(s.h.Sum(nil)), Files: s.files, Bytes: s.bytes, Took: time.Since(began)}, nil
}

// countTree is how many bytes of content a tree has.
func countTree(ctx context.Context, t Tree) (n int64, err error) {
	err = t.Walk(ctx, func(e Entry) error {
		if e.Open != nil {
			n += e.Size
		}
		return nil
	})
	return n, err
}

type summer struct {
	h     hash.Hash
	buf   []byte
	read  func(n int)
	files int64
	bytes int64
}

func (s *summer) add(ctx context.Context, e Entry) error {
	s.files++
	s.text(e.Path)
	s.number(uint64(e.Mode), uint64(e.UID), uint64(e.GID), uint64(e.Size), e.Device, uint64(e.MTime))
	s.text(e.Link)
	s.number(uint64(len(e.Xattrs)))
	for _, x := range e.Xattrs {
		s.text(x.Name)
		s.text(x.Value)
	}
	if e.Open == nil {
		return ctx.Err()
	}
	f, err := e.Open()
	if err != nil {
		return err
	}
	defer f.Close()
	var n int64
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		k, err := f.Read(s.buf)
		s.h.Write(s.buf[:k])
		n += int64(k)
		s.read(k)
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("reading %s: %w", e.Path, err)
		}
	}
	if n != e.Size {
		return fmt.Errorf("reading %s: it gave %d bytes and says it has %d", e.Path, n, e.Size)
	}
	s.bytes += n
	return nil
}

// text and number write so that no two different trees write the same: each text has
// its length before it.
func (s *summer) text(t string) {
	s.number(uint64(len(t)))
	io.WriteString(s.h, t)
}

func (s *summer) number(ns ...uint64) {
	var b [8]byte
	for _, n := range ns {
		binary.BigEndian.PutUint64(b[:], n)
		s.h.Write(b[:])
	}
}
