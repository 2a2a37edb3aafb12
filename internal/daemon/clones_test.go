package daemon

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

const (
	cloneN1 = volume.NodeID("00000000000000000000000000000001")
	cloneN2 = volume.NodeID("00000000000000000000000000000002")
	cloneN3 = volume.NodeID("00000000000000000000000000000003")
	clonePG = volume.ID("000000000000000a")
)

// cloneState has a volume pg on n1 with a replica on n2, a clone of a snapshot that was
// named and one of a moment, and a volume that is no clone.
func cloneState(t *testing.T) (s *state.State, apply func(state.Command)) {
	t.Helper()
	s = state.New()
	apply = func(c state.Command) {
		t.Helper()
		next, res := state.Apply(s, s.Index+1, state.Envelope{Command: c})
		if res.Err != nil {
			t.Fatal(res.Err)
		}
		*s = *next
	}
	apply(state.InitCluster{Cluster: state.Cluster{ID: "c"}, Node: state.Node{ID: cloneN1, Name: "n1"}})
	apply(state.CreateToken{Token: state.Token{ID: "t", Expires: time.Now().Add(time.Hour)}})
	apply(state.AddNode{Node: state.Node{ID: cloneN2, Name: "n2", KeyHash: []byte("2")}, Token: "t"})
	apply(state.AddNode{Node: state.Node{ID: cloneN3, Name: "n3", KeyHash: []byte("3"), Witness: true}, Token: "t"})
	spec, err := volume.ParseOptions(map[string]string{"size": "1G"})
	if err != nil {
		t.Fatal(err)
	}
	add := func(id volume.ID, name string, of *state.CloneOf) {
		apply(state.CreateVolume{ID: id, Name: name, Spec: spec, Placement: volume.Placement{Primary: cloneN1, Local: []volume.NodeID{cloneN2}}, Clone: of})
		apply(state.ConfirmCreate{ID: id, Epoch: s.Volume(id).Epoch})
	}
	add(clonePG, "pg", nil)
	add("000000000000000b", "named", &state.CloneOf{Volume: clonePG, Name: "pg", Snapshot: "before", GUID: 7})
	add("000000000000000c", "now", &state.CloneOf{Volume: clonePG, Name: "pg", Snapshot: "flk-1", GUID: 8, Now: true})
	add("000000000000000d", "plain", nil)
	return s, apply
}

// Compose and Swarm make a volume each time they start a service: the same words give what
// is there, whatever its original has become, and others are refused.
func TestSameClone(t *testing.T) {
	s, apply := cloneState(t)
	check := func(when string) {
		t.Helper()
		for _, tt := range []struct {
			old, from string
			opts      map[string]string
			want      string
		}{
			{"named", "pg@before", nil, ""},
			{"named", string(clonePG) + "@before", map[string]string{"size": "1G"}, ""},
			{"named", "pg@after", nil, "as a clone of pg@before"},
			{"named", "pg", nil, "as a clone of pg@before"},
			{"named", "plain@before", nil, `as a clone of "pg"`},
			{"named", "nothing@before", nil, `as a clone of "pg"`},
			{"named", "pg@before", map[string]string{"size": "2G"}, "with other options (failover=auto"},
			{"now", "pg", nil, ""},
			{"now", "pg@flk-1", nil, ""}, // the same data
			{"now", "pg@before", nil, "as a clone of pg@flk-1"},
			{"plain", "pg", nil, `and is no clone of "pg"`},
		} {
			from, err := volume.ParseSource(tt.from)
			if err != nil {
				t.Fatal(err)
			}
			err = sameClone(s, s.VolumeByName(tt.old), from, tt.opts)
			if tt.want == "" && err != nil || tt.want != "" && (volume.CodeOf(err) != volume.CodeConflict || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%s: %s from=%s %v: got %v, want %q", when, tt.old, tt.from, tt.opts, err, tt.want)
			}
		}
	}
	check("at first")
	spec := s.Volume(clonePG).Spec
	spec.Size = 5 << 30
	apply(state.UpdateSpec{ID: clonePG, Spec: spec, Changed: s.Volume(clonePG).Changed})
	check("when the original was changed")
	apply(state.BeginDelete{ID: clonePG, Epoch: s.Volume(clonePG).Epoch, Attempt: "1"})
	apply(state.CommitDelete{ID: clonePG, Epoch: s.Volume(clonePG).Epoch, Attempt: "1"})
	check("when the original is in the trash")
	apply(state.CreateVolume{ID: "000000000000000e", Name: "pg", Spec: spec, Placement: volume.Placement{Primary: cloneN1}})
	check("when another one has the original's name")

	old := s.VolumeByName("now")
	apply(state.BeginDelete{ID: old.ID, Epoch: old.Epoch, Attempt: "2"})
	if err := sameClone(s, s.VolumeByName("now"), volume.Source{Volume: "pg"}, nil); err == nil || !strings.Contains(err.Error(), "being removed") {
		t.Errorf("one that is being removed: %v", err)
	}
}

