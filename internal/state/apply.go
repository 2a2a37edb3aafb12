package state

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	"github.com/flocker-io/flocker/internal/volume"
)

// Apply makes the state after e, which has the Raft index given. It is pure and
// total: a command that cannot take effect gives the same state (but for Index and
// the remembered answer) and a Result with Err.
func Apply(s *State, index uint64, e Envelope) (*State, Result) {
	if r, ok := s.requests.Get([]byte(e.Request)); ok && e.Request != "" {
		next := *s
		next.Index = index
		return &next, r.Result
	}
	tx := &txn{s: *s, at: e.At, index: index}
	tx.s.Index = index
	res := tx.apply(e.Command)
	if res.Err != nil {
		// Nothing of a refused command may stay: only its answer does.
		tx = &txn{s: *s, at: e.At, index: index}
		tx.s.Index = index
	}
	tx.remember(e.Request, res)
	return &tx.s, res
}

// txn is a state in the making.
type txn struct {
	s     State
	at    time.Time
	index uint64
}

func (t *txn) apply(c Command) Result {
	if _, ok := c.(InitCluster); !ok && t.s.cluster == nil {
		return failed(volume.CodeNotInit, "the cluster is not initialised")
	}
	switch c := c.(type) {
	case InitCluster:
		return t.initCluster(c)
	case AddNode:
		return t.addNode(c)
	case UpdateNode:
		return t.updateNode(c)
	case CreateToken:
		return t.createToken(c)
	case RevokeToken:
		return t.revokeToken(c)
	case CreateVolume:
		return t.createVolume(c)
	case ConfirmCreate:
		return t.confirmCreate(c)
	case AbortCreate:
		return t.abortCreate(c)
	case UpdateSpec:
		return t.updateSpec(c)
	case SetReplicas:
		return t.setReplicas(c)
	case BeginHandoff:
		return t.beginHandoff(c)
	case CommitHandoff:
		return t.commitHandoff(c)
	case OpenRoutes:
		return t.openRoutes(c)
	case AbortHandoff:
		return t.abort(c.ID, c.Epoch, c.Attempt, c.Reason, PhaseMoving, "volume.move-refused")
	case BeginRollback:
		return t.beginRollback(c)
	case CommitRollback:
		return t.commitRollback(c)
	case CallOffRollback:
		return t.callOffRollback(c)
	case StartMigration:
		return t.startMigration(c)
	case EndMigration:
		return t.endMigration(c)
	case BeginDelete:
		return t.beginDelete(c)
	case CommitDelete:
		return t.commitDelete(c)
	case AbortDelete:
		return t.abort(c.ID, c.Epoch, c.Attempt, c.Reason, PhaseDeleting, "volume.remove-refused")
	case Undelete:
		return t.undelete(c)
	case PurgeVolume:
		return t.purge(c)
	case ForgetVolume:
		return t.forget(c)
	case SetSettings:
		return t.setSettings(c)
	case Tell:
		return t.tell(c)
	case ArmFailover:
		return t.armFailover(c)
	case DisarmFailover:
		return t.disarmFailover(c)
	case CompleteArming:
		return t.completeArming(c)
	case TakeLead:
		return t.takeLead(c)
	case GrantLease:
		return t.grantLease(c)
	case RevokeLease:
		return t.revokeLease(c)
	case BeginElection:
		return t.beginElection(c)
	case Promote:
		return t.promote(c)
	case PutContainer:
		return t.putContainer(c)
	case DropContainer:
		return t.dropContainer(c)
	case SetDataKey:
		return t.setDataKey(c)
	case RemoveNode:
		return t.removeNode(c)
	case PauseRoute:
		return t.pauseRoute(c)
	case HoldSnapshot:
		return t.holdSnapshot(c)
	case ReleaseSnapshot:
		return t.releaseSnapshot(c)
	}
	// Decode lets nothing else through; a command type without a case is a bug that
	// must not differ between nodes, so it is refused the same way everywhere.
	return failed(volume.CodeInvalid, "command %s has no effect", c.kind())
}

