package state

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/volume"
)

// FailoverMode says what the cluster does by itself when a node is lost.
type FailoverMode string

// The modes. In manual no node stops its writers for lost contact, and nothing is
// promoted by itself. In arming a node writes on as before until it has applied the
// grant of its first lease of the round; from then on it stops its writers when that
// runs out. Nobody is taken for dead by time before automatic, which begins when every
// node that could be writing has been heard under its lease: a grant in the log only
// proves what the node was told, a beat of that number proves that it obeys.
//
//	          ArmFailover              CompleteArming
//	manual ───────────────► arming ────────────────────► automatic
//	  ▲                      ▲ │ ▲     ArmFailover           │  │
//	  │                      └─┘ └── (with other timers) ────┘  │
//	  └──────────────────────── DisarmFailover ◄────────────────┘
const (
	FailoverManual    FailoverMode = "manual"
	FailoverArming    FailoverMode = "arming"
	FailoverAutomatic FailoverMode = "automatic"
)

// Failover is what all nodes have agreed on about leases. The zero value is manual.
type Failover struct {
	Mode FailoverMode `json:"mode,omitempty"`
	// Round counts the times that failover was armed. A lease belongs to one round, and
	// with it to its timers.
	Round uint64 `json:"round,omitempty"`
	// Timers of this round, and the name of the profile that they came from.
	Timers  lease.Timers `json:"timers,omitzero"`
	Profile string       `json:"profile,omitempty"`
	// Reason is why failover is manual, when it once was not.
	Reason string `json:"reason,omitempty"`
}

// Enforced says that nodes may write under a lease only.
func (f Failover) Enforced() bool { return f.Mode == FailoverArming || f.Mode == FailoverAutomatic }

// Lease is a node's right to write, as the log has it. Whether it runs, only the node
// and the leader know.
type Lease struct {
	No    uint64 `json:"no,omitempty"` // 0: none was ever granted
	Boot  string `json:"boot,omitempty"`
	Round uint64 `json:"round,omitempty"` // of Failover
	// Safety is how surely the holder stops its writers.
	Safety volume.Safety `json:"safety,omitempty"`
	// Revoked leases are over for good: the holder's volumes have other epochs by now.
	Revoked bool `json:"revoked,omitempty"`
}

// Valid says that a lease was granted in this round and not revoked.
func (l Lease) Valid(f Failover) bool { return l.No > 0 && !l.Revoked && l.Round == f.Round }

// Election is why a volume has no primary at present.
type Election struct {
	Was    volume.NodeID `json:"was"` // primary of the epoch before
	Reason string        `json:"reason"`
	Began  time.Time     `json:"began"`
	// Recovered: the cluster was recovered from one node since. What was written elsewhere
	// until then nobody knows, so nobody but Was gets the volume without an operator.
	Recovered bool `json:"recovered,omitempty"`
}

// Missing is what a copy may lack of what its old primary had, by the old primary's clock.
type Missing struct {
	// AsOf is the time up to which the copy was proven complete; zero: not known. Life is
	// when the old primary was last heard of; zero: not known.
	AsOf time.Time `json:"as_of,omitzero"`
	Life time.Time `json:"life,omitzero"`
	// Loss is the most that may be missing, in time; nil: nobody can bound it.
	Loss *time.Duration `json:"loss,omitempty"`
	// Bytes is about how much that was when the old primary last said so; nil: not known.
	Bytes *int64 `json:"bytes,omitempty"`
}

// Nothing says that it surely lacks nothing that was heard of.
func (m Missing) Nothing() bool { return m.Loss != nil && *m.Loss == 0 }

// EndedFailover is how a volume came to another primary, or back to its own with less
// than that once had.
type EndedFailover struct {
	From  volume.NodeID   `json:"from"`
	To    volume.NodeID   `json:"to"`
	At    time.Time       `json:"at"`
	Start volume.Position `json:"start,omitzero"` // the newest snapshot that To had
	Missing
}

