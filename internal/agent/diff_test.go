package agent

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// testdata/diff.txt has one case a line:
//
//	PHASE ROLE | what is on disk | use | ACTION
//
// On disk: "none", or words of copy, mounted, logged, epoch=N, quota=N, trash, part; rolled: the volume was rolled back. The
// volume is at epoch 2 with a size of 5.
func TestDiff(t *testing.T) {
	text, err := os.ReadFile("testdata/diff.txt")
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "" {
			continue
		}
		cols := strings.Split(line, "|")
		if len(cols) != 4 {
			t.Fatalf("line %d has %d columns", i+1, len(cols))
		}
		want := strings.TrimSpace(cols[3])
		if got := diffLine(t, cols); got != want {
			t.Errorf("line %d: %s\ngot %q, want %q", i+1, line, got, want)
		}
	}
}

const self, other = volume.NodeID("me"), volume.NodeID("other")

func diffLine(t *testing.T, cols []string) string {
	t.Helper()
	v, got := diffCase(t, cols)
	inUse := strings.TrimSpace(cols[2]) == "used"
	step := diffVolume(v, got, self, func(volume.ID) bool { return inUse })
	if step == "" {
		return "-"
	}
	return string(step)
}

// diffCase reads the first two columns.
func diffCase(t *testing.T, cols []string) (*state.Volume, Actual) {
	t.Helper()
	head := strings.Fields(cols[0])
	v := &state.Volume{ID: "0000000000000001", Phase: state.Phase(head[0]), Epoch: 2, Spec: volume.Spec{Size: 5}}
	switch head[1] {
	case "primary":
		v.Placement = volume.Placement{Primary: self, Local: []volume.NodeID{other}}
	case "replica":
		v.Placement = volume.Placement{Primary: other, Local: []volume.NodeID{self}}
	default:
		v.Placement = volume.Placement{Primary: other}
	}
	got := Actual{Copies: map[volume.ID]Copy{}, Trash: map[volume.ID]Copy{}, Parts: map[volume.ID][]string{}}
	c := Copy{Epoch: 2, RefQuota: 5}
	for _, w := range strings.Fields(cols[1]) {
		k, n, _ := strings.Cut(w, "=")
		num, _ := strconv.Atoi(n)
		switch k {
		case "none":
		case "copy":
			got.Copies[v.ID] = c
		case "mounted":
			c.Mounted = true
			got.Copies[v.ID] = c
		case "logged":
			c.Logged = true
			got.Copies[v.ID] = c
		case "epoch":
			c.Epoch = volume.Epoch(num)
			got.Copies[v.ID] = c
		case "quota":
			c.RefQuota = int64(num)
			got.Copies[v.ID] = c
		case "start":
			v.Start = volume.Position{Epoch: 1, Seq: 1, GUID: uint64(num)}
		case "trash":
			got.Trash[v.ID] = Copy{}
		case "adopted":
			v.Adopt = "x"
		case "imported":
			v.Adopt = "tank/x"
		case "returned":
			got.Returned = map[volume.ID]bool{v.ID: true}
		case "rolled":
			v.RolledBack = &state.RolledBack{Epoch: 2}
		case "part":
			got.Parts[v.ID] = []string{"p"}
		default:
			t.Fatalf("no such word: %q", w)
		}
	}
	return v, got
}

// A volume that is nowhere in the state is nobody's to touch.
func TestDiffStranger(t *testing.T) {
	got := Actual{Copies: map[volume.ID]Copy{"0000000000000009": {Mounted: true}}}
	if acts := Diff(state.New(), got, self, func(volume.ID) bool { return false }); len(acts) != 0 {
		t.Errorf("got %v, want nothing", acts)
	}
}

// A node that was removed leaves its disk as it is, also what was given up with it.
func TestDiffRemoved(t *testing.T) {
	const id = volume.ID("0000000000000001")
	s := state.New()
	for i, c := range []state.Command{
		state.InitCluster{Node: state.Node{ID: other, Name: "other"}},
		state.CreateToken{Token: state.Token{ID: "t"}},
		state.AddNode{Node: state.Node{ID: self, Name: "me"}, Token: "t"},
		state.CreateVolume{ID: id, Name: "v", Placement: volume.Placement{Primary: self}},
		state.ConfirmCreate{ID: id, Epoch: 1},
		state.RemoveNode{ID: self, Dead: true, Fenced: true, Lose: []volume.ID{id}},
	} {
		var res state.Result
		if s, res = state.Apply(s, uint64(i+1), state.Envelope{Command: c}); res.Err != nil {
			t.Fatal(res.Err)
		}
	}
	got := Actual{Copies: map[volume.ID]Copy{id: {Epoch: 1, Mounted: true}}}
	if acts := Diff(s, got, self, func(volume.ID) bool { return false }); s.Volume(id).Phase != state.PhasePurged || len(acts) != 0 {
		t.Errorf("volume %s, actions %v; want it given up, and nothing done about it", s.Volume(id).Phase, acts)
	}
}

func BenchmarkDiff(b *testing.B) {
	s, res := state.Apply(state.New(), 1, state.Envelope{Command: state.InitCluster{Node: state.Node{ID: self, Name: "me"}}})
	if res.Err != nil {
		b.Fatal(res.Err)
	}
	got := Actual{Copies: map[volume.ID]Copy{}}
	for i := range 10_000 {
		id := volume.ID(fmt.Sprintf("%016x", i))
		s, _ = state.Apply(s, uint64(i+2), state.Envelope{Command: state.CreateVolume{ID: id, Name: string(id), Placement: volume.Placement{Primary: self}}})
		s, _ = state.Apply(s, uint64(i+2), state.Envelope{Command: state.ConfirmCreate{ID: id, Epoch: 1}})
		got.Copies[id] = Copy{Epoch: 1}
	}
	for b.Loop() {
		if acts := Diff(s, got, self, func(volume.ID) bool { return false }); len(acts) != 0 {
			b.Fatalf("%d actions where nothing differs", len(acts))
		}
	}
}
