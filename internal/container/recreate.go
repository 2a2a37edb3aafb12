package container

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Names that a container has while it takes the place of another one. What has them is
// ours, and may be removed.
const (
	stagedSuffix   = ".flocker-new"
	replacedSuffix = ".flocker-old"
)

// Replaced is the name that a container of a name has while another one takes its place.
func Replaced(name string) string { return name + replacedSuffix }

// IsReplaced says that a container has such a name: another one has its place, or is about to.
func IsReplaced(name string) bool { return strings.HasSuffix(name, replacedSuffix) }

// ErrUndecided is the answer to whether a container stays when nobody knows: then nothing is
// removed.
var ErrUndecided = errors.New("nobody knows yet whether it stays up")

// undoTimeout bounds putting things back after a failure, when the caller may have
// stopped waiting.
const undoTimeout = time.Minute

// Maker is an engine step by step, as Recreate needs it.
type Maker interface {
	// Find is ErrNotFound when there is none of this name or ID.
	Find(ctx context.Context, name string) (Captured, error)
	// Create also makes what is missing around it, and has verified that the volumes are
	// those of our driver.
	Create(ctx context.Context, name string, s Spec) (id string, err error)
	Rename(ctx context.Context, id, name string) error
	Start(ctx context.Context, id string) error
	Stop(ctx context.Context, id string) error
	// Remove leaves all volumes alone, and fails for one that runs.
	Remove(ctx context.Context, id string) error
	// Discard is Remove, of what flocker has made: with those volumes, not of our driver, that the
	// engine has made for it alone.
	Discard(ctx context.Context, id string) error
	// End is Discard, of one that runs, too.
	End(ctx context.Context, id string) error
}

// Known is what is known of the containers of an engine from which the one of a spec may take
// its name.
type Known struct {
	// Replaces are those that it takes the place of: removed once it has come up, and before that
	// in no case. They have been seen to run here, whatever their labels say.
	Replaces []string
	// Prepared is somebody's, which was started in its place. If it did not stay it was stopped again;
	// it is started again then, and never removed.
	Prepared string
	// Begun is the prepared one if it was started and nobody knows yet whether it stays, or has done all
	// it had to do.
	Begun string
	// Halted was stopped for a move. How it ended tells nothing, so that is not asked.
	Halted string
}