// Commands of leases and failover.
type (
	// ArmFailover has every node fence itself by these timers. Round is one more than
	// the present one.
	ArmFailover struct {
		Round   uint64       `json:"round"`
		Timers  lease.Timers `json:"timers"`
		Profile string       `json:"profile"`
	}
	// DisarmFailover makes failover manual again.
	DisarmFailover struct {
		Round  uint64 `json:"round"`
		Reason string `json:"reason"`
	}
	// CompleteArming makes failover automatic. Heard are the nodes that the leader has
	// answered a beat of, each with the number of the lease it was sent under: all that
	// are the primary of something must be among them (State.NotHeard).
	CompleteArming struct {
		Round uint64                   `json:"round"`
		Heard map[volume.NodeID]uint64 `json:"heard"`
	}
	// TakeLead is the first command of whoever has become leader, before it answers a beat
	// or waits for anybody. What the leaders before it have decided by time is refused
	// from here on.
	TakeLead struct {
		Leader volume.NodeID `json:"leader"`
	}
	// GrantLease gives a node, as it booted last, the lease of the next number. The one
	// before must be revoked, or of an earlier round. By asking for it the node has said
	// that it can fence itself by the timers of Round.
	GrantLease struct {
		Node   volume.NodeID `json:"node"`
		No     uint64        `json:"no"`
		Boot   string        `json:"boot"`
		Round  uint64        `json:"round"`
		Safety volume.Safety `json:"safety"`
	}
	// RevokeLease ends a lease that nothing can be written under any more, and begins the
	// election of another primary for all volumes of the node. It is refused for a lease
	// of another round: under those nobody has promised to stop.
	RevokeLease struct {
		Node   volume.NodeID `json:"node"`
		No     uint64        `json:"no"`
		Reason string        `json:"reason"`
		// Proven: not time says so, but the node itself (lease.Beat.Stopped, or its leaving).
		// While failover is arming nothing else counts.
		Proven bool `json:"proven,omitempty"`
		// Reign is State.Reign of the leader that has waited: with another one it is
		// refused, since a leader in between may have answered the node.
		Reign uint64 `json:"reign"`
	}
	// BeginElection takes a volume from its primary: epoch+1, no primary. It is refused
	// unless the state proves that the primary does not write (State.Barred), or an
	// operator has said that it is off (Fenced).
	BeginElection struct {
		ID     volume.ID    `json:"id"`
		Epoch  volume.Epoch `json:"epoch"`
		Reason string       `json:"reason"`
		Fenced bool         `json:"fenced,omitempty"`
	}
	// Promote ends an election: To, which holds Start and has promised this epoch, is the
	// primary. Note says in words what may be missing.
	Promote struct {
		ID    volume.ID       `json:"id"`
		Epoch volume.Epoch    `json:"epoch"`
		To    volume.NodeID   `json:"to"`
		Start volume.Position `json:"start"`
		// Loss is the most that may be missing, in time; of a failover for which nobody can
		// bound it, what is known at least. It is what a version knows that has no Missing.
		Loss time.Duration `json:"loss"`
		Note string        `json:"note"`
		// Missing is kept in the volume's LastFailover; absent when the leader, or a node that
		// it hears of, is of a version that does not know it. Then none is kept, on any node:
		// what a state holds must not depend on the version that has applied the command.
		Missing *Missing `json:"missing,omitempty"`
	}
)

func (ArmFailover) kind() string    { return "arm-failover" }
func (DisarmFailover) kind() string { return "disarm-failover" }
func (CompleteArming) kind() string { return "complete-arming" }
func (TakeLead) kind() string       { return "take-lead" }
func (GrantLease) kind() string     { return "grant-lease" }
func (RevokeLease) kind() string    { return "revoke-lease" }
func (BeginElection) kind() string  { return "begin-election" }
func (Promote) kind() string        { return "promote" }

// Failover is the present agreement; manual before InitCluster.
func (s *State) Failover() Failover {
	f := Failover{Mode: FailoverManual}
	if s.cluster != nil && s.cluster.Failover.Mode != "" {
		f = s.cluster.Failover
	}
	return f
}

// NeedsLease says that a node may write under its lease only, as far as the state
// goes: always in automatic, and in arming once it was granted one of the round, even
// if that is revoked by now. Otherwise it writes what it is the primary of.
func (s *State) NeedsLease(id volume.NodeID) bool {
	n, f := s.Node(id), s.Failover()
	return f.Mode == FailoverAutomatic || f.Mode == FailoverArming && n != nil && n.Lease.Round == f.Round
}

