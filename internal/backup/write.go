package backup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"
)

// Writing is a backup being made.
type Writing struct {
	Store Store
	// Manifest is what it is of; what it holds is filled in. Of one that was begun before it
	// is that one's, and what of it is there already is not stored again.
	Manifest *Manifest
	Seal     *Seal // nil: it is not encrypted
	Now      func() time.Time
	// Progress hears how much of the stream was stored, or was there already. It may be nil.
	Progress func(stored, reused int64)
}

// Write stores a stream, and at its end the manifest, with which it is a backup. A stream that
// does not end with io.EOF is not whole. What was stored until an error stays, to go on from.
func (w Writing) Write(ctx context.Context, stream io.Reader) (*Manifest, error) {
	m := *w.Manifest
	m.Recipients, m.Size, m.Chunks = w.Seal.Recipients(), 0, nil
	if m.ChunkSize == 0 {
		m.ChunkSize = ChunkSize
	}
	if err := m.check(false); err != nil {
		return nil, fmt.Errorf("this cannot be backed up: %w", err)
	}
	have := map[string]int64{}
	err := w.Store.List(ctx, m.prefix(), func(name string, size int64) error {
		have[strings.TrimPrefix(name, m.prefix())] = size
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking for what is there already: %w", err)
	}
	if _, begun := have[partialName]; !begun {
		b, err := m.encode()
		if err == nil {
			err = w.Store.Put(ctx, m.object(partialName), b)
		}
		if err != nil {
			return nil, fmt.Errorf("beginning backup %s: %w", m.ID, err)
		}
	}
	buf := make([]byte, m.ChunkSize)
	var stored, reused int64
	for i := 0; ; i++ {
		n, end := fill(stream, buf)
		if end != nil && end != io.EOF {
			return nil, fmt.Errorf("reading the snapshot: %w", end)
		}
		if n > 0 {
			c, again, err := w.chunk(ctx, &m, i, buf[:n], have)
			if err != nil {
				return nil, fmt.Errorf("storing backup %s: %w", m.ID, err)
			}
			m.Chunks, m.Size = append(m.Chunks, c), m.Size+c.Size
			if again {
				reused += c.Size
			} else {
				stored += c.Size
			}
			if w.Progress != nil {
				w.Progress(stored, reused)
			}
		}
		if end != nil {
			break
		}
	}
	return &m, w.finish(ctx, &m)
}

// fill reads until buf is full or the stream has ended. Not io.ReadFull, for which a stream
// that was cut, by its own io.ErrUnexpectedEOF, is one that ended there.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// chunk stores one, unless it is there.
func (w Writing) chunk(ctx context.Context, m *Manifest, i int, clear []byte, have map[string]int64) (c Chunk, again bool, err error) {
	if err := ctx.Err(); err != nil {
		return c, false, context.Cause(ctx)
	}
	c.Size = int64(len(clear))
	if w.Seal == nil {
		c.Stored, c.Sum = c.Size, sumOf(clear)
		name := chunkName(i, c.Sum)
		if size, ok := have[name]; ok && size == c.Stored {
			return c, true, nil
		}
		return c, false, w.Store.Put(ctx, m.object(name), clear)
	}
	// What is encrypted twice is never the same: what of it there is already is found by a
	// checksum of what it was. That goes when the backup is finished.
	tag := clearTag(m.ID, i, clear)
	if _, ok := have[clearName(i)]; ok {
		b, err := w.Store.Get(ctx, m.object(clearName(i)), 1000)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errTooLong) {
			return c, false, err
		}
		was, sum, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
		if size, ok := have[chunkName(i, sum)]; ok && err == nil && was == tag && validSum.MatchString(sum) {
			c.Stored, c.Sum = size, sum
			return c, true, nil
		}
	}
	sealed, err := w.Seal.seal(clear)
	if err != nil {
		return c, false, err
	}
	c.Stored, c.Sum = int64(len(sealed)), sumOf(sealed)
	if err := w.Store.Put(ctx, m.object(chunkName(i, c.Sum)), sealed); err != nil {
		return c, false, err
	}
	return c, false, w.Store.Put(ctx, m.object(clearName(i)), []byte(tag+" "+c.Sum+"\n"))
}

func clearTag(id string, i int, clear []byte) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s %d\n", id, i)
	h.Write(clear)
	return hex.EncodeToString(h.Sum(nil))
}

// finish makes it a backup. What was stored on the way and is not part of it goes.
func (w Writing) finish(ctx context.Context, m *Manifest) error {
	m.Ended = w.Now().UTC().Truncate(time.Second)
	if err := m.check(true); err != nil {
		return fmt.Errorf("backup %s: %w", m.ID, err)
	}
	b, err := m.encode()
	if err != nil {
		return err
	}
	err = w.Store.PutNew(ctx, m.object(manifestName), b)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("backup %s was finished by another flockctl meanwhile", m.ID)
	}
	if err != nil {
		return fmt.Errorf("finishing backup %s: %w", m.ID, err)
	}
	mine := map[string]bool{manifestName: true}
	for i, c := range m.Chunks {
		mine[chunkName(i, c.Sum)] = true
	}
	return sweep(ctx, w.Store, m, func(name string) bool { return mine[name] })
}
