package daemon

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

func dumpYAML(t *testing.T, v any) string {
	t.Helper()
	b, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// testState is a state with three nodes and one volume, on n1 with replicas on n2 and n3.
func testState(t *testing.T, change ...state.Command) *state.State {
	t.Helper()
	s, index := state.New(), uint64(0)
	commands := append([]state.Command{
		state.InitCluster{Cluster: state.Cluster{ID: "c"}, Node: state.Node{ID: "n1", Name: "n1"}},
		state.CreateToken{Token: state.Token{ID: "t", Expires: time.Unix(100, 0)}},
		state.AddNode{Node: state.Node{ID: "n2", Name: "n2"}, Token: "t"},
		state.AddNode{Node: state.Node{ID: "n3", Name: "n3"}, Token: "t"},
		state.CreateVolume{ID: "v", Name: "pg", Spec: volume.Spec{Replicas: 2},
			Placement: volume.Placement{Primary: "n1", Local: []volume.NodeID{"n2", "n3"}}},
	}, change...)
	for _, c := range commands {
		index++
		var res state.Result
		if s, res = state.Apply(s, index, state.Envelope{At: time.Unix(50, 0), Command: c}); res.Err != nil {
			t.Fatalf("%#v: %v", c, res.Err)
		}
	}
	return s
}

var confirmed = state.ConfirmCreate{ID: "v", Epoch: 1}

// The status tells of failovers for a day, the worst first, and never of more than a few.
func TestFailoverNotes(t *testing.T) {
	at := time.Unix(1000, 0)
	s := failOver(t, testState(t, confirmed), "v", "n2", at, &state.Missing{Loss: ptr(2 * time.Second)})
	notes := func(s *state.State, after time.Duration) []string {
		return failoverNotes(view{state: s, heard: func(volume.NodeID) (heard, bool) { return heard{}, false }}, at.Add(after))
	}
	one := "volume pg failed over from n1 to n2 at 1970-01-01T00:16:40Z: the last 2s may be missing, how many bytes is not known"
	if got := notes(s, noteFor-time.Second); len(got) != 1 || got[0] != one {
		t.Errorf("got %q, want %q", got, one)
	}
	if got := notes(s, noteFor); len(got) != 0 {
		t.Errorf("a day later: %q", got)
	}
	for i := range mostNotes {
		id := volume.ID(fmt.Sprint("w", i))
		for _, c := range []state.Command{
			state.CreateVolume{ID: id, Name: string(id), Placement: volume.Placement{Primary: "n1", Local: []volume.NodeID{"n2"}}}, state.ConfirmCreate{ID: id, Epoch: 1},
		} {
			var res state.Result
			if s, res = state.Apply(s, s.Index+1, state.Envelope{At: at, Command: c}); res.Err != nil {
				t.Fatal(res.Err)
			}
		}
		m := &state.Missing{Loss: ptr(time.Second), Bytes: ptr(int64(5 << 20))}
		if i == 7 {
			m = &state.Missing{}
		}
		s = failOver(t, s, id, "n2", at, m)
	}
	got := notes(s, time.Minute)
	if len(got) != mostNotes+1 || !strings.Contains(got[0], "volume w7 ") || !strings.HasSuffix(got[0], "nobody can say how much may be missing") ||
		got[1] != one || !strings.HasSuffix(got[2], "the last 1s may be missing, about 5MiB") || !strings.HasPrefix(got[mostNotes], "1 more volumes") {
		t.Errorf("of many:\n%s", strings.Join(got, "\n"))
	}
}

// A replica whose node is not heard of is never all well, whatever the primary said of
// it last, and counts as missing when the cluster's patience with it has ended.
func TestSilentReplica(t *testing.T) {
	s := testState(t, confirmed)
	tests := []struct {
		age    time.Duration
		want   api.Health
		reason string
	}{
		{5 * time.Second, api.HealthOK, ""},
		{4*time.Minute + time.Second, api.HealthLagging, "replica n3 is lost (unheard for 4m); it is replaced after 10m"},
		{10 * time.Minute, api.HealthDegraded, "replica n3 is lost (unheard for 10m) and counts as missing"},
	}
	for _, tt := range tests {
		v := view{state: s, stale: 10 * time.Second, heard: func(n volume.NodeID) (heard, bool) {
			h := heard{Report: volume.Report{Node: n, Applied: s.Index}}
			switch n {
			case "n1":
				h.Volumes = []volume.Status{{Volume: "v", Exists: true, Links: []volume.LinkStatus{
					{Replica: "n2", State: volume.LinkInSync}, {Replica: "n3", State: volume.LinkInSync},
				}}}
			case "n3":
				h.Age = tt.age
			}
			return h, true
		}}
		got := v.volume(s.Volume("v"))
		if got.Health != tt.want || got.Reason != tt.reason {
			t.Errorf("silent for %s: got %s (%s), want %s (%s)", tt.age, got.Health, got.Reason, tt.want, tt.reason)
		}
	}
}

// A replica that is cut off has a copy that is behind, which is not the same as too few
// copies: those are too few once its node is gone, too, or nobody has reached it for as long as
// a lost node is waited for, or nobody knows that it has one.
func TestCutReplica(t *testing.T) {
	s := testState(t, confirmed)
	at := time.Unix(10000, 0)
	pos := func(seq uint64) volume.Position { return volume.Position{Epoch: 1, Seq: seq, GUID: seq} }
	cut := func(acked uint64, lags bool, failing time.Duration) volume.LinkStatus {
		l := volume.LinkStatus{Replica: "n3", State: volume.LinkConnecting, Lags: lags, Failing: at.Add(-failing), Error: "no route"}
		if acked > 0 {
			l.Acked, l.CompleteAsOf = pos(acked), at.Add(-failing-2*time.Second)
		}
		return l
	}
	old := cut(4, false, time.Minute)
	old.Failing = time.Time{}
	slow := volume.LinkStatus{Replica: "n3", State: volume.LinkLagging, Lags: true, Acked: pos(4), CompleteAsOf: at.Add(-time.Hour)}
	const gone, tells = time.Minute, true
	tests := []struct {
		name   string
		link   volume.LinkStatus
		age    time.Duration // of what n3 said last
		tells  bool          // that it has a copy
		state  volume.LinkState
		health api.Health
		reason string
	}{
		{"behind, its node there", cut(4, true, 3*time.Minute), 0, false, volume.LinkLagging, api.HealthLagging,
			"n3 is behind by 3m3s and could not be brought up to date for 3m1s: no route"},
		{"behind, its node gone", cut(4, true, time.Minute), gone, false, volume.LinkLagging, api.HealthDegraded,
			"replica n3 is lost (unheard for 1m); it is replaced after 10m; n3 is behind by 1m3s and could not be brought up to date for 1m1s: no route"},
		{"behind, cut off for as long as a lost one is waited for", cut(4, true, 10*time.Minute), 0, false, volume.LinkLagging, api.HealthDegraded,
			"n3 is behind by 10m3s and could not be brought up to date for 10m1s: no route"},
		{"slow, but getting something", slow, 0, false, volume.LinkLagging, api.HealthLagging, "n3 is behind by 1h0m1s"},
		{"not behind, its node there", cut(5, false, time.Minute), 0, false, volume.LinkConnecting, api.HealthLagging, "n3 cannot be reached: no route"},
		{"not behind, its node gone", cut(5, false, time.Minute), gone, false, volume.LinkConnecting, api.HealthDegraded,
			"replica n3 is lost (unheard for 1m); it is replaced after 10m; n3 cannot be reached: no route"},
		{"never had a copy", cut(0, false, time.Minute), 0, false, volume.LinkConnecting, api.HealthDegraded, "n3 cannot be reached: no route"},
		{"not asked yet by this primary, and says that it has one", cut(0, false, time.Minute), 0, tells, volume.LinkLagging, api.HealthLagging,
			"n3 is behind and could not be brought up to date for 1m1s: no route"},
		{"not asked yet by this primary, and said so long ago", cut(0, false, time.Minute), gone, tells, volume.LinkConnecting, api.HealthDegraded,
			"replica n3 is lost (unheard for 1m); it is replaced after 10m; n3 cannot be reached: no route"},
		{"of the epoch before, up to where this one begins", cut(0, false, time.Minute), 0, tells, volume.LinkLagging, api.HealthLagging,
			"n3 is behind and could not be brought up to date for 1m1s: no route"},
		{"of the epoch before, with a tail of its own", cut(0, false, time.Minute), 0, tells, volume.LinkConnecting, api.HealthDegraded,
			"n3 cannot be reached: no route; its copy, of before this primary, is not compared yet"},
		{"of an epoch long ago", cut(0, false, time.Minute), 0, tells, volume.LinkConnecting, api.HealthDegraded,
			"n3 cannot be reached: no route; its copy, of before this primary, is not compared yet"},
		{"a primary of before", old, 0, false, volume.LinkConnecting, api.HealthDegraded, "n3 cannot be reached: no route"},
	}
	starts := map[string]volume.Position{ // where the epoch begins, in which n1 has one more
		"of the epoch before, up to where this one begins": pos(4),
		"of the epoch before, with a tail of its own":      pos(3),
		"of an epoch long ago":                             {Epoch: 2, Seq: 9, GUID: 9},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			vol, newest := *s.Volume("v"), pos(5)
			if start, ok := starts[tt.name]; ok {
				newest.Epoch, vol.Epoch, vol.Start = start.Epoch+1, start.Epoch+1, start
			}
			v := view{state: s, stale: 10 * time.Second, heard: func(n volume.NodeID) (heard, bool) {
				h := heard{Report: volume.Report{Node: n, At: at, Applied: s.Index}}
				switch n {
				case "n1":
					h.Age = time.Second
					h.Volumes = []volume.Status{{Volume: "v", Exists: true, Newest: newest, Links: []volume.LinkStatus{
						{Replica: "n2", State: volume.LinkInSync, Acked: newest, CompleteAsOf: at}, tt.link,
					}}}
				case "n3":
					h.Age = tt.age
					if tt.tells {
						h.Volumes = []volume.Status{{Volume: "v", Exists: true, Newest: pos(4)}}
					}
				}
				return h, true
			}}
			got := v.volume(&vol)
			if r := got.Replicas[1]; r.State != tt.state || got.Health != tt.health || got.Reason != tt.reason {
				t.Errorf("got %s, volume %s (%s), want %s, %s (%s)", r.State, got.Health, got.Reason, tt.state, tt.health, tt.reason)
			}
		})
	}
}

