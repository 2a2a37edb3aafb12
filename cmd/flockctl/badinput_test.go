package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/api/apitest"
	"github.com/flocker-io/flocker/internal/volume"
)

// What may stand in the place of an argument or of an option's value, besides the exit codes that
// a wrong one may end with, as digits.
const (
	anyText = "text" // whatever can be shown on one line
	inside  = "path" // a path in a snapshot: no file of it has such a name
	outside = "file" // a file of this machine
)

// line is a command line that does something as it stands.
type line struct {
	switches []string
	args     []string
	codes    []string          // by argument
	values   map[string]string // by option
}

// lines have one for each command. Options of volumes end with 2 unless said otherwise.
var lines = map[string]line{
	"init": {values: map[string]string{"name": "24", "zone": "24", "advertise": "24", "pool": "24", "pool-file": "2", "pool-path": "2"}},
	"join": {args: []string{"flk1-x"}, codes: []string{"24"}, switches: []string{"--peer=192.0.2.1"},
		values: map[string]string{"peer": "24", "name": "24", "zone": "24", "advertise": "24", "pool": "24", "pool-file": "2", "pool-path": "2"}},
	"status":           {},
	"top":              {values: map[string]string{"sort": "2"}},
	"node list":        {},
	"node inspect":     {args: []string{"alpha"}, codes: []string{"3"}},
	"node label":       {args: []string{"alpha", "disk=x"}, codes: []string{"3", "2"}, values: map[string]string{"zone": "2"}},
	"node drain":       {args: []string{"gamma"}, codes: []string{"3"}},
	"node undrain":     {args: []string{"gamma"}, codes: []string{"3"}},
	"node remove":      {args: []string{"alpha"}, codes: []string{"3"}, switches: []string{"--dead", "--yes"}, values: map[string]string{"confirm-fenced": "24"}},
	"volume create":    {args: []string{"new"}, codes: []string{"2"}, values: map[string]string{"option": "2", "node": "3"}},
	"volume list":      {},
	"volume inspect":   {args: []string{"pgdata"}, codes: []string{"3"}},
	"volume set":       {args: []string{"pgdata", "replicas=2"}, codes: []string{"3", "2"}},
	"volume sync":      {args: []string{"pgdata"}, codes: []string{"3"}},
	"volume verify":    {args: []string{"pgdata"}, codes: []string{"3"}},
	"volume remove":    {args: []string{"scratch"}, codes: []string{"3"}, switches: []string{"--yes"}},
	"volume undelete":  {args: []string{"old"}, codes: []string{"3"}, values: map[string]string{"name": "2"}},
	"replication":      {args: []string{"pgdata"}, codes: []string{"3"}},
	"snapshot create":  {args: []string{"pgdata"}, codes: []string{"23"}, values: map[string]string{"name": "2"}},
	"snapshot list":    {args: []string{"pgdata"}, codes: []string{"3"}},
	"snapshot inspect": {args: []string{"pgdata@before-upgrade"}, codes: []string{"23"}},
	"snapshot hold":    {args: []string{"pgdata@before-upgrade"}, codes: []string{"23"}, values: map[string]string{"note": anyText}},
	"snapshot release": {args: []string{"pgdata@before-upgrade"}, codes: []string{"23"}},
	"snapshot remove":  {args: []string{"pgdata@before-upgrade"}, codes: []string{"23"}, switches: []string{"--yes"}},
	"snapshot prune":   {args: []string{"pgdata"}, codes: []string{"3"}, values: map[string]string{"policy": "2"}},
	"rollback":         {args: []string{"pgdata@before-upgrade"}, codes: []string{"23"}, switches: []string{"--yes"}},
	"clone":            {args: []string{"pgdata", "new"}, codes: []string{"23", "2"}, values: map[string]string{"option": "2", "node": "3"}},
	"browse":           {args: []string{"pgdata@before-upgrade", "conf"}, codes: []string{"23", inside}},
	"browse list":      {args: []string{"pgdata@before-upgrade", "conf"}, codes: []string{"23", inside}},
	"browse cat":       {args: []string{"pgdata@before-upgrade", "conf/app.conf"}, codes: []string{"23", inside}},
	"browse get":       {args: []string{"pgdata@before-upgrade", "conf/app.conf", "here"}, codes: []string{"23", inside, outside}},
	"diff":             {args: []string{"pgdata", "auto-1h-20260304T100000Z", "before-upgrade"}, codes: []string{"23", "23", "23"}, values: map[string]string{"path": inside}},
	"migrate":          {args: []string{"uploads", "beta"}, codes: []string{"3", "34"}},
	"rebalance":        {switches: []string{"--yes"}},
	"failover":         {args: []string{"uploads"}, codes: []string{"3"}, values: map[string]string{"to": "34", "confirm-fenced": "34"}},
	"trash list":       {},
	"trash restore":    {args: []string{"old", "new"}, codes: []string{"3", "2"}, values: map[string]string{"node": "3"}},
	"trash remove":     {args: []string{"old"}, codes: []string{"3"}, switches: []string{"--yes"}, values: map[string]string{"node": "3"}},
	"aside list":       {},
	"aside restore":    {args: []string{"dead0000beef0000", "back"}, codes: []string{"3", "2"}, values: map[string]string{"node": "3", "option": "2"}},
	"aside remove":     {args: []string{"dead0000beef0000"}, codes: []string{"3"}, switches: []string{"--yes"}, values: map[string]string{"node": "3"}},
	"backup create":    {args: []string{"pgdata", "backups"}, codes: []string{"23", outside}, values: map[string]string{"recipient": "2", "auth-key": outside}},
	"backup list":      {args: []string{"backups", "pgdata"}, codes: []string{outside, "3"}},
	"backup inspect":   {args: []string{"backups", "20260304T120000Z-0000000a"}, codes: []string{outside, "3"}},
	"backup verify":    {args: []string{"backups", "20260304T120000Z-0000000a"}, codes: []string{outside, "3"}, values: map[string]string{"identity": outside, "auth-key": outside}},
	"backup restore":   {args: []string{"backups", "20260304T120000Z-0000000a", "new"}, codes: []string{outside, "3", "2"}, values: map[string]string{"identity": outside, "auth-key": outside, "option": "2"}},
	"backup remove":    {args: []string{"backups", "20260304T120000Z-0000000a"}, codes: []string{outside, "3"}, switches: []string{"--yes"}},
	"export":           {args: []string{"pgdata@before-upgrade"}, codes: []string{"23"}, values: map[string]string{"recipient": "2", "auth-key": outside}},
	"import":           {args: []string{"tank/mail", "new"}, codes: []string{"23", "2"}, values: map[string]string{"identity": outside, "auth-key": outside, "option": "2", "node": "3"}},
	"container list":   {},
	"container forget": {args: []string{"shop_db_1"}, codes: []string{"3"}, values: map[string]string{"node": "3"}},
	"route list":       {},
	"route add":        {args: []string{"pgdata", "8080"}, codes: []string{"3", "2"}, values: map[string]string{"host": "2"}},
	"route remove":     {args: []string{"5432"}, codes: []string{"2"}},
	"route pause":      {args: []string{"5432"}, codes: []string{"2"}},
	"route resume":     {args: []string{"5432"}, codes: []string{"2"}},
	"settings list":    {},
	"settings set":     {args: []string{"trash-retention=1d"}, codes: []string{"2"}},
	"settings reset":   {args: []string{"trash-retention"}, codes: []string{"2"}},
	"token create":     {values: map[string]string{"note": anyText}},
	"token list":       {},
	"token revoke":     {args: []string{"k3y00001"}, codes: []string{"3"}},
	"events":           {},
	"doctor":           {},
	"diagnostics":      {values: map[string]string{"output": outside}},
	"version":          {},
	"completion bash":  {},
	"completion zsh":   {},
	"completion fish":  {},
}

