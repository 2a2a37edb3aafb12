package fence

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/mounts"
	"github.com/flocker-io/flocker/internal/volume"
)

// Kernel is how the fencer sees and stops writers. Its calls are made concurrently, may
// hang for ever when the pool does, and may be repeated.
type kernel interface {
	// look finds what is left of the volumes below root. thorough also finds who has
	// files of them open, which takes longer.
	look(root string, thorough bool) (seen, error)
	// freeze stops a container at once; kill ends all that is in it, also when frozen.
	freeze(mounts.Container) error
	kill(mounts.Container) error
	// end kills one process, if it is still the one that was seen.
	end(process) error
	// running says whether a killed container or process has not ended yet.
	running(plan) bool
	unmount(mount) error
}

// resetter ends everything when nothing else does.
type resetter interface {
	// safety is what it can promise, and why not more, when more was asked for.
	safety() (volume.Safety, string)
	// arm makes sure that the machine is reset, if feeding ends, within so long after the
	// last feeding. It is an error where the operator requires what cannot be had.
	arm(within time.Duration) error
	// timeout is from the last feeding to the reset; 0 when no watchdog runs.
	timeout() time.Duration
	feed() error
	disarm() error
	// reset resets the machine now. It returns only when it cannot, or may not.
	reset(why string) error
}

// clock reads the boot clock and, as the time since some fixed moment, the wall clock.
type clock func() (boot, wall lease.Moment)

// Fencer stops the writers of one machine.
type Fencer struct {
	log    *slog.Logger
	file   string
	clock  clock
	kernel kernel
	resets resetter
	wake   chan struct{} // the stopper has something to do
	steps  steps
	// version of this program, for Status; "" is not told.
	version string

	mu      sync.Mutex
	r       record
	weak    string // of what the process lacks to do its work whatever the machine is busy with
	no      int    // of the time that writers are stopped for
	problem string // with the writers
	dog     string // with the watchdog
	reset   string // with the reset, when it was tried
	looked  bool   // at least once since the process began
	began   lease.Moment
}

// Times of the fencer's loops.
const (
	// tick is how late a deadline may be noticed.
	tick = 100 * time.Millisecond
	// again is from the end of one round of fencing to the next, at least, and rest at
	// most: between them it is as long as the look took, so that what was killed finds a
	// processor to end on.
	again = 50 * time.Millisecond
	rest  = 200 * time.Millisecond
	// rescan is the time between looks for something mounted late.
	rescan = time.Second
	// lookLimit, killLimit and unmountLimit are how long a step is waited for; it may go
	// on after that, and is then not begun a second time.
	lookLimit    = 2 * time.Second
	killLimit    = time.Second
	unmountLimit = 2 * time.Second
	// firstLook is how long a fencer that was restarted too late may take for a look
	// before it resets the machine.
	firstLook = time.Second
	// parallel unmounts wait for one and the same sync of the pool.
	parallel = 32
)

// newFencer goes on with what an earlier process of the same boot has left in file.
func newFencer(log *slog.Logger, file, boot string, c clock, k kernel, r resetter) *Fencer {
	known, err := load(file, boot)
	if err != nil {
		log.Error("all writers will be stopped", "err", err)
	}
	f := &Fencer{log: log, file: file, clock: c, kernel: k, resets: r, wake: make(chan struct{}, 1), r: known}
	f.began, _ = c()
	if known.Armed || known.Over {
		log.Info("an earlier fencer's work goes on", "lease", known.Lease.No, "over", known.Over, "stopped", known.Stopped)
	}
	return f
}

// run serves and fences until ctx ends. What is armed then is left to the next process.
func (f *Fencer) run(ctx context.Context, l net.Listener, allowed func(net.Conn) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var all sync.WaitGroup
	all.Go(func() { f.keep(ctx) })
	all.Go(func() { f.stopper(ctx) })
	err := f.Serve(ctx, l, allowed)
	cancel()
	all.Wait()
	f.leave()
	return err
}

// ---- what is asked

// Status is what Client.Status returns.
func (f *Fencer) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status()
}

