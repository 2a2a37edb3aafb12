package container_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/volume"
)

func TestBoundVolumes(t *testing.T) {
	for _, c := range []struct {
		constraints []string
		want        []string
	}{
		{nil, nil},
		{[]string{volume.SwarmConstraint("pg")}, []string{"pg"}},
		{[]string{"node.labels.flocker.volume.pg == true", "Node.Labels.flocker.volume.a.b-c==TRUE"}, []string{"a.b-c", "pg"}},
		{[]string{"node.labels.flocker.volume.pg==true", "node.labels.flocker.volume.pg==true"}, []string{"pg"}},
		{[]string{"node.labels.flocker.volume.pg!=true", "node.labels.flocker.volume.pg==false", "node.labels.flocker.volume.==true"}, nil},
		{[]string{"node.labels.Flocker.Volume.pg==true", "node.role==manager", "engine.labels.flocker.volume.pg==true", "node.labels"}, nil},
	} {
		if got := container.BoundVolumes(c.constraints); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q binds to %q, want %q", c.constraints, got, c.want)
		}
	}
}

// TestDockerSwarm reads a Swarm as a manager of API 1.41 shows it, and labels a node of it
// that somebody else changes at the same time: nothing of theirs is lost.
func TestDockerSwarm(t *testing.T) {
	type spec struct {
		Name, Role, Availability string
		Labels                   map[string]string
	}
	version, node := 7, spec{Name: "n2", Role: "worker", Availability: "active", Labels: map[string]string{"zone": "a", "flocker.volume.old": "true"}}
	updates, manager, is := 0, true, "active"
	mux := http.NewServeMux()
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		fmt.Fprint(w, "OK")
	})
	answer := func(w http.ResponseWriter, v any) {
		if err := json.NewEncoder(w).Encode(v); err != nil {
			t.Error(err)
		}
	}
	described := func() map[string]any {
		return map[string]any{"ID": "two", "Version": map[string]any{"Index": version}, "Spec": node, "Status": map[string]any{"State": "ready"}}
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		switch path := strings.TrimPrefix(r.URL.Path, "/v1.41"); path {
		case "/info":
			s := map[string]any{"NodeID": "one", "LocalNodeState": is, "ControlAvailable": manager}
			if manager {
				s["Cluster"] = map[string]any{"ID": "swarm"}
			}
			answer(w, map[string]any{"Swarm": s})
		case "/nodes":
			answer(w, []any{described(), map[string]any{"ID": "one", "Spec": spec{Availability: "drain"}, "Status": map[string]any{"State": "ready"}}})
		case "/services":
			fmt.Fprint(w, `[
 {"ID":"1","Spec":{"Name":"web","Mode":{"Replicated":{"Replicas":2}},"TaskTemplate":{"Placement":{"Constraints":["node.role==worker"]}}}},
 {"ID":"2","Spec":{"Name":"tally","Mode":{"Replicated":{"Replicas":1}},"TaskTemplate":{"RestartPolicy":{"Condition":"any","MaxAttempts":3},"ContainerSpec":{"StopGracePeriod":90000000000},"Placement":{"Constraints":["node.labels.flocker.volume.pg==true"]}}}},
 {"ID":"3","Spec":{"Name":"off","Mode":{"Replicated":{"Replicas":0}},"TaskTemplate":{"Placement":{"Constraints":["node.labels.flocker.volume.pg==true"]}}}},
 {"ID":"4","Spec":{"Name":"job","Mode":{"ReplicatedJob":{}},"TaskTemplate":{"RestartPolicy":{"Condition":"none"},"Placement":{"Constraints":["node.labels.flocker.volume.b==true","node.labels.flocker.volume.a==true"]}}}}]`)
		case "/nodes/two":
			answer(w, described())
		case "/nodes/two/update":
			if updates++; updates == 1 {
				version, node.Labels["rack"] = 8, "3" // somebody else was faster
			}
			if r.URL.Query().Get("version") != fmt.Sprint(version) {
				w.WriteHeader(http.StatusInternalServerError)
				fmt.Fprint(w, `{"message":"rpc error: code = Unknown desc = update out of sequence"}`)
				return
			}
			var got spec
			if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
				t.Error(err)
			}
			version, node = version+1, got
		default:
			t.Errorf("asked %s", r.URL.Path)
			http.NotFound(w, r)
		}
	})
	socket := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: mux}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })

	d := &container.Docker{Host: "unix://" + socket, Driver: "flocker"}
	defer d.Close()
	got, err := d.Swarm(t.Context())
	want := container.SwarmView{
		Nodes: []container.SwarmNode{{ID: "one"}, {ID: "two", Labels: node.Labels, Ready: true}},
		Services: []volume.SwarmService{
			{Name: "job", Volumes: []string{"a", "b"}, Wanted: true, Once: true, Grace: 10 * time.Second},
			{Name: "off", Volumes: []string{"pg"}, Grace: 10 * time.Second},
			{Name: "tally", Volumes: []string{"pg"}, Wanted: true, MaxAttempts: 3, Grace: 90 * time.Second}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("Swarm = %+v, %v; want %+v", got, err, want)
	}

	for range 2 { // the second changes nothing, and asks for nothing
		if err := d.LabelSwarmNode(t.Context(), "two", []string{"flocker.volume.pg"}, []string{"flocker.volume.old", "flocker.volume.none"}); err != nil {
			t.Fatal(err)
		}
	}
	if want := (spec{"n2", "worker", "active", map[string]string{"zone": "a", "rack": "3", "flocker.volume.pg": "true"}}); !reflect.DeepEqual(node, want) || updates != 2 {
		t.Errorf("the node is %+v after %d updates, want %+v after 2", node, updates, want)
	}

	for _, c := range []struct {
		is      string
		manager bool
		want    container.SwarmMember
	}{
		{"active", true, container.SwarmMember{Node: "one", Cluster: "swarm"}},
		{"active", false, container.SwarmMember{Node: "one"}},
		{"inactive", false, container.SwarmMember{}},
	} {
		is, manager = c.is, c.manager
		if got, err := d.SwarmMember(t.Context()); err != nil || got != c.want {
			t.Errorf("%+v: it is %+v, %v", c, got, err)
		}
	}
	is = "pending"
	if got, err := d.SwarmMember(t.Context()); err == nil {
		t.Errorf("an engine that does not know yet is %+v", got)
	}
}
