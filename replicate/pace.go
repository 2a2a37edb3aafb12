package replicate

import (
	"context"
	"io"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

const (
	// pieceTime is how much of a limit one piece of a stream may take, and how much
	// may be saved up while nothing is sent. Both together are the largest burst.
	pieceTime = 25 * time.Millisecond
	minPiece  = 4 << 10
	// paceLook is how soon a waiting stream notices that its limit has changed.
	paceLook = 100 * time.Millisecond
	// slowLink is the limit up to which a stream is compressed: below it the wire is
	// slower than the compressor.
	slowLink = 16 << 20
	// tellThrottled is the least time between two Throttled events of one replica.
	tellThrottled = time.Minute
)

// piece is how much of a stream is sent at once under a limit of rate bytes a second.
func piece(rate int64) int {
	if rate <= 0 {
		return maxData
	}
	return int(min(max(inTime(rate, pieceTime), minPiece), maxData))
}

// inTime is how many bytes a rate makes in d.
func inTime(rate int64, d time.Duration) int64 { return int64(float64(rate) * d.Seconds()) }

// bucket is the account of one limit: what was sent and is not yet paid for by time
// that has passed.
type bucket struct {
	owed float64 // bytes; below 0: saved up
	at   time.Time
}

// take says how long n bytes must wait at a rate, in bytes a second. When they need
// not, they are accounted for.
func (b *bucket) take(now time.Time, n int, rate int64) (wait time.Duration) {
	if !b.at.IsZero() {
		b.owed -= float64(rate) * now.Sub(b.at).Seconds()
	}
	b.at = now
	b.owed = max(b.owed, -float64(inTime(rate, pieceTime)))
	if b.owed > 0 {
		return time.Duration(b.owed/float64(rate)*float64(time.Second)) + 1
	}
	b.owed += float64(n)
	return 0
}

// pacer makes the streams of one group keep its limit together: one at a time waits
// for its next piece, the others behind it. All long streams together queue as one, so
// that an increment has at least half of the limit beside any number of first copies.
type pacer struct {
	long   chan struct{} // whoever has it queues for all long streams
	slot   chan struct{} // whoever has it uses the bucket
	bucket bucket
}

// enter waits for the slot. While it waits, idle is called at every alarm.
func (p *pacer) enter(ctx context.Context, long bool, alarm <-chan time.Time, idle func() error) (leave func(), err error) {
	gates := []chan struct{}{p.slot}
	if long {
		gates = []chan struct{}{p.long, p.slot}
	}
	leave = func() {}
	for len(gates) > 0 {
		select {
		case gates[0] <- struct{}{}:
			gate, before := gates[0], leave
			leave = func() { <-gate; before() }
			gates = gates[1:]
		case <-alarm:
			err = idle()
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		if err != nil {
			leave()
			return nil, err
		}
	}
	return leave, nil
}

// limit of what is sent to a node.
func (e *Engine) limit(to volume.NodeID) Limit {
	if e.cfg.Limit == nil {
		return Limit{}
	}
	l := e.cfg.Limit(to)
	l.Bytes = max(l.Bytes, 0)
	return l
}

func (e *Engine) pacerOf(group string) *pacer {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.pacers[group]
	if p == nil {
		p = &pacer{long: make(chan struct{}, 1), slot: make(chan struct{}, 1)}
		e.pacers[group] = p
	}
	return p
}

// pace waits until n bytes may be sent to a node. The limit is asked again and again,
// so that a change counts at once. While it waits, idle is called every so often.
func (e *Engine) pace(ctx context.Context, to volume.NodeID, n int, long bool, every time.Duration, idle func() error) error {
	limit := e.limit(to)
	if limit.Bytes == 0 {
		return nil
	}
	began := time.Now()
	defer func() { e.throttled(to, time.Since(began)) }()
	alarm := time.NewTicker(every)
	defer alarm.Stop()
	for limit.Bytes > 0 {
		p := e.pacerOf(limit.Group)
		leave, err := p.enter(ctx, long, alarm.C, idle)
		if err != nil {
			return err
		}
		done, err := p.wait(ctx, n, func() (rate int64) {
			group := limit.Group
			if limit = e.limit(to); limit.Group != group {
				return 0
			}
			return limit.Bytes
		}, alarm.C, idle)
		leave()
		if done || err != nil {
			return err
		}
	}
	return nil
}

// Paced is what goes to a node besides streams: it shares their limit, and queues with the long
// ones. It is read until ctx ends.
func (e *Engine) Paced(ctx context.Context, to volume.NodeID, r io.Reader) io.Reader {
	return &paced{e, ctx, to, r}
}

type paced struct {
	e   *Engine
	ctx context.Context
	to  volume.NodeID
	r   io.Reader
}

func (p *paced) Read(b []byte) (int, error) {
	if most := piece(p.e.limit(p.to).Bytes); len(b) > most {
		b = b[:most]
	}
	n, err := p.r.Read(b)
	if n > 0 {
		if late := p.e.pace(p.ctx, p.to, n, true, time.Minute, func() error { return nil }); late != nil {
			return 0, late
		}
	}
	return n, err
}

// wait is pace for whoever has the slot. It ends without being done when the rate is
// 0: there is no limit any more, or another one.
func (p *pacer) wait(ctx context.Context, n int, rate func() int64, alarm <-chan time.Time, idle func() error) (done bool, err error) {
	for {
		r := rate()
		if r == 0 {
			return false, nil
		}
		wait := p.bucket.take(time.Now(), n, r)
		if wait == 0 {
			return true, nil
		}
		timer := time.NewTimer(min(wait, paceLook))
		select {
		case <-timer.C:
		case <-alarm:
			err = idle()
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		timer.Stop()
		if err != nil {
			return false, err
		}
	}
}

// throttled notes how long a stream to a node waited for its limit, and tells now and
// then.
func (e *Engine) throttled(to volume.NodeID, waited time.Duration) {
	if waited < time.Millisecond {
		return // it did not wait; it only looked
	}
	e.mu.Lock()
	e.peerOf(to).throttled += waited
	e.mu.Unlock()
	e.tellThrottling(time.Now())
}

// tellThrottling tells how long streams waited, of each replica at most once a minute.
func (e *Engine) tellThrottling(now time.Time) {
	var tell []Event
	e.mu.Lock()
	for node, p := range e.peers {
		if p.throttled > 0 && now.Sub(p.toldThrottled) >= tellThrottled {
			tell = append(tell, Throttled{Replica: node, Waited: p.throttled})
			p.throttled, p.toldThrottled = 0, now
		}
	}
	e.mu.Unlock()
	for _, ev := range tell {
		e.emit(ev)
	}
}
