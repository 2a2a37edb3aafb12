package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// Command is one wish to change the state. Its preconditions are checked by Apply,
// where everybody agrees on the order; proposers check them only to fail early.
type Command interface {
	kind() string
}

// Envelope carries a command through the log.
type Envelope struct {
	// Request makes a repeat harmless: a second command with the same non-empty
	// request is answered with the first one's result.
	Request string
	// At is the proposer's wall clock.
	At      time.Time
	Command Command
}

// Kinds of what is told of a volume.
const (
	VolumeDiffers = "volume.differs"         // its copies are not alike
	VolumeHeld    = "volume.held"            // it has no primary, and gets none without an operator
	VolumeHook    = "volume.pre-stop-failed" // a container is stopped for a move without what is done before
	VolumePorts   = "volume.unpublished"     // a container that came along, or a volume made of a copy, is without ports that it had
	VolumeWaits   = "volume.waits"           // it has no primary yet, and waits for its old one for long
	VolumeJoins   = "volume.joins"           // it is brought to the other volumes of its container
	VolumeAside   = "volume.set-aside"       // a copy that went its own way is kept under another name
	VolumeEvened  = "volume.rebalanced"      // why the leader moves a copy of it by itself, or what came of that
	// a container that a failover has brought to a node does not come up there
	VolumeStarts = "volume.not-started"
	// a container that asks to be started ahead of its volume is started after it
	VolumePrestart = "volume.not-prestarted"
)

