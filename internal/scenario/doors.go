package scenario

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/container/containerfake"
	"github.com/flocker-io/flocker/internal/daemon"
	"github.com/flocker-io/flocker/internal/warm"
)

// doors is daemon.Doors of one machine: what containers that wait have beside its engine.
type doors struct {
	machine *Machine

	mu      sync.Mutex
	all     map[string]*door
	settled map[string]bool
	named   map[string]string    // IDs of containers
	used    map[string]time.Time // when they were last
	opened  int
	gone    int  // containers that went on from their gates
	broken  bool // volumes do not come into containers
	unfit   bool // which is known before
	short   bool // the commands of containers end as soon as they have begun
}

func newDoors(m *Machine) *doors {
	return &doors{machine: m, all: map[string]*door{}, settled: map[string]bool{}, named: map[string]string{}, used: map[string]time.Time{}}
}

// Program implements daemon.Doors.
func (d *doors) Program() string { return "/usr/local/bin/flockd" }

// Open implements daemon.Doors.
func (d *doors) Open(token string) (daemon.Door, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.opened++
	at := &door{doors: d, token: token, pid: d.opened}
	d.all[token], d.used[token] = at, time.Now()
	return at, nil
}

// Of implements daemon.Doors.
func (d *doors) Of(pid int) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, at := range d.all {
		if at.pid == pid {
			id, _ := d.machine.Engine.Gate(at.token)
			return id
		}
	}
	return ""
}

// Holders implements daemon.Doors.
func (d *doors) Holders(token string) ([]string, error) {
	return d.machine.Engine.Holders("/placeholder/" + token), nil
}

// Release implements daemon.Doors.
func (d *doors) Release(string) error { return nil }

// Settled implements daemon.Doors.
func (d *doors) Settled(token string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.settled[token]
}

// Settle implements daemon.Doors.
func (d *doors) Settle(token string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.settled[token] = true
	return nil
}

// Container implements daemon.Doors.
func (d *doors) Container(token string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.named[token]
}

// Name implements daemon.Doors.
func (d *doors) Name(token, id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.named[token] = id
	return nil
}

// Unused implements daemon.Doors.
func (d *doors) Unused(token string) (time.Duration, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Since(d.used[token]), nil
}

// Use implements daemon.Doors.
func (d *doors) Use(token string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.used[token] = time.Now()
	return nil
}

// All implements daemon.Doors.
func (d *doors) All() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.all)), nil
}

// Discard implements daemon.Doors.
func (d *doors) Discard(token string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.all, token)
	delete(d.settled, token)
	delete(d.named, token)
	delete(d.used, token)
	return nil
}

// end is the end of the process that has opened them: so end the gates.
func (d *doors) end() {
	d.mu.Lock()
	all := slices.Collect(maps.Values(d.all))
	d.mu.Unlock()
	for _, at := range all {
		_ = at.Close() // it never fails
	}
}

type door struct {
	doors *doors
	token string
	pid   int
}

func (d *door) engine() *containerfake.Engine   { return d.doors.machine.Engine }
func (d *door) Placeholder() string             { return "/placeholder/" + d.token }
func (d *door) Socket() string                  { return "/door/" + d.token }
func (d *door) PID() int                        { return d.pid }
func (d *door) Close() error                    { d.engine().Release(d.token, false); return nil }
func (d *door) place(dir string) warm.Place     { return warm.Place{Device: 1, Inode: uint64(len(dir))} }
func (d *door) Await(ctx context.Context) error { return ctx.Err() }

func (d *door) Check(string) error {
	d.doors.mu.Lock()
	defer d.doors.mu.Unlock()
	if d.doors.unfit {
		return errors.New("open_tree: function not implemented")
	}
	return nil
}

func (d *door) Inject(source, at string) (warm.Place, error) {
	d.doors.mu.Lock()
	broken := d.doors.broken
	d.doors.mu.Unlock()
	_, has := d.engine().Gate(d.token)
	switch {
	case broken:
		return warm.Place{}, errors.New("move_mount: operation not permitted")
	case has != d.Placeholder():
		return warm.Place{}, fmt.Errorf("%s in the container is %q", at, has)
	}
	d.doors.machine.world.checkWriters()
	d.engine().Inject(d.token, source)
	return d.place(source), nil
}

func (d *door) Withdraw(warm.Place, string) error {
	d.engine().Inject(d.token, d.Placeholder())
	return nil
}

func (d *door) Go(_ context.Context, p warm.Place) error {
	_, has := d.engine().Gate(d.token)
	if has == "" || d.place(has) != p {
		return fmt.Errorf("the container is gone, or has %q", has)
	}
	d.engine().Release(d.token, true)
	d.doors.mu.Lock()
	d.doors.gone++
	short := d.doors.short
	d.doors.mu.Unlock()
	if short {
		d.engine().Finish(d.token)
	}
	return nil
}

// doorStep is a step about containers that are started ahead; ok is false for another step.
//
//	run-ahead NODE CONTAINER VOLUME..  run-following with the label that asks for it, and one that has hooks run
//	waits NODE CONTAINER           until it waits there
//	not-waiting NODE               none is at a gate there, whatever flockd knows
//	leaves NODE CONTAINER VOLUME   flockd there died while that waited
//	went NODE NUMBER               so many containers went on from their gates there, and none waits
//	gates NODE broken|unfit|short|mended   volumes do not come into containers that wait there, which
//	                               is known before with unfit, or their commands end at once; all is well again
func (w *World) doorStep(words []string) (ok bool, err error) {
	if len(words) < 2 || w.nodes[words[1]] == nil {
		return false, nil
	}
	m := w.nodes[words[1]]
	waiting := func() (names []string) {
		all, err := m.Engine.Waiters(w.ctx())
		if err != nil {
			return []string{err.Error()}
		}
		for _, c := range all {
			if c.Waiting || c.AtGate {
				names = append(names, strings.TrimSuffix(c.Name, ".flocker-warm"))
			}
		}
		return names
	}
	switch words[0] {
	case "run-ahead":
		return true, m.Engine.Run(words[2], containerfake.RunOptions{
			Labels: map[string]string{container.LabelEnable: "true", container.LabelPrestart: "true", container.LabelPreStop: "sync"}, Env: []string{secret}, Image: words[2] + ":1", Restart: "always",
		}, words[3:]...)
	case "waits":
		w.Await(strings.Join(words, " "), func() bool { return slices.Contains(waiting(), words[2]) })
	case "not-waiting":
		all, err := m.Engine.Waiters(w.ctx())
		if slices.ContainsFunc(all, func(c container.Waiter) bool { return c.AtGate }) {
			err = errors.Join(err, fmt.Errorf("there are %v", waiting()))
		}
		return true, err
	case "leaves":
		if m.Up() {
			return true, errors.New("flockd runs there")
		}
		m.Engine.Leave(words[2], words[3])
		_, err := m.doors.Open(words[2])
		return true, err
	case "went":
		w.Await(strings.Join(words, " "), func() bool {
			m.doors.mu.Lock()
			defer m.doors.mu.Unlock()
			return fmt.Sprint(m.doors.gone) == words[2] && len(waiting()) == 0
		})
	case "gates":
		m.doors.mu.Lock()
		m.doors.unfit = words[2] == "unfit"
		m.doors.broken, m.doors.short = words[2] == "broken", words[2] == "short"
		m.doors.mu.Unlock()
	default:
		return false, nil
	}
	return true, nil
}
