package volume

import (
	"strings"
	"testing"
	"time"
)

func TestValidateSnapshotName(t *testing.T) {
	for _, c := range []struct{ name, err string }{
		{"before-upgrade", ""},
		{"2026-11-21_03:00", ""},
		{"v1.2", ""},
		{"automatic", ""},
		{strings.Repeat("a", 100), ""},
		{"", "it is empty"},
		{strings.Repeat("a", 101), "it is 101 bytes long"},
		{"-r", "it starts with '-'"},
		{"..", "it is not a name"},
		{"a b", "it has ' ' in it"},
		{"a@b", "it has '@' in it"},
		{"a/b", "it has '/' in it"},
		{"a,b", "it has ',' in it"},
		{"ä", "it has 'ä' in it"},
		{"flk-x", "names that start with flk- are flocker's own"},
		{"auto-1h", "names that start with auto- are flocker's own"},
		{"lost-1", "names that start with lost- are flocker's own"},
	} {
		err := ValidateSnapshotName(c.name)
		switch {
		case c.err == "" && err != nil:
			t.Errorf("%q: %v", c.name, err)
		case c.err != "" && (err == nil || CodeOf(err) != CodeInvalid || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%q: %v, want %q", c.name, err, c.err)
		}
	}
}

func TestScheduledName(t *testing.T) {
	zone := time.FixedZone("somewhere", 3*3600)
	for _, c := range []struct {
		every time.Duration
		at    time.Time
		want  string
	}{
		{time.Hour, time.Date(2026, 11, 21, 3, 59, 59, 9, time.UTC), "auto-1h-20261121T030000Z"},
		{time.Hour, time.Date(2026, 11, 21, 3, 59, 59, 9, zone), "auto-1h-20261121T000000Z"},
		{15 * time.Minute, time.Date(2026, 11, 21, 3, 59, 59, 9, time.UTC), "auto-15m-20261121T034500Z"},
		{24 * time.Hour, time.Date(2026, 11, 21, 3, 0, 0, 0, time.UTC), "auto-1d-20261121T000000Z"},
		{7 * 24 * time.Hour, time.Date(2026, 11, 22, 23, 0, 0, 0, time.UTC), "auto-1w-20261116T000000Z"}, // a Monday
		{90 * time.Minute, time.Date(2026, 11, 21, 2, 0, 0, 0, time.UTC), "auto-90m-20261121T013000Z"},
	} {
		name := ScheduledName(c.every, c.at)
		if name != c.want {
			t.Errorf("%s at %s: %s, want %s", c.every, c.at, name, c.want)
		}
		every, slot, ok := ParseScheduledName(name)
		if !ok || every != c.every || !slot.Equal(Slot(c.every, c.at)) {
			t.Errorf("%s is read as %s, %s, %v", name, every, slot, ok)
		}
	}
	for _, name := range []string{
		"", "auto-", "auto-1h", "auto-1h-", "auto-1h-x", "1h-20261121T030000Z",
		"auto-60m-20261121T030000Z", // written 1h
		"auto-1h-20261121T033000Z",  // within a slot
		"auto-1h-20261121T030000",
		"auto-1h-20261121T030000Z-1",
		"auto-x-20261121T030000Z",
		"flk-0000000000000001-000000000001",
	} {
		if every, slot, ok := ParseScheduledName(name); ok {
			t.Errorf("%q is read as %s, %s", name, every, slot)
		}
	}
}
