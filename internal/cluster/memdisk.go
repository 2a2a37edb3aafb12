package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// MemDisk is a Disk in memory. It outlives the Cluster that uses it, so that a test
// can restart a node; everything written is durable at once. It works in a synctest
// bubble.
type MemDisk struct {
	mu    sync.Mutex
	cond  *sync.Cond
	files map[string][]byte
	store *raft.InmemStore
	snaps *memSnapshots
	stall bool
	slow  time.Duration
}

// NewMemDisk is an empty disk.
func NewMemDisk() *MemDisk {
	d := &MemDisk{files: map[string][]byte{}, snaps: &memSnapshots{}}
	d.cond = sync.NewCond(&d.mu)
	return d
}

// Stall makes every write wait until Stall(false): a disk that hangs.
func (d *MemDisk) Stall(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stall = on
	d.cond.Broadcast()
}

// Slow makes every write to the Raft log take so long.
func (d *MemDisk) Slow(each time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slow = each
}

func (d *MemDisk) lockForWrite() {
	d.mu.Lock()
	for d.stall {
		d.cond.Wait()
	}
}

// Read a file.
func (d *MemDisk) Read(name string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b, ok := d.files[name]
	if !ok {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fs.ErrNotExist}
	}
	return slices.Clone(b), nil
}

// Write a file.
func (d *MemDisk) Write(name string, data []byte) error {
	d.lockForWrite()
	defer d.mu.Unlock()
	d.files[name] = slices.Clone(data)
	return nil
}

// Remove a file.
func (d *MemDisk) Remove(name string) error {
	d.lockForWrite()
	defer d.mu.Unlock()
	delete(d.files, name)
	return nil
}

// HasRaft says whether OpenRaft was called before.
func (d *MemDisk) HasRaft() (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.store != nil, nil
}

// DropRaft forgets them.
func (d *MemDisk) DropRaft() error {
	d.lockForWrite()
	defer d.mu.Unlock()
	d.store, d.snaps = nil, &memSnapshots{}
	return nil
}

// OpenRaft gives the same stores each time.
func (d *MemDisk) OpenRaft(hclog.Logger) (*Stores, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.store == nil {
		d.store = raft.NewInmemStore()
	}
	return &Stores{
		Logs: memLogs{d.store, d}, Stable: d.store, Snapshots: d.snaps,
		Close: func() error { return nil },
	}, nil
}

// memLogs is raft's own store with writes that can be stalled.
type memLogs struct {
	*raft.InmemStore
	disk *MemDisk
}

func (l memLogs) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

func (l memLogs) StoreLogs(entries []*raft.Log) error {
	l.disk.lockForWrite()
	slow := l.disk.slow
	l.disk.mu.Unlock()
	time.Sleep(slow)
	return l.InmemStore.StoreLogs(entries)
}

// memSnapshots keeps the newest complete snapshot. Raft's own in-memory store also
// shows one that is still being written.
type memSnapshots struct {
	mu     sync.Mutex
	newest *memSnapshot
}

type memSnapshot struct {
	store *memSnapshots
	meta  raft.SnapshotMeta
	buf   bytes.Buffer
}

func (m *memSnapshots) Create(version raft.SnapshotVersion, index, term uint64,
	configuration raft.Configuration, configurationIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	return &memSnapshot{store: m, meta: raft.SnapshotMeta{
		Version: version, ID: fmt.Sprintf("%d-%d", term, index), Index: index, Term: term,
		Configuration: configuration, ConfigurationIndex: configurationIndex,
	}}, nil
}

func (m *memSnapshots) List() ([]*raft.SnapshotMeta, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.newest == nil {
		return nil, nil
	}
	meta := m.newest.meta
	return []*raft.SnapshotMeta{&meta}, nil
}

func (m *memSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.newest == nil || m.newest.meta.ID != id {
		return nil, nil, errors.New("no such snapshot")
	}
	meta := m.newest.meta
	return &meta, io.NopCloser(bytes.NewReader(m.newest.buf.Bytes())), nil
}

func (s *memSnapshot) Write(p []byte) (int, error) { return s.buf.Write(p) }

func (s *memSnapshot) Close() error {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	s.meta.Size = int64(s.buf.Len())
	s.store.newest = s
	return nil
}

func (s *memSnapshot) ID() string    { return s.meta.ID }
func (s *memSnapshot) Cancel() error { return nil }
