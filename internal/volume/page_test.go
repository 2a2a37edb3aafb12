package volume

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// rowsOf are the lines of the table that begins with this head, by their cells.
func rowsOf(page, head string) (rows [][]string) {
	_, table, _ := strings.Cut(page, "\n| "+head+" |")
	_, table, _ = strings.Cut(table, "\n") // the rest of the head
	_, table, _ = strings.Cut(table, "\n") // the line below it
	for line := range strings.Lines(table) {
		line, ok := strings.CutPrefix(strings.TrimSpace(line), "|")
		if !ok {
			break
		}
		var cells []string
		for cell := range strings.SplitSeq(strings.TrimSuffix(line, "|"), "|") {
			cells = append(cells, strings.TrimSpace(cell))
		}
		rows = append(rows, cells)
	}
	return rows
}

// quoted are the words of a text that are written as code.
func quoted(text string) (out []string) {
	for _, m := range regexp.MustCompile("`([^`]*)`").FindAllStringSubmatch(text, -1) {
		out = append(out, m[1])
	}
	return out
}

// docs/DOCKER.md has each option, in the order of help, with what is without it, and says which can
// be changed later; and each profile with what it sets.
func TestPageOfOptions(t *testing.T) {
	text, err := os.ReadFile("../../docs/DOCKER.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	usual := DefaultSpec().Options()
	var names []string
	for _, cells := range rowsOf(page, "option") {
		if len(cells) != 4 || len(quoted(cells[0])) != 1 {
			t.Fatalf("the row %q is not one of option, value, without it, later", cells)
		}
		name := quoted(cells[0])[0]
		if name == zfsPrefix+"PROPERTY" {
			for _, property := range quoted(cells[1]) {
				names = append(names, zfsPrefix+property)
			}
			continue
		}
		names = append(names, name)
		if is := usual[name]; is != "" && !strings.HasPrefix(cells[2], "`"+is+"`") {
			t.Errorf("without %s it is %s, and the page says %q", name, is, cells[2])
		}
		if later := slices.Contains(ChangeableOptions(), name); later != (cells[3] == "yes") {
			t.Errorf("that %s can be changed later is %v, and the page says %q", name, later, cells[3])
		}
	}
	if want := OptionNames(); !slices.Equal(names, want) {
		t.Errorf("the page has the options\n%v, there are\n%v", names, want)
	}

	names = nil
	for _, cells := range rowsOf(page, "profile") {
		name := quoted(cells[0])[0]
		names = append(names, name)
		var sets []string
		for option, value := range Profile(name) {
			if name == "default" || Profile("default")[option] != value {
				sets = append(sets, option+"="+value)
			}
		}
		slices.Sort(sets)
		if got := quoted(cells[1]); !slices.Equal(got, sets) {
			t.Errorf("profile %s sets %v, and the page says %v", name, sets, got)
		}
	}
	slices.Sort(names)
	if !slices.Equal(names, Profiles()) {
		t.Errorf("the page has the profiles %v, there are %v", names, Profiles())
	}
}

// What pages show of volumes that are made is nothing that is refused.
func TestOptionsInPages(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	given := regexp.MustCompile(`(?:-o |volume-opt=)([a-z][a-z.-]*)=([^\s,\x60]\S*)`)
	seen := 0
	for _, page := range append(pages, "../../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if !strings.HasPrefix(line, "    ") || !strings.Contains(line, "volume create") && !strings.Contains(line, "flockctl clone") {
				continue
			}
			for _, m := range given.FindAllStringSubmatch(line, -1) {
				if seen++; m[1] == FromOption {
					continue
				}
				if _, err := ParseOptions(map[string]string{m[1]: m[2]}); err != nil {
					t.Errorf("%s: %s: %v", filepath.Base(page), strings.TrimSpace(line), err)
				}
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d options are found in all pages: are they looked for rightly?", seen)
	}
}
