package fence

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/flocker-io/flocker/internal/mounts"
)

// linux is the kernel this runs on. It reads mount tables, procfs, and ZFS's own list of
// what it has open, none of which waits for a pool; only unmounting does.
type linux struct {
	proc string // /proc
	// unified and freezer are where the hierarchies of cgroup v2 and of v1's freezer are
	// mounted; "" where there is none.
	unified, freezer string
	self             string // container of this process, which it never kills; "" for none
	exe              string // program of this process, and of flockd
}

func newLinux() (*linux, error) {
	k := &linux{proc: "/proc", self: mounts.ContainerOf("/proc/self").ID}
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, fmt.Errorf("finding the own program: %w", err)
	}
	k.exe = program(exe)
	err = mounts.Walk(k.proc, func(v mounts.View) {
		for _, e := range v.Entries {
			switch {
			case !v.Ours:
			case e.FSType == "cgroup2":
				k.unified = e.Mountpoint
			case e.FSType == "cgroup" && strings.Contains(path.Base(e.Mountpoint), "freezer"):
				k.freezer = e.Mountpoint
			}
		}
	})
	return k, err
}

// program is the path of an executable file; a running one may have been replaced.
func program(link string) string { return strings.TrimSuffix(link, " (deleted)") }

// volumeOf is the ID of the volume whose dataset, or a part of whose dataset, this is.
// Snapshots are none: they cannot be written.
func volumeOf(root, dataset string) (id string, ok bool) {
	if strings.Contains(dataset, "@") {
		return "", false
	}
	if root == "" {
		pool, below, _ := strings.Cut(dataset, "/")
		top, _, _ := strings.Cut(below, "/")
		if top != "flocker" {
			return "", false
		}
		root = pool + "/flocker"
	}
	rest, ok := strings.CutPrefix(dataset, root+"/")
	id, _, _ = strings.Cut(rest, "/")
	return id, ok && id != ""
}

// look implements kernel.
func (k *linux) look(root string, thorough bool) (seen, error) {
	s := seen{containers: map[string]mounts.Container{}}
	u := users{k: k, volumes: map[string]string{}, devices: map[string]string{}, known: map[string]bool{}, containers: s.containers}
	mounted := map[string]bool{}
	foreign := map[string][]string{} // containers by namespace
	have := map[string]bool{}
	err := mounts.Walk(k.proc, func(v mounts.View) {
		add := func(e mounts.Entry, volume string, follows bool) {
			if have[e.ID] {
				return // seen before, in another part of the namespace
			}
			have[e.ID] = true
			s.mounts = append(s.mounts, mount{id: e.ID, on: e.Parent, volume: volume, at: e.Mountpoint, ns: v.Namespace,
				pid: v.PID, command: mounts.Command(v.Dir), ours: v.Ours, follows: follows})
			if !v.Ours && !follows {
				foreign[v.Namespace] = nil
			}
		}
		for _, e := range v.Entries {
			u.known[e.ID] = true
			volume, ok := volumeOf(root, e.Source)
			if e.FSType != "zfs" || !ok {
				continue
			}
			mounted[e.Source] = true
			u.volumes[e.ID], u.devices[device(e.Device)] = volume, volume
			follows := v.Follows(e)
			add(e, volume, follows)
			for _, b := range v.Below(e.ID) {
				if _, ours := volumeOf(root, b.Source); !ours || b.FSType != "zfs" {
					u.volumes[b.ID] = volume
					add(b, volume, follows)
				}
			}
		}
	})
	if err != nil {
		return s, err
	}
	if len(foreign) > 0 {
		if err := k.containersIn(foreign, s.containers); err != nil {
			return s, err
		}
		for i, m := range s.mounts {
			s.mounts[i].containers = foreign[m.ns]
		}
	}
	open, err := k.open(root)
	if err != nil {
		return s, err
	}
	for _, dataset := range open {
		if !mounted[dataset] {
			s.hidden = append(s.hidden, dataset)
		}
	}
	if thorough {
		u.hidden = len(s.hidden) > 0
		s.users, err = u.find()
	}
	return s, err
}

// containersIn finds the containers with a process or thread in these namespaces.
func (k *linux) containersIn(namespaces map[string][]string, all map[string]mounts.Container) error {
	return mounts.Threads(k.proc, func(_ int, dir string) error {
		ns, err := os.Readlink(filepath.Join(dir, "ns/mnt"))
		have, ok := namespaces[ns]
		if err != nil || !ok {
			return nil // ended meanwhile, or elsewhere
		}
		c := mounts.ContainerOf(dir)
		if c.ID != "" && c.ID != k.self && !slices.Contains(have, c.ID) {
			namespaces[ns] = append(have, c.ID)
			all[c.ID] = c
		}
		return nil
	})
}

