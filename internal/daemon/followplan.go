package daemon

import (
	"cmp"
	"slices"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// hereContainer is a container of this node's engine that is to follow its volumes.
type hereContainer struct {
	ID      string
	Name    string
	Volumes []volume.ID // in order
	Live    bool
	// Failed: its last start failed, as it does when a mount is refused. It is not its
	// user who stopped it.
	Failed bool
	// GivenUp: it was left to its engine when it did not come up, and that does not start it any more.
	GivenUp bool
	Hash    string // of its spec
	// Unproven: it was made here of a container elsewhere, and nobody has seen it come up. Whoever
	// made it was stopped before that.
	Unproven bool
	// Made: flocker has made it, so that it may be removed. Else it is Unproven because it was started
	// in the place of that one, and has not come up.
	Made bool
	// Routes that its labels ask for and that it can have.
	Routes []volume.Route
	// Published are ports of it that the engine publishes.
	Published []state.Published
}

// followView is all that following is decided from.
type followView struct {
	Self  volume.NodeID
	State *state.State
	// MayWrite: this node holds the right to write its volumes.
	MayWrite bool
	Here     []hereContainer
	// Hidden are records whose container is here but cannot be described now, as while it
	// starts: nothing is done about them.
	Hidden map[string]bool
	// Settled says that what is named has been as it is for long enough: a container that
	// is stopped (by ID), a record whose container is gone (by its key).
	Settled func(what string) bool
}

// followStep is one thing to do about a container.
type followStep struct {
	Do     followDo
	Record string           // key
	Here   *hereContainer   // nil where there is none
	Known  *state.Container // nil before it is recorded
}

type followDo string

// The steps.
const (
	followPut     followDo = "record"         // as it is here, running
	followStop    followDo = "record stopped" // its user has stopped it
	followDrop    followDo = "forget"         // its user has removed it
	followStart   followDo = "start"          // it ran until this node lost the right to write, and has it again; or its engine has given up
	followMake    followDo = "recreate"       // it ran on another node
	followRetire  followDo = "retire"         // it runs elsewhere, and is not to start here by itself
	followDiscard followDo = "discard"        // it was made here and has not come up, and its volumes are elsewhere
	followBlock   followDo = "blocked"        // it would have to be made, and something is in its way
)

// planFollow says what is to be done on this node about the containers that follow
// their volumes. A container is made or started only where all its volumes may be
// written, so there is at most one such node.
//
//	              seen running here                 volumes promoted here, wish is "run"
//	(unknown) ────────────────────► recorded: here ◄──────────────────────────────────── recorded: elsewhere
//	                                 │   │    ▲ seen running
//	            stopped for a while  │   │    │
//	                                 ▼   │ removed for a while
//	                  recorded: stopped  └──► (forgotten)
func planFollow(v followView) (steps []followStep) {
	here := map[string]*hereContainer{}
	for i := range v.Here {
		c := &v.Here[i]
		r := v.State.RecordOf(c.Name, c.Volumes)
		key := recordKeyOf(c)
		here[key] = c
		switch {
		case r == nil || r.Node == v.Self || c.Live:
		case c.Made && v.MayWrite && v.away(c.Volumes):
			// Its engine would start it, and what it mounts would be fetched for it. How it ended tells
			// nothing any more: the one that it was made for has run since.
			steps = append(steps, followStep{followDiscard, key, c, r})
		case r.Left[v.Self] == c.ID:
			steps = append(steps, followStep{followRetire, key, c, r})
		}
		if !v.mine(c.Volumes) {
			continue
		}
		if do := v.decide(c, r); do != "" {
			steps = append(steps, followStep{do, key, c, r})
		}
	}
	for r := range v.State.Containers() {
		key := r.RecordKey()
		c := here[key]
		if !v.mine(ids(r.Volumes)) || v.Hidden[key] || c != nil && r.Node == v.Self {
			continue // not ours to say, or said above
		}
		elsewhere := r.Node != v.Self
		switch {
		case c != nil && c.Live && !c.judged(r): // it is recorded here in a moment
		case r.Run && (elsewhere || v.raised(r)) && r.Blocked:
			steps = append(steps, followStep{followBlock, key, c, r})
		case r.Run && (elsewhere || v.raised(r)):
			steps = append(steps, followStep{followMake, key, c, r})
		case !elsewhere && v.Settled(key):
			steps = append(steps, followStep{followDrop, key, nil, r})
		}
	}
	slices.SortStableFunc(steps, func(a, b followStep) int { return cmp.Compare(a.Record, b.Record) })
	return steps
}

// decide about a container that is here, whose volumes are all ours.
func (v followView) decide(c *hereContainer, r *state.Container) followDo {
	switch {
	case r == nil && c.Live:
		return followPut
	case r == nil:
		return followStop
	case r.Node != v.Self && c.Live && !c.judged(r):
		return followPut
	case r.Node != v.Self:
		return "" // its place is taken, if it has to run
	case c.Live && (v.differs(c, r) || !r.Run || v.raised(r)):
		return followPut
	case c.Live:
		return ""
	case r.Run && (v.raised(r) || c.GivenUp):
		return followStart
	case r.Run && c.Failed:
		return ""
	case r.Run && v.Settled(c.ID), !r.Run && (v.differs(c, r) || v.raised(r)):
		return followStop
	}
	return ""
}

// judged says that a container has to be seen to come up before it is recorded.
func (c *hereContainer) judged(r *state.Container) bool { return c.Unproven && r.Run && !r.Blocked }

func (v followView) differs(c *hereContainer, r *state.Container) bool {
	return c.ID != r.ID || c.Hash != r.Hash || r.Key != v.State.Cluster().DataKey || !slices.Equal(c.Routes, r.Routes) || !slices.Equal(c.Published, r.Published)
}

// mine says that this node may write all these volumes now.
func (v followView) mine(volumes []volume.ID) bool {
	for _, id := range volumes {
		vol := v.State.Volume(id)
		if vol == nil || vol.Phase != state.PhaseActive || vol.Placement.Primary != v.Self {
			return false
		}
	}
	return v.MayWrite && len(volumes) > 0
}

// away says that another node has one of these volumes.
func (v followView) away(volumes []volume.ID) bool {
	return slices.ContainsFunc(volumes, func(id volume.ID) bool {
		vol := v.State.Volume(id)
		return vol != nil && vol.Placement.Primary != "" && vol.Placement.Primary != v.Self
	})
}

// raised says that a volume was taken from its primary since the container was last
// recorded, or that it was stopped for a move that was given up. Either way it was not
// its user who stopped it.
func (v followView) raised(r *state.Container) bool {
	return slices.ContainsFunc(r.Volumes, func(cv state.ContainerVolume) bool {
		vol := v.State.Volume(cv.ID)
		return vol != nil && vol.Epoch != cv.Epoch
	})
}

func ids(volumes []state.ContainerVolume) (out []volume.ID) {
	for _, v := range volumes {
		out = append(out, v.ID)
	}
	return out
}

// recordKeyOf is the key of the record that a container has or will have.
func recordKeyOf(c *hereContainer) string {
	r := state.Container{Name: c.Name}
	for _, id := range c.Volumes {
		r.Volumes = append(r.Volumes, state.ContainerVolume{ID: id})
	}
	return r.RecordKey()
}

// awaited is the container that keeps a volume from being taken to a node by a mount
// there: it is to start on the primary, or it went away from that node, whose stopped
// one must not fetch the volume back. Nil when there is none.
func awaited(s *state.State, v *state.Volume, node volume.NodeID) *state.Container {
	for _, c := range s.ContainersOf(v.ID) {
		if c.Run && v.Placement.Primary != node && (c.Node != v.Placement.Primary || c.Left[node] != "") {
			return c
		}
	}
	return nil
}
