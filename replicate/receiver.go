package replicate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// ServeConn is the receiving side of one connection from peer, whose identity the
// caller has verified. It returns when the connection or ctx ends, nil when the
// peer has hung up between two exchanges, and closes conn.
func (e *Engine) ServeConn(ctx context.Context, conn net.Conn, peer volume.NodeID) error {
	w := newWire(conn, e.cfg.Stall)
	defer w.close()
	stop := context.AfterFunc(ctx, w.close)
	defer stop()
	e.peerSeen(peer)
	for {
		f, payload, err := w.read(0)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case f != frameOffer:
			return fmt.Errorf("%w: frame %c where an offer belongs", errProtocol, f)
		}
		o := &offer{}
		if err := decode(payload, o); err != nil {
			return err
		}
		for o != nil {
			if o, err = e.receive(ctx, w, *o, peer); err != nil {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				return err
			}
		}
	}
}

// receive does one exchange. When the sender does not begin the stream it was asked
// for but makes another offer, that one is returned.
func (e *Engine) receive(ctx context.Context, w *wire, o offer, peer volume.NodeID) (*offer, error) {
	ctx, release, a, refusal, err := e.accept(ctx, o, peer)
	if err != nil {
		return nil, err
	}
	if release == nil {
		return nil, w.writeMessage(frameAnswer, refusal.answer)
	}
	defer release()
	stop := context.AfterFunc(ctx, w.close) // also when the assignment changes
	defer stop()

	stopPings := pings(w) // setting a copy aside may take a while
	defer func() { stopPings() }()
	ans, s, err := e.prepare(ctx, o, a)
	if err != nil {
		// "Cannot ask" is not "nothing there".
		ans = say(saysBusy, "%v", err).answer
	}
	ans.Reason = clip(ans.Reason)
	if ans.Verdict != saysResume && ans.Verdict != saysIncremental && ans.Verdict != saysFull {
		if ans.Verdict == saysAlready {
			e.noteOffer(o, true)
		}
		stopPings()
		err := w.writeMessage(frameAnswer, ans)
		if ans.Verdict == saysAlready && err == nil {
			wake(e.wakePruner)
		}
		return nil, err
	}

	if why := e.admitsStream(ctx, o.Volume); why != "" {
		stopPings()
		return nil, w.writeMessage(frameAnswer, say(saysRefused, "%s", why).answer)
	}
	free, err := e.takeSlots(ctx, !s.exists)
	if err != nil {
		return nil, err
	}
	stopPings()
	if free == nil {
		return nil, w.writeMessage(frameAnswer, say(saysBusy, "as many streams as this node takes are being received").answer)
	}
	defer free()
	if err := w.writeMessage(frameAnswer, ans); err != nil {
		return nil, err
	}
	f, payload, err := w.read(w.stall)
	switch {
	case err != nil:
		return nil, unexpected(err)
	case f == frameOffer:
		again := &offer{}
		return again, decode(payload, again)
	case f == frameEnd: // declined
		return nil, decode(payload, &end{})
	case f != frameBegin:
		return nil, fmt.Errorf("%w: frame %c where a stream should begin", errProtocol, f)
	}
	var b begin
	if err := decode(payload, &b); err != nil {
		return nil, err
	}
	if !s.begins(ans, b.From) {
		return nil, fmt.Errorf("%w: the stream begins at another snapshot than was asked for", errProtocol)
	}
	e.noteOffer(o, false)
	if err := e.receiveStream(ctx, w, o, b, ans, s, a); err != nil {
		return nil, err
	}
	wake(e.wakePruner)
	return nil, nil
}

// takeSlots waits a little until a stream may be received. free is nil when it may
// not; the caller calls it once.
func (e *Engine) takeSlots(ctx context.Context, seed bool) (free func(), err error) {
	kinds := []chan struct{}{e.slots}
	if seed {
		kinds = []chan struct{}{e.seeds, e.slots}
	}
	patience := time.NewTimer(e.slotWait())
	defer patience.Stop()
	free = func() {}
	for _, kind := range kinds {
		before := free
		select {
		case kind <- struct{}{}:
			free = func() { <-kind; before() }
		case <-patience.C:
			free()
			return nil, nil
		case <-ctx.Done():
			free()
			return nil, context.Cause(ctx)
		}
	}
	return free, nil
}

