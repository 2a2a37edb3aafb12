package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	protocol "github.com/docker/go-plugins-helpers/volume"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/container/containerfake"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
)

func TestPlanSnapHooks(t *testing.T) {
	id := func(name string) (volume.ID, bool) { return volume.ID(name), name != "strange" }
	use := func(name string, state container.State, labels string, volumes ...string) container.Use {
		u := container.Use{Container: "id-" + name, Name: name, State: state, Labels: map[string]string{}}
		for _, l := range strings.Fields(labels) {
			u.Labels["flocker."+l+"-snapshot"] = "x"
		}
		for _, v := range volumes {
			u.Volumes = append(u.Volumes, container.Mount{Volume: v})
		}
		return u
	}
	users := []container.Use{
		use("web", container.Running, "", "a"),
		use("two", container.Running, "pre post", "a", "b"),
		use("one", container.Running, "pre", "b"),
		use("after", container.Running, "post", "a"),
		use("other", container.Running, "pre post", "c"),
		use("ended", container.Exited, "pre post", "a"),
		use("paused", container.Paused, "pre", "a"),
		use("none", container.Running, "pre"),
		use("half", container.Running, "post", "c", "strange"),
	}
	const odd = `container odd uses "strange", which this node does not know`
	for _, c := range []struct{ of, more, want, unknown string }{
		{"a", "", "after paused two", `container half uses "strange", which this node does not know`},
		{"c", "", "half other", ""}, // that is known to be one of them
		{"a b c", "", "after half one other paused two", ""},
		{"b c", "pre", "half one other two", odd},
		{"b c", "post", "half one other two", odd},
		{"b c", "none", "half one other two", ""},
		{"b c", "ended", "half one other two", ""},
		{"c d", "", "half other", ""},
		{"any", "pre", "after half odd one other paused two", ""},
	} {
		users := users
		switch c.more {
		case "pre", "post":
			users = append(slices.Clip(users), use("odd", container.Running, c.more, "strange"))
		case "none":
			users = append(slices.Clip(users), use("odd", container.Running, "", "strange"))
		case "ended":
			users = append(slices.Clip(users), use("odd", container.Exited, "pre", "strange"))
		}
		var of []volume.ID
		for _, v := range strings.Fields(c.of) {
			of = append(of, volume.ID(v))
		}
		if c.of == "any" {
			of = nil
		}
		var got []string
		with, unknown := planSnapHooks(users, id, of)
		for _, h := range with {
			got = append(got, h.name)
		}
		if strings.Join(got, " ") != c.want || strings.Join(unknown, "; ") != c.unknown {
			t.Errorf("of %q, with one more (%q): %q, and %q are unknown; want %q and %q", c.of, c.more, got, unknown, c.want, c.unknown)
		}
	}
}

func TestSnapHookFailed(t *testing.T) {
	hook := container.SnapshotHook{Label: container.LabelPreSnapshot, Name: "freeze --password=secret"}
	for _, c := range []struct {
		err  error
		took time.Duration
		want string // what is for who asked alone in brackets
	}{
		{&container.ExitError{Code: 3, Said: "one\ntwo\n"}, time.Second, "container db: its flocker.pre-snapshot ended with code 3[: two]"},
		{&container.ExitError{Code: 1}, time.Second, "container db: its flocker.pre-snapshot ended with code 1"},
		{&container.ExitError{Code: 137, Said: "waiting"}, 30 * time.Second, "container db: its flocker.pre-snapshot did not end within 30s[: waiting]"},
		{fmt.Errorf("run it: %w", context.DeadlineExceeded), 33 * time.Second, "container db: its flocker.pre-snapshot did not end within 30s"},
		{&container.ExitError{Code: 1, Said: "a\x1b[2Jb\rc"}, 0, "container db: its flocker.pre-snapshot ended with code 1[: a [2Jb c]"},
		{errors.New("it is paused"), 0, "container db: its flocker.pre-snapshot cannot be run: it is paused"},
	} {
		bad := snapHookFailed("db", hook, "", c.err, c.took)
		got := bad.text
		if rest := strings.TrimPrefix(bad.full(), bad.text); rest != "" {
			got += "[" + rest + "]"
		}
		if got != c.want {
			t.Errorf("%v: %q, want %q", c.err, got, c.want)
		}
	}
}

