package daemon

import (
	"maps"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/agent"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// arrivals has, of volumes that came here, when each part of what their clients wait for was over.
type arrivals struct {
	mu sync.Mutex
	of map[volume.ID]*arrival
}

// arrival is one of them. Zero times are of what was not seen.
type arrival struct {
	epoch                 volume.Epoch
	began, taken, mounted time.Time
	// started is of the container that answered last: of several, what another one took beside
	// it is in the same time. Until one has it is of the last that was started.
	started, answers time.Time
	runs             map[string]time.Time // when each container was started
}

// arrivalFor is for how long one is remembered.
const arrivalFor = time.Hour

// Parts that this package sees itself; those of the agent are its own.
const (
	partRun   = "run"   // a container was started
	partReady = "ready" // it has come up
)

// note notes that a part is over, or the first of them begins, now; of which container, where it is
// one of a container.
func (a *arrivals) note(id volume.ID, epoch volume.Epoch, part, of string, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.of[id]
	switch {
	case at != nil && at.epoch == epoch:
	case part != agent.PartArrival:
		return // as of a volume that is here since long
	default:
		// Of what has no routes nobody asks.
		maps.DeleteFunc(a.of, func(_ volume.ID, old *arrival) bool { return now.Sub(old.began) > arrivalFor })
		at = &arrival{epoch: epoch, began: now, runs: map[string]time.Time{}}
		if a.of == nil {
			a.of = map[volume.ID]*arrival{}
		}
		a.of[id] = at
	}
	once := func(t *time.Time) {
		if t.IsZero() {
			*t = now
		}
	}
	switch part {
	case agent.PartTakeover:
		once(&at.taken)
	case agent.PartMount:
		once(&at.mounted)
	case partRun:
		if at.runs[of] = now; at.answers.IsZero() {
			at.started = now
		}
	case partReady:
		at.started, at.answers = at.runs[of], now
	}
}

// opened is what an arrival has taken whose clients go on now; it is forgotten.
func (a *arrivals) opened(id volume.ID, epoch volume.Epoch, now time.Time) (t state.ArrivalTimes) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.of[id]
	if at == nil || at.epoch != epoch {
		return t
	}
	delete(a.of, id)
	last := at.began
	until := func(end time.Time) (took time.Duration) {
		if took = end.Sub(last); end.IsZero() || took < 0 {
			return 0 // not seen, or over while something else went on
		}
		last = end
		return took
	}
	t.Takeover, t.Mount = until(at.taken), until(at.mounted)
	t.Run, t.Ready = until(at.started), until(at.answers)
	t.Open = until(now)
	return t
}

// noteContainer notes a part of all volumes of a container.
func (f *follower) noteContainer(r *state.Container, part string) {
	s, now := f.m.cluster.State(), time.Now()
	for _, cv := range r.Volumes {
		if v := s.Volume(cv.ID); v != nil && v.Placement.Primary == f.m.self {
			f.m.arrivals.note(v.ID, v.Epoch, part, r.RecordKey(), now)
		}
	}
}
