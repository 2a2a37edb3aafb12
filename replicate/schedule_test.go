package replicate

import (
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

func TestSchedule(t *testing.T) {
	clock := func(s string) time.Time {
		at, err := time.Parse("2006-01-02 15:04", "2026-11-21 "+s)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	dataDriven(t, "schedule.txt", func(in map[string]string) string {
		a := agenda{policy: parsePolicy(t, in["policy"]), now: clock(in["now"]), taken: map[time.Duration]time.Time{}}
		_, a.changed = in["head"]
		for i, word := range strings.FieldsFunc(in["snaps"], func(r rune) bool { return r == ',' }) {
			text, written := strings.CutSuffix(word, "+")
			text, bookmark := strings.CutPrefix(text, "#")
			s := snap{name: text, guid: guid(i + 1), txg: uint64(i + 1)}
			if written {
				s.written = 1
			}
			if period, at, ok := strings.Cut(text, "@"); ok {
				every, err := volume.ParsePeriod(period)
				if err != nil {
					t.Fatal(err)
				}
				s.rule, s.slot, s.name = every, clock(at), volume.ScheduledName(every, clock(at))
			}
			if bookmark {
				a.marks = append(a.marks, mark{name: tombstone + s.name, guid: s.guid, txg: s.txg})
			} else {
				a.snaps = append(a.snaps, s)
			}
		}
		if period, ago, ok := strings.Cut(in["took"], "@"); ok {
			every, err1 := volume.ParsePeriod(period)
			since, err2 := time.ParseDuration(ago)
			if err1 != nil || err2 != nil {
				t.Fatal(err1, err2)
			}
			a.taken[every] = a.now.Add(-since)
		}
		var due []string
		for _, every := range a.due() {
			due = append(due, volume.ScheduledName(every, a.now))
		}
		if due == nil {
			return "nothing"
		}
		return strings.Join(due, " ")
	})
}

// Any clock, however it jumps, takes at most one snapshot in a slot, and what stays
// of a rule is always its newest by the order in which they were taken.
func TestScheduleUnderAnyClock(t *testing.T) {
	policy := parsePolicy(t, "1h:3")
	start := time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC)
	var snaps []snap
	taken := map[string]int{}
	txg := uint64(0)
	for i := range 2000 {
		// Back and forth by hours, days and a year.
		now := start.Add(time.Duration(i*i%97-48) * time.Hour * time.Duration(1+i%3*24*(i%5))).Add(time.Duration(i) * time.Minute)
		for _, every := range (agenda{policy: policy, now: now, snaps: snaps, changed: true}).due() {
			txg++
			name := volume.ScheduledName(every, now)
			snaps = append(snaps, snap{name: name, guid: guid(txg), txg: txg, rule: every, slot: volume.Slot(every, now)})
		}
		seen := map[string]bool{}
		for _, s := range snaps {
			if seen[s.name] {
				t.Fatalf("two snapshots %s at a time", s.name)
			}
			seen[s.name] = true
			taken[s.name]++
		}
		gone := surplus(snaps, policy, false)
		if len(gone) != max(0, len(snaps)-3) {
			t.Fatalf("%d of %d go", len(gone), len(snaps))
		}
		for j, s := range gone {
			if s.guid != snaps[j].guid {
				t.Fatalf("%s goes before %s, which was taken before it", s.name, snaps[j].name)
			}
		}
		snaps = snaps[len(gone):]
	}
	if len(taken) < 10 {
		t.Errorf("only %d slots seen: the clock of the test does not jump", len(taken))
	}
}

func TestTidyStep(t *testing.T) {
	dataDriven(t, "tidy.txt", func(in map[string]string) string {
		var s standing
		_, s.exists = in["copy"]
		_, s.fork = in["fork"]
		if _, ok := in["token"]; ok {
			s.token = "t"
		}
		for _, word := range strings.FieldsFunc(in["seeds"], func(r rune) bool { return r == ',' }) {
			epoch, state, _ := strings.Cut(word, ":")
			sd := seed{epoch: volume.Epoch(number(t, epoch))}
			switch state {
			case "partial":
				sd.token = "t"
			case "complete":
				sd.snaps = []snap{{name: "x", guid: 1, txg: 1}}
			}
			s.seeds = append(s.seeds, sd)
		}
		st, more := tidyStep(s, tidying(in["how"]))
		if !more {
			return "nothing"
		}
		return strings.TrimSpace(string(st.act) + " " + strings.TrimLeft(st.epoch.String(), "0"))
	})
}
