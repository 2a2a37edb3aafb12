package fence

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flocker-io/flocker/internal/volume"
)

// machine resets this one. Its caller calls one method at a time.
type machine struct {
	log    *slog.Logger
	policy Policy
	want   string
	m      means

	dev    *os.File // nil while no watchdog runs
	within time.Duration
	fires  time.Duration
	lost   error // why a watchdog that seemed to be free could not be used
}

// newMachine chooses how this one is reset. A watchdog that an earlier fencer has left
// running, because a lease is armed, is fed on, or stopped where another means is chosen.
func newMachine(log *slog.Logger, policy Policy, want string, armed bool) (*machine, error) {
	dogs, err := findDogs("/sys/class/watchdog", "/dev")
	if err != nil {
		return nil, err
	}
	return machineWith(log, policy, want, dogs, unix.Access(sysrqTrigger, unix.W_OK) == nil, armed), nil
}

func machineWith(log *slog.Logger, policy Policy, want string, dogs []dog, sysrq, armed bool) *machine {
	m := &machine{log: log, policy: policy, want: want, m: choose(policy, want, dogs, sysrq)}
	for _, d := range dogs {
		var err error
		switch {
		case d.left == nil:
			continue
		case d.device == m.m.watchdog:
			m.dev = d.left
			continue
		case armed:
			err = stop(d.left)
		default:
			err = d.left.Close() // whoever it belongs to, it goes on
		}
		if err != nil {
			log.Error("a watchdog that was left running goes on", "device", d.device, "err", err)
		}
	}
	return m
}

const sysrqTrigger = "/proc/sysrq-trigger"

// findDogs lists the watchdogs of the machine. That one runs does not say that somebody
// has it: the kernel lets go of it, and lets it run on, when a process ends without having
// stopped it. To open it is the only way to know, and feeds it no more than it was.
func findDogs(sysfs, dev string) ([]dog, error) {
	entries, err := os.ReadDir(sysfs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for watchdogs: %w", err)
	}
	var out []dog
	for _, e := range entries {
		read := func(name string) string {
			b, _ := os.ReadFile(filepath.Join(sysfs, e.Name(), name)) // not every driver has all
			return strings.TrimSpace(string(b))
		}
		d := dog{device: filepath.Join(dev, e.Name()), stuck: read("nowayout") == "1"}
		if read("state") == "active" {
			d.left, err = os.OpenFile(d.device, os.O_WRONLY, 0)
			d.busy = err != nil
		}
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b dog) int { return strings.Compare(a.device, b.device) })
	return out, nil
}

// safety implements resetter.
func (m *machine) safety() (volume.Safety, string) {
	if m.lost != nil && m.dev == nil {
		return means{sysrq: m.m.sysrq}.safety(), m.lost.Error()
	}
	return m.m.safety(), m.m.missing
}

// timeout implements resetter.
func (m *machine) timeout() time.Duration { return m.fires }

// arm implements resetter.
func (m *machine) arm(within time.Duration) error {
	if m.policy == PolicyWatchdog && m.m.watchdog == "" {
		return errors.New(m.m.missing)
	}
	if m.m.watchdog == "" || m.within == within && (m.dev != nil || m.policy == PolicyAuto) {
		return nil // there is none, it runs, or it was tried
	}
	m.within = within
	m.lost = m.start(within)
	if m.lost == nil {
		m.log.Info("a watchdog resets the machine if the fencer does not live, or cannot do its part", "device", m.m.watchdog, "after", m.fires)
		return nil
	}
	m.log.Error("there is no watchdog", "err", m.lost)
	err := m.disarm()
	m.within = within
	if m.policy == PolicyWatchdog {
		err = errors.Join(m.lost, err)
	}
	return err
}

func (m *machine) start(within time.Duration) error {
	if m.dev == nil {
		f, err := os.OpenFile(m.m.watchdog, os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("starting the watchdog: %w", err)
		}
		m.dev = f
	}
	fd := int(m.dev.Fd())
	seconds, err := unix.IoctlGetInt(fd, unix.WDIOC_GETTIMEOUT)
	// To set the time feeds it, which a watchdog that was left running may be past.
	if err == nil && time.Duration(int32(seconds))*time.Second != within {
		if err := unix.IoctlSetPointerInt(fd, unix.WDIOC_SETTIMEOUT, int(within/time.Second)); err != nil {
			return fmt.Errorf("setting the watchdog %s to %v: %w", m.m.watchdog, within, err)
		}
		seconds, err = unix.IoctlGetInt(fd, unix.WDIOC_GETTIMEOUT)
	}
	if err != nil {
		return fmt.Errorf("reading the time of the watchdog %s: %w", m.m.watchdog, err)
	}
	m.fires = time.Duration(int32(seconds)) * time.Second
	if m.fires > within || m.fires <= 0 {
		return fmt.Errorf("the watchdog %s fires after %v; the lease's profile needs %v", m.m.watchdog, m.fires, within)
	}
	return nil
}

// feed implements resetter.
func (m *machine) feed() error {
	if m.dev == nil {
		return nil
	}
	_, err := m.dev.Write([]byte{0})
	return err
}

// disarm implements resetter.
func (m *machine) disarm() error {
	dev := m.dev
	m.dev, m.within, m.fires = nil, 0, 0
	if dev == nil {
		m.lost = nil
		return nil
	}
	return stop(dev)
}

// stop a watchdog: V says that it is closed on purpose.
func stop(dev *os.File) error {
	_, err := dev.Write([]byte("V"))
	return errors.Join(err, dev.Close())
}

// reset implements resetter. Nothing is synced before: what is not on disk by now must
// not get there.
func (m *machine) reset(why string) error {
	if !m.m.sysrq {
		if m.dev != nil {
			return errors.New("the watchdog has not reset it yet")
		}
		return errors.New(m.m.missing)
	}
	m.log.Error("the machine is being reset", "reason", why)
	if err := os.WriteFile("/dev/kmsg", []byte("<0>flocker: resetting the machine: "+why+"\n"), 0); err != nil {
		m.log.Error("the kernel's log cannot be written", "err", err)
	}
	if err := os.WriteFile(sysrqTrigger, []byte("b"), 0); err != nil {
		return fmt.Errorf("resetting the machine: %w", err)
	}
	return nil
}
