package terminal

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestLine(t *testing.T) {
	for in, want := range map[string]string{
		"":                          "",
		"first\n\tsecond \r\n":      "first second",
		"\x1b[2J\x00\xff\u202e\x7f": `\x1b[2J\x00\xff\u202e\x7f`,
		"as it is: é € <b> \\n":     "as it is: é € <b> \\n",
	} {
		if got := Line(in); got != want {
			t.Errorf("Line(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestShortened(t *testing.T) {
	for _, n := range []int{0, 100, 4096} {
		if in := strings.Repeat("x", n); shortened(in) != in {
			t.Errorf("%d bytes are not left as they are", n)
		}
	}
	in := "begin " + strings.Repeat("é", 1<<20) + " end: see flockctl --help"
	got := shortened(in)
	if len(got) > 4096 || !utf8.ValidString(got) || !strings.HasPrefix(got, "begin ") || !strings.HasSuffix(got, " end: see flockctl --help") {
		t.Errorf("shortened to %d bytes: %q", len(got), got)
	}
}

func TestBadWord(t *testing.T) {
	for _, tt := range []struct {
		word string
		file bool
		want string
	}{
		{"pgdata", false, ""},
		{"grün €", false, ""},
		{"", true, "is empty"},
		{strings.Repeat("x", 64<<10), false, ""},
		{strings.Repeat("x", 64<<10+1), true, "has 65537 bytes, at most 65536 are possible"},
		{"a\x00b", true, "has a zero byte in it"},
		{"a\x1b[2J", false, `has characters in it that cannot be shown: "a\x1b[2J"`},
		{"\xff", false, `has characters in it that cannot be shown: "\xff"`},
		{"two\nlines\xff", true, ""},
	} {
		if got := BadWord(tt.word, tt.file); got != tt.want {
			t.Errorf("BadWord(%.20q, %t) = %q, want %q", tt.word, tt.file, got, tt.want)
		}
	}
}
