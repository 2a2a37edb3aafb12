package scenario

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/container/containerfake"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// A mount meets the very moment in which failover is armed: it is taken back, since the
// lease of its node has not begun, and the lease runs by the time that is done. The
// container starts all the same.
func TestMountWhileArming(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, 3)
		defer w.Close()
		w.Script(`
			fencers
			cluster
			settings n1 failover=manual
			mode manual
			create n1 pg`)
		n1 := w.Machine("n1")
		mounting := make(chan struct{})
		until := func(op string, held bool) (remove func()) {
			return n1.ZFS.Inject(zfsfake.Rule{Op: op, Times: 1, Do: func(ctx context.Context, _, _ string) error {
				if op == "mount" {
					close(mounting)
				}
				for now, _ := n1.daemon.Lease(); now != held && ctx.Err() == nil; now, _ = n1.daemon.Lease() {
					time.Sleep(10 * time.Millisecond)
				}
				return ctx.Err()
			}})
		}
		defer until("mount", false)()
		defer until("unmount", true)()
		n1.fencer.refuseOnce()
		n1.calls.Go(func() {
			if err := n1.Engine.Run("web", containerfake.RunOptions{}, "pg"); err != nil {
				t.Errorf("docker run: %v", err)
			}
		})
		<-mounting // else the moment may be over before
		w.Script(`
			settings n1 failover=automatic
			running n1 web
			mode automatic
			write n1 pg f one
			fences n1 0`)
	})
}

// A container is started on a node that has not heard of its volume yet, which another
// node has just made.
func TestRunRightAfterCreate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, 3)
		defer w.Close()
		w.Script("cluster")
		leader, other := w.leaderAndOther()
		w.net.PartitionOneWay(leader.Name, other.Name)
		if err := leader.Engine.CreateVolume("pg", map[string]string{"size": "1G"}); err != nil {
			t.Fatal(err)
		}
		other.calls.Go(func() {
			if err := other.Engine.Run("web", containerfake.RunOptions{}, "pg"); err != nil {
				t.Errorf("docker run: %v", err)
			}
		})
		time.Sleep(500 * time.Millisecond)
		w.net.HealAll()
		w.Script("running " + other.Name + " web")
	})
}
