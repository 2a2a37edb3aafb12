package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
	"github.com/flocker-io/flocker/zfs"
)

// asidePoll is how often set-aside copies are listed without a reason.
const asidePoll = 30 * time.Second

// LookAside makes the next look list the set-aside copies: there may be a new one.
func (a *Agent) LookAside() {
	a.mu.Lock()
	a.asidesAt = time.Time{}
	a.asideNews++
	a.mu.Unlock()
	a.Wake()
}

// lookAside lists what is set aside on this node, now and then, and has a job let go
// of what has been kept for long enough.
func (a *Agent) lookAside(ctx context.Context, jobs *sync.WaitGroup) error {
	a.mu.Lock()
	wait, news := time.Since(a.asidesAt) < asidePoll, a.asideNews
	a.mu.Unlock()
	if wait {
		return nil
	}
	asked := time.Now()
	list, err := a.zfs.Datasets(ctx, a.layout.Aside())
	if err != nil {
		return fmt.Errorf("listing %s: %w", a.layout.Aside(), err)
	}
	var asides []volume.Aside
	for _, d := range list {
		if x, ok := replicate.ParseAside(d, a.layout.Aside()); ok {
			asides = append(asides, x)
		}
	}
	a.mu.Lock()
	a.asides = asides
	if a.asideNews == news {
		a.asidesAt = asked
	}
	busy := a.expiring
	a.mu.Unlock()

	s := a.cluster.State()
	if busy || a.clock == nil || s.Cluster() == nil {
		return nil
	}
	over := expired(asides, a.clock(), s.Cluster().Settings.AsideKeep())
	if len(over) == 0 {
		return nil
	}
	a.mu.Lock()
	a.expiring = true
	a.mu.Unlock()
	jobs.Go(func() {
		for _, x := range over {
			if err := a.RemoveAside(ctx, x.Name); err != nil {
				a.log.Warn("a set-aside copy should go and cannot", "aside", x.Name, "err", err)
				continue
			}
			a.log.Info("a set-aside copy has been kept for long enough and is gone", "aside", x.Name, "since", x.At, "reason", x.Reason)
		}
		a.mu.Lock()
		a.expiring = false
		a.mu.Unlock()
	})
	return nil
}

// expired are the copies that were set aside longer ago than keep. One whose time is
// not known never is, and without a clock to trust nothing is.
func expired(asides []volume.Aside, now time.Time, keep time.Duration) []volume.Aside {
	var out []volume.Aside
	for _, x := range asides {
		if !now.IsZero() && !x.At.IsZero() && now.Sub(x.At) > keep {
			out = append(out, x)
		}
	}
	return out
}

// RemoveAside destroys the set-aside copy of that name, for good. It blocks until it
// is gone. What was cloned from it keeps what it needs. One that a volume is being
// made of is refused with CodeConflict, and a name that is not there with
// CodeNotFound.
func (a *Agent) RemoveAside(ctx context.Context, name string) error {
	ds := a.layout.Aside() + "/" + name
	x, ok := replicate.ParseAside(zfs.Dataset{Name: ds}, a.layout.Aside())
	if !ok {
		return volume.Errorf(volume.CodeInvalid, "%q is not the name of a set-aside copy", name).WithHint("`flockctl aside list` shows them")
	}
	// The lock of the volume that it was a copy of, which adopt takes, too.
	unlock, err := a.locks.lock(ctx, x.Volume)
	if err != nil {
		return err
	}
	defer unlock()
	for v := range a.cluster.State().Volumes() {
		if v.Adopt == name && v.Placement.Primary == a.self && v.Phase == state.PhaseCreating {
			return volume.Errorf(volume.CodeConflict, "volume %q is just being made of set-aside copy %s", v.Name, name)
		}
	}
	d, err := a.zfs.Dataset(ctx, ds)
	switch {
	case errors.Is(err, zfs.ErrNotFound):
		return volume.Errorf(volume.CodeNotFound, "no set-aside copy %s on %s", name, a.name()).WithHint("`flockctl aside list` shows them")
	case err != nil:
		return err
	case d.Mounted:
		return volume.Errorf(volume.CodeConflict, "set-aside copy %s is mounted on %s", name, a.name()).WithHint("unmount %s first", ds)
	}
	defer a.LookAside()
	return a.destroy(ctx, ds)
}

