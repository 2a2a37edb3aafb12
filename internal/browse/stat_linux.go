package browse

import (
	"io/fs"
	"os"
	"syscall"
)

// identity is what tells one thing from another of the same name: the number that its
// filesystem has given it, which ZFS carries to every copy, and when anything of it was last
// changed. 0 where that is not known, as in memory.
func identity(fi fs.FileInfo) (inode uint64, changed int64) {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Ino, syscall.TimespecToNsec(st.Ctim)
	}
	return 0, 0
}

// space is how much a file system has, and how much of it is free to this user.
func space(dir *os.File) (free, size int64, err error) {
	var st syscall.Statfs_t
	if err := syscall.Fstatfs(int(dir.Fd()), &st); err != nil {
		return 0, 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), int64(st.Blocks) * int64(st.Bsize), nil
}
