package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"time"

	"github.com/hashicorp/raft"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// maxVoterLag is how many entries a node may be behind to become a voter.
const maxVoterLag = 250

// configTimeout is how long a change of Raft's configuration may wait to be taken up.
const configTimeout = 5 * time.Second

// reconcile keeps Raft's configuration as the state and the nodes' health want it,
// while this node leads. One change per round.
func (c *Cluster) reconcile(ctx context.Context) {
	c.Lead(ctx, func(ctx context.Context) error {
		watch := newLifeWatch()
		sealed := map[volume.NodeID]bool{c.record.Node: true}
		for {
			changed := c.Changed()
			again, err := c.reconcileOnce(ctx, watch, sealed)
			if err != nil && ctx.Err() == nil {
				c.log.Warn("cannot adjust Raft's members", "err", err)
			}
			if again && err == nil {
				continue
			}
			timer := time.NewTimer(c.cfg.Timing.Reconcile)
			select {
			case <-changed:
				timer.Stop()
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return nil
			}
			if err != nil && !sleep(ctx, c.cfg.Timing.Reconcile) {
				return nil
			}
		}
	})
}

// reconcileOnce makes at most one change and says whether it did.
func (c *Cluster) reconcileOnce(ctx context.Context, watch *lifeWatch, sealed map[volume.NodeID]bool) (bool, error) {
	r := c.raft.Load()
	f := r.GetConfiguration()
	if err := f.Error(); err != nil {
		return false, err
	}
	members := c.members(f.Configuration(), watch)
	next := nextChange(members, voterRules{
		Stable: c.cfg.Timing.Stable, DeadAfter: c.cfg.Timing.DeadAfter, MaxLag: maxVoterLag,
	})
	if err := c.handOutSeals(ctx, members, next, sealed); err != nil {
		return false, err
	}
	if next.Op == "" {
		return false, nil
	}
	c.log.Info("changing Raft's members", "op", string(next.Op), "which", next.Node.Short(),
		"name", c.State().NodeName(next.Node), "reason", next.Reason)
	id, addr, prev := raft.ServerID(next.Node), raft.ServerAddress(next.Node), f.Index()
	var change raft.Future
	switch next.Op {
	case opAdd:
		change = r.AddNonvoter(id, addr, prev, configTimeout)
	case opPromote:
		change = r.AddVoter(id, addr, prev, configTimeout)
	case opDemote:
		change = r.DemoteVoter(id, prev, configTimeout)
	case opRemove:
		change = r.RemoveServer(id, prev, configTimeout)
	case opStepDown:
		return false, c.Abdicate(ctx)
	}
	if err := c.await(ctx, change); err != nil {
		return false, c.raftError(r, err)
	}
	return true, nil
}

// members are what nextChange looks at: everybody whom the state lists or Raft has.
func (c *Cluster) members(conf raft.Configuration, watch *lifeWatch) []member {
	s, now := c.State(), time.Now()
	suffrage := map[volume.NodeID]raft.ServerSuffrage{}
	for _, srv := range conf.Servers {
		suffrage[volume.NodeID(srv.ID)] = srv.Suffrage
	}
	var out []member
	add := func(n *state.Node) {
		m := member{ID: n.ID, Zone: n.Zone, Witness: n.Witness, Leader: n.ID == c.record.Node, Removed: n.Removed,
			Leaving: n.Availability == state.Drain && !n.KeepReplicas}
		if sf, ok := suffrage[n.ID]; ok {
			m.InRaft, m.Voter = true, sf == raft.Voter
		}
		if rep, ok := c.reports.Get(n.ID, now); ok && rep.Report.Applied < s.Index {
			m.Lag = s.Index - rep.Report.Applied
		}
		m.AliveFor, m.DeadFor = watch.see(n.ID, c.Health(n.ID), now)
		out = append(out, m)
	}
	for n := range s.Nodes() {
		if !n.Lost {
			add(n)
		}
	}
	for id := range suffrage {
		if n := s.Node(id); n != nil && n.Removed {
			add(n)
		}
	}
	return out
}

// handOutSeals gives the CA's seal to the node that becomes a voter next, and in a
// small cluster to everybody who holds data: see seal.go. Without the seal a node is
// not promoted.
func (c *Cluster) handOutSeals(ctx context.Context, members []member, next change, sealed map[volume.NodeID]bool) error {
	listed := 0
	for _, m := range members {
		if !m.Removed {
			listed++
		}
	}
	for _, m := range members {
		promote := next.Op == opPromote && next.Node == m.ID
		small := listed < 3 && !m.Removed && !m.Witness && m.AliveFor > 0
		if sealed[m.ID] || !promote && !small {
			continue
		}
		key, err := c.disk.Read(fileSeal)
		if err == nil {
			err = c.ask(ctx, m.ID, "seal", sealMessage{Key: key}, &empty{})
		}
		switch {
		case err == nil:
			sealed[m.ID] = true
		case promote:
			return err
		default:
			c.log.Debug("cannot hand over the seal yet", "to", m.ID.Short(), "err", err)
		}
	}
	return nil
}

// sealMessage is the operation "seal".
type sealMessage struct {
	Key []byte `json:"key"`
}

// handleSeal keeps the seal, if it opens what the state holds.
func (c *Cluster) handleSeal(_ context.Context, _ volume.NodeID, body json.RawMessage) (any, error) {
	var m sealMessage
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, volume.Errorf(volume.CodeInvalid, "seal: %v", err)
	}
	cl := c.State().Cluster()
	if cl == nil {
		return nil, volume.Errorf(volume.CodeUnavailable, "this node has no state yet")
	}
	if _, err := unseal(m.Key, cl.ID, cl.CAKey); err != nil {
		return nil, volume.Errorf(volume.CodeInvalid, "%v", err)
	}
	old, err := c.disk.Read(fileSeal)
	if err == nil && bytes.Equal(old, m.Key) {
		return empty{}, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return empty{}, c.disk.Write(fileSeal, m.Key)
}

// lifeWatch measures for how long nodes have been alive or dead without a break, by
// what one leader has seen.
type lifeWatch struct {
	seen map[volume.NodeID]life
}

type life struct {
	health Health
	since  time.Time
}

func newLifeWatch() *lifeWatch { return &lifeWatch{seen: map[volume.NodeID]life{}} }

// see notes a node's health now. A duration is at least 1 when its health holds, so
// that 0 always means that it does not.
func (w *lifeWatch) see(id volume.NodeID, h Health, now time.Time) (aliveFor, deadFor time.Duration) {
	l, ok := w.seen[id]
	if !ok || l.health != h {
		l = life{health: h, since: now}
		w.seen[id] = l
	}
	d := max(1, now.Sub(l.since))
	switch h {
	case Alive:
		return d, 0
	case Dead:
		return 0, d
	}
	return 0, 0
}
