package replicate

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// perform does one step about a copy, on disk. Each step can be done again, and is
// recognisable half done from names and origins alone. Epoch 0: leave it.
func (e *Engine) perform(ctx context.Context, id volume.ID, st step, epoch volume.Epoch, props map[string]string) error {
	e.distrust(id)
	pool, name := e.cfg.Pool, e.cfg.dataset(id)
	switch st.act {
	case actRaiseEpoch:
		return pool.SetProperties(ctx, name, map[string]string{propEpoch: epoch.String(), propVolume: string(id)})
	case actAbort:
		return pool.AbortReceive(ctx, name)
	case actAbortSeed:
		return e.abortSeed(ctx, id, st.epoch)
	case actAdoptSeed:
		from := e.cfg.seed(id, st.epoch)
		if err := pool.SetProperties(ctx, from, copyProperties(id, max(epoch, st.epoch), props)); err != nil {
			return err
		}
		return pool.Rename(ctx, from, name)
	case actShelveSeed:
		return e.shelve(ctx, id, e.cfg.seed(id, st.epoch), st.reason, false)
	case actFork:
		// Halfway, the copy has nothing of what it shares any more: whoever looks at it next
		// must see the fork.
		e.mu.Lock()
		e.leaves(id)
		e.mu.Unlock()
		if err := e.forkCopy(ctx, id, st, epoch, props); err != nil {
			return err
		}
		e.unmodified(id)
		return nil
	case actShelve:
		if err := e.saveHead(ctx, name); err != nil {
			return err
		}
		return e.shelve(ctx, id, name, st.reason, false)
	}
	return fmt.Errorf("no such step: %s", st.act)
}

// distrust forgets what was known of a copy: it is being changed, or was.
func (e *Engine) distrust(id volume.ID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.copies[id]; c != nil {
		c.known, c.listed = false, time.Time{}
		e.touch(c)
	}
}

// unmodified notes that a copy's head is that of its newest snapshot again, which is
// one that was there before all that has gone aside.
func (e *Engine) unmodified(id volume.ID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.copies[id]; c != nil {
		c.modified, c.completeAsOf, c.inStep = false, time.Time{}, 0
	}
}

// SetAside renames this node's copy of a volume that is not assigned here to where
// set-aside copies are kept, with all that is in it. It blocks until that is done,
// and may be called again.
func (e *Engine) SetAside(ctx context.Context, id volume.ID, reason string) error {
	e.mu.Lock()
	assigned := e.table[id] != nil
	rctx, release, ok := e.claim(ctx, id, 0, "")
	e.mu.Unlock()
	if !ok {
		return volume.Errorf(volume.CodeConflict, "volume %s is being received", id)
	}
	defer release()
	if assigned {
		return volume.Errorf(volume.CodeConflict, "volume %s is assigned to this node", id)
	}
	return e.perform(rctx, id, step{act: actShelve, reason: reason}, 0, nil)
}

