package container_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	protocol "github.com/docker/go-plugins-helpers/volume"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/container/containerfake"
)

// The Watcher rings for changes, goes through restarts of the engine, and activates
// our driver each time.
func TestWatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := containerfake.New("n1")
		engine.SetDriver(&anyDriver{})
		w := container.NewWatcher(engine, slog.New(slog.NewTextHandler(t.Output(), nil)))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		rang := func(why string, want bool) {
			t.Helper()
			synctest.Wait()
			select {
			case <-w.C():
				if !want {
					t.Errorf("%s: rang", why)
				}
			default:
				if want {
					t.Errorf("%s: did not ring", why)
				}
			}
		}

		rang("first connection", true)
		rang("nothing happened", false)
		if h := w.Health(); !h.Up || !h.Lost.IsZero() || engine.Activations() != 1 {
			t.Errorf("health %+v after %d activations; want up, never lost, 1", h, engine.Activations())
		}

		// Many events, one ring.
		for _, name := range []string{"a", "b", "c"} {
			if err := engine.Run(name, containerfake.RunOptions{}, "db"); err != nil {
				t.Fatal(err)
			}
		}
		rang("containers started", true)
		rang("still the same", false)

		time.Sleep(time.Minute)
		crashed := time.Now()
		engine.Crash(false)
		rang("engine gone", true)
		time.Sleep(time.Hour)
		if h := w.Health(); h.Up || !h.Lost.Equal(crashed) || h.Err == nil {
			t.Errorf("health %+v; want down, lost at %s, with an error", h, crashed)
		}
		engine.Boot()
		time.Sleep(6 * time.Second) // the longest pause between two attempts
		rang("engine back", true)
		if h := w.Health(); !h.Up || !h.Lost.Equal(crashed) || engine.Activations() != 2 {
			t.Errorf("health %+v after %d activations; want up, lost at %s, 2", h, engine.Activations(), crashed)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// What the fake makes of a container's life, as the real engine was seen to do.
func TestFakeCallsTheDriver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := containerfake.New("n1")
		d := &anyDriver{}
		e.SetDriver(d)
		ok := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		want := func(calls ...string) {
			t.Helper()
			got := d.take()
			if len(got) != len(calls) {
				t.Fatalf("calls %v; want %v", got, calls)
			}
			for i := range got {
				if got[i] != calls[i] {
					t.Fatalf("calls %v; want %v", got, calls)
				}
			}
		}

		ok(e.CreateVolume("db", map[string]string{"size": "1G"}))
		want("Get db", "Create db", "Get db")
		ok(e.CreateVolume("db", map[string]string{"size": "2G"}))
		want("Get db")
		ok(e.Run("web", containerfake.RunOptions{Restart: "always", CopyUp: true}, "db"))
		want("Get db", "Get db", "Mount db 1", "Get db", "Unmount db 1", "Get db", "Mount db 2")
		copied, err := e.Copy("web")
		ok(err)
		want("Get db", "Mount db 2")
		copied()
		want("Get db", "Unmount db 2")

		// The engine dies: no unmount, and the same ID again.
		e.Crash(false)
		want()
		if _, err := e.Users(t.Context()); err == nil {
			t.Error("a dead engine lists containers")
		}
		e.Boot()
		want("Get db", "Get db", "Mount db 2")

		// A refused mount at the restart of a process is final.
		d.refuse = errors.New("not here")
		if err := e.Die("web", 1); err == nil {
			t.Error("restart with a refused mount succeeded")
		}
		want("Get db", "Unmount db 2", "Get db", "Mount db 3")
		if state, msg, _ := e.Container("web"); state != container.Exited || msg == "" {
			t.Errorf("container is %s (%q); want exited with the reason", state, msg)
		}
		time.Sleep(time.Hour)
		want()
		d.refuse = nil
		ok(e.Start("web"))
		want("Get db", "Mount db 4")

		// Stop with nobody at the socket: the unmount is lost, after a while.
		e.SetDriver(nil)
		began := time.Now()
		ok(e.Stop("web"))
		if took := time.Since(began); took != 15*time.Second {
			t.Errorf("stop took %s; want 15s", took)
		}
		e.SetDriver(d)
		want()

		// So the engine still has the ID, uses it again, and sends an unmount for a mount
		// that is refused.
		ok(e.Start("web"))
		want("Get db", "Mount db 4")
		ok(e.Stop("web"))
		want("Get db", "Unmount db 4")
		d.refuse = errors.New("not here")
		if err := e.Start("web"); err == nil {
			t.Error("start with a refused mount succeeded")
		}
		want("Get db", "Mount db 4", "Get db", "Unmount db 4")
		d.refuse = nil

		// A volume named without its driver while that cannot be reached: a local volume
		// takes its name.
		ok(e.Remove("web"))
		e.SetDriver(nil)
		ok(e.Run("careless", containerfake.RunOptions{NoDriver: true}, "db"))
		e.SetDriver(d)
		local, err := e.LocalVolumes(t.Context())
		ok(err)
		if got := container.Shadows(local, func(name string) bool { return name == "db" }); len(got) != 1 {
			t.Errorf("shadows = %v; want db", got)
		}
		if err := e.CreateVolume("db", nil); err == nil {
			t.Error("created a volume whose name a local one has")
		}
	})
}

// anyDriver has every volume that was created and writes down the calls, mount IDs as
// numbers.
type anyDriver struct {
	calls   []string
	volumes map[string]bool
	ids     map[string]string
	refuse  error // Mount
}

func (d *anyDriver) take() []string {
	c := d.calls
	d.calls = nil
	return c
}

func (d *anyDriver) note(call, name, id string) {
	if id != "" {
		if d.ids == nil {
			d.ids = map[string]string{}
		}
		if d.ids[id] == "" {
			d.ids[id] = string(rune('1' + len(d.ids)))
		}
		name += " " + d.ids[id]
	}
	d.calls = append(d.calls, call+" "+name)
}

func (d *anyDriver) Create(r *protocol.CreateRequest) error {
	d.note("Create", r.Name, "")
	if d.volumes == nil {
		d.volumes = map[string]bool{}
	}
	d.volumes[r.Name] = true
	return nil
}

func (d *anyDriver) Get(r *protocol.GetRequest) (*protocol.GetResponse, error) {
	d.note("Get", r.Name, "")
	if !d.volumes[r.Name] {
		return nil, errors.New("no such volume")
	}
	return &protocol.GetResponse{Volume: &protocol.Volume{Name: r.Name}}, nil
}

func (d *anyDriver) Mount(r *protocol.MountRequest) (*protocol.MountResponse, error) {
	d.note("Mount", r.Name, r.ID)
	return &protocol.MountResponse{Mountpoint: "/flocker/" + r.Name}, d.refuse
}

func (d *anyDriver) Unmount(r *protocol.UnmountRequest) error {
	d.note("Unmount", r.Name, r.ID)
	return nil
}

func (d *anyDriver) Remove(r *protocol.RemoveRequest) error {
	d.note("Remove", r.Name, "")
	return nil
}

func (d *anyDriver) List() (*protocol.ListResponse, error) { return &protocol.ListResponse{}, nil }
func (d *anyDriver) Path(*protocol.PathRequest) (*protocol.PathResponse, error) {
	return &protocol.PathResponse{}, nil
}
func (d *anyDriver) Capabilities() *protocol.CapabilitiesResponse {
	return &protocol.CapabilitiesResponse{}
}
