package stories

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/test/lab"
)

// A clone of a database that commits is made on a replica's node, while it commits: started
// there it recovers and holds each row that was committed by then, and what is written to
// either stays there. Ten are made in a row. The original is removed, then destroyed for good,
// and they go on with all that they had.
func TestClones(t *testing.T) {
	c := start(t)
	if _, err := createOn(c.n1, "pg", "size=1G", "replicas=2"); err != nil {
		t.Fatal(err)
	}
	db := c.runPostgres(c.n1, "pg", "pg")
	db.query(table)
	w := db.write()
	w.more(200)
	v, _ := c.waitVolume(c.n1, "pg", "ok with two replicas", healthy)

	var tester database
	var tested int64
	c.Step("a clone on a replica's node, under load, recovers there and holds what was committed", func() {
		before := w.last()
		began := time.Now()
		c.n2.Flockctl("clone", "pg", "tester", "--node", "n2", "-o", "replicas=1")
		c.Logf("    the clone was there after %s", time.Since(began).Round(10*time.Millisecond))
		c.shares(c.n2, "tester", v)
		tester = c.runPostgres(c.n2, "tester", "tester")
		tested = tester.recovered(before, w.last()+onTheWay)
	})

	c.Step("ten clones of one snapshot, for ten testers", func() {
		before := w.last()
		c.n1.Flockctl("snapshot", "create", "pg@release")
		after := w.last()
		ten := c.nanos(c.n1, `for i in 1 2 3 4 5 6 7 8 9 10; do flockctl clone pg@release t$i --node n1 -o replicas=0 >/dev/null || exit 1; done`)
		byHand := c.nanos(c.n1, "for i in 1 2 3 4 5 6 7 8 9 10; do zfs clone -o readonly=on -o canmount=noauto "+copyOf(v)+"@release tank/hand$i || exit 1; done")
		c.n1.Sh("for i in 1 2 3 4 5 6 7 8 9 10; do zfs destroy tank/hand$i || exit 1; done")
		c.Logf("    ten clones took %s, by hand %s (%.1f times)", ten.Round(10*time.Millisecond), byHand.Round(10*time.Millisecond), float64(ten)/float64(byHand))
		atOnce := c.nanos(c.n1, `flockctl clone pg@release u1 u2 u3 u4 u5 u6 u7 u8 u9 u10 --node n1 -o replicas=0 >/dev/null || exit 1`)
		c.Logf("    ten clones at once took %s (%.1f times)", atOnce.Round(10*time.Millisecond), float64(atOnce)/float64(byHand))
		for _, name := range []string{"t1", "t10"} {
			one := c.runPostgres(c.n1, name, name)
			one.recovered(before, after+onTheWay)
		}
		c.refuse("a snapshot with clones", func() (string, error) { return c.n1.TryFlockctl("snapshot", "remove", "-y", "pg@release") }, "has clones", "t10")
	})

	c.Step("what is written to either stays there, and a clone has replicas of its own", func() {
		tester.query("insert into rows select i, repeat(md5(i::text), 8) from generate_series((select max(id) + 1 from rows), (select max(id) + 50 from rows)) i")
		if k := tester.rows(); k != tested+50 {
			t.Fatalf("the clone holds %d rows, want %d", k, tested+50)
		}
		c.n2.Flockctl("volume", "sync", "tester")
		w.more(50)
		w.stop()
	})

	// Three that run, and what each holds.
	clones := []database{tester, {c, c.n1, "t1"}, {c, c.n1, "t10"}}
	rows := map[string]int64{}
	oneMore := func() {
		t.Helper()
		for _, one := range clones {
			was := one.rows()
			if want, known := rows[one.container]; known && was != want {
				t.Fatalf("%s holds %d rows, and had %d", one.container, was, want)
			}
			one.query(fmt.Sprintf("insert into rows values (%d, repeat(md5(%d::text), 8))", was+1, was+1))
			if k := one.rows(); k != was+1 {
				t.Fatalf("%s holds %d rows, want %d", one.container, k, was+1)
			}
			rows[one.container] = was + 1
		}
	}
	c.Step("the original is removed, and its clones go on", func() {
		db.stop()
		c.waitMounted(c.n1, "pg", false)
		c.n3.Flockctl("volume", "remove", "-y", "pg")
		oneMore()
		c.n1.Flockctl("clone", "t1", "again", "-o", "replicas=0") // a clone of a clone
		rows["again"] = rows["t1"]
		c.waitVolume(c.n2, "tester", "ok", healthy)
	})

	c.Step("the trash is emptied: nothing of the original is left, and its clones go on with all that they had", func() {
		c.n3.Flockctl("trash", "remove", "-y", "pg")
		took := c.waitNothingOf(v)
		c.Logf("    after %s no node has anything of it, and no clone stands on it", took.Round(100*time.Millisecond))
		oneMore()
		for _, one := range clones {
			one.stop()
			c.waitMounted(one.node, one.container, false)
		}
		// From the disk, not from what the container had in memory; and one that nobody has opened yet.
		for _, name := range []string{"t10", "again"} {
			one := c.runPostgres(c.n1, name, name)
			if k := one.rows(); k != rows[name] {
				t.Errorf("%s holds %d rows, want %d", name, k, rows[name])
			}
			one.stop()
			c.waitMounted(c.n1, name, false)
		}
		c.waitVolume(c.n2, "tester", "ok", healthy)
	})
}

