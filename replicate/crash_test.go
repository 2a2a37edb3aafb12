package replicate

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// stage sets up a world of nodes a and b, lets something happen in it, and checks what
// must hold afterwards. A failure says what it was.
type stage func(t *testing.T, what string, f func(w *world))

// onFakes is the stage of this machine.
func onFakes(t *testing.T, what string, f func(w *world)) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Log(what)
		}
	}()
	inBubble(t, "a b", f)
}

// crashStory is something that engines do step by step. A node is struck at one of
// its commands while act runs; then act must still come to its end.
type crashStory struct {
	name  string
	setup func(w *world)
	act   func(w *world)
	check func(w *world)
}

var crashStories = []crashStory{
	{
		name:  "seed",
		setup: func(w *world) { w.node("a").create(); w.node("a").write("f", "one") },
		act:   func(w *world) { w.assign(1, "a", "b") },
	},
	{
		name:  "a clone's first copy",
		setup: func(w *world) { w.originally(300<<10, 100<<10) },
		act: func(w *world) {
			w.assignBoth(Origin{originalVol, w.node("a").guidOf("s"), true}, true, "a", "b")
		},
		check: func(w *world) {
			if got, want := w.node("b").hangs(), w.node("b").original()+"@s"; got != want {
				w.Errorf("it hangs on %q, want %q", got, want)
			}
		},
	},
	{
		name: "increment",
		setup: func(w *world) {
			w.node("a").create()
			w.assign(1, "a", "b")
			w.waitFor("seeded", w.inSync("a", "b"))
		},
		act: func(w *world) { w.rewrite("f", "two") },
	},
	{
		name: "increments over a user's snapshot",
		setup: func(w *world) {
			w.node("a").create()
			w.assign(1, "a", "b")
			w.waitFor("seeded", w.inSync("a", "b"))
		},
		act: func(w *world) {
			w.rewrite("f", "two")
			w.userSnapshot("kept")
			w.rewrite("f", "three")
		},
		check: func(w *world) {
			w.waitFor("the user's snapshot", func() bool { return has(w.node("b"), "kept") })
		},
	},
	{
		name: "prune",
		setup: func(w *world) {
			w.node("a").create()
			w.assign(1, "a", "b")
			w.waitFor("seeded", w.inSync("a", "b"))
			for i := range keepNewest + keepAbove + pruneBatch - 2 {
				w.rewrite("f", fmt.Sprint(i))
				w.waitFor("in sync", w.inSync("a", "b"))
			}
		},
		act: func(w *world) {
			for i := range 4 {
				w.rewrite("g", fmt.Sprint(i))
				w.waitFor("in sync", w.upInSync("a", "b"))
			}
		},
		check: func(w *world) {
			w.waitFor("pruned", func() bool {
				return w.node("a").count(pruned) > 0 && w.node("b").count(pruned) > 0
			})
		},
	},
	{
		name: "epoch raise over a partial stream",
		setup: func(w *world) {
			w.node("a").create()
			w.assign(1, "a", "b")
			w.waitFor("seeded", w.inSync("a", "b"))
			w.cutAt("sender", 300<<10)
			w.node("a").write("g", randomData)
			w.waitFor("partial", func() bool { return w.isCut() && w.partial("b") })
		},
		act: func(w *world) {
			w.assign(2, "a", "b")
			w.partition("a", "b", false)
		},
	},
	{
		name: "fork",
		setup: func(w *world) {
			a, b := w.node("a"), w.node("b")
			a.create()
			a.write("f", "one")
			w.assign(1, "a", "b")
			w.waitFor("in sync", w.inSync("a", "b"))
			// a goes on alone; b is promoted.
			w.partition("a", "b", true)
			before := len(a.snapshots()) // of a real pool it may be in one before it can be counted
			a.write("tail", "snapshotted")
			w.waitFor("a tail", func() bool { return len(a.snapshots()) > before })
			a.assign()
			a.write("tail2", "surely not snapshotted")
			w.assign(2, "b", "a")
			b.write("g", "two")
		},
		act:   func(w *world) { w.partition("a", "b", false) },
		check: func(w *world) { w.hasAside(w.node("a"), "tail", "tail2") },
	},
	{
		name: "rollback",
		setup: func(w *world) {
			w.setupRollback()
			w.node("a").assign() // the volume is in an epoch that this copy is not in yet
		},
		act: func(w *world) {
			a := w.node("a")
			w.waitFor("rolled back", func() bool { return !w.down("a") && a.goBack(2) == nil })
			w.assign(2, "a", "b")
		},
		check: func(w *world) {
			w.checkRollback("last")
			for _, name := range []string{"a", "b"} {
				w.hasAside(w.node(name), "tail", "tail2")
			}
		},
	},
	{
		name: "shelve",
		setup: func(w *world) {
			for _, name := range []string{"a", "b"} {
				w.node(name).create()
				w.node(name).write("of-"+name, "it")
			}
		},
		act:   func(w *world) { w.assign(1, "a", "b") },
		check: func(w *world) { w.hasAside(w.node("b"), "of-b") },
	},
}

func pruned(ev Event) bool { _, ok := ev.(Pruned); return ok }

// rewrite changes a file of the volume, whenever its node is up.
func (w *world) rewrite(file, data string) {
	w.Helper()
	w.waitFor("write "+file, func() bool { return !w.down(w.primary()) && w.node(w.primary()).tryWrite(file, data) == nil })
}

// userSnapshot takes one, whenever the node is up.
func (w *world) userSnapshot(name string) {
	w.Helper()
	w.waitFor("snapshot", func() bool {
		n := w.node(w.primary())
		if has(n, name) {
			return true // taken, though its node fell before it was said
		}
		return n.eng().TakeSnapshot(context.Background(), []volume.ID{testVol}, name) == nil
	})
}