// accept admits an offer and claims its volume. When another stream for it is just
// ending, it waits a little. Without release the offer is turned away.
func (e *Engine) accept(ctx context.Context, o offer, peer volume.NodeID) (rctx context.Context, release func(), a *Assignment, refusal step, err error) {
	patience := time.NewTimer(e.slotWait())
	defer patience.Stop()
	for {
		e.mu.Lock()
		a = e.table[o.Volume]
		refusal, ok := admit(o, peer, e.cfg.ClusterID, a)
		if ok && !e.surveyed {
			refusal, ok = say(saysBusy, "this node is starting"), false
		}
		running, why := e.receives[o.Volume], "another stream for the volume is being received"
		if running != nil && running.stream != nil && running.stream.ended.Load() {
			why = "what it got last is still being written: its pool is slow or hangs"
		}
		if ok && running != nil && running.peer == peer && running.stream != nil && !running.stream.ended.Load() {
			// A link does one exchange at a time: the connection that this stream came
			// on is dead, though nobody has told us.
			running.cancel(errSuperseded)
		}
		if ok && running == nil {
			rctx, release, _ = e.claim(ctx, o.Volume, o.Epoch, peer)
		}
		e.mu.Unlock()
		if !ok || release != nil {
			return rctx, release, a, refusal, nil
		}
		select {
		case <-running.done:
		case <-patience.C:
			return nil, nil, a, say(saysBusy, "%s", why), nil
		case <-ctx.Done():
			return nil, nil, a, step{}, context.Cause(ctx)
		}
	}
}

// slotWait is how long an offer may wait for its turn.
func (e *Engine) slotWait() time.Duration { return min(5*time.Second, e.cfg.Stall/4) }

// noteOffer remembers what the primary said besides: what may be pruned, and how
// fresh a copy is that holds the newest.
func (e *Engine) noteOffer(o offer, complete bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.copies[o.Volume]
	if c == nil {
		return
	}
	c.floor, c.keep, c.moored = o.Floor, o.Keep, o.Anchors
	c.setTaken(o.Newest.SnapshotName(), o.Newest.Taken)
	if complete {
		c.step(o.Epoch)
		c.drop(o.Epoch, o.Dropped)
		c.complete(o.CompleteAsOf)
	}
}

// step notes that the copy is in step with the primary of an epoch. What another
// primary said about times says nothing by the clock of this one.
func (c *localCopy) step(epoch volume.Epoch) {
	if c.inStep != epoch {
		c.inStep, c.completeAsOf = epoch, time.Time{}
	}
}

// complete notes that the copy holds all that was written until then. What the primary
// says last counts, though it said a later time before: its clock has been set back, and
// by that it will be told how long it lived.
func (c *localCopy) complete(asOf time.Time) {
	if !asOf.IsZero() {
		c.completeAsOf = asOf
	}
}

// setTaken remembers a snapshot's time as its primary told it.
func (c *localCopy) setTaken(name string, at time.Time) {
	if at.IsZero() {
		return
	}
	c.takenAt[name] = at
	for i := range c.snaps {
		if c.snaps[i].name == name && c.snaps[i].engine() {
			c.snaps[i].pos.Taken = at
		}
	}
}

