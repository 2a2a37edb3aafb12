package zfsfake

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/zfs"
)

// Capabilities implements zfs.System.
func (h *Host) Capabilities(ctx context.Context) (zfs.Capabilities, error) {
	err := h.command(ctx, "version", "", func() error { return nil })
	if err != nil {
		return zfs.Capabilities{}, err
	}
	return zfs.Capabilities{Userland: "2.3.2-fake", Kernel: "2.3.2-fake", Major: 2, Minor: 3}, nil
}

// Pool implements zfs.System.
func (h *Host) Pool(ctx context.Context, name string) (out zfs.Pool, err error) {
	if err := invalid("pool", checkPool(name)); err != nil {
		return out, err
	}
	err = h.command(ctx, "pool", name, func() error {
		p := h.poolOf(name)
		if p == nil {
			return fail(zfs.ErrNotFound, "cannot open '%s': no such pool", name)
		}
		out = zfs.Pool{Name: name, GUID: p.guid, Size: p.size, Alloc: p.alloc, Free: max(0, p.size-p.alloc), Health: p.health}
		out.BootFS = p.bootfs
		if p.suspended {
			out.Health = "SUSPENDED"
		}
		return nil
	})
	return out, err
}

// SetBootFS says what the machine boots from.
func (h *Host) SetBootFS(pool, dataset string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.poolOf(pool).bootfs = dataset
}

// Allow lets users do something with a dataset.
func (h *Host) Allow(name string, permissions ...string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	d, err := h.dataset(name)
	if err == nil {
		d.delegated = permissions
	}
	return wrap("allow", err)
}

// Delegated implements zfs.System.
func (h *Host) Delegated(ctx context.Context, name string) (out []string, err error) {
	if err := invalid("delegated", zfs.CheckDataset(name)); err != nil {
		return nil, err
	}
	err = h.command(ctx, "delegated", name, func() error {
		d, err := h.dataset(name)
		if err == nil {
			out = slices.Clone(d.delegated)
		}
		return err
	})
	return out, err
}

// CreateFilePool implements zfs.System; the file is only a name.
func (h *Host) CreateFilePool(ctx context.Context, name, file string, size int64) error {
	if err := invalid("create-pool", checkPool(name)); err != nil {
		return err
	}
	if !strings.HasPrefix(file, "/") || size < 64<<20 {
		return invalid("create-pool", errors.New("want an absolute path and at least 64 MiB"))
	}
	return h.command(ctx, "create-pool", name+" "+file, func() error {
		for _, p := range h.pools {
			if p.path == file || p.name == name {
				return fail(zfs.ErrExists, "cannot create '%s': pool already exists", name)
			}
		}
		h.addPool(name, file, size)
		return nil
	})
}

// ImportPool implements zfs.System.
func (h *Host) ImportPool(ctx context.Context, name, dir string) error {
	if err := invalid("import-pool", checkPool(name)); err != nil {
		return err
	}
	return h.command(ctx, "import-pool", name, func() error {
		p := h.pools[name]
		if p == nil || !p.imported && path.Dir(p.path) != path.Clean(dir) {
			return fail(zfs.ErrNotFound, "cannot import '%s': no such pool available", name)
		}
		p.imported = true
		return nil
	})
}

// Datasets implements zfs.System.
func (h *Host) Datasets(ctx context.Context, root string) (out []zfs.Dataset, err error) {
	if err := invalid("datasets", zfs.CheckDataset(root)); err != nil {
		return nil, err
	}
	err = h.command(ctx, "datasets", root, func() error {
		if _, err := h.dataset(root); err != nil {
			return err
		}
		list := h.poolOf(root).below(root)
		out = make([]zfs.Dataset, 0, len(list))
		for _, d := range list {
			out = append(out, h.describe(d))
		}
		return nil
	})
	return out, err
}

// Dataset implements zfs.System.
func (h *Host) Dataset(ctx context.Context, name string) (out zfs.Dataset, err error) {
	if err := invalid("dataset", zfs.CheckDataset(name)); err != nil {
		return out, err
	}
	err = h.command(ctx, "dataset", name, func() error {
		d, err := h.dataset(name)
		if err == nil && d.volume {
			return fmt.Errorf("zfs printed 0 filesystems for %s", name)
		}
		if err == nil {
			out = h.describe(d)
		}
		return err
	})
	return out, err
}

