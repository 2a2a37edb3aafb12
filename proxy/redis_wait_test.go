package proxy

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// What is asked again, with what is left of its time.
func TestRedisWaitAgain(t *testing.T) {
	begin := time.Now()
	for _, c := range []struct {
		say   string
		after time.Duration
		whole bool
		want  string // "": the session stays where it is
	}{
		{"BLPOP a b 0", time.Hour, false, "BLPOP a b 0"},
		{"BLPOP a 0.0", time.Hour, false, "BLPOP a 0.0"},
		{"brpop a 5", 1500 * time.Millisecond, false, "brpop a 3.500"},
		{"BRPOP a 5", 1499900 * time.Microsecond, false, "BRPOP a 3.501"}, // never before its time
		{"BRPOP a 5", 1500 * time.Millisecond, true, "BRPOP a 4"},
		{"BRPOP a 5.5", 1500 * time.Millisecond, true, "BRPOP a 4.000"},
		{"BZPOPMIN z 1.5", 0, false, "BZPOPMIN z 1.500"},
		{"BZPOPMAX z 2", 3 * time.Second, false, "BZPOPMAX z 0.010"}, // nothing left is not for ever
		{"BZPOPMAX z 2", 3 * time.Second, true, "BZPOPMAX z 1"},
		{"BLPOP z 0.0001", 0, false, "BLPOP z 0.010"},
		{"BLMOVE a b LEFT RIGHT 10", time.Second, false, "BLMOVE a b LEFT RIGHT 9.000"},
		{"BRPOPLPUSH a b 10", time.Second, false, "BRPOPLPUSH a b 9.000"},
		{"BLMPOP 10 1 a LEFT", time.Second, false, "BLMPOP 9.000 1 a LEFT"},
		{"BZMPOP 10 1 a MIN COUNT 3", time.Second, false, "BZMPOP 9.000 1 a MIN COUNT 3"},
		{"XREAD BLOCK 1000 STREAMS s 0-1", 300 * time.Millisecond, true, "XREAD BLOCK 700 STREAMS s 0-1"},
		{"XREAD COUNT 2 block 0 STREAMS block 0-1", time.Second, false, "XREAD COUNT 2 block 0 STREAMS block 0-1"},
		{"XREADGROUP GROUP BLOCK c NOACK BLOCK 5 STREAMS s >", time.Second, false, "XREADGROUP GROUP BLOCK c NOACK BLOCK 10 STREAMS s >"},
		{"XREAD BLOCK 0 STREAMS a b 0 $", 0, false, ""},
		{"XREAD BLOCK 0 STREAMS a +", 0, false, ""},
		{"XREAD STREAMS BLOCK 0", 0, false, ""},
		{"XREAD NEW BLOCK 0 STREAMS a 0", 0, false, ""},
		{"XREAD BLOCK", 0, false, ""},
		{"XREAD BLOCK STREAMS a 0", 0, false, ""},
		{"XREAD BLOCK 1.5 STREAMS a 0", 0, false, ""},
		{"BLPOP a -1", 0, false, ""},
		{"BLPOP a 1e3", 0, false, ""},
		{"BLPOP a inf", 0, false, ""},
		{"BLPOP a 99999999999", 0, false, ""},
		{"BLPOP a .", 0, false, ""},
		{"BLPOP 1", 0, false, ""},
		{"BLPOP", 0, false, ""},
		{"WAIT 1 0", 0, false, ""},
	} {
		got := ""
		if w := waitOf(bytes.Fields([]byte(c.say)), begin); w != nil {
			got = string(bytes.Join(w.again(begin.Add(c.after), c.whole), []byte(" ")))
		}
		if got != c.want {
			t.Errorf("%s: after %s it is asked %q, want %q", c.say, c.after, got, c.want)
		}
	}
}

// tellRedis does what a session does: the server is asked for the number first.
func tellRedis(t testing.TB, f *redisFramer, words string) (asked bool) {
	t.Helper()
	p := appendCommand(nil, bytes.Fields([]byte(words)))
	if asked = f.wants(p); asked {
		f.ask()
	}
	for len(p) > 0 && f.pinned() == "" {
		n, err := f.request(p)
		if err != nil {
			t.Fatal(err)
		}
		p = p[n:]
	}
	return asked
}

