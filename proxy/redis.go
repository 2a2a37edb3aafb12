package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// redisFramer follows one client of a Redis or Valkey server: which of its commands
// have no reply yet, whether a transaction is open, and what another connection has
// to be told before it can stand in for this one.
type redisFramer struct {
	in  respScanner
	out respScanner

	// The command that is being read.
	args   [][]byte
	keep   bool // its arguments matter
	large  bool // one of them was too long to keep
	size   int  // of those that are kept
	waiter bool // it may wait at the server
	inline []byte

	waiting respQueue
	inTx    bool     // after MULTI, up to EXEC or DISCARD
	tx      *redisTx // that the server has begun; nil: none
	watch   bool     // after WATCH, up to EXEC, DISCARD or UNWATCH: its promise is the server's
	pin     string
	setup   []redisSetup // in the order in which they have to be repeated

	// Whether the server has loaded its data, which one that wants a password tells only those who have logged in.
	loaded  bool // it has
	login   bool // that is not known, and the client's first login has no answer yet
	unasked bool // nor is it known since that was answered

	// What a client waits for: see redis_wait.go.
	id     string     // by which the server knows the session, or what is known of that
	parts  bool       // the server takes parts of a second
	asking bool       // the last command was ASKING, which is about the next one
	wait   *redisWait // that has no reply yet; whatever was said before it has. nil: none that could be repeated
	again  *redisWait // that was ended, and is to be sent again; nil: none
	asked  redisAsked // to end a wait, on this connection
	lost   bool       // on this connection, an answer to that
	why    string     // the server does not

	passes    []byte // what of the last reply is for the client
	hides     hiding // of the reply that is being read
	held      []byte // of it, of which it is not known yet whether it is the client's
	said      []byte // of it, to the gate
	undecided bool   // null is the answer to wait, or to having been asked
	null      []byte // also the one that ended again
	rest      []byte // that the server said behind it, unasked
}

// redisSetup is a command that changed the session and would have to be repeated on
// another connection. A later one of the same key takes its place.
type redisSetup struct {
	key  string
	args [][]byte
}

// redisTx is a transaction as the server has told of it: what it has only queued changes the
// session when EXEC is answered, each command for itself, or never.
type redisTx struct {
	queued int
	setups []redisQueued
	size   int
	said   []byte // the beginning of a reply that is no aggregate
	items  int    // of the array that is being read
	// doubted: what was to end it was refused. Any other answer than that a command is queued
	// says that it is over.
	doubted bool
}

type redisQueued struct {
	redisSetup
	at     int // its place in EXEC's answer
	failed bool
}

const (
	maxArgs     = 12
	maxArgument = 1 << 10 // of those that are kept
)

func newRedisFramer() *redisFramer {
	f := &redisFramer{}
	f.in.element = f.argument
	return f
}

// argument keeps the name of a command, and the arguments of one that matters.
func (f *redisFramer) argument(at int, piece []byte, first, last bool) {
	if at > 0 && !f.keep {
		return
	}
	mostArgs, most := maxArgs, maxArgument
	if f.waiter {
		mostArgs, most = maxWaitArgs, maxWaitSize
	}
	if at >= mostArgs {
		f.large = true
		return
	}
	if first {
		f.args = append(f.args, make([]byte, 0, len(piece)+8))
	}
	if at >= len(f.args) {
		return
	}
	if f.size += len(piece); len(f.args[at])+len(piece) > most || f.waiter && f.size > most {
		f.large = true
		return
	}
	f.args[at] = append(f.args[at], piece...)
	if last && at == 0 {
		effect := redisCommands[commandName(f.args)]
		f.keep, f.waiter = effect != plain, effect == blocks || effect == xread
	}
}

func commandName(args [][]byte) string {
	if len(args) == 0 {
		return ""
	}
	return strings.ToUpper(string(args[0]))
}

// request implements framer.
func (f *redisFramer) request(p []byte) (n int, err error) {
	if f.in.between() && (len(f.inline) > 0 || p[0] != '*') {
		return f.inlineRequest(p)
	}
	if f.in.between() {
		f.args, f.keep, f.large, f.size, f.waiter = f.args[:0], false, false, 0, false
	}
	n, end, err := f.in.scan(p)
	if err != nil {
		f.pin = err.Error()
	}
	if end {
		f.sent()
	}
	return n, err
}

// between implements framer.
func (f *redisFramer) between() bool { return f.in.between() && len(f.inline) == 0 }

