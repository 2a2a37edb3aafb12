package plugin

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// MountGrace is how long a mount ID counts as a user of the volume before the engine
// has to show a container for it: Docker mounts first, then makes networks and
// starts the process.
const MountGrace = 60 * time.Second

// Mounts keeps the books on who uses the volumes of this node. The zero value is
// ready. Its methods may be called at the same time.
//
// What Docker sends are hints. `docker cp` mounts with the ID of the running
// container; an engine that crashed mounts again with an ID it never unmounted; an
// unmount is lost when flockd is down, and comes for mounts that were refused. So a
// count above zero may be too high and a count of zero too low. The truth is what
// Reconcile is given: the engine's containers and the kernel's mount tables. Hints
// fill the gap between a Mount and the moment its container shows up, and no longer.
//
// One rule stands above all: what cannot be seen is in use. While the engine does
// not answer, no volume becomes free.
type Mounts struct {
	// Grace is MountGrace when zero.
	Grace time.Duration

	mu      sync.Mutex
	volumes map[string]*mounted
}

// mounted is what is remembered of one volume.
type mounted struct {
	hints map[string]*hint // by mount ID; "" stands for a mount found at start
	// last are the holders that the last answer of the engine named, for as long as
	// it stays silent.
	last []volume.Holder
}

type hint struct {
	count   int
	pending int       // Mounts under way
	at      time.Time // of the last Mount, begun or done
}

// ContainerMount is one container that mounts one of our volumes, as the engine
// lists it.
type ContainerMount struct {
	Volume    string
	Container string // ID
	Name      string
	Service   string // of Swarm, whose task it is; "": of none
	Follows   bool   // by its label it goes where its volumes go
	// Running says that the container has processes or will have without a new
	// Mount being asked for: running, paused, restarting.
	Running bool
}

// View is what can be seen of the world at one moment.
type View struct {
	// Known is false when the engine did not answer. Containers means nothing then.
	Known      bool
	Containers []ContainerMount
	// At is when the engine was asked, before it answered: a Mount that came later is
	// not judged by this view. Zero: just now.
	At time.Time
	// EngineSince is when the engine before this one was last seen to go away: a mount
	// that is older cannot belong to a container that is just being started. Zero: not
	// known.
	EngineSince time.Time
	// Mounted are the volumes that are mounted here now.
	Mounted []string
	// Held are volumes whose file system is still mounted in other mount namespaces or
	// places, whatever the engine says.
	Held map[string][]volume.Holder
}

// Hint is what was remembered of one mount ID.
type Hint struct {
	Volume string
	ID     string // "" for a mount that was found at start
	Count  int
	Age    time.Duration
}

// Reconciled is what follows from a View.
type Reconciled struct {
	// InUse are the volumes that must stay mounted here, and who uses them.
	InUse map[string][]volume.Holder
	// Free are mounted volumes that nobody uses, in order. Before it unmounts one the
	// caller asks Idle, under the same lock under which it calls Mounting.
	Free []string
	// Dropped are the hints that turned out to be stale.
	Dropped []Hint
}

// Found notes a volume that was mounted when flockd started: somebody may be between
// Mount and start, and nobody remembers.
func (m *Mounts) Found(vol string, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.hint(vol, "")
	h.count, h.at = 1, now
}

// Mounting notes that a Mount has begun. It is followed by Mounted or MountFailed.
func (m *Mounts) Mounting(vol, id string, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.hint(vol, id)
	h.pending++
	h.at = now
}

// Mounted notes a Mount that Docker was told has worked.
func (m *Mounts) Mounted(vol, id string, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.hint(vol, id)
	h.pending = max(0, h.pending-1)
	h.count++
	h.at = now
}

// MountFailed notes a Mount that was begun and refused.
func (m *Mounts) MountFailed(vol, id string, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.hint(vol, id)
	h.pending = max(0, h.pending-1)
	m.settle(vol, id)
}

