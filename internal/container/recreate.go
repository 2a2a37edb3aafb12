package container

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Names that a container has while it takes the place of another one. What has them is
// ours, and may be removed.
const (
	stagedSuffix   = ".flocker-new"
	replacedSuffix = ".flocker-old"
)

// ErrUndecided is the answer to whether a container stays when nobody knows: then nothing is
// removed.
var ErrUndecided = errors.New("nobody knows yet whether it stays up")

// undoTimeout bounds putting things back after a failure, when the caller may have
// stopped waiting.
const undoTimeout = time.Minute

// maker is what recreate needs of an engine, step by step.
type maker interface {
	// find is ErrNotFound when there is none of this name or ID.
	find(ctx context.Context, name string) (Captured, error)
	// create also makes what is missing around it, and has verified that the volumes are
	// those of our driver.
	create(ctx context.Context, name string, s Spec) (id string, err error)
	rename(ctx context.Context, id, name string) error
	start(ctx context.Context, id string) error
	remove(ctx context.Context, id string) error
	// end is remove, of one that runs, too.
	end(ctx context.Context, id string) error
}

// recreate makes the container of a spec under its name and starts it:
//
//	create NAME.flocker-new ─► NAME to NAME.flocker-old ─► .flocker-new to NAME ─► start ─► stays ─► remove .flocker-old
//
// It may be interrupted anywhere and called again. A container of that name that it may
// not replace is an error; one that failed to start, or does not stay, is removed and the old
// one has its name back.
func recreate(ctx context.Context, m maker, s Spec, replaces []string, stays func(ctx context.Context, id string) error) (id string, err error) {
	id, err = replace(ctx, m, s, replaces, stays)
	switch {
	case errors.Is(err, ErrUndecided):
		return id, err
	case err != nil:
		return "", err
	}
	// It runs. That its predecessor could not be removed is told with its ID.
	return id, cleanUp(ctx, m, s.Name)
}

// replace is recreate but for the last step.
func replace(ctx context.Context, m maker, s Spec, replaces []string, stays func(ctx context.Context, id string) error) (id string, err error) {
	fresh := func(c Captured) bool { return !c.Started && alike(c.Spec, s) && samePorts(c.Spec, s) }
	there, err := predecessor(ctx, m, s, fresh)
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return "", err
	case NameTaken(there, s, replaces) != nil:
		return "", NameTaken(there, s, replaces)
	case there.State.Live():
		// The last call was cut off late, or somebody has started it: then it is not removed.
		return there.ID, unlessStays(ctx, m, s, there, stays)
	case fresh(there):
		// The last call was cut off between the name and the start, or somebody has prepared it.
		if err := m.start(ctx, there.ID); err != nil {
			return "", err
		}
		return there.ID, unlessStays(ctx, m, s, there, stays)
	case !there.Started && alike(there.Spec, s):
		// What has never run has nothing to lose but how a person has made it, who may have done so
		// with the same image and volumes: then it stays.
		if !slices.Contains(replaces, there.ID) {
			return "", errTaken(s.Name)
		}
		if err := m.remove(ctx, there.ID); err != nil {
			return "", fmt.Errorf("removing what was made of container %s with other published ports: %w", s.Name, err)
		}
		there = Captured{}
	}

	// What a call that was cut off has left has never run.
	if left, err := m.find(ctx, s.Name+stagedSuffix); err == nil {
		if err := m.remove(ctx, left.ID); err != nil {
			return "", err
		}
	} else if !errors.Is(err, ErrNotFound) {
		return "", err
	}
	made, err := m.create(ctx, s.Name+stagedSuffix, s)
	if err != nil {
		return "", err
	}
	remove := m.remove // one whose start has no answer may run by now, and has written
	defer func() {
		if err != nil && !errors.Is(err, ErrUndecided) {
			err = errors.Join(err, undo(ctx, remove, m, s.Name, made))
		}
	}()
	if there.ID != "" {
		if err := stepAside(ctx, m, s.Name, there.ID); err != nil {
			return "", err
		}
	}
	if err := m.rename(ctx, made, s.Name); err != nil {
		return "", err
	}
	if err := m.start(ctx, made); err != nil {
		return "", err
	}
	remove = m.end
	return made, stays(ctx, made)
}

