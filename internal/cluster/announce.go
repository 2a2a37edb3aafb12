package cluster

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// updateMessage is the operation "update": the sender is at these addresses now.
type updateMessage struct {
	Addr       string `json:"addr,omitempty"`
	GossipAddr string `json:"gossip_addr,omitempty"`
}

// announce tells the cluster the addresses this node is configured with, when the
// cluster has others on record. Others find a node that has moved only through this,
// so members that are no leader are told, too: see addressBook.
func (c *Cluster) announce(ctx context.Context) {
	self := c.record.Node
	for {
		changed := c.Changed()
		m, wanted := c.announcement()
		if !wanted {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return
			}
		}
		err := c.updateNode(ctx, self, m)
		for _, id := range c.book.peers(c.State(), self) {
			if err == nil {
				break
			}
			err = c.ask(ctx, id, "update", m, &empty{})
			var moved *redirect
			if errors.As(err, &moved) {
				c.book.learn(c.State(), moved.to.Node, moved.to.Addr)
				err = c.ask(ctx, moved.to.Node, "update", m, &empty{})
			}
		}
		if err != nil && ctx.Err() == nil {
			c.log.Info("cannot tell the cluster this node's new address yet", "addr", m.Addr, "err", err)
		}
		if !sleep(ctx, c.cfg.Timing.Reconcile) {
			return
		}
	}
}

// announcement is what the state should say and does not.
func (c *Cluster) announcement() (m updateMessage, wanted bool) {
	n := c.State().Node(c.record.Node)
	if n == nil {
		return m, false
	}
	if a := c.cfg.Advertise; a != "" && a != n.Addr && checkAddr("", a) == nil {
		m.Addr = a
	}
	if a := c.cfg.GossipAdvertise; a != "" && a != n.GossipAddr && checkAddr("", a) == nil {
		m.GossipAddr = a
	}
	return m, m != updateMessage{}
}

// handleUpdate notes the new address of the node that asks, and nothing of another.
func (c *Cluster) handleUpdate(ctx context.Context, from volume.NodeID, body json.RawMessage) (any, error) {
	var m updateMessage
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, volume.Errorf(volume.CodeInvalid, "update: %v", err)
	}
	for _, a := range []string{m.Addr, m.GossipAddr} {
		if a == "" {
			continue
		}
		if err := checkAddr("advertised", a); err != nil {
			return nil, err
		}
	}
	if m.Addr != "" {
		c.book.learn(c.State(), from, m.Addr)
	}
	return empty{}, c.updateNode(ctx, from, m)
}

func (c *Cluster) updateNode(ctx context.Context, id volume.NodeID, m updateMessage) error {
	cmd := state.UpdateNode{ID: id}
	if m.Addr != "" {
		cmd.Addr = &m.Addr
	}
	if m.GossipAddr != "" {
		cmd.GossipAddr = &m.GossipAddr
	}
	res, err := c.Propose(ctx, state.Envelope{Request: string(volume.NewNodeID()), Command: cmd})
	if err != nil {
		return err
	}
	if res.Err != nil {
		return res.Err
	}
	return nil
}