// destroy destroys a dataset and its snapshots. What was cloned from it is promoted
// first, so that it keeps what it stands on: a copy set aside, a volume that was made of
// one, a clone.
func (a *Agent) destroy(ctx context.Context, name string) error {
	ended := map[string]bool{} // first copies that hung on it
	// Each promotion frees at least one clone, and makes the others depend on that one.
	for range maxClones {
		err := a.zfs.Destroy(ctx, name)
		if !errors.Is(err, zfs.ErrHasClones) {
			return err
		}
		clones, lerr := a.clonesOf(ctx, name)
		if lerr != nil {
			return errors.Join(err, lerr)
		}
		if len(clones) == 0 {
			return fmt.Errorf("%w; it is none of flocker's", err)
		}
		// A first copy that is not complete must not be promoted: with what it stands on its own it
		// could neither be gone on with nor be thrown away. It ends, or becomes the volume's copy.
		if i := slices.IndexFunc(clones, func(d zfs.Dataset) bool { _, seed := seedOf(a.layout.Root(), d.Name); return seed }); i >= 0 {
			id, _ := seedOf(a.layout.Root(), clones[i].Name)
			if ended[clones[i].Name] {
				return fmt.Errorf("%s still hangs on %s; if it is no first copy of a volume, destroy it by hand", clones[i].Name, name)
			}
			ended[clones[i].Name] = true
			if err := a.endSeed(ctx, id); err != nil {
				return fmt.Errorf("ending the first copy of volume %s, which hangs on %s: %w", id, name, err)
			}
			continue
		}
		snaps, err := a.zfs.Snapshots(ctx, name, false)
		if err != nil {
			return err
		}
		clone, whole := heir(clones, snaps, func(ds string) bool { return a.isClone(ds, name) })
		if !whole {
			if err := a.shed(ctx, name, snaps); err != nil {
				return err
			}
		}
		err = a.zfs.Promote(ctx, clone)
		if errors.Is(err, zfs.ErrExists) {
			if err = a.freeNames(ctx, name, clone); err == nil {
				err = a.zfs.Promote(ctx, clone)
			}
		}
		if err != nil {
			return fmt.Errorf("making %s independent of %s: %w", clone, name, err)
		}
		if id, ok := volumeIn(a.layout.Root(), clone); ok {
			a.repl.Refresh(id)
		}
	}
	return fmt.Errorf("%s has more than %d clones", name, maxClones)
}

// seedPatience is how long a first copy that is being received may hold up who destroys what it
// hangs on. Where the original is still wanted here it goes on, perhaps for hours, and locks are
// held meanwhile.
const seedPatience = 10 * time.Second

// endSeed returns when nothing is left of a volume's first copy, or it is the volume's copy.
func (a *Agent) endSeed(ctx context.Context, id volume.ID) error {
	ctx, cancel := context.WithTimeoutCause(ctx, seedPatience, errors.New("it is still being received"))
	defer cancel()
	return a.repl.Settled(ctx, id, func(context.Context) error { return nil })
}

// heir is which of the clones of a dataset that is to be destroyed is promoted next, and
// whether it gets the whole history up to where it stands. What was set aside, and what was
// made of that, went through that history and keeps it; so of these the newest comes first. A
// volume that somebody made a clone of another has no history but its own, nor has what was set aside of it or made of
// that: of these the oldest comes first, when no others are left, so that each gets what it stands on itself.
func heir(clones []zfs.Dataset, snaps []zfs.Snapshot, isClone func(dataset string) bool) (next string, whole bool) {
	at := map[string]int{}
	for i, s := range snaps {
		at[s.FullName()] = i
	}
	best := 0
	for _, d := range clones {
		made, i := isClone(d.Name), at[d.Origin]
		switch {
		case next == "", !made && !whole, !made && i > best, made && !whole && i < best:
			next, whole, best = d.Name, !made, i
		}
	}
	return next, whole
}

