package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestJournal(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":/bin:/usr/bin")
	stand := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "journalctl"), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	stand(`echo "$*"`)
	var names []string
	for _, p := range journal(90 * time.Minute) {
		names = append(names, p.Name)
		out, err := p.Ask(t.Context())
		unit := strings.TrimSuffix(filepath.Base(p.Name), ".log") + ".service"
		if err != nil || !strings.Contains(out, "--unit "+unit+" --since -5400s --lines 20000 ") || !p.Log {
			t.Errorf("%s: journalctl %q, %v", p.Name, out, err)
		}
	}
	if got := strings.Join(names, " "); got != "logs/flockd.log logs/flockd-fence.log logs/flockd-proxy.log" {
		t.Errorf("papers %s", got)
	}
	stand("echo part; echo 'no journal files' >&2; exit 1")
	out, err := readJournal(t.Context(), "flockd", time.Hour)
	if out != "part\n" || err == nil || !strings.Contains(err.Error(), "no journal files") {
		t.Errorf("one that fails: %q, %v", out, err)
	}
}

func TestTail(t *testing.T) {
	x := tail{max: 4}
	for _, s := range []string{"abc", "defg", "hij", "k"} {
		x.Write([]byte(s))
	}
	if got := string(x.kept); !strings.HasSuffix(got, "hijk") || len(got) > 8 {
		t.Errorf("kept %q", got)
	}
}
