package stories

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/test/lab"
)

// Two containers use one volume and follow it: one writes, the other, with networks,
// aliases and much else of its own, serves what is written. Migrated, and after a power cut,
// they are the same by all that the engine says, and answer by the same names. What cannot
// follow is named before it is touched.
func TestContainersFollow(t *testing.T) {
	c := start(t)
	c.byHand()
	var s *scribe
	var made described
	c.Step("on n2 a scribe writes, and a web server in two networks serves it", func() {
		s = c.scribe(c.n2, "log", 2)
		c.n2.Docker("network", "create", "--label", "story=follow", "--subnet", "172.30.78.0/24", "backend")
		c.n2.Docker("network", "create", "--internal", "inner")
		c.n2.Docker("run", "-d", "--name", "web", "--restart", "unless-stopped", "--label", "flocker.enable=true", "--label", "story=with, 'quotes'",
			"--env", "TOLD=with spaces, \"quotes\" and $dollars", "--user", "1000:1000", "--workdir", "/tmp", "--read-only", "--tmpfs", "/tmp:size=1m",
			"--memory", "64m", "--pids-limit", "50", "--publish", "8081:8080", "--publish", "127.0.0.1:8082:8080", "--add-host", "ledger:10.1.2.3", "--dns-search", "example.org",
			"--health-cmd", "wget -q -O /dev/null http://127.0.0.1:8080/lines", "--health-interval", "10s", "--health-timeout", "60s", "--health-retries", "7",
			"--network", "backend", "--network-alias", "shop", "--network-alias", "pages",
			"--mount", "type=volume,volume-driver=flocker,src=log,dst=/site,readonly", busyboxImage, "httpd", "-f", "-p", "8080", "-h", "/site")
		c.n2.Docker("network", "connect", "--alias", "within", "inner", "web")
		made = c.describe(c.n2, "web")
		c.serves(c.n2, made)
		c.waitFollows(c.n2, "web")
	})

	// The first word of what each says when it is to go, and what it uses.
	cannot := []struct{ container, why, option, value string }{
		{"bound", "/etc/hostname", "--volume", "/etc/hostname:/name:ro"},
		{"device", "/dev/zero", "--device", "/dev/zero:/dev/nought"},
		{"plain", "flocker.enable=true", "--label", "flocker.enable=false"},
	}
	before := map[string]string{}
	untouched := func() {
		t.Helper()
		for _, x := range cannot {
			if now := c.n2.Docker("inspect", "-f", "{{.Id}} {{.State.Running}} {{.State.StartedAt}}", x.container); now != before[x.container] {
				t.Errorf("%s was touched: %s, before %s", x.container, now, before[x.container])
			}
			if v, err := c.n1.Volume(x.container); err != nil || v.Primary.Name != "n2" || v.Phase != "active" {
				t.Errorf("its volume is %s on %s, %v", v.Phase, v.Primary, err)
			}
		}
	}
	c.Step("what cannot follow is named before anything is touched", func() {
		for _, x := range cannot {
			if _, err := createOn(c.n2, x.container, "size=100M", "replicas=1"); err != nil {
				t.Fatal(err)
			}
			c.n2.Docker("run", "-d", "--name", x.container, "--label", "flocker.enable=true", x.option, x.value,
				"--mount", "type=volume,volume-driver=flocker,src="+x.container+",dst=/d", busyboxImage, "sh", "-c", "trap exit TERM; while :; do sleep 1; done")
			before[x.container] = c.n2.Docker("inspect", "-f", "{{.Id}} {{.State.Running}} {{.State.StartedAt}}", x.container)
		}
		for _, x := range cannot {
			c.waitVolume(c.n2, x.container, "in use, with its replica", func(v api.Volume) error {
				if len(v.Holders) != 1 || v.Holders[0].Name != x.container {
					return fmt.Errorf("in use by %+v", v.Holders)
				}
				return healthy(v)
			})
			for _, dry := range [][]string{{"--dry-run"}, nil} {
				c.Until("the refusal to migrate "+x.container, soon, func() error {
					out, err := c.n1.TryFlockctl(append([]string{"migrate", x.container, "n1"}, dry...)...)
					if err == nil {
						return fmt.Errorf("migrate %s says %s", dry, out)
					}
					if !strings.Contains(err.Error(), x.why) || !strings.Contains(err.Error(), "container "+x.container) {
						return fmt.Errorf("it does not name %s and %s: %w", x.container, x.why, err)
					}
					c.Logf("    %s", lastLine(err.Error()))
					return nil
				})
			}
		}
		untouched()
	})

	c.Step("migrated to n1, both are what they were", func() {
		s.learn(c.n2)
		begin := time.Now()
		done, err := lab.Ask[api.Migration](c.n2, "migrate", "--force", "log", "n1")
		if err != nil {
			t.Fatal(err)
		}
		c.Logf("    %.1fs in all, stopped for at most %.1fs", time.Since(begin).Seconds(), done.StoppedSeconds)
		to, v := c.waitPrimary("log", c.n1)
		s.movedTo(to, v)
		c.serves(to, made)
		s.check()
		untouched()
	})

	c.Step("a drain names what holds it, and leaves it alone", func() {
		out, err := c.n1.Try("flockctl --timeout 20s node drain n2 2>&1")
		if err == nil {
			t.Errorf("the drain says that it is done: %s", out)
		}
		for _, x := range cannot {
			if !strings.Contains(out, "container "+x.container) {
				t.Errorf("the drain does not name %s: %s", x.container, out)
			}
		}
		c.n1.Flockctl("node", "undrain", "n2")
		untouched()
	})

	c.Step("n1 loses power, and an operator says so: both are what they were, elsewhere", func() {
		c.waitVolume(c.n2, "log", "ok", healthy)
		c.waitFollows(c.n2, "web")
		c.waitFollows(c.n2, "log")
		s.about()
		cut := time.Now()
		c.Cut(c.n1)
		c.waitHealth(c.n2, "n1", api.NodeDead)
		c.Until("the new leader to take n1 for lost", later, func() error { // it was the leader itself
			_, err := c.n2.TryFlockctl("failover", "log", "--confirm-fenced", "n1")
			return err
		})
		s.node, s.v = s.waitPrimary("log", c.n2, c.n3)
		c.Logf("    %s is the primary after %.1fs", s.node, time.Since(cut).Seconds())
		s.movedTo(s.node, s.v)
		c.Logf("    it is written after %.1fs", time.Since(cut).Seconds())
		c.serves(s.node, made)
		c.Logf("    and served by all its names and ports after %.1fs", time.Since(cut).Seconds())
	})

	c.Step("n1 comes back, and runs neither", func() {
		c.Boot(c.n1)
		c.waitVolume(s.node, "log", "ok again", healthy)
		for _, name := range []string{"web", "log"} {
			c.Until("the old container "+name+" to be retired", later, func() error {
				out, err := c.n1.TryDocker("inspect", "-f", "{{.State.Running}} {{.HostConfig.RestartPolicy.Name}}", name)
				if err != nil {
					return err
				}
				return lab.Want("running, and its restart policy", out, "false no")
			})
		}
		s.check()
		s.node.Docker("rm", "-f", "web", s.name)
		c.n2.Docker("rm", "-f", "bound", "device", "plain")
	})
}

