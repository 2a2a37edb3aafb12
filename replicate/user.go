package replicate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// Kinds of snapshot, by who takes and who destroys them.
const (
	KindEngine    = "engine"
	KindScheduled = "scheduled"
	KindUser      = "user"
)

// Snapshot is one of a copy's snapshots, as people see it.
type Snapshot struct {
	Name  string
	GUID  uint64
	Taken time.Time // by ZFS, in whole seconds
	// CreateTXG orders it among this copy's snapshots and bookmarks; a copy elsewhere has others.
	CreateTXG uint64
	Kind      string // KindEngine, KindScheduled or KindUser
	// Rule is the period of a scheduled one's rule, else 0.
	Rule time.Duration
	// Used is what destroying it alone would free, Referenced what it shows, Written
	// what was written since the one before. Bytes.
	Used, Referenced, Written int64
	// Held says that a hold or a clone is on it, so that it cannot be destroyed. Holds is how
	// many of the former, Clones are the datasets of the latter.
	Held   bool
	Holds  int
	Clones []string
	// Prepared are the containers that wrote down what they had, or stood still, for it. It is
	// known of the copy that it was taken of: streams carry no properties of snapshots.
	Prepared []string
}

// Prepared is a container that got ready for a snapshot of several volumes, with those of them
// that it uses.
type Prepared struct {
	Container string
	Volumes   []volume.ID
}

// describe is of a snapshot of the copy of id.
func describe(z zfs.Snapshot, id volume.ID) Snapshot {
	s := Snapshot{Name: z.Name, GUID: z.GUID, Taken: z.Creation, CreateTXG: z.CreateTXG, Kind: KindUser,
		Used: z.Used, Referenced: z.Referenced, Written: z.Written, Held: z.UserRefs > 0 || len(z.Clones) > 0,
		Holds: int(z.UserRefs), Clones: z.Clones}
	for one := range strings.SplitSeq(z.User[propPrepared], ",") {
		if name, of, _ := strings.Cut(one, ":"); slices.Contains(strings.Split(of, ":"), string(id)) {
			s.Prepared = append(s.Prepared, name)
		}
	}
	switch n := newSnap(z); {
	case n.engine():
		s.Kind = KindEngine
	case n.rule > 0:
		s.Kind, s.Rule = KindScheduled, n.rule
	}
	return s
}

// Snapshots lists the copy's snapshots for people, oldest first, engine's too. It
// reads the disk. Of a copy that is just being set aside in part it is CodeUnavailable: what
// is not in one part may be in the other.
func (e *Engine) Snapshots(ctx context.Context, id volume.ID) ([]Snapshot, error) {
	e.mu.Lock()
	halved := e.leftover[id]
	e.mu.Unlock()
	list, err := e.listed(ctx, id)
	e.mu.Lock()
	halved = halved || e.leftover[id]
	e.mu.Unlock()
	if halved && (err == nil || volume.CodeOf(err) == volume.CodeNotFound) {
		fork, ferr := lookup(ctx, e.cfg.Pool, e.cfg.fork(id))
		switch {
		case ferr != nil:
			return nil, ferr
		case fork != nil:
			return nil, volume.Errorf(volume.CodeUnavailable, "%v: volume %s", errParting, id).WithHint("try again")
		}
		list, err = e.listed(ctx, id) // that was over just now, or is a seed
	}
	if err != nil {
		return nil, err
	}
	out := make([]Snapshot, 0, len(list))
	for _, z := range list {
		out = append(out, describe(z, id))
	}
	return out, nil
}

// SnapshotNamed is one of them, and whether there is one: what a command says of it alone is less than of a copy
// with many. Who got ready for it is not in that.
func (e *Engine) SnapshotNamed(ctx context.Context, id volume.ID, name string) (s Snapshot, ok bool, err error) {
	halved := func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.leftover[id]
	}
	if !halved() {
		list, err := e.cfg.Pool.SnapshotsNamed(ctx, []string{e.cfg.dataset(id) + "@" + name})
		if err == nil && len(list) == 1 && !halved() {
			return describe(list[0], id), true, nil
		}
	}
	all, err := e.Snapshots(ctx, id) // which says what is the matter, if anything is
	if err != nil {
		return Snapshot{}, false, err
	}
	i := slices.IndexFunc(all, func(s Snapshot) bool { return s.Name == name })
	if i < 0 {
		return Snapshot{}, false, nil
	}
	return all[i], true, nil
}

