package daemon

import (
	"fmt"
	"testing"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// A link is found by its port, or by the name of a volume or of the container behind a route.
func TestMadeLinks(t *testing.T) {
	routed := state.UpdateSpec{ID: "v", Spec: volume.Spec{Replicas: 2, Ports: []volume.Route{
		{Listen: 5432, Port: 5432, Mode: volume.RoutePostgres}, {Listen: 9187, Port: 9187, Mode: volume.RouteTCP},
	}}}
	server := state.PutContainer{Container: state.Container{
		Name: "postgres", Node: "n1", ID: "c", Run: true, Key: "k", Sealed: []byte("s"), Volumes: []state.ContainerVolume{{ID: "v", Epoch: 1}},
	}}
	s := testState(t, confirmed, routed, state.SetDataKey{ID: "k"}, server)
	hosts := []string{"db:host-gateway", "pg:host-gateway", "postgres:host-gateway", "far:10.0.0.1"}
	for _, tt := range []struct{ label, want string }{
		{"db:5432", "db:5432 at [5432]"},
		{"pg", "pg at [5432 9187]"},
		{"postgres", "postgres at [5432 9187]"},
		{"pg:9187,db:5432", "pg:9187 at [9187]; db:5432 at [5432]"},
		{"db", "db at []: container web is linked to db, and no volume or container of that name has a route"},
		{"db:80", "db:80 at []: container web is linked to db:80, and no route listens on port 80"},
		{"other:5432", "other:5432 at [5432]: container web does not reach other:5432 through its node: it was made without --add-host other:host-gateway"},
		{"far:5432", "far:5432 at [5432]: container web does not reach far:5432 through its node: its far is 10.0.0.1 and not its node: it was made without --add-host far:host-gateway"},
		{"!", ` at []: container web: "!" in the label flocker.links is no NAME and no NAME:PORT, as in db:5432`},
	} {
		var got string
		for i, x := range madeLinks(s, []container.Linking{{Name: "web", Label: tt.label, Hosts: hosts}}) {
			if i > 0 {
				got += "; "
			}
			got += fmt.Sprintf("%s at %v", x.Link, x.Listen)
			if x.Problem != "" {
				got += ": " + x.Problem
			}
		}
		if got != tt.want {
			t.Errorf("%q: %s, want %s", tt.label, got, tt.want)
		}
	}
	both := madeLinks(s, []container.Linking{{Name: "b", Label: "pg", Hosts: hosts}, {Name: "a", Label: "pg", Hosts: hosts}})
	if len(both) != 2 || both[0].Container != "a" {
		t.Errorf("they are not in order: %+v", both)
	}
}
