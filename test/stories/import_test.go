package stories

import (
	"strings"
	"testing"
)

// A dataset that somebody has made by hand, with files and two snapshots, becomes a volume on
// three nodes, and nothing of it is another one then. While a process is in it, it does not.
func TestImport(t *testing.T) {
	c := start(t)
	nodes := c.Nodes()
	const at, sums = "/srv/pgdata", "find . -type f | sort | xargs sha256sum; stat -c '%n %u:%g %a' . sub"
	pool := strings.TrimSpace(nodes[0].Sh("zpool list -H -o name | head -n 1"))
	ds := pool + "/pgdata"
	var want, monday string
	c.Step("somebody has a dataset", func() {
		nodes[0].Sh("zfs create -o mountpoint=" + at + " -o recordsize=16K -o quota=2G " + ds)
		nodes[0].Sh("cd " + at + " && mkdir sub && chown 999:999 . sub && chmod 750 sub && head -c 5000000 /dev/urandom > sub/one && zfs snapshot " + ds + "@monday && " +
			"head -c 5000000 /dev/urandom > two && zfs snapshot " + ds + "@tuesday && echo three > three && sync")
		want = nodes[0].Sh("cd " + at + " && " + sums)
		monday = nodes[0].Sh("cd " + at + "/.zfs/snapshot/monday && sha256sum sub/one")
	})
	c.Step("in use it is no volume, and says by whom", func() {
		out, err := nodes[0].Try("cd " + at + " && sleep 60 & sleep 1; flockctl import " + ds + " pg; e=$?; kill %1; wait; exit $e")
		if err == nil || !strings.Contains(out+err.Error(), "is in use by process") {
			t.Errorf("got %q, %v", out, err)
		}
		if got := nodes[0].Sh("cd " + at + " && " + sums); got != want {
			t.Errorf("it is %q, was %q", got, want)
		}
	})
	c.Step("it becomes one, and is replicated", func() {
		out := nodes[0].Flockctl("import", "--dry-run", "-o", "replicas=2", ds, "pg")
		if !strings.Contains(out, "unmount it from "+at) || !strings.Contains(out, "clear quota=2147483648") {
			t.Errorf("it would be %q", out)
		}
		nodes[0].Flockctl("import", "-o", "replicas=2", ds, "pg")
		c.waitVolume(nodes[0], "pg", "ok", healthy)
		if out := nodes[0].Flockctl("volume", "inspect", "pg"); !strings.Contains(out, "zfs.recordsize=16K") {
			t.Errorf("it is %q", out)
		}
		if out := nodes[1].Flockctl("snapshot", "list", "pg"); !strings.Contains(out, "monday") || !strings.Contains(out, "tuesday") {
			t.Errorf("its snapshots are %q", out)
		}
		for _, n := range nodes {
			if out := n.Sh("zfs list -H -o name -t snapshot -r " + pool + "/flocker"); !strings.Contains(out, "@monday") || !strings.Contains(out, "@tuesday") {
				t.Errorf("%s has %q", n.Name, out)
			}
		}
		nodes[0].Flockctl("volume", "verify", "pg")
	})
	c.Step("containers have the same files, here and elsewhere", func() {
		for _, n := range nodes[:2] {
			n.Docker("run", "-d", "--name", "pg", "-v", "pg:/pg", busyboxImage, "sleep", "1d")
			if got := n.Docker("exec", "pg", "sh", "-c", "cd /pg && "+sums); got != want {
				t.Errorf("the files on %s are %q, were %q", n.Name, got, want)
			}
			n.Docker("rm", "-f", "pg")
		}
		nodes[2].Sh("rm -rf /tmp/import-story && mkdir /tmp/import-story && cd /tmp/import-story && flockctl browse get pg@monday / all")
		if got := nodes[2].Sh("cd /tmp/import-story/all && sha256sum sub/one"); got != monday {
			t.Errorf("monday has %q, had %q", got, monday)
		}
	})
}
