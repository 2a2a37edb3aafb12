package mounts

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
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
		if e.Mountpoint == what {
			device = e.Device // the last one is on top
		}
	}
	held, err := scan(procfs, func(e Entry) (string, bool) {
		// Unmounted here, it may still be at the same path elsewhere.
		return what, e.Mountpoint == what || device != "" && e.Device == device
	})
	return held[what], err
}

// Held is HeldBy for many sources in one pass over all processes: for every source
// that wanted says yes to and that is mounted anywhere.
func Held(procfs string, wanted func(source string) bool) (map[string][]Holder, error) {
	return scan(procfs, func(e Entry) (string, bool) { return e.Source, wanted(e.Source) })
}

// scan looks at every mount of every namespace and keeps those that match, by the key
// that match gives them.
func scan(procfs string, match func(Entry) (key string, ok bool)) (map[string][]Holder, error) {
	out := map[string][]Holder{}
	err := Walk(procfs, func(v View) {
		for _, e := range v.Entries {
			key, ok := match(e)
			if !ok {
				continue
			}
			out[key] = append(out[key], Holder{
				PID: v.PID, Command: Command(v.Dir), Container: ContainerOf(v.Dir).ID,
				Namespace: v.Namespace, Ours: v.Ours, Mountpoint: e.Mountpoint, Root: e.Root,
				Follows: v.Follows(e),
			})
		}
	})
	if err != nil {
		return nil, err
	}
	for _, holders := range out {
		slices.SortFunc(holders, func(a, b Holder) int {
			return cmp.Or(cmp.Compare(a.PID, b.PID), strings.Compare(a.Mountpoint, b.Mountpoint))
		})
	}
	return out, nil
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
