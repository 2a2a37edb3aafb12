package api_test

import (
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

func TestChecks(t *testing.T) {
	labels := func(kv ...string) api.LabelRequest {
		set := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			set[kv[i]] = kv[i+1]
		}
		return api.LabelRequest{Set: set}
	}
	for _, tt := range []struct {
		name string
		r    interface{ Check() error }
		says string // "": it is right
	}{
		{"nothing asked", api.TokenRequest{}, ""},
		{"most", api.TokenRequest{TTL: api.MaxTokenTTL, MaxUses: api.MaxTokenUses, Note: strings.Repeat("x", api.MaxTokenNote)}, ""},
		{"negative life", api.TokenRequest{TTL: -time.Second}, "negative"},
		{"negative uses", api.TokenRequest{MaxUses: -1}, "negative"},
		{"too long a life", api.TokenRequest{TTL: api.MaxTokenTTL + 1}, "ask for less"},
		{"too many uses", api.TokenRequest{MaxUses: api.MaxTokenUses + 1}, "ask for fewer"},
		{"too long a note", api.TokenRequest{Note: strings.Repeat("x", api.MaxTokenNote+1)}, "at most 200"},
		{"a note with an escape", api.TokenRequest{Note: "\x1b[2J"}, "cannot be shown"},
		{"no labels", api.LabelRequest{Drop: []string{"\x1b"}}, ""}, // what is there can go
		{"labels", labels("disk", "nvme", "example.org/rack", "7 left"), ""},
		{"too long a key", labels(strings.Repeat("k", api.MaxLabelKey+1), "x"), "at most 128"},
		{"too long a value", labels("disk", strings.Repeat("v", api.MaxLabelValue+1)), "label disk has 257 bytes"},
		{"a key on two lines", labels("a\nb", "x"), "cannot be shown"},
		{"a value with an escape", labels("disk", "\x1b[2J"), "cannot be shown"},
	} {
		err := tt.r.Check()
		if (err == nil) != (tt.says == "") || err != nil && (volume.CodeOf(err) != volume.CodeInvalid || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.says)
		}
	}
}
