package api

import (
	"context"
	"io"

	"github.com/flocker-io/flocker/internal/doctor"
	"github.com/flocker-io/flocker/internal/volume"
)

// Backend is what one node can be asked by a person or a program. All methods may
// be called at the same time, block until done or until ctx ends, and refuse with
// a *volume.Error. Methods that change something leave it unchanged when they
// refuse; after CodeTimeout, CodeUnavailable and CodeNoQuorum it may have happened
// all the same.
//
// A ref is a name, a full ID or a prefix of an ID that only one thing has; see
// Resolve.
type Backend interface {
	Version(ctx context.Context) (VersionInfo, error)
	// Status is answered from local memory: without quorum, and on a node that is
	// in no cluster, too.
	Status(ctx context.Context) (ClusterStatus, error)

	// Init makes a cluster of this node alone. Local callers only.
	Init(ctx context.Context, req InitRequest) (InitReply, error)
	// Join makes this node a member of a cluster. Local callers only.
	Join(ctx context.Context, req JoinRequest) (JoinReply, error)

	Nodes(ctx context.Context) ([]Node, error)
	Node(ctx context.Context, ref string) (Node, error)
	LabelNode(ctx context.Context, ref string, req LabelRequest) (Node, error)

	// DrainNode begins to move a node's volumes away, and Drain says how far that is; it
	// goes on, whoever watches, until UndrainNode.
	DrainNode(ctx context.Context, ref string, req DrainRequest) (Drain, error)
	Drain(ctx context.Context, ref string) (Drain, error)
	UndrainNode(ctx context.Context, ref string) (Node, error)
	// RemoveNode takes a drained node out of the cluster for ever, or one that is dead.
	// Nothing on its disks is touched.
	RemoveNode(ctx context.Context, ref string, req RemoveNodeRequest) (RemoveNodeReply, error)

	// Volumes lists live volumes, or with Trash only removed ones, by name.
	Volumes(ctx context.Context, q VolumesQuery) ([]Volume, error)
	// Volume finds live volumes first, then removed ones.
	Volume(ctx context.Context, ref string) (Volume, error)
	// CreateVolume returns once the primary's dataset is there. A live volume of the
	// same name and options is returned as it is; with other options it is a conflict.
	CreateVolume(ctx context.Context, req CreateVolumeRequest) (Volume, error)
	// UpdateVolume changes options of a live volume and returns what is different now.
	// Those that are not named stay.
	UpdateVolume(ctx context.Context, ref string, req UpdateVolumeRequest) (UpdateVolumeReply, error)
	// RemoveVolume moves a volume to the trash. It is refused while mounted anywhere.
	RemoveVolume(ctx context.Context, ref string, req RemoveVolumeRequest) error
	// UndeleteVolume takes a volume out of the trash; ref is looked up there only.
	UndeleteVolume(ctx context.Context, ref string, req UndeleteRequest) (Volume, error)
	// PurgeVolume destroys a volume of the trash on all nodes, for good; ref is looked up
	// there only.
	PurgeVolume(ctx context.Context, ref string) error

	// FailoverVolume chooses another primary of a volume that has lost its own, and
	// returns when it has one. While the primary is heard of it is refused.
	FailoverVolume(ctx context.Context, ref string, req FailoverRequest) (Volume, error)

	// MigrateVolume has a volume, and the containers that follow it, moved to another
	// node, and returns when that has begun; with the same node again it is the one that
	// goes on. Migration says how far it is; "" is the volume's newest. AbortMigration
	// calls it off, which is refused once the volume has arrived; what is over already is no
	// error, and the answer says how it ended.
	MigrateVolume(ctx context.Context, ref string, req MigrateRequest) (Migration, error)
	Migration(ctx context.Context, ref, id string) (Migration, error)
	AbortMigration(ctx context.Context, ref, id string) (Migration, error)

	// RollBack has a volume go on from one of its snapshots, and returns when that has begun.
	// What was written since is set aside, not destroyed. Rollback says how far it is; "" is
	// the volume's newest.
	RollBack(ctx context.Context, ref string, req RollbackRequest) (Rollback, error)
	Rollback(ctx context.Context, ref, id string) (Rollback, error)

	// SyncVolume returns when every replica holds all that was written before the call.
	// After req.Patience it is CodeTimeout, which names the replicas that lack something
	// and what.
	SyncVolume(ctx context.Context, ref string, req SyncRequest) (SyncReply, error)
	// VerifyVolume has every node with a copy read one snapshot and compares. It repairs
	// nothing. That copies differ, or that one could not be read, is no error but in the
	// reply.
	VerifyVolume(ctx context.Context, ref string, req VerifyRequest) (VerifyReply, error)

	// Snapshots of a volume, oldest first, as its primary has them; so do the next three
	// what they do there.
	Snapshots(ctx context.Context, ref string) ([]Snapshot, error)
	// TakeSnapshot takes all at one moment, or none. They have to have one primary.
	TakeSnapshot(ctx context.Context, req SnapshotRequest) (SnapshotReply, error)
	// RemoveSnapshot destroys a user's or a scheduled snapshot on all nodes.
	RemoveSnapshot(ctx context.Context, ref, name string) error
	// Snapshot is one of them, with what the nodes say of their copies of it.
	Snapshot(ctx context.Context, ref, name string) (SnapshotDetails, error)
	// HoldSnapshot keeps one on all nodes, whatever retention and people say, until
	// ReleaseSnapshot, which needs no primary. Neither twice is an error.
	HoldSnapshot(ctx context.Context, ref, name string, req HoldRequest) error
	ReleaseSnapshot(ctx context.Context, ref, name string) error
	// PruneSnapshots destroys what the volume's policy does not keep, and returns what it
	// was; with DryRun, what it would be.
	PruneSnapshots(ctx context.Context, ref string, req PruneRequest) ([]Snapshot, error)

	// Browse opens something of a snapshot for reading, on whichever node that answers has
	// the snapshot; the primary is not needed for that. While it is open the snapshot is not
	// destroyed. req.Path has been through browse.Clean.
	Browse(ctx context.Context, ref string, req BrowseRequest) (*Browsed, error)

	// Asides are the set-aside copies of all nodes that have reported lately.
	Asides(ctx context.Context) (Asides, error)
	// RestoreAside makes a volume of a set-aside copy, whose node becomes the primary.
	// A ref is a copy's name or the start of one that only one copy has.
	RestoreAside(ctx context.Context, ref string, req RestoreAsideRequest) (Volume, error)
	// RemoveAside destroys a set-aside copy for good. Node is a ref of a node, "" for
	// any.
	RemoveAside(ctx context.Context, ref, node string) error

	// BeginRestore says what the asked node has already of a volume that is to be made of
	// streams there. ReceiveRestore takes one, whose snapshot is a full one or an increment on
	// the one before; what is not what it was said to be is refused. FinishRestore makes the
	// volume, and DropRestore throws away what is none yet. Local callers only.
	BeginRestore(ctx context.Context, req BeginRestoreRequest) (RestoreState, error)
	ReceiveRestore(ctx context.Context, id string, req ReceiveRequest, stream io.Reader) error
	FinishRestore(ctx context.Context, id string, req FinishRestoreRequest) (Volume, error)
	DropRestore(ctx context.Context, id string) error

	// Import makes a volume of a dataset where it is, or says what that would do. A refusal
	// changes nothing.
	Import(ctx context.Context, req ImportRequest) (Import, error)

	// Rebalance says which moves would even out the nodes. It moves nothing.
	Rebalance(ctx context.Context) (Rebalance, error)
	// CarryRebalance takes moves one step further and says how far each is. It does not
	// wait: who wants them done calls it again until all are over. What was begun when
	// nobody does any more comes to its end, or is undone, by itself.
	CarryRebalance(ctx context.Context, req RebalanceRequest) (RebalanceReply, error)

	// Routes of all volumes, with what the proxies of the nodes say of them. A node that
	// does not answer in time is named.
	Routes(ctx context.Context) (Routes, error)
	// AddRoute gives a live volume another route, and RemoveRoute takes one away, unless a
	// container's labels ask for it. The same route again is no error. Which one is meant is
	// said as volume.RouteRef reads it.
	AddRoute(ctx context.Context, ref string, req AddRouteRequest) (Route, error)
	RemoveRoute(ctx context.Context, route string) error
	// PauseRoute keeps what is new from the server of a route, or lets it go on. It lasts
	// wherever the volume goes; what waits too long is refused meanwhile.
	PauseRoute(ctx context.Context, route string, paused bool) error

	// Containers that follow their volumes, by name.
	Containers(ctx context.Context) ([]Container, error)
	// ForgetContainer has a container not be made elsewhere, as when its node will not come
	// back. Node is a ref of its node, "" for any.
	ForgetContainer(ctx context.Context, name, node string) error

	Settings(ctx context.Context) (Settings, error)
	ChangeSettings(ctx context.Context, req SettingsRequest) (Settings, error)

	// CreateToken answers with Text and JoinCommand, which nobody can ask for again.
	CreateToken(ctx context.Context, req TokenRequest) (Token, error)
	Tokens(ctx context.Context) ([]Token, error)
	RevokeToken(ctx context.Context, id string) error

	// Doctor has every node look at itself and at its way to the others, and says what was
	// found. It needs no leader; a node that does not answer is a finding.
	Doctor(ctx context.Context) (Doctor, error)
	// Facts are what one node finds out about itself, "" the one that is asked.
	Facts(ctx context.Context, node string) (doctor.Facts, error)

	// Diagnostics of one node; what could not be had is said in them.
	Diagnostics(ctx context.Context, q DiagnosticsQuery) (Diagnostics, error)

	// Events returns those after q.After, oldest first. When there are none it waits
	// up to q.Wait for one and may then return none.
	Events(ctx context.Context, q EventsQuery) ([]Event, error)
}

