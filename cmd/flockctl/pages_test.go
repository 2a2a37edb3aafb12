package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// What pages tell people to type is there: each command, and each of its options. It may be a
// group, where it is only spoken of.
func TestCommandsInPages(t *testing.T) {
	root := (&app{world: system()}).root()
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, page := range append(pages, "../../README.md", "../../CHANGELOG.md") {
		if filepath.Base(page) == "CLI.md" {
			continue // made from the commands
		}
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range typedIn(string(text)) {
			seen++
			if wrong := untypable(root, strings.Fields(line)); wrong != "" {
				t.Errorf("%s: flockctl %s: %s", filepath.Base(page), line, wrong)
			}
		}
	}
	if seen < 200 {
		t.Errorf("only %d commands are found in all pages: are they looked for rightly?", seen)
	}
}

// typedIn are the command lines of flockctl in a page, without its name: in blocks of code, where what
// follows after two spaces or a # is said about them, and in code within a line.
func typedIn(page string) (lines []string) {
	fence := false
	for line := range strings.Lines(page) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, "```") {
			fence = !fence
			continue
		}
		if code, ok := strings.CutPrefix(line, "    "); (ok || fence) && !strings.HasPrefix(strings.TrimSpace(line), "- ") {
			if !ok {
				code = line
			}
			code = strings.TrimPrefix(strings.TrimSpace(code), "sudo ")
			if cmd, ok := strings.CutPrefix(code, "flockctl "); ok {
				cmd, _, _ = strings.Cut(cmd, "  ")
				cmd, _, _ = strings.Cut(cmd, " #")
				cmd, _, _ = strings.Cut(cmd, " |")
				lines = append(lines, cmd)
			}
			continue
		}
		for _, m := range inline.FindAllStringSubmatch(line, -1) {
			lines = append(lines, m[1])
		}
	}
	return lines
}

var inline = regexp.MustCompile("`(?:sudo )?flockctl ([^`]+)`")

// untypable says what of a command line is not there, "" where all is.
func untypable(root *cli.App, args []string) string {
	for i, a := range args {
		args[i] = strings.Trim(a, "[];")
	}
	if old, err := fromFlocker(root, args); err == nil {
		args = old // what flockerctl was told
	}
	w := parse(root, args)
	if w.command == nil && len(w.rest) > 0 {
		return "there is no command " + w.rest[0]
	}
	if w.command != nil && len(w.command.Subcommands) > 0 && len(w.rest) > 0 && w.command.ArgsUsage == "" {
		return "there is no command " + strings.Join(append(w.path, w.rest[0]), " ")
	}
	for _, option := range w.options {
		if strings.HasPrefix(option, "-") && len(option) > 1 && w.find(option) == nil && lookup(root.Flags, option) == nil {
			return "there is no option " + option
		}
	}
	return ""
}

// A check that finds nothing may only be blind.
func TestUntypable(t *testing.T) {
	root := (&app{world: system()}).root()
	for _, tt := range []struct{ page, want string }{
		{"    flockctl status              how it is\n    sudo flockctl init --pool tank\n", ""},
		{"`flockctl volume inspect NAME` and `flockctl node drain NODE`, `flockctl aside`", ""},
		{"    flockctl snapshot list pg   # all of them\n    flockctl top | grep lagging\n", ""},
		{"    flockctl backup [--full] create shop /mnt", ""},
		{"    flockctl stauts\n", "there is no command stauts"},
		{"say `flockctl node drian n1`", "there is no command node drian"},
		{"say `flockctl migrate pg --fast`", "there is no option --fast"},
	} {
		wrong := ""
		lines := typedIn(tt.page)
		for _, line := range lines {
			wrong += untypable(root, strings.Fields(line))
		}
		if wrong != tt.want || len(lines) == 0 {
			t.Errorf("%q: %q of %q, want %q", tt.page, wrong, lines, tt.want)
		}
	}
}
