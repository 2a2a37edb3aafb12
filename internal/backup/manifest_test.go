package backup

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func encoded(t testing.TB, m *Manifest) []byte {
	t.Helper()
	b, err := m.encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestManifestRefused(t *testing.T) {
	good := func() *Manifest {
		m := about(1)
		m.Size, m.Chunks = small+1, []Chunk{{small, small, sumOf(nil)}, {1, 1, sumOf(nil)}}
		return m
	}
	if m, err := parse(encoded(t, good()), true); err != nil || m.Size != small+1 {
		t.Fatal(m, err)
	}
	for what, harm := range map[string]func(*Manifest){
		"id":             func(m *Manifest) { m.ID = "../../x" },
		"volume":         func(m *Manifest) { m.Volume = "../../../../x" },
		"name":           func(m *Manifest) { m.Name = "a/b" },
		"snapshot":       func(m *Manifest) { m.Snapshot.GUID = 0 },
		"base":           func(m *Manifest) { m.Base = &Base{ID: "x", GUID: 1} },
		"base guid":      func(m *Manifest) { m.Base = &Base{ID: about(2).ID} },
		"own base":       func(m *Manifest) { m.Base = &Base{ID: m.ID, GUID: 1} },
		"same snapshot":  func(m *Manifest) { m.Base = &Base{ID: about(2).ID, GUID: m.Snapshot.GUID} },
		"sum":            func(m *Manifest) { m.Chunks[0].Sum = "../x" },
		"size":           func(m *Manifest) { m.Size++ },
		"no chunks":      func(m *Manifest) { m.Size, m.Chunks = 0, nil },
		"short chunk":    func(m *Manifest) { m.Chunks[0].Size--; m.Chunks[0].Stored--; m.Size-- },
		"negative chunk": func(m *Manifest) { m.Chunks[1].Size, m.Chunks[1].Stored, m.Size = -1, -1, small-1 },
		"large chunk":    func(m *Manifest) { m.Chunks[1].Size, m.Chunks[1].Stored, m.Size = small+1, small+1, 2*small+1 },
		"large chunks":   func(m *Manifest) { m.ChunkSize = 1 << 40 },
		"no chunk size":  func(m *Manifest) { m.ChunkSize = 0 },
		"stored":         func(m *Manifest) { m.Chunks[0].Stored++ },
		"stored large":   func(m *Manifest) { m.Recipients, m.Chunks[0].Stored = []string{"age1"}, 1<<40 },
	} {
		m := good()
		harm(m)
		if _, err := parse(encoded(t, m), true); err == nil || !strings.Contains(err.Error(), "makes no sense") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := parse(encoded(t, good()), false); err == nil {
		t.Error("what is not finished has chunks")
	}
	b := encoded(t, good())
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 1
		if _, err := parse(bad, true); err == nil {
			t.Fatalf("byte %d of %q does not matter", i, b)
		}
	}
	for n := range b {
		if _, err := parse(b[:n], true); err == nil {
			t.Fatalf("the first %d bytes are taken for all", n)
		}
	}
	newer := bytes.Replace(b, []byte(" 1 "), []byte(" 3 "), 1)
	if _, err := parse(newer, true); err == nil || !strings.Contains(err.Error(), "use a newer one") {
		t.Error(err)
	}
	body := []byte(`{"id":"x","future":1}`)
	if _, err := parse(append(fmt.Appendf(nil, "%s 1 %s\n", magic, sumOf(body)), body...), true); err == nil {
		t.Error("a field that is not known does not matter")
	}
}

// What is parsed makes sense and is written again as what it is, and nothing panics. The
// checksum is made to fit, for otherwise nothing would get past it.
func FuzzManifest(f *testing.F) {
	m := about(1)
	m.Size, m.Chunks, m.Base = small+1, []Chunk{{small, small, sumOf(nil)}, {1, 1, sumOf(nil)}}, &Base{ID: about(2).ID, GUID: 7}
	b, err := m.encode(nil)
	if err != nil {
		f.Fatal(err)
	}
	_, body, _ := bytes.Cut(b, []byte("\n"))
	f.Add(body, true)
	f.Add([]byte("{}"), false)
	f.Add([]byte(`{"id":"20260304T120000Z-0000000a","chunks":[{"size":9223372036854775807,"stored":9223372036854775807}]}`), true)
	f.Fuzz(func(t *testing.T, body []byte, whole bool) {
		parse(body, whole)
		m, err := parse(append(fmt.Appendf(nil, "%s %d %s\n", magic, version, sumOf(body)), body...), whole)
		if err != nil {
			return
		}
		again, err := m.encode(nil)
		if err != nil {
			t.Fatal(err)
		}
		n, err := parse(again, whole)
		if err != nil {
			t.Fatalf("%q is written as %q, which is not read: %v", body, again, err)
		}
		if twice := encoded(t, n); !bytes.Equal(twice, again) {
			t.Errorf("%q and %q", again, twice)
		}
		var size int64
		for _, c := range m.Chunks {
			size += c.Size
		}
		if whole && size != m.Size || strings.Contains(m.prefix(), "..") || m.Stored() < size {
			t.Errorf("%+v makes no sense", m)
		}
	})
}