func init() {
	for short, of := range map[string]string{"ls": "volume list", "create": "volume create", "inspect": "volume inspect", "rm": "volume remove"} {
		lines[short] = lines[of]
	}
}

// Text that means nothing to any command: some could be a name, some cannot be shown, some are
// nobody's.
var (
	odd   = []string{"../../etc", "$(reboot)", "`reboot`", "; rm -rf /", "@", "@@", "a@@b", "..", ".", "/", " ", "%s%n", "\\x1b[2J"}
	raw   = []string{"two\nlines", "\x1b[2J\x1b]0;x\a", "\u009b2J", "\xff\xfe", "left\u202eright", "pgdata\x1b[2J"}
	never = []string{"", "a\x00b", strings.Repeat("x", 1<<20), strings.Repeat("\x1b", 1<<20)}

	badNumbers = []string{"banana", "", "-1", "1e9", "0x", "99999999999999999999", "-99999999999999999999", "\x1b[2J"}
	badTimes   = []string{"banana", "", "0s", "-5s", "5", "2000000h", "99999999999h", "1s\n", "\x1b[2J"}
)

// wrong are the words that may not be in a place.
func wrong(place string) (words []string, codes string) {
	switch place {
	case anyText:
		return slices.Concat(raw, never), "2"
	case inside:
		return slices.Concat([]string{"../../etc", "$(reboot)", "@", " "}, raw, never), "23"
	case outside:
		return slices.Concat(never[:3], []string{"no/such/directory"}), "12"
	}
	return slices.Concat(odd, raw, never), place + "2"
}

