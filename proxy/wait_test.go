package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// waiting is a gate with one client, and servers that are played word by word.
type waiting struct {
	*world
	c      *testClient
	accept func() *player // the next connection to the server
}

// player plays one connection of the server's side.
type player struct{ *keeps }

func newWaiting(t *testing.T) *waiting {
	t.Helper()
	dial, accept := playedServer(t)
	g, err := NewGate(Redis, dial, Limits{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	g.try = 0
	w := &waiting{world: &world{T: t, g: g, port: front(t, g)}, accept: accept}
	w.c = w.client()
	return w
}

func playedServer(t *testing.T) (Dialer, func() *player) {
	t.Helper()
	addr, accept := holding(t)
	dial := func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", addr) }
	return dial, func() *player {
		t.Helper()
		k := accept()
		if err := k.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		return &player{k}
	}
}

// hears expects commands, and answers the last of them.
func (p *player) hears(commands, answer string) {
	p.Helper()
	for _, want := range strings.Split(commands, " | ") {
		if got := redisSays(p, p.in); got != want {
			p.Fatalf("the server heard %q, want %q", got, want)
		}
	}
	p.say(answer)
}

// nothing expects that the other side ends the connection, having said nothing more.
func (p *player) nothing() {
	p.Helper()
	if rest, err := io.ReadAll(p.in); len(rest) > 0 || err != nil {
		p.Errorf("the server heard %q, %v", rest, err)
	}
}

// blocked brings the client to wait at the server.
func (w *waiting) blocked(command string) *player {
	w.Helper()
	w.c.say(command + "\r\n")
	server := w.accept()
	server.hears("CLIENT ID", ":7 | ")
	server.hears(command, "")
	w.until("the number to be known", func() bool { return w.busy() == "a blocking command waits" })
	return server
}

func (w *waiting) busy() string {
	for _, s := range w.g.Sessions() {
		return s.Busy
	}
	return ""
}

// asked expects that the wait of the session with this number is to be ended. The rest is only said when MULTI
// has been answered.
func (p *player) asked(number int, answer string) {
	p.Helper()
	p.hears("MULTI", "+OK | ")
	p.hears(fmt.Sprintf("BLPOP q - | CLIENT UNBLOCK %d TIMEOUT | EXEC", number), answer)
}

func verdict(said string) string {
	return "+QUEUED | +QUEUED | *2 | -ERR timeout | " + said + " | "
}

// What a client waits for is ended, and goes on at the server's new place for the rest of its time;
// what it has said behind that comes behind that.
func TestWaitMoves(t *testing.T) {
	for _, null := range []string{"first", "last"} {
		t.Run(null, func(t *testing.T) {
			w := newWaiting(t)
			server := w.blocked("BLPOP q 50")
			w.c.say("GET k\r\n")
			w.g.Pause()
			side := w.accept()
			if null == "first" {
				server.say("*-1 | ")
				w.until("the answer to be there", w.unclear)
				side.asked(7, verdict(":1"))
			} else {
				side.asked(7, verdict(":1"))
				side.nothing()
				server.say("*-1 | ")
			}
			w.quiet()
			side.nothing()
			server.nothing()
			if got := w.states(); got != string(Waiting) {
				t.Errorf("its state is %s", got)
			}
			dial, accept := playedServer(t)
			w.g.Resume(dial)
			other := accept()
			other.hears("CLIENT ID | HELLO", ":9 | %1 | +server | +redis | ")
			again := strings.Fields(redisSays(t, other.in))
			left, err := strconv.ParseFloat(again[len(again)-1], 64)
			if len(again) != 3 || again[0] != "BLPOP" || again[1] != "q" || err != nil || left > 50 || left < 1 { // what is left is rounded up
				t.Errorf("it waits again by %q", again)
			}
			other.say("*2 | $1 | q | $1 | v | ")
			for _, line := range []string{"*2", "$1", "q", "$1", "v"} {
				w.c.hear(line)
			}
			other.hears("GET k", "$1 | x | ")
			w.c.hear("$1")
			w.c.hear("x")
			if n := w.g.held.Load(); n < 1 {
				t.Errorf("%d were held by the pause", n)
			}

			// And once more, by the number that the session has there.
			w.c.say("BLPOP q 0\r\n")
			other.hears("BLPOP q 0", "")
			w.g.Pause()
			accept().asked(9, verdict(":1"))
			other.say("*-1 | ")
			w.quiet()
			w.g.Resume(nil)
			third := accept()
			third.hears("CLIENT ID", ":11 | ")
			third.hears("BLPOP q 0", "*2 | $1 | q | $1 | w | ")
			w.c.hear("*2")
		})
	}
}

// session is the client's.
func (w *waiting) session() *session {
	w.g.mu.Lock()
	defer w.g.mu.Unlock()
	for s := range w.g.sessions {
		return s.(*session)
	}
	w.Fatal("there is no session")
	return nil
}

func (w *waiting) unclear() bool {
	s := w.session()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiter.unclear()
}

// ended says that the server is not being asked any more.
func (w *waiting) ended() bool {
	s := w.session()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ending == nil
}

// An answer that the server had under way when it was asked is the client's, a null among them.
func TestWaitAnsweredMeanwhile(t *testing.T) {
	for what, answer := range map[string]string{"an element": "*2 | $1 | q | $1 | v | ", "its time is over": "*-1 | "} {
		t.Run(what, func(t *testing.T) {
			w := newWaiting(t)
			server := w.blocked("BLPOP q 50")
			w.g.Pause()
			side := w.accept()
			side.asked(7, "")
			server.say(answer)
			if strings.HasPrefix(answer, "*-1") { // of which it is not known before whose it is
				w.until("the answer to be there", w.unclear)
				side.say(verdict(":0"))
			}
			for _, line := range strings.Split(strings.TrimSuffix(answer, " | "), " | ") {
				w.c.hear(line)
			}
			w.quiet()
			server.nothing()
			side.nothing()
		})
	}
}

// A server that has not come to the client's command yet is asked until it has.
func TestWaitAskedAgain(t *testing.T) {
	w := newWaiting(t)
	server := w.blocked("BLPOP q 0")
	w.g.Pause()
	side := w.accept()
	side.asked(7, verdict(":0"))
	side.asked(7, verdict(":0"))
	side.asked(7, verdict(":1"))
	server.say("*-1 | ")
	w.quiet()
}

// A server that does not do it leaves the client where it is, named.
func TestWaitRefused(t *testing.T) {
	for what, answer := range map[string]string{
		"NOPERM no": "+QUEUED | -NOPERM no | -EXECABORT | ", "ERR no such": verdict("-ERR no such"),
	} {
		t.Run(what, func(t *testing.T) {
			w := newWaiting(t)
			server := w.blocked("BLPOP q 0")
			w.g.Pause()
			side := w.accept()
			side.asked(7, answer)
			w.until("it to be named", func() bool {
				return w.busy() == "a blocking command waits, and the server does not end that: "+what
			})
			side.nothing()
			server.say("*2 | $1 | q | $1 | v | ")
			w.c.hear("*2")
			w.quiet()
		})
	}
}

// The number that is asked for is none of the client's, whatever it says next.
func TestWaitNumberIsSwallowed(t *testing.T) {
	w := newWaiting(t)
	w.c.say("PING\r\nXREAD STREAMS s 0\r\nSUBSCRIBE news\r\n")
	server := w.accept()
	server.hears("PING | CLIENT ID | XREAD STREAMS s 0", "+PONG | :7 | *-1 | ")
	server.hears("SUBSCRIBE news", "+subscribed | ")
	for _, line := range []string{"+PONG", "*-1", "+subscribed"} {
		w.c.hear(line)
	}
}

// What the server was asked may have been done though the answer was lost: then a null that comes before
// its time is not the client's.
func TestWaitAnswerLost(t *testing.T) {
	w := newWaiting(t)
	server := w.blocked("BLPOP q 0")
	w.g.Pause()
	side := w.accept()
	side.asked(7, "")
	_ = side.conn.Close()
	w.until("it to be noticed", w.ended)
	server.say("*-1 | ")
	w.quiet()
	server.nothing()
	dial, accept := playedServer(t)
	w.g.Resume(dial)
	other := accept()
	other.hears("CLIENT ID", ":9 | ")
	other.hears("BLPOP q 0", "*2 | $1 | q | $1 | v | ")
	w.c.hear("*2")
}

// A pause that is given up while a wait is being ended has it begin again where it is.
func TestWaitPauseGivenUp(t *testing.T) {
	w := newWaiting(t)
	server := w.blocked("BLPOP q 0")
	w.g.Pause()
	side := w.accept()
	side.asked(7, "")
	w.g.Resume(nil)
	w.until("it to be given up", w.ended)
	server.say("*-1 | ")
	server.hears("BLPOP q 0", "*2 | $1 | q | $1 | v | ")
	w.c.hear("*2")
	side.nothing()
}

// A client that has gone waits for nothing, and what it said behind that is not done.
func TestWaitClientGone(t *testing.T) {
	t.Run("at the server", func(t *testing.T) {
		w := newWaiting(t)
		server := w.blocked("BLPOP q 0")
		w.c.say("INCR k\r\n")
		_ = w.c.conn.Close()
		server.nothing()
	})
	t.Run("after it was ended", func(t *testing.T) {
		w := newWaiting(t)
		server := w.blocked("BLPOP q 0")
		w.c.say("INCR k\r\n")
		w.g.Pause()
		w.accept().asked(7, verdict(":1"))
		server.say("*-1 | ")
		w.quiet()
		_ = w.c.conn.Close()
		w.g.Resume(func(context.Context) (net.Conn, error) { return nil, errors.New("no server") })
		w.until("its session to end", func() bool { return len(w.g.Sessions()) == 0 })
	})
}

// One that logs in does so on the other connection.
func TestWaitLogsIn(t *testing.T) {
	w := newWaiting(t)
	w.c.say("HELLO 3 AUTH u p\r\n")
	server := w.accept()
	server.hears("HELLO 3 AUTH u p", "%1 | +server | +redis | ")
	w.c.hear("%1")
	w.c.hear("+server")
	w.c.hear("+redis")
	w.c.say("SELECT 3\r\n")
	server = w.accept()
	server.hears("HELLO 3 AUTH u p | PING", "%1 | +server | +redis | +PONG | ")
	server.hears("SELECT 3", "+OK | ")
	w.c.hear("+OK")
	w.c.say("BLPOP q 0\r\n")
	server.hears("CLIENT ID", ":7 | ")
	server.hears("BLPOP q 0", "")
	w.g.Pause()
	side := w.accept()
	side.hears("HELLO 3 AUTH u p", "%1 | +server | +redis | ")
	side.asked(7, verdict(":1"))
	server.say("_ | ")
	w.quiet()
	w.g.Resume(nil)
	again := w.accept()
	again.hears("HELLO 3 AUTH u p | PING | SELECT 3 | CLIENT ID", "%1 | +server | +redis | +PONG | +OK | :8 | ")
	again.hears("BLPOP q 0", "_ | ")
	w.c.hear("_")
}

// What one that has closed its side has said behind its login is done, however long that takes to be answered.
func TestLoginOfHalfClosed(t *testing.T) {
	w := newWaiting(t)
	w.c.say("AUTH p\r\nSET k v\r\n")
	server := w.accept()
	if err := w.c.conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(150 * time.Millisecond) // it is looked for each 100
	server.hears("AUTH p", "+OK | ")
	w.c.hear("+OK")
	again := w.accept()
	again.hears("AUTH p | PING", "+OK | +PONG | ")
	again.hears("SET k v", "+OK | ")
	w.c.hear("+OK")
}

// Clients of a real server wait for elements that others push, while it moves back and forth between
// nodes: each element is popped once, and none of them hears an error, nor a null before its time. What the server says
// that it has moved or given to whom is what they have heard of.
func TestNativeRedisWaits(t *testing.T) {
	needs(t, "redis-server", "redis-cli")
	const nodes, workers, pushers, timed = 3, 24, 3, 6
	c := newCluster(t, nodes)
	server := startRedis(t, t.TempDir())
	addr := func() string { return fmt.Sprintf("127.0.0.1:%d", server.port) }
	r := Route{ID: "r", Listen: freePort(t), Mode: Redis, Limits: patient}
	owner, epoch := 0, uint64(1)
	c.route(r, owner, epoch, addr())

	say := func(conn net.Conn, in *bufio.Reader, args ...string) (string, error) {
		var all [][]byte
		for _, a := range args {
			all = append(all, []byte(a))
		}
		if _, err := conn.Write(appendCommand(nil, all)); err != nil {
			return "", err
		}
		return redisReply(in)
	}
	dial := func(i int) (net.Conn, *bufio.Reader) {
		conn, err := net.Dial("tcp", c.addrOf(i%nodes, r))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn, bufio.NewReader(conn)
	}
	h, moved, read := newHistory(), newHistory(), newHistory()
	over, end := context.WithCancel(t.Context())
	defer end()
	for i := range workers {
		conn, in := dial(i)
		ask := [][]string{
			{"BLPOP", "q", "0"}, {"BRPOP", "none", "q", "3600"}, {"BLMPOP", "1800.5", "2", "none", "q", "LEFT"},
			{"BRPOPLPUSH", "q", "done", "0"}, {"BLMOVE", "q", "done", "LEFT", "RIGHT", "3600"}, {"BZPOPMIN", "z", "0"},
			{"BZMPOP", "3600", "1", "z", "MAX"}, {"XREADGROUP", "GROUP", "g", "w", "COUNT", "1", "BLOCK", "0", "STREAMS", "s", ">"},
		}[i%8]
		if i/8 == 1 {
			if got, err := say(conn, in, "HELLO", "3"); err != nil {
				t.Fatalf("HELLO 3: %s, %v", got, err)
			}
		}
		if ask[0] == "XREADGROUP" {
			if got, err := say(conn, in, "XGROUP", "CREATE", "s", "g", "0", "MKSTREAM"); err != nil {
				t.Fatalf("a group: %s, %v", got, err)
			}
		}
		h.all.Go(func() {
			for {
				got, err := say(conn, in, ask...)
				if err != nil {
					h.fail("%s: %v", ask, err)
					return
				}
				words := strings.Fields(got)
				if len(words) == 0 || strings.ContainsAny(got[:1], "-_*$") {
					h.fail("%s answered %q", ask, got)
					return
				}
				for _, word := range words {
					if word == "end" {
						return
					}
					switch {
					case strings.HasPrefix(word, "e") && strings.Contains(word, "."):
						h.popped(word)
						if ask[1] == "q" && ask[2] == "done" {
							moved.popped(word)
						}
					case ask[0] == "XREADGROUP" && strings.Contains(word, "-"):
						read.popped(word)
					}
				}
			}
		})
	}
	var hasty sync.WaitGroup // up to a second each time
	var nulls atomic.Int64
	for i := range timed {
		conn, in := dial(i)
		ask := [][]string{{"BRPOP", "none", "1"}, {"BRPOP", "none", "q", "1"}}[i%2]
		if i < timed/2 {
			if got, err := say(conn, in, "HELLO", "3"); err != nil {
				t.Fatalf("HELLO 3: %s, %v", got, err)
			}
		}
		hasty.Go(func() {
			for over.Err() == nil {
				begin := time.Now()
				got, err := say(conn, in, ask...)
				took := time.Since(begin)
				switch _, element, _ := strings.Cut(got, " "); {
				case err != nil:
					h.fail("%s: %v", ask, err)
					return
				case got == "*-1" || got == "_":
					const rounding = 2 * time.Millisecond // of the server's clock
					if nulls.Add(1); took < time.Second-rounding {
						h.fail("%s heard a null after %s", ask, took)
						return
					}
				case strings.HasPrefix(element, "e"):
					h.popped(element)
				default:
					h.fail("%s answered %q", ask, got)
					return
				}
			}
		})
	}
	for i := range pushers {
		conn, in := dial(i)
		h.pushers.Go(func() {
			for n := 0; over.Err() == nil; n++ {
				e := fmt.Sprintf("e%d.%d", i, n)
				push := [][]string{{"RPUSH", "q", e}, {"ZADD", "z", "1", e}, {"XADD", "s", "*", "v", e}}[i]
				if got, err := say(conn, in, push...); err != nil || got == "" || strings.HasPrefix(got, "-") {
					h.fail("%s: %s, %v", push, got, err)
					return
				}
				h.pushed(e)
				time.Sleep(200 * time.Microsecond) // so that many wait: pushing is quicker than popping
			}
		})
	}
	for i := range movesHere() {
		before := h.popped("")
		eventually(t, "there is some load between two moves", func() bool { return h.popped("") > before+50 || h.failed() })
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		begin := time.Now()
		if err := c.nodes[owner].Pause(ctx, "r", 0); err != nil {
			t.Fatal(err)
		}
		if err := c.nodes[owner].Quiet(ctx, "r"); err != nil {
			t.Fatal(err)
		}
		cancel()
		quiet := time.Since(begin)
		server.stop()
		server = server.move()
		owner, epoch = (owner+1)%nodes, epoch+1
		c.route(r, owner, epoch, addr())
		t.Logf("move %d to n%d: quiet after %s, paused for %s", i+1, owner+1, quiet, time.Since(begin))
	}
	end()
	h.pushers.Wait()
	hasty.Wait()
	eventually(t, "all is popped", func() bool { return h.complete() || h.failed() })
	for i := range workers {
		conn, in := dial(i)
		for _, last := range [][]string{{"RPUSH", "q", "end"}, {"ZADD", "z", "1", fmt.Sprint("end ", i)}, {"XADD", "s", "*", "v", "end"}} {
			if got, err := say(conn, in, last...); err != nil {
				t.Errorf("%s: %s, %v", last, got, err)
			}
		}
	}
	h.all.Wait()
	h.compare(t)
	if nulls.Load() < timed/2 {
		t.Errorf("%d nulls were heard by those who waited for a second", nulls.Load())
	}
	t.Logf("%d nulls were heard by those who waited for a second", nulls.Load())

	conn, in := dial(0)
	done, err := say(conn, in, "LRANGE", "done", "0", "-1")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range strings.Fields(done) {
		if e != "end" {
			moved.pushed(e)
		}
	}
	moved.compare(t)
	pending, err := say(conn, in, "XPENDING", "s", "g", "-", "+", "1000000")
	if err != nil {
		t.Fatal(err)
	}
	for i, word := range strings.Fields(pending) {
		if i%4 == 0 { // then come whose it is, for how long, and how often
			read.pushed(word)
		}
	}
	read.compare(t)
}
