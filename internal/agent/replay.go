package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// suspectLogs notes which copies may have an intent log to replay: those that were
// mounted on this node at some time, since they have its mountpoint, and are not now.
// What a program has synced is in that log until its transaction group is written, some
// seconds later. After a loss of power only the next mount puts it into the dataset: no
// snapshot, no `written` and no stream sees it before, and a received stream overwrites
// it without a word.
func (a *Agent) suspectLogs(got Actual) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, c := range got.Copies {
		if !c.Mounted && c.Mount == a.layout.Mountpoint(id) {
			a.logged[id], c.Logged = true, true
			got.Copies[id] = c
		}
	}
}

// replay mounts a copy read-only and unmounts it again, so that ZFS writes what is in
// its intent log. That needs no lease: it ends what this node has written and answered
// before it lost power, on its own copy, and nobody can write more. Caller holds the
// volume's lock.
func (a *Agent) replay(ctx context.Context, id volume.ID) error {
	name := a.layout.Dataset(id)
	a.cover(a.cluster.State().Volume(id))
	err := a.zfs.Mount(ctx, name, false)
	switch {
	case errors.Is(err, zfs.ErrNotFound), errors.Is(err, zfs.ErrExists): // gone, or mounted by somebody
		err = nil
	case err != nil:
		return fmt.Errorf("writing what was synced before the node lost power: %w", err)
	default:
		err = a.zfs.Unmount(ctx, name)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.logged, id)
	return err
}
