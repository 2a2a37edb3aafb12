package daemon

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/browse"
)

// bindless stands for ZFS: what is "mounted" is made in the directory by a function. What is
// unmounted goes elsewhere, as it is: who has it open reads on.
type bindless struct {
	fill    func(dir string) error
	mounted []string
	refuse  error
	stays   error        // of an unmount
	after   func() error // a mount is done
	gone    string
}

func (b *bindless) MountSnapshot(_ context.Context, _, dir string) error {
	if b.refuse != nil {
		return b.refuse
	}
	b.mounted = append(b.mounted, dir)
	if err := b.fill(dir); err != nil || b.after == nil {
		return err
	}
	return b.after()
}

func (b *bindless) UnmountSnapshot(ctx context.Context, dir string) error {
	if b.stays != nil {
		return b.stays
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	i := slices.Index(b.mounted, dir)
	if i < 0 {
		return nil
	}
	b.mounted = slices.Delete(b.mounted, i, i+1)
	b.gone += "x"
	if err := os.Rename(dir, filepath.Join(filepath.Dir(filepath.Dir(dir)), b.gone)); err != nil {
		return err
	}
	return os.Mkdir(dir, 0o700)
}

// sampleTree makes one of each thing that ordinary users can make.
func sampleTree(dir string) error {
	at := func(name string) string { return filepath.Join(dir, name) }
	errs := []error{
		os.Mkdir(at("sub"), 0o750),
		os.WriteFile(at("sub/file"), []byte("content"), 0o640),
		os.WriteFile(at("a.b"), nil, 0o600),
		os.WriteFile(at("a"), []byte(strings.Repeat("x", 600<<10)), 0o600),
		os.Symlink("../etc/passwd", at("link")),
		unix.Mkfifo(at("fifo"), 0o600),
	}
	day := time.Date(2026, 1, 2, 3, 4, 5, 6007, time.UTC)
	for _, name := range []string{"sub/file", "a.b", "a", "fifo", "sub", ""} {
		errs = append(errs, os.Chtimes(at(name), day, day))
	}
	ts := []unix.Timespec{{Sec: day.Unix(), Nsec: 6007}, {Sec: day.Unix(), Nsec: 6007}}
	return errors.Join(append(errs, unix.UtimesNanoAt(unix.AT_FDCWD, at("link"), ts, unix.AT_SYMLINK_NOFOLLOW))...)
}

// Equal trees have equal sums; whatever is changed in one shows.
func TestSumSeesEveryChange(t *testing.T) {
	day := time.Date(2026, 1, 2, 3, 4, 5, 6007, time.UTC)
	// back gives a path and its directory the times they had.
	back := func(dir, name string, err error) error {
		return errors.Join(err, os.Chtimes(filepath.Join(dir, name), day, day), os.Chtimes(filepath.Dir(filepath.Join(dir, name)), day, day), os.Chtimes(dir, day, day))
	}
	changes := map[string]func(dir string) error{
		"nothing": func(string) error { return nil },
		"a byte": func(dir string) error {
			return back(dir, "sub/file", os.WriteFile(filepath.Join(dir, "sub/file"), []byte("Content"), 0))
		},
		"shorter": func(dir string) error { return back(dir, "a", os.Truncate(filepath.Join(dir, "a"), 100)) },
		"mode":    func(dir string) error { return os.Chmod(filepath.Join(dir, "sub"), 0o755) },
		"a time":  func(dir string) error { return os.Chtimes(filepath.Join(dir, "a.b"), day, day.Add(time.Nanosecond)) },
		"a name": func(dir string) error {
			return back(dir, "a.c", os.Rename(filepath.Join(dir, "a.b"), filepath.Join(dir, "a.c")))
		},
		"one more": func(dir string) error {
			return back(dir, "sub/new", os.WriteFile(filepath.Join(dir, "sub/new"), nil, 0o600))
		},
		"one less": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "a.b")), os.Chtimes(dir, day, day))
		},
		"a type": func(dir string) error {
			return back(dir, "a.b", errors.Join(os.Remove(filepath.Join(dir, "a.b")), unix.Mkfifo(filepath.Join(dir, "a.b"), 0o600)))
		},
		"a link": func(dir string) error {
			l := filepath.Join(dir, "link")
			ts := []unix.Timespec{{Sec: day.Unix(), Nsec: 6007}, {Sec: day.Unix(), Nsec: 6007}}
			return errors.Join(os.Remove(l), os.Symlink("../etc/shadow", l), unix.UtimesNanoAt(unix.AT_FDCWD, l, ts, unix.AT_SYMLINK_NOFOLLOW), os.Chtimes(dir, day, day))
		},
	}
	sum := func(t *testing.T, change func(string) error) string {
		z := &bindless{fill: func(dir string) error { return errors.Join(sampleTree(dir), change(dir)) }}
		trees := &osTrees{zfs: z, dir: filepath.Join(t.TempDir(), "verify")}
		tree, err := trees.Open(t.Context(), "tank/v@1")
		if err != nil {
			t.Fatal(err)
		}
		s, err := sumTree(t.Context(), tree, func(int) {})
		if err != nil {
			t.Fatal(err)
		}
		if s.Files < 6 || s.Bytes == 0 {
			t.Errorf("got %+v", s)
		}
		if err := tree.Close(); err != nil || len(z.mounted) > 0 {
			t.Errorf("closing: %v, mounted %q", err, z.mounted)
		}
		if left, _ := os.ReadDir(trees.dir); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		return s.SHA256
	}
	want := sum(t, changes["nothing"])
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			if got := sum(t, change); (got == want) != (name == "nothing") {
				t.Errorf("got %s, unchanged %s", got, want)
			}
		})
	}
}