func TestApart(t *testing.T) {
	err := apart(map[string][]string{"n1": {"a"}, "n2": {"b", "c"}, "n3": {"d"}})
	for _, want := range []string{"a on n1; b, c on n2; d on n3", "flockctl migrate a n2; flockctl migrate d n2"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q in it", err, want)
		}
	}
}

// hooksWorld is snapHooks over an engine whose containers say what they have done.
type hooksWorld struct {
	*testing.T
	*snapHooks
	engine *containerfake.Engine
	disk   notes
	stop   func()

	mu  sync.Mutex
	ran []string
	how map[string]error // by container:command

	strange atomic.Bool // this node does not know the volume b

	lasts  map[string]time.Duration // likewise; it has effect at its end
	frozen map[string]bool
}

// inHooks runs f in a bubble with containers db and cache, which use the volumes a and b.
func inHooks(t *testing.T, f func(w *hooksWorld)) {
	synctest.Test(t, func(t *testing.T) {
		w := &hooksWorld{T: t, engine: containerfake.New("n1"), how: map[string]error{}, lasts: map[string]time.Duration{}, frozen: map[string]bool{}}
		var running sync.WaitGroup
		w.engine.OnExec(func(ctx context.Context, name string, command []string) (string, error) {
			i := slices.IndexFunc(command, func(s string) bool { return s == "freeze" || s == "thaw" })
			key := name + ":" + command[i]
			w.mu.Lock()
			w.ran = append(w.ran, key)
			err, lasts := w.how[key], w.lasts[key]
			w.mu.Unlock()
			if errors.Is(err, errHangs) {
				<-ctx.Done()
				return "", context.Cause(ctx)
			}
			// As in a real engine it goes on when nobody waits for it any more.
			over := make(chan struct{})
			running.Go(func() {
				time.Sleep(lasts)
				w.mu.Lock()
				w.frozen[name] = command[i] == "freeze"
				w.mu.Unlock()
				close(over)
			})
			if errors.Is(err, errLost) {
				time.Sleep(time.Second)
				return "", err
			}
			select {
			case <-over:
				return "", err
			case <-ctx.Done():
				return "", context.Cause(ctx)
			}
		})
		w.engine.SetDriver(anyVolume{})
		for name, v := range map[string]string{"db": "a", "cache": "b"} {
			labels := map[string]string{container.LabelPreSnapshot: "freeze", container.LabelPostSnapshot: "thaw"}
			if err := errors.Join(w.engine.CreateVolume(v, nil), w.engine.Run(name, containerfake.RunOptions{Labels: labels}, v)); err != nil {
				t.Fatal(err)
			}
		}
		w.start()
		w.settled("cache:thaw db:thaw")
		time.Sleep(snapHookPatience)
		w.settled("cache:thaw db:thaw") // what was begun before it is over now
		time.Sleep(time.Hour)
		w.settled("")
		f(w)
		w.stop()
		running.Wait()
	})
}

var (
	errHangs = errors.New("it hangs")
	errLost  = errors.New("the connection is lost") // while the command goes on
)

// notes is a noteDisk of one file.
type notes struct {
	mu   sync.Mutex
	data []byte // nil: there is none
	full error
}

func (n *notes) Read(string) ([]byte, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.data == nil {
		return nil, fs.ErrNotExist
	}
	return n.data, nil
}

func (n *notes) Write(_ string, data []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.full == nil {
		n.data = data
	}
	return n.full
}

func (n *notes) becomes(data []byte, full error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.data, n.full = data, full
}

// anyVolume is a driver that has every volume.
type anyVolume struct{}

