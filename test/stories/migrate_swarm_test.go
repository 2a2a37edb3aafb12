package stories

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/test/lab"
)

// A Swarm service that is bound to its volume by a constraint goes where the volume is
// migrated to, and back: Swarm stops and starts its task, by a label that a manager's flockd
// moves. Two tasks that wrote at a time would repeat numbers.
func TestMigrateSwarm(t *testing.T) {
	c := start(t)
	c.Step("a swarm of three, whose n1 manages and runs no tasks", func() { c.swarm(t) })

	var v api.Volume
	told := &counter{} // by the task that runs
	var run *lab.Follower
	c.Step("a service that is bound to its volume counts on n2, where that is", func() {
		if _, err := createOn(c.n2, "v", "size=100M", "replicas=2"); err != nil {
			t.Fatal(err)
		}
		c.n1.Docker("service", "create", "--detach", "--name", "tally", "--network", "host", "--constraint", volume.SwarmConstraint("v"),
			"--mount", "type=volume,volume-driver=flocker,src=v,dst=/d", "--no-resolve-image", busyboxImage, "sh", "-c", "trap 'exit 0' TERM\n"+counting)
		run = c.followTask(c.n2, told)
		told.wait(c, 10)
		v, _ = c.waitVolume(c.n2, "v", "ok with two replicas", healthy)
		c.waitLabel("v", "n2")
	})

	from := c.n2
	for _, to := range []*lab.Node{c.n3, c.n2} {
		c.Step("it is migrated from "+from.Name+" to "+to.Name, func() {
			told.wait(c, told.last()+10)
			c.waitGoesAlong("v", "tally", to)
			began := time.Now()
			done, err := lab.Ask[api.Migration](c.n1, "migrate", "--force", "v", to.Name)
			if err != nil || done.State != api.MigrationDone {
				t.Fatalf("it ended with %+v, %v", done, err)
			}
			took := time.Since(began)
			run.Wait()
			fresh := &counter{}
			run = c.followTask(to, fresh)
			fresh.wait(c, 1)
			c.Logf("    %.1fs in all, of which the service did not run for at most %.1fs; it said %d, and goes on with %d", took.Seconds(), done.StoppedSeconds, told.last(), fresh.first())
			if first := fresh.first(); first <= told.last() || first > told.last()+onTheWay {
				t.Errorf("it goes on with %d, and had said %d", first, told.last())
			}
			c.checkLeft(v, from)
			c.waitLabel("v", to.Name)
			fresh.wait(c, fresh.first()+10)
			told, from = fresh, to
		})
	}

	c.Step("without the constraint it stays, and the refusal says which one to add", func() {
		c.n1.Docker("service", "update", "--detach", "--constraint-rm", volume.SwarmConstraint("v"), "tally")
		want := "--constraint-add " + volume.SwarmConstraint("v") + " tally"
		c.Until("the refusal: "+want, later, func() error {
			out, err := c.n1.TryFlockctl("migrate", "v", "n3", "--dry-run")
			if err == nil || !strings.Contains(err.Error(), want) {
				return fmt.Errorf("it says %q, %v", out, err)
			}
			return nil
		})
		c.waitLabel("v", "")
	})

	c.Step("all that was counted is there, once, on all nodes", func() {
		c.n1.Docker("service", "rm", "tally")
		run.Wait()
		c.waitMounted(c.n2, "v", false)
		c.waitVolume(c.n2, "v", "ok", healthy)
		c.checkEqual(v)
		out := c.n2.Sh(onVolume("v", `awk '$0 != NR { bad = 1 } END { print NR, bad + 0 }' /d/tally`))
		var count, bad int64
		if _, err := fmt.Sscan(out, &count, &bad); err != nil || bad != 0 || count < told.last() {
			t.Errorf("lines and gaps: %q, %v; %d was said", out, err, told.last())
		}
		c.Logf("    it counts to %d; %d was said", count, told.last())
	})
}

