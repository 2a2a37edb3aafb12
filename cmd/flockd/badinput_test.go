package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	flockd "github.com/flocker-io/flocker/internal/daemon"
	"github.com/flocker-io/flocker/internal/fence"
	"github.com/flocker-io/flocker/internal/terminal"
)

// line is what is to be known of a command, besides what it says itself.
type line struct {
	// serves says that it would run until it is told to stop, or look at this very machine: its own
	// line is not run as it stands.
	serves bool
	asks   bool // the fencer or the proxy
	// words are values of options that mean something only as a whole: none but these is wrong.
	words map[string][]string
}

// lines have one for each command.
var lines = map[string]line{
	"flockd":                   {serves: true},
	"flockd fence":             {serves: true, words: map[string][]string{"reset": {"banana", "AUTO", "auto,off", "-1"}}},
	"flockd fence status":      {asks: true},
	"flockd fence may-restart": {asks: true},
	"flockd fence used":        {serves: true},
	"flockd fence now":         {asks: true},
	"flockd fence lift":        {asks: true},
	"flockd proxy":             {serves: true},
	"flockd proxy status":      {asks: true},
	"flockd recover":           {},
	"flockd may-run":           {},
	"flockd config":            {},
	"flockd config check":      {},
	"flockd config show":       {},
	"flockd __man":             {},
}

// settings are wrong values of flockd's own flags, which all commands go by. Of those that may have any
// value only what is wrong for all is tried.
var settings = map[string][]string{
	"config":        {"no/such/file", "/", "\x1b[2J"},
	"state-dir":     {"relative", "./x", "$(reboot)", "\x1b[2J"},
	"run-dir":       {"relative", "/" + strings.Repeat("x", 200)},
	"mount-dir":     {"relative", "-rf"},
	"route-dir":     {"relative", "~"},
	"listen":        {"banana", "10.0.0.1", ":", ":99999", ":-1", "::1:4523", "4523", "off"},
	"gossip-listen": {"banana", "10.0.0.1", ":99999", "off"},
	"proxy-listen":  {"banana", ":banana", "[::1]", "off"},
	"http-listen":   {"banana", ":99999", "OFF"},
	"plugin-socket": {"relative", "/" + strings.Repeat("x", 200)},
	"docker-host":   {"banana", "/var/run/docker.sock", "127.0.0.1:2375", "OFF"},
	"pool":          nil,
	"profile":       {"banana", "FAST", "default,fast", "-rf"},
	"log-level":     {"banana", "loud", "99999999999999999999"},
	"log-format":    {"banana", "xml", "TEXT"},
}

// Text that means nothing to any command, and values that nobody gives.
var (
	odd   = []string{"beta", "../../etc", "$(reboot)", "; rm -rf /", "@", "/", " ", "%s%n", "help", "0", "status extra"}
	raw   = []string{"two\nlines", "\x1b[2J\x1b]0;x\a", "\u009b2J", "\xff\xfe", "left\u202eright"}
	never = []string{"", "a\x00b", strings.Repeat("x", 1<<20), strings.Repeat("\x1b", 1<<20)}

	badTimes = []string{"banana", "", "0s", "-5s", "5", "99999999999999h", "1s\n", "\x1b[2J"}
)

