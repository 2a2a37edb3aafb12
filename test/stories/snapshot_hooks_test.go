package stories

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/test/lab"
)

// countingTwice writes a number to one volume and then the same to the other, over and over,
// unless it is told to stand still.
const countingTwice = `i=0
while :; do
	if [ -e /a/hold ]; then touch /a/held; sleep 0.2; continue; fi
	rm -f /a/held
	i=$((i+1))
	echo $i >/a/.n && mv /a/.n /a/n
	echo $i >/b/.n && mv /b/.n /b/n
	sleep 0.05
done`

// Containers get ready for snapshots: PostgreSQL by a checkpoint, while it commits; a program
// that writes to two volumes by standing still. Snapshots of both volumes are of one instant.
func TestSnapshotHooks(t *testing.T) {
	c := start(t)
	var db database
	var w *writer
	c.Step("PostgreSQL commits on n1, and a program counts in two volumes", func() {
		for _, name := range []string{"pgdata", "a", "b"} {
			if _, err := createOn(c.n1, name, "size=1G", "replicas=1"); err != nil {
				t.Fatal(err)
			}
		}
		db = c.runPostgres(c.n1, "pg", "pgdata", "--label", "flocker.pre-snapshot=postgres")
		db.query(table)
		w = db.write()
		w.more(30)
		c.n1.Docker("run", "-d", "--name", "pair", "--restart", "always",
			"--label", "flocker.pre-snapshot=touch /a/hold; until [ -e /a/held ]; do sleep 0.2; done",
			"--label", "flocker.post-snapshot=rm -f /a/hold",
			"--mount", "type=volume,volume-driver=flocker,src=a,dst=/a", "--mount", "type=volume,volume-driver=flocker,src=b,dst=/b",
			busyboxImage, "sh", "-c", countingTwice)
		for _, name := range []string{"pgdata", "a", "b"} {
			c.waitVolume(c.n1, name, "ok with its replica", healthy)
		}
	})

	c.Step("a snapshot of the database has all that was committed before it", func() {
		before := w.last()
		c.n2.Flockctl("snapshot", "create", "pgdata@ready")
		after := w.last() + onTheWay
		if got := c.prepared("pgdata", "ready"); !slices.Equal(got, []string{"pg"}) {
			t.Errorf("it was prepared by %q, want pg", got)
		}
		c.n1.Flockctl("clone", "pgdata@ready", "then", "--node", "n1", "-o", "replicas=0")
		clone := c.runPostgres(c.n1, "then", "then")
		if rows := clone.rows(); rows < before || rows > after {
			t.Errorf("the snapshot has %d rows, want %d to %d", rows, before, after)
		}
		clone.stop()
	})

	number := func(volume, name string) int64 {
		t.Helper()
		n, err := strconv.ParseInt(strings.TrimSpace(c.n1.Flockctl("browse", "cat", volume+"@"+name, "n")), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	c.Step("two volumes are taken at one instant", func() {
		for i := range 6 { // half a minute each, emulated under this load
			name := fmt.Sprintf("bare%d", i)
			c.n1.Flockctl("snapshot", "create", "a", "b", "--name", name, "--no-hooks")
			if a, b := number("a", name), number("b", name); a != b && a != b+1 {
				t.Errorf("%s: a is at %d and b at %d, so they are of two instants", name, a, b)
			}
			if got := c.prepared("a", name); len(got) > 0 {
				t.Errorf("%s was prepared by %q", name, got)
			}
		}
	})

	// moving waits until the program counts on.
	moving := func() {
		t.Helper()
		from := c.n1.Sh("docker exec pair cat /b/n")
		c.Until("the program to count on", later, func() error {
			if now, err := c.n1.Try("docker exec pair cat /b/n"); err != nil || now == from {
				return fmt.Errorf("it is at %q, %v", now, err)
			}
			return nil
		})
	}
	c.Step("and with a program that stands still for it both are equal", func() {
		for i := range 3 {
			name := fmt.Sprintf("still%d", i)
			c.n3.Flockctl("snapshot", "create", "a", "b", "--name", name)
			if a, b := number("a", name), number("b", name); a != b {
				t.Errorf("%s: a is at %d and b at %d", name, a, b)
			}
			for _, v := range []string{"a", "b"} {
				if got := c.prepared(v, name); !slices.Equal(got, []string{"pair"}) {
					t.Errorf("%s of %s was prepared by %q, want pair", name, v, got)
				}
			}
			moving()
		}
	})

	c.Step("one that fails is a reason to refuse, and --no-hooks is the way round", func() {
		c.n1.Docker("run", "-d", "--name", "broken", "--label", "flocker.pre-snapshot=echo first; echo no disk; exit 3",
			"--mount", "type=volume,volume-driver=flocker,src=b,dst=/b", busyboxImage, "sleep", "1000000")
		c.refuse("a container that is not ready", func() (string, error) { return c.n2.TryFlockctl("snapshot", "create", "a", "b", "--name", "never") },
			"container broken", "flocker.pre-snapshot", "code 3: no disk", "--no-hooks")
		moving()
		c.n2.Flockctl("snapshot", "create", "a", "b", "--name", "anyway", "--no-hooks")
		c.refuse("a name that one of them has", func() (string, error) {
			return c.n2.TryFlockctl("snapshot", "create", "pgdata", "a", "--name", "anyway")
		}, "exists already")
		c.n1.Docker("rm", "-f", "broken")
	})

	c.Step("flockd is killed while the program stands still; the next one lets it go on", func() {
		c.n1.Docker("run", "-d", "--name", "slow", "--label", "flocker.pre-snapshot=sleep 25",
			"--mount", "type=volume,volume-driver=flocker,src=b,dst=/b", busyboxImage, "sleep", "1000000")
		c.n1.Sh("flockctl snapshot create a b --name cut >/dev/null 2>&1 &")
		c.Until("the program to stand still", later, func() error {
			_, err := c.n1.Try("docker exec pair test -e /a/held")
			return err
		})
		c.n1.Sh("systemctl kill -s KILL flockd")
		moving()
		c.n1.Docker("rm", "-f", "slow")
		db.wait()
		w.stop()
		db.stop()
	})
}

// prepared are the containers that got ready for a snapshot.
func (c cluster) prepared(volume, name string) []string {
	c.Helper()
	s, err := lab.Ask[api.SnapshotDetails](c.n2, "snapshot", "inspect", volume+"@"+name)
	if err != nil {
		c.Fatal(err)
	}
	return s.Prepared
}
