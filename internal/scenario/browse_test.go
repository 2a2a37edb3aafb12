package scenario

import (
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/volume"
)

// What is being read stays until it is closed, whoever wants it destroyed, and a verify
// beside it does not close it.
func TestBrowsedStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, 2)
		defer w.Close()
		w.Script(`
			cluster
			create n1 pg replicas=1 snapshots=none
			run n1 web pg
			write n1 pg a one
			await pg ok
			snapshot n1 before pg
			write n1 pg a two
			await pg ok
			on n2 pg before`)
		n1, n2 := w.Machine("n1"), w.Machine("n2")
		b, err := n2.API().Browse(w.ctx(), "pg", api.BrowseRequest{Snapshot: "before", Path: "a", As: api.AsFile})
		if err != nil || b.Node.Name != "n2" {
			t.Fatalf("got %+v, %v", b, err)
		}
		w.Script(`
			verify n1 pg n1=alike n2=alike
			drop n1 pg before
			write n1 pg a three
			await pg ok
			sleep 1m
			on n2 pg before`)
		if got, err := io.ReadAll(b.Body); err != nil || string(got) != "one" {
			t.Errorf("read %q, %v", got, err)
		}
		if err := b.Body.Close(); err != nil {
			t.Error(err)
		}
		w.Script(`
			write n1 pg a four
			gone n2 pg before`)
		if left := append(n1.ZFS.SnapshotMounts(), n2.ZFS.SnapshotMounts()...); len(left) > 0 {
			t.Errorf("mounted: %q", left)
		}
	})
}

// Who goes away in the middle lets go of the snapshot, on whichever node it is; and so many may
// read on one node, not more.
func TestBrowseEndsWithItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, 2)
		defer w.Close()
		w.Script(`
			cluster
			create n1 pg replicas=0 snapshots=none
			run n1 web pg
			write n1 pg a one
			await pg ok
			snapshot n1 before pg`)
		n1, n2 := w.Machine("n1"), w.Machine("n2")
		ctx, cancel := context.WithCancel(w.ctx())
		defer cancel()
		req := api.BrowseRequest{Snapshot: "before", Path: "a", As: api.AsFile}
		var open []*api.Browsed
		for range 4 {
			b, err := n1.API().Browse(ctx, "pg", req)
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, b)
		}
		if _, err := n2.API().Browse(ctx, "pg", req); volume.CodeOf(err) != volume.CodeUnavailable {
			t.Errorf("one too many: %v", err)
		}
		for _, b := range open[1:] {
			b.Body.Close()
		}
		w.Await("one is mounted", func() bool { return len(n1.ZFS.SnapshotMounts()) == 1 })
		far, err := n2.API().Browse(ctx, "pg", req)
		if err != nil || far.Node.Name != "n1" {
			t.Fatalf("got %+v, %v", far, err)
		}
		cancel()
		far.Body.Close()
		open[0].Body.Close()
		w.Await("nothing is mounted", func() bool { return len(n1.ZFS.SnapshotMounts()) == 0 })
		w.Script("cat n2 pg@before a one n1")
	})
}

// What one node reads for another keeps to the limit of the line between them.
func TestBrowseKeepsTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, 2)
		defer w.Close()
		w.Script(`
			cluster
			create n1 pg replicas=0 snapshots=none
			run n1 web pg
			write n1 pg a one
			await pg ok
			settings n1 bandwidth:default:default=1M`)
		n1, n2 := w.Machine("n1"), w.Machine("n2")
		const size = 8 << 20
		ds, err := w.dataset("pg")
		if err != nil {
			t.Fatal(err)
		}
		if err := n1.ZFS.WriteFile(ds, "big", make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		w.Script("snapshot n1 before pg")
		for _, tt := range []struct {
			from *Machine
			slow bool
		}{{n1, false}, {n2, true}} {
			began := time.Now()
			b, err := tt.from.API().Browse(w.ctx(), "pg", api.BrowseRequest{Snapshot: "before", Path: "big", As: api.AsFile})
			if err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(io.Discard, b.Body)
			b.Body.Close()
			if took := time.Since(began); n != size || err != nil || tt.slow != (took > 6*time.Second) {
				t.Errorf("on %s: %d bytes in %s, %v", b.Node.Name, n, took, err)
			}
		}
	})
}
