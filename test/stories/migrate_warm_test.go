package stories

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/test/lab"
)

// Redis moves from node to node under clients, first as it is, and then with the label that
// has it started ahead of its volume: it is stopped for less long, and nothing is lost
// either way. What has waited is a container as any other: it is started again by its
// engine, it stops, and it moves on.
func TestMigrateWarm(t *testing.T) {
	l := &live{cluster: start(t), volume: "counter", container: "redis", port: "6379"}
	l.node = l.n1
	run := func(labels ...string) {
		args := append([]string{"run", "-d", "--name", l.container, "--restart", "unless-stopped", "--label", "flocker.enable=true"}, labels...)
		l.node.Docker(append(args, "--mount", "type=volume,volume-driver=flocker,src="+l.volume+",dst=/data", redisImage)...)
		l.serve(func(n *lab.Node) error {
			out, err := n.Try("redis-cli -h " + n.Addr() + " -p " + l.port + " ping")
			if err != nil {
				return err
			}
			return lab.Want("ping", out, "PONG")
		})
	}
	l.Step("Redis on n1, with a route", func() {
		l.askers()
		l.node.Docker("volume", "create", "-d", "flocker", "-o", "size=500M", "-o", "replicas=2", "-o", "ports=6379:6379/redis", l.volume)
		run()
	})
	counted := func() int64 {
		out := l.node.Sh("redis-cli -h " + l.node.Addr() + " -p " + l.port + " get n")
		if out = strings.TrimSpace(out); out == "" {
			return 0
		}
		n, err := strconv.ParseInt(out, 10, 64)
		if err != nil {
			l.Fatalf("the counter is %q", out)
		}
		return n
	}
	// tour moves it to the other nodes and back, and says for how long, at the least, its
	// clients waited and it was stopped.
	tour := func(what string, warm bool) (paused, stopped float64) {
		began := counted()
		l.clients = nil
		l.Step(what+": clients on every node count", func() {
			l.Do("exec-all", "rm -f "+stopFile)
			for _, n := range l.Nodes() {
				l.ask(n, "asker", fmt.Sprintf("exec asker redis %s:%s n", n.Addr(), l.port))
			}
			l.progress(100)
		})
		for _, to := range []*lab.Node{l.n2, l.n3, l.n1} {
			l.Step(fmt.Sprintf("%s: to %s", what, to), func() {
				done := l.move(to)
				if paused == 0 || done.PausedSeconds < paused {
					paused = done.PausedSeconds
				}
				if stopped == 0 || done.StoppedSeconds < stopped {
					stopped = done.StoppedSeconds
				}
				label := strings.TrimSpace(to.Docker("inspect", "-f", `{{index .Config.Labels "flocker.warm"}}`, l.container))
				if (label != "" && label != "<no value>") != warm {
					out := to.Docker("ps", "-a")
					l.Errorf("its label says %q, and it was to be started ahead: %v\n%s", label, warm, out)
				}
				for _, n := range l.Nodes() {
					if out := n.Docker("ps", "-aq", "--filter", "name=flocker-warm"); strings.TrimSpace(out) != "" {
						l.Errorf("on %s something waits still: %s", n, out)
					}
				}
				if got := strings.TrimSpace(to.Docker("inspect", "-f", "{{.HostConfig.RestartPolicy.Name}}", l.container)); got != "unless-stopped" {
					l.Errorf("its engine starts it again: %q", got)
				}
				l.waitVolume(to, l.volume, "ok with its replicas", healthy)
				l.waitFollows(to, l.container)
			})
		}
		l.Step(what+": the counter is what was answered", func() {
			var all int64
			for _, n := range l.stop() {
				all += n
			}
			if got := counted(); got != began+all {
				t.Errorf("the counter went from %d to %d, and %d increments were answered", began, got, all)
			}
		})
		return paused, stopped
	}
	coldPaused, coldStopped := tour("as it is", false)
	l.Step("the same with the label", func() {
		l.node.Docker("rm", "-f", l.container)
		run("--label", "flocker.prestart=true")
	})
	warmPaused, warmStopped := tour("started ahead", true)
	l.Logf("    clients waited for %.3f s and for %.3f s with it started ahead; it was stopped for %.3f s and %.3f s", coldPaused, warmPaused, coldStopped, warmStopped)
	if warmPaused >= coldPaused {
		t.Errorf("clients waited for %.3f s where it was started ahead, and for %.3f s where it was not", warmPaused, coldPaused)
	}
	l.Step("its engine starts it again, with its volume", func() {
		was := counted()
		l.node.Docker("restart", l.container)
		l.Until("the counter", later, func() error {
			out, err := l.node.Try("redis-cli -h " + l.node.Addr() + " -p " + l.port + " get n")
			if err != nil {
				return err
			}
			return lab.Want("the counter", strings.TrimSpace(out), strconv.FormatInt(was, 10))
		})
		// The working directory of the image is in the volume: it is the volume's.
		if out := l.node.Sh("p=/proc/$(docker inspect -f '{{.State.Pid}}' " + l.container + "); stat -Lc %d:%i $p/root/data $p/cwd | sort -u | wc -l"); strings.TrimSpace(out) != "1" {
			t.Errorf("the server does not work in its volume: %s", out)
		}
	})
	l.finish()
}
