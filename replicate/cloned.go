package replicate

import (
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// Cloned says that the caller has just made this node's copy of a volume at an epoch, as a clone of a
// snapshot that zfs told of afterwards. What is known by that is not read from the disk
// again, which would be commands of zfs for each of many clones: the copy has no snapshots of its own
// and nothing was written to it, and that snapshot cannot be destroyed now.
func (e *Engine) Cloned(id volume.ID, epoch volume.Epoch, of zfs.Snapshot) {
	e.mu.Lock()
	defer e.mu.Unlock()
	encryption := ""
	if k, from, _ := e.cfg.parse(of.Dataset); k == kindCopy {
		if o := e.copies[from]; o != nil {
			e.touch(o)
			o.pin(guid(of.GUID))
			encryption = o.encryption
			if !o.known {
				wake(e.wakeCadence)
			}
		}
	}
	if c := e.copies[id]; c != nil && (c.known || c.changed > 0) {
		return // somebody was quicker, and has read it
	}
	c := e.copyOf(id)
	c.seen = e.listing
	e.touch(c)
	c.setDataset(zfs.Dataset{Referenced: of.Referenced, Origin: of.FullName(), Encryption: encryption, User: map[string]string{propEpoch: epoch.String()}})
	c.snaps, c.marks, c.known = nil, nil, true
	c.remember(time.Now())
}

// pin notes that a snapshot has a clone. One that is not known has come since the copy was read.
func (c *localCopy) pin(g guid) {
	i := slices.IndexFunc(c.snaps, func(s snap) bool { return s.guid == g })
	if i < 0 {
		c.known = false
		return
	}
	c.snaps = slices.Clone(c.snaps)
	c.snaps[i].pinned = true
}

// unseen says that an assignment makes it worth asking what there is: not where nothing but what is
// to stay is another, nor where the copy is known, since this node has made it. The caller holds mu.
func (e *Engine) unseen(old *Assignment, a Assignment) bool {
	if old != nil {
		was := *old
		was.Stay = a.Stay
		return !sameAssignment(&was, &a)
	}
	c := e.copies[a.Volume]
	return a.Role != volume.RolePrimary || c == nil || !c.known || c.encryption == ""
}
