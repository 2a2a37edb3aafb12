package backup

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// Writing is a backup being made.
type Writing struct {
	Store Store
	// Manifest is what it is of; what it holds is filled in. Of one that was begun before it
	// is that one's, and what of it is there already is not stored again.
	Manifest *Manifest
	Seal     *Seal // nil: it is not encrypted
	Auth     *Auth // nil: it gets no mark
	Now      func() time.Time
	// Progress hears how much of the stream was stored, or was there already. It may be nil.
	Progress func(stored, reused int64)
	// Resume goes on with it although another flockctl was heard of just now.
	Resume bool
	// Warn hears of what is not as it should be and does not keep it from being made. It may be nil.
	Warn func(error)
	// Uploads is how many pieces are stored at a time, each of which is in memory, twice when it is
	// encrypted; 0 is one.
	Uploads int
}

// Begun is a backup that this flockctl may write to.
type Begun struct {
	Writing
	m       *Manifest
	have    map[string]int64
	owner   string
	beating sync.Mutex // of renewed
	renewed time.Time
}

// Write stores a stream, and at its end the manifest, with which it is a backup. A stream that
// does not end with io.EOF is not whole. What was stored until an error stays, to go on from.
func (w Writing) Write(ctx context.Context, stream io.Reader) (*Manifest, error) {
	b, err := w.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return b.Write(ctx, stream)
}

// Begin says in the store what it will be, and that this flockctl writes it. Of two that write
// to one backup, one is refused: what they store would be each other's remains.
func (w Writing) Begin(ctx context.Context) (*Begun, error) {
	m := *w.Manifest
	m.Recipients, m.Size, m.Chunks = w.Seal.Recipients(), 0, nil
	if m.ChunkSize == 0 {
		m.ChunkSize = ChunkSize
	}
	if err := m.check(false); err != nil {
		return nil, fmt.Errorf("this cannot be backed up: %w", err)
	}
	have, err := objects(ctx, w.Store, &m)
	if err != nil {
		return nil, fmt.Errorf("looking for what is there already: %w", err)
	}
	switch {
	case has(have, manifestName):
		return nil, finishedByAnother(&m)
	case has(have, removedName):
		return nil, volume.Errorf(volume.CodeConflict, "backup %s is being removed", m.ID)
	}
	b := &Begun{Writing: w, m: &m, have: have}
	if !b.alone() {
		b.owner = NewID(w.Now())
		if !w.Resume {
			_, heard, err := readMark(ctx, w.Store, &m)
			if err != nil {
				return nil, err
			}
			if Busy(heard, w.Now()) {
				return nil, beingMade(&m, heard, w.Now()).WithHint("wait for it; if it was killed, --resume goes on with it at once")
			}
		}
		if err := b.mark(ctx); err != nil {
			return nil, fmt.Errorf("beginning backup %s: %w", m.ID, err)
		}
		if err := b.sure(ctx); err != nil {
			return nil, err
		}
	}
	if !has(have, partialName) {
		c, err := m.encode(b.Auth)
		if err == nil {
			err = w.Store.Put(ctx, m.object(partialName), c)
		}
		if err != nil {
			b.release(ctx)
			return nil, fmt.Errorf("beginning backup %s: %w", m.ID, err)
		}
	}
	return b, nil
}

// sure looks whether this flockctl is the one that writes, and what the store does for that.
func (b *Begun) sure(ctx context.Context) error {
	if s, ok := b.Store.(exclusive); ok {
		sure, err := s.exclusive(ctx, b.m.object(writerName), b.marked(b.renewed))
		if err != nil {
			b.release(ctx)
			return fmt.Errorf("beginning backup %s: %w", b.m.ID, err)
		}
		if !sure {
			b.warn(errInexact)
		}
	}
	// Who began at the same moment, and said so later, goes on.
	return b.own(ctx)
}

// exclusive is a store of which it has to be found out whether its PutNew is one.
type exclusive interface {
	// exclusive says whether of two that put a new object at the same moment one is refused. The
	// object is there, with this content.
	exclusive(ctx context.Context, name string, content []byte) (bool, error)
}

var errInexact = errors.New("the store does not mind If-None-Match: what keeps two flockctl from finishing the same backup there is only the mark of who writes it, so never say --resume while another may run")

func has(have map[string]int64, name string) bool { _, ok := have[name]; return ok }

// objects are what there is of a backup, by name, with sizes.
func objects(ctx context.Context, s Store, m *Manifest) (map[string]int64, error) {
	have := map[string]int64{}
	err := s.List(ctx, m.prefix(), func(name string, size int64) error {
		have[strings.TrimPrefix(name, m.prefix())] = size
		return nil
	})
	return have, err
}

// alone says that nobody else can write there.
func (b *Begun) alone() bool { _, ok := b.Store.(*archive); return ok }

// mark says who writes, and when that was.
func (b *Begun) mark(ctx context.Context) error {
	b.renewed = b.Now()
	return b.Store.Put(ctx, b.m.object(writerName), b.marked(b.renewed))
}

