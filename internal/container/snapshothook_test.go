package container

import (
	"os/exec"
	"strings"
	"testing"
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
