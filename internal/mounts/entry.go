package mounts

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Entry is one line of /proc/<pid>/mountinfo, as far as we need it.
type Entry struct {
	ID, Parent string // an ID is unique on the whole machine, while the mount lasts
	// shared is the peer group of the mount and master the one it follows: what happens
	// below a mount of a group happens below all that follow it. "" for none.
	shared, master string

	Device     string // major:minor
	Root       string // directory of the file system that is mounted here
	Mountpoint string
	FSType     string
	Source     string // of zfs: the dataset
}

// parseMountinfo reads a whole file, see proc_pid_mountinfo(5):
//
//	36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
//
// with any number of optional fields before the dash.
func parseMountinfo(r io.Reader) ([]Entry, error) {
	var out []Entry
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		mount, fs := strings.Split(before, " "), strings.Split(after, " ")
		if !ok || len(mount) < 6 || len(fs) < 2 {
			return nil, fmt.Errorf("mountinfo: cannot read %q", lines.Text())
		}
		e := Entry{
			ID:         mount[0],
			Parent:     mount[1],
			Device:     mount[2],
			Root:       unescapeMount(mount[3]),
			Mountpoint: unescapeMount(mount[4]),
			FSType:     fs[0],
			Source:     unescapeMount(fs[1]),
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