// says has it take the words of a server.
func (f *redisFramer) says(t testing.TB, words, passes string) {
	t.Helper()
	if err := f.reply([]byte(words)); err != nil || string(f.pass()) != passes {
		t.Errorf("of %q the client hears %q, %v; want %q", words, f.pass(), err, passes)
	}
}

// typed is what a client says on lines, up to where the server has to be asked something first.
func (f *redisFramer) typed(t testing.TB, lines string) (asked bool) {
	t.Helper()
	for p := []byte(lines); len(p) > 0 && f.pinned() == ""; {
		if f.between() && f.wants(p) {
			f.ask()
			asked = true
		}
		n, err := f.request(p)
		if err != nil {
			t.Fatal(err)
		}
		p = p[n:]
	}
	return asked
}

// Words on a line are repeated as the server reads them, or not at all: it takes quotes off them, and parts them at
// no spaces but the plain ones.
func TestRedisWaitOnALine(t *testing.T) {
	for line, want := range map[string]string{
		"BLPOP jobs 0":               "BLPOP|jobs|0",
		"\tBLPOP  jobs\v\f more 0\r": "BLPOP|jobs|more|0",
		"BLPOP a\u00a0b\u3000c 0":    "BLPOP|a\u00a0b\u3000c|0",
		"BLPOP \xff\x85 0":           "BLPOP|\xff\x85|0",
		`BLPOP "my jobs" 0`:          "",
		`BLPOP 'my jobs' 0`:          "",
		`BLPOP my"jobs" 0`:           "",
		"BLPOP a 0 \x00 b 1":         "",
	} {
		f := newRedisFramer()
		f.typed(t, line+"\n")
		f.says(t, ":7\r\n", "")
		got := ""
		if f.unblock() != nil {
			got = string(bytes.Join(f.wait.again(time.Now(), false), []byte("|")))
		}
		if got != want || f.busy() != "a blocking command waits" {
			t.Errorf("%q: it would be sent again as %q, want %q; busy: %s", line, got, want, f.busy())
		}
	}
	for line, want := range map[string]string{
		`AUTH "pass word"`: "AUTH with arguments that are too long, or in quotes, to be repeated",
		`"MULTI"`:          "a command whose name is in quotes",
		`MUL'TI'`:          "a command whose name is in quotes",
		`GET "my key"`:     "",
	} {
		f := newRedisFramer()
		f.typed(t, line+"\r\n")
		if got := f.pinned(); got != want {
			t.Errorf("%s: it is pinned by %q, want %q", line, got, want)
		}
	}
}

// ASKING is about the command that comes next, which is the client's.
func TestRedisNothingBehindAsking(t *testing.T) {
	f := newRedisFramer()
	if tellRedis(t, f, "ASKING"); tellRedis(t, f, "BLPOP q 0") {
		t.Error("the server is asked between ASKING and what that is about")
	}
	f.says(t, "+OK\r\n*-1\r\n", "+OK\r\n*-1\r\n")
	if !tellRedis(t, f, "BLPOP q 0") {
		t.Error("nor is it asked later")
	}
}

// What is remembered of a client that reads no replies has an end also while the gate waits for an answer
// of its own behind them; and then that is still not the client's.
func TestRedisRemembersSoMuchWhileAsking(t *testing.T) {
	f := newRedisFramer()
	for _, words := range []string{"GET large", "XREAD STREAMS s 0"} {
		tellRedis(t, f, words)
	}
	for range 10_000 {
		tellRedis(t, f, "AUTH "+strings.Repeat("x", 1000))
	}
	if n := f.waiting.setups; f.pinned() == "" || n > maxSetups+2000 {
		t.Errorf("%d bytes are remembered; it is pinned by %q", n, f.pinned())
	}
	f.says(t, "$5\r\nlarge\r\n:7", "$5\r\nlarge\r\n")
	f.says(t, "\r\n*-1\r\n:8\r\n", "*-1\r\n:8\r\n")
	if n := f.waiting.len(); f.owed() || n > 0 {
		t.Errorf("the number has come, and %d commands are still remembered", n)
	}
	f.says(t, ":9\r\n", ":9\r\n")

	f = newRedisFramer()
	tellRedis(t, f, "XREAD STREAMS s 0")
	if err := f.reply([]byte("nonsense\r\n")); err == nil || f.owed() {
		t.Errorf("%v, and an answer is still awaited in what is not understood", err)
	}
}

