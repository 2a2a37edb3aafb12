package browse

import (
	"io/fs"
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
