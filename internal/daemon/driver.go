package daemon

import (
	"context"
	"fmt"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/plugin"
)

// driver is plugin.Backend: Docker's view of this node. Get and List are answered
// from local memory for volumes that are known there.
type driver struct{ d *Daemon }

// Create implements plugin.Backend.
func (b driver) Create(ctx context.Context, name string, spec volume.Spec) error {
	m, err := b.d.member()
	if err != nil {
		return err
	}
	_, err = m.CreateVolume(ctx, api.CreateVolumeRequest{Name: name, Options: spec.Options()})
	return err
}

// Clone implements plugin.Backend.
func (b driver) Clone(ctx context.Context, name string, opts map[string]string) error {
	m, err := b.d.member()
	if err != nil {
		return err
	}
	_, err = m.CreateVolume(ctx, api.CreateVolumeRequest{Name: name, Options: opts})
	return err
}

// Remove implements plugin.Backend.
func (b driver) Remove(ctx context.Context, name string) error {
	m, err := b.d.member()
	if err != nil {
		return err
	}
	if err := m.catchUp(ctx); err != nil {
		return err
	}
	v := m.cluster.State().VolumeByName(name)
	if v == nil {
		return noVolume(name)
	}
	return m.RemoveVolume(ctx, string(v.ID), api.RemoveVolumeRequest{})
}

// Mount implements plugin.Backend: on the primary at once; where the volume is
// unused elsewhere it is handed to this node first; where it is in use, refused.
func (b driver) Mount(ctx context.Context, name, id string) (string, error) {
	m, err := b.d.member()
	if err != nil {
		return "", err
	}
	if m.agent == nil {
		return "", volume.Errorf(volume.CodeConflict, "volume %q cannot be mounted here: this node has no pool", name)
	}
	v, err := m.volumeNamed(ctx, name)
	if err != nil {
		return "", err
	}
	if m.follow != nil {
		if dir, armed, err := m.follow.ahead.mount(name, v.Placement.Primary == m.self); armed {
			return dir, err
		}
	}
	select {
	case <-m.agent.Fresh():
	case <-ctx.Done():
		return "", volume.Errorf(volume.CodeNoQuorum, "volume %q: this node has not heard from a leader since it started", name).
			WithHint("it can be mounted as soon as a majority of the voters is up; see `flockctl status`")
	}
	for {
		if err := m.tenure.await(ctx); err != nil {
			return "", fmt.Errorf("volume %q cannot be mounted on this node: %w", name, err)
		}
		right := m.tenure.Changed()
		dir, err := m.mount(ctx, v, id)
		// What was taken from this node on the way is waited for, as if it had been so at
		// the beginning, and so is a failover: a refusal would be final for the container.
		// It may be this node's again by now, as when it just gets its first lease.
		lost := m.failsOver(v.ID)
		switch {
		case err == nil, ctx.Err() != nil, volume.CodeOf(err) == volume.CodeNotFound:
			return dir, err
		case !lost && !closed(right) && m.mountable(v.ID):
			return dir, err
		}
		// Never without a rest: while this node leaves its cluster, no wait lasts.
		rest := 100 * time.Millisecond
		if lost {
			rest = time.Second
		}
		if pause(ctx, rest); ctx.Err() != nil {
			return "", err
		}
	}
}

// failsOver says that a volume's primary is another node that is not heard of, and that
// the volume gets another one by itself.
func (m *member) failsOver(id volume.ID) bool {
	now := m.view()
	v := now.state.Volume(id)
	if v == nil || v.Phase != state.PhaseActive || v.Placement.Primary == m.self ||
		v.Spec.Failover != volume.FailoverAuto || now.state.Failover().Mode != state.FailoverAutomatic {
		return false
	}
	_, _, heard := now.status(v.Placement.Primary, id)
	return !heard
}

