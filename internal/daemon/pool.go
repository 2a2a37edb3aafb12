package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// Pools is what setting up a node's pool needs of ZFS.
type Pools interface {
	Pool(ctx context.Context, name string) (zfs.Pool, error)
	CreateFilePool(ctx context.Context, pool, path string, size int64) error
	ImportPool(ctx context.Context, name, dir string) error
}

// defaultFilePool is the name of a pool that flockd makes itself.
const defaultFilePool = "flockerpool"

// localSetup is what this node alone has to remember of its init or join.
type localSetup struct {
	Pool     string `json:"pool,omitempty"` // "" on a witness
	PoolFile string `json:"pool_file,omitempty"`
}

func setupPath(stateDir string) string { return filepath.Join(stateDir, "setup.json") }

func readSetup(stateDir string) (localSetup, error) {
	var s localSetup
	b, err := os.ReadFile(setupPath(stateDir))
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return s, fmt.Errorf("reading %s: %w", setupPath(stateDir), err)
	}
	return s, nil
}

func writeSetup(stateDir string, s localSetup) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return err
	}
	path := setupPath(stateDir)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return os.Rename(path+".new", path)
}

// preparePool checks or makes the pool that init or join named. It changes nothing
// when it refuses.
func preparePool(ctx context.Context, pools Pools, stateDir string, req api.NodeSetup, witness bool) (localSetup, error) {
	switch {
	case witness && (req.Pool != "" || req.PoolFileSize != 0):
		return localSetup{}, volume.Errorf(volume.CodeInvalid, "a witness has no pool").WithHint("leave --pool and --pool-file away")
	case witness:
		return localSetup{}, nil
	case req.PoolFileSize == 0 && req.Pool == "":
		return localSetup{}, volume.Errorf(volume.CodeInvalid, "no pool given").
			WithHint("name a zpool with --pool, or have one made in a file with --pool-file 20G")
	case req.PoolFileSize == 0:
		if _, err := pools.Pool(ctx, req.Pool); err != nil {
			if errors.Is(err, zfs.ErrNoZFS) {
				return localSetup{}, volume.Errorf(volume.CodeUnavailable, "ZFS does not work on this node: %v", err).
					WithHint("scripts/provision installs it; `modprobe zfs` loads it")
			}
			if errors.Is(err, zfs.ErrNotFound) {
				return localSetup{}, volume.Errorf(volume.CodeInvalid, "no zpool named %q on this node", req.Pool).
					WithHint("`zpool list` shows what there is; --pool-file 20G makes one in a file")
			}
			return localSetup{}, err
		}
		return localSetup{Pool: req.Pool}, nil
	}
	if req.PoolFileSize < 256<<20 {
		return localSetup{}, volume.Errorf(volume.CodeInvalid, "a pool of %s is too small", volume.FormatSize(req.PoolFileSize)).
			WithHint("give --pool-file at least 256M")
	}
	s := localSetup{Pool: req.Pool, PoolFile: req.PoolFilePath}
	if s.Pool == "" {
		s.Pool = defaultFilePool
	}
	if s.PoolFile == "" {
		s.PoolFile = filepath.Join(stateDir, "pool", s.Pool+".img")
	}
	if !filepath.IsAbs(s.PoolFile) {
		return localSetup{}, volume.Errorf(volume.CodeInvalid, "pool file %q: want an absolute path", s.PoolFile)
	}
	if err := os.MkdirAll(filepath.Dir(s.PoolFile), 0o700); err != nil {
		return localSetup{}, err
	}
	err := pools.CreateFilePool(ctx, s.Pool, s.PoolFile, req.PoolFileSize)
	if errors.Is(err, zfs.ErrExists) {
		// A pool left by an init that did not come to its end is taken as it is.
		if ierr := openPool(ctx, pools, s); ierr == nil {
			return s, nil
		}
	}
	return s, err
}

// openPool makes sure that a node's pool is imported; one that lives in a file is
// not found by the boot scripts.
func openPool(ctx context.Context, pools Pools, s localSetup) error {
	_, err := pools.Pool(ctx, s.Pool)
	if errors.Is(err, zfs.ErrNotFound) && s.PoolFile != "" {
		return pools.ImportPool(ctx, s.Pool, filepath.Dir(s.PoolFile))
	}
	if err != nil {
		return fmt.Errorf("opening pool %s: %w", s.Pool, err)
	}
	return nil
}

// poolHealth is the word that zpool has for the state of the pool.
func (m *member) poolHealth(ctx context.Context) (string, error) {
	p, err := m.zfs.Pool(ctx, m.layout.Pool)
	return p.Health, err
}

// writeCanary writes a little to the pool, and returns when its disks have it. The
// value is another one each time, or nothing would be written.
func (m *member) writeCanary(ctx context.Context) error {
	now := m.now().UTC().Format(time.RFC3339Nano)
	return m.zfs.SetProperties(ctx, m.layout.Root(), map[string]string{"flocker:canary": now})
}
