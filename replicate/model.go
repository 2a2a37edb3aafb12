package replicate

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// snap is one snapshot of a copy. pos is set when the engine took it.
type snap struct {
	name    string
	guid    guid
	txg     uint64
	written int64
	pos     volume.Position // zero: a user's or a scheduled one
	rule    time.Duration   // of a scheduled one, its period
	slot    time.Time       // of a scheduled one, what its name says
	pinned  bool            // a hold or a clone is on it
	created time.Time       // as ZFS has it
	// unread is one that a stream brought and that nobody has read from the disk since:
	// its name and guid are known, its txg is above all others and no more than a guess.
	unread bool
}

func (s snap) engine() bool { return !s.pos.IsZero() }

// newSnap is a snapshot as zfs lists it.
func newSnap(z zfs.Snapshot) snap {
	s := snap{name: z.Name, guid: guid(z.GUID), txg: z.CreateTXG, written: z.Written, created: z.Creation, pinned: z.UserRefs > 0 || len(z.Clones) > 0}
	if epoch, seq, ok := volume.ParseSnapshotName(z.Name); ok {
		s.pos = volume.Position{Epoch: epoch, Seq: seq, GUID: z.GUID, Taken: z.Creation}
	} else if every, slot, ok := volume.ParseScheduledName(z.Name); ok {
		s.rule, s.slot = every, slot
	}
	return s
}

// mark is one bookmark.
type mark struct {
	name string
	guid guid
	txg  uint64
}

// What the bookmarks of snapshots that are not the engine's are called, before the
// snapshot's name. Any other bookmark is somebody else's: good to send from, but it
// says nothing about the snapshot, and it stays.
const (
	tombstone = "flk-removed-" // people removed the snapshot
	footprint = "flk-base-"    // a replica may stand on it
)

// engine says that it is of one of the engine's snapshots.
func (m mark) engine() bool {
	_, _, ok := volume.ParseSnapshotName(m.name)
	return ok
}

func (m mark) tombstone() bool { return strings.HasPrefix(m.name, tombstone) }

// ours says that this package left it.
func (m mark) ours() bool {
	return m.engine() || m.tombstone() || strings.HasPrefix(m.name, footprint)
}

// base is where a replica stands, as far as this primary ever heard.
type base struct {
	guid   guid
	pos    volume.Position // zero when it is a user's snapshot or a foreign one
	heard  time.Time       // when the replica last answered
	anchor guid            // of the time; 0: none
	// before is the engine's that it stood on before. It stays until something more is
	// acknowledged, which only zfs finding the base there makes possible: the word of a
	// replica that has not looked since costs nobody what it really stands on.
	before guid
}

// localCopy is what is known of one dataset of this node, from its last listing
// and from what the engine did since. Engine.mu guards it.
type localCopy struct {
	dataset string // its name
	seen    uint64 // Engine.listing when it was last there
	known   bool   // snaps and marks are as on disk
	changed uint64 // Engine.changes when we last changed it, to tell a stale listing

	written    int64
	referenced int64
	mounted    bool
	epoch      volume.Epoch // the property; 0 when it is not set
	badEpoch   string       // the property when it cannot be read
	epochText  string       // the property
	line       string       // propLine
	origin     string
	encryption string // "off" when plain; "" when not known

	snaps []snap // in the order they were taken
	marks []mark // in the order of their snapshots

	// condemned are being destroyed, or were in the last pass: a listing that began
	// before that does not bring them back.
	condemned map[guid]bool
	takenAt   map[string]time.Time // by snapshot name: more exact than ZFS's seconds

	token  string    // of a partial increment
	listed time.Time // when somebody last looked, and it was as we left it

	// On a primary.
	counter   uint64    // of Dirty, last read
	baseline  uint64    // of Dirty, before the newest snapshot
	lastTaken time.Time // when the newest was taken by this process
	unproven  int       // taken by this process while no replica had acknowledged any
	idleAsOf  time.Time // the newest engine snapshot holds all that was written until then
	bases     map[volume.NodeID]base
	anchor    guid            // what all replicas have in common; 0: none, or there are not two
	goal      guid            // what is to be the next anchor; 0: none yet
	found     map[guid]bool   // on disk when this node became primary: any replica may stand on them
	since     time.Time       // when found was filled
	stops     map[guid]int    // snapshots that somebody waits for: to be sent exactly
	removed   map[guid]uint64 // by people, and not told everywhere: what burials was then
	burials   uint64          // counts changes of the tombstones, from 1
	// scheduled is when this process took the newest snapshot of a rule.
	scheduled map[time.Duration]time.Time

	// On a replica, from the last offer that it is in step with, which was of this epoch.
	inStep       volume.Epoch
	floor        volume.Position
	keep         []guid
	moored       []guid        // the anchors
	dropped      map[guid]bool // removed on the primary, and still here
	droppedIn    volume.Epoch  // whose primary said so
	completeAsOf time.Time
	modified     bool // zfs said that the head was changed since the newest snapshot

	pruneAt time.Time          // after a failure: not before
	balked  map[guid]time.Time // what could not be destroyed is not tried before
	lent    map[guid]time.Time // what SyncTo has returned stays until then
}

