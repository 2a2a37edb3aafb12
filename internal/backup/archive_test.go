package backup

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/volume"
)

func archived(t testing.TB, m *Manifest, seal *Seal, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	a := NewArchive(&out, clock)
	write(t, a, m, seal, b)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func unarchived(b []byte, keys *Keys) ([]byte, error) {
	a, err := OpenArchive(bytes.NewReader(b), keys, nil)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(a.Stream())
}

func TestArchive(t *testing.T) {
	seal, keys := newKey(t)
	want := content(3*small + 1)
	for _, to := range []*Seal{nil, seal} {
		b := archived(t, about(1), to, want)
		if got, err := unarchived(b, keys); err != nil || !bytes.Equal(got, want) {
			t.Errorf("read %d bytes, %v", len(got), err)
		}
	}
	if got, err := unarchived(archived(t, about(1), seal, want), nil); volume.CodeOf(err) != volume.CodeInvalid || len(got) > 0 {
		t.Errorf("without a key: read %d bytes, %v", len(got), err)
	}
	// An increment alone is nothing.
	m := about(2)
	m.Base = &Base{ID: about(1).ID, GUID: 101}
	if _, err := OpenArchive(bytes.NewReader(archived(t, m, nil, want)), nil, nil); volume.CodeOf(err) != volume.CodeInvalid {
		t.Error(err)
	}
	for _, bad := range []string{"", "no tar", string(make([]byte, 4096))} {
		if _, err := OpenArchive(bytes.NewReader([]byte(bad)), nil, nil); volume.CodeOf(err) != volume.CodeInvalid {
			t.Errorf("%.10q: %v", bad, err)
		}
	}
}

// Unpacked it is a backup in a directory.
func TestArchiveUnpacked(t *testing.T) {
	want, dir := content(3*small+1), t.TempDir()
	r := tar.NewReader(bytes.NewReader(archived(t, about(1), nil, want)))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		name := filepath.Join(dir, filepath.FromSlash(h.Name))
		if err == nil {
			err = os.MkdirAll(filepath.Dir(name), 0o700)
		}
		if err == nil {
			err = os.WriteFile(name, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(t.Context(), dir, false)
	if err != nil {
		t.Fatal(err)
	}
	all, err := Load(t.Context(), s)
	if err != nil || len(all.Backups) != 1 || len(all.Partial) > 0 {
		t.Fatalf("found %+v, %v", all, err)
	}
	if got, err := io.ReadAll(Stream(t.Context(), s, all.Backups[0], nil)); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
}

// Whichever byte is another one, and wherever it ends, what is read to its end is what was
// written.
func TestArchiveDamage(t *testing.T) {
	want := content(2*small + 1)
	b := archived(t, about(1), nil, want)
	seen := 0
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 0x10
		got, err := unarchived(bad, nil)
		if err == nil && !bytes.Equal(got, want) || !bytes.HasPrefix(want, got) {
			t.Fatalf("with another byte %d: read %d bytes, %v", i, len(got), err)
		}
		if err != nil {
			seen++
		}
	}
	if seen < len(want) {
		t.Errorf("%d of %d bytes mattered", seen, len(b))
	}
	for n := 0; n < len(b)-1024; n += 100 { // the end of a tar is two empty blocks
		if got, err := unarchived(b[:n], nil); err == nil && !bytes.Equal(got, want) || !bytes.HasPrefix(want, got) {
			t.Fatalf("cut at %d: read %d bytes, %v", n, len(got), err)
		}
	}
	if _, err := unarchived(b[:len(b)/2], nil); err == nil {
		t.Error("half of it is all of it")
	}
}

// One that lacks a chunk, or ends as another one, is not whole, though all that is in it is.
func TestArchiveLacks(t *testing.T) {
	want := content(2*small + 1)
	lacks := func(b, end []byte, drop string) []byte {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		for _, in := range [][]byte{b, end} {
			r := tar.NewReader(bytes.NewReader(in))
			for {
				h, err := r.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				last := filepath.Base(h.Name) == manifestName
				if bytes.Equal(in, end) != last || strings.HasPrefix(filepath.Base(h.Name), drop) {
					continue
				}
				if err := w.WriteHeader(h); err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(w, r); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	b := archived(t, about(1), nil, want)
	later := about(1)
	later.Snapshot.GUID++
	for what, bad := range map[string][]byte{
		"the last chunk": lacks(b, slices.Concat(b, []byte{0}), "000002-"),
		"another end":    lacks(b, archived(t, later, nil, want), "nothing"),
	} {
		if got, err := unarchived(bad, nil); volume.CodeOf(err) != volume.CodeRefused {
			t.Errorf("%s: read %d bytes, %v", what, len(got), err)
		}
	}
	if got, err := unarchived(lacks(b, slices.Concat(b, []byte{0}), "nothing"), nil); err != nil || !bytes.Equal(got, want) {
		t.Errorf("all of it: read %d bytes, %v", len(got), err)
	}
}
