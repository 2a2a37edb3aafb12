package scenario

import (
	"context"
	"fmt"
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
		var makers sync.WaitGroup
		for _, name := range w.Names() {
			makers.Go(func() {
				for n := range each {
					req := api.CreateVolumeRequest{Name: fmt.Sprintf("%s-%d", name, n), Options: map[string]string{"replicas": "1"}}
					if _, err := w.Machine(name).API().CreateVolume(w.ctx(), req); err != nil {
						t.Error(err)
					}
				}
			})
		}
		makers.Wait()
		took := time.Since(began)
		w.Await("all are ok", func() bool {
			s, err := w.Machine("n1").API().Status(w.ctx())
			return err == nil && s.Volumes[api.HealthOK] == 3*each
		})
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
