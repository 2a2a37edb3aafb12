package stories

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/test/lab"
)

const redisImage = "flocker-test/redis:7"

// mounted says whether a node has a volume's dataset mounted.
func mounted(n *lab.Node, v api.Volume) (bool, error) {
	out, err := n.Try("grep -c '^" + copyOf(v) + " ' /proc/mounts || true")
	return strings.TrimSpace(out) != "0", err
}

// waitMounted waits until a dataset is mounted, or not, and status says the same.
func (c cluster) waitMounted(n *lab.Node, name string, want bool) {
	c.Helper()
	c.Until(fmt.Sprintf("volume %s on %s to be mounted: %v", name, n, want), later, func() error {
		v, err := n.Volume(name)
		if err != nil {
			return err
		}
		got, err := mounted(n, v)
		if err != nil {
			return err
		}
		if got != want || v.Mounted != want || (len(v.Holders) > 0) != want {
			return fmt.Errorf("mounted: %v, by status %v, held by %v", got, v.Mounted, v.Holders)
		}
		return nil
	})
}

// Whatever Docker does with containers, a volume is mounted exactly while one uses
// it: docker cp (which mounts and unmounts with the ID of a running container), kill,
// restart of containers and of Docker, and containers that die while flockd is down.
func TestMountBookkeeping(t *testing.T) {
	c := start(t)
	n := c.n1
	mount := []string{"--mount", "type=volume,volume-driver=flocker,src=v,dst=/d"}
	run := func(name string, more ...string) {
		t.Helper()
		n.Docker(append(append(append([]string{"run", "-d", "--name", name}, more...), mount...), busyboxImage, "sleep", "1000000")...)
	}
	if _, err := createOn(n, "v", "replicas=1"); err != nil {
		t.Fatal(err)
	}
	c.waitMounted(n, "v", false)

	c.Step("docker cp to a running container leaves it mounted", func() {
		run("one")
		c.waitMounted(n, "v", true)
		n.Sh("echo copied >/tmp/copied && docker cp /tmp/copied one:/d/copied && docker cp one:/d/copied /tmp/back && cmp /tmp/copied /tmp/back")
		n.Docker("exec", "one", "sh", "-c", "cat /d/copied && echo more >/d/more")
		c.waitMounted(n, "v", true)
	})
	c.Step("two containers: mounted until the second stops", func() {
		run("two")
		n.Docker("kill", "one")
		n.Docker("exec", "two", "sh", "-c", "echo still >/d/still")
		c.waitMounted(n, "v", true)
		n.Docker("kill", "two")
		c.waitMounted(n, "v", false)
	})
	c.Step("docker cp to a stopped container", func() {
		n.Sh("docker cp one:/d/still - | tar -xO | grep still")
		c.waitMounted(n, "v", false)
	})
	c.Step("restart of a container, and start again", func() {
		n.Docker("start", "one")
		n.Docker("restart", "-t", "1", "one")
		n.Docker("exec", "one", "cat", "/d/more")
		c.waitMounted(n, "v", true)
		n.Docker("rm", "-f", "one", "two")
		c.waitMounted(n, "v", false)
	})
	c.Step("flockd is down while a container stops: the lost unmount is found", func() {
		run("one")
		n.Sh("systemctl stop flockd && docker kill one && systemctl start flockd")
		c.waitMounted(n, "v", false)
		n.Docker("rm", "-f", "one")
	})
	c.Step("Docker is killed under a container that does not restart", func() {
		run("one")
		n.Sh("systemctl kill -s KILL docker; systemctl restart docker")
		c.Until("docker to answer", later, func() error { _, err := n.TryDocker("ps"); return err })
		n.Docker("rm", "-f", "one")
		c.waitMounted(n, "v", false)
	})
	c.Step("both are restarted under a container with restart=always", func() {
		run("one", "--restart", "always")
		n.Sh("systemctl restart flockd docker")
		c.Until("the container to run again with its files", later, func() error {
			_, err := n.TryDocker("exec", "one", "cat", "/d/more")
			return err
		})
		c.waitMounted(n, "v", true)
		n.Docker("rm", "-f", "one")
		c.waitMounted(n, "v", false)
	})
	c.Step("a volume that nobody named comes and goes with its container", func() {
		n.Docker("run", "--rm", "--volume-driver", "flocker", "-v", "/d", busyboxImage, "sh", "-c", "echo x >/d/x")
		c.waitList("v")
	})
}

