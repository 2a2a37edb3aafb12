package proxy

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
)

func TestHTTPFramer(t *testing.T) {
	text, err := os.ReadFile("testdata/http.txt")
	if err != nil {
		t.Fatal(err)
	}
	var f *httpFramer
	for no, line := range strings.Split(string(text), "\n") {
		at := fmt.Sprintf("testdata/http.txt:%d: %s", no+1, line)
		what, rest, _ := strings.Cut(line, " ")
		if what == ">" || what == "<" {
			rest = strings.ReplaceAll(rest, " | ", `\r\n`) + `\r\n\r\n`
		}
		switch what {
		case "case:":
			f = newHTTPFramer()
		case ">", ">>":
			for request := []byte(unescape(t, rest)); len(request) > 0 && f.pinned() == ""; {
				n, err := f.request(request)
				if n == 0 && f.pinned() == "" {
					t.Fatalf("%s: nothing was taken (%v)", at, err)
				}
				request = request[n:]
			}
		case "<", "<<":
			if err := f.reply([]byte(unescape(t, rest))); err != nil && f.pinned() == "" {
				t.Errorf("%s: %v", at, err)
			}
		case "=":
			if got := dash(f.busy()); got != rest {
				t.Errorf("%s: busy is %q", at, got)
			}
		}
	}
}

// messageEnds tells where the messages of a stream end that arrives in pieces of these
// sizes, and how reading it ended.
func messageEnds(stream []byte, answers bool, pieces func() int) (at []int, failed string) {
	r := httpScanner{answers: answers}
	for pos := 0; pos < len(stream); {
		p := stream[pos:min(len(stream), pos+pieces())]
		for len(p) > 0 {
			n, part, err := r.scan(p)
			pos, p = pos+n, p[n:]
			switch {
			case err != nil:
				return at, err.Error()
			case n == 0 && part == httpMore && r.state != httpStart:
				return at, "nothing was read"
			case part == httpMore:
				continue
			}
			if part == httpHeadEnd {
				switch {
				case r.head.chunked:
					r.chunks()
				case r.head.length > 0:
					r.bytes(r.head.length)
				case answers && r.head.length == noLength:
					r.rest()
				}
			}
			if r.between() {
				at = append(at, pos)
			}
		}
	}
	return at, ""
}

// However a stream is cut into pieces, its messages end at the same places.
func FuzzHTTP(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcHEAD / HTTP/1.0\r\n\r\n",
		"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nA: b\r\n\r\nGET / HTTP/1.1\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 100\r\n\r\nrest", "GET / HTTP/1.1\nHost: a\n\n",
		"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabcd\r\n0\r\n\r\n", "\x16\x03\x01\x02\x00",
	} {
		f.Add([]byte(seed), uint64(1), strings.HasPrefix(seed, "HTTP"))
	}
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64, answers bool) {
		whole, failed := messageEnds(stream, answers, func() int { return len(stream) })
		random := rand.New(rand.NewPCG(seed, 0))
		for what, pieces := range map[string]func() int{
			"single bytes":  func() int { return 1 },
			"random pieces": func() int { return 1 + random.IntN(7) },
		} {
			at, otherwise := messageEnds(stream, answers, pieces)
			if fmt.Sprint(at) != fmt.Sprint(whole) || failed != otherwise {
				t.Errorf("%q in %s: messages end at %v (%s), as a whole at %v (%s)", stream, what, at, otherwise, whole, failed)
			}
		}
	})
}

// A framer takes whatever two hostile sides say, and stands still at nothing.
func FuzzHTTPSession(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nUpgrade: x\r\n\r\n"), []byte("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxHTTP/1.1 101 Go\r\n\r\n"))
	f.Add([]byte("CONNECT a:1 HTTP/1.1\r\n\r\nx"), []byte("HTTP/1.1 200 OK\r\n\r\n"))
	f.Add([]byte("HEAD / HTTP/1.1\r\n\r\n"), []byte("HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 204 OK\r\n\r\nx"))
	f.Fuzz(func(t *testing.T, requests, answers []byte) {
		session := newHTTPFramer()
		for len(requests) > 0 && session.pinned() == "" {
			n, err := session.request(requests)
			if n == 0 && err == nil && session.pinned() == "" {
				t.Fatalf("nothing was taken of %q", requests)
			}
			requests = requests[n:]
		}
		if err := session.reply(answers); err != nil && session.pinned() == "" {
			t.Errorf("%v, and it goes on", err)
		}
		if session.busy() == "" && (session.pinned() != "" || !session.between() || len(session.waiting) > 0) {
			t.Error("it would be parked though something is open")
		}
	})
}
