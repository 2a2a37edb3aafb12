package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// carrier is a connection between the proxies of two nodes that carries the sessions of
// many clients, each as a stream. The side that has connected begins them. A session thus
// costs no handshake, and nothing but its own state while it is silent.
//
// What is said is frames: a kind, a length of three bytes, the number of a stream, and as
// many bytes as that length. The first one of a stream begins it, and first ones come in the
// order of their numbers: what is said of a lower number that is not known is for a stream
// that has been closed. A side says no more on a stream than the other has given it credit
// for, so that whoever reads the carrier never has to wait for a client that does not read.
type carrier struct {
	conn  net.Conn
	begun func(*stream) // is told of streams that the other side has begun; it may not block

	mu      sync.Mutex // before outMu
	streams map[uint32]*stream
	last    uint32 // the highest number there was
	final   bool   // no stream begins any more: it ends with the last one
	over    error

	// What is to be said. A goroutine of its own says it, all that has come together at
	// once, so that nobody who holds a lock waits for the network.
	outMu   sync.Mutex // before those of streams
	work    sync.Cond  // there is something to say
	room    sync.Cond  // there may be room for more
	pending []byte     // nil, or in one of outBuffers
	added   uint64     // bytes that were ever pending
	sent    uint64     // of them, bytes that the kernel has
	finish  bool       // close when all is said
	failed  error
}

type frameKind byte

const (
	frameData   frameKind = 1
	frameEnd    frameKind = 2 // there is no more data
	frameClose  frameKind = 3 // nor is any more wanted
	frameReset  frameKind = 4
	frameCredit frameKind = 5 // of so many bytes more
)

const (
	frameHeader = 8
	mostPending = 256 << 10
	// streamWindow is how much of one stream may be under way. It bounds what a client that
	// does not read costs, and what one stream can have in a second over a long way.
	streamWindow = 256 << 10
	maxStream    = 1<<32 - 1
)

// outBuffers have room for as much as may be pending, and some frames that do not wait.
var outBuffers = sync.Pool{New: func() any {
	b := make([]byte, 0, mostPending+chunkSize)
	return &b
}}

var errFrame = errors.New("what another node's proxy sends on a carrier is not understood")

func newCarrier(conn net.Conn, begun func(*stream)) *carrier {
	c := &carrier{conn: conn, begun: begun, streams: make(map[uint32]*stream)}
	c.work.L, c.room.L = &c.outMu, &c.outMu
	// Bytes that wait in the kernel for those of another stream cannot be overtaken.
	if raw := rawConn(below(conn)); raw != nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, mostPending)
		})
	}
	return c
}

// run carries until ctx ends, the connection does, or the last stream after retire. Then
// the connection is closed, and every stream that had not ended is reset.
func (c *carrier) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = c.conn.Close() })
	defer stop()
	var writes sync.WaitGroup
	defer writes.Wait()
	writes.Go(c.write)
	err := c.read()
	c.fail(err)
	_ = c.conn.Close()
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// begin begins a stream, on which first is said first.
func (c *carrier) begin(first []byte) (*stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.over != nil:
		return nil, c.over
	case c.final || c.last == maxStream:
		return nil, errRetiredCarrier
	}
	c.last++
	s := newStream(c, c.last)
	c.streams[s.id] = s
	s.credit -= len(first)
	c.say(frameData, s.id, first)
	return s, nil
}

var errRetiredCarrier = errors.New("this connection to another node carries no more clients")

// retire lets no stream begin any more.
func (c *carrier) retire() {
	c.mu.Lock()
	c.final = true
	empty := len(c.streams) == 0
	c.mu.Unlock()
	if empty {
		c.close()
	}
}

// close closes the connection when everything has been said.
func (c *carrier) close() {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	c.finish = true
	c.work.Signal()
}

// load is how many streams there are; ok is false if none can be begun.
func (c *carrier) load() (streams int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streams), c.over == nil && !c.final && c.last < maxStream
}

// forget takes note that a stream is closed here.
func (c *carrier) forget(s *stream) {
	c.mu.Lock()
	delete(c.streams, s.id)
	done := c.final && len(c.streams) == 0
	c.mu.Unlock()
	if done {
		c.close()
	}
}

// fail ends all streams.
func (c *carrier) fail(err error) {
	c.mu.Lock()
	c.over = fmt.Errorf("the connection that carried it has ended: %w", err)
	var all []*stream
	for _, s := range c.streams {
		all = append(all, s)
	}
	c.mu.Unlock()
	c.outMu.Lock()
	c.failed = err
	c.work.Broadcast()
	c.room.Broadcast()
	c.outMu.Unlock()
	for _, s := range all {
		s.lose()
	}
}

