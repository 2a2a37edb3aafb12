package mounts

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Shared says that what is mounted and unmounted below this mount is so in all mount
// namespaces that have it from here.
func (e Entry) Shared() bool { return e.shared != "" }

// Under is the mount of our own namespace that a directory is on, a clean absolute path without
// symbolic links. The directory itself need not be there.
func Under(procfs, dir string) (Entry, error) {
	entries, err := readMountinfo(filepath.Join(procfs, "self/mountinfo"))
	if err != nil {
		return Entry{}, fmt.Errorf("mount table: %w", err)
	}
	var best Entry
	for _, e := range entries {
		below := e.Mountpoint == "/" || dir == e.Mountpoint || strings.HasPrefix(dir, e.Mountpoint+"/")
		if below && len(e.Mountpoint) >= len(best.Mountpoint) {
			best = e // of two at one place the last is on top
		}
	}
	if best.ID == "" {
		return Entry{}, fmt.Errorf("mount table: nothing is mounted above %s", dir)
	}
	return best, nil
}
