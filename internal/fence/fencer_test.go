package fence

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/volume"
)

// run starts the loops of a fencer without its socket, and stops them with the returned
// function.
func run(f *Fencer) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	go func() { f.keep(ctx); done <- struct{}{} }()
	go func() { f.stopper(ctx); done <- struct{}{} }()
	return func() { cancel(); <-done; <-done }
}

func armFor(t *testing.T, f *Fencer, no uint64, d time.Duration) response {
	t.Helper()
	now, _ := testClock()
	return f.do(request{Do: doArm, Lease: &Lease{No: no, Boot: boot, Round: 1, Until: now.Add(d), Fence: 5 * time.Second, Root: "tank/flocker"}})
}

// Nothing happens while the lease is renewed; then everything does, in order.
func TestFencing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &fakeMachine{s: inUse(), policy: volume.SafetySysrq}
		f := start(t, t.TempDir(), m)
		defer run(f)()
		for range 20 {
			if a := armFor(t, f, 1, 10*time.Second); a.Error != "" || a.Status.State != PhaseArmed {
				t.Fatalf("armed: %+v", a)
			}
			time.Sleep(2 * time.Second)
		}
		time.Sleep(8*time.Second - time.Millisecond)
		if m.was("look") {
			t.Fatal("it looks while the lease runs")
		}
		time.Sleep(tick + 3*again)
		s := f.Status()
		if s.State != PhaseFenced || s.Problem != "" || !s.Saved.Over {
			t.Errorf("%+v", s)
		}
		if len(s.Fenced) != 1 || s.Fenced[0].Container != "c1" || !slices.Equal(s.Fenced[0].Volumes, []string{"v1"}) {
			t.Errorf("victims %+v", s.Fenced)
		}
		m.mu.Lock()
		got := strings.Join(m.done, ", ")
		m.mu.Unlock()
		// The shell has files open, which is seen when the unmount is refused.
		got = strings.ReplaceAll(got, "unmount /v/v2, unmount /v/v1", "unmount /v/v1, unmount /v/v2") // in any order
		if want := "look, freeze c1, kill c1, unmount /v/v1, unmount /v/v2, look, end 30, unmount /v/v2, look"; got != want {
			t.Errorf("did %s, want %s", got, want)
		}
		if why := m.resetBecause(); why != "" {
			t.Errorf("reset: %s", why)
		}
		if a := f.do(request{Do: doForget, Containers: []string{"c1"}}); len(a.Status.Fenced) != 0 {
			t.Errorf("not forgotten: %+v", a.Status.Fenced)
		}

		// What is mounted later goes, too, and meanwhile there is no new lease.
		m.mu.Lock()
		m.s = inUse()
		m.done = nil
		m.mu.Unlock()
		time.Sleep(rescan + 4*again)
		if s := f.Status(); s.State != PhaseFenced || !m.was("kill c1") || m.resetBecause() != "" {
			t.Errorf("mounted late: %+v, reset %q", s, m.resetBecause())
		}
		if a := armFor(t, f, 1, time.Minute); a.Status.State != PhaseFenced {
			t.Errorf("the lease is revived: %+v", a.Status)
		}

		// Under a new one all may run again.
		if a := armFor(t, f, 2, time.Minute); a.Error != "" || a.Status.State != PhaseArmed {
			t.Errorf("a new lease: %+v", a)
		}
		m.mu.Lock()
		m.s = inUse()
		m.done = nil
		m.mu.Unlock()
		time.Sleep(30 * time.Second)
		if m.was("kill c1") {
			t.Error("killed under a lease")
		}
	})
}

// Without a lease nothing is ever touched.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &fakeMachine{s: inUse(), policy: volume.SafetyWatchdog}
		f := start(t, t.TempDir(), m)
		stop := run(f)
		time.Sleep(time.Hour)
		stop()
		if len(m.done) > 0 || m.fed > 0 || m.wasReset != "" {
			t.Errorf("did %v, fed %d, reset %q", m.done, m.fed, m.wasReset)
		}
		stop = run(f)
		armFor(t, f, 1, 10*time.Second)
		f.do(request{Do: doDisarm})
		time.Sleep(time.Hour)
		stop()
		if len(m.done) > 0 || m.dog != 0 {
			t.Errorf("disarmed: did %v, watchdog %v", m.done, m.dog)
		}
	})
}

// What cannot be stopped is reset at the end of the time for it, not before and not much
// later, whatever hangs; without a means for it status says so, and fencing goes on.
func TestNotStopped(t *testing.T) {
	for _, hang := range []string{"look", "kill c1", "unmount /v/v2"} {
		t.Run(strings.ReplaceAll(hang, "/", ""), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &fakeMachine{s: inUse(), policy: volume.SafetySysrq}
				gate := make(chan struct{})
				m.crash = func(step string) {
					if step == hang {
						<-gate
					}
				}
				f := start(t, t.TempDir(), m)
				stop := run(f)
				armFor(t, f, 1, 10*time.Second)
				time.Sleep(15*time.Second - time.Millisecond)
				if early := m.resetBecause(); early != "" {
					t.Errorf("reset too early: %s", early)
				}
				if s := f.Status(); s.State != PhaseFencing || s.Problem == "" {
					t.Errorf("in time: %+v", s)
				}
				time.Sleep(tick + time.Millisecond)
				if late := m.resetBecause(); !strings.Contains(late, "could not be stopped in time") {
					t.Errorf("after %s hung, reset: %q", hang, late)
				}
				if s := f.Status(); s.State != PhaseFailed {
					t.Errorf("too late: %+v", s)
				}
				stop()
				close(gate)
				synctest.Wait()
			})
		})
	}
}

func TestNoReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &fakeMachine{s: inUse(), policy: volume.SafetySoftware}
		m.s.users[0].kind = untouchable
		f := start(t, t.TempDir(), m)
		defer run(f)()
		armFor(t, f, 1, 10*time.Second)
		time.Sleep(20 * time.Second)
		s := f.Status()
		if s.State != PhaseFailed || !strings.Contains(s.Problem, "v2 at /v/v2") || !strings.Contains(s.Problem, "may not be") {
			t.Errorf("%+v", s)
		}
		if a := armFor(t, f, 2, time.Minute); !strings.Contains(a.Error, "still being stopped") {
			t.Errorf("a new lease while a writer of the old one lives: %+v", a)
		}
		m.mu.Lock()
		m.s.users = nil
		m.mu.Unlock()
		time.Sleep(time.Second)
		f.weak = "its memory is not locked"
		if s := f.Status(); s.Problem != f.weak {
			t.Errorf("a fencer that is not privileged says %q", s.Problem)
		}
		f.weak = ""
		if s := f.Status(); s.State != PhaseFenced || s.Problem != "" {
			t.Errorf("at last: %+v", s)
		}
	})
}

// The fencer dies at any step, and its successor does the rest by what is written down.
func TestCrash(t *testing.T) {
	for n := range 12 {
		t.Run(fmt.Sprint("step", n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				m := &fakeMachine{s: inUse(), policy: volume.SafetySysrq}
				dead := make(chan struct{})
				gate := make(chan struct{})
				steps := 0
				m.crash = func(string) {
					m.mu.Lock()
					steps++
					is := steps
					m.mu.Unlock()
					if is == n+1 {
						close(dead)
					}
					if is > n {
						<-gate // for this process nothing happens any more
					}
				}
				f := start(t, dir, m)
				armFor(t, f, 1, 10*time.Second)
				stop := run(f)
				select {
				case <-dead:
				case <-time.After(12 * time.Second):
				}
				before := f.Status()
				stopped := make(chan struct{})
				go func() { stop(); close(stopped) }()
				m.mu.Lock()
				m.crash = nil
				m.mu.Unlock()
				f = start(t, dir, m)
				again := run(f)
				time.Sleep(2 * time.Second)
				again()
				s := f.Status()
				if s.State != PhaseFenced || len(m.s.mounts) > 0 || m.wasReset != "" {
					t.Errorf("after a crash in state %s: %+v, %d mounts left, reset %q", before.State, s, len(m.s.mounts), m.wasReset)
				}
				// Only one that it never came to is missing.
				if len(s.Fenced) != 1 || s.Fenced[0].Container != "c1" {
					t.Errorf("victims %+v", s.Fenced)
				}
				close(gate)
				<-stopped
			})
		})
	}
}

// A fencer that comes back late looks before it resets the machine: perhaps all is well.
func TestLateRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		m := &fakeMachine{policy: volume.SafetySysrq}
		armFor(t, start(t, dir, m), 1, 10*time.Second)
		time.Sleep(time.Minute)
		f := start(t, dir, m)
		stop := run(f)
		time.Sleep(2 * time.Second)
		stop()
		if s := f.Status(); s.State != PhaseFenced || m.wasReset != "" {
			t.Errorf("nothing was mounted: %+v, reset %q", s, m.wasReset)
		}

		dir = t.TempDir()
		armFor(t, start(t, dir, m), 1, 10*time.Second)
		time.Sleep(time.Minute)
		m.s = inUse()
		m.s.users[0].kind = untouchable
		f = start(t, dir, m)
		defer run(f)()
		time.Sleep(2 * time.Second)
		if m.resetBecause() == "" {
			t.Error("a writer long after the lease, and no reset")
		}
	})
}

