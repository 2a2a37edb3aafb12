package replicate

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

var (
	histories = flag.Int("histories", 300, "random histories to run")
	seedFlag  = flag.Uint64("seed", 0, "run only the history of this seed")
)

// Random histories of three nodes: writes, user snapshots, cuts, damaged bytes,
// partitions, power cuts, failing commands, and changes of primary that nodes hear
// of late, so that for a while two of them believe to be it. In the end, healed and
// agreed,
//
//   - all copies are alike, and equal guids have equal contents wherever they are;
//   - every write that was ever made is somewhere: in the live copies or in one that
//     was set aside. Nothing destroys the only copy of anything.
//
// And all the time what a link calls acknowledged is on that replica.
func TestHistories(t *testing.T) {
	if *seedFlag != 0 {
		history(t, *seedFlag)
		return
	}
	n := *histories
	if testing.Short() {
		n = min(n, 50)
	}
	first := uint64(time.Now().UnixNano())
	for i := range uint64(n) {
		if history(t, first+i); t.Failed() {
			t.Fatalf("history %d of %d failed; again with -run TestHistories -seed %d", i+1, n, first+i)
		}
	}
}

type past struct {
	*world
	rng    *rand.Rand
	epoch  volume.Epoch
	now    map[string]Assignment // what each node ought to believe
	heard  map[string]Assignment // what it believes
	ready  map[string]bool       // as primary: settled, may be written to
	writes []string
	log    []string
}

func history(t *testing.T, seed uint64) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a", "b", "c")
		defer w.stopAll()
		p := &past{world: w, rng: rand.New(rand.NewPCG(seed, 1)), now: map[string]Assignment{}, heard: map[string]Assignment{}, ready: map[string]bool{}}
		defer func() {
			if t.Failed() {
				t.Logf("seed %d:\n%s", seed, strings.Join(p.log, "\n"))
			}
		}()
		w.wrap = p.unreliable
		w.node("a").create()
		p.ready["a"] = true
		p.appoint("a")
		for _, name := range []string{"a", "b", "c"} {
			p.tell(name)
		}
		for range 15 + p.int(30) {
			p.act()
			synctest.Wait()
			p.ackedIsThere()
		}
		p.heal()
		primary := p.primary()
		for _, other := range []string{"a", "b", "c"} {
			if other != primary {
				w.waitFor(other+" in sync with "+primary, w.inSync(primary, other))
			}
		}
		p.nothingLost()
		w.stopAll()
		w.check()
	})
}

func (p *past) note(format string, args ...any) {
	p.log = append(p.log, time.Now().Format("04:05.000 ")+fmt.Sprintf(format, args...))
}

// unreliable cuts or damages some connections.
func (p *past) unreliable(from, to string, conn net.Conn) net.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rng.IntN(4) > 0 {
		return conn
	}
	left := 1 << p.rng.IntN(20)
	left += p.rng.IntN(left)
	c := &cutter{Conn: conn, flip: p.rng.IntN(3) == 0}
	if p.rng.IntN(2) == 0 {
		c.reads = &left
	} else {
		c.writes = &left
	}
	return c
}

func (p *past) int(n int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rng.IntN(n)
}

func (p *past) pick() string { return string("abc"[p.int(3)]) }

func (p *past) primary() string {
	for name, a := range p.now {
		if a.Role == volume.RolePrimary {
			return name
		}
	}
	return ""
}

// appoint makes the next epoch's assignments; nodes hear of them by tell.
func (p *past) appoint(primary string) {
	p.epoch++
	p.note("epoch %d: primary %s", p.epoch, primary)
	for name := range p.nodes {
		a := Assignment{Volume: testVol, Epoch: p.epoch, Role: volume.RoleReplica, Primary: p.node(primary).id, Interval: time.Second}
		if name == primary {
			a.Role = volume.RolePrimary
			for _, other := range []string{"a", "b", "c"} {
				if other != primary {
					a.Replicas = append(a.Replicas, p.node(other).id)
				}
			}
		}
		p.now[name] = a
	}
}

func (p *past) tell(name string) {
	if p.heard[name].Epoch == p.now[name].Epoch {
		return
	}
	p.note("%s hears of epoch %d", name, p.epoch)
	p.heard[name] = p.now[name]
	p.ready[name] = false
	p.node(name).assign(p.now[name])
	p.settle(name)
}

// settle is what an agent does before it lets anybody write.
func (p *past) settle(name string) {
	n := p.node(name)
	a := p.heard[name]
	if a.Role != volume.RolePrimary || p.ready[name] || p.down(name) {
		return
	}
	ctx, cancel := context.WithTimeout(n.ctx, 5*time.Second)
	defer cancel()
	err := n.eng().Settle(ctx, testVol)
	if err == nil {
		err = n.host.SetProperties(ctx, n.dataset(), map[string]string{propEpoch: a.Epoch.String()})
	}
	p.ready[name] = err == nil
	if err != nil {
		p.note("%s is not settled: %v", name, err)
	}
}

