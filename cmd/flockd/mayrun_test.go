package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a later version has written is told before anything is stopped for this one.
func TestMayRun(t *testing.T) {
	s, _ := known(t)
	var b bytes.Buffer
	if err := s.Marshal(&b); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, state, fence, want string }{
		{"a new machine", "", "", ""},
		{"this version's", b.String(), `{"boot":"b"}`, ""},
		{"a later state", strings.Replace(b.String(), `"format":1`, `"format":2`, 1), "", "install the version"},
		{"a later fencer", b.String(), `{"boot":"b","later":true}`, "the fencer's state"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range map[string]string{"flockd.yml": "log_level: info\n", "state.json": c.state, "fence.json": c.fence} {
				if text != "" {
					if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			var out bytes.Buffer
			err := run(t.Context(), []string{"flockd", "--config", filepath.Join(dir, "flockd.yml"), "--state-dir", dir, "--run-dir", dir, "may-run"}, &out, &out)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}
