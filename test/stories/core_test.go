package stories

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/test/lab"
)

// What fakes pass everywhere passes on real pools, on three nodes at the same time: the
// conformance suite of package zfs, in two parts; and of the tests of replication's links, in
// which streams are cut, damaged, swapped and of a lower epoch, daemons are killed, copies
// diverge and a pool is full, some of each.
func TestCoreSuites(t *testing.T) {
	const pool, limit = "FLOCKER_ZFS_POOL=tank", 20 * time.Minute
	t.Run("zfs, from a", func(t *testing.T) {
		t.Parallel()
		onNode(t, 1, "./zfs", pool, "TestConformance", "[^r-z]", limit)
	})
	t.Run("zfs, from r", func(t *testing.T) {
		t.Parallel()
		onNode(t, 2, "./zfs", pool, "TestConformance", "[r-z]", limit)
	})
	t.Run("links", func(t *testing.T) {
		t.Parallel()
		onNode(t, 3, "./replicate", "FLOCKER_LINK_POOLS=/var/tmp/links", "TestRealLinks", "", limit)
	})
}

// onNode builds the tests of a package and runs those parts of one of them on a node, as
// root, whose names begin so. Those that pass are counted; none is a failure.
func onNode(t *testing.T, node int, pkg, env, test, parts string, limit time.Duration) {
	l := lab.Open(t)
	n := l.Node(node)
	program := filepath.Join(t.TempDir(), "node.test")
	build := exec.Command("go", "test", "-c", "-tags", "hashicorpmetrics,nosystemd", "-ldflags", "-s -w", "-o", program, pkg)
	build.Dir = l.Root()
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	before := n.Sh("zfs list -H -o name")
	n.Copy(program, "/tmp/node.test")
	_, dir, _ := strings.Cut(env, "=")
	out, err := n.TryFor(limit+time.Minute, fmt.Sprintf(`cd /tmp; case %[2]s in /*) mkdir -p %[2]s;; esac
%[1]s ./node.test -test.v -test.timeout %[4]s -test.run '^%[3]s$/^%[5]s'; code=$?
rm -f node.test; case %[2]s in /*) rm -rf %[2]s;; esac; exit $code`, env, dir, test, limit, parts))
	count := 0
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "--- PASS: "+test+"/") {
			count++
		}
		if strings.HasPrefix(line, "--- FAIL") || strings.HasPrefix(line, "--- SKIP") || strings.Contains(line, "real_linux_test.go:") || err != nil && strings.Contains(line, "_test.go:") {
			t.Log(line)
		}
	}
	if err != nil || count == 0 {
		t.Errorf("%d tests of %s passed on %s: %v", count, pkg, n, err)
	}
	t.Logf("%d tests of %s passed on %s", count, pkg, n)
	if after := n.Sh("zfs list -H -o name"); after != before {
		t.Errorf("the tests left datasets behind:\n%s\nbefore:\n%s", after, before)
	}
}

// The main job, of one database: its volume is on all nodes and used by one of them, what it
// was is at hand, and the loss of its node takes nothing that was safe. One cluster and one
// database do for all of it: on emulated machines to make them takes longer than a step.
func TestCoreMain(t *testing.T) {
	c := start(t)
	db, v := c.everywhere()
	c.timeMachine(db, v)
	c.failOver(db, v)
}