// HasLease says that the state lets a node write: it holds a valid lease, or needs none.
func (s *State) HasLease(id volume.NodeID) bool {
	n := s.Node(id)
	return n != nil && !n.Removed && !n.Lost && (!s.NeedsLease(id) || n.Lease.Valid(s.Failover()))
}

// NotHeard are the members that could be writing without a lease and keep arming from
// being complete: primaries of anything that were not heard under their lease of this
// round. Who is the primary of nothing writes nothing, and reads of automatic failover
// before it reads that it is the primary of something: so a dead node that has been
// failed over does not stand in the way.
func (s *State) NotHeard(heard map[volume.NodeID]uint64) []volume.NodeID {
	f, missing := s.Failover(), map[volume.NodeID]bool{}
	for v := range s.Volumes() {
		n := s.Node(v.Placement.Primary)
		if n == nil || n.Removed || n.Lost || v.Phase == PhaseTrash || v.Phase == PhasePurged {
			continue
		}
		if !n.Lease.Valid(f) || heard[n.ID] != n.Lease.No {
			missing[n.ID] = true
		}
	}
	return slices.Sorted(maps.Keys(missing))
}

// Reign is the Raft index of the last TakeLead; 0 before the first.
func (s *State) Reign() uint64 {
	if s.cluster == nil {
		return 0
	}
	return s.cluster.Reign
}

// Stopped says that a node surely writes nothing: its lease of this round is revoked, or
// it is no member, or was given up by a recovery. A revoked lease of another round says
// nothing about today.
func (s *State) Stopped(id volume.NodeID) bool {
	n, f := s.Node(id), s.Failover()
	return n == nil || n.Removed || n.Lost || f.Enforced() && n.Lease.Round == f.Round && n.Lease.Revoked
}

// Barred says that a node surely writes nothing: it is stopped, or failover is automatic
// and it holds no valid lease. Who had anything to write when failover became automatic
// was heard under its lease; who has become a primary since has read of automatic failover
// before, and so writes under a lease only, which the state would have. Of a node that a
// recovery has left behind none of this is known: it reads another log.
//
// It differs from Stopped in that a node may be so for a moment, as one that has just
// joined: its volumes are not taken from it by what makes it so.
func (s *State) Barred(id volume.NodeID) bool {
	n, f := s.Node(id), s.Failover()
	return s.Stopped(id) || f.Mode == FailoverAutomatic && !n.Lost && !n.Lease.Valid(f)
}

func (t *txn) setFailover(f Failover) {
	cl := *t.s.cluster
	cl.Failover = f
	t.s.cluster = &cl
}

func (t *txn) armFailover(c ArmFailover) Result {
	f := t.s.Failover()
	members := t.memberCount()
	switch err := c.Timers.Check(0); {
	case c.Round != f.Round+1:
		return failed(volume.CodeConflict, "failover is in round %d, not %d", f.Round, c.Round-1)
	case err != nil:
		return failed(volume.CodeInvalid, "%v", err)
	case t.s.cluster.Settings.Failover == FailoverManual:
		return failed(volume.CodeRefused, "the settings want manual failover")
	case members < 3:
		return failed(volume.CodeRefused, "with %d nodes nobody could tell a dead node from a cut network; failover stays manual", members)
	}
	t.setFailover(Failover{Mode: FailoverArming, Round: c.Round, Timers: c.Timers, Profile: c.Profile})
	t.event(Event{Kind: "failover.arming",
		Message: fmt.Sprintf("automatic failover begins when every node has agreed to the lease profile %s", c.Profile)})
	return Result{}
}

func (t *txn) disarmFailover(c DisarmFailover) Result {
	f := t.s.Failover()
	if f.Mode == FailoverManual {
		return Result{}
	}
	if f.Round != c.Round {
		return failed(volume.CodeConflict, "failover is in round %d, not %d", f.Round, c.Round)
	}
	f.Mode, f.Reason = FailoverManual, c.Reason
	t.setFailover(f)
	t.event(Event{Kind: "failover.manual", Message: "failover is manual: " + c.Reason})
	return Result{}
}