func (t *txn) setSettings(c SetSettings) Result {
	was := t.s.cluster.Settings
	switch {
	case c.Was != nil && !c.Was.Equal(was):
		return failed(volume.CodeConflict, "the settings were changed meanwhile")
	case c.Settings.Equal(was):
		return Result{}
	}
	if err := c.Settings.Check(); err != nil {
		return failed(volume.CodeOf(err), "%v", err)
	}
	cl := *t.s.cluster
	cl.Settings = c.Settings
	t.s.cluster = &cl
	t.event(Event{Kind: "cluster.settings", Message: "the settings of the cluster were changed"})
	return Result{}
}

func (t *txn) tell(c Tell) Result {
	v := t.s.Volume(c.Volume)
	switch c.Kind {
	case VolumeDiffers, VolumeHeld, VolumeAside, VolumeHook, VolumePorts, VolumeEvened, VolumePrestart, VolumeStarts, VolumeJoins, VolumeWaits:
	default:
		v = nil
	}
	if v == nil {
		return failed(volume.CodeInvalid, "nothing to tell of kind %q about volume %s", c.Kind, c.Volume)
	}
	t.event(Event{Kind: c.Kind, Volume: v.ID, Name: v.Name, Node: cmp.Or(c.Node, v.Placement.Primary), Message: c.Message})
	return Result{Volume: v.ID}
}

func (t *txn) initCluster(c InitCluster) Result {
	if t.s.cluster != nil {
		return failed(volume.CodeConflict, "the cluster is initialised already")
	}
	cl := c.Cluster
	t.s.cluster = &cl
	t.putNode(c.Node)
	t.event(Event{Kind: "cluster.created", Node: c.Node.ID, Name: c.Node.Name,
		Message: fmt.Sprintf("cluster made on node %s", c.Node.Name)})
	return Result{}
}

func (t *txn) addNode(c AddNode) Result {
	old := t.s.Node(c.Node.ID)
	switch {
	case old != nil && (old.Removed || !slices.Equal(old.KeyHash, c.Node.KeyHash)):
		return failed(volume.CodeConflict, "node id %s is known already", c.Node.ID)
	case old != nil && !old.Lost:
		return Result{} // a repeat of a join whose answer was lost
	}
	for n := range t.s.Nodes() {
		if n.Name == c.Node.Name && n.ID != c.Node.ID {
			return failed(volume.CodeConflict, "a node named %q is in the cluster already", n.Name)
		}
	}
	tok := t.s.Token(c.Token)
	switch {
	case tok == nil:
		return failed(volume.CodeDenied, "the join token was revoked or never existed")
	case t.at.After(tok.Expires):
		return failed(volume.CodeDenied, "the join token expired at %s", tok.Expires.UTC().Format(time.RFC3339))
	case tok.MaxUses > 0 && tok.Uses >= tok.MaxUses:
		return failed(volume.CodeDenied, "the join token was good for %d joins and all are used", tok.MaxUses)
	}
	used := *tok
	used.Uses++
	t.s.tokens, _, _ = t.s.tokens.Insert([]byte(used.ID), &used)
	if old != nil {
		return t.readmit(*old, c.Node)
	}
	n := c.Node
	n.Removed, n.Lost = false, false
	// Nobody brings a lease along. But a machine that was a node before has a fencer that
	// takes no lower number than the last one.
	if n.Lease = (Lease{No: c.Node.Lease.No}); n.Lease.No > 0 {
		n.Lease.Revoked = true
	}
	t.putNode(n)
	t.event(Event{Kind: "node.joined", Node: c.Node.ID, Name: c.Node.Name,
		Message: fmt.Sprintf("node %s joined in zone %s", c.Node.Name, c.Node.Zone)})
	return Result{}
}