// inlineRequest reads a command that somebody types: words on a line.
func (f *redisFramer) inlineRequest(p []byte) (n int, err error) {
	i := bytes.IndexByte(p, '\n')
	if i < 0 {
		f.inline = append(f.inline, p...)
		if len(f.inline) > maxHeader {
			err = fmt.Errorf("%w: a line of more than %d bytes", errRESP, maxHeader)
			f.pin = err.Error()
		}
		return len(p), err
	}
	f.inline = append(f.inline, p[:i+1]...)
	// The server takes quotes off, and ends the line at a byte that is zero: such words are not known here.
	f.args, f.large = redisWords(f.inline), bytes.ContainsAny(f.inline, "\"'\x00")
	if len(f.args) > 0 { // an empty line gets no reply
		effect := redisCommands[commandName(f.args)]
		if len(f.args) > maxArgs && effect != plain && effect != blocks && effect != xread {
			f.large = true
		}
		if f.large && effect == plain && bytes.ContainsAny(f.args[0], "\"'\x00") {
			f.pin = "a command whose name is in quotes"
		}
		for i, a := range f.args {
			f.args[i] = bytes.Clone(a)
		}
		f.sent()
	}
	f.inline = f.inline[:0]
	return i + 1, nil
}

type redisEffect int

const (
	plain redisEffect = iota
	repeats
	begins
	ends
	watches
	unwatches
	resets
	pins
	blocks
	client
	xread
	asks
	asksID // is the gate's own
)

// redisCommands are those that do more to a session than get a reply.
var redisCommands = map[string]redisEffect{
	"HELLO": repeats, "AUTH": repeats, "SELECT": repeats, "READONLY": repeats, "READWRITE": repeats,
	"MULTI": begins, "EXEC": ends, "DISCARD": ends, "WATCH": watches, "UNWATCH": unwatches, "RESET": resets,
	"SUBSCRIBE": pins, "PSUBSCRIBE": pins, "SSUBSCRIBE": pins, "MONITOR": pins, "SYNC": pins, "PSYNC": pins, "REPLCONF": pins,
	"BLPOP": blocks, "BRPOP": blocks, "BRPOPLPUSH": blocks, "BLMOVE": blocks, "BLMPOP": blocks, "BZPOPMIN": blocks, "BZPOPMAX": blocks, "BZMPOP": blocks,
	"WAIT": blocks, "WAITAOF": blocks, "XREAD": xread, "XREADGROUP": xread,
	"CLIENT": client, "ASKING": asks,
}

// sent acts on a whole command.
func (f *redisFramer) sent() {
	if f.pin != "" {
		return
	}
	name := commandName(f.args)
	effect := redisCommands[name]
	key := name
	if effect == client {
		effect, key = f.clientCommand()
	}
	if effect == xread {
		effect = plain
		for _, a := range f.args[1:] {
			if strings.EqualFold(string(a), "BLOCK") {
				effect = blocks
			}
		}
	}
	if effect == repeats && f.large {
		f.pin = name + " with arguments that are too long, or in quotes, to be repeated"
		return
	}
	asking := f.asking
	f.asking = effect == asks
	c := respCommand{effect: effect}
	switch effect {
	case pins:
		f.pin = strings.ToLower(key)
		return
	case begins:
		c.undo = !f.inTx // a MULTI that is refused begins nothing
		f.inTx = true
	case ends:
		c.undo = f.watch // one that ends no transaction leaves the keys watched
		f.inTx, f.watch = false, false
	case asks:
		c.effect = plain
	case blocks:
		if !f.inTx && f.tx == nil && !f.large && !asking && (f.id == idAsked || f.knowsID()) {
			c.wait = waitOf(f.args, time.Now())
			f.wait, f.args = c.wait, nil
		}
	case watches:
		f.watch = true
	case unwatches:
		f.watch = false
	case resets:
		c.undo = f.watch // a server that does not know it leaves the keys watched
		f.inTx, f.watch = false, false
	case repeats:
		if key == "HELLO" && len(f.args) < 2 {
			c.effect = plain
			break
		}
		c.setup = &redisSetup{key: key}
		for _, a := range f.args {
			c.setup.args = append(c.setup.args, bytes.Clone(a))
		}
		f.login = !f.loaded && c.setup.logsIn() && !f.open() && !slices.ContainsFunc(f.setup, redisSetup.logsIn)
	}
	f.waiting.push(c)
	if f.waiting.tooMuch() {
		// A server such as Redis reads on, and keeps all replies, for a client that does not
		// read them. What is kept here for it has an end.
		f.pin = "it has asked more than can be remembered without reading the replies"
		if !f.owed() { // that answer is found by what comes before it
			f.waiting = respQueue{}
		}
	}
}