func TestOriginal(t *testing.T) {
	s, apply := cloneState(t)
	pg := volume.Source{Volume: "pg"}
	if v, err := original(s, pg); err != nil || v.ID != clonePG {
		t.Errorf("got %+v, %v", v, err)
	}
	if _, err := original(s, volume.Source{Volume: "nothing"}); volume.CodeOf(err) != volume.CodeNotFound || strings.Contains(err.Error(), "trash") {
		t.Errorf("of nothing: %v", err)
	}
	apply(state.BeginDelete{ID: clonePG, Epoch: s.Volume(clonePG).Epoch, Attempt: "1"})
	if _, err := original(s, pg); volume.CodeOf(err) != volume.CodeConflict || !strings.Contains(err.Error(), "being removed") {
		t.Errorf("of one that is being removed: %v", err)
	}
	apply(state.CommitDelete{ID: clonePG, Epoch: s.Volume(clonePG).Epoch, Attempt: "1"})
	if _, err := original(s, pg); volume.CodeOf(err) != volume.CodeNotFound || !strings.Contains(err.Error(), "flockctl volume undelete pg") {
		t.Errorf("of one in the trash: %v", err)
	}
	apply(state.CreateVolume{ID: "000000000000000f", Name: "young", Placement: volume.Placement{Primary: cloneN1}})
	if _, err := original(s, volume.Source{Volume: "young"}); volume.CodeOf(err) != volume.CodeConflict {
		t.Errorf("of one that is being made: %v", err)
	}
	for node, want := range map[volume.NodeID]string{cloneN3: "n3 is a witness", "00000000000000000000000000000009": "has no copy of it"} {
		if err := noCopyOn(s, s.Volume(clonePG), node); volume.CodeOf(err) != volume.CodeRefused || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "its copies are on n1, n2") {
			t.Errorf("on node %s: %v", node, err)
		}
	}
}

