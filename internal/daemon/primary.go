package daemon

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// onPrimary calls f where the copy of a volume can be written: with nil on this node,
// else with a client of the node that is the primary. A call that came from another
// node is not passed on a second time.
func (m *member) onPrimary(ctx context.Context, v *state.Volume, f func(ctx context.Context, primary *api.Client) error) error {
	to := v.Placement.Primary
	if to == m.self {
		return named(f(ctx, nil), v)
	}
	name := m.cluster.State().NodeName(to)
	if _, forwarded := api.Caller(ctx); forwarded {
		return volume.Errorf(volume.CodeConflict, "volume %q: its primary is %s, not the node that was asked", v.Name, name).WithHint("try again")
	}
	if _, h, known := m.view().status(to, v.ID); !known {
		err := volume.Errorf(volume.CodeUnavailable, "volume %q: its primary %s has not been heard of for %s", v.Name, name, round(h.Age))
		if h.Age == 0 {
			err = volume.Errorf(volume.CodeUnavailable, "volume %q: its primary %s has not been heard of yet", v.Name, name)
		}
		return err.WithHint("try again when the node is back; see `flockctl node inspect %s`", name)
	}
	return m.whilePrimary(ctx, v, func(ctx context.Context) error {
		err := f(ctx, m.client(to))
		if errors.Is(err, api.ErrNoAnswer) {
			return volume.Errorf(volume.CodeUnavailable, "volume %q: its primary %s does not answer: %v", v.Name, name, err)
		}
		return err
	})
}

// whilePrimary ends f when the primary is another node by now, or is not heard any
// more: it may never answer.
func (m *member) whilePrimary(ctx context.Context, v *state.Volume, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	lost := volume.Errorf(volume.CodeUnavailable, "volume %q: its primary %s was lost meanwhile", v.Name, m.cluster.State().NodeName(v.Placement.Primary)).
		WithHint("try again")
	var watch sync.WaitGroup
	watch.Go(func() {
		for ctx.Err() == nil {
			pause(ctx, time.Second)
			now := m.cluster.State().Volume(v.ID)
			if _, _, known := m.view().status(v.Placement.Primary, v.ID); now == nil || now.Epoch != v.Epoch || !known {
				cancel(lost)
			}
		}
	})
	err := f(ctx)
	gone := context.Cause(ctx) == error(lost)
	cancel(nil)
	watch.Wait()
	if err != nil && gone {
		return lost
	}
	return err
}

// named puts a volume's name where the engine, which knows none, has put its ID.
func named(err error, v *state.Volume) error {
	var e *volume.Error
	if !errors.As(err, &e) {
		return err
	}
	text := strings.ReplaceAll(e.Message, "volume "+string(v.ID), `volume "`+v.Name+`"`)
	if text == e.Message {
		return err
	}
	c := *e
	c.Message = text
	return &c
}