// Commands. A field named Epoch is a precondition: the command fails with
// CodeConflict when the volume is at another epoch.
type (
	// InitCluster makes the cluster with its first node. It fails when there is one.
	InitCluster struct {
		Cluster Cluster `json:"cluster"`
		Node    Node    `json:"node"`
	}
	// AddNode admits a node. A repeat with the same ID and key is fine.
	AddNode struct {
		Node  Node   `json:"node"`
		Token string `json:"token"` // ID of the token that let it in; counted and checked
	}
	// UpdateNode changes what is not nil.
	UpdateNode struct {
		ID         volume.NodeID     `json:"id"`
		Name       *string           `json:"name,omitempty"`
		Zone       *volume.Zone      `json:"zone,omitempty"`
		Addr       *string           `json:"addr,omitempty"`
		GossipAddr *string           `json:"gossip_addr,omitempty"`
		SetLabels  map[string]string `json:"set_labels,omitempty"`
		DropLabels []string          `json:"drop_labels,omitempty"`
		// Availability Drain takes the node's primaries away and, without KeepReplicas,
		// its replicas, too.
		Availability *Availability `json:"availability,omitempty"`
		KeepReplicas bool          `json:"keep_replicas,omitempty"`
	}

	CreateToken struct {
		Token Token `json:"token"`
	}
	RevokeToken struct {
		ID string `json:"id"`
	}

	// CreateVolume starts a volume in PhaseCreating. When a live volume has the name
	// already, the answer is that volume if its spec is equal, else a conflict.
	CreateVolume struct {
		ID        volume.ID        `json:"id"`
		Name      string           `json:"name"`
		Spec      volume.Spec      `json:"spec"`
		Placement volume.Placement `json:"placement"`
		// Adopt makes the volume of a set-aside copy on the primary, or, when there is a slash in
		// it, of that dataset of its pool, which was not flocker's; After is the highest
		// epoch that copy has seen, and the volume begins above it.
		Adopt string       `json:"adopt,omitempty"`
		After volume.Epoch `json:"after,omitempty"`
		// Clone makes the volume a clone; the snapshot is on the primary.
		Clone *CloneOf `json:"clone,omitempty"`
		// Descends, of what is adopted, is Descent of the volume that it was set aside of.
		Descends []volume.ID `json:"descends,omitempty"`
	}
	// UpdateSpec changes what a live volume was asked to be. What cannot change on a
	// volume with data (owner, mode, ZFS properties) must be as it was.
	UpdateSpec struct {
		ID   volume.ID   `json:"id"`
		Spec volume.Spec `json:"spec"`
		// Changed is that of the volume which the proposer saw.
		Changed uint64 `json:"changed"`
	}
	// ConfirmCreate says that the primary's dataset is there.
	ConfirmCreate struct {
		ID    volume.ID    `json:"id"`
		Epoch volume.Epoch `json:"epoch"`
	}
	// AbortCreate gives up a volume that nobody could have used yet. A copy that it was to
	// adopt is set aside again.
	AbortCreate struct {
		ID     volume.ID    `json:"id"`
		Epoch  volume.Epoch `json:"epoch"`
		Reason string       `json:"reason"`
	}
	// SetReplicas changes the followers, never the primary.
	SetReplicas struct {
		ID     volume.ID       `json:"id"`
		Epoch  volume.Epoch    `json:"epoch"`
		Local  []volume.NodeID `json:"local"`
		Remote []volume.NodeID `json:"remote"`
		// Changed is that of the volume which the proposer saw: who adds a replica must
		// not take away the one that another has just added. 0: not checked.
		Changed uint64 `json:"changed,omitempty"`
	}

	// BeginHandoff asks the primary to give the volume to the replica To.
	BeginHandoff struct {
		ID      volume.ID     `json:"id"`
		Epoch   volume.Epoch  `json:"epoch"`
		To      volume.NodeID `json:"to"`
		Attempt string        `json:"attempt"`
		// Follow: the primary first stops the containers that follow the volume, and To
		// starts them. Without it a volume in use stays.
		Follow bool `json:"follow,omitempty"`
		// Back undoes a handoff whose containers do not start: To is where they ran, and
		// they are started there again. It is why, and what its refusal says afterwards.
		Back string `json:"back,omitempty"`
		// MaxPause is what clients may wait for besides the stop and start of containers, by
		// what is predicted: above it nothing is stopped. 0: as long as it takes.
		MaxPause time.Duration `json:"max_pause,omitempty"`
		// Services of a Swarm had tasks on the volume, and are to have some on To.
		Services []string `json:"services,omitempty"`
	}
	// CommitHandoff changes the primary. Only the old primary proposes it, after it
	// has unmounted the volume and To has acknowledged the final snapshot.
	CommitHandoff struct {
		ID      volume.ID       `json:"id"`
		Epoch   volume.Epoch    `json:"epoch"`
		Attempt string          `json:"attempt"`
		Final   volume.Position `json:"final"`
		// Times are what it took so far.
		Times MoveTimes `json:"times,omitzero"`
	}
	// OpenRoutes says that the clients of a volume's routes go on where it was moved to with
	// its containers. Only the new primary proposes it. They have gone on for Ago by then, by
	// its own clock.
	OpenRoutes struct {
		ID    volume.ID     `json:"id"`
		Epoch volume.Epoch  `json:"epoch"`
		Ago   time.Duration `json:"ago,omitempty"`
		// Arrival is what it took there, as far as it is known.
		Arrival ArrivalTimes `json:"arrival,omitzero"`
	}
	// AbortHandoff keeps the volume where it is. Anybody may propose it.
	AbortHandoff struct {
		ID      volume.ID    `json:"id"`
		Epoch   volume.Epoch `json:"epoch"`
		Attempt string       `json:"attempt"`
		Reason  string       `json:"reason"`
	}

	// BeginDelete asks the primary whether the volume may go.
	BeginDelete struct {
		ID      volume.ID    `json:"id"`
		Epoch   volume.Epoch `json:"epoch"`
		Attempt string       `json:"attempt"`
	}
	// CommitDelete moves the volume to the trash. Only the primary proposes it,
	// after it has unmounted the volume.
	CommitDelete struct {
		ID      volume.ID    `json:"id"`
		Epoch   volume.Epoch `json:"epoch"`
		Attempt string       `json:"attempt"`
	}
	// AbortDelete keeps the volume. Anybody may propose it.
	AbortDelete struct {
		ID      volume.ID    `json:"id"`
		Epoch   volume.Epoch `json:"epoch"`
		Attempt string       `json:"attempt"`
		Reason  string       `json:"reason"`
	}
	// Undelete takes a volume out of the trash, under Name.
	Undelete struct {
		ID   volume.ID `json:"id"`
		Name string    `json:"name"`
	}
	// PurgeVolume lets every node destroy its copy of a volume in the trash.
	PurgeVolume struct {
		ID volume.ID `json:"id"`
		// Changed is that of the volume which the proposer saw expire: one that was
		// restored and removed again meanwhile has its time before it. 0: not checked.
		Changed uint64 `json:"changed,omitempty"`
	}
	// ForgetVolume drops the record of a purged volume of which no copy is left.
	ForgetVolume struct {
		ID volume.ID `json:"id"`
	}
	// SetSettings replaces the cluster's settings, which must pass Settings.Check.
	SetSettings struct {
		Settings Settings `json:"settings"`
		// Was are the settings that the proposer saw and changed: with others it is a
		// conflict, so that nobody's change is lost. Nil: not checked.
		Was *Settings `json:"was,omitempty"`
	}
	// Tell puts what a node has found out about a volume into the events. It changes
	// nothing else.
	Tell struct {
		Volume  volume.ID     `json:"volume"`
		Kind    string        `json:"kind"`           // VolumeDiffers ...
		Node    volume.NodeID `json:"node,omitempty"` // that it is about; "": the primary
		Message string        `json:"message"`
	}
)

