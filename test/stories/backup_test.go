package stories

import (
	"fmt"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/test/lab"
)

// A volume is backed up to a directory while it is written, removed, and restored with the
// same files, byte by byte. A run that is killed is gone on with by the same
// command, and a backup with one flipped byte is restored as nothing. Another cluster restores
// what was made for it, encrypted, and imports what is written to it, byte by byte as well.
func TestBackup(t *testing.T) {
	c := clean(t)
	c.Step("n1 and n2 are a cluster, n3 is another one", func() {
		c.join(joinLine(c.n1.Flockctl(initArgs(c.n1)...)), c.n2)
		c.waitNodes(2)
		c.n3.Flockctl(append(initArgs(c.n3), "--zone", "elsewhere")...)
		c.Until("n3 to be a cluster of its own", later, func() error {
			members, err := c.n3.Members()
			if err == nil && (len(members) != 1 || members[0].Health != api.NodeAlive || members[0].Pool.Health != "ONLINE") {
				err = fmt.Errorf("it sees %+v", members)
			}
			return err
		})
	})
	t.Cleanup(func() {
		if !t.Failed() {
			c.checkLeftovers()
		}
	})
	nodes := c.Nodes()
	const dest = "/var/tmp/flocker-backup-story"
	sums := func(n *lab.Node, container string) string {
		t.Helper()
		return n.Docker("exec", container, "sh", "-c", "cd /shop && sha256sum one two")
	}
	var want, full, inc string
	c.Step("a volume is backed up, and what came since", func() {
		nodes[0].Sh("rm -rf " + dest)
		if _, err := createOn(nodes[0], "shop", "replicas=1", "interval=1s"); err != nil {
			t.Fatal(err)
		}
		c.waitVolume(nodes[0], "shop", "ok", healthy)
		nodes[0].Docker("run", "-d", "--name", "shop", "-v", "shop:/shop", busyboxImage, "sh", "-c",
			"head -c 100000000 /dev/urandom > /shop/one && sync && touch /shop/ready && while true; do date >> /shop/log; sleep 1; done")
		c.Until("the file is written", soon, func() error {
			_, err := nodes[0].TryDocker("exec", "shop", "test", "-e", "/shop/ready")
			return err
		})
		full = strings.TrimSpace(nodes[0].Flockctl("backup", "create", "shop", dest))
		nodes[0].Docker("exec", "shop", "sh", "-c", "head -c 50000000 /dev/urandom > /shop/two && sync")
		want = sums(nodes[0], "shop")
	})
	c.Step("a run that is killed is gone on with", func() {
		// Killed as soon as something is stored; if it was too quick for that, it is whole.
		nodes[0].Sh("flockctl backup create shop " + dest + " > /dev/null 2>&1 & p=$!; " +
			"for i in $(seq 200); do ls " + dest + "/*/*/partial > /dev/null 2>&1 && break; sleep 0.02; done; kill -9 $p; wait $p || true")
		out := nodes[0].Flockctl("backup", "create", "--resume", "shop", dest)
		inc = strings.TrimSpace(out)
		if out := nodes[0].Flockctl("backup", "verify", dest); !strings.Contains(out, full) || !strings.Contains(out, inc) {
			t.Errorf("verified are %q", out)
		}
		if out := nodes[0].Flockctl("backup", "inspect", dest, inc); !strings.Contains(out, full) {
			t.Errorf("it is no increment: %s", out)
		}
		if out := nodes[0].Sh("ls -d " + dest + "/*/*/partial 2>/dev/null | wc -l"); strings.TrimSpace(out) != "0" {
			t.Errorf("%s were not finished", out)
		}
	})
	c.Step("one flipped byte is refused", func() {
		nodes[0].Sh("rm -rf " + dest + "-bad && cp -a " + dest + " " + dest + "-bad")
		nodes[0].Sh("f=$(ls " + dest + "-bad/*/" + inc + "/000000-*) && b=$(od -An -tu1 -j1000 -N1 $f) && " +
			"printf \"\\\\$(printf %o $((b ^ 1)))\" | dd of=$f bs=1 seek=1000 conv=notrunc 2>/dev/null")
		out, err := nodes[0].TryFlockctl("backup", "restore", dest+"-bad", inc, "damaged")
		if err == nil || !strings.Contains(out+err.Error(), "its checksum does not fit") {
			t.Errorf("restored from what is damaged: %q, %v", out, err)
		}
		if out := nodes[0].Flockctl("volume", "list", "-q"); strings.Contains(out, "damaged") {
			t.Errorf("it has become a volume: %q", out)
		}
		if out := nodes[0].Sh("zfs list -H -o name -r | grep flocker-restore/ || true"); strings.TrimSpace(out) != "" {
			t.Errorf("left is %q", out)
		}
	})
	c.Step("the volume is removed and made again of the backup", func() {
		nodes[0].Docker("rm", "-f", "shop")
		nodes[0].Flockctl("volume", "remove", "--yes", "shop")
		nodes[0].Flockctl("backup", "restore", dest, inc, "shop2")
		c.waitVolume(nodes[0], "shop2", "ok", healthy)
		nodes[0].Docker("run", "-d", "--name", "shop2", "-v", "shop2:/shop", busyboxImage, "sleep", "1d")
		if got := sums(nodes[0], "shop2"); got != want {
			t.Errorf("the files are %q, were %q", got, want)
		}
		nodes[0].Sh("rm -rf " + dest + " " + dest + "-bad")
	})
	c.elsewhere(c.n1, c.n3)
}