func (f *Fencer) status() Status {
	now, _ := f.clock()
	s := f.r.status(now)
	var missing string
	s.Safety, missing = f.resets.safety()
	var all []string
	for _, p := range []string{f.problem, f.reset, f.dog, missing, f.weak} {
		if p != "" {
			all = append(all, p)
		}
	}
	s.Problem, s.Version = strings.Join(all, "; "), f.version
	return s
}

// do answers one request. What is to be remembered is written before the answer.
func (f *Fencer) do(q request) response {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.change(q)
	a := response{Status: f.status()}
	if err != nil {
		a.Error = err.Error()
	}
	return a
}

func (f *Fencer) change(q request) error {
	r := f.r
	switch q.Do {
	case doStatus:
		return nil
	case doArm:
		if q.Lease == nil {
			return errors.New("arm: no lease is given")
		}
		if err := r.arm(*q.Lease); err != nil {
			return err
		}
		if err := f.resets.arm(r.Lease.Fence); err != nil {
			return fmt.Errorf("lease %d is not taken: %w", q.Lease.No, err)
		}
	case doFence:
		r.stop(q.No, q.Reason)
	case doDisarm:
		if err := r.disarm(); err != nil {
			return err
		}
	case doForget:
		r.forget(q.Containers)
	case doHold:
		r.hold(q.Root, q.Reason)
	case doLift:
		r.lift()
	default:
		return fmt.Errorf("the fencer does not know how to %q", q.Do)
	}
	return f.become(r)
}

// become makes r what the fencer knows. What cannot be written is not so, and the older
// deadline holds; but writers are stopped in any case.
func (f *Fencer) become(r record) error {
	err := r.save(f.file)
	if err != nil && !r.Over {
		return err
	}
	if r.Over && !f.r.Over {
		f.log.Warn("writers are being stopped", "lease", r.Lease.No, "reason", r.Reason)
		f.no++
		select {
		case f.wake <- struct{}{}:
		default:
		}
	}
	if r.Armed != f.r.Armed || r.Lease.No != f.r.Lease.No || r.Lease.Round != f.r.Lease.Round {
		f.log.Info("the lease that is watched has changed", "armed", r.Armed, "lease", r.Lease.No, "round", r.Lease.Round, "fence", r.Lease.Fence)
	}
	f.r = r
	return err
}

// ---- the deadline

// keep watches the clock, feeds the watchdog and resets the machine. It does nothing that
// could wait for a pool, a container or a log.
func (f *Fencer) keep(ctx context.Context) {
	ticks := time.NewTicker(tick)
	defer ticks.Stop()
	boot, wall := f.clock()
	for {
		now, is := f.clock()
		jump := is.Sub(wall) - now.Sub(boot)
		boot, wall = now, is
		f.tick(now, jump)
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
	}
}

func (f *Fencer) tick(now lease.Moment, jump time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.r
	if r.tick(now, jump); r.Over != f.r.Over || r.Lease != f.r.Lease {
		if jump > jumpLimit {
			f.log.Warn("the wall clock has jumped: the machine may have stood still, and the lease is shorter by as much", "jump", jump)
		}
		if err := f.become(r); err != nil {
			f.log.Error("the fencer's state is not written", "err", err)
		}
	}

	switch err := f.watchdog(now); {
	case err == nil:
		f.dog = ""
	case err.Error() != f.dog:
		f.dog = err.Error()
		f.log.Error("the watchdog does not do as it is told", "err", err)
	}
	if !f.r.late(now) || !f.looked && now.Sub(f.began) < firstLook {
		return
	}
	why := fmt.Sprintf("writers of lease %d could not be stopped in time: %s", f.r.Lease.No, f.problem)
	if err := f.resets.reset(why); err != nil && err.Error() != f.reset {
		f.reset = err.Error()
		f.log.Error("writers are not stopped, and other nodes take it for granted that they are", "problem", f.problem, "err", err)
	}
}

// watchdog feeds it as long as somebody may.
func (f *Fencer) watchdog(now lease.Moment) error {
	if !f.r.Armed {
		return f.resets.disarm()
	}
	if err := f.resets.arm(f.r.Lease.Fence); err != nil {
		return err
	}
	if !f.r.feed(now, f.resets.timeout()) {
		return nil
	}
	return f.resets.feed()
}

