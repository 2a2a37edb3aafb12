package lease

import (
	"fmt"
	"strings"
	"time"
)

// Moment is a time on one machine's CLOCK_BOOTTIME (clock_gettime(2)): it runs while
// the machine sleeps and nobody can set it. Moments of two machines, or of two boots
// of one, have nothing to do with each other.
type Moment time.Duration

// Add is m moved by d.
func (m Moment) Add(d time.Duration) Moment { return m + Moment(d) }

// Sub is the time from n to m.
func (m Moment) Sub(n Moment) time.Duration { return time.Duration(m - n) }

// Timers of the protocol, the same on all nodes.
//
// They are safe together if clocks run at most a twelfth too fast or too slow, which
// is the most that time daemons correct a clock by, and if a node whose lease has
// run out has stopped its writers, or itself, within Fence.
type Timers struct {
	Heartbeat time.Duration `json:"heartbeat"` // from one beat to the next
	Call      time.Duration `json:"call"`      // a beat waits so long for its answer
	TTL       time.Duration `json:"ttl"`       // a lease runs so long from the beat that renewed it
	Fence     time.Duration `json:"fence"`     // from the end of the lease to the end of the last write
	Promote   time.Duration `json:"promote"`   // the leader waits so long from the last beat it answered
}

// Default, Fast and Lab are the profiles that an operator may choose. Fast is for one
// site with a quick network: its lease barely outlasts an election. Lab is for
// emulated machines, which are ten times slower.
var (
	Default = Timers{
		Heartbeat: 2 * time.Second, Call: 1500 * time.Millisecond,
		TTL: 10 * time.Second, Fence: 5 * time.Second, Promote: 20 * time.Second,
	}
	Fast = Timers{
		Heartbeat: time.Second, Call: 800 * time.Millisecond,
		TTL: 6 * time.Second, Fence: 3 * time.Second, Promote: 12 * time.Second,
	}
	Lab = Timers{
		Heartbeat: 4 * time.Second, Call: 3500 * time.Millisecond,
		TTL: 60 * time.Second, Fence: 20 * time.Second, Promote: 100 * time.Second,
	}
)

// Profiles are the names of the profiles, the usual one first.
func Profiles() []string { return []string{"default", "fast", "lab"} }

// Profile by name; "" is default.
func Profile(name string) (t Timers, ok bool) {
	switch name {
	case "", "default":
		return Default, true
	case "fast":
		return Fast, true
	case "lab":
		return Lab, true
	}
	return Timers{}, false
}

// Waits says of each profile how long a silent node is waited for: "default after 20s, ...".
func Waits() string {
	var out []string
	for _, name := range Profiles() {
		t, _ := Profile(name)
		out = append(out, name+" after "+t.Promote.String())
	}
	return strings.Join(out, ", ")
}

// The bound on clock rates: one may run at 11/12 of true time, another at 13/12.
const (
	slowest = 11
	fastest = 13
)

// slack is added to what the inequality asks for, for the steps between a deadline
// and its effect.
const slack = time.Second

// LeastPromote is the shortest safe Promote. The slowest clock allowed measures
// TTL + Fence in twelve elevenths of that time, while the fastest one counts
// thirteen twelfths of true time.
func (t Timers) LeastPromote() time.Duration {
	return (t.TTL+t.Fence)*fastest/slowest + slack
}

// Safe says why two nodes could write at the same time with these timers; nil: they cannot.
func (t Timers) Safe() error {
	switch {
	case t.Heartbeat <= 0 || t.Call <= 0 || t.TTL <= 0 || t.Fence <= 0 || t.Promote <= 0:
		return fmt.Errorf("timers %+v: all of them must be set", t)
	case t.Promote < t.LeastPromote():
		return fmt.Errorf("promoting after %v could make a second writer: a lease of %v and %v to fence, with clocks that are a twelfth off, need %v",
			t.Promote, t.TTL, t.Fence, t.LeastPromote())
	}
	return nil
}

// Check says what is wrong with timers that must not be used: unsafe ones, and ones
// with which healthy nodes would lose their leases. Election is how long a change of
// Raft's leader may take; 0: not known.
func (t Timers) Check(election time.Duration) error {
	if err := t.Safe(); err != nil {
		return err
	}
	switch {
	case t.Call >= t.Heartbeat:
		return fmt.Errorf("a beat waits %v for its answer; the next one follows after %v", t.Call, t.Heartbeat)
	case t.TTL < 2*t.Heartbeat+t.Call:
		return fmt.Errorf("a lease of %v ends when two beats of %v are lost; it must be at least %v", t.TTL, t.Heartbeat, 2*t.Heartbeat+t.Call)
	case t.TTL < election+t.Heartbeat+t.Call:
		return fmt.Errorf("a lease of %v does not outlast a change of leader of %v; it must be at least %v", t.TTL, election, election+t.Heartbeat+t.Call)
	}
	return nil
}
