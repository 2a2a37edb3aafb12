package state

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/flocker-io/flocker/internal/volume"
)

// MaxContainer bounds what is kept of one container, in bytes: its sealed spec and the
// sentences about it.
const MaxContainer = 64 << 10

// Container is the record of a container that follows its volumes: enough to make it
// again on another node when its own is lost.
type Container struct {
	Name string `json:"name"`
	// Volumes that it mounts, in order of ID, and the epochs at which it was last seen
	// with them (0: not since a move was given up). A record belongs to a name and a set of volumes.
	Volumes []ContainerVolume `json:"volumes"`
	// Node has it, under the engine's ID.
	Node volume.NodeID `json:"node"`
	ID   string        `json:"id"`
	// Run is its user's wish: false when it was stopped, and then it stays stopped.
	Run   bool           `json:"run,omitempty"`
	Image ContainerImage `json:"image"`
	// Obstacles are sentences about what cannot follow. Blocked: because of them it is
	// not made elsewhere.
	Obstacles []string `json:"obstacles,omitempty"`
	Blocked   bool     `json:"blocked,omitempty"`
	// Routes that its labels ask for, in order of Listen; ports that others have are left
	// out.
	Routes []volume.Route `json:"routes,omitempty"`
	// Published are ports of it that its engine publishes by itself, on one node.
	Published []Published `json:"published,omitempty"`
	// Sealed is its spec, encrypted with the data key of this ID, which witnesses do not
	// have; this package does not look into it. Hash tells specs apart and nothing else.
	Key    string `json:"key"`
	Sealed []byte `json:"sealed"`
	Hash   string `json:"hash"`
	// Left are the nodes that it went away from, and its ID there: containers that must
	// not start again and may be replaced.
	Left    map[volume.NodeID]string `json:"left,omitempty"`
	Changed uint64                   `json:"changed"`
}

// ContainerVolume is one volume of a container.
type ContainerVolume struct {
	ID    volume.ID    `json:"id"`
	Epoch volume.Epoch `json:"epoch"`
}

// Published is a port of a node that an engine leads to a port of a container, past any
// gate. Host is 0 where the engine chooses it.
type Published struct {
	Host int `json:"host"`
	Port int `json:"port"`
}

// ContainerImage says which image a container needs.
type ContainerImage struct {
	ID     string `json:"id"`
	Ref    string `json:"ref"`
	Layers string `json:"layers,omitempty"`
}

// Uses says that the container mounts a volume.
func (c *Container) Uses(id volume.ID) bool {
	return slices.ContainsFunc(c.Volumes, func(v ContainerVolume) bool { return v.ID == id })
}

// RecordKey names the record of a container.
func (c *Container) RecordKey() string { return recordKey(c.Name, c.Volumes) }

func recordKey(name string, volumes []ContainerVolume) string {
	var b strings.Builder
	b.WriteString(name)
	for _, v := range volumes {
		b.WriteString("/" + string(v.ID))
	}
	return b.String()
}

// Commands of containers that follow.
type (
	// PutContainer records a container of Node, which is the primary of all its volumes,
	// at these epochs. Left and Changed are not the proposer's to say.
	PutContainer struct {
		Container Container `json:"container"`
	}
	// DropContainer forgets one that its user has removed from Node. Changed is that of
	// the record which the proposer saw.
	DropContainer struct {
		Record  string        `json:"record"`
		Node    volume.NodeID `json:"node"`
		Changed uint64        `json:"changed"`
	}
	// SetDataKey says which data key the nodes with a pool share. Was is the ID of the one
	// before, "" for none: with another it is a conflict.
	SetDataKey struct {
		ID  string `json:"id"`
		Was string `json:"was,omitempty"`
	}
)

func (PutContainer) kind() string  { return "put-container" }
func (DropContainer) kind() string { return "drop-container" }
func (SetDataKey) kind() string    { return "set-data-key" }

// Container by the key of its record; nil when there is none.
func (s *State) Container(record string) *Container {
	c, _ := s.containers.Get([]byte(record))
	return c
}

// Containers in the order of their names.
func (s *State) Containers() func(yield func(*Container) bool) { return values(s.containers) }