// prepare takes the steps that an offer asks for until there is an answer.
func (e *Engine) prepare(ctx context.Context, o offer, a *Assignment) (answer, standing, error) {
	if s, ok := e.remembered(o.Volume, time.Now()); ok && !s.joins(o.Volume, o, a.Line) {
		switch st := decide(o, s); st.answer.Verdict {
		case saysIncremental:
			return st.answer, s, nil // and zfs takes it only onto what it finds there
		case saysAlready:
			if err := e.readBack(ctx, []volume.ID{o.Volume}); err != nil {
				return answer{}, s, err
			}
			if _, still := e.remembered(o.Volume, time.Now()); still {
				return st.answer, s, nil
			}
		}
	}
	reread, setAside := false, ""
	for range maxSteps {
		s, err := e.look(ctx, o.Volume, reread)
		if err != nil {
			return answer{}, s, err
		}
		st := decide(o, s)
		if s.asksOrigin(st) {
			if s.origin, err = e.originFound(ctx, o.Volume, a.Origin); err != nil {
				return answer{}, s, err
			}
			if s.origin != "" {
				s.originGUID = guid(a.Origin.GUID)
			}
			st = decide(o, s)
		}
		if st.answer.Verdict == saysAlready && e.hasUnread(o.Volume) {
			reread = true // nobody has seen it on the disk
			continue
		}
		if st.answer.Verdict == saysFull && s.origin == "" && e.awaits(o.Volume, a.Origin, time.Now()) {
			return say(saysBusy, "it has not got the snapshot yet that the volume is a clone of").answer, s, nil
		}
		if st.act == actAnswer {
			if s.joins(o.Volume, o, a.Line) {
				if e.hasUnread(o.Volume) {
					reread = true
					continue
				}
				if err := e.mark(ctx, o.Volume, a.Line); err != nil {
					return answer{}, s, err
				}
			}
			if setAside != "" && (st.answer.Verdict == saysIncremental || st.answer.Verdict == saysFull) {
				return say(saysDiverged, "%s; it has been set aside", setAside).answer, s, nil
			}
			return st.answer, s, nil
		}
		if st.act == actFork || st.act == actShelve {
			// What a copy on the line had is no part of what was undone.
			marked, err := a.Line.Marked(o.Volume, s.line)
			if err == nil && !marked && st.reason != interrupted && !a.Line.IsZero() && len(s.snaps) > 0 && !onLine(s.snaps, a.Line) {
				st.reason = reasonFor(st.reason, s.snaps, a.Line)
			}
			setAside = st.reason
		}
		if err := e.perform(ctx, o.Volume, st, o.Epoch, ofLine(o.Volume, a.Properties, st, s, o, a.Line)); err != nil {
			return answer{}, s, err
		}
		reread = true
	}
	return answer{}, standing{}, errors.New("the copy cannot be made ready to receive")
}

