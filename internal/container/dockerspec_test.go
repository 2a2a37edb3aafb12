package container

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
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
