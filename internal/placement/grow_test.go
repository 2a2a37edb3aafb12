package placement

import (
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

func TestGrow(t *testing.T) {
	const gib = 1 << 30
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	pool := func(size int64, health string) volume.PoolInfo {
		return volume.PoolInfo{Name: "tank", Size: size, Free: size, Health: health}
	}
	tests := []struct {
		name    string
		was, to int64
		n1, n2  volume.PoolInfo
		silent  bool // n2 has not reported lately
		refusal string
	}{
		{"room on both", gib, 2 * gib, pool(10*gib, "ONLINE"), pool(10*gib, "ONLINE"), false, ""},
		{"smaller", 2 * gib, gib, pool(gib, "ONLINE"), pool(gib, "ONLINE"), false, ""},
		{"no limit any more", gib, 0, pool(gib, "ONLINE"), pool(gib, "ONLINE"), false, ""},
		{"none on the primary", gib, 9 * gib, pool(10*gib, "ONLINE"), pool(100*gib, "ONLINE"), false, `volume "v" cannot grow to 9GiB: n1 would be 90 % full`},
		{"none on a replica", gib, 9 * gib, pool(100*gib, "ONLINE"), pool(10*gib, "ONLINE"), false, "n2 would be 90 % full"},
		{"none on either", gib, 9 * gib, pool(10*gib, "ONLINE"), pool(10*gib, "ONLINE"), false, "n1 would be 90 % full with what is promised there (limit 85 %); n2 would"},
		{"a first limit", 0, 9 * gib, pool(10*gib, "ONLINE"), pool(100*gib, "ONLINE"), false, "n1 would be"},
		{"a replica that cannot be asked", gib, 9 * gib, pool(100*gib, "ONLINE"), pool(10*gib, "ONLINE"), true, ""},
		{"a replica that cannot read its pool", gib, 9 * gib, pool(100*gib, "ONLINE"), pool(10*gib, "SUSPENDED"), false, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			vol := &state.Volume{ID: "v1", Name: "v", Phase: state.PhaseActive, Spec: volume.Spec{Size: tt.was},
				Placement: volume.Placement{Primary: "n1", Local: []volume.NodeID{"n2"}}}
			nodes := []*state.Node{{ID: "n1", Name: "n1"}, {ID: "n2", Name: "n2"}}
			reports := map[volume.NodeID]Heard{
				"n1": {Report: &volume.Report{Node: "n1", At: now, Pool: tt.n1}, At: now},
				"n2": {Report: &volume.Report{Node: "n2", At: now, Pool: tt.n2}, At: now},
			}
			if tt.silent {
				delete(reports, "n2")
			}
			v := newView(nodes, []*state.Volume{vol}, state.Settings{}, 1, reports, now)
			err := Grow(v, vol, volume.Spec{Size: tt.to})
			if got := errText(err); (tt.refusal == "") != (err == nil) || !strings.Contains(got, tt.refusal) {
				t.Errorf("got %q, want %q", got, tt.refusal)
			}
		})
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
