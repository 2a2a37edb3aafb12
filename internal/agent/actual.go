package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// Actual is what is on this node's disk.
type Actual struct {
	Copies map[volume.ID]Copy // below Layout.Root
	Trash  map[volume.ID]Copy // below Layout.Trash
	// Parts are datasets that replication keeps beside a copy: a seed that is not
	// complete, a fork that changes places.
	Parts map[volume.ID][]string
	// Seeding are volumes of which a first copy is being received in full: on nothing.
	Seeding map[volume.ID]bool
	// Strange are datasets below Root that are no volume's; they are left alone.
	Strange []string
	// Returned are volumes whose dataset is again what it was before they were to be made of it.
	Returned map[volume.ID]bool
	// NoTrash says that the trash was not looked at, since nothing hung on it.
	NoTrash bool
}

// Copy is one dataset of a volume.
type Copy struct {
	Dataset  string
	Epoch    volume.Epoch // highest it has accepted; 0 when it does not say
	Line     string       // the mark of the volume.Line that it is on; "": none
	Mounted  bool
	RefQuota int64
	Used     int64
	Data     int64
	Shares   *volume.Shared
	Mount    string // mountpoint property
	// Logged says that what was synced before a loss of power may be in the dataset's
	// intent log only: see StepReplay.
	Logged bool
}

