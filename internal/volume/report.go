package volume

import "time"

// Report is what a node tells the leader about itself every heartbeat: soft state
// that is true for a moment and never goes into Raft.
type Report struct {
	Node    NodeID    `json:"node"`
	BootID  string    `json:"boot_id"` // the kernel's; changes with every boot
	Version string    `json:"version"`
	Applied uint64    `json:"applied"` // Raft index this node has applied
	At      time.Time `json:"at"`      // by the node's wall clock
	Pool    PoolInfo  `json:"pool"`
	Volumes []Status  `json:"volumes,omitempty"`
	// Lease is the node's own side of its right to write.
	Lease LeaseReport `json:"lease,omitzero"`
	// Asides are set-aside copies on this node.
	Asides []Aside `json:"asides,omitempty"`
	// Followed are the containers that this node has, or would have to start.
	Followed []Followed `json:"followed,omitempty"`
	// Routes says that it knows what routes are: a version before them stops at the first
	// that the state tells of.
	Routes bool `json:"routes,omitempty"`
	// Hosts says the same of routes with names.
	Hosts bool `json:"hosts,omitempty"`
	// Rebalance says the same of the setting of that name.
	Rebalance bool `json:"rebalance,omitempty"`
	// Prestart says it of containers that are started ahead of their volumes.
	Prestart bool `json:"prestart,omitempty"`
	// Loss says that it knows state.Promote.Missing.
	Loss bool `json:"loss,omitempty"`
	// Starts says that it knows what is told of containers that do not come up.
	Starts bool `json:"starts,omitempty"`
	// Arrivals says that it knows state.OpenRoutes.Arrival.
	Arrivals bool `json:"arrivals,omitempty"`
	// Hold says that it knows the setting of that name.
	Hold bool `json:"hold,omitempty"`
	// HoldSnapshots says that it knows of snapshots that are held.
	HoldSnapshots bool `json:"hold_snapshots,omitempty"`
	// SnapshotHooks says that it has containers get ready for snapshots of people.
	SnapshotHooks bool `json:"snapshot_hooks,omitempty"`
	// Browse says that others may read snapshots of its copies.
	Browse bool `json:"browse,omitempty"`
	// Streams says that others may have it send snapshots of its copies.
	Streams bool `json:"streams,omitempty"`
	// HoldMost says the same of hold-service and hold-node.
	HoldMost bool `json:"hold_most,omitempty"`
	// Clones says that it knows what a clone is.
	Clones bool `json:"clones,omitempty"`
	// Descends says that it knows state.CreateVolume.Descends.
	Descends bool `json:"descends,omitempty"`
	// Rollback says that it knows what rolls volumes back: a version before would take what
	// was undone for newer.
	Rollback bool `json:"rollback,omitempty"`
	// Import says that it knows volumes that are all of their dataset: a version before would
	// make an empty directory in it, and give containers that.
	Import bool `json:"import,omitempty"`
	// Proxy says that its proxy answers: without it no clients of routes get to a server here.
	Proxy bool `json:"proxy,omitempty"`
	// Swarm is the one that its engine belongs to.
	Swarm Swarm `json:"swarm,omitzero"`
	// Reading is how far it has got with what it reads for a verify, or read last; nil from
	// a version that does not tell.
	Reading *Reading `json:"reading,omitempty"`
	// Problems are sentences for the operator about the node itself (engine not
	// reachable, pool degraded, shadowing local volume).
	Problems []string `json:"problems,omitempty"`
}

// Reading is how far a node has got with reading its copy of one snapshot, by its guid. The
// zero value: it has read none since it started.
type Reading struct {
	Volume ID     `json:"volume,omitempty"`
	GUID   uint64 `json:"guid,string,omitempty"`
	Bytes  int64  `json:"bytes,omitempty"`
	// Total is how much its files hold; 0 as long as that has not been counted.
	Total int64 `json:"total,omitempty"`
	Done  bool  `json:"done,omitempty"` // it reads no more, whether it got to the end or not
}

// Followed is what a node says of one container that follows its volumes.
type Followed struct {
	Record string `json:"record"` // key in the state
	// State of the container on this node, in its engine's words; "" when it has none.
	State string `json:"state,omitempty"`
	// LacksImage: it could not be started on this node at once.
	LacksImage bool   `json:"lacks_image,omitempty"`
	Problem    string `json:"problem,omitempty"`
	// Notes are what would be different about it on this node, in sentences.
	Notes []string `json:"notes,omitempty"`
	// Failed is how often in a row it could not be started on this node, and Error why at
	// the last time.
	Failed int    `json:"failed,omitempty"`
	Error  string `json:"error,omitempty"`
}

