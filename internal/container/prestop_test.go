package container

import (
	"strings"
	"testing"
)

func TestPreStopOf(t *testing.T) {
	for _, c := range []struct {
		label, image string
		name, says   string // of the command; "": none
	}{
		{"", "postgres:16", "postgres", "CHECKPOINT"},
		{"", "postgres", "postgres", "CHECKPOINT"},
		{"", "mirror:5000/library/postgres:16.4@sha256:abc", "postgres", "CHECKPOINT"},
		{"", "library/redis", "redis", "shutdown-on-sigterm"},
		{"", "postgres@sha256:abc", "postgres", "CHECKPOINT"},
		{"", "redis:7-alpine", "redis", "shutdown-on-sigterm"},
		{"", "mirror:5000/postgres:16", "", ""},
		{"", "somebody/postgres", "", ""},
		{"", "mylibrary/postgres", "", ""},
		{"", "postgres-exporter", "", ""},
		{"", "sha256:0123", "", ""},
		{"", "", "", ""},
		{"none", "postgres:16", "", ""},
		{"postgres", "mirror:5000/pg:16", "postgres", "CHECKPOINT"},
		{"sync", "postgres:16", LabelPreStop, "sync"},
	} {
		p := PreStopOf(map[string]string{LabelPreStop: c.label}, c.image)
		command := strings.Join(p.Command, " ")
		if p.Name != c.name || (command == "") != (c.says == "") || !strings.Contains(command, c.says) {
			t.Errorf("label %q, image %q: %q runs %q, want %q with %q", c.label, c.image, p.Name, command, c.name, c.says)
		}
	}
}
