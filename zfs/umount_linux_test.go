package zfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	mountedRoot  = "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n"
	mountedOurs  = "80 22 0:50 / /v/one rw,noatime shared:40 - zfs tank/flocker/one rw,xattr,noacl\n"
	mountedOther = "81 22 0:51 / /v/two rw,noatime shared:41 - zfs tank/flocker/two rw,xattr,noacl\n"
)

// Only what is mounted plainly, and once, is unmounted without the command zfs.
func TestMountpointOf(t *testing.T) {
	const root, ours, other = mountedRoot, mountedOurs, mountedOther
	above := strings.ReplaceAll(strings.ReplaceAll(other, "/v/two", "/v/one"), "81 22", "81 80")
	for name, c := range map[string]struct{ mounts, want string }{
		"once":                     {root + other + ours, "/v/one"},
		"not":                      {root + other, ""},
		"nothing":                  {"", ""},
		"at two places":            {root + ours + strings.ReplaceAll(ours, "/v/one", "/mnt"), ""},
		"twice at one place":       {root + ours + ours, ""},
		"below another":            {root + ours + above, ""},
		"below one that was moved": {root + above + ours, ""}, // it is listed by when it was made
		"above another":            {root + strings.ReplaceAll(other, "/v/two", "/v/one") + strings.ReplaceAll(ours, "80 22", "80 81"), ""},
		"a directory of it":        {root + strings.ReplaceAll(ours, " / /v", " /data /v"), ""},
		"a place with a space":     {root + strings.ReplaceAll(ours, "/v/one", `/v\040x`), ""},
		"a file called like it":    {root + strings.ReplaceAll(ours, "- zfs", "- ext4"), ""},
		"a snapshot of it":         {root + strings.ReplaceAll(ours, "flocker/one", "flocker/one@s"), ""},
		"a name that begins so":    {root + strings.ReplaceAll(ours, "flocker/one", "flocker/one-1"), ""},
		"what nobody understands":  {root + ours + "what\n", ""},
	} {
		if got := mountpointOf(strings.NewReader(c.mounts), "tank/flocker/one"); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// What is plainly mounted, and is shared with nobody, the kernel is asked to unmount: plainly, too,
// as by zfs unmount. Whatever it does not do, or may not be asked, is left to zfs.
func TestUnmountByKernel(t *testing.T) {
	for name, c := range map[string]struct {
		mounts  string
		exports string   // what zfs notes that it exports; "-": that cannot be read
		shares  []string // and what it shares by SMB
		fails   error    // what the kernel says
		asked   bool     // the kernel
		done    bool     // by it
	}{
		"mounted":                 {mounts: mountedRoot + mountedOurs, asked: true, done: true},
		"others are exported":     {mounts: mountedRoot + mountedOurs, exports: "/v/two *(sec=sys,rw)\n", shares: []string{"path=/v/two\n"}, asked: true, done: true},
		"it is in use":            {mounts: mountedRoot + mountedOurs, fails: unix.EBUSY, asked: true},
		"it is not mounted":       {mounts: mountedRoot + mountedOther},
		"it is exported":          {mounts: mountedRoot + mountedOurs, exports: "/v/two *(rw)\n/v/one *(sec=sys,rw)\n"},
		"nobody knows":            {mounts: mountedRoot + mountedOurs, exports: "-"},
		"it is shared by SMB":     {mounts: mountedRoot + mountedOurs, shares: []string{"path=/v/two\n", "#VERSION 2\npath=/v/one\n"}},
		"the table cannot be had": {},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("PATH", dir) // no zfs: what is left to it fails
			var calls, told []string
			h := New(Options{Observe: func(op string, argv []string, _ time.Duration, err error) {
				told = append(told, fmt.Sprintf("%s %s %v", op, argv[0], err))
			}})
			h.kernel = kernel{
				unmount: func(at string, flags int) error {
					calls = append(calls, fmt.Sprintf("%s %#x", at, flags))
					return c.fails
				},
				mounts: filepath.Join(dir, "mountinfo"), exports: filepath.Join(dir, "exports"), shares: filepath.Join(dir, "shares"),
			}
			write := func(path, text string) {
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if c.mounts != "" {
				write(h.kernel.mounts, c.mounts)
			}
			switch c.exports {
			case "":
			case "-":
				if err := os.Mkdir(h.kernel.exports, 0o700); err != nil {
					t.Fatal(err)
				}
			default:
				write(h.kernel.exports, c.exports)
			}
			for i, text := range c.shares {
				if err := os.MkdirAll(h.kernel.shares, 0o700); err != nil {
					t.Fatal(err)
				}
				write(filepath.Join(h.kernel.shares, fmt.Sprint("s", i)), text)
			}

			err := h.Unmount(context.Background(), "tank/flocker/one")
			var want, wantTold []string
			if c.asked {
				// No other flag: not lazily (MNT_DETACH), which would hide who uses it, and not by force.
				want = []string{fmt.Sprintf("/v/one %#x", unix.UMOUNT_NOFOLLOW)}
				wantTold = []string{fmt.Sprintf("kernel-unmount umount2 %v", c.fails)}
			}
			if !slices.Equal(calls, want) {
				t.Errorf("the kernel was asked %q, want %q", calls, want)
			}
			if c.done && err != nil || !c.done && !errors.Is(err, ErrNoZFS) {
				t.Errorf("unmounted: %v; want it left to zfs: %v", err, !c.done)
			}
			if !c.done {
				wantTold = append(wantTold, fmt.Sprintf("unmount zfs %v", err))
			}
			if !slices.Equal(told, wantTold) {
				t.Errorf("told %q, want %q", told, wantTold)
			}
		})
	}
	if err := New(Options{}).Unmount(context.Background(), "no such"); err == nil {
		t.Error("an impossible name is taken")
	}
}
