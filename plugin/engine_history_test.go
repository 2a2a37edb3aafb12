package plugin

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/flocker-io/flocker/internal/container/containerfake"
	"github.com/flocker-io/flocker/internal/volume"
)

// TestEngineHistories plays random histories of an engine and of flockd, which mounts,
// unmounts and restarts by Mounts alone. A running container must always find its
// volumes mounted, and what nobody uses must be unmounted in the end.
func TestEngineHistories(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		inBubble(t, func() { playHistory(rt) })
	})
}

func playHistory(t *rapid.T) {
	w := newHistory()
	names := []string{"a", "b", "c"}
	volumes := map[string][]string{"a": {"v0"}, "b": {"v0", "v1"}, "c": {"v2"}}
	for _, name := range names {
		restart := rapid.SampledFrom([]string{"", "always"}).Draw(t, "restart")
		if err := w.engine.Create(name, containerfake.RunOptions{Restart: restart, CopyUp: true}, volumes[name]...); err != nil {
			t.Fatal(err)
		}
	}
	pick := func(t *rapid.T) string { return rapid.SampledFrom(names).Draw(t, "container") }
	t.Repeat(map[string]func(*rapid.T){
		"start": func(t *rapid.T) { w.engine.Start(pick(t)) },
		"stop":  func(t *rapid.T) { w.engine.Stop(pick(t)) },
		"die":   func(t *rapid.T) { w.engine.Die(pick(t), 1) },
		"copy": func(t *rapid.T) {
			name := pick(t)
			if w.copies[name] == nil {
				if done, err := w.engine.Copy(name); err == nil {
					w.copies[name] = done
				}
			}
		},
		"copied": func(t *rapid.T) {
			if name := pick(t); w.copies[name] != nil {
				done := w.copies[name]
				delete(w.copies, name)
				done()
			}
		},
		"refuse":        func(t *rapid.T) { w.refused[rapid.SampledFrom([]string{"v0", "v1"}).Draw(t, "volume")] = true },
		"refuse no one": func(t *rapid.T) { clear(w.refused) },
		"engine crashes": func(t *rapid.T) {
			w.engine.Crash(rapid.Bool().Draw(t, "live restore"))
			w.lost = time.Now()
			clear(w.copies)
		},
		"engine stops": func(t *rapid.T) {
			w.engine.Shutdown()
			w.lost = time.Now()
			clear(w.copies)
		},
		"engine boots":    func(t *rapid.T) { w.engine.Boot() },
		"flockd goes":     func(t *rapid.T) { w.engine.SetDriver(nil) },
		"flockd returns":  func(t *rapid.T) { w.start() },
		"time passes":     func(t *rapid.T) { time.Sleep(time.Duration(rapid.IntRange(1, 100).Draw(t, "s")) * time.Second) },
		"flockd is quick": func(t *rapid.T) { w.start(); w.reconcile() },
		"": func(t *rapid.T) {
			w.reconcile()
			for _, name := range names {
				if state, _, _ := w.engine.Container(name); !state.Live() && w.copies[name] == nil {
					continue
				}
				for _, vol := range volumes[name] {
					if !w.mounted[vol] {
						t.Fatalf("%s is used by %s and not mounted", vol, name)
					}
				}
			}
		},
	})

	// Peace: the engine runs, all is stopped, and time passes.
	for name, done := range w.copies {
		delete(w.copies, name)
		done()
	}
	w.engine.Boot()
	w.start()
	for _, name := range names {
		if err := w.engine.Stop(name); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(MountGrace)
	w.reconcile()
	if len(w.mounted) != 0 {
		t.Fatalf("nobody uses %v, and it is still mounted: %v", slices.Sorted(maps.Keys(w.mounted)), w.last.InUse)
	}
}

// history is a node: an engine, and a flockd that does nothing but mount and unmount.
type history struct {
	engine  *containerfake.Engine
	mounts  *Mounts // of this run of flockd
	mounted map[string]bool
	refused map[string]bool
	copies  map[string]func()
	lost    time.Time
	last    Reconciled
}

func newHistory() *history {
	w := &history{
		engine: containerfake.New("n1"), mounted: map[string]bool{}, refused: map[string]bool{}, copies: map[string]func(){},
	}
	w.start()
	return w
}

// start is a flockd that has just started.
func (w *history) start() {
	w.mounts = &Mounts{}
	for vol := range w.mounted {
		w.mounts.Found(vol, time.Now())
	}
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	w.engine.SetDriver(NewDriver(context.Background(), w, quiet, nil))
}

func (w *history) reconcile() {
	view := View{At: time.Now(), EngineSince: w.lost, Mounted: slices.Collect(maps.Keys(w.mounted)), Held: map[string][]volume.Holder{}}
	users, err := w.engine.Users(context.Background())
	view.Known = err == nil
	for _, u := range users {
		for _, m := range u.Volumes {
			view.Containers = append(view.Containers, ContainerMount{
				Volume: m.Volume, Container: u.Container, Name: u.Name, Running: u.State.Live(),
			})
			if w.copies[u.Name] != nil {
				view.Held[m.Volume] = append(view.Held[m.Volume], volume.Holder{Name: "docker cp"})
			}
		}
	}
	w.last = w.mounts.Reconcile(view, time.Now())
	for _, vol := range w.last.Free {
		if w.mounts.Idle(vol) {
			delete(w.mounted, vol)
		}
	}
}

func (w *history) Create(context.Context, string, volume.Spec) error      { return nil }
func (w *history) Clone(context.Context, string, map[string]string) error { return nil }
func (w *history) Remove(context.Context, string) error                   { return nil }
func (w *history) Get(_ context.Context, name string) (Info, bool)        { return Info{Name: name}, true }
func (w *history) List() []Info                                           { return nil }

func (w *history) Mount(_ context.Context, name, id string) (string, error) {
	w.mounts.Mounting(name, id, time.Now())
	if w.refused[name] {
		w.mounts.MountFailed(name, id, time.Now())
		return "", volume.Errorf(volume.CodeRefused, "volume %s is elsewhere", name)
	}
	// Mounting takes its time, and so does the engine between this answer and the start
	// of the container, which may have another volume that takes as long.
	w.mounted[name] = true
	time.Sleep(50 * time.Second)
	w.reconcile()
	w.mounts.Mounted(name, id, time.Now())
	time.Sleep(20 * time.Second)
	w.reconcile()
	return fmt.Sprintf("/flocker/%s/data", name), nil
}

func (w *history) Unmount(_ context.Context, name, id string) error {
	w.mounts.Unmounted(name, id, time.Now())
	return nil
}

// inBubble runs f with a clock that costs nothing. What f panics with, as rapid does to
// end a case, is passed on.
func inBubble(t *testing.T, f func()) {
	var passed any
	synctest.Test(t, func(*testing.T) {
		defer func() { passed = recover() }()
		f()
	})
	if passed != nil {
		panic(passed)
	}
}