func (anyVolume) Create(*protocol.CreateRequest) error  { return nil }
func (anyVolume) List() (*protocol.ListResponse, error) { return &protocol.ListResponse{}, nil }
func (anyVolume) Get(r *protocol.GetRequest) (*protocol.GetResponse, error) {
	return &protocol.GetResponse{Volume: &protocol.Volume{Name: r.Name}}, nil
}
func (anyVolume) Remove(*protocol.RemoveRequest) error { return nil }
func (anyVolume) Path(r *protocol.PathRequest) (*protocol.PathResponse, error) {
	return &protocol.PathResponse{Mountpoint: "/" + r.Name}, nil
}
func (anyVolume) Mount(r *protocol.MountRequest) (*protocol.MountResponse, error) {
	return &protocol.MountResponse{Mountpoint: "/" + r.Name}, nil
}
func (anyVolume) Unmount(*protocol.UnmountRequest) error { return nil }
func (anyVolume) Capabilities() *protocol.CapabilitiesResponse {
	return &protocol.CapabilitiesResponse{}
}

// start runs a new life of flockd.
func (w *hooksWorld) start() {
	ctx, cancel := context.WithCancel(context.Background())
	h := newSnapHooks(w.engine, &w.disk, func(name string) (volume.ID, bool) { return volume.ID(name), name != "b" || !w.strange.Load() }, slog.New(slog.DiscardHandler))
	w.snapHooks = h
	var over sync.WaitGroup
	over.Go(func() { h.run(ctx) })
	w.stop = func() { cancel(); over.Wait() }
}

// settled checks what was done since it was last asked, in the order of names where that
// is at the same time.
func (w *hooksWorld) settled(want string) {
	w.Helper()
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if got := strings.Join(slices.Sorted(slices.Values(w.ran)), " "); got != want {
		w.Errorf("it ran %q, want %q", got, want)
	}
	w.ran = nil
}

func (w *hooksWorld) takes(key string, long time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lasts[key] = long
}

func (w *hooksWorld) thawed(name string) {
	w.Helper()
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.frozen[name] {
		w.Errorf("%s stands still", name)
	}
}

func (w *hooksWorld) becomes(key string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.how[key] = err
}

// during is what ran before the snapshot itself.
func (w *hooksWorld) during(of []volume.ID, take error) (ran string, ready []replicate.Prepared, after []string, err error) {
	_, after, err = w.around(w.Context(), of, func(_ context.Context, with []replicate.Prepared) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		ready = with
		ran = strings.Join(slices.Sorted(slices.Values(w.ran)), " ")
		return take
	})
	return ran, ready, after, err
}

// All get ready before the one moment, and go on after it, also when there was none.
func TestSnapHooksAround(t *testing.T) {
	inHooks(t, func(w *hooksWorld) {
		ran, ready, after, err := w.during([]volume.ID{"a", "b"}, nil)
		if err != nil || len(after) > 0 || !reflect.DeepEqual(ready, []replicate.Prepared{{Container: "cache", Volumes: []volume.ID{"b"}}, {Container: "db", Volumes: []volume.ID{"a"}}}) || ran != "cache:freeze db:freeze" {
			w.Errorf("%v; %q were ready after %q, and then %q", err, ready, ran, after)
		}
		w.settled("cache:freeze cache:thaw db:freeze db:thaw")

		full := errors.New("the pool is full")
		if _, _, _, err := w.during([]volume.ID{"a"}, full); !errors.Is(err, full) {
			w.Errorf("a snapshot that was not taken: %v", err)
		}
		w.settled("db:freeze db:thaw")

		w.becomes("db:freeze", &container.ExitError{Code: 2, Said: "no"})
		ran, _, _, err = w.during([]volume.ID{"a", "b"}, nil)
		if ran != "" || volume.CodeOf(err) != volume.CodeRefused || !strings.Contains(err.Error(), "container db: its flocker.pre-snapshot ended with code 2: no") ||
			!strings.Contains(err.Error(), "--no-hooks") {
			w.Errorf("one is not ready: %v, and a snapshot was taken after %q", err, ran)
		}
		w.settled("cache:freeze cache:thaw db:freeze db:thaw")
	})
}