// What nodes have refused holds, unless what they were asked for is another thing by now.
func TestRefusalStands(t *testing.T) {
	grow := func(s *state.State, apply func(state.Command), id volume.ID) {
		v := s.Volume(id)
		spec := v.Spec
		spec.Size = 5 << 30
		apply(state.UpdateSpec{ID: id, Spec: spec, Changed: v.Changed})
	}
	for _, tt := range []struct {
		what, name string
		asked      bool // nodes were
		change     func(s *state.State, apply func(state.Command))
		want       bool
	}{
		{"nobody was asked", "x", false, nil, false},
		{"nothing has changed", "x", true, nil, true},
		{"another volume has changed", "x", true, func(s *state.State, apply func(state.Command)) {
			grow(s, apply, "000000000000000d")
		}, true},
		{"the name is taken", "now", true, nil, false},
		{"the original has changed", "x", true, func(s *state.State, apply func(state.Command)) {
			grow(s, apply, clonePG)
		}, false},
		{"the original is being removed", "x", true, func(s *state.State, apply func(state.Command)) {
			apply(state.BeginDelete{ID: clonePG, Epoch: s.Volume(clonePG).Epoch, Attempt: "1"})
		}, false},
		{"another one has its name", "x", true, func(s *state.State, apply func(state.Command)) {
			apply(state.BeginDelete{ID: clonePG, Epoch: s.Volume(clonePG).Epoch, Attempt: "1"})
			apply(state.CommitDelete{ID: clonePG, Epoch: s.Volume(clonePG).Epoch, Attempt: "1"})
			apply(state.CreateVolume{ID: "000000000000000e", Name: "pg", Placement: volume.Placement{Primary: cloneN1}})
			apply(state.ConfirmCreate{ID: "000000000000000e", Epoch: s.Volume("000000000000000e").Epoch})
		}, false},
	} {
		s, apply := cloneState(t)
		c := cloning{req: api.CreateVolumeRequest{Name: tt.name}, from: volume.Source{Volume: "pg"}}
		if tt.asked {
			c.refused = s.Volume(clonePG)
		}
		if tt.change != nil {
			tt.change(s, apply)
		}
		if got := c.stands(s); got != tt.want {
			t.Errorf("%s: it stands: %v, want %v", tt.what, got, tt.want)
		}
	}
}

// A snapshot that is taken now is on the primary, and soon where nothing is in its way.
func TestHolders(t *testing.T) {
	v := &state.Volume{Placement: volume.Placement{Primary: cloneN1, Local: []volume.NodeID{cloneN2}, Remote: []volume.NodeID{cloneN3}}}
	now := time.Now()
	for _, tt := range []struct {
		link volume.LinkStatus
		want bool
	}{
		{volume.LinkStatus{Replica: cloneN2, State: volume.LinkInSync}, true},
		{volume.LinkStatus{Replica: cloneN3, State: volume.LinkSending, CompleteAsOf: now.Add(-closeBehind)}, true},
		{volume.LinkStatus{Replica: cloneN3, State: volume.LinkSending, CompleteAsOf: now.Add(-time.Hour)}, false}, // it was away, and catches up
		{volume.LinkStatus{Replica: cloneN3, State: volume.LinkSending}, false},
		{volume.LinkStatus{Replica: cloneN2, State: volume.LinkSending, CompleteAsOf: now, Error: "cut"}, false},
		{volume.LinkStatus{Replica: cloneN2, State: volume.LinkSeeding}, false},
		{volume.LinkStatus{Replica: cloneN2, State: volume.LinkConnecting}, false},
		{volume.LinkStatus{Replica: cloneN2, State: volume.LinkRefused}, false},
		{volume.LinkStatus{Replica: "stranger", State: volume.LinkInSync}, false},
	} {
		want := []volume.NodeID{cloneN1}
		if tt.want {
			want = append(want, tt.link.Replica)
		}
		if got := holders(v, volume.Status{Links: []volume.LinkStatus{tt.link}}, now); !slices.Equal(got, want) {
			t.Errorf("%+v: got %v", tt.link, got)
		}
	}
}

