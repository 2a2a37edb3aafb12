package manual

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/urfave/cli/v2"
)

// each visits the commands of an app in the order of its help, groups before what is in them; those
// that are hidden are left out. line is what one types, without options.
func each(app *cli.App, visit func(line string, c *cli.Command)) {
	var walk func(prefix string, all []*cli.Command)
	walk = func(prefix string, all []*cli.Command) {
		for _, c := range all {
			if c.Hidden {
				continue
			}
			line := prefix + " " + c.Name
			visit(line, c)
			walk(line, c.Subcommands)
		}
	}
	walk(app.Name, app.Commands)
}

// option is one as people read it.
type option struct{ names, about string }

// options of a command. The value's name is quoted with backticks in the usage, as cli has it.
func options(flags []cli.Flag) (out []option) {
	for _, f := range flags {
		d, ok := f.(cli.DocGenerationFlag)
		if v, can := f.(cli.VisibleFlag); !ok || can && !v.IsVisible() {
			continue
		}
		value, about := "", d.GetUsage()
		if m := placeholder.FindStringSubmatch(about); m != nil && d.TakesValue() {
			value, about = " "+m[1], strings.Replace(about, m[0], m[1], 1)
		} else if d.TakesValue() {
			value = " VALUE"
		}
		var names []string
		for _, n := range f.Names() {
			dash := "--"
			if len(n) == 1 {
				dash = "-"
			}
			names = append(names, dash+n)
		}
		o := option{names: strings.Join(names, ", ") + value, about: about}
		if def := d.GetDefaultText(); d.TakesValue() && def != "" && def != `""` {
			o.about += fmt.Sprintf(" (default: %s)", strings.Trim(def, `"`))
		}
		if env := d.GetEnvVars(); len(env) > 0 {
			o.about += fmt.Sprintf(" [$%s]", strings.Join(env, ", $"))
		}
		out = append(out, o)
	}
	return out
}

var placeholder = regexp.MustCompile("`([^`]*)`")

// Markdown is the page of an app.
func Markdown(app *cli.App) string {
	var b strings.Builder
	list := func(flags []cli.Flag) {
		all := options(flags)
		for _, o := range all {
			fmt.Fprintf(&b, "- `%s`: %s\n", o.names, escaped(o.about))
		}
		if len(all) > 0 {
			b.WriteString("\n")
		}
	}
	fmt.Fprintf(&b, "## %s\n\n%s.\n\n", app.Name, upper(app.Usage))
	block(&b, app.Description)
	list(app.Flags)
	each(app, func(line string, c *cli.Command) {
		fmt.Fprintf(&b, "### %s\n\n%s.\n\n", strings.TrimSpace(line), upper(escaped(c.Usage)))
		if len(c.Subcommands) == 0 {
			fmt.Fprintf(&b, "    %s\n\n", typed(line, c))
		}
		block(&b, c.Description)
		list(c.Flags)
	})
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// block is a description as it was written: it may have columns.
func block(b *strings.Builder, text string) {
	if text = strings.Trim(text, "\n"); text == "" {
		return
	}
	fmt.Fprintf(b, "```text\n%s\n```\n\n", text)
}

// escaped keeps Markdown from reading words as something else.
func escaped(text string) string {
	return strings.NewReplacer("*", `\*`, "_", `\_`, "<", `\<`, "|", `\|`).Replace(text)
}

func typed(line string, c *cli.Command) string {
	words := []string{strings.TrimSpace(line)}
	if len(options(c.Flags)) > 0 {
		words = append(words, "[options]")
	}
	if c.ArgsUsage != "" {
		words = append(words, c.ArgsUsage)
	}
	return strings.Join(words, " ")
}

func upper(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// Man is the page of an app for man, in a section of the manual.
func Man(app *cli.App, section int, version string) string {
	var b strings.Builder
	list := func(flags []cli.Flag) {
		for _, o := range options(flags) {
			fmt.Fprintf(&b, ".TP\n\\fB%s\\fR\n%s\n", roff(o.names), roff(o.about))
		}
	}
	text := func(s string) {
		if s = strings.Trim(s, "\n"); s != "" {
			fmt.Fprintf(&b, ".PP\n.nf\n%s\n.fi\n", roff(s))
		}
	}
	fmt.Fprintf(&b, ".TH %s %d \"\" \"flocker %s\" \"flocker\"\n", strings.ToUpper(app.Name), section, roff(version))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n.SH SYNOPSIS\n\\fB%s\\fR [options] [command] [arguments]\n", app.Name, roff(app.Usage), app.Name)
	b.WriteString(".SH DESCRIPTION\n")
	text(app.Description)
	b.WriteString(".SH OPTIONS\n")
	list(app.Flags)
	b.WriteString(".SH COMMANDS\n")
	each(app, func(line string, c *cli.Command) {
		fmt.Fprintf(&b, ".SS %s\n%s.\n", roff(typed(line, c)), roff(upper(c.Usage)))
		text(c.Description)
		list(c.Flags)
	})
	return b.String()
}

// roff keeps text from being read as requests.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

// Replace puts a program's page into a document that has its place marked, and fails where it has not.
func Replace(document, program, page string) (string, error) {
	begin, end := fmt.Sprintf("<!-- %s begins -->\n", program), fmt.Sprintf("<!-- %s ends -->\n", program)
	before, rest, found := strings.Cut(document, begin)
	_, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		return "", fmt.Errorf("the document has no lines %q and %q", strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	return before + begin + "\n" + page + "\n" + end + after, nil
}