// Unmounted takes back one Mount of that ID; one that is not known changes nothing.
// It says whether the volume may have become free, which is then worth a Reconcile
// and never worth an unmount by itself.
func (m *Mounts) Unmounted(vol, id string, now time.Time) (maybeFree bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.hint(vol, id)
	h.count = max(0, h.count-1)
	m.settle(vol, id)
	v := m.volumes[vol]
	return v == nil || len(v.hints) == 0
}

// Idle says that no mount ID is remembered for the volume.
func (m *Mounts) Idle(vol string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.volumes[vol]
	return v == nil || len(v.hints) == 0
}

// Forget drops what is known of a volume that is no longer mounted here.
func (m *Mounts) Forget(vol string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.volumes, vol)
}

// Reconcile holds the hints against what can be seen. A volume is in use here while
//
//   - a running container mounts it, or
//   - its file system is still mounted somewhere else, or
//   - a Mount of it is under way, or
//   - a container that mounts it may be starting: one of its volumes has had a Mount
//     within the grace. (Docker mounts one volume after the other and may wait two
//     minutes for each.) Without a container to go by, the hint's own age counts.
//
// Other hints are stale, but they are kept beside a running container: which of the
// two an ID belongs to cannot be told. Only a mount that was found at start is taken for
// that of the running container where the engine has no other that might be starting:
// nobody mounts for a container that is not there yet. When the engine does not answer,
// everything that is mounted, remembered or was used last stays in use.
func (m *Mounts) Reconcile(view View, now time.Time) Reconciled {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := Reconciled{InUse: map[string][]volume.Holder{}}

	for vol, holders := range view.Held {
		if len(holders) > 0 {
			out.InUse[vol] = append(out.InUse[vol], holders...)
		}
	}
	if !view.Known {
		m.silent(view, &out)
		return out
	}

	running, resting := map[string][]volume.Holder{}, map[string]bool{}
	for _, c := range view.Containers {
		if c.Running {
			running[c.Volume] = addHolder(running[c.Volume], volume.Holder{Container: shortID(c.Container), Name: c.Name, Service: c.Service, Follows: c.Follows})
		} else {
			resting[c.Volume] = true
		}
	}
	for vol, holders := range running {
		for _, h := range out.InUse[vol] {
			holders = addHolder(holders, h)
		}
		out.InUse[vol] = holders
	}

	starting := m.starting(view, now)
	for vol, v := range m.volumes {
		v.last = running[vol]
		if len(running[vol]) > 0 {
			if h := v.hints[""]; h != nil && h.pending == 0 && !resting[vol] && (view.At.IsZero() || h.at.Before(view.At)) {
				delete(v.hints, "")
			}
			continue
		}
		for _, id := range slices.Sorted(maps.Keys(v.hints)) {
			h := v.hints[id]
			if starting[vol] || m.young(h, view, now) {
				by := mountHolder(id)
				by.Starting = true
				out.InUse[vol] = addHolder(out.InUse[vol], by)
				continue
			}
			out.Dropped = append(out.Dropped, Hint{Volume: vol, ID: id, Count: h.count, Age: now.Sub(h.at)})
			delete(v.hints, id)
		}
	}
	// Holders seen now are remembered for the time in which nothing can be seen.
	for vol, holders := range running {
		m.volume(vol).last = holders
	}
	for vol, v := range m.volumes {
		if len(v.hints) == 0 && len(v.last) == 0 {
			delete(m.volumes, vol)
		}
	}

	for _, vol := range slices.Sorted(slices.Values(view.Mounted)) {
		if len(out.InUse[vol]) == 0 {
			out.Free = append(out.Free, vol)
		}
	}
	slices.SortFunc(out.Dropped, func(a, b Hint) int {
		return cmp.Or(strings.Compare(a.Volume, b.Volume), strings.Compare(a.ID, b.ID))
	})
	return out
}

