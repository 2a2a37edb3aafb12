package container

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestSnapshotHooks(t *testing.T) {
	for _, c := range []struct {
		pre, post string
		says      string // of the command before; "": none
		after     string // likewise
	}{
		{"", "", "", ""},
		{"none", "none", "", ""},
		{"postgres", "", "CHECKPOINT", ""},
		{"redis", "", "bgsave", ""},
		{"sync", "", "sync", ""},
		{"/freeze now", "/thaw", "/freeze now", "/thaw"},
		{"", "postgres", "", "postgres"}, // there is no preset for after: it is a command
	} {
		labels := map[string]string{LabelPreSnapshot: c.pre, LabelPostSnapshot: c.post}
		pre, post := PreSnapshotOf(labels), PostSnapshotOf(labels)
		for _, x := range []struct {
			got         SnapshotHook
			label, want string
		}{{pre, LabelPreSnapshot, c.says}, {post, LabelPostSnapshot, c.after}} {
			if x.want == "" {
				if x.got.Command != nil {
					t.Errorf("%s=%q runs %q, want nothing", x.label, labels[x.label], x.got.Command)
				}
			} else if x.got.Label != x.label || x.got.Name != labels[x.label] || !strings.Contains(strings.Join(x.got.Command, " "), x.want) {
				t.Errorf("%s=%q is %+v, want %q in it", x.label, labels[x.label], x.got, x.want)
			}
		}
	}
}

// A command is run as it is written, quotes and all, and says how it ended.
func TestLimited(t *testing.T) {
	for _, c := range []struct {
		script, want string
		ok           bool
	}{
		{`printf '%s' "a 'b' $((1+1))"`, "a 'b' 2", true},
		{`echo no; exit 3`, "no\n", false},
	} {
		argv := limited(c.script)
		out, err := exec.Command(argv[0], argv[1:]...).Output()
		if string(out) != c.want || (err == nil) != c.ok {
			t.Errorf("%s: %q, %v; want %q", c.script, out, err, c.want)
		}
	}
}

// What hangs is ended with all that it has begun, also where timeout(1) ends one process alone, as
// busybox's does.
func TestLimitedEndsAll(t *testing.T) {
	const busybox = `#!/bin/sh
signal=$2 after=$3
shift 3
[ "$1" != true ] || exit 0
(sleep "$after"; kill -"$signal" $$) >/dev/null 2>&1 3>&- &
exec "$@"
`
	for _, c := range []struct{ name, timeout string }{{"this machine's", ""}, {"busybox's", busybox}} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if c.timeout != "" {
				if err := os.WriteFile(filepath.Join(dir, "timeout"), []byte(c.timeout), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			var over *os.File
			// On a busy machine even its beginning may take longer than the limit.
			for limit := time.Second; ; limit *= 2 {
				read, held, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				defer read.Close()
				argv := limitedTo(limit, `echo begun; sh -c 'sleep 600; :'; echo went on`)
				cmd := exec.Command(argv[0], argv[1:]...)
				cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
				cmd.ExtraFiles = []*os.File{held} // whatever it has begun has that, too
				cmd.WaitDelay = 5 * time.Second
				out, err := cmd.Output()
				held.Close()
				if len(out) == 0 && limit < 30*time.Second {
					continue
				}
				var exit *exec.ExitError
				if !errors.As(err, &exit) || string(out) != "begun\n" {
					t.Errorf("it says %q and ends with %v", out, err)
				}
				over = read
				break
			}
			if err := over.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(over); err != nil {
				t.Errorf("something of it goes on: %v", err)
			}
		})
	}
}

// What docs/SNAPSHOTS.md tells people to write does what it says: the command ends as the
// freeze does, and its limit thaws what it froze, but not what was frozen for a later snapshot.
func TestDocumentedLimit(t *testing.T) {
	text, err := os.ReadFile("../../docs/SNAPSHOTS.md")
	if err != nil {
		t.Fatal(err)
	}
	script := map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		for _, label := range []string{LabelPreSnapshot, LabelPostSnapshot} {
			if s, ok := strings.CutPrefix(strings.TrimSpace(lines.Text()), label+"="); ok {
				script[label] = s
			}
		}
	}
	if !strings.Contains(script[LabelPreSnapshot], "sleep 150") || !strings.Contains(script[LabelPostSnapshot], "mythaw") {
		t.Fatalf("the document has %q", script)
	}
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	for name, body := range map[string]string{
		"myfreeze": "echo frozen >>$DIR/log; exit $(cat $DIR/code)",
		"mythaw":   "echo thawed >>$DIR/log",
		// Time passes when somebody writes into the pipe that the caller has made.
		"sleep": "read x <$DIR/time-$(cat $DIR/round); true",
	} {
		if err := os.WriteFile(file(name), []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// run runs one of them as a container does, with a directory of its own for /tmp. over says
	// that whatever it left running has ended.
	run := func(label string) (over *os.File, err error) {
		t.Helper()
		over, held, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { over.Close() })
		argv := limited(strings.ReplaceAll(script[label], "/tmp/", dir+"/"))
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "DIR="+dir)
		cmd.ExtraFiles = []*os.File{held}
		out, err := cmd.CombinedOutput() // ends when nothing has its output any more
		held.Close()
		if len(out) > 0 {
			t.Errorf("%s says %q", label, out)
		}
		return over, err
	}
	said := func(want string) {
		t.Helper()
		got, err := os.ReadFile(file("log"))
		if s := strings.Join(strings.Fields(string(got)), " "); err != nil || s != want {
			t.Errorf("it did %q, %v; want %q", s, err, want)
		}
	}
	// freeze runs the first. pass has the time of its limit come, and waits for its end.
	freeze := func(n, code string) (pass func(), err error) {
		t.Helper()
		for name, s := range map[string]string{"round": n, "code": code} {
			if err := os.WriteFile(file(name), []byte(s), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := exec.Command("mkfifo", file("time-"+n)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		over, err := run(LabelPreSnapshot)
		gate, gerr := os.OpenFile(file("time-"+n), os.O_WRONLY, 0) // waits for the sleeper
		if gerr != nil {
			t.Fatal(gerr)
		}
		return func() {
			t.Helper()
			_, werr := gate.WriteString("now\n")
			_, rerr := io.ReadAll(over)
			if err := errors.Join(werr, gate.Close(), rerr); err != nil {
				t.Error(err)
			}
		}, err
	}
	thaw := func() {
		t.Helper()
		if _, err := run(LabelPostSnapshot); err != nil {
			t.Error(err)
		}
	}
	first, err := freeze("1", "0")
	if err != nil {
		t.Error(err)
	}
	said("frozen")
	thaw()
	said("frozen thawed")
	thaw() // as after each start of flockd
	second, err := freeze("2", "3")
	if err == nil {
		t.Error("that it did not freeze is not told")
	}
	said("frozen thawed thawed frozen")
	first()
	said("frozen thawed thawed frozen")
	second()
	said("frozen thawed thawed frozen thawed")
}