func (h *Host) describe(d *dataset) zfs.Dataset {
	p := d.pool
	out := zfs.Dataset{
		Name: d.name, GUID: d.guid, CreateTXG: d.txg,
		Used: d.usedAlone(), Referenced: d.referenced(), Available: max(0, p.size-p.alloc),
		RefQuota: d.refquota(), Mountpoint: h.mountpoint(d), Encryption: h.effective(d, "encryption", "off"),
		ReadOnly: h.effective(d, "readonly", "off") == "on",
		CanMount: cmp.Or(d.props["canmount"], "on"),
	}
	if out.RefQuota > 0 {
		out.Available = max(0, min(out.Available, out.RefQuota-out.Referenced))
	}
	if t, changed := d.flushed(); len(d.snaps) == 0 {
		out.Written = out.Referenced
		if d.origin != nil {
			out.Written = 0
			if changed {
				out.Written = changeOver + t.newSince(d.origin.tree)
			}
		}
	} else if changed {
		out.Written = changeOver + t.newSince(d.snaps[len(d.snaps)-1].tree)
	}
	if d.origin != nil {
		out.Origin = d.origin.fullName()
	}
	if d.volume {
		out.Volume, out.RefQuota, out.Mountpoint, out.CanMount = true, 0, "", ""
	}
	if m := h.mounts[d]; m != nil {
		out.Mounted, out.Writable = true, m.writable
	}
	if d.partial != nil && d.partial.resumable && d.partial.kept {
		out.ResumeToken = d.partial.token()
	}
	out.User = told(d.props, zfs.UserProperties)
	return out
}

// told are those properties that zfs is asked for by name: it says nothing of others.
func told(props map[string]string, asked []string) (out map[string]string) {
	for _, key := range asked {
		if value, ok := props[key]; ok {
			if out == nil {
				out = map[string]string{}
			}
			out[key] = value
		}
	}
	return out
}

// usedAlone counts this dataset and its snapshots, not what is below it.
func (d *dataset) usedAlone() int64 {
	n := d.referenced()
	for _, s := range d.snaps {
		n += s.tree.unique()
	}
	return n
}

// Snapshots implements zfs.System.
func (h *Host) Snapshots(ctx context.Context, root string, recursive bool) (out []zfs.Snapshot, err error) {
	if err := invalid("snapshots", zfs.CheckDataset(root)); err != nil {
		return nil, err
	}
	err = h.command(ctx, "snapshots", root, func() error {
		list, err := h.listed(root, recursive)
		for _, d := range list {
			for i := range d.snaps {
				out = append(out, d.describeSnapshot(i))
			}
		}
		return err
	})
	return out, err
}

// SnapshotsNamed implements zfs.System.
func (h *Host) SnapshotsNamed(ctx context.Context, names []string) (out []zfs.Snapshot, err error) {
	for _, name := range names {
		if err := invalid("snapshots-named", zfs.CheckSnapshot(name)); err != nil {
			return nil, err
		}
	}
	if len(names) == 0 {
		return nil, nil
	}
	err = h.command(ctx, "snapshots-named", strings.Join(names, " "), func() error {
		wanted := map[*dataset]map[string]bool{}
		for _, full := range names {
			ds, name, _ := strings.Cut(full, "@")
			if d, err := h.dataset(ds); err == nil {
				if wanted[d] == nil {
					wanted[d] = map[string]bool{}
				}
				wanted[d][name] = true
			}
		}
		order := slices.SortedFunc(maps.Keys(wanted), func(a, b *dataset) int { return cmp.Compare(a.name, b.name) })
		for _, d := range order {
			for i, s := range d.snaps {
				if wanted[d][s.name] {
					told := d.describeSnapshot(i)
					told.User = nil
					out = append(out, told)
				}
			}
		}
		return nil
	})
	return out, err
}

