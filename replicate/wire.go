package replicate

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/flocker-io/flocker/internal/volume"
)

// A connection carries frames, one exchange after the other:
//
//	sender    OFFER            BEGIN DATA* END
//	receiver        ANSWER        PING*        PING* ACK
//
// An exchange ends with an ANSWER that asks for no stream, or with the ACK. After
// an ANSWER that asks for one the sender may also make another OFFER, or decline with
// an END that says why. A receiver
// that fails in mid-stream sends its ACK early, and the connection is given up.
//
// Both send PINGs within a stream: the receiver while zfs works, the sender while it
// waits for its share of a bandwidth limit.
//
// A frame is its type, the length of its payload, a CRC-32C over both and the
// payload, and the payload. It makes a damaged byte an error of the frame, whatever
// carried it. Where the connection is TLS, which does the same, the payload of DATA is
// SEALED instead: not under the CRC, so that a full stream is not read once more for
// nothing.
type frame byte

const (
	frameOffer  frame = 'O'
	frameAnswer frame = 'A'
	frameBegin  frame = 'B'
	frameData   frame = 'D'
	frameSealed frame = 'd'
	frameEnd    frame = 'E'
	framePing   frame = 'P'
	frameAck    frame = 'K'
)

const (
	headerSize  = 9
	maxMessage  = 256 << 10 // payload of anything but DATA
	maxData     = 256 << 10 // payload of DATA and SEALED
	maxBases    = 4096      // guids in an offer
	maxDropped  = 1000      // guids of removed snapshots in an offer
	maxText     = 1024      // of an error or a reason
	maxToken    = 32 << 10
	maxSnapName = 256

	// worthCopying is up to how much data is put behind its head to go out as one: what
	// is larger would cost more to copy than a packet of its own for the head.
	worthCopying = 32 << 10
	// wireCost is about what a frame costs on the wire besides its payload: its head,
	// and the records of TLS that carry it.
	wireCost = 50

	// slowFactor stall times may pass without bytes while the receiver's PINGs say
	// that it is alive: zfs receive stops reading while it commits.
	slowFactor = 5
)

// errProtocol is what a peer does that no version of this protocol does.
var errProtocol = errors.New("protocol error")

// offer opens an exchange: what the primary has and would send.
type offer struct {
	Cluster string        `json:"cluster"`
	Volume  volume.ID     `json:"volume"`
	Epoch   volume.Epoch  `json:"epoch"`
	Primary volume.NodeID `json:"primary"`
	// Newest engine snapshot of the primary: where the replica should get to.
	Newest volume.Position `json:"newest"`
	// CompleteAsOf is the primary's time up to which Newest holds all that was written.
	CompleteAsOf time.Time `json:"complete_as_of,omitzero"`
	// Bases are the guids that the primary can send from, snapshots and bookmarks,
	// newest first. Truncated says that it has more.
	Bases     []guid `json:"bases"`
	Truncated bool   `json:"truncated,omitempty"`
	// Floor is the lowest position any present replica acknowledged; what lies below
	// may be pruned. Keep are guids that some replica stands on: one below the floor
	// is to be left as a bookmark.
	Floor volume.Position `json:"floor,omitzero"`
	Keep  []guid          `json:"keep,omitempty"`
	// Anchors are what the replicas have in common, or soon will, and what one that is away
	// has in common with the others: they stay as snapshots.
	Anchors []guid `json:"anchors,omitempty"`
	// Dropped are guids of snapshots that people removed: who has one destroys it too,
	// once it is in step. They are told now and again, not always, and where they are many
	// in portions.
	Dropped []guid `json:"dropped,omitempty"`
	// NoResume asks to throw a partial stream away: its token was of no use.
	NoResume bool `json:"no_resume,omitempty"`
}

type verdict string

// What a receiver answers to an offer.
const (
	saysAlready     verdict = "already"     // Have is the newest
	saysResume      verdict = "resume"      // send the rest of Token; Have is the newest complete
	saysIncremental verdict = "incremental" // send from Have
	saysFull        verdict = "full"        // nothing is here; what Token names will do instead of all
	saysDiverged    verdict = "diverged"    // the copy has been set aside; offer again
	saysStale       verdict = "stale-epoch" // Epoch is higher
	saysBusy        verdict = "busy"        // not now; see Reason
	saysRefused     verdict = "refused"     // see Reason
)

