package replicate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/flocker-io/flocker/zfs"
)

// The two ends of a stream: what zfs send writes becomes DATA frames, and what the
// frames hold is what zfs receive reads.

// production is a stream that zfs makes, and of which nothing goes anywhere before it is
// known where to: a command takes long to start, and the replica is asked meanwhile.
type production struct {
	req      zfs.SendRequest
	from, to guid

	ctx    context.Context
	cancel context.CancelCauseFunc
	out    *outgoing
	opened chan struct{} // closed once out is set
	done   chan struct{} // closed when zfs has ended
	err    error         // how; to be read then
}

// produce has zfs begin. Whoever calls it stops the production.
func (l *link) produce(ctx context.Context, req zfs.SendRequest, h hop) *production {
	p := &production{req: req, from: h.fromGUID, to: h.to.guid, opened: make(chan struct{}), done: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancelCause(ctx)
	go func() {
		defer close(p.done)
		p.err = l.e.cfg.Pool.Send(p.ctx, req, p)
	}()
	return p
}

// is says that this is the stream which is wanted, and that it was not let out yet: a
// replica that had to set its copy aside asks for the same one again. Names may be given
// again, and a snapshot may have got another.
func (p *production) is(req zfs.SendRequest, h hop) bool {
	return p != nil && p.out == nil && p.req == req && p.from == h.fromGUID && p.to == h.to.guid
}

// into lets the stream out and returns when zfs has ended. It is called once.
func (p *production) into(out *outgoing) error {
	p.out = out
	close(p.opened)
	<-p.done
	return p.err
}

// stop ends zfs, unless it has ended, and returns when it has. It may be called again,
// and of none.
func (p *production) stop() {
	if p != nil {
		p.cancel(nil)
		<-p.done
	}
}

func (p *production) Write(b []byte) (int, error) {
	select {
	case <-p.opened:
	case <-p.ctx.Done():
	}
	if p.ctx.Err() != nil {
		return 0, context.Cause(p.ctx)
	}
	return p.out.Write(b)
}

// SetWriteDeadline is called when ctx has ended: a Write that waits to be let out hears
// of that itself.
func (p *production) SetWriteDeadline(t time.Time) error {
	select {
	case <-p.opened:
		return p.out.SetWriteDeadline(t)
	default:
		return nil
	}
}

// outgoing is what zfs send writes to. One goroutine uses it.
type outgoing struct {
	w        *wire
	pace     func(n int) error // waits until n bytes may be sent
	piece    func() int        // how many are sent at once
	progress func(n int)       // n more bytes of zfs have gone this way
	enc      *zstd.Encoder     // nil: as they are
	way      *line             // measured by what goes there; nil: nobody asks
	turned   func()            // by what goes there it is compressed from now on, or is not
	sentAt   time.Time         // when the last frame went
	err      error             // of the connection, or the end of waiting
}

// SetWriteDeadline hangs up when the deadline is past: package zfs sets one to come
// loose from a peer that does not read (zfs.Interruptible).
func (o *outgoing) SetWriteDeadline(t time.Time) error {
	if !t.IsZero() && t.Before(time.Now()) {
		o.w.close()
	}
	return nil
}

// compressPiece is how much is given to the compressor at once: so that progress is
// seen also on a link that takes seconds for what zfs writes at once.
const compressPiece = 32 << 10

func (o *outgoing) Write(p []byte) (done int, err error) {
	if o.enc == nil {
		return o.frames(p, o.progress)
	}
	for done < len(p) {
		n := min(len(p)-done, compressPiece)
		if _, err := o.enc.Write(p[done : done+n]); err != nil {
			return done, err
		}
		done += n
		o.progress(n)
		if o.way != nil {
			o.way.passed(n)
		}
	}
	// The compressor keeps what does not fill a block. The receiver's patience is for
	// what it sees, so it must see something.
	if time.Since(o.sentAt) > o.w.stall/4 {
		return done, o.enc.Flush()
	}
	return done, nil
}

// close sends what the compressor still has.
func (o *outgoing) close() error {
	if o.enc == nil || o.err != nil {
		return o.err
	}
	return o.enc.Close()
}

// wireEnd is what a compressor writes to.
type wireEnd struct{ o *outgoing }

func (w wireEnd) Write(p []byte) (int, error) { return w.o.frames(p, func(int) {}) }

func (o *outgoing) frames(p []byte, progress func(int)) (done int, err error) {
	for done < len(p) && o.err == nil {
		n := min(len(p)-done, o.piece())
		if o.err = o.pace(n + wireCost); o.err == nil {
			o.err = o.put(p[done : done+n])
		}
		if o.err == nil {
			o.sentAt = time.Now()
			done += n
			progress(n)
		}
	}
	return done, o.err
}

// put sends one frame, and notes how long the line was busy with it.
func (o *outgoing) put(p []byte) error {
	if o.way == nil {
		return o.w.writeData(p)
	}
	o.way.enter(time.Now())
	err := o.w.writeData(p)
	if o.way.leave(time.Now(), len(p), o.enc != nil, err) {
		o.turned()
	}
	return err
}

// dataReader gives what the DATA frames hold. At END it says io.EOF; when the sender
// failed, an error, so that a cut stream is never taken for a complete one.
type dataReader struct {
	w     *wire
	left  []byte      // of a DATA frame
	open  int         // bytes of a SEALED frame that are still on the connection
	end   *end        // once it has come
	err   error       // of the connection: it is out of step
	ended atomic.Bool // either of them is set; others may ask
}

func (d *dataReader) Read(p []byte) (int, error) {
	for len(d.left) == 0 && d.open == 0 {
		if err := d.next(); err != nil {
			return 0, err
		}
	}
	if d.open > 0 {
		return d.direct(p[:min(len(p), d.open)])
	}
	n := copy(p, d.left)
	d.left = d.left[n:]
	return n, nil
}

// direct reads from the connection to where the bytes belong.
func (d *dataReader) direct(p []byte) (int, error) {
	d.w.readWithin(d.patience())
	n, err := io.ReadFull(d.w.r, p)
	d.open -= n
	if err != nil {
		d.fail(unexpected(err))
	}
	return n, d.err
}

// patience is how long the sender may be silent. It breaks off itself before that, so
// by then it is gone.
func (d *dataReader) patience() time.Duration { return (slowFactor + 1) * d.w.stall }

func (d *dataReader) fail(err error) error {
	d.err = err
	d.ended.Store(true)
	return err
}

// next takes up to the next DATA or the END.
func (d *dataReader) next() error {
	for {
		switch {
		case d.err != nil:
			return d.err
		case d.end != nil && !d.end.OK:
			return io.ErrUnexpectedEOF
		case d.end != nil:
			return io.EOF
		}
		h, err := d.w.next(d.patience())
		if err != nil {
			return d.fail(unexpected(err))
		}
		if h.frame == frameSealed && h.size > 0 {
			d.open = h.size
			return nil
		}
		payload, err := d.w.payload(h)
		if err != nil {
			return d.fail(err)
		}
		switch h.frame {
		case framePing: // the sender waits for its limit
		case frameData, frameSealed:
			if d.left = payload; len(payload) > 0 {
				return nil
			}
		case frameEnd:
			var e end
			if err := decode(payload, &e); err != nil {
				return d.fail(err)
			}
			d.end = &e
			d.ended.Store(true)
		default:
			return d.fail(fmt.Errorf("%w: frame %c within a stream", errProtocol, h.frame))
		}
	}
}

// incoming is what zfs receive reads: the bytes that zfs send wrote, all of them or an
// error.
type incoming struct {
	dataReader
	dec   *zstd.Decoder // nil: as they come
	head  []byte        // read already, and given out first
	bytes int64         // read, as zfs made them
	// count hears of every byte and may break the stream off, which refused then says.
	// Nil: nobody does.
	count   func(n int) error
	refused error
}

// SetReadDeadline breaks off reading when the deadline is past. It does not hang up:
// the sender is to hear why.
func (in *incoming) SetReadDeadline(t time.Time) error {
	if !t.IsZero() && t.Before(time.Now()) {
		in.w.breakOff()
	}
	return nil
}

func (in *incoming) Read(p []byte) (int, error) {
	if len(in.head) > 0 {
		n := copy(p, in.head)
		in.head = in.head[n:]
		return n, nil
	}
	return in.read(p)
}

func (in *incoming) read(p []byte) (n int, err error) {
	if in.dec != nil {
		n, err = in.dec.Read(p)
	} else {
		n, err = in.dataReader.Read(p)
	}
	in.bytes += int64(n)
	if in.count != nil && in.refused == nil && err == nil {
		in.refused = in.count(n)
	}
	if in.refused != nil {
		return n, in.refused
	}
	if err == io.EOF && (in.end == nil || !in.end.OK || in.end.Bytes != in.bytes) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// begin reads the head of the stream, before anybody else does, and checks it.
func (in *incoming) begin(b begin, onOrigin bool) (h zfs.StreamHeader, err error) {
	head := make([]byte, zfs.StreamHeaderSize)
	n, err := io.ReadFull(readFunc(in.read), head)
	if err != nil {
		return h, unexpected(err)
	}
	in.head = head[:n]
	h, err = zfs.ParseStreamHeader(head)
	if err == nil {
		err = checkHeader(h, b, onOrigin)
	}
	if err != nil {
		return h, &unfitError{err}
	}
	return h, nil
}

// vetted is a stream that must begin as announced: nobody gets any of one that does not.
type vetted struct {
	*incoming
	announced begin
	onOrigin  bool // it makes a clone of what this node has of the original
	done      bool
	header    zfs.StreamHeader // once done
	unfit     error            // why it is refused
}

// vet reads the head of the stream and checks it, unless it has.
func (v *vetted) vet() error {
	if v.done || v.unfit != nil {
		return v.unfit
	}
	h, err := v.incoming.begin(v.announced, v.onOrigin)
	v.done, v.header = err == nil, h
	var unfit *unfitError
	if errors.As(err, &unfit) {
		v.unfit = err
	}
	return err
}

func (v *vetted) Read(p []byte) (int, error) {
	if err := v.vet(); err != nil {
		return 0, err
	}
	return v.incoming.Read(p)
}

type readFunc func(p []byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

// unfitError is a stream that is not what was announced, or not what this node takes.
type unfitError struct{ err error }

func (u *unfitError) Error() string {
	return "the stream is refused before zfs has seen it: " + u.err.Error()
}

func (u *unfitError) Unwrap() error { return u.err }

// checkHeader says what is wrong with a stream that begins with h where b was
// announced. zfs itself would make a snapshot of any name and guid that a stream says,
// and a compound stream may destroy and rename. Only one that was asked for as such makes a clone:
// onOrigin.
func checkHeader(h zfs.StreamHeader, b begin, onOrigin bool) error {
	switch {
	case h.Compound:
		return errors.New("it is made of several streams (send -R, -I or -p)")
	case h.Raw:
		return errors.New("it is a raw one, of an encrypted dataset")
	case h.Redacted:
		return errors.New("it is a redacted one")
	case h.Dedup:
		return errors.New("it is a deduplicated one")
	case h.Clone && !onOrigin:
		return errors.New("it makes a clone of another dataset")
	case h.Type != zfs.StreamFilesystem:
		return fmt.Errorf("it is of a dataset of type %d, not of a filesystem", h.Type)
	case guid(h.ToGUID) != b.To:
		return fmt.Errorf("it ends at snapshot %d, and %d was announced", h.ToGUID, b.To)
	case guid(h.FromGUID) != b.From:
		return fmt.Errorf("it begins at snapshot %d, and %d was announced", h.FromGUID, b.From)
	case h.Snapshot() != b.Name:
		return fmt.Errorf("it makes a snapshot %q, and %q was announced", h.Snapshot(), b.Name)
	}
	return nil
}

// drain swallows what is left of the stream.
func (in *incoming) drain() error {
	for buf := make([]byte, 32<<10); in.end == nil && in.err == nil; {
		in.dataReader.Read(buf)
	}
	return in.err
}

// maxWindow bounds what a compressed stream makes a receiver remember. The sender
// keeps to it.
const maxWindow = 1 << 20

// zstdPool keeps compressors and decompressors, which are a few MiB each, from one
// stream to the next. Neither has goroutines. One whose stream has failed is not kept:
// package zfs may have had to let somebody go who still uses it.
type zstdPool struct{ encoders, decoders sync.Pool }

// compress makes o compress. recycle is called when the stream has come to its end.
func (z *zstdPool) compress(o *outgoing) (recycle func(), err error) {
	enc, _ := z.encoders.Get().(*zstd.Encoder)
	if enc == nil {
		enc, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest),
			zstd.WithWindowSize(maxWindow), zstd.WithLowerEncoderMem(true))
		if err != nil {
			return nil, fmt.Errorf("making a compressor: %w", err)
		}
	}
	enc.Reset(wireEnd{o})
	o.enc = enc
	return func() {
		enc.Reset(nil)
		z.encoders.Put(enc)
	}, nil
}

// decompress makes in decompress. recycle is called when the stream has come to its end.
func (z *zstdPool) decompress(in *incoming) (recycle func(), err error) {
	dec, _ := z.decoders.Get().(*zstd.Decoder)
	if dec == nil {
		dec, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(4*maxWindow))
		if err != nil {
			return nil, fmt.Errorf("making a decompressor: %w", err)
		}
	}
	if err := dec.Reset(&in.dataReader); err != nil {
		return nil, fmt.Errorf("making a decompressor: %w", err)
	}
	in.dec = dec
	return func() {
		dec.Reset(nil)
		z.decoders.Put(dec)
	}, nil
}
