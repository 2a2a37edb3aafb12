package scenario

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/container/containerfake"
	"github.com/flocker-io/flocker/internal/volume"
)

// Each file of testdata is a story; its name ends in the number of machines.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(file), ".txt")
		n := int(name[len(name)-1] - '0')
		t.Run(name, func(t *testing.T) {
			if sleeps(string(text)) > quick {
				long(t)
			}
			synctest.Test(t, func(t *testing.T) {
				w := NewWorld(t, n)
				defer w.Close()
				w.Script(string(text))
			})
		})
	}
}

// quick is how long a test may take in its bubble to be one of the quick loop: an hour of
// three machines takes half a minute of a processor there, where it has the race detector.
const quick = 30 * time.Minute

// long is called by tests that take longer.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skipf("more than %s in the bubble", quick)
	}
}

// sleeps is for how long a script does nothing.
func sleeps(script string) (all time.Duration) {
	for line := range strings.Lines(script) {
		if words := strings.Fields(line); len(words) == 2 && words[0] == "sleep" {
			d, _ := time.ParseDuration(words[1]) // what is none is refused where it runs
			all += d
		}
	}
	return all
}

// The leader loses power at every moment of a create: the volume is made once or not
// at all, and asking again with the same options gets it.
func TestLeaderLostDuringCreate(t *testing.T) {
	for _, after := range moments(t) {
		t.Run(after.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := NewWorld(t, 3)
				defer w.Close()
				w.Cluster()
				leader, asked := w.leaderAndOther()
				create := func() error {
					_, err := asked.API().CreateVolume(w.ctx(), api.CreateVolumeRequest{Name: "pg", Options: map[string]string{"replicas": "1"}})
					return err
				}
				first := make(chan error, 1)
				go func() { first <- create() }()
				time.Sleep(after)
				leader.Cut()
				if err := <-first; err != nil {
					w.Await("the create works when it is repeated", func() bool { return create() == nil })
				}
				leader.Boot()
				w.Script("await pg ok")
				for _, name := range w.Names() {
					vols, err := w.Machine(name).API().Volumes(w.ctx(), api.VolumesQuery{})
					if err != nil || len(vols) != 1 {
						t.Fatalf("%s lists %d volumes (%v), want the one", name, len(vols), err)
					}
				}
			})
		})
	}
}

// The leader loses power at every moment of a remove: the volume ends in the trash
// with its data, or stays; never in between, and never twice mounted.
func TestLeaderLostDuringRemove(t *testing.T) {
	for _, after := range moments(t) {
		t.Run(after.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := NewWorld(t, 3)
				defer w.Close()
				w.Cluster()
				leader, asked := w.leaderAndOther()
				w.Script(fmt.Sprintf(`
					create %[1]s pg replicas=2
					run %[1]s web pg
					write %[1]s pg file kept
					await pg ok
					stop %[1]s web
					unmounted pg`, asked.Name))
				remove := func() error { return asked.API().RemoveVolume(w.ctx(), "pg", api.RemoveVolumeRequest{}) }
				first := make(chan error, 1)
				go func() { first <- remove() }()
				time.Sleep(after)
				leader.Cut()
				if err := <-first; err != nil {
					w.Await("the remove works when it is repeated", func() bool {
						err := remove()
						return err == nil || volume.CodeOf(err) == volume.CodeNotFound
					})
				}
				leader.Boot()
				w.Script(fmt.Sprintf(`
					await pg trash
					undelete %[1]s pg
					await pg ok
					start %[1]s web
					has %[1]s pg file kept`, asked.Name))
			})
		})
	}
}

// moments are when a fault strikes after something began: each step of a command
// takes some milliseconds of the bubble at most, an election some seconds.
func moments(t *testing.T) []time.Duration {
	out := []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 50 * time.Millisecond, 500 * time.Millisecond}
	if !testing.Short() {
		for d := 100 * time.Microsecond; d < 3*time.Second; d = d * 3 / 2 {
			out = append(out, d)
		}
	}
	return out
}

// leaderAndOther are the machine that leads and one that does not.
func (w *World) leaderAndOther() (leader, other *Machine) {
	w.Await("a leader", func() bool { leader = w.Leader(); return leader != nil })
	for _, name := range w.Names() {
		if name != leader.Name {
			return leader, w.Machine(name)
		}
	}
	return leader, nil
}

// The leader is cut off from the others, without a word, at every moment of a remove:
// what waits for its answer turns to the next one.
func TestLeaderCutOffDuringRemove(t *testing.T) {
	for _, after := range moments(t) {
		t.Run(after.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := NewWorld(t, 3)
				defer w.Close()
				w.Cluster()
				leader, asked := w.leaderAndOther()
				w.Script(fmt.Sprintf(`
					create %[1]s pg replicas=2
					run %[1]s web pg
					await pg ok
					stop %[1]s web
					unmounted pg`, asked.Name))
				remove := func() error { return asked.API().RemoveVolume(w.ctx(), "pg", api.RemoveVolumeRequest{}) }
				first := make(chan error, 1)
				began := time.Now()
				go func() { first <- remove() }()
				time.Sleep(after)
				leader.isolate(true)
				err := <-first
				if took := time.Since(began); took > 30*time.Second {
					t.Errorf("it took %s (%v)", took, err)
				}
				if err != nil {
					began := time.Now()
					w.Await("the remove works when it is repeated", func() bool { return remove() == nil })
					if took := time.Since(began); took > 30*time.Second {
						t.Errorf("after %v the next took %s", err, took)
					}
				}
				leader.isolate(false)
				w.Script("await pg trash")
			})
		})
	}
}