// open are the datasets of volumes that are mounted according to ZFS itself. It counts
// its operations on each of them from when it is mounted until the last user is gone,
// even if no mount table shows it.
func (k *linux) open(root string) ([]string, error) {
	pool, _, _ := strings.Cut(root, "/")
	if pool == "" {
		pool = "*"
	}
	files, err := filepath.Glob(filepath.Join(k.proc, "spl/kstat/zfs", pool, "objset-*"))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, file := range files {
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("datasets that ZFS has open: %w", err)
		}
		for line := range strings.Lines(string(b)) {
			fields := strings.Fields(line)
			if len(fields) < 3 || fields[0] != "dataset_name" {
				continue
			}
			if _, ok := volumeOf(root, fields[2]); ok {
				out = append(out, fields[2])
			}
		}
	}
	return out, nil
}

// device as maps of memory name it: mount tables count in decimal, they in hexadecimal.
func device(decimal string) string {
	major, minor, _ := strings.Cut(decimal, ":")
	a, errA := strconv.Atoi(major)
	b, errB := strconv.Atoi(minor)
	if errA != nil || errB != nil {
		return ""
	}
	return fmt.Sprintf("%02x:%02x", a, b)
}

// ---- who has files open

// users finds processes with files of volumes open.
type users struct {
	k          *linux
	volumes    map[string]string // by ID of the mount
	devices    map[string]string // by device, in hexadecimal
	known      map[string]bool   // IDs of all mounts in all tables
	hidden     bool              // look for files of mounts that are in no table, too
	containers map[string]mounts.Container
}

func (u users) find() ([]process, error) {
	var out []process
	last := 0
	err := mounts.Threads(u.k.proc, func(pid int, dir string) error {
		used := map[string]bool{}
		// A thread may have a place of its own; files and memory are the process's.
		links := []string{"cwd", "root"}
		if pid != last {
			links = append(links, "exe")
			u.files(filepath.Join(u.k.proc, strconv.Itoa(pid)), used)
			u.memory(filepath.Join(u.k.proc, strconv.Itoa(pid)), used)
		}
		last = pid
		for _, l := range links {
			u.link(filepath.Join(dir, l), used)
		}
		if len(used) == 0 {
			return nil
		}
		var volumes []string
		for v := range used {
			volumes = append(volumes, v)
		}
		slices.Sort(volumes)
		if n := len(out); n > 0 && out[n-1].pid == pid {
			out[n-1].volumes = slices.Compact(slices.Sorted(slices.Values(append(out[n-1].volumes, volumes...))))
			return nil
		}
		p := u.k.describe(pid)
		if p.start == "" {
			return nil // it has ended
		}
		p.volumes = volumes
		if c := mounts.ContainerOf(dir); c.ID != "" && c.ID != u.k.self {
			p.container, u.containers[c.ID] = c.ID, c
		}
		out = append(out, p)
		return nil
	})
	return out, err
}

// files looks at a process's descriptors, by what the kernel says of them: asking the
// files themselves could wait for their pool.
func (u users) files(dir string, used map[string]bool) {
	entries, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return // ended
	}
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(dir, "fd", e.Name()))
		if err != nil || !strings.HasPrefix(to, "/") {
			continue // a socket, a pipe, or closed
		}
		u.mount(mountID(filepath.Join(dir, "fdinfo", e.Name())), filepath.Join(dir, "fd", e.Name()), used)
	}
}

// link looks at a link of procfs to a file or directory that a process uses.
func (u users) link(name string, used map[string]bool) {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return // ended, or a thread of the kernel
	}
	defer unix.Close(fd)
	u.mount(mountID(filepath.Join(u.k.proc, "self/fdinfo", strconv.Itoa(fd))), name, used)
}

func (u users) mount(id, name string, used map[string]bool) {
	if v, ok := u.volumes[id]; ok {
		used[v] = true
		return
	}
	if !u.hidden || id == "" || u.known[id] {
		return
	}
	fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) == nil && st.Type == zfsMagic {
		used["a detached dataset"] = true
	}
}

const zfsMagic = 0x2fc12fc1

// memory looks at the files that are mapped into a process's memory: they can be written
// without a descriptor.
func (u users) memory(dir string, used map[string]bool) {
	f, err := os.Open(filepath.Join(dir, "maps"))
	if err != nil {
		return // ended
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 3 {
			if v, ok := u.devices[fields[3]]; ok {
				used[v] = true
			}
		}
	}
}

// mountID of an open file.
func mountID(fdinfo string) string {
	b, err := os.ReadFile(fdinfo)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if id, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strings.TrimSpace(id)
		}
	}
	return ""
}

// others depend on these; see careful.
var carefulCommands = []string{"dockerd", "containerd", "containerd-shim", "sshd"}

func (k *linux) describe(pid int) process {
	dir := filepath.Join(k.proc, strconv.Itoa(pid))
	p := process{pid: pid, start: k.start(pid), command: mounts.Command(dir)}
	exe, _ := os.Readlink(filepath.Join(dir, "exe")) // a thread of the kernel has none
	switch {
	case pid == 1 || pid == os.Getpid():
		p.kind = untouchable
	case program(exe) == k.exe || slices.Contains(carefulCommands, p.command):
		p.kind = careful
	}
	return p
}

