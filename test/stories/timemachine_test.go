package stories

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/api"
)

// What a volume was is at hand, of a database under load: a snapshot for which it gets ready; a clone of that on the replica's node, at
// once; a deleted file, on a node without a copy; the volume as it was then, and what that has undone; and a backup, when the volume is gone.
// TestClones, TestBrowse, TestRollback, TestSnapshotHooks and TestBackup go into each.
func TestCoreTimeMachine(t *testing.T) {
	c := start(t)
	const orders = dataDir + "/orders.csv"
	checksum := func() string {
		t.Helper()
		sum, _, _ := strings.Cut(c.n1.Docker("exec", "pg", "sha256sum", orders), " ")
		return sum
	}

	var db database
	var w *writer
	var v api.Volume
	var sum string
	c.Step("PostgreSQL commits rows on n1, with a file beside them, and n2 has a replica", func() {
		if _, err := createOn(c.n1, "pgdata", "size=1G", "replicas=1", "prefer=n1,n2"); err != nil {
			t.Fatal(err)
		}
		db = c.runPostgres(c.n1, "pg", "pgdata", "--restart", "always", "--label", "flocker.enable=true", "--label", "flocker.pre-snapshot=postgres")
		c.n1.Docker("exec", "pg", "sh", "-c", "head -c 1000000 /dev/urandom >"+orders)
		sum = checksum()
		db.query(table)
		w = db.write()
		w.more(30)
		v, _ = c.waitVolume(c.n1, "pgdata", "ok with its replica on n2", func(v api.Volume) error {
			if err := healthy(v); err != nil || v.Replicas[0].Node.Name == c.n2.Name {
				return err
			}
			return fmt.Errorf("it is on %s", v.Replicas[0].Node)
		})
		c.waitFollows(c.n1, "pg")
	})

	var least, most int64
	c.Step("a snapshot is taken, for which the database gets ready", func() {
		least = w.last()
		c.n3.Flockctl("snapshot", "create", "pgdata@before")
		most = w.last() + onTheWay
		if got := c.prepared("pgdata", "before"); !slices.Equal(got, []string{"pg"}) {
			t.Errorf("it was prepared by %q, want pg", got)
		}
		c.Until("the snapshot to be on n2", soon, func() error {
			names, _, err := snapshots(c.n2, copyOf(v))
			if err == nil && !slices.Contains(names, "before") {
				err = fmt.Errorf("there are %v", names)
			}
			return err
		})
	})

	c.Step("a clone of it on n2 shares the replica, recovers, and holds what was committed", func() {
		c.n3.Flockctl("clone", "pgdata@before", "then", "--node", "n2", "-o", "replicas=0")
		c.shares(c.n2, "then", v)
		then := c.runPostgres(c.n2, "then", "then")
		c.Logf("    it holds %d rows; %d to %d were committed when the snapshot was taken", then.recovered(least, most), least, most)
		then.stop()
	})

	c.Step("a deleted file is brought back by one command on n3, which has no copy", func() {
		c.n1.Docker("exec", "pg", "rm", orders)
		c.waitSnapshotAfter(v, c.n1, c.n2)
		c.getBack(c.n3, "pgdata", "orders.csv", sum)
	})

	var done api.Rollback
	var all int64
	c.Step("the volume goes back to the snapshot, with its file and its container", func() {
		w.more(20)
		all = w.stop()
		done = c.rollBack(c.n3, "pgdata@before", c.n1)
		db.wait()
		if rows := db.rows(); rows < least || rows > most {
			t.Errorf("%d rows are there; the snapshot was taken when there were %d to %d", rows, least, most)
		}
		if got := checksum(); got != sum {
			t.Errorf("the file is %s, was %s", got, sum)
		}
	})

	c.Step("what that has undone is had back, whole", func() { c.undone(c.n1, done, all).stop() })

	c.Step("a backup is restored when the volume is gone, byte by byte", func() {
		const dest = "/var/tmp/flocker-backup-story"
		db.stop()
		want := c.n1.Sh(onVolume("pgdata", sumOf))
		c.n1.Sh("rm -rf " + dest)
		id := strings.TrimSpace(c.n1.Flockctl("backup", "create", "pgdata", dest))
		c.waitMounted(c.n1, "pgdata", false)
		c.n1.Flockctl("volume", "remove", "--yes", "pgdata")
		c.n1.Flockctl("backup", "restore", "-o", "replicas=0", dest, id, "back")
		if got := c.n1.Sh(onVolume("back", sumOf)); got != want {
			t.Errorf("the files are %q, were %q", got, want)
		}
		c.waitMounted(c.n1, "back", false)
		c.waitVolume(c.n1, "undone", "ok with its replica", healthy)
		c.n1.Sh("rm -rf " + dest)
	})
}
