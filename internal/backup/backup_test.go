package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"filippo.io/age"

	"github.com/flocker-io/flocker/internal/volume"
)

var epoch = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

func clock() time.Time { return epoch }

const shop volume.ID = "0123456789abcdef"

// small chunks make many of a short stream.
const small = 64

func about(n int) *Manifest {
	return &Manifest{
		ID: fmt.Sprintf("20260304T1200%02dZ-0000000a", n), Volume: shop, Name: "shop", Cluster: "c0ffee", Options: map[string]string{"replicas": "2"},
		Snapshot: Snapshot{Name: fmt.Sprintf("s%d", n), GUID: uint64(100 + n), Taken: epoch.Add(time.Duration(n) * time.Hour)}, Own: true, Began: epoch, ChunkSize: small,
	}
}

// memory is a store that fails when it is told to.
type memory struct {
	mu      sync.Mutex
	objects map[string][]byte
	puts    int
	failAt  int // this put, from 1, and all after it fail
}

var errFull = errors.New("the store is full")

func newMemory() *memory { return &memory{objects: map[string][]byte{}} }

func (m *memory) put(name string, content []byte, only bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.puts++; m.failAt > 0 && m.puts >= m.failAt {
		return errFull
	}
	if _, there := m.objects[name]; there && only {
		return fs.ErrExist
	}
	m.objects[name] = bytes.Clone(content)
	return nil
}

func (m *memory) Put(_ context.Context, name string, content []byte) error {
	return m.put(name, content, false)
}

func (m *memory) PutNew(_ context.Context, name string, content []byte) error {
	return m.put(name, content, true)
}

func (m *memory) Get(_ context.Context, name string, limit int64) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.objects[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return readLimited(bytes.NewReader(b), limit)
}

func (m *memory) List(_ context.Context, prefix string, f func(string, int64) error) error {
	m.mu.Lock()
	all := maps.Clone(m.objects)
	m.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if strings.HasPrefix(name, prefix) {
			if err := f(name, int64(len(all[name]))); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *memory) Remove(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, name)
	return nil
}

