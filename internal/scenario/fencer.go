package scenario

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/container/containerfake"
	"github.com/flocker-io/flocker/internal/fence"
	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// fencer is daemon.Fencer of one machine: a process of its own, which outlives flockd
// and knows nothing of it. What it does takes no time: it kills the fake engine's
// containers and unmounts the fake datasets. Where that fails it resets the machine.
type fencer struct {
	zfs    *zfsfake.Host
	engine *containerfake.Engine
	clock  func() lease.Moment
	reset  func()

	mu     sync.Mutex
	boot   string
	safety volume.Safety
	down   bool // by a script
	only   bool // nobody but this process can stop the writers
	refuse bool // the next lease is refused once
	off    bool // with the machine, which it has reset
	state  fence.Phase
	lease  fence.Lease
	fenced []fence.Victim
	fences []string // what it has fenced, and why
	timer  *time.Timer
	dying  sync.WaitGroup // containers that their engine may start again
}

var errFencerDown = errors.New("dial unix /run/flocker/fence.sock: connect: connection refused")

// powerOn is the fencer after a boot: it remembers nothing.
func (f *fencer) powerOn(boot string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopTimer()
	f.boot, f.state, f.lease, f.fenced, f.off = boot, fence.PhaseIdle, fence.Lease{}, nil, false
}

// isSafe has it reset the machine in that way from now on, or in none.
func (f *fencer) isSafe(how volume.Safety) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.safety = how
}

// powerOff ends it.
func (f *fencer) powerOff() {
	f.mu.Lock()
	f.stopTimer()
	f.state = fence.PhaseIdle
	f.mu.Unlock()
	f.dying.Wait()
}

func (f *fencer) stopTimer() {
	if f.timer != nil {
		f.timer.Stop()
		f.timer = nil
	}
}

// setDown stops or starts the process. What it knows is in a file.
func (f *fencer) setDown(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopTimer()
	f.down = down
	if !down {
		f.watch()
	}
}

// isDown says that a script has ended the process.
func (f *fencer) isDown() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.down
}

// refuseOnce has the next lease taken over at the second try.
func (f *fencer) refuseOnce() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = true
}

// log is what it has fenced.
func (f *fencer) log() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.fences)
}

// watch sets the alarm for the deadline. The caller has the lock.
func (f *fencer) watch() {
	f.stopTimer()
	if f.state != fence.PhaseArmed || f.down {
		return
	}
	f.timer = time.AfterFunc(f.lease.Until.Sub(f.clock()), func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.state == fence.PhaseArmed && !f.down && f.clock() >= f.lease.Until {
			f.fence("the deadline has passed")
		}
	})
}

// fence stops all writers. The caller has the lock.
func (f *fencer) fence(why string) {
	f.fences = append(f.fences, fmt.Sprintf("%s lease %d of round %d: %s", time.Now().Format("04:05.000"), f.lease.No, f.lease.Round, why))
	f.state = fence.PhaseFenced
	f.fenced = append(f.fenced, f.stopWriters(f.lease.Root)...)
	if f.state == fence.PhaseFailed {
		f.off = true
		f.reset()
	}
}

// stopWriters kills and unmounts.
func (f *fencer) stopWriters(root string) (victims []fence.Victim) {
	for _, name := range f.engine.Kill() {
		victims = append(victims, fence.Victim{Container: name.Container, Name: name.Name})
		f.dying.Go(func() { f.engine.Reap(name.Name) })
	}
	for _, m := range f.zfs.Mounts() {
		if strings.HasPrefix(m.Dataset, root+"/") {
			if err := f.zfs.Unmount(bystander, m.Dataset); err != nil {
				f.state = fence.PhaseFailed
			}
		}
	}
	return victims
}

func (f *fencer) status() fence.Status {
	return fence.Status{
		Safety: f.safety, State: f.state, Lease: f.lease, Fenced: slices.Clone(f.fenced), Boot: f.boot,
		Saved: lease.Saved{No: f.lease.No, TTL: f.lease.TTL, Until: f.lease.Until, Begun: f.lease.No != 0, Over: f.state == fence.PhaseFenced},
	}
}

// do answers one call.
func (f *fencer) do(work func()) (fence.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down || f.off {
		return fence.Status{}, errFencerDown
	}
	work()
	f.watch()
	return f.status(), nil
}

// Arm implements daemon.Fencer.
func (f *fencer) Arm(_ context.Context, l fence.Lease) (fence.Status, error) {
	f.mu.Lock()
	refuse := f.refuse
	f.refuse = false
	f.mu.Unlock()
	if refuse {
		return fence.Status{}, errFencerDown
	}
	return f.do(func() {
		switch {
		case !l.Of(f.lease.Node) && f.state == fence.PhaseArmed:
			return
		case !l.Of(f.lease.Node):
		case l.No < f.lease.No, l.No == f.lease.No && (l.Until <= f.lease.Until || f.state != fence.PhaseArmed):
			return
		}
		f.lease, f.state = l, fence.PhaseArmed
		if f.clock() >= l.Until {
			f.fence("the deadline has passed")
		}
	})
}

// Fence implements daemon.Fencer.
func (f *fencer) Fence(_ context.Context, no uint64, why string) (fence.Status, error) {
	return f.do(func() {
		if no >= f.lease.No && f.state != fence.PhaseFenced {
			f.fence("the deadline has passed")
		}
	})
}

// Disarm implements daemon.Fencer.
func (f *fencer) Disarm(context.Context) (fence.Status, error) {
	return f.do(func() { f.state = fence.PhaseIdle })
}

// Hold implements daemon.Fencer.
func (f *fencer) Hold(_ context.Context, root, why string) (fence.Status, error) {
	return f.do(func() {
		f.fences = append(f.fences, why)
		f.fenced = append(f.fenced, f.stopWriters(root)...)
	})
}

// Lift implements daemon.Fencer.
func (f *fencer) Lift(context.Context) (fence.Status, error) { return f.do(func() {}) }

// Status implements daemon.Fencer.
func (f *fencer) Status(context.Context) (fence.Status, error) { return f.do(func() {}) }

// Forget implements daemon.Fencer.
func (f *fencer) Forget(_ context.Context, containers []string) error {
	_, err := f.do(func() {
		f.fenced = slices.DeleteFunc(f.fenced, func(v fence.Victim) bool { return slices.Contains(containers, v.Container) })
	})
	return err
}

// instead is daemon.Parts.StopWriters: what flockd does itself when its fencer is gone.
func (f *fencer) instead(_ context.Context, root string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.only {
		return errFencerDown
	}
	f.fenced = append(f.fenced, f.stopWriters(root)...)
	if f.state == fence.PhaseFailed {
		return fmt.Errorf("something below %s is still mounted", root)
	}
	return nil
}
