package proxy

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
)

func TestRedisFramer(t *testing.T) {
	text, err := os.ReadFile("testdata/redis.txt")
	if err != nil {
		t.Fatal(err)
	}
	var f *redisFramer
	for no, line := range strings.Split(string(text), "\n") {
		at := fmt.Sprintf("testdata/redis.txt:%d: %s", no+1, line)
		what, rest, _ := strings.Cut(line, " ")
		switch what {
		case "case:":
			f = newRedisFramer()
		case ">", ">>":
			request := appendCommand(nil, bytes.Fields([]byte(rest)))
			if what == ">>" {
				request = []byte(unescape(t, rest))
			}
			for len(request) > 0 && f.pinned() == "" {
				n, err := f.request(request)
				if err != nil && f.pinned() == "" {
					t.Errorf("%s: %v", at, err)
				}
				request = request[n:]
			}
		case "<":
			if err := f.reply([]byte(rest + "\r\n")); err != nil {
				t.Errorf("%s: %v", at, err)
			}
		case "=":
			if got := dash(f.busy()); got != rest {
				t.Errorf("%s: busy is %q", at, got)
			}
		case "+":
			var said []string
			for _, s := range f.setup {
				said = append(said, string(bytes.Join(s.args, []byte(" "))))
			}
			if got := dash(strings.Join(said, ", ")); got != rest {
				t.Errorf("%s: it would repeat %q", at, got)
			}
		case "open", "shut":
			if f.open() != (what == "open") {
				t.Errorf("%s: it is not", at)
			}
		}
	}
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func unescape(t *testing.T, s string) string {
	t.Helper()
	out, err := strconv.Unquote(`"` + strings.ReplaceAll(s, `"`, `\"`) + `"`)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// valueEnds tells where the values of a stream end that arrives in pieces of these sizes,
// and how reading it ended.
func valueEnds(stream []byte, pieces func() int) (at []int, failed string) {
	var r respScanner
	r.element = func(int, []byte, bool, bool) {}
	pos := 0
	for pos < len(stream) {
		p := stream[pos:min(len(stream), pos+pieces())]
		for len(p) > 0 {
			n, end, err := r.scan(p)
			pos, p = pos+n, p[n:]
			if err != nil {
				return at, err.Error()
			}
			if end {
				at = append(at, pos)
			}
			if n == 0 && !end {
				return at, "nothing was read"
			}
		}
	}
	return at, ""
}

// However a stream is cut into pieces, its values end at the same places.
func FuzzRESP(f *testing.F) {
	for _, seed := range []string{
		"+OK\r\n:1\r\n$5\r\nhello\r\n*2\r\n$1\r\na\r\n*1\r\n_\r\n",
		"%1\r\n+a\r\n,1.5\r\n|1\r\n+ttl\r\n:3\r\n$-1\r\n>2\r\n+x\r\n#t\r\n*0\r\n*-1\r\n~1\r\n=7\r\ntxt:abc\r\n",
		"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n", "*1\n$4\nPING\r\n", "$9999999999999999\r\n", "*99999\r\n", "(1\r\n-ERR x\r\n!3\r\nbad\r\n",
	} {
		f.Add([]byte(seed), uint64(1))
	}
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64) {
		whole, failed := valueEnds(stream, func() int { return len(stream) })
		random := rand.New(rand.NewPCG(seed, 0))
		for what, pieces := range map[string]func() int{
			"single bytes":  func() int { return 1 },
			"random pieces": func() int { return 1 + random.IntN(7) },
		} {
			at, otherwise := valueEnds(stream, pieces)
			if fmt.Sprint(at) != fmt.Sprint(whole) || failed != otherwise {
				t.Errorf("%q in %s: values end at %v (%s), as a whole at %v (%s)", stream, what, at, otherwise, whole, failed)
			}
		}
	})
}

// A framer takes whatever two hostile sides say, in any pieces, and stands still at
// nothing.
func FuzzRedisSession(f *testing.F) {
	f.Add([]byte("*1\r\n$4\r\nPING\r\nMULTI\r\n"), []byte("+PONG\r\n+OK\r\n"))
	f.Add([]byte("*2\r\n$5\r\nWATCH\r\n$1\r\nk\r\n"), []byte("*2\r\n$1\r\n"))
	f.Fuzz(func(t *testing.T, requests, answers []byte) {
		session := newRedisFramer()
		for len(requests) > 0 && session.pinned() == "" {
			n, err := session.request(requests)
			if n == 0 && err == nil {
				t.Fatalf("nothing was taken of %q", requests)
			}
			requests = requests[n:]
		}
		if err := session.reply(answers); err != nil && session.pinned() == "" {
			t.Errorf("%v, and it goes on", err)
		}
		if session.busy() == "" && (session.open() || session.pinned() != "" || !session.between()) {
			t.Error("it would be parked though something is open")
		}
	})
}
