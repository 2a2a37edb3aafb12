package stories

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/doctor"
	"github.com/flocker-io/flocker/test/lab"
)

// planted is in the environment of a container.
const planted = "planted-zq5f0x"

// Doctor finds no problem with a healthy cluster, and names what is wrong with one that is not, with
// what to do; done, it is well again.
func TestDoctor(t *testing.T) {
	c := start(t)
	c.byHand()
	var v api.Volume
	c.Step("a volume in use, with two replicas: no problem is found from any node", func() {
		c.n1.Docker("volume", "create", "-d", "flocker", "-o", "size=1G", "-o", "replicas=2", "pgdata")
		c.n1.Docker("run", "-d", "--name", "user", "--label", "flocker.enable=true", "-e", "WORD="+planted, "--mount", "type=volume,volume-driver=flocker,src=pgdata,dst=/data", busyboxImage, "sleep", "1000000")
		v, _ = c.waitVolume(c.n1, "pgdata", "ok with two replicas", healthy)
		for _, n := range c.Nodes() {
			c.examined(n, "no problem", func(all []doctor.Finding) error {
				for _, f := range all {
					if f.Severity == doctor.Problem || f.Check == "datasets" && f.Severity != doctor.OK {
						return fmt.Errorf("%+v", f)
					}
				}
				return nil
			})
		}
		for _, f := range c.findings(c.n1) {
			c.Logf("    %s %s %s: %s", f.Severity, f.Node, f.Check, f.What)
		}
	})

	c.Step("a dataset that nobody knows on n2", func() {
		c.n2.Sh("zfs create -u tank/flocker/forgotten")
		c.examined(c.n1, "it is named with its fix", found(doctor.Warning, "datasets", "n2", "tank/flocker/forgotten", "zfs rename -u tank/flocker/forgotten tank/flocker-aside/orphan-forgotten"))
		c.n2.Sh("zfs rename -u tank/flocker/forgotten tank/flocker-aside/orphan-forgotten")
		c.examined(c.n1, "it is out of the way", notFound("datasets"))
		c.n2.Sh("zfs destroy -r tank/flocker-aside/orphan-forgotten")
	})

	c.Step("a local volume of Docker on n3, made while flockd was away, hides pgdata", func() {
		c.n3.Sh("systemctl stop flockd && docker volume create pgdata && systemctl start flockd")
		c.examined(c.n1, "it is named with its fix", found(doctor.Problem, "shadows", "n3", `"pgdata"`, "docker volume rm pgdata"))
		if out, err := c.n1.TryFlockctl("doctor"); err == nil {
			t.Errorf("the exit code is 0 with a problem; it printed %s", out)
		}
		c.n3.Sh("systemctl stop flockd && docker volume rm pgdata && systemctl start flockd")
		c.examined(c.n1, "it is gone", notFound("shadows"))
	})

	c.Step("the diagnostics hold all nodes, and neither a token nor what a container was given", func() {
		token := strings.TrimSpace(c.n1.Flockctl("--quiet", "token", "create"))
		c.n3.Sh("logger -t flockd-story " + planted) // the journal of nobody of ours
		c.n1.Sh("rm -rf /tmp/diag && mkdir /tmp/diag && flockctl diagnostics -o /tmp/diag.tar.gz && tar -C /tmp/diag --strip-components=1 -xzf /tmp/diag.tar.gz")
		c.Logf("    %s", strings.TrimSpace(c.n1.Sh("ls -l /tmp/diag.tar.gz; cat /tmp/diag/README.txt")))
		for _, n := range c.Nodes() {
			for _, file := range []string{"status.json", "state.json", "events.json", "metrics.txt", "zpool-status.txt", "zfs-list.txt", "mounts.txt", "logs/flockd.log"} {
				c.n1.Sh("test -s /tmp/diag/nodes/" + n.Name + "/" + file)
			}
		}
		for _, secret := range []string{planted, token, token[strings.LastIndex(token, "-")+1:]} {
			if out, err := c.n1.Try("grep -rl -- " + lab.Quote(secret) + " /tmp/diag"); err == nil {
				t.Errorf("%q is in %s", secret, out)
			}
		}
		c.n1.Sh("rm -rf /tmp/diag /tmp/diag.tar.gz")
	})

	c.Step("n3 does not run", func() {
		c.n3.Sh("systemctl stop flockd")
		c.examined(c.n1, "it is named with its fix", found(doctor.Problem, "nodes", "n3", "does not answer", "systemctl status flockd"))
		out := c.n1.Sh("flockctl diagnostics -o /tmp/diag.tar.gz; rm -f /tmp/diag.tar.gz")
		if !strings.Contains(out, "all of node n3") {
			t.Errorf("diagnostics do not say that n3 is not in them: %s", out)
		}
		c.n3.Sh("systemctl start flockd")
		c.examined(c.n1, "it is well", notFound("nodes"))
	})

	c.n1.Docker("rm", "-f", "user")
	c.waitVolume(c.n2, v.Name, "ok with two replicas", healthy)
}

// findings of doctor, whatever its exit code.
func (c cluster) findings(n *lab.Node) []doctor.Finding {
	c.Helper()
	var d api.Doctor
	out, err := n.Try("flockctl --json doctor || [ $? = 1 ]")
	if err == nil {
		err = json.Unmarshal([]byte(out), &d)
	}
	if err != nil {
		c.Fatalf("doctor on %s: %v: %q", n, err, out)
	}
	return d.Findings
}

// examined waits until doctor's findings are as they should be.
func (c cluster) examined(n *lab.Node, what string, ok func([]doctor.Finding) error) {
	c.Helper()
	c.Until(fmt.Sprintf("doctor on %s: %s", n, what), later, func() error { return ok(c.findings(n)) })
}

// found is a finding with these words, and its way out.
func found(s doctor.Severity, check, node, what, fix string) func([]doctor.Finding) error {
	return func(all []doctor.Finding) error {
		if !slices.ContainsFunc(all, func(f doctor.Finding) bool {
			return f.Severity == s && f.Check == check && f.Node == node && strings.Contains(f.What, what) && strings.Contains(f.Fix, fix)
		}) {
			return fmt.Errorf("no %s of %s with %q in %+v", s, check, what, all)
		}
		return nil
	}
}

// notFound is a check that finds nothing.
func notFound(check string) func([]doctor.Finding) error {
	return func(all []doctor.Finding) error {
		for _, f := range all {
			if f.Check == check && f.Severity != doctor.OK {
				return fmt.Errorf("%+v", f)
			}
		}
		return nil
	}
}
