package daemon

import (
	"os"
	"path/filepath"
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
