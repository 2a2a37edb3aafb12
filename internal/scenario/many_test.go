package scenario

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/zfs/zfsfake"
)

// Making many volumes does not list all datasets for each: the cost of a volume would
// grow with the number of those that are there. Listings are slow here, as with hundreds.
func TestManyMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const each = 20
		w := NewWorld(t, 3)
		defer w.Close()
		w.Script("cluster")
		for _, name := range w.Names() {
			w.Machine(name).ZFS.Slow("datasets", "", 500*time.Millisecond)
			w.Machine(name).ZFS.Slow("", "", 50*time.Millisecond)
			w.Machine(name).ZFS.ResetCommands()
		}
		began := time.Now()
		w.makeMany(each)
		took := time.Since(began)
		w.awaitOK(3 * each)
		listings, commands := 0, 0
		for _, name := range w.Names() {
			for op, n := range w.Machine(name).ZFS.Commands() {
				commands += n
				if op == "datasets" {
					listings += n
				}
			}
		}
		t.Logf("%d volumes made in %v, ok after %v; %d commands, of which %d listings", 3*each, took, time.Since(began), commands, listings)
		if listings > 3*each {
			t.Errorf("%d listings for %d volumes", listings, 3*each)
		}
	})
}

// makeMany makes so many volumes from each node, with a replica.
func (w *World) makeMany(each int) {
	var makers sync.WaitGroup
	for _, name := range w.Names() {
		makers.Go(func() {
			for n := range each {
				req := api.CreateVolumeRequest{Name: fmt.Sprintf("%s-%d", name, n), Options: map[string]string{"replicas": "1"}}
				if _, err := w.Machine(name).API().CreateVolume(w.ctx(), req); err != nil {
					w.t.Error(err)
				}
			}
		})
	}
	makers.Wait()
}

// awaitOK waits until there are so many volumes that are ok.
func (w *World) awaitOK(volumes int) {
	w.Await("all are ok", func() bool {
		s, err := w.Machine("n1").API().Status(w.ctx())
		return err == nil && s.Volumes[api.HealthOK] == volumes
	})
}

// Volumes that nobody writes to have flockd start not one command more, however many there are.
func TestIdleVolumesCostNoCommand(t *testing.T) {
	long(t)
	const few, many = 3, 33 // 333 take two minutes of processor, and not one command more
	commands := func(each int) (all int, ops map[string]int) {
		synctest.Test(t, func(t *testing.T) {
			w := NewWorld(t, 3)
			defer w.Close()
			w.Script("cluster")
			w.makeMany(each)
			w.awaitOK(3 * each)
			time.Sleep(10 * time.Minute) // first snapshots are pruned, and what was new is old
			for _, name := range w.Names() {
				w.Machine(name).ZFS.ResetCommands()
			}
			time.Sleep(10 * time.Minute) // of the bubble, which are what is measured
			ops = make(map[string]int)
			for _, name := range w.Names() {
				for op, n := range w.Machine(name).ZFS.Commands() {
					all += n
					ops[op] += n
				}
			}
		})
		return all, ops
	}
	a, opsA := commands(few)
	b, opsB := commands(many)
	t.Logf("three nodes in ten minutes: %d commands with %d volumes %v, %d with %d %v", a, 3*few, opsA, b, 3*many, opsB)
	if b > a+a/20 { // what is done now and then falls into those minutes or not
		t.Errorf("%d commands with %d idle volumes, %d with %d", b, 3*many, a, 3*few)
	}
}

