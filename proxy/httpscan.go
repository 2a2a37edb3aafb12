package proxy

import (
	"bytes"
	"errors"
	"fmt"
)

// httpScanner finds where messages end in one direction of a connection of HTTP/1.1 that
// arrives in pieces of any size. It keeps nothing but the line that is being read.
//
// It takes what RFC 9112 has senders write, and nothing of what it lets recipients put up
// with: where the end of a message depends on who reads it, there is an error.
type httpScanner struct {
	answers bool // they are answers, not requests
	names   bool // whom requests are for is wanted, too

	state httpState
	line  []byte // that is being read
	head  httpHead
	left  int64 // of a body or a chunk
}

type httpState uint8

const (
	httpStart httpState = iota
	httpFields
	httpBody
	httpChunkSize
	httpChunk
	httpChunkEnd
	httpTrailers
	httpRest // up to the end of the connection
)

// httpPart is what has ended with the bytes that were read.
type httpPart uint8

const (
	httpMore    httpPart = iota // nothing
	httpHeadEnd                 // a head: chunks, bytes or rest say what follows, or the message has ended, too
	httpEnd                     // the body, and thereby the message
)

// httpHead is what of a head says where messages end.
type httpHead struct {
	method   string // HEAD, CONNECT, or "" for any other
	status   int
	minor    byte // HTTP/1.minor
	length   int64
	chunked  bool
	close    bool   // Connection: close
	keep     bool   // Connection: keep-alive
	protocol string // of Upgrade
	events   bool   // text/event-stream

	// Of a request, if names are wanted: see authority.
	target string
	hosts  []string // the values of all fields Host
}

const noLength = -1

// last says that the connection ends after the message.
func (h *httpHead) last() bool { return h.close || h.minor == 0 && !h.keep }

var errHTTP = errors.New("not plain HTTP/1.1")

// between says that the last message has ended and no other has begun.
func (r *httpScanner) between() bool { return r.state == httpStart && len(r.line) == 0 }

// chunks, bytes and rest say what follows the head that was read.
func (r *httpScanner) chunks()       { r.state = httpChunkSize }
func (r *httpScanner) bytes(n int64) { r.state, r.left = httpBody, n }
func (r *httpScanner) rest()         { r.state = httpRest }

// scan reads to the end of one head or one message at most, and returns how many bytes
// it took.
func (r *httpScanner) scan(p []byte) (n int, part httpPart, err error) {
	for n < len(p) {
		switch r.state {
		case httpRest:
			return len(p), httpMore, nil
		case httpBody, httpChunk:
			took := min(int64(len(p)-n), r.left)
			n += int(took)
			if r.left -= took; r.left > 0 {
				return n, httpMore, nil
			}
			if r.state == httpBody {
				r.state = httpStart
				return n, httpEnd, nil
			}
			r.state = httpChunkEnd
		default:
			took, line, whole, err := r.takeLine(p[n:])
			n += took
			if err != nil || !whole {
				return n, httpMore, err
			}
			if part, err = r.lineEnd(line); err != nil || part != httpMore {
				return n, part, err
			}
		}
	}
	return n, httpMore, nil
}

// takeLine reads a line up to its CR LF, which it leaves away.
func (r *httpScanner) takeLine(p []byte) (n int, line []byte, whole bool, err error) {
	i := bytes.IndexByte(p, '\n')
	n = i + 1
	if i < 0 {
		n = len(p)
	}
	if len(r.line)+n > maxHeader {
		return n, nil, false, fmt.Errorf("%w: a line of more than %d bytes", errHTTP, maxHeader)
	}
	if i < 0 {
		r.line = append(r.line, p...)
		return n, nil, false, nil
	}
	line = p[:n]
	if len(r.line) > 0 {
		line = append(r.line, line...)
		r.line = nil // what lines are read in pieces are few
	}
	if len(line) < 2 || line[len(line)-2] != '\r' {
		return n, nil, false, fmt.Errorf("%w: a line that does not end with CR LF", errHTTP)
	}
	line = line[:len(line)-2]
	for _, c := range line {
		if c < ' ' && c != '\t' || c == 0x7f {
			return n, nil, false, fmt.Errorf("%w: the control character %#x in a line", errHTTP, c)
		}
	}
	return n, line, true, nil
}

// lineEnd acts on a line.
func (r *httpScanner) lineEnd(line []byte) (httpPart, error) {
	switch r.state {
	case httpStart:
		r.head = httpHead{length: noLength}
		r.state = httpFields
		if r.answers {
			return httpMore, r.head.answer(line)
		}
		return httpMore, r.head.request(line, r.names)
	case httpFields:
		if len(line) > 0 {
			return httpMore, r.head.field(line, r.names)
		}
		r.state = httpStart
		return httpHeadEnd, r.head.check()
	case httpChunkSize:
		size, err := chunkLength(line)
		r.left, r.state = size, httpChunk
		if size == 0 {
			r.state = httpTrailers
		}
		return httpMore, err
	case httpChunkEnd:
		if len(line) > 0 {
			return httpMore, fmt.Errorf("%w: a chunk that is longer than it says", errHTTP)
		}
		r.state = httpChunkSize
	case httpTrailers:
		if len(line) > 0 {
			_, _, err := httpField(line)
			return httpMore, err
		}
		r.state = httpStart
		return httpEnd, nil
	}
	return httpMore, nil
}

