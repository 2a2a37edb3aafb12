package replicate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// maxSteps bounds what a receiver does about one offer, and how often a sender
// offers again without getting anywhere.
const maxSteps = 20

var (
	errUnread  = errors.New("this node's copy is being read")
	errStalled = errors.New("the stream made no progress")
	errSilent  = errors.New("the replica says that it lives and does not get on: its pool may hang")
	errParting = errors.New("this node's copy is being set aside, and that is not finished")
	errUnasked = errors.New("this node's copy has seen a higher epoch than its assignment")
	errNoBase  = errors.New("what the replica stands on is not known here any more")
)

// exchange asks the replica what it has and sends it one stream, or none, over one
// connection. A link that has nothing to send as far as it knows, or whose replica
// did not answer of late, asks without a turn (see turns.go).
func (l *link) exchange(ctx context.Context) error {
	e := l.e
	e.mu.Lock()
	p, c := e.peerOf(l.key.replica), e.copies[l.key.volume]
	asks := !l.spoken || l.failed
	var encryption string
	if c != nil {
		asks = asks || guid(l.acked.GUID) == c.newest().guid
		encryption = c.encryption
	}
	e.mu.Unlock()
	switch encryption {
	case "off":
	case "":
		return errUnread
	default:
		return &encryptedError{encryption}
	}

	defer func() { l.release() }()
	l.release = func() {}
	if asks {
		select {
		case p.asking <- struct{}{}:
			l.release = func() { <-p.asking }
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	} else {
		release, err := l.turn(ctx, false)
		if err != nil {
			return err
		}
		l.release = release
	}

	w, reused, err := e.connect(ctx, p, false)
	if err != nil {
		return err
	}
	answered, err := l.converse(ctx, p, w, !asks)
	if err != nil && reused && !answered && !errors.Is(err, errSilent) && ctx.Err() == nil {
		// It may have been dead since long ago: only a fresh one tells. A replica that goes
		// on saying that it lives is at its other end, and would answer a second offer with
		// BUSY, which tells nobody what is wrong.
		if w, _, err = e.connect(ctx, p, true); err != nil {
			return err
		}
		_, err = l.converse(ctx, p, w, !asks)
	}
	return err
}

// takesTurn gives up the place of one who only asks for a turn, if one is free.
func (l *link) takesTurn(ctx context.Context) bool {
	release, err := l.turn(ctx, true)
	if release == nil || err != nil {
		return false
	}
	l.release()
	l.release = release
	return true
}

// converse uses the connection up to the end of the exchange, and then parks or
// closes it. turn says that the link has a turn to stream; answered, that the replica
// said anything.
func (l *link) converse(ctx context.Context, p *peer, w *wire, turn bool) (answered bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, w.close)
	inStep := false       // the next exchange may use the connection
	var early *production // begun before the answer; nil: none
	defer func() {
		early.stop()
		if stop() && inStep {
			l.e.park(p, w)
		} else {
			w.close()
		}
		l.e.mu.Lock()
		l.streaming = ""
		l.e.mu.Unlock()
		if err != nil && ctx.Err() != nil && !errors.Is(err, context.Cause(ctx)) {
			err = context.Cause(ctx)
		}
	}()

	for idle := 0; idle < maxSteps; idle++ {
		o, err := l.offer(time.Now())
		if err != nil {
			inStep = true
			return answered, err
		}
		if turn && idle == 0 {
			// zfs gets ready while the replica is asked.
			if h, ok := l.foresee(); ok {
				early = l.produce(ctx, l.request(h, kindIncremental, ""), h)
			}
		}
		var ans answer
		offered := time.Now()
		if err := w.writeMessage(frameOffer, l.e.telling(o)); err != nil {
			return answered, err
		}
		if err := l.hear(ctx, w, &ans); err != nil {
			return answered, err
		}
		answered = true
		l.e.emit(Offered{Volume: l.key.volume, Replica: l.key.replica, Took: time.Since(offered)})
		h, kind, token, err := l.plan(ctx, o, ans)
		if err != nil {
			inStep = kind == "" || w.decline(err.Error()) == nil
			return answered, err
		}
		if h.to.guid == 0 {
			if kind == kindAgain {
				continue
			}
			inStep = true
			return answered, nil
		}
		if turn = turn || l.takesTurn(ctx); !turn {
			err := w.decline("it is not this stream's turn")
			inStep = err == nil
			return answered, err
		}
		more, ok, err := l.stream(ctx, w, h, kind, token, early)
		inStep, turn = ok, false // the stream's end has given it back
		if err != nil || !more || h.to.guid == l.topNow() {
			return answered, err // a turn is good for one stream
		}
	}
	inStep = true
	return answered, errors.New("replica asks again and again without getting further")
}

