package placement

import (
	"slices"
	"strings"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// Grow refuses a new spec of a volume that is there when a node which has a copy would
// be too full with what is promised then. A node that cannot be asked does not stand
// in the way: its space is looked at again when anything new is placed there.
func Grow(v *View, vol *state.Volume, next volume.Spec) error {
	now, then := v.claim(vol), next.Size
	if now >= then {
		return nil
	}
	var tight []string
	for id := range nodesOf(vol.Placement) {
		n := v.Node(id)
		if n != nil && n.poolKnown() && n.Pool.Size > 0 && n.usage(then-now) >= maxUsage {
			tight = append(tight, n.Name+" "+full.explain(n, then-now, v.Now))
		}
	}
	if len(tight) == 0 {
		return nil
	}
	slices.Sort(tight)
	return volume.Errorf(volume.CodeRefused, "volume %q cannot grow to %s: %s", vol.Name, volume.FormatSize(next.Size), strings.Join(tight, "; ")).
		WithHint("add space to the pool, or give a smaller size")
}
