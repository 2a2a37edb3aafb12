package replicate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// originalVol is what testVol is a clone of.
const originalVol = volume.ID("00000000000000bb")

func (n *node) original() string { return n.root() + "/" + string(originalVol) }

// originally makes a the primary of an original of so many bytes that no compression shrinks,
// which b gets with a snapshot of it, and a clone of that with what is its own: it is not assigned.
func (w *world) originally(bytes, own int) (a, b *node, origin Origin) {
	w.Helper()
	a, b, ctx := w.node("a"), w.node("b"), context.Background()
	w.must(a.disk.CreateFilesystem(ctx, a.original(), copyProperties(originalVol, 1, nil)))
	w.must(a.writeTo(a.original(), "f", blob(rand.New(rand.NewPCG(1, 7)), bytes)))
	w.assignBoth(Origin{}, false, "a", "b")
	w.waitFor("b has a copy", func() bool { d, err := b.disk.Dataset(ctx, b.original()); return err == nil && d.Referenced > 0 })
	w.waitFor("it is known", func() bool { return b.eng().Positions()[originalVol] != volume.Position{} })
	w.must(a.disk.Snapshot(ctx, []string{a.original() + "@s"}, nil))
	a.eng().Refresh(originalVol)
	w.waitFor("b has the snapshot", func() bool { return b.guidOf("s") != 0 })
	w.must(a.disk.Clone(ctx, a.original()+"@s", a.dataset(), copyProperties(testVol, 1, nil)))
	a.write("own", blob(rand.New(rand.NewPCG(2, 7)), own))
	return a, b, Origin{originalVol, a.guidOf("s"), true}
}

// guidOf is that of one of the original's snapshots here; 0: there is none.
func (n *node) guidOf(name string) uint64 {
	list, err := n.disk.SnapshotsNamed(context.Background(), []string{n.original() + "@" + name})
	n.w.must(err)
	if len(list) == 0 {
		return 0
	}
	return list[0].GUID
}

// assignBoth makes a node the primary of the original and, with clone, of testVol, and others
// their replicas.
func (w *world) assignBoth(origin Origin, clone bool, primary string, replicas ...string) {
	var table []Assignment
	for _, as := range []Assignment{{Volume: originalVol, Stay: []uint64{origin.GUID}}, {Volume: testVol, Origin: origin}} {
		if as.Volume == testVol && !clone {
			continue
		}
		as.Epoch, as.Primary, as.Interval = 1, w.node(primary).id, time.Second
		table = append(table, as)
	}
	var ids []volume.NodeID
	for _, r := range replicas {
		ids = append(ids, w.node(r).id)
	}
	for name, n := range w.nodes {
		mine := slices.Clone(table)
		for i := range mine {
			switch {
			case name == primary:
				mine[i].Role, mine[i].Replicas = volume.RolePrimary, ids
			default:
				mine[i].Role = volume.RoleReplica
			}
		}
		n.assign(mine...)
	}
}

// change changes what is assigned to a node; a volume of which keep says no is not any more.
func (n *node) change(keep func(as *Assignment) bool) {
	n.mu.Lock()
	var table []Assignment
	for _, as := range n.table {
		if keep(&as) {
			table = append(table, as)
		}
	}
	n.mu.Unlock()
	n.assign(table...)
}

// leave has the original leave a node.
func (n *node) leave() {
	n.change(func(as *Assignment) bool { as.Origin.Here = false; return as.Volume == testVol })
}

// firstCopies are the kinds of the streams of testVol that made its first copy, and their bytes.
func (n *node) firstCopies() (kinds string, bytes int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []string
	for _, ev := range n.events {
		if s, ok := ev.(StreamEnded); ok && s.Volume == testVol && s.Kind != kindIncremental {
			kind := s.Kind
			if s.Err != nil {
				kind += "!"
			}
			all, bytes = append(all, kind), bytes+s.Bytes
		}
	}
	return strings.Join(all, " "), bytes
}

// hangs says what the copy of testVol on a node is a clone of.
func (n *node) hangs() string {
	n.w.Helper()
	d, err := n.disk.Dataset(context.Background(), n.dataset())
	n.w.must(err)
	return d.Origin
}