// Peer is what one node can be asked by another one, on the mutual-TLS port only;
// Caller tells which node asks. The contract of Backend holds.
type Peer interface {
	// Report tells the leader how the calling node is. Have maps nodes to the
	// revisions of those reports that the caller already holds, so that the reply
	// carries only newer ones. Harmless to repeat.
	Report(ctx context.Context, r volume.Report, have map[volume.NodeID]uint64) (ReportReply, error)
	// Beat keeps the calling node's lease alive, or asks for one. The leader answers only
	// after it has proven, by something that began after the beat arrived, that it leads.
	// Harmless to repeat.
	Beat(ctx context.Context, req BeatRequest) (BeatReply, error)
	// Propose has the leader commit an encoded state.Envelope. Give the envelope a
	// request ID: the answer may be lost after the commit.
	Propose(ctx context.Context, envelope []byte) (ProposeReply, error)
	// Barrier proves leadership and returns an index that covers everything
	// committed before the call.
	Barrier(ctx context.Context) (uint64, error)
	// Acquire asks that a volume become mountable on a node: nil when it is. The
	// refusal names who holds it.
	Acquire(ctx context.Context, id volume.ID, node volume.NodeID) error
	// Unlabel has the Swarm that the asked node's engine manages stop the tasks that are
	// bound to a volume which moves, see volume.SwarmConstraint; it does not wait for that.
	// Harmless to repeat.
	Unlabel(ctx context.Context, id volume.ID, attempt string) error
	// Sum reads one snapshot of the asked node's copy. CodeNotFound: it is not there
	// (any more).
	Sum(ctx context.Context, req SumRequest) (Sum, error)
	// CopySnapshot says what there is of a snapshot of the asked node's copy; Node and Role
	// are not filled in.
	CopySnapshot(ctx context.Context, id volume.ID, guid uint64) (SnapshotCopy, error)
	// BrowseCopy is Backend.Browse of the asked node's own copy. CodeUnavailable: it cannot
	// be read there, but perhaps elsewhere; any other code is about the files.
	BrowseCopy(ctx context.Context, req BrowseCopyRequest) (*Browsed, error)
	// Holds says which of these guids the asked node has of a volume, as snapshot or
	// bookmark.
	Holds(ctx context.Context, id volume.ID, guids []uint64) (map[uint64]bool, error)
	// Point finds a snapshot of the asked node's copy, or takes one there, see PointRequest.
	Point(ctx context.Context, req PointRequest) (Point, error)
	// Importable looks whether a dataset of the asked node may become a volume, and changes
	// nothing.
	Importable(ctx context.Context, dataset string) (Importable, error)
	// NodeRoutes is what the asked node's own proxy says.
	NodeRoutes(ctx context.Context) ([]NodeRoute, error)
	// Promise makes the asked node take nothing of volumes below an epoch any more, and
	// tells what its copies hold.
	Promise(ctx context.Context, req PromiseRequest) (PromiseReply, error)
}

