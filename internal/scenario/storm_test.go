package scenario

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/test/firstseed"
)

var (
	storms   = flag.Int("storms", 80, "random fault histories of whole daemons")
	seedFlag = flag.Uint64("seed", 0, "run only the history of this seed, and print its script")
)

// TestStorms runs whole clusters through random faults. Nothing may ever have two
// writers, whatever the faults (the check after each step, and at each mount); when all
// is repaired every volume becomes ok by itself, has all that was said to be on all
// copies, what was cut off is set aside, and every route leads to its server.
//
// The script of a history is made from its seed before anything runs, and what fails
// prints it: it can be shortened, and kept in testdata. Daemons draw random numbers of
// their own, so that the same script may have to run several times (-count) to fail
// again.
func TestStorms(t *testing.T) { runStorms(t, *storms, 6, storm) }

// TestStormsRebalance are storms with the setting rebalance: there is so much to even out, and
// so long a calm before, that the faults meet moves that nobody has asked for.
func TestStormsRebalance(t *testing.T) { runStorms(t, *storms/4, 2, unevenStorm) }

// TestStormsDrain are storms in which nodes are drained and used again between all else. In the
// end one of them stays drained, and has given its primaries away.
func TestStormsDrain(t *testing.T) { runStorms(t, *storms/4, 2, drainStorm) }

// TestStormsRollback are storms in which volumes go back to their snapshots: whatever happens then,
// what was undone is in none of them in the end, and set aside.
func TestStormsRollback(t *testing.T) { runStorms(t, *storms/4, 6, rollbackStorm) }

func runStorms(t *testing.T, most, short int, of func(seed uint64) (nodes int, script []string)) {
	for _, seed := range seeds(t, most, short) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			nodes, script := of(seed)
			text := strings.Join(script, "\n")
			if *seedFlag != 0 {
				t.Log(text)
			}
			defer func() {
				if t.Failed() {
					t.Logf("again with -run '%s' -seed %d; its script for %d machines:\n%s", t.Name(), seed, nodes, text)
				}
			}()
			synctest.Test(t, func(t *testing.T) {
				w := NewWorld(t, nodes)
				defer w.Close()
				w.Script(text)
			})
		})
	}
}

// seeds of the histories to run.
func seeds(t *testing.T, n, short int) []uint64 {
	if *seedFlag != 0 {
		return []uint64{*seedFlag}
	}
	if n = firstseed.Times(n); testing.Short() {
		n = min(n, short)
	}
	first := firstseed.Get()
	t.Logf("%d seeds from %d", n, first)
	out := make([]uint64, n)
	for i := range out {
		out[i] = first + uint64(i)
	}
	return out
}

// storm is the script of one history, and for how many machines it is.
func storm(seed uint64) (nodes int, script []string) {
	s := &stormer{Rand: rand.New(rand.NewPCG(seed, 0)), later: rand.New(rand.NewPCG(seed, 100))}
	return s.storm(func() {})
}

// unevenStorm is one of TestStormsRebalance: the policy's first look at a calm cluster comes
// ten minutes after the last fault.
func unevenStorm(seed uint64) (nodes int, script []string) {
	s := &stormer{Rand: rand.New(rand.NewPCG(seed, 1)), later: rand.New(rand.NewPCG(seed, 101))}
	return s.storm(func() {
		s.add("settings n1 rebalance=on")
		for i := range 9 { // so that n1 has six more than somebody, wherever the others are
			s.add("create n1 e%d replicas=%d", i+1, 1+s.IntN(2))
		}
		s.add("sleep 9m")
		if s.IntN(2) == 0 {
			s.add("evened n1 1+")
		} else {
			s.add("sleep 1m")
		}
		s.add("sleep %s", s.moment())
	})
}

// drainStorm is one of TestStormsDrain.
func drainStorm(seed uint64) (nodes int, script []string) {
	s := &stormer{Rand: rand.New(rand.NewPCG(seed, 2)), later: rand.New(rand.NewPCG(seed, 102)), drains: true}
	return s.storm(func() {})
}

// rollbackStorm is one of TestStormsRollback.
func rollbackStorm(seed uint64) (nodes int, script []string) {
	s := &stormer{Rand: rand.New(rand.NewPCG(seed, 3)), later: rand.New(rand.NewPCG(seed, 103)), snaps: map[string][]string{}}
	return s.storm(func() {})
}