// Who asks and goes away leaves nobody frozen, and nobody waits for ever.
func TestSnapHooksBounded(t *testing.T) {
	inHooks(t, func(w *hooksWorld) {
		w.becomes("db:freeze", errHangs)
		began := time.Now()
		_, _, _, err := w.during([]volume.ID{"a"}, nil)
		if err == nil || !strings.Contains(err.Error(), "did not end within 30s") || time.Since(began) > time.Minute {
			w.Errorf("after %s: %v", time.Since(began), err)
		}
		w.settled("db:freeze db:thaw")

		ctx, cancel := context.WithTimeout(w.Context(), time.Second)
		defer cancel()
		if _, _, err := w.around(ctx, []volume.ID{"a"}, func(context.Context, []replicate.Prepared) error { w.Error("it is taken"); return nil }); !errors.Is(err, context.DeadlineExceeded) {
			w.Errorf("who asked is gone: %v", err)
		}
		w.settled("db:freeze")
		time.Sleep(snapHookPatience)
		w.settled("db:thaw")

		w.becomes("db:freeze", nil)
		began = time.Now()
		_, _, err = w.around(w.Context(), []volume.ID{"a"}, func(ctx context.Context, _ []replicate.Prepared) error {
			<-ctx.Done()
			return context.Cause(ctx)
		})
		if volume.CodeOf(err) != volume.CodeTimeout || !strings.Contains(err.Error(), "stood still") || time.Since(began) > time.Minute {
			w.Errorf("the pool hangs: after %s: %v", time.Since(began), err)
		}
		w.settled("db:freeze db:thaw")

		// A command of zfs that cannot be ended is not waited for: they go on.
		hung := make(chan struct{})
		began = time.Now()
		_, _, err = w.around(w.Context(), []volume.ID{"a"}, func(context.Context, []replicate.Prepared) error { <-hung; return nil })
		if volume.CodeOf(err) != volume.CodeTimeout || time.Since(began) != takePatience+lateWord {
			w.Errorf("zfs hangs: after %s: %v", time.Since(began), err)
		}
		w.settled("db:freeze db:thaw")
		w.thawed("db")
		close(hung)

		// What has just been made elsewhere this node may not know yet.
		w.strange.Store(true)
		ran, _, _, err := w.during([]volume.ID{"a"}, nil)
		if volume.CodeOf(err) != volume.CodeRefused || !strings.Contains(err.Error(), `container cache uses "b", which this node does not know`) || ran != "" {
			w.Errorf("a container with a volume that is not known: %v after %q", err, ran)
		}
		w.settled("")
		w.strange.Store(false)

		w.engine.Crash(true)
		_, _, _, err = w.during([]volume.ID{"a"}, nil)
		if err == nil || !strings.Contains(err.Error(), "cannot be asked") {
			w.Errorf("without an engine: %v", err)
		}
		w.engine.Boot()
	})
}

// One snapshot's end is not another one's middle.
func TestSnapHooksOneAtATime(t *testing.T) {
	inHooks(t, func(w *hooksWorld) {
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() {
				if _, _, err := w.around(w.Context(), []volume.ID{"a"}, func(context.Context, []replicate.Prepared) error { time.Sleep(time.Second); return nil }); err != nil {
					w.Error(err)
				}
			})
		}
		all.Wait()
		synctest.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		if got := strings.Join(w.ran, " "); got != strings.TrimSpace(strings.Repeat("db:freeze db:thaw ", 5)) {
			w.Errorf("it ran %q", got)
		}
		w.ran = nil
	})
}

// A container that was not let go yet after one snapshot does not get ready for another.
func TestSnapHooksLetGoFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newSnapHooks(containerfake.New("n1"), nil, nil, slog.New(slog.DiscardHandler))
		h.asked = true
		db := hooked{id: "1", name: "db", post: container.SnapshotHook{Command: []string{"thaw"}}}
		d := h.owe([]hooked{db})[0] // and nobody pays it
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := h.claim(ctx, []hooked{db}); volume.CodeOf(err) != volume.CodeTimeout {
			t.Errorf("it is not let go yet: %v", err)
		}
		close(d.tried)
		if err := h.claim(t.Context(), []hooked{db}); err != nil {
			t.Errorf("that was tried: %v", err)
		}
	})
}

