package scenario

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/flocker-io/flocker/internal/state"
)

// migratePhases are the parts of a migration of volume db, with a route and a container that
// follows: what makes each last, and how it is told. All of that has an end of its own.
var migratePhases = []struct {
	name, before, text string
	lone               bool // one replica, which is not on the target
}{
	{name: "first copy", before: "slow TARGET receive 3s", text: "first copy to", lone: true},
	{name: "pre-stop", before: "hook SOURCE hangs", text: "running the pre-stop hook"},
	{name: "pre-copy", before: "slow TARGET receive 3s", text: "pre-copy round"},
	{name: "joining", before: "slow TARGET receive 5s log", text: "waiting for volume log, which goes along"},
	{name: "parking", before: "busy SOURCE 6379 10.0.0.9:1", text: "to be at a quiet point"},
	{name: "stopping", before: "stop-takes SOURCE redis 4s", text: "stopping container"},
	{name: "final copy", before: "slow SOURCE unmount 4s db", text: "final copy"},
	{name: "starting", before: "slow TARGET mount 4s db", text: "where container redis is starting"},
	{name: "opening", before: "mute TARGET", text: "are about to go on"},
}

// The leader loses power in each phase of a migration, be it the node that the volume leaves, the
// one that it goes to, or another. Without anybody's help, and without it, the migration comes to an
// end; when it is back the volume has one primary, on which the container runs with all data, and
// whose clients are served; and nothing waits any more.
func TestLeaderLostDuringMigrate(t *testing.T) {
	for _, p := range migratePhases {
		for _, role := range []string{"source", "target", "another"} {
			if p.lone && role == "another" {
				continue // where the replica is, nobody says
			}
			t.Run(p.name+", it is the "+role, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := NewWorld(t, 3)
					defer w.Close()
					w.Script("fencers\ncluster\nmode automatic")
					leader, _ := w.leaderAndOther()
					roles := []string{"source", "target", "another"} // by whom each of the machines is
					names := slices.DeleteFunc(w.Names(), func(n string) bool { return n == leader.Name })
					names = slices.Insert(names, slices.Index(roles, role), leader.Name)
					source, target := names[0], names[1]
					options := "replicas=2"
					if p.lone {
						options = "replicas=1"
					}
					script := func(text string) {
						t.Helper()
						w.Script(strings.NewReplacer("SOURCE", source, "TARGET", target).Replace(text))
					}
					script("create SOURCE db ports=6379/redis " + options + "\ncreate SOURCE log " + options)
					if v := w.newest("db"); p.lone && len(v.Replicas) > 0 && v.Replicas[0].Node.Name == target {
						target = names[2]
					}
					script(`
						run-following SOURCE redis db log
						write SOURCE db f one
						await db ok
						await log ok
						route SOURCE 6379 redis`)
					if !p.lone {
						script("followed TARGET redis SOURCE running\nimage TARGET redis:1")
					}
					script(p.before + "\nmigrate SOURCE db TARGET\nmigration SOURCE db running " + p.text)

					if at := w.Leader(); at != leader {
						t.Fatalf("another one leads by now: %v", at)
					}
					leader.Cut()
					w.Await("the migration is over, without the one that led", func() bool {
						return slices.ContainsFunc(w.Names(), func(n string) bool {
							if m := w.nodes[n]; m.Up() {
								got, err := m.API().Migration(w.ctx(), "db", "")
								return err == nil && (got.State == "done" || got.State == "failed")
							}
							return false
						})
					})
					leader.Boot()
					w.Script("await db ok\nawait log ok\nflowing")

					primary := w.newest("db").Primary.Name
					w.Await("the container runs where the volume is, and nowhere else", func() bool {
						return slices.Equal(w.running("redis"), []string{primary})
					})
					w.Script(fmt.Sprintf("has %s db f one", primary))
					for _, s := range w.states() {
						for _, name := range []string{"db", "log"} {
							v := s.VolumeByName(name)
							if v == nil || v.Phase != state.PhaseActive || v.Pending != nil || v.Migration != nil || s.NodeName(v.Placement.Primary) != primary {
								t.Errorf("volume %s, of which %s is the primary, is left so: %+v", name, primary, v)
							}
						}
					}
				})
			})
		}
	}
}
