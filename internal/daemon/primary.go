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
	if v.Phase == state.PhaseElecting {
		return m.noPrimary(v)
	}
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
	lost := volume.Errorf(volume.CodeUnavailable, "volume %q: its primary %s was lost meanwhile", v.Name, m.cluster.State().NodeName(v.Placement.Primary)).
		WithHint("try again")
	return while(ctx, lost, f, func() bool {
		now := m.cluster.State().Volume(v.ID)
		return now != nil && now.Epoch == v.Epoch && m.hears(v.Placement.Primary)
	})
}

// whileHeard ends f when a node has not been heard of for long.
func (m *member) whileHeard(ctx context.Context, node volume.NodeID, f func(context.Context) error) error {
	lost := volume.Errorf(volume.CodeUnavailable, "node %s was lost meanwhile", m.cluster.State().NodeName(node))
	return while(ctx, lost, f, func() bool { return m.hears(node) })
}

// hears says that a node has been heard of in a time in which a cluster changes its
// leader: until that is done nobody passes reports on.
func (m *member) hears(node volume.NodeID) bool {
	h, ok := m.view().heard(node)
	return ok && h.Age <= 3*m.timers.Stale
}

// while ends f, with the error lost, as soon as ok, asked every second, says no: the
// network takes a quarter of an hour to notice that nobody will answer.
func while(ctx context.Context, lost *volume.Error, f func(context.Context) error, ok func() bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		for ctx.Err() == nil {
			pause(ctx, time.Second)
			if ctx.Err() == nil && !ok() {
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