// abortSeed throws a partial seed away; one that zfs does not know as partial is
// set aside instead.
func (e *Engine) abortSeed(ctx context.Context, id volume.ID, epoch volume.Epoch) error {
	name := e.cfg.seed(id, epoch)
	if err := e.cfg.Pool.AbortReceive(ctx, name); err != nil && !errors.Is(err, zfs.ErrNotFound) {
		return err
	}
	_, err := e.cfg.Pool.Dataset(ctx, name)
	if errors.Is(err, zfs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return e.shelve(ctx, id, name, "a seed that zfs cannot abort", false)
}

// saveHead makes sure that everything in a copy that is about to be set aside is
// in a snapshot, and that no partial receive is in the way.
func (e *Engine) saveHead(ctx context.Context, name string) error {
	d, err := e.cfg.Pool.Dataset(ctx, name)
	if err != nil {
		return err
	}
	if d.ResumeToken != "" {
		if err := e.cfg.Pool.AbortReceive(ctx, name); err != nil {
			return err
		}
	}
	if d.Written == 0 {
		return nil
	}
	snaps, err := e.cfg.Pool.Snapshots(ctx, name, false)
	if err != nil {
		return err
	}
	taken := map[string]bool{}
	for _, s := range snaps {
		taken[s.Name] = true
	}
	for n := 1; ; n++ {
		if lost := fmt.Sprintf("lost-%d", n); !taken[lost] {
			return e.cfg.Pool.Snapshot(ctx, []string{name + "@" + lost}, nil)
		}
	}
}

// shelve renames a dataset to where set-aside copies are kept.
func (e *Engine) shelve(ctx context.Context, id volume.ID, name, reason string, common bool) error {
	root := e.cfg.asideRoot()
	err := e.cfg.Pool.CreateFilesystem(ctx, root, map[string]string{"mountpoint": "none", "canmount": "off"})
	if err != nil && !errors.Is(err, zfs.ErrExists) {
		return err
	}
	list, err := e.cfg.Pool.Datasets(ctx, root)
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, d := range list {
		used[d.Name] = true
	}
	epoch, err := e.newestEpoch(ctx, name)
	if err != nil {
		return err
	}
	n := 1
	for used[e.cfg.aside(id, epoch, n)] {
		n++
	}
	to := e.cfg.aside(id, epoch, n)
	if reason, err = e.noteAside(ctx, name, reason); err != nil {
		return err
	}
	if err := e.cfg.Pool.Rename(ctx, name, to); err != nil {
		return err
	}
	e.emit(SetAside{Volume: id, Dataset: to, Common: common, Reason: reason})
	return nil
}

// noteAside writes onto a dataset that is about to be set aside when and why it
// was, and returns the reason. After a crash the reason of before is kept, and the
// time is written again. Where there is no space for that, an earlier time must not stay:
// by it the copy might be destroyed as soon as it is aside.
func (e *Engine) noteAside(ctx context.Context, name, reason string) (string, error) {
	d, err := e.cfg.Pool.Dataset(ctx, name)
	if err != nil {
		return "", err
	}
	at, before := parseAsideNote(d.User[propAside])
	if before != "" && reason == interrupted {
		reason = before
	}
	err = e.cfg.Pool.SetProperties(ctx, name, map[string]string{propAside: asideNote(e.cfg.Clock(), reason)})
	if errors.Is(err, zfs.ErrNoSpace) && at.IsZero() {
		err = nil // without a time it does not expire, and what waits for it goes on
	}
	return reason, err
}

// AsideNote is what is written onto a dataset that becomes a set-aside copy.
func AsideNote(at time.Time, reason string) string { return asideNote(at, reason) }

// asideNote is the value of propAside.
func asideNote(at time.Time, reason string) string {
	printable := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, clip(reason))
	return at.UTC().Format(time.RFC3339) + " " + printable
}

// parseAsideNote reads what asideNote wrote. A time that cannot be read is zero, and
// then all of it is the reason.
func parseAsideNote(s string) (at time.Time, reason string) {
	text, rest, _ := strings.Cut(s, " ")
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, s
	}
	return at, rest
}

// ParseAside reads what is known of a copy that was set aside below root, which is
// "<pool>/flocker-aside"; ok is false for any other dataset.
func ParseAside(d zfs.Dataset, root string) (aside volume.Aside, ok bool) {
	name, found := strings.CutPrefix(d.Name, root+"/")
	parts := strings.Split(name, "-")
	if !found || len(parts) != 3 || d.Volume {
		return volume.Aside{}, false
	}
	id, err1 := volume.ParseID(parts[0])
	epoch, err2 := volume.ParseEpoch(parts[1])
	if n, err := strconv.Atoi(parts[2]); err1 != nil || err2 != nil || err != nil || n < 1 {
		return volume.Aside{}, false
	}
	aside = volume.Aside{Name: name, Volume: id, Epoch: epoch, Used: d.Used, Data: d.Referenced}
	aside.Whole = volume.Spec{ZFS: d.User}.Whole()
	aside.At, aside.Reason = parseAsideNote(d.User[propAside])
	return aside, true
}

