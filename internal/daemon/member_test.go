package daemon

import (
	"testing"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// What a node may say of another; what is about a volume hangs on the state as well.
func TestMayPropose(t *testing.T) {
	text, zone := "x", volume.Zone("z")
	tests := []struct {
		name    string
		command state.Command
		may     bool
	}{
		{"its own address", state.UpdateNode{ID: "me", Addr: &text}, true},
		{"another's address", state.UpdateNode{ID: "other", Addr: &text}, false},
		{"another's gossip address", state.UpdateNode{ID: "other", GossipAddr: &text}, false},
		{"another's name", state.UpdateNode{ID: "other", Name: &text}, false},
		{"another's zone", state.UpdateNode{ID: "other", Zone: &zone}, true},
		{"another's labels", state.UpdateNode{ID: "other", SetLabels: map[string]string{"a": "b"}}, true},
		{"a join", state.AddNode{}, false},
		{"a purge", state.PurgeVolume{}, false},
		{"replicas", state.SetReplicas{}, false},
		{"a move", state.BeginHandoff{}, false},
		{"a rollback", state.BeginRollback{}, false},
		{"a removal", state.BeginDelete{}, false},
		{"settings", state.SetSettings{}, false},
		{"a copy of its own", state.Tell{Kind: state.VolumeAside, Node: "me"}, true},
		{"a hook that failed here, of a volume that has gone since", state.Tell{Kind: state.VolumeHook, Node: "me"}, true},
		{"ports left out here", state.Tell{Kind: state.VolumePorts, Node: "me"}, true},
		{"a container that does not come up here", state.Tell{Kind: state.VolumeStarts, Node: "me"}, true},
		{"a container not started ahead here, of a volume that is yet to come", state.Tell{Kind: state.VolumePrestart, Node: "me"}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := (&member{}).mayPropose("me", tt.command); (err == nil) != tt.may {
				t.Errorf("got %v", err)
			}
		})
	}
}
