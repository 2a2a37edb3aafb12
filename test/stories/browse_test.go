package stories

import (
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/test/lab"
)

// A file is deleted under a container that goes on writing; one command on a node without a
// copy finds it in the newest snapshot that has it and brings it back, byte by byte.
func TestBrowse(t *testing.T) {
	c := start(t)
	nodes := c.Nodes()
	const shop = "/shop"
	var sum string
	var third = nodes[2]
	c.Step("a container writes, a snapshot is taken, a file is deleted", func() {
		if _, err := createOn(nodes[0], "shop", "replicas=1", "interval=1s"); err != nil {
			t.Fatal(err)
		}
		v, _ := c.waitVolume(nodes[0], "shop", "ok", healthy)
		for _, n := range nodes[1:] {
			if v.Replicas[0].Node.Name != n.Name {
				third = n
			}
		}
		nodes[0].Docker("run", "-d", "--name", "shop", "-v", "shop:"+shop, busyboxImage, "sh", "-c",
			"mkdir -p /shop/orders && head -c 3000000 /dev/urandom > /shop/orders/lost && ln -s /etc/passwd /shop/out && while true; do date >> /shop/log; sleep 1; done")
		c.Until("the file is written", soon, func() error {
			out, err := nodes[0].TryDocker("exec", "shop", "sha256sum", shop+"/orders/lost", shop+"/out")
			sum, _, _ = strings.Cut(out, " ")
			return err
		})
		nodes[0].Flockctl("snapshot", "create", "shop@before")
		nodes[0].Docker("exec", "shop", "rm", shop+"/orders/lost")
		// It is gone from the newest snapshots, too, when it is looked for.
		c.waitSnapshotAfter(v, nodes[0], c.Lab.Node(int(v.Replicas[0].Node.Name[1]-'0')))
	})
	c.Step("any node shows it as it was, and gets it back", func() {
		for _, n := range nodes {
			if out := n.Flockctl("browse", "list", "shop@before", "orders", "-q"); strings.TrimSpace(out) != "lost" {
				t.Errorf("%s lists %q", n, out)
			}
		}
		if out := third.Flockctl("diff", "shop", "before"); !slices.Contains(strings.Split(out, "\n"), "-  /orders/lost") {
			t.Errorf("the diff says %q", out)
		}
		c.getBack(third, "shop", "orders/lost", sum)
		if out, err := third.TryFlockctl("browse", "cat", "shop@before", "out"); err == nil || strings.Contains(out, "root:") {
			t.Errorf("a link out of the volume was followed: %q", out)
		}
		third.Flockctl("browse", "get", "shop@before", "/", "/tmp/found/all")
		if got := third.Sh("sha256sum < /tmp/found/all/orders/lost; readlink /tmp/found/all/out"); !strings.HasPrefix(got, sum) || !strings.Contains(got, "/etc/passwd") {
			t.Errorf("the whole: %q", got)
		}
	})
	c.Step("nothing stays mounted", func() {
		for _, n := range nodes {
			if out := n.Sh(`grep 'flocker/[0-9a-f]*@' /proc/mounts || true; if [ -d /run/flocker/verify ]; then ls /run/flocker/verify; fi`); strings.TrimSpace(out) != "" {
				t.Errorf("%s: %q", n, out)
			}
		}
		// Whoever still held it would keep it there.
		nodes[0].Flockctl("snapshot", "remove", "--yes", "shop@before")
		c.Until("it is gone on every node", soon, func() error {
			for _, n := range nodes {
				if err := lab.Want("snapshots on "+n.Name, n.Sh("zfs list -H -t snapshot -o name | grep -c @before || true"), "0"); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// getBack has one command find a file that was deleted and bring it into /tmp/found of a node.
func (c cluster) getBack(n *lab.Node, volume, file, sum string) {
	c.Helper()
	n.Sh("rm -rf /tmp/found && mkdir /tmp/found")
	c.Logf("%s", n.Flockctl("browse", "get", volume, file, "/tmp/found"))
	if got := n.Sh("sha256sum < /tmp/found/" + path.Base(file)); !strings.HasPrefix(got, sum) {
		c.Errorf("the file is %s, was %s", got, sum)
	}
}