func newCopy() *localCopy {
	return &localCopy{
		condemned: map[guid]bool{},
		takenAt:   map[string]time.Time{},
		bases:     map[volume.NodeID]base{},
		stops:     map[guid]int{},
		balked:    map[guid]time.Time{},
		lent:      map[guid]time.Time{},
		removed:   map[guid]uint64{},
		scheduled: map[time.Duration]time.Time{},
		burials:   1,
	}
}

// parting says that the copy is halfway to being set aside: what it shared with its
// primary is in the fork already, so it is nothing to send, snapshot or promote. A clone of
// another volume that is just being forked hangs on that one's fork, and stays whole.
func (c *localCopy) parting() bool {
	rest, own := strings.CutPrefix(c.origin, c.dataset)
	return own && strings.HasPrefix(rest, "-fork@")
}

// newest is the newest engine snapshot; the zero one when there is none. What a clone has of an
// original that is gone (epoch 0) is none: a copy that has nothing else is no whole copy.
func (c *localCopy) newest() snap {
	for _, s := range slices.Backward(c.snaps) {
		if s.engine() && s.pos.Epoch != 0 {
			return s
		}
	}
	return snap{}
}

// top is the newest snapshot of any kind.
func (c *localCopy) top() snap {
	if len(c.snaps) == 0 {
		return snap{}
	}
	return c.snaps[len(c.snaps)-1]
}

func (c *localCopy) find(g guid) (snap, bool) {
	i := slices.IndexFunc(c.snaps, func(s snap) bool { return s.guid == g })
	if i < 0 {
		return snap{}, false
	}
	return c.snaps[i], true
}

// namesake is the user's or scheduled snapshot that has the name of another one, g.
func (c *localCopy) namesake(name string, g guid) (snap, bool) {
	i := slices.IndexFunc(c.snaps, func(s snap) bool { return s.name == name && s.guid != g && !s.engine() })
	if i < 0 {
		return snap{}, false
	}
	return c.snaps[i], true
}

// rename notes a snapshot's new name; no schedule knows it by that.
func (c *localCopy) rename(g guid, name string) {
	c.snaps = slices.Clone(c.snaps)
	for i := range c.snaps {
		if c.snaps[i].guid == g {
			c.snaps[i].name, c.snaps[i].rule, c.snaps[i].slot = name, 0, time.Time{}
		}
	}
}

// place says where a guid stands: its txg, 0 when it is neither snapshot nor
// bookmark here, and its position, when it is one of the engine's.
func (c *localCopy) place(g guid) (pos volume.Position, txg uint64) {
	if c == nil || g == 0 {
		return pos, 0
	}
	if s, ok := c.find(g); ok {
		return s.pos, s.txg
	}
	for _, m := range c.marks {
		if m.guid == g {
			txg = m.txg
			if epoch, seq, ok := volume.ParseSnapshotName(m.name); ok {
				pos = volume.Position{Epoch: epoch, Seq: seq, GUID: uint64(g)}
			}
		}
	}
	return pos, txg
}

// had says that a snapshot is here, or was destroyed here by this package: what others
// have destroyed is not here, though they left a bookmark.
func (c *localCopy) had(g guid) bool {
	if c == nil {
		return false
	}
	_, here := c.find(g)
	return here || slices.ContainsFunc(c.marks, func(m mark) bool { return m.guid == g && m.ours() })
}

// nameOf is the name to send from a guid by: @snapshot, #bookmark, or "".
func (c *localCopy) nameOf(g guid) string {
	if s, ok := c.find(g); ok {
		return "@" + s.name
	}
	for _, m := range c.marks {
		if m.guid == g {
			return "#" + m.name
		}
	}
	return ""
}