// everywhere is the first part: a volume made through Docker is on ZFS, replicated, and
// visible from every node; replicas follow; one node at a time uses it; what is removed
// can be brought back. In the end PostgreSQL runs on n2 and is to follow its volume.
func (c cluster) everywhere() (db database, v api.Volume) {
	c.Helper()
	primary, replicas := c.n2, []*lab.Node{c.n1, c.n3}

	c.Step("a volume made by Docker on n2 is seen from every node", func() {
		primary.Docker("volume", "create", "-d", "flocker", "-o", "size=1G", "-o", "replicas=2", "pgdata")
		for _, n := range c.Nodes() {
			c.Until("docker volume ls on "+n.Name+" to show pgdata", soon, func() error {
				names, err := n.DockerVolumes()
				if err == nil && !slices.Contains(names, "pgdata") {
					err = fmt.Errorf("it shows %v", names)
				}
				return err
			})
			dv, err := n.DockerVolume("pgdata")
			if err != nil {
				c.Fatal(err)
			}
			if dv.Scope != "global" || dv.Status["primary"] != "n2" || dv.Status["size_bytes"] != float64(1<<30) {
				c.Errorf("%s: docker volume inspect: scope %s, status %v", n, dv.Scope, dv.Status)
			}
		}
	})

	var w *writer
	c.Step("PostgreSQL runs on it and commits rows", func() {
		db = c.runPostgres(primary, "pg", "pgdata")
		db.query(table)
		w = db.write()
		w.more(30)
	})

	c.Step("both replicas follow", func() {
		v, _ = c.waitVolume(primary, "pgdata", "ok with two replicas", healthy)
		for _, n := range replicas {
			took := c.waitSnapshotAfter(v, primary, n)
			c.Logf("    %s holds a snapshot taken after the question %.1fs later", n, took.Seconds())
		}
		// Interval plus one step, and what emulation makes of it.
		const most = 20.0
		c.waitVolume(primary, "pgdata", "lag of seconds on both replicas", func(v api.Volume) error {
			for _, r := range v.Replicas {
				if r.LagSeconds == nil || *r.LagSeconds > most {
					return fmt.Errorf("%s: lag %v", r.Node, show(r.LagSeconds))
				}
				c.Logf("    lag of %s: %s", r.Node, show(r.LagSeconds))
			}
			return nil
		})
	})

	var rows int64
	c.Step("all copies are equal", func() {
		rows = w.stop()
		c.waitVolume(primary, "pgdata", "ok", healthy)
		c.checkEqual(v)
	})

	c.Step("another node may not use it meanwhile", func() {
		c.refuse("docker run on n1", func() (string, error) {
			return c.n1.TryDocker("run", "--rm", "--mount", "type=volume,volume-driver=flocker,src=pgdata,dst=/d", busyboxImage, "true")
		}, "n2", "pg")
	})

	c.Step("stopped there, it runs on n3 with every row", func() {
		db.stop()
		begin := time.Now()
		db = c.runPostgres(c.n3, "pg", "pgdata")
		c.Logf("    answers on n3 after %.1fs", time.Since(begin).Seconds())
		if got := db.rows(); got != rows {
			c.Errorf("%d rows on n3, want %d", got, rows)
		}
		c.waitVolume(c.n1, "pgdata", "primary n3", func(v api.Volume) error {
			return lab.Want("primary", v.Primary.Name, "n3")
		})
	})

	c.Step("removed only when unused, and brought back", func() {
		c.refuse("docker volume rm on n1", func() (string, error) { return c.n1.TryDocker("volume", "rm", "pgdata") }, "n3", "pg")
		db.stop()
		c.n2.Docker("volume", "rm", "pgdata")
		for _, n := range c.Nodes() {
			c.Until("pgdata to be gone from docker volume ls on "+n.Name, soon, func() error {
				names, err := n.DockerVolumes()
				if err == nil && slices.Contains(names, "pgdata") {
					err = fmt.Errorf("it shows %v", names)
				}
				return err
			})
		}
		c.n1.Flockctl("volume", "undelete", "pgdata")
		db = c.runPostgres(c.n2, "pg", "pgdata", "--restart", "always", "--label", "flocker.enable=true", "--label", "flocker.pre-snapshot=postgres")
		if got := db.rows(); got != rows {
			c.Errorf("%d rows after undelete, want %d", got, rows)
		}
	})
	return db, v
}