// What a replica has of the original is not sent to it once more: the first copy of a clone is
// what it has beyond that, and the replica's copy stands on its own copy of the original.
func TestCloneFirstCopy(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b, origin := w.originally(4<<20, 10<<10)
		// Another dataset that has the same snapshot is somebody else's.
		var other bytes.Buffer
		w.must(a.host.Send(context.Background(), zfs.SendRequest{Snapshot: a.original() + "@s"}, &other))
		w.must(b.host.Receive(context.Background(), zfs.ReceiveRequest{Dataset: "tank/zz"}, &other))
		w.assignBoth(origin, true, "a", "b")
		w.waitFor("in sync", w.inSync("a", "b"))
		if kinds, bytes := a.firstCopies(); kinds != kindClone || bytes == 0 || bytes > 40<<10 {
			t.Errorf("sent: %q, %d bytes of an original of 4 MiB and 10 KiB that are its own", kinds, bytes)
		}
		if got := b.hangs(); got != b.original()+"@s" {
			t.Errorf("it hangs on %q", got)
		}
		d, err := b.host.Dataset(context.Background(), b.dataset())
		w.must(err)
		if !d.ReadOnly || d.CanMount != "noauto" || d.User[propVolume] != string(testVol) || d.User[propEpoch] != volume.Epoch(1).String() {
			t.Errorf("the copy is %+v", d)
		}
		// From there it goes on like any other, and so does the original.
		a.write("own", "more")
		w.must(a.writeTo(a.original(), "f", "other"))
		w.waitFor("in sync again", w.inSync("a", "b"))
		w.tidy()

		// On a replica that becomes the primary it is a clone, too, and its replicas have as little to get.
		w.partition("a", "b", true) // until both know all of what is assigned
		w.must(a.host.Destroy(context.Background(), a.dataset()))
		w.assign(2, "b", "a")
		b.change(func(as *Assignment) bool { as.Origin = origin; return true })
		a.mu.Lock()
		table := append(slices.Clone(a.table), Assignment{Volume: originalVol, Epoch: 1, Role: volume.RolePrimary, Primary: a.id, Stay: []uint64{origin.GUID}})
		a.mu.Unlock()
		table[0].Origin = origin
		a.assign(table...)
		w.partition("a", "b", false)
		w.waitFor("in sync the other way", w.inSync("b", "a"))
		if kinds, _ := b.firstCopies(); kinds != kindClone || a.hangs() != a.original()+"@s" {
			t.Errorf("sent back: %q, and it hangs on %q", kinds, a.hangs())
		}
	})
}

// Whenever something is not as it should be, a first copy is all of it, which needs nothing.
func TestCloneFirstCopyInFull(t *testing.T) {
	ctx := context.Background()
	for name, change := range map[string]func(w *world, a, b *node, origin Origin) Origin{
		"the replica lacks the snapshot": func(w *world, a, b *node, origin Origin) Origin {
			b.change(func(as *Assignment) bool { as.Stay = nil; return true })
			w.must(b.host.DestroySnapshots(ctx, b.original(), []string{"s"}))
			return origin
		},
		"the sender does not know the field": func(w *world, a, b *node, origin Origin) Origin {
			return origin // see below
		},
		"the replica is told of no original": func(w *world, a, b *node, origin Origin) Origin {
			return origin
		},
		"the original is not to be there": func(w *world, a, b *node, origin Origin) Origin {
			return origin
		},
		"its origin was promoted away": func(w *world, a, b *node, origin Origin) Origin {
			w.must(a.host.Promote(ctx, a.dataset()))
			return origin
		},
		"it is a clone of another snapshot": func(w *world, a, b *node, origin Origin) Origin {
			w.must(a.host.Snapshot(ctx, []string{a.original() + "@t"}, nil))
			a.eng().Refresh(originalVol)
			w.waitFor("b has it", func() bool { return b.guidOf("t") != 0 })
			return Origin{originalVol, a.guidOf("t"), true}
		},
		"it is no clone at all": func(w *world, a, b *node, origin Origin) Origin {
			w.must(a.host.Destroy(ctx, a.dataset()))
			a.create()
			a.write("own", "as it is")
			return origin
		},
		"zfs on the replica does not take it": func(w *world, a, b *node, origin Origin) Origin {
			b.withReceive(func(ctx context.Context, req zfs.ReceiveRequest, r io.Reader) error {
				if req.Origin != "" {
					return &zfs.Error{Op: "receive", Stderr: "cannot receive: something new"}
				}
				return b.host.Receive(ctx, req, r)
			})
			return origin
		},
		"zfs on the primary does not send it": func(w *world, a, b *node, origin Origin) Origin {
			a.host.Inject(zfsfake.Rule{Op: "send", Match: a.original() + "@s", Do: func(context.Context, string, string) error {
				return &zfs.Error{Op: "send", Stderr: "cannot send: something new"}
			}})
			return origin
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, "a b", func(w *world) {
				a, b, origin := w.originally(300<<10, 10<<10)
				origin = change(w, a, b, origin)
				a.stop()
				w.assignBoth(origin, true, "a", "b")
				switch name {
				case "the sender does not know the field":
					a.change(func(as *Assignment) bool { as.Origin = Origin{}; return true })
				case "the replica is told of no original":
					b.change(func(as *Assignment) bool { as.Origin = Origin{}; return true })
				case "the original is not to be there":
					b.leave()
				}
				a.start()
				w.waitFor("in sync", w.inSync("a", "b"))
				kinds, _ := a.firstCopies()
				want := kindFull
				if strings.HasPrefix(name, "zfs on") {
					want = strings.Repeat(kindClone+"! ", maxFruitless) + kindFull
				}
				if kinds != want || b.hangs() != "" {
					t.Errorf("sent: %q, and it hangs on %q", kinds, b.hangs())
				}
				w.tidy()
			})
		})
	}
}