func (e *Engine) listed(ctx context.Context, id volume.ID) ([]zfs.Snapshot, error) {
	list, err := e.cfg.Pool.Snapshots(ctx, e.cfg.dataset(id), false)
	if errors.Is(err, zfs.ErrNotFound) {
		return nil, noCopy(id)
	}
	if err != nil {
		return nil, fmt.Errorf("listing the snapshots of volume %s: %w", id, err)
	}
	return list, nil
}

func noCopy(id volume.ID) error {
	return volume.Errorf(volume.CodeNotFound, "volume %s has no dataset on this node", id)
}

// SnapshotCounts is how many snapshots each copy on this node has, the engine's
// included, from memory; nil until the disk has been read.
func (e *Engine) SnapshotCounts() map[volume.ID]int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.surveyed {
		return nil
	}
	counts := make(map[volume.ID]int, len(e.copies))
	for id, c := range e.copies {
		counts[id] = len(c.snaps)
	}
	return counts
}

// Holds says which of these guids this node's copy of a volume has, as snapshot or
// as a bookmark that flocker left, whatever its role. Another node destroys a copy on
// this word, so it is the disk's and not the memory's: a dataset may have been rolled
// back or destroyed by hand since it was last looked at. To have no copy is
// CodeNotFound, for not to know is not to have none.
func (e *Engine) Holds(ctx context.Context, id volume.ID, guids []uint64) (map[uint64]bool, error) {
	snaps, err := e.listed(ctx, id)
	if err != nil {
		return nil, err
	}
	// After the snapshots: one that goes in between leaves its bookmark here.
	marks, err := e.cfg.Pool.Bookmarks(ctx, e.cfg.dataset(id), false)
	if errors.Is(err, zfs.ErrNotFound) {
		return nil, noCopy(id)
	}
	if err != nil {
		return nil, fmt.Errorf("listing the bookmarks of volume %s: %w", id, err)
	}
	var c localCopy
	c.setSnapshots(snaps)
	c.setBookmarks(marks)
	has := make(map[uint64]bool, len(guids))
	for _, g := range guids {
		has[g] = c.had(guid(g))
	}
	return has, nil
}

// primaryOf finds the copy of a volume whose primary this node is. The caller holds mu.
func (e *Engine) primaryOf(id volume.ID) (*Assignment, *localCopy, error) {
	a, c := e.table[id], e.copies[id]
	switch {
	case a == nil || a.Role != volume.RolePrimary:
		return nil, nil, volume.Errorf(volume.CodeConflict, "this node is not the primary of volume %s", id)
	case c != nil && (c.epoch > a.Epoch || c.badEpoch != ""):
		return nil, nil, volume.Errorf(volume.CodeConflict, "this node's copy of volume %s has seen another epoch than its assignment", id)
	case c != nil && c.parting():
		return nil, nil, volume.Errorf(volume.CodeUnavailable, "%v: volume %s", errParting, id).WithHint("try again")
	}
	return a, c, nil
}

// TakeSnapshot takes a user's snapshot of all these volumes in one transaction
// group: of all or of none. This node is the primary of each; name is checked by
// volume.ValidateSnapshotName; prepared are the containers that got ready for it, and are until
// TakeSnapshot returns or ctx ends. It returns when they are on this node's disk; the
// engine's next snapshot, which is due because of them, carries them to the replicas.
func (e *Engine) TakeSnapshot(ctx context.Context, ids []volume.ID, name string, prepared ...Prepared) error {
	if err := acquire(ctx, e.snapping); err != nil {
		return err
	}
	defer release(e.snapping)
	if err := e.MayTake(ctx, ids, name); err != nil {
		return err
	}
	names := map[volume.ID]string{}
	for _, id := range ids {
		names[id] = name
	}
	mark, left := preparedProperty(prepared)
	if left > 0 {
		e.cfg.Log.Warn("not all containers that got ready for a snapshot can be named with it", "snapshot", name, "left out", left)
	}
	var said error
	taken, err := e.shoot(ctx, KindUser, names, func(ctx context.Context, full []string) ([]zfs.Snapshot, error) {
		said = e.cfg.Pool.Snapshot(ctx, full, mark)
		return nil, said
	}, func(id volume.ID, c *localCopy, s snap) {})
	// A command of which nobody knows the outcome may have taken them when it was killed, and a pool that hung does so then.
	if ctx.Err() != nil && err != nil && mark != nil && !errors.Is(said, zfs.ErrExists) {
		e.notPrepared(context.WithoutCancel(ctx), ids, name)
	}
	if errors.Is(err, zfs.ErrExists) {
		return exists(name, strings.Join(blamed(err), ", "))
	}
	// Their being there counts, whatever the command said.
	if err != nil && len(taken) < len(names) {
		return fmt.Errorf("taking snapshot %s: %w", name, err)
	}
	wake(e.wakeCadence) // the engine's next one carries it to the replicas
	return nil
}

