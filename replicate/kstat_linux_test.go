package replicate

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

func TestKstats(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, "tank", name)
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("objset-0x36", `28 1 0x01 7 2160 5214787391 73405258558961
name                            type data
dataset_name                    7    tank/flocker/00000000000000aa
writes                          4    12
nwritten                        4    49152
reads                           4    3
nread                           4    100
nunlinks                        4    2
nunlinked                       4    2
`)
	write("objset-0x1", "garbage\n\n")
	write("io", "not one of them\n")
	if err := os.Symlink("unmounted", filepath.Join(dir, "tank", "objset-0x2")); err != nil {
		t.Fatal(err)
	}
	got, err := Kstats{Pool: "tank", Dir: dir}.Counters(context.Background())
	if err != nil || len(got) != 1 || got["tank/flocker/00000000000000aa"] != 14 {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err := (Kstats{Pool: "other", Dir: dir}).Counters(context.Background()); err != nil || len(got) != 0 {
		t.Errorf("pool without files: %v, %v", got, err)
	}
	// A directory is there, and cannot be read.
	if err := os.Mkdir(filepath.Join(dir, "tank", "objset-0x3"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := (Kstats{Pool: "tank", Dir: dir}).Counters(context.Background()); err == nil {
		t.Errorf("with one that cannot be read: %v, want an error", got)
	}
}