// readmit takes a node back without which the cluster was recovered. It is what it was,
// perhaps at another address; its log of the time before is gone.
func (t *txn) readmit(n, now Node) Result {
	n.Lost = false
	n.Addr, n.GossipAddr = now.Addr, now.GossipAddr
	t.putNode(n)
	t.event(Event{Kind: "node.rejoined", Node: n.ID, Name: n.Name,
		Message: fmt.Sprintf("node %s is back, with what it has of its volumes", n.Name)})
	return Result{}
}

func (t *txn) updateNode(c UpdateNode) Result {
	old := t.s.Node(c.ID)
	if old == nil || old.Removed {
		return failed(volume.CodeNotFound, "no node %s", c.ID)
	}
	n := *old
	if c.Name != nil {
		for other := range t.s.Nodes() {
			if other.ID != n.ID && other.Name == *c.Name {
				return failed(volume.CodeConflict, "a node named %q is in the cluster already", *c.Name)
			}
		}
		n.Name = *c.Name
	}
	set(&n.Zone, c.Zone)
	set(&n.Addr, c.Addr)
	set(&n.GossipAddr, c.GossipAddr)
	if len(c.SetLabels)+len(c.DropLabels) > 0 {
		labels := map[string]string{}
		for k, v := range n.Labels {
			labels[k] = v
		}
		for _, k := range c.DropLabels {
			delete(labels, k)
		}
		for k, v := range c.SetLabels {
			labels[k] = v
		}
		n.Labels = labels
	}
	if bad := t.setAvailability(&n, c); bad != nil {
		return *bad
	}
	t.putNode(n)
	return Result{}
}

func (t *txn) createToken(c CreateToken) Result {
	if t.s.Token(c.Token.ID) != nil {
		return failed(volume.CodeConflict, "token %s exists already", c.Token.ID)
	}
	// Tokens that can never be used again are dropped here, where one is added.
	for old := range t.s.Tokens() {
		if t.at.After(old.Expires.Add(24 * time.Hour)) {
			t.s.tokens, _, _ = t.s.tokens.Delete([]byte(old.ID))
		}
	}
	tok := c.Token
	t.s.tokens, _, _ = t.s.tokens.Insert([]byte(tok.ID), &tok)
	return Result{}
}

func (t *txn) revokeToken(c RevokeToken) Result {
	if t.s.Token(c.ID) == nil {
		return failed(volume.CodeNotFound, "no token %s", c.ID)
	}
	t.s.tokens, _, _ = t.s.tokens.Delete([]byte(c.ID))
	return Result{}
}

func (t *txn) createVolume(c CreateVolume) Result {
	if old := t.s.VolumeByName(c.Name); old != nil {
		switch {
		case old.Phase == PhaseDeleting:
			return failed(volume.CodeConflict, "volume %q is being removed; try again in a moment", c.Name)
		case !old.Spec.Equal(c.Spec):
			return failed(volume.CodeConflict, "volume %q exists with other options", c.Name)
		case c.Adopt != "" && c.Adopt != old.Adopt:
			return failed(volume.CodeConflict, "volume %q exists already, with data of its own", c.Name)
		case c.Clone != nil && !old.Clone.same(c.Clone):
			return failed(volume.CodeConflict, "volume %q exists already, and is no clone of volume %q", c.Name, c.Clone.Name)
		}
		return Result{Volume: old.ID}
	}
	if t.s.Volume(c.ID) != nil {
		return failed(volume.CodeConflict, "volume id %s is taken", c.ID)
	}
	if bad := t.adoptable(c); bad != nil {
		return *bad
	}
	if bad := t.cloneable(c); bad != nil {
		return *bad
	}
	if bad := t.placeable(c.Name, c.Placement); bad != nil {
		return *bad
	}
	if bad := t.mayListen(fmt.Sprintf("volume %q", c.Name), c.Spec.Ports, func(Route) bool { return false }); bad != nil {
		return *bad
	}
	v := Volume{
		ID: c.ID, Name: c.Name, Spec: c.Spec, Placement: c.Placement,
		Epoch: volume.NewEpoch(t.s.cluster.Generation, 1), Phase: PhaseCreating, Created: t.at,
		Adopt: c.Adopt, Clone: c.Clone, Descends: c.Descends,
	}
	after := c.After
	if c.Clone != nil {
		// What it shares with its original can become its own, when that is destroyed: then
		// its snapshots must be older than those that the clone has taken.
		after = max(after, t.s.Volume(c.Clone.Volume).Epoch)
	}
	if after >= v.Epoch {
		v.Epoch = after.Next()
	}
	t.putVolume(v)
	t.s.names, _, _ = t.s.names.Insert([]byte(v.Name), v.ID)
	return Result{Volume: v.ID}
}

