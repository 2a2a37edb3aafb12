package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/agent"
	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/mounts"
)

// Every line that would use the dataset, or what is in it, is found, and no other one.
func TestRefers(t *testing.T) {
	etc := t.TempDir()
	link := filepath.Join(etc, "link")
	pg := filepath.Join(etc, "srv/pg data")
	if err := os.MkdirAll(filepath.Join(pg, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(etc, "srv"), link); err != nil {
		t.Fatal(err)
	}
	escaped := strings.ReplaceAll(pg, " ", `\040`)
	type line struct {
		text   string
		refers bool
	}
	write := func(name string, lines []line) (want []int) {
		t.Helper()
		var text strings.Builder
		n := 1
		for _, l := range lines {
			if l.refers {
				want = append(want, n)
			}
			text.WriteString(l.text + "\n")
			n += 1 + strings.Count(l.text, "\n")
		}
		at := filepath.Join(etc, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		return want
	}
	want := map[string][]int{}
	for name, lines := range map[string][]line{
		"fstab": {
			{"UUID=1 / ext4 defaults 0 1", false},
			{"tank/pgdata /mnt/pg zfs defaults 0 0", true},
			{"tank/pgdata2 /mnt/pg2 zfs defaults 0 0", false},
			{"#tank/pgdata /mnt/pg zfs defaults", false},
			{"# " + escaped + " is where it was", false},
			{escaped + "/sub /export none bind 0 0", true},
			{escaped + "2 /export none bind 0 0", false},
			{"tmpfs\t" + escaped + "/tmp tmpfs", true},
			{link + "/pg\\040data /export none bind", true},
			{"/dev/sdb /b ext4 x-systemd.requires-mounts-for=" + escaped, true},
			{"/dev/sdb /b ext4 noauto,x-systemd.requires-mounts-for=/c,ro", false},
			{"/dev/sdb /b ext4 x-systemd.requires=" + escaped + "/sub", true},
			{"overlay /merged overlay ro,lowerdir=/a:" + escaped + "/sub:/b", true},
			{"/a:" + escaped + " /pool fuse.mergerfs defaults", true},
			{"nas:" + escaped + " /mnt nfs defaults", false},
			{"/dev/sdb /b\u00a0" + escaped + " ext4", false},
			{"none", false}, {"", false},
		},
		"exports": {
			{`"` + pg + `" *(rw)`, true},
			{escaped + "\tn1(ro)", true},
			{escaped + " \\\n  n1(ro) \\\n  n2(ro)", true},
			{filepath.Dir(pg) + " *(rw)", false},
			{filepath.Dir(pg) + " *(rw,crossmnt)", true},
			{"/ *(ro,crossmnt)", true},
			{"# " + escaped + " *(rw)", false},
			{link + " *(ro,crossmnt)", true},
			{"/srv/other *(rw,crossmnt)", false},
			{"", false},
		},
		"exports.d/a.exports": {{"/x *(rw)", false}, {escaped + "/sub *(rw)", true}},
		"exports.d/a.old":     {{escaped + " *(rw)", true}}, // which nobody reads
	} {
		want[filepath.Join(etc, name)] = write(name, lines)
	}
	delete(want, filepath.Join(etc, "exports.d/a.old"))
	r := localRoads()
	got, err := r.refersIn(etc, "tank/pgdata", pg, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, lines := range want {
		var found []int
		for _, g := range got {
			if file, n, _ := strings.Cut(g, ", line "); file == name {
				found = append(found, atoi(t, n))
			}
		}
		if !slices.Equal(found, lines) {
			t.Errorf("%s: lines %v, want %v", name, found, lines)
		}
	}
	// Where it is mounted nowhere, its name counts alone.
	if got, err := r.refersIn(etc, "tank/pgdata", "", nil); err != nil || len(got) != 1 {
		t.Errorf("by its name: %q, %v", got, err)
	}
	if got, err := r.refersIn(filepath.Join(etc, "nothing"), "tank/pgdata", pg, nil); err != nil || len(got) != 0 {
		t.Errorf("where there is nothing: %q, %v", got, err)
	}
	// What cannot be read is not taken for nothing.
	if err := os.Remove(filepath.Join(etc, "fstab")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(etc, "fstab"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := r.refersIn(etc, "tank/pgdata", pg, nil); err == nil {
		t.Errorf("unread: %q", got)
	}
}

func atoi(t *testing.T, s string) (n int) {
	t.Helper()
	for _, c := range s {
		n = 10*n + int(c-'0')
	}
	return n
}

func TestBindsOf(t *testing.T) {
	got := bindsOf([]container.Bound{
		{Name: "db", State: container.Exited, Source: "/srv/pgdata"},
		{Name: "pg", Volume: true, Source: "/srv/x"},
	})
	if want := []agent.Bind{{Path: "/srv/pgdata", By: "container db (exited)"}, {Path: "/srv/x", By: "volume pg of the container engine"}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// localRoads are those of a machine all of which is on one file system.
func localRoads() roads {
	return roads{
		under:    func(string) (mounts.Entry, error) { return mounts.Entry{Mountpoint: "/", FSType: "ext4"}, nil },
		readlink: os.Readlink, asking: make(chan struct{}, 1),
	}
}

// A machine as a test draws it: links by their place, "" for what is none; others are not there.
type drawnRoads struct {
	links  map[string]string
	errs   map[string]error
	mounts map[string]string // types, by mountpoint
	hang   chan struct{}

	mu    sync.Mutex
	asked []string
}

func (d *drawnRoads) roads() roads {
	return roads{
		under: func(dir string) (mounts.Entry, error) {
			best := mounts.Entry{Mountpoint: "/", FSType: "ext4"}
			for at, kind := range d.mounts {
				if (dir == at || strings.HasPrefix(dir, at+"/")) && len(at) > len(best.Mountpoint) {
					best = mounts.Entry{Mountpoint: at, FSType: kind}
				}
			}
			return best, nil
		},
		readlink: func(name string) (string, error) {
			if d.hang != nil && strings.HasPrefix(name, "/dead") {
				<-d.hang
			}
			d.mu.Lock()
			d.asked = append(d.asked, name)
			d.mu.Unlock()
			to, there := d.links[name]
			switch err := d.errs[name]; {
			case err != nil:
				return "", err
			case !there:
				return "", syscall.ENOENT
			case to == "":
				return "", syscall.EINVAL
			}
			return to, nil
		},
		asking: make(chan struct{}, 1),
	}
}

// Whatever links there are in a path or in that of the dataset, also where that is not mounted just now,
// it is found; what cannot be known is an error.
func TestRefersByLinks(t *testing.T) {
	const yes, no, unknown = "refers", "does not refer", "is not known"
	for _, tt := range []struct{ dir, path, want string }{
		{"/srv/pg", "/srv/pg", yes},
		{"/srv/pg", "/srv/pg/", yes},
		{"/srv/pg", "/srv//pg/sub/../x", yes},
		{"/srv/pg", "/srv/pg2", no},
		{"/srv/pg", "/srv", no},
		{"/srv/pg", "srv/pg", no},
		{"/srv/pg", "/link", yes},
		{"/srv/pg", "/link/sub/x", yes}, // of which nothing is there while it is not mounted
		{"/srv/pg", "/rel/pg/sub", yes},
		{"/srv/pg", "/twice/sub", yes},
		{"/srv/pg", "/link/out", yes},    // through it, to somewhere else
		{"/srv/pg", "/link/../pg2", yes}, // through it, too
		{"/srv/pg", "/none/at/all", no},
		{"/srv/pg", "/plain/file/x", no},
		{"/link", "/srv/pg/sub", yes}, // its mountpoint is one, and the path is not
		{"/link", "/rel/pg", yes},
		{"/link", "/link/sub", yes},
		{"/srv/pg", "/loop/x", unknown},
		{"/srv/pg", "/broken/x", unknown},
		{"/loop", "/srv/pg", unknown},
		{"", "/srv/pg", no},
		{"", "/loop", no},
		{"/srv/pg", "/nfs", no},
		{"/srv/pg", "/nfs/data", no},
		{"/srv/pg", "/nfs/link", yes},
	} {
		d := drawnRoads{
			links: map[string]string{
				"/srv": "", "/srv/pg": "", "/srv/pg2": "", "/link": "/srv/pg", "/rel": "srv/../srv", "/twice": "/rel/pg", "/srv/pg/out": "/opt",
				"/plain": "", "/plain/file": "", "/loop": "/loop", "/nfs": "", "/nfs/data": "", "/nfs/link": "/srv/pg",
			},
			errs:   map[string]error{"/broken": syscall.EIO, "/plain/file/x": syscall.ENOTDIR},
			mounts: map[string]string{"/nfs": "nfs4"},
		}
		found, err := d.roads().refersIn("/nowhere", "tank/pg", tt.dir, []agent.Bind{{Path: tt.path, By: "somebody"}})
		got := no
		if err != nil {
			got = unknown
		} else if slices.Equal(found, []string{"somebody"}) {
			got = yes
		}
		if got != tt.want {
			t.Errorf("%s %s (%v), want: it %s %q", tt.path, got, err, tt.want, tt.dir)
		}
	}
}

// A file system that does not answer is not waited for for ever, and by one at a time; where it is mounted
// itself it need not be asked.
func TestRefersOfDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := drawnRoads{
			links: map[string]string{"/srv": "", "/srv/pg": "", "/dead/x": "/srv/pg"}, hang: make(chan struct{}),
			mounts: map[string]string{"/dead": "nfs4", "/dead/own": "cifs"},
		}
		r := d.roads()
		look := func(path string) ([]string, error) {
			return r.refersIn("/nowhere", "tank/pg", "/srv/pg", []agent.Bind{{Path: path, By: "somebody"}})
		}
		for _, path := range []string{"/dead", "/dead/own"} {
			if found, err := look(path); err != nil || len(found) != 0 {
				t.Errorf("%s: %v, %v", path, found, err)
			}
		}
		began := time.Now()
		for _, why := range []string{"has not answered", "asked before still does not answer"} {
			if _, err := look("/dead/x"); err == nil || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), "somebody: where /dead/x leads cannot be known, which is on /dead (nfs4)") {
				t.Errorf("%v, want %q", err, why)
			}
		}
		if took := time.Since(began); took != 2*linkPatience {
			t.Errorf("it took %v", took)
		}
		close(d.hang)
		synctest.Wait()
		if found, err := look("/dead/x"); err != nil || len(found) != 1 {
			t.Errorf("when it answers: %v, %v", found, err)
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if slices.Contains(d.asked, "/dead") {
			t.Error("it was asked where it is mounted")
		}
	})
}

// The real ones know of this machine's links and mounts.
func TestRefersReal(t *testing.T) {
	at, err := realRoads.walk("/proc/self/root/../nothing", func(at string) bool { return false })
	if err != nil || at != "/nothing" {
		t.Errorf("%q, %v", at, err)
	}
}