// That an answer is not known is no reason for a full copy: it is asked again.
func TestCloneFirstCopyUnknown(t *testing.T) {
	for name, c := range map[string]struct{ on, op string }{
		"the replica's original cannot be listed": {"b", "snapshots"},
		"the replica's original cannot be read":   {"b", "dataset"},
		"the primary's dataset cannot be read":    {"a", "dataset"},
		"its origin cannot be read":               {"a", "snapshots-named"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, "a b", func(w *world) {
				a, b, origin := w.originally(300<<10, 10<<10)
				match := map[string]string{"b": b.original(), "a": a.dataset()}[c.on]
				if c.op == "snapshots-named" {
					match = a.original() + "@s"
				}
				var failing atomic.Bool
				var asked atomic.Int32
				failing.Store(true)
				defer w.node(c.on).host.Inject(zfsfake.Rule{Op: c.op, Match: match, Do: func(ctx context.Context, _, _ string) error {
					if ctx.Value(byEngine{}) == nil || !failing.Load() {
						return nil
					}
					asked.Add(1)
					return &zfs.Error{Op: c.op, Kind: zfs.ErrSuspended, Stderr: "cannot open: pool I/O is currently suspended"}
				}})()
				w.assignBoth(origin, true, "a", "b")
				began := time.Now()
				w.waitFor("it was asked for", func() bool { return asked.Load() > 2 && time.Since(began) > 2*originPatience })
				if kinds, _ := a.firstCopies(); kinds != "" {
					t.Errorf("sent: %q", kinds)
				}
				failing.Store(false)
				w.waitFor("in sync", w.inSync("a", "b"))
				if kinds, _ := a.firstCopies(); kinds != kindClone {
					t.Errorf("sent: %q", kinds)
				}
			})
		})
	}
}

// The replica's copy of the original may just be changing places: then nobody concludes that it
// lacks the snapshot.
func TestCloneFirstCopyOfHalves(t *testing.T) {
	ctx := context.Background()
	half := func(w *world, b *node) {
		w.must(b.host.Clone(ctx, b.original()+"@s", b.original()+"-fork", nil))
		w.must(b.host.Promote(ctx, b.original()+"-fork"))
	}
	whole := func(b *node) error {
		return errors.Join(b.host.Rename(ctx, b.original(), "tank/flocker-aside/"+string(originalVol)+"-0000000000000001-1"),
			b.host.Rename(ctx, b.original()+"-fork", b.original()))
	}
	t.Run("for a while", func(t *testing.T) {
		inBubble(t, "a b", func(w *world) {
			_, b, origin := w.originally(10<<10, 1<<10)
			half(w, b)
			if name, err := b.eng().originFound(ctx, testVol, origin); err == nil || !b.eng().waited(testVol) {
				t.Errorf("half way: %q", name)
			}
			w.must(errors.Join(b.host.CreateFilesystem(ctx, "tank/flocker-aside", nil), whole(b)))
			if name, err := b.eng().originFound(ctx, testVol, origin); err != nil || name != b.original()+"@s" || b.eng().waited(testVol) {
				t.Errorf("afterwards: %q, %v", name, err)
			}
		})
	})
	t.Run("for good", func(t *testing.T) {
		inBubble(t, "a b", func(w *world) {
			a, b, origin := w.originally(10<<10, 1<<10)
			b.host.Inject(zfsfake.Rule{Op: "rename", Match: b.original(), Do: func(ctx context.Context, _, _ string) error {
				if ctx.Value(byEngine{}) == nil {
					return nil
				}
				return &zfs.Error{Op: "rename", Kind: zfs.ErrNoSpace, Stderr: "cannot rename: out of space"}
			}})
			half(w, b)
			began := time.Now()
			w.assignBoth(origin, true, "a", "b")
			w.waitFor("it waits", func() bool { return time.Since(began) > movingPatience-time.Minute })
			if kinds, _ := a.firstCopies(); kinds != "" || !strings.Contains(a.link("b").Error, "set aside") {
				t.Errorf("sent: %q; %+v", kinds, a.link("b"))
			}
			w.waitFor("in sync", w.inSync("a", "b"))
			if kinds, _ := a.firstCopies(); kinds != kindFull || b.hangs() != "" {
				t.Errorf("sent: %q, and it hangs on %q", kinds, b.hangs())
			}
			// Another time it waits as long.
			if e := b.eng(); e.waited(testVol) {
				t.Error("it counts as waiting still")
			}
		})
	})
	t.Run("between two looks", func(t *testing.T) {
		inBubble(t, "a b", func(w *world) {
			_, b, origin := w.originally(10<<10, 1<<10)
			w.must(b.host.CreateFilesystem(ctx, "tank/flocker-aside", nil))
			// What is listed is half of it, and when somebody looks for the rest there is none.
			b.host.Inject(zfsfake.Rule{Op: "snapshots", Match: b.original(), Times: 1, Do: func(context.Context, string, string) error {
				half(w, b)
				return nil
			}})
			b.host.Inject(zfsfake.Rule{Op: "snapshots", Match: b.original(), Times: 1, After: true, Do: func(context.Context, string, string) error {
				return whole(b)
			}})
			if name, err := b.eng().originHere(ctx, origin); err != nil || name != b.original()+"@s" {
				t.Errorf("it is %q, %v", name, err)
			}
		})
	})
	t.Run("encrypted", func(t *testing.T) {
		inBubble(t, "a b", func(w *world) {
			b := w.node("b")
			b.assign(Assignment{Volume: originalVol, Epoch: 1, Role: volume.RoleReplica, Primary: w.node("a").id})
			w.must(b.host.CreateFilesystem(ctx, b.original(), map[string]string{"encryption": "on"}))
			w.must(b.host.Snapshot(ctx, []string{b.original() + "@s"}, nil))
			if name, err := b.eng().originHere(ctx, Origin{originalVol, b.guidOf("s"), true}); err != nil || name != "" {
				t.Errorf("it is %q, %v", name, err)
			}
		})
	})
}