// flockd is killed at random moments on the primary and on the leader while a
// counter is raised; every raise that was acknowledged counts.
func TestFlockdKilledAtRandom(t *testing.T) {
	c := start(t)
	c.n2.Docker("volume", "create", "-d", "flocker", "-o", "size=500M", "-o", "replicas=2", "counter")
	c.n2.Docker("run", "-d", "--name", "redis", "--mount", "type=volume,volume-driver=flocker,src=counter,dst=/data", redisImage, "redis-server", "--appendfsync", "always")
	var raised counter
	c.Until("redis to answer", later, func() error { _, err := c.n2.TryDocker("exec", "redis", "redis-cli", "ping"); return err })
	run := c.n2.Follow(`ip=$(docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' redis)
yes 'incr n' | while read -r line; do echo "$line"; sleep 0.01; done | redis-cli -h "$ip"`, raised.line)

	random := rand.New(rand.NewPCG(1, 2))
	v, _ := c.waitVolume(c.n2, "counter", "ok", healthy)
	for round := range 8 {
		victim := c.n2
		if round%2 == 1 {
			victim = c.Nodes()[random.IntN(3)]
		}
		raised.wait(c, int64(10+random.IntN(60)))
		victim.Sh("systemctl kill -s KILL flockd")
		c.Logf("    flockd on %s killed at %d", victim, raised.last())
	}
	raised.wait(c, 50)
	run.Stop()
	c.waitVolume(c.n2, "counter", "ok", healthy)

	want := raised.last()
	got, err := strconv.ParseInt(c.n2.Docker("exec", "redis", "redis-cli", "get", "n"), 10, 64)
	if err != nil || got < want || got > want+100 {
		t.Errorf("the counter is %d (%v), %d was acknowledged", got, err, want)
	}
	c.n2.Docker("rm", "-f", "redis")
	c.waitMounted(c.n2, "counter", false)
	c.checkEqual(v)
	c.n3.Docker("run", "-d", "--name", "redis", "--mount", "type=volume,volume-driver=flocker,src=counter,dst=/data", redisImage)
	c.Until("the counter on n3", later, func() error {
		out, err := c.n3.TryDocker("exec", "redis", "redis-cli", "get", "n")
		if err != nil {
			return err
		}
		return lab.Want("counter", out, strconv.FormatInt(got, 10))
	})
	c.n3.Docker("rm", "-f", "redis")
}

// compose is how Compose is called on a node; without it the story is skipped.
func (c cluster) compose(n *lab.Node) string {
	c.Helper()
	compose := n.Sh("command -v docker-compose || { docker compose version >/dev/null 2>&1 && echo docker compose; } || true")
	if compose == "" {
		c.Skip("no compose on the node")
	}
	return compose
}

// The Compose file of the documents does what it says: Redis answers on every node's port, before and after it has
// moved, and Compose finds its container where it was made.
func TestComposeExample(t *testing.T) {
	c := start(t)
	compose := c.compose(c.n1)
	c.n1.Put("/root/story/docker-compose.yml", c.example("compose.yml"), 0o644)
	c.Step("docker compose up: Redis answers on every node", func() {
		c.n1.Sh("cd /root/story && " + compose + " up -d")
		c.waitVolume(c.n1, "counter", "ok with its replicas", healthy)
		for _, n := range c.Nodes() {
			c.waitRedis(n, "6379")
		}
		c.waitFollows(c.n1, "redis")
		c.n2.Sh("redis-cli -h " + c.n2.Addr() + " set word here")
	})
	for _, to := range []*lab.Node{c.n2, c.n1} {
		c.Step("it moves to "+to.Name+", and answers on every node", func() {
			done, err := lab.Ask[api.Migration](c.n3, "migrate", "--max-pause", "1m", "counter", to.Name)
			if err != nil || done.State != api.MigrationDone {
				t.Fatalf("it ended with %+v, %v", done, err)
			}
			c.checkWord("here")
			c.waitVolume(to, "counter", "ok with its replicas", healthy)
			c.waitFollows(to, "redis")
		})
	}
	c.Step("docker compose down, where it is again", func() {
		c.n1.Sh("cd /root/story && " + compose + " down")
		c.waitMounted(c.n1, "counter", false)
	})
}

// example is a file of the documents, with the lab's own Redis in it.
func (c cluster) example(name string) string {
	c.Helper()
	text, err := os.ReadFile(filepath.Join(c.Root(), "docs/examples", name))
	if err != nil {
		c.Fatal(err)
	}
	const image = "image: redis:7\n"
	if !strings.Contains(string(text), image) {
		c.Fatalf("docs/examples/%s has another image; the lab has its own Redis for redis:7", name)
	}
	return strings.Replace(string(text), image, "image: "+redisImage+"\n", 1)
}

// checkWord asks Redis on every node's port for what was written.
func (c cluster) checkWord(want string) {
	c.Helper()
	for _, n := range c.Nodes() {
		if err := lab.Want("the word, read on "+n.Name, strings.TrimSpace(n.Sh("redis-cli -h "+n.Addr()+" get word")), want); err != nil {
			c.Error(err)
		}
	}
}

// A Compose file with a flocker volume works as it stands.
func TestCompose(t *testing.T) {
	c := start(t)
	n := c.n1
	compose := c.compose(n)
	n.Put("/root/story/docker-compose.yml", `version: "3"
services:
  web:
    image: flocker-test/busybox:1
    command: ["sh", "-c", "echo from compose >/d/file; sleep 1000000"]
    volumes: ["content:/d"]
    stop_grace_period: 1s
volumes:
  content:
    name: content
    driver: flocker
    driver_opts: {size: 100M, replicas: "2"}
`, 0o644)
	n.Sh("cd /root/story && " + compose + " up -d")
	v, _ := c.waitVolume(c.n2, "content", "ok", healthy)
	if v.Spec.Size != 100<<20 || v.Spec.Replicas != 2 {
		t.Errorf("options: %+v", v.Spec)
	}
	c.waitMounted(n, "content", true)
	n.Sh("cd /root/story && " + compose + " restart && " + compose + " down")
	c.waitMounted(n, "content", false)
	c.n3.Sh("docker run --rm --mount type=volume,volume-driver=flocker,src=content,dst=/d " + busyboxImage + " grep compose /d/file")
	// down -v removes it, into the trash.
	n.Sh("cd /root/story && " + compose + " up -d && " + compose + " down -v")
	c.waitList()
	c.n2.Flockctl("volume", "undelete", "content")
	c.n2.Sh("docker run --rm --mount type=volume,volume-driver=flocker,src=content,dst=/d " + busyboxImage + " grep compose /d/file")
}
