package replicate

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// A step waits for two commands one after the other, the one that takes the snapshot and
// the one that sends it, and for two trips over the line, of the stream and of the
// acknowledgement: as by hand. The replica is asked while zfs gets ready to send. Only where
// zfs takes as long to receive (it waits for its stream already, when steps follow one another)
// do the offer and the answer take a trip each besides. Nothing else is waited for, whatever
// is listed, read back and pruned meanwhile.
func TestWaitsPerStep(t *testing.T) {
	const trip, command = 2 * time.Millisecond, 100 * time.Millisecond
	for receive, trips := range map[time.Duration]time.Duration{command / 2: 2, command: 4} {
		inBubble(t, "a b", func(w *world) {
			w.onLines(func(*Config) {})
			a, b := w.pair("one")
			for _, n := range w.nodes {
				for _, op := range []string{"take", "send", "prune", "datasets", "dataset", "snapshots", "snapshots-named", "bookmarks"} {
					n.host.Slow(op, "", command)
				}
			}
			b.host.Slow("receive", "", receive)
			w.must(a.eng().Sync(context.Background(), testVol)) // after the seed the replica has to look first
			for i := range 8 * pruneBatch {
				a.write("f", fmt.Sprint(i))
				began := time.Now()
				w.must(a.eng().Sync(context.Background(), testVol))
				if took := time.Since(began); took != 2*command+trips*trip {
					w.Fatalf("step %d, where zfs receive takes %s: %s, want two commands of %s and %d trips of %s",
						i, receive, took, command, trips, trip)
				}
			}
			if n := b.count(func(ev Event) bool { _, ok := ev.(Pruned); return ok }); n == 0 {
				w.Error("nothing was pruned meanwhile")
			}
			// Both are told of each step, with two trips in them at least.
			w.settle() // of the last one, too
			acked := a.count(func(ev Event) bool { k, ok := ev.(Acknowledged); return ok && k.Took >= 2*trip })
			offered := a.count(func(ev Event) bool { o, ok := ev.(Offered); return ok && o.Took >= 2*trip })
			if n := a.streams(""); acked != n || offered < n {
				w.Errorf("of %d streams %d acknowledgements and %d offers were told", n, acked, offered)
			}
		})
	}
}

// BenchmarkStep is this package's own share of a step, both ends of it and the line: over
// TLS, with commands that take no time.
func BenchmarkStep(b *testing.B) {
	w := newWorld(b, "a", "b")
	defer w.stopAll()
	w.real = true // no bubble: nothing is settled
	w.tls = selfSigned(b)
	a, _ := w.pair("one")
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		w.must(a.eng().Sync(ctx, testVol))
	}
}