// blockedFramer is one whose client waits, by the number 7.
func blockedFramer(t testing.TB, words string) *redisFramer {
	t.Helper()
	f := newRedisFramer()
	tellRedis(t, f, words)
	f.says(t, ":7\r\n", "")
	return f
}

// What the server says behind a null, unasked, comes behind it, whosever the null is.
func TestRedisBehindANull(t *testing.T) {
	const push = ">2\r\n+news\r\n+x\r\n"
	for forced, want := range map[bool]string{true: push + push, false: push + "*-1\r\n" + push} {
		f := blockedFramer(t, "BLPOP q 0")
		f.unblock()
		f.says(t, push+"*-1\r\n"+push, push)
		if !f.unclear() || f.waits() || !f.behind() {
			t.Error("whose the null is seems to be known")
		}
		passed := string(f.pass())
		f.decide(forced, false, nil)
		if got := string(f.pass()); got != want || f.pending() != forced {
			t.Errorf("forced %t: after %q the client hears %q, want %q", forced, passed, got, want)
		}
	}
}

// While it is being asked for the end of a wait, the server hears nothing from the client, which might wait again.
func TestRedisNothingBehindTheQuestion(t *testing.T) {
	f := blockedFramer(t, "BLPOP q 0")
	f.unblock()
	f.says(t, "*2\r\n+q\r\n+v\r\n", "*2\r\n+q\r\n+v\r\n")
	if f.waits() || !f.behind() {
		t.Error("the client may speak before the end of the question")
	}
	f.decide(false, false, nil)
	if f.behind() {
		t.Error("the client may not speak after it")
	}
}

// What another connection was asked is of no interest: a null on this one is the client's.
func TestRedisForgetsTheLastConnection(t *testing.T) {
	f := blockedFramer(t, "BLPOP q 0")
	f.unblock()
	f.decide(false, true, errors.New("lost"))
	f.says(t, "*-1\r\n", "")
	f.attached(false)
	f.resend(time.Now())
	f.says(t, "*-1\r\n", "*-1\r\n")
	if f.pending() || f.behind() {
		t.Error("it would wait once more")
	}

	// Nor does that its answer was lost count for what is asked here.
	tellRedis(t, f, "BLPOP q 0")
	f.unblock()
	f.decide(false, false, nil)
	f.says(t, "*-1\r\n", "*-1\r\n")
}

// answersBy is a server that has heard nothing and says this.
type answersBy struct {
	*strings.Reader
	heard strings.Builder
}

func (a *answersBy) Write(p []byte) (int, error) { return a.heard.Write(p) }

// What is known of a server: its number for the session, and whether it takes parts of a second.
func TestRedisReplayAsks(t *testing.T) {
	for says, want := range map[string]struct{ id, again string }{
		":9\r\n%1\r\n+server\r\n+redis\r\n":                  {"9", "BLPOP q 1.500"},
		":9\r\n-NOAUTH\r\n":                                  {"9", "BLPOP q 1.500"},
		":9\r\n-ERR unknown command `HELLO`\r\n":             {"9", "BLPOP q 2"},
		"-ERR unknown subcommand\r\n%1\r\n+server\r\n+x\r\n": {idRefused, "BLPOP q 1.500"},
		"-NOAUTH no\r\n-NOAUTH no\r\n":                       {idUnknown, "BLPOP q 1.500"},
	} {
		f, begin := ended(t)
		if err := f.replay(&answersBy{Reader: strings.NewReader(says)}); err != nil {
			t.Fatalf("%q: %v", says, err)
		}
		got := resent(f, begin.Add(500*time.Millisecond))
		if f.id != want.id || got != want.again {
			t.Errorf("%q: its number is %q, want %q; it asks %q, want %q", says, f.id, want.id, got, want.again)
		}
	}
}

