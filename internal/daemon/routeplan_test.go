package daemon

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/proxy"
)

// TestPlanRoutes: each case of testdata/routes.txt is a view of node n1 and, below "=>",
// what its proxy is told. A line is one of
//
//	vol NAME@EPOCH on=NODE [moving|electing] [left=NODE [waited]] [ports=80:8080/http,..] [paused=80,..]
//	rec NAME NODE vols=VOL,.. [run] [ports=..]
//	here NAME vols=VOL,.. [at=IP] [expose=PORT,..]
//	engine-silent
//	no-hosts
//	proxy ROUTE owner=NODE epoch=N [server=IP:PORT] [paused]
//	ready ROUTE SERVER
//	stopping ROUTE
func TestPlanRoutes(t *testing.T) {
	const file = "testdata/routes.txt"
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
		view := routeCase(t, input)
		view.Settings = state.Settings{Hold: time.Minute, HoldService: 50, HoldNode: 60}
		p := planRoutes(view)
		if p.Config.Waiting != view.Settings.HoldNode {
			t.Errorf("%s: %d may wait at the node", input[0], p.Config.Waiting)
		}
		for _, id := range p.Pause {
			fmt.Fprintf(&got, "=> pause %s\n", id)
		}
		for _, r := range p.Config.Routes {
			if r.Limits != limitsOf(view.Settings) {
				t.Errorf("%s: route %s has the limits %+v", input[0], r.ID, r.Limits)
			}
			fmt.Fprintf(&got, "=> %s of %s: %d%s to %s at %s epoch %d, port %d, server %q%s%s\n", r.ID, r.Volume, r.Listen, forHosts(r.Hosts), r.Owner, r.OwnerAddr, r.Epoch, r.Port, r.Server, announced(r.Announce), withOptions(r.Postgres))
		}
		for _, to := range p.Probe {
			fmt.Fprintf(&got, "=> probe %s as %s for %s%s\n", to.Server, to.Mode, to.ID, announced(to.Announce))
		}
		for _, to := range p.Resume {
			fmt.Fprintf(&got, "=> resume %s to %s\n", to.ID, to.Server)
		}
		for _, id := range p.Open {
			fmt.Fprintf(&got, "=> the clients of %s go on\n", id)
		}
		for _, id := range slices.Sorted(maps.Keys(p.Problems)) {
			fmt.Fprintf(&got, "=> problem: %s\n", p.Problems[id])
		}
		if err := p.Config.Validate(); err != nil {
			t.Errorf("%s: the proxy would refuse it: %v", input[0], err)
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

func withOptions(o *proxy.RoutePostgres) string {
	if o == nil {
		return ""
	}
	return fmt.Sprintf(", with %+v", *o)
}

func forHosts(hosts []string) string {
	if len(hosts) == 0 {
		return ""
	}
	return " for " + strings.Join(hosts, " and ")
}

func announced(a proxy.Announce) string {
	if a == proxy.AnnounceNone {
		return ""
	}
	return ", by the PROXY protocol " + string(a)
}

func routeCase(t *testing.T, lines []string) routeView {
	t.Helper()
	var snap struct {
		Format     int                `json:"format"`
		Cluster    *state.Cluster     `json:"cluster"`
		Nodes      []*state.Node      `json:"nodes"`
		Volumes    []*state.Volume    `json:"volumes"`
		Containers []*state.Container `json:"containers"`
	}
	snap.Format, snap.Cluster = 1, &state.Cluster{ID: "c"}
	for _, n := range []string{"n1", "n2"} {
		snap.Nodes = append(snap.Nodes, &state.Node{ID: volume.NodeID(n), Name: n, Addr: n + ":4523"})
	}
	v := routeView{Self: "n1", Port: "4526", Known: true, Stopping: map[string]bool{}}
	ready := map[string]bool{}
	must := func(err error, line string) {
		t.Helper()
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
	}
	numbers := func(text, line string) (out []int) {
		for _, w := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' }) {
			n, err := strconv.Atoi(w)
			must(err, line)
			out = append(out, n)
		}
		return out
	}
	keys := func(text, line string) (out []volume.RouteKey) {
		for _, w := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' }) {
			ref, err := volume.ParseRouteRef(w)
			must(err, line)
			out = append(out, volume.RouteKey{Listen: ref.Listen, Name: ref.Name})
		}
		return out
	}
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
		routes, err := volume.ParseRoutes(opt["ports"])
		must(err, line)
		var volumes []state.ContainerVolume
		for _, name := range strings.FieldsFunc(opt["vols"], func(r rune) bool { return r == ',' }) {
			volumes = append(volumes, state.ContainerVolume{ID: volume.ID(name)})
		}
		switch words[0] {
		case "vol":
			name, epoch, _ := strings.Cut(words[1], "@")
			n, err := strconv.ParseUint(epoch, 10, 64)
			must(err, line)
			vol := &state.Volume{ID: volume.ID(name), Name: name, Epoch: volume.Epoch(n), Phase: state.PhaseActive,
				Placement: volume.Placement{Primary: volume.NodeID(opt["on"])}, Spec: volume.Spec{Ports: routes}, Paused: keys(opt["paused"], line)}
			if flag["moving"] {
				vol.Phase, vol.Pending = state.PhaseMoving, &state.Pending{To: "n2", Follow: true}
			}
			if flag["electing"] {
				vol.Phase = state.PhaseElecting
			}
			if left := opt["left"]; left != "" {
				vol.Moved = &state.Moved{From: volume.NodeID(left)}
				if flag["waited"] {
					vol.Moved.Times.Held = time.Second
				}
			}
			snap.Volumes = append(snap.Volumes, vol)
		case "rec":
			snap.Containers = append(snap.Containers, &state.Container{Name: words[1], Node: volume.NodeID(words[2]), ID: "x", Volumes: volumes, Run: flag["run"], Routes: routes})
		case "here":
			h := hereContainer{Name: words[1], Volumes: ids(volumes)}
			v.Here = append(v.Here, servingContainer{Name: h.Name, Record: recordKeyOf(&h), Volumes: h.Volumes,
				Ports: container.Ports{Address: opt["at"], Exposed: numbers(opt["expose"], line)}})
		case "engine-silent":
			v.Known = false
		case "no-hosts":
			v.NoHosts = true
		case "proxy":
			n, err := strconv.ParseUint(opt["epoch"], 10, 64)
			must(err, line)
			st := proxy.RouteStatus{ID: words[1], Owner: opt["owner"], Epoch: n, Server: opt["server"]}
			if flag["paused"] {
				st.Paused = time.Unix(1, 0)
			}
			v.Proxy.Routes = append(v.Proxy.Routes, st)
		case "ready":
			ready[words[1]+" "+words[2]] = true
		case "stopping":
			v.Stopping[words[1]] = true
		default:
			t.Fatalf("no such line: %q", line)
		}
	}
	b, err := json.Marshal(snap)
	must(err, "the state")
	v.State, err = state.Unmarshal(bytes.NewReader(b))
	must(err, "the state")
	v.Ready = func(id, server string) bool { return ready[id+" "+server] }
	return v
}