// predecessor is the container that has the name of a spec. What an earlier call has made, before
// anybody knew whether it stays or with other ports than it would have now, is removed, and
// what that one was to replace has the name again; unless it is as it would be made now.
func predecessor(ctx context.Context, m maker, s Spec, fresh func(Captured) bool) (Captured, error) {
	there, err := m.find(ctx, s.Name)
	if err != nil || there.State.Live() || !ours(there, s) || fresh(there) {
		return there, err
	}
	if err := undo(ctx, m.remove, m, s.Name, there.ID); err != nil {
		return Captured{}, fmt.Errorf("removing what was made of container %s before: %w", s.Name, err)
	}
	return m.find(ctx, s.Name)
}

// unlessStays is why a container that was there already does not stay, which is removed then
// if it is ours.
func unlessStays(ctx context.Context, m maker, s Spec, there Captured, stays func(ctx context.Context, id string) error) error {
	err := stays(ctx, there.ID)
	if err != nil && !errors.Is(err, ErrUndecided) && ours(there, s) {
		err = errors.Join(err, undo(ctx, m.end, m, s.Name, there.ID))
	}
	return err
}

// stepAside gives the container that is to be replaced its other name. Another one that has it
// was left by a call that was cut off at its end, and replaced by this one.
func stepAside(ctx context.Context, m maker, name, id string) error {
	err := m.rename(ctx, id, name+replacedSuffix)
	if err == nil {
		return nil
	}
	left, ferr := m.find(ctx, name+replacedSuffix)
	if ferr != nil || left.ID == id || left.State.Live() {
		return err // or nobody knows whether it has it
	}
	if rerr := m.remove(ctx, left.ID); rerr != nil {
		return errors.Join(err, rerr)
	}
	return m.rename(ctx, id, name+replacedSuffix)
}

// NameTaken says why the container of a spec cannot have its name on an engine where another
// one has it; nil where it is that one, or one that it may replace, by ID.
func NameTaken(there Captured, s Spec, replaces []string) error {
	switch {
	case (there.State.Live() || !there.Started) && alike(there.Spec, s):
		return nil
	case there.State.Live():
		return fmt.Errorf("another container named %s runs on this node", s.Name)
	case !slices.Contains(replaces, there.ID) && !ours(there, s):
		return errTaken(s.Name)
	}
	return nil
}

func errTaken(name string) error {
	return fmt.Errorf("a container named %s is on this node already, which is not the one that runs elsewhere; rename or remove it", name)
}

// ours says that a container was made here for this very spec, and has not been seen to come
// up. What somebody prepares or starts may have the same image, volumes and labels.
func ours(c Captured, s Spec) bool {
	id := s.madeFor()
	return id != "" && c.Labels[LabelMade] == id
}

// undo removes what was made and gives the old container its name back.
func undo(ctx context.Context, remove func(ctx context.Context, id string) error, m maker, name, made string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	var errs []error
	if err := remove(ctx, made); err != nil && !errors.Is(err, ErrNotFound) {
		errs = append(errs, fmt.Errorf("removing what was made: %w", err))
	}
	return errors.Join(append(errs, nameBack(ctx, m, name))...)
}

// nameBack gives the container its name back whose place was to be taken.
func nameBack(ctx context.Context, m maker, name string) error {
	old, err := m.find(ctx, name+replacedSuffix)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err == nil {
		err = m.rename(ctx, old.ID, name)
	}
	if err != nil {
		return fmt.Errorf("giving the old container its name back: %w", err)
	}
	return nil
}

// cleanUp removes the container whose place was taken. Whoever stopped waiting while it was
// looked at whether the new one stays has not changed that it does.
func cleanUp(ctx context.Context, m maker, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	old, err := m.find(ctx, name+replacedSuffix)
	if err == nil && !old.State.Live() {
		err = m.remove(ctx, old.ID)
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("container %s runs, but the one that it replaced could not be removed: %w", name, err)
	}
	return nil
}

// alike says that two specs are of the same container for all that a user cares: the
// engines that described them may be of different versions.
func alike(a, b Spec) bool {
	mounts := func(s Spec) []MountPoint {
		var out []MountPoint
		for _, m := range s.Mounts {
			out = append(out, MountPoint{Type: m.Type, Name: m.Name, Driver: m.Driver, Destination: m.Destination})
		}
		return out
	}
	image := a.Image.ID == b.Image.ID || a.Image.Layers != "" && a.Image.Layers == b.Image.Layers
	return image && slices.Equal(mounts(a), mounts(b))
}

// samePorts says that an engine would publish the same for both.
func samePorts(a, b Spec) bool {
	x, errX := a.publishes()
	y, errY := b.publishes()
	return errX == nil && errY == nil && slices.Equal(x, y)
}