// What is repeated of several logins and versions of the protocol is the last of each, and the login comes before what
// only those may say who have logged in.
func TestRedisRepeats(t *testing.T) {
	for said, want := range map[string]string{
		"AUTH a|SELECT 1|AUTH b":                                  "AUTH b|SELECT 1",
		"SELECT 1|AUTH u a|READONLY":                              "SELECT 1|AUTH u a|READONLY",
		"AUTH a|SELECT 1|HELLO 3 AUTH u b":                        "HELLO 3 AUTH u b|SELECT 1",
		"AUTH a|HELLO 3|SELECT 1|AUTH u b":                        "AUTH u b|HELLO 3|SELECT 1",
		"AUTH a|SELECT 1|HELLO 3|HELLO 2 AUTH u b SETNAME AUTH":   "HELLO 2 AUTH u b SETNAME AUTH|SELECT 1",
		"HELLO 3 AUTH u a|SELECT 1|AUTH b":                        "HELLO 3 AUTH default b|SELECT 1",
		"HELLO 3 SETNAME AUTH auth u a|SELECT 1|AUTH v b":         "HELLO 3 AUTH v b SETNAME AUTH|SELECT 1",
		"HELLO 3 AUTH u a|SELECT 1|HELLO 2":                       "HELLO 2 AUTH u a|SELECT 1",
		"HELLO 3|AUTH a|HELLO 2 SETNAME AUTH|SELECT 1|SELECT 2":   "AUTH a|HELLO 2 SETNAME AUTH|SELECT 2",
		"HELLO 3 AUTH u a|HELLO 2|AUTH b|SELECT 3|AUTH c|HELLO 3": "HELLO 3 AUTH default c|SELECT 3",
	} {
		f := newRedisFramer()
		for _, line := range strings.Split(said, "|") {
			args := redisWords([]byte(line))
			f.repeat(redisSetup{string(args[0]), args})
		}
		var got []string
		for _, s := range f.setup {
			got = append(got, string(bytes.Join(s.args, []byte(" "))))
		}
		if got := strings.Join(got, "|"); got != want {
			t.Errorf("%s: %s is repeated, want %s", said, got, want)
		}
	}
}

// One that wants a password is not known to load before somebody has logged in: it is asked until it has, or has
// ended, and then it was not ready for what the client may have given up meanwhile.
func TestRedisReplayWhileLoading(t *testing.T) {
	word := func(all ...string) (args [][]byte) {
		for _, a := range all {
			args = append(args, []byte(a))
		}
		return args
	}
	for _, c := range []struct {
		says  string
		setup []redisSetup
		heard string
		err   error
	}{
		{"+OK\r\n+PONG\r\n+OK\r\n", []redisSetup{{"AUTH", word("AUTH", "secret")}, {"SELECT", word("SELECT", "1")}}, "AUTH PING SELECT", nil},
		{"+OK\r\n-LOADING Redis is loading the dataset in memory\r\n+OK\r\n-LOADING still\r\n+PONG\r\n", []redisSetup{{"AUTH", word("AUTH", "secret")}, {"SELECT", word("SELECT", "1")}}, "AUTH PING SELECT PING PING", errNotReady},
		{"%1\r\n+server\r\n+redis\r\n-LOADING yes\r\n", []redisSetup{{"HELLO", word("HELLO", "3", "AUTH", "default", "secret")}}, "HELLO PING PING", errNotReady},
		{"+OK\r\n-NOPERM this user has no permissions to run the 'ping' command\r\n", []redisSetup{{"AUTH", word("AUTH", "who", "secret")}}, "AUTH PING", nil},
		{"+OK\r\n", []redisSetup{{"SELECT", word("SELECT", "1")}}, "SELECT", nil},
	} {
		f := &redisFramer{setup: c.setup}
		server := &answersBy{Reader: strings.NewReader(c.says)}
		if err := f.replay(server); !errors.Is(err, c.err) {
			t.Errorf("%q: %v, want %v", c.says, err, c.err)
		}
		var heard []string
		for _, word := range strings.Fields(server.heard.String()) {
			if slices.Contains([]string{"AUTH", "HELLO", "PING", "SELECT"}, word) && (len(heard) == 0 || heard[len(heard)-1] != "HELLO" || word != "AUTH") {
				heard = append(heard, word)
			}
		}
		if got := strings.Join(heard, " "); got != c.heard {
			t.Errorf("%q: it was asked %q, want %q", c.says, got, c.heard)
		}
	}
}

// Of a server that has not been asked, as where a pause was given up, it is not known that it takes parts of a second.
func TestRedisAgainWhereItIs(t *testing.T) {
	f, begin := ended(t)
	if got := resent(f, begin.Add(500*time.Millisecond)); got != "BLPOP q 2" {
		t.Errorf("it is asked %q", got)
	}
}

// ended is one whose wait of two seconds, since begin, was ended.
func ended(t *testing.T) (f *redisFramer, begin time.Time) {
	t.Helper()
	f = blockedFramer(t, "BLPOP q 2")
	begin = f.wait.ends.Add(-2 * time.Second)
	f.unblock()
	f.decide(true, false, nil)
	f.says(t, "*-1\r\n", "")
	return f, begin
}

