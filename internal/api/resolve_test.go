package api_test

import (
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

func TestResolve(t *testing.T) {
	candidates := []api.Candidate{
		{ID: "aaaa000000000001", Name: "pgdata"},
		{ID: "aaaa000000000002", Name: "redis"},
		{ID: "bbbb000000000003", Name: "twice", Note: "removed 1h ago"},
		{ID: "cccc000000000004", Name: "twice", Note: "removed 2h ago"},
		{ID: "dddd000000000005", Name: "bbbb"},             // a name that begins another's ID
		{ID: "eeee000000000006", Name: "aaaa000000000001"}, // a name that is another's ID
		{ID: "ffff000000000007"},
	}
	tests := []struct {
		ref  string
		want string
		code volume.Code
		says string
	}{
		{ref: "pgdata", want: "aaaa000000000001"},
		{ref: "aaaa000000000002", want: "aaaa000000000002"},
		{ref: "cccc", want: "cccc000000000004"},
		{ref: "ffff", want: "ffff000000000007"},
		{ref: "bbbb", want: "dddd000000000005"},             // name before prefix
		{ref: "bbbb0", want: "bbbb000000000003"},            //
		{ref: "aaaa000000000001", want: "aaaa000000000001"}, // ID before name
		{ref: "twice", code: volume.CodeConflict, says: "bbbb000000000003 (twice, removed 1h ago), cccc000000000004 (twice, removed 2h ago)"},
		{ref: "aaaa", code: volume.CodeConflict, says: "aaaa000000000001 (pgdata), aaaa000000000002 (redis)"},
		{ref: "ccc", code: volume.CodeNotFound, says: `no volume "ccc"`}, // too short
		{ref: "PGDATA", code: volume.CodeNotFound, says: `no volume "PGDATA"`},
		{ref: "", code: volume.CodeInvalid, says: "no volume given"},
	}
	for _, tt := range tests {
		got, err := api.Resolve("volume", tt.ref, candidates)
		if got != tt.want || volume.CodeOf(err) != tt.code {
			t.Errorf("Resolve(%q) = %q, %v; want %q, code %q", tt.ref, got, err, tt.want, tt.code)
		}
		if err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("Resolve(%q): error %q does not say %q", tt.ref, err, tt.says)
		}
	}
}

func TestResolveNamesOnlySome(t *testing.T) {
	var many []api.Candidate
	for i := range 20 {
		many = append(many, api.Candidate{ID: "abcd" + string(rune('a'+i))})
	}
	_, err := api.Resolve("volume", "abcd", many)
	if err == nil || !strings.HasSuffix(err.Error(), "abcdh, 12 more") {
		t.Errorf("got %v", err)
	}
}
