package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// Mount makes the volume writable here for the holder of mountID and returns the
// directory to hand to it. This node must be the primary in phase active; the
// caller has arranged that and passes the ID. It blocks while the dataset is being
// taken over; again with the same mountID is fine.
func (a *Agent) Mount(ctx context.Context, id volume.ID, mountID string) (dir string, err error) {
	return a.mount(ctx, id, mountID, nil)
}

// Into puts a mounted volume's directory where it is wanted besides, and returns what takes
// it away again.
type Into func(dir string) (withdraw func() error, err error)

// MountInto is Mount for a container that runs already, which into gives the directory to.
// That is done under the same lock and between the same questions as a mount: with an error
// the container has nothing, and until nil is returned it must not begin to write.
func (a *Agent) MountInto(ctx context.Context, id volume.ID, mountID string, into Into) error {
	_, err := a.mount(ctx, id, mountID, into)
	return err
}

func (a *Agent) mount(ctx context.Context, id volume.ID, mountID string, into Into) (dir string, err error) {
	unlock, err := a.locks.lock(ctx, id)
	if err != nil {
		return "", err
	}
	defer unlock()

	v, err := a.writable(id)
	if err != nil {
		return "", err
	}
	ready := a.isTaken(v)
	defer a.changing(id)()
	a.use.Mounting(id, mountID)
	defer func() {
		if err != nil {
			a.use.MountFailed(id, mountID)
		}
	}()
	name := a.layout.Dataset(id)
	a.cover(v)
	if !ready || !a.mountTaken(ctx, name) {
		if err := a.mountAsIs(ctx, v); err != nil {
			return "", err
		}
	}
	a.arrives(v, PartMount)
	dir, err = a.files.Prepare(a.layout.Mountpoint(id), v.Spec)
	if err != nil {
		return "", fmt.Errorf("mounting volume %q: %w", v.Name, err)
	}
	withdraw := func() error { return nil }
	err = a.stillWritable(v)
	if err == nil && into != nil {
		if withdraw, err = into(dir); err != nil {
			return "", fmt.Errorf("giving volume %q to its container: %w", v.Name, err)
		}
		err = a.stillWritable(v)
	}
	if err != nil {
		if werr := withdraw(); werr != nil {
			err = errors.Join(err, fmt.Errorf("taking volume %q from its container again: %w", v.Name, werr))
		}
		if uerr := a.zfs.Unmount(ctx, name); uerr != nil {
			err = errors.Join(err, fmt.Errorf("unmounting volume %q again: %w", v.Name, uerr))
		}
		return "", err
	}
	a.use.Mounted(id, mountID)
	return dir, nil
}

// mountAsIs mounts a volume by what its dataset says of itself. Caller holds the lock.
func (a *Agent) mountAsIs(ctx context.Context, v *state.Volume) error {
	ds, err := a.wantedBack(ctx, v.ID)
	if errors.Is(err, zfs.ErrNotFound) {
		return volume.Errorf(volume.CodeRefused,
			"volume %q: its dataset is missing on this node", v.Name).
			WithHint("a replica still holds the data; see `flockctl volume inspect %s`", v.Name)
	}
	if err != nil {
		return err
	}
	if err := a.takeOver(ctx, v, copyOf(ds)); err != nil && !errors.As(err, new(*errQuota)) {
		return err
	}
	if !ds.Mounted {
		if err := a.zfs.Mount(ctx, ds.Name, true); err != nil && !errors.Is(err, zfs.ErrExists) {
			return fmt.Errorf("mounting volume %q: %w", v.Name, err)
		}
	}
	return nil
}

// mountTaken mounts a dataset that this node has just taken over, and says whether it is mounted
// then. Where it is not, its dataset tells why. Caller holds the lock.
func (a *Agent) mountTaken(ctx context.Context, name string) bool {
	err := a.zfs.Mount(ctx, name, true)
	return err == nil || errors.Is(err, zfs.ErrExists)
}

// stillWritable refuses a mount during which v was taken from this node. Its lease may
// have ended meanwhile, and the fencer have looked before there was anything to see; it may
// even hold the next one, while somebody else writes the volume. So the lease is asked
// first: if it still is the one that the mount began under, the fencer has yet to look; if
// not, the state that is read after it has the end of the old one, and another epoch.
func (a *Agent) stillWritable(v *state.Volume) error {
	if err := a.leased(v.Name); err != nil {
		return err
	}
	now, err := a.writable(v.ID)
	if err == nil && now.Epoch != v.Epoch {
		err = volume.Errorf(volume.CodeConflict, "volume %q was taken over in epoch %s while it was being mounted in %s", v.Name, now.Epoch, v.Epoch).
			WithHint("try again")
	}
	return err
}

// leased refuses what only a node that may write is allowed to do.
func (a *Agent) leased(name string) error {
	if a.lease == nil {
		return nil
	}
	if ok, why := a.lease.Held(); !ok {
		return volume.Errorf(volume.CodeUnavailable, "volume %q cannot be written on %s now: %s", name, a.name(), why).
			WithHint("another node may have taken it over; see `flockctl status`")
	}
	return nil
}