// NextAside is the name of a set-aside copy of the same volume and epoch, for when that
// name is taken.
func NextAside(name string) (string, error) {
	cut := strings.LastIndexByte(name, '-') + 1
	n, err := strconv.Atoi(name[cut:])
	if err != nil {
		return "", fmt.Errorf("%q is not the name of a set-aside copy", name)
	}
	return name[:cut] + strconv.Itoa(n+1), nil
}

// newestEpoch is that of a dataset's newest engine snapshot: the one it diverged in.
// A copy that was forked has given its history away, and stands on the newest
// snapshot of that.
func (e *Engine) newestEpoch(ctx context.Context, name string) (volume.Epoch, error) {
	snaps, err := e.cfg.Pool.Snapshots(ctx, name, false)
	if err != nil {
		return 0, err
	}
	var c localCopy
	c.setSnapshots(snaps)
	if newest := c.newest(); newest.guid != 0 {
		return newest.pos.Epoch, nil
	}
	d, err := e.cfg.Pool.Dataset(ctx, name)
	if err != nil {
		return 0, err
	}
	origin, _ := strings.CutPrefix(d.Origin, name+"-fork@") // that of a clone is of another volume
	if epoch, _, ok := volume.ParseSnapshotName(origin); ok {
		return epoch, nil
	}
	epoch, _ := volume.ParseEpoch(d.User[propEpoch]) // a user's snapshot says nothing of it
	return epoch, nil
}

// forkCopy sets aside what a copy has beyond the newest snapshot it shares with
// its primary, in constant time and space:
//
//	copy@common --clone--> fork; promote fork: the history up to common is its own
//	copy --rename--> flocker-aside/...; fork --rename--> copy
//
// From the names and origins it finds what is already done, so after a crash it
// goes on, whoever calls it.
func (e *Engine) forkCopy(ctx context.Context, id volume.ID, st step, epoch volume.Epoch, props map[string]string) error {
	pool, name, fork := e.cfg.Pool, e.cfg.dataset(id), e.cfg.fork(id)
	live, err := lookup(ctx, pool, name)
	if err != nil {
		return err
	}
	forked, err := lookup(ctx, pool, fork)
	if err != nil {
		return err
	}
	if forked == nil {
		if live == nil || st.common == 0 {
			return nil // all done, or never begun
		}
		if err := e.saveHead(ctx, name); err != nil {
			return err
		}
		if err := e.cloneAt(ctx, id, st.common, epoch, props); err != nil {
			return err
		}
		if forked, err = lookup(ctx, pool, fork); err != nil || forked == nil {
			return errors.Join(err, errors.New("the fork is not there"))
		}
	}
	if strings.HasPrefix(forked.Origin, name+"@") {
		if err := pool.Promote(ctx, fork); err != nil {
			return err
		}
		if live, err = lookup(ctx, pool, name); err != nil {
			return err
		}
	}
	if live != nil {
		if !strings.HasPrefix(live.Origin, fork+"@") {
			return fmt.Errorf("%s and %s have nothing to do with each other; one must be renamed by hand", name, fork)
		}
		if err := e.shelve(ctx, id, name, st.reason, true); err != nil {
			return err
		}
	}
	return pool.Rename(ctx, fork, name)
}

// cloneAt makes the fork from the snapshot with this guid.
func (e *Engine) cloneAt(ctx context.Context, id volume.ID, common guid, epoch volume.Epoch, props map[string]string) error {
	name := e.cfg.dataset(id)
	snaps, err := e.cfg.Pool.Snapshots(ctx, name, false)
	if err != nil {
		return err
	}
	for _, s := range snaps {
		if guid(s.GUID) == common {
			return e.cfg.Pool.Clone(ctx, s.FullName(), e.cfg.fork(id), copyProperties(id, epoch, props))
		}
	}
	return fmt.Errorf("%s has no snapshot with guid %d", name, common)
}

// lookup returns the dataset, or nil when zfs says that there is none.
func lookup(ctx context.Context, pool Pool, name string) (*zfs.Dataset, error) {
	d, err := pool.Dataset(ctx, name)
	if errors.Is(err, zfs.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &d, nil
}
