package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// pgScanner finds where messages end in one direction of the protocol of PostgreSQL,
// version 3, that arrives in pieces of any size. It keeps no more of a message than its
// caller asks for.
//
// Source: PostgreSQL 15, "Frontend/Backend Protocol".
type pgScanner struct {
	untyped bool    // the first message of a client has no kind, which is then 0
	known   string  // the kinds there are
	head    [5]byte // the kind, and the length, which counts itself
	got     int     // of the head
	left    int     // of the body
	kind    byte    // of the message that is being read, or was last
	body    []byte  // of that message, as far as it is kept
	room    int     // for more of the body
	keep    func(kind byte) int
	text    func(piece []byte) // is called with each piece of a body; may be nil
	begun   bool
	whole   bool // body is all of it
}

const (
	pgMaxMessage = 1 << 30 // the server takes and sends no longer ones
	pgMaxStartup = 10000   // nor a first one longer than this
)

var errPostgres = errors.New("not the protocol of PostgreSQL")

// between says that the last message has ended and no other has begun.
func (r *pgScanner) between() bool { return !r.begun }

// scan reads to the end of one message at most. It returns how many bytes it took, and
// whether the message has ended.
func (r *pgScanner) scan(p []byte) (n int, end bool, err error) {
	first := 0
	if r.untyped {
		first = 1 // the head begins with the length
	}
	if len(p) > 0 && !r.begun {
		if cap(r.body) > 4<<10 {
			r.body = nil
		}
		r.begun, r.got, r.kind, r.body = true, first, 0, r.body[:0]
		if first == 0 {
			r.kind = p[0]
			if strings.IndexByte(r.known, r.kind) < 0 {
				return 0, false, fmt.Errorf("%w: a message of kind %q", errPostgres, r.kind)
			}
		}
	}
	if r.got < len(r.head) {
		took := copy(r.head[r.got:], p)
		n, r.got = took, r.got+took
		if r.got < len(r.head) {
			return n, false, nil
		}
		length, least, most := binary.BigEndian.Uint32(r.head[1:]), uint32(4), uint32(pgMaxMessage)
		if r.untyped {
			least, most = 8, pgMaxStartup
		}
		if length < least || length > most {
			return n, false, fmt.Errorf("%w: a message of %d bytes", errPostgres, length)
		}
		r.left, r.room, r.whole = int(length)-4, r.keep(r.kind), true
	}
	piece := p[n:min(len(p), n+r.left)]
	n, r.left = n+len(piece), r.left-len(piece)
	kept := piece[:min(len(piece), r.room)]
	r.body, r.room = append(r.body, kept...), r.room-len(kept)
	r.whole = r.whole && len(kept) == len(piece)
	if r.text != nil && len(piece) > 0 {
		r.text(piece)
	}
	if r.left > 0 {
		return n, false, nil
	}
	r.begun, r.untyped = false, false
	return n, true, nil
}

// pgMessages are messages to be sent at once.
type pgMessages []byte

// add appends a message; fields of type string are ended by a zero.
func (m pgMessages) add(kind byte, fields ...any) pgMessages {
	if kind != 0 {
		m = append(m, kind)
	}
	at := len(m)
	m = append(m, 0, 0, 0, 0)
	for _, f := range fields {
		switch f := f.(type) {
		case string:
			m = append(append(m, f...), 0)
		case []byte:
			m = append(m, f...)
		case byte:
			m = append(m, f)
		case int16:
			m = binary.BigEndian.AppendUint16(m, uint16(f))
		case int32:
			m = binary.BigEndian.AppendUint32(m, uint32(f))
		case uint32:
			m = binary.BigEndian.AppendUint32(m, f)
		default:
			panic(fmt.Sprintf("proxy: a field of type %T in a message", f))
		}
	}
	binary.BigEndian.PutUint32(m[at:], uint32(len(m)-at))
	return m
}

// parse appends what prepares a statement, name "" the unnamed one.
func (m pgMessages) parse(name, text string, types ...uint32) pgMessages {
	fields := []any{name, text, int16(len(types))}
	for _, t := range types {
		fields = append(fields, t)
	}
	return m.add('P', fields...)
}

// run appends what executes a prepared statement, with parameters and results as text.
func (m pgMessages) run(name string, args ...string) pgMessages {
	fields := []any{"", name, int16(0), int16(len(args))}
	for _, a := range args {
		fields = append(fields, int32(len(a)), []byte(a))
	}
	return m.add('B', append(fields, int16(0))...).add('E', "", int32(0))
}

// pgRead reads one message and nothing that follows it.
func pgRead(from io.Reader) (kind byte, body []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(from, head[:]); err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(head[1:])
	if length < 4 || length > pgMaxAnswer {
		return 0, nil, fmt.Errorf("%w: an answer of %d bytes", errPostgres, length)
	}
	body = make([]byte, length-4)
	_, err = io.ReadFull(from, body)
	return head[0], body, err
}

const pgMaxAnswer = 16 << 20 // to what the gate itself asks

// pgString reads a string that is ended by a zero.
func pgString(p []byte) (s string, rest []byte, ok bool) {
	for i, c := range p {
		if c == 0 {
			return string(p[:i]), p[i+1:], true
		}
	}
	return "", nil, false
}

// pgRow reads the columns of a row; a null is an empty string.
func pgRow(body []byte) ([]string, error) {
	bad := fmt.Errorf("%w: a row that does not end", errPostgres)
	if len(body) < 2 {
		return nil, bad
	}
	var columns []string
	n, body := int(binary.BigEndian.Uint16(body)), body[2:]
	for range n {
		if len(body) < 4 {
			return nil, bad
		}
		length := int32(binary.BigEndian.Uint32(body))
		body = body[4:]
		if length > int32(len(body)) {
			return nil, bad
		}
		if length < 0 {
			length = 0
		}
		columns, body = append(columns, string(body[:length])), body[length:]
	}
	return columns, nil
}

// pgError is what the server says when it does not do something.
type pgError struct {
	code, message string
	body          []byte
}

func (e *pgError) Error() string {
	return fmt.Sprintf("the server answered: %s (%s)", e.message, e.code)
}

func pgErrorOf(body []byte) *pgError {
	e := &pgError{body: body}
	for len(body) > 1 {
		value, rest, ok := pgString(body[1:])
		if !ok {
			break
		}
		switch body[0] {
		case 'C':
			e.code = value
		case 'M':
			e.message = value
		}
		body = rest
	}
	return e
}

// passing says that the server would not have said so a little earlier or later.
func (e *pgError) passing() bool {
	switch e.code {
	case "57P01", "57P02", "57P03", // it shuts down, has crashed, starts
		"53300": // too many clients: those that were parked are not gone yet
		return true
	}
	return false
}

// pgFatal tells a client that its session is over.
func pgFatal(code, message string) []byte {
	return pgMessages(nil).add('E', byte('S'), "FATAL", byte('V'), "FATAL", byte('C'), code, byte('M'), message, byte(0))
}
