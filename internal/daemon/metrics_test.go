package daemon

import (
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/proxy"
	"github.com/flocker-io/flocker/replicate"
)

const metricsDoc = "../../docs/METRICS.md"

// The document lists every metric as it is. UPDATE writes the list anew.
func TestMetricsAreDocumented(t *testing.T) {
	var table strings.Builder
	table.WriteString("| Name | Type | Labels | Meaning |\n| --- | --- | --- | --- |\n")
	for _, m := range NewMetrics("test").All() {
		labels := strings.Join(m.Labels, ", ")
		if labels == "" {
			labels = "none"
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", m.Name, m.Type, labels, m.Help)
	}
	b, err := os.ReadFile(metricsDoc)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, _ := strings.Cut(string(b), "| Name |")
	_, after, _ := strings.Cut(rest, "\n\n")
	want := before + table.String() + "\n" + after
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(metricsDoc, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got := string(b); got != want {
		t.Errorf("docs/METRICS.md is not what there is; UPDATE=1 go test -run %s writes it. It has to be:\n%s", t.Name(), want)
	}
}

// What is listed is what is served: same names, same labels.
func TestMetricsAreWhatIsRegistered(t *testing.T) {
	m := NewMetrics("test")
	ch := make(chan *prometheus.Desc, 1000)
	m.reg.Describe(ch)
	nodeGauges{}.Describe(ch)
	close(ch)
	var got []string
	for d := range ch {
		if text := d.String(); strings.Contains(text, `"flocker_`) {
			got = append(got, text)
		}
	}
	var want []string
	for _, x := range m.All() {
		want = append(want, prometheus.NewDesc(x.Name, x.Help, x.Labels, nil).String())
		if kind := x.Type == "counter"; kind != strings.HasSuffix(x.Name, "_total") {
			t.Errorf("%s is a %s", x.Name, x.Type)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("registered:\n%s\nlisted:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Every gauge has its value when there is something to say.
func TestGauges(t *testing.T) {
	const self, other = volume.NodeID("00000000000000000000000000000001"), volume.NodeID("00000000000000000000000000000002")
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := state.New()
	for _, c := range []state.Command{
		state.InitCluster{Cluster: state.Cluster{ID: "c"}, Node: state.Node{ID: self, Name: "n1"}},
		state.CreateToken{Token: state.Token{ID: "t", Expires: now.Add(time.Hour)}},
		state.AddNode{Node: state.Node{ID: other, Name: "n2", KeyHash: []byte("2")}, Token: "t"},
		state.CreateVolume{ID: "000000000000000a", Name: "pg", Spec: volume.DefaultSpec(), Placement: volume.Placement{Primary: self, Local: []volume.NodeID{other}}},
		state.ConfirmCreate{ID: "000000000000000a", Epoch: volume.NewEpoch(0, 1)},
		state.CreateVolume{ID: "000000000000000b", Name: "log", Spec: volume.DefaultSpec(), Placement: volume.Placement{Primary: other, Local: []volume.NodeID{self}}},
		state.ConfirmCreate{ID: "000000000000000b", Epoch: volume.NewEpoch(0, 1)},
	} {
		var res state.Result
		if s, res = state.Apply(s, s.Index+1, state.Envelope{At: now, Command: c}); res.Err != nil {
			t.Fatal(res.Err)
		}
	}
	s = failOver(t, s, "000000000000000a", self, now, &state.Missing{Loss: ptr(1500 * time.Millisecond), Bytes: ptr(int64(4096))})
	rep := volume.Report{
		Node: self, Applied: s.Index, At: now, Pool: volume.PoolInfo{Name: "tank", Size: 100, Free: 60},
		Asides: []volume.Aside{{Name: "a", Used: 5}, {Name: "b", Used: 6}},
		Lease:  volume.LeaseReport{No: 3, Held: true, Left: 7 * time.Second, Safety: volume.SafetySysrq},
		Volumes: []volume.Status{
			{Volume: "000000000000000a", Role: volume.RolePrimary, Exists: true, Used: 7, Snapshots: 9, Links: []volume.LinkStatus{{
				Replica: other, State: volume.LinkSending, CompleteAsOf: now.Add(-3 * time.Second), LagBytes: 8, Rate: 11, Limit: 12, Streamed: 13,
			}}},
			{Volume: "000000000000000b", Role: volume.RoleReplica, Exists: true, Snapshots: 4},
		},
	}
	v := view{state: s, stale: 10 * time.Second, heard: func(id volume.NodeID) (heard, bool) { return heard{Report: rep}, id == self }}
	got := map[string]float64{}
	set := func(g gauge, value float64, labels ...string) {
		if len(labels) != len(g.Labels) {
			t.Errorf("%s has labels %q, want %q", g.Name, labels, g.Labels)
		}
		got[strings.Join(append([]string{g.Name}, labels...), " ")] = value
	}
	v.measure(self, true, true, set)
	measureRoutes(proxy.Status{Routes: []proxy.RouteStatus{{Listen: 80, Name: "a.example.org", Mode: proxy.HTTP, Sessions: 5, Parked: 4, Held: 3, HeldEver: 17, Pinned: make([]proxy.Session, 2), Paused: now}}}, set)
	want := map[string]float64{
		"flocker_raft_leader": 1, "flocker_raft_quorum": 1, "flocker_raft_applied_index": float64(s.Index),
		"flocker_pool_size_bytes tank": 100, "flocker_pool_free_bytes tank": 60, "flocker_asides": 2, "flocker_aside_bytes": 11,
		"flocker_copy_snapshots pg primary": 9, "flocker_copy_snapshots log replica": 4, "flocker_volume_used_bytes pg": 7,
		"flocker_volume_last_failover_timestamp_seconds pg": float64(now.Unix()), "flocker_volume_last_failover_loss_seconds pg": 1.5, "flocker_volume_last_failover_loss_bytes pg": 4096,
		"flocker_volume_state pg ok": 1, "flocker_volume_state pg lagging": 0,
		"flocker_volume_state log unknown": 1, // nothing is heard of its primary, and this node leads
		"flocker_lease_held":               1, "flocker_lease_left_seconds": 7, "flocker_failover_automatic": 0, "flocker_failover_lost": 0,
		"flocker_fencer_safety sysrq": 1, "flocker_fencer_safety watchdog": 0, "flocker_fencer_safety none": 0,
		"flocker_links sending": 1, "flocker_links in-sync": 0, "flocker_links refused": 0,
		"flocker_replica_lag_seconds pg n2": 3, "flocker_replica_pending_bytes pg n2": 8,
		"flocker_replica_last_success_timestamp_seconds pg n2": float64(now.Unix() - 3),
		"flocker_replica_stream_bytes_per_second pg n2":        11, "flocker_replica_limit_bytes_per_second pg n2": 12,
		"flocker_replica_streamed_bytes_total pg n2":      13,
		"flocker_route_connections 80 http a.example.org": 5, "flocker_route_parked 80 http a.example.org": 4, "flocker_route_waiting 80 http a.example.org": 3,
		"flocker_route_held_total 80 http a.example.org": 17,
		"flocker_route_pinned 80 http a.example.org":     2, "flocker_route_paused 80 http a.example.org": 1,
	}
	for name, value := range want {
		if x, ok := got[name]; !ok || x != value {
			t.Errorf("%s is %v (there: %v), want %v", name, x, ok, value)
		}
	}
	for _, g := range gauges {
		if !slices.ContainsFunc(slices.Collect(keys(got)), func(k string) bool { return k == g.Name || strings.HasPrefix(k, g.Name+" ") }) {
			t.Errorf("%s has no value", g.Name)
		}
	}
}

// Failover that is off is lost where it was on and is meant to be, for as long as that lasts.
func TestFailoverLostGauge(t *testing.T) {
	for _, c := range []struct {
		agreed         string
		automatic, off float64
	}{
		{"", 0, 0},
		{"arm", 0, 0},
		{"arm grant n1 complete n1", 1, 0},
		{"arm grant n1 complete n1 disarm", 0, 1},
		{"arm grant n1 complete n1 disarm failover=manual", 0, 0},
		{"arm grant n1 complete n1 disarm arm", 0, 0},
	} {
		v := view{state: leaseState(t, strings.Fields(c.agreed)), heard: func(volume.NodeID) (heard, bool) { return heard{}, false }}
		got := map[string]float64{}
		v.measure(nodeID("n1"), false, true, func(g gauge, value float64, _ ...string) { got[g.Name] = value })
		if got["flocker_failover_automatic"] != c.automatic || got["flocker_failover_lost"] != c.off {
			t.Errorf("after %q: automatic %v, lost %v", c.agreed, got["flocker_failover_automatic"], got["flocker_failover_lost"])
		}
	}
}

// Of a volume whose primary is silent the leader tells, and only it.
func TestSilentPrimaryGauge(t *testing.T) {
	s := testState(t, confirmed)
	v := s.Volume("v")
	for _, silent := range []bool{false, true} {
		for _, leads := range []bool{false, true} {
			got := map[string]float64{}
			look := view{state: s, stale: 10 * time.Second, heard: func(id volume.NodeID) (heard, bool) {
				h := heard{Report: volume.Report{Node: id, Applied: s.Index}}
				if silent && id == v.Placement.Primary {
					h.Age = time.Minute
				}
				return h, true
			}}
			look.measure("n3", leads, true, func(g gauge, value float64, labels ...string) {
				if len(labels) > 0 && labels[0] == v.Name {
					got[strings.Join(append([]string{g.Name}, labels[1:]...), " ")] = value
				}
			})
			if want := silent && leads; want && (got["flocker_volume_state unknown"] != 1 || len(got) != len(healths)) || !want && len(got) > 0 {
				t.Errorf("silent %v, leads %v: %v", silent, leads, got)
			}
		}
	}
}

// A volume without a primary is unavailable, which its leader tells, and only it.
func TestElectingGauge(t *testing.T) {
	s, res := state.Apply(testState(t, confirmed), 100, state.Envelope{At: time.Unix(60, 0), Command: state.BeginElection{ID: "v", Epoch: testState(t, confirmed).Volume("v").Epoch, Fenced: true}})
	if res.Err != nil {
		t.Fatal(res.Err)
	}
	name := s.Volume("v").Name
	for _, self := range []volume.NodeID{"n1", "n2", "n3"} {
		for _, leads := range []bool{false, true} {
			got := map[string]float64{}
			v := view{state: s, heard: func(volume.NodeID) (heard, bool) { return heard{}, false }}
			v.measure(self, leads, true, func(g gauge, value float64, labels ...string) {
				if len(labels) > 0 && labels[0] == name {
					got[strings.Join(append([]string{g.Name}, labels[1:]...), " ")] = value
				}
			})
			if leads && (got["flocker_volume_state unavailable"] != 1 || len(got) != len(healths)) || !leads && len(got) > 0 {
				t.Errorf("%s, leads %v: %v", self, leads, got)
			}
		}
	}
}

func ptr[T any](v T) *T { return &v }

// failOver takes a volume from its primary and gives it to another node, or back to it.
func failOver(t *testing.T, s *state.State, id volume.ID, to volume.NodeID, at time.Time, m *state.Missing) *state.State {
	t.Helper()
	for _, c := range []state.Command{
		state.BeginElection{ID: id, Epoch: s.Volume(id).Epoch, Fenced: true},
		state.Promote{ID: id, Epoch: s.Volume(id).Epoch + 1, To: to, Start: volume.Position{Epoch: s.Volume(id).Epoch, Seq: 5, GUID: 9}, Missing: m},
	} {
		var res state.Result
		if s, res = state.Apply(s, s.Index+1, state.Envelope{At: at, Command: c}); res.Err != nil {
			t.Fatal(res.Err)
		}
	}
	return s
}

// There is no loss where there was no failover, none in bytes where that is not known, and
// an infinite one where nobody can bound it; of a removed volume there is nothing.
func TestLossGauges(t *testing.T) {
	s := testState(t, confirmed)
	at := time.Unix(60, 0)
	losses := func(s *state.State, self volume.NodeID) map[string]float64 {
		got := map[string]float64{}
		v := view{state: s, heard: func(volume.NodeID) (heard, bool) { return heard{}, false }}
		v.measure(self, false, false, func(g gauge, value float64, _ ...string) {
			if strings.Contains(g.Name, "last_failover") {
				got[strings.TrimPrefix(g.Name, "flocker_volume_last_failover_")] = value
			}
		})
		return got
	}
	before := s
	open := failOver(t, s, "v", "n2", at, &state.Missing{})
	gone := open
	for _, c := range []state.Command{
		state.BeginDelete{ID: "v", Epoch: gone.Volume("v").Epoch, Attempt: "a"}, state.CommitDelete{ID: "v", Epoch: gone.Volume("v").Epoch, Attempt: "a"},
	} {
		var res state.Result
		if gone, res = state.Apply(gone, gone.Index+1, state.Envelope{At: at, Command: c}); res.Err != nil {
			t.Fatal(res.Err)
		}
	}
	for _, tt := range []struct {
		name string
		s    *state.State
		self volume.NodeID
		want map[string]float64
	}{
		{"none", before, "n1", map[string]float64{}},
		{"not bounded", open, "n2", map[string]float64{"timestamp_seconds": 60, "loss_seconds": math.Inf(1)}},
		{"on another node", open, "n1", map[string]float64{}},
		{"removed", gone, "n2", map[string]float64{}},
		{"nothing", failOver(t, s, "v", "n2", at, &state.Missing{Loss: ptr(time.Duration(0)), Bytes: ptr(int64(0))}), "n2",
			map[string]float64{"timestamp_seconds": 60, "loss_seconds": 0, "loss_bytes": 0}},
		{"by a leader of an older version", failOver(t, open, "v", "n1", at, nil), "n1", map[string]float64{}},
	} {
		if got := losses(tt.s, tt.self); !maps.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func keys(m map[string]float64) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// Events become counters.
func TestReplicationCounters(t *testing.T) {
	m := NewMetrics("test")
	name := func(id volume.NodeID) string { return "node-" + string(id) }
	for _, e := range []replicate.Event{
		replicate.SnapshotsTaken{Kind: replicate.KindScheduled, Volumes: []volume.ID{"a", "b"}, Took: time.Second},
		replicate.Throttled{Replica: "x", Waited: 3 * time.Second},
		replicate.Pruned{Snapshots: 4, Took: time.Second},
		replicate.SetAside{}, replicate.Ticked{Took: time.Second},
		replicate.Offered{Took: time.Second}, replicate.Offered{Took: time.Second}, replicate.Acknowledged{Took: time.Second},
		replicate.StreamEnded{Kind: "full", Bytes: 100},
		replicate.Received{Bytes: 50, Err: os.ErrClosed},
	} {
		m.replication(e, name)
	}
	got := gathered(t, m)
	for name, want := range map[string]string{
		"flocker_snapshots_taken_total scheduled": "2", "flocker_stream_throttled_seconds_total node-x": "3",
		"flocker_snapshots_pruned_total": "4", "flocker_set_aside_total": "1",
		"flocker_replication_step_duration_seconds tick": "1", "flocker_replication_step_duration_seconds snapshot": "1",
		"flocker_replication_step_duration_seconds offer": "2", "flocker_replication_step_duration_seconds acknowledge": "1",
		"flocker_replication_step_duration_seconds prune": "1", "flocker_streams_total sent full ok": "1",
		"flocker_streams_total received  error": "1", "flocker_stream_bytes_total sent": "100", "flocker_stream_bytes_total received": "50",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %s", name, got[name], want)
		}
	}
}

// gathered are the values of all counters, and how often all histograms were told something.
func gathered(t *testing.T, m *Metrics) map[string]string {
	t.Helper()
	families, err := m.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, f := range families {
		for _, x := range f.GetMetric() {
			var labels []string
			for _, l := range x.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			value := x.GetCounter().GetValue()
			if h := x.GetHistogram(); h != nil {
				value = float64(h.GetSampleCount())
			}
			got[strings.TrimSpace(f.GetName()+" "+strings.Join(labels, " "))] = fmt.Sprint(value)
		}
	}
	return got
}

// A move is counted by its result where it began, with how long its parts took; where it
// ended, with how long clients waited. One that was refused has no parts.
func TestMoveMetrics(t *testing.T) {
	times := state.MoveTimes{Held: 3 * time.Second, Park: time.Second, Stop: 2 * time.Second}
	plain := state.MoveTimes{Stop: time.Second} // of a container without routes
	for _, tt := range []struct {
		name string
		do   func(m *Metrics)
		want map[string]string
	}{
		{"nothing yet", func(*Metrics) {}, map[string]string{"_moves_total moved": "0", "_moves_total refused": "0", "_move_pause_seconds": "0"}},
		{"moved", func(m *Metrics) { m.moved("moved", times) }, map[string]string{
			"_moves_total moved": "1", "_moves_total refused": "0", "_move_phase_duration_seconds park": "1", "_move_phase_duration_seconds stop": "1",
			"_move_phase_duration_seconds unmount": "1", "_move_phase_duration_seconds copy": "1", "_move_phase_duration_seconds start": "", "_move_pause_seconds": "0",
		}},
		{"moved without routes", func(m *Metrics) { m.moved("moved", plain) }, map[string]string{
			"_moves_total moved": "1", "_move_phase_duration_seconds park": "", "_move_phase_duration_seconds stop": "1",
		}},
		{"refused", func(m *Metrics) { m.moved("refused", times) }, map[string]string{
			"_moves_total moved": "0", "_moves_total refused": "1", "_move_phase_duration_seconds park": "", "_move_phase_duration_seconds stop": "",
		}},
		{"arrived", func(m *Metrics) { m.opened(5*time.Second, times) }, map[string]string{
			"_moves_total moved": "0", "_move_pause_seconds": "1", "_move_phase_duration_seconds start": "1", "_move_phase_duration_seconds stop": "",
		}},
	} {
		m := NewMetrics("test")
		tt.do(m)
		got := gathered(t, m)
		for name, want := range tt.want {
			if name = "flocker" + name; got[name] != want {
				t.Errorf("%s: %s is %q, want %q", tt.name, name, got[name], want)
			}
		}
	}
	m := NewMetrics("test")
	m.opened(5*time.Second, times)
	families, err := m.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]float64{}
	for _, f := range families {
		if len(f.GetMetric()) == 1 && f.GetMetric()[0].GetHistogram() != nil {
			sums[f.GetName()] = f.GetMetric()[0].GetHistogram().GetSampleSum()
		}
	}
	if sums["flocker_move_pause_seconds"] != 5 || sums["flocker_move_phase_duration_seconds"] != 2 {
		t.Errorf("clients waited for 5 s, 2 of them for the start; told was %v", sums)
	}
}
