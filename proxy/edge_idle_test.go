package proxy

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// An edge whose last client has gone gives its line up, also while there is a pause, of whose end it then does not hear.
// Who comes afterwards is not kept by it.
func TestEdgeIdleInAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		n := NewNode(Options{})
		n.config.Node = "n1"
		r := Route{ID: "r", Mode: Redis, Owner: "n1", Epoch: 1, Server: "127.0.0.1:1"}
		d := newDoor("n1", r, nil, n, log)
		defer d.close()
		n.doors[r.ID] = d
		e, err := newEdge(n, r, secrets{}, log)
		if err != nil {
			t.Fatal(err)
		}
		var work sync.WaitGroup
		defer work.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		work.Go(func() { e.watch(ctx) })
		// visit is a client that says something, which nobody answers.
		visit := func() (leave func()) {
			ours, theirs := net.Pipe()
			work.Go(func() { e.gate.Handle(ctx, theirs) })
			if _, err := ours.Write([]byte("GET a\r\n")); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			return func() { _ = ours.Close() }
		}
		lines := func() int {
			d.mu.Lock()
			defer d.mu.Unlock()
			return len(d.lines)
		}

		leave := visit()
		if lines() != 1 {
			t.Fatal("a client's edge has no line")
		}
		leave()
		time.Sleep(lineIdle * 3 / 4)
		if err := d.begin(0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(lineIdle)
		if lines() != 0 {
			t.Fatal("an edge without clients keeps its line")
		}
		if err := d.resume(""); err != nil {
			t.Fatal(err)
		}
		e.gate.loaded.Store(true) // the server before that pause
		defer visit()()
		if e.gate.loaded.Load() {
			t.Error("the new server passes for one that has loaded")
		}
		if lines() != 1 || len(e.gate.Sessions()) != 1 {
			t.Errorf("a client comes after the pause: the edge has %d lines, and %+v", lines(), e.gate.Sessions())
		}
	})
}
