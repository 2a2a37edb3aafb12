package fence

import (
	"fmt"
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/lease"
)

// record is all that the fencer must not forget when it is restarted in the same boot.
// Its methods are the rules of what may be asked of it; they touch nothing else.
type record struct {
	Boot  string `json:"boot"`
	Armed bool   `json:"armed,omitempty"` // Lease holds: past hard the machine must be reset
	Lease Lease  `json:"lease,omitzero"`
	// Over: writers are to be stopped, and to stay so. Stopped: since then they were seen
	// to be. Hard is the moment by which they must be, if a lease was armed.
	Over     bool         `json:"over,omitempty"`
	Stopped  bool         `json:"stopped,omitempty"`
	Hard     lease.Moment `json:"hard,omitempty"`
	Reason   string       `json:"reason,omitempty"`
	Operator bool         `json:"operator,omitempty"`
	Fenced   []Victim     `json:"fenced,omitempty"`
}

// arm lets writers run until l.Until. What is older than what is known changes nothing,
// and neither does more time for a lease that is over. A lease of another node than before
// is taken when all writers of that one are stopped, whatever its number.
func (r *record) arm(l Lease) error {
	switch {
	case l.Boot != "" && l.Boot != r.Boot:
		return fmt.Errorf("the lease is of boot %s of this machine, which is in boot %s", l.Boot, r.Boot)
	case l.Root == "" || l.Until <= 0 || l.Fence <= 0:
		return fmt.Errorf("lease %d: the root dataset, the deadline and the time to fence must be set", l.No)
	case r.Operator:
		return fmt.Errorf("an operator has stopped all writers of this node: %s; `flockd fence lift` lets them go on", r.Reason)
	}
	l.Boot = r.Boot
	switch {
	case r.Armed && !l.Of(r.Lease.Node) && !r.Stopped:
		// The one that this machine was before may still be writing.
		return fmt.Errorf("lease %d of node %s, which this machine was before, has to end first", r.Lease.No, r.Lease.Node)
	case r.Armed && !l.Of(r.Lease.Node):
	case r.Armed && l.No < r.Lease.No:
		return nil
	case r.Armed && l.No == r.Lease.No:
		if !r.Over && l.Until > r.Lease.Until {
			r.Lease = l
		}
		return nil
	case r.Over && !r.Stopped:
		// Whatever was promised about the old lease still has to happen.
		return fmt.Errorf("writers of lease %d are still being stopped", r.Lease.No)
	}
	r.Armed, r.Lease, r.Over, r.Stopped, r.Reason = true, l, false, false, ""
	return nil
}

// stop ends what may be written under lease no, and before.
func (r *record) stop(no uint64, reason string) {
	if r.Armed && no < r.Lease.No || r.Over {
		return
	}
	r.Over, r.Stopped, r.Reason, r.Hard = true, false, reason, r.Lease.hard()
}

// found says that something is mounted after all had been stopped. To end that there
// is as much time again.
func (r *record) found(now lease.Moment) {
	if r.Stopped {
		r.Stopped, r.Hard = false, now.Add(r.Lease.Fence)
	}
}

// disarm makes the fencer do nothing any more. What it has begun it finishes.
func (r *record) disarm() error {
	switch {
	case r.Operator:
		return nil
	case r.Over && !r.Stopped:
		return fmt.Errorf("writers of lease %d are still being stopped; disarm when they are", r.Lease.No)
	}
	r.Armed, r.Lease, r.Over, r.Stopped, r.Reason = false, Lease{Root: r.Lease.Root}, false, false, ""
	return nil
}

// hold is an operator's stop; root names the volumes where no lease does.
func (r *record) hold(root, reason string) {
	if r.Lease.Root == "" {
		r.Lease.Root = root
	}
	r.Operator = true
	r.stop(r.Lease.No, reason)
	r.Reason = reason
}

// lift takes hold back. A lease that it ended stays over.
func (r *record) lift() {
	if !r.Operator {
		return
	}
	r.Operator = false
	if !r.Armed {
		r.Over, r.Stopped, r.Reason = false, false, ""
	}
}

// forget drops victims that run again.
func (r *record) forget(containers []string) {
	r.Fenced = slices.DeleteFunc(r.Fenced, func(v Victim) bool { return slices.Contains(containers, v.Container) })
}

// remember adds victims.
func (r *record) remember(victims []Victim) {
	for _, v := range victims {
		i := slices.IndexFunc(r.Fenced, func(have Victim) bool { return have.Container == v.Container })
		if i < 0 {
			r.Fenced = append(r.Fenced, v)
			continue
		}
		all := append(slices.Clone(r.Fenced[i].Volumes), v.Volumes...)
		slices.Sort(all)
		r.Fenced[i].Volumes = slices.Compact(all)
	}
}

// tick does what time alone brings about. jump is how much longer the wall clock says
// that the time since the last tick was than the boot clock does.
func (r *record) tick(now lease.Moment, jump time.Duration) {
	if !r.Armed || r.Over {
		return
	}
	if jump > jumpLimit {
		// The machine may have stood still, its boot clock with it: then the lease has
		// that much less to go. The next beat's answer sets it right if not.
		r.Lease.Until = r.Lease.Until.Add(-jump)
	}
	if now >= r.Lease.Until {
		r.stop(r.Lease.No, fmt.Sprintf("lease %d has run out", r.Lease.No))
	}
}

// jumpLimit is more than the two clocks can differ by without one of them being set or
// stopped.
const jumpLimit = time.Second

// late says that other nodes now take it for granted that nothing writes here, and that
// nobody has seen to it.
func (r *record) late(now lease.Moment) bool {
	return r.Armed && r.Over && !r.Stopped && now >= r.Hard
}

// feed says whether a watchdog that would fire timeout from now, were this its last
// feeding, may be fed: never so that the machine could live on past what was promised.
func (r *record) feed(now lease.Moment, timeout time.Duration) bool {
	hard := r.Lease.hard()
	if r.Over {
		hard = r.Hard
	}
	return !r.Armed || r.Stopped || now.Add(timeout) <= hard
}

// status is what there is to tell, without what only the running process knows.
func (r *record) status(now lease.Moment) Status {
	s := Status{
		Lease: r.Lease, Fenced: slices.Clone(r.Fenced), Reason: r.Reason, Operator: r.Operator, Boot: r.Boot,
		Saved: lease.Saved{No: r.Lease.No, TTL: r.Lease.TTL, Until: r.Lease.Until, Begun: r.Armed, Over: r.Armed && r.Over},
	}
	switch {
	case r.Over && r.Stopped:
		s.State = PhaseFenced
	case r.late(now):
		s.State = PhaseFailed
	case r.Over:
		s.State = PhaseFencing
	case r.Armed:
		s.State = PhaseArmed
	default:
		s.State = PhaseIdle
	}
	return s
}
