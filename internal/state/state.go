package state

import (
	"encoding/binary"
	"iter"
	"slices"
	"time"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	"github.com/flocker-io/flocker/internal/volume"
)

// State is one version of everything the cluster has agreed on. It is immutable
// and shared freely between goroutines. The zero value is not useful; New is the
// empty state.
type State struct {
	// Index is the Raft index of the last command applied.
	Index uint64

	cluster *Cluster
	nodes   *iradix.Tree[*Node]     // by NodeID
	volumes *iradix.Tree[*Volume]   // by volume ID, trash included
	names   *iradix.Tree[volume.ID] // name of a live volume to its ID
	tokens  *iradix.Tree[*Token]    // by token ID
	// containers that follow their volumes, by RecordKey.
	containers *iradix.Tree[*Container]
	events     *iradix.Tree[*Event]   // by big-endian sequence
	requests   *iradix.Tree[*request] // by request ID
	// answered orders the requests, so that the oldest are forgotten first.
	answered *iradix.Tree[string] // by big-endian index
	eventSeq uint64
}

// New is the state before the cluster is initialised.
func New() *State {
	return &State{
		nodes:      iradix.New[*Node](),
		volumes:    iradix.New[*Volume](),
		names:      iradix.New[volume.ID](),
		tokens:     iradix.New[*Token](),
		containers: iradix.New[*Container](),
		events:     iradix.New[*Event](),
		requests:   iradix.New[*request](),
		answered:   iradix.New[string](),
	}
}

// Cluster is what all nodes share. Values are never changed in place.
type Cluster struct {
	ID         string    `json:"id"`
	Generation uint32    `json:"generation"` // raised only by disaster recovery
	Created    time.Time `json:"created"`
	// CACert is the root certificate (PEM). CAKey is its private key, sealed with a
	// key that only voters are given; this package does not look into it.
	CACert []byte `json:"ca_cert"`
	CAKey  []byte `json:"ca_key"`
	// GossipKeys, the primary one first: 32 bytes each.
	GossipKeys [][]byte `json:"gossip_keys"`
	Settings   Settings `json:"settings"`
	Failover   Failover `json:"failover,omitzero"`
	// DataKey is the ID of the key that the specs of containers are sealed with. The key
	// itself is only on the disks of nodes with a pool.
	DataKey string `json:"data_key,omitempty"`
	// Reign is the Raft index of the last TakeLead.
	Reign uint64 `json:"reign,omitempty"`
}

// Availability is the operator's wish for a node.
type Availability string

// The availabilities. Only active nodes get new copies; a drained one gives those away
// that it has.
const (
	Active Availability = "active"
	Drain  Availability = "drain"
)

// Node is one member.
type Node struct {
	ID           volume.NodeID     `json:"id"`
	Name         string            `json:"name"`
	Zone         volume.Zone       `json:"zone"`
	Addr         string            `json:"addr"`        // host:port of the mTLS port
	GossipAddr   string            `json:"gossip_addr"` // host:port of serf
	Witness      bool              `json:"witness,omitempty"`
	Availability Availability      `json:"availability"`
	KeepReplicas bool              `json:"keep_replicas,omitempty"` // while drained
	Labels       map[string]string `json:"labels,omitempty"`
	Joined       time.Time         `json:"joined"`
	// KeyHash is the SHA-256 of the node's public key (SubjectPublicKeyInfo): the
	// identity that certificates are renewed for.
	KeyHash []byte `json:"key_hash,omitempty"`
	// Removed nodes stay listed so that their certificates are refused for ever.
	Removed bool `json:"removed,omitempty"`
	// Lost nodes are members of the time before a recovery (see Recover): nobody talks to
	// them until they have joined again, and then they are what they were.
	Lost bool `json:"lost,omitempty"`
	// Lease is the last that was granted.
	Lease Lease `json:"lease,omitzero"`
}