// ---- the writers

// stopper does one round of fencing after the other as long as writers are to be stopped.
func (f *Fencer) stopper(ctx context.Context) {
	var c campaign
	for {
		f.mu.Lock()
		r, no := f.r, f.no
		f.mu.Unlock()
		var wait <-chan time.Time
		if r.Over {
			if c.no != no {
				c = campaign{no: no}
			}
			wait = time.After(f.round(ctx, r, &c))
		}
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		case <-wait:
		}
	}
}

// campaign is one fencing, from its first round until nothing is left.
type campaign struct {
	no       int // of Fencer
	going    bool
	begin    lease.Moment
	rounds   int
	thorough bool // an unmount was refused: somebody has files open
	times    map[string]time.Duration
	killed   int
	ended    int
	unmounts int
}

// round looks once and does something about what it saw. It returns when to look again.
func (f *Fencer) round(ctx context.Context, r record, c *campaign) time.Duration {
	now, _ := f.clock()
	if !c.going {
		*c = campaign{no: c.no, going: true, begin: now, times: map[string]time.Duration{}}
	}
	c.rounds++
	begin := time.Now()
	s, err := f.look(r.Lease.Root, c)
	pause := min(max(again, time.Since(begin)), rest)
	if err != nil {
		f.says(r, err.Error())
		return pause
	}
	if s.nothing() {
		f.stopped(c)
		return rescan
	}
	p := next(s, now.Sub(c.begin), r.Lease.Fence)
	if f.found(s, p, c) {
		f.perform(ctx, p, c)
	}
	return pause
}

func (f *Fencer) look(root string, c *campaign) (s seen, err error) {
	thorough := c.thorough
	answer := make(chan seen, 1) // a look that hangs may answer when nobody listens any more
	c.timed("look", func() {
		err = f.steps.do("look", lookLimit, func() error {
			s, err := f.kernel.look(root, thorough)
			answer <- s
			return err
		})
	})
	if err != nil {
		return seen{}, fmt.Errorf("looking for mounted volumes: %w", err)
	}
	s = <-answer
	// Whom the last look has found may not have ended yet: every other look is quick.
	c.thorough = len(s.hidden) > 0 && !thorough
	return s, nil
}

// perform does what was decided, as far as the machine lets it; what is left the next
// look shows.
func (f *Fencer) perform(ctx context.Context, p plan, c *campaign) {
	c.timed("kill", func() {
		f.all(len(p.containers), killLimit, func(i int) (string, func() error) {
			return "freeze " + p.containers[i].ID, func() error { return f.kernel.freeze(p.containers[i]) }
		})
		f.all(len(p.containers), killLimit, func(i int) (string, func() error) {
			return "kill " + p.containers[i].ID, func() error { return f.kernel.kill(p.containers[i]) }
		})
		f.all(len(p.processes), killLimit, func(i int) (string, func() error) {
			return fmt.Sprint("end ", p.processes[i].pid), func() error { return f.kernel.end(p.processes[i]) }
		})
		c.killed += len(p.containers)
		c.ended += len(p.processes)
		for deadline := time.Now().Add(killLimit); f.kernel.running(p) && time.Now().Before(deadline) && ctx.Err() == nil; {
			time.Sleep(again / 2)
		}
	})
	c.timed("unmount", func() {
		for _, wave := range p.unmount {
			if failed := f.all(len(wave), unmountLimit, func(i int) (string, func() error) {
				return "unmount " + wave[i].id, func() error { return f.kernel.unmount(wave[i]) }
			}); failed > 0 {
				c.thorough = true
			}
			c.unmounts += len(wave)
		}
		// Only what goes with another one is left: somebody keeps that from going.
		c.thorough = c.thorough || len(p.unmount)+len(p.containers) == 0
	})
}

