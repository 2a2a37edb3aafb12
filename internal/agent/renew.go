package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// A pool can be destroyed and made anew, or another one come in its place under its name. Then what
// flocker keeps there is missing, and nothing on this node can be listed until it is made again: while flockd
// runs by renew, and after a start by prepareFirst.

// keepsOff says why the parents of all datasets are not made again in a pool that works and does not
// have them; "" when they are. To make them is to say that this node has no copy any more and that its pool
// is well. A replica is seeded anew for that, which is right. But nobody takes a volume from a
// primary that may write and has lost its dataset: that is an operator's to decide. Without the parents
// the pool's canary fails, so this node's lease ends, and what it was the primary of is failed
// over; so it keeps off until then. Without leases nothing would come of waiting.
func keepsOff(s *state.State, self volume.NodeID, pool zfs.Pool) string {
	switch {
	case pool.Health != "ONLINE" && pool.Health != "DEGRADED":
		return fmt.Sprintf("pool %s is in state %s", pool.Name, pool.Health)
	case pool.ReadOnly:
		return fmt.Sprintf("pool %s is read-only", pool.Name)
	case !s.NeedsLease(self):
		return ""
	}
	for v := range s.Volumes() {
		if v.Placement.Primary == self && v.Electable() {
			return fmt.Sprintf("pool %s lacks what flocker keeps there, as a new one does: it is used again once volume %s, which this node is the primary of, has failed over", pool.Name, v.Name)
		}
	}
	return ""
}

// prepareFirst is prepare after a start. That the pool lacks what flocker keeps there may be because it is
// used for the first time, and because it was made anew while flockd did not run: nothing that this node
// remembers tells them apart for sure, as its own state may be older. So it asks first what it is the
// primary of by now. To have asked may be what it waits for: a machine that has lost its power and cannot reset
// itself is not failed over by time, only once it says that nothing of its lease is written in this boot.
func (a *Agent) prepareFirst(ctx context.Context) error {
	_, err := a.zfs.Dataset(ctx, a.layout.Root())
	switch {
	case errors.Is(err, zfs.ErrNotFound):
	case err != nil:
		return err
	default:
		return a.prepare(ctx)
	}
	pool, err := a.zfs.Pool(ctx, a.layout.Pool)
	lead := a.catchUp(ctx) // also where there is no pool: what was on it need not wait for it
	switch {
	case err != nil:
		return err
	case lead != nil:
		return fmt.Errorf("pool %s lacks what flocker keeps there, and what this node is the primary of is not known: %w", pool.Name, lead)
	}
	if why := keepsOff(a.cluster.State(), a.self, pool); why != "" {
		return errors.New(why)
	}
	return a.prepare(ctx)
}

// renew makes the parents of all datasets again, after a listing has ended with cause, when that is
// because they are gone from a pool that is there. Nil: they are there.
func (a *Agent) renew(ctx context.Context, cause error) error {
	if !errors.Is(cause, zfs.ErrNotFound) {
		return cause
	}
	pool, err := a.zfs.Pool(ctx, a.layout.Pool)
	if err != nil {
		return fmt.Errorf("%w; its pool: %w", cause, err) // exported, say: not empty
	}
	_, err = a.zfs.Dataset(ctx, a.layout.Root())
	if err != nil && !errors.Is(err, zfs.ErrNotFound) {
		return fmt.Errorf("%w; %w", cause, err)
	}
	if err != nil { // else only the trash, or what was set aside, is missing: that is nobody's copy
		if why := keepsOff(a.cluster.State(), a.self, pool); why != "" {
			return fmt.Errorf("%w: %s", cause, why)
		}
	}
	if err := a.prepare(ctx); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.log.Warn("what flocker keeps in its pool was gone, and has been made again: copies that were there are made anew from others",
		"pool", pool.Name, "guid", pool.GUID, "before", a.pool.GUID, "missing", cause)
	a.list, a.trashAt, a.asked, a.asidesAt = nil, time.Time{}, time.Time{}, time.Time{}
	a.actedAt = time.Now() // what was seen before tells nothing
	return nil
}
