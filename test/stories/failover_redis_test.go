package stories

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/test/lab"
)

// The node that dies is the leader, too. Its Redis, in a container with all sorts of
// options, goes on elsewhere by itself, as the engine's own description says the same
// container; and the returning node leaves its own one where it is.
func TestFailoverLeader(t *testing.T) {
	c := start(t)
	c.Step("failover becomes automatic by itself", func() { c.waitAutomatic() })

	leader := c.leader()
	others := slices.DeleteFunc(c.Nodes(), func(n *lab.Node) bool { return n.Name == leader.Name })
	const port = "6390"
	var raised counter
	var run *lab.Follower
	var v api.Volume
	var made described
	var begun string
	var synced int64
	c.Step("Redis, with a network, a port and more of its own, counts on the leader, "+leader.Name, func() {
		leader.Docker("volume", "create", "-d", "flocker", "-o", "size=500M", "-o", "replicas=2", "counter")
		if _, err := createOn(leader, "small", "size=32M", "replicas=2"); err != nil {
			t.Fatal(err)
		}
		leader.Docker("network", "create", "--label", "story=failover", "--subnet", "172.30.77.0/24", "backend")
		leader.Docker("run", "-d", "--name", "redis", "--restart", "always", "--label", "flocker.enable=true", "--label", "story=failover",
			"--env", "TOLD=with spaces, 'quotes' and $dollars", "--network", "backend", "--network-alias", "cache", "--ip", "172.30.77.7",
			"--publish", port+":6379", "--memory", "96m", "--ulimit", "nofile=2048:4096", "--cap-drop", "NET_RAW", "--tmpfs", "/scratch:size=1m",
			"--stop-timeout", "7", "--log-opt", "max-size=1m", "--hostname", "counter", "--sysctl", "net.core.somaxconn=256",
			"--mount", "type=volume,volume-driver=flocker,src=counter,dst=/data", redisImage, "redis-server", "--appendfsync", "always")
		c.waitRedis(leader, port)
		run = leader.Follow(raises(leader.Addr(), port), raised.line)
		raised.wait(c, 30)
		v, _ = c.waitVolume(leader, "counter", "ok with two replicas", healthy)
		c.waitFollows(leader, "redis")
		made, begun = c.describe(leader, "redis"), leader.Docker("inspect", "-f", "{{.State.StartedAt}}", "redis")
		raised.wait(c, 30)
		c.waitVolume(leader, "small", "ok with two replicas", healthy)
		// A replica that is called ok may be some seconds behind: what came before a
		// sync must survive.
		synced = raised.last()
		leader.Flockctl("volume", "sync", "counter")
		raised.wait(c, 30)
	})

	var to *lab.Node
	c.Step("it loses power: Redis answers on another node, which has a leader again", func() {
		cut := time.Now()
		c.Cut(leader)
		run.Wait()
		to, v = c.waitPrimary("counter", others...)
		c.Logf("    %s is the primary after %.1fs", to, time.Since(cut).Seconds())
		c.waitRedis(to, port)
		c.Logf("    Redis answers there after %.1fs", time.Since(cut).Seconds())
		got := c.redisCount(to, port)
		event := c.event(to, "volume.failed-over", "counter")
		c.Logf("    it counts to %d, %d was acknowledged, %d before a sync; it says: %s", got, raised.last(), synced, event.Message)
		if got < synced {
			t.Errorf("it counts to %d; %d was on all replicas when volume sync returned", got, synced)
		}
		c.checkLoss(event, cut, got, &raised)
	})

	c.Step("it is the same container by the engine's description, and counts on", func() {
		moved := c.describe(to, "redis")
		for _, part := range made.differences(moved) {
			t.Errorf("docker inspect on %s: %s", to, part)
		}
		c.Logf("    the same in %d settings", len(moved))
		before := c.redisCount(to, port)
		raised = counter{}
		run = to.Follow(raises(to.Addr(), port), raised.line)
		raised.wait(c, 20)
		run.Stop()
		if raised.last() <= before {
			t.Errorf("it counts to %d, it was at %d", raised.last(), before)
		}
	})

	c.Step("a volume is still as large as it was made", func() {
		is, _ := c.waitPrimary("small", others...)
		c.checkFull(is, "small", 32<<20)
	})

	c.Step(leader.Name+" comes back: it holds a replica, its restart=always container is not started", func() {
		c.Boot(leader)
		c.waitVolume(to, "counter", "ok again", healthy)
		c.Until("the old container to be retired", later, func() error {
			out, err := leader.TryDocker("inspect", "-f", "{{.State.Running}} {{.HostConfig.RestartPolicy.Name}}", "redis")
			if err != nil {
				return err
			}
			return lab.Want("running, and its restart policy", out, "false no")
		})
		if now := leader.Docker("inspect", "-f", "{{.State.StartedAt}}", "redis"); now != begun {
			t.Errorf("it was started at %s, though its last start there was at %s", now, begun)
		}
		if is, err := mounted(leader, v); err != nil || is {
			t.Errorf("%s has the volume mounted: %v, %v", leader, is, err)
		}
		c.refuse("docker start there", func() (string, error) { return leader.TryDocker("start", "redis") }, to.Name)
		c.checkEqual(v)
		to.Docker("rm", "-f", "redis")
	})
}