// adoptable refuses to make a volume of a set-aside copy that another volume is made
// of already, or whose epochs have no successor.
func (t *txn) adoptable(c CreateVolume) *Result {
	if c.After.Next() < c.After {
		r := failed(volume.CodeInvalid, "volume %q: no epoch comes after %s", c.Name, c.After)
		return &r
	}
	if c.Adopt == "" {
		return nil
	}
	for v := range t.s.Volumes() {
		if v.Adopt == c.Adopt && v.Placement.Primary == c.Placement.Primary && v.Phase == PhaseCreating {
			what := "set-aside copy "
			if strings.Contains(c.Adopt, "/") {
				what = "dataset "
			}
			r := failed(volume.CodeConflict, "%s%s is being made volume %q", what, c.Adopt, v.Name)
			return &r
		}
	}
	return nil
}

// cloneable refuses a clone of what is not there any more, or not for long.
func (t *txn) cloneable(c CreateVolume) *Result {
	if c.Clone == nil {
		return nil
	}
	v := t.s.Volume(c.Clone.Volume)
	var r Result
	switch {
	case c.Adopt != "" || c.Clone.GUID == 0:
		r = failed(volume.CodeInvalid, "volume %q: a clone is made of one snapshot", c.Name)
	case v == nil || !v.Live():
		r = failed(volume.CodeNotFound, "volume %q, of which %q was to be a clone, is not there any more", c.Clone.Name, c.Name)
	case v.Phase == PhaseCreating || v.Phase == PhaseDeleting:
		r = failed(volume.CodeConflict, "volume %q is %s; a clone of it cannot be made now", v.Name, v.Phase)
	case v.Epoch.Next() < v.Epoch:
		r = failed(volume.CodeInvalid, "volume %q: no epoch comes after %s", c.Name, v.Epoch)
	default:
		return nil
	}
	return &r
}

func (t *txn) confirmCreate(c ConfirmCreate) Result {
	v, bad := t.at1(c.ID, c.Epoch)
	if bad != nil {
		return *bad
	}
	if v.Phase != PhaseCreating {
		return Result{Volume: v.ID}
	}
	v.Phase, v.Adopt = PhaseActive, ""
	t.putVolume(v)
	made := fmt.Sprintf("volume %s made on %s", v.Name, t.s.NodeName(v.Placement.Primary))
	if c := v.Clone; c != nil {
		made += fmt.Sprintf(", a clone of %s@%s", c.Name, c.Snapshot)
	}
	t.event(Event{Kind: "volume.created", Volume: v.ID, Name: v.Name, Node: v.Placement.Primary, Message: made})
	t.settle(v)
	return Result{Volume: v.ID}
}

func (t *txn) abortCreate(c AbortCreate) Result {
	v, bad := t.at1(c.ID, c.Epoch)
	if bad != nil {
		return *bad
	}
	if v.Phase != PhaseCreating {
		return failed(volume.CodeConflict, "volume %q is in use already", v.Name)
	}
	// What the nodes may have made of it is empty, or a clone that nobody wrote to; they destroy it
	// in PhasePurged. A copy that was adopted is not: Adopt stays, and its node sets it aside again.
	v.Phase, v.Deleted = PhasePurged, t.at
	v.LastRefusal = &Refusal{Reason: c.Reason, At: t.at}
	t.putVolume(v)
	t.s.names, _, _ = t.s.names.Delete([]byte(v.Name))
	t.event(Event{Kind: "volume.create-failed", Volume: v.ID, Name: v.Name, Node: v.Placement.Primary,
		Message: fmt.Sprintf("volume %s could not be made: %s", v.Name, c.Reason)})
	return Result{Volume: v.ID}
}