// notPrepared takes back what a snapshot says of containers that got ready for it: it came, if it
// did, when they had not to be ready any more.
func (e *Engine) notPrepared(ctx context.Context, ids []volume.ID, name string) {
	ctx, cancel := context.WithTimeout(ctx, unmarkPatience)
	defer cancel()
	for _, id := range ids {
		if err := e.cfg.Pool.Inherit(ctx, e.cfg.dataset(id)+"@"+name, propPrepared); err != nil && !errors.Is(err, zfs.ErrNotFound) {
			e.cfg.Log.Error("a snapshot that came late may say of containers that they were ready for it; nobody knows whether they were",
				"volume", id, "snapshot", name, "err", err)
		}
	}
}

// unmarkPatience is long: the pool has just hung.
const unmarkPatience = time.Minute

// maxTogether is how many volumes may get snapshots at one moment. That many names fit into one
// command; of several commands the first would stay when the second fails, and be older.
const maxTogether = 1000

// MayTake says why TakeSnapshot would refuse, as far as that is known ahead: nobody has
// to get ready for a snapshot that cannot be.
func (e *Engine) MayTake(ctx context.Context, ids []volume.ID, name string) error {
	if err := volume.ValidateSnapshotName(name); err != nil {
		return err
	}
	if len(ids) > maxTogether {
		return volume.Errorf(volume.CodeInvalid, "%d volumes are too many for one moment: %d at most", len(ids), maxTogether)
	}
	for _, id := range ids {
		if err := e.mayTake(ctx, id, name); err != nil {
			return err
		}
	}
	return e.noneFrozen(ids) // while the copies of others were read
}

// maxPrepared is how long what says of containers that they got ready may be together: zfs
// takes 8 KiB.
const maxPrepared = 4 << 10

// preparedProperty is set with the snapshots, not after them: what has it was taken so. One
// command takes all of them, with the same properties, so it says who is ready for which. left
// is how many containers it does not name for want of room.
func preparedProperty(containers []Prepared) (props map[string]string, left int) {
	var value strings.Builder
	for i, c := range containers {
		one := c.Container
		for _, id := range c.Volumes {
			one += ":" + string(id)
		}
		if value.Len()+1+len(one) > maxPrepared {
			left = len(containers) - i
			break
		}
		if value.Len() > 0 {
			value.WriteByte(',')
		}
		value.WriteString(one)
	}
	if value.Len() == 0 {
		return nil, left
	}
	return map[string]string{propPrepared: value.String()}, left
}

// blamed are the datasets that zfs named in its complaint.
func blamed(err error) (names []string) {
	var z *zfs.Error
	if errors.As(err, &z) {
		for _, name := range z.Names {
			ds, _, _ := strings.Cut(name, "@")
			names = append(names, ds[strings.LastIndex(ds, "/")+1:])
		}
	}
	return names
}

func exists(name, of string) error {
	return volume.Errorf(volume.CodeConflict, "snapshot %s of volume %s exists already", name, of).
		WithHint("flockctl snapshot inspect shows when it was taken, as by a command whose answer was lost; else choose another name, or remove that snapshot first")
}

// mayTake says why a user's snapshot of this name cannot be taken.
func (e *Engine) mayTake(ctx context.Context, id volume.ID, name string) error {
	e.mu.Lock()
	_, c, err := e.primaryOf(id)
	known := c != nil && c.known
	e.mu.Unlock()
	if err == nil && !known {
		if err = e.see(ctx, id); errors.Is(err, zfs.ErrNotFound) {
			return noCopy(id)
		}
	}
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	a, c, err := e.primaryOf(id)
	switch {
	case err != nil:
		return err
	case c == nil || !c.known:
		return volume.Errorf(volume.CodeUnavailable, "this node's copy of volume %s is being read", id).WithHint("try again")
	case a.Frozen:
		// The copy that goes on may have had its last increment already.
		return moving(id)
	case slices.ContainsFunc(c.snaps, func(s snap) bool { return s.name == name }):
		return exists(name, string(id))
	}
	return nil
}