func (t *txn) completeArming(c CompleteArming) Result {
	f := t.s.Failover()
	switch {
	case f.Round != c.Round || f.Mode == FailoverManual:
		return failed(volume.CodeConflict, "failover is %s in round %d; round %d cannot be completed", f.Mode, f.Round, c.Round)
	case f.Mode == FailoverAutomatic:
		return Result{}
	}
	if missing := t.s.NotHeard(c.Heard); len(missing) > 0 {
		return failed(volume.CodeConflict, "failover stays manual: not heard under a lease of round %d: %s", f.Round, t.names(missing))
	}
	f.Mode = FailoverAutomatic
	t.setFailover(f)
	t.event(Event{Kind: "failover.automatic", Message: fmt.Sprintf("failover is automatic, lease profile %s", f.Profile)})
	return Result{}
}

func (t *txn) takeLead(c TakeLead) Result {
	if n := t.s.Node(c.Leader); n == nil || n.Removed {
		return failed(volume.CodeNotFound, "no node %s", c.Leader)
	}
	cl := *t.s.cluster
	cl.Reign = t.index
	t.s.cluster = &cl
	return Result{Reign: t.index}
}

func (t *txn) grantLease(c GrantLease) Result {
	f, old := t.s.Failover(), t.s.Node(c.Node)
	switch {
	case old == nil || old.Removed:
		return failed(volume.CodeNotFound, "no node %s", c.Node)
	case c.Boot == "":
		return failed(volume.CodeInvalid, "node %s: a lease is for one boot of a machine, and none is named", old.Name)
	case !f.Enforced() || c.Round != f.Round:
		return failed(volume.CodeConflict, "failover is %s in round %d: no lease of round %d is granted", f.Mode, f.Round, c.Round)
	case c.No != old.Lease.No+1:
		return failed(volume.CodeConflict, "the next lease of node %s has number %d, not %d", old.Name, old.Lease.No+1, c.No)
	case old.Lease.Valid(f):
		return failed(volume.CodeConflict, "node %s holds lease %d", old.Name, old.Lease.No)
	}
	n := *old
	n.Lease = Lease{No: c.No, Boot: c.Boot, Round: c.Round, Safety: c.Safety}
	t.putNode(n)
	return Result{}
}

func (t *txn) revokeLease(c RevokeLease) Result {
	f, old := t.s.Failover(), t.s.Node(c.Node)
	switch {
	case old == nil:
		return failed(volume.CodeNotFound, "no node %s", c.Node)
	case old.Lease.No != c.No || c.No == 0:
		return failed(volume.CodeConflict, "node %s holds lease %d, not %d", old.Name, old.Lease.No, c.No)
	case old.Lease.Revoked:
		return Result{}
	case !f.Enforced() || old.Lease.Round != f.Round:
		return failed(volume.CodeConflict, "failover is %s in round %d: node %s may be writing without its lease of round %d", f.Mode, f.Round, old.Name, old.Lease.Round)
	case f.Mode == FailoverArming && !c.Proven:
		return failed(volume.CodeConflict, "failover is arming: nothing proves that node %s knows of its lease", old.Name)
	case c.Reign != t.s.Reign():
		return failed(volume.CodeConflict, "another leader has answered for the leases since (reign %d, not %d)", t.s.Reign(), c.Reign)
	}
	n := *old
	n.Lease.Revoked = true
	t.putNode(n)
	t.event(Event{Kind: "node.lost", Node: n.ID, Name: n.Name,
		Message: fmt.Sprintf("node %s has lost the right to write: %s", n.Name, c.Reason)})
	t.electAll(n.ID, c.Reason)
	return Result{}
}

// electAll takes all volumes from a node that is lost.
func (t *txn) electAll(id volume.NodeID, reason string) {
	var lost []Volume
	for v := range t.s.Volumes() {
		if v.Placement.Primary == id && v.Electable() {
			lost = append(lost, *v)
		}
	}
	for _, v := range lost {
		t.elect(v, reason)
	}
}

// settle begins an election for a volume that has just become active on a node which
// surely does not write: one that has come back from the trash, or was confirmed late.
func (t *txn) settle(v Volume) {
	if t.s.Stopped(v.Placement.Primary) {
		t.elect(v, "its primary "+t.s.NodeName(v.Placement.Primary)+" may not write")
	}
}

// Electable says that a volume needs a primary that may write. One that is still being
// made is given up instead, and nobody writes what is in the trash.
func (v *Volume) Electable() bool {
	return v.Phase == PhaseActive || v.Phase == PhaseMoving || v.Phase == PhaseDeleting
}

