package zfs_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfstest"
)

// poolVariable names the pool that the suite may use. The lab sets it.
const poolVariable = "FLOCKER_ZFS_POOL"

// TestConformance runs the suite on real ZFS: as root, with one side in the pool
// given and the other in a pool of its own on a file. It is built like every test
// and run by the lab, on a node: go test -c ./zfs.
func TestConformance(t *testing.T) {
	pool := os.Getenv(poolVariable)
	if pool == "" {
		t.Skipf("run by the lab, on a node with ZFS (%s is not set)", poolVariable)
	}
	host := zfs.New(zfs.Options{Ahead: true}) // as flockd has it
	t.Cleanup(host.Close)
	run := fmt.Sprintf("zfstest-%08x", rand.Uint32())
	dir, err := os.MkdirTemp("/var/tmp", run)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })

	other := strings.ReplaceAll(run, "-", "")
	if err := host.CreateFilePool(t.Context(), other, filepath.Join(dir, "b.img"), 2<<30); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { command(t, "zpool", "destroy", "-f", other) })
	rootA, rootB := pool+"/"+run, other+"/"+run
	for _, root := range []string{rootA, rootB} {
		if err := host.CreateFilesystem(t.Context(), root, map[string]string{"mountpoint": "none"}); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { command(t, "zfs", "destroy", "-R", "-f", rootA) })

	n := 0
	zfstest.Run(t, func(t *testing.T) zfstest.Env {
		n++
		env := zfstest.Env{
			A: side(t, host, pool, fmt.Sprintf("%s/t%d", rootA, n), dir),
			B: side(t, host, other, fmt.Sprintf("%s/t%d", rootB, n), dir),
		}
		env.NewPool = func(t *testing.T) (name, path string, export, destroy func()) {
			name = fmt.Sprintf("%sx%d", other, n)
			return name, filepath.Join(dir, name+".img"),
				func() { command(t, "zpool", "export", name) }, func() { command(t, "zpool", "destroy", "-f", name) }
		}
		return env
	})
}

func side(t *testing.T, host *zfs.Host, pool, root, dir string) zfstest.Side {
	if err := host.CreateFilesystem(t.Context(), root, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := host.Destroy(context.Background(), root); err != nil {
			t.Logf("cleaning up: %v", err)
		}
	})
	at := func(dataset string) string { return filepath.Join(dir, "mnt", dataset) }
	path := func(dataset, file string) string { return filepath.Join(at(dataset), file) }
	return zfstest.Side{
		ZFS: host, Root: root, Pool: pool, Mountpoint: at,
		Write: func(dataset, file string, data []byte) error {
			f, err := os.OpenFile(path(dataset, file), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			defer f.Close()
			if _, err := f.Write(data); err != nil {
				return err
			}
			return f.Sync()
		},
		Remove: func(dataset, file string) error { return os.Remove(path(dataset, file)) },
		Read:   func(dataset, file string) ([]byte, error) { return os.ReadFile(path(dataset, file)) },
		Files: func(dataset string) (names []string, err error) {
			entries, err := os.ReadDir(at(dataset))
			for _, e := range entries {
				names = append(names, e.Name())
			}
			return names, err
		},
		CreateVolume: func(name string) error {
			// Without a device node, which something on the machine might open.
			out, err := exec.Command("zfs", "create", "-s", "-V", "16M", "-o", "volmode=none", name).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		},
		Send: func(args ...string) ([]byte, error) {
			var stderr bytes.Buffer
			cmd := exec.Command("zfs", append([]string{"send"}, args...)...)
			cmd.Stderr = &stderr
			stream, err := cmd.Output()
			if err != nil {
				return nil, fmt.Errorf("zfs send %q: %w: %s", args, err, &stderr)
			}
			return stream, nil
		},
		Full: func() { host.PruneFull(pool) },
		Open: func(_, dir string) (func(), error) {
			f, err := os.Open(dir)
			return func() { f.Close() }, err
		},
		Look: func(_, dir, file string) ([]byte, error) { return os.ReadFile(filepath.Join(dir, file)) },
		Use: func(dataset, file string) (func(), error) {
			f, err := os.Open(path(dataset, file))
			return func() { f.Close() }, err
		},
	}
}

// command runs one for the cleaning up, which System must not be able to do.
func command(t *testing.T, argv ...string) {
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Logf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
}
