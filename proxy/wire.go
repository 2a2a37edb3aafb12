package proxy

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// What proxies of different nodes say to each other. A connection begins with a preface,
// which gets answers until one of them settles it. Then it is either a line, on which the
// owner tells a node's edge what its clients may do and is told how far that is done, or a
// carrier, each of whose streams begins with a preface again, and then has the bytes of one
// session, one to one.

// preface is what an edge says first.
type preface struct {
	Kind  string // one of those below
	Route string
	Epoch uint64 // in which the edge believes that it is talking to the owner
	Line  string // its name: of the line that begins, or of the one by which it may connect
	// Of a line: nodes with sessions that are to be back before any other goes on, as the
	// door said that the edge comes from.
	Listen []string `json:",omitempty"`
	// Of a connection to the server:
	Client string `json:",omitempty"` // its address
	At     string `json:",omitempty"` // where it has connected to
	Urgent bool   `json:",omitempty"` // it is let through during a pause
	// Of a question for a key: the client's.
	Key []byte `json:",omitempty"`
}

const (
	kindLine    = "line"
	kindCarrier = "carrier"
	kindServer  = "server" // on a stream of a carrier
	kindKey     = "key"    // so is this: what the server knows a key by that a client was told
)

// answer is what a door says to a preface. The zero one is HOLD: it will come, wait for
// another answer.
type answer struct {
	Go    bool   `json:",omitempty"`
	Moved *place `json:",omitempty"` // the owner is another
	No    string `json:",omitempty"` // why not; the edge tries again
	// The process has retired: what leads to it leads nowhere.
	Retired bool `json:",omitempty"`
	// To a question for a key: the server's; nil if no edge knows it.
	Key []byte `json:",omitempty"`
}

// place is where a route's owner is. Of two that differ, the one of the higher epoch is
// right.
type place struct {
	Owner, Addr string
	Epoch       uint64
}

// newer says whether p is to be believed rather than than.
func (p place) newer(than place) bool { return p.Epoch > than.Epoch }

// phase is what the clients of a route may do. It goes round, and a door goes on to the
// next one by itself where all edges have said that they are done:
//
//	open ──Pause──▶ paused ──all──▶ last ──Resume──▶ early ──all──▶ open
type phase string

const (
	phaseOpen   phase = "open"
	phasePaused phase = "paused" // park, but for those who listen to the others
	phaseLast   phase = "last"   // park them, too
	phaseEarly  phase = "early"  // have them come back
)

// order is what a door tells an edge. It stands until the next one.
type order struct {
	Serial uint64
	Phase  phase
	Event  time.Duration `json:",omitempty"` // how long a pause may still last for those who wait
	Cuts   int           `json:",omitempty"` // how often those that are busy were to be cut off
	Moved  *place        `json:",omitempty"` // the owner is another: this is the last order
	Listen []string      `json:",omitempty"` // nodes whose clients listen to the others: in the phase last; of whom is not back yet: in early
	Keys   [][]byte      `json:",omitempty"` // of clients, for which is asked what the server knows them by
	asked  uint64        // how often that was, ever
}

// ack is what an edge has done of an order.
type ack struct {
	Serial uint64
	Done   bool
	Busy   []Session `json:",omitempty"` // who keeps it from being done, not all of them
	Listen bool      `json:",omitempty"` // some of its clients listen to the others
	Keys   []keyPair `json:",omitempty"` // those that were asked for; of a client that it has not, without the server's
}

// keyPair is the key that a client was told, and the one that the server has for it by now.
type keyPair struct {
	Client []byte
	Server []byte `json:",omitempty"`
}

const (
	maxPreface = 64 << 10 // of orders, too: both name nodes
	maxAck     = 256 << 10
	mostBusy   = 100 // sessions that an ack names

	// Both sides of a line say something at least this often, and give up the other when
	// they have not heard of it for a few times that.
	linePulse   = time.Second
	lineSilence = 5 * time.Second
)

var errMessage = errors.New("what another node's proxy says is not understood")

// message is a length of four bytes and v as JSON.
func message(v any) ([]byte, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...), nil
}

// writeMessage writes one.
func writeMessage(w io.Writer, v any) error {
	m, err := message(v)
	if err == nil {
		_, err = w.Write(m)
	}
	return err
}

// readMessage reads one, and not a byte more.
func readMessage(r io.Reader, most int, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > uint32(most) {
		return fmt.Errorf("%w: a message of %d bytes", errMessage, n)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return err
	}
	if err := json.Unmarshal(text, v); err != nil {
		return fmt.Errorf("%w: %w", errMessage, err)
	}
	return nil
}
