package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// What clients of all nodes notify of reaches who listens on another node, each once, while
// the server moves; and a request is cancelled through another node than the server's
// during the pause that waits for it.
func TestNativePostgresListensAcrossMoves(t *testing.T) {
	s := newPostgresServer(t)
	c := newCluster(t, 2)
	r := Route{ID: "r", Listen: freePort(t), Mode: Postgres, Limits: patient}
	addr := func() string { return fmt.Sprintf("127.0.0.1:%d", s.port) }
	owner, epoch := 0, uint64(1)
	c.route(r, owner, epoch, addr())
	connect := func(node int) *pgClient { return dialPostgresAt(t, c.addrOf(node, r)) }
	move := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		if err := c.nodes[owner].Pause(ctx, "r", 0); err != nil {
			t.Fatal(err)
		}
		if err := c.nodes[owner].Quiet(ctx, "r"); err != nil {
			t.Fatal(err)
		}
		quiet := time.Since(begin)
		s.move()
		from := owner
		owner, epoch = 1-owner, epoch+1
		c.route(r, owner, epoch, addr(), owner)
		c.route(r, owner, epoch, "", from)
		t.Logf("quiet after %s, paused for %s", quiet, time.Since(begin))
	}

	listener := connect(1)
	listener.asks("LISTEN news", "")
	listener.asks("CREATE TABLE told (i int)", "")
	var heard atomic.Int64
	var reads sync.WaitGroup
	reads.Go(func() {
		for {
			kind, _, err := pgRead(listener.conn)
			if err != nil {
				return
			}
			if kind == 'A' {
				heard.Add(1)
			}
		}
	})
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	var answered atomic.Int64
	for node := range c.nodes {
		writer := connect(node)
		load.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				writer.say(pgMessages(nil).add('Q', fmt.Sprintf("INSERT INTO told VALUES (%d); NOTIFY news, '%d %d'", i, node, i)))
				if _, err := writer.hear(); err != nil {
					t.Errorf("node %d: %v", node, err)
					return
				}
				answered.Add(1)
			}
		})
	}
	for range 4 {
		before := answered.Load()
		eventually(t, "there is load", func() bool { return answered.Load() > before+50 || t.Failed() })
		move()
	}
	stop()
	load.Wait()
	connect(0).asks("SELECT count(*) FROM told", fmt.Sprint(answered.Load()))
	eventually(t, fmt.Sprintf("%d are told", answered.Load()), func() bool { return heard.Load() >= answered.Load() })
	_ = listener.conn.Close()
	reads.Wait()
	if heard.Load() != answered.Load() {
		t.Errorf("%d were told of %d", heard.Load(), answered.Load())
	}

	// The session is on the node that does not own the route.
	sleeper := connect(1 - owner)
	sleeper.say(pgMessages(nil).add('Q', "SELECT pg_sleep(100)"))
	other := connect(owner)
	eventually(t, "it sleeps", func() bool {
		other.say(pgMessages(nil).add('Q', "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"))
		rows, err := other.hear()
		return err == nil && len(rows) == 1 && rows[0] == "1"
	})
	if err := c.nodes[owner].Pause(t.Context(), "r", 0); err != nil {
		t.Fatal(err)
	}
	cancel, err := net.Dial("tcp", c.addrOf(1-owner, r))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cancel.Close() }()
	if _, err := cancel.Write(pgMessages(nil).add(0, int32(pgCancel), []byte(sleeper.key))); err != nil {
		t.Fatal(err)
	}
	var e *pgError
	if _, err := sleeper.hear(); !errors.As(err, &e) || e.code != "57014" {
		t.Errorf("a query that was cancelled: %v", err)
	}
	if err := c.nodes[owner].Quiet(t.Context(), "r"); err != nil {
		t.Error(err)
	}
}

// A client cancels by the key that it was told, whichever server its session has by now: through
// another node, where another edge has taken the place of its own, and after a takeover.
func TestNativePostgresCancelsFollow(t *testing.T) {
	s := newPostgresServer(t)
	c := newCluster(t, 2)
	m := c.nodes[1]
	file := filepath.Join(t.TempDir(), "proxy.json")
	m.stop()
	m.start(t, file, m.addr)
	r := Route{ID: "r", Listen: freePort(t), Mode: Postgres, Limits: patient}
	addr := func() string { return fmt.Sprintf("127.0.0.1:%d", s.port) }
	owner, epoch := 0, uint64(1)
	c.route(r, owner, epoch, addr())
	move := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := c.nodes[owner].Pause(ctx, "r", 0); err != nil {
			t.Fatal(err)
		}
		if err := c.nodes[owner].Quiet(ctx, "r"); err != nil {
			t.Fatal(err)
		}
		s.move()
		owner, epoch = 1-owner, epoch+1
		c.route(r, owner, epoch, addr())
	}
	sleeper := dialPostgresAt(t, c.addrOf(1, r))
	other := dialPostgresAt(t, c.addrOf(0, r))
	cancels := func(what string, through int) {
		t.Helper()
		sleeper.say(pgMessages(nil).add('Q', "SELECT pg_sleep(100)"))
		eventually(t, "it sleeps", func() bool {
			other.say(pgMessages(nil).add('Q', "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"))
			rows, err := other.hear()
			return err == nil && len(rows) == 1 && rows[0] == "1"
		})
		conn, err := net.Dial("tcp", c.addrOf(through, r))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if _, err := conn.Write(pgMessages(nil).add(0, int32(pgCancel), []byte(sleeper.key))); err != nil {
			t.Fatal(err)
		}
		var e *pgError
		if err := errors.Join(conn.SetDeadline(time.Now().Add(time.Minute)), sleeper.conn.SetDeadline(time.Now().Add(time.Minute))); err != nil {
			t.Fatal(err)
		}
		// When the server has hung up, the signals are sent: what is asked next is not hit.
		if _, err := io.Copy(io.Discard, conn); err != nil {
			t.Fatalf("%s: cancelling through node %d: %v", what, through+1, err)
		}
		if _, err := sleeper.hear(); !errors.As(err, &e) || e.code != "57014" {
			t.Fatalf("%s: a query that was cancelled through node %d: %v", what, through+1, err)
		}
	}
	all := func(what string) {
		t.Helper()
		for node := range c.nodes {
			cancels(what, node)
		}
	}
	all("before any move")
	move()
	all("after a move")
	r.Limits.Sessions = 500
	c.route(r, owner, epoch, addr())
	all("with other edges")
	retired := make(chan error, 1)
	m.takeOver(t, file, retired)
	all("after a takeover")
	move()
	all("after a takeover and a move")
	_ = sleeper.conn.Close()
	if err := <-retired; err != nil {
		t.Error(err)
	}
}

