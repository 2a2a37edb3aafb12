package stories

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/test/lab"
)

// Only a token that is right, in time, unrevoked and not used up makes a node a
// member; what is refused leaves the node as clean as it was.
func TestTokens(t *testing.T) {
	c := clean(t)
	good := joinLine(c.n1.Flockctl(initArgs(c.n1)...))
	words := strings.Fields(good)
	token := words[len(words)-1]
	line := func(token string) string {
		return strings.Join(append(words[:len(words)-1:len(words)-1], token), " ")
	}
	refused := func(what, line string, words ...string) {
		t.Helper()
		c.refuse(what, func() (string, error) {
			return c.n2.Try(line + " --timeout 60s --pool tank --advertise " + c.n2.Addr())
		}, words...)
		s, err := c.n2.Status()
		if err != nil || s.Initialized {
			t.Errorf("%s: afterwards n2 is in cluster %q (%v)", what, s.ClusterID, err)
		}
	}

	refused("nonsense", line("banana"), "token")
	flipped := []byte(token)
	last := &flipped[len(flipped)-1]
	if *last = *last ^ 1; *last == token[len(token)-1] || !isWord(*last) {
		*last = 'x'
		if token[len(token)-1] == 'x' {
			*last = 'y'
		}
	}
	refused("a wrong secret", line(string(flipped)), "token")

	expired := strings.TrimSpace(c.n1.Flockctl("-q", "token", "create", "--ttl", "1s"))
	c.Until("that token to run out", soon, func() error {
		tokens, err := lab.Ask[[]api.Token](c.n1, "token", "list")
		if err != nil {
			return err
		}
		now, err := time.Parse(time.RFC3339, c.n1.Sh("date -u +%FT%TZ"))
		if err != nil {
			return err
		}
		for _, tok := range tokens {
			if tok.Expires.Sub(tok.Created) < time.Minute && tok.Expires.Before(now) {
				return nil
			}
		}
		return fmt.Errorf("none of %d tokens has run out", len(tokens))
	})
	refused("an expired one", line(expired), "expired")

	created, err := lab.Ask[api.Token](c.n1, "token", "create", "--note", "to revoke")
	if err != nil {
		t.Fatal(err)
	}
	c.n1.Flockctl("token", "revoke", created.ID)
	refused("a revoked one", line(created.Text), "token")

	once := strings.TrimSpace(c.n1.Flockctl("-q", "token", "create", "--max-uses", "1"))
	c.join(line(once), c.n3)
	refused("a used-up one", line(once), "used")

	c.join(good, c.n2)
	c.waitNodes(3)
	c.n2.Sh(good + " --pool tank --if-new")
	c.refuse("joining twice", func() (string, error) { return c.n2.Try(good + " --pool tank") }, "already")
}

func isWord(b byte) bool {
	return b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z'
}

// A node of another cluster is refused: with its own token, with ours, and by its
// certificate on our port.
func TestForeignCluster(t *testing.T) {
	c := clean(t)
	ours := joinLine(c.n1.Flockctl(initArgs(c.n1)...))
	c.join(ours, c.n2)
	theirs := joinLine(c.n3.Flockctl(initArgs(c.n3)...))

	c.refuse("n3 joins us while it is in its own cluster", func() (string, error) {
		return c.n3.Try(ours + " --pool tank")
	}, "already")
	// The other cluster's token, at our door: its digest names another authority.
	words := strings.Fields(theirs)
	token := words[len(words)-1]
	c.refuse("their token at our door", func() (string, error) {
		return c.n2.Try("systemctl stop flockd; " + removed("/var/lib/flocker.was") + "; mv -T /var/lib/flocker /var/lib/flocker.was; systemctl start flockd; " +
			"flockctl join --peer " + c.n1.Addr() + ":4523 " + token + " --pool tank --timeout 60s; code=$?; " +
			"systemctl stop flockd; " + removed("/var/lib/flocker") + "; mv -T /var/lib/flocker.was /var/lib/flocker; systemctl start flockd; exit $code")
	}, "exit code 7")

	c.Step("their gossip and their certificate do not count here", func() {
		for n, want := range map[*lab.Node]int{c.n1: 2, c.n3: 1} {
			members, err := n.Members()
			if err != nil || len(members) != want {
				t.Errorf("%s sees %d nodes, want %d (%v)", n, len(members), want, err)
			}
		}
		for _, protocol := range []string{"flk-raft/1", "flk-api/1", "flk-stream/1", "flk-node/1"} {
			if got := greeting(c.n2, c.n1, protocol); got != "welcome" {
				t.Errorf("n1 greets n2, a member that talks %s, with %q", protocol, got)
			}
			got := greeting(c.n3, c.n1, protocol)
			if !strings.Contains(got, "foreign cluster") {
				t.Errorf("n1 greets n3, of another cluster, that talks %s, with %q; want a refusal that says so", protocol, got)
			}
			c.Logf("    %s: %s", protocol, got)
		}
	})
	c.Step("each cluster goes on for itself", func() {
		if _, err := createOn(c.n2, "ours", "replicas=1"); err != nil {
			t.Error(err)
		}
		if _, err := createOn(c.n3, "theirs", "replicas=0"); err != nil {
			t.Error(err)
		}
		for node, want := range map[*lab.Node]string{c.n1: "ours", c.n2: "ours", c.n3: "theirs"} {
			c.Until(node.Name+" to list "+want+" alone", soon, func() error {
				got, err := node.DockerVolumes()
				if err != nil {
					return err
				}
				return lab.Want("volumes", strings.Join(got, " "), want)
			})
		}
	})
}

