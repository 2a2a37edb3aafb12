package placement

import (
	"slices"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// A clone's copies take little beside their original, and all of it where that is not: a node that
// gets one needs the room, and those that have one do not.
func TestClaimOfClone(t *testing.T) {
	const gib = 1 << 30
	now := time.Now()
	vol := &state.Volume{ID: "00000000000000a1", Name: "dev", Phase: state.PhaseActive, Spec: volume.Spec{Size: 100 * gib},
		Placement: volume.Placement{Primary: "n1", Local: []volume.NodeID{"n2", "n3", "n4"}}, Clone: &state.CloneOf{Volume: "00000000000000a2"}}
	report := func(node volume.NodeID, has bool) Heard {
		r := &volume.Report{Node: node}
		if has {
			r.Volumes = []volume.Status{{Volume: vol.ID, Exists: true, Used: gib, Data: 500 * gib, Newest: volume.Position{Epoch: 1, Seq: 1, GUID: 7}}}
		}
		return Heard{Report: r, At: now}
	}
	begun := report("n4", true)
	begun.Report.Volumes[0].Newest = volume.Position{}
	v := newView([]*state.Node{{ID: "n1"}, {ID: "n2"}, {ID: "n3"}, {ID: "n4"}}, []*state.Volume{vol}, state.Settings{}, 1,
		map[volume.NodeID]Heard{"n1": report("n1", true), "n2": report("n2", true), "n3": report("n3", false), "n4": begun}, now)
	if got := v.claim(vol); got < 500*gib {
		t.Errorf("another copy needs %d GiB", got/gib)
	}
	for _, id := range []volume.NodeID{"n1", "n2"} {
		if got := v.Node(id).Promised; got > 2*gib {
			t.Errorf("promised on %s, which has a copy: %d GiB", id, got/gib)
		}
	}
	for _, id := range []volume.NodeID{"n3", "n4"} {
		if got := v.Node(id).Promised; got < 500*gib {
			t.Errorf("promised on %s, which has no whole copy: %d GiB", id, got/gib)
		}
	}
	vol.Clone = nil
	if got := v.claim(vol); got != 100*gib {
		t.Errorf("of what is no clone a copy needs %d GiB", got/gib)
	}
}

// Who makes room takes no clone off a node where that shares what it has: little would go free there,
// and elsewhere it may need all of it.
func TestRelieveOfClone(t *testing.T) {
	const gib = 1 << 30
	now := time.Now()
	vol := func(id volume.ID, clone *state.CloneOf) *state.Volume {
		return &state.Volume{ID: id, Name: string(id), Phase: state.PhaseActive, Clone: clone,
			Placement: volume.Placement{Primary: "n3", Local: []volume.NodeID{"n1"}}}
	}
	of := &state.CloneOf{Volume: "00000000000000b0"}
	hangs, full, plain := vol("00000000000000b1", of), vol("00000000000000b2", of), vol("00000000000000b3", nil)
	status := func(v *state.Volume, used, data int64) volume.Status {
		return volume.Status{Volume: v.ID, Exists: true, Used: used, Data: data, Newest: volume.Position{Epoch: 1, Seq: 1, GUID: 7}}
	}
	report := func(node volume.NodeID, free int64, copies ...volume.Status) Heard {
		return Heard{Report: &volume.Report{Node: node, Pool: volume.PoolInfo{Name: "tank", Health: "ONLINE", Size: 1000 * gib, Free: free}, Volumes: copies}, At: now}
	}
	copies := []volume.Status{status(hangs, gib, 200*gib), status(full, 50*gib, 50*gib), status(plain, 20*gib, 20*gib)}
	volumes := []*state.Volume{hangs, full, plain}
	v := newView([]*state.Node{{ID: "n1", Name: "n1"}, {ID: "n2", Name: "n2"}, {ID: "n3", Name: "n3"}}, volumes, state.Settings{}, 1,
		map[volume.NodeID]Heard{"n1": report("n1", 100*gib, copies...), "n2": report("n2", 1000*gib), "n3": report("n3", 500*gib, copies...)}, now)
	b := newBalance(v, func(*state.Volume) bool { return true })
	b.volumes = volumes
	before := b.share("n1").BytesAfter
	for b.relieve(b.share("n1")) {
	}
	var moved []volume.ID
	for _, m := range b.plan.Moves {
		moved = append(moved, m.Volume.ID)
	}
	if want := []volume.ID{full.ID, plain.ID}; !slices.Equal(moved, want) {
		t.Errorf("moved: %v, want %v", moved, want)
	}
	if freed := before - b.share("n1").BytesAfter; freed < 70*gib || freed > 100*gib {
		t.Errorf("%d GiB go free of 70", freed/gib)
	}
	// Where it is moved all the same, as people wish, no more goes free than it has.
	before = b.share("n1").BytesAfter
	b.add(Move{Volume: hangs, Role: volume.RoleReplica, From: "n1", To: "n2", Leaves: true})
	if freed := before - b.share("n1").BytesAfter; freed > 2*gib {
		t.Errorf("%d GiB go free of 1", freed/gib)
	}
}
