package container

import (
	"cmp"
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

// Holder is one place where a file system is mounted, and a process that sees it
// there.
type Holder struct {
	PID     int
	Command string
	// Container is the full ID when the process belongs to a container.
	Container string
	Namespace string // like "mnt:[4026531840]"
	Ours      bool   // it is the mount namespace of this process
	// Follows: the kernel ends this mount together with ours at the same place, unless
	// a file is open there, and then it refuses to end ours. systemd gives many
	// services such a copy of everything.
	Follows    bool
	Mountpoint string
	Root       string // the directory of the file system that is mounted there
}

func (h Holder) String() string {
	who := fmt.Sprintf("process %d (%s)", h.PID, h.Command)
	if h.Container != "" {
		who += " of container " + h.Container[:min(12, len(h.Container))]
	}
	if h.Ours {
		return who + " at " + h.Mountpoint
	}
	return who + " at " + h.Mountpoint + " in its own mount namespace"
}

// HeldBy lists every place where a file system is mounted, in all mount namespaces:
// the last word on whether a volume is let go, since a container, a docker cp or a
// service with a private namespace keeps a dataset alive when it is unmounted
// elsewhere. procfs is /proc; what is the source (a ZFS dataset) or a mountpoint in
// our own namespace. There is one Holder for each namespace and mountpoint.
//
// Processes that end meanwhile are no error. An error means that the answer is not
// known: a process that cannot be looked into may hold what we are asked about.
// What this cannot see: file systems detached by a lazy unmount and still open.
func HeldBy(procfs, what string) ([]Holder, error) {
	if !filepath.IsAbs(what) {
		held, err := Held(procfs, func(source string) bool { return source == what })
		return held[what], err
	}
	// A mountpoint is followed to the device that is mounted there, so that its copies
	// in other places are found.
	entries, err := readMountinfo(filepath.Join(procfs, "self/mountinfo"))
	if err != nil {
		return nil, fmt.Errorf("mount table: %w", err)
	}
	device := ""
	for _, e := range entries {
		if e.mountpoint == what {
			device = e.device // the last one is on top
		}
	}
	held, err := scan(procfs, func(e mountEntry) (string, bool) {
		// Unmounted here, it may still be at the same path elsewhere.
		return what, e.mountpoint == what || device != "" && e.device == device
	})
	return held[what], err
}

// Held is HeldBy for many sources in one pass over all processes: for every source
// that wanted says yes to and that is mounted anywhere.
func Held(procfs string, wanted func(source string) bool) (map[string][]Holder, error) {
	return scan(procfs, func(e mountEntry) (string, bool) { return e.source, wanted(e.source) })
}

// scan looks at every mount of every namespace and keeps those that match, by the key
// that match gives them.
func scan(procfs string, match func(mountEntry) (key string, ok bool)) (map[string][]Holder, error) {
	ours, err := os.Readlink(filepath.Join(procfs, "self/ns/mnt"))
	if err != nil {
		return nil, fmt.Errorf("mount namespaces: %w", err)
	}
	groups, err := parentGroups(procfs, match)
	if err != nil {
		return nil, err
	}
	pids, err := numbers(procfs)
	if err != nil {
		return nil, fmt.Errorf("mount namespaces: %w", err)
	}

	out := map[string][]Holder{}
	seen := map[string]bool{}
	for _, pid := range pids {
		tasks, err := numbers(filepath.Join(procfs, strconv.Itoa(pid), "task"))
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("mount namespaces: %w", err)
		}
		// Threads count: newer engines copy files in a namespace that only one of their
		// threads is in.
		for _, tid := range tasks {
			dir := filepath.Join(procfs, strconv.Itoa(pid), "task", strconv.Itoa(tid))
			ns, entries, err := newNamespace(dir, seen)
			if gone(err) {
				continue // the next process of the namespace, if any, is asked instead
			}
			if err != nil {
				return nil, fmt.Errorf("mount namespaces: %w", err)
			}
			for _, e := range entries {
				key, ok := match(e)
				if !ok {
					continue
				}
				out[key] = append(out[key], Holder{
					PID: pid, Command: readWord(filepath.Join(dir, "comm")), Container: containerOf(dir),
					Namespace: ns, Ours: ns == ours, Mountpoint: e.mountpoint, Root: e.root,
					Follows: ns != ours && follows(e, entries, groups[e.mountpoint]),
				})
			}
		}
	}
	for _, holders := range out {
		slices.SortFunc(holders, func(a, b Holder) int {
			return cmp.Or(cmp.Compare(a.PID, b.PID), strings.Compare(a.Mountpoint, b.Mountpoint))
		})
	}
	return out, nil
}

// newNamespace reads the mounts that a thread sees, nothing when another one with the
// same view was read already.
func newNamespace(dir string, seen map[string]bool) (ns string, entries []mountEntry, err error) {
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

// Foreign leaves out the mount that we made ourselves and those that end with it:
// what is left uses the file system, and would go on to when it is unmounted here.
func Foreign(holders []Holder, mountpoint string) []Holder {
	var out []Holder
	for _, h := range holders {
		if !h.Follows && !(h.Ours && h.Mountpoint == mountpoint) {
			out = append(out, h)
		}
	}
	return out
}

// parentGroups finds, for each place in our namespace where a file system
// is mounted, the peer group of the mount that this place is on: by it, and not by the
// group of the mount itself, an unmount travels.
func parentGroups(procfs string, match func(mountEntry) (string, bool)) (map[string]string, error) {
	entries, err := readMountinfo(filepath.Join(procfs, "self/mountinfo"))
	if err != nil {
		return nil, fmt.Errorf("mount table: %w", err)
	}
	out := map[string]string{}
	for _, e := range entries {
		if _, ok := match(e); !ok {
			continue
		}
		if p := parentOf(e, entries); p != nil {
			out[e.mountpoint] = p.shared
		}
	}
	return out, nil
}

// follows says that a mount goes with ours at the same place, on a mount of group.
func follows(e mountEntry, entries []mountEntry, group string) bool {
	p := parentOf(e, entries)
	return group != "" && p != nil && (p.master == group || p.shared == group)
}

func parentOf(e mountEntry, entries []mountEntry) *mountEntry {
	for i := range entries {
		if entries[i].id == e.parent {
			return &entries[i]
		}
	}
	return nil
}

func readMountinfo(path string) ([]mountEntry, error) {
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

func readWord(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(b))
}

var cgroupContainer = regexp.MustCompile(`[/-]([0-9a-f]{64})(?:\.scope)?(?:/|$)`)

// containerOf finds the container of a process by its cgroup, with either driver:
// /docker/<id> or /system.slice/docker-<id>.scope.
func containerOf(dir string) string {
	for line := range strings.Lines(readWord(filepath.Join(dir, "cgroup"))) {
		if m := cgroupContainer.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			return m[1]
		}
	}
	return ""
}