// ReportReply is what the leader answers a report.
type ReportReply struct {
	Leader volume.NodeID `json:"leader"`
	Commit uint64        `json:"commit"` // Raft index the leader has committed
	// Reports of other nodes that differ from what the caller has.
	Reports []PeerReport `json:"reports,omitempty"`
	// Ages are how long ago, in seconds, the leader last heard from each node.
	Ages map[volume.NodeID]float64 `json:"ages,omitempty"`
	// Elections are the volumes without a primary, and what the leader waits for.
	Elections map[volume.ID]string `json:"elections,omitempty"`
}

// PeerReport is one node's report as the leader passes it on.
type PeerReport struct {
	// Rev names one report of one node. A leader starts its numbers from its clock,
	// so that two leaders do not use one number for two reports.
	Rev    uint64        `json:"rev"`
	Report volume.Report `json:"report"`
}

// ProposeReply is the fate of a proposal that was committed.
type ProposeReply struct {
	Index  uint64 `json:"index"`
	Result []byte `json:"result"` // encoded state.Result
}

// caller says who makes a call. Its zero value is nobody.
type caller struct {
	local bool
	node  volume.NodeID
}

type callerKey struct{}

// AsPeer marks a context as that of a call by another node.
func AsPeer(ctx context.Context, node volume.NodeID) context.Context {
	return context.WithValue(ctx, callerKey{}, caller{node: node})
}

// AsLocal marks a context as that of a call by this machine's administrator.
func AsLocal(ctx context.Context) context.Context {
	return context.WithValue(ctx, callerKey{}, caller{local: true})
}

// Caller is the node that made a call, as its certificate proved. ok is false for
// local calls, which have the administrator's rights.
func Caller(ctx context.Context) (node volume.NodeID, ok bool) {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c.node, c.node != ""
}
