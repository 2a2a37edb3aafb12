package daemon

import (
	"context"
	"sync"
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
	engine container.Engine // nil on a node without containers
	now    func() time.Time
	// name and id translate between what Docker calls a volume and what it is.
	name func(volume.ID) string
	id   func(name string) (volume.ID, bool)

	mu    sync.Mutex
	since time.Time // when the engine before this one was last seen to go away
}

func (u *use) Mounting(id volume.ID, mount string) { u.mounts.Mounting(string(id), mount, u.now()) }
func (u *use) Mounted(id volume.ID, mount string)  { u.mounts.Mounted(string(id), mount, u.now()) }
func (u *use) MountFailed(id volume.ID, mount string) {
	u.mounts.MountFailed(string(id), mount, u.now())
}
func (u *use) Unmounted(id volume.ID, mount string) { u.mounts.Unmounted(string(id), mount, u.now()) }
func (u *use) Idle(id volume.ID) bool               { return u.mounts.Idle(string(id)) }

// engineGone notes that the engine went away: mounts older than this belong to no
// container that is just being started.
func (u *use) engineGone() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.since = u.now()
}

// Refresh implements agent.Use.
func (u *use) Refresh(ctx context.Context, mounted []volume.ID) (map[volume.ID][]volume.Holder, error) {
	u.mu.Lock()
	view := plugin.View{At: u.now(), EngineSince: u.since}
	u.mu.Unlock()
	for _, id := range mounted {
		view.Mounted = append(view.Mounted, string(id))
	}
	var err error
	if u.engine == nil {
		view.Known = true
	} else {
		ctx, cancel := context.WithTimeout(ctx, engineTimeout)
		defer cancel()
		var all []container.Use
		all, err = u.engine.Users(ctx)
		view.Known = err == nil
		for _, c := range all {
			for _, m := range c.Volumes {
				if id, ok := u.id(m.Volume); ok {
					view.Containers = append(view.Containers, plugin.ContainerMount{
						Volume: string(id), Container: c.Container, Name: c.Name, Running: c.State.Live(),
					})
				}
			}
		}
	}
	got := u.mounts.Reconcile(view, u.now())
	out := make(map[volume.ID][]volume.Holder, len(got.InUse))
	for id, holders := range got.InUse {
		out[volume.ID(id)] = holders
	}
	return out, err
}

// followEngine wakes the agent when a container comes or goes, and makes the engine
// find our driver whenever it has (re)started. It returns when ctx ends.
func (u *use) followEngine(ctx context.Context, wake func(), activated func(error)) {
	if u.engine == nil {
		return
	}
	// Activate asks our own plugin through the engine; it must not hold up Follow.
	connected := make(chan struct{}, 1)
	var helper sync.WaitGroup
	helper.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-connected:
			}
			actx, cancel := context.WithTimeout(ctx, time.Minute)
			activated(u.engine.Activate(actx))
			cancel()
		}
	})
	defer helper.Wait()
	for ctx.Err() == nil {
		u.engine.Follow(ctx, func() {
			select {
			case connected <- struct{}{}:
			default:
			}
			wake()
		}, wake)
		u.engineGone()
		wake()
		pause(ctx, time.Second)
	}
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