func (InitCluster) kind() string   { return "init-cluster" }
func (AddNode) kind() string       { return "add-node" }
func (UpdateNode) kind() string    { return "update-node" }
func (CreateToken) kind() string   { return "create-token" }
func (RevokeToken) kind() string   { return "revoke-token" }
func (CreateVolume) kind() string  { return "create-volume" }
func (ConfirmCreate) kind() string { return "confirm-create" }
func (AbortCreate) kind() string   { return "abort-create" }
func (UpdateSpec) kind() string    { return "update-spec" }
func (SetReplicas) kind() string   { return "set-replicas" }
func (BeginHandoff) kind() string  { return "begin-handoff" }
func (CommitHandoff) kind() string { return "commit-handoff" }
func (OpenRoutes) kind() string    { return "open-routes" }
func (AbortHandoff) kind() string  { return "abort-handoff" }
func (BeginDelete) kind() string   { return "begin-delete" }
func (CommitDelete) kind() string  { return "commit-delete" }
func (AbortDelete) kind() string   { return "abort-delete" }
func (Undelete) kind() string      { return "undelete" }
func (PurgeVolume) kind() string   { return "purge-volume" }
func (ForgetVolume) kind() string  { return "forget-volume" }
func (SetSettings) kind() string   { return "set-settings" }
func (Tell) kind() string          { return "tell" }

var decoders = map[string]func([]byte) (Command, error){
	"init-cluster":    decode[InitCluster],
	"add-node":        decode[AddNode],
	"update-node":     decode[UpdateNode],
	"create-token":    decode[CreateToken],
	"revoke-token":    decode[RevokeToken],
	"create-volume":   decode[CreateVolume],
	"confirm-create":  decode[ConfirmCreate],
	"abort-create":    decode[AbortCreate],
	"update-spec":     decode[UpdateSpec],
	"set-replicas":    decode[SetReplicas],
	"begin-handoff":   decode[BeginHandoff],
	"commit-handoff":  decode[CommitHandoff],
	"open-routes":     decode[OpenRoutes],
	"abort-handoff":   decode[AbortHandoff],
	"begin-delete":    decode[BeginDelete],
	"commit-delete":   decode[CommitDelete],
	"abort-delete":    decode[AbortDelete],
	"undelete":        decode[Undelete],
	"purge-volume":    decode[PurgeVolume],
	"forget-volume":   decode[ForgetVolume],
	"begin-rollback":  decode[BeginRollback],
	"commit-rollback": decode[CommitRollback],
	"start-migration": decode[StartMigration],
	"end-migration":   decode[EndMigration],
	"set-settings":    decode[SetSettings],
	"tell":            decode[Tell],
	"arm-failover":    decode[ArmFailover],
	"disarm-failover": decode[DisarmFailover],
	"complete-arming": decode[CompleteArming],
	"take-lead":       decode[TakeLead],
	"grant-lease":     decode[GrantLease],
	"revoke-lease":    decode[RevokeLease],
	"begin-election":  decode[BeginElection],
	"promote":         decode[Promote],
	"put-container":   decode[PutContainer],
	"drop-container":  decode[DropContainer],
	"set-data-key":    decode[SetDataKey],
	"remove-node":     decode[RemoveNode],
	"pause-route":     decode[PauseRoute],

	"call-off-rollback": decode[CallOffRollback],

	"hold-snapshot":    decode[HoldSnapshot],
	"release-snapshot": decode[ReleaseSnapshot],
}

// ErrUnknownCommand means that a newer version of flocker wrote the log. A node
// that meets it must stop: skipping the entry would give it another state than its
// peers have.
var ErrUnknownCommand = errors.New("the log holds a command that this version does not know; install the version that the other nodes run")

type wireEnvelope struct {
	Version int             `json:"v"`
	Kind    string          `json:"kind"`
	Request string          `json:"request,omitempty"`
	At      time.Time       `json:"at"`
	Body    json.RawMessage `json:"body"`
}

const envelopeVersion = 1

// Encode is the form of an envelope in the Raft log.
func Encode(e Envelope) ([]byte, error) {
	body, err := json.Marshal(e.Command)
	if err != nil {
		return nil, fmt.Errorf("encoding %s: %w", e.Command.kind(), err)
	}
	return json.Marshal(wireEnvelope{
		Version: envelopeVersion, Kind: e.Command.kind(), Request: e.Request, At: e.At.UTC(), Body: body,
	})
}

// Decode reads what Encode wrote. The error is ErrUnknownCommand for a command,
// field or version of a later release.
func Decode(b []byte) (Envelope, error) {
	var w wireEnvelope
	if err := json.Unmarshal(b, &w); err != nil {
		return Envelope{}, fmt.Errorf("decoding a log entry: %w", err)
	}
	dec := decoders[w.Kind]
	if w.Version != envelopeVersion || dec == nil {
		return Envelope{}, fmt.Errorf("%w (version %d, kind %q)", ErrUnknownCommand, w.Version, w.Kind)
	}
	cmd, err := dec(w.Body)
	if err != nil {
		return Envelope{}, fmt.Errorf("decoding %s: %w (%w)", w.Kind, ErrUnknownCommand, err)
	}
	return Envelope{Request: w.Request, At: w.At, Command: cmd}, nil
}

func decode[T Command](b []byte) (Command, error) {
	var c T
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return nil, err
	}
	return c, nil
}