// Docker, flockd and the power of all nodes come and go under a writing database;
// nothing that was committed is lost and everything comes back by itself.
func TestRestart(t *testing.T) {
	c := start(t)
	primary := c.n2
	var db database
	var w *writer
	var v api.Volume
	c.Step("PostgreSQL with restart=always writes on n2", func() {
		c.n2.Docker("volume", "create", "-d", "flocker", "-o", "size=1G", "-o", "replicas=2", "pgdata")
		db = c.runPostgres(c.n2, "pg", "pgdata", "--restart", "always")
		db.query(table)
		w = db.write()
		w.more(30)
		v, _ = c.waitVolume(primary, "pgdata", "ok with two replicas", healthy)
	})

	c.Step("n3 loses power while writing goes on: status says so, and never ok", func() {
		before := identity(c.n3, copyOf(v))
		full := c.metric(primary, "flocker_streams_total", `kind="full"`)
		c.Cut(c.n3)
		_, took := c.waitVolume(primary, "pgdata", "not ok", func(v api.Volume) error {
			if v.Health == api.HealthOK {
				return fmt.Errorf("ok, with n3 cut off: %v", states(v))
			}
			return nil
		})
		c.Logf("    seen after %.1fs", took.Seconds())
		for target := w.last() + 100; w.last() < target; {
			v, err := primary.Volume("pgdata")
			if err != nil {
				t.Fatal(err)
			}
			if v.Health != api.HealthLagging && v.Health != api.HealthDegraded {
				t.Fatalf("health with n3 cut off: %s (%s), replicas %v", v.Health, v.Reason, states(v))
			}
		}
		missed := w.last()
		booting := time.Now()
		c.Boot(c.n3)
		_, _ = c.waitVolume(primary, "pgdata", "ok again", healthy)
		c.waitSnapshotAfter(v, primary, c.n3)
		c.Logf("    power back, caught up and ok after %.1fs; %d rows were committed by then, %d before the boot",
			time.Since(booting).Seconds(), w.last(), missed)
		if after := identity(c.n3, copyOf(v)); after != before {
			t.Errorf("n3's copy was made anew: guid/createtxg %s, before %s", after, before)
		}
		if got := c.metric(primary, "flocker_streams_total", `kind="full"`); got != full {
			t.Errorf("%v full streams were sent, %v before the cut: it did not catch up incrementally", got, full)
		}
	})

	c.Step("flockd is killed: the container does not notice, and replicas follow again", func() {
		connections := w.connections()
		c.n2.Sh("systemctl kill -s KILL flockd")
		w.more(50)
		c.waitVolume(c.n2, "pgdata", "ok", healthy)
		for _, n := range []*lab.Node{c.n1, c.n3} {
			c.waitSnapshotAfter(v, c.n2, n)
		}
		if got := w.connections(); got != connections {
			t.Errorf("the writer had to connect %d times more", got-connections)
		}
	})

	c.Step("docker is restarted", func() {
		c.n2.Sh("systemctl restart docker")
		db.wait()
		w.more(30)
		w.check()
	})

	c.Step("all nodes lose power, and come back in another order", func() {
		c.Cut(c.Nodes()...)
		w.run.Wait()
		committed := w.last()
		c.Boot(c.n3)
		c.Boot(c.n1, c.n2)
		took := c.waitNodes(3)
		c.Logf("    the cluster is whole %.1fs after the last boot", took.Seconds())
		took = db.wait()
		c.Logf("    PostgreSQL answers on n2 %.1fs later", took.Seconds())
		got := db.rows()
		c.Logf("    %d rows are there, %d were acknowledged", got, committed)
		if got < committed || got > committed+onTheWay {
			t.Errorf("%d rows after the power cut, %d were acknowledged", got, committed)
		}
	})

	c.Step("replicas follow and are equal", func() {
		w = db.write()
		w.more(20)
		w.stop()
		v, _ := c.waitVolume(c.n2, "pgdata", "ok with two replicas", healthy)
		c.checkEqual(v)
		db.stop()
	})
}

func (c cluster) metric(n *lab.Node, name string, labels ...string) float64 {
	c.Helper()
	v, err := n.Metric(name, labels...)
	if err != nil {
		c.Fatal(err)
	}
	return v
}

func show(seconds *float64) string {
	if seconds == nil {
		return "not known"
	}
	return fmt.Sprintf("%.1fs", *seconds)
}

// states of a volume's replicas, for messages.
func states(v api.Volume) map[string]volume.LinkState {
	out := map[string]volume.LinkState{}
	for _, r := range v.Replicas {
		out[r.Node.String()] = r.State
	}
	return out
}
