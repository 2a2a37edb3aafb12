// Package containerfake is a container engine in memory, for tests: containers are
// records, but the volume driver is called in the order, with the mount IDs and with
// the omissions that were recorded from a real engine (20.10; newer ones agree).
package containerfake

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	protocol "github.com/docker/go-plugins-helpers/volume"

	"github.com/flocker-io/flocker/internal/container"
)

// Driver is the volume driver as the engine reaches it. plugin.Driver is one.
type Driver = protocol.Driver

// ErrUnreachable is what a Driver returns when there is nobody at its socket. To the
// engine it is something else than a refusal: it means "not known".
var ErrUnreachable = errors.New("dial unix /run/docker/plugins/flocker.sock: connect: no such file or directory")

// errEngineDown is what clients of a stopped engine get.
var errEngineDown = errors.New("cannot connect to the container engine: is it running?")

// unreachableFor is how long the engine tries to reach a driver before it gives up.
const unreachableFor = 15 * time.Second

// Engine is the fake. It is used by any number of goroutines; calls of the driver are
// made without a lock, as the real engine makes them.
//
// Where it differs from the real one: containers have no processes, so nothing holds
// a mount but the record; there is one driver; volumes are always named with it
// (RunOptions.NoDriver aside); calls of the driver have no time limit (use a driver
// that has); and while Boot runs, clients are answered at once instead of waiting.
type Engine struct {
	name string

	mu         sync.Mutex
	driver     Driver // nil: nobody at the socket
	up         bool
	containers map[string]*record // by name
	bound      []container.Bound  // see Bind
	known      map[string]bool    // volumes of our driver that this engine has seen
	local      map[string]bool    // local volumes
	images     map[string]bool    // by name
	networks   map[string]string  // IDs by name, but for those that every engine has
	spoiled    map[string]bool    // names of containers that do not start
	ends       map[string]End     // by name: how the commands of containers end
	started    map[string]int     // by name: how often somebody has started one
	stuck      map[string]bool    // names of containers that cannot be removed while they run
	polite     map[string]bool    // names of containers that end with code 0 when they are stopped
	exec       func(ctx context.Context, name string, command []string) (string, error)
	followers  map[*follower]struct{}
	swarm      *Swarm // nil: it belongs to none
	// See Ponder.
	ponders      time.Duration
	pondersUntil time.Time
	lingers      time.Duration // see Linger
	activated    int
	serial       int
}

type record struct {
	id       string
	name     string
	state    container.State
	restart  string // "", "always", "unless-stopped", "on-failure"
	tries    int    // of on-failure; 0: no end
	byHand   bool   // stopped by its user
	mounts   []*mountPoint
	labels   map[string]string
	env      []string
	image    string
	publish  []container.PublishedPort
	networks []string
	hosts    []string
	expose   []int
	ip       string
	started  bool   // it has run
	err      string // why the last start failed
	exitCode int
	restarts int
	since    time.Time // it runs, or waits to be started again
	token    string    // of its door, if it was started to wait
	atGate   bool
}

// mountPoint is one volume of one container. The engine makes an ID for the first
// Mount, writes it down, uses it for every further one and forgets it when its count is
// back at zero. The count is lost with the engine's process, and an Unmount that did
// not get through is not counted: so an ID outlives what it was made for.
type mountPoint struct {
	id     string
	volume string
	local  bool
	active int
	path   string
}

type follower struct{ events chan struct{} }

var _ container.Engine = (*Engine)(nil)

// New is a running engine without a driver.
func New(name string) *Engine {
	return &Engine{
		name: name, up: true,
		containers: map[string]*record{}, known: map[string]bool{}, local: map[string]bool{}, images: map[string]bool{}, networks: map[string]string{},
		followers: map[*follower]struct{}{},
	}
}

// SetDriver puts a driver at the socket, or takes it away with nil.
func (e *Engine) SetDriver(d Driver) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.driver = d
}

// RunOptions of a container.
type RunOptions struct {
	Restart string
	Tries   int // of the policy on-failure; 0: no end
	Labels  map[string]string
	Env     []string
	// Publish are ports of the node that the engine leads to ports of the container.
	Publish []container.PublishedPort
	// Networks that it is on. Where they lack they are made, as Compose does.
	Networks []string
	// Hosts are names with addresses, as --add-host has them.
	Hosts []string
	// Expose are ports that the image names.
	Expose []int
	// Image, which the engine has from then on; "": one that every engine has.
	Image string
	// CopyUp: the image has files where the volume goes, so the engine mounts the
	// volume when the container is created.
	CopyUp bool
	// NoDriver names volumes without their driver, with which Docker makes local ones
	// when it does not find them.
	NoDriver bool
}

