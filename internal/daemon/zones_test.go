package daemon

import (
	"strings"
	"testing"

	"github.com/flocker-io/flocker/internal/volume"
)

// Voters by zone, and the zone that status warns of.
func TestZoneRisk(t *testing.T) {
	for _, c := range []struct {
		name  string
		votes map[volume.Zone]int
		warns string
	}{
		{"nobody votes", nil, ""},
		{"zones are not used", map[volume.Zone]int{"default": 3}, ""},
		{"two zones, three voters", map[volume.Zone]int{"a": 2, "b": 1}, "zone a has 2 of 3 voters"},
		{"two zones, evenly", map[volume.Zone]int{"a": 2, "b": 2}, "zone a has 2 of 4 voters"},
		{"two zones, five voters", map[volume.Zone]int{"a": 2, "b": 3}, "zone b has 3 of 5 voters"},
		{"a witness in the third zone", map[volume.Zone]int{"a": 1, "b": 1, "w": 1}, ""},
		{"three zones, five voters", map[volume.Zone]int{"a": 2, "b": 2, "c": 1}, ""},
		{"three zones, one too heavy", map[volume.Zone]int{"a": 3, "b": 1, "c": 1}, "zone a has 3 of 5 voters"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := zoneRisk(c.votes)
			if c.warns == "" && got != "" || !strings.HasPrefix(got, c.warns) {
				t.Errorf("it says %q, want %q", got, c.warns)
			}
		})
	}
}
