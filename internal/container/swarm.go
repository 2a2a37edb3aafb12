package container

import (
	"context"
	"slices"
	"strings"

	"github.com/flocker-io/flocker/internal/volume"
)

// Swarm is what flocker asks of an engine about the Swarm that it belongs to. Swarm alone
// makes and stops the containers of its services; where it does is said to it with labels
// of its nodes, see volume.SwarmConstraint.
type Swarm interface {
	// SwarmMember is what this engine is in a Swarm. It may take an engine seconds to say
	// so on a busy machine: it runs programs to describe itself.
	SwarmMember(ctx context.Context) (SwarmMember, error)
	// Swarm as this engine sees it, which has to manage it.
	Swarm(ctx context.Context) (SwarmView, error)
	// LabelSwarmNode gives a node of the Swarm labels with the value "true", and takes
	// others away; its other labels stay as they are. It may be repeated. Only a manager
	// can.
	LabelSwarmNode(ctx context.Context, node string, add, remove []string) error
}

// SwarmMember is an engine in a Swarm. One that belongs to none has the zero value.
type SwarmMember struct {
	Node    string // its ID
	Cluster string // ID of the Swarm; "": this engine does not manage it
}

// SwarmView is a Swarm at one moment.
type SwarmView struct {
	Nodes    []SwarmNode
	Services []volume.SwarmService // those that are bound to volumes
}

// SwarmNode is a node of a Swarm.
type SwarmNode struct {
	ID     string
	Labels map[string]string
	Ready  bool // Swarm may give it new tasks
}

// labelSwarmService is on the containers of a Swarm service.
const labelSwarmService = "com.docker.swarm.service.name"

// SwarmService is the Swarm service whose task a container with these labels is; "" for
// none.
func SwarmService(labels map[string]string) string { return labels[labelSwarmService] }

// BoundVolumes are the names of the volumes that constraints bind a service to, in the form
// of volume.SwarmConstraint, with or without spaces.
func BoundVolumes(constraints []string) (names []string) {
	for _, c := range constraints {
		key, value, ok := strings.Cut(c, "==")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		const nodes = "node.labels."
		// Swarm compares values and the word in front of a label without regard to case.
		if !ok || len(key) < len(nodes) || !strings.EqualFold(key[:len(nodes)], nodes) || !strings.EqualFold(value, "true") {
			continue
		}
		if name, ours := strings.CutPrefix(key[len(nodes):], volume.SwarmPrefix); ours && name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
