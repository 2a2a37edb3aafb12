package containerfake

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/flocker-io/flocker/internal/container"
)

// driverName is the one driver's.
const driverName = "flocker"

// Inspect describes a container as Capture would.
func (e *Engine) Inspect(ctx context.Context, ref string) (container.Captured, error) {
	if err := e.alive(); err != nil {
		return container.Captured{}, err
	}
	if err := e.ponder(ctx); err != nil {
		return container.Captured{}, err
	}
	e.age()
	c := e.byRef(ref)
	if c == nil {
		return container.Captured{}, fmt.Errorf("container %s: %w", ref, container.ErrNotFound)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	labels := maps.Clone(c.labels)
	delete(labels, container.LabelMade)
	described, hosted := map[string]any{"Labels": labels, "Env": c.env}, map[string]any{}
	if c.labels[container.LabelPrestart] != "" {
		described["Cmd"] = []string{"serve"}
		var binds []string
		for _, m := range c.mounts {
			binds = append(binds, m.volume+":/"+m.volume)
		}
		hosted["Binds"] = binds
	}
	config, err := json.Marshal(described)
	if err != nil {
		return container.Captured{}, err
	}
	bindings := map[string][]map[string]string{}
	for _, p := range c.publish {
		spec := fmt.Sprintf("%d/tcp", p.Port)
		bindings[spec] = append(bindings[spec], map[string]string{"HostPort": strconv.Itoa(p.Host)})
	}
	hosted["RestartPolicy"], hosted["PortBindings"], hosted["ExtraHosts"] = map[string]any{"Name": c.restart, "MaximumRetryCount": c.tries}, bindings, c.hosts
	host, err := json.Marshal(hosted)
	if err != nil {
		return container.Captured{}, err
	}
	out := container.Captured{
		ID: c.id, State: c.state, Started: c.started, ExitCode: c.exitCode, Restarts: c.restarts, Error: c.err, Labels: c.labels,
		Spec:  container.Spec{Name: c.name, Image: imageOf(c.image), Config: config, HostConfig: host},
		Ports: container.Ports{Published: c.publish, Exposed: c.expose},
	}
	if c.state == container.Running {
		out.Since = c.since.Format(time.RFC3339Nano)
		out.Ports.Address = c.ip
	}
	for _, n := range c.networks {
		out.Spec.Networks = append(out.Spec.Networks, container.Network{Name: n, Endpoint: json.RawMessage(`{}`), Definition: json.RawMessage(`{}`), Driver: "bridge"})
	}
	for _, m := range c.mounts {
		p := container.MountPoint{Type: "volume", Name: m.volume, Driver: driverName, Destination: "/" + m.volume}
		if m.local {
			p.Driver = "local"
		}
		out.Spec.Mounts = append(out.Spec.Mounts, p)
	}
	return out, nil
}

// Ponder has the engine take so long to describe a container, as one does that starts another; it begins
// to for a while only.
func (e *Engine) Ponder(takes, during time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ponders, e.pondersUntil = takes, time.Now().Add(during)
}

// Linger has the engine take so long, from now on, between the mounts of a container's volumes and the start
// of its process, as one does that makes its networks.
func (e *Engine) Linger(takes time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lingers = takes
}

func (e *Engine) ponder(ctx context.Context) error {
	e.mu.Lock()
	takes, until := e.ponders, e.pondersUntil
	e.mu.Unlock()
	if takes == 0 || !time.Now().Before(until) {
		return ctx.Err()
	}
	timer := time.NewTimer(takes)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Target has all networks, without addresses, and all containers.
func (e *Engine) Target(context.Context) (container.Target, error) {
	if err := e.alive(); err != nil {
		return container.Target{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	t := container.Target{Known: true, Networks: []string{"bridge", "host", "none"}, Containers: map[string]string{}}
	t.Networks = append(t.Networks, slices.Sorted(maps.Keys(e.networks))...)
	for _, name := range slices.Sorted(maps.Keys(e.containers)) {
		c := e.containers[name]
		t.Containers[name] = c.id
		for _, p := range c.publish {
			if c.state == container.Running && p.Host > 0 {
				t.Published = append(t.Published, container.PublishedBy{Binding: container.Binding{Host: p.Host, Port: p.Port, Protocol: "tcp"}, Container: name})
			}
		}
	}
	return t, nil
}

// Recreate implements container.Movers.
func (e *Engine) Recreate(ctx context.Context, s container.Spec, known container.Known, stays func(ctx context.Context, id string) error) (string, error) {
	return container.Recreate(ctx, maker{e}, s, known, stays)
}

// CleanUp implements container.Movers.
func (e *Engine) CleanUp(ctx context.Context, name string) error {
	return container.CleanUp(ctx, maker{e}, name)
}

// Discard implements container.Movers.
func (e *Engine) Discard(ctx context.Context, name, id string) error {
	return container.Discard(ctx, maker{e}, name, id)
}

// maker is the engine step by step. It has no volumes without a name, so that there is nothing
// that is to be removed with a container.
type maker struct{ e *Engine }

func (m maker) Find(ctx context.Context, name string) (container.Captured, error) {
	return m.e.Inspect(ctx, name)
}

func (m maker) Create(ctx context.Context, name string, s container.Spec) (string, error) {
	if _, err := m.e.LocalImage(ctx, s.Image); err != nil {
		return "", err
	}
	var config struct {
		Labels map[string]string
		Env    []string
	}
	var host struct {
		RestartPolicy struct {
			Name              string
			MaximumRetryCount int
		}
		PortBindings map[string][]struct{ HostPort string }
		ExtraHosts   []string
	}
	if err := json.Unmarshal(s.Config, &config); err != nil {
		return "", err
	}
	if err := json.Unmarshal(s.HostConfig, &host); err != nil {
		return "", err
	}
	opts := RunOptions{Restart: host.RestartPolicy.Name, Tries: host.RestartPolicy.MaximumRetryCount, Labels: config.Labels, Env: config.Env, Image: s.Image.Ref, Hosts: host.ExtraHosts, Networks: s.OwnNetworks()}
	for _, spec := range slices.Sorted(maps.Keys(host.PortBindings)) {
		for _, b := range host.PortBindings[spec] {
			var p container.PublishedPort
			if _, err := fmt.Sscanf(b.HostPort+" "+spec, "%d %d/tcp", &p.Host, &p.Port); err != nil {
				return "", err
			}
			opts.Publish = append(opts.Publish, p)
		}
	}
	if err := m.e.Create(name, opts, s.Volumes(driverName)...); err != nil {
		return "", err
	}
	got, err := m.e.Inspect(ctx, name)
	return got.ID, err
}

func (m maker) Rename(_ context.Context, id, name string) error {
	if err := m.e.alive(); err != nil {
		return err
	}
	c := m.e.byRef(id)
	if c == nil {
		return fmt.Errorf("container %s: %w", id, container.ErrNotFound)
	}
	m.e.mu.Lock()
	if m.e.containers[name] != nil {
		m.e.mu.Unlock()
		return fmt.Errorf("the container name %q is already in use", name)
	}
	delete(m.e.containers, c.name)
	c.name, m.e.containers[name] = name, c
	m.e.mu.Unlock()
	m.e.emit()
	return nil
}

func (m maker) Start(ctx context.Context, id string) error { return m.e.StartAgain(ctx, id) }

func (m maker) Stop(ctx context.Context, id string) error { return m.e.StopContainer(ctx, id) }

func (m maker) Remove(_ context.Context, id string) error {
	c := m.e.byRef(id)
	if c == nil {
		return fmt.Errorf("container %s: %w", id, container.ErrNotFound)
	}
	return m.e.Remove(c.name)
}

func (m maker) Discard(ctx context.Context, id string) error { return m.Remove(ctx, id) }

func (m maker) End(ctx context.Context, id string) error { return m.e.EndWaiter(ctx, id) }

// Said implements container.Movers.
func (e *Engine) Said(_ context.Context, ref string, _ int) (string, error) {
	if err := e.alive(); err != nil {
		return "", err
	}
	c := e.byRef(ref)
	if c == nil {
		return "", fmt.Errorf("container %s: %w", ref, container.ErrNotFound)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ends[c.name].Says, nil
}

// OnExec says what commands in containers do; without it they succeed and say nothing.
// f must heed ctx, and may go on in the container after it.
func (e *Engine) OnExec(f func(ctx context.Context, name string, command []string) (string, error)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.exec = f
}

// Exec implements container.Movers.
func (e *Engine) Exec(ctx context.Context, ref string, command []string) (string, error) {
	if err := e.alive(); err != nil {
		return "", container.NotBegun{Why: err}
	}
	c := e.byRef(ref)
	if c == nil {
		return "", container.NotBegun{Why: fmt.Errorf("container %s: %w", ref, container.ErrNotFound)}
	}
	e.mu.Lock()
	f, running := e.exec, c.state == container.Running
	e.mu.Unlock()
	switch {
	case !running:
		return "", container.NotBegun{Why: fmt.Errorf("container %s is not running", ref)}
	case f == nil:
		return "", nil
	}
	return f(ctx, c.name, command)
}

// StopContainer implements container.Movers.
func (e *Engine) StopContainer(_ context.Context, ref string) error {
	c := e.byRef(ref)
	if c == nil {
		return fmt.Errorf("container %s: %w", ref, container.ErrNotFound)
	}
	return e.Stop(c.name)
}

// MakeNetworks implements container.Movers.
func (e *Engine) MakeNetworks(_ context.Context, s container.Spec) (map[string]string, error) {
	if err := e.alive(); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	made := map[string]string{}
	for _, n := range s.OwnNetworks() {
		if e.makeNetwork(n) {
			made[n] = e.networks[n]
		}
	}
	return made, nil
}

// makeNetwork makes one unless it is there. The caller has the lock.
func (e *Engine) makeNetwork(name string) bool {
	if e.networks[name] != "" {
		return false
	}
	e.networks[name] = e.nextID()
	return true
}

// RemoveNetwork implements container.Movers.
func (e *Engine) RemoveNetwork(_ context.Context, id string) error {
	if err := e.alive(); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for name, has := range e.networks {
		if has != id {
			continue
		}
		for _, c := range e.containers {
			if slices.Contains(c.networks, name) {
				return fmt.Errorf("network %s: container %s: %w", name, c.name, container.ErrInUse)
			}
		}
		delete(e.networks, name)
	}
	return nil
}

// Retire implements container.Movers.
func (e *Engine) Retire(_ context.Context, ref string) error {
	if err := e.alive(); err != nil {
		return err
	}
	c := e.byRef(ref)
	if c == nil {
		return fmt.Errorf("container %s: %w", ref, container.ErrNotFound)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c.restart = "no"
	return nil
}

// Env is the environment of a container; nil when there is none.
func (e *Engine) Env(name string) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.containers[name]; c != nil {
		return c.env
	}
	return nil
}

func imageOf(name string) container.Image {
	return container.Image{ID: "sha256:" + name, Ref: name}
}

// LocalImage implements container.Images.
func (e *Engine) LocalImage(_ context.Context, i container.Image) (string, error) {
	if err := e.alive(); err != nil {
		return "", err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if i.Ref != "" && !e.images[i.Ref] {
		return "", fmt.Errorf("image %s: %w", i.Ref, container.ErrNotFound)
	}
	return i.Ref, nil
}

// SaveImage implements container.Images: the archive is the image's name.
func (e *Engine) SaveImage(ctx context.Context, i container.Image) (io.ReadCloser, error) {
	if _, err := e.LocalImage(ctx, i); err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader([]byte(i.Ref))), nil
}

// LoadImage implements container.Images.
func (e *Engine) LoadImage(_ context.Context, i container.Image, archive io.Reader) error {
	if err := e.alive(); err != nil {
		return err
	}
	b, err := io.ReadAll(archive)
	if err != nil {
		return err
	}
	if string(b) != i.Ref {
		return fmt.Errorf("the archive holds the image %q, not %q", b, i.Ref)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.images[i.Ref] = true
	return nil
}

// RemoveImage is `docker rmi`.
func (e *Engine) RemoveImage(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.images, name)
}

// byRef finds a container by name or ID; nil when there is none.
func (e *Engine) byRef(ref string) *record {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.containers {
		if c.name == ref || c.id == ref {
			return c
		}
	}
	return nil
}
