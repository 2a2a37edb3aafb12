package zfs

import (
	"context"
	"time"
)

// Source is what a program is handed with these arguments.
func Source(text string, args ...string) string { return program{text: text}.source(args) }

// Waiting is how many commands wait for their input.
func (h *Host) Waiting() (n int) {
	h.ahead.mu.Lock()
	defer h.ahead.mu.Unlock()
	for _, w := range h.ahead.places {
		if w.standby != nil {
			n++
		}
	}
	return n
}

// Kept is how many are being started, or wait.
func (h *Host) Kept() (n int) {
	h.ahead.mu.Lock()
	defer h.ahead.mu.Unlock()
	for _, w := range h.ahead.places {
		if w.kept {
			n++
		}
	}
	return n
}

// WaitFor sets how long commands wait for their input.
func (h *Host) WaitFor(d time.Duration) { h.ahead.idle = d }

// PruneFull has the next program that prunes a pool have as many snapshots as one ever has.
func (h *Host) PruneFull(pool string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.paces[paceOf{pool: pool}] = pace{most: PruneBatch}
}

// HandToDead hands a program to a command that has died while it waited, before anybody
// has noticed.
func (h *Host) HandToDead(argv []string) (begun bool, err error) {
	s, err := prepare(argv)
	if err != nil {
		return false, err
	}
	s.child.cmd.Process.Kill()
	<-s.child.ended
	_, begun, err = h.hand(context.Background(), s, command{op: "take", argv: argv, input: "return 1"})
	return begun, err
}
