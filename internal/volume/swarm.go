package volume

import (
	"slices"
	"time"
)

// SwarmPrefix begins the labels of a Swarm's nodes that are flocker's own. The name of a
// volume follows; the label is "true" on the node that is the volume's primary, and on
// no other.
const SwarmPrefix = "flocker.volume."

// SwarmConstraint binds a Swarm service to a volume's label: written once into the
// service, it has Swarm run the service's tasks where the volume can be written.
func SwarmConstraint(name string) string { return "node.labels." + SwarmPrefix + name + "==true" }

// Swarm is what a node says of the Swarm that its engine belongs to.
type Swarm struct {
	// Known says that the engine has told. Then a node without ID belongs to none; before,
	// as when flockd has just begun, nobody knows.
	Known bool   `json:"known,omitempty"`
	Node  string `json:"node,omitempty"` // the engine's ID there
	// Cluster is the Swarm's ID. Only an engine that manages it knows it, and what follows.
	Cluster string `json:"cluster,omitempty"`
	// Ready are the IDs of the nodes that Swarm may give new tasks to, in order.
	Ready []string `json:"ready,omitempty"`
	// Services are those that are bound to volumes, by name.
	Services []SwarmService `json:"services,omitempty"`
}

// Manages says that the node's engine is a manager that answers, so that flockd there can
// change labels.
func (s Swarm) Manages() bool { return s.Cluster != "" }

// SwarmService is a service whose tasks run where the label of a volume is.
type SwarmService struct {
	Name    string   `json:"name"`
	Volumes []string `json:"volumes"` // names
	// Wanted: it is to have tasks. Once: a task of it that has ended is not made again,
	// wherever the label is.
	Wanted bool `json:"wanted,omitempty"`
	Once   bool `json:"once,omitempty"`
	// MaxAttempts is after how many tasks Swarm makes no more; 0: never. One that it stops
	// for a move is one of them.
	MaxAttempts uint64 `json:"max_attempts,omitempty"`
	// Grace is how long a task may take to end when it is told to.
	Grace time.Duration `json:"grace,omitempty"`
}

// Returns says that a task that was stopped is made again, however often.
func (s SwarmService) Returns() bool { return !s.Once && s.MaxAttempts == 0 }

// BoundTo says that the service is bound to a volume.
func (s SwarmService) BoundTo(name string) bool { return slices.Contains(s.Volumes, name) }
