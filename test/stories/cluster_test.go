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

// Waits are made for emulated machines on a busy host: several times what a real
// machine needs. Only failures take that long.
const (
	soon  = time.Minute
	later = 5 * time.Minute
)

// cluster is three clean nodes in one cluster.
type cluster struct {
	*lab.Lab
	n1, n2, n3 *lab.Node
}

// clean gives a test three clean machines, in no cluster.
func clean(t *testing.T) cluster {
	t.Helper()
	l := lab.Open(t)
	c := cluster{Lab: l, n1: l.Node(1), n2: l.Node(2), n3: l.Node(3)}
	l.Step("three clean machines", l.Reset)
	return c
}

// removed is a command that removes a state directory, also with directories in it that were covered
// for volumes that were imported, which root cannot remove as they are.
func removed(dir string) string {
	return "{ chattr -f -i " + dir + "/volumes/* || true; rm -rf " + dir + "; }"
}

// start gives a test a cluster of three. At the test's end nothing may be left over.
func start(t *testing.T) cluster {
	t.Helper()
	c := clean(t)
	c.form()
	return c
}

// form makes one cluster of clean machines. At the test's end nothing may be left over.
func (c cluster) form() {
	c.Helper()
	c.Step("init on n1, join on n2 and n3", func() {
		line := joinLine(c.n1.Flockctl(initArgs(c.n1)...))
		c.join(line, c.n2)
		c.join(line, c.n3)
		c.waitNodes(3)
	})
	c.Cleanup(func() {
		if !c.Failed() {
			c.checkLeftovers()
		}
	})
}

func initArgs(n *lab.Node) []string {
	return []string{"init", "--pool", "tank", "--advertise", n.Addr()}
}

// joinLine is the line to type that init and token create print.
func joinLine(printed string) string {
	for line := range strings.Lines(printed) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "flockctl join ") {
			return line
		}
	}
	return ""
}

// join types the printed line, with what belongs to this node added.
func (c cluster) join(line string, n *lab.Node, more ...string) {
	c.Helper()
	if line == "" {
		c.Fatal("no line to join with was printed")
	}
	n.Sh(fmt.Sprintf("%s --pool tank --advertise %s --wait %s", line, n.Addr(), strings.Join(more, " ")))
}

// waitNodes waits until each node sees so many of them alive, as voters, with their
// pools.
func (c cluster) waitNodes(want int) time.Duration {
	c.Helper()
	return c.Until(fmt.Sprintf("%d alive voters, seen from every node", want), later, func() error {
		for _, n := range c.Nodes()[:min(want, 3)] {
			members, err := n.Members()
			if err != nil {
				return err
			}
			if len(members) != want {
				return fmt.Errorf("%s sees %d nodes", n, len(members))
			}
			for _, m := range members {
				voter := m.Role == api.RoleLeader || m.Role == api.RoleVoter || want == 2 // of two, one votes
				if m.Health != api.NodeAlive || !voter || m.Pool.Health != "ONLINE" && !m.Witness {
					return fmt.Errorf("%s sees %s: %s %s (%s), pool %q", n, m.Name, m.Role, m.Health, m.Reason, m.Pool.Health)
				}
			}
		}
		return nil
	})
}

// waitVolume waits until a node's view of a volume is as it should be.
func (c cluster) waitVolume(n *lab.Node, name, what string, ok func(api.Volume) error) (api.Volume, time.Duration) {
	c.Helper()
	var v api.Volume
	took := c.Until(fmt.Sprintf("volume %s on %s: %s", name, n, what), later, func() (err error) {
		if v, err = n.Volume(name); err != nil {
			return err
		}
		return ok(v)
	})
	return v, took
}

// healthy is a volume with all its replicas.
func healthy(v api.Volume) error {
	if v.Health != api.HealthOK {
		return fmt.Errorf("%s: %s", v.Health, v.Reason)
	}
	if want := v.Spec.Replicas + v.Spec.Remote; len(v.Replicas) != want {
		return fmt.Errorf("%d of %d replicas", len(v.Replicas), want)
	}
	return nil
}

// refuse runs something that must fail, with every one of the given words in what it
// says.
func (c cluster) refuse(what string, do func() (string, error), words ...string) {
	c.Helper()
	out, err := do()
	if err == nil {
		c.Fatalf("%s: succeeded, want a refusal; it printed %q", what, out)
	}
	for _, w := range words {
		if !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(w)) {
			c.Errorf("%s: refused without the word %q: %v", what, w, err)
		}
	}
	c.Logf("    refused, %s: %s", what, lastLine(err.Error()))
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	for _, l := range slices.Backward(lines) {
		if strings.Contains(l, "flocker") || strings.Contains(l, "rror") {
			return strings.TrimSpace(l)
		}
	}
	return strings.TrimSpace(lines[len(lines)-1])
}

// checkLeftovers is what must hold at the end of every story: on each node that
// answers, only volumes in use are mounted, nothing is half made, and no zfs
// command is left behind.
func (c cluster) checkLeftovers() {
	c.Helper()
	for _, n := range c.Nodes() {
		if _, err := n.Try("true"); err != nil {
			continue // the story left it without power
		}
		c.Until("nothing left over on "+n.Name, soon, func() error { return leftovers(n) })
	}
}

// What a container uses is what its own kernel view has mounted: the engine names as a mount's
// source only where the volume was mounted when the container was made.
func leftovers(n *lab.Node) error {
	out, err := n.Try(`
zfs list -H -r -o name -t filesystem tank | grep -E -- '-(seed|receiving|partial)|/%recv' | sed 's/^/half made: /'
in_use=$(docker ps -q | xargs -r docker inspect -f '{{.State.Pid}}' | while read -r pid; do awk '$3 == "zfs" { print $1 }' "/proc/$pid/mounts"; done)
awk '$3 == "zfs" && $1 ~ "^tank/flocker/" { print $1, $2 }' /proc/mounts | while read -r dataset dir; do
	printf '%s\n' "$in_use" | grep -qxF "$dataset" || echo "mounted, not in use: $dir"
done
ps -eo pid,etimes,args | awk '$2 > 60 && $3 ~ /^(\/s?bin\/|\/usr\/s?bin\/)?(zfs|zpool)$/ { print "old command: " $0 }'
true`)
	if err != nil {
		return err
	}
	if out = strings.TrimSpace(out); out != "" {
		return fmt.Errorf("%s", out)
	}
	return nil
}
