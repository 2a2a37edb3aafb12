package container

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// createTimeout covers a create that mounts volumes, which takes as long as a start.
const createTimeout = startTimeout

// notFound turns the client's error into ours.
func notFound(err error) error {
	if cerrdefs.IsNotFound(err) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}

// Inspect says how a container was made and how it is.
func (d *Docker) Inspect(ctx context.Context, ref string) (Captured, error) {
	return ask(ctx, d, "inspect container", callTimeout, func(ctx context.Context, c *client.Client) (Captured, error) {
		info, err := c.ContainerInspect(ctx, ref, client.ContainerInspectOptions{})
		if err != nil {
			return Captured{}, notFound(err)
		}
		got, err := Capture(info.Raw, d.Driver)
		if err != nil {
			return Captured{}, err
		}
		if got.Spec.Image.Layers, err = d.layersOf(ctx, c, got.Spec.Image.ID); err != nil {
			return Captured{}, err
		}
		for i := range got.Spec.Networks {
			n := &got.Spec.Networks[i]
			if predefined(n.Name) {
				continue
			}
			net, err := c.NetworkInspect(ctx, n.Name, client.NetworkInspectOptions{})
			if cerrdefs.IsNotFound(err) {
				continue
			}
			if err != nil {
				return Captured{}, err
			}
			if n.Definition, n.Driver, err = defineNetwork(net.Raw, n.Endpoint); err != nil {
				return Captured{}, err
			}
		}
		return got, nil
	})
}

// layersOf are the layers of an image, by its ID; "" when it is not here: a container outlives its
// image's removal. They are asked for once: containers are inspected while clients wait for them.
func (d *Docker) layersOf(ctx context.Context, c *client.Client, image string) (string, error) {
	d.mu.Lock()
	known, ok := d.layers[image]
	d.mu.Unlock()
	if ok {
		return known, nil
	}
	got, err := c.ImageInspect(ctx, image)
	switch {
	case cerrdefs.IsNotFound(err):
		return "", nil
	case err != nil:
		return "", err
	}
	layers := layersOf(got.RootFS.Layers)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.layers == nil || len(d.layers) >= maxLayers {
		d.layers = map[string]string{}
	}
	d.layers[image] = layers
	return layers, nil
}

// maxLayers bounds of how many images the layers are remembered.
const maxLayers = 1000

// defineNetwork makes the request for a network like this one. Only bridges are made:
// others are part of something larger, or belong to a machine's interfaces. The
// addresses are kept where the container has a fixed one; else the engine chooses.
func defineNetwork(raw, endpoint []byte) (definition json.RawMessage, driver string, err error) {
	var n struct {
		Name, Driver, Scope  string
		EnableIPv6, Internal bool
		IPAM                 map[string]any
		Attachable           bool
		Options, Labels      map[string]string
	}
	if err := unmarshalExact(raw, &n); err != nil {
		return nil, "", fmt.Errorf("reading what the engine says of a network: %w", err)
	}
	if n.Driver != "bridge" || n.Scope != "local" {
		return nil, n.Driver, nil
	}
	var e struct {
		IPAMConfig struct{ IPv4Address, IPv6Address string }
	}
	if err := unmarshalExact(endpoint, &e); err != nil {
		return nil, "", err
	}
	if e.IPAMConfig.IPv4Address == "" && e.IPAMConfig.IPv6Address == "" {
		delete(n.IPAM, "Config")
	}
	definition, err = json.Marshal(map[string]any{
		"Name": n.Name, "CheckDuplicate": true, "Driver": n.Driver, "EnableIPv6": n.EnableIPv6, "Internal": n.Internal,
		"Attachable": n.Attachable, "IPAM": n.IPAM, "Options": n.Options, "Labels": n.Labels,
	})
	return definition, n.Driver, err
}

// Target is what Preflight wants to know of this engine.
func (d *Docker) Target(ctx context.Context) (Target, error) {
	return ask(ctx, d, "list networks and containers", callTimeout, func(ctx context.Context, c *client.Client) (Target, error) {
		networks, err := c.NetworkList(ctx, client.NetworkListOptions{})
		if err != nil {
			return Target{}, err
		}
		containers, err := d.all(ctx, c)
		if err != nil {
			return Target{}, err
		}
		t := Target{Known: true, Containers: map[string]string{}}
		for _, n := range networks.Items {
			t.Networks = append(t.Networks, n.Name)
			for _, pool := range n.IPAM.Config {
				if n.Scope == "local" && pool.Subnet.IsValid() { // those of a Swarm are counted apart
					t.Subnets = append(t.Subnets, SubnetOf{pool.Subnet, n.Name})
				}
			}
		}
		for _, s := range containers {
			for _, name := range s.Names {
				// With a link a container is called by another name below its partner's.
				if name = strings.TrimPrefix(name, "/"); !strings.Contains(name, "/") {
					t.Containers[name] = s.ID
					t.Published = append(t.Published, publishedOfSummary(name, s)...)
				}
			}
		}
		return t, nil
	})
}