func appendFrame(b []byte, kind frameKind, stream uint32, p []byte) []byte {
	b = append(b, byte(kind), byte(len(p)>>16), byte(len(p)>>8), byte(len(p)))
	return append(binary.BigEndian.AppendUint32(b, stream), p...)
}

// say has a frame said that is not to wait: those that are not data are few. It returns
// where in all that is said it ends.
func (c *carrier) say(kind frameKind, stream uint32, p []byte) (end uint64) {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	c.push(kind, stream, p)
	return c.added
}

// push adds a frame, unless the carrier has failed. c.outMu is held.
func (c *carrier) push(kind frameKind, stream uint32, p []byte) {
	if c.failed != nil {
		return
	}
	if c.pending == nil {
		c.pending = *outBuffers.Get().(*[]byte)
	}
	before := len(c.pending)
	c.pending = appendFrame(c.pending, kind, stream, p)
	c.added += uint64(len(c.pending) - before)
	c.work.Signal()
}

// data has p said on a stream, once there is room; may is asked meanwhile whether it still
// may. It returns where in all that is said that ends.
func (c *carrier) data(stream uint32, p []byte, may func() error) (end uint64, err error) {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	for len(c.pending) > 0 && len(c.pending)+len(p) > mostPending && c.failed == nil {
		if err := may(); err != nil {
			return 0, err
		}
		c.room.Wait()
	}
	if c.failed != nil {
		return 0, c.failed
	}
	c.push(frameData, stream, p)
	return c.added, nil
}

// kick has everybody who waits for room ask again whether they still may.
func (c *carrier) kick() {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	c.room.Broadcast()
}

// write says what is pending.
func (c *carrier) write() {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	for c.failed == nil {
		if len(c.pending) == 0 {
			if c.finish {
				c.hangUp()
				return
			}
			c.work.Wait()
			continue
		}
		out := c.pending
		c.pending = nil
		c.room.Broadcast() // they fill the next while this one is written
		c.outMu.Unlock()
		_, err := c.conn.Write(out)
		c.outMu.Lock()
		c.sent += uint64(len(out))
		if out = out[:0]; cap(out) == mostPending+chunkSize {
			outBuffers.Put(&out)
		}
		if err != nil {
			c.failed = err
			_ = c.conn.Close()
			c.room.Broadcast()
		}
	}
}

// hangUp ends the connection, which the reader finds, when the other side does so as well: if
// that still said something to one that is closed, such as credit, the kernel would drop what
// is on its way there. c.outMu is held.
func (c *carrier) hangUp() {
	half, ok := c.conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || c.conn.SetReadDeadline(time.Now().Add(lineSilence)) != nil {
		_ = c.conn.Close()
	}
}

// read hears what the other side says.
func (c *carrier) read() error {
	var head [frameHeader]byte
	for {
		if _, err := io.ReadFull(c.conn, head[:]); err != nil {
			return err
		}
		kind, id := frameKind(head[0]), binary.BigEndian.Uint32(head[4:])
		n := int(head[1])<<16 | int(head[2])<<8 | int(head[3])
		if n > chunkSize {
			return fmt.Errorf("%w: a frame of %d bytes", errFrame, n)
		}
		p := chunk{buf: chunks.Get().(*[chunkSize]byte), n: n}
		if _, err := io.ReadFull(c.conn, p.bytes()); err != nil {
			p.release()
			return err
		}
		s, err := c.stream(id)
		kept := false
		if s != nil {
			kept, err = s.hear(kind, p)
		}
		if !kept {
			p.release()
		}
		if err != nil {
			return err
		}
	}
}

// stream is that of a number; nil: it is closed here.
func (c *carrier) stream(id uint32) (*stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.streams[id]
	switch {
	case s != nil || id <= c.last:
		return s, nil
	case c.begun == nil:
		return nil, fmt.Errorf("%w: stream %d was not begun", errFrame, id)
	}
	c.last = id
	s = newStream(c, id)
	c.streams[id] = s
	c.begun(s)
	return s, nil
}

// delivered says that the other node's kernel has all that was said up to a point, which
// at is in the kernel's own counting once that is known; ok is false if it cannot be asked.
func (c *carrier) delivered(end uint64, at *uint64) (done, ok bool) {
	c.outMu.Lock()
	kernel := c.sent >= end
	c.outMu.Unlock()
	if !kernel {
		return false, true
	}
	raw, queued := rawConn(below(c.conn)), 0
	if raw == nil {
		return false, false
	}
	var failed error
	err := raw.Control(func(fd uintptr) { queued, failed = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	info := tcpInfo(c.conn)
	if err != nil || failed != nil || info == nil {
		return false, false
	}
	if *at == 0 { // the first look since: what is unacknowledged now includes it
		*at = info.Bytes_acked + uint64(queued)
	}
	return queued == 0 || info.Bytes_acked >= *at, true
}
