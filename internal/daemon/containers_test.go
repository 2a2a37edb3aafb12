package daemon

import (
	"reflect"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/placement"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// What people see of a container is what is recorded and what fresh reports say; the
// rest is unknown, not missing.
func TestContainersView(t *testing.T) {
	s := followCase(t, []string{
		"vol db@1 on=n1",
		"vol logs@1 on=n1",
		"vol mail@1 on=n2",
		"rec web n1 id=aa vols=db@1 run",
		"rec post n1 id=bb vols=logs@1,mail@1 run",
		"rec old n2 id=cc vols=mail@1 blocked",
	}).State
	for _, n := range []volume.NodeID{"n1", "n2", "n3", "n4"} {
		index := s.Index + 1
		var res state.Result
		s, res = state.Apply(s, index, state.Envelope{Command: state.CreateToken{Token: state.Token{ID: string(n), Expires: time.Unix(1, 0)}}})
		if res.Err == nil {
			s, res = state.Apply(s, index+1, state.Envelope{Command: state.AddNode{Node: state.Node{ID: n, Name: "node-" + string(n)}, Token: string(n)}})
		}
		if res.Err != nil {
			t.Fatal(res.Err)
		}
	}
	db := *s.Volume("db")
	db.Placement.Local = []volume.NodeID{"n2", "n3"}
	s, res := state.Apply(s, s.Index+1, state.Envelope{Command: state.SetReplicas{ID: "db", Epoch: 1, Local: db.Placement.Local}})
	if res.Err != nil {
		t.Fatal(res.Err)
	}
	key := s.RecordOf("web", []volume.ID{"db"}).RecordKey()
	reports := map[volume.NodeID]heard{
		"n1": {Report: volume.Report{Followed: []volume.Followed{{Record: key, State: "running", LacksImage: true}}}},
		"n2": {Report: volume.Report{Followed: []volume.Followed{{Record: key, LacksImage: true, Problem: "no room", Notes: []string{"a port is taken", "so"}}}}},
		"n4": {Report: volume.Report{Followed: []volume.Followed{{Record: key, Notes: []string{"a port is taken"}}}}},
		"n3": {Age: time.Hour, Report: volume.Report{Followed: []volume.Followed{{Record: key, LacksImage: true}}}},
	}
	v := view{state: s, stale: time.Minute, heard: func(id volume.NodeID) (heard, bool) { h, ok := reports[id]; return h, ok }}
	got := map[string]api.Container{}
	for _, c := range v.containers() {
		got[c.Name] = c
	}
	n := func(id volume.NodeID) api.NodeRef { return api.NodeRef{ID: id, Name: "node-" + string(id)} }
	want := map[string]api.Container{
		"web": {Name: "web", Volumes: []string{"db"}, Node: n("n1"), Run: true, State: "running",
			LacksImage: []api.NodeRef{n("n2")}, Notes: []string{"a port is taken", "so"}, Problems: []string{"node-n2: no room"}},
		"post": {Name: "post", Volumes: []string{"logs", "mail"}, Node: n("n1"), Run: true, State: "missing",
			Problems: []string{"its volumes have different primaries, so it can run nowhere: logs on node-n1, mail on node-n2"}},
		"old": {Name: "old", Volumes: []string{"mail"}, Node: n("n2"), State: "missing", Blocked: true},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	// What is done about volumes that came apart, or what that waits for, is told, too.
	for _, x := range []struct{ doing, why, want string }{
		{"they come together on node-n1", "", "; they come together on node-n1"},
		{"", "no room", "; to bring them together waits: no room"},
	} {
		v.reunions = func() []placement.Reunion {
			return []placement.Reunion{{Containers: s.ContainersOf("db"), Doing: "of another"}, {Containers: s.ContainersOf("logs"), Doing: x.doing, Why: x.why}}
		}
		for _, c := range v.containers() {
			if c.Name == "post" && c.Problems[0] != want["post"].Problems[0]+x.want {
				t.Errorf("got %q, want it to end with %q", c.Problems[0], x.want)
			}
		}
	}
	delete(reports, "n1")
	for _, c := range v.containers() {
		if c.Name == "web" && c.State != "unknown" {
			t.Errorf("its node is not heard, and it is %s", c.State)
		}
	}
}
