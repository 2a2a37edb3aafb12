package replicate

import (
	"bytes"
	"cmp"
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
)

func TestPickTurn(t *testing.T) {
	dataDriven(t, "turns.txt", func(in map[string]string) string {
		sends, _ := strconv.Atoi(cmp.Or(in["sends"], "8"))
		per, _ := strconv.Atoi(cmp.Or(in["per"], "4"))
		taken := map[volume.NodeID]load{}
		for _, word := range words(in["taken"]) {
			var l load
			to, counts, _ := strings.Cut(word, ":")
			if _, err := fmt.Sscanf(counts, "%d+%d", &l.short, &l.long); err != nil {
				t.Fatalf("taken %q: %v", word, err)
			}
			taken[volume.NodeID(to)] = l
		}
		var names []string
		var waiting []wish
		for _, word := range words(in["waiting"]) {
			var w wish
			word, w.awaited = strings.CutSuffix(word, "!")
			word, w.long = strings.CutSuffix(word, ":L")
			name, rest, _ := strings.Cut(word, ">")
			to, lag, _ := strings.Cut(rest, ":")
			behind, interval, _ := strings.Cut(lag, "/")
			var err1, err2 error
			w.to = volume.NodeID(to)
			w.behind, err1 = time.ParseDuration(behind)
			w.interval, err2 = time.ParseDuration(interval)
			if err1 != nil || err2 != nil {
				t.Fatalf("waiting %q", word)
			}
			names, waiting = append(names, name), append(waiting, w)
		}
		var order []string
		for i := pickTurn(waiting, taken, sends, per); i >= 0; i = pickTurn(waiting, taken, sends, per) {
			l := taken[waiting[i].to]
			if waiting[i].long {
				l.long++
			} else {
				l.short++
			}
			taken[waiting[i].to] = l
			order = append(order, names[i])
			names, waiting = slices.Delete(names, i, i+1), slices.Delete(waiting, i, i+1)
		}
		if len(names) > 0 {
			order = append(order, "("+strings.Join(names, " ")+")")
		}
		return strings.Join(order, " ")
	})
}

func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}

// many makes n volumes on node a and gives their IDs; spread makes some of them
// volumes of primary a with a copy on each of the replicas.
func (w *world) many(n int) (ids []volume.ID) {
	w.Helper()
	for i := range n {
		id := volume.ID(fmt.Sprintf("%016x", i+1))
		ids = append(ids, id)
		w.must(w.node("a").host.CreateFilesystem(context.Background(), testRoot+"/"+string(id), copyProperties(id, 1, nil)))
	}
	return ids
}

func (w *world) spread(ids []volume.ID, replicas ...string) {
	var primary, replica []Assignment
	for _, id := range ids {
		a := Assignment{Volume: id, Epoch: 1, Primary: w.node("a").id, Interval: time.Second, Role: volume.RoleReplica}
		replica = append(replica, a)
		a.Role = volume.RolePrimary
		for _, r := range replicas {
			a.Replicas = append(a.Replicas, w.node(r).id)
		}
		primary = append(primary, a)
	}
	for _, r := range replicas {
		w.node(r).assign(replica...)
	}
	w.node("a").assign(primary...)
}

func (n *node) fill(id volume.ID, file, data string) {
	n.w.Helper()
	ctx, name := context.Background(), testRoot+"/"+string(id)
	n.w.must(n.host.SetProperties(ctx, name, map[string]string{"mountpoint": "/" + string(id)}))
	n.w.must(n.host.Mount(ctx, name, true))
	n.w.must(n.host.WriteFile(name, file, []byte(data)))
	n.w.must(n.host.Unmount(ctx, name))
	n.w.must(n.host.Inherit(ctx, name, "mountpoint"))
}

func (n *node) linkOf(id volume.ID, replica string) volume.LinkStatus {
	for _, l := range n.eng().Links(id) {
		if l.Replica == n.w.node(replica).id {
			return l
		}
	}
	return volume.LinkStatus{}
}

