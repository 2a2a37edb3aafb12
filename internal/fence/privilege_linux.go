package fence

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// realtime is a low priority among real-time ones, above everything that is none.
const realtime = 10

// privilege makes the process independent of free memory, of the disk that its program
// is on, and of how busy the processors are.
func privilege() error {
	var errs []error
	// Only what is touched: the runtime reserves far more than it uses.
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		errs = append(errs, fmt.Errorf("locking memory: %w", err))
	} else if err := lockProgram(); err != nil {
		errs = append(errs, err)
	}
	// Threads made later inherit it from those of now.
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: realtime}
		if err := unix.SchedSetAttr(tid, &attr, 0); err != nil && err != unix.ESRCH {
			errs = append(errs, fmt.Errorf("real-time priority: %w", err))
			break
		}
	}
	return errors.Join(errs...)
}

// lockProgram reads the whole program into memory, so that no page of it has to come
// from a disk that hangs.
func lockProgram() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if !strings.HasSuffix(lines.Text(), exe) {
			continue
		}
		var from, to uintptr
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x ", &from, &to); err != nil {
			return fmt.Errorf("reading the own memory map: %w", err)
		}
		if _, _, errno := unix.Syscall(unix.SYS_MLOCK, from, to-from, 0); errno != 0 {
			return fmt.Errorf("locking the program in memory: %w", errno)
		}
	}
	return lines.Err()
}
