package zfsfake

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Dump lists everything on the host, one line each, for checkers and for reading a
// failed test: filesystems with their properties, snapshots with GUID and holds,
// bookmarks, interrupted receives.
func (h *Host) Dump() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var b strings.Builder
	for _, pn := range slices.Sorted(maps.Keys(h.pools)) {
		p := h.pools[pn]
		fmt.Fprintf(&b, "pool %s txg %d alloc %d of %d imported %t suspended %t\n", p.name, p.txg, p.alloc, p.size, p.imported, p.suspended)
		for _, name := range p.names() {
			d := p.datasets[name]
			fmt.Fprintf(&b, "%s", d.name)
			if d.origin != nil {
				fmt.Fprintf(&b, " origin %s", d.origin.fullName())
			}
			if m := h.mounts[d]; m != nil {
				fmt.Fprintf(&b, " mounted %s writable %t", m.path, m.writable)
			}
			if d.changed {
				fmt.Fprintf(&b, " changed")
			}
			for _, key := range slices.Sorted(maps.Keys(d.props)) {
				fmt.Fprintf(&b, " %s=%s", key, d.props[key])
			}
			fmt.Fprintln(&b)
			for _, s := range d.snaps {
				fmt.Fprintf(&b, "%s guid %d txg %d %s", s.fullName(), s.guid, s.txg, s.tree.checksum()[:8])
				if len(s.holds) > 0 {
					fmt.Fprintf(&b, " holds %s", strings.Join(slices.Sorted(maps.Keys(s.holds)), ","))
				}
				fmt.Fprintln(&b)
			}
			for _, mark := range slices.Sorted(maps.Keys(d.bookmarks)) {
				fmt.Fprintf(&b, "%s#%s guid %d\n", d.name, mark, d.bookmarks[mark].guid)
			}
			if q := d.partial; q != nil {
				fmt.Fprintf(&b, "%s/%%recv to %d from %d record %d kept %t\n", d.name, q.header.ToGUID, q.header.FromGUID, q.next, q.kept)
			}
		}
	}
	return b.String()
}

// Check says what is wrong inside the fake itself or left behind by its users:
// space that does not add up, broken links between clones and origins, streams
// that never ended. Call it when nothing runs.
func (h *Host) Check() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.pools {
		var alloc int64
		trees := map[*tree]int{}
		blobs := map[*blob]int{}
		for name, d := range p.datasets {
			if name != d.name || d.pool != p {
				return fmt.Errorf("dataset %s is filed as %s", d.name, name)
			}
			alloc += datasetOver
			trees[d.head]++
			if d.synced != nil {
				trees[d.synced]++
			}
			if d.log != nil {
				trees[d.log]++
			}
			if d.partial != nil {
				trees[d.partial.tree]++
				if !d.partial.kept {
					return fmt.Errorf("dataset %s: a receive is under way", name)
				}
			}
			if d.origin != nil && (!d.origin.clones[d] || d.origin.ds.find(d.origin.name) != d.origin) {
				return fmt.Errorf("dataset %s: its origin does not know it", name)
			}
			for i, s := range d.snaps {
				trees[s.tree]++
				if s.ds != d || i > 0 && d.snaps[i-1].txg >= s.txg {
					return fmt.Errorf("snapshot %s is out of order", s.fullName())
				}
				if s.sending != 0 {
					return fmt.Errorf("snapshot %s: %d streams read it", s.fullName(), s.sending)
				}
			}
		}
		for t, refs := range trees {
			if t.refs != refs {
				return fmt.Errorf("a tree of pool %s counts %d views, has %d", p.name, t.refs, refs)
			}
			for _, b := range t.files {
				if blobs[b]++; blobs[b] == 1 {
					alloc += b.size()
				}
			}
		}
		if alloc != p.alloc {
			return fmt.Errorf("pool %s counts %d bytes, has %d", p.name, p.alloc, alloc)
		}
	}
	return nil
}
