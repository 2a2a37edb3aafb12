package backup

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// An archive is one full backup as a tar stream: what it will be, its chunks, its manifest.
// Unpacked into a directory it is a backup there.

// archive is a store that is only written to, once.
type archive struct {
	w   *tar.Writer
	now func() time.Time
}

// NewArchive is a store that writes all it gets to w. Close ends it.
func NewArchive(w io.Writer, now func() time.Time) interface {
	Store
	io.Closer
} {
	return &archive{tar.NewWriter(w), now}
}

func (a *archive) Put(_ context.Context, name string, content []byte) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(content)), ModTime: a.now().Truncate(time.Second), Format: tar.FormatPAX}
	if strings.HasSuffix(name, ".clear") {
		return nil // nobody goes on with an archive
	}
	if err := a.w.WriteHeader(h); err != nil {
		return err
	}
	if _, err := a.w.Write(content); err != nil {
		return err
	}
	return a.w.Flush()
}

func (a *archive) PutNew(ctx context.Context, name string, content []byte) error {
	return a.Put(ctx, name, content)
}

func (a *archive) Get(context.Context, string, int64) ([]byte, error) { return nil, fs.ErrNotExist }

func (a *archive) List(context.Context, string, func(string, int64) error) error { return nil }

func (a *archive) Remove(context.Context, string) error { return nil }

func (a *archive) Close() error { return a.w.Close() }

// Archive is an archive that is being read.
type Archive struct {
	// Manifest is what it says it is; until Stream has ended it has no chunks.
	Manifest *Manifest
	tar      *tar.Reader
	keys     *Keys
	auth     *Auth
}

// OpenArchive reads the beginning of one, which was made with that secret; nil: any may be.
func OpenArchive(r io.Reader, keys *Keys, auth *Auth) (*Archive, error) {
	a := &Archive{tar: tar.NewReader(r), keys: keys, auth: auth}
	name, b, err := a.entry(maxManifest)
	if err != nil {
		return nil, volume.Errorf(volume.CodeInvalid, "this is no backup as flockctl export writes it: %v", err)
	}
	m, err := parse(b, false)
	if err == nil && name != m.object(partialName) {
		err = fmt.Errorf("it begins with %q", name)
	}
	if err != nil {
		return nil, volume.Errorf(volume.CodeInvalid, "this is no backup as flockctl export writes it: %v", err)
	}
	if m.Base != nil {
		return nil, volume.Errorf(volume.CodeInvalid, "this is an increment, which stands for nothing by itself")
	}
	a.Manifest = m
	return a, auth.Refused(m)
}

func (a *Archive) entry(limit int64) (string, []byte, error) {
	h, err := a.tar.Next()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return "", nil, err
	}
	if h.Typeflag != tar.TypeReg || h.Size > limit {
		return "", nil, fmt.Errorf("%.100q does not belong there", h.Name)
	}
	b := make([]byte, h.Size)
	_, err = io.ReadFull(a.tar, b)
	return h.Name, b, err
}

// Stream is its stream. Each chunk is what its name says before any of it is given, and it
// ends with io.EOF only when its manifest says that these were all.
func (a *Archive) Stream() io.Reader {
	m := a.Manifest
	return &pieces{next: func() ([]byte, error) {
		i := len(m.Chunks)
		name, b, err := a.entry(maxManifest)
		if err != nil {
			return nil, a.damaged(i, err)
		}
		if name == m.object(manifestName) {
			return nil, a.ended(b)
		}
		sum, ok := strings.CutPrefix(path.Base(name), chunkName(i, ""))
		switch {
		case !ok || name != m.object(path.Base(name)):
			return nil, a.damaged(i, fmt.Errorf("%.100q does not belong there", name))
		case sumOf(b) != sum:
			return nil, a.damaged(i, errors.New("its checksum does not fit"))
		}
		c := Chunk{Stored: int64(len(b)), Sum: sum}
		if m.Encrypted() {
			if b, err = a.keys.open(b); err != nil {
				return nil, fmt.Errorf("backup %s cannot be decrypted: %w", m.ID, err)
			}
		}
		c.Size = int64(len(b))
		m.Chunks, m.Size = append(m.Chunks, c), m.Size+c.Size
		return b, nil
	}}
}

func (a *Archive) damaged(i int, err error) error {
	return volume.Errorf(volume.CodeRefused, "backup %s of volume %q is damaged: chunk %d: %v", a.Manifest.ID, a.Manifest.Name, i+1, err)
}

// ended compares what came with the manifest at the end.
func (a *Archive) ended(b []byte) error {
	m, err := parse(b, true)
	if err != nil {
		return a.damaged(len(a.Manifest.Chunks), err)
	}
	if err := a.auth.Refused(m); err != nil {
		return err
	}
	// All but the end of it was said at the beginning.
	was := *a.Manifest
	was.Ended = m.Ended
	x, err1 := was.encode(nil)
	y, err2 := m.encode(nil)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if string(x) != string(y) {
		return a.damaged(len(a.Manifest.Chunks), errors.New("its manifest is that of something else"))
	}
	a.Manifest = m
	return io.EOF
}
