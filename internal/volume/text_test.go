package volume

import (
	"strings"
	"testing"
)

func TestCheckText(t *testing.T) {
	for _, tt := range []struct {
		text string
		ok   bool
	}{
		{"", true},
		{"of the first nodes, ../../etc and $(reboot)", true},
		{"größer als 5 €", true},
		{strings.Repeat("x", 50), true},
		{strings.Repeat("x", 51), false},
		{"two\nlines", false},
		{"\x1b[2J", false},
		{"\u009b2J", false},
		{"right\u202eleft", false},
		{"no\x00byte", false},
		{"\xff", false},
	} {
		if err := CheckText("the note", tt.text, 50); (err == nil) != tt.ok || err != nil && CodeOf(err) != CodeInvalid {
			t.Errorf("%.60q: %v", tt.text, err)
		}
	}
}
