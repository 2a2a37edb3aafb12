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

// counting is a container that goes on counting in the file /d/tally from where it
// finds it, and says each number once it is on disk.
const counting = `i=$(wc -l </d/tally 2>/dev/null || echo 0)
while i=$((i+1)); do
	echo $i | dd of=/d/tally oflag=append conv=notrunc,fsync 2>/dev/null || exit 1
	echo $i
	usleep 100000
done`

// A node is cut off with clients that go on using its container: that is stopped
// before another one is started elsewhere, as both nodes' journals say on one clock.
// What it wrote alone is kept.
func TestFailoverPartition(t *testing.T) {
	c := start(t)
	c.Step("failover becomes automatic by itself", func() { c.waitAutomatic() })

	var v api.Volume
	var old, fresh counter
	var seen *lab.Follower
	c.Step("a container on n2 counts, and a client there reads what it says", func() {
		if _, err := createOn(c.n2, "v", "size=100M", "replicas=2"); err != nil {
			t.Fatal(err)
		}
		c.n2.Docker("run", "-d", "--name", "tally", "--restart", "always", "--label", "flocker.enable=true",
			"--mount", "type=volume,volume-driver=flocker,src=v,dst=/d", busyboxImage, "sh", "-c", counting)
		seen = c.n2.Follow("docker logs -f tally", old.line)
		old.wait(c, 10)
		v, _ = c.waitVolume(c.n2, "v", "ok with two replicas", healthy)
		c.waitFollows(c.n2, "tally")
		old.wait(c, 10)
	})

	var to *lab.Node
	var cut time.Time
	clocks := map[string]clock{}
	c.Step("n2 is cut off: another node gets the volume, and the container counts on there", func() {
		for _, n := range c.Nodes() {
			clocks[n.Name] = c.clock(n)
		}
		cut = time.Now()
		c.Partition(c.n2, c.n1, c.n3)
		to, _ = c.waitPrimary("v", c.n1, c.n3)
		c.Logf("    %s is the primary after %.1fs", to, time.Since(cut).Seconds())
		c.Until("the container on "+to.Name, later, func() error {
			out, err := to.TryDocker("inspect", "-f", "{{.State.Running}}", "tally")
			if err != nil {
				return err
			}
			return lab.Want("running", out, "true")
		})
		fromHere := to.Follow("docker logs -f tally", fresh.line)
		fresh.wait(c, 20)
		fromHere.Stop()
	})

	c.Step("by one clock, everything on n2 had been stopped before anything was started on "+to.Name, func() {
		here, there := clocks["n2"].or(c.clock(c.n2)), clocks[to.Name].or(c.clock(to))
		c.Logf("    n2's clock is %s ahead of ours, %s's %s", here, to, there)
		stopped := c.journal(c.n2, cut, "flockd-fence", "all writers are stopped")
		ended := c.engineTime(c.n2, "tally", "FinishedAt")
		begun := c.engineTime(to, "tally", "StartedAt")
		made := c.journal(to, cut, "flockd", "follows its volumes to this node")
		c.Logf("    after the cut: n2's container ended at %.1fs, its fencer was done at %.1fs; the container of %s was started at %.1fs, flockd said so at %.1fs",
			here.latest(ended).Sub(cut).Seconds(), here.latest(stopped).Sub(cut).Seconds(), to,
			there.earliest(begun).Sub(cut).Seconds(), there.earliest(made).Sub(cut).Seconds())
		if last := here.latest(latest(stopped, ended)); !last.Before(there.earliest(begun)) {
			t.Errorf("n2 stopped at %s, %s began at %s", last, to, there.earliest(begun))
		}
		if out := c.n2.Docker("ps", "-q"); out != "" {
			t.Errorf("on n2 runs %s", out)
		}
		if is, err := mounted(c.n2, v); err != nil || is {
			t.Errorf("n2 has the volume mounted: %v, %v", is, err)
		}
		e := c.event(to, "volume.failed-over", "v")
		c.Logf("    n2 said %d, %d of them while it was alone; %s began with %d; it says: %s", old.last(), old.last()-old.before(cut), to, fresh.first(), e.Message)
		c.checkLoss(e, cut, fresh.first()-1, &old)
	})

	c.Step("healed, n2 is a replica, and all copies are equal", func() {
		seen.Stop()
		c.Heal()
		c.waitVolume(to, "v", "ok again", healthy)
		if out := c.n2.Docker("ps", "-q"); out != "" {
			t.Errorf("on n2 runs %s", out)
		}
		c.checkEqual(v)
		to.Docker("rm", "-f", "tally")
	})

	c.Step("what n2 wrote alone is kept, without a gap", func() {
		c.restoreTail(c.n2, "tail")
		out := c.n2.Sh("docker run --rm --mount type=volume,volume-driver=flocker,src=tail,dst=/d " + busyboxImage +
			" awk '$0 != NR { bad = 1 } END { print NR, bad + 0 }' /d/tally")
		var count, bad int64
		if _, err := fmt.Sscan(out, &count, &bad); err != nil || bad != 0 || count < old.last() || count > old.last()+onTheWay {
			t.Errorf("lines and gaps of the tail: %q, %v; %d was said", out, err, old.last())
		}
		c.Logf("    it counts to %d; %d was said", count, old.last())
	})
}

