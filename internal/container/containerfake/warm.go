package containerfake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/container"
)

// Containers that wait. The gate of one is a word in its record; what opens its door is a
// fake beside the engine, which calls Gate and Release.

const (
	waitsSuffix = ".flocker-warm"
	labelWarm   = "flocker.warm"
)

var _ container.Prestarter = (*Engine)(nil)

// waiting says that a container is at its gate under the name of one that has no volume yet.
// The caller has the lock.
func (c *record) waiting() bool { return c.token != "" && strings.HasSuffix(c.name, waitsSuffix) }

// Prestart implements container.Prestarter.
func (e *Engine) Prestart(_ context.Context, s container.Spec) (string, error) {
	if err := e.alive(); err != nil {
		return "", err
	}
	var config struct {
		Labels map[string]string
		Env    []string
	}
	var host struct {
		RestartPolicy struct{ Name string }
		ExtraHosts    []string
	}
	var label struct{ Token string }
	if err := errors.Join(json.Unmarshal(s.Config, &config), json.Unmarshal(s.HostConfig, &host), json.Unmarshal([]byte(config.Labels[labelWarm]), &label)); err != nil {
		return "", err
	}
	delete(config.Labels, labelWarm) // as nobody is told of it
	name := s.Name + waitsSuffix
	err := e.Create(name, RunOptions{Restart: host.RestartPolicy.Name, Labels: config.Labels, Env: config.Env, Image: s.Image.Ref, Hosts: host.ExtraHosts}, s.Volumes(driverName)...)
	if err != nil {
		return "", err
	}
	c, err := e.find(name)
	if err != nil {
		return "", err
	}
	e.mu.Lock()
	c.token, c.atGate = label.Token, true
	e.mu.Unlock()
	if err := e.start(name); err != nil {
		eerr := e.EndWaiter(context.Background(), c.id)
		if eerr != nil {
			return c.id, errors.Join(err, eerr)
		}
		return "", err
	}
	return c.id, nil
}

// Leave has a container that waited for a flockd that has died: its gate has ended. Its door
// is called as it is.
func (e *Engine) Leave(name, volume string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := &record{id: e.nextID(), name: name + waitsSuffix, state: container.Exited, started: true, token: name, mounts: []*mountPoint{{volume: volume}}}
	e.containers[c.name] = c
}

// Gate is the container that waits at a door, and where it has its volume mounted; "" when
// there is none.
func (e *Engine) Gate(token string) (id, path string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.containers {
		if c.token == token && c.atGate && c.state == container.Running {
			return c.id, c.mounts[0].path
		}
	}
	return "", ""
}

// Holders are the containers that run with something mounted.
func (e *Engine) Holders(path string) (ids []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.containers {
		for _, m := range c.mounts {
			if m.path == path && c.state.Live() {
				ids = append(ids, c.id)
			}
		}
	}
	return ids
}

// Inject changes what a container at its gate has mounted, as nobody tells the engine of.
func (e *Engine) Inject(token, path string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.containers {
		if c.token == token && c.atGate {
			c.mounts[0].path = path
		}
	}
}

// Release has a container go on from its gate, or, when its door was closed, end there.
func (e *Engine) Release(token string, goes bool) {
	for _, c := range e.all() {
		e.mu.Lock()
		mine := c.token == token && c.atGate && c.state == container.Running
		if mine {
			c.atGate, c.since = false, time.Now()
		}
		e.mu.Unlock()
		if mine && !goes {
			e.setState(c, container.Exited, 1, "")
			e.unmountAll(c)
		}
	}
}

// Finish has the command of a container that went on from its gate end, as its engine has not
// been told yet to start it again.
func (e *Engine) Finish(token string) {
	for _, c := range e.all() {
		e.mu.Lock()
		mine := c.token == token && c.state == container.Running
		e.mu.Unlock()
		if mine {
			e.setState(c, container.Exited, 1, "")
			e.unmountAll(c)
		}
	}
}

// TakeUp implements container.Prestarter.
func (e *Engine) TakeUp(ctx context.Context, s container.Spec, id string, known container.Known, release func(context.Context) error) (ran bool, err error) {
	if err := e.alive(); err != nil {
		return false, err
	}
	if _, bounded := ctx.Deadline(); bounded {
		return false, errors.New("a volume may take longer to come than this waits")
	}
	return container.TakeUp(ctx, maker{e}, s, id, known, release)
}

// EndWaiter implements container.Prestarter.
func (e *Engine) EndWaiter(_ context.Context, id string) error {
	if err := e.alive(); err != nil {
		return err
	}
	c := e.byRef(id)
	if c == nil {
		return nil
	}
	e.mu.Lock()
	live, stuck := c.state.Live(), e.stuck[c.name]
	e.mu.Unlock()
	if live && stuck {
		return fmt.Errorf("cannot remove container %s: did not receive an exit event", id)
	}
	if live {
		e.setState(c, container.Exited, 137, "")
		e.unmountAll(c)
	}
	e.mu.Lock()
	if e.containers[c.name] == c {
		delete(e.containers, c.name)
	}
	e.mu.Unlock()
	e.emit()
	return nil
}

// Waiters implements container.Prestarter.
func (e *Engine) Waiters(context.Context) (out []container.Waiter, err error) {
	if err := e.alive(); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.containers {
		if c.token != "" {
			live := c.state.Live()
			out = append(out, container.Waiter{ID: c.id, Name: c.name, Token: c.token, Live: live, AtGate: live && c.atGate, Waiting: c.waiting()})
		}
	}
	return out, nil
}

// Waiter implements container.Prestarter.
func (e *Engine) Waiter(ctx context.Context, id string) (container.Waiter, error) {
	all, err := e.Waiters(ctx)
	if err != nil {
		return container.Waiter{}, err
	}
	for _, w := range all {
		if w.ID == id {
			return w, nil
		}
	}
	return container.Waiter{}, fmt.Errorf("container %s: %w", id, container.ErrNotFound)
}

// Settle implements container.Prestarter.
func (e *Engine) Settle(_ context.Context, s container.Spec, id string) error {
	if err := e.alive(); err != nil {
		return err
	}
	var host struct{ RestartPolicy struct{ Name string } }
	if err := json.Unmarshal(s.HostConfig, &host); err != nil {
		return err
	}
	c := e.byRef(id)
	if c == nil {
		return fmt.Errorf("container %s: %w", id, container.ErrNotFound)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c.restart = host.RestartPolicy.Name
	return nil
}