// Of snapshots of one name the primary's is meant, and where it cannot say, the one that
// all have.
func TestAgreed(t *testing.T) {
	s, _ := cloneState(t)
	v := s.Volume(clonePG)
	gone, silent := volume.Errorf(volume.CodeNotFound, "no"), volume.Errorf(volume.CodeUnavailable, "away")
	has := func(guid uint64) api.Point { return api.Point{Name: "s", GUID: guid} }
	two := []volume.NodeID{cloneN1, cloneN2}
	for _, tt := range []struct {
		name   string
		on     volume.NodeID
		points []api.Point
		errs   []error
		guid   uint64
		among  string
		code   volume.Code
	}{
		{"all have it", "", []api.Point{has(7), has(7), has(7)}, []error{nil, nil, nil}, 7, "n1 n2 n3", ""},
		{"a replica has another", "", []api.Point{has(7), has(8), has(7)}, []error{nil, nil, nil}, 7, "n1 n3", ""},
		{"a replica lacks it", "", []api.Point{has(7), {}, has(7)}, []error{nil, gone, nil}, 7, "n1 n3", ""},
		{"a replica does not answer", "", []api.Point{has(7), {}, {}}, []error{nil, silent, gone}, 7, "n1", ""},
		{"only a replica has it: it was removed", "", []api.Point{{}, has(7), {}}, []error{gone, nil, gone}, 0, "", volume.CodeNotFound},
		{"only replicas have some: it was removed", "", []api.Point{{}, has(7), has(8)}, []error{gone, nil, nil}, 0, "", volume.CodeNotFound},
		{"the primary is away", "", []api.Point{{}, has(7), has(7)}, []error{silent, nil, nil}, 7, "n2 n3", ""},
		{"the primary is away, and they differ", "", []api.Point{{}, has(7), has(8)}, []error{silent, nil, nil}, 0, "", volume.CodeConflict},
		{"nobody has it", "", []api.Point{{}, {}, {}}, []error{gone, gone, gone}, 0, "", volume.CodeNotFound},
		{"nobody that answers", "", []api.Point{{}, {}, {}}, []error{silent, gone, gone}, 0, "", volume.CodeUnavailable},
		{"that replica has it", cloneN2, []api.Point{has(7), has(7)}, []error{nil, nil}, 7, "n2", ""},
		{"that replica has another", cloneN2, []api.Point{has(7), has(8)}, []error{nil, nil}, 0, "", volume.CodeRefused},
		{"that replica lacks it", cloneN2, []api.Point{has(7), {}}, []error{nil, gone}, 0, "", volume.CodeRefused},
		{"that replica does not answer", cloneN2, []api.Point{has(7), {}}, []error{nil, silent}, 0, "", volume.CodeUnavailable},
		{"that replica alone has it", cloneN2, []api.Point{{}, has(7)}, []error{gone, nil}, 7, "n2", ""},
		{"that replica has it, and the primary is away", cloneN2, []api.Point{{}, has(7)}, []error{silent, nil}, 7, "n2", ""},
	} {
		asked := []volume.NodeID{cloneN1, cloneN2, cloneN3}
		if tt.on != "" {
			asked = two
		}
		point, among, err := agreed(s, v, "s", tt.on, asked, tt.points, tt.errs)
		var names []string
		for _, id := range among {
			names = append(names, s.NodeName(id))
		}
		if volume.CodeOf(err) != tt.code || point.GUID != tt.guid || strings.Join(names, " ") != tt.among {
			t.Errorf("%s: got %+v on %v, %v", tt.name, point, names, err)
		}
	}
	// Without a primary a replica is asked first, and what it lacks says nothing of the others.
	orphan := *v
	orphan.Placement = volume.Placement{Local: two}
	if point, among, err := agreed(s, &orphan, "s", "", two, []api.Point{{}, has(7)}, []error{gone, nil}); err != nil || point.GUID != 7 || !slices.Equal(among, two[1:]) {
		t.Errorf("without a primary: got %+v on %v, %v", point, among, err)
	}
}

// A replica that a clone is to be on gets the snapshot of its primary unless it has that one.
func TestLacksPoint(t *testing.T) {
	gone, silent := volume.Errorf(volume.CodeNotFound, "no"), volume.Errorf(volume.CodeUnavailable, "away")
	for _, tt := range []struct {
		its  uint64
		err  error
		want bool
	}{{7, nil, false}, {8, nil, true}, {0, gone, true}, {0, silent, false}} {
		if got := lacksPoint(api.Point{GUID: 7}, api.Point{GUID: tt.its}, tt.err); got != tt.want {
			t.Errorf("%d, %v: %v", tt.its, tt.err, got)
		}
	}
}