func content(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// newKey is a pair of keys.
func newKey(t testing.TB) (*Seal, *Keys) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	seal, err := NewSeal([]string{id.Recipient().String()})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := ParseKeys(strings.NewReader("# a comment\n" + id.String() + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	return seal, keys
}

func write(t testing.TB, s Store, m *Manifest, seal *Seal, b []byte) *Manifest {
	t.Helper()
	done, err := Writing{Store: s, Manifest: m, Seal: seal, Now: clock}.Write(t.Context(), bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// names are those of all objects.
func names(t testing.TB, s Store) (out []string) {
	t.Helper()
	if err := s.List(t.Context(), "", func(name string, _ int64) error { out = append(out, name); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

func onDisk(t testing.TB) Store {
	t.Helper()
	s, err := Open(t.Context(), "file://"+t.TempDir()+"/backups", true)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRoundTrip(t *testing.T) {
	seal, keys := newKey(t)
	for _, n := range []int{1, small - 1, small, small + 1, 5*small + 7} {
		for _, sealed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d bytes, encrypted %v", n, sealed), func(t *testing.T) {
				s, to := onDisk(t), seal
				if !sealed {
					to = nil
				}
				want := content(n)
				done := write(t, s, about(1), to, want)
				all, err := Load(t.Context(), s)
				if err != nil || len(all.Backups) != 1 || len(all.Partial)+len(all.Broken) != 0 {
					t.Fatalf("found %+v, %v", all, err)
				}
				m, err := all.Find("shop")
				if err != nil || m.ID != done.ID || m.Size != int64(n) || m.Encrypted() != sealed || !m.Ended.Equal(epoch) {
					t.Fatalf("found %+v, %v", m, err)
				}
				if err := Complete(t.Context(), s, m); err != nil {
					t.Error(err)
				}
				if err := Verify(t.Context(), s, m, nil, nil); err != nil {
					t.Error(err)
				}
				if got, err := io.ReadAll(Stream(t.Context(), s, m, keys)); err != nil || !bytes.Equal(got, want) {
					t.Errorf("read %d bytes, %v", len(got), err)
				}
				if objects := names(t, s); len(objects) != m.Pieces()+1 || m.Stored() != done.Stored() || m.Pieces() != len(done.Chunks) {
					t.Errorf("left are %q; %d pieces, stored as %d", objects, m.Pieces(), m.Stored())
				}
				if len(m.Chunks) > 0 {
					t.Errorf("%d chunks are kept", len(m.Chunks))
				}
			})
		}
	}
}

// What is encrypted is not there in the clear, and is read with its key only.
func TestEncrypted(t *testing.T) {
	s := newMemory()
	seal, keys := newKey(t)
	_, other := newKey(t)
	want := bytes.Repeat([]byte("secret"), 100)
	m := write(t, s, about(1), seal, want)
	for name, b := range s.objects {
		if bytes.Contains(b, []byte("secret")) {
			t.Errorf("%s has it in the clear", name)
		}
	}
	if got, err := io.ReadAll(Stream(t.Context(), s, m, keys)); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %q, %v", got, err)
	}
	for key, code := range map[*Keys]volume.Code{other: volume.CodeDenied, nil: volume.CodeInvalid} {
		if got, err := io.ReadAll(Stream(t.Context(), s, m, key)); volume.CodeOf(err) != code || len(got) > 0 {
			t.Errorf("read %q, %v", got, err)
		}
	}
	if err := Verify(t.Context(), s, m, other, nil); err == nil {
		t.Error("verified with a key that does not fit")
	}
	for _, bad := range []string{"", "age1", "AGE-SECRET-KEY-1", "age1x\nage1y"} {
		if _, err := NewSeal([]string{bad}); volume.CodeOf(err) != volume.CodeInvalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := ParseKeys(strings.NewReader("nothing")); volume.CodeOf(err) != volume.CodeInvalid {
		t.Error(err)
	}
}

// Whatever one object of a backup has become, it is seen, and what was read before is as it
// was, up to the end of a chunk.
func TestDamage(t *testing.T) {
	seal, keys := newKey(t)
	want := content(3*small + 5)
	harms := map[string]func([]byte) []byte{
		"first byte":  func(b []byte) []byte { b[0] ^= 1; return b },
		"middle byte": func(b []byte) []byte { b[len(b)/2] ^= 0x80; return b },
		"last byte":   func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"truncated":   func(b []byte) []byte { return b[:len(b)-1] },
		"empty":       func(b []byte) []byte { return nil },
		"longer":      func(b []byte) []byte { return append(b, 0) },
		"missing":     nil,
	}
	for _, to := range []*Seal{nil, seal} {
		s := newMemory()
		m := write(t, s, about(1), to, want)
		for name, was := range maps.Clone(s.objects) {
			for harm, do := range harms {
				t.Run(fmt.Sprintf("%s of %s", harm, name), func(t *testing.T) {
					defer func() { s.objects[name] = was }()
					if do == nil {
						delete(s.objects, name)
					} else {
						s.objects[name] = do(bytes.Clone(was))
					}
					if strings.HasSuffix(name, manifestName) {
						all, err := Load(t.Context(), s)
						if err != nil || len(all.Backups) > 0 || len(all.Broken) == 0 && do != nil {
							t.Fatalf("found %+v, %v", all, err)
						}
						if _, err := all.Find(m.ID); volume.CodeOf(err) != volume.CodeNotFound {
							t.Error(err)
						}
						return
					}
					if err := Verify(t.Context(), s, m, nil, nil); volume.CodeOf(err) != volume.CodeRefused {
						t.Errorf("verified: %v", err)
					}
					got, err := io.ReadAll(Stream(t.Context(), s, m, keys))
					if volume.CodeOf(err) != volume.CodeRefused || !bytes.HasPrefix(want, got) || len(got)%small != 0 || len(got) == len(want) {
						t.Errorf("read %d bytes, %v", len(got), err)
					}
					if sized := Complete(t.Context(), s, m); (sized == nil) != strings.Contains(harm, "byte") {
						t.Errorf("complete: %v", sized)
					}
				})
			}
		}
	}
}

// Two chunks that have changed places have their own checksums, but not their own names.
func TestExchanged(t *testing.T) {
	s := newMemory()
	m := write(t, s, about(1), nil, content(2*small))
	a, b := m.object(chunkName(0, m.Chunks[0].Sum)), m.object(chunkName(1, m.Chunks[1].Sum))
	s.objects[a], s.objects[b] = s.objects[b], s.objects[a]
	if err := Verify(t.Context(), s, m, nil, nil); volume.CodeOf(err) != volume.CodeRefused {
		t.Error(err)
	}
	// A manifest is that of its own place only.
	s.objects["0123456789abcde0/"+m.ID+"/manifest"] = s.objects[m.object(manifestName)]
	if all, err := Load(t.Context(), s); err != nil || len(all.Backups) != 1 || len(all.Broken) != 1 {
		t.Errorf("found %+v, %v", all, err)
	}
}

// Wherever it is interrupted it is no backup, and the same again makes one of what is there,
// of the same stream and of one that has come out otherwise. Nothing else is left.
func TestInterrupted(t *testing.T) {
	seal, keys := newKey(t)
	same := content(6*small + 3)
	other := bytes.Clone(same)
	other[3*small] ^= 1
	for _, to := range []*Seal{nil, seal} {
		for _, again := range [][]byte{same, other, same[:2*small]} {
			for at := 1; ; at++ {
				s := newMemory()
				s.failAt = at
				_, err := Writing{Store: s, Manifest: about(1), Seal: to, Now: clock}.Write(t.Context(), bytes.NewReader(same))
				if err == nil {
					break
				}
				if !errors.Is(err, errFull) {
					t.Fatal(err)
				}
				all, err := Load(t.Context(), s)
				if err != nil || len(all.Backups) > 0 || len(all.Broken) > 0 || len(all.Partial) > 0 != (at > 2) {
					t.Fatalf("after %d: found %+v, %v", at, all, err)
				}
				m := about(1)
				if len(all.Partial) > 0 {
					m = all.Partial[0]
					if _, err := all.Find(m.ID); volume.CodeOf(err) != volume.CodeRefused {
						t.Errorf("what is not finished: %v", err)
					}
				}
				var stored, reused int64
				s.failAt = 0
				w := Writing{Store: s, Manifest: m, Seal: to, Now: clock, Progress: func(a, b int64) { stored, reused = a, b }}
				done, err := w.Write(t.Context(), bytes.NewReader(again))
				if err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(Stream(t.Context(), s, done, keys)); err != nil || !bytes.Equal(got, again) {
					t.Errorf("after %d: read %d bytes, %v", at, len(got), err)
				}
				if objects := names(t, s); len(objects) != len(done.Chunks)+1 {
					t.Errorf("after %d: left are %q", at, objects)
				}
				if stored+reused != int64(len(again)) {
					t.Errorf("after %d: stored %d, reused %d", at, stored, reused)
				}
				// Two puts begin it, and each chunk is one, or two when it is encrypted.
				each := 1
				if to != nil {
					each = 2
				}
				if want := int64(max(0, (at-3)/each)) * small; &again[0] == &same[0] && len(again) == len(same) && reused != min(want, int64(len(same))) {
					t.Errorf("after %d: reused %d, want %d", at, reused, want)
				}
			}
		}
	}
}

// failing is a stream that ends with an error.
type failing struct {
	io.Reader
	err error
}

func (f failing) Read(b []byte) (int, error) {
	n, err := f.Reader.Read(b)
	if err == io.EOF {
		err = f.err
	}
	return n, err
}

// A stream that is cut is never taken for one that has ended, wherever it is cut.
func TestCutStream(t *testing.T) {
	for _, n := range []int{0, 1, small, small + 1, 3 * small} {
		for _, cut := range []error{io.ErrUnexpectedEOF, errors.New("the connection is lost")} {
			s := newMemory()
			_, err := Writing{Store: s, Manifest: about(1), Now: clock}.Write(t.Context(), failing{bytes.NewReader(content(n)), cut})
			if !errors.Is(err, cut) {
				t.Errorf("%d bytes: %v", n, err)
			}
			if all, err := Load(t.Context(), s); err != nil || len(all.Backups) > 0 {
				t.Errorf("%d bytes: found %+v, %v", n, all, err)
			}
		}
	}
	if _, err := (Writing{Store: newMemory(), Manifest: about(1), Now: clock}).Write(t.Context(), strings.NewReader("")); err == nil {
		t.Error("nothing is a backup")
	}
}

// Of two that finish the same backup one is told so, and the backup is whole.
func TestFinishedTwice(t *testing.T) {
	s := newMemory()
	m := write(t, s, about(1), nil, content(100))
	_, err := Writing{Store: s, Manifest: about(1), Now: clock}.Write(t.Context(), bytes.NewReader(content(100)))
	if err == nil || !strings.Contains(err.Error(), "finished by another") {
		t.Error(err)
	}
	if err := Verify(t.Context(), s, m, nil, nil); err != nil {
		t.Error(err)
	}
}

// What was removed in part is no backup, and the rest of it can be removed.
func TestRemove(t *testing.T) {
	for _, s := range []Store{newMemory(), onDisk(t)} {
		kept := write(t, s, about(1), nil, content(100))
		m := write(t, s, about(2), nil, content(300))
		if err := s.Remove(t.Context(), m.object(manifestName)); err != nil {
			t.Fatal(err)
		}
		if err := Remove(t.Context(), s, m, epoch); err != nil {
			t.Fatal(err)
		}
		all, err := Load(t.Context(), s)
		if err != nil || len(all.Backups) != 1 || len(all.Partial) > 0 || len(names(t, s)) != len(kept.Chunks)+1 {
			t.Errorf("found %+v, %v; %q", all, err, names(t, s))
		}
		if err := Verify(t.Context(), s, kept, nil, nil); err != nil {
			t.Error(err)
		}
	}
	// Cut short, it is found as one that is not finished.
	s := newMemory()
	m := write(t, s, about(1), nil, content(300))
	stuck := &unremovable{memory: s, name: m.object(chunkName(1, m.Chunks[1].Sum))}
	if err := Remove(t.Context(), stuck, m, epoch); !errors.Is(err, errFull) {
		t.Error(err)
	}
	all, err := Load(t.Context(), s)
	if err != nil || len(all.Backups) > 0 || len(all.Partial) != 1 {
		t.Fatalf("found %+v, %v", all, err)
	}
	if err := Remove(t.Context(), s, all.Partial[0], epoch); err != nil || len(s.objects) > 0 {
		t.Errorf("%v; left are %q", err, names(t, s))
	}
}

type unremovable struct {
	*memory
	name string
}

func (u *unremovable) Remove(ctx context.Context, name string) error {
	if name == u.name {
		return errFull
	}
	return u.memory.Remove(ctx, name)
}

func TestStores(t *testing.T) {
	t.Run("memory", func(t *testing.T) { testStore(t, newMemory()) })
	t.Run("directory", func(t *testing.T) { testStore(t, onDisk(t)) })
}

// testStore is the contract of Store.
func testStore(t *testing.T, s Store) {
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := names(t, s); len(got) > 0 {
		t.Fatalf("begins with %q", got)
	}
	must(s.Put(ctx, "a/b/c", []byte("one")))
	must(s.Put(ctx, "a/b/c", []byte("two")))
	must(s.Put(ctx, "a/b2/c", []byte("three")))
	if err := s.PutNew(ctx, "a/b/c", []byte("four")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("put over what is there: %v", err)
	}
	must(s.PutNew(ctx, "a/b/new", []byte("5")))
	if got, err := s.Get(ctx, "a/b/c", 3); err != nil || string(got) != "two" {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := s.Get(ctx, "a/b/c", 2); !errors.Is(err, errTooLong) {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := s.Get(ctx, "a/b/nothing", 3); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %q, %v", got, err)
	}
	list := map[string]int64{}
	must(s.List(ctx, "a/b/", func(name string, size int64) error { list[name] = size; return nil }))
	if !maps.Equal(list, map[string]int64{"a/b/c": 3, "a/b/new": 1}) {
		t.Errorf("listed %v", list)
	}
	must(s.List(ctx, "nothing/", func(name string, _ int64) error { return errors.New(name) }))
	if err := s.List(ctx, "", func(string, int64) error { return errFull }); !errors.Is(err, errFull) {
		t.Errorf("listed: %v", err)
	}
	large := content(1 << 20)
	must(s.Put(ctx, "large", large))
	if got, err := s.Get(ctx, "large", 1<<20); err != nil || !bytes.Equal(got, large) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	for _, name := range []string{"large", "a/b/c", "a/b/c", "a/b/new", "a/b2/c"} {
		must(s.Remove(ctx, name))
	}
	if got := names(t, s); len(got) > 0 {
		t.Errorf("ends with %q", got)
	}
}

func TestOpen(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", t.TempDir()+"/none")
	t.Setenv("AWS_CONFIG_FILE", t.TempDir()+"/none")
	for dest, code := range map[string]volume.Code{
		"": volume.CodeInvalid, "ftp://x/y": volume.CodeInvalid, "file://host/x": volume.CodeInvalid,
		"ftp://key:secret@bucket/x": volume.CodeInvalid, "s3://": volume.CodeInvalid,
		"s3://key:secret@bucket/x": volume.CodeInvalid, "s3://bucket/x?y": volume.CodeInvalid, "s3://bucket/x": volume.CodeDenied, t.TempDir() + "/no/such": volume.CodeInvalid,
	} {
		if _, err := Open(t.Context(), dest, true); volume.CodeOf(err) != code || strings.Contains(fmt.Sprint(err), "secret@") {
			t.Errorf("%q: %v", dest, err)
		}
	}
	if _, err := Open(t.Context(), t.TempDir()+"/none", false); volume.CodeOf(err) != volume.CodeInvalid {
		t.Error(err)
	}
}

// during calls f when the first bytes are read.
type during struct {
	io.Reader
	f func()
}

func (d *during) Read(b []byte) (int, error) {
	if d.f != nil {
		d.f()
		d.f = nil
	}
	return d.Reader.Read(b)
}

// What is removed while it is made, or was of what it stands on, is never said to be done.
func TestRemovedWhileMade(t *testing.T) {
	base := about(1)
	harms := map[string]func(s *memory, m *Manifest) error{
		"itself":  func(s *memory, m *Manifest) error { return Remove(t.Context(), s, m, epoch.Add(time.Hour)) },
		"partial": func(s *memory, m *Manifest) error { return s.Remove(t.Context(), m.object(partialName)) },
		"a piece": func(s *memory, m *Manifest) error {
			return s.Remove(t.Context(), m.object(chunkName(0, sumOf(content(3 * small)[:small]))))
		},
		"base is being removed": func(s *memory, _ *Manifest) error { return s.Put(t.Context(), base.object(removedName), []byte("x")) },
		"manifest of the base":  func(s *memory, _ *Manifest) error { return s.Remove(t.Context(), base.object(manifestName)) },
		"a piece of the base": func(s *memory, _ *Manifest) error {
			return s.Remove(t.Context(), base.object(chunkName(0, sumOf(content(70)[:small]))))
		},
	}
	for what, harm := range harms {
		for _, late := range []bool{false, true} {
			if late && what == "partial" {
				continue // it has served
			}
			s := newMemory()
			write(t, s, base, nil, content(70))
			m := about(2)
			m.Base = &Base{ID: base.ID, GUID: base.Snapshot.GUID}
			do := func() {
				if err := harm(s, m); err != nil {
					t.Fatal(what, err)
				}
			}
			w := Writing{Store: s, Manifest: m, Now: clock}
			from := io.Reader(bytes.NewReader(content(3 * small)))
			if late {
				w.Store = &lateStore{s, do} // when it was looked at, and nothing was amiss
			} else {
				from = io.MultiReader(bytes.NewReader(content(3 * small)[:2*small]), &during{bytes.NewReader(content(3 * small)[2*small:]), do})
			}
			if _, err := w.Write(t.Context(), from); err == nil {
				t.Errorf("%s, late %v: it is done", what, late)
			}
			if has(s.lengths(), m.object(manifestName)) {
				t.Errorf("%s, late %v: it has a manifest", what, late)
			}
		}
	}
	// Nobody removes what it stands on by the ordinary way, or it, before it is dead.
	s := newMemory()
	write(t, s, base, nil, content(70))
	m := about(2)
	m.Base = &Base{ID: base.ID, GUID: base.Snapshot.GUID}
	b, err := Writing{Store: s, Manifest: m, Now: clock}.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := Remove(t.Context(), s, base, epoch.Add(time.Hour)); volume.CodeOf(err) != volume.CodeRefused {
		t.Error(err)
	}
	if err := Remove(t.Context(), s, m, epoch.Add(aliveFor-time.Second)); volume.CodeOf(err) != volume.CodeConflict {
		t.Error(err)
	}
	if _, err := b.Write(t.Context(), bytes.NewReader(content(3*small))); err != nil {
		t.Error(err)
	}
}

func (m *memory) lengths() map[string]int64 {
	out := map[string]int64{}
	for name, b := range m.objects {
		out[name] = int64(len(b))
	}
	return out
}

// lateStore does something just before a manifest is put.
type lateStore struct {
	*memory
	do func()
}

func (l *lateStore) PutNew(ctx context.Context, name string, content []byte) error {
	l.do()
	return l.memory.PutNew(ctx, name, content)
}

// Of two that write to one backup one is refused, also when it was there first and was only
// slow; what the other makes is whole.
func TestTwoWriters(t *testing.T) {
	seal, keys := newKey(t)
	for _, to := range []*Seal{nil, seal} {
		for _, s := range []Store{newMemory(), onDisk(t)} {
			for _, done := range []bool{false, true} {
				m, want := about(1), content(5*small)
				now := epoch
				w := Writing{Store: s, Manifest: m, Seal: to, Now: func() time.Time { now = now.Add(time.Second); return now }}
				a, err := w.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if _, err := w.Begin(t.Context()); volume.CodeOf(err) != volume.CodeConflict || !strings.Contains(err.Error(), "being made") {
					t.Errorf("a second one: %v", err)
				}
				now = now.Add(aliveFor)
				b, err := w.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if done {
					if _, err := b.Write(t.Context(), bytes.NewReader(want)); err != nil {
						t.Fatal(err)
					}
				}
				if _, err := a.Write(t.Context(), bytes.NewReader(want)); volume.CodeOf(err) != volume.CodeConflict {
					t.Errorf("the slow one, done %v: %v", done, err)
				}
				if !done {
					if _, err := b.Write(t.Context(), bytes.NewReader(want)); err != nil {
						t.Fatal(err)
					}
				}
				all, err := Load(t.Context(), s)
				if err != nil || len(all.Backups) != 1 {
					t.Fatal(all, err)
				}
				if got, err := io.ReadAll(Stream(t.Context(), s, all.Backups[0], keys)); err != nil || !bytes.Equal(got, want) {
					t.Errorf("read %d bytes, %v", len(got), err)
				}
				if err := Remove(t.Context(), s, all.Backups[0], now.Add(time.Hour)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if one, two := part("a/b"), part("a/b"); one == two {
		t.Error("two write to one file")
	}
}

// Whose answer was lost has finished all the same, and what cannot be swept is only told.
func TestAnswerLost(t *testing.T) {
	s := &lossy{memory: newMemory()}
	m, err := Writing{Store: s, Manifest: about(1), Now: clock}.Write(t.Context(), bytes.NewReader(content(100)))
	if err != nil {
		t.Fatal(err)
	}
	if err := Verify(t.Context(), s, m, nil, nil); err != nil || len(s.objects) != len(m.Chunks)+1 {
		t.Errorf("%v; left are %q", err, names(t, s))
	}
	var told error
	stuck := &unremovable{memory: newMemory(), name: about(1).object(partialName)}
	if _, err := (Writing{Store: stuck, Manifest: about(1), Now: clock, Warn: func(err error) { told = err }}).Write(t.Context(), bytes.NewReader(content(100))); err != nil || !errors.Is(told, errFull) {
		t.Error(err, told)
	}
}

type lossy struct{ *memory }

func (l *lossy) PutNew(ctx context.Context, name string, content []byte) error {
	return errors.Join(l.memory.PutNew(ctx, name, content), fs.ErrExist) // as one that was tried again hears
}

// A store that takes nothing more can be emptied; what is cut short there is found.
func TestRemoveFromFull(t *testing.T) {
	s := newMemory()
	m := write(t, s, about(1), nil, content(300))
	s.failAt = 1
	stuck := &unremovable{memory: s, name: m.object(chunkName(1, m.Chunks[1].Sum))}
	if err := Remove(t.Context(), stuck, m, epoch); !errors.Is(err, errFull) {
		t.Error(err)
	}
	all, err := Load(t.Context(), s)
	if err != nil || len(all.Backups) != 1 || all.Restorable(all.Backups[0]) == nil {
		t.Fatal(all, err)
	}
	if err := Remove(t.Context(), s, all.Backups[0], epoch); err != nil || len(s.objects) > 0 {
		t.Errorf("%v; left are %q", err, names(t, s))
	}
	// What a crash left of an object that never was whole goes as well.
	d := onDisk(t).(*dir)
	m = write(t, d, about(1), nil, content(300))
	if err := d.root.WriteFile(part(m.object("000009-x")), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Remove(t.Context(), d, m, epoch); err != nil {
		t.Error(err)
	}
	if left, err := fs.ReadDir(d.root.FS(), "."); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}

// Who was taken over after its last piece does not finish either.
func TestTakenOverAtTheEnd(t *testing.T) {
	s := newMemory()
	w := Writing{Store: s, Manifest: about(1), Now: clock, Resume: true}
	other := func() {
		if _, err := w.Begin(t.Context()); err != nil {
			t.Error(err)
		}
	}
	_, err := w.Write(t.Context(), io.MultiReader(bytes.NewReader(content(100)), &during{strings.NewReader(""), other}))
	if volume.CodeOf(err) != volume.CodeConflict || has(s.lengths(), about(1).object(manifestName)) {
		t.Error(err)
	}
}

// afterPut does something when the first object was put.
type afterPut struct {
	*memory
	do func()
}

func (a *afterPut) Put(ctx context.Context, name string, content []byte) error {
	err := a.memory.Put(ctx, name, content)
	if do := a.do; do != nil {
		a.do = nil
		do()
	}
	return err
}

// many is a store that knows how many pieces are on their way to it, and lets none through before
// its gate is opened.
type many struct {
	*memory
	mu        sync.Mutex
	now, most int
	gate      chan struct{} // nil: there is none
	fails     string        // what has this in its name is not stored
}

func (m *many) Put(ctx context.Context, name string, content []byte) error {
	if !strings.Contains(path.Base(name), "-") {
		return m.memory.Put(ctx, name, content)
	}
	m.mu.Lock()
	m.now++
	m.most = max(m.most, m.now)
	m.mu.Unlock()
	if m.gate != nil {
		<-m.gate
	}
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.now--
	}()
	if m.fails != "" && strings.Contains(name, m.fails) {
		return errFull
	}
	return m.memory.Put(ctx, name, content)
}

// Several pieces are on their way at a time, no more than asked for, and what they make is the same.
func TestUploads(t *testing.T) {
	seal, keys := newKey(t)
	want := content(20*small + 5)
	for _, to := range []*Seal{nil, seal} {
		synctest.Test(t, func(t *testing.T) {
			s := &many{memory: newMemory(), gate: make(chan struct{})}
			var last int64
			var m *Manifest
			var err error
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				m, err = Writing{Store: s, Manifest: about(1), Seal: to, Now: clock, Uploads: 4, Progress: func(stored, reused int64) {
					if stored+reused <= last {
						t.Errorf("%d after %d", stored+reused, last)
					}
					last = stored + reused
				}}.Write(t.Context(), bytes.NewReader(want))
			}()
			// None gets through, and all that may be on their way are.
			synctest.Wait()
			s.mu.Lock()
			most := s.most
			s.mu.Unlock()
			if most != 4 {
				t.Errorf("%d at a time", most)
			}
			close(s.gate)
			<-ended
			if err != nil || last != int64(len(want)) {
				t.Fatalf("%d bytes in the end, %v", last, err)
			}
			if got, err := io.ReadAll(Stream(t.Context(), s, m, keys)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("read %d bytes, %v", len(got), err)
			}
		})

		// One that fails ends it, with its reason; the same again stores only what is not there.
		s := &many{memory: newMemory(), fails: "/000005-"}
		_, err := Writing{Store: s, Manifest: about(1), Seal: to, Now: clock, Uploads: 4}.Write(t.Context(), bytes.NewReader(want))
		if !errors.Is(err, errFull) || has(s.lengths(), about(1).object(manifestName)) {
			t.Fatal(err)
		}
		var had int64 // of the stream
		for _, name := range names(t, s) {
			switch i, _, piece := strings.Cut(path.Base(name), "-"); {
			case piece && i == "000020":
				had += 5
			case piece:
				had += small
			}
		}
		s.fails = ""
		var reused int64
		m, err := Writing{Store: s, Manifest: about(1), Seal: to, Now: clock, Uploads: 4, Progress: func(_, n int64) { reused = n }}.Write(t.Context(), bytes.NewReader(want))
		if err != nil || had < 5*small || reused != had {
			t.Errorf("%d bytes were there, %d were not stored again, %v", had, reused, err)
		}
		if got, err := io.ReadAll(Stream(t.Context(), s, m, keys)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("read %d bytes, %v", len(got), err)
		}
	}
}

// Who writes is heard of also while one piece takes long, and ends when another one has taken over.
func TestHeardWhileSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &many{memory: newMemory(), gate: make(chan struct{})}
		w := Writing{Store: s, Manifest: about(1), Now: time.Now, Uploads: 1}
		ended := make(chan error)
		go func() {
			_, err := w.Write(t.Context(), bytes.NewReader(content(small)))
			ended <- err
		}()
		time.Sleep(2*aliveFor + renew/2) // not when it says that it writes: it would do so once more
		if _, err := w.Begin(t.Context()); volume.CodeOf(err) != volume.CodeConflict {
			t.Errorf("a second one, while the first is slow: %v", err)
		}
		other := w
		other.Resume = true
		if _, err := other.Begin(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * renew)
		close(s.gate)
		if err := <-ended; volume.CodeOf(err) != volume.CodeConflict {
			t.Errorf("who was taken over: %v", err)
		}
	})
}

// What Load keeps has no chunks; who reads it reads them again, and sees when it is not what it was.
func TestHeads(t *testing.T) {
	s := newMemory()
	want := content(5 * small)
	write(t, s, about(1), nil, want)
	head := func() *Manifest {
		t.Helper()
		all, err := Load(t.Context(), s)
		if err != nil || len(all.Backups) != 1 {
			t.Fatal(all, err)
		}
		return all.Backups[0]
	}
	m := head()
	if got, err := io.ReadAll(Stream(t.Context(), s, m, nil)); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	name := m.object(manifestName)
	was, all := bytes.Clone(s.objects[name]), maps.Clone(s.objects)
	for what, harm := range map[string]func(){
		"gone":    func() { delete(s.objects, name) },
		"flipped": func() { s.objects[name][len(was)/2] ^= 1 },
		"another": func() {
			// All of that one is there, of the same snapshot, time and size.
			other := newMemory()
			x := about(1)
			x.Options = nil
			write(t, other, x, nil, append(content(5 * small)[1:], 0))
			maps.Copy(s.objects, other.objects)
		},
	} {
		harm()
		got, err := io.ReadAll(Stream(t.Context(), s, m, nil))
		if err == nil || len(got) > 0 || Verify(t.Context(), s, m, nil, nil) == nil || Complete(t.Context(), s, m) == nil {
			t.Errorf("%s: read %d bytes, %v", what, len(got), err)
		}
		s.objects = maps.Clone(all)
		s.objects[name] = bytes.Clone(was)
	}

	// What is next to it and none of it is seen, and goes.
	if m.Rest() {
		t.Errorf("more than it needs: %q", names(t, s))
	}
	s.objects[m.object(clearName(3))] = []byte("x")
	if m = head(); !m.Rest() {
		t.Error("nothing is seen beside it")
	}
	if err := Sweep(t.Context(), s, m); err != nil || len(s.objects) != m.Pieces()+1 {
		t.Errorf("%v; left are %q", err, names(t, s))
	}
	if err := Verify(t.Context(), s, head(), nil, nil); err != nil {
		t.Error(err)
	}
}