// clientCommand tells what a CLIENT command does to the session.
func (f *redisFramer) clientCommand() (redisEffect, string) {
	if len(f.args) < 3 {
		return plain, ""
	}
	sub, value := strings.ToUpper(string(f.args[1])), strings.ToUpper(string(f.args[2]))
	switch sub {
	case "SETNAME", "NO-EVICT", "NO-TOUCH":
		return repeats, "CLIENT " + sub
	case "SETINFO":
		return repeats, "CLIENT " + sub + " " + value
	case "REPLY":
		if value != "ON" {
			return pins, "client reply " + value
		}
	case "TRACKING":
		if value != "OFF" {
			return pins, "client tracking"
		}
	}
	return plain, ""
}

// reply implements framer.
func (f *redisFramer) reply(p []byte) error {
	at := len(f.held)
	if at > 0 {
		p, f.held = append(f.held, p...), nil
	}
	f.passes = p[:0]
	for from := 0; from < len(p); {
		if f.pin != "" && !f.owed() {
			f.let(p, from, len(p))
			return nil
		}
		if f.out.between() {
			f.hides, f.said = f.hidden(), f.said[:0]
		}
		n, end, err := f.out.scan(p[at:])
		at += n
		if err != nil {
			f.let(p, from, len(p))
			f.pin = err.Error()
			if f.owed() { // it cannot be found any more
				f.id = idRefused
			}
			return err
		}
		f.read(p, from, at, end)
		if end {
			f.follow()
		}
		if f.undecided {
			f.rest = bytes.Clone(p[at:])
			return nil
		}
		from = at
	}
	return nil
}

// let has p[from:to] be for the client. Where nothing was kept from it, it stays where it is.
func (f *redisFramer) let(p []byte, from, to int) {
	if len(f.passes) == from && cap(f.passes) == cap(p) {
		f.passes = p[:to]
		return
	}
	f.passes = append(f.passes, p[from:to]...)
}

// read acts on p[from:to], which is a reply, or unless end a piece of one.
func (f *redisFramer) read(p []byte, from, to int, end bool) {
	push := f.out.kind == '>' // which answers nothing
	switch {
	case f.hides == nothing || push:
		f.let(p, from, to)
	case f.hides == ours:
		const most = 64
		f.said = append(f.said, p[from:min(to, from+most-min(most, len(f.said)))]...)
	case !end && mayBeNull(p[from:to]):
		f.held = bytes.Clone(p[from:to])
		return
	case end && isNull(p[from:to]):
		f.ended(p[from:to])
		return
	default:
		f.hides = nothing
		f.let(p, from, to)
	}
	if end && !push {
		f.answered(f.out.kind == '-' || f.out.kind == '!')
	}
}

// pass implements waiter.
func (f *redisFramer) pass() []byte { return f.passes }

// follow has the replies within a transaction looked at, and no others.
func (f *redisFramer) follow() {
	tx := f.tx
	if tx == nil {
		f.out.element, f.out.item = nil, nil
		return
	}
	tx.said, tx.items = tx.said[:0], 0
	f.out.element = func(at int, piece []byte, _, _ bool) {
		if at == 0 {
			tx.said = append(tx.said, piece[:min(len(piece), 16-len(tx.said))]...)
		}
	}
	f.out.item = func(kind byte) {
		if i, ok := slices.BinarySearchFunc(tx.setups, tx.items, func(q redisQueued, at int) int { return q.at - at }); ok {
			tx.setups[i].failed = kind == '-' || kind == '!'
		}
		tx.items++
	}
}

