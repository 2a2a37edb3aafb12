package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/container"
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
			{"/srv/other *(rw,crossmnt)", false},
			{"", false},
		},
		"exports.d/a.exports": {{"/x *(rw)", false}, {escaped + "/sub *(rw)", true}},
		"exports.d/a.old":     {{escaped + " *(rw)", true}}, // which nobody reads
	} {
		want[filepath.Join(etc, name)] = write(name, lines)
	}
	delete(want, filepath.Join(etc, "exports.d/a.old"))
	got, err := refersIn(etc, "tank/pgdata", pg)
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
	if got, err := refersIn(etc, "tank/pgdata", ""); err != nil || len(got) != 1 {
		t.Errorf("by its name: %q, %v", got, err)
	}
	if got, err := refersIn(filepath.Join(etc, "nothing"), "tank/pgdata", pg); err != nil || len(got) != 0 {
		t.Errorf("where there is nothing: %q, %v", got, err)
	}
	// What cannot be read is not taken for nothing.
	if err := os.Remove(filepath.Join(etc, "fstab")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(etc, "fstab"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := refersIn(etc, "tank/pgdata", pg); err == nil {
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

func TestBoundBelow(t *testing.T) {
	list := []container.Bound{
		{Name: "db", State: container.Exited, Source: "/srv/pgdata"},
		{Name: "conf", State: container.Created, Source: "/srv/pgdata/x.conf"},
		{Name: "other", State: container.Running, Source: "/srv/pgdata2"},
		{Name: "above", State: container.Running, Source: "/srv"},
	}
	if got, want := boundBelow(list, "/srv/pgdata"), []string{"container db (exited)", "container conf (created)"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