// isClone says that a dataset which hangs on another is of a volume, its copy or a part of it or what was set
// aside of it, whose history the other one's is not: one that somebody made a clone, or that was made of what was set
// aside of a clone. Each has its own volume's history, and that of those of whose set-aside copies it was made, and no more.
func (a *Agent) isClone(dataset, on string) bool {
	v := a.cluster.State().Volume(a.volumeOf(dataset))
	return v != nil && !v.WentThrough(a.volumeOf(on))
}

// volumeOf is the volume that a dataset is a copy of, or was; "" of any other.
func (a *Agent) volumeOf(dataset string) volume.ID {
	for _, root := range []string{a.layout.Root(), a.layout.Trash()} {
		if id, ok := volumeIn(root, dataset); ok {
			return id
		}
		if id, ok := partOf(root, dataset); ok {
			return id
		}
	}
	x, _ := replicate.ParseAside(zfs.Dataset{Name: dataset}, a.layout.Aside())
	return x.Volume
}

// freeNames takes the snapshots of name, which is to be destroyed, that have the names
// of snapshots of its clone out of the way of a promotion. They are destroyed; what a
// clone stands on cannot be, and gets another name.
func (a *Agent) freeNames(ctx context.Context, name, clone string) error {
	theirs, err := a.zfs.Snapshots(ctx, clone, false)
	if err != nil {
		return err
	}
	ours, err := a.zfs.Snapshots(ctx, name, false)
	if err != nil {
		return err
	}
	var both []string
	for _, s := range ours {
		switch {
		case !slices.ContainsFunc(theirs, func(t zfs.Snapshot) bool { return t.Name == s.Name }):
		case len(s.Clones) > 0:
			if err := a.zfs.Rename(ctx, s.FullName(), fmt.Sprintf("%s-%d", s.FullName(), s.GUID)); err != nil {
				return err
			}
		default:
			both = append(both, s.Name)
		}
	}
	return a.zfs.DestroySnapshots(ctx, name, both)
}

// shed destroys the snapshots of name, which is to be destroyed, on which no clone stands,
// so that a promotion does not make them a clone's. The others get names of replication's: a
// clone may be promoted on a node that is no primary of it, where its users could never remove
// what they have not taken. So it is pruned as soon as no other clone stands on it. Their epoch
// is none that a volume ever was in, so that no copy seems to hold more than it does: those that
// replication has taken of the original get it as well, for they are nothing of the clone's.
func (a *Agent) shed(ctx context.Context, name string, snaps []zfs.Snapshot) error {
	var bare []string
	for _, s := range snaps {
		if len(s.Clones) == 0 {
			bare = append(bare, s.Name)
		}
	}
	if err := a.zfs.DestroySnapshots(ctx, name, bare); err != nil {
		return err
	}
	for _, s := range snaps {
		if epoch, _, engine := volume.ParseSnapshotName(s.Name); engine && epoch == 0 || len(s.Clones) == 0 {
			continue
		}
		to := volume.Position{Seq: s.GUID % maxSeq}.SnapshotName()
		if err := a.zfs.Rename(ctx, s.FullName(), name+"@"+to); err != nil {
			return fmt.Errorf("renaming %s, on which a clone stands: %w", s.FullName(), err)
		}
	}
	return nil
}

// maxSeq is above what the name of a snapshot of replication has room for.
const maxSeq = 1e12

// maxClones bounds how often destroy promotes one.
const maxClones = 1000

// clonesOf are the datasets of ours whose origin is a snapshot of name.
func (a *Agent) clonesOf(ctx context.Context, name string) ([]zfs.Dataset, error) {
	var out []zfs.Dataset
	for _, root := range []string{a.layout.Aside(), a.layout.Root(), a.layout.Trash()} {
		list, err := a.zfs.Datasets(ctx, root)
		if err != nil {
			return nil, err
		}
		for _, d := range list {
			if strings.HasPrefix(d.Origin, name+"@") {
				out = append(out, d)
			}
		}
	}
	return out, nil
}