// cutFirst cuts the first copy of a clone in the middle, and the network with it.
func (w *world) cutFirst() (a, b *node, origin Origin) {
	a, b, origin = w.originally(2<<20, 3<<20)
	w.cutAt("sender", 1<<20)
	w.assignBoth(origin, true, "a", "b")
	w.waitFor("cut", w.isCut)
	w.waitFor("at rest", w.atRest("b"))
	if !b.partial() {
		w.Fatal("nothing is kept")
	}
	return a, b, origin
}

// What was cut goes on, also after a restart of the replica, and is what it would have been.
func TestCloneFirstCopyResumed(t *testing.T) {
	for _, restart := range []bool{false, true} {
		inBubble(t, "a b", func(w *world) {
			a, b, _ := w.cutFirst()
			if restart {
				b.stop()
				b.start()
			}
			w.partition("a", "b", false)
			w.waitFor("in sync", w.inSync("a", "b"))
			if kinds, bytes := a.firstCopies(); kinds != kindClone+"! "+kindResume || bytes > 4<<20 {
				t.Errorf("sent: %q, %d bytes of 3 MiB", kinds, bytes)
			}
			if got := b.hangs(); got != b.original()+"@s" {
				t.Errorf("it hangs on %q", got)
			}
			w.tidy()
		})
	}
}

// A primary that knows nothing of origins cannot go on with what hangs on one, and has it begun
// anew; one that no more has what it hangs on neither.
func TestCloneFirstCopyNotResumed(t *testing.T) {
	for name, change := range map[string]func(w *world, a, b *node){
		"by an older primary": func(w *world, a, b *node) {
			a.change(func(as *Assignment) bool { as.Origin = Origin{}; return true })
		},
		"for a replica that is told of no original": func(w *world, a, b *node) {
			b.change(func(as *Assignment) bool { as.Origin = Origin{}; return true })
		},
		"without the original": func(w *world, a, b *node) {
			b.leave()
		},
		"where zfs has no use for it": func(w *world, a, b *node) {
			a.host.Inject(zfsfake.Rule{Op: "send", Do: func(context.Context, string, string) error {
				if b.partial() {
					return &zfs.Error{Op: "send", Stderr: "cannot resume send: something new"}
				}
				return nil
			}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, "a b", func(w *world) {
				a, b, _ := w.cutFirst()
				change(w, a, b)
				w.partition("a", "b", false)
				w.waitFor("in sync", w.inSync("a", "b"))
				if kinds, _ := a.firstCopies(); !strings.HasSuffix(kinds, kindFull) || b.hangs() != "" {
					t.Errorf("sent: %q, and it hangs on %q", kinds, b.hangs())
				}
				w.tidy()
			})
		})
	}
}

// When the original leaves a node, what is being received on it ends at once, so that nothing holds
// it up; the first copy is made without it.
func TestCloneOriginLeaves(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		ctx := context.Background()
		a, b, origin := w.originally(4<<20, 2<<20)
		stuck, free := make(chan struct{}, 1), make(chan struct{})
		a.mu.Lock()
		a.send = func(ctx context.Context, req zfs.SendRequest, out io.Writer) error {
			if !strings.HasPrefix(req.From, a.original()) || !strings.HasPrefix(req.Snapshot, a.dataset()) {
				return a.host.Send(ctx, req, out)
			}
			return a.host.Send(ctx, req, &stops{out, 1 << 20, ctx, stuck, free})
		}
		a.mu.Unlock()
		w.assignBoth(origin, true, "a", "b")
		hear(t, "the stream is under way", stuck)
		if l := a.link("b"); l.State != volume.LinkSeeding || l.Stream != kindClone || l.Base != "@s" || l.TotalBytes > 3<<20 {
			t.Errorf("told: %+v", l)
		}
		if err := b.host.Destroy(ctx, b.original()); !errors.Is(err, zfs.ErrHasClones) {
			t.Fatalf("destroyed: %v", err)
		}
		began := time.Now()
		b.leave()
		w.must(b.eng().Settled(ctx, testVol, func(ctx context.Context) error { return b.host.Destroy(ctx, b.original()) }))
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it was held up for %v", took)
		}
		close(free)
		w.waitFor("in sync", w.inSync("a", "b"))
		if kinds, _ := a.firstCopies(); !strings.HasSuffix(kinds, " "+kindFull) || b.hangs() != "" {
			t.Errorf("sent: %q, and it hangs on %q", kinds, b.hangs())
		}
		w.tidy()
	})
}

// stops is a writer that goes on after so many bytes only when it is let.
type stops struct {
	io.Writer
	left  int
	ctx   context.Context
	stuck chan struct{}
	free  chan struct{}
}

func (s *stops) Write(p []byte) (int, error) {
	if s.left -= len(p); s.left < 0 {
		select {
		case s.stuck <- struct{}{}:
		default:
		}
		select {
		case <-s.free:
		case <-s.ctx.Done():
			return 0, context.Cause(s.ctx)
		}
	}
	return s.Writer.Write(p)
}

