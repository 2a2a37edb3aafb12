package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakePostgres does what a real server rarely does, when it is told to.
type fakePostgres struct {
	t       testing.TB
	l       net.Listener
	let     chan struct{}
	mu      sync.Mutex
	logins  []string // how it treats those that come next; "" lets them in
	version string
	heard   []string
	open    map[net.Conn]bool
}

func newFakePostgres(t testing.TB) *fakePostgres {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakePostgres{t: t, l: l, let: make(chan struct{}), version: "15", open: make(map[net.Conn]bool)}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.open[conn] = true
			f.mu.Unlock()
			all.Go(func() { defer func() { _ = conn.Close() }(); f.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		f.mu.Lock()
		for conn := range f.open {
			_ = conn.Close()
		}
		f.mu.Unlock()
		all.Wait()
	})
	return f
}

func (f *fakePostgres) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", f.l.Addr().String())
}

func (f *fakePostgres) says(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heard = append(f.heard, what)
}

func (f *fakePostgres) all() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.heard, ", ")
}

func (f *fakePostgres) treats(how ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.logins = append(f.logins, how...)
}

func (f *fakePostgres) serve(conn net.Conn) {
	in := pgScanner{untyped: true, known: "QPBECDHSFXdcfp", keep: func(byte) int { return 1 << 20 }}
	next := func() bool {
		for {
			var one [1]byte
			if _, err := conn.Read(one[:]); err != nil {
				return false
			}
			if _, end, err := in.scan(one[:]); end || err != nil {
				return err == nil
			}
		}
	}
	say := func(m pgMessages) bool {
		_, err := conn.Write(m)
		return err == nil
	}
	if !next() {
		return
	}
	who := pgStartupValue(append(make([]byte, 4), in.body...), "user")
	f.mu.Lock()
	how, version := "", f.version
	if len(f.logins) > 0 {
		how, f.logins = f.logins[0], f.logins[1:]
	}
	f.mu.Unlock()
	switch {
	case how == "hang up":
		return
	case how == "wait":
		f.says(who + " waits")
		select {
		case <-f.let:
		case <-f.t.Context().Done():
			return
		}
	case how != "":
		say(pgFatal(how, "no"))
		return
	}
	f.says(who + " is let in")
	if !say(pgMessages(nil).add('R', int32(0)).add('S', "server_version", version).add('K', int32(1), int32(2)).add('Z', byte('I'))) {
		return
	}
	asked := false
	for next() {
		switch {
		case in.kind == 'P':
			name, text, _ := pgString(in.body)
			if asked = name == pgAskName; !asked && strings.HasPrefix(string(text), "LISTEN") {
				f.says(who + " listens")
			}
		case in.kind == 'Q':
			f.says(strings.TrimRight(string(in.body), "\x00"))
			if !say(pgMessages(nil).add('C', "DONE").add('Z', byte('I'))) {
				return
			}
		case in.kind == 'S':
			out := pgMessages(nil)
			if asked {
				out = append(out, pgBytesOf(f.t, "ParseComplete BindComplete Row:login,"+who+",none, ")...)
				if who == "listener" {
					out = append(out, pgBytesOf(f.t, "Row:channel,news")...)
				}
				asked = false
			}
			if !say(out.add('Z', byte('I'))) {
				return
			}
		}
	}
}

