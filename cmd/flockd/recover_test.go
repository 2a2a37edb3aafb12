package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/cluster"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// known is a cluster of n1 to n3 with a volume of each kind, by name.
func known(t *testing.T) (*state.State, map[string]volume.NodeID) {
	t.Helper()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	nodes := map[string]volume.NodeID{}
	s, index := state.New(), uint64(0)
	apply := func(c state.Command) {
		t.Helper()
		index++
		next, res := state.Apply(s, index, state.Envelope{At: at, Command: c})
		if res.Err != nil {
			t.Fatal(res.Err)
		}
		s = next
	}
	node := func(name string) state.Node {
		nodes[name] = volume.NewNodeID()
		return state.Node{ID: nodes[name], Name: name, Zone: "z"}
	}
	apply(state.InitCluster{Cluster: state.Cluster{ID: "c1"}, Node: node("n1")})
	apply(state.CreateToken{Token: state.Token{ID: "t", Expires: at.Add(time.Hour)}})
	apply(state.AddNode{Node: node("n2"), Token: "t"})
	apply(state.AddNode{Node: node("n3"), Token: "t"})
	for i, v := range []struct{ name, primary, replica string }{{"own", "n1", "n2"}, {"theirs", "n2", "n1"}, {"far", "n2", "n3"}} {
		id := volume.ID("000000000000000" + string(rune('1'+i)))
		apply(state.CreateVolume{ID: id, Name: v.name, Placement: volume.Placement{Primary: nodes[v.primary], Local: []volume.NodeID{nodes[v.replica]}}})
		apply(state.ConfirmCreate{ID: id, Epoch: s.Volume(id).Epoch})
	}
	return s, nodes
}

// Each volume stands where it belongs, and the danger is named.
func TestRecoveryPlan(t *testing.T) {
	s, nodes := known(t)
	next, err := state.Recover(s, state.Recovery{Survivor: nodes["n1"], At: time.Unix(0, 0)})
	if err != nil {
		t.Fatal(err)
	}
	r := cluster.Recovery{Node: nodes["n1"], Cluster: "c1", Voters: []volume.NodeID{nodes["n1"], nodes["n2"]}, Index: 77, Was: s, Next: next}
	got := recoveryPlan(r)
	for _, want := range []string{
		"made anew from node n1 alone", "up to entry 77 of the log; this node was a voter", "2026-01-02 03:04:05: volume far made on n2",
		"Generation       1, was 0", "left behind:\n  n2 (voter), n3\n", "go on here:\n  own\n", "wait for you:\n  theirs\n", "without a copy here:\n  far\n",
		"a second cluster", "Make sure that they are off",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the plan does not say %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "new authority") {
		t.Errorf("the plan speaks of an authority that stays:\n%s", got)
	}
	r.NewCA = true
	if got := recoveryPlan(r); !strings.Contains(got, "They cannot be told") {
		t.Errorf("the plan does not say that the others cannot be told:\n%s", got)
	}
}

// A node that is in no cluster has nothing to recover.
func TestRecoverOfNoMember(t *testing.T) {
	var out, errOut bytes.Buffer
	err := run(context.Background(), []string{"flockd", "--config", t.TempDir() + "/none.yml", "--state-dir", t.TempDir(), "recover", "--i-have-lost-quorum"}, &out, &errOut)
	if err == nil || out.Len() > 0 {
		t.Errorf("it says %q and ends with %v", out.String(), err)
	}
	err = run(context.Background(), []string{"flockd", "--state-dir", t.TempDir(), "recover", "--dry-run"}, &out, &errOut)
	if volume.CodeOf(err) != volume.CodeNotInit {
		t.Errorf("of no member it ends with %v", err)
	}
}