// answered acts on the reply to the oldest command that has none.
func (f *redisFramer) answered(refused bool) {
	c, ok := f.waiting.pop()
	if f.login && c.setup != nil && c.setup.logsIn() {
		f.login, f.unasked = false, !refused
	}
	switch {
	case !ok:
		// Such as "max number of clients reached", after which the server hangs up.
		f.pin = "the server said something that nobody had asked for"
	case c.effect == asksID:
		f.told(f.said)
		if f.pin != "" {
			f.waiting = respQueue{}
		}
	case c.wait != nil:
		f.wait, f.why = nil, ""
		if f.asked == has { // which a null answers
			f.asked = f.before()
		}
	case c.effect == begins && refused && c.undo:
		f.inTx = false
	case c.effect == begins && !refused:
		f.tx = &redisTx{}
	case c.effect == ends && f.tx != nil:
		f.executed(c, refused)
	case (c.effect == ends || c.effect == resets) && c.undo && refused:
		f.watch = f.watch || !f.waiting.unwatches() // without a MULTI it ends nothing
	case c.effect == resets && !refused:
		f.setup, f.tx = nil, nil
	case f.tx != nil && f.out.kind == '+' && string(f.tx.said) == "QUEUED":
		f.queue(c.setup)
	case !refused:
		if f.tx != nil && f.tx.doubted {
			f.tx = nil
		}
		if c.setup != nil {
			f.repeat(*c.setup)
		}
	}
}

// queue takes note of a command that the server will do when its transaction is executed.
func (f *redisFramer) queue(s *redisSetup) {
	tx := f.tx
	if s != nil {
		tx.setups = append(tx.setups, redisQueued{redisSetup: *s, at: tx.queued})
		if tx.size += s.size(); tx.size > maxSetups {
			f.pin = "its transaction has more that would have to be repeated than can be remembered"
		}
	}
	tx.queued++
}

// executed acts on the answer to EXEC or DISCARD. Only an array says that anything was done: a
// transaction may have been dropped, or given up because of a watched key or of an error. An EXEC
// or DISCARD with arguments, or that its user may not use, ends nothing: what comes next is queued
// as before. (Servers since 6.2 drop the transaction of such an EXEC, and then say EXECABORT.)
func (f *redisFramer) executed(c respCommand, refused bool) {
	tx := f.tx
	if refused && !redisDropped(string(tx.said)) {
		tx.doubted = true
		if c.undo {
			f.watch = f.watch || !f.waiting.unwatches()
		}
		return
	}
	f.tx = nil
	dropped := refused || strings.IndexByte("+_*", f.out.kind) >= 0 && tx.items == 0
	switch {
	case len(tx.setups) == 0 || dropped:
	case tx.items != tx.queued:
		f.pin = "what became of its transaction is not understood"
	default:
		for _, q := range tx.setups {
			if !q.failed {
				f.repeat(q.redisSetup)
			}
		}
	}
}

// redisDropped says by the beginning of an error to EXEC or DISCARD that there is no transaction
// any more. One that writes was dropped in the third way by replicas before 6.0.
func redisDropped(said string) bool {
	for _, over := range []string{"EXECABORT", "ERR EXEC without", "ERR DISCARD with", "ERR Transaction "} {
		if strings.HasPrefix(said, over[:min(len(over), 16)]) {
			return true
		}
	}
	return false
}

// repeat remembers a command that succeeded, and forgets what it supersedes; a login takes the place of the one
// before it, and so stays before what only those may say who have logged in.
func (f *redisFramer) repeat(s redisSetup) {
	at := -1
	kept := f.setup[:0]
	for _, old := range f.setup {
		switch both := old.logsIn() && s.logsIn(); {
		case both && old.key == "HELLO" && s.key == "AUTH":
			s = old.withLogin(s.args[1:])
		case both:
		case old.key != s.key:
			kept = append(kept, old)
			continue
		case old.logsIn(): // HELLO, and now another version of the protocol
			k := old.index("AUTH")
			s = s.withLogin(old.args[k+1 : k+3])
		default:
			continue
		}
		if at < 0 {
			at = len(kept)
		}
	}
	if at < 0 {
		at = len(kept)
	}
	f.setup = slices.Insert(kept, at, s)
}

// withLogin is a HELLO with the user, who may be left out, and the password of another login.
func (s redisSetup) withLogin(login [][]byte) redisSetup {
	if len(login) == 1 {
		login = [][]byte{[]byte("default"), login[0]}
	}
	args := slices.Clone(s.args)
	if k := s.index("AUTH"); k >= 0 {
		args = slices.Delete(args, k, k+3)
	}
	return redisSetup{s.key, slices.Insert(args, min(2, len(args)), slices.Insert(slices.Clone(login), 0, []byte("AUTH"))...)}
}

// logsIn says that a command has a password.
func (s redisSetup) logsIn() bool {
	return s.key == "AUTH" || s.key == "HELLO" && s.index("AUTH") >= 0
}

// index is where a HELLO that was accepted has an option, `AUTH user password` or `SETNAME name`; -1: nowhere.
func (s redisSetup) index(option string) int {
	for i := 2; i < len(s.args); i += 2 {
		switch word := strings.ToUpper(string(s.args[i])); {
		case word == option:
			return i
		case word == "AUTH":
			i++
		}
	}
	return -1
}

