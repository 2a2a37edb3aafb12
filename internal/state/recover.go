package state

import (
	"fmt"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// Recovery makes a cluster anew from one node, when so many voters are lost for good that
// nothing can be agreed on any more.
type Recovery struct {
	Survivor volume.NodeID
	At       time.Time
	// CACert and CAKey replace the cluster's CA where the survivor cannot open its key;
	// empty: the CA stays.
	CACert, CAKey []byte
}

// Recover is the state that the survivor goes on with, in a new generation of the cluster:
//
//   - Every epoch is one of that generation. Whatever a lost node still writes, promotes or
//     sends is of a lower one, and an epoch that was given out without the survivor's
//     knowledge is never given out again.
//   - All other members are Lost. Nothing is given up: they stay in their placements, so
//     that one which joins again brings its copies back into use.
//   - No volume has a primary. The survivor gets back what it was the primary of; what
//     another node wrote waits for that node, or for an operator (Election.Recovered).
//   - Failover is manual.
//
// It is no command, since there is nobody to agree with: it is pure, and takes effect as
// a snapshot of the survivor's log.
func Recover(s *State, r Recovery) (*State, error) {
	n := s.Node(r.Survivor)
	switch {
	case s.cluster == nil || n == nil:
		return nil, volume.Errorf(volume.CodeRefused, "this node has no state of a cluster to recover")
	case n.Removed:
		return nil, volume.Errorf(volume.CodeRefused, "node %s was removed from the cluster, so the cluster cannot be recovered from it", n.Name)
	case n.Lost:
		return nil, volume.Errorf(volume.CodeRefused, "node %s was left behind when the cluster was recovered", n.Name)
	}
	t := &txn{s: *s, at: r.At, index: s.Index}
	cl := *s.cluster
	cl.Generation++
	if len(r.CACert) > 0 {
		cl.CACert, cl.CAKey = r.CACert, r.CAKey
	}
	cl.Failover.Mode, cl.Failover.Reason = FailoverManual, "the cluster was recovered from one node"
	t.s.cluster = &cl
	t.event(Event{Kind: "cluster.recovered", Node: n.ID, Name: n.Name,
		Message: fmt.Sprintf("the cluster was recovered from node %s alone; it is in generation %d now, and the other nodes are to join again", n.Name, cl.Generation)})
	for other := range s.Nodes() {
		if other.ID != n.ID {
			lost := *other
			lost.Lost = true
			t.putNode(lost)
		}
	}
	reason := fmt.Sprintf("the cluster was recovered from node %s", n.Name)
	for v := range s.Volumes() {
		next := *v
		if v.Electable() {
			next.Epoch = volume.NewEpoch(cl.Generation, 0)
			t.elect(next, reason)
			next = *t.s.Volume(v.ID)
		} else {
			next.Epoch = volume.NewEpoch(cl.Generation, 1)
		}
		if next.Phase == PhaseElecting {
			e := *next.Election
			e.Recovered = true
			next.Election = &e
		}
		t.putVolume(next)
	}
	return &t.s, nil
}
