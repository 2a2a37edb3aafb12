package daemon

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// TestPlanSwarm: each case of testdata/swarm.txt is what a manager knows and, below "=>",
// which labels are to change, and what keeps services from running. Node n1 of the cluster is
// s1 in the Swarm, and so on. A line is one of
//
//	node NAME [witness] [drained] [silent] [outside]   of the cluster; silent: it has not said
//	                                 where it is in the Swarm; outside: in none
//	vol NAME on=NODE [PHASE] [task=SERVICE] [held=TIME]   with a task of it there; held: its
//	                                 label was held back for so long
//	swarm NODE [down] [LABEL..]      a node of the Swarm, and its labels (without the prefix);
//	                                 down: Swarm gives it no tasks
//	service NAME VOLUME..            what it is bound to
func TestPlanSwarm(t *testing.T) {
	const file = "testdata/swarm.txt"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for i, c := range strings.Split(strings.TrimRight(string(text), "\n"), "\n\n") {
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
		v := swarmCase(t, input)
		changes, problems, held := planSwarm(v)
		for _, c := range changes {
			for _, l := range c.Remove {
				fmt.Fprintf(&got, "=> %s - %s\n", c.Node, strings.TrimPrefix(l, volume.SwarmPrefix))
			}
			for _, l := range c.Add {
				fmt.Fprintf(&got, "=> %s + %s\n", c.Node, strings.TrimPrefix(l, volume.SwarmPrefix))
			}
		}
		for _, p := range problems {
			fmt.Fprintf(&got, "=> ! %s\n", p)
		}
		for _, name := range held {
			fmt.Fprintf(&got, "=> hold %s\n", name)
		}
		if len(changes)+len(problems)+len(held) == 0 {
			got.WriteString("=> nothing\n")
		}
		// What has been done is not done again.
		for _, c := range changes {
			i := slices.IndexFunc(v.Swarm.Nodes, func(n container.SwarmNode) bool { return n.ID == c.Node })
			for _, l := range c.Remove {
				delete(v.Swarm.Nodes[i].Labels, l)
			}
			for _, l := range c.Add {
				v.Swarm.Nodes[i].Labels[l] = "true"
			}
		}
		if again, _, _ := planSwarm(v); len(again) > 0 {
			t.Errorf("%s\nafter all that still %v", strings.Join(input, "\n"), again)
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

func swarmCase(t *testing.T, lines []string) swarmView {
	t.Helper()
	var snap struct {
		Format  int             `json:"format"`
		Cluster *state.Cluster  `json:"cluster"`
		Nodes   []*state.Node   `json:"nodes"`
		Volumes []*state.Volume `json:"volumes"`
	}
	snap.Format, snap.Cluster = 1, &state.Cluster{ID: "c"}
	v := swarmView{Where: map[volume.NodeID]string{}, Copies: map[volume.NodeID][]volume.Status{}, Held: map[string]time.Duration{}}
	for _, line := range lines {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] == "#" {
			continue
		}
		rest := words[2:]
		flag := func(name string) bool {
			i := slices.Index(rest, name)
			if i >= 0 {
				rest = slices.Delete(slices.Clone(rest), i, i+1)
			}
			return i >= 0
		}
		switch words[0] {
		case "node":
			n := &state.Node{ID: volume.NodeID(words[1]), Name: words[1], Witness: flag("witness"), Availability: state.Active}
			if flag("drained") {
				n.Availability = state.Drain
			}
			snap.Nodes = append(snap.Nodes, n)
			switch {
			case flag("silent"):
			case flag("outside"):
				v.Where[n.ID] = ""
			default:
				v.Where[n.ID] = strings.Replace(words[1], "n", "s", 1)
			}
		case "vol":
			vol := &state.Volume{ID: volume.ID("v-" + words[1]), Name: words[1], Phase: state.PhaseActive, Epoch: 1}
			for _, w := range rest {
				switch key, value, _ := strings.Cut(w, "="); key {
				case "on":
					vol.Placement.Primary = volume.NodeID(value)
				case "task":
					v.Copies[vol.Placement.Primary] = append(v.Copies[vol.Placement.Primary],
						volume.Status{Volume: vol.ID, Holders: []volume.Holder{{Container: "c", Service: value}}})
				case "held":
					d, err := time.ParseDuration(value)
					if err != nil {
						t.Fatal(err)
					}
					v.Held[vol.Name] = d
				default:
					vol.Phase = state.Phase(w)
				}
			}
			snap.Volumes = append(snap.Volumes, vol)
		case "swarm":
			n := container.SwarmNode{ID: words[1], Ready: !flag("down"), Labels: map[string]string{"zone": "a"}}
			for _, l := range rest {
				n.Labels[volume.SwarmPrefix+l] = "true"
			}
			v.Swarm.Nodes = append(v.Swarm.Nodes, n)
		case "service":
			v.Swarm.Services = append(v.Swarm.Services, volume.SwarmService{Name: words[1], Volumes: rest, Wanted: true, Grace: 10 * time.Second})
		default:
			t.Fatalf("what is %q?", line)
		}
	}
	encoded, err := json.Marshal(snap)
	if err != nil {
		t.Fatal(err)
	}
	if v.State, err = state.Unmarshal(bytes.NewReader(encoded)); err != nil {
		t.Fatal(err)
	}
	return v
}
