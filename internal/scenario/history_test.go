package scenario

import (
	"context"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/daemon"
	"github.com/flocker-io/flocker/internal/volume"
)

var histories = flag.Int("histories", 20, "random client histories to check for linearizability")

// TestLinearizable has clients at all nodes make, remove, bring back, fail over and look
// at a few names, while leaders are lost, nodes are cut off and clients hang up before
// their answer has come. What all of them were told together must be explained by one
// order of events: see register.
//
// An inspect is answered from a node's own memory, so it is taken for a look at some
// moment since the last change that was made through this node was begun, or since it
// was started. One that catches up with the leader first is of its own time.
func TestLinearizable(t *testing.T) {
	for _, seed := range seeds(t, *histories, 4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			if h := runHistory(t, seed, false); !h.linearizable(t) {
				t.Errorf("no order explains it: again with -run '%s' -seed %d\n%s", t.Name(), seed, h)
			}
		})
	}
}

// TestStaleReadIsFound: what a node remembers, told as if it had asked the leader, is
// what the checker has to see.
func TestStaleReadIsFound(t *testing.T) {
	const most = 40
	for seed := range uint64(most) {
		found := false
		t.Run(fmt.Sprint(seed), func(t *testing.T) { found = !runHistory(t, seed, true).linearizable(t) })
		if found || t.Failed() {
			t.Logf("found in history %d", seed)
			return
		}
	}
	t.Errorf("not found in %d histories", most)
}

// history is what clients asked and were told, in the order of a clock of its own: that
// of a bubble stands still while anything runs.
type history struct {
	clock atomic.Int64

	mu    sync.Mutex
	ops   []porcupine.Operation
	fresh map[string]int64 // by machine: what it tells from memory is not older
	lives map[string]*daemon.Daemon
	ids   map[string]volume.ID // by name: one that it had
}

func (h *history) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var b strings.Builder
	for _, op := range h.ops {
		fmt.Fprintf(&b, "%6d to %-19d %v\n", op.Call, op.Return, registers.DescribeOperation(op.Input, op.Output))
	}
	return b.String()
}

func (h *history) linearizable(t *testing.T) bool {
	result := porcupine.CheckOperationsTimeout(registers, h.ops, time.Minute)
	if result == porcupine.Unknown {
		t.Fatalf("%d operations could not be checked within a minute", len(h.ops))
	}
	return result == porcupine.Ok
}

// ask makes one call through a machine and notes what became of it. How old a read may
// be is for the caller to say.
func (h *history) ask(ctx context.Context, machine string, b api.Backend, c call, fresh func(context.Context) error, noted bool) {
	began := h.clock.Add(1)
	h.mu.Lock()
	since := h.fresh[machine]
	h.mu.Unlock()
	a := answer{how: done}
	var v api.Volume
	var err error
	switch c.op {
	case "create":
		v, err = b.CreateVolume(ctx, api.CreateVolumeRequest{Name: c.name, Options: map[string]string{"replicas": "1"}})
		a.id = v.ID
	case "remove":
		err = b.RemoveVolume(ctx, c.name, api.RemoveVolumeRequest{})
	case "undelete":
		_, err = b.UndeleteVolume(ctx, string(c.id), api.UndeleteRequest{})
	case "promote":
		v, err = b.FailoverVolume(ctx, c.name, api.FailoverRequest{})
		a.id, a.epoch, a.primary = v.ID, v.Epoch, v.Primary.ID
	case "read":
		if err = fresh(ctx); err != nil {
			return
		}
		v, err = b.Volume(ctx, c.name)
		a.id, a.epoch, a.primary, a.trash = v.ID, v.Epoch, v.Primary.ID, v.Phase == "trash"
	}
	ended := h.clock.Add(1)
	switch code := volume.CodeOf(err); {
	case err == nil:
	case code == volume.CodeNotFound && c.op != "promote":
		a = answer{how: notFound}
	case code == volume.CodeConflict && (c.op == "create" || c.op == "undelete"):
		a = answer{how: taken}
	case c.op == "read" || c.op == "promote":
		return // it told nothing, and changed nothing that a client would not see by reading
	default:
		a, ended = answer{how: unknown}, math.MaxInt64
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case c.op == "read" && v.Phase == "creating":
		return // it may be given up yet
	case c.op == "read" && !noted:
		began = min(began, since)
	case err == nil:
		h.fresh[machine] = max(h.fresh[machine], began)
	}
	if a.id != "" {
		h.ids[c.name] = a.id
	}
	h.ops = append(h.ops, porcupine.Operation{ClientId: len(h.ops), Input: c, Output: a, Call: began, Return: ended})
}

// runHistory of random faults and clients. With stale, reads that claim to have caught
// up with the leader have not.
func runHistory(t *testing.T, seed uint64, stale bool) *history {
	h := &history{fresh: map[string]int64{}, ids: map[string]volume.ID{}, lives: map[string]*daemon.Daemon{}}
	synctest.Test(t, func(t *testing.T) {
		s := &stormer{Rand: rand.New(rand.NewPCG(seed, 1)), nodes: 3 + int(seed%2)*2}
		w := NewWorld(t, s.nodes)
		defer w.Close()
		w.Script("assume\nfencers\ncluster\nmode automatic")
		w.net.SetLatency(3 * time.Millisecond)
		names := []string{"a", "b"}
		var clients sync.WaitGroup
		defer clients.Wait()
		ask := func(name string, c call, patience time.Duration, catchUp bool) {
			m := w.Machine(name)
			d, b, calling := m.daemon, m.API(), m.calling
			clients.Add(1)
			m.calls.Go(func() {
				defer clients.Done()
				ctx, cancel := context.WithTimeout(calling, patience)
				defer cancel()
				h.ask(ctx, name, b, c, func(ctx context.Context) error {
					if !catchUp || stale {
						return nil
					}
					return d.CatchUp(ctx)
				}, catchUp)
			})
		}
		for range 14 + s.IntN(10) {
			s.script = nil
			if s.IntN(3) == 0 {
				s.fault()
			}
			for _, line := range s.script {
				w.Script(line)
			}
			up := slices.DeleteFunc(w.Names(), func(name string) bool { return !w.Machine(name).Up() })
			h.started(w)
			for range s.IntN(4) {
				c := call{op: pick(s, "create", "create", "remove", "undelete", "read", "read", "promote"), name: pick(s, names...)}
				h.mu.Lock()
				c.id = h.ids[c.name]
				h.mu.Unlock()
				patience, catchUp := pick2(s, s.moment(), time.Minute), s.IntN(3) > 0
				if len(up) > 0 && (c.op != "undelete" || c.id != "") {
					ask(up[s.IntN(len(up))], c, patience, catchUp)
				}
			}
			time.Sleep(min(s.moment(), 5*time.Second))
		}
		w.Script("repair")
		clients.Wait()
		h.started(w)
		// In the end all agree.
		w.Await("a leader", func() bool { return w.Leader() != nil })
		for _, name := range w.Names() {
			for _, v := range names {
				ask(name, call{op: "read", name: v}, time.Minute, true)
			}
		}
		clients.Wait()
	})
	return h
}

func pick2[T any](s *stormer, a, b T) T {
	if s.IntN(2) == 0 {
		return a
	}
	return b
}

// started forgets what machines knew whose flockd is another one since: it remembers
// what it had applied, and not that this was all.
func (h *history) started(w *World) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, m := range w.nodes {
		if h.lives[name] != m.daemon {
			h.lives[name] = m.daemon
			h.fresh[name] = 0
		}
	}
}
