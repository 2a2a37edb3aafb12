package proxy

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// inBubble runs a test with a gate whose client and servers are pipes, so that time costs nothing.
func inBubble(t *testing.T, limits Limits, test func(w *waiting)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		dial, accept := pipedServer(t)
		g, err := NewGate(Redis, dial, limits, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		g.try = 0
		w := &waiting{world: &world{T: t, g: g}, accept: accept}
		w.c = w.piped()
		test(w)
	})
}

func pipedServer(t *testing.T) (Dialer, func() *player) {
	t.Helper()
	conns := make(chan net.Conn, 100)
	dial := func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		conns <- theirs
		return ours, nil
	}
	return dial, func() *player {
		t.Helper()
		select {
		case conn := <-conns:
			t.Cleanup(func() { _ = conn.Close() })
			return &player{&keeps{t, conn, bufio.NewReader(conn)}}
		case <-time.After(time.Minute):
			t.Fatal("nobody connects to the server")
			return nil
		}
	}
}

func noServer(context.Context) (net.Conn, error) { return nil, errors.New("no server") }

// piped is one more client.
func (w *waiting) piped() *testClient {
	w.Helper()
	ours, theirs := net.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); w.g.Handle(ctx, theirs) }()
	w.Cleanup(func() { cancel(); _ = ours.Close(); <-done })
	return &testClient{w.world, ours, bufio.NewReader(ours)}
}

// parked brings the client to wait for the end of a pause, at whose beginning it waited at the server.
func (w *waiting) parked(command, null string) {
	w.Helper()
	server := w.blocked(command)
	w.g.Pause()
	w.accept().asked(7, verdict(":1"))
	server.say(null + " | ")
	w.quiet()
}

// A client whose time is over while there is no server hears so, when it is over and in the words that its
// server had for it; then it may go on.
func TestWaitTimeIsOver(t *testing.T) {
	for _, null := range []string{"*-1", "$-1", "_"} {
		for _, resumed := range []bool{false, true} {
			inBubble(t, Limits{}, func(w *waiting) {
				begin := time.Now()
				w.parked("BLPOP q 5", null)
				if resumed {
					w.g.Resume(noServer)
				}
				w.c.say("GET k\r\n")
				w.c.hear(null)
				if took := time.Since(begin); took != 5*time.Second {
					w.Errorf("it was told after %s", took)
				}
				dial, accept := pipedServer(w.T)
				w.g.Resume(dial)
				server := accept()
				server.hears("CLIENT ID", ":9 | ")
				server.hears("GET k", "+x | ")
				w.c.hear("+x")
			})
		}
	}
}

// A wait that was ended does not go on for ever without a server: it is told of as any request is, when the pause
// has lasted as long as one may, or when no server is back as long after it as a request may wait.
func TestWaitTooLate(t *testing.T) {
	for what, c := range map[string]struct {
		then func(g *Gate)
		want time.Duration
	}{
		"the pause goes on": {func(*Gate) {}, 20 * time.Second},
		"no server":         {func(g *Gate) { g.Resume(noServer) }, 10 * time.Second},
		"no server, and then another pause": {func(g *Gate) {
			g.Resume(noServer)
			time.Sleep(8 * time.Second)
			g.Pause()
		}, 28 * time.Second},
	} {
		inBubble(t, Limits{}, func(w *waiting) {
			begin := time.Now()
			w.parked("BLPOP q 0", "*-1")
			c.then(w.g)
			w.c.hear("-TRYAGAIN " + tooLate)
			if took := time.Since(begin); took < c.want || took > c.want+time.Second {
				w.Errorf("%s: it was told after %s, want %s", what, took, c.want)
			}
			w.until("its session to end", func() bool { return len(w.g.Sessions()) == 0 })
		})
	}
}

// The time that a pause takes is none of that for connecting after another.
func TestWaitSecondPause(t *testing.T) {
	inBubble(t, Limits{}, func(w *waiting) {
		w.parked("BLPOP q 0", "*-1")
		w.g.Resume(noServer)
		time.Sleep(8 * time.Second)
		w.g.Pause()
		time.Sleep(15 * time.Second)
		w.g.Resume(noServer)
		time.Sleep(8 * time.Second)
		dial, accept := pipedServer(w.T)
		w.g.Resume(dial)
		server := accept()
		server.hears("CLIENT ID", ":9 | ")
		server.hears("BLPOP q 0", "*2 | $1 | q | $1 | v | ")
		w.c.hear("*2")
	})
}

