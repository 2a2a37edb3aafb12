package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

var errCut = errors.New("cut off")

// madeEngine is a Maker whose every change can be cut off: before it takes effect, or
// after it did and before the answer came.
type madeEngine struct {
	containers map[string]*Captured // by ID
	serial     int
	steps      int  // changes so far
	cutAt      int  // the change that is cut off; 0: none
	late       bool // after its effect
	dead       bool // whatever comes after the cut fails too: the caller has crashed
	crash      bool
	badStart   bool
	discarded  []string // IDs, of what was removed as ours
}

func (e *madeEngine) change(f func() error) error {
	if e.dead {
		return errCut
	}
	e.steps++
	if e.steps != e.cutAt {
		return f()
	}
	e.dead = e.crash
	if e.late {
		if err := f(); err != nil {
			return err
		}
	}
	return errCut
}

func (e *madeEngine) Find(_ context.Context, name string) (Captured, error) {
	if e.dead {
		return Captured{}, errCut
	}
	for _, c := range e.containers {
		if c.Spec.Name == name || c.ID == name {
			return *c, nil
		}
	}
	return Captured{}, ErrNotFound
}

func (e *madeEngine) add(name string, s Spec, state State) *Captured {
	e.serial++
	c := &Captured{ID: fmt.Sprintf("id%d", e.serial), State: state, Started: state != Created, Spec: s}
	c.Spec.Name = name
	var config struct{ Labels map[string]string }
	if len(s.Config) > 0 {
		if err := json.Unmarshal(s.Config, &config); err != nil {
			panic(err)
		}
	}
	c.Labels = config.Labels
	e.containers[c.ID] = c
	return c
}

func (e *madeEngine) Create(_ context.Context, name string, s Spec) (id string, err error) {
	err = e.change(func() error {
		if _, err := e.Find(context.Background(), name); err == nil && !e.dead {
			return errors.New("name taken")
		}
		id = e.add(name, s, Created).ID
		return nil
	})
	if err != nil {
		id = ""
	}
	return id, err
}

func (e *madeEngine) Rename(_ context.Context, id, name string) error {
	return e.change(func() error {
		for _, c := range e.containers {
			if c.Spec.Name == name {
				return errors.New("name taken")
			}
		}
		e.containers[id].Spec.Name = name
		return nil
	})
}

func (e *madeEngine) Start(_ context.Context, id string) error {
	return e.change(func() error {
		if e.badStart {
			return errors.New("port is already allocated")
		}
		e.containers[id].State, e.containers[id].Started = Running, true
		return nil
	})
}

func (e *madeEngine) Remove(ctx context.Context, id string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return e.change(func() error {
		c := e.containers[id]
		switch {
		case c == nil:
			return ErrNotFound
		case c.State == Running:
			return errors.New("is running")
		}
		delete(e.containers, id)
		return nil
	})
}

func (e *madeEngine) Discard(ctx context.Context, id string) error {
	e.discarded = append(e.discarded, id)
	return e.Remove(ctx, id)
}

func (e *madeEngine) End(_ context.Context, id string) error {
	e.discarded = append(e.discarded, id)
	return e.change(func() error {
		if e.containers[id] == nil {
			return ErrNotFound
		}
		delete(e.containers, id)
		return nil
	})
}

func (e *madeEngine) Stop(_ context.Context, id string) error {
	return e.change(func() error {
		if e.containers[id] == nil {
			return ErrNotFound
		}
		e.containers[id].State = Exited
		return nil
	})
}

