package placement

import (
	"fmt"
	"time"

	"github.com/flocker-io/flocker/internal/state"
)

// unfit is why a node may not take a new copy.
type unfit uint8

const (
	fit      unfit = iota
	witness        // keeps no data
	draining       // the operator wants it empty
	unheard        // no report since this leader leads
	silent         // no report lately
	blind          // reports, but cannot read its pool
	sick           // its pool is not in a state to take data
	full           // too little space, with all that is promised
	busy           // is being seeded with as many copies as it may
)

// maxUsage is the fill level up to which a pool gets new copies, with all that is
// promised to the volumes on it counted as used. ZFS slows down badly when nearly
// full, and replicas need room for snapshots.
const maxUsage = 0.85

// unfit says why a node may not take a copy of claim bytes.
func (n *NodeView) unfit(claim int64) unfit {
	switch {
	case n.Witness:
		return witness
	case n.Availability != state.Active:
		return draining
	case n.Reported.IsZero():
		return unheard
	case !n.Alive:
		return silent
	case n.Pool.Health == "" || n.Pool.Health == "unknown" || n.Pool.Size <= 0:
		return blind
	case !n.poolKnown():
		return sick
	case n.usage(claim) >= maxUsage:
		return full
	}
	return fit
}

// explain is the reason in words that follow the node's name.
func (u unfit) explain(n *NodeView, claim int64, now time.Time) string {
	switch u {
	case witness:
		return "is a witness and keeps no data"
	case draining:
		return "is being drained"
	case unheard:
		return "has not reported yet"
	case silent:
		return fmt.Sprintf("has not reported for %.0f s", now.Sub(n.Reported).Seconds())
	case blind:
		return "cannot read the state of its pool"
	case sick:
		return "has a pool in state " + n.Pool.Health
	case full:
		return fmt.Sprintf("would be %.0f %% full with what is promised there (limit %.0f %%)", 100*n.usage(claim), 100*maxUsage)
	case busy:
		return "is receiving other new replicas first"
	}
	return "has room"
}

// usage is the used share of the pool once every volume there, and a new copy of
// claim bytes, has all the space it was promised.
func (n *NodeView) usage(claim int64) float64 {
	used := max(n.Pool.Size-n.Pool.Free, 0)
	return float64(used+max(n.Promised-n.Held, 0)+claim) / float64(n.Pool.Size)
}
