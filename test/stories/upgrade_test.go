package stories

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/test/lab"
)

// Three nodes with one version's package get a newer one's, one after the other, as docs/OPERATIONS.md says, while Redis
// counts for a client on each: no request fails, and the counter is what was answered. In between Redis moves from a node of
// the one version to one of the other. As long as nothing was released, the two are packages of one tree under two versions.
func TestUpgrade(t *testing.T) {
	const older, newer = "v98.0.0", "v99.0.0"
	l := &live{cluster: clean(t), volume: "counter", container: "redis", port: "6379"}
	l.node = l.n1
	var deb string
	l.Step("packages of two versions are made, and the machines have the older", func() {
		l.bare(l.debianPackage(older))
		l.install(l.readme().install, l.Nodes()...)
		for _, n := range l.Nodes() {
			l.installed(n, older)
		}
		deb = l.debianPackage(newer)
	})
	l.form()
	l.countInRedis()
	for _, n := range l.Nodes() {
		l.Step(n.Name+" is upgraded", func() { l.upgrade(n, deb, newer) })
		to := l.Nodes()[(slices.IndexFunc(l.Nodes(), func(o *lab.Node) bool { return o.Name == n.Name })+1)%3]
		l.Step("Redis moves on to "+to.Name, func() { l.move(to) })
		l.waitVolume(to, l.volume, "ok with its replicas", healthy)
		l.waitFollows(to, l.container)
	}
	l.checkCount()
	l.finish()
}

// installed checks that a node has the package of that version, whole, and no other programs of flocker.
func (c cluster) installed(n *lab.Node, version string) {
	c.Helper()
	want := "install ok installed " + strings.TrimPrefix(version, "v")
	if err := lab.Want("the package on "+n.Name, strings.TrimSpace(n.Sh("dpkg-query -W -f '${Status} ${Version}' flocker")), want); err != nil {
		c.Fatal(err)
	}
	for _, program := range []string{"flockd", "flockctl"} {
		if err := lab.Want("what "+program+" is on "+n.Name, strings.TrimSpace(n.Sh("command -v "+program)), "/usr/bin/"+program); err != nil {
			c.Fatal(err)
		}
	}
}

// upgrade installs a newer package on a node. It returns when all parts of flocker run as that version there.
func (l *live) upgrade(n *lab.Node, deb, version string) {
	l.Helper()
	units := []string{"flockd", "flockd-fence", "flockd-proxy"}
	process := func(unit string) string { return n.Sh("systemctl show -P MainPID " + unit) }
	was := map[string]string{}
	for _, u := range units {
		was[u] = process(u)
	}
	runs := func() string { return n.Docker("ps", "-q", "--no-trunc") }
	running := runs()

	n.Copy(deb, "/root/"+filepath.Base(deb))
	if out := l.types(n, "apt install ./"+filepath.Base(deb)); strings.Contains(out, "goes on with the version before") || strings.Contains(out, "nothing was restarted") {
		l.Errorf("%s: not everything was upgraded: %s", n, out)
	}
	l.installed(n, version)

	for _, u := range units {
		l.Until("another process of "+u+" on "+n.Name, later, func() error {
			if is := process(u); is == was[u] || is == "0" {
				return fmt.Errorf("its process is %s, and was %s", is, was[u])
			}
			// Of a process of the version before it would be a file that is deleted.
			if exe := n.Sh("readlink /proc/$(systemctl show -P MainPID " + u + ")/exe"); exe != "/usr/bin/flockd" {
				return fmt.Errorf("it runs %s", exe)
			}
			return nil
		})
	}
	// Any other node knows it by the new version, and it is well.
	other := l.Nodes()[0]
	if other.Name == n.Name {
		other = l.Nodes()[1]
	}
	l.Until(n.Name+" to be known as "+version, later, func() error {
		members, err := other.Members()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(members, func(m api.Node) bool { return m.Name == n.Name })
		if i < 0 || members[i].Version != version || members[i].Health != api.NodeAlive {
			return fmt.Errorf("members are %+v", members)
		}
		return nil
	})
	l.progress(20)
	if now := runs(); now != running {
		l.Errorf("containers on %s were %s, and are %s", n, running, now)
	}
	l.waitVolume(l.node, l.volume, "ok with its replicas", healthy)
	l.Logf("    %s: flockd, fencer and proxy are of %s", n, version)
}
