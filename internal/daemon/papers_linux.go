package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"os"

	"github.com/flocker-io/flocker/internal/agent"
	"github.com/flocker-io/flocker/zfs"
)

// papersOf is Parts.Papers of the real machine.
func papersOf(cfg Config, host *zfs.Host, pool string) []Paper {
	file := func(name, path string) Paper {
		return Paper{Name: name, Ask: func(context.Context) (string, error) {
			b, err := os.ReadFile(path)
			return string(b), err
		}}
	}
	all := []Paper{
		{Name: "config.json", Ask: func(context.Context) (string, error) {
			b, err := json.MarshalIndent(cfg, "", " ") // it has no secrets, only paths
			return string(b) + "\n", err
		}},
		file("kernel.txt", "/proc/version"),
		file("os-release.txt", "/etc/os-release"),
		file("mounts.txt", "/proc/self/mountinfo"),
		file("memory.txt", "/proc/meminfo"),
		file("load.txt", "/proc/loadavg"),
		file("pressure-io.txt", "/proc/pressure/io"),
	}
	if pool == "" {
		return all
	}
	all = append(all, Paper{Name: "zpool-status.txt", Ask: func(ctx context.Context) (string, error) { return host.PoolStatus(ctx, pool) }})
	l := agent.Layout{Pool: pool}
	for name, root := range map[string]string{"zfs-list.txt": l.Root(), "zfs-list-trash.txt": l.Trash(), "zfs-list-aside.txt": l.Aside(), "zfs-list-restore.txt": l.Restores()} {
		all = append(all, Paper{Name: name, Ask: func(ctx context.Context) (string, error) {
			out, err := host.Listing(ctx, root)
			if errors.Is(err, zfs.ErrNotFound) && root == l.Restores() {
				return "nothing was ever restored here\n", nil
			}
			return out, err
		}})
	}
	return all
}
