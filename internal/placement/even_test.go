package placement

import (
	"testing"

	"github.com/flocker-io/flocker/internal/state"
)

// TestEvenBesideOthers: nothing begins at a look that changes where copies are, or undoes such a
// change, and what has begun to be calm begins anew; the trash and news are no reason to wait.
func TestEvenBesideOthers(t *testing.T) {
	var w world
	w.run(t, "nodes\n  n1 100G free=20G\n  n2 100G free=60G\n  n3 100G")
	w.run(t, "volumes\n  v1 n1 > n2 used=20G size=20G\n  v2 n1 > n2 used=20G size=20G\n  v3 n1 used=20G size=20G replicas=0\n  v4 n1 used=20G size=20G replicas=0")
	w.run(t, "settings rebalance=on")
	for _, c := range []struct {
		name   string
		others []state.Command
		begins bool
	}{
		{"nothing", nil, true},
		{"trash", []state.Command{state.PurgeVolume{ID: "v9"}, state.ForgetVolume{ID: "v8"}}, true},
		{"news", []state.Command{state.Tell{Volume: "v4"}}, true},
		{"copies", []state.Command{state.SetReplicas{ID: "v4"}}, false},
		{"a handoff", []state.Command{state.BeginHandoff{ID: "v4"}}, false},
		{"one that is given up", []state.Command{state.AbortHandoff{ID: "v4"}}, false},
		{"a migration", []state.Command{state.StartMigration{ID: "v4"}}, false},
		{"the end of one", []state.Command{state.EndMigration{ID: "v4"}}, false},
		{"among others", []state.Command{state.Tell{Volume: "v4"}, state.EndMigration{ID: "v4"}}, false},
	} {
		cmds, next := even(w.view(), evening{looked: now, calm: now.Add(-evenSettle)}, c.others)
		if len(cmds) > 0 != c.begins || next.calm.IsZero() == c.begins {
			t.Errorf("%s: decided %v, calm since %v; want it to begin: %v", c.name, cmds, next.calm, c.begins)
		}
	}
}