type answer struct {
	Verdict verdict `json:"verdict"`
	Have    guid    `json:"have,omitempty"`
	// Token is zfs's, of RESUME. Of FULL it names, where the volume is a clone, the snapshot that
	// this is one of, if the replica has that of the original (originToken): who can sends an
	// increment on it. No version has ever looked at the token of FULL, and a field of its own would
	// be an error to those that do not know it.
	Token  string       `json:"token,omitempty"`
	Epoch  volume.Epoch `json:"epoch,omitempty"`
	Reason string       `json:"reason,omitempty"`
}

// begin says what the stream that follows takes the replica to.
type begin struct {
	From guid      `json:"from,omitempty"` // 0: full. After FULL it is the origin that this named, or 0
	To   guid      `json:"to"`
	Name string    `json:"name"` // of the snapshot, after the @
	At   time.Time `json:"at,omitzero"`
	// Compress is what was done to the stream before it was put into DATA: "" for
	// nothing, or compressZstd.
	Compress string `json:"compress,omitempty"`
}

const compressZstd = "zstd"

// end closes a stream; without OK the sender failed and what came is cut short. Bytes
// are those that zfs made, before they were compressed.
type end struct {
	OK    bool   `json:"ok"`
	Bytes int64  `json:"bytes"`
	Error string `json:"error,omitempty"`
}

// ack says what the receiver found on its disk after a stream. GUID is its newest
// snapshot, read again; Code and Error say why it is not the one sent.
type ack struct {
	GUID  guid   `json:"guid,omitempty"`
	Code  string `json:"code,omitempty"`
	Error string `json:"error,omitempty"`
}

// Codes of an ack that failed.
const (
	codeFailed   = "failed"
	codeRefused  = "refused"
	codeNoSpace  = "no-space"
	codeDiverged = "diverged"
	codeBadToken = "bad-token" // the rest of a stream does not fit what is kept of it
)

// originToken is how FULL names the snapshot that the replica can make a clone of.
func originToken(g guid) string {
	if g == 0 {
		return ""
	}
	return originPrefix + strconv.FormatUint(uint64(g), 10)
}

// parseOrigin reads what originToken wrote; 0 for anything else.
func parseOrigin(token string) guid {
	text, ok := strings.CutPrefix(token, originPrefix)
	g, err := strconv.ParseUint(text, 10, 64)
	if !ok || err != nil {
		return 0
	}
	return guid(g)
}

const originPrefix = "origin-"

// guid of a snapshot; a string in JSON, because it takes all 64 bits.
type guid uint64

func (g guid) MarshalJSON() ([]byte, error) { return fmt.Appendf(nil, `"%d"`, uint64(g)), nil }

func (g *guid) UnmarshalJSON(b []byte) error {
	if len(b) < 3 || b[0] != '"' || b[len(b)-1] != '"' || len(b) > 22 {
		return fmt.Errorf("guid %.30q: want a decimal number in quotes", b)
	}
	var v uint64
	for _, c := range b[1 : len(b)-1] {
		if c < '0' || c > '9' || v > (1<<64-1-uint64(c-'0'))/10 {
			return fmt.Errorf("guid %q: want a decimal number of 64 bits", b)
		}
		v = v*10 + uint64(c-'0')
	}
	*g = guid(v)
	return nil
}

func (o *offer) check() error {
	if o.Cluster == "" || len(o.Cluster) > 256 {
		return errors.New("offer without a cluster")
	}
	if _, err := volume.ParseID(string(o.Volume)); err != nil {
		return err
	}
	if _, err := volume.ParseNodeID(string(o.Primary)); err != nil {
		return err
	}
	if o.Newest.IsZero() {
		return errors.New("offer without a snapshot")
	}
	if len(o.Bases) > maxBases || len(o.Keep) > maxBases || len(o.Anchors) > maxBases || len(o.Dropped) > maxDropped {
		return errors.New("offer with too many bases")
	}
	if slices.Contains(o.Bases, 0) || slices.Contains(o.Keep, 0) || slices.Contains(o.Anchors, 0) || slices.Contains(o.Dropped, 0) {
		return errors.New("offer with an empty base")
	}
	return nil
}

