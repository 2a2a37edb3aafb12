package main

import (
	"testing"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

func TestFindTrashed(t *testing.T) {
	n1, n2 := api.NodeRef{ID: "01", Name: "n1"}, api.NodeRef{ID: "02", Name: "n2"}
	all := []trashed{
		{Kind: trashVolume, ID: "aaaa000000000001", Name: "shop", Node: n1},
		{Kind: trashVolume, ID: "bbbb000000000002", Name: "log", Node: n1},
		{Kind: trashVolume, ID: "bbbc000000000003", Name: "log", Node: n2},
		{Kind: trashCopy, ID: "aaaa000000000001-0000000000000001-1", Name: "shop", Node: n2},
		{Kind: trashCopy, ID: "cccc000000000004-0000000000000001-1", Name: "web", Node: n1},
		{Kind: trashCopy, ID: "cccc000000000004-0000000000000001-1", Name: "web", Node: n2},
	}
	for _, tt := range []struct {
		ref, node string
		want      int // of all
		code      volume.Code
	}{
		{"aaaa000000000001", "", 0, ""}, // though it begins another one's id
		{"shop", "", 0, ""},             // a copy has only its id
		{"aaaa0000", "", 0, volume.CodeConflict},
		{"aaaa0000", "n2", 3, ""},
		{"aaaa000000000001-0000", "", 3, ""},
		{"log", "", 0, volume.CodeConflict},
		{"log", "n2", 2, ""},
		{"bbbc", "", 2, ""},
		{"cccc000000000004-0000000000000001-1", "", 0, volume.CodeConflict},
		{"cccc000000000004-0000000000000001-1", "02", 5, ""},
		{"web", "", 0, volume.CodeNotFound},
		{"b", "", 0, volume.CodeNotFound}, // too short to be the start of an id
		{"", "", 0, volume.CodeInvalid},
		{"shop", "n3", 0, volume.CodeNotFound},
	} {
		got, err := findTrashed(all, tt.ref, tt.node)
		if volume.CodeOf(err) != tt.code || err == nil && got != all[tt.want] {
			t.Errorf("%q on %q: %v, %v", tt.ref, tt.node, got, err)
		}
	}
}
