package daemon

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/flocker-io/flocker/internal/doctor"
	"github.com/flocker-io/flocker/internal/mounts"
	"github.com/flocker-io/flocker/zfs"
)

// osExaminer is Examiner on the real machine: what the kernel shows in files.
type osExaminer struct {
	cfg       Config
	zfs       *zfs.Host
	proc, sys string
}

// Versions implements Examiner.
func (x osExaminer) Versions(ctx context.Context) (zfs.Capabilities, error) {
	return x.zfs.Versions(ctx)
}

// Features implements Examiner.
func (x osExaminer) Features(ctx context.Context, pool string) (map[string]string, error) {
	return x.zfs.PoolFeatures(ctx, pool)
}

// Clock implements Examiner.
func (x osExaminer) Clock() (*doctor.Clock, error) {
	read := func(name string) (string, error) {
		b, err := os.ReadFile(filepath.Join(x.sys, "devices/system/clocksource/clocksource0", name))
		return strings.TrimSpace(string(b)), err
	}
	now, err := read("current_clocksource")
	if err != nil {
		return nil, err
	}
	all, err := read("available_clocksource")
	return &doctor.Clock{Source: now, Available: strings.Fields(all)}, err
}

// Mount implements Examiner.
func (x osExaminer) Mount() (*doctor.Mount, error) {
	dir, err := filepath.EvalSymlinks(x.cfg.MountDir)
	if os.IsNotExist(err) {
		dir, err = x.cfg.MountDir, nil // it is made with the first volume
	}
	if err != nil {
		return nil, err
	}
	on, err := mounts.Under(x.proc, dir)
	if err != nil {
		return nil, err
	}
	return &doctor.Mount{Dir: x.cfg.MountDir, On: on.Mountpoint, Shared: on.Shared()}, nil
}

// Ports implements Examiner.
func (x osExaminer) Ports(ctx context.Context, member bool) ([]doctor.Port, error) {
	want := []doctor.Port{{For: "flockctl", Network: "unix", Address: x.cfg.Socket(), Unit: "flockd"}}
	if x.cfg.DockerHost != "off" {
		want = append(want, doctor.Port{For: "Docker's volume driver", Network: "unix", Address: x.cfg.PluginSocket, Unit: "flockd"})
	}
	if x.cfg.HTTPListen != "off" {
		want = append(want, doctor.Port{For: "metrics", Network: "tcp", Address: x.cfg.HTTPListen, Unit: "flockd"})
	}
	if member {
		want = append(want,
			doctor.Port{For: "the other nodes", Network: "tcp", Address: x.cfg.Listen, Unit: "flockd"},
			doctor.Port{For: "gossip", Network: "tcp", Address: x.cfg.GossipListen, Unit: "flockd"},
			doctor.Port{For: "gossip", Network: "udp", Address: x.cfg.GossipListen, Unit: "flockd"},
			doctor.Port{For: "clients of routes, from the other nodes", Network: "tcp", Address: x.cfg.ProxyListen, Unit: "flockd-proxy"})
	}
	held := map[string][]string{} // the inodes by network and port, or path
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6", "unix"} {
		if err := x.listening(table, held); err != nil {
			return nil, err
		}
	}
	inodes := map[string]bool{}
	for i := range want {
		for _, inode := range held[portKey(want[i])] {
			want[i].Held, inodes[inode] = true, true
		}
	}
	by, err := x.holders(ctx, inodes)
	if err != nil {
		return nil, err
	}
	for i := range want {
		p := &want[i]
		for _, inode := range held[portKey(*p)] {
			for _, who := range by[inode] {
				p.Ours = p.Ours || who.ours
				p.By = who.name
			}
		}
		if p.Ours {
			p.By = ""
		}
	}
	return want, nil
}

func portKey(p doctor.Port) string {
	if p.Network == "unix" {
		return "unix " + p.Address
	}
	_, port, err := net.SplitHostPort(p.Address)
	if err != nil {
		return p.Network + " " + p.Address // nobody listens there
	}
	return p.Network + " " + port
}