// Whatever is wrong with a line of flockd, of any command: one line says so and what to do, nothing of
// what was typed reaches the terminal as it is, the exit code is 1, and nothing is changed: nothing on
// disk, and neither the fencer nor the proxy hears of it.
func TestBadInput(t *testing.T) {
	w := newWitness(t)
	app := commandLine(t.Context(), &bytes.Buffer{}, &bytes.Buffer{})
	seen := map[string]bool{}
	w.command("flockd", app.Flags, true)
	seen["flockd"] = true
	var walk func(path string, all []*cli.Command)
	walk = func(path string, all []*cli.Command) {
		for _, c := range all {
			name := path + " " + c.Name
			seen[name] = true
			w.command(name, c.Flags, len(c.Subcommands) > 0)
			walk(name, c.Subcommands)
		}
	}
	walk("flockd", app.Commands)
	for name := range lines {
		if !seen[name] {
			t.Errorf("there is no command %s", name)
		}
	}

	// What all commands go by.
	own := map[string]bool{"config": true}
	for _, s := range flockd.Settings() {
		own[s.Flag()] = true
	}
	for name := range own {
		values, ok := settings[name]
		if !ok {
			t.Errorf("--%s has no wrong values here", name)
		}
		for _, args := range [][]string{{"config", "check"}, {"fence", "now"}, {"may-run"}} {
			for _, v := range slices.Concat(values, never) {
				w.bad(append([]string{"--" + name, v}, args...)...)
			}
		}
		w.bad("--" + name)
		said := w.bad("fence", "now", "--"+name, "x")
		if !strings.Contains(said, "stands before the command") {
			t.Errorf("--%s behind the command: %s", name, said)
		}
	}
	if len(settings) != len(own) {
		t.Errorf("%d flags have wrong values here, flockd has %d", len(settings), len(own))
	}

	// Files that are no configuration.
	for name, text := range map[string]string{
		"unknown": "listen_addr: x\nstate: y\n", "list": "- a\n", "text": strings.Repeat("x", 1<<20), "binary": "\x00\x01\x1b[2J\xff",
		"twice": "listen: :1\nlisten: :2\n", "number": "listen: {a: 1}\n", "tabs": "a:\n\tb: c\n",
	} {
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"config", "check"}, {"config", "show"}, {"may-run"}, {"recover", "--i-have-lost-quorum"}, {"fence", "now"}, {"fence"}, {"proxy"}, nil} {
			if said := w.bad(append([]string{"--config", file}, args...)...); !strings.Contains(said, file) {
				t.Errorf("%s: it is not said which file: %s", name, said)
			}
		}
	}
}

// witness runs lines of flockd and sees what they say and do.
type witness struct {
	*testing.T
	dir   string
	heard atomic.Int32 // how often the fencer or the proxy was asked
}

func newWitness(t *testing.T) *witness {
	t.Setenv("FLOCKD_FENCE_RESET", "off")
	// The path of a socket is short.
	dir, err := os.MkdirTemp("", "flockd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &witness{T: t, dir: dir}
	for _, sub := range []string{"state", "run", "mount"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "flockd.yml"), []byte("log_level: warn\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fence.Socket(w.path("run")), w.path("run", "proxy.sock")} {
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				w.heard.Add(1)
				c.Close()
			}
		}()
		t.Cleanup(func() { l.Close(); <-done })
	}
	return w
}

func (w *witness) path(names ...string) string {
	return filepath.Join(slices.Concat([]string{w.dir}, names)...)
}

// command tries all that can be wrong with a command.
func (w *witness) command(name string, flags []cli.Flag, group bool) {
	l, ok := lines[name]
	if !ok {
		w.Errorf("%s has no line here", name)
		return
	}
	words := strings.Fields(name)[1:]
	given := func(args ...string) []string { return slices.Concat(words, args) }

	if !l.serves { // as it stands it does something
		before := w.heard.Load()
		if _, _, err := w.run(given()...); !l.asks && err != nil && !strings.Contains(err.Error(), "cluster") {
			w.Errorf("%s: %v", name, err)
		}
		if asked := w.heard.Load() > before; asked != l.asks {
			w.Errorf("%s asks somebody: %t, want %t", name, asked, l.asks)
		}
	}
	for _, word := range slices.Concat(odd, raw, never) {
		w.bad(given(word)...)
		w.bad(given("--", word)...)
		w.bad(given(word, "--help")...)
	}
	for _, o := range []string{"--bogus", "-rf", "-1", "-99999999999999999999", "--\x1b[2J", "--\xff", "--" + never[2], "--bogus=x"} {
		w.bad(given(o)...)
	}
	for _, f := range flags {
		o := f.Names()[0]
		var values []string
		switch f := f.(type) {
		case *cli.BoolFlag:
			w.bad(given("--" + o + "=banana")...)
			w.bad(given("--"+o, "banana")...)
			continue
		case *cli.DurationFlag:
			values = badTimes
			if o == "drain" {
				values = slices.DeleteFunc(slices.Clone(values), func(v string) bool { return v == "0s" })
			}
		case *cli.StringFlag:
			if name == "flockd" {
				continue // below, where nothing would run
			}
			values = slices.Concat(never, l.words[o])
			if !strings.Contains(f.Usage, "DEVICE") {
				values = append(values, raw...)
			}
		default:
			w.Errorf("%s: option --%s is of a kind that is not tried here", name, o)
		}
		w.bad(given("--" + o)...)
		for _, v := range values {
			w.bad(given("--"+o, v)...)
		}
	}
}