// Recreate implements Engine.
func (d *Docker) Recreate(ctx context.Context, s Spec, known Known, stays func(ctx context.Context, id string) error) (string, error) {
	return Recreate(ctx, dockerMaker{d}, s, known, stays)
}

// CleanUp implements Engine.
func (d *Docker) CleanUp(ctx context.Context, name string) error {
	return CleanUp(ctx, dockerMaker{d}, name)
}

// Discard implements Engine.
func (d *Docker) Discard(ctx context.Context, name, id string) error {
	return Discard(ctx, dockerMaker{d}, name, id)
}

// Said implements Engine.
func (d *Docker) Said(ctx context.Context, id string, lines int) (string, error) {
	return ask(ctx, d, "read the log of container", callTimeout, func(ctx context.Context, c *client.Client) (string, error) {
		info, err := c.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
		if err != nil {
			return "", notFound(err)
		}
		r, err := c.ContainerLogs(ctx, id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Tail: strconv.Itoa(lines)})
		if err != nil {
			return "", notFound(err)
		}
		defer r.Close()
		var said tailWriter
		if at := info.Container.Config; at != nil && at.Tty {
			_, err = io.Copy(&said, r)
		} else {
			_, err = stdcopy.StdCopy(&said, &said, r)
		}
		return strings.TrimSpace(string(said)), err
	})
}

// tailWriter keeps the end of what is written to it.
type tailWriter []byte

func (w *tailWriter) Write(b []byte) (int, error) {
	*w = append(*w, b...)
	*w = (*w)[max(0, len(*w)-execOutput):]
	return len(b), nil
}

// StopContainer implements Engine.
func (d *Docker) StopContainer(ctx context.Context, id string) error {
	_, err := ask(ctx, d, "stop container", startTimeout, func(ctx context.Context, c *client.Client) (client.ContainerStopResult, error) {
		r, err := c.ContainerStop(ctx, id, client.ContainerStopOptions{})
		return r, notFound(err)
	})
	return err
}

// execOutput is how much of what a command says is kept, and execLook the time between two
// looks at whether it has ended.
const (
	execOutput = 4 << 10
	execLook   = 5 * time.Millisecond
)

// Exec implements Engine.
func (d *Docker) Exec(ctx context.Context, id string, command []string) (string, error) {
	return ask(ctx, d, "run a command in container", startTimeout, func(ctx context.Context, c *client.Client) (string, error) {
		dir := ""
		if info, err := c.ContainerInspect(ctx, id, client.ContainerInspectOptions{}); err != nil {
			return "", NotBegun{Why: notFound(err)}
		} else if at := info.Container.Config; at != nil {
			dir = execDir(at.Labels, at.WorkingDir)
		}
		made, err := c.ExecCreate(ctx, id, client.ExecCreateOptions{Cmd: command, WorkingDir: dir, AttachStdout: true, AttachStderr: true})
		if err != nil {
			return "", NotBegun{Why: notFound(err)}
		}
		conn, err := c.ExecAttach(ctx, made.ID, client.ExecAttachOptions{})
		if err != nil {
			return "", err
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, conn.Close)() // reading has no time limit of its own
		var said tailWriter
		_, err = stdcopy.StdCopy(&said, &said, conn.Reader)
		text := strings.TrimSpace(string(said))
		if ctx.Err() != nil {
			return text, context.Cause(ctx)
		}
		if err != nil {
			return text, fmt.Errorf("reading what it says: %w", err)
		}
		// The engine knows how it ended a little later than what it said.
		for {
			end, err := c.ExecInspect(ctx, made.ID, client.ExecInspectOptions{})
			switch {
			case err != nil:
				return text, err
			case end.Running:
				if !rest(ctx, execLook) {
					return text, context.Cause(ctx)
				}
				continue
			case end.ExitCode != 0:
				return text, &ExitError{Code: end.ExitCode, Said: text}
			}
			return text, nil
		}
	})
}