func (t *txn) updateSpec(c UpdateSpec) Result {
	v := t.s.Volume(c.ID)
	switch {
	case v == nil || !v.Live():
		return failed(volume.CodeNotFound, "no volume %s", c.ID)
	case v.Phase != PhaseActive:
		return failed(volume.CodeConflict, "volume %q is %s; try again in a moment", v.Name, v.Phase)
	}
	if bad := unchanged(v, c.Changed); bad != nil {
		return *bad
	}
	now, was := c.Spec, v.Spec
	if now.UID != was.UID || now.GID != was.GID || now.Mode != was.Mode || !maps.Equal(now.ZFS, was.ZFS) {
		return failed(volume.CodeInvalid, "volume %q: owner, mode and ZFS properties stay as they were when it was made", v.Name)
	}
	if now.Equal(was) {
		return Result{Volume: v.ID}
	}
	if !slices.Equal(now.Ports, was.Ports) {
		own := func(r Route) bool { return r.Container == nil && r.Volume.ID == v.ID }
		if bad := t.mayListen(fmt.Sprintf("volume %q", v.Name), now.Ports, own); bad != nil {
			return *bad
		}
	}
	next := *v
	next.Spec = now
	t.putVolume(next)
	t.prunePaused(v.ID)
	var words []string
	for _, ch := range was.Changes(now) {
		words = append(words, ch.Option+"="+cmp.Or(ch.To, "none"))
	}
	t.event(Event{Kind: "volume.changed", Volume: v.ID, Name: v.Name,
		Message: fmt.Sprintf("volume %s has now %s", v.Name, strings.Join(words, " "))})
	return Result{Volume: v.ID}
}

func (t *txn) setReplicas(c SetReplicas) Result {
	v, bad := t.at1(c.ID, c.Epoch)
	if bad != nil {
		return *bad
	}
	if v.Phase != PhaseActive && v.Phase != PhaseCreating {
		return failed(volume.CodeConflict, "volume %q is %s; its replicas cannot change now", v.Name, v.Phase)
	}
	if bad := unchanged(&v, c.Changed); bad != nil {
		return *bad
	}
	p := volume.Placement{Primary: v.Placement.Primary, Local: c.Local, Remote: c.Remote}
	if bad := t.placeable(v.Name, p); bad != nil {
		return *bad
	}
	v.Placement = p
	t.putVolume(v)
	t.event(Event{Kind: "volume.replicas", Volume: v.ID, Name: v.Name,
		Message: fmt.Sprintf("volume %s has replicas on %s", v.Name, t.names(p.Replicas()))})
	return Result{Volume: v.ID}
}

func (t *txn) beginHandoff(c BeginHandoff) Result {
	v, bad := t.at1(c.ID, c.Epoch)
	if bad != nil {
		return *bad
	}
	if v.Phase == PhaseMoving && v.Pending.To == c.To {
		return Result{Volume: v.ID} // somebody else asked for the same
	}
	if r := begin(v, "move"); r != nil {
		return *r
	}
	if v.Placement.Role(c.To) != volume.RoleReplica {
		return failed(volume.CodeConflict, "node %s holds no replica of volume %q", t.s.NodeName(c.To), v.Name)
	}
	if !t.s.HasLease(c.To) {
		return failed(volume.CodeConflict, "node %s may not write: it has no lease", t.s.NodeName(c.To))
	}
	if c.Back != "" && (v.Moved == nil || v.Moved.From != c.To || len(t.s.Starting(&v)) == 0) {
		return failed(volume.CodeConflict, "volume %q has no containers that are to go back to %s", v.Name, t.s.NodeName(c.To))
	}
	v.Phase = PhaseMoving
	v.Pending = &Pending{Attempt: c.Attempt, To: c.To, Follow: c.Follow || c.Back != "", Back: c.Back, Began: t.at, MaxPause: c.MaxPause, Services: c.Services}
	t.putVolume(v)
	return Result{Volume: v.ID}
}