// clock is how far a node's clock is ahead of this test's own: at least and at most.
// The nodes have only that of the host in common.
type clock struct{ least, most time.Duration }

func (k clock) String() string {
	return fmt.Sprintf("%d to %dms", k.least.Milliseconds(), k.most.Milliseconds())
}

// earliest and latest that a moment of the node can have been.
func (k clock) earliest(at time.Time) time.Time { return at.Add(-k.most) }
func (k clock) latest(at time.Time) time.Time   { return at.Add(-k.least) }

// or is what holds all the while between two askings.
func (k clock) or(later clock) clock {
	return clock{min(k.least, later.least), max(k.most, later.most)}
}

// clock of a node: what it says lies between the question and the answer. The two
// questions that tell the most count.
func (c cluster) clock(n *lab.Node) clock {
	c.Helper()
	var k clock
	for i := range 5 {
		asked := time.Now()
		said := unix(n.Sh("date +%s.%N"))
		answered := time.Now()
		least, most := said.Sub(answered), said.Sub(asked)
		if i == 0 {
			k = clock{least, most}
		}
		k = clock{max(k.least, least), min(k.most, most)}
	}
	if k.least > k.most {
		c.Fatalf("the clock of %s was set meanwhile: %s", n, k)
	}
	return k
}

// unix reads seconds since 1970 with a fraction; zero when they are none.
func unix(s string) time.Time {
	whole, part, _ := strings.Cut(strings.TrimSpace(s), ".")
	seconds, err := strconv.ParseInt(whole, 10, 64)
	nanos, perr := strconv.ParseInt((part + "000000000")[:9], 10, 64)
	if err != nil || perr != nil {
		return time.Time{}
	}
	return time.Unix(seconds, nanos)
}

// journal is when a unit of a node first said something after a moment, by the node's
// clock.
func (c cluster) journal(n *lab.Node, after time.Time, unit, words string) (at time.Time) {
	c.Helper()
	c.Until("the journal of "+unit+" to say: "+words, soon, func() error {
		out, err := n.Try(fmt.Sprintf("journalctl --no-pager -o short-unix -u %s --since=@%d | grep -F %s", unit, after.Unix()-1, lab.Quote(words)))
		if err != nil {
			return err
		}
		if at = unix(strings.Fields(out)[0]); at.IsZero() {
			return fmt.Errorf("no time in %q", out)
		}
		return nil
	})
	return at
}

// engineTime is a time that the engine notes of a container, by the node's clock.
func (c cluster) engineTime(n *lab.Node, container, field string) (at time.Time) {
	c.Helper()
	c.Until("the engine to tell "+field+" of "+container, soon, func() error {
		out, err := n.TryDocker("inspect", "-f", "{{.State."+field+"}}", container)
		if err == nil {
			at, err = time.Parse(time.RFC3339Nano, strings.TrimSpace(out))
		}
		return err
	})
	return at
}

func latest(times ...time.Time) time.Time { return slices.MaxFunc(times, time.Time.Compare) }
