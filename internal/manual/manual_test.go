package manual

import (
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

func sample() *cli.App {
	return &cli.App{
		Name: "tool", Usage: "do things", Description: "It does.\n\nCodes:\n   0  done",
		Flags: []cli.Flag{&cli.StringFlag{Name: "socket", EnvVars: []string{"TOOL"}, Value: "/run/x", Usage: "`PATH` of it"}},
		Commands: []*cli.Command{
			{Name: "thing", Usage: "make *things*", Subcommands: []*cli.Command{
				{Name: "make", Usage: "make one", ArgsUsage: "NAME", Description: ".never a request", Flags: []cli.Flag{
					&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "without asking"},
					&cli.IntFlag{Name: "count", Usage: "so many"},
					&cli.BoolFlag{Name: "secret", Usage: "never shown", Hidden: true},
				}},
			}},
			{Name: "__hidden", Usage: "never shown", Hidden: true},
		},
	}
}

func TestMarkdown(t *testing.T) {
	const want = "## tool\n\nDo things.\n\n```text\nIt does.\n\nCodes:\n   0  done\n```\n\n- `--socket PATH`: PATH of it (default: /run/x) [$TOOL]\n\n" +
		"### tool thing\n\nMake \\*things\\*.\n\n### tool thing make\n\nMake one.\n\n    tool thing make [options] NAME\n\n```text\n.never a request\n```\n\n" +
		"- `--force, -f`: without asking\n- `--count VALUE`: so many (default: 0)\n"
	if got := Markdown(sample()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestMan(t *testing.T) {
	got := Man(sample(), 8, "v1-2")
	for _, want := range []string{
		".TH TOOL 8 \"\" \"flocker v1\\-2\" \"flocker\"\n", "tool \\- do things\n", ".SS tool thing make [options] NAME\nMake one.\n",
		".nf\n\\&.never a request\n.fi\n", ".TP\n\\fB\\-\\-force, \\-f\\fR\nwithout asking\n", "\n   0  done\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "never shown") {
		t.Errorf("something hidden is in\n%s", got)
	}
}

func TestReplace(t *testing.T) {
	const doc = "a\n<!-- tool begins -->\nold\n<!-- tool ends -->\nb\n"
	if got, err := Replace(doc, "tool", "new\n"); err != nil || got != "a\n<!-- tool begins -->\n\nnew\n\n<!-- tool ends -->\nb\n" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, bad := range []string{"a\n", "<!-- tool begins -->\n", "<!-- tool ends -->\n<!-- tool begins -->\n"} {
		if got, err := Replace(bad, "tool", "new\n"); err == nil {
			t.Errorf("%q gives %q", bad, got)
		}
	}
}
