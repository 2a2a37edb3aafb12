package stories

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/test/lab"
)

// Two of three nodes lose power, and are given up. The cluster is made anew from the third,
// which has all that was written before a sync. The two come back all the same, both at
// once, so that they would be a majority of the cluster of before: they are left behind and
// write nothing. One joins again as what it was; the other is removed, and joins with
// nothing on its disk as a new node.
func TestRecover(t *testing.T) {
	c := start(t)
	c.Step("failover becomes automatic by itself", func() { c.waitAutomatic() })

	var own, lost *scribe // of n1, and of n2
	var away, sum string  // the volume without a copy on n1, and a checksum of what is on it
	var begun string      // the last start of the container on n2
	c.Step("containers that follow write on n1 and on n2, and n2 and n3 have a volume for themselves", func() {
		away = c.replicatedOn(c.n2, c.n3).Name // before n3 has more replicas than n1
		own = c.scribe(c.n1, "own", 2)
		lost = c.scribe(c.n2, "lost", 2)
		sum = c.n2.Sh(onVolume(away, "dd if=/dev/urandom of=/d/bytes bs=1M count=8 2>/dev/null && sync && "+sumOf))
		begun = c.n2.Docker("inspect", "-f", "{{.State.StartedAt}}", "lost")
		own.about()
		lost.about()
	})
	names := []string{"own", "lost", away}

	c.Step("n2 and n3 lose power: n1 has no quorum, and stops its writers", func() {
		c.Cut(c.n2, c.n3)
		c.Until("nothing to write on n1", later, func() error { return own.idle(c.n1) })
		c.refuse("a failover without quorum", func() (string, error) {
			return c.n1.TryFlockctl("failover", "lost", "--accept-loss", "--confirm-fenced", "n2")
		}, "leader")
	})

	c.Step("the cluster is made anew from n1, once somebody says so", func() {
		c.refuse("while flockd runs", func() (string, error) { return c.n1.Try("flockd recover --i-have-lost-quorum") }, "stop flockd first")
		c.n1.Sh("systemctl stop flockd")
		c.refuse("without saying so", func() (string, error) { return c.n1.Try("flockd recover") }, "--i-have-lost-quorum")
		plan := c.n1.Sh("flockd recover --dry-run")
		for _, want := range []string{"Generation       1, was 0", "n2 (voter), n3 (voter)", "go on here:\n  own", "wait for you:\n  lost", "without a copy here:\n  " + away, "Nothing was changed"} {
			if !strings.Contains(plan, want) {
				t.Errorf("the dry run does not say %q:\n%s", want, plan)
			}
		}
		c.n1.Sh("flockd recover --i-have-lost-quorum && systemctl start flockd")
		took := c.Until("n1 to be a cluster of one", later, func() error {
			st, err := c.n1.Status()
			if err == nil && (!st.Quorum || len(st.Voters) != 1 || st.Voters[0].Name != "n1" || st.Failover.Mode != "manual") {
				err = fmt.Errorf("quorum %v, voters %v, failover %s", st.Quorum, st.Voters, st.Failover.Mode)
			}
			return err
		})
		c.Logf("    it answers %.1fs after it was started, and says: %s", took.Seconds(), c.n1.Sh("flockctl events | grep 'generation 1'"))
	})

	c.Step("its own volume goes on, with every line; what the others wrote waits", func() {
		own.more(3)
		for _, name := range names {
			c.waitVolume(c.n1, name, "of generation 1", func(v api.Volume) error {
				if v.Epoch < volume.NewEpoch(1, 0) {
					return fmt.Errorf("its epoch is %s", v.Epoch)
				}
				return nil
			})
		}
		v, err := c.n1.Volume(away)
		if err != nil || v.Health == api.HealthOK {
			t.Errorf("the volume without a copy on n1 is %s, %v", v.Health, err)
		}
		c.Logf("    %s is %s: %s", away, v.Health, v.Reason)
		c.refuse("failover of what n2 wrote", func() (string, error) { return c.n1.TryFlockctl("failover", "lost") }, "--accept-loss")
	})

	c.Step("told to, n1 takes over what n2 wrote, and its container follows", func() {
		c.n1.Flockctl("failover", "lost", "--accept-loss")
		lost.movedTo(c.waitPrimary("lost", c.n1))
		for _, s := range []*scribe{own, lost} {
			if !slices.ContainsFunc(s.live(), func(l scribed) bool { return l.text == s.safe }) {
				t.Errorf("%s: %q was written before a volume sync, and is not there", s.name, s.safe)
			}
		}
	})

	c.Step("n2 and n3 come back, both at once: they are left behind, and nothing on them writes", func() {
		c.Boot(c.n2, c.n3)
		for _, n := range []*lab.Node{c.n2, c.n3} {
			c.isRetired(n, "left behind")
		}
		if now := c.n2.Docker("inspect", "-f", "{{.State.Running}} {{.State.StartedAt}}", "lost"); now != "false "+begun {
			t.Errorf("the container of n2 runs, and was started at: %s; its last start before the cut was at %s", now, begun)
		}
		c.refuse("docker start there", func() (string, error) { return c.n2.TryDocker("start", "lost") }, "volume")
		if st, err := c.n1.Status(); err != nil || len(st.Voters) != 1 {
			t.Errorf("n1 has the voters %v, %v", st.Voters, err)
		}
		own.more(3)
		lost.more(3)
	})

	c.Step("n2 joins again and is what it was: it has its volume, and follows n1's", func() {
		c.join(joinLine(c.n1.Flockctl("token", "create")), c.n2)
		c.waitVolume(c.n1, away, "on n2", func(v api.Volume) error {
			if v.Primary.Name != "n2" || v.Phase != "active" {
				return fmt.Errorf("it is %s, %s: %s", v.Phase, v.Primary, v.Reason)
			}
			return nil
		})
		if got := c.n2.Sh(onVolume(away, sumOf)); got != sum {
			t.Errorf("the volume of n2 has the checksum %s, it had %s", got, sum)
		}
		c.waitSnapshotAfter(lost.v, c.n1, c.n2)
	})

	c.Step("n3 is removed, and joins as a new node with nothing on its disk", func() {
		c.n1.Flockctl("node", "remove", "--dead", "--yes", "n3")
		c.n3.Sh("systemctl stop flockd && " + removed("/var/lib/flocker") + " && zfs destroy -r tank/flocker && systemctl start flockd")
		c.join(joinLine(c.n1.Flockctl("token", "create")), c.n3)
		c.waitNodes(3)
		c.waitAutomatic()
		for _, name := range names {
			c.waitVolume(c.n1, name, "ok with all replicas", healthy)
		}
	})

	c.Step("writers have followed one another, and all copies are equal", func() {
		for _, s := range []*scribe{own, lost} {
			s.learn(s.node)
			s.check()
			s.node.Docker("rm", "-f", s.name)
			c.waitVolume(c.n1, s.name, "ok", healthy)
			c.checkEqual(s.v)
		}
	})
}

// sumOf is a script for onVolume: a checksum of all files.
const sumOf = "find /d -type f | sort | xargs cat | sha256sum | cut -d' ' -f1"

// onVolume is a command line that runs a script in a container with a volume at /d.
func onVolume(name, script string) string {
	return "docker run --rm --mount type=volume,volume-driver=flocker,src=" + name + ",dst=/d " + busyboxImage + " sh -c " + lab.Quote(script)
}