// next is the position of the next snapshot at an epoch: one above the highest on
// disk, never a clock.
func (c *localCopy) next(epoch volume.Epoch) volume.Position {
	p := volume.Position{Epoch: epoch, Seq: 1}
	for _, s := range c.snaps {
		if s.engine() && s.pos.Epoch == epoch {
			p.Seq = max(p.Seq, s.pos.Seq+1)
		}
	}
	// A bookmark's snapshot is gone, but its name shall not come back.
	for _, m := range c.marks {
		if e, seq, ok := volume.ParseSnapshotName(m.name); ok && e == epoch {
			p.Seq = max(p.Seq, seq+1)
		}
	}
	return p
}

// candidates are all guids to send from, newest first.
func (c *localCopy) candidates(limit int) (bases []guid, truncated bool) {
	type from struct {
		guid guid
		txg  uint64
	}
	all := make([]from, 0, len(c.snaps)+len(c.marks))
	for _, s := range c.snaps {
		all = append(all, from{s.guid, s.txg})
	}
	for _, m := range c.marks {
		all = append(all, from{m.guid, m.txg})
	}
	slices.SortStableFunc(all, func(a, b from) int { return -compare(a.txg, b.txg) })
	seen := map[guid]bool{}
	for _, f := range all {
		if seen[f.guid] {
			continue
		}
		if len(bases) == limit {
			return bases, true
		}
		seen[f.guid] = true
		bases = append(bases, f.guid)
	}
	return bases, false
}

// tombstones are the guids of what was removed here, but for those in told: at most
// limit, and whether these are all. First come those that not every replica knows, then
// the newest.
func (c *localCopy) tombstones(told map[guid]bool, limit int) (list []guid, all bool) {
	var first, rest []guid
	marked := map[guid]bool{}
	for _, m := range slices.Backward(c.marks) {
		if _, here := c.find(m.guid); here || !m.tombstone() {
			continue
		}
		marked[m.guid] = true
		if c.removed[m.guid] != 0 {
			first = append(first, m.guid)
		} else {
			rest = append(rest, m.guid)
		}
	}
	for _, g := range slices.Sorted(maps.Keys(c.removed)) {
		if _, here := c.find(g); !here && !marked[g] {
			first = append(first, g)
		}
	}
	list = slices.DeleteFunc(append(first, rest...), func(g guid) bool { return told[g] })
	return list[:min(len(list), limit)], len(list) <= limit
}

// forgetRemoved forgets what all replicas have been told of up to a count of burials:
// those who were away then have spoken since.
func (c *localCopy) forgetRemoved(upTo uint64) {
	maps.DeleteFunc(c.removed, func(_ guid, at uint64) bool { return at <= upTo })
}

// drop adds what the primary of this epoch says was removed, as far as it is here: it
// may tell it in portions, and says nothing most of the time. What a primary before it
// has said does not count any more: this one may have a snapshot that was removed there.
func (c *localCopy) drop(epoch volume.Epoch, guids []guid) {
	if c.droppedIn != epoch || c.dropped == nil {
		c.dropped, c.droppedIn = map[guid]bool{}, epoch
	}
	if len(guids) == 0 {
		return
	}
	for _, g := range guids {
		c.dropped[g] = true
	}
	here := maps.Clone(c.condemned) // they may come back, when they cannot be destroyed
	if here == nil {
		here = map[guid]bool{}
	}
	for _, s := range c.snaps {
		here[s.guid] = true
	}
	maps.DeleteFunc(c.dropped, func(g guid, _ bool) bool { return c.known && !here[g] })
}