// greeting is what a node's port says to the certificate of another: "welcome", or
// why not. It comes after the handshake, as a length and so many bytes of reason.
func greeting(from, to *lab.Node, protocol string) string {
	out, err := from.Try(fmt.Sprintf(`cd /var/lib/flocker
exec 3< <(timeout 20 openssl s_client -quiet -connect %s:4523 -alpn %s -cert node.crt -key node.key 2>/dev/null </dev/null)
case $(head -c 2 <&3 | od -An -tx1 | tr -d ' \n') in
0000) echo welcome ;;
'') echo nothing ;;
*) head -c 300 <&3 ;;
esac`, to.Addr(), protocol))
	if err != nil {
		return err.Error()
	}
	return out
}

// One command serves where no disk is at hand, and the pool is there again after a
// power cut.
func TestPoolFile(t *testing.T) {
	c := clean(t)
	line := joinLine(c.n1.Flockctl("init", "--pool-file", "2G", "--advertise", c.n1.Addr()))
	c.n2.Sh(line + " --pool-file 2G --wait --advertise " + c.n2.Addr())
	c.join(line, c.n3)
	c.waitNodes(3)
	if _, err := createOn(c.n1, "onfile", "size=100M", "replicas=2"); err != nil {
		t.Fatal(err)
	}
	c.n1.Sh("docker run --rm --mount type=volume,volume-driver=flocker,src=onfile,dst=/d " + busyboxImage + " sh -c 'echo kept >/d/file && sync'")
	c.waitVolume(c.n1, "onfile", "ok", healthy)
	c.Cut(c.n1)
	c.Boot(c.n1)
	c.waitNodes(3)
	c.waitVolume(c.n2, "onfile", "ok", healthy)
	got := c.n1.Sh("docker run --rm --mount type=volume,volume-driver=flocker,src=onfile,dst=/d " + busyboxImage + " cat /d/file")
	if got != "kept" {
		t.Errorf("after a power cut the file holds %q", got)
	}
}

// A witness votes and holds nothing.
func TestWitness(t *testing.T) {
	c := clean(t)
	line := joinLine(c.n1.Flockctl(initArgs(c.n1)...))
	c.join(line, c.n2)
	c.n3.Sh(line + " --witness --wait --advertise " + c.n3.Addr())
	c.waitNodes(3)
	if _, err := createOn(c.n3, "v", "replicas=1"); err != nil {
		t.Fatal(err)
	}
	v, _ := c.waitVolume(c.n3, "v", "ok on n1 and n2", healthy)
	if v.Primary.Name == "n3" || v.Replicas[0].Node.Name == "n3" {
		t.Errorf("the witness holds a copy: primary %s, replica %s", v.Primary, v.Replicas[0].Node)
	}
	c.refuse("docker run on the witness", func() (string, error) {
		return c.n3.TryDocker("run", "--rm", "--mount", "type=volume,volume-driver=flocker,src=v,dst=/d", busyboxImage, "true")
	}, "no pool")
	// Its vote is worth something: with it, one of the others may go.
	c.Cut(c.n2)
	c.Until("a change with n1 and the witness alone", later, func() error {
		_, err := createOn(c.n1, "w", "replicas=0")
		return err
	})
	c.Boot(c.n2)
	c.waitVolume(c.n2, "v", "ok", healthy)
}

// With manual failover, a node that nobody reaches says so, refuses changes, and is level
// again after the network is back. What it does meanwhile to a volume of its own is kept.
func TestPartition(t *testing.T) {
	c := start(t)
	c.n1.Flockctl("settings", "set", "failover=manual")
	c.n2.Docker("volume", "create", "-d", "flocker", "-o", "size=1G", "-o", "replicas=2", "pgdata")
	db := c.runPostgres(c.n2, "pg", "pgdata")
	db.query(table)
	w := db.write()
	w.more(20)
	v, _ := c.waitVolume(c.n2, "pgdata", "ok", healthy)

	c.Step("n2 is alone: it says so, and the container goes on", func() {
		c.Partition(c.n2, c.n1, c.n3)
		c.Until("n2 to know that it has no quorum", later, func() error {
			s, err := c.n2.Status()
			if err == nil && s.Quorum {
				err = fmt.Errorf("it hears leader %s", s.Leader)
			}
			return err
		})
		c.refuse("a new volume on n2", func() (string, error) { return c.n2.TryFlockctl("--timeout", "60s", "volume", "create", "alone") }, "exit code 6")
		w.more(30)
	})
	c.Step("the others know, go on, and do not touch its volume", func() {
		c.waitVolume(c.n1, "pgdata", "not ok", func(v api.Volume) error {
			if v.Health == api.HealthOK {
				return fmt.Errorf("ok, with its primary cut off")
			}
			return nil
		})
		if _, err := createOn(c.n1, "meanwhile", "replicas=1"); err != nil {
			t.Error(err)
		}
		c.refuse("docker run on n3", func() (string, error) {
			return c.n3.TryDocker("run", "--rm", "--mount", "type=volume,volume-driver=flocker,src=pgdata,dst=/d", busyboxImage, "true")
		}, "n2")
		if got := c.n3.Sh("zfs get -H -o value readonly " + copyOf(v)); got != "on" {
			t.Errorf("readonly of n3's copy: %s", got)
		}
	})
	c.Step("healed, everything is level again", func() {
		c.Heal()
		c.waitNodes(3)
		c.waitList("pgdata", "meanwhile")
		rows := w.stop()
		c.waitVolume(c.n1, "pgdata", "ok", healthy)
		c.checkEqual(v)
		db.stop()
		db = c.runPostgres(c.n3, "pg", "pgdata")
		if got := db.rows(); got != rows {
			t.Errorf("%d rows on n3, want %d", got, rows)
		}
		db.stop()
	})
}