// waitNothingOf waits until no node has a dataset of a volume that was destroyed for good, and each that is there
// stands on its own, or on one of a volume that is there.
func (c cluster) waitNothingOf(gone api.Volume) time.Duration {
	c.Helper()
	return c.Until("nothing to be left of "+gone.Name, later, func() error {
		for _, n := range c.Nodes() {
			live, err := n.Volumes()
			if err != nil {
				return err
			}
			out, err := n.Try("zfs list -H -r -t filesystem -o name,origin tank")
			if err != nil {
				return err
			}
			for line := range strings.Lines(out) {
				name, origin, _ := strings.Cut(strings.TrimSpace(line), "\t")
				on, _, _ := strings.Cut(origin, "@")
				sibling := slices.ContainsFunc(live, func(v api.Volume) bool { return on == copyOf(v) })
				if strings.Contains(line, string(gone.ID)) || origin != "-" && !sibling {
					return fmt.Errorf("%s has %s with the origin %s", n, name, origin)
				}
			}
		}
		return nil
	})
}

// shares checks that a volume is a clone that has its data in common with a node's copy of another: nothing was copied.
func (c cluster) shares(n *lab.Node, name string, of api.Volume) {
	c.Helper()
	clone, err := n.Volume(name)
	if err != nil {
		c.Fatal(err)
	}
	if clone.Primary.Name != n.Name || clone.From == nil || clone.From.Name != of.Name {
		c.Fatalf("the clone is %+v", clone)
	}
	if origin := strings.TrimSpace(n.Sh("zfs get -H -o value origin " + copyOf(clone))); !strings.HasPrefix(origin, copyOf(of)+"@") {
		c.Fatalf("it was copied: its origin is %q", origin)
	}
}

// recovered checks a database that was started on what one had on disk while it ran: it came up cleanly, and holds the rows 1 to k,
// which it returns, for a k within these bounds.
func (db database) recovered(least, most int64) int64 {
	db.c.Helper()
	k := db.rows()
	if k < least || k > most {
		db.c.Fatalf("%s holds rows 1 to %d, want %d to %d of them", db.container, k, least, most)
	}
	if said := db.node.Sh("docker logs " + db.container + " 2>&1"); !strings.Contains(said, "ready to accept connections") || strings.Contains(said, "PANIC") {
		db.c.Fatalf("recovery was not clean:\n%s", said)
	}
	return k
}

// nanos is how long commands in a node take there.
func (c cluster) nanos(n *lab.Node, commands string) time.Duration {
	c.Helper()
	out := n.Lines("began=$(date +%s%N); " + commands + "; echo $(($(date +%s%N) - began))")
	nanos, err := strconv.ParseInt(strings.TrimSpace(out[len(out)-1]), 10, 64)
	if err != nil {
		c.Fatalf("%s on %s: %v", commands, n, err)
	}
	return time.Duration(nanos)
}