// treeOf prints all there is of a volume, but for what ZFS itself keeps: names, kinds, sizes, owners, modes, times, where links lead,
// and checksums of all files.
const treeOf = "cd /d && stat -c '%u:%g %a' . && find * | sort | xargs stat -c '%N %F %s %u:%g %a %Y' && find * -type f | sort | xargs sha256sum"

// elsewhere brings a volume of from's cluster to that of to, which has other nodes and zones: by a
// copy of a place with backups, and by a pipe.
func (c cluster) elsewhere(from, to *lab.Node) {
	c.Helper()
	const (
		dest   = "/var/tmp/flocker-backup-elsewhere"
		secret = "/root/backup.secret"
		other  = "/root/other.secret"
		key    = "/root/age.key"
	)
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		c.Fatal(err)
	}
	public := identity.Recipient().String()
	// Who makes the backups has no secret key.
	to.Put(key, identity.String()+"\n", 0o600)
	to.Put(other, strings.Repeat("another secret ", 4)+"\n", 0o600)
	for _, n := range []*lab.Node{from, to} {
		n.Put(secret, strings.Repeat("the secret of both clusters ", 2)+"\n", 0o600)
	}

	// like says how a volume of the other cluster differs from the first's.
	like := func(name, want string) {
		c.Helper()
		v, _ := c.waitVolume(to, name, "ok", healthy)
		if s := v.Spec; v.Primary.Name != to.Name || len(s.Prefer)+len(s.Avoid) > 0 || s.Zone != "" || s.Size != 200<<20 || s.ZFS["recordsize"] != "16K" {
			c.Errorf("%s is on %s with the options %v; want all that the original has, but no place of another cluster", name, v.Primary, s.Options())
		}
		if got := to.Sh(onVolume(name, treeOf)); got != want {
			c.Errorf("%s on %s has\n%s\nwant\n%s", name, to, got, want)
		}
		c.waitMounted(to, name, false)
	}
	var want, id string
	c.Step("a volume that is bound to nodes and a zone is backed up, encrypted and marked", func() {
		from.Sh("rm -rf " + dest)
		if _, err := createOn(from, "site", "replicas=1", "size=200M", "zfs.recordsize=16K", "prefer=n1", "avoid=n2", "zone="+string(volume.DefaultZone)); err != nil {
			c.Fatal(err)
		}
		c.waitVolume(from, "site", "ok", healthy)
		from.Docker("run", "-d", "--name", "site", "-v", "site:/d", busyboxImage, "sleep", "1d")
		fill := func(script string) { from.Docker("exec", "site", "sh", "-c", "cd /d && "+script+" && sync") }
		backup := func() string {
			return strings.TrimSpace(from.Flockctl("backup", "create", "--recipient", public, "--auth-key", secret, "site", dest))
		}
		fill("mkdir -p sub/deep && head -c 12000000 /dev/urandom >sub/one && ln sub/one hard && ln -s sub/one soft && dd if=/dev/zero of=hole bs=1 count=0 seek=5000000 2>/dev/null && echo word >sub/deep/word")
		full := backup()
		fill("head -c 3000000 /dev/urandom >two && rm hard && chown 999:998 sub && chmod 2750 sub")
		want = from.Docker("exec", "site", "sh", "-c", treeOf)
		id = backup()
		if said := from.Flockctl("backup", "inspect", dest, id); !strings.Contains(said, full) || !strings.Contains(said, public) || !strings.Contains(said, "--auth-key") {
			c.Errorf("it is %s\nwant an increment on %s, encrypted and marked", said, full)
		}
		from.Sh("ssh " + to.Name + " rm -rf " + dest + " && scp -q -r " + dest + " " + to.Name + ":/var/tmp/")
	})
	c.Step("another cluster restores it, with the key and the secret", func() {
		c.refuse("without the key", func() (string, error) {
			return to.TryFlockctl("backup", "restore", "--auth-key", secret, dest, id, "site")
		}, "exit code 2", "is encrypted, and no key is given")
		c.refuse("with another secret", func() (string, error) {
			return to.TryFlockctl("backup", "restore", "-i", key, "--auth-key", other, dest, id, "site")
		}, "exit code 4", "was not made with the secret")
		if out := strings.TrimSpace(to.Flockctl("volume", "list", "-q")); out != "" {
			c.Errorf("what was refused has become volume %q", out)
		}
		to.Flockctl("backup", "restore", "-i", key, "--auth-key", secret, "-o", "replicas=0", dest, id, "site")
		like("site", want)
	})
	c.Step("it is exported to the other cluster through a pipe", func() {
		from.Sh(fmt.Sprintf("set -o pipefail; flockctl export --recipient %[1]s --auth-key %[2]s site | ssh %[3]s flockctl import -i %[4]s --auth-key %[2]s -o replicas=0 piped",
			public, secret, to.Name, key))
		like("piped", want)
		// That of the newest backup is what the next one begins from.
		if left := from.Lines("flockctl snapshot list -q site"); len(left) != 1 {
			c.Errorf("it has the snapshots %q, want that of the newest backup", left)
		}
		if got := from.Docker("exec", "site", "sh", "-c", treeOf); got != want {
			c.Errorf("where it comes from it has now\n%s\nwant\n%s", got, want)
		}
		from.Sh("ssh " + to.Name + " rm -rf " + dest + " && rm -rf " + dest)
	})
}
