package mounts

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// proc is a made-up /proc: threads with a mount namespace and what is mounted there.
type proc struct {
	pid, tid int
	comm     string
	ns       int
	cgroup   string
	mounts   string // file in testdata, "" for none at all
}

func makeProc(t *testing.T, threads ...proc) string {
	t.Helper()
	root := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range threads {
		dirs := []string{filepath.Join(root, fmt.Sprint(p.pid), "task", fmt.Sprint(p.tid))}
		if p.pid == 1 {
			dirs = append(dirs, filepath.Join(root, "self"))
		}
		for _, dir := range dirs {
			must(os.MkdirAll(filepath.Join(dir, "ns"), 0o755))
			must(os.Symlink(fmt.Sprintf("mnt:[%d]", p.ns), filepath.Join(dir, "ns", "mnt")))
			must(os.Symlink("/", filepath.Join(dir, "root")))
			must(os.WriteFile(filepath.Join(dir, "comm"), []byte(p.comm+"\n"), 0o644))
			must(os.WriteFile(filepath.Join(dir, "cgroup"), []byte("0::"+p.cgroup+"\n"), 0o644))
			if p.mounts != "" {
				data, err := os.ReadFile(filepath.Join("testdata", p.mounts))
				must(err)
				must(os.WriteFile(filepath.Join(dir, "mountinfo"), data, 0o644))
			}
		}
	}
	must(os.MkdirAll(filepath.Join(root, "sys"), 0o755)) // not every entry is a process
	return root
}

const dataset = "tank/flocker/5f2d4be093a1c7de"

func TestHeldBy(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	root := makeProc(t,
		proc{1, 1, "systemd", 100, "/init.scope", "host.mountinfo"},
		proc{50, 50, "cron", 100, "/system.slice/cron.service", "host.mountinfo"},
		proc{300, 300, "redis-server", 200, "/system.slice/docker-" + id + ".scope", "container.mountinfo"},
		proc{301, 301, "sh", 200, "/system.slice/docker-" + id + ".scope", "container.mountinfo"},
		proc{400, 400, "resolved", 300, "/system.slice/systemd-resolved.service", "follower.mountinfo"},
		proc{410, 410, "backup", 310, "/system.slice/backup.service", "private.mountinfo"},
		proc{500, 500, "dockerd", 100, "/system.slice/docker.service", "host.mountinfo"},
		proc{500, 512, "dockerd", 400, "/system.slice/docker.service", "copy.mountinfo"},
		proc{600, 600, "gone", 500, "/", ""}, // ended between two looks
	)
	want := []string{
		"process 1 (systemd) at /var/lib/flocker/mnt/5f2d4be093a1c7de",
		"process 300 (redis-server) of container 0123456789ab at /data in its own mount namespace",
		"process 400 (resolved) at /var/lib/flocker/mnt/5f2d4be093a1c7de in its own mount namespace",
		"process 410 (backup) at /var/lib/flocker/mnt/5f2d4be093a1c7de in its own mount namespace",
		"process 500 (dockerd) at /var/lib/docker/overlay2/copy/merged/my data in its own mount namespace",
	}
	for _, what := range []string{dataset, "/var/lib/flocker/mnt/5f2d4be093a1c7de"} {
		holders, err := HeldBy(root, what)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, h := range holders {
			got = append(got, h.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("HeldBy(%s) =\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		foreign := Foreign(holders, "/var/lib/flocker/mnt/5f2d4be093a1c7de")
		if len(foreign) != len(want)-2 || foreign[0].PID != 300 || foreign[0].Container != id || foreign[1].PID != 410 {
			t.Errorf("Foreign = %v; want all but our own mount and the one that follows it", foreign)
		}
	}

	held, err := Held(root, func(source string) bool { return strings.HasPrefix(source, "tank/flocker/") })
	if err != nil || len(held) != 2 || len(held[dataset]) != len(want) || len(held["tank/flocker/77ab4be093a1c7de"]) != 1 {
		t.Errorf("Held = %v, %v; want both datasets", held, err)
	}
	for _, what := range []string{"tank/flocker/5f2d", "tank/flocker", "/nowhere"} {
		if holders, err := HeldBy(root, what); err != nil || len(holders) != 0 {
			t.Errorf("HeldBy(%s) = %v, %v; want none", what, holders, err)
		}
	}
}

// What cannot be looked into is not taken for free.
func TestHeldByUnreadable(t *testing.T) {
	root := makeProc(t,
		proc{1, 1, "systemd", 100, "/", "host.mountinfo"},
		proc{300, 300, "secret", 200, "/", ""},
	)
	if err := os.Mkdir(filepath.Join(root, "300/task/300/mountinfo"), 0o755); err != nil {
		t.Fatal(err)
	}
	if holders, err := HeldBy(root, dataset); err == nil {
		t.Errorf("HeldBy = %v; want an error", holders)
	}
	if _, err := HeldBy(t.TempDir(), dataset); err == nil {
		t.Error("HeldBy without /proc succeeded")
	}
}

// The real /proc of this machine, whatever runs on it.
func TestHeldByLive(t *testing.T) {
	holders, err := HeldBy("/proc", "/proc")
	if errors.Is(err, fs.ErrPermission) {
		t.Skipf("not allowed to look into all processes: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(holders, func(h Holder) bool { return h.Ours && h.Mountpoint == "/proc" }) {
		t.Errorf("HeldBy(/proc) = %v; want our own among them", holders)
	}
}

func FuzzParseMountinfo(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.mountinfo")
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`1 2 0:3 /a\040b /c\134\011 rw - zfs a\0`))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := parseMountinfo(bytes.NewReader(b))
		if err != nil {
			return
		}
		// Every line is an entry: none may be skipped, it could be the one that matters.
		if lines := bytes.Count(bytes.TrimSuffix(b, []byte("\n")), []byte("\n")) + 1; len(b) > 0 && len(entries) != lines {
			t.Errorf("%d entries from %d lines of %q", len(entries), lines, b)
		}
	})
}
