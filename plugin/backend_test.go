package plugin

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// memoryBackend keeps volumes in memory and does to a volume what a test tells it.
type memoryBackend struct {
	dir string

	mu      sync.Mutex
	volumes map[string]*memoryVolume
	cloned  []string
	rules   map[string]rule
}

type memoryVolume struct {
	spec   volume.Spec
	mounts map[string]int
}

// rule is a failure of one volume.
type rule struct {
	refuse error         // every call but Get and List
	panics bool          // every call
	slow   time.Duration // Mount takes so long
	deaf   bool          // and does not hear its context
	begun  chan struct{} // closed by Mount when it has begun; nil: nobody asks
	goOn   chan struct{} // Mount waits for it; nil: it does not
}

func newMemoryBackend(dir string) *memoryBackend {
	return &memoryBackend{dir: dir, volumes: map[string]*memoryVolume{}, rules: map[string]rule{}}
}

func (b *memoryBackend) rule(name string, r rule) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rules[name] = r
}

// check applies the rule of a volume.
func (b *memoryBackend) check(name string) error {
	if b.rules[name].panics {
		panic("told to")
	}
	return b.rules[name].refuse
}

func (b *memoryBackend) Clone(_ context.Context, name string, opts map[string]string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cloned = append(b.cloned, fmt.Sprint(name, " ", opts))
	return nil
}

func (b *memoryBackend) Create(ctx context.Context, name string, spec volume.Spec) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.check(name); err != nil {
		return err
	}
	if v := b.volumes[name]; v != nil {
		if !v.spec.Equal(spec) {
			return volume.Errorf(volume.CodeConflict, "volume %s exists with other options", name)
		}
		return nil
	}
	b.volumes[name] = &memoryVolume{spec: spec, mounts: map[string]int{}}
	return nil
}

func (b *memoryBackend) Remove(ctx context.Context, name string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.check(name); err != nil {
		return err
	}
	if v := b.volumes[name]; v != nil && len(v.mounts) > 0 {
		return volume.Errorf(volume.CodeRefused, "volume %s is in use", name).WithHint("stop its containers first")
	}
	delete(b.volumes, name)
	return nil
}

func (b *memoryBackend) Mount(ctx context.Context, name, id string) (string, error) {
	b.mu.Lock()
	r := b.rules[name]
	b.mu.Unlock()
	if r.begun != nil {
		close(r.begun)
	}
	if r.goOn != nil {
		select {
		case <-r.goOn:
		case <-ctx.Done():
			return "", fmt.Errorf("waiting for the test: %w", ctx.Err())
		}
	}
	if r.slow > 0 {
		wait := ctx.Done()
		if r.deaf {
			wait = nil
		}
		select {
		case <-time.After(r.slow):
		case <-wait:
			return "", fmt.Errorf("waiting for the replica: %w", ctx.Err())
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.check(name); err != nil {
		return "", err
	}
	v := b.volumes[name]
	if v == nil {
		return "", errNoVolume(name)
	}
	v.mounts[id]++
	return b.path(name), nil
}

func (b *memoryBackend) Unmount(ctx context.Context, name, id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.check(name); err != nil {
		return err
	}
	if v := b.volumes[name]; v != nil && v.mounts[id] > 0 {
		if v.mounts[id]--; v.mounts[id] == 0 {
			delete(v.mounts, id)
		}
	}
	return nil
}

func (b *memoryBackend) Get(_ context.Context, name string) (Info, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rules[name].panics {
		panic("told to")
	}
	v := b.volumes[name]
	if v == nil {
		return Info{}, false
	}
	return b.info(name, v), true
}

func (b *memoryBackend) List() []Info {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Info
	for _, name := range slices.Sorted(maps.Keys(b.volumes)) {
		out = append(out, b.info(name, b.volumes[name]))
	}
	return out
}

func (b *memoryBackend) info(name string, v *memoryVolume) Info {
	i := Info{Name: name, Created: time.Unix(1_700_000_000, 0), Status: map[string]any{"replicas": v.spec.Replicas}}
	if len(v.mounts) > 0 {
		i.Mountpoint = b.path(name)
	}
	return i
}

func (b *memoryBackend) path(name string) string {
	return filepath.Join(b.dir, name, "data")
}

// mounts describes who has mounted what: "db(m1*2 m2)".
func (b *memoryBackend) mounts() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, name := range slices.Sorted(maps.Keys(b.volumes)) {
		var ids []string
		for _, id := range slices.Sorted(maps.Keys(b.volumes[name].mounts)) {
			if n := b.volumes[name].mounts[id]; n > 1 {
				id = fmt.Sprintf("%s*%d", id, n)
			}
			ids = append(ids, id)
		}
		out = append(out, fmt.Sprintf("%s(%s)", name, strings.Join(ids, " ")))
	}
	if len(out) == 0 {
		return "no volumes"
	}
	return strings.Join(out, " ")
}