func newPostgresWorld(t *testing.T, limits Limits) (*world, *fakePostgres) {
	t.Helper()
	f := newFakePostgres(t)
	g, err := NewGate(Postgres, f.dial, limits, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return &world{T: t, g: g, port: front(t, g)}, f
}

// busy waits until somebody is, with this.
func (w *world) busy(with string) {
	w.Helper()
	w.until("somebody to be busy: "+with, func() bool {
		for _, s := range w.g.Sessions() {
			if s.Busy == with {
				return true
			}
		}
		return false
	})
}

// A server that is not ready is tried until it is; nothing was asked of it that may not be
// asked twice. What it tells of itself now, the client is told.
func TestPostgresServerComesLate(t *testing.T) {
	w, f := newPostgresWorld(t, patient)
	c := dialPostgres(t, w.port)
	w.g.Pause()
	w.quiet()
	f.treats("57P03", "hang up", "53300")
	f.mu.Lock()
	f.version = "16"
	f.mu.Unlock()
	w.g.Resume(nil)
	c.asks("one", "")
	if got := f.all(); got != "postgres is let in, postgres is let in, one" {
		t.Errorf("the server heard %s", got)
	}
	if c.told["server_version"] != "16" {
		t.Errorf("the client believes in %v", c.told)
	}
}

// What the server has to say against a session's return, the client hears.
func TestPostgresServerRefusesReturn(t *testing.T) {
	w, f := newPostgresWorld(t, patient)
	c := dialPostgres(t, w.port)
	w.g.Pause()
	w.quiet()
	f.treats("28000")
	w.g.Resume(nil)
	c.say(pgMessages(nil).add('Q', "one"))
	kind, body, err := pgRead(c.conn)
	if e := pgErrorOf(body); kind != 'E' || err != nil || e.code != "28000" {
		t.Errorf("heard %q, %v, %v", kind, e, err)
	}
	w.until("the session to end", func() bool { return len(w.g.Sessions()) == 0 })
}

func TestPostgresWaitsNoLongerThanAllowed(t *testing.T) {
	w, f := newPostgresWorld(t, Limits{Request: time.Minute, Event: time.Millisecond})
	c := dialPostgres(t, w.port)
	w.g.Pause()
	w.quiet()
	c.say(pgMessages(nil).add('Q', "one"))
	kind, body, err := pgRead(c.conn)
	if e := pgErrorOf(body); kind != 'E' || err != nil || e.code != "57P03" || !strings.Contains(string(body), "SFATAL\x00VFATAL\x00") {
		t.Errorf("heard %q, %v, %v", kind, e, err)
	}
	if _, _, err := pgRead(c.conn); err == nil {
		t.Error("the session goes on")
	}
	if got := f.all(); got != "postgres is let in" {
		t.Errorf("the server heard %s", got)
	}
}

// Who listens is parked last and back first: nothing that others do is lost to it.
func TestPostgresListenersFirstAndLast(t *testing.T) {
	w, f := newPostgresWorld(t, patient)
	listener := dialPostgres(t, w.port, "user", "listener")
	other := dialPostgres(t, w.port, "user", "other")
	other.say(pgMessages(nil).add('Q', "begun")[:3])
	w.busy("a message is half sent")
	w.g.Pause()
	w.until("the listener to linger", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		var b *Busy
		return errors.As(w.g.Quiet(ctx), &b) && len(b.Sessions) == 1 && b.Sessions[0].Busy != lingering
	})
	w.busy(lingering)
	other.say(pgMessages(nil).add('Q', "begun")[3:])
	if _, err := other.hear(); err != nil {
		t.Fatal(err)
	}
	w.quiet()
	other.say(pgMessages(nil).add('Q', "after"))
	w.until("a request to wait", func() bool { return strings.Contains(w.states(), string(Waiting)) })

	// A pause that begins anew while listeners are awaited holds as well.
	resume := func() {
		f.treats("wait")
		w.g.Resume(nil)
		w.until("the listener to log in", func() bool { return strings.HasSuffix(f.all(), "listener waits") })
	}
	resume()
	w.g.Pause()
	f.let <- struct{}{}
	w.quiet()
	resume()
	f.let <- struct{}{}
	if _, err := other.hear(); err != nil {
		t.Fatal(err)
	}
	got := f.all()
	if !strings.HasSuffix(got, "begun, listener waits, listener is let in, listener listens, listener waits, listener is let in, listener listens, other is let in, after") {
		t.Errorf("the server heard %s", got)
	}
	listener.asks("on", "")
}