// resent is what it says for its wait to begin again.
func resent(f *redisFramer, now time.Time) string {
	words := strings.Split(string(f.resend(now)), "\r\n")
	return strings.Join([]string{words[2], words[4], words[6]}, " ")
}

func TestRedisWaitsThatMove(t *testing.T) {
	for say, want := range map[string]bool{
		"BLPOP a 0": true,
		"BLPOP " + strings.Repeat("k ", 500) + "0":         true,
		"BLPOP " + strings.Repeat("k", maxWaitSize) + " 0": false,
		"XREAD BLOCK 0 STREAMS a 0":                        true,
		"XREAD BLOCK 0 STREAMS a $":                        false,
		"WAIT 1 0":                                         false,
		"WATCH k|BLPOP a 0":                                false,
		"ASKING|BLPOP a 0":                                 false,
		"ASKING|GET k|BLPOP a 0":                           true,
		"MULTI|BLPOP a 0":                                  false,
	} {
		f := newRedisFramer()
		for _, words := range strings.Split(say, "|") {
			if tellRedis(t, f, words) {
				if err := f.reply([]byte(":7\r\n")); err != nil || len(f.pass()) > 0 {
					t.Fatalf("%s: %q, %v", say, f.pass(), err)
				}
			}
			if !strings.HasPrefix(words, "BLPOP") && !strings.HasPrefix(words, "XREAD") && words != "WAIT 1 0" {
				if err := f.reply([]byte("+OK\r\n")); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := f.unblock() != nil; got != want {
			t.Errorf("%.40s: its wait can be ended: %t, want %t", say, got, want)
		}
	}
}

// A number that is refused keeps the session where it is, and lets it speak on; one that
// is refused because the client is not logged in is asked for again.
func TestRedisNumberRefused(t *testing.T) {
	f := newRedisFramer()
	if !tellRedis(t, f, "BLPOP a 0") || !f.behind() {
		t.Error("the server is not asked for a number")
	}
	if err := f.reply([]byte("-NOAUTH Authentication required.\r\n-NOAUTH\r\n")); err != nil || string(f.pass()) != "-NOAUTH\r\n" {
		t.Errorf("%q, %v", f.pass(), err)
	}
	if !tellRedis(t, f, "BLPOP a 0") {
		t.Error("the server is not asked again")
	}
	if err := f.reply([]byte("-ERR unknown subcommand\r\n")); err != nil || len(f.pass()) > 0 {
		t.Errorf("%q, %v", f.pass(), err)
	}
	if f.behind() || f.unblock() != nil || f.busy() != "a blocking command waits" {
		t.Errorf("its wait is taken for one that can be ended; %s", f.busy())
	}
}

// When the outcome is lost, a null is the client's if its time is over.
func TestRedisNullInTime(t *testing.T) {
	for _, c := range []struct {
		left time.Duration
		want string
	}{{time.Hour, ""}, {-time.Second, "*-1\r\n"}, {leastWait / 2, "*-1\r\n"}} {
		f := newRedisFramer()
		tellRedis(t, f, "BLPOP a 7200")
		if err := f.reply([]byte(":7\r\n")); err != nil {
			t.Fatal(err)
		}
		f.unblock()
		f.decide(false, true, errors.New("lost"))
		f.wait.ends = time.Now().Add(c.left)
		if err := f.reply([]byte("*-1\r\n")); err != nil || string(f.pass()) != c.want {
			t.Errorf("with %s left the client is told %q, %v", c.left, f.pass(), err)
		}
	}
}

// Whatever is said, waited for, ended, lost and begun again, in whatever pieces: the client hears each
// answer that gives something, once and in order, and no null but those that are its own.
func FuzzRedisWaits(f *testing.F) {
	for _, seed := range []string{"bs.e.", "bs.uk.vm.e.gs.", "bs.ue.kv.", "bs.t.", "bs.ut.kv.bgs.", "bs.ukl.m.e.", "gbs.ulk.m.se.", "pgpbs.uk.vpm.e.", "bs.ukvuk", "bs.ul.ukv.m.e.", "bs.utppk"} {
		f.Add([]byte(seed), uint64(1))
	}
	f.Fuzz(func(t *testing.T, script []byte, seed uint64) {
		random := rand.New(rand.NewPCG(seed, 0))
		session := newRedisFramer()
		var queue, says, heard []byte // of commands; bytes on their way; that the client got
		var want []byte
		asking, processed, forced, lost := false, false, false, false
		element := byte('a')
		say := func(kind byte, words string) {
			if session.behind() {
				return
			}
			if tellRedis(t, session, words) {
				queue = append(queue, 'i')
			}
			queue = append(queue, kind)
		}
		answer := func(text string, theirs bool) {
			says, queue = append(says, text...), queue[1:]
			if theirs {
				want = append(want, text...)
			}
		}
		deliver := func() {
			for len(says) > 0 && !session.unclear() {
				n := 1 + random.IntN(len(says))
				p := bytes.Clone(says[:n])
				says = says[n:]
				if err := session.reply(p); err != nil {
					t.Fatal(err)
				}
				if !session.unclear() {
					heard = append(heard, session.pass()...)
				} else if n := len(session.pass()); n > 0 {
					heard = append(heard, session.pass()...)
					session.passes = session.passes[n:]
				}
			}
		}
		decide := func(perhaps bool) {
			unclear := session.unclear()
			session.decide(forced && !perhaps, perhaps, nil)
			if unclear {
				heard = append(heard, session.pass()...)
			}
			asking = false
			lost = lost || perhaps
		}
		for _, op := range script {
			blocked := len(queue) > 0 && queue[0] == 'b'
			switch {
			case op == 'b':
				say('b', "BLPOP q 0")
			case op == 'g':
				say('g', "GET k")
			case op == 's':
				for len(queue) > 0 && queue[0] != 'b' {
					if queue[0] == 'i' {
						answer(":7\r\n", false)
					} else {
						answer("$2\r\n*-\r\n", true)
					}
				}
			case op == 'e' && blocked:
				answer("*2\r\n$1\r\nq\r\n$1\r\n"+string(element)+"\r\n", true)
				element++
			case op == 't' && blocked:
				answer("*-1\r\n", true)
			case op == 'p':
				says = append(says, ">1\r\n+x\r\n"...)
				want = append(want, ">1\r\n+x\r\n"...)
			case op == 'u' && !asking:
				if asking = session.unblock() != nil; asking {
					processed, forced = false, false
				}
			case op == 'k' && (asking || lost) && !processed:
				processed, forced = true, blocked
				if blocked {
					answer("*-1\r\n", false)
				}
			case op == 'v' && asking && processed:
				decide(false)
			case op == 'l' && asking:
				decide(true)
			case op == 'm' && session.pending() && !asking && len(queue) == 0 && len(says) == 0:
				session.attached(false)
				processed = true // what is asked of the other server
				session.resend(time.Now())
				queue = append(queue, 'b')
			case op == '.':
				deliver()
			}
		}
		deliver()
		if session.unclear() {
			forced = forced && processed
			decide(!processed)
			deliver()
		}
		if session.pinned() != "" {
			t.Fatalf("%q pins: %s", script, session.pinned())
		}
		if lost { // then a null of the client's own may be taken for ended, which loses nothing
			heard, want = bytes.ReplaceAll(heard, []byte("*-1\r\n"), nil), bytes.ReplaceAll(want, []byte("*-1\r\n"), nil)
		}
		if !slices.Equal(heard, want) {
			t.Errorf("after %q the client heard %q, want %q", script, heard, want)
		}
	})
}

// What the server is asked ahead of a command depends on the same name as everything else.
func FuzzRedisFirstWord(f *testing.F) {
	f.Add([]byte("*3\r\n$5\r\nBLPOP\r\n$1\r\nq\r\n$1\r\n0\r\n"))
	f.Add([]byte("*1\n$5\nXREAD"))
	f.Add([]byte("*1\r\n$-5\r\n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		word := firstWord(p)
		if len(word) == 0 || p[0] != '*' {
			return
		}
		var scan respScanner
		var name []byte
		scan.element = func(at int, piece []byte, _, _ bool) {
			if at == 0 {
				name = append(name, piece...)
			}
		}
		for rest := p; len(rest) > 0; {
			n, end, err := scan.scan(rest)
			rest = rest[n:]
			if err != nil {
				return // and the session is pinned
			}
			if end {
				break
			}
		}
		if len(name) > 0 && !bytes.Equal(name, word) {
			t.Errorf("the command %q was taken for %q", name, word)
		}
	})
}
