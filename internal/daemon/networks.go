package daemon

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/flocker-io/flocker/internal/container"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// The networks of a container that comes with its volumes are made here as soon as these begin
// to move, while it still runs where it is: a bridge of its own takes its engine tenths of a
// second, for which clients would wait. What a move that is given up has brought is removed
// again. A flockd that is started again does not know any more which networks it has made for
// that, and leaves them: an empty network is in nobody's way.

// networksView is all that it is decided from.
type networksView struct {
	Self  volume.NodeID
	State *state.State
	// Tried are the attempts for which they were made last, by record.
	Tried map[string]string
	// Made are the records for which each network was made, by ID of the network.
	Made map[string]map[string]bool
}

// networksPlan is what is to be done about them.
type networksPlan struct {
	Make   []string // records
	Keep   []string // IDs of networks that a container has here now: they are its
	Remove []string // IDs
}

func planNetworks(v networksView) (p networksPlan) {
	for r := range v.State.Containers() {
		key := r.RecordKey()
		if attempt := v.comes(r); attempt != "" && r.Run && !r.Blocked && v.Tried[key] != attempt {
			p.Make = append(p.Make, key)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(v.Made)) {
		wanted, here := false, false
		for key := range v.Made[id] {
			r := v.State.Container(key)
			here = here || r != nil && r.Node == v.Self
			wanted = wanted || r != nil && (v.comes(r) != "" || v.came(r))
		}
		switch {
		case here:
			p.Keep = append(p.Keep, id)
		case !wanted:
			p.Remove = append(p.Remove, id)
		}
	}
	slices.Sort(p.Make)
	return p
}

// comes is the attempt by which a container is on its way here; "" when it is not.
func (v networksView) comes(r *state.Container) string {
	for _, cv := range r.Volumes {
		if vol := v.State.Volume(cv.ID); r.Node != v.Self && vol != nil && vol.Phase == state.PhaseMoving && vol.Pending != nil && vol.Pending.Follow && vol.Pending.To == v.Self {
			return vol.Pending.Attempt
		}
	}
	return ""
}

// came says that one of its volumes has come here, and it is about to.
func (v networksView) came(r *state.Container) bool {
	return slices.ContainsFunc(r.Volumes, func(cv state.ContainerVolume) bool {
		vol := v.State.Volume(cv.ID)
		return vol != nil && vol.Phase == state.PhaseActive && vol.Placement.Primary == v.Self
	})
}

// networks does it for a node.
type networks struct {
	f *follower

	mu    sync.Mutex
	busy  bool // one look at a time
	tried map[string]string
	made  map[string]madeNetwork // by ID
}

type madeNetwork struct {
	name string
	by   map[string]bool // records
}

func newNetworks(f *follower) *networks {
	return &networks{f: f, tried: map[string]string{}, made: map[string]madeNetwork{}}
}

// step does what is to be done, in the background: an engine takes its time.
func (n *networks) step(ctx context.Context) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.plan(); n.busy || len(p.Make)+len(p.Keep)+len(p.Remove) == 0 {
		return
	}
	n.busy = true
	n.f.jobs.Go(func() {
		n.carryOut(ctx)
		n.mu.Lock()
		defer n.mu.Unlock()
		n.busy = false
	})
}

// plan by the state of now. The caller has the lock.
func (n *networks) plan() networksPlan {
	v := networksView{Self: n.f.m.self, State: n.f.m.cluster.State(), Tried: n.tried, Made: map[string]map[string]bool{}}
	maps.DeleteFunc(n.tried, func(key, _ string) bool { return v.State.Container(key) == nil })
	for id, m := range n.made {
		v.Made[id] = m.by
	}
	return planNetworks(v)
}

// carryOut does each thing by a plan of that moment: a move may be given up, or begin,
// meanwhile. What does not work is tried again at the next move, or look.
func (n *networks) carryOut(ctx context.Context) {
	for ctx.Err() == nil {
		n.mu.Lock()
		p := n.plan()
		for _, id := range p.Keep {
			delete(n.made, id)
		}
		n.mu.Unlock()
		if len(p.Make) == 0 {
			for _, id := range p.Remove {
				n.remove(ctx, id)
			}
			return
		}
		n.make(ctx, p.Make[0])
	}
}

// make makes what lacks of one record's. Its start would say what cannot be made, so here that
// is only logged.
func (n *networks) make(ctx context.Context, key string) {
	s := n.f.m.cluster.State()
	r := s.Container(key)
	v := networksView{Self: n.f.m.self, State: s}
	if r == nil {
		return
	}
	spec, err := n.f.open(r)
	var made map[string]string
	if err == nil && len(spec.OwnNetworks()) > 0 {
		made, err = n.f.engine.MakeNetworks(ctx, spec)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tried[key] = v.comes(r)
	for name, id := range made {
		n.made[id] = madeNetwork{name, map[string]bool{}}
	}
	for _, m := range n.made {
		if slices.Contains(spec.OwnNetworks(), m.name) {
			m.by[key] = true
		}
	}
	switch {
	case ctx.Err() != nil:
	case err != nil:
		n.f.m.log.Warn("a network of a container that comes here cannot be made ahead of it", "container", r.Name, "err", err)
	case len(made) > 0:
		n.f.m.log.Info("networks were made for a container that comes here", "container", r.Name, "networks", slices.Sorted(maps.Keys(made)))
	}
}

func (n *networks) remove(ctx context.Context, id string) {
	err := n.f.engine.RemoveNetwork(ctx, id)
	n.mu.Lock()
	defer n.mu.Unlock()
	name := n.made[id].name
	switch {
	case err == nil:
		delete(n.made, id)
		n.f.m.log.Info("a network was removed that was made for a container that did not come", "network", name)
	case errors.Is(err, container.ErrInUse):
		delete(n.made, id) // somebody else's by now
	case ctx.Err() == nil:
		n.f.m.log.Debug("a network that was made for a container that did not come cannot be removed yet", "network", name, "err", err)
	}
}
