package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// redisWait is a command by which a client waits at the server, perhaps for longer than a pause
// may take. All of it is known: a server that ends it without having given anything away can be
// asked again for what is left of its time.
type redisWait struct {
	args  [][]byte
	at    int       // which of them says for how long
	milli bool      // in milliseconds, and not in seconds
	ends  time.Time // zero: never
}

const (
	maxWaitArgs = 4096
	maxWaitSize = 64 << 10
	// leastWait is the shortest time that is asked for. Some servers round, and take nothing for
	// for ever; and what has so little left when a null arrives has come to its end by itself.
	leastWait = 10 * time.Millisecond
)

// waitOf keeps args. It returns nil for a command that would not answer, asked again, as it would have: it is
// about what comes after it was asked first, or it is not understood.
func waitOf(args [][]byte, now time.Time) *redisWait {
	w := &redisWait{at: len(args) - 1}
	switch name := commandName(args); name {
	case "BLPOP", "BRPOP", "BZPOPMIN", "BZPOPMAX", "BLMOVE", "BRPOPLPUSH":
	case "BLMPOP", "BZMPOP":
		w.at = 1
	case "XREAD", "XREADGROUP":
		w.milli, w.at = true, streamsBlock(args)
	default:
		return nil
	}
	if w.at < 1 || len(args) < 3 {
		return nil
	}
	d, ok := waitTime(string(args[w.at]), w.milli)
	if !ok {
		return nil
	}
	if d > 0 {
		w.ends = now.Add(d)
	}
	w.args = args
	return w
}

// streamsBlock says where an XREAD or XREADGROUP has its time; 0: it has none, is not
// understood, or asks for what comes from now on.
func streamsBlock(args [][]byte) (at int) {
	for i := 1; i < len(args); i++ {
		switch strings.ToUpper(string(args[i])) {
		case "COUNT":
			i++
		case "BLOCK":
			i++
			at = i
		case "GROUP":
			i += 2
		case "NOACK":
		case "STREAMS":
			now := slices.ContainsFunc(args[i:], func(a []byte) bool { return string(a) == "$" || string(a) == "+" })
			if now || at >= i {
				return 0
			}
			return at
		default:
			return 0
		}
	}
	return 0
}