// First copies to two slow replicas have all turns: a third replica gets its
// increments and its first copies all the same, and even the slow ones get increments.
func TestSlowReplicasDoNotStarve(t *testing.T) {
	inBubble(t, "a b c d", func(w *world) {
		a := w.node("a")
		a.stop()
		a.tweak = func(c *Config) { c.Sends = 6 }
		a.start()
		ids := w.many(8)
		old, fresh := ids[0], ids[1:]
		w.spread(ids[:1], "b", "c", "d")
		inSync := func(id volume.ID, r string) func() bool {
			return func() bool { return a.linkOf(id, r).State == volume.LinkInSync }
		}
		for _, r := range []string{"b", "c", "d"} {
			w.waitFor("seeded", inSync(old, r))
		}

		w.mu.Lock()
		w.wrap = func(from, to string, conn net.Conn) net.Conn {
			if to == "b" || to == "c" {
				return newSlowConn(conn, 5*time.Second)
			}
			return conn
		}
		w.mu.Unlock()
		a.hangUp()
		w.node("b").hangUp()
		w.node("c").hangUp()
		w.patience = time.Hour // a first copy to a slow one takes minutes, and they take turns
		big := blob(rand.New(rand.NewPCG(11, 11)), 2<<20)
		for _, id := range fresh {
			a.fill(id, "big", big)
		}
		streaming := func(r string) (n int) {
			for _, id := range fresh {
				if l := a.linkOf(id, r); l.State == volume.LinkSeeding {
					n++
				}
			}
			return n
		}
		w.spread(ids, "b", "c")
		w.waitFor("the slow ones have their turns", func() bool { return streaming("b") == 3 && streaming("c") == 3 })
		w.spread(ids, "b", "c", "d")
		for i := range 5 {
			a.fill(old, "f", fmt.Sprint(i))
			began := time.Now()
			_, err := a.eng().Flush(context.Background(), old, w.node("d").id)
			w.must(err)
			if took := time.Since(began); took > time.Second {
				t.Errorf("a flush to the fast replica took %v", took)
			}
			_, err = a.eng().Flush(context.Background(), old, w.node("b").id)
			w.must(err)
			if took := time.Since(began); took > time.Minute {
				t.Errorf("a flush to the slow replica took %v", took)
			}
		}
		for _, id := range fresh {
			w.waitFor("a first copy on the fast one", inSync(id, "d"))
		}
		if b, c := streaming("b"), streaming("c"); b != 3 || c != 3 {
			t.Errorf("the slow ones have %d and %d first copies under way, want 3 and 3: the test shows nothing", b, c)
		}
		for _, id := range fresh {
			w.waitFor("a first copy on a slow one", inSync(id, "b"))
		}
	})
}

// An idle volume is verified while all turns are taken, and its link stays in sync.
func TestVerifiedWithoutTurn(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a := w.node("a")
		a.stop()
		a.tweak = func(c *Config) { c.SendsPerReplica, c.Sends = 1, 1 }
		a.start()
		ids := w.many(2)
		w.spread(ids[:1], "b")
		w.waitFor("seeded", func() bool { return a.linkOf(ids[0], "b").State == volume.LinkInSync })
		slowNet(w, "a", "b", 20*time.Second)
		a.fill(ids[1], "big", blob(rand.New(rand.NewPCG(12, 12)), 4<<20))
		w.spread(ids, "b")
		w.waitFor("the turn is taken", func() bool { return a.linkOf(ids[1], "b").State == volume.LinkSeeding })
		for a.linkOf(ids[1], "b").State == volume.LinkSeeding {
			time.Sleep(10 * time.Second)
			if l := a.linkOf(ids[0], "b"); l.State != volume.LinkInSync {
				t.Fatalf("the idle volume's link: %+v", l)
			}
		}
	})
}

// A volume that ZFS encrypts is not sent, and its link says why. Nor can a replica below
// an encrypted dataset receive what is sent, which may hold embedded data.
func TestEncrypted(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		secret := copyProperties(testVol, 1, map[string]string{"encryption": "aes-256-gcm"})
		w.must(a.host.CreateFilesystem(context.Background(), a.dataset(), secret))
		a.write("f", "secret")
		w.assign(1, "a", "b")
		w.waitFor("refused", func() bool { return a.link("b").State == volume.LinkRefused })
		if l := a.link("b"); !strings.Contains(l.Error, "encrypted by ZFS (aes-256-gcm)") {
			t.Errorf("the link says %q", l.Error)
		}
		time.Sleep(5 * time.Minute) // nothing must come of it
		if len(b.snapshots()) > 0 {
			t.Error("it was sent")
		}
		if n := a.count(func(ev Event) bool { c, ok := ev.(LinkChanged); return ok && c.Err != nil }); n != 1 {
			t.Errorf("it was told %d times", n)
		}
	})
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		b.stop()
		w.must(b.host.CreateFilesystem(context.Background(), "tank/vault", map[string]string{"encryption": "on"}))
		b.tweak = func(c *Config) { c.Root = "tank/vault" }
		b.start()
		a.create()
		a.write("f", "plain")
		w.assign(1, "a", "b")
		w.waitFor("told why", func() bool { return strings.Contains(a.link("b").Error, "encrypted receive") })
		time.Sleep(5 * time.Minute) // it is tried again, and nothing comes of it
		if l := a.link("b"); l.State == volume.LinkInSync || !strings.Contains(l.Error, "encrypted receive") {
			t.Errorf("the link is %s, %q", l.State, l.Error)
		}
	})
}

