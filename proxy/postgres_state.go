package proxy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// pgState is what a session was made of when its server was asked last.
type pgState struct {
	settings []pgSetting
	owner    string // of the session: who has logged in, or what it has authorized itself as
	role     string
	super    bool // who has logged in is a superuser
	prepared []pgPrepared
	channels []string
	keeps    []string // what another connection cannot be given
	size     int
}

type pgSetting struct{ name, value, context string }

// pgPrepared is a named statement. One that SQL has prepared is made by running its text.
type pgPrepared struct {
	name, text string
	sql        bool
	types      []uint32
}

func (st *pgState) hold(why string) { st.keeps = append(st.keeps, why) }

func (st *pgState) holds() string { return strings.Join(st.keeps, ", ") }

// pgAsk asks a server what the session has that is not there when another begins with
// the same startup message. $1 are settings that the client has given names of its own,
// as SET or set_config allows: those are in no catalog, so that they have to be asked for
// by name. Functions of the database may set more of them, which their sources tell. $2
// is the role that has logged in. No backslash and no name without its schema is in it:
// what they mean is among what a session can set.
const pgAsk = `WITH g AS MATERIALIZED (
	SELECT name, setting, source, context FROM pg_catalog.pg_settings
), own AS (
	SELECT n::pg_catalog.text AS n FROM pg_catalog.unnest($1::pg_catalog.text[]) AS n
	UNION
	SELECT pg_catalog.lower(m[1]) FROM pg_catalog.pg_proc AS p, pg_catalog.regexp_matches(p.prosrc,
		'(?:set_config[[:space:]]*[(][[:space:]]*''|[[:<:]]set[[:space:]]+(?:session[[:space:]]+)?)([a-z_][a-z0-9_$]*[.][a-z0-9_$.]+)', 'gi') AS m
	WHERE p.oid >= 16384
)
SELECT 'login', session_user::pg_catalog.text, pg_catalog.current_setting('role'), CASE WHEN rolsuper THEN 'super' END
	FROM pg_catalog.pg_roles WHERE rolname = $2::pg_catalog.text
UNION ALL
SELECT 'setting', name, setting, context FROM g WHERE source = 'session' AND name !~ '^transaction_'
UNION ALL
SELECT 'setting', n, pg_catalog.current_setting(n, true), 'user' FROM own
	WHERE pg_catalog.current_setting(n, true) IS NOT NULL AND NOT EXISTS (SELECT FROM g WHERE g.name = n)
UNION ALL
SELECT 'prepared', name, statement, CASE WHEN from_sql THEN 'sql' ELSE pg_catalog.array_to_string(parameter_types::pg_catalog.oid[], ' ') END
	FROM pg_catalog.pg_prepared_statements WHERE name <> '` + pgAskName + `'
UNION ALL
SELECT 'channel', c, NULL, NULL FROM pg_catalog.pg_listening_channels() AS c
UNION ALL
SELECT DISTINCT 'keeps', 'an advisory lock', NULL, NULL FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()
UNION ALL
SELECT 'keeps', 'the cursor ' || name, NULL, NULL FROM pg_catalog.pg_cursors WHERE is_holdable
UNION ALL
SELECT DISTINCT 'keeps', 'temporary tables or other temporary objects', NULL, NULL FROM pg_catalog.pg_depend
	WHERE refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND refobjid = pg_catalog.pg_my_temp_schema()`

// The question has a name, so that it leaves the client's unnamed statement alone. One
// that was refused may have left its name behind.
const pgAskName = "flocker asks what the session holds"

// question implements stateful.
func (f *pgFramer) question() []byte {
	if f.known {
		return nil
	}
	f.asked, f.state = true, pgState{}
	if f.words.keeps != "" {
		f.state.hold(f.words.keeps)
	}
	if f.unnamed != nil && f.unnamed.long {
		f.state.hold(fmt.Sprintf("an unnamed prepared statement of more than %d bytes", pgMaxUnnamed))
	}
	f.waiting = append(f.waiting, pgQuestion)
	return pgMessages(nil).add('C', byte('S'), pgAskName).parse(pgAskName, pgAsk).run(pgAskName, f.words.array(), pgStartupValue(f.startup, "user")).
		add('C', byte('S'), pgAskName).add('S')
}

// answered takes one message of the answer.
func (f *pgFramer) answered(body []byte) error {
	if f.out.kind != 'D' {
		return nil
	}
	st := &f.state
	if st.size += len(body); st.size > pgMaxState || !f.out.whole {
		if st.size <= pgMaxState+len(body) {
			st.hold(fmt.Sprintf("more than %d bytes of settings and prepared statements", pgMaxState))
		}
		st.size = pgMaxState + 1
		return nil
	}
	columns, err := pgRow(body)
	if err != nil || len(columns) != 4 {
		return fmt.Errorf("%w: an answer of another kind than was asked for", errPostgres)
	}
	return st.add(columns[0], columns[1], columns[2], columns[3])
}

