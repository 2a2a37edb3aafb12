package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
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
