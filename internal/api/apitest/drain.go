package apitest

import (
	"context"
	"slices"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

// DrainNode implements api.Backend. What can leave is under way in the answer, and gone
// when Drain is called next.
func (f *Fake) DrainNode(ctx context.Context, ref string, req api.DrainRequest) (api.Drain, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "DrainNode", ref, req); err != nil {
		return api.Drain{}, err
	}
	i, err := f.findNode(ref)
	if err != nil {
		return api.Drain{}, err
	}
	f.nodes[i].Availability, f.nodes[i].KeepReplicas = "drain", req.KeepReplicas
	f.index++
	return f.drained(i), nil
}

// Drain implements api.Backend.
func (f *Fake) Drain(ctx context.Context, ref string) (api.Drain, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Drain", ref); err != nil {
		return api.Drain{}, err
	}
	i, err := f.findNode(ref)
	if err != nil {
		return api.Drain{}, err
	}
	for _, l := range f.drained(i).Left {
		if l.Doing != "" {
			f.move(f.nodes[i], l)
		}
	}
	return f.drained(i), nil
}

// drained is what a node has left.
func (f *Fake) drained(i int) api.Drain {
	n := f.nodes[i]
	d := api.Drain{Node: n.NodeRef, Availability: n.Availability, KeepReplicas: n.KeepReplicas, Left: []api.LeftCopy{}}
	if n.Availability != "drain" {
		return d
	}
	for _, v := range f.volumes {
		l := api.LeftCopy{Volume: v.ID, Name: v.Name, Role: volume.RoleReplica}
		switch {
		case !v.Deleted.IsZero():
			continue
		case v.Primary.ID == n.ID && len(v.Holders) > 0:
			l.Role, l.Why = volume.RolePrimary, "in use by container "+v.Holders[0].Name+" on "+n.Name+": stop it there and start it on another node"
		case v.Primary.ID == n.ID && len(v.Replicas) == 0:
			l.Role, l.Why = volume.RolePrimary, "zone default has no other node"
		case v.Primary.ID == n.ID:
			l.Role, l.Doing = volume.RolePrimary, "moving to "+v.Replicas[0].Node.Name
		case n.KeepReplicas || !slices.ContainsFunc(v.Replicas, func(r api.Replica) bool { return r.Node.ID == n.ID }):
			continue
		default:
			l.Doing = "its copy is being taken away"
		}
		d.Left = append(d.Left, l)
	}
	d.Done = len(d.Left) == 0
	return d
}

// move takes one copy off a node.
func (f *Fake) move(n api.Node, l api.LeftCopy) {
	i := slices.IndexFunc(f.volumes, func(v api.Volume) bool { return v.ID == l.Volume })
	v := &f.volumes[i]
	v.Replicas = slices.Clone(v.Replicas)
	if l.Role == volume.RolePrimary {
		v.Primary, v.Replicas = v.Replicas[0].Node, v.Replicas[1:]
		return
	}
	v.Replicas = slices.DeleteFunc(v.Replicas, func(r api.Replica) bool { return r.Node.ID == n.ID })
}

// UndrainNode implements api.Backend.
func (f *Fake) UndrainNode(ctx context.Context, ref string) (api.Node, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "UndrainNode", ref); err != nil {
		return api.Node{}, err
	}
	i, err := f.findNode(ref)
	if err != nil {
		return api.Node{}, err
	}
	f.nodes[i].Availability, f.nodes[i].KeepReplicas = "active", false
	f.index++
	return f.nodes[i], nil
}

// RemoveNode implements api.Backend.
func (f *Fake) RemoveNode(ctx context.Context, ref string, req api.RemoveNodeRequest) (api.RemoveNodeReply, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "RemoveNode", ref, req); err != nil {
		return api.RemoveNodeReply{}, err
	}
	i, err := f.findNode(ref)
	if err != nil {
		return api.RemoveNodeReply{}, err
	}
	n, rep := f.nodes[i], api.RemoveNodeReply{Electing: []string{}, Lost: []string{}}
	rep.Node = n.NodeRef
	if !req.Dead && !f.drained(i).Done {
		return api.RemoveNodeReply{}, volume.Errorf(volume.CodeRefused, "node %s is not drained", n.Name).
			WithHint("move its volumes away first with `flockctl node drain %s`", n.Name)
	}
	for _, v := range f.volumes {
		if v.Primary.ID == n.ID && v.Deleted.IsZero() {
			rep.Electing = append(rep.Electing, v.Name)
		}
	}
	if len(rep.Electing) > 0 && req.ConfirmFenced != n.Name && req.ConfirmFenced != string(n.ID) {
		return api.RemoveNodeReply{}, volume.Errorf(volume.CodeRefused, "nothing proves that node %s does not write %s", n.Name, rep.Electing[0]).WithHint("make sure that it is off, and say so with --confirm-fenced %s", n.Name)
	}
	f.nodes = slices.Delete(f.nodes, i, i+1)
	f.index++
	return rep, nil
}