// Whatever is wrong with a command line, of any command: one line says so and what to do, with the
// exit code that the manual has for it; nothing of what was typed reaches the terminal as it is; and
// nothing is changed.
func TestBadInput(t *testing.T) {
	w := newWitness(t)
	t.Chdir(t.TempDir())
	if err := os.Mkdir("backups", 0o700); err != nil {
		t.Fatal(err)
	}
	root := (&app{world: system()}).root()
	seen := map[string]bool{}
	w.bad("2", "")
	for _, word := range slices.Concat(odd, raw, never) {
		w.bad("2", word)
		w.bad("2", "help", word)
		w.bad("2", word, "--help")
	}
	for _, d := range badTimes {
		w.bad("2", "--timeout", d, "ls")
	}
	w.bad("2", "ls", "--json", "--quiet")
	w.bad("2", "ls", "--socket")
	w.bad("2", "ls", "--socket", "")
	w.bad("6", "ls", "--socket", "\x1b[2J")
	w.bad("26", "ls", "--socket", strings.Repeat("x", 1<<20))

	var walk func(path string, commands []*cli.Command)
	walk = func(path string, commands []*cli.Command) {
		for _, c := range commands {
			name := strings.TrimSpace(path + " " + c.Name)
			if len(c.Subcommands) > 0 {
				for _, word := range slices.Concat([]string{"-rf", "--bogus"}, raw, never) {
					if c.ArgsUsage == "" {
						w.bad("2", append(strings.Fields(name), word)...)
					}
				}
				walk(name, c.Subcommands)
			}
			if c.Hidden || len(c.Subcommands) > 0 && c.ArgsUsage == "" {
				continue
			}
			l, ok := lines[name]
			if !ok {
				t.Errorf("%s has no line here", name)
				continue
			}
			seen[name] = true
			w.command(name, c, l)
		}
	}
	walk("", root.Commands)
	for name := range lines {
		if !seen[name] {
			t.Errorf("there is no command %s", name)
		}
	}
	for _, word := range slices.Concat(odd, raw, never[:2]) {
		w.run("0", completeName, "rm", word)
		w.run("0", completeName, "create", "--node="+word)
		w.run("0", completeName, word, "")
	}
}

// command tries all that can be wrong with a command.
func (w *witness) command(name string, c *cli.Command, l line) {
	words := append(strings.Fields(name), l.switches...)
	given := func(args ...string) []string { return slices.Concat(words, args) }
	whole := given(l.args...)
	if len(l.codes) != len(l.args) {
		w.Fatalf("%s: %d arguments, codes of %d", name, len(l.args), len(l.codes))
	}

	places := strings.Fields(c.ArgsUsage)
	needed := 0
	for _, p := range places {
		if !strings.HasPrefix(p, "[") {
			needed++
		}
	}
	if len(c.Subcommands) > 0 {
		needed = 0 // alone it says what there is
	}
	for n := range needed {
		w.bad("2", given(l.args[:n]...)...)
	}
	if len(places) == 0 || !strings.HasSuffix(strings.Trim(places[len(places)-1], "[]"), "...") {
		for _, word := range []string{"extra", "", raw[1], never[2]} {
			w.bad("2", append(slices.Clone(whole), word)...)
		}
	}
	for _, o := range []string{"--bogus", "-rf", "-1", "-99999999999999999999", "--\x1b[2J", "--\xff", "--" + never[2]} {
		w.bad("2", append(slices.Clone(whole), o)...)
	}
	for i, place := range l.codes {
		words, codes := wrong(place)
		for _, word := range words {
			args := slices.Clone(l.args)
			args[i] = word
			w.bad(codes, given(args...)...)
		}
		if place != inside && place != outside {
			args := slices.Clone(l.args)
			args[i] = "-rf"
			w.bad(codes, given(append([]string{"--"}, args...)...)...)
		}
	}

	for _, f := range c.Flags {
		o := f.Names()[0]
		var words []string
		codes := "2"
		switch f.(type) {
		case *cli.BoolFlag:
			w.bad("2", append(slices.Clone(whole), "--"+o+"=banana")...)
			continue
		case *cli.IntFlag, *cli.Uint64Flag:
			words = badNumbers
		case *cli.DurationFlag:
			words = badTimes
		case *cli.StringFlag, *cli.StringSliceFlag:
			place, ok := l.values[o]
			if _, _, option := volume.OptionHelp(o); !ok && option {
				place, ok = "2", true
			}
			if !ok {
				w.Errorf("%s: option --%s has no codes here", name, o)
				continue
			}
			words, codes = wrong(place)
		default:
			w.Errorf("%s: option --%s is of a kind that is not tried here", name, o)
		}
		w.bad("2", append(slices.Clone(whole), "--"+o)...)
		for _, word := range words {
			w.bad(codes, append(slices.Clone(whole), "--"+o, word)...)
		}
	}
}