// noneFrozen refuses where a volume is frozen, or gone.
func (e *Engine) noneFrozen(ids []volume.ID) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, id := range ids {
		if a, _, err := e.primaryOf(id); err != nil {
			return err
		} else if a.Frozen {
			return moving(id)
		}
	}
	return nil
}

func moving(id volume.ID) error {
	return volume.Errorf(volume.CodeUnavailable, "volume %s is being moved or removed", id).WithHint("try again when that is over")
}

// RemoveSnapshot destroys a user's or a scheduled snapshot here, and on all
// replicas through the bookmark that it leaves: a tombstone, which tells them its
// guid. Replicas that are away follow when they are back.
func (e *Engine) RemoveSnapshot(ctx context.Context, id volume.ID, name string) error {
	if _, _, ours := volume.ParseSnapshotName(name); ours {
		return volume.Errorf(volume.CodeRefused, "snapshot %s is one that replication works with", name).
			WithHint("it is destroyed when no replica needs it any more")
	}
	if err := acquire(ctx, e.pruning); err != nil {
		return err
	}
	defer release(e.pruning)
	list, err := e.primaryListing(ctx, id)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list, func(z zfs.Snapshot) bool { return z.Name == name })
	if i < 0 {
		return volume.Errorf(volume.CodeNotFound, "volume %s has no snapshot %s", id, name)
	}
	if e.cfg.Held != nil && slices.Contains(e.cfg.Held(id), list[i].GUID) {
		return volume.Errorf(volume.CodeRefused, "snapshot %s of volume %s is held", name, id).WithHint("flockctl snapshot release lets go of it")
	}
	if z := list[i]; z.UserRefs > 0 {
		return held(id, name)
	} else if len(z.Clones) > 0 {
		return cloned(id, name, z.Clones)
	}
	failed, err := e.remove(ctx, id, list[i:i+1])
	if err == nil {
		err = failed[list[i].FullName()]
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, zfs.ErrHasClones):
		return cloned(id, name, nil)
	case errors.Is(err, zfs.ErrBusy):
		return volume.Errorf(volume.CodeUnavailable, "snapshot %s of volume %s is in use: it is being sent or read", name, id).
			WithHint("try again")
	}
	return fmt.Errorf("removing snapshot %s of volume %s: %w", name, id, err)
}

// Pruned returns when nothing is being destroyed that was to be when it was called: what
// Config.Held says by then has been heeded by all that comes.
func (e *Engine) Pruned(ctx context.Context) error {
	if err := acquire(ctx, e.pruning); err != nil {
		return err
	}
	release(e.pruning)
	return nil
}

func held(id volume.ID, name string) error {
	return volume.Errorf(volume.CodeRefused, "snapshot %s of volume %s is held", name, id).
		WithHint("zfs holds on the primary's node shows by whom; zfs release lets go of it")
}

func cloned(id volume.ID, name string, clones []string) error {
	hint := "remove them first"
	if len(clones) > 0 {
		hint = "remove them first: " + strings.Join(clones, ", ")
	}
	return volume.Errorf(volume.CodeRefused, "snapshot %s of volume %s has clones", name, id).WithHint("%s", hint)
}

// primaryListing is listed for the volume's primary, which knows its copy. Not while
// it is frozen: the next primary would not hear of what is removed now.
func (e *Engine) primaryListing(ctx context.Context, id volume.ID) ([]zfs.Snapshot, error) {
	e.mu.Lock()
	a, c, err := e.primaryOf(id)
	known := c != nil && c.known
	e.mu.Unlock()
	if err == nil && a.Frozen {
		return nil, moving(id)
	}
	if err == nil && !known {
		if err = e.see(ctx, id); errors.Is(err, zfs.ErrNotFound) {
			return nil, noCopy(id)
		}
	}
	if err != nil {
		return nil, err
	}
	return e.listed(ctx, id)
}

// PrunePlan says which scheduled snapshots of this node's copy a policy would have
// destroyed, oldest first: of each rule all but the newest, and all of rules that
// the policy does not have. It changes nothing. Those that something holds on to,
// or that a replica stands on, are not among them.
func (e *Engine) PrunePlan(ctx context.Context, id volume.ID, policy volume.SnapshotPolicy) ([]Snapshot, error) {
	list, err := e.listed(ctx, id)
	if err != nil {
		return nil, err
	}
	var plan []Snapshot
	for _, z := range e.prunable(id, list, policy) {
		plan = append(plan, describe(z, id))
	}
	return plan, nil
}

