package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing/fstest"
	"time"

	"github.com/flocker-io/flocker/internal/browse"
	"github.com/flocker-io/flocker/internal/daemon"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// trees is daemon.Trees of one machine. What has rotted reads differently from what
// was written, and no checksum of the pool's notices.
type trees struct {
	zfs *zfsfake.Host

	mu     sync.Mutex
	opened int
	open   map[string]bool // directories in use
	rotten map[string]bool // "dataset file"
	pace   time.Duration   // what each byte takes to be read
}

// slow makes every byte take so long to be read.
func (t *trees) slow(pace time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pace = pace
}

// paced gives one byte in the time that it takes.
type paced struct {
	*bytes.Reader
	pace time.Duration
}

func (p paced) Read(b []byte) (int, error) {
	time.Sleep(p.pace)
	return p.Reader.Read(b[:min(1, len(b))])
}

func (p paced) Close() error { return nil }

func (t *trees) rot(dataset, file string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rotten == nil {
		t.rotten = map[string]bool{}
	}
	t.rotten[dataset+" "+file] = true
}

// Open implements daemon.Trees.
func (t *trees) Open(ctx context.Context, snapshot string) (daemon.Tree, error) {
	t.mu.Lock()
	t.opened++
	dir := fmt.Sprintf("/verify/%d", t.opened)
	if t.open == nil {
		t.open = map[string]bool{}
	}
	t.open[dir] = true
	t.mu.Unlock()
	if err := t.zfs.MountSnapshot(ctx, snapshot, dir); err != nil {
		t.forget(dir)
		return nil, err
	}
	return &tree{trees: t, snapshot: snapshot, dir: dir}, nil
}

// Tidy implements daemon.Trees.
func (t *trees) Tidy(ctx context.Context) error {
	var errs []error
	for _, dir := range t.zfs.SnapshotMounts() {
		t.mu.Lock()
		used := t.open[dir]
		t.mu.Unlock()
		if !used {
			errs = append(errs, t.zfs.UnmountSnapshot(ctx, dir))
		}
	}
	return errors.Join(errs...)
}

func (t *trees) forget(dir string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, dir)
}

// restarted is what a new flockd knows of what the old one had open.
func (t *trees) restarted() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open = nil
}

type tree struct {
	trees         *trees
	snapshot, dir string
}

// Walk implements daemon.Tree.
func (t *tree) Walk(ctx context.Context, f func(daemon.Entry) error) error {
	files, err := t.trees.zfs.Files(t.snapshot)
	if err != nil {
		return err
	}
	dataset, _, _ := strings.Cut(t.snapshot, "@")
	for _, file := range files {
		data, err := t.trees.zfs.ReadFile(t.snapshot, file)
		if err != nil {
			return err
		}
		t.trees.mu.Lock()
		if t.trees.rotten[dataset+" "+file] && len(data) > 0 {
			data[0] ^= 1
		}
		pace := t.trees.pace
		t.trees.mu.Unlock()
		err = f(daemon.Entry{Path: file, Mode: 0o100644, Size: int64(len(data)), Open: func() (io.ReadCloser, error) {
			if pace > 0 {
				return paced{bytes.NewReader(data), pace}, nil
			}
			return io.NopCloser(bytes.NewReader(data)), nil
		}})
		if err != nil {
			return err
		}
	}
	return nil
}

// Files implements daemon.Tree. What is in a dataset here is what containers have written:
// there is no data directory. Whether the volume is all of it, its dataset says, too.
func (t *tree) Files(whole bool) (browse.Files, error) {
	ds, _, _ := strings.Cut(t.snapshot, "@")
	if err := saysWhole(t.trees.zfs, ds, whole); err != nil {
		return nil, err
	}
	all, err := t.trees.zfs.Files(t.snapshot)
	if err != nil {
		return nil, err
	}
	fsys := fstest.MapFS{}
	for _, name := range all {
		data, err := t.trees.zfs.ReadFile(t.snapshot, name)
		if err != nil {
			return nil, err
		}
		fsys[name] = &fstest.MapFile{Data: data, Mode: 0o644}
	}
	return browse.Of(fsys), nil
}

// Close implements daemon.Tree.
func (t *tree) Close() error {
	defer t.trees.forget(t.dir)
	return t.trees.zfs.UnmountSnapshot(context.Background(), t.dir)
}
