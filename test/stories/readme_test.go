package stories

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/test/lab"
)

// Who has three machines and the package types what the README says, from the first line to
// the first failover, and finds what it says. The machines have OpenZFS, Docker and a pool,
// and nothing of flocker.
func TestReadme(t *testing.T) {
	c := clean(t)
	t.Cleanup(func() {
		if !t.Failed() {
			c.checkLeftovers()
		}
	})
	install, initialise, join, first, use, after := c.readme()

	c.Step("the package is made, and the machines are made bare", func() {
		deb := c.debianPackage()
		for _, n := range c.Nodes() {
			n.Sh(`systemctl -q disable --now flockd flockd-proxy flockd-fence
rm -rf /etc/systemd/system/flockd*.service /usr/local/bin/flock* /etc/flocker /run/flocker
` + removed("/var/lib/flocker") + `
systemctl daemon-reload
! command -v flockd flockctl`)
			n.Copy(deb, "/root/"+filepath.Base(deb))
			n.Docker("tag", redisImage, "redis:7") // what a registry would give
		}
	})

	c.Step("it is installed", func() {
		for _, n := range c.Nodes() {
			// The lab's settings for slow machines are none that somebody would have before.
			const settings = "/etc/default/flockd"
			n.Sh("mv " + settings + " /root/settings")
			for i, line := range install {
				c.types(n, line)
				if i == 0 {
					n.Sh("mv /root/settings " + settings)
				}
			}
		}
	})

	c.Step("init on n1, join on n2 and n3", func() {
		// These machines have a line to their host besides, so what an address is for must be said.
		printed := c.types(c.n1, initialise+" --advertise "+c.n1.Addr())
		line := joinLine(printed)
		c.follows(join, line)
		for _, n := range []*lab.Node{c.n2, c.n3} {
			_, more, _ := strings.Cut(join, "TOKEN")
			c.types(n, "sudo "+line+more+" --advertise "+n.Addr())
		}
		c.waitNodes(3)
		c.waitAutomatic()
	})

	c.Step("the first volume, and Redis on it", func() {
		c.types(c.n1, first...)
		c.waitVolume(c.n1, "sessions", "ok with its replicas", healthy)
		for _, n := range c.Nodes() {
			c.waitRedis(n, "6379")
		}
		c.waitFollows(c.n1, "redis")
	})

	c.Step("snapshot, clone, move and rollback", func() {
		for _, line := range use {
			switch words := strings.Fields(line); {
			case slices.Contains(words, "migrate"):
				line += " --max-pause 1m" // on emulated machines
			case slices.Contains(words, "rollback"):
				line += " --yes" // a terminal is asked
			}
			out := c.types(c.n1, line)
			if strings.HasSuffix(line, " get word") {
				if err := lab.Want("the word after the move", strings.TrimSpace(out), "after"); err != nil {
					t.Error(err)
				}
			}
		}
		c.checkWord("before")
		c.waitVolume(c.n2, "sessions", "ok with its replicas", healthy)
		c.waitFollows(c.n2, "redis")
		// What is pulled next is to be on the others.
		c.n1.Flockctl("volume", "sync", "sessions")
	})

	c.Step("n2's plug is pulled: another node goes on", func() {
		cut := time.Now()
		c.Cut(c.n2)
		to, _ := c.waitPrimary("sessions", c.n1, c.n3)
		for _, n := range []*lab.Node{c.n1, c.n3} {
			c.waitRedis(n, "6379")
		}
		c.Logf("    Redis answers on %s after %.1fs", to, time.Since(cut).Seconds())
		for _, line := range after {
			out := c.types(c.n1, line)
			switch {
			case strings.HasSuffix(line, " get word"):
				if err := lab.Want("the word", strings.TrimSpace(out), "before"); err != nil {
					t.Error(err)
				}
			case !strings.Contains(out, "primary is "+to.Name+", was n2"):
				t.Errorf("%s says nothing of the failover:\n%s", line, out)
			}
		}
		c.Boot(c.n2)
		c.waitVolume(to, "sessions", "ok with its replicas", healthy)
		c.checkWord("before")
	})
	for _, n := range c.Nodes() {
		n.Sh("docker rm -f redis 2>/dev/null || true")
	}
}

// readme is what its part about three machines says to type: each line is one that this story knows what
// to do with, and the other way round.
func (c cluster) readme() (install []string, initialise, join string, first, use, after []string) {
	c.Helper()
	text, err := os.ReadFile(filepath.Join(c.Root(), "README.md"))
	if err != nil {
		c.Fatal(err)
	}
	_, part, _ := strings.Cut(string(text), "\n## Three machines\n")
	part, _, _ = strings.Cut(part, "\n## ")
	var blocks [][]string
	open := false
	for line := range strings.Lines(part) {
		command, indented := strings.CutPrefix(line, "    ")
		command, _, _ = strings.Cut(strings.TrimRight(command, "\n"), "  #")
		switch last := len(blocks) - 1; {
		case !indented:
			open = false
		case !open:
			open = true
			blocks = append(blocks, []string{strings.TrimSpace(command)})
		case strings.HasSuffix(blocks[last][len(blocks[last])-1], `\`): // one line in two
			whole := &blocks[last][len(blocks[last])-1]
			*whole = strings.TrimSuffix(*whole, `\`) + strings.TrimSpace(command)
		default:
			blocks[last] = append(blocks[last], strings.TrimSpace(command))
		}
	}
	begins := []string{"sudo ./provision --package ", "sudo apt install ./flocker_", "sudo flockctl init ", "sudo flockctl join ", "docker volume create ", "redis-cli ", "redis-cli "}
	if len(blocks) != len(begins) {
		c.Fatalf("the README has %d things to type for three machines, and this story knows %d: %q", len(blocks), len(begins), blocks)
	}
	for i, b := range blocks {
		if !strings.HasPrefix(b[0], begins[i]) {
			c.Fatalf("the README says %q where this story knows %q", b[0], begins[i])
		}
	}
	return blocks[1], blocks[2][0], blocks[3][0], blocks[4], blocks[5], blocks[6]
}

// types has a shell of a node do what somebody types there, as root, and returns what it prints.
func (c cluster) types(n *lab.Node, lines ...string) string {
	c.Helper()
	return n.Sh("cd /root\nsudo() { \"$@\"; }\nset -e\n" + strings.Join(lines, "\n"))
}

// follows compares a printed line with what the README has in its place.
func (c cluster) follows(readme, printed string) {
	c.Helper()
	want, _, _ := strings.Cut(strings.TrimPrefix(readme, "sudo "), "TOKEN")
	want = strings.Replace(want, "10.0.0.1", c.n1.Addr(), 1)
	if !strings.HasPrefix(printed, want) || strings.Contains(strings.TrimPrefix(printed, want), " ") {
		c.Fatalf("init prints %q, and the README has %q", printed, readme)
	}
}

// debianPackage makes it of this tree.
func (c cluster) debianPackage() string {
	c.Helper()
	build := exec.Command("make", "package")
	build.Dir = c.Root()
	if out, err := build.CombinedOutput(); err != nil {
		c.Fatalf("make package: %v\n%s", err, out)
	}
	debs, err := filepath.Glob(filepath.Join(c.Root(), "dist", "flocker_*.deb"))
	if err != nil || len(debs) != 1 {
		c.Fatalf("make package made %q, %v", debs, err)
	}
	return debs[0]
}