// Whoever knows a key is heard at once; for one that has no line at the moment, or does not answer,
// a second is waited.
func TestDoorAsksForKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDoor("n1", Route{ID: "r", Owner: "n1", Epoch: 1, Server: "127.0.0.1:1"}, nil, NewNode(Options{}), slog.New(slog.DiscardHandler))
		defer d.close()
		key := []byte("\xff\x00key")
		asks := func(what, want string, within time.Duration, edges map[string]func(name string)) {
			t.Helper()
			for name := range edges {
				d.join(name, "n1", nil)
			}
			ctx, over := context.WithCancel(t.Context())
			var work sync.WaitGroup
			for name, does := range edges {
				l := &localLine{door: d, node: "n1", name: name}
				work.Go(func() {
					for {
						o, err := l.next(ctx)
						if err != nil {
							return
						}
						if len(o.Keys) == 1 {
							does(name)
						}
					}
				})
			}
			synctest.Wait() // all have the order that stands
			begin := time.Now()
			got := d.keyOf(t.Context(), key)
			if took := time.Since(begin); string(got) != want || took > within {
				t.Errorf("%s: the key is %q after %s, want %q within %s", what, got, took, want, within)
			}
			over()
			work.Wait()
			for name := range edges {
				d.leave(name)
			}
			if len(d.asks) > 0 {
				t.Errorf("%s: it goes on asking", what)
			}
		}
		says := func(server string) func(string) {
			return func(name string) { d.done(name, ack{Keys: []keyPair{{Client: key, Server: []byte(server)}}}) }
		}
		silent := func(string) {}
		asks("nobody is there", "", keyWait, nil)
		asks("one knows, and one is silent", "new", 0, map[string]func(string){"a": silent, "b": says("new"), "c": says("")})
		asks("one comes back who knows", "new", 0, map[string]func(string){"a": says(""), "b": func(string) {
			d.leave("b")
			d.join("c", "n1", nil)
			if o, _, err := d.order(); err != nil || len(o.Keys) != 1 {
				t.Errorf("it is told %+v, %v", o, err)
			}
			says("new")("c")
			d.leave("c")
		}})
		d.join("a", "n1", nil)
		begin := time.Now()
		if d.keyOf(t.Context(), make([]byte, pgMaxKey+1)); time.Since(begin) > 0 {
			t.Error("it asks for what no key is")
		}
		d.leave("a")
		asks("one is silent", "", keyWait, map[string]func(string){"a": says(""), "b": silent})

		// The edge of another node is asked at once, and not by the next pulse.
		ours, theirs := net.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		var serves sync.WaitGroup
		defer serves.Wait()
		defer cancel()
		serves.Go(func() {
			if err := d.serveLine(ctx, ours, preface{Kind: kindLine, Route: "r", Epoch: 1, Line: "l"}, "n2"); !errors.Is(err, context.Canceled) {
				t.Errorf("the line ends by %v", err)
			}
		})
		var a answer
		var o order
		if err := errors.Join(readMessage(theirs, maxPreface, &a), readMessage(theirs, maxPreface, &o)); err != nil || !a.Go {
			t.Fatalf("it is told %+v, %+v, %v", a, o, err)
		}
		known := make(chan struct{})
		serves.Go(func() {
			defer close(known)
			begin := time.Now()
			got := d.keyOf(ctx, key)
			if took := time.Since(begin); string(got) != "new" || took > 0 {
				t.Errorf("the edge of another node: the key is %q after %s", got, took)
			}
		})
		if err := readMessage(theirs, maxPreface, &o); err != nil || len(o.Keys) != 1 {
			t.Fatalf("it is asked for %q, %v", o.Keys, err)
		}
		if err := writeMessage(theirs, ack{Keys: []keyPair{{Client: key, Server: []byte("new")}}}); err != nil {
			t.Fatal(err)
		}
		<-known
	})
}