// witness runs command lines and sees what they say and do.
type witness struct {
	*testing.T
	socket string

	mu   sync.Mutex
	line string // that is running
}

func newWitness(t *testing.T) *witness {
	w := &witness{T: t, socket: filepath.Join(t.TempDir(), "s")}
	l, err := api.ListenUnix(w.socket, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	fake, log := apitest.Cluster(), slog.New(slog.DiscardHandler)
	h := api.NewHandler(fake, fake, log)
	var serving sync.WaitGroup
	serving.Go(func() {
		api.ServeLocal(ctx, l, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			h.ServeHTTP(&answer{ResponseWriter: rw, r: r, w: w}, r)
		}), log)
	})
	t.Cleanup(func() { stop(); serving.Wait() })
	t.Setenv("FLOCKCTL_SOCKET", w.socket)
	return w
}

// answer is what flockd says. That a change was made is an error.
type answer struct {
	http.ResponseWriter
	r     *http.Request
	w     *witness
	begun bool
}

func (a *answer) WriteHeader(status int) {
	a.begun = true
	if a.r.Method != http.MethodGet && status/100 == 2 {
		a.w.mu.Lock()
		a.w.Errorf("flockctl %s: it has done %s %.200s", a.w.line, a.r.Method, a.r.URL.Path)
		a.w.mu.Unlock()
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(b []byte) (int, error) {
	if !a.begun {
		a.WriteHeader(http.StatusOK)
	}
	return a.ResponseWriter.Write(b)
}

func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// run runs a line and returns what it wrote to stderr, once all of it is fit for a terminal.
func (w *witness) run(codes string, args ...string) string {
	shown := fmt.Sprintf("%.300q", args)
	w.mu.Lock()
	w.line = shown
	w.mu.Unlock()
	var stdout, stderr bytes.Buffer
	got := run(args, world{stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr, now: func() time.Time { return apitest.Now }})
	if !strings.Contains(codes, strconv.Itoa(got)) {
		w.Errorf("flockctl %s: exit code %d, want one of %s: %.300q", shown, got, codes, stderr.String())
	}
	for _, out := range []string{stdout.String(), stderr.String()} {
		bad := strings.IndexFunc(out, func(r rune) bool { return r != '\n' && r != '\t' && !strconv.IsPrint(r) })
		if bad >= 0 || !utf8.ValidString(out) {
			w.Errorf("flockctl %s: writes %.300q to the terminal", shown, out[max(bad, 0):])
		}
	}
	return stderr.String()
}

// bad runs a line that has to fail.
func (w *witness) bad(codes string, args ...string) {
	said := w.run(codes, args...)
	text, one := strings.CutSuffix(said, "\n")
	text, named := strings.CutPrefix(text, "flockctl: ")
	switch {
	case !one || !named || strings.Contains(text, "\n"):
		w.Errorf("flockctl %.300q: says not one line: %.500q", args, said)
	case len(text) > 5000:
		w.Errorf("flockctl %.300q: says a line of %d bytes", args, len(text))
	case !strings.Contains(text, "flockctl ") && !strings.Contains(text, ": "):
		w.Errorf("flockctl %.300q: does not say what to do: %s", args, text)
	}
}
