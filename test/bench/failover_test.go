package bench

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/test/lab"
)

// From the power cut of the node of a database to the first query that it answers on
// another node, by itself, and where the time goes. Once the node that dies is not the
// leader of the cluster, once it is.
func TestFailover(t *testing.T) {
	b := start(t, 3)
	b.Until("failover to be automatic", later, func() error {
		s, err := b.n1.Status()
		if err == nil && s.Failover.Mode != "automatic" {
			err = fmt.Errorf("it is %+v", s.Failover)
		}
		return err
	})
	rounds := setting("BENCH_FAILOVERS", 1)
	for _, leads := range []bool{false, true} {
		what := "PostgreSQL answers again after a power cut of its node"
		if leads {
			what += ", which was the leader"
		}
		var all []outage
		for round := range rounds {
			all = append(all, b.outage(fmt.Sprintf("pg-%t-%d", leads, round), leads))
		}
		b.row(what, describe(all), "", "", "")
	}
}

// outage is what each part of one took, in seconds.
type outage struct {
	lost    float64 // until the cluster holds the node for lost: the profile's wait
	elected float64 // promises, the choice of another primary, and its commit
	mounted float64 // the promotion, until the volume is mounted there
	started float64 // until the container is started
	answers float64 // the database itself, until it answers

	slowness float64 // how many times longer than their host the machines took for the same work, just before
}

// ours are the steps of flocker, the start of the container left out.
func (o outage) ours() float64  { return o.elected + o.mounted }
func (o outage) whole() float64 { return o.lost + o.ours() + o.started + o.answers }

// describe has the outage in the middle stand for all.
func describe(all []outage) string {
	slices.SortFunc(all, func(a, b outage) int { return int(1000 * (a.whole() - b.whole())) })
	o := all[len(all)/2]
	var native []float64
	for _, o := range all {
		native = append(native, o.ours()/o.slowness)
	}
	return fmt.Sprintf("%.1f s (%.1f to %.1f in %d rounds): the node counts as lost after %.1f (the profile waits %.0f from its last beat), promises and choice %.1f, "+
		"promotion and mount %.1f, start of the container %.1f, PostgreSQL itself %.1f; our own steps %.1f, at the speed of the host %.1f (%.1f to %.1f; the machines took %.1f times as long as it)",
		o.whole(), all[0].whole(), all[len(all)-1].whole(), len(all), o.lost, lease.Lab.Promote.Seconds(), o.elected, o.mounted, o.started, o.answers, o.ours(),
		median(native), slices.Min(native), slices.Max(native), o.slowness)
}

const database = "flocker-test/postgres:15"

