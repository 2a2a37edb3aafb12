package proxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"unsafe"
)

// pgFramer follows one client of a PostgreSQL server: which of its messages have no
// answer yet, whether a transaction is open, and, by asking the server when a pause
// comes, what another connection has to be told before it can stand in for this one.
type pgFramer struct {
	gate    *postgres
	options *PostgresOptions // as they were when the client came
	in      pgScanner
	out     pgScanner
	mute    bool // the message that the server is sending answers a question of the gate's

	passes []byte // what of the last reply is for the client

	// What has no answer yet, in the order of the answers: see the kinds below.
	waiting  []byte
	parses   []pgUnnamed // those of waiting that prepare the unnamed statement, but the first ones
	kept     int         // bytes of them, with what each takes besides
	emptied  int         // the first ones, of which nothing is kept
	status   byte        // as of the last ReadyForQuery
	unsynced bool        // after a message of the extended protocol, up to Sync
	skipping bool        // the server has refused one of those, and hears nothing before Sync
	copying  bool        // the client sends rows
	trusted  bool        // the server let the client in without asking for anything
	pin      string

	// What the session is made of.
	startup []byte     // the message it began with
	unnamed *pgUnnamed // the unnamed statement
	words   pgWords
	asked   bool // the question that is being answered is still of use
	known   bool // the client has said nothing since state was told
	cancels int  // of the question, since the client said something
	state   pgState

	// What replay and greet use, which is never at the same time as the above.
	client  net.Conn
	through bool              // the server asks the client for its password itself
	keys    *scramKeys        // to log in by, learned from the client; nil: nothing is asked for
	told    map[string]string // parameters, as the client was told last; nil: it is not logged in
	key     string            // by which the client cancels what it asked: see pgCancels
}

// pgUnnamed is a Parse message without a name for its statement.
type pgUnnamed struct {
	body []byte
	long bool // too long to be kept
}

// size is what is kept of it, with what it takes besides its text: many short ones take more
// by that.
func (u *pgUnnamed) size() int { return int(unsafe.Sizeof(*u)) + len(u.body) }

// The kinds of what waits, other than messages of the same kind.
const (
	pgStartup  = 'U' // up to the first ReadyForQuery
	pgQuestion = '?' // of the gate's, up to its ReadyForQuery
	pgUnnamedP = 'p' // a Parse of the unnamed statement
	pgUnnamedC = 'c' // a Close of the unnamed statement
	pgCopyEnd  = 'x' // the end of rows that the server has not asked for yet
)

const (
	pgMaxParameters = 16 << 10  // of one parameter's report
	pgMaxUnnamed    = 256 << 10 // of an unnamed statement that is kept
	pgMaxParses     = 1 << 20   // of all those that wait for the server's word
	pgMaxState      = 4 << 20   // of a session's prepared statements and settings
)

func newPgFramer(gate *postgres) *pgFramer {
	f := &pgFramer{gate: gate, options: gate.options.Load(), status: 'I'}
	f.in = pgScanner{untyped: true, known: "QPBECDHSFXdcfp", keep: f.keepRequest, text: f.text}
	f.out = pgScanner{known: "RKSZNEACDTtnI123sGHWdcVv", keep: f.keepReply}
	return f
}

func (f *pgFramer) keepRequest(kind byte) int {
	switch kind {
	case 0:
		return pgMaxStartup
	case 'P':
		return pgMaxUnnamed
	case 'C':
		return 2
	}
	return 0
}

func (f *pgFramer) keepReply(kind byte) int {
	switch kind {
	case 'Z':
		return 1
	case 'R':
		return 4
	case 'K':
		return pgMaxKey
	case 'S':
		return pgMaxParameters
	}
	if f.mute && (kind == 'D' || kind == 'E') {
		return pgMaxState
	}
	return 0
}

// text looks through what a client wants to be done.
func (f *pgFramer) text(piece []byte) {
	if f.in.kind == 'Q' || f.in.kind == 'P' {
		f.words.scan(piece, f.in.left > 0)
	}
}

// request implements framer.
func (f *pgFramer) request(p []byte) (n int, err error) {
	f.asked, f.known, f.cancels = false, false, 0
	n, end, err := f.in.scan(p)
	if err == nil && end {
		err = f.sent()
	}
	if err != nil {
		f.pin = err.Error()
	}
	return n, err
}

// between implements framer.
func (f *pgFramer) between() bool { return f.in.between() }