func (t *txn) commitHandoff(c CommitHandoff) Result {
	v, bad := t.attempt(c.ID, c.Epoch, c.Attempt, PhaseMoving)
	if bad != nil {
		return *bad
	}
	from, to, p := v.Placement.Primary, v.Pending.To, *v.Pending
	if p.Rollback != nil {
		return failed(volume.CodeConflict, "volume %q is being rolled back, not moved", v.Name)
	}
	if !t.s.HasLease(to) {
		return failed(volume.CodeConflict, "node %s may not write: it has no lease any more", t.s.NodeName(to))
	}
	v.Placement = t.rezone(v.Placement.Swap(to))
	v.Epoch, v.Start = v.Epoch.Next(), c.Final
	was := v.Moved
	v.Phase, v.Pending, v.LastRefusal, v.Moved = PhaseActive, nil, nil, nil
	kind, why := "volume.moved", ""
	switch {
	case p.Back != "":
		kind, why = "volume.moved-back", ": "+p.Back
		v.LastRefusal = &Refusal{Attempt: p.Attempt, Reason: p.Back, At: t.at, To: from, Follow: true}
		if was != nil {
			v.LastRefusal.Attempt = was.Attempt
		}
	case p.Follow:
		v.Moved = &Moved{From: from, Attempt: p.Attempt, Began: p.Began, At: t.at, Times: c.Times, Services: p.Services}
	}
	t.putVolume(v)
	if !p.Follow {
		t.stayBehind(v.ID, from)
	}
	t.event(Event{Kind: kind, Volume: v.ID, Name: v.Name, Node: to,
		Message: fmt.Sprintf("volume %s moved from %s to %s%s", v.Name, t.s.NodeName(from), t.s.NodeName(to), why)})
	return Result{Volume: v.ID}
}

func (t *txn) beginDelete(c BeginDelete) Result {
	v, bad := t.at1(c.ID, c.Epoch)
	if bad != nil {
		return *bad
	}
	if v.Phase == PhaseDeleting {
		return Result{Volume: v.ID}
	}
	if r := begin(v, "removal"); r != nil {
		return *r
	}
	if m := v.Migration; m != nil {
		return failed(volume.CodeConflict, "volume %q is being migrated to %s; its removal has to wait", v.Name, t.s.NodeName(m.To))
	}
	v.Phase = PhaseDeleting
	v.Pending = &Pending{Attempt: c.Attempt, Began: t.at}
	t.putVolume(v)
	return Result{Volume: v.ID}
}

func (t *txn) commitDelete(c CommitDelete) Result {
	v, bad := t.attempt(c.ID, c.Epoch, c.Attempt, PhaseDeleting)
	if bad != nil {
		return *bad
	}
	v.Phase, v.Pending, v.LastRefusal, v.Deleted = PhaseTrash, nil, nil, t.at
	t.putVolume(v)
	t.s.names, _, _ = t.s.names.Delete([]byte(v.Name))
	t.event(Event{Kind: "volume.removed", Volume: v.ID, Name: v.Name,
		Message: fmt.Sprintf("volume %s is in the trash until %s", v.Name,
			t.at.Add(t.s.cluster.Settings.TrashKeep()).UTC().Format(time.RFC3339))})
	return Result{Volume: v.ID}
}

