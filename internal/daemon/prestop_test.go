package daemon

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/state"
	"github.com/flocker-io/flocker/internal/volume"
)

// TestCopyAhead: copies that took so many milliseconds, when two are wanted and at most one
// second is allowed (or anything: 0), and whether there is to be another one.
func TestCopyAhead(t *testing.T) {
	for _, c := range []struct {
		took  string
		limit time.Duration
		more  bool
	}{
		{"", time.Second, true},
		{"50", time.Second, true},
		{"50 40", time.Second, false},
		{"5000 50", time.Second, false},
		{"5000 3000", time.Second, true},
		{"5000 3000 1500", time.Second, true},
		{"5000 3000 1500 900", time.Second, false},
		{"5000 4500", time.Second, false},
		{"5000 3000 2900", time.Second, false},
		{"5000 3000", 0, false},
		{"90000 60000 40000 20000 10000 5000 3000 2000", time.Second, false},
	} {
		var a copyAhead
		for _, word := range strings.Fields(c.took) {
			var ms int
			if _, err := fmt.Sscan(word, &ms); err != nil {
				t.Fatal(err)
			}
			a.took = append(a.took, time.Duration(ms)*time.Millisecond)
		}
		if got := a.more(2, c.limit); got != c.more {
			t.Errorf("after %q, at most %s: another one %v, want %v", c.took, c.limit, got, c.more)
		}
	}
}

// TestCopyAheadRefuses: what copies ahead have shown keeps containers from being stopped only
// where a limit says so, and then the words say which option that is.
func TestCopyAheadRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		took  time.Duration
		late  bool
		limit time.Duration
		want  string // "": it goes on
	}{
		{"short enough", 900 * time.Millisecond, false, time.Second, ""},
		{"too long", 1200 * time.Millisecond, false, time.Second, "about 1.2s"},
		{"too long, and nobody asks", time.Hour, false, 0, ""},
		{"not ended, within the limit so far", 50 * time.Second, true, time.Minute, "more than 50s"},
		{"not ended, and nobody asks", 30 * time.Second, true, 0, ""},
		{"nothing was copied, nothing goes along", 0, false, time.Second, ""},
	} {
		a := copyAhead{late: c.late}
		if c.took > 0 {
			a.took = []time.Duration{c.took}
		}
		err := a.refusal(c.limit)
		if (err == nil) != (c.want == "") {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		} else if err != nil && !(strings.Contains(err.Error(), c.want) && strings.Contains(err.Error(), "--max-pause") && strings.Contains(err.Error(), "--force")) {
			t.Errorf("%s: %q has no %q, or does not name the options", c.name, err, c.want)
		}
	}
}

// Of what goes along only that is looked at which was recorded when the move had begun.
func TestFreshLacks(t *testing.T) {
	rec := func(name string, changed uint64) *state.Container {
		return &state.Container{Name: name, Changed: changed, Volumes: []state.ContainerVolume{{ID: "v", Epoch: 1}}}
	}
	web, side := rec("web", 5), rec("side", 7)
	for _, tt := range []struct {
		name         string
		there        []volume.Followed
		since        uint64
		who, problem string
	}{
		{"both were known", nil, 7, "", ""},
		{"nothing was told of it", []volume.Followed{{Record: web.RecordKey()}}, 6, "side", ""},
		{"its image is on its way", []volume.Followed{{Record: side.RecordKey(), LacksImage: true}}, 6, "side", ""},
		{"it cannot run there", []volume.Followed{{Record: side.RecordKey(), Problem: "its name is taken"}}, 6, "side", "its name is taken"},
		{"it can", []volume.Followed{{Record: side.RecordKey()}}, 6, "", ""},
	} {
		if who, problem := freshLacks([]*state.Container{web, side}, tt.since, tt.there); who != tt.who || problem != tt.problem {
			t.Errorf("%s: %q, %q; want %q, %q", tt.name, who, problem, tt.who, tt.problem)
		}
	}
}

// Nobody waits for what containers need where they go to once they are stopped: they would be started again in vain.
func TestFreshTooLate(t *testing.T) {
	f := newFollower(&member{}, nil) // it knows of no cluster, and asks for none
	f.stops["a"] = &stopRun{}
	if err := f.awaitFresh(t.Context(), &state.Volume{ID: "v", Pending: &state.Pending{Attempt: "a"}}); err != nil {
		t.Error(err)
	}
}