func (h *Host) listed(root string, recursive bool) ([]*dataset, error) {
	d, err := h.dataset(root)
	if err != nil || !recursive {
		return []*dataset{d}[:min(1, btoi(err == nil))], err
	}
	return d.pool.below(root), nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// describeSnapshot is the ith of a dataset's snapshots as a listing shows it.
func (d *dataset) describeSnapshot(i int) zfs.Snapshot {
	s := d.snaps[i]
	var before *tree
	switch {
	case i > 0:
		before = d.snaps[i-1].tree
	case d.origin != nil:
		before = d.origin.tree
	}
	out := zfs.Snapshot{
		Dataset: s.ds.name, Name: s.name, GUID: s.guid, CreateTXG: s.txg, Creation: s.creation,
		Used: s.tree.unique(), Referenced: datasetOver + s.tree.size, UserRefs: len(s.holds),
		User: told(s.props, zfs.SnapshotProperties),
	}
	switch {
	case before == nil:
		out.Written = out.Referenced
	case s.changed:
		out.Written = changeOver + s.tree.newSince(before)
	}
	for d := range s.clones {
		out.Clones = append(out.Clones, d.name)
	}
	slices.Sort(out.Clones)
	if len(out.User) == 0 {
		out.User = nil
	}
	return out
}

// Bookmarks implements zfs.System.
func (h *Host) Bookmarks(ctx context.Context, root string, recursive bool) (out []zfs.Bookmark, err error) {
	if err := invalid("bookmarks", zfs.CheckDataset(root)); err != nil {
		return nil, err
	}
	err = h.command(ctx, "bookmarks", root, func() error {
		list, err := h.listed(root, recursive)
		for _, d := range list {
			marks := slices.SortedFunc(maps.Values(d.bookmarks), func(a, b *bookmark) int {
				return cmp.Or(cmp.Compare(a.txg, b.txg), cmp.Compare(a.name, b.name))
			})
			for _, b := range marks {
				out = append(out, zfs.Bookmark{Dataset: d.name, Name: b.name, GUID: b.guid, CreateTXG: b.txg, Creation: b.creation})
			}
		}
		return err
	})
	return out, err
}

// CreateFilesystem implements zfs.System.
func (h *Host) CreateFilesystem(ctx context.Context, name string, props map[string]string) error {
	if err := invalid("create", zfs.CheckDataset(name), checkProps(props)); err != nil {
		return err
	}
	return h.command(ctx, "create", name, func() error {
		p, err := h.parentOf("create", name)
		if err != nil {
			return err
		}
		if err := h.checkValues(name, props); err != nil {
			return err
		}
		if err := p.begin(datasetOver); err != nil {
			return err
		}
		h.add(p, name).setProps(props)
		return nil
	})
}

// Clone implements zfs.System.
func (h *Host) Clone(ctx context.Context, snap, name string, props map[string]string) error {
	if err := invalid("clone", zfs.CheckSnapshot(snap), zfs.CheckDataset(name), checkProps(props)); err != nil {
		return err
	}
	return h.command(ctx, "clone", snap+" "+name, func() error {
		s, err := h.snapshot(snap)
		if err != nil {
			return err
		}
		p, err := h.parentOf("create", name)
		if err != nil {
			return err
		}
		if p != s.ds.pool {
			return fail(zfs.ErrInvalid, "cannot create '%s': source and target pools differ", name)
		}
		if err := h.checkValues(name, props); err != nil {
			return err
		}
		if err := p.begin(datasetOver); err != nil {
			return err
		}
		d := h.addClone(s, name)
		d.setProps(props)
		if v := d.props["canmount"]; v == "" || v == "on" {
			d.props["canmount"] = "noauto"
		}
		return nil
	})
}

func (h *Host) addClone(s *snapshot, name string) *dataset {
	d := h.add(s.ds.pool, name)
	d.head.drop()
	d.head = s.tree.view()
	d.origin = s
	s.clones[d] = true
	return d
}

// Promote implements zfs.System: the origin and what is older moves to the clone.
func (h *Host) Promote(ctx context.Context, name string) error {
	if err := invalid("promote", zfs.CheckDataset(name)); err != nil {
		return err
	}
	return h.command(ctx, "promote", name, func() error {
		d, err := h.dataset(name)
		if err != nil {
			return err
		}
		if d.origin == nil {
			return fail(zfs.ErrInvalid, "cannot promote '%s': not a cloned filesystem", name)
		}
		pivot, old := d.origin, d.origin.ds
		n := slices.Index(old.snaps, pivot) + 1
		for _, s := range old.snaps[:n] {
			if d.find(s.name) != nil {
				return fail(zfs.ErrExists, "cannot promote '%s': snapshot name '%s' from origin conflicts with '%s' from target",
					name, s.fullName(), name+"@"+s.name)
			}
			if s.looked > 0 {
				return fail(zfs.ErrBusy, "cannot promote '%s': dataset is busy", name)
			}
		}
		if err := d.pool.begin(0); err != nil {
			return err
		}
		moved := slices.Clone(old.snaps[:n])
		old.snaps = slices.Clone(old.snaps[n:])
		d.snaps = append(moved, d.snaps...)
		for _, s := range moved {
			s.ds = d
		}
		for name, b := range old.bookmarks {
			if b.txg <= pivot.txg {
				d.bookmarks[name] = b
				delete(old.bookmarks, name)
			}
		}
		d.origin = old.origin
		if d.origin != nil {
			delete(d.origin.clones, old)
			d.origin.clones[d] = true
		}
		delete(pivot.clones, d)
		old.origin = pivot
		pivot.clones[old] = true
		return nil
	})
}

// Rename implements zfs.System.
func (h *Host) Rename(ctx context.Context, from, to string) error {
	snaps := strings.Contains(from, "@")
	if snaps != strings.Contains(to, "@") {
		return invalid("rename", errors.New("one name is a snapshot's, the other is not"))
	}
	if err := invalid("rename", checkAny(from), checkAny(to)); err != nil {
		return err
	}
	return h.command(ctx, "rename", from+" "+to, func() error {
		if snaps {
			return h.renameSnapshot(from, to)
		}
		d, err := h.dataset(from)
		if err != nil {
			return err
		}
		p, err := h.parentOf("rename to", to)
		if err != nil {
			return err
		}
		if p != d.pool || strings.HasPrefix(to, from+"/") || !strings.Contains(from, "/") {
			return fail(zfs.ErrInvalid, "cannot rename to '%s': invalid target", to)
		}
		list := p.below(from)
		for _, d := range list {
			if h.mounts[d] != nil {
				return fail(zfs.ErrBusy, "cannot rename '%s': dataset is busy", d.name)
			}
		}
		if err := p.begin(0); err != nil {
			return err
		}
		for _, d := range list {
			delete(p.datasets, d.name)
		}
		for _, d := range list {
			d.name = to + strings.TrimPrefix(d.name, from)
			p.datasets[d.name] = d
		}
		p.sorted = nil
		return nil
	})
}

func (h *Host) renameSnapshot(from, to string) error {
	s, err := h.snapshot(from)
	if err != nil {
		return err
	}
	ds, name, _ := strings.Cut(to, "@")
	if ds != s.ds.name {
		return fail(zfs.ErrInvalid, "cannot rename to '%s': snapshots must be part of same dataset", to)
	}
	if s.ds.find(name) != nil {
		return fail(zfs.ErrExists, "cannot rename to '%s': dataset already exists", to)
	}
	if err := s.ds.pool.begin(0); err != nil {
		return err
	}
	s.name = name
	return nil
}

// Snapshot implements zfs.System.
func (h *Host) Snapshot(ctx context.Context, names []string, props map[string]string) error {
	errs := []error{checkProps(props)}
	for _, name := range names {
		errs = append(errs, zfs.CheckSnapshot(name))
	}
	for key := range props {
		if !strings.Contains(key, ":") {
			errs = append(errs, errors.New("property "+key+" is not a user property"))
		}
	}
	if err := invalid("snapshot", errs...); err != nil || len(names) == 0 {
		return err
	}
	return h.command(ctx, "snapshot", strings.Join(names, " "), func() error {
		byPool := map[*pool][]string{}
		seen := map[*dataset]bool{}
		var bad []string
		var kind error
		for _, full := range names {
			ds, name, _ := strings.Cut(full, "@")
			d, err := h.dataset(ds)
			switch {
			case err != nil:
				bad, kind = append(bad, full), cmp.Or(kind, error(zfs.ErrNotFound))
			case seen[d]:
				return fail(zfs.ErrInvalid, "cannot create snapshots : multiple snapshots of same fs not allowed\nno snapshots were created")
			case d.find(name) != nil:
				bad, kind = append(bad, full), cmp.Or(kind, error(zfs.ErrExists))
			case d.inconsistent:
				bad, kind = append(bad, full), cmp.Or(kind, error(zfs.ErrBusy))
			default:
				seen[d] = true
				byPool[d.pool] = append(byPool[d.pool], full)
			}
		}
		if kind != nil {
			return &zfs.Error{Op: "snapshot", Kind: kind, Names: bad,
				Stderr: "cannot create snapshot '" + strings.Join(bad, "': "+kind.Error()+"\ncannot create snapshot '") + "': " + kind.Error() + "\nno snapshots were created"}
		}
		for p, full := range byPool {
			if err := p.begin(0); err != nil {
				return err
			}
			for _, name := range full {
				h.takeSnapshot(name, props)
			}
		}
		return nil
	})
}

// takeSnapshot takes one that can be taken, in the pool's transaction group.
func (h *Host) takeSnapshot(full string, props map[string]string) *snapshot {
	ds, short, _ := strings.Cut(full, "@")
	d := h.poolOf(full).datasets[ds]
	d.sync()
	s := &snapshot{
		ds: d, name: short, guid: h.guid(), txg: d.pool.txg, creation: time.Unix(time.Now().Unix(), 0),
		tree: d.head.view(), changed: d.changed, holds: map[string]bool{}, props: maps.Clone(props),
		clones: map[*dataset]bool{},
	}
	d.snaps = append(d.snaps, s)
	d.changed = false
	return s
}

// Take implements zfs.System.
func (h *Host) Take(ctx context.Context, names []string) (taken []zfs.Snapshot, failed map[string]error, err error) {
	seen := map[string]bool{}
	for _, full := range names {
		ds, _, _ := strings.Cut(full, "@")
		err := zfs.CheckSnapshot(full)
		if err == nil && seen[ds] {
			err = errors.New("two snapshots of " + ds + " at once")
		}
		if err := invalid("take", err); err != nil {
			return nil, nil, err
		}
		seen[ds] = true
	}
	failed = map[string]error{}
	if len(names) == 0 {
		return nil, failed, nil
	}
	err = h.command(ctx, "take", strings.Join(names, " "), func() error {
		begun := map[*pool]bool{}
		for _, full := range names {
			p := h.poolOf(full)
			if p == nil {
				return fail(zfs.ErrNotFound, "cannot open '%s': no such pool", full)
			}
			if !begun[p] {
				if err := p.begin(0); err != nil {
					return err
				}
				begun[p] = true
			}
			ds, name, _ := strings.Cut(full, "@")
			d := p.datasets[ds]
			var kind error
			switch {
			case d == nil:
				kind = zfs.ErrNotFound
			case d.find(name) != nil:
				kind = zfs.ErrExists
			case d.inconsistent:
				kind = zfs.ErrBusy
			}
			if kind != nil {
				failed[full] = wrap("take", fail(kind, "cannot create snapshot '%s': %s", full, kind))
				continue
			}
			h.takeSnapshot(full, nil)
			taken = append(taken, d.describeSnapshot(len(d.snaps)-1))
		}
		return nil
	})
	if err != nil {
		return nil, failed, err // it may have been done: the caller cannot know
	}
	return taken, failed, nil
}

// Bookmark implements zfs.System.
func (h *Host) Bookmark(ctx context.Context, snap, mark string) error {
	if err := invalid("bookmark", zfs.CheckSnapshot(snap), zfs.CheckBookmark(mark)); err != nil {
		return err
	}
	return h.command(ctx, "bookmark", snap+" "+mark, func() error { return h.bookmark(snap, mark) })
}

func (h *Host) bookmark(snap, mark string) error {
	s, err := h.snapshot(snap)
	if err != nil {
		return err
	}
	ds, name, _ := strings.Cut(mark, "#")
	if ds != s.ds.name {
		return fail(zfs.ErrInvalid, "cannot create bookmark '%s': source is not an ancestor of the new bookmark's dataset", mark)
	}
	if b := s.ds.bookmarks[name]; b != nil {
		if b.guid == s.guid {
			return nil
		}
		return fail(zfs.ErrExists, "cannot create bookmark '%s': bookmark exists", mark)
	}
	if err := s.ds.pool.begin(1); err != nil { // it takes no space that counts, but asks for some
		return err
	}
	s.tree.frozen = true
	s.ds.bookmarks[name] = &bookmark{name: name, guid: s.guid, txg: s.txg, creation: s.creation, files: s.tree}
	return nil
}

// Hold implements zfs.System.
func (h *Host) Hold(ctx context.Context, tag, snap string) error {
	if err := invalid("hold", checkTag(tag), zfs.CheckSnapshot(snap)); err != nil {
		return err
	}
	return h.command(ctx, "hold", tag+" "+snap, func() error {
		s, err := h.snapshot(snap)
		if err != nil {
			return err
		}
		if err := s.ds.pool.begin(0); err != nil {
			return err
		}
		s.holds[tag] = true
		return nil
	})
}

// Release implements zfs.System.
func (h *Host) Release(ctx context.Context, tag, snap string) error {
	if err := invalid("release", checkTag(tag), zfs.CheckSnapshot(snap)); err != nil {
		return err
	}
	return h.command(ctx, "release", tag+" "+snap, func() error {
		s, err := h.snapshot(snap)
		if err != nil {
			return nil // gone, and its holds with it
		}
		if err := s.ds.pool.begin(0); err != nil {
			return err
		}
		delete(s.holds, tag)
		return nil
	})
}

// DestroySnapshots implements zfs.System; when one cannot go, all stay.
func (h *Host) DestroySnapshots(ctx context.Context, ds string, snaps []string) error {
	errs := []error{zfs.CheckDataset(ds)}
	for _, s := range snaps {
		errs = append(errs, zfs.CheckSnapshot(ds+"@"+s))
	}
	if err := invalid("destroy-snapshots", errs...); err != nil || len(snaps) == 0 {
		return err
	}
	return h.command(ctx, "destroy-snapshots", ds+"@"+strings.Join(snaps, ","), func() error {
		d, err := h.dataset(ds)
		if err != nil {
			return err
		}
		var gone []*snapshot
		for _, name := range snaps {
			if s := d.find(name); s != nil && !slices.Contains(gone, s) {
				if err := s.mayGo(nil); err != nil {
					return err
				}
				gone = append(gone, s)
			}
		}
		if len(gone) == 0 {
			return nil
		}
		if err := d.pool.begin(0); err != nil {
			return err
		}
		for _, s := range gone {
			d.destroySnapshot(s)
		}
		return nil
	})
}

// Prune implements zfs.System. It counts as one command for each zfs.PruneBatch.
func (h *Host) Prune(ctx context.Context, reqs []zfs.PruneRequest) (failed map[string]error, err error) {
	failed = map[string]error{}
	var good []zfs.PruneRequest
	for _, r := range reqs {
		ds, _, _ := strings.Cut(r.Snapshot, "@")
		err := zfs.CheckSnapshot(r.Snapshot)
		if err == nil && r.Bookmark != "" {
			err = zfs.CheckBookmark(ds + "#" + r.Bookmark)
		}
		if err := invalid("prune", err); err != nil {
			failed[r.Snapshot] = err
			continue
		}
		good = append(good, r)
	}
	for batch := range slices.Chunk(good, zfs.PruneBatch) {
		if err := h.prune(ctx, batch, failed); err != nil {
			return failed, err
		}
	}
	return failed, nil
}

func (h *Host) prune(ctx context.Context, batch []zfs.PruneRequest, failed map[string]error) error {
	names := make([]string, len(batch))
	for i, r := range batch {
		names[i] = r.Snapshot
	}
	return h.command(ctx, "prune", strings.Join(names, " "), func() error {
		for _, r := range batch {
			p := h.poolOf(r.Snapshot)
			if p == nil {
				return fail(zfs.ErrNotFound, "cannot open '%s': no such pool", r.Snapshot)
			}
			if err := p.begin(0); err != nil {
				return err
			}
			s, err := h.snapshot(r.Snapshot)
			if err != nil {
				continue
			}
			if r.Bookmark != "" {
				err = h.bookmark(r.Snapshot, s.ds.name+"#"+r.Bookmark)
			} else {
				err = nil
			}
			if err == nil {
				err = s.mayGo(nil)
			}
			if err != nil {
				failed[r.Snapshot] = wrap("prune", err)
				continue
			}
			s.ds.destroySnapshot(s)
		}
		return nil
	})
}

// mayGo says why a snapshot cannot be destroyed together with the datasets along.
func (s *snapshot) mayGo(along []*dataset) error {
	full := s.fullName()
	for d := range s.clones {
		if !slices.Contains(along, d) {
			return fail(zfs.ErrHasClones, "cannot destroy '%s': snapshot has dependent clones", full)
		}
	}
	if len(s.holds) > 0 {
		return fail(zfs.ErrBusy, "cannot destroy snapshot %s: it's being held", full)
	}
	if s.sending > 0 || s.looked > 0 || s.ds.partial != nil && s.ds.partial.from == s && len(along) == 0 {
		return fail(zfs.ErrBusy, "cannot destroy '%s': dataset is busy", full)
	}
	return nil
}

func (d *dataset) destroySnapshot(s *snapshot) {
	i := slices.Index(d.snaps, s)
	// Its change becomes part of the next one's.
	if s.changed {
		if i+1 < len(d.snaps) {
			d.snaps[i+1].changed = true
		} else {
			d.changed = true
			if d.synced != nil {
				d.syncedChanged = true
			}
		}
	}
	d.snaps = slices.Delete(d.snaps, i, i+1)
	s.tree.drop()
}

// DestroyBookmark implements zfs.System.
func (h *Host) DestroyBookmark(ctx context.Context, mark string) error {
	if err := invalid("destroy-bookmark", zfs.CheckBookmark(mark)); err != nil {
		return err
	}
	return h.command(ctx, "destroy-bookmark", mark, func() error {
		ds, name, _ := strings.Cut(mark, "#")
		if d, err := h.dataset(ds); err == nil {
			if err := d.pool.begin(0); err != nil {
				return err
			}
			delete(d.bookmarks, name)
		}
		return nil
	})
}

// Destroy implements zfs.System.
func (h *Host) Destroy(ctx context.Context, name string) error {
	if err := invalid("destroy", zfs.CheckDataset(name)); err != nil {
		return err
	}
	if !strings.Contains(name, "/") {
		return invalid("destroy", errors.New("a pool's root is not destroyed"))
	}
	return h.command(ctx, "destroy", name, func() error {
		d, err := h.dataset(name)
		if err != nil {
			return nil
		}
		if m := h.mounts[d]; m != nil && m.inUse {
			return fail(zfs.ErrBusy, "cannot unmount '%s': pool or dataset is busy", m.path)
		}
		list := d.pool.below(name)
		for _, d := range list {
			for _, s := range d.snaps {
				for clone := range s.clones {
					if !slices.Contains(list, clone) {
						return fail(zfs.ErrHasClones, "cannot destroy '%s': filesystem has dependent clones", name)
					}
				}
			}
		}
		if err := d.pool.begin(0); err != nil {
			return err
		}
		// From below, each for itself: what must stay keeps what is above it, but not the
		// snapshots of that.
		var refused error
		kept := map[string]bool{}
		for _, d := range slices.Backward(list) {
			err := h.mayGo(d, list)
			if err != nil {
				refused = cmp.Or(refused, err)
			}
			if err != nil || kept[d.name] {
				kept[path.Dir(d.name)] = true
				for _, s := range slices.Clone(d.snaps) {
					if err == nil && len(s.clones) == 0 {
						d.destroySnapshot(s)
					}
				}
				continue
			}
			h.remove(d)
		}
		return refused
	})
}

// mayGo says why a dataset cannot be destroyed together with those along.
func (h *Host) mayGo(d *dataset, along []*dataset) error {
	for _, s := range d.snaps {
		if err := s.mayGo(along); err != nil {
			return err
		}
	}
	if m := h.mounts[d]; m != nil && m.inUse || d.partial != nil && !d.partial.kept {
		return fail(zfs.ErrBusy, "cannot destroy '%s': dataset is busy", d.name)
	}
	return nil
}

// remove takes a dataset out of its pool, with all that hangs on it.
func (h *Host) remove(d *dataset) {
	delete(h.mounts, d)
	d.sync()
	d.dropLog()
	d.head.drop()
	for _, s := range d.snaps {
		s.tree.drop()
	}
	if d.partial != nil {
		d.partial.tree.drop()
		d.partial = nil
	}
	if d.origin != nil {
		delete(d.origin.clones, d)
	}
	delete(d.pool.datasets, d.name)
	d.pool.sorted = nil
	d.pool.alloc -= datasetOver
}

// Mount implements zfs.System.
func (h *Host) Mount(ctx context.Context, name string, write bool) error {
	if err := invalid("mount", zfs.CheckDataset(name)); err != nil {
		return err
	}
	return h.command(ctx, "mount", name, func() error {
		d, err := h.dataset(name)
		if err != nil {
			return err
		}
		at := h.mountpoint(d)
		switch {
		case d.volume:
			return fail(zfs.ErrInvalid, "cannot open '%s': operation not applicable to datasets of this type", name)
		case h.mounts[d] != nil:
			return fail(zfs.ErrExists, "cannot mount '%s': filesystem already mounted", name)
		case at == "none":
			return fail(zfs.ErrInvalid, "cannot mount '%s': no mountpoint set", name)
		case at == "legacy":
			return fail(zfs.ErrInvalid, "cannot mount '%s': legacy mountpoint", name)
		case d.props["canmount"] == "off":
			return fail(zfs.ErrInvalid, "cannot mount '%s': 'canmount' property is set to 'off'", name)
		case d.inconsistent:
			return fail(zfs.ErrBusy, "cannot mount '%s': dataset is busy", name)
		case d.pool.suspended:
			return fail(zfs.ErrSuspended, "cannot mount '%s': pool I/O is currently suspended", name)
		}
		if d.log != nil {
			d.head.drop()
			d.head, d.log, d.changed = d.log, nil, true
		}
		h.mounts[d] = &mount{path: at, writable: write || h.effective(d, "readonly", "off") != "on"}
		return nil
	})
}

// Unmount implements zfs.System. All that was written is then on disk.
func (h *Host) Unmount(ctx context.Context, name string) error {
	if err := invalid("unmount", zfs.CheckDataset(name)); err != nil {
		return err
	}
	return h.command(ctx, "unmount", name, func() error {
		d, err := h.dataset(name)
		if err != nil {
			return err
		}
		m := h.mounts[d]
		switch {
		case m == nil:
			return nil
		case m.inUse:
			return fail(zfs.ErrBusy, "cannot unmount '%s': pool or dataset is busy", name)
		case d.pool.suspended:
			return fail(zfs.ErrSuspended, "cannot unmount '%s': pool I/O is currently suspended", name)
		}
		d.sync()
		delete(h.mounts, d)
		return nil
	})
}

// MountSnapshot implements zfs.System. What is in it is read with ReadFile and Files.
func (h *Host) MountSnapshot(ctx context.Context, snap, dir string) error {
	if err := invalid("mount-snapshot", zfs.CheckSnapshot(snap)); err != nil {
		return err
	}
	return h.command(ctx, "mount-snapshot", snap, func() error {
		s, err := h.snapshot(snap)
		switch {
		case err != nil:
			return err
		case h.looks[dir] != nil:
			return fail(zfs.ErrBusy, "filesystem '%s' is already mounted", snap)
		case s.ds.pool.suspended:
			return fail(zfs.ErrSuspended, "cannot mount '%s': pool I/O is currently suspended", snap)
		}
		s.looked++
		h.looks[dir] = s
		return nil
	})
}

// UnmountSnapshot implements zfs.System.
func (h *Host) UnmountSnapshot(ctx context.Context, dir string) error {
	return h.command(ctx, "unmount-snapshot", dir, func() error {
		if s := h.looks[dir]; s != nil {
			s.looked--
			delete(h.looks, dir)
		}
		return nil
	})
}

// OpenSnapshot keeps a snapshot in use, as an open directory of it does that is mounted nowhere
// any more.
func (h *Host) OpenSnapshot(snap string) (done func(), err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, err := h.snapshot(snap)
	if err != nil {
		return nil, err
	}
	s.looked++
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		s.looked--
	}, nil
}

// SnapshotMounts are the directories at which snapshots are mounted, in order.
func (h *Host) SnapshotMounts() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Sorted(maps.Keys(h.looks))
}

// invalid turns the first complaint into the error of op.
func invalid(op string, errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return &zfs.Error{Op: op, Kind: zfs.ErrInvalid, Err: err}
		}
	}
	return nil
}

func checkPool(name string) error {
	if strings.Contains(name, "/") {
		return errors.New(name + " is not a pool's name")
	}
	return zfs.CheckDataset(name)
}

func checkAny(name string) error {
	if strings.Contains(name, "@") {
		return zfs.CheckSnapshot(name)
	}
	return zfs.CheckDataset(name)
}

// checkTag takes what one part of a dataset's name may be.
func checkTag(tag string) error {
	return zfs.CheckDataset("tag/" + strings.ReplaceAll(tag, "/", ","))
}

func checkProps(props map[string]string) error {
	for key, value := range props {
		if err := zfs.CheckProperty(key, value); err != nil {
			return err
		}
	}
	return nil
}