// Of proc_net(5): a TCP socket that listens, a UDP socket that is bound, and a unix socket that
// accepts.
const (
	tcpListen   = "0A"
	udpBound    = "07"
	unixAccepts = 1 << 16
)

// listening adds the sockets of one table that take connections or packets.
func (x osExaminer) listening(table string, held map[string][]string) error {
	file, err := os.Open(filepath.Join(x.proc, "self/net", table))
	if os.IsNotExist(err) && strings.HasSuffix(table, "6") {
		return nil // a kernel without IPv6
	}
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for first := true; lines.Scan(); first = false {
		words := strings.Fields(lines.Text())
		if first {
			continue // the head
		}
		network := strings.TrimSuffix(table, "6")
		if network == "unix" {
			if len(words) < 8 {
				continue // without a name
			}
			flags, err := strconv.ParseUint(words[3], 16, 64)
			if err != nil {
				return fmt.Errorf("%s: cannot read %q", file.Name(), lines.Text())
			}
			if flags&unixAccepts != 0 {
				key := "unix " + words[7]
				held[key] = append(held[key], words[6])
			}
			continue
		}
		if len(words) < 10 {
			return fmt.Errorf("%s: cannot read %q", file.Name(), lines.Text())
		}
		_, hex, _ := strings.Cut(words[1], ":")
		port, err := strconv.ParseUint(hex, 16, 16)
		if err != nil {
			return fmt.Errorf("%s: cannot read %q", file.Name(), lines.Text())
		}
		if network == "tcp" && words[3] == tcpListen || network == "udp" && words[3] == udpBound {
			key := fmt.Sprintf("%s %d", network, port)
			held[key] = append(held[key], words[9])
		}
	}
	return lines.Err()
}

// portHolder is a process: "name (pid)", and whether it is flockd.
type portHolder struct {
	name string
	ours bool
}

// holders are the processes that have sockets of these inodes open. Processes that end meanwhile have
// none, and neither has one that may not be looked into.
func (x osExaminer) holders(ctx context.Context, inodes map[string]bool) (map[string][]portHolder, error) {
	out := map[string][]portHolder{}
	dirs, err := filepath.Glob(filepath.Join(x.proc, "[0-9]*"))
	if err != nil {
		return nil, err // only of a pattern that is none
	}
	for _, dir := range dirs {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		fds, err := os.ReadDir(filepath.Join(dir, "fd"))
		if err != nil {
			continue
		}
		for _, fd := range fds {
			to, err := os.Readlink(filepath.Join(dir, "fd", fd.Name()))
			inode, isSocket := strings.CutPrefix(to, "socket:[")
			inode = strings.TrimSuffix(inode, "]")
			if err != nil || !isSocket || !inodes[inode] {
				continue
			}
			who := portHolder{fmt.Sprintf("%s (%s)", mounts.Command(dir), filepath.Base(dir)), x.ours(dir)}
			if !slices.Contains(out[inode], who) {
				out[inode] = append(out[inode], who)
			}
		}
	}
	return out, nil
}

// identity is what makes a process ours: anybody may take the name. No container has our root, and
// after an upgrade some of ours run the program that was at its path before.
type identity struct {
	program  string
	dev, ino uint64 // of its root
	user     uint32
}

// identify a process by its directory in procfs; not ok when it has ended or may not be looked into.
func identify(dir string) (id identity, ok bool) {
	program, err := os.Readlink(filepath.Join(dir, "exe"))
	if err != nil {
		return identity{}, false
	}
	var root, self unix.Stat_t
	if unix.Stat(filepath.Join(dir, "root"), &root) != nil || unix.Stat(dir, &self) != nil {
		return identity{}, false
	}
	return identity{program: strings.TrimSuffix(program, " (deleted)"), dev: root.Dev, ino: root.Ino, user: self.Uid}, true
}

// ours says whether a process is flockd, or its proxy.
func (x osExaminer) ours(dir string) bool {
	us, known := identify(filepath.Join(x.proc, "self"))
	it, ok := identify(dir)
	return known && ok && it == us
}
