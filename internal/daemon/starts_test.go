package daemon

import (
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/container"
)

// A container that ends, or is started again, has not come up; one that is slow has.
func TestJudgeStart(t *testing.T) {
	is := func(s container.State, more ...func(*startView)) startView {
		v := startView{Now: container.Captured{State: s}}
		for _, m := range more {
			m(&v)
		}
		return v
	}
	code := func(n int) func(*startView) { return func(v *startView) { v.Now.ExitCode = n } }
	again := func(n int) func(*startView) { return func(v *startView) { v.Now.Restarts = n } }
	ran := func(d time.Duration) func(*startView) { return func(v *startView) { v.Ran = d } }
	failed := func(why string) func(*startView) { return func(v *startView) { v.Now.Error = why } }
	answered := func(v *startView) { v.Answered = true }
	awaited := func(v *startView) { v.Awaited = true }
	gone := func(v *startView) { v.Gone = true }
	for _, c := range []struct {
		name string
		v    startView
		want startVerdict
		why  string
	}{
		{"just started", is(container.Running), startWaits, ""},
		{"for less than a second", is(container.Running, ran(999*time.Millisecond)), startWaits, ""},
		{"for a second", is(container.Running, ran(time.Second)), startRuns, ""},
		{"somebody has paused it", is(container.Paused, ran(time.Second)), startRuns, ""},
		{"its server answers at once", is(container.Running, answered), startRuns, ""},
		{"clients wait for it alone", is(container.Running, awaited), startWaits, ""},
		{"for a while", is(container.Running, awaited, ran(200*time.Millisecond)), startRuns, ""},

		{"it waits to be started again", is(container.Restarting, code(3), ran(2*time.Second)), startFails, "code 3, and its engine starts it again"},
		{"even if it ended well", is(container.Restarting), startFails, "code 0, and its engine starts it again"},
		{"it was started again, and runs", is(container.Running, again(1), ran(2*time.Second)), startFails, "started it again once"},
		{"as another one's clients wait", is(container.Running, again(2), awaited, ran(time.Second)), startFails, "started it again 2 times"},
		{"and answers", is(container.Running, again(1), answered), startRuns, ""},
		{"it has answered before", is(container.Restarting, code(3), answered), startFails, "code 3"},
		{"it has ended", is(container.Exited, code(1)), startFails, "it ended with code 1"},
		{"its engine says why", is(container.Exited, code(128), failed("no such file")), startFails, "it ended with code 128: no such file"},
		{"its engine could not start it", is(container.Exited, failed("no such device")), startFails, "no such device"},
		{"it ended after its last try", is(container.Exited, code(1), again(5)), startFails, "it ended with code 1"},
		{"it had nothing more to do", is(container.Exited), startEnds, ""},
		{"at the second try", is(container.Exited, again(1)), startEnds, ""},
		{"nobody knows how it ended", is("", gone), startFails, "--rm"},
		{"it was never started", is(container.Created), startFails, "it is created"},
		{"it is dead", is(container.Dead), startFails, "it is dead"},
	} {
		got, why := judgeStart(c.v)
		if got != c.want || !strings.Contains(why, c.why) || (why != "") != (got == startFails) || strings.HasSuffix(why, ":") || strings.HasSuffix(why, ": ") {
			t.Errorf("%s: %s, %q; want %s, %q", c.name, got, why, c.want, c.why)
		}
	}
}

// What a program said is one line of a few words, in an event and in the state.
func TestOneLine(t *testing.T) {
	for _, c := range []struct {
		said string
		most int
		want string
	}{
		{"", 10, ""},
		{"\n \r\n", 10, ""},
		{"one\r\n\n  two\n", 80, "one / two"},
		{"\x1b[31mred\x1b[0m\x00", 80, "[31mred [0m"},
		{"0123456789", 10, "0123456789"},
		{"0123456789", 4, "...6789"},
		{"0123\xff", 80, "0123?"},
		{"aä", 1, "..."},
	} {
		if got := oneLine(c.said, c.most); got != c.want {
			t.Errorf("%q: %q, want %q", c.said, got, c.want)
		}
	}
}