// open implements framer: what comes within a transaction is let through, or it would
// never end.
func (f *redisFramer) open() bool { return f.inTx || f.watch || f.tx != nil && f.waiting.empty() }

// pinned implements framer.
func (f *redisFramer) pinned() string { return f.pin }

// busy implements framer.
func (f *redisFramer) busy() string {
	switch {
	case f.pin != "":
		return f.pin
	case f.inTx || f.tx != nil && f.waiting.empty():
		return "a transaction is open"
	case f.watch:
		return "keys are watched"
	case f.waiting.blocking():
		if f.why != "" {
			return "a blocking command waits, and the server does not end that: " + f.why
		}
		return "a blocking command waits"
	case !f.waiting.empty():
		return fmt.Sprintf("%d commands have no reply yet", f.waiting.len())
	case !f.between():
		return "a command is half sent"
	}
	return ""
}

// replay implements framer.
func (f *redisFramer) replay(backend io.ReadWriter) error {
	setup := f.setup
	f.loaded = false
	if k := slices.IndexFunc(setup, redisSetup.logsIn); k >= 0 {
		setup = slices.Insert(slices.Clone(setup), k+1, redisSetup{"PING", redisPing})
	}
	all, loads := setup, false
	ids := f.id != idUnknown
	if ids {
		all = append(slices.Clone(all), redisSetup{"CLIENT ID", redisID})
	}
	// A server that has yet to know HELLO takes no fractions of a second.
	f.parts = false
	hello := f.again != nil && f.again.seconds()
	if hello {
		all = append(slices.Clone(all), redisSetup{"HELLO", [][]byte{[]byte("HELLO")}})
	}
	if len(all) == 0 {
		return nil
	}
	var out []byte
	for _, s := range all {
		out = appendCommand(out, s.args)
	}
	if _, err := backend.Write(out); err != nil {
		return fmt.Errorf("repeating how the session was set up: %w", err)
	}
	replies := newReplies(backend)
	for i, s := range all {
		text, err := replies.next()
		if err != nil {
			return fmt.Errorf("repeating %s: %w", s.key, err)
		}
		switch {
		case i < len(setup) && s.key == "PING":
			loads = strings.HasPrefix(text, "LOADING")
			f.loaded = !loads // a user who may not ask hears that first; nothing better is to be had of that one
			continue
		case i < len(setup):
		case ids && i == len(setup):
			switch f.id = idRefused; {
			case text == "" && len(replies.said) == 1:
				f.id = replies.said[0]
			case strings.HasPrefix(text, "NOAUTH"): // it may be asked when the client has logged in
				f.id = idUnknown
			}
			continue
		default:
			f.parts = !strings.HasPrefix(text, "ERR unknown command")
			continue
		}
		if text != "" {
			return fmt.Errorf("repeating %s: the server answered: %s", s.key, text)
		}
	}
	if loads {
		return errors.Join(errNotReady, outlastLoading(backend, replies))
	}
	return replies.rest()
}

// outlastLoading asks a server until it has loaded its data, on one connection: many clients may wait for that. The
// connection ends when there is no time left.
func outlastLoading(backend io.Writer, replies *replies) error {
	const most = 100 * time.Millisecond
	for every := 5 * time.Millisecond; ; every = min(2*every, most) {
		time.Sleep(every)
		if _, err := backend.Write(appendCommand(nil, redisPing)); err != nil {
			return err
		}
		if text, err := replies.next(); err != nil || !strings.HasPrefix(text, "LOADING") {
			return err
		}
	}
}

// refusal implements framer.
func (f *redisFramer) refusal(why string) []byte {
	return []byte("-TRYAGAIN " + strings.ReplaceAll(why, "\n", " ") + "\r\n")
}

func appendCommand(out []byte, args [][]byte) []byte {
	out = fmt.Appendf(out, "*%d\r\n", len(args))
	for _, a := range args {
		out = fmt.Appendf(out, "$%d\r\n", len(a))
		out = append(append(out, a...), "\r\n"...)
	}
	return out
}

// replies reads replies one after the other.
type replies struct {
	from io.Reader
	scan respScanner
	buf  [4096]byte
	left []byte
	bad  []byte
	said []string // the strings of the last one, of which not all are kept
}

