package zfsfake

import (
	"bytes"
	"context"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"syscall"

	"github.com/flocker-io/flocker/zfs"
)

// CreateVolume makes a block device, as somebody may by hand. Only its place among the
// datasets is like the real thing: it holds nothing.
func (h *Host) CreateVolume(name string) error {
	return h.command(context.Background(), "create-volume", name, func() error {
		p, err := h.parentOf("create", name)
		if err == nil {
			err = p.begin(datasetOver)
		}
		if err == nil {
			h.add(p, name).volume = true
		}
		return err
	})
}

// What programs on the machine do with a mounted filesystem. Errors of writing are
// *fs.PathError with the errno a program would get.

// WriteFile writes a whole file into the mounted dataset: EROFS when it is not
// mounted writable here, EDQUOT past refquota, ENOSPC on a full pool, EIO when the
// pool is suspended. The data is durable after Sync, as told in the package comment.
func (h *Host) WriteFile(name, file string, data []byte) error {
	return h.change("write", name, file, func(d *dataset) error {
		if q := d.refquota(); q > 0 && datasetOver+d.head.size+(&blob{data: data}).size() > q {
			return syscall.EDQUOT
		}
		if d.pool.alloc+(&blob{data: data}).size() > d.pool.size {
			return syscall.ENOSPC
		}
		d.dirty()
		d.head.set(file, bytes.Clone(data))
		return nil
	})
}

// RemoveFile removes a file of the mounted dataset.
func (h *Host) RemoveFile(name, file string) error {
	return h.change("remove", name, file, func(d *dataset) error {
		if d.head.files[file] == nil {
			return syscall.ENOENT
		}
		d.dirty()
		d.head.remove(file)
		return nil
	})
}

func (h *Host) change(op, name, file string, do func(*dataset) error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	d, err := h.dataset(name)
	if err == nil {
		h.settle(d.pool)
		m := h.mounts[d]
		switch {
		case m == nil || !m.writable:
			err = syscall.EROFS
		case d.pool.suspended:
			err = syscall.EIO
		default:
			err = do(d)
			if h.options.TxgTimeout < 0 {
				d.sync()
			}
		}
	}
	if err != nil {
		return &fs.PathError{Op: op, Path: name + ":" + file, Err: err}
	}
	return nil
}

// Sync writes the transaction group: what was written to a dataset is durable, and seen.
func (h *Host) Sync(dataset string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	d, err := h.dataset(dataset)
	if err != nil {
		return wrap("sync", err)
	}
	if d.pool.suspended {
		return &fs.PathError{Op: "sync", Path: dataset, Err: syscall.EIO}
	}
	d.sync()
	return nil
}

// Fsync is a program's fsync of all files of a dataset: a Crash does not take them, but
// they are in its intent log only. Written, snapshots and streams see them when their
// transaction group is written, or after a crash when the dataset is mounted again; what
// is received before that overwrites them.
func (h *Host) Fsync(dataset string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	d, err := h.dataset(dataset)
	if err != nil {
		return wrap("fsync", err)
	}
	if d.pool.suspended {
		return &fs.PathError{Op: "fsync", Path: dataset, Err: syscall.EIO}
	}
	if d.synced != nil {
		d.dropLog()
		d.log = d.head.view()
	}
	return nil
}

// ReadFile reads a file of a dataset's head or, with "dataset@snap", of a
// snapshot, mounted or not.
func (h *Host) ReadFile(name, file string) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t, err := h.content(name)
	if err != nil {
		return nil, wrap("read", err)
	}
	b := t.files[file]
	if b == nil {
		return nil, &fs.PathError{Op: "read", Path: name + ":" + file, Err: syscall.ENOENT}
	}
	return bytes.Clone(b.data), nil
}

// ReadSnapshotFile is ReadFile for "dataset@snap".
func (h *Host) ReadSnapshotFile(snapshot, file string) ([]byte, error) {
	return h.ReadFile(snapshot, file)
}

// Files are the paths in a dataset's head or in a snapshot, in order.
func (h *Host) Files(name string) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t, err := h.content(name)
	if err != nil {
		return nil, wrap("files", err)
	}
	return t.paths(), nil
}

