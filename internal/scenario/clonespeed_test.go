package scenario

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

// What a clone of a snapshot costs who waits for it. Where commands of zfs take no time none passes: nothing
// on the way waits for a timer, whether the node is the leader or not. Where they do it takes three of them, whatever else
// the node does: one finds the snapshot, one clones it, one sees that the clone is right. Nor is anything read beside
// that, and the cluster agrees on as little as can be.
func TestWhatACloneCosts(t *testing.T) {
	const each = 500 * time.Millisecond
	for _, c := range []struct {
		node    string // n1 leads
		entries uint64 // of the log, for one clone: made, confirmed, told to all; and where another node leads, told to this one before
	}{{"n1", 3}, {"n2", 4}} {
		t.Run("on "+c.node, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, m, make := cloners(t, c.node)
				defer w.Close()
				m.ZFS.ResetCommands()
				began, before := time.Now(), m.daemon.State().Index
				for n := range 10 {
					make(fmt.Sprintf("a%d", n))
				}
				if took, entries := time.Since(began), m.daemon.State().Index-before; took > 0 || entries > 10*c.entries {
					t.Errorf("ten clones took %v and %d entries, want no time and %d entries", took, entries, 10*c.entries)
				}
				if got, want := m.ZFS.Commands(), map[string]int{"clone": 10, "snapshots-named": 20}; !maps.Equal(got, want) {
					t.Errorf("the commands for ten clones were %v, want %v", got, want)
				}

				m.ZFS.Slow("", "", each)
				time.Sleep(20 * time.Second) // looks and listings are under way, and last
				for n := range 10 {
					began := time.Now()
					make(fmt.Sprintf("b%d", n))
					if took := time.Since(began); took > 3*each {
						t.Errorf("one clone took %v, want no more than three commands of %v", took, each)
					}
				}
				w.Check()
			})
		})
	}
}

// Ten clones that are asked for at once are made at once: how long it takes is not ten times as much, and the snapshot is
// found, and looked at, for all of them together.
func TestTenClonesAtOnce(t *testing.T) {
	const each = 500 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		w, m, make := cloners(t, "n2")
		defer w.Close()
		m.ZFS.Slow("", "", each)
		time.Sleep(20 * time.Second)
		m.ZFS.ResetCommands()
		began := time.Now()
		var all sync.WaitGroup
		for n := range 10 {
			all.Go(func() { make(fmt.Sprintf("t%d", n)) })
		}
		all.Wait()
		took, commands := time.Since(began), m.ZFS.Commands()
		t.Logf("ten clones at once took %v, by %v", took, commands)
		if took > 5*each+each/2 {
			t.Errorf("ten clones at once took %v, want no more than five commands of %v: the first one's and the others' snapshot, a clone, and the same", took, each)
		}
		if commands["clone"] != 10 || commands["snapshots-named"] > 6 {
			t.Errorf("the commands were %v, want ten clones, and not as many looks at their snapshot", commands)
		}
		w.Await("all are ok", func() bool {
			s, err := w.Machine("n1").API().Status(w.ctx())
			return err == nil && s.Volumes[api.HealthOK] == 11
		})
		w.Check()
	})
}

// Who is refused a clone waits for one answer: no second snapshot is taken for it, and waited for.
func TestARefusedCloneIsTriedOnce(t *testing.T) {
	for _, c := range []struct {
		from, options, want string
		atMost              time.Duration
		snapshots           int
	}{
		{"pg", "on=spare replicas=0", "did not get its snapshot within 30s", 31 * time.Second, 1},
		{"pg@young", "on=spare replicas=0", "did not get its snapshot within 30s", 31 * time.Second, 1},
		{"pg@nothing", "replicas=0", "has no snapshot nothing", time.Second, 0},
		{"pg", "replicas=5 strict=true", "must not start degraded", 11 * time.Second, 0},
		{"pg", "replicas=0 ports=5432", "port 5432 is that of volume", time.Second, 1}, // by the state machine
	} {
		t.Run(c.from+" "+c.options, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := NewWorld(t, 3)
				defer w.Close()
				w.Script(`
					cluster
					create n1 pg replicas=1 ports=5432
					run n1 web pg
					write n1 pg a one
					await pg ok
					call spare replica pg
					snapshot n1 before pg
					sync n1 pg 30s
					sleep 20s
					slow spare receive 10m
					write n1 pg a two
					snapshot n1 young pg
					sleep 1s`)
				host := w.Machine("n1").ZFS
				host.ResetCommands()
				began := time.Now()
				w.Script("! clone n1 " + c.from + " x " + c.options + " ~ " + c.want)
				took, commands := time.Since(began), host.Commands()
				t.Logf("it took %v and %v", took, commands)
				if took > c.atMost || commands["take"] > c.snapshots {
					t.Errorf("it took %v and %d snapshots, want no more than %v and %d", took, commands["take"], c.atMost, c.snapshots)
				}
			})
		})
	}
}

// Of two that are asked for at once with one name, in other words, one is made, and the other is told what is there.
func TestTwoClonesOfOneName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m, _ := cloners(t, "n1")
		defer w.Close()
		w.Script("snapshot n1 other pg")
		m.ZFS.Slow("", "", 500*time.Millisecond) // both are under way when one is made
		var all sync.WaitGroup
		errs := make([]error, 2)
		for i, from := range []string{"pg@release", "pg@other"} {
			all.Go(func() {
				req := api.CreateVolumeRequest{Name: "x", Options: map[string]string{volume.FromOption: from, "replicas": "0"}}
				_, errs[i] = m.API().CreateVolume(w.ctx(), req)
			})
		}
		all.Wait()
		made, refused := errs[0], errs[1]
		if made != nil {
			made, refused = refused, made
		}
		if made != nil || refused == nil || !strings.Contains(refused.Error(), "exists already, as a clone of pg@") {
			t.Errorf("got %v, want one of them made", errs)
		}
		w.Check()
	})
}

// cloners is a cluster with a snapshot of a volume, and what makes clones of it on that node.
func cloners(t *testing.T, node string) (w *World, m *Machine, clone func(name string) api.Volume) {
	t.Helper()
	w = NewWorld(t, 3)
	w.Script(strings.ReplaceAll(`
		cluster
		create NODE pg replicas=2
		run NODE web pg
		write NODE pg a one
		await pg ok
		snapshot NODE release pg
		sync NODE pg 30s
		sleep 20s`, "NODE", node))
	m = w.Machine(node)
	self, err := m.API().Node(w.ctx(), node)
	if err != nil {
		t.Fatal(err)
	}
	return w, m, func(name string) api.Volume {
		req := api.CreateVolumeRequest{Name: name, Options: map[string]string{volume.FromOption: "pg@release", "replicas": "0"}, Node: self.ID}
		v, err := m.API().CreateVolume(w.ctx(), req)
		if err != nil {
			t.Error(err)
		}
		return v
	}
}
