package daemon

import (
	"testing"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// What the fencer killed, or an engine gave up, is not started beside the container that has taken
// its place, or is about to: that had two servers on one volume.
func TestSuperseded(t *testing.T) {
	web := func(node volume.NodeID, id string, epoch volume.Epoch) state.Command {
		return state.PutContainer{Container: state.Container{Name: "web", ID: id, Node: node, Key: "k", Run: true, Volumes: []state.ContainerVolume{{ID: "v", Epoch: epoch}}}}
	}
	s := testState(t, confirmed, state.SetDataKey{ID: "k"}, web("n1", "1", 1),
		state.BeginHandoff{ID: "v", Epoch: 1, Attempt: "a", To: "n2", Follow: true},
		state.CommitHandoff{ID: "v", Epoch: 1, Attempt: "a", Final: volume.Position{Epoch: 1, Seq: 1, GUID: 1}}, web("n2", "2", 2))
	name := s.Volume("v").Name
	for _, tt := range []struct {
		what, name, id string
		volume         string
		node           volume.NodeID
		want           bool
	}{
		{"the one that went away", "web", "1", name, "n1", true},
		{"one of that ID elsewhere", "web", "1", name, "n2", false},
		{"the one that runs", "web", "2", name, "n2", false},
		{"one that was made since", "web", "3", name, "n1", false},
		{"one that gave its name away", "web.flocker-old", "4", name, "n2", true},
		{"one of another volume", "web", "1", "other", "n1", false},
	} {
		c := container.Use{Container: tt.id, Name: tt.name, Volumes: []container.Mount{{Volume: tt.volume}}}
		if got := superseded(s, tt.node, c); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.what, got, tt.want)
		}
	}
}
