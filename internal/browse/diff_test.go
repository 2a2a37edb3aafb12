//go:build linux

package browse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/flocker-io/flocker/internal/volume"
)

// tree is files in a small notation: each is PATH=INODE, with :N if it was changed at another
// time than others, and *N if it has another size; a path that ends with / is a directory, which
// with ! has another mode.
func tree(text string) Files {
	fsys := fstest.MapFS{}
	for _, word := range strings.Fields(text) {
		name, rest, _ := strings.Cut(word, "=")
		st, size, mode := &syscall.Stat_t{}, 0, fs.FileMode(0o644)
		for _, format := range []string{"%d:%d*%d", "%d*%d", "%d:%d", "%d"} {
			args := []any{&st.Ino, &st.Ctim.Sec, &size}
			if format == "%d*%d" {
				args = []any{&st.Ino, &size}
			}
			if n, _ := fmt.Sscanf(rest, format, args[:strings.Count(format, "%")]...); n == strings.Count(format, "%") {
				break
			}
		}
		if dir, ok := strings.CutSuffix(name, "/"); ok {
			name, mode = dir, 0o755|fs.ModeDir
		}
		if strings.HasSuffix(rest, "!") {
			mode |= fs.ModeSticky
		}
		fsys[name] = &fstest.MapFile{Data: make([]byte, size), Mode: mode, Sys: st}
	}
	return Of(fsys)
}

func TestDiff(t *testing.T) {
	for _, tt := range []struct{ name, before, after, want string }{
		{"nothing", "a=1 d/=2 d/x=3", "a=1 d/=2 d/x=3", ""},
		{"came and went", "a=1 b=2", "b=2 c=3", "+/c -/a"},
		{"written to", "a=1", "a=1:7", "M/a"},
		{"written to, and its times put back", "a=1:5*3", "a=1:6*3", "M/a"},
		{"another one in its place", "a=1", "a=2", "M/a"},
		{"renamed", "a=1:5*3", "b=1:6*3", "R/a>/b"},
		{"its number is another one's now", "a=1*3", "b=1*4", "+/b -/a"},
		{"renamed and written to", "a=1:5*3", "b=1:6*5", "+/b -/a"},
		{"moved to another directory", "d/=1 e/=2 d/x=3", "d/=1 e/=2 e/x=3", "R/d/x>/e/x"},
		{"a name more", "a=1", "a=1:5 b=1:5", "+/b M/a"},
		{"one of two names changed", "a=1 b=1", "b=1:2 c=1:2", "M/b R/a>/c"},
		{"two names changed", "a=1 b=1", "c=1 d=1", "R/a>/c R/b>/d"},
		{"names exchanged", "a=1 b=2", "a=2:5 b=1:5", "M/a M/b"},
		{"a directory renamed, with what is in it", "d/=9 d/x=3 d/y=4 d/s/=5 d/s/z=6", "e/=9 e/x=3 e/y=7 e/s/=5 e/s/z=6", "+/e/y -/d/y R/d>/e"},
		{"and something in it too", "d/=9 d/x=3", "e/=9 e/y=3", "R/d/x>/e/y R/d>/e"},
		{"a directory came and went", "d/=1 d/x=2", "e/=3 e/y=4", "+/e +/e/y -/d -/d/x"},
		{"what is in a directory does not change it", "d/=1:1", "d/=1:2 d/x=2", "+/d/x"},
		{"but its mode does", "d/=1", "d/=1!", "M/d"},
		{"a file became a directory", "a=1", "a/=1 a/x=2", "+/a +/a/x -/a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, back := range []bool{false, true} {
				before, after, want := tt.before, tt.after, strings.Fields(tt.want)
				if back { // the other way round it is the opposite
					before, after = after, before
					for i, w := range want {
						old, now, renamed := strings.Cut(w, ">")
						switch {
						case renamed:
							want[i] = "R" + now + ">" + old[1:]
						case w[0] == '+':
							want[i] = "-" + w[1:]
						case w[0] == '-':
							want[i] = "+" + w[1:]
						}
					}
				}
				slices.Sort(want)
				if got, err := diffed(tree(before), tree(after), ".", maxHeld); err != nil || !slices.Equal(got, want) {
					t.Errorf("from %q to %q: %q, %v, want %q", before, after, got, err, want)
				}
			}
		})
	}
}

