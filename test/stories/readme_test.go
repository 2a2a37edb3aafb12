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
// the first failover, and finds what it says. The machines have OpenZFS and Docker, and nothing
// of flocker; two of them have a pool.
func TestReadme(t *testing.T) {
	c := clean(t)
	t.Cleanup(func() {
		if !t.Failed() {
			c.checkLeftovers()
		}
	})
	text := c.readme()

	c.Step("the package is made, and the machines are made bare", func() {
		c.bare(c.debianPackage(""))
		for _, n := range c.Nodes() {
			n.Docker("tag", redisImage, "redis:7") // what a registry would give
		}
	})

	c.Step("n1 is provisioned, onto an empty disk; the others have OpenZFS, Docker and a pool, and the package is installed there", func() {
		c.provision(c.n1, text.provision)
		c.install(text.install, c.n2, c.n3)
	})

	c.Step("init on n1, join on n2 and n3", func() {
		// These machines have a line to their host besides, so what an address is for must be said.
		printed := c.types(c.n1, text.initialise+" --advertise "+c.n1.Addr())
		line := joinLine(printed)
		c.follows(text.join, line)
		for _, n := range []*lab.Node{c.n2, c.n3} {
			_, more, _ := strings.Cut(text.join, "TOKEN")
			c.types(n, "sudo "+line+more+" --advertise "+n.Addr())
		}
		c.waitNodes(3)
		c.waitAutomatic()
	})

	c.Step("the first volume, and Redis on it", func() {
		c.types(c.n1, text.first...)
		c.waitVolume(c.n1, "sessions", "ok with its replicas", healthy)
		for _, n := range c.Nodes() {
			c.waitRedis(n, "6379")
		}
		c.waitFollows(c.n1, "redis")
	})

	c.Step("snapshot, clone, move and rollback", func() {
		for _, line := range text.use {
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

	c.Step("Redis on the clone has what was there when the snapshot was taken", func() {
		trial, err := c.n1.Volume("trial")
		if err != nil {
			t.Fatal(err)
		}
		at := c.Nodes()[slices.IndexFunc(c.Nodes(), func(n *lab.Node) bool { return n.Name == trial.Primary.Name })]
		c.types(at, "docker run -d --name trial --mount type=volume,volume-driver=flocker,src=trial,dst=/data redis:7 redis-server --appendonly yes")
		c.Until("Redis on the clone to have read its file", later, func() error {
			out, err := at.TryDocker("exec", "trial", "redis-cli", "ping")
			if err != nil {
				return err
			}
			return lab.Want("ping", strings.TrimSpace(out), "PONG")
		})
		if err := lab.Want("the word of the clone", strings.TrimSpace(at.Docker("exec", "trial", "redis-cli", "get", "word")), "before"); err != nil {
			t.Error(err)
		}
		at.Docker("rm", "-f", "trial")
		c.waitMounted(at, "trial", false)
	})

	c.Step("n2's plug is pulled: another node goes on", func() {
		cut := time.Now()
		c.Cut(c.n2)
		to, _ := c.waitPrimary("sessions", c.n1, c.n3)
		for _, n := range []*lab.Node{c.n1, c.n3} {
			c.waitRedis(n, "6379")
		}
		c.Logf("    Redis answers on %s after %.1fs", to, time.Since(cut).Seconds())
		for _, line := range text.after {
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

// readme is what the README's part about three machines says to type.
type readme struct {
	provision, initialise, join string
	install, first, use, after  []string
}

// readme reads it: each line is one that this story knows what to do with, and the other way round.
func (c cluster) readme() readme {
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
	return readme{
		provision: blocks[0][0], install: blocks[1], initialise: blocks[2][0], join: blocks[3][0],
		first: blocks[4], use: blocks[5], after: blocks[6],
	}
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

// The lab's settings for slow machines, and where they are while a machine is bare: nobody would have any before there is flocker,
// and dpkg asks what is to become of them.
const (
	settings     = "/etc/default/flockd"
	keptSettings = "/root/settings"
)

// bare takes flocker off the machines, whether it came from the package or not, and lays a package there instead.
func (c cluster) bare(deb string) {
	c.Helper()
	for _, n := range c.Nodes() {
		n.Sh(`systemctl -q disable --now flockd flockd-proxy flockd-fence
set -e
mv ` + settings + ` ` + keptSettings + `
if dpkg -s flocker >/dev/null 2>&1; then dpkg --purge flocker; fi
rm -rf /etc/systemd/system/flockd*.service /usr/local/bin/flock* /etc/flocker /run/flocker
` + removed("/var/lib/flocker") + `
systemctl daemon-reload
! command -v flockd flockctl`)
		n.Copy(deb, "/root/"+filepath.Base(deb))
	}
}

// install types on bare machines what the README says of the package, of which the first line brings it and the others start it.
func (c cluster) install(lines []string, nodes ...*lab.Node) {
	c.Helper()
	for _, n := range nodes {
		c.types(n, lines[0])
		n.Sh("mv " + keptSettings + " " + settings)
		c.types(n, lines[1:]...)
	}
}

// archive makes a Debian archive in /srv/archive that has nothing, and of which apt knows.
const archive = `set -e
mkdir -p /etc/apt/sources.list.d
for suite in bookworm bookworm-backports; do
	for part in main contrib; do
		mkdir -p /srv/archive/dists/$suite/$part/binary-amd64
		printf 'Package: nothing\nVersion: 1\nArchitecture: all\nFilename: nothing.deb\nSize: 1\nSHA256: %064d\n' 0 >/srv/archive/dists/$suite/$part/binary-amd64/Packages
	done
	cd /srv/archive/dists/$suite
	{
		printf 'Origin: Debian\nCodename: %s\nSuite: %s\nDate: %s\nArchitectures: amd64\nComponents: main contrib\nSHA256:\n' $suite $suite "$(date -uR)"
		for file in */binary-amd64/Packages; do echo " $(sha256sum $file | cut -d' ' -f1) $(stat -c %s $file) $file"; done
	} >Release
	echo "deb [trusted=yes] file:/srv/archive $suite main contrib" >>/etc/apt/sources.list
done`

// provision types on a bare machine what the README says of it. The machine has no way to Debian's archive; all that would come
// from there it has, as its image was made by the same script. Its pool goes, and another one is made on its empty disk.
func (c cluster) provision(n *lab.Node, line string) {
	c.Helper()
	n.Copy(filepath.Join(c.Root(), "scripts", "provision"), "/root/provision")
	n.Sh(archive)
	n.Sh("zpool destroy tank")
	// By the kernel's name: links in /dev/disk come and go while udev looks at new partitions, too slowly for zpool on a busy host.
	const disk = "/dev/disk/by-id/..."
	if !strings.Contains(line, disk) {
		c.Fatalf("the README names no %s: %q", disk, line)
	}
	out := c.types(n, strings.Replace(line, disk, "$(readlink -f /dev/disk/by-id/virtio-spare)", 1))
	for _, said := range []string{"creating pool tank on /dev/", "provision: done"} {
		if !strings.Contains(out, said) {
			c.Errorf("provision does not say %q: %s", said, out)
		}
	}
	if runs := n.Lines("zpool list -H -o name && systemctl is-active flockd-fence flockd-proxy flockd"); !slices.Equal(runs, []string{"tank", "active", "active", "active"}) {
		c.Errorf("after provision there are %q, want the pool tank and three units that are active", runs)
	}
	n.Sh("mv " + keptSettings + " " + settings + " && systemctl restart flockd-fence flockd-proxy flockd")
}

// debianPackage makes it of this tree, under the name of a version if that is not "". What scripts/lab installs, and what
// somebody may have in dist, is left alone.
func (c cluster) debianPackage(version string) string {
	c.Helper()
	dir := c.TempDir()
	args := []string{"package", "BIN=" + filepath.Join(dir, "bin"), "DIST=" + filepath.Join(dir, "dist")}
	if version != "" {
		args = append(args, "VERSION="+version)
	}
	build := exec.Command("make", args...)
	build.Dir = c.Root()
	if out, err := build.CombinedOutput(); err != nil {
		c.Fatalf("make %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	debs, err := filepath.Glob(filepath.Join(dir, "dist", "flocker_*.deb"))
	if err != nil || len(debs) != 1 {
		c.Fatalf("make package made %q, %v", debs, err)
	}
	return debs[0]
}
