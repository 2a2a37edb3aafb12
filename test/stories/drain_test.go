package stories

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/test/lab"
)

// A node is emptied under a container that follows and under one of another node that is
// replicated there: all it has goes elsewhere, as many copies as before and nothing of what
// was written is missing. It is used again, emptied once more, removed, and comes back as a
// new node; the others go on.
func TestDrain(t *testing.T) {
	c := start(t)
	c.byHand()
	var s *scribe
	var far *tally
	var farVolume api.Volume
	var idle string // checksum of what is on the idle volume
	var names []string
	c.Step("on n2: a scribe that follows, an idle volume, and the replica of one that n1 writes to", func() {
		if _, err := createOn(c.n2, "idle", "size=1G", "replicas=1"); err != nil {
			t.Fatal(err)
		}
		idle = c.n2.Sh(onVolume("idle", "dd if=/dev/urandom of=/d/bytes bs=1M count=8 2>/dev/null && sync && "+sumOf))
		s = c.scribe(c.n2, "log", 1)
		farVolume = c.replicatedOn(c.n1, c.n2)
		far = c.tally(c.n1, "usleep 300000", farVolume.Name)
		names = []string{"log", "idle", farVolume.Name}
		for _, name := range names {
			c.waitVolume(c.n2, name, "ok with its replica", healthy)
		}
	})

	c.Step("n2 is drained, and tells how far it is", func() {
		c.refuse("removed before", func() (string, error) { return c.n1.TryFlockctl("node", "remove", "n2") }, "is not drained")
		s.learn(c.n2)
		begin := time.Now()
		said := strings.Split(c.n1.Sh("flockctl node drain n2 2>&1"), "\n")
		c.Logf("    empty after %.1fs; it said %d lines:\n\t%s", time.Since(begin).Seconds(), len(said), strings.Join(said, "\n\t"))
		all := strings.Join(said, "\n")
		for _, want := range []string{"0 of 3 copies moved", "container log", "first copy to ", "n2 is empty"} {
			if !strings.Contains(all, want) {
				t.Errorf("it did not say %q", want)
			}
		}
	})

	c.Step("nothing is on n2 any more; the others have all of it, twice", func() {
		c.isEmpty(c.n2)
		s.movedTo(c.waitPrimary("log", c.n1, c.n3))
		s.check()
		far.stop()
		for _, name := range names {
			c.waitVolume(c.n1, name, "ok on n1 and n3", func(v api.Volume) error { return firstOf(healthy(v), isNotOn(v, "n2")) })
		}
		c.waitSettled(c.n1, c.n3, farVolume)
		far.checkTally(farVolume, c.n1, c.n3)
		at, v := c.waitPrimary("idle", c.n1, c.n3)
		c.verify(v, 2)
		if got := at.Sh(onVolume("idle", sumOf)); got != idle {
			t.Errorf("the idle volume has the checksum %s on %s, it had %s on n2", got, at, idle)
		}
	})

	c.Step("while it is drained it gets nothing new", func() {
		if _, err := createOn(c.n2, "new", "size=100M", "replicas=1"); err != nil {
			t.Error(err)
		}
		v, _ := c.waitVolume(c.n2, "new", "ok on n1 and n3", healthy)
		if err := isNotOn(v, "n2"); err != nil {
			t.Error(err)
		}
		c.refuse("docker run on n2", func() (string, error) { return c.n2.Try(onVolume("new", "true")) }, "drained")
	})

	c.Step("undrained, it is used again: the scribe is moved back to it", func() {
		c.n1.Flockctl("node", "undrain", "n2")
		s.learn(s.node)
		if _, err := lab.Ask[api.Migration](c.n1, "migrate", "--force", "log", "n2"); err != nil {
			t.Fatal(err)
		}
		s.movedTo(c.waitPrimary("log", c.n2))
		s.check()
		c.waitVolume(c.n2, "log", "ok", healthy)
		c.waitFollows(c.n2, "log")
	})

	c.Step("drained once more it is removed, and the others go on", func() {
		s.learn(c.n2)
		begin := time.Now()
		c.n3.Flockctl("node", "drain", "n2")
		c.Logf("    empty after %.1fs", time.Since(begin).Seconds())
		c.isEmpty(c.n2)
		s.movedTo(c.waitPrimary("log", c.n1, c.n3))
		s.check()
		c.n3.Flockctl("node", "remove", "n2")
		c.isRetired(c.n2, "was removed from the cluster")
		c.waitMembers(c.n1, "n1", "n3")
		s.more(3)
		if _, err := createOn(c.n1, "after", "size=100M", "replicas=1"); err != nil {
			t.Error(err)
		}
		c.waitVolume(c.n3, "after", "ok", healthy)
		c.refuse("docker run on n2", func() (string, error) { return c.n2.Try(onVolume("after", "true")) }, "removed")
	})

	c.Step("it joins as a new node, and takes volumes", func() {
		c.join(joinLine(c.n1.Flockctl("token", "create")), c.n2)
		c.waitNodes(3)
		s.learn(s.node)
		// What its engine has from when it was another node was made there by flockd, which may
		// remove it; one that somebody else has made would be named, and stay.
		if _, err := lab.Ask[api.Migration](c.n1, "migrate", "--force", "log", "n2"); err != nil {
			t.Fatal(err)
		}
		s.movedTo(c.waitPrimary("log", c.n2))
		s.check()
		s.node.Docker("rm", "-f", s.name)
	})
}

// isEmpty checks that the cluster has nothing on a node, and waits until its pool has no
// copy of any volume either.
func (c cluster) isEmpty(n *lab.Node) {
	c.Helper()
	members, err := c.n1.Members()
	if err != nil {
		c.Fatal(err)
	}
	for _, m := range members {
		if m.Name == n.Name && (m.Availability != "drain" || m.Primaries+m.Replicas > 0) {
			c.Errorf("%s is called %s, primary of %d, replica of %d", n, m.Availability, m.Primaries, m.Replicas)
		}
	}
	c.Until("no copy in the pool of "+n.Name, later, func() error {
		out, err := n.Try("zfs list -H -o name -r -d 1 tank/flocker | tail -n +2")
		if err == nil && strings.TrimSpace(out) != "" {
			err = fmt.Errorf("it has %s", strings.Fields(out))
		}
		return err
	})
}
