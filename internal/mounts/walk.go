package mounts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// View is what one mount namespace shows to the processes in it.
type View struct {
	Namespace string // like "mnt:[4026531840]"
	Ours      bool   // it is the namespace of this process
	PID       int    // a process that sees it; threads of one may be in different ones
	Dir       string // in procfs, of the thread that sees it
	Entries   []Entry

	groups map[place][]string // of our own namespace
}

// place is where a file system is mounted.
type place struct{ mountpoint, device string }

// Walk calls visit for every mount namespace. Where processes in one namespace see
// different parts of it, in a chroot, it is called for each part. An error means that
// something was not seen; processes that end meanwhile are none.
func Walk(procfs string, visit func(View)) error {
	ours, err := os.Readlink(filepath.Join(procfs, "self/ns/mnt"))
	if err != nil {
		return fmt.Errorf("mount namespaces: %w", err)
	}
	own, err := readMountinfo(filepath.Join(procfs, "self/mountinfo"))
	if err != nil {
		return fmt.Errorf("mount table: %w", err)
	}
	groups := map[place][]string{}
	for _, e := range own {
		if on := parentOf(e, own); on != nil && on.shared != "" {
			at := place{e.Mountpoint, e.Device}
			groups[at] = append(groups[at], on.shared)
		}
	}
	seen := map[string]bool{}
	return Threads(procfs, func(pid int, dir string) error {
		ns, entries, err := newNamespace(dir, seen)
		if gone(err) {
			return nil // the next process of the namespace, if any, is asked instead
		}
		if err != nil {
			return fmt.Errorf("mount namespaces: %w", err)
		}
		if entries != nil {
			visit(View{Namespace: ns, Ours: ns == ours, PID: pid, Dir: dir, Entries: entries, groups: groups})
		}
		return nil
	})
}

// Threads calls visit with each thread of each process: its process and its directory
// in procfs. Threads count because some are in another namespace than their process, as
// when newer engines copy files. The first error of visit ends it.
func Threads(procfs string, visit func(pid int, dir string) error) error {
	pids, err := numbers(procfs)
	if err != nil {
		return fmt.Errorf("processes: %w", err)
	}
	for _, pid := range pids {
		tasks := filepath.Join(procfs, strconv.Itoa(pid), "task")
		tids, err := numbers(tasks)
		if gone(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("processes: %w", err)
		}
		for _, tid := range tids {
			if err := visit(pid, filepath.Join(tasks, strconv.Itoa(tid))); err != nil {
				return err
			}
		}
	}
	return nil
}

// newNamespace reads the mounts that a thread sees, nothing when another one with the
// same view was read already.
func newNamespace(dir string, seen map[string]bool) (ns string, entries []Entry, err error) {
	ns, err = os.Readlink(filepath.Join(dir, "ns/mnt"))
	if err != nil {
		return "", nil, err
	}
	// A process in a chroot is shown only what lies below its root.
	root, _ := os.Readlink(filepath.Join(dir, "root"))
	view := ns + root
	if seen[view] {
		return ns, nil, nil
	}
	entries, err = readMountinfo(filepath.Join(dir, "mountinfo"))
	if err == nil {
		seen[view] = true
	}
	return ns, entries, err
}

// Follows says that the kernel ends a mount of this view together with ours at the same
// place: an unmount travels by the peer group of the mount that this place is on, not by
// the group of the mount itself.
func (v View) Follows(e Entry) bool {
	groups := v.groups[place{e.Mountpoint, e.Device}]
	if v.Ours || len(groups) == 0 {
		return false
	}
	on := parentOf(e, v.Entries)
	return on != nil && (slices.Contains(groups, on.master) || slices.Contains(groups, on.shared))
}

// Below are the mounts of a view that stand on a mount of it, directly or on another one
// that does.
func (v View) Below(id string) (below []Entry) {
	for _, e := range v.Entries {
		if e.Parent == id && e.ID != id {
			below = append(below, e)
			below = append(below, v.Below(e.ID)...)
		}
	}
	return below
}

func parentOf(e Entry, entries []Entry) *Entry {
	for i := range entries {
		if entries[i].ID == e.Parent {
			return &entries[i]
		}
	}
	return nil
}

func readMountinfo(path string) ([]Entry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMountinfo(f)
}

// numbers are the entries of a directory that are numbers, in order.
func numbers(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, nil
}

// gone says that a process ended while we looked; EINVAL is a zombie's mountinfo.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.EINVAL)
}

// Command is the name of a process or thread, by its directory in procfs; "?" when it
// is gone.
func Command(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, "comm"))
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(b))
}

// Container is the container that a process belongs to; the zero value is none.
type Container struct {
	ID string // full
	// Cgroups are its control groups, as paths below the root of their hierarchy, by the
	// controllers of that: "" for the unified hierarchy of cgroup v2.
	Cgroups map[string]string
}

var cgroupContainer = regexp.MustCompile(`[/-]([0-9a-f]{64})(?:\.scope)?(?:/|$)`)

// ContainerOf finds the container of a process by its control groups, with either driver:
// /docker/<id> or /system.slice/docker-<id>.scope. Of containers inside one another it is
// the outermost.
func ContainerOf(dir string) (c Container) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	if err != nil {
		return Container{}
	}
	for line := range strings.Lines(string(b)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		m := cgroupContainer.FindStringSubmatchIndex(fields[2])
		if m == nil || c.ID != "" && fields[2][m[2]:m[3]] != c.ID {
			continue
		}
		if c.ID == "" {
			c = Container{ID: fields[2][m[2]:m[3]], Cgroups: map[string]string{}}
		}
		c.Cgroups[fields[1]] = strings.TrimSuffix(fields[2][:m[1]], "/")
	}
	return c
}
