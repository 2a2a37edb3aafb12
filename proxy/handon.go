package proxy

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// HandOn is a listener's socket as a file, for another process or another listener. The
// caller closes it.
//
// net's own File will not do. The descriptor that os/exec and net.FileListener take from such a
// file is made blocking on the way, which is a property of the open file that all its
// descriptors share (fcntl(2), F_SETFL): whoever accepts from the listener then waits in the
// kernel, where Close neither wakes it nor returns before it does, and takes a client that was
// the next one's. A file that is made of a descriptor leaves it as it is.
func HandOn(l syscall.Conn) (*os.File, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var failed error
	err = raw.Control(func(from uintptr) { fd, failed = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0) })
	if err == nil {
		err = failed
	}
	if err != nil {
		return nil, fmt.Errorf("handing a listener on: %w", err)
	}
	return os.NewFile(uintptr(fd), "listener"), nil
}