func (p *past) act() {
	name := p.pick()
	n := p.node(name)
	switch p.int(14) {
	case 0, 1, 2, 3:
		for name, n := range p.nodes {
			if p.settle(name); !p.ready[name] || p.down(name) {
				continue
			}
			file := fmt.Sprintf("w%d", len(p.writes))
			p.mu.Lock()
			data := blob(p.rng, 1<<p.rng.IntN(18))
			p.mu.Unlock()
			if err := n.tryWrite(file, data); err == nil {
				p.writes = append(p.writes, file)
				p.note("%s writes %s, %d bytes", name, file, len(data))
			}
		}
	case 4:
		if p.ready[name] && !p.down(name) {
			p.userSnapshot(n)
		}
	case 5:
		other := p.pick()
		if other != name {
			cut := p.int(2) == 0
			p.note("network between %s and %s cut: %v", name, other, cut)
			p.partition(name, other, cut)
		}
	case 6:
		if !p.down(name) {
			p.note("%s loses power", name)
			n.crash()
		}
	case 7:
		p.raise(name)
	case 8:
		op := []string{"receive", "send", "snapshot", "snapshots", "dataset", "datasets", "rename", "clone", "promote", "set", "prune", "destroy-bookmark", "snapshots-named", "bookmarks", "token", "abort"}[p.int(16)]
		after := p.int(2) == 0
		left := 1 + p.int(3)
		p.note("next %d of %s on %s fail, after %v", left, op, name, after)
		n.host.Inject(zfsfake.Rule{Op: op, After: after, Do: func(ctx context.Context, _, _ string) error {
			p.mu.Lock()
			defer p.mu.Unlock()
			if ctx.Value(byEngine{}) == nil || left == 0 {
				return nil
			}
			left--
			return zfsfake.ErrInjected
		}})
	case 9:
		p.promote()
	case 10, 11:
		p.tell(name)
	default:
		time.Sleep(time.Duration(1+p.int(4000)) * time.Millisecond)
	}
	if p.int(2) == 0 {
		time.Sleep(time.Duration(1+p.int(1500)) * time.Millisecond)
	}
}

// userSnapshot takes one, by the engine or by hand, or removes one.
func (p *past) userSnapshot(n *node) {
	ctx, cancel := context.WithTimeout(n.ctx, 5*time.Second)
	defer cancel()
	snap := fmt.Sprintf("user%d", len(p.log))
	switch p.int(4) {
	case 0:
		if n.host.Snapshot(ctx, []string{n.dataset() + "@" + snap}, nil) == nil {
			p.note("%s takes @%s by hand", n.name, snap)
			n.eng().Refresh(testVol)
		}
	case 1, 2:
		err := n.eng().TakeSnapshot(ctx, []volume.ID{testVol}, snap)
		p.note("%s takes @%s: %v", n.name, snap, err)
	case 3:
		for _, s := range n.snapshots() {
			if strings.HasPrefix(s.Name, "user") && p.int(2) == 0 {
				err := n.eng().RemoveSnapshot(ctx, testVol, s.Name)
				p.note("%s removes @%s: %v", n.name, s.Name, err)
			}
		}
	}
}

func (p *past) raise(name string) {
	if p.down(name) {
		p.note("%s starts", name)
		p.node(name).start()
	}
}

// promote makes a replica that holds something the primary, as a failover would.
// Some nodes hear of it at once.
func (p *past) promote() {
	var fit []string
	for _, name := range []string{"a", "b", "c"} {
		if !p.down(name) && !p.node(name).eng().Positions()[testVol].IsZero() {
			fit = append(fit, name)
		}
	}
	if len(fit) == 0 {
		return
	}
	to := fit[p.int(len(fit))]
	p.appoint(to)
	p.tell(to)
	for _, name := range []string{"a", "b", "c"} {
		if p.int(2) == 0 {
			p.tell(name)
		}
	}
}

// ackedIsThere: what a link says is acknowledged is on that replica's disk, as a
// snapshot or, when that was pruned, with a newer one. In the midst of a set-aside
// it may be in the fork.
func (p *past) ackedIsThere() {
	for name, n := range p.nodes {
		if p.down(name) {
			continue
		}
		for _, l := range n.eng().Links(testVol) {
			r := p.byID(l.Replica)
			if l.Acked.IsZero() || p.down(r.name) || p.heard[r.name].Epoch != p.heard[name].Epoch {
				continue
			}
			found := false
			list, err := r.host.Snapshots(context.Background(), testRoot, true)
			p.must(err)
			for _, s := range list {
				epoch, seq, ok := volume.ParseSnapshotName(s.Name)
				newer := ok && (volume.Position{Epoch: epoch, Seq: seq}).Compare(l.Acked) > 0
				found = found || s.GUID == l.Acked.GUID || newer
			}
			if !found {
				p.Fatalf("%s believes that %s acknowledged %s, which is not there", name, r.name, l.Acked.SnapshotName())
			}
		}
	}
}

func (p *past) heal() {
	p.note("healed")
	p.mu.Lock()
	p.wrap = nil
	p.mu.Unlock()
	for _, a := range []string{"a", "b", "c"} {
		p.raise(a)
		for _, b := range []string{"a", "b", "c"} {
			if a != b {
				p.partition(a, b, false)
			}
		}
	}
	for _, name := range []string{"a", "b", "c"} {
		p.tell(name)
	}
	p.waitFor("primary settled", func() bool {
		p.settle(p.primary())
		return p.ready[p.primary()]
	})
	p.waitFor("last write", func() bool { return p.node(p.primary()).tryWrite("last", "write") == nil })
}

// nothingLost looks for every write in all datasets of all nodes.
func (p *past) nothingLost() {
	found := map[string]bool{}
	for _, n := range p.nodes {
		list, err := n.host.Datasets(context.Background(), "tank")
		p.must(err)
		for _, d := range list {
			files, err := n.host.Files(d.Name)
			if errors.Is(err, zfs.ErrNotFound) {
				continue
			}
			p.must(err)
			for _, f := range files {
				found[f] = true
			}
		}
	}
	for _, f := range p.writes {
		if !found[f] {
			p.Errorf("%s is lost", f)
		}
	}
}
