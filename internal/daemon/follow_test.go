package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// TestPlanFollow: each case of testdata/follow.txt is a view of node n1 and, below
// "=>", what is to be done. A line is one of
//
//	vol NAME@EPOCH on=NODE [PHASE]
//	rec NAME NODE id=ID vols=VOL@EPOCH,.. [run] [blocked] [hash=H] [key=K] [left=NODE:ID] [ports=80:80/http] [publishes=80:80]
//	here NAME id=ID vols=VOL,.. [live] [failed] [given-up] [unproven] [made] [hash=H] [ports=80:80/http] [publishes=80:80]
//	hidden NAME vols=VOL,..
//	settled WHAT..       IDs of containers, names of records
//	may-not-write
func TestPlanFollow(t *testing.T) {
	const file = "testdata/follow.txt"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	cases := strings.Split(strings.TrimRight(string(text), "\n"), "\n\n")
	for i, c := range cases {
		if i > 0 {
			got.WriteString("\n")
		}
		var input []string
		for line := range strings.Lines(c) {
			if !strings.HasPrefix(line, "=>") {
				input = append(input, strings.TrimRight(line, "\n"))
			}
		}
		got.WriteString(strings.Join(input, "\n") + "\n")
		steps := planFollow(followCase(t, input))
		for _, s := range steps {
			name, _, _ := strings.Cut(s.Record, "/")
			id := ""
			if s.Here != nil {
				id = " " + s.Here.ID
			}
			fmt.Fprintf(&got, "=> %s %s%s\n", s.Do, name, id)
		}
		if len(steps) == 0 {
			got.WriteString("=> nothing\n")
		}
	}
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got.String() != string(text) {
		t.Errorf("got:\n%s\nwant:\n%s", got.String(), text)
	}
}

func followCase(t *testing.T, lines []string) followView {
	t.Helper()
	var snap struct {
		Format     int                `json:"format"`
		Cluster    *state.Cluster     `json:"cluster"`
		Volumes    []*state.Volume    `json:"volumes"`
		Containers []*state.Container `json:"containers"`
	}
	snap.Format, snap.Cluster = 1, &state.Cluster{ID: "c", DataKey: "k"}
	v := followView{Self: "n1", MayWrite: true}
	var settled []string
	for _, line := range lines {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] == "#" {
			continue
		}
		opt, flag := map[string]string{}, map[string]bool{}
		for _, w := range words[1:] {
			if k, val, ok := strings.Cut(w, "="); ok {
				opt[k] = val
			} else {
				flag[w] = true
			}
		}
		var published []state.Published
		if text := opt["publishes"]; text != "" {
			var p state.Published
			if _, err := fmt.Sscanf(text, "%d:%d", &p.Host, &p.Port); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			published = append(published, p)
		}
		routes, err := volume.ParseRoutes(opt["ports"])
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		var volumes []state.ContainerVolume
		for _, w := range strings.FieldsFunc(opt["vols"], func(r rune) bool { return r == ',' }) {
			name, epoch, _ := strings.Cut(w, "@")
			n, _ := strconv.ParseUint(epoch, 10, 64)
			volumes = append(volumes, state.ContainerVolume{ID: volume.ID(name), Epoch: volume.Epoch(n)})
		}
		switch words[0] {
		case "vol":
			name, epoch, _ := strings.Cut(words[1], "@")
			n, err := strconv.ParseUint(epoch, 10, 64)
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			phase := state.PhaseActive
			if flag["moving"] {
				phase = state.PhaseMoving
			}
			if flag["electing"] {
				phase = state.PhaseElecting
			}
			vol := &state.Volume{ID: volume.ID(name), Name: name, Epoch: volume.Epoch(n), Phase: phase,
				Placement: volume.Placement{Primary: volume.NodeID(opt["on"])}}
			if opt["to"] != "" {
				vol.Pending = &state.Pending{To: volume.NodeID(opt["to"]), Attempt: opt["attempt"], Follow: !flag["alone"]}
			}
			snap.Volumes = append(snap.Volumes, vol)
		case "rec":
			c := &state.Container{Name: words[1], Node: volume.NodeID(words[2]), ID: opt["id"], Volumes: volumes,
				Run: flag["run"], Blocked: flag["blocked"], Hash: opt["hash"], Key: "k", Routes: routes, Published: published}
			if opt["key"] != "" {
				c.Key = opt["key"]
			}
			if node, id, ok := strings.Cut(opt["left"], ":"); ok {
				c.Left = map[volume.NodeID]string{volume.NodeID(node): id}
			}
			snap.Containers = append(snap.Containers, c)
		case "here":
			v.Here = append(v.Here, hereContainer{ID: opt["id"], Name: words[1], Volumes: ids(volumes), Live: flag["live"], Failed: flag["failed"], GivenUp: flag["given-up"], Unproven: flag["unproven"] || flag["made"], Made: flag["made"], Hash: opt["hash"], Routes: routes, Published: published})
		case "hidden":
			v.Hidden = map[string]bool{(&state.Container{Name: words[1], Volumes: volumes}).RecordKey(): true}
		case "settled":
			settled = words[1:]
		case "may-not-write":
			v.MayWrite = false
		default:
			t.Fatalf("no such line: %q", line)
		}
	}
	b, err := json.Marshal(snap)
	if err != nil {
		t.Fatal(err)
	}
	if v.State, err = state.Unmarshal(bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	v.Settled = func(what string) bool {
		name, _, _ := strings.Cut(what, "/")
		return slices.Contains(settled, name)
	}
	return v
}