// What a primary said of a volume before it was confirmed is not held against it.
func TestHealthOfAnEarlierReport(t *testing.T) {
	s := testState(t, confirmed)
	v := view{state: s, stale: 10 * time.Second, heard: func(n volume.NodeID) (heard, bool) {
		r := volume.Report{Node: n, Applied: s.Volume("v").Changed - 1, Volumes: []volume.Status{{Volume: "v"}}}
		return heard{Report: r}, n == "n1"
	}}
	if got := v.volume(s.Volume("v")); got.Health != api.HealthUnknown {
		t.Errorf("got %s (%s), want %s", got.Health, got.Reason, api.HealthUnknown)
	}
}

// Health never says ok of what was not acknowledged, and tells unknown from bad.
func TestVolumeHealth(t *testing.T) {
	at := time.Unix(1000, 0)
	link := func(n volume.NodeID, st volume.LinkState) volume.LinkStatus {
		return volume.LinkStatus{Replica: n, State: st, CompleteAsOf: at.Add(-2 * time.Second)}
	}
	status := func(links ...volume.LinkStatus) *volume.Status {
		return &volume.Status{Volume: "v", Exists: true, Links: links}
	}
	inSync := []volume.LinkStatus{link("n2", volume.LinkInSync), link("n3", volume.LinkInSync)}
	tests := []struct {
		name   string
		state  *state.State
		status *volume.Status // of the primary; nil: it never reported
		age    time.Duration
		want   api.Health
		reason string
	}{
		{"all well", testState(t, confirmed), status(inSync...), time.Second, api.HealthOK, ""},
		{"being made", testState(t), &volume.Status{Volume: "v"}, 0, api.HealthCreating, "being made on n1"},
		{"never heard", testState(t, confirmed), nil, 0, api.HealthUnknown, "n1 has not reported yet"},
		{"report too old", testState(t, confirmed), status(inSync...), time.Minute, api.HealthUnknown, "n1 was last heard of 1m0s ago"},
		{"a replica behind", testState(t, confirmed), status(inSync[0], link("n3", volume.LinkLagging)), 0, api.HealthLagging, "n3 is behind"},
		{"a replica refuses", testState(t, confirmed), status(inSync[0], link("n3", volume.LinkRefused)), 0, api.HealthDegraded, "n3 refuses"},
		{"first copy", testState(t, confirmed), status(inSync[0], link("n3", volume.LinkSeeding)), 0, api.HealthSeeding, "first copy to n3"},
		{"a link not begun", testState(t, confirmed), status(inSync[0]), 0, api.HealthSeeding, "n3 is being asked"},
		{"dataset missing", testState(t, confirmed), &volume.Status{Volume: "v", Links: inSync}, 0, api.HealthFailed, "missing on n1"},
		{"disk not read yet", testState(t, confirmed), &volume.Status{}, 0, api.HealthUnknown, "n1 has not looked at it yet"},
		{"too few replicas", testState(t, confirmed, state.SetReplicas{ID: "v", Epoch: 1, Local: []volume.NodeID{"n2"}}),
			status(inSync[0]), 0, api.HealthDegraded, "1 of 2 local replicas"},
		{"moving", testState(t, confirmed, state.BeginHandoff{ID: "v", Epoch: 1, To: "n2", Attempt: "a"}),
			status(inSync...), 0, api.HealthMoving, "moving to n2"},
		{"worst of two", testState(t, confirmed, state.BeginHandoff{ID: "v", Epoch: 1, To: "n2", Attempt: "a"}),
			status(inSync[0], link("n3", volume.LinkLagging)), 0, api.HealthLagging, "moving to n2; n3 is behind"},
		{"in the trash", testState(t, confirmed, state.BeginDelete{ID: "v", Epoch: 1, Attempt: "a"}, state.CommitDelete{ID: "v", Epoch: 1, Attempt: "a"}),
			nil, 0, api.HealthTrash, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := view{state: tt.state, stale: 10 * time.Second, heard: func(n volume.NodeID) (heard, bool) {
				if n != "n1" || tt.status == nil {
					return heard{}, false
				}
				return heard{Report: volume.Report{Node: n, At: at, Applied: tt.state.Index, Volumes: []volume.Status{*tt.status}}, Age: tt.age}, true
			}}
			got := v.volume(tt.state.Volume("v"))
			if got.Health != tt.want || !strings.Contains(got.Reason, tt.reason) {
				t.Errorf("got %s (%s), want %s (%s)", got.Health, got.Reason, tt.want, tt.reason)
			}
			if got.Health == api.HealthOK {
				// Lag is by the primary's own clock, and the age of its report comes on top.
				if lag := got.Replicas[0].LagSeconds; lag == nil || *lag != 3 {
					t.Errorf("lag is %v, want 3 s", lag)
				}
			}
			if tt.age > 10*time.Second {
				for _, r := range got.Replicas {
					if r.State == volume.LinkInSync {
						t.Errorf("%s is said to be in sync by a report of %s ago", r.Node, tt.age)
					}
				}
			}
		})
	}
}

