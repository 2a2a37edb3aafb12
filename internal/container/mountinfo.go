package container

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// mountEntry is one line of /proc/<pid>/mountinfo, as far as we need it.
type mountEntry struct {
	id, parent string
	// shared is the peer group of the mount and master the one it follows: what happens
	// below a mount of a group happens below all that follow it. "" for none.
	shared, master string

	device     string // major:minor
	root       string // directory of the file system that is mounted here
	mountpoint string
	fstype     string
	source     string // of zfs: the dataset
}

// parseMountinfo reads a whole file, see proc_pid_mountinfo(5):
//
//	36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
//
// with any number of optional fields before the dash.
func parseMountinfo(r io.Reader) ([]mountEntry, error) {
	var out []mountEntry
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		mount, fs := strings.Split(before, " "), strings.Split(after, " ")
		if !ok || len(mount) < 6 || len(fs) < 2 {
			return nil, fmt.Errorf("mountinfo: cannot read %q", lines.Text())
		}
		e := mountEntry{
			id:         mount[0],
			parent:     mount[1],
			device:     mount[2],
			root:       unescapeMount(mount[3]),
			mountpoint: unescapeMount(mount[4]),
			fstype:     fs[0],
			source:     unescapeMount(fs[1]),
		}
		for _, tag := range mount[6:] {
			switch name, group, _ := strings.Cut(tag, ":"); name {
			case "shared":
				e.shared = group
			case "master":
				e.master = group
			}
		}
		out = append(out, e)
	}
	return out, lines.Err()
}

// unescapeMount undoes the kernel's \ooo for space, tab, newline, backslash and #.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
