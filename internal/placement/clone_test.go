package placement

import (
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
		Placement: volume.Placement{Primary: "n1", Local: []volume.NodeID{"n2", "n3"}}, Clone: &state.CloneOf{Volume: "00000000000000a2"}}
	report := func(node volume.NodeID, has bool) Heard {
		r := &volume.Report{Node: node}
		if has {
			r.Volumes = []volume.Status{{Volume: vol.ID, Exists: true, Used: gib, Data: 500 * gib, Newest: volume.Position{Epoch: 1, Seq: 1, GUID: 7}}}
		}
		return Heard{Report: r, At: now}
	}
	v := newView([]*state.Node{{ID: "n1"}, {ID: "n2"}, {ID: "n3"}}, []*state.Volume{vol}, state.Settings{}, 1,
		map[volume.NodeID]Heard{"n1": report("n1", true), "n2": report("n2", true), "n3": report("n3", false)}, now)
	if got := v.claim(vol); got < 500*gib {
		t.Errorf("another copy needs %d GiB", got/gib)
	}
	for _, id := range []volume.NodeID{"n1", "n2"} {
		if got := v.Node(id).Promised; got > 2*gib {
			t.Errorf("promised on %s, which has a copy: %d GiB", id, got/gib)
		}
	}
	if got := v.Node("n3").Promised; got < 500*gib {
		t.Errorf("promised on n3, which has none: %d GiB", got/gib)
	}
	vol.Clone = nil
	if got := v.claim(vol); got != 100*gib {
		t.Errorf("of what is no clone a copy needs %d GiB", got/gib)
	}
}