// mounted are the volumes whose dataset is mounted.
func (got Actual) mounted() []volume.ID {
	var out []volume.ID
	for id, c := range got.Copies {
		if c.Mounted {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// observe reads the disk with one command per tree, or unless fresh takes what somebody
// else has listed since the last time.
func (a *Agent) observe(ctx context.Context, fresh bool) (Actual, error) {
	got := Actual{Copies: map[volume.ID]Copy{}, Trash: map[volume.ID]Copy{}, Parts: map[volume.ID][]string{}, Seeding: map[volume.ID]bool{}}
	live, err := a.live(ctx, fresh)
	if err != nil {
		return Actual{}, err
	}
	for _, d := range live {
		if d.Volume {
			got.Strange = append(got.Strange, d.Name)
		} else if id, ok := volumeIn(a.layout.Root(), d.Name); ok {
			got.Copies[id] = a.noteLog(id, copyOf(d))
		} else if id, ok := partOf(a.layout.Root(), d.Name); ok {
			got.Parts[id] = append(got.Parts[id], d.Name)
			if _, seed := seedOf(a.layout.Root(), d.Name); seed && d.Origin == "" {
				got.Seeding[id] = true
			}
		} else if d.Name != a.layout.Root() {
			got.Strange = append(got.Strange, d.Name)
		}
	}
	if err := a.lookShared(ctx, got, live); err != nil {
		return Actual{}, err
	}
	a.mu.Lock()
	a.addMade(got)
	got.Returned = maps.Clone(a.returned)
	a.mu.Unlock()
	if got.NoTrash = !(time.Since(a.trashAt) > trashPoll || trashMatters(a.cluster.State(), got, a.self)); !got.NoTrash {
		asked := time.Now()
		trash, err := a.zfs.Datasets(ctx, a.layout.Trash())
		if err != nil {
			return Actual{}, fmt.Errorf("listing %s: %w", a.layout.Trash(), err)
		}
		for _, d := range trash {
			if id, ok := volumeIn(a.layout.Trash(), d.Name); ok && !d.Volume {
				got.Trash[id] = copyOf(d)
			}
		}
		a.trashAt = asked
	}
	return got, nil
}

// lookShared says of the copies that are clones what they share. zfs is asked once for each snapshot that
// one stands on: what a snapshot refers to never changes. One that is not there any more was renamed
// since the listing, or is another's by now, and is asked for at the next look.
func (a *Agent) lookShared(ctx context.Context, got Actual, live []zfs.Dataset) error {
	origins := map[volume.ID]string{}
	known := map[string]volume.Shared{}
	var ask []string
	for _, d := range live {
		id, ok := volumeIn(a.layout.Root(), d.Name)
		if !ok || d.Origin == "" {
			continue
		}
		origins[id] = d.Origin
		if s, ok := a.shared[d.Origin]; ok {
			known[d.Origin] = s
		} else if !slices.Contains(ask, d.Origin) {
			ask = append(ask, d.Origin)
		}
	}
	if len(ask) > 0 {
		found, err := a.zfs.SnapshotsNamed(ctx, ask)
		if err != nil {
			return fmt.Errorf("asking what clones share with their origins: %w", err)
		}
		for _, s := range found {
			with, _ := volumeIn(a.layout.Root(), s.Dataset)
			known[s.FullName()] = volume.Shared{With: with, GUID: s.GUID, Bytes: s.Referenced}
		}
	}
	a.shared = known
	for id, origin := range origins {
		if s, ok := known[origin]; ok {
			c := got.Copies[id]
			c.Shares = &s
			got.Copies[id] = c
		}
	}
	return nil
}

// noteLog marks a copy whose intent log is still to be replayed. Any mount does that.
func (a *Agent) noteLog(id volume.ID, c Copy) Copy {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.Mounted {
		delete(a.logged, id)
	}
	c.Logged = a.logged[id]
	return c
}

// live lists the datasets of volumes, or where it need not be fresh takes a listing that
// somebody else made since the last, or the last where the next is not due.
func (a *Agent) live(ctx context.Context, fresh bool) ([]zfs.Dataset, error) {
	if !fresh && a.listed != nil {
		if list, began := a.listed(); began.After(a.lookedAt) {
			a.list, a.lookedAt, a.listedAt, a.excused = list, began, time.Now(), false
			return list, nil
		}
	}
	if !fresh && a.list != nil && a.undisturbed(time.Now(), a.listEvery()) {
		return a.list, nil
	}
	began := time.Now()
	list, err := a.zfs.Datasets(ctx, a.layout.Root())
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", a.layout.Root(), err)
	}
	a.list, a.lookedAt, a.listedAt, a.lookTook, a.excused = list, began, time.Now(), time.Since(began), false
	return list, nil
}

// listEvery is how old a listing may be to go on with: where they take long, as long as
// they are an eighth of the time. Replication, which makes one in five, then makes all.
func (a *Agent) listEvery() time.Duration {
	return max(a.poll, min(8*a.lookTook, longestList))
}

const longestList = 2 * time.Minute

// trashPoll is how often the trash is listed without a reason.
const trashPoll = 5 * time.Minute

// trashMatters says whether what is in this node's trash could make a difference:
// for a volume that was removed, and for one that lacks its copy here, which may have
// to come back from there. One that is just being made was never removed. It spares an idle node a
// command at each look.
func trashMatters(s *state.State, got Actual, self volume.NodeID) bool {
	for v := range s.Volumes() {
		if !v.Live() {
			return true
		}
		if _, here := got.Copies[v.ID]; !here && v.Phase != state.PhaseCreating && v.Placement.Role(self) != volume.RoleNone {
			return true
		}
	}
	return false
}

func copyOf(d zfs.Dataset) Copy {
	var epoch volume.Epoch // 0 when missing: older than any
	if text := d.User[propEpoch]; text != "" {
		var err error
		if epoch, err = volume.ParseEpoch(text); err != nil {
			epoch = math.MaxUint64 // unreadable: newer than any, so that it is never overwritten
		}
	}
	return Copy{
		Dataset: d.Name, Epoch: epoch, Line: d.User[propLine], Mounted: d.Mounted, RefQuota: d.RefQuota,
		Used: d.Used, Data: d.Referenced, Mount: d.Mountpoint,
	}
}

// prepare makes the parents of all volume datasets, that of the copies last. Safe to repeat.
func (a *Agent) prepare(ctx context.Context) error {
	parents := []struct {
		name  string
		props map[string]string
	}{
		{a.layout.Trash(), map[string]string{"mountpoint": "none", "canmount": "off", "readonly": "on"}},
		{a.layout.Aside(), map[string]string{"mountpoint": "none", "canmount": "off", "readonly": "on"}},
		{a.layout.Root(), map[string]string{"mountpoint": "none", "canmount": "off", "readonly": "on", "atime": "off"}},
	}
	for _, p := range parents {
		err := a.zfs.CreateFilesystem(ctx, p.name, p.props)
		if err != nil && !errors.Is(err, zfs.ErrExists) {
			return fmt.Errorf("making %s: %w", p.name, err)
		}
	}
	return nil
}