// mayReplace says that a container may make room for the one of a spec. Besides those known by ID it is
// what flocker has made here of an earlier container of that name and those volumes, which its user has
// since removed where it was by then; not what a person has made, or has started here.
func (k Known) mayReplace(there Captured, s Spec) bool {
	volumes := func(s Spec) (out []string) {
		for _, m := range s.Mounts {
			if m.Type == "volume" {
				out = append(out, m.Driver+"/"+m.Name)
			}
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	outlived := func() bool {
		made := there.Labels[LabelMade]
		return made != "" && made != s.madeFor() && there.Started && !there.State.Live() &&
			there.ID != k.Prepared && there.ID != k.Begun && slices.Equal(volumes(there.Spec), volumes(s))
	}
	return slices.Contains(k.Replaces, there.ID) || outlived()
}

// StoppedError is why a container does not stay that somebody had prepared. It was stopped again.
type StoppedError struct {
	ID  string
	Err error
}

func (e *StoppedError) Error() string { return e.Err.Error() }
func (e *StoppedError) Unwrap() error { return e.Err }

// BegunError is ErrUndecided about a container that somebody had prepared and that was started.
type BegunError struct {
	ID  string
	Err error
}

func (e *BegunError) Error() string { return e.Err.Error() }
func (e *BegunError) Unwrap() error { return e.Err }

// Recreate makes the container of a spec under its name and starts it:
//
//	create NAME.flocker-new ─► NAME to NAME.flocker-old ─► .flocker-new to NAME ─► start ─► stays ─► remove .flocker-old
//
// It may be interrupted anywhere and called again. A container of that name that it may
// not replace is an error; one that failed to start, or does not stay, is removed and the old
// one has its name back.
func Recreate(ctx context.Context, m Maker, s Spec, known Known, stays func(ctx context.Context, id string) error) (id string, err error) {
	id, err = replace(ctx, m, s, known, stays)
	switch {
	case errors.Is(err, ErrUndecided):
		return id, err
	case err != nil:
		return "", err
	}
	// It runs. That its predecessor could not be removed is told with its ID.
	return id, CleanUp(ctx, m, s.Name)
}

// replace is Recreate but for the last step.
func replace(ctx context.Context, m Maker, s Spec, known Known, stays func(ctx context.Context, id string) error) (id string, err error) {
	fresh := func(c Captured) bool { return !c.Started && alike(c.Spec, s) && samePorts(c.Spec, s) }
	there, err := predecessor(ctx, m, s, known, fresh)
	if err == nil && ended(there, s, known) {
		// Of a call that was cut off, or could not record it. How it has ended says whether it is made, or
		// started, again: what has done all it had to do must not be done twice.
		if there.ID != known.Halted {
			if err := stays(ctx, there.ID); err == nil || errors.Is(err, ErrUndecided) {
				return there.ID, err
			}
		}
		if ours(there, s, known) {
			there, err = removeMade(ctx, m, s, there.ID)
		}
	}
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return "", err
	case NameTaken(there, s, known) != nil:
		return "", NameTaken(there, s, known)
	case there.State.Live():
		// The last call was cut off late, or somebody has started it: then it goes on.
		if !ours(there, s, known) && there.ID != known.Prepared {
			return there.ID, stays(ctx, there.ID)
		}
		return there.ID, unlessStays(ctx, m, s, there, known, stays)
	case fresh(there) || again(there, s, known):
		// The last call was cut off between the name and the start, or somebody has prepared it.
		if err := m.Start(ctx, there.ID); err != nil {
			return "", err
		}
		return there.ID, unlessStays(ctx, m, s, there, known, stays)
	case !there.Started && alike(there.Spec, s):
		// What has never run has nothing to lose but how a person has made it, who may have done so
		// with the same image and volumes: then it stays.
		if !slices.Contains(known.Replaces, there.ID) {
			return "", errTaken(s.Name)
		}
		if err := m.Remove(ctx, there.ID); err != nil {
			return "", fmt.Errorf("removing what was made of container %s with other published ports: %w", s.Name, err)
		}
		there = Captured{}
	}

	// What a call that was cut off has left has never run.
	if left, err := m.Find(ctx, s.Name+stagedSuffix); err == nil {
		if err := m.Discard(ctx, left.ID); err != nil {
			return "", err
		}
	} else if !errors.Is(err, ErrNotFound) {
		return "", err
	}
	made, err := m.Create(ctx, s.Name+stagedSuffix, s)
	if err != nil {
		return "", err
	}
	remove := m.Discard // one whose start has no answer may run by now, and has written
	defer func() {
		if fails(err) {
			err = errors.Join(err, undo(ctx, remove, m, s.Name, made))
		}
	}()
	if there.ID != "" {
		if err := stepAside(ctx, m, s.Name, there.ID); err != nil {
			return "", err
		}
	}
	if err := m.Rename(ctx, made, s.Name); err != nil {
		return "", err
	}
	if err := m.Start(ctx, made); err != nil {
		return "", err
	}
	remove = m.End
	return made, stays(ctx, made)
}

// fails says that something is known not to stay.
func fails(err error) bool { return err != nil && !errors.Is(err, ErrUndecided) }

// predecessor is the container that has the name of a spec. What an earlier call has made and not
// started, with other ports than it would have now, is removed, and what that one was to replace
// has the name again; unless it is as it would be made now.
func predecessor(ctx context.Context, m Maker, s Spec, known Known, fresh func(Captured) bool) (Captured, error) {
	there, err := m.Find(ctx, s.Name)
	if err != nil || there.State.Live() || there.Started || !ours(there, s, known) || fresh(there) {
		return there, err
	}
	return removeMade(ctx, m, s, there.ID)
}

// removeMade removes what an earlier call has made of a spec. It returns what has the name then.
func removeMade(ctx context.Context, m Maker, s Spec, id string) (Captured, error) {
	if err := undo(ctx, m.Discard, m, s.Name, id); err != nil {
		return Captured{}, fmt.Errorf("removing what was made of container %s before: %w", s.Name, err)
	}
	return m.Find(ctx, s.Name)
}

// ended says that what an earlier call has made, or has begun, ran and does not any more.
func ended(there Captured, s Spec, known Known) bool {
	return there.Started && !there.State.Live() && (ours(there, s, known) || there.ID == known.Begun && again(there, s, known))
}

// unlessStays is why a container that was there already, and was started, does not stay. It is
// removed then if it is ours, and else stopped: its engine would go on starting it.
func unlessStays(ctx context.Context, m Maker, s Spec, there Captured, known Known, stays func(ctx context.Context, id string) error) error {
	err := stays(ctx, there.ID)
	switch {
	case err == nil:
		return nil
	case !fails(err) && !ours(there, s, known):
		return &BegunError{there.ID, err}
	case !fails(err):
		return err
	}
	if ours(there, s, known) {
		return errors.Join(err, undo(ctx, m.End, m, s.Name, there.ID))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if serr := m.Stop(ctx, there.ID); serr != nil && !errors.Is(serr, ErrNotFound) {
		err = errors.Join(err, fmt.Errorf("stopping it: %w", serr))
	}
	return &StoppedError{there.ID, err}
}

// stepAside gives the container that is to be replaced its other name. Another one that has it
// was left by a call that was cut off at its end, and replaced by this one.
func stepAside(ctx context.Context, m Maker, name, id string) error {
	err := m.Rename(ctx, id, name+replacedSuffix)
	if err == nil {
		return nil
	}
	left, ferr := m.Find(ctx, name+replacedSuffix)
	if ferr != nil || left.ID == id || left.State.Live() {
		return err // or nobody knows whether it has it
	}
	if rerr := m.Remove(ctx, left.ID); rerr != nil {
		return errors.Join(err, rerr)
	}
	return m.Rename(ctx, id, name+replacedSuffix)
}

// NameTaken says why the container of a spec cannot have its name on an engine where another
// one has it; nil where it is that one, or one that it may replace, by ID.
func NameTaken(there Captured, s Spec, known Known) error {
	switch {
	case (there.State.Live() || !there.Started) && alike(there.Spec, s):
		return nil
	case there.State.Live():
		return fmt.Errorf("another container named %s runs on this node", s.Name)
	case !known.mayReplace(there, s) && !again(there, s, known) && !ours(there, s, known):
		return errTaken(s.Name)
	}
	return nil
}

func errTaken(name string) error {
	return fmt.Errorf("a container named %s is on this node already, which is not the one that runs elsewhere; rename or remove it", name)
}

// again says that a container is the one that somebody had prepared, and is still.
func again(there Captured, s Spec, known Known) bool {
	return there.ID != "" && there.ID == known.Prepared && !slices.Contains(known.Replaces, there.ID) && alike(there.Spec, s)
}

// ours says that a container was made here for this very spec, and has not been seen to come
// up. What somebody prepares or starts may have the same image, volumes and labels; and one that
// was recorded here is the old one again, when its user has started that by hand.
func ours(c Captured, s Spec, known Known) bool {
	id := s.madeFor()
	return id != "" && c.Labels[LabelMade] == id && !slices.Contains(known.Replaces, c.ID)
}

// Discard removes what was made under a name that is nobody's any more, unless it runs.
func Discard(ctx context.Context, m Maker, name, id string) error {
	if err := m.Discard(ctx, id); err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	return nameBack(ctx, m, name)
}

// undo removes what was made and gives the old container its name back.
func undo(ctx context.Context, remove func(ctx context.Context, id string) error, m Maker, name, made string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	var errs []error
	if err := remove(ctx, made); err != nil && !errors.Is(err, ErrNotFound) {
		errs = append(errs, fmt.Errorf("removing what was made: %w", err))
	}
	return errors.Join(append(errs, nameBack(ctx, m, name))...)
}

// nameBack gives the container its name back whose place was to be taken.
func nameBack(ctx context.Context, m Maker, name string) error {
	old, err := m.Find(ctx, name+replacedSuffix)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err == nil {
		err = m.Rename(ctx, old.ID, name)
	}
	if err != nil {
		return fmt.Errorf("giving the old container its name back: %w", err)
	}
	return nil
}

// CleanUp removes the container whose place was taken. Whoever stopped waiting while it was
// looked at whether the new one stays has not changed that it does.
func CleanUp(ctx context.Context, m Maker, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	old, err := m.Find(ctx, name+replacedSuffix)
	if err == nil && !old.State.Live() {
		err = m.Remove(ctx, old.ID)
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
