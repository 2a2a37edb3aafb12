package replicate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// What comes in from others never takes the last of a pool: ZFS needs some space to
// take snapshots, to leave bookmarks and to set copies aside, and the pool may have
// primaries, whose programs need it more. What that is does not grow with the pool
// without end; how much arrives before ZFS has counted it does.
const (
	reserveLeast = 64 << 20
	reserveMost  = 4 << 30
)

// room is the space of this node's pool, for the copies of volumes.
type room struct {
	size int64 // of all copies and what is free; 0: not known
	free int64 // when it was asked, less what has come in since
	at   time.Time
}

// reserve is what incoming streams leave free: a hundredth, within bounds, and of a
// small pool not more than a sixteenth.
func (r room) reserve() int64 {
	return min(max(r.size/100, reserveLeast), r.size/16, reserveMost)
}

func (r room) spent() bool { return r.size > 0 && r.free < r.reserve() }

// misfit is what is remembered of a stream that there was no room for. It took all the
// same to find out: it is not tried again soon, unless there is noticeably more room.
type misfit struct {
	free  int64 // there was when it began
	until time.Time
	wait  time.Duration
}

const (
	firstMisfit = time.Minute
	lastMisfit  = time.Hour
)

// had is how much room a stream was tried with that did not fit: what was known to be free before, unless
// somebody else had taken of it since; then what was left in the end, and what had come of the stream. Where
// that takes more than its bytes, as on a dataset with copies=2, this is too little, and the stream comes
// once more as soon as it is thrown away. What is known before a second try is known from zfs (admitsStream).
func (m misfit) had(before, came, left int64) int64 {
	if m.wait > 0 {
		return before
	}
	return min(before, left+came)
}

// another is what is remembered once a stream did not fit again, or for the first time.
func (m misfit) another(free int64, now time.Time) misfit {
	wait := min(max(2*m.wait, firstMisfit), lastMisfit)
	return misfit{free: max(free, 0), until: now.Add(wait), wait: wait}
}

// keeps says what streams do not get. Without numbers that change all the time it is
// told once.
func (r room) keeps() string {
	return fmt.Sprintf("no more than %s are free, which stay so for work on what is there; free some, and it goes on by itself", volume.RoughSize(r.reserve()))
}

// ErrNoRoom is what a replica refuses a volume with that its pool has no room for. That changes
// when somebody makes room, and not by waiting.
var ErrNoRoom = errors.New("out of space")

// outOfSpace begins what a replica answers to an offer then: an answer has no code, and a field
// more would be an error to earlier versions.
const outOfSpace = "its pool is out of space"

// turnsAway says why no stream is received now for a volume of which m is remembered;
// "" when one is.
func (r room) turnsAway(m misfit, now time.Time) string {
	switch {
	case r.spent():
		return outOfSpace + ": " + r.keeps()
	case r.size > 0 && now.Before(m.until) && r.free < m.free+m.free/8:
		return fmt.Sprintf(outOfSpace+" for this volume: what it lacks did not fit into %s; it is tried again now and then, and at once when more is free",
			volume.RoughSize(m.free))
	}
	return ""
}

// noRoom says that a stream was broken off for lack of space.
func noRoom(err error) bool {
	var crowded *crowdedError
	return errors.As(err, &crowded) || errors.Is(err, zfs.ErrNoSpace)
}

// crowdedError is a stream that was broken off because it would have taken the reserve.
type crowdedError struct{ reason string }

func (c *crowdedError) Error() string { return c.reason }

// admitsStream says why no stream is received for a volume now; "" when one is. Before
// it says so, and before what did not fit is tried again, it asks zfs, unless it did a moment ago.
func (e *Engine) admitsStream(ctx context.Context, id volume.ID) (why string) {
	why, again := e.turnsAway(id)
	if (why != "" || again) && e.askRoom(ctx) == nil {
		why, _ = e.turnsAway(id)
	}
	return why
}

func (e *Engine) turnsAway(id volume.ID) (why string, again bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	m, again := e.misfits[id]
	return e.room.turnsAway(m, time.Now()), again
}

// askRoom asks zfs how much there is and how much of it is free, at most once a second.
func (e *Engine) askRoom(ctx context.Context) error {
	asked := time.Now()
	e.mu.Lock()
	recent := asked.Sub(e.room.at) < time.Second
	e.mu.Unlock()
	if recent {
		return nil
	}
	d, err := e.cfg.Pool.Dataset(ctx, e.cfg.Root)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.room.size, e.room.free, e.room.at = d.Available+d.Used, d.Available, asked
	return nil
}

// roomCheck is how many bytes come in between two looks at the room.
const roomCheck = 1 << 20

// counting returns what counts the bytes of a stream as they come in, and fails once
// they would take the reserve.
func (e *Engine) counting(ctx context.Context) (count func(n int) error) {
	pending := int64(0)
	return func(n int) error {
		if pending += int64(n); pending < roomCheck {
			return nil
		}
		e.mu.Lock()
		e.room.free -= pending
		pending = 0
		spent := e.room.spent()
		e.mu.Unlock()
		if !spent || e.askRoom(ctx) != nil {
			return nil // zfs itself says when there is none
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		if !e.room.spent() {
			return nil
		}
		return &crowdedError{e.room.keeps()}
	}
}

// fits forgets that a volume's stream once did not fit.
func (e *Engine) fits(id volume.ID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.misfits, id)
}

// giveUp throws away what has come of a stream that there is no room for: kept, it
// would take what other volumes' streams need, which are small. It comes again, but not
// soon. Before is the room that was known when it began, and came is how many bytes of it have come. What
// was known is seconds old, or minutes where listings are slow: so zfs is asked before its space is given back,
// which takes a while. The caller has claimed the volume.
func (e *Engine) giveUp(ctx context.Context, o offer, seeding bool, before room, came int64) error {
	unasked := e.askRoom(ctx)
	e.mu.Lock()
	had := e.misfits[o.Volume].had(before.free, came, e.room.free)
	e.mu.Unlock()
	st := step{act: actAbort}
	if seeding {
		st = step{act: actAbortSeed, epoch: o.Epoch}
	}
	err := e.perform(ctx, o.Volume, st, o.Epoch, nil)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.misfits[o.Volume] = e.misfits[o.Volume].another(had, time.Now())
	e.room.at = time.Time{}
	return errors.Join(err, unasked)
}
