package volume

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// SnapshotPolicy says which snapshots are taken by the clock and how many of them
// stay: one rule per period, shortest first. Nil: none are taken.
type SnapshotPolicy []SnapshotRule

// SnapshotRule takes a snapshot each period in which something was written, and
// keeps the newest Keep of its own.
type SnapshotRule struct {
	Every time.Duration `json:"every"`
	Keep  int           `json:"keep"`
}

// Bounds of a rule. Below five minutes the interval of replication is the tool.
const (
	MinSnapshotEvery = 5 * time.Minute
	MaxSnapshotEvery = 366 * 24 * time.Hour
	MaxSnapshotKeep  = 1000
	maxSnapshotRules = 8
)

// NoSnapshots is how an empty policy is written.
const NoSnapshots = "none"

// ParseSnapshotPolicy reads what String writes: rules like 1h:24,1d:7,1w:4, or none.
func ParseSnapshotPolicy(s string) (SnapshotPolicy, error) {
	if s == NoSnapshots {
		return nil, nil
	}
	var p SnapshotPolicy
	for text := range strings.SplitSeq(s, ",") {
		every, keep, ok := strings.Cut(strings.TrimSpace(text), ":")
		if !ok {
			return nil, fmt.Errorf("%s is not PERIOD:NUMBER", clip(text))
		}
		d, err := ParsePeriod(every)
		if err != nil {
			return nil, err
		}
		n, err := strconv.Atoi(keep)
		if err != nil || strings.HasPrefix(keep, "+") {
			return nil, fmt.Errorf("%s is not a number of snapshots", clip(keep))
		}
		p = append(p, SnapshotRule{Every: d, Keep: n})
	}
	slices.SortStableFunc(p, func(a, b SnapshotRule) int { return int(min(1, max(-1, a.Every-b.Every))) })
	return p, p.Validate()
}

// Validate checks a policy that did not come from ParseSnapshotPolicy.
func (p SnapshotPolicy) Validate() error {
	if len(p) > maxSnapshotRules {
		return fmt.Errorf("more than %d rules", maxSnapshotRules)
	}
	for i, r := range p {
		switch {
		case r.Every < MinSnapshotEvery || r.Every > MaxSnapshotEvery:
			return fmt.Errorf("a period of %s is not from %s to %s", FormatPeriod(r.Every), FormatPeriod(MinSnapshotEvery), FormatPeriod(MaxSnapshotEvery))
		case r.Every%time.Minute != 0:
			return fmt.Errorf("a period of %s is not in whole minutes", r.Every)
		case r.Keep < 1 || r.Keep > MaxSnapshotKeep:
			return fmt.Errorf("%d snapshots is not from 1 to %d", r.Keep, MaxSnapshotKeep)
		case i > 0 && p[i-1].Every == r.Every:
			return fmt.Errorf("two rules for %s", FormatPeriod(r.Every))
		case i > 0 && p[i-1].Every > r.Every:
			return errors.New("rules are not in order of their periods")
		}
	}
	return nil
}

// String is the policy in its one written form.
func (p SnapshotPolicy) String() string {
	if len(p) == 0 {
		return NoSnapshots
	}
	var out []string
	for _, r := range p {
		out = append(out, fmt.Sprintf("%s:%d", FormatPeriod(r.Every), r.Keep))
	}
	return strings.Join(out, ",")
}

var periods = []struct {
	unit string
	d    time.Duration
}{{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}}

// ParsePeriod reads one number with a unit of s, m, h, d or w.
func ParsePeriod(s string) (time.Duration, error) {
	for _, p := range periods {
		number, ok := strings.CutSuffix(s, p.unit)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(number, 10, 32)
		if err != nil || n < 1 || !isDigits(number) || time.Duration(n) > MaxSnapshotEvery/p.d+1 {
			break
		}
		return time.Duration(n) * p.d, nil
	}
	return 0, fmt.Errorf("%s is not a period like 15m, 1h, 1d or 1w", clip(s))
}

// FormatPeriod writes a period in the largest unit that divides it.
func FormatPeriod(d time.Duration) string {
	for _, p := range periods {
		if d >= p.d && d%p.d == 0 {
			return fmt.Sprintf("%d%s", d/p.d, p.unit)
		}
	}
	return FormatDuration(d)
}