// start of a process, as the kernel counts it; "" when it has ended, be it that its
// parent does not know yet.
func (k *linux) start(pid int) string {
	b, err := os.ReadFile(filepath.Join(k.proc, strconv.Itoa(pid), "stat"))
	if err != nil {
		return ""
	}
	// The name may hold spaces and brackets; what follows the last one does not.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return ""
	}
	return fields[19]
}

// ---- stopping

// freeze implements kernel.
func (k *linux) freeze(c mounts.Container) error {
	if dir, ok := k.dir(c); ok {
		return write(filepath.Join(dir, "cgroup.freeze"), "1")
	}
	if dir, ok := k.dirV1(c); ok {
		return write(filepath.Join(dir, "freezer.state"), "FROZEN")
	}
	return nil // it is killed as well without
}

// kill implements kernel.
func (k *linux) kill(c mounts.Container) error {
	if dir, ok := k.dir(c); ok {
		err := write(filepath.Join(dir, "cgroup.kill"), "1")
		if _, gone := os.Stat(filepath.Join(dir, "cgroup.kill")); !errors.Is(gone, fs.ErrNotExist) {
			return err
		}
		return signalAll(dir) // a kernel before 5.14; the frozen ones end, too
	}
	dir, ok := k.dirV1(c)
	if !ok {
		return fmt.Errorf("container %s is in no control group that could be frozen or killed", c.ID)
	}
	// Frozen processes of v1 take the signal when they thaw.
	return errors.Join(signalAll(dir), write(filepath.Join(dir, "freezer.state"), "THAWED"))
}

func (k *linux) dir(c mounts.Container) (string, bool) {
	at, ok := c.Cgroups[""]
	return filepath.Join(k.unified, at), ok && k.unified != ""
}

func (k *linux) dirV1(c mounts.Container) (string, bool) {
	at, ok := c.Cgroups["freezer"]
	return filepath.Join(k.freezer, at), ok && k.freezer != ""
}

// signalAll kills what is in a control group and below.
func signalAll(dir string) error {
	pids, err := members(dir)
	for _, pid := range pids {
		if kerr := unix.Kill(pid, unix.SIGKILL); kerr != nil && kerr != unix.ESRCH {
			err = errors.Join(err, fmt.Errorf("killing process %d: %w", pid, kerr))
		}
	}
	return err
}

func members(dir string) (pids []int, err error) {
	err = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.Name() != "cgroup.procs" {
			return err
		}
		b, err := os.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return err
		}
		for _, word := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(word); err == nil && pid > 1 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids, err
}

// write sets a knob of a control group. One that is gone has nobody in it.
func write(file, value string) error {
	err := os.WriteFile(file, []byte(value), 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// end implements kernel.
func (k *linux) end(p process) error {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err == unix.ESRCH {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	defer unix.Close(fd)
	// From here on the number cannot come to mean another process unnoticed.
	if k.start(p.pid) != p.start {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("%s: %w", p, err)
	}
	return nil
}

// running implements kernel.
func (k *linux) running(p plan) bool {
	for _, c := range p.containers {
		if dir, ok := k.dir(c); ok {
			if b, _ := os.ReadFile(filepath.Join(dir, "cgroup.events")); strings.Contains(string(b), "populated 1") {
				return true
			}
		} else if dir, ok := k.dirV1(c); ok {
			if pids, _ := members(dir); len(pids) > 0 {
				return true
			}
		}
	}
	return slices.ContainsFunc(p.processes, func(p process) bool { return k.start(p.pid) == p.start })
}

// unmount implements kernel. It neither forces nor detaches: with both a writer that is
// left writes on.
func (k *linux) unmount(m mount) error {
	if m.ours {
		return unmount(m)
	}
	done := make(chan error)
	go func() {
		// The thread enters the namespace and, not unlocked again, ends with this function.
		runtime.LockOSThread()
		done <- k.unmountThere(m)
	}()
	return <-done
}

func (k *linux) unmountThere(m mount) error {
	ns, err := os.Open(filepath.Join(k.proc, strconv.Itoa(m.pid), "ns/mnt"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("unmounting %s: %w", m, err)
	}
	defer ns.Close()
	if now, err := os.Readlink(filepath.Join(k.proc, "self/fd", strconv.Itoa(int(ns.Fd())))); err != nil || now != m.ns {
		return nil // the process is another one, or elsewhere
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unmounting %s: %w", m, err)
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unmounting %s: %w", m, err)
	}
	return unmount(m)
}

func unmount(m mount) error {
	switch err := unix.Unmount(m.at, unix.UMOUNT_NOFOLLOW); err {
	case nil, unix.EINVAL, unix.ENOENT: // the last two: nothing is mounted there any more
		return nil
	default:
		return fmt.Errorf("unmounting %s: %w", m, err)
	}
}
