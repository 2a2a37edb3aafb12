package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/internal/warm"
)

const (
	// warmPatience is how long a container may take to come to its gate, and warmGo how long
	// its volume and its command may take then. A start takes longer than that at its worst.
	warmPatience = 30 * time.Second
	warmGo       = 15 * time.Second
	// warmWait is how long one that is still being started is waited for, once its volume is
	// here: then another start is begun instead.
	warmWait = 3 * time.Second
	// warmTidy is how often what earlier processes have left is looked for.
	warmTidy = 10 * time.Second
)

// Doors are where containers wait on this machine: see internal/warm.
type Doors interface {
	// Open makes one by a name.
	Open(token string) (Door, error)
	// Program is the path of the program that waits in containers.
	Program() string
	// Of is the container that a process belongs to.
	Of(pid int) string
	// Release notes that the container of a door has gone on, and needs no door any more.
	Release(token string) error
	// Settled says that nothing is left to do about the container of a door; Settle notes it.
	Settled(token string) bool
	Settle(token string) error
	// All are the doors of this process and of earlier ones; Discard removes one.
	All() ([]string, error)
	Discard(token string) error
}

// Door is one of them. *warm.Door is one.
type Door interface {
	Placeholder() string
	Socket() string
	Await(ctx context.Context) error
	PID() int
	Inject(source, at string) (warm.Place, error)
	Withdraw(p warm.Place, at string) error
	Go(ctx context.Context, p warm.Place) error
	Close() error
}

// prestarts has containers wait here whose volumes are on their way, so that their start is
// no part of their clients' waiting. Whatever goes wrong, they are started as all others.
type prestarts struct {
	f      *follower
	engine container.Prestarter
	doors  Doors

	next time.Time // when what is left over is looked for; of the loop alone

	mu    sync.Mutex
	by    map[string]*prestart // by record
	tried map[string]string
	armed map[string]*armed // by volume's name
}

// prestart is one container.
type prestart struct {
	token string
	hash  string
	over  chan struct{} // closed when it waits, or will not
	stop  context.CancelFunc
	taken bool // somebody sees to its end

	// Known when it is over.
	err  error
	id   string
	spec container.Spec // of the container that it will be
	door Door
}

// armed means that an engine is about to mount a volume for a container that waits.
type armed struct {
	placeholder string
	taken       bool
}

func newPrestarts(f *follower, doors Doors) *prestarts {
	engine, ok := f.engine.(container.Prestarter)
	if !ok || doors == nil {
		return nil
	}
	return &prestarts{f: f, engine: engine, doors: doors, by: map[string]*prestart{}, tried: map[string]string{}, armed: map[string]*armed{}}
}

// step does what planWarm says, in the background.
func (p *prestarts) step(ctx context.Context, s *state.State) {
	if p == nil {
		return
	}
	p.tidy(ctx, s)
	v := warmView{Self: p.f.m.self, State: s, Waiting: map[string]string{}, Tried: map[string]string{}}
	p.mu.Lock()
	for key, w := range p.by {
		v.Waiting[key] = w.hash
	}
	for key, attempt := range p.tried {
		if s.Container(key) == nil {
			delete(p.tried, key)
		}
		v.Tried[key] = attempt
	}
	p.mu.Unlock()
	for _, st := range planWarm(v) {
		if st.End == "" {
			p.begin(ctx, s, st.Known)
			continue
		}
		p.f.mu.Lock()
		busy := p.f.busy[st.Record]
		p.f.mu.Unlock()
		if busy {
			continue // bring has it in hand, and sees to its end
		}
		p.f.jobs.Go(func() {
			if w := p.take(ctx, st.Record); w != nil {
				p.f.m.log.Info("a container that waited here does so no longer", "record", st.Record, "why", st.End)
				p.end(ctx, w)
			}
		})
	}
}

