package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/internal/warm"
)

const (
	// warmPatience is how long a container may take to come to its gate, and warmGo how long
	// its command may take then. A start takes longer than that at its worst. What a volume
	// takes to be mounted is not bounded: a start would wait for the same.
	warmPatience = 30 * time.Second
	warmGo       = 15 * time.Second
	// warmWait is how long one that is still being started is waited for, once its volume is
	// here: then another start is begun instead.
	warmWait = 3 * time.Second
	// warmTidy is how often what earlier processes have left is looked for.
	warmTidy = 10 * time.Second
	// warmStrange is for how long it is looked for who has got a placeholder and was not to.
	warmStrange = 5 * time.Second
	// warmKeep is how long a door stays that no container of this engine has. A container
	// that is made anew with the mounts of the old one, or an engine that is told of its
	// containers later, needs it still.
	warmKeep = 24 * time.Hour
)

// Doors are where containers wait on this machine: see internal/warm.
type Doors interface {
	// Open makes one by a name.
	Open(token string) (Door, error)
	// Program is the path of the program that waits in containers.
	Program() string
	// Of is the container that a process belongs to.
	Of(pid int) string
	// Holders are the containers that have a door's placeholder mounted, as the kernel says.
	Holders(token string) ([]string, error)
	// Release notes that the container of a door has gone on, and needs no door any more.
	Release(token string) error
	// Settled says that nothing is left to do about the container of a door; Settle notes it.
	Settled(token string) bool
	Settle(token string) error
	// Container is the ID of the container of a door, "" if that is not known; Name notes it.
	Container(token string) string
	Name(token, id string) error
	// Unused is for how long nobody has used a door; Use notes that somebody does.
	Unused(token string) (time.Duration, error)
	Use(token string) error
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
	// Check is Inject but for its last step.
	Check(at string) error
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

	mu    sync.Mutex
	next  time.Time            // when what is left over is looked for
	tidys bool                 // it is just being looked for
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
	p.tidy(ctx)
	v := warmView{Self: p.f.m.self, State: s, Waiting: map[string]string{}, Tried: map[string]string{}, Asks: p.asks}
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
	v.Unaware = p.f.m.unaware(knowsPrestart) != ""
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

// asks says whether the container of a record asks to be started ahead. Of one that does
// not, the engine is asked nothing. What cannot be read is told of by its start.
func (p *prestarts) asks(r *state.Container) bool {
	spec, err := p.f.open(r)
	if err != nil {
		return false
	}
	asked, _ := spec.Prestarts(volumeDriver)
	return asked
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
		err := p.start(wctx, r, vol, w)
		w.err = err
		close(w.over)
		switch {
		case err == nil:
			p.f.m.log.Info("a container waits here for its volume", "container", r.Name)
			return
		case ctx.Err() == nil && wctx.Err() == nil:
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

// start does it. With an error nothing is left that tidy does not find.
func (p *prestarts) start(ctx context.Context, r *state.Container, vol *state.Volume, w *prestart) (err error) {
	spec, _, target, err := p.f.specOf(ctx, r)
	if err != nil {
		return err
	}
	switch _, why := spec.Prestarts(volumeDriver); {
	case why != "":
		return errors.New(why)
	case !slices.Equal(spec.Volumes(volumeDriver), []string{vol.Name}):
		return fmt.Errorf("it names its volume otherwise than %s", vol.Name)
	}
	if obstacle := p.f.obstacle(ctx, spec, target, p.f.known(r), ""); obstacle != "" {
		return errors.New(obstacle)
	}
	if users, err := p.users(ctx, vol.Name); err != nil || len(users) > 0 {
		return errors.Join(err, fmt.Errorf("containers here have its volume: %d", len(users)))
	}
	w.spec = spec
	if w.door, err = p.doors.Open(w.token); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			p.end(ctx, w)
		}
	}()
	waiting, err := spec.Waiting(volumeDriver, container.Gate{Token: w.token, Program: p.doors.Program(), Door: w.door.Socket()})
	if err != nil {
		return err
	}
	a := p.arm(vol.Name, w.door.Placeholder())
	if a == nil {
		return errors.New("another container of its volume is just being made ready")
	}
	w.id, err = p.engine.Prestart(ctx, waiting)
	taken := p.disarm(vol.Name, a)
	if err != nil {
		if taken {
			p.stopStrangers(ctx, r, vol, w)
		}
		return err
	}
	// Before it can get another name: by that alone it would be anybody's.
	if err := p.doors.Name(w.token, w.id); err != nil {
		return err
	}
	actx, cancel := context.WithTimeout(ctx, warmPatience)
	defer cancel()
	if err := w.door.Await(actx); err != nil {
		return err
	}
	if of := p.doors.Of(w.door.PID()); of != w.id {
		return fmt.Errorf("what has come to its gate is no process of it, but of %q", of)
	}
	// Else it would be found out at every move while clients wait.
	if err := w.door.Check(spec.VolumeAt(volumeDriver)); err != nil {
		return fmt.Errorf("a volume could not be given to it: %w", err)
	}
	return nil
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

// arm is nil when another record's container of the volume is just being made to wait: they
// could not be told apart.
func (p *prestarts) arm(name, placeholder string) *armed {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.armed[name] != nil {
		return nil
	}
	a := &armed{placeholder: placeholder}
	p.armed[name] = a
	return a
}

func (p *prestarts) disarm(name string, a *armed) (taken bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.armed[name] == a {
		delete(p.armed, name)
	}
	return a.taken
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
// wait: it would go on without its data. That runs a little after it was mounted, if at all.
func (p *prestarts) stopStrangers(ctx context.Context, r *state.Container, vol *state.Volume, w *prestart) {
	until := p.f.m.now().Add(warmStrange)
	for {
		last := ctx.Err() != nil || !p.f.m.now().Before(until)
		found, err := p.strangers(ctx, vol.Name, w.token)
		switch {
		case err != nil && last:
			p.f.m.log.Error("a container may run with an empty directory in the place of its volume", "volume", vol.Name, "err", err)
			p.tell(r, fmt.Errorf("another container of its volume may run here with an empty directory in its place: %w", err))
			return
		case err == nil && len(found) > 0:
			p.f.m.log.Error("a container was started in the very moment in which another one of its volume was made ready, and stopped again: start it anew", "containers", found)
			p.tell(r, fmt.Errorf("container %s was started in the same moment, got an empty directory in the place of the volume, and was stopped: start it anew", strings.Join(found, ", ")))
			return
		case last:
			return
		}
		pause(ctx, time.Second)
	}
}

// strangers stops the users of a volume that have a door's placeholder. Who has it and is
// none has all of this machine mounted, as monitors do; one without it has the volume.
func (p *prestarts) strangers(ctx context.Context, name, token string) (stopped []string, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), engineTimeout)
	defer cancel()
	users, uerr := p.users(ctx, name)
	holders, err := p.doors.Holders(token)
	if err := errors.Join(uerr, err); err != nil {
		return nil, err
	}
	for _, u := range users {
		if !slices.Contains(holders, u.Container) {
			continue
		}
		if serr := p.f.engine.StopContainer(ctx, u.Container); serr != nil && !errors.Is(serr, container.ErrNotFound) {
			err = errors.Join(err, serr)
			continue
		}
		stopped = append(stopped, u.Name)
	}
	return stopped, err
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
func (p *prestarts) bring(ctx context.Context, r *state.Container, spec container.Spec, halts int) bool {
	w := p.take(ctx, r.RecordKey())
	if w == nil {
		return false
	}
	err := p.release(ctx, r, w, spec, halts)
	if err != nil {
		p.end(ctx, w)
		p.tell(r, err)
		return false
	}
	p.forget(w)
	return true
}

func (p *prestarts) release(ctx context.Context, r *state.Container, w *prestart, spec container.Spec, halts int) error {
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
	ran, err := p.engine.TakeUp(ctx, spec, w.id, p.f.known(r), func(ctx context.Context) error {
		if err := p.letGo(ctx, r.Volumes[0].ID, w, spec.VolumeAt(volumeDriver)); err != nil {
			return err
		}
		// Before its engine starts it again: its gate would wait for this door.
		if err := w.door.Close(); err != nil {
			p.f.m.log.Warn("the placeholder of a container that goes is still mounted on this node", "container", r.Name, "err", err)
		}
		if err := p.settle(ctx, spec, w.id, w.token); err != nil {
			return err
		}
		return p.f.stays(ctx, r, w.id, halts)
	})
	if errors.Is(err, container.ErrUndecided) {
		p.f.m.log.Warn("a container goes on with its volume, and it is looked at again whether it stays up", "container", spec.Name, "err", err)
		err = nil
	}
	if ran && err != nil {
		p.f.m.log.Warn("a container goes on, but something is left of the one it replaced", "container", spec.Name, "err", err)
		err = nil
	}
	return err
}

// letGo gives a container its volume, and has it go.
func (p *prestarts) letGo(ctx context.Context, id volume.ID, w *prestart, at string) error {
	var place warm.Place
	mountID := "warm-" + w.token
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
	gctx, cancel := context.WithTimeout(ctx, warmGo)
	defer cancel()
	return w.door.Go(gctx, place)
}

// settle gives a container that goes the policy to start it again that it is to have. One
// that has ended before it had that stays as it is, and the error tells how it ended: its engine
// would not start it again, and its name would be taken for ever. But for one that did what it had
// to and is not to be started again.
func (p *prestarts) settle(ctx context.Context, spec container.Spec, id, token string) error {
	// In this order: started again before the first it would not go.
	err := p.doors.Release(token)
	if err == nil {
		err = p.engine.Settle(ctx, spec, id)
	}
	// Whoever does not answer has not said that it has ended.
	switch now, ierr := p.f.inspect(ctx, id); {
	case errors.Is(ierr, container.ErrNotFound):
		return errors.New("it is gone")
	case ierr == nil && !now.State.Live() && (now.ExitCode != 0 || spec.StartsAgain()):
		return p.f.lastWords(ctx, id, fmt.Sprintf("it ended with code %d", now.ExitCode))
	case err == nil:
		err = ierr
	}
	if err == nil {
		err = p.doors.Settle(token)
	}
	if err != nil {
		p.f.m.log.Warn("a container's engine does not start it again by itself yet", "container", spec.Name, "err", err)
	}
	return nil
}

// tidy has what earlier processes have left removed, and what they could not do done, in the
// background: an engine may take its time over each of them.
func (p *prestarts) tidy(ctx context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tidys || p.f.m.now().Before(p.next) {
		return
	}
	p.tidys = true
	p.f.jobs.Go(func() {
		again := warmTidy
		if err := p.sweep(ctx); err != nil {
			p.f.m.log.Debug("containers that were started to wait are not known", "err", err)
			again = time.Second
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.tidys, p.next = false, p.f.m.now().Add(again)
	})
}

// sweep looks once. With an error it is not known whose the doors are, and all stay.
func (p *prestarts) sweep(ctx context.Context) error {
	// What was this process's at any time since the list is none that an earlier one has
	// left: it may have gone since.
	ours := map[string]bool{}
	p.tokens(ours)
	doors, err := p.doors.All()
	if err != nil || len(doors) == 0 {
		return err
	}
	lctx, cancel := context.WithTimeout(ctx, engineTimeout)
	all, err := p.engine.Waiters(lctx)
	cancel()
	if err != nil {
		return err
	}
	p.tokens(ours)
	used := map[string]int{}
	for _, w := range all {
		used[w.Token]++
	}
	for _, w := range all {
		if ours[w.Token] || p.doors.Settled(w.Token) {
			continue
		}
		if p.leftover(ctx, w) && used[w.Token] == 1 {
			if err := p.doors.Discard(w.Token); err != nil {
				p.f.m.log.Warn("what a container that waited had cannot be removed", "err", err)
			}
		}
	}
	for _, token := range doors {
		err := error(nil)
		if used[token] > 0 {
			err = p.doors.Use(token)
		} else if !ours[token] {
			var unused time.Duration
			if unused, err = p.doors.Unused(token); err == nil && unused >= warmKeep {
				err = p.doors.Discard(token)
			}
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			p.f.m.log.Warn("what a container that waited had cannot be removed", "err", err)
		}
	}
	return nil
}

// leftover does what is left to be done about one container; gone says that it was removed.
func (p *prestarts) leftover(ctx context.Context, listed container.Waiter) (gone bool) {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	// As it is now, and not as it was listed: it is removed with force.
	w, err := p.engine.Waiter(ctx, listed.ID)
	if err != nil {
		p.f.m.log.Debug("a container that was started to wait cannot be looked at", "container", listed.Name, "err", err)
		return false
	}
	ours, recorded := map[string]bool{}, false
	p.tokens(ours)
	for r := range p.f.m.cluster.State().Containers() {
		recorded = recorded || r.Node == p.f.m.self && r.ID == w.ID || r.Left[p.f.m.self] == w.ID
	}
	if ours[w.Token] {
		return false
	}
	switch leftOver(w, p.doors.Settled(w.Token), p.doors.Container(w.Token) == w.ID, recorded) {
	case warmEnd:
		err := p.engine.EndWaiter(ctx, w.ID)
		p.f.m.log.Info("a container that waited for an earlier flockd was removed", "container", w.Name, "err", err)
		return err == nil
	case warmSettle:
		if c, err := p.f.inspect(ctx, w.ID); err == nil {
			_ = p.settle(ctx, c.Spec, w.ID, w.Token) // the next look ends what has ended
		}
	case warmLeave:
	}
	return false
}

// tokens adds those of this process.
func (p *prestarts) tokens(to map[string]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.by {
		to[w.token] = true
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
