package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/flocker-io/flocker/internal/warm"
)

var _ Prestarter = (*Docker)(nil)

// Prestart implements Prestarter.
func (d *Docker) Prestart(ctx context.Context, waiting Spec) (string, error) {
	m := dockerMaker{d}
	id, err := m.create(ctx, waiting.Name+warmSuffix, waiting)
	if err != nil {
		return "", err
	}
	if err := m.start(ctx, id); err != nil {
		uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return "", errors.Join(err, m.end(uctx, id))
	}
	return id, nil
}

// TakeUp implements Prestarter.
func (d *Docker) TakeUp(ctx context.Context, s Spec, id string, replaces []string, release func(context.Context) error) (ran bool, err error) {
	m := dockerMaker{d}
	if err := takeUp(ctx, m, s, id, replaces, release); err != nil {
		return false, err
	}
	return true, cleanUp(ctx, m, s.Name)
}

// EndWaiter implements Prestarter.
func (d *Docker) EndWaiter(ctx context.Context, id string) error {
	if err := (dockerMaker{d}).end(ctx, id); !errors.Is(err, ErrNotFound) {
		return err
	}
	return nil
}

// Waiters implements Prestarter.
func (d *Docker) Waiters(ctx context.Context) ([]Waiter, error) {
	return ask(ctx, d, "list containers that wait", callTimeout, func(ctx context.Context, c *client.Client) ([]Waiter, error) {
		list, err := c.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("label", labelWarm)})
		if err != nil {
			return nil, err
		}
		var out []Waiter
		for _, s := range list.Items {
			var label warmLabel
			if err := json.Unmarshal([]byte(s.Labels[labelWarm]), &label); err != nil {
				continue // somebody else's
			}
			w := Waiter{ID: s.ID, Token: label.Token, Live: State(s.State).Live()}
			if len(s.Names) > 0 {
				w.Name = strings.TrimPrefix(s.Names[0], "/")
			}
			w.Waiting = waits(w.Name, s.Labels)
			if w.Live {
				info, err := c.ContainerInspect(ctx, s.ID, client.ContainerInspectOptions{})
				if cerrdefs.IsNotFound(err) {
					continue // removed meanwhile
				}
				if err != nil {
					return nil, err
				}
				if info.Container.State != nil {
					w.AtGate = atGate(info.Container.State.Pid)
				}
			}
			out = append(out, w)
		}
		return out, nil
	})
}

// atGate says that a process is a gate.
func atGate(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	return err == nil && strings.HasPrefix(string(b), warm.ProgramAt+"\x00"+warm.Command+"\x00")
}

// Settle implements Prestarter.
func (d *Docker) Settle(ctx context.Context, s Spec, id string) error {
	var host struct{ RestartPolicy container.RestartPolicy }
	if err := json.Unmarshal(s.HostConfig, &host); err != nil {
		return fmt.Errorf("reading the configuration of container %s: %w", s.Name, err)
	}
	_, err := ask(ctx, d, "update container", callTimeout, func(ctx context.Context, c *client.Client) (client.ContainerUpdateResult, error) {
		r, err := c.ContainerUpdate(ctx, id, client.ContainerUpdateOptions{RestartPolicy: &host.RestartPolicy})
		return r, notFound(err)
	})
	return err
}
