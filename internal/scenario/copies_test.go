package scenario

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// A replica loses power while it reads its copy: the verify ends, says of it that
// nothing is known, and of the others what is. Meanwhile the snapshot that is read
// stays, whatever is written and pruned.
func TestReplicaLostDuringVerify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, 3)
		defer w.Close()
		w.Script(`
			cluster
			create n1 pg replicas=2
			run n1 web pg
			write n1 pg a one
			await pg ok`)
		fast2 := w.Machine("n2").ZFS.Slow("unmount-snapshot", "", 10*time.Minute)
		fast3 := w.Machine("n3").ZFS.Slow("unmount-snapshot", "", 20*time.Second)
		type answer struct {
			rep api.VerifyReply
			err error
		}
		got := make(chan answer, 1)
		go func() {
			rep, err := w.Machine("n1").API().VerifyVolume(w.ctx(), "pg", api.VerifyRequest{})
			got <- answer{rep, err}
		}()
		w.Await("n3 reads", func() bool { return len(w.Machine("n3").ZFS.SnapshotMounts()) == 1 })
		if _, err := w.Machine("n3").API().VerifyVolume(w.ctx(), "pg", api.VerifyRequest{}); volume.CodeOf(err) != "" {
			t.Fatalf("a second verify meanwhile: %v", err)
		}
		for i := range 10 {
			w.Script("write n1 pg a " + strings.Repeat("x", i+1) + "\nsync n1 pg 60s")
		}
		if n := len(w.Machine("n3").ZFS.SnapshotMounts()); n != 1 {
			t.Errorf("n3 has %d snapshots mounted, want the one that it reads", n)
		}
		w.Machine("n2").Cut()
		var a answer
		select {
		case a = <-got:
		case <-time.After(5 * time.Minute):
			t.Fatal("the verify goes on for ever")
		}
		if a.err != nil {
			t.Fatal(a.err)
		}
		if err := verified(a.rep, []string{"n1=alike", "n2=unread", "n3=alike"}); err != nil || a.rep.Differ || !a.rep.Unread {
			t.Errorf("%v: %+v", err, a.rep)
		}
		fast2()
		fast3()
		w.Machine("n2").Boot()
		w.Script("await pg ok\nverify n1 pg n1=alike n2=alike n3=alike")
		for _, name := range w.Names() {
			if left := w.Machine(name).ZFS.SnapshotMounts(); len(left) > 0 {
				t.Errorf("%s still has %q mounted", name, left)
			}
		}
	})
}

// A caller who goes away takes his verify with him: nothing stays mounted, and the
// next one may begin.
func TestVerifyEndsWithItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, 2)
		defer w.Close()
		w.Script(`
			cluster
			create n1 pg replicas=1
			await pg ok
			slow n2 mount-snapshot 1h`)
		ctx, cancel := context.WithTimeout(w.ctx(), 10*time.Second)
		defer cancel()
		if _, err := w.Machine("n1").API().VerifyVolume(ctx, "pg", api.VerifyRequest{}); err == nil {
			t.Fatal("it ended well")
		}
		w.Await("nothing is mounted", func() bool {
			return len(w.Machine("n1").ZFS.SnapshotMounts())+len(w.Machine("n2").ZFS.SnapshotMounts()) == 0
		})
	})
}

// While copies are read any node tells how far each is. When the caller hangs up, on a node
// that only passed the verify on, all nodes stop reading at once.
func TestVerifyTellsHowFarItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, 3)
		defer w.Close()
		const size = 5000
		w.Script(`
			cluster
			create n1 pg replicas=2
			run n1 web pg
			write n1 pg a ` + strings.Repeat("x", size) + `
			await pg ok`)
		readings := func() []api.Reading {
			v, err := w.Machine("n3").API().Volume(w.ctx(), "pg")
			if err != nil {
				t.Fatal(err)
			}
			return v.Readings
		}
		if got := readings(); len(got) > 0 {
			t.Errorf("before anything is read: %+v", got)
		}
		for _, name := range w.Names() {
			w.Machine(name).trees.slow(time.Second)
		}
		ctx, cancel := context.WithCancel(w.ctx())
		defer cancel()
		got := make(chan error, 1)
		go func() {
			_, err := w.Machine("n2").API().VerifyVolume(ctx, "pg", api.VerifyRequest{})
			got <- err
		}()
		all := func(is func(r api.Reading) bool) func() bool {
			return func() bool {
				list := readings()
				return len(list) == 3 && !slices.ContainsFunc(list, func(r api.Reading) bool { return !r.Told || r.Total < size || !is(r) })
			}
		}
		w.Await("all three read", all(func(r api.Reading) bool { return !r.Done && r.Bytes > 10 && r.Bytes < r.Total }))
		cancel()
		if err := <-got; err == nil {
			t.Error("it ended well")
		}
		stopped := time.Now()
		w.Await("none reads any more", all(func(r api.Reading) bool { return r.Done && r.Bytes < r.Total }))
		if took := time.Since(stopped); took > 20*time.Second {
			t.Errorf("they stopped after %s", took)
		}
		for _, name := range w.Names() {
			w.Machine(name).trees.slow(0)
			if left := w.Machine(name).ZFS.SnapshotMounts(); len(left) > 0 {
				t.Errorf("%s still has %q mounted", name, left)
			}
		}
		w.Script("verify n2 pg n1=alike n2=alike n3=alike")
		w.Await("all have read all", all(func(r api.Reading) bool { return r.Done && r.Bytes == r.Total }))
	})
}

// What a killed flockd has left mounted is unmounted by the next one: else the
// snapshot could never be pruned.
func TestLeftoversOfAVerify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, 2)
		defer w.Close()
		w.Script(`
			cluster
			create n1 pg replicas=1
			await pg ok
			snapshot n1 keep pg`)
		ds, err := w.dataset("pg")
		if err != nil {
			t.Fatal(err)
		}
		n1 := w.Machine("n1")
		w.Script("quit n1")
		if err := n1.ZFS.MountSnapshot(w.ctx(), ds+"@keep", "/verify/99"); err != nil {
			t.Fatal(err)
		}
		remove := n1.ZFS.Fail("unmount-snapshot", "", 1, &zfs.Error{Op: "unmount-snapshot", Kind: zfs.ErrBusy})
		defer remove()
		w.Script("flockd n1\nawait pg ok")
		w.Await("nothing is mounted", func() bool { return len(n1.ZFS.SnapshotMounts()) == 0 })
		w.Script("verify n2 pg n1=alike n2=alike")
	})
}
