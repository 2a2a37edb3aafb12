package cluster

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

var update = flag.Bool("update", false, "rewrite testdata")

var testRules = voterRules{Stable: 30 * time.Second, DeadAfter: time.Minute, MaxLag: 250}

func TestVoters(t *testing.T) {
	const path = "testdata/voters.txt"
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, block := range strings.Split(strings.TrimSpace(string(b)), "\n\n") {
		var kept, want []string
		var members []member
		for _, line := range strings.Split(block, "\n") {
			if strings.HasPrefix(line, "->") {
				want = append(want, line)
				continue
			}
			kept = append(kept, line)
			if line != "" && !strings.HasPrefix(line, "#") {
				members = append(members, parseMember(t, line))
			}
		}
		var got []string
		if members != nil {
			got = settleVoters(t, members)
		}
		if !*update && strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%s\ngot:\n%s\nwant:\n%s", strings.Join(kept, "\n"), strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		out = append(out, strings.Join(append(kept, got...), "\n"))
	}
	if *update {
		if err := os.WriteFile(path, []byte(strings.Join(out, "\n\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func parseMember(t *testing.T, line string) member {
	t.Helper()
	words := strings.Fields(line)
	m := member{ID: volume.NodeID(words[0]), Zone: "z", InRaft: true, AliveFor: 30 * time.Second}
	dur := func(s string) time.Duration {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		return d
	}
	for _, w := range words[1:] {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "zone":
			m.Zone = volume.Zone(value)
		case "leader":
			m.Leader = true
		case "voter":
			m.Voter = true
		case "nonvoter":
		case "joining":
			m.InRaft = false
		case "removed":
			m.Removed = true
		case "witness":
			m.Witness = true
		case "leaving":
			m.Leaving = true
		case "dead":
			m.AliveFor, m.DeadFor = 0, dur(value)
		case "alive":
			m.AliveFor = dur(value)
		case "suspect":
			m.AliveFor = 0
		case "lag":
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			m.Lag = n
		default:
			t.Fatalf("%q: unknown word %q", line, w)
		}
	}
	return m
}

// settleVoters performs the changes in the model until there is none.
func settleVoters(t *testing.T, members []member) []string {
	t.Helper()
	var out []string
	for range 20 {
		c := nextChange(members, testRules)
		if c.Op == "" {
			return append(out, "-> nothing")
		}
		out = append(out, fmt.Sprintf("-> %s %s: %s", c.Op, c.Node, c.Reason))
		perform(members, c)
	}
	t.Errorf("never settles: %v", out)
	return out
}

func perform(members []member, c change) {
	heir := false
	for i := range members {
		m := &members[i]
		switch {
		case m.ID != c.Node:
			if c.Op == opStepDown && m.Voter && !heir {
				m.Leader, heir = true, true
			}
		case c.Op == opStepDown:
			m.Leader = false
		case c.Op == opAdd:
			m.InRaft = true
		case c.Op == opRemove:
			m.InRaft, m.Voter = false, false
		case c.Op == opPromote:
			m.Voter = true
		case c.Op == opDemote:
			m.Voter = false
		}
	}
}

// Whatever the cluster looks like: the changes end, no living majority is given up,
// and the rules hold at every step.
func TestVotersRandom(t *testing.T) {
	for seed := range uint64(5000) {
		r := rand.New(rand.NewPCG(seed, 1))
		n := 1 + r.IntN(8)
		var members []member
		for i := range n {
			m := member{
				ID: volume.NodeID(string(rune('a' + i))), Zone: volume.Zone(string(rune('x' + r.IntN(3)))),
				InRaft: r.IntN(5) > 0, Witness: r.IntN(6) == 0, Removed: i > 0 && r.IntN(8) == 0, Leaving: r.IntN(5) == 0,
			}
			m.Voter = m.InRaft && r.IntN(2) == 0
			switch r.IntN(4) {
			case 0:
				m.DeadFor = time.Duration(r.IntN(120)) * time.Second
			default:
				m.AliveFor = time.Duration(1+r.IntN(60)) * time.Second
			}
			members = append(members, m)
		}
		members[0] = member{ID: "a", Zone: members[0].Zone, InRaft: true, Voter: true, Leader: true, Leaving: members[0].Leaving, AliveFor: time.Hour}
		// Only clusters that can agree on changes at all.
		if dead, voters := deadVoters(members); 2*(voters-dead) <= voters {
			continue
		}
		start := fmt.Sprintf("%+v", members)
		for step := 0; ; step++ {
			if step > 30 {
				t.Fatalf("seed %d never settles: %s", seed, start)
			}
			c := nextChange(members, testRules)
			if c.Op == "" {
				break
			}
			_, before := deadVoters(members)
			perform(members, c)
			dead, voters := deadVoters(members)
			if 2*(voters-dead) <= voters {
				t.Fatalf("seed %d: after %v only %d of %d voters live: %s", seed, c, voters-dead, voters, start)
			}
			if c.Op == opDemote && before >= 4 && voters < 3 || c.Op == opDemote && before == 3 {
				t.Fatalf("seed %d: %v leaves %d voters: %s", seed, c, voters, start)
			}
			if voters > 8 {
				t.Fatalf("seed %d: %d voters", seed, voters)
			}
		}
		if _, voters := deadVoters(members); voters > 5 {
			t.Fatalf("seed %d settles with %d voters: %s", seed, voters, start)
		}
	}
}

func deadVoters(members []member) (dead, voters int) {
	for _, m := range members {
		if m.Voter {
			voters++
			if m.AliveFor == 0 {
				dead++
			}
		}
	}
	return dead, voters
}
