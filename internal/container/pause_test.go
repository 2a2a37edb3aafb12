package container

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// The clients of a volume that has moved wait for each call of its engine until its container is
// started. These are all of them: of one that is new there, and of one that takes the place of the
// one that ran there before. The image, which is the same under its ID for ever, is asked about once
// besides the look whether it is here at all.
func TestRecreateCalls(t *testing.T) {
	e := &countedEngine{containers: map[string]string{}, ran: map[string]bool{}}
	d := e.serve(t)
	spec := Spec{Name: "db", Image: Image{ID: "sha256:1", Ref: "i"},
		Config: json.RawMessage(`{"Image":"i"}`), HostConfig: json.RawMessage(`{"NetworkMode":"default"}`),
		Mounts: []MountPoint{{Type: "volume", Name: "pg", Driver: "flocker", Destination: "/data"}}}
	stays := func(ctx context.Context, id string) error { _, err := d.Inspect(ctx, id); return err }
	const (
		list    = "GET /containers/json"
		made    = "GET /images/i/json, GET /volumes/pg, POST /containers/create, GET /containers/ID/json"
		started = "POST /containers/ID/rename, POST /containers/ID/start"
	)
	for _, c := range []struct {
		name  string
		known Known
		want  []string
	}{
		{"new", Known{}, []string{list, list, made, started, "GET /containers/ID/json, GET /images/sha256:1/json", list}},
		{"in the place of another", Known{Replaces: []string{"id1"}}, []string{
			list, "GET /containers/ID/json", list, made, "POST /containers/ID/rename", started, "GET /containers/ID/json", list, "GET /containers/ID/json, DELETE /containers/ID"}},
	} {
		e.calls = nil
		for _, ended := range e.containers {
			e.ran[ended] = false
		}
		if _, err := d.Recreate(t.Context(), spec, c.known, stays); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if got, want := strings.Join(e.calls, ", "), strings.Join(c.want, ", "); got != want {
			t.Errorf("%s: the engine was asked\n%s\nwant\n%s", c.name, got, want)
		}
	}
}

// countedEngine is an engine that notes what it is asked.
type countedEngine struct {
	mu         sync.Mutex
	calls      []string
	containers map[string]string // ID by name
	ran        map[string]bool   // by ID; false: it has ended
	made       int
}

var someID = regexp.MustCompile(`/containers/(id[0-9]+)`)

func (e *countedEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/v1.41")
	if path == "/_ping" {
		w.Header().Set("Api-Version", "1.41")
		return
	}
	id := ""
	if m := someID.FindStringSubmatch(path); m != nil {
		id = m[1]
	}
	e.calls = append(e.calls, r.Method+" "+someID.ReplaceAllString(path, "/containers/ID"))
	switch {
	case path == "/containers/json":
		var all []map[string]any
		for name, id := range e.containers {
			all = append(all, map[string]any{"Id": id, "Names": []string{"/" + name}})
		}
		_ = json.NewEncoder(w).Encode(all)
	case strings.HasPrefix(path, "/images/"):
		fmt.Fprint(w, `{"Id":"sha256:1","RootFS":{"Layers":["a"]}}`)
	case path == "/volumes/pg":
		fmt.Fprint(w, `{"Name":"pg","Driver":"flocker"}`)
	case path == "/containers/create":
		e.made++
		id = fmt.Sprintf("id%d", e.made)
		e.containers[r.URL.Query().Get("name")] = id
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"Id":%q}`, id)
	case strings.HasSuffix(path, "/rename"):
		e.forget(id)
		e.containers[r.URL.Query().Get("name")] = id
		w.WriteHeader(http.StatusNoContent)
	case strings.HasSuffix(path, "/start"):
		e.ran[id] = true
		w.WriteHeader(http.StatusNoContent)
	case r.Method == http.MethodDelete:
		e.forget(id)
		w.WriteHeader(http.StatusNoContent)
	case strings.HasSuffix(path, "/json") && id != "":
		status, began := "created", "0001-01-01T00:00:00Z"
		if running, ran := e.ran[id]; ran {
			began, status = "2026-01-01T00:00:00Z", map[bool]string{true: "running", false: "exited"}[running]
		}
		fmt.Fprintf(w, `{"Id":%q,"Name":"/db","Image":"sha256:1","State":{"Status":%q,"StartedAt":%q},"Config":{"Image":"i"},"HostConfig":{"NetworkMode":"default"},
			"Mounts":[{"Type":"volume","Name":"pg","Driver":"flocker","Destination":"/data","RW":true}]}`, id, status, began)
	default:
		http.NotFound(w, r)
	}
}

func (e *countedEngine) forget(id string) {
	for name, has := range e.containers {
		if has == id {
			delete(e.containers, name)
		}
	}
}

func (e *countedEngine) serve(t *testing.T) *Docker {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: e}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() { server.Close(); <-served })
	d := &Docker{Host: "unix://" + socket, Driver: "flocker"}
	t.Cleanup(func() { d.Close() })
	return d
}
