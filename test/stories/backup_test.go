package stories

import (
	"strings"
	"testing"

	"github.com/flocker-io/flocker/test/lab"
)

// A volume is backed up to a directory while it is written, removed, and restored with the
// same files, byte by byte. A run that is killed is gone on with by the same
// command, and a backup with one flipped byte is restored as nothing.
func TestBackup(t *testing.T) {
	c := start(t)
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
}
