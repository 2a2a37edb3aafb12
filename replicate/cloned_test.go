package replicate

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
	"github.com/flocker-io/flocker/zfs"
)

// A clone that this node has made costs replication no command of zfs: neither its dataset is listed nor its
// snapshots, nor those of its original, while the kernel tells of writes. What a first copy of it takes is there.
func TestCloned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := newBusy(t, 2)
		e := b.engine
		dirty := &hinted{n: map[string]uint64{}}
		e.cfg.Dirty = dirty
		from := e.cfg.dataset(b.ids[0])
		if err := b.host.Snapshot(ctx, []string{from + "@s"}, nil); err != nil {
			t.Fatal(err)
		}
		e.Refresh(b.ids[0])
		tick := func() map[string]int {
			t.Helper()
			b.host.ResetCommands()
			if err := e.tick(ctx); err != nil {
				t.Fatal(err)
			}
			return b.host.Commands()
		}
		tick()
		time.Sleep(e.cfg.List)
		tick() // from here on the next listing is not due for a while

		table := []Assignment{}
		for _, a := range e.table {
			table = append(table, *a)
		}
		const first = 0x00000000000000c0
		for n := range 10 {
			id := volume.ID(fmt.Sprintf("%016x", first+n))
			if err := b.host.Clone(ctx, from+"@s", e.cfg.dataset(id), map[string]string{"flocker:epoch": "0000000000000009"}); err != nil {
				t.Fatal(err)
			}
			// Meanwhile the snapshot is kept for it, as on all nodes.
			for i := range table {
				if table[i].Volume == b.ids[0] {
					table[i].Stay = []uint64{uint64(n + 1)}
				}
			}
			e.Assign(table)
			s, err := b.host.SnapshotsNamed(ctx, []string{from + "@s"})
			if err != nil || len(s) != 1 {
				t.Fatal(s, err)
			}
			e.Cloned(id, 9, s[0])
			table = append(table, Assignment{Volume: id, Epoch: 9, Role: volume.RolePrimary, Primary: e.cfg.Node})
			e.Assign(table)
			if got := tick(); len(got) != 0 {
				t.Errorf("after clone %d a tick costs %v", n, got)
			}
			c := e.copies[id]
			if c == nil || !c.known || len(c.snaps) != 0 || c.epoch != 9 || c.origin != from+"@s" || c.encryption != e.copies[b.ids[0]].encryption || c.encryption == "" {
				t.Fatalf("of a clone is known: %+v", c)
			}
		}
		if o := e.copies[b.ids[0]]; !o.known || !slices.ContainsFunc(o.snaps, func(s snap) bool { return s.name == "s" && s.pinned }) {
			t.Errorf("of the original is known: %+v", o)
		}

		// What is listed later says the same, and a clone that goes is forgotten.
		if err := b.host.Destroy(ctx, e.cfg.dataset(idOf(first))); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * e.cfg.List)
		if got := tick(); got["datasets"] != 1 || got["snapshots"]+got["bookmarks"] != 0 {
			t.Errorf("a later tick costs %v", got)
		}
		if e.copies[idOf(first)] != nil || e.copies[idOf(first+1)] == nil {
			t.Errorf("copies: %v", sortedIDs(e.copies))
		}

		// One that is to have a replica gets its first snapshot at once.
		second := idOf(first + 1)
		for i := range table {
			if table[i].Volume == second {
				table[i].Replicas = []volume.NodeID{"b"}
			}
		}
		e.Assign(table)
		if got := tick(); got["take"] != 1 {
			t.Errorf("with a replica a tick costs %v, and takes no snapshot", got)
		}
	})
}

func idOf(n int) volume.ID { return volume.ID(fmt.Sprintf("%016x", n)) }

// A clone of what this node has not read yet, or that somebody else has seen first, is read as any other.
func TestClonedUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBusy(t, 1)
		e := b.engine
		of := zfs.Snapshot{Dataset: e.cfg.dataset(b.ids[0]), Name: "new", GUID: 77, Referenced: 5}
		id := idOf(0xc0)
		c := e.copyOf(id)
		c.known, c.snaps = true, []snap{{name: "x", guid: 1}}
		e.Cloned(id, 9, of)
		if len(c.snaps) != 1 || c.epoch != 0 {
			t.Errorf("what was read already is now %+v", c)
		}
		if o := e.copies[b.ids[0]]; o.known {
			t.Error("a snapshot of the original has come that is not known, and the original counts as known")
		}
		// A listing that was asked for before the clone was there does not take it away.
		since, asked := e.changes, time.Now()
		e.Cloned(idOf(0xc1), 9, of)
		e.noteDatasets(nil, since, asked)
		if e.copies[idOf(0xc1)] == nil {
			t.Error("the clone is forgotten by an older listing")
		}
		// What is set aside is no copy, and its encryption not known: the dataset is listed for that.
		of.Dataset = "tank/flocker-aside/" + string(b.ids[0])
		e.relist = false
		e.Cloned(idOf(0xc2), 9, of)
		e.Assign([]Assignment{{Volume: idOf(0xc2), Epoch: 9, Role: volume.RolePrimary, Primary: e.cfg.Node}})
		if !e.relist {
			t.Error("nobody asks for what is not known of a clone")
		}
	})
}
