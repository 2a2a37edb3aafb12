package container

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"
)

// callTimeout bounds one question to the engine. A healthy one answers in
// milliseconds; one that boots does not answer at all.
const callTimeout = 10 * time.Second

// activateTimeout is longer: the engine asks every volume driver, and a dead one
// costs 15 s.
const activateTimeout = 60 * time.Second

// startTimeout covers a Mount that takes all the time that an engine gives it.
const startTimeout = 3 * time.Minute

// Docker is the Engine at a socket. The zero value with a Driver is ready and takes
// the socket from DOCKER_HOST, else Docker's default.
type Docker struct {
	Host   string // like unix:///run/docker.sock; empty: the environment's
	Driver string // the name of our volume driver

	making sync.Mutex // of networks: two of a name must not be made
	lists  listings

	mu     sync.Mutex
	client *client.Client      // nil until an engine answered
	hosts  map[string][]string // of the containers with links that were seen last, by ID
	layers map[string]string   // of images, by ID: what has an ID never changes
}

var _ Engine = (*Docker)(nil)

// connect returns a client that has agreed on an API version. It is made anew after
// an engine went away, since the next one may be of another version.
func (d *Docker) connect(ctx context.Context) (*client.Client, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.client != nil {
		return d.client, nil
	}
	opts := []client.Opt{client.FromEnv}
	if d.Host != "" {
		opts = append(opts, client.WithHost(d.Host))
	}
	c, err := client.New(opts...)
	if err != nil {
		return nil, fmt.Errorf("container engine: %w", err)
	}
	// The client would do this itself at the first call, but not safely at two calls
	// at a time.
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := c.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true}); err != nil {
		c.Close()
		return nil, fmt.Errorf("container engine: %w", err)
	}
	d.client = c
	return c, nil
}

// disconnect forgets the client, unless another took its place.
func (d *Docker) disconnect(c *client.Client) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.client == c {
		d.client = nil
	}
	c.Close()
}

// Close ends idle connections.
func (d *Docker) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.client == nil {
		return nil
	}
	c := d.client
	d.client = nil
	return c.Close()
}