func (b *Begun) marked(at time.Time) []byte {
	return fmt.Appendf(nil, "%s %s\n", b.owner, at.UTC().Format(time.RFC3339))
}

// own is an error when somebody else writes to it by now.
func (b *Begun) own(ctx context.Context) error {
	if b.alone() {
		return nil
	}
	owner, _, err := readMark(ctx, b.Store, b.m)
	if err != nil {
		return err
	}
	if owner != b.owner {
		return volume.Errorf(volume.CodeConflict, "backup %s was taken over by another flockctl, or removed, meanwhile", b.m.ID)
	}
	return nil
}

// release lets others go on with it at once. That it cannot makes them wait.
func (b *Begun) release(ctx context.Context) {
	if b.alone() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if b.own(ctx) == nil {
		if err := b.Store.Remove(ctx, b.m.object(writerName)); err != nil {
			b.warn(fmt.Errorf("backup %s counts as being made for %s: %w", b.m.ID, aliveFor, err))
		}
	}
}

func (b *Begun) warn(err error) {
	if err != nil && b.Warn != nil {
		b.Warn(err)
	}
}

const (
	// aliveFor is how long after it was last heard of nobody goes on with what a flockctl
	// writes: that may only be slow.
	aliveFor = 15 * time.Minute
	renew    = time.Minute
)

// Busy says that what was heard of then is being written. Whose clock is ahead is, too.
func Busy(heard, now time.Time) bool { return !heard.IsZero() && now.Sub(heard) < aliveFor }

func beingMade(m *Manifest, heard, now time.Time) *volume.Error {
	return volume.Errorf(volume.CodeConflict, "backup %s of volume %q is being made: the flockctl that writes it was heard of %s ago", m.ID, m.Name, max(0, now.Sub(heard)).Round(time.Second))
}

// readMark is who writes to a backup, and when that was last heard of; nobody is "".
func readMark(ctx context.Context, s Store, m *Manifest) (owner string, heard time.Time, err error) {
	b, err := s.Get(ctx, m.object(writerName), 1000)
	if errors.Is(err, fs.ErrNotExist) {
		return "", time.Time{}, nil
	}
	if err != nil {
		return "", time.Time{}, fmt.Errorf("looking who writes backup %s: %w", m.ID, err)
	}
	owner, text, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	if heard, err = time.Parse(time.RFC3339, text); err != nil {
		return "", time.Time{}, nil // what nobody can read nobody renews
	}
	return owner, heard, nil
}

// Write is as that of Writing.
func (b *Begun) Write(ctx context.Context, stream io.Reader) (_ *Manifest, err error) {
	defer func() {
		if err != nil {
			b.release(ctx)
		}
	}()
	m := *b.m
	if err := b.store(ctx, &m, stream); err != nil {
		return nil, err
	}
	if err := b.finish(ctx, &m); err != nil {
		return nil, err
	}
	return &m, nil
}

// storing is what has come of the pieces that were handed out.
type storing struct {
	mu             sync.Mutex
	chunks         []Chunk
	stored, reused int64
	err            error // the first
}

func (s *storing) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = cmp.Or(s.err, err)
}

func (s *storing) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *storing) done(i int, c Chunk, again bool, progress func(stored, reused int64)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.chunks) <= i {
		s.chunks = append(s.chunks, Chunk{})
	}
	s.chunks[i] = c
	if again {
		s.reused += c.Size
	} else {
		s.stored += c.Size
	}
	if progress != nil {
		progress(s.stored, s.reused)
	}
}

// store stores the pieces of a stream. They may get there in any order, for each has its place in its
// name: several are on their way at a time, and no more are in memory. It returns when nothing is
// stored any more.
func (b *Begun) store(ctx context.Context, m *Manifest, stream io.Reader) error {
	n := max(1, b.Uploads)
	if b.alone() {
		n = 1 // there they are in order
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	type piece struct {
		i     int
		clear []byte
	}
	s := &storing{}
	free, pieces := make(chan []byte, n), make(chan piece)
	var uploads, beats sync.WaitGroup
	for range n {
		free <- nil
		uploads.Go(func() {
			for p := range pieces {
				c, again, err := b.chunk(ctx, m, p.i, p.clear, b.have)
				if err != nil {
					s.failed(fmt.Errorf("storing backup %s: %w", m.ID, err))
				} else {
					s.done(p.i, c, again, b.Progress)
				}
				free <- p.clear[:cap(p.clear)]
			}
		})
	}
	if !b.alone() {
		// Also while all that there is takes long to get there.
		beats.Go(func() {
			t := time.NewTicker(renew)
			defer t.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-t.C:
				}
				// Not to be able to ask says nothing; what it is asked for then fails by itself.
				if err := b.beat(ctx); volume.CodeOf(err) == volume.CodeConflict {
					s.failed(err)
					cancel(err)
				}
			}
		})
	}
	err := func() error {
		for i := 0; ; i++ {
			buf := <-free
			if s.failure() != nil {
				return nil
			}
			if buf == nil {
				buf = make([]byte, m.ChunkSize)
			}
			k, end := fill(stream, buf)
			if end != nil && end != io.EOF {
				return fmt.Errorf("reading the snapshot: %w", end)
			}
			if k > 0 {
				if err := b.beat(ctx); err != nil {
					return err
				}
				pieces <- piece{i, buf[:k]}
			}
			if end != nil {
				return nil
			}
		}
	}()
	close(pieces)
	uploads.Wait()
	cancel(nil)
	beats.Wait()
	if err := cmp.Or(s.failure(), err); err != nil {
		return err
	}
	m.Chunks = s.chunks
	for _, c := range m.Chunks {
		m.Size += c.Size
	}
	return nil
}