// primary is the name of the node that was last made it.
func (w *world) primary() string {
	best, epoch := "", volume.Epoch(0)
	for name, n := range w.nodes {
		n.mu.Lock()
		for _, a := range n.table {
			if a.Role == volume.RolePrimary && a.Epoch >= epoch {
				best, epoch = name, a.Epoch
			}
		}
		n.mu.Unlock()
	}
	return best
}

// upInSync is inSync for nodes that may be down for a while.
func (w *world) upInSync(primary, replica string) func() bool {
	return func() bool { return !w.down(primary) && !w.down(replica) && w.inSync(primary, replica)() }
}

// partial says whether a node holds a part of a stream.
func (w *world) partial(name string) bool {
	n := w.node(name)
	list, err := n.disk.Datasets(context.Background(), n.root())
	w.must(err)
	for _, d := range list {
		if d.ResumeToken != "" {
			return true
		}
	}
	return false
}

// strikes runs a story once for each command of each node, which is struck there,
// until the story comes to its end unharmed.
func (s crashStory) strikes(t *testing.T, on stage, blows []blow) (runs int) {
	for _, who := range []string{"a", "b"} {
		for _, b := range blows {
			for _, after := range []bool{false, true} {
				for nth, happened := 1, true; happened; nth++ {
					what := fmt.Sprintf("%s: %s on %s at its command %d, after the command's work: %v", s.name, b, who, nth, after)
					on(t, what, func(w *world) { happened = s.strike(w, who, nth, after, b) })
					runs++
				}
			}
		}
	}
	return runs
}

func (s crashStory) strike(w *world, who string, nth int, after bool, b blow) (happened bool) {
	w.settle() // both have read their pools
	s.setup(w)
	kept := w.keepsakes()
	asides := w.node("a").count(setAside) + w.node("b").count(setAside)
	struck := w.node(who).strikeAt(nth, after, b)
	s.act(w)
	primary := w.primary()
	replica := map[string]string{"a": "b", "b": "a"}[primary]
	w.waitFor("in sync", w.upInSync(primary, replica))
	w.rewrite("last", "write")
	w.waitFor("in sync", w.upInSync(primary, replica))
	if s.check != nil {
		s.check(w)
	} else if n := w.node("a").count(setAside) + w.node("b").count(setAside) - asides; n > 0 {
		w.Errorf("%d copies set aside", n)
	}
	w.tidy()
	w.stillThere(kept)
	happened = struck()
	w.node(who).unstrike()
	return happened
}

// keepsakes are the users' snapshots of all nodes: "node guid" to name.
func (w *world) keepsakes() map[string]string {
	w.Helper()
	found := map[string]string{}
	for name, n := range w.nodes {
		list, err := n.disk.Snapshots(context.Background(), n.pool, true)
		w.must(err)
		for _, s := range list {
			if _, _, engine := volume.ParseSnapshotName(s.Name); !engine {
				found[fmt.Sprint(name, " ", s.GUID)] = s.FullName()
			}
		}
	}
	return found
}

// stillThere: a user's snapshot may be in a copy that was set aside, but not gone.
func (w *world) stillThere(before map[string]string) {
	w.Helper()
	now := w.keepsakes()
	for key, name := range before {
		if now[key] == "" {
			w.Errorf("%s of node %.1s is gone", name, key)
		}
	}
}

// TestStrikes: flockd is killed, the machine loses power or the pool fails, at every
// command of either node, before and after it has done its work. Everything goes on
// from there: copies alike, nothing lost, nothing left half done.
func TestStrikes(t *testing.T) {
	blows := []blow{powerless, killed, failing}
	if testing.Short() {
		blows = blows[:1]
	}
	for _, s := range crashStories {
		t.Run(s.name, func(t *testing.T) {
			began := time.Now()
			runs := s.strikes(t, onFakes, blows)
			t.Logf("%d strikes in %v", runs, time.Since(began).Round(time.Millisecond))
		})
	}
}

// killAgainAndAgain kills the flockd of one node at its first command, then at the
// second of its next life, and so on, until a seed, or an increment each time, gets
// through; that of a primary always comes to its next command.
func killAgainAndAgain(w *world, who string, increments bool) {
	a, b := w.node("a"), w.node("b")
	a.create()
	a.write("f", "one")
	if increments {
		w.assign(1, "a", "b")
		w.waitFor("seeded", w.inSync("a", "b"))
	}
	kills := 0
	for happened := true; happened && kills < 20; {
		struck := w.node(who).strikeAt(kills+1, false, killed)
		switch {
		case increments:
			a.write("f", fmt.Sprint("life ", kills))
		case kills == 0:
			w.assign(1, "a", "b")
		}
		w.waitFor("killed, or through", func() bool { return struck() || w.upInSync("a", "b")() })
		// The next is planned while it is down, so that nothing gets through in between.
		if happened = struck(); happened {
			kills++
		}
	}
	w.node(who).unstrike()
	w.waitFor("in sync", w.upInSync("a", "b"))
	w.Logf("killed %d times", kills)
	if kills < 4 {
		w.Errorf("killed only %d times", kills)
	}
	if n := a.streams(kindFull); n > 1 {
		w.Errorf("%d full streams", n)
	}
	if n := b.count(setAside); n > 0 {
		w.Errorf("%d copies set aside", n)
	}
	w.tidy()
}

func TestKilledAgainAndAgain(t *testing.T) {
	for _, who := range []string{"a", "b"} {
		onFakes(t, "seed killed on "+who, func(w *world) { killAgainAndAgain(w, who, false) })
		onFakes(t, "increments killed on "+who, func(w *world) { killAgainAndAgain(w, who, true) })
	}
}
