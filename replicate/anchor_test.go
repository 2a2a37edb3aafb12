package replicate

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAnchors(t *testing.T) {
	dataDriven(t, "anchor.txt", func(in map[string]string) string {
		a := anchoring{anchor: guid(number(t, in["anchor"])), goal: guid(number(t, in["goal"]))}
		a.snaps, _ = parseSnaps(t, in["snaps"])
		for _, word := range strings.FieldsFunc(in["replicas"], func(r rune) bool { return r == ',' }) {
			text, reached := strings.CutSuffix(word, "+")
			n := number(t, text)
			a.replicas = append(a.replicas, foothold{acked: guid(n), txg: n, reached: reached})
		}
		anchor, goal := a.next()
		return fmt.Sprintf("anchor %d, goal %d", anchor, goal)
	})
}

// An anchor is let go when there are not two any more to have it in common: it would
// pin all that is overwritten since.
func TestAnchorIsLetGo(t *testing.T) {
	inBubble(t, "a b c", func(w *world) {
		a := w.node("a")
		a.create()
		w.assign(1, "a", "b", "c")
		anchored := func() bool {
			e := a.eng()
			e.mu.Lock()
			defer e.mu.Unlock()
			c := e.copies[testVol]
			if c == nil {
				return false
			}
			k := e.kept(testVol, c, time.Now())
			return c.anchor != 0 && k.stay[c.anchor]
		}
		w.waitFor("anchored", anchored)
		w.partition("a", "c", true)
		a.write("f", "1") // only who has something to send misses the other at once
		w.waitFor("let go once c is away", func() bool { return !anchored() })
		w.partition("a", "c", false)
		w.waitFor("anchored again", anchored)
		w.assign(1, "a")
		w.waitFor("let go without replicas", func() bool { return !anchored() })
	})
}

// Two replicas that are reached by turns, each skipping what the other gets, still
// have something in common: after a failover the one catches up from the other.
func TestInterleaved(t *testing.T) {
	inBubble(t, "a b c", func(w *world) {
		a, b, ctx := w.node("a"), w.node("b"), context.Background()
		a.create()
		w.assign(1, "a", "b", "c")
		w.waitFor("in sync", func() bool { return w.inSync("a", "b")() && w.inSync("a", "c")() })
		for i := range 60 {
			to, other := "b", "c"
			if i%2 == 1 {
				to, other = other, to
			}
			w.partition("a", other, true)
			w.partition("a", to, false)
			a.write("f", fmt.Sprint(i))
			_, err := a.eng().Flush(ctx, testVol, w.node(to).id)
			w.must(err)
			synctest.Wait()
		}
		w.partition("a", "b", true)
		w.partition("a", "c", true)
		common := 0
		for _, s := range b.snapshots() {
			if has(w.node("c"), s.Name) {
				common++
			}
		}
		if common == 0 {
			t.Error("the replicas have no snapshot in common")
		}
		a.stop()
		w.assign(2, "b", "c")
		w.must(b.eng().Settle(ctx, testVol))
		b.write("g", "1")
		w.waitFor("c follows", w.inSync("b", "c"))
		if b.streams(kindFull) > 0 {
			t.Error("a full copy was needed")
		}
	})
}