func (e *madeEngine) String() string {
	var out []string
	for _, c := range e.containers {
		out = append(out, fmt.Sprintf("%s=%s/%s", c.Spec.Name, c.ID, c.State))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// stays is of containers that do.
func stays(context.Context, string) error { return nil }

func dbSpec() Spec {
	return Spec{Name: "db", Image: Image{ID: "sha256:1"}, Mounts: []MountPoint{{Type: "volume", Driver: "flocker", Name: "v", Destination: "/data"}}}
}

// Cut off at any step, by an error or by a crash, before or after the effect: no
// container that ran is lost without the new one running, and a repeat ends with the
// new one alone.
func TestRecreateCutOff(t *testing.T) {
	for _, withOld := range []bool{false, true} {
		whole := 0
		for at := 0; at <= 8; at++ {
			for _, late := range []bool{false, true} {
				for _, crash := range []bool{false, true} {
					name := fmt.Sprintf("old %t, step %d, late %t, crash %t", withOld, at, late, crash)
					e := &madeEngine{containers: map[string]*Captured{}, cutAt: at, late: late, crash: crash}
					var replaces []string
					if withOld {
						replaces = append(replaces, e.add("db", dbSpec(), Exited).ID)
					}
					id, err := Recreate(t.Context(), e, dbSpec(), Known{Replaces: replaces}, stays)
					if withOld && slices.Contains(e.discarded, "id1") {
						t.Errorf("%s: the old container's volumes are removed", name)
					}
					if at == 0 {
						whole = e.steps
					}
					if at > 0 && at <= whole && err == nil {
						t.Errorf("%s: no error", name)
					}
					running := slices.ContainsFunc(keys(e.containers), func(id string) bool { return e.containers[id].State == Running })
					if old := e.containers["id1"]; withOld && old == nil && !running {
						t.Errorf("%s: the old container is gone and none runs: %s", name, e)
					}
					if id != "" && !running {
						t.Errorf("%s: answered %s, which does not run: %s", name, id, e)
					}

					e.dead, e.cutAt = false, 0
					id, err = Recreate(t.Context(), e, dbSpec(), Known{Replaces: replaces}, stays)
					if err != nil || e.String() != "db="+id+"/running" || withOld && id == "id1" {
						t.Errorf("%s: repeated: %s, %v: %s", name, id, err, e)
					}
				}
			}
		}
		if whole < 3 {
			t.Errorf("%d steps seen; want at least create, rename, start", whole)
		}
	}
}

func keys(m map[string]*Captured) (out []string) {
	for k := range m {
		out = append(out, k)
	}
	return out
}

// Nothing that is not ours is touched.
func TestRecreateForeign(t *testing.T) {
	other := dbSpec()
	other.Mounts = nil
	ports := dbSpec()
	ports.HostConfig = []byte(`{"PortBindings":{"80/tcp":[{"HostPort":"8080"}]}}`)
	labelled, asked := ports, dbSpec()
	asked.Config = []byte(`{}`)
	asked, err := asked.MadeFor("a")
	if err != nil {
		t.Fatal(err)
	}
	labelled.Config = []byte(`{"Labels":{"flocker.enable":"true"}}`) // as its user writes it
	made, err := labelled.MadeFor("a")
	if err != nil {
		t.Fatal(err)
	}
	later, err := labelled.MadeFor("b")
	if err != nil {
		t.Fatal(err)
	}
	olderImage := later
	olderImage.Image = Image{ID: "sha256:0"}
	elsewhere := later
	elsewhere.Mounts = []MountPoint{{Type: "volume", Driver: "flocker", Name: "w", Destination: "/data"}}
	for _, tc := range []struct {
		name     string
		spec     Spec
		state    State
		replaces bool
		want     string // in the error; "" for success
	}{
		{"stopped, not known", dbSpec(), Exited, false, "rename or remove it"},
		{"stopped, another one of that name", other, Exited, false, "rename or remove it"},
		{"runs, another one of that name", other, Running, true, "another container named db runs"},
		{"runs already", dbSpec(), Running, false, ""},
		{"never started", dbSpec(), Created, false, ""},
		{"never started, another one", other, Created, false, "rename or remove it"},
		{"never started, with other ports", ports, Created, false, "rename or remove it"},
		{"never started, with other ports, and the one that moved away", ports, Created, true, ""},
		{"never started, with other ports and a label", labelled, Created, false, "rename or remove it"},
		{"never started, with other ports, and made here", made, Created, false, ""},
		{"never started, with other ports, and made here of another one", later, Created, false, "rename or remove it"},
		{"it ended, was made here, and has been recorded since", made, Exited, true, ""},
		{"it ended, and was made here of an earlier one", later, Exited, false, ""},
		{"it ended, and was made here of another one, with another volume", elsewhere, Exited, false, "rename or remove it"},
		{"it runs, and was made here of an earlier one of another image", olderImage, Running, false, "another container named db runs"},
		{"the one that moved away", dbSpec(), Exited, true, ""},
	} {
		e := &madeEngine{containers: map[string]*Captured{}}
		there := e.add("db", tc.spec, tc.state)
		before := e.String()
		var replaces []string
		if tc.replaces {
			replaces = []string{there.ID}
		}
		id, err := Recreate(t.Context(), e, asked, Known{Replaces: replaces}, stays)
		if tc.want == "" {
			if err != nil || e.String() != "db="+id+"/running" {
				t.Errorf("%s: %s, %v: %s", tc.name, id, err, e)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) || e.String() != before {
			t.Errorf("%s: %v, with %s; want an error with %q and nothing changed", tc.name, err, e, tc.want)
		}
	}
}

// A container that cannot start leaves things as they were, and says why.
func TestRecreateStartFails(t *testing.T) {
	e := &madeEngine{containers: map[string]*Captured{}, badStart: true}
	old := e.add("db", dbSpec(), Exited)
	before := e.String()
	_, err := Recreate(t.Context(), e, dbSpec(), Known{Replaces: []string{old.ID}}, stays)
	if err == nil || !strings.Contains(err.Error(), "port is already allocated") || e.String() != before {
		t.Errorf("%v: %s; want the engine's reason and %s", err, e, before)
	}
}

// Which ports are published is decided anew for each call: what the last one has made before
// it was cut off at the start is only started if that is still what it would be.
func TestRecreatePortsAnew(t *testing.T) {
	with := func(bindings string) Spec {
		s := dbSpec()
		s.HostConfig = []byte(`{"PortBindings":` + bindings + `}`)
		s.Config = []byte(`{"Labels":{"flocker.enable":"true"}}`)
		s, err := s.MadeFor("a")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	both := with(`{"80/tcp":[{"HostIp":"","HostPort":"8080"}],"90/tcp":[{"HostPort":"9090"}]}`)
	for _, tc := range []struct {
		name        string
		first, then Spec
		anew        bool
	}{
		{"the same", both, both, false},
		{"the same, as another engine writes it", both, with(`{"90/tcp":[{"HostIp":"","HostPort":"9090"}],"80/tcp":[{"HostPort":"8080"}]}`), false},
		{"one is taken by now", both, with(`{"80/tcp":[{"HostPort":"8080"}]}`), true},
		{"one is free by now", with(`{"80/tcp":[{"HostPort":"8080"}]}`), both, true},
		{"all are taken by now", both, with(`{}`), true},
		{"another address", with(`{"80/tcp":[{"HostIp":"10.0.0.1","HostPort":"8080"}]}`), with(`{"80/tcp":[{"HostPort":"8080"}]}`), true},
		{"another range", with(`{"80/tcp":[{"HostPort":"8000-8010"}]}`), with(`{"80/tcp":[{"HostPort":"9000-9010"}]}`), true},
		{"any port instead of a range", with(`{"80/tcp":[{"HostPort":"8000-8010"}]}`), with(`{"80/tcp":[{"HostPort":"0"}]}`), true},
		{"any port", with(`{"80/tcp":[{"HostPort":"0"}]}`), with(`{"80":[{"HostPort":""}]}`), false},
		{"another protocol", with(`{"80/udp":[{"HostPort":"8080"}]}`), with(`{"80/tcp":[{"HostPort":"8080"}]}`), true},
	} {
		e := &madeEngine{containers: map[string]*Captured{}, cutAt: 4, crash: true}
		replaces := []string{e.add("db", dbSpec(), Exited).ID}
		if _, err := Recreate(t.Context(), e, tc.first, Known{Replaces: replaces}, stays); err == nil || e.String() != "db.flocker-old=id1/exited db=id2/created" {
			t.Fatalf("%s: not cut off at the start: %v: %s", tc.name, err, e)
		}
		e.dead, e.cutAt = false, 0
		id, err := Recreate(t.Context(), e, tc.then, Known{Replaces: replaces}, stays)
		if err != nil || e.String() != "db="+id+"/running" || (id != "id2") != tc.anew {
			t.Errorf("%s: %s, %v: %s", tc.name, id, err, e)
			continue
		}
		if got, want := string(e.containers[id].Spec.HostConfig), string(tc.then.HostConfig); tc.anew && got != want {
			t.Errorf("%s: it runs with %s, want %s", tc.name, got, want)
		}
	}
}

// One that was started and does not stay is removed, running or not, and the old one has its
// name back; but only what was made here. Nothing is removed before it is known to stay.
func TestRecreateDoesNotStay(t *testing.T) {
	labelled := dbSpec()
	labelled.Config = []byte(`{"Labels":{"flocker.enable":"true"}}`)
	made, err := labelled.MadeFor("a")
	if err != nil {
		t.Fatal(err)
	}
	old := func(e *madeEngine) []string { return []string{e.add("db", dbSpec(), Exited).ID} }
	for _, tc := range []struct {
		name  string
		there func(e *madeEngine) (replaces []string)
		asked string // what is there when it is asked
		want  string // and afterwards
	}{
		{"nothing was there", func(*madeEngine) []string { return nil }, "db=id1/running", ""},
		{"the one that moved away", old, "db.flocker-old=id1/exited db=id2/running", "db=id1/exited"},
		{"what a call that was cut off has made", func(e *madeEngine) []string {
			e.add("db.flocker-old", dbSpec(), Exited)
			e.add("db", made, Created)
			return []string{"id1"}
		}, "db.flocker-old=id1/exited db=id2/running", "db=id1/exited"},
		{"what one that was cut off has started", func(e *madeEngine) []string {
			e.add("db.flocker-old", dbSpec(), Exited)
			e.add("db", made, Running)
			return []string{"id1"}
		}, "db.flocker-old=id1/exited db=id2/running", "db=id1/exited"},
		{"and it has ended", func(e *madeEngine) []string {
			e.add("db.flocker-old", dbSpec(), Exited)
			e.add("db", made, Exited)
			return []string{"id1"}
		}, "db.flocker-old=id1/exited db=id2/exited, db.flocker-old=id1/exited db=id3/running", "db=id1/exited"},
		{"one that was recorded before, and ended", func(e *madeEngine) []string { return []string{e.add("db", made, Exited).ID} }, "db.flocker-old=id1/exited db=id2/running", "db=id1/exited"},
		{"one that was recorded before, and its user starts it", func(e *madeEngine) []string { return []string{e.add("db", made, Running).ID} }, "db=id1/running", "db=id1/running"},
		{"somebody's, never started, with our label", func(e *madeEngine) []string { e.add("db", labelled, Created); return nil }, "db=id1/running", "db=id1/exited"},
		{"somebody's, never started", func(e *madeEngine) []string { e.add("db", dbSpec(), Created); return nil }, "db=id1/running", "db=id1/exited"},
		{"it runs already", func(e *madeEngine) []string { e.add("db", labelled, Running); return nil }, "db=id1/running", "db=id1/running"},
	} {
		for _, state := range []State{Running, Restarting, Exited} {
			e := &madeEngine{containers: map[string]*Captured{}}
			replaces, asked := tc.there(e), []string(nil)
			id, err := Recreate(t.Context(), e, made, Known{Replaces: replaces}, func(_ context.Context, id string) error {
				asked = append(asked, e.String())
				if e.containers[id].State.Live() {
					e.containers[id].State = state
				}
				return errors.New("it ended with code 3")
			})
			want := strings.Replace(tc.want, "running", string(state), 1)
			if id != "" || err == nil || !strings.Contains(err.Error(), "it ended with code 3") || strings.Join(asked, ", ") != tc.asked || e.String() != want {
				t.Errorf("%s, %s: %q, %v: %q, then %q; want %q, then %q", tc.name, state, id, err, asked, e, tc.asked, want)
			}
		}
	}

	// Without a verdict nothing is removed, and the next call asks again.
	for _, state := range []State{Running, Exited} {
		e := &madeEngine{containers: map[string]*Captured{}}
		replaces := old(e)
		unknown := func(context.Context, string) error { return fmt.Errorf("stopped: %w", ErrUndecided) }
		for range 2 {
			id, err := Recreate(t.Context(), e, made, Known{Replaces: replaces}, unknown)
			if want := "db.flocker-old=id1/exited db=id2/" + string(e.containers["id2"].State); !errors.Is(err, ErrUndecided) || id != "id2" || e.String() != want {
				t.Errorf("undecided: %q, %v: %s; want %s", id, err, e, want)
			}
			e.containers["id2"].State = state
		}
		// It stays, or has done all that it had to do: then that is not done again.
		if id, err := Recreate(t.Context(), e, made, Known{Replaces: replaces}, stays); err != nil || id != "id2" || e.String() != "db=id2/"+string(state) {
			t.Errorf("decided later, %s: %q, %v: %s", state, id, err, e)
		}
	}

	// What was stopped for a move may have ended as if it had nothing more to do: it is made again.
	e := &madeEngine{containers: map[string]*Captured{}}
	e.add("db", made, Exited)
	if id, err := Recreate(t.Context(), e, made, Known{Halted: "id1"}, func(_ context.Context, id string) error {
		if id == "id1" {
			t.Error("it is asked how one has ended that was stopped")
		}
		return nil
	}); err != nil || id != "id2" || e.String() != "db=id2/running" {
		t.Errorf("stopped for a move: %q, %v: %s", id, err, e)
	}

	// What somebody has prepared, and was started in vain, is started again, and stays.
	for _, state := range []State{Exited, Restarting} {
		e := &madeEngine{containers: map[string]*Captured{}}
		e.add("db", labelled, Created)
		var known Known
		for range 3 {
			_, err := Recreate(t.Context(), e, made, known, func(_ context.Context, id string) error {
				if e.String() != "db=id1/running" {
					t.Errorf("prepared, %s: it is not started again: %s", state, e)
				}
				e.containers[id].State = state
				return errors.New("it ended with code 3")
			})
			var stopped *StoppedError
			if !errors.As(err, &stopped) || stopped.ID != "id1" || !strings.Contains(err.Error(), "code 3") || e.String() != "db=id1/exited" {
				t.Errorf("prepared, %s: %v: %s", state, err, e)
			}
			known.Prepared = "id1"
		}
		e.containers["id1"].State = Running // it could not be stopped, or somebody has started it
		if _, err := Recreate(t.Context(), e, made, known, func(context.Context, string) error { return errors.New("it ended") }); err == nil || e.String() != "db=id1/exited" {
			t.Errorf("prepared, it runs still: %v: %s", err, e)
		}
		if id, err := Recreate(t.Context(), e, made, known, stays); err != nil || id != "id1" || e.String() != "db=id1/running" {
			t.Errorf("prepared, it comes up: %q, %v: %s", id, err, e)
		}
		e.containers["id1"].State, e.containers["id1"].Spec.Image = Exited, Image{ID: "sha256:2"}
		if _, err := Recreate(t.Context(), e, made, known, stays); err == nil || !strings.Contains(err.Error(), "rename or remove it") {
			t.Errorf("prepared, and made anew otherwise: %v: %s", err, e)
		}
	}

	// What somebody has prepared, and may have done all it had to do, is asked before it is started again.
	for _, c := range []struct {
		name  string
		state State
		says  []error // each time it is asked
		asked string  // what is there when it is
		want  string
	}{
		{"it has done all", Exited, []error{nil}, "db=id1/exited", "db=id1/exited"},
		{"that cannot be recorded", Exited, []error{ErrUndecided}, "db=id1/exited", "db=id1/exited"},
		{"it has failed", Exited, []error{errors.New("it ended"), nil}, "db=id1/exited, db=id1/running", "db=id1/running"},
		{"and does again", Exited, []error{errors.New("it ended"), errors.New("it ended")}, "db=id1/exited, db=id1/running", "db=id1/exited"},
		{"it runs", Running, []error{ErrUndecided}, "db=id1/running", "db=id1/running"},
		{"it does not come up", Running, []error{errors.New("it ended")}, "db=id1/running", "db=id1/exited"},
	} {
		e := &madeEngine{containers: map[string]*Captured{}}
		e.add("db", labelled, Created)
		var asked []string
		says := []error{ErrUndecided}
		ask := func(context.Context, string) error {
			asked = append(asked, e.String())
			err := says[0]
			says = says[1:]
			return err
		}
		_, err := Recreate(t.Context(), e, made, Known{}, ask)
		var begun *BegunError
		if !errors.As(err, &begun) || begun.ID != "id1" || !errors.Is(err, ErrUndecided) {
			t.Errorf("begun, %s: %v: %s", c.name, err, e)
			continue
		}
		e.containers["id1"].State = c.state
		says, asked = c.says, nil
		last := says[len(says)-1]
		_, err = Recreate(t.Context(), e, made, Known{Prepared: "id1", Begun: "id1"}, ask)
		if !errors.Is(err, last) || strings.Join(asked, ", ") != c.asked || e.String() != c.want {
			t.Errorf("begun, %s: %v: asked at %q, then %s; want %q, then %s", c.name, err, asked, e, c.asked, c.want)
		}
	}
	// One that its user has started meanwhile is theirs: it is not noted, and so not stopped later.
	theirs := &madeEngine{containers: map[string]*Captured{}}
	theirs.add("db", labelled, Running)
	var begun *BegunError
	if _, err := Recreate(t.Context(), theirs, made, Known{}, func(context.Context, string) error { return ErrUndecided }); !errors.Is(err, ErrUndecided) || errors.As(err, &begun) {
		t.Errorf("its user has started it: %v", err)
	}

	// Whoever stops waiting while it is looked at leaves nothing behind.
	ctx, stop := context.WithCancel(t.Context())
	e = &madeEngine{containers: map[string]*Captured{}}
	replaces := old(e)
	if _, err := Recreate(ctx, e, dbSpec(), Known{Replaces: replaces}, func(context.Context, string) error { stop(); return nil }); err != nil || e.String() != "db=id2/running" {
		t.Errorf("stopped: %v: %s", err, e)
	}
}

// Only what flocker has made is removed with the volumes that were made for it alone.
func TestDiscard(t *testing.T) {
	made := dbSpec()
	made.Config = []byte(`{}`)
	made, err := made.MadeFor("a")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name      string
		there     Spec
		state     State
		err       error
		discarded string
	}{
		{"the old one, which is replaced", dbSpec(), Exited, nil, ""},
		{"the old one, which is not", dbSpec(), Exited, errors.New("it ended"), "id2"},
		{"made and not started, with other ports", func() Spec {
			s := made
			s.HostConfig = []byte(`{"PortBindings":{"80/tcp":[{"HostPort":"8080"}]}}`)
			return s
		}(), Created, nil, "id1"},
		{"made, and it does not stay", made, Created, errors.New("it ended"), "id1"},
		{"made, and it has ended", made, Exited, errors.New("it ended"), "id1 id2"},
	} {
		e := &madeEngine{containers: map[string]*Captured{}}
		id := e.add("db", tc.there, tc.state).ID
		var known Known
		if tc.there.madeFor() == "" {
			known.Replaces = []string{id}
		}
		if _, err := Recreate(t.Context(), e, made, known, func(context.Context, string) error { return tc.err }); !errors.Is(err, tc.err) || strings.Join(e.discarded, " ") != tc.discarded {
			t.Errorf("%s: %v: removed as ours: %q, want %q", tc.name, err, e.discarded, tc.discarded)
		}
	}

	// One that is nobody's any more gives its name back, unless it runs.
	e := &madeEngine{containers: map[string]*Captured{}}
	e.add("db.flocker-old", dbSpec(), Exited)
	e.add("db", made, Running)
	if err := Discard(t.Context(), e, "db", "id2"); err == nil || e.String() != "db.flocker-old=id1/exited db=id2/running" {
		t.Errorf("it runs: %v: %s", err, e)
	}
	e.containers["id2"].State = Exited
	for range 2 {
		if err := Discard(t.Context(), e, "db", "id2"); err != nil || e.String() != "db=id1/exited" {
			t.Errorf("%v: %s", err, e)
		}
	}

	for _, tc := range []struct {
		mount MountPoint
		want  bool
	}{
		{MountPoint{Type: "volume", Driver: "flocker", Name: "db"}, true},
		{MountPoint{Type: "volume", Driver: "local"}, true},
		{MountPoint{Type: "volume", Driver: "flocker", Name: strings.Repeat("0a", 32)}, false},
		{MountPoint{Type: "volume", Driver: "flocker"}, false},
	} {
		if got := (Spec{Mounts: []MountPoint{tc.mount}}).spares("flocker"); got != tc.want {
			t.Errorf("%+v: %t", tc.mount, got)
		}
	}
}

// What was left by a call that died at its very end is in nobody's way later.
func TestRecreateLeftOld(t *testing.T) {
	e := &madeEngine{containers: map[string]*Captured{}}
	e.add("db.flocker-old", dbSpec(), Exited)
	replaces := []string{e.add("db", dbSpec(), Exited).ID}
	if id, err := Recreate(t.Context(), e, dbSpec(), Known{Replaces: replaces}, stays); err != nil || e.String() != "db="+id+"/running" {
		t.Errorf("%v: %s", err, e)
	}
}
