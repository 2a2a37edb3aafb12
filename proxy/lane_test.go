package proxy

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// pieces is a connection on which a stream comes in pieces.
type pieces struct {
	net.Conn
	left []byte
	size func() int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.left) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.left[:min(len(p.left), p.size())])
	p.left = p.left[n:]
	return n, nil
}

func (p *pieces) SetReadDeadline(time.Time) error { return nil }

// run is what one session gets of a stream of requests.
type laneRun struct{ name, said string }

// runsOf are what sessions get of a stream, one after the other, each for one name, and how
// it ended.
func runsOf(stream []byte, size func() int) (runs []laneRun, end string) {
	r := newRequests(&pieces{left: stream, size: size}, time.Minute)
	for {
		name, err := r.next()
		if err != nil {
			return runs, err.Error()
		}
		f := newHTTPFramer()
		l := &lane{Conn: r.conn, requests: r, session: &session{framer: f}, ours: func(other string) bool { return other == name }}
		var said strings.Builder
		for {
			c, err := l.readChunk()
			if err != nil {
				runs = append(runs, laneRun{name, said.String()})
				if errors.Is(err, errElsewhere) {
					break
				}
				return runs, err.Error()
			}
			said.Write(c.bytes())
			for p := c.bytes(); len(p) > 0 && f.pinned() == ""; { // as the session does
				n, err := f.request(p)
				if err != nil {
					return runs, "the session does not understand it: " + err.Error()
				}
				p = p[n:]
			}
			c.release()
		}
	}
}

// timed is a connection whose other side says what it is told to, and which counts how often
// the time of a read was set, and not taken away.
type timed struct {
	pieces
	set int
	now time.Time
}

func (c *timed) SetReadDeadline(until time.Time) error {
	if c.now = until; !until.IsZero() {
		c.set++
	}
	return nil
}

// Each head has its own time, also where what is read never ends between two of them.
func TestHeadsHaveTheirOwnTime(t *testing.T) {
	const request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	const times = 5
	conn := &timed{pieces: pieces{left: []byte(strings.Repeat(request, times))}}
	first := true
	conn.size = func() int { // all ends are within heads
		if first {
			first = false
			return 10
		}
		return len(request)
	}
	r := newRequests(conn, time.Minute)
	l := &lane{Conn: conn, requests: r, session: &session{framer: newHTTPFramer()}, ours: func(string) bool { return true }}
	for {
		c, err := l.readChunk()
		if err != nil {
			break
		}
		c.release()
	}
	if conn.set != times {
		t.Errorf("%d heads had %d times to come to their ends", times, conn.set)
	}
	if !conn.now.IsZero() {
		t.Error("none is being read, and there is a time for it")
	}
}

// sameRuns says that sessions get the same. Of a body that is not understood the last one may
// have more or less: what came with the wrong line is kept back with it.
func sameRuns(a, b []laneRun, end string) bool {
	if last := len(a) - 1; end != io.EOF.Error() && last >= 0 && len(b) == len(a) {
		short, long := a[last], b[last]
		if len(short.said) > len(long.said) {
			short, long = long, short
		}
		return slices.Equal(a[:last], b[:last]) && short.name == long.name && strings.HasPrefix(long.said, short.said)
	}
	return slices.Equal(a, b)
}

// In whatever pieces a stream comes, the same of it is for the same routes: whole requests,
// in order, none of which is for another.
func FuzzRequests(f *testing.F) {
	const (
		a    = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
		b    = "POST / HTTP/1.1\r\nhost: B:80\r\nContent-Length: 3\r\n\r\nGET"
		many = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nGET\r\n0\r\nHost: b\r\n\r\n"
		turn = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\n"
	)
	for _, stream := range []string{a + b + a, many + b + many + many + a, b + turn + b + "\x00\x01", a + "GET /\n", "CONNECT b:80 HTTP/1.1\r\nHost: b\r\n\r\n" + a, a[:9]} {
		f.Add([]byte(stream), uint64(1))
	}
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64) {
		random := rand.New(rand.NewPCG(seed, 0))
		whole, end := runsOf(stream, func() int { return len(stream) })
		single, endSingle := runsOf(stream, func() int { return 1 })
		some, endSome := runsOf(stream, func() int { return 1 + random.IntN(9) })
		if !sameRuns(whole, single, end) || !sameRuns(whole, some, end) || end != endSingle || end != endSome {
			t.Fatalf("%q: whole %q %s, byte by byte %q %s, in pieces %q %s", stream, whole, end, single, endSingle, some, endSome)
		}
		all := ""
		for i, run := range whole {
			all += run.said
			name, err := headName([]byte(run.said))
			if err != nil || name != run.name {
				t.Errorf("%q: a session for %q gets %q (%v)", stream, run.name, run.said, err)
			}
			if i > 0 && run.name == whole[i-1].name {
				t.Errorf("%q: two sessions for %q, one after the other", stream, run.name)
			}
		}
		if !strings.HasPrefix(string(stream), all) {
			t.Errorf("%q: sessions get %q", stream, all)
		}
	})
}