func (a *answer) check() error {
	switch a.Verdict {
	case saysAlready, saysIncremental:
		if a.Have == 0 {
			return fmt.Errorf("answer %s without a snapshot", a.Verdict)
		}
	case saysResume:
		if a.Token == "" || len(a.Token) > maxToken {
			return errors.New("answer resume without a token")
		}
	case saysFull:
		if len(a.Token) > maxToken {
			return errors.New("answer full with too much about an origin")
		}
	case saysDiverged, saysStale, saysBusy, saysRefused:
	default:
		return fmt.Errorf("answer %.40q is unknown", a.Verdict)
	}
	if len(a.Reason) > 2*maxText {
		return errors.New("reason too long")
	}
	return nil
}

func (b *begin) check() error {
	if b.To == 0 || b.Name == "" || len(b.Name) > maxSnapName || len(b.Compress) > 32 {
		return errors.New("begin without a snapshot")
	}
	return nil
}

func (e *end) check() error {
	if e.Bytes < 0 || len(e.Error) > 2*maxText {
		return errors.New("end out of bounds")
	}
	return nil
}

func (a *ack) check() error {
	if a.GUID == 0 && a.Code == "" || len(a.Code) > 32 || len(a.Error) > 2*maxText {
		return errors.New("ack out of bounds")
	}
	return nil
}

// decode reads one message strictly: no unknown field, nothing after it.
func decode(payload []byte, into interface{ check() error }) error {
	if !utf8.Valid(payload) {
		return fmt.Errorf("%w: not UTF-8", errProtocol)
	}
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return fmt.Errorf("%w: %v", errProtocol, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return fmt.Errorf("%w: something follows the message", errProtocol)
	}
	if err := into.check(); err != nil {
		return fmt.Errorf("%w: %v", errProtocol, err)
	}
	return nil
}

// clip makes a text fit for the wire.
func clip(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "..."
	}
	return string(bytes.ToValidUTF8([]byte(s), []byte("?")))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// wire puts frames on a connection. One goroutine may read while another writes.
type wire struct {
	conn   net.Conn
	sealed bool // the connection authenticates every byte itself
	r      *bufio.Reader
	in     []byte // payload last read; good until the next read
	out    []byte // frame being written
	stall  time.Duration

	broken atomic.Bool // nothing is read any more: the two sides are out of step
}

func newWire(conn net.Conn, stall time.Duration) *wire {
	w := &wire{conn: conn, stall: stall}
	_, w.sealed = conn.(interface{ ConnectionState() tls.ConnectionState })
	// A small buffer: what is larger goes from the connection to where it belongs.
	w.r = bufio.NewReaderSize(conn, 4<<10)
	return w
}

func (w *wire) close() { w.conn.Close() }

// write sends one frame; it must get rid of it within the stall time.
func (w *wire) write(f frame, payload []byte) error {
	return w.writeWithin(w.stall, f, payload)
}

func (w *wire) writeWithin(patience time.Duration, f frame, payload []byte) error {
	w.out = append(w.out[:0], byte(f))
	w.out = binary.BigEndian.AppendUint32(w.out, uint32(len(payload)))
	sum := crc32.Checksum(w.out, castagnoli)
	if f != frameSealed {
		sum = crc32.Update(sum, castagnoli, payload)
	}
	w.out = binary.BigEndian.AppendUint32(w.out, sum)
	w.conn.SetWriteDeadline(time.Now().Add(patience))
	if f == frameSealed && len(payload) > worthCopying {
		if _, err := w.conn.Write(w.out); err != nil {
			return err
		}
		_, err := w.conn.Write(payload)
		return err
	}
	w.out = append(w.out, payload...)
	_, err := w.conn.Write(w.out)
	return err
}

// writeData sends one piece of a stream. The peer may be busy with what it has.
func (w *wire) writeData(p []byte) error {
	f := frameData
	if w.sealed {
		f = frameSealed
	}
	return w.writeWithin(slowFactor*w.stall, f, p)
}

func (w *wire) writeMessage(f frame, m any) error { return w.writeMessageWithin(w.stall, f, m) }

