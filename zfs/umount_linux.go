package zfs

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What the kernel is asked by itself: the clients of a move wait for this unmount, and zfs would
// be a process more that does nothing but the same system call.

// kernel is what that is asked of; tests have another one.
type kernel struct {
	unmount func(at string, flags int) error
	mounts  string // the mount table of this process
	// exports and shares are the file and the directory in which zfs notes what it shares by NFS
	// and by SMB: it ends that when it unmounts, which the kernel does not.
	exports, shares string
}

func newKernel() kernel {
	return kernel{unix.Unmount, "/proc/self/mountinfo", "/etc/exports.d/zfs.exports", "/var/lib/samba/usershares"}
}

// opKernelUnmount is told to Options.Observe: it is no command.
const opKernelUnmount = "kernel-unmount"

// unmountByKernel unmounts a dataset that is mounted at one place here, and says whether it
// did. Whatever is not plainly so is left to the command zfs: it says why, too.
func (h *Host) unmountByKernel(name string) bool {
	k := h.kernel
	f, err := os.Open(k.mounts)
	if err != nil {
		return false
	}
	defer f.Close()
	at := mountpointOf(f, name)
	if at == "" || k.mayShare(at) {
		return false
	}
	began := time.Now()
	err = k.unmount(at, unix.UMOUNT_NOFOLLOW)
	h.observed(command{op: opKernelUnmount, argv: []string{"umount2", at}}, began, &err)
	return err == nil
}

// mayShare says that zfs shares what is mounted there with other machines, or may: that is not known.
func (k kernel) mayShare(at string) bool {
	paths := []string{k.exports}
	list, err := os.ReadDir(k.shares)
	for _, e := range list {
		paths = append(paths, filepath.Join(k.shares, e.Name()))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return true
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) || bytes.Contains(text, []byte(at)) {
			return true
		}
	}
	return false
}

// mountpointOf is where a dataset is mounted, by what the kernel lists; "" where it is not, is so
// more than once, in part, at a place where something else is mounted, too (which of them an unmount
// would end the order of the list does not tell), or whose name is written otherwise than it is.
func mountpointOf(mountinfo io.Reader, dataset string) (at string) {
	places, mounts := 0, map[string]int{} // at each place
	lines := bufio.NewScanner(mountinfo)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		// 36 35 98:0 /root /mountpoint rw,noatime master:1 - zfs tank/set rw
		before, after, ok := strings.Cut(lines.Text(), " - ")
		mount, fs := strings.Fields(before), strings.Fields(after)
		if !ok || len(mount) < 6 || len(fs) < 2 {
			return ""
		}
		mounts[mount[4]]++
		if fs[0] != "zfs" || fs[1] != dataset {
			continue
		}
		if places++; mount[3] != "/" || strings.Contains(mount[4], `\`) {
			return ""
		}
		at = mount[4]
	}
	if lines.Err() != nil || places != 1 || mounts[at] != 1 {
		return ""
	}
	return at
}
