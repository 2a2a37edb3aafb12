package daemon

import (
	"fmt"
	"maps"
	"slices"

	"github.com/flocker-io/flocker/internal/volume"
)

// zoneRisk says which zone the voters cannot do without; "" when there is none. votes
// are the voters by zone. With all of them in one zone nobody has asked for more: zones
// are told apart once there are two. Two zones always have such a one: half of the
// voters is no majority.
func zoneRisk(votes map[volume.Zone]int) string {
	total := 0
	for _, n := range votes {
		total += n
	}
	for _, zone := range slices.Sorted(maps.Keys(votes)) {
		if n := votes[zone]; len(votes) > 1 && 2*(total-n) <= total {
			return fmt.Sprintf("zone %s has %d of %d voters: losing it stops all changes and automatic failover; a node or a witness in a third zone would prevent that", zone, n, total)
		}
	}
	return ""
}
