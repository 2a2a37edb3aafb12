package api

import (
	"maps"
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// What travels, in both directions. Names in JSON are stable: fields are added,
// never renamed. Durations are whole nanoseconds, as in Docker's API, unless the
// name ends in _seconds; sizes are bytes; times are RFC 3339.

// NodeRef names a node for programs and for people.
type NodeRef struct {
	ID   volume.NodeID `json:"id"`
	Name string        `json:"name"`
}

// IsZero says that no node is meant.
func (r NodeRef) IsZero() bool { return r.ID == "" && r.Name == "" }

// String is the name, or the start of the ID where the name is unknown.
func (r NodeRef) String() string {
	if r.Name != "" {
		return r.Name
	}
	return r.ID.Short()
}

// VersionInfo says what runs on the node that answers.
type VersionInfo struct {
	Version   string `json:"version"`
	Commit    string `json:"commit,omitempty"`
	GoVersion string `json:"go_version,omitempty"`
	API       string `json:"api"` // APIVersion
	ZFS       string `json:"zfs,omitempty"`
	Kernel    string `json:"kernel,omitempty"`
	Docker    string `json:"docker,omitempty"`
}

// APIVersion is the version of this API, the first part of every path.
const APIVersion = "v1"

// ClusterStatus is one node's view of the cluster.
type ClusterStatus struct {
	// Initialized is false on a node that belongs to no cluster; then only Node,
	// Version and Problems mean anything.
	Initialized bool `json:"initialized"`
	// Retired is why this node is no member of its cluster any more, and what to do.
	Retired   string `json:"retired,omitempty"`
	ClusterID string `json:"cluster_id,omitempty"`
	// Ready says that this node has loaded its state and answers Docker.
	Ready   bool    `json:"ready"`
	Node    NodeRef `json:"node"` // the one that answers
	Version string  `json:"version"`

	// Leader as this node believes; zero when it knows of none.
	Leader NodeRef `json:"leader,omitzero"`
	// Quorum says that this node hears a leader: changes are possible from here.
	Quorum  bool    `json:"quorum"`
	Voters  []Voter `json:"voters"`
	Applied uint64  `json:"applied"` // Raft index this node has applied
	// Failover is what the cluster does by itself when a node is lost.
	Failover Failover `json:"failover"`

	// Fencing has the nodes by how surely their writers are stopped when they may write no
	// more: watchdog, sysrq, software, or none where no fencer runs. Witnesses are not there.
	Fencing map[string][]string `json:"fencing,omitempty"`

	Nodes   map[NodeHealth]int `json:"nodes"`   // number of nodes by health
	Volumes map[Health]int     `json:"volumes"` // number of live volumes by health
	Trash   int                `json:"trash"`   // number of removed, restorable volumes
	// TrashKeep is how long removed volumes stay restorable.
	TrashKeep time.Duration `json:"trash_keep"`

	// Problems are sentences about what is wrong now.
	Problems []string `json:"problems"`
	// Notes are sentences about what has happened lately, and is over.
	Notes []string `json:"notes,omitempty"`
	// Safety are sentences about what this cluster cannot promise as it is set up,
	// such as failover by hand only with fewer than three voters.
	Safety []string `json:"safety"`
}

// Failover is what the nodes have agreed on.
type Failover struct {
	// Mode is manual, arming (the nodes are agreeing) or automatic.
	Mode    string `json:"mode"`
	Round   uint64 `json:"round,omitempty"`   // counts how often it was armed
	Profile string `json:"profile,omitempty"` // of the lease
	Reason  string `json:"reason,omitempty"`  // why it is not automatic
}

// Lease is a node's right to write.
type Lease struct {
	// State is held, over, revoked or unknown; "" while failover is manual.
	State string `json:"state,omitempty"`
	No    uint64 `json:"no,omitempty"`
	// LeftSeconds until it runs out if no beat is answered, as of the last report.
	LeftSeconds float64 `json:"left_seconds,omitempty"`
	// WaitSeconds until a silent node is taken for lost; only the leader knows it.
	WaitSeconds *float64 `json:"wait_seconds,omitempty"`
	// Safety is how surely its writers are stopped when it is over: watchdog, sysrq or
	// software; "" when no fencer runs.
	Safety volume.Safety `json:"safety,omitempty"`
	Reason string        `json:"reason,omitempty"` // why it is not held
}

// Voter is a node whose vote counts in Raft.
type Voter struct {
	NodeRef
	Health NodeHealth `json:"health"`
}

// NodeSetup is what init and join have in common.
type NodeSetup struct {
	Name      string `json:"name,omitempty"`      // "": the machine's host name
	Zone      string `json:"zone,omitempty"`      // "": volume.DefaultZone
	Advertise string `json:"advertise,omitempty"` // host or host:port that others dial; "": the address of the default route
	// Pool is an existing zpool. Without it, PoolFileSize makes a pool in a file at
	// PoolFilePath ("": in flockd's directory).
	Pool         string `json:"pool,omitempty"`
	PoolFileSize int64  `json:"pool_file_size,omitempty"`
	PoolFilePath string `json:"pool_file_path,omitempty"`
	// IfNew makes the call succeed, and do nothing, on a node that is in a cluster.
	IfNew bool `json:"if_new,omitempty"`
}

// InitRequest makes a cluster.
type InitRequest struct {
	NodeSetup
}

// InitReply is the cluster made.
type InitReply struct {
	ClusterID string  `json:"cluster_id"`
	Node      NodeRef `json:"node"`
	// Existed says that IfNew found the node in a cluster; no token is made then.
	Existed bool `json:"existed,omitempty"`
	// Token is the text of a first join token, JoinCommand the whole line to type
	// on the other nodes.
	Token        string    `json:"token,omitempty"`
	JoinCommand  string    `json:"join_command,omitempty"`
	TokenExpires time.Time `json:"token_expires,omitzero"`
}

// JoinRequest makes this node a member.
type JoinRequest struct {
	NodeSetup
	Token string `json:"token"`
	// Peers are addresses of members, host or host:port; any one will do.
	Peers []string `json:"peers"`
	// Witness joins without a pool: the node votes and holds no data.
	Witness bool `json:"witness,omitempty"`
}

// JoinReply is the membership gained.
type JoinReply struct {
	ClusterID string  `json:"cluster_id"`
	Node      NodeRef `json:"node"`
	Existed   bool    `json:"existed,omitempty"` // IfNew found the node in a cluster
}

// Role of a node in the control plane.
type Role string

// The roles. A witness votes (or leads) without holding data; Node.Witness tells.
const (
	RoleLeader   Role = "leader"
	RoleVoter    Role = "voter"
	RoleNonVoter Role = "non-voter"
	RoleNone     Role = "none" // a member that Raft does not list yet
)

// NodeHealth is what the cluster thinks of a node's life.
type NodeHealth string

// The node healths. Unknown is what a node without a leader says of the others.
const (
	NodeAlive   NodeHealth = "alive"
	NodeSuspect NodeHealth = "suspect"
	NodeDead    NodeHealth = "dead"
	NodeUnknown NodeHealth = "unknown"
)

// Node is one member.
type Node struct {
	NodeRef
	Role         Role        `json:"role"`
	Witness      bool        `json:"witness,omitempty"`
	Zone         volume.Zone `json:"zone"`
	Addr         string      `json:"addr"`
	Version      string      `json:"version,omitempty"`
	Availability string      `json:"availability"` // active or drain
	// KeepReplicas says that a drained node gives only its primaries away.
	KeepReplicas bool       `json:"keep_replicas,omitempty"`
	Health       NodeHealth `json:"health"`
	Reason       string     `json:"reason,omitempty"` // why not alive, in words
	// LastSeen is when the leader last heard from it; zero when never.
	LastSeen time.Time       `json:"last_seen,omitzero"`
	Joined   time.Time       `json:"joined,omitzero"`
	Pool     volume.PoolInfo `json:"pool"`
	// Labels are the operator's own.
	Labels    map[string]string `json:"labels,omitempty"`
	Primaries int               `json:"primaries"` // volumes it is the primary of
	Replicas  int               `json:"replicas"`  // volumes it is a replica of
	Problems  []string          `json:"problems,omitempty"`
	Lease     *Lease            `json:"lease,omitempty"` // absent on a witness
}

// LabelRequest changes what is given.
type LabelRequest struct {
	Zone *string           `json:"zone,omitempty"`
	Set  map[string]string `json:"set,omitempty"`
	Drop []string          `json:"drop,omitempty"`
}

// VolumesQuery selects volumes.
type VolumesQuery struct {
	Trash bool // the removed ones instead of the live ones
}

// Health of a volume: the worst of its parts. Volume.Reason says which part.
type Health string

// The healths, from good to bad. See Worst.
const (
	HealthOK          Health = "ok"
	HealthCreating    Health = "creating"    // no dataset on the primary yet
	HealthMoving      Health = "moving"      // handoff under way
	HealthDeleting    Health = "deleting"    // removal under way
	HealthTrash       Health = "trash"       // removed, restorable
	HealthSeeding     Health = "seeding"     // a replica gets its first full copy
	HealthLagging     Health = "lagging"     // a replica is behind, or cannot be asked whether it is, and its node is there
	HealthDegraded    Health = "degraded"    // fewer replicas than asked for can be counted on
	HealthUnknown     Health = "unknown"     // the primary has not reported
	HealthUnavailable Health = "unavailable" // the primary's node is lost
	HealthFailed      Health = "failed"      // the primary's copy is missing or faulty
)

var healthOrder = []Health{
	HealthOK, HealthCreating, HealthMoving, HealthDeleting, HealthTrash, HealthSeeding,
	HealthLagging, HealthDegraded, HealthUnknown, HealthUnavailable, HealthFailed,
}

// Worst of several healths; HealthOK of none. A word that is not known counts as
// HealthUnknown.
func Worst(hs ...Health) Health {
	worst := HealthOK
	for _, h := range hs {
		if !h.known() {
			h = HealthUnknown
		}
		if h.rank() > worst.rank() {
			worst = h
		}
	}
	return worst
}

func (h Health) known() bool { return h.rank() >= 0 }

func (h Health) rank() int {
	for i, o := range healthOrder {
		if h == o {
			return i
		}
	}
	return -1
}

// Volume is one volume with all that a person may want to see of it.
type Volume struct {
	ID     volume.ID `json:"id"`
	Name   string    `json:"name"`
	Phase  string    `json:"phase"` // as in internal/state
	Health Health    `json:"health"`
	Reason string    `json:"reason,omitempty"` // why not ok, in words

	Spec volume.Spec `json:"spec"`
	// AsOf is when the numbers below were seen on the primary; zero when never.
	AsOf    time.Time `json:"as_of,omitzero"`
	Used    int64     `json:"used"` // bytes on the primary's disk, snapshots included
	Data    int64     `json:"data"` // bytes the user sees
	Mounted bool      `json:"mounted"`
	Holders []Holder  `json:"holders,omitempty"`

	Primary  NodeRef      `json:"primary"`
	Replicas []Replica    `json:"replicas"`
	Epoch    volume.Epoch `json:"epoch"`
	// Index is the Raft index of the last change of the record: a node that had the
	// change made elsewhere waits until it has applied it.
	Index   uint64    `json:"index"`
	Created time.Time `json:"created"`
	// Deleted and PurgeAfter are set in the trash only.
	Deleted    time.Time `json:"deleted,omitzero"`
	PurgeAfter time.Time `json:"purge_after,omitzero"`
	// LastFailover is how it last came to a primary without the one before; nil: never, or
	// while a node of the cluster was of a version that does not keep it.
	LastFailover *LastFailover `json:"last_failover,omitempty"`
	// LastRefusal is why the last move or removal was given up.
	LastRefusal string `json:"last_refusal,omitempty"`
	// From is what it is a clone of; nil: it is none.
	From *CloneOf `json:"from,omitempty"`
	// Clones are made of it; only of a volume that was asked for by name or ID.
	Clones []Clone `json:"clones,omitempty"`
	// Locality says which of its preferences (prefer, avoid, zone) it has not got, and why;
	// only of a volume that was asked for by name or ID.
	Locality string `json:"locality,omitempty"`
	// Containers are those that are recorded to follow it; only of a volume that was asked
	// for by name or ID.
	Containers []Container `json:"containers,omitempty"`
	// Readings are how far the nodes with a copy have got with reading it for a verify, or
	// got at the last one; only of a volume that was asked for by name or ID.
	Readings []Reading `json:"readings,omitempty"`
	// Without says which ports it is made without, and who has them; only in the answer to
	// who has made it of a set-aside copy.
	Without []string `json:"without,omitempty"`
}

// Reading is how far one node has got with reading its copy of a snapshot.
type Reading struct {
	Node NodeRef `json:"node"`
	// Told is false of a node whose version does not say how far it is.
	Told bool `json:"told"`
	// GUID of the snapshot; 0: it has not begun with any of this volume.
	GUID  uint64 `json:"guid,string,omitempty"`
	Bytes int64  `json:"bytes"`
	// Total is how much there is to be read; 0 as long as that is being counted.
	Total int64 `json:"total,omitempty"`
	Done  bool  `json:"done,omitempty"` // it reads no more, whether it got to the end or not
}

// Holder is one user of a mounted volume.
type Holder struct {
	volume.Holder
	Node NodeRef `json:"node"`
}

// ReplicaKind tells copies in the primary's zone from those in others.
type ReplicaKind string

// The kinds.
const (
	ReplicaLocal  ReplicaKind = "local"
	ReplicaRemote ReplicaKind = "remote"
)

// Replica is one follower of a volume.
type Replica struct {
	Node  NodeRef          `json:"node"`
	Kind  ReplicaKind      `json:"kind"`
	State volume.LinkState `json:"state"`
	Acked volume.Position  `json:"acked"`
	// LagSeconds is how much of the volume's history would be lost if the primary
	// vanished now; nil when it is not known.
	LagSeconds *float64 `json:"lag_seconds"`
	LagBytes   int64    `json:"lag_bytes,omitempty"`
	// Of the stream under way: its kind (full, clone, incremental, resume), what it starts
	// from, when it began, what was sent of how much (an estimate), and how fast it has
	// been of late, in bytes a second. A first copy takes several; it began with the
	// first, and its bytes are those of all.
	Stream     string    `json:"stream,omitempty"`
	Base       string    `json:"base,omitempty"`
	Began      time.Time `json:"began,omitzero"`
	SentBytes  int64     `json:"sent_bytes,omitempty"`
	TotalBytes int64     `json:"total_bytes,omitempty"`
	Rate       int64     `json:"rate,omitempty"`
	// Limit is the bandwidth that the settings allow, in bytes a second; 0: no limit.
	Limit int64 `json:"limit,omitempty"`
	// Streamed counts all bytes sent since the link began.
	Streamed int64 `json:"streamed,omitempty"`
	// FailingSeconds is for how long no exchange with it has gone well; 0: the last one did,
	// or nobody says. Error is why.
	FailingSeconds float64 `json:"failing_seconds,omitempty"`
	Error          string  `json:"error,omitempty"`
}

// CreateVolumeRequest asks for a volume. Options are those of the Docker plugin;
// volume.ParseOptions reads them on the node that decides.
type CreateVolumeRequest struct {
	Name    string            `json:"name"`
	Options map[string]string `json:"options,omitempty"`
	// Node is the preferred primary: the node where the user asked. A forwarding
	// node fills it in; it may be empty. Of a clone it is where it is made, which must be a
	// node with a copy of the original; empty: the best of these.
	Node volume.NodeID `json:"node,omitempty"`
	// Request makes a repeat harmless. The client fills it in when it is empty.
	Request string `json:"request,omitempty"`
}

// UpdateVolumeRequest changes options of a volume, as volume.Spec.Change reads them.
type UpdateVolumeRequest struct {
	Options map[string]string `json:"options"`
}

// UpdateVolumeReply is the volume as it is now, and what is different.
type UpdateVolumeReply struct {
	Volume  Volume                `json:"volume"`
	Changes []volume.OptionChange `json:"changes"`
}

// RemoveVolumeRequest removes a volume.
type RemoveVolumeRequest struct {
	Request string `json:"request,omitempty"` // makes a repeat harmless; the client fills it in
}

// UndeleteRequest takes a volume out of the trash.
type UndeleteRequest struct {
	Name    string `json:"name,omitempty"`    // "": the name it had
	Request string `json:"request,omitempty"` // makes a repeat harmless; the client fills it in
}

// TokenRequest asks for a join token.
type TokenRequest struct {
	TTL     time.Duration `json:"ttl,omitempty"`      // 0: 24 hours
	MaxUses int           `json:"max_uses,omitempty"` // 0: any number
	Note    string        `json:"note,omitempty"`
}

// What a token may be at most.
const (
	MaxTokenTTL  = 10 * 365 * 24 * time.Hour
	MaxTokenUses = 1_000_000
	MaxTokenNote = 200 // bytes
)

// Check says what is wrong with a request for a token.
func (r TokenRequest) Check() error {
	switch {
	case r.TTL < 0 || r.MaxUses < 0:
		return volume.Errorf(volume.CodeInvalid, "a token's life and number of uses cannot be negative")
	case r.TTL > MaxTokenTTL:
		return volume.Errorf(volume.CodeInvalid, "a token is good for at most %s, not for %s", volume.FormatPeriod(MaxTokenTTL), volume.FormatDuration(r.TTL)).
			WithHint("ask for less")
	case r.MaxUses > MaxTokenUses:
		return volume.Errorf(volume.CodeInvalid, "a token has at most %d uses, not %d", MaxTokenUses, r.MaxUses).
			WithHint("ask for fewer, or leave it out for any number")
	}
	return volume.CheckText("the note", r.Note, MaxTokenNote)
}

// What a label of a node may be at most, in bytes.
const (
	MaxLabelKey   = 128
	MaxLabelValue = 256
)

// Check says what is wrong with the labels that a request sets.
func (r LabelRequest) Check() error {
	for _, key := range slices.Sorted(maps.Keys(r.Set)) {
		if err := volume.CheckText("the label", key, MaxLabelKey); err != nil {
			return err
		}
		if err := volume.CheckText("the value of label "+key, r.Set[key], MaxLabelValue); err != nil {
			return err
		}
	}
	return nil
}

// Token lets machines join. Text and JoinCommand are there only in the answer to
// the request that made it.
type Token struct {
	ID          string    `json:"id"`
	Created     time.Time `json:"created"`
	Expires     time.Time `json:"expires"`
	MaxUses     int       `json:"max_uses,omitempty"`
	Uses        int       `json:"uses"`
	Note        string    `json:"note,omitempty"`
	Text        string    `json:"text,omitempty"`
	JoinCommand string    `json:"join_command,omitempty"`
}

// EventsQuery selects events.
type EventsQuery struct {
	After uint64        // only later ones
	Wait  time.Duration // for the first one, when there is none yet
}

// MaxEventsWait bounds EventsQuery.Wait.
const MaxEventsWait = 5 * time.Minute

// Event is one fact worth telling the operator.
type Event struct {
	Seq     uint64        `json:"seq"`
	At      time.Time     `json:"at"`
	Kind    string        `json:"kind"` // "volume.created", "node.joined", ...
	Volume  volume.ID     `json:"volume,omitempty"`
	Name    string        `json:"name,omitempty"` // of the volume or node, at the time
	Node    volume.NodeID `json:"node,omitempty"`
	Message string        `json:"message"`
}