// begin has the container of a record wait.
func (p *prestarts) begin(ctx context.Context, s *state.State, r *state.Container) {
	key, vol := r.RecordKey(), s.Volume(r.Volumes[0].ID)
	var token [8]byte
	if _, err := rand.Read(token[:]); err != nil {
		p.f.m.log.Warn("a container is not started ahead", "container", r.Name, "err", err)
		return
	}
	wctx, stop := context.WithCancel(ctx)
	w := &prestart{token: hex.EncodeToString(token[:]), hash: r.Hash, over: make(chan struct{}), stop: stop}
	p.mu.Lock()
	p.by[key], p.tried[key] = w, vol.Pending.Attempt
	p.mu.Unlock()
	p.f.jobs.Go(func() {
		defer stop()
		asked, err := p.start(wctx, r, vol, w)
		w.err = err
		close(w.over)
		switch {
		case err == nil && asked:
			p.f.m.log.Info("a container waits here for its volume", "container", r.Name)
			return
		case asked && ctx.Err() == nil && wctx.Err() == nil:
			p.tell(r, err)
		}
		// Nobody may have taken it: then it is forgotten.
		p.mu.Lock()
		if p.by[key] == w {
			delete(p.by, key)
		}
		p.mu.Unlock()
	})
}

// errNotAsked means that a container has no label that asks for it.
var errNotAsked = errors.New("nobody has asked for it")

// start does it. With an error nothing is left.
func (p *prestarts) start(ctx context.Context, r *state.Container, vol *state.Volume, w *prestart) (asked bool, err error) {
	spec, _, target, err := p.f.specOf(ctx, r)
	if err != nil {
		return false, err // its start tells of it, if there is one
	}
	asked, why := spec.Prestarts(volumeDriver)
	switch {
	case !asked:
		return false, errNotAsked
	case why != "":
		return true, errors.New(why)
	case !slices.Equal(spec.Volumes(volumeDriver), []string{vol.Name}):
		return true, fmt.Errorf("it names its volume otherwise than %s", vol.Name)
	}
	if obstacle := p.f.obstacle(ctx, spec, target, p.f.replaces(r), ""); obstacle != "" {
		return true, errors.New(obstacle)
	}
	if users, err := p.users(ctx, vol.Name); err != nil || len(users) > 0 {
		return true, errors.Join(err, fmt.Errorf("containers here have its volume: %d", len(users)))
	}
	w.spec = spec
	if w.door, err = p.doors.Open(w.token); err != nil {
		return true, err
	}
	defer func() {
		if err != nil {
			p.end(ctx, w)
		}
	}()
	waiting, err := spec.Waiting(volumeDriver, container.Gate{Token: w.token, Program: p.doors.Program(), Door: w.door.Socket()})
	if err != nil {
		return true, err
	}
	p.arm(vol.Name, w.door.Placeholder())
	w.id, err = p.engine.Prestart(ctx, waiting)
	taken := p.disarm(vol.Name)
	if err != nil {
		if taken {
			p.stopStrangers(ctx, vol)
		}
		return true, err
	}
	actx, cancel := context.WithTimeout(ctx, warmPatience)
	defer cancel()
	if err := w.door.Await(actx); err != nil {
		return true, err
	}
	if of := p.doors.Of(w.door.PID()); of != w.id {
		return true, fmt.Errorf("what has come to its gate is no process of it, but of %q", of)
	}
	return true, nil
}

// users are the containers here that mount a volume and run.
func (p *prestarts) users(ctx context.Context, name string) (out []container.Use, err error) {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	all, err := p.f.engine.Users(ctx)
	for _, u := range all {
		if u.State.Live() && slices.ContainsFunc(u.Volumes, func(m container.Mount) bool { return m.Volume == name }) {
			out = append(out, u)
		}
	}
	return out, err
}

func (p *prestarts) arm(name, placeholder string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed[name] = &armed{placeholder: placeholder}
}

func (p *prestarts) disarm(name string) (taken bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	taken = p.armed[name].taken
	delete(p.armed, name)
	return taken
}

