package stories

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/test/lab"
)

// An operator moves a database to a node that has no copy of it, while it commits, and
// then lets flockd choose where it goes from there: nothing that was acknowledged is
// missing, and it runs once. What its clients would have to wait for too long is not moved. At last
// it goes where its user says that it would rather be.
func TestMigrate(t *testing.T) {
	c := start(t)
	var db database
	var w *writer
	var from, to, has *lab.Node
	c.Step("PostgreSQL with one replica commits rows on n2", func() {
		from = c.n2
		from.Docker("volume", "create", "-d", "flocker", "-o", "size=1G", "-o", "replicas=1", "pgdata")
		db = c.runPostgres(from, "pg", "pgdata", "--restart", "always", "--label", "flocker.enable=true")
		db.query(table)
		w = db.write()
		w.more(30)
		v, _ := c.waitVolume(from, "pgdata", "ok with its replica", healthy)
		to, has = c.n1, c.n3
		if v.Replicas[0].Node.Name == to.Name {
			to, has = has, to
		}
	})

	c.Step("a dry run says what would be done, and does nothing", func() {
		plan, err := lab.Ask[api.Migration](from, "migrate", "pgdata", to.Name, "--dry-run")
		if err != nil {
			t.Fatal(err)
		}
		if plan.State != api.MigrationPlanned || len(plan.Containers) != 1 || plan.Containers[0] != "pg" || plan.Doing == "" {
			t.Errorf("it says %+v; want that pg goes along, after a first copy", plan)
		}
		c.refuse("to where it is", func() (string, error) { return from.TryFlockctl("migrate", "pgdata", from.Name) }, "already")
		w.more(10)
	})

	c.Step("for a pause of a millisecond it is not moved, and nothing has changed", func() {
		how := func() string {
			v, err := from.Volume("pgdata")
			if err != nil {
				t.Fatal(err)
			}
			text := "primary " + v.Primary.Name
			for _, r := range v.Replicas {
				text += ", replica " + r.Node.Name
			}
			return text + ", container " + from.Docker("inspect", "-f", "{{.Id}} {{.State.StartedAt}} {{.State.Running}}", "pg")
		}
		before, connections := how(), w.connections()
		c.refuse("a pause of a millisecond", func() (string, error) {
			return from.TryFlockctl("migrate", "--max-pause", "1ms", "pgdata", has.Name)
		}, "at most 1ms is wanted", "--max-pause")
		w.more(10)
		if after := how(); after != before {
			t.Errorf("it is %s, and was %s", after, before)
		}
		if got := w.connections(); got != connections {
			t.Errorf("the writer had to connect %d times more", got-connections)
		}
		c.waitVolume(from, "pgdata", "ok", healthy)
	})

	var acked int64
	c.Step("it goes to "+to.Name+", which gets a copy first", func() {
		begin := time.Now()
		done, err := lab.Ask[api.Migration](c.n2, "migrate", "--force", "pgdata", to.Name)
		if err != nil {
			t.Fatal(err)
		}
		if done.State != api.MigrationDone {
			t.Fatalf("it ended with %+v", done)
		}
		c.Logf("    %.1fs in all, the container stopped for at most %.1fs", time.Since(begin).Seconds(), done.StoppedSeconds)
		w.run.Stop()
		w.check()
		acked = w.last()
		c.hasMoved(&db, from, to)
		if rows := db.rows(); rows < acked || rows > acked+onTheWay {
			t.Errorf("%d rows are on %s, %d were acknowledged on %s", rows, to, acked, from)
		}
	})

	c.Step("it goes on there, has its replica again, and no copy too many", func() {
		w = db.write()
		w.more(30)
		v, _ := c.waitVolume(to, "pgdata", "ok with its replica", healthy)
		c.waitFollows(to, "pg")
		w.stop()
		c.verify(v, 2)
		acked = db.rows()
	})

	c.Step("it goes on to where flockd wants it", func() {
		done, err := lab.Ask[api.Migration](to, "migrate", "--force", "pgdata")
		if err != nil {
			t.Fatal(err)
		}
		c.Logf("    to %s, the container stopped for at most %.1fs", done.To, done.StoppedSeconds)
		for _, n := range c.Nodes() {
			if n.Name == done.To.Name {
				from, to = to, n
			}
		}
		c.hasMoved(&db, from, to)
		if rows := db.rows(); rows != acked {
			t.Errorf("%d rows are on %s, it had %d", rows, to, acked)
		}
		c.waitVolume(to, "pgdata", "ok", healthy)
		db.stop()
	})

	c.Step("it goes where its user prefers it, when the nodes are evened out", func() {
		v, _ := c.waitVolume(to, "pgdata", "ok", healthy)
		want := c.Nodes()[slices.IndexFunc(c.Nodes(), func(n *lab.Node) bool { return n.Name == v.Replicas[0].Node.Name })]
		c.n1.Flockctl("volume", "set", "pgdata", "prefer="+want.Name)
		// For a while nobody knows that its container is gone for good; it would be in the way.
		c.Until("a plan that brings it to "+want.Name, later, func() error {
			plan, err := lab.Ask[api.Rebalance](c.n1, "rebalance", "--dry-run")
			if err == nil && (len(plan.Moves) != 1 || plan.Moves[0].Name != "pgdata" || plan.Moves[0].To.Name != want.Name) {
				err = fmt.Errorf("the plan is %+v", plan)
			}
			return err
		})
		done, err := lab.Ask[api.Rebalance](c.n1, "rebalance", "--yes")
		if err != nil {
			t.Fatal(err)
		}
		if len(done.Moves) != 1 || done.Moves[0].State != api.MoveDone {
			t.Fatalf("it ended with %+v", done)
		}
		c.Logf("    from %s to %s, since %s", done.Moves[0].From, done.Moves[0].To, done.Moves[0].Why)
		c.waitVolume(want, "pgdata", "ok, on "+want.Name, func(v api.Volume) error {
			if v.Primary.Name != want.Name {
				return fmt.Errorf("its primary is %s", v.Primary)
			}
			return healthy(v)
		})
		// On a node that it has left, its container stays as it ended, and has the name. Who removes the
		// one that ran last removes that one alone.
		want.Docker("rm", "pg")
		db = c.runPostgres(want, "pg", "pgdata")
		if rows := db.rows(); rows != acked {
			t.Errorf("%d rows are on %s, it had %d", rows, want, acked)
		}
		db.stop()
	})
}

// hasMoved checks that a database runs on one node and not on the other, where nothing is
// mounted, and goes on with it there.
func (c cluster) hasMoved(db *database, from, to *lab.Node) {
	c.Helper()
	v, err := to.Volume("pgdata")
	if err != nil {
		c.Fatal(err)
	}
	if v.Primary.Name != to.Name {
		c.Errorf("the primary is %s, want %s", v.Primary, to)
	}
	if out := from.Docker("ps", "-q", "--filter", "name="+db.container); out != "" {
		c.Errorf("%s runs on %s still: %s", db.container, from, out)
	}
	if is, err := mounted(from, v); err != nil || is {
		c.Errorf("%s has the volume mounted: %v, %v", from, is, err)
	}
	*db = database{c, to, db.container}
	db.wait()
}
