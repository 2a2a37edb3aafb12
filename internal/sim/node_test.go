package sim

import (
	"slices"
	"strconv"
	"time"

	"github.com/flocker-io/flocker/internal/lease"
	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// node is one machine: its clock, flockd, the fencer beside it, and what writes.
type node struct {
	w      *world
	i      int
	rate   float64
	offset time.Duration
	down   bool
	boot   int
	life   int      // of flockd, over all boots
	hung   bool     // its disk does not answer: Raft stands still, the rest goes on
	frozen bool     // flockd is; fencer and writers are other processes
	waking []func() // what came meanwhile

	raft
	at     int  // index in world.states of what it has applied
	fresh  bool // since it started, it has applied what a proven leader knew
	holder *lease.Holder
	fencer fencer
	writes [volumes]*stretch
	mounts [volumes]bool            // a mount is under way
	copies [volumes]volume.Position // on disk
	final  [volumes]string          // the attempt it has let go of the volume for
	last   func()                   // the beat that it sent last arrives
}

// fencer stops the writers when the lease is over, whatever has become of flockd.
type fencer struct {
	no    uint64
	until lease.Moment
	fence time.Duration
	armed bool
	busy  bool
}

func (n *node) state() *state.State { return n.w.states[n.at] }

func (n *node) id() volume.NodeID { return ids[n.i] }

// clock is CLOCK_BOOTTIME, but for its beginning.
func (n *node) clock() lease.Moment {
	return lease.Moment(n.offset + time.Duration(float64(n.w.now)*n.rate))
}

// machine runs do after d of this node's clock unless it has lost power meanwhile.
func (n *node) machine(d time.Duration, do func()) {
	boot := n.boot
	n.w.after(time.Duration(float64(d)/n.rate), func() {
		if !n.down && n.boot == boot {
			do()
		}
	})
}

// flockd runs do after d of this node's clock, in the same process; a frozen one does
// it when it wakes.
func (n *node) flockd(d time.Duration, do func()) {
	life := n.life
	again := func() {
		if n.life == life {
			do()
		}
	}
	n.machine(d, func() {
		switch {
		case n.life != life:
		case n.frozen:
			n.waking = append(n.waking, again)
		default:
			do()
		}
	})
}

// hang has the disk that Raft needs not answer for a while.
func (n *node) hang(d time.Duration) {
	n.w.note("node %d hangs for %v", n.i, d)
	n.hung = true
	n.w.after(d, func() { n.hung = false })
}

// sick is a pool that does not answer for a while: the node gives its lease up.
func (n *node) sick() {
	if n.down || n.frozen || !n.fresh || !n.state().NeedsLease(n.id()) {
		return
	}
	n.w.note("node %d gives its lease up", n.i)
	n.holder.GiveUp(n.clock())
	n.fenceNow()
}

// freeze stops flockd for a while.
func (n *node) freeze(d time.Duration) {
	if n.down || n.frozen {
		return
	}
	n.w.note("node %d frozen for %v", n.i, d)
	n.frozen = true
	life := n.life
	n.w.after(d, func() {
		if n.life != life {
			return
		}
		n.w.note("node %d thawed", n.i)
		n.frozen = false
		waking := n.waking
		n.waking = nil
		n.w.rng.Shuffle(len(waking), func(a, b int) { waking[a], waking[b] = waking[b], waking[a] })
		for _, do := range waking {
			if n.life == life {
				do()
			}
		}
	})
}

// crash takes the machine's power for a while.
func (n *node) crash(off time.Duration) {
	if n.down {
		return
	}
	n.w.note("node %d loses power for %v", n.i, off)
	n.w.tally.Crashes++
	for v := range volumes {
		for _, s := range n.w.open[v] {
			if s.node == n.i {
				n.w.stop(s)
			}
		}
		n.writes[v] = nil
	}
	if n.last != nil && n.w.oneIn(2) { // somewhere on the way a copy of it has stayed
		n.w.after(off+n.w.upTo(30*time.Second), n.last)
	}
	n.end()
	n.down, n.hung, n.boot, n.fencer = true, false, n.boot+1, fencer{}
	n.w.after(off, func() {
		n.down = false
		n.w.note("node %d boots", n.i)
		n.holder = lease.NewHolder()
		n.start()
		if n.w.broken.bootMount {
			for v := range volumes {
				if n.state().Volume(volumeID(v)).Placement.Primary == n.id() {
					n.mount(v)
				}
			}
		}
	})
}

// restart ends flockd and starts it again, while the machine and its writers go on.
func (n *node) restart() {
	if n.down {
		return
	}
	n.w.note("flockd restarts on node %d", n.i)
	saved := n.holder.Save()
	n.end()
	// What the fencer was last told is what it remembers; flockd asks it.
	if n.fencer.no != saved.No {
		saved = lease.Saved{No: n.fencer.no, Over: true}
	}
	n.holder = lease.NewHolder()
	n.holder.Restore(saved)
	n.start()
}

// end of flockd. What it has applied may be behind again when it comes back: the log is
// replayed from a snapshot.
func (n *node) end() {
	n.life++
	n.frozen, n.waking, n.leads, n.keeper, n.round, n.next = false, nil, false, nil, nil, nil
	n.at -= n.w.rng.IntN(min(n.at, 20) + 1)
	n.fresh = n.w.broken.noCatchUp
	n.final, n.mounts = [volumes]string{}, [volumes]bool{}
}

func (n *node) start() {
	n.ledBy, n.heard = -1, n.clock()
	n.flockd(n.w.upTo(2*time.Second), n.beat)
	n.flockd(n.w.upTo(tick), n.look)
}

// look is flockd's small loop.
func (n *node) look() {
	n.flockd(tick, n.look)
	n.raftLook()
	n.follow()
	n.replicate()
}

// ---- the lease

// beat goes to the leader that the node knows.
func (n *node) beat() {
	every := lease.Default.Heartbeat
	s := n.state()
	f := s.Failover()
	if f.Enforced() {
		every = f.Timers.Heartbeat
	}
	n.flockd(every, n.beat)
	if n.ledBy < 0 || !f.Enforced() && n.fresh {
		return
	}
	n.follow()
	sent := n.clock()
	b := n.holder.Beat(sent)
	b.Boot = strconv.Itoa(n.boot)
	held := s.Node(n.id()).Lease
	b.Want = f.Enforced() && n.fresh && (b.Want || held.Round != f.Round)
	if n.fresh && held.No > 0 && n.stopped(held) {
		b.Stopped = held.No
	}
	life, to := n.life, n.w.nodes[n.ledBy]
	n.last = func() {
		to.hear(n, b, f.Round, func(answered bool, index int) {
			if n.life == life {
				n.answered(sent, b, answered, index)
			}
		})
	}
	n.w.send(n.i, to.i, n.last)
}

// stopped says that nothing is written here, and nothing will be before a lease of a
// higher number: what the fencer has verified.
func (n *node) stopped(held state.Lease) bool {
	if !n.state().NeedsLease(n.id()) || n.fencer.busy || n.holder.Held(n.clock()) {
		return false
	}
	for v := range volumes {
		if n.writes[v] != nil {
			return false
		}
	}
	return held.Boot != strconv.Itoa(n.boot) || n.holder.Save().Over
}

func (n *node) answered(sent lease.Moment, b lease.Beat, answered bool, index int) {
	if !n.fresh {
		n.fresh = n.at >= index
	}
	if answered {
		now, was := n.clock(), n.holder.Save()
		n.holder.Answer(now, b.No, b.Nonce)
		r := n.w.broken
		if is := n.holder.Save(); is.No == b.No && is.No > 0 {
			switch until := sent.Add(is.TTL); {
			case r.fromAnswer && !is.Over:
				is.Begun, is.Until = true, now.Add(is.TTL)
				n.holder.Restore(is)
			case r.revive && was.Over && until > now:
				is.Begun, is.Over, is.Until = true, false, until
				n.holder.Restore(is)
			}
		}
	}
	n.follow()
}

// follow makes lease, fencer and writers what the applied state says.
func (n *node) follow() {
	now, s := n.clock(), n.state()
	held := s.Node(n.id()).Lease
	f := s.Failover()
	if n.fresh {
		mine := held.No > 0 && held.Round == f.Round && held.Boot == strconv.Itoa(n.boot)
		switch {
		case !s.NeedsLease(n.id()):
			n.fencer.armed = false
		case mine && held.Revoked:
			n.holder.Revoke(now, held.No)
		case mine && f.Mode == state.FailoverArming && slices.Contains(s.NotHeard(nil), n.id()):
			n.holder.Take(now, held.No, f.Timers)
		case mine:
			n.holder.Grant(held.No, f.Timers)
		}
	}
	n.arm(f.Timers.Fence)
	n.act()
}

// arm tells the fencer of the deadline before anything is written under it.
func (n *node) arm(fence time.Duration) {
	until, ok := n.holder.Deadline()
	no, fc := n.holder.No(), &n.fencer
	if !ok || no < fc.no || no == fc.no && (until <= fc.until || !fc.armed) || n.holder.Save().Over {
		return
	}
	fc.no, fc.until, fc.armed = no, until, true
	if fence > 0 {
		fc.fence = fence
	}
	n.machine(until.Sub(n.clock()), func() {
		if fc.armed && fc.no == no && fc.until == until {
			n.fenceNow()
		}
	})
}

// fenceNow stops everything that writes on this node, within the budget by the clock of
// this machine, which may be slow; when that does not work the machine is reset.
func (n *node) fenceNow() {
	writing := false
	for v := range volumes {
		for _, s := range n.w.open[v] {
			writing = writing || s.node == n.i
		}
	}
	if !writing || n.fencer.busy {
		return
	}
	n.w.tally.Fenced++
	n.w.note("node %d is fenced", n.i)
	if n.w.broken.unverified {
		n.writes = [volumes]*stretch{} // it says so, but a process went on, and nobody stopped it
		for v := range volumes {
			for _, s := range n.w.open[v] {
				if s.node == n.i {
					n.w.after(n.w.upTo(60*time.Second), func() { n.w.stop(s) })
				}
			}
		}
		return
	}
	n.fencer.busy = true
	took := n.fencer.fence
	if n.w.oneIn(5) {
		n.machine(took, func() { n.crash(3*time.Second + n.w.upTo(20*time.Second)) })
		return
	}
	if n.w.oneIn(2) {
		took = n.w.upTo(took)
	}
	n.machine(took, func() {
		n.fencer.busy = false
		for v := range volumes {
			if s := n.writes[v]; s != nil {
				n.w.stop(s)
				n.writes[v] = nil
			}
		}
	})
}

// ---- writing

// act mounts what may be written here, and stops what may not.
func (n *node) act() {
	if !n.fresh {
		return
	}
	s := n.state()
	for i := range volumes {
		v := s.Volume(volumeID(i))
		mine := v.Placement.Primary == n.id() && n.may()
		switch x := n.writes[i]; {
		case n.mounts[i]:
		case x == nil && mine && v.Phase == state.PhaseActive && !n.fencer.busy:
			if !v.Start.IsZero() && n.copies[i].Compare(v.Start) < 0 {
				continue
			}
			if n.w.slow && n.w.oneIn(2) {
				n.mountSlowly(i, v.Epoch)
				continue
			}
			n.mount(i)
		case x != nil && !x.stopping && (!mine || x.epoch != v.Epoch || v.Phase == state.PhaseMoving):
			// Unmounting takes its time, and the fencer may be quicker.
			x.stopping = true
			n.machine(n.w.upTo(time.Second), func() {
				n.w.stop(x)
				if n.writes[i] == x {
					n.writes[i] = nil
				}
			})
		case x == nil && mine && v.Phase == state.PhaseMoving && !n.fencer.busy:
			n.release(i, v)
		}
	}
}

// may write, as far as leases go.
func (n *node) may() bool {
	return !n.state().NeedsLease(n.id()) || n.holder.Held(n.clock()) || n.w.broken.noLease
}

// mountSlowly is a mount during which the lease may end, the fencer find nothing to stop,
// and the next lease begin. Nobody writes before it was looked at again.
func (n *node) mountSlowly(i int, e volume.Epoch) {
	n.mounts[i] = true
	n.flockd(n.w.upTo(40*time.Second), func() {
		n.mounts[i] = false
		v := n.state().Volume(volumeID(i))
		same := v.Epoch == e && v.Phase == state.PhaseActive && v.Placement.Primary == n.id()
		if n.may() && !n.fencer.busy && (same || n.w.broken.outlast) {
			n.mount(i)
		}
	})
}

func (n *node) mount(v int) {
	w, vol := n.w, n.state().Volume(volumeID(v))
	for _, o := range w.open[v] {
		if o.node != n.i {
			w.fail("two writers of volume %d: node %d in epoch %d and node %d in epoch %d", v, o.node, o.epoch, n.i, vol.Epoch)
		} else if !w.broken.unverified {
			return // what is being unmounted is mounted again later
		}
	}
	w.note("node %d writes %d in epoch %d", n.i, v, vol.Epoch)
	w.tally.Writes++
	s := &stretch{node: n.i, vol: v, epoch: vol.Epoch}
	n.writes[v] = s
	w.open[v] = append(w.open[v], s)
	n.snapshot(v, vol.Epoch)
}

func (w *world) stop(s *stretch) {
	for i, o := range w.open[s.vol] {
		if o == s {
			w.note("node %d writes %d no more", s.node, s.vol)
			w.open[s.vol] = append(w.open[s.vol][:i:i], w.open[s.vol][i+1:]...)
			return
		}
	}
}

// ---- replication

// replicate takes a snapshot of what is written here, now and then, and sends it.
func (n *node) replicate() {
	for v := range volumes {
		if s := n.writes[v]; s != nil && n.w.oneIn(5) {
			n.snapshot(v, s.epoch)
			n.stream(v, s.epoch, n.copies[v], func() {})
		}
	}
}

// snapshot of what was written in an epoch.
func (n *node) snapshot(v int, e volume.Epoch) {
	seq := uint64(1)
	if p := n.copies[v]; p.Epoch == e {
		seq = p.Seq + 1
	}
	n.copies[v] = volume.Position{Epoch: e, Seq: seq, GUID: uint64(e)<<32 | seq}
}

// stream sends a position to all replicas; acked is called by each that has it.
func (n *node) stream(v int, e volume.Epoch, p volume.Position, acked func()) {
	for _, id := range n.state().Volume(volumeID(v)).Placement.Local {
		r := n.w.nodes[nodeOf(id)]
		n.w.send(n.i, r.i, func() {
			// Receiving takes a while; the rules hold when it ends.
			r.flockd(n.w.upTo(500*time.Millisecond), func() {
				if r.receive(v, e, p) {
					n.w.send(r.i, n.i, acked)
				}
			})
		})
	}
}

// receive says whether a replica takes a position, and with it acknowledges it.
func (n *node) receive(v int, e volume.Epoch, p volume.Position) bool {
	vol := n.state().Volume(volumeID(v))
	if !n.fresh || vol.Epoch != e || vol.Placement.Primary == n.id() ||
		vol.Phase == state.PhaseElecting && !n.w.broken.noPromise {
		return false
	}
	if has := n.copies[v]; !strayed(vol.Start, has) && p.Compare(has) <= 0 {
		return p == has // an older one that comes late, or the same again
	}
	// What this copy has beyond the primary's is set aside.
	n.copies[v] = p
	n.w.acked[v][n.i] = p
	if e < n.w.promised[v][n.i] {
		n.w.fail("node %d acknowledges volume %d at %d/%d after it was asked for its position in epoch %d",
			n.i, v, p.Epoch, p.Seq, n.w.promised[v][n.i])
	}
	return true
}

// release is the old primary's part of a move: the last snapshot, then the commit.
func (n *node) release(i int, v *state.Volume) {
	if n.final[i] == v.Pending.Attempt {
		return
	}
	n.final[i] = v.Pending.Attempt
	n.snapshot(i, v.Epoch)
	p, to := n.copies[i], nodeOf(v.Pending.To)
	done := state.CommitHandoff{ID: v.ID, Epoch: v.Epoch, Attempt: v.Pending.Attempt, Final: p}
	n.stream(i, v.Epoch, p, func() {
		if n.ledBy >= 0 && n.w.nodes[to].copies[i] == p {
			l := n.w.nodes[n.ledBy]
			n.w.send(n.i, l.i, func() { l.propose(done) })
		}
	})
}

// promise is a replica's answer to a leader that looks for another primary: its position,
// and that it takes nothing of earlier epochs any more. It has applied the new epoch, and
// does so again after a restart before it serves.
func (n *node) promise(v int, e volume.Epoch) (p volume.Promise, ok bool) {
	vol := n.state().Volume(volumeID(v))
	electing := n.fresh && vol.Epoch == e && vol.Phase == state.PhaseElecting && n.writes[v] == nil
	return volume.Promise{Epoch: e, Exists: true, Newest: n.copies[v]}, electing || n.w.broken.noPromise
}