func (s *stops) SetWriteDeadline(t time.Time) error { return zfs.WriteDeadline(s.Writer)(t) }

// The replica's copy of the original goes its own way, and is set aside, before, while and after a
// clone's first copy is made on it: each has in the end what it had.
func TestCloneOriginSetAside(t *testing.T) {
	ctx := context.Background()
	scribble := func(w *world, b *node) {
		w.must(b.writeTo(b.original(), "mine", "own"))
		w.must(b.host.Snapshot(ctx, []string{b.original() + "@mine"}, nil))
		b.eng().Refresh(originalVol)
	}
	aside := func(w *world, a, b *node) {
		w.must(a.writeTo(a.original(), "f", "other"))
		w.waitFor("set aside", func() bool { return b.count(setAside) == 1 })
	}
	for _, when := range []string{"before", "while", "after"} {
		t.Run(when, func(t *testing.T) {
			inBubble(t, "a b", func(w *world) {
				var a, b *node
				var origin Origin
				if when == "while" {
					a, b, _ = w.cutFirst()
				} else {
					a, b, origin = w.originally(300<<10, 10<<10)
				}
				if when == "after" {
					w.assignBoth(origin, true, "a", "b")
					w.waitFor("in sync", w.inSync("a", "b"))
				}
				scribble(w, b)
				if when == "while" {
					w.partition("a", "b", false)
				}
				aside(w, a, b)
				if when == "before" {
					w.assignBoth(origin, true, "a", "b")
				}
				w.waitFor("in sync", w.inSync("a", "b"))
				a.write("own", "more")
				w.waitFor("in sync again", w.inSync("a", "b"))
				want := kindClone
				if when == "while" {
					want += "! " + kindResume
				}
				if kinds, _ := a.firstCopies(); kinds != want || b.hangs() != b.original()+"@s" {
					t.Errorf("sent: %q, and it hangs on %q", kinds, b.hangs())
				}
				if n := b.count(setAside); n != 1 {
					t.Errorf("%d copies set aside", n)
				}
				w.tidy()
			})
		})
	}
}

// What a primary's dataset hangs on is asked of zfs when it is wanted, and what is not known is not
// taken for nothing.
func TestOriginFor(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		change func(w *world, a *node)
		guid   func(g uint64) uint64
		want   func(a *node) string
		err    string
	}{
		"as it was made":      {want: func(a *node) string { return a.original() + "@s" }},
		"of another":          {guid: func(g uint64) uint64 { return g + 1 }},
		"of nothing":          {guid: func(uint64) uint64 { return 0 }},
		"of a renamed one":    {change: func(w *world, a *node) { w.must(a.host.Rename(ctx, a.original()+"@s", a.original()+"@t")) }, want: func(a *node) string { return a.original() + "@t" }},
		"of one in the trash": {change: func(w *world, a *node) { w.must(a.host.Rename(ctx, a.original(), "tank/gone")) }, want: func(*node) string { return "tank/gone@s" }},
		"that has it itself":  {change: func(w *world, a *node) { w.must(a.host.Promote(ctx, a.dataset())) }},
		"that is gone":        {change: func(w *world, a *node) { w.must(a.host.Destroy(ctx, a.dataset())) }, err: "does not exist"},
		"renamed between two looks": {change: func(w *world, a *node) {
			a.host.Inject(zfsfake.Rule{Op: "snapshots-named", Match: a.original() + "@s", Times: 1, Do: func(context.Context, string, string) error {
				return a.host.Rename(ctx, a.original()+"@s", a.original()+"@t")
			}})
		}, err: "another name"},
		"that is half set aside": {change: func(w *world, a *node) {
			w.must(errors.Join(a.host.Snapshot(ctx, []string{a.dataset() + "@x"}, nil), a.host.Clone(ctx, a.dataset()+"@x", a.dataset()+"-fork", nil),
				a.host.Promote(ctx, a.dataset()+"-fork")))
		}, err: "set aside"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, "a b", func(w *world) {
				a, b, origin := w.originally(10<<10, 1<<10)
				w.partition("a", "b", true)
				a.stop()
				if c.guid != nil {
					origin.GUID = c.guid(origin.GUID)
				}
				w.assignBoth(origin, true, "a", "b")
				if c.change != nil {
					c.change(w, a)
				}
				want := ""
				if c.want != nil {
					want = c.want(a)
				}
				l := newLink(a.eng(), linkKey{testVol, b.id, 1}, nil)
				got, err := l.originFor(ctx, guid(origin.GUID))
				if got != want || (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
					t.Errorf("it is %q, %v; want %q, %q", got, err, want, c.err)
				}
				if got, err := l.originFor(ctx, guid(origin.GUID)^1); got != "" || err != nil {
					t.Errorf("of a replica that has another: %q, %v", got, err)
				}
				if l.astray = maxFruitless; c.err == "" {
					if got, err := l.originFor(ctx, guid(origin.GUID)); got != "" || err != nil {
						t.Errorf("that zfs has refused: %q, %v", got, err)
					}
				}
			})
		})
	}
}