// LeaseReport is how a node's lease is, as the node itself sees it. The zero value is a
// witness, which needs none.
type LeaseReport struct {
	// No is the number of the lease; 0: none was taken yet. Held says that the node may
	// write; Left is for how long, if no beat is answered, 0 when no lease limits it.
	No   uint64        `json:"no,omitempty"`
	Held bool          `json:"held,omitempty"`
	Left time.Duration `json:"left,omitempty"`
	// Safety is how surely its writers are stopped; "" when no fencer runs.
	Safety Safety `json:"safety,omitempty"`
	// Fencer is what its fencer says is wrong with itself, or with what it does now.
	Fencer string `json:"fencer,omitempty"`
	// Why it may not write, and Problem: why it can hold no lease; sentences.
	Why     string `json:"why,omitempty"`
	Problem string `json:"problem,omitempty"`
}

// PoolInfo is the space and health of a node's pool. The zero value is a node
// without a pool (a witness) or one that could not ask; Health tells.
type PoolInfo struct {
	Name   string `json:"name,omitempty"`
	GUID   uint64 `json:"guid,string,omitempty"`
	Size   int64  `json:"size,omitempty"`
	Free   int64  `json:"free,omitempty"`
	Health string `json:"health,omitempty"` // ONLINE, DEGRADED, SUSPENDED ..., or "unknown"
}

// Status is one node's copy of one volume, as the node sees it on its disk.
type Status struct {
	Volume ID       `json:"volume"`
	Epoch  Epoch    `json:"epoch"` // highest epoch this copy has accepted
	Role   Role     `json:"role"`
	Exists bool     `json:"exists"` // the dataset is there
	Newest Position `json:"newest"` // newest complete engine snapshot

	Mounted bool `json:"mounted,omitempty"` // writable on this node now
	// Holders are the containers (or "mount ID ...") that use the volume here.
	Holders []Holder `json:"holders,omitempty"`
	Used    int64    `json:"used,omitempty"` // bytes on disk, snapshots included
	Data    int64    `json:"data,omitempty"` // bytes the user sees
	// Shares is what this copy has in common with another one on this node; nil: nothing, or not known yet.
	Shares *Shared `json:"shares,omitempty"`
	// Snapshots counts all of this copy, the engine's included.
	Snapshots int `json:"snapshots,omitempty"`

	// Links, on the primary: how far each replica has come.
	Links []LinkStatus `json:"links,omitempty"`
	// Problem is empty or a sentence saying why this copy is not as it should be.
	Problem string `json:"problem,omitempty"`
	// Moving, on the primary, is what it does for a handoff with containers that is under
	// way. The zero value: nothing yet, or a version that does not tell.
	Moving MoveStep `json:"moving,omitzero"`
}

// MoveStep is what a primary does for a handoff, and what there is to be told of it.
type MoveStep struct {
	Phase     MovePhase `json:"phase"`
	Container string    `json:"container,omitempty"` // of MovePreStop
	Hook      string    `json:"hook,omitempty"`      // by its name, of MovePreStop
	// Round of MovePreCopy, from 1, of at most Rounds.
	Round  int `json:"round,omitempty"`
	Rounds int `json:"rounds,omitempty"`
	// For is the name of what MoveJoin waits for.
	For string `json:"for,omitempty"`
	// Clients are those that MoveParking waits for, a few of them, in words.
	Clients string `json:"clients,omitempty"`
}

// MovePhase is a part of a move. A version of later may have others.
type MovePhase string

// The phases of a move, in their order.
const (
	MoveWaiting   MovePhase = "waiting"    // for something that is told in words
	MoveFirstCopy MovePhase = "first-copy" // to a node that has none
	MoveBegins    MovePhase = "moving"     // it is agreed on, and the primary has not said what it does
	MovePreStop   MovePhase = "pre-stop"   // the hook in a container
	MovePreCopy   MovePhase = "pre-copy"   // while clients are served
	MoveJoin      MovePhase = "joining"    // waits for volumes that go along
	MoveParking   MovePhase = "parking"    // waits for the clients of its routes to be at a quiet point
	MoveStopping  MovePhase = "stopping"   // of the containers
	MoveFinalCopy MovePhase = "final-copy"
	MoveStarting  MovePhase = "starting" // of the containers, on the new node
	MoveOpening   MovePhase = "opening"  // of the routes to them
	MoveEnding    MovePhase = "ending"
)