// A replica whose pool hangs while it makes what it got its own goes on saying that it
// lives. Its streams have no turn then, so that another volume's get through; status
// gives the reason, before and after the link has given the stream up; and once the
// pool goes on, what it got counts.
func TestReplicaHangsAtTheEnd(t *testing.T) {
	inBubble(t, "a b", func(w *world) {
		a, b := w.node("a"), w.node("b")
		ids := w.many(6)
		stuck, other := ids[:5], ids[5]
		hang := make(chan struct{})
		letGo := sync.OnceFunc(func() { close(hang) })
		defer letGo() // also when the test fails: the node cannot stop before
		pool := &twisted{Host: b.host}
		pool.receive = func(ctx context.Context, req zfs.ReceiveRequest, r io.Reader) error {
			var all bytes.Buffer
			if _, err := all.ReadFrom(r); err != nil {
				return err
			}
			if !strings.Contains(req.Dataset, string(other)) {
				<-hang
			}
			return b.host.Receive(ctx, req, &all)
		}
		b.with(func(c *Config) { c.Pool = pool })
		w.spread(ids, "b")
		w.waitFor("the other volume is seeded", func() bool { return a.linkOf(other, "b").State == volume.LinkInSync })
		for i := range 5 {
			a.fill(other, "f", fmt.Sprint(i))
			began := time.Now()
			_, err := a.eng().Flush(context.Background(), other, b.id)
			w.must(err)
			if took := time.Since(began); took > time.Second {
				t.Errorf("an increment beside streams that hang took %v", took)
			}
		}
		for _, id := range stuck {
			w.waitFor("a reason while it hangs", func() bool { return strings.Contains(a.linkOf(id, "b").Error, "has had the whole stream for") })
		}
		e := a.eng()
		e.mu.Lock()
		if len(e.turns) > 0 {
			t.Errorf("turns taken by streams that are out: %v", e.turns)
		}
		e.mu.Unlock()
		given := func(id volume.ID) int {
			return a.count(func(ev Event) bool {
				s, ok := ev.(StreamEnded)
				return ok && s.Volume == id && errors.Is(s.Err, errSilent)
			})
		}
		for _, id := range stuck {
			w.waitFor("given up", func() bool { return given(id) == 1 })
			w.waitFor("a reason afterwards", func() bool { return strings.Contains(a.linkOf(id, "b").Error, "still being written") })
		}
		letGo()
		for _, id := range stuck {
			w.waitFor("in sync", func() bool { return a.linkOf(id, "b").State == volume.LinkInSync })
			if n := a.count(func(ev Event) bool { s, ok := ev.(StreamEnded); return ok && s.Volume == id && s.Kind == kindFull }); n != 1 {
				t.Errorf("volume %s: %d full streams", id, n)
			}
		}
	})
}

// A replica that hangs before it answers an offer keeps no turn for ever either, and status
// gives the reason, whether the offer went over a new connection or one that was used before.
func TestReplicaHangsBeforeItAnswers(t *testing.T) {
	for _, reused := range []bool{false, true} {
		inBubble(t, "a b", func(w *world) {
			a, b := w.node("a"), w.node("b")
			hang := make(chan struct{})
			letGo := sync.OnceFunc(func() { close(hang) })
			defer letGo() // also when the test fails: the node cannot stop before
			look := &hangingLook{until: hang, name: b.dataset()}
			look.hangs.Store(!reused)
			b.with(func(c *Config) { look.Pool, c.Pool = c.Pool, look })
			w.settle() // it has read its pool, and does not answer that it is starting
			a.create()
			if reused {
				w.assign(1, "a", "b")
				w.waitFor("in sync", w.inSync("a", "b"))
				look.hangs.Store(true)
			}
			w.assign(2, "a", "b")
			w.waitFor("a reason", func() bool { return strings.Contains(a.link("b").Error, errSilent.Error()) })
			letGo()
			w.waitFor("in sync", w.inSync("a", "b"))
		})
	}
}

// hangingLook is a pool that may not tell of one dataset until something has happened.
type hangingLook struct {
	Pool
	name  string
	hangs atomic.Bool
	until chan struct{}
}

func (h *hangingLook) Dataset(ctx context.Context, name string) (zfs.Dataset, error) {
	if name == h.name && h.hangs.Load() {
		<-h.until
	}
	return h.Pool.Dataset(ctx, name)
}