// What is owed is paid until it is, but not to who does not run any more; and by the next
// flockd when this one was stopped before.
func TestSnapHooksOwed(t *testing.T) {
	inHooks(t, func(w *hooksWorld) {
		w.becomes("db:thaw", &container.ExitError{Code: 1, Said: "busy"})
		_, _, after, err := w.during([]volume.ID{"a"}, nil)
		if err != nil || len(after) != 1 || !strings.Contains(after[0], "container db: its flocker.post-snapshot ended with code 1: busy") {
			w.Errorf("%v, %q", err, after)
		}
		if p := w.problems(); len(p) != 1 || !strings.Contains(p[0], "may still be") {
			w.Errorf("problems: %q", p)
		} else if strings.Contains(p[0], "busy") {
			w.Errorf("what it said, which may be a secret, is for all to read: %q", p)
		}
		w.settled("db:freeze db:thaw")
		time.Sleep(debtPause + time.Second)
		w.settled("db:thaw")
		w.becomes("db:thaw", nil)
		time.Sleep(debtMost)
		w.settled("db:thaw")
		if p := w.problems(); len(p) > 0 {
			w.Errorf("problems: %q", p)
		}

		// Nothing is owed to one that has ended.
		w.becomes("db:thaw", &container.ExitError{Code: 1})
		w.during([]volume.ID{"a"}, nil)
		if err := w.engine.Stop("db"); err != nil {
			w.Error(err)
		}
		w.settled("db:freeze db:thaw")
		time.Sleep(2 * debtMost)
		w.settled("")
		if p := w.problems(); len(p) > 0 {
			w.Errorf("problems: %q", p)
		}
		if err := w.engine.Start("db"); err != nil {
			w.Error(err)
		}

		// flockd stops while it gets ready: it is let go at once.
		w.becomes("db:thaw", nil)
		w.becomes("db:freeze", errHangs)
		ctx, cancel := context.WithCancel(w.Context())
		var asked sync.WaitGroup
		asked.Go(func() {
			w.around(ctx, []volume.ID{"a"}, func(context.Context, []replicate.Prepared) error { return nil })
		})
		synctest.Wait()
		asked.Go(w.stop)
		synctest.Wait()
		cancel()
		asked.Wait()
		w.settled("db:freeze db:thaw")

		// And where that does not end, by the next one.
		w.start()
		w.settled("db:thaw")
		time.Sleep(snapHookPatience)
		w.settled("db:thaw")
		w.becomes("db:thaw", errHangs)
		ctx, cancel = context.WithCancel(w.Context())
		asked.Go(func() {
			w.around(ctx, []volume.ID{"a"}, func(context.Context, []replicate.Prepared) error { return nil })
		})
		synctest.Wait()
		began := time.Now()
		cancel()
		w.stop()
		if took := time.Since(began); took > lastTry+time.Second {
			w.Errorf("flockd took %s to stop", took)
		}
		asked.Wait()
		w.settled("db:freeze db:thaw")
		w.becomes("db:thaw", &container.ExitError{Code: 1})
		w.start()
		w.settled("db:thaw")
		if p := w.problems(); len(p) != 1 || !strings.Contains(p[0], "container db") {
			w.Errorf("problems: %q", p)
		}
		w.becomes("db:thaw", nil)
	})
}

