package lease

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

const (
	nodeA = volume.NodeID("0a")
	nodeB = volume.NodeID("0b")
)

func at(seconds float64) Moment { return Moment(seconds * float64(time.Second)) }

func TestProfiles(t *testing.T) {
	for name, timers := range map[string]Timers{"default": Default, "fast": Fast, "lab": Lab} {
		if err := timers.Check(0); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What people read of the profiles is made from them.
func TestWaits(t *testing.T) {
	got, lab := Waits(), Lab.Promote
	if want := "default after 20s, fast after 12s, lab after 1m40s"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	t.Cleanup(func() { Lab.Promote = lab })
	if Lab.Promote = 90 * time.Second; !strings.HasSuffix(Waits(), "lab after 1m30s") {
		t.Errorf("with a lab of 90 s: %q", Waits())
	}
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		change   func(*Timers)
		election time.Duration
		want     string
	}{
		{func(t *Timers) {}, 4200 * time.Millisecond, ""},
		{func(t *Timers) { t.Fence = 0 }, 0, "all of them must be set"},
		{func(t *Timers) { t.Promote = 18 * time.Second }, 0, "could make a second writer"},
		{func(t *Timers) { t.TTL = 13 * time.Second }, 0, "could make a second writer"},
		{func(t *Timers) { t.Fence = 8 * time.Second }, 0, "need 22.27"},
		{func(t *Timers) { t.Call = 2 * time.Second }, 0, "the next one follows after 2s"},
		{func(t *Timers) { t.Heartbeat = 5 * time.Second }, 0, "when two beats of 5s are lost"},
		{func(t *Timers) {}, 8 * time.Second, "does not outlast a change of leader of 8s"},
	} {
		timers := Default
		c.change(&timers)
		err := timers.Check(c.election)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v, want %q", timers, err, c.want)
		}
	}
}

func TestHolder(t *testing.T) {
	h := NewHolder()
	held := func(s float64, want bool) {
		t.Helper()
		if got := h.Held(at(s)); got != want {
			t.Errorf("at %vs: held %v, want %v", s, got, want)
		}
	}
	if b := h.Beat(at(0)); !b.Want || b.No != 0 {
		t.Errorf("a node without a lease sends %+v", b)
	}
	h.Grant(1, Default)
	b := h.Beat(at(1))
	held(1, false) // granted, and not begun before an answer
	h.Answer(at(2), 1, b.Nonce)
	held(10.9, true) // it runs from the beat, not from the answer
	h.Answer(at(2), 1, b.Nonce)
	late := h.Beat(at(5))
	held(11, false)
	h.Answer(at(11.5), 1, late.Nonce)
	held(12, false) // never revived
	if again := h.Beat(at(12)); !again.Want {
		t.Error("a node whose lease is over does not ask for another")
	}
	h.Grant(1, Default)
	held(12, false)
	h.Grant(2, Default)
	h.Answer(at(13), 2, late.Nonce) // a beat of the lease before
	held(13, false)
	b = h.Beat(at(13))
	h.Answer(at(13.1), 1, b.Nonce) // an answer for the lease before
	held(13.1, false)
	b = h.Beat(at(14))
	h.Answer(at(14.1), 2, b.Nonce)
	held(14.1, true)
	h.GiveUp(at(15))
	held(15, false)
	if until, ok := h.Deadline(); !ok || until != at(15) {
		t.Errorf("given up at 15s, and the deadline is %v %v", until, ok)
	}
}

func TestHolderRestored(t *testing.T) {
	h := NewHolder()
	h.Grant(3, Default)
	b := h.Beat(at(1))
	h.Answer(at(1.2), 3, b.Nonce)
	again := NewHolder()
	again.Restore(h.Save())
	if !again.Held(at(10)) || again.Held(at(11)) {
		t.Error("a restarted process does not go on with its lease")
	}
	again.Answer(at(11), 3, b.Nonce)
	if again.Held(at(11)) {
		t.Error("an answer to a beat of the process before counts")
	}
}

func TestHolderRevoked(t *testing.T) {
	h := NewHolder()
	h.Grant(1, Default)
	b := h.Beat(at(1))
	h.Revoke(at(2), 1)
	h.Answer(at(3), 1, b.Nonce)
	if h.Held(at(3)) {
		t.Error("a revoked lease begins")
	}
	if _, ok := h.Deadline(); ok {
		t.Error("a lease that never began has a deadline")
	}
}

