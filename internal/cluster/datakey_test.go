package cluster

import (
	"bytes"
	"testing"
	"testing/synctest"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// The nodes with a pool get the data key from one another; a witness gets nothing.
func TestDataKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.form(3)
		a, b := l.nodes[0].cluster(), l.nodes[1].cluster()
		if _, err := a.DataKey(); err != ErrNoDataKey {
			t.Errorf("before there is one: %v", err)
		}
		if found, err := b.FetchDataKey(t.Context(), a.ID()); found || err != nil {
			t.Errorf("nobody has a key, and asking for it gives %t, %v", found, err)
		}
		id, err := a.MakeDataKey()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := a.MakeDataKey(); again != id || err != nil {
			t.Errorf("a key that is not agreed on yet is made twice: %s, %s, %v", id, again, err)
		}
		// Both have made one; the state takes the first.
		if _, err := b.MakeDataKey(); err != nil {
			t.Fatal(err)
		}
		l.propose(state.SetDataKey{ID: id})
		l.eventually("everybody knows", func() bool { return b.State().Cluster().DataKey == id })
		if _, err := b.DataKey(); err != ErrNoDataKey {
			t.Errorf("with a key that is not the cluster's: %v", err)
		}
		if found, err := b.FetchDataKey(t.Context(), a.ID()); !found || err != nil {
			t.Fatalf("asking the node that has it gives %t, %v", found, err)
		}
		ka, errA := a.DataKey()
		kb, errB := b.DataKey()
		if errA != nil || errB != nil || ka.ID() != id || kb.ID() != id {
			t.Fatalf("keys %s, %v and %s, %v; want %s", ka.ID(), errA, kb.ID(), errB, id)
		}
		sealed, err := ka.Seal(a.ClusterID(), []byte("PASSWORD=x"))
		if err != nil || bytes.Contains(sealed, []byte("PASSWORD")) {
			t.Fatalf("sealed: %q, %v", sealed, err)
		}
		if got, err := kb.Open(b.ClusterID(), sealed); err != nil || string(got) != "PASSWORD=x" {
			t.Errorf("opened elsewhere: %q, %v", got, err)
		}
		if got, err := kb.Open("another", sealed); err == nil {
			t.Errorf("opened for another cluster: %q", got)
		}
		if ka.Hash([]byte("x")) != kb.Hash([]byte("x")) || ka.Hash([]byte("x")) == ka.Hash([]byte("y")) {
			t.Error("hashes do not tell texts apart")
		}

		for name, n := range map[string]*state.Node{
			"a witness": {Witness: true}, "a removed node": {Removed: true}, "nobody": nil,
		} {
			if MayHaveData(n) {
				t.Errorf("%s may have it", name)
			}
		}
		if _, err := a.handleDataKey(t.Context(), volume.NodeID("ffffffffffffffffffffffffffffffff"), nil); volume.CodeOf(err) != volume.CodeDenied {
			t.Errorf("a stranger is answered: %v", err)
		}
	})
}