// elect takes a volume from its primary, which stays among those that hold a copy.
func (t *txn) elect(v Volume, reason string) {
	was := v.Placement.Primary
	if v.Pending != nil { // somebody waits for the attempt
		v.LastRefusal = v.refusal(reason, t.at)
	}
	t.overMigration(&v, reason)
	v.Placement = volume.Placement{Local: slices.Clone(v.Placement.Local), Remote: slices.Clone(v.Placement.Remote)}
	if n := t.s.Node(was); n != nil && !n.Removed {
		v.Placement.Local = append([]volume.NodeID{was}, v.Placement.Local...)
	}
	v.Epoch, v.Phase, v.Pending, v.Moved = v.Epoch.Next(), PhaseElecting, nil, nil
	v.Election = &Election{Was: was, Reason: reason, Began: t.at}
	t.putVolume(v)
	t.event(Event{Kind: "volume.electing", Volume: v.ID, Name: v.Name, Node: was,
		Message: fmt.Sprintf("volume %s needs another primary than %s: %s", v.Name, t.s.NodeName(was), reason)})
}

func (t *txn) beginElection(c BeginElection) Result {
	v, bad := t.at1(c.ID, c.Epoch)
	if bad != nil {
		return *bad
	}
	if !v.Electable() {
		return failed(volume.CodeConflict, "volume %q is %s", v.Name, v.Phase)
	}
	if !c.Fenced && !t.s.Barred(v.Placement.Primary) {
		return failed(volume.CodeConflict, "volume %q: nothing proves that its primary %s does not write", v.Name, t.s.NodeName(v.Placement.Primary))
	}
	t.elect(v, c.Reason)
	return Result{Volume: v.ID}
}

func (t *txn) promote(c Promote) Result {
	v, bad := t.at1(c.ID, c.Epoch)
	if bad != nil {
		return *bad
	}
	switch {
	case v.Phase != PhaseElecting:
		return failed(volume.CodeConflict, "volume %q is %s", v.Name, v.Phase)
	case v.Placement.Role(c.To) != volume.RoleReplica:
		return failed(volume.CodeConflict, "node %s holds no copy of volume %q", t.s.NodeName(c.To), v.Name)
	case !t.s.HasLease(c.To):
		return failed(volume.CodeConflict, "node %s may not write: it has no lease", t.s.NodeName(c.To))
	case c.Start.Epoch >= v.Epoch:
		return failed(volume.CodeInvalid, "volume %q: nothing was written in epoch %s, so it cannot begin there", v.Name, c.Start.Epoch)
	}
	was := v.Election.Was
	p := volume.Placement{Primary: c.To}
	for _, id := range v.Placement.Replicas() {
		if n := t.s.Node(id); id != c.To && n != nil && !n.Removed {
			p.Local = append(p.Local, id)
		}
	}
	v.Placement = t.rezone(p)
	// Whoever waits for an attempt of the epoch before still reads why it came to nothing.
	v.Start, v.Phase, v.Election = c.Start, PhaseActive, nil
	v.RolledBackBefore = nil // the last rollback stands, or there is none any more
	if c.Start.Epoch < v.Line().Epoch {
		// Nobody has what it was rolled back to, and an operator has accepted that: it goes on
		// from a copy of before.
		v.RolledBack = nil
	} else if r := v.RolledBack; r != nil && !r.Passed {
		passed := *r
		passed.Passed = true
		v.RolledBack = &passed
	}
	switch m := c.Missing; {
	case c.To == was && (m == nil && c.Loss == 0 || m != nil && m.Nothing()): // it was none
	case m == nil:
		v.LastFailover = nil
	default:
		v.LastFailover = &EndedFailover{From: was, To: c.To, At: t.at, Start: c.Start, Missing: *m}
	}
	t.putVolume(v)
	kind := "volume.failed-over"
	if c.To == was {
		kind = "volume.kept"
	}
	t.event(Event{Kind: kind, Volume: v.ID, Name: v.Name, Node: c.To,
		Message: fmt.Sprintf("volume %s: primary is %s, was %s; %s", v.Name, t.s.NodeName(c.To), t.s.NodeName(was), c.Note)})
	return Result{Volume: v.ID}
}
