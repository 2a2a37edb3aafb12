package daemon

import (
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/api"
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
