package plugin

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// TestRealEngine lets a real engine use the plugin, under a name of its own, with
// directories for volumes. It needs a machine that is there to be played with: root,
// an engine managed by systemd, the image flocker-test/busybox:1. FLOCKER_DOCKER=1 says
// that this is one. At the end the engine is restarted, since it asks for a driver it
// has once seen for ever.
func TestRealEngine(t *testing.T) {
	if os.Getenv("FLOCKER_DOCKER") == "" {
		t.Skip("FLOCKER_DOCKER is not set: no engine to play with")
	}
	const driver, image, vol = "flkplugintest", "flocker-test/busybox:1", "flk-plugin-v"
	socket := "/run/docker/plugins/" + driver + ".sock"
	backend := &dirBackend{memoryBackend: newMemoryBackend(t.TempDir())}
	server := startPluginAt(t, backend, socket)
	restartPlugin := func() { server.stop(); server = startPluginAt(t, backend, socket) }

	docker := func(args ...string) (string, error) {
		t.Helper()
		began := time.Now()
		out, err := exec.Command("docker", args...).CombinedOutput()
		text := strings.TrimSpace(string(out))
		t.Logf("docker %s (%s)\n%s", strings.Join(args, " "), time.Since(began).Round(100*time.Millisecond), text)
		for _, c := range backend.take() {
			t.Log("  call: ", c)
		}
		return text, err
	}
	ok := func(args ...string) string {
		t.Helper()
		out, err := docker(args...)
		if err != nil {
			t.Fatalf("docker %s: %v", strings.Join(args, " "), err)
		}
		return out
	}
	refused := func(want string, args ...string) {
		t.Helper()
		out, err := docker(args...)
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("docker %s = %v, %q; want a refusal with %q", strings.Join(args, " "), err, out, want)
		}
	}
	mounts := func(want string) {
		t.Helper()
		if got := backend.holders(vol); got != want {
			t.Errorf("mounts of the volume: %q; want %q", got, want)
		}
	}
	engine := func(verb ...string) {
		t.Helper()
		if out, err := exec.Command("systemctl", verb...).CombinedOutput(); err != nil {
			t.Fatalf("systemctl %v: %v: %s", verb, err, out)
		}
		for _, c := range backend.take() {
			t.Log("  call at systemctl ", verb, ": ", c)
		}
	}
	t.Cleanup(func() {
		docker("rm", "-f", "flk-plugin-c")
		docker("volume", "rm", vol)
		server.stop()
		engine("restart", "docker")
	})
	mnt := "type=volume,volume-driver=" + driver + ",src=" + vol + ",dst=/data"

	// Create, with the refusals that users meet first.
	refused(`unknown volume option "replica": did you mean "replicas"?`, "volume", "create", "-d", driver, "-o", "replica=1", vol)
	refused("it takes bytes or a number", "volume", "create", "-d", driver, "-o", "size=banana", vol)
	ok("volume", "create", "-d", driver, "-o", "size=1G", vol)
	if out := ok("volume", "inspect", vol); !strings.Contains(out, `"replicas": 1`) || !strings.Contains(out, `"Scope": "global"`) {
		t.Errorf("inspect shows no status or scope:\n%s", out)
	}
	if out := ok("volume", "ls", "-q", "-f", "driver="+driver); out != vol {
		t.Errorf("ls = %q; want %q", out, vol)
	}

	// Run, copy in and out, stop.
	ok("run", "-d", "--name", "flk-plugin-c", "--restart", "always", "--mount", mnt, image, "sleep", "1000")
	mounts("1")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	ok("cp", file, "flk-plugin-c:/data/file")
	mounts("1")
	if b, err := os.ReadFile(filepath.Join(backend.path(vol), "file")); string(b) != "hello" {
		t.Errorf("the file in the volume: %q, %v", b, err)
	}
	refused("volume is in use", "volume", "rm", vol)

	// flockd restarts below the container; the engine does not notice.
	restartPlugin()
	ok("stop", "-t", "0", "flk-plugin-c")
	mounts("0")
	restartPlugin()
	ok("start", "flk-plugin-c")
	mounts("1")

	// The container is stopped while flockd is away: its unmount is lost, and it stops
	// all the same.
	server.stop()
	began := time.Now()
	ok("stop", "-t", "0", "flk-plugin-c")
	t.Logf("stop without the plugin took %s", time.Since(began).Round(time.Second))
	server = startPluginAt(t, backend, socket)
	mounts("1")
	ok("start", "flk-plugin-c")
	mounts("2")

	// A refused mount is final for the container, and its reason is shown.
	ok("stop", "-t", "0", "flk-plugin-c")
	backend.rule(vol, rule{refuse: volume.Errorf(volume.CodeRefused, "volume %s is in use on n2", vol)})
	refused("is in use on n2", "start", "flk-plugin-c")
	backend.rule(vol, rule{})
	time.Sleep(3 * time.Second) // nothing must happen, which has no condition to wait for
	if out := ok("inspect", "-f", "{{.State.Status}}", "flk-plugin-c"); out == "running" {
		t.Error("the engine started a container again whose mount was refused")
	}
	ok("start", "flk-plugin-c")

	// The engine restarts, in order and by force.
	before := backend.holders(vol)
	engine("restart", "docker")
	if out := ok("inspect", "-f", "{{.State.Status}}", "flk-plugin-c"); out != "running" {
		t.Errorf("after the engine's restart the container is %s", out)
	}
	mounts(before)
	engine("kill", "-s", "KILL", "docker")
	time.Sleep(3 * time.Second) // the engine must be noticed to be gone by systemd, which has no other sign
	engine("restart", "docker")
	if out := ok("inspect", "-f", "{{.State.Status}}", "flk-plugin-c"); out != "running" {
		t.Errorf("after the engine's crash the container is %s", out)
	}
	t.Logf("mounts after a crash: %s, before it %s", backend.holders(vol), before)

	ok("rm", "-f", "flk-plugin-c")
	backend.reset(vol)
	ok("volume", "rm", vol)
	if _, known := backend.Get(context.Background(), vol); known {
		t.Error("the volume is still there")
	}
}