// ContainersOf a volume.
func (s *State) ContainersOf(id volume.ID) (out []*Container) {
	for c := range s.Containers() {
		if c.Uses(id) {
			out = append(out, c)
		}
	}
	return out
}

// RunningOn are the containers of a volume that are recorded to run on a node.
func (s *State) RunningOn(v *Volume, node volume.NodeID) (out []*Container) {
	for _, c := range s.ContainersOf(v.ID) {
		if c.Run && c.Node == node {
			out = append(out, c)
		}
	}
	return out
}

// Starting are the containers that went along with the last handoff of a volume and have
// not been seen to run since.
func (s *State) Starting(v *Volume) []*Container {
	if v.Moved == nil || v.Moved.From == v.Placement.Primary {
		return nil
	}
	return s.RunningOn(v, v.Moved.From)
}

// RecordOf is the record of a container by its name and the volumes that it mounts;
// nil when there is none.
func (s *State) RecordOf(name string, volumes []volume.ID) *Container {
	var vs []ContainerVolume
	for _, id := range slices.Sorted(slices.Values(volumes)) {
		vs = append(vs, ContainerVolume{ID: id})
	}
	return s.Container(recordKey(name, vs))
}

func (t *txn) putContainer(p PutContainer) Result {
	c := p.Container
	size := len(c.Sealed)
	for _, o := range c.Obstacles {
		size += len(o)
	}
	sorted := slices.IsSortedFunc(c.Volumes, func(a, b ContainerVolume) int { return cmp.Compare(a.ID, b.ID) })
	n := t.s.Node(c.Node)
	switch {
	case n == nil || n.Removed || n.Witness:
		return failed(volume.CodeInvalid, "container %q: no node with a pool is %s", c.Name, c.Node)
	case c.Name == "" || c.ID == "" || len(c.Volumes) == 0 || !sorted:
		return failed(volume.CodeInvalid, "container %q cannot follow: it has no name, no ID or no volumes in order", c.Name)
	case size > MaxContainer:
		return failed(volume.CodeInvalid, "container %q cannot follow: its description takes %d KiB and at most %d are kept", c.Name, size>>10, MaxContainer>>10)
	case c.Key != t.s.cluster.DataKey:
		return failed(volume.CodeConflict, "container %q is sealed with another key than the nodes share now", c.Name)
	}
	for _, cv := range c.Volumes {
		v, bad := t.at1(cv.ID, cv.Epoch)
		if bad != nil {
			return *bad
		}
		if v.Placement.Primary != c.Node || v.Phase != PhaseActive && v.Phase != PhaseMoving {
			return failed(volume.CodeConflict, "container %q: volume %q is %s, and its primary is %s", c.Name, v.Name, v.Phase, t.s.NodeName(v.Placement.Primary))
		}
	}
	old := t.s.Container(c.RecordKey())
	c.Left = nil
	if old != nil {
		c.Left = maps.Clone(old.Left)
		if old.Node != c.Node {
			if c.Left == nil {
				c.Left = map[volume.NodeID]string{}
			}
			c.Left[old.Node] = old.ID
		}
		delete(c.Left, c.Node)
		if len(c.Left) == 0 {
			c.Left = nil
		}
	}
	// A name is given once on an engine: another record of it there is of one that is gone.
	var gone []string
	for other := range t.s.Containers() {
		if other.Node == c.Node && other.Name == c.Name && other.RecordKey() != c.RecordKey() {
			gone = append(gone, other.RecordKey())
		}
	}
	ours := func(r Route) bool {
		return r.Container != nil && (r.Container.RecordKey() == c.RecordKey() || slices.Contains(gone, r.Container.RecordKey()))
	}
	if bad := t.mayListen(fmt.Sprintf("container %q", c.Name), c.Routes, ours); bad != nil {
		return *bad
	}
	for _, key := range gone {
		t.s.containers, _, _ = t.s.containers.Delete([]byte(key))
	}
	t.storeContainer(c)
	t.prunePaused(c.Volumes[0].ID)
	first, _ := t.at1(c.Volumes[0].ID, c.Volumes[0].Epoch)
	switch {
	case old == nil:
		t.event(Event{Kind: "container.followed", Volume: first.ID, Name: c.Name, Node: c.Node,
			Message: fmt.Sprintf("container %s on %s follows its volumes", c.Name, n.Name)})
	case old.Node != c.Node:
		t.event(Event{Kind: "container.moved", Volume: first.ID, Name: c.Name, Node: c.Node,
			Message: fmt.Sprintf("container %s is on %s now, was on %s", c.Name, n.Name, t.s.NodeName(old.Node))})
	}
	return Result{Volume: first.ID}
}

