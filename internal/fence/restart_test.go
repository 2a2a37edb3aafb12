package fence

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flocker-io/flocker/internal/lease"
)

// Only while nobody has to be stopped for longer than a restart takes.
func TestMayRestart(t *testing.T) {
	const now = lease.Moment(time.Hour)
	armed := func(left, ttl time.Duration) Status {
		return Status{State: PhaseArmed, Lease: Lease{No: 7, Until: now.Add(left), Fence: time.Minute, TTL: ttl}}
	}
	ttl, fast, slow := lease.Default.TTL, lease.Fast.TTL, lease.Lab.TTL
	for _, tc := range []struct {
		name string
		s    Status
		want string // part of the refusal; "" for none
	}{
		{"nothing is armed", Status{State: PhaseIdle}, ""},
		{"a lease just renewed", armed(ttl, ttl), ""},
		{"renewed a moment ago", armed(ttl-Fresh(ttl), ttl), ""},
		{"not renewed lately", armed(ttl-Fresh(ttl)-1, ttl), "lease 7 ends in 9s"},
		{"the fast profile's, just renewed", armed(fast-Fresh(fast), fast), ""},
		{"the fast profile's, not renewed lately", armed(fast-Fresh(fast)-1, fast), "lease 7 ends in 5.4s"},
		{"the lab profile's, renewed a moment ago", armed(slow-Fresh(slow), slow), ""},
		{"the lab profile's, not renewed lately", armed(slow-Fresh(slow)-1, slow), "lease 7 ends in 54s"},
		{"of a flockd that does not say how long it lasts", armed(2*Away, 0), ""},
		{"the same, about to end", armed(2*Away-1, 0), "lease 7 ends in 4s"},
		{"ended, and not noticed yet", armed(-time.Millisecond, ttl), "lease 7 ends"},
		{"at work", Status{State: PhaseFencing}, "being stopped (fencing)"},
		{"too late already", Status{State: PhaseFailed}, "being stopped (failed)"},
		{"its work is done", Status{State: PhaseFenced}, ""},
		{"a phase of another version", Status{State: "new"}, "(new)"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.s.mayRestart(now)
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("got %v, want a refusal with %q", err, tc.want)
			}
		})
	}
}

// It waits for a better moment, and says why there was none.
func TestMayRestartWaits(t *testing.T) {
	dir := t.TempDir()
	s := serve(t, dir)
	defer s.stop()
	c := Dial(filepath.Join(dir, "fence.sock"))
	defer c.Close()
	now, _ := standing()
	if _, err := c.Arm(t.Context(), someLease(3, time.Duration(now.Add(time.Second)))); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	looks := 0
	err := c.mayRestart(ctx, func() (lease.Moment, error) {
		if looks++; looks == 4 {
			cancel()
		}
		return now, nil
	})
	if err == nil || !strings.Contains(err.Error(), "lease 3 ends in 1s") || looks != 4 {
		t.Errorf("a lease about to end: %v after %d looks, want 4", err, looks)
	}

	looks = 0
	err = c.mayRestart(t.Context(), func() (lease.Moment, error) {
		if looks++; looks == 2 { // a beat is answered
			if _, err := c.Arm(t.Context(), someLease(3, time.Duration(now.Add(10*time.Second)))); err != nil {
				t.Error(err)
			}
		}
		return now, nil
	})
	if err != nil || looks != 3 {
		t.Errorf("renewed: %v after %d looks, want 3", err, looks)
	}
}
