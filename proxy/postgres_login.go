package proxy

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// PostgresOptions say how a gate for PostgreSQL deals with what its clients want before
// they are logged in. With none of them it has no TLS, and a server behind it that asks
// for passwords pins all sessions: their logins could not be repeated.
type PostgresOptions struct {
	// TLS is what the gate shows to clients that ask for it, as libpq does unless it is
	// told otherwise. Clients are told that there is none if it is nil.
	TLS *tls.Config
	// PassTLS lets clients that ask for TLS have it with the server, which pins their
	// sessions. It is for servers that verify their clients' certificates. The gate cannot
	// verify passwords then: it excludes User.
	PassTLS bool
	// User may read the catalog pg_authid, in Database ("postgres" if empty). With it the
	// gate verifies the passwords of clients itself, by SCRAM, and logs in to the server
	// by what it thereby learns; it never learns a password. The server then may, but need
	// not, trust the gate's address. Roles whose password is kept in another form are
	// asked for it by the server, if it does, and pinned.
	User, Password, Database string
}

// NewPostgresGate makes a gate to a PostgreSQL server, not paused.
func NewPostgresGate(options PostgresOptions, dial Dialer, limits Limits, log *slog.Logger) (*Gate, error) {
	if options.PassTLS && options.User != "" {
		return nil, fmt.Errorf("TLS is to be passed to the server, but the gate is to verify passwords as %s, which it could not read; choose one", options.User)
	}
	return newGate(postgresProtocol(options), dial, limits, log), nil
}

func postgresProtocol(options PostgresOptions) *protocol {
	gate := &postgres{cancels: pgCancels{of: make(map[string]string)}}
	gate.renew(options)
	return &protocol{framer: func() framer { return newPgFramer(gate) }, probe: probePostgres, renew: gate.renew, key: gate.cancels.server}
}

// postgres is what the sessions of one gate share.
type postgres struct {
	options atomic.Pointer[PostgresOptions] // of those that come from now on
	cancels pgCancels
}

func (g *postgres) renew(o PostgresOptions) {
	if o.TLS != nil && len(o.TLS.NextProtos) == 0 {
		o.TLS = o.TLS.Clone()
		o.TLS.NextProtos = []string{"postgresql"} // which those that begin with TLS insist on
	}
	g.options.Store(&o)
}

// pgCancels has, for each key that a client was told once, the one that its server knows
// its session by now: a client sends it on a connection of its own, to have what the
// session does cancelled.
type pgCancels struct {
	mu sync.Mutex
	of map[string]string
}

func (c *pgCancels) set(client, server string) {
	if client == "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.of[client] = server
}

func (c *pgCancels) remove(client string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.of, client)
}

// server is what to tell the server; "" for a key that no session of this gate has.
func (c *pgCancels) server(client string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.of[client]
}

// What a client may begin with.
const (
	pgVersion3   = 3 << 16
	pgCancel     = 1234<<16 | 5678
	pgTLS        = 1234<<16 | 5679
	pgGSS        = 1234<<16 | 5680
	pgMaxKey     = 4 + 256
	pgGreeting   = time.Minute // that a client may take to log in, as with the server itself
	pgHandshake  = 22          // the kind of TLS's first record
	pgCancelTime = 10 * time.Second
)

var errBye = errors.New("the client wanted no session")

// greet implements stateful.
func (f *pgFramer) greet(ctx context.Context, s *session) (first []byte, err error) {
	if err := s.conn.SetDeadline(time.Now().Add(pgGreeting)); err != nil {
		return nil, err
	}
	f.client = s.conn
	first, err = f.hello(ctx, s)
	if err != nil {
		return nil, err
	}
	s.speakThrough(f.client)
	if f.options.User != "" {
		f.startup, first, f.in.untyped = first, nil, false
		err = f.verify(ctx, s)
	}
	if err != nil {
		return nil, err
	}
	return first, s.conn.SetDeadline(time.Time{})
}

