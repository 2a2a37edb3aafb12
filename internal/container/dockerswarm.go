package container

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"

	"github.com/flocker-io/flocker/internal/volume"
)

// labelTries is how often a node is read again that somebody else changed between our
// reading and our writing.
const labelTries = 5

// stopGrace is how long a task may take to end by default.
const stopGrace = 10 * time.Second

// memberTimeout is for an engine to describe itself.
const memberTimeout = 30 * time.Second

// SwarmMember implements Swarm.
func (d *Docker) SwarmMember(ctx context.Context) (SwarmMember, error) {
	return ask(ctx, d, "ask for its Swarm", memberTimeout, func(ctx context.Context, c *client.Client) (SwarmMember, error) {
		info, err := c.Info(ctx, client.InfoOptions{})
		if err != nil {
			return SwarmMember{}, err
		}
		s := info.Info.Swarm
		switch s.LocalNodeState {
		case swarm.LocalNodeStateActive:
		case swarm.LocalNodeStateInactive:
			return SwarmMember{}, nil
		default: // it is about to join, is locked or has failed
			return SwarmMember{}, fmt.Errorf("this node is %q in it: %s", s.LocalNodeState, s.Error)
		}
		out := SwarmMember{Node: s.NodeID}
		if s.ControlAvailable && s.Cluster != nil {
			out.Cluster = s.Cluster.ID
		}
		return out, nil
	})
}

// Swarm implements Swarm.
func (d *Docker) Swarm(ctx context.Context) (SwarmView, error) {
	return ask(ctx, d, "look at the Swarm", callTimeout, func(ctx context.Context, c *client.Client) (out SwarmView, err error) {
		nodes, err := c.NodeList(ctx, client.NodeListOptions{})
		if err != nil {
			return out, err
		}
		services, err := c.ServiceList(ctx, client.ServiceListOptions{})
		if err != nil {
			return out, err
		}
		for _, n := range nodes.Items {
			ready := n.Status.State == swarm.NodeStateReady && n.Spec.Availability == swarm.NodeAvailabilityActive
			out.Nodes = append(out.Nodes, SwarmNode{ID: n.ID, Labels: n.Spec.Labels, Ready: ready})
		}
		for _, s := range services.Items {
			if bound := boundService(s.Spec); len(bound.Volumes) > 0 {
				out.Services = append(out.Services, bound)
			}
		}
		slices.SortFunc(out.Nodes, func(a, b SwarmNode) int { return strings.Compare(a.ID, b.ID) })
		slices.SortFunc(out.Services, func(a, b volume.SwarmService) int { return strings.Compare(a.Name, b.Name) })
		return out, nil
	})
}

// boundService is what of a service matters here; without volumes it is not bound to any.
func boundService(s swarm.ServiceSpec) volume.SwarmService {
	out := volume.SwarmService{Name: s.Name, Wanted: true, Grace: stopGrace}
	if c := s.TaskTemplate.ContainerSpec; c != nil && c.StopGracePeriod != nil {
		out.Grace = *c.StopGracePeriod
	}
	if p := s.TaskTemplate.Placement; p != nil {
		out.Volumes = BoundVolumes(p.Constraints)
	}
	if r := s.Mode.Replicated; r != nil && r.Replicas != nil {
		out.Wanted = *r.Replicas > 0
	}
	if r := s.TaskTemplate.RestartPolicy; r != nil {
		out.Once = r.Condition == swarm.RestartPolicyConditionNone
		if r.MaxAttempts != nil {
			out.MaxAttempts = *r.MaxAttempts
		}
	}
	if s.Mode.ReplicatedJob != nil || s.Mode.GlobalJob != nil {
		out.Once = true
	}
	return out
}

// LabelSwarmNode implements Swarm. A node is written as it was read, with the version that
// it had then: what somebody else has changed meanwhile is not lost, but read again.
func (d *Docker) LabelSwarmNode(ctx context.Context, node string, add, remove []string) error {
	_, err := ask(ctx, d, "label a node of the Swarm", callTimeout, func(ctx context.Context, c *client.Client) (struct{}, error) {
		for tries := 1; ; tries++ {
			n, err := c.NodeInspect(ctx, node, client.NodeInspectOptions{})
			if err != nil {
				return struct{}{}, err
			}
			spec := n.Node.Spec
			labels := relabel(spec.Labels, add, remove)
			if maps.Equal(labels, spec.Labels) {
				return struct{}{}, nil
			}
			spec.Labels = labels
			_, err = c.NodeUpdate(ctx, node, client.NodeUpdateOptions{Version: n.Node.Version, Spec: spec})
			if err == nil || tries == labelTries || !outOfSequence(err) {
				return struct{}{}, err
			}
		}
	})
	return err
}

// outOfSequence says that the version of an update was not the newest. Engines give it
// different codes.
func outOfSequence(err error) bool {
	return cerrdefs.IsConflict(err) || strings.Contains(err.Error(), "update out of sequence")
}

// relabel is a copy of labels with some more and some less.
func relabel(labels map[string]string, add, remove []string) map[string]string {
	out := maps.Clone(labels)
	if out == nil {
		out = map[string]string{}
	}
	for _, l := range remove {
		delete(out, l)
	}
	for _, l := range add {
		out[l] = "true"
	}
	return out
}
