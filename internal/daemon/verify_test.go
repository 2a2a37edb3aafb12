package daemon

import (
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

func TestCompareSums(t *testing.T) {
	sum := func(s string) api.Sum { return api.Sum{SHA256: s, Files: 1, Bytes: 1} }
	tests := []struct {
		name           string
		copies         []api.CopySum
		differ, unread bool
	}{
		{"alone", []api.CopySum{{Sum: sum("a")}}, false, false},
		{"alike", []api.CopySum{{Sum: sum("a")}, {Sum: sum("a")}}, false, false},
		{"one differs", []api.CopySum{{Sum: sum("a")}, {Sum: sum("b")}, {Sum: sum("a")}}, true, false},
		{"one unread", []api.CopySum{{Sum: sum("a")}, {Error: "x"}}, false, true},
		{"both", []api.CopySum{{Sum: sum("a")}, {Error: "x"}, {Sum: sum("b")}}, true, true},
		{"the primary's unread", []api.CopySum{{Error: "x"}, {Sum: sum("b")}}, false, true},
		{"a sum that is none", []api.CopySum{{Sum: sum("")}, {Sum: sum("")}}, true, false},
	}
	for _, tt := range tests {
		out := api.VerifyReply{Copies: tt.copies}
		if compareSums(&out); out.Differ != tt.differ || out.Unread != tt.unread {
			t.Errorf("%s: differ %v, unread %v", tt.name, out.Differ, out.Unread)
		}
	}
}

// A difference stays a problem until a verify has read that copy and found it alike.
func TestDifferencesStayProblems(t *testing.T) {
	const self, other, third = volume.NodeID("00000000000000000000000000000001"), volume.NodeID("00000000000000000000000000000002"), volume.NodeID("00000000000000000000000000000003")
	s := state.New()
	apply := func(c state.Command) {
		t.Helper()
		var res state.Result
		if s, res = state.Apply(s, s.Index+1, state.Envelope{Command: c}); res.Err != nil {
			t.Fatal(res.Err)
		}
	}
	apply(state.InitCluster{Cluster: state.Cluster{ID: "c"}, Node: state.Node{ID: self, Name: "n1"}})
	apply(state.CreateToken{Token: state.Token{ID: "t", Expires: time.Now().Add(time.Hour)}})
	apply(state.AddNode{Node: state.Node{ID: other, Name: "n2", KeyHash: []byte("2")}, Token: "t"})
	apply(state.AddNode{Node: state.Node{ID: third, Name: "n3", KeyHash: []byte("3")}, Token: "t"})
	id := volume.ID("000000000000000a")
	apply(state.CreateVolume{ID: id, Name: "pg", Placement: volume.Placement{Primary: self, Local: []volume.NodeID{other, third}}})
	apply(state.ConfirmCreate{ID: id, Epoch: s.Volume(id).Epoch})

	var f verifier
	check := func(when, want string) {
		t.Helper()
		if got := strings.Join(f.problems(s, self), "\n"); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: problems are %q, want %q", when, got, want)
		}
	}
	note := func(copies ...api.CopySum) { f.note(s.Volume(id), time.Now(), copies) }
	differs, unread, alike := api.CopySum{Node: api.NodeRef{ID: other}, Differs: true}, api.CopySum{Node: api.NodeRef{ID: other}, Error: "x"}, api.CopySum{Node: api.NodeRef{ID: other}}

	check("at first", "")
	note(unread)
	check("not read", "")
	note(differs)
	check("different", "volume pg: the copy on n2 differs")
	note(unread)
	check("not read after it was different", "the copy on n2 differs")
	note(alike)
	check("alike", "")
	note(differs)
	apply(state.SetReplicas{ID: id, Epoch: s.Volume(id).Epoch, Local: []volume.NodeID{third}})
	check("no replica any more", "")
	apply(state.SetReplicas{ID: id, Epoch: s.Volume(id).Epoch, Local: []volume.NodeID{other, third}})
	check("a replica again, perhaps the same copy", "the copy on n2 differs")
	if got := f.problems(s, other); len(got) > 0 {
		t.Errorf("on a node that is not the primary: %q", got)
	}
}

func TestOneVerifyAtATime(t *testing.T) {
	var f verifier
	end, err := f.begin("pg")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.begin("log"); volume.CodeOf(err) != volume.CodeConflict || !strings.Contains(err.Error(), `volume "pg"`) {
		t.Errorf("a second one: %v", err)
	}
	end()
	if _, err := f.begin("log"); err != nil {
		t.Errorf("after the first has ended: %v", err)
	}
}