// CreateVolume is `docker volume create --driver flocker`. For a volume that is there
// already the driver is not asked, whatever the options.
func (e *Engine) CreateVolume(name string, opts map[string]string) error {
	if err := e.alive(); err != nil {
		return err
	}
	_, err := e.provide(name, opts, false)
	return err
}

// Create makes a container, and those of its volumes that are not there yet.
func (e *Engine) Create(name string, opts RunOptions, volumes ...string) error {
	if err := e.alive(); err != nil {
		return err
	}
	e.mu.Lock()
	if e.containers[name] != nil {
		e.mu.Unlock()
		return fmt.Errorf("the container name %q is already in use", name)
	}
	c := &record{
		id: e.nextID(), name: name, state: container.Created, restart: opts.Restart, tries: opts.Tries, labels: opts.Labels,
		env: opts.Env, image: opts.Image, publish: opts.Publish, networks: opts.Networks, hosts: opts.Hosts, expose: opts.Expose,
	}
	for _, n := range opts.Networks {
		e.makeNetwork(n)
	}
	c.ip = fmt.Sprintf("172.17.0.%d", e.serial+1)
	if opts.Image != "" {
		e.images[opts.Image] = true
	}
	for _, v := range volumes {
		c.mounts = append(c.mounts, &mountPoint{volume: v})
	}
	e.mu.Unlock()

	for _, m := range c.mounts {
		local, err := e.provide(m.volume, nil, opts.NoDriver)
		if err != nil {
			return err
		}
		m.local = local
	}
	if opts.CopyUp {
		for _, m := range c.mounts {
			if err := e.mount(m); err != nil {
				return err
			}
			e.unmount(m)
		}
	}
	e.mu.Lock()
	e.containers[name] = c
	e.mu.Unlock()
	e.emit()
	return nil
}

// Run is Create and Start.
func (e *Engine) Run(name string, opts RunOptions, volumes ...string) error {
	if err := e.Create(name, opts, volumes...); err != nil {
		return err
	}
	return e.Start(name)
}

// Start starts a container. When a volume is refused, those mounted before it are
// unmounted, the container does not run, and nothing tries again.
func (e *Engine) Start(name string) error {
	if err := e.alive(); err != nil {
		return err
	}
	return e.start(name)
}

func (e *Engine) start(name string) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	e.mu.Lock()
	running, spoiled := c.state == container.Running, e.spoiled[name] || e.portTaken(c)
	c.byHand = false
	e.mu.Unlock()
	if running {
		return nil
	}
	if spoiled {
		e.setState(c, container.Created, 128, "its port is taken")
		return fmt.Errorf("container %s: its port is taken", name)
	}
	for _, m := range c.mounts {
		if err := e.mount(m); err != nil {
			e.unmountAll(c) // the refused one too, if it has an ID of old
			e.setState(c, container.Exited, 128, err.Error())
			return fmt.Errorf("error while mounting volume %s: %w", m.volume, err)
		}
	}
	e.mu.Lock()
	lingers := e.lingers
	e.mu.Unlock()
	if lingers > 0 {
		time.Sleep(lingers)
	}
	e.mu.Lock()
	c.restarts = 0
	if e.started == nil {
		e.started = map[string]int{}
	}
	e.started[c.name]++
	e.mu.Unlock()
	e.setState(c, container.Running, 0, "")
	e.age()
	return nil
}

// End is how the command of a container ends, and when.
type End struct {
	Code  int
	After time.Duration
	Says  string
	Once  bool // only until its engine has started it again
}

// Ends has the commands of containers of a name end; nil: no more. With a restart policy the
// engine starts such a one again, and again, each time after a longer while. Where that differs
// from the real one: whether it runs just now is found out when somebody asks, and nobody is told
// of it; and while it waits to be started again its volumes stay mounted.
func (e *Engine) Ends(name string, end *End) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ends == nil {
		e.ends = map[string]End{}
	}
	delete(e.ends, name)
	if end != nil {
		e.ends[name] = *end
	}
}