// run runs a line as main does.
func (w *witness) run(args ...string) (stdout, said string, err error) {
	var out, errOut bytes.Buffer
	// What should be refused and is not may serve: for a while, and apart from this machine.
	whole := []string{"flockd", "--config", w.path("flockd.yml"), "--state-dir", w.path("state"), "--run-dir", w.path("run"), "--mount-dir", w.path("mount"),
		"--plugin-socket", w.path("plugin.sock"), "--docker-host", "off", "--http-listen", "off",
		"--listen", "127.0.0.1:0", "--gossip-listen", "127.0.0.1:0", "--proxy-listen", "127.0.0.1:0"}
	ctx, cancel := context.WithTimeout(w.Context(), 10*time.Second)
	defer cancel()
	err = run(ctx, append(whole, args...), &out, &errOut)
	if err != nil {
		fmt.Fprintln(&errOut, "flockd:", terminal.Line(err.Error()))
	}
	return out.String(), errOut.String(), err
}

// bad runs a line that has to fail, and returns what it says.
func (w *witness) bad(args ...string) string {
	w.Helper()
	before, heard := w.tree(), w.heard.Load()
	stdout, said, err := w.run(args...)
	shown := fmt.Sprintf("flockd %.300q", args)
	text, one := strings.CutSuffix(said, "\n")
	text, named := strings.CutPrefix(text, "flockd: ")
	var code cli.ExitCoder
	switch {
	case err == nil:
		w.Errorf("%s: it does it, and says %.300q", shown, stdout+said)
	case errors.As(err, &code):
		w.Errorf("%s: it ends with another exit code than 1: %v", shown, err)
	case stdout != "":
		w.Errorf("%s: it prints %.300q", shown, stdout)
	case !one || !named || strings.Contains(text, "\n"):
		w.Errorf("%s: says not one line: %.500q", shown, said)
	case len(text) > 5000:
		w.Errorf("%s: says a line of %d bytes", shown, len(text))
	case text != terminal.Visible(text):
		w.Errorf("%s: writes %.300q to the terminal", shown, text)
	case !strings.Contains(text, "flockd ") && !strings.Contains(text, "want ") && !strings.Contains(text, ": "):
		w.Errorf("%s: does not say what to do: %s", shown, text)
	}
	if after := w.tree(); !slices.Equal(after, before) {
		w.Errorf("%s: there are %q now, were %q", shown, after, before)
	}
	if w.heard.Load() != heard {
		w.Errorf("%s: the fencer or the proxy was asked", shown)
	}
	return text
}

// tree is all there is, with sizes and times.
func (w *witness) tree() (out []string) {
	err := filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err == nil {
			out = append(out, fmt.Sprintf("%s %d %s", path, i.Size(), i.ModTime()))
		}
		return err
	})
	if err != nil {
		w.Fatal(err)
	}
	return out
}

// An empty value is refused where it was typed, as of a variable that is not set; in the environment it
// is none.
func TestEmptyInTheEnvironment(t *testing.T) {
	w := newWitness(t)
	for _, name := range []string{"FLOCKD_POOL", "FLOCKD_LOG_LEVEL", "FLOCKD_FENCE_RESET", "FLOCKD_CONFIG"} {
		t.Setenv(name, "")
	}
	if _, said, err := w.run("config", "check"); err != nil {
		t.Errorf("with nothing in the environment: %s", said)
	}
	t.Setenv("FLOCKD_POOL", "tank")
	w.bad("--pool", "", "config", "check")
	t.Setenv("FLOCKD_PROXY_DRAIN", "banana")
	if said := w.bad("proxy"); !strings.Contains(said, "FLOCKD_PROXY_DRAIN") {
		t.Errorf("it is not said where that comes from: %s", said)
	}
	t.Setenv("FLOCKD_LOG_LEVEL", "loud")
	w.bad("may-run")
}
