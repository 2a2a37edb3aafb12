package volume

import (
	"testing"
)

func TestSnapshotPolicy(t *testing.T) {
	for _, c := range []struct{ in, want, err string }{
		{"1h:24,1d:7,1w:4", "1h:24,1d:7,1w:4", ""},
		{"1w:4, 1h:24", "1h:24,1w:4", ""},
		{"60m:24", "1h:24", ""},
		{"24h:7", "1d:7", ""},
		{"90m:2", "90m:2", ""},
		{"none", "none", ""},
		{"", "", `"" is not PERIOD:NUMBER`},
		{"1h", "", `"1h" is not PERIOD:NUMBER`},
		{"1h:0", "", "0 snapshots is not from 1 to 1000"},
		{"1h:+3", "", `"+3" is not a number of snapshots`},
		{"1m:3", "", "a period of 1m is not from 5m to 366d"},
		{"400d:3", "", `"400d" is not a period like 15m, 1h, 1d or 1w`},
		{"99999999999w:3", "", `"99999999999w" is not a period like 15m, 1h, 1d or 1w`},
		{"1h:3,60m:4", "", "two rules for 1h"},
		{"-1h:3", "", `"-1h" is not a period like 15m, 1h, 1d or 1w`},
	} {
		p, err := ParseSnapshotPolicy(c.in)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != c.err {
			t.Errorf("%q: error %q, want %q", c.in, got, c.err)
		}
		if err == nil && p.String() != c.want {
			t.Errorf("%q: %q, want %q", c.in, p, c.want)
		}
	}
}
