package replicate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

// verifySpacing is the time between two links asking only whether all is well.
const verifySpacing = 100 * time.Millisecond

// linkKey names a link. Another epoch is another link: the old one ends first.
type linkKey struct {
	volume  volume.ID
	replica volume.NodeID
	epoch   volume.Epoch
}

// link is the running replication of one volume to one replica. Its goroutine does
// one exchange at a time:
//
//	waiting ──(new snapshot, time to verify, retry)──> offering ──> streaming
//	   ^                                                  |              |
//	   └──(already there, declined, failed, refused)──────┴──(ack)───────┘
type link struct {
	e       *Engine
	key     linkKey
	born    time.Time
	wake    chan struct{}
	after   <-chan struct{} // of the link of the epoch before; nil: none
	done    chan struct{}   // closed when it has ended
	release func()          // of the turn in use; only the link itself uses it

	// The rest is guarded by Engine.mu.
	started bool
	ctx     context.Context
	cancel  context.CancelCauseFunc

	spoken   bool            // the replica has answered
	acked    volume.Position // newest engine snapshot acknowledged
	top      guid            // newest snapshot of any kind that the replica has
	complete time.Time
	verified time.Time // when the replica last said what it has

	// Of the primary's tombstones (localCopy.burials): those that the replica knows all
	// of, and since when; then, where they are more than an offer can name, those that
	// it was told of since; and what the offer under way names, nil for nothing.
	buried   uint64
	buriedAt time.Time
	known    map[guid]bool
	burying  *portion

	reached guid // the last goal that the replica had exactly

	streaming  string // kind of the stream under way; ""
	seeding    bool   // the replica has no whole copy, which may take several streams
	from, to   guid   // of the stream under way, or of the last: its rest may be wanted
	base       string // of the stream under way: @name or #name; "" for none
	began      time.Time
	ended      time.Time // when all of it was out; zero while it is not
	sent       int64
	total      int64
	rate       meter
	increment  time.Duration // how long the newest increment took; 0: there was none
	rest       int64         // what the streams after it are to bring
	estimating bool          // zfs is being asked how much it will be
	streamed   int64         // in all streams

	// A first copy stops at each snapshot that is kept, and is one thing to whoever looks:
	// since when it is under way, and what its streams have brought that are through. Of
	// any other stream its beginning, and nothing.
	seedBegan time.Time
	seeded    int64

	// noResume: the partial stream that the replica keeps is of no use. fruitless counts the
	// resumes in a row that zfs broke off, on either side, and after which it kept no more
	// than saved bytes of the stream; zero where nothing is resumed.
	noResume  bool
	fruitless int
	saved     int64
	// astray counts the streams on the volume's origin in a row that zfs broke off, on either
	// side: after so many (maxFruitless) a first copy is all of it.
	astray int

	err     error // of the last exchange
	told    string
	failed  bool
	refused bool
	failing time.Time // since when
	backoff time.Duration
	retryAt time.Time
	waiters map[*waiter]bool
}

// portion is what one offer tells of a copy's tombstones.
type portion struct {
	guids   []guid
	last    bool   // with it the replica knows all of them
	burials uint64 // of the copy at the time
}

// waiter waits for one snapshot to be acknowledged.
type waiter struct {
	snap  snap
	final bool // nobody writes any more, or soon: it does not wait for room
	done  chan struct{}
	err   error // why it was not waited for; set before done is closed
}

func newLink(e *Engine, key linkKey, after <-chan struct{}) *link {
	return &link{
		e: e, key: key, after: after, born: time.Now(),
		wake:    make(chan struct{}, 1),
		done:    make(chan struct{}),
		waiters: map[*waiter]bool{},
	}
}

