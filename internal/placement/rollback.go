package placement

import (
	"fmt"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// CanRollBack says which containers would be stopped, and started again, while a volume goes
// back to a snapshot. The error is why it cannot.
func CanRollBack(v *View, vol *state.Volume) (containers []string, err error) {
	refused := func(format string, args ...any) ([]string, error) {
		return nil, volume.Errorf(volume.CodeRefused, "volume %q cannot be rolled back: %s", vol.Name, fmt.Sprintf(format, args...))
	}
	n := v.Node(vol.Placement.Primary)
	switch {
	case vol.Phase != state.PhaseActive:
		return nil, volume.Errorf(volume.CodeConflict, "volume %q is %s; its rollback has to wait", vol.Name, vol.Phase)
	case vol.Migration != nil:
		return nil, volume.Errorf(volume.CodeConflict, "volume %q is being migrated to %s; its rollback has to wait", vol.Name, v.name(vol.Migration.To))
	case len(v.starting(vol)) > 0:
		return nil, volume.Errorf(volume.CodeConflict, "volume %q has just been moved, and its containers are still starting; its rollback has to wait", vol.Name)
	case n == nil:
		return refused("its primary %s is no node of the cluster", v.name(vol.Placement.Primary))
	case !n.Alive:
		return refused("its primary %s is not heard of", n.Name)
	case !n.Lease:
		return refused("its primary %s may not write: it has no lease", n.Name)
	}
	c := n.Copy(vol.ID)
	switch {
	case c == nil || !c.Exists:
		return refused("its primary %s does not say that it has a copy", n.Name)
	case c.Problem != "":
		return refused("its copy on %s has a problem: %s", n.Name, c.Problem)
	}
	g := company{volumes: []*state.Volume{vol}}
	for _, con := range v.containers[vol.ID] {
		if con.Run && con.Node == n.ID {
			g.containers = append(g.containers, con)
		}
	}
	// Its tasks are Swarm's: nobody here could stop them and have them started again.
	for _, h := range c.Holders {
		if h.Service != "" {
			return refused("service %s of the Swarm uses it; scale that to 0 first", h.Service)
		}
	}
	if s := v.boundTo(vol); len(s) > 0 {
		return refused("service %s of the Swarm has its tasks where it is; scale that to 0, or take its constraint away, first", s[0])
	}
	if users := v.others(vol, n, g); users != "" {
		return refused("%s", users)
	}
	if who := v.unrecorded(vol, n, g); who != "" {
		return nil, volume.Errorf(volume.CodeConflict, "volume %q cannot be rolled back yet: %s", vol.Name, who)
	}
	return g.names(), nil
}