// Phase is where a volume is in its life.
//
//	            ConfirmCreate           BeginDelete            CommitDelete
//	creating ───────────────► active ────────────────► deleting ──────────► trash
//	    │ AbortCreate          ▲ │ ▲ ◄── AbortDelete ──────┘                │  │
//	    ▼                      │ │ └───────────────── Undelete ─────────────┘  │ PurgeVolume
//	  (gone)     AbortHandoff, │ │ BeginHandoff                                ▼
//	             CommitHandoff │ ▼                           ForgetVolume    purged ──► (gone)
//	                          moving
//
// A rollback is moving, too, and goes nowhere: BeginRollback, and AbortHandoff or
// CommitRollback.
//
// When the primary is lost, what is active, moving or deleting becomes electing, and
// active again by Promote. What comes from the trash to such a primary, or is confirmed
// by it, goes there, too.
//
// Only in creating may a primary make an empty dataset: in every other phase a
// missing dataset is a fault to report, never a reason to start from nothing.
// CommitHandoff, CommitRollback, CommitDelete and ConfirmCreate are proposed by the primary alone,
// after it has done its part on its own disk.
type Phase string

// The phases.
const (
	PhaseCreating Phase = "creating"
	PhaseActive   Phase = "active"
	PhaseMoving   Phase = "moving"
	PhaseDeleting Phase = "deleting"
	PhaseTrash    Phase = "trash"
	PhasePurged   Phase = "purged"
	// PhaseElecting: the primary was lost. Its epoch is over, another one has begun, and
	// nobody may write until Promote names who. It follows active, moving and deleting.
	PhaseElecting Phase = "electing"
)

// Volume is one volume as the cluster wants it.
type Volume struct {
	ID        volume.ID        `json:"id"`
	Name      string           `json:"name"`
	Spec      volume.Spec      `json:"spec"`
	Placement volume.Placement `json:"placement"`
	Epoch     volume.Epoch     `json:"epoch"`
	Phase     Phase            `json:"phase"`
	// Pending is the move or removal that is under way in PhaseMoving and
	// PhaseDeleting.
	Pending *Pending `json:"pending,omitempty"`
	// Election, in PhaseElecting, is why.
	Election *Election `json:"election,omitempty"`
	// Start is what the primary's copy held when it took this epoch over; zero for
	// the first epoch. A copy without it must not be written.
	Start volume.Position `json:"start,omitzero"`
	// LastRefusal is why the last pending operation was given up, or undone.
	LastRefusal *Refusal `json:"last_refusal,omitempty"`
	// Moved is the handoff with containers that began this epoch; nil when something else
	// did. Until they run, the volume can go back: see BeginHandoff.
	Moved *Moved `json:"moved,omitempty"`
	// Migration is where an operator wants the volume, until it is there or that is given
	// up; nil when nobody asked.
	Migration *Migration `json:"migration,omitempty"`
	// LastMigration is how the last one ended.
	LastMigration *EndedMigration `json:"last_migration,omitempty"`
	// RolledBack is the last rollback, for ever: a node that was away may come back with
	// what it has undone. See Volume.Line.
	RolledBack *RolledBack `json:"rolled_back,omitempty"`
	// RolledBackBefore is the one before it, in case that it is called off.
	RolledBackBefore *RolledBack `json:"rolled_back_before,omitempty"`
	// LastFailover is how it last came to a primary without the one before; nil: never.
	LastFailover *EndedFailover `json:"last_failover,omitempty"`
	// Adopt, until the volume is confirmed, is the set-aside copy on the primary that it
	// is made of, by its name, or somebody's dataset in its pool; "" for a volume that begins empty.
	Adopt string `json:"adopt,omitempty"`
	// Clone is what it is a clone of, or was, for the original may be gone; nil for a volume
	// that is none.
	Clone *CloneOf `json:"clone,omitempty"`
	// Descends are the volumes whose history this one goes on with, the nearest first: it was made of
	// what was set aside of that. It is there where they go back to a clone, which has no history but its own; nil: of what is
	// no clone's, or is not known, nothing follows.
	Descends []volume.ID `json:"descends,omitempty"`
	// Paused are those of its routes that an operator has paused, in order.
	Paused []volume.RouteKey `json:"paused,omitempty"`
	// Held are the snapshots that nothing may destroy, in the order in which they were held.
	Held    []Hold    `json:"held,omitempty"`
	Created time.Time `json:"created"`
	Deleted time.Time `json:"deleted,omitzero"`
	// Changed is the Raft index of the last change.
	Changed uint64 `json:"changed"`
}

