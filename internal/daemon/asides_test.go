package daemon

import (
	"slices"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

func TestFindAside(t *testing.T) {
	on := func(node, name string) api.Aside {
		return api.Aside{Aside: volume.Aside{Name: name}, Node: api.NodeRef{ID: volume.NodeID(node), Name: node}}
	}
	all := api.Asides{Asides: []api.Aside{
		on("n1", "aaaa0000-1-1"), on("n2", "aaaa0000-1-1"), on("n1", "aaaa0000-1-12"), on("n1", "bbbb0000-1-1"),
	}}
	tests := []struct{ ref, node, want string }{
		{"bbbb", "", "n1 bbbb0000-1-1"},
		{"bbbb0000-1-1", "", "n1 bbbb0000-1-1"},
		{"bbb", "", `no set-aside copy "bbb"`},
		{"", "", `no set-aside copy ""`},
		{"aaaa0000-1-12", "", "n1 aaaa0000-1-12"},
		{"aaaa0000-1-1", "", "ambiguous: it may be aaaa0000-1-1 on n1, aaaa0000-1-1 on n2"},
		{"aaaa0000-1-1", "n2", "n2 aaaa0000-1-1"},
		{"aaaa", "n1", "ambiguous: it may be aaaa0000-1-1 on n1, aaaa0000-1-12 on n1"},
		{"aaaa", "n2", "n2 aaaa0000-1-1"},
		{"bbbb", "n2", `no set-aside copy "bbbb"`},
	}
	for _, tt := range tests {
		a, err := findAside(all, tt.ref, volume.NodeID(tt.node))
		got := a.Node.Name + " " + a.Name
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, tt.want) {
			t.Errorf("%q on %q: got %q, want %q", tt.ref, tt.node, got, tt.want)
		}
	}
	all.Unheard = []api.NodeRef{{Name: "n3"}}
	if _, err := findAside(all, "cccc", ""); err == nil || !strings.Contains(err.Error(), "it may be on n3") {
		t.Errorf("with a node that is not heard: %v", err)
	}
}

// A volume that is made of a copy leaves to others what they listen on, mostly to the one that it
// was a copy of; what is asked for is left to be refused.
func TestWithoutTaken(t *testing.T) {
	s, apply := cloneState(t)
	listen := func(ports string) volume.Spec {
		t.Helper()
		spec, err := volume.ParseOptions(map[string]string{"ports": ports})
		if err != nil {
			t.Fatal(err)
		}
		return spec
	}
	apply(state.CreateVolume{ID: "000000000000000f", Name: "db", Spec: listen("80:8080/http,6379"), Placement: volume.Placement{Primary: cloneN1}})
	for _, tt := range []struct {
		ports string
		given map[string]string
		want  []int
		said  string
	}{
		{ports: "80:8080/http,6379", said: `port 80 is that of volume "db"; port 6379 is that of volume "db"`},
		{ports: "80/http,81", want: []int{81}, said: `port 80 is that of volume "db"`},
		{ports: "81", want: []int{81}},
		{ports: "none"},
		{ports: "6379", given: map[string]string{"ports": "6379"}, want: []int{6379}},
	} {
		spec, said := withoutTaken(s, listen(tt.ports), tt.given)
		var got []int
		for _, r := range spec.Ports {
			got = append(got, r.Listen)
		}
		if !slices.Equal(got, tt.want) || strings.Join(said, "; ") != tt.said {
			t.Errorf("%s, given %v: it has %v, and is without %q; want %v and %q", tt.ports, tt.given, got, said, tt.want, tt.said)
		}
	}
}
