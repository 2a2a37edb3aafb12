package stories

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/test/lab"
)

// The node of a Swarm service's task loses power: Swarm makes the task again on another
// node, whose mount waits until the volume may be used there. flocker itself makes no
// container of it.
func TestFailoverSwarm(t *testing.T) {
	c := start(t)
	c.Step("failover becomes automatic by itself", func() { c.waitAutomatic() })
	c.Step("a swarm of three, whose n1 manages and runs no tasks", func() { c.swarm(t) })

	var v api.Volume
	var told counter
	var run *lab.Follower
	c.Step("a service counts on n2", func() {
		if _, err := createOn(c.n2, "v", "size=100M", "replicas=2"); err != nil {
			t.Fatal(err)
		}
		c.n1.Docker("node", "update", "--availability", "pause", "n3")
		c.n1.Docker("service", "create", "--detach", "--name", "tally", "--network", "host", "--container-label", "flocker.enable=true", "--restart-delay", "5s",
			"--mount", "type=volume,volume-driver=flocker,src=v,dst=/d", "--no-resolve-image", busyboxImage, "sh", "-c", counting)
		run = c.followTask(c.n2, &told)
		told.wait(c, 10)
		c.n1.Docker("node", "update", "--availability", "active", "n3")
		v, _ = c.waitVolume(c.n2, "v", "ok with two replicas", healthy)
		told.wait(c, 10)
	})

	c.Step("n2 loses power: the service counts on n3", func() {
		cut := time.Now()
		c.Cut(c.n2)
		run.Wait()
		to, _ := c.waitPrimary("v", c.n1, c.n3)
		c.Logf("    %s is the primary after %.1fs", to, time.Since(cut).Seconds())
		var fresh counter
		run = c.followTask(c.n3, &fresh)
		fresh.wait(c, 1)
		c.Logf("    the service counts after %.1fs", time.Since(cut).Seconds())
		fresh.wait(c, 10)
		event := c.event(c.n3, "volume.failed-over", "v")
		begin := fresh.first()
		c.Logf("    it goes on with %d, %d was said before; it says: %s", begin, told.last(), event.Message)
		c.checkLoss(event, cut, begin-1, &told)
		tasks := c.n1.Docker("service", "ps", "tally", "--format", "{{.Node}} {{.CurrentState}} {{.Error}}")
		c.Logf("    tasks:\n%s", tasks)
		if all, err := lab.Ask[[]api.Container](c.n1, "container", "list"); err != nil || len(all) > 0 {
			t.Errorf("flocker has recorded a container of Swarm: %+v, %v", all, err)
		}
	})

	c.Step("n2 comes back: it runs no task with the volume, and all copies are equal", func() {
		c.Boot(c.n2)
		c.waitVolume(c.n3, "v", "ok again", func(v api.Volume) error {
			if v.Primary.Name != "n3" {
				return fmt.Errorf("the primary is %s", v.Primary.Name)
			}
			return healthy(v)
		})
		if out := c.n2.Docker("ps", "-q"); out != "" {
			t.Errorf("on n2 runs %s", out)
		}
		c.checkEqual(v)
		c.n1.Docker("service", "rm", "tally")
		run.Wait()
		c.waitMounted(c.n3, "v", false)
	})
}

// swarm makes one of all nodes, until the test's end: n1 manages it and runs no tasks.
func (c cluster) swarm(t *testing.T) {
	c.Helper()
	c.n1.Docker("swarm", "init", "--advertise-addr", c.n1.Addr(), "--availability", "drain")
	token := c.n1.Docker("swarm", "join-token", "-q", "worker")
	for _, n := range []*lab.Node{c.n2, c.n3} {
		n.Docker("swarm", "join", "--token", token, c.n1.Addr()+":2377")
	}
	t.Cleanup(func() {
		for _, n := range c.Nodes() {
			if _, err := n.TryDocker("swarm", "leave", "--force"); err != nil {
				t.Logf("%s: %v", n, err)
			}
		}
	})
}

// followTask reads what the task of a service says on a node, once it runs there.
func (c cluster) followTask(n *lab.Node, what *counter) *lab.Follower {
	c.Helper()
	var id string
	c.Until("a task on "+n.Name, later, func() error {
		out, err := n.TryDocker("ps", "-q", "--filter", "label=com.docker.swarm.service.name=tally")
		if id = strings.TrimSpace(out); err == nil && id == "" {
			tasks, _ := c.n1.TryDocker("service", "ps", "tally", "--no-trunc", "--format", "{{.Node}} {{.CurrentState}} {{.Error}}")
			err = fmt.Errorf("there is none; Swarm says: %s", strings.Join(slices.Collect(strings.Lines(tasks)), "; "))
		}
		return err
	})
	return n.Follow("docker logs -f "+id, what.line)
}