func (t *txn) dropContainer(d DropContainer) Result {
	c := t.s.Container(d.Record)
	switch {
	case c == nil:
		return Result{}
	case c.Node != d.Node || c.Changed != d.Changed:
		return failed(volume.CodeConflict, "container %q is on %s, or was recorded again", c.Name, t.s.NodeName(c.Node))
	}
	t.forgetContainer(c, "it was removed there")
	return Result{}
}

func (t *txn) setDataKey(c SetDataKey) Result {
	switch {
	case c.ID == "":
		return failed(volume.CodeInvalid, "a data key needs an ID")
	case t.s.cluster.DataKey == c.ID:
		return Result{}
	case t.s.cluster.DataKey != c.Was:
		return failed(volume.CodeConflict, "the nodes share another data key already")
	}
	cl := *t.s.cluster
	cl.DataKey = c.ID
	t.s.cluster = &cl
	return Result{}
}

// stayBehind is for a volume that was handed over without its containers: its primary
// has said that none of them ran, so none of them is to run elsewhere.
func (t *txn) stayBehind(id volume.ID, from volume.NodeID) {
	for _, c := range t.s.ContainersOf(id) {
		if c.Node == from && c.Run {
			stopped := *c
			stopped.Run = false
			t.storeContainer(stopped)
		}
	}
}

// unseen is for a move with containers that was given up: those that were stopped for
// it are to run again, which nobody can tell from ones that their user stopped but by
// this.
func (t *txn) unseen(id volume.ID, on volume.NodeID) {
	for _, c := range t.s.ContainersOf(id) {
		if c.Node != on || !c.Run {
			continue
		}
		again := *c
		again.Volumes = slices.Clone(c.Volumes)
		for i := range again.Volumes {
			if again.Volumes[i].ID == id {
				again.Volumes[i].Epoch = 0
			}
		}
		t.storeContainer(again)
	}
}

// withoutVolume forgets the containers of a volume that is gone for good.
func (t *txn) withoutVolume(id volume.ID) {
	for _, c := range t.s.ContainersOf(id) {
		t.forgetContainer(c, "a volume of it is gone")
	}
}

// leaveContainers forgets what is recorded of the containers on a node that is removed.
// Those stay that are to run where their volumes go: that needs the record.
func (t *txn) leaveContainers(node volume.NodeID) {
	var on []*Container
	for c := range t.s.Containers() {
		if c.Node == node || c.Left[node] != "" {
			on = append(on, c)
		}
	}
	for _, c := range on {
		gone := slices.ContainsFunc(c.Volumes, func(cv ContainerVolume) bool {
			v := t.s.Volume(cv.ID)
			return v == nil || v.Phase == PhasePurged
		})
		switch {
		case c.Node != node:
			kept := *c
			kept.Left = maps.Clone(c.Left)
			if delete(kept.Left, node); len(kept.Left) == 0 {
				kept.Left = nil
			}
			t.storeContainer(kept)
		case gone:
			t.forgetContainer(c, "its node was removed, and a volume of it is gone")
		case !c.Run:
			t.forgetContainer(c, "it was stopped, and its node was removed")
		}
	}
}

func (t *txn) forgetContainer(c *Container, why string) {
	t.s.containers, _, _ = t.s.containers.Delete([]byte(c.RecordKey()))
	t.prunePaused(c.Volumes[0].ID)
	t.event(Event{Kind: "container.forgotten", Name: c.Name, Node: c.Node, Volume: c.Volumes[0].ID,
		Message: fmt.Sprintf("container %s of %s does not follow any more: %s", c.Name, t.s.NodeName(c.Node), why)})
}

func (t *txn) storeContainer(c Container) {
	c.Changed = t.index
	t.s.containers, _, _ = t.s.containers.Insert([]byte(c.RecordKey()), &c)
}
