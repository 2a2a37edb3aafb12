package fence

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/mounts"
	"github.com/flocker-io/flocker/internal/volume"
)

// fakeMachine is a kernel and a resetter in memory. Unlike the real ones it ends
// what is killed at once, and takes the machine's reset as one more thing to note.
type fakeMachine struct {
	mu       sync.Mutex
	s        seen // mounts and users are what is there; an unmount is refused while a user has the volume
	done     []string
	crash    func(step string)
	policy   volume.Safety
	dog      time.Duration // since the last feeding the watchdog waits so long; 0: it does not run
	fed      int
	wasReset string
	refuse   error // of arm
}

func (m *fakeMachine) step(name string) {
	m.mu.Lock()
	m.done = append(m.done, name)
	crash := m.crash
	m.mu.Unlock()
	if crash != nil {
		crash(name)
	}
}

func (m *fakeMachine) look(root string, thorough bool) (seen, error) {
	m.step("look")
	m.mu.Lock()
	defer m.mu.Unlock()
	s := seen{mounts: slices.Clone(m.s.mounts), containers: map[string]mounts.Container{}, hidden: slices.Clone(m.s.hidden)}
	for _, mt := range s.mounts {
		for _, c := range mt.containers {
			s.containers[c] = mounts.Container{ID: c}
		}
	}
	if thorough {
		s.users = slices.Clone(m.s.users)
		for _, u := range s.users {
			if u.container != "" {
				s.containers[u.container] = mounts.Container{ID: u.container}
			}
		}
	}
	return s, nil
}

func (m *fakeMachine) freeze(c mounts.Container) error { m.step("freeze " + c.ID); return nil }

func (m *fakeMachine) kill(c mounts.Container) error {
	m.step("kill " + c.ID)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.s.mounts = slices.DeleteFunc(m.s.mounts, func(mt mount) bool { return slices.Contains(mt.containers, c.ID) })
	m.s.users = slices.DeleteFunc(m.s.users, func(p process) bool { return p.container == c.ID })
	return nil
}

func (m *fakeMachine) end(p process) error {
	m.step(fmt.Sprint("end ", p.pid))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.s.users = slices.DeleteFunc(m.s.users, func(u process) bool { return u.pid == p.pid })
	return nil
}

func (m *fakeMachine) running(plan) bool { return false }

func (m *fakeMachine) unmount(mt mount) error {
	m.step("unmount " + mt.at)
	m.mu.Lock()
	defer m.mu.Unlock()
	if slices.ContainsFunc(m.s.users, func(u process) bool { return slices.Contains(u.volumes, mt.volume) }) {
		return errors.New("busy")
	}
	m.s.mounts = slices.DeleteFunc(m.s.mounts, func(o mount) bool { return o.id == mt.id || o.follows && o.volume == mt.volume })
	return nil
}

func (m *fakeMachine) safety() (volume.Safety, string) { return m.policy, "" }

func (m *fakeMachine) arm(within time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuse != nil {
		return m.refuse
	}
	if m.policy == volume.SafetyWatchdog {
		m.dog = within
	}
	return nil
}

func (m *fakeMachine) timeout() time.Duration { m.mu.Lock(); defer m.mu.Unlock(); return m.dog }
func (m *fakeMachine) feed() error            { m.mu.Lock(); defer m.mu.Unlock(); m.fed++; return nil }
func (m *fakeMachine) disarm() error          { m.mu.Lock(); defer m.mu.Unlock(); m.dog = 0; return nil }

func (m *fakeMachine) reset(why string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.policy == volume.SafetySoftware {
		return errors.New("it may not be")
	}
	m.wasReset = why
	return nil
}

func (m *fakeMachine) resetBecause() string { m.mu.Lock(); defer m.mu.Unlock(); return m.wasReset }

func (m *fakeMachine) was(step string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Contains(m.done, step)
}

// start makes a fencer on a fake machine, its clocks being the bubble's.
func start(t *testing.T, dir string, m *fakeMachine) *Fencer {
	t.Helper()
	return newFencer(slog.New(slog.NewTextHandler(t.Output(), nil)), filepath.Join(dir, "fence.json"), boot, testClock, m, m)
}

func testClock() (bootTime, wall lease.Moment) {
	n := lease.Moment(time.Now().UnixNano())
	return n, n
}

func inUse() seen {
	return seen{mounts: []mount{
		{id: "1", volume: "v1", at: "/v/v1", ours: true},
		{id: "2", volume: "v1", at: "/v/v1", ns: "b", follows: true},
		{id: "3", volume: "v1", at: "/data", ns: "c", containers: []string{"c1"}},
		{id: "4", volume: "v2", at: "/v/v2", ours: true},
	}, users: []process{{pid: 30, command: "sh", volumes: []string{"v2"}}}}
}
