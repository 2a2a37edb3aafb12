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
			if f.wants(request) {
				f.ask()
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

// A server may read on though its client reads no replies: Redis does. What is remembered
// for such a client has an end, and then its session is pinned; and it does not take the
// longer the more there is, or a pipeline would stand still.
func TestRedisRemembersSoMuch(t *testing.T) {
	for what, c := range map[string]struct {
		say   string
		times int
		want  string
	}{
		"plain commands, which take the room of one": {"PING\r\n", 500_000, "500000 commands have no reply yet"},
		"a long pipeline of transactions":            {"MULTI\r\nSET a b\r\nEXEC\r\n", 40_000, "120000 commands have no reply yet"},
		"one without an end":                         {"WATCH a\r\nUNWATCH\r\n", 150_000, "it has asked more than can be remembered without reading the replies"},
		"settings without an end":                    {"SELECT 1\r\n", 50_000, "it has asked more than can be remembered without reading the replies"},
		"long settings without an end":               {"AUTH " + strings.Repeat("x", 1000) + "\r\n", 20_000, "it has asked more than can be remembered without reading the replies"},
	} {
		f := newRedisFramer()
		for range c.times {
			for p := []byte(c.say); len(p) > 0 && f.pinned() == ""; {
				n, err := f.request(p)
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				p = p[n:]
			}
		}
		if f.busy() != c.want {
			t.Errorf("%s: it is busy with %q, want %q", what, f.busy(), c.want)
		}
		if f.pinned() != "" {
			if len(f.waiting.runs) > 0 {
				t.Errorf("%s: nothing is followed any more, and %d commands are still remembered", what, len(f.waiting.runs))
			}
			continue
		}
		for range f.waiting.len() {
			if err := f.reply([]byte("+OK\r\n")); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		if f.busy() != "" || f.waiting.setups != 0 {
			t.Errorf("%s: with all replies it is busy with %q, and remembers %d bytes", what, f.busy(), f.waiting.setups)
		}
	}
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
	f.Add([]byte("MULTI\r\nSELECT 5\r\nSELECT 99\r\nEXEC\r\n"), []byte("+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n-ERR\r\n"))
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

// Whatever is put in transactions, or beside them, and however they end: another connection
// would be set up as the server has this one, with any number of commands on their way.
func FuzzRedisTransactions(f *testing.F) {
	f.Add([]byte("m3d"))      // MULTI, SELECT 3, DISCARD
	f.Add([]byte("m3.a2.e.")) // dropped by a key that was watched
	f.Add([]byte("1.m39x5e.m.4.e.4"))
	f.Add([]byte("mb3e.r4."))
	f.Add([]byte("m3E.2.e.4."))
	f.Add([]byte("m3Dd5.mE1D.2e3"))
	f.Add([]byte("m3N.2.mN3mEme"))
	f.Fuzz(func(t *testing.T, script []byte) {
		session := newRedisFramer()
		var server struct {
			db            byte
			multi, broken bool
			queue         []byte
			says          []byte
		}
		server.db = '0'
		selects := func(db byte) string {
			if db > '5' {
				return "-ERR DB index is out of range\r\n"
			}
			server.db = db
			return "+OK\r\n"
		}
		drop := func() { server.multi, server.broken, server.queue = false, false, nil }
		for _, op := range script {
			say, answer := "", ""
			switch {
			case op == '.':
				if err := session.reply(server.says); err != nil {
					t.Fatal(err)
				}
				server.says = nil
				continue
			case op == 'm':
				say, answer = "MULTI", "+OK\r\n"
				if server.multi {
					answer = "-ERR MULTI calls can not be nested\r\n"
				}
				server.multi = true
			case op == 'd':
				say, answer = "DISCARD", "+OK\r\n"
				if !server.multi {
					answer = "-ERR DISCARD without MULTI\r\n"
				}
				drop()
			case op == 'e' || op == 'a': // a: a watched key has changed
				say = "EXEC"
				switch {
				case !server.multi:
					answer = "-ERR EXEC without MULTI\r\n"
				case server.broken:
					answer = "-EXECABORT Transaction discarded because of previous errors.\r\n"
				case op == 'a':
					answer = "*-1\r\n"
				default:
					answer = fmt.Sprintf("*%d\r\n", len(server.queue))
					for _, db := range server.queue {
						if db == 'x' {
							answer += "*2\r\n+OK\r\n-ERR\r\n"
							continue
						}
						answer += selects(db)
					}
				}
				drop()
			case op == 'E' || op == 'D' || op == 'N': // refused for how it is asked; N: by a newer server
				say, answer = "EXEC now", "-ERR wrong number of arguments for 'exec' command\r\n"
				if op == 'D' {
					say, answer = "DISCARD now", "-ERR wrong number of arguments for 'discard' command\r\n"
				}
				server.broken = server.multi
				if op == 'N' && server.multi {
					answer = "-EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' command\r\n"
					drop()
				}
			case op == 'r':
				say, answer = "RESET", "+RESET\r\n"
				drop()
				server.db = '0'
			case op == 'b':
				say, answer = "NOSUCH", "-ERR unknown command\r\n"
				server.broken = server.multi
			case op == 'x' || op >= '0' && op <= '9':
				say = "SELECT " + string(op)
				if op == 'x' {
					say = "LRANGE l 0 -1"
				}
				switch {
				case server.multi:
					answer = "+QUEUED\r\n"
					server.queue = append(server.queue, op)
				case op == 'x':
					answer = "*0\r\n"
				default:
					answer = selects(op)
				}
			default:
				continue
			}
			if _, err := session.request([]byte(say + "\r\n")); err != nil {
				t.Fatal(err)
			}
			server.says = append(server.says, answer...)
		}
		if err := session.reply(server.says); err != nil {
			t.Fatal(err)
		}
		db := byte('0')
		for _, s := range session.setup {
			db = s.args[1][0]
		}
		if db != server.db {
			t.Errorf("after %q the server has database %c, another connection would have %c", script, server.db, db)
		}
		if idle := session.busy() == ""; idle == server.multi || session.pinned() != "" {
			t.Errorf("after %q it is busy with %q; within a transaction: %t", script, session.busy(), server.multi)
		}
	})
}