// age has all commands end, and be started again, that have by now.
func (e *Engine) age() {
	var over []*record
	e.mu.Lock()
	for _, c := range e.containers {
		end, ends := e.ends[c.name]
		for ends && !c.atGate && !(end.Once && c.state == container.Running && c.restarts > 0) {
			again := c.restart == "always" || c.restart == "unless-stopped" || c.restart == "on-failure" && end.Code != 0 && (c.tries == 0 || c.restarts < c.tries)
			left := time.Since(c.since)
			if c.state == container.Running && left >= end.After {
				c.since, c.exitCode = c.since.Add(end.After), end.Code
				if !again {
					c.state = container.Exited
					over = append(over, c)
					break
				}
				c.state = container.Restarting
			} else if backoff := 100 * time.Millisecond << min(c.restarts, 9); c.state == container.Restarting && again && left >= backoff {
				c.since, c.state, c.exitCode = c.since.Add(backoff), container.Running, 0
				c.restarts++
			} else {
				break
			}
		}
	}
	e.mu.Unlock()
	for _, c := range over {
		e.unmountAll(c)
		e.emit()
	}
}

// portTaken says that another running container publishes a port of this one. The caller
// has the lock.
func (e *Engine) portTaken(c *record) bool {
	for _, p := range c.publish {
		for _, o := range e.containers {
			if o != c && o.state == container.Running && p.Host > 0 && slices.ContainsFunc(o.publish, func(q container.PublishedPort) bool { return q.Host == p.Host }) {
				return true
			}
		}
	}
	return false
}

// Spoil keeps containers of a name from starting, for a reason that nobody can know before
// it is tried; until it is told otherwise.
func (e *Engine) Spoil(name string, spoiled bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.spoiled == nil {
		e.spoiled = map[string]bool{}
	}
	e.spoiled[name] = spoiled
}

// Started is how often containers of a name were started, but for those starts that their engine
// has made by itself while it ran.
func (e *Engine) Started(name string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.started[name]
}

// Stick keeps containers of a name that run from being removed by force, until it is told otherwise.
func (e *Engine) Stick(name string, stuck bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stuck == nil {
		e.stuck = map[string]bool{}
	}
	e.stuck[name] = stuck
}

// politeUnmount is how long its engine takes to unmount what a polite container had.
const politeUnmount = time.Second

// Polite has containers of a name end with code 0 when they are stopped, as servers do. Their end is
// seen before their volumes are unmounted.
func (e *Engine) Polite(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.polite == nil {
		e.polite = map[string]bool{}
	}
	e.polite[name] = true
}

// Stop stops a container, as its user does.
func (e *Engine) Stop(name string) error {
	if err := e.alive(); err != nil {
		return err
	}
	c, err := e.find(name)
	if err != nil {
		return err
	}
	e.mu.Lock()
	c.byHand = true
	_, loops := e.ends[name]
	running := c.state == container.Running || loops && c.state == container.Restarting
	code := 137
	if e.polite[name] {
		code = 0
	}
	e.mu.Unlock()
	if running {
		e.setState(c, container.Exited, code, "")
		if code == 0 {
			time.Sleep(politeUnmount)
		}
		e.unmountAll(c)
	}
	return nil
}

// Die ends a container's process. With a restart policy it is started again, once.
func (e *Engine) Die(name string, code int) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	e.mu.Lock()
	again := c.restart == "always" || c.restart == "unless-stopped" || c.restart == "on-failure" && code != 0
	e.mu.Unlock()
	if !again {
		e.setState(c, container.Exited, code, "")
		e.unmountAll(c)
		return nil
	}
	e.setState(c, container.Restarting, code, "")
	e.unmountAll(c)
	return e.start(name)
}

// Kill ends the processes of all containers with volumes of the driver, behind the
// engine's back and at once, and says which they were. The engine learns of it with
// Reap, as with Die.
func (e *Engine) Kill() (killed []container.Use) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.containers {
		ours := slices.ContainsFunc(c.mounts, func(m *mountPoint) bool { return !m.local })
		if ours && c.state.Live() {
			c.state = container.Restarting // until it is reaped
			killed = append(killed, container.Use{Container: c.id, Name: c.name})
		}
	}
	slices.SortFunc(killed, func(a, b container.Use) int { return strings.Compare(a.Name, b.Name) })
	return killed
}