// mount answers an engine that mounts a volume while a container of it is being made to
// wait: the first one gets the placeholder, for an engine does not say for which container
// it asks. Whoever comes next is refused, and so is everybody once the volume is here.
func (p *prestarts) mount(name string, here bool) (dir string, armed bool, err error) {
	if p == nil {
		return "", false, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.armed[name]
	switch {
	case a == nil:
		return "", false, nil
	case a.taken || here:
		return "", true, volume.Errorf(volume.CodeUnavailable, "volume %q: a container of it is just being made ready here", name).WithHint("try again")
	}
	a.taken = true
	return a.placeholder, true, nil
}

// stopStrangers stops what may have got the placeholder in the place of the one that was to
// wait: it would go on without its data.
func (p *prestarts) stopStrangers(ctx context.Context, vol *state.Volume) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), engineTimeout)
	defer cancel()
	if now := p.f.m.cluster.State().Volume(vol.ID); now == nil || now.Placement.Primary == p.f.m.self {
		return
	}
	users, err := p.users(ctx, vol.Name)
	for _, u := range users {
		err = errors.Join(err, p.f.engine.StopContainer(ctx, u.Container))
		p.f.m.log.Error("a container was started in the very moment in which another one of its volume was made ready, and stopped again: start it anew", "container", u.Name)
	}
	if err != nil {
		p.f.m.log.Error("a container may run with an empty directory in the place of its volume", "volume", vol.Name, "err", err)
	}
}

// take is the container that waits for a record, nil for none. It is the caller's from then
// on, who ends or forgets it.
func (p *prestarts) take(ctx context.Context, key string) *prestart {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	w := p.by[key]
	p.mu.Unlock()
	if w == nil {
		return nil
	}
	select {
	case <-w.over: // a start that has begun is sooner done than another one
	case <-ctx.Done():
	case <-time.After(warmWait):
	}
	w.stop()
	<-w.over
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.by[key] != w || w.taken || w.err != nil {
		return nil
	}
	w.taken = true
	return w
}

// forget what was taken, when nothing is left to be done about it.
func (p *prestarts) forget(w *prestart) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, other := range p.by {
		if other == w {
			delete(p.by, key)
		}
	}
}

// end removes a container that waits, with its door. What cannot be removed is tried again
// by tidy.
func (p *prestarts) end(ctx context.Context, w *prestart) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), engineTimeout)
	defer cancel()
	var errs []error
	if w.door != nil {
		errs = append(errs, w.door.Close())
	}
	if w.id != "" {
		errs = append(errs, p.engine.EndWaiter(ctx, w.id))
	}
	err := errors.Join(errs...)
	if err == nil && w.door != nil {
		err = p.doors.Discard(w.token)
	}
	if err != nil {
		p.f.m.log.Warn("a container that waited here could not be removed yet", "container", w.spec.Name, "err", err)
	}
	p.forget(w)
}

// bring has the container of a record that waits go on with its volume. It says whether it
// did; else nothing waits any more, and it is to be started as all others.
func (p *prestarts) bring(ctx context.Context, r *state.Container, spec container.Spec) bool {
	w := p.take(ctx, r.RecordKey())
	if w == nil {
		return false
	}
	err := p.release(ctx, r, w, spec)
	if err != nil {
		p.end(ctx, w)
		p.tell(r, err)
		return false
	}
	if err := w.door.Close(); err != nil {
		p.f.m.log.Warn("the placeholder of a container that goes is still mounted on this node", "container", r.Name, "err", err)
	}
	p.settle(ctx, spec, w.id, w.token)
	p.forget(w)
	return true
}

func (p *prestarts) release(ctx context.Context, r *state.Container, w *prestart, spec container.Spec) error {
	asked, err := w.spec.Encode()
	if err != nil {
		return err
	}
	now, err := spec.Encode()
	if err != nil {
		return err
	}
	if string(asked) != string(now) || w.hash != r.Hash {
		return errors.New("it would be made otherwise by now")
	}
	ctx, cancel := context.WithTimeout(ctx, warmGo)
	defer cancel()
	id, at, mountID := r.Volumes[0].ID, spec.VolumeAt(volumeDriver), "warm-"+w.token
	ran, err := p.engine.TakeUp(ctx, spec, w.id, p.f.replaces(r), func(ctx context.Context) error {
		var place warm.Place
		err := p.f.m.agent.MountInto(ctx, id, mountID, func(dir string) (func() error, error) {
			var err error
			place, err = w.door.Inject(dir, at)
			return func() error { return w.door.Withdraw(place, at) }, err
		})
		if err != nil {
			return err
		}
		// Its engine has it by its name, so the volume has a user from here on.
		defer p.f.m.agent.Unmount(id, mountID)
		return w.door.Go(ctx, place)
	})
	if ran && err != nil {
		p.f.m.log.Warn("a container goes on, but something is left of the one it replaced", "container", spec.Name, "err", err)
		err = nil
	}
	return err
}

