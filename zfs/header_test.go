package zfs_test

import (
	"encoding/hex"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// golden reads a record written as hexadecimal digits, with prose after #.
func golden(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	var digits strings.Builder
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		digits.WriteString(strings.Join(strings.Fields(line), ""))
	}
	b, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return append(b, make([]byte, max(0, zfs.StreamHeaderSize-len(b)))...)
}

// A record byte for byte as the structure of OpenZFS lays it out.
func TestParseStreamHeader(t *testing.T) {
	full := golden(t, "begin-incremental.hex")
	want := zfs.StreamHeader{
		ToName: "tank/flocker/00000000000000aa@flk-1-9", ToGUID: 0xfedcba9876543210, FromGUID: 0x0123456789abcdef,
		Created: time.Unix(1_800_000_000, 0).UTC(), Type: zfs.StreamFilesystem,
	}
	got, err := zfs.ParseStreamHeader(full)
	if err != nil || got != want {
		t.Fatalf("got %+v, %v\nwant %+v", got, err, want)
	}
	if got.Snapshot() != "flk-1-9" {
		t.Errorf("snapshot %q", got.Snapshot())
	}
	// What the fake writes is the same record, to the byte.
	if made := zfsfake.BeginRecord(want); !slices.Equal(made, full) {
		t.Errorf("the fake writes\n%x\nwant\n%x", made, full)
	}

	for _, h := range []zfs.StreamHeader{
		{ToName: "tank/a", Compound: true, Type: zfs.StreamFilesystem},
		{ToName: "tank/a@b", Clone: true, FromGUID: 4},
		{ToName: "tank/a@b", Dedup: true},
		{ToName: "tank/a@b", Resuming: true, Raw: true, Redacted: true, Type: 3},
	} {
		h.Created = time.Unix(0, 0).UTC()
		if got, err := zfs.ParseStreamHeader(zfsfake.BeginRecord(h)); err != nil || got != h {
			t.Errorf("got %+v, %v\nwant %+v", got, err, h)
		}
	}

	for what, damage := range map[string]func(b []byte) []byte{
		"empty":          func(b []byte) []byte { return nil },
		"short":          func(b []byte) []byte { return b[:zfs.StreamHeaderSize-1] },
		"no magic":       func(b []byte) []byte { b[8]++; return b },
		"byte-swapped":   func(b []byte) []byte { slices.Reverse(b[8:16]); return b },
		"another record": func(b []byte) []byte { b[0] = 3; return b },
		"unknown kind":   func(b []byte) []byte { b[16] |= 3; return b },
		"endless name":   func(b []byte) []byte { return append(b[:56], strings.Repeat("a", 256)...) },
		"no snapshot":    func(b []byte) []byte { copy(b[56:], "tank/a\x00"); return b },
		"bad snapshot":   func(b []byte) []byte { copy(b[56:], "tank/a@b,c\x00"); return b },
	} {
		if h, err := zfs.ParseStreamHeader(damage(slices.Clone(full))); err == nil {
			t.Errorf("%s: read as %+v", what, h)
		}
	}
}

// Whatever comes, reading ends without panic, and what is read is within bounds.
func FuzzParseStreamHeader(f *testing.F) {
	f.Add(zfsfake.BeginRecord(zfs.StreamHeader{ToName: "tank/a@b", ToGUID: 1}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := zfs.ParseStreamHeader(b)
		if err == nil && !h.Compound && zfs.CheckSnapshot(h.ToName) != nil {
			t.Errorf("accepted the name %q", h.ToName)
		}
	})
}
