package scenario

import (
	"math"
	"testing"
	"testing/synctest"
	"time"
)

// On machines whose commands of ZFS take 50 ms each, and half a second where all datasets are listed, the
// pause of a move is as long as the few that have to be in it, one after the other: a listing more, or
// a poll, shows. What it consisted of is told, and adds up.
func TestPauseOfSlowMachines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, 3)
		defer w.Close()
		w.Script(`
			cluster
			create n1 db replicas=2 ports=5432/postgres
			run-following n1 pg db
			await db ok
			route n1 5432 pg
			followed n3 pg n1 running`)
		for _, name := range w.Names() {
			w.Machine(name).ZFS.Slow("datasets", "", 450*time.Millisecond)
			w.Machine(name).ZFS.Slow("", "", 50*time.Millisecond)
		}
		for _, to := range []string{"n2", "n1", "n3"} {
			time.Sleep(20 * time.Second) // replication has looked at the copy there
			w.Script("await db ok\nmigrate n1 db " + to + " force\nmigration n1 db done\nroute " + to + " 5432 pg")
			m, err := w.Machine("n1").API().Migration(w.ctx(), "db", "")
			if err != nil || m.Times == nil {
				t.Fatalf("to %s: %+v, %v", to, m, err)
			}
			p := *m.Times
			t.Logf("to %s: %.3f s: %+v", to, m.PausedSeconds, p)
			for part, c := range map[string]struct{ took, most float64 }{
				"unmount": {p.Unmount, 0.05}, "last copy": {p.Copy, 0.1}, "commit": {p.Commit, 0.25}, "takeover": {p.Takeover, 0.15}, "mount": {p.Mount, 0.05},
				"all of it": {m.PausedSeconds, 0.6},
			} {
				if c.took <= 0 && part != "commit" || c.took > c.most+0.03 {
					t.Errorf("to %s: %s took %.3f s, want some time, and at most %.2f", to, part, c.took, c.most)
				}
			}
			if sum := p.Park + p.Stop + p.Unmount + p.Copy + p.Commit + p.Takeover + p.Mount + p.Run + p.Ready + p.Open; math.Abs(sum-m.PausedSeconds) > 0.001 {
				t.Errorf("to %s: the parts add up to %.3f s of %.3f", to, sum, m.PausedSeconds)
			}
		}
	})
}
