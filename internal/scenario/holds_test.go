package scenario

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/flocker-io/flocker/internal/api"
)

// A snapshot that is held outlasts its policy on all nodes, pruning, people, and its primary;
// released, it goes as if it had never been held.
func TestHeldSnapshotStays(t *testing.T) {
	long(t)
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, 3)
		defer w.Close()
		w.Script(`
			cluster
			create n1 pg replicas=1 snapshots=5m:1 avoid=n3
			run n1 web pg
			write n1 pg a one
			sync n1 pg`)
		n1, n2, n3 := w.Machine("n1"), w.Machine("n2"), w.Machine("n3")
		scheduled := func(m *Machine) (names []string) {
			list, err := m.API().Snapshots(w.ctx(), "pg")
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range list {
				if s.Kind == "scheduled" {
					names = append(names, s.Name)
				}
			}
			return names
		}
		turn := 0
		age := func(on string) {
			for range 3 {
				turn++
				w.Script(fmt.Sprintf("write %s pg a %d\nsleep 5m", on, turn))
			}
			w.Script("sync " + on + " pg")
		}
		age("n1")
		kept := scheduled(n3)[0]
		w.Script("hold n3 pg " + kept + " audit")
		age("n1")
		if now := scheduled(n3); !slices.Contains(now, kept) || len(now) > 3 {
			t.Errorf("%s is held, and there are %q", kept, now)
		}
		w.Script("on n1 pg " + kept + "\non n2 pg " + kept)
		gone, err := n1.API().PruneSnapshots(w.ctx(), "pg", api.PruneRequest{})
		if err != nil || slices.ContainsFunc(gone, func(s api.Snapshot) bool { return s.Name == kept }) {
			t.Errorf("pruned %v, %v", gone, err)
		}
		w.Script("! drop n3 pg " + kept + " ~ is held since 2000-01-01 00:")
		w.Script("! drop n3 pg " + kept + ` ~ through n3, with the note "audit"`)
		w.Script("! hold n3 pg never ~ no snapshot never\n! release n3 pg never ~ no snapshot never is held")
		list, err := n3.API().Snapshots(w.ctx(), "pg")
		if err != nil || list[len(list)-1].Kind != "engine" {
			t.Fatalf("got %+v, %v", list, err)
		}
		w.Script("! hold n3 pg " + list[len(list)-1].Name + " ~ replication works with")
		d, err := n3.API().Snapshot(w.ctx(), "pg", kept)
		if err != nil || d.Hold == nil || d.Hold.Note != "audit" || len(d.Copies) != 2 || !d.Copies[0].Here || !d.Copies[1].Here {
			t.Errorf("inspected: %+v, %v", d, err)
		}

		// Its new primary knows.
		w.Script(`
			cut n1
			sleep 30s
			promote n3 pg fenced=n1 to=n2
			run n2 web2 pg
			boot n1
			await pg ok`)
		age("n2")
		w.Script("on n1 pg " + kept + "\non n2 pg " + kept + "\n! drop n3 pg " + kept + " ~ is held since")
		w.Script("release n1 pg " + kept)
		age("n2")
		if now := scheduled(n2); slices.Contains(now, kept) {
			t.Errorf("%s is released, and there are %q", kept, now)
		}
		w.Script("gone n1 pg " + kept + "\ngone n2 pg " + kept)
	})
}
