package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
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

// labelled is a Swarm that notes what it was asked for, in order.
type labelled struct {
	view  container.SwarmView
	fails map[string]bool // nodes that cannot be labelled
	calls []string
}

func (l *labelled) Swarm(context.Context) (container.SwarmView, error) {
	l.calls = append(l.calls, "look")
	return l.view, nil
}

func (l *labelled) SwarmMember(context.Context) (container.SwarmMember, error) {
	return container.SwarmMember{Node: "s1", Cluster: "swarm"}, nil
}

func (l *labelled) LabelSwarmNode(_ context.Context, node string, add, remove []string) error {
	l.calls = append(l.calls, fmt.Sprint(node, " +", add, " -", remove))
	if l.fails[node] {
		return errors.New("the swarm does not have a leader")
	}
	return nil
}

func stepper(l *labelled, now *time.Time, changes *[]swarmLabels) *swarmer {
	w := newSwarmer(&member{log: slog.New(slog.DiscardHandler), now: func() time.Time { return *now }}, l)
	w.is, _ = l.SwarmMember(context.Background())
	w.decide = func() ([]swarmLabels, []string, []string) { return *changes, []string{"not well"}, nil }
	w.current = func(context.Context) error { l.calls = append(l.calls, "catch up"); return nil }
	return w
}

// Labels are changed by a state that is known to be the present one, and by what the Swarm
// looks like then. Else nothing is changed.
func TestSwarmChangesByWhatIsSoNow(t *testing.T) {
	now, changes := time.Unix(1000, 0), []swarmLabels{{Node: "s1", Remove: []string{"a"}}}
	l := &labelled{}
	w := stepper(l, &now, &changes)
	if err := w.step(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := []string{"look", "catch up", "look", "s1 +[] -[a]"}; !slices.Equal(l.calls, want) {
		t.Errorf("it did %q, want %q", l.calls, want)
	}
	l.calls = nil
	w.current = func(context.Context) error {
		changes = []swarmLabels{{Node: "s2", Remove: []string{"a"}}} // as it turns out
		return nil
	}
	if err := w.step(t.Context()); err != nil || !slices.Equal(l.calls, []string{"look", "s2 +[] -[a]"}) {
		t.Errorf("it did %q, %v; want what is right by the newer state", l.calls, err)
	}
	l.calls = nil
	w.current = func(context.Context) error { return errors.New("no leader") }
	if err := w.step(t.Context()); err == nil || len(l.calls) > 0 {
		t.Errorf("without a leader it did %q, %v", l.calls, err)
	}
	l.calls, changes = nil, nil
	if err := w.step(t.Context()); err != nil || len(l.calls) > 0 {
		t.Errorf("with nothing to change it did %q, %v", l.calls, err)
	}
}

// A node that cannot be labelled keeps no other from it, is told of, and is left alone for a
// while, longer each time. What it should have lost is not given elsewhere.
func TestSwarmLabelFails(t *testing.T) {
	start := time.Unix(1000, 0)
	now, changes := start, []swarmLabels{
		{Node: "s1", Remove: []string{"a"}}, {Node: "s2", Remove: []string{"a", "b"}}, {Node: "s3", Add: []string{"a", "b"}}}
	l := &labelled{fails: map[string]bool{"s1": true}}
	w := stepper(l, &now, &changes)
	if err := w.step(t.Context()); err == nil {
		t.Error("nothing failed")
	}
	labels := func() (out []string) {
		for _, c := range l.calls {
			if strings.HasPrefix(c, "s") {
				out = append(out, c)
			}
		}
		l.calls = nil
		return out
	}
	if got, want := labels(), []string{"s1 +[] -[a]", "s2 +[] -[a b]", "s3 +[b] -[]"}; !slices.Equal(got, want) {
		t.Errorf("it did %q, want %q", got, want)
	}
	var rep volume.Report
	w.report(&rep)
	if want := []string{"not well", "node s1 of the Swarm cannot be labelled, and services may not run where their volumes are: the swarm does not have a leader"}; !slices.Equal(rep.Problems, want) {
		t.Errorf("the problems are %q, want %q", rep.Problems, want)
	}

	changes = []swarmLabels{{Node: "s1", Remove: []string{"a"}}, {Node: "s3", Add: []string{"a"}}}
	var tried []time.Duration
	for ; now.Sub(start) < 4*time.Minute; now = now.Add(time.Second) {
		err := w.step(t.Context())
		switch got := labels(); {
		case slices.Equal(got, []string{"s1 +[] -[a]"}) && err != nil:
			tried = append(tried, now.Sub(start)/time.Second)
		case len(got) > 0 || err != nil:
			t.Fatalf("after %s it did %q, %v", now.Sub(start), got, err)
		}
	}
	if want := []time.Duration{5, 15, 35, 75, 135, 195}; !reflect.DeepEqual(tried, want) {
		t.Errorf("it tried after %d s, want %d", tried, want)
	}

	l.fails = nil
	now = now.Add(time.Minute)
	if err := w.step(t.Context()); err != nil || !slices.Equal(labels(), []string{"s1 +[] -[a]", "s3 +[a] -[]"}) {
		t.Errorf("it did not do what can be done again: %v", err)
	}
	rep = volume.Report{}
	if w.report(&rep); !slices.Equal(rep.Problems, []string{"not well"}) {
		t.Errorf("the problems are %q", rep.Problems)
	}
}
