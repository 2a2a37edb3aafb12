package container_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	protocol "github.com/docker/go-plugins-helpers/volume"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/container/containerfake"
	"github.com/flocker-io/flocker/internal/mounts"
)

// world is an engine together with the means to make containers in it.
type world interface {
	run(name string, volumes ...string) error
	stop(name string) error
	remove(name string) error
}

// testEngine is what every Engine must pass: the fake always, Docker in the lab.
func testEngine(t *testing.T, e container.Engine, w world) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// find reads one container's line from Users, "" when it is not there.
	find := func(name string) string {
		t.Helper()
		users, err := e.Users(ctx)
		ok(err)
		for _, u := range users {
			if u.Name != name {
				continue
			}
			if len(u.Container) != 64 {
				t.Errorf("container ID %q of %s; want 64 hex digits", u.Container, name)
			}
			var vols []string
			for _, m := range u.Volumes {
				vols = append(vols, m.Volume)
			}
			slices.Sort(vols)
			return fmt.Sprintf("%s %v", u.State, vols)
		}
		return ""
	}

	v, err := e.Version(ctx)
	ok(err)
	if v.Engine == "" || v.API == "" {
		t.Errorf("version %+v; want both parts", v)
	}
	t.Logf("engine %s, API %s", v.Engine, v.API)
	ok(e.Activate(ctx))

	// Follow tells of every change after it is connected.
	connected, changed := make(chan struct{}), make(chan struct{}, 100)
	following, stop := context.WithCancel(ctx)
	followed := make(chan error)
	go func() {
		followed <- e.Follow(following, func() { close(connected) }, func() { changed <- struct{}{} })
	}()
	await := func(ch <-chan struct{}, what string) {
		t.Helper()
		select {
		case <-ch:
		case err := <-followed:
			t.Fatalf("Follow ended while waiting for %s: %v", what, err)
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		}
	}
	await(connected, "the connection")

	ok(w.run("flk-suite-a", "flk-suite-v1", "flk-suite-v2"))
	await(changed, "an event of the start")
	if got, want := find("flk-suite-a"), "running [flk-suite-v1 flk-suite-v2]"; got != want {
		t.Errorf("users has %q; want %q", got, want)
	}
	ok(w.stop("flk-suite-a"))
	for len(changed) > 0 {
		<-changed
	}
	if got, want := find("flk-suite-a"), "exited [flk-suite-v1 flk-suite-v2]"; got != want {
		t.Errorf("users has %q; want %q: stopped containers are listed too", got, want)
	}
	ok(w.remove("flk-suite-a"))
	if got := find("flk-suite-a"); got != "" {
		t.Errorf("users still has %q", got)
	}

	local, err := e.LocalVolumes(ctx)
	ok(err)
	if slices.Contains(local, "flk-suite-v1") {
		t.Errorf("local volumes %v have a volume of our driver", local)
	}

	// A network is made where it lacks, and removed by its ID.
	spec := container.Spec{Networks: []container.Network{{Name: "bridge"}, {Name: "flk-suite-net", Definition: json.RawMessage(`{"Name":"flk-suite-net","Driver":"bridge"}`)}}}
	has := func() bool {
		t.Helper()
		target, err := e.Target(ctx)
		ok(err)
		return slices.Contains(target.Networks, "flk-suite-net")
	}
	made, err := e.MakeNetworks(ctx, spec)
	ok(err)
	again, err := e.MakeNetworks(ctx, spec)
	ok(err)
	if len(made) != 1 || made["flk-suite-net"] == "" || len(again) > 0 || !has() {
		t.Errorf("made %v, and then %v; it has it: %t", made, again, has())
	}
	for range 2 {
		ok(e.RemoveNetwork(ctx, made["flk-suite-net"]))
	}
	if has() {
		t.Error("a network is removed, and still there")
	}

	stop()
	select {
	case <-followed:
	case <-ctx.Done():
		t.Fatal("Follow did not end with its context")
	}
}

func TestFakeEngine(t *testing.T) {
	e := containerfake.New("n1")
	e.SetDriver(&anyDriver{})
	testEngine(t, e, fakeWorld{e})
}

type fakeWorld struct{ e *containerfake.Engine }

func (w fakeWorld) run(name string, volumes ...string) error {
	return w.e.Run(name, containerfake.RunOptions{}, volumes...)
}
func (w fakeWorld) stop(name string) error   { return w.e.Stop(name) }
func (w fakeWorld) remove(name string) error { return w.e.Remove(name) }

// realDriver is the name of the stub driver in a real engine, which is not flocker's.
const realDriver = "flkenginetest"