// A tree may be deeper than a path may be long: each part of it is summed.
func TestSumOfDeepTree(t *testing.T) {
	const levels = 120 // of names that together are more than two paths' worth
	name := strings.Repeat("d", 80)
	sum := func(content string) api.Sum {
		z := &bindless{fill: func(dir string) error {
			at, err := unix.Open(dir, unix.O_DIRECTORY, 0)
			for range levels {
				if err == nil {
					err = unix.Mkdirat(at, name, 0o700)
				}
				if err != nil {
					break
				}
				var below int
				below, err = unix.Openat(at, name, unix.O_DIRECTORY, 0)
				unix.Close(at)
				at = below
			}
			if err != nil {
				return err
			}
			defer unix.Close(at)
			f, err := unix.Openat(at, "file", unix.O_CREAT|unix.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			_, err = unix.Write(f, []byte(content))
			return errors.Join(err, unix.Close(f))
		}}
		trees := &osTrees{zfs: z, dir: filepath.Join(t.TempDir(), "verify")}
		tree, err := trees.Open(t.Context(), "tank/v@1")
		if err != nil {
			t.Fatal(err)
		}
		open, _ := os.ReadDir("/proc/self/fd")
		s, err := sumTree(t.Context(), tree, func(int) {})
		if err != nil {
			t.Fatal(err)
		}
		if now, _ := os.ReadDir("/proc/self/fd"); len(now) > len(open) {
			t.Errorf("%d files are open, %d were before", len(now), len(open))
		}
		return s
	}
	if s := sum("content"); s.Files != levels+2 || s.Bytes != int64(len("content")) {
		t.Errorf("got %+v", s)
	}
}

func TestXattrsAreSummed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("v", 3000)
	for name, value := range map[string]string{"user.b": "2", "user.a": long} {
		if err := unix.Setxattr(file, name, []byte(value), 0); err != nil {
			t.Skipf("this filesystem takes no extended attributes: %v", err)
		}
	}
	got, err := xattrs(file)
	got = slices.DeleteFunc(got, func(x Xattr) bool { return !strings.HasPrefix(x.Name, "user.") })
	if want := []Xattr{{"user.a", long}, {"user.b", "2"}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
}

// What a crash left mounted is unmounted, and nothing that is just being opened.
func TestTidyTrees(t *testing.T) {
	z := &bindless{fill: sampleTree}
	trees := &osTrees{zfs: z, dir: filepath.Join(t.TempDir(), "verify")}
	if err := trees.Tidy(t.Context()); err != nil {
		t.Errorf("with nothing there: %v", err)
	}
	for range 2 {
		at, err := trees.place()
		if err == nil {
			err = z.MountSnapshot(t.Context(), "tank/v@1", at)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	again := &osTrees{zfs: z, dir: trees.dir} // flockd was killed, and is back
	z.after = func() error {
		z.after = nil
		return again.Tidy(t.Context())
	}
	used, err := again.Open(t.Context(), "tank/v@1")
	if err != nil {
		t.Fatal(err)
	}
	defer used.Close()
	if _, err := sumTree(t.Context(), used, func(int) {}); err != nil {
		t.Errorf("reading what was opened: %v", err)
	}
	if left, _ := os.ReadDir(trees.dir); len(left) > 0 || len(z.mounted) > 0 {
		t.Errorf("left behind: %v, mounted %q", left, z.mounted)
	}
}

// What is open is mounted nowhere: nothing of it outlives flockd.
func TestOpenTreeIsDetached(t *testing.T) {
	z := &bindless{fill: sampleTree}
	trees := &osTrees{zfs: z, dir: filepath.Join(t.TempDir(), "verify")}
	tree, err := trees.Open(t.Context(), "tank/v@1")
	if err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(trees.dir); len(left) > 0 || len(z.mounted) > 0 {
		t.Errorf("left behind: %v, mounted %q", left, z.mounted)
	}
	if sum, err := sumTree(t.Context(), tree, func(int) {}); err != nil || sum.Files == 0 {
		t.Errorf("reading it: %+v, %v", sum, err)
	}
	if err := tree.Close(); err != nil {
		t.Error(err)
	}
	if _, err := sumTree(t.Context(), tree, func(int) {}); err == nil {
		t.Error("it can be read when it is closed")
	}
}

// tmpfs stands for ZFS where a test may mount.
type tmpfs struct{}

func (tmpfs) MountSnapshot(_ context.Context, _, dir string) error {
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, dataDir), 0o700); err != nil {
		return err
	}
	return sampleTree(filepath.Join(dir, dataDir))
}

func (tmpfs) UnmountSnapshot(_ context.Context, dir string) error {
	return unix.Unmount(dir, unix.MNT_DETACH)
}

// The kernel gives what is detached to who has it open, by every way that is used here.
func TestDetachedMountIsRead(t *testing.T) {
	trees := &osTrees{zfs: tmpfs{}, dir: filepath.Join(t.TempDir(), "verify")}
	tree, err := trees.Open(t.Context(), "tank/v@1")
	if errors.Is(err, unix.EPERM) {
		t.Skip("nothing can be mounted here")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), trees.dir) {
		t.Errorf("it is still mounted, or %v", err)
	}
	if sum, err := sumTree(t.Context(), tree, func(int) {}); err != nil || sum.Files == 0 {
		t.Errorf("walking it: %+v, %v", sum, err)
	}
	files, err := tree.Files(false)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	// Of a volume that is all of its dataset it is everything.
	all, err := tree.Files(true)
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	if st, err := all.Stat(dataDir + "/sub/file"); err != nil || !st.Mode().IsRegular() {
		t.Errorf("all of the dataset does not have it: %v", err)
	}
	content, _, err := browse.Open(files, "sub/file")
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	if got, err := io.ReadAll(content); err != nil || string(got) != "content" {
		t.Errorf("a file of it: %q, %v", got, err)
	}
}

