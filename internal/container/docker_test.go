package container_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/container"
)

// TestDockerAnswers reads answers as an engine of API 1.41 gives them.
func TestDockerAnswers(t *testing.T) {
	var paths []string
	mux := http.NewServeMux()
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		fmt.Fprint(w, "OK")
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		paths = append(paths, r.URL.Path+"?"+r.URL.RawQuery)
		switch {
		case strings.HasSuffix(r.URL.Path, "/version"):
			fmt.Fprint(w, `{"Version":"20.10.24+dfsg1","ApiVersion":"1.41","MinAPIVersion":"1.12"}`)
		case strings.HasSuffix(r.URL.Path, "/containers/json") && strings.Contains(r.URL.RawQuery, "flocker.links"):
			fmt.Fprint(w, `[
 {"Id":"aaaa","Names":["/db-1"],"State":"running","Labels":{"flocker.links":"cache"}},
 {"Id":"dddd","Names":["/gone"],"State":"running","Labels":{"flocker.links":"cache"}}]`)
		case strings.HasSuffix(r.URL.Path, "/containers/aaaa/json"):
			fmt.Fprint(w, `{"Id":"aaaa","HostConfig":{"ExtraHosts":["cache:host-gateway"]}}`)
		case strings.HasSuffix(r.URL.Path, "/networks"):
			fmt.Fprint(w, `[{"Name":"bridge","Driver":"bridge"}]`)
		case strings.HasSuffix(r.URL.Path, "/containers/json"):
			fmt.Fprint(w, `[
 {"Id":"aaaa","Names":["/db-1"],"State":"running","Labels":{"flocker.enable":"true"},
   "Ports":[{"IP":"0.0.0.0","PrivatePort":5432,"PublicPort":15432,"Type":"tcp"},{"IP":"::","PrivatePort":5432,"PublicPort":15432,"Type":"tcp"},{"PrivatePort":53,"Type":"udp"}],"Mounts":[
   {"Type":"volume","Name":"db","Source":"","Destination":"/data","Driver":"flocker","Mode":"z","RW":true,"Propagation":""},
   {"Type":"volume","Name":"cache","Source":"/var/lib/docker/volumes/cache/_data","Destination":"/cache","Driver":"local","RW":true},
   {"Type":"bind","Source":"/etc","Destination":"/host","RW":false}]},
 {"Id":"bbbb","Names":["/reader"],"State":"exited","Mounts":[
   {"Type":"volume","Name":"db","Destination":"/data","Driver":"flocker","RW":false}]},
 {"Id":"cccc","Names":["/other"],"State":"running","Mounts":[]}]`)
		case strings.HasSuffix(r.URL.Path, "/volumes"):
			fmt.Fprint(w, `{"Volumes":[{"Name":"db","Driver":"local","Mountpoint":"/var/lib/docker/volumes/db/_data","Options":{"type":"none","o":"bind","device":"/srv/pg:1"}},
 {"Name":"x","Driver":"local","Options":{"type":"overlay","device":"overlay","o":"lowerdir=/l1:/l2,upperdir=/up,index=off"}}],"Warnings":null}`)
		case strings.HasSuffix(r.URL.Path, "/events"):
			for _, action := range []string{"start", "exec_create: true", "exec_start: true", "exec_die", "health_status: healthy", "die"} {
				fmt.Fprintf(w, `{"Type":"container","Action":%q,"Actor":{"ID":"aaaa"}}`+"\n", action)
			}
			if !strings.Contains(r.URL.RawQuery, "image") || !strings.Contains(r.URL.RawQuery, "network") {
				return
			}
			for kind, actions := range map[string]string{"image": "load pull tag import untag delete save", "network": "create connect disconnect destroy"} {
				for action := range strings.FieldsSeq(actions) {
					fmt.Fprintf(w, `{"Type":%q,"Action":%q,"Actor":{"ID":"aaaa"}}`+"\n", kind, action)
				}
			}
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
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })

	ctx := t.Context()
	d := &container.Docker{Host: "unix://" + socket, Driver: "flocker"}
	defer d.Close()
	if v, err := d.Version(ctx); err != nil || v != (container.Version{Engine: "20.10.24+dfsg1", API: "1.41"}) {
		t.Errorf("Version = %+v, %v", v, err)
	}
	bound, err := d.Bound(ctx)
	if want := []container.Bound{
		{Name: "db-1", State: container.Running, Source: "/etc"},
		{Name: "db", Volume: true, Source: "/var/lib/docker/volumes/db/_data"}, {Name: "db", Volume: true, Source: "/srv/pg:1"},
		{Name: "x", Volume: true, Source: "/l1"}, {Name: "x", Volume: true, Source: "/l2"}, {Name: "x", Volume: true, Source: "/up"},
	}; err != nil || !slices.Equal(bound, want) {
		t.Errorf("Bound = %+v, %v, want %+v", bound, err, want)
	}
	users, err := d.Users(ctx)
	want := []container.Use{
		{Container: "aaaa", Name: "db-1", State: container.Running, Labels: map[string]string{"flocker.enable": "true"},
			Ports: container.Ports{Exposed: []int{5432}}, Volumes: []container.Mount{{Volume: "db", Driver: "flocker", Destination: "/data"}}},
		{Container: "bbbb", Name: "reader", State: container.Exited,
			Volumes: []container.Mount{{Volume: "db", Driver: "flocker", Destination: "/data", ReadOnly: true}}},
	}
	if err != nil || !reflect.DeepEqual(users, want) {
		t.Errorf("Users = %+v, %v; want %+v", users, err, want)
	}
	asked := len(paths)
	for range 2 {
		links, err := d.Linking(ctx)
		want := []container.Linking{{Name: "db-1", Label: "cache", Hosts: []string{"cache:host-gateway"}}}
		if err != nil || !reflect.DeepEqual(links, want) {
			t.Errorf("Linking = %+v, %v; want %+v", links, err, want)
		}
	}
	if n := len(paths) - asked; n != 5 { // twice the list and the one that is gone, and once the other
		t.Errorf("Linking asked %q; want each container that is there inspected once", paths[asked:])
	}
	target, err := d.Target(ctx)
	published := []container.PublishedBy{
		{Binding: container.Binding{Address: "0.0.0.0", Host: 15432, Port: 5432, Protocol: "tcp"}, Container: "db-1"},
		{Binding: container.Binding{Address: "::", Host: 15432, Port: 5432, Protocol: "tcp"}, Container: "db-1"},
	}
	if err != nil || !reflect.DeepEqual(target.Published, published) || target.Containers["other"] != "cccc" {
		t.Errorf("Target = %+v, %v; want what is published to be %+v", target, err, published)
	}
	local, err := d.LocalVolumes(ctx)
	if err != nil || !reflect.DeepEqual(local, []string{"db", "x"}) {
		t.Errorf("LocalVolumes = %v, %v", local, err)
	}
	var connected, changed int
	err = d.Follow(ctx, func() { connected++ }, func() { changed++ })
	if err == nil || connected != 1 || changed != 7 {
		t.Errorf("Follow = %v with %d connections, %d changes; want an end of the stream, 1, 7", err, connected, changed)
	}
	for _, p := range paths {
		if !strings.HasPrefix(p, "/v1.41/") {
			t.Errorf("asked %s; want the version of the engine", p)
		}
	}
}

// No engine is an error everywhere, never an empty list.
func TestDockerAway(t *testing.T) {
	d := &container.Docker{Host: "unix://" + filepath.Join(t.TempDir(), "docker.sock"), Driver: "flocker"}
	ctx := context.Background()
	if u, err := d.Users(ctx); err == nil {
		t.Errorf("Users = %v without an engine", u)
	}
	if v, err := d.LocalVolumes(ctx); err == nil {
		t.Errorf("LocalVolumes = %v without an engine", v)
	}
	if err := d.Activate(ctx); err == nil {
		t.Error("Activate succeeded without an engine")
	}
	if err := d.Follow(ctx, func() { t.Error("connected to nothing") }, func() {}); err == nil {
		t.Error("Follow succeeded without an engine")
	}
}
