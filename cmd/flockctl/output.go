package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/flocker-io/flocker/internal/terminal"
	"github.com/flocker-io/flocker/internal/volume"
)

// printJSON prints v for programs.
func (a *app) printJSON(v any) error {
	return a.encode(v, "  ")
}

// printJSONLine prints v on one line, for programs that read as it comes.
func (a *app) printJSONLine(v any) error {
	return a.encode(v, "")
}

func (a *app) encode(v any, indent string) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	if err := e.Encode(v); err != nil {
		return err
	}
	_, err := a.stdout.Write(printable(b.Bytes()))
	return err
}

// printable is JSON that means the same and tells no terminal what to do: encoding/json escapes
// only part of what does.
func printable(text []byte) []byte {
	if !bytes.ContainsFunc(text, unprintable) {
		return text
	}
	var b bytes.Buffer
	for _, r := range string(text) { // outside of strings there is nothing else
		if !unprintable(r) {
			b.WriteRune(r)
			continue
		}
		for _, u := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&b, "\\u%04x", u)
		}
	}
	return b.Bytes()
}

func unprintable(r rune) bool { return r != '\n' && r != utf8.RuneError && !strconv.IsPrint(r) }

// printf prints to stdout. Whatever is in it, it tells the terminal nothing but to begin a line.
func (a *app) printf(format string, args ...any) {
	fmt.Fprint(a.stdout, visibleLines(fmt.Sprintf(format, args...)))
}

// say prints to stderr, in the same way, above what comes and goes there.
func (a *app) say(format string, args ...any) {
	a.drawing.Lock()
	defer a.drawing.Unlock()
	a.undraw()
	fmt.Fprint(a.stderr, visibleLines(fmt.Sprintf(format, args...)))
}

// undraw takes away what comes and goes; it is there again with its next change.
func (a *app) undraw() {
	if a.drawn != nil {
		a.drawn.erase()
	}
}

// printing prints to stdout while nothing comes and goes on the terminal, where that is one.
func (a *app) printing(do func() error) error {
	if a.screen {
		a.drawing.Lock()
		defer a.drawing.Unlock()
		a.undraw()
	}
	return do()
}

// visibleLines is visible for text of several lines, with tabs.
func visibleLines(text string) string {
	lines := strings.SplitAfter(text, "\n")
	for i, line := range lines {
		line, end := strings.CutSuffix(line, "\n")
		fields := strings.Split(line, "\t")
		for j, f := range fields {
			fields[j] = terminal.Visible(f)
		}
		lines[i] = strings.Join(fields, "\t")
		if end {
			lines[i] += "\n"
		}
	}
	return strings.Join(lines, "")
}

// table is rows under a head, in columns.
type table struct{ rows [][]string }

func newTable(head ...string) *table { return &table{rows: [][]string{head}} }

// add adds a row. What is empty shows as a dash, so that awk finds its columns.
func (t *table) add(cells ...string) {
	for i, c := range cells {
		cells[i] = cmp.Or(terminal.Visible(c), "-")
	}
	t.rows = append(t.rows, cells)
}

func (t *table) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, r := range t.rows {
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	return tw.Flush()
}

// facts are lines of a name and what there is to say.
type facts struct{ rows [][2]string }

func (f *facts) add(name, format string, args ...any) {
	f.rows = append(f.rows, [2]string{name, terminal.Visible(fmt.Sprintf(format, args...))})
}

func (f *facts) print(w io.Writer) {
	width := 0
	for _, r := range f.rows {
		width = max(width, len(r[0]))
	}
	for _, r := range f.rows {
		fmt.Fprintf(w, "%-*s  %s\n", width, r[0], r[1])
	}
}

// size is a number of bytes for people: two digits that matter, or all before the
// point.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%dB", n)
	}
	v, i := float64(n)/1024, 0
	for v >= 1023.5 && i < len(units)-1 {
		v /= 1024
		i++
	}
	s := fmt.Sprintf("%.0f", v)
	if v < 9.95 {
		s = strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0")
	}
	return fmt.Sprintf("%s%ciB", s, units[i])
}

// age is a time that has passed, in its largest unit.
func age(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, d)/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d < 2*365*day:
		return fmt.Sprintf("%dd", d/day)
	}
	return fmt.Sprintf("%dy", d/(365*day))
}

// ago is how long a moment is gone; "" for no moment.
func (a *app) ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return age(a.now().Sub(t))
}

// in is how long a moment is ahead; "" for no moment.
func (a *app) in(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return age(t.Sub(a.now()))
}

// moment is a point in time and how long ago it was.
func (a *app) moment(t time.Time) string {
	return fmt.Sprintf("%s (%s ago)", t.UTC().Format(time.RFC3339), a.ago(t))
}

// lag is seconds for people; nil is not known.
func lag(seconds *float64) string {
	switch {
	case seconds == nil:
		return "?"
	case *seconds < 9.95:
		return fmt.Sprintf("%.1fs", *seconds)
	}
	return volume.FormatDuration((time.Duration(*seconds*10) * (time.Second / 10)).Round(time.Second))
}

// plural is "1 node", "2 nodes".
func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// list prints sentences as a list under a head, nothing when there are none.
func (a *app) list(head string, sentences []string) {
	if len(sentences) == 0 {
		return
	}
	a.printf("\n%s:\n", head)
	for _, s := range sentences {
		a.printf("  - %s\n", s)
	}
}