func (w *wire) writeMessageWithin(patience time.Duration, f frame, m any) error {
	payload, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(payload) > maxMessage {
		return fmt.Errorf("message of %d bytes is too long", len(payload))
	}
	return w.writeWithin(patience, f, payload)
}

// decline ends an exchange whose answer asks for a stream without one.
func (w *wire) decline(why string) error {
	return w.writeMessage(frameEnd, end{Error: clip(why)})
}

// breakOff makes a read that waits for the peer fail, and every later one. What is
// written still goes out.
func (w *wire) breakOff() {
	w.broken.Store(true)
	w.conn.SetReadDeadline(time.Unix(1, 0))
}

// readWithin bounds the reads that follow (0: not at all), unless they are broken off:
// whichever of the two comes second sees the other.
func (w *wire) readWithin(patience time.Duration) {
	deadline := time.Time{}
	if patience > 0 {
		deadline = time.Now().Add(patience)
	}
	w.conn.SetReadDeadline(deadline)
	if w.broken.Load() {
		w.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// head is what stands before a payload.
type head struct {
	frame frame
	size  int
	sum   uint32 // of the head itself
	want  uint32 // of the head and, unless it is SEALED, the payload
}

// next reads the head of the next frame, which must come within patience (0: for
// ever, until it begins). Its payload follows. io.EOF comes only between frames.
func (w *wire) next(patience time.Duration) (h head, err error) {
	w.readWithin(patience)
	if _, err := w.r.Peek(1); err != nil {
		return h, err
	}
	if patience == 0 {
		w.readWithin(w.stall)
	}
	b, err := w.r.Peek(headerSize)
	if err != nil {
		return h, unexpected(err)
	}
	size := binary.BigEndian.Uint32(b[1:])
	limit := uint32(maxMessage)
	h = head{frame: frame(b[0]), sum: crc32.Checksum(b[:5], castagnoli), want: binary.BigEndian.Uint32(b[5:])}
	switch h.frame {
	case frameData:
		limit = maxData
	case frameSealed:
		limit = maxData
		if !w.sealed {
			return h, fmt.Errorf("%w: data without a checksum on a connection that has none", errProtocol)
		}
		if h.sum != h.want {
			return h, damaged(h.frame)
		}
	case frameOffer, frameAnswer, frameBegin, frameEnd, frameAck:
	case framePing:
		limit = 0
	default:
		return h, fmt.Errorf("%w: unknown frame %#x", errProtocol, b[0])
	}
	if size > limit {
		return h, fmt.Errorf("%w: frame %c of %d bytes", errProtocol, h.frame, size)
	}
	h.size = int(size)
	w.r.Discard(headerSize)
	return h, nil
}

// payload reads what follows h and checks it.
func (w *wire) payload(h head) ([]byte, error) {
	w.in = slices.Grow(w.in[:0], h.size)[:h.size]
	if _, err := io.ReadFull(w.r, w.in); err != nil {
		return nil, unexpected(err)
	}
	if h.frame != frameSealed && crc32.Update(h.sum, castagnoli, w.in) != h.want {
		return nil, damaged(h.frame)
	}
	return w.in, nil
}

// read returns the next frame, which must be complete within patience (0: for
// ever, until it begins). io.EOF comes only between frames.
func (w *wire) read(patience time.Duration) (frame, []byte, error) {
	h, err := w.next(patience)
	if err != nil {
		return 0, nil, err
	}
	payload, err := w.payload(h)
	return h.frame, payload, err
}

// swallow takes whatever still comes until the peer hangs up, or for the stall time.
// Closing a connection with unread bytes in it may tear what was written last out of
// the peer's hands.
func (w *wire) swallow() {
	w.conn.SetReadDeadline(time.Now().Add(w.stall))
	io.Copy(io.Discard, w.conn) // it ends in an error at best
}

func damaged(f frame) error {
	return fmt.Errorf("%w: frame %c damaged on the way", errProtocol, f)
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// expect reads a message of one type, over PINGs.
func (w *wire) expect(want frame, into interface{ check() error }) error {
	for {
		f, payload, err := w.read(w.stall)
		switch {
		case err != nil:
			return err
		case f == framePing:
		case f != want:
			return fmt.Errorf("%w: frame %c where %c belongs", errProtocol, f, want)
		default:
			return decode(payload, into)
		}
	}
}
