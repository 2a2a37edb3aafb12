package daemon

import (
	"cmp"
	"slices"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// warmMost is how many containers wait on a node at most.
const warmMost = 4

// warmView is all that starting ahead is decided from.
type warmView struct {
	Self  volume.NodeID
	State *state.State
	// Waiting are the records whose containers wait here, or are being started to, with the
	// hash of what they were made of.
	Waiting map[string]string
	// Tried are the attempts for which it was tried last, by record.
	Tried map[string]string
	// Unaware: a node runs a version that knows nothing of them. Wherever one that has waited
	// is started again, there is a gate in it.
	Unaware bool
	// Asks says whether a record's container asks for it.
	Asks func(r *state.Container) bool
}

// warmStep has the container of a record wait, or, with a reason, wait no longer.
type warmStep struct {
	Record string
	Known  *state.Container // nil: its record is gone
	End    string
}

// planWarm says which containers wait on this node: those that come with the move of their
// only volume, once for each attempt, until they have come or the move is given up. A volume
// of several containers is none's: another one's mount would get the placeholder.
func planWarm(v warmView) (steps []warmStep) {
	left := 0
	for key, hash := range v.Waiting {
		r := v.State.Container(key)
		why := ""
		switch {
		case r == nil:
			why = "nobody knows it any more"
		case r.Node == v.Self:
			why = "it runs here"
		case !r.Run || r.Blocked:
			why = "it is not to run"
		case r.Hash != hash:
			why = "it was made anew where it is"
		case !v.comes(r) && !v.came(r):
			why = "it does not come here"
		}
		if why == "" {
			left++
		} else {
			steps = append(steps, warmStep{key, r, why})
		}
	}
	for r := range v.State.Containers() {
		if v.Unaware {
			break
		}
		key := r.RecordKey()
		if _, waits := v.Waiting[key]; waits || !r.Run || r.Blocked || r.Node == v.Self || !v.comes(r) || left >= warmMost {
			continue
		}
		if v.Tried[key] != v.State.Volume(r.Volumes[0].ID).Pending.Attempt && v.Asks(r) {
			steps, left = append(steps, warmStep{Record: key, Known: r}), left+1
		}
	}
	slices.SortStableFunc(steps, func(a, b warmStep) int { return cmp.Compare(a.Record, b.Record) })
	return steps
}

// comes says that a container is on its way here.
func (v warmView) comes(r *state.Container) bool {
	vol := v.only(r)
	return vol != nil && vol.Phase == state.PhaseMoving && vol.Pending != nil && vol.Pending.Follow && vol.Pending.To == v.Self
}

// came says that its volume has come here.
func (v warmView) came(r *state.Container) bool {
	vol := v.only(r)
	return vol != nil && vol.Phase == state.PhaseActive && vol.Placement.Primary == v.Self
}

func (v warmView) only(r *state.Container) *state.Volume {
	if len(r.Volumes) != 1 || len(v.State.ContainersOf(r.Volumes[0].ID)) != 1 {
		return nil
	}
	return v.State.Volume(r.Volumes[0].ID)
}

// warmLeft says what becomes of a container that was started to wait and is not known to
// this process: an earlier one has died, or could not do the last thing about it.
type warmLeft string

const (
	warmLeave  warmLeft = ""       // it is one as any other
	warmEnd    warmLeft = "end"    // it has never had its volume, or has nothing of its own
	warmSettle warmLeft = "settle" // it runs, but for the policy to start it again
)

// leftOver decides it. named: its door is here, and says that it is its container; labels
// are inherited by images that are made of containers, and by what is made of those.
// recorded: it is the container of a record.
func leftOver(w container.Waiter, settled, named, recorded bool) warmLeft {
	switch {
	case settled:
		return warmLeave
	case w.Waiting:
		return warmEnd // a gate that flockd has let go ends by itself
	case !named:
		return warmLeave
	case w.AtGate:
		return warmEnd
	case w.Live:
		return warmSettle
	case recorded:
		return warmLeave // it ran, and has stopped
	}
	return warmEnd
}
