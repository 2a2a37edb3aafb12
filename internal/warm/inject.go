package warm

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Inject puts a directory of this machine over the placeholder at the path at in the
// container whose gate waits, for that container alone, and says which directory it is. With
// an error nothing is there. It takes a kernel of 5.12 or later.
func (d *Door) Inject(source, at string) (Place, error) {
	return d.atPlaceholder(source, at, func(tree, on int, volume Place) error {
		if err := unix.MoveMount(tree, "", on, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
			return &os.PathError{Op: "move_mount", Path: at, Err: err}
		}
		if there, err := placeOf(at); err != nil || there != volume {
			return errors.Join(fmt.Errorf("%s in the container does not lead to its volume", at), err, unix.Unmount(at, 0))
		}
		return nil
	})
}

// Check does all that Inject does with a volume but for the last step, with the placeholder:
// what can never be done here is known before a volume is on its way.
func (d *Door) Check(at string) error {
	_, err := d.atPlaceholder(d.Placeholder(), at, func(int, int, Place) error { return nil })
	return err
}

// atPlaceholder calls f in the container, with a directory of this machine that is nowhere
// mounted yet and with the placeholder at the path at.
func (d *Door) atPlaceholder(source, at string, f func(tree, on int, volume Place) error) (volume Place, err error) {
	placeholder, err := placeOf(d.Placeholder())
	if err != nil {
		return volume, err
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return volume, &os.PathError{Op: "open_tree", Path: source, Err: err}
	}
	// Whatever comes of it: kept open it would keep the file system in use.
	defer unix.Close(tree)
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return volume, &os.PathError{Op: "stat", Path: source, Err: err}
	}
	volume = Place{uint64(st.Dev), st.Ino}
	// What is mounted below this directory on the machine is not to come into the container.
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		return volume, &os.PathError{Op: "mount_setattr", Path: source, Err: err}
	}
	return volume, d.inside(func() error {
		on, err := unix.Open(at, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: at, Err: err}
		}
		defer unix.Close(on)
		if err := unix.Fstat(on, &st); err != nil {
			return &os.PathError{Op: "stat", Path: at, Err: err}
		}
		if (Place{uint64(st.Dev), st.Ino}) != placeholder {
			return fmt.Errorf("%s in the container is not its placeholder", at)
		}
		return f(tree, on, volume)
	})
}

// Withdraw takes a volume out of the container that Inject has put there, before the gate
// was told to go.
func (d *Door) Withdraw(volume Place, at string) error {
	return d.inside(func() error {
		switch there, err := placeOf(at); {
		case err != nil:
			return err
		case there != volume:
			return nil
		}
		if err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW); err != nil {
			return &os.PathError{Op: "unmount", Path: at, Err: err}
		}
		return nil
	})
}

// inside calls f in the mount namespace of the gate, and with its root, on a thread that
// ends with it: a thread cannot come back, and what it saw would be what others see.
func (d *Door) inside(f func() error) error {
	ns, err := unix.Open(d.proc("ns/mnt"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("entering the container: %w", err)
	}
	defer unix.Close(ns)
	for _, kind := range []string{"mnt", "user"} {
		ours, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			return err
		}
		its, err := os.Readlink(d.proc("ns/" + kind))
		switch {
		case err != nil:
			return fmt.Errorf("entering the container: %w", err)
		case kind == "mnt" && its == ours:
			return errors.New("the container has no mount namespace of its own")
		case kind == "user" && its != ours:
			return errors.New("the container has a user namespace of its own")
		}
	}
	// It has lived until here, so all this was of the gate and of nobody after it.
	if err := d.waits(); err != nil {
		return err
	}
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("entering the container: %w", err)
		}
		if err := unix.Setns(ns, unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("entering the container: %w", err)
		}
		return f()
	})
}

// onThread calls f on a thread that ends with it and is not the process's first one, which
// never ends: what that sees is what /proc/self says of the process.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- onThread(f) // on another one, since this one is kept meanwhile
			runtime.UnlockOSThread()
			return
		}
		done <- f() // and never unlocked
	}()
	return <-done
}