// Reap tells the engine of a container that Kill has ended. With a restart policy it
// is started again, once.
func (e *Engine) Reap(name string) { e.Die(name, 137) }

// Remove removes a stopped container. Its volumes stay.
func (e *Engine) Remove(name string) error {
	if err := e.alive(); err != nil {
		return err
	}
	c, err := e.find(name)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if c.state.Live() {
		return fmt.Errorf("you cannot remove a %s container %s", c.state, c.id)
	}
	delete(e.containers, name)
	return nil
}

// Copy begins a `docker cp`: the volumes are mounted once more, with the same mount
// IDs. done ends it.
func (e *Engine) Copy(name string) (done func(), err error) {
	if err := e.alive(); err != nil {
		return nil, err
	}
	c, err := e.find(name)
	if err != nil {
		return nil, err
	}
	for _, m := range c.mounts {
		if err := e.mount(m); err != nil {
			e.unmountAll(c)
			return nil, err
		}
	}
	return func() { e.unmountAll(c) }, nil
}

// RemoveVolume is `docker volume rm`.
func (e *Engine) RemoveVolume(name string) error {
	if err := e.alive(); err != nil {
		return err
	}
	e.mu.Lock()
	for _, c := range e.containers {
		for _, m := range c.mounts {
			if m.volume == name {
				e.mu.Unlock()
				return fmt.Errorf("remove %s: volume is in use - [%s]", name, c.id)
			}
		}
	}
	if e.local[name] {
		delete(e.local, name)
		e.mu.Unlock()
		return nil
	}
	e.mu.Unlock()
	if err := e.get(name); err != nil {
		return err
	}
	d, err := e.reach()
	if err != nil {
		return err
	}
	if err := d.Remove(&protocol.RemoveRequest{Name: name}); err != nil {
		return err
	}
	e.mu.Lock()
	delete(e.known, name)
	e.mu.Unlock()
	e.emit()
	return nil
}

// Crash kills the engine and, unless live is true, every container with it. No driver
// is told anything.
func (e *Engine) Crash(live bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.up = false
	for _, c := range e.containers {
		for _, m := range c.mounts {
			m.active = 0
		}
		if !live && (c.state == container.Running || c.state == container.Restarting) {
			c.state, c.exitCode = container.Exited, 255
			c.err = "was running when the engine crashed"
		}
	}
	for f := range e.followers {
		close(f.events)
		delete(e.followers, f)
	}
}

// Shutdown stops the engine in order, after its containers.
func (e *Engine) Shutdown() {
	e.StopAll()
	e.Crash(false)
}

// StopAll is the first part of Shutdown: containers are stopped and their volumes
// unmounted, while the engine still answers.
func (e *Engine) StopAll() {
	for _, c := range e.all() {
		e.mu.Lock()
		running := c.state == container.Running
		e.mu.Unlock()
		if running {
			e.setState(c, container.Exited, 137, "")
			e.unmountAll(c)
		}
	}
}

// Boot starts the engine again. It asks the driver about every volume it knows, then
// makes one attempt to start each container with a restart policy, and only then
// answers clients.
func (e *Engine) Boot() {
	for _, c := range e.all() {
		for _, m := range c.mounts {
			if m.local {
				continue
			}
			e.get(m.volume)
			e.mu.Lock()
			if c.state == container.Running { // live restore
				m.active = 1
			}
			e.mu.Unlock()
		}
	}
	for _, c := range e.all() {
		e.mu.Lock()
		start := c.state != container.Running && c.state != container.Created &&
			(c.restart == "always" || c.restart == "unless-stopped" && !c.byHand)
		e.mu.Unlock()
		if start {
			e.start(c.name) // one attempt; its error stays in the record
		}
	}
	e.mu.Lock()
	e.up = true
	e.mu.Unlock()
}

// Container is what `docker inspect` would show; ok is false when there is none.
func (e *Engine) Container(name string) (state container.State, lastError string, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.containers[name]
	if c == nil {
		return "", "", false
	}
	return c.state, c.err, true
}

// Path is where a container's volume was mounted for it at its last start.
func (e *Engine) Path(name, volume string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.containers[name]; c != nil {
		for _, m := range c.mounts {
			if m.volume == volume {
				return m.path
			}
		}
	}
	return ""
}

