package zfs

import (
	"context"
	"strings"
	"testing"
	"time"
)

// Only what is mounted plainly, and once, is unmounted without the command zfs.
func TestMountpointOf(t *testing.T) {
	const (
		root  = "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n"
		ours  = "80 22 0:50 / /v/one rw,noatime shared:40 - zfs tank/flocker/one rw,xattr,noacl\n"
		other = "81 22 0:51 / /v/two rw,noatime shared:41 - zfs tank/flocker/two rw,xattr,noacl\n"
	)
	for name, c := range map[string]struct{ mounts, want string }{
		"once":                    {root + other + ours, "/v/one"},
		"not":                     {root + other, ""},
		"nothing":                 {"", ""},
		"at two places":           {root + ours + strings.ReplaceAll(ours, "/v/one", "/mnt"), ""},
		"twice at one place":      {root + ours + ours, ""},
		"below another":           {root + ours + strings.ReplaceAll(other, "/v/two", "/v/one"), ""},
		"above another":           {root + strings.ReplaceAll(other, "/v/two", "/v/one") + ours, "/v/one"},
		"a directory of it":       {root + strings.ReplaceAll(ours, " / /v", " /data /v"), ""},
		"a place with a space":    {root + strings.ReplaceAll(ours, "/v/one", `/v\040x`), ""},
		"a file called like it":   {root + strings.ReplaceAll(ours, "- zfs", "- ext4"), ""},
		"a snapshot of it":        {root + strings.ReplaceAll(ours, "flocker/one", "flocker/one@s"), ""},
		"a name that begins so":   {root + strings.ReplaceAll(ours, "flocker/one", "flocker/one-1"), ""},
		"what nobody understands": {root + ours + "what\n", ""},
	} {
		if got := mountpointOf(strings.NewReader(c.mounts), "tank/flocker/one"); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// What the kernel does not list is left to zfs.
func TestUnmountByKernelLeaves(t *testing.T) {
	told := 0
	h := New(Options{Observe: func(string, []string, time.Duration, error) { told++ }})
	if h.unmountByKernel("no/such", nil) || told > 0 {
		t.Errorf("a dataset that is not mounted was unmounted; told %d times", told)
	}
	if err := h.Unmount(context.Background(), "no such"); err == nil {
		t.Error("an impossible name is taken")
	}
}