func (st *pgState) add(kind, name, value, more string) error {
	switch kind {
	case "login":
		st.owner, st.role, st.super = name, value, more == "super"
	case "setting":
		st.settings = append(st.settings, pgSetting{name, value, more})
	case "prepared":
		p := pgPrepared{name: name, text: value, sql: more == "sql"}
		if p.sql {
			if !pgPreparesOnly(value) {
				st.hold("the prepared statement " + name + ", whose text does more than prepare it")
			}
			more = ""
		}
		for _, t := range strings.Fields(more) {
			oid, err := strconv.ParseUint(t, 10, 32)
			if err != nil {
				return fmt.Errorf("%w: a parameter of type %q", errPostgres, t)
			}
			p.types = append(p.types, uint32(oid))
		}
		st.prepared = append(st.prepared, p)
	case "channel":
		st.channels = append(st.channels, name)
	case "keeps":
		st.hold(name)
	}
	return nil
}

// finish judges the answer as a whole.
func (st *pgState) finish() {
	if st.owner == "" && len(st.keeps) == 0 {
		st.hold("a role that is no more")
	}
	for _, s := range st.settings {
		if s.context != "user" && !st.super {
			st.hold("the setting " + s.name + ", which only a superuser may repeat")
		}
	}
	// How the rest of them is written depends on it.
	slices.SortStableFunc(st.settings, func(a, b pgSetting) int {
		return cmp.Compare(btoi(a.name != "client_encoding"), btoi(b.name != "client_encoding"))
	})
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// pgPreparesOnly says that the text does nothing else than what its first word says,
// PREPARE: of a text with several statements the server shows each of them all of it.
func pgPreparesOnly(text string) bool {
	text = strings.TrimRight(text, "; \t\r\n")
	word := strings.TrimLeft(text, " \t\r\n")
	return len(word) > 8 && strings.EqualFold(word[:7], "prepare") && !pgWord(word[7]) && !strings.Contains(text, ";")
}

// forget implements stateful.
func (f *pgFramer) forget() { f.asked, f.known = false, false }

// listens implements stateful.
func (f *pgFramer) listens() bool { return f.known && len(f.state.channels) > 0 }

// pgStep is what a new connection is told, up to one Sync.
type pgStep struct {
	what     string
	may      bool // it may fail: it would then have failed for the client as well
	messages pgMessages
}

// steps are what makes a new session the one that was parked.
func (f *pgFramer) steps() (out []pgStep) {
	st := &f.state
	set := pgMessages(nil).parse("", "SELECT pg_catalog.set_config($1, $2, false)")
	for _, s := range st.settings {
		set = set.run("", s.name, s.value)
	}
	if st.owner != "" {
		if st.owner != pgStartupValue(f.startup, "user") {
			set = set.run("", "session_authorization", st.owner)
		}
		set = set.run("", "role", st.role)
	}
	out = append(out, pgStep{"its settings", false, set})
	for _, p := range st.prepared {
		step := pgStep{"the prepared statement " + p.name, true, nil}
		if p.sql {
			step.messages = step.messages.parse("", p.text).run("")
		} else {
			step.messages = step.messages.parse(p.name, p.text, p.types...)
		}
		out = append(out, step)
	}
	for _, c := range st.channels {
		listen := `LISTEN "` + strings.ReplaceAll(c, `"`, `""`) + `"`
		out = append(out, pgStep{"LISTEN", false, pgMessages(nil).parse("", listen).run("")})
	}
	// The unnamed statement is the client's own, if it has one.
	last := pgStep{"the unnamed statement", true, pgMessages(nil).add('C', byte('S'), "")}
	if f.unnamed != nil {
		last.messages = last.messages.add('P', f.unnamed.body)
	}
	return append(out, last)
}

// restore takes all steps on a new connection. What the server says unasked is for the
// client.
func (f *pgFramer) restore(backend io.ReadWriter, now map[string]string) (pass pgMessages, err error) {
	steps := f.steps()
	var all pgMessages
	for _, s := range steps {
		all = append(all, s.messages...).add('S')
	}
	if _, err := backend.Write(all); err != nil {
		return nil, errors.Join(errNotReady, err)
	}
	var failed *pgError
	for done := 0; done < len(steps); {
		kind, body, err := pgRead(backend)
		if err != nil {
			return nil, errors.Join(errNotReady, err)
		}
		switch kind {
		case 'A':
			pass = pass.add(kind, body)
		case 'S':
			name, rest, _ := pgString(body)
			now[name], _, _ = pgString(rest)
		case 'E':
			failed = pgErrorOf(body)
		case 'Z':
			if failed != nil && !steps[done].may {
				return nil, fmt.Errorf("repeating %s: %w", steps[done].what, failed)
			}
			done, failed = done+1, nil
		}
	}
	return pass, nil
}

// replay implements framer.
func (f *pgFramer) replay(backend io.ReadWriter) error {
	switch {
	case f.through:
		return f.passLogin(backend)
	case f.startup == nil: // it passes through
		return nil
	}
	err := f.standIn(backend)
	if err == nil || errors.Is(err, errNotReady) {
		return err
	}
	var e *pgError
	if errors.As(err, &e) {
		f.tell(pgMessages(nil).add('E', e.body))
	} else {
		f.tell(pgFatal("57P03", "flocker: the session could not be continued: "+err.Error()))
	}
	return err
}

// standIn makes a new connection the session.
func (f *pgFramer) standIn(backend io.ReadWriter) error {
	w, err := pgLogin(backend, f.startup, f.keys)
	if err != nil {
		return err
	}
	first := f.told == nil
	pass := w.said
	if !first {
		if pass, err = f.restore(backend, w.parameters); err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(w.parameters)) {
			if value := w.parameters[name]; f.told[name] != value {
				pass = pass.add('S', name, value)
			}
		}
	}
	if first {
		f.key = w.key
	}
	f.gate.cancels.set(f.key, w.key)
	f.told = w.parameters
	return f.tell(pass)
}