// The next flockd does what the one before has written down, and nothing else.
func TestSnapHooksNoted(t *testing.T) {
	// killed leaves db frozen, and a flockd that has begun after that was killed.
	killed := func(w *hooksWorld) {
		w.becomes("db:thaw", errHangs)
		ctx, gone := context.WithCancel(w.Context())
		var asked sync.WaitGroup
		asked.Go(func() {
			w.around(ctx, []volume.ID{"a"}, func(context.Context, []replicate.Prepared) error { gone(); return nil })
		})
		synctest.Wait()
		w.stop()
		asked.Wait()
		w.settled("db:freeze db:thaw")
		w.becomes("db:thaw", nil)
	}
	t.Run("nothing", func(t *testing.T) {
		inHooks(t, func(w *hooksWorld) {
			w.during([]volume.ID{"a"}, nil)
			w.settled("db:freeze db:thaw")
			w.stop()
			w.start()
			time.Sleep(time.Hour)
			w.settled("")
		})
	})
	t.Run("a snapshot waits until all of that is over", func(t *testing.T) {
		inHooks(t, func(w *hooksWorld) {
			killed(w)
			w.start()
			began := time.Now()
			ran, _, _, err := w.during([]volume.ID{"a"}, nil)
			if took := time.Since(began); err != nil || took < snapHookPatience || took > snapHookPatience+time.Second {
				w.Errorf("after %s: %v", took, err)
			}
			if !strings.HasPrefix(ran, "db:freeze db:thaw") {
				w.Errorf("it ran %q", ran)
			}
			w.thawed("db")
			w.stop()
			synctest.Wait()
			w.mu.Lock()
			w.ran = nil
			w.mu.Unlock()
			w.start()
			w.settled("") // all is done
		})
	})
	t.Run("one that runs later", func(t *testing.T) {
		inHooks(t, func(w *hooksWorld) {
			killed(w)
			if err := w.engine.Stop("db"); err != nil {
				w.Fatal(err)
			}
			w.start()
			time.Sleep(recallPatience / 2)
			w.settled("")
			w.stop()
			w.start()
			w.settled("") // it is noted still
			if err := w.engine.Start("db"); err != nil {
				w.Fatal(err)
			}
			time.Sleep(debtPause)
			w.settled("db:thaw")
			w.thawed("db")
			time.Sleep(time.Hour)
			w.settled("db:thaw")
		})
	})
	t.Run("one that never does", func(t *testing.T) {
		inHooks(t, func(w *hooksWorld) {
			killed(w)
			if err := w.engine.Stop("db"); err != nil {
				w.Fatal(err)
			}
			w.start()
			time.Sleep(recallPatience + time.Minute)
			if err := w.engine.Start("db"); err != nil {
				w.Fatal(err)
			}
			time.Sleep(time.Hour)
			w.settled("")
			if b, err := w.disk.Read(""); string(b) != "[]" {
				w.Errorf("noted is %q, %v", b, err)
			}
		})
	})
	// Where nothing is known most have nothing to do, and some commands fail then.
	for name, data := range map[string][]byte{"no file": nil, "a torn file": []byte("[")} {
		t.Run(name, func(t *testing.T) {
			inHooks(t, func(w *hooksWorld) {
				w.stop()
				w.disk.becomes(data, nil)
				w.becomes("db:thaw", &container.ExitError{Code: 1, Said: "it is not locked"})
				w.start()
				w.settled("cache:thaw db:thaw")
				if p := w.problems(); len(p) > 0 {
					w.Errorf("problems: %q", p)
				}
				time.Sleep(2 * snapHookPatience)
				w.mu.Lock()
				if n := len(w.ran); n < 2 {
					w.Errorf("then it ran %q", w.ran)
				}
				w.ran = nil
				w.mu.Unlock()
				time.Sleep(time.Hour)
				w.settled("") // no more
				if p := w.problems(); len(p) > 0 {
					w.Errorf("problems: %q", p)
				}
			})
		})
	}
	t.Run("no room", func(t *testing.T) {
		inHooks(t, func(w *hooksWorld) {
			w.disk.becomes([]byte("[]"), errors.New("no space left on device"))
			if ran, _, _, err := w.during([]volume.ID{"a"}, nil); volume.CodeOf(err) != volume.CodeRefused || !strings.Contains(err.Error(), "no space left") || ran != "" {
				w.Errorf("%v, after %q", err, ran)
			}
			w.settled("")
			w.disk.becomes([]byte("[]"), nil)
			if _, _, _, err := w.during([]volume.ID{"a"}, nil); err != nil {
				w.Error(err)
			}
			w.settled("db:freeze db:thaw")
		})
	})
}

// What lets it go on may end long after its connection is lost: no other snapshot is in its way.
func TestSnapHooksLostAfter(t *testing.T) {
	inHooks(t, func(w *hooksWorld) {
		w.takes("db:thaw", 20*time.Second)
		w.becomes("db:thaw", errLost)
		began := time.Now()
		if _, _, after, err := w.during([]volume.ID{"a"}, nil); err != nil || len(after) != 1 || !strings.Contains(after[0], "the connection is lost") {
			w.Errorf("%v, %q", err, after)
		}
		w.takes("db:thaw", 0)
		w.becomes("db:thaw", nil)
		if _, _, _, err := w.during([]volume.ID{"a"}, nil); err != nil {
			w.Error(err)
		}
		if took := time.Since(began); took < snapHookPatience {
			w.Errorf("the next one is taken after %s, while the first may be let go on", took)
		}
	})
}