// prunable is PrunePlan of a listing.
func (e *Engine) prunable(id volume.ID, list []zfs.Snapshot, policy volume.SnapshotPolicy) []zfs.Snapshot {
	e.mu.Lock()
	stay := map[guid]bool{}
	if c := e.copies[id]; c != nil {
		stay = e.kept(id, c, time.Now()).stay
	}
	e.mu.Unlock()
	byGUID := map[guid]zfs.Snapshot{}
	var snaps []snap
	for _, z := range list {
		byGUID[guid(z.GUID)] = z
		snaps = append(snaps, newSnap(z))
	}
	var out []zfs.Snapshot
	for _, s := range surplus(snaps, policy, true) {
		if !s.pinned && !stay[s.guid] {
			out = append(out, byGUID[s.guid])
		}
	}
	return out
}

// Prune destroys what PrunePlan names, now, here and through tombstones on the replicas. Only the
// primary does. It returns what is destroyed, also when some of it could not be. The policy that is
// assigned may be an older one, and one that the caller knows, too, once what others destroy was waited for: so it is
// asked for after that.
func (e *Engine) Prune(ctx context.Context, id volume.ID, ask func(context.Context) (volume.SnapshotPolicy, error)) ([]Snapshot, error) {
	if err := acquire(ctx, e.pruning); err != nil {
		return nil, err
	}
	defer release(e.pruning)
	policy, err := ask(ctx)
	if err != nil {
		return nil, err
	}
	list, err := e.primaryListing(ctx, id)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	_, _, err = e.primaryOf(id)
	e.mu.Unlock()
	if err != nil {
		return nil, err
	}
	plan := e.prunable(id, list, policy)
	failed, err := e.remove(ctx, id, plan)
	if err != nil {
		return nil, fmt.Errorf("pruning volume %s: %w", id, err)
	}
	var gone []Snapshot
	var left []error
	for _, z := range plan {
		if why := failed[z.FullName()]; why != nil {
			left = append(left, fmt.Errorf("snapshot %s of volume %s stays: %w", z.Name, id, why))
		} else {
			gone = append(gone, describe(z, id))
		}
	}
	return gone, errors.Join(left...)
}

// remove destroys snapshots of a primary's copy and leaves tombstones. On a full pool,
// which has room for none, it does without, so that what people remove to make room
// goes: replicas then hear of it as long as this process lives. One that a replica may
// stand on stays. The caller has e.pruning.
func (e *Engine) remove(ctx context.Context, id volume.ID, list []zfs.Snapshot) (failed map[string]error, err error) {
	var snaps []snap
	for _, z := range list {
		snaps = append(snaps, newSnap(z))
	}
	e.mu.Lock()
	c := e.copyOf(id)
	doomed := e.condemn(id, c, snaps, snaps, true)
	e.mu.Unlock()
	failed, err = e.destroy(ctx, doomed)
	if bare := e.bare(id, c, list, failed); err == nil && len(bare) > 0 {
		var again map[string]error
		again, err = e.destroy(ctx, bare)
		for _, d := range bare {
			delete(failed, e.cfg.dataset(id)+"@"+d.snap.name)
		}
		maps.Copy(failed, again)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c.burials++
	for _, z := range list {
		if err == nil && failed[z.FullName()] == nil {
			c.removed[guid(z.GUID)] = c.burials
		}
	}
	e.forgetRemoved(id) // without a replica nobody has to hear of it
	e.wakeVolume(id)
	return failed, err
}

// bare condemns once more those that stay because the pool has no room for their
// bookmarks, without one.
func (e *Engine) bare(id volume.ID, c *localCopy, list []zfs.Snapshot, failed map[string]error) []doomed {
	e.mu.Lock()
	defer e.mu.Unlock()
	k := e.kept(id, c, time.Now())
	var snaps []snap
	for _, z := range list {
		if s := newSnap(z); errors.Is(failed[z.FullName()], zfs.ErrNoSpace) && !k.reachable[s.guid] && !k.stay[s.guid] {
			snaps = append(snaps, s)
		}
	}
	if len(snaps) == 0 {
		return nil
	}
	return e.condemn(id, c, snaps, nil, true)
}
