package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

const coveredName = "00000000000000a1"

// drawn are places whose attributes are remembered only.
type drawn struct {
	immutable map[string]bool
	unknown   bool // the file system does not know the attribute
	busy      bool // nothing can be removed
}

func (d *drawn) places() places {
	d.immutable = map[string]bool{}
	return places{(*os.File).Chmod, func(f *os.File, on bool) error {
		if d.unknown {
			return syscall.EINVAL // of some that is all they say
		}
		d.immutable[filepath.Base(f.Name())] = on
		return nil
	}, func(name string) error {
		if d.immutable[filepath.Base(name)] {
			return syscall.EPERM
		}
		if d.busy {
			return syscall.EBUSY
		}
		return os.Remove(name)
	}}
}

// rootOnly skips what only root can: to open what nobody may read.
func rootOnly(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root opens a directory that nobody may read")
	}
}

func mode(t *testing.T, path string) os.FileMode {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Mode().Perm()
}

// On a file system that can, nobody writes to what is covered, root neither.
func TestCoverReal(t *testing.T) {
	rootOnly(t)
	base := t.TempDir()
	at := filepath.Join(base, "volumes", coveredName)
	none := func(string) bool { return false }
	t.Cleanup(func() {
		if err := realPlaces.uncover(filepath.Dir(at), none); err != nil {
			t.Error(err)
		}
	})
	for range 2 { // again, as for the next mount
		err := realPlaces.cover(at)
		if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, os.ErrPermission) {
			t.Skipf("no directory can be made immutable here: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if m := mode(t, at); m != 0 {
		t.Errorf("its mode is %v", m)
	}
	for what, err := range map[string]error{
		"a file":        os.WriteFile(filepath.Join(at, "f"), nil, 0o600),
		"a directory":   os.Mkdir(filepath.Join(at, "d"), 0o700),
		"a removal":     os.Remove(at),
		"another mode":  os.Chmod(at, 0o777),
		"another owner": os.Chown(at, 7, 7),
	} {
		if !errors.Is(err, os.ErrPermission) {
			t.Errorf("%s in it: %v", what, err)
		}
	}
	// It can be looked at, as zfs does before it mounts something there.
	if list, err := os.ReadDir(at); err != nil || len(list) != 0 {
		t.Errorf("in it are %v, %v", list, err)
	}
	if err := realPlaces.uncover(filepath.Dir(at), func(name string) bool { return name == coveredName }); err != nil || mode(t, at) != 0 {
		t.Errorf("one to keep: %v", err)
	}
	if err := realPlaces.uncover(filepath.Dir(at), none); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(at); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is left: %v", err)
	}
}

func TestCover(t *testing.T) {
	rootOnly(t)
	base := t.TempDir()
	var d drawn
	p := d.places()
	at := filepath.Join(base, coveredName)
	none := func(string) bool { return false }
	if err := p.cover(at); err != nil || !d.immutable[coveredName] || mode(t, at) != 0 {
		t.Errorf("%v, mode %v, immutable: %v", err, mode(t, at), d.immutable)
	}
	// Made by zfs mount, before flockd did this.
	old := filepath.Join(base, "00000000000000a2")
	if err := errors.Join(os.Mkdir(old, 0o755), p.cover(old)); err != nil || mode(t, old) != 0 {
		t.Errorf("%v, mode %v", err, mode(t, old))
	}
	// What somebody wrote is said, and stays.
	full := filepath.Join(base, "00000000000000a3")
	if err := errors.Join(os.Mkdir(full, 0o755), os.WriteFile(filepath.Join(full, "f"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := p.cover(full); err == nil || !strings.Contains(err.Error(), "f in "+full+" was written") || !strings.Contains(err.Error(), "chattr -i "+full) || mode(t, full) != 0 {
		t.Errorf("%v, mode %v", err, mode(t, full))
	}
	// Nobody's but cover's are touched.
	mine := filepath.Join(base, "00000000000000a4")
	if err := os.Mkdir(mine, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(mine, filepath.Join(base, "00000000000000a5")); err != nil {
		t.Fatal(err)
	}
	if err := p.cover(filepath.Join(base, "00000000000000a5")); err == nil || mode(t, mine) != 0o755 {
		t.Errorf("a link to elsewhere: %v, mode %v", err, mode(t, mine))
	}
	// Where something is mounted just now, it stays as it was.
	d.busy = true
	if err := p.uncoverOne(at); !errors.Is(err, syscall.EBUSY) || !d.immutable[coveredName] || mode(t, at) != 0 {
		t.Errorf("%v, mode %v, immutable: %v", err, mode(t, at), d.immutable)
	}
	d.busy = false
	err := p.uncover(base, none)
	if err == nil || !strings.Contains(err.Error(), full+" has something in it") || mode(t, full) != 0o700 {
		t.Errorf("%v", err)
	}
	var left []string
	list, err := os.ReadDir(base)
	for _, e := range list {
		left = append(left, e.Name())
	}
	if want := []string{"00000000000000a3", "00000000000000a4", "00000000000000a5"}; err != nil || !slices.Equal(left, want) || mode(t, mine) != 0o755 {
		t.Errorf("left are %v, want %v", left, want)
	}
	if d.immutable[coveredName] || d.immutable["00000000000000a2"] || d.immutable["00000000000000a3"] {
		t.Errorf("still immutable: %v", d.immutable)
	}
	if err := p.uncover(filepath.Join(base, "nothing"), none); err != nil {
		t.Errorf("nothing was ever mounted: %v", err)
	}
}

// Where the file system does not know the attribute, that is said, the mode is as it should be, and
// it goes as any other.
func TestCoverUnknown(t *testing.T) {
	rootOnly(t)
	base := t.TempDir()
	d := drawn{unknown: true}
	p := d.places()
	at := filepath.Join(base, coveredName)
	if err := p.cover(at); !errors.Is(err, syscall.EINVAL) || mode(t, at) != 0 {
		t.Errorf("%v, mode %v", err, mode(t, at))
	}
	if err := p.uncover(base, func(string) bool { return false }); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(at); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is left: %v", err)
	}
}

// What is mounted is not touched.
func TestCoverMounted(t *testing.T) {
	touched := 0
	p := places{func(*os.File, os.FileMode) error { touched++; return nil }, func(*os.File, bool) error { touched++; return nil }, func(string) error { touched++; return nil }}
	if err := p.cover("/proc"); err != nil || touched > 0 {
		t.Errorf("%v, and it was touched", err)
	}
	if err := p.uncoverOne("/proc"); err != nil || touched > 0 {
		t.Errorf("%v, and it was touched", err)
	}
}