func diffed(before, after Files, name string, most int) (got []string, err error) {
	out := func(c Change) error {
		now, was := c.Paths()
		s := map[Kind]string{Added: "+", Removed: "-", Modified: "M", Renamed: "R"}[c.Kind]
		if was != "" {
			s += was + ">"
		}
		got = append(got, s+now)
		return nil
	}
	if most == maxHeld {
		err = Diff(context.Background(), before, after, name, out)
	} else {
		d := &differ{ctx: context.Background(), before: before, after: after, out: out, most: most, room: maxHeldBytes}
		old, _ := before.Lstat(name)
		now, _ := after.Lstat(name)
		err = errors.Join(d.pair(name, old, now), d.settle())
	}
	slices.Sort(got)
	return got, err
}

// More than can be held is told as what came and what went, and nothing twice or not at all.
func TestDiffOfMuch(t *testing.T) {
	before, after := tree("a=1 b=2 c=3 d=4"), tree("e=1 f=2 g=3 h=4")
	want := []string{"+/e", "+/f", "+/g", "+/h", "-/a", "-/b", "-/c", "-/d"}
	for _, most := range []int{1, 3, 7} {
		if got, err := diffed(before, after, ".", most); err != nil || !slices.Equal(got, want) {
			t.Errorf("holding %d: %q, %v", most, got, err)
		}
	}
	if got, err := diffed(before, after, ".", 8); err != nil || len(got) != 4 {
		t.Errorf("holding all: %q, %v", got, err)
	}
}

// Paths as long as a container can make them do not make it hold more.
func TestDiffHoldsSoManyBytes(t *testing.T) {
	long := strings.Repeat("x", 1000)
	var told int
	d := &differ{most: maxHeld, room: 10 * (len(long) + heldBytes), out: func(Change) error { told++; return nil }}
	for i := range 30 {
		if err := d.hold(found{path: fmt.Sprintf("%s%d", long[:998], i+10)}, true); err != nil {
			t.Fatal(err)
		}
		if len(d.came) > 10 {
			t.Fatalf("%d are held", len(d.came))
		}
	}
	if err := d.settle(); err != nil || told != 30 {
		t.Errorf("told %d, %v", told, err)
	}
}

func TestDiffBelow(t *testing.T) {
	before, after := tree("d/=1 d/x=2 e=3"), tree("d/=1 d/y=4 f=5")
	for name, want := range map[string]string{"d": "[+/d/y -/d/x]", "d/x": "[-/d/x]", "f": "[+/f]", "e": "[-/e]"} {
		if got, err := diffed(before, after, name, maxHeld); err != nil || fmt.Sprint(got) != want {
			t.Errorf("below %s: %q, %v", name, got, err)
		}
	}
	if _, err := diffed(before, after, "g", maxHeld); volume.CodeOf(err) != volume.CodeNotFound {
		t.Errorf("below nothing: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Diff(ctx, before, after, ".", func(Change) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("called off: %v", err)
	}
}

// Real files: what is linked into both trees is one thing, whatever its name.
func TestDiffOfFiles(t *testing.T) {
	f := hostile(t)
	if got, err := diffed(f, f, ".", maxHeld); err != nil || len(got) > 0 {
		t.Errorf("with itself: %q, %v", got, err)
	}
	other := hostile(t)
	got, err := diffed(f, other, ".", maxHeld)
	if err != nil || !slices.Contains(got, "M/dir/file") || !slices.Contains(got, "M/odd\n\xff\x1b") || slices.ContainsFunc(got, func(s string) bool { return s[0] != 'M' }) {
		t.Errorf("with one made anew: %q, %v", got, err)
	}
}
