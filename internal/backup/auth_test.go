package backup

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/volume"
)

func secret(t testing.TB, text string) *Auth {
	t.Helper()
	a, err := ParseAuth(strings.NewReader(text + strings.Repeat("x", minAuth) + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func writeWith(t testing.TB, s Store, m *Manifest, seal *Seal, a *Auth, b []byte) (*Manifest, error) {
	return Writing{Store: s, Manifest: m, Seal: seal, Auth: a, Now: clock}.Write(t.Context(), bytes.NewReader(b))
}

func on(n, base int) *Manifest {
	m := about(n)
	m.Base = &Base{ID: about(base).ID, GUID: about(base).Snapshot.GUID}
	return m
}

func TestParseAuth(t *testing.T) {
	for text, ok := range map[string]bool{"": false, strings.Repeat("a", minAuth-1) + "\n\n": false, strings.Repeat("a", minAuth): true, strings.Repeat("a", 5000): false} {
		if a, err := ParseAuth(strings.NewReader(text)); ok != (err == nil) || !ok && volume.CodeOf(err) != volume.CodeInvalid {
			t.Errorf("%.40q: %v, %v", text, a, err)
		}
	}
	if a, b := secret(t, "a"), secret(t, " a"); a.mark("x") != b.mark("x") || a.mark("x") == secret(t, "b").mark("x") {
		t.Error("the space around it counts, or what is in it does not")
	}
}

// Who may write to a store and has no secret can make nothing there that passes for what was
// made with it.
func TestAuth(t *testing.T) {
	ours, theirs := secret(t, "ours"), secret(t, "theirs")
	seal, _ := newKey(t)
	s := newMemory()
	var made []*Manifest
	for i, m := range []*Manifest{about(1), on(2, 1), on(3, 2)} {
		done, err := writeWith(t, s, m, seal, ours, content((3+i)*small))
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, done)
	}
	was := maps.Clone(s.objects)
	two := made[1].object(manifestName)
	body := func(b []byte) []byte { _, body, _ := bytes.Cut(b, []byte("\n")); return body }
	// with is a body with a first line of its own, but for the mark.
	with := func(body []byte, mark string) []byte {
		return append(fmt.Appendf(nil, "%s %d %s %s\n", magic, marked, sumOf(body), mark), body...)
	}
	mark := func(b []byte) string {
		head, _, _ := strings.Cut(string(b), "\n")
		return strings.Fields(head)[3]
	}
	proven := func() (out string) {
		t.Helper()
		all, err := Load(t.Context(), s)
		if err != nil || len(all.Backups) != 3 || len(all.Broken) > 0 {
			t.Fatal(all, err)
		}
		for _, m := range all.Backups {
			if m.MadeWith(nil) == m.Marked() || (*Auth)(nil).Refused(m) != nil || (ours.Refused(m) == nil) != m.MadeWith(ours) {
				t.Errorf("%s: %v", m.Snapshot.Name, ours.Refused(m))
			}
			if m.MadeWith(ours) {
				out += m.Snapshot.Name[1:]
			}
		}
		return out
	}
	if got := proven(); got != "123" {
		t.Fatalf("made with it: %s", got)
	}
	for what, forged := range map[string][]byte{
		"without a mark":                        append(fmt.Appendf(nil, "%s %d %s\n", magic, version, sumOf(body(was[two]))), body(was[two])...),
		"the mark of another":                   with(body(was[two]), mark(was[made[0].object(manifestName)])),
		"its mark, and options that it had not": with(bytes.Replace(body(was[two]), []byte(`"replicas": "2"`), []byte(`"replicas": "0"`), 1), mark(was[two])),
		"its mark, and another base":            with(bytes.Replace(body(was[two]), []byte(about(1).ID), []byte(about(4).ID), 1), mark(was[two])),
		"its mark, and a piece of another":      with(bytes.Replace(body(was[two]), []byte(made[1].Chunks[0].Sum), []byte(made[0].Chunks[0].Sum), 1), mark(was[two])),
		"the mark of another secret":            with(body(was[two]), theirs.mark(manifestName, sumOf(body(was[two])))),
	} {
		if bytes.Equal(forged, was[two]) {
			t.Fatalf("%s: nothing is forged", what)
		}
		s.objects[two] = forged
		if got := proven(); got != "13" {
			t.Errorf("%s: made with it are %s", what, got)
		}
		// Nothing begins to stand on it.
		all, err := Load(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		if got := short(all.Bases(shop, 9, seal.Recipients(), ours)); strings.Contains(got, "2") || strings.Contains(got, "3") {
			t.Errorf("%s: bases are %s", what, got)
		}
		if m, err := writeWith(t, s, on(4, 3), seal, ours, content(small)); volume.CodeOf(err) != volume.CodeRefused {
			t.Errorf("%s: %v is made on it, %v", what, m, err)
		}
		s.objects = maps.Clone(was)
	}
	if _, err := writeWith(t, s, on(4, 3), seal, ours, content(small)); err != nil {
		t.Error(err)
	}
}

// Pieces that are found are gone on with unread: who put them there without the secret is not believed.
func TestAuthResumed(t *testing.T) {
	a := secret(t, "")
	seal, keys := newKey(t)
	want := content(4*small + 1)
	for what, forge := range map[string]func(clear []byte, sum string) string{
		"as without a secret": func(clear []byte, sum string) string { return clearTag(about(1).ID, 1, clear) + " " + sum },
		"with another secret": func(clear []byte, sum string) string {
			return secret(t, "other").tag(clearTag(about(1).ID, 1, clear), sum) + " " + sum
		},
		"not at all": nil,
	} {
		s := newMemory()
		s.failAt = 11 // the mark, what it will be, and four pieces with a note each
		if m, err := writeWith(t, s, about(1), seal, a, want); err == nil {
			t.Fatal(m)
		}
		s.failAt = 0
		note := about(1).object(clearName(1))
		if s.objects[note] == nil {
			t.Fatalf("there are only %q", names(t, s))
		}
		if forge != nil {
			other, err := seal.seal(content(small))
			if err != nil {
				t.Fatal(err)
			}
			s.objects[about(1).object(chunkName(1, sumOf(other)))] = other
			s.objects[note] = []byte(forge(want[small:2*small], sumOf(other)) + "\n")
		}
		var reused int64
		m, err := Writing{Store: s, Manifest: about(1), Seal: seal, Auth: a, Now: clock, Progress: func(_, n int64) { reused = n }}.Write(t.Context(), bytes.NewReader(want))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(Stream(t.Context(), s, m, keys)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: read %d bytes, which are others, %v", what, len(got), err)
		}
		if (reused == 4*small) != (forge == nil) {
			t.Errorf("%s: %d bytes were not stored again", what, reused)
		}
	}
}

// What was not made with the secret is neither counted nor removed, and what it needs stays.
func TestAuthExpired(t *testing.T) {
	a := secret(t, "")
	c := catalog("1 2<1 3 4 5<4 6<3")
	for i, m := range c.Backups {
		if m.found.sum = sumOf([]byte{byte(i)}); i < 4 {
			m.found.mark = a.mark(manifestName, m.found.sum)
		}
	}
	for keep, want := range map[int]string{1: "2 1", 2: "2 1", 3: "", 4: ""} {
		if got, err := c.Expired(shop, keep, "", a); err != nil || short(got) != want {
			t.Errorf("keep %d: %s goes, %v; want %s", keep, short(got), err, want)
		}
	}
	if got, err := c.Expired(shop, 1, "", nil); err != nil || short(got) != "5 4 2 1" {
		t.Errorf("without a secret: %s goes, %v", short(got), err)
	}
	if got := short(c.Bases(shop, 9, nil, a)); got != "4 3 2 1" {
		t.Errorf("bases: %s", got)
	}
	if got := short(c.Bases(shop, 9, nil, nil)); got != "" {
		t.Errorf("bases without a secret: %s", got)
	}
}

func TestAuthArchive(t *testing.T) {
	a := secret(t, "")
	want := content(3 * small)
	archive := func(a *Auth, n int) []byte {
		t.Helper()
		var out bytes.Buffer
		w := NewArchive(&out, clock)
		if _, err := writeWith(t, w, about(1), nil, a, content(n)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	read := func(b []byte, a *Auth) ([]byte, error) {
		r, err := OpenArchive(bytes.NewReader(b), nil, a)
		if err != nil {
			return nil, err
		}
		return io.ReadAll(r.Stream())
	}
	good := archive(a, len(want))
	for _, with := range []*Auth{a, nil} {
		if got, err := read(good, with); err != nil || !bytes.Equal(got, want) {
			t.Errorf("read %d bytes, %v", len(got), err)
		}
	}
	plain := archive(nil, len(want))
	for what, b := range map[string][]byte{"without": plain, "with another": archive(secret(t, "other"), len(want))} {
		if got, err := read(b, a); volume.CodeOf(err) != volume.CodeRefused || len(got) > 0 {
			t.Errorf("made %s: read %d bytes, %v", what, len(got), err)
		}
	}
	// A beginning that was made with it, and another end.
	spliced := spliced(t, good, plain)
	if _, err := read(spliced, a); volume.CodeOf(err) != volume.CodeRefused {
		t.Errorf("another end: %v", err)
	}
	if got, err := read(spliced, nil); err != nil || !bytes.Equal(got, want) {
		t.Errorf("without asking: read %d bytes, %v", len(got), err)
	}
}

// spliced begins with the first object of one archive, and goes on with another.
func spliced(t testing.TB, begin, rest []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for k, from := range [][]byte{begin, rest} {
		r := tar.NewReader(bytes.NewReader(from))
		for i := 0; ; i++ {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if (i == 0) != (k == 0) {
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