// The watchdog runs while a lease is armed, is fed as long as nothing could be written
// past what was promised, and is stopped with the lease.
func TestWatchdog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &fakeMachine{s: inUse(), policy: volume.SafetyWatchdog}
		m.s.users[0].kind = untouchable
		f := start(t, t.TempDir(), m)
		defer run(f)()
		fed := func() int { m.mu.Lock(); defer m.mu.Unlock(); return m.fed }
		armFor(t, f, 1, 10*time.Second)
		time.Sleep(9 * time.Second)
		if fed() < 80 || m.timeout() != 5*time.Second {
			t.Errorf("armed: fed %d times, it fires after %v", fed(), m.timeout())
		}
		time.Sleep(time.Second + tick)
		n := fed()
		time.Sleep(3 * time.Second)
		if fed() != n {
			t.Error("fed while writers may live on past the promise")
		}
		m.mu.Lock()
		m.s.users = nil
		m.mu.Unlock()
		time.Sleep(time.Second)
		if fed() == n {
			t.Error("all is stopped, and it is not fed")
		}
		f.do(request{Do: doDisarm})
		time.Sleep(time.Second)
		if m.timeout() != 0 {
			t.Error("disarmed, and the watchdog runs")
		}
		m.mu.Lock()
		m.refuse = errors.New("no watchdog")
		m.mu.Unlock()
		if a := armFor(t, f, 2, 10*time.Second); !strings.Contains(a.Error, "no watchdog") || a.Status.State != PhaseIdle {
			t.Errorf("a lease without the watchdog that is required: %+v", a)
		}
	})
}

// At its end the process leaves a watchdog alone only if somebody could be writing.
func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &fakeMachine{s: inUse(), policy: volume.SafetyWatchdog}
		f := start(t, t.TempDir(), m)
		stop := run(f)
		armFor(t, f, 1, 10*time.Second)
		time.Sleep(time.Second)
		stop()
		f.leave()
		if m.timeout() == 0 || m.was("kill c1") || m.was("unmount /v/v1") {
			t.Errorf("in use: it fires after %v, did %v", m.timeout(), m.done)
		}
		m.s = seen{mounts: []mount{{id: "1", volume: "v1", at: "/v/v1", ours: true}}}
		f.leave()
		if m.timeout() != 0 || len(m.s.mounts) > 0 {
			t.Errorf("not in use: it fires after %v, %d mounts", m.timeout(), len(m.s.mounts))
		}
		if s := f.Status(); s.State != PhaseArmed {
			t.Errorf("the lease is gone: %+v", s)
		}
	})
}

// An operator stops everything without any lease; only he lets it go on.
func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &fakeMachine{s: inUse(), policy: volume.SafetySysrq}
		m.s.users = nil
		f := start(t, t.TempDir(), m)
		defer run(f)()
		f.do(request{Do: doHold, Root: "tank/flocker", Reason: "the network is cut"})
		time.Sleep(time.Second)
		if s := f.Status(); s.State != PhaseFenced || !s.Operator || s.Reason != "the network is cut" || !m.was("kill c1") {
			t.Errorf("%+v", s)
		}
		if a := armFor(t, f, 1, time.Minute); !strings.Contains(a.Error, "flockd fence lift") {
			t.Errorf("a lease: %+v", a)
		}
		if a := f.do(request{Do: doLift}); a.Status.State != PhaseIdle {
			t.Errorf("lifted: %+v", a)
		}
	})
}

// Where the wall clock runs ahead the machine may have stood still, and what is left of
// the lease is less.
func TestJump(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &fakeMachine{policy: volume.SafetySysrq}
		f := start(t, t.TempDir(), m)
		begin := time.Now()
		f.clock = func() (bootTime, wall lease.Moment) {
			if bootTime, wall = testClock(); time.Since(begin) > 3*time.Second {
				wall = wall.Add(8 * time.Second)
			}
			return bootTime, wall
		}
		defer run(f)()
		armFor(t, f, 1, 10*time.Second)
		time.Sleep(3 * time.Second)
		if s := f.Status(); s.State != PhaseArmed {
			t.Errorf("before: %+v", s)
		}
		time.Sleep(time.Second)
		if s := f.Status(); s.State != PhaseFenced {
			t.Errorf("after: %+v", s)
		}
	})
}

// Without a fencer another process stops the writers, and the fencer that comes back
// knows of it.
func TestInstead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		m := &fakeMachine{s: inUse(), policy: volume.SafetySysrq}
		armFor(t, start(t, dir, m), 1, time.Hour) // it is killed then

		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := start(t, dir, m).instead(ctx, "tank/flocker"); err != nil {
			t.Fatal(err)
		}
		m.mu.Lock()
		left := m.s
		m.mu.Unlock()
		if !left.nothing() {
			t.Errorf("left: %s", left.problem())
		}

		f := start(t, dir, m)
		defer run(f)()
		time.Sleep(2 * firstLook)
		if s := f.Status(); s.State != PhaseFenced || !s.Saved.Over || len(s.Fenced) != 1 || s.Fenced[0].Container != "c1" || m.resetBecause() != "" {
			t.Errorf("the fencer that comes back: %+v, reset %q", s, m.resetBecause())
		}

		// Again, which asks the machine and not the file: something was mounted since.
		m.mu.Lock()
		m.s = inUse()
		m.s.users[0].kind = untouchable
		m.mu.Unlock()
		if err := start(t, dir, m).instead(ctx, "tank/flocker"); err == nil || !strings.Contains(err.Error(), "process 30") {
			t.Errorf("with a process that cannot be killed: %v, want it named", err)
		}
	})
}