// Where the gate is to verify passwords, nobody gets past it.
func TestPostgresNobodyGetsPastTheGate(t *testing.T) {
	f := newFakePostgres(t)
	if _, err := NewPostgresGate(PostgresOptions{PassTLS: true, User: "postgres"}, f.dial, patient, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("TLS that the gate cannot read, and passwords that it is to verify")
	}
	g, err := NewPostgresGate(PostgresOptions{User: "postgres"}, f.dial, patient, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, g: g, port: front(t, g)}
	for what, first := range map[string]pgMessages{
		"an old version": pgMessages(nil).add(0, int32(2<<16), make([]byte, 288)),
		"TLS at once":    pgMessages("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
		"replication":    pgMessages(nil).add(0, int32(pgVersion3), "user", "me", "replication", "1", byte(0)),
		"a role":         pgMessages(nil).add(0, int32(pgVersion3), "user", "me", byte(0)),
	} {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", w.port))
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(first); err != nil {
			t.Fatal(err)
		}
		heard, err := io.ReadAll(conn)
		var netErr net.Error
		if errors.As(err, &netErr) && netErr.Timeout() || len(heard) > 0 && heard[0] != 'E' {
			t.Errorf("%s: heard %q, %v", what, heard, err)
		}
		_ = conn.Close()
	}
}

// What hangs on by what cannot be moved is cut, and not those who only wait for it.
func TestPostgresCutSparesListeners(t *testing.T) {
	w, _ := newPostgresWorld(t, patient)
	listener := dialPostgres(t, w.port, "user", "listener")
	other := dialPostgres(t, w.port, "user", "other")
	other.say(pgMessages(nil).add('Q', "begun")[:3])
	w.busy("a message is half sent")
	w.g.Pause()
	w.busy(lingering)
	w.g.Cut()
	w.quiet()
	w.g.Resume(nil)
	listener.asks("on", "")
	if _, _, err := pgRead(other.conn); err == nil {
		t.Error("the other goes on")
	}
}

// Whatever a client says that has no password, it is not let in, though the server trusts the
// gate; and whatever a server says, a login with it ends.
func FuzzPostgresLogin(f *testing.F) {
	start := func(what ...any) pgMessages { return pgMessages(nil).add(0, what...) }
	me := start(int32(pgVersion3), "user", "me", byte(0))
	proof := me.add('p', scramName, int32(9), []byte("n,,n=,r=no")).add('p', []byte("c=biws,r=no,p=AAAA"))
	f.Add([]byte(me), pgBytesOf(f, "Authentication:0 Parameter:a=b Key Ready:I"))
	f.Add([]byte(proof), []byte(pgMessages(nil).add('R', int32(10), scramName, byte(0)).add('R', int32(11), []byte("r=no,s=AAAA,i=1")).add('R', int32(12), []byte("v=AAAA"))))
	f.Add([]byte(append(start(int32(pgTLS)), append(start(int32(pgGSS)), proof...)...)), []byte(pgMessages(nil).add('E', byte('C'), "28P01", byte(0))))
	f.Add([]byte(start(int32(pgCancel), []byte("somekeys"))), []byte("R\x7f\xff\xff\xff"))
	f.Add([]byte(start(int32(pgVersion3), "user", "me", "replication", "true", byte(0))), pgBytesOf(f, "Authentication:3"))
	f.Add([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), []byte("N"))

	verifier := "SCRAM-SHA-256$1:AAAA$" + strings.Repeat("A", 43) + "=:" + strings.Repeat("A", 43) + "="
	knows := append(pgBytesOf(f, "Authentication:0 Key Ready:I"), pgMessages(nil).add('D', int16(1), int32(len(verifier)), []byte(verifier)).add('Z', byte('I'))...)
	f.Fuzz(func(t *testing.T, client, server []byte) {
		g, err := NewPostgresGate(PostgresOptions{User: "gate", Password: "secret"}, func(context.Context) (net.Conn, error) {
			return &heardConn{in: bytes.NewReader(knows)}, nil
		}, patient, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		conn := &heardConn{in: bytes.NewReader(client)}
		g.Handle(t.Context(), conn)
		if bytes.Contains(conn.out.Bytes(), pgMessages(nil).add('R', int32(0))) {
			t.Errorf("it is let in, and hears %q", conn.out.String())
		}
		keys, err := scramKeysOf("secret", []byte("salt"), 1)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = pgLogin(&heardConn{in: bytes.NewReader(server)}, me, &keys)
	})
}