// CloneOf is where the data of a clone comes from. Values are never changed in place.
type CloneOf struct {
	Volume volume.ID `json:"volume"`
	Name   string    `json:"name"` // that the original had then
	// Snapshot of the original, by its name then and by what it is known by.
	Snapshot string `json:"snapshot"`
	GUID     uint64 `json:"guid,string"`
	// Now says that the snapshot was taken for the clone: its user named none.
	Now bool `json:"now,omitempty"`
}

// same says that both were asked for in the same words.
func (c *CloneOf) same(d *CloneOf) bool {
	return c != nil && c.Volume == d.Volume && c.Now == d.Now && (c.Now || c.GUID == d.GUID)
}

// Descent is CreateVolume.Descends of a volume that is made of what was set aside of this one.
func (v *Volume) Descent() []volume.ID {
	if v.Clone == nil && v.Descends == nil {
		return nil
	}
	return append([]volume.ID{v.ID}, v.Descends...)
}

// WentThrough says that the history of a volume, as far as this one stands on a copy of it, is
// this one's history, too; so it is unless it is known to be another's.
func (v *Volume) WentThrough(of volume.ID) bool {
	descent := v.Descent()
	return descent == nil || slices.Contains(descent, of)
}

// Clones are the volumes that were made of one and are not gone, in order of ID; the trash
// is included.
func (s *State) Clones(id volume.ID) []*Volume {
	var out []*Volume
	for v := range s.Volumes() {
		if v.Clone != nil && v.Clone.Volume == id && v.Phase != PhasePurged {
			out = append(out, v)
		}
	}
	return out
}

// Live says that users see the volume under its name.
func (v *Volume) Live() bool {
	return v.Phase != PhaseTrash && v.Phase != PhasePurged
}

// Pending is an operation that its primary has to agree to.
type Pending struct {
	// Attempt tells this try from earlier ones of the same epoch, so that a late
	// commit or abort of another try changes nothing.
	Attempt string        `json:"attempt"`
	To      volume.NodeID `json:"to,omitempty"` // of a move
	// Follow: the containers go along, see BeginHandoff.
	Follow bool `json:"follow,omitempty"`
	// Back, of a move, is why the last one is undone; "" for one that is no return.
	Back  string    `json:"back,omitempty"`
	Began time.Time `json:"began"`
	// MaxPause and Services, of a move, see BeginHandoff.
	MaxPause time.Duration `json:"max_pause,omitempty"`
	Services []string      `json:"services,omitempty"`
	// Rollback, in PhaseMoving: the volume goes nowhere, but back to this snapshot.
	Rollback *RollbackTo `json:"rollback,omitempty"`
}

// MoveTimes are how long the parts of a move with containers took at the old primary, by
// its own clock.
type MoveTimes struct {
	Park    time.Duration `json:"park,omitempty"`    // until all clients of the routes were at a quiet point
	Stop    time.Duration `json:"stop,omitempty"`    // of the containers
	Unmount time.Duration `json:"unmount,omitempty"` // of the volume
	Copy    time.Duration `json:"copy,omitempty"`    // of what was written last
	// Held is all of it: from when the routes were paused; 0: there was none.
	Held time.Duration `json:"held,omitempty"`
	// Arrival is what came after it, at the new primary.
	Arrival ArrivalTimes `json:"arrival,omitzero"`
}