// drop lets go of a copy that the volume needs no more: this node is not in its
// placement, so nothing is sent here. It is destroyed only when the primary answers and
// has everything that is in it; otherwise it is set aside. The caller holds the lock.
func (a *Agent) drop(ctx context.Context, v *state.Volume) error {
	if !a.needless(v) {
		return nil
	}
	ds := a.layout.Dataset(v.ID)
	if err := a.files.Unused(ds, ""); err != nil {
		return err
	}
	var aside string // why it is not destroyed
	// While the primary is asked, this node may become a replica again, and then even
	// the primary, and the other one may ask whether its own copy can go. Nothing is
	// received here until this is over, so that it cannot come that far.
	err := a.repl.Settled(ctx, v.ID, func(ctx context.Context) (err error) {
		aside, err = a.dropSettled(ctx, v, ds)
		return err
	})
	if err == nil && aside != "" {
		err = a.repl.SetAside(ctx, v.ID, aside)
	}
	if err == nil {
		a.uncoverOf(v)
	}
	return err
}

// needless says that the volume, as it was found, still needs no copy here.
func (a *Agent) needless(v *state.Volume) bool {
	now := a.cluster.State().Volume(v.ID)
	return now != nil && now.Phase == state.PhaseActive && now.Epoch == v.Epoch && now.Placement.Role(a.self) == volume.RoleNone
}