// One that cannot be run now, as in a container that is paused, has no end to wait for.
func TestSnapHooksNotBegun(t *testing.T) {
	inHooks(t, func(w *hooksWorld) {
		w.becomes("db:freeze", container.NotBegun{Why: errors.New("it is paused")})
		for range 2 {
			began := time.Now()
			if _, _, _, err := w.during([]volume.ID{"a"}, nil); err == nil || !strings.Contains(err.Error(), "cannot be run") || time.Since(began) > time.Second {
				w.Errorf("after %s: %v", time.Since(began), err)
			}
		}
		w.settled("db:freeze db:freeze db:thaw db:thaw")
		time.Sleep(time.Hour)
		w.settled("")
	})
}

// What freezes a container may end long after who asked for it has gone, and is thawed then.
func TestSnapHooksOutlive(t *testing.T) {
	taken := func(t *testing.T) func(context.Context, []replicate.Prepared) error {
		return func(context.Context, []replicate.Prepared) error { t.Error("it is taken"); return nil }
	}
	for _, c := range []struct {
		name string
		how  error
		then func(w *hooksWorld, gone func())
		ran  string // in all
	}{
		{"who asked hangs up", nil, func(_ *hooksWorld, gone func()) { gone() }, "db:freeze db:thaw"},
		{"the engine hangs up", errLost, func(*hooksWorld, func()) {}, "db:freeze db:thaw db:thaw"},
		{"flockd is stopped", nil, func(w *hooksWorld, gone func()) {
			gone()
			w.stop()
			w.start()
		}, "db:freeze db:thaw db:thaw db:thaw"},
	} {
		t.Run(c.name, func(t *testing.T) {
			inHooks(t, func(w *hooksWorld) {
				w.takes("db:freeze", 5*time.Second)
				w.becomes("db:freeze", c.how)
				ctx, gone := context.WithCancel(w.Context())
				defer gone()
				var asked sync.WaitGroup
				asked.Go(func() {
					if _, _, err := w.around(ctx, []volume.ID{"a"}, taken(w.T)); err == nil {
						w.Error("it was not refused")
					}
				})
				time.Sleep(time.Second)
				synctest.Wait()
				began := time.Now()
				c.then(w, gone)
				asked.Wait()
				if took := time.Since(began); took > time.Second {
					w.Errorf("who asked waits for %s", took)
				}
				time.Sleep(snapHookPatience)
				w.thawed("db")
				w.settled(c.ran)
			})
		})
	}
}

// What was got ready is what runs when the snapshot is taken, and all of it.
func TestSnapHooksSameContainers(t *testing.T) {
	late := func(w *hooksWorld) error {
		labels := map[string]string{container.LabelPreSnapshot: "freeze", container.LabelPostSnapshot: "thaw"}
		return w.engine.Run("late", containerfake.RunOptions{Labels: labels}, "a")
	}
	for _, c := range []struct {
		name string
		then func(w *hooksWorld) error
		want string
	}{
		{"started again", func(w *hooksWorld) error { return errors.Join(w.engine.Stop("db"), w.engine.Start("db")) }, "container db ended or was started again"},
		{"ended", func(w *hooksWorld) error { return w.engine.Stop("db") }, "container db ended or was started again"},
		{"another one", late, "container late was started while"},
		{"one that has nothing to do", func(w *hooksWorld) error { return w.engine.Run("idle", containerfake.RunOptions{}, "a") }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			inHooks(t, func(w *hooksWorld) {
				w.takes("cache:freeze", 25*time.Second)
				var all sync.WaitGroup
				all.Go(func() {
					_, _, _, err := w.during([]volume.ID{"a", "b"}, nil)
					if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
						w.Errorf("%v, want %q", err, c.want)
					}
				})
				time.Sleep(5 * time.Second)
				if err := c.then(w); err != nil {
					w.Error(err)
				}
				all.Wait()
			})
		})
	}
	// While it waits for another snapshot's end.
	inHooks(t, func(w *hooksWorld) {
		var all sync.WaitGroup
		all.Go(func() {
			w.around(w.Context(), []volume.ID{"a"}, func(context.Context, []replicate.Prepared) error { time.Sleep(10 * time.Second); return nil })
		})
		time.Sleep(time.Second)
		all.Go(func() {
			if ran, _, _, err := w.during([]volume.ID{"a"}, nil); err != nil || !strings.Contains(ran, "late:freeze") {
				w.Errorf("%v; %q ran", err, ran)
			}
		})
		time.Sleep(time.Second)
		if err := late(w); err != nil {
			w.Error(err)
		}
		all.Wait()
	})
}

