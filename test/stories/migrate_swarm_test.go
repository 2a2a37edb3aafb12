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
			var plan api.Migration
			c.Until("the service to go along", soon, func() (err error) {
				if plan, err = lab.Ask[api.Migration](c.n1, "migrate", "v", to.Name, "--dry-run"); err == nil && fmt.Sprint(plan.Services) != "[tally]" {
					err = fmt.Errorf("what goes along: %+v", plan)
				}
				return err
			})
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
			if out := from.Docker("ps", "-q"); out != "" {
				t.Errorf("on %s runs %s", from, out)
			}
			if is, err := mounted(from, v); err != nil || is {
				t.Errorf("%s has the volume mounted: %v, %v", from, is, err)
			}
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