// The target of a move loses its lease while the final copy is made: the move is given up
// with that reason. It was tried again at once, without an end, each time with another
// snapshot.
func TestTargetLosesLeaseDuringMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, 3)
		defer w.Close()
		w.Script(`
			fencers
			cluster
			create n2 pg replicas=2
			run n2 web pg
			write n2 pg a one
			mode automatic
			lease n3 held
			await pg ok
			stop n2 web
			unmounted pg
			slow n2 take 8s
			slow n2 snapshot 8s`)
		first := make(chan error, 1)
		go func() { first <- w.Machine("n3").Engine.Run("other", containerfake.RunOptions{}, "pg") }()
		w.Await("the move has begun", func() bool { return w.newest("pg").Phase == "moving" })
		w.Script("fencer n3 down\nlease n3 revoked\nfast n2")
		w.Await("the move is given up", func() bool {
			v := w.newest("pg")
			return v.Phase == "active" && v.Primary.Name == "n2" && strings.Contains(v.LastRefusal, "lease")
		})
		if n := w.Machine("n2").ZFS.Commands()["take"]; n > 200 {
			t.Errorf("%d snapshots were taken", n)
		}
		w.Script("fencer n3 up\nlease n3 held")
		<-first // whatever Docker was told
		w.Script("await pg ok")
	})
}

// What is removed is what has the name when it is asked for, not what a node remembers
// that was cut off: it said that all was done, and the volume was there.
func TestRemoveWhereAnotherVolumeIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, 3)
		defer w.Close()
		w.Script("cluster\ncreate n1 pg replicas=1\nawait pg ok\nisolate n3")
		n1, n3 := w.Machine("n1").API(), w.Machine("n3").API()
		if err := n1.RemoveVolume(w.ctx(), "pg", api.RemoveVolumeRequest{}); err != nil {
			t.Fatal(err)
		}
		again, err := n1.CreateVolume(w.ctx(), api.CreateVolumeRequest{Name: "pg", Options: map[string]string{"replicas": "0"}})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- n3.RemoveVolume(w.ctx(), "pg", api.RemoveVolumeRequest{}) }()
		time.Sleep(10 * time.Millisecond)
		w.Script("heal")
		err = <-done
		w.Script("sleep 1s")
		v, verr := n1.Volume(w.ctx(), string(again.ID))
		if verr != nil || (err == nil) != (v.Phase == "trash") {
			t.Errorf("n3 says %v of the removal; the volume is %s (%v)", err, v.Phase, verr)
		}
	})
}

// A node that was cut off does not say of a volume that is there that it is not.
func TestRemoveWhereNothingIsKnownYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, 3)
		defer w.Close()
		w.Script("cluster\nisolate n3\ncreate n1 pg replicas=1")
		n3 := w.Machine("n3").API()
		if err := n3.RemoveVolume(w.ctx(), "pg", api.RemoveVolumeRequest{}); err == nil || volume.CodeOf(err) == volume.CodeNotFound {
			t.Errorf("cut off, it says: %v", err)
		}
		w.Script("heal\nsleep 5s\nawait pg ok")
		if err := n3.RemoveVolume(w.ctx(), "pg", api.RemoveVolumeRequest{}); err != nil {
			t.Error(err)
		}
	})
}

// A node comes back with a disk from before the volume was handed to it: it neither
// writes its copy nor sends it to those who hold more.
func TestPrimaryWithOldDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, 2)
		defer w.Close()
		w.Script(`
			cluster
			create n1 pg replicas=1
			run n1 web pg
			await pg ok
			stop n1 web
			unmounted pg
			run n2 other pg
			write n2 pg a one
			await pg ok
			stop n2 other
			unmounted pg
			await pg ok
			quit n2`)
		disk := w.Machine("n2").ZFS
		ds, err := w.dataset("pg")
		if err != nil {
			t.Fatal(err)
		}
		snaps, err := disk.Snapshots(w.ctx(), ds, false)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range snaps {
			if err := disk.DestroySnapshots(w.ctx(), ds, []string{s.Name}); err != nil {
				t.Fatal(err)
			}
		}
		w.Script(`
			property n2 pg flocker:epoch 0000000000000001
			flockd n2
			sleep 1m
			aside 0
			! start n2 other ~ lacks the snapshot
			aside 0`)
	})
}

// The leader loses power and the old primary is cut off, at every moment of a move: the
// answer to its last word is lost, and it cannot ask. The volume is on one of the two
// nodes afterwards, and neither holds what the other has to set aside.
func TestLastWordLostDuringMove(t *testing.T) {
	for after := time.Duration(0); after < 1500*time.Millisecond; after += 120 * time.Millisecond {
		t.Run(after.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := NewWorld(t, 3)
				defer w.Close()
				w.Cluster()
				w.Script(`
					create n2 pg replicas=2
					run n2 web pg
					write n2 pg a one
					await pg ok
					stop n2 web
					unmounted pg`)
				w.net.SetLatency(40 * time.Millisecond)
				first := make(chan error, 1)
				go func() { first <- w.Machine("n3").Engine.Run("other", containerfake.RunOptions{}, "pg") }()
				time.Sleep(after)
				w.Machine("n2").isolate(true)
				w.Machine("n1").Cut()
				w.Machine("n2").isolate(true)
				err := <-first
				time.Sleep(time.Minute)
				w.Machine("n2").isolate(false)
				w.Machine("n1").Boot()
				w.Script("await pg ok")
				if err != nil {
					w.Script("start n3 other")
				}
				w.Script(`
					has n3 pg a one
					await pg ok
					aside 0`)
			})
		})
	}
}
