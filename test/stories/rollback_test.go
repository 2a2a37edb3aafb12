package stories

import (
	"slices"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/test/lab"
)

// An operator takes a database back to a snapshot that was taken while it was committing: it is
// as it was then, and goes on from there; its replicas follow without a full stream; and what
// was undone is had back as a volume of its own, without a gap. A rollback that was a mistake is
// undone: the database goes on as before, on the volume of the same name.
func TestRollback(t *testing.T) {
	c := start(t)
	var db database
	var w *writer
	var v api.Volume
	c.Step("PostgreSQL with two replicas commits rows on n2", func() {
		c.n2.Docker("volume", "create", "-d", "flocker", "-o", "size=1G", "-o", "replicas=2", "pgdata")
		db = c.runPostgres(c.n2, "pg", "pgdata", "--restart", "always", "--label", "flocker.enable=true")
		db.query(table)
		w = db.write()
		w.more(30)
		v, _ = c.waitVolume(c.n2, "pgdata", "ok with its replicas", healthy)
		c.waitFollows(c.n2, "pg")
	})

	var least, most, all int64
	c.Step("snapshots are taken under it, and it goes on committing", func() {
		w.more(10)
		least = w.last()
		c.n1.Flockctl("snapshot", "create", "pgdata@before")
		most = w.last() + onTheWay
		w.more(30)
		c.n3.Flockctl("snapshot", "create", "pgdata@later")
		w.more(20)
		all = w.stop()
	})

	c.Step("a dry run says what would be undone; without a yes nothing is", func() {
		plan, err := lab.Ask[api.Rollback](c.n1, "rollback", "pgdata@before", "--dry-run")
		if err != nil {
			t.Fatal(err)
		}
		if plan.State != api.RollbackPlanned || !slices.Equal(plan.Newer, []string{"later"}) || !slices.Equal(plan.Containers, []string{"pg"}) || plan.WrittenBytes == 0 {
			t.Errorf("it says %+v; want that the snapshot later would go, and pg be stopped", plan)
		}
		c.refuse("without a yes", func() (string, error) { return c.n1.TryFlockctl("rollback", "pgdata@before") }, "--yes")
		c.refuse("to what is not there", func() (string, error) { return c.n1.TryFlockctl("rollback", "pgdata@never", "--yes") }, "no snapshot never")
		if rows := db.rows(); rows != all {
			t.Errorf("%d rows are there, %d were committed", rows, all)
		}
	})

	var done api.Rollback
	full := c.fullStreams()
	c.Step("it goes back, asked for on n3", func() {
		begin := time.Now()
		done = c.rollBack(c.n3, "pgdata@before", c.n2)
		db.wait()
		rows := db.rows()
		if rows < least || rows > most {
			t.Errorf("%d rows are there; the snapshot was taken when there were %d to %d", rows, least, most)
		}
		c.Logf("    back from %d rows to %d in %.1fs", all, rows, time.Since(begin).Seconds())
	})

	c.Step("it goes on committing, and its replicas follow without a full stream", func() {
		w = db.write()
		w.more(30)
		w.stop()
		v, _ = c.waitVolume(c.n1, "pgdata", "ok with its replicas", healthy)
		c.checkEqual(v)
		if now := c.fullStreams(); now != full {
			t.Errorf("%v full streams were sent, %v before the rollback", now, full)
		}
		for _, n := range c.Nodes() {
			if names := n.Lines("zfs list -H -o name -r -d 1 tank/flocker-aside"); len(names) != 2 {
				t.Errorf("set aside on %s: %q; want what was undone", n, names)
			}
		}
	})

	c.Step("what was undone is all there, under another name", func() {
		old := c.undone(c.n2, done, all)
		names, err := lab.Ask[[]struct{ Name, Kind string }](c.n1, "snapshot", "list", "undone")
		if err != nil {
			t.Fatal(err)
		}
		if len(names) != 1 || names[0].Name != "later" {
			t.Errorf("its snapshots are %+v, want that which was taken later", names)
		}
		old.stop()
	})

	c.Step("it goes back once more, by mistake", func() {
		all = db.rows()
		done = c.rollBack(c.n1, "pgdata@before", c.n2)
		db.wait()
		if rows := db.rows(); rows < least || rows > most || rows >= all {
			t.Errorf("%d rows are there; the snapshot was taken when there were %d to %d", rows, least, most)
		}
	})

	// As docs/SNAPSHOTS.md says.
	c.Step("that is undone: the volume goes on as before", func() {
		db.stop()
		c.waitMounted(c.n2, "pgdata", false)
		c.n3.Flockctl("volume", "remove", "--yes", "pgdata")
		c.n1.Flockctl("aside", "restore", "--node", done.Node.Name, done.Undone, "pgdata")
		db = c.runPostgres(c.n2, "pg", "pgdata", "--restart", "always", "--label", "flocker.enable=true")
		if rows := db.rows(); rows != all {
			t.Errorf("%d rows are there; there were %d before it went back", rows, all)
		}
		w = db.write()
		w.more(30)
		w.stop()
		was := v
		v, _ = c.waitVolume(c.n1, "pgdata", "ok with its replicas", healthy)
		if v.Primary.Name != c.n2.Name || v.Spec.Size != was.Spec.Size || v.Spec.Replicas != was.Spec.Replicas {
			t.Errorf("it is on %s with %+v, and was on n2 with %+v", v.Primary, v.Spec, was.Spec)
		}
		c.waitFollows(c.n2, "pg")
		c.checkEqual(v)
		db.stop()
	})
}

// rollBack takes a volume back, with a yes, and returns how its primary has done that.
func (c cluster) rollBack(n *lab.Node, to string, primary *lab.Node) api.Rollback {
	c.Helper()
	done, err := lab.Ask[api.Rollback](n, "rollback", to, "--yes")
	if err != nil {
		c.Fatal(err)
	}
	if done.State != api.RollbackDone || done.Node.Name != primary.Name || done.Undone == "" {
		c.Fatalf("it ended with %+v", done)
	}
	return done
}

// undone makes the volume "undone" of what a rollback of a database has set aside, and starts that there: it holds all rows.
func (c cluster) undone(n *lab.Node, done api.Rollback, all int64) database {
	c.Helper()
	n.Flockctl("aside", "restore", "--node", done.Node.Name, done.Undone, "undone")
	old := c.runPostgres(n, "pg-undone", "undone")
	if rows := old.rows(); rows != all {
		c.Errorf("%d rows are in what was undone, %d were committed", rows, all)
	}
	return old
}

// fullStreams is how many full streams all nodes have sent.
func (c cluster) fullStreams() (n float64) {
	c.Helper()
	for _, node := range c.Nodes() {
		n += c.metric(node, "flocker_streams_total", `direction="sent"`, `kind="full"`)
	}
	return n
}
