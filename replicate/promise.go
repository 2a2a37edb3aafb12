package replicate

import (
	"context"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// Promise makes this node take nothing about a volume that is of an epoch below the
// one given, whatever it is assigned later, and says what its copy holds then. It
// blocks until what was being received for an older epoch has ended; what is left of
// that is thrown away, and a set-aside that was cut short is finished. Where this node
// was the primary it snapshots and sends nothing any more.
//
// The position is read from the disk. It can only change by what this node is assigned
// at Epoch or above, so a promise stays true until the epoch has a primary. An error is
// no position: the copy may hold anything. CodeConflict says that the volume is beyond
// that epoch, or has a primary in it already.
//
// A copy that holds what a rollback has undone, and the snapshot that the volume went back
// to, stands where the line begins: what it has beyond that counts for nothing, and is set
// aside (GoBack) before anybody writes it. One that ends before that snapshot says so.
func (e *Engine) Promise(ctx context.Context, id volume.ID, epoch volume.Epoch, line volume.Line) (volume.Promise, error) {
	if err := e.withhold(id, epoch); err != nil {
		return volume.Promise{}, err
	}
	// A snapshot of the epoch that is over may just be being taken.
	if err := acquire(ctx, e.snapping); err != nil {
		return volume.Promise{}, err
	}
	release(e.snapping)

	p := volume.Promise{Epoch: epoch}
	err := e.claimed(ctx, id, func(ctx context.Context) error {
		s, err := e.tidy(ctx, id, tidyAll)
		if err != nil {
			return err
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		c := e.copies[id]
		switch {
		case !s.exists || c == nil:
			return nil
		case c.parting():
			return volume.Errorf(volume.CodeUnavailable, "volume %s: %v", id, errParting)
		case c.badEpoch != "":
			return volume.Errorf(volume.CodeUnavailable, "volume %s: the copy's epoch %q cannot be read", id, c.badEpoch)
		case c.epoch > epoch:
			return volume.Errorf(volume.CodeConflict, "volume %s: the copy has accepted epoch %s", id, c.epoch)
		}
		p.Exists, p.Newest, p.AsOf = true, c.newest().pos, c.provenAsOf(e.cfg.Settle)
		_, holds := c.find(guid(line.GUID))
		marked, err := line.Marked(id, c.line)
		if err != nil {
			return volume.Errorf(volume.CodeUnavailable, "volume %s: the copy's property %s: %v", id, propLine, err)
		}
		if (holds || marked) && !onLine(c.snaps, line) {
			p.Newest, p.AsOf = line.Start(), line.Taken
			// Of one on the line what people have taken on it counts: it is not set aside.
			if top := c.top(); marked && top.guid != guid(line.GUID) && top.created.Add(-e.cfg.Settle).After(p.AsOf) {
				p.AsOf = top.created.Add(-e.cfg.Settle)
			}
			return nil
		}
		// Nobody can say of people's snapshots on top whether they came before the line or were undone.
		p.Before = line.Before(c.top().pos) && c.top().engine() && c.written == 0 && !c.modified
		return nil
	})
	if err != nil {
		return volume.Promise{}, err
	}
	return p, nil
}

// withhold notes a promise and ends what goes on against it.
func (e *Engine) withhold(id volume.ID, epoch volume.Epoch) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	a := e.table[id]
	switch {
	case e.promised[id] > epoch:
		return volume.Errorf(volume.CodeConflict, "volume %s: epoch %s was promised already", id, e.promised[id])
	case a != nil && a.Epoch > epoch:
		return volume.Errorf(volume.CodeConflict, "volume %s is at epoch %s", id, a.Epoch)
	case a != nil && a.Epoch == epoch && a.Primary != "":
		return volume.Errorf(volume.CodeConflict, "volume %s has a primary in epoch %s", id, epoch)
	}
	e.promised[id] = epoch
	if a != nil && a.Epoch < epoch {
		over := a.without(epoch)
		e.table[id] = &over
		e.relist = true
		e.reassigned()
	} else if r := e.receives[id]; a == nil && r != nil && r.peer != "" {
		r.cancel(errSuperseded)
	}
	return nil
}

// without is what a node is assigned once an epoch has begun that has no primary yet.
func (a Assignment) without(epoch volume.Epoch) Assignment {
	a.Epoch, a.Role, a.Primary, a.Replicas, a.Frozen = epoch, volume.RoleReplica, "", nil, true
	return a
}

// provenAsOf is the primary's time up to which a copy holds all that was written. What
// the primary said counts, or when it took the newest snapshot; after a restart only
// the time of that snapshot on the disk is left, which ZFS may have stamped some time
// after the last write that is in it.
func (c *localCopy) provenAsOf(settle time.Duration) time.Time {
	newest := c.newest()
	if newest.guid == 0 {
		return time.Time{}
	}
	at := newest.pos.Taken
	if _, exact := c.takenAt[newest.name]; !exact {
		at = at.Add(-settle)
	}
	if c.completeAsOf.After(at) {
		at = c.completeAsOf
	}
	return at
}