// run works until the link's context ends.
func (l *link) run() {
	defer close(l.done)
	if l.after != nil {
		<-l.after // it has been cancelled
	}
	for l.ctx.Err() == nil {
		at, now := l.next(time.Now())
		if now {
			l.settle(l.exchange(l.ctx))
			continue
		}
		timer := time.NewTimer(time.Until(at))
		select {
		case <-l.ctx.Done():
		case <-l.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// next says whether there is something to do now, or when to look again.
func (l *link) next(now time.Time) (at time.Time, do bool) {
	e := l.e
	e.mu.Lock()
	defer e.mu.Unlock()
	later := now.Add(e.cfg.Verify)
	c := e.copies[l.key.volume]
	if !e.surveyed || c == nil || !c.known || c.newest().guid == 0 {
		return later, false
	}
	if c.encryption == "" {
		return now.Add(minTick), false // its dataset has not been listed yet
	}
	if now.Before(l.retryAt) {
		return l.retryAt, false
	}
	if guid(l.acked.GUID) != c.newest().guid || l.failed || l.buried != c.burials || l.known != nil {
		return now, true
	}
	// So many links ask in turn that a replica never answers many a second.
	every := max(e.cfg.Verify, time.Duration(len(e.links))*verifySpacing)
	if at := l.verified.Add(every); now.Before(at) {
		return at, false
	}
	return now, true
}

// settle notes how an exchange went: when to try again, and whether somebody ought
// to hear of it.
func (l *link) settle(err error) {
	e := l.e
	if l.ctx.Err() != nil {
		return
	}
	e.mu.Lock()
	now := time.Now()
	var busy *busyError
	var refused *refusedError
	var unreachable *unreachableError
	wasFailed, told := l.failed, l.told
	l.failed, l.err = err != nil, err
	var encrypted *encryptedError
	l.refused = errors.As(err, &refused) || errors.As(err, &encrypted)
	switch {
	case err == nil:
		l.backoff, l.retryAt, l.failing, l.told = 0, time.Time{}, time.Time{}, ""
	case errors.As(err, &busy):
		l.backoff = min(max(2*l.backoff, busyRetry), 2*time.Second)
		l.retryAt = now.Add(jitter(l.backoff))
		l.told = "busy"
	case errors.As(err, &unreachable):
		l.retryAt = unreachable.retryAt.Add(jitter(20 * time.Millisecond))
		l.told = "unreachable"
	case l.refused:
		l.backoff = min(max(2*l.backoff, firstRetry), lastRetry)
		l.retryAt = now.Add(jitter(l.backoff))
		l.told = err.Error()
	default:
		l.backoff = min(max(2*l.backoff, firstRetry), lastRetry)
		l.retryAt = now.Add(jitter(l.backoff))
		l.told = "failed"
	}
	if err != nil && !wasFailed {
		l.failing = now
	}
	for w := range l.waiters {
		if w.final && errors.Is(err, ErrNoRoom) {
			w.err = err
			close(w.done)
			delete(l.waiters, w)
		}
	}
	changed := told != l.told
	ev := LinkChanged{Volume: l.key.volume, Replica: l.key.replica, State: l.status(now).State, Err: err}
	e.mu.Unlock()
	if changed {
		e.emit(ev)
	}
}

// bury notes that the replica is in step with an offer, and with the tombstones in
// it. The caller holds mu.
func (l *link) bury(now time.Time) {
	p := l.burying
	l.burying = nil
	switch {
	case p == nil:
	case p.last:
		l.buried, l.buriedAt, l.known = p.burials, now, nil
		l.e.forgetRemoved(l.key.volume)
	default:
		if l.known == nil {
			l.known = map[guid]bool{}
		}
		for _, g := range p.guids {
			l.known[g] = true
		}
	}
}

// forgetRemoved lets a primary's copy forget the removals that all its replicas know.
// The caller holds mu.
func (e *Engine) forgetRemoved(id volume.ID) {
	a, c := e.table[id], e.copies[id]
	if a == nil || c == nil {
		return
	}
	known := c.burials
	for _, replica := range a.Replicas {
		l := e.links[linkKey{id, replica, a.Epoch}]
		if l == nil {
			return
		}
		known = min(known, l.buried)
	}
	c.forgetRemoved(known)
}

// heard notes what the replica holds; it says so itself. The caller holds mu.
func (l *link) heard(have guid, now time.Time) {
	c := l.e.copies[l.key.volume]
	l.spoken, l.verified, l.top = true, now, have
	before := l.acked
	var pos volume.Position
	var txg uint64
	if have != 0 && c != nil {
		if pos, txg = c.place(have); pos.Epoch == 0 {
			pos = volume.Position{} // of an original that is gone: nothing of the volume
		}
		b := base{guid: have, pos: pos, heard: now, anchor: c.anchor, before: c.bases[l.key.replica].before}
		if old := c.bases[l.key.replica]; old.guid != have && !old.pos.IsZero() {
			b.before = old.guid
		}
		c.bases[l.key.replica] = b
		if have == c.goal {
			l.reached = have
		}
	}
	// On a user's snapshot the replica still has the engine's that it had before,
	// unless it went back, or stands on what this copy does not know.
	_, was := c.place(guid(before.GUID))
	if !pos.IsZero() || txg == 0 || was > txg {
		l.acked = pos
	}
	// One that stands on the way there, at a snapshot that is kept, has no whole copy yet,
	// as far as this link knows. Nobody could go on with what it has.
	if have != 0 && c != nil {
		l.seeding = txg != 0 && l.acked.IsZero()
	}
	if l.acked.Taken.After(l.complete) || l.acked.IsZero() || l.acked.Compare(before) < 0 {
		l.complete = l.acked.Taken
	}
	if txg == 0 {
		return
	}
	if c.unproven > 0 {
		c.unproven = 0
	}
	if a := l.e.table[l.key.volume]; a != nil && a.Epoch == l.key.epoch {
		l.e.weigh(a, c, now)
	}
	for w := range l.waiters {
		if w.snap.txg <= txg {
			delete(l.waiters, w)
			close(w.done)
		}
	}
	wake(l.e.wakePruner)
}

// await blocks until the replica has acknowledged the snapshot, or a later one.
func (l *link) await(ctx context.Context, s snap, final bool) error {
	e := l.e
	w := &waiter{snap: s, final: final, done: make(chan struct{})}
	e.mu.Lock()
	if c := e.copies[l.key.volume]; c != nil && l.top != 0 {
		if _, txg := c.place(l.top); txg >= s.txg {
			e.mu.Unlock()
			return nil
		}
	}
	l.waiters[w] = true
	l.retryAt = time.Time{}
	e.grantTurns()
	wake(l.wake)
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		delete(l.waiters, w)
		e.mu.Unlock()
	}()
	select {
	case <-w.done:
		return w.err
	case <-l.done:
		return volume.Errorf(volume.CodeConflict, "replica %s of volume %s: %v", l.key.replica.Short(), l.key.volume, errSuperseded)
	case <-ctx.Done():
		e.mu.Lock()
		defer e.mu.Unlock()
		if l.err != nil {
			return fmt.Errorf("%w; last: %w", context.Cause(ctx), l.err)
		}
		return context.Cause(ctx)
	}
}

// away says that the replica has not been reached for long. The caller holds mu.
func (l *link) away(now time.Time) bool {
	return l.failed && now.Sub(l.failing) > l.e.cfg.Away
}

// gone says that the replica has been away for too long to come back into service, or
// that there is no space for what it would come back with: what it stands on need not be
// kept as snapshots. The caller holds mu.
func (l *link) gone(now time.Time) bool {
	return l.away(now) && (l.e.room.spent() || now.Sub(l.failing) > l.e.cfg.Replace())
}

// status is what the link reports. The caller holds mu.
func (l *link) status(now time.Time) volume.LinkStatus {
	e := l.e
	st := volume.LinkStatus{Replica: l.key.replica, Acked: l.acked, CompleteAsOf: l.complete}
	s := signs{
		streaming: l.streaming, seeding: l.seeding, spoken: l.spoken,
		refused: l.refused, failed: l.failed, acked: guid(l.acked.GUID),
		allowed: lagGrace + e.cfg.Settle,
	}
	// Only a listing proves that nothing is left to be sent, when it has come.
	s.allowed += 2 * e.listTook
	if e.cfg.Dirty != nil {
		s.allowed += e.listEvery()
	}
	if a := e.table[l.key.volume]; a != nil {
		s.allowed += a.interval()
		if a.Frozen {
			s.allowed += maxTick // its ticks are rare; so is what they prove
		}
	}
	if c := e.copies[l.key.volume]; c != nil {
		s.newest = c.newest().guid
		if s.newest != 0 && s.newest == s.acked && c.idleAsOf.After(st.CompleteAsOf) {
			st.CompleteAsOf = c.idleAsOf
			l.complete = c.idleAsOf
		}
		st.LagBytes = c.lagBytes(l.top)
	}
	st.CompleteAsOf = e.told(st.CompleteAsOf)
	s.behind = l.behind(now)
	st.State, st.Lags = linkState(s), lags(s)
	if l.failed {
		st.Failing = e.told(l.failing)
	}
	st.Streamed = l.streamed
	st.LastIncrement = l.increment
	if l.streaming != "" {
		st.Stream, st.Base, st.Began = l.streaming, l.base, l.seedBegan
		st.SentBytes, st.TotalBytes, st.Rate = l.seeded+l.sent, l.seeded+max(l.total, l.sent), l.rate.rate(now, l.began)
	}
	switch {
	case !l.ended.IsZero() && now.Sub(l.ended) > lagGrace:
		st.Error = fmt.Sprintf("the replica has had the whole stream for %s and has not acknowledged it yet: its pool is slow or hangs",
			now.Sub(l.ended).Round(time.Second))
	case l.err != nil:
		st.Error = l.err.Error()
	case st.State == volume.LinkLagging:
		for op, msg := range e.failing {
			st.Error = op + ": " + msg
		}
	}
	return st
}

// busyError is a replica that asks to come again later.
type busyError struct{ reason string }

func (b *busyError) Error() string { return "replica is busy: " + b.reason }

// refusedError is a replica that will not take the volume as things are.
type refusedError struct {
	verdict verdict
	epoch   volume.Epoch
	reason  string
	room    bool // for want of it
}

func (r *refusedError) Is(target error) bool { return target == ErrNoRoom && r.room }

func (r *refusedError) Error() string {
	return fmt.Sprintf("replica refuses (%s): %s", r.verdict, r.reason)
}

// encryptedError is a copy that must not be sent.
type encryptedError struct{ encryption string }

func (e *encryptedError) Error() string {
	return fmt.Sprintf("the volume's dataset is encrypted by ZFS (%s) and is not replicated: a plain stream would store it in the clear on the replica, "+
		"and a raw one cannot be sent back safely after a failover; copy the data into a volume whose dataset is not encrypted, or encrypt the disks below the pools", e.encryption)
}