// leader is the node that leads the cluster.
func (c cluster) leader() (leader *lab.Node) {
	c.Helper()
	c.Until("a leader", later, func() error {
		members, err := c.n1.Members()
		if err != nil {
			return err
		}
		for i, n := range c.Nodes() {
			if slices.ContainsFunc(members, func(m api.Node) bool { return m.Name == n.Name && m.Role == api.RoleLeader }) {
				leader = c.Nodes()[i]
				return nil
			}
		}
		return fmt.Errorf("none of %+v leads", members)
	})
	return leader
}

// raises is a script that raises a counter in Redis for ever and prints each
// acknowledged number.
func raises(host, port string) string {
	return fmt.Sprintf(`yes 'incr n' | while read -r line; do echo "$line"; sleep 0.02; done | redis-cli -h %s -p %s`, host, port)
}

func (c cluster) waitRedis(n *lab.Node, port string) {
	c.Helper()
	c.Until("Redis on "+n.Name+", port "+port, later, func() error {
		out, err := n.Try("redis-cli -h " + n.Addr() + " -p " + port + " ping")
		if err != nil {
			return err
		}
		return lab.Want("ping", out, "PONG")
	})
}

func (c cluster) redisCount(n *lab.Node, port string) int64 {
	c.Helper()
	out := n.Sh("redis-cli -h " + n.Addr() + " -p " + port + " get n")
	got, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil {
		c.Fatalf("the counter in Redis is %q", out)
	}
	return got
}

// described is what an engine says of how a container was made: each setting as JSON.
type described map[string]string

// describe a container and its networks, without what belongs to the machine.
func (c cluster) describe(n *lab.Node, name string) described {
	c.Helper()
	var all []struct {
		ID, Image          string
		Config, HostConfig map[string]json.RawMessage
		NetworkSettings    struct {
			Ports    map[string]json.RawMessage
			Networks map[string]struct {
				Aliases    []string
				IPAMConfig json.RawMessage
			}
		}
	}
	out := n.Docker("inspect", name)
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) != 1 {
		c.Fatalf("docker inspect %s on %s: %v: %s", name, n, err, out)
	}
	d, got := described{"Image": all[0].Image}, all[0]
	for k, v := range got.Config {
		if name := strings.Trim(string(v), `"`); k == "Hostname" && name != "" && strings.HasPrefix(got.ID, name) {
			continue // made of its ID
		}
		if k == "Labels" {
			v = c.withoutMade(v)
		}
		d["Config."+k] = string(v)
	}
	for k, v := range got.HostConfig {
		d["HostConfig."+k] = string(v)
	}
	for k, v := range got.NetworkSettings.Ports {
		d["Ports."+k] = string(v)
	}
	for network, e := range got.NetworkSettings.Networks {
		e.Aliases = slices.DeleteFunc(e.Aliases, func(a string) bool { return strings.HasPrefix(got.ID, a) })
		d["Networks."+network+".Aliases"] = strings.Join(e.Aliases, " ")
		d["Networks."+network+".IPAMConfig"] = string(e.IPAMConfig)
		ipam := "{{.IPAM.Driver}} {{json .IPAM.Options}}"
		if strings.Contains(string(e.IPAMConfig), "Address") {
			ipam = "{{json .IPAM}}" // else each engine chooses a subnet that is free there
		}
		d["Networks."+network] = n.Docker("network", "inspect", "-f", "{{.Driver}} "+ipam+" {{json .Labels}} {{json .Options}} {{.Internal}} {{.Attachable}} {{.EnableIPv6}}", network)
	}
	return d
}

// withoutMade is labels without the one by which flocker knows what it made itself (docs/CONTAINERS.md):
// the only setting in which such a container is to differ.
func (c cluster) withoutMade(labels json.RawMessage) json.RawMessage {
	c.Helper()
	var all map[string]string
	if err := json.Unmarshal(labels, &all); err != nil {
		c.Fatalf("labels %s: %v", labels, err)
	}
	delete(all, container.LabelMade)
	out, err := json.Marshal(all)
	if err != nil {
		c.Fatal(err)
	}
	return out
}

// differences are the settings in which two descriptions are not alike.
func (d described) differences(other described) (out []string) {
	keys := slices.AppendSeq(slices.Collect(maps.Keys(d)), maps.Keys(other))
	slices.Sort(keys)
	for _, k := range slices.Compact(keys) {
		if d[k] != other[k] {
			out = append(out, fmt.Sprintf("%s is %s, was %s", k, other[k], d[k]))
		}
	}
	return out
}