// hello answers what comes before the startup message, which it returns. What cannot be
// followed pins the session; but if the gate is to verify passwords, nobody gets past it.
func (f *pgFramer) hello(ctx context.Context, s *session) ([]byte, error) {
	blindly := func(why string, first []byte) ([]byte, error) {
		if f.options.User != "" {
			return nil, fmt.Errorf("the gate verifies passwords, and cannot with %s", why)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		f.pin = why
		return first, nil
	}
	const direct = "TLS with the server itself"
	for {
		var head [8]byte
		if _, err := io.ReadFull(f.client, head[:]); err != nil {
			return nil, err
		}
		length, code := binary.BigEndian.Uint32(head[:]), binary.BigEndian.Uint32(head[4:])
		secure := f.client != s.conn
		switch {
		case head[0] == pgHandshake && !secure:
			if f.options.TLS == nil {
				return blindly(direct, head[:])
			}
			if err := f.secure(ctx, head[:]); err != nil {
				return nil, err
			}
			continue
		case length < 8 || length > pgMaxStartup:
			return nil, fmt.Errorf("%w: a first message of %d bytes", errPostgres, length)
		}
		message := append(head[:], make([]byte, length-8)...)
		if _, err := io.ReadFull(f.client, message[8:]); err != nil {
			return nil, err
		}
		var err error
		switch {
		case code == pgTLS && f.options.PassTLS && !secure:
			return blindly(direct, message)
		case code == pgTLS && f.options.TLS != nil && !secure:
			if _, err = f.client.Write([]byte{'S'}); err == nil {
				err = f.secure(ctx, nil)
			}
		case code == pgTLS || code == pgGSS:
			_, err = f.client.Write([]byte{'N'})
		case code == pgCancel:
			err = cmp.Or(f.cancel(ctx, s, string(message[8:])), errBye)
		case code>>16 != pgVersion3>>16:
			return blindly(fmt.Sprintf("version %d of the protocol", code>>16), message)
		case pgStartupValue(message, "replication") != "" && f.options.User == "":
			return blindly("replication", message)
		default:
			return message, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// secure speaks TLS with the client from now on, of which these bytes have been read.
func (f *pgFramer) secure(ctx context.Context, begun []byte) error {
	conn := tls.Server(&begunConn{f.client, begun}, f.options.TLS)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("beginning TLS with a client: %w", err)
	}
	f.client = conn
	return nil
}

// begunConn is a connection of whose bytes some have been read.
type begunConn struct {
	net.Conn
	begun []byte
}

func (c *begunConn) Read(p []byte) (int, error) {
	if len(c.begun) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.begun)
	c.begun = c.begun[n:]
	return n, nil
}

// cancel has the server cancel what a session does, if it does anything. It is let
// through during a pause, which may be waiting for just that; a server that knows no
// such session any more does nothing.
func (f *pgFramer) cancel(ctx context.Context, s *session, key string) error {
	ctx, cancel := context.WithTimeout(ctx, pgCancelTime)
	defer cancel()
	// The session may be with a gate on another node, or one that this has taken the place of.
	known := f.gate.cancels.server(key)
	if known == "" && s.gate.keyOf != nil {
		known = s.gate.keyOf(ctx, key)
	}
	key = cmp.Or(known, key) // it may be the server's own
	s.gate.mu.Lock()
	dial := s.gate.dial
	s.gate.mu.Unlock()
	conn, err := dial(urgently(ctx))
	if err != nil {
		return fmt.Errorf("connecting to the server to cancel a request: %w", err)
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.Write(pgMessages(nil).add(0, int32(pgCancel), []byte(key))); err != nil {
		return fmt.Errorf("cancelling a request: %w", err)
	}
	// That the server hangs up says that it is done: what the client asks next is not hit.
	if _, err := io.Copy(io.Discard, conn); err != nil {
		return fmt.Errorf("waiting until a request is cancelled: %w", err)
	}
	return nil
}

// verify asks the client for its password, in the server's place. A role whose verifier
// the gate cannot use has to be asked by the server itself.
func (f *pgFramer) verify(ctx context.Context, s *session) error {
	user := pgStartupValue(f.startup, "user")
	f.through = true
	if pgStartupValue(f.startup, "replication") != "" {
		return nil
	}
	var verifier scramVerifier
	known := false
	err := s.await(ctx, &hold{gate: s.gate}, func(conn net.Conn) error {
		defer func() { _ = conn.Close() }()
		text, err := f.options.verifierOf(conn, user)
		verifier, known = parseScramVerifier(text)
		return err
	})
	if err != nil {
		err = fmt.Errorf("asking the server as %s how to verify a password: %w", f.options.User, err)
		if !errors.Is(err, errTold) {
			s.gate.log.Warn("a client could not be logged in", "client", s.conn.RemoteAddr(), "user", user, "err", err)
			err = errors.Join(err, f.tell(pgFatal("57P03", "flocker: the gate cannot verify passwords at present; its log says why")))
		}
		return err
	}
	if !known {
		return nil
	}
	keys, err := pgAskPassword(f.client, verifier)
	if errors.Is(err, errPassword) {
		// The words of the server, so that clients tell it from other failures.
		return errors.Join(err, f.tell(pgFatal("28P01", fmt.Sprintf("password authentication failed for user %q", user))))
	}
	if err != nil {
		return errors.Join(err, f.tell(pgFatal("08P01", "flocker: "+err.Error())))
	}
	f.through, f.keys = false, &keys
	return nil
}

// verifierOf asks the server for what it keeps of a role's password.
func (o *PostgresOptions) verifierOf(conn io.ReadWriter, user string) (string, error) {
	hello := pgMessages(nil).add(0, int32(pgVersion3), "user", o.User, "database", cmp.Or(o.Database, "postgres"), "application_name", "flocker", byte(0))
	if _, err := pgLoginBy(conn, hello, func(salt []byte, iterations int) (scramKeys, error) {
		return scramKeysOf(o.Password, salt, iterations)
	}); err != nil {
		return "", err
	}
	ask := pgMessages(nil).parse("", `SELECT rolpassword FROM pg_catalog.pg_authid
		WHERE rolname = $1 AND rolcanlogin AND (rolvaliduntil IS NULL OR rolvaliduntil > pg_catalog.now())`).run("", user).add('S').add('X')
	if _, err := conn.Write(ask); err != nil {
		return "", errors.Join(errNotReady, err)
	}
	verifier := ""
	var failed error
	for {
		kind, body, err := pgRead(conn)
		if err != nil {
			return "", errors.Join(errNotReady, err)
		}
		switch kind {
		case 'D':
			columns, err := pgRow(body)
			if err != nil || len(columns) != 1 {
				return "", fmt.Errorf("%w: an answer of another kind than was asked for", errPostgres)
			}
			verifier = columns[0]
		case 'E':
			failed = pgErrorOf(body)
		case 'Z':
			return verifier, failed
		}
	}
}

// pgAskPassword verifies that a client has the password, which it does not tell.
func pgAskPassword(client io.ReadWriter, v scramVerifier) (keys scramKeys, err error) {
	server := newScramServer(v)
	answer, err := pgAskClient(client, pgMessages(nil).add('R', int32(10), scramName, byte(0)))
	if err != nil {
		return keys, err
	}
	mechanism, rest, ok := pgString(answer)
	if !ok || mechanism != scramName || len(rest) < 4 {
		return keys, errScram
	}
	challenge, err := server.challenge(string(rest[4:]))
	if err != nil {
		return keys, err
	}
	if answer, err = pgAskClient(client, pgMessages(nil).add('R', int32(11), []byte(challenge))); err != nil {
		return keys, err
	}
	final, keys, err := server.verify(string(answer))
	if err != nil {
		return keys, err
	}
	if _, err := client.Write(pgMessages(nil).add('R', int32(12), []byte(final))); err != nil {
		return keys, err
	}
	return keys, nil
}

func pgAskClient(client io.ReadWriter, question []byte) ([]byte, error) {
	if _, err := client.Write(question); err != nil {
		return nil, err
	}
	var head [5]byte
	if _, err := io.ReadFull(client, head[:]); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(head[1:])
	if head[0] != 'p' || length < 4 || length > pgMaxStartup {
		return nil, fmt.Errorf("%w: it does not answer when asked for its password", errPostgres)
	}
	body := make([]byte, length-4)
	_, err := io.ReadFull(client, body)
	return body, err
}

// passLogin passes on the beginning of a login that only the server can do. The gate was
// told to verify passwords: where neither it nor the server does, nobody gets in.
func (f *pgFramer) passLogin(backend io.ReadWriter) error {
	if _, err := backend.Write(f.startup); err != nil {
		return errors.Join(errNotReady, err)
	}
	for {
		kind, body, err := pgRead(backend)
		switch {
		case err != nil:
			return errors.Join(errNotReady, err)
		case kind == 'E':
			e := pgErrorOf(body)
			if e.passing() {
				return errors.Join(errNotReady, e)
			}
			return errors.Join(e, f.tell(pgMessages(nil).add('E', body)))
		case kind != 'R':
			continue // such as a version that it would rather have, which it says again
		case len(body) >= 4 && binary.BigEndian.Uint32(body) == 0:
			err := fmt.Errorf("the server asks %s for no password, and has no SCRAM verifier of one that the gate could ask for", pgStartupValue(f.startup, "user"))
			return errors.Join(err, f.tell(pgFatal("28000", "flocker: "+err.Error())))
		}
		return f.tell(pgMessages(nil).add('R', body))
	}
}

// attached implements stateful.
func (f *pgFramer) attached() {
	if f.through {
		f.pin = pgPinPassword
	}
}

// ended implements stateful.
func (f *pgFramer) ended() { f.gate.cancels.remove(f.key) }

// pgWelcome is what a server says to a new session.
type pgWelcome struct {
	parameters map[string]string
	key        string
	said       pgMessages // all of it, from its word that the client is let in
}

// pgLogin begins a session, by keys if it is asked for them; nil for none.
func pgLogin(conn io.ReadWriter, startup []byte, keys *scramKeys) (pgWelcome, error) {
	return pgLoginBy(conn, startup, func([]byte, int) (scramKeys, error) {
		if keys == nil {
			return scramKeys{}, errors.New("the server asks for a password now, which the gate does not have")
		}
		return *keys, nil
	})
}

func pgLoginBy(conn io.ReadWriter, startup []byte, keys func(salt []byte, iterations int) (scramKeys, error)) (w pgWelcome, err error) {
	if _, err := conn.Write(startup); err != nil {
		return w, errors.Join(errNotReady, err)
	}
	w.parameters = make(map[string]string)
	client := newScramClient(keys)
	for {
		kind, body, err := pgRead(conn)
		if err != nil {
			return w, errors.Join(errNotReady, err)
		}
		switch kind {
		case 'R':
			done, err := pgProve(conn, client, body)
			if err != nil {
				return w, err
			}
			if !done {
				continue
			}
		case 'E':
			e := pgErrorOf(body)
			if e.passing() {
				return w, errors.Join(errNotReady, e)
			}
			return w, e
		case 'S':
			name, rest, _ := pgString(body)
			w.parameters[name], _, _ = pgString(rest)
		case 'K':
			w.key = string(body)
		}
		w.said = w.said.add(kind, body)
		if kind == 'Z' {
			return w, nil
		}
	}
}

// pgProve answers one message of a login, and says whether it was the last.
func pgProve(conn io.Writer, client *scramClient, body []byte) (done bool, err error) {
	if len(body) < 4 {
		return false, fmt.Errorf("%w: an empty question", errPostgres)
	}
	code, rest := binary.BigEndian.Uint32(body), body[4:]
	var out pgMessages
	switch code {
	case 0:
		return true, nil
	case 10:
		if !bytes.Contains(rest, []byte(scramName+"\x00")) {
			return false, fmt.Errorf("the server knows no %s", scramName)
		}
		first := client.first()
		out = out.add('p', scramName, int32(len(first)), []byte(first))
	case 11:
		answer, err := client.answer(string(rest))
		if err != nil {
			return false, err
		}
		out = out.add('p', []byte(answer))
	case 12:
		return false, client.check(string(rest))
	default:
		return false, fmt.Errorf("the server asks for a password by method %d; the gate can only prove one by %s", code, scramName)
	}
	if _, err := conn.Write(out); err != nil {
		return false, errors.Join(errNotReady, err)
	}
	return false, nil
}

// pgStartupValue is one of a startup message's parameters; "" if it is not there.
func pgStartupValue(message []byte, name string) string {
	if len(message) < 8 {
		return ""
	}
	rest := message[8:]
	for {
		key, more, ok := pgString(rest)
		value, after, ok2 := pgString(more)
		switch {
		case !ok || !ok2 || key == "":
			return ""
		case key == name:
			return value
		}
		rest = after
	}
}