// waitTime reads how long a command wants to wait, written as people write it.
func waitTime(text string, milli bool) (time.Duration, bool) {
	const most = 15 // letters
	digits := strings.Replace(text, ".", "", 1)
	if milli {
		digits = text
	}
	if digits == "" || len(text) > most || strings.Trim(digits, "0123456789") != "" {
		return 0, false
	}
	unit := time.Second
	if milli {
		unit = time.Millisecond
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || n > float64(math.MaxInt64/2/unit) {
		return 0, false
	}
	if d := time.Duration(n * float64(unit)); d > 0 || n == 0 {
		return d, true
	}
	return 1, true
}

// left is what is left of its time, and more if that is for ever.
func (w *redisWait) left(now time.Time) time.Duration {
	if w.ends.IsZero() {
		return math.MaxInt64
	}
	return max(0, w.ends.Sub(now))
}

// seconds says that its time is in whole seconds, and not for ever: there are servers that take no others.
func (w *redisWait) seconds() bool {
	return !w.milli && !w.ends.IsZero() && !bytes.ContainsRune(w.args[w.at], '.')
}

// with is the command with another time.
func (w *redisWait) with(text string) [][]byte {
	args := slices.Clone(w.args)
	args[w.at] = []byte(text)
	return args
}

// again is the command with what is left of its time, rounded up, to whole seconds if the server takes no
// others: it does not end before its time.
func (w *redisWait) again(now time.Time, whole bool) [][]byte {
	if w.ends.IsZero() {
		return w.args
	}
	unit, left := time.Millisecond, max(w.left(now), leastWait)
	if whole && w.seconds() {
		unit = time.Second
	}
	n := int64((left + unit - 1) / unit)
	switch {
	case w.milli || unit == time.Second:
		return w.with(strconv.FormatInt(n, 10))
	default:
		return w.with(fmt.Sprintf("%d.%03d", n/1000, n%1000))
	}
}

// redisAsked says whether the server has ended the client's wait because it was asked to.
type redisAsked int

const (
	notAsked redisAsked = iota
	beingAsked
	mayHave // its answer was lost
	has
)

// wants implements waiter. The server knows a session by a number, which it cannot be asked for any more
// when it keeps the session waiting. It is asked before the first command that may wait; in a
// transaction, where nothing waits, it would not answer, and ASKING would be about the question.
func (f *redisFramer) wants(p []byte) bool {
	if f.id != idUnknown || f.inTx || f.tx != nil || f.asking || f.pin != "" {
		return false
	}
	switch name := firstWord(p); len(name) {
	case 5, 6, 8, 10: // those that waitOf knows
		effect := redisCommands[strings.ToUpper(string(name))]
		return effect == blocks || effect == xread
	}
	return false
}

// firstWord is the name of the command that p begins with, if all of it is there.
func firstWord(p []byte) []byte {
	if len(p) == 0 || p[0] != '*' {
		line, _, whole := bytes.Cut(p, []byte("\n"))
		if word := redisWords(line); whole && len(word) > 0 {
			return word[0]
		}
		return nil
	}
	_, p, ok := bytes.Cut(p[:min(len(p), 64)], []byte("\n"))
	if !ok || len(p) == 0 || p[0] != '$' {
		return nil
	}
	length, p, _ := bytes.Cut(p, []byte("\n"))
	n, err := strconv.Atoi(string(bytes.TrimSuffix(length[1:], []byte("\r"))))
	if err != nil || n < 0 || n > len(p) {
		return nil
	}
	return p[:n]
}

// redisWords are those of a line, where a server parts it.
func redisWords(line []byte) [][]byte {
	return bytes.FieldsFunc(line, func(r rune) bool { return r == ' ' || '\t' <= r && r <= '\r' })
}

// What is known of the number by which the server knows the session; or it is that.
const (
	idUnknown = ""
	idAsked   = "asked"
	idRefused = "refused"
)

var redisID = [][]byte{[]byte("CLIENT"), []byte("ID")}

// ask implements waiter.
func (f *redisFramer) ask() []byte {
	f.id = idAsked
	f.waiting.push(respCommand{effect: asksID})
	return appendCommand(nil, redisID)
}

// told takes the server's answer to ask.
func (f *redisFramer) told(said []byte) {
	number := strings.TrimSpace(strings.TrimPrefix(string(said), ":"))
	switch _, err := strconv.ParseInt(number, 10, 64); {
	case err == nil && said[0] == ':':
		f.id = number
		return
	case bytes.HasPrefix(said, []byte("-NOAUTH")): // nor has it done what comes next
		f.id = idUnknown
	default:
		f.id = idRefused
	}
	f.wait = nil
}

func (f *redisFramer) knowsID() bool {
	return f.id != idUnknown && f.id != idAsked && f.id != idRefused
}

// behind implements waiter: a server does nothing for a client that waits, and what came with its words could not
// be done in their order any more if it were there already when the wait is ended. Nor shall the end of a wait be
// asked for and find another command. And what comes behind a login may be for a server that has yet to load.
func (f *redisFramer) behind() bool {
	return f.pin == "" && (f.wait != nil || f.again != nil || f.asked == beingAsked || f.login || f.unasked)
}

// loggingIn implements waiter.
func (f *redisFramer) loggingIn() bool { return f.login || f.unasked }

// owed implements waiter.
func (f *redisFramer) owed() bool { return f.id == idAsked }

// pending implements waiter.
func (f *redisFramer) pending() bool { return f.pin == "" && f.again != nil }

// resend implements waiter.
func (f *redisFramer) resend(now time.Time) []byte {
	w := f.again
	f.again, f.wait = nil, w
	f.waiting.push(respCommand{effect: blocks, wait: w})
	return appendCommand(nil, w.again(now, !f.parts))
}

// forced implements waiter.
func (f *redisFramer) forced() (null []byte, ends time.Time) { return f.null, f.again.ends }

// forget implements waiter.
func (f *redisFramer) forget() { f.again, f.null = nil, nil }

// attached implements waiter: what another connection was asked is of no interest.
func (f *redisFramer) attached(loaded bool) bool {
	f.asked, f.lost, f.why = notAsked, false, ""
	f.loaded = f.loaded || loaded
	return f.loaded
}

// doubts implements waiter.
func (f *redisFramer) doubts() bool {
	doubts := f.unasked && f.pin == ""
	f.unasked = false
	return doubts
}

// unblock implements waiter.
func (f *redisFramer) unblock() ender {
	switch {
	case f.pin != "" || f.wait == nil || f.waiting.len() != 1 || !f.knowsID():
	case f.inTx || f.tx != nil || f.watch || !f.between() || !f.out.between():
	case f.asked == has: // and the null is on its way
	default:
		f.asked = beingAsked
		e := &redisEnder{id: f.id, wait: f.wait}
		for _, s := range f.setup {
			if s.key == "AUTH" || s.key == "HELLO" {
				e.login = append(e.login, s)
			}
		}
		return e
	}
	return nil
}

// waits implements waiter.
func (f *redisFramer) waits() bool { return f.pin == "" && f.wait != nil && !f.undecided }

// unclear implements waiter.
func (f *redisFramer) unclear() bool { return f.undecided }

// decide implements waiter.
func (f *redisFramer) decide(forced, perhaps bool, err error) {
	f.lost = f.lost || perhaps
	f.asked, f.why = f.before(), ""
	if forced {
		f.asked = has
	}
	var refused *redisRefusal
	if errors.As(err, &refused) {
		f.why = refused.text
	}
	if f.undecided {
		f.undecided = false
		f.ended(f.null)
		if before, rest := f.passes, f.rest; len(rest) > 0 {
			f.rest = nil
			if err := f.reply(rest); err != nil {
				f.pin = err.Error()
			}
			f.passes = slices.Concat(before, f.passes)
		}
	}
}

// before is what is known while nothing is asked: the server may yet come to a question whose answer
// was lost.
func (f *redisFramer) before() redisAsked {
	if f.lost {
		return mayHave
	}
	return notAsked
}

// hidden says what becomes of the reply that begins now.
func (f *redisFramer) hidden() hiding {
	switch {
	case f.waiting.n == 0:
	case f.waiting.runs[0].effect == asksID:
		return ours
	case f.wait != nil && f.waiting.runs[0].wait == f.wait && f.asked != notAsked:
		return nulls
	}
	return nothing
}

// hiding is what the client does not get to see.
type hiding int

const (
	nothing hiding = iota
	ours           // the answer to a question of the gate's
	nulls          // that to a command whose wait the server may have been made to end
)

var respNulls = []string{"*-1\r\n", "$-1\r\n", "_\r\n"}

func isNull(p []byte) bool { return slices.Contains(respNulls, string(p)) }

func mayBeNull(p []byte) bool {
	return slices.ContainsFunc(respNulls, func(null string) bool { return strings.HasPrefix(null, string(p)) })
}

// ended acts on a null, which says that nothing was given away. It is the client's if its time is over,
// or if nobody but others can have asked for it.
func (f *redisFramer) ended(null []byte) {
	w := f.wait
	if f.asked == beingAsked {
		f.undecided, f.null = true, bytes.Clone(null)
		return
	}
	if f.asked == has || f.asked == mayHave && w.left(time.Now()) > leastWait {
		f.waiting.pop()
		f.wait, f.again, f.asked, f.null = nil, w, f.before(), bytes.Clone(null)
		return
	}
	f.passes = append(f.passes, null...)
	f.answered(false)
}

// redisEnder ends a session's wait, by another connection to its server.
type redisEnder struct {
	id    string
	wait  *redisWait
	login []redisSetup
}

// redisRefusal says that the server does not do such a thing, for this session.
type redisRefusal struct{ text string }

func (e *redisRefusal) Error() string { return "the server answered: " + e.text }

// lasting says that it would be refused again: who the client is and what the server knows stays, that it is busy, full
// or has too many clients does not.
func (e *redisRefusal) lasting() bool {
	return slices.ContainsFunc([]string{"NOPERM", "NOAUTH", "WRONGPASS", "ERR unknown"}, func(s string) bool { return strings.HasPrefix(e.text, s) })
}

// begin implements ender.
func (e *redisEnder) begin(conn io.ReadWriter) error {
	_, err := redisAsk(conn, e.login)
	return err
}

// end implements ender.
//
// Servers older than the middle of 2025 end when they are asked this of a client that they keep because of CLIENT
// PAUSE, and not because of what it said. While writes are paused, a transaction with a command that may write waits as
// well. The client's own does, to which it is known to be admitted; with a time that is none it does nothing.
//
// The rest is said when MULTI has been answered: where it is refused, what comes behind it is done at once.
func (e *redisEnder) end(conn io.ReadWriter) (forced, perhaps bool, err error) {
	said, err := redisAsk(conn, []redisSetup{{"MULTI", [][]byte{[]byte("MULTI")}}})
	if err != nil {
		return false, false, err
	}
	if !slices.Equal(said, []string{"OK"}) {
		return false, false, fmt.Errorf("MULTI was answered with %q", said)
	}
	said, err = redisAsk(conn, []redisSetup{
		{commandName(e.wait.args), e.wait.with("-")},
		{"CLIENT UNBLOCK", [][]byte{[]byte("CLIENT"), []byte("UNBLOCK"), []byte(e.id), []byte("TIMEOUT")}},
		{"EXEC", [][]byte{[]byte("EXEC")}},
	})
	switch {
	case err != nil: // a refusal, of whichever of them, is one of the transaction
		return false, !errors.As(err, new(*redisRefusal)), err
	case len(said) != 2:
		return false, true, fmt.Errorf("EXEC was answered with %q", said)
	case said[1] == "1":
		return true, false, nil
	case said[1] == "0":
		return false, false, nil
	}
	return false, false, &redisRefusal{said[1]}
}

// redisAsk has the server do several things, all of which it has to do, and returns the strings of its last
// reply.
func redisAsk(conn io.ReadWriter, all []redisSetup) ([]string, error) {
	if len(all) == 0 {
		return nil, nil
	}
	var out []byte
	for _, s := range all {
		out = appendCommand(out, s.args)
	}
	if _, err := conn.Write(out); err != nil {
		return nil, err
	}
	replies := newReplies(conn)
	for _, s := range all {
		text, err := replies.next()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.key, err)
		}
		if text != "" {
			return nil, &redisRefusal{text}
		}
	}
	return replies.said, replies.rest()
}
