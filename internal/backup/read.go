package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/flocker-io/flocker/internal/volume"
)

// Complete says what of a backup is not there, without reading it.
func Complete(ctx context.Context, s Store, m *Manifest) error {
	m, err := whole(ctx, s, m)
	if err != nil {
		return err
	}
	have, err := objects(ctx, s, m)
	if err != nil {
		return fmt.Errorf("listing backup %s: %w", m.ID, err)
	}
	return lacks(m, have)
}

// lacks says what of a backup is not among those.
func lacks(m *Manifest, have map[string]int64) error {
	for i, c := range m.Chunks {
		switch size, ok := have[chunkName(i, c.Sum)]; {
		case !ok:
			return m.damaged(i, errors.New("it is not there"))
		case size != c.Stored:
			return m.damaged(i, fmt.Errorf("it has %d bytes and should have %d", size, c.Stored))
		}
	}
	return nil
}

// stands says why what a backup is an increment on cannot be relied on. It is read anew.
func stands(ctx context.Context, s Store, m *Manifest, a *Auth) error {
	seen := map[string]bool{m.ID: true}
	for base := m.Base; base != nil; {
		b := &Manifest{ID: base.ID, Volume: m.Volume}
		have, err := objects(ctx, s, b)
		if err != nil {
			return fmt.Errorf("listing backup %s: %w", base.ID, err)
		}
		if has(have, removedName) || !has(have, manifestName) {
			return volume.Errorf(volume.CodeConflict, "backup %s, on which this one is an increment, was removed meanwhile", base.ID).WithHint("make another one")
		}
		if b, err = read(ctx, s, b.object(manifestName), true); err != nil {
			return fmt.Errorf("reading backup %s, on which this one is an increment: %w", base.ID, err)
		}
		if err := a.Refused(b); err != nil {
			return err
		}
		if b.Snapshot.GUID != base.GUID || seen[b.ID] {
			return volume.Errorf(volume.CodeRefused, "backup %s is an increment on another snapshot than backup %s has", m.ID, b.ID)
		}
		if err := lacks(b, have); err != nil {
			return err
		}
		seen[b.ID], base = true, b.Base
	}
	return nil
}

// damaged is why a backup is not what it was.
func (m *Manifest) damaged(i int, err error) error {
	return volume.Errorf(volume.CodeRefused, "backup %s of volume %q is damaged: chunk %d of %d: %v", m.ID, m.Name, i+1, len(m.Chunks), err).
		WithHint("flockctl backup verify says what else is; an older backup, or one in another place, may be whole")
}

// Verify reads all of a backup, and is an error that names the first chunk which is not as it
// was stored. No key is needed; with one, what is encrypted is decrypted as well.
func Verify(ctx context.Context, s Store, m *Manifest, open *Keys, progress func(int64)) error {
	m, err := whole(ctx, s, m)
	if err != nil {
		return err
	}
	for i := range m.Chunks {
		b, err := stored(ctx, s, m, i)
		if err != nil {
			return err
		}
		if open != nil {
			if _, err := opened(m, i, b, open); err != nil {
				return err
			}
		}
		if progress != nil {
			progress(m.Chunks[i].Size)
		}
	}
	return nil
}

// stored is a chunk as it is kept, proven to be what the manifest says.
func stored(ctx context.Context, s Store, m *Manifest, i int) ([]byte, error) {
	c := m.Chunks[i]
	b, err := s.Get(ctx, m.object(chunkName(i, c.Sum)), c.Stored)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, m.damaged(i, errors.New("it is not there"))
	case errors.Is(err, errTooLong):
		return nil, m.damaged(i, err)
	case err != nil:
		return nil, fmt.Errorf("reading chunk %d of backup %s: %w", i+1, m.ID, err)
	case int64(len(b)) != c.Stored:
		return nil, m.damaged(i, fmt.Errorf("it has %d bytes and should have %d", len(b), c.Stored))
	case sumOf(b) != c.Sum:
		return nil, m.damaged(i, errors.New("its checksum does not fit"))
	}
	return b, nil
}

// opened is a piece of the stream.
func opened(m *Manifest, i int, b []byte, keys *Keys) ([]byte, error) {
	if m.Encrypted() {
		clear, err := keys.open(b)
		if err != nil {
			return nil, fmt.Errorf("backup %s cannot be decrypted: %w", m.ID, err)
		}
		b = clear
	}
	if int64(len(b)) != m.Chunks[i].Size {
		return nil, m.damaged(i, fmt.Errorf("it holds %d bytes and should hold %d", len(b), m.Chunks[i].Size))
	}
	return b, nil
}

// Stream is the stream of a backup. What it gives was proven, chunk by chunk; it ends with
// io.EOF only when it was whole.
func Stream(ctx context.Context, s Store, m *Manifest, keys *Keys) io.Reader {
	i := 0
	return &pieces{next: func() (b []byte, err error) {
		if m, err = whole(ctx, s, m); err != nil {
			return nil, err
		}
		if i == len(m.Chunks) {
			return nil, io.EOF
		}
		if b, err = stored(ctx, s, m, i); err != nil {
			return nil, err
		}
		b, err = opened(m, i, b, keys)
		i++
		return b, err
	}}
}

// pieces are read one after the other.
type pieces struct {
	next func() ([]byte, error)
	rest []byte
	err  error
}

func (p *pieces) Read(b []byte) (int, error) {
	for len(p.rest) == 0 && p.err == nil {
		p.rest, p.err = p.next()
		if p.err != nil {
			p.rest = nil
		}
	}
	if p.err != nil {
		return 0, p.err
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}