// sent acts on a whole message of the client's.
func (f *pgFramer) sent() error {
	kind := f.in.kind
	switch {
	case kind == 0:
		f.startup = pgMessages(nil).add(0, f.in.body)
		f.waiting = append(f.waiting, pgStartup)
		return nil
	case kind == 'X' || kind == 'd':
		return nil
	case kind == 'p':
		return fmt.Errorf("%w: a password that was not asked for", errPostgres)
	case kind == 'c' || kind == 'f':
		if f.copying {
			f.copying = false
		} else if bytes.ContainsAny(f.waiting, "QE") {
			f.waiting = append(f.waiting, pgCopyEnd)
		}
		return nil
	case f.copying && (kind == 'S' || kind == 'H'):
		return nil // the server ignores it there
	case f.copying:
		return fmt.Errorf("%w: a message of kind %q among rows", errPostgres, kind)
	case kind == 'S':
		f.unsynced, f.skipping = false, false
	case f.skipping:
		return nil
	case kind == 'H':
		return nil
	case kind == 'Q' || kind == 'F':
		f.unsynced = false // it ends what came before, as Sync does
	case kind == 'P':
		f.unsynced = true
		if len(f.in.body) == 0 || f.in.body[0] != 0 {
			break // it has a name: the server tells what it is
		}
		kind = pgUnnamedP
		u := pgUnnamed{long: !f.in.whole}
		if f.in.whole {
			u.body = bytes.Clone(f.in.body)
		}
		f.kept += u.size()
		f.parses = append(f.parses, u)
		// The server takes many before it says a word. It is the last one that matters: of
		// those before, each is gone for the server too when the next has been prepared.
		for ; f.kept > pgMaxParses; f.emptied++ {
			f.kept -= f.parses[0].size()
			f.parses = without(f.parses)
		}
	case kind == 'C':
		f.unsynced = true
		if string(f.in.body) == "S\x00" {
			kind = pgUnnamedC
		}
	default:
		f.unsynced = true
	}
	f.waiting = append(f.waiting, kind)
	return nil
}

// reply implements framer.
func (f *pgFramer) reply(p []byte) error {
	f.passes = p[:0]
	for len(p) > 0 {
		if f.out.between() {
			f.mute = f.head() == pgQuestion && p[0] != 'A' && p[0] != 'S'
		}
		n, end, err := f.out.scan(p)
		if err == nil && end {
			err = f.said()
		}
		if err != nil {
			f.pin = err.Error()
			f.passes = append(f.passes, p...)
			return err
		}
		if !f.mute {
			f.passes = append(f.passes, p[:n]...)
		}
		p = p[n:]
		if f.pin != "" {
			f.passes = append(f.passes, p...)
			return nil
		}
	}
	return nil
}

// pass implements stateful.
func (f *pgFramer) pass() []byte { return f.passes }

// head is what the server answers next; 0 if nothing is asked of it.
func (f *pgFramer) head() byte {
	if len(f.waiting) == 0 {
		return 0
	}
	return f.waiting[0]
}

// drop takes what has been answered, or will never be, off the queue.
func (f *pgFramer) drop() {
	switch {
	case f.waiting[0] != pgUnnamedP:
	case f.emptied > 0:
		f.emptied--
	default:
		f.kept -= f.parses[0].size()
		f.parses = without(f.parses)
	}
	f.waiting = without(f.waiting)
	for f.head() == pgCopyEnd {
		f.waiting = without(f.waiting)
	}
}

// answers drops what waits first, which is of one of these kinds.
func (f *pgFramer) answers(kinds string) error {
	if strings.IndexByte(kinds, f.head()) < 0 {
		return fmt.Errorf("%w: the server answers with %q to %q", errPostgres, f.out.kind, f.head())
	}
	f.drop()
	return nil
}

// said acts on a whole message of the server's.
func (f *pgFramer) said() error {
	head, body := f.head(), f.out.body
	switch kind := f.out.kind; kind {
	case 'A', 'N', 'v', 'H', 'd', 'c', 't', 'V':
		return nil
	case 'S':
		return f.reported(body)
	case 'R':
		return f.admitted(head, body)
	case 'K':
		f.key = string(body)
		f.gate.cancels.set(f.key, f.key)
		return nil
	case 'W':
		f.pin = "replication"
		return nil
	case 'Z':
		return f.ready(head, body)
	case 'E':
		return f.refused(head, body)
	case 'G':
		return f.rowsWanted(head)
	}
	if head == pgQuestion {
		return f.answered(body)
	}
	switch kind := f.out.kind; kind {
	case '1':
		if head == pgUnnamedP {
			u := pgUnnamed{long: true}
			if f.emptied == 0 {
				u = f.parses[0]
			}
			f.unnamed = &u
		}
		return f.answers("Pp")
	case '2':
		return f.answers("B")
	case '3':
		if head == pgUnnamedC {
			f.unnamed = nil
		}
		return f.answers("Cc")
	case 'T', 'n':
		if head == 'Q' {
			return nil
		}
		return f.answers("D")
	case 'D':
		return nil
	default: // C, I, s
		if head == 'Q' {
			return nil
		}
		return f.answers("E")
	}
}

// reported remembers what the client has been told of a parameter.
func (f *pgFramer) reported(body []byte) error {
	name, rest, ok := pgString(body)
	value, _, ok2 := pgString(rest)
	if !ok || !ok2 {
		return fmt.Errorf("%w: a parameter without a value", errPostgres)
	}
	if f.told == nil {
		f.told = make(map[string]string)
	}
	f.told[name] = value
	return nil
}