// What a client waits for is said to a server again when the time to connect is past, and can end the connection no
// more: what the server gives away has a way to the client.
func TestWaitIsSaidInTime(t *testing.T) {
	for _, late := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			dial, accept := pipedServer(t)
			g, err := NewGate(Redis, dial, Limits{}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			client, theirs := net.Pipe()
			s := newSession(t.Context(), g, theirs)
			f := s.framer.(*redisFramer)
			f.again = waitOf(redisWords([]byte("BLPOP q 0")), time.Now())
			defer s.pumps.Wait()
			defer s.close()
			ctx, cancel := context.WithCancel(t.Context())
			reached := make(chan error, 1)
			go func() {
				reached <- s.tryReach(ctx, false, true, nil, func(conn net.Conn) error {
					if late {
						cancel()
					}
					err := s.attach(conn)
					cancel()
					return err
				})
			}()
			server := accept()
			if late {
				server.nothing()
				if err := <-reached; err == nil {
					t.Error("it is connected past its time")
				}
				return
			}
			server.hears("BLPOP q 0", "")
			if err := <-reached; err != nil {
				t.Errorf("it is connected, and %v", err)
			}
			go server.say("*2 | $1 | q | $1 | v | ")
			if got := redisSays(t, bufio.NewReader(client)); got != "q v" {
				t.Errorf("the client hears %q", got)
			}
		})
	}
}

// Where MULTI is not admitted nothing is said behind it: the server would do it at once. So the null that comes is the
// client's own. An answer to EXEC that is none leaves open whether it was done.
func TestWaitTransactionRefused(t *testing.T) {
	for multi, named := range map[string]string{
		"-NOPERM no": "a blocking command waits, and the server does not end that: NOPERM no",
		"+no":        "a blocking command waits",
	} {
		inBubble(t, Limits{}, func(w *waiting) {
			server := w.blocked("BLPOP q 0")
			w.g.Pause()
			side := w.accept()
			side.hears("MULTI", multi+" | ")
			side.nothing()
			w.until("it to be over", w.ended)
			if got := w.busy(); got != named {
				w.Errorf("%s: it is busy with %q, want %q", multi, got, named)
			}
			server.say("*-1 | ")
			w.c.hear("*-1")
			w.quiet()
		})
	}
	for _, answer := range []string{"*1 | :1 | ", "*3 | -ERR | :1 | :1 | ", "*-1 | "} {
		inBubble(t, Limits{}, func(w *waiting) {
			server := w.blocked("BLPOP q 0")
			w.g.Pause()
			w.accept().asked(7, "+QUEUED | +QUEUED | "+answer)
			w.until("it to be over", w.ended)
			server.say("*-1 | ")
			w.quiet()
			w.g.Resume(nil)
			again := w.accept()
			again.hears("CLIENT ID", ":9 | ")
			again.hears("BLPOP q 0", "*2 | $1 | q | $1 | v | ")
			w.c.hear("*2")
		})
	}
}

// A server that refuses for a reason that passes is asked again, and its client named meanwhile; who may not ask is not
// let to ask again, and the server that does not find the client is left alone for a while.
func TestWaitRefusedForNow(t *testing.T) {
	for what, c := range map[string]struct {
		refuses func(side *player)
		why     string
		again   bool
	}{
		"busy":            {func(p *player) { p.hears("MULTI", "-BUSY no | ") }, "BUSY no", true},
		"full":            {func(p *player) { p.asked(7, "+QUEUED | -OOM no | ") }, "OOM no", true},
		"within":          {func(p *player) { p.asked(7, verdict("-LOADING no")) }, "LOADING no", true},
		"not allowed":     {func(p *player) { p.asked(7, "+QUEUED | -NOPERM no | ") }, "NOPERM no", false},
		"not logged in":   {func(p *player) { p.hears("MULTI", "-NOAUTH no | ") }, "NOAUTH no", false},
		"unknown command": {func(p *player) { p.hears("MULTI", "-ERR unknown command | ") }, "ERR unknown command", false},
		"not found": {func(p *player) {
			for begin := time.Now(); time.Since(begin) <= time.Second+5*time.Millisecond; time.Sleep(5 * time.Millisecond) {
				p.asked(7, verdict(":0"))
			}
		}, "it does not find the client waiting", true},
	} {
		inBubble(t, Limits{}, func(w *waiting) {
			server := w.blocked("BLPOP q 0")
			w.g.Pause()
			side := w.accept()
			c.refuses(side)
			side.nothing()
			w.until("it to be over", w.ended)
			if got, want := w.busy(), "a blocking command waits, and the server does not end that: "+c.why; got != want {
				w.Errorf("%s: it is busy with %q, want %q", what, got, want)
			}
			if !c.again {
				time.Sleep(5 * time.Second)
				if !w.ended() {
					w.Errorf("%s: the server is asked again", what)
				}
				w.g.Resume(nil)
				w.g.Pause() // another pause is another matter
			}
			w.accept().asked(7, verdict(":1"))
			server.say("*-1 | ")
			w.quiet()
		})
	}
}

