package volume

import (
	"strconv"
	"strings"
	"time"
)

// MaxSnapshotName is the longest name a user may give a snapshot.
const MaxSnapshotName = 100

const (
	scheduledPrefix = "auto-"
	lostPrefix      = "lost-" // of what is saved when a copy is set aside
	slotFormat      = "20060102T150405Z"
)

// ValidateSnapshotName checks the name a user gives a snapshot: ZFS must take it,
// and nobody shall mistake it for one that is taken, and destroyed, by a rule.
func ValidateSnapshotName(name string) error {
	bad := func(reason string) error {
		return Errorf(CodeInvalid, "snapshot name %s: %s", clip(name), reason).
			WithHint("a name is 1 to %d letters, digits, '.', '_', ':' and '-', and does not start with '-', %s, %s or %s",
				MaxSnapshotName, snapshotPrefix, scheduledPrefix, lostPrefix)
	}
	switch {
	case name == "":
		return bad("it is empty")
	case len(name) > MaxSnapshotName:
		return bad("it is " + strconv.Itoa(len(name)) + " bytes long")
	case name == "." || name == "..":
		return bad("it is not a name")
	case name[0] == '-':
		return bad("it starts with '-'")
	}
	for _, r := range name {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
		case strings.ContainsRune("._:-", r):
		default:
			return bad("it has " + strconv.QuoteRune(r) + " in it")
		}
	}
	for _, prefix := range []string{snapshotPrefix, scheduledPrefix, lostPrefix} {
		if strings.HasPrefix(name, prefix) {
			return bad("names that start with " + prefix + " are flocker's own")
		}
	}
	return nil
}

// Slot is the period of a rule that holds a time; periods begin at midnight UTC,
// and whole weeks on a Monday.
func Slot(every time.Duration, at time.Time) time.Time { return at.UTC().Truncate(every) }

// ScheduledName is the name of the one snapshot that a rule takes in the slot of
// time around at: auto-1h-20261121T030000Z.
func ScheduledName(every time.Duration, at time.Time) string {
	return scheduledPrefix + FormatPeriod(every) + "-" + Slot(every, at).Format(slotFormat)
}

// ParseScheduledName reads what ScheduledName wrote; ok is false for every other
// name. The time is when the slot began, by the clock of who took it: for people,
// never for ordering.
func ParseScheduledName(name string) (every time.Duration, slot time.Time, ok bool) {
	rest, found := strings.CutPrefix(name, scheduledPrefix)
	period, text, cut := strings.Cut(rest, "-")
	if !found || !cut {
		return 0, time.Time{}, false
	}
	every, err := ParsePeriod(period)
	if err != nil {
		return 0, time.Time{}, false
	}
	slot, err = time.Parse(slotFormat, text)
	if err != nil || ScheduledName(every, slot) != name {
		return 0, time.Time{}, false
	}
	return every, slot, true
}