func compare(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// setDataset takes over what a listing says of the dataset itself.
func (c *localCopy) setDataset(d zfs.Dataset) {
	c.written, c.referenced, c.mounted, c.origin, c.token = d.Written, d.Referenced, d.Mounted, d.Origin, d.ResumeToken
	c.encryption = d.Encryption
	c.line = d.User[propLine]
	s := d.User[propEpoch]
	if s == c.epochText {
		return // as ever
	}
	c.epochText, c.epoch, c.badEpoch = s, 0, ""
	if s != "" {
		epoch, err := volume.ParseEpoch(s)
		if err != nil {
			c.badEpoch = s
		}
		c.epoch = epoch
	}
}

// setSnapshots takes over a listing of snapshots. The exact times of those that
// this process saw taken stay.
func (c *localCopy) setSnapshots(list []zfs.Snapshot) {
	c.snaps = c.snaps[:0:0]
	times := map[string]time.Time{}
	for _, z := range list {
		s := newSnap(z)
		if c.condemned[s.guid] {
			continue
		}
		if t, ok := c.takenAt[z.Name]; ok && s.engine() {
			s.pos.Taken, times[z.Name] = t, t
		}
		c.snaps = append(c.snaps, s)
	}
	slices.SortStableFunc(c.snaps, func(a, b snap) int { return compare(a.txg, b.txg) })
	c.takenAt = times
}

// add takes over one snapshot that was just taken.
func (c *localCopy) add(z zfs.Snapshot) snap {
	s := newSnap(z)
	if t, ok := c.takenAt[z.Name]; ok && s.engine() {
		s.pos.Taken = t
	}
	c.snaps = slices.DeleteFunc(slices.Clone(c.snaps), func(old snap) bool { return old.guid == s.guid })
	c.snaps = append(c.snaps, s)
	slices.SortStableFunc(c.snaps, func(a, b snap) int { return compare(a.txg, b.txg) })
	return s
}

// confirm takes over one that was unread, as it was read from the disk. Others that came
// after it are still unread, and have come after it: their guesses are made anew above it.
func (c *localCopy) confirm(z zfs.Snapshot) {
	i := slices.IndexFunc(c.snaps, func(s snap) bool { return s.guid == guid(z.GUID) })
	s := newSnap(z)
	if t, ok := c.takenAt[z.Name]; ok && s.engine() {
		s.pos.Taken = t
	}
	c.snaps = slices.Clone(c.snaps)
	c.snaps[i] = s
	for j := i + 1; j < len(c.snaps); j++ {
		if next := &c.snaps[j]; next.unread {
			next.txg = max(next.txg, c.snaps[j-1].txg+1)
		}
	}
}

// unread are the snapshots that nobody has read from the disk since streams brought them.
func (c *localCopy) unread() (list []snap) {
	for _, s := range c.snaps {
		if s.unread {
			list = append(list, s)
		}
	}
	return list
}

func (c *localCopy) setBookmarks(list []zfs.Bookmark) {
	c.marks = c.marks[:0:0]
	for _, z := range list {
		c.marks = append(c.marks, mark{name: z.Name, guid: guid(z.GUID), txg: z.CreateTXG})
	}
	slices.SortStableFunc(c.marks, func(a, b mark) int { return compare(a.txg, b.txg) })
}

// becomePrimary forgets what an earlier time as primary, or none, made of the copy:
// where the replicas stand is to be heard anew.
func (c *localCopy) becomePrimary(now time.Time) {
	if c == nil {
		return
	}
	c.found, c.unproven, c.idleAsOf, c.lastTaken = nil, 0, time.Time{}, time.Time{}
	c.anchor, c.goal = 0, 0
	clear(c.scheduled)
	clear(c.removed)
	if c.known {
		c.remember(now)
	}
}

// meet makes found hold all that is here once more, for a replica that is new: it may
// have been one before, and stand on anything of it.
func (c *localCopy) meet(now time.Time) {
	if c == nil || c.found == nil {
		return // the copy was not looked at yet: remember fills it
	}
	c.since = now
	for _, s := range c.snaps {
		c.found[s.guid] = true
	}
	for _, m := range c.marks {
		c.found[m.guid] = true
	}
}

// remember fills found, once: from then on this node knows what it sent.
func (c *localCopy) remember(now time.Time) {
	if c.found != nil {
		return
	}
	c.found, c.since = map[guid]bool{}, now
	for _, s := range c.snaps {
		c.found[s.guid] = true
	}
	for _, m := range c.marks {
		c.found[m.guid] = true
		if m.tombstone() {
			c.removed[m.guid] = c.burials
		}
	}
}

// lagBytes is about how much a replica that stands on base lacks.
func (c *localCopy) lagBytes(base guid) int64 {
	lag := c.written
	for _, s := range slices.Backward(c.snaps) {
		if s.guid == base {
			return lag
		}
		lag += s.written
	}
	return max(lag, c.referenced)
}

// writtenAfter is about how much the snapshots after one hold.
func (c *localCopy) writtenAfter(to snap) (n int64) {
	for _, s := range c.snaps {
		if s.txg > to.txg {
			n += s.written
		}
	}
	return n
}

// sortedIDs gives a map's volumes in a fixed order.
func sortedIDs[V any](m map[volume.ID]V) []volume.ID { return slices.Sorted(maps.Keys(m)) }
