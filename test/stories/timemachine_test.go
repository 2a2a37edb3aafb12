package stories

import (
	"fmt"
	"slices"
	"strings"

	"github.com/flocker-io/flocker/internal/api"
)

// timeMachine is the part of TestCoreMain in which what a volume was is at hand, of a database on n2 under load: a snapshot for which it
// gets ready; a clone of that on a replica's node, at once; a deleted file; the volume as it was then, and what that has undone; and a
// backup, when that is gone. TestClones, TestBrowse, TestRollback, TestSnapshotHooks and TestBackup go into each.
func (c cluster) timeMachine(db database, v api.Volume) {
	c.Helper()
	const orders = dataDir + "/orders.csv"
	checksum := func() string {
		c.Helper()
		sum, _, _ := strings.Cut(c.n2.Docker("exec", "pg", "sha256sum", orders), " ")
		return sum
	}

	var w *writer
	var sum string
	var least, most int64
	c.Step("a snapshot is taken of rows and a file, for which the database gets ready", func() {
		c.n2.Docker("exec", "pg", "sh", "-c", "head -c 1000000 /dev/urandom >"+orders)
		sum = checksum()
		w = db.write()
		w.more(30)
		c.waitVolume(c.n2, "pgdata", "ok with two replicas", healthy)
		c.waitFollows(c.n2, "pg")
		least = w.last()
		c.n3.Flockctl("snapshot", "create", "pgdata@before")
		most = w.last() + onTheWay
		if got := c.prepared("pgdata", "before"); !slices.Equal(got, []string{"pg"}) {
			c.Errorf("it was prepared by %q, want pg", got)
		}
		c.Until("the snapshot to be on n1", soon, func() error {
			names, _, err := snapshots(c.n1, copyOf(v))
			if err == nil && !slices.Contains(names, "before") {
				err = fmt.Errorf("there are %v", names)
			}
			return err
		})
	})

	c.Step("a clone of it on n1 shares the replica, recovers, and holds what was committed", func() {
		c.n3.Flockctl("clone", "pgdata@before", "then", "--node", "n1", "-o", "replicas=0")
		c.shares(c.n1, "then", v)
		then := c.runPostgres(c.n1, "then", "then")
		c.Logf("    it holds %d rows; %d to %d were committed when the snapshot was taken", then.recovered(least, most), least, most)
		then.stop()
	})

	c.Step("a deleted file is brought back by one command on another node", func() {
		c.n2.Docker("exec", "pg", "rm", orders)
		c.waitSnapshotAfter(v, c.n2, c.n3)
		c.getBack(c.n3, "pgdata", "orders.csv", sum)
	})

	var done api.Rollback
	var all int64
	c.Step("the volume goes back to the snapshot, with its file and its container", func() {
		w.more(20)
		all = w.stop()
		done = c.rollBack(c.n3, "pgdata@before", c.n2)
		db.wait()
		if rows := db.rows(); rows < least || rows > most {
			c.Errorf("%d rows are there; the snapshot was taken when there were %d to %d", rows, least, most)
		}
		if got := checksum(); got != sum {
			c.Errorf("the file is %s, was %s", got, sum)
		}
	})

	c.Step("what that has undone is had back, whole; and from a backup when it is gone, byte by byte", func() {
		const dest = "/var/tmp/flocker-backup-story"
		c.undone(c.n2, done, all).stop()
		want := c.n2.Sh(onVolume("undone", sumOf))
		c.n2.Sh("rm -rf " + dest)
		id := strings.TrimSpace(c.n2.Flockctl("backup", "create", "undone", dest))
		c.waitMounted(c.n2, "undone", false)
		c.n2.Flockctl("volume", "remove", "--yes", "undone")
		c.n2.Flockctl("backup", "restore", "-o", "replicas=0", dest, id, "back")
		if got := c.n2.Sh(onVolume("back", sumOf)); got != want {
			c.Errorf("the files are %q, were %q", got, want)
		}
		c.waitMounted(c.n2, "back", false)
		c.n2.Sh("rm -rf " + dest)
	})
}