// waitingAlone is a session whose client waits, in a pause, without a gate that serves it.
func waitingAlone(t *testing.T, g *Gate) (*session, ender) {
	t.Helper()
	client, theirs := net.Pipe()
	t.Cleanup(func() { _ = client.Close() })
	s := newSession(t.Context(), g, theirs)
	f := blockedFramer(t, "BLPOP q 0")
	s.framer, s.waiter = f, f
	s.pause = &pause{}
	s.backend, _ = net.Pipe()
	return s, f.unblock()
}

// The number is asked for at the server that has given it, or not at all.
func TestWaitIsEndedWhereItIs(t *testing.T) {
	for what, change := range map[string]func(s *session){
		"":                      func(*session) {},
		"the session has ended": func(s *session) { s.closed = true },
		"the pause is over":     func(s *session) { s.pause = nil },
		"there is another":      func(s *session) { s.pause = &pause{} },
		"it has another server": func(s *session) { s.backend, _ = net.Pipe() },
		"it has none":           func(s *session) { s.backend = nil },
	} {
		synctest.Test(t, func(t *testing.T) {
			dial, accept := pipedServer(t)
			g, err := NewGate(Redis, dial, Limits{}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			s, e := waitingAlone(t, g)
			p, backend := s.pause, s.backend
			change(s)
			var forced, perhaps bool
			var asked sync.WaitGroup
			asked.Go(func() { forced, perhaps, err = s.end(t.Context(), e, p, backend) })
			server := accept()
			if what == "" {
				server.asked(7, verdict(":1"))
			}
			server.nothing()
			asked.Wait()
			if here := what == ""; forced != here || perhaps || (err == nil) != here {
				t.Errorf("%s: %t, %t, %v", what, forced, perhaps, err)
			}
		})
	}
}

// Many that wait are asked for a few at a time.
func TestWaitsEndedAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most, waiters = 3, 10
		dialing, proceed := make(chan struct{}, waiters), make(chan struct{})
		dial := func(context.Context) (net.Conn, error) {
			dialing <- struct{}{}
			<-proceed
			return nil, errors.New("no server")
		}
		g, err := NewGate(Redis, dial, Limits{Dials: most}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for range waiters {
			s, e := waitingAlone(t, g)
			all.Go(func() { _, _, _ = s.end(t.Context(), e, s.pause, s.backend) })
		}
		for asked := most; asked <= waiters; asked++ {
			synctest.Wait()
			if n := len(dialing); n != asked {
				t.Errorf("%d are asked for, want %d", n, asked)
			}
			proceed <- struct{}{}
		}
		close(proceed)
		all.Wait()
	})
}

// When many that wait are connected again requests are, too.
func TestWaitsLeaveRoomForRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const waiters = 10
		dialing := make(chan struct{}, waiters)
		dial := func(ctx context.Context) (net.Conn, error) {
			dialing <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}
		g, err := NewGate(Redis, dial, Limits{Dials: 4}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		g.try = 0
		for range waiters {
			client, theirs := net.Pipe()
			s := newSession(t.Context(), g, theirs)
			s.framer.(*redisFramer).again = waitOf(redisWords([]byte("BLPOP q 0")), time.Now())
			s.pumps.Go(s.comeAgain)
			defer s.pumps.Wait()
			defer s.close()
			defer func() { _ = client.Close() }()
		}
		synctest.Wait()
		if n := len(dialing); n != 2 {
			t.Errorf("%d of 4 connections are made for those that wait, want 2", n)
		}
	})
}

// One who goes away while his session is being connected again gets no element: nobody would have it.
func TestWaitClientGoneWhileConnected(t *testing.T) {
	addr, client := holding(t)
	theirs, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	dial, accept := playedServer(t)
	g, err := NewGate(Redis, dial, Limits{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s := newSession(t.Context(), g, theirs)
	defer s.pumps.Wait()
	defer s.close()
	s.framer.(*redisFramer).again = waitOf(redisWords([]byte("BLPOP q 0")), time.Now())
	_ = client().conn.Close()
	eventually(t, "it to be noticed", func() bool { return gone(theirs) })
	// It was there when the connection was begun.
	if err := s.tryReach(t.Context(), false, false, nil, s.attach); err == nil {
		t.Error("it is connected")
	}
	accept().nothing()
}