// Checksum covers paths and contents of a dataset's head or of a snapshot: equal
// on two hosts only when the files are.
func (h *Host) Checksum(name string) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t, err := h.content(name)
	if err != nil {
		return "", wrap("checksum", err)
	}
	return t.checksum(), nil
}

func (h *Host) content(name string) (*tree, error) {
	if strings.Contains(name, "@") {
		s, err := h.snapshot(name)
		if err != nil {
			return nil, err
		}
		return s.tree, nil
	}
	d, err := h.dataset(name)
	if err != nil {
		return nil, err
	}
	return d.head, nil
}

// Mount is one line of the mount table.
type Mount struct {
	Dataset  string
	Path     string
	Writable bool
	InUse    bool
}

// Mounts is the mount table, in the order of dataset names.
func (h *Host) Mounts() []Mount {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []Mount
	for d, m := range h.mounts {
		out = append(out, Mount{d.name, m.path, m.writable, m.inUse})
	}
	slices.SortFunc(out, func(a, b Mount) int { return strings.Compare(a.Dataset, b.Dataset) })
	return out
}

// SetInUse says that a process has files of the mounted dataset open, or not any
// more; while one has, it cannot be unmounted.
func (h *Host) SetInUse(dataset string, inUse bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	d, err := h.dataset(dataset)
	if err != nil {
		return wrap("use", err)
	}
	m := h.mounts[d]
	if m == nil {
		return &zfs.Error{Op: "use", Kind: zfs.ErrNotFound, Stderr: dataset + " is not mounted"}
	}
	m.inUse = inUse
	return nil
}

// SuspendPool makes a pool refuse every change, as one whose disks are gone, until
// it is called with false.
func (h *Host) SuspendPool(pool string, suspended bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.pools[pool]; p != nil {
		p.suspended = suspended
	}
}

// SetCapacity changes the size of a pool; smaller than what is in it means full.
func (h *Host) SetCapacity(pool string, size int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.pools[pool]; p != nil {
		p.size = size
	}
}

// ExportPool takes a pool away until ImportPool brings it back.
func (h *Host) ExportPool(pool string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.pools[pool]; p != nil {
		for _, d := range p.datasets {
			d.sync()
			delete(h.mounts, d)
		}
		p.imported = false
	}
}

// Crash is a power cut and the boot after it, in one instant: commands under way
// end with ErrCrashed and change nothing any more, mounts are gone, heads go back
// to what was durable, and of interrupted receives only resumable ones remain.
// What a command had committed is there.
func (h *Host) Crash() {
	h.mu.Lock()
	defer h.mu.Unlock()
	kill := h.kill
	h.newLife()
	clear(h.mounts)
	for dir, s := range h.looks {
		s.looked--
		delete(h.looks, dir)
	}
	for _, p := range h.pools {
		h.settle(p)
		for d := range p.unsynced {
			d.head.drop()
			d.head, d.changed, d.synced = d.synced, d.syncedChanged, nil
		}
		clear(p.unsynced)
		for _, d := range slices.Collect(maps.Values(p.datasets)) {
			for _, s := range d.snaps {
				s.sending = 0
			}
			if d.partial != nil {
				h.interrupt(d)
			}
		}
	}
	kill(ErrCrashed)
}

// RenewPool is zpool destroy and zpool create: the pool is another one of that name, with nothing in
// it. It is busy while somebody uses a mounted filesystem, or a stream is read or received.
func (h *Host) RenewPool(pool string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.pools[pool]
	if p == nil || !p.imported {
		return wrap("renew-pool", fail(zfs.ErrNotFound, "cannot open '%s': no such pool", pool))
	}
	busy := fail(zfs.ErrBusy, "cannot destroy '%s': pool is busy", pool)
	for _, d := range p.datasets {
		if m := h.mounts[d]; m != nil && m.inUse || d.partial != nil && !d.partial.kept {
			return wrap("renew-pool", busy)
		}
		if slices.ContainsFunc(d.snaps, func(s *snapshot) bool { return s.sending+s.looked > 0 }) {
			return wrap("renew-pool", busy)
		}
	}
	for _, d := range p.datasets {
		delete(h.mounts, d)
	}
	h.addPool(pool, p.path, p.size)
	return nil
}