// Aside is a copy that was replaced and is kept for a while, since it may hold the
// only copy of something.
type Aside struct {
	// Name is unique on its node: <volume id>-<epoch>-<n>.
	Name   string `json:"name"`
	Volume ID     `json:"volume"`
	Epoch  Epoch  `json:"epoch"` // in which it went its own way
	// At is when it was set aside, by a clock that is not behind those of most nodes;
	// zero when that is not known, and then it does not expire.
	At     time.Time `json:"at,omitzero"`
	Reason string    `json:"reason,omitempty"`
	Used   int64     `json:"used"` // bytes that removing it would free
	Data   int64     `json:"data"` // bytes a user would see in it
	// Whole: of a volume that is all of its dataset, see Subdir.
	Whole bool `json:"whole,omitempty"`
}

// Shared is the snapshot on which a copy stands as a clone, as ZFS knows clones: what that refers to
// is counted for who has it, and goes to the copy when that one leaves the node.
type Shared struct {
	// With is the volume whose copy here has the snapshot; "": none's, as of a copy that was set aside.
	With  ID     `json:"with,omitempty"`
	GUID  uint64 `json:"guid,string"`
	Bytes int64  `json:"bytes"` // that it refers to
}

// Holder is one user of a mounted volume on one node.
type Holder struct {
	Container string `json:"container"`      // short ID, or "" when only a mount ID is known
	Name      string `json:"name,omitempty"` // container name
	// Service is the Swarm service that it is a task of.
	Service string `json:"service,omitempty"`
	// Follows: it has the label by which containers follow their volumes, and is recorded in a moment if
	// it is not yet.
	Follows bool `json:"follows,omitempty"`
	// Starting: it was mounted a moment ago, for a container that does not run yet, and which one that is
	// is not known.
	Starting bool `json:"starting,omitempty"`
	// Unknown: the container engine has not answered yet, so nobody knows whether there is one.
	Unknown bool `json:"unknown,omitempty"`
}

// LinkState is what a link does right now.
type LinkState string

// The states of a link. Only LinkInSync means that the replica holds everything
// the primary has snapshotted.
const (
	LinkConnecting LinkState = "connecting" // not reached yet, or unreachable: see Error
	LinkSeeding    LinkState = "seeding"    // first copy under way, with its history
	LinkSending    LinkState = "sending"    // an increment under way
	LinkInSync     LinkState = "in-sync"    // newest snapshot acknowledged
	LinkLagging    LinkState = "lagging"    // behind by more than its interval and a grace; see LinkStatus.Shown
	LinkRefused    LinkState = "refused"    // replica refuses: diverged, stale epoch, full; see Error
)

// LinkStatus is the progress of one link, as its primary knows it.
type LinkStatus struct {
	Replica NodeID `json:"replica"`
	// State is what placement goes by: a replica that is not reached counts for nothing,
	// whatever it has. People are told Shown.
	State LinkState `json:"state"`
	// Lags says that the replica has had a whole copy and is behind, or may be for all that
	// is proven, whether it is reached or not.
	Lags bool `json:"lags,omitempty"`
	// Failing is since when no exchange with it has gone well, by the primary's clock; zero:
	// the last one did, or the primary's version does not tell.
	Failing time.Time `json:"failing,omitzero"`
	// Acked is the newest position the replica acknowledged, with its GUID verified.
	Acked Position `json:"acked"`
	// CompleteAsOf is the primary's time up to which the replica provably holds all
	// that was written; an idle volume's advances too.
	CompleteAsOf time.Time `json:"complete_as_of,omitzero"`
	LagBytes     int64     `json:"lag_bytes,omitempty"` // estimate; for display only
	// Of the stream under way: its kind (full, clone, incremental, resume), the snapshot or
	// bookmark it starts from ("" when full), when it began, what was sent of how much
	// (an estimate), and how fast it has been of late, in bytes a second. A first copy
	// takes several; it began with the first, and its bytes are those of all.
	Stream     string    `json:"stream,omitempty"`
	Base       string    `json:"base,omitempty"`
	Began      time.Time `json:"began,omitzero"`
	SentBytes  int64     `json:"sent_bytes,omitempty"`
	TotalBytes int64     `json:"total_bytes,omitempty"`
	Rate       int64     `json:"rate,omitempty"`
	// LastIncrement is how long the newest increment took until it was acknowledged; 0: there was none since the link began.
	LastIncrement time.Duration `json:"last_increment,omitempty"`
	// Limit is the bandwidth this link may use, in bytes a second; 0: all there is.
	Limit int64 `json:"limit,omitempty"`
	// Streamed counts all bytes sent since the link began.
	Streamed int64  `json:"streamed,omitempty"`
	Error    string `json:"error,omitempty"`
}

// Shown is the state as people are told it: a replica that has a copy and is behind is
// lagging also while it is not reached. Error and Failing stand beside it.
func (l LinkStatus) Shown() LinkState {
	if l.State == LinkConnecting && l.Lags {
		return LinkLagging
	}
	return l.State
}