// all does steps in parallel and counts those that failed.
func (f *Fencer) all(n int, limit time.Duration, step func(i int) (name string, do func() error)) (failed int) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	turns := make(chan struct{}, parallel)
	for i := range n {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			name, do := step(i)
			if err := f.steps.do(name, limit, do); err != nil {
				f.log.Warn("a step of fencing failed", "step", name, "err", err)
				mu.Lock()
				failed++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return failed
}

// found notes what is in the way, and whom it will cost. From then until all is stopped
// no new lease is taken, so that nothing is killed which runs by right. It says no when
// one was taken before.
func (f *Fencer) found(s seen, p plan, c *campaign) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.r
	if !known.Over || f.no != c.no {
		return false
	}
	now, _ := f.clock()
	f.problem, f.looked = s.problem(), true
	known.Fenced = append([]Victim(nil), known.Fenced...)
	known.remember(p.victims)
	if known.Stopped {
		f.log.Warn("something was mounted after all writers were stopped", "problem", f.problem)
		known.found(now)
	}
	if err := f.become(known); err != nil {
		f.log.Error("the fencer's state is not written", "err", err)
	}
	return true
}

func (f *Fencer) says(r record, problem string) {
	f.log.Error("fencing goes on", "lease", r.Lease.No, "problem", problem)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.problem = problem
}

// stopped notes that nothing is left.
func (f *Fencer) stopped(c *campaign) {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.r
	if !known.Over || f.no != c.no {
		return
	}
	f.problem, f.reset, f.looked = "", "", true
	c.going = false
	if known.Stopped {
		return
	}
	now, _ := f.clock()
	f.log.Info("all writers are stopped", "lease", known.Lease.No, "reason", known.Reason, "took", now.Sub(c.begin).Round(time.Millisecond),
		"rounds", c.rounds, "containers", c.killed, "processes", c.ended, "unmounts", c.unmounts,
		"look", c.times["look"], "kill", c.times["kill"], "unmount", c.times["unmount"])
	known.Stopped = true
	if err := f.become(known); err != nil {
		f.log.Error("the fencer's state is not written", "err", err)
	}
}

func (c *campaign) timed(what string, do func()) {
	begin := time.Now()
	do()
	c.times[what] += time.Since(begin).Round(time.Millisecond)
}

// leave ends the process's share without ending what is armed. A watchdog is stopped only
// if nothing can write while nobody watches, so that a machine that shuts down is not
// reset on its way.
func (f *Fencer) leave() {
	f.mu.Lock()
	r := f.r
	f.mu.Unlock()
	if f.resets.timeout() == 0 {
		return
	}
	if r.Armed && !r.Stopped && !f.quiet(r.Lease.Root) {
		f.log.Warn("the fencer stops while volumes are in use: it must be back before the watchdog resets the machine", "after", f.resets.timeout())
		return
	}
	if err := f.resets.disarm(); err != nil {
		f.log.Error("the watchdog goes on", "err", err)
	}
}

// quiet unmounts what is mounted for nobody, and says whether nothing is mounted then.
func (f *Fencer) quiet(root string) bool {
	c := &campaign{times: map[string]time.Duration{}}
	s, err := f.look(root, c)
	p := next(s, 0, 0)
	if err != nil || len(p.containers) > 0 {
		return false
	}
	f.perform(context.Background(), plan{unmount: p.unmount}, c)
	s, err = f.look(root, c)
	return err == nil && s.nothing()
}

// ---- steps

// steps waits for calls into the kernel only so long. One that hangs goes on by itself,
// and is not begun again before it has returned; nobody can join a goroutine that the
// kernel keeps.
type steps struct {
	mu   sync.Mutex
	open map[string]bool
}

func (s *steps) do(name string, limit time.Duration, f func() error) error {
	s.mu.Lock()
	if s.open[name] {
		s.mu.Unlock()
		return errors.New("hangs")
	}
	if s.open == nil {
		s.open = map[string]bool{}
	}
	s.open[name] = true
	s.mu.Unlock()
	done := make(chan error, 1)
	go func() {
		err := f()
		s.mu.Lock()
		delete(s.open, name)
		s.mu.Unlock()
		done <- err
	}()
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	select {
	case err := <-done:
		return err
	case <-timeout.C:
		return fmt.Errorf("not done after %v", limit)
	}
}
