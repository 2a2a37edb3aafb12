package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/cluster"
	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/fence"
	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/version"
	"github.com/flocker-io/flocker/plugin"
	"github.com/flocker-io/flocker/proxy"
	"github.com/flocker-io/flocker/replicate"
	"github.com/flocker-io/flocker/zfs"
)

// Real makes the Parts of a node on this machine.
func Real(cfg Config, log *slog.Logger) (Parts, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Parts{}, fmt.Errorf("asking for the boot ID: %w", err)
	}
	_, proxyPort, err := net.SplitHostPort(cfg.ProxyListen)
	if err != nil {
		return Parts{}, fmt.Errorf("proxy_listen %q: %w", cfg.ProxyListen, err)
	}
	metrics := NewMetrics(version.Version)
	t := profiles[cfg.Profile]
	timing := cluster.Timing{Heartbeat: t.Raft, Election: t.Raft, LeaderLease: t.Raft * 2 / 3, Stable: t.Stable, Commit: t.Commit, Canary: t.Hang}
	host := zfs.New(zfs.Options{
		Observe: func(op string, _ []string, took time.Duration, err error) { metrics.Command(op, took, err) },
		Ahead:   true,
	})
	p := Parts{
		Version: version.Version, BootID: strings.TrimSpace(string(boot)), Log: log, Timers: t, Metrics: metrics,
		StateDir: cfg.StateDir, MountDir: cfg.MountDir, Files: osFiles{},
		ZFS:   host,
		Trees: &osTrees{zfs: host, dir: filepath.Join(cfg.RunDir, "verify")},

		Examiner: osExaminer{cfg: cfg, zfs: host, proc: "/proc", sys: "/sys"},
		Papers:   func(pool string) []Paper { return papersOf(cfg, host, pool) },
		Dirty:    func(pool string) replicate.Dirty { return replicate.Kstats{Pool: pool} },
		Cluster:  cluster.Config{Listen: cfg.Listen, GossipListen: cfg.GossipListen, Timing: timing},
		Local:    func() (net.Listener, error) { return api.ListenUnix(cfg.Socket(), api.SocketGroup) },
		Pool:     cfg.Pool,
		Fencer:   fence.Dial(filepath.Join(cfg.RunDir, "fence.sock")),
		StopWriters: func(ctx context.Context, root string) error {
			return fence.Instead(ctx, log, cfg.RunDir, root)
		},
		Proxy: proxy.Dial(filepath.Join(cfg.RunDir, "proxy.sock")), ProxyPort: proxyPort, Probe: proxy.ProbeAt,
		Close: host.Close,
	}
	if cfg.DockerHost != "off" {
		p.Engine = &container.Docker{Host: cfg.DockerHost, Driver: plugin.Name}
		p.Plugin = cfg.PluginSocket
		if doors, err := newDoors(filepath.Join(cfg.StateDir, "warm")); err != nil {
			log.Warn("no container is started ahead of its volume on this node", "err", err)
		} else {
			p.Doors = doors
		}
	}
	return p, nil
}

// bootClock reads CLOCK_BOOTTIME: Go's own monotonic clock stands still while the
// machine sleeps, and a lease does not.
func bootClock() lease.Moment {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("reading CLOCK_BOOTTIME: %v", err)) // it is there since Linux 2.6.39
	}
	return lease.Moment(ts.Nano())
}