// A failure of what could not be looked at is not forgotten: it may have happened since.
func TestForgetDone(t *testing.T) {
	f := newFollower(&member{}, nil)
	for _, key := range []string{"tried", "hidden", "busy", "done"} {
		f.problems[key], f.failed[key] = "cannot be started", followAttempt{tries: 1}
	}
	f.busy["busy"] = true
	f.forgetDone(state.New, []followStep{{Record: "tried"}}, map[string]bool{"hidden": true})
	if got := slices.Sorted(maps.Keys(f.failed)); !slices.Equal(got, []string{"busy", "hidden", "tried"}) || len(f.problems) != len(got) {
		t.Errorf("%v, %v", got, f.problems)
	}
}

// What is left to its engine is told of by the node that the container is recorded on.
func TestForgetLoops(t *testing.T) {
	s := followCase(t, []string{"vol v@1 on=n1", "rec here n1 id=a vols=v@1 run", "rec there n2 id=b vols=v@1 run"}).State
	f := newFollower(&member{self: "n1"}, nil)
	for _, name := range []string{"here", "there", "gone"} {
		r := state.Container{Name: name, Volumes: []state.ContainerVolume{{ID: "v"}}}
		f.looping[r.RecordKey()] = loop{what: name}
	}
	f.forgetDone(func() *state.State { return s }, nil, nil)
	if len(f.looping) != 1 || f.looping[(&state.Container{Name: "here", Volumes: []state.ContainerVolume{{ID: "v"}}}).RecordKey()].what != "here" {
		t.Errorf("%v", f.looping)
	}
}

// An engine that does not answer is told of once, and again after it has answered.
func TestDeaf(t *testing.T) {
	var d deaf
	var out strings.Builder
	log := slog.New(slog.NewTextHandler(&out, nil))
	broken := errors.New("no engine")
	over, cancel := context.WithCancel(context.Background())
	cancel()
	for _, tt := range []struct {
		ctx  context.Context
		err  error
		want int // lines so far
	}{
		{over, broken, 0}, {t.Context(), nil, 0}, {t.Context(), broken, 1}, {t.Context(), broken, 1}, {t.Context(), nil, 1}, {t.Context(), broken, 2},
	} {
		if d.note(tt.ctx, log, tt.err); strings.Count(out.String(), "no engine") != tt.want {
			t.Errorf("want %d lines: %s", tt.want, out.String())
		}
	}
}
