package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/replicate"
	"github.com/flocker-io/flocker/zfs"
)

// clone makes the volume's dataset of a snapshot of this node's copy of another volume,
// and confirms it. A snapshot is known by its GUID: its name may be another one's by now.
// Done again after a crash, it goes on; what is there and stands on another snapshot is
// left as it is.
func (a *Agent) clone(ctx context.Context, v *state.Volume, props map[string]string) error {
	unlock, err := a.locks.lock(ctx, v.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if v = a.cluster.State().Volume(v.ID); v == nil || v.Phase != state.PhaseCreating || v.Placement.Primary != a.self {
		return nil // given up while this waited
	}
	abort := func(reason string) error {
		return a.propose(ctx, state.AbortCreate{ID: v.ID, Epoch: v.Epoch, Reason: reason})
	}
	// What is just going to the trash, or being destroyed, is looked for before or after. Others
	// may clone it meanwhile.
	ds, from := a.layout.Dataset(v.ID), v.Clone
	unlock, err = a.locks.share(ctx, from.Volume)
	if err != nil {
		return err
	}
	defer unlock()
	origin, err := a.cloneOf(ctx, from, ds, props)
	mine := false
	switch {
	case origin == "" && err != nil:
		return err // where it is
	case origin == "", errors.Is(err, zfs.ErrExists):
	case err == nil:
		// One command, since people wait, for all that have just been made of it: that the snapshot that
		// was meant has this clone says all. From here on it cannot become another one.
		found, err := a.origins.Ask(ctx, origin, func(ctx context.Context) ([]zfs.Snapshot, error) {
			return a.zfs.SnapshotsNamed(ctx, []string{origin})
		})
		if err != nil {
			return err
		}
		if len(found) == 1 && found[0].GUID == from.GUID && slices.Contains(found[0].Clones, ds) {
			a.repl.Cloned(v.ID, v.Epoch, found[0])
			a.noteMade(v.ID, a.clonedCopy(v, found[0]))
			return a.propose(ctx, state.ConfirmCreate{ID: v.ID, Epoch: v.Epoch})
		}
		mine = true
		a.unpoint(from)
	case permanent(err):
		return abort(err.Error())
	default:
		return err // perhaps it was renamed, or is gone: the next time tells
	}
	d, err := a.zfs.Dataset(ctx, ds)
	if errors.Is(err, zfs.ErrNotFound) && origin == "" {
		return abort(fmt.Sprintf("snapshot %s of volume %q is not on %s any more", from.Snapshot, from.Name, a.name()))
	}
	if err != nil {
		return err
	}
	marked := d.User[propVolume] == string(v.ID) && d.User[propEpoch] == v.Epoch.String()
	switch right, err := a.standsOn(ctx, d, from.GUID); {
	case err != nil:
		return err
	case right:
		if unmarked(d) {
			if d, err = a.finish(ctx, d, props); err != nil {
				return err
			}
		}
		a.repl.Refresh(from.Volume) // which has a snapshot now that cannot be destroyed
		a.noteMade(v.ID, copyOf(d))
		return a.propose(ctx, state.ConfirmCreate{ID: v.ID, Epoch: v.Epoch})
	case mine || marked && !d.Mounted: // now, or before a crash, and nobody has written to it
		a.noteMade(v.ID, copyOf(d)) // or the report would say that it is not here, and the volume be forgotten
		return abort(fmt.Sprintf("snapshot %s of volume %q became another one while it was cloned", from.Snapshot, from.Name))
	}
	return fmt.Errorf("%s is there already, and is no clone of snapshot %s of volume %q: rename it by hand", ds, from.Snapshot, from.Name)
}

// cloneOf has ZFS make the clone, and returns of which snapshot; "" when this node has none with that
// GUID. People wait, and each question is a program to be started: whether the clone is there
// already, zfs says when it is made, and what this node was asked for a moment ago is not
// looked for again, unless it is gone.
func (a *Agent) cloneOf(ctx context.Context, from *state.CloneOf, ds string, props map[string]string) (origin string, err error) {
	if a.wasThere(from) {
		origin = a.layout.Dataset(from.Volume) + "@" + from.Snapshot
		if err = a.zfs.Clone(ctx, origin, ds, props); !errors.Is(err, zfs.ErrNotFound) {
			return origin, err
		}
		a.unpoint(from)
	}
	if origin, err = a.snapshotOf(ctx, from); err != nil || origin == "" {
		return "", err
	}
	return origin, a.zfs.Clone(ctx, origin, ds, props)
}

// clonedCopy is a clone as it was just made of a snapshot, which nobody has to read for that.
func (a *Agent) clonedCopy(v *state.Volume, of zfs.Snapshot) Copy {
	with, _ := volumeIn(a.layout.Root(), of.Dataset)
	return Copy{
		Dataset: a.layout.Dataset(v.ID), Epoch: v.Epoch, RefQuota: v.Spec.Size, Data: of.Referenced, Mount: a.layout.Mountpoint(v.ID),
		Shares: &volume.Shared{With: with, GUID: of.GUID, Bytes: of.Referenced},
	}
}

// pointed is a snapshot that this node's copy of a volume was seen to have.
type pointed struct {
	of   volume.ID
	name string
	guid uint64
}

// pointedFor is how long it is believed that it still has it: who asked makes a clone of it next.
const pointedFor = 10 * time.Second

// Pointed says that this node's copy of a volume had a snapshot, when it was read from the disk then.
func (a *Agent) Pointed(of volume.ID, name string, guid uint64, then time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.DeleteFunc(a.pointed, func(_ pointed, at time.Time) bool { return time.Since(at) > pointedFor })
	a.pointed[pointed{of, name, guid}] = then
}

// wasThere says that this node was just told of a snapshot that it is there. A clone of
// what has its name by now is found out, and given up.
func (a *Agent) wasThere(c *state.CloneOf) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	at, ok := a.pointed[pointed{c.Volume, c.Snapshot, c.GUID}]
	return ok && time.Since(at) <= pointedFor
}