// An original that left between the answer and the stream is not hung on.
func TestHangOn(t *testing.T) {
	inBubble(t, "b", func(w *world) {
		e := w.node("b").eng()
		e.mu.Lock()
		rctx, release, _ := e.claim(context.Background(), testVol, 1, "a")
		e.mu.Unlock()
		defer release()
		original := Assignment{Volume: originalVol, Epoch: 1, Role: volume.RoleReplica}
		clone := Assignment{Volume: testVol, Epoch: 1, Role: volume.RoleReplica, Primary: "a", Origin: Origin{originalVol, 9, false}}
		w.node("b").assign(original, clone)
		if err := e.hangOn(testVol); err == nil {
			t.Error("it hangs on what is not to be here")
		}
		clone.Origin.Here = true
		w.node("b").assign(original, clone)
		w.must(e.hangOn(testVol))
		clone.Interval = time.Minute
		w.node("b").assign(original, clone)
		w.node("b").assign(clone) // the original is just being taken over
		if rctx.Err() != nil {
			t.Error("it was broken off while the original is here")
		}
		// What is not here yet may come to a replica, and not to whose copy is the first.
		w.node("b").assign(original, clone)
		e.mu.Lock()
		e.copyOf(originalVol)
		e.mu.Unlock()
		now := time.Now()
		if !e.awaits(testVol, clone.Origin, now) || e.awaits(testVol, clone.Origin, now.Add(originPatience)) {
			t.Error("a replica waits for what may come, and not for ever")
		}
		primary := original
		primary.Role = volume.RolePrimary
		w.node("b").assign(primary, clone)
		if e.awaits(testVol, clone.Origin, now) {
			t.Error("a primary waits for what nobody sends it")
		}
		clone.Origin.Here = false
		w.node("b").assign(clone)
		if rctx.Err() == nil {
			t.Error("it goes on without the original")
		}
	})
}

// A stream begins where it was asked to.
func TestBegins(t *testing.T) {
	full, rest, increment := answer{Verdict: saysFull}, answer{Verdict: saysResume, Token: "S"}, answer{Verdict: saysIncremental, Have: 5}
	hangs := []seed{{token: "S", origin: "o@s"}}
	for _, c := range []struct {
		s    standing
		ans  answer
		from string // what is taken
	}{
		{standing{exists: true}, increment, "5"},
		{standing{exists: true, origin: "o@s", originGUID: 9}, increment, "5"},
		{standing{exists: true}, answer{Verdict: saysResume, Have: 5, Token: "S"}, "5"},
		{standing{}, full, "0"},
		{standing{origin: "o@s", originGUID: 9}, full, "0 9"},
		{standing{origin: "o@s", originGUID: 9, seeds: []seed{{token: "S"}}}, rest, "0"},
		{standing{origin: "o@s", originGUID: 9, seeds: hangs}, rest, "9"},
	} {
		var taken []string
		for _, from := range []guid{0, 5, 9, 7} {
			if c.s.begins(c.ans, from) {
				taken = append(taken, strconv.FormatUint(uint64(from), 10))
			}
		}
		if got := strings.Join(taken, " "); got != c.from {
			t.Errorf("%+v, after %+v: begins at %q, want %q", c.s, c.ans, got, c.from)
		}
	}
}

// A stream that begins where nobody asked for it is not received, be that where a clone's could
// begin on another node.
func TestBeginsElsewhere(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		b.assign(Assignment{Volume: testVol, Epoch: 1, Role: volume.RoleReplica, Primary: a.id, Origin: Origin{originalVol, 9, true}})
		ours, theirs := net.Pipe()
		defer ours.Close()
		w.waitFor("it listens", func() bool { return b.eng().Positions() != nil })
		b.serve(theirs, a.id)
		wire := newWire(ours, time.Minute)
		w.must(wire.writeMessage(frameOffer, offer{Cluster: "test", Volume: testVol, Epoch: 1, Primary: a.id,
			Newest: volume.Position{Epoch: 1, Seq: 1, GUID: 5, Taken: time.Now()}, Bases: []guid{5, 9}}))
		var ans answer
		w.must(wire.expect(frameAnswer, &ans))
		if ans.Verdict != saysFull || ans.Token != "" {
			t.Fatalf("answered: %+v", ans)
		}
		w.must(wire.writeMessage(frameBegin, begin{From: 9, To: 5, Name: "x"}))
		if f, _, err := wire.read(time.Minute); err == nil {
			t.Errorf("it goes on: %c", f)
		}
		w.tidy()
	})
}

func TestOriginToken(t *testing.T) {
	for _, g := range []guid{0, 1, 1<<64 - 1} {
		if got := parseOrigin(originToken(g)); got != g {
			t.Errorf("%d reads back as %d", g, got)
		}
	}
	for _, bad := range []string{"", "7", "origin-", "origin--1", "origin-x", "origin-18446744073709551616", "1-abc-de-f0"} {
		if got := parseOrigin(bad); got != 0 {
			t.Errorf("%q is read as %d", bad, got)
		}
	}
	if err := (&answer{Verdict: saysFull, Token: strings.Repeat("x", maxToken+1)}).check(); err == nil {
		t.Error("a token of any length is taken")
	}
	if err := (&answer{Verdict: saysFull, Token: originToken(1<<64 - 1)}).check(); err != nil {
		t.Error(err)
	}
}

