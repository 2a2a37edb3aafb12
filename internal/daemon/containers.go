package daemon

import (
	"context"
	"fmt"
	"slices"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// containers describes those that follow their volumes, for people.
func (v view) containers() (out []api.Container) {
	for r := range v.state.Containers() {
		c := api.Container{
			Name: r.Name, Volumes: []string{}, Node: v.ref(r.Node), Image: r.Image.Ref, Run: r.Run, State: "missing",
			Obstacles: r.Obstacles, Blocked: r.Blocked,
		}
		for _, cv := range r.Volumes {
			name := string(cv.ID)
			if vol := v.state.Volume(cv.ID); vol != nil {
				name = vol.Name
			}
			c.Volumes = append(c.Volumes, name)
		}
		if h, ok := v.heard(r.Node); !ok || h.Age > v.stale {
			c.State = "unknown"
		}
		key := r.RecordKey()
		for n := range v.state.Nodes() {
			h, ok := v.heard(n.ID)
			i := slices.IndexFunc(h.Followed, func(f volume.Followed) bool { return f.Record == key })
			if !ok || h.Age > v.stale || i < 0 {
				continue
			}
			f := h.Followed[i]
			if n.ID == r.Node && f.State != "" {
				c.State = f.State
			}
			if f.LacksImage && n.ID != r.Node && mayGetImage(v.state, r, n.ID) {
				c.LacksImage = append(c.LacksImage, v.ref(n.ID))
			}
			if f.Problem != "" {
				c.Problems = append(c.Problems, n.Name+": "+f.Problem)
			}
		}
		out = append(out, c)
	}
	return out
}

// Containers implements api.Backend.
func (m *member) Containers(context.Context) ([]api.Container, error) {
	return m.view().containers(), nil
}

// ForgetContainer implements api.Backend.
func (m *member) ForgetContainer(ctx context.Context, name, node string) error {
	s := m.cluster.State()
	var on volume.NodeID
	if node != "" {
		var err error
		if on, err = findNode(s, node); err != nil {
			return err
		}
	}
	var found []*state.Container
	for c := range s.Containers() {
		if c.Name == name && (on == "" || c.Node == on) {
			found = append(found, c)
		}
	}
	switch len(found) {
	case 0:
		return volume.Errorf(volume.CodeNotFound, "no container %q follows its volumes", name).WithHint("see `flockctl container list`")
	case 1:
		c := found[0]
		return m.asOperator(ctx, state.DropContainer{Record: c.RecordKey(), Node: c.Node, Changed: c.Changed})
	}
	return volume.Errorf(volume.CodeConflict, "%d containers are named %q", len(found), name).
		WithHint("%s", fmt.Sprintf("say with --node which one; they are on %s and %s", s.NodeName(found[0].Node), s.NodeName(found[1].Node)))
}
