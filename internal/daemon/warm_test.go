package daemon

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/container"
)

// TestPlanWarm: each case of testdata/warm.txt is a view of node n1, in the words of
// follow.txt and with
//
//	vol NAME@EPOCH on=NODE moving to=NODE attempt=A [alone]    alone: what uses it does not follow
//	waits RECORD HASH
//	tried RECORD ATTEMPT
//
// and, below "=>", what is to be done.
func TestPlanWarm(t *testing.T) {
	const file = "testdata/warm.txt"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for c := range strings.SplitSeq(strings.TrimRight(string(text), "\n"), "\n\n") {
		var input, follow []string
		v := warmView{Waiting: map[string]string{}, Tried: map[string]string{}}
		var noted []func(key func(string) string)
		for line := range strings.Lines(c) {
			line = strings.TrimRight(line, "\n")
			if strings.HasPrefix(line, "=>") {
				continue
			}
			input = append(input, line)
			words := strings.Fields(line)
			switch words[0] {
			case "waits":
				noted = append(noted, func(key func(string) string) { v.Waiting[key(words[1])] = words[2] })
			case "tried":
				noted = append(noted, func(key func(string) string) { v.Tried[key(words[1])] = words[2] })
			default:
				follow = append(follow, line)
			}
		}
		fv := followCase(t, follow)
		v.Self, v.State = fv.Self, fv.State
		for _, note := range noted {
			note(func(name string) string {
				for r := range v.State.Containers() {
					if r.Name == name {
						return r.RecordKey()
					}
				}
				return name
			})
		}
		steps := planWarm(v)
		for _, s := range steps {
			name, _, _ := strings.Cut(s.Record, "/")
			what := "start " + name
			if s.End != "" {
				what = "end " + name + ": " + s.End
			}
			input = append(input, "=> "+what)
		}
		if len(steps) == 0 {
			input = append(input, "=> nothing")
		}
		out = append(out, strings.Join(input, "\n"))
	}
	got := strings.Join(out, "\n\n") + "\n"
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != string(text) {
		t.Errorf("got:\n%s\nwant:\n%s", got, text)
	}
}

// What has data of its own, or may have, is never removed; and what has none does not stay.
func TestLeftOver(t *testing.T) {
	for _, c := range []struct {
		w                 container.Waiter
		settled, recorded bool
		want              warmLeft
	}{
		{container.Waiter{Waiting: true, Live: true, AtGate: true}, false, false, warmEnd},
		{container.Waiter{Waiting: true}, false, false, warmEnd},
		{container.Waiter{Waiting: true}, true, true, warmEnd},
		{container.Waiter{Live: true, AtGate: true}, false, false, warmEnd}, // flockd died before it let it go
		{container.Waiter{}, false, false, warmEnd},                         // and the gate has ended
		{container.Waiter{Live: true}, false, false, warmSettle},            // flockd died after it
		{container.Waiter{Live: true}, false, true, warmSettle},             //
		{container.Waiter{}, false, true, warmLeave},                        // it ran, was recorded, and was stopped
		{container.Waiter{}, true, false, warmLeave},                        //
		{container.Waiter{Live: true}, true, false, warmLeave},              //
		{container.Waiter{Live: true, AtGate: true}, true, true, warmLeave}, // it is just started again
	} {
		if got := leftOver(c.w, c.settled, c.recorded); got != c.want {
			t.Errorf("%+v, settled %v, recorded %v: %q, want %q", c.w, c.settled, c.recorded, got, c.want)
		}
	}
}

// While a container is made to wait the first mount of its volume gets the placeholder, and
// nobody else does: neither a second one, nor anybody once the volume is here.
func TestArmed(t *testing.T) {
	p := &prestarts{armed: map[string]*armed{}}
	ask := func(name string, here bool) string {
		dir, armed, err := p.mount(name, here)
		return fmt.Sprint(dir, armed, err != nil)
	}
	want := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	want("not armed", ask("db", false), "false false")
	p.arm("db", "/p")
	want("another volume", ask("web", false), "false false")
	want("the volume is here", ask("db", true), "true true")
	want("the first", ask("db", false), "/ptrue false")
	want("the second", ask("db", false), "true true")
	if !p.disarm("db") {
		t.Error("nobody has taken it")
	}
	want("disarmed", ask("db", false), "false false")
	p.arm("db", "/p")
	if p.disarm("db") {
		t.Error("somebody has taken it")
	}
	if dir, armed, err := (*prestarts)(nil).mount("db", false); dir != "" || armed || err != nil {
		t.Error("a node that has none wait answers mounts")
	}
}