// While failover is armed, a node that writes already goes on under its first lease of
// the round, by the timers of that round, from when it has read of it.
func TestHolderTakes(t *testing.T) {
	h := NewHolder()
	h.Grant(1, Lab)
	b := h.Beat(at(0))
	h.Answer(at(1), 1, b.Nonce)
	h.Take(at(10), 2, Default)
	if until, ok := h.Deadline(); !ok || until != at(20) || !h.Held(at(19.9)) {
		t.Errorf("taken at 10s, the lease ends at %v", until)
	}
	h.Answer(at(11), 1, b.Nonce) // of the lease before
	b = h.Beat(at(12))
	h.Answer(at(13), 2, b.Nonce)
	h.Take(at(15), 2, Default)
	if until, _ := h.Deadline(); until != at(22) {
		t.Errorf("renewed at 12s, and taken again, the lease ends at %v", until)
	}
	if h.Held(at(22)) {
		t.Error("a lease that was taken does not end")
	}
	again := NewHolder()
	again.Restore(h.Save())
	again.Take(at(23), 2, Default)
	if again.Held(at(23)) {
		t.Error("a lease that is over is taken again")
	}
	again.Take(at(24), 3, Default)
	if !again.Held(at(33.9)) || again.Held(at(34)) {
		t.Error("a lease of another number is not taken")
	}
}

func TestKeeper(t *testing.T) {
	k := NewKeeper(Default, at(100))
	ticked := 100.0
	lost := func(s float64, want ...volume.NodeID) {
		t.Helper()
		for ; ticked+1 < s; ticked++ {
			k.Tick(at(ticked + 1))
		}
		ticked = s
		if got := k.Lost(at(s)); !slices.Equal(got, want) {
			t.Errorf("at %vs: lost %v, want %v", s, got, want)
		}
	}
	k.Know(at(100), nodeA, 1, false, 0)
	k.Know(at(100), nodeB, 4, false, 0)
	lost(110)
	if k.Answer(at(110), at(109), nodeA, 2) || k.Answer(at(110), at(109), "0c", 1) || !k.Answer(at(110), at(109), nodeA, 1) {
		t.Error("answers")
	}
	if heard := k.Heard(); len(heard) != 1 || heard[nodeA] != 1 {
		t.Errorf("heard %v", heard)
	}
	if k.Revoke(at(110), nodeB, 4) {
		t.Error("a lease that may still run is revoked")
	}
	lost(119.9)
	lost(120, nodeB) // a new leader waits in full for everybody
	lost(128.9, nodeB)
	lost(129, nodeA, nodeB) // from the arrival of the last beat answered
	if !k.Answer(at(129), at(129), nodeA, 1) {
		t.Error("a beat that comes at the last moment is not answered")
	}
	lost(129, nodeB)
	if k.Revoke(at(129), nodeB, 3) || !k.Revoke(at(129), nodeB, 4) {
		t.Error("revoke")
	}
	if k.Answer(at(129.5), at(129.2), nodeB, 4) {
		t.Error("a beat is answered while its lease is being revoked")
	}
	k.Know(at(130), nodeB, 5, false, 0)
	if _, ok := k.Heard()[nodeB]; ok {
		t.Error("a node is heard under a lease that it has sent no beat of")
	}
	if !k.Answer(at(130), at(130), nodeB, 5) {
		t.Error("a new number is not answered")
	}
	k.Stopped(nodeB, 4)
	lost(130.5)
	k.Stopped(nodeB, 5)
	lost(131, nodeB)
	if k.Answer(at(131), at(131), nodeB, 5) {
		t.Error("a beat is answered after proof that its lease is over")
	}
}

// A leader that was stopped has beats to read before it may take anybody for dead.
func TestKeeperAfterAGap(t *testing.T) {
	k := NewKeeper(Default, at(0))
	k.Know(at(0), nodeA, 1, false, 0)
	if lost := k.Lost(at(60)); lost != nil {
		t.Errorf("after a gap, lost: %v", lost)
	}
	if left, ok := k.Remaining(at(60), nodeA); !ok || left != Default.Promote {
		t.Errorf("after a gap it waits %v more", left)
	}
}

func TestKeeperWaits(t *testing.T) {
	k := NewKeeper(Default, at(0))
	k.Know(at(0), nodeA, 1, false, 30*time.Second)
	k.Know(at(0), nodeB, 1, false, Never)
	for s := 1.0; s <= 29; s++ {
		k.Tick(at(s))
	}
	if lost := k.Lost(at(29.9)); lost != nil {
		t.Errorf("lost too early: %v", lost)
	}
	if lost := k.Lost(at(30)); !slices.Equal(lost, []volume.NodeID{nodeA}) {
		t.Errorf("lost %v", lost)
	}
	k.Stopped(nodeB, 1) // by proof, it is
	if lost := k.Lost(at(30)); len(lost) != 2 {
		t.Errorf("lost %v", lost)
	}
}

// A later leader does not answer for what an earlier one has revoked.
func TestKeeperKnowsRevocations(t *testing.T) {
	k := NewKeeper(Default, at(0))
	k.Know(at(0), nodeA, 1, true, 0)
	if k.Answer(at(1), at(1), nodeA, 1) {
		t.Error("a beat of a revoked lease is answered")
	}
}