// outage makes a database on a node which is the leader or not, cuts the power of that
// and returns when all is well again.
func (b rig) outage(name string, leads bool) outage {
	b.Helper()
	s, err := b.n1.Status()
	if err != nil {
		b.Fatal(err)
	}
	at := slices.IndexFunc(b.Nodes(), func(n *lab.Node) bool { return (n.Name == s.Leader.Name) == leads })
	node := b.Nodes()[at]
	others := slices.Delete(b.Nodes(), at, at+1)
	node.Flockctl("volume", "create", "--replicas", "2", name)
	node.Sh("docker run -d --name " + name + " --restart always --label flocker.enable=true --mount type=volume,volume-driver=flocker,src=" + name +
		",dst=/var/lib/postgresql/data " + database + " postgres -c shared_buffers=16MB")
	query := "docker exec " + name + " psql -qAtX -U postgres -c 'select 1'"
	b.Until("PostgreSQL on "+node.Name, later, func() error { _, err := node.Try(query); return err })
	b.inSync()
	b.Until("the container to be ready to follow", later, func() error { return follows(node, name) })
	// Volumes that are ok may be some seconds behind, and the database is younger than that.
	node.Flockctl("volume", "sync", name)
	v, err := node.Volume(name)
	if err != nil {
		b.Fatal(err)
	}

	// Both other nodes look for themselves, by their own clocks, which are the host's.
	type sight struct {
		what string
		at   float64
	}
	sights := make(chan sight, 16)
	var watching []*lab.Follower
	for _, n := range others {
		script := fmt.Sprintf(`until grep -q '^tank/flocker/%s ' /proc/mounts; do sleep 0.1; done; echo mounted $(date +%%s.%%N)
			until %s >/dev/null 2>&1; do sleep 0.1; done; echo answers $(date +%%s.%%N)
			echo started $(date +%%s.%%N -d "$(docker inspect -f '{{.State.StartedAt}}' %s)")`, v.ID, query, name)
		watching = append(watching, n.Follow(script, func(line string) {
			what, when, _ := strings.Cut(line, " ")
			if f, err := strconv.ParseFloat(when, 64); err == nil {
				sights <- sight{what, f}
			}
		}))
	}
	slowness := (b.slowness(others[0]) + b.slowness(others[1])) / 2
	cut := b.clock(others[0])
	b.Cut(node)
	seen := map[string]float64{}
	limit := time.After(later)
	for len(seen) < 3 {
		select {
		case s := <-sights:
			seen[s.what] = s.at
		case <-limit:
			b.Fatalf("%s does not answer anywhere; seen %v", name, seen)
		}
	}
	for _, f := range watching {
		f.Stop()
	}
	lost, elected := b.event(others[0], "node.lost", node.Name), b.event(others[0], "volume.failed-over", name)
	o := outage{
		lost: lost - cut, elected: elected - lost, mounted: seen["mounted"] - elected,
		started: seen["started"] - seen["mounted"], answers: seen["answers"] - seen["started"],
		slowness: slowness,
	}
	b.Logf("%s: %+v, in all %.1f s", name, o, o.whole())

	b.Boot(node)
	for _, n := range others {
		n.Sh("docker rm -f " + name + " >/dev/null 2>&1 || true")
	}
	b.inSync()
	b.Until("failover to be automatic again", later, func() error {
		s, err := b.n1.Status()
		if err == nil && (s.Failover.Mode != "automatic" || s.Nodes[api.NodeAlive] != 3) {
			err = fmt.Errorf("it is %+v, nodes %v", s.Failover, s.Nodes)
		}
		return err
	})
	return o
}

// slowness is how many times longer than its host a machine takes to start a program a
// hundred times, which is what the steps of a failover are made of: commands of zfs and
// Docker, none of which computes or writes much.
func (b rig) slowness(n *lab.Node) float64 {
	b.Helper()
	const work = "begin=$(date +%s%N); for i in $(seq 100); do /bin/true; done; echo $(( $(date +%s%N) - begin ))"
	out, err := exec.Command("bash", "-c", work).Output()
	if err != nil {
		b.Fatal(err)
	}
	host, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	if err != nil {
		b.Fatal(err)
	}
	return b.numbers(n, work)[0] / host
}

// clock of a node, now or a little earlier.
func (b rig) clock(n *lab.Node) float64 {
	b.Helper()
	before := time.Now()
	at := b.numbers(n, "date +%s.%N")[0]
	return at + time.Since(before).Seconds()/2
}

// event is when the newest of a kind was, of a volume or a node.
func (b rig) event(n *lab.Node, kind, name string) (at float64) {
	b.Helper()
	for line := range strings.Lines(n.Flockctl("--json", "events")) {
		var e api.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			b.Fatalf("%q: %v", line, err)
		}
		if e.Kind == kind && e.Name == name {
			at = float64(e.At.UnixNano()) / 1e9
		}
	}
	if at == 0 {
		b.Fatalf("no event %s of %s", kind, name)
	}
	return at
}

// follows is an error until a container is recorded and its image wherever it may have
// to run.
func follows(n *lab.Node, name string) error {
	all, err := lab.Ask[[]api.Container](n, "container", "list")
	if err != nil {
		return err
	}
	for _, c := range all {
		if c.Name == name && c.Run && !c.Blocked && len(c.LacksImage) == 0 && len(c.Problems) == 0 {
			return nil
		}
	}
	return fmt.Errorf("containers: %+v", all)
}
