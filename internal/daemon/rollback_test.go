package daemon

import (
	"slices"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// What going back to a snapshot would undo, of five that a volume has.
func TestPlanRollback(t *testing.T) {
	v := &state.Volume{Name: "pg"}
	at := func(n int64) time.Time { return time.Unix(n, 0) }
	list := []api.Snapshot{
		{Name: "flk-1", GUID: 1, Kind: "engine", Taken: at(1), Written: 1},
		{Name: "before", GUID: 2, Kind: "user", Taken: at(2), Written: 10},
		{Name: "flk-2", GUID: 3, Kind: "engine", Taken: at(3), Written: 100},
		{Name: "auto", GUID: 4, Kind: "scheduled", Taken: at(4), Written: 1000},
		{Name: "after", GUID: 5, Kind: "user", Taken: at(5), Written: 10000},
	}
	for _, tt := range []struct {
		name    string
		guid    uint64
		newer   []string
		written int64
	}{
		{"flk-1", 1, []string{"before", "auto", "after"}, 11110},
		{"before", 2, []string{"auto", "after"}, 11100},
		{"after", 5, nil, 0},
	} {
		plan, to, err := planRollback(v, list, tt.name)
		if err != nil || to != (state.RollbackTo{Snapshot: tt.name, GUID: tt.guid}) || !slices.Equal(plan.Newer, tt.newer) || plan.WrittenBytes != tt.written || !plan.Taken.Equal(at(int64(tt.guid))) {
			t.Errorf("to %s: %+v of %+v, %v", tt.name, plan, to, err)
		}
	}
	if _, _, err := planRollback(v, list, "never"); volume.CodeOf(err) != volume.CodeNotFound {
		t.Errorf("to one that there is not: %v", err)
	}
}

// The containers of a volume are stopped for its rollback, and none of those that share another
// volume with them; for a move all of them are.
func TestGoingBackAlone(t *testing.T) {
	shared := []state.ContainerVolume{{ID: "v", Epoch: 1}, {ID: "w", Epoch: 1}}
	commands := []state.Command{
		confirmed,
		state.CreateVolume{ID: "w", Name: "log", Placement: volume.Placement{Primary: "n1", Local: []volume.NodeID{"n2"}}},
		state.ConfirmCreate{ID: "w", Epoch: 1}, state.SetDataKey{ID: "k"},
		state.PutContainer{Container: state.Container{Name: "web", ID: "1", Node: "n1", Key: "k", Run: true, Volumes: shared}},
		state.PutContainer{Container: state.Container{Name: "job", ID: "2", Node: "n1", Key: "k", Run: true, Volumes: shared[1:]}},
	}
	for _, tt := range []struct {
		begin state.Command
		want  []string
	}{
		{state.BeginRollback{ID: "v", Epoch: 1, Attempt: "a", To: state.RollbackTo{Snapshot: "before", GUID: 5}}, []string{"web"}},
		{state.BeginHandoff{ID: "v", Epoch: 1, Attempt: "a", To: "n2", Follow: true}, []string{"job", "web"}},
	} {
		s := testState(t, append(slices.Clone(commands), tt.begin)...)
		var names []string
		for _, c := range goingWith(s, "n1", "v").containers {
			names = append(names, c.Name)
		}
		if slices.Sort(names); !slices.Equal(names, tt.want) {
			t.Errorf("for %T %v are stopped, want %v", tt.begin, names, tt.want)
		}
	}
}

// A rollback that only the primary could finish is not begun; one that was not heard of is no reason.
func TestLackOf(t *testing.T) {
	to := state.RollbackTo{Snapshot: "before", GUID: 5}
	none, silent := volume.Errorf(volume.CodeNotFound, "no such snapshot"), volume.Errorf(volume.CodeUnavailable, "away")
	for _, tt := range []struct {
		name string
		said []found
		want volume.NodeID
	}{
		{"no replicas", nil, ""},
		{"all have it", []found{{5, nil}, {5, nil}}, ""},
		{"one has it", []found{{0, none}, {5, nil}}, ""},
		{"none has it", []found{{0, none}, {0, none}}, "n2"},
		{"another one of that name", []found{{6, nil}, {0, none}}, "n2"},
		{"one lacks it and the other is away", []found{{0, silent}, {0, none}}, "n3"},
		{"all are away", []found{{0, silent}, {0, silent}}, ""},
	} {
		if got := lackOf(to, []volume.NodeID{"n2", "n3"}, tt.said); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
