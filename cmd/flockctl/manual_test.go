package main

import (
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
	now, err := manual.Replace(string(was), "flockctl", manual.Markdown((&app{world: system()}).root()))
	if err != nil {
		t.Fatal(err)
	}
	if now == string(was) {
		return
	}
	if os.Getenv("UPDATE") == "" {
		t.Fatalf("%s is not what the commands say: UPDATE=1 go test ./cmd/flockctl", file)
	}
	if err := os.WriteFile(file, []byte(now), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestManPage(t *testing.T) {
	page := manual.Man((&app{world: system()}).root(), 1, "v1")
	for _, want := range []string{".TH FLOCKCTL 1 ", ".SS flockctl doctor", ".SS flockctl volume create [options] NAME", "no such volume"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %q", want)
		}
	}
	if strings.Contains(page, completeName) || strings.Contains(page, manName) {
		t.Error("what is hidden is in the page")
	}
}
