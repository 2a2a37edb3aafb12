package main

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/manual"
)

// docs/CLI.md says what the commands say. UPDATE=1 writes it.
func TestManualIsUpToDate(t *testing.T) {
	const file = "../../docs/CLI.md"
	was, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	now, err := manual.Replace(string(was), "flockd", manual.Markdown(commandLine(t.Context(), io.Discard, io.Discard)))
	if err != nil {
		t.Fatal(err)
	}
	if now == string(was) {
		return
	}
	if os.Getenv("UPDATE") == "" {
		t.Fatalf("%s is not what the commands say: UPDATE=1 go test ./cmd/flockd", file)
	}
	if err := os.WriteFile(file, []byte(now), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestManPage(t *testing.T) {
	var page bytes.Buffer
	if err := run(t.Context(), []string{"flockd", "__man"}, &page, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{".TH FLOCKD 8 ", ".SS flockd fence", ".SS flockd recover", "FLOCKD_STATE_DIR"} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page has no %q", want)
		}
	}
}