// rest returns after d, or false at once when ctx ends.
func rest(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Retire implements Engine.
func (d *Docker) Retire(ctx context.Context, id string) error {
	_, err := ask(ctx, d, "update container", callTimeout, func(ctx context.Context, c *client.Client) (client.ContainerUpdateResult, error) {
		r, err := c.ContainerUpdate(ctx, id, client.ContainerUpdateOptions{
			RestartPolicy: &container.RestartPolicy{Name: container.RestartPolicyDisabled},
		})
		return r, notFound(err)
	})
	return err
}

// dockerMaker is the engine step by step.
type dockerMaker struct{ d *Docker }

// Find looks the name up in the list: asked for "db", an engine without a container of that
// name describes one whose ID begins with db.
func (m dockerMaker) Find(ctx context.Context, name string) (Captured, error) {
	id, err := ask(ctx, m.d, "list containers", callTimeout, func(ctx context.Context, c *client.Client) (string, error) {
		list, err := m.d.all(ctx, c)
		if err != nil {
			return "", err
		}
		for _, s := range list {
			if slices.Contains(s.Names, "/"+name) {
				return s.ID, nil
			}
		}
		return "", fmt.Errorf("container %s: %w", name, ErrNotFound)
	})
	if err != nil {
		return Captured{}, err
	}
	return m.d.Inspect(ctx, id)
}

func (m dockerMaker) Rename(ctx context.Context, id, name string) error {
	_, err := ask(ctx, m.d, "rename container", callTimeout, func(ctx context.Context, c *client.Client) (client.ContainerRenameResult, error) {
		return c.ContainerRename(ctx, id, client.ContainerRenameOptions{NewName: name})
	})
	return err
}

func (m dockerMaker) Start(ctx context.Context, id string) error { return m.d.StartAgain(ctx, id) }

// Remove leaves running containers and all volumes alone.
func (m dockerMaker) Remove(ctx context.Context, id string) error {
	_, err := ask(ctx, m.d, "remove container", startTimeout, func(ctx context.Context, c *client.Client) (client.ContainerRemoveResult, error) {
		r, err := c.ContainerRemove(ctx, id, client.ContainerRemoveOptions{})
		return r, notFound(err)
	})
	return err
}

func (m dockerMaker) Stop(ctx context.Context, id string) error { return m.d.StopContainer(ctx, id) }

func (m dockerMaker) Discard(ctx context.Context, id string) error { return m.discard(ctx, id, false) }

func (m dockerMaker) End(ctx context.Context, id string) error { return m.discard(ctx, id, true) }

// discard removes what flocker has made. An image with a VOLUME has one made for each container.
func (m dockerMaker) discard(ctx context.Context, id string, force bool) error {
	got, err := m.d.Inspect(ctx, id)
	options := client.ContainerRemoveOptions{Force: force, RemoveVolumes: err == nil && got.Spec.spares(m.d.Driver)}
	_, err = ask(ctx, m.d, "remove container", startTimeout, func(ctx context.Context, c *client.Client) (client.ContainerRemoveResult, error) {
		r, err := c.ContainerRemove(ctx, id, options)
		return r, notFound(err)
	})
	return err
}

func (m dockerMaker) Create(ctx context.Context, name string, s Spec) (id string, err error) {
	image, err := m.d.LocalImage(ctx, s.Image)
	if err != nil {
		return "", err
	}
	return ask(ctx, m.d, "create container "+s.Name, createTimeout, func(ctx context.Context, c *client.Client) (string, error) {
		// A volume that the engine does not find is made by it as a local one, and a
		// database would begin empty.
		for _, v := range s.Volumes(m.d.Driver) {
			got, err := c.VolumeInspect(ctx, v, client.VolumeInspectOptions{})
			if err != nil {
				return "", err
			}
			if got.Volume.Driver != m.d.Driver {
				return "", fmt.Errorf("volume %s is of driver %s on this node and hides the flocker volume", v, got.Volume.Driver)
			}
		}
		if err := m.d.makeNetworks(ctx, c, s.Networks, map[string]string{}); err != nil {
			return "", err
		}
		body, others, err := createRequest(s, image)
		if err != nil {
			return "", err
		}
		id, err := post(ctx, c, "/containers/create", url.Values{"name": {name}}, body)
		if err != nil {
			return "", err
		}
		err = m.finish(ctx, c, id, s, others)
		if err != nil {
			_, rerr := c.ContainerRemove(context.WithoutCancel(ctx), id, client.ContainerRemoveOptions{})
			err = errors.Join(err, rerr)
		}
		return id, err
	})
}

// finish connects a new container to the other networks and looks at its volumes.
func (m dockerMaker) finish(ctx context.Context, c *client.Client, id string, s Spec, others []Network) error {
	for _, n := range others {
		body, err := json.Marshal(map[string]any{"Container": id, "EndpointConfig": n.Endpoint})
		if err != nil {
			return err
		}
		if _, err := post(ctx, c, "/networks/"+url.PathEscape(n.Name)+"/connect", nil, body); err != nil {
			return fmt.Errorf("network %s: %w", n.Name, err)
		}
	}
	info, err := c.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	if err != nil {
		return err
	}
	got, err := Capture(info.Raw, m.d.Driver)
	if err != nil {
		return err
	}
	return sameVolumes(s, got.Spec, m.d.Driver)
}

// sameVolumes says that wherever s mounts a volume of the driver, got does.
func sameVolumes(s, got Spec, driver string) error {
	at := map[string]MountPoint{}
	for _, m := range got.Mounts {
		at[m.Destination] = m
	}
	for _, m := range s.Mounts {
		if m.Driver != driver || m.Type != "volume" {
			continue
		}
		if g := at[m.Destination]; g.Name != m.Name || g.Driver != driver {
			return fmt.Errorf("%s would not be the flocker volume %s but %q of driver %q", m.Destination, m.Name, g.Name, g.Driver)
		}
	}
	return nil
}

// createRequest is the body that makes a container, and the networks that it has to be
// connected to afterwards: older engines take one only.
func createRequest(s Spec, image string) (body []byte, others []Network, err error) {
	var config map[string]any
	var host struct{ NetworkMode string }
	if err := unmarshalExact(s.Config, &config); err != nil {
		return nil, nil, err
	}
	if err := json.Unmarshal(s.HostConfig, &host); err != nil {
		return nil, nil, err
	}
	config["Image"], config["HostConfig"] = image, s.HostConfig
	first := host.NetworkMode
	if first == "default" || first == "" {
		first = "bridge"
	}
	for _, n := range s.Networks {
		switch {
		case n.Name != first:
			others = append(others, n)
		case n.Name == "bridge" || !predefined(n.Name):
			config["NetworkingConfig"] = map[string]any{"EndpointsConfig": map[string]any{n.Name: n.Endpoint}}
		}
	}
	body, err = json.Marshal(config)
	return body, others, err
}

// makeNetworks makes what lacks, and notes the IDs of that.
func (d *Docker) makeNetworks(ctx context.Context, c *client.Client, networks []Network, made map[string]string) error {
	d.making.Lock()
	defer d.making.Unlock()
	for _, n := range networks {
		if predefined(n.Name) {
			continue
		}
		_, err := c.NetworkInspect(ctx, n.Name, client.NetworkInspectOptions{})
		if !cerrdefs.IsNotFound(err) {
			if err != nil {
				return err
			}
			continue
		}
		if len(n.Definition) == 0 {
			return fmt.Errorf("the network %s is not on this node", n.Name)
		}
		id, err := post(ctx, c, "/networks/create", nil, n.Definition)
		if err != nil {
			return fmt.Errorf("network %s: %w", n.Name, err)
		}
		made[n.Name] = id
	}
	return nil
}

// MakeNetworks implements Engine.
func (d *Docker) MakeNetworks(ctx context.Context, s Spec) (map[string]string, error) {
	made := map[string]string{}
	_, err := ask(ctx, d, "make the networks of container "+s.Name, callTimeout, func(ctx context.Context, c *client.Client) (struct{}, error) {
		return struct{}{}, d.makeNetworks(ctx, c, s.Networks, made)
	})
	return made, err
}

// RemoveNetwork implements Engine. The engine itself keeps a network only for what runs.
func (d *Docker) RemoveNetwork(ctx context.Context, id string) error {
	_, err := ask(ctx, d, "remove network", callTimeout, func(ctx context.Context, c *client.Client) (struct{}, error) {
		list, err := c.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("network", id)})
		if err == nil && len(list.Items) > 0 {
			err = ErrInUse
		}
		if err == nil {
			_, err = c.NetworkRemove(ctx, id, client.NetworkRemoveOptions{})
		}
		if cerrdefs.IsNotFound(err) {
			err = nil
		}
		return struct{}{}, err
	})
	return err
}