// ArrivalTimes are how long the parts of a move with containers took at the new primary, by its
// own clock and one after the other: each begins where the one before it has ended. The first
// begins when this node begins to take the volume over; until then it is the handoff's commit
// that took the time, and the news of it.
type ArrivalTimes struct {
	Takeover time.Duration `json:"takeover,omitempty"` // until the dataset was a primary's
	Mount    time.Duration `json:"mount,omitempty"`    // until it was mounted for its containers
	Run      time.Duration `json:"run,omitempty"`      // until these were started; of several, the one that answered last
	Ready    time.Duration `json:"ready,omitempty"`    // until its server answered, or it was seen to stay
	Open     time.Duration `json:"open,omitempty"`     // until that was committed and the routes led there
}

// Sum is all of it.
func (t ArrivalTimes) Sum() time.Duration { return t.Takeover + t.Mount + t.Run + t.Ready + t.Open }

// Commit is how long the handoff's commit took, and until its new primary heard of it, of a
// pause that took so long; 0: not known.
func (t MoveTimes) Commit(paused time.Duration) time.Duration {
	if t.Arrival == (ArrivalTimes{}) {
		return 0
	}
	return max(paused-t.Held-t.Arrival.Sum(), 0)
}

// Migration is an operator's wish that a volume, and what runs on it, be on another node.
type Migration struct {
	From    volume.NodeID `json:"from"`
	To      volume.NodeID `json:"to"`
	Attempt string        `json:"attempt"`
	Began   time.Time     `json:"began"`
	// MaxPause, see BeginHandoff.
	MaxPause time.Duration `json:"max_pause,omitempty"`
}

// EndedMigration is one that is over.
type EndedMigration struct {
	Migration
	// Reason is why it was given up; "" when the volume is where it was to go.
	Reason string    `json:"reason,omitempty"`
	At     time.Time `json:"at"`
	// Stopped is when the primary was told to stop the containers that went along; zero
	// when there were none.
	Stopped time.Time `json:"stopped,omitzero"`
	// Paused is how long the clients of its routes waited; 0: there were none, or it is not
	// known. Times are what it consisted of, but for what came after the last copy.
	Paused time.Duration `json:"paused,omitempty"`
	Times  MoveTimes     `json:"times,omitzero"`
}

// Moved is a handoff with which containers went along.
type Moved struct {
	From    volume.NodeID `json:"from"`
	Attempt string        `json:"attempt"`
	Began   time.Time     `json:"began,omitzero"` // the primary was told to stop them
	At      time.Time     `json:"at"`
	Times   MoveTimes     `json:"times,omitzero"`
	// Opened is when the clients of its routes went on; zero: not yet.
	Opened time.Time `json:"opened,omitzero"`
	// Services of a Swarm had tasks on it before.
	Services []string `json:"services,omitempty"`
}

// Paused is how long the clients of the routes have waited for a move; 0 while they wait,
// and without routes. It is by the leader's clock at the handoff and at the end: what others
// measured are lengths only.
func (m *Moved) Paused() time.Duration {
	if m == nil || m.Opened.IsZero() || m.Times.Held == 0 {
		return 0
	}
	return max(m.Opened.Sub(m.At.Add(-m.Times.Held)), m.Times.Held)
}

// PartGone says that another volume of the attempt that a pending move is of has gone from a node already.
func (s *State) PartGone(v *Volume, from volume.NodeID) bool {
	for o := range s.Volumes() {
		// An attempt may have companies of other nodes, too.
		if o.ID != v.ID && o.Moved != nil && o.Moved.Attempt == v.Pending.Attempt && o.Moved.From == from && o.Placement.Primary == v.Pending.To {
			return true
		}
	}
	return false
}

// Refusal ends an attempt without its effect.
type Refusal struct {
	Attempt string    `json:"attempt"`
	Reason  string    `json:"reason"`
	At      time.Time `json:"at"`
	// To, of a move, is where it was to go. Follow: containers were stopped for it.
	To     volume.NodeID `json:"to,omitempty"`
	Follow bool          `json:"follow,omitempty"`
}

