package placement

import (
	"cmp"
	"iter"
	"slices"
	"sort"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// ReportFresh is how long a report speaks for its node where Heard does not say: five
// heartbeats, so that one lost message changes nothing.
const ReportFresh = 10 * time.Second

// Heard is the newest report of one node and when the leader received it, by the
// leader's own clock. The report is only read, so that it may be shared.
type Heard struct {
	Report *volume.Report
	At     time.Time
	For    time.Duration // how long it speaks for its node; 0: ReportFresh
}

// View is what a leader knows about the cluster at one moment. It is immutable
// and may be used by many goroutines.
type View struct {
	// Now is the moment, by the leader's clock.
	Now time.Time
	// Nodes are the members, by ID. Volumes are all volumes, by ID, in every phase.
	Nodes    []NodeView
	Volumes  []*state.Volume
	Settings state.Settings

	extra map[volume.ID]volume.NodeID // see Memory
	names func(volume.NodeID) string  // of nodes that are members no more, too; nil: not known

	// containers that follow, by volume.
	containers map[volume.ID][]*state.Container

	swarm swarmView

	salt  uint64 // changes with the state, so that equal nodes take turns
	index map[volume.NodeID]int
	zones map[volume.Zone][]int // indices into Nodes
}

// NodeView is one member: what the state says of it, and what it reported if that
// is still fresh.
type NodeView struct {
	ID           volume.NodeID
	Name         string
	Zone         volume.Zone
	Availability state.Availability
	KeepReplicas bool // while drained
	Witness      bool
	// Lease says that the state lets the node write: it holds a valid one or needs none.
	Lease bool

	// Reported is when the leader last heard of it; zero: not since it leads.
	// Alive says that this was recent. Without it Pool is the zero value.
	Reported time.Time
	Alive    bool
	Pool     volume.PoolInfo

	// Promised is what the volumes placed here may come to need, Held what they
	// take already. What others use of the pool is the rest of its used space.
	Promised int64
	Held     int64
	// Primaries and Replicas count the live volumes placed here by role.
	Primaries int
	Replicas  int
	// Seeding counts the first copies this node is receiving, Feeding those it is
	// sending. Repair keeps both small.
	Seeding int
	Feeding int

	// silent is since when a leader listens for a node that it never heard of.
	silent time.Time

	hash    uint64 // of ID
	applied uint64
	clock   time.Time       // the node's own, when it reported
	copies  []volume.Status // of a fresh report, by volume ID
	// stays is what a volume's copy has that others here stand on, in bytes: they keep that.
	stays map[volume.ID]int64
	// containers as a fresh report has them, and whether the node's proxy answers.
	containers []volume.Followed
	proxy      bool
	swarm      volume.Swarm
	asided     time.Time // when a copy was last set aside there
}

// NewView joins the state with the reports by node. Reports of strangers are
// ignored; a member without a fresh report is unknown: not alive. It looks at
// every volume (10 ms for ten thousand), Place then only at the nodes.
func NewView(st *state.State, reports map[volume.NodeID]Heard, now time.Time) *View {
	var settings state.Settings
	if c := st.Cluster(); c != nil {
		settings = c.Settings
	}
	volumes := make([]*state.Volume, 0, st.VolumeCount())
	volumes = slices.AppendSeq(volumes, st.Volumes())
	v := newView(slices.Collect(st.Nodes()), volumes, settings, st.Index, reports, now)
	v.names = st.NodeName
	v.containers = indexContainers(slices.Collect(st.Containers()))
	for i := range v.Nodes {
		v.Nodes[i].Lease = st.HasLease(v.Nodes[i].ID)
	}
	return v
}

func newView(nodes []*state.Node, volumes []*state.Volume, settings state.Settings, salt uint64, reports map[volume.NodeID]Heard, now time.Time) *View {
	v := &View{
		Now:      now,
		Nodes:    make([]NodeView, 0, len(nodes)),
		Volumes:  volumes,
		Settings: settings,
		salt:     salt,
		index:    make(map[volume.NodeID]int, len(nodes)),
		zones:    make(map[volume.Zone][]int),
	}
	for i, n := range nodes {
		v.Nodes = append(v.Nodes, newNodeView(n, reports[n.ID], now))
		v.index[n.ID] = i
		if v.Nodes[i].Alive {
			v.swarm.add(reports[n.ID].Report.Swarm)
		}
		zone := v.Nodes[i].Zone
		v.zones[zone] = append(v.zones[zone], i)
	}
	for _, vol := range volumes {
		v.count(vol)
	}
	return v
}

func newNodeView(n *state.Node, heard Heard, now time.Time) NodeView {
	nv := NodeView{
		ID: n.ID, Name: n.Name, Zone: cmp.Or(n.Zone, volume.DefaultZone),
		Availability: cmp.Or(n.Availability, state.Active), KeepReplicas: n.KeepReplicas,
		Witness: n.Witness,
		hash:    hashOf(string(n.ID)),
	}
	if heard.Report == nil {
		return nv
	}
	nv.Reported = heard.At
	if now.Sub(heard.At) >= orDefault(heard.For, ReportFresh) {
		return nv
	}
	nv.Alive = true
	nv.Pool = heard.Report.Pool
	nv.applied = heard.Report.Applied
	nv.clock = heard.Report.At
	nv.stays = stays(heard.Report.Volumes)
	nv.copies = heard.Report.Volumes
	nv.containers, nv.proxy, nv.swarm = heard.Report.Followed, heard.Report.Proxy, heard.Report.Swarm
	for _, a := range heard.Report.Asides {
		if a.At.After(nv.asided) {
			nv.asided = a.At
		}
	}
	byVolume := func(i, j int) bool { return nv.copies[i].Volume < nv.copies[j].Volume }
	if !sort.SliceIsSorted(nv.copies, byVolume) {
		nv.copies = slices.Clone(nv.copies)
		sort.Slice(nv.copies, byVolume)
	}
	return nv
}

// stays is what other copies of a node stand on, by the volume in whose copy that is. Each snapshot counts
// once, however many stand on it. What two of them have in common counts twice, since nobody says how much
// that is: less may seem to go free than does, and never more.
func stays(copies []volume.Status) map[volume.ID]int64 {
	type snapshot struct {
		of   volume.ID
		guid uint64
	}
	var out map[volume.ID]int64
	seen := map[snapshot]bool{}
	for _, c := range copies {
		s := c.Shares
		if s == nil || s.With == "" || s.Bytes <= 0 || seen[snapshot{s.With, s.GUID}] {
			continue
		}
		if out == nil {
			out = map[volume.ID]int64{}
		}
		seen[snapshot{s.With, s.GUID}] = true
		out[s.With] += s.Bytes
	}
	return out
}

// count adds one volume to the nodes it is placed on.
func (v *View) count(vol *state.Volume) {
	claim := v.claim(vol)
	for id := range nodesOf(vol.Placement) {
		n := v.Node(id)
		if n == nil {
			continue
		}
		c := n.Copy(vol.ID)
		if c != nil {
			n.Held += c.Used
		}
		switch {
		case !vol.Live():
			if c != nil {
				n.Promised += c.Used
			}
			continue
		case id == vol.Placement.Primary:
			n.Primaries++
		default:
			n.Replicas++
			if n.Alive && !seeded(c) {
				n.Seeding++
				if p := v.Node(vol.Placement.Primary); p != nil {
					p.Feeding++
				}
			}
		}
		n.Promised += counted(vol, n, claim)
	}
}

// counted is the share of a volume's claim that its copy on a node is counted for: what a clone shares
// there is there already, and does not go free when the clone goes. What was made of a set-aside copy shares
// as a clone does, and so does an original once its clone was promoted; a quota is promised to these.
func counted(vol *state.Volume, n *NodeView, claim int64) int64 {
	c := n.Copy(vol.ID)
	if !seeded(c) || vol.Clone == nil && c.Shares == nil {
		return claim
	}
	own := c.Used + c.Used/4 + growthReserve
	if vol.Clone == nil && vol.Spec.Size > 0 {
		own = max(own, claim-c.Shares.Bytes)
	}
	return min(claim, own)
}

// freed is what goes free on a node when its copy of a volume leaves it, as it is counted: without what its
// clones there stand on. They have that from then on, and it is counted for them as what they have is.
func freed(vol *state.Volume, n *NodeView, claim int64) int64 {
	kept := n.stays[vol.ID]
	return max(counted(vol, n, claim)-kept-kept/4, 0)
}

// seeded says that a replica has its first full copy.
func seeded(c *volume.Status) bool { return c != nil && c.Exists && !c.Newest.IsZero() }

// claim is the space one copy of a volume may come to need: its quota or, where
// its snapshots have outgrown that or it has none, what its fullest copy takes now
// and some room to grow. A clone's quota counts what it shares with its original, and
// with all other clones: it is taken for one without. Where its original is not, it shares nothing.
func (v *View) claim(vol *state.Volume) int64 {
	used := v.used(vol)
	if vol.Spec.Size > 0 && vol.Clone == nil {
		return max(vol.Spec.Size, used)
	}
	return used + used/4 + growthReserve
}

// growthReserve is the space counted for a volume without a quota besides a
// quarter of what it takes: enough that many new ones are not put on one node, and
// so little that a small pool still holds dozens.
const growthReserve = 64 << 20

// zoneOf a node; the default one when it is no member.
func (v *View) zoneOf(id volume.NodeID) volume.Zone {
	if n := v.Node(id); n != nil {
		return n.Zone
	}
	return volume.DefaultZone
}

// name of a node for people.
func (v *View) name(id volume.NodeID) string {
	if n := v.Node(id); n != nil {
		return n.Name
	}
	if v.names != nil {
		return v.names(id)
	}
	return id.Short()
}

// Node by ID; nil when it is no member.
func (v *View) Node(id volume.NodeID) *NodeView {
	i, ok := v.index[id]
	if !ok {
		return nil
	}
	return &v.Nodes[i]
}

// Copy is what a node with a fresh report says about its copy of a volume; nil
// when it says nothing.
func (n *NodeView) Copy(id volume.ID) *volume.Status {
	i := sort.Search(len(n.copies), func(i int) bool { return n.copies[i].Volume >= id })
	if i == len(n.copies) || n.copies[i].Volume != id {
		return nil
	}
	return &n.copies[i]
}

// nodesOf are p.Nodes() without making a slice: a View looks at tens of thousands.
func nodesOf(p volume.Placement) iter.Seq[volume.NodeID] {
	return func(yield func(volume.NodeID) bool) {
		if p.Primary != "" && !yield(p.Primary) {
			return
		}
		for _, list := range [...][]volume.NodeID{p.Local, p.Remote} {
			for _, id := range list {
				if !yield(id) {
					return
				}
			}
		}
	}
}

// poolKnown says that the node has looked at its pool and could: only then does
// silence about a volume mean that no copy is there.
func (n *NodeView) poolKnown() bool {
	return n.Alive && (n.Pool.Health == poolOnline || n.Pool.Health == poolDegraded)
}

const (
	poolOnline   = "ONLINE"
	poolDegraded = "DEGRADED"
)

// clone lets a planner count what it has decided without touching v.
func (v *View) clone() *View {
	c := *v
	c.Nodes = slices.Clone(v.Nodes)
	return &c
}
