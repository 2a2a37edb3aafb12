package main

import (
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/api"
	"github.com/flocker-io/flocker/internal/api/apitest"
	"github.com/flocker-io/flocker/internal/volume"
)

// Each phase of a migration has its line: on a terminal one, which stays when it is over, in a pipe some,
// as it comes.
func TestMigrationLines(t *testing.T) {
	const gib = 1 << 30
	type look struct {
		at time.Duration
		m  api.Migration
	}
	first := func(sent, total, rate int64, doing string) api.Migration {
		return api.Migration{Phase: volume.MoveFirstCopy, Doing: doing, SentBytes: sent, TotalBytes: total, Rate: rate}
	}
	const s, ms = time.Second, time.Millisecond
	for _, tt := range []struct {
		name     string
		looks    []look
		pipe     string
		terminal string // | begins a line anew, and \ ends it
	}{
		{"all of one", []look{
			{0, first(0, 0, 0, "first copy to beta")},
			{1 * s, first(1*gib, 4*gib, 100<<20, "first copy to beta, 25 %")},
			{5 * s, first(1*gib+gib/2, 4*gib, 100<<20, "first copy to beta, 37 %")},
			{15 * s, first(3*gib, 4*gib, 100<<20, "first copy to beta, 75 %")},
			{26 * s, api.Migration{Phase: volume.MoveBegins, Doing: "moving to beta"}},
			{26*s + 250*ms, api.Migration{Phase: volume.MovePreCopy, Round: 1, Rounds: 8, Doing: "moving to beta: pre-copy round 1 of at most 8, 48MiB left", TotalBytes: 48 << 20}},
			{27 * s, api.Migration{Phase: volume.MovePreCopy, Round: 1, Rounds: 8, Doing: "moving to beta: pre-copy round 1 of at most 8, 12MiB left", SentBytes: 36 << 20, TotalBytes: 48 << 20, Rate: 4 << 20}},
			{28 * s, api.Migration{Phase: volume.MovePreCopy, Round: 2, Rounds: 8, Doing: "moving to beta: pre-copy round 2 of at most 8, 4KiB left", SentBytes: 4 << 10, TotalBytes: 8 << 10, Rate: 4 << 20}},
			{28*s + 250*ms, api.Migration{Phase: volume.MoveParking, Doing: "moving to beta: waiting for clients"}},
			{28*s + 500*ms, api.Migration{Phase: volume.MoveParking, Doing: "moving to beta: waiting for clients: 10.0.0.9:1", SentBytes: 1, TotalBytes: 2, Rate: 1}},
			{30 * s, api.Migration{Phase: volume.MoveFinalCopy, Doing: "moving to beta: final copy"}},
			{31 * s, api.Migration{Phase: volume.MoveEnding, Doing: "ends"}},
			{32 * s, api.Migration{State: api.MigrationDone}},
		},
			`pg from alpha to beta: first copy to beta
pg: first copy to beta: [#######...] 75% 3GiB of 4GiB, 100MiB/s, 10s left
pg from alpha to beta: moving to beta
pg: pre-copy 1 of at most 8: [..........]  0% 0B of 48MiB
pg: pre-copy 2 of at most 8: [#####.....] 50% 4KiB of 8KiB, 4MiB/s, 0s left
pg from alpha to beta: moving to beta: waiting for clients
pg from alpha to beta: moving to beta: waiting for clients: 10.0.0.9:1
pg from alpha to beta: moving to beta: final copy
pg from alpha to beta: ends
`,
			`|pg from alpha to beta: first copy to beta` +
				`|pg: first copy to beta: [##........] 25% 1GiB of 4GiB, 100MiB/s, 30s left` +
				`|pg: first copy to beta: [###.......] 37% 1.5GiB of 4GiB, 100MiB/s, 25s left` +
				`|pg: first copy to beta: [#######...] 75% 3GiB of 4GiB, 100MiB/s, 10s left` +
				`|pg: first copy to beta, for 26s\` +
				`|pg from alpha to beta: moving to beta|` +
				`|pg: pre-copy 1 of at most 8: [..........]  0% 0B of 48MiB` +
				`|pg: pre-copy 1 of at most 8: [#######...] 75% 36MiB of 48MiB, 4MiB/s, 3s left` +
				`|pg: pre-copy 1 of at most 8, for 1s\` +
				`|pg: pre-copy 2 of at most 8: [#####.....] 50% 4KiB of 8KiB, 4MiB/s, 0s left` +
				`|pg: pre-copy 2 of at most 8\` +
				`|pg from alpha to beta: moving to beta: waiting for clients` +
				`|pg from alpha to beta: moving to beta: waiting for clients: 10.0.0.9:1` +
				`|pg from alpha to beta: moving to beta: waiting for clients: 10.0.0.9:1, for 1s\` +
				`|pg from alpha to beta: moving to beta: final copy` +
				`|pg: final copy, for 1s\` +
				`|pg from alpha to beta: ends|`},
		{"of a flockd that does not tell how much it is", []look{
			{0, first(0, 0, 0, "first copy to beta, 1 %")},
			{1 * s, first(0, 0, 0, "first copy to beta, 2 %")},
			{10 * s, first(0, 0, 0, "first copy to beta, 9 %")},
			{11 * s, api.Migration{Phase: volume.MovePreCopy, Round: 1, Rounds: 2, Doing: "moving to beta: pre-copy round 1 of at most 2, 3MiB left"}},
		},
			`pg from alpha to beta: first copy to beta, 1 %
pg from alpha to beta: first copy to beta, 9 %
pg from alpha to beta: moving to beta: pre-copy round 1 of at most 2, 3MiB left
`,
			`|pg from alpha to beta: first copy to beta, 1 %` +
				`|pg from alpha to beta: first copy to beta, 2 %` +
				`|pg from alpha to beta: first copy to beta, 9 %` +
				`|pg: first copy to beta, for 11s\` +
				`|pg from alpha to beta: moving to beta: pre-copy round 1 of at most 2, 3MiB left` +
				`|pg: pre-copy 1 of at most 2\`},
		{"of one that does not tell phases, either", []look{
			{0, api.Migration{Doing: "first copy to beta, 1 %"}},
			{1 * s, api.Migration{Doing: "first copy to beta, 2 %"}},
		},
			"pg from alpha to beta: first copy to beta, 1 %\npg from alpha to beta: first copy to beta, 2 %\n",
			"|pg from alpha to beta: first copy to beta, 1 %|pg from alpha to beta: first copy to beta, 2 %|"},
		{"what it waits for, and more than was estimated", []look{
			{0, api.Migration{Phase: volume.MoveWaiting, Why: "no image"}},
			{2 * s, api.Migration{Phase: volume.MoveWaiting, Why: "no image"}},
			{3 * s, first(9<<20, 8<<20, 1, "first copy to beta, 99 %")},
		},
			"pg from alpha to beta waits: no image\npg: first copy to beta: [##########] 100% 9MiB of 9MiB, 1B/s\n",
			`|pg from alpha to beta waits: no image|pg from alpha to beta waits: no image, for 3s\` +
				`|pg: first copy to beta: [##########] 100% 9MiB of 9MiB, 1B/s|pg: first copy to beta\`},
		{"it goes back", []look{
			{0, api.Migration{Arrived: true, Phase: volume.MovePreCopy, Round: 1, Rounds: 1, Doing: "moving to alpha: pre-copy round 1 of at most 1, 1KiB left", SentBytes: 3 << 10, TotalBytes: 4 << 10}},
			{1 * s, api.Migration{Arrived: true, Phase: volume.MoveFinalCopy, Doing: "moving to alpha: final copy, 1KiB left", SentBytes: 3 << 10, TotalBytes: 4 << 10}},
		},
			"pg: pre-copy 1 of at most 1 back to alpha: [#######...] 75% 3KiB of 4KiB\npg: final copy back to alpha: [#######...] 75% 3KiB of 4KiB\n",
			`|pg: pre-copy 1 of at most 1 back to alpha: [#######...] 75% 3KiB of 4KiB|pg: pre-copy 1 of at most 1 back to alpha, for 1s\` +
				`|pg: final copy back to alpha: [#######...] 75% 3KiB of 4KiB|pg: final copy back to alpha\`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			shown := func(terminal, asJSON bool) string {
				var out strings.Builder
				now := apitest.Now
				a := &app{world: world{stderr: &out, progress: terminal, now: func() time.Time { return now }}, asJSON: asJSON}
				p := a.newProgress()
				for _, l := range tt.looks {
					now = apitest.Now.Add(l.at)
					m := l.m
					m.Name, m.From, m.To = "pg", apitest.Alpha, apitest.Beta
					if m.State == "" {
						m.State = api.MigrationRunning
					}
					p.step(migrationStep(m))
				}
				p.end()
				p.end()
				return out.String()
			}
			if got := shown(false, false); got != tt.pipe {
				t.Errorf("pipe:\n%swant:\n%s", got, tt.pipe)
			}
			if got := strings.NewReplacer("\r\x1b[K", "|", "\n", `\`).Replace(shown(true, false)); got != tt.terminal {
				t.Errorf("terminal:\n%s\nwant:\n%s", got, tt.terminal)
			}
			if got := shown(true, true); got != "" {
				t.Errorf("for programs: %q", got)
			}
		})
	}
}
