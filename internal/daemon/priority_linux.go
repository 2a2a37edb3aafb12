package daemon

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// lowest has the goroutine that calls it go on with the lowest priority, on a thread of its own
// that ends with it.
func lowest() error {
	runtime.LockOSThread() // never unlocked: the thread is not used for anything else
	if err := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), 19); err != nil {
		return fmt.Errorf("lowering the priority: %w", err)
	}
	return nil
}