// wantedBack is the dataset of a live volume, out of the trash when an undelete is so
// recent that the loop has not come to it. Caller holds the lock.
func (a *Agent) wantedBack(ctx context.Context, id volume.ID) (zfs.Dataset, error) {
	name := a.layout.Dataset(id)
	ds, err := a.zfs.Dataset(ctx, name)
	if !errors.Is(err, zfs.ErrNotFound) {
		return ds, err
	}
	if err := a.zfs.Rename(ctx, a.layout.TrashDataset(id), name); err != nil {
		return zfs.Dataset{}, err
	}
	return a.zfs.Dataset(ctx, name)
}

// Promise makes this node take nothing of an epoch of the volume below the one given any
// more, and says what its copy holds. See replicate.Engine.Promise.
func (a *Agent) Promise(ctx context.Context, id volume.ID, epoch volume.Epoch) (volume.Promise, error) {
	unlock, err := a.locks.lock(ctx, id)
	if err != nil {
		return volume.Promise{}, err
	}
	defer unlock()
	defer a.changing(id)()
	// What is still in the trash is there, too.
	if _, err := a.wantedBack(ctx, id); err != nil && !errors.Is(err, zfs.ErrNotFound) {
		return volume.Promise{}, err
	}
	var line volume.Line
	if v := a.cluster.State().Volume(id); v != nil {
		line = v.Line()
	}
	return a.repl.Promise(ctx, id, epoch, line)
}

// Unmount drops the hint that mountID uses the volume. The dataset is unmounted a
// moment later by the loop, when the engine's list shows no other user: a mount ID
// may be shared (docker cp), so it proves nothing by itself.
func (a *Agent) Unmount(id volume.ID, mountID string) {
	a.use.Unmounted(id, mountID)
	a.Stir()
}

// writable is the volume if this node may write it now.
func (a *Agent) writable(id volume.ID) (*state.Volume, error) {
	v := a.cluster.State().Volume(id)
	switch {
	case v == nil || !v.Live():
		return nil, volume.Errorf(volume.CodeNotFound, "no such volume")
	case !a.isFresh():
		return nil, volume.Errorf(volume.CodeUnavailable,
			"volume %q: this node has not heard from the cluster's leader since it started", v.Name).
			WithHint("it mounts volumes again as soon as a majority of the voters is up")
	case v.Phase == state.PhaseElecting:
		return nil, volume.Errorf(volume.CodeUnavailable, "volume %q is getting another primary than %s", v.Name,
			a.cluster.State().NodeName(v.Election.Was)).WithHint("`flockctl volume inspect %s` says what is waited for", v.Name)
	case v.Placement.Role(a.self) != volume.RolePrimary:
		return nil, volume.Errorf(volume.CodeConflict, "volume %q: its primary is %s", v.Name,
			a.cluster.State().NodeName(v.Placement.Primary))
	case v.Phase != state.PhaseActive:
		return nil, volume.Errorf(volume.CodeConflict, "volume %q is %s; try again in a moment", v.Name, v.Phase)
	}
	if err := a.leased(v.Name); err != nil {
		return nil, err
	}
	return v, nil
}

// mustSettle says that a copy of an earlier epoch is taken over only once nothing comes into it any
// more, and that it has what the volume goes on from.
func mustSettle(v *state.Volume, c Copy) bool { return c.Epoch < v.Epoch && v.Start.GUID != 0 }