// ask does one question within a time.
func ask[T any](ctx context.Context, d *Docker, what string, limit time.Duration, f func(context.Context, *client.Client) (T, error)) (T, error) {
	var none T
	c, err := d.connect(ctx)
	if err != nil {
		return none, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	v, err := f(ctx, c)
	if err != nil {
		return none, fmt.Errorf("container engine: %s: %w", what, err)
	}
	return v, nil
}

// Version of the engine that answers now.
func (d *Docker) Version(ctx context.Context) (Version, error) {
	return ask(ctx, d, "version", callTimeout, func(ctx context.Context, c *client.Client) (Version, error) {
		v, err := c.ServerVersion(ctx, client.ServerVersionOptions{})
		return Version{Engine: v.Version, API: c.ClientVersion()}, err
	})
}

// Info of the engine that answers now.
func (d *Docker) Info(ctx context.Context) (Info, error) {
	return ask(ctx, d, "info", callTimeout, func(ctx context.Context, c *client.Client) (Info, error) {
		got, err := c.Info(ctx, client.InfoOptions{})
		return Info{Version: got.Info.ServerVersion, LiveRestore: got.Info.LiveRestoreEnabled, Drivers: got.Info.Plugins.Volume}, err
	})
}

// Users lists the containers with volumes of our driver.
func (d *Docker) Users(ctx context.Context) ([]Use, error) {
	return ask(ctx, d, "list containers", callTimeout, func(ctx context.Context, c *client.Client) ([]Use, error) {
		list, err := d.all(ctx, c)
		if err != nil {
			return nil, err
		}
		var out []Use
		for _, s := range list {
			u := Use{Container: s.ID, State: State(s.State), Labels: s.Labels, Ports: portsOfSummary(s)}
			if len(s.Names) > 0 {
				u.Name = strings.TrimPrefix(s.Names[0], "/")
			}
			if waits(u.Name, u.Labels) {
				continue
			}
			for _, m := range s.Mounts {
				if m.Driver == d.Driver {
					u.Volumes = append(u.Volumes, Mount{
						Volume: m.Name, Driver: m.Driver, Destination: m.Destination, ReadOnly: !m.RW,
					})
				}
			}
			if len(u.Volumes) > 0 {
				out = append(out, u)
			}
		}
		return out, nil
	})
}

// Bound lists what containers and volumes have of the machine.
func (d *Docker) Bound(ctx context.Context) ([]Bound, error) {
	return ask(ctx, d, "list containers", callTimeout, func(ctx context.Context, c *client.Client) ([]Bound, error) {
		list, err := d.all(ctx, c)
		if err != nil {
			return nil, err
		}
		var out []Bound
		for _, s := range list {
			name := s.ID
			if len(s.Names) > 0 {
				name = strings.TrimPrefix(s.Names[0], "/")
			}
			for _, m := range s.Mounts {
				if m.Type == mount.TypeBind {
					out = append(out, Bound{Name: name, State: State(s.State), Source: m.Source})
				}
			}
		}
		volumes, err := c.VolumeList(ctx, client.VolumeListOptions{Filters: client.Filters{}.Add("driver", "local")})
		if err != nil {
			return nil, err
		}
		for _, v := range volumes.Items {
			// Its device may have any of these in it; those of a mount have several paths in "o".
			paths := []string{v.Mountpoint, v.Options["device"]}
			paths = append(paths, strings.FieldsFunc(v.Options["o"], func(r rune) bool { return strings.ContainsRune(",=:", r) })...)
			for _, source := range paths {
				if strings.HasPrefix(source, "/") {
					out = append(out, Bound{Name: v.Name, Volume: true, Source: source})
				}
			}
		}
		return out, nil
	})
}

// Refused looks at the stopped containers one by one: only their inspection tells the
// restart policy and why the last start failed.
func (d *Docker) Refused(ctx context.Context) ([]Use, error) {
	all, err := d.Users(ctx)
	if err != nil {
		return nil, err
	}
	var out []Use
	for _, u := range all {
		if u.State != Exited {
			continue
		}
		info, err := ask(ctx, d, "inspect container", callTimeout, func(ctx context.Context, c *client.Client) (client.ContainerInspectResult, error) {
			return c.ContainerInspect(ctx, u.Container, client.ContainerInspectOptions{})
		})
		if cerrdefs.IsNotFound(err) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		c := info.Container
		if c.State != nil && c.HostConfig != nil && mountRefused(c.State.Error) &&
			(c.HostConfig.RestartPolicy.IsAlways() || c.HostConfig.RestartPolicy.IsUnlessStopped()) {
			out = append(out, u)
		}
	}
	return out, nil
}

// mountRefused says whether a start failed at a volume driver: it refused, or could
// not be reached.
func mountRefused(failure string) bool {
	return strings.Contains(failure, "VolumeDriver.") || strings.Contains(failure, "volume plugin") || strings.Contains(failure, "/docker/plugins/")
}

// StartAgain starts a container.
func (d *Docker) StartAgain(ctx context.Context, id string) error {
	_, err := ask(ctx, d, "start container", startTimeout, func(ctx context.Context, c *client.Client) (client.ContainerStartResult, error) {
		return c.ContainerStart(ctx, id, client.ContainerStartOptions{})
	})
	return err
}

// Linking lists the running containers with the label. What was given to one when it was
// made never changes, so each is inspected once.
func (d *Docker) Linking(ctx context.Context) ([]Linking, error) {
	return ask(ctx, d, "list containers with links", callTimeout, func(ctx context.Context, c *client.Client) ([]Linking, error) {
		list, err := c.ContainerList(ctx, client.ContainerListOptions{Filters: client.Filters{}.Add("label", LabelLinks)})
		if err != nil {
			return nil, err
		}
		d.mu.Lock()
		known := d.hosts
		d.mu.Unlock()
		now := map[string][]string{}
		var out []Linking
		for _, s := range list.Items {
			hosts, ok := known[s.ID]
			if !ok {
				info, err := c.ContainerInspect(ctx, s.ID, client.ContainerInspectOptions{})
				switch {
				case cerrdefs.IsNotFound(err):
					continue // removed meanwhile
				case err != nil:
					return nil, err
				case info.Container.HostConfig != nil:
					hosts = info.Container.HostConfig.ExtraHosts
				}
			}
			now[s.ID] = hosts
			l := Linking{Label: s.Labels[LabelLinks], Hosts: hosts}
			if len(s.Names) > 0 {
				l.Name = strings.TrimPrefix(s.Names[0], "/")
			}
			out = append(out, l)
		}
		d.mu.Lock()
		d.hosts = now
		d.mu.Unlock()
		return out, nil
	})
}

// LocalVolumes lists the volumes of the engine's own driver.
func (d *Docker) LocalVolumes(ctx context.Context) ([]string, error) {
	return ask(ctx, d, "list local volumes", callTimeout, func(ctx context.Context, c *client.Client) ([]string, error) {
		list, err := c.VolumeList(ctx, client.VolumeListOptions{Filters: client.Filters{}.Add("driver", "local")})
		if err != nil {
			return nil, err
		}
		var out []string
		for _, v := range list.Items {
			out = append(out, v.Name)
		}
		return out, nil
	})
}

// Activate lists all volumes, at which the engine looks for drivers.
func (d *Docker) Activate(ctx context.Context) error {
	_, err := ask(ctx, d, "list volumes", activateTimeout, func(ctx context.Context, c *client.Client) (struct{}, error) {
		_, err := c.VolumeList(ctx, client.VolumeListOptions{})
		return struct{}{}, err
	})
	return err
}

// Follow reads the engine's events.
func (d *Docker) Follow(ctx context.Context, connected, changed func()) error {
	c, err := d.connect(ctx)
	if err != nil {
		return err
	}
	defer d.disconnect(c)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := c.Events(ctx, client.EventsListOptions{Filters: client.Filters{}.Add("type", "container", "volume", "image", "network")})
	// Events has returned after the engine's answer, or with an error that waits.
	select {
	case err := <-stream.Err:
		return fmt.Errorf("container engine: events: %w", err)
	default:
		connected()
	}
	for {
		select {
		case m := <-stream.Messages:
			if concerns(m) {
				changed()
			}
		case err := <-stream.Err:
			return fmt.Errorf("container engine: events: %w", err)
		}
	}
}

// concerns leaves out what comes often and changes nobody's use of a volume: health
// checks and exec. An image or a network that comes may be what a container has lacked.
func concerns(m events.Message) bool {
	action := string(m.Action)
	switch m.Type {
	case events.ImageEventType:
		return slices.Contains([]string{"load", "pull", "tag", "import"}, action)
	case events.NetworkEventType:
		return action == "create"
	}
	return !strings.HasPrefix(action, "exec_") && !strings.HasPrefix(action, "health_status") && action != "top"
}
