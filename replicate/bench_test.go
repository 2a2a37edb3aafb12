package replicate

import (
	"context"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
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
	var table []Assignment
	for i := range volumes {
		id := volume.ID(fmt.Sprintf("%016x", i+1))
		b.ids = append(b.ids, id)
		if err := b.host.CreateFilesystem(ctx, b.engine.cfg.dataset(id), nil); err != nil {
			tb.Fatal(err)
		}
		if err := b.host.Mount(ctx, b.engine.cfg.dataset(id), true); err != nil {
			tb.Fatal(err)
		}
		table = append(table, Assignment{Volume: id, Epoch: 1, Role: volume.RolePrimary, Primary: node, Replicas: []volume.NodeID{b.replica}})
	}
	b.engine.Assign(table)
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

// The number of commands of a tick does not depend on the number of volumes.
func TestCommandsPerTick(t *testing.T) {
	for _, volumes := range []int{1, 100, 1000} {
		synctest.Test(t, func(t *testing.T) {
			b := newBusy(t, volumes)
			b.round(t, 0)
			b.host.ResetCommands()
			b.round(t, 1)
			got := b.host.Commands()
			delete(got, "write")
			if len(got) != 3 || got["datasets"] != 1 || got["snapshot"] != 1 || got["snapshots-named"] != 1 {
				t.Errorf("commands of a busy tick with %d volumes: %v", volumes, got)
			}
			b.host.ResetCommands()
			if err := b.engine.tick(context.Background()); err != nil {
				t.Fatal(err)
			}
			if got := b.host.Commands(); len(got) != 1 || got["datasets"] != 1 {
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
			b.ReportMetric(float64(cmds["datasets"]+cmds["snapshot"]+cmds["snapshots-named"])/float64(n), "commands/tick")
		})
	}
}