// What was taken for the clone may be on its way to the replica still: that is waited for, and not
// for ever.
func TestCloneFirstCopyWaits(t *testing.T) {
	for _, comes := range []bool{true, false} {
		inBubble(t, "a b", func(w *world) {
			ctx := context.Background()
			a, b, _ := w.originally(300<<10, 10<<10)
			var late atomic.Bool
			late.Store(true)
			a.host.Inject(zfsfake.Rule{Op: "send", Match: a.original(), Do: func(context.Context, string, string) error {
				if late.Load() {
					return &zfs.Error{Op: "send", Kind: zfs.ErrBusy, Stderr: "not yet"}
				}
				return nil
			}})
			w.must(a.host.Destroy(ctx, a.dataset()))
			w.must(a.host.Snapshot(ctx, []string{a.original() + "@t"}, nil))
			w.must(a.host.Clone(ctx, a.original()+"@t", a.dataset(), copyProperties(testVol, 1, nil)))
			a.write("own", "mine")
			a.eng().Refresh(originalVol)
			began := time.Now()
			w.assignBoth(Origin{originalVol, a.guidOf("t"), true}, true, "a", "b")
			if comes {
				w.waitFor("it waits", func() bool { return time.Since(began) > originPatience/2 })
				if kinds, _ := a.firstCopies(); kinds != "" || a.link("b").State != volume.LinkConnecting {
					t.Errorf("sent: %q; %+v", kinds, a.link("b"))
				}
				late.Store(false)
			}
			w.waitFor("in sync", w.inSync("a", "b"))
			want := map[bool]string{true: kindClone, false: kindFull}[comes]
			if kinds, _ := a.firstCopies(); kinds != want || (b.hangs() != "") != comes {
				t.Errorf("when it comes %t: sent %q, and it hangs on %q", comes, kinds, b.hangs())
			}
			if took := time.Since(began); took > 3*originPatience {
				t.Errorf("when it comes %t: it took %v", comes, took)
			}
		})
	}
}

// What a clone has of an original that is gone is nothing of the clone: a replica that has no more
// than that, and what people have taken, has no whole copy, and does not seem to.
func TestCloneNotWhole(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		ctx := context.Background()
		a, b, origin := w.originally(300<<10, 10<<10)
		w.must(a.host.Snapshot(ctx, []string{a.dataset() + "@people"}, nil))
		a.write("own", "more")
		a.host.Inject(zfsfake.Rule{Op: "send", Match: a.dataset() + "@people", Nth: 2, Do: func(context.Context, string, string) error {
			return &zfs.Error{Op: "send", Kind: zfs.ErrBusy, Stderr: "not yet"}
		}})
		w.assignBoth(origin, true, "a", "b")
		w.waitFor("the first stream is through", func() bool { kinds, _ := a.firstCopies(); return kinds == kindClone })
		w.partition("a", "b", true)
		if got := b.snapshots(); len(got) != 1 || got[0].Name != "people" {
			t.Fatalf("it has %+v", got)
		}
		// As the agent destroys the original (shed).
		b.leave()
		b.stop()
		of := volume.Position{Seq: origin.GUID % 1e12}.SnapshotName()
		all, err := b.host.Snapshots(ctx, b.original(), false)
		w.must(err)
		for _, s := range all {
			if s.Name != "s" {
				w.must(b.host.DestroySnapshots(ctx, b.original(), []string{s.Name}))
			}
		}
		w.must(errors.Join(b.host.Rename(ctx, b.original()+"@s", b.original()+"@"+of), b.host.Promote(ctx, b.dataset()), b.host.Destroy(ctx, b.original())))
		b.start()
		w.waitFor("it is read", func() bool { return b.eng().Positions() != nil })
		if got := b.snapshots(); len(got) != 2 || got[0].GUID != origin.GUID {
			t.Fatalf("it has %+v", got)
		}
		if got := b.eng().Positions()[testVol]; !got.IsZero() {
			t.Errorf("its position is %+v", got)
		}
		p, err := b.eng().Promise(ctx, testVol, 2, volume.Line{})
		if err != nil || !p.Exists || !p.Newest.IsZero() {
			t.Errorf("it promises %+v, %v", p, err)
		}
		// A link that is told of nothing else has acknowledged nothing.
		e := a.eng()
		e.mu.Lock()
		l := newLink(e, linkKey{testVol, b.id, 1}, nil)
		c := e.copies[testVol]
		c.snaps = append([]snap{newSnap(zfs.Snapshot{Name: of, GUID: origin.GUID, CreateTXG: 1})}, c.snaps...)
		l.heard(guid(origin.GUID), time.Now())
		acked, seeding := l.acked, l.seeding
		e.mu.Unlock()
		if !acked.IsZero() || !seeding {
			t.Errorf("acknowledged: %+v, seeding: %t", acked, seeding)
		}
		e.Refresh(testVol)
	})
}

