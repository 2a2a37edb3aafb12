package cluster

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/serf"

	"github.com/flocker-io/flocker/internal/volume"
)

// The ring follows the state: new keys first, then their use, then the end of old
// ones.
func TestGossipKeys(t *testing.T) {
	key := func(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }
	ring, err := memberlist.NewKeyring([][]byte{key(1)}, key(1))
	if err != nil {
		t.Fatal(err)
	}
	g := &serfGossip{log: slog.New(slog.DiscardHandler)}
	for _, keys := range [][][]byte{
		{key(1), key(2)}, // installed
		{key(2), key(1)}, // used
		{key(2)},         // alone
		{key(2)},
		nil, // never without one
	} {
		g.setKeys(ring, keys)
		if keys == nil {
			keys = [][]byte{key(2)}
		}
		got := ring.GetKeys()
		if len(got) != len(keys) || !bytes.Equal(ring.GetPrimaryKey(), keys[0]) {
			t.Errorf("the ring holds %d keys, primary %d; want %d, primary %d", len(got), ring.GetPrimaryKey()[0], len(keys), keys[0][0])
		}
	}
}

func TestGossipHealth(t *testing.T) {
	g := &serfGossip{health: map[volume.NodeID]Health{}}
	for _, step := range []struct {
		what serf.EventType
		want Health
	}{
		{serf.EventMemberJoin, Alive}, {serf.EventMemberFailed, Dead}, {serf.EventMemberUpdate, Alive},
		{serf.EventMemberLeave, Dead}, {serf.EventMemberReap, Unknown},
	} {
		g.note("n", step.what)
		if got := g.Health("n"); got != step.want {
			t.Errorf("after %s: %s; want %s", step.what, got, step.want)
		}
	}
}

func TestSameCluster(t *testing.T) {
	ours, theirs := &serf.Member{Tags: map[string]string{"cluster": "c1"}}, &serf.Member{Tags: map[string]string{"cluster": "c2"}}
	if err := sameCluster("c1").NotifyMerge([]*serf.Member{ours}); err != nil {
		t.Errorf("our own member is refused: %v", err)
	}
	if err := sameCluster("c1").NotifyMerge([]*serf.Member{ours, theirs}); err == nil {
		t.Error("a foreign member is let in")
	}
}