// post sends JSON of our own to the engine and returns the ID in its answer. The
// client's own methods would drop every field that this version of it does not know.
func post(ctx context.Context, c *client.Client, path string, query url.Values, body []byte) (id string, err error) {
	dial := c.Dialer()
	tr := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		DisableKeepAlives: true,
	}
	defer tr.CloseIdleConnections()
	u := url.URL{Scheme: "http", Host: client.DummyHost, Path: "/v" + c.ClientVersion() + path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var answer struct {
		ID      string `json:"Id"`
		Message string `json:"message"`
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", err
	}
	if len(text) > 0 {
		if err := json.Unmarshal(text, &answer); err != nil && resp.StatusCode/100 == 2 {
			return "", fmt.Errorf("reading the engine's answer: %w", err)
		}
	}
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return "", fmt.Errorf("%w: %s", ErrNotFound, answer.Message)
	case resp.StatusCode/100 != 2:
		return "", fmt.Errorf("%s (%s)", strings.TrimSpace(answer.Message), resp.Status)
	}
	return answer.ID, nil
}

// imageTimeout bounds how long nothing of an image may come.
const imageTimeout = 15 * time.Minute

// keepTag is the name of an image here that cannot have its user's name: images
// without any are what people prune.
func keepTag(i Image) string {
	_, hex, _ := strings.Cut(i.ID, ":")
	return "flocker/followed:" + hex[:min(12, len(hex))]
}