// MakeLocal makes a volume of the engine's own driver.
func (e *Engine) MakeLocal(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.local[name] = true
}

// Activations is how often Activate was called.
func (e *Engine) Activations() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.activated
}

// Version of the fake.
func (e *Engine) Version(context.Context) (container.Version, error) {
	if err := e.alive(); err != nil {
		return container.Version{}, err
	}
	return container.Version{Engine: "fake", API: "1.41"}, nil
}

// Info of the fake. It lists the driver once it was activated.
func (e *Engine) Info(context.Context) (container.Info, error) {
	if err := e.alive(); err != nil {
		return container.Info{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	out := container.Info{Version: "20.10.24", Drivers: []string{"local"}}
	if e.activated > 0 {
		out.Drivers = []string{driverName, "local"}
	}
	return out, nil
}

// Users lists the containers that use the driver's volumes.
func (e *Engine) Users(context.Context) ([]container.Use, error) {
	if err := e.alive(); err != nil {
		return nil, err
	}
	e.age()
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []container.Use
	for _, c := range e.containers {
		u := container.Use{Container: c.id, Name: c.name, State: c.state, Labels: c.labels, Ports: container.Ports{Exposed: c.expose}}
		if c.state == container.Running {
			u.Ports.Address = c.ip
		}
		for _, m := range c.mounts {
			if !m.local {
				u.Volumes = append(u.Volumes, container.Mount{Volume: m.volume, Driver: "flocker", Destination: "/" + m.volume})
			}
		}
		if len(u.Volumes) > 0 && !c.waiting() {
			out = append(out, u)
		}
	}
	slices.SortFunc(out, func(a, b container.Use) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Linking lists the running containers with the label.
func (e *Engine) Linking(context.Context) ([]container.Linking, error) {
	if err := e.alive(); err != nil {
		return nil, err
	}
	var out []container.Linking
	for _, c := range e.all() {
		e.mu.Lock()
		if label, ok := c.labels[container.LabelLinks]; ok && c.state == container.Running {
			out = append(out, container.Linking{Name: c.name, Label: label, Hosts: c.hosts})
		}
		e.mu.Unlock()
	}
	return out, nil
}

// Bind gives a container that does not run a directory of the machine; "": not any more.
func (e *Engine) Bind(name, source string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.bound = slices.DeleteFunc(e.bound, func(b container.Bound) bool { return b.Name == name })
	if source != "" {
		e.bound = append(e.bound, container.Bound{Name: name, State: container.Exited, Source: source})
	}
}

// Bound lists what containers were given by Bind.
func (e *Engine) Bound(context.Context) ([]container.Bound, error) {
	if err := e.alive(); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.bound), nil
}

// LocalVolumes lists the volumes of the engine itself.
func (e *Engine) LocalVolumes(context.Context) ([]string, error) {
	if err := e.alive(); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []string
	for name := range e.local {
		out = append(out, name)
	}
	slices.Sort(out)
	return out, nil
}

// Activate lists all volumes.
func (e *Engine) Activate(context.Context) error {
	if err := e.alive(); err != nil {
		return err
	}
	d, err := e.reach()
	if err != nil {
		return nil // the engine only leaves the volumes out
	}
	d.List()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.activated++
	return nil
}

// Refused lists the containers that a refused mount keeps from running.
func (e *Engine) Refused(ctx context.Context) ([]container.Use, error) {
	all, err := e.Users(ctx)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(u container.Use) bool {
		c, err := e.find(u.Name)
		if err != nil {
			return true
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		wanted := c.restart == "always" || c.restart == "unless-stopped" && !c.byHand
		return c.state != container.Exited || c.err == "" || !wanted
	}), nil
}

// StartAgain starts a container by ID.
func (e *Engine) StartAgain(_ context.Context, id string) error {
	for _, c := range e.all() {
		if c.id == id {
			return e.Start(c.name)
		}
	}
	return fmt.Errorf("no such container: %s", id)
}

// Follow tells of changes until the engine goes away.
func (e *Engine) Follow(ctx context.Context, connected, changed func()) error {
	e.mu.Lock()
	if !e.up {
		e.mu.Unlock()
		return errEngineDown
	}
	f := &follower{events: make(chan struct{}, 1)}
	e.followers[f] = struct{}{}
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.followers, f)
	}()

	connected()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case _, ok := <-f.events:
			if !ok {
				return errEngineDown
			}
			changed()
		}
	}
}

