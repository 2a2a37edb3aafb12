package replicate

import (
	"fmt"
	"slices"
	"strings"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// standing is how a receiver's disk stands when an offer comes.
type standing struct {
	exists   bool // the copy's dataset is there
	mounted  bool
	epoch    volume.Epoch // its property
	badEpoch string
	snaps    []snap
	token    string // of a partial increment
	modified bool
	line     string // the mark of the line that it is on
	written  bool   // since its newest snapshot, as zfs counts; it may say so of what is not

	dataset zfs.Dataset // as a look has just read it; zero of what is only remembered

	seeds []seed
	fork  bool // a set-aside has begun and not ended

	// origin is the snapshot that the volume is a clone of, by its full name in this node's copy of
	// the original, and its guid; of a copy that exists nobody asks. "": it is not here.
	origin     string
	originGUID guid
}

// seed is a dataset that a first copy was being received into.
type seed struct {
	epoch  volume.Epoch
	token  string
	origin string // that it is received on; "": it is all of a copy
	snaps  []snap
}

// act is one thing a receiver does about an offer.
type act string

const (
	actAnswer     act = "answer"      // say it; nothing is left to do before
	actRaiseEpoch act = "raise-epoch" // persist the offer's epoch on the copy
	actAbort      act = "abort"       // throw the copy's partial increment away
	actAbortSeed  act = "abort-seed"  // throw the partial seed of Epoch away
	actAdoptSeed  act = "adopt-seed"  // the seed of Epoch is complete: it becomes the copy
	actShelveSeed act = "shelve-seed" // the seed of Epoch is of no use here: set it aside
	actFork       act = "fork"        // finish or make: keep history up to Common, set the rest aside
	actShelve     act = "shelve"      // nothing in common: set the whole copy aside
)

// step is the next thing to do about an offer. The runner does it, looks at the
// disk again and asks again, until the step is an answer.
type step struct {
	act    act
	answer answer       // of actAnswer
	epoch  volume.Epoch // of a seed
	common guid         // of actFork
	reason string
}

// interrupted is the reason of a set-aside that goes on after a crash; the one that
// it had before is better, if it is known.
const interrupted = "an interrupted set-aside"

func say(v verdict, format string, args ...any) step {
	return step{act: actAnswer, answer: answer{Verdict: v, Reason: fmt.Sprintf(format, args...)}}
}

// admit says why an offer is turned away before anything on disk matters; ok when
// it is not.
func admit(o offer, peer volume.NodeID, cluster string, a *Assignment) (refusal step, ok bool) {
	switch {
	case o.Cluster != cluster:
		return say(saysRefused, "this node belongs to another cluster"), false
	case o.Primary != peer:
		return say(saysRefused, "the offer names %s as primary but comes from %s", o.Primary.Short(), peer.Short()), false
	case a == nil:
		return say(saysRefused, "this node has no copy of the volume assigned"), false
	case a.Epoch > o.Epoch:
		s := say(saysStale, "epoch %d is over, %d is current", o.Epoch, a.Epoch)
		s.answer.Epoch = a.Epoch
		return s, false
	case a.Epoch < o.Epoch:
		return say(saysBusy, "this node has not heard of epoch %d yet", o.Epoch), false
	case a.Role != volume.RoleReplica:
		return say(saysRefused, "this node is not a replica of the volume"), false
	case a.Primary == "":
		return say(saysBusy, "this node has not heard who is the primary of epoch %d", a.Epoch), false
	case a.Primary != peer:
		return say(saysRefused, "at epoch %d the primary is %s, not %s", a.Epoch, a.Primary.Short(), peer.Short()), false
	}
	return step{}, true
}

// decide is the receiver's decision: the one next step about an offer that was
// admitted. Nothing it asks for loses data: what the primary does not have is set
// aside, and what is thrown away is a partial stream, whose sender has it all.
func decide(o offer, s standing) step {
	if s.fork {
		return step{act: actFork, reason: interrupted}
	}
	if !s.exists {
		return decideSeed(o, s)
	}
	stale := func(epoch volume.Epoch) step {
		st := say(saysStale, "the copy has accepted epoch %d", epoch)
		st.answer.Epoch = epoch
		return st
	}
	switch {
	case s.badEpoch != "":
		return say(saysRefused, "the copy's epoch %q cannot be read", s.badEpoch)
	case s.epoch > o.Epoch:
		return stale(s.epoch)
	case s.mounted:
		return say(saysRefused, "the copy is mounted")
	}
	if len(s.seeds) > 0 {
		if first := s.seeds[0]; first.epoch <= o.Epoch {
			return clearSeed(first)
		}
		return stale(s.seeds[0].epoch)
	}

	// Of a lower epoch nothing may arrive any more once the higher one is accepted.
	if s.epoch < o.Epoch {
		if s.token != "" {
			return step{act: actAbort, reason: "its epoch is over"}
		}
		return step{act: actRaiseEpoch}
	}

	var have guid
	if len(s.snaps) > 0 {
		have = s.snaps[len(s.snaps)-1].guid
	}
	switch {
	case have == guid(o.Newest.GUID) && s.token != "":
		return step{act: actAbort, reason: "the copy is complete"}
	case have == guid(o.Newest.GUID):
		return step{act: actAnswer, answer: answer{Verdict: saysAlready, Have: have}}
	case s.token != "" && (o.NoResume || s.modified):
		return step{act: actAbort, reason: "it cannot be resumed"}
	case s.token != "":
		return step{act: actAnswer, answer: answer{Verdict: saysResume, Have: have, Token: s.token}}
	case have != 0 && slices.Contains(o.Bases, have) && !s.modified:
		return step{act: actAnswer, answer: answer{Verdict: saysIncremental, Have: have}}
	}

	// Diverged. An offer that does not name all its bases proves nothing.
	reason := "it has snapshots that the primary lacks"
	if s.modified {
		reason = "it was changed on this node"
	}
	if have == 0 {
		reason = "it has no snapshot at all"
	}
	for _, sn := range slices.Backward(s.snaps) {
		if slices.Contains(o.Bases, sn.guid) {
			return step{act: actFork, common: sn.guid, reason: reason}
		}
	}
	if o.Truncated {
		return say(saysRefused, "the primary has more bases than an offer can name, and none of those named is here")
	}
	return step{act: actShelve, reason: reason + " and shares none with it"}
}

// decideSeed is decide for a copy that is not there.
func decideSeed(o offer, s standing) step {
	for _, seed := range s.seeds {
		complete := seed.token == "" && len(seed.snaps) > 0
		switch {
		case seed.epoch > o.Epoch:
			st := say(saysStale, "a seed of epoch %d has begun", seed.epoch)
			st.answer.Epoch = seed.epoch
			return st
		case complete && slices.Contains(o.Bases, seed.snaps[len(seed.snaps)-1].guid):
			return step{act: actAdoptSeed, epoch: seed.epoch}
		case seed.epoch < o.Epoch, complete, seed.token == "", o.NoResume:
			return clearSeed(seed)
		case seed.origin != "" && datasetOf(seed.origin) != datasetOf(s.origin):
			// What it hangs on is no part of the original's copy any more: that was removed, or
			// set aside. Nothing new is to hang on it. Which snapshot of it that is the primary knows from
			// the token, and zfs by guid; here names were read at two moments, and are given anew.
			return clearSeed(seed)
		default:
			return step{act: actAnswer, answer: answer{Verdict: saysResume, Token: seed.token}}
		}
	}
	return step{act: actAnswer, answer: answer{Verdict: saysFull, Token: originToken(s.originGUID)}}
}

// asksOrigin says that a step about a copy that is not there rests on where the snapshot is that the
// volume is a clone of. A seed that is complete, or all of a copy, goes on without it.
func (s standing) asksOrigin(st step) bool {
	hangs := slices.ContainsFunc(s.seeds, func(sd seed) bool { return sd.epoch == st.epoch && sd.origin != "" })
	return !s.exists && (st.answer.Verdict == saysFull || st.act == actAbortSeed && hangs)
}

// datasetOf is what a snapshot is of, by its full name.
func datasetOf(snapshot string) string {
	name, _, _ := strings.Cut(snapshot, "@")
	return name
}

// begins says that a stream from there is one that was asked for.
func (s standing) begins(ans answer, from guid) bool {
	switch {
	case s.exists:
		return from == ans.Have
	case ans.Verdict == saysFull:
		return from == 0 || from == s.originGUID
	case s.seeds[0].origin != "": // its rest
		return from == s.originGUID
	}
	return from == 0
}

// clearSeed gets a seed out of the way: a partial one is thrown away, one that is
// complete is kept under another name.
func clearSeed(s seed) step {
	if s.token == "" && len(s.snaps) > 0 {
		return step{act: actShelveSeed, epoch: s.epoch, reason: "a seed that is not needed"}
	}
	return step{act: actAbortSeed, epoch: s.epoch, reason: "a seed that cannot be resumed"}
}

// hop is one stream: from a base (nil: full) to a snapshot.
type hop struct {
	from     string // "@name" or "#name"; "" for full. The whole name of what onOrigin begins at
	fromGUID guid
	to       snap
	passed   []snap // on the way, and too long a name for replicas
	onOrigin bool   // a clone's first copy, from the snapshot that it was made of
}

// portable says that a snapshot's name is good on every node: what the engine and the
// schedules take is, and what people take by hand up to the length that they may give.
// Beyond it neither the name below a longer pool's nor that of a bookmark need fit in.
func (s snap) portable() bool { return len(s.name) <= volume.MaxSnapshotName }

// nextHop is the next stream for a replica whose newest snapshot is have (0: it
// has nothing): straight to the newest engine snapshot, stopping at the first
// user's snapshot on the way, so that it is replicated too, and at those in stops.
// One that is not portable is passed: what is in it travels with the next.
// ok is false when have is neither snapshot nor bookmark here, or nothing is left.
func nextHop(snaps []snap, marks []mark, stops map[guid]int, have guid) (h hop, ok bool) {
	txg := uint64(0)
	if have != 0 {
		h.fromGUID = have
		for _, m := range marks {
			if m.guid == have {
				h.from, txg = "#"+m.name, m.txg
			}
		}
		for _, s := range snaps {
			if s.guid == have {
				h.from, txg = "@"+s.name, s.txg
			}
		}
		if h.from == "" {
			return hop{}, false
		}
	}
	for _, s := range snaps {
		if s.txg <= txg && have != 0 {
			continue
		}
		if !s.portable() {
			h.passed = append(h.passed, s)
			continue
		}
		if s.engine() {
			h.to = s
		}
		if !s.engine() && beforeEngine(snaps, s.txg) || stops[s.guid] > 0 {
			h.to = s
			break
		}
	}
	return h, h.to.guid != 0
}

// beforeEngine says whether an engine snapshot follows txg: a user's snapshot on
// top travels with the next one.
func beforeEngine(snaps []snap, txg uint64) bool {
	return slices.ContainsFunc(snaps, func(s snap) bool { return s.engine() && s.txg > txg })
}
