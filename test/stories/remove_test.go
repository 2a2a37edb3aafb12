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

// A node loses power and is given up: removed, its volume and its container are elsewhere,
// and all volumes have as many copies as before. It comes back, and is told.
func TestRemoveDead(t *testing.T) {
	c := start(t)
	c.byHand()
	var s *scribe
	var far *tally
	var farVolume api.Volume
	c.Step("on n2: a scribe that follows, and the replica of a volume that n1 writes to", func() {
		s = c.scribe(c.n2, "log", 1)
		farVolume = c.replicatedOn(c.n1, c.n2)
		far = c.tally(c.n1, "usleep 300000", farVolume.Name)
		c.waitVolume(c.n1, farVolume.Name, "ok with its replica", healthy)
		s.about()
	})

	remove := func(more ...string) (string, error) {
		return c.n1.TryFlockctl(append([]string{"node", "remove", "n2", "--yes"}, more...)...)
	}
	c.Step("n2 loses power, and is removed when somebody says that it is off", func() {
		c.refuse("while it lives", func() (string, error) { return remove("--dead") }, "not dead")
		cut := time.Now()
		c.Cut(c.n2)
		c.waitHealth(c.n1, "n2", api.NodeDead)
		c.Logf("    taken for dead after %.1fs", time.Since(cut).Seconds())
		c.refuse("without --dead", func() (string, error) { return remove() }, "not drained")
		c.refuse("without a word that it is off", func() (string, error) { return remove("--dead") }, "n2")
		out, err := remove("--dead", "--confirm-fenced", "n2")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out, "n2 is removed") || !strings.Contains(out, "log") {
			t.Errorf("it says %q; want that log gets another primary", out)
		}
		s.takenOver(cut)
	})

	c.Step("all volumes have their replica again, and nothing is missing", func() {
		for _, name := range []string{"log", farVolume.Name} {
			_, took := c.waitVolume(c.n1, name, "ok on n1 and n3", func(v api.Volume) error { return firstOf(healthy(v), isNotOn(v, "n2")) })
			c.Logf("    %s after %.1fs more", name, took.Seconds())
		}
		far.stop()
		c.waitSettled(c.n1, c.n3, farVolume)
		far.checkTally(farVolume, c.n1, c.n3)
		c.waitMembers(c.n1, "n1", "n3")
	})

	c.Step("n2 comes back: it is no member, and writes nothing", func() {
		c.Boot(c.n2)
		c.isRetired(c.n2, "was removed from the cluster")
		// The engine does not pass on why the volume is not there any more.
		c.refuse("docker start there", func() (string, error) { return c.n2.TryDocker("start", s.name) }, "volume")
		s.more(3)
		s.check()
		c.waitMembers(c.n3, "n1", "n3")
		s.node.Docker("rm", "-f", s.name)
	})
}

// byHand keeps a busy host, on which leases run out, from failing over in the middle of a
// story of something else.
func (c cluster) byHand() {
	c.Helper()
	c.n1.Flockctl("settings", "set", "failover=manual")
}

// replicatedOn makes a volume on one node whose only replica is on another. Where replicas
// go is placement's choice, so volumes are made until one is there.
func (c cluster) replicatedOn(primary, replica *lab.Node) api.Volume {
	c.Helper()
	const most = 6
	for i := range most {
		name := "far" + strconv.Itoa(i)
		if _, err := createOn(primary, name, "size=1G", "replicas=1"); err != nil {
			c.Fatal(err)
		}
		v, _ := c.waitVolume(primary, name, "ok with its replica", healthy)
		if v.Primary.Name == primary.Name && v.Replicas[0].Node.Name == replica.Name {
			return v
		}
		primary.Docker("volume", "rm", name)
	}
	c.Fatalf("none of %d volumes of %s got its replica on %s", most, primary, replica)
	return api.Volume{}
}

// isNotOn is an error where a node has a copy of a volume.
func isNotOn(v api.Volume, node string) error {
	if v.Primary.Name == node || slices.ContainsFunc(v.Replicas, func(r api.Replica) bool { return r.Node.Name == node }) {
		return fmt.Errorf("%s has a copy of %s", node, v.Name)
	}
	return nil
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// isRetired waits until a node says that it is no member any more, and why, and until
// nothing on it uses a volume.
func (c cluster) isRetired(n *lab.Node, why string) {
	c.Helper()
	c.Until(n.Name+" to know that it "+why, later, func() error {
		st, err := n.Status()
		if err == nil && !strings.Contains(st.Retired, why) {
			err = fmt.Errorf("it says %+v", st)
		}
		if err == nil {
			err = leftovers(n)
		}
		if out, merr := n.Try("grep tank/flocker/ /proc/mounts || true"); err == nil && (merr != nil || strings.TrimSpace(out) != "") {
			err = fmt.Errorf("mounted: %s, %w", out, merr)
		}
		return err
	})
}

// waitMembers waits until a node sees exactly these nodes, all alive.
func (c cluster) waitMembers(n *lab.Node, want ...string) {
	c.Helper()
	c.Until(fmt.Sprintf("%s to see %s alone", n, want), later, func() error {
		members, err := n.Members()
		if err != nil {
			return err
		}
		var got []string
		for _, m := range members {
			if m.Health != api.NodeAlive {
				return fmt.Errorf("%s is %s", m.Name, m.Health)
			}
			got = append(got, m.Name)
		}
		slices.Sort(got)
		return lab.Want("nodes", strings.Join(got, " "), strings.Join(want, " "))
	})
}

// waitHealth waits until a node says so of another one.
func (c cluster) waitHealth(n *lab.Node, name string, want api.NodeHealth) {
	c.Helper()
	c.Until(fmt.Sprintf("%s to say that %s is %s", n, name, want), later, func() error {
		members, err := n.Members()
		if err != nil {
			return err
		}
		for _, m := range members {
			if m.Name == name {
				return lab.Want("its health", m.Health, want)
			}
		}
		return fmt.Errorf("it is no member")
	})
}
