package daemon

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/cluster"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// What is shown of a route: from the state, joined with what the nodes' proxies say.
func TestRoutesShown(t *testing.T) {
	spec := volume.Spec{Replicas: 2, Ports: []volume.Route{{Listen: 80, Port: 8080, Mode: volume.RouteHTTP}}}
	routed := state.UpdateSpec{ID: "v", Spec: spec}
	client := api.RouteSession{Node: api.NodeRef{ID: "n2", Name: "n2"}, Client: "10.0.0.9:1", Why: "a lock"}
	owner := api.NodeRoute{Listen: 80, Server: "172.17.0.2:8080", Sessions: 2, Parked: 1, Pinned: []api.RouteSession{client}}
	tests := []struct {
		name string
		then []state.Command
		said map[volume.NodeID][]api.NodeRoute
		want string
	}{
		{"nobody answers", nil, nil, "unknown on n1 0/0/0 unheard n1,n2,n3"},
		{"all answer; one client is told of twice and counts once", nil, map[volume.NodeID][]api.NodeRoute{
			"n1": {owner}, "n2": {{Listen: 80, Sessions: 3, Held: 1, Pinned: []api.RouteSession{client}}}, "n3": {{Listen: 80, Problem: "it is taken"}},
		}, "open on n1 5/1/1 pinned 10.0.0.9:1@n2 problem n3: it is taken"},
		{"containers of several nodes are linked to it", nil, map[volume.NodeID][]api.NodeRoute{
			"n1": {{Listen: 80, Server: "x:1"}}, "n2": {{Listen: 80, Linked: []api.RouteLink{{Container: "a"}, {Container: "b"}}}}, "n3": {{Listen: 81, Linked: []api.RouteLink{{Container: "c"}}}},
		}, "open on n1 0/0/0 linked a@n2 linked b@n2"},
		{"no server runs", nil, map[volume.NodeID][]api.NodeRoute{"n1": {{Listen: 80}}, "n2": nil, "n3": nil}, "waiting on n1 0/0/0"},
		{"paused by nobody", nil, map[volume.NodeID][]api.NodeRoute{"n1": {{Listen: 80, Server: "x:1", Paused: true}}, "n2": nil, "n3": nil}, "waiting on n1 0/0/0"},
		{"paused by an operator", []state.Command{state.PauseRoute{Listen: 80, Pause: true}},
			map[volume.NodeID][]api.NodeRoute{"n1": {owner}, "n2": nil, "n3": nil}, "paused on n1 2/1/0 pinned 10.0.0.9:1@n2"},
		{"its server is on its way", []state.Command{state.BeginHandoff{ID: "v", Epoch: 1, To: "n2", Attempt: "a", Follow: true}},
			map[volume.NodeID][]api.NodeRoute{"n1": {owner}, "n2": nil, "n3": nil}, "moving on n1 2/1/0 pinned 10.0.0.9:1@n2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := testState(t, append([]state.Command{confirmed, routed}, tt.then...)...)
			v := view{state: s, heard: func(volume.NodeID) (heard, bool) { return heard{}, false }}
			out := v.routes(tt.said)
			if len(out.Routes) != 1 || out.Routes[0].Route != spec.Ports[0] || out.Routes[0].Volume != "pg" {
				t.Fatalf("got %+v, want the one route", out.Routes)
			}
			r := out.Routes[0]
			got := fmt.Sprintf("%s on %s %d/%d/%d", r.State, r.Owner.Name, r.Sessions, r.Parked, r.Held)
			for _, p := range r.Pinned {
				got += fmt.Sprintf(" pinned %s@%s", p.Client, p.Node.Name)
			}
			for _, p := range r.Problems {
				got += " problem " + p
			}
			for _, l := range r.Linked {
				got += fmt.Sprintf(" linked %s@%s", l.Container, l.Node.Name)
			}
			if len(out.Unheard) > 0 {
				var names []string
				for _, n := range out.Unheard {
					names = append(names, n.Name)
				}
				got += " unheard " + strings.Join(names, ",")
			}
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
	if out := (view{state: testState(t, confirmed)}).routes(nil); len(out.Routes)+len(out.Unheard) > 0 {
		t.Errorf("without routes: got %+v, want nothing", out)
	}
}

// What only the setting rebalance brings about is known by its commands.
func TestHasRebalance(t *testing.T) {
	on := state.Settings{Rebalance: state.RebalanceOn}
	for _, tt := range []struct {
		c    state.Command
		want bool
	}{
		{state.SetSettings{Settings: on}, true}, {state.SetSettings{Was: &on}, true}, {state.SetSettings{Was: &state.Settings{}}, false},
		{state.Tell{Kind: state.VolumeEvened}, true}, {state.Tell{Kind: state.VolumeHeld}, false}, {state.StartMigration{}, false},
	} {
		if got := hasRebalance(tt.c); got != tt.want {
			t.Errorf("%#v: %t", tt.c, got)
		}
	}
	for kind, want := range map[string]bool{state.VolumeJoins: true, state.VolumeWaits: true, state.VolumeHeld: false} {
		if got := isNews(state.Tell{Kind: kind}); got != want {
			t.Errorf("%s: %t", kind, got)
		}
	}
}

// In an upgrade, node after node, nothing tells of routes before the last one knows what
// they are: it would have to stop.
func TestUnaware(t *testing.T) {
	at := time.Unix(100, 0)
	says := func(n volume.NodeID, at time.Time, routes bool) cluster.Received {
		return cluster.Received{Report: volume.Report{Node: n, At: at, Routes: routes}}
	}
	tests := []struct {
		name string
		said []cluster.Received
		want string
	}{
		{"all know", []cluster.Received{says("n1", at, true), says("n2", at, true), says("n3", at, true)}, ""},
		{"one does not", []cluster.Received{says("n1", at, true), says("n2", at, true), says("n3", at, false)}, "n3"},
		{"one was never heard of", []cluster.Received{says("n1", at, true), says("n2", at, true)}, ""},
		{"one is only known of", []cluster.Received{says("n2", time.Time{}, false)}, ""},
		{"this one, which has not reported yet", []cluster.Received{says("n1", at, false)}, ""},
		{"one that was removed", []cluster.Received{says("n9", at, false)}, ""},
	}
	s := testState(t)
	for _, tt := range tests {
		if got := unaware(s, tt.said, "n1", knowsRoutes); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
	older := []cluster.Received{says("n1", at, true), says("n2", at, true)}
	older[0].Report.Hosts = true
	if got := unaware(s, older, "n1", knowsHosts); got != "n2" {
		t.Errorf("of names one does not know: got %q, want n2", got)
	}
	older[0].Report.Routes, older[0].Report.Loss, older[1].Report.Routes = true, true, true
	lacks := func(said []cluster.Received) func(func(volume.Report) bool) string {
		return func(of func(volume.Report) bool) string { return unaware(s, said, "n1", of) }
	}
	promote := state.Promote{ID: "v", To: "n2", Loss: time.Second, Note: "it may lack 1 s", Missing: &state.Missing{}}
	bare := promote
	bare.Missing = nil
	if got, err := understood(promote, lacks(older)); err != nil || !reflect.DeepEqual(got, bare) {
		t.Errorf("a promotion for a node that does not know what may be missing: got %+v, %v", got, err)
	}
	starts := state.Tell{Volume: "v", Kind: state.VolumeStarts}
	if got, err := understood(starts, lacks(older)); volume.CodeOf(err) != volume.CodeRefused {
		t.Errorf("of a container that does not come up, to a node that does not know the event: got %+v, %v", got, err)
	}
	older[1].Report.Starts = true
	if got, err := understood(starts, lacks(older)); err != nil || !reflect.DeepEqual(got, starts) {
		t.Errorf("to nodes that know it: got %+v, %v", got, err)
	}
	older[1].Report.Loss = true
	if got, err := understood(promote, lacks(older)); err != nil || !reflect.DeepEqual(got, promote) {
		t.Errorf("a promotion for nodes that know it: got %+v, %v", got, err)
	}
	clone := state.CreateVolume{Clone: &state.CloneOf{GUID: 7}}
	if got, err := understood(clone, lacks(older)); volume.CodeOf(err) != volume.CodeRefused {
		t.Errorf("a clone, to a node that does not know what that is: got %+v, %v", got, err)
	}
	if got, err := understood(state.CreateVolume{}, lacks(older)); err != nil || !reflect.DeepEqual(got, state.CreateVolume{}) {
		t.Errorf("a volume that is no clone, to the same: got %+v, %v", got, err)
	}
	older[1].Report.Clones = true
	if got, err := understood(clone, lacks(older)); err != nil || !reflect.DeepEqual(got, clone) {
		t.Errorf("a clone, to nodes that know it: got %+v, %v", got, err)
	}
	for _, c := range []state.CreateVolume{{Adopt: "tank/pgdata"}, {Spec: volume.Spec{}.MakeWhole()}} {
		older[1].Report.Import = false
		if got, err := understood(c, lacks(older)); volume.CodeOf(err) != volume.CodeRefused {
			t.Errorf("%+v, to a node that does not know what that is: got %+v, %v", c, got, err)
		}
		older[1].Report.Import = true
		if got, err := understood(c, lacks(older)); err != nil || !reflect.DeepEqual(got, c) {
			t.Errorf("%+v, to nodes that know it: got %+v, %v", c, got, err)
		}
	}
	held := state.Settings{Hold: 30 * time.Second}
	for _, knows := range []bool{false, true} {
		older[1].Report.Hold = knows
		for _, tt := range []struct {
			c     state.SetSettings
			tells bool // of the setting hold
		}{
			{state.SetSettings{Settings: held}, true}, {state.SetSettings{Was: &held}, true}, {state.SetSettings{Settings: held, Was: &held}, true},
			{state.SetSettings{Settings: state.Settings{AsideRetention: time.Hour}, Was: &state.Settings{}}, false}, {state.SetSettings{}, false},
		} {
			got, err := understood(tt.c, lacks(older))
			if refused := volume.CodeOf(err) == volume.CodeRefused; refused != (tt.tells && !knows) || err == nil && !reflect.DeepEqual(got, tt.c) {
				t.Errorf("%+v, for a node that knows the setting hold (%t): got %+v, %v", tt.c, knows, got, err)
			}
		}
	}
	for _, most := range []state.Settings{{HoldService: 50}, {HoldNode: 50}} {
		for _, knows := range []bool{false, true} {
			older[1].Report.HoldMost = knows
			for _, c := range []state.SetSettings{{Settings: most}, {Was: &most}} {
				got, err := understood(c, lacks(older))
				if refused := volume.CodeOf(err) == volume.CodeRefused; refused == knows || err == nil && !reflect.DeepEqual(got, c) {
					t.Errorf("%+v, for a node that knows how many may wait (%t): got %+v, %v", c, knows, got, err)
				}
			}
		}
	}
	older[1].Report.HoldMost = false
	if _, err := understood(state.SetSettings{Settings: held, Was: &held}, lacks(older)); err != nil {
		t.Errorf("another setting, for a node that does not know how many may wait: %v", err)
	}
	back, end := state.BeginRollback{ID: "v", Attempt: "a"}, state.CommitRollback{ID: "v", Attempt: "a"}
	for _, knows := range []bool{false, true} {
		older[1].Report.Rollback = knows
		if got, err := understood(back, lacks(older)); (volume.CodeOf(err) == volume.CodeRefused) == knows || err == nil && !reflect.DeepEqual(got, back) {
			t.Errorf("a rollback, for a node that knows what that is (%t): got %+v, %v", knows, got, err)
		}
		if got, err := understood(end, lacks(older)); err != nil || !reflect.DeepEqual(got, end) {
			t.Errorf("the end of a rollback that has begun: got %+v, %v", got, err)
		}
	}
	hold := state.HoldSnapshot{ID: "v", GUID: 1, Name: "before"}
	for _, knows := range []bool{false, true} {
		older[1].Report.HoldSnapshots = knows
		if got, err := understood(hold, lacks(older)); (volume.CodeOf(err) == volume.CodeRefused) == knows || err == nil && !reflect.DeepEqual(got, hold) {
			t.Errorf("a snapshot that is held, for a node that knows of that (%t): got %+v, %v", knows, got, err)
		}
	}
	opens := state.OpenRoutes{ID: "v", Epoch: 2, Ago: 1, Arrival: state.ArrivalTimes{Mount: time.Second}}
	for _, knows := range []bool{false, true} {
		older[1].Report.Arrivals = knows
		want := opens
		if !knows {
			want.Arrival = state.ArrivalTimes{}
		}
		if got, err := understood(opens, lacks(older)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("what an arrival took, for a node that knows of that (%t): got %+v, %v", knows, got, err)
		}
	}
	restored := state.CreateVolume{ID: "w", Adopt: "v-1", Descends: []volume.ID{"v"}}
	for _, knows := range []bool{false, true} {
		older[1].Report.Descends = knows
		want := restored
		if !knows {
			want.Descends = nil
		}
		if got, err := understood(restored, lacks(older)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("whose history a volume goes on with, for a node that knows of that (%t): got %+v, %v", knows, got, err)
		}
	}
	name := volume.Spec{Ports: []volume.Route{{Listen: 81, Port: 80, Mode: volume.RouteHTTP}, {Listen: 80, Port: 80, Mode: volume.RouteHTTP, Host: "a.example.org"}}}
	plain := volume.Spec{Ports: name.Ports[:1]}
	for _, tt := range []struct {
		c    state.Command
		want bool
	}{
		{state.CreateVolume{Spec: name}, true}, {state.UpdateSpec{Spec: name}, true}, {state.PauseRoute{Listen: 80, Name: "a.example.org"}, true},
		{state.CreateVolume{Spec: plain}, false}, {state.UpdateSpec{Spec: plain}, false}, {state.PauseRoute{Listen: 80}, false}, {state.OpenRoutes{}, false},
	} {
		if got := hasHosts(tt.c); got != tt.want {
			t.Errorf("%#v has names: %v, want %v", tt.c, got, tt.want)
		}
	}
	routed := volume.Spec{Ports: []volume.Route{{Listen: 80, Port: 80, Mode: volume.RouteHTTP}}}
	times := state.MoveTimes{Held: time.Second}
	for _, tt := range []struct{ c, want state.Command }{
		{state.CreateVolume{}, state.CreateVolume{}}, {state.CreateVolume{Spec: routed}, nil},
		{state.UpdateSpec{}, state.UpdateSpec{}}, {state.UpdateSpec{Spec: routed}, nil},
		{state.CreateVolume{Spec: volume.Spec{Prefer: []string{"n1"}}}, nil}, {state.UpdateSpec{Spec: volume.Spec{Avoid: []string{"n1"}}}, nil},
		{state.CreateVolume{Spec: volume.Spec{Zone: "a"}}, nil},
		{state.PauseRoute{}, nil}, {state.OpenRoutes{}, nil},
		{state.Tell{Kind: state.VolumeDiffers}, state.Tell{Kind: state.VolumeDiffers}}, {state.Tell{Kind: state.VolumeHook}, nil}, {state.Tell{Kind: state.VolumePorts}, nil}, {state.Tell{Kind: state.VolumePrestart}, nil},
		{state.StartMigration{To: "n2", MaxPause: 1}, state.StartMigration{To: "n2"}},
		{state.BeginHandoff{To: "n2", MaxPause: 1}, state.BeginHandoff{To: "n2"}},
		{state.CommitHandoff{Epoch: 3, Times: times}, state.CommitHandoff{Epoch: 3}},
	} {
		got, ok := forOlder(tt.c)
		if ok != (tt.want != nil) || ok && !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%#v for an older node: got %#v, %v; want %#v", tt.c, got, ok, tt.want)
		}
	}
}