// provide makes sure that a volume exists.
func (e *Engine) provide(name string, opts map[string]string, noDriver bool) (local bool, err error) {
	e.mu.Lock()
	isLocal := e.local[name]
	e.mu.Unlock()
	if isLocal {
		if !noDriver {
			return false, fmt.Errorf("create %s: volume name must be unique: it exists with driver local", name)
		}
		return true, nil
	}
	err = e.get(name)
	if err == nil {
		return false, nil
	}
	if noDriver {
		e.mu.Lock()
		e.local[name] = true
		e.mu.Unlock()
		return true, nil
	}
	if errors.Is(err, ErrUnreachable) {
		return false, err
	}
	d, err := e.reach()
	if err != nil {
		return false, err
	}
	if err := d.Create(&protocol.CreateRequest{Name: name, Options: opts}); err != nil {
		return false, err
	}
	return false, e.get(name)
}

// get asks for a volume, as the engine does before everything else. An error of the
// driver makes it forget the volume; an unreachable driver does not.
func (e *Engine) get(name string) error {
	d, err := e.reach()
	if err != nil {
		return err
	}
	_, err = d.Get(&protocol.GetRequest{Name: name})
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case err == nil:
		e.known[name] = true
	case !errors.Is(err, ErrUnreachable):
		delete(e.known, name)
	}
	return err
}

func (e *Engine) mount(m *mountPoint) error {
	if m.local {
		return nil
	}
	if err := e.get(m.volume); err != nil {
		return err
	}
	d, err := e.reach()
	if err != nil {
		return err
	}
	e.mu.Lock()
	id := m.id
	if id == "" {
		id = e.nextID()
	}
	e.mu.Unlock()
	r, err := d.Mount(&protocol.MountRequest{Name: m.volume, ID: id})
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	m.id = id
	m.active++
	m.path = r.Mountpoint
	return nil
}

// unmount is skipped when the driver says the volume is gone, and lost when nobody
// is there.
func (e *Engine) unmount(m *mountPoint) {
	e.mu.Lock()
	id := m.id
	e.mu.Unlock()
	if m.local || id == "" || e.get(m.volume) != nil {
		return
	}
	d, err := e.reach()
	if err != nil || d.Unmount(&protocol.UnmountRequest{Name: m.volume, ID: id}) != nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	m.active--
	if m.active == 0 {
		m.id = ""
	}
}

func (e *Engine) unmountAll(c *record) {
	for _, m := range c.mounts {
		e.unmount(m)
	}
}

// reach returns the driver, or gives up after as long as the real engine tries.
func (e *Engine) reach() (Driver, error) {
	for tried := time.Duration(0); ; tried += time.Second {
		e.mu.Lock()
		d := e.driver
		e.mu.Unlock()
		if d != nil {
			return d, nil
		}
		if tried >= unreachableFor {
			return nil, ErrUnreachable
		}
		time.Sleep(time.Second)
	}
}

func (e *Engine) alive() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.up {
		return errEngineDown
	}
	return nil
}

func (e *Engine) find(name string) (*record, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.containers[name]
	if c == nil {
		return nil, fmt.Errorf("no such container: %s", name)
	}
	return c, nil
}

// all containers by name.
func (e *Engine) all() []*record {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []*record
	for _, c := range e.containers {
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b *record) int { return strings.Compare(a.name, b.name) })
	return out
}

func (e *Engine) setState(c *record, s container.State, code int, failure string) {
	e.mu.Lock()
	if failure != "" && c.state == container.Created {
		s = container.Created // a container that never ran stays as it was made
	}
	c.started = c.started || s == container.Running
	c.state, c.exitCode, c.err, c.since = s, code, failure, time.Now()
	e.mu.Unlock()
	e.emit()
}

// emit rings every follower.
func (e *Engine) emit() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for f := range e.followers {
		select {
		case f.events <- struct{}{}:
		default:
		}
	}
}

// nextID makes IDs of Docker's form that are the same in every run of a test. The
// caller has the lock.
func (e *Engine) nextID() string {
	e.serial++
	return fmt.Sprintf("%x", []byte(fmt.Sprintf("%06d%-26.26s", e.serial, e.name)))
}
