package lease

import (
	"slices"
	"time"
)

// Holder is a node's side of its lease. Its caller gives it every moment, in order,
// from the clock of one boot. It is not safe for concurrent use.
//
//	            Grant(n)              Answer                   now >= until
//	(nothing) ───────────► granted ───────────► held ─────────────────────► over
//	    ▲  │                                   ▲ │ ▲ │                        │
//	    │  └────────────── Take(n) ────────────┘ └─┘ └── GiveUp ─────────────►│
//	    │                                       Answer                        │
//	    └──────────────────── Grant(n+1), Take(n+1) ◄─────────────────────────┘
//
// Over is for good: answers to beats of that number change nothing any more.
type Holder struct {
	ttl   time.Duration
	no    uint64 // of the lease; 0: none was ever granted
	until Moment // the lease runs up to here; meaningless unless begun
	begun bool   // it was taken, or some beat of this number was answered
	over  bool

	nonce uint64
	sent  []sentBeat // not answered, oldest first
}

type sentBeat struct {
	nonce uint64
	at    Moment
}

// maxSent bounds the beats that may still be answered.
const maxSent = 8

// Beat is what a node tells the leader, besides its report. Its caller fills in what the
// Holder does not know: Boot, Stopped, and Want when its lease is of an earlier round.
//
// A beat must not go out before whatever stops the writers knows of the lease of its
// number: that a node has sent one is the leader's proof that the node obeys it.
type Beat struct {
	No    uint64 `json:"no"`
	Nonce uint64 `json:"nonce"`
	// Want says that the node has no lease that could be renewed, and asks for a new one.
	Want bool `json:"want,omitempty"`
	// Boot of the machine, which a new lease is for.
	Boot string `json:"boot"`
	// Stopped, if not 0, is the number of the node's lease as it has read it in the state:
	// nothing is written on this node, and nothing will be before it reads of a higher
	// number. It was verified, after reading. The leader must not conclude that itself from
	// another Boot than that of the lease: a beat of an earlier boot may have waited long to
	// be read, but cannot know a number that was granted after that boot had ended.
	Stopped uint64 `json:"stopped,omitempty"`
}

// NewHolder is the side of a node that holds nothing.
func NewHolder() *Holder { return &Holder{} }

// Saved is what a restart of the process, not of the machine, must not forget.
type Saved struct {
	No    uint64        `json:"no"`
	TTL   time.Duration `json:"ttl"` // of the round that the lease was granted in
	Until Moment        `json:"until"`
	Begun bool          `json:"begun"`
	Over  bool          `json:"over"`
}

// Save is the present state.
func (h *Holder) Save() Saved {
	return Saved{No: h.no, TTL: h.ttl, Until: h.until, Begun: h.begun, Over: h.over}
}

// Restore goes on where Save was, in the same boot of the machine. After a boot
// nothing is restored: what was written under the old lease ended with the machine.
func (h *Holder) Restore(s Saved) {
	h.no, h.ttl, h.until, h.begun, h.over, h.sent = s.No, s.TTL, s.Until, s.Begun, s.Over, nil
}

// Grant says that the replicated state, as this node has applied it, gives this boot of
// the machine the lease of this number, by the timers of its round. A number that is not
// higher than the last changes nothing. Nothing may be written before a beat of it was
// answered.
func (h *Holder) Grant(no uint64, t Timers) {
	if no > h.no {
		*h = Holder{ttl: t.TTL, no: no, nonce: h.nonce}
	}
}

// Take is Grant while failover is being armed, when the node writes already without a
// lease, or under one of other timers: from now on it writes under this one, which runs
// at once. That is safe because nobody is taken for dead by time before a beat of this
// number was heard, and the lease runs no longer than one TTL from that beat. It is for
// primaries only: others are not waited for before failover is automatic.
func (h *Holder) Take(now Moment, no uint64, t Timers) {
	if no > h.no {
		h.Grant(no, t)
		h.begun, h.until = true, now.Add(t.TTL)
	}
}

// Revoke says that the replicated state has taken the lease of this number back.
func (h *Holder) Revoke(now Moment, no uint64) {
	h.Grant(no, Timers{})
	if no == h.no {
		h.GiveUp(now)
	}
}

// Beat is the next one to send. It must go out after now was read.
func (h *Holder) Beat(now Moment) Beat {
	h.expire(now)
	h.nonce++
	if len(h.sent) == maxSent {
		h.sent = slices.Delete(h.sent, 0, 1)
	}
	h.sent = append(h.sent, sentBeat{h.nonce, now})
	return Beat{No: h.no, Nonce: h.nonce, Want: h.no == 0 || h.over}
}

// Answer notes that the leader has answered a beat of the lease of this number. The
// lease then runs from when that beat was sent.
func (h *Holder) Answer(now Moment, no, nonce uint64) {
	i := slices.IndexFunc(h.sent, func(b sentBeat) bool { return b.nonce == nonce })
	if i < 0 {
		return
	}
	until := h.sent[i].at.Add(h.ttl)
	h.sent = slices.Delete(h.sent, i, i+1)
	h.expire(now)
	if h.over || no != h.no || no == 0 || now >= until {
		return
	}
	if !h.begun || until > h.until {
		h.begun, h.until = true, until
	}
}

// GiveUp ends the lease at once: the node cannot do its part, as when its pool does
// not answer.
func (h *Holder) GiveUp(now Moment) {
	h.expire(now)
	if h.begun && !h.over {
		h.until = now
	}
	h.over = true
}

// Held says whether the node may write now.
func (h *Holder) Held(now Moment) bool {
	h.expire(now)
	return h.begun && !h.over
}

// Deadline is when writers must be stopped, at the latest, if nothing more is heard;
// ok is false while the lease has not begun, or no writer can have been started
// under it.
func (h *Holder) Deadline() (at Moment, ok bool) { return h.until, h.begun }

// No is the number of the lease; 0 when none was ever granted.
func (h *Holder) No() uint64 { return h.no }

func (h *Holder) expire(now Moment) {
	if h.begun && now >= h.until {
		h.over = true
	}
}