// The original is not assigned for a moment, as when it is taken over: what is half received on it
// goes on afterwards, and nothing is sent in full.
func TestCloneOriginTakenOver(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b, _ := w.cutFirst()
		b.mu.Lock()
		table := slices.Clone(b.table)
		b.mu.Unlock()
		b.change(func(as *Assignment) bool { return as.Volume == testVol })
		w.partition("a", "b", false)
		w.waitFor("in sync", w.inSync("a", "b"))
		b.assign(table...)
		if kinds, _ := a.firstCopies(); kinds != kindClone+"! "+kindResume || b.hangs() != b.original()+"@s" {
			t.Errorf("sent: %q, and it hangs on %q", kinds, b.hangs())
		}
	})
}

// A replica that was put back to a version that knows no origins hangs up when its half of a first
// copy goes on: it is asked to throw it away, and gets all.
func TestCloneReplicaPutBack(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b, _ := w.cutFirst()
		var token string
		list, err := b.host.Datasets(context.Background(), testRoot)
		w.must(err)
		for _, d := range list {
			if d.ResumeToken != "" {
				token = d.ResumeToken
			}
		}
		var refused, full atomic.Int32
		// What the versions before did, as far as it matters.
		old := func(conn net.Conn) {
			defer conn.Close()
			wire := newWire(conn, time.Minute)
			var o offer
			if wire.expect(frameOffer, &o) != nil {
				return
			}
			ans := answer{Verdict: saysBusy, Reason: "another volume"}
			if o.Volume == testVol {
				if ans = (answer{Verdict: saysResume, Token: token}); o.NoResume || full.Load() > 0 {
					ans = answer{Verdict: saysFull}
				}
			}
			if wire.writeMessage(frameAnswer, ans) != nil || ans.Verdict == saysBusy {
				return
			}
			var begun begin
			if wire.expect(frameBegin, &begun) != nil {
				return
			}
			if begun.From != ans.Have {
				refused.Add(1)
				return
			}
			full.Add(1)
		}
		var serving sync.WaitGroup
		defer serving.Wait()
		a.with(func(c *Config) {
			c.Dial = func(context.Context, volume.NodeID) (net.Conn, error) {
				ours, theirs := net.Pipe()
				serving.Go(func() { old(theirs) })
				return ours, nil
			}
		})
		w.waitFor("all is sent", func() bool { return full.Load() > 0 })
		if n := refused.Load(); n != maxFruitless {
			t.Errorf("it hung up %d times, want %d", n, maxFruitless)
		}
		a.stop()
	})
}

// Three in a row have half a first copy thrown away: only what a replica does that does not know such
// streams may count.
func TestHungUp(t *testing.T) {
	hard := &zfs.Error{Op: "send", Stderr: "cannot send: dataset is busy", Kind: zfs.ErrBusy}
	for name, c := range map[string]struct {
		err  error
		took time.Duration
		want bool
	}{
		"at the beginning":          {io.ErrUnexpectedEOF, time.Second, true},
		"which ended zfs here":      {fmt.Errorf("sending: %w", errors.Join(io.ErrClosedPipe, &zfs.Error{Op: "send"})), time.Second, true},
		"not at all":                {nil, time.Second, false},
		"in the middle":             {io.ErrUnexpectedEOF, hungUpBy, false},
		"zfs here does not send it": {fmt.Errorf("sending: %w", hard), time.Second, false},
		"it does not get on":        {fmt.Errorf("no acknowledgement: %w", errSilent), time.Second, false},
		"the line does not":         {fmt.Errorf("sending: %w", errStalled), time.Second, false},
	} {
		if got := hungUp(c.err, c.took); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// waited says that a first copy counts as waiting for what it is to hang on.
func (e *Engine) waited(id volume.ID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, waits := e.orphans[id]
	return waits
}

// The original's copy is looked at only for a step that rests on it: what is wrong with it is in the
// way of nothing else.
func TestAsksOrigin(t *testing.T) {
	o := offer{Epoch: 2, Newest: volume.Position{Epoch: 2, Seq: 1, GUID: 5}, Bases: []guid{5, 4}}
	complete, partial := seed{epoch: 2, snaps: []snap{{name: "x", guid: 4}}}, seed{epoch: 2, token: "S"}
	hangs, old := partial, seed{epoch: 1, token: "S"}
	hangs.origin = "o@s"
	for name, c := range map[string]struct {
		s    standing
		want bool
	}{
		"nothing is here":                         {standing{}, true},
		"a seed that is whole":                    {standing{seeds: []seed{complete}}, false},
		"one that is, on the original":            {standing{seeds: []seed{{epoch: 2, origin: "o@s", snaps: complete.snaps}}}, false},
		"half a full one":                         {standing{seeds: []seed{partial}}, false},
		"half a one on the original":              {standing{seeds: []seed{hangs}}, true},
		"an old full one, which goes":             {standing{seeds: []seed{old}}, false},
		"an old one, and half a one on it":        {standing{seeds: []seed{old, hangs}}, false},
		"a copy":                                  {standing{exists: true, epoch: 2, snaps: complete.snaps}, false},
		"a copy, and a seed on the original":      {standing{exists: true, epoch: 2, seeds: []seed{hangs}}, false},
		"a fork":                                  {standing{fork: true}, false},
		"a seed of an epoch that is not heard of": {standing{seeds: []seed{{epoch: 3, token: "S", origin: "o@s"}}}, false},
	} {
		if got := c.s.asksOrigin(decide(o, c.s)); got != c.want {
			t.Errorf("%s: it is asked for: %t", name, got)
		}
	}
}