// serves waits until the web server of a node answers by all its names and ports with what
// is on the volume there, and checks that it is the container that was made.
func (c cluster) serves(n *lab.Node, made described) {
	c.Helper()
	c.Until("the web server to be healthy on "+n.Name, later, func() error {
		out, err := n.TryDocker("inspect", "-f", "{{.State.Running}} {{.State.Health.Status}}", "web")
		if err != nil {
			return err
		}
		return lab.Want("running, and its health", out, "true healthy")
	})
	now := c.describe(n, "web")
	for _, part := range made.differences(now) {
		c.Errorf("docker inspect on %s: %s", n, part)
	}
	if got := n.Docker("exec", "web", "sh", "-c", "id -u; pwd; echo $TOLD; grep ledger /etc/hosts | tr '\\t' ' '"); got != "1000\n/tmp\nwith spaces, \"quotes\" and $dollars\n10.1.2.3 ledger" {
		c.Errorf("inside it says %q", got)
	}
	first := strings.TrimSpace(n.Sh("head -n1 $(docker volume inspect -f '{{.Mountpoint}}' log)/lines"))
	for network, names := range map[string][]string{"backend": {"shop", "pages", "web"}, "inner": {"within", "web"}} {
		c.answers(n, strings.TrimSpace(strings.Repeat(first+"\n", len(names))), "docker run --rm --network "+network+" "+busyboxImage+" sh -c "+lab.Quote(
			"for name in "+strings.Join(names, " ")+"; do at=$(nslookup $name 127.0.0.11 | awk '/^Name:/ { named = 1 } named && /^Address/ { print $NF; exit }'); "+
				"wget -q -O - http://$at:8080/lines | head -n1; done"))
	}
	for _, at := range []string{n.Addr() + ":8081", "127.0.0.1:8082"} {
		c.answers(n, first, "curl -sf http://"+at+"/lines | head -n1")
	}
	c.Logf("    %d settings are as they were; it answers on %s by 5 names and 2 ports", len(now), n)
}

// answers checks what a command in a node prints.
func (c cluster) answers(n *lab.Node, want, command string) {
	c.Helper()
	if out, err := n.Try(command); err != nil || strings.TrimSpace(out) != want {
		c.Errorf("%s on %s prints %q, %v; want %q", command, n, out, err, want)
	}
}
