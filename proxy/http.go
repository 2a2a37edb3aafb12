package proxy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"strings"
)

// httpFramer follows one client of a server of HTTP/1.1: which of its requests have no
// answer yet, and whether the connection has become one for something else.
//
// It never repeats, changes or refuses what it does not understand: that pins the
// session. Nobody else's requests share its connection to the server, so there is nobody
// whom a request smuggled past it could harm, and what a server makes of an ambiguous one
// stays between it and its client.
type httpFramer struct {
	in  httpScanner
	out httpScanner

	waiting []httpAsk // requests whose answer has not ended, the oldest first
	events  bool      // the answer that is being read is a stream of events
	ends    bool      // after the last answer the server ends the connection
	pin     string
}

// httpAsk is what a request makes of the answer to it.
type httpAsk uint8

const (
	httpHEAD    httpAsk = 1 << iota // has no body
	httpCONNECT                     // makes a tunnel of the connection, if it succeeds
	httpUpgrade                     // may make another protocol of it
	httpLast                        // is the last of it
)

func newHTTPFramer() *httpFramer { return &httpFramer{out: httpScanner{answers: true}} }

// request implements framer.
func (f *httpFramer) request(p []byte) (n int, err error) {
	if f.in.between() && f.switching() {
		// It depends on the answer, which is not known yet, what this is.
		f.pin = "it goes on before its change of protocol has been answered"
		return 0, nil
	}
	n, part, err := f.in.scan(p)
	if err == nil && part == httpHeadEnd {
		f.asked()
	}
	if err != nil {
		f.pin = err.Error()
	}
	return n, err
}

// switching says that there may be something else than requests after a request.
func (f *httpFramer) switching() bool {
	return len(f.waiting) > 0 && f.waiting[len(f.waiting)-1]&(httpCONNECT|httpUpgrade) != 0
}

// asked counts a request whose head has been read.
func (f *httpFramer) asked() {
	h := &f.in.head
	var ask httpAsk
	switch h.method {
	case "HEAD":
		ask |= httpHEAD
	case "CONNECT":
		ask |= httpCONNECT
	}
	if h.protocol != "" {
		ask |= httpUpgrade
	}
	if h.last() {
		ask |= httpLast
	}
	f.waiting = append(f.waiting, ask)
	switch {
	case h.chunked:
		f.in.chunks()
	case h.length > 0:
		f.in.bytes(h.length)
	}
}

// between implements framer.
func (f *httpFramer) between() bool { return f.in.between() }

// reply implements framer.
func (f *httpFramer) reply(p []byte) error {
	for len(p) > 0 && f.pin == "" {
		if len(f.waiting) == 0 {
			// Such as "408 Request Timeout", after which the server hangs up.
			f.pin = "the server said something that nobody had asked for"
			return nil
		}
		n, part, err := f.out.scan(p)
		if err != nil {
			f.pin = err.Error()
			return err
		}
		p = p[n:]
		if part == httpHeadEnd {
			part = f.answers()
		}
		if part == httpEnd {
			f.answered()
		}
	}
	return nil
}

// answers acts on the head of an answer, and says whether the answer ends with it.
func (f *httpFramer) answers() httpPart {
	h, ask := &f.out.head, f.waiting[0]
	switch {
	case h.status == 101:
		f.pin = "the connection has become one for " + cmp.Or(h.protocol, "another protocol")
		return httpMore
	case h.status < 200:
		return httpMore // another one follows
	case ask&httpCONNECT != 0 && h.status < 300:
		f.pin = "the connection has become a tunnel (CONNECT)"
		return httpMore
	case ask&httpHEAD != 0, h.status == 204, h.status == 304:
		return httpEnd
	case h.chunked:
		f.out.chunks()
	case h.length == 0:
		return httpEnd
	case h.length > 0:
		f.out.bytes(h.length)
	default:
		f.out.rest()
	}
	f.events = h.events
	return httpMore
}

// answered acts on the end of an answer.
func (f *httpFramer) answered() {
	f.ends = f.ends || f.waiting[0]&httpLast != 0 || f.out.head.last()
	f.waiting = f.waiting[1:]
	f.events = false
}

// open implements framer: no request belongs to another.
func (f *httpFramer) open() bool { return false }

// pinned implements framer.
func (f *httpFramer) pinned() string { return f.pin }

// busy implements framer.
func (f *httpFramer) busy() string {
	switch {
	case f.pin != "":
		return f.pin
	case f.ends:
		// Parked, the client would wait in vain for the end that it was promised.
		return "the server is about to end the connection"
	case f.events:
		return "a stream of events lasts"
	case len(f.waiting) > 0:
		return fmt.Sprintf("%d requests have no answer yet", len(f.waiting))
	case !f.between():
		return "a request is half sent"
	}
	return ""
}

// replay implements framer: a request says all that there is to know.
func (f *httpFramer) replay(io.ReadWriter) error { return nil }

// refusal implements framer. Its words stand where a body is not needed for them, which
// an answer to HEAD may not have.
func (f *httpFramer) refusal(why string) []byte { return httpRefusal("503 "+why, "Retry-After: 1") }

// httpRefusal is an answer that is the last one, without a body.
func httpRefusal(status string, fields ...string) []byte {
	status = strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return ' '
		}
		return c
	}, status)
	fields = append(fields, "Connection: close", "Content-Length: 0")
	return []byte("HTTP/1.1 " + status + "\r\n" + strings.Join(fields, "\r\n") + "\r\n\r\n")
}

// probeHTTP asks a server whether it is ready. The question is one about the server as
// a whole and changes nothing; whatever it answers but that it is not available, it is
// there. One that speaks HTTP/2 alone begins with a frame of settings instead.
func probeHTTP(conn io.ReadWriter) error {
	if _, err := io.WriteString(conn, "OPTIONS * HTTP/1.1\r\nHost: localhost\r\nUser-Agent: flocker\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	var head [12]byte
	if _, err := io.ReadFull(conn, head[:9]); err != nil {
		return err
	}
	const settings = 4
	if head[0] == 0 && head[3] == settings && head[4] == 0 {
		return nil
	}
	if _, err := io.ReadFull(conn, head[9:]); err != nil {
		return err
	}
	switch {
	case !bytes.HasPrefix(head[:], []byte("HTTP/1.")):
		return fmt.Errorf("the server does not answer in HTTP: %q", head)
	case bytes.HasSuffix(head[:], []byte(" 503")):
		return errors.New("the server answers that it is not available yet (503)")
	}
	return nil
}
