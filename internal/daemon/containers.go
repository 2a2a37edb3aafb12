package daemon

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/placement"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// containers describes those that follow their volumes, for people.
func (v view) containers() []api.Container {
	return v.describe(slices.Collect(v.state.Containers()))
}

// containersOf describes those that follow a volume.
func (v view) containersOf(id volume.ID) []api.Container {
	return v.describe(v.state.ContainersOf(id))
}

func (v view) describe(records []*state.Container) (out []api.Container) {
	for _, r := range records {
		c := api.Container{
			Name: r.Name, Volumes: []string{}, Node: v.ref(r.Node), Image: r.Image.Ref, Run: r.Run, State: "missing",
			Obstacles: r.Obstacles, Blocked: r.Blocked, Notes: v.state.Bypasses(r),
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
			for _, text := range f.Notes {
				if !slices.Contains(c.Notes, text) {
					c.Notes = append(c.Notes, text)
				}
			}
			if f.Problem != "" {
				c.Problems = append(c.Problems, n.Name+": "+f.Problem)
			}
		}
		if text := v.apart(r); text != "" && r.Run {
			c.Problems = append(c.Problems, text)
		}
		out = append(out, c)
	}
	return out
}

// apart says that a container's volumes have primaries on different nodes, of which none
// can run it, and what is done about it; "" when they do not.
func (v view) apart(r *state.Container) string {
	var where []string
	primaries := map[volume.NodeID]bool{}
	for _, cv := range r.Volumes {
		vol := v.state.Volume(cv.ID)
		if vol == nil || vol.Placement.Primary == "" {
			continue
		}
		primaries[vol.Placement.Primary] = true
		where = append(where, fmt.Sprintf("%s on %s", vol.Name, v.state.NodeName(vol.Placement.Primary)))
	}
	if len(primaries) < 2 {
		return ""
	}
	text := "its volumes have different primaries, so it can run nowhere: " + strings.Join(where, ", ")
	if v.reunions == nil {
		return text
	}
	switch joins := placement.ReunionOf(v.reunions(), r); {
	case joins == nil:
	case joins.Doing != "":
		text += "; " + joins.Doing
	default:
		text += "; to bring them together waits: " + joins.Why
	}
	return text
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
