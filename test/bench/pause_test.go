package bench

import (
	"fmt"
	"slices"
	"testing"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/test/lab"
)

// How long the clients of Redis wait while its volume moves to the other node and back, as
// it is and started ahead, beside what a move of the container alone cannot go below: the
// same container stopped and started by hand where it is, until it answers.
func TestPause(t *testing.T) {
	b := start(t, 2)
	const name = "redis"
	b.n1.Docker("volume", "create", "-d", "flocker", "-o", "replicas=1", "-o", "ports=6379:6379/redis", name)
	run := func(labels string) {
		b.n1.Sh("docker rm -f " + name + " 2>/dev/null || true")
		b.Until("the one before to be forgotten", later, func() error {
			all, err := lab.Ask[[]api.Container](b.n1, "container", "list")
			if err == nil && len(all) > 0 {
				err = fmt.Errorf("containers: %+v", all)
			}
			return err
		})
		b.n1.Sh("docker run -d --name " + name + " --label flocker.enable=true " + labels +
			" --mount type=volume,volume-driver=flocker,src=" + name + ",dst=/data flocker-test/redis:7")
	}
	ready := func(n *lab.Node) {
		b.Until("the container to be ready to follow", later, func() error { return follows(n, name) })
		b.inSync()
		b.Until("the route to be open", later, func() error { _, err := n.Try("redis-cli -h " + n.Addr() + " set bench " + n.Name); return err })
	}
	var byHand []float64
	// there moves it to the other node and back.
	there := func() (moves []api.Migration) {
		at := b.n1
		for _, to := range []*lab.Node{b.n2, b.n1} {
			ready(at)
			at = to
			// As long as a request may wait with the lab's timers.
			m, err := lab.Ask[api.Migration](b.n1, "migrate", "--max-pause", "1m", name, to.Name)
			if err != nil {
				t.Fatal(err)
			}
			if m.State != api.MigrationDone || m.PausedSeconds == 0 || m.Times == nil {
				t.Fatalf("it ended with %+v", m)
			}
			t.Logf("paused for %.1fs: %+v; by hand %.1fs", m.PausedSeconds, *m.Times, byHand[len(byHand)-1])
			moves = append(moves, m)
		}
		ready(at)
		return moves
	}
	var cold, warm []api.Migration
	for range setting("BENCH_ROUNDS", 3) {
		run("")
		ready(b.n1)
		byHand = append(byHand, b.timed("docker stop "+name+"; docker start "+name+
			"; ip=$(docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "+name+")"+
			`; until { exec 3<>/dev/tcp/$ip/6379 && echo PING >&3 && read -r -t 1 said <&3 && [[ $said == +PONG* ]]; } 2>/dev/null; do sleep 0.02; done`))
		cold = append(cold, there()...)
		run("--label flocker.prestart=true")
		warm = append(warm, there()...)
	}
	floor := median(byHand)
	t.Logf("stopped and started by hand on one node it does not answer for %.1f s (%.1f to %.1f)", floor, slices.Min(byHand), slices.Max(byHand))
	for _, kind := range []struct {
		name  string
		moves []api.Migration
	}{{"as it is", cold}, {"with `flocker.prestart`", warm}} {
		slices.SortFunc(kind.moves, func(a, b api.Migration) int { return int(1000 * (a.PausedSeconds - b.PausedSeconds)) })
		m := kind.moves[len(kind.moves)/2]
		p := m.Times
		b.row("clients of Redis wait while its volume moves, "+kind.name, fmt.Sprintf("%.1f s (%.1f to %.1f in %d moves): clients parked %.1f, container stopped %.1f, volume unmounted %.1f, the last increment %.1f, "+
			"committed %.1f, taken over %.1f, mounted %.1f, container running %.1f, answering %.1f, routes open %.1f; stopped and started by hand on one node it does not answer for %.1f s: a move takes %+.1f s",
			m.PausedSeconds, kind.moves[0].PausedSeconds, kind.moves[len(kind.moves)-1].PausedSeconds, len(kind.moves),
			p.Park, p.Stop, p.Unmount, p.Copy, p.Commit, p.Takeover, p.Mount, p.Run, p.Ready, p.Open, floor, m.PausedSeconds-floor), "", "", "")
	}
}
