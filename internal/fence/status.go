package fence

import (
	"time"

	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/volume"
)

// Lease is what the fencer is told of a node's lease: until when writers may run.
type Lease struct {
	No    uint64 `json:"no"`
	Boot  string `json:"boot"` // of the machine; Until means nothing in another boot
	Round uint64 `json:"round"`
	// Until is the moment at which writers are stopped; Fence is how long that may take
	// before the machine is reset.
	Until lease.Moment  `json:"until"`
	Fence time.Duration `json:"fence"`
	// Root is the dataset below which nobody may have anything mounted afterwards.
	Root string `json:"root"`
}

// Phase is what the fencer does.
type Phase string

// The phases. Only in PhaseFenced is it proven that nobody writes.
const (
	PhaseIdle    Phase = "idle"    // nothing is armed
	PhaseArmed   Phase = "armed"   // writers may run until the lease ends
	PhaseFencing Phase = "fencing" // they are being stopped
	PhaseFenced  Phase = "fenced"  // they were, and late ones are
	PhaseFailed  Phase = "failed"  // they could not be; Problem says why
)

// Status is what the fencer says of itself.
type Status struct {
	Safety  volume.Safety `json:"safety"`
	State   Phase         `json:"state"`
	Lease   Lease         `json:"lease"`
	Saved   lease.Saved   `json:"saved"`
	Fenced  []Victim      `json:"fenced,omitempty"` // not started again yet
	Problem string        `json:"problem,omitempty"`
	Boot    string        `json:"boot"` // of this machine, now
}

// Victim is a container that was killed.
type Victim struct {
	Container string   `json:"container"` // ID
	Name      string   `json:"name,omitempty"`
	Volumes   []string `json:"volumes,omitempty"` // IDs
}
