package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/flocker-io/flocker/internal/warm"
)

var _ Prestarter = (*Docker)(nil)

// Prestart implements Prestarter.
func (d *Docker) Prestart(ctx context.Context, waiting Spec) (string, error) {
	return prestart(ctx, dockerMaker{d}, waiting)
}

// TakeUp implements Prestarter.
func (d *Docker) TakeUp(ctx context.Context, s Spec, id string, known Known, release func(context.Context) error) (ran bool, err error) {
	return TakeUp(ctx, dockerMaker{d}, s, id, known, release)
}

// EndWaiter implements Prestarter.
func (d *Docker) EndWaiter(ctx context.Context, id string) error {
	if err := (dockerMaker{d}).End(ctx, id); !errors.Is(err, ErrNotFound) {
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
			out = append(out, w)
		}
		return out, nil
	})
}

// Waiter implements Prestarter.
func (d *Docker) Waiter(ctx context.Context, id string) (Waiter, error) {
	return ask(ctx, d, "inspect container", callTimeout, func(ctx context.Context, c *client.Client) (w Waiter, err error) {
		info, err := c.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
		if err != nil {
			return w, notFound(err)
		}
		at := info.Container
		if at.Config == nil || at.State == nil {
			return w, errors.New("the engine does not say how it is")
		}
		var label warmLabel
		if err := json.Unmarshal([]byte(at.Config.Labels[labelWarm]), &label); err != nil {
			return w, fmt.Errorf("reading the label %s: %w", labelWarm, err)
		}
		w = Waiter{ID: at.ID, Name: strings.TrimPrefix(at.Name, "/"), Token: label.Token, Live: State(at.State.Status).Live()}
		w.Waiting = waits(w.Name, at.Config.Labels)
		w.AtGate = w.Live && atGate(at.State.Pid)
		return w, nil
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