// takeOver gives a dataset what a primary of v needs. Where mustSettle says so the copy is read
// once more, so c may be what was seen some time ago. Caller holds the lock.
func (a *Agent) takeOver(ctx context.Context, v *state.Volume, c Copy) error {
	newer := func() error {
		if c.Epoch <= v.Epoch {
			return nil
		}
		return volume.Errorf(volume.CodeRefused,
			"volume %q: its dataset has accepted epoch %s, newer than the cluster's %s", v.Name, c.Epoch, v.Epoch)
	}
	if err := newer(); err != nil {
		return err
	}
	held := map[uint64]bool{}
	if mustSettle(v, c) {
		a.arrives(v, PartArrival)
		// What another primary may have begun to send must not come in any more.
		d, has, err := a.repl.SettledCopy(ctx, v.ID, v.Start)
		if err != nil {
			return fmt.Errorf("taking volume %q over: ending what was being received: %w", v.Name, err)
		}
		if d.Name != "" {
			c = copyOf(d)
		}
		if err := newer(); err != nil {
			return err
		}
		held = has
	}
	if mustSettle(v, c) {
		// What a volume was rolled back to may be removed once it goes on from there.
		line := v.Line()
		marked, err := line.Marked(v.ID, c.Line)
		if err != nil {
			return fmt.Errorf("taking volume %q over: %w", v.Name, err)
		}
		stands := marked && v.Start.Same(line.Start())
		if !held[v.Start.GUID] && !stands && v.MayCallOff() && v.RolledBack.Node == a.self && held[v.RolledBack.Final.GUID] {
			// Somebody has destroyed it by hand since the commit, and nothing was undone yet.
			if err := a.propose(ctx, state.CallOffRollback{ID: v.ID, Epoch: v.Epoch, Attempt: v.RolledBack.Attempt}); err != nil {
				return err
			}
			return volume.Errorf(volume.CodeUnavailable, "volume %q: its snapshot %s is gone, so it stays as it was", v.Name, v.RolledBack.Snapshot).WithHint("try again")
		}
		if !held[v.Start.GUID] && !stands {
			return volume.Errorf(volume.CodeRefused,
				"volume %q: the copy on %s lacks the snapshot it was handed over with", v.Name, a.name()).
				WithHint("its data is on another node; see `flockctl volume inspect %s`", v.Name)
		}
	}
	if line := v.Line(); c.Epoch < v.Epoch && v.Start.Compare(line.Start()) <= 0 && !line.IsZero() {
		// Nothing of this epoch is written before what was undone is aside. A copy that has
		// the start of this epoch has nothing of that if the start is on the line.
		var err error
		if c, err = a.goBack(ctx, v, line); err != nil {
			return fmt.Errorf("rolling volume %q back: %w", v.Name, err)
		}
	}
	want := map[string]string{}
	if c.Epoch < v.Epoch {
		want[propEpoch] = v.Epoch.String()
	}
	if mp := a.layout.Mountpoint(v.ID); c.Mount != mp {
		want["mountpoint"] = mp
	}
	if c.RefQuota != v.Spec.Size {
		want["refquota"] = quota(v.Spec.Size)
	}
	if len(want) == 0 {
		return nil
	}
	// One command for all of them: clients wait for it. Where it fails it may be the quota alone
	// that cannot be.
	set := func() error {
		err := a.zfs.SetProperties(ctx, a.layout.Dataset(v.ID), want)
		if err == nil {
			a.noteTaken(v)
			if want[propEpoch] != "" {
				a.arrives(v, PartTakeover)
			}
		}
		return err
	}
	failed := set()
	if failed == nil {
		return nil
	}
	limited := want["refquota"] != ""
	delete(want, "refquota")
	if limited && len(want) > 0 {
		if err := set(); err != nil {
			return fmt.Errorf("taking volume %q over: %w", v.Name, err)
		}
	}
	if limited {
		return &errQuota{v.Name, failed}
	}
	return fmt.Errorf("taking volume %q over: %w", v.Name, failed)
}

// goBack sets aside what this node's copy of a volume holds of what was undone, and returns
// the copy that goes on. Caller holds the lock.
func (a *Agent) goBack(ctx context.Context, v *state.Volume, line volume.Line) (Copy, error) {
	ds := a.layout.Dataset(v.ID)
	if err := a.files.Unused(ds, ""); err != nil {
		return Copy{}, err
	}
	if err := a.repl.GoBack(ctx, v.ID, v.Epoch, line, v.Spec.ZFS); err != nil {
		return Copy{}, err
	}
	a.LookAside()
	d, err := a.zfs.Dataset(ctx, ds)
	return copyOf(d), err
}

// errQuota means that a dataset was taken over but for its quota: on other disks the
// same data may need more room than the volume's size. That must not keep the volume
// from being used; the loop tries again and reports it.
type errQuota struct {
	name string
	err  error
}

func (e *errQuota) Error() string {
	return fmt.Sprintf("limiting volume %q to its size: %v", e.name, e.err)
}
func (e *errQuota) Unwrap() error { return e.err }

func quota(size int64) string {
	if size == 0 {
		return "none"
	}
	return fmt.Sprint(size)
}

// cover keeps everybody from writing where a volume is mounted while it is not: of one that is all
// of its dataset, that directory is what containers get. It is used also where that cannot be done.
func (a *Agent) cover(v *state.Volume) {
	if v == nil || !v.Spec.Whole() {
		return
	}
	if err := a.files.Cover(a.layout.Mountpoint(v.ID)); err != nil {
		a.log.Warn("where a volume is mounted could be written while it is not mounted", "volume", v.ID, "name", v.Name, "err", err)
	}
}

// uncover removes the directories of cover, but for those of the volumes to keep.
func (a *Agent) uncover(keep func(volume.ID) bool) {
	err := a.files.Uncover(a.layout.MountBase, func(name string) bool {
		id, err := volume.ParseID(name)
		return err != nil || keep(id)
	})
	if err != nil {
		a.log.Warn("a directory on which a volume was mounted stays", "err", err)
	}
}

// uncoverOf removes that of a volume whose copy has left.
func (a *Agent) uncoverOf(v *state.Volume) {
	if v.Spec.Whole() {
		a.uncover(func(id volume.ID) bool { return id != v.ID })
	}
}