// One that is to be stopped is let go first, and does not get ready for another snapshot.
func TestSnapHooksStop(t *testing.T) {
	inHooks(t, func(w *hooksWorld) {
		users, err := w.engine.Users(w.Context())
		if err != nil {
			w.Fatal(err)
		}
		id := users[slices.IndexFunc(users, func(u container.Use) bool { return u.Name == "db" })].Container
		w.takes("db:freeze", 10*time.Second)
		var all sync.WaitGroup
		all.Go(func() { w.during([]volume.ID{"a"}, nil) })
		time.Sleep(time.Second)
		w.letGo(w.Context(), []string{id})
		w.thawed("db")
		w.settled("db:freeze db:thaw")
		if _, _, _, err := w.during([]volume.ID{"a"}, nil); volume.CodeOf(err) != volume.CodeUnavailable || !strings.Contains(err.Error(), "about to be stopped") {
			w.Errorf("meanwhile: %v", err)
		}
		w.settled("")
		if _, _, _, err := w.during([]volume.ID{"b"}, nil); err != nil {
			w.Errorf("another one: %v", err)
		}
		w.settled("cache:freeze cache:thaw")
		time.Sleep(stopBar)
		if _, _, _, err := w.during([]volume.ID{"a"}, nil); err != nil {
			w.Errorf("it stays after all: %v", err)
		}
		w.settled("db:freeze db:thaw")

		// It does not wait for ever.
		w.becomes("db:freeze", errHangs)
		w.becomes("db:thaw", errHangs)
		all.Go(func() { w.during([]volume.ID{"a"}, nil) })
		synctest.Wait()
		began := time.Now()
		w.letGo(w.Context(), []string{id})
		if took := time.Since(began); took != stopPatience {
			w.Errorf("it waits for %s", took)
		}
		all.Wait()
		w.becomes("db:thaw", nil)
		time.Sleep(debtMost)
		w.settled("db:freeze db:thaw db:thaw")
	})
}

// Who asked is told that nothing was done after: what froze may have left a file.
func TestSnapHooksEnded(t *testing.T) {
	inHooks(t, func(w *hooksWorld) {
		_, after, err := w.around(w.Context(), []volume.ID{"a"}, func(context.Context, []replicate.Prepared) error { return w.engine.Stop("db") })
		if err != nil || len(after) != 1 || !strings.Contains(after[0], "container db ended before its flocker.post-snapshot") {
			w.Errorf("%v, %q", err, after)
		}
		w.settled("db:freeze")
	})
}

func TestNotAsked(t *testing.T) {
	for _, c := range []struct {
		who   string
		taken api.SnapshotReply
		want  int
	}{
		{"", api.SnapshotReply{}, 0},
		{"n1", api.SnapshotReply{}, 1},
		{"n1", api.SnapshotReply{Prepared: []string{"db"}}, 0}, // it was heard of through an older leader
		{"n1", api.SnapshotReply{Warnings: []string{"db is not thawed"}}, 0},
	} {
		if got := notAsked(c.who, c.taken); len(got) != c.want || c.want > 0 && !strings.Contains(got[0], c.who) {
			t.Errorf("%q, %+v: %q", c.who, c.taken, got)
		}
	}
}
