package apitest

import (
	"context"
	"slices"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

func containers() []api.Container {
	return []api.Container{
		{Name: "backup", Volumes: []string{"uploads"}, Node: Beta, Image: "tools:3", State: "exited", Blocked: true,
			Obstacles: []string{"/etc/keys is the directory or file /etc/keys of its node"}},
		{Name: "shop_db_1", Volumes: []string{"pgdata"}, Node: Alpha, Image: "postgres:16", Run: true, State: "running", LacksImage: []api.NodeRef{Gamma},
			Notes: []string{"it will not publish every port on gamma: container metrics publishes port 9187/tcp there already"}},
	}
}

// Containers implements api.Backend.
func (f *Fake) Containers(ctx context.Context) ([]api.Container, error) {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "Containers"); err != nil {
		return nil, err
	}
	return slices.Clone(f.containers), nil
}

// ForgetContainer implements api.Backend.
func (f *Fake) ForgetContainer(ctx context.Context, name, node string) error {
	defer f.mu.Unlock()
	if err := f.enter(ctx, "ForgetContainer", name, node); err != nil {
		return err
	}
	i := slices.IndexFunc(f.containers, func(c api.Container) bool { return c.Name == name && (node == "" || c.Node.Name == node) })
	if i < 0 {
		return volume.Errorf(volume.CodeNotFound, "no container %q follows its volumes", name).WithHint("see `flockctl container list`")
	}
	f.containers = slices.Delete(f.containers, i, i+1)
	return nil
}
