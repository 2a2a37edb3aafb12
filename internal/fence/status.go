package fence

import (
	"time"

	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/volume"
)

// Lease is what the fencer is told of a node's lease: until when writers may run.
type Lease struct {
	// Node holds the lease. A machine may be another node than before without a reboot:
	// one that was removed and has joined again. Numbers of two nodes do not compare. ""
	// is of a flockd that did not say, and taken for whoever asks.
	Node volume.NodeID `json:"node,omitempty"`
	// No and Round are those of the replicated state. No is 0 for writers that run before
	// the first lease is granted.
	No    uint64 `json:"no"`
	Boot  string `json:"boot"` // of the machine; Until means nothing in another boot
	Round uint64 `json:"round"`
	// Until is the moment at which writers are stopped; Fence is how long that may take
	// before the machine is reset. Past both, other nodes take it for granted that
	// nothing here writes.
	Until lease.Moment  `json:"until"`
	Fence time.Duration `json:"fence"`
	// TTL is only kept, for Status.Saved.
	TTL time.Duration `json:"ttl,omitempty"`
	// Root is the dataset below which nobody may have anything mounted afterwards.
	Root string `json:"root"`
}

// Of says that this is a lease of a node.
func (l Lease) Of(node volume.NodeID) bool { return l.Node == node || l.Node == "" || node == "" }

// hard is the moment at which the last write must have happened.
func (l Lease) hard() lease.Moment { return l.Until.Add(l.Fence) }

// Phase is what the fencer does.
type Phase string

// The phases. Only in PhaseFenced is it proven that nobody writes.
//
//	        Arm            Until, or Fence           verified: nothing is left
//	idle ─────────► armed ─────────────────► fencing ◄─────────────────────► fenced
//	  ▲               │ ▲                    │     ▲    something is mounted  │ │ │
//	  │◄── Disarm ────┘ │   Until + Fence, ▼     │ at last                    │ │ │
//	  │                 │   and no reset   failed ┘                           │ │ │
//	  │                 └──────────────────── Arm, higher number ─────────────┘ │ │
//	  └────────────────────────────────────── Disarm ───────────────────────────┘
const (
	PhaseIdle    Phase = "idle"    // nothing is armed
	PhaseArmed   Phase = "armed"   // writers may run until the lease ends
	PhaseFencing Phase = "fencing" // they are being stopped
	PhaseFenced  Phase = "fenced"  // they were, and late ones are
	PhaseFailed  Phase = "failed"  // they could not be in time, nor could the machine be reset; Problem says why
)

// Status is what the fencer says of itself.
type Status struct {
	Safety volume.Safety `json:"safety"`
	State  Phase         `json:"state"`
	Lease  Lease         `json:"lease"`
	// Saved is where a restarted flockd goes on with its side of the lease.
	Saved  lease.Saved `json:"saved"`
	Fenced []Victim    `json:"fenced,omitempty"` // not started again yet
	// Reason is why writers are, or were, stopped. Problem is why they are not stopped
	// yet, or why the machine cannot be reset as the policy asks.
	Reason  string `json:"reason,omitempty"`
	Problem string `json:"problem,omitempty"`
	// Operator says that a person has stopped the writers (flockd fence now): only a
	// person lets them go on (flockd fence lift), or a reboot.
	Operator bool   `json:"operator,omitempty"`
	Boot     string `json:"boot"` // of this machine, now
	// Version of the program that runs; "" where it does not say.
	Version string `json:"version,omitempty"`
}

// Victim is a container that was killed, to be started again when its volumes may be
// written here.
type Victim struct {
	Container string   `json:"container"`         // ID
	Name      string   `json:"name,omitempty"`    // "" where only the engine knows it
	Volumes   []string `json:"volumes,omitempty"` // IDs
}
