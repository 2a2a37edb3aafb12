package replicate

import (
	"context"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// busy is an engine without a network whose volumes all have something to
// snapshot; tick leaves it so.
type busy struct {
	host    *zfsfake.Host
	engine  *Engine
	ids     []volume.ID
	replica volume.NodeID
}

func newBusy(tb testing.TB, volumes int) *busy {
	tb.Helper()
	ctx := context.Background()
	b := &busy{host: zfsfake.New(zfsfake.Options{Seed: 1, Pool: "tank", TxgTimeout: -1}), replica: volume.NewNodeID()}
	node := volume.NewNodeID()
	b.engine = New(Config{
		Node: node, ClusterID: "test", Root: testRoot, Pool: b.host,
		Dial: func(context.Context, volume.NodeID) (net.Conn, error) { return nil, context.Canceled },
	})
	if err := b.host.CreateFilesystem(ctx, testRoot, map[string]string{"mountpoint": "/m"}); err != nil {
		tb.Fatal(err)
	}
	for i := range volumes {
		id := volume.ID(fmt.Sprintf("%016x", i+1))
		b.ids = append(b.ids, id)
		if err := b.host.CreateFilesystem(ctx, b.engine.cfg.dataset(id), nil); err != nil {
			tb.Fatal(err)
		}
		if err := b.host.Mount(ctx, b.engine.cfg.dataset(id), true); err != nil {
			tb.Fatal(err)
		}
	}
	b.assign(false, nil)
	if err := b.engine.survey(ctx); err != nil {
		tb.Fatal(err)
	}
	return b
}

// round dirties every volume, pretends that all was acknowledged long ago, and ticks.
func (b *busy) round(tb testing.TB, n int) {
	for _, id := range b.ids {
		if err := b.host.WriteFile(b.engine.cfg.dataset(id), "f", fmt.Append(nil, n)); err != nil {
			tb.Fatal(err)
		}
	}
	b.engine.mu.Lock()
	for _, c := range b.engine.copies {
		c.unproven, c.lastTaken = 0, time.Time{}
	}
	b.engine.mu.Unlock()
	if err := b.engine.tick(context.Background()); err != nil {
		tb.Fatal(err)
	}
}

// assign assigns all volumes: every other as a replica's copy, in step, when so asked.
func (b *busy) assign(replicas bool, policy volume.SnapshotPolicy) {
	var table []Assignment
	for i, id := range b.ids {
		a := Assignment{Volume: id, Epoch: 1, Role: volume.RolePrimary, Primary: b.engine.cfg.Node,
			Replicas: []volume.NodeID{b.replica}, Snapshots: policy}
		if replicas && i%2 == 1 {
			a.Role, a.Primary, a.Replicas = volume.RoleReplica, b.replica, nil
		}
		table = append(table, a)
	}
	b.engine.Assign(table)
	b.engine.mu.Lock()
	defer b.engine.mu.Unlock()
	for _, c := range b.engine.copies {
		c.inStep = 1
	}
}

// commands are those since the last call.
func (b *busy) commands() map[string]int {
	got := b.host.Commands()
	delete(got, "write")
	b.host.ResetCommands()
	return got
}

// A pass that prunes takes no more than a few commands, whatever the number and role of the
// copies: what it leaves is for the next one, which comes by itself. Scheduled snapshots of
// all volumes take one more of each rule.
func TestCommandsToPrune(t *testing.T) {
	for _, volumes := range []int{1, 100, 1000} {
		synctest.Test(t, func(t *testing.T) {
			b := newBusy(t, volumes)
			const excess = pruneBatch + 2
			for i := range keepNewest + excess {
				b.round(t, i)
			}
			b.assign(true, nil)
			b.commands()
			for left := volumes * excess; left > 0; left -= maxDoomed {
				if err := b.engine.prune(context.Background()); err != nil {
					t.Fatal(err)
				}
				pass := min(left, maxDoomed)
				if got := b.commands(); len(got) != 1 || got["prune"] != (pass+zfs.PruneBatch-1)/zfs.PruneBatch {
					t.Errorf("commands to prune %d of %d volumes: %v", pass, volumes, got)
				}
				woken := false
				select {
				case <-b.engine.wakePruner:
					woken = true
				default:
				}
				if rest := left > maxDoomed; woken != rest {
					t.Errorf("with %d left the next pass comes by itself: %v", left-pass, woken)
				}
			}
			for id, n := range b.engine.SnapshotCounts() {
				if list, err := b.engine.Snapshots(context.Background(), id); err != nil || n != keepNewest || len(list) != n {
					t.Fatalf("%d snapshots stay of volume %s, %d on disk, %v", n, id, len(list), err)
				}
			}
			b.commands()
			if err := b.engine.prune(context.Background()); err != nil || len(b.commands()) != 0 {
				t.Errorf("a pass with nothing to prune: %v, or commands", err)
			}

			b.assign(false, parsePolicy(t, "1h:1,1d:1"))
			b.round(t, 1000)
			got := b.commands()
			if len(got) != 2 || got["datasets"] != 1 || got["take"] != 3 {
				t.Errorf("commands of a tick with two rules of %d volumes: %v", volumes, got)
			}
		})
	}
}

// asked is a pool that notes what it is asked to prune.
type asked struct {
	*zfsfake.Host
	reqs []zfs.PruneRequest
}

func (a *asked) Prune(ctx context.Context, reqs []zfs.PruneRequest) (map[string]error, error) {
	a.reqs = append(a.reqs, reqs...)
	return a.Host.Prune(ctx, reqs)
}

// What was not taken lately is said to be aged, and few of them go in one pass; the others
// do not wait for it.
func TestPrunesAged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const volumes, excess = 20, pruneBatch + 2
		b := newBusy(t, volumes)
		pool := &asked{Host: b.host}
		b.engine.cfg.Pool = pool
		for i := range keepNewest + excess {
			b.round(t, i)
		}
		time.Sleep(2 * agedAfter) // by the clock of this node: replicas go by their primaries'
		b.assign(true, nil)
		young := volumes / 2 * excess
		for left := young; left > 0; left -= maxAged {
			pool.reqs = nil
			if err := b.engine.prune(t.Context()); err != nil {
				t.Fatal(err)
			}
			aged := 0
			for _, r := range pool.reqs {
				if r.Aged {
					aged++
				}
			}
			if want := min(left, maxAged); aged != want || len(pool.reqs)-aged != young {
				t.Errorf("with %d aged ones left a pass took %d of them and %d others, want %d and %d", left, aged, len(pool.reqs)-aged, want, young)
			}
			young = 0
		}
	})
}