// look reads how this node's copy of a volume stands. The snapshots come from
// memory unless reread: nobody but the claimant changes them. Seeds and forks beside the copy are looked for
// only where there may be any: that takes a listing of all volumes, and after the loss of a node each is read.
func (e *Engine) look(ctx context.Context, id volume.ID, reread bool) (standing, error) {
	name, asked := e.cfg.dataset(id), time.Now()
	d, err := e.cfg.Pool.Dataset(ctx, name)
	s := standing{exists: err == nil}
	if err != nil && !errors.Is(err, zfs.ErrNotFound) {
		return s, err
	}
	e.mu.Lock()
	leftover := e.leftover[id]
	seen := e.copies[id] != nil || e.blind || asked.Sub(e.listedAt) > e.recent()
	// Only this engine makes seeds and forks. What was left of an earlier one the survey has found.
	unsure := !e.surveyed || e.blind
	e.mu.Unlock()
	switch {
	case leftover, reread && unsure, !s.exists && seen:
		if err := e.lookLeftover(ctx, id, &s); err != nil {
			return s, err
		}
	case !s.exists:
		// The last listing had nothing of the volume, and nothing came of it since; so many
		// first copies do not cost a listing each. That all is gone would look the same.
		if _, err := e.cfg.Pool.Dataset(ctx, e.cfg.Root); err != nil {
			return s, err
		}
	}
	e.mu.Lock()
	if !s.exists {
		delete(e.copies, id)
		e.mu.Unlock()
		return s, nil
	}
	c := e.copyOf(id)
	known := c.known && !reread
	e.mu.Unlock()
	var snaps []zfs.Snapshot
	var marks []zfs.Bookmark
	if !known {
		if snaps, err = e.cfg.Pool.Snapshots(ctx, name, false); err != nil {
			return s, err
		}
		if marks, err = e.cfg.Pool.Bookmarks(ctx, name, false); err != nil {
			return s, err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c = e.copyOf(id)
	e.touch(c)
	c.setDataset(d)
	c.listed = asked
	if !known {
		c.setSnapshots(snaps)
		c.setBookmarks(marks)
		c.known = true
		c.remember(time.Now())
	}
	s.dataset, s.mounted, s.token = d, d.Mounted, d.ResumeToken
	s.epoch, s.badEpoch = c.epoch, c.badEpoch
	s.snaps, s.modified = c.snaps, c.modified
	s.line, s.written = c.line, c.written != 0
	return s, nil
}

// originHere is the full name of the snapshot that a volume is a clone of, in this node's copy of
// the original; "" when that is not here, or not to be built on: a copy that is to be here no more
// is about to go, and one that is encrypted takes no streams. One that is just being taken over, or
// whose intent log is not replayed yet, has its snapshots all the same. An error says that it is not known:
// the copy may just be changing places, part by part (forkCopy), and then it is not there only if
// it is not found twice.
func (e *Engine) originHere(ctx context.Context, o Origin) (string, error) {
	if !o.Here {
		return "", nil
	}
	name := e.cfg.dataset(o.Volume)
	for range 2 {
		fork, err := lookup(ctx, e.cfg.Pool, e.cfg.fork(o.Volume))
		if err != nil {
			return "", err
		}
		d, err := lookup(ctx, e.cfg.Pool, name)
		if err != nil {
			return "", err
		}
		if d != nil && d.Encryption == "off" {
			snaps, err := e.cfg.Pool.Snapshots(ctx, name, false)
			if err != nil && !errors.Is(err, zfs.ErrNotFound) {
				return "", err
			}
			for _, s := range snaps {
				if s.GUID == o.GUID {
					return s.FullName(), nil
				}
			}
		}
		if fork != nil {
			return "", &movingError{o.Volume}
		}
	}
	return "", nil
}

// movingError is a copy of an original that is half set aside.
type movingError struct{ original volume.ID }

func (m *movingError) Error() string {
	return fmt.Sprintf("this node's copy of volume %s, of which this is a clone, is just being set aside", m.original)
}

const (
	// originPatience is how long a first copy waits for the snapshot that the volume is a clone of:
	// what was taken for the clone, or just before, is still on its way to the replicas of the original.
	originPatience = 10 * time.Second
	// movingPatience is how long it waits for the original's copy to be set aside. That takes a moment,
	// or somebody has to help; a clone does not go without a copy for that.
	movingPatience = 10 * time.Minute
)

// originFound is originHere; of an original that has been half set aside for long it says that it is
// not here.
func (e *Engine) originFound(ctx context.Context, id volume.ID, o Origin) (string, error) {
	name, err := e.originHere(ctx, o)
	e.mu.Lock()
	defer e.mu.Unlock()
	var moving *movingError
	switch {
	case name != "":
		delete(e.orphans, id)
	case errors.As(err, &moving) && e.orphaned(id, time.Now()) >= movingPatience:
		return "", nil
	}
	return name, err
}

// awaits says that the original has a copy here, that may yet get what the volume is a clone of.
func (e *Engine) awaits(id volume.ID, o Origin, now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if a := e.table[o.Volume]; !o.Here || a != nil && a.Role != volume.RoleReplica || e.copies[o.Volume] == nil {
		return false
	}
	return e.orphaned(id, now) < originPatience
}

// orphaned is for how long a first copy has waited for what it is to hang on. The caller holds mu.
func (e *Engine) orphaned(id volume.ID, now time.Time) time.Duration {
	if _, waits := e.orphans[id]; !waits {
		e.orphans[id] = now
	}
	return now.Sub(e.orphans[id])
}

// hangOn notes that a first copy is received on the original's copy here, which must still be
// wanted: it ends when that is not. The caller has claimed the volume.
func (e *Engine) hangOn(id volume.ID) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if a := e.table[id]; a == nil || !a.Origin.Here {
		return fmt.Errorf("this node needs its copy of what volume %s is a clone of no more", id)
	}
	e.receives[id].onOrigin = true
	return nil
}

// leaves notes that a seed or a fork of a volume is about to be made. The caller holds mu.
func (e *Engine) leaves(id volume.ID) {
	e.changes++
	e.leftover[id], e.begun[id] = true, e.changes
}

// lookLeftover finds seeds and forks of a volume.
func (e *Engine) lookLeftover(ctx context.Context, id volume.ID, s *standing) error {
	list, err := e.cfg.Pool.Datasets(ctx, e.cfg.Root)
	if err != nil {
		return err
	}
	for _, d := range list {
		k, of, epoch := e.cfg.parse(d.Name)
		switch {
		case d.Volume:
		case d.Name == e.cfg.dataset(id) && !s.exists:
			return fmt.Errorf("zfs says that %s does not exist, and lists it", d.Name)
		case of != id:
		case k == kindFork:
			s.fork = true
		case k == kindSeed:
			sd := seed{epoch: epoch, token: d.ResumeToken, origin: d.Origin}
			if sd.token == "" {
				snaps, err := e.cfg.Pool.Snapshots(ctx, d.Name, false)
				if err != nil {
					return err
				}
				var c localCopy
				c.setSnapshots(snaps)
				sd.snaps = c.snaps
			}
			s.seeds = append(s.seeds, sd)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if s.fork || len(s.seeds) > 0 {
		e.leftover[id] = true
	} else {
		delete(e.leftover, id)
	}
	return nil
}

// receiveStream receives one stream, looks what is on the disk then, and says so.
// What was received counts by the guid that is there, whatever the commands said.
func (e *Engine) receiveStream(ctx context.Context, w *wire, o offer, b begin, ans answer, s standing, a *Assignment) error {
	began := time.Now()
	id := o.Volume
	in := &incoming{dataReader: dataReader{w: w}, count: e.counting(ctx)}
	e.mu.Lock()
	e.receives[id].stream = in
	before := e.room
	e.mu.Unlock()
	trust := e.doubt(id)

	stopPings := pings(w)
	top, recvErr, err := e.apply(ctx, in, o, b, ans, s, a)
	reached := err == nil && top == b.To
	if reached {
		e.fits(id)
	} else if noRoom(recvErr) {
		recvErr = errors.Join(recvErr, e.giveUp(ctx, o, !s.exists, before, in.bytes))
	}
	stopPings()

	e.emit(Received{Volume: id, Primary: o.Primary, To: b.Name, Bytes: in.bytes, Took: time.Since(began), Err: receivedError(recvErr, err, reached)})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	reply := ack{GUID: top}
	if !reached {
		reply.Code, reply.Error = e.failure(id, recvErr, err)
	} else if trust(); in.drain() != nil {
		return in.err // it is here; the next offer will tell
	}
	if err := w.writeMessage(frameAck, reply); err != nil {
		return err
	}
	if !reached && in.end == nil {
		if in.drain(); w.broken.Load() {
			w.swallow()
		}
		return fmt.Errorf("receiving %s: %s", b.Name, reply.Error)
	}
	return in.err
}

// apply gives a stream to zfs and looks what came of it. zfs gets none of a stream that is
// not what was announced, so that such a one changes nothing.
func (e *Engine) apply(ctx context.Context, in *incoming, o offer, b begin, ans answer, s standing, a *Assignment) (top guid, recvErr, lookErr error) {
	recycle := func() {}
	switch b.Compress {
	case "":
	case compressZstd:
		var err error
		if recycle, err = e.zstd.decompress(in); err != nil {
			return 0, err, nil
		}
	default:
		return 0, &unfitError{fmt.Errorf("it is compressed by %q, which this node does not know; upgrade it", b.Compress)}, nil
	}
	target, seeding := e.cfg.dataset(o.Volume), !s.exists
	stream := &vetted{incoming: in, announced: b, onOrigin: seeding && b.From != 0}
	if err := e.makeWay(ctx, o.Volume, stream); err != nil {
		return 0, err, nil
	}

	req := zfs.ReceiveRequest{Dataset: target, Resumable: true}
	if stream.onOrigin {
		if err := e.hangOn(o.Volume); err != nil {
			return 0, err, nil
		}
		req.Origin = s.origin
	}
	if seeding {
		target = e.cfg.seed(o.Volume, o.Epoch)
		req.Dataset = target
		if ans.Verdict == saysFull {
			req.Properties = copyProperties(o.Volume, o.Epoch, a.Properties)
		}
		e.mu.Lock()
		e.leaves(o.Volume)
		e.mu.Unlock()
	}
	// zfs begins to run while the stream is still on its way; what it reads is checked
	// before it gets any of it.
	switch recvErr = e.cfg.Pool.Receive(ctx, req, stream); {
	case recvErr == nil:
		recycle()
	case stream.unfit != nil:
		return 0, stream.unfit, nil
	}
	if in.refused != nil {
		recvErr = in.refused
	}
	if recvErr == nil && !seeding && e.arrived(o, stream) {
		return b.To, nil, nil
	}
	top, lookErr = e.verify(ctx, o.Volume, target, seeding, o, b, a)
	return top, recvErr, lookErr
}

// makeWay gives another name to a snapshot of this copy that is called like the one
// which comes: it was destroyed on the primary, its name was given again, and here it
// is still, because this node has not heard of that yet or because something holds it.
// zfs takes no second snapshot of a name, so the copy would never get any further. The
// stream must be what was announced before anything changes for it.
func (e *Engine) makeWay(ctx context.Context, id volume.ID, stream *vetted) error {
	b := stream.announced
	taken := func() (s snap, ok bool) {
		e.mu.Lock()
		defer e.mu.Unlock()
		if c := e.copies[id]; c != nil {
			s, ok = c.namesake(b.Name, b.To)
		}
		return s, ok
	}
	if _, ok := taken(); !ok {
		return nil
	}
	if err := stream.vet(); err != nil {
		return err
	}
	// Whoever destroys does it by name.
	if err := acquire(ctx, e.pruning); err != nil {
		return err
	}
	defer release(e.pruning)
	old, ok := taken()
	if !ok {
		return nil
	}
	name := fmt.Sprintf("%s-%x", old.name, uint64(old.guid))
	err := e.cfg.Pool.Rename(ctx, e.cfg.dataset(id)+"@"+old.name, e.cfg.dataset(id)+"@"+name)
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.copies[id]; c != nil {
		e.touch(c)
		c.rename(old.guid, name)
		c.known = c.known && err == nil
	}
	if err != nil {
		return fmt.Errorf("snapshot %s, which has the name of the one that comes, cannot be given another: %w", old.name, err)
	}
	return nil
}

func receivedError(recvErr, lookErr error, reached bool) error {
	switch {
	case reached:
		return nil
	case recvErr != nil:
		return recvErr
	case lookErr != nil:
		return lookErr
	}
	return errors.New("what was received is not what was announced")
}

// failure says why a stream did not take the copy to where it should, and notes
// what the next offer must know.
func (e *Engine) failure(id volume.ID, recvErr, lookErr error) (code, text string) {
	code = codeFailed
	var unfit *unfitError
	switch {
	case errors.As(recvErr, &unfit):
		code = codeRefused
	case errors.Is(recvErr, zfs.ErrDiverged):
		code = codeDiverged
	case noRoom(recvErr):
		code = codeNoSpace
	case errors.Is(recvErr, zfs.ErrBadToken):
		code = codeBadToken
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.copies[id]; c != nil {
		c.modified = c.modified || code == codeDiverged
		if lookErr != nil || errors.Is(recvErr, zfs.ErrNoBase) {
			c.known = false
		}
	}
	return code, clip(receivedError(recvErr, lookErr, false).Error())
}

// arrived says that the snapshot which was sent is there, the newest of the copy, without
// asking zfs once more. What the stream makes was read from its own head before zfs got it;
// zfs ends well only when a snapshot with that guid is in the dataset, on disk; and if the
// copy stood on the stream's base and had neither its guid nor its name, zfs has just made
// it there. It counts as unread until somebody looks (readBack). Where any of this is not
// plainly so, as of a stream that was resumed, the caller lists the copy.
func (e *Engine) arrived(o offer, stream *vetted) bool {
	b, h := stream.announced, stream.header
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.copies[o.Volume]
	if c == nil || !c.known || !stream.done || h.Resuming || !c.takes(b) {
		return false
	}
	e.touch(c)
	c.setTaken(b.Name, b.At)
	c.add(zfs.Snapshot{Dataset: c.dataset, Name: b.Name, GUID: uint64(b.To), CreateTXG: c.top().txg + 1, Creation: h.Created, Written: stream.bytes})
	c.snaps[len(c.snaps)-1].unread = true
	c.reached(o, b.To)
	return true
}

// takes says that by what is known of the copy a stream adds a snapshot to it, and zfs
// finds none to take for that one.
func (c *localCopy) takes(b begin) bool {
	return c.top().guid == b.From && !c.condemned[b.To] &&
		!slices.ContainsFunc(c.snaps, func(s snap) bool { return s.guid == b.To || s.name == b.Name })
}

// hasUnread says that streams have brought something to a copy that nobody has read.
func (e *Engine) hasUnread(id volume.ID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.copies[id]
	return c != nil && len(c.unread()) > 0
}

// readBack reads from the disk what streams have brought to these copies, in one command
// for all. A copy that lacks any of it, or has another in its place, is not known any more
// and is read anew.
func (e *Engine) readBack(ctx context.Context, ids []volume.ID) error {
	asked := map[string]guid{}
	e.mu.Lock()
	for _, id := range ids {
		if c := e.copies[id]; c != nil && c.known {
			for _, s := range c.unread() {
				asked[c.dataset+"@"+s.name] = s.guid
			}
		}
	}
	e.mu.Unlock()
	if len(asked) == 0 {
		return nil
	}
	list, err := e.cfg.Pool.SnapshotsNamed(ctx, slices.Sorted(maps.Keys(asked)))
	if err != nil {
		return err
	}
	found := make(map[string]zfs.Snapshot, len(list))
	for _, z := range list {
		found[z.FullName()] = z
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, id := range ids {
		c := e.copies[id]
		if c == nil || !c.known {
			continue
		}
		for _, s := range c.unread() {
			name := c.dataset + "@" + s.name
			if asked[name] != s.guid {
				continue // it came meanwhile
			}
			z, ok := found[name]
			if !ok || guid(z.GUID) != s.guid {
				c.known = false
				break
			}
			c.confirm(z)
		}
	}
	return nil
}

// verify reads the newest snapshot of what was received into. A seed that got
// there is given its place first.
func (e *Engine) verify(ctx context.Context, id volume.ID, target string, seeding bool, o offer, b begin, a *Assignment) (guid, error) {
	snaps, err := e.cfg.Pool.Snapshots(ctx, target, false)
	if errors.Is(err, zfs.ErrNotFound) && seeding {
		return 0, nil // nothing of it was kept
	}
	if err != nil {
		e.forget(id, seeding)
		return 0, err
	}
	var listed localCopy
	listed.setSnapshots(snaps)
	top := listed.top().guid
	if seeding && top == b.To {
		st := step{act: actAdoptSeed, epoch: o.Epoch}
		if err := e.perform(ctx, id, st, o.Epoch, a.Properties); err != nil {
			return 0, err
		}
	} else if seeding {
		return top, nil
	}

	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.copyOf(id)
	e.touch(c)
	c.setTaken(b.Name, b.At)
	delete(c.condemned, top) // it may be one that was destroyed here before
	c.setSnapshots(snaps)
	if seeding {
		c.known, c.epoch = true, o.Epoch
		c.marks = nil
		c.remember(time.Now())
		delete(e.leftover, id)
		delete(e.orphans, id)
	}
	if top == b.To {
		c.reached(o, top)
	}
	return top, nil
}

// reached notes that a stream has taken the copy to where it should, and what the offer
// before it said.
func (c *localCopy) reached(o offer, top guid) {
	c.modified = false
	c.floor, c.keep, c.moored = o.Floor, o.Keep, o.Anchors
	c.step(o.Epoch)
	c.drop(o.Epoch, o.Dropped)
	c.setTaken(o.Newest.SnapshotName(), o.Newest.Taken)
	if uint64(top) == o.Newest.GUID {
		c.complete(o.CompleteAsOf)
	}
}

// forget makes the next offer read the copy from disk.
func (e *Engine) forget(id volume.ID, seeding bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.copies[id]; c != nil && !seeding {
		c.known = false
	}
}

// pings tells the sender that this node is alive while zfs works, until the
// returned function is called, which waits for the last one to be out and may be
// called again.
func pings(w *wire) (stop func()) {
	var once sync.Once
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(w.stall / 4)
		defer ticker.Stop()
		for {
			select {
			case <-quit:
				return
			case <-ticker.C:
				if w.write(framePing, nil) != nil {
					return
				}
			}
		}
	}()
	return func() {
		once.Do(func() { close(quit) })
		<-done
	}
}

// copyProperties are those of every copy: never mounted by itself, read-only, shared with no other
// machines whatever is said of the pool (they would write beside it once it is unmounted), and
// what the volume's spec says.
func copyProperties(id volume.ID, epoch volume.Epoch, spec map[string]string) map[string]string {
	props := map[string]string{
		"canmount": "noauto",
		"readonly": "on",
		"sharenfs": "off",
		"sharesmb": "off",
		propVolume: string(id),
		propEpoch:  epoch.String(),
	}
	for key, value := range spec {
		if _, ours := props[key]; !ours {
			props[key] = value
		}
	}
	return props
}
