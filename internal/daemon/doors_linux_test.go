package daemon

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// The program that containers mount is a copy, is no door, and is another file only when it
// is another program.
func TestOSDoors(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "warm")
	open := func() (osDoors, os.FileInfo) {
		t.Helper()
		o, err := newDoors(dir)
		if err != nil {
			t.Fatal(err)
		}
		at, err := os.Stat(o.Program())
		if err != nil {
			t.Fatal(err)
		}
		return o, at
	}
	o, first := open()
	if same, err := alikeFiles("/proc/self/exe", o.Program()); err != nil || !same || first.Mode().Perm() != 0o755 {
		t.Errorf("the copy is the same: %v, %v, %v", same, err, first.Mode())
	}
	if _, again := open(); !os.SameFile(first, again) {
		t.Error("the same program is copied again")
	}
	f, err := os.OpenFile(o.Program(), os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt([]byte("old"), 100)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	_, now := open()
	if same, err := alikeFiles("/proc/self/exe", o.Program()); err != nil || !same || os.SameFile(first, now) {
		t.Errorf("another program was not replaced: %v, %v", same, err)
	}
	if err := os.Mkdir(filepath.Join(dir, "t0"), 0o700); err != nil {
		t.Fatal(err)
	}
	if all, err := o.All(); err != nil || len(all) != 1 || all[0] != "t0" {
		t.Errorf("the doors are %v, %v", all, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("there are %v, %v; want the program and a door", entries, err)
	}
	if got := o.Container("t0"); got != "" {
		t.Errorf("its container is %q before it was said", got)
	}
	if err := o.Name("t0", "id"); err != nil || o.Container("t0") != "id" {
		t.Errorf("its container is %q, %v", o.Container("t0"), err)
	}
	old := time.Now().Add(-3 * usedEvery)
	if err := os.Chtimes(filepath.Join(dir, "t0"), old, old); err != nil {
		t.Fatal(err)
	}
	if unused, err := o.Unused("t0"); err != nil || unused < 2*usedEvery {
		t.Errorf("it is unused for %v, %v", unused, err)
	}
	if err := o.Use("t0"); err != nil {
		t.Fatal(err)
	}
	if unused, err := o.Unused("t0"); err != nil || unused > usedEvery {
		t.Errorf("used, it is unused for %v, %v", unused, err)
	}
}
