package daemon

import (
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const monitoring = "../../docs/monitoring/"

// alertRules is what we look at of a file of rules; dashboard of Grafana's.
type alertRules struct {
	Groups []struct {
		Rules []struct{ Alert, Expr string }
	}
}

type dashboard struct {
	Panels []struct {
		ID      int
		Type    string
		Title   string
		Targets []struct{ Expr string }
	}
	Templating struct {
		List []struct{ Name, Definition string }
	}
}

func readDoc(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readRules(t *testing.T) alertRules {
	t.Helper()
	var r alertRules
	if err := yaml.Unmarshal(readDoc(t, monitoring+"flocker.rules.yml"), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// strangers says what an expression asks for that no node exports.
func strangers(expr string) (wrong []string) {
	known := map[string]Metric{}
	for _, m := range NewMetrics("test").All() {
		known[m.Name] = m
		if m.Type == "histogram" {
			known[m.Name+"_bucket"], known[m.Name+"_sum"], known[m.Name+"_count"] = m, m, m
			delete(known, m.Name) // it is served as these three
		}
	}
	// Values that a label may have, where there are few.
	values := map[string][]string{
		"flocker_fences_total result":      fenceResults,
		"flocker_failovers_total result":   electionResults,
		"flocker_moves_total result":       moveResults,
		"flocker_rollbacks_total result":   rollbackResults,
		"flocker_lease_beats_total result": {"answered", "refused", "lost", "asked", "idle"},
		"flocker_streams_total result":     {"ok", "error"},
		"flocker_fencer_safety level":      {"watchdog", "sysrq", "software", "none"},
	}
	for _, h := range healths {
		values["flocker_volume_state state"] = append(values["flocker_volume_state state"], string(h))
	}
	for _, m := range regexp.MustCompile(`(flocker_\w+)(?:\{([^}]*)\})?`).FindAllStringSubmatch(expr, -1) {
		metric, ok := known[m[1]]
		if !ok {
			wrong = append(wrong, "no node exports "+m[1])
			continue
		}
		for _, l := range regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"`).FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains(append([]string{"job", "instance"}, metric.Labels...), l[1]) {
				wrong = append(wrong, m[1]+" has no label "+l[1])
			}
			if all, ok := values[m[1]+" "+l[1]]; ok {
				for one := range strings.SplitSeq(l[2], "|") {
					if !slices.Contains(all, one) {
						wrong = append(wrong, m[1]+" never has "+l[1]+"="+one)
					}
				}
			}
		}
	}
	return wrong
}

// A check that finds nothing may only be blind.
func TestWhatNobodyExports(t *testing.T) {
	for expr, want := range map[string]string{
		`up{job="flocker"} == 0`:                                                "",
		`flocker_raft_quorum{instance="n1"} == 0`:                               "",
		`sum(rate(flocker_move_pause_seconds_bucket{job="x"}[5m]))`:             "",
		`flocker_raft_quorums == 0`:                                             "no node exports flocker_raft_quorums",
		`rate(flocker_move_pause_seconds[5m])`:                                  "no node exports flocker_move_pause_seconds",
		`flocker_raft_quorum{volume="pg"}`:                                      "flocker_raft_quorum has no label volume",
		`flocker_volume_state{state=~"ok|broken"}`:                              "flocker_volume_state never has state=broken",
		`flocker_asides{job=~"$job"} + flocker_fences_total{result!="failure"}`: "flocker_fences_total never has result=failure",
	} {
		if got := strings.Join(strangers(expr), "; "); got != want {
			t.Errorf("%s: %q, want %q", expr, got, want)
		}
	}
}

// What alerts and the dashboard ask for is what nodes export; each alert has a test and is explained.
func TestMonitoring(t *testing.T) {
	tests := string(readDoc(t, monitoring+"flocker.rules_test.yml"))
	_, section, _ := strings.Cut(string(readDoc(t, "../../docs/OPERATIONS.md")), "\n## Alerts\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var alerts []string
	for _, g := range readRules(t).Groups {
		for _, r := range g.Rules {
			for _, wrong := range strangers(r.Expr) {
				t.Errorf("%s: %s", r.Alert, wrong)
			}
			if !strings.Contains(tests, "alertname: "+r.Alert+"\n") {
				t.Errorf("no test has %s come: flocker.rules_test.yml", r.Alert)
			}
			alerts = append(alerts, r.Alert)
		}
	}
	var explained []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(Flocker\\w+)` \\|").FindAllStringSubmatch(section, -1) {
		explained = append(explained, m[1])
	}
	if !slices.Equal(explained, alerts) {
		t.Errorf("docs/OPERATIONS.md, \"Alerts\" explains %v, there are %v", explained, alerts)
	}

	var d dashboard
	if err := json.Unmarshal(readDoc(t, monitoring+"grafana.json"), &d); err != nil {
		t.Fatal(err)
	}
	ids := map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.Title == "" || p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %d, %q: each has a number of its own, a title, and something to show", p.ID, p.Title)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			for _, wrong := range strangers(target.Expr) {
				t.Errorf("panel %q: %s", p.Title, wrong)
			}
		}
	}
	for _, v := range d.Templating.List {
		for _, wrong := range strangers(v.Definition) {
			t.Errorf("variable %s: %s", v.Name, wrong)
		}
	}
}

// promtool runs one command of Prometheus' own checks, and skips the test where it is not installed.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("promtool"); err != nil {
		if os.Getenv("FLOCKER_NATIVE") != "" {
			t.Fatal("there is no promtool here: make natives")
		}
		t.Skip("there is no promtool here")
	}
	cmd := exec.Command("promtool", args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Prometheus takes the rules, and each alert comes when it should.
func TestNativeRules(t *testing.T) {
	promtool(t, "check", "rules", monitoring+"flocker.rules.yml")
	promtool(t, "test", "rules", monitoring+"flocker.rules_test.yml")
}

// Prometheus understands what the dashboard asks.
func TestNativeDashboard(t *testing.T) {
	var d dashboard
	if err := json.Unmarshal(readDoc(t, monitoring+"grafana.json"), &d); err != nil {
		t.Fatal(err)
	}
	type rule struct {
		Record string `yaml:"record"`
		Expr   string `yaml:"expr"`
	}
	var rules []rule
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			rules = append(rules, rule{"x:" + strings.Repeat("x", len(rules)+1), target.Expr})
		}
	}
	b, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "panels", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	file := t.TempDir() + "/panels.yml"
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", "--lint=none", file)
}
