package daemon

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
)

func TestSources(t *testing.T) {
	v := &state.Volume{Placement: volume.Placement{Primary: "p", Local: []volume.NodeID{"a", "b"}, Remote: []volume.NodeID{"c"}}}
	for _, tt := range []struct {
		self   volume.NodeID
		newest bool
		want   string
	}{
		{"p", false, "p a b! c"},
		{"p", true, "p a b! c"},
		{"a", false, "a p b! c"},
		{"c", false, "c p a b!"},
		{"c", true, "p c a b!"},
		{"x", false, "p a b! c"},
		{"x", true, "p a b! c"},
	} {
		var got []string
		for _, s := range sources(v, tt.self, tt.newest, func(n volume.NodeID) string { return map[volume.NodeID]string{"b": "!"}[n] }) {
			got = append(got, string(s.node)+s.why)
		}
		if got := strings.Join(got, " "); got != tt.want {
			t.Errorf("asked on %s, newest %v: %s, want %s", tt.self, tt.newest, got, tt.want)
		}
	}
	if got := sources(&state.Volume{}, "x", true, func(volume.NodeID) string { return "" }); len(got) > 0 {
		t.Errorf("of a volume without copies: %v", got)
	}
}

func TestWantedSnapshots(t *testing.T) {
	list := []replicate.Snapshot{{Name: "a", GUID: 1}, {Name: "b", GUID: 2}, {Name: "c", GUID: 3}}
	for _, tt := range []struct {
		req  api.BrowseCopyRequest
		want string
	}{
		{api.BrowseCopyRequest{}, "[c b a]"},
		{api.BrowseCopyRequest{Snapshot: "b"}, "[b]"},
		{api.BrowseCopyRequest{GUID: 1, Snapshot: "b"}, "[a]"}, // the name means another one where it was asked for
		{api.BrowseCopyRequest{GUID: 4, Snapshot: "b"}, "[]"},
		{api.BrowseCopyRequest{Snapshot: "d"}, "[]"},
	} {
		names := []string{}
		for _, s := range wanted(list, tt.req) {
			names = append(names, s.Name)
		}
		if got := fmt.Sprint(names); got != tt.want {
			t.Errorf("%+v: %s, want %s", tt.req, got, tt.want)
		}
	}
}

// Only who knows best has the last word.
func TestFinalAnswers(t *testing.T) {
	for _, tt := range []struct {
		err            error
		primary, exact bool
		want           bool
	}{
		{volume.Errorf(volume.CodeInvalid, "a directory"), false, false, true},
		{volume.Errorf(volume.CodeRefused, "leads out"), false, false, true},
		{volume.Errorf(volume.CodeNotFound, "none has it"), true, false, true},
		{volume.Errorf(volume.CodeNotFound, "none has it"), false, false, false},
		{volume.Errorf(volume.CodeNotFound, "not in this one"), false, true, true},
		{volume.Errorf(volume.CodeUnavailable, "busy"), true, true, false},
		{errors.New("input/output error"), true, true, false},
	} {
		if got := final(tt.err, tt.primary, tt.exact); got != tt.want {
			t.Errorf("%v, primary %v, exact %v: %v", tt.err, tt.primary, tt.exact, got)
		}
	}
}