// rollback takes a snapshot of a volume, or has it go back to one, mostly when something was
// written after that.
func (s *stormer) rollback(i int, v string) {
	taken := s.snaps[v]
	if len(taken) == 0 || s.IntN(3) == 0 {
		name := fmt.Sprintf("r%d", i)
		s.snaps[v] = append(taken, name)
		s.add("try snapshot %s %s %s", s.node(), name, v)
		s.add("sleep %s", s.moment())
		s.add("try append %s", v)
		return
	}
	s.add("try roll-back %s %s %s newer", s.node(), v, taken[s.IntN(len(taken))])
	if s.IntN(2) == 0 {
		s.add("sleep %s", s.moment())
	}
}

// drain is what an operator does who empties nodes, and thinks better of it: mostly another
// node than the last one, and two at a time as well.
func (s *stormer) drain() {
	n := s.node()
	switch s.IntN(5) {
	case 0, 1:
		s.add("try drain %s %s", s.node(), n)
	case 2:
		s.add("try drain %s %s keep", s.node(), n)
	case 3:
		s.add("try undrain %s %s", s.node(), n)
	case 4:
		s.add("try drain %s %s", s.node(), n)
		s.add("sleep %s", s.moment())
		s.add("try undrain %s %s", s.node(), n)
	}
}

// calm is the end of a storm with drains: one node stays drained, now that nothing is broken,
// and it ends without primaries; without copies, where the others have room for as many as
// are wanted.
func (s *stormer) calm(volumes []string) {
	n, keep := s.node(), s.IntN(2) == 0
	if keep {
		s.add("only-drained %s keep", n)
	} else {
		s.add("only-drained %s", n)
	}
	for _, v := range volumes {
		s.add("await %s ok", v)
	}
	if s.nodes > 3 && !keep {
		s.add("emptied %s %s all", s.node(), n)
	} else {
		s.add("emptied %s %s", s.node(), n)
	}
}

// storm has a prelude when all that is to go through it is there.
func (s *stormer) storm(prelude func()) (nodes int, script []string) {
	s.nodes = 3 + s.IntN(3)
	s.add("assume")
	automatic := s.IntN(8) > 0
	if automatic {
		s.add("fencers")
	}
	s.add("cluster")
	if automatic {
		s.add("mode automatic")
		for i := range s.nodes {
			s.add("lease n%d held", i+1)
		}
	}
	var volumes []string
	for i := range 1 + s.IntN(3) {
		v := fmt.Sprintf("v%d", i+1)
		volumes = append(volumes, v)
		kind, runs := s.IntN(3), s.node()
		used := v
		if s.nodes == 3 && kind < 2 && s.IntN(2) == 0 {
			// A container with two volumes, which go together; every node has both.
			w := fmt.Sprintf("w%d", i+1)
			volumes, used = append(volumes, w), v+" "+w
			s.add("create %s %s replicas=2", runs, v)
			s.add("create %s %s replicas=2", runs, w)
		} else {
			s.add("create %s %s replicas=%d%s", s.node(), v, 1+s.IntN(2), pick(s, "", "", "", " failover=manual", " max-loss=none"))
		}
		s.add("sleep 1s")
		port := 8001 + i
		switch kind {
		case 0:
			s.add("%s %s c%d %s", s.run(), runs, i+1, used)
			continue // without a route
		case 1:
			s.add("%s %s c%d %s", s.run(), runs, i+1, used)
			s.add("add-route %s %s %d:80/%s", s.node(), v, port, pick(s, "tcp", "tcp/cut", "http", "redis", "postgres"))
		case 2:
			s.add("run-routed %s c%d %s a.listen=%d a.port=80 a.mode=%s", runs, i+1, v, port, pick(s, "tcp", "http", "redis", "postgres"))
		}
		s.ports = append(s.ports, port)
	}
	for _, v := range volumes {
		s.add("append %s", v)
	}
	prelude()
	for i := range 4 + s.IntN(9) {
		v := volumes[s.IntN(len(volumes))]
		if len(s.ports) > 0 && s.IntN(3) > 0 {
			s.traffic()
		}
		if s.snaps != nil && s.IntN(3) > 0 {
			s.rollback(i, v)
		}
		s.ask()
		s.fault()
		s.ask()
		if s.drains && s.IntN(2) == 0 {
			s.drain()
		}
		if s.IntN(2) == 0 {
			s.add("sleep %s", s.moment())
		}
		s.add("try append %s", v)
		switch s.IntN(6) {
		case 0:
			s.add("try snapshot %s s%d %s", s.node(), i, v)
		case 1:
			s.add("try sync %s %s 5s", s.node(), v)
		case 2:
			s.add("try promote %s %s", s.node(), v)
		case 3:
			s.add("try move-following %s %s %s", s.node(), v, s.node())
		case 4:
			s.add("try migrate %s %s %s%s", s.node(), v, s.node(), pick(s, "", " force"))
		case 5:
			s.add("try migrate %s %s %s force", s.node(), v, s.node())
			s.add("sleep %s", s.moment())
			s.add("try call-off %s %s", s.node(), v)
		}
		s.add("sleep %s", s.moment())
		s.ask()
		s.add("try append %s", volumes[s.IntN(len(volumes))])
	}
	s.add("repair")
	if s.drains {
		s.calm(volumes)
	}
	for _, v := range volumes {
		s.add("await %s ok", v)
	}
	s.ask()
	for _, v := range volumes {
		s.add("lasting %s", v)
	}
	s.add("flowing")
	return s.nodes, s.script
}