// refusal of what is pending.
func (v *Volume) refusal(reason string, at time.Time) *Refusal {
	return &Refusal{Attempt: v.Pending.Attempt, Reason: reason, At: at, To: v.Pending.To, Follow: v.Pending.Follow}
}

// Token lets machines join. The secret itself is not here.
type Token struct {
	ID      string    `json:"id"`
	Hash    []byte    `json:"hash"` // SHA-256 of the secret
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	// MaxUses 0 means any number. Uses counts the nodes that joined with it.
	MaxUses int    `json:"max_uses,omitempty"`
	Uses    int    `json:"uses"`
	Note    string `json:"note,omitempty"`
}

// Event is one fact worth telling the operator, made by Apply.
type Event struct {
	Seq     uint64        `json:"seq"`
	At      time.Time     `json:"at"`
	Kind    string        `json:"kind"` // "volume.created", "node.joined", ...
	Volume  volume.ID     `json:"volume,omitempty"`
	Name    string        `json:"name,omitempty"` // of the volume or node, at the time
	Node    volume.NodeID `json:"node,omitempty"`
	Message string        `json:"message"`
}

// Limits of what is remembered. They are part of the replicated behaviour: every
// node must drop the same entries at the same index.
const (
	maxEvents   = 1000
	maxRequests = 4096
)

// Cluster is nil before InitCluster.
func (s *State) Cluster() *Cluster { return s.cluster }

// Node by ID, removed ones included; nil when there is none.
func (s *State) Node(id volume.NodeID) *Node {
	n, _ := s.nodes.Get([]byte(id))
	return n
}

// NodeName is the name of a node for people: its ID's start when it is unknown.
func (s *State) NodeName(id volume.NodeID) string {
	if n := s.Node(id); n != nil {
		return n.Name
	}
	return id.Short()
}

// Nodes are the members in order of ID, removed ones not included.
func (s *State) Nodes() iter.Seq[*Node] {
	return func(yield func(*Node) bool) {
		for n := range values(s.nodes) {
			if !n.Removed && !yield(n) {
				return
			}
		}
	}
}

// AllNodes are the members and those that were removed, in order of ID.
func (s *State) AllNodes() iter.Seq[*Node] { return values(s.nodes) }

// Volume by ID, in any phase; nil when there is none.
func (s *State) Volume(id volume.ID) *Volume {
	v, _ := s.volumes.Get([]byte(id))
	return v
}

// VolumeByName is the live volume of that name; nil when there is none.
func (s *State) VolumeByName(name string) *Volume {
	id, ok := s.names.Get([]byte(name))
	if !ok {
		return nil
	}
	return s.Volume(id)
}

// Volumes in order of ID, in every phase.
func (s *State) Volumes() iter.Seq[*Volume] { return values(s.volumes) }

// VolumeCount is how many Volumes yields.
func (s *State) VolumeCount() int { return s.volumes.Len() }

// Token by ID; nil when there is none.
func (s *State) Token(id string) *Token {
	t, _ := s.tokens.Get([]byte(id))
	return t
}

// Tokens in order of ID, expired ones included.
func (s *State) Tokens() iter.Seq[*Token] { return values(s.tokens) }

// Events after the sequence number given, oldest first.
func (s *State) Events(after uint64) iter.Seq[*Event] {
	return func(yield func(*Event) bool) {
		it := s.events.Root().Iterator()
		it.SeekLowerBound(key64(after + 1))
		for _, e, ok := it.Next(); ok; _, e, ok = it.Next() {
			if !yield(e) {
				return
			}
		}
	}
}

func values[T any](t *iradix.Tree[T]) iter.Seq[T] {
	return func(yield func(T) bool) {
		it := t.Root().Iterator()
		for _, v, ok := it.Next(); ok; _, v, ok = it.Next() {
			if !yield(v) {
				return
			}
		}
	}
}

func key64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
