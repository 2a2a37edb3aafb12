package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/volume"
)

func TestMakeData(t *testing.T) {
	spec := volume.Spec{UID: os.Getuid(), GID: os.Getgid(), Mode: 0o1750}
	tests := []struct {
		name    string
		before  func(root string) error
		refused bool
		mode    os.FileMode
	}{
		{"new", func(string) error { return nil }, false, 0o750 | os.ModeSticky},
		{"a crash in between", func(root string) error { return os.Mkdir(filepath.Join(root, "data.new"), 0o700) }, false, 0o750 | os.ModeSticky},
		{"there already", func(root string) error { return os.Mkdir(filepath.Join(root, "data"), 0o700) }, false, 0o700},
		{"a link to elsewhere", func(root string) error { return os.Symlink(os.TempDir(), filepath.Join(root, "data")) }, true, 0},
		{"a file", func(root string) error { return os.WriteFile(filepath.Join(root, "data"), nil, 0o600) }, true, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			if err := tt.before(root); err != nil {
				t.Fatal(err)
			}
			dir, err := makeData(root, spec)
			if tt.refused {
				if err == nil {
					t.Fatalf("it gave %s", dir)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			st, err := os.Lstat(dir)
			if err != nil || st.Mode() != tt.mode|os.ModeDir {
				t.Errorf("mode %v, want %v (%v)", st.Mode(), tt.mode, err)
			}
		})
	}
}

// proc makes a process of a machine that is not there.
func proc(t *testing.T, dir, pid, comm, maps string, links map[string]string) {
	t.Helper()
	at := filepath.Join(dir, pid)
	err := os.MkdirAll(filepath.Join(at, "fd"), 0o700)
	for name, to := range links {
		if err == nil {
			err = os.Symlink(to, filepath.Join(at, name))
		}
	}
	for name, text := range map[string]string{"comm": comm + "\n", "maps": maps} {
		if err == nil {
			err = os.WriteFile(filepath.Join(at, name), []byte(text), 0o600)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Whoever is in a file system, or has a file of it open or mapped, uses it.
func TestUsersBelow(t *testing.T) {
	dir := t.TempDir()
	elsewhere := map[string]string{"cwd": "/", "root": "/", "exe": "/bin/sh", "fd/0": "/dev/null", "fd/1": "/srv/pgdata2/f", "fd/2": "pipe:[7]"}
	with := func(name, to string) map[string]string {
		out := map[string]string{}
		for k, v := range elsewhere {
			out[k] = v
		}
		out[name] = to
		return out
	}
	proc(t, dir, "1", "init", "00400000-00401000 r-xp 00000000 08:01 7 /bin/sh\n", elsewhere)
	proc(t, dir, "2", "in", "", with("cwd", "/srv/pgdata"))
	proc(t, dir, "3", "reader", "", with("fd/3", "/srv/pgdata/base/1"))
	proc(t, dir, "4", "mapper", "7f00-7f01 rw-s 00000000 00:2a 9 /srv/pgdata/a file (deleted)\n", elsewhere)
	proc(t, dir, "5", "jailed", "", with("root", "/srv/pgdata/jail"))
	proc(t, dir, "6", "program", "", with("exe", "/srv/pgdata/bin/x"))
	proc(t, dir, "7", "near", "7f00-7f01 rw-s 00000000 00:2a 9 /srv/pgdata2/f\n", elsewhere)
	if err := os.MkdirAll(filepath.Join(dir, "8"), 0o700); err != nil { // it has ended meanwhile
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "uptime"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := usersBelow(dir, "/srv/pgdata")
	want := "process 2 (in), process 3 (reader), process 4 (mapper), process 5 (jailed), process 6 (program)"
	if err != nil || strings.Join(got, ", ") != want {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := usersBelow(filepath.Join(dir, "nothing"), "/srv/pgdata"); err == nil {
		t.Error("that nobody could be asked is no error")
	}
}

// A volume that is all of its dataset is given out, and read, as it is.
func TestWholeDataset(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "f"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir, err := makeData(root, volume.Spec{UID: 7, Mode: 0o700}.MakeWhole())
	if err != nil || dir != root {
		t.Errorf("given out is %s, %v", dir, err)
	}
	if list, err := os.ReadDir(root); err != nil || len(list) != 1 {
		t.Errorf("in it are %v, %v", list, err)
	}
	top, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	tree := &osTree{top}
	defer tree.Close()
	if _, err := tree.Files(false); !os.IsNotExist(err) {
		t.Errorf("any other has no files yet: %v", err)
	}
	files, err := tree.Files(true)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	if st, err := files.Stat("f"); err != nil || st.Size() != 4 {
		t.Errorf("its file: %v, %v", st, err)
	}
}
