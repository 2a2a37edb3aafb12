package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// An engine takes the beginning of an ID for a name. A container whose ID begins with the
// name of one that follows has nothing to do with it, and must neither stand in its way nor
// be taken for it.
func TestFindIsByName(t *testing.T) {
	const inspection = `{"Id":%q,"Name":%q,"Image":"sha256:1","State":{"Status":"running"},"Config":{"Image":"i"},"HostConfig":{}}`
	list := ""
	mux := http.NewServeMux()
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Api-Version", "1.41") })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/networks"):
			fmt.Fprint(w, `[]`)
		case strings.HasSuffix(r.URL.Path, "/containers/json"):
			fmt.Fprint(w, list)
		case strings.HasSuffix(r.URL.Path, "/containers/db01/json"), strings.HasSuffix(r.URL.Path, "/containers/db/json"):
			fmt.Fprintf(w, inspection, "db01", "/other")
		case strings.HasSuffix(r.URL.Path, "/containers/0a0b/json"):
			fmt.Fprintf(w, inspection, "0a0b", "/db")
		default:
			http.NotFound(w, r)
		}
	})
	socket := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: mux}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() { server.Close(); <-served })
	d := &Docker{Host: "unix://" + socket, Driver: "flocker"}
	defer d.Close()
	m := dockerMaker{d}

	list = `[{"Id":"db01","Names":["/other"]}]`
	if got, err := m.Find(t.Context(), "db"); !errors.Is(err, ErrNotFound) {
		t.Errorf("find db = %s named %q, %v; only another container's ID begins so", got.ID, got.Spec.Name, err)
	}
	// A link adds a name below the name of the container that is linked.
	list = `[{"Id":"db01","Names":["/other"]},{"Id":"0a0b","Names":["/web/base","/db"]}]`
	if got, err := m.Find(t.Context(), "db"); err != nil || got.ID != "0a0b" {
		t.Errorf("find db = %s, %v; want 0a0b", got.ID, err)
	}
}

// Only what flocker has made is removed with the volumes that its engine made for it alone, and only
// where none of these can be a flocker volume.
func TestRemovals(t *testing.T) {
	mounts, asked := "", ""
	mux := http.NewServeMux()
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Api-Version", "1.41") })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodDelete:
			asked = r.URL.Path[strings.Index(r.URL.Path, "/containers"):] + "?" + r.URL.Query().Encode()
			w.WriteHeader(http.StatusNoContent)
		case strings.HasSuffix(r.URL.Path, "/containers/a/json") && mounts != "":
			fmt.Fprintf(w, `{"Id":"a","Name":"/db","Image":"sha256:1","State":{"Status":"exited"},"Config":{"Image":"i"},"HostConfig":{},"Mounts":[%s]}`, mounts)
		default:
			http.NotFound(w, r)
		}
	})
	socket := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: mux}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() { server.Close(); <-served })
	d := &Docker{Host: "unix://" + socket, Driver: "flocker"}
	defer d.Close()
	m := dockerMaker{d}

	named := `{"Type":"volume","Name":"db","Driver":"flocker","Destination":"/data"},{"Type":"volume","Name":"` + strings.Repeat("0a", 32) + `","Driver":"local","Destination":"/cache"}`
	nameless := `{"Type":"volume","Name":"` + strings.Repeat("0a", 32) + `","Driver":"flocker","Destination":"/data"}`
	for _, tc := range []struct {
		name, mounts string
		remove       func(context.Context, string) error
		want         string
	}{
		{"somebody's", named, m.Remove, ""},
		{"ours", named, m.Discard, "v=1"},
		{"ours, running", named, m.End, "force=1&v=1"},
		{"ours, with a nameless flocker volume", nameless, m.End, "force=1"},
		{"ours, not described", "", m.End, "force=1"},
	} {
		mounts = tc.mounts
		if err := tc.remove(t.Context(), "a"); err != nil || asked != "/containers/a?"+tc.want {
			t.Errorf("%s: %v: asked %s, want %s", tc.name, err, asked, tc.want)
		}
	}
}

// A network is not removed from under a container, be it a stopped one; two who need the same one
// do not make it twice; and what was made is told also where the next one cannot be.
func TestNetworks(t *testing.T) {
	var mu sync.Mutex
	there, users, posted, deleted := map[string]bool{}, `[]`, 0, 0
	mux := http.NewServeMux()
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Api-Version", "1.41") })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		_, name, _ := strings.Cut(r.URL.Path, "/networks/")
		switch {
		case strings.HasSuffix(r.URL.Path, "/containers/json"):
			if q := r.URL.Query(); q.Get("all") != "1" || !strings.Contains(q.Get("filters"), `"network":{"id-back"`) {
				t.Errorf("asked for containers %v", q)
			}
			fmt.Fprint(w, users)
		case r.Method == http.MethodDelete && there["back"]:
			deleted++
			delete(there, "back")
		case name == "create":
			var def struct{ Name string }
			if err := json.NewDecoder(r.Body).Decode(&def); err != nil || def.Name == "bad" {
				http.Error(w, `{"message":"Pool overlaps with other one on this address space"}`, http.StatusForbidden)
				return
			}
			posted++
			there[def.Name] = true
			w.WriteHeader(http.StatusCreated)
			fmt.Fprintf(w, `{"Id":"id-%s"}`, def.Name)
		case there[name]:
			fmt.Fprintf(w, `{"Name":%q,"Id":"id-%s"}`, name, name)
		default:
			http.NotFound(w, r)
		}
	})
	socket := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: mux}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() { server.Close(); <-served })
	d := &Docker{Host: "unix://" + socket, Driver: "flocker"}
	defer d.Close()
	spec := func(names ...string) (s Spec) {
		for _, n := range names {
			s.Networks = append(s.Networks, Network{Name: n, Definition: json.RawMessage(fmt.Sprintf(`{"Name":%q}`, n))})
		}
		return s
	}

	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			if _, err := d.MakeNetworks(t.Context(), spec("bridge", "back")); err != nil {
				t.Errorf("MakeNetworks: %v", err)
			}
		})
	}
	both.Wait()
	if posted != 1 {
		t.Errorf("made %d times", posted)
	}
	made, err := d.MakeNetworks(t.Context(), spec("front", "bad"))
	if err == nil || !strings.Contains(err.Error(), "network bad: Pool overlaps") || len(made) != 1 || made["front"] != "id-front" {
		t.Errorf("made %v, %v", made, err)
	}
	users = `[{"Id":"a","Names":["/db"],"State":"exited"}]`
	if err := d.RemoveNetwork(t.Context(), "id-back"); !errors.Is(err, ErrInUse) || deleted > 0 {
		t.Errorf("RemoveNetwork of what a container has: %v, deleted %d", err, deleted)
	}
	users = `[]`
	for range 2 {
		if err := d.RemoveNetwork(t.Context(), "id-back"); err != nil || deleted != 1 {
			t.Errorf("RemoveNetwork: %v, deleted %d", err, deleted)
		}
	}
}