// admitted acts on what the server asks a new client for.
func (f *pgFramer) admitted(head byte, body []byte) error {
	if len(body) < 4 || head != pgStartup {
		return fmt.Errorf("%w: it logs in at the wrong time", errPostgres)
	}
	if binary.BigEndian.Uint32(body) == 0 {
		f.trusted = true
	} else {
		f.pin = pgPinPassword
	}
	return nil
}

const pgPinPassword = "the server has asked it for a password, which the gate could not repeat"

// ready acts on the server's word that it has done what it was asked.
func (f *pgFramer) ready(head byte, body []byte) error {
	if len(body) < 1 {
		return fmt.Errorf("%w: an empty state", errPostgres)
	}
	f.status, f.copying = body[0], false
	switch head {
	case 'Q':
		f.unnamed = nil // a simple query takes its place
	case pgQuestion:
		f.known, f.asked = f.asked, false
		f.state.finish()
	}
	return f.answers("UQFS?")
}

// pgMaxCancels is how often a question may be cancelled before that is its answer. What
// the client cancelled was its own statement: the server sends that signal twice, and the
// second may come so late that it finds the question. A statement_timeout that is too
// short for the question always finds it.
const pgMaxCancels = 5

// refused acts on an error.
func (f *pgFramer) refused(head byte, body []byte) error {
	switch head {
	case pgQuestion:
		e := pgErrorOf(body)
		if f.cancels++; e.code == "57014" && f.cancels < pgMaxCancels {
			f.asked = false
		}
		f.state.hold("the server did not say what it holds: " + e.message)
		return nil
	case 0, pgStartup, 'Q', 'F', 'S':
		f.copying = false
		return nil
	case pgUnnamedP:
		f.unnamed = nil
	}
	// Up to the next Sync it hears nothing.
	f.copying, f.skipping = false, true
	for len(f.waiting) > 0 && f.skipping {
		if f.head() == 'S' {
			f.skipping = false
			break
		}
		f.drop()
	}
	f.unsynced = f.unsynced || f.skipping
	return nil
}

// rowsWanted begins a COPY from the client. Sync is ignored before its rows have ended.
func (f *pgFramer) rowsWanted(head byte) error {
	if head != 'Q' && head != 'E' {
		return fmt.Errorf("%w: it asks for rows at the wrong time", errPostgres)
	}
	f.copying = true
	ignored := false
	for f.copying && len(f.waiting) > 1 {
		switch f.waiting[1] {
		case 'S':
			ignored = true
		case pgCopyEnd:
			f.copying = false
		default:
			return fmt.Errorf("%w: a message of kind %q among rows", errPostgres, f.waiting[1])
		}
		f.waiting = append(f.waiting[:1], f.waiting[2:]...)
	}
	// A Sync that was ignored ended nothing.
	if ignored && head == 'E' && !bytes.ContainsAny(f.waiting, "SQF") {
		f.unsynced = true
	}
	return nil
}

// open implements framer: within a transaction, or where something is half said, what
// comes next is let through, or it would never end. So it is where only the client can
// let go of what keeps its session here.
func (f *pgFramer) open() bool {
	return f.status != 'I' || f.unsynced || f.copying || f.known && f.state.holds() != ""
}

// pinned implements framer.
func (f *pgFramer) pinned() string { return f.pin }

// busy implements framer.
func (f *pgFramer) busy() string {
	switch {
	case f.pin != "":
		return f.pin
	case f.copying:
		return "it copies rows to the server"
	case f.status != 'I':
		return "a transaction is open"
	case f.head() == pgStartup:
		return "it is not logged in yet"
	case f.head() == pgQuestion:
		return "the server is being asked what it holds"
	case len(f.waiting) > 0:
		return fmt.Sprintf("%d messages have no answer yet", len(f.waiting))
	case f.unsynced:
		return "what it asked for is not ended by a Sync"
	case !f.in.between():
		return "a message is half sent"
	case !f.out.between():
		return "the server has not finished a message"
	case f.known:
		return f.state.holds()
	}
	return ""
}

// refusal implements framer.
func (f *pgFramer) refusal(why string) []byte { return pgFatal("57P03", why) }

// probePostgres asks a server whether it is ready. One that asks for a password is, and
// one that does not know the user.
func probePostgres(conn io.ReadWriter) error {
	hello := pgMessages(nil).add(0, int32(pgVersion3), "user", "postgres", "database", "postgres", byte(0))
	if _, err := conn.Write(hello); err != nil {
		return err
	}
	kind, body, err := pgRead(conn)
	if err != nil {
		return err
	}
	if kind == 'E' {
		if e := pgErrorOf(body); e.passing() {
			return e
		}
	}
	if kind != 'R' && kind != 'E' && kind != 'v' {
		return errors.New("it does not speak the protocol of PostgreSQL")
	}
	_, err = conn.Write(pgMessages(nil).add('X'))
	return err
}