// hear waits for the answer to an offer. A replica whose pool hangs goes on saying that
// it lives, and would keep this link's turn for ever.
func (l *link) hear(ctx context.Context, w *wire, ans *answer) error {
	late := time.AfterFunc(slowFactor*w.stall, w.close)
	err := w.expect(frameAnswer, ans)
	if !late.Stop() && err != nil && ctx.Err() == nil {
		return errSilent
	}
	return err
}

func (l *link) topNow() guid {
	l.e.mu.Lock()
	defer l.e.mu.Unlock()
	return l.top
}

// Kinds of stream, as status and events name them. kindAgain is no stream: offer
// once more.
const (
	kindFull        = "full"
	kindClone       = "clone" // a clone's first, on the snapshot that it was made of
	kindIncremental = "incremental"
	kindResume      = "resume"
	kindAgain       = "again"
)

// offer says what this primary has, from memory.
func (l *link) offer(now time.Time) (offer, error) {
	e := l.e
	e.mu.Lock()
	defer e.mu.Unlock()
	a, c := e.table[l.key.volume], e.copies[l.key.volume]
	if a == nil || a.Epoch != l.key.epoch {
		return offer{}, errSuperseded
	}
	if c == nil || !c.known {
		return offer{}, errUnread
	}
	if c.epoch > a.Epoch || c.badEpoch != "" {
		return offer{}, errUnasked
	}
	if c.parting() {
		return offer{}, errParting
	}
	o := offer{
		Cluster: e.cfg.ClusterID, Volume: l.key.volume, Epoch: a.Epoch, Primary: e.cfg.Node,
		Newest: c.newest().pos, NoResume: l.noResume,
	}
	if o.Newest.IsZero() {
		return offer{}, errors.New("there is no snapshot yet")
	}
	o.CompleteAsOf = o.Newest.Taken
	if c.idleAsOf.After(o.CompleteAsOf) {
		o.CompleteAsOf = c.idleAsOf
	}
	o.Bases, o.Truncated = c.candidates(maxBases)
	if l.burying = nil; l.known != nil || l.buried != c.burials || now.Sub(l.buriedAt) >= e.cfg.Verify {
		list, all := c.tombstones(l.known, maxDropped)
		o.Dropped, l.burying = list, &portion{list, all, c.burials}
	}
	o.Floor = e.floor(a, c, now)
	e.weigh(a, c, now)
	o.Keep, o.Anchors = e.needed(a, c), e.moorings(a, c, now)
	return o, nil
}

// telling is an offer as the replica is told it.
func (e *Engine) telling(o offer) offer {
	o.Newest.Taken, o.CompleteAsOf = e.told(o.Newest.Taken), e.told(o.CompleteAsOf)
	return o
}

// told is a time of this process as other nodes are told it: it was as long ago as the
// monotonic clock says, counted back from what the wall clock says now. That may have been
// set since, and how long this node lived is told by it too. A time from before this process
// has no monotonic reading and is told as it is.
func (e *Engine) told(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return e.cfg.Wall().Add(-time.Since(t)).Round(0)
}