func newReplies(from io.Reader) *replies {
	r := &replies{from: from}
	r.scan.element = func(at int, piece []byte, first, _ bool) {
		if at == 0 && r.scan.kind == '-' || r.scan.kind == '!' {
			r.bad = append(r.bad, piece...)
		}
		const most, long = 4, 200
		if first && len(r.said) < most {
			r.said = append(r.said, "")
		}
		if last := len(r.said) - 1; at == last {
			r.said[last] += string(piece[:min(len(piece), long-min(long, len(r.said[last])))])
		}
	}
	return r
}

// next reads one reply; text is that of an error.
func (r *replies) next() (text string, err error) {
	r.bad, r.said = r.bad[:0], nil
	for {
		for len(r.left) > 0 {
			n, end, err := r.scan.scan(r.left)
			r.left = r.left[n:]
			if err != nil {
				return "", err
			}
			if end && r.scan.kind != '>' {
				return string(r.bad), nil
			}
		}
		n, err := r.from.Read(r.buf[:])
		if err != nil {
			return "", err
		}
		r.left = r.buf[:n]
	}
}

func (r *replies) rest() error {
	if len(r.left) > 0 {
		return errors.New("the server said more than it was asked")
	}
	return nil
}

// respCommand is one that has no reply yet.
type respCommand struct {
	effect redisEffect
	setup  *redisSetup
	undo   bool       // if it is refused, what it seemed to change stays
	wait   *redisWait // what is known of its wait; nil: nothing that would help
}

// respQueue holds commands in the order of their replies. Runs of plain ones, which is
// what a pipeline of a million has, take the room of one.
type respQueue struct {
	runs   []respRun
	n      int
	setups int // bytes of those that change the session
}

type respRun struct {
	respCommand
	n int
}

func (q *respQueue) push(c respCommand) {
	q.n++
	q.setups += c.setup.size()
	if last := len(q.runs) - 1; last >= 0 && q.runs[last].respCommand == c && c.setup == nil && c.wait == nil {
		q.runs[last].n++
		return
	}
	q.runs = append(q.runs, respRun{c, 1})
}

func (q *respQueue) pop() (respCommand, bool) {
	if q.n == 0 {
		return respCommand{}, false
	}
	q.n--
	c := q.runs[0].respCommand
	q.setups -= c.setup.size()
	if q.runs[0].n--; q.runs[0].n == 0 {
		q.runs = without(q.runs)
	}
	return c, true
}

// without takes the first of a queue off it. The place of the last one is used again.
func without[T any](queue []T) []T {
	clear(queue[:1])
	if len(queue) == 1 {
		return queue[:0]
	}
	return queue[1:]
}

const (
	maxRuns   = 1 << 18 // some megabytes
	maxSetups = 4 << 20 // bytes
)

// tooMuch says that a session is no longer worth what the queue costs.
func (q *respQueue) tooMuch() bool { return len(q.runs) > maxRuns || q.setups > maxSetups }

// size is about what it costs to keep.
func (s *redisSetup) size() (n int) {
	if s == nil {
		return 0
	}
	n = 100
	for _, a := range s.args {
		n += 40 + len(a)
	}
	return n
}

func (q *respQueue) empty() bool { return q.n == 0 }
func (q *respQueue) len() int    { return q.n }

// blocking says that the reply that comes next may be a long time off.
func (q *respQueue) blocking() bool { return q.n > 0 && q.runs[0].effect == blocks }

// unwatches says that a command waits which may end that keys are watched, by whose answer that
// is to be told now: it was asked when they seemed not to be watched any more.
func (q *respQueue) unwatches() bool {
	for i := range q.runs {
		switch r := &q.runs[i]; r.effect {
		case unwatches:
			return true
		case ends, resets:
			if !r.undo && r.n > 1 { // the first of them only
				r.n--
				first := r.respCommand
				q.runs = slices.Insert(q.runs, i, respRun{first, 1})
			}
			q.runs[i].undo = true
			return true
		}
	}
	return false
}

var redisPing = [][]byte{[]byte("PING")}

// probeRedis asks a server whether it is ready. One that wants a password first is taken for it: whether it has
// loaded its data is asked when somebody has logged in.
func probeRedis(conn io.ReadWriter) error {
	if _, err := conn.Write(appendCommand(nil, redisPing)); err != nil {
		return err
	}
	text, err := newReplies(conn).next()
	if err == nil && text != "" && !strings.HasPrefix(text, "NOAUTH") && !strings.HasPrefix(text, "NOPERM") {
		err = errors.New(text)
	}
	return err
}
