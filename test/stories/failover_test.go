package stories

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/test/lab"
)

// failOver is the part of TestCoreMain in which n2 loses power under a database that commits:
// its volume and its container are back on another node by themselves, what is missing is
// only what came after the point that was reported, and when the node returns, what it alone
// had is kept where it can be found.
func (c cluster) failOver(db database, v api.Volume) {
	c.Helper()
	var w *writer
	var synced int64
	c.Step("failover is automatic by itself, and PostgreSQL commits rows on n2", func() {
		c.waitAutomatic()
		w = db.write()
		w.more(30)
		c.waitVolume(c.n2, "pgdata", "ok with two replicas", healthy)
		c.waitFollows(c.n2, "pg")
		// A replica that is called ok may be some seconds behind: only what came before
		// a sync must survive, and all of that must.
		synced = w.last()
		c.n2.Flockctl("volume", "sync", "pgdata")
		w.more(30)
	})

	var acked, rows int64
	var to *lab.Node
	c.Step("n2 loses power: PostgreSQL answers on another node", func() {
		cut := time.Now()
		c.Cut(c.n2)
		w.run.Wait()
		acked = w.last()
		to, v = c.waitPrimary("pgdata", c.n1, c.n3)
		c.Logf("    %s is the primary after %.1fs", to, time.Since(cut).Seconds())
		db = database{c, to, "pg"}
		db.wait()
		c.Logf("    PostgreSQL answers there after %.1fs", time.Since(cut).Seconds())
		event := c.event(to, "volume.failed-over", "pgdata")
		c.Logf("    it says: %s", event.Message)
		rows = db.rows()
		c.Logf("    %d rows are there; %d were acknowledged, %d of them before a sync", rows, acked, synced)
		if rows < synced {
			c.Errorf("%d rows are there; %d were on all replicas when volume sync returned", rows, synced)
		}
		c.checkLoss(event, cut, rows, &w.counter)
		db.query("insert into rows values (1000000000, repeat(md5('1000000000'), 8)); delete from rows where id = 1000000000")
	})

	c.Step("writing goes on there", func() {
		w = db.write()
		w.more(30)
	})

	c.Step("n2 comes back: it holds a replica, runs no second database, and what it alone had is kept", func() {
		c.Boot(c.n2)
		c.waitVolume(to, "pgdata", "ok again", healthy)
		if out := c.n2.Sh("docker ps -q --filter name=pg"); out != "" {
			c.Errorf("a second database runs on n2: %s", out)
		}
		if is, err := mounted(c.n2, v); err != nil || is {
			c.Errorf("n2 has the volume mounted: %v, %v", is, err)
		}
		now := w.stop()
		if now < rows+30 {
			c.Errorf("%d rows after the failover and 30 more, it was %d then", now, rows)
		}
		c.waitVolume(to, "pgdata", "ok", healthy)
		c.checkEqual(v)
	})

	c.Step("the tail of n2 is listed, and holds every row that was acknowledged", func() {
		db.stop()
		c.restoreTail(c.n2, "tail")
		old := c.runPostgres(c.n2, "old", "tail")
		if got := old.rows(); got < acked || got > acked+onTheWay {
			c.Errorf("the tail holds %d rows, %d were acknowledged before the power was cut", got, acked)
		}
		old.stop()
	})
}

// checkLoss compares what a failover brought with what was acknowledged: all of it that
// came before the reported point must be there, and nothing that nobody wrote.
func (c cluster) checkLoss(e api.Event, cut time.Time, got int64, acked *counter) {
	c.Helper()
	if most := acked.last() + onTheWay; got > most {
		c.Errorf("%d are there, though at most %d were written", got, most)
	}
	// The bound counts back from the last beat that the cluster had of the lost node,
	// which is up to two beats older than the cut.
	if least := acked.before(cut.Add(-lossOf(c, e) - 2*lease.Lab.Heartbeat)); got < least {
		c.Errorf("%d are there; %d were acknowledged before the point that is reported as safe: %s", got, least, e.Message)
	}
}

// waitAutomatic waits until the cluster has agreed that it fails over by itself.
func (c cluster) waitAutomatic() {
	c.Helper()
	took := c.Until("failover to be automatic", later, func() error {
		s, err := c.n1.Status()
		if err == nil && s.Failover.Mode != "automatic" {
			err = fmt.Errorf("it is %+v", s.Failover)
		}
		return err
	})
	c.Logf("    after %.1fs", took.Seconds())
}

// waitPrimary waits until one of these nodes says that it is the primary of a volume.
func (c cluster) waitPrimary(name string, nodes ...*lab.Node) (is *lab.Node, v api.Volume) {
	c.Helper()
	c.Until("another primary of "+name, later, func() (err error) {
		if v, err = nodes[0].Volume(name); err != nil {
			return err
		}
		for _, n := range nodes {
			if v.Primary.Name == n.Name {
				is = n
				return nil
			}
		}
		return fmt.Errorf("primary %q: %s", v.Primary.Name, v.Reason)
	})
	return is, v
}

// event is the newest of a kind that is about a volume.
func (c cluster) event(n *lab.Node, kind, name string) (found api.Event) {
	c.Helper()
	c.Until("an event "+kind+" of "+name, soon, func() error {
		out, err := n.TryFlockctl("--json", "events")
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			var e api.Event
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				return fmt.Errorf("%q: %w", line, err)
			}
			if e.Kind == kind && e.Name == name {
				found = e
			}
		}
		if found.Kind == "" {
			return fmt.Errorf("there is none in %s", out)
		}
		return nil
	})
	return found
}

// lossOf reads the bound that an event of a failover states.
func lossOf(t testing.TB, e api.Event) time.Duration {
	t.Helper()
	if strings.Contains(e.Message, "has all that was written") {
		return 0
	}
	for word := range strings.FieldsSeq(e.Message) {
		if d, err := time.ParseDuration(strings.Trim(word, ",;.()")); err == nil {
			return d
		}
	}
	t.Fatalf("no bound of the loss is in: %s", e.Message)
	return 0
}

// waitFollows waits until a container is recorded, and its image is wherever it may
// have to run.
func (c cluster) waitFollows(n *lab.Node, name string) {
	c.Helper()
	c.Until("container "+name+" to be ready to follow its volumes", later, func() error {
		all, err := lab.Ask[[]api.Container](n, "container", "list")
		if err != nil {
			return err
		}
		for _, got := range all {
			if got.Name == name && got.Run && !got.Blocked && len(got.LacksImage) == 0 && len(got.Problems) == 0 {
				return nil
			}
		}
		return fmt.Errorf("containers: %+v", all)
	})
}

// restoreTail makes a volume of the copy that a node set aside. Other nodes may have set
// one aside, too: one that had a snapshot which the new primary never got, because its own
// increment went from an older one to a newer.
func (c cluster) restoreTail(of *lab.Node, name string) {
	c.Helper()
	var tail api.Aside
	c.Until("one copy to be set aside on "+of.Name, later, func() error {
		all, err := lab.Ask[api.Asides](of, "aside", "list")
		if err != nil {
			return err
		}
		there := slices.DeleteFunc(all.Asides, func(a api.Aside) bool { return a.Node.Name != of.Name })
		if len(there) != 1 {
			return fmt.Errorf("%d are there: %+v", len(there), all)
		}
		tail = there[0]
		return nil
	})
	of.Flockctl("aside", "restore", "--node", of.Name, tail.Name, name)
}
