package zfsfake

import (
	"context"
	"errors"
	"maps"
	"strings"
	"time"
)

// Rule makes commands fail, wait or tell. It applies to commands whose op is Op
// ("" for any; the ops are those of zfs.Error) and whose names hold Match, from
// the Nth matching one on (1 is the first; 0 is like 1), Times times (0: for ever).
type Rule struct {
	Op    string
	Match string
	Nth   int
	Times int
	// After: Do runs when the command has done its work, so that an error is one of
	// those after which the state is unknown. Else it runs before, and an error
	// means that nothing was done.
	After bool
	// Do returns what becomes of the command. It may block on ctx and timers, call
	// the Host, or Crash it.
	Do func(ctx context.Context, op, names string) error
}

type rule struct {
	Rule
	seen int
}

// ErrInjected is what a rule fails with when the test does not care.
var ErrInjected = errors.New("failed by a rule of the test")

// Inject adds a rule and returns what removes it. Rules apply in the order added.
func (h *Host) Inject(r Rule) (remove func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	added := &rule{Rule: r}
	h.rules = append(h.rules, added)
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		var rest []*rule
		for _, r := range h.rules {
			if r != added {
				rest = append(rest, r)
			}
		}
		h.rules = rest
	}
}

// Fail makes the nth command (0: every one) of this op, on names that hold match,
// fail with err before it does anything. A kind of package zfs is found by errors.Is.
func (h *Host) Fail(op, match string, nth int, err error) (remove func()) {
	times := 1
	if nth == 0 {
		times = 0
	}
	return h.Inject(Rule{Op: op, Match: match, Nth: nth, Times: times,
		Do: func(context.Context, string, string) error { return err }})
}

// FailAfter is Fail, but the command has done its work.
func (h *Host) FailAfter(op, match string, nth int, err error) (remove func()) {
	times := 1
	if nth == 0 {
		times = 0
	}
	return h.Inject(Rule{Op: op, Match: match, Nth: nth, Times: times, After: true,
		Do: func(context.Context, string, string) error { return err }})
}

// Slow makes matching commands take this long more, or until their context ends.
func (h *Host) Slow(op, match string, d time.Duration) (remove func()) {
	return h.Inject(Rule{Op: op, Match: match, Do: func(ctx context.Context, _, _ string) error {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
			return nil
		}
	}})
}

// apply runs the rules that match. It is called without the lock.
func (h *Host) apply(ctx context.Context, op, names string, after bool) error {
	h.mu.Lock()
	var todo []*rule
	for _, r := range h.rules {
		if r.After != after || r.Op != "" && r.Op != op || !strings.Contains(names, r.Match) {
			continue
		}
		r.seen++
		first := max(r.Nth, 1)
		if r.seen >= first && (r.Times == 0 || r.seen < first+r.Times) {
			todo = append(todo, r)
		}
	}
	h.mu.Unlock()
	for _, r := range todo {
		if err := r.Do(ctx, op, names); err != nil {
			return err
		}
	}
	return nil
}

// Commands is how many commands of each op were begun since the last reset: what
// a real host would have run as a process each.
func (h *Host) Commands() map[string]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.commands)
}

// ResetCommands sets the counts to zero.
func (h *Host) ResetCommands() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.commands)
}