// dirBackend is a memoryBackend with directories, which writes its calls down.
type dirBackend struct {
	*memoryBackend
	mu    sync.Mutex
	calls []string
}

func (b *dirBackend) note(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = append(b.calls, fmt.Sprintf(format, args...))
}

func (b *dirBackend) take() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.calls
	b.calls = nil
	return c
}

// holders is how often a volume is mounted, over all mount IDs.
func (b *dirBackend) holders(name string) string {
	b.memoryBackend.mu.Lock()
	defer b.memoryBackend.mu.Unlock()
	n := 0
	for _, count := range b.volumes[name].mounts {
		n += count
	}
	return fmt.Sprint(n)
}

func (b *dirBackend) reset(name string) {
	b.memoryBackend.mu.Lock()
	defer b.memoryBackend.mu.Unlock()
	clear(b.volumes[name].mounts)
}

func (b *dirBackend) Create(ctx context.Context, name string, spec volume.Spec) error {
	b.note("Create %s", name)
	if err := os.MkdirAll(b.path(name), 0o755); err != nil {
		return err
	}
	return b.memoryBackend.Create(ctx, name, spec)
}

func (b *dirBackend) Mount(ctx context.Context, name, id string) (string, error) {
	path, err := b.memoryBackend.Mount(ctx, name, id)
	b.note("Mount %s %.6s %v", name, id, err)
	return path, err
}

func (b *dirBackend) Unmount(ctx context.Context, name, id string) error {
	b.note("Unmount %s %.6s", name, id)
	return b.memoryBackend.Unmount(ctx, name, id)
}

func (b *dirBackend) Get(ctx context.Context, name string) (Info, bool) {
	info, ok := b.memoryBackend.Get(ctx, name)
	b.note("Get %s %v", name, ok)
	return info, ok
}