// run is how a container that follows is begun: some are started ahead of their volumes.
func (s *stormer) run() string {
	if s.later.IntN(3) == 0 {
		return "run-ahead"
	}
	return "run-following"
}

// ask has clients' requests come through routes, or none.
func (s *stormer) ask() {
	for len(s.ports) > 0 && s.later.IntN(2) == 0 {
		s.add("try ask %d", s.ports[s.later.IntN(len(s.ports))])
	}
}

type stormer struct {
	*rand.Rand
	// later draws what histories got since: those that are known by their seeds replay with it.
	later  *rand.Rand
	nodes  int
	ports  []int // that routes listen on
	drains bool
	snaps  map[string][]string // by volume, for its rollbacks; nil: there are none
	script []string
}

func (s *stormer) add(format string, args ...any) {
	s.script = append(s.script, fmt.Sprintf(format, args...))
}

func pick(s *stormer, from ...string) string { return from[s.IntN(len(from))] }

func (s *stormer) node() string { return fmt.Sprintf("n%d", 1+s.IntN(s.nodes)) }

// moment is short as often as long: races are lost in milliseconds, leases in seconds.
func (s *stormer) moment() time.Duration {
	d := 5 * time.Millisecond
	for range s.IntN(14) {
		d *= 2
	}
	return d + time.Duration(s.Int64N(int64(d)))
}

// traffic is what clients, operators and proxies do to a route.
func (s *stormer) traffic() {
	n, port := s.node(), s.ports[s.IntN(len(s.ports))]
	switch s.IntN(8) {
	case 0, 1:
		s.add("try busy %s %d 10.0.0.9:1", n, port)
	case 2:
		s.add("try done %s %d", n, port)
	case 3:
		s.add("try pause-route %s %d", n, port)
	case 4:
		s.add("try resume-route %s %d", n, port)
	case 5, 6:
		s.add("proxy %s %s", n, pick(s, "down", "up", "lost"))
	case 7:
		s.add("%s %s", pick(s, "mute", "unmute"), n)
	}
}

// fault is one of those that machines have, or the end of one.
func (s *stormer) fault() {
	a, b := s.node(), s.node()
	switch s.IntN(16) {
	case 0, 1:
		s.add("try cut %s", a)
	case 2, 3:
		s.add("try boot %s", a)
	case 4:
		s.add("isolate %s", a)
	case 5:
		s.add("partition %s %s", a, b)
	case 6:
		s.add("one-way %s %s", a, b)
	case 7, 8:
		s.add("heal")
	case 9:
		s.add("try quit %s", a)
	case 10:
		s.add("try flockd %s", a)
	case 11:
		s.add("try freeze %s", a)
		s.add("sleep %s", s.moment())
		s.add("try thaw %s", a)
	case 12:
		s.add("try fencer %s %s", a, pick(s, "down", "down", "up"))
	case 13:
		s.add("try %s %s", pick(s, "suspend", "resume"), a)
	case 14:
		s.add("%s", pick(s, "slow "+a+" "+pick(s, "snapshot", "receive", "set", "mount", "unmount")+" "+s.moment().String(), "fast "+a))
	case 15:
		s.add("try %s leader", pick(s, "cut", "quit", "isolate", "freeze"))
	}
}
