package scenario

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/state"
)

// lastWordLatency makes each step of a move long enough for a sweep of moments to meet it.
const lastWordLatency = 40 * time.Millisecond

// stages of a routed move, in their order, by what a bystander sees of it.
var stages = []string{"begun", "quiesced", "committed", "started", "open"}

// At every stage of a move that takes a container and a route along, a machine or an answer is
// lost: the one that leads, the source, the target; or the one that leads while the source hears
// nobody, so that it does not know what became of its last word. What was stopped for the move is
// not started again by a node that has not read that the move was given up. Afterwards the
// container runs where the volume is, and nowhere else, with all data; its clients are served; and
// nothing waits any more.
func TestLostDuringRoutedMove(t *testing.T) {
	later := []time.Duration{0}
	if !testing.Short() {
		later = append(later, lastWordLatency+lastWordLatency/2)
	}
	for i, c := range []struct {
		lost  string
		armed bool // failover is automatic
	}{{"answer", false}, {"answer", true}, {"leader", true}, {"source", true}, {"target", true}} {
		for j, stage := range stages {
			if testing.Short() && (i+j)%2 == 1 {
				continue // half of them, and each loss and each stage
			}
			for _, after := range later {
				name := fmt.Sprintf("%s, %s and %s", c.lost, stage, after)
				if !c.armed {
					name += ", by hand"
				}
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						w := NewWorld(t, 3)
						defer w.Close()
						w.lostDuringRoutedMove(t, c.lost, c.armed, stage, after)
					})
				})
			}
		}
	}
}

// lostDuringRoutedMove is one of these.
func (w *World) lostDuringRoutedMove(t *testing.T, lost string, armed bool, stage string, after time.Duration) {
	if armed {
		w.Script("fencers\ncluster\nmode automatic")
	} else {
		w.Script("cluster")
	}
	leader, source := w.leaderAndOther()
	var target *Machine
	for _, name := range w.Names() {
		if m := w.nodes[name]; m != leader && m != source {
			target = m
		}
	}
	script := func(text string) {
		t.Helper()
		w.Script(strings.NewReplacer("LEADER", leader.Name, "SOURCE", source.Name, "TARGET", target.Name).Replace(text))
	}
	script(`
		create SOURCE db replicas=2 ports=6379/redis
		run-following SOURCE redis db
		write SOURCE db f one
		await db ok
		route SOURCE 6379 redis
		followed TARGET redis SOURCE running
		image TARGET redis:1
		stop-takes SOURCE redis 100ms
		sync SOURCE db 60s`)
	w.net.SetLatency(lastWordLatency)
	epoch := w.newest("db").Epoch
	script("migrate SOURCE db TARGET")

	runs := func(m *Machine) bool { return slices.Contains(w.running("redis"), m.Name) }
	known := func(m *Machine) *state.Volume { return m.daemon.State().VolumeByName("db") }
	reached := func() string {
		newest := w.newest("db")
		switch {
		case newest.Epoch > epoch && known(source).Epoch == epoch:
			return "committed" // and the source has not heard of it
		case newest.Epoch > epoch && target.gate(target.routeAt("6379")) != "redis":
			return "started" // or about to be
		case newest.Epoch > epoch:
			return "open"
		case newest.Phase == "moving" && !runs(source):
			return "quiesced"
		case newest.Phase == "moving":
			return "begun"
		}
		return ""
	}
	for began, at := time.Now(), ""; at != stage; at = reached() {
		if slices.Index(stages, at) > slices.Index(stages, stage) || time.Since(began) > time.Minute {
			t.Fatalf("the move was not seen to be %s; it is %s\n%s", stage, at, w.Describe())
		}
		time.Sleep(time.Millisecond)
	}
	time.Sleep(after)

	heal := func() {}
	switch lost {
	case "answer":
		source.isolate(true)
		leader.Cut()
		source.isolate(true)
		heal = func() { source.isolate(false); leader.Boot() }
	case "leader":
		leader.Cut()
		heal = leader.Boot
	case "source":
		source.Cut()
		heal = source.Boot
	case "target":
		target.Cut()
		heal = target.Boot
	}
	stopped := false
	for range 300 {
		w.Check()
		if source.Up() && known(source).Phase == state.PhaseMoving {
			stopped = stopped || !runs(source)
			if open := source.gate(source.routeAt("6379")); stopped && (runs(source) || open == "redis") {
				t.Fatalf("%s goes on, and has not read what became of the move: the route is %s\n%s", source.Name, open, w.Describe())
			}
		}
		time.Sleep(200 * time.Millisecond)
	}
	heal()
	w.Script("await db ok\nflowing")
	w.Await("the migration is over", func() bool {
		m, err := source.API().Migration(w.ctx(), "db", "")
		return err == nil && (m.State == "done" || m.State == "failed")
	})
	var primary string
	w.Await("the container runs where the volume is, and nowhere else", func() bool {
		primary = w.newest("db").Primary.Name
		return slices.Equal(w.running("redis"), []string{primary})
	})
	w.Script(fmt.Sprintf("has %[1]s db f one\nroute %[1]s 6379 redis\nsame %[1]s redis\nawait db ok\nflowing", primary))
	if !armed {
		w.Script("aside 0") // nobody could promote anybody
	}
}