// Where a verify reads, each node's own word says how far it is; one whose version has no
// word for it is told from one that has not begun.
func TestReadings(t *testing.T) {
	s := testState(t, confirmed)
	mine := volume.Reading{Volume: "v", GUID: 7, Bytes: 1, Total: 2}
	tests := []struct {
		name    string
		reports map[volume.NodeID]*volume.Reading
		silent  volume.NodeID
		want    string
	}{
		{"nobody has read", map[volume.NodeID]*volume.Reading{"n1": {}, "n2": {}, "n3": {}}, "", "[]"},
		{"another volume is read", map[volume.NodeID]*volume.Reading{"n1": {Volume: "w", GUID: 9}, "n2": {}, "n3": {}}, "", "[]"},
		{"only old nodes", map[volume.NodeID]*volume.Reading{"n1": nil, "n2": nil, "n3": nil}, "", "[]"},
		{"one reads, one waits, one is old", map[volume.NodeID]*volume.Reading{"n1": &mine, "n2": {Volume: "w", GUID: 9, Bytes: 5}, "n3": nil}, "",
			"[{n1 true 7 1 2 false} {n2 true 0 0 0 false} {n3 false 0 0 0 false}]"},
		{"one is not heard of", map[volume.NodeID]*volume.Reading{"n1": &mine, "n2": &mine, "n3": {}}, "n2",
			"[{n1 true 7 1 2 false} {n3 true 0 0 0 false}]"},
	}
	for _, tt := range tests {
		v := view{state: s, stale: time.Minute, heard: func(id volume.NodeID) (heard, bool) {
			h := heard{Report: volume.Report{Node: id, Reading: tt.reports[id]}}
			if id == tt.silent {
				h.Age = time.Hour
			}
			return h, true
		}}
		if got := fmt.Sprint(v.readings(s.Volume("v"))); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// Every node that may write has its level in the status; a witness has none.
func TestFencing(t *testing.T) {
	node := func(name string, l *api.Lease) api.Node { return api.Node{NodeRef: api.NodeRef{Name: name}, Lease: l} }
	got := fencing([]api.Node{node("a", &api.Lease{Safety: volume.SafetyWatchdog}), node("b", &api.Lease{Safety: volume.SafetySoftware}),
		node("c", &api.Lease{}), node("d", nil), node("e", &api.Lease{Safety: volume.SafetyWatchdog})})
	want := map[string][]string{"watchdog": {"a", "e"}, "software": {"b"}, "none": {"c"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
