package zfs

import (
	"bufio"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What the kernel is asked by itself: the clients of a move wait for this unmount, and zfs would
// be a process more that does nothing but the same system call.

// unmountByKernel unmounts a dataset that is mounted at one place here, and says whether it
// did. Whatever is not plainly so is left to the command zfs: it says why, too.
func (h *Host) unmountByKernel(name string, argv []string) bool {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	defer f.Close()
	at := mountpointOf(f, name)
	if at == "" {
		return false
	}
	began := time.Now()
	if unix.Unmount(at, unix.UMOUNT_NOFOLLOW) != nil {
		return false
	}
	if h.options.Observe != nil {
		h.options.Observe("unmount", argv, time.Since(began), nil)
	}
	return true
}

// mountpointOf is where a dataset is mounted, by what the kernel lists; "" where it is not, is so
// more than once, in part, below another mount at the same place, or at a place whose name is
// written otherwise than it is.
func mountpointOf(mountinfo io.Reader, dataset string) (at string) {
	places, top := 0, map[string]bool{} // of the last mount at each place
	lines := bufio.NewScanner(mountinfo)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		// 36 35 98:0 /root /mountpoint rw,noatime master:1 - zfs tank/set rw
		before, after, ok := strings.Cut(lines.Text(), " - ")
		mount, fs := strings.Fields(before), strings.Fields(after)
		if !ok || len(mount) < 6 || len(fs) < 2 {
			return ""
		}
		ours := fs[0] == "zfs" && fs[1] == dataset
		top[mount[4]] = ours
		if !ours {
			continue
		}
		if places++; mount[3] != "/" || strings.Contains(mount[4], `\`) {
			return ""
		}
		at = mount[4]
	}
	if lines.Err() != nil || places != 1 || !top[at] {
		return ""
	}
	return at
}
