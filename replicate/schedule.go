package replicate

import (
	"github.com/flocker-io/flocker/internal/volume"
)

// surplus are the scheduled snapshots that a policy has no room for, oldest first:
// of each of its rules all but the newest Keep, in the order they were taken and
// whatever their names say, since a clock may have jumped. With orphans also those
// of rules that the policy does not have; without, a policy that was changed by
// mistake costs no history.
func surplus(snaps []snap, policy volume.SnapshotPolicy, orphans bool) []snap {
	var out []snap
	for i, s := range snaps {
		if s.rule == 0 {
			continue
		}
		keep, found := 0, false
		for _, r := range policy {
			if r.Every == s.rule {
				keep, found = r.Keep, true
			}
		}
		if !found {
			if orphans {
				out = append(out, s)
			}
			continue
		}
		newer := 0
		for _, later := range snaps[i+1:] {
			if later.rule == s.rule {
				newer++
			}
		}
		if newer >= keep {
			out = append(out, s)
		}
	}
	return out
}