// settle gives a container that goes the policy to start it again that it is to have.
func (p *prestarts) settle(ctx context.Context, spec container.Spec, id, token string) {
	// In this order: started again before the first it would not go.
	err := p.doors.Release(token)
	if err == nil {
		err = p.engine.Settle(ctx, spec, id)
	}
	if err == nil {
		err = p.doors.Settle(token)
	}
	if err != nil {
		p.f.m.log.Warn("a container's engine does not start it again by itself yet", "container", spec.Name, "err", err)
	}
}

// tidy removes what earlier processes have left, and does what they could not do.
func (p *prestarts) tidy(ctx context.Context, s *state.State) {
	if p.f.m.now().Before(p.next) {
		return
	}
	p.next = p.f.m.now().Add(warmTidy)
	lctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	doors, err := p.doors.All()
	if err == nil && len(doors) == 0 {
		return
	}
	all, werr := p.engine.Waiters(lctx)
	if err := errors.Join(err, werr); err != nil {
		p.f.m.log.Debug("containers that were started to wait are not known", "err", err)
		p.next = p.f.m.now().Add(time.Second)
		return // whose the doors are is not known either
	}
	p.mu.Lock()
	ours := map[string]bool{}
	for _, w := range p.by {
		ours[w.token] = true
	}
	p.mu.Unlock()
	recorded := map[string]bool{}
	for r := range s.Containers() {
		if r.Node == p.f.m.self {
			recorded[r.ID] = true
		}
		recorded[r.Left[p.f.m.self]] = true
	}
	used := map[string]bool{}
	for _, w := range all {
		used[w.Token] = true
		if ours[w.Token] {
			continue
		}
		switch leftOver(w, p.doors.Settled(w.Token), recorded[w.ID]) {
		case warmEnd:
			err = p.engine.EndWaiter(lctx, w.ID)
			p.f.m.log.Info("a container that waited for an earlier flockd was removed", "container", w.Name, "err", err)
		case warmSettle:
			if c, err := p.f.inspect(lctx, w.ID); err == nil {
				p.settle(lctx, c.Spec, w.ID, w.Token)
			}
		case warmLeave:
		}
	}
	for _, token := range doors {
		if used[token] || ours[token] {
			continue
		}
		if err := p.doors.Discard(token); err != nil {
			p.f.m.log.Warn("what a container that waited had cannot be removed", "err", err)
		}
	}
}

// close lets go of all that wait, when this process ends.
func (p *prestarts) close() {
	if p == nil {
		return
	}
	p.mu.Lock()
	all := p.by
	p.by = map[string]*prestart{}
	p.mu.Unlock()
	for _, w := range all {
		p.end(context.Background(), w)
	}
}

// tell has people know that a container that asks to be started ahead is started as others.
func (p *prestarts) tell(r *state.Container, why error) {
	p.f.m.log.Warn("a container is not started ahead of its volume", "container", r.Name, "err", why)
	v := p.f.m.cluster.State().Volume(r.Volumes[0].ID)
	if v == nil || p.f.m.unaware(knowsPrestart) != "" {
		return
	}
	text := fmt.Sprintf("volume %s: container %s is not started ahead of it on %s: %s", v.Name, r.Name, p.f.m.cluster.State().NodeName(p.f.m.self), head(why.Error(), maxHookError))
	p.f.m.tell(state.Tell{Volume: v.ID, Kind: state.VolumePrestart, Message: text})
}
