package daemon

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// restartPause is the shortest time between two attempts to start one container, and
// restartMost the longest.
const (
	restartPause = 15 * time.Second
	restartMost  = 5 * time.Minute
)

// restarts starts containers again that do not run because of us: those that their
// engine gave up when we refused a mount, as after a power cut of all nodes (an engine
// makes one attempt when it boots, and a quorum may take longer), and those that the
// fencer has killed.
//
// Only containers all of whose volumes this node is the primary of are started: for
// any other, starting it would take the volume away from the node that has it. Nor is one that
// has been superseded: what follows the volume here is another container in its place.
type restarts struct {
	m    *member
	next map[string]attempt // by container ID
	deaf deaf
}

type attempt struct {
	at    time.Time
	pause time.Duration
}

// deaf is an engine that does not answer somebody who asks again and again: that is logged
// once, until it has answered.
type deaf bool

func (d *deaf) note(ctx context.Context, log *slog.Logger, err error) {
	switch {
	case err == nil:
		*d = false
	case !bool(*d) && ctx.Err() == nil:
		*d = true
		log.Warn("the engine does not answer; what was known counts, and it is asked again", "err", err)
	}
}

// try makes one attempt for each container whose time has come.
func (r *restarts) try(ctx context.Context) {
	select {
	case <-r.m.agent.Fresh():
	default:
		return
	}
	if held, _ := r.m.tenure.Held(); !held {
		return
	}
	refused, err := r.m.use.engine.Refused(ctx)
	var killed []container.Use
	var done []string
	if err == nil {
		killed, done, err = r.victims(ctx)
	}
	r.deaf.note(ctx, r.m.log, err)
	if err != nil {
		return
	}
	seen := map[string]attempt{}
	for _, c := range append(refused, killed...) {
		if _, twice := seen[c.Container]; twice {
			continue
		}
		a := r.next[c.Container]
		if r.m.mayStart(c) && !superseded(r.m.cluster.State(), r.m.self, c) && !r.m.now().Before(a.at) {
			err := r.m.use.engine.StartAgain(ctx, c.Container)
			if err == nil {
				r.m.log.Info("started a container whose volume can be mounted again", "container", c.Name)
				done = append(done, c.Container)
				continue
			}
			if a.pause == 0 && ctx.Err() == nil {
				r.m.log.Warn("a container cannot be started yet and will be tried again", "container", c.Name, "err", err)
			}
			a.pause = min(max(2*a.pause, restartPause), restartMost)
			a.at = r.m.now().Add(a.pause)
		}
		seen[c.Container] = a
	}
	r.next = seen
	r.m.tenure.forget(ctx, done)
}

// victims are the containers that the fencer has killed and that are still to be
// started here, and those that are done with: they run, are gone, or have their volume
// on another node now.
func (r *restarts) victims(ctx context.Context) (killed []container.Use, done []string, err error) {
	ids := r.m.tenure.victims()
	if len(ids) == 0 {
		return nil, nil, nil
	}
	all, err := r.m.use.engine.Users(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, id := range ids {
		i := slices.IndexFunc(all, func(u container.Use) bool { return u.Container == id })
		switch {
		case i < 0 || all[i].State.Live() || r.m.elsewhere(all[i]) || superseded(r.m.cluster.State(), r.m.self, all[i]):
			done = append(done, id)
		default:
			killed = append(killed, all[i])
		}
	}
	return killed, done, nil
}

// elsewhere says that a volume of a container has another primary than this node.
func (m *member) elsewhere(c container.Use) bool {
	s := m.cluster.State()
	return slices.ContainsFunc(c.Volumes, func(mount container.Mount) bool {
		v := s.VolumeByName(mount.Volume)
		return v == nil || v.Phase == state.PhaseActive && v.Placement.Primary != m.self
	})
}

// superseded says that a container went away from this node, as is recorded, or that another one
// has its place by now. When their volume is back, the follower makes or starts the one that is
// meant; both would write.
func superseded(s *state.State, self volume.NodeID, c container.Use) bool {
	if container.IsReplaced(c.Name) {
		return true
	}
	for _, mount := range c.Volumes {
		v := s.VolumeByName(mount.Volume)
		if v == nil {
			continue
		}
		for _, r := range s.ContainersOf(v.ID) {
			if r.Left[self] == c.Container {
				return true
			}
		}
	}
	return false
}

// mayStart says that every volume of a container can be mounted here now.
func (m *member) mayStart(c container.Use) bool {
	s := m.cluster.State()
	for _, mount := range c.Volumes {
		v := s.VolumeByName(mount.Volume)
		if v == nil || v.Phase != state.PhaseActive || v.Placement.Primary != m.self {
			return false
		}
	}
	return true
}
