package cluster

import (
	"time"

	"github.com/hashicorp/raft"

	"github.com/flocker-io/flocker/internal/volume"
)

// ElectionTime is how long a change of leader may take.
func (c *Cluster) ElectionTime() time.Duration { return c.cfg.Timing.ElectionTime() }

// Servers are the nodes in Raft's latest configuration, as this node knows it; true
// for those that vote. It is empty while the node starts.
func (c *Cluster) Servers() map[volume.NodeID]bool {
	out := map[volume.NodeID]bool{}
	r := c.raft.Load()
	if r == nil {
		return out
	}
	f := r.GetConfiguration()
	if f.Error() != nil {
		return out
	}
	for _, s := range f.Configuration().Servers {
		out[volume.NodeID(s.ID)] = s.Suffrage == raft.Voter
	}
	return out
}

// Validity of this node's certificate.
func (c *Cluster) Validity() (from, to time.Time) { return c.id.Validity() }

// GossipHealth is what gossip alone says of a node; ok is false where nobody gossips. It may be
// wrong in both directions, see Gossip.
func (c *Cluster) GossipHealth(id volume.NodeID) (h Health, ok bool) {
	if _, none := c.gossip.(NoGossip); none {
		return "", false
	}
	return c.gossip.Health(id), true
}
