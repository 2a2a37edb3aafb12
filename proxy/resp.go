package proxy

import (
	"errors"
	"fmt"
	"math"
	"strconv"
)

// respScanner finds where values end in a stream of RESP (the protocol of Redis and
// Valkey, versions 2 and 3) that arrives in pieces of any size. It keeps no more of a
// value than its caller asks for, so that a gigabyte in one string costs nothing.
//
// Source: Redis, "Redis serialization protocol specification". The streamed types of
// RESP3, which no server sends, are refused.
type respScanner struct {
	// open has, for each aggregate that has begun, how many values are still to come.
	open []int64
	line []byte // of the header that is being read
	body int64  // bytes of a string that are still to come, with their CR LF
	// element is called for each string of a value, in pieces as they arrive: at says
	// which string it is, first and last whether the piece begins and ends it.
	element func(at int, piece []byte, first, last bool)
	// item is called for each value that is directly in an array, when it begins.
	item func(kind byte)
	at   int
	kind byte // of the value as a whole: its first byte
	attr bool // the value that ends next is an attribute, which comes before the value it belongs to
}

const (
	maxHeader = 64 << 10 // of a line; Redis takes no longer inline commands
	maxDepth  = 32
)

var errRESP = errors.New("not the protocol of Redis")

// between says that the last value has ended and no other has begun.
func (r *respScanner) between() bool {
	return len(r.open) == 0 && len(r.line) == 0 && r.body == 0
}

// scan reads to the end of one value at most. It returns how many bytes it took, and
// whether the value has ended.
func (r *respScanner) scan(p []byte) (n int, end bool, err error) {
	for n < len(p) {
		if r.between() {
			r.kind, r.at = p[n], 0
		}
		if r.body > 0 {
			n += r.takeBody(p[n:])
			if r.body > 0 {
				return n, false, nil
			}
			if r.ended() {
				return n, true, nil
			}
			continue
		}
		took, whole := r.takeLine(p[n:])
		n += took
		if !whole {
			if len(r.line) > maxHeader && !r.simple() {
				return n, false, fmt.Errorf("%w: a header of more than %d bytes", errRESP, maxHeader)
			}
			return n, false, nil
		}
		end, err := r.header()
		r.line = r.line[:0]
		if err != nil || end {
			return n, end, err
		}
	}
	return n, false, nil
}

func (r *respScanner) takeBody(p []byte) int {
	n := int(min(int64(len(p)), r.body))
	const crlf = 2
	if r.element != nil {
		// The CR LF after a string is not part of it.
		text := int(max(0, min(int64(n), r.body-crlf)))
		if text > 0 {
			r.element(r.at, p[:text], false, false)
		}
	}
	r.body -= int64(n)
	if r.body == 0 {
		r.endElement()
	}
	return n
}

func (r *respScanner) endElement() {
	if r.element != nil {
		r.element(r.at, nil, false, true)
	}
	r.at++
}

// simple says that the line is of a value without a length, which may be long.
func (r *respScanner) simple() bool {
	switch r.line[0] {
	case '+', '-', '(', ',':
		return true
	}
	return false
}

// takeLine reads up to and with LF. Of a simple value only the beginning is kept.
func (r *respScanner) takeLine(p []byte) (n int, whole bool) {
	for n < len(p) {
		c := p[n]
		n++
		if c == '\n' {
			return n, true
		}
		if len(r.line) > maxHeader && r.simple() {
			continue
		}
		r.line = append(r.line, c)
		if len(r.line) > maxHeader && !r.simple() {
			return n, false
		}
	}
	return n, false
}

// header acts on a whole line, and says whether a value ended with it.
func (r *respScanner) header() (end bool, err error) {
	line := r.line
	if l := len(line); l > 0 && line[l-1] == '\r' {
		line = line[:l-1]
	}
	if len(line) == 0 {
		return false, fmt.Errorf("%w: an empty line", errRESP)
	}
	if r.item != nil && r.kind == '*' && len(r.open) == 1 && line[0] != '|' {
		r.item(line[0])
	}
	switch line[0] {
	case '+', '-', ':', '_', ',', '#', '(':
		if r.element != nil {
			r.element(r.at, line[1:], true, false)
		}
		r.endElement()
		return r.ended(), nil
	case '$', '=', '!':
		length, err := respLength(line, 1<<40)
		if err != nil {
			return false, err
		}
		if r.element != nil {
			r.element(r.at, nil, true, false)
		}
		if length < 0 { // RESP2's null
			r.endElement()
			return r.ended(), nil
		}
		r.body = length + 2
		return false, nil
	case '*', '~', '>', '%', '|':
		length, err := respLength(line, math.MaxInt32)
		if err != nil {
			return false, err
		}
		if line[0] == '%' || line[0] == '|' {
			length *= 2
		}
		if line[0] == '|' {
			if len(r.open) > 0 {
				// It comes in addition to the values of its aggregate.
				r.open[len(r.open)-1]++
			} else {
				r.attr = true
			}
		}
		if length <= 0 {
			return r.ended(), nil
		}
		if len(r.open) == maxDepth {
			return false, fmt.Errorf("%w: more than %d levels", errRESP, maxDepth)
		}
		r.open = append(r.open, length)
		return false, nil
	}
	return false, fmt.Errorf("%w: a value that begins with %q", errRESP, line[0])
}

func respLength(line []byte, limit int64) (int64, error) {
	n, err := strconv.ParseInt(string(line[1:]), 10, 64)
	if err != nil || n < -1 || n > limit {
		return 0, fmt.Errorf("%w: length %.20q", errRESP, line[1:])
	}
	return n, nil
}

// ended counts a value that has ended, and says whether the whole has: the value, with
// any attribute before it, that is in no aggregate.
func (r *respScanner) ended() bool {
	for len(r.open) > 0 {
		last := len(r.open) - 1
		if r.open[last]--; r.open[last] > 0 {
			return false
		}
		r.open = r.open[:last]
	}
	if r.attr {
		r.attr = false
		return false
	}
	return true
}