// The stack file of the documents does what it says: Swarm runs Redis where its volume is, and port 6379 of every node leads to it, before
// and after it has moved. The volume outlives the stack.
func TestStackExample(t *testing.T) {
	c := start(t)
	c.Step("a swarm of three, whose n1 manages and runs no tasks", func() { c.swarm(t) })
	c.n1.Put("/root/story/stack.yml", c.example("stack.yml"), 0o644)

	var v api.Volume
	from, to := c.n2, c.n3
	c.Step("docker stack deploy: Redis answers on every node", func() {
		c.n1.Docker("stack", "deploy", "--resolve-image", "never", "-c", "/root/story/stack.yml", "counter")
		// Its first task makes the volume, on the node that Swarm was told.
		v, _ = c.waitVolume(c.n1, "counter", "ok with its replicas", healthy)
		if v.Primary.Name == to.Name {
			from, to = to, from
		}
		if v.Primary.Name != from.Name {
			t.Fatalf("its primary is %s, where Swarm gives no tasks to", v.Primary)
		}
		c.waitLabel("counter", from.Name)
		for _, n := range c.Nodes() {
			c.waitRedis(n, "6379")
		}
		c.n1.Sh("redis-cli -h " + c.n1.Addr() + " set word here")
		c.checkWord("here")
	})

	c.Step("it moves to another node, with what was written, and answers on every node", func() {
		c.waitGoesAlong("counter", "counter_redis", to)
		done, err := lab.Ask[api.Migration](c.n1, "migrate", "--force", "counter", to.Name)
		if err != nil || done.State != api.MigrationDone {
			t.Fatalf("it ended with %+v, %v", done, err)
		}
		for _, n := range c.Nodes() {
			c.waitRedis(n, "6379")
		}
		c.checkWord("here")
		c.checkLeft(v, from)
		c.waitLabel("counter", to.Name)
		c.waitVolume(to, "counter", "ok with its replicas", healthy)
	})

	c.Step("docker stack rm: the volume stays, alike on all nodes", func() {
		c.n1.Docker("stack", "rm", "counter")
		c.waitMounted(to, "counter", false)
		c.waitLabel("counter", "")
		c.waitVolume(to, "counter", "ok", healthy)
		c.checkEqual(v)
	})
}

// waitGoesAlong waits until a migration of the volume would take its service along.
func (c cluster) waitGoesAlong(name, service string, to *lab.Node) {
	c.Helper()
	c.Until("the service to go along", soon, func() error {
		plan, err := lab.Ask[api.Migration](c.n1, "migrate", name, to.Name, "--dry-run")
		if err == nil && fmt.Sprint(plan.Services) != "["+service+"]" {
			err = fmt.Errorf("what goes along: %+v", plan)
		}
		return err
	})
}

// checkLeft checks that a node from which a service has gone has nothing of it.
func (c cluster) checkLeft(v api.Volume, n *lab.Node) {
	c.Helper()
	if out := n.Docker("ps", "-q"); out != "" {
		c.Errorf("on %s runs %s", n, out)
	}
	if is, err := mounted(n, v); err != nil || is {
		c.Errorf("%s has the volume mounted: %v, %v", n, is, err)
	}
}

// waitLabel waits until exactly one node of the Swarm has the label of a volume; "": none.
func (c cluster) waitLabel(name, want string) {
	c.Helper()
	c.Until(fmt.Sprintf("the label of %s to be on %q", name, want), soon, func() error {
		out, err := c.n1.TryDocker("node", "ls", "-q", "--filter", "node.label="+volume.SwarmPrefix+name+"=true")
		if err != nil {
			return err
		}
		var on []string
		for _, id := range strings.Fields(out) {
			on = append(on, strings.TrimSpace(c.n1.Docker("node", "inspect", "-f", "{{.Description.Hostname}}", id)))
		}
		return lab.Want("nodes with it", strings.Join(on, ","), want)
	})
}