// abort ends an attempt without its effect.
func (t *txn) abort(id volume.ID, e volume.Epoch, attempt, reason string, in Phase, kind string) Result {
	v, bad := t.attempt(id, e, attempt, in)
	if bad != nil {
		return *bad
	}
	if v.Pending.Follow {
		t.unseen(v.ID, v.Placement.Primary)
	}
	if v.Pending.Rollback != nil {
		kind = "volume.rollback-refused"
	}
	v.LastRefusal = v.refusal(reason, t.at)
	v.Phase, v.Pending = PhaseActive, nil
	t.putVolume(v)
	t.event(Event{Kind: kind, Volume: v.ID, Name: v.Name,
		Message: fmt.Sprintf("volume %s stays as it is: %s", v.Name, reason)})
	return Result{Volume: v.ID}
}

func (t *txn) undelete(c Undelete) Result {
	v := t.s.Volume(c.ID)
	switch {
	case v == nil || v.Phase == PhasePurged:
		return failed(volume.CodeNotFound, "no volume %s in the trash", c.ID)
	case v.Phase != PhaseTrash:
		return failed(volume.CodeConflict, "volume %q is not in the trash", v.Name)
	case t.s.VolumeByName(c.Name) != nil:
		return failed(volume.CodeConflict, "a volume named %q exists; restore under another name", c.Name)
	}
	back := *v
	back.Name, back.Phase, back.Deleted = c.Name, PhaseActive, time.Time{}
	without := t.giveUpTaken(&back)
	t.putVolume(back)
	t.s.names, _, _ = t.s.names.Insert([]byte(back.Name), back.ID)
	t.event(Event{Kind: "volume.restored", Volume: v.ID, Name: c.Name,
		Message: fmt.Sprintf("volume %s is back from the trash%s", c.Name, without)})
	t.settle(back)
	return Result{Volume: v.ID}
}

func (t *txn) purge(c PurgeVolume) Result {
	v := t.s.Volume(c.ID)
	if v == nil || v.Phase == PhasePurged {
		return Result{Volume: c.ID}
	}
	if v.Phase != PhaseTrash {
		return failed(volume.CodeConflict, "volume %q is not in the trash", v.Name)
	}
	if bad := unchanged(v, c.Changed); bad != nil {
		return *bad
	}
	gone := *v
	gone.Phase = PhasePurged
	t.putVolume(gone)
	t.withoutVolume(v.ID)
	t.event(Event{Kind: "volume.purged", Volume: v.ID, Name: v.Name,
		Message: fmt.Sprintf("volume %s left the trash for good", v.Name)})
	return Result{Volume: v.ID}
}

func (t *txn) forget(c ForgetVolume) Result {
	v := t.s.Volume(c.ID)
	if v == nil {
		return Result{}
	}
	if v.Phase != PhasePurged {
		return failed(volume.CodeConflict, "volume %q is not purged", v.Name)
	}
	t.s.volumes, _, _ = t.s.volumes.Delete([]byte(c.ID))
	return Result{}
}

// placeable checks that a placement has a primary and names members once each.
func (t *txn) placeable(name string, p volume.Placement) *Result {
	seen := map[volume.NodeID]bool{}
	for _, id := range append([]volume.NodeID{p.Primary}, p.Replicas()...) {
		if n := t.s.Node(id); n == nil || n.Removed || seen[id] {
			r := failed(volume.CodeInvalid, "volume %q: node %q is unknown, removed or named twice", name, id)
			return &r
		} else if n.Witness {
			r := failed(volume.CodeInvalid, "volume %q: node %s is a witness and keeps no data", name, n.Name)
			return &r
		}
		seen[id] = true
	}
	return nil
}

// at1 is a copy of the volume if it is at this epoch.
func (t *txn) at1(id volume.ID, e volume.Epoch) (Volume, *Result) {
	v := t.s.Volume(id)
	if v == nil {
		r := failed(volume.CodeNotFound, "no volume %s", id)
		return Volume{}, &r
	}
	if v.Epoch != e {
		r := failed(volume.CodeConflict, "volume %q is at epoch %s, not %s", v.Name, v.Epoch, e)
		return Volume{}, &r
	}
	return *v, nil
}