// still is a pool whose listing costs nothing, so that the engine's share is seen.
type still struct {
	Pool
	list []zfs.Dataset
}

func (s still) Datasets(context.Context, string) ([]zfs.Dataset, error) { return s.list, nil }

// newStill is an engine of idle volumes with a policy.
func newStill(tb testing.TB, volumes int) *Engine {
	tb.Helper()
	b := newBusy(tb, volumes)
	b.assign(true, volume.SnapshotPolicy{{Every: time.Hour, Keep: 24}, {Every: 24 * time.Hour, Keep: 7}})
	for i := range 5 {
		b.round(tb, i)
	}
	list, err := b.host.Datasets(context.Background(), testRoot)
	if err != nil {
		tb.Fatal(err)
	}
	b.engine.cfg.Pool = still{b.host, list}
	return b.engine
}

func idle(tb testing.TB, e *Engine) {
	if err := e.tick(context.Background()); err != nil {
		tb.Fatal(err)
	}
	if list, marks := e.excess(e.plans(time.Now()), time.Now()); len(list)+len(marks) > 0 {
		tb.Fatal("there is something to prune")
	}
}

// An idle tick costs the engine no memory that grows with the number of volumes.
func TestIdleAllocates(t *testing.T) {
	e := newStill(t, 1000)
	if n := testing.AllocsPerRun(20, func() { idle(t, e) }); n > 50 {
		t.Errorf("%v allocations in a tick over 1000 idle volumes", n)
	}
}

// BenchmarkIdleTick is the engine's share of a tick in which nothing is due.
func BenchmarkIdleTick(b *testing.B) {
	for _, volumes := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(volumes), func(b *testing.B) {
			e := newStill(b, volumes)
			b.ReportAllocs()
			for b.Loop() {
				idle(b, e)
			}
		})
	}
}

// The number of commands of a tick does not depend on the number of volumes.
func TestCommandsPerTick(t *testing.T) {
	for _, volumes := range []int{1, 100, 1000} {
		synctest.Test(t, func(t *testing.T) {
			b := newBusy(t, volumes)
			b.round(t, 0)
			b.commands()
			b.round(t, 1)
			got := b.commands()
			if len(got) != 2 || got["datasets"] != 1 || got["take"] != 1 {
				t.Errorf("commands of a busy tick with %d volumes: %v", volumes, got)
			}
			if err := b.engine.tick(context.Background()); err != nil {
				t.Fatal(err)
			}
			if got := b.commands(); len(got) != 1 || got["datasets"] != 1 {
				t.Errorf("commands of an idle tick with %d volumes: %v", volumes, got)
			}
		})
	}
}

// BenchmarkTick is the engine's share of a tick in which every volume is due.
func BenchmarkTick(b *testing.B) {
	for _, volumes := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(volumes), func(b *testing.B) {
			w := newBusy(b, volumes)
			w.host.ResetCommands()
			n := 0
			for b.Loop() {
				n++
				w.round(b, n)
				if n%10 == 0 {
					b.StopTimer()
					if err := w.engine.prune(context.Background()); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
			}
			cmds := w.host.Commands()
			b.ReportMetric(float64(cmds["datasets"]+cmds["take"])/float64(n), "commands/tick")
		})
	}
}
