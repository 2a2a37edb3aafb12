package replicate

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// What a receiver does about an offer by the space of its pool.
func TestRoom(t *testing.T) {
	dataDriven(t, "room.txt", func(in map[string]string) string {
		bytes := func(key string) int64 {
			n, err := volume.ParseSize(cmp.Or(in[key], "0"))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		r := room{size: bytes("size"), free: bytes("free")}
		if in["free"] == "" {
			return "keep " + volume.RoughSize(r.reserve())
		}
		now := time.Unix(1000, 0)
		var m misfit
		for range number(t, cmp.Or(in["misfits"], "0")) {
			m = m.another(bytes("had"), now)
		}
		since, err := time.ParseDuration(cmp.Or(in["since"], "0s"))
		if err != nil {
			t.Fatal(err)
		}
		return cmp.Or(r.turnsAway(m, now.Add(since)), "receive")
	})
}

// A volume whose stream does not fit into a replica's pool neither takes the reserve
// nor keeps what it got: other volumes go on. It is not sent again and again, and goes
// on at once when there is space.
func TestStreamThatDoesNotFit(t *testing.T) {
	for _, seed := range []bool{true, false} {
		inBubble(t, "a b", func(w *world) {
			a, b := w.node("a"), w.node("b")
			const capacity = 16 << 20
			b.host.SetCapacity("tank", capacity)
			ids := w.many(2)
			big, small := ids[0], ids[1]
			data := blob(rand.New(rand.NewPCG(31, 31)), 2*capacity)
			inSync := func(id volume.ID) func() bool {
				return func() bool { return a.linkOf(id, "b").State == volume.LinkInSync }
			}
			if seed {
				a.fill(big, "f", data)
				w.spread(ids, "b")
			} else {
				w.spread(ids, "b")
				w.waitFor("seeded", inSync(big))
				a.fill(big, "f", data)
			}
			least := int64(capacity)
			for i := range 60 {
				a.fill(small, "f", fmt.Sprint(i))
				time.Sleep(10 * time.Second)
				d, err := b.host.Dataset(context.Background(), testRoot)
				w.must(err)
				least = min(least, d.Available)
			}
			w.waitFor("the small one goes on", inSync(small))
			if l := a.linkOf(big, "b"); l.State != volume.LinkRefused || !strings.Contains(l.Error, "out of space") {
				t.Errorf("the big one is %s: %q", l.State, l.Error)
			}
			if least < capacity/16 {
				t.Errorf("%d bytes were free at one time, %d are to stay free", least, capacity/16)
			}
			tries := a.count(func(ev Event) bool { s, ok := ev.(StreamEnded); return ok && s.Volume == big && s.Err != nil })
			if tries == 0 || tries > 5 {
				t.Errorf("it was tried %d times in ten minutes", tries)
			}
			w.tidy()

			b.host.SetCapacity("tank", 1<<30)
			began := time.Now()
			w.waitFor("the big one goes on", inSync(big))
			if took := time.Since(began); took > time.Minute {
				t.Errorf("it went on only after %v", took)
			}
			b.eng().mu.Lock()
			defer b.eng().mu.Unlock()
			if len(b.eng().misfits) > 0 {
				t.Error("what fits by now is remembered as what does not")
			}
		})
	}
}

// What somebody else takes of a pool is not what a stream was tried with: as soon as it is given back, the
// stream is tried again.
func TestRoomTakenByOthers(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.pair("one")
		b.host.SetCapacity("tank", 256<<20)
		room := func() room {
			b.eng().mu.Lock()
			defer b.eng().mu.Unlock()
			return b.eng().room
		}
		w.waitFor("b to know how large its pool is", func() bool { return room().size > 128<<20 })
		b.host.SetCapacity("tank", 4<<20)
		a.write("big", blob(rand.New(rand.NewPCG(4, 4)), 8<<20))
		w.waitFor("it does not fit", func() bool { return a.link("b").State == volume.LinkRefused })
		time.Sleep(5 * time.Second) // long enough that no retry of the link is what is waited for, and less than the volume is turned away for
		b.host.SetCapacity("tank", 256<<20)
		began := time.Now()
		w.waitFor("in sync", w.inSync("a", "b"))
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("it went on %v after there was room again", took)
		}
	})
}

// had is what a stream was tried with, by what was free before, what of it came, and what is free then.
func TestMisfitHad(t *testing.T) {
	for _, tt := range []struct {
		name               string
		m                  misfit
		before, came, left int64
		want               int64
	}{
		{"nobody else took any", misfit{}, 100, 95, 5, 100},
		{"zfs has not counted all that came", misfit{}, 100, 95, 40, 100},
		{"somebody had taken it before", misfit{}, 100, 3, 1, 4},
		{"somebody gave some back meanwhile", misfit{}, 100, 95, 80, 100},
		{"again, asked just before: what comes may take more than its bytes", misfit{}.another(100, time.Unix(1000, 0)), 100, 45, 5, 100},
	} {
		if got := tt.m.had(tt.before, tt.came, tt.left); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}
