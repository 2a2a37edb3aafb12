package cluster

import (
	"context"

	"github.com/flocker-io/flocker/internal/volume"
)

// Gossip gives fast hints about who is alive, and nothing else: whoever has the
// gossip key can forge any of it. It never adds a voter, never shortens a lease,
// never removes a node.
type Gossip interface {
	// Run until ctx ends. The keys and the peers' addresses are in the states of c.
	Run(ctx context.Context, c *Cluster)
	// Health of a node, as gossip has it: Alive, Dead or Unknown. Any goroutine may
	// ask, also before and after Run.
	Health(volume.NodeID) Health
}

// NoGossip knows nothing.
type NoGossip struct{}

// Run waits.
func (NoGossip) Run(ctx context.Context, _ *Cluster) { <-ctx.Done() }

// Health is Unknown.
func (NoGossip) Health(volume.NodeID) Health { return Unknown }