// unpoint forgets that: it was not so.
func (a *Agent) unpoint(c *state.CloneOf) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.pointed, pointed{c.Volume, c.Snapshot, c.GUID})
}

// snapshotOf is the full name of the snapshot with that GUID in this node's copy of a
// volume, wherever it is kept; "" when it has none. It is mostly where it is expected.
// Replication changes copies without the volume's lock: an error says that it is just doing
// so, and that the snapshot may be in what it has half done. It may also have moved from
// where is looked next to where was looked before, so it is not there only if it is not
// found twice.
func (a *Agent) snapshotOf(ctx context.Context, of *state.CloneOf) (string, error) {
	name := a.layout.Dataset(of.Volume) + "@" + of.Snapshot
	if there, err := a.isSnapshot(ctx, name, of.GUID); err != nil || there {
		return name, err
	}
	for range 2 {
		if name, err := a.lookFor(ctx, of.Volume, of.GUID); err != nil || name != "" {
			return name, err
		}
	}
	return "", nil
}

// lookFor is one look of snapshotOf.
func (a *Agent) lookFor(ctx context.Context, id volume.ID, guid uint64) (string, error) {
	kept, fork := []string{a.layout.Dataset(id), a.layout.TrashDataset(id)}, false
	for _, root := range []string{a.layout.Root(), a.layout.Aside()} {
		list, err := a.zfs.Datasets(ctx, root)
		if err != nil {
			return "", fmt.Errorf("listing %s: %w", root, err)
		}
		for _, d := range list {
			x, aside := replicate.ParseAside(d, a.layout.Aside())
			switch {
			case aside && x.Volume == id:
				kept = append(kept, d.Name)
			case d.Name == a.layout.Dataset(id)+"-fork":
				fork = true
			}
		}
	}
	for _, ds := range kept {
		list, err := a.zfs.Snapshots(ctx, ds, false)
		if errors.Is(err, zfs.ErrNotFound) {
			continue
		}
		if err != nil {
			return "", err
		}
		if i := slices.IndexFunc(list, func(s zfs.Snapshot) bool { return s.GUID == guid }); i >= 0 {
			return list[i].FullName(), nil
		}
	}
	if fork {
		return "", fmt.Errorf("the copy of volume %s is just being set aside: what is to be cloned may be in either part", id)
	}
	return "", nil
}

// isSnapshot says that there is a snapshot of that full name, with that GUID.
func (a *Agent) isSnapshot(ctx context.Context, name string, guid uint64) (bool, error) {
	found, err := a.zfs.SnapshotsNamed(ctx, []string{name})
	return len(found) == 1 && found[0].GUID == guid, err
}

// standsOn says that a dataset is a clone of the snapshot with that GUID, or has it: then
// it was promoted since.
func (a *Agent) standsOn(ctx context.Context, d zfs.Dataset, guid uint64) (bool, error) {
	if d.Origin != "" {
		if right, err := a.isSnapshot(ctx, d.Origin, guid); err != nil || right {
			return right, err
		}
	}
	list, err := a.zfs.Snapshots(ctx, d.Name, false)
	return slices.ContainsFunc(list, func(s zfs.Snapshot) bool { return s.GUID == guid }), err
}
