package stories

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/test/lab"
)

// A hundred volumes (FLOCKER_STORY_VOLUMES: more), twenty of which are written to all
// the time: how far those are behind, and that what every replica holds in the end is
// right.
func TestManyVolumes(t *testing.T) {
	total := 100
	if n, err := strconv.Atoi(os.Getenv("FLOCKER_STORY_VOLUMES")); err == nil {
		total = n
	}
	busy := min(20, total/3)
	idle := total - busy
	c := start(t)
	size := "64M"
	if total > 150 {
		size = "16M" // the least there is: the pools of the lab hold no more
	}
	var names []string
	for i := range busy {
		names = append(names, fmt.Sprintf("busy-%d", i+1))
	}
	c.Step(fmt.Sprintf("%d volumes are made from three nodes", total), func() {
		began := time.Now()
		if err := makeVolumes(c.n1, "--size "+size+" --replicas 2", names); err != nil {
			t.Fatal(err)
		}
		err := lab.Parallel(3, func(i int) error {
			var mine []string
			for n := idle * i / 3; n < idle*(i+1)/3; n++ {
				mine = append(mine, fmt.Sprintf("idle-%d", n+1))
			}
			return makeVolumes(c.Nodes()[i], "--size "+size+" --replicas 1", mine)
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("    %d made in %.0fs", total, time.Since(began).Seconds())
		c.waitAllOK(total)
	})

	w := c.tally(c.n1, "usleep 100000", names...)
	c.Step(fmt.Sprintf("%d of them are written to", busy), func() {
		var lag, rest []float64
		target := w.last() + 60
		c.Until("60 writes on each", 3*later, func() error {
			values, err := c.n1.Samples("flocker_replica_lag_seconds", `volume="busy-`)
			if err != nil {
				return err
			}
			lag = append(lag, values...)
			if values, err = c.n1.Samples("flocker_replica_lag_seconds", `volume="idle-`); err != nil {
				return err
			}
			rest = append(rest, values...)
			if got := w.last(); got < target {
				return fmt.Errorf("%d written, want %d", got, target)
			}
			return nil
		})
		t.Logf("    lag of the busy ones: %s", spread(lag))
		t.Logf("    lag of n1's idle ones: %s", spread(rest))
		w.stop()
	})
	c.Step("all are in sync, and the busy ones count alike everywhere", func() {
		c.waitAllOK(total)
		for _, name := range names {
			v, err := c.n1.Volume(name)
			if err != nil {
				t.Fatal(err)
			}
			c.waitQuiet(v, c.n1)
			w.checkTally(v, c.Nodes()...)
			c.checkEqual(v)
		}
	})
}

// makeVolumes makes volumes one after the other from a node, some in each command: one has
// ten minutes. A command that failed, as it may when a busy host lets nodes lose their
// leader, is given once more; volumes that are there already are no error.
func makeVolumes(n *lab.Node, options string, names []string) error {
	for some := range slices.Chunk(names, 10) {
		line := "for v in " + strings.Join(some, " ") + "; do flockctl volume create " + options + " $v >/dev/null || exit; done"
		_, err := n.Try(line)
		for tries := 3; err != nil && tries > 0; tries-- {
			_, err = n.Try(line)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// waitAllOK waits until there are so many volumes, all of them ok.
func (c cluster) waitAllOK(want int) {
	c.Helper()
	c.Until(fmt.Sprintf("%d volumes to be ok", want), 6*later, func() error {
		s, err := c.n1.Status()
		if err == nil && s.Volumes[api.HealthOK] != want {
			err = fmt.Errorf("%v", s.Volumes)
		}
		return err
	})
}

// spread of many values.
func spread(values []float64) string {
	if len(values) == 0 {
		return "none"
	}
	slices.Sort(values)
	at := func(part float64) float64 { return values[min(len(values)-1, int(part*float64(len(values))))] }
	return fmt.Sprintf("p50 %.1fs, p95 %.1fs, max %.1fs of %d", at(0.5), at(0.95), at(1), len(values))
}