// What could not be closed is left to the next who tidies.
func TestTreeThatStaysIsTidied(t *testing.T) {
	z := &bindless{fill: sampleTree, stays: errors.New("busy")}
	trees := &osTrees{zfs: z, dir: filepath.Join(t.TempDir(), "verify")}
	if _, err := trees.Open(t.Context(), "tank/v@1"); !errors.Is(err, z.stays) {
		t.Errorf("opening: %v", err)
	}
	z.stays = nil
	if err := trees.Tidy(t.Context()); err != nil || len(z.mounted) > 0 {
		t.Errorf("tidying: %v, mounted %q", err, z.mounted)
	}
}

// Who asks may go away when the kernel has mounted already.
func TestInterruptedMountLeavesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	z := &bindless{fill: sampleTree}
	z.after = func() error { cancel(); return ctx.Err() }
	trees := &osTrees{zfs: z, dir: filepath.Join(t.TempDir(), "verify")}
	if _, err := trees.Open(ctx, "tank/v@1"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(trees.dir); len(left) > 0 || len(z.mounted) > 0 {
		t.Errorf("left behind: %v, mounted %q", left, z.mounted)
	}
}

func TestMountThatIsRefusedLeavesNothing(t *testing.T) {
	refused := errors.New("no")
	trees := &osTrees{zfs: &bindless{refuse: refused}, dir: filepath.Join(t.TempDir(), "verify")}
	if _, err := trees.Open(t.Context(), "tank/v@1"); !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(trees.dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Reading ends with its caller.
func TestSumIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	trees := &osTrees{zfs: &bindless{fill: sampleTree}, dir: filepath.Join(t.TempDir(), "verify")}
	tree, err := trees.Open(ctx, "tank/v@1")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := sumTree(ctx, tree, func(int) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that it was cancelled", err)
	}
	if err := tree.Close(); err != nil {
		t.Error(err)
	}
}
