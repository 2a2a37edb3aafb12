package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/state"
)

// TestPlanWarm: each case of testdata/warm.txt is a view of node n1, in the words of
// follow.txt and with
//
//	vol NAME@EPOCH on=NODE moving to=NODE attempt=A [alone]    alone: what uses it does not follow
//	waits RECORD HASH
//	tried RECORD ATTEMPT
//	unaware                        a node runs a version that knows nothing of it
//	unasked RECORD                 its container does not ask for it
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
		unasked := map[string]bool{}
		v := warmView{Waiting: map[string]string{}, Tried: map[string]string{}, Asks: func(r *state.Container) bool { return !unasked[r.Name] }}
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
			case "unaware":
				v.Unaware = true
			case "unasked":
				unasked[words[1]] = true
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
		w                        container.Waiter
		settled, named, recorded bool
		want                     warmLeft
	}{
		{container.Waiter{Waiting: true, Live: true, AtGate: true}, false, true, false, warmEnd},
		{container.Waiter{Waiting: true}, false, true, false, warmEnd},
		{container.Waiter{Waiting: true}, false, false, false, warmEnd},             // flockd died before it was named
		{container.Waiter{Waiting: true}, true, true, true, warmLeave},              // it has gone since it was listed
		{container.Waiter{Live: true, AtGate: true}, false, true, false, warmEnd},   // flockd died before it let it go
		{container.Waiter{}, false, true, false, warmEnd},                           // and the gate has ended
		{container.Waiter{Live: true}, false, true, false, warmSettle},              // flockd died after it
		{container.Waiter{Live: true}, false, true, true, warmSettle},               //
		{container.Waiter{}, false, true, true, warmLeave},                          // it ran, was recorded, and was stopped
		{container.Waiter{}, true, true, false, warmLeave},                          //
		{container.Waiter{Live: true}, true, true, false, warmLeave},                //
		{container.Waiter{Live: true, AtGate: true}, true, true, true, warmLeave},   // it is just started again
		{container.Waiter{}, false, false, false, warmLeave},                        // made of its image: another one
		{container.Waiter{Live: true}, false, false, false, warmLeave},              //
		{container.Waiter{Live: true, AtGate: true}, false, false, true, warmLeave}, //
	} {
		if got := leftOver(c.w, c.settled, c.named, c.recorded); got != c.want {
			t.Errorf("%+v, settled %v, named %v, recorded %v: %q, want %q", c.w, c.settled, c.named, c.recorded, got, c.want)
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
	a := p.arm("db", "/p")
	want("another volume", ask("web", false), "false false")
	want("the volume is here", ask("db", true), "true true")
	want("the first", ask("db", false), "/ptrue false")
	want("the second", ask("db", false), "true true")
	if p.arm("db", "/q") != nil {
		t.Error("two are armed for one volume")
	}
	if !p.disarm("db", a) {
		t.Error("nobody has taken it")
	}
	want("disarmed", ask("db", false), "false false")
	b := p.arm("db", "/p")
	if p.disarm("db", b) {
		t.Error("somebody has taken it")
	}
	p.arm("db", "/q")
	p.disarm("db", b)
	want("disarmed by an earlier one", ask("db", false), "/qtrue false")
	if dir, armed, err := (*prestarts)(nil).mount("db", false); dir != "" || armed || err != nil {
		t.Error("a node that has none wait answers mounts")
	}
}

// sweptEngine lists containers, and notes of which it is asked more.
type sweptEngine struct {
	container.Prestarter
	list  []container.Waiter
	while func() // it lists them
	asked []string
}

func (e *sweptEngine) Waiters(context.Context) ([]container.Waiter, error) {
	e.while()
	return e.list, nil
}

func (e *sweptEngine) Waiter(_ context.Context, id string) (container.Waiter, error) {
	e.asked = append(e.asked, id)
	return container.Waiter{}, errors.New("it does not answer")
}

// sweptDoors are doors by how long they were not used.
type sweptDoors struct {
	Doors
	unused    map[string]time.Duration
	settled   string
	used      []string
	discarded []string
}

func (d *sweptDoors) All() (out []string, err error) {
	for token := range d.unused {
		out = append(out, token)
	}
	return out, nil
}
func (d *sweptDoors) Settled(token string) bool { return token == d.settled }
func (d *sweptDoors) Unused(token string) (time.Duration, error) {
	return d.unused[token], nil
}
func (d *sweptDoors) Use(token string) error { d.used = append(d.used, token); return nil }
func (d *sweptDoors) Discard(token string) error {
	d.discarded = append(d.discarded, token)
	return nil
}

// What is looked at again, to be removed perhaps, is what is left over by all that is known
// before and after the engine has listed it; and a door stays for a day after its last use.
func TestSweep(t *testing.T) {
	doors := &sweptDoors{settled: "settled", unused: map[string]time.Duration{"went": 0, "came": 0, "settled": 0, "left": 48 * time.Hour, "day": warmKeep, "hour": time.Hour, "new": warmKeep}}
	engine := &sweptEngine{list: []container.Waiter{{ID: "1", Token: "went", Waiting: true}, {ID: "2", Token: "came", Waiting: true}, {ID: "3", Token: "settled"}, {ID: "4", Token: "left"}}}
	p := &prestarts{f: &follower{m: &member{}}, engine: engine, doors: doors, by: map[string]*prestart{"a": {token: "went"}, "n": {token: "new"}}}
	p.f.m.log = slog.New(slog.DiscardHandler)
	engine.while = func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.by, "a")
		p.by["b"] = &prestart{token: "came"}
	}
	if err := p.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	slices.Sort(doors.used)
	if got, want := fmt.Sprint(engine.asked, doors.used, doors.discarded), "[4] [came left settled went] [day]"; got != want {
		t.Errorf("looked at, used, discarded: %s; want %s", got, want)
	}
}

// strangeEngine has containers of volumes, and says what is stopped.
type strangeEngine struct {
	container.Engine
	users   []container.Use
	stopped []string
}

func (e *strangeEngine) Users(context.Context) ([]container.Use, error) { return e.users, nil }
func (e *strangeEngine) StopContainer(_ context.Context, id string) error {
	e.stopped = append(e.stopped, id)
	return nil
}

type strangeDoors struct {
	Doors
	holders []string
	err     error
}

func (d strangeDoors) Holders(string) ([]string, error) { return d.holders, d.err }

// Who has got the placeholder is stopped, and neither who has the volume, nor who has
// everything of the machine mounted.
func TestStrangers(t *testing.T) {
	use := func(id, volume string, s container.State) container.Use {
		return container.Use{Container: id, Name: "n" + id, State: s, Volumes: []container.Mount{{Volume: volume}}}
	}
	users := []container.Use{use("has", "db", container.Running), use("volume", "db", container.Running), use("other", "web", container.Running), use("over", "db", container.Exited)}
	for _, c := range []struct {
		holders []string
		err     error
		want    string
	}{
		{[]string{"monitor", "has", "other"}, nil, "[nhas] [has] <nil>"},
		{[]string{"monitor"}, nil, "[] [] <nil>"},
		{[]string{"has"}, errors.New("no answer"), "[] [] no answer"},
	} {
		engine := &strangeEngine{users: users}
		p := &prestarts{f: &follower{m: &member{}, engine: engine}, doors: strangeDoors{holders: c.holders, err: c.err}}
		stopped, err := p.strangers(t.Context(), "db", "t")
		if got := fmt.Sprint(stopped, engine.stopped, err); got != c.want {
			t.Errorf("%v: %s, want %s", c.holders, got, c.want)
		}
	}
}