// inHead says that a head has begun, and not ended.
func (r *httpScanner) inHead() bool {
	return r.state == httpFields || r.state == httpStart && len(r.line) > 0
}

// request reads a line such as "GET / HTTP/1.1".
func (h *httpHead) request(line []byte, names bool) error {
	method, rest, _ := bytes.Cut(line, []byte(" "))
	target, version, ok := bytes.Cut(rest, []byte(" "))
	if !ok || !isToken(method) || len(target) == 0 || bytes.IndexByte(line, '\t') >= 0 {
		return fmt.Errorf("%w: the request line %.40q", errHTTP, line)
	}
	switch string(method) {
	case "HEAD":
		h.method = "HEAD"
	case "CONNECT":
		h.method = "CONNECT"
	}
	if names {
		h.target = string(target)
	}
	return h.version(version)
}

// answer reads a line such as "HTTP/1.1 200 OK".
func (h *httpHead) answer(line []byte) error {
	version, rest, _ := bytes.Cut(line, []byte(" "))
	code, _, _ := bytes.Cut(rest, []byte(" "))
	if len(code) != 3 || code[0] < '1' || code[0] > '9' || !digits(code) {
		return fmt.Errorf("%w: the status line %.40q", errHTTP, line)
	}
	h.status = int(code[0]-'0')*100 + int(code[1]-'0')*10 + int(code[2]-'0')
	return h.version(version)
}

func (h *httpHead) version(v []byte) error {
	switch string(v) {
	case "HTTP/1.1":
		h.minor = 1
	case "HTTP/1.0":
		h.minor = 0
	default:
		return fmt.Errorf("%w: the version %.20q", errHTTP, v)
	}
	return nil
}

// httpField reads a line such as "Host: example.org".
func httpField(line []byte) (name, value []byte, err error) {
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok || !isToken(name) { // so is what goes on with the line before, after a space
		return nil, nil, fmt.Errorf("%w: the header field %.40q", errHTTP, line)
	}
	return name, bytes.Trim(value, " \t"), nil
}

// field acts on a field of a head.
func (h *httpHead) field(line []byte, names bool) error {
	name, value, err := httpField(line)
	if err != nil {
		return err
	}
	is := func(s string) bool { return len(name) == len(s) && bytes.EqualFold(name, []byte(s)) }
	switch {
	case is("Content-Length"):
		length, ok := decimal(value)
		if !ok || h.length != noLength {
			return fmt.Errorf("%w: a Content-Length that is not one number, once", errHTTP)
		}
		h.length = length
	case is("Transfer-Encoding"):
		if h.chunked || !bytes.EqualFold(value, []byte("chunked")) {
			return fmt.Errorf("%w: a Transfer-Encoding that is not chunked, once", errHTTP)
		}
		h.chunked = true
	case is("Connection"):
		for option := range bytes.SplitSeq(value, []byte(",")) {
			option = bytes.Trim(option, " \t")
			h.close = h.close || bytes.EqualFold(option, []byte("close"))
			h.keep = h.keep || bytes.EqualFold(option, []byte("keep-alive"))
		}
	case names && is("Host"):
		h.hosts = append(h.hosts, string(value))
	case is("Upgrade"):
		h.protocol = string(value[:min(len(value), 40)])
	case is("Content-Type"):
		const events = "text/event-stream"
		h.events = len(value) >= len(events) && bytes.EqualFold(value[:len(events)], []byte(events))
	}
	return nil
}

// check says what fields do not go together.
func (h *httpHead) check() error {
	switch {
	case h.chunked && h.length != noLength:
		return fmt.Errorf("%w: both a Content-Length and a Transfer-Encoding", errHTTP)
	case h.chunked && h.minor == 0:
		return fmt.Errorf("%w: a Transfer-Encoding in HTTP/1.0", errHTTP)
	}
	return nil
}

// chunkLength reads a line such as "1f" or "1f;name=value".
func chunkLength(line []byte) (int64, error) {
	size, _, _ := bytes.Cut(line, []byte(";"))
	const most = 15 // digits, so that it fits
	if len(size) == 0 || len(size) > most {
		return 0, fmt.Errorf("%w: the length of a chunk %.20q", errHTTP, line)
	}
	var n int64
	for _, c := range size {
		switch {
		case c >= '0' && c <= '9':
			n = n<<4 | int64(c-'0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			n = n<<4 | int64(c|0x20-'a'+10)
		default:
			return 0, fmt.Errorf("%w: the length of a chunk %.20q", errHTTP, line)
		}
	}
	return n, nil
}

func decimal(p []byte) (int64, bool) {
	const most = 18 // digits, so that it fits
	if len(p) == 0 || len(p) > most || !digits(p) {
		return 0, false
	}
	var n int64
	for _, c := range p {
		n = n*10 + int64(c-'0')
	}
	return n, true
}

func digits(p []byte) bool {
	for _, c := range p {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// isToken says that p is what RFC 9110 calls a token, which names of methods and fields are.
func isToken(p []byte) bool {
	for _, c := range p {
		switch {
		case c >= '0' && c <= '9', c|0x20 >= 'a' && c|0x20 <= 'z':
		case bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), c) >= 0:
		default:
			return false
		}
	}
	return len(p) > 0
}