// What hangs together is shown from both ends.
func TestClonesShown(t *testing.T) {
	s, apply := cloneState(t)
	v := view{state: s, heard: func(volume.NodeID) (heard, bool) { return heard{}, false }}
	old := s.VolumeByName("named")
	apply(state.BeginDelete{ID: old.ID, Epoch: old.Epoch, Attempt: "1"})
	apply(state.CommitDelete{ID: old.ID, Epoch: old.Epoch, Attempt: "1"})
	want := []api.Clone{
		{ID: "000000000000000b", Name: "named", Snapshot: "before", Primary: api.NodeRef{ID: cloneN1, Name: "n1"}, Trash: true},
		{ID: "000000000000000c", Name: "now", Snapshot: "flk-1", Primary: api.NodeRef{ID: cloneN1, Name: "n1"}},
	}
	if got := v.clones(s.Volume(clonePG)); !slices.Equal(got, want) {
		t.Errorf("clones of pg: %+v", got)
	}
	if got := v.clones(s.VolumeByName("plain")); len(got) != 0 {
		t.Errorf("clones of a volume without: %+v", got)
	}
	apply(state.PurgeVolume{ID: old.ID})
	if got := v.clones(s.Volume(clonePG)); !slices.Equal(got, want[1:]) {
		t.Errorf("clones when one is gone for good: %+v", got)
	}
	now := v.volume(s.VolumeByName("now"))
	if now.From == nil || *now.From != (api.CloneOf{Volume: clonePG, Name: "pg", Snapshot: "flk-1", GUID: 8}) || dockerStatus(now)["from"] != "pg@flk-1" {
		t.Errorf("a clone: %+v, %v", now.From, dockerStatus(now)["from"])
	}
	if plain := v.volume(s.VolumeByName("plain")); plain.From != nil || dockerStatus(plain)["from"] != nil {
		t.Errorf("no clone: %+v", plain.From)
	}
}

func TestFits(t *testing.T) {
	v := &state.Volume{Name: "pg"}
	for _, tt := range []struct {
		size, holds int64
		want        bool
	}{{0, 5 << 30, true}, {1 << 30, 1 << 30, true}, {1 << 30, 1<<30 + 1, false}, {1 << 30, 0, true}} {
		err := fits(v, volume.Spec{Size: tt.size}, api.Point{Name: "s", Referenced: tt.holds})
		if tt.want != (err == nil) || err != nil && (volume.CodeOf(err) != volume.CodeRefused || !strings.Contains(err.Error(), "give a larger size")) {
			t.Errorf("%d bytes into %d: %v", tt.holds, tt.size, err)
		}
	}
}

// A snapshot is not removed that a clone on a replica's node would keep there.
func TestClonedElsewhere(t *testing.T) {
	s, apply := cloneState(t)
	v := s.Volume(clonePG)
	check := func(guid uint64, want ...string) {
		t.Helper()
		if got := clonedElsewhere(s, v, guid); !slices.Equal(got, want) {
			t.Errorf("snapshot %d: %v, want %v", guid, got, want)
		}
	}
	spec := s.VolumeByName("named").Spec
	add := func(id volume.ID, name string, guid uint64, p volume.Placement) {
		t.Helper()
		apply(state.CreateVolume{ID: id, Name: name, Spec: spec, Placement: p, Clone: &state.CloneOf{Volume: clonePG, Name: "pg", Snapshot: "s", GUID: guid}})
	}
	add("00000000000000e1", "here", 9, volume.Placement{Primary: cloneN1})
	check(9)
	add("00000000000000e2", "there", 9, volume.Placement{Primary: cloneN2})
	check(9, `volume "there"`)
	check(7, `volume "named"`) // which has a replica there
	check(6)
	old := s.VolumeByName("named")
	apply(state.BeginDelete{ID: old.ID, Epoch: old.Epoch, Attempt: "1"})
	apply(state.CommitDelete{ID: old.ID, Epoch: old.Epoch, Attempt: "1"})
	check(7, `volume "named" in the trash`)
	apply(state.PurgeVolume{ID: old.ID})
	check(7)
}
