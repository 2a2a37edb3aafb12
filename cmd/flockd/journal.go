package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	flockd "github.com/flocker-io/flocker/internal/daemon"
)

// Of each service no more than so many lines, the newest ones, and so many bytes are read.
const (
	journalLines = 20000
	journalBytes = 8 << 20
)

// journal is what systemd has kept of our services' logs.
func journal(since time.Duration) (papers []flockd.Paper) {
	for _, unit := range []string{"flockd", "flockd-fence", "flockd-proxy"} {
		papers = append(papers, flockd.Paper{Name: "logs/" + unit + ".log", Log: true, Ask: func(ctx context.Context) (string, error) {
			return readJournal(ctx, unit, since)
		}})
	}
	return papers
}

func readJournal(ctx context.Context, unit string, since time.Duration) (string, error) {
	cmd := exec.CommandContext(ctx, "journalctl", "--unit", unit+".service", "--since", fmt.Sprintf("-%ds", int(since.Seconds())),
		"--lines", fmt.Sprint(journalLines), "--output", "short-iso-precise", "--no-pager", "--quiet")
	cmd.WaitDelay = time.Second
	out, complaint := &tail{max: journalBytes}, &tail{max: 4 << 10}
	cmd.Stdout, cmd.Stderr = out, complaint
	if err := cmd.Run(); err != nil {
		if said := strings.TrimSpace(string(complaint.kept)); said != "" {
			err = errors.New(said)
		}
		return string(out.kept), fmt.Errorf("reading the journal of %s: %w", unit, err)
	}
	return string(out.kept), nil
}

// tail keeps the end of what is written to it.
type tail struct {
	max  int
	kept []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.kept = append(t.kept, b...)
	if len(t.kept) > 2*t.max { // not at each write
		t.kept = append([]byte(nil), t.kept[len(t.kept)-t.max:]...)
	}
	return len(b), nil
}