// TestRealEngine needs a machine that is there to be played with: root, an engine, the
// image flocker-test/busybox:1. FLOCKER_DOCKER=1 says that this is one. Afterwards the
// engine has to be restarted, since it asks for a driver it has once seen for ever.
func TestRealEngine(t *testing.T) {
	if os.Getenv("FLOCKER_DOCKER") == "" {
		t.Skip("FLOCKER_DOCKER is not set: no engine to play with")
	}
	driver := &dirDriver{dir: t.TempDir()}
	serveDriver(t, driver)
	e := &container.Docker{Driver: realDriver}
	defer e.Close()
	w := dockerWorld{t}
	t.Cleanup(func() {
		w.docker("rm", "-f", "flk-suite-a")
		for _, v := range []string{"flk-suite-v1", "flk-suite-v2"} {
			w.docker("volume", "rm", v)
		}
	})
	testEngine(t, e, w)

	t.Run("health checks and exec are no news", func(t *testing.T) {
		if err := w.run("flk-suite-a", "flk-suite-v1"); err != nil {
			t.Fatal(err)
		}
		connected, changed := make(chan struct{}), make(chan struct{}, 100)
		ctx, cancel := context.WithCancel(t.Context())
		var followed sync.WaitGroup
		followed.Go(func() { e.Follow(ctx, func() { close(connected) }, func() { changed <- struct{}{} }) })
		<-connected
		if err := w.docker("exec", "flk-suite-a", "true"); err != nil {
			t.Error(err)
		}
		time.Sleep(2 * time.Second) // nothing to wait for: it must not come
		cancel()
		followed.Wait()
		if n := len(changed); n != 0 {
			t.Errorf("exec gave %d events; want none", n)
		}
	})

	t.Run("mount namespaces", func(t *testing.T) {
		source := filepath.Join(driver.dir, "tmpfs")
		must := func(out []byte, err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		if err := os.MkdirAll(source, 0o755); err != nil {
			t.Fatal(err)
		}
		must(exec.Command("mount", "-t", "tmpfs", "flk-suite-held", source).CombinedOutput())
		defer exec.Command("umount", source).Run()
		if err := w.docker("run", "-d", "--name", "flk-suite-held", "-v", source+":/data", image, "sleep", "1000"); err != nil {
			t.Fatal(err)
		}
		defer w.docker("rm", "-f", "flk-suite-held")
		began := time.Now()
		holders, err := mounts.HeldBy("/proc", "flk-suite-held")
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("took %s", time.Since(began))
		for _, h := range holders {
			t.Logf("held by %s, follows %v", h, h.Follows)
		}
		foreign := mounts.Foreign(holders, source)
		if len(foreign) != 1 || foreign[0].Mountpoint != "/data" || len(foreign[0].Container) != 64 {
			t.Errorf("foreign holders %v; want the container at /data and nobody else", foreign)
		}

		// The trap this is for: here it unmounts, and the container goes on writing.
		must(exec.Command("umount", source).CombinedOutput())
		holders, err = mounts.HeldBy("/proc", "flk-suite-held")
		if err != nil || len(holders) != 1 || holders[0].Mountpoint != "/data" {
			t.Errorf("after umount HeldBy = %v, %v; want the container still there, and the services no more", holders, err)
		}
	})

	// docker cp from a container that does not run: no process, but a mount.
	t.Run("copy", func(t *testing.T) {
		source := filepath.Join(driver.dir, "flk-suite-v2")
		if out, err := exec.Command("mount", "-t", "tmpfs", "flk-suite-copy", source).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		defer exec.Command("umount", source).Run()
		if err := os.WriteFile(filepath.Join(source, "large"), make([]byte, 32<<20), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := w.docker("create", "--name", "flk-suite-copy",
			"--mount", "type=volume,volume-driver="+realDriver+",src=flk-suite-v2,dst=/data,volume-nocopy", image, "true"); err != nil {
			t.Fatal(err)
		}
		defer w.docker("rm", "-f", "flk-suite-copy")
		cp := exec.Command("docker", "cp", "flk-suite-copy:/data", "-")
		unread, err := cp.StdoutPipe() // so that the copy hangs
		if err != nil {
			t.Fatal(err)
		}
		if err := cp.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			unread.Close()
			cp.Process.Kill()
			cp.Wait()
		}()
		var foreign []mounts.Holder
		for deadline := time.Now().Add(time.Minute); len(foreign) == 0 && time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
			holders, err := mounts.HeldBy("/proc", "flk-suite-copy")
			if err != nil {
				t.Fatal(err)
			}
			foreign = mounts.Foreign(holders, source)
		}
		if len(foreign) == 0 {
			t.Error("a copy under way is not seen")
		}
		for _, h := range foreign {
			t.Logf("held by %s", h)
		}
	})
}

const image = "flocker-test/busybox:1"

type dockerWorld struct{ t *testing.T }

func (w dockerWorld) docker(args ...string) error {
	out, err := exec.Command("docker", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

func (w dockerWorld) run(name string, volumes ...string) error {
	args := []string{"run", "-d", "--name", name}
	for _, v := range volumes {
		args = append(args, "--mount", "type=volume,volume-driver="+realDriver+",src="+v+",dst=/"+v)
	}
	return w.docker(append(args, image, "sleep", "1000")...)
}
func (w dockerWorld) stop(name string) error   { return w.docker("stop", "-t", "0", name) }
func (w dockerWorld) remove(name string) error { return w.docker("rm", name) }

// serveDriver puts a driver at its socket.
func serveDriver(t *testing.T, d protocol.Driver) {
	t.Helper()
	path := "/run/docker/plugins/" + realDriver + ".sock"
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go protocol.NewHandler(d).Serve(l)
}

// dirDriver is anyDriver with directories.
type dirDriver struct {
	anyDriver
	dir string
	mu  sync.Mutex
}

func (d *dirDriver) Create(r *protocol.CreateRequest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.anyDriver.Create(r)
	return os.MkdirAll(filepath.Join(d.dir, r.Name), 0o755)
}

func (d *dirDriver) Get(r *protocol.GetRequest) (*protocol.GetResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.anyDriver.Get(r)
}

func (d *dirDriver) Mount(r *protocol.MountRequest) (*protocol.MountResponse, error) {
	return &protocol.MountResponse{Mountpoint: filepath.Join(d.dir, r.Name)}, nil
}

func (d *dirDriver) Unmount(r *protocol.UnmountRequest) error { return nil }
func (d *dirDriver) Remove(r *protocol.RemoveRequest) error   { return nil }
