package stories

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/test/lab"
)

// One node after the other gets another version, by what the package does, while Redis counts for a client on
// each: no request fails, and the counter is what was answered. In between Redis moves from a node of the one
// version to one of the other. As long as nothing was released, the two are one tree under two names.
func TestUpgrade(t *testing.T) {
	const newer = "v99.0.0"
	l := &live{cluster: start(t), volume: "counter", container: "redis", port: "6379"}
	l.node = l.n1
	var programs string
	l.Step("a newer version is built", func() { programs = l.programs(newer) })
	l.countInRedis()
	for _, n := range l.Nodes() {
		l.Step(n.Name+" is upgraded", func() { l.upgrade(n, programs, newer) })
		to := l.Nodes()[(slices.IndexFunc(l.Nodes(), func(o *lab.Node) bool { return o.Name == n.Name })+1)%3]
		l.Step("Redis moves on to "+to.Name, func() { l.move(to) })
		l.waitVolume(to, l.volume, "ok with its replicas", healthy)
		l.waitFollows(to, l.container)
	}
	l.checkCount()
	l.finish()
}

// programs builds flockd and flockctl of this tree, under the name of a version, and returns their folder.
func (l *live) programs(version string) string {
	l.Helper()
	dir := l.TempDir()
	cmd := exec.Command("go", "build", "-tags", "hashicorpmetrics,nosystemd", "-trimpath",
		"-ldflags", "-s -w -X github.com/flocker-io/flocker/internal/version.Version="+version, "-o", dir+"/", "./cmd/flockd", "./cmd/flockctl")
	cmd.Dir, cmd.Env = l.Root(), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		l.Fatalf("building flockd and flockctl: %v: %s", err, out)
	}
	return dir
}

// upgrade puts programs on a node, as dpkg would, and runs the package's script. It returns when all parts of flocker
// run as that version there.
func (l *live) upgrade(n *lab.Node, programs, version string) {
	l.Helper()
	units := []string{"flockd", "flockd-fence", "flockd-proxy"}
	process := func(unit string) string { return n.Sh("systemctl show -P MainPID " + unit) }
	was := map[string]string{}
	for _, u := range units {
		was[u] = process(u)
	}
	runs := func() string { return n.Docker("ps", "-q", "--no-trunc") }
	running := runs()

	for _, p := range []string{"flockd", "flockctl"} {
		n.Copy(filepath.Join(programs, p), "/usr/local/bin/."+p+".new")
		// The package has them in /usr/bin; the lab's units do not.
		n.Sh(fmt.Sprintf("chmod 755 /usr/local/bin/.%[1]s.new && mv -f /usr/local/bin/.%[1]s.new /usr/local/bin/%[1]s && ln -sf /usr/local/bin/%[1]s /usr/bin/%[1]s", p))
	}
	script, err := os.ReadFile(filepath.Join(l.Root(), "scripts/packaging/scripts/postinst"))
	if err != nil {
		l.Fatal(err)
	}
	n.Put("/root/postinst", string(script), 0o755)
	if out := n.Sh("/root/postinst configure 1.0"); strings.Contains(out, "goes on with the version before") {
		l.Errorf("%s: not everything was upgraded: %s", n, out)
	}

	for _, u := range units {
		l.Until("another process of "+u+" on "+n.Name, later, func() error {
			if is := process(u); is == was[u] || is == "0" {
				return fmt.Errorf("its process is %s, and was %s", is, was[u])
			}
			if exe := n.Sh("readlink /proc/$(systemctl show -P MainPID " + u + ")/exe"); exe != "/usr/local/bin/flockd" {
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