// mount has a volume given to this node, which may write, and mounts it.
func (m *member) mount(ctx context.Context, v *state.Volume, id string) (string, error) {
	// What is being made, moved, removed or failed over is decided in a moment.
	s, err := m.cluster.Wait(ctx, func(s *state.State) bool {
		now := s.Volume(v.ID)
		return now == nil || !now.Live() || now.Phase == state.PhaseActive
	})
	if err != nil {
		if now := m.cluster.State().Volume(v.ID); now != nil && now.Phase == state.PhaseElecting {
			// Docker does not ask again; flockd starts the container when it can be mounted.
			return "", volume.Errorf(volume.CodeUnavailable, "volume %q has no primary: %s", v.Name, m.view().volume(now).Reason)
		}
		return "", waited(err, "volume %q is still being made, moved or removed", v.Name)
	}
	if v = s.Volume(v.ID); v == nil || !v.Live() {
		return "", volume.Errorf(volume.CodeNotFound, "the volume was removed meanwhile")
	}
	if v.Placement.Primary != m.self {
		if c := awaited(s, v, m.self); c != nil {
			return "", volume.Errorf(volume.CodeRefused, "volume %q belongs to container %s, which is to run on %s", v.Name, c.Name, s.NodeName(v.Placement.Primary)).
				WithHint("stop the container there first; see `flockctl container list`")
		}
		if service := m.bound(v); service != "" {
			// It may have come here, and this node not have heard of it: Swarm has.
			if err := m.catchUp(ctx); err != nil {
				return "", err
			}
			if now := m.cluster.State().Volume(v.ID); now == nil || now.Phase != state.PhaseActive || now.Epoch != v.Epoch {
				return m.mount(ctx, v, id)
			}
			return "", volume.Errorf(volume.CodeRefused, "volume %q belongs to Swarm service %s, which runs where the volume is: on %s", v.Name, service, s.NodeName(v.Placement.Primary)).
				WithHint("to have both on another node: flockctl migrate %s NODE", v.Name)
		}
		if err := m.acquire(ctx, v); err != nil {
			return "", err
		}
	}
	return m.agent.Mount(ctx, v.ID, id)
}

// closed says that what a channel tells of has happened.
func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// volumeNamed is the volume of a name. That there is none is only said once this node has
// caught up: it may have been made on another one a moment ago.
func (m *member) volumeNamed(ctx context.Context, name string) (*state.Volume, error) {
	if v := m.cluster.State().VolumeByName(name); v != nil {
		return v, nil
	}
	if err := m.catchUp(ctx); err != nil {
		return nil, err
	}
	if v := m.cluster.State().VolumeByName(name); v != nil {
		return v, nil
	}
	return nil, noVolume(name)
}

// mountable says that this node may write the volume now.
func (m *member) mountable(id volume.ID) bool {
	v := m.cluster.State().Volume(id)
	held, _ := m.tenure.Held()
	return held && v != nil && v.Phase == state.PhaseActive
}

// acquire has the leader make this node the primary, and waits until this node
// knows that it is.
func (m *member) acquire(ctx context.Context, v *state.Volume) error {
	err := m.onLeader(ctx, func(ctx context.Context, leader *api.Client) error {
		if leader != nil {
			return leader.Acquire(ctx, v.ID, m.self)
		}
		return m.Acquire(ctx, v.ID, m.self)
	})
	if err != nil {
		return err
	}
	_, err = m.cluster.Wait(ctx, func(s *state.State) bool {
		now := s.Volume(v.ID)
		return now == nil || now.Placement.Primary == m.self && now.Phase == state.PhaseActive
	})
	return waited(err, "volume %q was handed to this node, which has not heard of it yet", v.Name)
}

// Unmount implements plugin.Backend.
func (b driver) Unmount(_ context.Context, name, id string) error {
	m, err := b.d.member()
	if err != nil || m.agent == nil {
		return nil // nothing can be mounted
	}
	if v := m.cluster.State().VolumeByName(name); v != nil {
		m.agent.Unmount(v.ID, id)
	}
	return nil
}

// getPatience is how long Get tries to be certain that there is no such volume. Without a
// leader it takes that long for each name: at its start an engine asks for all it knows.
const getPatience = 2 * time.Second

// Get implements plugin.Backend. Where it says that there is none Docker has one made, with
// the options of that command. Without a leader that is refused in its turn, so then what
// this node knows will do.
func (b driver) Get(ctx context.Context, name string) (plugin.Info, bool) {
	m, err := b.d.member()
	if err != nil {
		return plugin.Info{}, false
	}
	ctx, cancel := context.WithTimeout(ctx, getPatience)
	defer cancel()
	if _, err := m.volumeNamed(ctx, name); err != nil {
		return plugin.Info{}, false
	}
	v := m.view()
	vol := v.state.VolumeByName(name)
	if vol == nil {
		return plugin.Info{}, false
	}
	return m.info(v, vol, true), true
}

// List implements plugin.Backend.
func (b driver) List() []plugin.Info {
	m, err := b.d.member()
	if err != nil {
		return nil
	}
	v := m.view()
	var out []plugin.Info
	for vol := range v.state.Volumes() {
		if vol.Live() {
			out = append(out, m.info(v, vol, false))
		}
	}
	return out
}

func (m *member) info(v view, vol *state.Volume, full bool) plugin.Info {
	info := plugin.Info{Name: vol.Name, Created: vol.Created.UTC().Truncate(time.Second)}
	if vol.Placement.Primary == m.self && m.agent != nil {
		if st, _, known := v.status(m.self, vol.ID); known && st.Mounted {
			info.Mountpoint = m.layout.DataDir(vol.ID, vol.Spec)
		}
	}
	if full {
		info.Status = dockerStatus(v.volume(vol))
	}
	return info
}

func noVolume(name string) error {
	return volume.Errorf(volume.CodeNotFound, "no volume %q", name)
}
