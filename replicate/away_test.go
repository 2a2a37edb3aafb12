package replicate

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/transport/memnet"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// onLines connects the nodes by lines that can be cut: what is on its way is held back
// then, and arrives when the line is whole again, also when its sender has hung up by then.
func (w *world) onLines(tweak func(*Config)) *memnet.Network {
	w.Helper()
	lines := memnet.New()
	lines.SetLatency(2 * time.Millisecond)
	for name, n := range w.nodes {
		l, err := lines.Host(name).Listen(context.Background(), "mem", ":1")
		w.must(err)
		w.onStop = append(w.onStop, func() { l.Close() })
		n.with(func(c *Config) {
			c.Dial = func(ctx context.Context, to volume.NodeID) (net.Conn, error) {
				return lines.Host(name).Dial(ctx, "mem", w.byID(to).name+":1")
			}
			tweak(c)
		})
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				from, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
				if !n.serve(conn, w.node(from).id) {
					conn.Close()
				}
			}
		}()
	}
	return lines
}

// after are the events of a kind that a node has told since it had told so many.
func after[E Event](n *node, seen int) (list []E) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, ev := range n.events[seen:] {
		if e, ok := ev.(E); ok {
			list = append(list, e)
		}
	}
	return list
}

func (n *node) told() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.events)
}

// A replica is cut off at any moment of a step, under writes, for so long that it is gone.
// Once it can be reached its primary sends one stream, from what the replica holds by then
// to the newest. What else arrives was on its way when the line was cut: TCP may deliver
// it late, and then it is the base of that one stream. Nothing is sent twice.
func TestOneIncrementAfterAway(t *testing.T) {
	const step = time.Second + 200*time.Millisecond // an interval, and what a tick takes
	every := 20 * time.Millisecond
	if testing.Short() {
		every = 200 * time.Millisecond
	}
	const receiving = -1 // in place of a moment: as zfs receive begins, its stream still to come
	moments := []time.Duration{receiving}
	for at := time.Duration(0); at < step; at += every {
		moments = append(moments, at)
	}
	late := 0
	for _, delivered := range []bool{true, false} {
		for _, at := range moments {
			inBubble(t, "a b c", func(w *world) {
				lines := w.onLines(func(c *Config) { c.Replace = func() time.Duration { return time.Minute } })
				for _, n := range w.nodes { // as long as commands take
					n.host.Slow("take", "", 30*time.Millisecond)
					n.host.Slow("send", "", 20*time.Millisecond)
					n.host.Slow("receive", "", 50*time.Millisecond)
				}
				a, c := w.node("a"), w.node("c")
				a.create()
				a.write("f", "0")
				w.assign(1, "a", "b", "c")
				both := func() bool { return w.inSync("a", "b")() && w.inSync("a", "c")() }
				w.waitFor("in sync", both)

				quit, ended := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(ended)
					for i := 1; ; i++ {
						select {
						case <-quit:
							return
						case <-time.After(50 * time.Millisecond):
							a.write("f", strings.Repeat("x", i%4000))
						}
					}
				}()
				cut := make(chan struct{})
				sever := sync.OnceFunc(func() {
					lines.Partition("a", "c")
					lines.Partition("b", "c")
					close(cut)
				})
				if at == receiving {
					c.host.Inject(zfsfake.Rule{Op: "receive", Do: func(context.Context, string, string) error { sever(); return nil }})
				} else {
					time.Sleep(10*time.Second + at) // of the bubble, in the midst of writes
					sever()
				}
				<-cut
				time.Sleep(140 * time.Second) // of the bubble: noticed after one minute, gone after another
				if !delivered {
					lines.Cut("a", "c")
				}
				close(quit)
				<-ended
				w.waitFor("all is on b", w.inSync("a", "b"))
				newest, _ := a.newest()
				had, seenA, seenC := c.guids(), a.told(), c.told()
				lines.HealAll()
				w.waitFor("in sync", both)

				what := fmt.Sprintf("cut at %v, late bytes delivered: %t", at, delivered)
				came := after[Received](c, seenC)
				sent := slices.DeleteFunc(after[StreamEnded](a, seenA), func(s StreamEnded) bool { return s.Err != nil })
				if len(sent) != 1 || sent[0].Replica != c.id || sent[0].Kind != kindIncremental {
					t.Errorf("%s: sent %v, want one increment to c", what, sent)
				}
				got := slices.DeleteFunc(c.guids(), func(g uint64) bool { return slices.Contains(had, g) })
				if len(got) == 0 || got[len(got)-1] != newest || len(got) > 2 || len(got) != len(came) || !delivered && len(got) > 1 {
					t.Errorf("%s: c received %v and has %d snapshots more", what, came, len(got))
				}
				if at == receiving && len(got) > 1 {
					late++
				}
			})
		}
	}
	if late != 1 {
		t.Errorf("%d of two streams that were on their way arrived late, want the one that was delivered", late)
	}
}
