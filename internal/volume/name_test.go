package volume

import (
	"regexp"
	"strings"
	"testing"
)

func TestValidateName(t *testing.T) {
	for _, name := range []string{"a", "7", "db", "my_project.data-1", strings.Repeat("x", MaxName), strings.Repeat("0123456789abcdef", 4)} {
		if err := ValidateName(name); err != nil {
			t.Errorf("ValidateName(%q) = %v; want it accepted", name, err)
		}
	}
	for name, reason := range map[string]string{
		"":                             "empty",
		strings.Repeat("x", MaxName+1): "256 bytes",
		"_a":                           "starts with '_'",
		".":                            "starts with '.'",
		"-v":                           "starts with '-'",
		"a/b":                          "not given by path",
		"/a":                           "not given by path",
		"a b":                          "has ' ' in it",
		"dätä":                         "has 'ä' in it",
		"a\x00":                        `has '\x00' in it`,
		"a@b":                          "has '@' in it",
	} {
		err := ValidateName(name)
		if CodeOf(err) != CodeInvalid || !strings.Contains(err.Error(), reason) {
			t.Errorf("ValidateName(%.20q) = %v; want a refusal saying %q", name, err, reason)
		}
	}
}

func FuzzValidateName(f *testing.F) {
	rule := regexp.MustCompile(`\A[a-zA-Z0-9][a-zA-Z0-9_.-]*\z`)
	f.Add("db")
	f.Add("a/b")
	f.Fuzz(func(t *testing.T, name string) {
		want := rule.MatchString(name) && len(name) <= MaxName
		if err := ValidateName(name); (err == nil) != want {
			t.Errorf("ValidateName(%q) = %v; Docker's rule says %v", name, err, want)
		}
	})
}
