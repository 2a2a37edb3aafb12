package daemon

import (
	"context"
	"time"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/state"
)

// restartPause is the shortest time between two attempts to start one container, and
// restartMost the longest.
const (
	restartPause = 15 * time.Second
	restartMost  = 5 * time.Minute
)

// restarts starts containers again that their engine gave up because we refused a
// mount, as after a power cut of all nodes: an engine makes one attempt when it boots,
// and a quorum may take longer.
//
// Only containers all of whose volumes this node is the primary of are started: for
// any other, starting it would take the volume away from the node that has it.
type restarts struct {
	m    *member
	next map[string]attempt // by container ID
}

type attempt struct {
	at    time.Time
	pause time.Duration
}

// try makes one attempt for each container whose time has come.
func (r *restarts) try(ctx context.Context) {
	select {
	case <-r.m.agent.Fresh():
	default:
		return
	}
	refused, err := r.m.use.engine.Refused(ctx)
	if err != nil {
		return // the agent's report says that the engine does not answer
	}
	seen := map[string]attempt{}
	for _, c := range refused {
		a := r.next[c.Container]
		if r.m.mayStart(c) && !r.m.now().Before(a.at) {
			err := r.m.use.engine.StartAgain(ctx, c.Container)
			if err == nil {
				r.m.log.Info("started a container whose volume can be mounted again", "container", c.Name)
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
