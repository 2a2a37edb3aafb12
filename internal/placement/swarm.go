package placement

import (
	"fmt"
	"slices"
	"strings"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// Swarm services are moved by Swarm: it runs their tasks where a label of a volume is, which
// the daemon keeps on the volume's primary and takes away when the tasks are to stop. Here
// it is decided whether a service is one of these, and whether it has come along.

// swarmView is what the nodes say of their Swarm. The zero value knows of no manager.
type swarmView struct {
	known    bool                           // a manager is heard of
	ready    map[string]bool                // IDs of its nodes that may get tasks
	services map[string]volume.SwarmService // those that are bound to volumes, by name
}

// add what one node says.
func (s *swarmView) add(said volume.Swarm) {
	if !said.Manages() {
		return
	}
	if !s.known {
		*s = swarmView{known: true, ready: map[string]bool{}, services: map[string]volume.SwarmService{}}
	}
	for _, id := range said.Ready {
		s.ready[id] = true
	}
	for _, svc := range said.Services {
		s.services[svc.Name] = svc
	}
}

// servicesOf are the Swarm services that use one of these volumes on a node.
func (v *View) servicesOf(volumes []*state.Volume, node volume.NodeID) (out []string) {
	n := v.Node(node)
	if n == nil {
		return nil
	}
	for _, vol := range volumes {
		c := n.Copy(vol.ID)
		if c == nil {
			continue
		}
		for _, h := range c.Holders {
			if h.Service != "" && !slices.Contains(out, h.Service) {
				out = append(out, h.Service)
			}
		}
	}
	slices.Sort(out)
	return out
}

// unbound says why the task of a Swarm service that uses a volume on a node would not go
// where the volume goes; "" when it would.
func (v *View) unbound(h volume.Holder, vol *state.Volume, n *NodeView) string {
	s, known := v.swarm.services[h.Service]
	switch {
	case !v.swarm.known:
		return fmt.Sprintf("volume %s is in use by service %s of the Swarm on %s, and no flockd on a manager of it is heard of, which could have it moved", vol.Name, h.Service, n.Name)
	case !known || !s.BoundTo(vol.Name):
		return fmt.Sprintf("volume %s is in use by service %s of the Swarm on %s, which goes along once it is bound to it: docker service update --constraint-add %s %s",
			vol.Name, h.Service, n.Name, volume.SwarmConstraint(vol.Name), h.Service)
	case s.Once:
		return fmt.Sprintf("volume %s is in use by service %s of the Swarm on %s, which Swarm does not start again once it was stopped (its restart condition is none, or it is a job)", vol.Name, h.Service, n.Name)
	}
	if s.MaxAttempts > 0 {
		return fmt.Sprintf("volume %s is in use by service %s of the Swarm on %s, which Swarm starts only so often: a task that is stopped for a move counts as an attempt, and after max_attempts (%d) it is left stopped; take restart_policy.max_attempts away (docker service update --restart-max-attempts 0 %s)",
			vol.Name, h.Service, n.Name, s.MaxAttempts, h.Service)
	}
	var more []string // without these it could run nowhere
	for _, c := range n.copies {
		other := v.volume(c.Volume)
		uses := slices.ContainsFunc(c.Holders, func(o volume.Holder) bool { return o.Container == h.Container && o.Service == h.Service })
		if other != nil && other.ID != vol.ID && uses {
			more = append(more, other.Name)
		}
	}
	if len(more) > 0 {
		return fmt.Sprintf("volume %s is in use by service %s of the Swarm on %s, which uses %s, too: Swarm services go along with one volume only", vol.Name, h.Service, n.Name, strings.Join(more, ", "))
	}
	return ""
}

// boundTo are the services that are to run where a volume is, and that Swarm starts again.
func (v *View) boundTo(vol *state.Volume) (out []string) {
	for name, s := range v.swarm.services {
		if s.BoundTo(vol.Name) && s.Wanted && s.Returns() {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// unserved is a service that had the volume before its move, is to run where it is now, and
// is not seen to; "" when there is none. Others that are bound to it may be there for another
// reason, or have not run before: they say nothing of the node.
func (v *View) unserved(vol *state.Volume) string {
	runs := v.servicesOf([]*state.Volume{vol}, vol.Placement.Primary)
	for _, name := range v.boundTo(vol) {
		if slices.Contains(vol.Moved.Services, name) && !slices.Contains(runs, name) {
			return name
		}
	}
	return ""
}

// serviceStep waits for Swarm to start what is bound to a volume that has arrived where it
// was migrated to. Where that does not come about the volume goes back, and the service with
// it, if its copy there holds all; ok is false when there is nothing to wait for any more.
func (v *View) serviceStep(vol *state.Volume) (s migrationStep, ok bool) {
	m, moved := vol.Migration, vol.Moved
	if moved == nil || moved.Attempt != state.MigrateAttempt+m.Attempt || v.Node(m.To) == nil {
		return s, false
	}
	service := v.unserved(vol)
	if service == "" {
		return s, false
	}
	s.Step.Phase = volume.MoveStarting
	s.Doing = fmt.Sprintf("on %s, where Swarm is starting service %s", v.name(m.To), service)
	if v.Now.Sub(moved.At).Abs() < startLimit {
		return s, true
	}
	home := v.Node(m.From)
	if home == nil || !home.Lease || home.Availability != state.Active || !v.complete(vol, m.From) || !v.swarm.ready[home.swarm.Node] {
		s.Doing, s.Step.Phase = "ends", volume.MoveEnding
		s.cmds = []state.Command{state.EndMigration{ID: vol.ID, Attempt: m.Attempt,
			Reason: fmt.Sprintf("it is on %s, where Swarm has not started service %s within %s (docker service ps %s)", v.name(m.To), service, startLimit, service)}}
		return s, true
	}
	s.Doing = fmt.Sprintf("goes back to %s: Swarm did not start service %s on %s within %s", home.Name, service, v.name(m.To), startLimit)
	s.cmds = []state.Command{state.BeginHandoff{ID: vol.ID, Epoch: vol.Epoch, To: m.From, Attempt: backAttempt + m.Attempt, Follow: true}}
	return s, true
}
