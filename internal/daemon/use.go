package daemon

import (
	"context"
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/plugin"
)

// engineTimeout bounds how long the agent waits for the container engine. An engine
// that boots may itself be waiting for us.
const engineTimeout = 10 * time.Second

// use is agent.Use: Docker's hints held against the engine's containers.
type use struct {
	mounts plugin.Mounts
	engine container.Engine   // nil on a node without containers
	watch  *container.Watcher // of engine
	now    func() time.Time
	// id is the volume that Docker calls by this name.
	id func(name string) (volume.ID, bool)
}

func (u *use) Found(id volume.ID)                  { u.mounts.Found(string(id), u.now()) }
func (u *use) Mounting(id volume.ID, mount string) { u.mounts.Mounting(string(id), mount, u.now()) }
func (u *use) Mounted(id volume.ID, mount string)  { u.mounts.Mounted(string(id), mount, u.now()) }
func (u *use) MountFailed(id volume.ID, mount string) {
	u.mounts.MountFailed(string(id), mount, u.now())
}
func (u *use) Unmounted(id volume.ID, mount string) { u.mounts.Unmounted(string(id), mount, u.now()) }
func (u *use) Idle(id volume.ID) bool               { return u.mounts.Idle(string(id)) }

// Refresh implements agent.Use.
func (u *use) Refresh(ctx context.Context, mounted []volume.ID) (map[volume.ID][]volume.Holder, error) {
	view, err := u.look(ctx)
	for _, id := range mounted {
		view.Mounted = append(view.Mounted, string(id))
	}
	got := u.mounts.Reconcile(view, u.now())
	out := make(map[volume.ID][]volume.Holder, len(got.InUse))
	for id, holders := range got.InUse {
		out[volume.ID(id)] = holders
	}
	return out, err
}

// starting are the containers that use one of these volumes and may be about to run.
func (u *use) starting(ctx context.Context, ids map[volume.ID]bool) (names []string, err error) {
	view, err := u.look(ctx)
	if err != nil {
		return nil, err
	}
	for id := range ids {
		names = append(names, u.mounts.Starting(string(id), view, u.now())...)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// look is what the engine shows.
func (u *use) look(ctx context.Context) (view plugin.View, err error) {
	view.At = u.now()
	if u.engine == nil {
		view.Known = true
	} else {
		view.EngineSince = u.watch.Health().Lost
		ctx, cancel := context.WithTimeout(ctx, engineTimeout)
		defer cancel()
		var all []container.Use
		all, err = u.engine.Users(ctx)
		view.Known = err == nil
		for _, c := range all {
			for _, m := range c.Volumes {
				if id, ok := u.id(m.Volume); ok {
					view.Containers = append(view.Containers, plugin.ContainerMount{
						Volume: string(id), Container: c.Container, Name: c.Name, Service: container.SwarmService(c.Labels),
						Follows: follows(c), Running: c.State.Live(),
					})
				}
			}
		}
	}
	return view, err
}

// pause waits, or less when ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
