package scenario

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/container"
)

// A machine loses power at every moment of a drain that takes a container along: the
// source, the one that leads, or the third; the container is to go to one of the last
// two. It runs again by itself, on one machine, with what it had written, and in the end
// the drained one has no primary.
func TestMachineLostDuringDrain(t *testing.T) {
	for _, who := range []string{"source", "leader", "third"} {
		for _, after := range append(moments(t), 700*time.Millisecond, 1200*time.Millisecond) {
			t.Run(who+" "+after.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := NewWorld(t, 3)
					defer w.Close()
					w.Script("fencers\ncluster")
					machines := map[string]*Machine{}
					machines["leader"], machines["source"] = w.leaderAndOther()
					for _, name := range w.Names() {
						if m := w.Machine(name); m != machines["leader"] && m != machines["source"] {
							machines["third"] = m
						}
					}
					source, third := machines["source"].Name, machines["third"].Name
					w.Script(fmt.Sprintf(`
						create %[1]s pg replicas=2
						create %[1]s logs replicas=2
						run-following %[1]s web pg logs
						mode automatic
						write %[1]s pg f one
						await pg ok
						await logs ok
						followed %[2]s web %[1]s running
						image %[3]s web:1
						image %[2]s web:1
						sync %[1]s pg 60s
						sleep 20s
						drain %[2]s %[1]s keep`, source, third, machines["leader"].Name))
					time.Sleep(after)
					machines[who].Cut()
					w.Await("web runs without it", func() bool { return len(w.running("web")) == 1 })
					w.Script("sleep 30s\nboot " + machines[who].Name + "\nawait pg ok\nawait logs ok")
					w.Await("web runs on one machine", func() bool { return len(w.running("web")) == 1 })
					// Whatever was refused on the way is tried again when an operator asks.
					w.Script(fmt.Sprintf(`
						drain %[2]s %[1]s keep
						drained %[2]s %[1]s
						await pg ok
						await logs ok`, source, third))
					w.Await("web runs elsewhere", func() bool { on := w.running("web"); return len(on) == 1 && on[0] != source })
					on := w.running("web")[0]
					w.Script(fmt.Sprintf("primary pg %[1]s\nprimary logs %[1]s\nsame %[1]s web\nhas %[1]s pg f one", on))
				})
			})
		}
	}
}

// running are the machines on which a container runs.
func (w *World) running(name string) (on []string) {
	for _, m := range w.Names() {
		if st, _, _ := w.nodes[m].Engine.Container(name); w.nodes[m].Up() && st == container.Running {
			on = append(on, m)
		}
	}
	return on
}