// dropSettled destroys the copy, or says why it has to be set aside instead.
func (a *Agent) dropSettled(ctx context.Context, v *state.Volume, ds string) (aside string, err error) {
	list, err := a.zfs.Datasets(ctx, ds)
	if errors.Is(err, zfs.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if len(list) == 0 || list[0].Name != ds {
		return "", fmt.Errorf("asking zfs for %s: it succeeded, and did not name it", ds)
	}
	d := list[0]
	snaps, err := a.zfs.Snapshots(ctx, ds, false)
	if err != nil {
		return "", err
	}
	primary := a.cluster.State().NodeName(v.Placement.Primary)
	if a.peers == nil {
		return "", errors.New("the primary cannot be asked whether it has all that is in this copy")
	}
	has, err := a.peers.Holds(ctx, v.Placement.Primary, v.ID, guidsOf(snaps))
	if err != nil {
		return "", fmt.Errorf("asking %s whether it has all that is in this copy: %w", primary, err)
	}
	only := onlyHere(snaps, has)
	switch {
	case !a.needless(v):
		return "", nil
	case len(list) > 1:
		// Nobody replicates what is below a volume, so no other node can have it.
		return fmt.Sprintf("somebody has made %s in it, and this node is no replica any more", list[1].Name), nil
	case len(snaps) == 0:
		return "it has no snapshot by which the primary could tell that it has all that is in it", nil
	case d.Written != 0, d.Mounted:
		return "it was changed on this node, which is no replica any more", nil
	case only != "":
		return fmt.Sprintf("the primary %s lacks its snapshot %s, and this node is no replica any more", primary, only), nil
	}
	if err := a.destroy(ctx, ds); err != nil {
		return "", err
	}
	a.repl.Refresh(v.ID) // nothing is there any more that it could build on
	a.log.Info("a copy that is needed no more is gone", "volume", v.ID, "name", v.Name)
	return "", nil
}

// onlyHere is a snapshot of a copy that may be nowhere else, "" when there is none;
// has says which ones the primary has, as snapshot or bookmark.
//
// Of the engine's only the newest matters: those before it are the history of that
// one, and a primary destroys its own as it goes on. That the primary was there in
// the same epoch proves nothing: it may have been rolled back by hand since. What a
// schedule made goes by the schedule. Of the rest, the primary must have each, or the
// bookmark that says it was removed.
func onlyHere(snaps []zfs.Snapshot, has map[uint64]bool) string {
	var newest zfs.Snapshot
	for _, s := range snaps {
		_, _, scheduled := volume.ParseScheduledName(s.Name)
		_, _, engine := volume.ParseSnapshotName(s.Name)
		switch {
		case engine:
			newest = s
		case !scheduled && !has[s.GUID]:
			return s.Name
		}
	}
	if newest.GUID == 0 || has[newest.GUID] {
		return ""
	}
	return newest.Name
}

func guidsOf(snaps []zfs.Snapshot) []uint64 {
	guids := make([]uint64, len(snaps))
	for i, s := range snaps {
		guids[i] = s.GUID
	}
	return guids
}

// adopt makes the volume's dataset of a set-aside copy. Done again after a crash, it
// goes on. The caller holds the lock of the volume.
func (a *Agent) adopt(ctx context.Context, v *state.Volume, props map[string]string) error {
	if isDataset(v.Adopt) {
		return a.adoptDataset(ctx, v, props)
	}
	from, to := a.layout.Aside()+"/"+v.Adopt, a.layout.Dataset(v.ID)
	x, ok := replicate.ParseAside(zfs.Dataset{Name: from}, a.layout.Aside())
	if !ok {
		return a.propose(ctx, state.AbortCreate{ID: v.ID, Epoch: v.Epoch, Reason: fmt.Sprintf("%q is not the name of a set-aside copy", v.Adopt)})
	}
	// What is just being destroyed, by RemoveAside, must not become a volume half way.
	unlock, err := a.locks.lock(ctx, x.Volume)
	if err != nil {
		return err
	}
	defer unlock()
	if now := a.cluster.State().Volume(v.ID); now == nil || now.Phase != state.PhaseCreating {
		return nil // given up while this waited
	}
	d, err := a.zfs.Dataset(ctx, from)
	if errors.Is(err, zfs.ErrNotFound) {
		if _, err := a.zfs.Dataset(ctx, to); err == nil {
			return nil // renamed before a crash
		} else if !errors.Is(err, zfs.ErrNotFound) {
			return err
		}
		return a.propose(ctx, state.AbortCreate{ID: v.ID, Epoch: v.Epoch, Reason: fmt.Sprintf("there is no set-aside copy %s on %s", v.Adopt, a.name())})
	}
	if err != nil {
		return err
	}
	if d.Mounted {
		return a.propose(ctx, state.AbortCreate{ID: v.ID, Epoch: v.Epoch, Reason: fmt.Sprintf("set-aside copy %s is mounted on %s", v.Adopt, a.name())})
	}
	if err := a.zfs.SetProperties(ctx, from, props); err != nil {
		if permanent(err) {
			return a.propose(ctx, state.AbortCreate{ID: v.ID, Epoch: v.Epoch, Reason: err.Error()})
		}
		return err
	}
	// When it was set aside says nothing about the volume, nor about the next time.
	if err := a.zfs.Inherit(ctx, from, propAside); err != nil {
		return err
	}
	defer a.LookAside()
	return a.zfs.Rename(ctx, from, to)
}

// giveBack returns the copy that a volume was to be made of to where it was kept:
// the volume was given up, its data was not. Its name may have been given to another
// copy meanwhile; then it gets the next one. The caller holds the lock.
func (a *Agent) giveBack(ctx context.Context, v *state.Volume) error {
	if v.Phase != state.PhasePurged || v.Adopt == "" {
		return nil
	}
	if isDataset(v.Adopt) {
		return a.returnDataset(ctx, v)
	}
	defer a.LookAside()
	name := v.Adopt
	for {
		err := a.zfs.Rename(ctx, a.layout.Dataset(v.ID), a.layout.Aside()+"/"+name)
		if err == nil {
			a.uncoverOf(v)
		}
		if !errors.Is(err, zfs.ErrExists) {
			return err
		}
		if name, err = replicate.NextAside(name); err != nil {
			return err
		}
	}
}