// silent fills in the answer for an engine that says nothing.
func (m *Mounts) silent(view View, out *Reconciled) {
	for vol, v := range m.volumes {
		for _, h := range v.last {
			out.InUse[vol] = addHolder(out.InUse[vol], h)
		}
		for _, id := range slices.Sorted(maps.Keys(v.hints)) {
			if len(v.last) == 0 {
				out.InUse[vol] = addHolder(out.InUse[vol], mountHolder(id))
			}
		}
	}
	for _, vol := range view.Mounted {
		if len(out.InUse[vol]) == 0 {
			out.InUse[vol] = []volume.Holder{{Name: "unknown: the container engine does not answer", Unknown: true}}
		}
	}
}

// Starting are containers that use a volume, do not run, and may be about to: more Mounts of it are
// remembered than those have that run, and one of them is young. Reconcile says nothing of them as long as others
// run, who keep the volume in any case.
func (m *Mounts) Starting(vol string, view View, now time.Time) (names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	running := 0
	for _, c := range view.Containers {
		switch {
		case c.Volume != vol:
		case c.Running:
			running++ // a Mount for each place where it has the volume
		case !slices.Contains(names, c.Name):
			names = append(names, c.Name)
		}
	}
	v := m.volumes[vol]
	if !view.Known || v == nil || len(v.hints) <= running {
		return nil
	}
	for _, h := range v.hints {
		if m.young(h, view, now) {
			return names
		}
	}
	return nil
}

// starting are the volumes of containers that do not run and may be about to.
func (m *Mounts) starting(view View, now time.Time) map[string]bool {
	byContainer := map[string][]string{}
	for _, c := range view.Containers {
		if !c.Running {
			byContainer[c.Container] = append(byContainer[c.Container], c.Volume)
		}
	}
	out := map[string]bool{}
	for _, vols := range byContainer {
		fresh := slices.ContainsFunc(vols, func(vol string) bool {
			v := m.volumes[vol]
			if v == nil {
				return false
			}
			for _, h := range v.hints {
				if m.young(h, view, now) {
					return true
				}
			}
			return false
		})
		for _, vol := range vols {
			out[vol] = out[vol] || fresh
		}
	}
	return out
}

// young says that a hint alone is reason enough.
func (m *Mounts) young(h *hint, view View, now time.Time) bool {
	if h.pending > 0 || !view.At.IsZero() && !h.at.Before(view.At) {
		return true
	}
	grace := m.Grace
	if grace == 0 {
		grace = MountGrace
	}
	return now.Sub(h.at) < grace && h.at.After(view.EngineSince)
}

func (m *Mounts) volume(vol string) *mounted {
	if m.volumes == nil {
		m.volumes = map[string]*mounted{}
	}
	v := m.volumes[vol]
	if v == nil {
		v = &mounted{hints: map[string]*hint{}}
		m.volumes[vol] = v
	}
	return v
}

func (m *Mounts) hint(vol, id string) *hint {
	v := m.volume(vol)
	h := v.hints[id]
	if h == nil {
		h = &hint{}
		v.hints[id] = h
	}
	return h
}

// settle forgets a hint that says nothing any more.
func (m *Mounts) settle(vol, id string) {
	v := m.volumes[vol]
	if h := v.hints[id]; h.count == 0 && h.pending == 0 {
		delete(v.hints, id)
	}
	if len(v.hints) == 0 && len(v.last) == 0 {
		delete(m.volumes, vol)
	}
}

// mountHolder is a user of whom only the mount ID is known.
func mountHolder(id string) volume.Holder {
	if id == "" {
		return volume.Holder{Name: "mount found when flockd started"}
	}
	return volume.Holder{Name: "mount ID " + shortID(id)}
}

func addHolder(to []volume.Holder, h volume.Holder) []volume.Holder {
	if slices.Contains(to, h) {
		return to
	}
	return append(to, h)
}

func shortID(id string) string { return id[:min(12, len(id))] }
