package stories

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/test/lab"
)

// On each node a container reaches Redis as db, by the one line that its user gave it, before
// and after a migration there and back, and is the same container all the time. What is in the
// way of it is told: a container without that line, a port that another container publishes
// on the new node, a port that somebody else listens on.
func TestLinks(t *testing.T) {
	c := start(t)
	c.byHand()
	l := &live{cluster: c, volume: "cache", container: "redis", port: "6379", node: c.n1}
	// redis-cli's image says nowhere that a name may be in a file; other images do.
	const client = `echo 'hosts: files dns' >/etc/nsswitch.conf
n=0
while [ ! -e /stop ]; do
	out=$(redis-cli -h db incr total 2>&1)
	case $out in ''|*[!0-9]*) echo "error: $out"; exit 1 ;; esac
	n=$((n+1)); echo $n
	sleep 1
done`
	answered := func(n *lab.Node) (int64, error) {
		out, err := n.Try("docker logs --tail 1 client 2>&1")
		if err != nil {
			return 0, err
		}
		if strings.HasPrefix(out, "error:") {
			t.Fatalf("the client on %s: %s", n, out)
		}
		if out = strings.TrimSpace(out); out == "" {
			return 0, nil
		}
		return strconv.ParseInt(out, 10, 64)
	}
	more := func() {
		t.Helper()
		for _, n := range c.Nodes() {
			var before int64 = -1
			c.Until("more answers for the client on "+n.Name, later, func() error {
				got, err := answered(n)
				if before < 0 && err == nil {
					before = got
				}
				if err != nil || got < before+3 {
					return fmt.Errorf("%d, %v", got, err)
				}
				return nil
			})
		}
	}
	made := func(n *lab.Node) string {
		return n.Docker("inspect", "-f", "{{.Id}} {{.State.StartedAt}} {{.HostConfig.ExtraHosts}}", "client")
	}
	published := func(n *lab.Node) string {
		return strings.TrimSpace(n.Docker("inspect", "-f", "{{range $port, $_ := .HostConfig.PortBindings}}{{$port}} {{end}}{{.HostConfig.ExtraHosts}}", "redis"))
	}
	const all, less = "7001/tcp 7002/tcp [self:host-gateway]", "7002/tcp [self:host-gateway]"
	was := map[string]string{}

	c.Step("Redis on n1 with a route, and on each node a client that calls its node db", func() {
		c.n1.Docker("volume", "create", "-d", "flocker", "-o", "size=500M", "-o", "replicas=2", "-o", "ports=6379:6379/redis", l.volume)
		c.n1.Docker("run", "-d", "--name", l.container, "--label", "flocker.enable=true", "--add-host", "self:host-gateway", "--publish", "7001:7001", "--publish", "7002:7002",
			"--mount", "type=volume,volume-driver=flocker,src="+l.volume+",dst=/data", redisImage)
		l.serve(func(n *lab.Node) error {
			out, err := n.Try("redis-cli -h " + n.Addr() + " -p " + l.port + " ping")
			if err != nil {
				return err
			}
			return lab.Want("ping", out, "PONG")
		})
		c.n2.Docker("network", "create", "own")
		for _, n := range c.Nodes() {
			network := map[string]string{"n2": "own", "n3": "host"}[n.Name]
			n.Docker("run", "-d", "--name", "client", "--network", cmp.Or(network, "bridge"), "--label", "flocker.links=db:6379", "--add-host", "db:host-gateway", redisImage, "sh", "-c", client)
			was[n.Name] = made(n)
		}
		more()
	})

	c.Step("what is in the way is told: a link that leads nowhere, and ports that somebody has", func() {
		c.n3.Docker("run", "-d", "--name", "forgot", "--label", "flocker.links=db:6379", busyboxImage, "sleep", "1000000")
		c.n2.Docker("run", "-d", "--name", "other", "--publish", "7001:80", busyboxImage, "sleep", "1000000")
		c.n3.Docker("run", "-d", "--name", "squatter", "--network", "host", busyboxImage, "httpd", "-f", "-p", "6400")
		c.Until("it to listen", soon, func() error { _, err := c.n3.Try("bash -c '</dev/tcp/127.0.0.1/6400'"); return err })
		c.n1.Flockctl("route", "add", l.volume, "6400:6379/redis")
		c.Until("status to name them", soon, func() error {
			s, err := c.n1.Status()
			if err != nil {
				return err
			}
			text := strings.Join(s.Problems, "\n")
			for _, want := range []string{"container forgot does not reach db:6379 through its node: it was made without --add-host db:host-gateway", "nobody is served on port 6400 of this node"} {
				if !strings.Contains(text, want) {
					return fmt.Errorf("%q is not in %s", want, text)
				}
			}
			return nil
		})
		c.Until("the route to be listed with its clients", soon, func() error {
			routes, err := lab.Ask[api.Routes](c.n2, "route", "list")
			if err != nil {
				return err
			}
			var linked []string
			for _, r := range routes.Routes {
				for _, x := range r.Linked {
					linked = append(linked, fmt.Sprintf("%s on %s: %v", x.Container, x.Node, x.Problem == ""))
				}
			}
			slices.Sort(linked)
			return lab.Want("linked", strings.Join(linked, ", "), "client on n1: true, client on n2: true, client on n3: true, forgot on n3: false")
		})
		if out, err := c.n1.Try("redis-cli -h " + c.n1.Addr() + " -p 6400 ping"); err != nil || strings.TrimSpace(out) != "PONG" {
			t.Errorf("n1 does not serve the port that is taken on n3: %s, %v", out, err)
		}
		c.n3.Docker("rm", "-f", "squatter")
		c.Until("n3 to serve the port, now that it is free", soon, func() error {
			out, err := c.n3.Try("redis-cli -h " + c.n3.Addr() + " -p 6400 ping")
			if err != nil {
				return err
			}
			return lab.Want("ping", strings.TrimSpace(out), "PONG")
		})
		c.Until("a dry run to name the port that is taken on n2", soon, func() error {
			out, err := c.n1.TryFlockctl("migrate", "--dry-run", l.volume, "n2")
			if err != nil || !strings.Contains(out, "container redis: it will not publish every port on n2: container other publishes port 7001/tcp there already") {
				return fmt.Errorf("it says %s, %v", out, err)
			}
			return nil
		})
	})

	moves := func(to *lab.Node, ports string) {
		t.Helper()
		done, err := lab.Ask[api.Migration](to, "migrate", "--max-pause", "1m", l.volume, to.Name)
		if err != nil {
			t.Fatal(err)
		}
		l.node = to
		more()
		c.Logf("    clients waited for %.1f s", done.PausedSeconds)
		for _, n := range c.Nodes() {
			if now := made(n); now != was[n.Name] {
				t.Errorf("the client on %s is %s, and was %s", n, now, was[n.Name])
			}
		}
		if err := lab.Want("what Redis publishes, and its host", published(to), ports); err != nil {
			t.Error(err)
		}
	}
	c.Step("Redis moves to n2: every client goes on as it is, and the port stays with whom it is", func() {
		moves(c.n2, less)
		told := c.event(c.n1, "volume.unpublished", l.volume)
		c.Logf("    %s", told.Message)
		if !strings.Contains(told.Message, "container other publishes port 7001/tcp") {
			t.Errorf("the event says %s", told.Message)
		}
		if got := strings.TrimSpace(c.n2.Docker("port", "other", "80/tcp")); !strings.Contains(got, ":7001") {
			t.Errorf("the other container publishes %q", got)
		}
	})
	c.Step("and back, where the port is free", func() {
		l.waitVolume(c.n2, l.volume, "ok with its replicas", healthy)
		l.waitFollows(c.n2, l.container)
		moves(c.n1, all)
	})
	c.Step("the counter is what was answered", func() {
		var sum int64
		for _, n := range c.Nodes() {
			n.Docker("exec", "client", "touch", "/stop")
			c.Until("the client on "+n.Name+" to end", soon, func() error {
				return lab.Want("it runs", strings.TrimSpace(n.Docker("inspect", "-f", "{{.State.Running}}", "client")), "false")
			})
			got, err := answered(n)
			if err != nil {
				t.Fatal(err)
			}
			sum += got
		}
		if err := lab.Want("the counter", strings.TrimSpace(c.n3.Sh("redis-cli -h "+c.n3.Addr()+" -p "+l.port+" get total")), strconv.FormatInt(sum, 10)); err != nil {
			t.Error(err)
		}
		c.Logf("    %d increments were answered and done", sum)
		for _, n := range c.Nodes() {
			n.Sh("docker rm -f client redis other forgot 2>/dev/null || true")
		}
	})
}

// What TestCoreSuites has no time for: first copies that are bad, and streams of all kinds that
// are cut, on real pools, after any power of two bytes, either way, alone and with flockd killed
// on either side, for as many powers as there is time for.
func TestLinksCut(t *testing.T) {
	onNode(t, 1, "./replicate", "FLOCKER_LINK_POOLS=/var/tmp/links", "TestRealCuts", "", 40*time.Minute)
}