// plan is what the sender does about an answer: a stream, nothing more (h.to and
// kind empty), or another offer (kindAgain). With an error, kind says whether the
// receiver now waits for a stream.
func (l *link) plan(ctx context.Context, o offer, ans answer) (h hop, kind, token string, err error) {
	switch ans.Verdict {
	case saysBusy:
		return hop{}, "", "", &busyError{ans.Reason}
	case saysRefused, saysStale:
		return hop{}, "", "", &refusedError{ans.Verdict, ans.Epoch, ans.Reason, strings.HasPrefix(ans.Reason, outOfSpace)}
	case saysDiverged:
		l.e.emit(LinkChanged{Volume: l.key.volume, Replica: l.key.replica, State: volume.LinkRefused,
			Err: &refusedError{saysDiverged, 0, ans.Reason, false}})
		return hop{}, kindAgain, "", nil
	case saysResume:
		return l.planResume(ctx, ans)
	}

	e := l.e
	origin := ""
	if ans.Verdict == saysFull {
		if origin, err = l.originFor(ctx, parseOrigin(ans.Token)); err != nil {
			return hop{}, kindFull, "", err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	l.noResume, l.fruitless, l.saved = false, 0, 0
	l.heard(ans.Have, time.Now())
	if ans.Verdict == saysAlready {
		if uint64(ans.Have) != o.Newest.GUID {
			return hop{}, "", "", fmt.Errorf("%w: the replica has already what was not offered", errProtocol)
		}
		if o.CompleteAsOf.After(l.complete) {
			l.complete = o.CompleteAsOf
		}
		l.bury(time.Now())
		return hop{}, "", "", nil
	}
	kind = kindIncremental
	if ans.Verdict == saysFull {
		kind, ans.Have, l.seeding = kindFull, 0, true
	}
	c := e.copies[l.key.volume]
	if c == nil {
		return hop{}, kind, "", errSuperseded
	}
	h, ok := nextHop(c.snaps, c.marks, c.halts(e.lineOf(l.key.volume)), ans.Have)
	if !ok {
		c.known = false
		wake(e.wakeCadence)
		return hop{}, kind, "", errNoBase
	}
	if origin != "" {
		kind, h.from, h.fromGUID, h.onOrigin = kindClone, origin, parseOrigin(ans.Token), true
	}
	l.from, l.to = h.fromGUID, h.to.guid // the pruner leaves them alone from here on
	return h, kind, "", nil
}

// originFor is the full name of the snapshot here that the volume's dataset is a clone of, if it is
// this one, which the replica has, too; "" when all has to be sent. What zfs says of the dataset
// counts: by what is assigned it was a clone once, and it may have been promoted since, or be
// another copy.
func (l *link) originFor(ctx context.Context, g guid) (string, error) {
	e := l.e
	e.mu.Lock()
	a := e.table[l.key.volume]
	asked := a != nil && g != 0 && g == guid(a.Origin.GUID) && l.astray < maxFruitless
	e.mu.Unlock()
	if !asked {
		return "", nil
	}
	name := e.cfg.dataset(l.key.volume)
	d, err := e.cfg.Pool.Dataset(ctx, name)
	switch {
	case err != nil || d.Origin == "":
		return "", err
	case strings.HasPrefix(d.Origin, name+"-fork@"):
		return "", errParting
	}
	found, err := e.cfg.Pool.SnapshotsNamed(ctx, []string{d.Origin})
	switch {
	case err != nil:
		return "", err
	case len(found) != 1:
		return "", fmt.Errorf("%s, which %s is a clone of, has another name by now", d.Origin, name)
	case guid(found[0].GUID) != g:
		return "", nil
	}
	return d.Origin, nil
}

// planResume checks what the replica's token stands for. A token that names what
// is not here any more is of no use, and the replica is told so.
func (l *link) planResume(ctx context.Context, ans answer) (h hop, kind, token string, err error) {
	e := l.e
	t, err := e.cfg.Pool.DecodeToken(ctx, ans.Token)
	e.mu.Lock()
	defer e.mu.Unlock()
	useless := unusable(err) || l.fruitlessAfter(err)
	if err != nil && !useless {
		return hop{}, kindResume, "", err
	}
	l.spoken = true
	if ans.Have != 0 {
		l.heard(ans.Have, time.Now())
	}
	c := e.copies[l.key.volume]
	if c == nil {
		return hop{}, kindResume, "", errSuperseded
	}
	if err == nil && t.Bytes > l.saved {
		l.saved, l.fruitless = t.Bytes, 0
	}
	if err == nil && l.fruitless < maxFruitless {
		to, here := c.find(guid(t.ToGUID))
		from, a := guid(t.FromGUID), e.table[l.key.volume]
		onOrigin := ans.Have == 0 && from != 0 && a != nil && from == guid(a.Origin.GUID)
		if here && t.ToName == e.cfg.dataset(l.key.volume)+"@"+to.name && (from == ans.Have || onOrigin) {
			l.seeding = l.seeding || ans.Have == 0
			l.from, l.to = from, to.guid
			return hop{from: c.nameOf(from), fromGUID: from, to: to, onOrigin: onOrigin}, kindResume, ans.Token, nil
		}
	}
	l.noResume = true
	return hop{}, kindAgain, "", nil
}

// maxFruitless resumes in a row get nowhere, then the partial stream is given up.
const maxFruitless = 3

// unusable says that zfs will not have a resume token, or what stands behind it.
func unusable(err error) bool {
	return errors.Is(err, zfs.ErrBadToken) || errors.Is(err, zfs.ErrNotFound) || errors.Is(err, zfs.ErrNoBase)
}

// fruitlessAfter notes how zfs here ended a resume, and says whether it was one too many.
// The caller holds mu.
func (l *link) fruitlessAfter(err error) bool {
	if !lasting(err) {
		return false
	}
	l.fruitless++
	return l.fruitless >= maxFruitless
}

// lasting says that zfs itself has ended a stream. A line that breaks says nothing about what is
// sent, and neither does a machine or a pool that is in trouble.
func lasting(err error) bool {
	var z *zfs.Error
	if !errors.As(err, &z) || z.Stderr == "" {
		return false
	}
	for _, passing := range []error{zfs.ErrSuspended, zfs.ErrNoZFS, zfs.ErrBusy, zfs.ErrNoSpace} {
		if errors.Is(err, passing) {
			return false
		}
	}
	return true
}

// hungUpBy is how soon a replica has ended a stream that it knows nothing to do with. It does so without
// a word, and before it reads any of it.
const hungUpBy = 10 * time.Second

// hungUp says that a stream ended so soon, and neither by zfs here nor by a replica that does not get on.
func hungUp(err error, took time.Duration) bool {
	var z *zfs.Error
	return err != nil && took < hungUpBy && !(errors.As(err, &z) && z.Stderr != "") && !errors.Is(err, errStalled) && !errors.Is(err, errSilent)
}

// foresee is the stream that the replica will ask for if it still has what it had last.
func (l *link) foresee() (h hop, ok bool) {
	l.e.mu.Lock()
	defer l.e.mu.Unlock()
	c := l.e.copies[l.key.volume]
	if c == nil || l.top == 0 {
		return hop{}, false
	}
	return nextHop(c.snaps, c.marks, c.halts(l.e.lineOf(l.key.volume)), l.top)
}

// request is what zfs is asked to send for a stream.
func (l *link) request(h hop, kind, token string) zfs.SendRequest {
	name := l.e.cfg.dataset(l.key.volume)
	req := zfs.SendRequest{Snapshot: name + "@" + h.to.name, Token: token}
	switch {
	case h.from == "" || kind == kindResume:
	case h.onOrigin:
		req.From = h.from
	default:
		req.From = name + h.from
	}
	return req
}

// stream sends one stream and takes the acknowledgement. early is one that may have been
// begun, and is used when it is the same. ok says that the connection is still in step,
// more that the replica is not at the newest yet.
func (l *link) stream(ctx context.Context, w *wire, h hop, kind, token string, early *production) (more, ok bool, err error) {
	e := l.e
	began := time.Now()
	req := l.request(h, kind, token)
	e.mu.Lock()
	l.streaming, l.base, l.began, l.sent, l.total, l.rest, l.rate = kind, h.from, began, 0, 0, 0, meter{}
	if i := strings.IndexByte(h.from, '@'); i > 0 {
		l.base = h.from[i:] // of another dataset
	}
	if kind == kindFull || kind == kindClone || !l.seeding || l.seeded == 0 {
		l.seedBegan, l.seeded = began, 0
	}
	if c := e.copies[l.key.volume]; c != nil {
		l.total = c.lagBytes(h.fromGUID)
		if h.onOrigin {
			l.total = c.writtenAfter(snap{})
		}
		if l.seeding {
			l.rest = c.writtenAfter(h.to)
		}
	}
	guess, long := l.total, l.wish(began).long
	wanted := !l.estimating && (kind == kindFull || guess > longStream)
	l.estimating = l.estimating || wanted
	e.mu.Unlock()
	for _, s := range h.passed {
		e.emit(SnapshotPassed{Volume: l.key.volume, Replica: l.key.replica, Name: s.name})
	}
	if wanted {
		estimating, stop := context.WithCancel(ctx)
		defer stop()
		e.beside.Go(func() { l.estimate(estimating, req, began, guess) })
	}

	b := begin{From: h.fromGUID, To: h.to.guid, Name: h.to.name, At: e.told(h.to.pos.Taken)}
	limit, way, found := e.limit(l.key.replica).Bytes, e.lineTo(l.key.replica), false
	if limit > 0 && limit <= slowLink {
		b.Compress, way = compressZstd, nil // the limit is what is slow
	} else if found = way.compresses(); found {
		b.Compress = compressZstd
	}
	if !early.is(req, h) {
		early.stop()
		early = l.produce(ctx, req, h)
	}
	a, bytes, ok, err := l.transfer(early, w, b, long, way)
	switch {
	case err != nil:
	case a.GUID == h.to.guid:
	case a.Code == codeNoSpace:
		err = &refusedError{saysRefused, 0, "it is out of space: " + a.Error, true}
	case a.Code == codeRefused:
		err = &refusedError{saysRefused, 0, a.Error, false}
	case a.Code != "":
		err = fmt.Errorf("replica could not receive %s: %s", h.to.name, a.Error)
	default:
		err = fmt.Errorf("%w: after %s the replica stands on another snapshot", errProtocol, h.to.name)
	}
	again := a.Code == codeDiverged // it sets its copy aside at the next offer
	if found && ctx.Err() == nil && way.ended(a.Code == codeRefused, err, time.Now()) {
		e.emit(LineChanged{Replica: l.key.replica, Compresses: way.compresses()})
	}

	e.mu.Lock()
	l.streaming = ""
	switch {
	case kind != kindResume || err == nil:
	case a.Code == codeBadToken, unusable(err):
		l.noResume = true
	case a.Code == codeFailed:
		l.fruitless++
	case h.onOrigin && a.Code == "" && ctx.Err() == nil && hungUp(err, time.Since(began)):
		// A replica that was put back to a version that knows no such streams does that to each. A line
		// that breaks so soon costs nothing as long as more of the stream arrives.
		l.fruitless++
	default:
		l.fruitlessAfter(err)
	}
	if h.onOrigin && (lasting(err) || a.Code == codeFailed || a.Code == codeRefused || a.Code == codeBadToken) {
		l.astray++
	}
	if err == nil {
		l.saved, l.astray = 0, 0
		if kind == kindIncremental {
			l.increment = time.Since(began)
		}
		l.heard(a.GUID, time.Now())
		if l.seeding {
			l.seeded += l.sent
		}
		l.bury(time.Now())
		l.from, l.to = 0, 0
		c := e.copies[l.key.volume]
		more = c != nil && uint64(l.top) != c.newest().pos.GUID
	}
	if errors.Is(err, zfs.ErrNotFound) || errors.Is(err, zfs.ErrNoBase) {
		if c := e.copies[l.key.volume]; c != nil {
			c.known = false
			wake(e.wakeCadence)
		}
	}
	e.mu.Unlock()
	e.emit(StreamEnded{Volume: l.key.volume, Replica: l.key.replica, Kind: kind, To: h.to.name,
		Bytes: bytes, Took: time.Since(began), Err: err})
	if again && ok {
		return true, ok, nil
	}
	return more, ok, err
}

// estimate asks zfs how much the stream that began then will be. It runs beside the
// stream, which does not wait for it; without an answer the guess stays. The streams that
// follow in a first copy are not estimated before it is their turn.
func (l *link) estimate(ctx context.Context, req zfs.SendRequest, began time.Time, guess int64) {
	n, err := l.e.cfg.Pool.EstimateSend(ctx, req)
	l.e.mu.Lock()
	defer l.e.mu.Unlock()
	l.estimating = false
	if err == nil && plausible(n, guess) && l.streaming != "" && l.began.Equal(began) {
		l.total = n + l.rest
	}
}

// transfer is the stream itself. The acknowledgement is awaited from the first
// byte on, because a receiver that fails says so at once; then the connection,
// with half a stream in it, is given up. Once all is out the turn goes back: what the
// replica still does with it costs this node nothing, and may take it long.
func (l *link) transfer(p *production, w *wire, b begin, long bool, way *line) (a ack, bytes int64, ok bool, err error) {
	defer p.stop()
	if err := w.writeMessage(frameBegin, b); err != nil {
		return ack{}, 0, false, err
	}
	sendCtx, cancel := p.ctx, p.cancel
	watchdog := time.AfterFunc(slowFactor*w.stall, func() { cancel(errStalled); w.close() })
	defer watchdog.Stop()

	var ackErr error
	acked := make(chan struct{})
	go func() {
		defer close(acked)
		if ackErr = w.expect(frameAck, &a); ackErr != nil || a.Code != "" {
			cancel(errEarly)
		}
	}()

	out := l.outgoing(sendCtx, w, long, func(n int) {
		bytes += int64(n)
		watchdog.Reset(slowFactor * w.stall)
	}, func() { watchdog.Reset(slowFactor * w.stall) })
	out.way = way
	out.turned = func() { l.e.emit(LineChanged{Replica: l.key.replica, Compresses: way.compresses()}) }
	sendErr := l.send(p, out, b)
	watchdog.Stop()
	e := end{OK: sendErr == nil, Bytes: bytes}
	if sendErr != nil {
		e.Error = clip(sendErr.Error())
	}
	if out.err != nil {
		w.close()
	} else if err := w.writeMessageWithin(slowFactor*w.stall, frameEnd, e); err != nil {
		out.err = err
		w.close()
	}
	if out.err == nil {
		l.release()
		l.release = func() {}
		ended := time.Now()
		l.sayEnded(ended)
		defer l.sayEnded(time.Time{})
		defer func() {
			if ackErr == nil {
				l.e.emit(Acknowledged{Volume: l.key.volume, Replica: l.key.replica, Took: time.Since(ended)})
			}
		}()
		late := time.AfterFunc(slowFactor*w.stall, func() { cancel(errSilent); w.close() })
		defer late.Stop()
	}
	<-acked

	switch {
	case ackErr == nil && a.GUID == b.To:
		return a, bytes, out.err == nil, nil // it is there, whatever we saw of it
	case ackErr == nil && (sendErr == nil || errors.Is(context.Cause(sendCtx), errEarly)):
		return a, bytes, out.err == nil, nil
	case sendErr != nil && !errors.Is(context.Cause(sendCtx), errEarly):
		return ack{}, bytes, ackErr == nil && out.err == nil, fmt.Errorf("send: %w", sendErr)
	case out.err != nil && ackErr == nil:
		return ack{}, bytes, false, out.err
	case errors.Is(context.Cause(sendCtx), errSilent):
		return ack{}, bytes, false, fmt.Errorf("no acknowledgement: %w", errSilent)
	}
	if errors.Is(ackErr, io.EOF) {
		ackErr = io.ErrUnexpectedEOF
	}
	return ack{}, bytes, false, fmt.Errorf("no acknowledgement: %w", ackErr)
}

// sayEnded notes since when the replica has had a whole stream without having
// acknowledged it; zero: it owes none.
func (l *link) sayEnded(at time.Time) {
	l.e.mu.Lock()
	defer l.e.mu.Unlock()
	l.ended = at
}

// send lets zfs write the stream to out, compressed or not.
func (l *link) send(p *production, out *outgoing, b begin) error {
	recycle := func() {}
	if b.Compress == compressZstd {
		var err error
		if recycle, err = l.e.zstd.compress(out); err != nil {
			return err
		}
	}
	err := p.into(out)
	if err == nil {
		err = out.close()
	}
	if err == nil {
		recycle()
	}
	return err
}

// outgoing is where a stream of this link goes: through the limit of its replica, onto
// w. Besides what the link itself notes, moved hears of every byte, and waits of every
// moment that the limit alone holds the stream up.
func (l *link) outgoing(ctx context.Context, w *wire, long bool, moved func(n int), waits func()) *outgoing {
	e, to := l.e, l.key.replica
	idle := func() error { // both ends would take the silence for a stall
		waits()
		return w.writeWithin(slowFactor*w.stall, framePing, nil)
	}
	return &outgoing{
		w: w, sentAt: time.Now(),
		piece: func() int { return piece(e.limit(to).Bytes) },
		pace:  func(n int) error { return e.pace(ctx, to, n, long, w.stall/4, idle) },
		progress: func(n int) {
			moved(n)
			e.mu.Lock()
			l.sent, l.streamed = l.sent+int64(n), l.streamed+int64(n)
			l.rate.add(time.Now(), n)
			e.mu.Unlock()
		},
	}
}

// errEarly ends a send whose receiver has spoken before the end.
var errEarly = errors.New("the replica broke the stream off")