// unchanged refuses what was decided about an earlier version of the volume; 0 is any.
func unchanged(v *Volume, seen uint64) *Result {
	if seen == 0 || seen == v.Changed {
		return nil
	}
	r := failed(volume.CodeConflict, "volume %q has changed meanwhile; try again", v.Name)
	return &r
}

// attempt is a copy of the volume if this very attempt is pending.
func (t *txn) attempt(id volume.ID, e volume.Epoch, attempt string, in Phase) (Volume, *Result) {
	v, bad := t.at1(id, e)
	if bad != nil {
		return v, bad
	}
	if v.Phase != in || v.Pending == nil || v.Pending.Attempt != attempt {
		r := failed(volume.CodeConflict, "volume %q: that attempt is over", v.Name)
		return v, &r
	}
	return v, nil
}

// begin checks that nothing else is under way.
func begin(v Volume, what string) *Result {
	if v.Phase == PhaseActive {
		return nil
	}
	code, doing := volume.CodeConflict, map[Phase]string{
		PhaseCreating: "is still being made", PhaseMoving: "is being moved", PhaseDeleting: "is being removed", PhaseElecting: "is getting another primary",
		PhaseTrash: "is in the trash", PhasePurged: "is gone",
	}[v.Phase]
	if !v.Live() {
		code = volume.CodeNotFound
	}
	if v.Pending != nil && v.Pending.Rollback != nil {
		doing = "is being rolled back"
	}
	r := failed(code, "volume %q %s; its %s has to wait", v.Name, doing, what)
	return &r
}

// rezone sorts the followers into local and remote by the zones of today, as seen
// from the primary.
func (t *txn) rezone(p volume.Placement) volume.Placement {
	home := volume.DefaultZone
	if n := t.s.Node(p.Primary); n != nil {
		home = n.Zone
	}
	out := volume.Placement{Primary: p.Primary}
	for _, id := range p.Replicas() {
		if n := t.s.Node(id); n == nil || n.Zone == home {
			out.Local = append(out.Local, id)
		} else {
			out.Remote = append(out.Remote, id)
		}
	}
	return out
}

func (t *txn) putNode(n Node) {
	t.s.nodes, _, _ = t.s.nodes.Insert([]byte(n.ID), &n)
}

func (t *txn) putVolume(v Volume) {
	v.Changed = t.index
	t.s.volumes, _, _ = t.s.volumes.Insert([]byte(v.ID), &v)
}

func (t *txn) event(e Event) {
	t.s.eventSeq++
	e.Seq, e.At = t.s.eventSeq, t.at
	t.s.events, _, _ = t.s.events.Insert(key64(e.Seq), &e)
	t.s.events = trim(t.s.events, maxEvents)
}

func (t *txn) remember(id string, res Result) {
	if id == "" {
		return
	}
	t.s.requests, _, _ = t.s.requests.Insert([]byte(id), &request{ID: id, Index: t.index, Result: res})
	t.s.answered, _, _ = t.s.answered.Insert(key64(t.index), id)
	for t.s.answered.Len() > maxRequests {
		k, oldest, _ := t.s.answered.Root().Minimum()
		t.s.answered, _, _ = t.s.answered.Delete(k)
		t.s.requests, _, _ = t.s.requests.Delete([]byte(oldest))
	}
}

func (t *txn) names(ids []volume.NodeID) string {
	if len(ids) == 0 {
		return "no node"
	}
	out := ""
	for i, id := range ids {
		if i > 0 {
			out += ", "
		}
		out += t.s.NodeName(id)
	}
	return out
}

// trim drops the entries with the lowest keys.
func trim[T any](tree *iradix.Tree[T], limit int) *iradix.Tree[T] {
	for tree.Len() > limit {
		k, _, _ := tree.Root().Minimum()
		tree, _, _ = tree.Delete(k)
	}
	return tree
}

func set[T any](dst *T, src *T) {
	if src != nil {
		*dst = *src
	}
}

func failed(code volume.Code, format string, args ...any) Result {
	return Result{Err: volume.Errorf(code, format, args...)}
}