// tell says something to the client while nobody else does.
func (f *pgFramer) tell(words []byte) error {
	if len(words) == 0 {
		return nil
	}
	if err := f.client.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := f.client.Write(words); err != nil {
		return fmt.Errorf("telling the client how it was connected: %w", err)
	}
	return f.client.SetWriteDeadline(time.Time{})
}

// pgWords looks for what a client says that no question to the server tells.
type pgWords struct {
	names map[string]bool // settings with names of its own
	keeps string          // why its session cannot be given another connection
	carry []byte          // the end of the last piece of the same text
}

const (
	pgMaxNames = 100
	pgCarry    = 256 // longer than what is looked for
)

// scan looks through a piece of a text, of which more follows or not.
func (w *pgWords) scan(piece []byte, more bool) {
	text := piece
	if len(w.carry) > 0 {
		text = append(w.carry, piece...)
	}
	for i, c := range text {
		switch c | 0x20 {
		case 's', 'c', 'l':
			if i == 0 || !pgWord(text[i-1]) {
				w.word(text[i:], more)
			}
		}
	}
	w.carry = nil
	if more {
		w.carry = bytes.Clone(text[max(0, len(text)-pgCarry):])
	}
}

func pgWord(c byte) bool {
	return c == '_' || c == '$' || c >= 0x80 || '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z'
}

// word acts on one that may be of interest. What ends where more follows is looked at
// again, with that.
func (w *pgWords) word(text []byte, more bool) {
	n := 0
	for n < len(text) && n < len("set_config?") && pgWord(text[n]) {
		n++
	}
	if n != len("set") && n != len("load") && n != len("lastval") && n != len("set_config") {
		return
	}
	rest := text[n:]
	if len(rest) == 0 && more {
		return
	}
	switch strings.ToLower(string(text[:n])) {
	case "set":
		w.set(rest, more)
	case "set_config":
		w.setConfig(rest)
	case "currval", "lastval":
		w.keeps = "the use of currval or lastval, which only its own connection knows"
	case "load":
		if rest = pgSkip(rest); len(rest) > 0 && rest[0] == '\'' {
			w.keeps = "a library that it has loaded"
		}
	}
}

func pgSkip(text []byte) []byte { return bytes.TrimLeft(text, " \t\r\n\f\v") }

// set reads SET [SESSION] NAME.
func (w *pgWords) set(text []byte, more bool) {
	for range 2 {
		text = pgSkip(text)
		n := 0
		for n < len(text) && (pgWord(text[n]) || text[n] == '.' || text[n] == '"') {
			n++
		}
		name := strings.ReplaceAll(string(text[:n]), `"`, "")
		if text = text[n:]; len(text) == 0 && more {
			return
		}
		if !strings.EqualFold(name, "session") {
			w.name(name)
			return
		}
	}
}

// setConfig reads set_config('NAME'.
func (w *pgWords) setConfig(text []byte) {
	text, ok := bytes.CutPrefix(pgSkip(text), []byte("("))
	text = pgSkip(text)
	if !ok || len(text) == 0 {
		return
	}
	if text, ok = bytes.CutPrefix(text, []byte("'")); !ok {
		w.keeps = "a call of set_config for a name that is not in its text"
		return
	}
	if name, _, ok := bytes.Cut(text, []byte("'")); ok {
		w.name(string(name))
	}
}

// name remembers one that a setting has, if it is not one of the server's, which the
// server lists by itself.
func (w *pgWords) name(name string) {
	if !strings.Contains(name, ".") || len(name) > 2*pgCarry || strings.ContainsFunc(name, func(r rune) bool {
		return r != '.' && r < 0x80 && !pgWord(byte(r))
	}) {
		return
	}
	if w.names == nil {
		w.names = make(map[string]bool)
	}
	if w.names[strings.ToLower(name)] = true; len(w.names) > pgMaxNames {
		w.keeps = fmt.Sprintf("more than %d settings with names of its own", pgMaxNames)
		clear(w.names)
	}
}

// array writes the names as PostgreSQL reads an array; no character in them needs quotes.
func (w *pgWords) array() string {
	return "{" + strings.Join(slices.Sorted(maps.Keys(w.names)), ",") + "}"
}
