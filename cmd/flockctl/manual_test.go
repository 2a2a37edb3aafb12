package main

import (
	"os"
	"os/exec"
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

// The page is one that man can show, without a warning.
func TestManPageIsShown(t *testing.T) {
	if _, err := exec.LookPath("groff"); err != nil {
		t.Skip("there is no groff here")
	}
	var said strings.Builder
	c := exec.Command("groff", "-man", "-Tutf8", "-P-cbou", "-ww", "-rLL=200n")
	c.Stdin, c.Stderr = strings.NewReader(manual.Man((&app{world: system()}).root(), 1, "v1")), &said
	shown, err := c.Output()
	if err != nil || said.Len() > 0 {
		t.Fatalf("groff: %v: %s", err, said.String())
	}
	for _, want := range []string{"flockctl volume create [options] NAME", "flockctl top", "no such volume"} {
		if !strings.Contains(string(shown), want) {
			t.Errorf("what man shows has no %q", want)
		}
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