// beat says from time to time that this flockctl still writes, if it still may.
func (b *Begun) beat(ctx context.Context) error {
	b.beating.Lock()
	defer b.beating.Unlock()
	if b.alone() || b.Now().Sub(b.renewed) < renew {
		return nil
	}
	if err := b.own(ctx); err != nil {
		return err
	}
	if err := b.mark(ctx); err != nil {
		return fmt.Errorf("storing backup %s: %w", b.m.ID, err)
	}
	return nil
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
		if size, ok := have[chunkName(i, sum)]; ok && err == nil && validSum.MatchString(sum) && was == w.Auth.tag(tag, sum) {
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
	return c, false, w.Store.Put(ctx, m.object(clearName(i)), []byte(w.Auth.tag(tag, c.Sum)+" "+c.Sum+"\n"))
}

// tag says of which piece an encrypted chunk is. What is gone on with gets into the list of a
// manifest unread: with a secret, only who has that can say it.
func (a *Auth) tag(clear, sum string) string {
	if a == nil {
		return clear
	}
	return a.mark("piece", clear, sum)
}

func clearTag(id string, i int, clear []byte) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s %d\n", id, i)
	h.Write(clear)
	return hex.EncodeToString(h.Sum(nil))
}

func finishedByAnother(m *Manifest) error {
	return volume.Errorf(volume.CodeConflict, "backup %s was finished by another flockctl meanwhile", m.ID)
}

// finish makes it a backup. Before, and again when it is one, it is seen that all of it is
// there and what it stands on, for somebody may have removed that: who removes looks for what
// stands on it after having said so, and one of the two sees the other. What was stored on the
// way and is not part of it goes.
func (b *Begun) finish(ctx context.Context, m *Manifest) error {
	m.Ended = b.Now().UTC().Truncate(time.Second)
	if err := m.check(true); err != nil {
		return fmt.Errorf("backup %s: %w", m.ID, err)
	}
	c, err := m.encode(b.Auth)
	if err != nil {
		return err
	}
	if len(c) > maxManifest {
		return volume.Errorf(volume.CodeRefused, "backup %s is too large: nobody would read its list of %d chunks", m.ID, len(m.Chunks))
	}
	if b.alone() {
		return b.Store.PutNew(ctx, m.object(manifestName), c)
	}
	if err := b.own(ctx); err != nil {
		return err
	}
	if err := b.relied(ctx, m, partialName); err != nil {
		return err
	}
	// An answer may be lost: what counts is what is there.
	put := b.Store.PutNew(ctx, m.object(manifestName), c)
	ctx = context.WithoutCancel(ctx)
	switch is, err := b.Store.Get(ctx, m.object(manifestName), maxManifest); {
	case err == nil && bytes.Equal(is, c):
	case err == nil || errors.Is(put, fs.ErrExist):
		return finishedByAnother(m)
	default:
		return fmt.Errorf("finishing backup %s: %w", m.ID, errors.Join(put, err))
	}
	if err := b.relied(ctx, m, manifestName); err != nil {
		// It is mine, and cannot be restored: it is none.
		return errors.Join(err, b.Store.Remove(ctx, m.object(manifestName)))
	}
	mine := m.objects()
	if err := sweep(ctx, b.Store, m, func(name string) bool { return mine[name] }); err != nil {
		b.warn(fmt.Errorf("what backup %s does not need is left in the store: %w", m.ID, err))
	}
	return nil
}

// relied is an error when it could not be restored, or is being removed. name is what says
// that it is there at all.
func (b *Begun) relied(ctx context.Context, m *Manifest, name string) error {
	have, err := objects(ctx, b.Store, m)
	if err != nil {
		return fmt.Errorf("looking whether backup %s is whole: %w", m.ID, err)
	}
	if !has(have, name) || has(have, removedName) {
		return volume.Errorf(volume.CodeConflict, "backup %s was removed while it was made", m.ID).WithHint("make another one")
	}
	if err := lacks(m, have); err != nil {
		return err
	}
	return stands(ctx, b.Store, m, b.Auth)
}
