package replicate

import (
	"sync"
	"time"
)

// Where no limit says that a line is slow, it is measured: the bytes of all streams to a node
// over the time in which at least one of them waited to get its bytes out. A line that is
// slower than the compressor gets its streams compressed, and no longer than that helps.

const (
	// lineFast is how fast a line must be found to be for streams to go as they are again; it
	// is above slowLink, so that a line close to it does not go to and fro.
	lineFast = 24 << 20
	// A finding takes so many bytes, over so much time in which the line was busy: less than
	// that is taken by buffers on the way. What would be fast over that time needs no more.
	findingBytes = 4 << 20
	findingTime  = 2 * time.Second
	// findings in a row change what is done.
	findings = 3
	// leastGain is what compressing must gain, in the bytes and in the speed of what zfs sends.
	leastGain = 0.05
	// gainPause is how long it is not tried again once it was turned off: twice as long each
	// time that it was turned on again within calm, at most mostPause.
	gainPause = 10 * time.Minute
	mostPause = 8 * gainPause
	calm      = time.Hour
	// breaks streams in a row that broke off are more than a bad line: the node may be of an
	// older version now.
	breaks = 5
)

// finding is what a line did for a while: how long that was, and how long it was busy, with how
// many bytes, and what these were before any of them were compressed. Of those that were,
// packed became squeezed.
type finding struct {
	wall, busy       time.Duration
	wire, raw        int64
	packed, squeezed int64
}

// complete says that it is enough to go by.
func (f finding) complete() bool {
	return f.wire >= findingBytes && f.busy >= findingTime || f.wire >= inTime(lineFast, findingTime)
}

func perSecond(n int64, d time.Duration) float64 { return float64(n) / d.Seconds() }

// squeeze is whether streams to a node are compressed because its line is slow. The zero
// value is a line of which nothing is known: they are not.
type squeeze struct {
	on     bool
	streak int           // findings in a row that speak for the other
	idle   int           // findings in a row in which it gained nothing
	before float64       // bytes a second of what zfs sent, when it was turned on
	until  time.Time     // not turned on before
	proven bool          // the node has taken a stream that was compressed
	broken int           // streams in a row that broke off since
	pause  time.Duration // that was made when it was turned off last; 0: there was calm since
}

// off is what becomes of it when it is turned off, or would be. Whatever the reason, a line for
// which it was the wrong one is one that goes to and fro, so it is tried less and less often.
func (s squeeze) off(now time.Time, proven bool) squeeze {
	pause := max(min(2*s.pause, mostPause), gainPause)
	return squeeze{proven: proven, pause: pause, until: now.Add(pause)}
}

// next is what becomes of it after a finding.
func (s squeeze) next(f finding, now time.Time) squeeze {
	rate := perSecond(f.wire, f.busy)
	if !s.on {
		if rate >= slowLink || now.Before(s.until) {
			s.streak = 0
			return s
		}
		if s.streak++; s.streak >= findings {
			s.on, s.streak, s.idle, s.before = true, 0, 0, perSecond(f.raw, f.busy)
			if now.Sub(s.until) > calm {
				s.pause = 0
			}
		}
		return s
	}
	// What is compressed hardly blocks: buffers take it. So that a line is fast is only shown by
	// what went through it in all that time.
	if perSecond(f.wire, f.wall) < lineFast {
		s.streak = 0
	} else if s.streak++; s.streak >= findings {
		return s.off(now, s.proven)
	}
	if f.packed < findingBytes/2 {
		return s // streams that began before are still under way: nothing to judge by
	}
	// Where the replica's pool is what is slow, streams shrink and get there no sooner.
	shrunk := float64(f.squeezed) <= (1-leastGain)*float64(f.packed)
	sooner := perSecond(f.raw, f.busy) >= (1+leastGain)*s.before
	if shrunk && sooner {
		s.idle = 0
	} else if s.idle++; s.idle >= findings {
		return s.off(now, s.proven)
	}
	return s
}

// ended is what becomes of it when a stream that was compressed because of it has ended. A
// node of a version that cannot take it breaks the stream off, and it is not tried again for a
// while; one that has taken one broke it off for another reason, unless that goes on.
func (s squeeze) ended(refused bool, err error, now time.Time) squeeze {
	switch {
	case err == nil:
		s.proven, s.broken = true, 0
	case refused || !s.proven || s.broken+1 >= breaks:
		return s.off(now, false)
	default:
		s.broken++
	}
	return s
}

// line is the way to one node, as its streams find it.
type line struct {
	mu      sync.Mutex
	now     finding
	writing int       // streams that are getting bytes out
	since   time.Time // that at least one is
	begun   time.Time // when the first bytes of now went; zero: none has
	squeeze squeeze
}

func (l *line) compresses() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.squeeze.on
}

// enter says that a stream gets bytes out from now on.
func (l *line) enter(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.writing++; l.writing == 1 {
		l.since = now
	}
	if l.begun.IsZero() {
		l.begun = now
	}
}

// leave says that they are out, how many on the wire, or that they are not: what a broken
// connection did says nothing. Of those compressed, what they were before is told by passed.
// changed: from now on streams are compressed, or are not.
func (l *line) leave(now time.Time, n int, compressed bool, err error) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now.busy += now.Sub(l.since)
	l.since = now
	l.writing--
	l.now.wall = now.Sub(l.begun)
	if err != nil {
		l.anew(now)
		return false
	}
	l.now.wire += int64(n)
	if compressed {
		l.now.squeezed += int64(n)
	} else {
		l.now.raw += int64(n)
	}
	if !l.now.complete() {
		return false
	}
	on := l.squeeze.on
	l.squeeze = l.squeeze.next(l.now, now)
	l.anew(now)
	return l.squeeze.on != on
}

// anew begins another finding. The caller holds mu.
func (l *line) anew(now time.Time) {
	l.now, l.begun = finding{}, time.Time{}
	if l.writing > 0 {
		l.begun = now
	}
}

// passed says that so many bytes of zfs have gone into a compressed stream.
func (l *line) passed(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now.raw += int64(n)
	l.now.packed += int64(n)
}

// ended hears how a stream ended that was compressed because the line is slow.
func (l *line) ended(refused bool, err error, now time.Time) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	on := l.squeeze.on
	l.squeeze = l.squeeze.ended(refused, err, now)
	return l.squeeze.on != on
}