// A node on which nothing happens lists its datasets for replication only, however long
// that takes: the agent looks at those listings.
func TestIdleNodeListsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, 2)
		defer w.Close()
		w.Script(`
			cluster
			create n1 pg replicas=1
			await pg ok`)
		replica := w.Machine("n2").ZFS
		replica.Slow("datasets", "", 3*time.Second)
		var listings atomic.Int32
		replica.Inject(zfsfake.Rule{Op: "datasets", Do: func(_ context.Context, _, name string) error {
			if name == Pool+"/flocker" {
				listings.Add(1)
			}
			return nil
		}})
		time.Sleep(3 * time.Minute) // both loops learn how long a listing takes
		listings.Store(0)
		time.Sleep(10 * time.Minute)
		t.Logf("%d listings in ten minutes", listings.Load())
		if n := listings.Load(); n > 45 {
			t.Errorf("%d listings in ten minutes, want those of ticks every 15 s", n)
		}
	})
}

// Ten testers get ten clones of one volume, made one after the other on its replica's node while
// each command of zfs takes as long as on a busy machine; and ten at once, from all nodes, one of
// them asked for by everybody.
func TestTenClones(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, 3)
		defer w.Close()
		w.Script(`
			cluster
			create n1 pg replicas=2 size=600G
			run n1 web pg
			write n1 pg a one
			await pg ok`) // of which a pool has room for a few
		for _, name := range w.Names() {
			w.Machine(name).ZFS.Slow("", "", 50*time.Millisecond)
		}
		n2, err := w.Machine("n2").API().Node(w.ctx(), "n2")
		if err != nil {
			t.Fatal(err)
		}
		options := map[string]string{"from": "pg", "replicas": "0"}
		began := time.Now()
		for n := range 10 {
			req := api.CreateVolumeRequest{Name: fmt.Sprintf("test-%d", n), Options: options, Node: n2.ID}
			if _, err := w.Machine("n3").API().CreateVolume(w.ctx(), req); err != nil {
				t.Error(err)
			}
		}
		took := time.Since(began)
		t.Logf("ten clones on a replica's node in %v", took)
		if took > 10*time.Second {
			t.Errorf("ten clones took %v", took)
		}
		var makers sync.WaitGroup
		ids := make(chan string, 15)
		for _, name := range w.Names() {
			for n := range 5 {
				makers.Go(func() {
					req := api.CreateVolumeRequest{Name: fmt.Sprintf("%s-%d", name, n), Options: options}
					if n == 0 {
						req.Name = "shared"
					}
					v, err := w.Machine(name).API().CreateVolume(w.ctx(), req)
					if err != nil {
						t.Error(err)
					}
					ids <- string(v.ID)
				})
			}
		}
		makers.Wait()
		close(ids)
		different := map[string]bool{}
		for id := range ids {
			different[id] = true
		}
		if len(different) != 13 {
			t.Errorf("15 calls for 13 names made %d volumes", len(different))
		}
		w.Await("all are ok", func() bool {
			s, err := w.Machine("n1").API().Status(w.ctx())
			return err == nil && s.Volumes[api.HealthOK] == 24
		})
		w.Check()
	})
}

// Retention may be quicker than the clone that would keep the snapshot: then another one is
// taken, and nobody hears of it. Where it was named there is no other.
func TestCloneOutrun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, 3)
		defer w.Close()
		w.Script(`
			cluster
			create n1 pg replicas=2
			run n1 web pg
			write n1 pg a one
			await pg ok
			snapshot n1 before pg
			sync n1 pg 30s`)
		host := w.Machine("n2").ZFS
		quicker := func() {
			host.Inject(zfsfake.Rule{Op: "clone", Nth: 1, Times: 1, Do: func(ctx context.Context, _, names string) error {
				ds, snapshot, _ := strings.Cut(strings.Fields(names)[0], "@")
				return host.DestroySnapshots(ctx, ds, []string{snapshot})
			}})
		}
		quicker()
		w.Script(`
			clone n1 pg now on=n2 replicas=0
			await now ok
			primary now n2
			hangs n2 now`)
		quicker()
		w.Script(`! clone n1 pg@before then on=n2 replicas=0 ~ snapshot before of volume "pg" is not on n2 any more`)
		if s := w.Machine("n1").daemon.State(); s != nil && s.VolumeByName("then") != nil {
			t.Error("a volume is left of it")
		}
	})
}