// LocalImage implements Engine.
func (d *Docker) LocalImage(ctx context.Context, i Image) (string, error) {
	return ask(ctx, d, "inspect image", callTimeout, func(ctx context.Context, c *client.Client) (string, error) {
		for _, ref := range []string{i.Ref, i.ID, keepTag(i)} {
			if ref == "" {
				continue
			}
			got, err := c.ImageInspect(ctx, ref)
			if cerrdefs.IsNotFound(err) || cerrdefs.IsInvalidArgument(err) {
				continue
			}
			if err != nil {
				return "", err
			}
			if got.ID == i.ID || i.Layers != "" && layersOf(got.RootFS.Layers) == i.Layers {
				return ref, nil
			}
		}
		return "", fmt.Errorf("image %s: %w on this node", i.Ref, ErrNotFound)
	})
}

// SaveImage implements Engine.
func (d *Docker) SaveImage(ctx context.Context, i Image) (io.ReadCloser, error) {
	ref, err := d.LocalImage(ctx, i)
	if err != nil {
		return nil, err
	}
	c, err := d.connect(ctx)
	if err != nil {
		return nil, err
	}
	// By its ID, so that the archive brings no names along that mean something else there.
	got, err := c.ImageInspect(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("container engine: inspect image: %w", notFound(err))
	}
	r, err := c.ImageSave(ctx, []string{got.ID})
	if err != nil {
		return nil, fmt.Errorf("container engine: save image: %w", notFound(err))
	}
	return r, nil
}

// LoadImage implements Engine.
func (d *Docker) LoadImage(ctx context.Context, i Image, archive io.Reader) error {
	c, err := d.connect(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, imageTimeout)
	defer cancel()
	r, err := c.ImageLoad(ctx, archive)
	if err != nil {
		return fmt.Errorf("container engine: load image: %w", err)
	}
	defer r.Close()
	// What went wrong stands in the answer, which the engine begins before it knows.
	loaded := i.ID
	for dec := json.NewDecoder(r); ; {
		var line struct {
			Stream string `json:"stream"`
			Error  string `json:"error"`
		}
		err := dec.Decode(&line)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("container engine: load image: %w", err)
		}
		if line.Error != "" {
			return fmt.Errorf("container engine: load image: %s", line.Error)
		}
		if _, id, ok := strings.Cut(line.Stream, "Loaded image ID: "); ok {
			loaded = strings.TrimSpace(id)
		}
	}
	target := i.Ref
	if _, err := c.ImageInspect(ctx, i.Ref); !cerrdefs.IsNotFound(err) || strings.Contains(i.Ref, "@") || strings.HasPrefix(i.Ref, "sha256:") {
		target = keepTag(i) // the name is taken here, or is none
	}
	if _, err := c.ImageTag(ctx, client.ImageTagOptions{Source: loaded, Target: target}); err != nil {
		return fmt.Errorf("container engine: name image: %w", err)
	}
	_, err = d.LocalImage(ctx, i)
	return err
}
